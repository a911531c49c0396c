// @ts-check
/** The page: what it shows where, by the hash of its address, and what it knows of the server. */
import { html, render, useCallback, useEffect, useRef, useState } from "./vendor/htm/standalone.module.js";
import { api } from "./api.js";
import { duration, plural } from "./format.js";
import { History } from "./history.js";
import { lazy } from "./lazy.js";
import { Overview } from "./overview.js";
import { Rail } from "./rail.js";
import { merge, MOODS } from "./status.js";
import { restoreTheme } from "./theme.js";
import { TopBar } from "./top.js";

/**
 * @typedef {import("./status.js").Status} Status
 * @typedef {import("./status.js").Pipeline} Pipeline
 * @typedef {import("./api.js").Link} Link
 * @typedef {{pipeline: string | null, tab: "graph" | "try" | "requests", id: string | null}} Route
 *   `pipeline`: null is the first; `id`: the request that is explained
 */

const TryIt = lazy("try", "TryIt", "Try it");
const Requests = lazy("why", "Requests", "The requests");
const Why = lazy("why", "Why", "The request");

/**
 * @param {string} hash
 * @returns {Route}
 */
function routeOf(hash) {
  const [kind, name, tab] = hash.replace(/^#?\/?/, "").split("/").map(decode);
  if (kind === "requests" && name) return { pipeline: null, tab: "requests", id: name };
  if (kind !== "p" || !name) return { pipeline: null, tab: "graph", id: null };
  return { pipeline: name, tab: tab === "try" || tab === "requests" ? tab : "graph", id: null };
}

/** @param {string} part */
function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function useRoute() {
  const [route, setRoute] = useState(() => routeOf(location.hash));
  useEffect(() => {
    const listen = () => setRoute(routeOf(location.hash));
    addEventListener("hashchange", listen);
    return () => removeEventListener("hashchange", listen);
  }, []);
  return route;
}

/** What the server says: its last event, what does not change, the samples, the connection. */
function useServer() {
  const [status, setStatus] = useState(/** @type {Status | null} */ (null));
  const [described, setDescribed] = useState(/** @type {Pipeline[]} */ ([]));
  const [link, setLink] = useState(/** @type {Link} */ ({ phase: "connecting", detail: "" }));
  const [news, setNews] = useState("");
  const history = useRef(new History()).current;
  const last = useRef(/** @type {Status | null} */ (null));

  useEffect(
    () =>
      api.watch(
        (/** @type {Status} */ next) => {
          const before = last.current;
          last.current = next;
          if (before && next.uptime_s < before.uptime_s) {
            history.gap();
            setNews(`The server was restarted ${duration(next.uptime_s)} ago.`);
          }
          history.add(next);
          setStatus(next);
        },
        (now) => {
          if (now.phase === "lost") history.gap();
          setLink((/** @type {Link} */ was) => (was.phase === now.phase && was.detail === now.detail ? was : now));
        },
      ),
    [],
  );

  const generation = status && `${status.generation} ${status.time_s - status.uptime_s < 0}`;
  const started = status && Math.round(status.time_s - status.uptime_s);
  useEffect(() => {
    if (generation === null) return undefined;
    const stop = new AbortController();
    const load = async () => {
      const full = await api.get("status", { signal: stop.signal });
      setDescribed(full.pipelines);
    };
    load().catch(() => undefined); // the next event that comes brings another try
    return () => stop.abort();
  }, [generation, link.phase === "live"]);

  return { status, described, link, history, news, setNews, started };
}

function App() {
  const route = useRoute();
  const { status, described, link, history, news, setNews } = useServer();
  const chosen = useRef(/** @type {string | null} */ (null));
  const centre = useRef(/** @type {HTMLElement | null} */ (null));
  if (route.pipeline !== null) chosen.current = route.pipeline;

  const pipelines = status ? merge(status.pipelines, described) : [];
  const name = chosen.current ?? pipelines[0]?.name ?? null;
  const pipeline = pipelines.find((one) => one.name === name);
  const tab = route.tab === "graph" ? "try" : route.tab;
  const shown = route.id === null ? route.tab : "why";

  useEffect(() => {
    document.title = titleOf(pipeline, link);
  });
  useEffect(() => {
    if (route.id !== null) centre.current?.focus();
  }, [route.id]);
  const answered = useCallback(() => undefined, []);

  return html`
    <${TopBar} status=${status} link=${link} />
    ${pipelines.length > 0 && html`<${Rail} pipelines=${pipelines} chosen=${name} tab=${route.tab} />`}
    <${PhoneTabs} route=${route} name=${name} />
    <main class="centre ${link.phase === "lost" ? "stale" : ""} ${pipelines.length ? "" : "alone"}" id="centre" ref=${centre} tabindex="-1" data-shown=${shown}>
      ${route.id !== null
        ? html`<p class="back"><a href=${href(name, "requests")}>Back to ${name ?? "the pipelines"}</a></p>
            <${Why} key=${route.id} id=${route.id} api=${api} />`
        : html`<${Centre} status=${status} pipeline=${pipeline} name=${name} link=${link} history=${history} />`}
    </main>
    ${pipeline && html`<${Side} pipeline=${pipeline} tab=${tab} id=${route.id} shown=${shown} onAnswered=${answered} />`}
    <p class="visually-hidden" role="status">${pipeline && link.phase !== "lost" ? `${pipeline.name}: ${MOODS[pipeline.mood]}` : ""}</p>
    ${news && html`<${News} text=${news} onDone=${() => setNews("")} />`}`;
}

/**
 * @param {string | null} name
 * @param {string} tab
 */
function href(name, tab) {
  if (name === null) return "#/";
  return `#/p/${encodeURIComponent(name)}${tab === "graph" ? "" : `/${tab}`}`;
}

/**
 * @param {Pipeline | undefined} pipeline
 * @param {Link} link
 */
function titleOf(pipeline, link) {
  if (link.phase === "lost") return "Disconnected · Penstock";
  return pipeline ? `${MOODS[pipeline.mood]} · ${pipeline.name} · Penstock` : "Penstock";
}

/**
 * @param {{status: Status | null, pipeline: Pipeline | undefined, name: string | null, link: Link,
 *   history: History}} props
 */
function Centre({ status, pipeline, name, link, history }) {
  if (pipeline && status) {
    return html`<${Overview} key=${pipeline.name} pipeline=${pipeline}
      columns=${history.of(pipeline.name)} time_s=${status.time_s} />`;
  }
  if (link.phase === "locked") {
    return html`<section class="empty"><h1>This server asks for an API key</h1>
      <p>${link.detail}</p>
      <p><button class="button primary" onClick=${() => void api.unlock()}>Enter the key</button></p></section>`;
  }
  if (!status) {
    return html`<section class="empty"><p>${link.phase === "lost" ? `${link.detail} Trying again …` : ""}</p></section>`;
  }
  if (name !== null) {
    return html`<section class="empty"><h1>There is no pipeline ${name}</h1>
      <p>It was unloaded, or its name is another. <a href="#/">Show what is served</a></p></section>`;
  }
  return html`<section class="empty"><h1>This server has no pipelines yet</h1>
    <p>Write a pipeline file for an ONNX model, then serve it:</p>
    <code class="code">penstock init model.onnx${"\n"}penstock serve model.toml</code>
    <p><a href="docs">API docs</a></p></section>`;
}

/** @param {{route: Route, name: string | null}} props */
function PhoneTabs({ route, name }) {
  if (name === null) return null;
  const tabs = [["graph", "Graph"], ["try", "Try it"], ["requests", "Requests"]];
  return html`<nav class="phone-tabs tabs" aria-label="Views">${tabs.map(([tab, text]) => html`<a
    key=${tab} class="tab" href=${href(name, tab)} data-text=${text}
    aria-current=${route.tab === tab ? "page" : undefined}>${text}</a>`)}</nav>`;
}

/**
 * @param {{pipeline: Pipeline, tab: "try" | "requests", id: string | null, shown: string,
 *   onAnswered: () => void}} props
 */
function Side({ pipeline, tab, id, shown, onAnswered }) {
  const open = useCallback((/** @type {string} */ request) => {
    location.hash = `#/requests/${encodeURIComponent(request)}`;
  }, []);
  const key = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = tab === "try" ? "requests" : "try";
    location.hash = href(pipeline.name, other);
    document.getElementById(`tab-${other}`)?.focus();
  };
  const tabs = [["try", "Try it"], ["requests", "Requests"]];
  return html`<aside class="side" aria-label="Try it and requests" data-shown=${shown}>
    <div class="tabs" role="tablist" aria-label="Panel" onKeyDown=${key}>${tabs.map(([one, text]) => html`<a
      key=${one} id="tab-${one}" class="tab" role="tab" href=${href(pipeline.name, one)} data-text=${text}
      aria-selected=${one === tab ? "true" : "false"} aria-controls="panel-${one}"
      tabindex=${one === tab ? undefined : -1}>${text}</a>`)}</div>
    <div role="tabpanel" id="panel-try" aria-labelledby="tab-try" hidden=${tab !== "try"}>
      <${TryIt} key=${pipeline.name} pipeline=${pipeline} api=${api} onAnswered=${onAnswered} /></div>
    <div role="tabpanel" id="panel-requests" aria-labelledby="tab-requests" hidden=${tab !== "requests"}>
      ${tab === "requests" && html`<${Requests} pipeline=${pipeline} api=${api} id=${id} onOpen=${open} />`}</div>
  </aside>`;
}

/** @param {{text: string, onDone: () => void}} props */
function News({ text, onDone }) {
  useEffect(() => {
    const timer = setTimeout(onDone, 8000);
    return () => clearTimeout(timer);
  }, [text]);
  return html`<p class="news panel" role="status">${text} <button class="button quiet small" onClick=${onDone}>Close</button></p>`;
}

restoreTheme();
const root = /** @type {HTMLElement} */ (document.getElementById("app"));
root.textContent = "";
render(html`<${App} />`, root);
