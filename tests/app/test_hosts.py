"""The app in hosts other than FastAPI and Starlette, beside packages with our names, several times
in one process, under several servers.
"""

import asyncio
import contextlib
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from penstock import Settings, create_app, lifespan
from penstock.backends.base import Backend
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load
from penstock.testing import Gate

GATE = Gate()
RAN: list[bytes] = []


@register_backend("HostsGate")
class HostsGate(Backend):
    """Answers the length of `data`; for b"wait", once the gate is open."""

    def forward(self, batch: Any) -> None:
        for item in batch:
            RAN.append(item["data"])
            if item["data"] == b"wait":
                GATE.wait()
            item["result"] = len(item["data"])


@pytest.fixture(autouse=True)
def gate() -> Any:
    GATE.reset()
    RAN.clear()
    yield
    GATE.open()


@pytest.fixture
def config() -> Any:
    return load({"pipeline": {"name": "gate"}, "node": {"backend": "HostsGate", "max": 1}})


def until(condition: Any) -> None:
    """Poll the server of another thread: over HTTP there is no event to wait for."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def inside(app: Any) -> Any:
    return app.state.penstock.pipelines["gate"].in_flight


@contextlib.contextmanager
def waiting(client: httpx.Client, path: str) -> Any:
    """Keep a request running until the gate opens, which the block must do."""
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(
            httpx.post(client.base_url.join(path), content=b"wait", timeout=30)
        )
    )
    thread.start()
    try:
        GATE.wait_entered()
        yield
        assert GATE.is_open
    finally:
        GATE.open()
        thread.join(30)
    assert answers[0].json() == {"result": 4}


# Litestar.


def litestar_host(models: Any, *middleware: Any) -> Any:
    from litestar import Litestar, asgi, get
    from litestar.types import Receive, Scope, Send

    @asgi("/models", is_mount=True, copy_scope=True)
    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        # Litestar strips the prefix from the path, adds a slash to its end and leaves root_path
        # alone: put back what ASGI says.
        scope["path"], scope["root_path"] = (
            unquote(scope["raw_path"].decode()),
            scope["root_path"] + "/models",
        )
        await models(scope, receive, send)

    @get("/own")
    async def own() -> dict[str, int]:
        return {"one": 1}

    return Litestar([mounted, own], lifespan=[lambda host: lifespan(models)], middleware=middleware)


class Guard:
    """Authentication of a host."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from litestar.exceptions import NotAuthorizedException

        if scope["type"] == "http" and (b"x-ticket", b"good") not in scope["headers"]:
            raise NotAuthorizedException("no ticket")
        await self.app(scope, receive, send)


