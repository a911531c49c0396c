import { html, render } from "./vendor/htm/standalone.module.js";

render(html`<h1>Penstock</h1><p><a href="docs">API docs</a></p>`, document.getElementById("app"));
