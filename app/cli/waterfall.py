"""Write what `GET /requests` answers as text for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import typer

from .output import printable

WIDTH = 80
NAME_CHARACTERS = 16
BAR_CELLS = 34
MAX_ROWS = 40
"""The most visits of nodes that are drawn."""


class Stretch(NamedTuple):
    """A part of a bar, in milliseconds from the request's first byte."""

    kind: str
    start: float
    end: float


STYLES = {"wait": "yellow", "run": "green", "wire": "cyan"}
BLOCKS = {"wait": "░", "run": "█", "wire": "▒"}
BEFORE_NODES = ("receive", "turn")
"""The spans of time before a request comes to its first node."""

LETTERS = {"wait": ".", "run": "#", "wire": "="}
LEGEND = {"wait": "waits", "run": "runs", "wire": "reads or writes"}


def describe_request(
    document: Mapping[str, Any], *, styled: bool = False, blocks: bool = True
) -> Iterator[str]:
    """Yield the lines for one request: its head, its waterfall and why it took so long.

    `styled`: with colours. `blocks`: bars are drawn with block characters, else in ASCII.
    """
    yield from _wrapped(_head(document))
    yield from _wrapped(f"{document['time']}, {_door(document)}")
    yield ""
    whole = float(document["ms"])
    draw = _Bars(whole, styled=styled, blocks=blocks)
    visits: Sequence[Mapping[str, Any]] = document["nodes"]
    spans = document["spans"]
    yield draw.scale()
    for span in spans:
        if span["name"] in BEFORE_NODES:
            yield draw.span(span)
    for visit in visits[:MAX_ROWS]:
        yield draw.visit(visit, _depth(visit, visits))
    if len(visits) > MAX_ROWS:
        yield f"and {len(visits) - MAX_ROWS} more: --json has all of them"
    for span in spans:
        if span["name"] not in BEFORE_NODES:
            yield draw.span(span)
    yield draw.legend()
    yield ""
    for text in document["summary"]:
        yield from _wrapped(text)
    yield from _mates(visits)


def describe_list(
    document: Mapping[str, Any], *, styled: bool = False, blocks: bool = True
) -> Iterator[str]:
    """Yield the lines for the last slow and failed requests, two for each."""
    remembered = document["remembered"]
    known = "1 request is" if remembered == 1 else f"{remembered} requests are"
    requests: Sequence[Mapping[str, Any]] = document["requests"]
    for request in requests:
        head = f"{request['time']}  {request['status']}  {_time(request['ms']):>8}"
        line = printable(f"{head}  {request['pipeline'] or '-'}  {request['id']}")
        yield typer.style(line, bold=True) if styled else line
        for text in request["summary"][:1]:
            yield from _wrapped(text, "    ")
    if requests:
        yield ""
        yield from _wrapped(f"penstock why ID tells more of one. {known} remembered.")
    else:
        yield from _wrapped(f"No request was slow or failed. {known} remembered.")


