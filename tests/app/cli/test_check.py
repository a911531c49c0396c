"""`penstock check`: what it finds, and what it shows."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from typer.testing import CliRunner, Result

from penstock.app.cli.effective import effective_toml
from penstock.app.cli.main import command_line
from penstock.pipelines.config.load import load

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: Any) -> Result:
        return CliRunner().invoke(command_line, [str(argument) for argument in arguments])

    return invoke


def save_classifier(path: Path, *, softmax: bool = False, weight: float = 0.01) -> None:
    """Write a model of 3×4×4 pixels and 3 classes whose first layer has weights of one size."""
    last = [helper.make_node("Softmax", ["z"], ["scores"])] if softmax else []
    nodes = [
        helper.make_node("Flatten", ["image"], ["row"]),
        helper.make_node("Gemm", ["row", "weights"], ["z" if softmax else "scores"]),
        *last,
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.full((48, 3), weight / 48, np.float32), "weights")],
    )
    opset = helper.make_opsetid("", 17)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=9), str(path))


CLASSIFIER = """
[net]
backend = "S[DecodeMat,ResizeMat(4,4),CvtColorMat(rgb),Mat2Tensor,OnnxTensor,SoftmaxArgMaxTensor]"
model = "net.onnx"
"""
LABELLED = CLASSIFIER + 'labels = "labels.txt"\n'


@pytest.mark.parametrize(
    ("text", "model", "expected"),
    [
        (CLASSIFIER.replace("net.onnx", "absent.onnx"), {}, "[net]: OnnxTensor: the model "),
        (CLASSIFIER.replace("net.onnx", "labels.txt"), {}, "[net]: OnnxTensor: the model "),
        (LABELLED.replace("labels.txt", "absent.txt"), {}, "absent.txt can't be read"),
        (LABELLED, {}, "has 2 labels, but the model gives 3 scores"),
        (CLASSIFIER + "mean = [1, 2]\n", {}, "mean has 2 values"),
        (
            '[pipeline.outputs]\nlabel = { kind = "text" }\nscores = {}\n'
            + CLASSIFIER.replace("SoftmaxArgMaxTensor", "SoftmaxArgMaxTensor(labels=labels.txt)"),
            {},
            "no node sets 'scores', did you mean 'score'?",
        ),
        (
            '[pipeline.outputs.box]\nkind = "json"\nlabels = "absent.txt"\n' + CLASSIFIER,
            {},
            "[pipeline] outputs.box.labels: the labels absent.txt can't be read: No such file",
        ),
        (
            '[pipeline.outputs.y]\nkind = "tensor"\nlabels = "absent.txt"\n' + CLASSIFIER,
            {},
            "[pipeline] outputs.y.labels: the labels absent.txt can't be read: No such file",
        ),
        (
            '[net]\nbackend = "S[ResizeMat(4,4),DecodeMat]"\n',
            {},
            "[net] backend: DecodeMat takes the bytes of a file, but ResizeMat gives an image",
        ),
        (
            '[a]\nbackend = "DecodeMat"\nnext = "b"\n[b]\nbackend = "DecodeMat"\n',
            {},
            "[b] backend: DecodeMat takes the bytes of a file, but a gives an image",
        ),
        (
            '[pipeline.inputs]\ndata = { kind = "tensor" }\n' + CLASSIFIER,
            {},
            "DecodeMat takes the bytes of a file, but the declared input is an array",
        ),
        # warnings
        (CLASSIFIER, {"softmax": True}, "warning: the softmax is taken twice: net.onnx ends"),
        (CLASSIFIER, {"weight": 4.0}, "warning: net.onnx gets pixels from 0 to 255, but looks"),
        ('[a]\nbackend = "ResizeMat(4,4)"\n', {}, "warning: ResizeMat takes an image"),
    ],
)
def test_findings(
    run: Run, tmp_path: Path, text: str, model: dict[str, Any], expected: str
) -> None:
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    save_classifier(tmp_path / "net.onnx", **model)
    file = tmp_path / "one.toml"
    file.write_text(text)
    answer = run("check", file)
    said = answer.stderr.replace(f"{file} ", "")
    said = said.replace("[net] softmax: ", "").replace("[net] mean: net", "net")
    said = said.replace("[a] backend: ", "")
    assert expected in said, answer.stderr
    assert answer.exit_code == (0 if expected.startswith("warning") else 1), answer.stderr


@pytest.mark.parametrize(
    ("text", "model"),
    [
        (CLASSIFIER, {}),
        (CLASSIFIER + "softmax = false\n", {"softmax": True}),
        (CLASSIFIER + "std = 255\n", {"weight": 4.0}),
        (
            '[pipeline.outputs]\nclass = { kind = "integer" }\ntop = {}\n'
            + CLASSIFIER
            + "top_k = 2",
            {},
        ),
        ('[a]\nbackend = "S[DecodeMat,(or)DecodeMat]"\n', {}),
        ('[a]\nbackend = "Python[builtins:sorted]"\nnext = "b"\n[b]\nbackend = "DecodeMat"\n', {}),
    ],
)
def test_no_finding_where_there_is_no_mistake(
    run: Run, tmp_path: Path, text: str, model: dict[str, Any]
) -> None:
    save_classifier(tmp_path / "net.onnx", **model)
    (tmp_path / "one.toml").write_text(text)
    answer = run("check", tmp_path / "one.toml")
    assert (answer.exit_code, answer.stderr) == (0, ""), answer.stderr


LOGIC = """
async def ask(item, call):
    whole = await call("net", item)
    other = await call("digits/read", item)
    return [await call(name, {"data": 1}) for name in ("x", "y")] + [await call("nte", item)]
