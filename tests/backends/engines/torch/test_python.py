"""PythonTensor: modules from Python code, with weights from files."""

from __future__ import annotations

import asyncio
import inspect
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from penstock.backends.base import Context
from penstock.backends.errors import BackendError, ConfigError, InvalidInput
from penstock.pipelines.pipeline import Pipeline

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

RESNET = Path(__file__).parents[4] / "examples" / "resnet" / "export.py"
NAME = "PythonTensor"

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, wide=4, scale=1.0):
        super().__init__()
        self.linear = nn.Linear(3, wide)
        self.scale = scale

    def forward(self, x, shift=None):
        y = self.linear(x) * self.scale
        return y if shift is None else y + shift

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image):
        return self.conv(image).relu()

def no_module():
    return 3
"""


def close(result: Any, expected: Any) -> bool:
    return result.shape == expected.shape and bool(
        torch.allclose(result, expected.detach(), atol=1e-4, rtol=1e-4)
    )


@pytest.fixture
def net(tmp_path: Path) -> Any:
    """Write net.py and weights for its Net. Return the context, and a function that computes what
    Net does.
    """
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    weights = torch.nn.Linear(3, 4).state_dict()
    state = {f"linear.{name}": value for name, value in weights.items()}
    torch.save(state, tmp_path / "net.pth")
    return Context(
        node="node", pipeline="pipe", directory=tmp_path
    ), lambda x: torch.nn.functional.linear(x, weights["weight"], weights["bias"])


def test_resnet_gives_what_eager_torch_gives(
    resnet: Any, make: Any, run: Any, images: Any, tmp_path: Path
) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    torch.save(resnet.state_dict(), tmp_path / "resnet.pth")
    safetensors.save_file(resnet.state_dict(), tmp_path / "resnet.safetensors")
    data = images(2)
    expected = resnet(torch.from_numpy(data))
    for name in ("resnet.pth", "resnet.safetensors"):
        context = Context(node="node", directory=tmp_path)
        backend = make(
            NAME,
            f"{RESNET}:build",
            context,
            state_dict=name,
            kwargs="name=resnet18,seed=7",
            channels_last=True,
            max="2x3x64x64",
        )
        backend.warm_up()
        assert close(torch.cat(run(backend, data[:1], data[1:])), expected)


def test_arguments_weights_and_optional_inputs(net: Any, make: Any, run: Any) -> None:
    context, linear = net
    x = torch.randn(1, 3)
    assert close(run(make(NAME, "net.py:Net", context, state_dict="net.pth"), x)[0], linear(x))
    scaled = make(NAME, "net.py:Net", context, state_dict="net.pth", kwargs={"scale": 0.5})
    assert close(run(scaled, [x, torch.ones(1, 4)])[0], linear(x) / 2 + 1)
    assert close(run(scaled, {"x": x, "shift": torch.ones(1, 4)})[0], linear(x) / 2 + 1)
    with pytest.raises(
        InvalidInput,
        match=r"the model has 2 inputs \(x, shift, 1 of them optional\), but data holds 3",
    ):
        run(scaled, [x, x, x])
    assert run(make(NAME, "net.py:Net", context, kwargs="wide=7,scale=2"), x)[0].shape == (1, 7)
    assert run(make(NAME, "net.py:Net", context, kwargs='{"wide": 7, "scale": 2}'), x)[0].shape == (
        1,
        7,
    )
    with pytest.raises(ValidationError, match="kwargs"):
        make(NAME, "net.py:Net", context, kwargs='{"wide": ')
    assert run(make(NAME, "torch.nn:Identity", context), x)[0].tolist() == x.tolist()


def test_results_are_contiguous_in_any_memory_format(net: Any, make: Any, run: Any) -> None:
    backend = make(NAME, "net.py:Small", net[0], channels_last=True, max=4)
    one, two = run(backend, torch.zeros(1, 3, 4, 5), torch.zeros(1, 3, 4, 5))
    assert one.is_contiguous() and two.is_contiguous() and one.shape == (1, 4, 4, 5)


def test_precision(net: Any, make: Any, run: Any) -> None:
    context, linear = net
    x = torch.randn(1, 3)
    (result,) = run(make(NAME, "net.py:Net", context, state_dict="net.pth", precision="bf16"), x)
    assert result.dtype == torch.float32 and torch.allclose(result, linear(x), atol=0.05)


def test_compiled(net: Any, make: Any, run: Any) -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs g++ or clang++ on the CPU")
    context, linear = net
    backend = make(NAME, "net.py:Net", context, state_dict="net.pth", compile="default", max="2x3")
    backend.warm_up()
    x = torch.randn(2, 3)
    assert close(torch.cat(run(backend, x[:1], x[1:])), linear(x))


def test_instances_share_weights_unless_sharing_is_off(net: Any, make: Any) -> None:
    context, _ = net

    def weights(**keys: Any) -> int:
        module = make(NAME, "net.py:Net", context, **keys).children[0].model
        return int(module.linear.weight.data_ptr())

    assert weights() == weights() == weights(kwargs={}) != weights(kwargs={"wide": 4})
    assert weights(ENABLE_WEIGHT_SHARING=False) != weights(ENABLE_WEIGHT_SHARING=False)


def test_several_instances(net: Any) -> None:
    context, linear = net
    data = torch.randn(40, 3)

    async def ask() -> list[Any]:
        keys = {
            "backend": NAME,
            "model": str(context.directory / "net.py") + ":Net",
            "state_dict": str(context.directory / "net.pth"),
            "max": 4,
        }
        async with Pipeline.load({"net": {**keys, "instance_num": 3}}) as pipeline:
            return await pipeline([{"data": row[None]} for row in data])

    assert close(torch.cat([answer["result"] for answer in asyncio.run(ask())]), linear(data))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "net.py:Nut"}, "has no 'Nut', did you mean 'Net'"),
        ({"model": "none.py:Net"}, "there is no file .*none.py"),
        ({"model": "net.py"}, r"expected module:Class or file.py:Class, found 'net.py'"),
    ],
)
def test_models_that_do_not_exist(net: Any, make: Any, keys: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(NAME, keys["model"], net[0])
    assert (caught.value.problems[0].node, caught.value.problems[0].key) == ("node", "model")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "net.py:no_module"}, "made a int: expected a torch.nn.Module"),
        ({"kwargs": "width=3"}, "net.py:Net failed with {'width': 3}: TypeError: .*width"),
        (
            {"kwargs": "wide=5"},
            "can't be loaded into net.py:Net: .*size mismatch for linear.weight",
        ),
        (
            {"model": "net.py:Small"},
            r"does not fit net.py:Small: 2 keys missing \(conv.weight, conv.bias\); 2 keys "
            r"unexpected \(linear.weight",
        ),
        ({"state_dict": "gone.pth"}, r"gone\.pth does not exist"),
        ({"state_dict": "object.pth"}, "holds more than tensors, or is not a state_dict"),
        (
            {"state_dict": "nested.pth"},
            "it holds a dict with epoch, state: expected tensors by name",
        ),
        ({"state_dict": "broken.pth"}, "node 'node': PythonTensor: the state_dict .*broken.pth"),
        (
            {"state_dict": "broken.safetensors"},
            "the state_dict .*broken.safetensors can't be loaded into net.py:Net",
        ),
    ],
)
def test_weights_that_do_not_fit(
    net: Any, make: Any, keys: Any, message: str, tmp_path: Path
) -> None:
    torch.save(Path("x"), tmp_path / "object.pth")
    torch.save({"epoch": 3, "state": {}}, tmp_path / "nested.pth")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"nothing of this kind")
    if "safetensors" in str(keys):
        pytest.importorskip("safetensors.torch")
    keys = {"model": "net.py:Net", "state_dict": "net.pth", **keys}
    with pytest.raises(BackendError, match=message):
        make(NAME, keys.pop("model"), net[0], **keys)


SHY = """
from torch import nn

