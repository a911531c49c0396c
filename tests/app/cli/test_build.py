"""`penstock build` and `penstock encrypt`, as a user runs them.

TensorRT-RTX builds real engines.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from typer.testing import CliRunner, Result

from penstock.app.cli.main import command_line
from penstock.backends.engines.encryption import KEY_VARIABLE, decrypt

SECRET = bytes(range(32))
Run = Callable[..., Result]
Start = Callable[[], Any]  # a Popen whose three pipes are there


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv(KEY_VARIABLE, SECRET.hex())

    def invoke(*arguments: Any) -> Result:
        return CliRunner().invoke(command_line, [str(argument) for argument in arguments])

    return invoke


def write_model(path: Path, layers: int = 1) -> None:
    """Write a model that multiplies N×4 by the unit matrix, `layers` times."""
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
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "net.onnx")
    (tmp_path / "net.toml").write_text(
        '[first]\nbackend = "S[TensorrtTensor]"\nmodel = "net.onnx"\nmax = "1&4"\n'
        '"model::cache" = "kept"\nlibrary = "tensorrt_rtx"\n'
        '[second]\nbackend = "Identity"\n'
    )
    return tmp_path


def test_every_group_of_every_node_is_built_once(run: Run, folder: Path) -> None:
    answer = run("build", folder / "net.toml")
    assert answer.exit_code == 0, answer.stderr
    built = [line.split(", ")[0].rsplit(" in ", 1)[0] for line in answer.stdout.splitlines()]
    assert built == ["net/first: built", "net/first: built"]
    assert len(list((folder / "kept").glob("net-*.engine"))) == 2
    again = run("build", folder / "net.toml")
    assert again.exit_code == 0 and again.stdout.count("net/first: already there, ") == 2
    assert str(folder / "kept" / "net-") in again.stdout and "MiB)" in again.stdout


def test_an_engine_that_can_not_be_built_exits_with_1_and_the_rest_is_built(
    run: Run, folder: Path
) -> None:
    (folder / "net.toml").write_text(
        '[bad]\nbackend = "TensorrtTensor"\nmodel = "net.onnx"\nmax = "4x5"\n'
        '"model::cache" = "kept/"\nnext = "missing"\n'
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


NODE = "node 'a': TensorrtTensor: "
BAD = [
    ('model = "cut.onnx"', NODE + "the model {}/cut.onnx is not an ONNX file, or is truncated"),
    (
        'model = "beside.onnx"',
        NODE + "the model {}/beside.onnx keeps weights in gone.bin, which is not beside it",
    ),
    (
        'model = "net.onnx"\nlibrary = "tensorrt"',
        NODE + "TensorRT can't be used (tensorrt is not installed): install one",
    ),
    (
        'model = "net.onnx"\ninput_reorder = "1,0"',
        "[a] input_reorder: '1,0' must hold each of 0 to 0 once",
    ),
    (
        'model = "net.onnx"\noutput_reorder = "1"',
        "[a] output_reorder: '1' must hold each of 0 to 0 once",
    ),
    ('model = "net.onnx"\nlog_level = "loud"', "[a] log_level: "),
]


@pytest.mark.parametrize(("keys", "reason"), BAD)
def test_a_reason_names_its_node(
    run: Run, folder: Path, keys: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (folder / "net.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(whole[:-20])
    model = onnx.load_model_from_string(whole)
    set_external_data(model.graph.initializer[0], "gone.bin")
    (folder / "beside.onnx").write_bytes(model.SerializeToString())
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
    (folder / "net.toml").write_text(
        f'[a]\nbackend = "TensorrtTensor"\n"model::cache" = "kept/"\n{keys}\n'
    )
    answer = run("build", folder / "net.toml")
    assert answer.exit_code == 1 and reason.format(folder) in answer.stderr


def test_an_engine_that_can_not_be_kept_exits_with_1_and_is_not_built(
    run: Run, folder: Path
) -> None:
    (folder / "file").write_text("")
    (folder / "net.toml").write_text(
        '[a]\nbackend = "TensorrtTensor"\nmodel = "net.onnx"\n"model::cache" = "file/kept/"\n'
    )
    answer = run("build", folder / "net.toml")
    assert answer.exit_code == 1 and "built in" not in answer.stdout
    assert (
        f"node 'a': TensorrtTensor: engines can't be cached in {folder}/file/kept: File exists"
        in answer.stderr
    )


def test_a_file_without_engines_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "none.toml").write_text('[a]\nbackend = "Identity"\n')
    answer = run("build", tmp_path / "none.toml")
    assert answer.exit_code == 0 and "no node has an engine to build" in answer.stdout
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
def start(folder: Path) -> Iterator[Start]:
    """Start `penstock build` as a process that stops amid the build.

    It goes on when its standard input is closed.
    """
    write_model(folder / "net.onnx", layers=50)
    pipe = subprocess.PIPE
    processes = []

    def start() -> Any:
        command = [sys.executable, "-c", SLOW, str(folder / "net.toml")]
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_ctrl_c_cancels(start: Start, folder: Path) -> None:
    process = start()
    assert process.stdout.readline() == "building\n", process.stderr.read()
    process.send_signal(signal.SIGINT)
    while "cancelled" not in (line := process.stderr.readline()):
        assert line, "it ended and said nothing"
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not list((folder / "kept").glob("*.engine"))


def test_a_build_that_waits_for_another_says_so_and_ctrl_c_ends_it_at_once(start: Start) -> None:
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
    assert first.poll() is None  # it is still building


def test_files_are_encrypted_beside_themselves(run: Run, folder: Path) -> None:
    answer = run("encrypt", folder / "net.onnx")
    target = folder / "net.onnx.encrypted"
    assert answer.exit_code == 0 and f"wrote {target}" in answer.stdout
    assert decrypt(target.read_bytes(), SECRET, "") == (folder / "net.onnx").read_bytes()
    assert target.stat().st_mode & 0o777 == 0o600
    (folder / "net.toml").write_text(
        '[a]\nbackend = "TensorrtTensor"\nmodel = "net.onnx.encrypted"\nmax = 2\n'
        '"model::cache" = "net.trt.encrypted"\n'
    )
    answer = run("build", folder / "net.toml")
    assert answer.exit_code == 0 and "net/a: built" in answer.stdout
    decrypt((folder / "net.trt.encrypted").read_bytes(), SECRET, "")


def test_the_key_in_a_file_comes_before_the_environment(run: Run, folder: Path) -> None:
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


def test_what_stops_encryption(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        "does not end with .encrypted"
        in run("encrypt", folder / "net.onnx", "--output", folder / "x").stderr
    )
    answer = run("encrypt", folder / "net.onnx", "--output", folder / "none" / "x.encrypted")
    assert (
        answer.exit_code == 1
        and f"there is no such directory as {folder / 'none'}" in answer.stderr
    )
    monkeypatch.setenv(KEY_VARIABLE, "short")
    answer = run("encrypt", folder / "net.onnx")
    assert (
        answer.exit_code == 1
        and f"{KEY_VARIABLE} does not hold a key" in answer.stderr
        and "short" not in answer.stderr
    )
    assert not (folder / "net.onnx.encrypted").exists()
