// @ts-check
/** The waterfall of a request: a row for each visit of a node, with its waiting and its run. */
import { count, ms, plural } from "./format.js";
import { html, useMemo, useState } from "./preact.js";

const UNFOLDED_PARTS = 8; // of more, the longest are shown until the reader asks for all
const TICKS = 5; // so many have room on a phone

/** What a request waited for, short enough for a bar. @type {Record<string, string>} */
const WAITED_FOR = {
  instance: "for an instance",
  batching: "for its batch",
  order: "for its turn",
  downstream: "for room downstream",
  loop: "for the event loop",
};

export const hrefOf = (id) => `#/requests/${encodeURIComponent(id)}`;

export function Waterfall({ request }) {
  const { rows, longest, end } = useMemo(() => laidOut(request), [request]);
  const step = stepOf(end);
  const ticks = Array.from({ length: Math.ceil((end * 0.97) / step) }, (_, index) => index * step);
  return html`<section class="waterfall" aria-label="Waterfall">
    <div class="waterfall-grid hint" aria-hidden="true">
      <span><i class="stretch wait"></i>waits <i class="stretch run"></i>runs</span>
      <span class="ticks">${ticks.map((at) => html`<span style=${{ left: share(at, end) }}>${ms(at)}</span>`)}</span>
      <span class="num">waited</span><span class="num">ran</span>
    </div>
    <ol class="waterfall-rows" style=${{ "--step": share(step, end) }}>${rows.map(
      (row) => html`<${RowOf} row=${row} depth=${0} end=${end} longest=${longest} />`,
    )}</ol>
  </section>`;
}

function RowOf({ row, depth, end, longest }) {
  const { name, part, waited, ran, visit, parts } = row;
  const [open, setOpen] = useState(visit && row === longest);
  const [all, setAll] = useState(false);
  const some = all ? parts : longestOf(parts, UNFOLDED_PARTS);
  return html`<li class=${row === longest && (waited > ran ? "longest waited" : "longest")}>
    <button class="waterfall-grid" aria-label="${name}${part ? ` ${part}` : ""}: ${row.words}"
      aria-expanded=${visit ? open : undefined} onClick=${() => setOpen(visit && !open)}>
      <span class="waterfall-name" style=${{ "--depth": depth }}><span class="cut">${name}</span>
        ${part > 0 && html`<span class="unit">${part}</span>`}</span>
      <span class="waterfall-bar">${row.stretches.map(({ kind, from, to, label }) => html`<i
        class="stretch ${kind}" style=${{ left: share(from, end), width: share(to - from, end) }}
        ><b>${label}</b></i>`)}</span>
      <span class="num">${waited !== null && ms(waited)}</span>
      <span class="num">${ran !== null && ms(ran)}</span>
      <span class="waterfall-words card">${row.words}</span>
    </button>
    ${open && html`<${Details} visit=${visit} />`}
    ${parts.length > 0 && html`<ol aria-label="Parts of ${name}">${some.map(
      (one) => html`<${RowOf} row=${one} depth=${depth + 1} end=${end} longest=${longest} />`,
    )}</ol>`}
    ${parts.length > UNFOLDED_PARTS && html`<button class="button quiet small"
      onClick=${() => setAll(!all)}>Show ${all ? "the longest parts" : `all ${parts.length} parts`}</button>`}
  </li>`;
}

function Details({ visit: { words: all, batch, waits, pieces, instance, device } }) {
  const mates = batch?.mates ?? [];
  const more = batch?.more_mates ? `and ${count(batch.more_mates)} more` : "";
  const left = batch?.left_queued ? `${count(batch.left_queued)} stayed queued.` : "";
  const facts = [
    ["In short", all],
    ["Waited", waits.length > 0 && waits.map(({ words }) => html`<p>${words}</p>`)],
    ["Ran", pieces.map((piece) => `${piece.name} ${ms(piece.ms)}`).join(", ")],
    ["Batch", batch && `${plural(batch.rows, "row")} of at most ${batch.max}. ${batch.rule_words} ${left}`],
    ["Together with", mates.length > 0 && html`${mates.map((id) => html`<a class="mono" href=${hrefOf(id)}>${id}</a>`)}${more}`],
    ["Instance", instance && html`<span class="mono">${instance}</span> ${device}`],
  ];
  return html`<dl>${facts.map(([name, fact]) => fact && html`<dt>${name}</dt><dd>${fact}</dd>`)}</dl>`;
}

/** Return the rows in their order, the one with the longest stretch, and the axis' end in ms. */
function laidOut({ ms: end, nodes, spans }) {
  const visits = nodes.map((visit) => rowOf(visit, end));
  const rows = spans.map(({ name, words, start_ms: from, end_ms: to }) => ({
    ...{ name: `(${name})`, words, part: 0, waited: null, ran: to - from, visit: null, parts: [], from },
    stretches: [{ kind: "span", from, to }],
  }));
  visits.forEach((row) => (visits[row.visit.part_of ?? -1]?.parts ?? rows).push(row));
  rows.sort((one, other) => one.from - other.from);
  const leaves = [...visits, ...rows].filter((row) => !row.parts.length);
  const [longest] = longestOf(leaves, 1);
  return { rows, longest, end: Math.max(end, 0.01) };
}

/** Return the row of a visit. What never started or never ended lasts until `end`, in ms. */
function rowOf(visit, end) {
  const { node: name, queued_at_ms: from, started_at_ms: start, batch, words } = visit;
  const stop = visit.ended_at_ms ?? end;
  const stretches = [];
  let at = from;
  for (const { why, ms: lasted } of visit.waits) {
    const label = start !== null && WAITED_FOR[why]; // an unfinished visit may have run
    stretches.push({ kind: "wait", from: at, to: (at += lasted), label });
  }
  if (start !== null) {
    const label = batch?.rows > 1 && `batch of ${batch.rows}`;
    stretches.push({ kind: "run", from: start, to: stop, label });
    at = start;
    for (const piece of visit.pieces) {
      const kind = piece.name === "run" ? "run" : "run piece";
      stretches.push({ kind, from: at, to: (at += piece.ms) });
    }
  }
  const part = visit.part_of === null && !visit.item ? 0 : visit.item + 1;
  const waited = (start ?? stop) - from;
  const ran = start === null ? null : stop - start;
  return { name, words, part, from, waited, ran, stretches, visit, parts: [] };
}

/** Return the rows with the longest stretches, at most `most`, in their order. */
function longestOf(rows, most) {
  const length = ({ waited, ran }) => Math.max(waited, ran); // null counts as 0
  const kept = [...rows].sort((one, other) => length(other) - length(one)).slice(0, most);
  return rows.filter((row) => kept.includes(row));
}

/** Return 1, 2 or 5 times a power of ten. */
function stepOf(end) {
  const least = end / TICKS;
  const power = 10 ** Math.floor(Math.log10(least));
  return power * ([1, 2, 5].find((times) => times * power >= least) ?? 10);
}

const share = (part, whole) => `${((part / whole) * 100).toFixed(3)}%`;
