"""ModelTensor: the engine that it chooses for a file and a machine, and the type of its results."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import pipe
from penstock.app.v2.models.model import Models
from penstock.backends.base import Context
from penstock.backends.engines import model
from penstock.backends.engines.encryption import KEY_VARIABLE, encrypt
from penstock.backends.engines.model import ModelParams, ModelTensor, choose_engine
from penstock.backends.engines.onnx_gpu import providers
from penstock.backends.engines.tensorrt.library import Library
from penstock.backends.errors import BackendError, ConfigError
from penstock.backends.expressions.registry import describe, find_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import load
from penstock.pipelines.repository import Repository

GUIDE = Path(__file__).parents[3] / "examples" / "resnet" / "guide.toml"

NO_TORCH = find_spec("torch") is None


def write(path: Path, outputs: Any = 1, kind: Any = TensorProto.FLOAT) -> Path:
    names = [f"y{index}" for index in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], [name]) for name in names],
        "graph",
        [helper.make_tensor_value_info("x", kind, ["n", 3])],
        [helper.make_tensor_value_info(name, kind, ["n", 3]) for name in names],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def make(path: Path | str, context: Any = None, **params: Any) -> Any:
    backend = ModelTensor()
    backend.init(
        ModelParams.model_validate({"model": str(path), **params}),
        Context(node="node", **(context or {})),
    )
    return backend


@pytest.fixture(autouse=True)
def _without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the choice between OpenVINO and ONNX Runtime to test_cpu_choice.py."""
    monkeypatch.setattr(
        model, "find_spec", lambda name: None if name == "openvino" else find_spec(name)
    )


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "find_spec", lambda name: None)


def test_it_is_registered_and_needs_no_extra() -> None:
    assert find_backend("ModelTensor") is ModelTensor
    assert not describe("ModelTensor").extra


@pytest.mark.usefixtures("without_torch")
def test_an_onnx_file_runs_with_onnx_runtime(tmp_path: Path) -> None:
    backend = make(write(tmp_path / "Same.ONNX"), max="4")
    assert backend.max == 4
    backend.warm_up()
    batch = [{"data": np.full((1, 3), value, np.float32)} for value in (1, 2)]
    backend.forward(batch)
    assert [item["result"].tolist() for item in batch] == [[[1, 1, 1]], [[2, 2, 2]]]
    assert all(isinstance(item["result"], np.ndarray) for item in batch)
    backend.close()


@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
@pytest.mark.parametrize("outputs", [1, 2])
def test_results_are_tensors_where_torch_is_installed(tmp_path: Path, outputs: Any) -> None:
    import torch

    backend = make(write(tmp_path / "same.onnx", outputs))
    batch = [{"data": torch.full((1, 3), value)} for value in (1.0, 2.0)] + [{"data": "no array"}]
    backend.forward(batch)
    results = [item["result"] if outputs == 2 else [item["result"]] for item in batch[:2]]
    for value, tensors in zip((1.0, 2.0), results, strict=True):
        assert len(tensors) == outputs
        assert all(
            isinstance(tensor, torch.Tensor) and tensor.tolist() == [[value] * 3]
            for tensor in tensors
        )
    assert "result" not in batch[2] and "expected" in str(batch[2]["error"])
    backend.close()


@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
def test_the_quick_start_of_torchpipe_runs(tmp_path: Path) -> None:
    """Run torchpipe's README with a model of one layer: float images, `mean` and `std`."""
    import torch

    shape: list[str | int | None] = ["n", 3, 224, 224]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "graph", ports[:1], ports[1:]
    )
    path = tmp_path / "resnet18.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    config = {
        "model": str(path),
        "backend": "Sequential[cvtColorTensor,ModelTensor,SyncTensor]",
        "instance_num": 2,
        "batching_timeout": "5",
        "max": 4,
        "mean": "123.675, 116.28, 103.53",
        "std": "58.395, 57.120, 57.375",
        "color": "rgb",
    }
    with pipe(config) as models:
        for dtype in (torch.float32, torch.uint8):
            item: Item = {"data": torch.ones((1, 3, 224, 224), dtype=dtype), "color": "bgr"}
            models(item)
            assert item["result"].shape == (1, 3, 224, 224)
            assert item["result"][0, 0, 0, 0].item() == pytest.approx((1 - 123.675) / 58.395)


