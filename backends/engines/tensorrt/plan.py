"""Find the plan of a recipe: cached, built now, or read from a model file that is an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...base import Context
from ...errors import BackendError
from ..encryption import read_model
from .build import build
from .cache import ENGINE_MAGIC, FoundPlan, UnusableError, load_or_build, place_of, split
from .library import Library
from .progress import Progress
from .recipe import Recipe, plain_suffix


def find_plan(
    recipe: Recipe, library: Library, context: Context, progress: Progress, *, ahead: bool = False
) -> FoundPlan:
    """Return the plan, built and cached if need be.

    `ahead`: caching it is the only purpose, so a failure to cache it is an error. Raises
    BackendError and ConfigError, which name the node and the file.
    """
    if recipe.is_engine:
        return FoundPlan(_read_engine(recipe, library), built=False)
    if plain_suffix(recipe.model) != ".onnx":
        raise BackendError(
            f"{recipe}: the model {recipe.model} is neither .onnx nor an engine (.trt, .plan, "
            ".engine)"
        )
    key = recipe.key(library)
    timings = recipe.params.timing_cache
    timing_cache = context.resolve(timings) if timings else None
    place = cached_at(recipe, context, key)
    return load_or_build(
        place,
        key,
        lambda: build(recipe, library, progress, timing_cache),
        str(recipe),
        progress,
        ahead=ahead,
    )


def cached_at(recipe: Recipe, context: Context, key: dict[str, Any]) -> Path:
    """Return the path at which the engine is cached. Raises BackendError."""
    given = recipe.params.cache
    return place_of(context.resolve(given) if given else None, recipe.model, key)


def _read_engine(recipe: Recipe, library: Library) -> bytes:
    """Read the plan from an engine file.

    One that Penstock wrote must be for this library and GPU. One of another tool is taken as it is.
    Raises BackendError.
    """
    try:
        data = read_model(recipe.model)
    except OSError as error:
        raise BackendError(
            f"{recipe}: the engine {recipe.model} can't be read: {error.strerror}"
        ) from error
    if not data.startswith(ENGINE_MAGIC):
        return data
    try:
        header, plan = split(data)
    except UnusableError as error:
        raise BackendError(f"{recipe}: the engine {recipe.model} can't be used: {error}") from error
    here = {"library": library.name, "version": library.version, "gpu": recipe.gpu}
    for name, wanted in here.items():
        if header["key"].get(name) != wanted:
            cached = header["key"].get(name)
            raise BackendError(
                f"{recipe}: the engine {recipe.model} was built for {name} {cached}, but this "
                f"machine has {wanted}: build it again"
            )
    return plan
