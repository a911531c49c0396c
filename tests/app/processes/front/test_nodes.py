"""Front nodes: what they pass on leads to what one process would have answered."""

from __future__ import annotations

import asyncio
import sys
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
from penstock.app.settings import Settings
from penstock.backends.errors import DeadlineExceeded, PenstockError, QueueFull
from penstock.backends.item import Item
from penstock.backends.memory import budget
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
        self.front = FrontNodes(1, fronts, Settings())
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
                found, submission = await ended(partial(crossing.submit_passed, passed, client="a"))
                expected, other = await ended(
                    partial(whole.submit_nowait, {"data": body}, client="a")
                )
                assert found == expected
                assert places(submission) == places(other)
                assert submission is not None
                assert other is not None
                assert submission.rows == other.rows
                assert len(submission.timings()) == len(other.timings())
            assert counted(crossing) == counted(whole)
            for statistics in (crossing.statistics, whole.statistics):
                times = statistics.queued, statistics.computed
                assert all(time > 0 for time in times) is (statistics.succeeded > 0)
            assert not crossing.in_flight

    asyncio.run(compare())


# What one front process does.

HOLD = chain_of(["hold", "add"], 1, "chain")


def gate() -> Any:
    """Return the module of the operators, whose `entered` and `opened` hold a node."""
    (module,) = [
        module
        for name, module in sys.modules.items()
        if name.startswith("_penstock_ops_") and hasattr(module, "Step")
    ]
    module.opened.clear()
    return module


async def entered(module: Any) -> None:
    await asyncio.wait_for(asyncio.to_thread(module.entered.acquire), BOUND)


async def test_the_front_s_own_refusal_is_one_of_the_pipeline(operators: Path) -> None:
    text = f"[pipeline]\nmax_requests = 1\nmax_wait = 'none'\n{HOLD}"
    async with processes(written(operators, text)) as both:
        module, pipeline = gate(), both.repository.get("whole")
        first = asyncio.create_task(both.cross(b"a"))
        await entered(module)
        refused = await both.cross(b"a")
        module.opened.set()
        assert await first is not None
        assert refused is not None
        with pytest.raises(QueueFull, match=r"too many requests in flight: 1 \(max_req") as raised:
            pipeline.submit_passed(refused)
        assert raised.value.retry_after is not None
        assert pipeline.refused == {"queue_full": 1, "overloaded": 0}
        assert not pipeline.in_flight


async def test_a_deadline_that_passes_in_the_front_is_that_of_the_request(operators: Path) -> None:
    async with processes(written(operators, HOLD)) as both:
        module, pipeline = gate(), both.repository.get("whole")
        first = asyncio.create_task(both.cross(b"a"))
        await entered(module)
        late = await both.cross(b"a", fields=[(b"penstock-deadline-ms", b"20")])
        assert late is not None
        submission = pipeline.submit_passed(late)
        with pytest.raises(DeadlineExceeded, match="node 'n0': the deadline passed while"):
            await submission.future
        assert [visit.batch for visit in submission.visits()] == [None]
        assert pipeline.statistics.failures["expired"] == 1
        module.opened.set()
        passed = await first
        assert passed is not None
        # It has come out in time, but comes to the model process too late.
        submission = pipeline.submit_passed(passed._replace(deadline=0.0))
        with pytest.raises(DeadlineExceeded, match="node 'n0': the answer came after"):
            await submission.future
        assert pipeline.statistics.failures["expired"] == 2
        assert not pipeline.in_flight


async def test_a_client_that_leaves_a_front_is_counted(operators: Path) -> None:
    async with processes(written(operators, HOLD)) as both:
        module, pipeline = gate(), both.repository.get("whole")
        head = PredictHead("whole", False, [])
        front = both.front.find(head)
        assert front is not None
        crossed: list[Passed] = []
        run = front.submit(head, b"a", 0.0, None, crossed.append)
        assert run is not None
        await entered(module)
        left = run.left()
        assert left is not None
        assert run.left() is None
        submission = pipeline.submit_passed(unpack(*pack(left)))
        with pytest.raises(asyncio.CancelledError):
            await submission.future
        assert pipeline.statistics.failures["cancelled"] == 1
        (visit,) = submission.visits()
        assert visit.node == "n0"
        assert visit.batch is not None
        assert visit.batch.ended > visit.batch.started
        module.opened.set()
    assert not crossed


