"""The dual tones of a telephone keypad: each key sounds two frequencies at once, one for its row, one for its column.

The frequencies are those of the standard (ITU-T Q.23, 1988). A receiver tells the keys apart by measuring the energy at
eight frequencies, which is what Goertzel's algorithm of 1958 is for.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["COLUMNS", "KEYS", "RATE", "ROWS", "frequencies", "tone"]

RATE = 8000  # samples a second, as in telephony
ROWS = (697.0, 770.0, 852.0, 941.0)  # Hz
COLUMNS = (1209.0, 1336.0, 1477.0, 1633.0)  # Hz
KEYS = ("123A", "456B", "789C", "*0#D")


def frequencies(key: str) -> tuple[float, float]:
    """The frequencies of a key, in Hz: its row's, its column's.

    Raises:
        ValueError: there is no such key.
    """
    for row, keys in zip(ROWS, KEYS, strict=True):
        if len(key) == 1 and key in keys:
            return row, COLUMNS[keys.index(key)]
    raise ValueError(f"{key!r} is no key; there are {' '.join(''.join(KEYS))}.")


def tone(
    key: str,
    rng: torch.Generator,
    *,
    seconds: float = 0.05,
    noise: float = 0.05,
) -> Float[Tensor, " samples"]:
    """The sound of a key: two sines of amplitude about 0.4, with random phases and loudness, in noise.

    Args:
        key: one of ``0123456789ABCD*#``.
        rng: a CPU generator.
        seconds: how long; the standard's shortest signal lasts 40 ms.
        noise: standard deviation of the white noise.

    Returns:
        ``round(seconds * RATE)`` samples.

    Raises:
        ValueError: there is no such key, or nothing to hear.
    """
    samples = round(seconds * RATE)
    if samples < 1:
        raise ValueError(f"{seconds} s have no sample at {RATE} Hz.")
    t = torch.arange(samples) / RATE
    sound = noise * torch.randn(samples, generator=rng)
    for frequency in frequencies(key):
        phase, loudness = torch.rand(2, generator=rng).tolist()
        sound += (0.35 + 0.1 * loudness) * torch.sin(2 * math.pi * (frequency * t + phase))
    return sound
