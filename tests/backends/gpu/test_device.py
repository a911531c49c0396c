"""The GPU half on a machine without a GPU: devices, buckets, buffers, and torch's errors.

engines/torch/gpu_engines.py tests it on a GPU.
"""

from __future__ import annotations

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
