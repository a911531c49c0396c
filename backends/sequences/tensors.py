"""Gives a model its controls and states as inputs, and takes its states from its outputs."""

from __future__ import annotations

import re
from collections.abc import Sequence as Listed
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base import Backend, Context, Signature, TensorPort
from ..errors import BackendError, ConfigError, InvalidInput, Problem
from ..item import Item
from ..memory import Reservation, budget
from ..suggestions import did_you_mean
from .definition import Control, SequenceConfig, State, why_no_id
from .sequence import Sequence

Array = NDArray[Any]

NUMPY_MAGIC = b"\x93NUMPY"
"""How a file of `numpy.save` begins."""

POSITION = re.compile(r"__([0-9]{1,4})\Z")
"""The end of a name such as `INPUT__0`: its position, for models whose names are not known."""


class KeptStates:
    """The states of one sequence, in the order of the table.

    `memory` counts their bytes until nothing refers to them any more.
    """

    __slots__ = ("arrays", "memory")

    def __init__(self, arrays: list[Any], memory: Reservation) -> None:
        self.arrays = arrays
        self.memory = memory


class HiddenInput(NamedTuple):
    """An input that clients do not send. `shape` is that for one row."""

    position: int
    dtype: str
    shape: tuple[int, ...]


class SequenceTensors(Backend):
    """Wraps the engine of a node whose model takes controls, or keeps its states in tensors.

    An item has the arrays that its client sent in `data`, in the model's order, and the `Sequence`
    in `sequence`. What the model keeps is in the sequence's `state`, and `result` is what the model
    gives besides; all of its outputs if all are states.

    With `strategy = "direct"` and a control `ready`, each sequence has the row `slot` of the batch,
    and rows without an item are zeros.
    """

    def __init__(self, engine: Backend, config: SequenceConfig, context: Context) -> None:
        """Raises `ConfigError` if the model does not have the tensors of the table."""
        self.children = (engine,)
        self.min, self.max, self.device = engine.min, engine.max, engine.device
        self._engine = engine
        ports = _Ports(engine.signature or Signature(None, None, False), context)
        self._controls = [_ControlInput(one, ports.control(one)) for one in config.controls]
        states = [(one, ports.state(one)) for one in config.state]
        self._initial = [ports.initial(*pair) for pair in states]
        self._inputs = [
            *(control.given for control in self._controls),
            *(given for _, given in states),
        ]
        self._outputs = [ports.output(one) for one in config.state]
        self._pads = config.strategy == "direct" and config.control("ready") is not None
        names = [*(one.input for one in config.controls), *(one.input for one in config.state)]
        self._hidden = {given.position for given in self._inputs}
        self._clients = ports.others(self._hidden)
        self.signature = ports.signature_without(
            dict(zip(names, self._inputs, strict=True)), set(self._outputs)
        )

    def forward(self, batch: list[Item]) -> None:
        given = [item["data"] for item in batch]
        taken: list[Item] = []
        try:
            for item, data in zip(batch, given, strict=True):
                try:
                    item["data"] = self._joined(item["sequence"], data)
                except InvalidInput as error:
                    if len(batch) == 1:
                        raise
                    item["error"] = error
                else:
                    taken.append(item)
            if taken:
                self._engine.forward(self._with_absent(taken) if self._pads else list(taken))
        finally:
            for item, data in zip(batch, given, strict=True):
                item["data"] = data
        for item in taken:
            if "error" not in item and "result" in item:
                item["result"] = self._keep(item["sequence"], item["result"])

    def _joined(self, sequence: Sequence | None, data: Any) -> Any:
        """Return the model's inputs for an item. `sequence`: None for a row without one."""
        arrays = self._sent(data)
        states = self._initial
        if sequence is not None and isinstance(sequence.state, KeptStates):
            states = sequence.state.arrays
        values = [control.value(sequence) for control in self._controls]
        hidden = zip(self._inputs, (*values, *states), strict=True)
        # In order, so that each comes to its place among those that are there already.
        for given, array in sorted(hidden, key=lambda pair: pair[0].position):
            arrays.insert(given.position, array)
        return arrays[0] if len(arrays) == 1 else arrays

    def _sent(self, data: Any) -> list[Any]:
        """Return the arrays that a client sent, in the model's order. Raises `InvalidInput`."""
        names = self._clients
        if isinstance(data, dict) and names is not None:
            missing = [name for name in names if name not in data]
            if missing:
                raise InvalidInput(f"data has no {missing[0]!r}: expected {', '.join(names)}")
            return [data[name] for name in names]
        arrays = list(data) if isinstance(data, (list, tuple)) else [data]
        if names is not None and len(arrays) != len(names):
            raise InvalidInput(
                f"data has {len(arrays)} arrays: expected {len(names)}, {', '.join(names)}"
            )
        return arrays

    def _keep(self, sequence: Sequence, result: Any) -> Any:
        """Keep the states in what the model gives, and return the rest."""
        outputs = list(result) if isinstance(result, (list, tuple)) else [result]
        if max(self._outputs, default=0) >= len(outputs):
            raise BackendError(
                f"the model gave {len(outputs)} outputs: its states were expected at the positions "
                f"{', '.join(map(str, self._outputs))}"
            )
        if self._outputs:
            arrays = [_owned(outputs[position]) for position in self._outputs]
            before = sequence.state
            memory = before.memory if isinstance(before, KeptStates) else Reservation(budget)
            memory.resize(sum(array.nbytes for array in arrays), "states of sequences")
            # A new object: if the batch fails yet, the sequence gets the one before.
            sequence.state = KeptStates(arrays, memory)
        rest = [output for position, output in enumerate(outputs) if position not in self._outputs]
        if not rest:
            return result
        return rest[0] if len(rest) == 1 else rest

    def _with_absent(self, items: list[Item]) -> list[Item]:
        """Return the rows of a batch, of which each sequence has its own."""
        by_slot = {item["sequence"].slot: item for item in items}
        hidden = self._hidden
        first = items[0]["data"]
        zeros = [
            np.zeros(np.shape(array), getattr(array, "dtype", None))
            for position, array in enumerate(first if isinstance(first, list) else [first])
            if position not in hidden
        ]
        rows = range(max(by_slot) + 1)
        # The same arrays for all of them: an engine copies rows into its batch.
        absent = self._joined(None, zeros) if len(by_slot) < len(rows) else None
        return [by_slot.get(slot) or {"data": absent} for slot in rows]


