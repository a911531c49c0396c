// @ts-check
/** The page: what it shows where, by the hash of its address, and what it knows of the server. */
import { html, render, useEffect, useRef, useState } from "./preact.js";
import { api } from "./api.js";
import { duration } from "./format.js";
import { History } from "./history.js";
import { Overview } from "./overview.js";
import { Rail } from "./rail.js";
import { MOODS } from "./status.js";
import { TopBar } from "./top.js";
import { TryIt } from "./try.js";
import { Requests, Why } from "./why.js";

const TABS = { graph: "Graph", try: "Try it", requests: "Requests" };

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // typed by hand
  }
}

/** #/p/NAME, #/p/NAME/TAB or #/requests/ID; anything else is the first pipeline's graph. */
function routeOf(hash) {
  const [kind, name, tab] = hash.slice(2).split("/").map(decoded);
  if (kind === "requests" && name) return { name: null, tab: "requests", id: name };
  return { name: (kind === "p" && name) || null, tab: Object.hasOwn(TABS, tab) ? tab : "graph", id: null };
}

function addressOf(name, tab) {
  return name === null ? "#/" : `#/p/${encodeURIComponent(name)}${tab === "graph" ? "" : `/${tab}`}`;
}

function useRoute() {
  const [route, setRoute] = useState(() => routeOf(location.hash));
  useEffect(() => addEventListener("hashchange", () => setRoute(routeOf(location.hash))), []);
  return route;
}

/** The server's last event with what never changes, its samples, the connection, news of it. */
function useServer() {
  const [status, setStatus] = useState(null);
  const [link, setLink] = useState({ phase: "connecting", detail: "" });
  const [news, setNews] = useState("");
  const [described, setDescribed] = useState({});
  const history = useRef(new History()).current;
  const started = useRef(0);

  useEffect(() => {
    const onStatus = (next) => {
      const start = next.time_s - next.uptime_s;
      if (started.current && start > started.current + 1) {
        setNews(`The server was restarted ${duration(next.uptime_s)} ago.`);
      }
      started.current = start;
      history.add(next);
      setStatus(next);
    };
    const onLink = (phase, detail) => {
      if (phase === "lost") history.gap();
      setLink({ phase, detail });
    };
    return api.watch(onStatus, onLink);
  }, []);
  const { generation } = status ?? {};
  useEffect(() => {
    if (generation === undefined || link.phase !== "live") return;
    const keep = ({ pipelines }) => setDescribed(Object.fromEntries(pipelines.map((one) => [one.name, one])));
    api.get("status").then(keep, () => undefined); // a reconnection brings another try
  }, [generation, link.phase, Math.round(started.current)]);
  const pipelines = status?.pipelines.map((one) => ({ ...described[one.name], ...one })) ?? [];
  return { status, pipelines, link, history, news, setNews };
}

function App() {
  const { tab, id, ...route } = useRoute();
  const { status, pipelines, link, history, news, setNews } = useServer();
  const [last, setLast] = useState(null); // beside a request stays its pipeline
  const centre = useRef();
  const name = (id ? last : route.name) ?? pipelines[0]?.name ?? null;
  const pipeline = pipelines.find((one) => one.name === name);
  const shown = id ? "why" : tab;
  const mood = pipeline && MOODS[pipeline.mood];
  const lost = link.phase === "lost";
  const alarm = ["refusing", "down"].includes(pipeline?.mood); // the only moods to interrupt anyone for
  useEffect(() => {
    document.title = lost ? "Disconnected · Penstock" : mood ? `${mood} · ${name} · Penstock` : "Penstock";
  }, [lost, mood, name]);
  useEffect(() => setLast(name), [name]);
  useEffect(() => {
    if (id) centre.current.focus();
  }, [id]);

  // What is shown of the centre and the panel; on a phone it is one of them.
  const skip = () => [...document.querySelectorAll("[data-shown]")].find((one) => one.checkVisibility())["focus"]();
  return html`
    ${pipeline && html`<button class="button skip" onClick=${skip}>Skip to the pipeline</button>`}
    <${TopBar} status=${status} link=${link} />
    ${pipelines.length > 0 && html`<${Rail} pipelines=${pipelines} chosen=${name} link=${(other) => addressOf(other, tab)} />`}
    <main class="centre ${lost && "stale"} ${!pipeline && "alone"}" ref=${centre} tabindex="-1" data-shown=${shown}>
      ${id
        ? html`<p><a href=${addressOf(name, "requests")}>Back to ${name ?? "the pipelines"}</a></p><${Why} key=${id} id=${id} api=${api} onPipeline=${setLast} />`
        : pipeline
          ? html`<${Overview} key=${name} pipeline=${pipeline} columns=${history.of(name)} time_s=${status.time_s} />`
          : html`<${Nothing} status=${status} name=${name} link=${link} />`}
    </main>
    ${pipeline && html`<nav class="tabs views" aria-label="Views">${Object.entries(TABS).map(([one, text]) => html`<a
      key=${one} class="tab" data-tab=${one} href=${addressOf(name, one)}
      aria-current=${one === tab ? "page" : undefined}>${text}</a>`)}</nav>`}
    ${pipeline && html`<aside class="side" aria-label="Try it and requests" tabindex="-1" data-shown=${shown}>
      <div hidden=${tab === "requests"}><${TryIt} key=${name} pipeline=${pipeline} api=${api} /></div>
      ${tab === "requests" && html`<${Requests} pipeline=${pipeline} api=${api} id=${id} />`}
    </aside>`}
    <p class="visually-hidden" role="status">${alarm ? `${name}: ${mood}` : ""}</p>
    ${news && html`<${News} text=${news} onDone=${() => setNews("")} />`}`;
}

/** What is shown where no pipeline is. */
function Nothing({ status, name, link }) {
  if (link.phase === "locked") {
    return html`<section class="empty"><h1>This server asks for an API key</h1>
      <p><button class="button primary" onClick=${() => api.unlock()}>Enter the key</button></p></section>`;
  }
  if (!status) return html`<p class="empty">${link.detail}</p>`;
  if (name !== null) {
    return html`<section class="empty"><h1>There is no pipeline ${name}</h1>
      <p>It was unloaded, or has another name. <a href="#/">Show what is served</a></p></section>`;
  }
  return html`<section class="empty"><h1>This server has no pipelines yet</h1>
    <p>Write a pipeline file for an ONNX model, then serve it:</p>
    <code class="code">penstock init model.onnx${"\n"}penstock serve model.toml</code></section>`;
}

function News({ text, onDone }) {
  useEffect(() => {
    const timer = setTimeout(onDone, 8000);
    return () => clearTimeout(timer);
  }, [text]);
  return html`<p class="news panel" role="status">${text} <button class="button quiet small" onClick=${onDone}>Close</button></p>`;
}

const root = document.getElementById("app");
root.textContent = "";
render(html`<${App} />`, root);
