"""`penstock build` and `penstock encrypt`, run as a user runs them. Engines are built for real, by TensorRT-RTX."""

from __future__ import annotations

import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from penstock.app.cli.main import command_line
from penstock.backends.engines.encryption import KEY, decrypt

SECRET = bytes(range(32))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv(KEY, SECRET.hex())

    def invoke(*arguments: Any) -> Any:
        return CliRunner().invoke(command_line, [str(each) for each in arguments])

    return invoke


def write_model(path: Any, layers: Any = 1) -> None:
    """N x 4, multiplied by the unit matrix `layers` times."""
    names = [f"x{index}" for index in range(layers + 1)]
    nodes = [
        helper.make_node("MatMul", [before, "w"], [after]) for before, after in pairwise(names)
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4])
        for name in (names[0], names[-1])
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        ports[:1],
        ports[1:],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    write_model(tmp_path / "net.onnx")
    (tmp_path / "net.toml").write_text(
        '[first]\nbackend = "S[TensorrtTensor]"\nmodel = "net.onnx"\nmax = "1&4"\n"model::cache" = "kept"\nlibrary = "tensorrt_rtx"\n'
        '[second]\nbackend = "Identity"\n'
    )
    return tmp_path


def test_every_group_of_every_node_is_built_once(run: Any, folder: Any) -> None:
    answer = run("build", folder / "net.toml")
    assert answer.exit_code == 0, answer.stderr
    built = [line.split(", ")[0].rsplit(" in ", 1)[0] for line in answer.stdout.splitlines()]
    assert built == ["net/first: built", "net/first: built"]
    assert len(list((folder / "kept").glob("net-*.engine"))) == 2
    again = run("build", folder / "net.toml")
    assert again.exit_code == 0 and again.stdout.count("net/first: already there, ") == 2
    assert str(folder / "kept" / "net-") in again.stdout and "MiB)" in again.stdout


def test_what_can_not_be_built_exits_with_1_and_the_rest_is_built(run: Any, folder: Any) -> None:
    (folder / "net.toml").write_text(
        '[bad]\nbackend = "TensorrtTensor"\nmodel = "net.onnx"\nmax = "4x5"\n"model::cache" = "kept/"\nnext = "missing"\n'
        '[missing]\nbackend = "TensorrtTensor"\nmodel = "gone.onnx"\nnext = "good"\n'
        '[good]\nbackend = "TensorrtTensor"\nmodel = "net.onnx"\n"model::cache" = "kept/"\n'
    )
    answer = run("build", folder / "net.toml")
    assert answer.exit_code == 1
    assert (
        "net/good: built in" in answer.stdout
        and "max has the shape 4x5 for input x0 (Nx4)" in answer.stderr
    )
    assert (
        f"node 'missing': TensorrtTensor: the model {folder}/gone.onnx does not exist"
        in answer.stderr
    )


BAD = {
    'model = "cut.onnx"': "node 'a': TensorrtTensor: the model {}/cut.onnx is no ONNX file, or is cut off",
    'model = "beside.onnx"': "node 'a': TensorrtTensor: the model {}/beside.onnx keeps weights in gone.bin, which is not beside it",
    'model = "net.onnx"\nlibrary = "tensorrt"': "node 'a': TensorrtTensor: TensorRT is not here (tensorrt is not installed): install one",
    'model = "net.onnx"\ninput_reorder = "1,0"': "[a] input_reorder: '1,0' must hold each of 0 to 0 once",
    'model = "net.onnx"\noutput_reorder = "1"': "[a] output_reorder: '1' must hold each of 0 to 0 once",
    'model = "net.onnx"\nlog_level = "loud"': "[a] log_level: ",
}


