"""scripts/ and .ci/run, run in a copy of the checkout.

Its virtual environments only lead to this one: nothing is installed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .ports import free_port

ROOT = Path(__file__).parents[1]
TOOLS = ("sh", "cat", "cksum", "dirname", "sleep", "kill", "nice")


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy the checkout to a path with spaces."""
    checkout = tmp_path / "a checkout"
    for folder in ("scripts", ".ci", "examples/photograph"):
        shutil.copytree(
            ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", checkout)
    return checkout


def install(checkout: Path, directory: str, extras: str, *requirements: str) -> None:
    """Write what scripts/setup leaves, with commands that run in this environment."""
    write_script(checkout / directory / "bin" / "python", f'exec "{sys.executable}" "$@"')
    write_script(
        checkout / directory / "bin" / "penstock", f'exec "{sys.executable}" -m penstock "$@"'
    )
    checksum = subprocess.run(
        ["cksum"], input=(checkout / "pyproject.toml").read_bytes(), capture_output=True, check=True
    )
    wanted = f"{checkout} [{extras}] {' '.join(requirements)} {checksum.stdout.decode()}"
    (checkout / directory / "installed").write_text(wanted)


def run(command: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script from a directory outside the checkout."""
    return subprocess.run(
        [str(command), *arguments],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )


def path_without(tmp_path: Path, *more: str) -> str:
    """Return a PATH with only a few tools on it."""
    directory = tmp_path / "few tools"
    directory.mkdir()
    for tool in (*TOOLS, *more):
        path = shutil.which(tool)
        if path is not None:
            (directory / tool).symlink_to(path)
    return str(directory)


@pytest.fixture
def port() -> int:
    return free_port()


def test_demo_answers_and_ends(checkout: Path, port: int) -> None:
    if shutil.which("curl") is None:
        pytest.fail("this test needs curl: apt install curl, apk add curl or brew install curl")
    install(checkout, ".venv", "")
    done = run(checkout / "scripts" / "demo", "--once", PORT=str(port))
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"label":"espresso"' in done.stdout
    assert (
        f"== curl -T examples/photograph/coffee.jpg http://127.0.0.1:{port}/predict/photograph"
        in done.stdout
    )
    with socket.socket() as probe:  # nothing listens: the server has ended
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_demo_serves_until_ctrl_c(checkout: Path, port: int) -> None:
    install(checkout, ".venv", "")
    command = [str(checkout / "scripts" / "demo")]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PORT": str(port)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as demo:
        assert demo.stdout is not None
        shown = ""
        while "serving until Ctrl-C" not in (line := demo.stdout.readline()):
            assert line, "the demo ended"
            shown += line
        assert f"http://127.0.0.1:{port}/docs" in shown
        assert f"penstock bench http://127.0.0.1:{port}/predict/photograph" in shown
        os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
        assert "draining" in demo.stdout.read()
        assert demo.wait(30) == 130
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.pid, 0)


def test_demo_without_curl_and_with_its_port_taken(checkout: Path, tmp_path: Path) -> None:
    install(checkout, ".venv", "")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(
            checkout / "scripts" / "demo", "--once", PORT=str(port), PATH=path_without(tmp_path)
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"label":"espresso"' in done.stdout and "without curl" in done.stdout
    assert f"127.0.0.1:{port}" not in done.stdout


def test_demo_reports_a_server_that_does_not_start(checkout: Path, port: int) -> None:
    install(checkout, ".venv", "")
    (checkout / "examples" / "photograph" / "photograph.onnx").unlink()
    done = run(checkout / "scripts" / "demo", PORT=str(port))
    assert (
        done.returncode == 1
        and "the server ended" in done.stderr
        and "photograph.onnx" in done.stderr
    )


def test_demo_refuses_unknown_arguments(checkout: Path) -> None:
    done = run(checkout / "scripts" / "demo", "--ones")
    assert done.returncode == 2 and "usage" in done.stderr


CLIENTS = ("kserve==0.21.0; python_version < '3.14'", "schemathesis==4.32.5")
WHEEL = "sys_platform == 'linux' and platform_machine == 'x86_64' and python_version < '3.13'"
TRITON = (f"nvidia-pytriton==0.7.0; {WHEEL}", f"numpy<2; {WHEEL}")
PYTEST = "ran: -m pytest -n 3 --dist worksteal"


@pytest.fixture
def tool_checkout(checkout: Path) -> Path:
    """A checkout whose tools only print that they ran, and whose pytest exits with 3."""
    install(checkout, ".venv-test", "dev")
    install(checkout, ".venv-clients", "-", *CLIENTS)
    install(checkout, ".venv-triton", "-", *TRITON)
    python = (
        'case "$1 $2" in "-c import os"*) echo 3; exit 0 ;; "-c "*) exit 0 ;; esac\n'
        'echo "ran: $*"; test "$2" != pytest || exit 3'
    )
    write_script(checkout / ".venv-test" / "bin" / "python", python)
    for tool in ("ruff", "mypy", "pyright"):
        write_script(checkout / ".venv-test" / "bin" / tool, f'echo "ran: {tool} $*"')
    return checkout


def test_test_gives_its_arguments_to_pytest(tool_checkout: Path) -> None:
    done = run(tool_checkout / "scripts" / "test", "-k", "a or b")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (3, f"{PYTEST} -k a or b")


def test_ci_runs_every_step_and_fails_if_one_fails(tool_checkout: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    for tool in ("nginx", "chromium", "redis-server"):
        write_script(installed / tool, "exit 0")
    path = f"{installed}{os.pathsep}{os.environ['PATH']}"
    done = run(tool_checkout / ".ci" / "run", PATH=path)
    assert done.returncode == 1
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran: ")]
    assert ran[0] == f"{PYTEST} --version"  # this makes the environments
    checks = [line for line in ran if line.split()[1] in {"ruff", "pyright", "mypy"}]
    assert [line.split()[1] for line in checks] == ["ruff", "ruff", "pyright", "mypy"]
    steps = [line for line in ran[1:] if line not in checks]  # beside the checks
    assert steps[0].startswith("ran: -m build") and steps[1].startswith(
        f"{PYTEST} -p tests.line_coverage"
    )
    for tool in ("python", "mypy"):
        write_script(tool_checkout / ".venv-test" / "bin" / tool, "exit 0")
    assert run(tool_checkout / ".ci" / "run", PATH=path).returncode == 0
    write_script(tool_checkout / ".venv-test" / "bin" / "mypy", "exit 1")
    assert run(tool_checkout / ".ci" / "run", PATH=path).returncode == 1


def test_ci_needs_a_browser(tool_checkout: Path, tmp_path: Path) -> None:
    """It installs Debian's, and fails where that brings none."""
    write_script(tool_checkout / ".venv-test" / "bin" / "python", "exit 0")
    path = path_without(tmp_path, "mktemp", "rm")
    for tool in ("nginx", "redis-server"):
        write_script(Path(path) / tool, "exit 0")
    write_script(Path(path) / "apt-get", 'echo "apt-get $*"')
    done = run(tool_checkout / ".ci" / "run", PATH=path)
    assert done.returncode == 1
    assert "apt-get install" in done.stdout and "nginx" not in done.stdout
    assert "no chromium in PATH" in done.stderr
    write_script(Path(path) / "chromium", "exit 0")
    done = run(tool_checkout / ".ci" / "run", PATH=path)
    assert done.returncode == 0 and "apt-get" not in done.stdout, done.stdout + done.stderr


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


def test_setup_installs_again_when_requirements_change(checkout: Path) -> None:
    write_script(
        checkout / ".venv" / "bin" / "python", 'case "$1" in -c) ;; *) echo "ran: $*" ;; esac'
    )
    first = run(checkout / "scripts" / "setup", ".venv", "dev", "one==1")
    assert "ran: -m pip install" in first.stdout and first.stdout.strip().endswith(
        "-e .[dev] one==1"
    )
    assert run(checkout / "scripts" / "setup", ".venv", "dev", "one==1").stdout == ""
    assert "ran:" in run(checkout / "scripts" / "setup", ".venv", "dev", "one==2").stdout
    (checkout / "pyproject.toml").write_text("[project]\n")
    assert "ran:" in run(checkout / "scripts" / "setup", ".venv", "dev", "one==2").stdout


def test_setup_gives_options_to_pip(checkout: Path) -> None:
    write_script(
        checkout / ".venv" / "bin" / "python", 'case "$1" in -c) ;; *) echo "ran: $*" ;; esac'
    )
    done = run(checkout / "scripts" / "setup", ".venv", "", PIP_OPTIONS="--no-compile --no-deps")
    assert "ran: -m pip install --no-compile --no-deps --quiet" in done.stdout


def test_setup_installs_requirements_alone(checkout: Path) -> None:
    write_script(
        checkout / ".venv" / "bin" / "python", 'case "$1" in -c) ;; *) echo "ran: $*" ;; esac'
    )
    done = run(checkout / "scripts" / "setup", ".venv", "-", "one==1", "two==2")
    assert done.stdout.strip().endswith("--no-input one==1 two==2"), done.stdout + done.stderr
    assert run(checkout / "scripts" / "setup", ".venv", "-", "one==1", "two==2").stdout == ""
    assert "-e ." in run(checkout / "scripts" / "setup", ".venv", "", "one==1", "two==2").stdout


def test_setup_names_the_python_that_it_needs(checkout: Path, tmp_path: Path) -> None:
    path = path_without(tmp_path)
    write_script(
        Path(path) / "python3", 'case "$1" in --version) echo Python 3.9.2 ;; *) exit 1 ;; esac'
    )
    done = run(checkout / "scripts" / "setup", ".venv", "", PATH=path, PYTHON="")
    assert done.returncode == 1
    assert "needs Python 3.11 or later" in done.stderr and "python3 is Python 3.9.2" in done.stderr


def test_setup_takes_the_first_suitable_python(checkout: Path, tmp_path: Path) -> None:
    path = path_without(tmp_path)
    write_script(Path(path) / "python3", "exit 1")
    make = 'mkdir -p "$4/bin"; cp "$0" "$4/bin/python"'
    write_script(
        Path(path) / "python3.12",
        f"PATH={os.environ['PATH']}\n"
        f'case "$2" in venv) {make} ;; *) [ "$1" = -c ] || echo "ran: $*" ;; esac',
    )
    done = run(checkout / "scripts" / "setup", ".venv", "", PATH=path, PYTHON="")
    assert done.returncode == 0, done.stderr
    assert "(python3.12)" in done.stdout and "ran: -m pip install" in done.stdout


@pytest.mark.skipif(
    shutil.which("chromium") is None and "CI" not in os.environ,
    reason="Chromium is not installed: apt install chromium",
)
def test_the_pictures_of_the_page_are_made_again(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(ROOT / "scripts" / "screenshots"), "--quick", f"--output={tmp_path}"],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"PENSTOCK_PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = {picture.name for picture in (ROOT / "docs" / "_static").glob("page-*.png")}
    assert {picture.name for picture in tmp_path.iterdir()} == shown


def test_a_short_soak_finds_nothing_wrong() -> None:
    done = subprocess.run(
        [str(ROOT / "scripts" / "soak"), "--quick"],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PENSTOCK_PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "crossed: 0, lost: 0, doubled: 0" in done.stdout
    for happened in ("child process killed", "RST", "reload 200", "in process: cancelled"):
        assert happened in done.stdout
