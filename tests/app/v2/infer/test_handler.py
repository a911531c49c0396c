"""infer as Triton's own clients use it, the synchronous and the asyncio one.

Datatypes, encodings, batches, parameters, classification, compression.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import zlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import httpx
import ml_dtypes
import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.http import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor

from penstock import create_app, lifespan

if TYPE_CHECKING:
    from pathlib import Path

    from tests.app.v2.conftest import Served

DATATYPES = [
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
]


def random_array(datatype: Any, shape: Any) -> Any:
    draw = np.random.default_rng(0)
    count = int(np.prod(shape))
    if datatype == "BOOL":
        return draw.random(shape) < 0.5
    if datatype == "BYTES":
        return np.array(
            [str(number).encode() * (index % 3) for index, number in enumerate(draw.random(count))],
            np.object_,
        ).reshape(shape)
    if datatype.startswith("FP"):
        return draw.standard_normal(shape).astype(f"float{datatype[2:]}")
    if datatype == "BF16":
        return draw.integers(-99, 99, shape).astype(ml_dtypes.bfloat16)
    bounds = np.iinfo(datatype.lower())
    return draw.integers(bounds.min, bounds.max, shape, dtype=datatype.lower(), endpoint=True)


def given(array: Any, datatype: Any, name: Any = "INPUT0", binary: Any = True) -> Any:
    tensor = InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def add_sub(client: Any, rows: Any = 1, **more: Any) -> Any:
    first = np.arange(16 * rows, dtype=np.int32).reshape(rows, 16)
    second = np.ones((rows, 16), np.int32)
    answer = client.infer(
        "simple", [given(first, "INT32", "INPUT0"), given(second, "INT32", "INPUT1")], **more
    )
    return answer, first + second, first - second


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("shape", [(1, 5), (3, 7), (1, 0)])
def test_every_datatype_comes_back_unchanged(client: Any, datatype: str, shape: Any) -> None:
    array = random_array(datatype, shape)
    for asked in (True, False):
        answer = client.infer(
            f"identity_{datatype}",
            [given(array, datatype)],
            outputs=[InferRequestedOutput("OUTPUT0", asked)],
        )
        output = answer.get_output("OUTPUT0")
        assert (output["datatype"], output["shape"]) == (datatype, list(shape))
        assert ("data" in output) != asked
        result = answer.as_numpy("OUTPUT0") if array.size or not asked else np.zeros(shape)
        if datatype == "BYTES" and not asked:
            result = np.array([text.encode() for text in output["data"]], np.object_)
        np.testing.assert_array_equal(result.reshape(shape), array)


@pytest.mark.parametrize(
    "datatype", [datatype for datatype in DATATYPES if datatype not in {"FP16", "BF16"}]
)
def test_every_datatype_but_halves_comes_as_json(client: Any, datatype: Any) -> None:
    array = random_array(datatype, (2, 3))
    sent = (
        given(
            np.array([text.decode() for text in array.flat], np.object_).reshape(2, 3),
            "BYTES",
            binary=False,
        )
        if datatype == "BYTES"
        else None
    )
    answer = client.infer(f"identity_{datatype}", [sent or given(array, datatype, binary=False)])
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), array)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_halves_as_json_are_refused(served: Served, datatype: str) -> None:
    assert f"receiving {datatype} data via JSON is not supported" in served.refused(
        f"identity_{datatype}", served.one(datatype, [1, 1], [1.0])
    )


def test_bf16_is_rounded_to_the_nearest(served: Served, client: Any) -> None:
    halves = struct.pack(
        "<4H", 0x3F80, 0x7FC0, 0xFF80, 0x0001
    )  # 1, NaN, -inf, the smallest subnormal
    answer = served.infer(
        "identity_BF16",
        served.one("BF16", [1, 4], size=8) | {"parameters": {"binary_data_output": True}},
        halves,
    )
    assert answer.content.endswith(halves)
    numbers = np.random.default_rng(0).standard_normal((1, 1000)).astype(np.float32)
    answer = client.infer("rounded", [given(numbers, "FP32", "X")])
    assert answer.get_output("Y")["datatype"] == "BF16"
    np.testing.assert_array_equal(answer.as_numpy("Y"), numbers.astype(ml_dtypes.bfloat16))


def test_nan_and_infinity_in_json_both_ways(served: Served) -> None:
    text = (
        b'{"inputs":[{"name":"INPUT0","shape":[1,4],"datatype":"FP32",'
        b'"data":[NaN,Infinity,-Infinity,1.5]}]}'
    )
    answer = served.infer("identity_FP32", text)
    assert answer.status_code == 200 and '"data":[NaN,Infinity,-Infinity,1.5]' in answer.text


def test_nested_lists_are_read_like_flat_ones(served: Served) -> None:
    for data in ([[[1, 2, 3, 4]] * 3] * 2, [1, 2, 3, 4] * 6, [[1, 2], [3, 4]] * 6):
        answer = served.infer("volume", served.one("FP32", [2, 3, 1, 4], data, name="X"))
        assert answer.json()["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0] * 6


def test_mixed_inputs_and_outputs(client: Any) -> None:
    first, second = np.arange(16, dtype=np.int32).reshape(1, 16), np.ones((1, 16), np.int32)
    for binary in (True, False):
        inputs = [
            given(first, "INT32", "INPUT0", binary),
            given(second, "INT32", "INPUT1", not binary),
        ]
        outputs = [
            InferRequestedOutput("OUTPUT1", not binary),
            InferRequestedOutput("OUTPUT0", binary),
        ]
        answer = client.infer("simple", inputs, outputs=outputs, request_id="42")
        assert (
            answer.get_response()["id"] == "42" and answer.get_response()["model_name"] == "simple"
        )
        assert [output["name"] for output in answer.get_response()["outputs"]] == [
            "OUTPUT1",
            "OUTPUT0",
        ]
        np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), first + second)
        np.testing.assert_array_equal(answer.as_numpy("OUTPUT1"), first - second)


def test_without_requested_outputs_all_are_answered(client: Any, served: Served) -> None:
    answer, total, difference = add_sub(client)
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), total)
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT1"), difference)
    answer = served.infer("simple", served.simple()).json()
    assert answer == {
        "model_name": "simple",
        "model_version": "1",
        "outputs": [
            {
                "name": "OUTPUT0",
                "datatype": "INT32",
                "shape": [1, 16],
                "data": [2 * number for number in range(16)],
            },
            {"name": "OUTPUT1", "datatype": "INT32", "shape": [1, 16], "data": [0] * 16},
        ],
    }


def test_a_request_of_many_rows_is_one_item_and_requests_share_batches(client: Any) -> None:
    answer, total, _ = add_sub(client, rows=8)
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), total)
    with pytest.raises(
        InferenceServerException, match="inference request batch-size must be <= 8 for 'simple'"
    ):
        add_sub(client, rows=9)


async def test_aio_clients_share_batches(served: Served) -> None:
    async with tritonclient.http.aio.InferenceServerClient(served.address) as client:
        assert (
            await client.is_server_live()
            and await client.is_server_ready()
            and await client.is_model_ready("sum", "1")
        )
        arrays = [np.full((1 + index % 2, 3), index, np.float32) for index in range(24)]
        shared = False
        while not shared:  # a slow client sends each request after the answer to the one before
            answers = await asyncio.gather(
                *[client.infer("sum", [given(array, "FP32", "data")]) for array in arrays]
            )
            for array, answer in zip(arrays, answers, strict=True):
                np.testing.assert_array_equal(answer.as_numpy("result"), array)
                np.testing.assert_array_equal(answer.as_numpy("total"), array.sum(axis=1))
            counts: list[Any] = [answer.as_numpy("rows") for answer in answers]
            shared = max(int(rows[0]) for rows in counts) > 1


def test_an_engine_names_its_inputs_and_outputs(client: Any) -> None:
    array = np.array([[1, 2], [3, 4]], np.float32)
    answer = client.infer("matmul", [given(array, "FP32", "x")])
    np.testing.assert_array_equal(answer.as_numpy("y"), [[5], [11]])
    np.testing.assert_array_equal(answer.as_numpy("z"), array)


def test_an_image_pipeline_takes_bytes(client: Any, digit: bytes) -> None:
    answer = client.infer("digits", [given(np.array([digit], np.object_), "BYTES", "data")])
    assert answer.as_numpy("result").tolist() == [3]
    with pytest.raises(InferenceServerException, match=r"\[400\]"):
        client.infer("digits", [given(np.array([b"no image"], np.object_), "BYTES", "data")])


def test_text_and_other_values(served: Served) -> None:
    assert served.infer("text", served.one("BYTES", [1], ["grüße"], name="data")).json()[
        "outputs"
    ] == [{"name": "result", "datatype": "BYTES", "shape": [1], "data": ["GRÜSSE"]}]
    output = served.infer("described", served.one("BYTES", [1], ["a b"], name="data")).json()[
        "outputs"
    ][0]
    assert json.loads(output["data"][0]) == {"length": 3, "words": ["a", "b"]}
    assert (
        served.infer("nothing", served.one("BYTES", [1], ["a"], name="data")).json()["outputs"]
        == []
    )
    assert "not valid UTF-8" in served.refused(
        "text", served.one("BYTES", [1], size=5, name="data"), b"\x01\x00\x00\x00\xff"
    )


def test_strings_of_a_tensor_are_text(served: Served) -> None:
    answer = served.infer("loud", served.one("BYTES", [2], ["grüße", ""], name="X"))
    assert answer.json()["outputs"] == [
        {"name": "Y", "datatype": "BYTES", "shape": [2], "data": ["grüße!", "!"]}
    ]
    assert "input 'X' is not valid UTF-8" in served.refused(
        "loud", served.one("BYTES", [1], size=5, name="X"), b"\x01\x00\x00\x00\xff"
    )


def test_unnamed_arrays_are_numbered(served: Served) -> None:
    def outputs(*names: str) -> list[tuple[str, list[int]]]:
        more: dict[str, Any] = {}
        if names:
            more["outputs"] = [{"name": name} for name in names]
        return [
            (output["name"], output["data"])
            for output in served.infer(
                "several", served.one("INT32", [1], [3], name="X", **more)
            ).json()["outputs"]
        ]

    assert outputs() == [("result_0", [3]), ("result_1", [4])]
    assert outputs("result_1") == [("result_1", [4])] and outputs("result_2") == []
    for name in ("result_", "result_x", "other_0"):
        assert f"unexpected inference output '{name}'" in served.refused(
            "several", served.one("INT32", [1], [3], name="X", outputs=[{"name": name}])
        )


@pytest.mark.parametrize("binary", [False, True])
async def test_a_tensor_of_floats_takes_uint8(binary: bool, tmp_path: Path) -> None:
    port = {"kind": "tensor", "dtype": "FP32", "shape": [-1, 2]}
    (tmp_path / "ops.py").write_text("def triple(data):\n    return data * 3\n")
    source = {
        "pipeline": {"name": "m", "inputs": {"X": port}, "outputs": {"Y": port}},
        "node": {"backend": f"Python[{tmp_path}/ops.py:triple]"},
    }
    app = create_app(source)
    given: dict[str, Any] = {"name": "X", "shape": [1, 2], "datatype": "UINT8"}
    given |= {"parameters": {"binary_data_size": 2}} if binary else {"data": [3, 250]}
    text = json.dumps({"inputs": [given]}).encode()
    async with (
        lifespan(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://host") as http,
    ):
        for _ in range(3):  # also once its layout may be known
            answer = await http.post(
                "/v2/models/m/infer",
                content=text + bytes([3, 250]) * binary,
                headers={"Inference-Header-Content-Length": str(len(text))},
            )
            (output,) = answer.json()["outputs"]
            assert (output["datatype"], output["data"]) == ("FP32", [9, 750])


async def test_a_body_may_arrive_in_any_pieces() -> None:
    port = {"kind": "tensor", "dtype": "UINT8", "shape": [-1]}
    source = {
        "pipeline": {"name": "m", "inputs": {"X": port}, "outputs": {"Y": port}},
        "node": {"backend": "Identity"},
    }
    app = create_app(source)
    text = json.dumps(
        {
            "inputs": [
                {
                    "name": "X",
                    "shape": [9],
                    "datatype": "UINT8",
                    "parameters": {"binary_data_size": 9},
                }
            ]
        }
    ).encode()
    body = text + bytes(range(9))

    async def ask(*cuts: Any) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for start, end in zip((0, *cuts), (*cuts, len(body)), strict=True):
                yield body[start:end]

        answer = await http.post(
            "/v2/models/m/infer",
            content=pieces(),
            headers={"Inference-Header-Content-Length": str(len(text))},
        )
        assert answer.json()["outputs"][0]["data"] == list(range(9)), cuts

    async with (
        lifespan(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://host") as http,
    ):
        for cut in range(1, len(body)):
            await ask(cut)
            await ask(1, cut) if cut > 1 else await ask(cut, cut)
            await ask(min(cut, len(text)), len(text), len(body) - 1)


@pytest.mark.parametrize("padding", range(8))
def test_tensors_are_views_of_the_body(served: Served, padding: int) -> None:
    sizes = {"A": ("FP64", 40), "B": ("FP32", 20)}
    document: dict[str, Any] = {
        "inputs": [
            {
                "name": name,
                "shape": [5],
                "datatype": datatype,
                "parameters": {"binary_data_size": size},
            }
            for name, (datatype, size) in sizes.items()
        ],
        "parameters": {"padding": "x" * padding},
    }
    for _ in range(2):  # the second request repeats
        assert served.infer("where", document, bytes(60)).json()["outputs"][0]["data"] == [40, 1, 1]
    # A begins at byte 20, where an FP64 is not aligned.
    turned = {**document, "inputs": document["inputs"][::-1]}
    for _ in range(2):
        assert served.infer("where", turned, bytes(60)).json()["outputs"][0]["data"][1:] == [1, 1]
    document["id"] = "not a repeated request"
    assert served.infer("where", document, bytes(60)).json()["outputs"][0]["data"] == [40, 1, 1]


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
def test_nan_and_infinity_come_as_json(client: Any, datatype: str) -> None:
    dtype = ml_dtypes.bfloat16 if datatype == "BF16" else f"float{datatype[2:]}"
    array = np.array([[np.nan, 0.5, np.inf, -np.inf]], dtype)
    answer = client.infer(
        f"identity_{datatype}",
        [given(array, datatype)],
        outputs=[InferRequestedOutput("OUTPUT0", binary_data=False)],
    )
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0").astype(float), array.astype(float))


def test_raw_requests_are_one_tensor(served: Served) -> None:
    array = np.arange(24, dtype=np.float32).reshape(1, 3, 2, 4)
    answer = served.infer("volume", b"", array.tobytes(), length=0)
    size = int(answer.headers["inference-header-content-length"])
    assert answer.headers["content-type"] == "application/octet-stream"
    assert json.loads(answer.content[:size])["outputs"][0] == {
        "name": "Y",
        "datatype": "FP32",
        "shape": [1, 3, 2, 4],
        "parameters": {"binary_data_size": 96},
    }
    assert answer.content[size:] == array.tobytes()
    answer = served.infer("text", b"", b"hello", length=0)
    assert deserialize_bytes_tensor(
        answer.content[int(answer.headers["inference-header-content-length"]) :]
    ).tolist() == [b"HELLO"]
    assert "model 'simple' has 2" in served.refused("simple", b"", b"1234", length=0)
    assert "input byte size mismatch for input 'X'" in served.refused(
        "volume", b"", b"1234567", length=0
    )


def test_parameters_reach_the_item(client: Any, served: Served) -> None:
    array = np.array([[1.0, 2.0]])
    answer = client.infer("scaled", [given(array, "FP64", "data")], parameters={"factor": 3})
    assert answer.as_numpy("result").tolist() == [[3.0, 6.0]]
    for name in (
        "node_name",
        "request_size",
        "_parts",
        "triton_x",
        "data",
        "result",
        "context",
        "headers",
    ):
        assert f"parameter '{name}' is reserved" in served.refused(
            "scaled", served.one("FP64", [1, 1], [1.0], name="data", parameters={name: 1})
        )
    assert "expected a string, a number or a boolean" in served.refused(
        "scaled", served.one("FP64", [1, 1], [1.0], name="data", parameters={"factor": [1]})
    )


def test_the_number_of_parameters_is_bounded(served: Served) -> None:
    assert (
        served.infer(
            "simple", served.simple(parameters={f"p{index}": 1 for index in range(1024)})
        ).status_code
        == 200
    )
    message = served.refused(
        "simple", served.simple(parameters={f"p{index}": 1 for index in range(1025)})
    )
    assert message == "the request has 1025 parameters, at most 1024 are accepted"


def test_a_parameter_may_not_have_the_name_of_an_output(served: Served) -> None:
    message = served.refused("simple", served.simple(parameters={"OUTPUT0": 5}))
    assert message == "parameter 'OUTPUT0' is reserved: it can't be set by a request"


def test_pipelines_without_priorities_ignore_them(client: Any) -> None:
    array = np.ones((1, 2), np.float32)
    for name, priority in (("ranked", 1), ("ranked", 3), ("ranked", 9), ("identity_FP32", 5)):
        port = "X" if name == "ranked" else "INPUT0"
        client.infer(
            name,
            [given(array, "FP32", port)],
            priority=priority,
            sequence_id=7,
            sequence_start=True,
            timeout=20_000_000,
        )


def test_classification(client: Any, served: Served) -> None:
    array = np.array([[0.5, np.nan, 0.25], [-1.0, 3.0, 3.0]], np.float32)
    answer = client.infer(
        "scores", [given(array, "FP32", "X")], outputs=[InferRequestedOutput("Y", class_count=2)]
    )
    assert answer.as_numpy("Y").tolist() == [
        [b"0.500000:0:zero", b"0.250000:2:two"],
        [b"3.000000:1:one", b"3.000000:2:two"],
    ]
    answer = client.infer(
        "any",
        [given(np.array([3, 250, 7], np.uint8), "UINT8", "X")],
        outputs=[InferRequestedOutput("Y", class_count=9)],
    )
    assert answer.as_numpy("Y").tolist() == [b"250:1", b"7:2", b"3:0"]
    with pytest.raises(
        InferenceServerException,
        match="class result not available for output due to unsupported type 'BYTES'",
    ):
        client.infer(
            "identity_BYTES",
            [given(np.array([[b"x"]], np.object_), "BYTES")],
            outputs=[InferRequestedOutput("OUTPUT0", class_count=1)],
        )


@pytest.mark.parametrize("binary", [False, True])
def test_a_classification_of_no_class_is_the_tensor_itself(client: Any, binary: bool) -> None:
    array = np.array([[0.5, 0.25]], np.float32)
    output = InferRequestedOutput("Y", binary_data=binary)
    output._parameters["classification"] = 0  # the client leaves it out itself
    answer = client.infer("scores", [given(array, "FP32", "X")], outputs=[output])
    assert answer.get_output("Y")["datatype"] == "FP32"
    assert answer.as_numpy("Y").tolist() == array.tolist()


def test_classification_is_bounded(served: Served) -> None:
    wanted = {"outputs": [{"name": "Y", "parameters": {"classification": 1}}]}
    best = served.infer(
        "any",
        served.one("UINT8", [1_000_000], size=1_000_000, name="X", **wanted),
        bytes(999_999) + b"\1",
    )
    assert best.json()["outputs"][0]["data"] == ["1:999999"]
    message = served.refused(
        "any",
        served.one("UINT8", [1_000_001], size=1_000_001, name="X", **wanted),
        bytes(1_000_001),
    )
    assert message == "class result not available for output 'Y': it has more than 1000000 elements"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_both_ways(client: Any, algorithm: str) -> None:
    answer, total, _ = add_sub(
        client, request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
    )
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), total)


def test_answers_are_compressed_if_that_pays(served: Served) -> None:
    numbers = served.one("INT32", [1, 5000], [7] * 5000)
    both = {"Accept-Encoding": "gzip, deflate, br"}
    assert (
        served.infer("identity_INT32", numbers, headers=both).headers["content-encoding"] == "gzip"
    )
    assert (
        "content-encoding"
        not in served.infer(
            "identity_INT32", served.one("INT32", [1, 1], [7]), headers=both
        ).headers
    )
    binary = numbers | {"parameters": {"binary_data_output": True}}
    assert "content-encoding" not in served.infer("identity_INT32", binary, headers=both).headers
    alone = served.infer("identity_INT32", binary, headers={"Accept-Encoding": "deflate"})
    assert (
        alone.headers["content-encoding"] == "deflate" and len(alone.content) > 20_000
    )  # httpx has decompressed it
    for weighed, chosen in (
        ("gzip;q=0.5", "gzip"),
        ("x-gzip", "gzip"),
        ("br;q=1.0, gzip;q=0, Deflate ; q=0.01", "deflate"),
    ):
        assert (
            served.infer("identity_INT32", numbers, headers={"Accept-Encoding": weighed}).headers[
                "content-encoding"
            ]
            == chosen
        )
    for refused in ("br", "br, gzip;q=0", "gzip;q=0.000", "identity, deflate; q=0.0", "*"):
        assert (
            "content-encoding"
            not in served.infer(
                "identity_INT32", numbers, headers={"Accept-Encoding": refused}
            ).headers
        )
    noise = np.random.default_rng(0).bytes(4096)
    document = served.one("UINT8", [1, 4096], size=4096, parameters={"binary_data_output": True})
    answer = served.infer("identity_UINT8", document, noise, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in answer.headers and answer.content.endswith(noise)


def test_compressed_requests_are_bounded_and_whole(served: Served) -> None:
    text = json.dumps(served.simple()).encode()
    for body, encoding, message in (
        (
            gzip.compress(bytes(2 << 20)),
            "gzip",
            "the decompressed body has more than 1048576 bytes",
        ),
        (gzip.compress(text)[:-9], "gzip", "can't be decompressed"),
        (gzip.compress(text) + b"more", "gzip", "can't be decompressed"),
        (text, "gzip", "can't be decompressed"),
        (gzip.compress(text), "deflate", "can't be decompressed"),
        (b"", "gzip", "can't be decompressed"),
    ):
        assert message in served.refused("simple", body, headers={"Content-Encoding": encoding})
    assert (
        served.infer(
            "simple", zlib.compress(text), headers={"Content-Encoding": "deflate"}
        ).status_code
        == 200
    )
    unknown = served.infer("simple", text, headers={"Content-Encoding": "br"})
    assert served.infer("simple", text, headers={"Content-Encoding": ""}).status_code == 200
    assert unknown.status_code == 501 and unknown.headers["accept-encoding"] == "gzip, deflate"
