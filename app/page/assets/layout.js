// @ts-check
/** Where the nodes of a graph stand and how the pipes between them run. */

import { Graph as Drawing, layout as place } from "./vendor/dagre/dagre.esm.js";

export const NODE = { width: 176, height: 72 };
const STUB = 20; // the length of the pipes in and out
const MOST_SCALE = 1.25;
const LEAST_SCALE = 0.8; // smaller is not readable: the page scrolls instead

/**
 * @typedef {{x: number, y: number}} Point
 * @typedef {{name: string, left: number, top: number}} Place
 * @typedef {{from: string, to: string, kind: "next" | "calls" | "map" | "in" | "out",
 *   filter: string | null, path: string, middle: Point}} Pipe `in` comes from the clients, `out` goes to them
 * @typedef {{width: number, height: number, places: Place[], pipes: Pipe[]}} Layout pixels
 * @typedef {import("./status.js").Graph} Graph
 */

/**
 * Lay a graph out from left to right, or from the top down where that fits the room better.
 * Returns the layout and the scale to draw it at.
 * @param {Graph} graph
 * @param {number} width pixels
 * @param {number} height pixels
 * @returns {{layout: Layout, scale: number}}
 */
export function fit(graph, width, height) {
  const scaled = (/** @type {boolean} */ across) => {
    const layout = arrange(graph, across);
    const scale = Math.min(MOST_SCALE, width / layout.width, height / layout.height);
    // A page is scrolled down, and not to the side: only the width may shrink it below the least.
    const least = Math.min(LEAST_SCALE, Math.max(0.6, width / layout.width));
    return { layout, scale: Math.max(least, scale), fits: scale };
  };
  const across = scaled(true);
  if (across.fits >= 1) return across;
  const down = scaled(false);
  return down.fits > across.fits ? down : across;
}

/**
 * @param {Graph} graph
 * @param {boolean} across from left to right
 * @returns {Layout}
 */
function arrange({ nodes, edges }, across) {
  const drawing = new Drawing({ multigraph: true });
  drawing.setGraph({ rankdir: across ? "LR" : "TB", ranksep: 28, nodesep: 20, edgesep: 16 });
  for (const { name } of nodes) drawing.setNode(name, { ...NODE });
  for (const edge of edges) drawing.setEdge(edge.from, edge.to, { edge }, edge.kind);
  place(drawing);
  const size = drawing.graph();
  const [dx, dy] = across ? [STUB, 0] : [0, STUB];
  const shifted = (/** @type {Point} */ { x, y }) => ({ x: x + dx, y: y + dy });
  /** @type {Map<string, Point>} */
  const centres = new Map(nodes.map(({ name }) => [name, shifted(drawing.node(name))]));
  const pipes = drawing.edges().map((/** @type {any} */ key) => {
    const { edge, points } = drawing.edge(key);
    const track = trackOf(centres.get(key.v), centres.get(key.w), points.map(shifted), across);
    return { ...edge, path: smooth(track, across), middle: middleOf(track) };
  });
  return {
    width: Math.ceil(size.width + 2 * dx),
    height: Math.ceil(size.height + 2 * dy),
    places: nodes.map(({ name }) => {
      const { x, y } = /** @type {Point} */ (centres.get(name));
      return { name, left: Math.round(x - NODE.width / 2), top: Math.round(y - NODE.height / 2) };
    }),
    pipes: [...pipes, ...stubs({ nodes, edges }, centres, across)],
  };
}

/**
 * The pipes from the clients to each root, and from each node that answers to the clients.
 * @param {Graph} graph
 * @param {Map<string, Point>} centres
 * @param {boolean} across
 * @returns {Pipe[]}
 */
function stubs({ nodes, edges }, centres, across) {
  const called = reached(edges, edges.filter((edge) => edge.kind === "calls").map((edge) => edge.to));
  const stub = (/** @type {string} */ name, /** @type {1 | -1} */ side) => {
    const { x, y } = /** @type {Point} */ (centres.get(name));
    const [near, far] = [0, STUB].map((more) => ({
      x: across ? x + side * (NODE.width / 2 + more) : x,
      y: across ? y : y + side * (NODE.height / 2 + more),
    }));
    const path = smooth(side < 0 ? [far, near] : [near, far], across);
    return { from: name, to: name, kind: side < 0 ? "in" : "out", filter: "", path, middle: far };
  };
  const roots = nodes.filter(({ name }) => edges.every((edge) => edge.to !== name));
  const leaves = nodes.filter(
    ({ name }) => !called.has(name) && edges.every((edge) => edge.kind !== "next" || edge.from !== name),
  );
  return /** @type {Pipe[]} */ ([
    ...roots.map(({ name }) => stub(name, -1)),
    ...leaves.map(({ name }) => stub(name, 1)),
  ]);
}

/**
 * All that is reached from `starts`: there go parts of requests, and return to who sent them.
 * @param {Graph["edges"]} edges
 * @param {string[]} starts
 */
function reached(edges, starts) {
  const names = new Set(starts);
  for (const name of names) for (const edge of edges) if (edge.from === name) names.add(edge.to);
  return names;
}

/**
 * The points of a pipe: out of the middle of a side, past dagre's points, into the middle of a side.
 * @param {any} from the centre of a node
 * @param {any} to
 * @param {Point[]} points
 * @param {boolean} across
 * @returns {Point[]}
 */
function trackOf(from, to, points, across) {
  const [w, h] = across ? [NODE.width / 2, 0] : [0, NODE.height / 2];
  const start = { x: from.x + w, y: from.y + h };
  const end = { x: to.x - w, y: to.y - h };
  const ahead = across ? end.x > start.x : end.y > start.y;
  if (!ahead) return points; // it leads back: as dagre routed it
  return [start, ...(points.length > 3 ? points.slice(1, -1) : []), end];
}

/**
 * A path whose pieces begin and end along the direction of flow.
 * @param {Point[]} points
 * @param {boolean} across
 */
function smooth(points, across) {
  const r = (/** @type {number} */ value) => Math.round(value * 10) / 10;
  let path = `M${r(points[0].x)} ${r(points[0].y)}`;
  for (let i = 1; i < points.length; i += 1) {
    const [a, b] = [points[i - 1], points[i]];
    const [mx, my] = [r((a.x + b.x) / 2), r((a.y + b.y) / 2)];
    path += across
      ? `C${mx} ${r(a.y)} ${mx} ${r(b.y)} ${r(b.x)} ${r(b.y)}`
      : `C${r(a.x)} ${my} ${r(b.x)} ${my} ${r(b.x)} ${r(b.y)}`;
  }
  return path;
}

/**
 * @param {Point[]} points
 * @returns {Point}
 */
function middleOf(points) {
  const half = (points.length - 1) / 2;
  const [a, b] = [points[Math.floor(half)], points[Math.ceil(half)]];
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
}
