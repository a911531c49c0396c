"""Why a request was slow: each cause shown by a scheduler whose clock the test moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.app.history.around import Surroundings
from penstock.app.history.explain import MAX_MATES, Explanation
from penstock.app.history.record import Failure, ItemVisit, Record
from penstock.pipelines.node.queue import Batch, Parts, Visit
from penstock.pipelines.runs.pace import Pace
from penstock.testing import Clock, DeviceGroup, Entry, FakeExecutor, Scheduler

PACE = Pace("ocr", "1")


class Future:
    def done(self) -> bool:
        return False


class Bench:
    """One node with fake executors. Times are milliseconds from the test's begin.

    `devices`: for each instance the name of its device; those of one name share it.
    """

    def __init__(
        self, devices: Sequence[str] = ("",), most: int = 4, timeout_ms: float = 0
    ) -> None:
        self.clock = Clock()
        self.scheduler = Scheduler(
            "net",
            batching_timeout=timeout_ms / 1000,
            on_expired=lambda entry: None,
            on_stuck=lambda batch: None,
        )
        self.scheduler.notes = True
        groups = {device: DeviceGroup(device) for device in devices if device}
        self.executors: list[FakeExecutor] = []
        for number, device in enumerate(devices):
            executor = FakeExecutor(most, groups.get(device))
            executor.name, executor.device = f"ocr/net#{number}", device
            self.executors.append(executor)
            self.scheduler.add(executor)
        self.entries: dict[str, tuple[Entry, float]] = {}
        self.batches: dict[str, Batch] = {}
        self.records: list[Record] = []

    def put(self, *names: str) -> None:
        for name in names:
            future: Any = Future()
            entry = Entry({"data": name}, future)
            self.scheduler.enqueue(entry, None, self.clock())
            self.entries[name] = entry, self.clock()
        self.decide()

    def decide(self) -> None:
        self.scheduler.decide(self.clock())
        for executor in self.executors:
            for batch in executor.batches:
                for entry in batch.entries:
                    self.batches[entry.item["data"]] = batch

    def move(self, ms: float) -> None:
        self.clock.move(ms / 1000)

    def end(self, number: int = 0) -> None:
        """End the batch of an instance: those that ran in it are answered."""
        executor = self.executors[number]
        batch = self.scheduler.running[executor]
        batch.ended = self.clock()
        names = [entry.item["data"] for entry in batch.entries]
        self.scheduler.release(executor)
        self.scheduler.estimate.observe(batch.size, batch.ended - batch.started)
        self.decide()
        batch.forget()
        for name in names:
            _, enqueued = self.entries[name]
            self.records.insert(0, record(name, enqueued, self.clock(), [("net", enqueued, batch)]))

    def story(self, name: str) -> Any:
        return story(next(one for one in self.records if one.id == name), self.records)


def record(
    name: str, started: float, ended: float, visits: Sequence[Any] = (), **more: Any
) -> Record:
    """Make a record. `visits`: (node, when it was queued, its batch), or `ItemVisit`."""
    told = [
        visit if isinstance(visit, ItemVisit) else ItemVisit(0, None, *visit) for visit in visits
    ]
    fields: dict[str, Any] = {
        "id": name, "pace": PACE, "door": "predict", "status": 200, "failure": None,
        "started": started, "ended": ended, "rows": 1, "slow": True, "usual": 0.008,
        "visits": told, "more_visits": 0,
    }  # fmt: skip
    return Record(**(fields | more))


def story(one: Record, records: Sequence[Record] | None = None) -> Any:
    made = Explanation(one, Surroundings([one] if records is None else records, [one])).story()
    check(made)
    return made


def check(made: Any) -> None:
    """Assert what holds for every request."""
    whole = made["ms"]
    assert made["summary"]
    for text in made["summary"]:
        assert text.strip() and "nan" not in text and "inf" not in text, text
    for span in made["spans"]:
        assert 0 <= span["start_ms"] < span["end_ms"] <= whole
        assert span["words"]
    for position, visit in enumerate(made["nodes"]):
        assert 0 <= visit["queued_at_ms"] <= whole
        assert math.isclose(
            sum(wait["ms"] for wait in visit["waits"]), visit["waited_ms"], abs_tol=1e-6
        )
        assert visit["words"] and all(wait["words"] and wait["ms"] > 0 for wait in visit["waits"])
        assert visit["part_of"] is None or visit["part_of"] < position
        if visit["started_at_ms"] is not None:
            assert visit["queued_at_ms"] <= visit["started_at_ms"] <= visit["ended_at_ms"] <= whole
            ran = visit["ended_at_ms"] - visit["started_at_ms"]
            assert math.isclose(visit["ran_ms"], ran, abs_tol=1e-6)


def waits(made: Any, node: int = 0) -> dict[str, Any]:
    found: dict[str, float] = {}
    for wait in made["nodes"][node]["waits"]:
        found[wait["why"]] = found.get(wait["why"], 0.0) + wait["ms"]
    return {why: pytest.approx(ms) for why, ms in found.items()}


def test_nothing_waited() -> None:
    bench = Bench()
    bench.put("a")
    bench.move(7.9)
    bench.end()
    made = bench.story("a")
    assert made["summary"] == ["Nothing waited for long: 7.9 ms, of which node net ran 7.9 ms."]
    assert made["nodes"][0]["batch"]["rule"] == "idle"
    assert made["nodes"][0]["words"] == "ran 7.9 ms alone"
    assert (made["id"], made["pipeline"], made["version"]) == ("a", "ocr", "1")
    assert made["usual_ms"] == 8.0 and made["ms"] == pytest.approx(7.9)


def test_both_instances_were_busy() -> None:
    bench = Bench(["", ""], most=1)
    bench.put("a")
    bench.put("b")
    bench.move(1)
    bench.put("c")
    bench.move(11.2)
    bench.end(1)
    bench.move(8)
    bench.end(1)
    made = bench.story("c")
    assert waits(made) == {"instance": 11.2}
    assert made["summary"][0] == (
        "Waited 11.2 ms at node net for the second of 2 instances: both were busy."
    )
    assert made["nodes"][0]["batch"]["rule"] == "freed"
    assert made["nodes"][0]["words"] == "waited 11.2 ms, then ran 8.0 ms alone"


def test_the_only_instance_was_busy_and_then_others_went_first() -> None:
    bench = Bench(most=4)
    bench.put("busy")
    bench.move(1)
    bench.put(*"abcdefgh")
    bench.put("last")
    for _ in range(4):
        bench.move(10)
        bench.end()
    made = bench.story("last")
    assert waits(made) == {"instance": 10.0, "order": 20.0}
    assert made["summary"] == [
        "Waited 20.0 ms at node net behind 8 rows that went before it.",
        "Waited 10.0 ms at node net for its only instance to be free.",
        "Ran 10.0 ms at node net alone.",
    ]


def test_more_items_were_waited_for_because_the_device_was_busy() -> None:
    bench = Bench(["cuda:0", "cuda:0"], most=4, timeout_ms=4)
    bench.put("a")
    bench.move(1)
    bench.put("b")
    bench.move(4)
    bench.decide()
    bench.move(6)
    bench.end(0)
    bench.end(1)
    made = bench.story("b")
    assert waits(made) == {"batching": 4.0}
    assert made["summary"][0] == (
        "Waited 4.0 ms at node net for more items: another instance ran on its device, and a batch "
        "that is not full then waits for up to 4 ms (batching_timeout)."
    )
    assert made["nodes"][0]["batch"]["rule"] == "late"
    assert made["nodes"][0]["device"] == "cuda:0"


def test_the_device_was_busy_and_its_other_instance_took_the_batch_in_the_end() -> None:
    bench = Bench(["cuda:0", "cuda:0"], most=4, timeout_ms=50)
    bench.put("a")
    bench.put("b")
    bench.move(6)
    bench.end([bool(one.batches) for one in bench.executors].index(True))
    bench.move(6)
    bench.end(next(n for n, one in enumerate(bench.executors) if one in bench.scheduler.running))
    assert waits(bench.story("b")) == {"batching": 6.0}


def test_a_full_batch_starts_beside_a_busy_instance() -> None:
    bench = Bench(["cuda:0", "cuda:0"], most=2, timeout_ms=50)
    bench.put("a")
    bench.put("b")
    bench.move(3)
    bench.put("c")
    bench.move(1)
    bench.end(0)
    bench.end(1)
    made = bench.story("b")
    assert waits(made) == {"batching": 3.0}
    assert made["nodes"][0]["batch"]["rule"] == "full"
    assert (
        made["nodes"][0]["words"] == "waited 3.0 ms, then ran 1.0 ms in a batch of 2 with 1 other"
    )


def test_the_nodes_after_it_were_full() -> None:
    bench = Bench()
    bench.scheduler.outflow.bytes = 1 << 60
    bench.put("a")
    bench.move(25)
    bench.scheduler.outflow.bytes = 0
    bench.decide()
    bench.move(5)
    bench.end()
    made = bench.story("a")
    assert waits(made) == {"downstream": 25.0}
    assert made["summary"][0].startswith("Waited 25.0 ms at node net because its results that the")
    assert made["nodes"][0]["batch"]["rule"] == "downstream"


def test_the_event_loop_came_late() -> None:
    bench = Bench()
    future: Any = Future()
    bench.scheduler.enqueue(Entry({"data": "a"}, future), None, bench.clock())
    bench.entries["a"] = Entry({}, future), bench.clock()
    bench.move(30)
    bench.decide()
    bench.batches["a"].started += 0.002  # the thread's wake-up
    bench.move(5)
    bench.end()
    assert waits(bench.story("a")) == {"loop": 32.0}


def test_a_long_run() -> None:
    bench = Bench()
    for number in range(4):
        bench.put(f"usual{number}")
        bench.move(8)
        bench.end()
    bench.put("a")
    bench.move(80)
    bench.end()
    assert bench.story("a")["summary"] == [
        "Ran 80.0 ms at node net alone; batches there took 8.0 ms lately."
    ]


def test_a_batch_that_failed_and_ran_again() -> None:
    bench = Bench()
    bench.put("a", "b")
    bench.batches["a"].alone = 1
    bench.move(8)
    bench.end()
    assert bench.story("a")["summary"] == [
        "Its batch of 2 rows at node net failed, so its items ran again one by one: "
        "8.0 ms together."
    ]


def test_mates_of_a_batch_are_named_up_to_a_bound() -> None:
    bench = Bench(most=20)
    names = [f"r{number}" for number in range(20)]
    bench.put(*names)
    bench.move(5)
    bench.end()
    batch = bench.story("r3")["nodes"][0]["batch"]
    assert len(batch["mates"]) == MAX_MATES and "r3" not in batch["mates"]
    assert batch["more_mates"] == 19 - MAX_MATES
    assert (batch["rows"], batch["max"], batch["left_queued"]) == (20, 20, 0)


def test_slow_bodies_and_answers() -> None:
    bench = Bench()
    bench.put("a")
    bench.move(10)
    bench.end()
    one = bench.records[0]
    one = one._replace(started=one.started - 0.2, ended=one.ended + 0.03)
    made = story(one)
    assert made["summary"] == [
        "It took 200 ms until its body had come and was read, turns of the event loop included.",
        "After the last node it took 30.0 ms until its answer was ready, turns of the event loop "
        "included.",
        "Ran 10.0 ms at node net alone.",
    ]
    assert [span["name"] for span in made["spans"]] == ["receive", "answer"]
    left = story(one._replace(status=499))
    assert left["summary"][2] == ("After the last node it took 30.0 ms until the request ended.")


def test_a_run_as_usual_comes_last_if_the_request_was_slow_else_by_its_length() -> None:
    bench = Bench()
    bench.put("a")
    bench.move(10)
    bench.end()
    one = bench.records[0]._replace(started=bench.records[0].started - 0.001)
    told = [
        "It took 1.0 ms until its body had come and was read, turns of the event loop included.",
        "Ran 10.0 ms at node net alone.",
    ]
    assert story(one)["summary"] == told
    assert story(one._replace(slow=False))["summary"] == told[::-1]


def test_time_between_nodes() -> None:
    first, second = Batch("a", None, [], 1, 1.0), Batch("b", None, [], 1, 1.05)
    first.ended, second.ended = 1.01, 1.06
    made = story(record("x", 1.0, 1.06, [("a", 1.0, first), ("b", 1.05, second)]))
    assert [(span["name"], span["start_ms"]) for span in made["spans"]] == [("between", 10.0)]
    assert made["summary"][0] == "Between nodes it took 40.0 ms."


AGAIN = "Send it again after the seconds in Retry-After"


@pytest.mark.parametrize(
    ("status", "code", "detail", "outcome", "first"),
    [
        (429, "overloaded", "it takes 9 s.", "refused",
         f"Refused: it takes 9 s. {AGAIN}, or with a later deadline."),
        (429, "queue_full", "too many", "refused", f"Refused: too many. {AGAIN}."),
        (503, "memory_full", "too much", "refused",
         f"Refused: too much. {AGAIN}, or send less at a time."),
        (503, "not_ready", "'ocr' is loading", "refused",
         "Refused: 'ocr' is loading. Send it again when /health/ready answers 200."),
        (504, "deadline_exceeded", "node 'net': it queued", "expired",
         "Its deadline passed: node 'net': it queued."),
        (500, "backend_error", "KeyError", "failed", "Failed: KeyError (backend_error)."),
        (200, "invalid_input", "no image", "failed",
         "A part of it failed: no image (invalid_input)."),
        (422, "invalid_input", "no image", "bad input",
         "Not a request that can be answered: no image (invalid_input)."),
        (499, "", "", "left", "The client left after 500 ms, before it had an answer."),
        (500, "internal", "\ud800", "failed", "Failed: \\ud800 (internal)."),
    ],
)  # fmt: skip
def test_endings(status: int, code: str, detail: str, outcome: str, first: str) -> None:
    failure = Failure(code, detail) if code else None
    visits = [("net", 1.0, None)]
    made = story(record("a", 1.0, 1.5, visits, status=status, failure=failure))
    assert made["outcome"] == outcome
    assert made["summary"] == [
        first,
        "Waited 500 ms at node net in its queue until the request ended.",
    ]


def test_what_ran_too_long_for_a_deadline_is_told() -> None:
    bench = Bench()
    bench.put("a")
    enqueued = bench.clock()
    bench.move(500)
    bench.end()
    late = {"status": 504, "failure": Failure("deadline_exceeded", "it came late")}
    visits = [("net", enqueued, bench.batches["a"])]
    assert story(record("a", enqueued, bench.clock(), visits, **late))["summary"] == [
        "Its deadline passed: it came late.",
        "Ran 500 ms at node net alone.",
    ]


def test_what_ran_on_when_the_request_ended() -> None:
    bench = Bench()
    bench.put("a")
    enqueued = bench.clock()
    bench.move(20)
    # It runs still, and has no end; then it ends later than its request.
    late = {"status": 504, "failure": Failure("deadline_exceeded", "it came late")}
    visits = [("net", enqueued, bench.batches["a"])]
    one = record("a", enqueued, bench.clock(), visits, **late)
    told = [
        "Its deadline passed: it came late.",
        "Had run 20.0 ms at node net when the request ended, and ran on.",
    ]
    assert story(one)["summary"] == told
    bench.move(20)
    bench.end()
    made = story(one)
    assert made["summary"] == told
    assert made["nodes"][0]["words"] == "ran 20.0 ms alone, and ran on when the request ended"


def test_what_went_before_a_request_that_never_ran() -> None:
    bench = Bench(most=2)
    bench.put("busy")
    enqueued = bench.clock()
    bench.put("a", "b", "c", "d")
    for _ in range(2):
        bench.move(10)
        bench.end()
    one = record(
        "x", enqueued, bench.clock(), [("net", enqueued, None)],
        status=504, failure=Failure("deadline_exceeded", "it was queued"),
    )  # fmt: skip
    made = story(one, [one, *bench.records])
    assert made["summary"][1] == (
        "Waited 20.0 ms at node net in its queue until the request ended; 3 other rows started "
        "there meanwhile; 2 batches of others ran there for 20.0 ms of that."
    )


def test_what_ran_all_the_time_that_a_request_queued() -> None:
    bench = Bench()
    bench.put("long")
    bench.move(100)
    enqueued = bench.clock()
    bench.move(300)
    left = record("x", enqueued, bench.clock(), [("net", enqueued, None)], status=499)
    assert story(left, [left])["summary"][1] == (
        "Waited 300 ms at node net in its queue until the request ended."
    ), "nothing is known of what has not ended"
    bench.move(200)
    bench.end()
    assert story(left, [left, *bench.records])["summary"][1] == (
        "Waited 300 ms at node net in its queue until the request ended; 1 batch of others ran "
        "there for 300 ms of that."
    )


def test_parts_of_a_composite() -> None:
    outer = Batch("each", None, [], 1, 1.0)
    outer.ended = 1.1
    part = Batch("rec", None, [], 2, 1.04)
    part.ended = 1.09
    outer.parts = Parts([(0, [Visit("rec", 1.0, part)]), (1, [Visit("rec", 1.0, part)])])
    outer.parts.more = 3
    made = story(record("a", 1.0, 1.1, [("each", 1.0, outer)]))
    assert [(one["node"], one["item"], one["part_of"]) for one in made["nodes"]] == [
        ("each", 0, None),
        ("rec", 0, 0),
        ("rec", 1, 0),
    ]
    assert made["nodes"][0]["batch"] is None
    assert made["nodes"][0]["words"] == "took 100 ms for its 5 parts"
    assert made["summary"][-1] == (
        "3 more visits of nodes by its items or parts are not remembered."
    )


def test_parts_that_were_held_back_and_many_short_waits() -> None:
    """Each part's wait is less than a twentieth of the whole; together they are two fifths."""
    outer = Batch("each", None, [], 1, 1.0)
    outer.ended = 2.0
    parts: list[tuple[int, list[Visit]]] = []
    for number in range(10):
        ran = Batch("rec", None, [], 1, 1.0 + 0.1 * number + 0.04)
        ran.ended = ran.started + 0.02
        parts.append((number, [Visit("rec", ran.started - 0.04, ran)]))
    outer.parts = Parts(parts)
    made = story(record("a", 1.0, 2.0, [("each", 1.0, outer)]))
    assert made["summary"] == [
        "Took 1 s at node each for its 10 parts. For 400 ms of that none of them was at a node: "
        "parts of other requests took their turns, or code of the node ran.",
        "Waited 400 ms at node rec in its queue (10 times, 40.0 ms at most).",
        "Ran 200 ms at node rec (10 times, 20.0 ms at most).",
    ]


