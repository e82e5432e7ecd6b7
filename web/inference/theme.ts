/** The theme that the person chose, applied before the first paint. A classic script, so that nothing flashes. */

const KEY = "pywebml-theme";
const THEMES = ["auto", "light", "dark"];

function apply(theme: string): void {
  document.documentElement.dataset.theme = THEMES.includes(theme) ? theme : "auto";
}

// Storage may be switched off; then the choice lasts as long as the page.
function stored(): string {
  try {
    return localStorage.getItem(KEY) ?? "auto";
  } catch {
    return "auto";
  }
}

function store(theme: string): void {
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    return;
  }
}

apply(stored());
document.addEventListener("DOMContentLoaded", () => {
  const select = document.getElementById("theme") as HTMLSelectElement;
  select.value = document.documentElement.dataset.theme ?? "auto";
  select.addEventListener("change", () => {
    apply(select.value);
    store(select.value);
  });
});

export {};
