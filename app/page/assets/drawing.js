// @ts-check
/** Draws boxes, polygons, points and masks on an image. Colours of Okabe and Ito, which colour-blind people tell apart. */

import { html, useEffect, useRef } from "./vendor/htm/standalone.module.js";
import { percent } from "./format.js";

/** @typedef {import("./shapes.js").Shape} Shape @typedef {import("./shapes.js").Mask} Mask */

const COLOURS = ["#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2"];
const MOST_LABELS = 12;

/** A colour for each label, in the order of their coming. @param {{label: string}[]} things */
export function coloursOf(things) {
  const labels = [...new Set(things.map(({ label }) => label))];
  return (/** @type {{label: string}} */ { label }) => COLOURS[labels.indexOf(label) % COLOURS.length];
}

/** @param {Shape} shape */
const nameOf = ({ label, score }) => [label.length > 32 ? `${label.slice(0, 31)}…` : label, score === null ? "" : percent(score)].filter(Boolean).join(" ");

/**
 * What lies over an image of this size. `active`: the path that is marked.
 * @param {{size: {width: number, height: number}, shapes: Shape[], masks: Mask[], active: string,
 *   onActive: (path: string) => void, onShow: (path: string) => void}} props
 */
export function Drawing({ size, shapes, masks, active, onActive, onShow }) {
  const colour = coloursOf(shapes);
  const radius = Math.max(size.width, size.height) / 120;
  const name = (/** @type {Shape} */ shape, /** @type {number} */ index) => nameOf(shape) || String(index + 1);
  const drawn = shapes.map((shape, index) => {
    const shared = {
      key: index,
      class: shape.path === active ? "shape active" : "shape",
      stroke: colour(shape),
      tabindex: 0,
      role: "button",
      "aria-label": `${name(shape, index)}: show it in the answer`,
      onMouseEnter: () => onActive(shape.path),
      onMouseLeave: () => onActive(""),
      onFocus: () => onActive(shape.path),
      onBlur: () => onActive(""),
      onClick: () => onShow(shape.path),
      onKeyDown: (/** @type {KeyboardEvent} */ event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          onShow(shape.path);
        }
      },
    };
    if (shape.kind === "points") {
      return html`<g ...${shared}>${shape.points.map(([x, y]) => html`<circle cx=${x} cy=${y} r=${radius} fill=${colour(shape)} />`)}</g>`;
    }
    const points = shape.points.map((point) => point.join(",")).join(" ");
    return html`<g ...${shared}><polygon class="halo" points=${points} /><polygon points=${points} /></g>`;
  });
  const labels = shapes.map((shape, index) => {
    if (shape.path !== active && (shapes.length > MOST_LABELS || !nameOf(shape))) return null;
    const x = Math.max(0, Math.min(...shape.points.map((point) => point[0])) / size.width);
    const y = Math.max(0, Math.min(...shape.points.map((point) => point[1])) / size.height);
    const place = { left: x < 0.6 ? `${x * 100}%` : "auto", right: x < 0.6 ? "auto" : `${Math.max(0, 1 - x) * 100}%`, top: `${y * 100}%`, borderColor: colour(shape) };
    if (x >= 0.6) place.right = `${Math.max(0, 1 - Math.max(...shape.points.map((point) => point[0])) / size.width) * 100}%`;
    return html`<bdi class=${`shape-label ${y < 0.08 ? "inside" : ""} ${shape.path === active ? "active" : ""}`} style=${place} aria-hidden="true">${name(shape, index)}</bdi>`;
  });
  return html`${masks.map((mask, index) => html`<${MaskLayer} key=${mask.path} mask=${mask} size=${size} index=${index} faint=${active !== "" && active !== mask.path} />`)}
    <svg class="shapes" viewBox=${`0 0 ${size.width} ${size.height}`} preserveAspectRatio="none">${drawn}</svg>${labels}`;
}

/** @param {{mask: Mask, size: {width: number, height: number}, index: number, faint: boolean}} props */
function MaskLayer({ mask, size, index, faint }) {
  const canvas = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  useEffect(() => paint(/** @type {HTMLCanvasElement} */ (canvas.current), mask, index), [mask]);
  const [[x1, y1], [x2, y2]] = mask.place ?? [[0, 0], [size.width, size.height]];
  const part = (/** @type {number} */ value, /** @type {number} */ whole) => `${(value / whole) * 100}%`;
  const style = { left: part(x1, size.width), top: part(y1, size.height), width: part(x2 - x1, size.width), height: part(y2 - y1, size.height) };
  return html`<canvas class="mask" ref=${canvas} style=${style} data-faint=${faint} role="img" aria-label=${`mask ${mask.label}`} />`;
}

/** @param {HTMLCanvasElement} canvas @param {Mask} mask @param {number} index of the mask: its colour */
function paint(canvas, { rows, classes }, index) {
  const [width, height] = [rows[0].length, rows.length];
  Object.assign(canvas, { width, height });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(width, height);
  const colours = COLOURS.map((text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)));
  const [least, most] = classes ? [0, 1] : rangeOf(rows);
  let at = 0;
  for (const row of rows) {
    for (const value of row) {
      const [red, green, blue] = colours[(classes ? index + value - 1 + colours.length : index) % colours.length] ?? colours[0];
      image.data[at] = red;
      image.data[at + 1] = green;
      image.data[at + 2] = blue;
      image.data[at + 3] = classes ? (value ? 150 : 0) : (190 * (value - least)) / (most - least);
      at += 4;
    }
  }
  context.putImageData(image, 0, 0);
}

/** 0 to 1 for probabilities, else the least and the greatest value. @param {number[][]} rows */
function rangeOf(rows) {
  let [least, most] = [0, 1];
  for (const row of rows) for (const value of row) {
    if (value < least) least = value;
    if (value > most) most = value;
  }
  return [least, most];
}
