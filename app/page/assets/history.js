// @ts-check
/** The samples of the last ten minutes, kept in this browser, for the charts. */
const KEPT_S = 600;
const LINES = ["answered", "failed", "refused", "p50", "p90", "p99", "in_flight", "queued"];

/**
 * Columns of one length: `time` in seconds since 1970, the others null where nothing is known.
 * @typedef {Record<string, (number | null)[]>} Columns
 */
export class History {
  /** @type {Map<string, Columns>} */
  #pipelines = new Map();

  /** Add what an event says. @param {import("./status.js").Status} status */
  add({ time_s, pipelines }) {
    for (const pipeline of pipelines) {
      this.#push(this.of(pipeline.name), time_s, {
        answered: pipeline.succeeded_per_s,
        failed: pipeline.failed_per_s,
        refused: pipeline.refused_per_s,
        ...pipeline.latency_ms,
        in_flight: pipeline.in_flight,
        queued: pipeline.nodes.reduce((sum, node) => sum + node.queued, 0),
      });
    }
  }

  /** End every line: nothing is known of the time until the next sample. */
  gap() {
    for (const columns of this.#pipelines.values()) this.#push(columns, columns.time.at(-1) + 0.5, {});
  }

  /** @returns {Columns} */
  of(name) {
    const none = () => Object.fromEntries(["time", ...LINES].map((line) => [line, []]));
    if (!this.#pipelines.has(name)) this.#pipelines.set(name, none());
    return this.#pipelines.get(name);
  }

  #push(columns, time_s, sample) {
    if (columns.time.at(-1) >= time_s) return; // the server's clock was set back
    columns.time.push(time_s);
    for (const line of LINES) columns[line].push(sample[line] ?? null);
    while (columns.time[0] < time_s - KEPT_S) {
      for (const line of ["time", ...LINES]) columns[line].shift();
    }
  }
}
