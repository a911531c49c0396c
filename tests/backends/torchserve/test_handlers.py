"""What a handler of TorchServe's finds: its context, its metrics, and the package `ts`."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import logging
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.backends.base import Context as NodeContext
from penstock.backends.errors import BackendError
from penstock.backends.torchserve import handlers, modules, util
from penstock.backends.torchserve.backend import TorchServeHandler, TorchServeHandlerParams
from penstock.backends.torchserve.context import Context, RequestProcessor
from penstock.backends.torchserve.loading import own_modules
from penstock.backends.torchserve.metrics import Dimension, MetricTypes


def context(folder: Path, **model: Any) -> Context:
    made = Context("m", str(folder), {"model": model}, 4, None, "1")
    made.request_processor = [RequestProcessor({"X-Tenant": "a"}), RequestProcessor({})]
    made.request_ids = {0: "first", 1: "second"}
    return made


def test_the_context(tmp_path: Path) -> None:
    made = context(tmp_path)
    assert made.system_properties["model_dir"] == str(tmp_path)
    assert (made.system_properties["gpu_id"], made.system_properties["batch_size"]) == (None, 4)
    assert made.get_request_id(1) == "second" and made.get_request_id(7) is None
    assert made.get_request_header(0, "x-tenant") == "a"
    assert made.get_request_header(1, "x-tenant") is None
    assert made.get_all_request_header(0) == {"X-Tenant": "a"}
    assert made.get_sequence_id(0) is None
    made.set_response_content_type(0, "text/plain")
    made.set_response_header(0, "x", "y")
    assert made.get_response_content_type(0) == "text/plain"
    assert made.get_response_headers(0) == {"content-type": "text/plain", "x": "y"}
    made.set_response_status(404, "gone", 1)
    assert made.get_response_status(1) == (404, "gone")
    made.set_all_response_status(503)
    assert made.get_response_status(0) == (503, "")


def test_metrics_are_lines_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = context(tmp_path).metrics
    with caplog.at_level(logging.DEBUG, "penstock.torchserve"):
        metrics.add_counter("Requests", 2)
        metrics.add_time("Load", 1.5, dimensions=[Dimension("Level", "Model")])
        metrics.add_size("Size", 3)
        metrics.add_percent("Used", 50)
        metrics.add_error("Broken", 1)
        metric = metrics.add_metric_to_cache("Own", "kB", ["a"], MetricTypes.HISTOGRAM)
        assert metrics.get_metric("Own", MetricTypes.HISTOGRAM) is metric
        metric.add_or_update(7, ["b"])
    assert caplog.messages == [
        "Requests.Count:2|#ModelName:m|#type:COUNTER",
        "Load.Milliseconds:1.5|#Level:Model,ModelName:m|#type:GAUGE",
        "Size.Megabytes:3|#ModelName:m|#type:GAUGE",
        "Used.Percent:50|#ModelName:m|#type:GAUGE",
        "Broken.unit:1|#ModelName:m|#type:COUNTER",
        "Own.Kilobytes:7|#a:b|#type:HISTOGRAM",
    ]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ts.torch_handler.base_handler", "BaseHandler"),
        ("ts.torch_handler.vision_handler", "VisionHandler"),
        ("ts.torch_handler.image_classifier", "ImageClassifier"),
        ("ts.torch_handler.text_handler", "TextHandler"),
        ("ts.context", "Context"),
        ("ts.metrics.dimension", "Dimension"),
        ("ts.utils.util", "PredictionException"),
        ("ts.handler_utils.timer", "timed"),
        ("ts.handler_utils.utils", "import_class"),
        ("ts.protocol.otf_message_handler", "send_intermediate_predict_response"),
    ],
)
def test_the_package_of_torchserve(module: str, name: str) -> None:
    modules.provide()
    assert getattr(importlib.import_module(module), name)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("ts.launcher")


def test_two_handlers_that_load_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other thread makes the package while this one looks for it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "ts"]:
        monkeypatch.delitem(sys.modules, name)
    others = iter([modules.provide])

    def find_spec(name: str) -> Any:
        for other in others:
            other()
        return importlib.util.find_spec(name)

    monkeypatch.setattr(modules, "find_spec", find_spec)
    modules.provide()
    assert importlib.import_module("ts.context").Context is Context


def test_the_base_handler(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.save(torch.jit.script(torch.nn.Identity()), str(tmp_path / "same.pt"))
        handler = handlers.BaseHandler()
        made = context(tmp_path, serializedFile="same.pt")
        handler.initialize(made)
    assert handler.handle([[1.0, 2.0]], made) == [[1.0, 2.0]]
    assert str(handler.get_device()) == "cpu"
    made.request_processor[0] = RequestProcessor({"describe": "True"})
    assert handler.handle([], made) == [None]
    made.request_processor[0] = RequestProcessor({"explain": "True"})
    with pytest.raises(BackendError, match="explanations need captum"):
        handler.handle([[1.0]], made)
    with pytest.raises(RuntimeError, match=r"expected a \.pt or \.onnx file"):
        handler.initialize(context(tmp_path, serializedFile="x.so"))
    with pytest.raises(RuntimeError, match=r"has no file m\.py"):
        handler.initialize(context(tmp_path, modelFile="m.py"))


def test_images_by_every_way(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (300, 260), (255, 0, 0)).save(image, "PNG")
    handler = handlers.ImageClassifier()
    handler.device = torch.device("cpu")
    as_file = handler.preprocess([{"data": image.getvalue()}])
    encoded = base64.b64encode(image.getvalue()).decode()
    assert torch.equal(handler.preprocess([{"body": encoded}]), as_file)
    assert torch.equal(handler.preprocess([{"body": as_file[0].tolist()}]), as_file)
    handler.set_max_result_classes(1)
    assert handler.get_max_result_classes() == 1
    assert handler.postprocess(torch.tensor([[0.0, 100.0]])) == [{"1": 1.0}]


@pytest.mark.parametrize(("width", "height"), [(1, 600), (600, 1)])
def test_of_a_strip_only_what_is_cut_is_resized(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int
) -> None:
    """All of it may be a hundred thousand pixels long, and of longer ones gigabytes."""
    resize, made = Image.Image.resize, []

    def noted(image: Image.Image, size: tuple[int, int], *arguments: Any, **options: Any) -> Any:
        made.append(size)
        return resize(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", noted)
    line = np.arange(600) % 200
    strip = Image.fromarray(line.astype(np.uint8).reshape(height, width)).convert("RGB")
    found = handlers.image_net_input(strip)[0]
    assert made == [(224, 224)]
    # 224 of the 256 pixels of the middle: between it and the pixels beside it.
    where = (np.arange(224) - 111.5) / 256 + 299.5
    values = np.interp(where, np.arange(600), line) / 255
    expected = torch.tensor((values - handlers.MEAN[0]) / handlers.STD[0]).float()
    np.testing.assert_allclose(found[:, 0] if width == 1 else found[0], expected, atol=0.03)


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ({"0": "a", "1": ["n1", "b"]}, {"0": "a", "1": "b"}),
        ({"object_type_names": ["a", "b"]}, {"0": "a", "1": "b"}),
        (["a"], "expected an object"),
        ({"0": 1}, "class 0: expected a text"),
    ],
)
def test_labels(tmp_path: Path, content: Any, labels: Any) -> None:
    file = tmp_path / "index_to_name.json"
    assert util.load_label_mapping(str(file)) is None
    file.write_text(json.dumps(content))
    if isinstance(labels, dict):
        assert util.load_label_mapping(str(file)) == labels
    else:
        with pytest.raises(ValueError, match=labels):
            util.load_label_mapping(str(file))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("class A:\n  def handle(s, d, c): pass\nclass B:\n  pass", "found the classes A, B"),
        ("x = 1", "found the classes none"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        (None, "no file h.py"),
    ],
)
def test_what_is_no_handler(tmp_path: Path, code: str | None, reason: str) -> None:
    (tmp_path / "MAR-INF").mkdir()
    (tmp_path / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"handler": "h.py"}}')
    if code is not None:
        (tmp_path / "h.py").write_text(code)
    with pytest.raises(BackendError, match=reason):
        TorchServeHandler().init(
            TorchServeHandlerParams.model_validate({}), NodeContext(directory=tmp_path)
        )


def test_parts_of_answers_are_refused() -> None:
    with pytest.raises(BackendError, match="answers a request once"):
        util.send_intermediate_predict_response(["part"], {0: "id"}, "message", 200, None)
    assert util.import_class("torchserve.util.timed", "penstock.backends") is util.timed


def test_other_threads_may_import_while_a_handler_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.py").write_text("")
    monkeypatch.setattr(sys, "path", list(sys.path))
    ended = threading.Event()

    def import_others() -> None:
        while not ended.is_set():
            for index in range(200):
                sys.modules[f"imported_{index}"] = sys
            for index in range(200):
                del sys.modules[f"imported_{index}"]

    thread = threading.Thread(target=import_others)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(200):
            with own_modules(tmp_path):
                pass
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(interval)