async def test_a_table_replaces_what_ran_before(operators: Path) -> None:
    file = written(operators, chain_of(["add", "add"], 2, "chain"), "replaced")
    async with processes(file) as both:
        passed = await both.cross(b"a", "replaced")
        assert passed is not None
        old = both.repository.get("replaced")
        assert both.repository.pipeline_of(passed.token) is old
        file.write_text(chain_of(["array", "add"], 1, "chain"))
        await both.repository.reload("replaced")
        new = both.repository.get("replaced")
        assert new.token != old.token
        await both.apply()
        for name in ("replaced", f"replaced/versions/{new.config.version}"):
            passed = await both.cross(b"a", name)
            assert passed is not None
            assert passed.token == new.token
            assert [node.name for node in both.front.pipelines()[0][1].nodes] == ["n0"]
        await both.repository.unload("replaced")
        await both.apply()
        assert await both.cross(b"a", "replaced") is None


async def test_requests_cross_whole_where_front_nodes_can_not_load(
    operators: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = operators / "gone.py"
    source.write_text("def same(data):\n    return data\n")
    text = "[n]\nbackend = 'Python[gone.py:same]'\nfront = true\n"
    async with processes(written(operators, text, "gone")) as both:
        table = front_table(both.repository)
        source.unlink()
        other = FrontNodes(2, 1, Settings())
        await other.apply(table)
        await other.apply(table)  # it does not try again
        assert other.find(PredictHead("gone", False, [])) is None
        (line,) = [
            record.getMessage() for record in caplog.records if record.name.endswith("front")
        ]
        assert line.startswith("pipeline gone: its front nodes can't be loaded here, so the model")
        assert "gone.py" in line
        await other.close(1)


FORM = (
    b'--x\r\ncontent-disposition: form-data; name="image"; filename="a.jpg"\r\n'
    b"content-type: image/jpeg\r\n\r\na\r\n--x--\r\n"
)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (b"application/json", b'{"image": "YQ=="}'),
        (b"application/octet-stream", b'{"image": "YQ=="}'),
        (b"multipart/form-data; boundary=x", FORM),
        (b"image/jpeg", b"a"),
        (b"application/x-www-form-urlencoded", b"a"),
    ],
)
async def test_an_image_may_come_in_any_form(
    content_type: bytes, body: bytes, operators: Path
) -> None:
    async with processes(written(operators, chain_of(["add"], 1, "chain"))) as both:
        used = budget.used
        passed = await both.cross(body, "whole", [(b"content-type", content_type)])
        assert passed is not None
        assert passed.item is not None
        assert bytes(passed.item["result"]) == b"an0"
        assert budget.used == used


@pytest.mark.parametrize(
    ("name", "fields", "body"),
    [
        ("other", [], b"a"),
        ("whole", [(b"content-type", b"application/json")], b"{}"),
        ("whole", [(b"content-type", b"application/json")], b'{"image": {"url": "http://a/b"}}'),
        (
            "whole",
            [(b"content-type", b"application/json")],
            b'{"image": "%b"}' % (b"YWFh" * 400_000),
        ),
        ("whole", [(b"content-type", b"multipart/form-data; boundary=y")], FORM),
        ("whole", [], b"{}"),
        ("whole", [(b"content-encoding", b"gzip")], b"a"),
        ("whole", [(b"penstock-trace", b"1")], b"a"),
        ("whole", [(b"accept", b"text/event-stream")], b"a"),
        ("whole", [(b"penstock-deadline-ms", b"soon")], b"a"),
        ("whole", [(b"penstock-priority", b"high")], b"a"),
        ("whole", [(b"content-type", b"text/plain")], b"a"),
        ("whole", [], b""),
    ],
)
async def test_what_front_nodes_do_not_take_crosses_whole(
    name: str, fields: list[tuple[bytes, bytes]], body: bytes, operators: Path
) -> None:
    async with processes(written(operators, chain_of(["add"], 1, "chain"))) as both:
        assert await both.cross(body, name, fields) is None
        assert await both.cross(b"a", "whole", [(b"content-type", b"image/jpeg")]) is not None


