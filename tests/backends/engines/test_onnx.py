"""OnnxTensor, on models that the tests build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock.backends.base import UNBOUNDED, Context
from penstock.backends.engines.encryption import KEY_VARIABLE, WrongKeyError, encrypt
from penstock.backends.engines.onnx import OnnxTensor
from penstock.backends.engines.onnx_model import OnnxModel
from penstock.backends.engines.onnx_params import OnnxParams
from penstock.backends.errors import BackendError, ConfigError, InvalidInput

FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8


def write(
    path: Path, nodes: Any, inputs: Any, outputs: Any, initializers: Any = (), **save: Any
) -> Path:
    """Save a model of `nodes`. Inputs and outputs are (name, element type, shape)."""
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
        "graph",
        [helper.make_tensor_value_info(*port) for port in inputs],
        [helper.make_tensor_value_info(*port) for port in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path, **save)
    return path


def make(path: Path | str, context: Any = None, **params: Any) -> Any:
    backend = OnnxTensor()
    backend.init(
        OnnxParams.model_validate({"model": str(path), **params}),
        Context(node="node", **(context or {})),
    )
    return backend


def instances(path: Path, count: int, **params: Any) -> list[Any]:
    """Make the instances of one node, which have one object as their params."""
    shared = OnnxParams.model_validate({"model": str(path), **params})
    backends = [OnnxTensor() for _ in range(count)]
    for number, backend in enumerate(backends):
        backend.init(shared, Context(node="node", instance=number, instances=count))
    return backends


def run(backend: Any, *data: Any, **keys: Any) -> Any:
    batch = [{"data": value, **keys} for value in data]
    backend.forward(batch)
    return [item.get("result", item.get("error")) for item in batch]


@pytest.fixture
def encrypted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace a file by the one that `penstock encrypt` would write."""

    def encrypted(path: Path) -> Path:
        hidden = path.with_name(f"{path.name}.encrypted")
        hidden.write_bytes(encrypt(path.read_bytes(), bytes(range(32))))
        path.unlink()
        return hidden

    monkeypatch.setenv(KEY_VARIABLE, bytes(range(32)).hex())
    return encrypted


