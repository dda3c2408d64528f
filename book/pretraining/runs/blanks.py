"""Filling blanks: a masked language model and one that reads from left to right, on plays that neither has seen.

Tokens are words in small letters; of `.`, `?` and `!` all became one mark, so that what ends a sentence is in neither
model. Both have the same layers, read the same number of words and are asked for the same blanks, one in each window
of 32. The left-to-right model guesses from what stands before the blank, and a second time by trying its 50 best
guesses and reading on to the end of the window. The models of the first seed become the checkpoints `bert` and
`left_to_right`.
"""

import functools
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import lab
from lab import checkpoints, data, models, runs, training

SEEDS = (0, 1, 2)
VOCABULARY, WIDTH, HEADS, LAYERS, LENGTH = 3000, 96, 4, 4, 32
STEPS, BATCH, LEARNING_RATE = 8000, 32, 2e-3
RATE = 0.15
PAD, MASK, UNKNOWN = range(3)
SPECIAL = ("[PAD]", "[MASK]", "[UNK]")
END = "."  # of a sentence, whichever mark stood there
BLANKS, TOGETHER = 4000, 4  # places in one group
LOOKS = (0, 250, 500, 1000, 2000, 3000, 4000, 6000, 8000)  # steps before which a model is looked at
TRIED, EVERY = 50, 8  # guesses that are read on from, at every eighth blank
WORD = re.compile(r"[a-z]+(?:['’-][a-z]+)*|[.,;:?!]")
MODELS = {"masked": models.BidirectionalTransformer, "left to right": models.CausalTransformer}
CHECKPOINTS = {"masked": "bert", "left to right": "left_to_right"}


# --- words ----------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """The words and marks of a text, as the models' tokens are written."""
    found = WORD.findall(text.lower())
    return [END if word in ".?!" else word for word in found]


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Special tokens, then the commonest words of the training plays: word i is token i."""
    common = Counter(words(data.text("train"))).most_common(VOCABULARY - len(SPECIAL))
    return (*SPECIAL, *(word for word, _ in common))


def encode(text: list[str]) -> Tensor:
    number = {word: i for i, word in enumerate(vocabulary())}
    return torch.tensor([number.get(word, UNKNOWN) for word in text])


@functools.cache
def tokens(split: str) -> Tensor:
    return encode(words(data.text(split)))


# --- two models -----------------------------------------------------------------------------------


def sizes() -> dict:
    return {
        "vocab_size": VOCABULARY,
        "d_model": WIDTH,
        "num_heads": HEADS,
        "num_layers": LAYERS,
        "max_length": LENGTH,
    }


def untrained(kind: str, name: str) -> nn.Module:
    return MODELS[kind](**sizes(), generator=lab.generator(name))


def hidden_words(windows: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows with words replaced by [MASK], and where; a word outside the vocabulary is not asked for."""
    asked = (torch.rand(windows.shape, generator=rng) < RATE) & (windows != UNKNOWN)
    return windows.masked_fill(asked, MASK), asked


def masked_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of the hidden words; logits are computed where one is asked for."""
    inputs, asked, windows = batch
    logits = model.embed.logits(model.states(inputs)[asked])
    return nn.functional.cross_entropy(logits, windows[asked])


def before(windows: Tensor) -> Tensor:
    """What a left-to-right model guesses each word from: nothing, so a [PAD], for the first, then the words before."""
    return nn.functional.pad(windows[:, :-1], (1, 0), value=PAD)


def next_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy of every word from those before it; those outside the vocabulary are not asked for."""
    return training.token_loss(
        model, (before(windows), windows.masked_fill((windows == UNKNOWN) | (windows == PAD), -100))
    )


