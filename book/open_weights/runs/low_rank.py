"""How much of fine-tuning is left when only the first r singular directions of each weight's change are kept.

The checkpoint `base` is fine-tuned on a thousand demonstrations, as in alignment/instruct. For each of the eight
weight matrices of its blocks the change is taken apart by singular values. Then the model is put together again from
the base and the first r directions of each change, and for comparison from r random directions. What is measured: the
share of the change's squared norm that r directions hold, beside that in a random matrix of the same shape; the loss
on responses to instructions that no demonstration had, once with all other parameters (embeddings, norms, biases) as
fine-tuned and once with them as in the base; and the gold reward of what the model answers. Demonstrations, their
order and the test's responses differ between seeds; the base does not.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

import lab
from lab import checkpoints, instructions, runs, training

SEEDS = (0, 1, 2)
RANKS = (0, 1, 2, 4, 8, 16, 32, 64)
TESTED = 600

instruct = runs.script("alignment/instruct")


def matrices(model: nn.Module) -> list[str]:
    """The names of the weights that are changed in part: what LoRA may adapt."""
    return [
        name
        for name, value in model.state_dict().items()
        if name.startswith("blocks") and value.ndim == 2
    ]


def shares(change: Float[Tensor, "out in"]) -> list[float]:
    """The share of the squared norm in the first r singular directions, for every r of RANKS."""
    squares = torch.linalg.svdvals(change).square()
    return [round(float(squares[:r].sum() / squares.sum()), 4) for r in RANKS]


def singular(change: Float[Tensor, "out in"], r: int) -> Float[Tensor, "out r"]:
    """The r output directions in which most of the change lies."""
    return torch.linalg.svd(change, full_matrices=False).U[:, :r]


def at_random(change: Float[Tensor, "out in"], r: int, rng: torch.Generator) -> Tensor:
    """As many random output directions, at right angles to each other."""
    drawn = torch.randn(len(change), min(r, len(change)), generator=rng)
    return torch.linalg.qr(drawn).Q


def rebuilt(
    base: nn.Module, tuned: nn.Module, r: int, *, others: bool, rng: torch.Generator | None = None
) -> nn.Module:
    """The base with rank r of each matrix's change, and all of the other parameters' change or none.

    Args:
        base, tuned: before and after fine-tuning.
        r: how many directions are kept.
        others: whether embeddings, norms and biases are those of `tuned`.
        rng: draws random directions; the first singular ones if ``None``.
    """
    before, after = base.state_dict(), tuned.state_dict()
    names = matrices(base)
    weights = {}
    for name, start in before.items():
        change = after[name] - start
        if name in names:
            directions = singular(change, r) if rng is None else at_random(change, r, rng)
            weights[name] = start + directions @ (directions.T @ change)
        else:
            weights[name] = after[name] if others else start
    model = copy.deepcopy(base)
    model.load_state_dict(weights)
    return model.eval()


def held_out(seed: int) -> tuple[list, tuple]:
    """Instructions of the test, and tokens with targets that count the response alone."""
    rng = lab.generator(f"low rank test {seed}")
    asked = instructions.instructions("test", TESTED, rng)
    shown = [instructions.demonstrate(one, rng) for one in asked]
    tokens, _, response = instructions.texts(asked, shown)
    return asked, (tokens[:, :-1], tokens[:, 1:].masked_fill(~response[:, 1:], -100))


@torch.no_grad()
def loss(model: nn.Module, batch: tuple) -> float:
    return round(float(training.token_loss(model, batch)), 4)


def gold(model: nn.Module, asked: list, seed: int) -> float:
    written = instructions.respond(model, asked, lab.generator(f"low rank {seed}"))
    return round(sum(instruct.worth(asked, written)) / len(asked), 4)


def measure(seed: int) -> dict:
    base = checkpoints.load("base").model
    tuned = instruct.fine_tuned(base, seed, refusals=True)
    asked, batch = held_out(seed)
    before, after = base.state_dict(), tuned.state_dict()
    changes = {name: after[name] - before[name] for name in matrices(base)}
    rng = lab.generator(f"random directions {seed}")
    spectra = {
        name: {
            "shape": list(change.shape),
            "relative size": round(float(change.norm() / before[name].norm()), 4),
            "share": shares(change),
            "share, random": shares(torch.randn(change.shape, generator=rng)),
        }
        for name, change in changes.items()
    }
    rows = []
    for r in RANKS:
        model = rebuilt(base, tuned, r, others=True)
        alone = rebuilt(base, tuned, r, others=False)
        by_chance = rebuilt(base, tuned, r, others=True, rng=rng)
        rows.append(
            {
                "r": r,
                "loss": loss(model, batch),
                "loss, matrices alone": loss(alone, batch),
                "loss, random directions": loss(by_chance, batch),
                "gold": gold(model, asked, seed),
            }
        )
    return {
        "matrices": spectra,
        "base": {"loss": loss(base, batch), "gold": gold(base, asked, seed)},
        "tuned": {"loss": loss(tuned, batch), "gold": gold(tuned, asked, seed)},
        "ranks": rows,
    }


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=SEEDS)
