// @ts-check
/** The last slow and failed requests, and the view of one: why it took as long as it did. */

import { copyText } from "./copy.js";
import { ms, plural } from "./format.js";
import { html, useEffect, useRef, useState } from "./vendor/htm/standalone.module.js";
import { hrefOf, Waterfall } from "./waterfall.js";

const REFRESH_MS = 2000;
const LISTED = 50;
const COPIED_SAID_MS = 1500;
const LONG_SENTENCE = 140; // an error's text

/**
 * @typedef {typeof import("./api.js").api} Api
 * @typedef {import("./api.js").ApiError} ApiError
 * @typedef {{id: string, pipeline: string, version: string, door: string, status: number | null,
 *   outcome: string, code: string, time: string, ms: number, slow: boolean,
 *   usual_ms: number | null, rows: number, summary: string[]}} Entry of GET /requests
 * @typedef {{requests: Entry[], remembered: number}} Listed
 */

/** The shade of each outcome. @type {Record<string, string>} */
const SHADES = { ok: "calm", failed: "down", refused: "refusing", expired: "busy" };
const KINDS = [
  ["", "Slow or failed"],
  ["slow", "Slow"],
  ["failed", "Failed"],
  ["recent", "Recent"],
];

/** @type {(request: Entry) => string} */
const clock = ({ time }) => new Date(time).toLocaleTimeString([], { hour12: false });

/** @param {{request: Entry}} properties */
function Outcome({ request: { outcome, status, slow } }) {
  return html`
    ${slow && html`<span class="pill mood busy">slow</span>`}
    <span class=${`pill mood ${SHADES[outcome]}`}>${outcome === "left" ? "client left" : outcome} ${status}</span>
  `;
}

/**
 * The panel *Requests*: the last slow or failed ones, newest first, and a field for any id.
 * @param {{pipeline?: {name: string} | null, api: Api, id?: string | null}} properties
 *   `pipeline`: list only its requests. `id`: the request that is open.
 */
export function Requests({ pipeline, api, id }) {
  const name = pipeline?.name ?? "";
  const [kind, setKind] = useState("");
  const { listed, newer, failure, list, showNewer } = useListed(api, name, kind);
  /** @param {any} event */
  const ask = (event) => {
    event.preventDefault();
    const wanted = event.target.elements.id.value.trim();
    if (wanted) location.hash = hrefOf(wanted);
  };
  return html`
    <section class="requests">
      <form onSubmit=${ask}>
        <input class="field mono" name="id" aria-label="Request id" autocomplete="off"
          placeholder="Request id, as in X-Request-Id" spellcheck=${false} />
        <button class="button">Why?</button>
      </form>
      <div class="requests-kinds" role="group" aria-label="Which requests">
        ${KINDS.map(
          ([value, words]) => html`
            <button class="button quiet small" aria-pressed=${kind === value}
              onClick=${() => setKind(value)}>${words}</button>
          `,
        )}
      </div>
      ${failure && html`<${Trouble} failure=${failure} />`}
      ${listed &&
      html`
        <p class="requests-count hint">
          <span>Of the last ${plural(listed.remembered, "request")}</span>
          <button class="button quiet small" hidden=${!newer} onClick=${showNewer}>
            Show ${newer < LISTED ? newer : `${LISTED} or more`} newer
          </button>
        </p>
        <ol class="requests-list" ref=${list}>
          ${listed.requests.map(
            (/** @type {Entry} */ request) => html`
              <li key=${request.id + request.time}>
                <a href=${hrefOf(request.id)} aria-current=${request.id === id ? "true" : undefined}>
                  <span class="requests-took num">${ms(request.ms)}</span>
                  <span class="requests-words">${request.summary[0]}</span>
                  <span class="requests-when hint">${clock(request)}</span>
                  <span class="requests-facts">
                    <${Outcome} request=${request} />
                    <span class="cut mono">${name ? "" : request.pipeline} ${request.id}</span>
                  </span>
                </a>
              </li>
            `,
          )}
        </ol>
        ${!listed.requests.length &&
        html`<${Nothing} kind=${kind} showRecent=${() => setKind("recent")} />`}
      `}
    </section>
  `;
}

/**
 * Read the list again and again while the page is seen. While the pointer or the focus is in the
 * list (`list` refers to it) nothing moves there: `newer` counts what came meanwhile.
 * @param {Api} api
 * @param {string} pipeline
 * @param {string} kind
 */
function useListed(api, pipeline, kind) {
  const [listed, setListed] = useState(/** @type {Listed | null} */ (null));
  const [latest, setLatest] = useState(/** @type {Listed | null} */ (null));
  const [failure, setFailure] = useState(/** @type {ApiError | null} */ (null));
  const list = useRef(/** @type {HTMLElement | null} */ (null));

  useEffect(() => {
    const query = new URLSearchParams({ limit: `${LISTED}`, ...(pipeline && { pipeline }) });
    if (kind) query.set("kind", kind);
    let timer = 0;
    let ended = false;
    let first = true;
    const read = async () => {
      try {
        if (!document.hidden) {
          const found = await api.get(`requests?${query}`);
          if (ended) return;
          setFailure(null);
          setLatest(found);
          if (first || !list.current?.matches(":hover, :focus-within")) setListed(found);
          first = false;
        }
      } catch (error) {
        if (!ended) setFailure(/** @type {ApiError} */ (error));
      }
      if (!ended) timer = setTimeout(read, REFRESH_MS);
    };
    void read();
    return () => {
      ended = true;
      clearTimeout(timer);
    };
  }, [api, pipeline, kind]);

  const { id, time } = listed?.requests[0] ?? {};
  const at = latest?.requests.findIndex((/** @type {Entry} */ one) => one.id === id && one.time === time);
  const newer = at < 0 ? latest.requests.length : at;
  return { listed, newer, failure, list, showNewer: () => setListed(latest) };
}

