"""Measure images on a GPU: decoders, CV-CUDA against torch, and both in a node.

Each part fails alone. Rows are printed as they come, and written to images_bench.json in the folder
that OUT names. Without a GPU the parts run small, on the CPU, to test this script.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import sys
import time
import traceback
import types
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from penstock import Pipeline
from penstock.app.bench.images import synthetic_jpegs
from penstock.backends.base import Context
from penstock.backends.engines.processors import processors
from penstock.backends.errors import BackendError
from penstock.backends.image.tensor import cv_cuda, operations, sampling
from penstock.backends.image.tensor.decode import DecodeTensor, DecodeTensorParams
from penstock.backends.image.tensor.decoders import OPTIONS

DECODERS: Any = import_module("penstock.backends.image.tensor.decoders")

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda:0" if ON_GPU else "cpu"
SECONDS = 0.6 if ON_GPU else 0.05
BATCHES = (1, 8, 32) if ON_GPU else (1, 2)

Operation = Callable[[torch.Tensor], Any]

ROWS: list[dict[str, Any]] = []
PARTS: list[Callable[[], None]] = []


def part(function: Callable[[], None]) -> Callable[[], None]:
    """Register a part of the measurement."""
    PARTS.append(function)
    return function


def say(what: str, **figures: float | str) -> None:
    """Print a row, and keep it."""
    ROWS.append({"what": what, **figures})
    numbers = ", ".join(
        f"{name} {value:,.3g}"
        if isinstance(value, float) and value < 100
        else f"{name} {value:,.0f}"
        if isinstance(value, float)
        else f"{name} {value}"
        for name, value in figures.items()
    )
    print(f"{what}: {numbers}", flush=True)


def wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def microseconds(operation: Callable[[torch.Tensor], object], image: torch.Tensor) -> float:
    """Return the time of a call, with many of them in the device's queue."""
    return 1e6 / per_second(lambda: operation(image), 1, SECONDS / 4)


def per_second(work: Callable[[], object], count: int, seconds: float = SECONDS) -> float:
    """Call `work`, which does `count` things and leaves the device to work, and return the rate."""
    work()
    wait()
    calls, started = 0, time.perf_counter()
    while calls < 3 or time.perf_counter() - started < seconds:
        work()
        calls += 1
        if calls % 16 == 0:
            wait()
    wait()
    return calls * count / (time.perf_counter() - started)


