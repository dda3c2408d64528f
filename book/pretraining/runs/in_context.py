"""Right answers against the number of examples in the prompt, for four sizes of model; no weight changes.

Sixteen languages are dictionaries of ten words each: a permutation of the same ten symbols, drawn once for all
seeds. A document is in one language: pairs of a word and its translation, no word twice, so that no answer can be
copied from the document. It does not say which language it is in. Models of width 8 to 64 are trained to predict
the next symbol of such documents, then asked for a word after 0 to 5 examples: in the sixteen languages, and in new
ones. Beside them stands the best that anyone could do who knows the sixteen dictionaries by heart.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

import lab
from lab import models, runs, training

LANGUAGES, WORDS, PAIRS = 16, 10, 6
START = WORDS  # the symbol before the first pair
WIDTHS, LAYERS = (8, 16, 32, 64), 2
STEPS, BATCH = 1200, 64
ASKED = 2000  # documents in a test


def dictionaries(count: int, name: str) -> Tensor:
    """Permutations of the words, (count words)."""
    return torch.rand(count, WORDS, generator=lab.generator(name)).argsort(-1)


def documents(languages: Tensor, generator: torch.Generator) -> Tensor:
    """A document for each dictionary: the start, then word and translation in turn, (count 1 + 2·PAIRS)."""
    words = torch.rand(len(languages), WORDS, generator=generator).argsort(-1)[:, :PAIRS]
    pairs = torch.stack([words, languages.gather(1, words)], dim=-1)
    return F.pad(pairs.flatten(1), (1, 0), value=START)


def batches(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    known = dictionaries(LANGUAGES, "in context languages")
    drawn = documents(known[torch.randint(LANGUAGES, (BATCH,), generator=generator)], generator)
    return drawn[:, :-1], drawn[:, 1:]


def tests() -> dict[str, Tensor]:
    rng = lab.generator("in context test")
    known = dictionaries(LANGUAGES, "in context languages")
    which = torch.randint(LANGUAGES, (ASKED,), generator=rng)
    return {
        "known": documents(known[which], rng),
        "new": documents(dictionaries(ASKED, "in context new"), rng),
    }


def train(width: int, seed: int, steps: int = STEPS) -> tuple[models.CausalTransformer, list]:
    """A model after the first ``steps`` of its ``STEPS`` steps, and its losses."""
    model = models.CausalTransformer(
        WORDS + 1,
        width,
        max(1, width // 16),
        LAYERS,
        2 * PAIRS + 1,
        generator=lab.generator(f"in context {width} {seed}"),
    )
    losses = training.train(
        model,
        batches,
        training.token_loss,
        steps,
        lr=3e-3 * (max(WIDTHS) / width) ** 0.5,
        generator=lab.generator(f"in context batches {seed}"),
        schedule=training.warmup_cosine(STEPS),
        progress=False,
    )
    return model.eval(), losses


@torch.no_grad()
def answered(model: models.CausalTransformer, asked: Tensor) -> list[float]:
    """The share of right translations after 0, 1, … examples."""
    right = model(asked[:, :-1]).argmax(-1) == asked[:, 1:]
    return right[:, 1::2].double().mean(0).tolist()


def best(asked: Tensor) -> list[float]:
    """What the likeliest translation would get, if every language that fits the examples is as likely."""
    known = dictionaries(LANGUAGES, "in context languages")
    words, right = asked[:, 1::2], asked[:, 2::2]
    said = known[:, words].transpose(0, 1)  # (document language pair)
    fits = torch.ones(len(asked), LANGUAGES, dtype=torch.bool)
    shares = []
    for k in range(PAIRS):
        votes = torch.zeros(len(asked), WORDS).scatter_add_(1, said[:, :, k], fits.float())
        shares.append((votes.amax(1) / votes.sum(1)).double().mean().item())
        fits &= said[:, :, k] == right[:, k : k + 1]
    return shares


def measure(seed: int) -> dict:
    asked = tests()
    found = {}
    for width in WIDTHS:
        model, losses = train(width, seed)
        found[str(width)] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "losses": [round(value, 4) for value in losses[::20]],
            "first_losses": [round(value, 5) for value in losses[:40]],
            **{name: answered(model, documents) for name, documents in asked.items()},
        }
    return {"widths": found, "best": best(asked["known"])}


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=(0, 1, 2))
