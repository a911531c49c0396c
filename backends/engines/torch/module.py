"""TorchModule: the base of the engines for TorchScript, exported programs and nn.Modules.

It sets torch's options, finds inputs by name, applies `precision`, `mean` and `std`, and shares
weights among instances.
"""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ...base import Context
from ...errors import BackendError, InvalidInput
from ...item import Item
from ...params import why_no_file
from ...text import message_of
from ..postprocess import PostProcessing
from ..processors import threads_per_instance
from ..shapes import parse_order, shape_text, shapes_of_last_profile
from ..sharing import shared
from .engine import TorchEngine
from .options import release, set_process_wide, use_threads
from .params import TorchParams
from .runner import BatchMember

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

OUTPUT_NAME = re.compile(r"OUTPUT__(\d+)")
"""An output named by its position, in the key `batch_axis`."""

INDEXED_NAME = re.compile(r".*__(\d+)")
"""An input named by its position, as Triton's PyTorch backend does: `INPUT__0`."""

Model = TypeVar("Model")


class TorchModule(TorchEngine):
    """Runs a model that is a Python callable of tensors.

    `data` may also be a dict, by the names of the model's arguments or by names that end with the
    argument's index, such as `INPUT__0`. With `mean` or `std` the first input may be uint8: it is
    copied to the device as uint8, and becomes (x - mean) / std there.
    """

    params: Any

    reads_encrypted = False
    """True if model files may be `.encrypted`."""

    takes_dict = False
    """True if the model's one argument is a dict of tensors; set by `open`."""

    inputs: tuple[str, ...] | None = None
    """The names of the model's inputs, in its order; None if the model does not name them.

    Set by `open`.
    """
    required = 1
    """The number of inputs that an item must have; the others, which come last, are optional."""
    output_count: int | None = None
    """The number of outputs, or None if only a run tells; set by `open`."""
    has_doubles = False
    """True if the model computes in float64; set by `open`."""

    def load(self, params: TorchParams, context: Context, device: torch.device) -> Any:
        self._post = PostProcessing(params, context.node, self.backend_name)
        self.scores_only = self._post.classifies
        if params.precision is not None and params.precision not in PRECISIONS:
            raise self._wrong(
                "precision",
                f"{params.precision} is for TensorRT: expected one of {', '.join(PRECISIONS)}",
            )
        if params.precision_fp32:
            raise self._wrong(
                "precision::fp32", f"{self.backend_name} has one precision for all layers"
            )
        self._precision = PRECISIONS.get(params.precision or "")
        self._reorder = parse_order(params.input_reorder)
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
            self._place_names(params)
            self._set_axes(params)
            self._place_batch()
        except BaseException:
            for option, user in self._options:
                release(option, user)
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
                f"{params.input_reorder!r} names {len(self._reorder)} inputs, but the model has "
                f"{names}",
            )

    def _place_names(self, params: TorchParams) -> None:
        """Find the places of the names that the keys `inputs` and `outputs` give.

        As in Triton's PyTorch backend, inputs are the model's arguments by name, or end with an
        index (`INPUT__0`); otherwise they are in the model's order. So are outputs, which have no
        names, but for a model that returns a dict.
        """
        self._places: dict[str, int] = {}
        if params.inputs and not self.takes_dict:
            known = self.inputs or ()
            found = (
                [known.index(name) for name in params.inputs]
                if all(name in known for name in params.inputs)
                else _indices(params.inputs)
            )
            most = len(known) if self.inputs is not None else len(found)
            if sorted(found) != [*range(len(found))] or not self.required <= len(found) <= most:
                message = f"{', '.join(params.inputs)} do not fit the model, which has "
                raise self._wrong("inputs", message + self._listed())
            self._places = dict(zip(params.inputs, found, strict=True))
        if params.outputs:
            self._order = _indices(params.outputs)
            if self.output_count is not None and max(self._order) >= self.output_count:
                message = f"{', '.join(params.outputs)} are wanted, but the model has "
                raise self._wrong("outputs", f"{message}{self.output_count}")
        self._check_dtypes(params)
        if params.reshape:
            inputs = params.inputs or self.inputs
            count = self.output_count or len(params.outputs)
            outputs = [self.output_name(position) for position in range(count)]
            if inputs is not None and count:
                self.reshape.check([*inputs, *outputs])

    def _check_dtypes(self, params: TorchParams) -> None:
        known = params.inputs or self.inputs
        for name in params.dtypes:
            if known is not None and name not in known:
                message = f"names {name!r}, and the inputs are {', '.join(known)}"
                raise self._wrong("dtypes", message)
        self.dtypes = {name: getattr(torch, dtype) for name, dtype in params.dtypes.items()}

    def input_name(self, position: int) -> str:
        for name, place in self._places.items():
            if place == position:
                return name
        return self.inputs[position] if self.inputs is not None else f"INPUT__{position}"

    def _set_axes(self, params: TorchParams) -> None:
        """Set the batch axis of the inputs and outputs that `batch_axis` names."""
        inputs: dict[int, int] = {}
        outputs: dict[int, int] = {}
        for name, axis in params.batch_axis.items():
            match = OUTPUT_NAME.fullmatch(name)
            is_output = match is not None and name not in (self.inputs or ())
            position = int(match[1]) if match and is_output else self._position(name)
            beyond = (
                is_output
                and position is not None
                and self.output_count is not None
                and position >= self.output_count
            )
            if position is None or beyond or self.takes_dict:
                raise self._wrong("batch_axis", f"names {name!r}: {self._names_for_axes()}")
            (outputs if is_output else inputs)[position] = axis
        self.input_axes = _listed_axes(inputs)
        self.output_axes = _listed_axes(outputs)
        for position, axis in inputs.items():
            if position in self.texts and axis:
                raise self._wrong("batch_axis", f"gives axis {axis} for {self._name(position)}")
        if any(self.output_axes) and self._post.active:
            message = f"{params.postprocessor} takes scores of shape NxK, with the batch on axis 0"
            raise self._wrong("batch_axis", message)
        if self._order is not None:
            self.output_axes = tuple(self.output_axis(index) for index in self._order)
        for position, shape in enumerate(shapes_of_last_profile(params.max)):
            if len(shape) > 1 and (axis := self.input_axis(position)) >= len(shape):
                raise self._wrong(
                    "batch_axis",
                    f"gives axis {axis} for {self._name(position)}, which has {len(shape)} axes",
                )

    def _place_batch(self) -> None:
        """Take the batch from the axes that are set now. Raises BackendError and ConfigError."""

    def _names_for_axes(self) -> str:
        if self.takes_dict:
            return "a model that takes a dict has the batch of all its tensors on axis 0"
        inputs = ", ".join(self.inputs) if self.inputs is not None else "INPUT__0, INPUT__1, ..."
        if self.output_count is None:
            return f"expected an input ({inputs}) or an output (OUTPUT__0, OUTPUT__1, ...)"
        outputs = ", ".join(f"OUTPUT__{index}" for index in range(self.output_count))
        return f"expected an input ({inputs}) or an output ({outputs})"

    def open(self, params: Any, context: Context, device: torch.device) -> Any:
        """Load the model onto the device, and set `inputs` and the other attributes that it gives.

        Raises BackendError and ConfigError.
        """
        raise NotImplementedError

    def set_process_wide(self, *options: str) -> None:
        """Set the options that the node gives, for the whole process.

        `load` takes them back if the model then fails to load.
        """
        user = f"node {self.context.node!r} of pipeline {self.context.pipeline!r}"
        for option in options:
            value = getattr(self.params, option.lower())
            if value is not None:
                set_process_wide(option, value, user, self.context.node)
                self._options.append((option, user))

    def _set_options(self, context: Context) -> None:
        self.set_process_wide("DISABLE_CUDNN", "INTER_OP_THREAD_COUNT")
        # On a GPU the host only copies. More threads would spin while they wait for work, and take
        # processors from the decoding of images (measured: 8 of 16 were lost).
        threads = 1 if self._half.on_gpu else threads_per_instance(context.instances)
        use_threads(self.params.intra_op_thread_count or threads)

    def file(self, name: str) -> Path:
        """Return the path of the file that a parameter names.

        Raises BackendError if it does not exist, or is encrypted and this engine reads plain files.
        """
        path = self.context.resolve_input(name)
        if not path.is_file():
            raise BackendError(f"{self.prefix}: the model {path} {why_no_file(path)}")
        if path.suffix == ".encrypted" and not self.reads_encrypted:
            raise BackendError(
                f"{self.prefix}: the model {path} is encrypted, but {self.backend_name} reads "
                "only plain files"
            )
        return path

    @property
    def prefix(self) -> str:
        """The beginning of messages: the node and the backend."""
        return f"node {self.context.node!r}: {self.backend_name}"

    def shared(self, key: Hashable, load: Callable[[], Model]) -> Model:
        """Return the model of a key.

        It is loaded once for all instances on this device, or for each instance if weights aren't
        shared.
        """

        def load_and_wait() -> Model:
            model = load()
            self._half.synchronize()  # other instances have other streams
            return model

        if not self.params.enable_weight_sharing:
            return load_and_wait()
        whole_key = (self.backend_name, str(self._half.device), self.params.precision, key)
        model: Model = shared(whole_key, load_and_wait)
        return model

    # items

    @cached_property
    def _takes_one_input(self) -> bool:
        """True if a lone tensor is all that an item needs to have."""
        return self.required <= 1 and not self._places and self.inputs != ()

    def in_order(self, data: Any) -> tuple[tuple[str, ...], Sequence[Any]]:
        if self._takes_one_input and isinstance(data, np.ndarray | torch.Tensor):
            return (), (data,)
        if isinstance(data, dict):
            given = {name: value for name, value in data.items() if value is not None}
            return (), self._by_name(given)
        values = list(data) if isinstance(data, list | tuple) else [data]
        if self._places:
            if len(values) > len(self._places):
                raise InvalidInput(
                    f"{self.backend_name}: the inputs are {', '.join(self._places)}, but data "
                    f"holds {len(values)}"
                )
            given = dict(zip(self._places, values, strict=False))
            return self.in_order(given)
        while len(values) > self.required and values[-1] is None:
            values.pop()  # an optional input that is left out
        if self.inputs is not None and not self.required <= len(values) <= len(self.inputs):
            raise InvalidInput(
                f"{self.backend_name}: the model has {self._listed()}, but data holds {len(values)}"
            )
        if self._reorder is not None and len(values) == len(self._reorder):
            values = [values[self._reorder.index(position)] for position in range(len(values))]
        return (), values

    def _by_name(self, data: dict[Any, Any]) -> list[Any]:
        values: dict[int, Any] = {}
        for name, value in data.items():
            position = self._position(name)
            if position is None or position in values:
                problem = "unknown" if position is None else "given twice"
                raise InvalidInput(
                    f"{self.backend_name}: input {name!r} is {problem}: "
                    f"the model has {self._listed()}"
                )
            values[position] = value
        count = len(values)
        if sorted(values) != list(range(count)) or count < self.required:
            missing = next(position for position in range(count + 1) if position not in values)
            raise InvalidInput(
                f"{self.backend_name}: {self._name(missing)} is missing: the model has "
                f"{self._listed()}"
            )
        return [values[position] for position in range(count)]

    def _position(self, name: Any) -> int | None:
        if name in self._places:
            return self._places[name]
        if self.inputs is not None and name in self.inputs:
            return self.inputs.index(name)
        indexed = INDEXED_NAME.fullmatch(name) if isinstance(name, str) else None
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
            return "inputs without names, known by their order, as in name__0"
        optional = (
            f", {len(self.inputs) - self.required} of them optional"
            if self.required < len(self.inputs)
            else ""
        )
        return f"{len(self.inputs)} inputs ({', '.join(self.inputs)}{optional})"

    def label(self, position: int) -> str:
        return f"{self.backend_name}: {self._name(position)}"

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
        exact = self.has_doubles or bool(self.params.dtypes)
        return tensor.dtype if exact else super().travels_as(index, tensor)

    def _run(self, inputs: Sequence[Any], names: tuple[str, ...] = ()) -> list[Any]:
        outputs = self.order(self.call(self.ready(inputs), names))
        if self._precision is not None:
            outputs = [
                output.float()
                if isinstance(output, torch.Tensor) and output.is_floating_point()
                else output
                for output in outputs
            ]
        return self._post.apply(outputs)

    def ready(self, inputs: Sequence[Any]) -> list[Any]:
        """Return inputs of the device as the model takes them: normalised, in its precision."""
        return [
            value
            if not isinstance(value, torch.Tensor)
            else self._normalised(value)
            if index == 0
            else self._cast(value)
            for index, value in enumerate(inputs)
        ]

    def _share_out(self, members: list[BatchMember], outputs: list[Any]) -> None:
        super()._share_out(members, outputs)
        if self._post.classifies:
            for member in members:
                self._post.answer(member.item)

    def call(self, inputs: list[Any], names: tuple[str, ...]) -> Any:
        """Call the model. `names` are those of the inputs, for a model that takes a dict."""
        return self.model(*inputs)

    def _normalised(self, tensor: torch.Tensor) -> torch.Tensor:
        """Compute (x - mean) / std on the device, in float32, since 16 bits would lose digits."""
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


