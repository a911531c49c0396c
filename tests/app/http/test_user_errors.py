"""Exceptions of a user's own: those that can't be shown, and those with a code of their own, from
every place where a user's code runs, at every door.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from penstock import InvalidInput, PenstockError, Pipeline, create_app
from penstock.app.http.errors import code_of, problem_object, status_of

OPS = """
import asyncio
from dataclasses import dataclass

from penstock import InvalidInput, PenstockError, register_filter


def hidden(*_):
    raise RuntimeError("hidden")


class Shy(Exception):
    __str__ = __repr__ = __eq__ = __hash__ = hidden


class Text(str):
    __str__ = __format__ = encode = endswith = hidden


class ShyText(Exception):
    '''Its text is of a class of its own, whose methods raise.'''

    def __str__(self):
        return Text("said")


class ShyExit(Exception):
    '''What its `__str__` raises would end a thread, or a program.'''

    def __str__(self):
        raise KeyboardInterrupt

    __repr__ = __str__


class Meta(type):
    __name__ = property(hidden)


class ShyName(Exception, metaclass=Meta):
    '''Its class can't be named either.'''


class ShyClass(Exception):
    __class__ = property(hidden)


class ShyCause(Exception):
    __cause__ = __notes__ = property(hidden)


class ShyAll(Exception):
    def __getattribute__(self, name):
        raise KeyboardInterrupt


class Blamed(Exception):
    def __init__(self, *args):
        super().__init__(*args)
        self.__cause__ = ShyAll("said")


class ShyInput(InvalidInput):
    __str__ = __repr__ = __eq__ = __hash__ = hidden


class TooLong(InvalidInput):
    code = "too_long"


class Denied(TooLong):
    code = "denied"
    status = 403


@dataclass(frozen=True)
class Frozen(TooLong):
    '''It refuses attributes.'''

    found: str
    code = "frozen"

    def __str__(self):
        return self.found


class Quota(PenstockError):
    code = "quota"
    status = 402


class Lost(PenstockError):
    code = "lost"


class Broken(InvalidInput):
    code = "broken"
    status = 500


class ShyClassInput(TooLong):
    __class__ = property(hidden)
    code = "shy"


class Made(InvalidInput):
    '''Its code and its status are those of the instance.'''

    def __init__(self, *args):
        super().__init__(*args)
        self.code = "made"
        self.status = 409


class MadeLarge(InvalidInput):
    def __init__(self, *args):
        super().__init__(*args)
        self.code = "too_large"


class MadeBadly(TooLong):
    def __init__(self, *args):
        super().__init__(*args)
        self.code = "Made badly"
        self.status = 200


ONE = Broken("said")
ERRORS = {
    kind.__name__: kind
    for kind in (
        Shy, ShyText, ShyExit, ShyInput, ShyClass, ShyCause, ShyAll, Blamed, ShyClassInput,
        TooLong, Denied, Frozen, Quota, Lost, Broken, Made, MadeLarge, MadeBadly,
    )
}
ERRORS["ShyName"] = ShyName
for kind in (SystemExit, GeneratorExit, asyncio.CancelledError, KeyboardInterrupt):
    ERRORS[kind.__name__] = kind


def check(data):
    text = data if isinstance(data, str) else bytes(data).decode()
    if text == "ONE":
        raise ONE
    kind = ERRORS.get(text)
    if kind is not None:
        raise kind("said")


def function(data):
    check(data)
    return 1


class Class:
    def forward(self, batch):
        for item in batch:
            check(item["data"])
            item["result"] = 1


class Soft:
    def forward(self, batch):
        for item in batch:
            try:
                check(item["data"])
            except Exception as error:
                item["error"] = error
            else:
                item["result"] = 1


async def logic(item, call):
    check(item["data"])
    return 1


class Key(str):
    '''A batch's shape that can't be compared with another one of its hash.'''

    __eq__ = hidden

    def __hash__(self):
        return 1


class Keyed(Class):
    @staticmethod
    def shape_key(item):
        return Key()


class KeyExit(Class):
    @staticmethod
    def shape_key(item):
        raise SystemExit("said")


def keep(data):
    return data


@register_filter("user_errors_gate")
def gate(item):
    check(item["data"])
    return Shy()