/** @param {{kind: string, showRecent: () => void}} properties */
function Nothing({ kind, showRecent }) {
  if (kind === "recent") {
    return html`<p class="empty">No request yet. Send one under <i>Try it</i>: its way shows here.</p>`;
  }
  const what = { slow: "was slow", failed: "failed" }[kind] ?? "was slow or failed";
  return html`
    <div class="empty">
      <p>Nothing ${what} yet.</p>
      <p>
        A request is slow if it took more than 3 times as long as those of its pipeline lately. Look
        at any other by its id, which each answer has in <code>X-Request-Id</code>.
      </p>
      <button class="button" onClick=${showRecent}>Show recent requests</button>
    </div>
  `;
}

/**
 * Why one request took as long as it did: the causes in words, the longest first, and a waterfall.
 * @param {{id: string, api: Api, onPipeline?: (name: string) => void}} properties
 *   `onPipeline` hears whose request it is.
 */
export function Why({ id, api, onPipeline }) {
  const [request, setRequest] = useState(null);
  const [failure, setFailure] = useState(/** @type {ApiError | null} */ (null));
  const [tries, setTries] = useState(0);

  useEffect(() => {
    const stop = new AbortController();
    api.get(`requests/${encodeURIComponent(id)}`, { signal: stop.signal }).then(
      (found) => {
        setFailure(null);
        setRequest(found);
        onPipeline?.(found.pipeline);
      },
      (error) => stop.signal.aborted || setFailure(error),
    );
    return () => stop.abort();
  }, [id, api, tries]);

  if (failure) return html`<${Trouble} failure=${failure} again=${() => setTries(tries + 1)} />`;
  return request && html`<${Answer} key=${request.id + request.time} request=${request} />`;
}

/** @param {{request: import("./waterfall.js").Explained}} properties */
function Answer({ request }) {
  const { id, outcome, code, summary: [first, ...others], usual_ms: usual, rows } = request;
  const times = outcome === "ok" && usual ? request.ms / usual : 0;
  const { pipeline, version, door } = request;
  const items = rows > 1 && plural(rows, "item");
  const facts = [pipeline && `${pipeline} ${version}`, door, items, code, clock(request)];
  return html`
    <article class="why" aria-label=${`Request ${id}`}>
      <header>
        <p class="why-took">
          <strong class="num">${ms(request.ms)}</strong>
          ${times > 0 && html`<span>${times.toFixed(1)} × the usual ${ms(usual)}</span>`}
          <${Outcome} request=${request} />
        </p>
        <h1 class=${first.length > LONG_SENTENCE && "long"}>${first}</h1>
        <ol>
          ${others.map((words) => html`<li>${words}</li>`)}
        </ol>
        <p class="hint">${facts.filter(Boolean).join(" · ")}</p>
      </header>
      <${Waterfall} request=${request} />
      <footer>
        <span><code>${id}</code> <${Copy} text=${id} name="the request id" /></span>
        <span>
          <code>penstock why ${id}</code>
          ${" "}<${Copy} text=${`penstock why ${id}`} name="the command" />
        </span>
        <${Copy} text=${JSON.stringify(request, null, 2)} name="it as JSON" label="Copy as JSON" />
      </footer>
    </article>
  `;
}

/**
 * What to do where there is nothing to show.
 * @param {{failure: ApiError, again?: () => void}} properties
 */
function Trouble({ failure: { message, problem }, again }) {
  return html`
    <div class="empty" role="status">
      <p>${message}</p>
      ${problem?.code === "unknown_request" &&
      html`<ul class="why-advice">
        <li>Compare the id with <code>X-Request-Id</code> in the answer, or with the log.</li>
        <li>It is remembered once it has ended. Is it still running?</li>
        <li>A restart forgets all. The setting <code>request_history</code> says how many stay.</li>
        <li>Behind a load balancer, ask the server that answered it.</li>
      </ul>`}
      ${again && html`<p><button class="button" onClick=${again}>Look again</button></p>`}
    </div>
  `;
}

/**
 * A button that copies a text, and says for a moment that it has.
 * @param {{text: string, name: string, label?: string}} properties
 */
function Copy({ text, name, label = "Copy" }) {
  const [said, say] = useState("");
  useEffect(() => {
    const timer = setTimeout(() => say(""), COPIED_SAID_MS);
    return () => clearTimeout(timer);
  }, [said]);
  const copy = async () => say((await copyText(text)) ? "Copied" : "Not allowed");
  return html`
    <button class="button small why-copy" aria-label=${`Copy ${name}`} onClick=${copy}>
      <span class=${said && "unseen"}>${label}</span><span role="status">${said}</span>
    </button>
  `;
}
