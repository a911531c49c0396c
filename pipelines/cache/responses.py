"""Keeps the answers of all pipelines of a repository, within a number of bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .answer import Answer
    from .kept import KeptAnswers, Key

DEFAULT_CACHE_BYTES = 64 << 20

LARGEST_SHARE = 8
"""One answer may take this part of the bytes: an eighth."""

REMEMBERED_ITEMS = 1 << 15
"""So many of the last items are known again at least, and twice as many at most: some 4 MB."""


class SecondLevel(Protocol):
    """Answers that several processes share (`second_level.py`)."""

    def look(self, key: bytes, found: Callable[[bytes | None], None]) -> bool:
        """Look for a key, and call `found` with what is there or None, within milliseconds.

        Return False, and don't call it, if nothing can be found now.
        """
        ...

    def keep(self, key: bytes, content: bytes, seconds: float | None) -> None:
        """Keep `content` for so many seconds, as well as that goes."""

    async def connect(self) -> None:
        """Connect, or give it up for now, within a second or so."""

    def status(self) -> dict[str, Any]:
        """Return its state and its counters, for `/status`."""
        ...

    async def close(self) -> None: ...


class ResponseCache:
    """The answers that pipelines keep. Use it on one event loop.

    `max_bytes` bounds the answers of all pipelines together; 0: none is kept. `second`: what is
    asked for an answer that is not here, and gets those that are kept here.
    """

    def __init__(
        self,
        max_bytes: int = DEFAULT_CACHE_BYTES,
        make_second: Callable[[], SecondLevel] | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.second: SecondLevel | None = None
        self._make_second = make_second
        self._answers: KeptAnswers
        self.is_open = False  # True: a pipeline uses it
        # Two sets, and the older one is dropped when the newer one is full. Whole numbers, because
        # the keys themselves would take three times the memory.
        self._seen: set[int] = set()
        self._seen_before: set[int] = set()

    def __repr__(self) -> str:
        count = len(self._answers) if self.is_open else 0
        return f"<ResponseCache of {count} answers, {self.bytes} of {self.max_bytes} bytes>"

    def open(self) -> None:
        """Make it ready for use, as each pipeline that uses it asks for. Idempotent."""
        if not self.is_open:
            from .kept import KeptAnswers

            self._answers = KeptAnswers(self.max_bytes)
            self.second = None if self._make_second is None else self._make_second()
            self.is_open = True

    @property
    def has_second(self) -> bool:
        """True if it has a second level, or will have one when it is open."""
        return self._make_second is not None

    @property
    def bytes(self) -> int:
        """About how many bytes the answers hold."""
        return int(self._answers.currsize) if self.is_open else 0

    @property
    def evicted(self) -> int:
        """How many answers had to go for want of room."""
        return self._answers.evicted if self.is_open else 0

    @property
    def largest(self) -> int:
        """The most bytes of one answer."""
        return self.max_bytes // LARGEST_SHARE

    def get(self, key: Key, now: float) -> Answer | None:
        """Return the answer of a key, if there is one that has not expired."""
        answer = self._answers.get(key)
        if answer is not None and answer.expires <= now:
            del self._answers[key]
            return None
        return answer

    def put(self, key: Key, answer: Answer) -> None:
        """Keep an answer, and let go of those that were used least recently."""
        if answer.size <= self.largest:
            self._answers[key] = answer

    def see(self, number: int) -> bool:
        """Remember a number that stands for an item. Return whether it was seen before."""
        if number in self._seen or number in self._seen_before:
            return True
        self._seen.add(number)
        if len(self._seen) >= REMEMBERED_ITEMS:
            self._seen, self._seen_before = set(), self._seen
        return False

    def of(self, load: int) -> tuple[int, int]:
        """Return how many answers of a load are kept, and their bytes."""
        return self._answers.of(load)

    def forget(self, load: int) -> None:
        """Let go of all answers of a load."""
        self._answers.forget(load)

    async def close(self) -> None:
        """Let go of everything, and close the second level. It may be opened again."""
        if self.is_open:
            self.is_open = False
            second, self.second = self.second, None
            self._answers.clear()
            self._seen.clear()
            self._seen_before.clear()
            if second is not None:
                await second.close()
