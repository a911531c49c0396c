"""Cached engines: hits, misses, damaged files, and one build for several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from penstock.backends.engines.encryption import KEY_VARIABLE, WrongKeyError
from penstock.backends.engines.tensorrt.cache import (
    ENGINE_MAGIC,
    load_or_build,
    place_of,
    write,
    write_atomically,
)
from penstock.backends.engines.tensorrt.progress import BuildCancelledError, Progress
from penstock.backends.errors import BackendError

MADE_OF = {"model": "abc", "version": "10.3", "batch sizes": [1, 2]}


class Builder:
    """Counts its builds."""

    builds: int

    def __init__(self, plan: bytes = b"a plan") -> None:
        self.plan = plan
        self.builds = 0

    def __call__(self) -> bytes:
        self.builds += 1
        return self.plan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "here" / "m.engine"


def test_a_miss_is_built_and_a_hit_is_not(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build = Builder()
    with caplog.at_level("INFO", "penstock.tensorrt"):
        assert load_or_build(path, MADE_OF, build, "node 'net'") == (b"a plan", True)
    assert f"node 'net': no engine is cached at {path} yet" in caplog.text
    assert load_or_build(path, MADE_OF, build, "net") == (b"a plan", False)
    assert build.builds == 1


def test_only_the_owner_may_read_it(path: Path) -> None:
    load_or_build(path, MADE_OF, Builder(), "net")
    assert path.stat().st_mode & 0o777 == 0o600
    assert [folder.stat().st_mode & 0o777 for folder in (path.parent, path.parent.parent)] == [
        0o700,
        0o700,
    ]


def damage(data: Any, kind: Any) -> Any:
    return {
        "another file": (b"\x7fELF" + data, "it is not an engine that Penstock wrote"),
        "empty": (b"", "it is not an engine that Penstock wrote"),
        "truncated in the plan": (data[:-2], "it is damaged: it holds 4 bytes of an engine of 6"),
        "truncated in the header": (
            data[: len(ENGINE_MAGIC) + 10],
            "it is damaged: it ends within its header",
        ),
        "truncated after the magic": (data[: len(ENGINE_MAGIC) + 2], "it is damaged"),
        "another plan": (
            data[:-1] + b"x",
            "it is damaged: its content has changed since it was written",
        ),
        "not JSON": (data.replace(b'{"key"', b"{?key?"), "it is damaged: its header can't be read"),
        "no key": (data.replace(b'"key"', b'"kex"'), "it is damaged: its header can't be read"),
        "a huge header": (ENGINE_MAGIC + b"\xff" * 8, "it is damaged: it ends within its header"),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "another file",
        "empty",
        "truncated in the plan",
        "truncated in the header",
        "truncated after the magic",
        "another plan",
        "not JSON",
        "no key",
        "a huge header",
    ],
)
def test_damaged_and_foreign_files_are_rebuilt_and_the_reason_logged(
    path: Path, caplog: pytest.LogCaptureFixture, kind: Any
) -> None:
    load_or_build(path, MADE_OF, Builder(), "net")
    data, reason = damage(path.read_bytes(), kind)
    path.write_bytes(data)
    build = Builder(b"another")
    assert load_or_build(path, MADE_OF, build, "node 'net'") == (b"another", True)
    # Other tests may have lowered the logger's level, so there may be more lines.
    (line,) = [message for message in caplog.messages if "is rebuilt" in message]
    assert line.startswith(f"node 'net': the engine cached at {path} is rebuilt: {reason}")
    assert load_or_build(path, MADE_OF, build, "net") == (b"another", False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "10.4"}, 'it was built for version = "10.3", but "10.4" is wanted'),
        (
            {"batch sizes": [1, 2, 4]},
            "it was built for batch sizes = [1, 2], but [1, 2, 4] is wanted",
        ),
        ({"model": "d" * 64, "version": "11"}, 'it was built for model = "abc", but "ddd'),
        ({"new": "key"}, 'it was built for new = null, but "key" is wanted'),
    ],
)
def test_stale_engines_are_rebuilt(
    path: Path, caplog: pytest.LogCaptureFixture, change: Any, reason: str
) -> None:
    load_or_build(path, MADE_OF, Builder(), "net")
    assert load_or_build(path, {**MADE_OF, **change}, Builder(b"new"), "net") == (b"new", True)
    assert reason in caplog.text


def test_a_failed_build_leaves_the_cached_engine_and_releases_the_lock(path: Path) -> None:
    load_or_build(path, MADE_OF, Builder(), "net")

    def fail() -> bytes:
        raise BackendError("no")

    with pytest.raises(BackendError):
        load_or_build(path, {**MADE_OF, "version": "11"}, fail, "net")
    assert load_or_build(path, MADE_OF, fail, "net") == (b"a plan", False)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".m.engine.lock", "m.engine"]


def test_the_engine_is_built_where_it_can_not_be_cached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert load_or_build(tmp_path / "file" / "m.engine", MADE_OF, Builder(), "net") == (
        b"a plan",
        True,
    )
    assert (
        f"net: engines can't be cached in {tmp_path}/file (File exists): the engine is built now, "
        "and again at every start" in caplog.text
    )


def test_writing_is_all_or_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_or_build(path, MADE_OF, Builder(), "net")

    def full(handle: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        write_atomically(path, b"half")
    assert load_or_build(path, MADE_OF, Builder(), "net") == (b"a plan", False)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".m.engine.lock", "m.engine"]


def test_a_build_ahead_fails_where_the_engine_can_not_be_cached(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    build = Builder()
    with pytest.raises(
        BackendError, match=rf"^net: engines can't be cached in {tmp_path}/file: File exists$"
    ):
        load_or_build(tmp_path / "file" / "m.engine", MADE_OF, build, "net", ahead=True)
    assert not build.builds  # a build would take minutes, in vain

    def full(handle: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        BackendError,
        match=rf"^net: the engine was built, but can't be cached at {path}: No space left on "
        r"device$",
    ):
        load_or_build(path, MADE_OF, build, "net", ahead=True)


def test_on_a_full_disk_the_engine_is_built_and_not_cached(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(handle: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert load_or_build(path, MADE_OF, Builder(), "net") == (b"a plan", True)
    assert f"net: the engine can't be cached at {path}: No space left on device" in caplog.text


PROCESS = """
import sys
from pathlib import Path
from penstock.backends.engines.tensorrt.cache import load_or_build

