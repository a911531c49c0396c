"""Malformed infer requests: each gets its 4xx, and the next request on that server its answer."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.app.v2.conftest import Served


@pytest.fixture(autouse=True)
def still_serves(served: Served) -> Any:
    yield
    assert served.infer("simple", served.simple()).status_code == 200


def strings(*values: Any) -> Any:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def chunked(path: Any, *chunks: Any) -> Any:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\n"
        "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    ).encode()
    return head, *[b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks], b"0\r\n\r\n"


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'"x"',
        b"\xff",
        b'{"inputs":{}}',
        b'{"inputs":[7]}',
        b"{}",
        b'{"inputs":null}',
    ],
)
def test_malformed_requests(served: Served, document: bytes) -> None:
    served.refused("simple", document)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 7}, "Unable to parse 'name'"),
        ({"name": "INPUT1"}, "input 'INPUT1' already exists in request"),
        ({"name": "FOO"}, "unexpected inference input 'FOO' for model 'simple'"),
        (
            {"datatype": "FP32"},
            "inference input 'INPUT0' data-type is 'FP32', but model 'simple' expects 'INT32'",
        ),
        ({"datatype": "INT31"}, "invalid datatype for input 'INPUT0'"),
        ({"datatype": None}, "invalid datatype for input 'INPUT0'"),
        ({"shape": None}, "Unable to parse 'shape'"),
        (
            {"shape": [1, -16]},
            "Unable to parse 'shape': attempt to access JSON non-unsigned-integer as "
            "unsigned-integer",
        ),
        ({"shape": [1, 16.0]}, "Unable to parse 'shape'"),
        ({"shape": [True, 16]}, "Unable to parse 'shape'"),
        ({"shape": [1, 2**64]}, "Unable to parse 'shape'"),
        (
            {"shape": [1, 17]},
            "unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,16], got [1,17]",
        ),
        (
            {"shape": [16]},
            "unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,16], got [16]",
        ),
        ({"shape": [2, 16], "data": [0] * 32}, "batch size does not match"),
        ({"shape": [0, 16]}, "batch-size must be >= 1"),
        (
            {"data": list(range(15))},
            "Unable to parse 'data': Shape does not match true shape of 'data' field",
        ),
        ({"data": [[1, 2], 3] + [0] * 13}, "Unable to parse 'data'"),
        ({"data": 7}, "Unable to parse 'data'"),
        ({"data": None}, "But no field is set, or more than one."),
        ({"data": [1.0] * 16}, "holds a float"),
        ({"data": [True] * 16}, "holds a bool"),
        ({"data": ["1"] * 16}, "holds a str"),
        ({"data": [None] * 16}, "holds a NoneType"),
        ({"data": [2**31] + [0] * 15}, "-2147483648 to 2147483647"),
        ({"data": [-(2**31) - 1] + [0] * 15}, "-2147483648 to 2147483647"),
        ({"data": [2**64 - 1] + [0] * 15}, "-2147483648 to 2147483647"),
        ({"data": [10**400] + [0] * 15}, "failed to parse the request JSON buffer"),
        (
            {"parameters": {"binary_data_size": 64}},
            "Input must set only one of the following fields",
        ),
        (
            {"parameters": {"shared_memory_region": "r"}},
            "Input must set only one of the following fields",
        ),
        (
            {
                "parameters": {"shared_memory_region": "", "shared_memory_byte_size": 64},
                "data": None,
            },
            "must be a string, the name of a region",
        ),
        ({"shape": [1, 1], "data": [0]}, "Expected [-1,16], got [1,1]"),
        ({"parameters": 7}, "Unable to parse 'parameters'"),
    ],
)
def test_malformed_inputs(served: Served, change: Any, message: str) -> None:
    document = served.simple()
    first, second = document["inputs"]
    order = [second, first | change] if change.get("name") == "INPUT1" else [first | change, second]
    assert message in served.refused("simple", {"inputs": order})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"id": 7}, "Unable to parse 'id'"),
        ({"parameters": []}, "Unable to parse 'parameters'"),
        ({"parameters": [1]}, "Unable to parse 'parameters': expected an object, got a JSON array"),
        ({"parameters": {"timeout": -1}}, "'timeout' must be an unsigned 64-bit integer"),
        ({"parameters": {"timeout": 1.5}}, "'timeout' must be an unsigned 64-bit integer"),
        ({"parameters": {"timeout": "soon"}}, "'timeout' must be an unsigned 64-bit integer"),
        ({"parameters": {"priority": 2**64}}, "'priority' must be an unsigned 64-bit integer"),
        ({"parameters": {"binary_data_output": 1}}, "expected a boolean"),
        ({"outputs": {}}, "Unable to parse 'outputs'"),
        ({"outputs": ["OUTPUT0"]}, "Unable to parse 'outputs'"),
        (
            {"outputs": [{"name": "OUTPUT0"}, {"name": "OUTPUT0"}]},
            "output 'OUTPUT0' already exists in request",
        ),
        ({"outputs": [{"name": "FOO"}]}, "unexpected inference output 'FOO' for model 'simple'"),
        (
            {"outputs": [{"name": "OUTPUT0_1"}]},
            "unexpected inference output 'OUTPUT0_1' for model 'simple'",
        ),
        (
            {"outputs": [{"name": "OUTPUT0", "parameters": 7}]},
            "Unable to parse 'parameters' of output 'OUTPUT0'",
        ),
        (
            {"outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": "yes"}}]},
            "expected a boolean",
        ),
        (
            {"outputs": [{"name": "OUTPUT0", "parameters": {"classification": 0.5}}]},
            "must be an unsigned 64-bit integer",
        ),
        (
            {"outputs": [{"name": "OUTPUT0", "parameters": {"classification": -1}}]},
            "must be an unsigned 64-bit integer",
        ),
        (
            {
                "outputs": [
                    {
                        "name": "OUTPUT0",
                        "parameters": {"classification": 1, "shared_memory_region": "r"},
                    }
                ]
            },
            "with classification",
        ),
        (
            {
                "outputs": [
                    {
                        "name": "OUTPUT0",
                        "parameters": {"binary_data": True, "shared_memory_region": "r"},
                    }
                ]
            },
            "with 'binary_data'",
        ),
    ],
)
def test_malformed_parameters_and_outputs(served: Served, more: Any, message: str) -> None:
    assert message in served.refused("simple", served.simple(**more))


def test_unknown_regions_of_shared_memory(served: Served) -> None:
    part = {"shared_memory_region": "r", "shared_memory_byte_size": 64}
    document = served.simple()
    document["inputs"][0] = {
        "name": "INPUT0",
        "shape": [1, 16],
        "datatype": "INT32",
        "parameters": part,
    }
    for wrong in (document, served.simple(outputs=[{"name": "OUTPUT0", "parameters": part}])):
        answer = served.infer("simple", wrong)
        assert answer.status_code == 404 and answer.json() == {
            "error": "Unable to find shared memory region: 'r'"
        }


def test_missing_inputs_are_named(served: Served) -> None:
    document = served.simple()
    assert served.refused("simple", {"inputs": document["inputs"][:1]}) == (
        "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['INPUT0'], "
        "but missing required input(s) ['INPUT1']. "
        "Please provide all required input(s)."
    )


def test_shapes_of_models_without_a_batch(served: Served) -> None:
    def message(shape: Any) -> Any:
        return served.refused("scaled", served.one("FP64", shape, [1.0] * 4, name="data"))

    assert (
        message([2, 2])
        == "unexpected shape for input 'data' for model 'scaled'. Expected [1,-1], got [2,2]"
    )
    assert (
        message([4])
        == "unexpected shape for input 'data' for model 'scaled'. Expected [1,-1], got [4]"
    )
    assert "Expected [1], got [4]" in served.refused(
        "text", served.one("BYTES", [4], ["x"] * 4, name="data")
    )
    for shape in ([1], [1, 1], []):
        assert served.infer("text", served.one("BYTES", shape, ["x"], name="data")).json()[
            "outputs"
        ][0]["data"] == ["X"]


def test_raw_requests_that_a_model_can_not_take(served: Served) -> None:
    assert served.refused("any", b"", bytes(4), length=0) == (
        "raw input needs the datatype and shape of input 'X', which model 'any' does not declare"
    )
    assert "has [2]" in served.refused("pairs", b"", b"x", length=0)
    assert "has [-1, -1]" in served.refused("planes", b"", bytes(4), length=0)


def test_a_model_without_inputs_takes_none(served: Served) -> None:
    for _ in range(2):
        assert served.infer("none", {"inputs": []}).status_code == 200
    assert "expected 0 inputs but got 1 inputs for model 'none'" in served.refused(
        "none", served.one("FP32", [1], [1.0])
    )
    assert "model 'none' has 0" in served.refused("none", b"", b"1234", length=0)


def test_a_model_that_streams(served: Served) -> None:
    """It is a client's mistake, as for Triton's decoupled models: /predict has the parts."""
    document = served.one("BYTES", [1], ["ab"], name="data")
    message = served.refused("letters", document)
    assert message == (
        "HTTP end point doesn't support models with decoupled transaction policy: model 'letters' "
        "answers in parts, which POST /predict/letters sends, and "
        "/v2/models/letters/generate_stream"
    )
    assert served.http.post("/predict/letters", content=b"ab").json() == {"result": ["a", "b"]}


def test_unknown_models_and_versions(served: Served) -> None:
    for name, message in (
        ("nope", "Request for unknown model: 'nope' is not found"),
        ("simple/versions/99", "Request for unknown model: 'simple' version 99 is not found"),
    ):
        assert served.refused(name, served.simple()) == message
    assert served.infer("simple/versions/1", served.simple()).status_code == 200


@pytest.mark.parametrize(
    ("size", "sent", "message"),
    [
        (
            64,
            bytes(60),
            "unexpected size for input 'INPUT0', expecting 4 additional bytes for model "
            "'identity_FP32'",
        ),
        (64, bytes(65), "unexpected additional input data for model 'identity_FP32'"),
        (
            60,
            bytes(60),
            "input byte size mismatch for input 'INPUT0' for model 'identity_FP32'. "
            "Expected 64, got 60",
        ),
        (2**63, b"", "unexpected size for input 'INPUT0'"),
        (-1, b"", "must be an unsigned 64-bit integer"),
        (2**64, b"", "must be an unsigned 64-bit integer"),
        ("64", bytes(64), "must be an unsigned 64-bit integer"),
    ],
)
def test_wrong_binary_sizes(served: Served, size: Any, sent: bytes, message: str) -> None:
    assert message in served.refused("identity_FP32", served.one("FP32", [1, 16], size=size), sent)


@pytest.mark.parametrize(
    "length",
    [
        "-1",
        "+1",
        "1e3",
        "1_0",
        "99999999999999999999",
        "9" * 19,
        "9" * 5000,
        "100000",
        "x",
        "",
        "²",
    ],
)
def test_wrong_header_lengths(served: Served, length: str) -> None:
    assert "inference header size should be in range (0, " in served.refused(
        "simple", served.simple(), b"", length=length.encode()
    )


def test_a_header_length_that_cuts_the_json(served: Served) -> None:
    served.refused("simple", served.simple(), length=10)


@pytest.mark.parametrize(
    "shape", [[2**32, 2**32], [1, 2**62], [2**64 - 1, 2], [1, 2**63, 2, 0], [1] * 100]
)
@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BOOL"])
def test_shapes_that_overflow(served: Served, shape: Any, datatype: str) -> None:
    for document, blobs in (
        (served.one(datatype, shape, size=4, name="X"), [bytes(4)]),
        (served.one(datatype, shape, [0], name="X"), []),
    ):
        served.refused("any", document, *blobs)


def test_errors_of_shapes_that_overflow(served: Served) -> None:
    assert (
        "causes total element count to exceed maximum size of 18446744073709551615"
        in served.refused("any", served.one("UINT8", [2**32, 2**32], [], name="X"))
    )
    assert "byte size overflow for input 'X'" in served.refused(
        "any", served.one("FP64", [2**62], [], name="X")
    )


@pytest.mark.parametrize("name", ["text", "any", "volume"])
def test_shapes_of_many_dimensions(served: Served, name: str) -> None:
    message = served.refused(
        name,
        served.one("BYTES", [2**64 - 1] * 100_000, ["x"], name="data" if name == "text" else "X"),
    )
    assert "shape" in message or "data-type" in message
    assert len(message) < 1000


def test_shapes_without_elements_that_no_array_has(served: Served) -> None:
    served.refused("any", served.one("FP32", [0, 2**62, 2**62], [], name="X"))
    assert served.infer("any", served.one("FP32", [0, 7], [], name="X")).json()["outputs"][0][
        "shape"
    ] == [0, 7]


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\x01\x00\x00",
        strings(b"a") + b"\x01\x00\x00\x00",
        strings(b"a", b"b", b"c"),
        strings(b"a"),
        b"\xff\xff\xff\xff" * 2,
        strings(b"aaaa") + b"\x01\x00",
    ],
)
def test_strings_with_wrong_lengths(served: Served, blob: Any) -> None:
    message = served.refused("identity_BYTES", served.one("BYTES", [1, 2], size=len(blob)), blob)
    assert (
        message == "unexpected number of string elements for inference input 'INPUT0', expecting 2"
    )


def test_numbers_beyond_their_datatype(served: Served) -> None:
    for datatype, low, high in (
        ("UINT8", 0, 255),
        ("INT8", -128, 127),
        ("UINT64", 0, 2**64 - 1),
        ("INT64", -(2**63), 2**63 - 1),
    ):
        good = served.infer(f"identity_{datatype}", served.one(datatype, [1, 2], [low, high]))
        assert good.json()["outputs"][0]["data"] == [low, high]
        for wrong in (low - 1, high + 1):
            served.refused(
                f"identity_{datatype}", json.dumps(served.one(datatype, [1, 1], [wrong])).encode()
            )
    assert "beyond the range of FP32" in served.refused(
        "identity_FP32", served.one("FP32", [1, 1], [1e39])
    )
    with_nan = json.dumps(served.one("FP64", [1, 2], [10**400, float("nan")])).encode()
    assert "number is infinity" in served.refused("identity_FP64", with_nan)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400, "1" + "0" * 5000])
@pytest.mark.parametrize("beside", ["0", "NaN"])
def test_numbers_beyond_a_double_are_refused(served: Served, number: str, beside: str) -> None:
    text = json.dumps(served.one("FP32", [1, 2], [])).replace("[]", f"[{beside}, {number}]")
    message = served.refused("identity_FP32", text.encode())
    assert (
        "failed to parse the request JSON buffer" in message
        or "beyond the range of FP32" in message
    )


def test_bytes_that_are_not_text_can_not_be_answered_as_json(served: Served) -> None:
    blob = strings(b"\xff")
    assert "ask for binary data" in served.refused(
        "identity_BYTES", served.one("BYTES", [1, 1], size=len(blob)), blob
    )


@pytest.mark.parametrize("more", [{}, {"other": float("nan")}])
def test_lone_surrogates_are_refused(served: Served, more: Any) -> None:
    for document in (
        served.simple(id="\ud800", **more),
        served.simple(parameters={"\udfff": "x"}, **more),
        served.one("BYTES", [1, 1], ["\ud800"], **more),
    ):
        assert "failed to parse the request JSON buffer" in served.refused("simple", document)
    assert (
        served.infer("simple", served.simple(id="\U0001f600", **more)).json()["id"] == "\U0001f600"
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "latin-1"])
def test_json_must_be_utf8(served: Served, encoding: str) -> None:
    for more in ({}, {"other": float("nan")}):
        text = json.dumps(served.simple(id="é", **more), ensure_ascii=False).encode(encoding)
        assert "failed to parse the request JSON buffer" in served.refused("simple", text)


def test_errors_quote_the_client_only_in_part(served: Served) -> None:
    for document in (
        served.one("FP32", [1], [1], name="n" * 100_000),
        {"inputs": [{"name": "n"}] * 10_000},
    ):
        assert len(served.refused("identity_FP32", document)) == 4096


@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_the_depth_of_json_is_bounded(served: Served, brackets: str) -> None:
    def nested(levels: Any) -> Any:  # together with the levels of the request around it
        inside = (
            "[" * levels + "]" * levels
            if brackets == "[]"
            else '{"x":' * levels + "0" + "}" * levels
        )
        return (
            json.dumps(served.simple())
            .replace('{"inputs"', f'{{"more": {inside}, "inputs"', 1)
            .encode()
        )

    assert served.infer("simple", nested(99)).status_code == 200
    assert (
        served.refused("simple", nested(100))
        == "JSON nesting depth exceeds maximum allowed limit (100)"
    )
    for levels in (120, 1100, 250_000):
        served.refused("simple", nested(levels))
    with_brackets = served.simple(id="[{" * 300 + '\\"[')
    assert served.infer("simple", with_brackets).json()["id"] == with_brackets["id"]


def test_the_depth_of_an_input_that_is_json_is_bounded(served: Served) -> None:
    assert (
        served.infer(
            "json", served.one("BYTES", [1], ["[" * 100 + "]" * 100], name="data")
        ).status_code
        == 200
    )
    for text in ("[" * 101 + "]" * 101, "[" * 100_000, "[[],"):
        assert served.refused("json", served.one("BYTES", [1], [text], name="data")).startswith(
            "input 'data' is not valid JSON: "
        )


def test_the_depth_is_bounded_beside_nan(served: Served) -> None:
    text = b'{"more": NaN, "deep": ' + b"[" * 250_000 + b"]" * 250_000 + b"}"
    assert (
        served.refused("simple", text) == "JSON nesting depth exceeds maximum allowed limit (100)"
    )
    assert "JSON" in served.refused("simple", b"[" * 100_000)


@pytest.mark.parametrize(
    "text",
    [b'"' + rb"\"" * 200_000, b'"' + rb"\"" * 200_000 + b"\\", b'"\\' * 200_000, b'"' * 399_999],
)
def test_strings_that_do_not_end_take_linear_time(served: Served, text: bytes) -> None:
    served.refused("simple", b"[" * 101 + text)


def test_chunks_are_counted(served: Served) -> None:
    text = json.dumps(served.simple()).encode()
    pieces = [text[index : index + 1] for index in range(len(text))]
    assert len(pieces) < 1000
    good = served.raw(b"".join(chunked("/v2/models/simple/infer", *pieces)))
    assert good.startswith(b"HTTP/1.1 200")
    bad = served.raw(b"".join(chunked("/v2/models/simple/infer", *([b" "] * 1000), text)))
    assert bad.startswith(b"HTTP/1.1 400") and b"more than 1000 chunks (max_chunks)" in bad
    million = chunked("/v2/models/simple/infer")
    answer = served.raw(million[0], *[b"1\r\nx\r\n" * 10_000] * 100, million[1])
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


def test_trailers_do_not_count_as_headers(served: Served) -> None:
    text = json.dumps(served.simple()).encode()
    head, chunk, _ = chunked("/v2/models/simple/infer", text)
    answer = served.raw(
        head + chunk + b"0\r\nInference-Header-Content-Length: 3\r\nX-Request-Id: trailer\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200") and b"trailer" not in answer


def test_bodies_are_bounded(served: Served) -> None:
    answer = served.raw(
        b"POST /v2/models/simple/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
    )
    assert (
        answer.startswith(b"HTTP/1.1 400")
        and b"at most 8388608 are accepted (max_body)" in answer
        and b"connection: close" in answer
    )
    answer = served.raw(*chunked("/v2/models/simple/infer", *[bytes(1 << 20)] * 10))
    assert answer == b"" or (answer.startswith(b"HTTP/1.1 400") and b"(max_body)" in answer)


def test_a_client_that_leaves_during_its_upload(served: Served) -> None:
    served.raw(
        b"POST /v2/models/simple/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
        leave=True,
    )
