"""A fine-tuning as an adapter that is turned up and down: what W₀ + (α / r) · ΔWᵣ answers, for each r and each α.

The base is fine-tuned as in open_weights/low_rank, and ΔWᵣ is the change of each of its blocks' weight matrices, cut
down to its first r singular directions. ΔWᵣ stands where LoRA has BA, at the size at which α = r gives back what
fine-tuning found. All other parameters are as fine-tuned. What is measured at each point: the loss on responses to
instructions that no demonstration had, the gold reward of what the model answers, and its answers to four questions.
"""

import copy

from torch import nn

import lab
from lab import checkpoints, instructions, runs

SEEDS = (0, 1, 2)
RANKS = (1, 2, 4, 8, 16, 32)
ALPHAS = (0, 1, 2, 4, 8, 16, 32, 64)
SHOWN = 4  # questions whose answers are kept

low_rank = runs.script("open_weights/low_rank")


def adapted(base: nn.Module, cut: nn.Module, scale: float) -> nn.Module:
    """The base with so much of the change of its matrices; all else is as in ``cut``."""
    before, weights = base.state_dict(), cut.state_dict()
    for name in low_rank.matrices(base):
        weights[name] = before[name] + scale * (weights[name] - before[name])
    model = copy.deepcopy(base)
    model.load_state_dict(weights)
    return model.eval()


def share_trained(base: nn.Module, r: int) -> float:
    """How many numbers A and B have, for each that the matrices have."""
    shapes = [base.state_dict()[name].shape for name in low_rank.matrices(base)]
    return round(sum(r * (d + k) for d, k in shapes) / sum(d * k for d, k in shapes), 4)


def one_of_each_task(asked: list) -> list[int]:
    """The places of the first instruction of each of several tasks."""
    first = {one.task: place for place, one in reversed(list(enumerate(asked)))}
    return sorted(first.values())[:SHOWN]


def measure(seed: int) -> dict:
    base = checkpoints.load("base").model
    tuned = low_rank.instruct.fine_tuned(base, seed, refusals=True)
    asked, batch = low_rank.held_out(seed)
    shown = one_of_each_task(asked)
    rows = []
    for r in RANKS:
        cut = low_rank.rebuilt(base, tuned, r, others=True)
        for alpha in ALPHAS:
            model = adapted(base, cut, alpha / r)
            written = instructions.respond(model, asked, lab.generator(f"adapter {seed}"))
            worth = low_rank.instruct.worth(asked, written)
            rows.append(
                {
                    "r": r,
                    "alpha": alpha,
                    "loss": low_rank.loss(model, batch),
                    "gold": round(sum(worth) / len(worth), 4),
                    "answers": [
                        {
                            "text": " ".join(written[i]),
                            "verdict": instructions.judge(asked[i], written[i]),
                        }
                        for i in shown
                    ],
                }
            )
    return {
        "share trained": {r: share_trained(base, r) for r in RANKS},
        "asked": [" ".join(asked[i].question) for i in shown],
        "tuned": {
            "loss": low_rank.loss(tuned, batch),
            "gold": low_rank.gold(tuned, asked, seed),
        },
        "points": rows,
    }


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=SEEDS)
