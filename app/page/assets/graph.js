// @ts-check
/** The graph of a pipeline: nodes as cards, edges as pipes, a node's details. */
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/htm/standalone.module.js";
import { count, ms, plural, rate } from "./format.js";
import { fit } from "./layout.js";

/**
 * @typedef {import("./status.js").Pipeline} Pipeline
 * @typedef {import("./status.js").GraphNode} GraphNode
 * @typedef {import("./status.js").LiveNode} LiveNode
 * @typedef {import("./status.js").Executor} Executor
 * @typedef {import("./layout.js").Pipe} Pipe
 * @typedef {import("./layout.js").Place} Place
 */

const OTHERS = 460; // pixels of the screen's height for the top bar, the heading and the charts
const USUAL = ["swap", "Run"]; // filters that are not worth a label
const SQUARES = 4; // more executors are a number
const STATES = ["stuck", "restarting", "loading", "running", "idle"]; // the most urgent first

/** @type {LiveNode} */
const NOTHING = {
  name: "", queued: 0, items: 0, batches: 0, items_per_s: null, batches_per_s: null,
  batch_size: null, queue_ms: null, run_ms: null, executors: [],
};

/**
 * @param {{pipeline: Pipeline, open: string | null, onOpen: (node: string | null) => void}} props
 */
export function GraphView({ pipeline, open, onOpen }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const { width, room } = useRoom(box);
  const graph = pipeline.graph ?? { nodes: [], edges: [] };
  const shape = JSON.stringify([graph.nodes.map((node) => node.name), graph.edges]);
  const { layout, scale } = useMemo(() => fit(graph, width - 48, room), [shape, width, room]);
  const live = new Map(pipeline.nodes.map((node) => [node.name, node]));
  const flow = (/** @type {string} */ name) => live.get(name)?.items_per_s ?? 0;
  const [w, h] = [layout.width, layout.height];
  return html`
    <section class="graph panel" aria-label="Graph" ref=${box} tabindex=${w * scale > width ? 0 : undefined}>
      <div class="drawing" style=${{ width: `${w * scale}px`, height: `${h * scale}px` }}>
        <div class="scaled" style=${{ width: `${w}px`, height: `${h}px`, transform: `scale(${scale})` }}>
          <svg width=${w} height=${h} viewBox="0 0 ${w} ${h}" aria-hidden="true">
            ${layout.pipes.map((/** @type {Pipe} */ pipe) => {
              const items = pipe.kind === "out" ? flow(pipe.from) : flow(pipe.to);
              return html`<${PipeView} key=${`${pipe.from}>${pipe.to} ${pipe.kind}`} pipe=${pipe} items=${items} />`;
            })}
          </svg>
          <ol>
            ${layout.places.map((/** @type {Place} */ place) => {
              const node = /** @type {GraphNode} */ (graph.nodes.find((one) => one.name === place.name));
              return html`<li key=${place.name} style=${{ left: `${place.left}px`, top: `${place.top}px` }}>
                <${NodeCard} node=${node} live=${live.get(place.name) ?? NOTHING}
                  open=${open === place.name} onOpen=${onOpen} />
              </li>`;
            })}
          </ol>
        </div>
      </div>
    </section>`;
}

/**
 * The width of an element, and the height that it may have beside what else is on the screen.
 * @param {{current: HTMLElement | null}} box
 */
function useRoom(box) {
  const [size, setSize] = useState({ width: 0, room: 0 });
  useLayoutEffect(() => {
    const element = /** @type {HTMLElement} */ (box.current);
    const measure = () => setSize({ width: element.clientWidth, room: Math.max(240, innerHeight - OTHERS) });
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    addEventListener("resize", measure);
    return () => {
      observer.disconnect();
      removeEventListener("resize", measure);
    };
  }, []);
  return size;
}

/**
 * @param {{pipe: Pipe, items: number}} props
 */
function PipeView({ pipe, items }) {
  const bore = pipe.kind === "map" ? 1 : items > 0 ? Math.min(14, Math.round(3 + 3.2 * Math.log10(1 + items))) : 3;
  const { x, y } = pipe.middle;
  return html`<g class="pipe ${pipe.kind}">
    <path class="wall" d=${pipe.path} stroke-width=${bore + 2} />
    <path class="bore" d=${pipe.path} stroke-width=${bore} />
    ${items > 0 && html`<path class="water" d=${pipe.path} stroke-width=${bore} />`}
    ${pipe.filter && !USUAL.includes(pipe.filter) && html`<text x=${x} y=${y}>${pipe.filter}</text>`}
  </g>`;
}

/**
 * How full the gauge is: half with one batch waiting for each instance, never quite full.
 * @param {GraphNode} node
 * @param {number} queued
 */
