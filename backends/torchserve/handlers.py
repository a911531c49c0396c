"""TorchServe's own handlers, which archives name and custom handlers derive from.

They have the names, attributes and answers of `ts.torch_handler`, and need neither torchvision nor
captum; explanations, which are captum's, are refused.
"""

from __future__ import annotations

import base64
import importlib
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import BackendError
from .context import Context
from .text import cleaned, ngrams, tokens
from .util import list_classes_from_module, load_label_mapping, map_class_to_label

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""The mean and deviation of ImageNet's pixels, from 0 to 1."""

LONG_SIDE_PIXELS = 256 * 100
"""Up to which the whole image is resized, as TorchServe does: to the bit the same."""


class BaseHandler:
    """Loads the archive's model, and runs it: `preprocess`, `inference`, `postprocess`."""

    def __init__(self) -> None:
        self.model: Any = None
        self.mapping: dict[str, str] | None = None
        self.device: Any = None
        self.map_location: str = "cpu"
        self.initialized = False
        self.context: Any = None
        self.manifest: Any = None
        self.model_pt_path: str | None = None
        self.model_yaml_config: dict[str, Any] = {}
        self.explain = False
        self.target = 0
        self.profiler_args: dict[str, Any] = {}

    def initialize(self, context: Context) -> None:
        """Load the model: eager with its `modelFile`, else TorchScript or ONNX by its name.

        Raises RuntimeError if the archive has none of them.
        """
        self.context = context
        self.model_yaml_config = context.model_yaml_config
        gpu = context.system_properties["gpu_id"]
        on_gpu = gpu is not None and torch.cuda.is_available()
        self.map_location = "cuda" if on_gpu else "cpu"
        self.device = torch.device(f"cuda:{gpu}" if on_gpu else "cpu")
        self.manifest = context.manifest
        folder = str(context.system_properties["model_dir"])
        described = self.manifest["model"]
        serialized = described.get("serializedFile")
        self.model_pt_path = str(Path(folder, serialized)) if serialized else None
        if described.get("modelFile"):
            self.model = self._load_pickled_model(
                folder, described["modelFile"], self.model_pt_path
            )
            self.model.to(self.device)
            self.model.eval()
        elif self.model_pt_path is not None and self.model_pt_path.endswith(".pt"):
            self.model = self._load_torchscript_model(self.model_pt_path)
            self.model.eval()
        elif self.model_pt_path is not None and self.model_pt_path.endswith(".onnx"):
            import onnxruntime

            self.model = onnxruntime.InferenceSession(self.model_pt_path)
        else:
            raise RuntimeError(
                f"found serializedFile {serialized!r}: expected a .pt or .onnx file, or a modelFile"
            )
        options = _compile_options(self.model_yaml_config.get("pt2"))
        if options is not None:
            self.model = torch.compile(self.model, **options)
        self.mapping = load_label_mapping(str(Path(folder, "index_to_name.json")))
        self.initialized = True

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        return torch.jit.load(model_pt_path, map_location=self.device)  # type: ignore[no-untyped-call]

    def _load_pickled_model(
        self, model_dir: str, model_file: str, model_pt_path: str | None
    ) -> Any:
        if not Path(model_dir, model_file).is_file():
            raise RuntimeError(f"the archive has no file {model_file} (modelFile)")
        module = importlib.import_module(Path(model_file).stem)
        classes = list_classes_from_module(module)
        if len(classes) != 1:
            raise ValueError(
                f"expected one class in {model_file}, found "
                f"{', '.join(cls.__name__ for cls in classes) or 'none'}"
            )
        model = classes[0]()
        if model_pt_path:
            model.load_state_dict(torch.load(model_pt_path, map_location=self.device))
        return model

    def preprocess(self, data: Any) -> Any:
        return torch.as_tensor(data, device=self.device)

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    def postprocess(self, data: Any) -> Any:
        return data.tolist()

    def handle(self, data: Any, context: Context) -> Any:
        """Run a batch. `data`: a dict of fields for each request. Returns an answer for each."""
        start = time.perf_counter()
        self.context = context
        if self._is_describe():
            answers: Any = [self.describe_handle()]
        else:
            ready = self.preprocess(data)
            answers = (
                self.explain_handle(ready, data)
                if self._is_explain()
                else self.postprocess(self.inference(ready))
            )
        milliseconds = round((time.perf_counter() - start) * 1000, 2)
        context.metrics.add_time("HandlerTime", milliseconds, None, "ms")
        return answers

    def explain_handle(self, data_preprocess: Any, raw_data: Any) -> Any:
        first = raw_data[0]
        inputs, target = None, 0
        if isinstance(first, dict):
            inputs = first.get("data") or first.get("body")
            target = first.get("target") or 0
        return self.get_insights(data_preprocess, inputs, target)

    def get_insights(self, tensor_data: Any, _: Any, target: Any = 0) -> Any:
        raise BackendError(
            "explanations need captum: write `get_insights` in a handler of your own"
        )

    def _is_explain(self) -> bool:
        self.explain = bool(self.context) and self._asks_for("explain")
        return self.explain

    def _is_describe(self) -> bool:
        return bool(self.context) and self._asks_for("describe")

    def _asks_for(self, header: str) -> bool:
        return bool(self.context.get_request_header(0, header) == "True")

    def describe_handle(self) -> Any:
        return None

    def get_device(self) -> Any:
        return self.device


