"""`penstock call`, as a user runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from penstock.app.cli.main import command_line
from penstock.app.factory import create_app
from penstock.app.settings import Settings

OPS = """
from penstock.backends.base import Backend
from penstock.backends.errors import InvalidInput


def shout(data):
    return (data.decode() if isinstance(data, bytes) else data).upper()


def count(data):
    if not data:
        raise InvalidInput("an empty text")
    return len(data)


def split(data):
    return data.split()


def fail(data):
    raise KeyError("secret")


class Warm(Backend):
    max = 4

    def warm_up(self):
        self.forward([{"data": "warm-up"}])

    def forward(self, batch):
        for item in batch:
            item["result"] = item["data"]
"""


GRAPH = """
[split]
backend = "Python[ops.py:split]"
next = "each"

[each]
backend = "MapReduce"
jump = "word"
next = "otherwise"

[otherwise]
backend = "Identity"
filter = "or"
next = "end"

[end]
backend = "Identity"
filter = "Break"

[word]
backend = "S[Python[ops.py:shout],Identity]"
max = 4
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "ops.py").write_text(OPS)
    (tmp_path / "text.toml").write_text(
        '[first]\nbackend = "S[Python[ops.py:Warm],Python[ops.py:shout]]"\nnext = "second"\n'
        '[second]\nbackend = "Python[ops.py:count]"\n'
    )
    (tmp_path / "fails.toml").write_text('[only]\nbackend = "S[Identity,Python[ops.py:fail]]"\n')
    (tmp_path / "graph.toml").write_text(GRAPH)
    (tmp_path / "wrong.toml").write_text('[only]\nbackend = "DecodeMap"\nmaxx = 3\n')
    (tmp_path / "absent.toml").write_text('[only]\nbackend = "OnnxTensor"\nmodel = "absent.onnx"\n')
    return tmp_path


def call(*arguments: Any, **options: Any) -> Result:
    return CliRunner().invoke(command_line, ["call", *map(str, arguments)], **options)


def test_an_image(digits: Path) -> None:
    answer = call(digits, digits.parent / "digit.png")
    assert answer.exit_code == 0 and not answer.stderr
    assert json.loads(answer.stdout)["label"] == "three"


def test_a_bare_model(digits: Path) -> None:
    answer = call(
        digits.parent / "digits.onnx",
        digits.parent / "digit.png",
        "--labels",
        digits.parent / "labels.txt",
    )
    assert answer.exit_code == 0, answer.stderr
    assert "result" in json.loads(answer.stdout)


def test_logic_that_calls_another_pipeline_of_a_directory(files: Path) -> None:
    (files / "ask.py").write_text(
        "async def ask(item, call):\n    return (await call('text', item))['result'] + 1\n"
    )
    (files / "asking.toml").write_text('[ask]\nbackend = "Python[ask.py:ask]"\n')
    answer = call(files, "abcd", "--text", "--pipeline", "asking")
    assert answer.exit_code == 0 and json.loads(answer.stdout) == {"result": 5}, answer.stderr
    answer = call(files, "abcd", "--text", "--pipeline", "asking", "--trace")
    assert answer.stderr.count("second: queue") == 1  # that of the other pipeline is shown too
    for arguments, expected in (
        ((), "there are several pipelines: expected --pipeline with one of absent, asking, "),
        (("--pipeline", "asks"), "there is no pipeline 'asks': expected --pipeline with one of"),
        (("--pipeline", "wrong"), "did you mean 'DecodeMat'?"),
        (("--pipeline", "absent"), "'absent' could not be loaded"),
    ):
        answer = call(files, "abcd", "--text", *arguments)
        assert answer.exit_code == 1 and expected in answer.stderr, answer.stderr


ARRAYS = """
import numpy as np


def arrays(data):
    return {
        "large": np.full((1, 1000), 0.25, np.float32),
        "small": np.arange(3),
        "list": [[0.5, 1.5]] * 400,
        "bytes": bytes(1000),
        "boxes": [[1, 2, 3, 4]] * 21,
        "words": ["a"] * 20,
    }
"""


