"""Models of torch that may run several items at once: those that are proven to keep rows apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from penstock.backends.base import UNBOUNDED, Context
from penstock.backends.errors import ConfigError, InvalidInput

from .modules import Named, Pool, Shout

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")


class Centred(torch.nn.Module):
    """Stereo sound without its mean over the channels, the first axis."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)


class Rows(torch.nn.Module):
    """Each row without its mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(1, keepdim=True)


class Places(torch.nn.Module):
    """The places that are not 0: as many rows as the data has such places."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.nonzero()


class Filtered(torch.nn.Module):
    """The rows that begin above 0.5, as a detector's threshold keeps them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[x[:, 0] > 0.5]


class State(torch.nn.Module):
    """A state whose batch is on its second axis."""

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + state.sum(0), state


CODE = """
import torch

class Centred(torch.nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)

class Branching(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x * 2
"""

SOUNDS = [[[1.0, 2.0], [3.0, 4.0]], [[10.0, 10.0], [30.0, 10.0]]]
CENTRED = [[[-1.0, -1.0], [1.0, 1.0]], [[-10.0, 0.0], [10.0, 0.0]]]


def sounds() -> list[torch.Tensor]:
    return [torch.tensor(sound) for sound in SOUNDS]


@pytest.mark.parametrize("form", ["script", "export", "fixed", "python"])
def test_items_of_a_model_that_mixes_rows_run_alone(
    scripted: Any,
    exported: Any,
    make: Any,
    run: Any,
    tmp_path: Path,
    form: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "net.py").write_text(CODE)
    forms: dict[str, Any] = {
        "script": lambda: ("TorchScriptTensor", scripted(Centred())),
        "export": lambda: ("TorchExportTensor", exported(Centred(), torch.zeros(3, 2))),
        "fixed": lambda: ("TorchExportTensor", exported(Centred(), torch.zeros(2, 2), fixed=True)),
        "python": lambda: ("PythonTensor", "net.py:Centred"),
    }
    name, model = forms[form]()
    context = Context(node="node", pipeline="pipe", directory=tmp_path)
    backend = make(name, model, context, max="2x2" if form == "fixed" else "8x2")
    assert (backend.min, backend.max) == (1, 1)
    backend.warm_up()
    assert "not warmed up" not in caplog.text
    assert [result.tolist() for result in run(backend, *sounds())] == CENTRED
    assert "alone: output 0 of a row changes with the other rows" in caplog.text


@pytest.mark.parametrize("module", [Places(), Filtered()])
def test_rows_that_depend_on_the_data(scripted: Any, make: Any, run: Any, module: Any) -> None:
    """With one row in each answer, the number of rows is that of the items."""
    backend = make("TorchScriptTensor", scripted(module), max="8x1")
    assert backend.max == 1
    first, second = run(backend, torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    alone = [module(torch.tensor([[value]])).tolist() for value in (1.0, 2.0)]
    assert [first.tolist(), second.tolist()] == alone


@pytest.mark.parametrize("module", [Centred(), Places(), Filtered()])
def test_the_first_items_decide_where_the_shapes_are_not_known(
    scripted: Any, make: Any, run: Any, module: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend = make("TorchScriptTensor", scripted(module), max=8)
    assert backend.max == 8
    engine = backend.children[0]
    equal = torch.zeros(1, 1)
    run(backend, equal, equal)  # rows that do not differ prove nothing
    assert not engine.proven
    data = [torch.tensor([[value]]) for value in (1.0, 2.0)]
    results = run(backend, *data)
    assert [result.tolist() for result in results] == [module(value).tolist() for value in data]
    assert engine.proven and not engine.batched and "runs each item" in caplog.text


class PartOfLargest(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() / torch.clamp(x.max().float(), min=1.0)


class AboveSmallest(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.min()


class AllOrAny(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x & x.any()) | x.all()


class Scaled(torch.nn.Module):
    """Pixels from 0 to 1; those that look like 0 to 255 are scaled."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.max() > 1.5:
            return x / 255
        return x


@pytest.mark.parametrize(
    ("module", "first", "later"),
    [
        (PartOfLargest(), [[0, 1, 1], [1, 0, 1]], [[0, 2, 1], [0, 50, 1]]),
        (AboveSmallest(), [[5, 0, 9], [7, 0, 3]], [[7, 8, 9], [1, 3, 1]]),
        (AllOrAny(), [[True, False, False]] * 2, [[True, True, True], [False, False, False]]),
        (Scaled(), [[0.0, 0.5, 1.0], [0.5, 0.25, 0.0]], [[0.5, 1.0, 0.0], [255.0, 128.0, 0.0]]),
    ],
)
def test_what_the_first_items_hide_is_probed_too(
    scripted: Any, make: Any, run: Any, module: Any, first: Any, later: Any
) -> None:
    backend = make("TorchScriptTensor", scripted(module), max=8)
    for rows in (first, later):
        data = [torch.tensor([row]) for row in rows]
        alone = [module(row).tolist() for row in data]
        assert [result.tolist() for result in run(backend, *data)] == alone


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float16])
def test_first_items_of_every_dtype_may_share_runs(
    scripted: Any, make: Any, run: Any, dtype: torch.dtype
) -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    backend = make("TorchScriptTensor", scripted(Twice()), max=8)
    run(backend, torch.tensor([[0, 255]]).to(dtype), torch.tensor([[3, 1]]).to(dtype))
    engine = backend.children[0]
    assert engine.proven and engine.batched


