"""Steps of sequences by infer requests, with Triton's parameters and its words."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio

from penstock import create_app
from penstock.app.settings import Settings

from ...server.doors import open_door
from ..conftest import Served, model, tensor

BACKEND = """
import numpy as np


class Chain:
    '''Keeps a number for each sequence: all values so far, in their order. At 99 it tells how often
    the sequence `told` has ended with "end".
    '''

    def __init__(self):
        self.ends = []

    def forward(self, batch):
        for item in batch:
            sequence = item["sequence"]
            value = int(item["data"][0, 0])
            if value < 0:
                raise ValueError("negative")
            sequence.state = (sequence.state or 0) * 10 + value
            sequence.on_end = lambda reason, one=sequence.id: self.ends.append((one, reason))
            told = self.ends.count(("told", "end")) if value == 99 else sequence.state
            item["result"] = np.array([[told]], np.int32)


class Owned:
    '''Keeps a number that depends on all steps and their order, and names its instance.'''

    def init(self, params, context):
        self.instance = context.instance

    def forward(self, batch):
        for item in batch:
            sequence = item["sequence"]
            sequence.state = ((sequence.state or 0) * 31 + int(item["data"][0, 0])) % 1_000_003
            item["result"] = np.array([[sequence.state, self.instance]], np.int32)
