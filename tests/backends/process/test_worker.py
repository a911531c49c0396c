"""The messages between a process executor and its child, and the child, run on a thread."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from penstock.backends.base import Backend, Context
from penstock.backends.errors import ConfigError, DeviceError, InvalidInput, Problem, TooLarge
from penstock.backends.expressions.registry import find_backend
from penstock.backends.expressions.spec import Spec
from penstock.backends.item import Item
from penstock.backends.process import worker
from penstock.backends.process.channel import Channel, PeerGoneError
from penstock.backends.process.failure import Failure
from penstock.backends.process.wire import Change, LoadedMessage, Order, SpecMessage


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    files = [os.memfd_create("a"), os.memfd_create("b")]
    bells = socket.socketpair()
    yield Channel(bells[0], files[0], files[1]), Channel(bells[1], files[1], files[0])
    for bell in bells:
        bell.close()
    for file in files:
        os.close(file)


def passed(ends: tuple[Channel, Channel], message: Any) -> Any:
    ends[0].send(message)
    return ends[1].receive()


# arrays

DTYPES = [
    "?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "c16",
    ">i4", ">f8", "S5", "U3", "M8[ns]", "m8[s]", "V7",
    [("x", "<f4"), ("y", "u1", (2,))], ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
]  # fmt: skip


def same(array: Any, expected: np.ndarray) -> None:
    assert type(array) is np.ndarray
    assert array.dtype == expected.dtype and array.dtype.byteorder == expected.dtype.byteorder
    assert array.shape == expected.shape
    assert array.tobytes() == expected.tobytes()
    assert (
        array.flags.owndata
        and array.flags.c_contiguous
        and array.flags.writeable
        and array.flags.aligned
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (0,), (3, 0, 2), (2, 3, 5), (1, 1, 1, 1, 1, 1, 4)], ids=str
)
def test_every_dtype_and_shape(
    ends: tuple[Channel, Channel], dtype: Any, shape: tuple[int, ...]
) -> None:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.random.default_rng(0).integers(0, 2 if dtype == "?" else 100, size, np.uint8).tobytes()
    array = np.frombuffer(raw, dtype, count=int(np.prod(shape))).reshape(shape)
    same(passed(ends, array), array)


def test_strides_of_every_kind(ends: tuple[Channel, Channel]) -> None:
    base = np.arange(2 * 30 * 40 * 3, dtype=np.uint16).reshape(60, 40, 3)
    views = [
        base[::2],
        base[:, ::-1],
        base.T,
        base[5:9, 3:7, 1],
        np.asfortranarray(base),
        base[::-1, ::-3],
    ]
    views.append(np.broadcast_to(base[0], (4, 40, 3)))
    for received, view in zip(passed(ends, views), views, strict=True):
        same(received, np.ascontiguousarray(view))


def test_dtypes_of_size_0_and_of_objects(ends: tuple[Channel, Channel]) -> None:
    for array in (np.zeros(3, "U0"), np.zeros((2, 2), "V0")):
        assert passed(ends, array).shape == array.shape
    assert passed(ends, np.array([{"a": 1}, None], object)).tolist() == [{"a": 1}, None]


def test_the_receiver_owns_a_read_only_array(ends: tuple[Channel, Channel]) -> None:
    array = np.frombuffer(b"abcdefgh", np.uint8)
    same(passed(ends, array), array)


@pytest.mark.parametrize(
    "name", ["float32", "bfloat16", "bool", "complex64", "int64", "float8_e4m3fn"]
)
def test_torch_tensors_travel_without_the_rest_of_their_storage(
    ends: tuple[Channel, Channel], name: str
) -> None:
    torch = pytest.importorskip("torch")
    whole = torch.arange(60).reshape(3, 4, 5).to(getattr(torch, name))
    for tensor in (whole, whole[1], whole[:, 2].T, whole[0, 0, 0], whole[:0]):
        received = passed(ends, tensor)
        assert (
            type(received) is torch.Tensor
            and received.dtype == tensor.dtype
            and received.shape == tensor.shape
        )
        assert received.tolist() == tensor.tolist()
        assert received.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_sizes_around_that_of_small_messages(ends: tuple[Channel, Channel]) -> None:
    for size in range((1 << 15) - 300, (1 << 15) + 10):
        array = np.arange(size, dtype=np.uint8)
        same(passed(ends, {"array": array})["array"], array)
        assert passed(ends, array.tobytes()) == array.tobytes()


def test_nested_items(ends: tuple[Channel, Channel]) -> None:
    small, large = np.arange(3), np.arange(100_000)
    item = {
        "data": [small, {"deep": (large, None, 1.5, "tëxt", b"bytes")}],
        "same": small,
        "set": {1, 2},
        "scalar": np.float32(2.5),
        7: True,
        "big": 10**30,
        "bytes": bytes(range(256)) * 4000,
        "array of bytes": bytearray(b"x" * 200_000),
    }
    received = passed(ends, [item, item])
    assert received[0] is received[1]
    assert received[0]["same"] is received[0]["data"][0]
    same(received[0]["data"][0], small)
    same(received[0]["data"][1]["deep"][0], large)
    assert received[0]["data"][1]["deep"][1:] == (None, 1.5, "tëxt", b"bytes")
    for key in ("set", "scalar", 7, "big", "bytes", "array of bytes"):
        assert received[0][key] == item[key] and type(received[0][key]) is type(item[key])


def test_large_and_small_messages_in_turn_through_the_same_files(
    ends: tuple[Channel, Channel],
) -> None:
    image = np.random.default_rng(1).integers(0, 255, (4000, 4000, 3), np.uint8)  # 48 MB
    raw = image[:2000].tobytes()
    for _ in range(2):
        received = passed(ends, {"image": image, "bytes": raw, "list": list(range(50_000))})
        same(received["image"], image)
        assert received["bytes"] == raw
        assert len(received["list"]) == 50_000
        assert passed(ends, "small") == "small"
        same(passed(ends, np.arange(3)), np.arange(3))


def test_large_values_are_not_copied_on_the_way(ends: tuple[Channel, Channel]) -> None:
    import tracemalloc

    message = [bytes(20_000_000), np.zeros(20_000_000, np.uint8)]
    tracemalloc.start()
    try:
        ends[0].send(message)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.reset_peak()
        received = ends[1].receive()
        assert tracemalloc.get_traced_memory()[1] < 41_000_000
    finally:
        tracemalloc.stop()
    assert received[0] == message[0]


def test_a_message_that_can_not_be_pickled_is_not_sent(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        ends[0].send([np.zeros(100_000), threading.Lock()])
    assert passed(ends, "next") == "next"


def test_a_class_of_main_is_refused_by_name(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = type("Mine", (), {"__module__": "__main__", "__qualname__": "Mine"})
    monkeypatch.setattr(sys.modules["__main__"], "Mine", cls, raising=False)
    ends[0].send(cls())
    with pytest.raises(
        pickle.UnpicklingError,
        match="Mine is defined in __main__, which no other process can import",
    ):
        ends[1].receive()
    assert passed(ends, "next") == "next"


def test_a_truncated_file_is_an_error_and_not_a_crash(ends: tuple[Channel, Channel]) -> None:
    ends[0].send(np.zeros(1_000_000, np.uint8))
    os.ftruncate(ends[0]._outbox, 100)
    with pytest.raises(EOFError, match="shorter than its message"):
        ends[1].receive()


def test_the_peer_has_gone(ends: tuple[Channel, Channel]) -> None:
    ends[0].send("last")
    ends[0].bell.close()
    assert ends[1].receive() == "last"
    with pytest.raises(PeerGoneError):
        ends[1].receive()
    with pytest.raises(PeerGoneError):
        ends[1].send("this is never read")


# exceptions


class Odd(InvalidInput):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "kind", "name", "text"),
    [
        (ValueError("bad"), ValueError, "ValueError", "bad"),
        (InvalidInput("unreadable"), InvalidInput, "InvalidInput", "unreadable"),
        (TooLarge("huge"), TooLarge, "TooLarge", "huge"),
        (Odd(1, 2), InvalidInput, "Odd", "1 and 2"),
        (KeyError("key"), KeyError, "KeyError", "'key'"),
        (MemoryError(), MemoryError, "MemoryError", ""),
        (DeviceError("lost"), DeviceError, "DeviceError", "lost"),
        (
            FileNotFoundError(2, "No such file", "x"),
            FileNotFoundError,
            "FileNotFoundError",
            "[Errno 2] No such file: 'x'",
        ),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"),
            UnicodeDecodeError,
            "UnicodeDecodeError",
            "'utf-8' codec can't",
        ),
        (ConfigError([Problem("wrong")]), ConfigError, "ConfigError", "wrong"),
        (ExceptionGroup("many", [ValueError("one")]), Exception, "ExceptionGroup", "many"),
        (
            subprocess.CalledProcessError(3, "x"),
            Exception,
            "CalledProcessError",
            "Command 'x' returned",
        ),
        (UnprintableError(), Exception, "UnprintableError", "(its message can't be shown)"),
        (
            type("ValueError", (Exception,), {})("not Python's"),
            Exception,
            "ValueError",
            "not Python's",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_exceptions_keep_kind_name_and_text(
    error: Exception, kind: type[Exception], name: str, text: str
) -> None:
    rebuilt = pickle.loads(pickle.dumps(Failure.of(error, "Backend"))).rebuild("process 7")
    assert isinstance(rebuilt, kind)
    assert type(rebuilt).__name__ == name
    assert str(rebuilt).startswith(text) and (text or not str(rebuilt))
    assert rebuilt.penstock_backend == "Backend"  # type: ignore[attr-defined]  # a note of ours
    assert isinstance(rebuilt, ValueError) == isinstance(error, ValueError)
    if type(error) in {ValueError, InvalidInput, TooLarge, DeviceError, MemoryError}:
        assert type(rebuilt) is type(error)


@pytest.mark.parametrize("own", [False, True])
def test_a_config_error_keeps_its_problems(own: bool) -> None:
    kind = type("Own", (ConfigError,), {}) if own else ConfigError
    problems = (Problem("two strings", node="m", key="warm_up"), Problem("no such file"))
    rebuilt = pickle.loads(pickle.dumps(Failure.of(kind(problems)))).rebuild("process 7")
    assert isinstance(rebuilt, ConfigError)
    assert (rebuilt.problems, str(rebuilt)) == (problems, "[m] warm_up: two strings\nno such file")


def test_the_traceback_becomes_a_note_except_for_a_soft_failure() -> None:
    try:
        raise ValueError("here")
    except ValueError as error:
        rebuilt = Failure.of(error).rebuild("process 7")
    (note,) = rebuilt.__notes__
    assert note.startswith("in process 7:\nTraceback") and "test_the_traceback" in note
    assert "Traceback" not in str(rebuilt)
    assert not hasattr(Failure.of(InvalidInput("x")).rebuild("process 7"), "__notes__")


# changes


def test_only_changes_come_back() -> None:
    image, nested = np.zeros(3), {"a": 1}
    before: Item = {"data": image, "text": "x", "nested": nested, "gone": 1, "equal": [1]}
    after: Item = {"data": image, "text": "y", "nested": nested, "equal": [1], "result": image}
    nested["a"] = 2
    change = Change.between(before, after)
    assert change.removed == ["gone"]
    assert set(change.set) == {"text", "nested", "equal", "result"}
    item: Item = {"data": "stays", "text": "x", "nested": None, "gone": 1, "equal": None}
    change.apply(item, "")
    assert item == {"data": "stays", "text": "y", "nested": {"a": 2}, "equal": [1], "result": image}


def test_an_error_in_an_item_survives() -> None:
    item: Item = {"data": 1}
    pickle.loads(pickle.dumps(Change.between({"data": 1}, {"data": 1, "error": Odd(3, 4)}))).apply(
        item, "process 7"
    )
    assert isinstance(item["error"], InvalidInput) and str(item["error"]) == "3 and 4"
    other: Item = {}
    Change.between({}, {"error": "only text"}).apply(other, "")
    assert other["error"] == "only text"


# orders


def test_a_message_binds_to_the_same_spec(tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text(
        "def plus(x):\n    return x + 1\nclass Any:\n    def forward(self, batch): ...\n"
    )
    resize = find_backend("ResizeMat")
    assert resize.parameters is not None
    size = {"resize_h": "4", "resize_w": 5}
    given = Spec("S", find_backend("S"), find_backend("S").parameters(), (  # type: ignore[misc]
        Spec("ResizeMat", resize, resize.parameters.model_validate(size)),
        Spec("ops.py:Any", Backend, {"path": Path("x"), "list": [1]}),
        Spec("ops.py:plus", Backend, {}),
    ))  # fmt: skip
    message = pickle.loads(pickle.dumps(SpecMessage.of(given)))
    bound = message.bind(Context(directory=tmp_path))
    assert bound.cls is find_backend("Sequential")
    first, second, third = bound.children
    assert first == given.children[0]
    assert second.params == {"path": Path("x"), "list": [1]}
    item = {"data": 1}
    third.cls().forward([item])
    assert item["result"] == 2


def test_a_message_keeps_filters_keys_and_ranges(bound: Callable[..., Spec]) -> None:
    given = bound(
        "S[Copy[a:b],(or)Add['k:x, y',l:],(skip)AddInt[n:1],Keep[a,b],"
        "Range('1,4',force_range='1,2')[Identity]]"
    )
    assert given.children[1].filter == "or"
    assert pickle.loads(pickle.dumps(SpecMessage.of(given))).bind(Context()) == given


def order(name: str, directory: Path) -> Order:
    return Order(SpecMessage(name, {}, ()), Context(directory=directory), "pipeline/node#0", 20)


OPS = """
from penstock.backends.base import Backend

