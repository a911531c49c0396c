"""Warm-up: the values and samples for it, and what happens if the model refuses it.

A valid model may refuse zeros: a shape of zeros, or an integer division by zero. So a warm-up that
fails is a warning, and requests are run all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base import Backend, Context
from ..errors import BackendError, ConfigError, PenstockError, Problem
from ..params import EngineParams
from ..text import message_of
from ..warm_up_samples import run_samples
from .shapes import shape_text

OUT_OF_MEMORY_TEXTS = ("Failed to allocate memory", "bad_alloc")
"""Texts of ONNX Runtime's errors."""


class RefusedRunError(BackendError):
    """The library of an engine could not run a batch, and did not say that the device failed."""


def warm_up_values(params: EngineParams, context: Context) -> dict[str, NDArray[Any]] | None:
    """Read the file of `warm_up`: an array for each input, by name. None if there is no file.

    Raises ConfigError for a file that can't be read, and, unless each item runs alone, for values
    without rows.
    """
    if not isinstance(params.warm_up, str):
        return None
    path = context.resolve_input(params.warm_up)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values = dict(arrays)
    except Exception as error:  # NumPy raises what zipfile, its parser and the system raise
        raise wrong_values(
            context, f"{path} can't be read as a .npz file: {type(error).__name__}: {error}"
        ) from error
    for name, value in values.items():
        axis = params.batch_axis.get(name, 0)
        if params.batched is not False and value.ndim > axis and not value.shape[axis]:
            raise wrong_values(
                context,
                f"{path}: {name} has no rows (shape {shape_text(value.shape)}): expected at least "
                "one",
            )
    return values


def run_given_samples(
    backend: Backend, params: EngineParams, context: Context, *, most: int
) -> bool:
    """Run the samples of `warm_up`, if it is a list. Return whether it is. Raises ConfigError."""
    if not isinstance(params.warm_up, tuple):
        return False
    has_batch = params.batched is not False
    run_samples(params.warm_up, backend.forward, context, most, batched=has_batch)
    return True


def wrong_values(context: Context, message: str) -> ConfigError:
    return ConfigError([Problem(message, node=context.node, key="warm_up")])


@contextmanager
def refusals_as_warnings(
    owner: str, params: EngineParams, context: Context, logger: logging.Logger
) -> Iterator[None]:
    """Log an error of the block as a warning, of the first instance only.

    It is raised if not the model is its cause, but the device, its memory or, as Penstock's own
    errors say, the pipeline's file.
    """
    try:
        yield
    except Exception as error:  # models raise whatever their code raises
        text = " ".join(message_of(error).split())
        if (
            (isinstance(error, PenstockError) and not isinstance(error, RefusedRunError))
            or isinstance(error, MemoryError)
            or any(sign in text for sign in OUT_OF_MEMORY_TEXTS)
        ):
            raise
        if context.instance == 0:
            logger.warning(
                "%s: %s is not warmed up, because the model refuses %s: %s; requests run all the "
                'same. warm_up = "values.npz" gives values that the model takes, warm_up = false '
                "leaves warm-up out",
                owner,
                params.model,
                "zeros" if params.warm_up is True else params.warm_up,
                text or type(error).__name__,
                extra={"pipeline": context.pipeline, "node": context.node},
            )
