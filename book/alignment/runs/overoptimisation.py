"""Reward and gold reward against the divergence from the start: best-of-n, PPO and DPO, from the same rankings.

The reward model of alignment/rankings, trained on 6,400 rankings, is raised in two ways: by taking the best of n
responses of the checkpoint `instruct`, and by PPO (the exercise's functions) with two weights of the KL penalty. DPO
(the exercise's loss) learns from the same rankings without a reward model. All are measured on instructions that no
stage has seen: the learnt reward, the gold reward, which no stage has seen either, and the KL divergence of whole
responses from the checkpoint. That of best-of-n is log n - (n - 1)/n; that of a trained model is the exact divergence
at each token of its own responses, added up. The seeds change the rankings, the reward model, and all that is
drawn.
"""

import copy
import functools
import itertools
import math

import torch
from torch import Tensor, nn

import lab
from autograder.loader import reference
from lab import instructions, runs, training
from lab.instructions import Instruction, Texts

rankings = runs.script("alignment/rankings")
ppo_answer = reference("alignment", "ppo")
dpo_answer = reference("alignment", "dpo")

SEEDS = (0, 1, 2)
LEARNT_FROM = 6400
BEST_OF, PROMPTS = 256, 100
TESTED = 400
BETAS = (0.02, 0.5)  # of PPO; the first is InstructGPT's
PPO_STEPS, PPO_BATCH, PPO_EPOCHS, PPO_PART, PPO_RATE, PPO_LOOKS = 200, 128, 2, 64, 5e-5, 8
DPO_BETA, DPO_STEPS, DPO_BATCH, DPO_RATE, DPO_LOOKS = 0.1, 400, 32, 3e-4, 40
SAMPLES = 4


# --- what is measured -----------------------------------------------------------------------------


@functools.cache
def test_instructions() -> list[Instruction]:
    return instructions.instructions("test", TESTED, lab.generator("test instructions"))


@torch.no_grad()
def look(policy: nn.Module, scorer: nn.Module, name: str) -> dict:
    """How a policy answers the test instructions."""
    asked = test_instructions()
    said = instructions.respond(policy, asked, lab.generator(name))
    texts = instructions.texts(asked, said)
    at = texts.response[:, 1:]
    ours, theirs = (
        model(texts.tokens[:, :-1]).log_softmax(-1) for model in (policy, rankings.instruct())
    )
    divergence = ((ours.exp() * (ours - theirs)).sum(-1) * at).sum(-1)
    verdicts = [instructions.judge(one, words) for one, words in zip(asked, said, strict=True)]
    worth = [instructions.gold(one, words) for one, words in zip(asked, said, strict=True)]
    courtesies = {word for words in instructions.COURTESIES.values() for word in words}
    return {
        "reward": round(rankings.rewards_of(scorer, texts).mean().item(), 4),
        "gold": round(sum(worth) / len(worth), 4),
        "kl": round(divergence.mean().item(), 4),
        "right": round(verdicts.count("right") / len(verdicts), 4),
        "refusals": round(verdicts.count("refusal") / len(verdicts), 4),
        "courtesies": round(
            sum(word in courtesies for words in said for word in words) / len(said), 4
        ),
        "samples": [" ".join(words) for words in said[:SAMPLES]],
    }


# --- best of n ------------------------------------------------------------------------------------


def best_of_n(scorer: nn.Module, seed: int) -> list[dict]:
    """Mean reward and gold reward of the best of n = 1, 2, 4, … responses by the learnt reward.

    All ``BEST_OF`` responses to an instruction are sorted by reward; the best of n of them, drawn without putting back,
    is the k-th with probability C(k - 1, n - 1)/C(BEST_OF, n). So every n uses all responses, without bias.
    """
    asked = [one for one in test_instructions()[:PROMPTS] for _ in range(BEST_OF)]
    said = instructions.respond(rankings.instruct(), asked, lab.generator(f"best of n {seed}"))
    worth = torch.tensor(list(map(instructions.gold, asked, said)), dtype=torch.float64)
    texts = instructions.texts(asked, said)
    parts = [Texts(*rows) for rows in zip(*(part.split(4096) for part in texts), strict=True)]
    reward = torch.cat([rankings.rewards_of(scorer, part) for part in parts]).double()
    reward, order = reward.view(PROMPTS, BEST_OF).sort(dim=1)
    worth = worth.view(PROMPTS, BEST_OF).gather(1, order)
    found = []
    for n in (2**i for i in range(int(math.log2(BEST_OF)) + 1)):
        ways = [math.comb(k - 1, n - 1) for k in range(1, BEST_OF + 1)]
        weights = torch.tensor([way / math.comb(BEST_OF, n) for way in ways], dtype=torch.float64)
        found.append(
            {
                "n": n,
                "kl": round(math.log(n) - (n - 1) / n, 4),
                "reward": round((reward @ weights).mean().item(), 4),
                "gold": round((worth @ weights).mean().item(), 4),
            }
        )
    return found


# --- PPO ------------------------------------------------------------------------------------------


class Values(nn.Module):
    """The value of the state before each token: the reward model's body and head, read everywhere, trained further."""

    def __init__(self, scorer: nn.Module) -> None:
        super().__init__()
        self.scorer = copy.deepcopy(scorer)

    def forward(self, tokens: Tensor) -> Tensor:
        values = self.scorer.head(self.scorer.body.states(tokens[:, :-1])).squeeze(-1)
        return nn.functional.pad(values, (1, 0))


