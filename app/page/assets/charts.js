// @ts-check
/** Three charts of a pipeline's last minutes: rate, latency, requests in flight. */
import { html, useEffect, useRef, useState } from "./preact.js";
import { count, ms, rate } from "./format.js";
import { colour, onTheme } from "./theme.js";

/**
 * The title, the unit, and for each line: the column of History, its label, its colour, its dash.
 * @type {[string, (value: number) => string, any[]][]}
 */
const CHARTS = [
  ["Requests", rate, [
    ["answered", "answered", "water"],
    ["failed", "failed", "down", [2, 3]],
    ["refused", "refused", "refusing", [6, 3]],
  ]],
  ["Latency", ms, [
    ["p50", "half within", "water"],
    ["p90", "90 % within", "ink-2", [6, 3]],
    ["p99", "99 % within", "ink-3", [2, 3]],
  ]],
  ["In flight", count, [
    ["in_flight", "requests", "water"],
    ["queued", "items waiting", "busy", [6, 3]],
  ]],
];
const LEAST_TOP = 4; // the axis goes up to this at least
const LEAST_RANGE_S = 30;

/** `time_s` is the right end. */
export function Charts({ columns, time_s }) {
  const [minutes, setMinutes] = useState(2);
  const [at, setAt] = useState(null);
  const index = at < columns.time.length ? at : null; // of the sample under the pointer
  const first = Math.min(columns.time[0] ?? time_s, time_s - LEAST_RANGE_S);
  const range = [Math.max(first, time_s - minutes * 60), time_s];
  return html`<section class="charts" aria-label="The last minutes">
    ${CHARTS.map(([title, unit, lines]) => html`<figure class="card chart" key=${title}>
      <figcaption><h3>${title}</h3>
        <dl>${lines.map(([column, label, token, dash = []]) => html`<div key=${column}>
          <dt><svg viewBox="0 0 16 4" aria-hidden="true"><path d="M0 2H16" style=${{ stroke: `var(--${token})` }} stroke-dasharray=${dash.join(" ")} /></svg>${label}</dt>
          <dd>${unit(columns[column].at(index ?? -1))}</dd></div>`)}</dl></figcaption>
      <${Plot} unit=${unit} lines=${lines.toReversed()} columns=${columns} range=${range} onPoint=${setAt} />
    </figure>`)}
    <p class="range hint"><span>At ${clock(index === null ? time_s : columns.time[index])}</span>
      <span role="group" aria-label="Time shown">${[2, 10].map((choice) => html`<button key=${choice} class="button quiet small"
        aria-pressed=${choice === minutes} onClick=${() => setMinutes(choice)}>${choice} min</button>`)}</span></p>
  </section>`;
}

function Plot({ unit, lines, columns, range, onPoint }) {
  const box = useRef();
  const plot = useRef();
  const latest = useRef();
  latest.current = { data: [columns.time, ...lines.map(([column]) => columns[column])], range };

  useEffect(() => {
    const size = () => ({ width: box.current.clientWidth, height: box.current.clientHeight });
    const make = () => {
      plot.current?.destroy();
      const options = { ...size(), ...optionsOf(unit, lines, () => latest.current.range, onPoint) };
      plot.current = new window["uPlot"](options, latest.current.data, box.current); // index.html loads it
    };
    make();
    const observer = new ResizeObserver(() => plot.current.setSize(size()));
    observer.observe(box.current);
    const stop = onTheme(make);
    return () => {
      stop();
      observer.disconnect();
      plot.current.destroy();
    };
  }, []);
  useEffect(() => {
    if (!document.hidden) plot.current.setData(latest.current.data);
  }, range);
  return html`<div class="plot" ref=${box} aria-hidden="true"></div>`;
}

function optionsOf(unit, lines, range, onPoint) {
  const grid = { stroke: colour("line"), width: 1 };
  const font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const axis = { stroke: colour("ink-3"), font, grid, ticks: { show: false } };
  return {
    padding: [8, 28, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: "penstock" }, y: false, drag: { x: false }, points: { size: 6 } },
    scales: { x: { range }, y: { range: (_plot, _low, high) => [0, ceiling(high ?? 0)] } },
    axes: [
      { ...axis, size: 24, gap: 8, space: 64, values: (_plot, times) => times.map(clock), grid: { show: false } },
      { ...axis, size: 48, gap: 6, space: 28, values: (_plot, values) => values.map((value) => unit(value).replace(/\.0+(?=\D)/, "")) },
    ],
    series: [{}, ...lines.map(([, , token, dash]) => ({ stroke: colour(token), width: 2, dash, points: { show: false, size: 4, filter: alone } }))],
    hooks: { setCursor: [({ cursor }) => onPoint(cursor.left >= 0 ? cursor.idx : null)] },
  };
}

/** The samples that no line shows, as nothing is known before and after them: they become dots. */
function alone({ data }, line) {
  const values = data[line];
  return [...values.keys()].filter((i) => values[i] !== null && values[i - 1] == null && values[i + 1] == null);
}

/** The next of 1, 2, 4, 6, 8, 10, 20, …: the axis keeps still while values vary. */
function ceiling(value) {
  const top = Math.max(value, LEAST_TOP);
  const power = 10 ** Math.floor(Math.log10(top));
  return power * [1, 2, 4, 6, 8, 10].find((step) => step * power >= top);
}

/** 14:05:30 */
const clock = (time_s) => new Date(time_s * 1000).toTimeString().slice(0, 8);
