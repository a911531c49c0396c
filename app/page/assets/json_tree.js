// @ts-check
/** JSON to unfold. Only what is open is in the page, so that 10 MB do not freeze the tab. */

import { html, useEffect, useRef, useState } from "./vendor/htm/standalone.module.js";
import { bytes, count, plural } from "./format.js";
import { below } from "./shapes.js";

const LINE = 64; // characters that fit on a line
const ROWS = 100;
const STRING = 400; // characters of a string that are shown
const LONG_STRING = 50_000;

/**
 * @typedef {{active: string, shown: string, linked: Set<string>, onActive: (path: string) => void}} Links
 *   `active`: the path that the pointer or focus is at; `shown`: the one to unfold and scroll to.
 */

/**
 * Return a value on one line, or null: it is too long.
 * @param {any} value
 * @returns {string | null}
 */
function line(value, most = LINE) {
  if (typeof value === "string") return value.length > most ? null : JSON.stringify(value);
  if (value === null || typeof value !== "object") return String(value);
  if (Array.isArray(value) ? value.length > most / 2 : Object.keys(value).length > most / 4) return null;
  const isList = Array.isArray(value);
  let text = "";
  for (const [key, one] of Object.entries(value)) {
    const part = line(one, most - text.length);
    if (part === null) return null;
    text += `${text && ", "}${isList ? "" : `${JSON.stringify(key)}: `}${part}`;
    if (text.length > most) return null;
  }
  return isList ? `[${text}]` : `{${text}}`;
}

/** What a folded value holds. @param {any} value */
function summary(value) {
  if (!Array.isArray(value)) {
    const keys = Object.keys(value);
    return `{${plural(keys.length, "key")}} ${keys.slice(0, 4).join(", ").slice(0, LINE)}${keys.length > 4 ? ", …" : ""}`;
  }
  const first = value.slice(0, 4).map((one) => (one && typeof one === "object" ? (Array.isArray(one) ? "[…]" : "{…}") : String(one).slice(0, 16)));
  return `[${plural(value.length, typeof value[0] === "number" ? "number" : "item")}] ${first.join(", ")}${value.length > 4 ? ", …" : ""}`;
}

/** @param {{value: any, links: Links}} props */
export function JsonTree({ value, links }) {
  return html`<ul class="json mono"><${Row} name="" at="" depth=${0} value=${value} links=${links} /></ul>`;
}

/** @param {{name: string, at: string, depth: number, value: any, links: Links}} props */
function Row({ name, at, depth, value, links }) {
  const [asked, ask] = useState(/** @type {boolean | null} */ (null));
  const [rows, more] = useState(ROWS);
  const own = useRef(/** @type {HTMLElement | null} */ (null));
  const isHere = links.shown === at && at !== "";
  const isAbove = links.shown.startsWith(`${at}/`);
  const isBox = value !== null && typeof value === "object";
  const short = isBox && at ? line(value) : null;
  const isOpen = isBox && short === null && (asked ?? (isAbove || depth < 2 && !(Array.isArray(value) && (value.length > 20 || typeof value[0] === "number"))));
  useEffect(() => {
    if (isHere) own.current?.scrollIntoView({ block: "nearest" });
    if (isAbove) ask(null);
  }, [links.shown]);
  const key = name && html`<span class="key">${name}</span>: `;
  const mark = links.linked.has(at) && {
    "data-active": links.active === at,
    tabindex: 0,
    onMouseEnter: () => links.onActive(at),
    onMouseLeave: () => links.onActive(""),
    onFocus: () => links.onActive(at),
    onBlur: () => links.onActive(""),
  };
  if (!isOpen) {
    const body = !isBox ? html`<${Leaf} value=${value} />` : short ?? null;
    return html`<li ref=${own} ...${mark}>
      ${body === null
        ? html`<button class="fold" aria-expanded="false" onClick=${() => ask(true)}>${key}<span>${summary(value)}</span></button>`
        : html`${key}${body}`}
    </li>`;
  }
  const isList = Array.isArray(value);
  const keys = isList ? null : Object.keys(value);
  const length = keys ? keys.length : value.length;
  const next = isAbove && isList ? Number(links.shown.slice(at.length + 1).split("/")[0]) + 1 || 0 : 0;
  const most = Math.min(length, Math.max(rows, next));
  const items = Array.from({ length: most }, (_, index) => {
    const one = keys ? keys[index] : String(index);
    return html`<${Row} key=${one} name=${one} at=${below(at, one)} depth=${depth + 1} value=${value[one]} links=${links} />`;
  });
  return html`<li ref=${own} ...${mark}>
    ${at !== "" && html`<button class="fold" aria-expanded="true" onClick=${() => ask(false)}>${key}<span class="hint">${isList ? plural(length, "item") : plural(length, "key")}</span></button>`}
    <ul>${items}</ul>
    ${most < length && html`<button class="button small" onClick=${() => more(most + ROWS)}>Show ${Math.min(ROWS, length - most)} more of ${count(length)}</button>`}
  </li>`;
}

/** @param {{value: any}} props */
function Leaf({ value }) {
  const [isLong, lengthen] = useState(false);
  if (typeof value !== "string") return html`<span class="value">${String(value)}</span>`;
  const shown = value.slice(0, isLong ? LONG_STRING : STRING);
  return html`<bdi class="string">"${shown}${shown.length < value.length ? "…" : '"'}</bdi>
    ${shown.length < value.length &&
    html` <button class="button small" disabled=${isLong} onClick=${() => lengthen(true)}>
      ${isLong ? `The first ${bytes(LONG_STRING)} of ${bytes(value.length)}; copy or save it to see all` : `Show more of ${bytes(value.length)}`}
    </button>`}`;
}
