"""Triton's trace files: JSON of timestamps and tensors, which its trace_summary.py reads.

A request to a pipeline of one node is one trace, as that of a plain model. Any other one is a trace
like that of an ensemble, with a trace for each node that an item passed, whose `parent_id` it is.

With `log_frequency` or `trace_count`, traces are collected, and written to `FILE.0`, `FILE.1` and
so on when there are enough. Otherwise they are written to FILE as they come, which is whole JSON
after each write.
"""

from __future__ import annotations

import csv
import io
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from penstock.backends.text import encodable
from penstock.pipelines.node.queue import Batch

from ..history.record import ItemVisit, Record
from .trace_settings import Sampler
from .tracing import Ended

logger = logging.getLogger("penstock.trace")

MAX_BUFFERED_BYTES = 4 << 20
"""Traces of more bytes are written, however many more were to be written with them."""


class TraceFiles:
    """Writes traces. All is done on one thread at a time.

    `path` is FILE. `written` and `dropped` count traces.
    """

    def __init__(self, path: Path) -> None:
        self.written = 0
        self.dropped = 0
        self._path = path
        self._index = 0
        self._begun = False  # FILE has a trace
        self._failed = False  # and that is logged
        self._samplers: dict[int, Sampler] = {}  # those with something collected

    def take(self, ended: Sequence[Ended | Sampler]) -> None:
        """Write traces, and what is collected of settings that are replaced."""
        together: list[str] = []
        size = 0
        for one in ended:
            if isinstance(one, Sampler):
                continue
            sampler = one.traced.sampler
            sampler.collected += 1
            text = trace_text(one)
            if sampler.values.log_frequency or sampler.values.trace_count >= 0:
                self._collect(sampler, text)
            else:
                together.append(text)
                size += len(text)
                if size > MAX_BUFFERED_BYTES:
                    self._append(together)
                    together, size = [], 0
        if together:
            self._append(together)
        for sampler in [one for one in self._samplers.values() if one.replaced]:
            self._end(sampler)

    def _collect(self, sampler: Sampler, text: str) -> None:
        buffered = sampler.buffered
        buffered.append(text)
        self._samplers[id(sampler)] = sampler
        frequency = sampler.values.log_frequency
        if (
            (frequency and len(buffered) >= frequency)
            or (sampler.exhausted and sampler.collected >= sampler.begun)
            or sum(map(len, buffered)) > MAX_BUFFERED_BYTES
        ):
            self._write_collected(sampler)

    def _write_collected(self, sampler: Sampler) -> None:
        self._samplers.pop(id(sampler), None)
        texts, sampler.buffered = sampler.buffered, []
        path = self._path.with_name(f"{self._path.name}.{self._index}")
        self._index += 1
        part = path.with_name(f"{path.name}.part")
        try:
            part.write_text(f"[{','.join(texts)}]")
            part.replace(path)  # so that a reader finds all of it
        except OSError as error:
            self._lose(len(texts), path, error)
        else:
            self.written += len(texts)

    def _append(self, texts: list[str]) -> None:
        content = ",".join(texts).encode()
        try:
            if not self._begun:
                self._path.write_bytes(b"[%b]" % content)
                self._begun = True
            else:
                with self._path.open("r+b") as file:
                    file.seek(-1, os.SEEK_END)  # before the "]"
                    file.write(b",%b]" % content)
        except OSError as error:
            self._lose(len(texts), self._path, error)
        else:
            self.written += len(texts)

    def _lose(self, count: int, path: Path, error: OSError) -> None:
        self.dropped += count
        if not self._failed:
            self._failed = True
            logger.error("the trace file %s can't be written: %s", path, error.strerror)

    def lose(self, count: int) -> None:
        self.dropped += count

    def hurry(self) -> None:
        """Do nothing: a file makes no one wait for long."""

    def close(self, timeout: float) -> None:
        """Write what is collected."""
        for sampler in list(self._samplers.values()):
            self._end(sampler)

    def _end(self, sampler: Sampler) -> None:
        """Write what is collected of settings that end, even if it is not as much as they ask."""
        if sampler.values.log_frequency or sampler.exhausted:
            self._write_collected(sampler)
        else:
            self._samplers.pop(id(sampler), None)
            texts, sampler.buffered = sampler.buffered, []
            self._append(texts)


def trace_text(ended: Ended) -> str:
    """Return the JSON objects of one request, separated by commas."""
    return ",".join(
        encodable(orjson.dumps(entry, default=str).decode()) for entry in _entries(ended)
    )


