"""`penstock check` of Triton's repositories: a line for each field, and an exit status."""

from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save
from typer.testing import CliRunner, Result

from penstock.app.cli.main import command_line

CONFIG = """
platform: "onnxruntime_onnx"
max_batch_size: 8
instance_group [ { kind: KIND_CPU } ]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
optimization { input_pinned_memory { enable: true } }
"""


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Result]:
    monkeypatch.setenv("COLUMNS", "80")
    return lambda path: CliRunner().invoke(command_line, ["check", str(path)])


def write_model(repository: Path, name: str, config: str) -> Path:
    """Write a model that returns its input, and its configuration. Return the latter's path."""
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("X", "Y")
    ]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["X"], ["Y"])], "identity", ports[:1], ports[1:]
    )
    (repository / name / "1").mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(model, str(repository / name / "1" / "model.onnx"))
    file = repository / name / "config.pbtxt"
    file.write_text(config)
    return file


def test_a_line_says_of_each_field_what_is_done_with_it(
    check: Callable[[Path], Result], tmp_path: Path
) -> None:
    file = write_model(tmp_path, "identity", CONFIG)
    result = check(tmp_path)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"{file} (onnxruntime): 3 honoured, 2 approximated, 1 ignored"
    shown = {tuple(line.split(maxsplit=2)[:2]) for line in lines[1:7]}
    assert shown == {
        ("ignored", "optimization.input_pinned_memory.enable:"),
        ("approximated", "dynamic_batching.preferred_batch_size:"),
        ("honoured", "platform"),
        ("honoured", "max_batch_size:"),
        ("honoured", "instance_group.kind"),
        ("approximated", "dynamic_batching.max_queue_delay_microseconds:"),
    }
    assert "platform (onnxruntime_onnx): " in result.stdout
    assert "/v2/models/identity" in result.stdout


def test_a_refused_field_fails_and_the_other_models_are_shown(
    check: Callable[[Path], Result], tmp_path: Path
) -> None:
    write_model(tmp_path, "identity", CONFIG)
    ragged = write_model(tmp_path, "ragged", CONFIG + 'batch_input { source_input: "X" }')
    template = write_model(tmp_path, "template", "max_batch_size: ${most}")
    result = check(tmp_path)
    assert result.exit_code == 1
    assert "\n  refused       batch_input: " in result.stdout
    assert f"{ragged} batch_input[0]: " in result.stderr
    assert f"{template}: this is a template" in result.stderr
    assert "identity: fine" in result.stdout


def test_a_template_is_called_one(check: Callable[[Path], Result], tmp_path: Path) -> None:
    file = tmp_path / "config.pbtxt.template"
    file.write_text(CONFIG.replace("max_batch_size: 8", "max_batch_size: MOST"))
    result = check(file)
    assert result.exit_code == 1
    assert f"{file}: this is a template: it holds MOST" in result.stderr


@pytest.mark.parametrize(("more", "status"), [("", 0), ('runtime: "other.so"', 1), ("x: 1", 1)])
def test_a_file_is_checked_by_itself(
    more: str, status: int, check: Callable[[Path], Result], tmp_path: Path
) -> None:
    file = tmp_path / "config_of_a_model.pbtxt"
    file.write_text(CONFIG + more)
    result = check(file)
    assert result.exit_code == status
    assert (str(file) in result.stderr) == bool(status)
    assert ("max_batch_size: " in result.stdout) == (more != "x: 1")