def test_waits_at_the_same_time_count_once() -> None:
    bench = Bench(most=4)
    bench.put("busy")
    enqueued = bench.clock()
    bench.put("a", "b", "c")
    bench.move(10)
    bench.end()
    bench.move(10)
    bench.end()
    batch = bench.batches["a"]
    visits = [ItemVisit(item, None, "net", enqueued, batch) for item in range(3)]
    assert story(record("x", enqueued, bench.clock(), visits))["summary"] == [
        "Waited 10.0 ms at node net for its only instance to be free (3 times, 10.0 ms at most).",
        "Ran 10.0 ms at node net in a batch of 3 rows.",
    ]


def test_a_hold_of_the_batches_that_went_before_counts_as_one() -> None:
    bench = Bench(most=1)
    hold = bench.scheduler.outflow
    bench.put("a", "b", "c")
    for _ in range(3):  # each runs for 1 ms; then the nodes after it are full for 200 ms
        bench.move(1)
        hold.bytes = 1 << 60
        bench.end()
        bench.move(200)
        hold.bytes = 0
        bench.decide()
    made = bench.story("c")
    assert waits(made) == {"downstream": 400.0, "order": 2.0}
    assert made["summary"][0].startswith("Waited 400 ms at node net because its results that")


def test_visits_are_in_the_order_of_time_and_several_waits_are_told_together() -> None:
    inner, outer = Batch("work", None, [], 1, 1.02), Batch("yields", None, [], 1, 1.0)
    inner.ended, outer.ended = 1.03, 1.1
    # A node that yields is noted when its stream has ended.
    visits = [("work", 1.01, inner), ("work", 1.005, inner), ("yields", 1.0, outer)]
    made = story(record("a", 1.0, 1.1, visits))
    assert [visit["node"] for visit in made["nodes"]] == ["yields", "work", "work"]
    assert made["summary"] == [
        "Waited 15.0 ms at node work in its queue (2 times, 15.0 ms at most).",
        "Ran 100 ms at node yields.",
        "Ran 10.0 ms at node work.",
    ]


