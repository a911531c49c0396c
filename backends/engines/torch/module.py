"""What TorchScript, exported programs and nn.Modules have in common: options, named inputs, precision, mean and std, shared weights."""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...base import Context
from ...errors import BackendError, InvalidInput
from ...item import Item
from ...params import why_no_file
from ..postprocess import PostProcessing
from .engine import Member, TorchEngine
from .options import processors, release, set_process_wide, use_threads
from .params import TorchParams
from .reading import indices
from .sharing import shared

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

INDEXED = re.compile(r".*__(\d+)")
"""Triton's names for inputs by their order: `INPUT__0`."""

Model = TypeVar("Model")


class TorchModule(TorchEngine):
    """Runs what is a callable of tensors in Python.

    `data` may also be a dict: by the names of the model's arguments, or any names that end with the argument's index, as `INPUT__0`.
    With `mean` or `std` the first input may be uint8: it travels so, and becomes (x - mean) / std on the device.
    """

    params: Any

    reads_encrypted = False
    """Whether its files may be `.encrypted`."""

    inputs: tuple[str, ...] | None = None
    """The names of the model's inputs, in its order; None: the model does not tell. Set by `open`."""
    required = 1
    """How many of them an item must have, from the first on."""
    has_doubles = False
    """Whether the model computes in float64; set by `open`."""

    def load(self, params: TorchParams, context: Context, device: torch.device) -> Any:
        self._post = PostProcessing(params, context.node, type(self).__name__)
        if params.precision is not None and params.precision not in PRECISIONS:
            raise self._wrong(
                "precision",
                f"{params.precision} is TensorRT's: expected one of {', '.join(PRECISIONS)}",
            )
        if params.precision_fp32:
            raise self._wrong(
                "precision::fp32", f"{type(self).__name__} has one precision for all layers"
            )
        self._precision = PRECISIONS.get(params.precision or "")
        self._reorder = indices(params.input_reorder)
        if params.input_reorder and self._reorder is None:
            raise self._wrong(
                "input_reorder", f"{params.input_reorder!r} must hold each index once, as in '1,0'"
            )
        self._mean = self._statistic("mean", params.mean)
        self._std = self._statistic("std", params.std)
        self._options: list[tuple[str, str]] = []
        try:
            self._set_options(context)
            model = self.open(params, context, device)
            self._check_reorder(params)
        except BaseException:
            for option, who in self._options:
                release(option, who)
            raise
        return model

    def _check_reorder(self, params: TorchParams) -> None:
        if (
            self._reorder is not None
            and self.inputs is not None
            and len(self._reorder) != len(self.inputs)
        ):
            names = ", ".join(self.inputs)
            raise self._wrong(
                "input_reorder",
                f"{params.input_reorder!r} names {len(self._reorder)} inputs, the model has {names}",
            )

    def open(self, params: Any, context: Context, device: torch.device) -> Any:
        """The model on the device; sets `inputs` and whatever else it tells."""
        raise NotImplementedError

    def set_process_wide(self, *options: str) -> None:
        """Those of the options that the node gives; they are taken back where the model then fails to load."""
        who = f"node {self.context.node!r} of pipeline {self.context.pipeline!r}"
        for option in options:
            value = getattr(self.params, option.lower())
            if value is not None:
                set_process_wide(option, value, who, self.context.node)
                self._options.append((option, who))

    def _set_options(self, context: Context) -> None:
        self.set_process_wide("DISABLE_CUDNN", "INTER_OP_THREAD_COUNT")
        # On a GPU all that is left for the host is to copy. Threads for that spin while they wait for more, and what decodes images
        # needs the processors (8 of 16 were lost to it).
        threads = 1 if self._half.on_gpu else max(1, processors() // context.instances)
        use_threads(self.params.intra_op_thread_count or threads)

    def file(self, name: str) -> Path:
        """The file that a parameter names. Raises BackendError where there is none, or one that only others read."""
        path = self.context.resolve(name)
        if not path.is_file():
            raise BackendError(f"{self.who}: the model {path} {why_no_file(path)}")
        if path.suffix == ".encrypted" and not self.reads_encrypted:
            raise BackendError(
                f"{self.who}: the model {path} is encrypted, and {type(self).__name__} reads plain files"
            )
        return path

    @property
    def who(self) -> str:
        return f"node {self.context.node!r}: {type(self).__name__}"

    def shared(self, key: Hashable, load: Callable[[], Model]) -> Model:
        """The model of that key on this device: the instances' one, or this instance's own."""

        def load_and_wait() -> Model:
            model = load()
            self._half.synchronize()  # other instances have other streams
            return model

        if not self.params.enable_weight_sharing:
            return load_and_wait()
        found: Model = shared(
            (type(self).__name__, str(self._half.device), self.params.precision, key), load_and_wait
        )
        return found

    # items

    def in_order(self, data: Any) -> tuple[tuple[str, ...], Sequence[Any]]:
        if isinstance(data, dict):
            return (), self._by_name(data)
        values = list(data) if isinstance(data, list | tuple) else [data]
        if self.inputs is not None and not self.required <= len(values) <= len(self.inputs):
            raise InvalidInput(
                f"{type(self).__name__}: the model has {self._listed()}, and data holds {len(values)}"
            )
        if self._reorder is not None and len(values) == len(self._reorder):
            values = [values[self._reorder.index(position)] for position in range(len(values))]
        return (), values

    def _by_name(self, data: dict[Any, Any]) -> list[Any]:
        found: dict[int, Any] = {}
        for name, value in data.items():
            position = self._position(name)
            if position is None or position in found:
                what = "unknown" if position is None else "given twice"
                raise InvalidInput(
                    f"{type(self).__name__}: input {name!r} is {what}: the model has {self._listed()}"
                )
            found[position] = value
        count = len(found)
        if sorted(found) != list(range(count)) or count < self.required:
            missing = next(position for position in range(count + 1) if position not in found)
            raise InvalidInput(
                f"{type(self).__name__}: {self._name(missing)} is missing: the model has {self._listed()}"
            )
        return [found[position] for position in range(count)]

    def _position(self, name: Any) -> int | None:
        if self.inputs is not None and name in self.inputs:
            return self.inputs.index(name)
        indexed = INDEXED.fullmatch(name) if isinstance(name, str) else None
        position = int(indexed[1]) if indexed is not None else None
        return (
            None
            if position is None or (self.inputs is not None and position >= len(self.inputs))
            else position
        )

    def _name(self, position: int) -> str:
        return f"input {position}" + (
            f" ({self.inputs[position]})" if self.inputs is not None else ""
        )

    def _listed(self) -> str:
        if self.inputs is None:
            return "inputs known by their order alone, as in name__0"
        optional = (
            f", {len(self.inputs) - self.required} of them optional"
            if self.required < len(self.inputs)
            else ""
        )
        return f"{len(self.inputs)} inputs ({', '.join(self.inputs)}{optional})"

    def label(self, position: int) -> str:
        return f"{type(self).__name__}: {self._name(position)}"

    def keeps_apart(self, output: Any, rows: int) -> bool:
        return (isinstance(output, list) or output.ndim > 0) and len(output) == rows

    # running

    def gradients_off(self) -> AbstractContextManager[Any]:
        return torch.inference_mode() if self.params.inference_mode else torch.no_grad()

    def forward(self, batch: list[Item]) -> None:
        super().forward(batch)
        if self.params.enable_cache_cleaning:
            self._half.clean()

    def travels_as(self, index: int, tensor: torch.Tensor) -> torch.dtype:
        return tensor.dtype if self.has_doubles else super().travels_as(index, tensor)

    def _run(self, inputs: Sequence[Any], names: tuple[str, ...] = ()) -> list[Any]:
        ready = [
            each
            if not isinstance(each, torch.Tensor)
            else self._normalised(each)
            if index == 0
            else self._cast(each)
            for index, each in enumerate(inputs)
        ]
        outputs = self.order(self.call(ready, names))
        if self._precision is not None:
            outputs = [
                output.float()
                if isinstance(output, torch.Tensor) and output.is_floating_point()
                else output
                for output in outputs
            ]
        return self._post.apply(outputs)

    def _share_out(self, members: list[Member], outputs: list[Any]) -> None:
        super()._share_out(members, outputs)
        for member in members:
            self._post.answer(member.item)

    def call(self, inputs: list[Any], names: tuple[str, ...]) -> Any:
        return self.model(*inputs)

    def _normalised(self, tensor: torch.Tensor) -> torch.Tensor:
        """(x - mean) / std on the device, computed in float32 (16 bits lose digits)."""
        if self._mean is None and self._std is None:
            return self._cast(tensor)
        value = tensor.to(torch.float32)
        if self._mean is not None:
            value = value - _along_channels(self._mean, tensor)
        if self._std is not None:
            value = value / _along_channels(self._std, tensor)
        return self._cast(value)

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return (
            tensor.to(self._precision)
            if self._precision is not None and tensor.is_floating_point()
            else tensor
        )

    def _statistic(self, key: str, values: tuple[float, ...] | None) -> torch.Tensor | None:
        if values is None:
            return None
        if key == "std" and 0 in values:
            raise self._wrong(key, f"must not contain 0, found {values}")
        return torch.tensor(values, dtype=torch.float32, device=self._half.device)


def _along_channels(values: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The values shaped so that they lie along the channels: the second axis, or the last where only that one has as many."""
    count = len(values)
    if count == 1:
        return values
    if tensor.ndim > 1 and tensor.shape[1] == count:
        return values.view(1, count, *[1] * (tensor.ndim - 2))
    if tensor.ndim > 1 and tensor.shape[-1] == count:
        return values
    raise InvalidInput(
        f"mean and std have {count} values, and no axis of the image {'x'.join(map(str, tensor.shape))} has as many channels"
    )


def identity_of(path: Path, *options: Any) -> Hashable:
    """What makes two loads of a file one: the file as it is now, and how it is loaded."""
    stat = path.stat()
    return (
        str(path.resolve()),
        stat.st_mtime_ns,
        stat.st_size,
        json.dumps(options, sort_keys=True, default=str),
    )


def reason_of(error: BaseException) -> str:
    """The part of torch's message that says why: its first lines, without the stack of C++ behind them."""
    text = str(error).partition("\nException raised from ")[0].strip()
    return " ".join(text.split())[:500] or type(error).__name__


_filtering = threading.Lock()


def silence(name: str) -> None:
    """Ignore the DeprecationWarning of a function of torch.jit: it is news for who writes models, not for who runs them.

    A filter of the process, for this one message. `warnings.catch_warnings` would put back the filters that there were, on whatever
    thread, and undo what other threads have set meanwhile.
    """
    with _filtering:
        warnings.filterwarnings("ignore", f"`{re.escape(name)}` is deprecated", DeprecationWarning)
