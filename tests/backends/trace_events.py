"""Read Chrome's trace event format as strictly as any viewer, and check that spans nest."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

COMMON = {"ph", "cat", "name", "pid", "tid", "ts"}
FIELDS = {
    "X": COMMON | {"dur", "args"},
    "b": COMMON | {"id2"},
    "e": COMMON | {"id2"},
    "M": {"ph", "name", "pid", "tid", "args"},
}


class Shown:
    """A trace as a viewer would show it. Fails where a viewer would have to guess.

    `spans` holds, by track and in order, (depth, name, start, end, arguments); `waits` holds, by
    name, (start, end). Times are in microseconds.
    """

    def __init__(self, trace: Any) -> None:
        trace = json.loads(json.dumps(trace, allow_nan=False))
        assert trace.keys() == {"traceEvents", "otherData"}
        self.about = trace["otherData"]
        self.spans: dict[str, list[tuple[int, str, int, int, dict[str, int]]]] = defaultdict(list)
        self.waits: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.rows: dict[str, set[str]] = defaultdict(set)
        self.threads: dict[int, str] = {}
        self.process = ""
        self._open: dict[int, list[int]] = defaultdict(
            list
        )  # by thread: the ends of the enclosing spans
        self._begun: dict[tuple[str, str], int] = {}
        self._free: dict[tuple[str, str], int] = {}
        self._last: dict[int, int] = {}
        for event in trace["traceEvents"]:
            assert event.keys() == FIELDS[event["ph"]], event
            assert all(type(event[key]) is str and event[key] for key in ("ph", "name"))
            assert all(
                type(event[key]) is int and event[key] >= 0
                for key in ("pid", "tid", "ts", "dur")
                if key in event
            ), event
            getattr(self, f"_{event['ph']}")(event)
        assert not self._begun, "waits without an end"

    def _M(self, event: dict[str, Any]) -> None:
        assert not self.spans and not self.waits, "names come first"
        if event["name"] == "process_name":
            assert not self.process
            self.process = event["args"]["name"]
        else:
            assert event["name"] == "thread_name"
            assert event["tid"] not in self.threads
            assert event["args"]["name"] not in self.threads.values()
            self.threads[event["tid"]] = event["args"]["name"]

    def _X(self, event: dict[str, Any]) -> None:
        thread, start, end = event["tid"], event["ts"], event["ts"] + event["dur"]
        assert self._last.get(thread, 0) <= start, "spans of a track are in order"
        self._last[thread] = start
        around = self._open[thread]
        while around and around[-1] <= start:
            around.pop()
        assert not around or end <= around[-1], f"{event} ends after the span around it"
        self.spans[self.threads[thread]].append(
            (len(around), event["name"], start, end, event["args"])
        )
        around.append(end)

    def _b(self, event: dict[str, Any]) -> None:
        row = event["name"], event["id2"]["local"]
        assert row not in self._begun, "two waits in one row"
        assert self._free.get(row, 0) <= event["ts"], (
            "a wait begins before the previous one in its row ends"
        )
        self._begun[row] = event["ts"]
        self.rows[event["name"]].add(row[1])

    def _e(self, event: dict[str, Any]) -> None:
        row = event["name"], event["id2"]["local"]
        start = self._begun.pop(row)
        assert start <= event["ts"]
        self._free[row] = event["ts"]
        self.waits[event["name"]].append((start, event["ts"]))
