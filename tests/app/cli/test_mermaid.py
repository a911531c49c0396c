"""Pipelines as Mermaid flowcharts, read back by a grammar that is stricter than Mermaid's.

Mermaid itself has drawn the same charts.
"""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from penstock.app.cli.main import command_line
from penstock.app.cli.mermaid import NODE_SHAPES, escaped, flowchart
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import load

LABEL = r'(?:[^"#<>&`%\n]|#\d+;|<br>)+'
KINDS = {opening: kind for kind, (opening, _) in NODE_SHAPES.items()}
NODE = re.compile(
    rf"(n\d+)({'|'.join(re.escape(opening) for opening, _ in NODE_SHAPES.values())})({LABEL})(\W+)"
)
EDGE = re.compile(rf'(n\d+) (==>|-->|-\.->|-\.-|--o)(?:\|"({LABEL})"\|)? (n\d+)')


@register_backend("MermaidStream")
async def stream(item: Item, call: Any) -> AsyncIterator[int]:
    yield 1


def text_of(label: str) -> str:
    """Return a label as Mermaid shows it: it writes `#34;` for `&#34;`."""
    return html.unescape(re.sub(r"#(\d+);", r"&#\1;", label))


def read(chart: str) -> tuple[dict[str, tuple[str, ...]], list[tuple[str, str, str, str]]]:
    """Read the chart of one pipeline.

    Returns its nodes (first line of the label -> kind and other lines), and its edges: (from,
    arrow, label, to).
    """
    first, *lines = chart.splitlines()
    assert first == "flowchart TD"
    names: dict[str, str] = {}
    nodes: dict[str, tuple[str, ...]] = {}
    edges: list[tuple[str, str, str, str]] = []
    for line in lines:
        assert line.startswith("    ")
        if node := NODE.fullmatch(line.strip()):
            identifier, opening, label, closing = node.groups()
            assert identifier not in names and closing == NODE_SHAPES[KINDS[opening]][1]
            names[identifier], *rest = map(text_of, label.split("<br>"))
            nodes[names[identifier]] = (KINDS[opening], *rest)
        else:
            edge = EDGE.fullmatch(line.strip())
            assert edge, line
            origin, arrow, label, target = edge.groups()
            # Nodes come before edges, so both names are known.
            edges.append((names[origin], arrow, text_of(label or ""), names[target]))
    return nodes, edges


def drawn(
    nodes: dict[str, Any],
) -> tuple[dict[str, tuple[str, ...]], list[tuple[str, str, str, str]]]:
    return read(flowchart([load(nodes)]))


def test_a_chain() -> None:
    nodes, edges = drawn(
        {
            "a": {"backend": "S[Identity,Identity]", "instance_num": 2, "max": 4, "next": "b"},
            "b": {"backend": "Identity", "executor": "process"},
        }
    )
    assert nodes == {
        "request": ("request",),
        "a": ("executor", "S[Identity, Identity]", "max 4, 2 instances"),
        "b": ("executor", "Identity", "max 8, 1 instance, in processes"),
    }
    assert edges == [("request", "==>", "", "a"), ("a", "-->", "", "b")]


def test_branches_maps_and_filters() -> None:
    nodes, edges = drawn({
        "a": {"next": "b,c"}, "b": {"next": "d"}, "c": {"filter": "Skip", "next": "d"},
        "d": {"map": "b[result:data],c[data:other,result:more]", "next": "e"},
        "e": {"map": "d[result:data],a[data:first]"},
    })  # fmt: skip
    assert nodes["c"][-1] == "filter: Skip" and not any("filter" in line for line in nodes["d"])
    assert edges[1:] == [
        ("a", "-->", "", "b"),
        ("a", "-->", "", "c"),
        ("b", "-->", "result → data", "d"),
        ("c", "-->", "data → other, result → more", "d"),
        ("d", "-->", "result → data", "e"),
        ("a", "--o", "data → first", "e"),
    ]


def test_jumps() -> None:
    nodes, edges = drawn({
        "jump": {"backend": "Jump", "jump": "each", "next": "end"}, "end": {},
        "each": {"backend": "MapReduce(jump=cut,split=boxes)", "merge": "result,score"},
        "cut": {"backend": "CopySplit", "jump": "work", "split_size": 3}, "work": {},
    })  # fmt: skip
    composites = {name for name, (kind, *_) in nodes.items() if kind == "composite"}
    assert composites == {"jump", "each", "cut"}
    assert nodes["jump"] == ("composite", "Jump")
    assert [edge for edge in edges if edge[1] == "-.->"] == [
        ("jump", "-.->", "jump", "each"),
        ("each", "-.->", "each of boxes, merges result, score", "cut"),
        ("cut", "-.->", "pieces of 3", "work"),
    ]
    assert [edge for edge in edges if edge[0] == "request"] == [("request", "==>", "", "jump")]