def _compile_options(given: Any) -> dict[str, Any] | None:
    """Return the arguments of `torch.compile` that `pt2` of a configFile asks for, None for none.

    It is the name of a backend, a table of arguments, or one with a table `compile`.
    """
    if isinstance(given, str):
        return {"backend": given}
    if not isinstance(given, dict) or not given or "export" in given:
        return None
    options: dict[str, Any] = {**given.get("compile", given)}
    return options if options.pop("enable", True) else None


class VisionHandler(BaseHandler):
    """Images: the field `data` or `body` is a file, base64 of one, or nested lists of pixels."""

    image_processing: Any

    def initialize(self, context: Context) -> None:
        super().initialize(context)
        if not context.system_properties["limit_max_image_pixels"]:
            Image.MAX_IMAGE_PIXELS = None

    def preprocess(self, data: Any) -> Any:
        images = []
        for row in data:
            image = row.get("data") or row.get("body")
            if isinstance(image, str):
                image = base64.b64decode(image)
            if isinstance(image, bytes | bytearray):
                images.append(self.image_processing(Image.open(io.BytesIO(image))))
            else:
                images.append(torch.FloatTensor(image))
        return torch.stack(images).to(self.device)


def to_tensor(image: Any) -> torch.Tensor:
    """Return a Pillow image as torchvision's ToTensor does: C×H×W, float32, 0 to 1."""
    pixels = np.array(image, copy=True)
    pixels = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255)


def image_net_input(image: Any) -> torch.Tensor:
    """Return a Pillow image as a model of ImageNet takes it: its shorter side resized to 256
    pixels, the middle 224×224, normalised.
    """
    width, height = image.size
    long = int(256 * max(width, height) / min(width, height))
    size = (256, long) if width <= height else (long, 256)
    left, top = (round((side - 224) / 2) for side in size)
    area = (left, top, left + 224, top + 224)
    if long <= LONG_SIDE_PIXELS:
        cut = image.resize(size, Image.Resampling.BILINEAR).crop(area)
    else:  # a strip: a few KB of it may make gigabytes
        across, down = width / size[0], height / size[1]
        box = (area[0] * across, area[1] * down, area[2] * across, area[3] * down)
        cut = image.resize((224, 224), Image.Resampling.BILINEAR, box)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    return (to_tensor(cut) - mean) / std


class ImageClassifier(VisionHandler):
    """`image_classifier`: the probabilities of the `topk` best classes, by label."""

    topk = 5
    image_processing = staticmethod(image_net_input)

    def set_max_result_classes(self, topk: int) -> None:
        self.topk = topk

    def get_max_result_classes(self) -> int:
        return self.topk

    def postprocess(self, data: Any) -> Any:
        scores = torch.softmax(data, dim=1)
        values, classes = torch.topk(scores, min(self.topk, scores.shape[1]), dim=1)
        return map_class_to_label(values.tolist(), self.mapping, classes.tolist())


class ImageSegmenter(VisionHandler):
    """`image_segmenter`: the best class of each pixel and its probability."""

    image_processing = staticmethod(image_net_input)

    def postprocess(self, data: Any) -> Any:
        best = torch.softmax(data["out"], dim=1).max(dim=1)
        return torch.stack([best.indices.to(best.values.dtype), best.values], dim=3).tolist()


class ObjectDetector(VisionHandler):
    """`object_detector`: the boxes whose score is at least `threshold`, each by its label."""

    image_processing = staticmethod(to_tensor)
    threshold = 0.5

    def postprocess(self, data: Any) -> Any:
        return [self._boxes(found) for found in data]

    def _boxes(self, found: dict[str, Any]) -> list[dict[str, Any]]:
        good = found["scores"] >= self.threshold
        boxes, labels, scores = (found[key][good].tolist() for key in ("boxes", "labels", "scores"))
        return [
            {**map_class_to_label([[box]], self.mapping, [[label]])[0], "score": score}
            for box, label, score in zip(boxes, labels, scores, strict=True)
        ]


class TextHandler(BaseHandler):
    """Texts, by the vocabulary of `source_vocab.pt`."""

    def __init__(self) -> None:
        super().__init__()
        self.source_vocab: Any = None
        self.tokenizer = tokens

    def initialize(self, context: Context) -> None:
        super().initialize(context)
        path = self.manifest["model"].get("sourceVocab") or self.get_source_vocab_path(context)
        # A vocabulary is an object of torchtext, or a dict: both are more than tensors.
        self.source_vocab = torch.load(path, weights_only=False)

    def get_source_vocab_path(self, ctx: Context) -> str:
        path = Path(str(ctx.system_properties["model_dir"]), "source_vocab.pt")
        if not path.is_file():
            raise RuntimeError("the archive has no source_vocab.pt, which text handlers need")
        return str(path)

    def _tokenize(self, text: str) -> list[str]:
        return self.tokenizer(text)


class TextClassifier(TextHandler):
    """`text_classifier`: the probability of each class, by label. It takes one text at a time."""

    ngrams = 2

    def preprocess(self, data: Any) -> Any:
        text = data[0].get("data") or data[0].get("body")
        if isinstance(text, bytes | bytearray):
            text = text.decode("utf-8")
        words = self._tokenize(cleaned(text))
        indices = [self.source_vocab[word] for word in ngrams(words, self.ngrams)]
        return torch.as_tensor(indices, device=self.device), words

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        return super().inference(data[0], torch.as_tensor([0], device=self.device))

    def postprocess(self, data: Any) -> Any:
        scores = torch.softmax(data, dim=0 if data.dim() in {0, 1, 3} else 1)
        return map_class_to_label(scores.tolist(), self.mapping)
