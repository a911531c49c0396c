// @ts-check
/** The samples of the last ten minutes, kept in this browser, for the charts. */

const KEPT_S = 600;

const LINES = /** @type {const} */ ([
  "answered", "failed", "refused", "p50", "p90", "p99", "in_flight", "queued",
]);

/**
 * @typedef {typeof LINES[number]} Line
 * @typedef {{time: number[]} & Record<Line, (number | null)[]>} Columns `time`: seconds since 1970;
 *   the others are as long. Null where nothing is known.
 */

/** @returns {Columns} */
function noColumns() {
  return /** @type {any} */ (Object.fromEntries(["time", ...LINES].map((line) => [line, []])));
}

export class History {
  /** @type {Map<string, Columns>} */
  #pipelines = new Map();

  /**
   * Add what an event says of each pipeline, and forget pipelines that are gone.
   * @param {import("./status.js").Status} status
   */
  add(status) {
    const names = new Set(status.pipelines.map((pipeline) => pipeline.name));
    for (const name of this.#pipelines.keys()) if (!names.has(name)) this.#pipelines.delete(name);
    for (const pipeline of status.pipelines) {
      this.#push(pipeline.name, status.time_s, {
        answered: pipeline.succeeded_per_s,
        failed: pipeline.failed_per_s,
        refused: pipeline.refused_per_s,
        ...pipeline.latency_ms,
        in_flight: pipeline.in_flight,
        queued: pipeline.nodes.reduce((sum, node) => sum + node.queued, 0),
      });
    }
  }

  /** End every line: what comes next is later, and nothing is known of the time between. */
  gap() {
    for (const [name, columns] of this.#pipelines) {
      const last = columns.time.at(-1);
      if (last !== undefined && columns.in_flight.at(-1) !== null) this.#push(name, last + 0.5, {});
    }
  }

  /**
   * @param {string} name
   * @returns {Columns}
   */
  of(name) {
    return this.#pipelines.get(name) ?? noColumns();
  }

  /**
   * @param {string} name
   * @param {number} time_s
   * @param {Partial<Record<Line, number | null>>} sample a line that is not in it is unknown
   */
  #push(name, time_s, sample) {
    const columns = this.of(name);
    this.#pipelines.set(name, columns);
    const last = columns.time.at(-1);
    if (last !== undefined && last >= time_s) return; // the server's clock was set back
    columns.time.push(time_s);
    for (const line of LINES) columns[line].push(sample[line] ?? null);
    while (columns.time[0] < time_s - KEPT_S) {
      columns.time.shift();
      for (const line of LINES) columns[line].shift();
    }
  }
}
