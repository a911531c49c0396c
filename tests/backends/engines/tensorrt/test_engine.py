"""TensorrtEngine on a stand-in for TensorRT's runtime: buffers, buckets and failures.

Engines are built for real. These tests show nothing about TensorRT's own runtime.
"""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.backends.base import Loading, TensorPort
from penstock.backends.engines.tensorrt.allocator import make_allocator
from penstock.backends.engines.tensorrt.execution import TORCH_DTYPES
from penstock.backends.engines.tensorrt.library import Library
from penstock.backends.engines.tensorrt.loaded import failure
from penstock.backends.engines.tensorrt.progress import BuildCancelledError
from penstock.backends.errors import BackendError, ConfigError, DeviceError, InvalidInput
from penstock.backends.item import Item

from .stand_in import FakeContext, FakeEngine, FakeRuntime, pair, ranges


class RecordedLoading(Loading):
    """Records the texts that a load reports. With `stops`, it stops the load at the first text."""

    def __init__(self, stops: Any = False) -> None:
        self.stops = stops
        self.texts: list[str] = []
        super().__init__()

    @property
    def text(self) -> Any:
        return self.texts[-1]

    @text.setter
    def text(self, text: Any) -> None:
        self.texts.append(text)
        if self.stops and text:
            self.stop()


def test_the_build_reports_its_progress(make: Any, resnet18: Path, fake: Any) -> None:
    tensor = ("FLOAT", (-1, 3, 64, 64))
    fake(
        {"image": tensor},
        {"logits": tensor},
        ranges(1, rest=(3, 64, 64), names=("image",)),
        lambda x: (x,),
    )
    heard = RecordedLoading()
    make(resnet18, {"loading": heard}, max="1")
    assert heard.texts[0] == heard.text == ""
    shares = [int(text.removeprefix("building ").removesuffix(" %")) for text in heard.texts[1:-1]]
    assert shares == sorted(shares) and shares[-1] == 100 and len(set(shares)) > 2
    again = RecordedLoading()
    # Another weight budget makes another engine, so it is not shared but built again.
    make(resnet18, {"loading": again}, max="1", weight_budget_percentage=50)
    heard.stop()  # comes too late to have an effect
    assert again.texts[1:-1]


def test_a_build_ends_when_the_load_is_stopped(
    make: Any, resnet18: Path, fake: Any, tmp_path: Path
) -> None:
    tensor = ("FLOAT", (-1, 3, 64, 64))
    fake(
        {"image": tensor},
        {"logits": tensor},
        ranges(1, rest=(3, 64, 64), names=("image",)),
        lambda x: (x,),
    )
    for heard in (RecordedLoading(stops=True), RecordedLoading()):
        if not heard.stops:
            heard.stop()  # before the build begins
        with pytest.raises(BuildCancelledError, match=r"node 'net': .* was cancelled"):
            make(resnet18, {"loading": heard}, max="1")
        assert heard.text == "" and "building 100 %" not in heard.texts
    assert not list((tmp_path / "kept").glob("*.engine"))


def test_items_share_a_run_and_get_their_own_rows_back(make: Any, two: Path, fake_two: Any) -> None:
    backend = make(two, max="4", batched=True)
    pairs = [pair(1), pair(2, 2), pair(3)]
    batch: list[Item] = [{"data": data, "request_size": len(data[0])} for data in pairs]
    backend.forward(batch)
    for item, (a, b) in zip(batch, pairs, strict=True):
        assert torch.equal(item["result"][0], a + b) and torch.equal(item["result"][1], a - b)
    assert [context.runs for context in fake_two.engine.contexts] == [[((4, 3), (4, 3))]]
    assert (backend.min, backend.max, backend.device) == (1, 4, "")


def test_results_own_their_memory(make: Any, two: Path, fake_two: Any) -> None:
    backend = make(two, max="4")
    batch: list[Item] = [{"data": pair(1)}, {"data": pair(2)}]
    backend.forward(batch)
    kept = [output.clone() for output in batch[0]["result"]]
    backend.forward([{"data": pair(3)}, {"data": pair(4)}])
    assert all(torch.equal(one, other) for one, other in zip(kept, batch[0]["result"], strict=True))
    assert batch[0]["result"][0].untyped_storage().nbytes() == 12