"""
MANY, STEPS = 40, 8
X = {"X": tensor("INT32", [-1, 1])}
Y = {"Y": tensor("INT32", [-1, 1])}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    ops = tmp_path_factory.mktemp("sequences") / "chain.py"
    ops.write_text(BACKEND)
    return [
        model("chain", X, Y, f"Python[{ops}:Chain]", max=8, sequence={"max_sequences": 4}),
        model(
            "owned",
            X,
            {"Y": tensor("INT32", [-1, 2])},
            f"Python[{ops}:Owned]",
            max=16,
            instance_num=2,
            sequence={"max_sequences": MANY},
        ),
        model("plain", X, Y, max=8),
    ]


@pytest.fixture(scope="module", params=[True, False], ids=["direct", "asgi"])
def served(request: Any, sources: list[Any], running: Any) -> Iterator[Served]:
    """Serve the models, with and without the direct way of answering."""
    app = create_app(sources, settings=Settings())
    with (
        open_door(running, app, Settings(), request.param) as door,
        httpx.Client(base_url=f"http://127.0.0.1:{door.port}", verify=False) as client,
    ):
        yield Served(client)


def document(value: int = 1, /, **parameters: Any) -> dict[str, Any]:
    return Served.one("INT32", [1, 1], [value], name="X", parameters=parameters)


def step(served: Served, sequence: Any, value: int, **parameters: Any) -> int:
    """Send a step as JSON, and return what the model keeps."""
    answer = served.infer("chain", document(value, sequence_id=sequence, **parameters))
    assert answer.status_code == 200, answer.text
    (kept,) = answer.json()["outputs"][0]["data"]
    return int(kept)


def test_a_sequence_keeps_its_state_from_start_to_end(served: Served) -> None:
    assert step(served, 1, 1, sequence_start=True) == 1
    assert step(served, "1", 5, sequence_start=True) == 5  # a text is another id
    assert step(served, 1, 2) == 12
    assert step(served, "1", 6, sequence_end=True) == 56
    assert step(served, 1, 3, sequence_start=False, sequence_end=True) == 123
    error = served.refused("chain", document(sequence_id=1))
    assert error.endswith("must specify the START flag on the first request of the sequence")


def test_start_begins_a_live_sequence_anew(served: Served) -> None:
    assert step(served, 2, 4, sequence_start=True) == 4
    assert step(served, 2, 7, sequence_start=True, sequence_end=True) == 7


def test_binary_requests_of_many_sequences_are_kept_apart(served: Served) -> None:
    """Layouts are remembered by the JSON, in which only the id differs."""
    with tritonclient.http.InferenceServerClient(served.address) as client:

        def send(sequence: int | str, value: int, **flags: Any) -> int:
            given = tritonclient.http.InferInput("X", [1, 1], "INT32")
            given.set_data_from_numpy(np.array([[value]], np.int32))
            infer: Any = client.infer
            return int(infer("chain", [given], sequence_id=sequence, **flags).as_numpy("Y")[0, 0])

        for sequence in (3, "three"):
            assert send(sequence, 1, sequence_start=True) == 1
        for count in range(3):  # three times, because a layout is kept at the second
            for sequence in (3, "three"):
                expected = int("1" + "2" * (count + 1))
                assert send(sequence, 2) == expected
        for sequence in (3, "three"):
            assert send(sequence, 3, sequence_end=True) == 12223


def test_what_is_wrong_is_said_in_tritons_words(served: Served) -> None:
    start = "' must specify the START flag on the first request of the sequence"
    none = "inference request to model 'chain' must specify a non-zero or non-empty correlation ID"
    for parameters, expected in (
        ({"sequence_id": 42}, f"inference request for sequence 42 to model 'chain{start}"),
        ({"sequence_id": "a b"}, f"inference request for sequence a b to model 'chain{start}"),
        ({}, none),
        ({"sequence_id": 0, "sequence_start": True}, none),
        ({"sequence_id": ""}, none),
    ):
        given: dict[str, Any] = parameters
        assert served.refused("chain", document(**given)) == expected
    two = {
        "inputs": [{"name": "X", "shape": [2, 1], "datatype": "INT32", "data": [1, 2]}],
        "parameters": {"sequence_id": 1, "sequence_start": True},
    }
    assert "must specify batch-size 1" in served.refused("chain", two)
    raw = served.infer("chain", b"", bytes(4), length=0)
    assert (raw.status_code, raw.json()) == (400, {"error": none})


@pytest.mark.parametrize("name", ["chain", "plain"])
@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"sequence_id": -1}, "sequence_id"),
        ({"sequence_id": 1 << 64}, "sequence_id"),
        ({"sequence_id": 1.0}, "sequence_id"),
        ({"sequence_id": True}, "sequence_id"),
        ({"sequence_id": 1, "sequence_start": 1}, "sequence_start"),
        ({"sequence_id": 1, "sequence_end": "true"}, "sequence_end"),
    ],
)
def test_parameters_of_another_type_are_refused(
    served: Served, name: str, parameters: dict[str, Any], named: str
) -> None:
    assert f"'{named}'" in served.refused(name, document(**parameters))


def test_an_id_is_at_most_128_characters_long(served: Served) -> None:
    assert step(served, "i" * 128, 1, sequence_start=True, sequence_end=True) == 1
    error = served.refused("chain", document(sequence_id="i" * 129, sequence_start=True))
    assert "128" in error


def test_a_model_without_sequences_ignores_them(served: Served) -> None:
    answer = served.infer("plain", document(3, sequence_id=7))
    assert answer.json()["outputs"][0]["data"] == [3]


def test_a_failed_step_leaves_the_state_as_it_was(served: Served) -> None:
    assert step(served, 8, 1, sequence_start=True) == 1
    assert served.infer("chain", document(-1, sequence_id=8)).status_code == 500
    assert step(served, 8, 2, sequence_end=True) == 12


def test_the_end_is_told_once(served: Served) -> None:
    assert step(served, "told", 1, sequence_start=True) == 1
    assert step(served, "told", 2, sequence_end=True) == 12
    assert step(served, "asks", 99, sequence_start=True) == 1
    assert step(served, "asks", 99, sequence_end=True) == 1


def test_many_sequences_at_once_are_kept_apart(served: Served) -> None:
    """scripts/bench sequences has a thousand."""

    async def sequence(client: Any, number: int) -> int:
        """Run a sequence, and return the instance that had all of its steps."""
        expected, owners = 0, set()
        for index in range(STEPS):
            value = number * 7919 + index * 104_729
            expected = (expected * 31 + value) % 1_000_003
            given = tritonclient.http.InferInput("X", [1, 1], "INT32")
            given.set_data_from_numpy(np.array([[value]], np.int32))
            answer = await client.infer(
                "owned",
                [given],
                sequence_id=number if number % 2 else f"sequence {number}",
                sequence_start=index == 0,
                sequence_end=index == STEPS - 1,
            )
            kept, owner = answer.as_numpy("Y")[0].tolist()
            assert kept == expected
            owners.add(owner)
        (owner,) = owners
        return int(owner)

    async def all_at_once() -> list[int]:
        async with tritonclient.http.aio.InferenceServerClient(served.address) as client:
            return await asyncio.gather(
                *[sequence(client, number) for number in range(1, MANY + 1)]
            )

    assert set(asyncio.run(all_at_once())) == {0, 1}


def test_the_server_says_that_it_has_sequences(served: Served) -> None:
    assert "sequence" in served.http.get("/v2").json()["extensions"]


def test_generate_takes_steps_too(served: Served) -> None:
    def generate(value: int, **parameters: Any) -> httpx.Response:
        document = {"X": value, "sequence_id": "made", **parameters}
        return served.http.post("/v2/models/chain/generate", json=document)

    assert generate(1, sequence_start=True).json()["Y"] == 1
    assert generate(2, parameters={"sequence_end": True}).json()["Y"] == 12
    answer = generate(3)
    assert answer.status_code == 400 and "START flag" in answer.json()["error"]
