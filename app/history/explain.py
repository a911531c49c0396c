"""Why a request took the time that it took: a record as JSON, with the words for people.

All of it is made when somebody asks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeAlias

from penstock.backends.text import encodable
from penstock.pipelines.node.queue import Batch, BatchStart
from penstock.pipelines.node.statistics import covered

from . import words
from .around import Surroundings
from .causes import TOLD_MS, TOLD_PART, Causes, Say
from .record import ItemVisit, Record
from .spans import Span, joined, without

Object: TypeAlias = dict[str, Any]

MAX_MATES = 16
"""The most ids of a batch's other requests that are told."""

LONG_RUN = 2.0
"""A run is long if it took more than this many times what batches there took lately."""


class Explanation:
    """The explanation of one record. Times are whole microseconds from its first byte.

    So the waits of a visit add up to exactly the time that it waited.
    """

    def __init__(self, record: Record, around: Surroundings) -> None:
        self._around = around
        self._record = record
        self._end = max(0, round(record.seconds * 1e6))
        self._causes = Causes()
        self._intervals: list[tuple[int, int]] = []
        # How many of its own items and parts are in a batch.
        self._own = Counter(id(visit.batch) for visit in record.walk())
        self._nodes = list(self._visits())
        self._spans = list(self._outside())

    def head(self) -> Object:
        """Return what the list of requests has."""
        record = self._record
        epoch = time.time() - time.monotonic()  # of the clock that records go by
        return {
            "id": record.id,
            "pipeline": record.pipeline or "",
            "version": record.version or "",
            "door": record.door,
            "status": record.status,
            "outcome": record.outcome,
            "code": encodable(record.code),
            "detail": encodable(record.detail),
            "time": _iso(epoch + record.started),
            "ms": self._end / 1000,
            "slow": record.slow,
            "usual_ms": round(record.usual * 1000, 3) or None,
            "rows": record.rows,
            "answered_from": record.answered_from,
            "joined": record.joined,
            "summary": self._summary(),
        }

    def story(self) -> Object:
        """Return all that is known."""
        return {**self.head(), "spans": self._spans, "nodes": self._nodes}

    def _at(self, seconds: float) -> int:
        """Return a time of the record, which lies between its begin and its end."""
        return min(max(round((seconds - self._record.started) * 1e6), 0), self._end)

    # nodes

    def _visits(self) -> Iterator[Object]:
        """Yield the visits of nodes, those of parts after the composite's that sent them."""
        position = 0
        visits = sorted(self._record.visits, key=_order)
        waiting: list[tuple[ItemVisit, int | None]] = [(visit, None) for visit in visits[::-1]]
        while waiting:
            visit, parent = waiting.pop()
            yield self._visit(visit, parent)
            batch = visit.batch
            if batch is not None and batch.parts is not None:
                parts = [
                    ItemVisit(part, visit.node, *passed)
                    for part, visits in batch.parts
                    for passed in visits
                ]
                waiting += [(part, position) for part in reversed(parts)]
            position += 1

    def _visit(self, visit: ItemVisit, parent: int | None) -> Object:
        batch = visit.batch
        queued = self._at(visit.enqueued)
        base: Object = {
            "node": visit.node,
            "item": visit.item,
            "part_of": parent,
            "queued_at_ms": queued / 1000,
        }
        if batch is None:
            return base | self._unfinished(visit, queued)
        started = max(queued, self._at(batch.started))
        runs_on = self._runs_on(batch)
        ended = self._ended(batch, started)
        self._intervals.append((queued, ended))
        waited, ran = (started - queued) / 1000, (ended - started) / 1000
        start = batch.start
        waits: list[Object] = []
        for why, spans, text in self._waits(visit, start, queued, started):
            say = partial(words.waited, visit.node, text)
            length = sum(end - begin for begin, end in spans) / 1000
            waits.append({"why": why, "ms": length, "words": say(words.time_text(length))})
            for begin, end in spans:
                self._causes.add(why, visit.node, begin, end, say)
        told = self._run(visit, batch, started, ended)
        if waited >= TOLD_MS:
            told = f"waited {words.time_text(waited)}, then {told}"
        if runs_on:
            told = f"{told}, and ran on when the request ended"
            self._causes.add("end", visit.node, started, ended, partial(words.ran_on, visit.node))
        return base | {
            "started_at_ms": started / 1000,
            "ended_at_ms": ended / 1000,
            "waited_ms": waited,
            "ran_ms": ran,
            "instance": "" if start is None else start.executor,
            "device": "" if start is None else start.device,
            "batch": None if start is None else self._batch(batch, start),
            "waits": waits,
            "pieces": [
                {"name": name, "ms": round(max(0.0, seconds) * 1000, 3)}
                for name, seconds in batch.pieces
            ],
            "words": told,
        }

    def _unfinished(self, visit: ItemVisit, queued: int) -> Object:
        """Describe a visit of a node where the item queued when the request ended."""
        self._intervals.append((queued, self._end))
        there = (self._end - queued) / 1000
        before = self._around.before(self._record, visit)
        why = "instance" if before is None else "order"
        rows = 0 if before is None else before.rows
        ran = self._around.meanwhile(self._record, visit)
        say = partial(words.unfinished, visit.node, rows, len(ran), covered(ran) * 1000)
        self._causes.add("queued", visit.node, queued, self._end, say)
        sentence = say(words.time_text(there))
        return {
            "started_at_ms": None,
            "ended_at_ms": None,
            "waited_ms": there,
            "ran_ms": 0.0,
            "instance": "",
            "device": "",
            "batch": None,
            "waits": [{"why": why, "ms": there, "words": sentence}] if there else [],
            "pieces": [],
            "words": f"waited {words.time_text(there)}, until the request ended",
        }

    def _runs_on(self, batch: Batch) -> bool:
        """Return whether a batch ran on when the request ended. It may have no end yet."""
        return batch.executor is not None or batch.ended > self._record.ended

    def _ended(self, batch: Batch, started: int) -> int:
        return self._end if self._runs_on(batch) else max(started, self._at(batch.ended))

    def _waits(
        self, visit: ItemVisit, start: BatchStart | None, queued: int, started: int
    ) -> Iterator[tuple[str, list[Span], str]]:
        """Yield what the item waited for, with the spans of time and the words.

        Each cause takes the time from the end of the one before until it was over, but for the time
        in which rule 9 held the node.
        """
        if start is None:
            if started > queued:
                yield "instance", [(queued, started)], words.QUEUED
            return
        instances = start.running + start.idle + 1
        timeout_ms = start.batching_timeout * 1000
        free, decided = self._at(start.freed), self._at(start.decided)
        before = self._around.before(self._record, visit)
        ends: list[tuple[str, int, str]] = []
        # While another one is idle on the same device, the item waits for the device (rule 2).
        held_back = timeout_ms > 0 and start.device != "" and start.idle > 0
        if not held_back:
            instance = words.for_instance(_number(start.executor), start.running, instances)
            ends.append(("instance", free if before is None else self._at(before.free), instance))
            if before is not None:
                ends.append(("order", free, words.behind(before.rows)))
        if timeout_ms > 0 and (start.shared or held_back):
            ends.append(("batching", decided, words.for_more_items(timeout_ms)))
        ends.append(("loop", started, words.for_loop()))
        holds = [start.held, *(() if before is None else before.held)]
        held = joined(
            (max(queued, self._at(hold[0])), min(started, self._at(hold[1])))
            for hold in holds
            if hold is not None
        )
        at = queued
        for why, until, text in ends:
            end = min(until, started)
            if end > at:
                if spans := without(at, end, held):
                    yield why, spans, text
                at = end
        if held:
            yield "downstream", held, words.for_downstream()

    def _run(self, visit: ItemVisit, batch: Batch, started: int, ended: int) -> str:
        """Note what is to be told of a run, and return the words for it."""
        node, start = visit.node, batch.start
        ran = (ended - started) / 1000
        if start is None:
            return self._composite(node, batch, started, ended)
        mine = self._own[id(batch)]
        mates = len(self._around.mates(self._record, batch))
        # Those that are still on their way, or forgotten, are not known.
        together = words.in_batch(batch.size, mates if mates + mine == batch.size else None)
        self._causes.add_run(node, started, ended, partial(words.ran, node, together))
        if batch.alone is not None:
            say = partial(words.ran_again, node, batch.size)
            self._causes.add("again", node, started, ended, say)
        elif start.usual > 0 and ran > LONG_RUN * start.usual * 1000:
            say = partial(words.ran_long, node, together, start.usual * 1000)
            self._causes.add("long", node, started, ended, say)
        return f"ran {words.time_text(ran)} {together}"

    def _composite(self, node: str, batch: Batch, started: int, ended: int) -> str:
        """Do the same for a composite, whose time is that of its parts, if it has some."""
        took = (ended - started) / 1000
        parts = 0 if batch.parts is None else len(batch.parts) + batch.more_parts
        text = f"took {words.time_text(took)}"
        if batch.parts is None or not parts:
            self._causes.add_run(node, started, ended, partial(words.ran, node, ""))
            return text
        at_nodes = [
            (
                self._at(part.enqueued),
                self._end if part.batch is None else self._ended(part.batch, 0),
            )
            for _, visits in batch.parts
            for part in visits
        ]
        between = took - covered(at_nodes) / 1000
        told = not batch.more_parts and between >= max(TOLD_MS, TOLD_PART * took)
        say = partial(words.took, node, parts, between if told else 0.0)
        self._causes.add("parts", node, started, ended, say)
        return f"{text} for its {words.count_text(parts, 'part')}"

    def _batch(self, batch: Batch, start: BatchStart) -> Object:
        mates = self._around.mates(self._record, batch)
        rule = words.rule_words(start.rule, start.batching_timeout * 1000)
        if batch.size == start.limit < start.max:
            rule = f"{rule} {words.bounded(start.limit, start.max)}"
        return {
            "rows": batch.size,
            "max": start.max,
            "rule": start.rule,
            "rule_words": rule,
            "mates": mates[:MAX_MATES],
            "more_mates": max(0, len(mates) - MAX_MATES),
            "left_queued": start.left,
        }

    # outside of nodes

    def _outside(self) -> Iterator[Object]:
        """Yield the time before the first node, between nodes and after the last one."""
        if cached := self._cached():
            text = cached(words.time_text(self._end / 1000))
            yield {"name": "answer", "start_ms": 0.0, "end_ms": self._end / 1000, "words": text}
            return
        at = 0
        if self._record.turn is not None:
            begun, at = map(self._at, self._record.turn)
            if begun:
                yield self._span("receive", 0, begun, words.received)
            yield self._span("turn", begun, at, words.for_turn)
        for number, (start, end) in enumerate(sorted(self._intervals)):
            if start > at:
                if not number and not at:
                    yield self._span("receive", at, start, words.received)
                elif start - at >= TOLD_MS * 1000:
                    yield self._span("between", at, start, words.between)
            at = max(at, end)
        if not self._intervals and not at:
            yield self._span("receive", 0, self._end, words.no_node)
        elif self._end > at:
            good = self._record.outcome == "ok"
            yield self._span("answer", at, self._end, words.answered if good else words.ended_after)

    def _span(self, name: str, start: int, end: int, say: Say) -> Object:
        self._causes.add(name, "", start, end, say)
        text = say(words.time_text((end - start) / 1000))
        return {"name": name, "start_ms": start / 1000, "end_ms": end / 1000, "words": text}

    # in words

    def _summary(self) -> list[str]:
        """Say how it ended unless it was answered well, and why it took so long."""
        record, whole = self._record, self._end / 1000
        told = self._ending()
        if cached := self._cached():
            return [*told, cached(words.time_text(whole))]
        ended = record.outcome != "ok"
        told += self._causes.told(whole, slow=record.slow or ended, ended=ended)
        if not told:
            run = self._causes.longest_run
            node, ran = ("", 0.0) if run is None else (run.node, run.ms)
            told.append(words.nothing_waited(whole, node, ran))
        if more := record.more_visits + record.more_parts:
            told.append(words.not_remembered(more))
        return told

    def _cached(self) -> Say | None:
        """Return what says that the cache answered, or an equal request; None if none did."""
        record = self._record
        if record.joined:
            return partial(words.joined, encodable(record.joined), bool(record.answered_from))
        return partial(words.cached, record.answered_from) if record.answered_from else None

    def _ending(self) -> list[str]:
        record = self._record
        outcome, code, detail = record.outcome, encodable(record.code), encodable(record.detail)
        if outcome == "ok":
            return []
        if outcome == "refused":
            return [words.refused(code, detail)]
        if outcome == "expired":
            return [words.expired(detail)]
        if outcome == "left":
            return [words.left(self._end / 1000)]
        if outcome == "bad input":
            return [words.bad_input(code, detail)]
        return [words.failed(code, detail, record.status < 400)]


def _order(visit: ItemVisit) -> tuple[int, float]:
    """Sort the visits of each item as it came to them: a stream is noted when it has ended."""
    return visit.item, visit.enqueued


def _number(executor: str) -> int | None:
    """Return the number of an instance from its name, as ocr/net#1."""
    number = executor.rpartition("#")[2]
    return int(number) if number.isdecimal() else None


def _iso(seconds: float) -> str:
    """Write a time as in the log: 2026-11-30T10:00:00.123Z."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
