"""Recall of the first token after a growing number of others, by an RNN, a GRU, an LSTM and a Transformer.

Each model is trained from scratch, with the same number of steps, for each distance: the first token is one of
eight, what follows are other tokens drawn at random, and after the last of them the first must be named.
"""

import torch
from torch import Tensor

import lab
from lab import models, runs, training

SYMBOLS = 8  # tokens 0 to 7 are to be recalled, 8 to 15 stand in between
DISTANCES = (5, 10, 20, 40, 80)
WIDTH = 48
STEPS = 400
BATCH = 32
LEARNING_RATE = 3e-3


def batches(distance: int, batch_size: int = BATCH) -> training.Batches:
    """Draws (inputs, targets), each (batch, distance + 1); only the last target counts."""

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        first = torch.randint(SYMBOLS, (batch_size, 1), generator=generator)
        others = torch.randint(SYMBOLS, (batch_size, distance), generator=generator) + SYMBOLS
        inputs = torch.cat([first, others], dim=1)
        targets = torch.full_like(inputs, -100)
        targets[:, -1:] = first
        return inputs, targets

    return draw


def make(kind: str, distance: int, seed: int) -> torch.nn.Module:
    generator = lab.generator(f"recall {kind} {distance} {seed}")
    vocabulary = 2 * SYMBOLS
    if kind == "attention":
        return models.CausalTransformer(vocabulary, WIDTH, 4, 1, distance + 1, generator=generator)
    return models.RecurrentModel(vocabulary, WIDTH, cell=kind, generator=generator)


def accuracy(model: torch.nn.Module, distance: int, seed: int, count: int = 1000) -> float:
    inputs, targets = batches(distance, count)(lab.generator(f"recall test {distance} {seed}"))
    with torch.no_grad():
        guesses = model(inputs)[:, -1].argmax(-1)
    return (guesses == targets[:, -1]).double().mean().item()


def one(kind: str, distance: int, seed: int, steps: int = STEPS) -> dict:
    """Trains one model at one distance: its accuracy and its losses, the mean of every 20 steps."""
    model = make(kind, distance, seed)
    losses = training.train(
        model,
        batches(distance),
        training.token_loss,
        steps,
        lr=LEARNING_RATE,
        generator=lab.generator(f"recall batches {kind} {distance} {seed}"),
        progress=False,
    )
    means = [sum(losses[i : i + 20]) / 20 for i in range(0, steps, 20)]
    return {
        "accuracy": accuracy(model, distance, seed),
        "losses": [round(mean, 4) for mean in means],
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def measure(seed: int) -> dict:
    return {
        kind: {str(distance): one(kind, distance, seed) for distance in DISTANCES}
        for kind in ("rnn", "gru", "lstm", "attention")
    }


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=(0, 1, 2))