class Impatient:
    """A host's time limit, which cancels the request."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if (b"x-hurry", b"yes") not in scope["headers"]:
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(0.1):
                await self.app(scope, receive, send)
        except TimeoutError:
            await send(
                {
                    "type": "http.response.start",
                    "status": 504,
                    "headers": [(b"content-length", b"0")],
                }
            )
            await send({"type": "http.response.body", "body": b""})


def test_litestar(running: Any, digits: Path, digit: bytes) -> None:
    models = create_app(digits)
    with running(litestar_host(models)) as client:
        answer = client.post("/models/predict/digits", content=digit)
        assert (
            answer.json()["label"] == "three" and "queue.digits" in answer.headers["server-timing"]
        )
        assert client.put("/models/predict/digits", content=digit).json()["label"] == "three"
        answer = client.post("/models/predict/digits/batch", files=[("images", digit)] * 2)
        assert [result["label"] for result in answer.json()["results"]] == ["three"] * 2
        assert client.get("/models/health/ready").json() == {"ready": True}
        assert client.get("/models/openapi.json").json()["servers"] == [{"url": "/models"}]
        assert client.get("/models/docs").status_code == 200
        assert client.get("/models").headers["location"] == "./models/"
        answer = client.post("/models/predict/digit", content=digit)
        assert answer.status_code == 404 and answer.json()["code"] == "not_found"
        assert client.get("/own").json() == {"one": 1}
    assert models.state.penstock.state == "closed"


def test_middleware_of_litestar_refuses(running: Any, config: Any) -> None:
    with running(litestar_host(create_app(config), Guard)) as client:
        for path in ("/models/predict/gate", "/models/predict/gate/batch"):
            for method in ("POST", "PUT"):
                answer = client.request(method, path, content=b"four")
                assert answer.status_code == 401 and "no ticket" in answer.text
        assert RAN == []
        assert client.post(
            "/models/predict/gate", content=b"four", headers={"X-Ticket": "good"}
        ).json() == {"result": 4}
    assert RAN == [b"four"]


def test_a_request_that_the_host_cancels_never_reaches_the_backend(
    running: Any, config: Any
) -> None:
    models = create_app(config)
    with (
        running(litestar_host(models, Impatient)) as client,
        waiting(client, "/models/predict/gate"),
    ):
        assert (
            client.post(
                "/models/predict/gate", content=b"hurry", headers={"X-Hurry": "yes"}
            ).status_code
            == 504
        )
        assert inside(models) == 1
        GATE.open()
    assert RAN == [b"wait"]


# Packages and processes.


HOST = """
import asyncio, sys
from pathlib import Path

import httpx
from fastapi import FastAPI

from app.settings import NAME
{imports}
from backends import OWN
from pipelines import OWN as ALSO

models = create_app(sys.argv[1])
host = FastAPI(title=NAME, lifespan=lambda host: lifespan(models))
host.mount("/models", models)


async def main():
    async with host.router.lifespan_context(host):
        transport = httpx.ASGITransport(host)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            image = Path(sys.argv[2]).read_bytes()
            answer = await client.post("/models/predict/digits", content=image)
            print(host.title, OWN, ALSO, answer.json()["label"])


if __name__ == "__main__":
    asyncio.run(main())
    here = Path.cwd()
    for name, module in sys.modules.items():
        if name.partition(".")[0] in ("app", "backends", "pipelines"):
            assert Path(module.__file__).is_relative_to(here), module
"""


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_beside_packages_with_our_names(digits: Path, tmp_path: Path, first: Any) -> None:
    """Most hosts are started by `uvicorn app.main:app`."""
    for name in ("app", "backends", "pipelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"OWN = 'their-{name}'\n")
    (tmp_path / "app" / "settings.py").write_text("NAME = 'theirs'\n")
    (tmp_path / "app" / "main.py").write_text(
        HOST.format(imports="from penstock import create_app, lifespan")
    )
    before = (
        "import penstock.app.factory, penstock.backends.image.convert"
        if first == "ours"
        else "import app, backends, pipelines"
    )
    code = f"{before}; import runpy; runpy.run_module('app.main', run_name='__main__')"
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        code,
        str(digits),
        str(digits.parent / "digit.png"),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "theirs their-backends their-pipelines three\n"), (
        done.stderr
    )


SIDE_EFFECTS = """
import asyncio, gc, json, locale, logging, os, signal, sys, threading, warnings
from pathlib import Path

import cv2, httpx, numpy, onnxruntime, fastapi
import PIL.Image, pydantic_settings, prometheus_client, orjson


def handler(number):
    # asyncio.run has a handler of SIGINT, another object each time
    handler = signal.getsignal(number)
    return str(handler) if isinstance(handler, int) else type(handler).__name__


def logger(name):
    logger = logging.getLogger(name)
    return [str(logger.handlers), logger.level, logger.propagate]


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


