"""OnnxTensor: ONNX Runtime, on the CPU here and on a GPU by onnx_gpu/."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .. import timeline
from ..base import UNBOUNDED, Backend, BatchRange, Context, Params
from ..errors import BackendError, InvalidInput
from ..item import Item
from ..params import EngineParams
from .cores import Place, place
from .onnx_gpu.providers import Provider, choose_provider
from .onnx_model import OnnxModel, moved
from .onnx_params import OnnxParams
from .onnx_ports import OnnxTensorInfo, shape_of
from .onnx_reading import BatchMember, read
from .onnx_session import config_error
from .onnx_shared import session_of
from .postprocess import PostProcessing
from .probe_rows import Row, first_rows, guesses, row_at
from .processors import threads_per_instance
from .rows import PROBE_ROWS, RowProof
from .shapes import (
    UNBOUNDED_WARM_UP_BATCH,
    refuse_without_elements,
    shape_key,
    shape_text,
    shapes_of_last_profile,
    with_batch,
)
from .warming import refusals_as_warnings, run_given_samples, warm_up_values, wrong_values

logger = logging.getLogger("penstock.onnx")

MAX_BUFFERED_SHAPES = 4
"""Batch buffers kept for an input whose height and width vary. Each may take megabytes."""


class OnnxTensor(Backend):
    """Runs an ONNX model with ONNX Runtime, on the CPU or on a GPU (`provider`, `device`).

    `data`: an array with the batch dimension first, N×..., for an item of N rows, or a list of them
    in the order of the model's inputs, or a dict of them by name. `result`: the output, N×..., or a
    list of them. `batch_axis` names the tensors that have their batch on another axis. With `mean`
    or `std` the first input may be uint8 or of a floating type, and (x - mean) / std is computed
    inside the model.

    A dtype that widens without loss is converted, and float64 to float32. Any other dtype or shape
    is an `InvalidInput`: raised for an item that is alone in its batch, and otherwise set as the
    item's `error`.

    One batch may hold items of several shapes; each shape is a run of its own. A model with a fixed
    batch size runs padded with zeros.

    Items share a run only if the model is proven to keep rows apart (rows.py). Otherwise each item
    runs alone: `data` is what the model takes, with any first axis.

    Initializers that are also inputs of the graph are optional inputs, after the others. An item
    leaves them out, or has None in their place. One that gives any runs alone, since they have no
    batch axis.
    """

    parameters: ClassVar[type[Params] | None] = OnnxParams
    blocks = "it runs a model"
    takes = gives = "array"

    engine: ClassVar[str] = "OnnxTensor"
    """The name of the backend, for messages."""

    model: OnnxModel
    proof: RowProof

    _place: Place | None = None
    """The processors of its thread; None on a GPU, and with OpenVINO, which places them itself."""

    @property
    def inputs(self) -> tuple[OnnxTensorInfo, ...]:
        """The model's inputs, without the optional ones."""
        return self.model.inputs

    @property
    def batched(self) -> bool:
        """True if items may share a run."""
        return self.proof.batched

    @property
    def undecided(self) -> bool:
        return not self.proof.proven

    @classmethod
    def keys_set(cls, params: EngineParams) -> tuple[str, ...]:
        return params.keys_set

    @classmethod
    def declared_range(cls, params: OnnxParams, children: tuple[BatchRange, ...]) -> BatchRange:
        return params.declared_range()

    @staticmethod
    def shape_key(item: Item) -> Hashable:  # type: ignore[override]
        return shape_key(item)

    def init(self, params: OnnxParams, context: Context) -> None:
        """Open the model.

        Raises BackendError, which names the path, for a missing or unreadable file; ConfigError for
        a key that does not fit the model.
        """
        if self._init_on_gpu(params, context):
            return
        self._post = PostProcessing(params, context.node, self.engine)
        session = self.open_session(params, context)
        self.model = model = OnnxModel(session, params, context, self.engine)
        self._post.check([port.shape for port in model.outputs])
        if self._post.active and any(model.output_axes):
            message = f"{params.postprocessor} takes scores of shape NxK, with the batch on axis 0"
            raise config_error(context, "batch_axis", message)
        self._buffers: dict[tuple[str, tuple[int, ...]], NDArray[Any]] = {}
        self._where = f"{context.node}: {self.engine}"
        self._params, self._context = params, context
        self._options = self._usual_options = self.run_options(params)
        self._known_shapes = shapes_of_last_profile(params.max)
        self._decide(params, context)
        self.signature = model.signature(self.batched, gives_outputs=not self._post.active)
        declared = params.declared_range(model.first_axis)
        self.max = self._bound(params, context) if self.batched else 1
        self._largest = self.max if self.max != UNBOUNDED else UNBOUNDED_WARM_UP_BATCH
        self.min = self._fixed or min(max(declared.min, context.min or 1), self.max)
        self.min = min(self.min, self.max)

    def _init_on_gpu(self, params: OnnxParams, context: Context) -> bool:
        """Let a child run the model, if a provider for GPUs is chosen. Return whether it is.

        Raises BackendError and ConfigError.
        """
        choice = self.choose_provider(params, context)
        extra = {"pipeline": context.pipeline, "node": context.node}
        where = f"node {context.node!r}: {self.engine} runs {params.model}"
        if choice.name != "cpu":
            from .onnx_gpu.engine import OnnxGpuEngine, UnfitError

            engine = OnnxGpuEngine(choice.name)
            try:
                engine.init(params, context)
            except UnfitError as error:
                engine.close()
                if params.provider or context.device:
                    raise
                choice = choice._replace(name="cpu", why=str(error), missed=True)
            else:
                self.children = (engine,)
                self.model, self.proof = engine.onnx, engine.proof
                self.min, self.max, self.device = engine.min, engine.max, engine.device
                self.signature = engine.signature
        if context.instance == 0 and choice.missed:
            logger.warning(
                "%s on the CPU, although there is a GPU: %s", where, choice.why, extra=extra
            )
        elif context.instance == 0 and choice.name != "cpu":
            logger.info(
                "%s with provider %s on %s: %s",
                where,
                choice.name,
                self.device,
                choice.why,
                extra=extra,
            )
        return choice.name != "cpu"

    def choose_provider(self, params: OnnxParams, context: Context) -> Provider:
        """Choose ONNX Runtime's provider. Raises BackendError and ConfigError."""
        return choose_provider(params, context)

    def open_session(self, params: OnnxParams, context: Context) -> Any:
        """Open the model in the engine's library. Raises BackendError and ConfigError."""
        if params.precision not in (None, "fp32") and context.instance == 0:
            extra = {"pipeline": context.pipeline, "node": context.node}
            logger.warning(
                "node %r: OnnxTensor runs %s in the model's own precision: the key precision is "
                "for GPUs",
                context.node,
                params.model,
                extra=extra,
            )
        path = context.resolve_input(params.model)
        threads = params.threads or threads_per_instance(context.instances)
        self._place = place(context, threads, pins=params.pin_cores, engine=self.engine)
        return session_of(path, params, context, threads, self._place.node)

    def run_options(self, params: OnnxParams) -> Any:
        """Return the options of each run; None for the library's own."""
        if not params.shrink_mem_arena:
            return None
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return options

    def quiet_options(self) -> Any:
        """Return the options of a run whose values the model may refuse."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = 4
        return options

    def _bound(self, params: OnnxParams, context: Context) -> int:
        bounds = (params.declared_range(self.model.first_axis).max, context.max, self._fixed)
        return min(bound for bound in (*bounds, UNBOUNDED) if bound is not None)

    def _decide(self, params: OnnxParams, context: Context) -> None:
        """Decide whether items share runs: by the model's shapes, and then by a probe. Where the
        model can't be probed with random rows, the first items that would share a run decide.
        Raises ConfigError for `batched = true` with inputs that have no common first axis.
        """
        model = self.model
        self.proof = RowProof(
            self._where,
            params,
            context,
            logger,
            count=lambda: self._fixed or min(PROBE_ROWS, self._bound(params, context)),
            names=model.output_names,
        )
        self._fixed = None
        reason = model.why_no_batch()
        if reason and params.batched and not model.may_be_batched:
            raise config_error(context, "batched", f"is true, and {reason}")
        if reason and not params.batched:
            self.proof.refuse(reason)
        if not self.batched:
            return
        self._fixed = model.batch_size
        most = self._bound(params, context)
        if params.batched or (most == 1 and self._fixed in (None, 1)):
            return  # it is decided, or no run has more than one row
        if context.opens_only:
            return
        values = warm_up_values(params, context)
        self.proof.at_load([lambda: self._probe_with(values), self._probe_randomly])
        self._follow_proof()

    def _follow_proof(self) -> None:
        if not self.batched:
            self._fixed = None

    def _probe(self, rows: Sequence[Row]) -> list[NDArray[Any]]:
        return self.model.probe(rows, self._fixed or len(rows), self.quiet_options())

    def _probe_with(self, values: dict[str, NDArray[Any]] | None) -> str | None:
        """Probe with the rows of the values that the file gives for warm-up."""
        if values is None:
            return None
        rows = first_rows(self._by_name(values), self.model.input_axes)
        return self.proof.of_rows([self._read_values(row) for row in rows], self._probe)

    def _probe_randomly(self) -> str | None:
        """Probe with random rows of the model's shapes, with guesses for open sizes."""
        dtypes = [port.dtype or np.dtype(np.float32) for port in self.model.inputs]
        for inner in guesses([*self.model.inner_shapes(self._known_shapes)]):
            ports = list(zip(inner, dtypes, strict=True))
            reason = self.proof.of_random_rows(ports, self._probe)
            if reason is not None:
                return reason
        return None

    def warm_up(self) -> None:
        """Run zeros, or the values that the file gives, at batch sizes 1, 2, 4 ... `max`.

        ONNX Runtime then has its memory before the first request. Nothing is run if the model
        leaves a size open and `max` does not give it. What the model refuses is a warning.
        """
        if self.children:
            super().warm_up()
            return
        if self._params.warm_up is False or run_given_samples(
            self, self._params, self._context, most=self.max
        ):
            return
        with refusals_as_warnings(self._where, self._params, self._context, logger):
            arrays = self.example()
            if arrays is None:
                return
            self._options = self.quiet_options()
            try:
                size = 1
                while size < self._largest * 2:
                    count = min(size, self._largest)
                    self.forward([{"data": self._named(arrays)} for _ in range(count)])
                    size *= 2
            finally:
                self._options = self._usual_options

    def example(self) -> list[NDArray[Any]] | None:
        """Return values of an item, in the order of `data`: those that the file gives for warm-up,
        else zeros. None if the shapes are not known. Raises ConfigError for a wrong file.
        """
        values = warm_up_values(self._params, self._context)
        return self._zeros() if values is None else self._given(values)

    def _zeros(self) -> list[NDArray[Any]] | None:
        arrays = []
        model = self.model
        inner_shapes = model.inner_shapes(self._known_shapes)
        for port, axis, inner in zip(model.inputs, model.input_axes, inner_shapes, strict=True):
            rows = 1 if self.batched else port.shape[axis] if port.shape else None
            shape = with_batch(rows, inner, axis) if port.shape else ()
            if port.dtype is None or port.dtype == np.object_ or None in shape:
                return None
            whole = tuple(size or 0 for size in shape)
            arrays.append(np.zeros(model.reshape.given(port.name, whole), port.dtype))
        return arrays

    def _given(self, values: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the values in the order of `data`: the first row of each, if items share runs."""
        arrays = self._by_name(values)
        if self.batched:
            arrays = row_at(arrays, self.model.input_axes, 0)
        self._read_values(arrays)
        return arrays

    def _read_values(self, arrays: list[NDArray[Any]]) -> Row:
        """Read values of a file as those of an item. Raises ConfigError."""
        try:
            return self._read({"data": self._named(arrays)}).arrays
        except InvalidInput as error:
            raise wrong_values(self._context, str(error)) from error

    def _named(self, arrays: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {port.name: array for port, array in zip(self.inputs, arrays, strict=True)}

    def _by_name(self, values: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the values of a file in the order of `data`. Raises ConfigError."""
        names = [port.name for port in self.inputs]
        if set(names) != set(values):
            raise wrong_values(
                self._context,
                f"the model's inputs are {', '.join(names)}, found {', '.join(values) or 'none'}",
            )
        return [values[name] for name in names]

    def forward(self, batch: list[Item]) -> None:
        if self.children:
            self.children[0].forward(batch)
            return
        groups: dict[Hashable, list[BatchMember]] = {}
        for position, item in enumerate(batch):
            try:
                member = self._read(item)
            except InvalidInput as error:
                if len(batch) == 1:
                    raise
                item["error"] = error
                continue
            shares = self.batched and not member.optional
            key = tuple([array.shape[1:] for array in member.arrays]) if shares else position
            groups.setdefault(key, []).append(member)
        for members in groups.values():
            if not self.proof.proven and (len(members) > 1 or self._fixed):
                self.proof.of_item([array[:1] for array in members[0].arrays], self._probe)
                self._follow_proof()
                if not self.batched:
                    self.forward(batch)
                    return
        for members in groups.values():
            for sharing in [members] if self.proof.proven else [[member] for member in members]:
                try:
                    self._run(sharing)
                except Exception as error:
                    refuse_without_elements(
                        self.engine,
                        (array.shape for member in sharing for array in member.arrays),
                        (member.item for member in sharing),
                        error,
                        alone=len(batch) == 1,
                    )

    def close(self) -> None:
        if self._place is not None:
            self._place.release()
        vars(self).pop("model", None)
        vars(self).pop("_buffers", None)
        super().close()

    def _read(self, item: Item) -> BatchMember:
        return read(item, self.model, self.batched, self.max)

    def _run(self, members: list[BatchMember]) -> None:
        """Run the session once, over items of one shape, and set their results.

        It calls plain `run` and no I/O binding: on the CPU, `run` wraps contiguous arrays without a
        copy, and its outputs are arrays that own their memory. Measured against I/O binding:
        ResNet-18 is the same within noise (1 image 17 ms, 8 images 126 ms), a tiny model takes 4 µs
        instead of 6 µs.
        """
        model = self.model
        counts = [member.arrays[0].shape[0] if self.batched else 1 for member in members]
        total = sum(counts)
        rows = self._fixed or total
        alone = len(members) == 1 and (not self.batched or rows == total)
        if alone:
            axes = model.input_axes if self.batched else [0] * len(model.inputs)
            feed = {
                port.name: moved(array, axis, port.dtype)
                for port, axis, array in zip(model.inputs, axes, members[0].arrays, strict=True)
            }
        else:
            with timeline.span("assembly", rows=rows):
                feed = {
                    port.name: moved(self._assemble(index, members, rows), model.input_axes[index])
                    for index, port in enumerate(model.inputs)
                }
        feed.update(members[0].optional)  # an item that has some is alone
        with timeline.span("run", rows=total):
            outputs = self._post.apply(model.session.run(model.output_names, feed, self._options))
        if alone:
            outputs = model.reshaped(outputs)
            members[0].item["result"] = outputs[0] if len(outputs) == 1 else outputs
            self._post.answer(members[0].item)
            return
        axes = [0] * len(outputs)
        if not self._post.active:
            outputs, axes = model.rows_first(outputs), model.output_axes
        for index, output in enumerate(outputs):
            shape = shape_of(output)
            if shape[:1] != (rows,):
                name = model.outputs[0 if self._post.active else index].name
                raise BackendError(
                    f"{self.engine}: output {name} has shape {shape_text(shape)} for a batch "
                    f"of {rows}: the model does not keep items apart; set batched = false"
                )
        start = 0
        for (item, *_), count in zip(members, counts, strict=True):
            # Copies, because a view would keep the whole batch in memory until the last item is
            # read.
            rows_of_item = [
                part if isinstance(part, list) else moved(part.copy(), axis)
                for part, axis in zip(
                    (output[start : start + count] for output in outputs), axes, strict=True
                )
            ]
            rows_of_item = model.reshaped(rows_of_item)
            item["result"] = rows_of_item[0] if len(rows_of_item) == 1 else rows_of_item
            self._post.answer(item)
            start += count

    def _assemble(self, index: int, members: list[BatchMember], rows: int) -> NDArray[Any]:
        """Write the batch of one input into a kept buffer.

        A fresh buffer of megabytes would cost page faults at every run.
        """
        port, shape = self.inputs[index], members[0].arrays[index].shape[1:]
        buffer = self._buffers.get((port.name, shape))
        if buffer is None or len(buffer) < rows:
            if len(self._buffers) >= MAX_BUFFERED_SHAPES * len(self.inputs):
                self._buffers.clear()
            buffer = self._buffers[port.name, shape] = np.zeros(
                (max(rows, self._largest), *shape), port.dtype
            )
        start = 0
        for member in members:
            array = member.arrays[index]
            stop = start + len(array)
            buffer[start:stop] = array
            start = stop
        buffer[start:rows] = 0 if port.dtype != np.object_ else ""
        return buffer[:rows]
