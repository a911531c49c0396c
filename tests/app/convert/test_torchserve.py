"""Archives of TorchServe: converted, served, and asked. Answers are compared with the formulas of
TorchServe's handlers, computed by Pillow and torch.
"""

from __future__ import annotations

import io
import json
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from penstock.app.cli.main import command_line
from penstock.app.factory import create_app
from penstock.backends.torchserve.text import cleaned, tokens
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline

LABELS = [f"label {index}" for index in range(7)]
VECTORS = np.random.default_rng(3).normal(size=(7, 3)).astype(np.float32)

EAGER = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 7, bias=False)

    def forward(self, image):
        return self.fc(image.mean((2, 3)))
"""
DETECTOR = """
import torch
from torch import nn

class Detector(nn.Module):
    def forward(self, images):
        return [
            {
                "boxes": torch.tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]),
                "labels": torch.tensor([3, 1]),
                "scores": torch.tensor([image.mean().item(), 0.25]),
            }
            for image in images
        ]
"""
TEXT = """
import torch
from torch import nn

class Counting(nn.Module):
    def forward(self, text, offsets):
        return torch.stack([text.sum(), text.float().mean()]).float()[None]
"""
HANDLER = """
import json
import os

from helpers import DOUBLE
from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import PredictionException


class Echo(BaseHandler):
    def initialize(self, context):
        self.context = context
        self.folder = context.system_properties["model_dir"]
        assert context.manifest["model"]["modelName"] == "echo"
        assert os.path.exists(os.path.join(self.folder, "helpers.py"))
        self.factor = context.model_yaml_config["handler"]["factor"] * DOUBLE

    def handle(self, data, context):
        context.metrics.add_counter("Requests", len(data))
        answers = []
        for index, row in enumerate(data):
            value = row.get("body", row.get("data"))
            if value == "teapot":
                context.set_response_status(418, "no tea", index)
            if value == "quota":
                raise PredictionException("too much", 429)
            answers.append({
                "type": type(value).__name__,
                "fields": sorted(row),
                "value": value * self.factor if isinstance(value, (int, str)) else len(value),
                "header": context.get_request_header(index, "X-Tenant"),
                "media": context.get_request_header(index, "Content-Type"),
                "batch": len(data),
            })
            context.set_response_content_type(index, "application/json")
        return [json.dumps(answer) for answer in answers]
"""
FUNCTION = """
import sys

from ts.utils.util import PredictionException

loads = []

def handle(data, context):
    if data is None:
        loads.append(context.system_properties["model_dir"])
        return None
    if data[0]["body"] == "teapot":
        context.set_response_status(418, "no tea", 0)
    if data[0]["body"] == "quota":
        raise PredictionException("too much", 429)
    return [
        {
            "loads": len(loads),
            "text": row["body"],
            "header": context.get_request_header(0, "X-Tenant"),
            "torch": "torch" in sys.modules,
        }
        for row in data
    ]
"""
PARTS = """
from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    if data is None:
        return None
    word = data[0]["body"]
    if word == "wrong":
        raise ValueError("this word is wrong")
    for letter in word[:-1]:
        send_intermediate_predict_response([letter], context.request_ids, "part", 200, context)
    return [word[-1]]
