"""Sessions of ONNX Runtime on the CPU, which instances share where they can.

A session holds the weights as its optimiser has arranged them, so sessions of one model hold them
as often as there are sessions. Runs of one session may go side by side. But a session has one pool
of threads: so instances that compute on several threads have sessions of their own, and a pool
each. An instance with one thread has no pool: it computes on its executor's thread, and all such
instances run one session.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..base import Context
from ..malloc import give_back_memory
from .onnx_params import OnnxParams
from .onnx_session import decrypted, external_files, load_model, open_session
from .sharing import shared, version_of

SESSION_KEYS = {
    *("mean", "std", "data_format", "execution_mode", "inter_op_thread_count"),
    *("graph_optimization_level", "enable_mem_arena", "enable_mem_pattern", "log_level"),
}
"""The parameters that a session is opened with."""

LARGE_BYTES = 1 << 20
"""Opening a smaller model leaves too little freed memory to give back."""


def session_of(
    path: Path, params: OnnxParams, context: Context, threads: int, place: Hashable = None
) -> Any:
    """Return a session for an instance: another one's, or its own.

    `threads` are those of an operator. Instances in different places have sessions of their own.
    Raises BackendError and ConfigError.
    """
    files = [path, *weights_beside(path)]
    for file in files:
        context.files.check(file)

    def load() -> Any:
        session = open_session(path, params, context, threads)
        if sum(file.stat().st_size for file in files if file.is_file()) > LARGE_BYTES:
            give_back_memory()
        return session

    if threads > 1 or params.execution_mode != "sequential":
        return load()
    options = sorted(params.model_dump(include=SESSION_KEYS).items())
    return shared(("onnx", *map(version_of, files), repr(options), place), load)


def weights_beside(path: Path) -> tuple[Path, ...]:
    """Return the files beside an ONNX model that hold weights."""
    return _weights_beside(path, version_of(path))


@lru_cache(maxsize=64)
def _weights_beside(path: Path, _: Hashable) -> tuple[Path, ...]:
    try:
        plain = decrypted(path)
        return tuple(external_files(load_model(path if plain is None else plain), path.parent))
    except Exception:  # whoever opens the model says what is wrong with it
        return ()