class ShyError(RuntimeError):
    def __str__(self):
        raise KeyboardInterrupt

class AtRun(nn.Module):
    def forward(self, x):
        raise ShyError

class AtOnce(nn.Module):
    def __init__(self):
        raise ShyError
"""


async def test_errors_of_a_module_that_can_not_be_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "shy.py").write_text(SHY)
    node = {"backend": NAME, "device": "cpu", "max": "2x3"}
    async with Pipeline.load({**node, "model": f"{tmp_path}/shy.py:AtRun"}) as pipeline:
        assert "is not warmed up" in caplog.text and "can't be shown" in caplog.text
        item = {"data": torch.ones(1, 3)}
        for outcome in await asyncio.gather(
            *(pipeline(item) for _ in range(2)), return_exceptions=True
        ):
            assert isinstance(outcome, BackendError) and "raised ShyError" in str(outcome)
        assert "restarted" not in caplog.text
    with pytest.raises(BackendError, match=r"AtOnce failed with .*: ShyError: .its message can't"):
        await Pipeline.load({**node, "model": f"{tmp_path}/shy.py:AtOnce"}).start()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let torch.compile stop short of its compiler. Return a function that counts what it got."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    counters.clear()


SUM = """
from torch import nn

class Sum(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.fc = nn.Linear(1, width)
        self.width = width
    def forward(self, x):
        return self.fc(x[..., None]).relu().sum(1) * self.width
"""


def test_few_versions_are_compiled_for_batches_and_for_an_axis_that_varies(
    tmp_path: Path, make: Any, run: Any, graphs: Any
) -> None:
    context = Context(directory=tmp_path)
    (tmp_path / "sum.py").write_text(SUM)
    backend = make(NAME, "sum.py:Sum", context, compile="default", max="8x3", batched=True)
    backend.warm_up()
    assert graphs() == 3  # 8, any, and 1
    module = backend.children[0].model._orig_mod

    def check(count: int, length: int) -> None:
        data = [torch.rand(1, length) for _ in range(count)]
        assert torch.allclose(torch.cat(run(backend, *data)), module(torch.cat(data)), atol=1e-6)

    for count in range(1, 9):
        check(count, 3)
    assert graphs() == 3
    for length in (5, 6, 7, 100, 2):
        check(3, length)
        check(1, length)
    assert graphs() == 5  # one more for any length, with any batch and with 1


@pytest.mark.skipif(
    "isolate_recompiles" not in inspect.signature(torch.compile).parameters,
    reason="this torch counts the versions of all models of a class together",
)
def test_models_of_one_class_are_compiled_apart_and_instances_together(
    tmp_path: Path, make: Any, graphs: Any
) -> None:
    context = Context(directory=tmp_path)
    (tmp_path / "sum.py").write_text(SUM)
    keys = {"compile": "default", "max": "8x3", "batched": True}
    made = []
    for width in range(2, 7):
        for _ in range(2):
            made.append(make(NAME, "sum.py:Sum", context, kwargs=f"width={width}", **keys))
            made[-1].warm_up()
    # torch remembers that the batch varies: from the second model on, any batch and 1 are enough.
    assert graphs() == 3 + 4 * 2


def test_the_thread_of_an_instance_may_capture_the_graphs_of_torch_compile(
    tmp_path: Path, make: Any
) -> None:
    """torch 2.11 lets only the thread do so that has imported this module."""
    (tmp_path / "sum.py").write_text(SUM)

    def load() -> bool:
        make(NAME, "sum.py:Sum", Context(directory=tmp_path), compile="reduce-overhead")
        trees = sys.modules["torch._inductor.cudagraph_trees"]
        return hasattr(trees.local, "tree_manager_containers")

    for _ in range(2):  # the first of them may import it
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(load).result(20)
