"""examples/embeddings, asked by OpenAI's own client over ASGI."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2  # the openai package's HTTP client
import numpy as np
import onnxruntime
import openai
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from .conftest import Load

EXAMPLE = Path(__file__).parents[2] / "examples" / "embeddings"
PASSAGES = [
    "One of the GPUs has no memory left: which engines can share a device?",
    "Mount the application below a prefix in FastAPI or Starlette, with its lifespan.",
    "A queue that is too long is late for every deadline, so requests are refused at overload.",
]


@pytest.fixture
async def client(load: Load) -> AsyncIterator[openai.AsyncOpenAI]:
    app = load(EXAMPLE / "app.py").app
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        openai.AsyncOpenAI(
            base_url="http://models/v1",
            api_key="none",
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=transport),
        ) as client,
    ):
        yield client


def expected(texts: list[str]) -> Any:
    """Return the vectors by the means of scikit-learn and ONNX Runtime."""
    words = (EXAMPLE / "words.txt").read_text().split()
    counter: Any = CountVectorizer(token_pattern=r"\b[a-z]\w+", vocabulary=words)
    model = onnxruntime.InferenceSession(EXAMPLE / "lsa.onnx", providers=["CPUExecutionProvider"])
    counts = counter.transform(texts).toarray().astype(np.float32)
    return model.run(None, {model.get_inputs()[0].name: counts})[0]


async def test_vectors_for_openais_client(client: openai.AsyncOpenAI) -> None:
    texts = [*PASSAGES, "A queue, a queue, a Queue.", "xyzzy"]
    vectors = expected(texts)
    answer = await client.embeddings.create(model="lsa", input=texts)  # asks for base64
    assert [each.index for each in answer.data] == list(range(len(texts)))
    assert np.allclose([each.embedding for each in answer.data], vectors, atol=1e-6)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 30
    one = await client.embeddings.create(model="lsa", input=texts[3], encoding_format="float")
    assert one.usage.prompt_tokens == 3
    assert (one.model, one.object, one.data[0].object) == ("lsa", "list", "embedding")
    assert np.allclose(one.data[0].embedding, vectors[3], atol=1e-6)


@pytest.mark.parametrize(
    ("question", "passage"),
    [
        ("host app in an ASGI framework", 1),
        ("How long may a request wait before it is refused?", 2),
    ],
)
async def test_a_question_is_nearest_to_its_passage(
    client: openai.AsyncOpenAI, question: str, passage: int
) -> None:
    answer = await client.embeddings.create(model="lsa", input=[question, *PASSAGES])
    first, *others = (each.embedding for each in answer.data)
    assert int(np.argmax(np.array(others) @ first)) == passage


async def test_errors_in_openais_shape(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.embeddings.create(model="lsb", input="text")
    assert unknown.value.body == {
        "message": "there is no pipeline 'lsb', did you mean 'lsa'?",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_found",
    }
    wrong: Any
    for wrong in ("", [], ["text", ""], [[1, 2]], ["text"] * 513):
        with pytest.raises(openai.BadRequestError, match="input") as refused:
            await client.embeddings.create(model="lsa", input=wrong)
        assert (refused.value.code, refused.value.type) == (
            "invalid_request",
            "invalid_request_error",
        )
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        await client.embeddings.create(model="lsa", input="text", dimensions=8)
