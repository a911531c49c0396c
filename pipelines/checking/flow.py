"""Follow what travels from node to node: kinds that don't fit, scores and labels, keys unset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.backends.base import Backend, Context, DataKind
from penstock.backends.engines.graph import ends_in_softmax, looks_normalised
from penstock.backends.errors import PenstockError, Problem
from penstock.backends.expressions.composite import CompositeBackend, MapReduceParams
from penstock.backends.expressions.kinds import NAMES, chain_of, fits, gives
from penstock.backends.expressions.spec import Spec
from penstock.backends.item import CONTROL_KEYS
from penstock.backends.operators.labels import Labels
from penstock.backends.params import EngineParams
from penstock.backends.suggestions import did_you_mean

from ..config.definition import NodeConfig
from ..runs.plan import Plan
from .finding import Finding, problems_in
from .opened import Opened

INPUT_KINDS: dict[str, DataKind] = {
    "image": "file",
    "bytes": "file",
    "text": "value",
    "integer": "value",
    "number": "value",
    "boolean": "value",
    "tensor": "array",
}
"""What the kinds of declared inputs become in an item. Of json and others it is not known."""

SOFTMAX = frozenset({"Softmax", "SoftmaxCpu", "SoftmaxArgMax", "SoftmaxMax"})
"""The post-processors of engines that begin with a softmax."""


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of `data` at one place: its kind, and the engine that gave it, if one did."""

    kind: DataKind = ""
    engine: Spec | None = None
    classes: int | None = None
    """The scores that the engine gives."""
    pixels: bool = False
    """They are 0 to 255, as in the image."""