def test_arrays_print_short(tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text(ARRAYS)
    (tmp_path / "one.toml").write_text('[one]\nbackend = "Python[ops.py:arrays]"\n')
    answer = json.loads(call(tmp_path / "one.toml", "a", "--text").stdout)["result"]
    assert answer == {
        "large": "float32 1×1000 [0.25, 0.25, 0.25, 0.25, …]",
        "small": [0, 1, 2],
        "list": "numbers 400×2 [0.5, 1.5, …]",
        "bytes": "1000 bytes",
        "boxes": [[1, 2, 3, 4]] * 21,
        "words": ["a"] * 20,
    }
    full = json.loads(call(tmp_path / "one.toml", "a", "--text", "--full").stdout)["result"]
    assert full["large"] == [[0.25] * 1000] and len(full["list"]) == 400


def test_text_and_standard_input(files: Path) -> None:
    assert json.loads(call(files / "text.toml", "three", "--text").stdout) == {"result": 5}
    assert json.loads(call(files / "text.toml", "-", input=b"four").stdout) == {"result": 4}


@pytest.mark.parametrize(
    ("port", "sent", "expected"),
    [
        ('kind = "text"', "ä", "'ä'"),
        ('kind = "bytes"', '{"a": 1}', "b'{\"a\": 1}'"),
        ('kind = "json"', '{"a": [1]}', "{'a': [1]}"),
        ('kind = "number"', "1.5", "1.5"),
        ('kind = "list", items = { kind = "number" }', "[1, 2.5]", "[1, 2.5]"),
        (
            'kind = "tensor", dtype = "float32", shape = [-1]',
            "[1, 2]",
            "array([1., 2.], dtype=float3",
        ),
    ],
)
def test_the_declared_input(files: Path, port: str, sent: str, expected: str) -> None:
    """It is read as the server reads it, from a file and with --text."""
    file = files / "declared.toml"
    backend = 'backend = "Python[builtins:repr]"'
    file.write_text(f"[pipeline.inputs]\ndata = {{ {port} }}\n[only]\n{backend}\n")
    assert json.loads(call(file, sent, "--text").stdout)["result"].startswith(expected)
    answer = call(file, "-", input=sent.encode())
    assert json.loads(answer.stdout)["result"].startswith(expected), answer.stderr


def test_several_declared_inputs(files: Path) -> None:
    file = files / "declared.toml"
    inputs = 'a = { kind = "bytes" }\nb = { kind = "text", optional = true }'
    file.write_text(f'[pipeline.inputs]\n{inputs}\n[only]\nbackend = "Python[builtins:repr]"\n')
    answer = call(file, '{"a": "eA=="}', "--text")
    assert json.loads(answer.stdout) == {"result": "[b'x', None]"}, answer.stderr
    answer = call(file, '{"b": "x"}', "--text")
    assert answer.exit_code == 1
    assert "the body has no 'a', expected an object with 'a' (bytes), 'b' (text)" in answer.stderr


def test_the_trace(files: Path) -> None:
    answer = call(files / "text.toml", "three", "--text", "--trace")
    assert answer.exit_code == 0
    assert json.loads(answer.stdout) == {"result": 5}  # without the trace, for other programs
    timeless = re.sub(r" +[\d.]+ ms", " T", answer.stderr)
    assert timeless.splitlines() == [
        "first: queue T, run T, batch 1",
        "    in: data: 'three'",
        "    ops.py:Warm T  data: 'three', result: 'three'",
        "    ops.py:shout T  data: 'three', result: 'THREE'",
        "    out: data: 'three', result: 'THREE'",
        "second: queue T, run T, batch 1",
        "    in: data: 'THREE'",
        "    out: data: 'THREE', result: 5",
    ]


def test_the_trace_of_images_has_shapes_and_dtypes(digits: Path) -> None:
    answer = call(digits, digits.parent / "digit.png", "--trace")
    lines = answer.stderr.splitlines()
    assert "in: data: 125 bytes" in lines[1]
    assert "DecodeMat" in lines[2] and "result: uint8 8×8×3" in lines[2]
    assert (
        "OnnxTensor" in lines[6]
        and "data: uint8 1×1×8×8" in lines[6]
        and "result: float32 1×10" in lines[6]
    )


def test_the_trace_of_a_node_that_runs_in_a_process(files: Path) -> None:
    text = (files / "text.toml").read_text().replace("[first]", '[first]\nexecutor = "process"')
    (files / "process.toml").write_text(text)
    answer = call(files / "process.toml", "three", "--text", "--trace")
    assert answer.exit_code == 0, answer.stderr
    assert json.loads(answer.stdout) == {"result": 5}
    lines = answer.stderr.splitlines()
    assert lines[0].startswith("first: queue") and lines[0].endswith(", on a thread for the trace")
    assert lines[3].startswith("    ops.py:shout") and "result: 'THREE'" in lines[3]
    assert lines[5].startswith("second: queue") and lines[5].endswith("batch 1")


def test_the_trace_of_a_graph(files: Path) -> None:
    answer = call(files / "graph.toml", "one two", "--text", "--trace")
    assert answer.exit_code == 0 and json.loads(answer.stdout) == {"result": ["ONE", "TWO"]}
    assert re.sub(r" +[\d.]+ ms", " T", answer.stderr).splitlines() == [
        "split: queue T, run T, batch 1",
        "    in: data: 'one two'",
        "    out: data: 'one two', result: ['one', 'two']",
        "each: queue T, run T, batch 1",
        "    in: data",
        "    part 1 of 2",
        "        word: queue T, run T, batch 2",
        "            in: data: 'one'",
        "            ops.py:shout T  data: 'one', result: 'ONE'",
        "            Identity T  data: 'ONE', result: 'ONE'",
        "            out: data: 'ONE', result: 'ONE'",
        "    part 2 of 2",
        "        word: queue T, run T, batch 2",
        "            in: data: 'two'",
        "            ops.py:shout T  data: 'two', result: 'TWO'",
        "            Identity T  data: 'TWO', result: 'TWO'",
        "            out: data: 'TWO', result: 'TWO'",
        "    out: data, result",
        "otherwise: or says Skip (it has a result)",
        "end: Break says Break",
    ]


def test_the_trace_ends_where_the_request_ended(files: Path) -> None:
    text = (files / "graph.toml").read_text().replace("shout", "fail")
    (files / "graph.toml").write_text(text)
    answer = call(files / "graph.toml", "one", "--text", "--trace")
    assert answer.exit_code == 1
    assert (
        "    out: raised BackendError: node 'word': backend fail raised KeyError: 'secret'\n"
        in answer.stderr
    )
    assert answer.stderr.splitlines()[-2:] == [
        "never reached: otherwise, end",
        "node 'word': backend fail raised KeyError: 'secret'",
    ]


def test_a_soft_failure(files: Path, digits: Path) -> None:
    answer = call(digits, digits.parent / "labels.txt", "--trace")
    assert answer.exit_code == 1 and not answer.stdout
    assert answer.stderr.splitlines()[-1].startswith("not an image file")
    # The trace shows how far the item came.
    assert "DecodeMat" in answer.stderr and "ResizeMat" not in answer.stderr
    answer = call(files / "text.toml", "", "--text")
    assert answer.exit_code == 1 and answer.stderr == "an empty text\n"


def test_a_backend_that_raises(files: Path) -> None:
    answer = call(files / "fails.toml", "x", "--text", "--trace")
    assert answer.exit_code == 1 and not answer.stdout
    assert (
        "node 'only': backend Python raised KeyError: 'secret'" in answer.stderr
        or "raised KeyError" in answer.stderr
    )
    assert re.search(r"    ops.py:fail .*data: 'x' raised KeyError", answer.stderr)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("wrong.toml", "did you mean 'DecodeMat'?"),
        ("gone.toml", "no such file"),
        ("absent.toml", "absent.onnx"),
    ],
)
def test_files_that_can_not_be_run(files: Path, file: str, expected: str) -> None:
    answer = call(files / file, "x", "--text")
    assert answer.exit_code == 1 and not answer.stdout
    assert expected in answer.stderr and "Traceback" not in answer.stderr