def train(
    kind: str,
    seed: int,
    steps: int = STEPS,
    watch: Callable[[nn.Module, int], None] | None = None,
) -> tuple[nn.Module, list[float]]:
    """A model after the first ``steps`` of its ``STEPS`` steps, and its losses; ``watch`` sees it before each."""
    text = tokens("train")

    def windows(rng: torch.Generator) -> Tensor:
        starts = torch.randint(len(text) - LENGTH, (BATCH, 1), generator=rng)
        return text[starts + torch.arange(LENGTH)]

    def masked(rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        drawn = windows(rng)
        return *hidden_words(drawn, rng), drawn

    batches, loss = {"masked": (masked, masked_loss), "left to right": (windows, next_loss)}[kind]
    model = untrained(kind, f"blanks {seed}")

    step = itertools.count()

    def watched(model: nn.Module, batch: object) -> Tensor:
        if watch is not None:
            watch(model.eval(), next(step))
        return loss(model.train(), batch)

    losses = training.train(
        model,
        batches,
        watched,
        steps,
        lr=LEARNING_RATE,
        generator=lab.generator(f"blanks batches {seed}"),
        schedule=training.warmup_cosine(STEPS, warmup=STEPS // 20),
        weight_decay=0.1,
        progress=False,
        label=kind,
    )
    return model.eval(), losses


# --- blanks ---------------------------------------------------------------------------------------


class Blanks(NamedTuple):
    """Windows, (blank LENGTH), the place of the one word to guess in each, and that word."""

    windows: Tensor
    places: Tensor
    right: Tensor


@functools.cache
def blanks(split: str) -> Blanks:
    """Evenly spread over the text and over all places; words outside the vocabulary are not asked for."""
    text = tokens(split)
    starts = torch.linspace(0, len(text) - LENGTH, BLANKS).long()
    windows, places = text[starts[:, None] + torch.arange(LENGTH)], torch.arange(BLANKS) % LENGTH
    right = windows[torch.arange(BLANKS), places]
    known = right != UNKNOWN
    return Blanks(windows[known], places[known], right[known])


@torch.no_grad()
def from_both_sides(model: nn.Module, asked: Blanks) -> Tensor:
    """Log-probabilities of the word at its place, (blank VOCABULARY)."""
    rows = torch.arange(len(asked.windows))
    inputs = asked.windows.clone()
    inputs[rows, asked.places] = MASK
    states = torch.cat([model.states(part) for part in inputs.split(100)])
    return of_words(model.embed.logits(states[rows, asked.places]))


@torch.no_grad()
def from_the_left(model: nn.Module, asked: Blanks) -> Tensor:
    """The same, from what stands before."""
    states = torch.cat([model.states(part) for part in before(asked.windows).split(100)])
    return of_words(model.embed.logits(states[torch.arange(len(states)), asked.places]))


def of_words(logits: Tensor) -> Tensor:
    """Log-probabilities without those of the special tokens."""
    return logits.index_fill(-1, torch.arange(len(SPECIAL)), -torch.inf).log_softmax(-1)


@torch.no_grad()
def reading_on(model: nn.Module, asked: Blanks) -> Tensor:
    """The word that makes the whole window likeliest, of the best guesses from the left, (blank)."""
    found = []
    guesses = from_the_left(model, asked).topk(TRIED).indices
    for window, place, tried in zip(asked.windows, asked.places.tolist(), guesses, strict=True):
        whole = window.repeat(TRIED, 1)
        whole[:, place] = tried
        log_probs = model(before(whole)).log_softmax(-1).gather(-1, whole[..., None])[..., 0]
        found.append(tried[log_probs[:, place:].sum(-1).argmax()])
    return torch.stack(found)


# --- the record -----------------------------------------------------------------------------------

GUESS = {"masked": from_both_sides, "left to right": from_the_left}


def share(right: Tensor) -> float:
    return round(right.float().mean().item(), 4)


def told(guesses: Tensor, asked: Blanks) -> dict:
    """How good log-probabilities are: the first guess right, one of five right, nats, and right by place."""
    best = guesses.topk(5).indices == asked.right[:, None]
    nats = -guesses.gather(-1, asked.right[:, None]).mean().item()
    parts = [asked.places // TOGETHER == part for part in range(LENGTH // TOGETHER)]
    return {
        "right": share(best[:, 0]),
        "right among five": share(best.any(-1)),
        "nats": round(nats, 4),
        "right by place": [share(best[part, 0]) for part in parts],
    }


def learnt(kind: str, seed: int) -> tuple[nn.Module, dict]:
    """A trained model, its first losses, and how good its guesses were on validation plays along the way."""
    asked, curve = blanks("validation"), []

    def watch(model: nn.Module, step: int) -> None:
        if step in LOOKS:
            curve.append({"step": step, **told(GUESS[kind](model, asked), asked)})

    model, losses = train(kind, seed, watch=watch)
    watch(model, STEPS)
    return model, {"first_losses": [round(loss, 5) for loss in losses[:20]], "curve": curve}


def store(kind: str, model: nn.Module, seed: int, found: dict) -> dict:
    """Writes the checkpoint; its hash and its size."""
    facts = {
        "command": "python -m lab.runs pretraining/blanks",
        "trained": kind,
        "seed": seed,
        "steps": STEPS,
        "blanks filled right, test plays": found["right"],
        "nats a blank, test plays": found["nats"],
    }
    file = checkpoints.save(CHECKPOINTS[kind], model, sizes(), vocabulary=vocabulary(), facts=facts)
    asked = blanks("test")
    stored = told(GUESS[kind](checkpoints.load(CHECKPOINTS[kind]).model, asked), asked)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"sha256": digest, "bytes": file.stat().st_size, "nats": stored["nats"]}


def measure(seed: int) -> dict:
    asked = blanks("test")
    commonest = tokens("train").bincount()[len(SPECIAL) :].argmax() + len(SPECIAL)
    results = {"blanks": len(asked.right), "commonest": share(asked.right == commonest)}
    for kind, guess in GUESS.items():
        model, along = learnt(kind, seed)
        results[kind] = {**told(guess(model, asked), asked), **along}
        if seed == SEEDS[0]:
            stored = results.setdefault("checkpoints", {})
            stored[CHECKPOINTS[kind]] = store(kind, model, seed, results[kind])
    some = Blanks(*(part[::EVERY] for part in asked))
    results["reading on"] = {
        "blanks": len(some.right),
        "right": share(reading_on(model, some) == some.right),
        "before": share(from_the_left(model, some).argmax(-1) == some.right),
    }
    return results


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=SEEDS)
