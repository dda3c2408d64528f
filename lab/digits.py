"""Handwritten digits: the 1,797 scans of 8 × 8 pixels that scikit-learn brings along.

They are the test part of the UCI data set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), by 13
writers, one scan after the other. The split is by place in the file, which keeps most of a writer's digits together.
"""

import functools
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from sklearn.datasets import load_digits
from torch import Tensor

__all__ = ["Digits", "digits"]

Split = Literal["train", "test"]
TRAIN = 1400  # of 1,797


class Digits(NamedTuple):
    """Scans in 0…1, ink is 1, and which digit each shows."""

    images: Float[Tensor, "n 8 8"]
    labels: Int[Tensor, " n"]


@functools.cache
def _all() -> Digits:
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32) / 16  # grey levels 0…16
    return Digits(images, torch.tensor(found.target, dtype=torch.int64))


def digits(split: Split) -> Digits:
    """The scans of one split: the first 1,400 to train, the other 397 to test.

    Raises:
        ValueError: there is no such split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, not {split!r}.")
    part = slice(None, TRAIN) if split == "train" else slice(TRAIN, None)
    images, labels = _all()
    return Digits(images[part].clone(), labels[part].clone())
