"""The command line, as a user runs it."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner, Result

import penstock
from penstock.app.cli.main import command_line
from penstock.app.cli.tables import GROUPS, group_of
from penstock.app.settings import Settings
from penstock.backends.expressions import registry
from penstock.pipelines.repository import Repository

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "160")

    def invoke(*arguments: Any) -> Result:
        return CliRunner().invoke(command_line, [str(argument) for argument in arguments])

    return invoke


def test_check_lists_the_nodes_of_a_file(run: Run, digits: Path) -> None:
    answer = run("check", digits)
    assert answer.exit_code == 0
    assert "digits: fine, 1 node" in answer.stdout
    assert (
        "S[DecodeMat,ResizeMat,CvtColorMat,Mat2Tensor,OnnxTensor,SoftmaxArgMaxTensor]"
        in answer.stdout
        and "2 ms" in answer.stdout
    )


def test_check_breaks_no_name(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a_node_with_a_name_that_is_rather_long_for_a_table_of_nodes"
    (tmp_path / "one.toml").write_text(
        f'[{name}]\nbackend = "S[SetTensorRequestSize,Identity,Identity]"\n'
        'next = "b"\n[b]\nbackend = "Identity"\n'
    )
    for columns in ("80", "60", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        answer = run("check", tmp_path)
        assert answer.exit_code == 0, answer.stderr
        words = answer.stdout.split()
        assert {name, "batching_timeout", "Identity"} <= set(words)
        whole = {"S[SetTensorRequestSize,Identity,Identity]"}
        assert whole <= {*words} or {"S[SetTensorRequestSize,", "Identity,Identity]"} <= {*words}


def test_check_prints_warnings(run: Run, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('[a]\nnext = "b,a.2"\n[b]\n[a.2]\n')
    answer = run("check", tmp_path)
    assert (
        answer.exit_code == 0
        and "one: fine, 3 nodes" in answer.stdout
        and "shares a " in answer.stdout
    )
    assert (
        answer.stderr.startswith("warning: ")
        and "one.toml [a]: it leads to several last nodes (a.2, b)" in answer.stderr
    )


def test_check_prints_every_problem_and_exits_with_1(run: Run, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(
        '[a]\nbackend = "DecodeMap"\nmaxx = 3\n[b]\nbackend = "Identity"\n'
    )
    (tmp_path / "two.toml").write_text("[a\n")
    answer = run("check", tmp_path)
    assert answer.exit_code == 1 and not answer.stdout
    assert (
        "did you mean 'DecodeMat'?" in answer.stderr
        and "two.toml: the file is not valid TOML" in answer.stderr
    )
    assert len(answer.stderr.splitlines()) >= 3


def test_check_says_what_is_expected_in_words(run: Run, tmp_path: Path) -> None:
    text = '[pipeline]\nname = "x y"\n[a]\nbackend = "OnnxTensor"\nmodel = "x.onnx"\nmin = "1xa"\n'
    (tmp_path / "one.toml").write_text(text)
    said = run("check", tmp_path / "one.toml").stderr
    assert "found '1xa': expected a batch size as 4, or shapes as 4x3x224x224" in said
    assert "found 'x y': expected letters, digits, _ . -" in said and "\\" not in said


def test_check_lists_nodes_that_are_models(run: Run, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(
        '[pipeline.expose.b]\n[a]\nbackend = "Identity"\nnext = "b"\n[b]\nbackend = "Identity"\n'
    )
    answer = run("check", tmp_path / "one.toml")
    assert answer.exit_code == 0 and "also at /v2: one.b" in answer.stdout


def test_check_shows_how_many_rows_share_a_run(run: Run, tmp_path: Path) -> None:
    """Nothing is run: what the file says of an engine is all that is known of it."""
    (tmp_path / "one.toml").write_text(
        "".join(
            f'[{name}]\nbackend = "OnnxTensor"\nmodel = "{name}.onnx"\n{keys}\n'
            for name, keys in {
                "sharing": "max = 8",
                "alone": "batched = false",
                "axis": "max = 8\nbatch_axis = { h = 1, c = 1 }",
                "shaped": 'max = "2x6x3"\nbatch_axis = "h=1"',
            }.items()
        )
        + '[pipeline]\nentry = "sharing"\n'
    )
    answer = run("check", tmp_path / "one.toml")
    assert "sharing.onnx does not exist" in answer.stderr
    rows = [line.split() for line in answer.stdout.splitlines()]
    most = {row[0]: row[3] for row in rows if len(row) > 3 and row[1] == "OnnxTensor"}
    assert most == {"sharing": "8", "alone": "1", "axis": "8", "shaped": "8"}


def test_check_names_a_wrong_batch_axis(run: Run, tmp_path: Path) -> None:
    node = '[net]\nbackend = "OnnxTensor"\nmodel = "net.onnx"\n'
    for keys, message in (
        ("batch_axis = { h = -1 }", "[net] batch_axis.h: found -1: input should be greater"),
        ('batch_axis = "h"', "[net] batch_axis.h: found ''"),
        ("batched = false\nbatch_axis = { h = 1 }", "[net] batch_axis: found {'h': 1}: batched"),
    ):
        (tmp_path / "one.toml").write_text(node + keys)
        answer = run("check", tmp_path / "one.toml")
        assert answer.exit_code == 1 and message in answer.stderr, answer.stderr


def test_check_of_a_file_that_does_not_exist(run: Run, tmp_path: Path) -> None:
    answer = run("check", tmp_path / "absent.toml")
    assert answer.exit_code == 1 and "there is no such file" in answer.stderr


def test_serve_checks_first(run: Run, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('[a]\nbackend = "DecodeMap"\n')
    answer = run("serve", tmp_path / "one.toml")
    assert answer.exit_code == 1 and "DecodeMat" in answer.stderr


def test_version(run: Run) -> None:
    answer = run("--version")
    assert (answer.exit_code, answer.stdout.strip()) == (0, f"penstock {penstock.__version__}")


def test_serve_help_lists_every_setting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = run("serve", "--help")
    assert answer.exit_code == 0
    for name in Settings.model_fields:
        assert re.search(rf"PENSTOCK_{name.upper()}[;\]]", answer.stdout) and re.search(
            f"--{name.replace('_', '-')}[ ,]", answer.stdout
        )
    assert "127.0.0.1" in answer.stdout and "67108864" in answer.stdout


@pytest.fixture
def settings_of(run: Run, monkeypatch: pytest.MonkeyPatch, digits: Path) -> Callable[..., Settings]:
    """Return the settings with which `serve` would run."""
    served: list[Settings] = []

    def record(repository: Repository, settings: Settings) -> int:
        served.append(settings)
        return 0

    def invoke(*arguments: Any) -> Settings:
        monkeypatch.setattr("penstock.app.server.serve.serve", record)
        answer = run("serve", digits, *arguments)
        assert answer.exit_code == 0, answer.stderr
        return served.pop()

    return invoke


def test_options_come_before_the_environment(
    settings_of: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings_of() == Settings()
    monkeypatch.setenv("PENSTOCK_PORT", "1234")
    monkeypatch.setenv("PENSTOCK_ACCESS_LOG", "true")
    monkeypatch.setenv("PENSTOCK_API_KEY", "k3y")
    settings = settings_of()
    assert (settings.port, settings.access_log) == (1234, True)
    assert settings.api_key is not None and settings.api_key.get_secret_value() == "k3y"
    settings = settings_of(
        "--port",
        0,
        "--no-access-log",
        "--log-format",
        "json",
        "--max-body",
        100,
        "--drain-timeout",
        1.5,
    )
    assert (
        settings.port,
        settings.access_log,
        settings.log_format,
        settings.max_body,
        settings.drain_timeout,
    ) == (0, False, "json", 100, 1.5)
    assert settings == Settings(
        port=0, access_log=False, log_format="json", max_body=100, drain_timeout=1.5
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "x"),
        ("--port", 70000),
        ("--api-key", "two words"),
        ("--log-level", "loud"),
        ("--max-images", 0),
    ],
)
def test_wrong_options(run: Run, digits: Path, arguments: tuple[Any, ...]) -> None:
    answer = run("serve", digits, *arguments)
    assert (
        answer.exit_code == 2 and arguments[0] in answer.stderr and "two words" not in answer.stderr
    )


def test_backends(run: Run) -> None:
    answer = run("backends")
    assert answer.exit_code == 0
    rows = {
        words[0]: " ".join(words[1:])
        for line in answer.stdout.splitlines()
        if len(words := line.split()) > 1
    }
    assert rows["DecodeMat"] == "yes An image file to pixels."
    assert rows["LetterBoxMat"].startswith("yes YOLO's letterbox")
    assert (
        rows["cvtColorMat"] == "yes another name for CvtColorMat"
        and rows["S"] == "yes another name for Sequential"
    )
    assert "NcnnTensor" not in rows
    lines = [line.strip() for line in answer.stdout.splitlines()]
    assert [line for line in lines if line in GROUPS] == [*GROUPS]
    assert {group_of(name) for name in registry.BUILTINS} == {*GROUPS}
    answer = run("backends", "ResizeMat")
    assert answer.exit_code == 0 and "resize_h" in answer.stdout and "required" in answer.stdout
    for bound in ("int, 1 to 32767", "available here"):
        assert bound in answer.stdout
    answer = run("backends", "PillowResizeMat")
    assert "nearest | box | bilinear | hamming | bicubic | lanczos" in answer.stdout
    for name in registry.BUILTINS:  # no regular expression, and nothing of Python's typing
        said = run("backends", name).stdout
        assert not re.search(r"\\[dsw]|Annotated|metadata=|Strict", said), said
    answer = run("backends", "ResizeMatt")
    assert answer.exit_code == 1 and "did you mean 'ResizeMat'" in answer.stderr


def test_backends_name_the_missing_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "penstock.backends.expressions.registry.extra_installed", lambda extra: extra != "tensorrt"
    )
    assert (
        "TensorrtTensor (not here: needs penstock-serve[tensorrt])"
        in run("backends", "TensorrtTensor").stdout
    )
    answer = run("backends", "NcnnTensor")
    assert answer.exit_code == 1 and "there is no backend 'NcnnTensor'" in answer.stderr
    listed = " ".join(run("backends").stdout.split())
    assert "TensorrtTensor no needs penstock-serve[tensorrt]" in listed


def test_a_broken_package_hides_no_other_backend(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("Broken", "penstock.backends.nothing:There", registry.BACKEND_ENTRY_POINTS)
    monkeypatch.setattr(registry, "installed_plugins", lambda group: {"Broken": broken})
    answer = run("backends")
    listed = " ".join(answer.stdout.split())
    assert (
        answer.exit_code == 0
        and "Broken no the backend Broken of" in listed
        and "DecodeMat yes" in listed
    )


def test_check_names_nodes_that_can_not_run_here(
    run: Run, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "penstock.app.cli.check_tables.extra_installed",
        lambda extra: extra != "tensorrt",
    )
    answer = run("check", digits.parents[1] / "resnet" / "guide.toml")
    assert (
        "resnet50.onnx does not exist" in answer.stderr
        and "resnet50 can't run here: TensorrtTensor needs penstock-serve[tensorrt]"
        in answer.stdout
    )
    assert answer.stdout.count("can't run here") == 1


def test_a_loop_is_not_a_backend(run: Run) -> None:
    answer = run("backends", "Ring")
    assert (
        answer.exit_code == 1
        and "Ring is not a backend of Penstock: write [pipeline] loop = true" in answer.stderr
    )


def test_check_loads_models_to_find_those_that_run_items_alone(run: Run, tmp_path: Path) -> None:
    for name, operator in (("apart", "Relu"), ("mixed", "CumSum")):
        inputs = ["x"] if operator == "Relu" else ["x", "axis"]
        graph = helper.make_graph(
            [helper.make_node(operator, inputs, ["y"])],
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor("axis", TensorProto.INT64, [], [0])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        (tmp_path / f"{name}.onnx").write_bytes(model.SerializeToString())
        (tmp_path / f"{name}.toml").write_text(
            f'[net]\nbackend = "OnnxTensor"\nmodel = "{name}.onnx"\nmax = 4\n'
        )
    answer = run("check", tmp_path)
    assert answer.exit_code == 0 and "and run alone otherwise (--load shows it)" in answer.stdout
    answer = run("check", tmp_path, "--load")
    assert answer.exit_code == 0, answer.stderr
    alone = [line for line in answer.stdout.splitlines() if line.endswith("runs each item alone")]
    assert alone == ["mixed: [net] runs each item alone"]


def test_check_shows_the_executor_of_each_node(run: Run, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(
        '[a]\nbackend = "Identity"\nnext = "a.2"\n[a.2]\nnext = "b"\n'
        '[b]\nbackend = "Sleep"\nnext = "c"\n'
        '[c]\nbackend = "Sleep"\nexecutor = "process"\nnext = "d"\n'
        '[d]\nbackend = "Identity"\nexecutor = "loop"\n'
    )
    answer = run("check", tmp_path)
    assert answer.exit_code == 0, answer.output
    rows = [line.split() for line in answer.stdout.splitlines() if " ms" in line]
    shown = {row[0]: row[row.index("ms") + 1 :] for row in rows}
    assert shown == {
        "a": ["auto", "a.2"],
        "a.2": ["b"],
        "b": ["thread", "c"],
        "c": ["process", "d"],
        "d": ["loop"],
    }


@pytest.mark.parametrize(("seconds", "where"), [(1.0, "the event loop"), (-1.0, "a thread")])
def test_check_tells_where_a_measured_node_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, where: str
) -> None:
    monkeypatch.setattr("penstock.pipelines.node.measured.CHEAP_SECONDS", seconds)
    (tmp_path / "one.toml").write_text('[a]\nnext = "b"\n[b]\nbackend = "Sleep(0)"\n')
    answer = run("check", tmp_path, "--load")
    assert answer.exit_code == 0, answer.output
    places = [line for line in answer.stdout.splitlines() if "measured" in line]
    assert places == [f"one: [a] runs on {where}, as measured"]


def test_check_names_the_nodes_whose_first_items_decide(run: Run, tmp_path: Path) -> None:
    graph = helper.make_graph(  # it refuses random rows, because their length is a guess
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "ten",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "size"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor("w", TensorProto.FLOAT, [10, 1], [1.0] * 10)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "ten.onnx").write_bytes(model.SerializeToString())
    for executor in ("thread", "process"):
        (tmp_path / f"{executor}.toml").write_text(
            f'[net]\nbackend = "S[Identity,OnnxTensor]"\nmodel = "ten.onnx"\nmax = 4\n'
            f'executor = "{executor}"\n'
        )
    answer = run("check", tmp_path, "--load")
    assert answer.exit_code == 0, answer.stderr
    for name in ("thread", "process"):
        note = "can't be probed at load: its first items decide whether items share runs"
        assert f"{name}: [net] {note}" in answer.stdout.splitlines()


def test_check_says_why_a_model_can_not_be_loaded(run: Run, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("class Net:\n    def forward(self, batch): ...\n")
    with (tmp_path / "net.py").open("a") as file:
        file.write("    def init(self): raise ValueError('no weights')\n")
    (tmp_path / "one.toml").write_text('[net]\nbackend = "Python[net.py:Net]"\n')
    assert run("check", tmp_path / "one.toml").exit_code == 0
    answer = run("check", tmp_path / "one.toml", "--load")
    assert answer.exit_code == 1 and "no weights" in answer.stderr


def test_folders_that_are_not_there() -> None:
    """Nothing would be watched, or a folder's name be taken for that of a backend."""
    for arguments in (["serve", "x.toml", "--reload", "--reload-dir", "gone"], ["bench", "/"]):
        answer = CliRunner().invoke(command_line, arguments, env={"COLUMNS": "200"})
        assert answer.exit_code == 2 and "irectory" in answer.stderr, answer.output