def _indices(names: Sequence[str]) -> list[int]:
    """Return the indices that all names end with (`INPUT__0`), or their own order."""
    ends = [name.partition("__")[2] for name in names]
    return [int(end) for end in ends] if all(map(str.isdecimal, ends)) else [*range(len(names))]


def _listed_axes(axes: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(axes.get(position, 0) for position in range(max(axes, default=-1) + 1))


def _along_channels(values: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Shape the values so that they lie along the channel axis.

    That is the second axis, or the last if only that one has as many channels. Raises InvalidInput
    if neither has.
    """
    count = len(values)
    if count == 1:
        return values
    if tensor.ndim > 1 and tensor.shape[1] == count:
        return values.view(1, count, *[1] * (tensor.ndim - 2))
    if tensor.ndim > 1 and tensor.shape[-1] == count:
        return values
    raise InvalidInput(
        f"mean and std have {count} values, but neither the second nor the last axis of the image "
        f"{shape_text(tensor.shape)} has as many channels"
    )


def identity_of(path: Path, *options: Any) -> Hashable:
    """Return a key for a file and options.

    Two loads have the same key if they read the same file, unchanged, with the same options.
    """
    stat = path.stat()
    return (
        str(path.resolve()),
        stat.st_mtime_ns,
        stat.st_size,
        json.dumps(options, sort_keys=True, default=str),
    )


def reason_of(error: BaseException) -> str:
    """Return the reason why an operation of torch failed.

    It is the message as one line, without the C++ stack that follows, and at most 500 characters.
    """
    text = message_of(error).partition("\nException raised from ")[0].strip()
    return " ".join(text.split())[:500] or type(error).__name__


_warning_filters_lock = threading.Lock()


def silence(name: str) -> None:
    """Ignore the DeprecationWarning of a function of torch.jit.

    It concerns the authors of models, not those who run them.

    It adds a filter to the process, for this one message. `warnings.catch_warnings` won't do: on
    leaving, it would undo the filters that other threads have set meanwhile.
    """
    with _warning_filters_lock:
        warnings.filterwarnings("ignore", f"`{re.escape(name)}` is deprecated", DeprecationWarning)
