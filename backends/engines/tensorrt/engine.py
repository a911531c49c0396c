"""TensorrtEngine: runs TensorRT on the base that the torch engines have too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray

from ...base import Context, Params, Signature, TensorPort
from ...errors import InvalidInput
from ...item import Item
from ..postprocess import CLASSIFIERS, classified
from ..shapes import batch_first, reorder, shape_text, with_batch
from ..sharing import shared
from ..tensor_names import places
from ..torch.engine import TorchEngine
from ..torch.reading import dtype_text, widens
from ..torch.runner import BatchMember
from .ahead import recipe_of
from .execution import EngineTensor, Execution, ProfileInGraphError
from .library import log
from .loaded import LoadedEngine, deserialise
from .params import TensorrtParams
from .plan import find_plan
from .progress import Progress


class TensorrtEngine(TorchEngine):
    """Runs an engine of TensorRT: the engine of TensorrtTensor."""

    backend_name: ClassVar[str] = "TensorrtTensor"

    parameters: ClassVar[type[Params] | None] = TensorrtParams

    model: Execution

    def load(self, params: TensorrtParams, context: Context, device: torch.device) -> Execution:
        """Load the engine, building it if need be.

        Instances of one recipe on one device share it, and each has execution contexts of its own.
        Raises BackendError and ConfigError.
        """
        library, recipe = recipe_of(params, context, device)

        def load_engine() -> LoadedEngine:
            # The runtime comes first: a build takes minutes, in vain on a machine that can't run
            # it.
            runtime = library.runtime(where, on_gpu=self._half.on_gpu)
            plan = find_plan(recipe, library, context, progress).plan
            return deserialise(library, runtime, plan, where, params.weight_budget_percentage)

        where = f"{recipe}: {recipe.model}"

        def report(fraction: float, phase: str) -> None:
            loading.text = progress.text

        loading, progress = context.loading, Progress(report)
        loading.on_stop(progress.cancel)
        try:
            key = (
                str(device),
                params.weight_budget_percentage,
                json.dumps(recipe.key(library), sort_keys=True),
            )
            engine = shared(key, load_engine)
        finally:
            loading.on_stop(None)
            loading.text = ""
        stream = self._half.stream.cuda_stream if self._half.stream is not None else 0
        execution = Execution(
            library,
            engine,
            where,
            device,
            stream,
            batch_axis=params.batch_axis,
            context=context,
        )
        self.model_range = execution.range
        self._inputs = tuple(
            reorder(execution.inputs, params.input_reorder, "input_reorder", context)
        )
        if params.inputs:
            names = [port.name for port in self._inputs]
            found = places(params.inputs, names, "inputs", context, names)
            self._inputs = tuple(self._inputs[place] for place in found)
        if params.outputs:
            names = [port.name for port in execution.outputs]
            self._order = places(params.outputs, names, "outputs", context)
        self.reshape.check([port.name for port in (*self._inputs, *execution.outputs)])
        self.input_axes = tuple(port.axis for port in self._inputs)
        axes = [port.axis for port in execution.outputs]
        self.output_axes = tuple(axes[index] for index in self._order or range(len(axes)))
        self.scores_only = params.postprocessor in CLASSIFIERS
        return execution

    def init(self, params: TensorrtParams, context: Context) -> None:
        super().init(params, context)
        as_they_are = not params.output_reorder and params.postprocessor in {None, ""}
        outputs = [
            self.model.outputs[place] for place in self._order or range(len(self.model.outputs))
        ]
        self.signature = Signature.of(
            self._signed(self._inputs, given=True),
            self._signed(outputs, given=False) if as_they_are else None,
            self.batched,
            self.input_axes,
        )

    def _signed(self, ports: Sequence[EngineTensor], *, given: bool) -> tuple[TensorPort, ...]:
        return tuple(
            TensorPort(
                port.name,
                dtype_text(port.dtype),
                self.reshape.outside(
                    port.name,
                    with_batch(-1, batch_first(port.shape, port.axis)[1:], port.axis)
                    if self.batched
                    else port.shape,
                    given=given,
                ),
            )
            for port in ports
        )

    def input_name(self, position: int) -> str:
        return self._inputs[position].name

    def output_name(self, position: int) -> str:
        index = self._order[position] if self._order is not None else position
        return self.model.outputs[index].name

    def first_axis(self) -> int:
        return self.model.inputs[0].axis

    def _run_rows(self, inputs: Sequence[Any], names: tuple[str, ...] = ()) -> list[Any]:
        return self._run(inputs, names)  # the execution moves the batch

    def probe_rows(self) -> int:
        inner = {
            port.name: shape
            for port, (shape, _) in zip(self._inputs, self.example_shapes(), strict=True)
        }
        return min(super().probe_rows(), self.model.largest(inner))

    def example_shapes(self) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        largest = max(
            self.model.profiles, key=lambda profile: [shapes.opt for shapes in profile.values()]
        )
        return [
            (
                batch_first(largest[port.name].opt, port.axis)[1:],
                torch.uint8 if self._is_normalised(port) else port.dtype,
            )
            for port in self._inputs
        ]

    def close(self) -> None:
        execution = self.__dict__.get("model")
        if execution is not None:
            execution.close()
        super().close()

    def check_inputs(
        self, item: Item, names: tuple[str, ...], values: Sequence[Any]
    ) -> BatchMember:
        """Check the item's tensors against the engine too. Raises InvalidInput."""
        member = super().check_inputs(item, names, values)
        if len(member.inputs) != len(self._inputs):
            listed = ", ".join(port.name for port in self._inputs)
            raise InvalidInput(
                f"TensorrtTensor: the model has {len(self._inputs)} inputs ({listed}), but data "
                f"holds {len(member.inputs)}"
            )
        for position, tensor in enumerate(member.inputs):
            self._check(position, tensor)
        return member

    def _check(self, position: int, tensor: Any) -> None:
        port = self._inputs[position]
        ranges = [profile[port.name] for profile in self.model.profiles]
        if not widens(tensor.dtype, port.dtype) or not any(
            shapes.holds_inner(tensor.shape[1:], port.axis) for shapes in ranges
        ):
            allowed = " or ".join(dict.fromkeys(map(str, ranges)))
            whole = with_batch(len(tensor), tensor.shape[1:], port.axis)
            given = f"{dtype_text(tensor.dtype)} of shape {shape_text(whole)}"
            raise InvalidInput(
                f"{self.label(position)}: expected {port} ({allowed}), found {given}"
            )

    def in_order(self, data: Any) -> tuple[tuple[str, ...], Sequence[Any]]:
        return super().in_order(self.by_name(data) if isinstance(data, dict) else data)

    def by_name(self, values: dict[str, NDArray[Any]]) -> Any:
        names = [port.name for port in self._inputs]
        if set(names) != set(values):
            raise InvalidInput(
                f"TensorrtTensor: the model's inputs are {', '.join(names)}, found "
                f"{', '.join(map(str, values)) or 'none'}"
            )
        return [values[name] for name in names]

    def label(self, position: int) -> str:
        name = self._inputs[position].name if position < len(self._inputs) else position
        return f"{self.backend_name}: input {name}"

    def travels_as(self, index: int, tensor: torch.Tensor) -> torch.dtype:
        """Return the dtype in which an input goes to the device.

        Images that the network normalises go as uint8, a quarter of the bytes.
        """
        port = self._inputs[index]
        return (
            tensor.dtype
            if tensor.dtype == torch.uint8 and self._is_normalised(port)
            else port.dtype
        )

    def _is_normalised(self, port: EngineTensor) -> bool:
        """Return whether `mean` and `std` were built into the network before this input."""
        return (
            self.params.mean is not None or self.params.std is not None
        ) and port.name == self.model.inputs[0].name

    def _run_group(self, members: list[BatchMember]) -> None:
        """Run the members in as many runs as needed.

        Profiles for larger images may take fewer items at once.
        """
        inputs: list[Any] = members[0].inputs
        largest = self.model.largest(
            {port.name: tensor.shape[1:] for port, tensor in zip(self._inputs, inputs, strict=True)}
        )
        start = 0
        while start < len(members):
            stop, rows = start + 1, members[start].rows
            while stop < len(members) and rows + members[stop].rows <= largest:
                rows += members[stop].rows
                stop += 1
            super()._run_group(members[start:stop])
            start = stop

    def _run(self, inputs: Sequence[Any], names: tuple[str, ...] = ()) -> list[Any]:
        by_name = {
            port.name: tensor.to(port.dtype)
            for port, tensor in zip(self._inputs, inputs, strict=True)
        }
        ordered = [by_name[port.name] for port in self.model.inputs]
        count = len(ordered[0])
        rows = self.model.rows(count, [tensor.shape[1:] for tensor in ordered])
        if rows != count and not self.batched:
            raise InvalidInput(
                f"TensorrtTensor: the first axis is {count}, and the smallest profile has {rows}: "
                "the model does not keep items apart, so they are not padded"
            )
        padded = [_padded(tensor, rows) for tensor in ordered]
        try:
            outputs = self.model(*padded)
        except ProfileInGraphError as error:
            self._give_up_graphs(str(error))
            outputs = self.model(*padded)
        return self.order(
            [
                output[:count] if output.ndim and len(output) == rows else output
                for output in outputs
            ]
        )

    def _give_up_graphs(self, reason: str) -> None:
        log.warning(
            "%s: runs without CUDA graphs from now on: %s",
            self._half.owner,
            reason,
            extra={"pipeline": self.context.pipeline, "node": self.context.node},
        )
        self.can_capture = False
        self._half.drop_graphs()
        self.model.free_captured()

    def keeps_apart(self, output: Any, rows: int) -> bool:
        """Return whether an output has exactly one row for each row of the batch.

        With more rows, their number depends on the data, and they all belong to the one item.
        """
        return bool(output.ndim > 0 and len(output) == rows)

    def _share_out(self, members: list[BatchMember], outputs: list[Any]) -> None:
        super()._share_out(members, outputs)
        if self.params.postprocessor in CLASSIFIERS:
            for member in members:
                scores, classes = (output.tolist() for output in member.item["result"])
                member.item.update(
                    classified(
                        scores,
                        classes,
                        "score" if self.params.postprocessor == "SoftmaxMax" else "class",
                    )
                )


def _padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the tensor with zeros appended up to `rows` rows."""
    if len(tensor) == rows:
        return tensor
    padded = tensor.new_zeros((rows, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    return padded
