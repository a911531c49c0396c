"""Finds speech in 16 kHz sound while it arrives: 16-bit samples, one channel, little-endian."""

import math
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

RATE = 16_000  # samples a second
WINDOW = RATE // 50  # 20 ms
LOUDER = 4.0  # speech is so many times as loud as the noise
HANG_OVER = 15  # windows: a shorter pause does not end it


async def speech(item: dict[str, Any], call: Any) -> AsyncIterator[dict[str, float]]:
    """Yield `{"from": …, "to": …}`, in seconds, for each stretch of speech once it has ended.

    Its state is kept from chunk to chunk: samples that fill no window yet, the noise heard so far,
    and the stretch that goes on.
    """
    rest = b""
    noise = math.inf
    windows = last = 0
    began: int | None = None
    async for chunk in item["data"]:
        rest += chunk
        end = len(rest) // (2 * WINDOW) * 2 * WINDOW
        sound, rest = np.frombuffer(rest[:end], "<i2").reshape(-1, WINDOW), rest[end:]
        for loudness in np.sqrt(np.mean(sound.astype(np.float32) ** 2, axis=1)).tolist():
            # The noise follows a quiet window at once, and a loud one slowly.
            noise = min(loudness, noise * 1.005)
            if loudness > LOUDER * max(noise, 1.0):
                began = windows if began is None else began
                last = windows
            elif began is not None and windows - last > HANG_OVER:
                yield stretch(began, last)
                began = None
            windows += 1
    if began is not None:
        yield stretch(began, last)


def stretch(first: int, last: int) -> dict[str, float]:
    return {"from": first * WINDOW / RATE, "to": (last + 1) * WINDOW / RATE}
