"""Why a request took the time that it took: a record as JSON, with the words for people.

All of it is made when somebody asks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

from penstock.backends.text import encodable
from penstock.pipelines.node.queue import Batch, BatchStart

from . import words
from .around import Surroundings
from .record import ItemVisit, Record

Object: TypeAlias = dict[str, Any]

MAX_MATES = 16
"""The most ids of a batch's other requests that are told."""

MAX_SENTENCES = 8
"""The most sentences of a summary."""

TOLD_PART = 0.05
TOLD_MS = 0.5
"""A cause is told if it took this part of the request's time, and as long as this."""

LONG_RUN = 2.0
"""A run is long if it took more than this many times what batches there took lately."""


class Cause(NamedTuple):
    """Something that took time. `key`: causes of one key are told once, by the longest of them."""

    ms: float
    key: tuple[str, str]
    words: str


class Explanation:
    """The explanation of one record. Times are whole microseconds from its first byte.

    So the waits of a visit add up to exactly the time that it waited.
    """

    def __init__(self, record: Record, around: Surroundings) -> None:
        self._around = around
        self._record = record
        self._end = max(0, round(record.seconds * 1e6))
        self._causes: list[Cause] = []
        self._ran: list[Cause] = []
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
        # A batch that has not been delivered may have no end yet.
        runs_on = batch.executor is not None or batch.ended > self._record.ended
        ended = self._end if runs_on else max(started, self._at(batch.ended))
        self._intervals.append((queued, ended))
        waited, ran = (started - queued) / 1000, (ended - started) / 1000
        start = batch.start
        waits: list[Object] = []
        for why, length, text in self._waits(visit, start, queued, started):
            sentence = f"Waited {words.time_text(length / 1000)} at node {visit.node} {text}."
            waits.append({"why": why, "ms": length / 1000, "words": sentence})
            self._causes.append(Cause(length / 1000, (visit.node, why), sentence))
        told = self._run(visit, batch, ran, waited)
        if runs_on:
            told = f"{told}, and ran on when the request ended"
            self._causes.append(Cause(ran, (visit.node, "end"), words.ran_on(visit.node, ran)))
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
        sentence = words.unfinished(visit.node, there, 0 if before is None else before[0])
        self._causes.append(Cause(there, (visit.node, "end"), sentence))
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

    def _waits(
        self, visit: ItemVisit, start: BatchStart | None, queued: int, started: int
    ) -> Iterator[tuple[str, int, str]]:
        """Yield what the item waited for, in order, with the time of each.

        Each cause takes the time from the end of the one before until it was over.
        """
        if start is None:
            if started > queued:
                yield "instance", started - queued, words.QUEUED
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
            ends.append(("instance", free if before is None else self._at(before[1]), instance))
            if before is not None:
                ends.append(("order", free, words.behind(before[0])))
        if start.held is not None:
            ends.append(("loop", self._at(start.held[0]), words.for_loop()))
            ends.append(("downstream", self._at(start.held[1]), words.for_downstream()))
        if timeout_ms > 0 and (start.shared or held_back):
            ends.append(("batching", decided, words.for_more_items(timeout_ms)))
        ends.append(("loop", started, words.for_loop()))
        at = queued
        for why, until, text in ends:
            end = min(until, started)
            if end > at:
                yield why, end - at, text
                at = end

    def _run(self, visit: ItemVisit, batch: Batch, ran: float, waited: float) -> str:
        """Note what is to be told of a run. Return the words for the whole visit."""
        node, start = visit.node, batch.start
        mine = self._own[id(batch)]
        mates = len(self._around.mates(self._record, batch))
        # Those that are still on their way, or forgotten, are not known.
        together = words.in_batch(batch.size, mates if mates + mine == batch.size else None)
        text = f"ran {words.time_text(ran)} {together}"
        if start is None:
            parts = 0 if batch.parts is None else len(batch.parts) + batch.more_parts
            text = f"took {words.time_text(ran)}"
            if parts:
                text += f" for its {words.count_text(parts, 'part')}"
            else:  # nothing else says where its time went
                self._ran.append(Cause(ran, (node, "run"), words.ran(node, ran, "")))
            return text
        self._ran.append(Cause(ran, (node, "run"), words.ran(node, ran, together)))
        if batch.alone is not None:
            sentence = words.ran_again(node, batch.size)
            self._causes.append(Cause(ran, (node, "again"), sentence))
        elif start.usual > 0 and ran > LONG_RUN * start.usual * 1000:
            usual = start.usual * 1000
            sentence = words.ran_long(node, ran, together, usual)
            self._causes.append(Cause(ran - usual, (node, "long"), sentence))
        if waited >= TOLD_MS:
            return f"waited {words.time_text(waited)}, then {text}"
        return text

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
        at = 0
        for number, (start, end) in enumerate(sorted(self._intervals)):
            if start > at:
                gap = (start - at) / 1000
                if not number:
                    yield self._span("receive", at, start, words.received(gap))
                elif gap >= TOLD_MS:
                    yield self._span("between", at, start, words.between(gap))
            at = max(at, end)
        if not self._intervals:
            yield self._span("receive", 0, self._end, words.no_node(self._end / 1000))
        elif self._end > at:
            rest = (self._end - at) / 1000
            good = self._record.outcome == "ok"
            text = words.answered(rest) if good else words.ended_after(rest)
            yield self._span("answer", at, self._end, text)

    def _span(self, name: str, start: int, end: int, text: str) -> Object:
        self._causes.append(Cause((end - start) / 1000, ("", name), text))
        return {"name": name, "start_ms": start / 1000, "end_ms": end / 1000, "words": text}

    # in words

    def _summary(self) -> list[str]:
        """Say how it ended unless it was answered well, and why it took so long."""
        record, whole = self._record, self._end / 1000
        told = self._ending()
        longest: dict[tuple[str, str], Cause] = {}
        counts: dict[tuple[str, str], int] = {}
        for cause in self._causes:
            if cause.ms < TOLD_MS or cause.ms < TOLD_PART * whole:
                continue
            counts[cause.key] = counts.get(cause.key, 0) + 1
            if cause.key not in longest or cause.ms > longest[cause.key].ms:
                longest[cause.key] = cause
        run = max(self._ran, default=Cause(0.0, ("", ""), ""))
        causes = sorted(longest.values(), reverse=True)[:MAX_SENTENCES]
        if not causes and not told:
            return [words.nothing_waited(whole, run.key[0], run.ms), *self._missing()]
        if run.words and not any((run.key[0], why) in longest for why in ("long", "again", "end")):
            # A run as usual is no reason to be slow: it comes last, however long it was.
            causes.append(run)
            if record.outcome == "ok" and not record.slow:
                causes.sort(reverse=True)
        for cause in causes:
            count = counts.get(cause.key, 1)
            several = count > 1 and cause.key[1] != "again"
            told.append(words.longest(cause.words, count) if several else cause.words)
        return told + self._missing()

    def _missing(self) -> list[str]:
        more = self._record.more_visits + self._record.more_parts
        return [words.not_remembered(more)] if more else []

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
