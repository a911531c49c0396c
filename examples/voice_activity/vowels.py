"""Makes sound that Silero's model takes for speech, to try the example without a microphone.

python vowels.py | python send.py
"""

import sys

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
VOWELS = [(730, 1090, 2440), (270, 2290, 3010), (570, 840, 2410), (530, 1840, 2480)]
"""The three resonances (formants) of each, in Hz: Peterson and Barney, 1952."""
WIDTHS = (80, 100, 150)  # of the resonances, in Hz
SYLLABLE = int(0.22 * RATE)


def recording(seconds: float, start: float, end: float, pitch: float = 120) -> bytes:
    """Return noise with a voice in it from `start` to `end`, in seconds: 16-bit samples."""
    sound = np.random.default_rng(0).normal(0, 0.002, int(seconds * RATE))
    spoken = voice(end - start, pitch)
    first = int(start * RATE)
    sound[first : first + len(spoken)] += spoken
    content: bytes = (32767 * sound).astype("<i2").tobytes()
    return content


def voice(seconds: float, pitch: float) -> NDArray[np.float64]:
    """Return vowels as a throat makes them: pulses of the pitch, in Hz, through resonances."""
    time = np.arange(int(seconds * RATE)) / RATE
    turns = np.cumsum(pitch + 15 * np.sin(2 * np.pi * 2.5 * time)) / RATE
    pulses = (np.diff(np.floor(turns), prepend=0) > 0).astype(np.float64)
    sound = np.zeros(len(time))
    for start in range(0, len(time), SYLLABLE):
        piece = pulses[start : start + SYLLABLE]
        for formant, width in zip(VOWELS[start // SYLLABLE % len(VOWELS)], WIDTHS, strict=True):
            piece = resonate(piece, formant, width)
        sound[start : start + SYLLABLE] = piece * np.sin(np.pi * np.arange(len(piece)) / SYLLABLE)
    loud: NDArray[np.float64] = 0.5 * sound / np.abs(sound).max()
    return loud


def resonate(sound: NDArray[np.float64], frequency: float, width: float) -> NDArray[np.float64]:
    radius = np.exp(-np.pi * width / RATE)
    first, second = 2 * radius * np.cos(2 * np.pi * frequency / RATE), -(radius**2)
    out = np.zeros(len(sound))
    before = last = 0.0
    for index, value in enumerate(sound.tolist()):
        before, last = last, value + first * last + second * before
        out[index] = last
    return out


if __name__ == "__main__":
    sys.stdout.buffer.write(recording(2.5, start=0.5, end=1.5))