def test_an_image_that_does_not_exist(files: Path, digits: Path) -> None:
    answer = call(digits, files / "gone.png")
    assert (
        answer.exit_code == 1 and answer.stderr == f"{files / 'gone.png'}: there is no such file\n"
    )


def test_a_running_server(running: Any, digits: Path) -> None:
    with running(create_app(digits, settings=Settings())) as client:
        url = f"{client.base_url}/predict/digits"
        answer = call(url, digits.parent / "digit.png", "--trace")
        assert answer.exit_code == 0 and json.loads(answer.stdout)["result"] == 3
        assert re.fullmatch(
            r'queue\.digits;dur=[\d.]+, run\.digits;dur=[\d.]+;desc="batch 1"\n', answer.stderr
        )
        answer = call(url, digits.parent / "labels.txt")
        assert (
            answer.exit_code == 1
            and not answer.stdout
            and json.loads(answer.stderr)["code"] == "invalid_input"
        )
    answer = call(url, digits.parent / "digit.png")
    assert answer.exit_code == 1 and "is the server running" in answer.stderr
    answer = call("http://127.0.0.1", digits.parent / "digit.png")
    assert answer.exit_code == 1 and "is not the URL of a pipeline" in answer.stderr


def test_a_running_server_with_a_token(running: Any, files: Path) -> None:
    settings = Settings(api_key=SecretStr("key"), admin_token=SecretStr("token"), allow_trace=True)
    with running(create_app(files / "text.toml", settings=settings)) as client:
        url = f"{client.base_url}/predict/text"
        answer = call(url, "three", "--text", "--token", "key")
        assert (
            answer.exit_code == 0
            and json.loads(answer.stdout) == {"result": 5}
            and not answer.stderr
        )
        answer = call(url, "three", "--text", "--trace", env={"PENSTOCK_ADMIN_TOKEN": "token"})
        assert answer.exit_code == 0 and json.loads(answer.stdout) == {"result": 5}
        assert re.sub(r" +[\d.]+ ms", " T", answer.stderr).splitlines() == [
            "first: queue T, run T, batch 1",
            "    in: data",
            "    out: data, result",
            "second: queue T, run T, batch 1",
            "    in: data",
            "    out: data, result",
        ]
        (files / "token").write_text("token\n")
        for given in (
            {"PENSTOCK_API_KEY": "key"},
            {"PENSTOCK_ADMIN_TOKEN": "token"},
            {"PENSTOCK_ADMIN_TOKEN_FILE": str(files / "token")},
        ):
            assert call(url, "three", "--text", env=given).exit_code == 0, given
        answer = call(url, "three", "--text", "--token-file", files / "token", "--trace")
        assert answer.exit_code == 0 and "first: queue" in answer.stderr
        answer = call(url, "three", "--text", "--trace", env={"PENSTOCK_API_KEY": "key"})
        assert answer.exit_code == 0 and "queue.first" in answer.stderr
        answer = call(url, "three", "--text", "--token-file", files / "gone")
        assert answer.exit_code == 1 and "--token-file: " in answer.stderr
        assert "can't be read: No such file" in answer.stderr
        answer = call(url, "", "--text", "--trace", "--token", "token")  # an empty body
        assert answer.exit_code == 1 and json.loads(answer.stderr)["code"] == "invalid_request"
        answer = call(url, "three", "--text", "--trace", "--token", "key")
        assert answer.exit_code == 1 and json.loads(answer.stderr)["code"] == "forbidden"
    answer = call(url, "three", "--text", "--trace", "--token", "token")
    assert answer.exit_code == 1 and "is the server running" in answer.stderr
