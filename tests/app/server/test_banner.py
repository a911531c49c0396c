"""What the log says once the server is ready: a command for each pipeline that works as it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from penstock.app.server.banner import banner
from penstock.app.settings import Settings
from penstock.pipelines.config.load import load

PIPELINES = {
    "bytes": '[a]\nbackend = "Python[builtins:len]"\n'
    '[pipeline.inputs]\ndata = { kind = "bytes" }\n',
    "picture": '[a]\nbackend = "S[DecodeMat,Mat2Tensor]"\n',
    "text": '[a]\nbackend = "Python[builtins:ascii]"\n'
    '[pipeline.inputs]\ndata = { kind = "text" }\n',
    "several": '[a]\nbackend = "Identity"\n[pipeline.inputs]\ndata = { kind = "json" }\n'
    'n = { kind = "number" }\nt = { kind = "tensor", dtype = "FP32", shape = [-1, 2] }\n'
    'words = { kind = "list", items = { kind = "text" } }\nphoto = { kind = "image" }\n',
    "checked": '[a]\nbackend = "Identity"\n[pipeline.inputs.data]\nkind = "json"\n'
    'schema = { type = "object", required = ["n", "texts"], properties = { n = { type = "integer", '
    'minimum = 3 }, texts = { type = "array", items = { type = "string", minLength = 7 } } } }\n',
    "tensor": '[a]\nbackend = "Identity"\n[pipeline.inputs]\n'
    'x = { kind = "tensor", dtype = "FP32", shape = [-1, 3, 9, 9] }\n',
}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_each_command_works_when_it_is_pasted(
    spawn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in PIPELINES.items():
        (tmp_path / f"{name}.toml").write_text(text)
    (tmp_path / "key").write_text("secret\n")
    (tmp_path / "key").chmod(0o600)
    options = ("--uds", tmp_path / "socket", "--api-key-file", tmp_path / "key")
    server = spawn("serve", tmp_path, *options, "--allowed-hosts", "a.example")
    answers = {}
    for name in PIPELINES:
        command = server.wait_for(rf"{name}: http://localhost/predict/{name} takes .*; try: (.*)$")
        done = subprocess.run(
            ["sh", "-c", command[1]], capture_output=True, text=True, cwd=tmp_path, timeout=60
        )
        assert done.returncode == 0, done.stderr
        answers[name] = done.stdout
    assert answers["bytes"] == '{"result":5}'
    assert answers["text"] == '{"result":"\'hello\'"}'
    assert answers["several"] == '{"result":{"key":"value"}}'
    assert answers["checked"] == '{"result":{"n":3,"texts":["hellooo"]}}'
    assert answers["picture"].startswith('{"result":[[[[')
    assert answers["tensor"].startswith("200"), answers["tensor"]


def lines(tmp_path: Path, text: str, url: str = "http://0.0.0.0:80", **settings: Any) -> str:
    (tmp_path / "one.toml").write_text(text)
    return "\n".join(banner([load(tmp_path / "one.toml")], url, Settings(**settings)))


def test_inputs_are_described_and_an_image_of_the_folder_is_sent(tmp_path: Path) -> None:
    (tmp_path / "a picture.JPG").touch()
    said = lines(tmp_path, PIPELINES["picture"])
    assert said == (
        "one: http://127.0.0.1:80/predict/one takes data (image); try: "
        f"curl -sS --data-binary '@{tmp_path}/a picture.JPG' http://127.0.0.1:80/predict/one"
    )
    assert "takes x (tensor FP32 any×3×9×9); try: head -c 972 /dev/zero" in lines(
        tmp_path, PIPELINES["tensor"]
    )
    several = (
        '[a]\nbackend = "Identity"\n[pipeline.inputs]\ntitle = { kind = "text" }\n'
        'n = { kind = "number" }\nt = { kind = "tensor", dtype = "FP32", shape = [-1, 2] }\n'
        'rest = { kind = "json", optional = true }\n'
    )
    said = lines(tmp_path, several)
    assert "title (text), n (number), t (tensor FP32 any×2), rest (optional json)" in said
    assert """-d '{"title": "hello", "n": 1.5, "t": [[0, 0]]}' """ in said.replace("ata-binary", "")


def test_options_that_the_server_asks_for(tmp_path: Path) -> None:
    text = PIPELINES["bytes"]
    secure = {"ssl_certfile": "cert.pem", "api_key": "k"}
    said = lines(tmp_path, text, "https://[::]:80", **secure)
    assert '; try: curl -sS -k -H "Authorization: Bearer $PENSTOCK_API_KEY" ' in said
    assert said.endswith(" https://127.0.0.1:80/predict/one")


def test_many_pipelines_have_no_line_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(PIPELINES["bytes"])
    said = list(banner([load(tmp_path / "one.toml")] * 30, "http://h:1", Settings()))
    assert len(said) == 21 and said[-1] == (
        "and 10 more pipelines: GET http://h:1/pipelines lists them"
    )


def test_the_id_of_a_sequence_is_one_that_every_model_takes(tmp_path: Path) -> None:
    """An id that is a text fits no model that takes a number, as most of Triton's do."""
    (tmp_path / "step.py").write_text("class Count:\n    def forward(self, batch): pass\n")
    said = lines(tmp_path, '[a]\nbackend = "Python[step.py:Count]"\n[a.sequence]\n')
    assert said.endswith("'http://127.0.0.1:80/predict/one?sequence=1'")
