// @ts-check
/**
 * Calls to the server. Paths are relative, so that the page works below any root path. The API key
 * is asked for when a call answers 401, and kept for this tab.
 */
import { eventsOf } from "./events.js";
import { withRates } from "./rates.js";
import { kept } from "./storage.js";

const stored = kept("sessionStorage", "penstock-key"); // the page at /docs reads it too
// The server writes this into the page, so that no call has to fail before the key is asked for.
const needsKey = document.querySelector('meta[name="penstock-key"]')?.getAttribute("content") === "needed";
const SILENCE_MS = 15_000; // events come every second: a connection this silent is dead
const LONGEST_PAUSE_MS = 8_000;

/** A call that got no good answer. `status` is 0 if it got none, `problem` the error's JSON or null. */
export class ApiError extends Error {
  constructor(message, status, problem = null) {
    super(message);
    this.status = status;
    this.problem = problem;
  }
}

async function errorOf(response) {
  const problem = await response.json().catch(() => null); // a proxy's error page has no JSON
  const message = problem?.detail || problem?.title || `The server answered ${response.status}.`;
  return new ApiError(message, response.status, problem);
}

const keyChanged = new EventTarget();

export const api = {
  /**
   * The shell puts its dialog here. `wrong`: the last key was refused. Null: it was closed.
   * @type {(wrong: boolean) => Promise<string | null>}
   */
  askKey: async () => null,
  asking: null,

  get key() {
    return stored.read();
  },

  /** Null forgets it. */
  set key(key) {
    stored.write(key);
    keyChanged.dispatchEvent(new Event("change"));
  },

  /** Ask for the key, once for all calls that wait for it. Return whether one was entered. */
  async unlock(wrong = false) {
    this.asking ??= this.askKey(wrong).finally(() => (this.asking = null));
    const key = await this.asking;
    if (key !== null && key !== this.key) this.key = key;
    return key !== null;
  },

  /**
   * `fetch` with the API key. Reject with ApiError if no answer came or no key was entered.
   * @param {string} path @param {RequestInit} [init] @returns {Promise<Response>}
   */
  async fetch(path, init = {}) {
    for (;;) {
      const key = this.key;
      if (key === null && needsKey) {
        if (await this.unlock()) continue;
        throw new ApiError("This server asks for an API key.", 401);
      }
      const headers = new Headers(init.headers);
      if (key !== null) headers.set("Authorization", `Bearer ${key}`);
      const response = await fetch(path, { ...init, headers }).catch((error) => {
        throw init.signal?.aborted ? error : new ApiError("The server does not answer.", 0);
      });
      if (response.status !== 401) return response;
      if (this.key !== key) continue; // another call was given one meanwhile
      if (!(await this.unlock(key !== null))) throw await errorOf(response);
    }
  },

  /**
   * Return the answer's JSON. Reject with ApiError for every status but 2xx.
   * @param {string} path @param {RequestInit} [init] @returns {Promise<any>}
   */
  async get(path, init) {
    const response = await this.fetch(path, init);
    if (!response.ok) throw await errorOf(response);
    return response.json();
  },

  /**
   * Call `onStatus` with each event of /status. `onLink` hears how the connection is; a lost one
   * is made again. Return a function that ends it.
   * @param {(status: any) => void} onStatus
   * @param {(phase: "live" | "lost" | "locked" | "barred", detail: string) => void} onLink `locked`: no key
   */
  watch(onStatus, onLink) {
    const stop = new AbortController();
    void keepWatching(onStatus, onLink, stop.signal);
    return () => stop.abort();
  },
};

async function keepWatching(onStatus, onLink, stop) {
  let failures = 0;
  let last = null;
  const hear = (status) => {
    failures = 0;
    last = status;
    onLink("live", "");
    onStatus(status);
  };
  while (!stop.aborted) {
    let error = new ApiError("The server closed the connection.", 0);
    try {
      await readEvents(stop, hear);
    } catch (caught) {
      if (caught instanceof ApiError) error = caught;
    }
    const full = error.problem?.code === "too_many_watchers";
    const seldom = full && (await api.get("status", { signal: stop }).catch(() => null));
    if (stop.aborted) return;
    const locked = error.status === 401;
    if (seldom) hear(withRates(seldom, last));
    else onLink(locked ? "locked" : error.status === 403 ? "barred" : "lost", error.message);
    failures += 1;
    const pause = error.status ? LONGEST_PAUSE_MS : Math.min(LONGEST_PAUSE_MS, 500 * 2 ** failures);
    const signal = locked ? undefined : AbortSignal.timeout(pause * (0.75 + Math.random() / 2));
    await new Promise((resolve) => {
      signal?.addEventListener("abort", resolve);
      keyChanged.addEventListener("change", resolve, { once: true, signal });
    });
  }
}

async function readEvents(stop, onStatus) {
  const end = new AbortController();
  const signal = AbortSignal.any([stop, end.signal]);
  const abort = () => end.abort();
  let timer; // set anew by each event
  try {
    const response = await api.fetch("status", { headers: { Accept: "text/event-stream" }, signal });
    if (!response.ok) throw await errorOf(response);
    // A stream lasts no longer than its key.
    keyChanged.addEventListener("change", abort, { signal });
    const wait = () => {
      clearTimeout(timer);
      timer = setTimeout(abort, SILENCE_MS);
    };
    wait();
    for await (const events of eventsOf(response)) {
      wait();
      const newest = events.findLast(({ data }) => data);
      // In a task of its own: an error in the page is no error of the connection.
      if (newest) queueMicrotask(() => onStatus(JSON.parse(newest.data)));
    }
  } finally {
    clearTimeout(timer);
    abort();
  }
}
