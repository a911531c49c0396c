// @ts-check
/** The theme (auto, light, dark), kept in this browser, and the colours that it gives. */

const STORED = "penstock-theme";
const system = matchMedia("(prefers-color-scheme: dark)");

/** @typedef {"auto" | "light" | "dark"} Theme */

/** @type {Set<() => void>} */
const listeners = new Set();
const tell = () => listeners.forEach((listener) => listener());
system.addEventListener("change", tell);

/** @returns {Theme} */
export function theme() {
  const kept = document.documentElement.dataset.theme;
  return kept === "light" || kept === "dark" ? kept : "auto";
}

/** @param {Theme} chosen */
function show(chosen) {
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
}

/** @param {Theme} chosen */
export function setTheme(chosen) {
  show(chosen);
  try {
    localStorage.setItem(STORED, chosen);
  } catch {
    // Storage is off in this browser: the choice holds until the page is closed.
  }
  tell();
}

/** Show the theme that was chosen earlier. */
export function restoreTheme() {
  try {
    show(/** @type {Theme} */ (localStorage.getItem(STORED) ?? "auto"));
  } catch {
    // Storage is off in this browser.
  }
}

/**
 * Call `listener` whenever colours change. Returns a function that ends it.
 * @param {() => void} listener
 */
export function onTheme(listener) {
  listeners.add(listener);
  return () => void listeners.delete(listener);
}

/** @type {HTMLElement | undefined} */
let probe;

/**
 * Return what a token of style.css is now, for a canvas: colour("water") → "rgb(8, 118, 155)".
 * The property itself has the text `light-dark(…)`, which a canvas does not read.
 * @param {string} name
 */
export function colour(name) {
  if (!probe) {
    probe = document.createElement("i");
    probe.hidden = true;
    document.body.append(probe);
  }
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}