class Log(Backend):
    parameters = None
    max = 3
    events = []
    def init(self, params, context):
        self.events.append("init")
    def warm_up(self):
        self.events.append("warm")
    def forward(self, batch):
        for item in batch:
            if item["data"] == "lock":
                import threading
                item["result"] = threading.Lock()
            else:
                item["result"] = self.events + [item["data"]]
        batch.clear()
    def close(self):
        self.events.append("close")
"""


def test_a_childs_life(ends: tuple[Channel, Channel], tmp_path: Path) -> None:
    (tmp_path / "log.py").write_text(OPS)
    parent, child = ends
    thread = threading.Thread(target=worker.serve, args=(child,))
    thread.start()
    parent.send(order("log.py:Log", tmp_path))
    loaded: LoadedMessage = parent.receive()
    assert loaded[:3] == (1, 3, None) and list(loaded.files) == [tmp_path / "log.py"]
    parent.send([{"data": 1}, {"data": 2}])
    first, second = parent.receive()
    assert (first.set, second.set) == (
        {"result": ["init", "warm", 1]},
        {"result": ["init", "warm", 2]},
    )
    parent.send([{"data": "lock"}])
    failure = parent.receive()
    assert (
        isinstance(failure, Failure)
        and "cannot pickle" in failure.text
        and failure.backend == "Log"
    )
    parent.send([{}])
    failure = parent.receive()
    assert (failure.known, failure.text, failure.backend) == ("KeyError", "'data'", "Log")
    parent.bell.shutdown(socket.SHUT_WR)
    thread.join(20)
    assert not thread.is_alive()
    (module,) = [
        module for name, module in sys.modules.items() if name.startswith("_penstock_log_")
    ]
    assert module.Log.events == ["init", "warm", "close"]


def test_a_child_that_can_not_load_reports_the_reason(
    ends: tuple[Channel, Channel], tmp_path: Path
) -> None:
    parent, child = ends
    parent.send(order("nowhere.py:X", tmp_path))
    worker.serve(child)
    failure = parent.receive()
    assert failure.known == "ConfigError" and "there is no file" in failure.text


def test_a_child_whose_parent_has_ended_exits() -> None:
    code = "from penstock.backends.process import worker; worker.die_with(1); print('lives')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_a_child_imports_only_what_it_needs() -> None:
    unwanted = (
        "asyncio",
        "fastapi",
        "uvicorn",
        "cv2",
        "onnxruntime",
        "torch",
        "penstock.pipelines",
        "penstock.app",
        "multiprocessing",
    )
    code = (
        "import sys, penstock.backends.process.worker;"
        f"print([name for name in {unwanted} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
