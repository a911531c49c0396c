// @ts-check
/**
 * How a pipeline feels, in words. docs/reference/http.md#status has every field of these; what
 * never changes (`inputs`, `graph`, …) does not come with events.
 * @typedef {any} Pipeline
 * @typedef {{time_s: number, uptime_s: number, pipelines: Pipeline[]}} Status
 * @typedef {{nodes: {name: string}[], edges: {from: string, to: string, kind: string}[]}} Graph
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
  const isKnown = pipeline.succeeded_per_s !== null; // of the last interval
  const since = `${count(succeeded)} answered since the start`;
  if (mood === "idle") {
    if (in_flight) return `${plural(in_flight, "request")} in flight.`;
    return succeeded ? `${isKnown ? "No requests now; " : ""}${since}.` : "No traffic yet.";
  }
  const parts = [isKnown ? `${rate(pipeline.succeeded_per_s, " requests")} answered` : since];
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
