"""How long the batches of one node take, by their size.

The *shape* says how many seconds a batch of each size takes, relative to the other sizes. The
*speed* says how the last batches compare with it. So a machine that slows down is noticed by every
size at once, although only one size runs at present.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

SHAPE_WEIGHT = 0.1
"""The weight of a new batch in the shape, at its size."""
SPEED_WEIGHT = 0.25
"""The weight of a new batch in the speed: an exponentially weighted mean of actual ÷ expected."""
STEP = 4.0
"""One batch counts as at most this many times as long, or as short, as expected: a single stall
says little.
"""
GOOD_RATE = 0.9
"""A batch size is good if it reaches this part of the best rate."""


class Estimate:
    """The seconds that a batch of one executor takes, by its rows. Times include the speed.

    Sizes are kept by powers of two: 1, 2–3, 4–7 and so on. Each has one point, the mean of its
    sizes and of their seconds. Between two points runs a straight line, and beyond the last one the
    line goes on. A size is right from its second batch on; the first sets its point.
    """

    __slots__ = ("_known", "_points", "_speed_weight", "batches", "recent", "speed")

    def __init__(self, speed_weight: float = SPEED_WEIGHT) -> None:
        """`speed_weight`: the weight of a new batch in the speed."""
        self._speed_weight = speed_weight
        self.batches = 0
        self.speed = 1.0  # seconds ÷ shape, lately
        self.recent = 0.0  # seconds of a batch, lately
        self._points: dict[int, list[float]] = {}  # power of two -> [rows, seconds at speed 1]
        self._known: list[list[float]] = []  # the points in the order of their sizes

    def __repr__(self) -> str:
        sizes = ", ".join(f"{size:g}: {1000 * seconds:.3g} ms" for size, seconds in self._known)
        return f"<Estimate {sizes}; speed {self.speed:.2f}>"

    def observe(self, size: int, seconds: float) -> None:
        """Learn from a batch of `size` rows that ran for `seconds`."""
        self.batches += 1
        self.recent += (seconds - self.recent) * (SPEED_WEIGHT if self.recent else 1.0)
        power = size.bit_length()
        point = self._points.get(power)
        if point is None:
            self._points[power] = [float(size), seconds / self.speed]
            self._known = [self._points[known] for known in sorted(self._points)]
            return
        expected = self._shape(size)
        if expected > 0:
            likely = expected * self.speed
            seconds = min(max(seconds, likely / STEP), likely * STEP)
            self.speed += self._speed_weight * (seconds / expected - self.speed)
        point[0] += SHAPE_WEIGHT * (size - point[0])
        point[1] += SHAPE_WEIGHT * (seconds / self.speed - point[1])

    def _shape(self, size: float) -> float:
        points = self._known
        first = points[0]
        if size <= first[0]:
            return first[1]
        if len(points) == 1:  # no reason to hope that a batch of two is cheaper than two batches
            return first[1] * size / first[0]
        last = points[-1]
        if size > last[0]:
            slope = (last[1] - first[1]) / (last[0] - first[0])
            return last[1] + max(0.0, slope) * (size - last[0])
        index = bisect_left(points, size, key=lambda point: point[0])
        (low, low_seconds), (high, high_seconds) = points[index - 1], points[index]
        return low_seconds + (high_seconds - low_seconds) * (size - low) / (high - low)

    def seconds(self, size: float) -> float:
        """Return the seconds of a batch of `size` rows; 0 before the first batch."""
        return self._shape(size) * self.speed if self._known else 0.0

    def hopeful(self, size: float) -> float:
        """Return `seconds`, but hope that larger batches take no longer while one size is known."""
        known = self._known
        return known[0][1] * self.speed if len(known) == 1 else self.seconds(size)

    @property
    def sizes(self) -> int:
        """The number of sizes that are known."""
        return len(self._known)

    @property
    def alone(self) -> float:
        """The seconds of the shortest batch."""
        return min((seconds for _, seconds in self._known), default=0.0) * self.speed

    @property
    def per_row(self) -> float:
        """The seconds per row at the best size that has run."""
        return min((seconds / size for size, seconds in self._known), default=0.0) * self.speed

    def good_size(self, most: int) -> int:
        """Return the smallest size whose rate is within a tenth of the best, at most `most` rows.

        `most` while the seconds of only one size are known.
        """
        if len(self._known) < 2:
            return most
        sizes = [1 << power for power in range(most.bit_length())]
        if sizes[-1] != most:
            sizes.append(most)
        enough = GOOD_RATE * max(map(self._rate, sizes))
        low, high = next(pair for pair in pairwise([0, *sizes]) if self._rate(pair[1]) >= enough)
        while high - low > 1:
            middle = (low + high) // 2
            if self._rate(middle) >= enough:
                high = middle
            else:
                low = middle
        return high

    def _rate(self, size: int) -> float:
        return size / max(1e-9, self._shape(size))

    def most_within(self, seconds: float, most: int) -> int:
        """Return the largest size, from 1 to `most`, whose batch takes at most `seconds`.

        `most` while the seconds of only one size are known.
        """
        if len(self._known) < 2 or self._shape(most) * self.speed <= seconds:
            return most
        low, high = 1, most  # `high` takes longer
        while high - low > 1:
            middle = (low + high) // 2
            if self._shape(middle) * self.speed <= seconds:
                low = middle
            else:
                high = middle
        return low