@pytest.mark.parametrize("keys", BAD)
def test_what_is_wrong_names_its_node(
    run: Any, folder: Any, keys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (folder / "net.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(whole[:-20])
    model = onnx.load_model_from_string(whole)
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "gone.bin")
    (folder / "beside.onnx").write_bytes(model.SerializeToString())
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as where it is not installed
    (folder / "net.toml").write_text(
        f'[a]\nbackend = "TensorrtTensor"\n"model::cache" = "kept/"\n{keys}\n'
    )
    answer = run("build", folder / "net.toml")
    assert answer.exit_code == 1 and BAD[keys].format(folder) in answer.stderr


def test_what_can_not_be_kept_exits_with_1_and_is_not_built(run: Any, folder: Any) -> None:
    (folder / "file").write_text("")
    (folder / "net.toml").write_text(
        '[a]\nbackend = "TensorrtTensor"\nmodel = "net.onnx"\n"model::cache" = "file/kept/"\n'
    )
    answer = run("build", folder / "net.toml")
    assert answer.exit_code == 1 and "built in" not in answer.stdout
    assert (
        f"node 'a': TensorrtTensor: engines can't be kept in {folder}/file/kept: File exists"
        in answer.stderr
    )


def test_a_file_without_engines_says_so(run: Any, tmp_path: Path) -> None:
    (tmp_path / "none.toml").write_text('[a]\nbackend = "Identity"\n')
    answer = run("build", tmp_path / "none.toml")
    assert answer.exit_code == 0 and "no node has an engine that is built ahead" in answer.stdout
    (tmp_path / "none.toml").write_text('[a]\nbackend = "Identty"\n')
    assert run("build", tmp_path / "none.toml").exit_code == 1


SLOW = """
import sys
from itertools import pairwise
from penstock.app.cli.main import main
from penstock.backends.engines.tensorrt.progress import Progress

step = Progress.step

def tell(progress, name, index):
    if not progress.cancelled:
        print("building", flush=True)
        sys.stdin.read()  # until Ctrl-C has come
    return step(progress, name, index)

Progress.step = tell
sys.argv = ["penstock", "build", sys.argv[1]]
main()
"""


@pytest.fixture
def start(folder: Any) -> Any:
    """`penstock build` as a process that stops in the middle of the build, and goes on when its standard input is closed."""
    write_model(folder / "net.onnx", layers=50)
    pipe = subprocess.PIPE
    found = []

    def start() -> Any:
        command = [sys.executable, "-c", SLOW, str(folder / "net.toml")]
        found.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return found[-1]

    yield start
    for process in found:
        process.kill()
        process.communicate()


def test_ctrl_c_cancels(start: Any, folder: Any) -> None:
    process = start()
    assert process.stdout.readline() == "building\n", process.stderr.read()
    process.send_signal(signal.SIGINT)
    while "cancelled" not in (line := process.stderr.readline()):
        assert line, "it ended without a word"
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not list((folder / "kept").glob("*.engine"))


def test_who_waits_for_another_build_says_so_and_ctrl_c_ends_it_at_once(start: Any) -> None:
    first = start()
    assert first.stdout.readline() == "building\n", first.stderr.read()
    second = start()
    assert (
        second.stderr.readline()
        == f"net/first: waits for process {first.pid}, which builds the same engine\n"
    )
    second.send_signal(signal.SIGINT)
    answer, said = second.communicate(timeout=60)
    assert (second.returncode, answer, said.strip()) == (130, "", "cancelled")
    assert first.poll() is None  # it still builds


def test_files_are_encrypted_beside_themselves(run: Any, folder: Any) -> None:
    answer = run("encrypt", folder / "net.onnx")
    target = folder / "net.onnx.encrypted"
    assert answer.exit_code == 0 and f"wrote {target}" in answer.stdout
    assert decrypt(target.read_bytes(), SECRET, "") == (folder / "net.onnx").read_bytes()
    assert target.stat().st_mode & 0o777 == 0o600
    (folder / "net.toml").write_text(
        '[a]\nbackend = "TensorrtTensor"\nmodel = "net.onnx.encrypted"\nmax = 2\n"model::cache" = "net.trt.encrypted"\n'
    )
    answer = run("build", folder / "net.toml")
    assert answer.exit_code == 0 and "net/a: built" in answer.stdout
    decrypt((folder / "net.trt.encrypted").read_bytes(), SECRET, "")


def test_the_key_of_a_file_comes_first(run: Any, folder: Any) -> None:
    (folder / "key").write_text("22" * 32)
    answer = run(
        "encrypt",
        folder / "net.onnx",
        "--output",
        folder / "x.encrypted",
        "--key-file",
        folder / "key",
    )
    assert answer.exit_code == 0
    assert (
        decrypt((folder / "x.encrypted").read_bytes(), bytes([0x22] * 32), "")
        == (folder / "net.onnx").read_bytes()
    )


def test_what_stops_encryption(run: Any, folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        "does not end with .encrypted"
        in run("encrypt", folder / "net.onnx", "--output", folder / "x").stderr
    )
    answer = run("encrypt", folder / "net.onnx", "--output", folder / "none" / "x.encrypted")
    assert answer.exit_code == 1 and "No such file or directory" in answer.stderr
    monkeypatch.setenv(KEY, "short")
    answer = run("encrypt", folder / "net.onnx")
    assert (
        answer.exit_code == 1
        and f"{KEY} holds no key" in answer.stderr
        and "short" not in answer.stderr
    )
    assert not (folder / "net.onnx.encrypted").exists()
