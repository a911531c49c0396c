"""Decoders that work on a GPU: torchvision's nvJPEG, and nvImageCodec."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import cv2
import numpy as np

from ...engines.processors import threads_per_instance
from ...errors import BackendError
from ..header import Header

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("penstock.backends.image")

FILE_ENDINGS = {
    "JPEG": ".jpg",
    "JPEG2000": ".jp2",
    "TIFF": ".tiff",
    "PNG": ".png",
    "WEBP": ".webp",
}
"""The formats that nvImageCodec gets. OpenCV writes a sample of each by its ending."""

OPTIONS = ":fancy_upsampling=1"
"""Colours are interpolated between their samples, as OpenCV does it, and not repeated."""


class GpuDecoder(Protocol):
    """Decodes files on a GPU for DecodeTensor."""

    def suits(self, header: Header) -> bool:
        """Return whether a file with this header is decoded nearly as OpenCV decodes it."""
        ...

    def decode(self, files: list[bytes]) -> list[torch.Tensor | None]:
        """Return each image as 3×H×W in RGB, uint8, in the order of the current stream.

        None stands for each file that the decoder refuses. Errors of the device are raised.
        """
        ...


def jpeg_suits(header: Header) -> bool:
    """Return whether a JPEG has the colours that all decoders read alike.

    nvJPEG can't read CMYK, and assumes that three channels are YCbCr.
    """
    jpeg = header.jpeg
    return (
        jpeg is not None
        and jpeg.channels in (1, 3)
        and not jpeg.named_rgb
        and jpeg.adobe_transform != 0
        and jpeg.orientation is not None
    )


# nvJPEG


class NvJpeg:
    """torchvision's nvJPEG."""

    __slots__ = ("_decode",)

    def __init__(self, decode: Callable[[list[bytes]], list[torch.Tensor]]) -> None:
        """`decode` raises RuntimeError for a batch with a file that it refuses."""
        self._decode = decode

    def suits(self, header: Header) -> bool:
        """Return whether it is an upright JPEG in RGB or grey: nvJPEG ignores EXIF's rotation."""
        return jpeg_suits(header) and header.jpeg is not None and header.jpeg.orientation == 1

    def decode(self, files: list[bytes]) -> list[torch.Tensor | None]:
        import torch

        try:
            return list(self._decode(files))
        except RuntimeError as error:
            if isinstance(
                error, (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", ()))
            ) or "CUDA error" in str(error):
                raise
            if len(files) > 1:  # it does not say which one
                return [self.decode([file])[0] for file in files]
            logger.debug("nvJPEG refuses an image: %s", error)
            return [None]


def find_nvjpeg(device: torch.device) -> NvJpeg:
    """Return torchvision's nvJPEG.

    Raises BackendError if torchvision is missing, does not fit torch, or is built without it.
    """
    import torch

    try:
        io: Any = import_module("torchvision.io")
        rgb = io.ImageReadMode.RGB

        def decode(files: list[bytes]) -> list[torch.Tensor]:
            # Copies, because torch warns about read-only memory. Not by NumPy, which would release
            # the GIL for each.
            encoded = [torch.from_numpy(np.frombuffer(bytearray(file), np.uint8)) for file in files]
            images: list[torch.Tensor] = io.decode_jpeg(encoded, mode=rgb, device=device)
            return images

        decode([_sample("JPEG")])  # tests nvJPEG, and loads it
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise BackendError(
            'DecodeTensor: decoder = "nvjpeg" needs torchvision with nvJPEG, which can\'t be '
            f"used on {device} ({type(error).__name__}: {error}): install a torchvision that fits "
            'torch, or set decoder = "cpu"'
        ) from error
    return NvJpeg(decode)


# nvImageCodec


_on_gpu: dict[int, list[str]] = {}
"""The formats that nvImageCodec decodes on a GPU, by its number. To ask takes half a second."""

MAX_KEPT_BYTES = 8 << 20
"""The largest image whose memory is kept for the next batch: 2.8 megapixels."""

MAX_KEPT = 64
"""The most images whose memory is kept."""


class NvImageCodec:
    """nvImageCodec: JPEG on the GPU, and what it has libraries for; the rest on CPU threads.

    For one thread. Without a stream it decodes everything on the CPU: for tests.
    """

    __slots__ = ("_decoder", "_kept", "_library", "_max_pixels", "_params", "_stream", "on_gpu")

    formats: ClassVar[frozenset[str]] = frozenset(FILE_ENDINGS)

    def __init__(
        self,
        library: Any,
        device: torch.device,
        stream: torch.cuda.Stream | None,
        threads: int,
        max_pixels: int,
    ) -> None:
        """Raises RuntimeError if the library can't use the device."""
        self._library = library
        self._max_pixels = sys.maxsize  # the bound is for files of clients, not for our samples
        self._stream = 0 if stream is None else stream.cuda_stream
        self._kept: list[Any] = []
        self._params = library.DecodeParams(
            apply_exif_orientation=True,
            color_spec=library.ColorSpec.SRGB,
            sample_format=library.SampleFormat.P_RGB,
        )
        self._open(device if stream is not None else None, threads)
        self._max_pixels = max_pixels

    def _open(self, device: torch.device | None, threads: int) -> None:
        """Create the decoder, and find out what it decodes on the GPU."""
        library, kinds = self._library, self._library.BackendKind
        place = library.NVIMGCODEC_DEVICE_CPU_ONLY if device is None else device.index

        def decoder(*backends: Any) -> Any:
            return library.Decoder(
                device_id=place,
                max_num_cpu_threads=threads,
                backends=[library.Backend(kind) for kind in backends] or None,
                options=OPTIONS,
            )

        if device is None:
            self._decoder, self.on_gpu = decoder(kinds.CPU_ONLY), list[str]()
            return
        if place not in _on_gpu:
            self._decoder = decoder(kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU)
            _on_gpu[place] = [
                name for name in FILE_ENDINGS if self.decode([_sample(name)])[0] is not None
            ]
        self.on_gpu = _on_gpu[place]
        self._decoder = decoder()
        if self.decode([_sample("JPEG")])[0] is None:
            raise RuntimeError("it does not decode a JPEG")

    def suits(self, header: Header) -> bool:
        if header.format == "JPEG":
            return jpeg_suits(header)
        return header.format in self.formats and header.inner is None

    def decode(self, files: list[bytes]) -> list[torch.Tensor | None]:
        """Decode a batch. Its images are valid until the next one: their memory is used again."""
        streams = [self._parsed(file) for file in files]
        again = {"images": self._kept[: len(files)]} if len(self._kept) >= len(files) else {}
        images = self._decoder.decode(
            streams, params=self._params, cuda_stream=self._stream, **again
        )
        decoded = [None if image is None else self._tensor(image) for image in images]
        if self._stream:
            self._keep(images, bool(again))
        return decoded

    def _keep(self, images: list[Any], again: bool) -> None:
        """Keep the memory of images for the next batch. It need not be allocated then."""
        kept = self._kept if again or len(images) < len(self._kept) else images
        self._kept = [
            image for image in kept if image is not None and image.capacity <= MAX_KEPT_BYTES
        ][:MAX_KEPT]

    def _tensor(self, image: Any) -> torch.Tensor:
        import torch
        from torch.utils.dlpack import from_dlpack

        if not self._stream:  # its DLPack works on a GPU only
            return torch.from_numpy(np.array(image))
        # -1: no stream waits for another. It was decoded on the stream on which it will be read.
        decoded: torch.Tensor = from_dlpack(image.to_dlpack(-1))
        return decoded

    def _parsed(self, file: bytes) -> Any:
        """Return a file for the decoder.

        None if nvImageCodec can't parse it, or reads another, larger size in it than we do.
        """
        try:
            stream = self._library.CodeStream(file)
            return stream if stream.height * stream.width <= self._max_pixels else None
        except RuntimeError as error:
            logger.debug("nvImageCodec refuses an image: %s", error)
            return None


def find_nvimgcodec(
    device: torch.device,
    stream: torch.cuda.Stream | None,
    *,
    instances: int,
    max_pixels: int,
) -> NvImageCodec:
    """Return nvImageCodec for this thread's stream on the device.

    Raises BackendError if it is missing, or can't be used.
    """
    # It would write lines to stderr for each damaged file that a client sends.
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    try:
        library = import_module("nvidia.nvimgcodec")
        found = NvImageCodec(library, device, stream, threads_per_instance(instances), max_pixels)
    except ModuleNotFoundError as error:
        raise BackendError(
            'DecodeTensor: decoder = "nvimgcodec" needs extra nvimgcodec, which is not installed '
            f"here ({error}): pip install 'penstock-serve[nvimgcodec]'"
        ) from error
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError) as error:
        raise BackendError(
            f"DecodeTensor: nvImageCodec can't be used on {device} ({type(error).__name__}: "
            f"{error}): install the nvidia-nvimgcodec package of this machine's CUDA, or set "
            'decoder = "cpu"'
        ) from error
    return found


def _sample(name: str) -> bytes:
    """Return a small file of that format."""
    _, encoded = cv2.imencode(FILE_ENDINGS[name], np.zeros((32, 32, 3), np.uint8))
    return encoded.tobytes()