"""

PLACES = ("function", "class", "process", "logic", "gated")

RUNS_INVALID = ("function", "class", "process", "logic", "gated", "soft")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("user")
    (directory / "ops.py").write_text(OPS)
    nodes = {
        "function": 'backend = "Python[ops.py:function]"',
        "class": 'backend = "Python[ops.py:Class]"\nmax = 4\nbatching_timeout = 20',
        "keyed": 'backend = "Python[ops.py:Keyed]"\nmax = 4\nbatching_timeout = 20',
        "key_exit": 'backend = "Python[ops.py:KeyExit]"\nmax = 4\nbatching_timeout = 20',
        "chain": 'backend = "S[Identity,Python[ops.py:Class]]"\nmax = 4\nbatching_timeout = 20',
        "process_class": 'backend = "Python[ops.py:Class]"\nexecutor = "process"\nmax = 4\n'
        "batching_timeout = 20",
        "soft": 'backend = "Python[ops.py:Soft]"',
        "process": 'backend = "Python[ops.py:function]"\nexecutor = "process"',
        "logic": 'backend = "Python[ops.py:logic]"',
        "gated": 'backend = "Python[ops.py:keep]"\nnext = "after"\n[after]\n'
        'filter = "user_errors_gate"\nbackend = "Identity"',
    }
    for name, node in nodes.items():
        (directory / f"{name}.toml").write_text(f"[{name}]\n{node}\n")
    return directory


@pytest.fixture(scope="module")
def client(running: Any, directory: Path) -> Any:
    with running(create_app(directory)) as client:
        yield client


def infer(client: httpx.Client, place: str, data: bytes) -> httpx.Response:
    given = {"name": "data", "shape": [1], "datatype": "BYTES", "data": [data.decode()]}
    return client.post(f"/v2/models/{place}/infer", json={"inputs": [given]})


@pytest.mark.parametrize(
    "kind",
    ["Shy", "ShyText", "ShyExit", "ShyName", "ShyClass", "ShyCause", "ShyAll", "Blamed"],
)
@pytest.mark.parametrize("place", [*PLACES, "chain"])
def test_an_exception_that_can_not_be_shown_is_a_500_and_logged(
    client: httpx.Client, place: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = kind.encode()
    answer = client.post(f"/predict/{place}", content=data)
    assert answer.status_code == 500 and answer.json()["code"] == "backend_error"
    assert kind in answer.json()["detail"]
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    assert "restarted" not in caplog.text
    assert infer(client, place, data).status_code == 500
    many = client.post(f"/predict/{place}/batch", files=[("images", data), ("images", data)])
    assert [result["status"] for result in many.json()["results"]] == [500, 500]


@pytest.mark.parametrize("place", RUNS_INVALID)
def test_every_500_of_one_exception_is_logged(
    client: httpx.Client, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        caplog.clear()
        answer = client.post(f"/predict/{place}", content=b"ONE")
        assert answer.status_code == 500 and answer.json()["code"] == "broken"
        assert answer.headers["x-request-id"] in caplog.text
        assert len(caplog.records) == 1


@pytest.mark.parametrize("place", ["class", "keyed"])
def test_neighbours_of_an_exception_that_can_not_be_shown_get_their_results(
    client: httpx.Client, place: str
) -> None:
    assert client.post(f"/predict/{place}", content=b"good").status_code == 200  # retries are on
    given = (b"good", b"Shy", b"fine", b"ShyInput", b"ShyClass", b"ShyClassInput")
    images = [("images", image) for image in given]
    results = client.post(f"/predict/{place}/batch", files=images).json()["results"]
    assert [result.get("status", 200) for result in results] == [200, 500, 200, 422, 500, 422]


@pytest.mark.parametrize("kind", ["SystemExit", "GeneratorExit", "CancelledError"])
@pytest.mark.parametrize(
    "place", ["function", "class", "chain", "process", "process_class", "logic", "soft"]
)
def test_an_exception_that_ends_programs_fails_its_item_alone(
    client: httpx.Client, place: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert client.post(f"/predict/{place}", content=b"good").status_code == 200  # retries are on
    images = [("images", image) for image in (b"good", kind.encode(), b"fine")]
    results = client.post(f"/predict/{place}/batch", files=images).json()["results"]
    assert [result.get("status", 200) for result in results] == [200, 500, 200]
    assert f"raised {kind}" in results[1]["detail"]
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    assert "restart" not in caplog.text and "starting it again" not in caplog.text
    assert client.post(f"/predict/{place}", content=kind.encode()).status_code == 500
    assert infer(client, place, kind.encode()).status_code == 500


def test_a_keyboard_interrupt_that_a_backend_raises_fails_its_item(client: httpx.Client) -> None:
    for place in ("function", "process"):
        answer = client.post(f"/predict/{place}", content=b"KeyboardInterrupt")
        assert answer.status_code == 500 and "KeyboardInterrupt" in answer.json()["detail"]


def test_a_shape_key_that_exits_does_not_end_the_server(client: httpx.Client) -> None:
    assert client.post("/predict/key_exit", content=b"good").json() == {"result": 1}


@pytest.mark.parametrize("place", RUNS_INVALID)
@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("ShyInput", 422, "invalid_input"),
        ("TooLong", 422, "too_long"),
        ("Denied", 403, "denied"),
        ("Frozen", 422, "frozen"),
        ("ShyClassInput", 422, "shy"),
        ("Made", 409, "made"),
        ("MadeLarge", 413, "too_large"),
        ("MadeBadly", 422, "too_long"),
    ],
)
def test_an_invalid_input_of_a_users_own(
    client: httpx.Client, place: str, kind: str, status: int, code: str
) -> None:
    answer = client.post(f"/predict/{place}", content=kind.encode())
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    shown = "(its message can't be shown)" if kind == "ShyInput" else "said"
    assert answer.json()["detail"] == shown
    many = client.post(f"/predict/{place}/batch", files=[("images", kind.encode())])
    assert many.json()["results"][0]["code"] == code
    protocol = infer(client, place, kind.encode())
    assert protocol.status_code == (400 if status in (413, 422) else status)
    assert shown in protocol.text


def test_an_error_in_an_item_that_can_not_be_shown_is_a_soft_failure(client: httpx.Client) -> None:
    for data in (b"Shy", b"ShyText", b"ShyExit", b"ShyClass", b"ShyAll"):
        answer = client.post("/predict/soft", content=data)
        assert answer.status_code == 422 and answer.json()["code"] == "invalid_input"


def test_a_filters_status_that_can_not_be_shown(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.post("/predict/gated", content=b"good")
    assert answer.status_code == 500 and "returned <Shy whose repr" in answer.json()["detail"]
    assert "returned <Shy whose repr" in caplog.text


@pytest.mark.parametrize(("kind", "status", "logged"), [("Quota", 402, False), ("Lost", 500, True)])
def test_a_filters_own_error_has_its_code_and_a_500_is_logged(
    client: httpx.Client, kind: str, status: int, logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.post("/predict/gated", content=kind.encode())
    assert (answer.status_code, answer.json()["code"]) == (status, kind.lower())
    assert bool(caplog.records) == logged
    protocol = infer(client, "gated", kind.encode())
    assert protocol.status_code == status


def test_in_process_the_error_is_the_users_own(directory: Path) -> None:
    async def kinds() -> list[str]:
        names = []
        for place in ("function", "class", "logic", "process"):
            async with Pipeline.load(directory / f"{place}.toml") as pipeline:
                for data in (b"Denied", b"Shy"):
                    with pytest.raises(PenstockError) as caught:
                        await pipeline({"data": np.frombuffer(data, np.uint8)})
                    names.append(f"{type(caught.value).__name__} {caught.value.code}")
                    assert status_of(caught.value).http == (403 if data == b"Denied" else 500)
        return names

    assert asyncio.run(kinds()) == ["Denied denied", "BackendError backend_error"] * 4


def test_a_code_and_a_status_are_checked_when_their_class_is_defined() -> None:
    with pytest.raises(TypeError, match=r"Bad.code is 'Too long': expected lower case"):
        type("Bad", (InvalidInput,), {"code": "Too long"})
    for status in (200, 600, "422"):
        with pytest.raises(TypeError, match=r"Bad.status is .*: expected an HTTP status from 400"):
            type("Bad", (InvalidInput,), {"status": status})


def test_a_subclass_without_a_code_of_its_own_has_that_of_its_base() -> None:
    error = type("Torn", (InvalidInput,), {})("torn")
    assert code_of(error) == "invalid_input" and problem_object(error)["status"] == 422