def encoded(jpeg: bytes, kind: str) -> bytes:
    """Return the JPEG's pixels as a file of another kind."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(buffer, kind)
    return buffer.getvalue()


def decode_tensor(decoder: Any) -> DecodeTensor | None:
    """Return DecodeTensor with that decoder, or None if it is missing."""
    backend = DecodeTensor()
    try:
        params = DecodeTensorParams.model_validate({"decoder": decoder})
        backend.init(params, Context(node="bench", device=DEVICE))
    except BackendError as error:
        say(f"decoder {decoder}", missing=str(error).splitlines()[0][:160])
        return None
    return backend


@part
def decoders() -> None:
    """Images/s of one thread, by decoder, format and batch."""
    jpegs = synthetic_jpegs(8)
    files = {
        "JPEG": jpegs,
        **{kind: [encoded(jpeg, kind) for jpeg in jpegs[:4]] for kind in ("PNG", "WEBP", "TIFF")},
        "JPEG2000": [encoded(jpeg, "JPEG2000") for jpeg in jpegs[:2]],
    }
    for decoder in ("cpu", "nvjpeg", "nvimgcodec"):
        backend = decode_tensor(decoder)
        if backend is None:
            continue
        for kind, some in files.items():
            if decoder == "nvjpeg" and kind != "JPEG":
                continue
            for batch in BATCHES if kind == "JPEG" else BATCHES[-1:]:

                def work(
                    backend: DecodeTensor = backend, some: list[bytes] = some, batch: int = batch
                ) -> None:
                    items = [{"data": some[number % len(some)]} for number in range(batch)]
                    if backend.max == 1:
                        for item in items:
                            backend.forward([item])
                    else:
                        backend.forward(items)
                    assert all("result" in item for item in items), items[0].get("error")

                say(f"{decoder}, {kind}, batch {batch}", images_per_s=per_second(work, batch))
        backend.close()


@part
def decode_steps() -> None:
    """Where the time of a batch of JPEGs goes: microseconds of this thread a step."""
    jpegs = synthetic_jpegs(8)
    kept_bytes, share = DECODERS.MAX_KEPT_BYTES, DECODERS.threads_per_instance
    for decoder, variant, threads in (
        ("nvjpeg", "", 0),
        ("nvimgcodec", "", 0),
        ("nvimgcodec", ", memory not kept", 0),
        ("nvimgcodec", ", 1 thread", 1),
        ("nvimgcodec", ", 4 threads", 4),
    ):
        DECODERS.MAX_KEPT_BYTES = -1 if "not kept" in variant else kept_bytes
        DECODERS.threads_per_instance = partial(max, threads) if threads else share
        backend: Any = decode_tensor(decoder)
        if backend is None:
            continue
        spent: dict[str, float] = {}

        def timed(
            name: str, function: Callable[..., Any], spent: dict[str, float] = spent
        ) -> Callable[..., Any]:
            def run(*arguments: Any, **more: Any) -> Any:
                started = time.perf_counter()
                try:
                    return function(*arguments, **more)
                finally:
                    spent[name] = spent.get(name, 0.0) + time.perf_counter() - started

            return run

        backend._answer_all = timed("copies", backend._answer_all)
        if backend.decoder is not None:
            inner = backend.decoder
            backend.decoder = types.SimpleNamespace(
                suits=inner.suits, decode=timed("decode", inner.decode)
            )
            if decoder == "nvimgcodec":
                real = inner._decoder
                inner._decoder = types.SimpleNamespace(decode=timed("library", real.decode))
        for batch in BATCHES[1:]:
            items = [{"data": jpegs[number % 8]} for number in range(batch)]
            for waits in (False, True):
                backend.forward(items)
                wait()
                spent.clear()
                turns, started = 40 if ON_GPU else 3, time.perf_counter()
                for _ in range(turns):
                    backend.forward([dict(item) for item in items])
                    if waits:
                        wait()
                wait()
                total = time.perf_counter() - started
                say(
                    f"{decoder}{variant}, batch {batch}, {'waits' if waits else 'runs on'}, us",
                    total=1e6 * total / turns,
                    **{name: 1e6 * seconds / turns for name, seconds in spent.items()},
                )
        backend.close()
    DECODERS.MAX_KEPT_BYTES = kept_bytes
    DECODERS.threads_per_instance = share
    say("processors", count=float(processors()))


@part
def nvimgcodec_alone() -> None:
    """Variants of nvImageCodec without our code: upsampling, layouts, buffers used again."""
    codec = import_module("nvidia.nvimgcodec")
    jpegs = synthetic_jpegs(8)
    batch = BATCHES[-1]
    on_cpu = [codec.Backend(codec.BackendKind.CPU_ONLY)]
    place = 0 if ON_GPU else codec.NVIMGCODEC_DEVICE_CPU_ONLY
    stream = torch.cuda.current_stream().cuda_stream if ON_GPU else 0
    kinds = codec.BackendKind
    for name, options, backends, planar, again in (
        ("as we use it", OPTIONS, None, True, False),
        ("colours repeated", ":fancy_upsampling=0", None, True, False),
        ("buffers used again", OPTIONS, None, True, True),
        ("pixels, not planes", OPTIONS, None, False, False),
        ("hardware decoder alone", ":fancy_upsampling=0", [kinds.HW_GPU_ONLY], True, False),
        ("no hardware decoder", OPTIONS, [kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU], True, False),
        ("CPU threads alone", OPTIONS, [kinds.CPU_ONLY], True, False),
    ):
        chosen = on_cpu if not ON_GPU else backends and [codec.Backend(kind) for kind in backends]
        try:
            decoder = codec.Decoder(device_id=place, backends=chosen, options=options)
            formats = codec.SampleFormat
            params = codec.DecodeParams(
                color_spec=codec.ColorSpec.SRGB,
                sample_format=formats.P_RGB if planar else formats.I_RGB,
            )
            kept: list[Any] = []

            def work(
                decoder: Any = decoder, params: Any = params, again: bool = again, kept: Any = kept
            ) -> None:
                streams = [codec.CodeStream(jpegs[number % 8]) for number in range(batch)]
                reused = {"images": kept} if again and kept else {}
                images = decoder.decode(streams, params=params, cuda_stream=stream, **reused)
                assert None not in images, f"{images.count(None)} of {batch} are not decoded"
                kept[:] = images if again else []

            say(f"nvImageCodec, {name}, batch {batch}", images_per_s=per_second(work, batch))
        except Exception as error:
            say(f"nvImageCodec, {name}", failed=f"{type(error).__name__}: {error}"[:160])


def shapes() -> list[tuple[int, int, int]]:
    """Return (images, height, width)."""
    if not ON_GPU:
        return [(1, 60, 80), (2, 60, 80)]
    return [(1, 427, 640), (32, 427, 640), (1, 1080, 1920), (32, 1080, 1920), (1, 3000, 4000)]


TURN = np.array([[0.9, 0.4, 20.3], [-0.4, 0.9, 90.6]])
QUAD = np.array([[0.9, 0.1, 13.0], [-0.05, 1.1, 2.0], [2e-4, 1e-4, 1.0]])


def torch_grey(image: torch.Tensor) -> torch.Tensor:
    """Return the grey image by torch, as `converted` computes it without CV-CUDA."""
    return ((operations.sum_of(image.int(), operations.LUMA) + 2**14) >> 15).to(torch.uint8)


@part
def cvcuda_against_torch() -> None:
    """Microseconds a call of each operation, throughput of one stream."""
    if ON_GPU and cv_cuda.find_cvcuda() is None:
        say("CV-CUDA", missing="not installed")
    pairs: dict[str, tuple[Operation, Operation]] = {
        "resize to 224": (
            lambda image: cv_cuda.resized(image, 224, 224),
            lambda image: sampling.interpolated(image, 224, 224),
        ),
        "resize of a box": (
            lambda image: cv_cuda.resized(image[:, :, 10:-20, 30:-10], 224, 224),
            lambda image: sampling.interpolated(image[:, :, 10:-20, 30:-10], 224, 224),
        ),
        "affine to 224": (
            lambda image: cv_cuda.warped(image, TURN, 224, 224, [0.0] * 3),
            lambda image: sampling.sampled(image, TURN, 224, 224, [0.0] * 3),
        ),
        "affine to 224, a fill a channel": (
            lambda image: cv_cuda.warped(image, TURN, 224, 224, [1.0, 2.0, 3.0]),
            lambda image: sampling.sampled(image, TURN, 224, 224, [1.0, 2.0, 3.0]),
        ),
        "perspective to 224": (
            lambda image: cv_cuda.warped(image, QUAD, 224, 224, None),
            lambda image: sampling.sampled(image, QUAD, 224, 224, None),
        ),
        "grey": (lambda image: cv_cuda.grey(image, "rgb"), torch_grey),
    }
    draw = torch.Generator().manual_seed(0)
    for count, height, width in shapes():
        size = (count, 3, height, width)
        planes = torch.randint(0, 256, size, dtype=torch.uint8, generator=draw).to(DEVICE)
        pixels = planes.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        for layout, image in (("planes", planes), ("pixels", pixels)):
            for name, (by_cvcuda, by_torch) in pairs.items():
                label = f"{name}, {count}x{height}x{width}, {layout}"
                try:
                    theirs = microseconds(by_torch, image)
                    if by_cvcuda(image) is None:
                        say(label, torch_us=theirs)
                        continue
                    ours = microseconds(by_cvcuda, image)
                    largest = (by_cvcuda(image).int() - by_torch(image).int()).abs().max()
                    say(
                        label,
                        torch_us=theirs,
                        cvcuda_us=ours,
                        times=theirs / ours,
                        largest=float(largest),
                    )
                except Exception as error:
                    say(label, failed=f"{type(error).__name__}: {error}"[:160])


class _Plane:
    """A plane H×W for CV-CUDA."""

    def __init__(self, plane: torch.Tensor) -> None:
        self.plane = plane
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": tuple(plane.shape),
            "strides": plane.stride(),
            "typestr": "|u1",
            "data": (plane.data_ptr(), False),
            "stream": -1,
        }


@part
def sizes_together() -> None:
    """Microseconds for images of eight sizes to 224x224: one by one, and by CV-CUDA at once."""
    library: Any = cv_cuda.find_cvcuda() if ON_GPU else None
    draw = torch.Generator().manual_seed(0)
    sizes = [(427, 640), (640, 427), (400, 600), (500, 500), (480, 720), (640, 480), (300, 400)]
    images = [
        torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=draw).to(DEVICE)
        for size in [*sizes, (600, 800)] * (4 if ON_GPU else 1)
    ]
    expected = torch.cat([sampling.interpolated(image, 224, 224) for image in images])

    def torch_alone() -> Any:
        return [sampling.interpolated(image, 224, 224) for image in images]

    def alone() -> Any:
        return [cv_cuda.resized(image, 224, 224) for image in images]

    def planes_of(tensors: list[Any]) -> list[Any]:
        return [_Plane(plane) for tensor in tensors for plane in tensor.flatten(0, 1).unbind()]

    def tensor_batch() -> Any:
        result = torch.empty((len(images), 3, 224, 224), dtype=torch.uint8, device=DEVICE)
        layout = library.TensorLayout("HW")
        library.hq_resize_into(
            library.as_tensors(planes_of([result]), layout),
            library.as_tensors(planes_of(images), layout),
            antialias=False,
            interpolation=library.Interp.LINEAR,
            stream=cv_cuda._stream(library, result),
        )
        return result

    def image_batch() -> Any:
        result = torch.empty((len(images), 3, 224, 224), dtype=torch.uint8, device=DEVICE)
        library.resize_into(
            library.as_images(planes_of([result]), library.Format.U8),
            library.as_images(planes_of(images), library.Format.U8),
            library.Interp.LINEAR,
            stream=cv_cuda._stream(library, result),
        )
        return result

    for name, work in (
        ("torch, one by one", torch_alone),
        ("CV-CUDA, one by one", alone),
        ("CV-CUDA, hq_resize of planes", tensor_batch),
        ("CV-CUDA, resize of images", image_batch),
    ):
        label = f"{len(images)} images of eight sizes, {name}"
        if library is None and name != "torch, one by one":
            continue
        try:
            result = work()
            result = torch.cat(result) if isinstance(result, list) else result
            largest = float((result.int() - expected.int()).abs().max())
            say(label, us=1e6 / per_second(work, 1, SECONDS / 2), largest=largest)
        except Exception as error:
            say(label, failed=f"{type(error).__name__}: {error}"[:200])


async def rate(config: dict[str, Any], files: list[bytes], clients: int) -> float:
    """Return images/s of a pipeline in this process."""
    async with Pipeline.load(config) as pipeline:

        async def client(first: int, end: float) -> int:
            done = 0
            while time.perf_counter() < end:
                await pipeline({"data": files[(first + done) % len(files)]})
                done += 1
            return done

        async def run(seconds: float) -> float:
            started = time.perf_counter()
            done = await asyncio.gather(
                *[client(number, started + seconds) for number in range(clients)]
            )
            return sum(done) / (time.perf_counter() - started)

        await run(SECONDS / 2)
        return await run(3 * SECONDS)


@part
def in_a_node() -> None:
    """Images/s of S[DecodeTensor,ResizeTensor,CvtColorTensor] in process, 3 instances, max 32.

    Of one size, and of eight sizes, where images are not resized together.
    """
    alike = synthetic_jpegs(8)
    sizes = [(640, 427), (427, 640), (600, 400), (500, 500), (720, 480), (480, 640), (400, 300)]
    mixed = [
        jpeg
        for width, height in (*sizes, (800, 600))
        for jpeg in synthetic_jpegs(1, width=width, height=height, seed=width)
    ]
    found = cv_cuda.find_cvcuda
    for decoder, libraries, name in (
        ("cpu", "CV-CUDA", "one size"),
        ("nvjpeg", "CV-CUDA", "one size"),
        ("nvimgcodec", "CV-CUDA", "one size"),
        ("nvjpeg", "CV-CUDA", "eight sizes"),
        ("nvimgcodec", "CV-CUDA", "eight sizes"),
        ("nvjpeg", "torch", "one size"),
    ):
        config = {
            "net": {
                "backend": "S[DecodeTensor,ResizeTensor,CvtColorTensor]",
                "decoder": decoder,
                "resize_h": 224,
                "resize_w": 224,
                "color": "bgr",
                "device": DEVICE,
                "max": 32,
                "instance_num": 3,
            },
        }
        label = f"node, {decoder}, pixels by {libraries}, {name}"
        if libraries == "torch":
            cv_cuda.find_cvcuda = lambda: None  # type: ignore[assignment]  # for the comparison
        try:
            files = alike if name == "one size" else mixed
            images = asyncio.run(rate(config, files, 256 if ON_GPU else 4))
            say(label, images_per_s=images)
        except Exception as error:
            say(label, failed=f"{type(error).__name__}: {error}"[:160])
        finally:
            cv_cuda.find_cvcuda = found


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/gpu_bench images", description=__doc__)
    names = [function.__name__ for function in PARTS]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - {*names}:
        parser.error(f"unknown parts {', '.join(sorted(unknown))}: expected {', '.join(names)}")
    if not ON_GPU:
        print("torch finds no GPU on this machine: the figures say nothing", flush=True)
    cv2.setNumThreads(1)
    file = arguments.json
    if file is None and "OUT" in os.environ:
        file = Path(os.environ["OUT"], "images_bench.json")
    for function in PARTS:
        if arguments.parts and function.__name__ not in arguments.parts:
            continue
        started = time.perf_counter()
        try:
            function()
        except Exception as error:
            traceback.print_exc()
            say(function.__name__, failed=f"{type(error).__name__}: {error}"[:160])
        say(function.__name__, seconds=time.perf_counter() - started)
        if file is not None:
            file.write_text(json.dumps(ROWS, indent=1))


if __name__ == "__main__":
    main()
