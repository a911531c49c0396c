"""Make the pictures of the page that the documentation shows. `scripts/screenshots` starts it."""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from chromium import browsing
from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, expect

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "_static"
MOST_BYTES = 150_000
"""Of a picture: the repository keeps every version of it."""
DESKTOP, PHONE = ViewportSize(width=1440, height=900), ViewportSize(width=390, height=844)
LOAD_SECONDS, QUICK_SECONDS = 60.0, 1.0
"""How long the pages watch a load before the first picture, so that the charts show something."""
PATIENCE_MS = 60_000
BURST = 24
"""Requests at once, the slowest of which is explained in a picture."""


class Load(NamedTuple):
    """What is sent to an example while the pictures are made."""

    pipeline: str
    file: str
    clients: int
    pause: float
    """Seconds between an answer and the client's next request."""


LOADS = (
    Load("page_digits", "page.png", 3, 0.03),
    Load("detector", "astronaut.jpg", 1, 0.4),
    Load("photograph", "coffee.jpg", 1, 0.3),
    Load("digits", "digit.png", 2, 0.05),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/screenshots", description=__doc__)
    parser.add_argument("--output", type=Path, default=PICTURES, metavar="DIRECTORY")
    parser.add_argument("--quick", action="store_true", help="with empty charts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for load in LOADS:
            copy_example(ROOT / "examples" / load.pipeline, folder)
        with serving(folder) as port, loading(port, folder), browsing() as browser:
            seconds = QUICK_SECONDS if arguments.quick else LOAD_SECONDS
            for picture in pictures(browser, port, folder, arguments.output, seconds):
                print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB", flush=True)


def copy_example(example: Path, folder: Path) -> None:
    """Copy an example, and its models from the packages that have them, as its file says."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(example, folder, dirs_exist_ok=True, ignore=ignore)
    text = (example / f"{example.name}.toml").read_text()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in re.findall(r"^# +(cp .*)$", text, re.MULTILINE):
        subprocess.run(command, shell=True, check=True, cwd=folder, env=os.environ | {"PATH": path})


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """Serve all pipelines of a folder, and yield the port once they are ready.

    Raises RuntimeError if the server ends before.
    """
    command = [sys.executable, "-m", "penstock", "serve", str(folder), "--port", "0", "--strict"]
    settings = {
        name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")
    }
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=settings) as server:
        assert server.stderr is not None
        try:
            log = ""
            for line in server.stderr:
                log += line
                if "ready after" in line:
                    break
            found = re.search(r"listening on http://\S+:(\d+)", log)
            if found is None or server.poll() is not None:
                raise RuntimeError(f"the server ended:\n{log}")
            # Else the pipe is full at some time, and the server says that it drops lines.
            threading.Thread(target=server.stderr.read, daemon=True).start()
            yield int(found[1])
        finally:
            server.terminate()


@contextmanager
def loading(port: int, folder: Path) -> Iterator[None]:
    """Send what LOADS says until the block ends."""
    ended = threading.Event()
    clients = [
        threading.Thread(target=send, args=(port, load, (folder / load.file).read_bytes(), ended))
        for load in LOADS
        for _ in range(load.clients)
    ]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        ended.set()
        for client in clients:
            client.join()


def send(port: int, load: Load, body: bytes, ended: threading.Event) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while not ended.wait(load.pause):
        connection.request("PUT", f"/predict/{load.pipeline}", body)
        connection.getresponse().read()
    connection.close()


def get(port: int, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    with connection.getresponse() as answer:
        return json.load(answer)


def slowest_of_burst(port: int, pipeline: str, body: bytes) -> str:
    """Send BURST requests at once and return the id of the slowest."""

    def ask(_: int) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("PUT", f"/predict/{pipeline}", body)
        with connection.getresponse() as answer:
            return str(answer.headers["X-Request-Id"])

    with ThreadPoolExecutor(BURST) as clients:
        ids = list(clients.map(ask, range(BURST)))
    return max(ids, key=lambda one: float(get(port, f"/requests/{one}")["ms"]))


def pictures(
    browser: Browser, port: int, folder: Path, output: Path, seconds: float
) -> Iterator[Path]:
    """Make the pictures one by one, after `seconds` in which the charts fill."""
    url = f"http://127.0.0.1:{port}/"
    output.mkdir(parents=True, exist_ok=True)
    page = open_page(browser, f"{url}#/p/page_digits", DESKTOP)
    phone = open_page(browser, f"{url}#/p/page_digits", PHONE)
    page.wait_for_timeout(seconds * 1000)
    yield take(page, output / "page-overview-light.png")
    yield take(phone, output / "page-phone.png")
    page.emulate_media(color_scheme="dark")
    yield take(page, output / "page-overview-dark.png")
    page.emulate_media(color_scheme="light")

    page.goto(f"{url}#/p/detector/try")
    page.locator("input[type=file]").first.set_input_files(folder / "astronaut.jpg")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.get_by_role("region", name="Answer")).to_contain_text("200 OK")
    yield take(page, output / "page-try.png")

    page.goto(f"{url}#/p/photograph/requests")
    slowest = slowest_of_burst(port, "photograph", (folder / "coffee.jpg").read_bytes())
    page.goto(f"{url}#/requests/{slowest}")
    expect(page.get_by_role("region", name="Waterfall")).to_be_visible()
    expect(page.locator("a[href^='#/requests/']").first).to_be_visible()  # the list is there
    yield take(page, output / "page-why.png")


def open_page(browser: Browser, url: str, size: ViewportSize) -> Page:
    page = browser.new_page(
        viewport=size,
        device_scale_factor=1,
        color_scheme="light",
        reduced_motion="reduce",
        locale="en-GB",
        timezone_id="UTC",
    )
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    expect(page.get_by_text(re.compile("^Ready, "))).to_be_visible(timeout=PATIENCE_MS)
    return page


def take(page: Page, path: Path) -> Path:
    """Write what the page shows as a PNG, with a palette if it would be larger than MOST_BYTES.

    Raises RuntimeError if it still is.
    """
    page.mouse.move(0, 0)
    image = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    image.save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise RuntimeError(f"{path} has {path.stat().st_size} bytes, more than {MOST_BYTES}")
    return path


if __name__ == "__main__":
    main()