const level = (node, queued) => queued / (queued + Math.max(1, node.max * node.instances));

/**
 * @param {{node: GraphNode, live: LiveNode, open: boolean, onOpen: (node: string | null) => void}} props
 */
function NodeCard({ node, live, open, onOpen }) {
  const fill = { height: `${Math.round(level(node, live.queued) * 100)}%` };
  return html`<button class="node" id="node-${node.name}" aria-label=${spoken(node, live)}
      aria-expanded=${open} aria-controls="details" title=${node.name}
      onClick=${() => onOpen(open ? null : node.name)}>
    <span class="gauge"><i style=${fill}></i></span>
    <span class="row"><b class="cut">${node.name}</b><${Squares} executors=${live.executors} /></span>
    <span class="row"><span class="cut">${node.backend}</span>${
      live.queued > 0 && html`<span class="waiting">${count(live.queued)} waiting</span>`}</span>
    <span class="row numbers"><span>${rate(live.items_per_s)}</span><span>${batch(node, live)}</span><span>${ms(live.run_ms)}</span></span>
  </button>`;
}

/** @param {{executors: Executor[]}} props */
function Squares({ executors }) {
  const many = executors.length > SQUARES;
  const urgent = (/** @type {Executor} */ { state }) => STATES.indexOf(state);
  const shown = many ? executors.toSorted((a, b) => urgent(a) - urgent(b)) : executors;
  return html`<span class="squares">
    ${shown.slice(0, SQUARES).map(({ name, state }) => html`<i key=${name} class=${state}></i>`)}
    ${many && html`<span>+${executors.length - SQUARES}</span>`}
  </span>`;
}

/**
 * @param {GraphNode} node
 * @param {LiveNode} live
 */
function batch(node, live) {
  if (live.batch_size === null) return node.max > 1 ? `max ${node.max}` : "";
  return node.max > 1 ? `${live.batch_size.toFixed(1)} of ${node.max}` : "";
}

/**
 * @param {GraphNode} node
 * @param {LiveNode} live
 */
function spoken(node, live) {
  const states = STATES.map((state) => [state, live.executors.filter((one) => one.state === state).length]);
  const executors = states.filter(([, number]) => number).map(([state, number]) => `${number} ${state}`);
  const parts = [`${node.name}, ${node.backend}`, `${live.queued} waiting`, `${rate(live.items_per_s)}`];
  if (live.run_ms !== null) parts.push(`runs ${ms(live.run_ms)}`);
  if (executors.length) parts.push(`instances: ${executors.join(", ")}`);
  return parts.join(", ");
}

/**
 * @param {{node: GraphNode, live: LiveNode | undefined, onClose: () => void}} props
 */
export function Details({ node, live = NOTHING, onClose }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => box.current?.scrollIntoView({ block: "nearest" }), [node.name]);
  useEffect(() => {
    const listen = (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Escape" && !event.defaultPrevented && !document.querySelector("dialog[open]")) onClose();
    };
    addEventListener("keydown", listen);
    return () => removeEventListener("keydown", listen);
  }, [onClose]);
  const facts = [
    ["Rate", rate(live.items_per_s), `${rate(live.batches_per_s)} in batches`],
    ["Batch", live.batch_size === null ? "–" : live.batch_size.toFixed(1), `at most ${node.max}`],
    ["Waits", ms(live.queue_ms), `${count(live.queued)} waiting now`],
    ["Runs", ms(live.run_ms), "per batch"],
    ["Batch window", ms(node.batching_timeout_ms), node.batching_timeout_ms ? "to fill a batch" : "a batch never waits"],
    ["Since the start", count(live.items), `in ${plural(live.batches, "batch", "batches")}`],
  ];
  return html`<section class="details card" id="details" ref=${box} aria-label="Node ${node.name}">
    <header><h2 class="cut" title=${node.name}>${node.name}</h2><span class="pill">${node.backend}</span>
      <button class="button quiet small" onClick=${onClose}>Close</button></header>
    <dl class="figures">${facts.map(([name, value, hint]) => html`<div key=${name}>
      <dt>${name}</dt><dd>${value}</dd><dd class="hint">${hint}</dd></div>`)}</dl>
    <code class="code">${node.expression}</code>
    ${live.executors.length > 0 && html`<div class="instances"><table>
      <thead><tr><th>Instance</th><th>State</th><th>For</th><th>Device</th></tr></thead>
      <tbody>${live.executors.map((one) => html`<tr key=${one.name}>
        <td class="mono">${one.name}</td>
        <td><span class="squares"><i class=${one.state}></i></span> ${one.state}</td>
        <td class="num">${one.state === "idle" ? "" : ms(one.ms)}</td>
        <td>${one.device || "CPU"}</td></tr>`)}</tbody></table></div>`}
  </section>`;
}
