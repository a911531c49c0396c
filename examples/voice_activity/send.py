"""Sends sound that comes on standard input to a pipeline, and prints when there is speech in it.

arecord -t raw -f S16_LE -r 16000 -c 1 | python send.py
"""

import sys
import uuid
from collections.abc import Iterator

import httpx

RATE = 16_000
CHUNK_BYTES = 2 * 512
SPEECH, SILENCE = 0.5, 0.35  # it begins above the one, and ends below the other
HANG_OVER = 10  # chunks: a shorter pause does not end it


def main(url: str) -> None:
    sequence = str(uuid.uuid4())
    with httpx.Client() as client:
        for began, ended in stretches(probabilities(client, url, sequence)):
            print(f"speech from {seconds(began):.2f} s to {seconds(ended):.2f} s", flush=True)


def probabilities(client: httpx.Client, url: str, sequence: str) -> Iterator[float]:
    chunk = sys.stdin.buffer.read(CHUNK_BYTES)
    while chunk:
        following = sys.stdin.buffer.read(CHUNK_BYTES)
        answer = client.post(
            url,
            content=chunk.ljust(CHUNK_BYTES, b"\0"),
            headers={"Content-Type": "audio/l16"},
            params={"sequence": sequence, "sequence_end": not following},
        )
        answer.raise_for_status()
        yield answer.json()["result"]
        chunk = following


def stretches(probabilities: Iterator[float]) -> Iterator[tuple[int, int]]:
    """Yield the first chunk of each stretch of speech, and the first after it."""
    began: int | None = None
    last = number = 0
    for number, probability in enumerate(probabilities):
        if probability > SPEECH and began is None:
            began = number
        if probability > SILENCE:
            last = number
        elif began is not None and number - last > HANG_OVER:
            yield began, last + 1
            began = None
    if began is not None:
        yield began, number + 1


def seconds(chunks: int) -> float:
    return chunks * CHUNK_BYTES / 2 / RATE


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/predict/voice")