async def state():
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook
    return dict(
        signals=[handler(number) for number in sorted(signal.valid_signals())],
        loggers=[logger(name) for name in ("", "penstock", "uvicorn", "asyncio", "httpx")],
        gc=[gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()],
        environment=dict(os.environ), directory=os.getcwd(), path=list(sys.path), umask=umask(),
        hooks=[str(hook) for hook in hooks],
        policy=str(asyncio.get_event_loop_policy()), switch=sys.getswitchinterval(),
        stack=threading.stack_size(),
        opencv=cv2.getNumThreads(), numpy=numpy.geterr(), pillow=PIL.Image.MAX_IMAGE_PIXELS,
        locale=locale.setlocale(locale.LC_ALL), warnings=len(warnings.filters),
        recursion=sys.getrecursionlimit(),
    )


async def main(create_app, lifespan):
    models = create_app(sys.argv[1])
    async with lifespan(models):
        transport = httpx.ASGITransport(models)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            answer = await client.post("/predict/digits", content=Path(sys.argv[2]).read_bytes())
            assert answer.json()["label"] == "three"
        return await state()


first = asyncio.run(state())
from penstock import create_app, lifespan
during = asyncio.run(main(create_app, lifespan))
main_thread = threading.main_thread()
threads = [str(thread) for thread in threading.enumerate() if thread is not main_thread]
after = asyncio.run(state())
changed = {
    name: [value, during[name], after[name]]
    for name, value in first.items()
    if not value == during[name] == after[name]
}
print(json.dumps(changed | {"threads": threads}))
"""


def test_nothing_of_the_process_changes(digits: Path) -> None:
    """Threads, signals, logging, the collector, OpenCV's threads and so on belong to the host."""
    command = [sys.executable, "-c", SIDE_EFFECTS, str(digits), str(digits.parent / "digit.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"threads": []}


def test_several_pipelines_in_one_app_and_a_file_twice(
    running: Any, config: Any, digits: Path, digit: Any
) -> None:
    with running(
        create_app([load(digits, name="one"), load(digits, name="two"), digits, config])
    ) as client:
        for name in ("one", "two", "digits"):
            answer = client.post(f"/predict/{name}", content=digit)
            assert (
                answer.json()["label"] == "three"
                and "queue.digits" in answer.headers["server-timing"]
            )
        assert client.post("/predict/gate", content=b"four").json() == {"result": 4}
        paths = client.get("/openapi.json").json()["paths"]
        assert [
            name for name in ("one", "two", "digits", "gate") if f"/predict/{name}" in paths
        ] == ["one", "two", "digits", "gate"]
        lines = client.get("/metrics").text.splitlines()
        for name in ("one", "two", "digits"):
            assert (
                f'penstock_items_total{{node="digits",outcome="ok",pipeline="{name}"}} 1.0' in lines
            )
        assert [pipeline["name"] for pipeline in client.get("/pipelines").json()["pipelines"]] == [
            "digits",
            "gate",
            "one",
            "two",
        ]


def ok_items(client: httpx.Client) -> str:
    """Return the count of items that left the only node well."""
    lines = client.get("/metrics").text.splitlines()
    (line,) = [
        line for line in lines if line.startswith("penstock_items_total{") and '"ok"' in line
    ]
    return line.split()[-1]


def test_several_apps_in_several_loops(running: Any, digits: Path, digit: bytes) -> None:
    """Each has its own loop and thread. They share nothing; one may end while the other serves."""
    first, second = create_app(digits), create_app(digits)
    with running(first, loop="asyncio") as one:
        with running(second) as two:
            for client in (one, two, one):
                assert client.post("/predict/digits", content=digit).json()["label"] == "three"
            assert [ok_items(client) for client in (one, two)] == ["2.0", "1.0"]
        assert second.state.penstock.state == "closed"
        assert one.post("/predict/digits", content=digit).json()["label"] == "three"


def test_one_app_in_one_loop_after_another(running: Any, config: Any) -> None:
    app = create_app(config)

    async def briefly() -> None:
        """End the loop before the watch has looked at the request."""
        async with (
            lifespan(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client,
        ):
            assert (await client.post("/predict/gate", content=b"four")).json() == {"result": 4}

    asyncio.run(briefly())
    asyncio.run(briefly())
    with running(app) as client:
        leave(app, client)
    assert RAN == [b"four", b"four", b"wait", b"next!"]


# Servers.


@contextlib.contextmanager
def hypercorn(app: Any) -> Any:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    configuration = Config()
    configuration.bind = [f"fd://{listener.detach()}"]  # hypercorn closes it
    configuration.graceful_timeout = 5
    stop = threading.Event()

    async def run() -> None:
        async def stopped() -> None:
            while not stop.is_set():
                await asyncio.sleep(0.02)

        await serve(app, configuration, shutdown_trigger=stopped)

    thread = threading.Thread(target=asyncio.run, args=[run()])
    thread.start()
    try:
        with httpx.Client(base_url=url, timeout=30) as client:
            yield client
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(
    params=["uvicorn, uvloop", "uvicorn, asyncio", "uvicorn, asyncio, h11", "hypercorn"]
)
def server(request: Any, running: Any) -> Any:
    if request.param == "hypercorn":
        return hypercorn
    loop, http = (*request.param.split(", ")[1:], "httptools")[:2]
    return lambda app: running(app, loop=loop, http=http)


def test_a_client_that_watches_a_server_and_leaves(server: Any) -> None:
    app = create_app({"net": {"backend": "Identity"}}, settings=Settings(max_watchers=1))
    with server(app) as client:
        for _ in range(2):
            status = 503
            while status == 503:  # the server has not seen yet that the first has left
                headers = {"accept": "text/event-stream"}
                with client.stream("GET", "/status", headers=headers) as watching:
                    status = watching.status_code
                    assert status == 503 or next(watching.iter_lines()) == "event: status"


def test_a_server(server: Any, digits: Path, digit: bytes) -> None:
    app = create_app(digits)
    with server(app) as client:
        assert client.get("/health/ready").json() == {"ready": True}
        assert client.post("/predict/digits", content=digit).json()["label"] == "three"
        assert (
            client.put("/predict/digits", content=(digit[:9], digit[9:])).json()["label"] == "three"
        )  # chunked
        answer = client.post(
            "/predict/digits/batch", files=[("images", digit), ("images", b"no image")]
        )
        assert [result.get("label", result.get("code")) for result in answer.json()["results"]] == [
            "three",
            "invalid_input",
        ]
        assert "/predict/digits" in client.get("/openapi.json").json()["paths"]
        answer = client.post("/predict/digits", content=b"")
        assert (
            answer.status_code == 400
            and answer.headers["content-type"] == "application/problem+json"
        )
    assert app.state.penstock.state == "closed"


def leave(app: Any, client: httpx.Client) -> None:
    """Let one client leave while its request runs, one while it queues and one during its upload.

    Then one is answered.
    """
    head = "POST /predict/gate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
    address = client.base_url.host, client.base_url.port
    with socket.create_connection(address) as runs:
        runs.sendall((head % (4, "wait")).encode())
        GATE.wait_entered()
        with (
            socket.create_connection(address) as queues,
            socket.create_connection(address) as uploads,
        ):
            queues.sendall((head % (4, "left")).encode())
            uploads.sendall((head % (9, "half")).encode())
            until(lambda: inside(app) == 2)
        until(lambda: inside(app) == 1)
    GATE.open()
    until(lambda: inside(app) == 0)
    assert client.post("/predict/gate", content=b"next!").json() == {"result": 5}


def test_a_client_that_leaves(server: Any, config: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Queued work never runs, the answer of running work is dropped, and the server goes on."""
    app = create_app(config)
    with caplog.at_level(logging.WARNING), server(app) as client:
        assert client.get("/health/live").status_code == 200  # it serves
        leave(app, client)
    assert RAN == [b"wait", b"next!"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
