"""The module that models import as `triton_python_backend_utils`.

It has every name of Triton's. `install` puts it among the modules, so that `import
triton_python_backend_utils as pb_utils` finds it.
"""

from __future__ import annotations

import json
import struct
import sys

import numpy as np

from ..item import (
    SEQUENCE_END as TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
)
from ..item import (
    SEQUENCE_START as TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
)
from .calls import is_model_ready, load_model, unload_model
from .datatypes import (
    TRITON_STRING_TO_NUMPY,
    numpy_to_triton_type,
    triton_string_to_numpy,
    triton_to_numpy_type,
)
from .error import TritonError, TritonModelException
from .logger import Logger
from .metrics import Metric, MetricFamily, MetricKind
from .model_config import (
    ModelConfig,
    get_input_config_by_name,
    get_output_config_by_name,
    using_decoupled_model_transaction_policy,
)
from .request import (
    RELEASE_ALL as TRITONSERVER_REQUEST_RELEASE_ALL,
)
from .request import (
    RELEASE_RESCHEDULE as TRITONSERVER_REQUEST_RELEASE_RESCHEDULE,
)
from .request import (
    InferenceRequest,
    InferenceTrace,
    MemoryType,
    PreferredMemory,
)
from .response import InferenceResponse
from .running import get_model_dir
from .senders import (
    FINAL as TRITONSERVER_RESPONSE_COMPLETE_FINAL,
)
from .senders import (
    InferenceResponseSender,
)
from .strings import deserialize_bytes_tensor, serialize_byte_tensor
from .tensor import Tensor

TRITONSERVER_MEMORY_GPU = MemoryType.TRITONSERVER_MEMORY_GPU
TRITONSERVER_MEMORY_CPU = MemoryType.TRITONSERVER_MEMORY_CPU

__all__ = [
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_GPU",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_REQUEST_RELEASE_ALL",
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "TRITON_STRING_TO_NUMPY",
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "InferenceTrace",
    "Logger",
    "MemoryType",
    "Metric",
    "MetricFamily",
    "MetricKind",
    "ModelConfig",
    "PreferredMemory",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_model_dir",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "json",
    "load_model",
    "np",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "struct",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "unload_model",
    "using_decoupled_model_transaction_policy",
]

MODULE_NAMES = ("triton_python_backend_utils", "c_python_backend_utils")


def install() -> None:
    """Make this module the one that models import."""
    for name in MODULE_NAMES:
        sys.modules[name] = sys.modules[__name__]


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    """Return the input of that name; None if the request has none."""
    return next((each for each in inference_request.inputs() if each.name() == name), None)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """Return the output of that name; None if the response has none."""
    return next((each for each in inference_response.output_tensors() if each.name() == name), None)
