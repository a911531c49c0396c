"""Sessions of ONNX Runtime on the CPU, which instances share where they can.

Runs of one session may go side by side. But a session has one pool of threads: so instances that
compute on several threads have sessions of their own, and a pool each. So have instances in
processes of their own. Such sessions share the weights if most of them can be mapped
(onnx_mapped.py). An instance with one thread has no pool: it computes on its executor's thread, and
all such instances of a process run one session.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..base import Context
from ..malloc import give_back_memory
from ..shared_files import Files
from .onnx_mapped import can_map, open_mapped, write
from .onnx_params import OnnxParams
from .onnx_session import decrypted, external_files, load_model, open_session
from .sharing import shared, version_of

logger = logging.getLogger("penstock.onnx")

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
    known = _known(path, version_of(path))
    files = (path, *known.files)
    for file in files:
        context.files.check(file)
    large = sum(file.stat().st_size for file in files if file.is_file()) > LARGE_BYTES
    options = sorted(params.model_dump(include=SESSION_KEYS).items())
    key = ("onnx", *map(version_of, files), repr(options), place)

    own = context.alone or threads > 1 or params.execution_mode != "sequential"
    among = not context.alone or context.shared_files is not None
    maps = own and among and context.instances > 1 and large and known.can_map
    maps = maps and not context.opens_only

    def load() -> Any:
        session = (
            _mapped(key, path, params, context, threads)
            if maps
            else open_session(path, params, context, threads)
        )
        if large:
            give_back_memory()
        return session

    return load() if own else shared(key, load)


def _mapped(key: Hashable, path: Path, params: OnnxParams, context: Context, threads: int) -> Any:
    """Open a session that maps the weights. The first caller writes them."""

    def make() -> Files:
        return write(path, params, context, threads)

    try:
        files: Files = (
            shared(("mapped", key), make)
            if context.shared_files is None
            else context.shared_files.files(key, make)
        )
        return open_mapped(files, path, params, context, threads)
    except Exception as error:  # a graph that can't be saved, say
        logger.debug("%s: the weights of %s can't be mapped: %s", context.node, path, error)
    return open_session(path, params, context, threads)


class _Known(NamedTuple):
    """Facts about a model's file: the files beside it with weights."""

    files: tuple[Path, ...] = ()
    can_map: bool = False


@lru_cache(maxsize=64)
def _known(path: Path, _: Hashable) -> _Known:
    try:
        plain = decrypted(path)
        model = load_model(path if plain is None else plain)
        files = tuple(external_files(model, path.parent))
        # What an encrypted file holds stays in the memory of its own process.
        return _Known(files, plain is None and can_map(model.graph))
    except Exception:  # whoever opens the model says what is wrong with it
        return _Known()
