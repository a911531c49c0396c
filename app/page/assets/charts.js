// @ts-check
/** Three charts of a pipeline's last minutes: rate, latency, requests in flight. */
import { html, useEffect, useRef, useState } from "./vendor/htm/standalone.module.js";
import { count, ms, rate } from "./format.js";
import { colour, onTheme } from "./theme.js";

/**
 * @typedef {import("./history.js").Columns} Columns
 * @typedef {import("./history.js").Line} Line
 * @typedef {{line: Line, label: string, colour: string, dash?: number[], width?: number}} Series
 * @typedef {{title: string, unit: (value: number | null | undefined) => string, least: number,
 *   series: Series[]}} Chart `least`: the axis goes up to this at least
 */

/** @type {Chart[]} */
const CHARTS = [
  {
    title: "Requests",
    unit: rate,
    least: 4,
    series: [
      { line: "answered", label: "answered", colour: "water" },
      { line: "failed", label: "failed", colour: "down", dash: [2, 3] },
      { line: "refused", label: "refused", colour: "refusing", dash: [6, 3] },
    ],
  },
  {
    title: "Latency",
    unit: ms,
    least: 4,
    series: [
      { line: "p50", label: "half within", colour: "water" },
      { line: "p90", label: "90 % within", colour: "ink-3", width: 1 },
      { line: "p99", label: "99 % within", colour: "ink-3", dash: [3, 3], width: 1 },
    ],
  },
  {
    title: "In flight",
    unit: count,
    least: 4,
    series: [
      { line: "in_flight", label: "requests", colour: "water" },
      { line: "queued", label: "items waiting", colour: "busy", dash: [6, 3] },
    ],
  },
];
const LEAST_RANGE_S = 30;
const AXIS_WIDTH = 48; // pixels

/** @type {Promise<any> | undefined} */
let loading;

/** uPlot has no small module: its script sets a global. */
function loadUPlot() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL("vendor/uplot/uPlot.iife.min.js", import.meta.url).href;
    script.onload = () => resolve(/** @type {any} */ (window).uPlot);
    script.onerror = () => reject(new Error("uPlot did not load"));
    document.head.append(script);
  });
  return loading;
}

/**
 * @param {{columns: Columns, time_s: number}} props `time_s` is the right end of the charts
 */
export function Charts({ columns, time_s }) {
  const [minutes, setMinutes] = useState(2);
  const [at, setAt] = useState(/** @type {number | null} */ (null));
  const first = Math.min(columns.time[0] ?? time_s, time_s - LEAST_RANGE_S);
  const range = { from: Math.max(first, time_s - minutes * 60), to: time_s };
  const index = at !== null && at < columns.time.length ? at : null;
  return html`<section class="charts" aria-label="The last minutes">
    ${CHARTS.map((chart) => html`<figure class="card chart" key=${chart.title}>
      <figcaption><h3>${chart.title}</h3>
        <dl>${chart.series.map((series) => html`<div key=${series.line}>
          <dt><${Stroke} series=${series} />${series.label}</dt>
          <dd>${chart.unit(columns[series.line].at(index ?? -1))}</dd></div>`)}</dl>
      </figcaption>
      <${Plot} chart=${chart} columns=${columns} range=${range} onPoint=${setAt} />
    </figure>`)}
    <p class="range hint"><span>${index === null ? "Now" : clock(columns.time[index])}</span>
      <span role="group" aria-label="Time shown">${[2, 10].map((choice) => html`<button key=${choice}
        class="button quiet small" aria-pressed=${choice === minutes} onClick=${() => setMinutes(choice)}>${choice} min</button>`)}</span></p>
  </section>`;
}

/** @param {{series: Series}} props */
function Stroke({ series }) {
  return html`<svg class="stroke" viewBox="0 0 16 4" aria-hidden="true">
    <path d="M0 2H16" style=${{ stroke: `var(--${series.colour})` }} stroke-width=${series.width ?? 2}
      stroke-dasharray=${series.dash?.join(" ")} /></svg>`;
}

/**
 * @param {{chart: Chart, columns: Columns, range: {from: number, to: number},
 *   onPoint: (index: number | null) => void}} props
 */
function Plot({ chart, columns, range, onPoint }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const plot = useRef(/** @type {any} */ (null));
  const latest = useRef({ columns, range });
  latest.current = { columns, range };

  useEffect(() => {
    const element = /** @type {HTMLElement} */ (box.current);
    let gone = false;
    const make = async () => {
      const uPlot = await loadUPlot();
      if (gone) return;
      plot.current?.destroy();
      const options = optionsOf(chart, sizeOf(element), () => latest.current.range, onPoint);
      plot.current = new uPlot(options, dataOf(chart, latest.current.columns), element);
    };
    void make();
    const observer = new ResizeObserver(() => plot.current?.setSize(sizeOf(element)));
    observer.observe(element);
    const stop = onTheme(make);
    return () => {
      gone = true;
      stop();
      observer.disconnect();
      plot.current?.destroy();
    };
  }, []);

  useEffect(() => {
    if (!document.hidden) plot.current?.setData(dataOf(chart, columns));
  }, [columns, range.from, range.to]);

  return html`<div class="plot" ref=${box} aria-hidden="true"></div>`;
}

/** @param {HTMLElement} element */
const sizeOf = ({ clientWidth, clientHeight }) => ({ width: clientWidth, height: clientHeight });

/**
 * @param {Chart} chart
 * @param {Columns} columns
 */
const dataOf = (chart, columns) => [columns.time, ...chart.series.map(({ line }) => columns[line])];

/**
 * @param {Chart} chart
 * @param {{width: number, height: number}} size pixels
 * @param {() => {from: number, to: number}} range
 * @param {(index: number | null) => void} onPoint
 */
function optionsOf(chart, size, range, onPoint) {
  const ink = colour("ink-3");
  const line = { stroke: colour("line"), width: 1 };
  const font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const axis = { stroke: ink, font, grid: line, ticks: { show: false } };
  return {
    ...size,
    padding: [8, 16, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: "penstock" }, y: false, drag: { x: false, y: false }, points: { size: 6 } },
    scales: {
      x: { time: true, range: () => [range().from, range().to] },
      y: { range: (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => [0, ceiling(Math.max(high ?? 0, chart.least))] },
    },
    axes: [
      { ...axis, size: 20, gap: 4, space: 64, values: (/** @type {any} */ _, /** @type {number[]} */ splits) => splits.map(clock), grid: { show: false } },
      { ...axis, size: AXIS_WIDTH, gap: 6, space: 28, values: (/** @type {any} */ _, /** @type {number[]} */ splits) => splits.map((value) => chart.unit(value).replace(/\.0(?=\D)/, "")) },
    ],
    series: [
      {},
      ...chart.series.map((series) => ({
        stroke: colour(series.colour),
        width: series.width ?? 2,
        dash: series.dash,
        points: { show: false },
      })),
    ],
    hooks: {
      setCursor: [(/** @type {any} */ self) => onPoint(self.cursor.left >= 0 ? self.cursor.idx : null)],
    },
  };
}

/**
 * The next of 1, 2, 4, 8, 10, 20, 40, … above a value: the axis keeps still while values vary.
 * @param {number} value
 */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 4, 6, 8, 10].find((one) => one * power >= value) ?? 10;
  return step * power;
}

/**
 * @param {number} time_s
 * @returns {string} 14:05:30
 */
function clock(time_s) {
  return new Date(time_s * 1000).toTimeString().slice(0, 8);
}
