// @ts-check
/** A mark for each mood: its shape says what its colour says. */
import { html } from "./preact.js";

const SHAPES = {
  idle: html`<circle cx="6" cy="6" r="4" fill="none" stroke="currentColor" stroke-width="1.5" />`,
  calm: html`<circle cx="6" cy="6" r="4.75" fill="currentColor" />`,
  busy: html`<path d="M6 .75 11.25 6 6 11.25.75 6Z" fill="currentColor" />`,
  refusing: html`<path d="M1 1h10v10H1ZM3.5 5v2h5V5Z" fill="currentColor" fill-rule="evenodd" />`,
  loading: html`<circle cx="6" cy="6" r="4" fill="none" stroke="currentColor" stroke-width="2.5" stroke-dasharray="4.2 2.08" />`,
  down: html`<path d="m2 2 8 8m0-8-8 8" stroke="currentColor" stroke-width="2.5" stroke-linecap="round" />`,
};

export function MoodMark({ mood }) {
  return html`<svg class="mood ${mood}" viewBox="0 0 12 12" aria-hidden="true">${SHAPES[mood]}</svg>`;
}
