// @ts-check
/** The waterfall of a request: a row for each visit of a node, with its waiting and its run. */

import { count, ms, plural } from "./format.js";
import { html, useMemo, useState } from "./vendor/htm/standalone.module.js";

/** Of more parts of one visit, only the longest are shown until the reader asks for all. */
const UNFOLDED_PARTS = 8;
/** So many have room on a phone. */
const TICKS = 5;

/**
 * @typedef {{rows: number, max: number, rule_words: string, mates: string[], more_mates: number,
 *   left_queued: number}} Batch
 * @typedef {{node: string, item: number, part_of: number | null, queued_at_ms: number,
 *   started_at_ms: number | null, ended_at_ms: number | null, instance: string, device: string,
 *   batch: Batch | null, waits: {why: string, ms: number, words: string}[],
 *   pieces: {name: string, ms: number}[], words: string}} Visit
 * @typedef {import("./why.js").Entry & {nodes: Visit[], spans: {name: string, start_ms: number,
 *   end_ms: number, words: string}[]}} Explained of GET /requests/ID
 *
 * A stretch of a row's bar, in ms. `kind` is its shade; `label` is drawn where it fits.
 * @typedef {{kind: string, from: number, to: number, label: string}} Stretch
 *
 * A row. `waited` and `ran` are in ms, or null. `part` counts the parts of a visit; 0: not a part.
 * @typedef {{key: string, name: string, part: number, waited: number | null, ran: number | null,
 *   words: string, stretches: Stretch[], visit: Visit | null, parts: Row[]}} Row
 */

/** What a request waited for, short enough for a bar.
 * @type {Record<string, string>} */
const WAITED_FOR = {
  instance: "for an instance",
  batching: "for its batch",
  order: "for its turn",
  downstream: "for room downstream",
  loop: "for the event loop",
};

/** @param {string} id */
export const hrefOf = (id) => `#/requests/${encodeURIComponent(id)}`;

/** @param {{request: Explained}} properties */
export function Waterfall({ request }) {
  const { rows, longest, end } = useMemo(() => laidOut(request), [request]);
  const [open, setOpen] = useState(() => new Set([longest?.key]));
  const [read, setRead] = useState(longest);
  if (!rows.length) return null;
  const step = stepOf(end);
  const ticks = Array.from({ length: Math.ceil((end * 0.97) / step) }, (_, index) => index * step);
  /** @param {string} key */
  const toggle = (key) => {
    const changed = new Set(open);
    if (!changed.delete(key)) changed.add(key);
    setOpen(changed);
  };
  const shared = { end, open, toggle, setRead, longest };
  return html`
    <section class="waterfall" aria-label="Waterfall">
      <div class="waterfall-axis waterfall-grid" aria-hidden="true">
        <span><i class="stretch wait"></i>waits <i class="stretch run"></i>runs</span>
        <span class="waterfall-ticks">
          ${ticks.map((at) => html`<span style=${{ left: share(at, end) }}>${at < 1000 ? `${Number(at.toPrecision(3))} ms` : ms(at)}</span>`)}
        </span>
        <span class="num">waited</span><span class="num">ran</span>
      </div>
      <ol class="waterfall-rows" style=${{ "--step": share(step, end) }}>
        ${rows.map(
          (/** @type {Row} */ row) =>
            html`<${RowOf} key=${row.key} row=${row} depth=${0} ...${shared} />`,
        )}
      </ol>
      <p class="waterfall-words" aria-hidden="true">${read?.words}</p>
    </section>
  `;
}

/**
 * One row, its details where they are open, and the rows of its parts.
 * @param {{row: Row, depth: number, end: number, open: Set<string>, longest: Row | null,
 *   toggle: (key: string) => void, setRead: (row: Row) => void}} properties
 */
function RowOf({ row, depth, ...shared }) {
  const { end, open, longest, toggle, setRead } = shared;
  const { key, name, part, waited, ran, visit, parts } = row;
  const [all, setAll] = useState(false);
  const shown = visit !== null && open.has(key);
  const read = () => setRead(row);
  return html`
    <li class=${row === longest && "longest"}>
      <button class="waterfall-row waterfall-grid" aria-expanded=${visit ? shown : undefined}
        aria-label=${`${name}${part ? ` ${part}` : ""}: ${row.words}`}
        onClick=${() => toggle(key)} onPointerEnter=${read} onFocus=${read}>
        <span class="waterfall-name" style=${{ "--depth": depth }}>
          <span class="cut">${name}</span>${part > 0 && html`<span class="unit">${part}</span>`}
        </span>
        <span class="waterfall-bar">
          ${row.stretches.map(({ kind, from, to, label }) => {
            const style = { left: share(from, end), width: share(to - from, end) };
            return html`<i class=${`stretch ${kind}`} style=${style}><b>${label}</b></i>`;
          })}
        </span>
        <span class="num">${waited !== null && ms(waited)}</span>
        <span class="num">${ran !== null && ms(ran)}</span>
      </button>
      ${shown && html`<${Details} visit=${visit} />`}
      ${parts.length > 0 &&
      html`<ol aria-label=${`Parts of ${name}`}>
        ${(all ? parts : longestOf(parts, UNFOLDED_PARTS)).map(
          (part) => html`<${RowOf} key=${part.key} row=${part} depth=${depth + 1} ...${shared} />`,
        )}
      </ol>`}
      ${parts.length > UNFOLDED_PARTS &&
      html`<button class="button quiet small" onClick=${() => setAll(!all)}>
        ${all ? `Show the longest ${UNFOLDED_PARTS} parts` : `Show all ${parts.length} parts`}
      </button>`}
    </li>
  `;
}

