"""Every operation of the client that openapi-python-client generates.

    python use_python.py URL IMAGE

Type-checked by mypy, then run against a server. `assert_type` is for mypy; the other assertions are
for the run.
"""

from __future__ import annotations

import asyncio
import base64
import sys
from io import BytesIO
from pathlib import Path
from typing import assert_type

from penstock_client import Client
from penstock_client.api.digits import batch_digits, predict_digits, put_digits
from penstock_client.api.health import health_live, health_ready, metrics
from penstock_client.api.kinds_1_2 import predict_kinds_1_2
from penstock_client.api.pipelines import list_pipelines
from penstock_client.models import (
    BatchDigits,
    ImageBase64,
    ImageForm,
    ImagesBase64,
    ImagesForm,
    LineKinds12,
    PipelineList,
    PredictionDigits,
    PredictionKinds12,
    Problem,
)
from penstock_client.types import File, Unset

THREE = Path(sys.argv[2]).read_bytes()


def raw(data: bytes) -> File:
    return File(payload=BytesIO(data))


def form(data: bytes) -> ImageForm:
    return ImageForm(
        image=File(payload=BytesIO(data), file_name="image.png", mime_type="image/png")
    )


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def check_three(answer: PredictionDigits | Problem | None) -> None:
    assert isinstance(answer, PredictionDigits), answer
    assert_type(answer.label, str | Unset)
    assert_type(answer.class_, int | Unset)
    assert_type(answer.score, float | Unset)
    assert answer.label == "three" and answer.class_ == answer.result == 3
    assert isinstance(answer.score, float) and 0.5 < answer.score <= 1
    assert not answer.additional_properties


def check_problem(
    answer: PredictionDigits | BatchDigits | Problem | None, status: int, code: str
) -> None:
    assert isinstance(answer, Problem), answer
    assert_type(answer.code, str)
    assert_type(answer.status, int)
    assert (answer.status, answer.code, answer.request_id) == (status, code, "client-1")
    assert answer.type_ == "about:blank" and answer.title and answer.detail


def one_image(client: Client) -> None:
    # functions, not modules: a module's attributes would be Any here
    for predict in (predict_digits.sync, put_digits.sync):
        for body in (raw(THREE), form(THREE), ImageBase64(image=base64_of(THREE))):
            answer = predict(client=client, body=body, penstock_deadline_ms=20_000)
            assert_type(answer, PredictionDigits | Problem | None)
            check_three(answer)
        for body in (
            raw(b"no image"),
            form(b"no image"),
            ImageBase64(image=base64_of(b"no image")),
        ):
            check_problem(
                predict(client=client, body=body, x_request_id="client-1"), 422, "invalid_input"
            )
        check_problem(
            predict(client=client, body=ImageBase64(image="?"), x_request_id="client-1"),
            400,
            "invalid_request",
        )
    for detailed in (predict_digits.sync_detailed, put_digits.sync_detailed):
        response = detailed(client=client, body=raw(THREE), x_request_id="client-1")
        check_three(response.parsed)
        assert response.status_code == 200 and response.headers["x-request-id"] == "client-1"
        assert "queue.digits" in response.headers["server-timing"]


def several_images(client: Client) -> None:
    files = ImagesForm(
        images=[
            File(payload=BytesIO(data), file_name="image.png")
            for data in (THREE, b"no image", THREE)
        ]
    )
    for body in (
        files,
        ImagesBase64(images=[base64_of(data) for data in (THREE, b"no image", THREE)]),
    ):
        answer = batch_digits.sync(client=client, body=body, x_request_id="client-1")
        assert_type(answer, BatchDigits | Problem | None)
        assert isinstance(answer, BatchDigits), answer
        first, second, third = answer.results
        check_three(first)
        check_problem(second, 422, "invalid_input")
        check_three(third)
    check_problem(
        batch_digits.sync(client=client, body=ImagesBase64(images=[]), x_request_id="client-1"),
        400,
        "invalid_request",
    )


def every_kind_of_output(client: Client) -> None:
    answer = predict_kinds_1_2.sync(client=client, body=raw(b"four"), penstock_priority=1)
    assert isinstance(answer, PredictionKinds12), answer
    assert_type(answer.result, list[int] | None)
    assert_type(answer.scores, list[list[float | None]] | Unset)
    assert_type(answer.mask, list[bool] | Unset)
    assert_type(answer.lines, list[LineKinds12] | Unset)
    assert answer.lines and [(line.text, line.score) for line in answer.lines] == [
        ("a line", 1.0),
        ("another", 0.5),
    ]
    assert (
        answer.result == [1, 2]
        and answer.scores == [[0.5, None, 2.0]]
        and answer.mask == [True, False]
    )
    assert (answer.photo, answer.words, answer.count, answer.share, answer.found) == (
        "Zm91cg==",
        "four",
        4,
        0.25,
        True,
    )


def the_server(client: Client) -> None:
    live, ready = health_live.sync(client=client), health_ready.sync(client=client)
    assert live is not None and live.live and ready is not None and ready.ready
    text = metrics.sync(client=client)
    assert_type(text, str | None)
    assert text is not None and "penstock_ready 1" in text
    listed = list_pipelines.sync(client=client)
    assert_type(listed, PipelineList | None)
    assert listed is not None and [pipeline.name for pipeline in listed.pipelines] == [
        "digits",
        "kinds-1.2",
    ]


async def asynchronously(client: Client) -> None:
    # not raw(THREE): httpx's asynchronous client refuses a body that is a file
    bodies: list[ImageForm | ImageBase64] = [form(THREE), ImageBase64(image=base64_of(THREE))]
    answers = await asyncio.gather(
        *(predict_digits.asyncio(client=client, body=body) for body in bodies for _ in range(8))
    )
    for answer in answers:
        check_three(answer)
    await client.get_async_httpx_client().aclose()


with Client(base_url=sys.argv[1], raise_on_unexpected_status=True) as generated:
    one_image(generated)
    several_images(generated)
    every_kind_of_output(generated)
    the_server(generated)
asyncio.run(asynchronously(Client(base_url=sys.argv[1], raise_on_unexpected_status=True)))
