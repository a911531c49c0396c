"""examples/digits as its users meet it: the held-out images over HTTP, from many clients at once."""

from __future__ import annotations

import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from penstock import create_app

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
WORDS = (DIGITS / "labels.txt").read_text().split()


@pytest.fixture(scope="module")
def address() -> Any:
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(DIGITS / "digits.toml"),
            port=0,
            loop="uvloop",
            lifespan="on",
            log_config=None,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/predict/digits"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def heldout() -> Any:
    spec = importlib.util.spec_from_file_location("digits_data", DIGITS / "data.py")
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    return list(data.heldout())


@pytest.mark.parametrize(("kind", "column"), [("png", 0), ("jpeg", 1)])
def test_the_held_out_images_from_32_clients(
    address: Any, heldout: Any, kind: Any, column: Any
) -> None:
    files = [row[column] for row in heldout]
    with httpx.Client(timeout=60) as client:

        def ask(file: Any) -> Any:
            answer = client.post(address, content=file, headers={"Content-Type": f"image/{kind}"})
            assert answer.status_code == 200, answer.text
            return answer.json(), answer.headers["server-timing"]

        singles = [ask(file) for file in files]
        with ThreadPoolExecutor(32) as clients:
            answers = list(clients.map(ask, files))
    assert len(answers) == 450
    assert {timing.partition("desc=")[2] for _, timing in singles} == {'"batch 1"'}
    assert any(
        '"batch 1"' not in timing for _, timing in answers
    )  # batches were made, or nothing would be shown
    for (answer, _), (single, _) in zip(answers, singles, strict=True):
        assert answer["label"] == single["label"] == WORDS[answer["class"]]
        assert answer["result"] == answer["class"] and set(answer) == {
            "result",
            "label",
            "class",
            "score",
        }
        assert answer["score"] == pytest.approx(single["score"], abs=1e-4)
    right = sum(
        answer["class"] == row[2] for (answer, _), row in zip(answers, heldout, strict=True)
    )
    assert right >= 0.97 * len(heldout)


def test_a_batch_request_gives_the_same(address: Any, heldout: Any) -> None:
    files = [row[0] for row in heldout[:64]]
    with httpx.Client(timeout=60) as client:
        results = client.post(
            f"{address}/batch", files=[("images", file) for file in files]
        ).json()["results"]
        for file, result in zip(files, results, strict=True):
            single = client.put(address, content=file).json()
            assert result["label"] == single["label"] and result["score"] == pytest.approx(
                single["score"], abs=1e-4
            )
