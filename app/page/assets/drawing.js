// @ts-check
/** Draws what an answer holds on the image that was sent. */

import { html, useEffect, useRef } from "./vendor/htm/standalone.module.js";
import { percent } from "./format.js";

// Okabe and Ito's, which colour-blind people tell apart.
const COLOURS = ["#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2"];
const MOST_LABELS = 12;
const MOST_CHARACTERS = 32;
const COVER = 160; // of 255: how much of the image a mask hides

/**
 * What lies over an image of this size. `active`: the path that is marked.
 * @param {import("./shapes.js").Found & {size: {width: number, height: number}, active: string,
 *   onActive: (path: string) => void, onShow: (path: string) => void}} props
 */
export function Drawing({ size, shapes, masks, active, onActive, onShow }) {
  const labels = [...new Set(shapes.map(({ label }) => label))];
  const drawn = shapes.map((shape, index) => {
    const { path, points, closed, label, score } = shape;
    const text = [label.length > MOST_CHARACTERS ? `${label.slice(0, MOST_CHARACTERS)}…` : label, score === null ? "" : percent(score)].join(" ").trim();
    const name = text || String(index + 1);
    const colour = COLOURS[labels.indexOf(label) % COLOURS.length];
    const isActive = path === active;
    const corners = points.map((point) => point.join(",")).join(" ");
    const show = (event) => {
      if (event.type === "keydown" && event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      onShow(path);
    };
    const mark = html`<g class=${isActive ? "shape active" : "shape"} stroke=${colour} fill=${colour} tabindex="0" role="button" aria-label=${`${name}: show it in the answer`}
      onMouseEnter=${() => onActive(path)} onMouseLeave=${() => onActive("")} onFocus=${() => onActive(path)} onBlur=${() => onActive("")} onClick=${show} onKeyDown=${show}>
      ${closed
        ? html`<polygon class="halo" points=${corners} /><polygon points=${corners} />`
        : points.map(([x, y]) => html`<circle cx=${x} cy=${y} r=${Math.max(size.width, size.height) / 120} />`)}</g>`;
    if (!isActive && (!text || shapes.length > MOST_LABELS)) return [mark, null];
    const part = (axis, of, pick) => Math.min(1, Math.max(0, pick(...points.map((point) => point[axis])) / of));
    const [left, right, top] = [part(0, size.width, Math.min), part(0, size.width, Math.max), part(1, size.height, Math.min)];
    const place = { top: `${top * 100}%`, borderColor: colour, ...(left < 0.6 ? { left: `${left * 100}%` } : { right: `${(1 - right) * 100}%` }) };
    return [mark, html`<bdi class=${`shape-label ${top < 0.08 ? "inside" : ""} ${isActive ? "active" : ""}`} style=${place} aria-hidden="true">${name}</bdi>`];
  });
  return html`${masks.map((mask, index) => html`<${Mask} key=${mask.path} mask=${mask} size=${size} index=${index} faint=${active && active !== mask.path} />`)}
    <svg class="shapes" viewBox=${`0 0 ${size.width} ${size.height}`} preserveAspectRatio="none">${drawn.map(([mark]) => mark)}</svg>${drawn.map(([, label]) => label)}`;
}

function Mask({ mask, size, index, faint }) {
  const canvas = useRef(null);
  useEffect(() => paint(canvas.current, mask, index), [mask]);
  const box = mask.box ?? [[0, 0], [size.width, size.height]];
  const range = (axis, whole) => [Math.min(...box.map((point) => point[axis])) / whole, Math.max(...box.map((point) => point[axis])) / whole];
  const [[left, right], [top, bottom]] = [range(0, size.width), range(1, size.height)];
  const style = { left: `${left * 100}%`, top: `${top * 100}%`, width: `${(right - left) * 100}%`, height: `${(bottom - top) * 100}%` };
  return html`<canvas class="mask" ref=${canvas} style=${style} data-faint=${Boolean(faint)} role="img" aria-label=${mask.label || "mask"} />`;
}

/** Classes have a colour each; other values are drawn from the least to the greatest. */
function paint(canvas, { rows, classes }, index) {
  Object.assign(canvas, { width: rows[0].length, height: rows.length });
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  let [least, most] = [0, 1];
  if (!classes) for (const row of rows) for (const value of row) [least, most] = [Math.min(least, value), Math.max(most, value)];
  const pixels = new DataView(image.data.buffer);
  const colours = COLOURS.map((colour) => parseInt(colour.slice(1), 16) * 256);
  let at = 0;
  for (const row of rows) {
    for (const value of row) {
      const colour = colours[(classes ? index + Math.abs(value) + COLOURS.length - 1 : index) % COLOURS.length];
      pixels.setUint32(at, colour + (classes ? (value ? COVER : 0) : Math.round((COVER * (value - least)) / (most - least))));
      at += 4;
    }
  }
  context.putImageData(image, 0, 0);
}
