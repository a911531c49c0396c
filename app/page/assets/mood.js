// @ts-check
/** A mark for each mood: its shape says what its colour says. */
import { html } from "./vendor/htm/standalone.module.js";
import { MOODS } from "./status.js";

const SHAPES = {
  idle: html`<circle cx="6" cy="6" r="4" fill="none" stroke="currentColor" stroke-width="1.5" />`,
  calm: html`<circle cx="6" cy="6" r="4.75" fill="currentColor" />`,
  busy: html`<path d="M6 .75 11.25 6 6 11.25.75 6Z" fill="currentColor" />`,
  refusing: html`<rect x="1" y="1" width="10" height="10" rx="1.5" fill="currentColor" /><path d="M3.5 6h5" stroke="var(--panel)" stroke-width="2" />`,
  loading: html`<circle cx="6" cy="6" r="4" fill="none" stroke="currentColor" stroke-width="2.5" stroke-dasharray="4.2 2.08" />`,
  down: html`<path d="m2 2 8 8m0-8-8 8" stroke="currentColor" stroke-width="2.5" stroke-linecap="round" />`,
};

/**
 * @param {{mood: import("./status.js").Mood, named?: boolean}} props `named`: no word is beside it
 */
export function MoodMark({ mood, named = false }) {
  const name = named ? { role: "img", "aria-label": MOODS[mood] } : { "aria-hidden": "true" };
  return html`<svg class="mood ${mood}" viewBox="0 0 12 12" ...${name}>${SHAPES[mood]}</svg>`;
}
