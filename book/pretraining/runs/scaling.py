"""Loss of small Transformers on plays they have not seen, for 9 sizes and 4 amounts of text, one pass each.

Characters of the plays; every model has 2 layers, every training its own cosine schedule to its own end. Recorded
are, for each width and each number of training tokens D, the non-embedding parameters N and the loss on the
validation plays.
"""

import torch
from torch import Tensor, nn

import lab
from lab import data, models, runs, training

WIDTHS = (4, 6, 8, 12, 16, 20, 24, 32, 48)
TOKENS = (2**15, 2**16, 2**17, 2**18)
LAYERS, CONTEXT, BATCH = 2, 32, 16
VALIDATION = 512  # windows


def letters() -> list[str]:
    return sorted(set(data.text("train")))


def ids(split: str) -> Tensor:
    """A split's characters as numbers; one that the training plays lack becomes the first, the line end."""
    number = {letter: i for i, letter in enumerate(letters())}
    return torch.tensor([number.get(letter, 0) for letter in data.text(split)])


def non_embedding(model: nn.Module) -> int:
    """N as Kaplan et al. count it: without the vectors of tokens and positions."""
    embedding = {id(p) for p in model.embed.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in embedding)


def learning_rate(width: int) -> float:
    return 0.03 / width**0.5


def train(seed: int, width: int, tokens: int, text: Tensor, steps: int | None = None) -> tuple:
    """A model of this width after one pass over so many tokens (or the first ``steps`` of it), and its losses."""
    model = models.CausalTransformer(
        len(letters()),
        width,
        max(1, width // 8),
        LAYERS,
        CONTEXT,
        generator=lab.generator(f"scaling model {width} {seed}"),
    )
    whole = tokens // (BATCH * CONTEXT)
    losses = training.train(
        model,
        training.text_batches(text, BATCH, CONTEXT),
        training.token_loss,
        steps or whole,
        lr=learning_rate(width),
        generator=lab.generator(f"scaling text {tokens} {seed}"),
        schedule=training.warmup_cosine(whole),
        progress=False,
    )
    return model.eval(), losses


@torch.no_grad()
def validation_loss(model: nn.Module, windows: tuple[Tensor, Tensor]) -> float:
    return training.token_loss(model, windows).item()


def measure(seed: int) -> dict:
    text, held_out = ids("train"), ids("validation")
    windows = training.text_batches(held_out, VALIDATION, CONTEXT)(
        lab.generator("scaling held out")
    )
    runs_of = []
    for width in WIDTHS:
        for tokens in TOKENS:
            model, _ = train(seed, width, tokens, text)
            loss = validation_loss(model, windows)
            runs_of.append(
                {"width": width, "N": non_embedding(model), "D": tokens, "loss": round(loss, 5)}
            )
    return {"runs": runs_of, "vocabulary": len(letters())}


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=(0, 1, 2))