def _entries(ended: Ended) -> Iterator[dict[str, Any]]:
    traced, record = ended.traced, ended.record
    number = traced.number
    visits = list(record.walk())
    whole = visits[0] if len(visits) == 1 and not record.more_visits else None
    yield _head(number, record.pipeline or "", record)
    begun = min((visit.enqueued for visit in record.visits), default=record.ended)
    ends = [visit.batch.ended for visit in visits if visit.batch is not None]
    done = min(max(ends, default=begun), record.ended)
    grpc = record.door == "grpc"
    if grpc:
        yield _stamp(number, "GRPC_WAITREAD_START", record.started)
        yield _stamp(number, "GRPC_WAITREAD_END", record.started)
    else:
        yield _stamp(number, "HTTP_RECV_START", record.started)
        yield _stamp(number, "HTTP_RECV_END", begun)
    yield _stamp(number, "REQUEST_START", begun)
    if whole is not None:
        yield from _run(number, whole, record)
    else:
        yield from _children(number, record)
    for activity, name, datatype, array in traced.tensors:
        yield {"id": number, "activity": activity, "tensor": _tensor(name, datatype, array)}
    yield _stamp(number, "INFER_RESPONSE_COMPLETE", done)
    yield _stamp(number, "REQUEST_END", done)
    protocol = "GRPC" if grpc else "HTTP"
    yield _stamp(number, f"{protocol}_SEND_START", done)
    yield _stamp(number, f"{protocol}_SEND_END", record.ended)


def _head(number: int, name: str, record: Record, parent: int = 0) -> dict[str, Any]:
    version = record.version or ""
    head: dict[str, Any] = {
        "id": number,
        "model_name": encodable(name),
        "model_version": int(version) if version.isdecimal() and len(version) < 19 else -1,
    }
    if record.id:
        head["request_id"] = encodable(record.id)
    if parent:
        head["parent_id"] = parent
    return head


def _stamp(number: int, name: str, seconds: float) -> dict[str, Any]:
    return {"id": number, "timestamps": [{"name": name, "ns": round(seconds * 1e9)}]}


def _run(number: int, visit: ItemVisit, record: Record) -> Iterator[dict[str, Any]]:
    """Yield the timestamps of a queue and a run. An unfinished one has ended with its request."""
    yield _stamp(number, "QUEUE_START", visit.enqueued)
    batch = visit.batch
    if batch is None:
        return
    ended = _end(batch, record)
    started = min(max(batch.started, visit.enqueued), ended)
    # A backend copies its inputs and outputs in its run: they have no time of their own.
    yield _stamp(number, "COMPUTE_START", started)
    yield _stamp(number, "COMPUTE_INPUT_END", started)
    yield _stamp(number, "COMPUTE_OUTPUT_START", ended)
    yield _stamp(number, "COMPUTE_END", ended)


def _end(batch: Batch, record: Record) -> float:
    """Return when a batch ended, for this request. One that runs on has no end yet."""
    return record.ended if batch.executor is not None else min(batch.ended, record.ended)


def _children(number: int, record: Record) -> Iterator[dict[str, Any]]:
    """Yield a trace for each visit of a node, those of parts as children of their composite's."""
    waiting = [(number, visit) for visit in reversed(record.visits)]
    while waiting:
        parent, visit = waiting.pop()
        child = next(_child_numbers)
        yield _head(child, visit.node, record, parent)
        yield _stamp(child, "REQUEST_START", visit.enqueued)
        batch = visit.batch
        if batch is not None and batch.start is None:  # a composite: its time is that of its parts
            waiting += [
                (child, ItemVisit(part, visit.node, *passed))
                for part, passed_by in reversed(batch.parts or ())
                for passed in reversed(passed_by)
            ]
        else:
            yield from _run(child, visit, record)
        ended = record.ended if batch is None else _end(batch, record)
        yield _stamp(child, "REQUEST_END", max(ended, visit.enqueued))


# trace_summary.py sorts by id, and must meet a request before its nodes. Requests count from 1 on.
_child_numbers = itertools.count(1 << 40)


def _tensor(name: str, datatype: str, array: Any) -> dict[str, str]:
    """Return a tensor as text."""
    values: Iterable[Any] = array.reshape(-1).tolist()
    if array.dtype.kind in {"O", "S", "U"}:
        data = _quoted(values)
    elif array.dtype.kind == "b":
        data = ",".join("1" if value else "0" for value in values)
    else:
        data = ",".join(map(str, values))
    shape = ",".join(map(str, array.shape or (1,)))
    return {"name": encodable(name), "data": data, "shape": shape, "dtype": datatype}


def _quoted(values: Iterable[Any]) -> str:
    """Write texts as one row of CSV, each in quotes."""
    row = io.StringIO()
    texts = [
        value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
        for value in values
    ]
    csv.writer(row, quoting=csv.QUOTE_ALL, lineterminator="").writerow(map(encodable, texts))
    return row.getvalue()