def test_a_model_that_refuses_what_the_first_items_hide_is_proven(
    scripted: Any, make: Any, run: Any
) -> None:
    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.rand(2, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.table[x]

    backend = make("TorchScriptTensor", scripted(Table()), max=8)
    run(backend, torch.tensor([[0, 1, 1]]), torch.tensor([[1, 0, 0]]))
    engine = backend.children[0]
    assert engine.proven and engine.batched


def test_a_model_that_keeps_rows_apart_is_proven_once(scripted: Any, make: Any, run: Any) -> None:
    backend = make("TorchScriptTensor", scripted(Pool()), max=8)
    engine = backend.children[0]
    sizes: list[int] = []
    model = engine.model

    def measured(image: torch.Tensor) -> Any:
        sizes.append(len(image))
        return model(image)

    engine.model = measured
    data = [torch.rand(1, 3, 4, 4) for _ in range(4)]
    run(backend, data[0])
    assert sizes == [1] and not engine.proven  # alone, an item needs no proof
    run(backend, *data)
    assert engine.proven and sizes == [1, 1, *[3, 3, 1, 3, 1, 3] * 2, 4]
    run(backend, *data)
    assert sizes[15:] == [4]


MIXING = {
    "largest": "x / x.max()",
    "range": "(x - x.min()) / (x.max() - x.min())",
    "mean": "x - x.mean()",
    "norm": "x / x.norm()",
    "floor": "torch.maximum(x, x.mean())",
    "little": "x + 0.01 * x.mean(0, keepdim=True)",
    "beside a large value": "torch.cat([x * 1000, (x / 10).softmax(0)], 1)",
    "attention": "x + torch.softmax(x @ x.t(), 1) @ x",
    "ascending": "x.sort(dim=0)[0]",
    "descending": "x.sort(dim=0, descending=True)[0]",
    "smallest so far": "x.cummin(0)[0]",
    "largest so far": "x.cummax(0)[0]",
    "sum so far": "x.cumsum(0)",
    "by score": "x[x.sum(1).argsort(descending=True)]",
    "turned round": "x.flip(0)",
    "moved by two": "x.roll(2, 0)",
}
"""Answers in which rows meet. Some look right where the rows have equal norms, are sorted, or are
only two.
"""


@pytest.mark.parametrize("most", ["8x4", "2x4", "8"])
@pytest.mark.parametrize("name", MIXING)
def test_no_row_meets_another(
    make: Any, run: Any, tmp_path: Path, name: str, most: str, caplog: pytest.LogCaptureFixture
) -> None:
    if (name, most) == ("moved by two", "2x4"):
        return  # of two rows, both stay
    (tmp_path / "net.py").write_text(
        "import torch\n\nclass Net(torch.nn.Module):\n"
        f"    def forward(self, x):\n        return {MIXING[name]}\n"
    )
    context = Context(node="node", directory=tmp_path)
    backend = make("PythonTensor", "net.py:Net", context, max=most)
    data = [torch.tensor([values]) for values in ([0.5, 2.0, 1.0, 0.1], [3.0, 0.2, 0.4, 5.0])]
    results = run(backend, *data)
    assert "runs each item" in caplog.text
    for x, result in zip(data, results, strict=True):
        alone = eval(MIXING[name], {"torch": torch, "x": x})
        assert torch.allclose(result, alone)


class Relative(torch.nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens / (tokens.max() + 1)


def test_integers_beside_the_largest_of_all(exported: Any, make: Any, run: Any) -> None:
    """Beside zeros, the largest value has no effect."""
    path = exported(Relative(), torch.zeros(3, 2, dtype=torch.int64))
    backend = make("TorchExportTensor", path, max=8)
    assert backend.max == 1
    results = run(backend, torch.tensor([[1, 3]]), torch.tensor([[7, 0]]))
    assert [result.tolist() for result in results] == [[[0.25, 0.75]], [[0.875, 0]]]


def test_texts_and_dicts_are_proven_with_the_first_items(
    scripted: Any, make: Any, run: Any
) -> None:
    texts = make("TorchScriptTensor", scripted(Shout(), name="texts.pt"), max=8)
    assert [result[0] for result in run(texts, ["ab"], ["cde"])] == [["AB"], ["CDE"]]
    named = make("TorchScriptTensor", scripted(Named(), name="named.pt"), max=8)
    items = [{"a": torch.rand(1, 2), "b": torch.rand(1, 2)} for _ in range(2)]
    for item, (total, _) in zip(items, run(named, *items), strict=True):
        assert torch.equal(total, item["a"] + item["b"])
    for backend in (texts, named):
        assert backend.children[0].proven and backend.children[0].batched


def test_control_flow_is_batched_where_the_answers_agree(make: Any, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CODE)
    context = Context(node="node", directory=tmp_path)
    assert make("PythonTensor", "net.py:Branching", context, max="8x2").max == 8


def test_keys_for_batches(
    scripted: Any, exported: Any, make: Any, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = scripted(Centred())
    alone = make("TorchScriptTensor", path, max="8x2", batched=False)
    assert (alone.min, alone.max) == (1, 1)
    assert [result.tolist() for result in run(alone, *sounds())] == CENTRED
    trusted = make("TorchScriptTensor", path, batched=True)
    assert trusted.max == UNBOUNDED
    mixed = run(trusted, torch.ones(1, 2), torch.ones(1, 2) * 3)
    assert [result.tolist() for result in mixed] == [[[-1, -1]], [[1, 1]]]
    assert not caplog.records
    fixed = exported(Centred(), torch.zeros(2, 2), fixed=True)
    backend = make("TorchExportTensor", fixed, batched=False)
    assert run(backend, sounds()[0])[0].tolist() == CENTRED[0]
    with pytest.raises(InvalidInput):
        run(backend, torch.zeros(1, 2))  # it is not padded


def test_inputs_with_different_first_axes(exported: Any, make: Any, run: Any) -> None:
    path = exported(State(), torch.zeros(1, 2), torch.zeros(3, 1, 2), fixed=True)
    with pytest.raises(Exception, match="batched = false runs each item alone"):
        make("TorchExportTensor", path)
    backend = make("TorchExportTensor", path, batched=False)
    items = [[np.full((1, 2), value, np.float32), np.ones((3, 1, 2))] for value in (1, 2)]
    assert [result[0].tolist() for result in run(backend, *items)] == [[[4, 4]], [[5, 5]]]


class Step(torch.nn.Module):
    """A step of a network with a state of 2 layers, whose batch is on the second axis."""

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + h.sum(0), h + x


STEP = """
import torch

class Step(torch.nn.Module):
    def forward(self, x, h):
        return x + h.sum(0), h + x
"""


def step_backend(
    make: Any, scripted: Any, exported: Any, folder: Path, form: str, **keys: Any
) -> Any:
    (folder / "net.py").write_text(STEP)
    batch = torch.export.Dim("batch", min=1, max=16)
    examples = torch.zeros(3, 4), torch.zeros(2, 3, 4)
    shapes = ({0: batch}, {1: batch})
    forms: dict[str, Any] = {
        "script": lambda: ("TorchScriptTensor", scripted(Step())),
        "export": lambda: ("TorchExportTensor", exported(Step(), *examples, shapes=shapes)),
        "fixed": lambda: ("TorchExportTensor", exported(Step(), *examples, fixed=True)),
        "python": lambda: ("PythonTensor", "net.py:Step"),
    }
    name, model = forms[form]()
    return make(name, model, Context(node="node", pipeline="pipe", directory=folder), **keys)


@pytest.mark.parametrize("form", ["script", "export", "fixed", "python"])
@pytest.mark.parametrize("most", [8, "8x4,2x8x4"])
def test_a_batch_axis_for_each_tensor(
    scripted: Any, exported: Any, make: Any, run: Any, tmp_path: Path, form: str, most: Any
) -> None:
    backend = step_backend(
        make,
        scripted,
        exported,
        tmp_path,
        form,
        max=most,
        batch_axis={"INPUT__1" if form == "python" else "h": 1, "OUTPUT__1": 1},
    )
    assert backend.max == (3 if form == "fixed" else 8)
    backend.warm_up()
    random = torch.manual_seed(0)
    for rows, count in ((1, 3), (3, 1), (1, 1)):
        items = [
            [torch.rand(rows, 4, generator=random), torch.rand(2, rows, 4, generator=random)]
            for _ in range(count)
        ]
        keys = {"request_size": rows} if rows > 1 else {}
        for (x, h), (y, state) in zip(items, run(backend, *items, **keys), strict=True):
            torch.testing.assert_close(y, x + h.sum(0))
            torch.testing.assert_close(state, h + x)
            assert state.is_contiguous()
            assert state.untyped_storage().nbytes() == state.numel() * 4
    engine = backend.children[0]
    assert engine.proven and engine.batched


@pytest.mark.parametrize("form", ["script", "export", "python"])
@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"state": 1}, r"batch_axis: names 'state': expected an input \("),
        ({"INPUT__1": 3}, "batch_axis: gives axis 3 for"),
        ({"OUTPUT__2": 1}, "batch_axis: names 'OUTPUT__2'"),
        ({"INPUT__1": 1, "OUTPUT__1": 5}, "batch_axis: gives axis 5 for an output that has 3 axes"),
    ],
)
def test_a_batch_axis_that_does_not_fit(
    scripted: Any,
    exported: Any,
    make: Any,
    tmp_path: Path,
    form: str,
    axes: Any,
    message: str,
) -> None:
    if form == "python" and "OUTPUT__2" in axes:
        pytest.skip("a module does not say how many outputs it has")
    with pytest.raises(ConfigError, match=message):
        step_backend(make, scripted, exported, tmp_path, form, max="8x4,2x8x4", batch_axis=axes)


