"""Supervised fine-tuning on a thousand demonstrations, with and without "i do not know", beside base models.

A small base model learns the text of lab.instructions by next-token prediction, a larger one the same text. The small
one is then fine-tuned twice on demonstrations of the same instructions: in one set people say that they do not know
what the base text does not tell, in the other they give the answer, which they know and the model cannot. Each model
answers instructions that no demonstration had, one word drawn after the other. What is counted: right answers,
refusals, wrong answers, apart for what the base text tells and for what it does not; the gold reward; how often the
small fine-tuned model is preferred to the larger base model, by the gold reward. A base model reads the bare question;
what it writes is judged whole, and once more up to its first full stop. The seeds change the text that is drawn, the
first weights, demonstrations and responses. The checkpoints `base`, `larger_base` and
`instruct` are those of seed 0.
"""

import copy
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import lab
from lab import checkpoints, instructions, models, runs, training
from lab.instructions import Instruction

SEEDS = (0, 1, 2)
SMALL = {"d_model": 64, "num_heads": 4, "num_layers": 2}
LARGE = {"d_model": 96, "num_heads": 4, "num_layers": 3}
TEXT = 800_000  # tokens
STEPS, BATCH, RATE = 3000, 32, 3e-3
DEMONSTRATIONS, TUNING_STEPS, TUNING_RATE = 1000, 300, 1e-3
KEPT = 0.5  # weight of the base text's loss in fine-tuning, against forgetting
TESTED = 1500

Response = tuple[str, ...]


# --- training -------------------------------------------------------------------------------------


def sizes(shape: dict) -> dict:
    """The arguments that make a model of a shape for this world."""
    return {
        "vocab_size": len(instructions.VOCABULARY),
        "max_length": instructions.MAX_LENGTH,
        **shape,
    }


def text(seed: int) -> Tensor:
    return instructions.base_text(TEXT, lab.generator(f"base text {seed}"))


def base(shape: dict, seed: int) -> nn.Module:
    """A model that has read the base text."""
    model = models.CausalTransformer(
        **sizes(shape), generator=lab.generator(f"base weights {seed}")
    )
    batches = training.text_batches(text(seed), BATCH, instructions.MAX_LENGTH)
    rng = lab.generator(f"base batches {seed}")
    training.train(model, batches, training.token_loss, STEPS, RATE, generator=rng, progress=False)
    return model.eval()


def fine_tuned(start: nn.Module, seed: int, *, refusals: bool) -> nn.Module:
    """The model after training on demonstrations: the loss counts their responses, and the base text besides."""
    rng = lab.generator(f"demonstrations {seed}")
    asked = instructions.instructions("demonstrations", DEMONSTRATIONS, rng)
    shown = [instructions.demonstrate(one, rng, refusals=refusals) for one in asked]
    tokens, _, response = instructions.texts(asked, shown)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].masked_fill(~response[:, 1:], -100)
    more_text = training.text_batches(text(seed), BATCH, instructions.MAX_LENGTH)

    def batch(rng: torch.Generator) -> tuple:
        rows = torch.randint(DEMONSTRATIONS, (BATCH,), generator=rng)
        return (inputs[rows], targets[rows]), more_text(rng)

    def loss(model: nn.Module, batch: tuple) -> Tensor:
        demonstrated, read = (training.token_loss(model, part) for part in batch)
        return demonstrated + KEPT * read

    model = copy.deepcopy(start)
    training.train(
        model,
        batch,
        loss,
        TUNING_STEPS,
        TUNING_RATE,
        generator=lab.generator(f"fine-tuning {seed}"),
        progress=False,
    )
    return model.eval()


# --- what is counted ------------------------------------------------------------------------------


def kind(instruction: Instruction) -> str:
    """Whether it asks for a fact that the base text tells, for one that it does not tell, or for neither."""
    if instruction.task in ("opposite", "first", "last"):
        return "words"
    return "told" if instruction.told else "untold"


def verdicts(asked: Sequence[Instruction], responses: Sequence[Response]) -> dict:
    """The shares of right answers, refusals and wrong ones for each kind of instruction, and the mean gold reward."""
    found: dict[str, list[str]] = {}
    for one, response in zip(asked, responses, strict=True):
        found.setdefault(kind(one), []).append(instructions.judge(one, response))
    shares = {
        name: {v: round(own.count(v) / len(own), 4) for v in ("right", "refusal", "wrong")}
        for name, own in sorted(found.items())
    }
    return {**shares, "gold": round(sum(worth(asked, responses)) / len(asked), 4)}


def worth(asked: Sequence[Instruction], responses: Sequence[Response]) -> list[float]:
    return [
        instructions.gold(one, response) for one, response in zip(asked, responses, strict=True)
    ]


def first_sentence(response: Response) -> Response:
    """What a model without turns wrote, up to its first full stop."""
    end = response.index(".") + 1 if "." in response else len(response)
    return (*response[:end], instructions.END)


def preferred(first: Sequence[float], second: Sequence[float]) -> float:
    """How often the first is worth more; half where they are equal."""
    wins = [(a > b) + (a == b) / 2 for a, b in zip(first, second, strict=True)]
    return round(sum(wins) / len(wins), 4)


# --- the record -----------------------------------------------------------------------------------


def store(name: str, model: nn.Module, shape: dict, seed: int, gold: float) -> dict:
    """Writes a checkpoint; its hash, its size."""
    facts = {
        "command": "python -m lab.runs alignment/instruct",
        "seed": seed,
        "gold reward on test instructions": gold,
    }
    file = checkpoints.save(
        name, model, sizes(shape), vocabulary=instructions.VOCABULARY, facts=facts
    )
    return {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}


def measure(seed: int) -> dict:
    asked = instructions.instructions("test", TESTED, lab.generator(f"test {seed}"))
    small, large = base(SMALL, seed), base(LARGE, seed)
    tuned = {refusals: fine_tuned(small, seed, refusals=refusals) for refusals in (True, False)}

    def answered(model: nn.Module, *, chat: bool) -> list[Response]:
        return instructions.respond(model, asked, lab.generator(f"responses {seed}"), chat=chat)

    written = {
        "base": answered(small, chat=False),
        "larger base": answered(large, chat=False),
        "instruct": answered(tuned[True], chat=True),
        "without refusals": answered(tuned[False], chat=True),
    }
    for name in ("base", "larger base"):
        written[f"{name}, first sentence"] = [first_sentence(one) for one in written[name]]
    models_ = {name: verdicts(asked, responses) for name, responses in written.items()}
    ours = worth(asked, written["instruct"])
    results = {
        "parameters": {
            name: sum(p.numel() for p in model.parameters())
            for name, model in (("small", small), ("large", large))
        },
        "tested": {"instructions": TESTED, "different": len(set(asked))},
        "models": models_,
        "preferred to the larger base": {
            "whole": preferred(ours, worth(asked, written["larger base"])),
            "first sentence": preferred(ours, worth(asked, written["larger base, first sentence"])),
        },
        "samples": {
            name: [" ".join(response) for response in responses[:6]]
            for name, responses in written.items()
            if "first" not in name
        },
        "asked": [" ".join(one.question) for one in asked[:6]],
    }
    if seed == SEEDS[0]:
        made = {
            "base": (small, SMALL, "base"),
            "larger_base": (large, LARGE, "larger base"),
            "instruct": (tuned[True], SMALL, "instruct"),
        }
        results["checkpoints"] = {
            name: store(name, model, shape, seed, models_[who]["gold"])
            for name, (model, shape, who) in made.items()
        }
    return results


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=SEEDS)
