"""Decoders of JPEGs side by side, `reduce`, and batches of DecodeTensor, on photographs of 100 kB.

Each decoder that is installed is measured, in turn with the others: processor time on one thread,
which a busy machine changes little, and images/s on as many threads as there are processors.
"""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import version
from statistics import median
from typing import Any

import cv2
import numpy as np
from figures import ROOT, Figure, of_runs, say
from PIL import Image

from penstock.backends.base import Context
from penstock.backends.image import jpeg_pixels
from penstock.backends.image.decode import decode
from penstock.pipelines.config.load import load

PART = "decode"
BYTES = 100_000
BATCH = 8
Decoder = Callable[[bytes], Any]
PROCESSORS = len(os.sched_getaffinity(0))


def measure(quick: bool) -> list[Figure]:
    rounds = 5 if quick else 15
    cv2.setNumThreads(1)
    pictures = photographs()
    files = [of_size(picture) for picture in pictures]
    return [
        *_decoders(files, rounds),
        *_progressive(pictures, rounds),
        *_reduced(pictures, rounds),
        *_levels(pictures),
        *_answers(pictures),
        *_batches(pictures, rounds),
    ]


def photographs() -> list[Image.Image]:
    """Return scikit-learn's two photographs, that of the example, and their halves. Without
    scikit-learn: noise with the spectrum of photographs.
    """
    try:
        load_sample_image = import_module("sklearn.datasets").load_sample_image
    except ImportError:
        say("   scikit-learn is not installed: noise in place of photographs")
        return [_noise(seed) for seed in range(4)]
    whole = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    whole.append(Image.open(ROOT / "examples" / "photograph" / "coffee.jpg").convert("RGB"))
    halves = [image.crop((0, 0, image.width // 2, image.height)) for image in whole]
    return whole + [half.resize((half.width * 2, half.height * 2)) for half in halves]


def _noise(seed: int, width: int = 640, height: int = 427) -> Image.Image:
    """Return noise whose amplitude falls with its frequency, as that of photographs does."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(generator.normal(size=(3, height, width))) / frequency
    noise = np.fft.irfft2(spectrum, (height, width)).transpose(1, 2, 0)
    levels = 128 + 55 * noise / noise.std()
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def of_size(image: Image.Image, size: int = BYTES) -> bytes:
    """Return a JPEG of quality 90 and about this many bytes: the image is resized for that."""
    encoded = encode(image)
    for _ in range(4):
        factor = (size / len(encoded)) ** 0.5
        resized = image.resize((int(image.width * factor), int(image.height * factor)))
        encoded, image = encode(resized), resized
    return encoded


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **{**({"quality": 90} if kind == "JPEG" else {}), **options})
    return buffer.getvalue()


def penstock(encoded: bytes) -> Any:
    return decode(encoded, 10**8)


def decoders() -> dict[str, Decoder]:
    """Return what decodes a JPEG to H×W×3 in BGR, by name and version, OpenCV first."""

    def opencv(encoded: bytes) -> Any:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)

    def pillow(encoded: bytes) -> Any:
        return np.ascontiguousarray(np.asarray(Image.open(io.BytesIO(encoded)))[:, :, ::-1])

    def torchvision() -> Decoder:
        torch, vision = import_module("torch"), import_module("torchvision.io")
        torch.set_num_threads(1)

        def decode_jpeg(encoded: bytes) -> Any:
            data = torch.from_numpy(np.frombuffer(bytearray(encoded), np.uint8))
            return (
                vision.decode_jpeg(data, vision.ImageReadMode.RGB).numpy()[::-1].transpose(1, 2, 0)
            )

        return decode_jpeg

    def simplejpeg() -> Decoder:
        function = import_module("simplejpeg").decode_jpeg
        return lambda encoded: function(encoded, "BGR")

    found: dict[str, Decoder] = {
        f"OpenCV {cv2.__version__}": opencv,
        f"Pillow {version('pillow')}": pillow,
    }
    makers: dict[str, Callable[[], Decoder]] = {
        "simplejpeg": simplejpeg,
        "PyTurboJPEG": lambda: import_module("turbojpeg").TurboJPEG().decode,
        "imagecodecs": lambda: _imagecodecs(import_module("imagecodecs")),
        "torchvision": torchvision,
    }
    for name, make in makers.items():
        try:
            found[f"{name} {version(name)}"] = make()
        except (ImportError, OSError, RuntimeError) as error:
            say(f"   {name} is not measured: {type(error).__name__}: {error}")
    return found


def _imagecodecs(module: Any) -> Decoder:
    return lambda encoded: module.jpeg8_decode(encoded, outcolorspace="BGR")


def _decoders(files: list[bytes], rounds: int) -> list[Figure]:
    found = {**decoders(), "Penstock": penstock}
    times = in_turn({name: _over(files, function) for name, function in found.items()}, rounds)
    rates = in_turn(
        {name: _on_all(files, function) for name, function in found.items()},
        max(rounds // 3, 1),
        clock=time.perf_counter,
    )
    expected = [next(iter(found.values()))(encoded) for encoded in files]
    figures = []
    for name, function in found.items():
        equal = sum(
            np.array_equal(function(encoded), pixels)
            for encoded, pixels in zip(files, expected, strict=True)
        )
        rate = 4 * PROCESSORS * len(files) / min(rates[name])
        figures.append(
            of_runs(
                PART,
                f"{name}, a JPEG of 100 kB",
                [1000 * seconds / len(files) for seconds in times[name]],
                "ms",
                note=f"{rate:,.0f} images/s on {PROCESSORS} threads; "
                f"{equal} of {len(files)} have OpenCV's pixels",
            )
        )
    return figures


def _progressive(pictures: list[Image.Image], rounds: int) -> list[Figure]:
    """Measure progressive JPEGs with simplejpeg and without."""
    if jpeg_pixels.decode_jpeg is None:
        return []
    files = [encode(picture, progressive=True) for picture in pictures]
    installed = jpeg_pixels.decode_jpeg

    def without(encoded: bytes) -> Any:
        jpeg_pixels.decode_jpeg = None
        try:
            return penstock(encoded)
        finally:
            jpeg_pixels.decode_jpeg = installed

    runs = {"with": _over(files, penstock), "without": _over(files, without)}
    times = in_turn(runs, rounds)
    return [_ratio("a progressive JPEG: time with simplejpeg ÷ without", times, "with", "without")]


def _reduced(pictures: list[Image.Image], rounds: int) -> list[Figure]:
    """Measure an expression with `reduce` and without, on photographs of three sizes."""
    figures = []
    for scale in 2, 4, 8:
        size = (320 * scale, 240 * scale)
        files = [encode(picture.resize(size)) for picture in pictures]
        for resizer, keys in (
            ("ResizeMat", {"resize_h": 224, "resize_w": 224}),
            ("PillowResizeMat", {"resize_short": 224}),
        ):
            config = {"backend": f"S[DecodeMat,{resizer}]", **keys}
            whole, reduced = _both(config)
            runs = {"reduced": _over(files, reduced), "whole": _over(files, whole)}
            times = in_turn(runs, rounds)
            what = f"{size[0]}×{size[1]}, DecodeMat and {resizer} to 224: time reduced ÷ whole"
            figures.append(_ratio(what, times, "reduced", "whole"))
    return figures


def _both(keys: Mapping[str, Any]) -> list[Decoder]:
    """Return what runs the expression of a file's one node on this thread, without `reduce` and
    with it.
    """

    def expression(reduce: bool) -> Decoder:
        (node,) = load({**keys, "reduce": reduce}).nodes.values()
        backend = node.instance_groups[0].spec.create(Context(node="bench", device="cpu"))

        def run(encoded: bytes) -> Any:
            item: dict[str, Any] = {"data": encoded}
            backend.forward([item])
            return item["result"]

        return run

    return [expression(False), expression(True)]


def _levels(pictures: list[Image.Image]) -> list[Figure]:
    """Compare the pixels with `reduce` and without, at 1/2, 1/4 and 1/8, and at 2/3 of that."""
    figures = []
    for resizer in "ResizeMat", "PillowResizeMat":
        for scale in 2, 4, 8:
            levels = []
            for picture in pictures:
                encoded = encode(picture)
                for divisor in (scale, scale * 1.5):
                    keys = {
                        "backend": f"S[DecodeMat,{resizer}]",
                        "resize_w": int(picture.width / divisor),
                        "resize_h": int(picture.height / divisor),
                    }
                    whole, reduced = _both(keys)
                    difference = whole(encoded).astype(int) - reduced(encoded)
                    levels.append(np.abs(difference).ravel())
            every = np.concatenate(levels)
            what = f"{resizer} at 1/{scale}: difference by reduce, mean"
            note = f"99 % up to {np.percentile(every, 99):.0f}, at most {every.max()}"
            figures.append(Figure(PART, what, float(every.mean()), "levels of 255", note=note))
    return figures


def _answers(pictures: list[Image.Image]) -> list[Figure]:
    """Compare the classes that the example of photographs gives with `reduce` and without."""
    parts = _parts(pictures)
    files = [encode(part) for part in parts]
    again = [encode(Image.open(io.BytesIO(file)), quality=85) for file in files]
    figures = []
    for resizer, keys in (
        ("ResizeMat", {"resize_h": 224, "resize_w": 224}),
        ("PillowResizeMat", {"resize_short": 256}),
    ):
        expression = f"S[DecodeMat,{resizer},CenterCropMat,CvtColorMat,Mat2Tensor,OnnxTensor]"
        model = str(ROOT / "examples" / "photograph" / "photograph.onnx")
        engine = {"model": model, "mean": 127, "std": 128, "color": "rgb"}
        crop = {"crop_h": 224, "crop_w": 224}
        whole, reduced = _both({"backend": expression, **keys, **crop, **engine})
        classes = [int(whole(file).argmax()) for file in files]
        figures += [
            Figure(
                PART,
                f"{resizer}, EfficientNet-Lite0: same class of {len(files)}, {what}",
                sum(
                    expected == int(run(file).argmax())
                    for expected, file in zip(classes, others, strict=True)
                ),
            )
            for what, run, others in (
                ("with reduce", reduced, files),
                ("saved again with quality 85", whole, again),
            )
        ]
    return figures


def _parts(pictures: list[Image.Image]) -> list[Image.Image]:
    """Return parts of the pictures, at twice their size, all large enough to be reduced."""
    generator = random.Random(1)
    parts = []
    for picture in pictures:
        large = picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.LANCZOS)
        for _ in range(24):
            width, height = (generator.randint(512, min(large.size)) for _ in range(2))
            left = generator.randint(0, large.width - width)
            top = generator.randint(0, large.height - height)
            parts.append(large.crop((left, top, left + width, top + height)))
    return parts


def _batches(pictures: list[Image.Image], rounds: int) -> list[Figure]:
    """Measure a batch of DecodeTensor on one thread and on all processors."""
    try:
        module = import_module("penstock.backends.image.tensor.decode")
        import_module("torch")
    except ImportError:
        return []
    figures = []
    for kind, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {"quality": 90})):
        batch = [encode(picture, kind, **options) for picture in pictures] * BATCH
        backends = {}
        for name, instances in (("all", 1), ("one", PROCESSORS)):
            backends[name] = module.DecodeTensor()
            context = Context(node="bench", device="cpu", instances=instances)
            backends[name].init(module.DecodeTensorParams(), context)
        runs = {name: _batch(backend, batch[:BATCH]) for name, backend in backends.items()}
        times = in_turn(runs, rounds, clock=time.perf_counter)
        what = f"DecodeTensor, {BATCH} images of {kind}: rate on {PROCESSORS} threads ÷ on one"
        figures.append(_ratio(what, times, "one", "all"))
        for backend in backends.values():
            backend.close()
    return figures


def _batch(backend: Any, files: list[bytes]) -> Callable[[], None]:
    def run() -> None:
        items: list[dict[str, Any]] = [{"data": file} for file in files]
        backend.forward(items)
        assert all("result" in item for item in items)

    return run


def _over(files: list[bytes], function: Decoder) -> Callable[[], None]:
    def run() -> None:
        for encoded in files:
            function(encoded)

    return run


def _on_all(files: list[bytes], function: Decoder) -> Callable[[], None]:
    run = _over(files * 4, function)

    def on_threads() -> None:
        with ThreadPoolExecutor(PROCESSORS) as threads:
            list(threads.map(lambda _: run(), range(PROCESSORS)))

    return on_threads


def in_turn(
    runs: Mapping[str, Callable[[], None]],
    rounds: int,
    clock: Callable[[], float] = time.thread_time,
) -> dict[str, list[float]]:
    """Run each `rounds` times, in turn, and return the seconds of each run."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for number in range(-1, rounds):  # the first is to warm up
        for name in order:
            started = clock()
            runs[name]()
            if number >= 0:
                times[name].append(clock() - started)
        random.shuffle(order)  # a decoder leaves the caches and the heap to the next one
    return times


def _ratio(what: str, times: Mapping[str, list[float]], ours: str, other: str) -> Figure:
    runs = [a / b for a, b in zip(times[ours], times[other], strict=True)]
    milliseconds = (f"{1000 * median(times[name]):.3g} ms {name}" for name in (ours, other))
    return of_runs(PART, what, runs, note=", ".join(milliseconds))
