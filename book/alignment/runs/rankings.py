"""How well a reward model agrees with people, against the number of rankings it has learnt from.

The checkpoint `instruct` answers each instruction four times; people of lab.instructions rank the four, with noise. A
reward model that starts from the same checkpoint (the exercise's answer, with its loss over rankings) is trained on
100 to 6,400 rankings, and tested on 1,500 rankings of instructions that neither it nor the demonstrations had. Beside
its accuracy on their pairs stand that of the gold reward, which is the best possible, and how often two people who
rank the same responses agree on a pair. Calibration is that of the exercise. The mean reward of right answers, refusals
and wrong answers is given against that of all responses to the same instruction. The seeds change the rankings, the new
weights, and the order of the batches; the test rankings are the same.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn

import lab
from autograder.loader import reference
from lab import checkpoints, instructions, runs, training
from lab.instructions import Instruction, Texts

answer = reference("alignment", "reward_model")

SEEDS = (0, 1, 2)
RESPONSES = 4
RANKINGS = {100: 100, 400: 200, 1600: 500, 6400: 1200}  # and the steps of training on so many
BATCH, RATE = 16, 2e-3
TESTED = 1500


class Ranked(NamedTuple):
    """Responses to some instructions, and how people rank them."""

    asked: list[Instruction]
    texts: Texts  # (instructions · responses, length)
    gold: Tensor  # (instructions, responses)
    ranks: Tensor  # (instructions, responses), 0 for the best

    def first(self, number: int) -> "Ranked":
        """The first so many rankings."""
        texts = Texts(*(part[: number * RESPONSES] for part in self.texts))
        return Ranked(self.asked[:number], texts, self.gold[:number], self.ranks[:number])


# --- responses and their rankings -----------------------------------------------------------------


@functools.cache
def instruct() -> nn.Module:
    """The fine-tuned model that everything of this run starts from."""
    return checkpoints.load("instruct").model


def ranked(split: str, number: int, name: str) -> Ranked:
    rng = lab.generator(name)
    asked = instructions.instructions(split, number, rng)
    each = [one for one in asked for _ in range(RESPONSES)]
    responses = instructions.respond(instruct(), each, rng)
    gold = torch.tensor(list(map(instructions.gold, each, responses))).view(number, RESPONSES)
    return Ranked(asked, instructions.texts(each, responses), gold, instructions.rank(gold, rng))


@functools.cache
def train_rankings(seed: int) -> Ranked:
    return ranked("comparisons", max(RANKINGS), f"comparisons {seed}")


@functools.cache
def test_rankings() -> Ranked:
    return ranked("test", TESTED, "test comparisons")


# --- the reward model -----------------------------------------------------------------------------


def reward_model(rankings: int, seed: int) -> nn.Module:
    """The exercise's reward model after training on the first so many rankings."""
    known, sizes = train_rankings(seed).first(rankings), _sizes()
    # The exercise's model draws its head from torch's own generator.
    torch.manual_seed(seed)
    model = answer.RewardModel(**sizes)
    model.body.load_state_dict(instruct().state_dict())
    tokens, mask = (part.view(rankings, RESPONSES, -1) for part in known.texts[:2])

    def batch(rng: torch.Generator) -> Tensor:
        return torch.randint(rankings, (BATCH,), generator=rng)

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        rewards = model(tokens[rows].flatten(0, 1), mask[rows].flatten(0, 1))
        return answer.ranking_loss(list(rewards.view(-1, RESPONSES)), list(known.ranks[rows]))

    rng = lab.generator(f"reward model {seed}")
    training.train(model, batch, loss, RANKINGS[rankings], RATE, generator=rng, progress=False)
    return model.eval()


def _sizes() -> dict:
    body = instruct()
    vocab_size, d_model = body.embed.tokens.weight.shape
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_heads": body.blocks[0].attention.num_heads,
        "num_layers": len(body.blocks),
        "max_length": instructions.MAX_LENGTH,
    }


@torch.no_grad()
def rewards_of(model: nn.Module, texts: Texts) -> Tensor:
    """One reward for each text."""
    return model(texts.tokens, texts.mask)


# --- what is measured -----------------------------------------------------------------------------

FIRST, SECOND = torch.triu_indices(RESPONSES, RESPONSES, offset=1)


def first_preferred(ranks: Tensor) -> Tensor:
    """For every pair of every instruction, whether the one that was drawn first is ranked better."""
    return (ranks[:, FIRST] < ranks[:, SECOND]).flatten()


def agreement(rewards: Tensor, ranks: Tensor) -> dict:
    """Accuracy and calibration of rewards (instructions, responses) on the pairs of rankings."""
    first, second, preferred = (
        rewards[:, FIRST].flatten(),
        rewards[:, SECOND].flatten(),
        first_preferred(ranks),
    )
    chosen, rejected = (
        torch.where(preferred, first, second),
        torch.where(preferred, second, first),
    )
    probabilities = answer.preference_probability(first, second)
    curve = answer.calibration(probabilities, preferred)
    return {
        "accuracy": round(answer.comparison_accuracy(chosen, rejected).item(), 4),
        "calibration error": round(
            answer.expected_calibration_error(probabilities, preferred).item(), 4
        ),
        "predicted": [round(x, 4) for x in curve.predicted.tolist()],
        "observed": [round(x, 4) for x in curve.observed.tolist()],
    }


def by_verdict(rewards: Tensor, known: Ranked) -> dict:
    """The mean reward of right, refusing and wrong responses, against the mean of their instruction."""
    centred = (rewards - rewards.mean(dim=1, keepdim=True)).flatten()
    each = [one for one in known.asked for _ in range(RESPONSES)]
    said = [
        instructions.decode(tokens[response])
        for tokens, response in zip(known.texts.tokens, known.texts.response, strict=True)
    ]
    verdicts = list(map(instructions.judge, each, said))
    return {
        verdict: round(centred[[v == verdict for v in verdicts]].mean().item(), 4)
        for verdict in ("right", "refusal", "wrong")
    }


def measure(seed: int) -> dict:
    test = test_rankings()
    others = first_preferred(instructions.rank(test.gold, lab.generator("other people")))
    same = (others == first_preferred(test.ranks)).double().mean().item()
    results = {
        "tested": {"rankings": TESTED, "different": len(set(test.asked))},
        "gold": {**agreement(test.gold, test.ranks), "by verdict": by_verdict(test.gold, test)},
        "two people agree": round(same, 4),
        "models": {},
    }
    for rankings in RANKINGS:
        model, known = reward_model(rankings, seed), train_rankings(seed).first(rankings)
        rewards = rewards_of(model, test.texts).view(-1, RESPONSES)
        own = rewards_of(model, known.texts).view(-1, RESPONSES)
        results["models"][str(rankings)] = {
            **agreement(rewards, test.ranks),
            "accuracy on its own rankings": agreement(own, known.ranks)["accuracy"],
            "by verdict": by_verdict(rewards, test),
        }
    return results


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=SEEDS, answers=("alignment/reward_model",))
