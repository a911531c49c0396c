"""The rules of the house (who may import whom), and what is built and installed."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_string
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import penstock

ROOT = Path(__file__).parents[1]
ROOMS = ("app", "pipelines", "backends")  # each may import from those behind it
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
RUNS_COROUTINES_OF_USERS = {"triton_python", "torchserve"}
"""The rooms of backends with event loops of their own, for the coroutines that models are."""
HTTP = {
    "fastapi",
    "starlette",
    "uvicorn",
    "httptools",
    "httpx",
    "http",
    "urllib",
    "python_multipart",
    "prometheus_client",
    "typer",
    "rich",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("penstock", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def imports_of(path: Path) -> set[str]:
    """Return the absolute names of the modules that a file imports, wherever the import is."""
    package = (
        name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    )
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            imported |= {
                full if is_module(full) or base == "penstock" else base
                for full in (f"{base}.{alias.name}" for alias in node.names)
            }
    return imported


def is_module(name: str) -> bool:
    if not name.startswith("penstock."):
        return False
    path = ROOT.joinpath(*name.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").exists()


# the house


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    forbidden = set(ROOMS[: ROOMS.index(room)])
    for imported in imports_of(path):
        first, *rest = imported.split(".")
        if first == "penstock" and rest:
            assert rest[0] in ROOMS, f"{imported} is for users: import it from where it lives"
            assert rest[0] not in forbidden, f"{room} must not import {imported}"
        assert first not in ROOMS, f"{imported}: the import name is penstock.{imported}"
        if room != "app":
            assert first not in HTTP, f"only app knows HTTP, and {room} imports {imported}"
        if room == "backends" and path.parent.name not in RUNS_COROUTINES_OF_USERS:
            assert first != "asyncio", "backends know threads, no asyncio"


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {name_of(path) for path in MODULES}
    graph = {name_of(path): imports_of(path) & names - {name_of(path)} for path in MODULES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


PACKAGES = sorted({path.parent for path in MODULES} | {ROOT / room for room in ROOMS})


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_between_rooms_run_one_way(package: Path) -> None:
    """Each folder of a package is a room, and so is each of its modules: their imports make no
    circle.
    """
    prefix = name_of(package / "__init__.py")

    def room_of(module: str) -> str | None:
        if not module.startswith(f"{prefix}."):
            return None
        room = module.removeprefix(f"{prefix}.").split(".")[0]
        return room if is_module(f"{prefix}.{room}") else None

    graph: dict[str, set[str]] = {}
    reasons: dict[tuple[str, str], set[str]] = {}
    for path in package.rglob("*.py"):
        room = room_of(name_of(path))
        for imported in imports_of(path) if room is not None else ():
            other = room_of(imported)
            if room is not None and other is not None and other != room:
                graph.setdefault(room, set()).add(other)
                reasons.setdefault((room, other), set()).add(f"{name_of(path)} -> {imported}")
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = error.args[1]  # each room is imported by the next
        steps = [sorted(reasons[user, used]) for used, user in pairwise(circle)]
        pytest.fail(f"imports run in a circle: {steps}")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_say_what_they_are_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def python(code: str, *, cwd: Path | None = None, executable: str = sys.executable) -> str:
    done = subprocess.run(
        [executable, "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        # What is installed there is looked at, not a checkout that PYTHONPATH names.
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if executable != sys.executable
        else None,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_pipelines_load_no_engine() -> None:
    names = [name_of(path) for path in MODULES if path.is_relative_to(ROOT / "pipelines")]
    heavy = ("torch", "tensorrt", "onnxruntime", "onnx", "cv2", "fastapi", "starlette", "uvicorn")
    code = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert python(code) == "[]"


def test_import_penstock_loads_nothing_else() -> None:
    code = (
        "import sys, penstock\n"
        "heavy = ('pydantic', 'asyncio', 'numpy')\n"
        "print(sorted(m for m in sys.modules if m.startswith('penstock') or m in heavy))"
    )
    assert python(code) == "['penstock']"


def test_every_public_name_is_there() -> None:
    code = "import penstock; print([n for n in penstock.__all__ if getattr(penstock, n) is None])"
    assert python(code) == "[]"


def test_public_names_that_are_listed_twice_agree() -> None:
    """`__all__`, the lazy names and the names for type checkers are the same."""
    tree = ast.parse((ROOT / "penstock" / "__init__.py").read_text())
    typed = {
        alias.name: f"{node.module}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("penstock.")
        for alias in node.names
    }
    assert sorted(typed) == sorted(penstock.__all__)
    for name, module in typed.items():
        assert getattr(penstock, name) is getattr(importlib.import_module(module), name)


# what is built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the sdist, and with the wheel built from that sdist."""
    source = tmp_path_factory.mktemp("source") / "penstock"
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "*.onnx")
    # A copy, because building leaves files behind.
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


