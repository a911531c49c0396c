// @ts-check
/**
 * What GET /status answers, and how a pipeline feels, in words.
 *
 * @typedef {"idle" | "calm" | "busy" | "refusing" | "loading" | "down"} Mood
 * @typedef {{name: string, state: "idle" | "running" | "loading" | "restarting" | "stuck",
 *   ms: number | null, device: string}} Executor
 * @typedef {{name: string, queued: number, items: number, batches: number,
 *   items_per_s: number | null, batches_per_s: number | null, batch_size: number | null,
 *   queue_ms: number | null, run_ms: number | null, executors: Executor[]}} LiveNode
 * @typedef {{name: string, version: string, state: string, reason: string, mood: Mood,
 *   loading: {node: string, text: string}[], in_flight: number, max_requests: number,
 *   succeeded: number, failed: Record<string, number>, refused: Record<string, number>,
 *   succeeded_per_s: number | null, failed_per_s: number | null, refused_per_s: number | null,
 *   latency_ms: {p50: number, p90: number, p99: number, requests: number} | null,
 *   nodes: LiveNode[]}} Live
 * @typedef {{name: string, backend: string, expression: string, max: number, min: number,
 *   instances: number, batching_timeout_ms: number}} GraphNode
 * @typedef {{from: string, to: string, kind: "next" | "calls" | "map", filter: string | null,
 *   label?: string}} GraphEdge
 * @typedef {{nodes: GraphNode[], edges: GraphEdge[]}} Graph
 * @typedef {{description?: string, versions?: string[], inputs?: {name: string, kind: string}[],
 *   outputs?: {name: string, kind: string}[], graph?: Graph}} Described what does not change
 * @typedef {Live & Described} Pipeline
 * @typedef {{time_s: number, uptime_s: number, version: string, generation: number,
 *   ready: boolean, reason: string, request_history: number,
 *   memory: {used_bytes: number, limit_bytes: number | null, refused: number},
 *   pipelines: Live[]}} Status
 */
import { count, ms, plural, rate } from "./format.js";

/** @type {Record<Mood, string>} */
export const MOODS = {
  idle: "Idle",
  calm: "Calm",
  busy: "Busy",
  refusing: "Refusing",
  loading: "Loading",
  down: "Down",
};

/**
 * Return one sentence that says how the pipeline feels.
 * @param {Live} pipeline
 */
export function feeling(pipeline) {
  const { mood } = pipeline;
  if (mood === "down") return pipeline.reason || `The pipeline is ${pipeline.state}.`;
  if (mood === "loading") return pipeline.loading.map(progress).join("; ") || "It starts.";
  if (mood === "idle") return idle(pipeline);
  const { succeeded_per_s, latency_ms } = pipeline;
  const sentence = [`${rate(succeeded_per_s, " requests")} answered`];
  if (latency_ms) sentence.push(`half of them within ${ms(latency_ms.p50)}`);
  if (mood === "refusing") sentence.push(`${rate(pipeline.refused_per_s)} refused`);
  else if (mood === "busy") sentence.push(...longestQueue(pipeline));
  if (pipeline.failed_per_s) sentence.push(`${rate(pipeline.failed_per_s)} failed`);
  return `${sentence.join(", ")}.`;
}

/** @param {{node: string, text: string}} step */
export const progress = ({ node, text }) => (node ? `${node}: ${text}` : text);

/** @param {Live} pipeline */
function idle({ succeeded, in_flight }) {
  if (in_flight) return `${plural(in_flight, "request")} in flight, none answered in the last second.`;
  if (succeeded) return `No requests now; ${count(succeeded)} answered since the server started.`;
  return "No traffic yet.";
}

/**
 * @param {Live} pipeline
 * @returns {string[]}
 */
function longestQueue({ nodes }) {
  const node = nodes.reduce((most, other) => (other.queued > most.queued ? other : most), nodes[0]);
  return node?.queued ? [`${count(node.queued)} waiting at ${node.name}`] : [];
}

/**
 * Return the sum of counters such as `refused`.
 * @param {Record<string, number>} counters
 */
export function total(counters) {
  return Object.values(counters).reduce((sum, value) => sum + value, 0);
}

/**
 * Join what changes and what does not.
 * @param {Live[]} live
 * @param {Described[]} described
 * @returns {Pipeline[]}
 */
export function merge(live, described) {
  const byName = new Map(described.map((one) => [/** @type {any} */ (one).name, one]));
  return live.map((pipeline) => ({ ...byName.get(pipeline.name), ...pipeline }));
}
