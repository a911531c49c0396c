"""`penstock bench --verify`: whether concurrency changes results.

Few images are sent by many clients. An image has a *bucket* for each batch size that it ran with (one size for each node it passed, from
the header Server-Timing). Within one bucket all its results must be the same, byte for byte. Between buckets they may differ: engines
choose other kernels for other batch sizes. That is reported, with the largest difference, and is no failure.
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

from penstock.backends.errors import PenstockError
from penstock.pipelines.pipeline import Pipeline

from ..http.errors import STATUSES, code_of
from ..http.predict import server_timing
from ..http.render import fields_of, to_json
from .client import HttpClient
from .load import NO_ANSWER, Answer, Send, closed_loop
from .measure import Load
from .report import OK

REQUESTS = 10_000
"""So many unless the load says."""
PAUSE = 0.005
"""Seconds for which a client waits at most before every second request or so. In lockstep all would meet in batches of one size."""
FORMAT = 1
_BATCH = re.compile(r'run\.([^;]*);dur=[^;]*;desc="batch (\d+)"')

Results = dict[str, dict[str, Counter[str]]]
"""Image (its SHA-256) -> bucket -> answer, as it came -> how often."""


@dataclass(slots=True)
class Verification:
    """All results of a run. `failures`: requests by status that gave none (0: no answer)."""

    results: Results = field(default_factory=dict)
    failures: Counter[int] = field(default_factory=Counter)
    names: dict[str, int] = field(default_factory=dict)
    """Image -> its number in the order in which they were given."""

    @property
    def requests(self) -> int:
        return sum(
            counter.total() for buckets in self.results.values() for counter in buckets.values()
        )

    def note(self, image: str, answer: Answer) -> None:
        """Take an answer into account, as soon as it is there."""
        if answer.status != OK:
            self.failures[answer.status] += 1
            return
        buckets = self.results.setdefault(image, {})
        buckets.setdefault(bucket_of(answer.timing), Counter())[
            answer.body.decode("utf-8", "backslashreplace")
        ] += 1

    def inconsistent(self) -> Iterator[str]:
        """What must not be: an image with several results in one bucket."""
        for image, buckets in self.results.items():
            for bucket, found in sorted(buckets.items()):
                if len(found) > 1:
                    counts = ", ".join(
                        f"{count}×" for count in sorted(found.values(), reverse=True)
                    )
                    yield f"{self._name(image)}, {bucket}: {len(found)} distinct results ({counts}); {difference(found)}"

    def between_buckets(self) -> Iterator[str]:
        """What may be: an image whose results differ from one bucket to another."""
        for image, buckets in self.results.items():
            distinct = dict.fromkeys(answer for found in buckets.values() for answer in found)
            if len(distinct) > 1 and len(buckets) > 1:
                yield f"{self._name(image)}: {len(distinct)} distinct results over {len(buckets)} batch sizes; {difference(distinct)}"

    def compared(self, before: Results) -> Comparison:
        """This run's results beside an earlier one's."""
        comparison = Comparison()
        for image, buckets in self.results.items():
            for bucket, found in sorted(buckets.items()):
                earlier = before.get(image, {}).get(bucket)
                if earlier is None:
                    comparison.alone += 1
                elif set(earlier) == set(found):
                    comparison.equal += 1
                else:
                    what = difference([*earlier, *found])
                    comparison.different.append(
                        f"{self._name(image)}, {bucket}: other results than in the stored run; {what}"
                    )
        return comparison

    def store(self, file: Path) -> None:
        """All results, as JSON."""
        file.write_bytes(
            orjson.dumps(
                {"format": FORMAT, "requests": self.requests, "results": self.results},
                option=orjson.OPT_INDENT_2,
            )
        )

    def _name(self, image: str) -> str:
        return f"image {self.names.get(image, -1) + 1} ({image[:12]})"


@dataclass(slots=True)
class Comparison:
    """Of two runs, by image and bucket. `alone`: this run has them and the stored one has not, so there is nothing to compare."""

    equal: int = 0
    alone: int = 0
    different: list[str] = field(default_factory=list)


def read_results(file: Path) -> Results:
    """What `store` wrote. Raises ValueError for another file."""
    try:
        document = orjson.loads(file.read_bytes())
        if document["format"] != FORMAT:
            raise ValueError(f"{file} has format {document['format']!r}, expected {FORMAT}")
        results: dict[str, Any] = document["results"]
        return {
            image: {bucket: Counter(found) for bucket, found in buckets.items()}
            for image, buckets in results.items()
        }
    except (KeyError, TypeError, AttributeError, orjson.JSONDecodeError):
        raise ValueError(f"{file} holds no results of penstock bench --verify --store") from None


async def verify(send: Send, load: Load) -> Verification:
    """Send the load's requests in a random order, so that batches mix the images anew; `send` answers with its timing."""
    found = Verification()
    draw = random.Random(load.seed)
    images = {body: sha256(body).hexdigest() for body in load.bodies}
    for image in images.values():
        found.names.setdefault(image, len(found.names))

    async def noting(body: bytes) -> Answer:
        await asyncio.sleep(draw.choice((0.0, draw.uniform(0, PAUSE))))
        answer = await send(body)
        found.note(images[body], answer)
        return answer

    requests = load.requests or REQUESTS
    order = draw.choices(list(images), k=requests)
    await closed_loop(noting, order, load.clients, requests=requests)
    return found