def test_logic_and_streams() -> None:
    nodes, _ = drawn({"a": {"backend": "MermaidStream"}})
    assert nodes["a"] == ("logic", "MermaidStream", "streams")


def test_logical_nodes_and_borrowed_ones() -> None:
    nodes, edges = drawn({"a": {"next": "a.2"}, "a.2": {"next": "b"}, "b": {"borrow_from": "a"}})
    assert nodes["a.2"] == nodes["b"] == ("shared",)
    assert [edge for edge in edges if edge[1] == "-.-"] == [
        ("a.2", "-.-", "shares", "a"),
        ("b", "-.-", "shares", "a"),
    ]


def test_entries() -> None:
    graph = {"a": {"next": "b"}, "b": {}, "x": {}}
    _, edges = drawn(graph)
    assert edges[:2] == [
        ("request", "==>", "node_name = a", "a"),
        ("request", "==>", "node_name = x", "x"),
    ]
    _, edges = drawn(graph | {"pipeline": {"entry": "x"}})
    assert edges[:2] == [("request", "==>", "node_name = a", "a"), ("request", "==>", "", "x")]
    _, edges = drawn(graph | {"pipeline": {"entry": "b"}})
    assert ("request", "==>", "", "b") in edges


def test_a_loop() -> None:
    _, edges = drawn({"pipeline": {"loop": True, "max_rounds": 7}, "a": {"next": "b"}, "b": {}})
    assert edges[-1] == ("b", "-.->", "restart, at most 7 rounds", "a")


def test_groups() -> None:
    nodes, _ = drawn({"a": {"backend": "Identity", "max": "1&4", "instance_num": "2&1"}})
    assert nodes["a"] == ("executor", "Identity", "max 1 & 4, 2 & 1 instances")


@pytest.mark.parametrize(
    "text",
    ['"', '"]) end', "#quot;", "<b>; lt;", "`x`", "%%{init: {}}%%", "a|b", "\x1b[31m", "a\nb", "…"],
)
def test_texts_that_mean_something_to_mermaid_are_escaped(text: str) -> None:
    config = load({"each": {"backend": "MapReduce", "jump": "x", "split": text.strip()}, "x": {}})
    _, edges = read(flowchart([config]))
    (edge,) = [edge for edge in edges if edge[1] == "-.->"]
    shown = text.replace("\x1b", "\\x1b").replace("\n", "\\n")
    assert edge[2] == f"each of {shown}, merges result"
    assert text_of(escaped(text)) == shown


def test_names_that_are_words_of_mermaid() -> None:
    nodes, edges = drawn(
        {
            "end": {"next": "subgraph"},
            "subgraph": {"next": "style"},
            "style": {"next": "o"},
            "o": {},
        }
    )
    assert list(nodes) == ["request", "end", "subgraph", "style", "o"] and len(edges) == 4


# the command


def graph(*arguments: Any, **options: Any) -> Result:
    return CliRunner().invoke(command_line, ["graph", *map(str, arguments)], **options)


def test_a_file_a_model_and_standard_input(digits: Path) -> None:
    answer = graph(digits)
    assert answer.exit_code == 0 and not answer.stderr
    nodes, _ = read(answer.stdout)
    assert nodes["digits"][2] == "max 32, 1 instance"
    assert (
        "OnnxTensor"
        in graph(digits.parent / "digits.onnx", "--labels", digits.parent / "labels.txt").stdout
    )
    answer = graph("-", input='[a]\nbackend = "Identity"\n')
    assert read(answer.stdout)[1] == [("request", "==>", "", "a")]


def test_a_directory_is_one_chart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text('[a]\nnext = "b"\n[b]\n')
    first, *lines = graph(tmp_path).stdout.splitlines()
    blocks = "\n".join(line.removeprefix("    ") for line in lines).split("\nend")
    assert first == "flowchart TD" and blocks[2] == ""
    assert [block.strip().splitlines()[0] for block in blocks[:2]] == [
        'subgraph p1["one"]',
        'subgraph p2["two"]',
    ]
    nodes = [line.strip().partition("[")[0] for line in lines if '["a' in line or '["b' in line]
    assert nodes == ["n1", "n2", "n4", "n5"]  # each subgraph has its own
    for block in blocks[:2]:
        assert len(read("\n".join(["flowchart TD", *block.strip().splitlines()[1:]]))[1]) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a", "standard input: not valid TOML"),
        (b"\xff", "standard input: not valid TOML"),
        ('[a]\nbackend = "Identitx"\n', "did you mean 'Identity'?"),
    ],
)
def test_files_that_can_not_be_drawn(text: str | bytes, expected: str) -> None:
    answer = graph("-", input=text)
    assert answer.exit_code == 1 and not answer.stdout and expected in answer.stderr
