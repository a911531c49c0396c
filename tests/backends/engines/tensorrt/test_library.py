"""The choice of the TensorRT library, and the error where none is installed."""

from __future__ import annotations

import logging
import types
from typing import Any

import pytest

from penstock.backends.engines.tensorrt import library as module
from penstock.backends.engines.tensorrt.library import Library, find_library
from penstock.backends.errors import BackendError


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let only these modules be imported: name -> version, or the exception to raise."""
    there: dict[str, Any] = {}

    class Logger:
        pass

    def import_module(name: Any) -> Any:
        outcome = there.get(name)
        if outcome is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if isinstance(outcome, Exception):
            raise outcome
        return types.SimpleNamespace(__version__=outcome, ILogger=Logger)

    monkeypatch.setattr(module, "import_module", import_module)
    module._load.cache_clear()
    yield there
    module._load.cache_clear()


def test_tensorrt_comes_before_tensorrt_rtx(modules: Any) -> None:
    modules.update({"tensorrt": "10.13.3.9", "tensorrt_rtx_bindings": "1.7.1"})
    assert (find_library().name, find_library().version) == ("tensorrt", "10.13.3.9")
    assert (
        find_library("tensorrt_rtx").name == "tensorrt_rtx" and find_library("tensorrt_rtx").is_rtx
    )
    assert not find_library().is_rtx


def test_tensorrt_rtx_is_used_where_tensorrt_can_not_be(modules: Any) -> None:
    modules.update({"tensorrt": "8.6.1", "tensorrt_rtx": "1.7.1"})
    assert find_library().name == "tensorrt_rtx"
    with pytest.raises(BackendError, match=r"tensorrt is 8\.6\.1, expected 10 or later"):
        find_library("tensorrt")


@pytest.mark.parametrize(
    "error", [OSError("libnvinfer.so.10: cannot open"), ImportError("undefined symbol")]
)
def test_a_library_that_can_not_be_imported_is_an_error(modules: Any, error: Any) -> None:
    modules["tensorrt"] = error
    with pytest.raises(BackendError, match=f"tensorrt can't be imported: {error}"):
        find_library()


def test_without_a_library_the_error_says_what_to_install(modules: Any) -> None:
    with pytest.raises(
        BackendError,
        match=r"tensorrt is not installed; tensorrt_rtx is not installed.*pip install "
        r"'penstock-serve\[tensorrt\]'",
    ):
        find_library()
    with pytest.raises(
        BackendError, match="no TensorRT library 'trt': expected tensorrt or tensorrt_rtx"
    ):
        find_library("trt")


def test_messages_are_logged_and_errors_kept(
    library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    severity = library.trt.ILogger.Severity
    with caplog.at_level(logging.DEBUG, "penstock.tensorrt"):
        with library.listening() as reported:
            for level in (severity.ERROR, severity.WARNING, severity.INFO):
                library.logger.log(level, f"one {level.name}")
        with library.listening("info") as more:
            library.logger.log(severity.INFO, "two")
        library.logger.log(severity.ERROR, "three")
    assert reported == ["one ERROR"] and more == []
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("ERROR", "one ERROR"), ("WARNING", "one WARNING"), ("INFO", "two"), ("ERROR", "three"),
    ]  # fmt: skip
