"""Backends that call other models, from a thread and from a child process; decoupled models."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock import DeadlineExceeded, InvalidInput, NotReady, Pipeline
from penstock.backends.errors import BackendError
from penstock.backends.server import ModelOrder, Response
from penstock.pipelines.composites.model_calls import ModelCalls
from penstock.pipelines.config.load import load
from penstock.pipelines.repository import Repository

LOOPS = ("debug",)

pytestmark = pytest.mark.usefixtures("no_threads_left")

MODELS = '''
"""The models of these tests. `data` says what they do."""

import os
import threading
import time
from pathlib import Path

import numpy as np
from penstock.backends.base import Backend
from penstock.backends.errors import InvalidInput
from penstock.backends.expressions.composite import Decoupled
from penstock.backends.server import (
    MAX_UNREAD_RESPONSES, ModelCall, ModelOrder, Response, ResponseError
)

HERE = Path(__file__).parent
SENT = HERE / "sent"


class Gate:
    """Files, because the models may run in children."""

    @staticmethod
    def wait():
        (HERE / "waits").touch()
        ends = time.monotonic() + 60
        while not (HERE / "go").exists() and time.monotonic() < ends:
            time.sleep(0.005)


class Double(Backend):
    def forward(self, batch):
        for item in batch:
            if item["data"][0, 0] == 13:
                raise InvalidInput("13 can't be doubled")
            if item["data"][0, 0] == 14:
                Gate.wait()
            item["result"] = 2 * item["data"]


class Calls(Backend):
    """Calls the model and gives what that answers."""

    takes_server = True
    parameters = None

    def init(self, params, context):
        self.server = context.server

    def forward(self, batch):
        with self.server.running(batch):
            for item in batch:
                item["result"] = self.answer(item, *item["data"])

    def answer(self, item, model, value, **options):
        if model == "die":
            self.server.start(ModelCall("double", "", {"X": value}))
            while not (HERE / "waits").exists():
                time.sleep(0.005)
            os._exit(3)
        if model == "wait":
            Gate.wait()
            model = "double"
        if model == "cancelled":
            (HERE / "waits").touch()
            while not self.server.is_cancelled(item["handle"]):
                time.sleep(0.005)
            (HERE / "noticed").touch()
            return "cancelled"
        if model == "run":
            return self.server.run(os.getpid)
        if model in ("load", "unload", "ready"):
            response = self.server.order(ModelOrder(model, value))
        else:
            call = ModelCall(model, "", {"X": value}, **options)
            response = self.server.start(call).get()
        if response.error is not None:
            if response.error.code == "CANCELLED":
                (HERE / "noticed").touch()
            raise InvalidInput(f"{response.error.code}: {response.error.message}")
        return response.outputs if model in ("load", "unload", "ready") else response.outputs["Y"]


class Nested(Calls):
    """Calls itself as often as `data` says."""

    def answer(self, item, depth, value):
        if not depth[0]:
            return value
        call = ModelCall("nested", "", {"N": depth - 1, "X": value})
        response = self.server.start(call).get()
        if response.error is not None:
            raise InvalidInput(response.error.message)
        return response.outputs["Y"]


class Iterates(Calls):
    """Sums what a decoupled model answers; cancels after as many responses as `data` says."""

    def answer(self, item, value, most):
        call = self.server.start(ModelCall("counts", "", {"X": value}, streams=True))
        found = []
        while True:
            response = call.get()
            if response.error is not None:
                return found, response.error.code
            if response.outputs is not None:
                found.append(int(response.outputs["Y"][0]))
            if response.final:
                return found, ""
            if len(found) == most:
                call.cancel()
            call.ask()


async def logic(item, call):
    answer = await call("calls", {"data": ["double", item["data"]]})
    return answer["result"]


class Counts(Decoupled):
    """Counts to X. Its responses come from a thread, after `forward` has returned."""

    parameters = None

    def init(self, params, context):
        self.server = context.server

    def forward(self, batch):
        (item,) = batch
        with self.server.running(batch, responds=True):
            n = int(item["data"][0])
            if n == 99:
                raise ValueError("99 is too many")
            if n == 98:
                os._exit(3)
            if n == 95:
                Gate.wait()
            self.thread = threading.Thread(target=self.work, args=(item["handle"], n), daemon=True)
            self.thread.start()

    def work(self, handle, n):
        if n == 97:
            Gate.wait()
            os._exit(3)
        for number in range(n):
            if self.server.is_cancelled(handle):
                break
            if n in (4, 200):
                SENT.with_suffix(".new").write_bytes(number.to_bytes(4))
                SENT.with_suffix(".new").rename(SENT)
            if number == 5 and n == 6:
                error = ResponseError("UNAVAILABLE", "no more than 5")
                self.server.respond(handle, Response(None, error))
                return
            value = np.array([number], np.int32)
            if n == 4:
                value = np.zeros(20 << 20, np.uint8)  # more than may wait
            last = n == 3 and number == 2
            self.server.respond(handle, Response({"Y": value}, final=last))
        if n != 3:
            self.server.respond(handle, Response(None))
        (HERE / "ended").touch()

    def close(self):
        if hasattr(self, "thread"):
            self.thread.join()
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


@asynccontextmanager
async def serving(folder: Path, executor: str) -> AsyncIterator[Repository]:
    tensor = {"X": {"kind": "tensor"}}
    own: dict[str, Any] = {"executor": executor}
    value = {"kind": "json"}
    tables: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("Double", tensor, {}),
        ("Calls", {"MODEL": value, **tensor}, {"retry": False, **own}),
        ("Nested", {"N": value, **tensor}, {"instance_num": 2}),
        ("Iterates", {**tensor, "MOST": value}, {}),
        ("Counts", tensor, own),
        ("logic", tensor, {}),
    ]
    configs = []
    for cls, inputs, keys in tables:
        outputs = {"Y": value}
        pipeline = {"name": cls.lower(), "inputs": inputs, "outputs": outputs, "positional": True}
        node = {"backend": f"Python[{folder}/models.py:{cls}]", **keys}
        configs.append(load({"pipeline": pipeline, "model": node}))
    repository = Repository(configs)
    await repository.start()
    try:
        yield repository
    finally:
        (folder / "go").touch()
        await repository.close(5)


X = np.array([[1, 2]], np.float32)


async def until(path: Path) -> None:
    async with asyncio.timeout(60):
        while not path.exists():
            await asyncio.sleep(0.005)


async def a_model_calls_another(repository: Repository, folder: Path) -> None:
    calls = repository.get("calls")
    assert (await calls({"data": ["double", X]}))["result"].tolist() == [[2, 4]]
    large = np.ones((1, 3 << 20), np.float32)
    assert (await calls({"data": ["double", large]}))["result"].sum() == 6 << 20
    for model, text in [
        ("double", "13 can't be doubled"),
        ("trouble", r"NOT_FOUND: .*there is no pipeline 'trouble'"),
    ]:
        with pytest.raises(InvalidInput, match=text):
            await calls({"data": [model, 13 * X]})
    assert (await calls({"data": ["run", None]}))["result"] == os.getpid()


async def models_load_and_unload_others(repository: Repository, folder: Path) -> None:
    calls = repository.get("calls")

    async def ask(action: str, model: str) -> Any:
        return (await calls({"data": [action, model]}))["result"]

    assert await ask("ready", "double") == {"ready": True}
    assert await ask("unload", "double") == {}
    assert await ask("ready", "double") == {"ready": False}
    assert await ask("load", "double") == {}
    assert await ask("ready", "double") == {"ready": True}
    with pytest.raises(InvalidInput, match="NOT_FOUND: there is no pipeline 'trouble'"):
        await ask("load", "trouble")
    # It answers the request that ordered it.
    assert await ask("unload", "calls") == {}
    await repository.load(calls.config)


async def a_client_that_leaves_ends_its_calls(repository: Repository, folder: Path) -> None:
    asking = asyncio.ensure_future(repository.get("calls")({"data": ["double", 14 * X]}))
    await until(folder / "waits")
    asking.cancel()
    await until(folder / "noticed")
    assert repository.get("double").in_flight == 0
    (folder / "go").touch()


async def a_call_has_the_deadline_of_its_request(repository: Repository, folder: Path) -> None:
    # It ends although what it called still runs.
    with pytest.raises(DeadlineExceeded):
        await repository.get("calls")({"data": ["double", 14 * X]}, timeout=0.2)
    assert repository.get("double").statistics.failures["expired"]
    (folder / "go").touch()


async def a_model_sees_that_its_client_has_left(repository: Repository, folder: Path) -> None:
    asking = asyncio.ensure_future(repository.get("calls")({"data": ["cancelled", None]}))
    await until(folder / "waits")
    asking.cancel()
    await until(folder / "noticed")


async def a_ring_of_calls_ends_with_an_error(repository: Repository, folder: Path) -> None:
    nested = repository.get("nested")
    assert (await nested({"data": [np.array([1]), X]}))["result"].sum() == 3  # 2 suffice
    with pytest.raises(InvalidInput, match="deadlock: the call waits for an instance"):
        await nested({"data": [np.array([2]), X]})
    # Each holds an instance, and waits for the other's.
    answers = await asyncio.gather(
        *[nested({"data": [np.array([1]), X]}) for _ in range(4)], return_exceptions=True
    )
    assert any(isinstance(answer, dict) for answer in answers)
    assert all("deadlock" in str(answer) for answer in answers if not isinstance(answer, dict))
    assert nested.in_flight == 0


async def a_ring_through_logic_ends_with_an_error(repository: Repository, folder: Path) -> None:
    """A model calls Python logic, which calls that model again."""
    with pytest.raises(InvalidInput, match="deadlock: the call waits for an instance"):
        await repository.get("calls")({"data": ["logic", X]})


async def a_child_that_dies_ends_its_calls(repository: Repository, folder: Path) -> None:
    calls = repository.get("calls")
    with pytest.raises(BackendError, match="exited with code 3"):
        await calls({"data": ["die", 14 * X]})
    assert repository.get("double").in_flight == 0
    (folder / "go").touch()
    assert (await calls({"data": ["double", X]}))["result"].tolist() == [[2, 4]]


async def calls_end_when_the_server_closes(repository: Repository, folder: Path) -> None:
    asking = asyncio.ensure_future(repository.get("calls")({"data": ["double", 14 * X]}))
    await until(folder / "waits")
    closing = asyncio.ensure_future(repository.close(0))
    with pytest.raises(NotReady, match="is closed"):
        await asking
    (folder / "go").touch()
    await closing


async def calls_are_answered_while_the_server_drains(repository: Repository, folder: Path) -> None:
    asking = asyncio.ensure_future(repository.get("calls")({"data": ["wait", X]}))
    await until(folder / "waits")
    closing = asyncio.ensure_future(repository.close(60))
    double = repository.get("double")
    while double.state == "ready":
        await asyncio.sleep(0)
    with pytest.raises(NotReady):
        await double({"data": X})
    (folder / "go").touch()
    assert (await asking)["result"].tolist() == [[2, 4]]
    await closing


async def sent(folder: Path) -> int:
    """Return how many responses a model has sent, when it sends no more."""
    before, now = b"", (folder / "sent").read_bytes()
    while now != before:
        await asyncio.sleep(0.1)
        before, now = now, (folder / "sent").read_bytes()
    return int.from_bytes(now)


async def parts_of(pipeline: Pipeline, count: int) -> list[int]:
    item = {"data": np.array([count], np.int32)}
    return [int(part["result"][0]) async for part in pipeline.stream(item)]


async def a_decoupled_model_responds_when_it_likes(repository: Repository, folder: Path) -> None:
    counts = repository.get("counts")
    assert await parts_of(counts, 2) == [0, 1]
    assert await parts_of(counts, 3) == [0, 1, 2]  # the last response says that it is
    assert await parts_of(counts, 0) == []
    many = await asyncio.gather(*[parts_of(counts, 20) for _ in range(4)])
    assert many == [list(range(20))] * 4
    found = []
    with pytest.raises(InvalidInput, match="no more than 5") as raised:
        async for part in counts.stream({"data": np.array([6], np.int32)}):
            found += part["result"].tolist()
    assert found == [0, 1, 2, 3, 4]
    assert raised.value.code == "unavailable"
    with pytest.raises(BackendError, match="99 is too many"):
        await parts_of(counts, 99)


async def a_slow_client_holds_its_model_back(repository: Repository, folder: Path) -> None:
    counts = repository.get("counts")
    stream = counts.stream({"data": np.array([200], np.int32)})
    first = await anext(stream)
    assert int(first["result"][0]) == 0
    assert await parts_of(counts, 2) == [0, 1]  # others are answered meanwhile
    assert await sent(folder) < 70
    rest = [int(part["result"][0]) async for part in stream]
    assert rest == list(range(1, 200))


async def clients_that_leave_leave_the_queue(repository: Repository, folder: Path) -> None:
    counts = repository.get("counts")
    first = asyncio.ensure_future(parts_of(counts, 95))
    await until(folder / "waits")
    others = [asyncio.ensure_future(parts_of(counts, 2)) for _ in range(10)]
    (node,) = counts.composites
    while repr(node) != "<DecoupledNode model: 1 running, 10 queued>":
        await asyncio.sleep(0.005)
    for other in others:
        other.cancel()
    await asyncio.wait(others)
    assert repr(node) == "<DecoupledNode model: 1 running, 0 queued>"
    (folder / "go").touch()
    assert await first == list(range(95))


async def responses_that_wait_are_bounded_in_bytes(repository: Repository, folder: Path) -> None:
    stream = repository.get("counts").stream({"data": np.array([4], np.int32)})
    await anext(stream)
    assert await sent(folder) < 3
    await stream.aclose()  # which ends what the model waits for
    await until(folder / "ended")


async def a_child_that_dies_ends_its_streams(repository: Repository, folder: Path) -> None:
    counts = repository.get("counts")
    stream = counts.stream({"data": np.array([200], np.int32)})
    await anext(stream)
    with pytest.raises(BackendError, match="exited with code 3"):
        await parts_of(counts, 98)  # while `forward` runs
    with pytest.raises(BackendError, match="ended before its last response"):
        async for _ in stream:
            pass
    waiting = asyncio.ensure_future(parts_of(counts, 97))
    await until(folder / "waits")
    (node,) = counts.composites
    while repr(node) != "<DecoupledNode model: 0 running, 0 queued>":
        await asyncio.sleep(0.005)
    (folder / "go").touch()  # `forward` has returned, and nothing was sent
    with pytest.raises(BackendError, match="ended before its last response"):
        await waiting
    assert await parts_of(counts, 2) == [0, 1]


async def a_model_iterates_over_a_decoupled_one(repository: Repository, folder: Path) -> None:
    iterates = repository.get("iterates")

    async def iterate(count: int, most: int) -> Any:
        return (await iterates({"data": [np.array([count], np.int32), most]}))["result"]

    assert await iterate(3, -1) == ([0, 1, 2], "")
    assert await iterate(6, -1) == ([0, 1, 2, 3, 4], "UNAVAILABLE")
    assert await iterate(200, 3) == ([0, 1, 2], "CANCELLED")


Check = Callable[[Repository, Path], Awaitable[None]]

IN_BOTH = [
    a_client_that_leaves_ends_its_calls,
    a_call_has_the_deadline_of_its_request,
    a_model_sees_that_its_client_has_left,
    a_slow_client_holds_its_model_back,
    responses_that_wait_are_bounded_in_bytes,
]
IN_THREADS = [  # test_bls.py has most of it in processes
    a_model_calls_another,
    models_load_and_unload_others,
    a_ring_of_calls_ends_with_an_error,
    a_ring_through_logic_ends_with_an_error,
    clients_that_leave_leave_the_queue,
    a_decoupled_model_responds_when_it_likes,
    a_model_iterates_over_a_decoupled_one,
]
IN_PROCESSES = [a_child_that_dies_ends_its_calls, a_child_that_dies_ends_its_streams]


@pytest.mark.parametrize(
    ("executor", "checks", "last"),
    [
        ("thread", IN_BOTH + IN_THREADS, calls_end_when_the_server_closes),
        ("process", IN_BOTH + IN_PROCESSES, calls_are_answered_while_the_server_drains),
    ],
)
async def test_models_call_others_and_respond(
    folder: Path, executor: str, checks: list[Check], last: Check
) -> None:
    # One server for all: children take long to start.
    async with serving(folder, executor) as repository:
        for check in checks:
            try:
                await check(repository, folder)
            except BaseException as error:
                error.add_note(f"in {check}")
                raise
            await idle(repository)
            for name in ("waits", "go", "noticed", "ended"):
                (folder / name).unlink(missing_ok=True)
        await last(repository, folder)


async def idle(repository: Repository) -> None:
    """Wait until no batch runs, also for callers that have left."""
    await repository.wait_idle()
    async with asyncio.timeout(60):
        while any(
            node.scheduler.running for pipeline in repository.served for node in pipeline.nodes
        ):
            await asyncio.sleep(0.005)


class Answers:
    """A listener that keeps the last responses."""

    def __init__(self) -> None:
        self.last: dict[int, Response] = {}

    def answered(self, number: int, response: Response) -> None:
        self.last[number] = response

    def taken(self, handle: int, size: int) -> None: ...
    def ended(self, handle: int) -> None: ...


class NeverReady:
    """The pipeline of a backend whose orders take for ever."""

    def call_model(self, call: object, future: object, parents: object, deadline: float) -> Any:
        raise AssertionError

    async def order_model(self, order: ModelOrder) -> Response:
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_call_that_ends_before_it_has_begun_is_answered(folder: Path) -> None:
    loop = asyncio.get_running_loop()
    calls = ModelCalls(NeverReady(), loop, loop.time)
    async with serving(folder, "thread") as repository:
        link, answers = calls.link(repository.get("double").nodes[0]), Answers()
        connection = link.connect(answers)
        connection.start(1, ModelOrder("load", "m"))
        connection.cancel(1)  # read in the same iteration of the loop
        while not answers.last:
            await asyncio.sleep(0)
        assert answers.last[1].error == ("CANCELLED", "the request was cancelled")
        connection.start(2, ModelOrder("load", "m"))
        while not link.calls:
            await asyncio.sleep(0)
        calls.close("the pipeline is closed")
        while len(answers.last) < 2:
            await asyncio.sleep(0)
        assert answers.last[2].error == ("UNAVAILABLE", "the pipeline is closed")
        assert not link.calls
