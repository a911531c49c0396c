// @ts-check
/**
 * Calls to the server. Paths are relative, so that the page works below any root path.
 * The API key is asked for when a call answers 401, and kept for this tab.
 */

const STORED = "penstock-key";
const SILENCE_MS = 15_000; // events come every second; a connection this silent is dead
const LONGEST_PAUSE_MS = 8_000;

/**
 * @typedef {{title?: string, detail?: string, code?: string, status?: number}} Problem
 * @typedef {(wrong: boolean) => Promise<string | null>} AskKey `wrong`: the last key was refused;
 *   null: the person closed the dialog
 * @typedef {{phase: "connecting" | "live" | "lost" | "locked", detail: string}} Link the state of
 *   the connection that `watch` keeps; `locked`: no key was entered
 */

/** A call that got no good answer. `status` is 0 if it got none at all. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {number} status
   * @param {Problem | null} problem
   */
  constructor(message, status, problem = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.problem = problem;
  }
}

/**
 * @param {Response} response one that is not 2xx
 * @returns {Promise<ApiError>}
 */
async function errorOf(response) {
  /** @type {Problem | null} */
  let problem = null;
  try {
    problem = await response.json();
  } catch {
    // A proxy's error page: its status says enough.
  }
  const message = problem?.detail || problem?.title || `The server answered ${response.status}.`;
  return new ApiError(message, response.status, problem);
}

/** @type {Set<() => void>} */
const keyListeners = new Set();

export const api = {
  /** @type {AskKey} the shell puts its dialog here */
  askKey: async () => null,

  /** @type {Promise<string | null> | null} */
  asking: null,

  /** @returns {string | null} */
  get key() {
    try {
      return sessionStorage.getItem(STORED);
    } catch {
      return null;
    }
  },

  /** @param {string | null} key null forgets it */
  set key(key) {
    try {
      if (key === null) sessionStorage.removeItem(STORED);
      else sessionStorage.setItem(STORED, key);
    } catch {
      // Storage is off in this browser: each call asks again.
    }
    keyListeners.forEach((listener) => listener());
  },

  /**
   * Ask for the key, once for all calls that wait for it. Returns whether there is one now.
   * @param {boolean} wrong
   */
  async unlock(wrong = false) {
    this.asking ??= this.askKey(wrong).finally(() => (this.asking = null));
    const key = await this.asking;
    if (key !== null && key !== this.key) this.key = key;
    return key !== null;
  },

  /**
   * `fetch` with the API key. Asks for one when the server does, and sends the request again.
   * Rejects with ApiError if no answer came, or no key was entered.
   * @param {string} path
   * @param {RequestInit} [init]
   * @returns {Promise<Response>}
   */
  async fetch(path, init = {}) {
    for (;;) {
      const key = this.key;
      const headers = new Headers(init.headers);
      if (key !== null) headers.set("Authorization", `Bearer ${key}`);
      /** @type {Response} */
      let response;
      try {
        response = await fetch(path, { ...init, headers });
      } catch (error) {
        if (init.signal?.aborted) throw error;
        throw new ApiError("The server does not answer.", 0);
      }
      if (response.status !== 401) return response;
      if (this.key !== key) continue; // another call was given one meanwhile
      if (!(await this.unlock(key !== null))) throw await errorOf(response);
    }
  },

  /**
   * @param {string} path
   * @param {RequestInit} [init]
   * @returns {Promise<any>} the answer's JSON; rejects with ApiError for every status but 2xx
   */
  async get(path, init) {
    const response = await this.fetch(path, init);
    if (!response.ok) throw await errorOf(response);
    return response.json();
  },

  /**
   * Call `onStatus` with each event of /status until the returned function is called.
   * `onLink` hears how the connection is. A lost one is made again, later each time.
   * @param {(status: any) => void} onStatus
   * @param {(link: Link) => void} [onLink]
   * @returns {() => void}
   */
  watch(onStatus, onLink = () => {}) {
    const stop = new AbortController();
    void keepWatching(onStatus, onLink, stop.signal);
    return () => stop.abort();
  },
};

/**
 * @param {(status: any) => void} onStatus
 * @param {(link: Link) => void} onLink
 * @param {AbortSignal} stop
 */
async function keepWatching(onStatus, onLink, stop) {
  let failures = 0;
  onLink({ phase: "connecting", detail: "" });
  while (!stop.aborted) {
    let pause = 0;
    try {
      await readEvents(stop, (status) => {
        failures = 0;
        onLink({ phase: "live", detail: "" });
        onStatus(status);
      });
      onLink({ phase: "lost", detail: "The server closed the connection." });
    } catch (error) {
      if (stop.aborted) return;
      const status = error instanceof ApiError ? error.status : 0;
      const detail = error instanceof ApiError ? error.message : "The connection broke.";
      onLink({ phase: status === 401 ? "locked" : "lost", detail });
      if (status === 401) {
        await changeOfKey(stop);
        continue;
      }
      if (status !== 0) pause = LONGEST_PAUSE_MS; // it refuses: be patient
    }
    failures += 1;
    pause ||= Math.min(LONGEST_PAUSE_MS, 500 * 2 ** failures) * (0.75 + Math.random() / 2);
    await sleep(pause, stop);
  }
}

/**
 * @param {AbortSignal} stop
 * @param {(status: any) => void} onStatus
 */
async function readEvents(stop, onStatus) {
  const silence = new AbortController();
  const end = () => silence.abort();
  stop.addEventListener("abort", end);
  let timer = setTimeout(end, SILENCE_MS);
  try {
    const init = { headers: { Accept: "text/event-stream" }, signal: silence.signal };
    const response = await api.fetch("status", init);
    if (!response.ok) throw await errorOf(response);
    if (!response.body) return;
    keyListeners.add(end); // a stream lasts no longer than the key that opened it
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(end, SILENCE_MS);
      const events = (text + value).split(/\r?\n\r?\n/);
      text = /** @type {string} */ (events.pop());
      const datas = events.map(dataOf).filter(Boolean);
      const newest = datas.at(-1);
      // In a task of its own: an error in the page is no error of the connection.
      if (newest) queueMicrotask(() => onStatus(JSON.parse(newest)));
    }
  } finally {
    clearTimeout(timer);
    keyListeners.delete(end);
    stop.removeEventListener("abort", end);
  }
}

/**
 * The data of one server-sent event; "" for a comment.
 * @param {string} event
 */
function dataOf(event) {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}

/**
 * Wait, but not longer than until the network or the person comes back.
 * @param {number} milliseconds
 * @param {AbortSignal} stop
 */
function sleep(milliseconds, stop) {
  return new Promise((resolve) => {
    const wake = () => {
      clearTimeout(timer);
      removeEventListener("online", wake);
      document.removeEventListener("visibilitychange", wake);
      resolve(undefined);
    };
    const timer = setTimeout(wake, milliseconds);
    addEventListener("online", wake);
    document.addEventListener("visibilitychange", wake);
    stop.addEventListener("abort", wake, { once: true });
  });
}

/** @param {AbortSignal} stop */
function changeOfKey(stop) {
  return new Promise((resolve) => {
    const done = () => {
      keyListeners.delete(done);
      resolve(undefined);
    };
    keyListeners.add(done);
    stop.addEventListener("abort", done, { once: true });
  });
}