async def test_fronts_share_the_instances_and_the_places(operators: Path) -> None:
    text = chain_of(["add"], 1, "chain") + "instance_num = 3\n[pipeline]\nmax_requests = 100\n"
    async with processes(written(operators, text), fronts=3) as three:
        ((_, pipeline),) = three.front.pipelines()
        assert len(pipeline.nodes[0].executors) == 1
        assert pipeline.config.max_requests == 34
    async with processes(written(operators, text), fronts=2) as two:
        ((_, pipeline),) = two.front.pipelines()
        assert len(pipeline.nodes[0].executors) == 2


async def test_front_nodes_have_no_gpu(operators: Path) -> None:
    text = "device = 'cpu'\n[n]\nbackend = 'S[DecodeMat]'\n"
    async with processes(written(operators, text)) as both:
        ((_, pipeline),) = both.front.pipelines()
        assert pipeline.config.nodes["n"].devices == ()
        assert both.repository.get("whole").config.nodes["n"].devices == ("cpu",)


async def test_fronts_learn_of_pressure(operators: Path) -> None:
    async with processes(written(operators, chain_of(["add"], 1, "chain"))) as both:
        repository, pipeline = both.repository, both.repository.get("whole")
        heard: list[tuple[str, bool]] = []
        repository.on_pressure = lambda token, on: heard.append((token, on))
        front = both.front.find(PredictHead("whole", False, []))
        assert front is not None
        for on in (True, False):
            pipeline._admission.pressure.turn(on)
            assert heard.pop() == (pipeline.token, on)
            both.front.set_pressure(pipeline.token, on)
            assert front.under_pressure is on


async def test_a_front_that_is_linked_under_pressure_knows_it(operators: Path) -> None:
    async with processes(written(operators, chain_of(["add"], 1, "chain"))) as both:
        admission = both.repository.get("whole")._admission
        admission.pressure.turn(True)
        admission.door.requests = 1  # without a request there is no pressure
        late = FrontNodes(2, 2, Settings())
        await late.apply(front_table(both.repository))
        admission.door.requests = 0
        front = late.find(PredictHead("whole", False, []))
        assert front is not None and front.under_pressure
        await late.close(1)


async def test_pressure_that_begins_while_front_nodes_load_is_kept(operators: Path) -> None:
    async with processes(written(operators, chain_of(["add"], 1, "chain"))) as both:
        token = both.repository.get("whole").token
        late = FrontNodes(2, 2, Settings())
        loading = late.apply(front_table(both.repository))
        late.set_pressure(token, True)  # came in the same packet
        await loading
        front = late.find(PredictHead("whole", False, []))
        assert front is not None and front.under_pressure
        await late.close(1)


async def test_requests_of_one_batch_share_it(operators: Path) -> None:
    async with processes(written(operators, HOLD)) as both:
        module, pipeline = gate(), both.repository.get("whole")
        first = asyncio.create_task(both.cross(b"a"))
        await entered(module)
        more = [asyncio.create_task(both.cross(b"a")) for _ in range(2)]
        await asyncio.sleep(0)
        module.opened.set()
        assert await first is not None
        batches = []
        for task in more:
            passed = await task
            assert passed is not None
            submission = pipeline.submit_passed(passed)
            await submission.future
            batches.append(submission.visits()[0].batch)
        assert batches[0] is batches[1]
        assert batches[0] is not None
        assert batches[0].size == 2
        assert batches[0].start is not None
        assert batches[0].start.executor == "whole/n0 in front 1#0"