@pytest.fixture
def double(tmp_path: Path) -> Path:
    """y = 2x, Nx3."""
    return write(
        tmp_path / "double.onnx",
        [("Add", ["x", "x"], ["y"])],
        [("x", FLOAT, ["n", 3])],
        [("y", FLOAT, ["n", 3])],
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A model that returns its image unchanged, Nx3xHxW."""
    shape = ["n", 3, "h", "w"]
    return write(
        tmp_path / "image.onnx",
        [("Identity", ["image"], ["same"])],
        [("image", FLOAT, shape)],
        [("same", FLOAT, shape)],
    )


@pytest.fixture
def fixed(tmp_path: Path) -> Path:
    """A model that takes only batches of 4. `count` has, in each row that is not zero, the number
    of such rows in the batch.
    """
    nodes = [
        ("Abs", ["x"], ["a"]),
        ("Sign", ["a"], ["s"]),
        ("ReduceSum", ["s", "axes"], ["t"]),
        ("Mul", ["s", "t"], ["count"]),
    ]
    return write(
        tmp_path / "fixed.onnx",
        nodes,
        [("x", FLOAT, [4, 1])],
        [("count", FLOAT, [4, 1])],
        [("axes", np.array([0]))],
    )


# Batches


def row(*values: Any) -> Any:
    return np.array([values], np.float32)


def test_encrypted_models(
    double: Path, image: Path, encrypted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(make(encrypted(double)), row(1, 2, 3))[0].tolist() == [[2, 4, 6]]
    pixels = np.full((1, 3, 2, 2), 5, np.uint8)
    assert run(make(encrypted(image), mean="1", std="2"), pixels)[0].ravel().tolist() == [2] * 12
    model = (
        [("Mul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["n", 3])],
        [("y", FLOAT, ["n", 3])],
        [("w", np.full(3, 2, np.float32))],
    )
    beside = write(
        tmp_path / "large.onnx",
        *model,
        save_as_external_data=True,
        size_threshold=0,
        location="weights.bin",
    )
    assert run(make(encrypted(beside)), row(1, 2, 3))[0].tolist() == [[2, 4, 6]]
    monkeypatch.setenv(KEY_VARIABLE, "11" * 32)
    with pytest.raises(
        WrongKeyError, match=r"OnnxTensor: .*double\.onnx\.encrypted can't be decrypted"
    ):
        make(tmp_path / "double.onnx.encrypted")
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(BackendError, match="OnnxTensor: encrypted files need a key"):
        make(tmp_path / "double.onnx.encrypted")


def test_a_batch(double: Path) -> None:
    results = run(make(double, max=8), row(1, 2, 3), row(4, 5, 6), row(7, 8, 9))
    assert [result.tolist() for result in results] == [[[2, 4, 6]], [[8, 10, 12]], [[14, 16, 18]]]
    assert all(result.dtype == np.float32 and result.flags.c_contiguous for result in results)


def test_results_do_not_keep_the_batch_and_the_buffer_is_not_shared(double: Path) -> None:
    backend = make(double, max=8)
    first = run(backend, row(1, 1, 1), row(2, 2, 2))
    again = run(backend, row(3, 3, 3), row(4, 4, 4))
    assert all(result.base is None for result in first)
    assert [result[0, 0] for result in first + again] == [2, 4, 6, 8]


def test_one_item_goes_in_and_out_without_a_copy(image: Path) -> None:
    fed = []
    backend = make(image, max=4)
    session = backend.model.session

    class Spy:
        def run(self, names: Any, feed: Any, options: Any) -> Any:
            fed.append(feed["image"])
            return session.run(names, feed, options)

    backend.model.session = Spy()
    data = np.ones((1, 3, 4, 4), np.float32)
    (result,) = run(backend, data)
    assert fed[0] is data
    assert not np.shares_memory(result, data)
    run(backend, data, data)
    run(backend, data, data)
    assert np.shares_memory(fed[1], fed[2])


def test_request_size(double: Path) -> None:
    batch = [
        {"data": row(1, 1, 1)},
        {"data": np.full((3, 3), 5, np.float32), "request_size": 3},
        {"data": row(2, 2, 2)},
    ]
    make(double, max=8).forward(batch)
    assert [item["result"].shape for item in batch] == [(1, 3), (3, 3), (1, 3)]
    assert [item["result"][0, 0] for item in batch] == [2, 10, 4]


@pytest.mark.parametrize("size", [1, 3])
def test_data_must_have_as_many_rows_as_its_request_size(double: Path, size: int) -> None:
    with pytest.raises(
        InvalidInput,
        match=rf"input x: expected {size} \(the item's request_size\).*found shape 2x3",
    ):
        run(make(double, max=8), np.zeros((2, 3), np.float32), request_size=size)


def test_shapes_are_grouped_within_a_forward(image: Path) -> None:
    arrays = [
        np.full((1, 3, size, 2 * size), size, np.float32) for size in (2, 5, 2, 7, 5, 9, 11, 2)
    ]
    backend = make(image, max=8)
    for _ in range(3):  # there are more shapes than buffers that are kept
        results = run(backend, *arrays)
        assert all(
            np.array_equal(result, array) for result, array in zip(results, arrays, strict=True)
        )


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_fixed_batch_is_padded(fixed: Path, size: int) -> None:
    backend = make(fixed, batched=True)
    run(backend, *[row(9)] * 4)  # its rows stay in the buffer, and must not be counted below
    results = run(backend, *[row(1 + index) for index in range(size)])
    assert [result.tolist() for result in results] == [[[size]]] * size
    (result,) = run(backend, np.ones((size, 1), np.float32), request_size=size)
    assert result.tolist() == [[size]] * size


def test_options_of_onnx_runtime(double: Path) -> None:
    backend = make(
        double,
        execution_mode="parallel",
        inter_op_thread_count=2,
        graph_optimization_level="basic",
        enable_mem_arena=False,
        enable_mem_pattern=False,
    )
    options = backend.model.session.get_session_options()
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert options.inter_op_num_threads == 2
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.graph_optimization_level == level
    assert not options.enable_cpu_mem_arena and not options.enable_mem_pattern
    shrinking = make(double, shrink_mem_arena=True)
    shrinking.warm_up()
    (result,) = run(shrinking, np.ones((1, 3), np.float32))
    assert result.tolist() == [[2, 2, 2]]
    entry = shrinking._options.get_run_config_entry("memory.enable_memory_arena_shrinkage")
    assert entry == "cpu:0"


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    path = write(
        tmp_path / "two.onnx",
        [("Add", ["a", "b"], ["sum"]), ("Sub", ["a", "b"], ["difference"])],
        [("a", FLOAT, ["n", 1]), ("b", FLOAT, ["n", 1])],
        [("sum", FLOAT, ["n", 1]), ("difference", FLOAT, ["n", 1])],
    )
    backend = make(path, max=4)
    for items in ([[row(5), row(3)]], [[row(5), row(3)], (row(1), row(1))]):
        results = run(backend, *items)
        assert [part.tolist() for part in results[0]] == [[[8]], [[2]]]
        assert isinstance(results[0], list)
    reordered = make(path, max=4, input_reorder="1,0", output_reorder="1, 0")
    assert [part.tolist() for part in run(reordered, [row(5), row(3)])[0]] == [[[-2]], [[8]]]
    with pytest.raises(InvalidInput, match=r"2 inputs \(a, b\), but data holds 1"):
        run(backend, row(1))
    for wrong in ("0", "0,0", "0,2", "a,b"):
        with pytest.raises(ConfigError, match="input_reorder"):
            make(path, input_reorder=wrong)


def test_first_items_of_0_and_1_do_not_hide_that_rows_share_their_largest(tmp_path: Path) -> None:
    """The table refuses the sizes that a probe guesses, so that the first items decide."""
    path = write(
        tmp_path / "part.onnx",
        [
            ("ReduceMax", ["x"], ["most"]),
            ("Max", ["most", "one"], ["top"]),
            ("Div", ["x", "top"], ["part"]),
            ("Add", ["part", "table"], ["y"]),
        ],
        [("x", TensorProto.INT64, ["n", "t"])],
        [("y", TensorProto.INT64, ["n", "t"])],
        [("table", np.zeros(3, np.int64)), ("one", np.int64(1))],
    )
    backend = make(path, max=8)
    for rows in ([[0, 1, 1], [1, 0, 1]], [[0, 2, 1], [0, 50, 1]]):
        data = [np.array([row]) for row in rows]
        assert [result.tolist() for result in run(backend, *data)] == [
            [[value // max(row) for value in row]] for row in rows
        ]


def test_a_model_that_mixes_items_runs_them_one_by_one(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mix.onnx",
        [("ReduceSum", ["x"], ["total"], {"keepdims": 0})],
        [("x", FLOAT, ["n", 2])],
        [("total", FLOAT, [])],
    )
    backend = make(path, max=8)
    assert backend.max == 1
    assert [float(result) for result in run(backend, row(1, 2), np.ones((5, 2), np.float32))] == [
        3,
        10,
    ]


def test_an_output_without_a_row_for_each_item_is_an_error(tmp_path: Path) -> None:
    nodes = [("Compress", ["x", "which"], ["y"], {"axis": 0})]
    path = write(
        tmp_path / "m.onnx",
        nodes,
        [("x", FLOAT, ["n", 2])],
        [("y", FLOAT, ["m", 2])],
        [("which", np.array([True]))],
    )
    with pytest.raises(BackendError, match="output y has shape 1x2 for a batch of 2"):
        run(make(path, max=8, batched=True), row(1, 2), row(3, 4))


def test_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.onnx",
        [("Identity", ["x"], ["y"])],
        [("x", TensorProto.STRING, ["n", 1])],
        [("y", TensorProto.STRING, ["n", 1])],
    )
    results = run(make(path, max=4), np.array([["wide"]]), np.array([["ü"]], object))
    assert [result.tolist() for result in results] == [[["wide"]], [["ü"]]]


# Rows that do not stay apart


def floats(values: Any) -> Any:
    return np.array(values, np.float32)


def places(path: Path) -> Path:
    """A model that returns the places in x, Nx1, that are not 0: Kx2."""
    return write(
        path,
        [("NonZero", ["x"], ["found"]), ("Transpose", ["found"], ["places"])],
        [("x", FLOAT, ["n", 1])],
        [("places", TensorProto.INT64, ["k", 2])],
    )


def test_items_of_a_model_whose_rows_depend_on_the_data_run_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With one place in each, K is the number of items, and each row is another item's place."""
    backend = make(places(tmp_path / "m.onnx"), max=8)
    assert (backend.min, backend.max, backend.signature.batched) == (1, 1, False)
    assert [result.tolist() for result in run(backend, row(1), row(2))] == [[[0, 0]], [[0, 0]]]
    assert "m.onnx alone: output places of a row changes with the other rows" in caplog.text


def test_only_the_first_instance_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backends = instances(places(tmp_path / "m.onnx"), 3, max=8)
    assert [backend.max for backend in backends] == [1, 1, 1]
    assert caplog.text.count("alone") == 1


SIZES_OF_A_PROBE = [3, 3, 1, 3, 1, 3]
"""The rows of each run: two rows in two orders, and each alone and beside its copies."""


def measured_probes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the rows of each run of a probe."""
    sizes: list[int] = []
    probe = OnnxModel.probe

    def measured(self: Any, rows: Any, ran: int, options: Any) -> Any:
        sizes.append(len(rows))
        return probe(self, rows, ran, options)

    monkeypatch.setattr(OnnxModel, "probe", measured)
    return sizes


@pytest.mark.parametrize("known", [True, False])
def test_one_instance_probes_for_all(
    double: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Also where the first items decide: those of any instance."""
    path = double if known else needs_ten(tmp_path / "m.onnx", reduces=True)
    sizes = measured_probes(monkeypatch)
    backends = instances(path, 3, max=8)
    if known:
        assert sizes == SIZES_OF_A_PROBE
        return
    sizes.clear()
    data = [np.arange(10, dtype=np.float32)[None] * factor for factor in (1, 2)]
    for backend in reversed(backends):
        assert [result.tolist() for result in run(backend, *data)] == [[[0] * 10]] * 2
    assert sizes == [1, *SIZES_OF_A_PROBE]  # the first item, and then the rows made from it


def test_a_detector_that_ends_in_nms(tmp_path: Path) -> None:
    path = write(
        tmp_path / "nms.onnx",
        [
            ("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["selected"]),
            ("Cast", ["selected"], ["found"], {"to": FLOAT}),
        ],
        [("boxes", FLOAT, ["n", 4, 4]), ("scores", FLOAT, ["n", 1, 4])],
        [("found", FLOAT, [None, 3])],
        [("most", np.array([1])), ("iou", floats([0.5])), ("least", floats([0.1]))],
    )
    backend = make(path, max=8)
    boxes = floats([[[0, 0, 1, 1], [0, 0, 2, 2], [3, 3, 4, 4], [5, 5, 6, 6]]])
    scores = [floats([[[0, 0, 1, 0]]]), floats([[[1, 0, 0, 0]]])]
    results = run(backend, *([boxes, score] for score in scores))
    assert [result.tolist() for result in results] == [[[0, 0, 2]], [[0, 0, 0]]]


@pytest.mark.parametrize("axis", ["n", 2])
def test_the_rows_of_stereo_sound_are_not_a_batch(tmp_path: Path, axis: Any) -> None:
    path = write(
        tmp_path / "sound.onnx",
        [("ReduceMean", ["x"], ["mean"], {"axes": [0]}), ("Sub", ["x", "mean"], ["y"])],
        [("x", FLOAT, [axis, "t"])],
        [("y", FLOAT, [axis, "t"])],
    )
    backend = make(path, max=8)
    assert backend.max == 1 and not backend.signature.batched
    sounds = [floats([[1, 2], [3, 4]]), floats([[10, 10], [30, 10]])]
    assert [result.tolist() for result in run(backend, *sounds)] == [
        [[-1, -1], [1, 1]],
        [[-10, 0], [10, 0]],
    ]


def test_a_state_with_its_batch_on_another_axis(tmp_path: Path) -> None:
    """The names of the sizes say it: no probe is needed."""
    path = write(
        tmp_path / "m.onnx",
        [("ReduceSum", ["state", "axes"], ["sum"], {"keepdims": 0}), ("Add", ["x", "sum"], ["y"])],
        [("x", FLOAT, ["n", 2]), ("state", FLOAT, ["layers", "n", 2])],
        [("y", FLOAT, ["n", 2])],
        [("axes", np.array([0]))],
    )
    backend = make(path, max=8)
    assert backend.max == 1
    state = np.ones((3, 1, 2), np.float32)
    results = run(backend, [row(1, 1), state], [row(2, 2), state])
    assert [result.tolist() for result in results] == [[[4, 4]], [[5, 5]]]


@pytest.mark.parametrize(
    ("element", "data"),
    [(TensorProto.INT64, np.int64), (UINT8, np.uint8), (TensorProto.BOOL, np.bool_)],
)
def test_integers_are_probed(tmp_path: Path, element: Any, data: Any) -> None:
    path = write(
        tmp_path / "m.onnx",
        [("NonZero", ["x"], ["found"]), ("Transpose", ["found"], ["places"])],
        [("x", element, ["n", 1])],
        [("places", TensorProto.INT64, ["k", 2])],
    )
    assert make(path, max=8).max == 1
    same = write(
        tmp_path / "same.onnx",
        [("Identity", ["x"], ["y"])],
        [("x", element, ["n", 2])],
        [("y", element, ["m", 2])],
    )
    assert make(same, max=8).max == 8


def test_integers_of_a_model_that_divides_by_the_largest_of_all(tmp_path: Path) -> None:
    """Beside zeros, the largest value has no effect."""
    path = write(
        tmp_path / "m.onnx",
        [
            ("Cast", ["x"], ["value"], {"to": FLOAT}),
            ("ReduceMax", ["value"], ["largest"]),
            ("Add", ["largest", "one"], ["more"]),
            ("Div", ["value", "more"], ["y"]),
        ],
        [("x", TensorProto.INT64, ["n", 2])],
        [("y", FLOAT, ["n", 2])],
        [("one", np.array([1], np.float32))],
    )
    backend = make(path, max=8)
    assert backend.max == 1
    results = run(backend, np.array([[1, 3]]), np.array([[7, 0]]))
    assert [result.tolist() for result in results] == [[[0.25, 0.75]], [[0.875, 0]]]


def needs_ten(path: Path, reduces: bool) -> Path:
    """A model that takes only a width of 10, and does not say so."""
    nodes: list[Any] = [("Reshape", ["x", "shape"], ["ten"])]
    if reduces:
        nodes += [("ReduceMax", ["ten"], ["m"], {"axes": [0]}), ("Sub", ["ten", "m"], ["y"])]
    else:
        nodes += [("Identity", ["ten"], ["y"])]
    return write(
        path,
        nodes,
        [("x", FLOAT, ["n", "width"])],
        [("y", FLOAT, ["m", 10])],
        [("shape", np.array([-1, 10]))],
    )


@pytest.mark.parametrize("reduces", [False, True])
def test_the_first_items_decide_where_random_rows_are_refused(
    tmp_path: Path, reduces: bool, caplog: pytest.LogCaptureFixture
) -> None:
    backend = make(needs_ten(tmp_path / "m.onnx", reduces), max=8)
    assert not backend.proof.proven
    data = [np.arange(10, dtype=np.float32)[None] * factor for factor in (1, 2, 3)]
    same = run(backend, data[0] * 0, data[0] * 0)
    assert len(same) == 2 and not backend.proof.proven  # rows that do not differ prove nothing
    results = run(backend, *data)
    for result, array in zip(results, data, strict=True):
        np.testing.assert_array_equal(result, array * (0 if reduces else 1))
    assert backend.proof.proven and backend.batched is not reduces
    assert ("runs each item" in caplog.text) is reduces


def test_an_item_that_the_model_refuses_proves_nothing(tmp_path: Path) -> None:
    backend = make(needs_ten(tmp_path / "m.onnx", reduces=False), max=8)
    with pytest.raises(Exception, match="Reshape"):
        run(backend, np.ones((1, 7), np.float32), np.ones((1, 7), np.float32))
    assert not backend.proof.proven and backend.batched


def test_keys_for_batches(double: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alone = make(double, max=8, batched=False)
    assert (alone.min, alone.max, alone.signature.batched) == (1, 1, False)
    assert [result.shape for result in run(alone, np.ones((5, 3), np.float32), row(1, 2, 3))] == [
        (5, 3),
        (1, 3),
    ]
    assert make(places(tmp_path / "p.onnx"), max=8, batched=True).max == 8
    assert not caplog.records
    params = OnnxParams.model_validate({"model": "m", "max": 8, "batched": False})
    assert OnnxTensor.declared_range(params, ()) == (1, 1)
    path = write(
        tmp_path / "two.onnx",
        [("Add", ["a", "b"], ["c"])],
        [("a", FLOAT, ["n", 2]), ("b", FLOAT, [2])],
        [("c", FLOAT, ["n", 2])],
    )
    with pytest.raises(ConfigError, match=r"batched: is true, and its inputs have no common first"):
        make(path, batched=True)


@pytest.mark.parametrize("direction", [0, 1])
def test_sorted_rows_run_alone(tmp_path: Path, direction: int) -> None:
    """Whatever the order of the probe's rows."""
    path = write(
        tmp_path / "m.onnx",
        [
            ("Shape", ["x"], ["shape"]),
            ("Gather", ["shape", "first"], ["rows"]),
            ("TopK", ["x", "rows"], ["y", "order"], {"axis": 0, "largest": direction}),
        ],
        [("x", FLOAT, ["n", 2])],
        [("y", FLOAT, ["n", 2])],
        [("first", [0])],
    )
    backend = make(path, max=8)
    assert (backend.max, backend.signature.batched) == (1, False)
    assert [result.tolist() for result in run(backend, row(1, 8), row(2, 4))] == [
        [[1, 8]],
        [[2, 4]],
    ]


def test_a_large_fixed_axis_that_is_no_batch(tmp_path: Path) -> None:
    """Each of 256 rows has little effect on the others, and all of them have much."""
    path = write(
        tmp_path / "m.onnx",
        [("ReduceMean", ["x"], ["mean"], {"axes": [0]}), ("Sub", ["x", "mean"], ["y"])],
        [("x", FLOAT, [256, 4])],
        [("y", FLOAT, [256, 4])],
    )
    backend = make(path)
    assert (backend.max, backend.signature.batched) == (1, False)
    x = np.arange(1024, dtype=np.float32).reshape(256, 4)
    assert np.allclose(run(backend, x)[0], x - x.mean(0))


def test_the_probe_is_small(double: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = measured_probes(monkeypatch)
    make(double, max=8)
    assert sizes == SIZES_OF_A_PROBE
    make(double, max=1)  # no run has more than one row
    assert sizes == SIZES_OF_A_PROBE


# Ranges


@pytest.mark.parametrize(
    ("params", "context", "expected"),
    [
        ({}, {}, (1, UNBOUNDED)),
        ({"max": 4}, {}, (1, 4)),
        ({"max": "4"}, {"max": 8}, (1, 4)),
        ({"max": 16}, {"max": 8}, (1, 8)),
        ({}, {"max": 8}, (1, 8)),
        ({"min": 2, "max": "4x3"}, {}, (2, 4)),
        ({"min": "1x3;5x3", "max": "4x3;8x3"}, {}, (1, 8)),
    ],
)
def test_range_of_a_dynamic_model(double: Path, params: Any, context: Any, expected: Any) -> None:
    backend = make(double, context, **params)
    assert (backend.min, backend.max) == expected


@pytest.mark.parametrize(
    ("params", "expected"), [({}, (4, 4)), ({"max": 2}, (2, 2)), ({"max": 9}, (4, 4))]
)
def test_range_of_a_fixed_model(fixed: Path, params: Any, expected: Any) -> None:
    backend = make(fixed, batched=True, **params)
    assert (backend.min, backend.max) == expected


def test_declared_range() -> None:
    params = OnnxParams.model_validate({"model": "m", "min": 2, "max": "8x3x4x4"})
    assert OnnxTensor.declared_range(params, ()) == (2, 8)


# Inputs that do not fit


@pytest.mark.parametrize(
    ("data", "given"),
    [
        (np.zeros((1, 4), np.float32), "float32 of shape 1x4"),
        (np.zeros(3, np.float32), "float32 of shape 3"),
        (np.zeros((1, 3, 1), np.float32), "float32 of shape 1x3x1"),
        (np.zeros((1, 3), np.int64), "int64 of shape 1x3"),
        (np.zeros((1, 3), np.complex64), "complex64 of shape 1x3"),
        (np.array([["a", "b", "c"]]), "<U1 of shape 1x3"),
        (b"jpeg", "bytes"),
        ([[1.0, 2.0, 3.0]], "list"),
    ],
    ids=str,
)
def test_data_that_does_not_fit_names_input_expected_and_given(
    double: Path, data: Any, given: Any
) -> None:
    with pytest.raises(
        InvalidInput, match=f"input x: expected float32 of shape Nx3, found {given}"
    ):
        run(make(double, max=8), data)


def test_only_the_item_that_does_not_fit_fails(double: Path) -> None:
    batch = [{"data": row(1, 2, 3)}, {"data": row(1, 2)}, {"data": row(4, 5, 6)}]
    make(double, max=8).forward(batch)
    assert isinstance(batch[1]["error"], InvalidInput) and "result" not in batch[1]
    assert [batch[index]["result"].tolist() for index in (0, 2)] == [[[2, 4, 6]], [[8, 10, 12]]]
    assert "error" not in batch[0]


def test_an_input_without_elements_is_answered_or_refused(image: Path, tmp_path: Path) -> None:
    """It is the caller's input that a model can't compute with, so it is no fault of the model."""
    empty, whole = np.zeros((1, 3, 0, 2), np.float32), np.ones((1, 3, 2, 2), np.float32)
    assert run(make(image, max=4), empty)[0].shape == empty.shape
    pool = write(
        tmp_path / "pool.onnx",
        [("GlobalMaxPool", ["image"], ["most"])],
        [("image", FLOAT, ["n", 3, "h", "w"])],
        [("most", FLOAT, ["n", 3, 1, 1])],
    )
    backend = make(pool, max=4)
    message = "can't compute with an input of shape 1x3x0x2, which has no elements"
    with pytest.raises(InvalidInput, match=message):
        run(backend, empty)
    refused, other = run(backend, empty, whole)
    assert isinstance(refused, InvalidInput)
    assert other.shape == (1, 3, 1, 1)


def test_doubles_become_float32_unless_the_model_computes_in_float64(
    double: Path, tmp_path: Path
) -> None:
    (result,) = run(make(double, max=8), np.array([[0.1, 2, 1e300]]))
    assert result.dtype == np.float32
    assert result.tolist() == [[float(np.float32(0.1) * 2), 4.0, np.inf]]
    results = run(make(double, max=8), np.array([[1.0, 2, 1e300]]), row(1, 2, 3))
    assert [result.tolist() for result in results] == [[[2.0, 4.0, np.inf]], [[2.0, 4.0, 6.0]]]
    (result,) = run(make(double, max=8), np.array([[1.0, 2, 3]], ">f8"))
    assert result.tolist() == [[2.0, 4.0, 6.0]]
    exact = write(
        tmp_path / "exact.onnx",
        [("Add", ["x", "x"], ["y"])],
        [("x", TensorProto.DOUBLE, ["n", 1])],
        [("y", TensorProto.DOUBLE, ["n", 1])],
    )
    assert run(make(exact), np.array([[0.1]]))[0].tolist() == [[0.2]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.bool_, ">f4"])
def test_dtypes_that_widen_without_loss(double: Path, dtype: Any) -> None:
    backend = make(double, max=8)
    data = np.array([[0, 1, 1]], dtype)
    assert [result.tolist() for result in (*run(backend, data), *run(backend, data, row(1, 2, 3)))][
        :2
    ] == [[[0, 2, 2]]] * 2


def test_strides(double: Path) -> None:
    data = np.arange(12, dtype=np.float32).reshape(2, 6)[:1, ::-2]
    assert run(make(double, max=8), data)[0].tolist() == [[10, 6, 2]]


# mean and std


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("element", [FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_fused_normalisation(tmp_path: Path, channels: Any, element: Any) -> None:
    shape = ["n", channels, "h", "w"]
    path = write(
        tmp_path / "m.onnx",
        [("Identity", ["x"], ["y"])],
        [("x", element, shape)],
        [("y", element, shape)],
    )
    mean, std = (
        [10.5 * index for index in range(channels)],
        [1.5 + index for index in range(channels)],
    )
    backend = make(path, max=4, mean=mean, std=", ".join(map(str, std)))
    images = np.random.default_rng(0).integers(0, 256, (2, 1, channels, 4, 6), np.uint8)
    for dtype in (np.uint8, np.float16, np.float32):
        results = run(backend, *images.astype(dtype))
        for result, pixels in zip(results, images, strict=True):
            expected = (pixels - np.reshape(mean, (channels, 1, 1))) / np.reshape(
                std, (channels, 1, 1)
            )
            assert result.dtype == helper.tensor_dtype_to_np_dtype(element)
            np.testing.assert_allclose(
                result, expected, rtol=1e-3 if element == TensorProto.FLOAT16 else 1e-5, atol=1e-4
            )
    assert backend.inputs[0].name == "x"
    mixed = run(backend, images[0], images[1].astype(np.float32))
    assert np.array_equal(mixed, run(backend, *images))
    with pytest.raises(InvalidInput, match="expected float"):
        run(backend, images[0].astype(complex))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [({"mean": 1}, [9, 19]), ({"std": 2}, [5, 10]), ({"mean": "10", "std": "10,5"}, [0, 2])],
)
def test_one_value_or_only_one_key(tmp_path: Path, keys: Any, expected: Any) -> None:
    path = write(
        tmp_path / "m.onnx",
        [("Identity", ["x"], ["y"])],
        [("x", FLOAT, ["n", 2])],
        [("y", FLOAT, ["n", 2])],
    )
    assert run(make(path, **keys), np.array([[10, 20]], np.uint8))[0].tolist() == [expected]


def test_normalisation_of_the_last_axis(tmp_path: Path) -> None:
    shape = ["n", 4, 4, 3]
    path = write(
        tmp_path / "m.onnx",
        [("Identity", ["x"], ["y"])],
        [("x", FLOAT, shape)],
        [("y", FLOAT, shape)],
    )
    (result,) = run(make(path, mean="1,2,3"), np.full((1, 4, 4, 3), 9, np.uint8))
    assert result[0, 0, 0].tolist() == [8, 7, 6]


def test_normalisation_reaches_subgraphs_and_only_the_first_input(tmp_path: Path) -> None:
    def branch(name: Any, operation: Any) -> Any:
        output = helper.make_tensor_value_info(f"{name}_y", FLOAT, None)
        return helper.make_graph(
            [helper.make_node(operation, ["x", "other"], [f"{name}_y"])], name, [], [output]
        )

    nodes = [
        ("ReduceMax", ["other"], ["most"], {"keepdims": 0}),
        ("Cast", ["most"], ["condition"], {"to": TensorProto.BOOL}),
        (
            "If",
            ["condition"],
            ["y"],
            {"then_branch": branch("then", "Add"), "else_branch": branch("else", "Sub")},
        ),
    ]
    path = write(
        tmp_path / "m.onnx",
        nodes,
        [("x", FLOAT, ["n", 1]), ("other", FLOAT, ["n", 1])],
        [("y", FLOAT, ["n", 1])],
    )
    backend = make(path, mean=5)
    assert run(backend, [np.array([[7]], np.uint8), row(100)])[0].tolist() == [[102]]
    assert run(backend, [np.array([[7]], np.uint8), row(0)])[0].tolist() == [[2]]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"mean": "1,2"},
            "mean has 2 values, but neither the second nor the last axis of the first input Nx3 "
            "has",
        ),
        ({"std": "1,0,2"}, "std must not contain 0"),
    ],
)
def test_normalisation_that_does_not_fit(double: Path, keys: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(double, **keys)
    assert caught.value.problems[0].node == "node"


def test_normalisation_of_integers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx",
        [("Identity", ["x"], ["y"])],
        [("x", UINT8, ["n", 1])],
        [("y", UINT8, ["n", 1])],
    )
    with pytest.raises(ConfigError, match="'x' is UINT8"):
        make(path, mean=1)


