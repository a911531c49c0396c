"""Pipelines in the process of a host: several loops, pipelines and interfaces for one file; and a
process that stays as the host set it up.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import uvloop
from onnx import TensorProto, helper

import penstock
from penstock.backends.base import Backend
from penstock.backends.errors import NotReady
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.pipeline import Pipeline

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"

pytestmark = pytest.mark.usefixtures("own_registry", "no_threads_left")

BOUND = 20.0
EVENT_LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Hold(Backend):
    """Waits if `data` is an event, and adds 1 to a number."""

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            data = item["data"]
            if isinstance(data, threading.Event):
                item["entered"].release()
                assert data.wait(BOUND)
                data = 0
            item["result"] = data + 1


@pytest.fixture(autouse=True)
def hold(own_registry: None) -> None:
    register_backend("Hold", Hold)


def run_on(factory: Callable[[], asyncio.AbstractEventLoop], main: Callable[[], Any]) -> Any:
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


@pytest.mark.parametrize("second", EVENT_LOOPS)
@pytest.mark.parametrize("first", EVENT_LOOPS)
def test_two_loops_in_one_process(first: str, second: str) -> None:
    """Two threads, each with a loop and a pipeline of the same tables, and a pipe of these.

    Each gets its own answers.
    """
    meet = threading.Barrier(3)

    async def use() -> list[int]:
        async with Pipeline.load(
            {"node": {"backend": "Hold", "max": 4, "instance_num": 2}}
        ) as pipeline:
            await asyncio.to_thread(meet.wait, BOUND)
            answers = await asyncio.gather(*[pipeline({"data": number}) for number in range(200)])
            await asyncio.to_thread(meet.wait, BOUND)
            return [answer["result"] for answer in answers]

    def block() -> list[int]:
        with penstock.pipe({"node": {"backend": "Hold", "max": 4, "instance_num": 2}}) as p:
            meet.wait(BOUND)
            items: list[dict[str, Any]] = [{"data": number} for number in range(200)]
            for item in items:
                p(item)
            meet.wait(BOUND)
            return [item["result"] for item in items]

    with ThreadPoolExecutor(3) as pool:
        answers = [
            pool.submit(run_on, EVENT_LOOPS[first], use),
            pool.submit(run_on, EVENT_LOOPS[second], use),
            pool.submit(block),
        ]
        assert [answer.result(BOUND) for answer in answers] == [list(range(1, 201))] * 3


async def test_a_call_on_another_loop_fails() -> None:
    """Nothing is queued from a thread that the scheduler does not know."""
    async with Pipeline.load("Hold") as pipeline:

        async def call(item: Any) -> None:
            await pipeline(item)

        for item in ({"data": 1}, [{"data": 1}]):
            with pytest.raises(
                RuntimeError,
                match=r"'pipeline' was started in another event loop.*once for each loop",
            ):
                await asyncio.to_thread(run_on, asyncio.new_event_loop, partial(call, item))
        assert pipeline.in_flight == 0
        assert (await pipeline({"data": 1}))["result"] == 2


async def test_closing_a_pipeline_with_requests_in_flight_ends_every_future() -> None:
    """Requests run and queue at both nodes, alone and in a list. None is answered in time."""
    pipeline = Pipeline.load(
        {"a": {"backend": "Hold", "max": 1, "next": "b"}, "b": {"backend": "Hold", "max": 1}}
    )
    await pipeline.start()
    gate, entered = threading.Event(), threading.Semaphore(0)
    running = asyncio.ensure_future(pipeline({"data": gate, "entered": entered}))
    assert await asyncio.to_thread(entered.acquire, timeout=BOUND)
    queued = [asyncio.ensure_future(pipeline({"data": number})) for number in range(20)]
    listed = asyncio.ensure_future(pipeline([{"data": 1}, {"data": 2}]))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(pipeline.close(0.01))
    done, pending = await asyncio.wait([running, *queued, listed], timeout=BOUND)
    gate.set()
    await closing
    assert not pending
    assert all(isinstance(call.exception(), NotReady) for call in done)
    assert pipeline.in_flight == 0
    with pytest.raises(NotReady):
        await pipeline({"data": 1})


async def test_closing_a_pipeline_with_enough_time_answers_requests_in_flight() -> None:
    pipeline = Pipeline.load(
        {"a": {"backend": "Hold", "max": 1, "next": "b"}, "b": {"backend": "Hold", "max": 1}}
    )
    await pipeline.start()
    calls = [asyncio.ensure_future(pipeline({"data": number})) for number in range(50)]
    await asyncio.sleep(0)
    await pipeline.close(BOUND)
    assert [(await call)["result"] for call in calls] == list(range(2, 52))


async def test_a_cancelled_host_task_leaves_no_threads() -> None:
    """A host's task is cancelled while a batch runs: the pipeline's block and its threads end."""
    gate, entered = threading.Event(), threading.Semaphore(0)

    async def host() -> None:
        async with Pipeline.load("Hold") as pipeline:
            await pipeline({"data": gate, "entered": entered})

    task = asyncio.ensure_future(host())
    assert await asyncio.to_thread(entered.acquire, timeout=BOUND)
    task.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task


PROCESS = """
import asyncio, gc, logging, signal, sys, threading, warnings
from pathlib import Path
import cv2
import penstock as tp
from penstock import create_app, lifespan

FILE, IMAGE = sys.argv[1:]

