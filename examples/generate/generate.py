"""Generates text with a network that knows one character at a time."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock import InvalidInput

STATE = 128  # what the network remembers
MAX_TOKENS = 2000
MAX_PROMPT = 200
"""Characters of the text's end that the network reads. It forgets earlier ones anyway."""


async def generate(item: dict[str, Any], call: Any) -> AsyncIterator[str]:
    """Yield the characters that follow `text_input`."""
    text, most, temperature, seed = item["data"]
    most = min(200 if most is None else most, MAX_TOKENS)
    temperature = 0.5 if temperature is None else temperature
    if not text or not text.isascii():
        raise InvalidInput("text_input is empty or not ASCII: expected how the text begins")
    random = np.random.default_rng(seed)
    state = scores = np.zeros((1, STATE), np.float32)
    unread = text[-MAX_PROMPT:]
    for _ in range(most):
        for character in unread:
            scores, state = await step(character, state, call)
        unread = choose(scores[0], temperature, random)
        yield unread


async def step(
    character: str, state: NDArray[np.float32], call: Any
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the scores of what may follow a character, and the state after it."""
    code = np.array([ord(character)], np.int64)
    answer = await call("step", {"data": [code, state]})
    scores, state = answer["result"]
    return scores, state


def choose(scores: NDArray[np.float32], temperature: float, random: np.random.Generator) -> str:
    if temperature <= 0:
        return chr(int(scores.argmax()))
    chances = np.exp((scores - scores.max()) / temperature)
    return chr(random.choice(len(chances), p=chances / chances.sum()))
