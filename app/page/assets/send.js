// @ts-check
/** Sends a request and reads what is answered. */

import { eventsOf } from "./events.js";
import { initOf } from "./request.js";

const MOST_PARTS = 1000; // of an answer in events: the last ones are kept
const BROKEN = { code: "broken", title: "The answer broke off", detail: "The connection ended before the answer did." };

// Whole numbers that a float does not hold become BigInt.
const parse = (text) =>
  JSON.parse(text, text.length > 1e6 ? null : (_, value, context) => (/^-?\d{16,}$/.test(context?.source) && !Number.isSafeInteger(value) ? BigInt(context.source) : value));

/** Return the milliseconds and the batch of each node. @param {string | null} header Server-Timing */
export function timingOf(header) {
  const nodes = {};
  for (const [, what, node, duration, batch] of (header ?? "").matchAll(/(queue|run)\.([^;,]+);dur=([\d.]+)(?:;desc="batch (\d+)")?/g)) {
    const found = (nodes[node] ??= { node, queue: 0, run: 0, batch: 0 });
    found[what] += Number(duration);
    found.batch = Number(batch ?? found.batch);
  }
  return Object.values(nodes);
}

/**
 * Return the answer, with `status` 0 if there is none; null: it was aborted before one came. Of
 * events, `value` has the parts, and `problem` why no more came.
 * @param {any} api @param {import("./request.js").Plan} plan @param {AbortSignal} signal
 * @param {(reply: any) => void} onPart is called with what has come of an answer in events
 */
export async function ask(api, plan, signal, onPart) {
  const started = performance.now();
  const reply = { status: 0, id: "", ms: 0, text: "", value: undefined, timing: [], retryAfter: null, parts: null, problem: null, running: true };
  try {
    const response = await api.fetch(plan.path, { ...initOf(plan), signal });
    const { headers } = response;
    Object.assign(reply, { status: response.status, id: headers.get("X-Request-Id"), timing: timingOf(headers.get("Server-Timing")), retryAfter: headers.get("Retry-After") });
    if (headers.get("Content-Type")?.startsWith("text/event-stream")) await readEvents(response, reply, onPart);
    else {
      reply.text = await response.text();
      reply.value = parse(reply.text);
      if (!response.ok) reply.problem = reply.value;
    }
  } catch (error) {
    if (signal.aborted && reply.parts === null) return null;
    const isJson = error.name !== "SyntaxError";
    if (reply.parts !== null) reply.problem = signal.aborted ? null : BROKEN;
    else if (isJson) Object.assign(reply, { status: error.status ?? 0, problem: error.problem, text: error.message });
  }
  return { ...reply, running: false, ms: performance.now() - started };
}

async function readEvents(response, reply, onPart) {
  Object.assign(reply, { value: [], parts: 0, problem: BROKEN });
  for await (const events of eventsOf(response)) {
    for (const { name, data } of events) {
      if (name === "end") reply.problem = null;
      else if (name === "error") reply.problem = parse(data);
      else if (data) {
        reply.text = `${reply.text}${data}\n`.slice(-1e6);
        Object.assign(reply, { parts: reply.parts + 1, value: [...reply.value, parse(data)].slice(-MOST_PARTS) });
      }
    }
    onPart({ ...reply });
  }
}