def test_copies_of_inputs_live_until_the_run_is_enqueued(
    make: Any, two: Path, fake_two: Any
) -> None:
    """Otherwise an output could get a copy's memory, which TensorRT still reads."""
    execution = make(two, max="4", batched=True).children[0].model
    a, b = torch.rand(3, 4).t(), torch.rand(3, 4).t()
    outputs = execution(a, b)
    assert torch.equal(outputs[0], a + b) and torch.equal(outputs[1], a - b)
    (context,) = fake_two.engine.contexts
    assert len(set(context.addresses.values())) == 4


def test_warm_up_runs_every_bucket(make: Any, two: Path, fake_two: Any) -> None:
    make(two, max="4", batched=True).warm_up()
    assert sorted(
        shapes[0][0] for context in fake_two.engine.contexts for shapes in context.runs
    ) == [1, 2, 4]


def test_a_warm_up_that_the_engine_refuses_is_a_warning(
    make: Any, two: Path, fake: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def divide(a: Any, b: Any) -> Any:
        if not b.all():
            raise ZeroDivisionError("division by zero")
        return (a / b,)

    tensor = ("FLOAT", (-1, 3))
    runtime = fake({"a": tensor, "b": tensor}, {"sum": tensor}, ranges(1, 2, 4), divide)
    backend = make(two, max="4", batched=True)
    backend.warm_up()
    assert caplog.text.count("not warmed up, because the model refuses zeros: ") == 1
    item: Item = {"data": [torch.ones(1, 3), torch.full((1, 3), 2.0)]}
    backend.forward([item])
    assert item["result"].tolist() == [[0.5, 0.5, 0.5]]

    caplog.clear()
    runtime.engine.failing = "IExecutionContext::enqueueV3: Error Code 1: it divides by zero"
    make(two, max="4", batched=True).warm_up()
    assert caplog.text.count("TensorRT could not run a batch: ") == 1
    assert caplog.text.count("not warmed up, because the model refuses zeros: ") == 1
    for text, error in (
        ("Cuda Runtime (unspecified launch failure)", DeviceError),
        ("Error Code 2: OutOfMemory", MemoryError),
    ):
        runtime.engine.failing = text
        with pytest.raises(error):
            make(two, max="4", batched=True).warm_up()

    caplog.clear()
    runtime.engine.failing = ""
    make(two, max="4", batched=True, warm_up=False).warm_up()
    np.savez(tmp_path / "ab.npz", b=np.ones((1, 3), np.float32), a=np.ones((1, 3), np.float32))
    before = sum(len(context.runs) for context in runtime.engine.contexts)
    make(two, max="4", batched=True, warm_up=str(tmp_path / "ab.npz")).warm_up()
    after = sum(len(context.runs) for context in runtime.engine.contexts)
    assert (after - before, caplog.text) == (3, "")
    np.savez(tmp_path / "a.npz", a=np.ones((1, 3), np.float32))
    with pytest.raises(ConfigError, match=r"warm_up: .*the model's inputs are a, b, found a"):
        make(two, max="4", batched=True, warm_up=str(tmp_path / "a.npz")).warm_up()


def test_a_fixed_batch_is_padded(make: Any, two: Path, fake: Any) -> None:
    tensor = ("FLOAT", (4, 3))
    runtime = fake({"a": tensor, "b": tensor}, {"sum": tensor}, [{}], lambda a, b: (a + b,))
    backend = make(two, max="8", batched=True)
    assert (backend.min, backend.max) == (4, 4)
    a, b = pair(1, 2)
    batch: list[Item] = [{"data": [a, b], "request_size": 2}]
    backend.forward(batch)
    assert torch.equal(batch[0]["result"], a + b) and runtime.engine.contexts[0].runs == [
        ((4, 3), (4, 3))
    ]
    batch = [{"data": {"b": b, "a": a}, "request_size": 2}]
    backend.forward(batch)
    assert torch.equal(batch[0]["result"], a + b)
    with pytest.raises(InvalidInput, match="the model's inputs are a, b, found a"):
        backend.forward([{"data": {"a": a}, "request_size": 2}])


def test_batches_between_profiles_are_padded_up_to_the_next(
    make: Any, two: Path, fake: Any
) -> None:
    tensor = ("FLOAT", (-1, 3))
    gap = [{name: [(size, 3)] * 3 for name in "ab"} for size in (1, 4)]
    runtime = fake({"a": tensor, "b": tensor}, {"sum": tensor}, gap, lambda a, b: (a + b,))
    backend = make(two, max="4", batched=True)
    (a, b) = pair(1, 2)
    batch: list[Item] = [{"data": [a, b], "request_size": 2}]
    backend.forward(batch)
    assert torch.equal(batch[0]["result"], a + b)
    assert [context.runs for context in runtime.engine.contexts] == [[((4, 3), (4, 3))]]


def test_large_images_whose_profile_takes_fewer_items_run_in_several_runs(
    make: Any, image: Path, fake: Any
) -> None:
    profiles = [
        {"image": [(1, 3, 8, 8), (4, 3, 16, 16), (4, 3, 16, 16)]},
        {"image": [(1, 3, 17, 17), (2, 3, 64, 64), (2, 3, 64, 64)]},
    ]
    runtime = fake(
        {"image": ("FLOAT", (-1, 3, -1, -1))},
        {"y": ("FLOAT", (-1, 3, -1, -1))},
        profiles,
        lambda x: (x * 2,),
    )
    backend = make(image, min="1x3x8x8;1x3x17x17", max="4x3x16x16;2x3x64x64", batched=True)
    assert backend.max == 4
    images = [torch.rand(1, 3, size, size) for size in (32, 16, 32, 32)]
    batch: list[Item] = [{"data": picture} for picture in images]
    backend.forward(batch)
    assert all(
        torch.equal(item["result"], picture * 2)
        for item, picture in zip(batch, images, strict=True)
    )
    runs = sorted(shapes for context in runtime.engine.contexts for shapes in context.runs)
    assert runs == [((1, 3, 16, 16),), ((1, 3, 32, 32),), ((2, 3, 32, 32),)]


def test_an_item_that_does_not_fit_fails_alone(make: Any, two: Path, fake_two: Any) -> None:
    backend = make(two, max="4")
    good, wrong = pair(1), torch.zeros(1, 4)
    batch: list[Item] = [
        {"data": good},
        {"data": [good[0], wrong]},
        {"data": [good[0]]},
        {"data": [good[0], good[1].to(torch.complex64)]},
    ]
    backend.forward(batch)
    assert (
        "result" in batch[0]
        and [type(item.get("error")) for item in batch[1:]] == [InvalidInput] * 3
    )
    assert str(batch[1]["error"]) == (
        "TensorrtTensor: input b: expected float32 of shape Nx3 (1x3 or 1x3 to 2x3 or 1x3 to 4x3), "
        "found float32 of shape 1x4"
    )
    assert "the model has 2 inputs (a, b), but data holds 1" in str(batch[2]["error"])
    assert "found complex64 of shape 1x3" in str(batch[3]["error"])


def test_dtypes_that_widen_are_converted(make: Any, two: Path, fake_two: Any) -> None:
    backend = make(two, max="4")
    data = [np.array([[1, 2, 3]], np.uint8), np.array([[1, 1, 1]], np.float64)]
    batch: list[Item] = [{"data": data}]
    backend.forward(batch)
    assert (
        batch[0]["result"][0].tolist() == [[2, 3, 4]]
        and batch[0]["result"][0].dtype == torch.float32
    )


def test_a_normalised_input_takes_uint8_and_floats(make: Any, two: Path, fake_two: Any) -> None:
    backend = make(two, max="4", mean="1", input_reorder="1,0")
    b, a = np.array([[1, 2, 3]]), np.array([[1, 1, 1]])
    for dtype in (np.uint8, np.float16, np.float32):
        batch: list[Item] = [{"data": [b.astype(np.float32), a.astype(dtype)]}]
        backend.forward(batch)
        assert batch[0]["result"][0].tolist() == [[2, 3, 4]]  # the fake engine has no mean
    images = torch.zeros((1, 3), dtype=torch.uint8)
    assert backend.children[0].travels_as(1, images) == torch.uint8
    assert backend.children[0].travels_as(0, images) == torch.float32
    assert [dtype for _, dtype in backend.children[0].example_shapes()] == [
        torch.float32,
        torch.uint8,
    ]


def test_integers_and_bfloat16_are_not_converted(make: Any, two: Path, fake: Any) -> None:
    ins = {"a": ("INT64", (-1, 3)), "b": ("BF16", (-1, 3))}
    fake(ins, {"x": ins["a"], "y": ins["b"]}, ranges(4), lambda a, b: (a + 1, b))
    backend = make(two, max="4")
    a, b = torch.tensor([[2**40, 1, 2]]), torch.tensor([[1.5, 2.5, -1.0]], dtype=torch.bfloat16)
    batch: list[Item] = [{"data": [a, b]}]
    backend.forward(batch)
    assert torch.equal(batch[0]["result"][0], a + 1) and torch.equal(batch[0]["result"][1], b)
    with pytest.raises(
        InvalidInput, match=r"input b: expected bfloat16 of shape Nx3 .* found float32"
    ):
        backend.forward([{"data": [a, b.float()]}])


def test_every_type_of_tensorrt_has_a_torch_dtype_or_is_refused(library: Library) -> None:
    there = {name for name, value in library.trt.DataType.__members__.items()}
    assert there - set(TORCH_DTYPES) == {"INT4", "FP4", "E8M0"}
    for name, dtype in TORCH_DTYPES.items():
        assert getattr(library.trt.DataType, name).itemsize == dtype.itemsize


def test_outputs_whose_shape_depends_on_the_data(make: Any, scores: Path, fake: Any) -> None:
    """Use a model that returns the positions in a row that are not 0. All of them belong to the one
    item.
    """
    fake(
        {"x": ("FLOAT", (-1, 5))},
        {"places": ("INT64", (-1, 2)), "same": ("FLOAT", (-1, 5))},
        ranges(1, 4, rest=(5,), names=("x",)),
        lambda x: (np.argwhere(x).astype(np.int64), x),
        {"places": lambda shapes: (-1, 2)},
    )
    backend = make(scores, max="4")
    for row in ([0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]):
        batch: list[Item] = [{"data": torch.tensor([row], dtype=torch.float32)}]
        backend.forward(batch)
        places, same = batch[0]["result"]
        assert places.tolist() == [
            [0, index] for index in range(5) if row[index]
        ] and same.tolist() == [row]
    assert (backend.min, backend.max) == (1, 1)
    batch = [
        {"data": torch.tensor([row], dtype=torch.float32)}
        for row in ([1, 0, 0, 0, 0], [0, 0, 0, 0, 1])
    ]
    backend.forward(batch)
    assert [item["result"][0].tolist() for item in batch] == [[[0, 0]], [[0, 4]]]
    trusting = make(scores, max="4", batched=True)
    with pytest.raises(
        BackendError,
        match=r"output 0 has 3 rows for a batch of 2: the model does not keep items apart; set "
        r"batched = false",
    ):
        trusting.forward(
            [
                {"data": torch.tensor([row], dtype=torch.float32)}
                for row in ([1, 0, 0, 0, 0], [1, 0, 0, 0, 1])
            ]
        )


def test_an_allocator_grows_and_says_where_there_is_no_memory(
    library: Library, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    allocator = make_allocator(library.trt, torch.device("cpu"))
    first = allocator.reallocate_output("y", 0, 0, 256)
    assert first  # the address is not null, even for 0 bytes
    grown = allocator.reallocate_output("y", first, 64, 256)
    assert allocator.reallocate_output("y", grown, 32, 256) == grown
    allocator.notify_shape("y", (2, 4))
    assert allocator.tensor(torch.float32).shape == (2, 4)

    def full(*shape: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(torch, "empty", full)
    assert allocator.reallocate_output("y", grown, 128, 256) == 0
    assert "output y: no memory for 128 bytes: none left" in caplog.text


DEEPER = {"from": [3], "to": [3, 1]}


def test_inputs_and_outputs_in_another_order(make: Any, two: Path, fake_two: Any) -> None:
    backend = make(two, max="4", input_reorder="1,0", output_reorder="1,0")
    (a, b) = pair(1)
    batch: list[Item] = [{"data": [b, a]}]
    backend.forward(batch)
    assert torch.equal(batch[0]["result"][0], a - b) and torch.equal(batch[0]["result"][1], a + b)
    named = make(two, max="4", inputs=["b", "a"], outputs=["dif"], reshape={"dif": DEEPER})
    batch = [{"data": [b, a]}]
    named.forward(batch)
    assert torch.equal(batch[0]["result"], (a - b).reshape(1, 3, 1))
    assert [port.name for port in named.signature.inputs] == ["b", "a"]
    assert named.signature.outputs == (TensorPort("dif", "float32", (-1, 3, 1)),)
    with pytest.raises(ConfigError, match="outputs: names 'z'"):
        make(two, max="4", outputs=["z"])
    with pytest.raises(ConfigError, match="input_reorder: '0,2' must hold each of 0 to 1 once"):
        make(two, max="4", input_reorder="0,2")


@pytest.mark.parametrize(
    ("postprocessor", "best"),
    [("SoftmaxArgMax", "class"), ("ArgMax", "class"), ("SoftmaxMax", "score")],
)
def test_classes_come_as_plain_values(
    make: Any, scores: Path, fake: Any, postprocessor: str, best: Any
) -> None:
    def top(x: Any) -> Any:
        order = np.argsort(-x)[:, :2]
        return np.take_along_axis(x, order, 1), order.astype(np.int32)

    outs = {"penstock_scores": ("FLOAT", (-1, 2)), "penstock_classes": ("INT32", (-1, 2))}
    shape = {name: lambda shapes: (shapes["x"][0], 2) for name in outs}
    fake({"x": ("FLOAT", (-1, 5))}, outs, ranges(4, rest=(5,), names=("x",)), top, shape)
    backend = make(scores, max="4", postprocessor=postprocessor, top_k=2)
    batch: list[Item] = [
        {"data": torch.tensor([[0, 0, 0.5, 0, 0.25]])},
        {"data": torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, 0, 2, 0]]), "request_size": 2},
    ]
    backend.forward(batch)
    assert (
        batch[0]["class"] == 2 and batch[0]["score"] == 0.5 and batch[0]["result"] == batch[0][best]
    )
    assert batch[0]["top"] == [{"class": 2, "score": 0.5}, {"class": 4, "score": 0.25}]
    assert (
        batch[1]["class"] == [0, 3]
        and batch[1]["score"] == [1.0, 2.0]
        and len(batch[1]["top"]) == 2
    )


