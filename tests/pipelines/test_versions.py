"""Several versions of a pipeline side by side: reading, choosing, loading, failing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from penstock.backends.base import Backend, Context
from penstock.backends.errors import BackendError, ConfigError, NotFound, NotReady
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import PipelineConfig, load
from penstock.pipelines.config.versions import version_key
from penstock.pipelines.repository import Repository
from penstock.testing import Gate

GATE = Gate()


@register_backend("VersionBroken")
class Broken(Backend):
    def init(self, params: Any, context: Context) -> None:
        raise ValueError("no weights")


@register_backend("VersionHeld")
class Held(Backend):
    """Runs until `GATE` is open."""

    def forward(self, batch: list[Item]) -> None:
        GATE.wait()
        for item in batch:
            item["result"] = "held"


def config(version: str, backend: str = "Identity", **more: Any) -> PipelineConfig:
    return load({"pipeline": {"name": "m", "version": version, **more}, "n": {"backend": backend}})


def write(folder: Path, version: object, text: str = "", backend: str = "answer.py:answer") -> Path:
    """Write a version that answers its number."""
    home = folder / str(version)
    home.mkdir(parents=True, exist_ok=True)
    (home / "answer.py").write_text(f"def answer(data):\n    return {version}\n")
    file = home / "pipeline.toml"
    file.write_text(f'{text}\n[n]\nbackend = "Python[{backend}]"\n')
    return file


def write_broken(folder: Path, version: object) -> None:
    write(folder, version).write_text('[n]\nbackend = "VersionBroken"\n')


async def answers(repository: Repository) -> dict[str, Any]:
    """Return what each version of `m` answers, and what the name alone answers (``)."""
    versions = ["", *repository.versions["m"]]
    return {
        version: (await repository.get("m", version)({"data": 0}))["result"] for version in versions
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "m"


async def test_versions_in_folders_serve_side_by_side(folder: Path, tmp_path: Path) -> None:
    for version in (1, 2, 10):
        write(folder, version)
    for other in ("0", "01", "next", "notes"):  # no versions: as in Triton
        write(folder, other, backend="nowhere.py:f")
    (tmp_path / "other.toml").write_text('backend = "Identity"\n')
    repository = Repository.read(tmp_path)
    await repository.start()
    assert await answers(repository) == {"": 10, "1": 1, "2": 2, "10": 10}
    assert repository.get("m").config.version == "10"
    assert repository.get("m/versions/2") is repository.get("m", "2")
    assert repository.version_states() == {
        "m": {"1": "ready", "2": "ready", "10": "ready"},
        "other": {"1": "ready"},
    }
    assert repository.states() == {"m": "ready", "other": "ready"}
    with pytest.raises(NotFound, match=r"'m' has no version '3' here: expected one of 1, 2, 10"):
        repository.get("m", "3")
    with pytest.raises(NotFound, match="there is no pipeline 'n'"):
        repository.get("n", "3")
    await repository.close(1)


async def test_the_folder_of_one_pipeline_is_a_source(folder: Path) -> None:
    write(folder, 1)
    write(folder, 2)
    repository = Repository.read(folder)
    await repository.start()
    assert await answers(repository) == {"": 2, "1": 1, "2": 2}
    write(folder, 3)
    await repository.reload("m")
    assert await answers(repository) == {"": 3, "1": 1, "2": 2, "3": 3}
    await repository.close(1)


async def test_files_and_dicts_of_one_name_are_versions_too(tmp_path: Path) -> None:
    for version in ("1", "2.0"):
        (tmp_path / f"v{version}.toml").write_text(
            f'[pipeline]\nname = "m"\nversion = "{version}"\n[n]\nbackend = "Identity"\n'
        )
    repository = Repository.read(tmp_path)
    await repository.start()
    assert list(repository.versions["m"]) == ["1", "2.0"]
    (tmp_path / "new.toml").write_text(
        '[pipeline]\nname = "m"\nversion = 3\n[n]\nbackend = "Identity"\n'
    )
    await repository.reload("m")
    assert list(repository.versions["m"]) == ["1", "2.0", "3"]
    await repository.close(1)
    assert list(Repository([config("2"), config("1")]).version_states()["m"]) == ["1", "2"]
    with pytest.raises(ConfigError, match=r"has the name 'm': .* or another version than '1'"):
        Repository([config("1"), config("1")])
    with pytest.raises(ConfigError, match=r"another pipeline has the name 'm\.n'"):
        Repository([config("1", expose={"n": {}}), load("Identity", name="m.n")])


def test_numbers_in_versions_sort_by_value() -> None:
    ordered = ["1", "1.9", "1.10", "2", "10", "9" * 5000, "rc1", "rc2"]
    assert sorted({*ordered}, key=version_key) == ordered


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ('"all"', ["1", "2", "10"]),
        ("{ latest = 1 }", ["10"]),
        ("{ latest = 2 }", ["2", "10"]),
        ("{ latest = 9 }", ["1", "2", "10"]),
        ("{ specific = [10, 1] }", ["1", "10"]),
        ('{ specific = ["2"] }', ["2"]),
    ],
)
async def test_the_version_policy_chooses(folder: Path, policy: str, expected: list[str]) -> None:
    for version in (2, 10):
        write(folder, version)
    write(folder, 1, f"[pipeline]\nversion_policy = {policy}")  # any version's file may have it
    repository = Repository.read(folder)
    await repository.start()
    assert list(repository.versions["m"]) == list(repository.version_states()["m"]) == expected
    await repository.reload("m")
    assert list(repository.versions["m"]) == expected
    await repository.close(1)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            '"newest"',
            r"found 'newest': expected \"all\", { latest = 2 } or { specific = \[1, 3\] }",
        ),
        ("{ latest = 0 }", 'expected "all"'),
        ("{ latest = true }", 'expected "all"'),
        ("{ specific = [] }", 'expected "all"'),
        ("{ latest = 1, specific = [1] }", 'expected "all"'),
        ("{ specific = [7] }", "names version '7', which is not there: found 1, 2"),
    ],
)
def test_a_wrong_version_policy_is_refused(folder: Path, policy: str, message: str) -> None:
    for version in (1, 2):
        write(folder, version, f"[pipeline]\nversion_policy = {policy}")
    with pytest.raises(ConfigError, match=message):
        Repository.read(folder)


def test_version_policies_that_differ_are_refused(folder: Path) -> None:
    write(folder, 1, '[pipeline]\nversion_policy = "all"')
    write(folder, 2, "[pipeline]\nversion_policy = { latest = 1 }")
    with pytest.raises(ConfigError, match=r'found { latest = 1 }, but version 1 has "all"'):
        Repository.read(folder)


@pytest.mark.parametrize(("key", "expected"), [("name", "'m'"), ("version", "'1'")])
def test_a_file_may_not_contradict_its_folder(folder: Path, key: str, expected: str) -> None:
    write(folder, 1, f'[pipeline]\n{key} = "x"')
    with pytest.raises(ConfigError, match=f"found 'x': expected {expected}, as the folder says"):
        Repository.read(folder)


async def test_a_version_that_fails_takes_no_other_down(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder, 1)
    write_broken(folder, 2)  # fails when it is loaded
    write(folder, 3, backend="nowhere.py:f")  # can't even be read
    repository = Repository.read(folder)
    assert [*repository.unread] == [("m", "3")]
    with caplog.at_level(logging.ERROR):
        await repository.start()
    assert repository.not_ready == "" and await answers(repository) == {"": 1, "1": 1}
    states = repository.version_states()["m"]
    assert states["1"] == repository.states()["m"] == "ready"
    assert states["2"].startswith("failed: ") and "no weights" in states["2"]
    assert states["3"].startswith("failed: ") and "nowhere.py" in states["3"]
    assert "pipeline m: version 2 can't be loaded" in caplog.text
    assert "pipeline m: version 3 can't be loaded" in caplog.text
    for failed in ("2", "3"):
        with pytest.raises(NotReady, match=rf"'m' \(version {failed}\) could not be loaded"):
            repository.get("m", failed)
    await repository.close(1)
    await repository.start()  # a second life begins alike
    assert await answers(repository) == {"": 1, "1": 1}
    for version in (2, 3):
        write(folder, version)
    await repository.reload("m")
    assert await answers(repository) == {"": 3, "1": 1, "2": 2, "3": 3}
    await repository.close(1)


async def test_a_pipeline_none_of_whose_versions_loads_stops_the_start(folder: Path) -> None:
    for version in (1, 2):
        write_broken(folder, version)
    repository = Repository.read(folder)
    with pytest.raises(BackendError, match=r"version 1: .*no weights; version 2: .*no weights"):
        await repository.start()
    assert repository.state == "closed"
    for version in (1, 2):
        write(folder, version, backend="nowhere.py:f")
    with pytest.raises(ConfigError, match=r"(?s)1/pipeline.toml.*2/pipeline.toml"):
        Repository.read(folder)


async def test_a_reload_follows_the_folders(folder: Path) -> None:
    write(folder, 1)
    gone = write(folder, 2)
    repository = Repository.read(folder)
    await repository.start()
    old = repository.get("m", "2")
    gone.unlink()
    write_broken(folder, 3)
    with pytest.raises(BackendError, match=r"version 3: .*no weights"):
        await repository.reload("m")
    assert await answers(repository) == {"": 1, "1": 1}  # 1 is loaded, 2 is gone
    await repository.wait_idle()
    assert old.state == "closed"
    assert list(repository.version_states()["m"]) == ["1", "3"]
    write_broken(folder, 1)
    write(folder, 3)
    with pytest.raises(BackendError, match=r"version 1: .*no weights"):
        await repository.reload("m")
    assert await answers(repository) == {"": 3, "1": 1, "3": 3}  # what served of 1 goes on
    await repository.close(1)


async def test_what_serves_goes_on_when_all_folders_are_gone(folder: Path) -> None:
    file = write(folder, 1)
    repository = Repository.read(folder)
    await repository.start()
    file.unlink()
    with pytest.raises(ConfigError, match=r"there is no version: expected 1/pipeline\.toml"):
        await repository.reload("m")
    assert await answers(repository) == {"": 1, "1": 1}
    await repository.close(1)


async def test_a_load_from_python_leaves_the_other_versions() -> None:
    repository = Repository([config("1")])
    await repository.start()
    first = repository.get("m")
    second = await repository.load(config("2"))
    assert repository.get("m") is second and repository.get("m", "1") is first
    older = await repository.load(config("0"))
    assert older.config.version == "0" and repository.get("m") is second
    with pytest.raises(BackendError, match="no weights"):
        await repository.load(config("3", "VersionBroken"))
    with pytest.raises(BackendError, match="no weights"):
        await repository.load(config("2", "VersionBroken"))
    assert repository.get("m", "2") is second
    await repository.close(1)


async def test_an_unload_takes_all_versions_and_waits_for_their_requests() -> None:
    GATE.reset()
    repository = Repository([config("1", "VersionHeld"), config("2")])
    await repository.start()
    async with asyncio.TaskGroup() as group:
        request = group.create_task(repository.get("m", "1")({"data": 0}))
        await GATE.entered()
        unloading = group.create_task(repository.unload("m"))
        while repository.pipelines:
            await asyncio.sleep(0)
        for version in ("", "1", "2"):
            with pytest.raises(NotFound):
                repository.get("m", version)
        assert repository.version_states()["m"]["1"] == "unloading" and not unloading.done()
        GATE.open()
    assert request.result()["result"] == "held"
    assert repository.version_states() == {"m": {"1": "unloaded", "2": "unloaded"}}
    await repository.reload("m")
    assert list(repository.versions["m"]) == ["1", "2"]
    await repository.close(1)


async def test_logic_calls_the_newest_version() -> None:
    @register_backend("VersionAsks")
    async def asks(item: Any, call: Any) -> Any:
        return (await call("m", {"data": 1}))["result"]

    repository = Repository([load("VersionAsks", name="asks"), config("1")])
    await repository.start()
    assert (await repository.get("asks")({"data": 0}))["result"] == 1
    await repository.load(config("2", "Python[builtins:repr]"))
    assert (await repository.get("asks")({"data": 0}))["result"] == "1"
    await repository.close(1)


@pytest.mark.parametrize("way", ["reload", "hup"])
async def test_only_versions_whose_files_changed_are_loaded_again(tmp_path: Path, way: str) -> None:
    for version in (1, 2, 3):
        write(tmp_path / "m", version)
    repository = Repository.read(tmp_path)

    async def reload() -> set[str]:
        """Return the versions that the same pipelines serve afterwards."""
        before = dict(repository.versions["m"])
        await (repository.reload("m") if way == "reload" else repository.reload_changed())
        after = repository.versions["m"]
        return {version for version in after if after[version] is before.get(version)}

    await repository.start()
    try:
        (tmp_path / "m/2/answer.py").write_text("def answer(data):\n    return 7\n")
        assert await reload() == {"1", "3"}
        assert await answers(repository) == {"1": 1, "2": 7, "3": 3, "": 3}
        write(tmp_path / "m", 4)
        (tmp_path / "m/3/pipeline.toml").write_text("[n]\nbackend = 'Nonsense'\n")
        with contextlib.suppress(ConfigError):
            await reload()
        assert await answers(repository) == {"1": 1, "2": 7, "3": 3, "4": 4, "": 4}
        with contextlib.suppress(ConfigError):
            assert await reload() == {"1", "2", "3", "4"}
        shutil.rmtree(tmp_path / "m/3")
        assert await reload() == {"1", "2", "4"}
        assert await reload() == ({"1", "2", "4"} if way == "hup" else set())
    finally:
        await repository.close(1)
