"""Named pipelines: loading, replacing and unloading while others serve."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.backends.base import Backend, Context
from penstock.backends.errors import BackendError, ConfigError, NotFound, NotReady
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import PipelineConfig, load
from penstock.pipelines.repository import Repository
from penstock.testing import Gate

GATE = Gate()


@register_backend("RepositoryGate")
class Held(Backend):
    """Runs until `GATE` is open."""

    def forward(self, batch: list[Item]) -> None:
        GATE.wait()
        for item in batch:
            item["result"] = item["data"]


@register_backend("RepositoryBroken")
class Broken(Backend):
    def init(self, params: Any, context: Context) -> None:
        raise ValueError("no weights")


@register_backend("RepositorySlow")
class Slow(Backend):
    """Loads until `GATE` is open."""

    def init(self, params: Any, context: Context) -> None:
        GATE.wait()

    def forward(self, batch: list[Item]) -> None:
        raise AssertionError


@pytest.fixture(autouse=True)
def gates() -> Iterator[None]:
    GATE.reset()
    yield
    GATE.open()


async def until_inside() -> None:
    """Wait until a backend runs or loads."""
    await GATE.entered()


def config(name: str, backend: str = "Identity") -> PipelineConfig:
    return load(backend, name=name)


async def test_start_publishes_and_close_ends() -> None:
    repository = Repository([config("one"), config("two")])
    assert "not been started" in repository.not_ready
    with pytest.raises(NotReady, match="not been started"):
        repository.get("one")
    await repository.start()
    assert repository.not_ready == "" and set(repository.pipelines) == {"one", "two"}
    assert (await repository.get("one")({"data": 1}))["result"] == 1
    await repository.close(1)
    assert repository.not_ready == "the server is closed" and not repository.pipelines


async def test_the_error_for_an_unknown_name_suggests_the_nearest() -> None:
    repository = Repository([config("digits")])
    await repository.start()
    with pytest.raises(NotFound, match=r"there is no pipeline 'digit', did you mean 'digits'\?"):
        repository.get("digit")
    with pytest.raises(NotFound):
        await repository.unload("digit")
    await repository.close(1)


async def test_loading_pipelines_are_not_ready() -> None:
    repository = Repository([config("slow", "RepositorySlow")])
    starting = asyncio.create_task(repository.start())
    await until_inside()
    assert repository.not_ready == "pipeline 'slow' is loading" and repository.states() == {
        "slow": "loading"
    }
    with pytest.raises(NotReady, match="is loading"):
        repository.get("slow")
    GATE.open()
    await starting
    assert repository.states() == {"slow": "ready"}
    await repository.close(1)


async def test_a_pipeline_that_can_not_be_loaded_stops_the_start() -> None:
    repository = Repository([config("good"), config("bad", "RepositoryBroken")])
    with pytest.raises(BackendError, match="no weights"):
        await repository.start()
    assert repository.state == "closed" and not repository.pipelines
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith(("good/", "bad/"))
    ]


def write_directory(directory: Path) -> None:
    """Write a pipeline that serves, three that can't be read and one that can't be loaded."""
    for name, text in {
        "good": '[a]\nbackend = "Identity"\n',
        "misspelt": '[a]\nbackend = "Identiti"\n',
        "named": '[pipeline]\nname = "good"\n[a]\nbackend = "Identity"\n',
        "no_toml": "[a\n",
        "no_weights": '[a]\nbackend = "RepositoryBroken"\n',
    }.items():
        (directory / f"{name}.toml").write_text(text)


async def test_a_bad_file_of_a_directory_is_reported_and_the_rest_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_directory(tmp_path)
    repository = Repository.read(tmp_path)
    await repository.start()
    assert (await repository.get("good")({"data": 1}))["result"] == 1 and not repository.not_ready
    states = repository.states()
    assert states.pop("good") == "ready"
    assert [*states] == ["misspelt", "named.toml", "no_toml", "no_weights"]
    assert all(state.startswith("failed: ") for state in states.values())
    assert "did you mean 'Identity'?" in states["misspelt"]
    assert f"another pipeline ({tmp_path / 'good.toml'}) has the name" in states["named.toml"]
    for name, said in {
        "misspelt": "misspelt.toml [a] backend",
        "named.toml": "named.toml [pipeline] name",
        "no_toml": "no_toml.toml: the file is not valid TOML",
        "no_weights": "no weights",
    }.items():
        begin = f"pipeline {name} can't be loaded and is left out: "
        (line,) = [line for line in caplog.messages if line.startswith(begin)]
        assert said in line
        with pytest.raises(NotReady, match="could not be loaded"):
            repository.get(name)
    for name in ("misspelt", "no_toml", "no_weights"):
        (tmp_path / f"{name}.toml").write_text('[a]\nbackend = "Identity"\n')
    await repository.reload("no_toml")
    await repository.reload_changed()  # the signal tries the others again
    assert {*repository.pipelines} == {"good", "no_toml", "misspelt", "no_weights"}
    await repository.close(1)


async def test_a_directory_that_must_be_whole(tmp_path: Path) -> None:
    write_directory(tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)misspelt.toml.*no_toml.toml"):
        Repository.read(tmp_path, strict=True)
    for name in ("misspelt", "named", "no_toml"):
        (tmp_path / f"{name}.toml").unlink()
    repository = Repository.read(tmp_path, strict=True)
    with pytest.raises(BackendError, match="no weights"):
        await repository.start()
    (tmp_path / "good.toml").unlink()
    repository = Repository.read(tmp_path)  # nothing is left to serve
    with pytest.raises(BackendError, match="no weights"):
        await repository.start()


async def test_a_failed_load_leaves_the_others_and_gives_its_reason_in_states() -> None:
    repository = Repository([config("good")])
    await repository.start()
    generation = repository.generation
    with pytest.raises(BackendError, match="no weights"):
        await repository.load(config("bad", "RepositoryBroken"))
    with pytest.raises(BackendError):
        await repository.load(config("good", "RepositoryBroken"))
    assert repository.generation == generation and repository.not_ready == ""
    states = repository.states()
    assert states["good"] == "ready" and "no weights" in states["bad"]
    with pytest.raises(NotReady, match="could not be loaded"):
        repository.get("bad")
    assert (await repository.get("good")({"data": 2}))["result"] == 2
    await repository.unload("bad")
    with pytest.raises(NotFound):
        repository.get("bad")
    await repository.close(1)


async def test_a_replaced_pipeline_finishes_its_requests() -> None:
    repository = Repository([config("one", "RepositoryGate")])
    await repository.start()
    old = repository.get("one")
    request = asyncio.create_task(old({"data": 3}))
    await until_inside()
    generation = repository.generation
    await repository.load(config("one"))
    new = repository.get("one")
    assert new is not old and repository.generation == generation + 1
    assert (await new({"data": 4}))["result"] == 4  # while the old one still runs
    GATE.open()
    assert (await request)["result"] == 3
    await repository.close(1)
    assert old.state == "closed"


async def test_unload_lets_requests_in_flight_end() -> None:
    repository = Repository([config("one", "RepositoryGate")])
    await repository.start()
    request = asyncio.create_task(repository.get("one")({"data": 5}))
    await until_inside()
    unloading = asyncio.create_task(repository.unload("one"))
    while "one" in repository.pipelines:
        await asyncio.sleep(0)
    with pytest.raises(NotFound):
        repository.get("one")
    assert repository.states() == {"one": "unloading"} and not unloading.done()
    GATE.open()
    assert (await request)["result"] == 5
    await unloading
    assert repository.not_ready == ""
    await repository.reload("one")
    assert repository.states() == {"one": "ready"}
    await repository.close(1)


async def test_close_waits_for_requests_in_flight_and_refuses_the_rest() -> None:
    repository = Repository([config("one", "RepositoryGate")])
    await repository.start()
    pipeline = repository.get("one")
    request = asyncio.create_task(pipeline({"data": 6}))
    await until_inside()
    closing = asyncio.create_task(repository.close(5))
    while repository.state != "draining":
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert repository.not_ready == "the server is draining"
    with pytest.raises(NotReady, match="draining"):
        await repository.get("one")({"data": 7})
    with pytest.raises(NotReady):
        await repository.load(config("two"))
    second = asyncio.create_task(repository.close(5))
    await asyncio.sleep(0.01)
    assert not closing.done() and not second.done()
    GATE.open()
    await asyncio.gather(closing, second)
    assert (await request)["result"] == 6


def test_a_repository_may_be_started_again_on_another_loop() -> None:
    repository = Repository([config("one")])

    async def once() -> Any:
        await repository.start()
        answer = await repository.get("one")({"data": 8})
        await repository.close(1)
        return answer["result"]

    assert [asyncio.run(once()), asyncio.run(once())] == [8, 8]


async def test_reload_reads_the_file_again_and_finds_new_files_of_the_directory(
    tmp_path: Path,
) -> None:
    file = tmp_path / "one.toml"
    file.write_text('[pipeline]\ndescription = "first"\n[a]\nbackend = "Identity"\n')
    repository = Repository.read(tmp_path)
    await repository.start()
    file.write_text('[pipeline]\ndescription = "second"\n[a]\nbackend = "Identity"\n')
    assert (await repository.reload("one")).config.description == "second"
    (tmp_path / "two.toml").write_text('[a]\nbackend = "Identity"\n')
    await repository.reload("two")
    assert set(repository.pipelines) == {"one", "two"}
    file.write_text('[a]\nbackend = "Nonsense"\n')
    with pytest.raises(ConfigError):
        await repository.reload("one")
    assert repository.get("one").config.description == "second"
    with pytest.raises(NotFound, match="did you mean 'two'"):
        await repository.reload("tw0")
    await repository.close(1)


SLOW_MODULE = """
import repository_gates