def token_log_probs(model: nn.Module, tokens: Tensor) -> Tensor:
    """Of each token, given those before it; 0 for the first."""
    found = model(tokens[:, :-1]).log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return nn.functional.pad(found, (1, 0))


def ppo(scorer: nn.Module, beta: float, seed: int) -> list[dict]:
    """Raises the learnt reward, and looks every ``PPO_LOOKS`` steps."""
    rng = lab.generator(f"ppo {beta} {seed}")
    policy, values = copy.deepcopy(rankings.instruct()), Values(scorer)
    optimizer = torch.optim.AdamW(
        [*policy.parameters(), *values.parameters()], PPO_RATE, betas=(0.9, 0.95), weight_decay=0.0
    )
    found = []
    for step in range(PPO_STEPS + 1):
        if step % PPO_LOOKS == 0:
            found.append({"step": step, **look(policy, scorer, f"look {seed}")})
        if step == PPO_STEPS:
            break
        asked = instructions.instructions("prompts", PPO_BATCH, rng)
        texts = instructions.texts(asked, instructions.respond(policy, asked, rng))
        learn(policy, values, optimizer, experience(policy, values, scorer, texts, beta), rng)
    return found


@torch.no_grad()
def experience(
    policy: nn.Module, values: Values, scorer: nn.Module, texts: Texts, beta: float
) -> dict[str, Tensor]:
    """All that one step of PPO learns from."""
    old = token_log_probs(policy, texts.tokens)
    before = values(texts.tokens)
    rewards = ppo_answer.kl_shaped_rewards(
        rankings.rewards_of(scorer, texts),
        old,
        token_log_probs(rankings.instruct(), texts.tokens),
        texts.response,
        beta,
    )
    advantages, returns = ppo_answer.gae(rewards, before, texts.response)
    return {
        "tokens": texts.tokens,
        "mask": texts.response,
        "old": old,
        "values": before,
        "advantages": ppo_answer.whiten(advantages, texts.response),
        "returns": returns,
    }


def learn(
    policy: nn.Module,
    values: Values,
    optimizer: torch.optim.Optimizer,
    seen: dict[str, Tensor],
    rng: torch.Generator,
) -> None:
    for _ in range(PPO_EPOCHS):
        for rows in torch.randperm(PPO_BATCH, generator=rng).split(PPO_PART):
            some = {name: part[rows] for name, part in seen.items()}
            log_probs = token_log_probs(policy, some["tokens"])
            surrogate = ppo_answer.ppo_policy_loss(
                log_probs, some["old"], some["advantages"], some["mask"]
            )
            error = ppo_answer.value_loss(
                values(some["tokens"]), some["values"], some["returns"], some["mask"], math.inf
            )
            optimizer.zero_grad()
            (surrogate.loss + error).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            nn.utils.clip_grad_norm_(values.parameters(), 1.0)
            optimizer.step()


# --- DPO ------------------------------------------------------------------------------------------


def dpo(scorer: nn.Module, seed: int) -> list[dict]:
    """Learns from the pairs of the same rankings, and looks every ``DPO_LOOKS`` steps."""
    known = rankings.train_rankings(seed)
    rows = torch.arange(len(known.texts.tokens)).view(known.ranks.shape)
    better = (known.ranks[:, rankings.FIRST] < known.ranks[:, rankings.SECOND]).flatten()
    first, second = rows[:, rankings.FIRST].flatten(), rows[:, rankings.SECOND].flatten()
    chosen, rejected = torch.where(better, first, second), torch.where(better, second, first)
    policy, found, steps = copy.deepcopy(rankings.instruct()), [], itertools.count()

    def log_probs(model: nn.Module, rows: Tensor) -> Tensor:
        tokens, _, response = (part[rows] for part in known.texts)
        return dpo_answer.sequence_log_probs(model(tokens), tokens, response)

    def note() -> None:
        if (step := next(steps)) % DPO_LOOKS == 0:
            found.append({"step": step, **look(policy, scorer, f"look {seed}")})

    def loss(model: nn.Module, pairs: Tensor) -> Tensor:
        note()
        both = torch.cat([chosen[pairs], rejected[pairs]])
        with torch.no_grad():
            theirs = log_probs(rankings.instruct(), both).chunk(2)
        return dpo_answer.dpo_loss(*log_probs(model, both).chunk(2), *theirs, beta=DPO_BETA)

    def batch(rng: torch.Generator) -> Tensor:
        return torch.randint(len(chosen), (DPO_BATCH,), generator=rng)

    rng = lab.generator(f"dpo {seed}")
    training.train(policy, batch, loss, DPO_STEPS, DPO_RATE, generator=rng, progress=False)
    note()
    return found


# --- the record -----------------------------------------------------------------------------------


def measure(seed: int) -> dict:
    scorer = rankings.reward_model(LEARNT_FROM, seed)
    test = rankings.test_rankings()
    rewards = rankings.rewards_of(scorer, test.texts).view(test.ranks.shape)
    return {
        "asked": [" ".join(one.question) for one in test_instructions()[:SAMPLES]],
        "accuracy": rankings.agreement(rewards, test.ranks)["accuracy"],
        "best of n": best_of_n(scorer, seed),
        "ppo": {str(beta): ppo(scorer, beta, seed) for beta in BETAS},
        "dpo": dpo(scorer, seed),
    }


if __name__ == "__main__":
    runs.record(
        __file__,
        measure,
        seeds=SEEDS,
        answers=("alignment/reward_model", "alignment/ppo", "alignment/dpo"),
    )
