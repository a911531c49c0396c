"""An example as its users run it: served over HTTP on a free port, or by `penstock call`."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

from penstock import create_app
from penstock.app.cli.main import command_line

Serve = Callable[[Path], AbstractContextManager[httpx.Client]]
Call = Callable[..., Any]
Load = Callable[[Path], ModuleType]


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Return a context manager that serves a pipeline file and yields a client of /predict/."""
    return serving


@contextmanager
def serving(pipeline: Path) -> Iterator[httpx.Client]:
    config = uvicorn.Config(
        create_app(pipeline), port=0, loop="uvloop", lifespan="on", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        address = f"http://127.0.0.1:{port}/predict/"
        # Above a limit, httpcore may close an idle connection that another thread has just taken.
        limits = httpx.Limits(max_keepalive_connections=None)
        with httpx.Client(base_url=address, timeout=60, verify=False, limits=limits) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def client(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """Serve the module's PIPELINE."""
    with serving(request.module.PIPELINE) as client:
        yield client


@pytest.fixture
def call() -> Call:
    """Return a function that runs `penstock call FILE IMAGE` and returns the answer."""

    def run(*arguments: Any) -> Any:
        outcome = CliRunner().invoke(command_line, ["call", *map(str, arguments)])
        assert outcome.exit_code == 0, outcome.output
        return json.loads(outcome.stdout)

    return run


@pytest.fixture(scope="session")
def load() -> Load:
    """Return a function that imports a script of an example."""

    def run(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look for their module there
        spec.loader.exec_module(module)
        return module

    return run