def process():
    root, our = logging.getLogger(), logging.getLogger("penstock")
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "wakeup": signal.set_wakeup_fd(signal.set_wakeup_fd(-1)),
        "gc": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), list(gc.callbacks)),
        "cv2 threads": cv2.getNumThreads(),
        "switch interval": sys.getswitchinterval(),
        "root logger": (root.level, list(root.handlers), list(root.filters)),
        "logging": (logging.root.manager.disable, logging.lastResort),
        "our logger": (our.level, list(our.handlers)),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
        "tracing": (sys.gettrace(), sys.getprofile()),
        "policy": type(asyncio.get_event_loop_policy()),
        "recursion": sys.getrecursionlimit(),
        "stack": threading.stack_size(),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "threads": sorted(thread.name for thread in threading.enumerate()),
    }

image = Path(IMAGE).read_bytes()
before = process()
during = []

async def use():
    async with tp.Pipeline.load(FILE) as pipeline:
        assert (await pipeline({"data": image}))["label"] == "three"
        during.append(process())
    app = create_app(FILE)
    async with lifespan(app):
        assert (await app.state.penstock.pipelines["digits"]({"data": image}))["label"] == "three"
        during.append(process())

asyncio.run(use())
with tp.pipe(FILE) as p:
    item = {"data": image}
    p(item)
    assert item["label"] == "three"
    during.append(process())
after = process()
for key, value in before.items():
    assert after[key] == value, (key, value, after[key])
    for state in during:
        # While asyncio.run runs it handles SIGINT itself and sets a wake-up descriptor. The last
        # state is that with the pipe, whose loop is not on the main thread.
        if key not in ("threads", "signals", "wakeup") or state is during[-1] and key != "threads":
            assert state[key] == value, (key, value, state[key])
        if key == "signals":
            others = signal.valid_signals() - {signal.SIGINT}
            assert all(state[key][number] == value[number] for number in others)
print("unchanged")
"""


def test_the_process_of_a_host_stays_as_it_is() -> None:
    """Signal handlers and settings of the collector, OpenCV, the interpreter and logging stay."""
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        PROCESS,
        str(DIGITS / "digits.toml"),
        str(DIGITS / "digit.png"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "unchanged\n", "")


# torchpipe's quick start


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a stand-in for resnet18 into the working directory, as in the quick start: its 3 scores
    are the means of the 3 channels.
    """
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["y"]),
        ],
        "resnet18",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "resnet18.onnx",
    )
    monkeypatch.chdir(tmp_path)
    return "resnet18.onnx"


def test_torchpipes_quick_start(model: str) -> None:
    """The text of the quick start, except the import and the backends of this machine.

    It has strings for numbers, one nameless node, and SyncTensor at the end.
    """
    import cv2
    import numpy as np

    import penstock as tp

    config = {
        # Single node configurations:
        "model": "resnet18.onnx",
        "backend": "Sequential[DecodeMat,ResizeMat,cvtColorMat,Mat2Tensor,ModelTensor,SyncTensor]",
        "resize_h": "224",
        "resize_w": "224",
        # Global or node configurations:
        "instance_num": 2,
        "batching_timeout": "5",
        "max": 4,
        "mean": "123.675, 116.28, 103.53",
        "std": "58.395, 57.120, 57.375",
        "color": "rgb",
    }
    # Initialization
    models = tp.pipe(config)
    red = np.zeros((32, 32, 3), np.uint8)
    red[:, :, 2] = 255
    data = cv2.imencode(".png", red)[1].tobytes()

    # Forward
    input = {"data": data}  # noqa: A001
    models(input)  # <== can be multi-threaded
    result = input["result"]

    expected = [
        (value - mean) / std
        for value, mean, std in zip(
            (255, 0, 0), (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), strict=True
        )
    ]
    assert np.allclose(np.asarray(result), [expected], atol=1e-3)
    assert (models.min(), models.max()) == (1, 4)

    def work(_: int) -> bool:
        item: dict[str, Any] = {"data": data}
        models(item)
        return bool(np.allclose(np.asarray(item["result"]), [expected], atol=1e-3))

    with ThreadPoolExecutor(10) as pool:
        assert all(pool.map(work, range(100)))
    broken: dict[str, Any] = {"data": b"no image", "result": 1}
    models(broken)
    assert "result" not in broken
    models.close()


def test_the_onnx_engine_by_its_own_name(model: str) -> None:
    import numpy as np

    with penstock.pipe(
        {"model": model, "backend": "SyncTensor[OnnxTensor]", "max": "4x3x224x224"}
    ) as p:
        item: dict[str, Any] = {"data": np.ones((1, 3, 224, 224), np.float32)}
        p(item)
        assert item["result"].tolist() == [[1, 1, 1]]


def test_a_toml_file_beside_its_model(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(model, elsewhere / model)
    file = elsewhere / "resnet18.toml"
    file.write_text(
        'batching_timeout = "5"\n'
        '[resnet18]\nbackend = "ModelTensor"\nmodel = "resnet18.onnx"\nmax = "4"\n'
    )
    with penstock.pipe(file) as first, penstock.pipe(str(file)) as second:
        for p in first, second:
            item: dict[str, Any] = {
                "data": np.ones((1, 3, 224, 224), np.float32),
                "node_name": "resnet18",
            }
            p(item)
            assert np.asarray(item["result"]).tolist() == [[1, 1, 1]]