class _Bars:
    """Draws bars of `BAR_CELLS` cells for a request of `whole` milliseconds."""

    def __init__(self, whole: float, *, styled: bool, blocks: bool) -> None:
        self._whole = max(whole, 1e-6)
        self._styled = styled
        self._cells = BLOCKS if blocks else LETTERS
        self._ellipsis = "…" if blocks else "~"

    def scale(self) -> str:
        end = _time(self._whole)
        return f"{' ' * NAME_CHARACTERS} 0{end:>{BAR_CELLS - 1}}"

    def legend(self) -> str:
        shown = "  ".join(f"{self._cell(kind, 1)} {text}" for kind, text in LEGEND.items())
        return f"{' ' * NAME_CHARACTERS} {shown}"

    def span(self, span: Mapping[str, Any]) -> str:
        start, end = float(span["start_ms"]), float(span["end_ms"])
        names = {"receive": "(body)", "answer": "(answer)"}
        name = names.get(span["name"], f"({span['name']})")
        kind = "wait" if span["name"] == "turn" else "wire"
        return self._line(name, [Stretch(kind, start, end)], _time(end - start))

    def visit(self, visit: Mapping[str, Any], depth: int) -> str:
        queued = float(visit["queued_at_ms"])
        started, ended = visit["started_at_ms"], visit["ended_at_ms"]
        item = visit["item"]
        name = f"{'  ' * depth}{visit['node']}{f' {item + 1}' if item else ''}"
        if started is None:
            stretches = [Stretch("wait", queued, queued + float(visit["waited_ms"]))]
            return self._line(name, stretches, f"waited {_time(visit['waited_ms'])}")
        stretches = [
            Stretch("wait", queued, float(started)),
            Stretch("run", float(started), self._whole if ended is None else float(ended)),
        ]
        figures = f"waited {_time(visit['waited_ms'])}, ran {_time(visit['ran_ms'])}"
        return self._line(name, stretches, figures)

    def _line(self, name: str, stretches: Sequence[Stretch], figures: str) -> str:
        name = printable(name)
        if len(name) > NAME_CHARACTERS:
            name = f"{name[: NAME_CHARACTERS - 1]}{self._ellipsis}"
        return f"{name:<{NAME_CHARACTERS}} {self._bar(stretches)} {figures}"

    def _bar(self, stretches: Sequence[Stretch]) -> str:
        """Draw stretches of time. Each has at least one cell; a later one covers an earlier one."""
        kinds = [""] * BAR_CELLS
        for kind, start, end in stretches:
            if end <= start:
                continue
            first = self._index(start)
            last = max(first, self._index(end, last=True))
            for cell in range(first, last + 1):
                kinds[cell] = kind
        drawn = ""
        cell = 0
        while cell < BAR_CELLS:
            end = cell + 1
            while end < BAR_CELLS and kinds[end] == kinds[cell]:
                end += 1
            drawn += self._cell(kinds[cell], end - cell)
            cell = end
        return drawn

    def _index(self, time: float, *, last: bool = False) -> int:
        """Return the cell in which a stretch begins, or the last one that it covers by half."""
        position = time / self._whole * BAR_CELLS
        cell = int(position - 0.5) if last else int(position)
        return min(max(cell, 0), BAR_CELLS - 1)

    def _cell(self, kind: str, count: int) -> str:
        if not kind:
            return " " * count
        text = self._cells[kind] * count
        return typer.style(text, fg=STYLES[kind]) if self._styled else text


def _depth(visit: Mapping[str, Any], visits: Sequence[Mapping[str, Any]]) -> int:
    """Return how many visits this one is a part of, one inside the other."""
    depth = 0
    while visit["part_of"] is not None and depth < 4:
        visit = visits[visit["part_of"]]
        depth += 1
    return depth


def _head(document: Mapping[str, Any]) -> str:
    version = f", version {document['version']}" if document["version"] else ""
    pipeline = (
        f"pipeline {document['pipeline']}{version}" if document["pipeline"] else "no pipeline"
    )
    usual = document["usual_ms"]
    slow = "slow: " if document["slow"] else ""
    compared = f" ({slow}usually {_time(usual)})" if usual is not None else ""
    return (
        f"{document['id']}: {document['outcome']}, status {document['status']}, in "
        f"{_time(document['ms'])}{compared}, {pipeline}"
    )


def _door(document: Mapping[str, Any]) -> str:
    ways = {
        "predict": "at /predict",
        "batch": "at /predict/…/batch",
        "v2": "at /v2",
        "grpc": "over gRPC",
        "generate": "at /v2/…/generate",
        "stream": "at /predict, with a streamed body or answer",
        "socket": "by WebSocket",
    }
    return ways.get(document["door"], str(document["door"]))


def _mates(visits: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the ids of the requests that shared a batch, once for all nodes where they did."""
    nodes: dict[str, dict[str, None]] = {}
    for visit in visits:
        batch = visit["batch"]
        if batch and batch["mates"]:
            ids = ", ".join(batch["mates"])
            more = f" and {batch['more_mates']} more" if batch["more_mates"] else ""
            nodes.setdefault(f"{ids}{more}", {})[visit["node"]] = None
    for ids, names in nodes.items():
        yield from _wrapped(f"In its batch at {', '.join(names)}: {ids}.")


def _time(ms: float | None) -> str:
    """Write milliseconds: 0.04 ms, 11.2 ms, 312 ms, 1.25 s."""
    if ms is None:
        return "-"
    if ms < 0.995:
        return f"{ms:.2f} ms"
    if ms < 99.95:
        return f"{ms:.1f} ms"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    return f"{ms / 1000:.3g} s" if ms < 99_950 else f"{ms / 1000:.0f} s"


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        printable(text),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_on_hyphens=False,
    )