"""


class Segmenter(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = torch.cat([image, image.flip(1) * 2], 1)
        return {"out": scores, "aux": image}


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 7, bias=False)
        self.fc.weight.data = torch.from_numpy(VECTORS)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(image.mean((2, 3)))
        return scores


def archive(folder: Path, name: str, files: dict[str, bytes | str], **model: Any) -> Path:
    """Write an archive as torch-model-archiver does."""
    path = folder / f"{name}.mar"
    manifest = {"runtime": "python", "model": {"modelName": name, "modelVersion": "1.0", **model}}
    with zipfile.ZipFile(path, "w") as made:
        for file, content in files.items():
            made.writestr(file, content)
        made.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
    return path


def scripted(module: torch.nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def photo(width: int = 301, height: int = 283) -> bytes:
    """A PNG, whose pixels every decoder reads alike."""
    pixels = np.random.default_rng(5).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def expected_input(image: bytes) -> torch.Tensor:
    """Resize(256), CenterCrop(224), ToTensor, Normalize, as torchvision defines them."""
    pixels = Image.open(io.BytesIO(image))
    width, height = pixels.size
    if width < height:
        width, height = 256, math.floor(256 * height / width)
    else:
        width, height = math.floor(256 * width / height), 256
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    cut = pixels.resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(cut)[top : top + 224, left : left + 224].astype(np.float32) / 255
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    array = (array - mean) / std
    return torch.from_numpy(array.transpose(2, 0, 1).copy())[None]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All archives, converted into one folder."""
    folder = tmp_path_factory.mktemp("store")
    labels = json.dumps({str(index): ["n0", label] for index, label in enumerate(LABELS)})
    weights = saved({"fc.weight": torch.from_numpy(VECTORS)})
    vocabulary = {"they": 1, "are": 2, "not": 3, "here": 4, "they are": 5, "are not": 6}
    archives = [
        archive(
            folder,
            "classifier",
            {"model.pt": scripted(Classifier()), "index_to_name.json": labels},
            handler="image_classifier",
            serializedFile="model.pt",
        ),
        archive(
            folder,
            "eager",
            {"net.py": EAGER, "net.pth": weights},
            handler="image_classifier",
            serializedFile="net.pth",
            modelFile="net.py",
        ),
        archive(
            folder,
            "segmenter",
            {"model.pt": scripted(Segmenter())},
            handler="image_segmenter",
            serializedFile="model.pt",
        ),
        archive(
            folder,
            "detector",
            {"model.py": DETECTOR, "index_to_name.json": json.dumps({"1": "cat", "3": "dog"})},
            handler="object_detector",
            modelFile="model.py",
        ),
        archive(
            folder,
            "texts",
            {
                "model.py": TEXT,
                "source_vocab.pt": saved(vocabulary),
                "index_to_name.json": json.dumps({"0": "sum", "1": "mean"}),
            },
            handler="text_classifier",
            modelFile="model.py",
        ),
        archive(
            folder,
            "echo",
            {
                "handler.py": HANDLER,
                "helpers.py": "DOUBLE = 2\n",
                "model-config.yaml": "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\n"
                "maxBatchDelay: 50\nresponseTimeout: 60\nhandler:\n  factor: 3\n",
            },
            handler="handler.py",
            configFile="model-config.yaml",
        ),
        archive(
            folder, "function", {"handler.py": FUNCTION, "helpers.py": ""}, handler="handler:handle"
        ),
    ]
    archives.append(archive(folder, "parts", {"h.py": PARTS}, handler="h.py:handle"))
    for path in archives:
        result = CliRunner().invoke(command_line, ["convert", str(path), "-o", str(folder / "out")])
        assert result.exit_code == 0, result.output
    return folder / "out"


@pytest.fixture(scope="module")
def client(models: Path, running: Callable[..., Any]) -> Iterator[httpx.Client]:
    for file in ("detector", "texts", "echo", "parts"):  # function keeps its process
        text = (models / f"{file}.toml").read_text()
        assert 'executor = "process"' in text
        (models / f"{file}.toml").write_text(text.replace('executor = "process"\n', ""))
    with running(create_app(models), http="penstock") as client:
        yield client


@pytest.mark.parametrize("name", ["classifier", "eager"])
@pytest.mark.parametrize("size", [(301, 283), (260, 391)])
def test_image_classifier(client: httpx.Client, name: str, size: tuple[int, int]) -> None:
    image = photo(*size)
    scores = torch.softmax(expected_input(image).mean((2, 3)) @ torch.from_numpy(VECTORS).T, 1)[0]
    best = torch.topk(scores, 5)
    labels = LABELS if name == "classifier" else list(map(str, range(7)))
    expected = {
        labels[index]: value
        for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    }
    answer = client.post(f"/predict/{name}", content=image).json()["result"]
    assert list(answer) == list(expected)
    assert answer == pytest.approx(expected, abs=2e-6)
    assert client.post(f"/predict/{name}", files={"data": image}).json()["result"] == answer


def test_image_segmenter(client: httpx.Client) -> None:
    image = photo()
    scores = torch.softmax(Segmenter()(expected_input(image))["out"], 1).max(1)
    answer = np.array(client.post("/predict/segmenter", content=image).json()["result"])
    assert answer.shape == (224, 224, 2)
    same = answer[:, :, 0] == scores.indices[0].numpy()
    assert same.mean() > 0.999  # classes may tie within the last digit
    np.testing.assert_allclose(answer[:, :, 1], scores.values[0].numpy(), atol=1e-5)


def test_object_detector(client: httpx.Client) -> None:
    white = io.BytesIO()
    Image.new("RGB", (8, 4), (255, 255, 255)).save(white, "PNG")
    answer = client.post("/predict/detector", content=white.getvalue())
    assert answer.json() == {"result": [{"dog": [0.0, 1.0, 2.0, 3.0], "score": 1.0}]}


