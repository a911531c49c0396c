// @ts-check
/** The graph of a pipeline: nodes as cards, edges as pipes, a node's details. */
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./preact.js";
import { count, ms, plural, rate } from "./format.js";
import { fit, NODE } from "./layout.js";

const OTHERS = 460; // pixels of the screen's height for the top bar, the heading and the charts
const PADDING = 48;
const SQUARES = 4; // more executors are a number
const STATES = ["stuck", "restarting", "loading", "running", "idle"]; // the most urgent first
/** @type {any} */
const NOTHING = { queued: 0, batch_size: null, executors: [] };

/** `open` is the name of the node whose details are shown, or null. */
export function GraphView({ pipeline, open, onOpen }) {
  const box = useRef();
  const { width, room } = useRoom(box);
  const { nodes, edges } = pipeline.graph;
  const names = JSON.stringify([nodes.map((node) => node.name), edges]);
  const { scale, centres, pipes, ...size } = useMemo(() => fit(pipeline.graph, width - PADDING, room), [names, width, room]);
  const [w, h] = [size.width, size.height];
  const live = Object.fromEntries(pipeline.nodes.map((node) => [node.name, node]));
  return html`<section class="graph panel" aria-label="Graph" ref=${box} tabindex=${w * scale > width ? 0 : undefined}>
    <div class="drawing" style=${{ width: `${w * scale}px`, height: `${h * scale}px` }}>
      <div style=${{ width: `${w}px`, height: `${h}px`, transform: `scale(${scale})` }}>
        <svg width=${w} height=${h} aria-hidden="true">${pipes.map((pipe) => html`<${Pipe}
          key=${`${pipe.from}>${pipe.to} ${pipe.kind}`} ...${pipe} items=${live[pipe.to]?.items_per_s} />`)}</svg>
        <ol>${nodes.map((node) => {
          const { x, y } = centres.get(node.name);
          return html`<li key=${node.name} style=${{ left: `${x - NODE.width / 2}px`, top: `${y - NODE.height / 2}px` }}>
            <${Card} node=${node} live=${live[node.name] ?? NOTHING} open=${open === node.name} onOpen=${onOpen} /></li>`;
        })}</ol>
      </div>
    </div>
  </section>`;
}

/** The width of an element, and the height that it may have beside what else is on the screen. */
function useRoom(box) {
  const [size, setSize] = useState({ width: 0, room: 0 });
  useLayoutEffect(() => {
    const measure = () => setSize({ width: box.current.clientWidth, room: Math.max(240, innerHeight - OTHERS) });
    const observer = new ResizeObserver(measure);
    observer.observe(box.current);
    observer.observe(document.body); // as high as the window, where the height matters
    return () => observer.disconnect();
  }, []);
  return size;
}

function Pipe({ path, middle, kind, filter, items }) {
  const bore = items > 0 ? Math.min(14, Math.round(3 + 3.2 * Math.log10(1 + items))) : 3;
  return html`<g class="pipe ${kind}">
    <path class="wall" d=${path} stroke-width=${bore + 2} />
    <path class="bore" d=${path} stroke-width=${bore} />
    ${items > 0 && html`<path class="water" d=${path} stroke-width=${bore} />`}
    ${filter && html`<text x=${middle.x} y=${middle.y}>${filter}</text>`}
  </g>`;
}

function Card({ node, live, open, onOpen }) {
  const { name, backend, max, instances } = node;
  const { queued, batch_size, executors } = live;
  // Half full with a batch waiting for each instance, never quite full.
  const level = queued / (queued + Math.max(1, max * instances));
  const batch = batch_size === null ? `max ${max}` : `${batch_size.toFixed(+(batch_size < 10))} of ${max}`;
  const states = STATES.map((state) => [executors.filter((one) => one.state === state).length, state]);
  const busy = states.filter(([number]) => number).map((pair) => pair.join(" ")).join(", ");
  const now = `${queued} waiting, ${rate(live.items_per_s)}, runs ${ms(live.run_ms)}, instances: ${busy || "none"}`;
  return html`<button class="node" id="node-${name}" aria-label="${name}, ${backend}" aria-description=${now} aria-expanded=${open} title=${name}
      onClick=${() => onOpen(open ? null : name)}>
    <span class="gauge"><i style=${{ transform: `scaleY(${level.toFixed(2)})` }}></i></span>
    <span class="row"><b class="cut">${name}</b><${Squares} executors=${executors} /></span>
    <span class="row"><span class="cut">${backend}</span>${queued > 0 && html`<span class="waiting">${count(queued)} waiting</span>`}</span>
    <span class="numbers"><span>${rate(live.items_per_s)}</span><span>${max > 1 && batch}</span><span>${ms(live.run_ms)}</span></span>
  </button>`;
}

function Squares({ executors }) {
  const more = executors.length - SQUARES;
  const urgency = ({ state }) => STATES.indexOf(state);
  const shown = more > 0 ? executors.toSorted((a, b) => urgency(a) - urgency(b)).slice(0, SQUARES) : executors;
  return html`<span class="squares">${shown.map(({ name, state }) => html`<i key=${name} class=${state}></i>`)}
    ${more > 0 && html`<span>+${more}</span>`}</span>`;
}

export function Details({ node, live, onClose }) {
  const box = useRef();
  useEffect(() => box.current.scrollIntoView({ block: "nearest" }), [node.name]);
  useLayoutEffect(() => { // before it is drawn: a quick Escape counts, too
    const listen = ({ key }) => key === "Escape" && !document.querySelector("dialog[open]") && onClose();
    addEventListener("keydown", listen);
    return () => removeEventListener("keydown", listen);
  }, [onClose]);
  const { batching_timeout_ms: window } = node;
  const { executors, ...now } = live ?? NOTHING;
  const facts = [
    ["Rate", rate(now.items_per_s), rate(now.batches_per_s, " batches")],
    ["Batch", now.batch_size?.toFixed(1) ?? "–", `at most ${node.max}`],
    ["Waits", ms(now.queue_ms), `${count(now.queued)} waiting now`],
    ["Runs", ms(now.run_ms), "per batch"],
    ["Batch window", ms(window), window ? "to fill a batch" : "a batch never waits"],
    ["Since the start", count(now.items), `in ${plural(now.batches, "batch", "batches")}`],
  ];
  return html`<section class="details card" ref=${box} aria-label="Node ${node.name}">
    <header><h2 class="cut" title=${node.name}>${node.name}</h2><span class="pill">${node.backend}</span>
      <button class="button quiet small" onClick=${onClose}>Close</button></header>
    <dl>${facts.map(([name, value, hint]) => html`<div key=${name}>
      <dt>${name}</dt><dd>${value}</dd><dd class="hint">${hint}</dd></div>`)}</dl>
    <code class="code">${node.expression}</code>
    ${executors.length > 0 && html`<div class="instances"><table>
      <thead><tr><th>Instance</th><th>State</th><th class="num">For</th><th>Device</th></tr></thead>
      <tbody>${executors.map((one) => html`<tr key=${one.name}>
        <td class="mono">${one.name}</td>
        <td><span class="squares"><i class=${one.state}></i></span> ${one.state}</td>
        <td class="num">${one.state === "idle" ? "" : ms(one.ms)}</td>
        <td>${one.device || "CPU"}</td></tr>`)}</tbody></table></div>`}
  </section>`;
}
