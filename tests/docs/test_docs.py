"""Run every example of README.md and docs/, page by page, in a directory of the page's own.

A comment above a fenced block says what to do with it. A block without one fails:

    <!-- file: NAME -->        write it to NAME; a .toml is loaded too
    <!-- load -->              toml: load it as a pipeline
    <!-- run -->               python or sh: run it. It must exit with 0, and warnings are errors
    <!-- serve -->             sh: start `penstock serve ...` or `uvicorn ...` and wait until it is
                               ready. The next one, or the end of the page, stops it
    <!-- shows -->             compare it with what the block before printed; … stands for anything,
                               and whitespace does not count
    <!-- not run: REASON -->   do nothing; the reason is for the reader of the source

The directory holds a copy of examples/. 127.0.0.1:8000 in sh and python blocks becomes the port
that the server got, and 127.0.0.1:8001 its `--grpc-port`. A sh block with curl must be followed by
`shows`, because curl exits with 0 for an error's answer too.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from penstock.app.http.errors import STATUSES
from penstock.app.metrics import PipelineCollector
from penstock.app.settings import Settings
from penstock.app.v2.models.metrics import FAILURE_REASONS, TritonCollector
from penstock.backends.expressions.composite import CopySplitParams, MapReduceParams
from penstock.backends.expressions.filters import BUILTIN, Status
from penstock.backends.expressions.registry import BUILTINS
from penstock.pipelines.config.load import load
from penstock.pipelines.config.tables import NODE_KEYS, STRUCTURE_KEYS, PipelineTable, PortTable
from penstock.pipelines.repository import Repository

from ..ports import free_port

ROOT = Path(__file__).parents[2]
SITE = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *SITE]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```\s*$",
    re.MULTILINE | re.DOTALL,
)
MARKER = re.compile(r"<!-- (file: [\w./-]+|load|run|serve|shows|not run: [^>]+) -->\s*\Z")
ADDRESS = "127.0.0.1:8000"
GRPC_ADDRESS = "127.0.0.1:8001"


class Block(NamedTuple):
    line: int
    language: str
    marker: str
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for fence in FENCE.finditer(text):
        marker = MARKER.search(text[: fence.start()])
        indent = len(fence["indent"])
        code = "".join(line[indent:] for line in fence["text"].splitlines(keepends=True))
        yield Block(
            text.count("\n", 0, fence.start()) + 1,
            fence["language"],
            marker[1] if marker else "",
            code,
        )


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_examples_run(page: Path, tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__")
    )
    walk = Walk(tmp_path)
    blocks = list(blocks_of(page))
    try:
        for block, following in pairwise([*blocks, None]):
            assert block is not None
            if block.marker == "run" and "curl" in block.text:
                assert following is not None and following.marker == "shows", (
                    f"line {block.line}: curl without `shows` after it"
                )
            try:
                walk.step(block)
            except Exception as error:
                raise AssertionError(f"{page_id(page)}, line {block.line}: {error}") from error
    finally:
        walk.stop()


class Walk:
    """Runs the examples of one page in order."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.output = ""
        self.server: subprocess.Popen[bytes] | None = None
        self.port = self.grpc_port = 0

    def step(self, block: Block) -> None:
        kind, _, argument = block.marker.partition(": ")
        if kind == "file":
            file = self.directory / argument
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
            if file.suffix == ".toml":
                load(file)
        elif kind == "load":
            assert block.language == "toml"
            file = self.directory / f"line{block.line}.toml"
            file.write_text(block.text)
            load(file)
        elif kind == "run":
            self.output = self.run(block)
        elif kind == "serve":
            self.serve(block.text)
        elif kind == "shows":
            assert_shows(block.text, self.output)
        else:
            assert kind == "not run", (
                "a block without a marker (see the top of tests/docs/test_docs.py)"
            )

    def run(self, block: Block) -> str:
        text = self.here(block.text)
        if block.language == "python":
            file = self.directory / f"line{block.line}.py"
            file.write_text(text)
            command = [sys.executable, "-W", "error", str(file)]
        else:
            assert block.language == "sh", f"expected python or sh, found {block.language!r}"
            if "curl" in text and shutil.which("curl") is None:
                pytest.fail(
                    "this test needs curl: apt install curl, apk add curl or brew install curl"
                )
            command = ["sh", "-e", "-c", text]
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def serve(self, text: str) -> None:
        self.stop()
        self.port = free_port()
        command, replaced = re.subn(
            r"\b(penstock serve|uvicorn) ", rf"\1 --port {self.port} ", "exec env " + text.strip()
        )
        assert replaced == 1, "expected one `penstock serve` or `uvicorn`"
        self.grpc_port = free_port() if "--grpc-port 8001" in command else 0
        command = command.replace("--grpc-port 8001", f"--grpc-port {self.grpc_port}")
        scheme = "https" if "--ssl-certfile" in command else "http"
        self.server = subprocess.Popen(
            ["sh", "-e", "-c", command],
            cwd=self.directory,
            env=self.environment,
            start_new_session=True,
        )
        end = time.monotonic() + 60
        while not is_ready(f"{scheme}://127.0.0.1:{self.port}"):
            assert self.server.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server is not ready after 60 s"
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server by SIGTERM. `penstock serve` exits with 0, uvicorn by the signal."""
        if self.server is None:
            return
        server, self.server = self.server, None
        server.send_signal(signal.SIGTERM)
        try:
            assert server.wait(20) in (
                (0, -signal.SIGTERM) if "uvicorn" in str(server.args) else (0,)
            )
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            raise

    def here(self, text: str) -> str:
        for address, port in ((ADDRESS, self.port), (GRPC_ADDRESS, self.grpc_port)):
            if port:
                text = text.replace(address, f"127.0.0.1:{port}")
        return text

    @property
    def environment(self) -> dict[str, str]:
        ours = {key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_")}
        return ours | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "NO_COLOR": "1",
            "COLUMNS": "120",
        }


def is_ready(server: str) -> bool:
    """Return whether the server is ready. 404 is ready: a mounted app has its health elsewhere."""
    any_certificate = ssl.create_default_context()
    any_certificate.check_hostname = False
    any_certificate.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(f"{server}/health/ready", timeout=5, context=any_certificate):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return error.code == 404
    except OSError:
        return False


def assert_shows(expected: str, output: str) -> None:
    pattern = ".*?".join(re.escape("".join(piece.split())) for piece in expected.split("…"))
    if not re.fullmatch(pattern, "".join(output.split()), re.DOTALL):
        raise AssertionError(f"printed\n{output}\nexpected\n{expected}")


@contextmanager
def fails(message: str) -> Iterator[None]:
    with pytest.raises(AssertionError, match=message):
        yield


def test_what_is_shown_is_compared() -> None:
    assert_shows('{"a": …,\n  "b": 2}', '{"a": 17, "b": 2}\n')
    with fails("expected"):
        assert_shows('{"a": …, "b": 2}', '{"a": 17, "b": 3}')


def test_a_block_without_a_marker_fails(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("<!-- run -->\n\ntext\n\n```python\nprint(1)\n```\n")
    (block,) = blocks_of(tmp_path / "page.md")
    assert (block.line, block.language, block.marker, block.text) == (5, "python", "", "print(1)\n")
    with fails("without a marker"):
        Walk(tmp_path).step(block)


def test_an_example_that_warns_fails(tmp_path: Path) -> None:
    with fails("ended with 1"):
        Walk(tmp_path).step(Block(1, "python", "run", "import warnings; warnings.warn('old')"))


# links

LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors_of(file), target


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Dead links, missing anchors and pages that no index lists are errors."""
    build_site(ROOT / "docs", tmp_path / "site")
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert {page.relative_to(ROOT / "docs").with_suffix(".html") for page in SITE} <= {
        page.relative_to(tmp_path / "site") for page in pages
    }
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=[\"']((?:https?:)?//[^\"']*)",
            page.read_text(),
        )
        assert not loaded, f"{page.name} needs the network: {loaded}"