"""


def test_callees_of_python_logic(run: Run, tmp_path: Path) -> None:
    (tmp_path / "ask.py").write_text(LOGIC)
    save_classifier(tmp_path / "net.onnx")
    (tmp_path / "ask.toml").write_text(
        '[pipeline]\nentry = "ask"\n[ask]\nbackend = "Python[ask.py:ask]"\n' + CLASSIFIER
    )
    answer = run("check", tmp_path / "ask.toml")
    assert answer.exit_code == 0  # other pipelines may be served beside it
    assert "warning: " in answer.stderr and "call('digits/read') in line 4" in answer.stderr
    (tmp_path / "digits.toml").write_text('[raed]\nbackend = "Identity"\n')
    answer = run("check", tmp_path)
    assert answer.exit_code == 1 and "warning" not in answer.stderr
    assert (
        "call('digits/read') in line 4 of ask.py:ask: pipeline 'digits' has no node 'read', "
        in (answer.stderr)
    )
    assert "call('nte') in line 5" in answer.stderr and "did you mean 'net'?" in answer.stderr
    assert "call('net')" not in answer.stderr


def test_a_directory_has_a_summary(
    run: Run, tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_classifier(tmp_path / "net.onnx")
    (tmp_path / "net.toml").write_text(CLASSIFIER)
    (tmp_path / "bad.toml").write_text('[a]\nbackend = "Identiti"\n')
    monkeypatch.setenv("COLUMNS", "80")
    answer = run("check", tmp_path)
    assert "…" not in answer.stdout  # the name of a file is what one opens: none is cut
    assert answer.exit_code == 1 and "did you mean 'Identity'?" in answer.stderr
    lines = [line.split() for line in answer.stdout.splitlines()]
    assert any(line[:3] == ["net", "1", "fine"] and line[4] == "image" for line in lines if line)
    assert any(line[:5] == ["bad", "1", "can't", "be", "read"] for line in lines)
    assert "pipeline  " not in run("check", digits).stdout


def test_what_clients_see(run: Run, tmp_path: Path) -> None:
    save_classifier(tmp_path / "net.onnx")
    (tmp_path / "net.toml").write_text(
        '[pipeline.expose.raw]\n[pipeline]\nname = "net"\nentry = "net"\n'
        + CLASSIFIER
        + '[raw]\nbackend = "OnnxTensor"\nmodel = "net.onnx"\n'
    )
    answer = run("check", tmp_path / "net.toml")
    assert answer.exit_code == 0, answer.stderr
    shown = [" ".join(line.split()) for line in answer.stdout.splitlines()]
    assert "/predict/net data: image result, class: integer, score: number" in shown
    assert (
        "/v2/models/net data: BYTES[1] result: BYTES[-1], class: INT64[1], score: FP64[1]" in shown
    )
    assert "/v2/models/net.raw image: FP32[-1,3,4,4] scores: FP32[-1,3]" in shown


def test_a_classifier_answers_its_class_without_declaring_it(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    save_classifier(tmp_path / "net.onnx")
    for text, expected in (
        (CLASSIFIER, ["class", "score"]),
        (LABELLED, ["label", "class", "score"]),
        (LABELLED + "top_k = 2\n", ["label", "class", "score", "top"]),
        (LABELLED + 'next = "last"\n[last]\n', []),  # the last node is none
        ("[pipeline]\noutputs = {}\n" + LABELLED, []),
        ("[pipeline.outputs]\nscore = {}\n" + LABELLED, ["score"]),
    ):
        (tmp_path / "one.toml").write_text(text)
        outputs = load(tmp_path / "one.toml").outputs
        assert [port.name for port in outputs] == expected


def test_what_a_classifier_sets_and_the_file_does_not_declare(run: Run, tmp_path: Path) -> None:
    save_classifier(tmp_path / "net.onnx")
    for declared, said in (("[pipeline]\noutputs = { score = {} }\n", "net also sets "), ("", "")):
        (tmp_path / "one.toml").write_text(declared + LABELLED)
        (tmp_path / "labels.txt").write_text("a\nb\nc\n")
        shown = run("check", tmp_path / "one.toml").stdout
        expected = "net also sets label, class: declare what clients shall get"
        assert (expected in shown) is bool(said)


def test_the_effective_configuration_is_the_same_pipeline(
    run: Run, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in sorted(digits.parents[1].glob("*/*.toml")):
        config = load(file)
        monkeypatch.chdir(file.parent)
        again = load(tomllib.loads(effective_toml(config)), name=config.name)
        assert list(again.nodes) == list(config.nodes)
        for name, node in config.nodes.items():
            other = again.nodes[name]
            assert [group.spec.params for group in node.instance_groups] == [
                group.spec.params for group in other.instance_groups
            ]
            assert node.sequence == other.sequence
            assert (node.next, node.map, node.filter, node.executor, node.batching_timeout) == (
                other.next,
                other.map,
                other.filter,
                other.executor,
                other.batching_timeout,
            )
        assert (again.inputs, again.outputs) == (config.inputs, config.outputs)
    inputs = {
        "a": {"kind": "bytes", "media_types": ["audio/*"], "optional": True},
        "b": {"kind": "list", "items": {"kind": "list", "items": {"kind": "text"}}},
    }
    ports = load({"pipeline": {"inputs": inputs, "outputs": {"b": inputs["b"]}}, "node": {}})
    again = load(tomllib.loads(effective_toml(ports)))
    assert (again.inputs, again.outputs) == (ports.inputs, ports.outputs)
    answer = run("check", digits, "--effective")
    assert answer.exit_code == 0 and '"DecodeMat::max_pixels" = 100000000' in answer.stdout
    assert "timeout = 30.0" in answer.stdout and "instance_num = 1" in answer.stdout


def test_the_tensors_of_a_node_that_keeps_state(run: Run, tmp_path: Path) -> None:
    """They are looked for in the model. A parameter that is a table stops no check."""
    save_classifier(tmp_path / "net.onnx")
    state = {"input": "image", "output": "scoes"}
    node = {"backend": "OnnxTensor", "model": str(tmp_path / "net.onnx"), "next": "last"}
    config = {
        "net": {**node, "batch_axis": {"image": 0}, "sequence": {"state": [state]}},
        "last": {"backend": "Identity"},
    }
    path = tmp_path / "kept.toml"
    path.write_text(effective_toml(load(config)))
    answer = run("check", path)
    assert answer.exit_code == 1, answer.output
    assert "the model has no output 'scoes', did you mean 'scores'?" in answer.output