path, log = Path(sys.argv[1]), Path(sys.argv[2])

def build():
    with log.open("a") as file:
        file.write("built ")
    print("building", flush=True)
    sys.stdin.read()  # until the other process has been started, too
    return b"plan"

print(load_or_build(path, {"a": 1}, build, "net"), flush=True)
"""


def test_one_of_two_processes_builds(tmp_path: Path) -> None:
    path, log = tmp_path / "m.engine", tmp_path / "log"
    command = [sys.executable, "-c", PROCESS, str(path), str(log)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first:
        assert first.stdout is not None and first.stdout.readline() == "building\n"
        with subprocess.Popen(command, **pipes) as second:
            wait_until_it_waits(second.pid)
            assert log.read_text() == "built "
            answer, _ = first.communicate(timeout=60)
            assert answer == "FoundPlan(plan=b'plan', built=True)\n"
            answer, _ = second.communicate(timeout=60)
            assert answer == "FoundPlan(plan=b'plan', built=False)\n"
    assert log.read_text() == "built "


def test_a_wait_names_the_other_process_and_can_be_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    outcomes: list[Any] = []
    phases: list[str] = []
    progress = Progress(lambda fraction, phase: phases.append(phase))

    def wait() -> None:
        try:
            outcomes.append(load_or_build(path, MADE_OF, Builder(), "node 'net'", progress))
        except BuildCancelledError as error:
            outcomes.append(error)

    with subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(path), str(tmp_path / "log")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "building\n"
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until_it_waits(os.getpid())
        assert phases == [f"waits for process {other.pid}"]
        assert progress.text == f"waits for process {other.pid}, which builds the engine"
        progress.cancel()
        thread.join(60)
        assert not thread.is_alive() and other.poll() is None
        assert str(outcomes[0]).startswith(
            f"node 'net': cancelled while it waited for process {other.pid}, which has the lock of "
            f"{path}"
        )
        other.communicate(timeout=60)
    build = Builder()  # the lock is free again: the abandoned thread released it
    assert load_or_build(path, MADE_OF, build, "net").built and build.builds == 1


def wait_until_it_waits(process: Any) -> None:
    """Wait until the kernel lists the process among those that wait for a lock."""
    for _ in range(100_000):
        if any(
            "->" in line and f" {process} " in line
            for line in Path("/proc/locks").read_text().splitlines()
        ):
            return
    raise AssertionError("it does not wait")


def test_one_of_many_threads_builds(path: Path) -> None:
    build, cached_engines = Builder(), []
    threads = [
        threading.Thread(
            target=lambda: cached_engines.append(load_or_build(path, MADE_OF, build, "net"))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert build.builds == 1 and sorted(engine.built for engine in cached_engines) == [
        False
    ] * 7 + [True]


def test_encrypted_engines_need_their_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, build = tmp_path / "m.trt.encrypted", Builder()
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(BackendError, match="encrypted files need a key"):
        load_or_build(path, MADE_OF, Builder(), "net")
    assert not path.exists()
    monkeypatch.setenv(KEY_VARIABLE, "11" * 32)
    load_or_build(path, MADE_OF, build, "net")
    assert load_or_build(path, MADE_OF, build, "net") == (b"a plan", False)
    assert b"a plan" not in path.read_bytes() and b"version" not in path.read_bytes()
    monkeypatch.setenv(KEY_VARIABLE, "22" * 32)
    with pytest.raises(WrongKeyError, match="another key, or changed since"):
        load_or_build(path, MADE_OF, build, "net")
    monkeypatch.setenv(KEY_VARIABLE, "11" * 32)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WrongKeyError):
        load_or_build(path, MADE_OF, build, "net")
    assert build.builds == 1


def test_a_plain_file_in_place_of_an_encrypted_one_is_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "11" * 32)
    write(tmp_path / "plain.trt", MADE_OF, b"a plan")
    path = (tmp_path / "plain.trt").rename(tmp_path / "m.trt.encrypted")
    assert load_or_build(path, MADE_OF, Builder(), "net").built
    assert "is not encrypted" in caplog.text


def test_the_place_is_a_file_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "net.v2.onnx"
    assert place_of(tmp_path / "x.trt", model, MADE_OF) == tmp_path / "x.trt"
    in_folder = place_of(tmp_path, model, MADE_OF)
    assert (
        in_folder.parent == tmp_path
        and in_folder.name.startswith("net-")
        and in_folder.suffix == ".engine"
    )
    assert place_of(tmp_path / "new", model, MADE_OF).parent == tmp_path / "new"
    assert place_of(tmp_path, model, {**MADE_OF, "version": "11"}) != in_folder
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert place_of(None, model, MADE_OF) == Path("/there/penstock/engines") / in_folder.name
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert place_of(None, model, MADE_OF).parent == Path("/home/me/.cache/penstock/engines")
    with pytest.raises(BackendError, match="the model itself: expected another file"):
        place_of(model, model, MADE_OF)
