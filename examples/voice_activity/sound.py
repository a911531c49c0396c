"""What goes into Silero's model, and what comes out of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock import InvalidInput

CHUNK = 512  # samples


def samples(sound: bytes) -> NDArray[np.float32]:
    """Return the samples of a chunk, 1×512, from -1 to 1."""
    if len(sound) != 2 * CHUNK:
        raise InvalidInput(
            f"the sound has {len(sound)} bytes: expected {CHUNK} samples of 16 bits, {2 * CHUNK} "
            "bytes (fill the last chunk of a stream with zeros)"
        )
    return np.frombuffer(sound, "<i2")[None].astype(np.float32) / np.float32(32768)


def probability(speech: NDArray[np.float32]) -> float:
    """Return the one value of the model's output, 1×1."""
    return float(speech[0, 0])