@pytest.mark.parametrize(
    ("page", "text", "message"),
    [
        ("index.md", "# Home\n\n[dead](nowhere.md)\n", "nowhere"),
        ("index.md", "# Home\n\n[dead](index.md#nowhere)\n", "nowhere"),
        ("lonely.md", "# Lonely\n", "lonely"),
    ],
)
def test_a_mistake_in_the_site_is_an_error(
    tmp_path: Path, page: str, text: str, message: str
) -> None:
    docs = tmp_path / "docs"
    (docs / "_static").mkdir(parents=True)
    (docs / "_static" / "site.css").touch()
    shutil.copy(ROOT / "docs" / "conf.py", docs)
    (docs / "index.md").write_text("# Home\n")
    build_site(docs, tmp_path / "good")
    (docs / page).write_text(text)
    with fails(message):
        build_site(docs, tmp_path / "bad")


def test_scripts_docs_builds_the_site(tmp_path: Path) -> None:
    """Run it in a checkout with a space in its path, with this interpreter."""
    checkout = tmp_path / "a checkout"
    (checkout / "docs").mkdir(parents=True)
    (checkout / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "docs", checkout / "scripts")
    shutil.copy(ROOT / "docs" / "conf.py", checkout / "docs")
    shutil.copytree(ROOT / "docs" / "_static", checkout / "docs" / "_static")
    (checkout / "docs" / "index.md").write_text(
        "# Home\n\n```mermaid\nflowchart LR\n    a --> b\n```\n"
    )
    done = subprocess.run(
        [str(checkout / "scripts" / "docs")],
        cwd=tmp_path,
        env=os.environ | {"PENSTOCK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = checkout / "site" / "index.html"
    assert done.stdout == f"{page}\n"
    assert '<pre class="mermaid">' in page.read_text()
    assert list((checkout / "site" / "_static").glob("mermaid-*.min.js"))


def build_site(docs: Path, site: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    done = subprocess.run(
        [*command, "--doctree-dir", str(site / ".doctrees"), str(docs), str(site)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_contributing_names_every_script() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for script in (ROOT / "scripts").iterdir():
        if script.is_file() and script.name not in ("setup", "gpu_bench"):
            assert f"| `scripts/{script.name}` |" in text, script.name


def test_pages_that_the_code_names_exist() -> None:
    files = [
        path
        for folder in ("app", "pipelines", "backends", "penstock", "tests", "scripts", "examples")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in {"", ".py", ".toml", ".sh"}
    ]
    named = [
        (path, name)
        for path in [*files, ROOT / "Dockerfile", ROOT / "pyproject.toml"]
        for name in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text())
    ]
    assert named
    for path, name in named:
        assert (ROOT / name).exists(), f"{path.relative_to(ROOT)} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_lines_of_prose_are_short(page: Path) -> None:
    """Tables and code have the width that they need."""
    prose = FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), page.read_text())
    long = [
        number
        for number, line in enumerate(prose.splitlines(), 1)
        if len(line) > 120 and not line.startswith("|") and "<!--" not in line
    ]
    assert not long, f"lines of more than 120 characters: {long}"


IMPORT = re.compile(r"^ *(?:from|import) (penstock\.(?!testing\b)[\w.]+)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_examples_import_from_the_public_face(page: Path) -> None:
    for block in blocks_of(page):
        assert not IMPORT.findall(block.text), f"line {block.line}: import from penstock alone"


def test_the_examples_folder_imports_from_the_public_face() -> None:
    files = list((ROOT / "examples").rglob("*.py"))
    assert files
    for file in files:
        assert not IMPORT.findall(file.read_text()), f"{file}: import from penstock alone"


# what docs say of the code


def test_the_tables_of_settings_errors_and_metrics_are_whole() -> None:
    text = (ROOT / "docs" / "reference" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        rows = [
            line
            for line in text.splitlines()
            if line.startswith("| `") and f"`{name}`" in line.split("|")[1]
        ]
        assert len(rows) == 1, f"the setting {name} has no row in docs/reference/settings.md"
        default = str(field.default).lower().removesuffix(".0")
        assert field.default is None or default in rows[0].lower(), name
    text = (ROOT / "docs" / "reference" / "http.md").read_text()
    for code, status in STATUSES.items():
        assert re.search(rf"^\| {status.http} \| .*`{code}`", text, re.MULTILINE), code
    for metric in PipelineCollector(Repository()).collect():
        assert f"`{metric.name}{'_total' if metric.type == 'counter' else ''}`" in text, metric.name


def test_the_metrics_named_as_tritons_are_whole() -> None:
    text = (ROOT / "docs" / "reference" / "open-inference-protocol.md").read_text()
    for metric in TritonCollector(Repository()).collect():
        assert f"`{metric.name}`" in text, metric.name
    for reason in FAILURE_REASONS.values():
        assert f"| {reason} |" in text, reason
    for group in (
        "nv_cpu_",
        "nv_gpu_",
        "nv_pinned_memory_pool_",
        "nv_energy_consumption",
        "nv_model_load_duration_secs",
    ):
        assert f"`{group}" in text, group  # Triton has these; Penstock does not


def test_tables_of_the_configuration_page_are_whole() -> None:
    text = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    ports = [field.alias or name for name, field in PortTable.model_fields.items()]
    for key in (*NODE_KEYS, *STRUCTURE_KEYS, *PipelineTable.model_fields, *ports):
        assert f"`{key}`" in text, key


def test_every_filter_has_a_row_and_so_has_every_spelling() -> None:
    own = {status.value for status in Status} | {"swap", "or", "filter"}
    for page, names in (
        ("reference/filters.md", own),
        ("how-to/torchpipe.md", BUILTIN.keys() - own),
    ):
        rows = [
            line.split("|")[1]
            for line in (ROOT / "docs" / page).read_text().splitlines()
            if line.startswith("| `")
        ]
        for name in names:
            assert any(f"`{name}`" in row for row in rows), (
                f"the filter {name} has no row in docs/{page}"
            )


def test_names_of_the_glossary_are_classes() -> None:
    text = (ROOT / "docs" / "reference" / "glossary.md").read_text()
    rows = [line.split("|")[1] for line in text.split("## Names in the code")[1].splitlines()[4:]]
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    code = [
        path.read_text()
        for package in ("app", "pipelines", "backends")
        for path in (ROOT / package).rglob("*.py")
    ]
    classes = set(re.findall(r"^class (\w+)", "\n".join(code), re.MULTILINE))
    assert names
    assert names <= classes, names - classes


def test_every_backend_is_in_the_reference() -> None:
    text = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    missing = [name for name in BUILTINS if not re.search(rf"\b{name}\b", text)]
    assert not missing


def test_the_page_of_composites_has_their_parameters() -> None:
    text = (ROOT / "docs" / "reference" / "composite.md").read_text()
    for key in {*MapReduceParams.model_fields, *CopySplitParams.model_fields} - {"force_range"}:
        assert f"`{key}`" in text or f"`{key} =" in text, key
