"""An example as its users meet it: served over HTTP on a free port, or asked by `penstock call`."""

from __future__ import annotations

import importlib.util
import json
import threading
from typing import Any

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

from penstock import create_app
from penstock.app.cli.main import command_line


@pytest.fixture(scope="module")
def client(request: Any) -> Any:
    """An httpx client of the module's PIPELINE."""
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(request.module.PIPELINE),
            port=0,
            loop="uvloop",
            lifespan="on",
            log_config=None,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/predict/",
            timeout=60,
        ) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def call() -> Any:
    """What `penstock call FILE IMAGE` answers."""

    def run(*arguments: Any) -> Any:
        outcome = CliRunner().invoke(command_line, ["call", *map(str, arguments)])
        assert outcome.exit_code == 0, outcome.output
        return json.loads(outcome.stdout)

    return run


@pytest.fixture(scope="session")
def load() -> Any:
    """A script of an example, imported."""

    def run(path: Any) -> Any:
        spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return run
