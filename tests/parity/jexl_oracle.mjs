/** Reads `[{expression, names}]` as JSON, writes what the JEXL library of JavaScript makes of each. */
import { readFileSync } from "node:fs";
import { Jexl } from "jexl";

/** JSON has no words for these. */
function plain(value) {
  if (value === undefined || value === null) return null;
  if (typeof value === "number" && !Number.isFinite(value)) return { number: String(value) };
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === "object") return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, plain(item)]));
  return value;
}

const jexl = new Jexl();
const answers = JSON.parse(readFileSync(0, "utf8")).map(({ expression, names }) => {
  try {
    return { value: plain(jexl.evalSync(expression, names)) };
  } catch (error) {
    return { error: error.message };
  }
});
process.stdout.write(JSON.stringify(answers));
