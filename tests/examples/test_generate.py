"""examples/generate: text that comes character by character, batched across its readers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx

from penstock import Pipeline

PIPELINE = Path(__file__).parents[2] / "examples" / "generate" / "generate.toml"


def stream(client: httpx.Client, **request: object) -> list[str]:
    """Return the parts of a generate_stream answer."""
    url = client.base_url.copy_with(path="/v2/models/generate/generate_stream")
    answer = client.post(str(url), json=request)
    assert answer.status_code == 200, answer.text
    events = answer.text.removesuffix("\n\n").split("\n\n")
    return [json.loads(event.removeprefix("data: "))["text_output"] for event in events]


def test_the_same_seed_gives_the_same_text(client: httpx.Client) -> None:
    parts = stream(client, text_input="A pipeline", max_tokens=40, seed=1)
    assert len(parts) == 40 and all(len(part) == 1 for part in parts)
    assert (
        stream(client, text_input="A pipeline", parameters={"max_tokens": 40, "seed": 1}) == parts
    )
    assert stream(client, text_input="A pipeline", max_tokens=40, seed=2) != parts


def test_it_writes_words_of_the_documentation(client: httpx.Client) -> None:
    text = "".join(stream(client, text_input="The serv", max_tokens=60, temperature=0))
    assert text.startswith("er ") and "the" in text.split()
    whole = client.post("generate", json={"text_input": "The serv", "max_tokens": 2}).json()
    assert len(whole["result"]) == 2


def test_generate_takes_one_token(client: httpx.Client) -> None:
    url = str(client.base_url.copy_with(path="/v2/models/generate/generate"))
    answer = client.post(url, json={"text_input": "The serve", "max_tokens": 1, "temperature": 0})
    assert answer.json() == {
        "text_output": "r",
        "model_name": "generate",
        "model_version": "1",
    }
    many = client.post(url, json={"text_input": "The serve"})
    assert many.status_code == 400 and "exactly 1 response" in many.json()["error"]
    odd = client.post(url, json={"text_input": "äöü"})
    assert odd.status_code == 400 and "expected how the text begins" in odd.json()["error"]


async def test_texts_in_progress_share_batches() -> None:
    async with Pipeline.load(PIPELINE) as pipeline:
        items = [{"data": [f"Text {number}", 30, None, number]} for number in range(8)]
        texts = await asyncio.gather(*map(pipeline, items))
        assert [len(parts) for parts in texts] == [30] * 8
        (step,) = (node for node in pipeline.nodes if node.name == "step")
        statistics = step.statistics
        steps = sum(int(size * count) for size, (count, _) in statistics.sizes.items())
        assert steps == 8 * (len("Text 0") + 29)  # none follows the last character
        assert steps / statistics.batches > 4
