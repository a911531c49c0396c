"""Front nodes: what they pass on leads to what one process would have answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.app.http.predict_call import PredictHead
from penstock.app.processes.front.nodes import FrontNodes
from penstock.backends.errors import PenstockError
from penstock.backends.item import Item
from penstock.pipelines.front_table import front_table
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.repository import Repository
from penstock.pipelines.runs.passed import Passed, pack, unpack
from penstock.pipelines.runs.run import Submission

BOUND = 20.0

OPERATORS = """
import threading
import numpy as np
from penstock import Backend, InvalidInput

entered, opened = threading.Semaphore(0), threading.Event()

class Step(Backend):
    parameters = None

    def init(self, params, context):
        self.does = params.get("does", "add")
        self.name = context.node

    def forward(self, batch):
        for item in batch:
            self.run(item, item["data"])

    def run(self, item, data):
        letters = bytes(data)
        found = letters[:1]
        item["seen_" + self.name] = len(letters)
        if self.does == "stop" and found == b"b":
            return
        if self.does == "soft" and found == b"s":
            item["error"] = InvalidInput(f"{self.name} can't read it")
            return
        if self.does == "fail" and found == b"f":
            raise RuntimeError(f"{self.name} failed")
        if self.does == "hold":
            entered.release()
            assert opened.wait(20)
        result = letters + self.name.encode()
        item["result"] = np.frombuffer(result, np.uint8).copy() if self.does == "array" else result


def both(data):
    return data
"""


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the operators, for pipelines whose files are there."""
    folder = tmp_path_factory.mktemp("fronts")
    (folder / "ops.py").write_text(OPERATORS)
    return folder


def written(folder: Path, text: str, name: str = "whole") -> Path:
    file = folder / f"{name}.toml"
    file.write_text(text)
    return file


def chain_of(does: list[str], fronts: int, shape: str) -> str:
    """Return a file of a chain. The first `fronts` nodes may run in front processes."""
    names = [f"n{number}" for number in range(len(does))]
    nodes = []
    for number, (name, what) in enumerate(zip(names, does, strict=True)):
        following = [*names[number + 1 : number + 2]]
        if not following and shape != "chain":
            following = ["left", "right"]
        nodes.append(
            f"[{name}]\nbackend = 'Python[ops.py:Step]'\ndoes = '{what}'\n"
            f"front = {str(number < fronts).lower()}\n"
            + (f"next = {following}\n" if following else "")
        )
    last = names[-1]
    if shape == "branches":
        nodes += [
            "[left]\nbackend = 'Python[ops.py:Step]'\nnext = 'join'\n",
            "[right]\nbackend = 'Python[ops.py:Step]'\nnext = 'join'\n",
            "[join]\nbackend = 'Python[ops.py:Step]'\n"
            f"map = '{last}[seen_{last}:seen],left[result:data],right[result:other]'\n",
        ]
    elif shape == "leaves":
        nodes += [f"[{side}]\nbackend = 'Python[ops.py:Step]'\n" for side in ("left", "right")]
    return "\n".join(nodes)


class Processes:
    """A repository and one front process, joined without a link. Everything is pickled."""

    def __init__(self, repository: Repository, fronts: int = 1) -> None:
        self.repository = repository
        self.front = FrontNodes(1, fronts)
        self.passed: list[Passed] = []

    async def apply(self) -> None:
        await self.front.apply(front_table(self.repository))

    async def cross(
        self, body: bytes, name: str = "whole", fields: list[tuple[bytes, bytes]] | None = None
    ) -> Passed | None:
        """Return what crosses after the front nodes; None if the body has to."""
        head = PredictHead(name, False, fields or [])
        front = self.front.find(head)
        crossed: asyncio.Future[Passed] = asyncio.get_running_loop().create_future()
        if front is None:
            return None
        run = front.submit(head, body, 0.0, "client", crossed.set_result)
        if run is None:
            return None
        payload, buffers = pack(await asyncio.wait_for(crossed, BOUND))
        passed = unpack(payload, [bytearray(buffer) for buffer in buffers])
        self.passed.append(passed)
        return passed


@asynccontextmanager
async def processes(file: Path, fronts: int = 1) -> AsyncIterator[Processes]:
    repository = Repository.read(file)
    repository.note_batches()
    await repository.start()
    both = Processes(repository, fronts)
    await both.apply()
    try:
        yield both
    finally:
        await both.front.close(1)
        await repository.close(1)


async def ended(submit: Callable[[], Submission]) -> tuple[Any, Submission | None]:
    """Return the answer of a request, or its error, as far as it does not depend on times."""
    submission = None
    try:
        submission = submit()
        item: Item = await asyncio.wait_for(submission.future, BOUND)
    except PenstockError as error:
        return (type(error).__name__, str(error), error.code), submission
    soft = item.pop("error", None)
    del item["data"]
    plain = {
        key: bytes(value) if key in {"result", "other"} else value for key, value in item.items()
    }
    return (plain, type(soft).__name__, str(soft)), submission


def counted(pipeline: Pipeline) -> tuple[Any, ...]:
    statistics = pipeline.statistics
    return (
        statistics.succeeded,
        statistics.rows,
        statistics.failures,
        pipeline.refused,
        pipeline.in_flight,
        pipeline._admission.door.rows,
        pipeline._admission.door.clients,
    )


def places(submission: Submission | None) -> list[tuple[str, int]]:
    if submission is None:
        return []
    visits = submission.visits()  # branches end in any order
    return sorted((node, 0 if batch is None else batch.size) for node, _, batch in visits)


DOES = st.sampled_from(["add", "array", "stop", "soft", "fail"])


@given(
    does=st.lists(DOES, min_size=1, max_size=4),
    fronts=st.integers(1, 4),
    shape=st.sampled_from(["chain", "branches", "leaves"]),
    bodies=st.lists(st.sampled_from([b"a", b"b", b"s", b"f"]), min_size=1, max_size=3),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_requests_end_as_in_one_process(
    does: list[str], fronts: int, shape: str, bodies: list[bytes], operators: Path
) -> None:
    async def compare() -> None:
        file = written(operators, chain_of(does, fronts, shape))
        async with processes(file) as both, processes(file) as one:
            crossing, whole = both.repository.get("whole"), one.repository.get("whole")
            for body in bodies:
                passed = await both.cross(body)
                assert passed is not None
                assert passed.token == crossing.token
                found, submission = await ended(partial(crossing.submit_passed, passed))
                expected, other = await ended(partial(whole.submit_nowait, {"data": body}))
                assert found == expected
                assert places(submission) == places(other)
                assert submission is not None
                assert other is not None
                assert submission.rows == other.rows
                assert len(submission.timings()) == len(other.timings())
            assert counted(crossing) == counted(whole)
            assert not crossing.in_flight

    asyncio.run(compare())