def test_items_of_a_model_that_mixes_rows_run_alone(
    make: Any, scores: Path, fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tensor = ("FLOAT", (-1, 5))
    runtime = fake(
        {"x": tensor},
        {"y": tensor},
        ranges(2, 4, rest=(5,), names=("x",)),
        lambda x: (x - x.mean(0),),
    )
    backend = make(scores, max="4")
    assert (backend.min, backend.max) == (1, 1)
    assert backend.signature.batched is False
    backend.warm_up()
    for context in runtime.engine.contexts:
        context.runs.clear()
    sounds = [torch.tensor([[0.0] * 5, [value] * 5]) for value in (2.0, 4.0)]
    batch: list[Item] = [{"data": sound} for sound in sounds]
    backend.forward(batch)
    assert [item["result"][:, 0].tolist() for item in batch] == [[-1, 1], [-2, 2]]
    assert [run for context in runtime.engine.contexts for run in context.runs] == [((2, 5),)] * 2
    assert "output 0 of a row changes with the other rows of its batch" in caplog.text


def test_a_fixed_first_axis_that_is_no_batch_is_not_padded(
    make: Any, scores: Path, fake: Any
) -> None:
    tensor = ("FLOAT", (2, 5))
    fake({"x": tensor}, {"y": tensor}, ranges(2, rest=(5,)), lambda x: (x - x.mean(0),))
    backend = make(scores, max="4")
    assert backend.max == 1
    assert [port.shape for port in backend.signature.inputs] == [(2, 5)]
    batch: list[Item] = [{"data": torch.tensor([[0.0] * 5, [2.0] * 5])}]
    backend.forward(batch)
    assert batch[0]["result"][:, 0].tolist() == [-1, 1]
    with pytest.raises(InvalidInput):
        backend.forward([{"data": torch.zeros(1, 5)}])


def test_a_proven_engine_is_described_with_an_open_batch(
    make: Any, two: Path, fake_two: Any
) -> None:
    backend = make(two, max="4")
    assert backend.max == 4 and backend.signature.batched
    assert [port.shape for port in backend.signature.inputs] == [(-1, 3), (-1, 3)]


@pytest.fixture
def step(write: Any, tmp_path: Path) -> Path:
    """A step of a network with a state h of 2 layers, whose batch is on axis 1."""
    path: Path = write(
        tmp_path / "step.onnx",
        [
            ("ReduceSum", ["h", "axis"], ["sum"], {"keepdims": 0}),
            ("Add", ["x", "sum"], ["y"]),
            ("Add", ["h", "x"], ["next"]),
        ],
        [("x", 1, ["n", 3]), ("h", 1, [2, "n", 3])],
        [("y", 1, ["n", 3]), ("next", 1, [2, "n", 3])],
        [("axis", np.array([0]))],
    )
    return path


@pytest.mark.parametrize(("mixes", "reorder"), [(False, ""), (False, "1,0"), (True, "")])
def test_a_batch_axis_for_each_tensor(
    make: Any, step: Path, fake: Any, *, mixes: bool, reorder: str
) -> None:
    """The engine is built with it, and runs with it. It is proven all the same."""
    x, h = ("FLOAT", (-1, 3)), ("FLOAT", (2, -1, 3))
    runtime = fake(
        {"x": x, "h": h},
        {"y": x, "next": h},
        [
            {"x": [(1, 3), (size, 3), (size, 3)], "h": [(2, 1, 3), (2, size, 3), (2, size, 3)]}
            for size in (1, 2, 4)
        ],
        lambda x, h: (x + h.sum(0), h + x - (h.mean(1, keepdims=True) if mixes else 0)),
        {"next": lambda shapes: shapes["h"]},
    )
    axes = {"h": 1, "next": 1}
    orders = {"input_reorder": reorder, "output_reorder": reorder} if reorder else {}
    backend = make(step, max="4", batch_axis=axes, **orders)
    assert backend.max == (1 if mixes else 4)
    assert backend.signature.batch_axes == (() if mixes else (1, 0) if reorder else (0, 1))
    generator = torch.manual_seed(0)
    items = [
        [torch.rand(rows, 3, generator=generator), torch.rand(2, rows, 3, generator=generator)]
        for rows in (1, 2)
    ]
    backend.warm_up()
    for context in runtime.engine.contexts:
        context.runs.clear()
    batch: list[Item] = [
        {"data": data[::-1] if reorder else data, "request_size": len(data[0])} for data in items
    ]
    backend.forward(batch)
    for item, (x_in, h_in) in zip(batch, items, strict=True):
        y, state = item["result"][::-1] if reorder else item["result"]
        mean = h_in.mean(1, keepdim=True) if mixes else 0
        torch.testing.assert_close(y, x_in + h_in.sum(0))
        torch.testing.assert_close(state, h_in + x_in - mean)
        assert state.is_contiguous()
    runs = [run for context in runtime.engine.contexts for run in context.runs]
    assert len(runs) == (2 if mixes else 1)
    with pytest.raises(InvalidInput, match=r"input h: expected 1 .* axis 1, found shape 2x2x3"):
        wrong = [torch.zeros(1, 3), torch.zeros(2, 2, 3)]
        backend = make(step, max="4", batch_axis=axes, batched=True)
        backend.forward([{"data": wrong}])


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"h": 3}, "batch_axis: gives axis 3 for h, which has 3 axes"),
        ({"state": 1}, "batch_axis: names 'state', and the model has no such"),
    ],
)
def test_a_batch_axis_that_does_not_fit(make: Any, step: Path, axes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(step, max="4", batch_axis=axes)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (
            "Error Code 1: Cuda Runtime (cudaError 700: an illegal memory access was encountered)",
            DeviceError,
        ),
        ("Error Code 2: OutOfMemory (Requested size was 12 bytes.)", MemoryError),
        ("Error Code 3: API Usage Error (shape)", BackendError),
    ],
)
def test_a_run_that_fails_raises_with_tensorrts_message(
    make: Any, two: Path, fake_two: Any, message: Any, error: Any
) -> None:
    backend = make(two, max="4")
    fake_two.engine.failing = message
    with pytest.raises(error, match=re.escape(message)) as caught:
        backend.forward([{"data": pair(1)}])
    assert "net" in str(caught.value) and (
        error is not BackendError or not isinstance(caught.value, DeviceError)
    )


