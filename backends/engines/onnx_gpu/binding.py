"""Run a session of ONNX Runtime on torch's tensors, by I/O binding: no copy in, none out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.dlpack import from_dlpack

from ..onnx_ports import NUMPY_DTYPES
from ..onnx_session import FATAL

TORCH_DTYPES = {
    "float16": torch.float16,
    "float": torch.float32,
    "double": torch.float64,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "uint32": torch.uint32,
    "uint64": torch.uint64,
    "bool": torch.bool,
}
"""ONNX Runtime's names of element types -> torch's dtypes."""

_NUMPY_BY_TORCH = {dtype: NUMPY_DTYPES[name] for name, dtype in TORCH_DTYPES.items()}

NO_GRAPH_ID = "-1"
"""The run option `gpu_graph_id` of a run that ONNX Runtime neither captures nor replays.

Its own captures forbid calls such as cudaMalloc to all threads of the process, so that they would
fail the batches of other models. Ours (`DeviceHalf.capture`) forbid them to their own thread.
"""


class OnnxRunError(RuntimeError):
    """ONNX Runtime could not do something. Its own errors share no base class but Exception."""

    library = "ONNX Runtime"
    """The name that messages give the source of the error."""


class BoundSession:
    """A session, called with tensors on one device; it returns tensors on that device.

    The memory of an output is ONNX Runtime's, and stays as long as the tensor. On a GPU a run is
    only queued: its stream is the one that the session was opened with.
    """

    def __init__(
        self,
        session: Any,
        device: torch.device,
        outputs: Sequence[str],
        severity: int,
        *,
        shrinks: bool = False,
    ) -> None:
        """`outputs` are the names of those to compute. `severity` is ONNX Runtime's number for
        what it logs. `shrinks`: memory that it keeps and does not use is given back after each run.
        """
        self.session = session
        self._device = device.type
        self._index = device.index or 0
        self._outputs = tuple(outputs)
        names = [node.name for node in session.get_inputs()]
        infos = session.get_input_memory_infos()
        self._on_host = frozenset(
            name
            for name, info in zip(names, infos, strict=True)
            if device.type != "cpu" and info.name == "Cpu"
        )
        """Inputs that the model reads on the CPU, such as the shape of a Reshape."""
        self._options = _run_options(device, shrinks, severity)
        self._quiet = _run_options(device, shrinks, FATAL)

    def __call__(
        self, inputs: Sequence[tuple[str, torch.Tensor]], *, quiet: bool = False
    ) -> list[torch.Tensor]:
        """Run the model on contiguous tensors, by name. They must not change until the stream has
        finished. `quiet`: the model may refuse them. Raises OnnxRunError.
        """
        held: list[torch.Tensor] = []
        try:
            binding = self.session.io_binding()
            for name, given in inputs:
                on_host = name in self._on_host
                tensor = given.cpu() if on_host else given  # cpu() waits for the stream
                held.append(tensor)
                binding.bind_input(
                    name,
                    "cpu" if on_host else self._device,
                    0 if on_host else self._index,
                    _NUMPY_BY_TORCH[tensor.dtype],
                    tuple(tensor.shape),
                    tensor.data_ptr(),
                )
            for name in self._outputs:
                binding.bind_output(name, self._device, self._index)
            self.session.run_with_iobinding(binding, self._quiet if quiet else self._options)
            return [from_dlpack(value) for value in binding.get_outputs()]
        except Exception as error:
            raise OnnxRunError(f"ONNX Runtime could not run a batch: {error}") from error


def _run_options(device: torch.device, shrinks: bool, severity: int) -> Any:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = severity
    if device.type == "cpu":
        return options
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    options.add_run_config_entry("gpu_graph_id", NO_GRAPH_ID)
    if shrinks:
        arena = f"gpu:{device.index or 0}"
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena)
    return options
