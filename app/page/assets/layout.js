// @ts-check
/** Where the nodes of a graph stand and how the pipes between them run. */
import { Graph as Drawing, layout as place } from "./vendor/dagre/dagre.esm.js";

export const NODE = { width: 176, height: 72 };
const STUB = 20; // the length of the pipes in and out
const MOST_SCALE = 1.25;
const LEAST_SCALE = 0.8; // smaller is hard to read: the page scrolls down instead
const NARROWEST_SCALE = 0.6; // the graph scrolls to the side instead

/**
 * Lay a graph out from left to right, or from the top down where that fits the room better, which is
 * `width` by `height` pixels.
 */
export function fit(graph, width, height) {
  const [across, down] = [true, false].map((way) => {
    const layout = arrange(graph, way);
    const wide = width / layout.width;
    const fits = Math.min(MOST_SCALE, wide, height / layout.height);
    const least = Math.min(LEAST_SCALE, Math.max(NARROWEST_SCALE, wide));
    return { ...layout, fits, scale: Math.max(least, fits) };
  });
  return across.fits < 1 && down.fits > across.fits ? down : across;
}

function arrange({ nodes, edges }, across) {
  const drawing = new Drawing({ multigraph: true });
  drawing.setGraph({ rankdir: across ? "LR" : "TB", ranksep: 28, nodesep: 20, edgesep: 16 });
  for (const { name } of nodes) drawing.setNode(name, { ...NODE });
  for (const edge of edges) drawing.setEdge(edge.from, edge.to, { edge }, edge.kind);
  place(drawing);
  const { width, height } = drawing.graph();
  const [dx, dy] = across ? [STUB, 0] : [0, STUB];
  const shift = ({ x, y }) => ({ x: x + dx, y: y + dy });
  const centres = new Map(nodes.map(({ name }) => [name, shift(drawing.node(name))]));
  // The middle of the side where pipes come in (-1) or leave (1), and points before or behind it.
  const side = (name, sign, more = 0) => {
    const { x, y } = centres.get(name);
    return across
      ? { x: x + sign * (NODE.width / 2 + more), y }
      : { x, y: y + sign * (NODE.height / 2 + more) };
  };
  const pipes = drawing.edges().map((key) => {
    const { edge, points } = drawing.edge(key);
    let track = points.map(shift);
    const [start, end] = [side(key.v, 1), side(key.w, -1)];
    const ahead = across ? end.x > start.x : end.y > start.y; // else it leads back: as dagre has it
    if (ahead) track = [start, ...(track.length > 3 ? track.slice(1, -1) : []), end];
    return { ...edge, ...pipe(track, across) };
  });
  const { roots, leaves } = ends(nodes, edges);
  for (const name of roots) {
    pipes.push({ from: name, to: name, kind: "in", ...pipe([side(name, -1, STUB), side(name, -1)], across) });
  }
  for (const name of leaves) {
    pipes.push({ from: name, to: name, kind: "out", ...pipe([side(name, 1), side(name, 1, STUB)], across) });
  }
  return { width: Math.ceil(width + 2 * dx), height: Math.ceil(height + 2 * dy), centres, pipes };
}

/** The nodes where requests come in, and those that answer: not those that work for a composite. */
function ends(nodes, edges) {
  const called = new Set(edges.filter((edge) => edge.kind === "calls").map((edge) => edge.to));
  for (const name of called) for (const edge of edges) if (edge.from === name) called.add(edge.to);
  const names = nodes.map((node) => node.name);
  return {
    roots: names.filter((name) => !edges.some((edge) => edge.to === name)),
    leaves: names.filter((name) => !called.has(name) && !edges.some((edge) => edge.from === name && edge.kind === "next")),
  };
}

/** An SVG path whose pieces begin and end along the direction of flow, and its middle. */
function pipe(points, across) {
  const [first, ...others] = points.map(({ x, y }) => ({ x: Math.round(x), y: Math.round(y) }));
  let path = `M${first.x} ${first.y}`;
  let from = first;
  for (const to of others) {
    const [x, y] = [(from.x + to.x) / 2, (from.y + to.y) / 2];
    path += across ? `C${x} ${from.y} ${x} ${to.y} ${to.x} ${to.y}` : `C${from.x} ${y} ${to.x} ${y} ${to.x} ${to.y}`;
    from = to;
  }
  const half = (points.length - 1) / 2;
  const [a, b] = [points[Math.floor(half)], points[Math.ceil(half)]];
  return { path, middle: { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 } };
}
