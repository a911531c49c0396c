"""`scripts/soak`: tagged requests and faults, for a while."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from doors import batch, in_process, infer, predict
from faults import faults, kill_children, reload
from tally import Tally
from wire import Wire, request

TOKEN = "soak-admin"
ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"

IN_PROCESS_SHARE = 0.4
"""The part of the time in which items run in this process; the rest is HTTP."""

MOST_GROWTH = 1.5
"""How many times the memory after a tenth of the time the server may hold at the end."""

SLACK_BYTES = 64 << 20
"""A growth of memory that proves nothing."""

LEAST_SECONDS = 120
"""In less time, caches and the allocator's pools are still filling."""

SETTLE_SECONDS = 30
"""The seconds that the server has to close what clients have left."""

FEW_DESCRIPTORS = 4
"""More descriptors than before that prove nothing."""

UNEXPECTED = r" ERROR (asyncio|uvicorn)|the scheduler failed|the decision failed|never awaited"
"""What the log must not say. Failed batches it may: children are killed."""

OPERATORS = """
from penstock.backends.base import Backend

class Tagged(Backend):
    "Gives its text back."
    max = 16

    def forward(self, batch):
        for item in batch:
            item["result"] = bytes(item["data"]).decode()
"""

NODE = '[pipeline]\noutputs = { result = { kind = "text" } }\n[first]\nbackend = "Identity"\n' + (
    'next = "second"\n[second]\nbackend = "Python[operators.py:Tagged]"\ninstance_num = 2\n'
)
CHILD = NODE + 'executor = "process"\n'


class Watch:
    """The memory and the descriptors of a server over time."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.seen: list[tuple[float, int, int]] = []
        """Each time: seconds, bytes that the server holds, descriptors that it has open."""

    async def run(self, tally: Tally, pause: float) -> None:
        began = time.monotonic()
        while not tally.over:
            self.seen.append((time.monotonic() - began, self.memory(), self.descriptors()))
            await asyncio.sleep(pause)

    def memory(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208  it is only counted

    def check(self, tally: Tally) -> None:
        """Complain of memory that grew. The beginning, in which caches fill, does not count, and a
        shorter run proves nothing.
        """
        if self.seen[-1][0] < LEAST_SECONDS:
            return
        held = [memory for _, memory, _ in self.seen]
        early = max(held[: max(1, len(held) // 10)])
        late = sorted(held[-max(1, len(held) // 10) :])
        median = late[len(late) // 2]
        if median > MOST_GROWTH * early + SLACK_BYTES:
            tally.complain(f"the server's memory grew from {early >> 20} to {median >> 20} MiB")


@contextmanager
def served(tally: Tally) -> Iterator[tuple[int, Watch]]:
    """Run a server. Yields its port, and its watch. It must end well."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        (folder / "operators.py").write_text(OPERATORS)
        for name, text in (("tagged", NODE), ("reloaded", NODE), ("child", CHILD)):
            (folder / f"{name}.toml").write_text(text)
        for file in ("digits.toml", "digits.onnx", "labels.txt"):
            (folder / file).symlink_to(DIGITS / file)
        (folder / "token").write_text(TOKEN)
        (folder / "token").chmod(0o600)
        command = [sys.executable, "-m", "penstock", "serve", directory, "--port", "0"]
        options = ["--allow-model-control", "--admin-token-file", str(folder / "token")]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen([*command, *options], stderr=log)
        try:
            yield _ready(server, folder / "log"), Watch(server.pid)
            server.terminate()
            if server.wait(60) != 0:
                tally.complain(f"the server ended with {server.returncode}")
            for line in (folder / "log").read_text(errors="replace").splitlines():
                if re.search(UNEXPECTED, line):
                    tally.complain(f"the server logged: {line}")
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()


def _ready(server: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until the server is ready. Return its port."""
    while True:
        text = log.read_text(errors="replace")
        if server.poll() is not None:
            raise RuntimeError(f"the server ended:\n{text}")
        port = re.search(r"listening on http://127.0.0.1:(\d+)", text)
        if port and re.search(r" ready after ", text):
            return int(port[1])
        time.sleep(0.05)


async def over_http(tally: Tally, port: int, watch: Watch, quick: bool) -> None:
    """Send to a server through every door while faults happen."""
    before = watch.descriptors()
    pause = 0.1 if quick else 1.0
    await asyncio.gather(
        *(predict(tally, port, name) for name in ("tagged", "reloaded", "child") * 3),
        *(batch(tally, port, name) for name in ("tagged", "child") * 4),
        *(infer(tally, port, name) for name in ("tagged", "reloaded")),
        *(faults(tally, port, pause / 10) for _ in range(4)),
        reload(tally, port, "reloaded", TOKEN, pause * 2),
        kill_children(tally, watch.pid, pause * 5),
        watch.run(tally, pause),
    )
    watch.check(tally)
    # The server closes what the faults left open.
    for _ in range(SETTLE_SECONDS * 10):
        if watch.descriptors() <= before + FEW_DESCRIPTORS:
            break
        await asyncio.sleep(0.1)
    else:
        tally.complain(f"{watch.descriptors() - before} descriptors are open that were not before")
    wire = Wire(port)
    await wire.send(request("GET", "/metrics"))
    text = (await wire.answer()).body.decode()
    await wire.close()
    for line in re.findall(r"^penstock_requests_in\S+ .*$", text, re.MULTILINE):
        if float(line.split()[-1]):
            tally.complain(f"at the end: {line}")


def report(tally: Tally, watch: Watch, seconds: float) -> None:
    print(f"{tally.items:,} tagged items in {seconds:.0f} s: {tally.right.total():,} answered")
    for title, counter in (
        ("answered", tally.right),
        ("refused or failed", tally.refused),
        ("faults", tally.faults),
    ):
        print(f"{title}:")
        for name, number in sorted(counter.items()):
            print(f"  {name}: {number:,}")
    print("the server's memory and descriptors:")
    step = max(1, len(watch.seen) // 10)
    for when, memory, descriptors in watch.seen[::step]:
        print(f"  {when:6.0f} s: {memory / 2**20:6.0f} MiB, {descriptors} descriptors")
    print(f"crossed: {tally.crossed}, lost: {tally.lost}, doubled: {tally.doubled}")
    for text in tally.wrong:
        print(f"wrong: {text}")


def soak(minutes: float, most: int | None, quick: bool) -> bool:
    """Return whether nothing was wrong."""
    began = time.monotonic()
    seconds = minutes * 60
    tally = Tally(began + seconds * IN_PROCESS_SHARE, None if most is None else int(most * 0.75))
    asyncio.run(in_process(tally, 512))
    with served(tally) as (port, watch):
        tally.ends, tally.most = time.monotonic() + seconds * (1 - IN_PROCESS_SHARE), most
        asyncio.run(over_http(tally, port, watch, quick))
    report(tally, watch, time.monotonic() - began)
    return not tally.wrong and not (tally.crossed or tally.lost or tally.doubled)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long; default: 10")
    parser.add_argument("--requests", type=int, help="end after so many tagged items")
    parser.add_argument(
        "--quick", action="store_true", help="ten seconds, with faults all the time"
    )
    arguments = parser.parse_args()
    minutes = 1 / 6 if arguments.quick else arguments.minutes
    return 0 if soak(minutes, arguments.requests, arguments.quick) else 1


if __name__ == "__main__":
    sys.exit(main())
