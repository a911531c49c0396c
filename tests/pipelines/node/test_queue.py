from __future__ import annotations

from typing import Any

import pytest

from penstock.pipelines.node.queue import NEVER, Batch, Bucket, Entry


class Future:
    gone = False

    def done(self) -> bool:
        return self.gone


def entry(
    name: str,
    size: int = 1,
    priority: int = 0,
    enqueued: float = 0.0,
    deadline: float = float("inf"),
) -> Entry:
    future: Any = Future()
    made = Entry({"data": name}, future, deadline, None, size)
    made.priority = priority
    made.enqueued = enqueued
    return made


def bucket(*entries: Entry, levels: int = 1) -> Bucket:
    made = Bucket("key", levels)
    for queued in entries:
        made.levels[queued.priority].append(queued)
        made.size += queued.size
    return made


def names(entries: Any) -> str:
    return "".join(queued.item["data"] for queued in entries)


def test_take_stops_at_the_first_that_does_not_fit() -> None:
    queued = bucket(entry("a", 2), entry("b", 3), entry("c", 1))
    taken, size = queued.take(4)
    assert (names(taken), size) == ("a", 2)
    assert (names(queued), queued.size) == ("bc", 4)
    taken, size = queued.take(4)
    assert (names(taken), size, queued.size, len(queued)) == ("bc", 4, 0, 0)


def test_take_does_not_pass_a_big_item_for_one_of_lower_priority() -> None:
    queued = bucket(entry("a", 1), entry("b", 4), entry("c", 1, priority=1), levels=2)
    assert names(queued.take(4)[0]) == "a"
    assert names(queued.take(4)[0]) == "b"
    assert names(queued.take(4)[0]) == "c"


def test_take_drops_those_whose_caller_left_and_gives_their_room_to_others() -> None:
    left = entry("a", 2)
    queued = bucket(left, entry("b", 2))
    left.future.gone = True  # type: ignore[attr-defined]
    taken, size = queued.take(2)
    assert (names(taken), size, queued.size) == ("b", 2, 0)


def test_head_and_oldest_are_not_the_same_with_priorities() -> None:
    queued = bucket(
        entry("a", priority=1, enqueued=1.0),
        entry("b", enqueued=5.0),
        entry("c", enqueued=6.0),
        levels=2,
    )
    assert queued.head.item["data"] == "b"
    assert queued.oldest == 1.0
    assert names(queued) == "bca"


def test_an_empty_bucket_has_no_head() -> None:
    with pytest.raises(IndexError, match="empty"):
        _ = bucket().head


def test_remove() -> None:
    a, b = entry("a", 2), entry("b")
    queued = bucket(a, b)
    assert queued.remove(a)
    assert not queued.remove(a)
    assert (names(queued), queued.size) == ("b", 1)


def test_clear() -> None:
    queued = bucket(entry("a", 2))
    queued.clear()
    assert (len(queued), queued.size) == (0, 0)


def test_take_expired_takes_exactly_at_the_deadline() -> None:
    queued = bucket(entry("a", deadline=1.0), entry("b", 2, deadline=2.0), entry("c", deadline=2.1))
    assert names(queued.take_expired(2.0, [NEVER] * 3)) == "ab"
    assert (names(queued), queued.size) == ("c", 1)


def test_a_batch_works_on_shallow_copies() -> None:
    first = entry("a")
    first.item["list"] = []
    batch = Batch("node", None, [first], 1, 2.5)
    assert batch.outcomes == [first.item]
    assert batch.outcomes[0] is not first.item
    assert batch.outcomes[0]["list"] is first.item["list"]
    assert (batch.started, batch.ended) == (2.5, 2.5)


def test_take_is_not_stopped_by_a_big_item_whose_caller_left() -> None:
    left = entry("b", 4)
    queued = bucket(entry("a"), left, entry("c"))
    left.future.gone = True  # type: ignore[attr-defined]
    taken, size = queued.take(4)
    assert (names(taken), size, queued.size) == ("ac", 2, 0)