class Flow:
    """Follows the values of one pipeline. `findings` grows on the way."""

    def __init__(self, opened: Opened) -> None:
        self.config = opened.pipeline.config
        self.findings: list[Finding] = []
        self._opened = opened
        self._plan: Plan = opened.pipeline.plan

    def run(self) -> list[Finding]:
        """Follow the values through all nodes. Return what was found."""
        results: dict[str, Value] = {}
        for name, node in self.config.nodes.items():
            spec = self._spec_of(node)
            given = self._given(name, node, results)
            if spec is None or issubclass(spec.cls, CompositeBackend):
                results[name] = Value()
                continue
            if not node.shares:
                self._check_entry(name, spec, given, results)
            results[name] = self._through(name, spec, given)
        self.findings += self._unset_outputs()
        return list(dict.fromkeys(self.findings))

    def _path(self, params: EngineParams) -> Path:
        return Context(directory=self.config.directory).resolve(params.model)

    def _spec_of(self, node: NodeConfig) -> Spec | None:
        groups = self.config.nodes[node.shares or node.name].instance_groups
        return groups[0].spec if groups else None

    def _given(self, name: str, node: NodeConfig, results: dict[str, Value]) -> Value:
        """Return what the node gets as `data`."""
        plan_node = self._plan.nodes[name]
        if not plan_node.before:
            default = self._plan.default
            if default is None or default.root is not plan_node:
                return Value()  # a jump or Python logic leads here
            port = next((port for port in self.config.inputs if port.name == "data"), None)
            if port is None and len(self.config.inputs) == 1:
                port = self.config.inputs[0]
            if port is None or port.stream:  # a stream is an iterator
                return Value()
            return Value(INPUT_KINDS.get(port.kind, ""))
        if node.filter is not None:
            return Value()
        if node.map:
            sources = [
                results[source]
                for source, pairs in node.map
                for key, target in pairs
                if target == "data" and key == "result"
            ]
        else:
            sources = [results[before.name] for before in plan_node.before]
        # Not by a set: parameters that are tables have no hash.
        is_one = bool(sources) and all(source == sources[0] for source in sources)
        return sources[0] if is_one else Value()

    def _check_entry(self, name: str, spec: Spec, given: Value, results: dict[str, Value]) -> None:
        """Compare what comes to a node with what its first backend takes."""
        first = next(chain_of(spec))
        if first.filter is not None or fits(given.kind, first.cls.takes):
            return
        expected, found = NAMES[first.cls.takes], NAMES[given.kind]
        if self._plan.nodes[name].before:
            before = ", ".join(node.name for node in self._plan.nodes[name].before)
            message = f"{first.name} takes {expected}, but {before} gives {found}"
            self._add(message, name, "backend")
        elif self.config.declares_inputs:
            message = f"{first.name} takes {expected}, but the declared input is {found}"
            self._add(message, name, "backend")
        elif not isinstance(first.params, EngineParams):  # an engine's inputs are those of /v2
            message = (
                f"{first.name} takes {expected}, but /predict sends {found}: put DecodeMat before "
                "it, or declare what comes in [pipeline.inputs]"
            )
            self._add(message, name, "backend", warning=True)

    def _through(self, name: str, spec: Spec, value: Value) -> Value:
        """Return what an expression makes of a value, and check its engines and classifiers."""
        for member in chain_of(spec):
            if member.filter is not None:
                value = Value()
                continue
            if isinstance(member.params, EngineParams):
                value = self._engine(name, member, value)
                continue
            if member.cls.takes == "scores":
                self._scores(name, member, value)
            kind = gives(member, value.kind)
            if kind == value.kind and member.cls.passes_data:
                continue
            pixels = kind in {"image", "tensor"} and (value.kind == "file" or value.pixels)
            value = Value(kind, pixels=pixels)
        return value

    def _engine(self, name: str, member: Spec, value: Value) -> Value:
        params: EngineParams = member.params
        path = self._path(params)
        is_bare = self.config.source.endswith(".onnx")  # `from_model` has warned of it
        if (
            not is_bare
            and value.pixels
            and params.mean is None
            and params.std is None
            and looks_normalised(path)
        ):
            message = (
                f"{params.model} gets pixels from 0 to 255, but looks trained on normalised ones: "
                "set mean and std as in its training (for ImageNet: mean = [123.675, 116.28, "
                "103.53], std = [58.395, 57.12, 57.375]; for pixels divided by 255: std = 255)"
            )
            self._add(message, name, "mean", warning=True)
        if params.postprocessor in SOFTMAX and ends_in_softmax(path):
            self._twice(name, "postprocessor", f"{params.model} ends in a Softmax")
        kind = gives(member, value.kind)
        return Value(kind, member, self._classes(name, member))

    def _classes(self, name: str, member: Spec) -> int | None:
        """Return how many scores a model gives in its one output; None if that is not known."""
        for backend in _walk(self._opened.backends.get(name)):
            if type(backend).__name__ == member.cls.__name__ and backend.signature is not None:
                outputs = backend.signature.outputs
                if outputs is not None and len(outputs) == 1 and len(outputs[0].shape) == 2:
                    size = outputs[0].shape[1]
                    return size if size > 0 else None
        return None

    def _scores(self, name: str, member: Spec, value: Value) -> None:
        """Check a classifier against the engine whose scores it gets."""
        if value.engine is None:
            return
        params: Any = member.params
        engine: EngineParams = value.engine.params
        if getattr(params, "softmax", False):
            if engine.postprocessor in SOFTMAX:
                self._twice(name, "softmax", f"postprocessor = {engine.postprocessor!r} does one")
            elif ends_in_softmax(self._path(engine)):
                self._twice(name, "softmax", f"{engine.model} ends in a Softmax")
        for backend in _walk(self._opened.backends.get(name)):
            labels = getattr(backend, "labels", None)
            if not isinstance(labels, Labels) or value.classes is None:
                continue
            try:
                labels.check(value.classes, droppable=True)
            except PenstockError as error:
                self.findings += problems_in(error, self.config, name, "labels")

    def _twice(self, node: str, key: str, reason: str) -> None:
        message = (
            f"the softmax is taken twice: {reason}, and this node takes another, so `score` is no "
            "probability: set softmax = false"
        )
        if key == "postprocessor":
            message = message.replace("set softmax = false", "leave the softmax to one of them")
        self._add(message, node, key, warning=True)

    def _unset_outputs(self) -> Iterator[Finding]:
        """Yield the declared outputs that no node sets, if all keys are known."""
        known = {"result", "data", *CONTROL_KEYS, *(port.name for port in self.config.inputs)}
        for node in self.config.nodes.values():
            known.update(target for _, pairs in node.map for _, target in pairs)
            for group in node.instance_groups:
                keys = _keys_of(group.spec)
                if keys is None:
                    return
                known.update(keys)
        parts = all(port.name != "result" for port in self.config.outputs)
        for port in self.config.outputs:
            is_part = parts and (port.kind == "tensor" or bool(port.dtype or port.shape))
            if port.name not in known and not is_part:  # a tensor may be a part of `result`
                hint = (
                    ": a classifier sets it if it has labels"
                    if port.name == "label" and "class" in known
                    else did_you_mean(port.name, known)
                )
                message = f"no node sets {port.name!r}{hint}"
                key = f"outputs.{port.name}"
                yield Finding(Problem(message, self.config.source, "pipeline", key))

    def _add(self, message: str, node: str, key: str, warning: bool = False) -> None:
        self.findings.append(Finding(Problem(message, self.config.source, node, key), warning))


def _keys_of(spec: Spec) -> set[str] | None:
    """Return the keys that an expression may set; None if they are not known."""
    if isinstance(spec.params, MapReduceParams):
        return set(spec.params.merge)
    if issubclass(spec.cls, CompositeBackend):
        return None
    if not spec.children:
        own = spec.cls.keys_set(spec.params)
        return None if own is None else set(own)
    if len([*chain_of(spec)]) == 1 and next(chain_of(spec)) is spec:
        return None  # a branch, or an operator of keys
    keys: set[str] = set()
    for child in spec.children:
        own_keys = _keys_of(child)
        if own_keys is None:
            return None
        keys |= own_keys
    return keys


def _walk(backend: Backend | None) -> Iterator[Backend]:
    if backend is not None:
        yield backend
        for child in backend.children:
            yield from _walk(child)
