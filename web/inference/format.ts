/** Numbers as people read them. */

const UNITS = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];

/** `90.8 MB`: decimal units, as browsers and hubs count. */
export function bytes(count: number): string {
  const power = count < 1000 ? 0 : Math.min(UNITS.length - 1, Math.floor(Math.log10(count) / 3));
  const value = count / 1000 ** power;
  return new Intl.NumberFormat("en", {
    style: "unit",
    unit: UNITS[power] ?? "byte",
    unitDisplay: power === 0 ? "long" : "short",
    maximumFractionDigits: power < 2 || value >= 100 ? 0 : 1,
  }).format(value);
}

/** `12 ms`, `3.4 s`. */
export function duration(milliseconds: number): string {
  if (milliseconds >= 1000) {
    return `${(milliseconds / 1000).toFixed(milliseconds < 10_000 ? 2 : 1)} s`;
  }
  return `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
}

export function count(amount: number, one: string, many: string): string {
  return `${amount.toLocaleString("en")} ${amount === 1 ? one : many}`;
}

export function date(secondsSinceEpoch: number): string {
  return new Date(secondsSinceEpoch * 1000).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
}
