"""Randomness that can be repeated: every draw of the course takes a ``torch.Generator``."""

import hashlib

import torch

__all__ = ["generator"]


def generator(seed: int | str = 0) -> torch.Generator:
    """A new CPU generator, seeded by a number or by a name.

    A name gives draws of their own to each purpose, so that two fixtures never share a stream by accident:
    ``generator("prompts")`` and ``generator("rewards")`` are unrelated. Draw on the CPU and move the result
    (``torch.randn(2, 3, generator=rng).to(device)``): the numbers are then the same on every device.
    """
    if isinstance(seed, str):
        seed = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(seed)
