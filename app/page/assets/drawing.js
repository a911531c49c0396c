// @ts-check
/** Draws what an answer holds on the picture that was sent. */

import { html, useEffect, useRef } from "./preact.js";
import { percent } from "./format.js";

// Okabe and Ito's, which colour-blind people tell apart.
const COLOURS = ["#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2"];
const MOST_LABELS = 6; // of more, only the active one is shown
const COVER = 160; // of 255: how much of the picture a mask hides

/** @param {any} props what `find` found, the picture's `size`, and the links of `TryIt` */
export function Drawing({ size: { width, height }, shapes, masks, active, onActive, onShow }) {
  const labels = [...new Set(shapes.map(({ label }) => label))];
  const share = (points, axis, whole, pick) => Math.min(1, Math.max(0, pick(...points.map((point) => point[axis])) / whole));
  const layers = masks.map((mask, index) => {
    const box = mask.box ?? [[0, 0], [width, height]];
    const [left, right] = [share(box, 0, width, Math.min), share(box, 0, width, Math.max)];
    const [top, bottom] = [share(box, 1, height, Math.min), share(box, 1, height, Math.max)];
    const style = { left: `${left * 100}%`, top: `${top * 100}%`, width: `${(right - left) * 100}%`, height: `${(bottom - top) * 100}%` };
    return html`<${Mask} key=${mask.path} mask=${mask} index=${index} style=${style} faint=${active !== "" && active !== mask.path} />`;
  });
  const drawn = shapes.map(({ path, points, closed, label, score }, index) => {
    const text = `${label.slice(0, 32)} ${score === null ? "" : percent(score)}`.trim();
    const colour = COLOURS[labels.indexOf(label) % COLOURS.length];
    const isActive = path === active;
    const corners = points.map((point) => point.join()).join(" ");
    const show = (event) => {
      if (event.type === "keydown" && event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      onShow(path);
    };
    const mark = html`<g class=${isActive ? "shape active" : "shape"} stroke=${colour} fill=${colour} tabindex="0" role="button" aria-label=${`${text || index + 1}: show it in the answer`}
      onMouseEnter=${() => onActive(path)} onMouseLeave=${() => onActive("")} onFocus=${() => onActive(path)} onBlur=${() => onActive("")} onClick=${show} onKeyDown=${show}>
      ${closed ? html`<polygon class="halo" points=${corners} /><polygon points=${corners} />` : points.map(([x, y]) => html`<circle cx=${x} cy=${y} r=${(width + height) / 240} />`)}</g>`;
    if (!isActive && (!text || shapes.length > MOST_LABELS)) return [mark, null];
    const [left, right, top] = [share(points, 0, width, Math.min), share(points, 0, width, Math.max), share(points, 1, height, Math.min)];
    const place = { top: `${top * 100}%`, borderColor: colour, ...(left < 0.6 ? { left: `${left * 100}%` } : { right: `${(1 - right) * 100}%` }) };
    return [mark, html`<bdi class=${`cut shape-label${top < 0.08 ? " inside" : ""}${isActive ? " active" : ""}`} style=${place} aria-hidden="true">${text || index + 1}</bdi>`];
  });
  return html`${layers}<svg class="shapes" viewBox=${`0 0 ${width} ${height}`} preserveAspectRatio="none">${drawn.map(([mark]) => mark)}</svg>${drawn.map(([, label]) => label)}`;
}

function Mask({ mask, index, style, faint }) {
  const canvas = useRef(null);
  useEffect(() => paint(canvas.current, mask, index), [mask]);
  return html`<canvas class="mask" ref=${canvas} style=${style} data-faint=${faint} role="img" aria-label=${mask.label || "mask"} />`;
}

/** Classes have a colour each; other values are drawn from the least to the greatest. */
function paint(canvas, { rows, classes }, index) {
  Object.assign(canvas, { width: rows[0].length, height: rows.length });
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const pixels = new DataView(image.data.buffer);
  const colours = COLOURS.map((colour) => parseInt(colour.slice(1), 16) * 256);
  let [least, most] = [0, 1];
  for (const row of classes ? [] : rows) for (const value of row) [least, most] = [Math.min(least, value), Math.max(most, value)];
  rows.flat().forEach((value, at) => {
    const colour = colours[(index + (classes ? Math.abs(value) + COLOURS.length - 1 : 0)) % COLOURS.length];
    const share = classes ? Math.min(1, Math.abs(value)) : (value - least) / (most - least);
    pixels.setUint32(4 * at, colour + Math.round(COVER * share));
  });
  context.putImageData(image, 0, 0);
}
