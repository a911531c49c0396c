"""Conversions of images: to another channel order, to and from tensors, to floats, and to files."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..allocation import counted, empty_array
from ..base import Backend, Context, Params
from ..errors import InvalidInput
from ..item import Item
from .files import NumberedFiles
from .pixels import CHANNELS, Color, ImageBackend, image_of, owned

CONVERSIONS = {
    ("bgr", "rgb"): cv2.COLOR_BGR2RGB,
    ("rgb", "bgr"): cv2.COLOR_RGB2BGR,
    ("bgr", "gray"): cv2.COLOR_BGR2GRAY,
    ("rgb", "gray"): cv2.COLOR_RGB2GRAY,
    ("gray", "bgr"): cv2.COLOR_GRAY2BGR,
    ("gray", "rgb"): cv2.COLOR_GRAY2RGB,
}


class CvtColorMatParams(Params):
    color: Color = Field(description="the channel order to convert to")


class CvtColorMat(ImageBackend):
    """Pixels in another channel order.

    `data` and `result`: H×W×C, uint8, uint16 or float32. Reads the item's `color` (without one:
    "gray" for one channel, else OpenCV's "bgr") and sets it.

    Raises InvalidInput for another shape or dtype, or for a `color` that does not fit.
    """

    parameters: ClassVar[type[Params] | None] = CvtColorMatParams
    keeps_size = True
    color: Color

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ("color",)

    def init(self, params: CvtColorMatParams, context: Context) -> None:
        self.color = params.color

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        source = item.get("color") or ("gray" if image.shape[2] == 1 else "bgr")
        if CHANNELS.get(source) != image.shape[2]:
            raise InvalidInput(
                f"CvtColorMat: color {source!r} does not fit an image of shape {image.shape}: "
                f"expected one of {', '.join(CHANNELS)}"
            )
        if source == self.color:
            result = owned(image)
        else:
            # Into an array of ours: OpenCV drops the channel axis of grey images.
            result = empty_array((*image.shape[:2], CHANNELS[self.color]), image.dtype)
            cv2.cvtColor(image, CONVERSIONS[source, self.color], dst=result)
        item["color"] = self.color
        return result


class Mat2TensorParams(Params):
    data_format: Literal["nchw", "nhwc"] = Field("nchw", description="order of the tensor's axes")
    device: str | int = Field(
        "cpu",
        description="accepted from torchpipe's files, without effect: the result is NumPy, and the "
        "engine moves it",
    )


class Mat2Tensor(Backend):
    """An image as a tensor with a batch dimension. Its dtype is kept.

    `data`: H×W×C, uint8, uint16 or float32. `result`: 1×C×H×W (`nhwc`: 1×H×W×C), C-contiguous. The
    engine's fused `mean` and `std` normalise it.

    Raises InvalidInput for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = Mat2TensorParams
    keeps_size = True
    blocks = "its time grows with the image"
    in_front = True
    takes, gives = "image", "tensor"
    max = 1
    data_format: str

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ()

    def init(self, params: Mat2TensorParams, context: Context) -> None:
        self.data_format = params.data_format

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            image = image_of(item["data"], "Mat2Tensor")
            if self.data_format == "nhwc":
                item["result"] = counted(np.array(image[np.newaxis]))
                continue
            height, width, channels = image.shape
            tensor = empty_array((1, channels, height, width), image.dtype)
            # Seven times as fast as NumPy's transposing copy (5 µs instead of 37 for 224×224×3).
            cv2.split(image, list(tensor[0]))
            item["result"] = tensor


class Tensor2MatParams(Params):
    data_format: Literal["nchw", "nhwc"] = Field(
        "nchw", description="order of the axes of a four-dimensional tensor"
    )


class Tensor2Mat(Backend):
    """An image from a tensor with a batch dimension of 1, the reverse of Mat2Tensor.

    Its dtype is kept.

    `data`: NumPy, or torch on any device, 1×C×H×W (`nhwc`: 1×H×W×C), uint8, uint16 or float32.
    Three dimensions are read as H×W×C and two as H×W, as torchpipe reads them. `result`: H×W×C,
    NumPy.

    Raises InvalidInput for another shape or dtype.
    """

    parameters: ClassVar[type[Params] | None] = Tensor2MatParams
    keeps_size = True
    blocks = "its time grows with the image"
    in_front = True
    takes, gives = "array", "image"
    max = 1
    data_format: str

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ()

    def init(self, params: Tensor2MatParams, context: Context) -> None:
        self.data_format = params.data_format

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item["result"] = self._image(_numpy(item["data"]))

    def _image(self, tensor: Any) -> NDArray[Any]:
        if isinstance(tensor, np.ndarray) and tensor.ndim == 4:
            if tensor.shape[0] != 1:
                raise InvalidInput(
                    "Tensor2Mat: expected a tensor with one image (a first dimension of 1), found "
                    f"shape {tensor.shape}"
                )
            tensor = tensor[0] if self.data_format == "nhwc" else tensor[0].transpose(1, 2, 0)
        return owned(image_of(tensor, "Tensor2Mat"))


class FloatMat(ImageBackend):
    """An image as float32. Its values are kept, not scaled to 0 to 1.

    `data`: H×W×C, uint8, uint16 or float32. `result`: H×W×C, float32, a copy.

    Raises InvalidInput for another shape or dtype.
    """

    keeps_size = True

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        return counted(image.astype(np.float32))


class SaveMatParams(Params):
    save_dir: str = Field(
        description="directory for the files; must exist; relative to the pipeline's file, else to "
        "the working directory"
    )


class SaveMat(ImageBackend):
    """Writes each image to a file, for debugging. `result` is `data`.

    It is slow, and nothing deletes the files. `data`: H×W×C with C of 1, 3 or 4. The file is
    NODE_INSTANCE_NUMBER.png for uint8 and uint16, .tiff for float32. An item whose `color` is "rgb"
    is written so that viewers show its true colours. Existing files are never overwritten.

    Raises InvalidInput for another shape or dtype, and BackendError if the directory is missing or
    can't be written to.
    """

    parameters: ClassVar[type[Params] | None] = SaveMatParams
    in_front = False  # it numbers its files, and each front process would number them alike
    files: NumberedFiles

    def init(self, params: SaveMatParams, context: Context) -> None:
        self.files = NumberedFiles(params.save_dir, context, "SaveMat")

    def transform(self, image: NDArray[Any], item: Item) -> NDArray[Any]:
        if image.shape[2] not in (1, 3, 4):
            raise InvalidInput(
                f"SaveMat: expected an image of 1, 3 or 4 channels, found shape {image.shape}"
            )
        is_rgb = item.get("color") == "rgb" and image.shape[2] == 3
        extension = ".tiff" if image.dtype == np.float32 else ".png"
        _, encoded = cv2.imencode(
            extension, cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if is_rgb else image
        )
        self.files.write(encoded.tobytes(), extension)
        return owned(image)


def _numpy(data: Any) -> Any:
    """Return a torch tensor as NumPy, anything else unchanged.

    torch isn't imported here: the code that made the tensor has imported it.
    """
    if type(data).__module__.partition(".")[0] != "torch":
        return data
    try:
        return data.detach().cpu().numpy()
    except (AttributeError, RuntimeError, TypeError) as error:  # bfloat16, sparse, or not a tensor
        raise InvalidInput(
            "Tensor2Mat: expected a dense tensor of dtype uint8, uint16 or float32, found "
            f"{data!r:.100}: {error}"
        ) from error