def test_the_runs_that_took_most_are_told() -> None:
    visits: list[tuple[str, float, Batch]] = []
    at = 1.0
    for node, ms in (("page", 500), ("cut", 1), ("read", 400), ("sort", 90), ("save", 80)):
        batch = Batch(node, None, [], 1, at)
        batch.ended = at + ms / 1000
        visits.append((node, at, batch))
        at = batch.ended
    assert story(record("a", 1.0, at + 0.1, visits))["summary"] == [
        "After the last node it took 100 ms until its answer was ready, turns of the event loop "
        "included.",
        "Ran 500 ms at node page.",
        "Ran 400 ms at node read.",
        "Ran 90.0 ms at node sort.",
    ]


def test_a_request_that_came_to_no_pipeline() -> None:
    made = story(
        record("a", 1.0, 1.0002, pace=None, status=404, failure=Failure("not_found", "no 'x'"))
    )
    assert (made["pipeline"], made["version"], made["nodes"]) == ("", "", [])


@given(
    instances=st.lists(st.sampled_from(["", "cuda:0", "cuda:1"]), min_size=1, max_size=3),
    most=st.integers(1, 4),
    timeout_ms=st.sampled_from([0.0, 3.0]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["put", "decide", "end", "hold", "go"]),
            st.floats(0, 9),
            st.integers(0, 2),
        ),
        max_size=40,
    ),
    shift=st.floats(-0.01, 0.01),
)
def test_any_schedule(
    instances: list[str],
    most: int,
    timeout_ms: float,
    steps: list[tuple[str, float, int]],
    shift: float,
) -> None:
    """The waits of a visit add up, times are inside of the request, and there are always words."""
    bench = Bench(instances, most, timeout_ms)
    for number, (step, ms, which) in enumerate(steps):
        bench.move(ms)
        executor = bench.executors[which % len(bench.executors)]
        if step == "put":
            bench.put(*(f"r{number}.{more}" for more in range(which + 1)))
        elif step == "end" and executor in bench.scheduler.running:
            bench.end(which % len(bench.executors))
        elif step in ("hold", "go"):
            bench.scheduler.outflow.bytes = (1 << 60) if step == "hold" else 0
        bench.decide()
    records = bench.records
    around = Surroundings(records, records)
    for one in records:
        check(Explanation(one, around).story())
        # Another clock than the pipeline's, as that of a loop that counts whole milliseconds.
        check(Explanation(one._replace(started=one.started + shift), around).story())
