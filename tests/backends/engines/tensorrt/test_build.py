"""Builds by the real TensorRT-RTX: the builder's configuration, the plans, progress and
cancellation.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from penstock.backends.engines.tensorrt.build import build, read_timings
from penstock.backends.engines.tensorrt.library import Library
from penstock.backends.engines.tensorrt.progress import BuildCancelledError, Progress
from penstock.backends.errors import BackendError, ConfigError


@pytest.fixture
def built(library: Library, recipe: Any) -> Any:
    def built(
        path: Path,
        sizes: Any = (1, 2, 4),
        progress: Any = None,
        timing_cache: Any = None,
        **params: Any,
    ) -> Any:
        return build(recipe(path, sizes, **params), library, progress or Progress(), timing_cache)

    return built


def test_an_engine_of_resnet18_with_every_key(built: Any, resnet18: Path, prepared: Any) -> None:
    keys = {
        "mean": "123.675,116.28,103.53",
        "std": "58.395,57.12,57.375",
        "data_format": "nhwc",
        "postprocessor": "SoftmaxArgMax",
        "max": "4",
    }
    assert [tuple(profile["image"].opt) for profile in prepared(resnet18, **keys).profiles] == [
        (size, 64, 64, 3) for size in (1, 2, 4)
    ]
    assert prepared(resnet18, **keys).config.num_optimization_profiles == 3
    whole = built(resnet18, **keys)
    half = built(resnet18, precision="fp16", **keys)
    assert len(whole) > 40_000_000 > 30_000_000 > len(half)  # 11.7 million weights


def test_engines_of_two_inputs_and_of_open_shapes(built: Any, two: Path, image: Path) -> None:
    assert len(built(two)) > 1000
    assert len(built(image, min="1x3x16x16;1x3x65x65", max="4x3x64x64;1x3x256x256")) > 1000
    assert len(built(image, min="1x3x16x16", max="4x3x64x64", mean="1,2,3")) > 1000


@pytest.mark.parametrize("rows", ["n", 4])
def test_an_input_without_a_free_axis_is_in_no_profile(
    rows: Any, prepared: Any, write: Any, tmp_path: Path, library: Any, monkeypatch: Any
) -> None:
    """TensorRT 8.5 refused to build: `Profile kOPT values are not self-consistent`."""
    path = write(
        tmp_path / "mixed.onnx",
        [("Add", ["a", "b"], ["sum"])],
        [("a", 1, [rows, 3]), ("b", 1, [1, 3])],
        [("sum", 1, [rows, 3])],
    )
    given = []
    kind = library.trt.IOptimizationProfile
    set_shape = kind.set_shape

    def record(profile: Any, name: str, *shapes: Any) -> None:
        given.append(name)
        set_shape(profile, name, *shapes)

    monkeypatch.setattr(kind, "set_shape", record)
    made = prepared(path, max="4")
    assert set(given) == {name for profile in made.profiles for name in profile}
    assert (set(given), made.config.num_optimization_profiles) == (
        ({"a"}, 3) if rows == "n" else (set(), 0)
    )


def test_a_profile_that_tensorrt_refuses_is_an_error_with_its_reason(
    prepared: Any, two: Path, library: Any, monkeypatch: Any
) -> None:
    def refuse(profile: Any, name: str, *shapes: Any) -> None:
        raise ValueError("Shape provided for min is inconsistent with other shapes.")

    monkeypatch.setattr(library.trt.IOptimizationProfile, "set_shape", refuse)
    with pytest.raises(
        BackendError,
        match=r"node 'net': TensorrtTensor: tensorrt_rtx refuses the profile a 1x3, b 1x3: Shape",
    ):
        prepared(two, max="4")


def test_the_same_recipe_gives_the_same_network_every_time(
    prepared: Any, image: Path, layers: Any
) -> None:
    first, again = (
        list(layers(prepared(image, max="2x3x8x8", mean="1").network.definition)) for _ in range(2)
    )
    assert first == again


def test_memory_and_weight_streaming_are_set_on_the_builder(
    prepared: Any, two: Path, library: Any
) -> None:
    trt = library.trt
    config = prepared(two, max_workspace_size=256, weight_budget_percentage=50).config
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 256 << 20
    assert config.get_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    assert not prepared(two).config.get_flag(trt.BuilderFlag.WEIGHT_STREAMING)


def test_hardware_of_tensorrt_rtx(prepared: Any, two: Path, library: Library) -> None:
    trt = library.trt
    config = prepared(two, hardware_compatibility="sm86, SM89").config
    capabilities = [
        config.get_compute_capability(index) for index in range(config.num_compute_capabilities)
    ]
    assert capabilities == [trt.ComputeCapability.SM86, trt.ComputeCapability.SM89]
    assert prepared(two, hardware_compatibility="ampere+").config.num_compute_capabilities == 0
    with pytest.raises(
        ConfigError,
        match=r"hardware_compatibility: 'sm99' is not known to tensorrt_rtx: expected none, .*sm86",
    ):
        prepared(two, hardware_compatibility="sm99")
    with pytest.raises(ConfigError):
        prepared(two, hardware_compatibility="current,sm86")


def test_progress_only_grows_and_ends_at_1(built: Any, two: Path) -> None:
    seen = []
    progress = Progress(lambda fraction, phase: seen.append((fraction, phase)))
    built(two, progress=progress)
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions) and fractions[-1] == progress.fraction == 1.0
    assert len(set(fractions)) > 5 and len({phase for _, phase in seen}) > 3


def test_a_build_can_be_cancelled_from_another_thread(
    built: Any, resnet18: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started = threading.Event()
    progress = Progress(lambda fraction, phase: started.set())

    def cancel() -> None:
        started.wait(60)
        progress.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(
        BuildCancelledError, match=rf"node 'net': .*the build of {resnet18} was cancelled"
    ):
        built(resnet18, progress=progress)
    thread.join()
    assert progress.fraction < 1


def test_phases_nest() -> None:
    progress = Progress()
    progress.start("all", None, 2)
    progress.start("part", "all", 4)
    assert progress.step("part", 0) and progress.fraction == 0.125
    progress.finish("part")
    progress.step("all", 0)
    assert progress.fraction == 0.5 and progress.phase == "all"
    progress.start("part", "all", 1)  # a phase of the same name may come again
    progress.step("part", 0)
    assert progress.fraction == 1.0
    progress.cancel()
    assert not progress.step("all", 1)


class FakeConfig:
    """Timing caches as the docstrings of TensorRT's bindings describe them. TensorRT-RTX, the only
    library here, has none.
    """

    def create_timing_cache(self, serialized_timing_cache: Any) -> Any:
        return serialized_timing_cache if serialized_timing_cache in (b"", b"measured") else None

    def set_timing_cache(self, cache: Any, ignore_mismatch: Any) -> Any:
        self.taken = cache
        return not ignore_mismatch


def test_timings_of_an_earlier_build_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, config = tmp_path / "timings", FakeConfig()
    read_timings(config, path)
    assert config.taken == b""
    path.write_bytes(b"measured")
    read_timings(config, path)
    assert config.taken == b"measured" and not caplog.text
    path.write_bytes(b"of another kind")
    read_timings(config, path)
    assert (
        config.taken == b""
        and f"the timing cache {path} is not of this TensorRT and GPU" in caplog.text
    )


def test_tensorrt_rtx_ignores_the_timing_cache(
    built: Any, two: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "penstock.tensorrt"):
        assert built(two, timing_cache=tmp_path / "timings")
    assert "model::timingcache is ignored" in caplog.text and not (tmp_path / "timings").exists()


def test_the_error_has_tensorrts_own_message(built: Any, two: Path) -> None:
    """Build for this machine's GPU, which it does not have."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(
        BackendError, match=rf"tensorrt_rtx .* can't build an engine of {two}: .*CUDA"
    ):
        built(two, hardware_compatibility="current")
