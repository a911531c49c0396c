"""`/v1/embeddings` as OpenAI's clients know it, for every pipeline that answers a vector.

    uvicorn --app-dir examples/embeddings app:app
    curl --json '{"model": "lsa", "input": "batches"}' http://127.0.0.1:8000/v1/embeddings

`model` is the pipeline's name. With OpenAI's package:

    client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
    client.embeddings.create(model="lsa", input=["a queue", "a deadline"])
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from penstock import InvalidRequest, PenstockError, Repository, create_router, exception_handler

MAX_TEXTS = 512
KEPT_HEADERS = ["retry-after", "x-request-id"]

Text = Annotated[str, Field(min_length=1)]
models = Repository.read(Path(__file__).with_name("lsa.toml"))
app = FastAPI()
app.include_router(create_router(models))  # starts and closes the pipelines


class EmbeddingRequest(BaseModel):
    model: str
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = Field(None, description="These vectors can't be shortened.")


@app.post("/v1/embeddings")
async def embeddings(request: EmbeddingRequest) -> Any:
    texts = [request.input] if isinstance(request.input, str) else request.input
    answers = await models.get(request.model)([{"data": text} for text in texts])
    for answer in answers:
        if "error" in answer:
            raise answer["error"]
    tokens = sum(answer["tokens"] for answer in answers)
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": encode(answer["result"], request.encoding_format),
            }
            for index, answer in enumerate(answers)
        ],
        "model": request.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def encode(vector: Any, encoding_format: str) -> list[float] | str:
    """Write a vector as a list, or as base64 of little-endian float32."""
    floats = np.asarray(vector, "<f4").ravel()
    if encoding_format == "float":
        return floats.tolist()
    return base64.b64encode(floats.tobytes()).decode()


@app.exception_handler(PenstockError)
async def problem(request: Request, error: Exception) -> JSONResponse:
    """Answer an error in OpenAI's shape, with Penstock's status and headers."""
    response = await exception_handler(request, error)
    found = json.loads(bytes(response.body))
    kind = "invalid_request_error" if response.status_code < 500 else "server_error"
    body = {"message": found["detail"], "type": kind, "param": None, "code": found["code"]}
    headers = {key: response.headers[key] for key in KEPT_HEADERS if key in response.headers}
    return JSONResponse({"error": body}, response.status_code, headers)


@app.exception_handler(RequestValidationError)
async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    texts = [f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors()]
    return await problem(request, InvalidRequest("; ".join(texts)))