/** @param {{visit: Visit}} properties */
function Details({ visit: { batch, waits, pieces, instance, device } }) {
  return html`
    <dl>
      ${waits.length > 0 &&
      html`<dt>Waited</dt>
        <dd>${waits.map((wait) => html`<p>${wait.words}</p>`)}</dd>`}
      ${pieces.length > 0 &&
      html`<dt>Ran</dt>
        <dd>${pieces.map((piece) => `${piece.name} ${ms(piece.ms)}`).join(", ")}</dd>`}
      ${batch &&
      html`<dt>Batch</dt>
        <dd>
          ${plural(batch.rows, "row")} of at most ${batch.max}. ${batch.rule_words}
          ${batch.left_queued > 0 && ` ${count(batch.left_queued)} stayed queued.`}
        </dd>`}
      ${batch?.mates.length &&
      html`<dt>Together with</dt>
        <dd>
          ${batch.mates.map((mate) => html`<a class="mono" href=${hrefOf(mate)}>${mate}</a>`)}
          ${batch.more_mates > 0 && `and ${count(batch.more_mates)} more`}
        </dd>`}
      ${instance &&
      html`<dt>Instance</dt>
        <dd><span class="mono">${instance}</span>${device && ` on ${device}`}</dd>`}
    </dl>
  `;
}

/**
 * Lay a request out as rows, in the order in which they began. `end` is where the axis ends, in ms;
 * `longest` is the row with the longest stretch.
 * @param {Explained} request
 * @returns {{rows: Row[], longest: Row | null, end: number}}
 */
function laidOut({ ms: took, nodes, spans }) {
  const ends = [...nodes.map((visit) => visit.ended_at_ms ?? 0), ...spans.map((span) => span.end_ms)];
  const end = Math.max(took, 0.01, ...ends);
  const visits = nodes.map((visit, index) => rowOf(visit, index, end));
  const rows = spans.map(({ name, words, start_ms: from, end_ms: to }) => ({
    ...{ key: `${from}`, name, words, part: 0, waited: null, ran: to - from, visit: null, parts: [] },
    stretches: [{ kind: "span", from, to, label: "" }],
  }));
  visits.forEach((row, index) => {
    const whole = visits[nodes[index].part_of ?? -1];
    (whole ? whole.parts : /** @type {Row[]} */ (rows)).push(row);
  });
  rows.sort((one, other) => (one.stretches[0]?.from ?? 0) - (other.stretches[0]?.from ?? 0));
  const leaves = [...visits, ...rows].filter((row) => !row.parts.length);
  return { rows, longest: longestOf(leaves, 1)[0] ?? null, end };
}

/**
 * @param {Visit} visit
 * @param {number} index
 * @param {number} end what never started or never ended lasts until then, in ms
 * @returns {Row}
 */
function rowOf(visit, index, end) {
  const { node, queued_at_ms: from, started_at_ms: start, part_of, waits, batch, words } = visit;
  const stop = visit.ended_at_ms ?? end;
  let at = from;
  const stretches = waits.map(({ why, ms: lasted }) => {
    at += lasted;
    return { kind: "wait", from: at - lasted, to: at, label: WAITED_FOR[why] };
  });
  if (start !== null) {
    const label = batch && batch.rows > 1 ? `batch of ${batch.rows}` : "";
    stretches.push({ kind: "run", from: start, to: stop, label });
    at = start;
    for (const { name, ms: lasted } of visit.pieces) {
      if (name !== "run") stretches.push({ kind: "run side", from: at, to: at + lasted, label: "" });
      at += lasted;
    }
  }
  return {
    key: `${node} ${index}`,
    name: node,
    part: part_of === null ? 0 : visit.item + 1,
    waited: (start ?? stop) - from,
    ran: start === null ? null : stop - start,
    words,
    stretches,
    visit,
    parts: [],
  };
}

/**
 * Return the rows that have the longest stretches, at most `most`, in their order.
 * @param {Row[]} rows
 * @param {number} most
 */
function longestOf(rows, most) {
  const length = (/** @type {Row} */ row) => Math.max(row.waited ?? 0, row.ran ?? 0);
  const kept = [...rows].sort((one, other) => length(other) - length(one)).slice(0, most);
  return rows.filter((row) => kept.includes(row));
}

/**
 * Return the distance of ticks in ms: 1, 2 or 5 times a power of ten.
 * @param {number} end
 */
function stepOf(end) {
  const least = end / TICKS;
  const power = 10 ** Math.floor(Math.log10(least));
  return power * ([1, 2, 5].find((times) => times * power >= least) ?? 10);
}

/** @type {(part: number, whole: number) => string} */
const share = (part, whole) => `${((Math.max(part, 0) / whole) * 100).toFixed(3)}%`;