@pytest.mark.parametrize("keys", [{}, {"mean": 1, "std": 2}])
def test_weights_in_a_file_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: Any
) -> None:
    weights = np.random.default_rng(0).random((64, 64), np.float32)
    (tmp_path / "models").mkdir()
    path = write(
        tmp_path / "models" / "m.onnx",
        [("MatMul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["n", 64])],
        [("y", FLOAT, ["n", 64])],
        [("w", weights)],
        save_as_external_data=True,
        location="m.weights",
        size_threshold=0,
    )
    assert (path.parent / "m.weights").exists()
    monkeypatch.chdir("/")
    data = np.arange(64, dtype=np.uint8).reshape(1, 64)
    expected = ((data - 1.0) / 2 if keys else data.astype(float)) @ weights
    np.testing.assert_allclose(run(make(path, **keys), data)[0], expected, rtol=1e-4)


# Loading


@pytest.mark.parametrize("keys", [{}, {"mean": 1}])
@pytest.mark.parametrize("content", [None, b"", b"this is not a model", "half"])
def test_a_model_that_can_not_be_loaded(
    tmp_path: Path, double: Path, content: Any, keys: Any
) -> None:
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(double.read_bytes()[:60] if content == "half" else content)
    with pytest.raises(BackendError, match=r"OnnxTensor: the model .*bad\.onnx"):
        make(path, **keys)


def test_close_after_a_failed_init(tmp_path: Path) -> None:
    backend = OnnxTensor()
    with pytest.raises(BackendError):
        backend.init(
            OnnxParams.model_validate({"model": "missing.onnx"}), Context(directory=tmp_path)
        )
    backend.close()


def test_the_model_lies_beside_the_pipelines_file(double: Path) -> None:
    assert run(make(double.name, {"directory": double.parent}), row(1, 2, 3))[0].tolist() == [
        [2, 4, 6]
    ]


@pytest.mark.parametrize(
    ("instances", "threads", "expected"),
    [(1, None, 6), (2, None, 3), (4, None, 1), (100, None, 1), (4, 5, 5)],
)
def test_instances_share_the_processors(
    double: Path, monkeypatch: pytest.MonkeyPatch, instances: Any, threads: Any, expected: Any
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    options = make(
        double, {"instances": instances}, threads=threads
    ).model.session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (expected, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL


# Warm-up


def warmed(backend: Any) -> Any:
    sizes = []
    session = backend.model.session

    class Spy:
        def run(self, names: Any, feed: Any, options: Any) -> Any:
            sizes.append(next(iter(feed.values())).shape)
            return session.run(names, feed, options)

    backend.model.session = Spy()
    backend.warm_up()
    return sizes


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (8, [1, 2, 4, 8]), (6, [1, 2, 4, 6]), (None, [1, 2, 4, 8])]
)
def test_warm_up_runs_every_bucket(double: Path, most: Any, sizes: Any) -> None:
    assert warmed(make(double, max=most)) == [(size, 3) for size in sizes]


def test_warm_up_of_a_fixed_batch(fixed: Path) -> None:
    assert set(warmed(make(fixed))) == {(4, 1)}


def test_warm_up_takes_open_shapes_from_max(image: Path) -> None:
    assert warmed(make(image, max=2)) == []
    assert warmed(make(image, max="2x3x8x9", mean="1,2,3")) == [(1, 3, 8, 9), (2, 3, 8, 9)]


# Shape keys


def test_shape_keys() -> None:
    def key(data: Any, **keys: Any) -> Any:
        return OnnxTensor.shape_key({"data": data, **keys})

    small, large = np.zeros((1, 3, 4, 4), np.uint8), np.zeros((1, 3, 8, 4), np.uint8)
    assert key(small) == key(small.copy()) == key(np.zeros((5, 3, 4, 4), np.uint8), request_size=5)
    assert (
        len(
            {
                key(small),
                key(large),
                key(small.astype(np.float32)),
                key([small, large]),
                key([small, small]),
                key(b""),
                key([1]),
            }
        )
        == 6 + 1
    )
    assert OnnxTensor.shape_key({}) is None


# The batch on another axis


def recurrent(path: Path, batch: Any = "n", **changes: Any) -> Path:
    """A step of a network with a state of 2 layers: y = x + the layers' sum; the next state has x
    added to each layer.
    """
    return write(
        path,
        [
            ("ReduceSum", ["h", "first"], ["sum"], {"keepdims": 0}),
            ("Add", ["x", "sum"], ["y"]),
            ("Add", ["h", "x"], ["next"]),
        ],
        [("x", FLOAT, [batch, 3]), ("h", FLOAT, [2, batch, 3])],
        [("y", FLOAT, [batch, 3]), ("next", FLOAT, [2, batch, 3])],
        [("first", np.array([0]))],
    )


def steps(count: int, rows: int = 1) -> list[Any]:
    random = np.random.default_rng(0)
    return [
        [
            random.random((rows, 3), np.float32),
            random.random((2, rows, 3), np.float32),
        ]
        for _ in range(count)
    ]


def check_steps(items: Any, results: Any) -> None:
    for (x, h), (y, state) in zip(items, results, strict=True):
        np.testing.assert_allclose(y, x + h.sum(0), rtol=1e-6)
        np.testing.assert_allclose(state, h + x, rtol=1e-6)
        assert state.flags.c_contiguous


@pytest.mark.parametrize("batch", ["n", 8])
@pytest.mark.parametrize("axes", [{"h": 1, "next": 1}, "h=1,next=1"])
def test_a_batch_axis_for_each_tensor(
    tmp_path: Path, batch: Any, axes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make(recurrent(tmp_path / "m.onnx", batch), max=8, batch_axis=axes)
    assert backend.max == 8 and backend.proof.proven and not backend.signature.batched
    assert backend.signature.batch_axes == (0, 1)
    shapes = [port.shape for port in (*backend.signature.inputs, *backend.signature.outputs)]
    assert shapes == [(-1, 3), (2, -1, 3)] * 2
    backend.warm_up()
    session, runs = backend.model.session, []
    run_session = session.run

    class Counted:
        def run(self, names: Any, feed: Any, options: Any = None) -> Any:
            runs.append(feed["h"].shape)
            return run_session(names, feed)

    backend.model.session = Counted()
    check_steps(items := steps(5), run(backend, *items))
    check_steps(items := steps(2, 3), run(backend, *items, request_size=3))
    check_steps(items := steps(1), run(backend, *items))
    assert runs == ([(2, 8, 3)] * 3 if batch == 8 else [(2, 5, 3), (2, 6, 3), (2, 1, 3)])


def test_without_the_axis_the_items_run_alone_and_the_log_names_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = make(recurrent(tmp_path / "m.onnx"), max=8)
    assert backend.max == 1
    check_steps(items := steps(4), run(backend, *items))
    assert "size n is on the first axis of x and on axis 1 of h" in caplog.text
    assert "batch_axis = { h = 1 }" in caplog.text


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"h": 3}, r"batch_axis: gives axis 3 for h, which has 3 axes"),
        (
            {"state": 1},
            r"batch_axis: names 'state', and the model has no such .* one of x, h, y, next",
        ),
    ],
)
def test_a_batch_axis_that_does_not_fit(tmp_path: Path, axes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(recurrent(tmp_path / "m.onnx"), batch_axis=axes)


def test_a_wrong_batch_axis_is_found_by_the_probe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(
        tmp_path / "m.onnx",
        [("ReduceMean", ["x"], ["mean"], {"axes": [1]}), ("Sub", ["x", "mean"], ["y"])],
        [("x", FLOAT, [None, None])],
        [("y", FLOAT, [None, None])],
    )
    assert make(path, max="8x3").max == 8
    backend = make(path, max="3x8", batch_axis={"x": 1, "y": 1})
    assert backend.max == 1 and "changes with the other rows" in caplog.text
    data = floats([[1, 2, 3], [4, 4, 4]])
    assert run(backend, data)[0].tolist() == [[-1, 0, 1], [0, 0, 0]]


def test_shapes_in_max_have_the_batch_where_the_model_has_it(tmp_path: Path) -> None:
    path = recurrent(tmp_path / "m.onnx")
    keys = {"batch_axis": {"h": 1, "next": 1}, "input_reorder": "1,0"}
    backend = make(path, max="2x6x3,6x3", **keys)
    assert backend.max == 6 and backend.signature.batch_axes == (1, 0)
    params = OnnxParams.model_validate({"model": "m", "max": "2x6x3,6x3", **keys})
    assert OnnxTensor.declared_range(params, ()) == (1, UNBOUNDED)
    with pytest.raises(ValueError, match="keep one of them"):
        OnnxParams.model_validate({"model": "m", "batched": False, "batch_axis": "h=1"})
    for wrong in ({"h": -1}, {"h": True}, "h", "h=a"):
        with pytest.raises(ValueError, match="batch_axis"):
            OnnxParams.model_validate({"model": "m", "batch_axis": wrong})
