"""Which provider of ONNX Runtime a node gets, its options, and why it gets none."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from penstock.backends.base import Context
from penstock.backends.engines.onnx import OnnxTensor
from penstock.backends.engines.onnx_gpu import providers
from penstock.backends.engines.onnx_params import OnnxParams
from penstock.backends.errors import BackendError, ConfigError

from . import models

HAS_TORCH = find_spec("torch") is not None


def params(**keys: Any) -> OnnxParams:
    return OnnxParams.model_validate({"model": "net.onnx", **keys})


def choose(device: str = "", **keys: Any) -> providers.Provider:
    return providers.choose_provider(params(**keys), Context(node="net", device=device))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let onnxruntime have providers and packages, and torch see a GPU."""

    def installed(*names: str, packages: tuple[str, ...] = ("onnxruntime",), gpu: str = "") -> None:
        found = ["CPUExecutionProvider", *[providers.PROVIDERS[name] for name in names]]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: found)
        versions = dict.fromkeys(packages, "1.31.1")
        monkeypatch.setattr(providers, "_version_of", lambda package: versions.get(package, ""))
        monkeypatch.setattr(providers, "why_not_loaded", lambda name: "")
        if HAS_TORCH:
            from penstock.backends.gpu import device

            chosen = SimpleNamespace(type=gpu or "cpu")
            monkeypatch.setattr(device, "choose_device", lambda wanted: chosen)

    return installed


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
def test_the_default_is_a_gpu_where_there_is_one(installed: Any) -> None:
    installed("cuda", gpu="cuda")
    assert choose().name == choose("cuda:0").name == choose(provider="cuda").name == "cuda"
    assert choose("cpu").name == choose(provider="cpu").name == "cpu"
    installed("cuda")
    assert choose() == ("cpu", "torch sees no GPU", False)
    installed()
    assert choose().name == "cpu"


def test_keys_that_contradict_each_other(tmp_path: Path) -> None:
    path = models.tag(tmp_path)
    with pytest.raises(ConfigError, match=r"provider.*is cuda, which needs a GPU, but the device"):
        models.make(path, provider="cuda", device="cpu")
    with pytest.raises(ConfigError, match=r"provider.*is cpu, but the device is cuda:0"):
        models.make(path, provider="cpu", device="cuda:0")


@pytest.mark.parametrize(
    ("packages", "text"),
    [
        (("onnxruntime",), r"has no CUDAExecutionProvider: it is a build for CPUs"),
        (
            ("onnxruntime", "onnxruntime-gpu"),
            r"onnxruntime 1\.31\.1 and onnxruntime-gpu 1\.31\.1 are both installed, and overwrite",
        ),
    ],
)
def test_packages_without_the_provider(
    tmp_path: Path, installed: Any, packages: tuple[str, ...], text: str
) -> None:
    installed(packages=packages)
    command = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    asked: list[dict[str, Any]] = [{"provider": "cuda"}, {"device": "cuda:0"}]
    for keys in asked:
        with pytest.raises(BackendError, match=f"node 'node': OnnxTensor: .*{text}") as caught:
            models.make(models.tag(tmp_path), **keys)
        assert command in str(caught.value)
    assert models.make(models.tag(tmp_path)).device == ""


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
def test_libraries_that_are_missing(
    tmp_path: Path, installed: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """preload_dlls prints what it can't load; without the key, the model runs on the CPU."""
    why_not_loaded = providers.why_not_loaded
    installed("cuda", "tensorrt", gpu="cuda")

    def preload_dlls() -> None:
        print("Failed to load /lib/libabsent_a.so.13: libabsent_a.so.13: cannot open shared object")
        print("Failed to load libabsent_b.so.10: libabsent_b.so.10: cannot open shared object file")
        print("Please follow https://onnxruntime.ai/docs/install/#cuda-and-cudnn to install CUDA.")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(providers, "why_not_loaded", why_not_loaded.__wrapped__)
    loads = providers._loads
    monkeypatch.setattr(
        providers, "_loads", lambda name, packages: "cudnn" in name or loads(name, packages)
    )
    with pytest.raises(
        BackendError,
        match=r"\(for CUDA 13\.0; torch .*\) can't load libabsent_a\.so\.13, libabsent_b\.so\.10: "
        r"install a torch for CUDA 13, or pip install 'onnxruntime-gpu\[cuda,cudnn\]'",
    ):
        models.make(models.tag(tmp_path), provider="cuda")
    assert models.make(models.tag(tmp_path)).device == ""
    assert "on the CPU, although there is a GPU: onnxruntime" in caplog.text
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    with pytest.raises(BackendError, match=r"can't load libnvinfer.so.10.*pip install 'tensorrt"):
        models.make(models.tag(tmp_path), provider="tensorrt")


def test_options_of_the_cuda_provider() -> None:
    device = SimpleNamespace(index=1)

    def options(**keys: Any) -> dict[str, Any]:
        (name, cuda), (last, _) = providers.provider_options(
            "cuda", params(**keys), device, 4096, graphs=True
        )
        assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
        return cuda

    assert options() == {
        "device_id": 1,
        "user_compute_stream": 4096,
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": 1,
        "enable_cuda_graph": 1,
    }
    assert options(arena_limit=512)["gpu_mem_limit"] == 512 * 2**20
    assert options(precision="fp32")["use_tf32"] == 0
    changed = options(
        arena_extend_strategy="next_power_of_two", cudnn_conv_algo_search="exhaustive"
    )
    assert changed["arena_extend_strategy"] == "kNextPowerOfTwo"
    assert changed["cudnn_conv_algo_search"] == "EXHAUSTIVE"


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
def test_options_of_the_tensorrt_provider(tmp_path: Path) -> None:
    from penstock.backends.engines.onnx_gpu.tensorrt import tensorrt_options

    path, context = models.net(tmp_path), Context(node="net", directory=tmp_path)

    def options(**keys: Any) -> dict[str, Any]:
        keys = {"model::cache": "engines", **keys}
        return tensorrt_options(params(**keys), context, path)

    assert options(precision="fp16", max="2x3x8x8", max_workspace_size=64) == {
        "trt_fp16_enable": 1,
        "trt_engine_cache_enable": 1,
        "trt_engine_cache_path": str(tmp_path / "engines"),
        "trt_max_workspace_size": 64 * 2**20,
        "trt_profile_min_shapes": "x:1x3x8x8,x:1x3x8x8",
        "trt_profile_opt_shapes": "x:1x3x8x8,x:2x3x8x8",
        "trt_profile_max_shapes": "x:1x3x8x8,x:2x3x8x8",
    }
    assert "trt_profile_min_shapes" not in options(max=4)
    device = SimpleNamespace(index=0)
    names = [
        name
        for name, _ in providers.provider_options(
            "tensorrt", params(), device, 1, graphs=False, tensorrt={}
        )
    ]
    assert names == [providers.PROVIDERS[name] for name in ("tensorrt", "cuda", "cpu")]
    with pytest.raises(ConfigError, match=r"model::cache.*keeps engines in a folder"):
        options(**{"model::cache": "net.engine"})
    with pytest.raises(ConfigError, match=r"precision.*fp8 is not one"):
        options(precision="fp8")


def test_a_file_is_checked_without_a_gpu(tmp_path: Path) -> None:
    backend = OnnxTensor()
    backend.init(
        params(model=str(models.tag(tmp_path)), provider="cuda"),
        Context(node="net", opens_only=True),
    )
    assert backend.device == ""
