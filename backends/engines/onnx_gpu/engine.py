"""OnnxGpuEngine: an ONNX model on a GPU, by ONNX Runtime's CUDA or TensorRT provider.

Batches, streams, buffers and CUDA graphs are those of all torch engines (torch/engine.py). What an
item gives and gets is as with OnnxTensor on the CPU: arrays.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray

from ...base import UNBOUNDED, BatchRange, Context, Params
from ...errors import BackendError, InvalidInput
from ...gpu.device import OUT_OF_MEMORY_TEXTS
from ...item import Item
from ..encryption import is_encrypted
from ..onnx_model import OnnxModel
from ..onnx_params import OnnxParams
from ..onnx_ports import OnnxTensorInfo
from ..onnx_reading import values_of
from ..onnx_session import (
    LOG_SEVERITIES,
    NO_INITIALIZERS,
    config_error,
    external_files,
    load_model,
    open_session,
    read_source,
)
from ..postprocess import PostProcessing
from ..precision import convert
from ..probe_rows import guesses
from ..rows import RowProof
from ..shapes import shape_text, shapes_of_last_profile, with_batch
from ..torch.engine import TorchEngine
from ..torch.module import identity_of
from ..torch.reading import Input, as_tensor, dtype_text, widens
from ..torch.runner import BatchMember, key_of
from .binding import TORCH_DTYPES, BoundSession, OnnxRunError
from .providers import PROVIDERS, provider_options
from .tensorrt import tensorrt_options
from .weights import SharedWeights, shared_weights

logger = logging.getLogger("penstock.onnx")

GRAPH_TOLERANCE = 1e-2
"""How far a graph's output may be from that of a plain run of the same inputs, relative to the
largest value. Both run the same kernels, and differ only where these add in any order.
"""


MAX_FITTING_KINDS = 64
"""Kinds of items, by their shapes and dtypes, that are remembered to fit the model."""


class UnfitError(BackendError):
    """Raised for a model that ONNX Runtime runs, though not on a GPU by this engine."""


class OnnxGpuEngine(TorchEngine):
    """Runs a session of ONNX Runtime on torch's tensors, on the stream of its executor.

    Each instance has a session, with memory of its own for intermediate results; weights are shared
    (weights.py). The runs of a batch size whose shapes are known are captured as a CUDA graph of
    torch's, which needs no call of ONNX Runtime.
    """

    parameters: ClassVar[type[Params] | None] = OnnxParams
    backend_name: ClassVar[str] = "OnnxTensor"
    pads_always: ClassVar[bool] = True  # cuDNN looks for algorithms for each new size: 0.1 s

    onnx: OnnxModel
    """The session's inputs and outputs; `model` is the `BoundSession` that runs it."""
    _weights: SharedWeights | None = None

    def __init__(self, provider: str) -> None:
        """`provider` is a key of PROVIDERS. cpu is for tests: the same steps without a GPU."""
        self.provider = provider

    def choose_device(self, params: OnnxParams, context: Context) -> torch.device:
        return (
            torch.device("cpu")
            if self.provider == "cpu"
            else super().choose_device(params, context)
        )

    # the model

    def load(self, params: OnnxParams, context: Context, device: torch.device) -> BoundSession:
        self._post = PostProcessing(params, context.node, self.backend_name)
        self.scores_only = self._post.classifies
        self._known_shapes = shapes_of_last_profile(params.max)
        graphs = params.cuda_graphs and not params.shrink_mem_arena and self._half.on_gpu
        try:
            with self._half.no_captures():  # ONNX Runtime waits for the whole device
                session = self._open(params, context, device, graphs)
        except BackendError as error:
            if any(sign in str(error) for sign in OUT_OF_MEMORY_TEXTS):
                raise OnnxRunError(str(error)) from error
            raise
        self._fitting: set[Hashable] = set()
        self.onnx = model = OnnxModel(session, params, context, self.backend_name)
        self._refuse_unfit()
        self._post.check([port.shape for port in model.outputs])
        if self._post.active and any(model.output_axes):
            message = f"{params.postprocessor} takes scores of shape NxK, with the batch on axis 0"
            raise config_error(context, "batch_axis", message)
        self._dtypes = [(port.name, torch_dtype(port)) for port in model.inputs]
        self.input_axes = tuple(model.input_axes)
        self.output_axes = tuple(model.output_axes)
        self._normalised = session.get_inputs()[0].name if params.mean or params.std else ""
        if model.batch_size is not None and params.batched is not False:
            self.model_range = BatchRange(model.batch_size, model.batch_size)
        return BoundSession(
            session,
            device,
            model.output_names,
            LOG_SEVERITIES[params.log_level or "error"],
            shrinks=params.shrink_mem_arena,
        )

    def _open(
        self, params: OnnxParams, context: Context, device: torch.device, graphs: bool
    ) -> Any:
        """Open the session. Raises BackendError and ConfigError."""
        import onnxruntime

        path = context.resolve_input(params.model)

        def edit(model: Any) -> Any:
            file = None if is_encrypted(path) else path
            return convert(model, params.precision, params.precision_fp32, file)

        edits = edit if params.precision not in (None, "fp32") else None
        if self.provider == "tensorrt":
            edits = None  # TensorRT chooses the precision of each layer itself
        source = read_source(path, params, context, edits)
        initializers = NO_INITIALIZERS
        if context.instances > 1 and self.provider != "tensorrt":
            given = params.model_dump(
                include={"mean", "std", "data_format", "precision", "precision_fp32"}
            )
            files = external_files(load_model(source), path.parent)
            key = (identity_of(path, given), *map(identity_of, files))
            self._weights = shared_weights(key, source, path.parent, device)
            initializers = self._weights.values
        # What its providers log goes by a level of the whole process.
        onnxruntime.set_default_logger_severity(LOG_SEVERITIES[params.log_level or "error"])
        stream = self._half.stream.cuda_stream if self._half.stream is not None else 0
        special = tensorrt_options(params, context, path) if self.provider == "tensorrt" else None

        def open_with(graphs: bool) -> Any:
            return open_session(
                path,
                params,
                context,
                params.threads or 1,
                provider_options(
                    self.provider, params, device, stream, graphs=graphs, tensorrt=special
                ),
                source=source,
                quiet=graphs,
                initializers=initializers,
            )

        try:
            session = open_with(graphs)
        except BackendError as error:
            if not graphs or "graph capture" not in str(error):
                raise
            self.can_capture = False
            if context.instance == 0:
                logger.info(
                    "%s: %s runs without CUDA graphs: it has operators that ONNX Runtime runs on "
                    "the CPU, or control flow",
                    self._half.owner,
                    params.model,
                )
            session = open_with(False)
        if (wanted := PROVIDERS[self.provider]) not in session.get_providers():
            raise BackendError(
                f"OnnxTensor: ONNX Runtime can't start {wanted} on {device}: it has written the "
                "reason to standard error"
            )
        return session

    def _refuse_unfit(self) -> None:
        """Raise UnfitError for a model that torch's tensors can't carry."""
        for kind, ports in (("input", self.onnx.data_order), ("output", self.onnx.outputs)):
            for port in ports:
                if port.type.removeprefix("tensor(").removesuffix(")") not in TORCH_DTYPES:
                    raise UnfitError(
                        f"OnnxTensor: {kind} {port.name} of {self.params.model} is {port.type}, "
                        'which has no place on a GPU: provider = "cpu" runs the model'
                    )
        if not self.onnx.inputs or any(not port.shape for port in self.onnx.inputs):
            raise UnfitError(
                f"OnnxTensor: {self.params.model} has no inputs, or one without axes, and so no "
                'rows: provider = "cpu" runs it'
            )

    def init(self, params: OnnxParams, context: Context) -> None:
        super().init(params, context)
        model = self.onnx
        self.signature = model.signature(self.batched, gives_outputs=not self._post.active)

    def close(self) -> None:
        vars(self).pop("onnx", None)  # it holds the session too
        super().close()
        self._weights = None

    # rows

    def _decide(self, params: OnnxParams, context: Context) -> None:
        reason = self.onnx.why_no_batch()
        if reason and params.batched and not self.onnx.may_be_batched:
            raise config_error(context, "batched", f"is true, and {reason}")
        if not reason or params.batched:
            super()._decide(params, context)
            return
        self.proof = RowProof(
            self._half.owner, params, context, logger, count=self.probe_rows, on_gpu=True
        )
        self.proof.refuse(reason)
        self._follow_proof()

    def _follow_proof(self) -> None:
        if not self.batched:
            self.model_range = BatchRange(1, UNBOUNDED)  # each item runs as it is
        super()._follow_proof()

    def example_shapes(self) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        shapes = [*self.onnx.inner_shapes(self._known_shapes)]
        if any(None in shape for shape in shapes):
            return []
        return [
            (
                tuple(size or 0 for size in shape),
                torch.uint8 if port.name == self._normalised else torch_dtype(port),
            )
            for port, shape in zip(self.onnx.inputs, shapes, strict=True)
        ]

    def _probe_randomly(self, shapes: Sequence[tuple[Sequence[int], torch.dtype]]) -> str | None:
        """Probe with random rows of the model's shapes, with guesses for open sizes."""
        dtypes = [torch_dtype(port) for port in self.onnx.inputs]
        for inner in guesses([*self.onnx.inner_shapes(self._known_shapes)]):
            reason = super()._probe_randomly(list(zip(inner, dtypes, strict=True)))
            if reason is not None:
                return reason
        return None

    def keeps_apart(self, output: Any, rows: int) -> bool:
        """Return whether an output has exactly one row for each row of the batch."""
        return bool(output.ndim > 0 and len(output) == rows)

    # items

    def _read(self, item: Item) -> BatchMember:
        """Read the item's inputs. One that has optional inputs runs alone. Raises InvalidInput."""
        values = values_of(item["data"], self.onnx)
        count = len(self.onnx.inputs)
        member = self.check_inputs(item, (), values[:count])
        optional = [
            (port, value)
            for port, value in zip(self.onnx.optional_inputs, values[count:], strict=False)
            if value is not None
        ]
        if not optional:
            return member
        more: list[Input] = []
        for port, value in optional:
            tensor = as_tensor(value, f"{self.backend_name}: input {port.name}")
            self._check(port, tensor, tuple(tensor.shape))
            more.append(tensor.to(torch_dtype(port)))
        names = (*self._names, *[port.name for port, _ in optional])
        return member._replace(inputs=[*member.inputs, *more], names=names, kind=object())

    def in_order(self, data: Any) -> tuple[tuple[str, ...], Sequence[Any]]:
        return (), values_of(data, self.onnx)[: len(self.onnx.inputs)]

    def check_inputs(
        self, item: Item, names: tuple[str, ...], values: Sequence[Any]
    ) -> BatchMember:
        """Check the item's tensors against the model too. Raises InvalidInput."""
        for position, value in enumerate(values):
            if value is None:
                port = self.onnx.inputs[position]
                raise InvalidInput(
                    f"{self.backend_name}: input {port.name} is missing: expected {port}"
                )
        member = super().check_inputs(item, names, values)
        if self.batched and member.kind in self._fitting:
            return member
        inputs: Any = member.inputs
        for port, axis, tensor in zip(self.onnx.inputs, self.onnx.input_axes, inputs, strict=True):
            shape = with_batch(len(tensor), tuple(tensor.shape[1:]), axis)
            self._check(port, tensor, shape, axis if self.batched else None)
        if self.batched:
            if len(self._fitting) >= MAX_FITTING_KINDS:
                self._fitting.clear()
            self._fitting.add(member.kind)
        return member

    def _check(
        self,
        port: OnnxTensorInfo,
        tensor: torch.Tensor,
        shape: Sequence[int],
        batch_axis: int | None = None,
    ) -> None:
        """Check a tensor, of this shape in the model. `batch_axis` may have any size."""
        fits = len(shape) == len(port.shape) and all(
            fixed in (None, size) or axis == batch_axis
            for axis, (fixed, size) in enumerate(zip(port.shape, shape, strict=True))
        )
        if not fits or not widens(tensor.dtype, torch_dtype(port)):
            raise InvalidInput(
                f"{self.backend_name}: input {port.name}: expected {port}, found "
                f"{dtype_text(tensor.dtype)} of shape {shape_text(shape)}"
            )

    def by_name(self, values: dict[str, NDArray[Any]]) -> Any:
        if set(self._names) != set(values):
            raise InvalidInput(
                f"the model's inputs are {', '.join(self._names)}, found "
                f"{', '.join(values) or 'none'}"
            )
        return [values[name] for name in self._names]

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(port.name for port in self.onnx.inputs)

    def label(self, position: int) -> str:
        return f"{self.backend_name}: input {self.input_name(position)}"

    def input_name(self, position: int) -> str:
        return self.onnx.inputs[position].name

    def output_name(self, position: int) -> str:
        return self.onnx.outputs[position].name

    # runs

    def travels_as(self, index: int, tensor: torch.Tensor) -> torch.dtype:
        """Return the dtype in which an input goes to the device.

        Images that the model normalises go as uint8, a quarter of the bytes.
        """
        if index >= len(self._dtypes):
            return tensor.dtype  # an optional input
        name, dtype = self._dtypes[index]
        return torch.uint8 if tensor.dtype == torch.uint8 and name == self._normalised else dtype

    def _run_group(self, members: list[BatchMember]) -> None:
        if members[0].names:  # optional inputs have no rows that could be padded
            self._run_alone(members[0])
        else:
            super()._run_group(members)

    def _run(self, inputs: Sequence[Any], names: tuple[str, ...] = ()) -> list[Any]:
        feed = [
            (name, tensor.to(dtype).contiguous())
            for (name, dtype), tensor in zip(self._dtypes, inputs, strict=False)
        ]
        first = len(feed)  # of the optional inputs, which have the model's dtype
        feed += zip(names[first:], [tensor.contiguous() for tensor in inputs[first:]], strict=True)
        return self._post.apply(self.model(feed, quiet=self.probing))

    def _share_out(self, members: list[BatchMember], outputs: list[Any]) -> None:
        super()._share_out(members, outputs)
        for member in members:
            result = member.item["result"]
            member.item["result"] = (
                [part.numpy() for part in result] if isinstance(result, list) else result.numpy()
            )
            self._post.answer(member.item)

    # CUDA graphs

    def warm_up_with(self, row: BatchMember) -> None:
        self.probing = True  # the model may refuse zeros
        try:
            super().warm_up_with(row)
            self._check_graphs(row)
        finally:
            self.probing = False

    def _check_graphs(self, row: BatchMember) -> None:
        """Forget the graphs if one gives other outputs than a plain run of the same inputs.

        A graph repeats what ONNX Runtime queued once: were a kernel's parameter read from memory
        that has another use by now, only the values would tell.
        """
        if not self._half.on_gpu:
            return
        generator = torch.Generator().manual_seed(0)
        inputs: Any = row.inputs
        values: list[Input] = [_random_like(tensor, generator) for tensor in inputs]
        for rows in self._buckets:
            with self._half.errors("checking a CUDA graph"), self.gradients_off():
                given = self._assemble([values] * rows, rows)
                replayed = self._half.replay(key_of(given))
                if replayed is None:
                    continue
                graph = [output.clone() for output in replayed]
                plain = self._run_rows(given)
                differs = not all(map(_alike, graph, plain))
            if differs:
                logger.warning(
                    "%s: runs without CUDA graphs: the graph of batches of %d gives other outputs "
                    "than a plain run",
                    self._half.owner,
                    rows,
                )
                self._half.drop_graphs()
                return


def torch_dtype(port: OnnxTensorInfo) -> torch.dtype:
    return TORCH_DTYPES[port.type.removeprefix("tensor(").removesuffix(")")]


def _random_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return random values of a tensor's shape and dtype; zeros for indices and truth values."""
    if tensor.is_floating_point():
        return torch.rand(tensor.shape, generator=generator).to(tensor.dtype)
    if tensor.dtype == torch.uint8:
        return torch.randint(0, 256, tensor.shape, generator=generator, dtype=torch.uint8)
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return True  # an index may differ where two scores are nearly the same
    one, other = one.double(), other.double()
    finite = one.isfinite() & other.isfinite()
    if not torch.equal(one[~finite].isnan(), other[~finite].isnan()) or not finite.any():
        return bool((one.isnan() == other.isnan()).all())
    scale = float(other[finite].abs().max())
    return float((one - other)[finite].abs().max()) <= GRAPH_TOLERANCE * scale + 1e-6