def test_an_engine_that_does_not_load_says_why(make: Any, two: Path, fake_two: Any) -> None:
    fake_two.engine.no_contexts = True
    backend = make(two, max="4")
    with pytest.raises(
        MemoryError, match=r"can't make an execution context.*Requested size was 99 bytes"
    ):
        backend.forward([{"data": pair(1)}])
    fake_two.validity = ("INVALID", 2 | 4)
    with pytest.raises(
        BackendError,
        match=r"can't run this engine on this machine: UNSUPPORTED_CC; OLD_CUDA_DRIVER",
    ):
        make(two, max="4", weight_budget_percentage=1)
    fake_two.validity, fake_two.engine = (
        ("VALID", 0),
        types.SimpleNamespace(trt=fake_two.engine.trt),
    )
    fake_two.deserialize_cuda_engine = lambda serialized_engine: None
    with pytest.raises(
        BackendError,
        match=r"node 'net': TensorrtTensor: .*two\.onnx: tensorrt_rtx .* can't load the engine: it "
        r"gives no reason",
    ):
        make(two, max="4", weight_budget_percentage=2)


def test_the_weight_budget_is_a_share_of_the_streamable_weights(
    make: Any, two: Path, fake_two: Any
) -> None:
    make(two, max="4", weight_budget_percentage=25)
    assert fake_two.engine.weight_streaming_budget_v2 == 250


