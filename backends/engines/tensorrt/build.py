"""Build a plan from a recipe: the network, the builder's configuration, and the build itself.

The build takes seconds to minutes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import BackendError, ConfigError, Problem
from .cache import write_atomically
from .library import Library, log
from .network import Network, parse
from .profiles import Profile, ProfileError, describe, make_profiles
from .progress import BuildCancelledError, Progress, make_monitor
from .recipe import Recipe


class Prepared(NamedTuple):
    """All that TensorRT builds from.

    It keeps only the addresses of these objects, so they must outlive the build.
    """

    builder: Any
    network: Network
    config: Any
    profiles: list[Profile]
    monitor: Any


def build(
    recipe: Recipe, library: Library, progress: Progress, timing_cache: Path | None = None
) -> bytes:
    """Build and return the plan, an engine in TensorRT's own format.

    Raises BackendError and ConfigError, which name the node, the file and the tensor, and
    BuildCancelledError.
    """
    cancelled = BuildCancelledError(f"{recipe}: the build of {recipe.model} was cancelled")
    with library.listening(recipe.params.log_level) as reported:
        prepared = prepare(recipe, library, progress, reported)
        timings = None
        if timing_cache is not None and library.is_rtx:
            log.info(
                "%s: model::timingcache is ignored: tensorrt_rtx measures nothing when it builds",
                recipe,
            )
        elif timing_cache is not None:
            timings = read_timings(prepared.config, timing_cache)
        log.info(
            "%s: building an engine of %s with %s %s, precision %s, profiles %s",
            recipe,
            recipe.model,
            library.name,
            library.version,
            recipe.params.precision or "of the model",
            describe(prepared.profiles),
        )
        if progress.cancelled:
            raise cancelled
        plan = prepared.builder.build_serialized_network(
            prepared.network.definition, prepared.config
        )
        if progress.cancelled:
            raise cancelled
        if plan is None:
            reasons = "; ".join(dict.fromkeys(reported)) or "it gives no reason"
            raise BackendError(
                f"{recipe}: {library.name} {library.version} can't build an engine of "
                f"{recipe.model}: {reasons}"
            )
        if timing_cache is not None and timings is not None:
            write_atomically(timing_cache, bytes(prepared.config.get_timing_cache().serialize()))
        return bytes(plan)


def prepare(recipe: Recipe, library: Library, progress: Progress, reported: list[str]) -> Prepared:
    """Make the network and the configuration.

    `reported` collects TensorRT's errors. Raises BackendError and ConfigError.
    """
    trt, params = library.trt, recipe.params
    builder = trt.Builder(library.logger)
    network = parse(recipe, library, builder, reported)
    config = builder.create_builder_config()
    if params.max_workspace_size is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, params.max_workspace_size << 20)
    if params.weight_budget_percentage is not None:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    _set_hardware(recipe, library, config)
    try:
        inputs = [
            port._replace(axis=params.batch_axis.get(port.name, 0)) for port in network.inputs
        ]
        profiles = make_profiles(inputs, params.min, params.max, recipe.sizes)
    except ProfileError as error:
        raise ConfigError(
            [Problem(f"{recipe.model}: {error}", node=recipe.node, key=error.key)]
        ) from error
    for profile in profiles:
        made = builder.create_optimization_profile()
        refused: str | None = None
        try:
            for name, shapes in profile.items():
                made.set_shape(name, shapes.min, shapes.opt, shapes.max)
            if config.add_optimization_profile(made) < 0:
                refused = "; ".join(reported) or "it gives no reason"
        except ValueError as error:
            refused = str(error)
        if refused is not None:
            raise BackendError(
                f"{recipe}: {library.name} refuses the profile {describe([profile])}: {refused}"
            )
    monitor = make_monitor(trt, progress)
    config.progress_monitor = monitor
    return Prepared(builder, network, config, profiles, monitor)


def _set_hardware(recipe: Recipe, library: Library, config: Any) -> None:
    """Apply `hardware_compatibility`.

    It is one of TensorRT's levels, or the compute capabilities that TensorRT-RTX builds for. Raises
    ConfigError for anything else.
    """
    trt = library.trt
    wanted = (
        (recipe.params.hardware_compatibility or "none")
        .strip()
        .lower()
        .replace("+", "_plus")
        .replace("-", "_")
    )
    if library.is_rtx:
        if wanted in ("none", "ampere_plus"):
            return  # TensorRT-RTX builds for these anyway
        members = {
            name.lower(): value
            for name, value in trt.ComputeCapability.__members__.items()
            if name != "NONE"
        }
        names = re.split(r"[,\s]+", wanted)
        if set(names) <= set(members) and (names == ["current"] or "current" not in names):
            config.num_compute_capabilities = len(names)
            for index, name in enumerate(names):
                config.set_compute_capability(members[name], index)
            return
        expected = f"none, ampere_plus, or some of {', '.join(members)}"
    else:
        members = {
            name.lower(): value
            for name, value in trt.HardwareCompatibilityLevel.__members__.items()
        }
        if wanted in members:
            config.hardware_compatibility_level = members[wanted]
            return
        expected = " or ".join(members)
    message = (
        f"{recipe.params.hardware_compatibility!r} is not known to {library.name}: expected "
        f"{expected}"
    )
    raise ConfigError([Problem(message, node=recipe.node, key="hardware_compatibility")])


def read_timings(config: Any, path: Path) -> Any:
    """Give the builder the timings of earlier builds.

    Return the `ITimingCache`, which must outlive the build, or None if TensorRT takes none. A file
    that can't be used is ignored, and overwritten after the build.
    """
    known = b""
    try:
        known = path.read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("the timing cache %s can't be read: %s", path, error.strerror)
    for data in dict.fromkeys((known, b"")):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
        log.warning(
            "the timing cache %s is not of this TensorRT and GPU: it will be overwritten", path
        )
    return None