async def verify_url(url: str, load: Load) -> Verification:
    """Verify a running server. Raises ValueError for a bad address."""
    client = HttpClient(url, load.headers, timing=True)
    try:
        return await verify(client.send, load)
    finally:
        await client.close()


async def verify_file(source: str | Path | Mapping[str, object], load: Load) -> Verification:
    """Verify a pipeline in this process. Raises what `Pipeline.load` and `start` raise."""
    async with Pipeline.load(source) as pipeline:
        return await verify(in_process(pipeline), load)


def in_process(pipeline: Pipeline) -> Send:
    """Send to a pipeline directly, and answer what its server would."""

    async def send(body: bytes) -> Answer:
        try:
            run = pipeline.submit_nowait({"data": body})
            item = await run.future
            if "error" in item:
                raise item["error"]
            return Answer(
                OK,
                to_json(fields_of(item, pipeline.answer_keys)),
                server_timing(run).decode("latin-1"),
            )
        except PenstockError as error:
            return Answer(STATUSES[code_of(error)].http, str(error).encode())

    return send


def bucket_of(timing: str) -> str:
    """From a Server-Timing header: 'digits in a batch of 4', for each node the item passed."""
    sizes = _BATCH.findall(timing)
    return (
        ", ".join(f"{node} in a batch of {size}" for node, size in sizes) or "no batch size known"
    )


def difference(answers: Iterable[str]) -> str:
    """How far answers lie apart, in words: where numbers differ most, and whether anything else differs."""
    documents = []
    for answer in answers:
        try:
            documents.append(orjson.loads(answer))
        except orjson.JSONDecodeError:
            return "they are no JSON"
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
        "; ".join(part for part in (other, numbers) if part)
        or "they are the same but for how they are written"
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
    return text if len(text) <= 40 else f"{text[:39]}…"


def lines(
    found: Verification, comparison: Comparison | None, limit: int = 20
) -> tuple[list[str], bool]:
    """What is printed, and whether all is as it must be: no failures, no inconsistency, no difference to the stored run."""
    buckets = [counter for each in found.results.values() for counter in each.values()]
    sizes: Mapping[str, int] = Counter(
        {
            bucket: sum(each[bucket].total() for each in found.results.values() if bucket in each)
            for bucket in _buckets(found)
        }
    )
    wrong = list(found.inconsistent())
    apart = list(found.between_buckets())
    text = [
        f"results      {found.requests} of {len(found.names)} images",
        *(f"  {count:>6}     {bucket}" for bucket, count in sizes.items()),
        f"repeated     {sum(counter.total() > 1 for counter in buckets)} of {len(buckets)} pairs of image and bucket came more than once",
        f"inconsistent {len(wrong)}",
        *_clipped(wrong, limit),
        f"between batch sizes {len(apart)} of {len(found.names)} images differ (allowed)",
        *_clipped(apart, limit),
    ]
    good = bool(found.requests) and not wrong and not found.failures
    if found.failures:
        kinds = ", ".join(
            f"{'no answer' if status == NO_ANSWER else status}: {n}"
            for status, n in sorted(found.failures.items())
        )
        text.append(f"failures     {kinds}; they gave nothing to verify")
    if comparison is not None:
        text.append(
            f"stored run   {comparison.equal} pairs equal, {len(comparison.different)} different, {comparison.alone} not in it"
        )
        text += _clipped(comparison.different, limit)
        good = good and not comparison.different and comparison.equal > 0
    return [*text, "verified" if good else "NOT VERIFIED"], good


def _buckets(found: Verification) -> list[str]:
    """In the order of their sizes."""
    every = {bucket for each in found.results.values() for bucket in each}
    return sorted(
        every, key=lambda bucket: [int(number) for number in re.findall(r"batch of (\d+)", bucket)]
    )


def _clipped(found: Sequence[str], limit: int) -> list[str]:
    more = [f"  … and {len(found) - limit} more"] if len(found) > limit else []
    return [f"  {each}" for each in found[:limit]] + more
