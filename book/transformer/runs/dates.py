"""Translation of written dates into ISO 8601 by an encoder-decoder Transformer, on dates it was not trained on.

Seven formats, every day of 200 years; one day in ten, drawn once for all seeds, is kept for the test. Recorded are
the share of test dates whose ten characters are all right, that share format by format, and the cross-attention
of the last decoder layer on a few test dates.
"""

import calendar
import datetime
import functools

import torch
from torch import Tensor

import lab
from lab import models, runs, training

FIRST_YEAR, YEARS = 1850, 200
MONTHS = list(calendar.month_name)[1:]
DAYS = list(calendar.day_name)
FORMATS = {
    "day month year": lambda d: f"{d.day} {MONTHS[d.month - 1]} {d.year}",
    "month day, year": lambda d: f"{MONTHS[d.month - 1]} {d.day}, {d.year}",
    "the ordinal of month": lambda d: f"the {ordinal(d.day)} of {MONTHS[d.month - 1]} {d.year}",
    "weekday, day month": lambda d: (
        f"{DAYS[d.weekday()]}, {d.day} {MONTHS[d.month - 1][:3]} {d.year}"
    ),
    "dd.mm.yyyy": lambda d: f"{d.day:02}.{d.month:02}.{d.year}",
    "mm/dd/yyyy": lambda d: f"{d.month:02}/{d.day:02}/{d.year}",
    "year month day": lambda d: f"{d.year} {MONTHS[d.month - 1].upper()} {d.day}",
}
SHOWN = (
    ("the ordinal of month", datetime.date(1997, 3, 21)),
    ("weekday, day month", datetime.date(2017, 6, 12)),
    ("mm/dd/yyyy", datetime.date(1954, 8, 6)),
    ("year month day", datetime.date(1912, 11, 30)),
)

LONGEST = 28
TARGET = 10  # characters of 1997-03-21
LETTERS = sorted(
    set("0123456789 ,./the of" + "".join(MONTHS + DAYS) + "".join(MONTHS).upper() + "stndrdth")
)
SOURCE_IDS = {letter: i for i, letter in enumerate(LETTERS, 1)}  # 0 is padding
DIGITS = "0123456789-"
BEGIN = len(DIGITS)

WIDTH, HEADS, LAYERS = 64, 4, 2
STEPS, BATCH, LEARNING_RATE = 600, 64, 3e-3


def ordinal(day: int) -> str:
    ending = "th" if day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


def source_ids(text: str) -> list[int]:
    return [SOURCE_IDS[letter] for letter in text] + [0] * (LONGEST - len(text))


def target_ids(date: datetime.date) -> list[int]:
    return [DIGITS.index(letter) for letter in date.isoformat()]


def written(ids: Tensor) -> str:
    return "".join(DIGITS[i] if i < len(DIGITS) else "?" for i in ids.tolist())


@functools.cache
def split() -> tuple[list[datetime.date], list[datetime.date]]:
    """Days for training and for the test; those shown are test days."""
    first = datetime.date(FIRST_YEAR, 1, 1)
    count = (datetime.date(FIRST_YEAR + YEARS, 1, 1) - first).days
    kept = set(
        (torch.rand(count, generator=lab.generator("dates kept")) < 0.1).nonzero()[:, 0].tolist()
    )
    kept |= {(date - first).days for _, date in SHOWN}
    days = [first + datetime.timedelta(i) for i in range(count)]
    return [d for i, d in enumerate(days) if i not in kept], [days[i] for i in sorted(kept)]


def batch_of(pairs: list[tuple[str, datetime.date]]) -> tuple[Tensor, Tensor]:
    """Sources (batch, longest) and targets (batch, 10) of pairs of a format and a date."""
    sources = torch.tensor([source_ids(FORMATS[name](date)) for name, date in pairs])
    return sources, torch.tensor([target_ids(date) for _, date in pairs])


def draw(days: list[datetime.date], count: int, generator: torch.Generator) -> list:
    names = list(FORMATS)
    which = torch.randint(len(days), (count,), generator=generator).tolist()
    formats = torch.randint(len(names), (count,), generator=generator).tolist()
    return [(names[f], days[d]) for f, d in zip(formats, which, strict=True)]


def batches(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return batch_of(draw(split()[0], BATCH, generator))


def shifted(targets: Tensor) -> Tensor:
    """What the decoder reads while it writes ``targets``: a begin token, then all but the last."""
    return torch.nn.functional.pad(targets[:, :-1], (1, 0), value=BEGIN)


def loss(model: models.Translator, batch: tuple[Tensor, Tensor]) -> Tensor:
    sources, targets = batch
    logits = model(sources, shifted(targets))
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(seed: int, steps: int = STEPS) -> tuple[models.Translator, list[float]]:
    """A translator after the first ``steps`` of its ``STEPS`` steps, and its losses."""
    model = models.Translator(
        len(LETTERS) + 1,
        len(DIGITS) + 1,
        WIDTH,
        HEADS,
        LAYERS,
        LONGEST,
        generator=lab.generator(f"dates model {seed}"),
    )
    losses = training.train(
        model,
        batches,
        loss,
        steps,
        lr=LEARNING_RATE,
        generator=lab.generator(f"dates batches {seed}"),
        schedule=training.warmup_cosine(STEPS),
        progress=False,
    )
    return model.eval(), losses


def right(model: models.Translator, pairs: list) -> Tensor:
    """Which of the dates are translated without a single wrong character."""
    sources, targets = batch_of(pairs)
    return (model.translate(sources, begin=BEGIN, length=TARGET) == targets).all(1)


def looked_at(model: models.Translator, name: str, date: datetime.date) -> dict:
    """One test date with the cross-attention of the last layer, (heads, target, source)."""
    sources, _ = batch_of([(name, date)])
    translation = model.translate(sources, begin=BEGIN, length=TARGET)
    weights = model.cross_attention(sources, shifted(translation))[-1, 0]
    text = FORMATS[name](date)
    return {
        "source": text,
        "translation": written(translation[0]),
        "weights": [
            [[round(w, 3) for w in row] for row in head]
            for head in weights[..., : len(text)].tolist()
        ],
    }


def measure(seed: int) -> dict:
    model, losses = train(seed)
    test = split()[1]
    generator = lab.generator("dates test")
    return {
        "losses": [round(value, 5) for value in losses],
        "exact": right(model, draw(test, 2000, generator)).double().mean().item(),
        "exact_by_format": {
            name: right(model, [(name, date) for date in test[::20]]).double().mean().item()
            for name in FORMATS
        },
        "shown": [looked_at(model, name, date) for name, date in SHOWN],
        "parameters": sum(p.numel() for p in model.parameters()),
        "test_days": len(test),
    }


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=(0, 1, 2))
