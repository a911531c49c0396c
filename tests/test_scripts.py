"""scripts/ and .ci/run, run for real in a copy of the checkout. Its virtual environments are this one in disguise: nothing is installed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("sh", "cat", "cksum", "dirname", "sleep", "kill")


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A checkout with spaces in its path."""
    house = tmp_path / "a house"
    for each in ("scripts", ".ci", "examples/digits"):
        shutil.copytree(ROOT / each, house / each, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", house)
    return house


def install(house: Path, directory: str, extras: str, *requirements: str) -> None:
    """What scripts/setup leaves behind, with commands that lead to this environment."""
    write_script(house / directory / "bin" / "python", f'exec "{sys.executable}" "$@"')
    write_script(
        house / directory / "bin" / "penstock", f'exec "{sys.executable}" -m penstock "$@"'
    )
    checksum = subprocess.run(
        ["cksum"], input=(house / "pyproject.toml").read_bytes(), capture_output=True, check=True
    )
    wanted = f"{house} [{extras}] {' '.join(requirements)} {checksum.stdout.decode()}"
    (house / directory / "installed").write_text(wanted)


def run(command: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """From a directory that is not the checkout's."""
    done = [str(command), *arguments]
    return subprocess.run(
        done,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )


def path_without(tmp_path: Path, *more: str) -> str:
    """A PATH with little on it."""
    directory = tmp_path / "few tools"
    directory.mkdir()
    for tool in (*TOOLS, *more):
        found = shutil.which(tool)
        if found is not None:
            (directory / tool).symlink_to(found)
    return str(directory)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_demo_answers_and_ends(house: Path, port: int) -> None:
    if shutil.which("curl") is None:
        pytest.fail("this test needs curl: apt install curl, apk add curl or brew install curl")
    install(house, ".venv", "")
    done = run(house / "scripts" / "demo", "--once", PORT=str(port))
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"label":"three"' in done.stdout
    assert (
        f"== curl -T examples/digits/digit.png http://127.0.0.1:{port}/predict/digits"
        in done.stdout
    )
    assert f"http://127.0.0.1:{port}/docs" in done.stdout
    with socket.socket() as probe:  # the server has ended
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_demo_serves_until_ctrl_c(house: Path, port: int) -> None:
    install(house, ".venv", "")
    command = [str(house / "scripts" / "demo")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PORT": str(port)},
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as demo:  # fmt: skip
        assert demo.stdout is not None
        while "serving until Ctrl-C" not in (line := demo.stdout.readline()):
            assert line, "it ended"
        os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
        assert "draining" in demo.stdout.read()
        assert demo.wait(30) == 130
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.pid, 0)


def test_demo_without_curl_and_with_its_port_taken(house: Path, tmp_path: Path) -> None:
    install(house, ".venv", "")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(
            house / "scripts" / "demo", "--once", PORT=str(port), PATH=path_without(tmp_path)
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"label":"three"' in done.stdout and "there is no curl" in done.stdout
    assert f"127.0.0.1:{port}" not in done.stdout


def test_demo_says_when_the_server_does_not_start(house: Path, port: int) -> None:
    install(house, ".venv", "")
    (house / "examples" / "digits" / "digits.onnx").unlink()
    done = run(house / "scripts" / "demo", PORT=str(port))
    assert (
        done.returncode == 1 and "the server ended" in done.stderr and "digits.onnx" in done.stderr
    )


def test_demo_refuses_what_it_does_not_know(house: Path) -> None:
    done = run(house / "scripts" / "demo", "--ones")
    assert done.returncode == 2 and "usage" in done.stderr


CLIENTS = ("kserve==0.21.0; python_version < '3.14'", "schemathesis==4.32.5")
PYTEST = "ran: -m pytest -n auto --maxprocesses 4 --dist loadfile"


@pytest.fixture
def checked_house(house: Path) -> Path:
    """A checkout whose tools say that they ran. Its pytest exits with 3."""
    install(house, ".venv-test", "dev")
    install(house, ".venv-clients", "-", *CLIENTS)
    python = 'case "$1 $2" in "-c "*) exit 0 ;; esac; echo "ran: $*"; test "$2" != pytest || exit 3'
    write_script(house / ".venv-test" / "bin" / "python", python)
    for tool in ("ruff", "mypy", "pyright"):
        write_script(house / ".venv-test" / "bin" / tool, f'echo "ran: {tool} $*"')
    return house


def test_test_gives_its_arguments_to_pytest(checked_house: Path) -> None:
    done = run(checked_house / "scripts" / "test", "-k", "a or b")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (3, f"{PYTEST} -k a or b")


def test_ci_runs_every_step_and_fails_if_one_fails(checked_house: Path) -> None:
    done = run(checked_house / ".ci" / "run")
    assert done.returncode == 1
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran: ")]
    assert [line.split()[1] for line in ran[:-2]] == ["ruff", "ruff", "mypy", "mypy", "pyright"]
    assert ran[-2].startswith("ran: -m build") and ran[-1].startswith(f"{PYTEST} --cov")
    for tool in ("python", "mypy"):
        write_script(checked_house / ".venv-test" / "bin" / tool, "exit 0")
    assert run(checked_house / ".ci" / "run").returncode == 0
    write_script(checked_house / ".venv-test" / "bin" / "mypy", "exit 1")
    assert run(checked_house / ".ci" / "run").returncode == 1


def test_tests_that_run_in_the_background_can_interrupt_their_children() -> None:
    """`nohup` and background jobs start with SIGINT ignored, which children inherit."""
    code = (
        "import runpy, signal, subprocess, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "runpy.run_path('tests/conftest.py')\n"
        "look = 'import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)'\n"
        "subprocess.run([sys.executable, '-c', look], check=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_setup_installs_again_when_requirements_change(house: Path) -> None:
    write_script(
        house / ".venv" / "bin" / "python", 'case "$1" in -c) ;; *) echo "ran: $*" ;; esac'
    )
    first = run(house / "scripts" / "setup", ".venv", "dev", "one==1")
    assert "ran: -m pip install" in first.stdout and first.stdout.strip().endswith(
        "-e .[dev] one==1"
    )
    assert run(house / "scripts" / "setup", ".venv", "dev", "one==1").stdout == ""
    assert "ran:" in run(house / "scripts" / "setup", ".venv", "dev", "one==2").stdout
    (house / "pyproject.toml").write_text("[project]\n")
    assert "ran:" in run(house / "scripts" / "setup", ".venv", "dev", "one==2").stdout


def test_setup_installs_requirements_alone(house: Path) -> None:
    write_script(
        house / ".venv" / "bin" / "python", 'case "$1" in -c) ;; *) echo "ran: $*" ;; esac'
    )
    done = run(house / "scripts" / "setup", ".venv", "-", "one==1", "two==2")
    assert done.stdout.strip().endswith("--progress-bar off one==1 two==2"), (
        done.stdout + done.stderr
    )
    assert run(house / "scripts" / "setup", ".venv", "-", "one==1", "two==2").stdout == ""
    assert "-e ." in run(house / "scripts" / "setup", ".venv", "", "one==1", "two==2").stdout


def test_setup_says_which_python_it_needs(house: Path, tmp_path: Path) -> None:
    path = path_without(tmp_path)
    write_script(
        Path(path) / "python3", 'case "$1" in --version) echo Python 3.9.2 ;; *) exit 1 ;; esac'
    )
    done = run(house / "scripts" / "setup", ".venv", "", PATH=path, PYTHON="")
    assert done.returncode == 1
    assert "needs Python 3.11 or later" in done.stderr and "python3 is Python 3.9.2" in done.stderr


def test_setup_takes_the_first_python_that_will_do(house: Path, tmp_path: Path) -> None:
    path = path_without(tmp_path)
    write_script(Path(path) / "python3", "exit 1")
    make = 'mkdir -p "$4/bin"; cp "$0" "$4/bin/python"'
    write_script(
        Path(path) / "python3.12",
        f'PATH={os.environ["PATH"]}\ncase "$2" in venv) {make} ;; *) [ "$1" = -c ] || echo "ran: $*" ;; esac',
    )
    done = run(house / "scripts" / "setup", ".venv", "", PATH=path, PYTHON="")
    assert done.returncode == 0, done.stderr
    assert "(python3.12)" in done.stdout and "ran: -m pip install" in done.stdout
