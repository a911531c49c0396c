// @ts-check
/** The theme (auto, light, dark), kept in this browser, and the colours that it gives. */
import { kept } from "./storage.js";

const stored = kept("localStorage", "penstock-theme");
const changes = new EventTarget();
const tell = () => changes.dispatchEvent(new Event("change"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);

/** Show the theme and keep it; without a name, the one that was kept. Return its name. */
export function chooseTheme(name = stored.read() ?? "auto") {
  document.documentElement.dataset.theme = name;
  stored.write(name);
  tell();
  return name;
}

/** Call `listener` when colours change. Return a function that ends it. */
export function onTheme(listener) {
  changes.addEventListener("change", listener);
  return () => changes.removeEventListener("change", listener);
}

/**
 * Return a colour token of style.css for a canvas, which cannot read its `light-dark(…)`:
 * colour("water") is "rgb(8, 118, 155)".
 */
export function colour(token) {
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = `var(--${token})`;
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}
