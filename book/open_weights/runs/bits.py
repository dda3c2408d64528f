"""Perplexity and size of one model at 16, 8, 4, 3 and 2 bits a weight.

The matrices of the checkpoint `gpt`, a Transformer of Shakespeare's characters, are rounded by the exercise's absmax
quantisation, with one scale of 16 bits for each matrix, each row, or each group of 32 or 8 weights of a row. Biases and
norms stay as they are. Measured are the size of the whole model, scales included, and the perplexity of a character
on a part of each play that the model has not seen. Nothing is drawn: the one seed changes nothing.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from autograder.loader import reference
from lab import checkpoints, data, runs

quantization = reference("open_weights", "quantization")

SEEDS = (0,)
BITS = (8, 4, 3, 2)
GROUPINGS: dict[str, int | None] = {
    "a matrix": None,
    "a row": 0,
    "groups of 32": 32,
    "groups of 8": 8,
}
CHARACTERS, START, WINDOW, BATCH = 16_384, 10_000, 64, 64

Approximate = Callable[[Tensor], tuple[Tensor, float]]


def rounded(bits: int, group: int | None) -> Approximate:
    """Gives for a matrix another one and its size in bits; a ``group`` of 0 is a row, of None the whole matrix."""

    def approximate(matrix: Tensor) -> tuple[Tensor, float]:
        rows = matrix.reshape(1, -1) if group is None else matrix
        columns = rows.shape[1]
        size = group or columns
        values, scales = quantization.quantize_groups(rows, bits, size)
        kept = quantization.dequantize_groups(values, scales.half().float(), size)
        each = quantization.bits_per_weight(columns, bits, size)
        return kept.view_as(matrix), each * matrix.numel()

    return approximate


@torch.no_grad()
def perplexity(model: nn.Module, tokens: Tensor) -> float:
    """Of a character, in windows that begin without a past."""
    inputs, targets = (part.view(-1, WINDOW).split(BATCH) for part in (tokens[:-1], tokens[1:]))
    losses = [
        nn.functional.cross_entropy(model(some).flatten(0, 1), right.flatten()).item()
        for some, right in zip(inputs, targets, strict=True)
    ]
    return round(math.exp(sum(losses) / len(losses)), 4)


def measure(seed: int) -> dict:
    gpt = checkpoints.load("gpt")
    trained = {name: tensor.clone() for name, tensor in gpt.model.state_dict().items()}
    plays = {
        play.title: gpt.encode(play.text[START : START + CHARACTERS + 1])
        for play in data.plays()
        if play.split == "test"
    }

    def after(approximate: Approximate) -> dict:
        bits, changed = 0.0, {}
        for name, tensor in trained.items():
            changed[name], size = tensor, 16 * tensor.numel()
            if tensor.dim() == 2:
                changed[name], size = approximate(tensor)
            bits += size
        gpt.model.load_state_dict(changed)
        found = {title: perplexity(gpt.model, tokens) for title, tokens in plays.items()}
        return {"megabytes": round(bits / 8e6, 4), "perplexity": found}

    return {
        "16 bits": after(lambda matrix: (matrix, 16 * matrix.numel())),
        **{
            f"{bits} bits, a scale for {name}": after(rounded(bits, group))
            for bits in BITS
            for name, group in GROUPINGS.items()
        },
    }


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=SEEDS, answers=("open_weights/quantization",))
