"""What the heads of a small Transformer attend to, and what the model loses without each of them.

A causal Transformer of two layers with four heads each is trained on the characters of the plays. For each head,
on plays it has not seen: how much of its attention goes to each distance back, to the start of the word, and how
much the loss rises when the head's output is replaced by zeros. Recorded too: its weights on one line.
"""

import functools

import torch
from torch import Tensor

import lab
from lab import data, models, runs, training

LAYERS, HEADS, WIDTH, LENGTH = 2, 4, 64, 64
STEPS, BATCH, LEARNING_RATE = 1500, 16, 4e-3
TEST_WINDOWS = 64
NEAR = 8  # distances back that are told apart
LINE = "To be, or not to be, that is"


@functools.cache
def alphabet() -> str:
    """The characters of the training plays, most frequent first; others count as the last one."""
    text = data.text("train")
    counts = {letter: text.count(letter) for letter in set(text)}
    return "".join(sorted(counts, key=lambda letter: (-counts[letter], letter)))


def ids(text: str) -> Tensor:
    index = {letter: i for i, letter in enumerate(alphabet())}
    return torch.tensor([index.get(letter, len(index) - 1) for letter in text])


def train(seed: int, steps: int = STEPS) -> tuple[models.CausalTransformer, list[float]]:
    """A model after the first ``steps`` of its ``STEPS`` steps, and its losses."""
    model = models.CausalTransformer(
        len(alphabet()), WIDTH, HEADS, LAYERS, LENGTH, generator=lab.generator(f"heads {seed}")
    )
    losses = training.train(
        model,
        training.text_batches(ids(data.text("train")), BATCH, LENGTH),
        training.token_loss,
        steps,
        lr=LEARNING_RATE,
        generator=lab.generator(f"heads batches {seed}"),
        schedule=training.warmup_cosine(STEPS),
        progress=False,
    )
    return model.eval(), losses


@functools.cache
def test_windows() -> tuple[Tensor, Tensor]:
    text = ids(data.text("validation"))
    return training.text_batches(text, TEST_WINDOWS, LENGTH)(lab.generator("heads test"))


@torch.no_grad()
def loss(model: models.CausalTransformer) -> float:
    return training.token_loss(model, test_windows()).item()


@torch.no_grad()
def loss_without(model: models.CausalTransformer, layer: int, head: int) -> float:
    """The loss when nothing of one head reaches the output projection of its layer."""
    projection = model.blocks[layer].attention.out_proj.weight
    width = WIDTH // HEADS
    kept = projection.clone()
    projection[:, head * width : (head + 1) * width] = 0
    without = loss(model)
    projection.copy_(kept)
    return without


def shares(model: models.CausalTransformer) -> list[list[dict]]:
    """For each layer and head: mean attention to each near distance, and to the start of the word.

    Only queries with ``NEAR`` characters before them, and, for the start of the word, only those inside a word
    at least three characters after its first.
    """
    inputs, _ = test_windows()
    weights = model.attention_weights(inputs)  # (layers batch heads queries keys)
    started = word_starts(inputs)
    queries = torch.arange(LENGTH)
    inside = (started >= 0) & (queries - started >= 3)
    to_start = weights.gather(
        -1,
        started.clamp(min=0)[None, :, None, :, None].expand(LAYERS, -1, HEADS, -1, 1),
    )[..., 0]
    found = []
    for layer in range(LAYERS):
        row = []
        for head in range(HEADS):
            w = weights[layer, :, head]
            near = [w.diagonal(-back, 1, 2)[:, NEAR - back :].mean().item() for back in range(NEAR)]
            start = to_start[layer, :, head][inside].mean().item()
            row.append({"back": [round(share, 4) for share in near], "start": round(start, 4)})
        found.append(row)
    return found


def word_starts(inputs: Tensor) -> Tensor:
    """For each position the index of its word's first letter, -1 outside words or if it lies before."""
    letters = alphabet()
    starts = torch.full_like(inputs, -1)
    for i, window in enumerate(inputs.tolist()):
        start = -1
        for j, token in enumerate(window):
            if not letters[token].isalpha():
                start = j + 1
            elif start >= 0:
                starts[i, j] = start
    return starts


def measure(seed: int) -> dict:
    model, losses = train(seed)
    whole = loss(model)
    line = model.attention_weights(ids(LINE)[None])[:, 0]
    return {
        "losses": [round(value, 5) for value in losses[::20]],
        "first_losses": [round(value, 5) for value in losses[:60]],
        "loss": whole,
        "loss_without": [
            [loss_without(model, layer, head) for head in range(HEADS)] for layer in range(LAYERS)
        ],
        "shares": shares(model),
        "line": [[[round(w, 3) for w in q] for q in h] for layer in line.tolist() for h in layer],
        "parameters": sum(p.numel() for p in model.parameters()),
    }


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=(0, 1, 2))
