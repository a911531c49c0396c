// Draw the page's Mermaid texts, dark on a dark page. Where scripts are off the texts stay as they are.
const mode = document.body.dataset.theme;
const dark = mode === "dark" || (mode !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
mermaid.initialize({ startOnLoad: true, theme: dark ? "dark" : "neutral" });