def test_a_wrong_batch_axis_is_found_by_the_probe(scripted: Any, make: Any, run: Any) -> None:
    backend = make(
        "TorchScriptTensor",
        scripted(Rows()),
        max="3x8",
        batch_axis={"x": 1, "OUTPUT__0": 1},
    )
    assert backend.max == 1
    data = torch.tensor([[1.0, 2, 3], [4, 4, 4]])
    assert run(backend, data)[0].tolist() == [[-1, 0, 1], [0, 0, 0]]


class Looked(torch.nn.Module):
    """The logarithm of a row, with the row before it if `mixes`. Refuses what is not above 1000."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.mixes = mixes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x < 1000).any()):
            raise ValueError("too small")
        return x.log() + x.mean() if self.mixes else x.log()


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("most", [4, "4x2"])
def test_rows_of_the_values_for_warm_up_are_the_probe(
    scripted: Any, make: Any, run: Any, tmp_path: Path, mixes: bool, most: Any
) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([[1000, 2000], [3000, 9000]], np.float32))
    context = Context(node="node", pipeline="pipe", directory=tmp_path)
    backend = make("TorchScriptTensor", scripted(Looked(mixes)), context, max=most, warm_up="x.npz")
    assert backend.max == (1 if mixes else 4)
    assert backend.children[0].proven
    backend.warm_up()
    data = torch.tensor([[1000.0, 2000.0]]), torch.tensor([[4000.0, 4000.0]])
    alone = [Looked(mixes)(value) for value in data]
    for result, expected in zip(run(backend, *data), alone, strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("form", ["script", "export", "python"])
def test_values_for_warm_up_of_a_batch_on_another_axis(
    scripted: Any,
    exported: Any,
    make: Any,
    tmp_path: Path,
    form: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.savez(tmp_path / "xh.npz", INPUT__0=values[0], INPUT__1=values)
    axes = {"INPUT__1" if form == "python" else "h": 1, "OUTPUT__1": 1}
    backend = step_backend(
        make, scripted, exported, tmp_path, form, max=4, batch_axis=axes, warm_up="xh.npz"
    )
    engine = backend.children[0]
    assert engine.proven and engine.batched
    backend.warm_up()
    assert "not warmed up" not in caplog.text
    signature = backend.signature
    assert not signature.batched and [signature.batch_axis(index) for index in (0, 1)] == [0, 1]
