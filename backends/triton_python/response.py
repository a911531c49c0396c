"""`InferenceResponse`: what a model answers, or what a model that it called has answered."""

from __future__ import annotations

from typing import Any

from .error import TritonError, TritonModelException
from .parameters import as_json, checked
from .tensor import Tensor


class InferenceResponse:
    """The output tensors of one request, or its error."""

    __slots__ = ("_error", "_output_tensors", "_parameters")

    def __init__(
        self,
        output_tensors: list[Tensor] | tuple[Tensor, ...] = (),
        error: TritonError | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        """Raises TypeError or TritonModelException for what Triton's constructor refuses."""
        if not isinstance(output_tensors, list | tuple):
            raise TypeError(
                "InferenceResponse: output_tensors is a list of tensors, found "
                f"{type(output_tensors).__name__}"
            )
        if any(tensor is None for tensor in output_tensors):
            raise TritonModelException("Output tensor for inference response should not be empty.")
        for tensor in output_tensors:
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    "InferenceResponse: output_tensors is a list of pb_utils.Tensor, found a "
                    f"{type(tensor).__name__} in it"
                )
        if error is not None and not isinstance(error, TritonError):
            raise TypeError(
                f"InferenceResponse: error is a TritonError, found {type(error).__name__}"
            )
        self._output_tensors = list(output_tensors)
        self._error = error
        self._parameters = checked(parameters)

    def __repr__(self) -> str:
        return f"<InferenceResponse {self._error or self._output_tensors}>"

    def output_tensors(self) -> list[Tensor]:
        """Return the tensors."""
        return self._output_tensors

    def has_error(self) -> bool:
        """Return whether it is an error."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """Return the error, or None."""
        return self._error

    def parameters(self) -> str:
        """Return the parameters, as JSON."""
        return as_json(self._parameters)

    @property
    def parameter_values(self) -> dict[str, Any]:
        """The parameters as they were given."""
        return self._parameters
