"""A FastAPI app of your own around a pipeline: your users, your routes, a worker in the background.

    uvicorn --app-dir examples/host app:app
    curl -H 'Authorization: Bearer token-of-ann' -T examples/digits/digit.png \\
        http://127.0.0.1:8000/models/predict/digits

`/models/...` is Penstock's HTTP API, behind the app's own authentication. `/digit` calls the
pipeline in process. `/jobs` does so later, in the background, and keeps the answer until its user
asks for it. All of them share the pipeline's batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from penstock import (
    NotFound,
    PenstockError,
    QueueFull,
    Repository,
    create_router,
    exception_handler,
)

PIPELINE = Path(__file__).parents[1] / "digits" / "digits.toml"
USERS = {"token-of-ann": "ann", "token-of-bob": "bob"}  # yours come from a database
MAX_WAITING_JOBS = 100
WORKERS = 8
"""Jobs that run at once, so that they share batches."""

models = Repository.read(PIPELINE)


def user(credentials: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    """Return the name of the user whose token a request has."""
    name = USERS.get(credentials.credentials)
    if name is None:
        raise HTTPException(401, "unknown token")
    return name


User = Annotated[str, Depends(user)]


@dataclass
class Job:
    owner: str
    image: bytes
    id: str = field(default_factory=lambda: token_hex(8))
    answer: dict[str, Any] | None = None


jobs: dict[str, Job] = {}
waiting: asyncio.Queue[Job] = asyncio.Queue(MAX_WAITING_JOBS)


async def read(image: bytes) -> dict[str, Any]:
    """Read the digit on an image. Raises a `PenstockError` if that fails."""
    answer = await models.get("digits")({"data": image})
    return {"digit": answer["class"], "score": answer["score"]}


async def work() -> None:
    """Do the waiting jobs, one after the other."""
    while True:
        job = await waiting.get()
        try:
            job.answer = await read(job.image)
        except PenstockError as error:
            job.answer = {"error": error.code}
        waiting.task_done()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start the pipelines before the workers, and close them after these."""
    await models.start()
    workers = [asyncio.create_task(work()) for _ in range(WORKERS)]
    try:
        yield
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await models.close()


app = FastAPI(lifespan=lifespan)
app.add_exception_handler(PenstockError, exception_handler)
# The pipelines are started above, so the router leaves them alone.
app.include_router(create_router(models, prefix="/models", dependencies=[Depends(user)]))


@app.post("/digit", dependencies=[Depends(user)])
async def digit(request: Request) -> dict[str, Any]:
    return await read(await request.body())


@app.post("/jobs", status_code=202)
async def add_job(request: Request, owner: User) -> dict[str, str]:
    job = Job(owner, await request.body())
    try:
        waiting.put_nowait(job)
    except asyncio.QueueFull:
        raise QueueFull(f"{MAX_WAITING_JOBS} jobs wait already") from None
    jobs[job.id] = job
    return {"id": job.id}


@app.get("/jobs/{job_id}")
async def take_answer(job_id: str, owner: User) -> dict[str, Any]:
    job = jobs.get(job_id)
    if job is None or job.owner != owner:
        raise NotFound(f"you have no job {job_id!r}")
    if job.answer is None:
        return {"done": False}
    del jobs[job_id]
    return {"done": True, **job.answer}
