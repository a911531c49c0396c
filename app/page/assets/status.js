// @ts-check
/**
 * What GET /status answers, and how a pipeline feels, in words.
 * @typedef {{name: string, queued: number, items: number, batches: number, items_per_s: number,
 *   batches_per_s: number, batch_size: number, queue_ms: number, run_ms: number,
 *   executors: {name: string, state: string, ms: number | null, device: string}[]}} LiveNode numbers of the last interval are null if nothing ran
 * @typedef {{name: string, backend: string, expression: string, max: number, instances: number,
 *   batching_timeout_ms: number}} GraphNode
 * @typedef {{nodes: GraphNode[],
 *   edges: {from: string, to: string, kind: string, filter: string | null}[]}} Graph
 * @typedef {{name: string, version: string, state: string, reason: string, mood: string,
 *   loading: {node: string, text: string}[], in_flight: number, succeeded: number,
 *   failed: Record<string, number>, refused: Record<string, number>, succeeded_per_s: number,
 *   failed_per_s: number, refused_per_s: number, latency_ms: Record<string, number | null> | null,
 *   nodes: LiveNode[], description?: string, versions?: string[],
 *   inputs?: {name: string, kind: string}[], graph?: Graph}} Pipeline what is optional never
 *   changes, and does not come with events
 * @typedef {{time_s: number, uptime_s: number, version: string, generation: number,
 *   ready: boolean, reason: string, memory: Record<string, number>, pipelines: Pipeline[]}} Status
 */
import { count, ms, plural, rate } from "./format.js";

export const MOODS = {
  idle: "Idle",
  calm: "Calm",
  busy: "Busy",
  refusing: "Refusing",
  loading: "Loading",
  down: "Down",
};

/** Return a sentence that says how the pipeline feels. @param {Pipeline} pipeline */
export function feeling(pipeline) {
  const { mood, succeeded, in_flight, nodes } = pipeline;
  if (mood === "down") return pipeline.reason || `The pipeline is ${pipeline.state}.`;
  if (mood === "loading") return pipeline.loading.map(progress).join("; ") || "It starts.";
  if (mood === "idle") {
    if (in_flight) return `${plural(in_flight, "request")} in flight.`;
    return succeeded ? `No requests now; ${count(succeeded)} answered since the start.` : "No traffic yet.";
  }
  const parts = [`${rate(pipeline.succeeded_per_s, " requests")} answered`];
  const half = pipeline.latency_ms?.p50;
  if (half != null) parts.push(`half of them within ${ms(half)}`);
  if (mood === "refusing") parts.push(`${rate(pipeline.refused_per_s)} refused`);
  if (pipeline.failed_per_s) parts.push(`${rate(pipeline.failed_per_s)} failed`);
  const most = nodes.toSorted((a, b) => b.queued - a.queued)[0];
  if (mood === "busy" && most?.queued) parts.push(`${count(most.queued)} waiting at ${most.name}`);
  return `${parts.join(", ")}.`;
}

export const progress = ({ node, text }) => (node ? `${node}: ${text}` : text);

/** Whether no request ever came. @param {Pipeline} pipeline */
export function untouched({ succeeded, in_flight, failed, refused }) {
  return ![succeeded, in_flight, ...Object.values(failed), ...Object.values(refused)].some(Boolean);
}