class _ControlInput:
    """A control, with its values."""

    def __init__(self, control: Control, given: HiddenInput) -> None:
        self.given = given
        self._kind = control.kind
        if control.kind != "id":
            self._false = np.full(given.shape, control.false, given.dtype)
            self._true = np.full(given.shape, control.true, given.dtype)

    def value(self, sequence: Sequence | None) -> Array:
        """Return the value for a step, which nothing may change; for a row without one if
        `sequence` is None.

        Raises `InvalidInput` for an id that the model can't take.
        """
        if self._kind == "id":
            return _id(self.given, 0 if sequence is None else sequence.id)
        if sequence is None:
            return self._false
        is_set = (
            sequence.start
            if self._kind == "start"
            else sequence.end
            if self._kind == "end"
            else True
        )
        return self._true if is_set else self._false


class _Ports:
    """The tensors of a model, to find those of the table among them."""

    def __init__(self, signature: Signature, context: Context) -> None:
        self._signature = signature
        self._context = context

    def control(self, control: Control) -> HiddenInput:
        key = f"sequence.controls.{control.kind}"
        position, port = self._find(control.input, self._signature.inputs, "input", key)
        dtype = control.dtype or (port.dtype if port is not None else "")
        if not dtype:
            dtype = "uint64" if control.kind == "id" else "int32"
        shape = () if port is None else self._inner(port, position)
        return HiddenInput(position, dtype, self._whole([max(1, n) for n in shape], position, port))

    def state(self, state: State) -> HiddenInput:
        key = "sequence.state"
        position, port = self._find(state.input, self._signature.inputs, "input", key)
        dtype = state.dtype or (port.dtype if port is not None else "float32")
        shape = state.shape
        if shape is None:
            if port is None or min(self._inner(port, position), default=1) < 0:
                raise self._error(
                    key,
                    f"the model does not say the shape of {state.input!r}: give it, without the "
                    "batch axis, as in shape = [128]",
                )
            shape = self._inner(port, position)
        return HiddenInput(position, dtype, self._whole(list(shape), position, port))

    def output(self, state: State) -> int:
        """Return the position of a state among the outputs."""
        ports = self._signature.outputs
        return self._find(state.output, ports, "output", "sequence.state")[0]

    def initial(self, state: State, given: HiddenInput) -> Array:
        """Return what a sequence begins with."""
        if state.initial == "zeros":
            return np.zeros(given.shape, given.dtype)
        path = self._context.resolve_input(state.initial)
        try:
            with path.open("rb") as file:
                is_numpys = file.read(len(NUMPY_MAGIC)) == NUMPY_MAGIC
            array = (
                np.load(path, allow_pickle=False) if is_numpys else np.fromfile(path, given.dtype)
            )
            return np.ascontiguousarray(array.reshape(given.shape), given.dtype)
        except (OSError, ValueError) as error:
            raise self._error(
                "sequence.state",
                f"{path} can't be read as the state {state.input!r} of shape "
                f"{list(given.shape)}: {error}",
            ) from error

    def others(self, hidden: set[int]) -> list[str] | None:
        """Return the names of the other inputs; None if they are not known."""
        ports = self._signature.inputs
        if ports is None:
            return None
        return [
            port.name
            for position, port in enumerate(ports)
            if position not in hidden and not port.optional
        ]

    def signature_without(self, inputs: dict[str, HiddenInput], outputs: set[int]) -> Signature:
        """Return the signature of what clients send and get."""
        given = self._signature
        hidden = {one.position for one in inputs.values()}
        kept = [
            TensorPort(name, one.dtype, self._without_batch(one.shape, one.position))
            for name, one in inputs.items()
        ]
        count = len(given.batch_axes) if given.inputs is None else len(given.inputs)
        sent = [position for position in range(count) if position not in hidden]
        gets = given.outputs
        if gets is not None and len(outputs) < len(gets):
            gets = tuple(port for position, port in enumerate(gets) if position not in outputs)
        return Signature.of(
            None if given.inputs is None else tuple(given.inputs[position] for position in sent),
            gets,
            given.has_rows,
            tuple(given.batch_axis(position) for position in sent),
        )._replace(kept=tuple(kept))

    def _find(
        self, name: str, ports: Listed[TensorPort] | None, what: str, key: str
    ) -> tuple[int, TensorPort | None]:
        """Return the position of a tensor, and what is known of it."""
        if ports is None:
            match = POSITION.search(name)
            if match is None:
                raise self._error(
                    key,
                    f"the model does not tell the names of its {what}s: end the name with the "
                    f"position, as {what.upper()}__0, found {name!r}",
                )
            return int(match[1]), None
        names = [port.name for port in ports]
        if name not in names:
            raise self._error(
                key,
                f"the model has no {what} {name!r}{did_you_mean(name, names)}: it has "
                f"{', '.join(names)}",
            )
        return names.index(name), ports[names.index(name)]

    def _axis(self, position: int) -> int | None:
        """Return the batch axis of an input; None if it has no batch."""
        return self._signature.batch_axis(position) if self._signature.has_rows else None

    def _inner(self, port: TensorPort, position: int) -> tuple[int, ...]:
        return self._without_batch(port.shape, position)

    def _without_batch(self, shape: tuple[int, ...], position: int) -> tuple[int, ...]:
        axis = self._axis(position)
        return shape if axis is None else (*shape[:axis], *shape[axis + 1 :])

    def _whole(self, inner: list[int], position: int, port: TensorPort | None) -> tuple[int, ...]:
        """Return the shape of one row: with the batch axis, if there is one."""
        axis = self._axis(position)
        if axis is None and port is not None and len(inner) < len(port.shape):
            axis = 0  # a model of one row, of which the file gave the shape without it
        if axis is not None:
            inner.insert(axis, 1)
        return tuple(inner)

    def _error(self, key: str, message: str) -> ConfigError:
        return ConfigError([Problem(message, node=self._context.node, key=key)])


def _id(given: HiddenInput, identity: int | str) -> Array:
    if given.dtype == "string":
        array = np.empty(given.shape, object)
        array[...] = str(identity)
        return array
    if reason := why_no_id(given.dtype, identity):
        raise InvalidInput(reason)
    return np.full(given.shape, identity, given.dtype)


def _owned(array: Any) -> Any:
    """Return an array that keeps no other memory alive, such as the outputs of a whole batch."""
    if isinstance(array, np.ndarray):
        return array if array.base is None else array.copy()
    return array.clone()  # a tensor of torch
