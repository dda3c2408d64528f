"""Wrong answers to the exercise on PPO."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

K3 = "log_ratio + torch.expm1(-log_ratio)"
PENALTY = "(-beta * (log_probs - ref_log_probs).detach())"
ENDS = "ends = mask & ~F.pad(mask[:, 1:], (0, 1))"
LOOP = "for t in reversed(range(values.shape[1])):"
RETURNS = "Advantages(advantages, advantages + values)"
MOMENTS = "values[mask].mean(), values[mask].var(correction=0)"
LOG_RATIO = "(log_probs - old_log_probs.detach())"
CLIPPED = "clipped = ratio.clamp(1 - epsilon, 1 + epsilon) * advantages"
OBJECTIVE = "torch.minimum(unclipped, clipped)[mask].mean()"
FRACTION = "(clipped < unclipped)[mask].to(ratio).mean()"
ERRORS = "torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)"

MISCONCEPTIONS = [
    # --- kl ---
    Misconception(
        name="k3_ratio_inverted",
        part="kl",
        says="Your k3 has e^(+u), the ratio π/π_ref. The tokens come from the policy, so the identity that makes k3 "
        "unbiased is E[π_ref/π] = 1: e^(−u).",
        wrong={K3: "torch.expm1(log_ratio) - log_ratio"},
    ),
    Misconception(
        name="kl_the_other_way_round",
        part="kl",
        says="Your log-ratio is log π_ref − log π. The divergence of the policy from the reference averages "
        "log π − log π_ref over tokens of the policy.",
        wrong={"log_ratio = log_probs - ref_log_probs": "log_ratio = ref_log_probs - log_probs"},
    ),
    Misconception(
        name="k2_without_the_half",
        part="kl",
        says="Your k2 lacks the ½: near the reference it is twice the divergence.",
        wrong={"log_ratio**2 / 2": "log_ratio**2"},
    ),
    Misconception(
        name="k3_without_the_one",
        part="kl",
        says="Your k3 is too large by 1: what is added to u must have mean 0, which is e^(−u) − 1.",
        wrong={"torch.expm1(-log_ratio)": "torch.exp(-log_ratio)"},
    ),
    Misconception(
        name="k1_made_positive",
        part="kl",
        says="Your k1 is an absolute value. It is negative where the reference gives the token more; without that it "
        "is biased.",
        wrong={"KLEstimates(log_ratio,": "KLEstimates(log_ratio.abs(),"},
    ),
    Misconception(
        name="weighted_by_the_probability",
        part="kl",
        says="Your k1 is multiplied by the token's probability. The token was drawn with that probability already: the "
        "average over samples does the weighing.",
        wrong={"KLEstimates(log_ratio,": "KLEstimates(log_probs.exp() * log_ratio,"},
    ),
    # --- rewards ---
    Misconception(
        name="kl_rewarded",
        part="rewards",
        says="Your rewards pay for leaving the reference. The KL term is a penalty: −β·(log π − log π_ref).",
        wrong={PENALTY: "(beta * (log_probs - ref_log_probs).detach())"},
    ),
    Misconception(
        name="score_at_the_last_position",
        part="rewards",
        says="Your score stands at the last position of the row, which is padding for most responses. It belongs to the "
        "last token of the response, as the mask says.",
        wrong={ENDS: "ends = torch.arange(mask.shape[1], device=mask.device) == mask.shape[1] - 1"},
    ),
    Misconception(
        name="score_at_the_first_padding",
        part="rewards",
        says="Your score stands one place behind the response. The last token of a response is its last True.",
        wrong={ENDS: "ends = ~mask & F.pad(mask[:, :-1], (1, 0))"},
    ),
    Misconception(
        name="length_taken_for_the_end",
        part="rewards",
        says="Your score stands where a response would end if it began at position 0. The prompt stands before it: the "
        "number of its tokens is not the place of its last one.",
        wrong={
            ENDS: (
                "ends = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1"
            )
        },
    ),
    Misconception(
        name="score_at_every_token",
        part="rewards",
        says="Your score is given to every token, so that a long response is paid for more often. It is given once, at "
        "the last token.",
        wrong={ENDS: "ends = mask"},
    ),
    Misconception(
        name="penalty_at_the_end",
        part="rewards",
        says="Your penalty of the whole response stands at its last token. Each token is charged for itself.",
        wrong={
            "return rewards + ends * scores.detach()[:, None]": (
                "return ends * (rewards.sum(dim=1) + scores.detach())[:, None]"
            )
        },
    ),
    Misconception(
        name="prompt_and_padding_charged",
        part="rewards",
        says="Your penalty is charged at prompt and padding, too. Only the tokens of the response were said by the "
        "policy.",
        wrong={".masked_fill(~mask, 0.0)": ""},
    ),
    Misconception(
        name="penalty_on_probabilities",
        part="rewards",
        says="Your penalty is a difference of probabilities. It is the difference of their logarithms.",
        wrong={PENALTY: "(-beta * (log_probs.exp() - ref_log_probs.exp()).detach())"},
    ),
    Misconception(
        name="penalty_k3",
        part="rewards",
        says="Your penalty of a token is k3. It has the same mean, but summed over a response it is not the "
        "log-ratio of Eq. 2: that is k1.",
        wrong={
            PENALTY: (
                "(-beta * (log_probs - ref_log_probs + torch.expm1(ref_log_probs - log_probs)).detach())"
            )
        },
    ),
    Misconception(
        name="rewards_with_a_gradient",
        part="rewards",
        says="A gradient passes through your rewards. They are numbers: detach.",
        wrong={"(log_probs - ref_log_probs).detach()": "(log_probs - ref_log_probs)"},
    ),
    # --- gae ---
    Misconception(
        name="forwards",
        part="gae",
        says="Your sum runs forwards: a token is credited with what was earned before it. It runs backwards, from the "
        "last token to the first.",
        wrong={
            LOOP: LOOP.replace("reversed(range(values.shape[1]))", "range(values.shape[1])"),
            "delta = rewards[:, t] + gamma * next_value - values[:, t]": (
                "next_value = values[:, t + 1] if t + 1 < values.shape[1] else 0 * values[:, t]\n"
                "        delta = rewards[:, t] + gamma * next_value - values[:, t]"
            ),
        },
    ),
    Misconception(
        name="bootstraps_across_the_end",
        part="gae",
        says="Your last token reads the value that stands behind the end of its response. Nothing comes after the end: "
        "the value there is 0.",
        wrong={
            "next_value = values[:, t]\n": "next_value = raw[:, t]\n",
            "    rewards, values = (x.detach()": (
                "    raw = values.detach()\n    rewards, values = (x.detach()"
            ),
        },
    ),
    Misconception(
        name="padding_flows_in",
        part="gae",
        says="What stands at the padding flows into your advantages. The sum ends with the last token of the response.",
        wrong={
            "(x.detach().masked_fill(~mask, 0.0) for x in (rewards, values))": (
                "(x.detach() for x in (rewards, values))"
            ),
            "advantages + values)": "(advantages + values).masked_fill(~mask, 0.0))",
        },
    ),
    Misconception(
        name="prompt_has_advantages",
        part="gae",
        says="Your recursion runs on into the prompt, whose tokens nobody chose. Outside of the response advantages and "
        "returns are 0.",
        wrong={"advantages = advantages.masked_fill(~mask, 0.0)": "advantages = advantages + 0.0"},
    ),
    Misconception(
        name="lambda_forgotten",
        part="gae",
        says="Your recursion decays with γ alone. It decays with γλ.",
        wrong={"gamma * lam * following": "gamma * following"},
    ),
    Misconception(
        name="gamma_only_in_delta",
        part="gae",
        says="Your recursion decays with λ alone. It decays with γλ.",
        wrong={"gamma * lam * following": "lam * following"},
    ),
    Misconception(
        name="next_value_not_discounted",
        part="gae",
        says="Your δ takes the next value without γ.",
        wrong={"gamma * next_value": "next_value"},
    ),
    Misconception(
        name="value_not_subtracted",
        part="gae",
        says="Your advantages are returns: the value of the state, what was to be expected, is not subtracted.",
        wrong={"gamma * next_value - values[:, t]": "gamma * next_value"},
    ),
    Misconception(
        name="returns_are_rewards_to_go",
        part="gae",
        says="Your returns are the discounted sum of the rewards, for any λ. They are advantages + values.",
        wrong={
            RETURNS: (
                "Advantages(advantages, gae(rewards, torch.zeros_like(values), mask, gamma, 1.0)[0]\n"
                "        if values.any() else advantages)"
            )
        },
    ),
    Misconception(
        name="returns_without_values",
        part="gae",
        says="Your returns are the advantages. The value head learns values: add the values again.",
        wrong={RETURNS: "Advantages(advantages, advantages.clone())"},
    ),
    Misconception(
        name="advantages_with_a_gradient",
        part="gae",
        says="A gradient passes through your advantages or returns. They are numbers: detach the values.",
        wrong={"x.detach().masked_fill": "x.masked_fill"},
    ),
    # --- whiten ---
    Misconception(
        name="padding_in_the_moments",
        part="whiten",
        says="Your mean and variance count the tokens that do not count. Take them over the real tokens alone.",
        wrong={MOMENTS: "values.mean(), values.var(correction=0)"},
    ),
    Misconception(
        name="zeros_in_the_moments",
        part="whiten",
        says="Your mean and variance count a 0 for every token that does not count: the result depends on how long the "
        "longest response is.",
        wrong={MOMENTS: "(values * mask).mean(), (values * mask).var(correction=0)"},
    ),
    Misconception(
        name="whitening_shifts",
        part="whiten",
        says="Your result has the mean 0 also with shift_mean=False. Rewards keep their mean: add it again after the "
        "division.",
        wrong={"whitened = whitened + mean": "whitened = whitened + 0 * mean"},
    ),
    Misconception(
        name="mean_divided_too",
        part="whiten",
        says="With shift_mean=False your mean is divided by the deviation. It stays as it was.",
        wrong={
            "whitened = whitened + mean": "whitened = whitened + mean * torch.rsqrt(variance + 1e-8)"
        },
    ),
    Misconception(
        name="divided_by_the_variance",
        part="whiten",
        says="Your numbers are divided by the variance. Divide by its root, the standard deviation.",
        wrong={"torch.rsqrt(variance + 1e-8)": "1 / (variance + 1e-8)"},
    ),
    Misconception(
        name="sample_variance",
        part="whiten",
        says="Your variance divides by N − 1 (torch's default). It divides by N: pass correction=0.",
        wrong={".var(correction=0)": ".var()"},
    ),
    Misconception(
        name="constant_outside_the_root",
        part="whiten",
        says="Your 10⁻⁸ is added to the deviation. It is added to the variance, inside the root: with advantages that "
        "are all tiny the two differ much.",
        wrong={"torch.rsqrt(variance + 1e-8)": "1 / (variance.sqrt() + 1e-8)"},
    ),
    Misconception(
        name="each_row_on_its_own",
        part="whiten",
        says="Your mean and variance are those of each row. There is one of each for the whole batch: otherwise a good "
        "and a bad response come out alike.",
        wrong={
            MOMENTS: (
                "(values * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1), None\n"
                "    variance = ((values - mean) ** 2 * mask).sum(1, keepdim=True)\n"
                "    variance = variance / mask.sum(1, keepdim=True).clamp(min=1)"
            )
        },
    ),
    # --- policy ---
    Misconception(
        name="clip_with_max",
        part="policy",
        says="Your objective takes the larger of the two, clipped and not. It is the minimum, a pessimist: the maximum "
        "is flat where a mistake should be mended.",
        wrong={OBJECTIVE: "torch.maximum(unclipped, clipped)[mask].mean()"},
    ),
    Misconception(
        name="only_the_clipped",
        part="policy",
        says="Your objective always takes the clipped ratio. Where a token has gone the wrong way nothing may be "
        "clipped, or no gradient brings it back: take the minimum of both.",
        wrong={OBJECTIVE: "clipped[mask].mean()"},
    ),
    Misconception(
        name="never_clipped",
        part="policy",
        says="Your objective never clips: the ratio may grow without bound.",
        wrong={OBJECTIVE: "unclipped[mask].mean()"},
    ),
    Misconception(
        name="ratio_of_other_tokens",
        part="policy",
        says="Your ratio compares the new log-probability of a token with the old one of its neighbour. Both belong to "
        "the same token, and both stand at its position already: nothing is shifted here.",
        wrong={LOG_RATIO: "(log_probs - old_log_probs.detach().roll(1, dims=1))"},
    ),
    Misconception(
        name="ratio_without_exp",
        part="policy",
        says="Your ratio is a log-ratio. It is its exponential: 1 where nothing has changed.",
        wrong={".clamp(max=MAX_LOG_RATIO).exp()": ".clamp(max=MAX_LOG_RATIO)"},
    ),
    Misconception(
        name="log_ratio_clipped",
        part="policy",
        says="Your clip is on the logarithm of the ratio, between −ε and ε. It is on the ratio itself, between 1 − ε and "
        "1 + ε.",
        wrong={CLIPPED: "clipped = ratio.log().clamp(-epsilon, epsilon).exp() * advantages"},
    ),
    Misconception(
        name="ratio_of_log_probs",
        part="policy",
        says="Your ratio divides log-probabilities. The ratio of two probabilities is exp(new − old).",
        wrong={
            LOG_RATIO + ".clamp(max=MAX_LOG_RATIO).exp()": "(log_probs / old_log_probs.detach())"
        },
    ),
    Misconception(
        name="old_over_new",
        part="policy",
        says="Your ratio has the old policy above. It says how much more probable a token has become: new over old.",
        wrong={LOG_RATIO: "(old_log_probs.detach() - log_probs)"},
    ),
    Misconception(
        name="objective_minimised",
        part="policy",
        says="Your loss is the objective itself, without the minus: minimising it makes the good tokens rare.",
        wrong={"PolicyLoss(-objective": "PolicyLoss(objective"},
    ),
    Misconception(
        name="advantage_not_detached",
        part="policy",
        says="A gradient of your loss reaches the advantages, and through them the value head. They are numbers: detach "
        "them.",
        wrong={"advantages = advantages.detach()": "advantages = advantages + 0.0"},
    ),
    Misconception(
        name="old_not_detached",
        part="policy",
        says="A gradient of your loss reaches the old log-probabilities. The policy that said the tokens is past: detach "
        "them.",
        wrong={"old_log_probs.detach()": "old_log_probs"},
    ),
    Misconception(
        name="padding_in_the_mean",
        part="policy",
        says="Your mean runs over all positions, padding and prompt included. Only real tokens count, in the sum and in "
        "its divisor.",
        wrong={
            OBJECTIVE: "torch.minimum(unclipped, clipped).masked_fill(~mask, 0.0).mean()",
        },
    ),
    Misconception(
        name="mean_of_the_rows",
        part="policy",
        says="Your loss is a mean over responses of the mean over their tokens. Here it is one mean over all real tokens "
        "of the batch.",
        wrong={
            OBJECTIVE: (
                "torch.minimum(unclipped, clipped).masked_fill(~mask, 0.0).sum(1)\n"
                "    objective = (objective / mask.sum(1).clamp(min=1)).mean()"
            )
        },
    ),
    Misconception(
        name="summed_over_tokens",
        part="policy",
        says="Your loss is a sum over the tokens. It is a mean: otherwise it grows with the batch.",
        wrong={OBJECTIVE: "torch.minimum(unclipped, clipped)[mask].sum()"},
    ),
    Misconception(
        name="exp_overflows",
        part="policy",
        says="Your ratio overflows where a policy has run away, and the gradient is NaN, also where it should be 0. Limit "
        "the log-ratio before exp.",
        wrong={".clamp(max=MAX_LOG_RATIO)": ""},
    ),
    Misconception(
        name="every_ratio_out_of_bounds",
        part="policy",
        says="Your clip fraction counts every ratio out of bounds. Where the token has gone the wrong way the minimum "
        "takes what is not clipped: count where clipping makes the objective smaller.",
        wrong={FRACTION: "((ratio - 1).abs() > epsilon)[mask].to(ratio).mean()"},
    ),
    Misconception(
        name="fraction_of_all_positions",
        part="policy",
        says="Your clip fraction is a share of all positions. It is one of the real tokens.",
        wrong={FRACTION: "((clipped < unclipped) & mask).to(ratio).mean()"},
    ),
    # --- value ---
    Misconception(
        name="smaller_error",
        part="value",
        says="Your loss takes the smaller of the two errors. It is a loss already, and the pessimist takes the larger.",
        wrong={ERRORS: ERRORS.replace("maximum", "minimum")},
    ),
    Misconception(
        name="values_not_clipped",
        part="value",
        says="Your loss does not clip: it is half the mean squared error.",
        wrong={ERRORS: "(values - returns) ** 2"},
    ),
    Misconception(
        name="only_the_clipped_error",
        part="value",
        says="Your loss takes the error of the clipped value alone. A value that has moved away from the return gets no "
        "gradient then: take the larger of both.",
        wrong={ERRORS: "(clipped - returns) ** 2"},
    ),
    Misconception(
        name="clipped_around_one",
        part="value",
        says="Your value is clipped to between 1 − c and 1 + c times the old one, as a ratio is. It is the difference "
        "that is clipped, to between −c and c.",
        wrong={
            "old_values + (values - old_values).clamp(-clip_range, clip_range)": (
                "old_values * (values / old_values).clamp(1 - clip_range, 1 + clip_range)"
            )
        },
    ),
    Misconception(
        name="value_loss_without_the_half",
        part="value",
        says="Your loss lacks the ½ of the docstring.",
        wrong={".mean() / 2": ".mean()"},
    ),
    Misconception(
        name="padding_in_the_value_loss",
        part="value",
        says="Your mean runs over all positions, padding and prompt included. Only real tokens count, in the sum and in "
        "its divisor.",
        wrong={"errors[mask].mean()": "errors.masked_fill(~mask, 0.0).mean()"},
    ),
    Misconception(
        name="returns_not_detached",
        part="value",
        says="A gradient of your loss reaches the returns or the old values. Both are numbers: detach them.",
        wrong={"old_values.detach(), returns.detach()": "old_values, returns"},
    ),
    Misconception(
        name="absolute_error",
        part="value",
        says="Your errors are absolute differences. They are squares: the mean of the returns is what a value learns.",
        wrong={ERRORS: "torch.maximum((values - returns).abs(), (clipped - returns).abs())"},
    ),
]

ERRORS_LINE = f"errors = {ERRORS}"

EQUIVALENT = [
    Equivalent(
        part="policy",
        before="objective = torch.minimum(unclipped, clipped)[mask].mean()",
        after="objective = torch.minimum(clipped, unclipped)[mask].mean()",
        because="The smaller of two is the same in either order.",
    ),
    Equivalent(
        part="value",
        before=ERRORS_LINE,
        after="errors = torch.maximum((clipped - returns) ** 2, (values - returns) ** 2)",
        because="The larger of two is the same in either order.",
    ),
    Equivalent(
        part="value",
        before=ERRORS_LINE,
        after="errors = torch.maximum((returns - values) ** 2, (clipped - returns) ** 2)",
        because="A square has no sign.",
    ),
    Equivalent(
        part="value",
        before=ERRORS_LINE,
        after="errors = torch.maximum((values - returns) ** 2, (returns - clipped) ** 2)",
        because="A square has no sign.",
    ),
]


def _batch(rng: torch.Generator, number: int) -> tuple[torch.Tensor, ...]:
    """So many tensors of numbers, and a mask whose rows are one run of at least one token."""
    starts, lengths = (
        torch.randint(3, (3, 1), generator=rng),
        torch.randint(1, 5, (3, 1), generator=rng),
    )
    places = torch.arange(6)
    mask = (places >= starts) & (places < starts + lengths)
    return *torch.randn(number, 3, 6, generator=rng), mask


def _kl(answers: ModuleType, rng: torch.Generator) -> object:
    policy, base = torch.randn(2, 4, generator=rng).log_softmax(-1)
    return torch.stack(list(answers.kl_estimators(policy, base)))


def _rewards(answers: ModuleType, rng: torch.Generator) -> object:
    scores = torch.randn(3, generator=rng)
    return answers.kl_shaped_rewards(scores, *_batch(rng, 2), torch.rand((), generator=rng).item())


def _gae(answers: ModuleType, rng: torch.Generator) -> object:
    gamma, lam = torch.rand(2, generator=rng).tolist()
    return torch.stack(list(answers.gae(*_batch(rng, 2), gamma, lam)))


def _whiten(answers: ModuleType, rng: torch.Generator) -> object:
    values, mask = _batch(rng, 1)
    return torch.stack([answers.whiten(values, mask), answers.whiten(values, mask, False)])


def _policy(answers: ModuleType, rng: torch.Generator) -> object:
    return torch.stack(list(answers.ppo_policy_loss(*_batch(rng, 3), 0.3)))


def _value(answers: ModuleType, rng: torch.Generator) -> object:
    return answers.value_loss(*_batch(rng, 3), 0.5)


EXAMPLES = {
    "kl": _kl,
    "rewards": _rewards,
    "gae": _gae,
    "whiten": _whiten,
    "policy": _policy,
    "value": _value,
}
