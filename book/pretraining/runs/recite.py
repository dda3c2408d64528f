"""Per-digit accuracy and exact match of small Transformers that learn 128 random numbers of 8 digits by heart.

A question is one of 128 keys, the answer its number. The models differ in width alone and are trained alike. Recorded
are, for each width, the parameters, the share of digits that are right and the share of numbers that are right in all
their digits. A digit is predicted after the right digits before it, which makes a number right here exactly if
greedy decoding writes it without an error.
"""

import torch
from torch import Tensor, nn

import lab
from lab import models, runs, training

WIDTHS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24)
KEYS, DIGITS = 128, 8
LAYERS, STEPS, LEARNING_RATE = 2, 300, 0.02


def table(seed: int) -> Tensor:
    """Each key with its number: (keys, 1 + digits); tokens 0 to 9 are digits, the keys follow."""
    rng = lab.generator(f"recite table {seed}")
    numbers = torch.randint(10, (KEYS, DIGITS), generator=rng)
    return torch.cat([10 + torch.arange(KEYS)[:, None], numbers], dim=1)


def train(seed: int, width: int) -> nn.Module:
    known = table(seed)
    model = models.CausalTransformer(
        10 + KEYS,
        width,
        1,
        LAYERS,
        DIGITS,
        generator=lab.generator(f"recite model {width} {seed}"),
    )
    training.train(
        model,
        lambda generator: (known[:, :-1], known[:, 1:]),
        training.token_loss,
        STEPS,
        lr=LEARNING_RATE,
        generator=lab.generator(f"recite {width} {seed}"),
        progress=False,
    )
    return model.eval()


@torch.no_grad()
def right(model: nn.Module, seed: int) -> Tensor:
    """Which digits are right: (keys, digits)."""
    known = table(seed)
    return model(known[:, :-1]).argmax(-1) == known[:, 1:]


def measure(seed: int) -> dict:
    found = []
    for width in WIDTHS:
        model = train(seed, width)
        correct = right(model, seed)
        found.append(
            {
                "width": width,
                "parameters": sum(p.numel() for p in model.parameters()),
                "digit": correct.double().mean().item(),
                "exact": {
                    str(n): correct[:, :n].all(1).double().mean().item() for n in (1, 2, 4, 8)
                },
            }
        )
    return {"models": found}


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=(0, 1, 2))