repository_gates.IMPORTING.set()
assert repository_gates.GATE.wait(5)


def double(data):
    return 2 * data
"""


async def test_the_loop_serves_while_a_reload_imports_user_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = types.ModuleType("repository_gates")
    importing, gate = threading.Event(), threading.Event()
    vars(gates).update(IMPORTING=importing, GATE=gate)
    monkeypatch.setitem(sys.modules, "repository_gates", gates)
    file = tmp_path / "one.toml"
    file.write_text('[a]\nbackend = "Identity"\n')
    (tmp_path / "slow.py").write_text(SLOW_MODULE)
    repository = Repository.read(tmp_path)
    await repository.start()
    file.write_text('[a]\nbackend = "Python[slow.py:double]"\n')
    first = asyncio.create_task(repository.reload("one"))
    assert await asyncio.to_thread(importing.wait, 5)
    assert (await repository.get("one")({"data": 1}))["result"] == 1  # while the import blocks
    file.write_text('[pipeline]\ndescription = "last"\n[a]\nbackend = "Identity"\n')
    second = asyncio.create_task(repository.reload("one"))
    await asyncio.sleep(0.01)
    assert not first.done() and not second.done()
    gate.set()
    assert (await (await first)({"data": 1}))["result"] == 2
    await second
    assert repository.get("one").config.description == "last"  # reloads keep their order
    await repository.close(1)


async def test_an_import_that_does_not_end_holds_neither_the_close_nor_helper_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = types.ModuleType("repository_gates")
    importing, gate = threading.Event(), threading.Event()
    vars(gates).update(IMPORTING=importing, GATE=gate)
    monkeypatch.setitem(sys.modules, "repository_gates", gates)
    file = tmp_path / "one.toml"
    file.write_text('[a]\nbackend = "Identity"\n')
    (tmp_path / "slow.py").write_text(SLOW_MODULE)
    repository = Repository.read(tmp_path)
    await repository.start()
    file.write_text('[a]\nbackend = "Python[slow.py:double]"\n')
    reload = asyncio.create_task(repository.reload("one"))
    assert await asyncio.to_thread(importing.wait, 5)
    (reader,) = [thread for thread in threading.enumerate() if thread.name == "reading one"]
    assert reader.daemon  # so that it does not keep the process alive either
    await repository.close(1)
    with pytest.raises(NotReady, match="the server is draining"):
        await reload
    gate.set()
    await asyncio.to_thread(reader.join, 5)


async def test_a_pipeline_that_is_replaced_frees_its_backends_without_the_collector() -> None:
    backends: list[weakref.ref[Backend]] = []

    @register_backend("RepositorySeen")
    class Seen(Backend):
        def init(self, params: Any, context: Context) -> None:
            backends.append(weakref.ref(self))

        def forward(self, batch: list[Item]) -> None:
            for item in batch:
                item["result"] = item["data"]

    repository = Repository([config("one", "RepositorySeen")])
    await repository.start()
    gc.collect()
    gc.disable()
    try:
        await repository.get("one")({"data": 1})
        await repository.load(config("one", "RepositorySeen"))
        await repository.wait_idle()
        assert [backend() is None for backend in backends] == [True, False]
        await repository.unload("one")
        assert [backend() is None for backend in backends] == [True, True]
    finally:
        gc.enable()
    await repository.close(1)


async def test_wait_idle_waits_for_requests_and_draining_pipelines() -> None:
    repository = Repository([config("one", "RepositoryGate"), config("two")])
    await repository.start()
    await repository.wait_idle()
    request = asyncio.create_task(repository.get("one")({"data": 1}))
    await until_inside()
    idle = asyncio.create_task(repository.wait_idle())
    await asyncio.sleep(0)
    idle.cancel()  # it must not cancel the future that it shares with other waiters
    idle = asyncio.create_task(repository.wait_idle())
    await repository.load(config("one"))
    await repository.get("one")({"data": 1})
    assert not idle.done()
    GATE.open()
    assert (await request)["result"] == 1
    await idle
    await repository.close(1)


def test_sources_of_a_repository(tmp_path: Path) -> None:
    file = tmp_path / "one.toml"
    file.write_text('[a]\nbackend = "Identity"\n')
    one = load(file)
    for source in (file, str(file), tmp_path, one, [one], {"one": one}):
        assert list(Repository.read(source).configs) == ["one"]
    assert (
        list(Repository.read({"backend": "Identity"}).configs)
        == list(Repository.read("S[Identity]").configs)
        == ["pipeline"]
    )
    assert not Repository.read().configs
    with pytest.raises(ConfigError, match="another pipeline has the name 'one'"):
        Repository.read([one, file])
    with pytest.raises(ConfigError, match="labels"):
        Repository.read(file, labels="labels.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no pipeline"):
        Repository.read(tmp_path / "empty")
    with pytest.raises(TypeError):
        Repository.read(3)


async def test_logic_calls_other_pipelines() -> None:
    @register_backend("RepositoryAsks")
    async def asks(item: Any, call: Any) -> Any:
        return (await call(item["data"], {"data": 1}))["result"]

    repository = Repository([config("asks", "RepositoryAsks"), config("one")])
    await repository.start()
    asking = repository.get("asks")
    assert (await asking({"data": "one"}))["result"] == 1
    with pytest.raises(BackendError, match="there is no pipeline 'two'"):
        await asking({"data": "two"})
    await repository.load(config("two"))
    await repository.load(config("one", "Python[builtins:repr]"))
    assert (await asking({"data": "two"}))["result"] == 1
    assert (await asking({"data": "one"}))["result"] == "1"  # the one that is loaded now
    await repository.close(1)