def test_text_classifier(client: httpx.Client) -> None:
    """<b>They</b> aren't here! → they are not here, with its bigrams."""
    answer = client.post(
        "/predict/texts", content="<b>They</b> aren't", headers={"content-type": "text/plain"}
    ).json()["result"]
    found = torch.softmax(torch.tensor([17.0, 3.4]), 0).tolist()
    assert answer == pytest.approx({"sum": found[0], "mean": found[1]})
    assert cleaned("The CAFÉ's &amp; I'll won't") == "the cafes  i will will not"
    assert tokens('It is "here", (now).') == ["it", "is", "here", ",", "(", "now", ")", "."]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"json": "abc"}, {"type": "str", "value": "abc" * 6, "fields": ["body"]}),
        ({"json": {"a": 1}}, {"type": "dict", "value": 1, "media": "application/json"}),
        ({"content": b"\x00\x01"}, {"type": "bytearray", "value": 2}),
        (
            {"content": "é", "headers": {"content-type": "text/plain", "x-tenant": "blue"}},
            {"type": "str", "value": "é" * 6, "header": "blue", "batch": 1},
        ),
        ({"files": {"data": b"xyz", "more": b""}}, {"fields": ["data", "more"], "value": 3}),
        ({"content": b'{"broken', "headers": {"content-type": "application/json"}}, {"value": 8}),
        ({"data": {"data": "5"}}, {"fields": ["data"], "type": "bytearray", "value": 1}),
    ],
)
def test_a_handler_gets_fields_headers_and_its_own_files(
    client: httpx.Client, request_: dict[str, Any], expected: dict[str, Any]
) -> None:
    answer = client.post("/predict/echo", **request_).json()["result"]
    assert {key: answer[key] for key in expected} == expected


@pytest.mark.parametrize("name", ["echo", "function"])
def test_a_handler_sets_statuses(client: httpx.Client, name: str) -> None:
    refused = client.post(f"/predict/{name}", json="teapot")
    assert (refused.status_code, refused.json()["detail"]) == (418, "no tea")
    refused = client.post(f"/predict/{name}", json="quota")
    assert (refused.status_code, refused.json()["detail"]) == (429, "too much")


def test_a_handler_by_other_doors(client: httpx.Client) -> None:
    batch = client.post(
        "/predict/echo/batch", files=[("data", b"ab"), ("data", b"abc")], headers={"x-tenant": "a"}
    ).json()["results"]
    assert [answer["result"]["value"] for answer in batch] == [2, 3]
    assert {answer["result"]["header"] for answer in batch} == {"a"}
    tensor = {"name": "data", "datatype": "BYTES", "shape": [1], "data": ["abc"]}
    answer = client.post("/v2/models/echo/infer", json={"inputs": [tensor]}).json()
    assert json.loads(answer["outputs"][0]["data"][0])["value"] == 3


def test_a_function_and_a_module_of_the_same_name(client: httpx.Client) -> None:
    """It runs in a process, which has no need of torch."""
    headers = {"x-tenant": "blue"}
    answer = client.post("/predict/function", json="hello", headers=headers).json()
    assert answer == {"result": {"loads": 1, "text": "hello", "header": "blue", "torch": False}}


def test_a_handler_that_answers_in_parts(client: httpx.Client) -> None:
    events = client.post("/predict/parts", json="abc", headers={"accept": "text/event-stream"})
    assert events.status_code == 200, events.text
    assert re.findall(r'"result":"(.)"', events.text) == ["a", "b", "c"]
    assert client.post("/predict/parts", json="abc").json() == {"result": ["a", "b", "c"]}
    assert client.post("/predict/parts", json="wrong").status_code == 500


def test_what_a_conversion_writes(models: Path) -> None:
    config = load(models / "echo.toml")
    (node,) = config.nodes.values()
    assert (config.version, config.timeout, node.batching_timeout) == ("1.0", 60.0, 50.0)
    assert (node.stuck_after, node.instance_groups[0].max) == (60.0, 4)
    (node,) = load(models / "function.toml").nodes.values()
    assert node.executor == "process"
    assert (models / "classifier" / "labels.txt").read_text() == "".join(
        f"{label}\n" for label in LABELS
    )


async def test_a_handler_that_answers_wrongly(tmp_path: Path) -> None:
    for answers, reason in (("[1, 2]", "a list of 2"), ("{}", "expected a list")):
        path = archive(
            tmp_path, "wrong", {"h.py": f"def handle(data, _): return {answers}"}, handler="h.py"
        )
        out = tmp_path / "out"
        CliRunner().invoke(command_line, ["convert", str(path), "-o", str(out), "--force"])
        file = out / "wrong.toml"
        file.write_text(file.read_text().replace('executor = "process"\n', ""))
        async with Pipeline.load(file) as pipeline:
            with pytest.raises(Exception, match=reason):
                await pipeline({"data": b"x"})


def test_archives_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "wrong.mar"
    path.write_bytes(b"no archive")
    run = CliRunner().invoke(command_line, ["convert", str(path), "-o", str(tmp_path)])
    assert (run.exit_code, "this is not an archive" in run.output) == (1, True)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("MAR-INF/MANIFEST.json", '{"model": {}}')
    run = CliRunner().invoke(command_line, ["convert", str(path), "-o", str(tmp_path)])
    assert (run.exit_code, "is no manifest" in run.output) == (1, True)
    archive(tmp_path, "wrong", {"h.py": ""}, handler="nlp_thing")
    run = CliRunner().invoke(command_line, ["convert", str(path), "-o", str(tmp_path)])
    assert (run.exit_code, "no file nlp_thing.py beside it" in run.output) == (1, True)