def packaged() -> list[str]:
    own = [f"penstock/{path.name}" for path in (ROOT / "penstock").glob("*.py")]
    assets = [path for path in (ROOT / "app").glob("*/assets/**/*") if path.is_file()]
    return sorted(
        [
            *(f"penstock/{path.relative_to(ROOT)}" for path in (*MODULES, *assets)),
            *own,
            "penstock/py.typed",
        ]
    )


def test_the_wheel_has_every_module_once(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    assert sorted(name for name in names if ".dist-info/" not in name) == packaged()
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_sdist_has_the_modules_and_no_links(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    files = sorted(member.name.partition("/")[2] for member in members if member.isfile())
    assert [name for name in files if name.startswith("penstock/")] == packaged()
    others = [
        name for name in files if not name.startswith(("penstock/", "penstock_serve.egg-info/"))
    ]
    assert others == [
        "LICENSE",
        "MANIFEST.in",
        "PKG-INFO",
        "README.md",
        "pyproject.toml",
        "setup.cfg",
    ]


def test_the_base_install_needs_no_accelerator_library(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_string(archive.read(name).decode())
    requirements = metadata.get_all("Requires-Dist") or []
    base = {
        re.split(r"[^\w.-]", requirement)[0].lower()
        for requirement in requirements
        if "extra ==" not in requirement
    }
    assert {"fastapi", "numpy", "onnxruntime", "opencv-python-headless"} <= base
    assert not {
        name for name in base if re.match(r"torch|tensorrt|nvidia|openvino|onnxruntime-gpu", name)
    }
    assert (
        metadata["Requires-Python"] == ">=3.11" and metadata["License-Expression"] == "Apache-2.0"
    )


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return bin/ of a new environment with the wheel; its dependencies are this environment's."""
    directory = tmp_path_factory.mktemp("venv")
    venv.create(directory, with_pip=False, symlinks=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("site-packages"))
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(directory / "bin" / "python"),
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PIP_NO_INPUT": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return directory / "bin"


def test_it_installs_beside_a_project_with_a_package_app(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("owner = 'the host'\n")
    (tmp_path / "app" / "main.py").write_text(
        "import penstock\n"
        "from penstock import create_app, Pipeline, Backend\n"
        "where = penstock.__file__\n"
    )
    code = (
        "import app, app.main, penstock.app.factory as factory\n"
        "print(app.owner, app.main.where, factory.__name__, sep='|')"
    )
    owner, where, factory = python(code, cwd=tmp_path, executable=str(installed / "python")).split(
        "|"
    )
    assert owner == "the host" and factory == "penstock.app.factory"
    assert Path(where).is_relative_to(installed.parent) and not Path(where).is_relative_to(ROOT)


def test_no_other_top_level_name_is_installed(installed: Path, tmp_path: Path) -> None:
    names = (*ROOMS, "tests", "scripts", "examples")
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    assert python(code, cwd=tmp_path, executable=str(installed / "python")) == "[]"


def test_the_command_is_installed(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [installed / "penstock", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and "serve" in done.stdout, done.stderr


# what the Dockerfile copies


def test_the_docker_context_has_what_the_build_needs() -> None:
    """The files that the Dockerfile copies exist and are not ignored. Docker does not run here."""
    ignored = (ROOT / ".dockerignore").read_text().split()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert {"pyproject.toml", "README.md", "LICENSE", "penstock", *ROOMS} <= kept
    for path in kept:
        assert (ROOT / path).exists(), path
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = [
        line.split()[1]
        for line in dockerfile.splitlines()
        if line.startswith("COPY ") and "--from" not in line
    ]
    for path in copied:
        assert (ROOT / path).exists() and (path == "." or path in kept)
    stages = [line.split()[1] for line in dockerfile.splitlines() if line.startswith("FROM ")]
    assert all(first == second for first, second in pairwise(stages)), (
        "the environment is copied between equal images"
    )
