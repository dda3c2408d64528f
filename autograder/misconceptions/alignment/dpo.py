"""Wrong answers to the exercise on DPO."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

SUM = ".masked_fill(~counted, 0.0).sum(dim=1)"
IMPLICIT = "beta * (policy_log_probs - reference_log_probs)"
LOSS = "-F.logsigmoid(chosen - rejected).mean()"
SAID = "(said * (rewards - beta * log_ratio)).sum(dim=-1)"
OPTIMUM = "(reference_log_probs + rewards / beta).log_softmax(dim=-1)"
ACCURACY = "(margin.sign() + 1).mean() / 2"

MISCONCEPTIONS = [
    # --- log_probs ---
    Misconception(
        name="no_shift",
        part="log_probs",
        says="Your sum scores token t with the logits at t, which have read it already. The logits at t belong to "
        "token t + 1.",
        wrong={
            "counted = mask[:, 1:]": "counted = mask",
            "targets = tokens[:, 1:]": "targets = tokens",
            "logits[:, :-1].log_softmax": "logits.log_softmax",
        },
    ),
    Misconception(
        name="mask_not_shifted",
        part="log_probs",
        says="Your mask is one place off: it is read at the position that predicts. It is shifted with the tokens, "
        "mask[:, 1:].",
        wrong={
            "counted = mask[:, 1:]": "counted = mask[:, :-1]",
            "tokens[:, 1:] * counted": "tokens[:, 1:].clamp(0, logits.shape[-1] - 1)",
        },
    ),
    Misconception(
        name="mean_over_tokens",
        part="log_probs",
        says="Your log-probability is a mean over the response's tokens. The probability of a response is a product: "
        "its logarithm is the sum.",
        wrong={SUM: ".masked_fill(~counted, 0.0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)"},
    ),
    Misconception(
        name="prompt_counted",
        part="log_probs",
        says="Your sum counts every token, the prompt and the padding too. Only the response's tokens count, as the "
        "mask says.",
        wrong={
            "tokens[:, 1:] * counted": "tokens[:, 1:].clamp(0, logits.shape[-1] - 1)",
            SUM: ".sum(dim=1)",
        },
    ),
    Misconception(
        name="logits_summed",
        part="log_probs",
        says="Your sum takes the logits as they are. They are not normalised: take log_softmax over the vocabulary "
        "first.",
        wrong={".log_softmax(dim=-1)": ""},
    ),
    Misconception(
        name="softmax_over_positions",
        part="log_probs",
        says="Your softmax runs over the positions. It runs over the vocabulary, the last axis.",
        wrong={".log_softmax(dim=-1)": ".log_softmax(dim=1)"},
    ),
    Misconception(
        name="probabilities_summed",
        part="log_probs",
        says="Your sum adds up probabilities. Add up their logarithms.",
        wrong={".log_softmax(dim=-1)": ".softmax(dim=-1)"},
    ),
    Misconception(
        name="log_of_softmax",
        part="log_probs",
        says="Your log-probabilities are the logarithm of a softmax, which is −∞ where the softmax is 0 in floating "
        "point: use log_softmax.",
        wrong={".log_softmax(dim=-1)": ".softmax(dim=-1).log()"},
    ),
    Misconception(
        name="negative_log_likelihood",
        part="log_probs",
        says="Your result is the negative log-likelihood. A log-probability is 0 or less.",
        wrong={"return of_tokens.masked_fill": "return -of_tokens.masked_fill"},
    ),
    # --- optimum ---
    Misconception(
        name="beta_multiplies",
        part="optimum",
        says="Your optimum multiplies the rewards by β. A small β makes it sharp: exp(r/β).",
        wrong={"rewards / beta)": "rewards * beta)"},
    ),
    Misconception(
        name="reference_left_out",
        part="optimum",
        says="Your optimum is a softmax of the rewards alone. The reference is a factor: π_ref·exp(r/β)/Z.",
        wrong={OPTIMUM: "(0 * reference_log_probs.exp() + rewards / beta).log_softmax(dim=-1)"},
    ),
    Misconception(
        name="partition_forgotten",
        part="optimum",
        says="Your optimum is not normalised: log Z is missing.",
        wrong={OPTIMUM: "reference_log_probs + rewards / beta"},
    ),
    Misconception(
        name="partition_overflows",
        part="optimum",
        says="Your partition function sums exp(r/β), which overflows. Stay with logarithms: log_softmax or logsumexp.",
        wrong={
            OPTIMUM: (
                "((reference_log_probs.exp() * (rewards / beta).exp())\n"
                "        / (reference_log_probs.exp() * (rewards / beta).exp()).sum(-1, keepdim=True)).log()"
            )
        },
    ),
    Misconception(
        name="kl_added",
        part="optimum",
        says="Your objective adds the KL divergence. It is a penalty: subtract it.",
        wrong={"rewards - beta * log_ratio": "rewards + beta * log_ratio"},
    ),
    Misconception(
        name="kl_from_the_reference",
        part="optimum",
        says="Your KL divergence averages over the reference. It is KL(π ‖ π_ref), an average over the policy.",
        wrong={SAID: "(said * rewards + beta * reference_log_probs.exp() * log_ratio).sum(dim=-1)"},
    ),
    Misconception(
        name="zero_times_infinity",
        part="optimum",
        says="Your objective is NaN where the policy never says a response: 0·log 0 counts as 0.",
        wrong={".masked_fill(said == 0, 0.0)": ""},
    ),
    # --- loss ---
    Misconception(
        name="reference_not_frozen",
        part="loss",
        says="A gradient of your loss reaches the reference. It is frozen: detach its log-probabilities.",
        wrong={
            "reference_chosen.detach()": "reference_chosen",
            "reference_rejected.detach()": "reference_rejected",
        },
    ),
    Misconception(
        name="beta_outside",
        part="loss",
        says="Your β stands outside the sigmoid, where it only scales the learning rate. It multiplies the log-ratios.",
        wrong={LOSS: "-beta * F.logsigmoid((chosen - rejected) / beta).mean()"},
    ),
    Misconception(
        name="beta_divides",
        part="loss",
        says="Your implicit reward divides by β. Solved for the reward, the optimum gives β·log(π/π_ref).",
        wrong={IMPLICIT: "(policy_log_probs - reference_log_probs) / beta"},
    ),
    Misconception(
        name="chosen_and_rejected_swapped",
        part="loss",
        says="Your loss has chosen and rejected exchanged: it teaches the rejected response.",
        wrong={LOSS: "-F.logsigmoid(rejected - chosen).mean()"},
    ),
    Misconception(
        name="policy_and_reference_swapped",
        part="loss",
        says="Your implicit reward has policy and reference exchanged: it is β·(log π_θ − log π_ref).",
        wrong={IMPLICIT: "beta * (reference_log_probs - policy_log_probs)"},
    ),
    Misconception(
        name="reference_left_out_of_the_loss",
        part="loss",
        says="Your loss compares the policy's log-probabilities alone, without the reference: nothing remembers where "
        "the policy began.",
        wrong={
            "implicit_reward(policy_chosen, reference_chosen.detach(), beta)": "beta * policy_chosen",
            "implicit_reward(policy_rejected, reference_rejected.detach(), beta)": "beta * policy_rejected",
        },
    ),
    Misconception(
        name="ratio_of_probabilities",
        part="loss",
        says="Your implicit reward is a ratio of probabilities. It is β times the logarithm of that ratio.",
        wrong={IMPLICIT: "beta * (policy_log_probs - reference_log_probs).exp()"},
    ),
    Misconception(
        name="log_of_sigmoid_in_the_loss",
        part="loss",
        says="Your loss takes the logarithm of a sigmoid, which is infinite where the sigmoid is 0 in floating point: "
        "use logsigmoid or softplus.",
        wrong={LOSS: "-torch.sigmoid(chosen - rejected).log().mean()"},
    ),
    Misconception(
        name="summed_loss",
        part="loss",
        says="Your loss is a sum over the comparisons. It is a mean.",
        wrong={LOSS: "-F.logsigmoid(chosen - rejected).sum()"},
    ),
    Misconception(
        name="averages_before_comparing",
        part="loss",
        says="Your loss takes the mean of the implicit rewards first and compares once. Each chosen response is "
        "compared with its own rejected one.",
        wrong={LOSS: "-F.logsigmoid(chosen.mean() - rejected.mean())"},
    ),
    Misconception(
        name="log_likelihood_itself",
        part="loss",
        says="Your loss is the log-likelihood, without the minus: minimising it makes the preferences unlikely.",
        wrong={LOSS: "F.logsigmoid(chosen - rejected).mean()"},
    ),
    # --- metrics ---
    Misconception(
        name="ties_are_wrong",
        part="metrics",
        says="Your accuracy counts equal rewards as wrong: before the first step it is 0 %. They count one half.",
        wrong={ACCURACY: "(margin > 0).to(margin).mean()"},
    ),
    Misconception(
        name="ties_are_right",
        part="metrics",
        says="Your accuracy counts equal rewards as right: before the first step it is 100 %. They count one half.",
        wrong={ACCURACY: "(margin >= 0).to(margin).mean()"},
    ),
    Misconception(
        name="accuracy_of_the_policy_alone",
        part="metrics",
        says="Your accuracy compares the policy's log-probabilities. It is the implicit rewards, with the reference, "
        "that are compared: short responses are more probable anyway.",
        wrong={ACCURACY: "((policy_chosen - policy_rejected).sign() + 1).mean() / 2"},
    ),
    Misconception(
        name="margin_without_beta",
        part="metrics",
        says="Your margin lacks β: it is a difference of implicit rewards.",
        wrong={"margin.mean(), chosen.mean()": "(margin / beta).mean(), chosen.mean()"},
    ),
    Misconception(
        name="absolute_margin",
        part="metrics",
        says="Your margin is a mean of absolute differences. A pair in the wrong order has a negative margin.",
        wrong={"margin.mean(), chosen.mean()": "margin.abs().mean(), chosen.mean()"},
    ),
    # --- bandit ---
    Misconception(
        name="sure_choices",
        part="bandit",
        says="Your choices are certain: the better response always wins. People choose as Bradley–Terry says, with "
        "probability σ(r_i − r_j).",
        wrong={"torch.sigmoid(rewards[i] - rewards[j])": "(rewards[i] > rewards[j]).to(rewards)"},
    ),
    Misconception(
        name="one_half_of_the_cross_entropy",
        part="bandit",
        says="Your loss has one term for each pair, −σ(r_i − r_j)·log σ(r̂_i − r̂_j). The other choice happens too, "
        "with the rest of the probability.",
        wrong={
            "F.binary_cross_entropy_with_logits(implicit[i] - implicit[j], preferred)": (
                "-(preferred * F.logsigmoid(implicit[i] - implicit[j])).mean()"
            )
        },
    ),
    Misconception(
        name="responses_with_themselves",
        part="bandit",
        says="Your pairs include each response with itself, which adds ln 2. Only different responses are compared.",
        wrong={"offset=1": "offset=0"},
    ),
    Misconception(
        name="summed_pairs",
        part="bandit",
        says="Your loss is a sum over the pairs. It is a mean.",
        wrong={"implicit[j], preferred)": 'implicit[j], preferred, reduction="sum")'},
    ),
    Misconception(
        name="policy_without_reference",
        part="bandit",
        says="Your loss compares log-probabilities of the policy without the reference: its minimum is a softmax of "
        "r/β, not π_ref·exp(r/β)/Z.",
        wrong={"implicit_reward(log_probs, reference_log_probs, beta)": "beta * log_probs"},
    ),
]

ONE_DEVICE = "On the CPU there is one device. On a GPU the tests notice it."

EQUIVALENT = [
    Equivalent(
        part="optimum",
        before="log_ratio = (log_probs - reference_log_probs).masked_fill(said == 0, 0.0)",
        after="log_ratio = (log_probs - reference_log_probs).masked_fill(said == 0, 1.0)",
        because="It is multiplied by the probability, which is 0 there.",
    ),
    Equivalent(
        part="bandit",
        before="i, j = torch.triu_indices(len(rewards), len(rewards), offset=1, device=rewards.device)",
        after="i, j = torch.triu_indices(len(rewards), len(rewards), offset=1)",
        because=ONE_DEVICE,
    ),
]


def _log_probs(answers: ModuleType, rng: torch.Generator) -> object:
    logits = torch.randn(2, 4, 3, generator=rng)
    tokens = torch.randint(3, (2, 4), generator=rng)
    return answers.sequence_log_probs(logits, tokens, torch.rand(2, 4, generator=rng) < 0.5)


def _optimum(answers: ModuleType, rng: torch.Generator) -> object:
    policy, base = torch.randn(2, 4, generator=rng).log_softmax(-1)
    rewards = torch.randn(4, generator=rng)
    beta = 0.1 + torch.rand((), generator=rng).item()
    objective = answers.kl_objective(policy, base, rewards, beta)
    return torch.cat([answers.optimal_log_probs(base, rewards, beta), objective[None]])


def _loss(answers: ModuleType, rng: torch.Generator) -> object:
    return answers.dpo_loss(*torch.randn(4, 3, generator=rng), 0.5)


def _metrics(answers: ModuleType, rng: torch.Generator) -> object:
    return torch.stack(list(answers.preference_metrics(*torch.randn(4, 3, generator=rng), 0.5)))


def _bandit(answers: ModuleType, rng: torch.Generator) -> object:
    n = int(torch.randint(2, 6, (), generator=rng))
    policy, base = torch.randn(2, n, generator=rng).log_softmax(-1)
    return answers.expected_dpo_loss(policy, base, torch.randn(n, generator=rng), 0.5)


EXAMPLES = {
    "log_probs": _log_probs,
    "optimum": _optimum,
    "loss": _loss,
    "metrics": _metrics,
    "bandit": _bandit,
}
