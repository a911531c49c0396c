"""Verification that concurrency changes no results: `penstock bench --verify`.

Many clients send few images. The results of an image fall into *buckets* by the batch sizes that it
ran with: one size for each node on its way, from the header Server-Timing. Within a bucket all
results of an image must be the same, byte for byte. Between buckets they may differ, because
engines choose other kernels for other batch sizes: that is reported, with the largest difference,
and is not a failure.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from penstock.pipelines.pipeline import Pipeline

from .client import HttpClient
from .load import NO_ANSWER, Answer, Send, batches_of, closed_loop
from .measure import Load, in_process
from .report import OK

DEFAULT_REQUESTS = 10_000
"""Requests to send if the load sets no number."""
LONGEST_PAUSE_SECONDS = 0.005
"""A client pauses for up to this long before every second request or so.

Without pauses clients run in lockstep, and all batches have one size.
"""
RESULTS_FORMAT = 1
"""The format of stored results."""
LONGEST_LIST_LINES = 20
"""The most lines of a list that are printed."""
LONGEST_VALUE_CHARACTERS = 40
"""The most characters of a JSON value that a difference shows."""

Results = dict[str, dict[str, Counter[str]]]
"""Image (its SHA-256) -> bucket -> answer as it came -> how often it came."""


@dataclass(slots=True)
class Verification:
    """All results of a run."""

    results: Results = field(default_factory=dict)
    failures: Counter[int] = field(default_factory=Counter)
    """Status -> number of requests without a result. `NO_ANSWER`: there was no answer."""
    numbers: dict[str, int] = field(default_factory=dict)
    """Image -> its number, in the order of the load."""

    @property
    def requests(self) -> int:
        """The number of requests with a result."""
        return sum(
            counter.total() for buckets in self.results.values() for counter in buckets.values()
        )

    def note(self, image: str, answer: Answer) -> None:
        """Count the answer to a request with this image."""
        if answer.status != OK:
            self.failures[answer.status] += 1
            return
        buckets = self.results.setdefault(image, {})
        counts = buckets.setdefault(bucket_of(answer.timing), Counter())
        counts[answer.body.decode("utf-8", "backslashreplace")] += 1

    def inconsistent(self) -> Iterator[str]:
        """Describe each image that has several results in one bucket. There must be none."""
        for image, buckets in self.results.items():
            for bucket, counts in sorted(buckets.items()):
                if len(counts) > 1:
                    times = ", ".join(
                        f"{count}×" for count in sorted(counts.values(), reverse=True)
                    )
                    yield (
                        f"{self._name(image)}, {bucket}: {len(counts)} distinct results ({times}); "
                        f"{difference(counts)}"
                    )

    def between_buckets(self) -> Iterator[str]:
        """Describe each image whose results differ from one bucket to another. They may."""
        for image, buckets in self.results.items():
            distinct = dict.fromkeys(answer for counts in buckets.values() for answer in counts)
            if len(distinct) > 1 and len(buckets) > 1:
                yield (
                    f"{self._name(image)}: {len(distinct)} distinct results over {len(buckets)} "
                    f"batch sizes; {difference(distinct)}"
                )

    def compared(self, stored: Results) -> Comparison:
        """Compare the results with those of an earlier run."""
        comparison = Comparison()
        for image, buckets in self.results.items():
            for bucket, counts in sorted(buckets.items()):
                earlier = stored.get(image, {}).get(bucket)
                if earlier is None:
                    comparison.new += 1
                elif set(earlier) == set(counts):
                    comparison.equal += 1
                else:
                    comparison.different.append(
                        f"{self._name(image)}, {bucket}: not the results of the stored run; "
                        f"{difference([*earlier, *counts])}"
                    )
        return comparison

    def store(self, file: Path) -> None:
        """Write all results to a file, as JSON."""
        file.write_bytes(
            orjson.dumps(
                {"format": RESULTS_FORMAT, "requests": self.requests, "results": self.results},
                option=orjson.OPT_INDENT_2,
            )
        )

    def _name(self, image: str) -> str:
        return f"image {self.numbers.get(image, 0)} ({image[:12]})"


@dataclass(slots=True)
class Comparison:
    """The pairs of image and bucket of this run, compared with those of a stored run."""

    equal: int = 0
    new: int = 0
    """Pairs that the stored run does not have."""
    different: list[str] = field(default_factory=list)
    """A description of each pair whose results differ."""


def read_results(file: Path) -> Results:
    """Read what `Verification.store` wrote. Raises ValueError for any other file."""
    try:
        document = orjson.loads(file.read_bytes())
        if document["format"] != RESULTS_FORMAT:
            raise ValueError(f"{file} has format {document['format']!r}, expected {RESULTS_FORMAT}")
        results: dict[str, Any] = document["results"]
        return {
            image: {bucket: Counter(counts) for bucket, counts in buckets.items()}
            for image, buckets in results.items()
        }
    except (KeyError, TypeError, AttributeError, orjson.JSONDecodeError):
        raise ValueError(f"{file} was not written by penstock bench --verify --store") from None


async def verify(send: Send, load: Load) -> Verification:
    """Send the load's images in a random order, so that every batch mixes them differently.

    The answers of `send` must have their timing.
    """
    verification = Verification()
    draw = random.Random(load.seed)
    images = {body: sha256(body).hexdigest() for body in load.bodies}
    for image in images.values():
        verification.numbers.setdefault(image, len(verification.numbers) + 1)

    async def noting(body: bytes) -> Answer:
        await asyncio.sleep(draw.choice((0.0, draw.uniform(0, LONGEST_PAUSE_SECONDS))))
        answer = await send(body)
        verification.note(images[body], answer)
        return answer

    requests = load.requests or DEFAULT_REQUESTS
    order = draw.choices(list(images), k=requests)
    await closed_loop(noting, order, load.clients, requests=requests)
    return verification


async def verify_url(url: str, load: Load) -> Verification:
    """Verify a running server. Raises ValueError if `url` is not the URL of a pipeline."""
    client = HttpClient(url, load.headers, read_headers=True)
    try:
        return await verify(client.send, load)
    finally:
        await client.close()


async def verify_file(source: str | Path | Mapping[str, object], load: Load) -> Verification:
    """Verify a pipeline in this process. Raises what `Pipeline.load` and `Pipeline.start` raise."""
    async with Pipeline.load(source) as pipeline:
        return await verify(in_process(pipeline, rendered=True), load)


def bucket_of(timing: str) -> str:
    """Name the bucket by a Server-Timing header: 'digits in a batch of 4', for each node."""
    sizes = batches_of(timing)
    return ", ".join(f"{node} in a batch of {size}" for node, size in sizes) or "batch size unknown"


def difference(answers: Iterable[str]) -> str:
    """Describe how answers differ: the largest difference of numbers, and any other difference."""
    documents = []
    for answer in answers:
        try:
            documents.append(orjson.loads(answer))
        except orjson.JSONDecodeError:
            return "they are not JSON"
    largest, place, other = 0.0, "", ""
    for document in documents[1:]:
        for path, one, two in _leaves(documents[0], document, ""):
            if (
                isinstance(one, (int, float))
                and isinstance(two, (int, float))
                and float in (type(one), type(two))
            ):
                apart = abs(one - two)
                if apart > largest or math.isnan(apart):
                    largest, place = apart, path
            elif one != two and not other:
                other = f"{path or 'the answer'} is {_short(one)} or {_short(two)}"
    numbers = (
        f"numbers differ by at most {largest:.3g}{f' ({place})' if place else ''}"
        if largest
        else ""
    )
    return (
        "; ".join(text for text in (other, numbers) if text)
        or "they differ only in how they are written"
    )


def _leaves(one: Any, two: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(two, dict):
        for key in {**one, **two}:
            yield from _leaves(one.get(key), two.get(key), f"{path}.{key}".removeprefix("."))
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for index, (left, right) in enumerate(zip(one, two, strict=True)):
            yield from _leaves(left, right, f"{path}[{index}]")
    else:
        yield path, one, two


def _short(value: Any) -> str:
    text = orjson.dumps(value).decode()
    if len(text) <= LONGEST_VALUE_CHARACTERS:
        return text
    return f"{text[: LONGEST_VALUE_CHARACTERS - 1]}…"


def verification_lines(
    verification: Verification, comparison: Comparison | None, limit: int = LONGEST_LIST_LINES
) -> tuple[list[str], bool]:
    """Return the lines to print, and whether the run is verified.

    It is if no request failed, no image is inconsistent, and no result differs from the stored run.
    """
    results = verification.results.values()
    pairs = [counts for buckets in results for counts in buckets.values()]
    sizes: Counter[str] = Counter()
    for buckets in results:
        for bucket, counts in buckets.items():
            sizes[bucket] += counts.total()
    inconsistent = list(verification.inconsistent())
    between = list(verification.between_buckets())
    images = len(verification.numbers)
    repeated = sum(counts.total() > 1 for counts in pairs)
    text = [
        f"results      {verification.requests} of {images} images",
        *(f"  {sizes[bucket]:>6}     {bucket}" for bucket in sorted(sizes, key=_batch_sizes)),
        f"repeated     {repeated} of {len(pairs)} pairs of image and bucket came more than once",
        f"inconsistent {len(inconsistent)}",
        *_clipped(inconsistent, limit),
        f"between batch sizes {len(between)} of {images} images differ (allowed)",
        *_clipped(between, limit),
    ]
    verified = bool(verification.requests) and not inconsistent and not verification.failures
    if verification.failures:
        failures = ", ".join(
            f"{'no answer' if status == NO_ANSWER else status}: {count}"
            for status, count in sorted(verification.failures.items())
        )
        text.append(f"failures     {failures}; they gave nothing to verify")
    if comparison is not None:
        text.append(
            f"stored run   {comparison.equal} pairs equal, {len(comparison.different)} different, "
            f"{comparison.new} not in it"
        )
        text += _clipped(comparison.different, limit)
        verified = verified and not comparison.different and comparison.equal > 0
    return [*text, "verified" if verified else "NOT VERIFIED"], verified


def _batch_sizes(bucket: str) -> list[int]:
    return [int(size) for size in re.findall(r"batch of (\d+)", bucket)]


def _clipped(lines: Sequence[str], limit: int) -> list[str]:
    more = [f"  … and {len(lines) - limit} more"] if len(lines) > limit else []
    return [f"  {line}" for line in lines[:limit]] + more