def test_inputs_without_a_batch_are_refused(make: Any, two: Path, fake: Any) -> None:
    fake(
        {"a": ("FLOAT", (-1, 3)), "b": ("FLOAT", (7,))},
        {"y": ("FLOAT", (-1, 3))},
        ranges(4),
        lambda a, b: (a,),
    )
    with pytest.raises(
        BackendError,
        match=r"the batch as their first axis.*a \(float32 of shape Nx3\), b \(float32 of shape "
        r"7\)",
    ):
        make(two, max="4")


def test_without_a_gpu_nothing_is_built(make: Any, two: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(
        BackendError,
        match=r"node 'net': TensorrtTensor: .*two\.onnx: TensorRT runs on an NVIDIA GPU, but torch "
        r"sees none here",
    ):
        make(two, max="4")
    assert not (tmp_path / "kept").exists()


def test_a_failure_without_a_message_says_so(library: Library) -> None:
    assert str(failure("net: no", [])) == "net: no: it gives no reason"


def test_the_fake_has_the_signatures_of_the_bindings(library: Library) -> None:
    """Check that every method and attribute of the fakes exists in TensorRT, with as many
    parameters.
    """
    for fake, name in (
        (FakeRuntime, "Runtime"),
        (FakeEngine, "ICudaEngine"),
        (FakeContext, "IExecutionContext"),
    ):
        real = getattr(library.trt, name)
        methods = [
            attribute
            for attribute in vars(fake)
            if not attribute.startswith("_") and attribute not in ("shape_of", "memory", "alone")
        ]
        assert methods
        for method in methods:
            bound = getattr(real, method)
            if isinstance(vars(fake)[method], property):
                continue
            parameters = vars(fake)[method].__code__.co_argcount - 1
            assert parameters in arities(method, bound.__doc__), (
                f"{name}.{method} takes {arities(method, bound.__doc__)}, not {parameters}"
            )
    for attribute in ("streamable_weights_size", "weight_streaming_budget_v2"):
        assert hasattr(library.trt.ICudaEngine, attribute)


def arities(method: Any, doc: Any) -> Any:
    """Return how many arguments a method takes, according to the signatures in its docstring."""
    counts = set()
    for signature in re.findall(rf"{method}\(self: [\w.]+(.*)\) ->", doc):
        depth, parameters, optional = 0, 0, 0
        for character in re.sub(r"<[^>]*>", "", signature):
            depth += (character in "[(") - (character in "])")
            parameters += character == "," and not depth
            optional += character == "=" and not depth
        counts |= set(range(parameters - optional, parameters + 1))
    return counts


def test_arities_are_read() -> None:
    assert arities("run", "run(self: a.B, name: str, shape: tuple[int, int] = None) -> bool") == {
        1,
        2,
    }
    assert arities("run", "run(self: a.B) -> bool") == {0}
