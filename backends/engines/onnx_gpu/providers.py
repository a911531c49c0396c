"""Choose the execution provider of a node, and its options.

torch is imported only where onnxruntime has a provider for GPUs: a process that serves on a CPU
never pays for it.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import io
import re
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ...base import Context
from ...errors import BackendError, ConfigError, Problem
from ..onnx_params import OnnxParams

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""`provider` -> ONNX Runtime's name for it."""

INSTALL = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
"""The command that leaves one onnxruntime. Both packages write the same folder."""

MIB = 2**20


class Provider(NamedTuple):
    """The provider that a node's model runs with, and why."""

    name: str
    """A key of PROVIDERS."""
    why: str
    missed: bool = False
    """There is a GPU, and the provider does not use it."""


def choose_provider(params: OnnxParams, context: Context) -> Provider:
    """Choose the provider of a node on this machine.

    Without the key `provider`, it is cuda where the node's device is a GPU, or where there is a GPU
    that can be used. Raises ConfigError if `provider` and `device` contradict each other, and
    BackendError if the file asks for a GPU that can't be used.
    """
    wanted, on_cpu = params.provider, context.device == "cpu"
    if wanted == "cpu" and context.device not in ("", "cpu"):
        raise _wrong(context, f"is cpu, but the device is {context.device}: keep one of them")
    if wanted in ("cuda", "tensorrt") and on_cpu:
        raise _wrong(context, f"is {wanted}, which needs a GPU, but the device is cpu")
    if wanted == "cpu" or on_cpu:
        return Provider("cpu", "the pipeline's file says so")
    if context.opens_only:
        return Provider("cpu", "the model is only opened")
    name = wanted or "cuda"
    reason, is_missed = why_not(name, context.device)
    if not reason:
        return Provider(name, "the file says so" if wanted else "there is a GPU")
    if wanted or context.device:
        key = f"provider {wanted}" if wanted else f"device {context.device!r}"
        raise BackendError(f"node {context.node!r}: OnnxTensor: {key}: {reason}")
    return Provider("cpu", reason, is_missed)


def why_not(name: str, device: str = "") -> tuple[str, bool]:
    """Return why a provider can't be used, "" if it can, and whether a GPU is there all the same.

    `device` is the node's. Raises BackendError for a device that does not exist.
    """
    import onnxruntime

    if PROVIDERS[name] not in onnxruntime.get_available_providers():
        # Whether there is a GPU is not looked up: it would take an import of torch.
        return why_not_installed(name), bool(device)
    if find_spec("torch") is None:
        return (
            "torch, which OnnxTensor needs on a GPU, is not installed here: pip install "
            "'penstock-serve[onnx-gpu]'"
        ), False
    from ...gpu.device import choose_device

    if choose_device(device).type == "cpu":
        return "torch sees no GPU", False
    return why_not_loaded(name), True


def why_not_installed(name: str) -> str:
    """Return why this onnxruntime lacks a provider, and the command that brings it."""
    import onnxruntime

    version = onnxruntime.__version__
    packages = [
        f"{package} {found}"
        for package in ("onnxruntime", "onnxruntime-gpu")
        if (found := _version_of(package))
    ]
    if len(packages) == 2:
        return (
            f"{' and '.join(packages)} are both installed, and overwrite each other's files: what "
            f"is left lacks {PROVIDERS[name]}. Keep one: {INSTALL}"
        )
    return (
        f"onnxruntime {version} has no {PROVIDERS[name]}: it is a build for CPUs. The build for "
        f"GPUs takes its place: {INSTALL}"
    )


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


_printing = threading.Lock()


@cache
def why_not_loaded(name: str) -> str:
    """Return which libraries of a provider this process can't load, and what brings them; "" if it
    has them all.

    torch has loaded those of CUDA that it needs. Others are in the packages of NVIDIA that it came
    with, or where the system looks for libraries.
    """
    import onnxruntime
    import torch

    report = io.StringIO()
    with _printing, redirect_stdout(report):  # it prints what it can't load
        onnxruntime.preload_dlls()
    needed = re.findall(r"^Failed to load (?:\S*/)?(\S+): ", report.getvalue(), re.MULTILINE)
    needed.append("libcudnn.so.9")  # it is loaded by the first convolution
    if name == "tensorrt":
        if find_spec("tensorrt") is not None:
            import_module("tensorrt")  # it loads its libraries
        needed += ["libnvinfer.so.10", "libnvonnxparser.so.10"]
    packages = Path(torch.__file__).parents[1] / "nvidia"
    missing = [library for library in dict.fromkeys(needed) if not _loads(library, packages)]
    if not missing:
        return ""
    cuda = getattr(onnxruntime, "cuda_version", "") or "unknown"
    major = cuda.partition(".")[0]
    brings = (
        "pip install 'tensorrt>=10'"
        if all(library.startswith("libnv") for library in missing)
        else f"install a torch for CUDA {major}, or pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )
    return (
        f"onnxruntime {onnxruntime.__version__} (for CUDA {cuda}; torch {torch.__version__} is for "
        f"CUDA {torch.version.cuda or 'none'}) can't load {', '.join(missing)}: {brings}"
    )


def _loads(library: str, packages: Path) -> bool:
    """Load a library, if it is where the system looks or in one of NVIDIA's packages."""
    for place in (library, *map(str, packages.glob(f"*/lib/{library}"))):
        try:
            ctypes.CDLL(place)
        except OSError:
            continue
        return True
    return False


def provider_options(
    name: str,
    params: OnnxParams,
    device: Any,
    stream: int,
    *,
    graphs: bool,
    tensorrt: dict[str, Any] | None = None,
) -> Sequence[tuple[str, dict[str, Any]]]:
    """Return ONNX Runtime's providers for a node, the wanted one first, each with its options.

    `device` is torch's. `stream` is the address of the stream that all runs are queued on.
    `graphs`: CUDA graphs will be captured of the runs. `tensorrt` has the options of TensorRT
    alone.
    """
    if name == "cpu":
        return [(PROVIDERS["cpu"], {})]
    shared = {"device_id": device.index, "user_compute_stream": stream}
    cuda: dict[str, Any] = {
        **shared,
        "arena_extend_strategy": {
            "same_as_requested": "kSameAsRequested",
            "next_power_of_two": "kNextPowerOfTwo",
        }[params.arena_extend_strategy],
        "cudnn_conv_algo_search": params.cudnn_conv_algo_search.upper(),
        # fp32 that the file asks for is exact; a model's own fp32 may round to TF32, as in torch
        "use_tf32": int(params.precision != "fp32"),
        # Our captures, like ONNX Runtime's, need runs that free no host memory by a callback on
        # the stream. This option makes them so; `NO_GRAPH_ID` turns its own captures off.
        "enable_cuda_graph": int(graphs),
    }
    if params.arena_limit is not None:
        cuda["gpu_mem_limit"] = params.arena_limit * MIB
    chosen = [(PROVIDERS["cuda"], cuda), (PROVIDERS["cpu"], {})]
    if name == "tensorrt":
        chosen.insert(0, (PROVIDERS["tensorrt"], {**shared, **(tensorrt or {})}))
    return chosen


def _wrong(context: Context, message: str) -> ConfigError:
    return ConfigError([Problem(message, node=context.node, key="provider")])
