"""The GPU half on a machine without a GPU: devices, buckets, buffers, and torch's errors.

engines/torch/gpu_engines.py tests it on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from penstock.backends.errors import BackendError, DeviceError, InvalidInput

torch = pytest.importorskip("torch")

from penstock.backends.gpu import device  # noqa: E402
from penstock.backends.gpu.device import (  # noqa: E402
    MAX_PASSING_BUFFERS,
    DeviceHalf,
    buckets,
    choose_device,
    device_errors,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("largest", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_buckets(largest: int, expected: list[int]) -> None:
    assert buckets(largest) == expected


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [
        (0, "", "cpu"),
        (0, "cpu", "cpu"),
        (2, "", "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
        (2, "1", "cuda:1"),
        (2, "cpu", "cpu"),
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, count: int, wanted: str, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert str(choose_device(wanted)) == expected


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("cuda", "torch sees 0 GPUs here"),
        ("3", "torch sees 0 GPUs"),
        ("cuda:x", "expected cpu, cuda, or a GPU's number"),
        ("mps", "expected cpu"),
    ],
)
def test_a_missing_device_is_refused(
    monkeypatch: pytest.MonkeyPatch, wanted: str, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match=f"device '{wanted}': {message}"):
        choose_device(wanted)


def assembled(half: DeviceHalf, *parts: Any, rows: int = 0, index: int = 0) -> Any:
    return half.assemble(index, parts, rows or sum(len(part) for part in parts), 4, torch.float32)


def test_a_batch_is_assembled_in_one_buffer_and_padded_with_zeros() -> None:
    half = DeviceHalf(CPU, "node")
    first = assembled(half, torch.full((4, 2), 9.0))
    batch = assembled(half, torch.ones(1, 2), torch.full((2, 2), 2, dtype=torch.uint8), rows=4)
    assert batch.tolist() == [[1, 1], [2, 2], [2, 2], [0, 0]]
    assert batch.data_ptr() == first.data_ptr()


def test_a_batch_above_the_capacity_does_not_move_the_buffer() -> None:
    """Graphs hold the address of the buffer."""
    half = DeviceHalf(CPU, "node")
    small = assembled(half, torch.ones(1, 2))
    large = assembled(half, torch.ones(9, 2))
    again = assembled(half, torch.ones(2, 2))
    assert (len(large), large.data_ptr() != small.data_ptr(), again.data_ptr()) == (
        9,
        True,
        small.data_ptr(),
    )


def test_buffers_of_varying_sizes_are_bounded_and_those_of_graphs_stay() -> None:
    half = DeviceHalf(CPU, "node")
    kept = assembled(half, torch.ones(1, 1))
    other = assembled(half, torch.ones(1, 1), index=1)
    for buffer in half._buffers.values():
        buffer.kept = True
    for width in range(2, 60):
        assert assembled(half, torch.ones(1, width)).shape == (1, width)
        assert len(half._buffers) <= 2 + MAX_PASSING_BUFFERS
    assert assembled(half, torch.ones(1, 1)).data_ptr() == kept.data_ptr()
    assert assembled(half, torch.ones(1, 1), index=1).data_ptr() == other.data_ptr()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            MemoryError,
            "owner: out of memory on cpu while at it: .* torch says: .*2 GiB",
        ),
        (
            RuntimeError(
                "The following failed in TorchScript:\nRuntimeError: CUDA out of memory. Tried 2 "
                "GiB"
            ),
            MemoryError,
            "torch says: .*2 GiB",
        ),
        (RuntimeError("CUDA error: out of memory"), MemoryError, "out of memory on cpu"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
            MemoryError,
            "ALLOC_FAILED",
        ),
        (
            RuntimeError("failed in TorchScript:\nCUDA error: device-side assert triggered"),
            DeviceError,
            "owner: cpu failed while at it: CUDA error: device-side",
        ),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
            DeviceError,
            "EXECUTION_FAILED",
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError, "mat1"),
        (DeviceError("CUDA error: once is enough"), DeviceError, "^CUDA error: once"),
        (InvalidInput("out of memory is in its text"), InvalidInput, "^out of memory"),
    ],
)
def test_errors_of_torch_are_translated(
    error: Exception, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught, device_errors("owner", CPU, "at it"):
        raise error
    assert type(caught.value) is kind


def test_more_memory_than_the_machine_has() -> None:
    with (
        pytest.raises(
            MemoryError,
            match=r"[\d,]+ MiB of [\d,]+ are free; "
            "torch says: .*you tried to allocate 281474976710656 bytes",
        ),
        device_errors("owner", CPU, "at it"),
    ):
        torch.zeros(1 << 46)


def test_a_model_is_freed_after_the_stream_and_never_on_a_failed_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def held_while(synchronize: Any) -> list[Any]:
        half, held, seen = DeviceHalf(CPU, "node"), ["the model"], []

        def observed() -> None:
            seen.extend(held)
            synchronize()

        monkeypatch.setattr(half, "synchronize", observed)
        half.close(held)
        assert seen == ["the model"] and not held
        return [model for *_, models in device._lost for model in models]

    def fail() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(device, "_lost", [])
    assert held_while(lambda: None) == []
    assert held_while(fail) == ["the model"]


class FakeCapture:
    """A capture of torch's, with the count of graphs that share its pool, as torch keeps it.

    `fails`: the driver can't end the capture, because a call in it was not allowed. Torch then
    leaves its pool open, and does not release it.
    """

    def __init__(self, *, fails: bool) -> None:
        self.fails = fails
        self.users = 1  # a graph that was captured before
        self.is_open = self.is_ended = False

    @contextmanager
    def graph(self, graph: Any, **options: Any) -> Iterator[None]:
        self.users += 1
        self.is_open = True
        try:
            yield
        finally:
            if self.fails:
                raise RuntimeError("operation failed due to a previous error during capture")
            self.is_open, self.is_ended = False, True

    def reset(self) -> None:
        if self.is_ended:
            self.users -= 1
        self.is_ended = False

    def end(self, index: int, pool: Any) -> None:
        if not self.is_open:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.is_open = False

    def release(self, index: int, pool: Any) -> None:
        self.users -= 1


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_failed_capture_releases_its_pool_once(
    monkeypatch: pytest.MonkeyPatch, fails: bool, error: type[Exception]
) -> None:
    """Released twice, it broke every later capture, and the end of the pipeline."""
    capture = FakeCapture(fails=fails)
    half = DeviceHalf(torch.device("cpu"), "net")
    monkeypatch.setattr(half, "stream", "a stream")
    monkeypatch.setattr(half, "_pool", (0, 1), raising=False)
    monkeypatch.setattr(half, "synchronize", lambda: None)
    monkeypatch.setattr(device, "_is_own", lambda *_: True)
    for name, value in (
        ("device", lambda _: nullcontext()),
        ("CUDAGraph", lambda: capture),
        ("graph", capture.graph),
        ("set_stream", lambda _: None),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", capture.end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", capture.release, raising=False)
    runs = iter([None, None, error("not in a capture")])

    def run() -> list[Any]:
        if (reason := next(runs)) is not None:
            raise reason
        return []

    assert not half.capture("key", run)
    assert capture.users == 1 and not capture.is_open
    assert not half.capture("key", run), "there is no further attempt"


def test_memory_that_can_not_be_given_back_fails_no_close(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise RuntimeError("it->second->use_count == 0 INTERNAL ASSERT FAILED")

    half = DeviceHalf(torch.device("cpu"), "net")
    monkeypatch.setattr(half, "stream", "a stream")
    monkeypatch.setattr(half, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    half.close()
    assert "net: torch keeps memory of the device: it->second->use_count == 0" in caplog.text