@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
def test_text_stays_an_array(tmp_path: Path) -> None:
    backend = make(write(tmp_path / "text.onnx", kind=TensorProto.STRING))
    item: Item = {"data": np.array([["a", "b", "c"]])}
    backend.forward([item])
    assert item["result"].tolist() == [["a", "b", "c"]]


@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
def test_uint64_becomes_a_tensor(tmp_path: Path) -> None:
    backend = make(write(tmp_path / "whole.onnx", kind=TensorProto.UINT64))
    items: list[Item] = [{"data": np.full((1, 3), value, np.uint64)} for value in (2**63, 1)]
    for batch in (items[:1], items):  # alone, and shared
        backend.forward(batch)
        assert [item["result"].tolist() for item in batch] == [[[2**63] * 3], [[1] * 3]][
            : len(batch)
        ]


@pytest.mark.usefixtures("without_torch")
def test_an_encrypted_onnx_file_runs_with_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "11" * 32)
    path = write(tmp_path / "same.onnx")
    (tmp_path / "same.onnx.encrypted").write_bytes(encrypt(path.read_bytes(), bytes([0x11] * 32)))
    item: Item = {"data": np.ones((1, 3), np.float32)}
    make(tmp_path / "same.onnx.encrypted").forward([item])
    assert item["result"].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("m.onnx.encrypted", "m.onnx.encrypted is not encrypted, or not by penstock encrypt"),
        (
            "model",
            r"node 'node': ModelTensor: .* model has no suffix that says what it is: expected "
            r".onnx, .trt, .plan, .engine, .pt, .pt2",
        ),
        ("absent.onnx", "absent.onnx does not exist"),
    ],
)
def test_a_file_that_can_not_run_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, message: str
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "11" * 32)
    (tmp_path / "m.onnx.encrypted").write_bytes(b"")
    with pytest.raises(BackendError, match=message):
        make(tmp_path / name if name.endswith("encrypted") else name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("m.trt", "TensorrtTensor"),
        ("m.plan.encrypted", "TensorrtTensor"),
        ("m.engine", "TensorrtTensor"),
        ("M.PT", "TorchScriptTensor"),
        ("m.pt2", "TorchExportTensor"),
        ("m.xml", "OpenvinoTensor"),
        ("m.tflite", "OpenvinoTensor"),
        ("m.onnx", "OnnxTensor"),
    ],
)
def test_the_suffix_decides_and_onnx_runtime_runs_onnx_without_a_gpu(
    name: Any, expected: Any
) -> None:
    params = ModelParams.model_validate({"model": name})
    assert choose_engine(params, Context(device="cpu")).engine.__name__ == expected


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that this machine has GPUs of these compute capabilities, a TensorRT library, and an
    onnxruntime with a provider for them.
    """
    import torch

    def machine(*capabilities: Any, library: Any = "", cuda: bool = False) -> None:
        def find(wanted: Any) -> Any:
            if not library:
                raise BackendError("TensorRT can't be used")
            return Library(library, "10.0", None, None)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device: capabilities[device.index]
        )
        monkeypatch.setattr(model, "find_library", find)
        if capabilities:
            lacks = "" if cuda else "onnxruntime has no provider for GPUs"
            monkeypatch.setattr(providers, "why_not", lambda name, device: (lacks, True))

    return machine


@pytest.mark.parametrize(
    ("capabilities", "library", "device", "expected", "missed", "why"),
    [
        ([(9, 0)], "tensorrt", "", "TensorrtTensor", False, "tensorrt 10.0 is installed"),
        ([(9, 0)], "tensorrt", "cuda:0", "TensorrtTensor", False, "tensorrt 10.0 is installed"),
        ([(9, 0)], "tensorrt", "cpu", "OnnxTensor", False, "the node's device is cpu"),
        ([(12, 0)], "tensorrt_rtx", "", "TensorrtTensor", False, "tensorrt_rtx 10.0 is installed"),
        ([(7, 5)], "tensorrt_rtx", "", "TensorrtTensor", False, "tensorrt_rtx 10.0 is installed"),
        (
            [(7, 0)],
            "tensorrt_rtx",
            "",
            "OnnxTensor",
            True,
            "tensorrt_rtx needs compute capability 7.5, 8.x or 12.x, and cuda:0 has 7.0",
        ),
        ([(7, 2)], "tensorrt_rtx", "", "OnnxTensor", True, "cuda:0 has 7.2"),
        ([(9, 0)], "tensorrt_rtx", "", "OnnxTensor", True, "cuda:0 has 9.0"),
        (
            [(9, 0), (8, 6)],
            "tensorrt_rtx",
            "cuda:1",
            "TensorrtTensor",
            False,
            "tensorrt_rtx 10.0 is installed",
        ),
        ([(9, 0)], "", "", "OnnxTensor", True, "TensorRT can't be used"),
        ([], "tensorrt", "", "OnnxTensor", False, "torch sees no GPU"),
    ],
)
@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
def test_tensorrt_runs_onnx_on_a_gpu_that_its_library_supports(
    machine: Any, capabilities: Any, library: Any, device: Any, expected: Any, missed: Any, why: Any
) -> None:
    machine(*capabilities, library=library)
    choice = choose_engine(ModelParams.model_validate({"model": "m.onnx"}), Context(device=device))
    assert (choice.engine.__name__, choice.missed) == (expected, missed)
    assert why in choice.why


@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
@pytest.mark.parametrize(
    ("library", "device", "lacks"),
    [("", "", "TensorRT can't be used"), ("tensorrt_rtx", "1", "cuda:1 has 9.0")],
)
def test_onnx_runtime_runs_on_a_gpu_without_a_tensorrt_for_it(
    machine: Any, library: str, device: str, lacks: str
) -> None:
    machine((8, 6), (9, 0), library=library, cuda=True)
    choice = choose_engine(ModelParams.model_validate({"model": "m.onnx"}), Context(device=device))
    assert (choice.engine.__name__, choice.device, choice.missed) == (
        "OnnxTensor",
        f"cuda:{device or 0}",
        False,
    )
    assert f"{lacks}; there is a GPU" in choice.why


@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_a_provider_of_the_file_is_onnx_runtimes(machine: Any, provider: str) -> None:
    machine((9, 0), library="tensorrt", cuda=True)
    params = ModelParams.model_validate({"model": "m.onnx", "provider": provider})
    choice = choose_engine(params, Context())
    assert (choice.engine.__name__, choice.missed) == ("OnnxTensor", False)
    assert choice.why == f"provider = {provider!r}"


@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
def test_a_gpu_that_the_file_names_and_no_engine_can_use_is_an_error(machine: Any) -> None:
    machine((8, 6), (9, 0), library="tensorrt_rtx")
    with pytest.raises(
        BackendError,
        match=r"node 'n': ModelTensor: nothing here runs m.onnx on cuda:1: tensorrt_rtx needs .* "
        r"has 9.0; .*onnxruntime has no provider for GPUs",
    ):
        choose_engine(
            ModelParams.model_validate({"model": "m.onnx"}), Context(node="n", device="1")
        )


@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
@pytest.mark.parametrize("backend", ["ModelTensor", "OnnxTensor"])
@pytest.mark.parametrize("device", ["cuda:0", "cuda", "1"])
def test_a_gpu_that_is_not_there_is_an_error(
    tmp_path: Path, machine: Any, backend: Any, device: Any
) -> None:
    machine()
    cls: Any = find_backend(backend)
    params = cls.parameters(model=str(write(tmp_path / "same.onnx")))
    with pytest.raises(
        (BackendError, ConfigError),
        match=rf"node.*{device!r}.*(torch sees 0 GPUs here|no CUDAExecutionProvider)",
    ):
        cls().init(params, Context(node="node", device=device))


@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
def test_the_log_says_which_engine_was_chosen_and_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, machine: Any
) -> None:
    caplog.set_level("INFO", "penstock")
    path = write(tmp_path / "same.onnx")
    machine()
    make(path).close()
    make(path, {"instance": 1, "instances": 2}).close()
    assert [
        (record.levelname, record.getMessage(), vars(record)["node"]) for record in caplog.records
    ] == [
        (
            "INFO",
            f"node 'node': ModelTensor runs {path} with OnnxTensor on cpu: torch sees no GPU",
            "node",
        )
    ]
    caplog.clear()
    machine((9, 0))
    make(path).close()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().endswith(
        "with OnnxTensor on the CPU, although there is a GPU: TensorRT can't be used; onnxruntime "
        "has no provider for GPUs"
    )


@pytest.mark.parametrize("precision", [None, "fp32", "fp16", "int8"])
def test_precision_is_not_for_the_cpu_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, precision: Any
) -> None:
    make(write(tmp_path / "same.onnx"), {"device": "cpu"}, precision=precision).close()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (precision not in {None, "fp32"}) and all(
        "precision" in text for text in warnings
    )


@pytest.mark.skipif(NO_TORCH, reason="needs torch")
@pytest.mark.parametrize("executor", ["thread", "process"])
@pytest.mark.parametrize("backend", ["OnnxTensor", "ModelTensor"])
@pytest.mark.parametrize("statistics", [{}, {"mean": 1}])
def test_torch_tensors_of_every_kind_are_taken(
    tmp_path: Path, backend: str, executor: str, statistics: dict[str, int]
) -> None:
    import torch

    node = {"backend": backend, "executor": executor, "device": "cpu", "max": 4, **statistics}
    node["model"] = str(write(tmp_path / "m.onnx"))
    # A child imports torch for the first tensor.
    with pipe({"pipeline": {"timeout": 100}, "net": node}) as p:
        for tensor in (
            torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True),
            torch.tensor([[1, 2, 3]], dtype=torch.bfloat16),
            torch.tensor([[1, 2, 3]], dtype=torch.float16),
            torch.tensor([[1.0, 0, 2, 0, 3, 0]])[:, ::2],
            torch.tensor([[-1j, -2j, -3j]]).conj().imag,
        ):
            item: Item = {"data": tensor}
            p(item)
            assert (np.asarray(item["result"]) + statistics.get("mean", 0)).tolist() == [[1, 2, 3]]


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("statistics", [{}, {"mean": (1, 2, 3), "std": 1}])
def test_images_in_nhwc(tmp_path: Path, statistics: Any) -> None:
    path = tmp_path / "image.onnx"
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"])
        for name in ("x", "y")
    ]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "graph", ports[:1], ports[1:]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    backend = make(path, data_format="nhwc", max="4x5x6x3", **statistics)
    backend.warm_up()
    image = np.arange(90, dtype=np.uint8 if statistics else np.float32).reshape(1, 5, 6, 3)
    item: Item = {"data": image}
    backend.forward([item])
    expected = image.astype(np.float32) - np.array(statistics.get("mean", 0), np.float32)
    assert np.array_equal(item["result"], expected.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("m.pt", "data_format: nhwc is for .onnx files"),
        ("m.onnx", "data_format: nhwc needs a first input of 4 axes"),
    ],
)
def test_nhwc_needs_an_onnx_model_of_images(tmp_path: Path, name: Any, message: str) -> None:
    write(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match=message):
        make(tmp_path / name, {"device": "cpu"}, data_format="nhwc")


def test_post_processed_results_are_plain_python_values(tmp_path: Path) -> None:
    backend = make(
        write(tmp_path / "same.onnx"), {"device": "cpu"}, postprocessor="SoftmaxArgMax", top_k=2
    )
    items: list[Item] = [
        {"data": np.array([[1, 3, 2]], np.float32)},
        {"data": np.array([[1, 3, 2], [4, 3, 2]], np.float32), "request_size": 2},
    ]
    backend.forward(items)
    assert [item["result"] for item in items] == [1, [1, 0]]
    assert [item["class"] for item in items] == [1, [1, 0]]


def test_a_directory_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(BackendError, match=r"m\.onnx is a directory"):
        make(tmp_path / "m.onnx", {"device": "cpu"})


@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
def test_an_exported_program_runs(tmp_path: Path) -> None:
    import torch

    linear = torch.nn.Linear(3, 2)
    program = torch.export.export(
        linear, (torch.zeros(2, 3),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, tmp_path / "linear.pt2")
    backend = make(tmp_path / "linear.pt2", max="4", INFERENCE_MODE=False)
    backend.warm_up()
    assert (backend.min, backend.max, backend.device) == (1, 4, "")
    item: Item = {"data": torch.ones(1, 3)}
    backend.forward([item])
    assert torch.allclose(item["result"], linear(torch.ones(1, 3)))
    backend.close()


@pytest.mark.parametrize("name", ["SoftmaxCpu", "SoftmaxArgMax", "SoftmaxMax", "ArgMax"])
def test_the_guides_file_classifies_on_a_machine_without_a_gpu(tmp_path: Path, name: Any) -> None:
    """Run the file of the example as it is, except for the engine's name and the post-processor."""
    weights = np.eye(3, 10, dtype=np.float32)  # makes the brightest channel the class
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["row"]),
            helper.make_node("MatMul", ["row", "weights"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "resnet50.onnx",
    )
    file = tmp_path / "guide.toml"
    file.write_text(
        GUIDE.read_text().replace("TensorrtTensor", "ModelTensor").replace("SoftmaxCpu", name)
    )
    image = np.zeros((50, 60, 3), np.uint8)
    image[:, :, 1] = 200  # green, the second of RGB and of BGR
    image[:, :, 2] = 100
    item: Item = {"data": cv2.imencode(".png", image)[1].tobytes()}
    with pipe(str(file)) as run:
        run(item)
    scores = np.array(
        [-123.675 / 58.395 + 100 / 58.395, (200 - 116.28) / 57.12, -103.53 / 57.375, *[0] * 7]
    )
    chances = np.exp(scores) / np.exp(scores).sum()
    if name == "SoftmaxCpu":
        assert np.allclose(np.asarray(item["result"]), chances[np.newaxis], atol=1e-4)
    else:
        assert item["class"] == 1
        assert item["score"] == pytest.approx(
            (scores if name == "ArgMax" else chances)[1], abs=1e-4
        )
        assert item["result"] == (item["score"] if name == "SoftmaxMax" else 1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"INFERENCE_MODE": "true", "inference_mode": "false"},
            "INFERENCE_MODE and inference_mode are one parameter, and both are given",
        ),
        ({"model::cache": "a", "cache": "b"}, "model::cache and cache are one parameter"),
    ],
)
def test_one_key_by_both_of_its_names(tmp_path: Path, keys: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load({"net": {"backend": "ModelTensor", "model": "m.onnx", **keys}})


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("backend_name", ["ModelTensor", "OnnxTensor"])
async def test_concurrent_requests_to_a_model_that_mixes_rows(
    tmp_path: Path, backend_name: str
) -> None:
    """Each gets its own answer, and the description at /v2 says that there is no batch."""
    graph = helper.make_graph(
        [
            helper.make_node("NonZero", ["x"], ["found"]),
            helper.make_node("Transpose", ["found"], ["places"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("places", TensorProto.INT64, ["k", 2])],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    node = {
        "backend": backend_name,
        "model": str(tmp_path / "m.onnx"),
        "max": 8,
        "device": "cpu",
        "batching_timeout": 50,
    }
    repository = Repository([load({"pipeline": {"name": "p"}, "node": node})])
    await repository.start()
    try:
        pipeline = repository.get("p")
        rows = np.eye(4, dtype=np.float32)[:, None]
        results = await asyncio.gather(*(pipeline({"data": row}) for row in rows))
        assert [result["result"].tolist() for result in results] == [
            [[0, place]] for place in range(4)
        ]
        assert Models(repository).get("p").max_batch_size == 0
    finally:
        await repository.close(0)
