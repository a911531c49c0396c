"""The steps of a trace as an indented text: what `penstock call --trace` prints, of a file here or of a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from penstock.pipelines.runs.trace import Step

SILENT = {("swap", "Run"), ("Run", "Run")}
"""What a default filter says nearly always."""


def lines(steps: Iterable[Step]) -> Iterator[str]:
    """A line a node, and below it what came in, what its members did, its parts, and what it left."""
    for line in _lines(steps):
        yield printable(line)


def _lines(steps: Iterable[Step]) -> Iterator[str]:
    for step in steps:
        yield f"{step['node']}{': ' if (said := _said(step)) else ''}{said}"
        below = [_values("in", step.get("in", step.get("keys")))] if _should_run(step) else []
        width = max(
            (2 * each["depth"] + len(each["backend"]) for each in step.get("members", ())),
            default=0,
        )
        below += [_member(member, width) for member in step.get("members", ())]
        below += _nested("part", step.get("parts", ()), step.get("more_parts", 0))
        below += _nested("yield", step.get("yields", ()), step.get("more_yields", 0))
        if "out" in step or "left" in step or "error" in step:
            below.append(f"{_values('out', step.get('out', step.get('left')))}{_failed(step)}")
        for line in below:
            yield f"    {line}"


def _said(step: Step) -> str:
    """What the filter said, and how long it queued and ran."""
    facts = []
    if "filter" in step and (step["filter"], step["status"]) not in SILENT:
        facts.append(
            f"{step['filter']} says {step['status']}"
            + (f" ({step['reason']})" if "reason" in step else "")
        )
    elif "filter" not in step and "status" in step:
        facts.append(step["status"])
    if "run_ms" in step:
        facts.append(
            f"queue {step['queue_ms']:.3f} ms, run {step['run_ms']:.3f} ms, batch {step['batch']}"
        )
    elif _should_run(step):
        facts.append("dropped before it was through")
    if "note" in step:
        facts.append(step["note"])
    return ", ".join(facts)


def _should_run(step: Step) -> bool:
    return "status" not in step or step["status"] == "Run"


def _member(member: Step, width: int) -> str:
    name = f"{'  ' * (member['depth'] - 1)}{member['backend']}".ljust(width)
    milliseconds = f"{member['ms']:.3f} ms"
    return f"{name}{milliseconds:>10}  {_listed(member['out'])}{_failed(member)}"


def _failed(step: Step) -> str:
    if "error" not in step or (
        "out" in step and "left" in step
    ):  # a soft failure's is among what it left
        return ""
    return f" ({step['error']})" if "left" in step else f" raised {step['error']}"


def _nested(kind: str, runs: Sequence[Iterable[Step]], more: int) -> Iterator[str]:
    for number, steps in enumerate(runs, 1):
        yield f"{kind} {number} of {len(runs) + more}"
        for line in _lines(steps):
            yield f"    {line}"
    if more:
        yield f"… and {more} more"


def _values(name: str, values: Mapping[str, str] | Iterable[str] | None) -> str:
    return f"{name}: {_listed(values or ())}".rstrip()


def _listed(values: Mapping[str, str] | Iterable[str]) -> str:
    """Keys with what is there, or keys alone where only these are known."""
    return (
        ", ".join(f"{key}: {value}" for key, value in values.items())
        if isinstance(values, Mapping)
        else ", ".join(values)
    )


def printable(text: str) -> str:
    """Without what would steer a terminal: a client's text may be in a key or an error."""
    return (
        text
        if text.isprintable()
        else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    )
