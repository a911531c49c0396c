"""The four treatments that a field of a Triton model configuration may get."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Treatment(StrEnum):
    """The treatment of a field."""

    HONOURED = "honoured"
    """It has the effect that it has in Triton."""
    APPROXIMATED = "approximated"
    """It has a similar effect. The words say what differs."""
    IGNORED = "ignored"
    """It has no effect. The words say why that changes no result."""
    REFUSED = "refused"
    """The model is not served. The words say why, and what to do."""


@dataclass(frozen=True, slots=True)
class Line:
    """The treatment of a field, for some backends or values, or for all.

    `backends`: those that the line is for; empty: all. `values`: the same for values, as
    `config.pbtxt` writes them (`KIND_GPU`, `true`, `2`); strings have no quotes.
    """

    treatment: Treatment
    words: str
    backends: tuple[str, ...] = ()
    values: tuple[str, ...] = ()

    def fits(self, backend: str, value: str) -> bool:
        """Return whether this line is for a backend and a value."""
        return (not self.backends or backend in self.backends) and (
            not self.values or value in self.values
        )


ONNX, TORCH, TENSORRT = "onnxruntime", "pytorch", "tensorrt"
OPENVINO, PYTHON, ENSEMBLE = "openvino", "python", "ensemble"
ENGINES = (ONNX, TORCH, TENSORRT, OPENVINO)
BACKENDS = (*ENGINES, PYTHON, ENSEMBLE)
"""The backends whose models are served. `ensemble` is a platform to Triton."""

PLACES = "it says where memory lies and is copied: answers are the same"
ON_CUDA = (
    "on CUDA if onnxruntime-gpu is installed and there is a GPU, otherwise on the CPU, with a "
    "warning: answers differ by rounding alone"
)
"""What models of onnxruntime do that want a GPU."""
READ_FOR_OTHERS = "Triton reads it for other backends only"
NOT_READ_BY_PYTHON = "Triton's Python backend does not read it"
"""Reasons for which a field may be ignored."""

Texts = str | tuple[str, ...]


def _tuple(texts: Texts) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else texts


def honoured(words: str, backends: Texts = (), values: Texts = ()) -> Line:
    return Line(Treatment.HONOURED, words, _tuple(backends), _tuple(values))


def approximated(words: str, backends: Texts = (), values: Texts = ()) -> Line:
    return Line(Treatment.APPROXIMATED, words, _tuple(backends), _tuple(values))


def ignored(words: str, backends: Texts = (), values: Texts = ()) -> Line:
    return Line(Treatment.IGNORED, words, _tuple(backends), _tuple(values))


def refused(words: str, backends: Texts = (), values: Texts = ()) -> Line:
    return Line(Treatment.REFUSED, words, _tuple(backends), _tuple(values))
