// @ts-check
/** The last slow and failed requests, and the view of one: why it took as long as it did. */
import { Copy } from "./copy.js";
import { ms, plural } from "./format.js";
import { shell } from "./snippets.js";
import { html, useEffect, useRef, useState } from "./preact.js";
import { hrefOf, Waterfall } from "./waterfall.js";

const REFRESH_MS = 2000;
const LISTED = 50;
const USUAL_SERVER = "http://127.0.0.1:8000"; // of `penstock why`
const LONG_SENTENCE = 140; // an error's text

const SHADES = { ok: "calm", failed: "down", refused: "refusing", expired: "busy" };
const KINDS = { "": "Slow or failed", slow: "Slow", failed: "Failed", recent: "Recent" };

const clock = (request) => new Date(request.time).toLocaleTimeString([], { hour12: false });

function Outcome({ request: { outcome, status, slow } }) {
  return html`${slow && html`<span class="pill mood busy">slow</span>`}
    <span class="pill mood ${SHADES[outcome]}">${outcome === "left" ? "client left" : outcome} ${status}</span>`;
}

/**
 * The panel *Requests*: the last slow or failed ones, newest first, and a field for any id. `id` is
 * that of the request that is open.
 */
export function Requests({ pipeline, api, id }) {
  const name = pipeline?.name ?? "";
  const [kind, setKind] = useState("");
  const [listed, setListed] = useState(null);
  const [failure, setFailure] = useState(null);
  const [tries, setTries] = useState(0);
  const list = useRef(null);
  useEffect(() => {
    const query = new URLSearchParams({ limit: `${LISTED}`, ...(name && { pipeline: name }) });
    if (kind) query.set("kind", kind);
    const stop = new AbortController();
    const show = (found) => {
      setFailure(null);
      // Nothing moves under the pointer or the focus.
      if (!list.current?.matches(":hover, :focus-within")) setListed(found);
    };
    const fail = (error) => {
      if (stop.signal.aborted) return;
      setFailure(error);
      if (error.status && error.status < 500) clearInterval(timer); // until the reader asks again
    };
    const read = () => api.get(`requests?${query}`, { signal: stop.signal }).then(show, fail);
    const timer = setInterval(() => document.hidden || read(), REFRESH_MS);
    void read();
    return () => {
      clearInterval(timer);
      stop.abort();
    };
  }, [api, name, kind, tries]);
  const ask = (event) => {
    event.preventDefault();
    const wanted = event.target.elements.id.value.trim();
    if (wanted) location.hash = hrefOf(wanted);
  };
  return html`<section class="requests">
    <form onSubmit=${ask}>
      <input class="field mono" name="id" aria-label="Request id" autocomplete="off"
        placeholder="Request id, as in X-Request-Id" spellcheck=${false} />
      <button class="button">Why?</button>
    </form>
    <div role="group" aria-label="Which requests">${Object.entries(KINDS).map(
      ([value, words]) => html`<button class="button quiet small" aria-pressed=${kind === value}
        onClick=${() => setKind(value)}>${words}</button>`,
    )}</div>
    ${failure && html`<${Trouble} failure=${failure} again=${() => setTries(tries + 1)} />`}
    ${listed && html`<p class="hint">Of the last ${plural(listed.remembered, "request")}</p>
      <ol ref=${list}>${listed.requests.map((request) => html`
        <li key=${request.id + request.time}>
          <a href=${hrefOf(request.id)} aria-current=${request.id === id ? "true" : undefined}>
            <strong class="num">${ms(request.ms)}</strong>
            <span class="requests-words">${request.summary[0]}</span>
            <span class="num hint">${clock(request)}</span>
            <span class="requests-facts"><${Outcome} request=${request} />
              <span class="cut mono">${name ? "" : request.pipeline} ${request.id}</span></span>
          </a>
        </li>`)}</ol>
      ${!listed.requests.length && html`<div class="empty"><p>Nothing ${KINDS[kind].toLowerCase()} yet.</p>
        <p>A request is slow if it took more than 3 times as long as those of its pipeline lately.
          Look at any other by its id, <code>X-Request-Id</code> in its answer, or under Recent.</p></div>`}`}
  </section>`;
}

/**
 * Why one request took as long as it did: the causes in words, the longest first, and a waterfall.
 * `onPipeline` hears the name of its pipeline.
 */
export function Why({ id, api, onPipeline }) {
  const [request, setRequest] = useState(null);
  const [failure, setFailure] = useState(null);
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

function Answer({ request }) {
  const { id, pipeline, version, door, outcome, code, usual_ms: usual, rows } = request;
  const [first, ...others] = request.summary;
  const times = outcome === "ok" && usual ? request.ms / usual : 0;
  const items = rows > 1 && plural(rows, "item");
  const facts = [pipeline && `${pipeline} ${version}`, door, items, code, clock(request)];
  const server = new URL(".", location.href).href.slice(0, -1);
  const command = ["penstock why", server !== USUAL_SERVER && `--url ${shell(server)}`, id[0] === "-" && "--", shell(id)].filter(Boolean).join(" ");
  const copies = [["id", id], ["command", command], ["JSON", JSON.stringify(request, null, 2)]];
  return html`<article class="why" aria-label="Request ${id}">
    <header>
      <p><strong class="num">${ms(request.ms)}</strong>
        ${times > 0 && html`<span>${times.toFixed(1)} × the usual ${ms(usual)}</span>`}
        <${Outcome} request=${request} /></p>
      <h1 class=${first.length > LONG_SENTENCE && "long"}>${first}</h1>
      <ol>${others.map((words) => html`<li>${words}</li>`)}</ol>
      <p class="hint">${facts.filter(Boolean).join(" · ")}</p>
    </header>
    <${Waterfall} request=${request} />
    <footer><code>${command}</code>
      ${copies.map(([what, text]) => html`<${Copy} what="the ${what}" text=${text} />`)}</footer>
  </article>`;
}

function Trouble({ failure: { message, problem }, again }) {
  return html`<div class="empty" role="status"><p>${message}</p>
    ${problem?.code === "unknown_request" && html`<p>Each answer has its id in
      ${" "}<code>X-Request-Id</code>. A request is remembered once it has ended, by the server that
      answered it, until that restarts.</p>`}
    <p><button class="button" onClick=${again}>Look again</button></p></div>`;
}
