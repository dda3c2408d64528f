# %% [markdown]
# # PPO
#
# A reward model gives every response a number. Reinforcement learning changes the policy, the language model that
# writes, so that the number rises. Ziegler et al. (2019) did this to a language model with *proximal policy
# optimisation* (PPO, Schulman et al. 2017) and a penalty that holds the policy near where it began; Stiennon et al.
# (2020) did it for summaries, and it is the third of the three steps of InstructGPT (Ouyang et al. 2022). You build
# every piece of it, and then watch what the policy makes of a reward that is only learnt.
#
# **You build** three estimates of a KL divergence, rewards for tokens, generalised advantage estimation, whitening,
# PPO's clipped losses for policy and values · **Minutes** 100 · **Points** 18 · **Difficulty** ●●● ·
# **Before this** [The reward model](reward_model.ipynb)
#
# Run a cell with Shift+Enter. Write your answers where it says `YOUR CODE HERE`, then run the tests below them.
# A test that passes is silent; one that fails says what it expected, what came, and which mistake usually does that.
# More tests, on other inputs, run when your notebook is graded.

# %%
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

import lab
from lab import check

device = lab.device()

# %% [markdown]
# ## Tokens, prompts and padding
#
# The policy reads a prompt and writes a response, token by token. Seen as reinforcement learning: the *state* before a
# token is everything that has been read and written so far, the *action* is the token, and the episode ends with the
# response. All responses of a batch stand in one tensor:
#
# ```
# tokens    What  is  2+2  ?  four  .  <end>  <pad>
# mask      .     .   .    .  ✓     ✓  ✓      .
# ```
#
# **What stands at position $t$ belongs to the token at $t$**, in every tensor of this exercise: its log-probability
# given all tokens before it, its reward, and the value of the state *before* it. (In a causal model both are read at
# $t - 1$. That shift is made once, when the model is called, and is behind you here.)
#
# **A mask is `True` at the tokens of the response, which are what counts.** They are one run in each row. The prompt
# stands before it and padding behind it, on the right; both may be absent. What the other tensors hold there is
# arbitrary, and must change nothing.
#
# Two functions for what could be wrong with the input. Use them where a docstring says so.


# %%
def require_one_shape(**tensors: Tensor) -> None:
    """Raises a ``ValueError`` that says ``shape``, and the shape of each, unless all are of one shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"all must be of one shape, got {shapes}")


def require_one_run(mask: Bool[Tensor, "batch length"]) -> None:
    """Raises a ``ValueError`` that says ``run`` if the response of a row is interrupted. An empty one is not."""
    starts = mask[:, 1:] & ~mask[:, :-1]
    if (starts.sum(dim=1) + mask[:, 0] > 1).any():
        raise ValueError(
            "a response must be one run of tokens, with the prompt before and padding behind it"
        )


# %% [markdown]
# ## 1 · How far has the policy moved?
#
# The distance to the reference $\pi_{\text{ref}}$, the policy before reinforcement learning, is the KL divergence,
#
# $$\mathrm{KL}(\pi \,\|\, \pi_{\text{ref}}) = \sum_y \pi(y) \log\frac{\pi(y)}{\pi_{\text{ref}}(y)}
# = \mathbb E_{y \sim \pi}[u], \qquad u = \log\frac{\pi(y)}{\pi_{\text{ref}}(y)}.$$
#
# The sum runs over everything that could be said. What we have is one token $y$ that was said, drawn from $\pi$, and
# its two log-probabilities. Schulman (2020) compares three estimates made of $u$ alone. The first is the definition,
# the other two come from an identity in which $\pi$ cancels:
#
# $$\mathbb E_{y \sim \pi}[e^{-u}] = \sum_y \pi(y)\, \frac{\pi_{\text{ref}}(y)}{\pi(y)} = \sum_y \pi_{\text{ref}}(y)
# = 1.$$
#
# - $k_1 = u$. Its mean is the divergence, by definition: it is *unbiased*. But it is negative wherever the policy says
#   something less probable than the reference does, while a divergence is never negative. It scatters widely.
# - $k_2 = \frac12 u^2$. Expand the identity for small $u$: $1 = \mathbb E[1 - u + \frac12 u^2 - \dots]$, so
#   $\mathbb E[u] \approx \mathbb E[\frac12 u^2]$. Never negative, and it scatters little; but what was left out makes
#   it biased.
# - $k_3 = u + (e^{-u} - 1)$. The bracket has mean 0, by the identity: $k_3$ is as unbiased as $k_1$. And
#   $e^{-u} \ge 1 - u$, so it is never negative. Near $u = 0$ it is $\frac12 u^2$, too.


# %%
class KLEstimates(NamedTuple):
    """Of KL(π ‖ π_ref), one for each token, in nats (Schulman 2020)."""

    k1: Tensor
    k2: Tensor
    k3: Tensor


# %% solution="kl"
def kl_estimators(
    log_probs: Float[Tensor, "..."], ref_log_probs: Float[Tensor, "..."]
) -> KLEstimates:
    """Schulman's k1, k2 and k3 for each token, from its own two log-probabilities (Schulman 2020).

    Args:
        log_probs: of tokens that were drawn from the policy π, under π.
        ref_log_probs: of the same tokens under the reference.

    Returns:
        Three tensors of the shape of ``log_probs``. Gradients pass to both arguments.

    Raises:
        ValueError: the two are not of one shape (the message says ``shape``; nothing is broadcast).
    """
    ### BEGIN SOLUTION
    require_one_shape(log_probs=log_probs, ref_log_probs=ref_log_probs)
    log_ratio = log_probs - ref_log_probs
    # expm1(x) is exp(x) − 1 without the rounding that would drown the small numbers wanted here.
    return KLEstimates(log_ratio, log_ratio**2 / 2, log_ratio + torch.expm1(-log_ratio))
    ### END SOLUTION


# %% [markdown]
# By hand: the policy says two tokens with probabilities $(\frac12, \frac12)$, the reference with $(\frac34, \frac14)$.
# Then $u$ is $\ln\frac23$ and $\ln 2$, its mean $\frac12 \ln\frac43$, and $e^{-u}$ is $\frac32$ and $\frac12$.

# %% test="kl_estimates" points=2
half, three_to_one = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
k1, k2, k3 = kl_estimators(half, three_to_one)
check.close(
    k1,
    [math.log(2 / 3), math.log(2)],
    because="k1 is log π − log π_ref, negative where the reference gives the token more.",
)
check.close(
    k2,
    [math.log(2 / 3) ** 2 / 2, math.log(2) ** 2 / 2],
    because="k2 is half the square of the log-ratio.",
)
check.close(
    k3,
    [1 / 2 + math.log(2 / 3), -1 / 2 + math.log(2)],
    because="k3 is u + e^(−u) − 1 with u = log π − log π_ref. Its ratio is π_ref/π, the other way round than in u.",
)
check.close(
    (half.exp() * k3).sum(),
    math.log(4 / 3) / 2,
    because="Averaged over the policy, k3 is the KL divergence, ½·ln(4/3), exactly.",
)
check.raises(
    ValueError,
    kl_estimators,
    half,
    three_to_one[:1],
    mentions="shape",
    because="One token against two would be broadcast: refuse it, and say shape.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "ppo")
rng = inputs("kl_estimates")
pairs = []
for shape in [(2,), (7,), (3, 5), (2, 3, 4)]:
    pair = torch.randn(*shape[:-1], 2, shape[-1], generator=rng, dtype=torch.float64).to(device)
    pairs.append(tuple(pair.log_softmax(-1).unbind(-2)))
found = each(kl_estimators, pairs)
for (policy, base), (k1, k2, k3) in zip(pairs, found, strict=True):
    # Not one sample but all: every token with the probability that the policy says it.
    divergence = (policy.exp() * (policy - base)).sum(-1)
    right = theirs.kl_estimators(policy, base)
    for got, name in ((k1, "k1"), (k3, "k3")):
        check.shape(got, policy.shape, because=f"{name} has one number for each token.")
        check.close(
            (policy.exp() * got).sum(-1),
            divergence,
            because=f"{name} is biased: its mean under the policy must be KL(π ‖ π_ref), not another divergence, "
            "exactly.",
        )
    check.close(k1, right.k1, because="k1 is log π − log π_ref of each token.")
    check.close(k2, right.k2, because="k2 is (log π − log π_ref)²/2 of each token.")
    check.close(k3, right.k3, because="k3 is u + e^(−u) − 1 with u = log π − log π_ref.")
    check.that(bool((k3 >= -1e-9).all()), "k3 is never negative: e^(−u) ≥ 1 − u.")
far = torch.tensor([0.0, -3.0, -30.0], dtype=torch.float64, device=device)
near = torch.tensor([-30.0, -3.0, 0.0], dtype=torch.float64, device=device)
for got, expected in zip(kl_estimators(far, near), theirs.kl_estimators(far, near), strict=True):
    check.close(got, expected, because="Equal probabilities have 0; unequal ones may be far apart.")
mine = [x.clone().requires_grad_() for x in pairs[1]]
other = [x.clone().requires_grad_() for x in pairs[1]]
pull = torch.randn(3, 7, generator=rng, dtype=torch.float64).to(device)
(torch.stack(list(kl_estimators(*mine))) * pull).sum().backward()
(torch.stack(list(theirs.kl_estimators(*other))) * pull).sum().backward()
for own, right in zip(mine, other, strict=True):
    check.that(
        own.grad is not None, "No gradient passes through the estimates: nothing is detached here."
    )
    check.close(own.grad, right.grad, because="The gradient of the estimates is off.")
policy, base = pairs[2]
for one, two in [(policy, base[:1]), (policy[:, :1], base), (policy, base[0])]:
    check.raises(
        ValueError,
        kl_estimators,
        one,
        two,
        mentions="shape",
        because="Both belong to the same tokens: of one shape, and nothing is broadcast. Say shape.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · A reward for every token
#
# What is to be maximised is Eq. 2 of Ouyang et al. (2022), here without its term for pre-training:
#
# $$\mathbb E_{y \sim \pi}\Big[ r_\theta(x, y) - \beta \log \frac{\pi(y \mid x)}{\pi_{\text{ref}}(y \mid x)} \Big].$$
#
# The reward model's score $r_\theta$ is one number for the whole response. The penalty is a sum, for the
# probability of a response is a product over its tokens:
#
# $$-\beta \log \frac{\pi(y \mid x)}{\pi_{\text{ref}}(y \mid x)} = \sum_t -\beta\, u_t, \qquad
# u_t = \log \pi(y_t \mid x, y_{<t}) - \log \pi_{\text{ref}}(y_t \mid x, y_{<t}).$$
#
# So each token can be charged for itself, at once, by its $k_1$; only the score has to wait for the end:
#
# $$R_t = -\beta\, u_t + \begin{cases} r_\theta(x, y) & t \text{ is the last token of the response} \\ 0 &
# \text{otherwise.} \end{cases}$$
#
# Summed over the response this is the bracket above, exactly. The sign: a token that the policy likes *more* than the
# reference does costs, one that it likes *less* is paid for. On average over the policy it costs, because a KL
# divergence is not negative.
#
# The last token is the last *real* one. At the last position of the batch stands, for most responses, padding, which
# nobody said and for which nobody is paid.
#
# Rewards are numbers, without a gradient. That $u_t$ contains the policy's parameters may be ignored: you will see in
# part 3 why its own gradient has mean 0.


# %% solution="rewards"
def kl_shaped_rewards(
    scores: Float[Tensor, "batch"],
    log_probs: Float[Tensor, "batch length"],
    ref_log_probs: Float[Tensor, "batch length"],
    mask: Bool[Tensor, "batch length"],
    beta: float,
) -> Float[Tensor, "batch length"]:
    """The reward of every token (Ouyang et al. 2022, Eq. 2 with γ = 0, token by token).

    Args:
        scores: of the reward model, one for each response.
        log_probs: of the tokens, under the policy that said them.
        ref_log_probs: of the same tokens under the reference.
        mask: ``True`` at the tokens of the response. The prompt stands before them, padding behind.
        beta: the weight of the KL penalty, 0 or more.

    Returns:
        −β·(log π − log π_ref) at the tokens of the response, with the score added at the last of them; 0 everywhere
        else, whatever finite numbers stand there. A new tensor, through which no gradient passes.

    Raises:
        ValueError: ``log_probs``, ``ref_log_probs`` and ``mask`` are not of one shape (the message says ``shape``),
            ``scores`` is not one number a row (it says ``scores``), the response of a row is interrupted (it says
            ``run``) or has no token, so that nothing could carry the score (it says ``empty``), or ``beta`` is
            negative or NaN (it says ``beta``).
    """
    ### BEGIN SOLUTION
    require_one_shape(log_probs=log_probs, ref_log_probs=ref_log_probs, mask=mask)
    require_one_run(mask)
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"scores must be {tuple(mask.shape[:1])}, got {tuple(scores.shape)}")
    if not mask.any(dim=1).all():
        raise ValueError("a response is empty: there is no token to give its score to")
    if not beta >= 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    rewards = (-beta * (log_probs - ref_log_probs).detach()).masked_fill(~mask, 0.0)
    ends = mask & ~F.pad(mask[:, 1:], (0, 1))  # tokens of the response with none behind them
    return rewards + ends * scores.detach()[:, None]
    ### END SOLUTION


# %% [markdown]
# By hand: two responses of two tokens and one token, after one token of prompt; scores 5 and −1; $\beta = \frac12$.

# %% test="rewards_values" points=2
mask = torch.tensor([[False, True, True, False], [False, True, False, False]])
rewards = kl_shaped_rewards(
    torch.tensor([5.0, -1.0]),
    torch.tensor([[-9.0, -1.0, -3.0, -9.0], [-9.0, -2.0, -9.0, -9.0]]),
    torch.tensor([[-7.0, -3.0, -2.0, -7.0], [-7.0, -2.0, -7.0, -7.0]]),
    mask,
    0.5,
)
check.close(
    rewards,
    [[0.0, -1.0, 0.5 + 5.0, 0.0], [0.0, -1.0, 0.0, 0.0]],
    because="The log-ratios of the response's tokens are 2 and −1, and 0 in the second row: −½ times each, and the "
    "score at the last token of the response. Prompt and padding have 0.",
)
nothing = torch.zeros(2, 4)
for scores, real, beta, says in [
    (torch.zeros(3), mask, 0.5, "scores"),
    (torch.zeros(2), mask[:1], 0.5, "shape"),
    (torch.zeros(2), torch.tensor([[True, True, False, False], [False] * 4]), 0.5, "empty"),
    (torch.zeros(2), ~mask, 0.5, "run"),
    (torch.zeros(2), mask, -0.5, "beta"),
]:
    check.raises(
        ValueError,
        kl_shaped_rewards,
        scores,
        nothing,
        nothing,
        real,
        beta,
        mentions=says,
        because="As many scores as rows, one shape, one run of tokens in every row, no empty response, and a β that "
        "is not negative: say scores, shape, run, empty or beta.",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "ppo")
rng = inputs("rewards_values")


def one_by_one(scores, log_probs, ref_log_probs, mask, beta):
    """Response by response, token by token."""
    rewards = torch.zeros_like(log_probs)
    for row in range(len(mask)):
        tokens = [t for t in range(mask.shape[1]) if mask[row, t]]
        for t in tokens:
            rewards[row, t] = -beta * (log_probs[row, t] - ref_log_probs[row, t])
        rewards[row, tokens[-1]] += scores[row]
    return rewards


def drawn(starts, lengths, total):
    """Log-probabilities as a transposed view, the mask of responses, scores of both signs."""
    mask = torch.arange(total) - torch.tensor(starts)[:, None]
    mask = ((mask >= 0) & (mask < torch.tensor(lengths)[:, None])).to(device)
    two = torch.randn(2, total, len(starts), generator=rng, dtype=torch.float64).to(device) - 2.0
    scores = 2.0 * torch.randn(len(starts), generator=rng, dtype=torch.float64).to(device)
    return scores, two[0].T, two[1].T, mask


cases = [
    (*drawn([2, 3, 0, 5], [3, 4, 1, 2], 7), 0.3),  # after prompts
    (*drawn([0, 0, 0], [5, 1, 3], 5), 1.5),  # the response alone
    (*drawn([0], [1], 1), 0.7),
    (*drawn([1, 0], [4, 5], 5), 0.0),
]
kept = [tuple(x.clone() for x in case[:4]) for case in cases]
for case, rewards in zip(cases, each(kl_shaped_rewards, cases), strict=True):
    check.close(
        rewards,
        one_by_one(*case),
        because="−β·(log π − log π_ref) at each token of the response, the score added at the last of them, 0 at "
        "prompt and padding.",
    )
    scores, log_probs, ref_log_probs, mask, beta = case
    check.close(
        rewards.sum(dim=1),
        scores - beta * ((log_probs - ref_log_probs) * mask).sum(dim=1),
        because="Summed over its tokens the reward of a response is score − β·log(π/π_ref), as in Eq. 2.",
    )
for case, before in zip(cases, kept, strict=True):
    check.equal(
        case[:4], before, because="An argument was changed in place: the rewards are a new tensor."
    )
scores, log_probs, ref_log_probs, mask, beta = cases[0]
check.close(
    kl_shaped_rewards(
        scores,
        torch.where(mask, log_probs, -1e4),
        torch.where(mask, ref_log_probs, 3e4),
        mask,
        beta,
    ),
    one_by_one(*cases[0]),
    because="What stands at prompt and padding changed a reward.",
)
own = [x.clone().requires_grad_() for x in (scores, log_probs, ref_log_probs)]
check.that(
    not kl_shaped_rewards(*own, mask, beta).requires_grad,
    "A gradient passes through the rewards. They are numbers: detach.",
)
hole = mask.clone()
hole[1, 4] = False
early = mask.clone()
early[3, 1] = True
for bad, says in [
    ((scores[:, None], log_probs, ref_log_probs, mask, beta), "scores"),
    ((scores[:1], log_probs, ref_log_probs, mask, beta), "scores"),
    ((scores.sum(), log_probs, ref_log_probs, mask, beta), "scores"),
    ((scores, log_probs[:1], ref_log_probs, mask, beta), "shape"),
    ((scores, log_probs, ref_log_probs[:, :1], mask, beta), "shape"),
    ((scores, log_probs, ref_log_probs, mask[2:3], beta), "shape"),
    ((scores, log_probs, ref_log_probs, hole, beta), "run"),
    ((scores, log_probs, ref_log_probs, early, beta), "run"),
    ((scores, log_probs, ref_log_probs, mask & mask[1], beta), "empty"),
    ((scores, log_probs, ref_log_probs, mask, -0.01), "beta"),
    ((scores, log_probs, ref_log_probs, mask, math.nan), "beta"),
]:
    check.raises(
        ValueError,
        kl_shaped_rewards,
        *bad,
        mentions=says,
        because="One number a row (say scores), one shape (say shape), one run of tokens in each row (say run), none "
        "of them empty (say empty), and 0 or more for β (say beta).",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · How good was a token?
#
# **The policy gradient.** Let $R(y)$ be the whole reward of a response. Sampling cannot be differentiated, but its mean
# can:
#
# $$\nabla\, \mathbb E_{y \sim \pi}[R] = \sum_y R(y) \nabla \pi(y) = \sum_y \pi(y) R(y) \nabla \log \pi(y) =
# \mathbb E_{y \sim \pi}\Big[\sum_t R(y)\, \nabla \log \pi(y_t \mid s_t)\Big],$$
#
# where $s_t$, the state, is the prompt and the tokens before $t$. Raise the probability of every token of a response
# that was rewarded. This is unbiased, and hopelessly noisy: a good token is blamed for a bad one beside it.
#
# **Two things may be left out or taken in without changing the mean.** For anything $b(s_t)$ that is settled before
# the token is drawn,
#
# $$\mathbb E_{y_t \sim \pi}\big[b(s_t)\, \nabla \log \pi(y_t \mid s_t)\big] =
# b(s_t) \sum_{y_t} \nabla \pi(y_t \mid s_t) = b(s_t)\, \nabla 1 = 0.$$
#
# So the rewards of earlier tokens can be dropped: $y_t$ did not cause them. And a *baseline* can be subtracted: what
# was to be expected in $s_t$ anyway, its value $V(s_t)$. (With $b = -\beta$ the line also says that the gradient of the
# reward $-\beta u_t$ itself has mean 0, which is why rewards could be numbers.) What remains is the *advantage* of a
# token: how much better things went than expected.
#
# **How much better did they go?** The surest answer is what came of it in the end. With a discount $\gamma$ (1 in
# InstructGPT: none) it is $\sum_{l \ge 0} \gamma^l R_{t+l} - V(s_t)$: not biased, whatever $V$ is, but it holds the
# accidents of all later tokens. The quickest answer looks one token ahead and then believes the values:
#
# $$\delta_t = R_t + \gamma V(s_{t+1}) - V(s_t).$$
#
# Hardly any accident in it, but it is wrong as far as the values are wrong. Schulman et al. (2016) mix the two,
# *generalised advantage estimation*:
#
# $$\hat A_t = \sum_{l \ge 0} (\gamma\lambda)^l\, \delta_{t+l}.$$
#
# With $\lambda = 0$ it is $\delta_t$. With $\lambda = 1$ the values in between cancel in pairs, $+\gamma^{l+1}
# V(s_{t+l+1})$ of one term against the same with a minus of the next, and the end is what is left:
# $\sum_l \gamma^l R_{t+l} - V(s_t)$. In between it forgets later tokens at the rate $\gamma\lambda$.
#
# Take the first term out of the sum, and it is a recursion that runs **backwards**, from the last token to the first:
#
# $$\hat A_t = \delta_t + \gamma\lambda\, \hat A_{t+1}.$$
#
# **At the end of the response everything ends.** After its last token nothing is earned, so the value there is 0, and
# $\hat A$ begins with 0. In the batch another number stands in that place: what the value head says about padding. It
# means nothing, and if one response reads it, its last advantages, those that hold the score, are wrong.
#
# The value head is trained on $\hat R_t = \hat A_t + V(s_t)$, what the value should have been: the *returns*.


# %%
class Advantages(NamedTuple):
    """What generalised advantage estimation gives, each (batch length), and 0 outside the response."""

    advantages: Tensor
    returns: Tensor  # advantages + values


# %% solution="gae"
def gae(
    rewards: Float[Tensor, "batch length"],
    values: Float[Tensor, "batch length"],
    mask: Bool[Tensor, "batch length"],
    gamma: float = 1.0,
    lam: float = 0.95,
) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2016) over responses of different lengths.

    Args:
        rewards: of each token.
        values: of the state before each token.
        mask: ``True`` at the tokens of the response. The prompt stands before them, padding behind.
        gamma: the discount γ, from 0 to 1.
        lam: λ, from 0 to 1.

    Returns:
        Advantages and returns. After the last token of a response the value is 0, also where the response fills its
        row. Outside of it both are 0, whatever finite numbers rewards and values have there; so is all of a row
        without a token. New tensors, through which no gradient passes.

    Raises:
        ValueError: the three are not of one shape (the message says ``shape``), the response of a row is
            interrupted (it says ``run``), or ``gamma`` or ``lam`` is not from 0 to 1 (it says which).
    """
    ### BEGIN SOLUTION
    require_one_shape(rewards=rewards, values=values, mask=mask)
    require_one_run(mask)
    for name, factor in (("gamma", gamma), ("lam", lam)):
        if not 0 <= factor <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {factor}")
    rewards, values = (x.detach().masked_fill(~mask, 0.0) for x in (rewards, values))
    advantages = torch.zeros_like(values)
    following = next_value = 0.0  # after the end
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # Padding, on the right, has neither rewards nor values: all stays 0 down to the last token.
        following = advantages[:, t] = delta + gamma * lam * following
        next_value = values[:, t]
    advantages = advantages.masked_fill(~mask, 0.0)  # the recursion has run on into the prompt
    return Advantages(advantages, advantages + values)
    ### END SOLUTION


# %% [markdown]
# By hand, with $\gamma = 1$ and $\lambda = \frac12$. Rewards 0, 0, 4 and values 1, 2, 3: $\delta$ is 1, 1, 1, so from
# the end $\hat A_3 = 1$, $\hat A_2 = 1 + \frac12$, $\hat A_1 = 1 + \frac34$. The second row has a token of prompt, and
# both have padding with numbers in it.

# %% test="gae_by_hand" points=2
rewards = torch.tensor([[0.0, 0.0, 4.0, 50.0], [60.0, 1.0, 2.0, 70.0]])
values = torch.tensor([[1.0, 2.0, 3.0, 80.0], [90.0, 3.0, 1.0, -40.0]])
mask = torch.tensor([[True, True, True, False], [False, True, True, False]])
advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.5)
check.close(
    advantages,
    [[1.75, 1.5, 1.0, 0.0], [0.0, -0.5, 1.0, 0.0]],
    because="δ is 1, 1, 1 and −1, 1. The sum runs backwards from the last real token, after which the value is 0, not "
    "what stands at the padding.",
)
check.close(
    returns,
    [[2.75, 3.5, 4.0, 0.0], [0.0, 2.5, 2.0, 0.0]],
    because="Returns are advantages + values, and 0 outside the response.",
)
check.close(
    gae(rewards, values, mask, gamma=0.5, lam=0.0).advantages,
    [[0.0, -0.5, 1.0, 0.0], [0.0, -1.5, 1.0, 0.0]],
    because="With λ = 0 the advantage is δ = R_t + γ·V(s_{t+1}) − V(s_t). γ multiplies the next value.",
)
full = torch.ones(1, 2, dtype=torch.bool)
check.close(
    gae(
        torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 7.0]]), full, gamma=1.0, lam=1.0
    ).advantages,
    [[3.0 - 5.0, 2.0 - 7.0]],
    because="With λ = 1 it is what came in the end less the value. A response that fills its row ends, too.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "ppo")
rng = inputs("gae_by_hand")


def by_double_loop(rewards, values, mask, gamma, lam):
    """For each token the sum of all δ behind it, as the paper writes it."""
    advantages = torch.zeros_like(values)
    for row in range(len(mask)):
        tokens = [t for t in range(mask.shape[1]) if mask[row, t]]
        after = {t: values[row, t + 1] if t + 1 in tokens else 0.0 for t in tokens}
        for t in tokens:
            for later in tokens[tokens.index(t) :]:
                delta = rewards[row, later] + gamma * after[later] - values[row, later]
                advantages[row, t] += (gamma * lam) ** (later - t) * delta
    return advantages, torch.where(mask, advantages + values, 0.0)


def drawn(starts, lengths, total):
    """Rewards and values as transposed views, and the mask of responses."""
    mask = torch.arange(total) - torch.tensor(starts)[:, None]
    mask = ((mask >= 0) & (mask < torch.tensor(lengths)[:, None])).to(device)
    two = 2.0 * torch.randn(2, total, len(starts), generator=rng, dtype=torch.float64).to(device)
    return two[0].T, two[1].T, mask


cases = [
    (*drawn([2, 3, 0, 5, 1], [3, 4, 1, 2, 0], 7), 0.9, 0.7),  # after prompts; one response is empty
    (*drawn([0, 0, 0], [5, 1, 3], 5), 0.8, 0.95),  # the response alone
    (*drawn([0], [1], 1), 0.6, 0.4),
    (*drawn([0, 1], [8, 6], 8), 1.0, 0.95),
    (*drawn([0, 2], [6, 2], 6), 0.0, 0.5),
]
kept = [tuple(x.clone() for x in case[:3]) for case in cases]
for case, (advantages, returns) in zip(cases, each(gae, cases), strict=True):
    right_advantages, right_returns = by_double_loop(*case)
    check.close(
        advantages,
        right_advantages,
        because="The sum of (γλ)^l·δ_{t+l} up to the last token of the response, after which the value is 0; 0 outside "
        "the response, and in a row without a token.",
    )
    check.close(
        returns,
        right_returns,
        because="Returns are advantages + values, and 0 outside the response.",
    )
for case, before in zip(cases, kept, strict=True):
    check.equal(case[:3], before, because="An argument was changed in place.")
defaults = gae(*cases[0][:3])
check.close(
    defaults[0],
    by_double_loop(*cases[0][:3], 1.0, 0.95)[0],
    because="Without being given γ is 1 and λ is 0.95.",
)
own = [x.clone().requires_grad_() for x in cases[0][:2]]
check.that(
    not any(x.requires_grad for x in gae(*own, cases[0][2], 0.9, 0.7)),
    "A gradient passes through advantages or returns. They are numbers: detach.",
)
rewards, values, mask, gamma, lam = cases[0]
hole = mask.clone()
hole[1, 4] = False
for bad, says in [
    ((rewards[:1], values, mask, gamma, lam), "shape"),
    ((rewards, values[:, :1], mask, gamma, lam), "shape"),
    ((rewards, values, mask[1:2], gamma, lam), "shape"),
    ((rewards, values, hole, gamma, lam), "run"),
    ((rewards, values, mask, 1.01, lam), "gamma"),
    ((rewards, values, mask, -0.01, lam), "gamma"),
    ((rewards, values, mask, gamma, 1.01), "lam"),
    ((rewards, values, mask, gamma, -0.01), "lam"),
    ((rewards, values, mask, gamma, math.nan), "lam"),
]:
    check.raises(
        ValueError,
        gae,
        *bad,
        mentions=says,
        because="One shape (say shape), one run of tokens in each row (say run), γ and λ from 0 to 1 (say gamma or "
        "lam).",
    )
### END HIDDEN TESTS

# %% test="gae_properties" points=2
# A response of three tokens: alone, with padding, and after a prompt.
rewards, values = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[0.5, 2.0, -1.0]])
alone = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 0.9, 0.8).advantages
for before, behind in [(0, 2), (2, 0), (1, 3)]:
    around = (before, behind)
    mask = F.pad(torch.ones(1, 3, dtype=torch.bool), around)
    found = gae(
        F.pad(rewards, around, value=9.0),
        F.pad(values, around, value=-9.0),
        mask,
        0.9,
        0.8,
    ).advantages
    check.close(
        found,
        F.pad(alone, around),
        because="A response has the same advantages alone, before padding and after a prompt: nothing flows in from "
        "there, and nothing out.",
    )
# What was paid before a token is not its merit.
paid = gae(rewards + torch.tensor([[7.0, 0.0, 0.0]]), values, mask[:, 1:4], 0.9, 0.8).advantages
check.close(
    paid - alone,
    [[7.0, 0.0, 0.0]],
    because="A reward at the first token reaches the first advantage and no later one: the sum looks ahead.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "ppo")
rng = inputs("gae_properties")
lengths = torch.tensor([4, 6, 1, 3])
starts = torch.tensor([1, 0, 2, 3])[:, None]
places = torch.arange(6)
mask = ((places >= starts) & (places < starts + lengths[:, None])).to(device)
rewards, values, noise, other = torch.randn(4, 4, 6, generator=rng, dtype=torch.float64).to(device)
zero = torch.zeros_like(rewards)
after = torch.where(mask.roll(-1, 1) & (places < 5).to(device), values.roll(-1, 1), 0.0)
gamma = 0.9
to_come = torch.zeros_like(rewards)
for t in reversed(range(6)):
    to_come[:, t] = torch.where(mask[:, t], rewards[:, t], 0.0)
    if t < 5:
        to_come[:, t] += gamma * to_come[:, t + 1]
junk = torch.where(mask, rewards, 1e4 * noise), torch.where(mask, values, 1e4 * other)
scored = torch.zeros_like(rewards)
ends = mask & ~F.pad(mask[:, 1:], (0, 1))
scored[ends] = torch.tensor([3.0, -2.0, 5.0, 1.0], dtype=torch.float64, device=device)
some = gae(rewards, values, mask, gamma, 0.6)
quick, sure, kept, lone, twice, credit = each(
    gae,
    [
        (rewards, values, mask, gamma, 0.0),
        (rewards, values, mask, gamma, 1.0),
        (*junk, mask, gamma, 0.6),
        (rewards[3:, 3:], values[3:, 3:], mask[3:, 3:], gamma, 0.6),
        (2.0 * rewards, 2.0 * values, mask, gamma, 0.6),
        (scored, zero, mask, 1.0, 1.0),
    ],
)
check.close(
    quick[0],
    torch.where(mask, rewards + gamma * after - values, 0.0),
    because="With λ = 0 the advantage is δ_t = R_t + γ·V(s_{t+1}) − V(s_t), and V after the end is 0.",
)
check.close(
    sure[0],
    torch.where(mask, to_come - values, 0.0),
    because="With λ = 1 it is the discounted sum of the rewards from here on, less the value.",
)
check.close(
    sure[1],
    torch.where(mask, to_come, 0.0),
    because="With λ = 1 the returns are the discounted sum of the rewards, whatever the values are.",
)
check.close(kept[0], some[0], because="What stands at prompt and padding changed an advantage.")
check.close(kept[1], some[1], because="What stands at prompt and padding changed a return.")
check.close(
    lone[0],
    some[0][3:, 3:],
    because="A response alone in its batch, without its prompt, has the same advantages.",
)
check.close(
    twice[0], 2.0 * some[0], because="Twice the rewards and values are twice the advantages."
)
check.close(
    credit[0],
    torch.where(mask, scored.sum(dim=1, keepdim=True), 0.0),
    because="With γ = λ = 1 and values of 0 the score at the end reaches every token of its own response.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · Whitening
#
# How large advantages are depends on the reward model's scale and on the time of training. To have the same learning
# rate fit them all, PPO for language models *whitens* them (Ziegler et al. 2019, in their code): less the mean, divided
# by the standard deviation, both over the real tokens of the batch and over nothing else,
#
# $$\tilde A = \frac{\hat A - \mu}{\sqrt{\sigma^2 + 10^{-8}}}, \qquad \mu = \frac1N \sum \hat A, \qquad
# \sigma^2 = \frac1N \sum (\hat A - \mu)^2.$$
#
# If the zeros of padding were counted, the result would depend on how long the longest response of the batch is.
#
# Less the mean: is that allowed? For *advantages* it is one more baseline, the same for all tokens. (It is computed
# from the sample itself, so not quite settled before the token is drawn; over the thousands of tokens of a batch that
# hardly matters.) For *rewards* it is not. Take $\mu$ from the reward of every token, and a response of $T$ tokens has
# lost $T\mu$: its length has become a part of what is wanted. Where rewards are whitened, they are divided by the
# deviation and keep their mean; that is `shift_mean=False`.


# %% solution="whiten"
def whiten(
    values: Float[Tensor, "batch length"],
    mask: Bool[Tensor, "batch length"],
    shift_mean: bool = True,
) -> Float[Tensor, "batch length"]:
    """Numbers with the variance 1 over the tokens that count, and the mean 0 or the mean they had.

    Args:
        values: advantages or rewards.
        mask: ``True`` where a token counts.
        shift_mean: whether the mean becomes 0. If not it is added again after the division, and stays as it was.

    Returns:
        (values − mean)/√(variance + 10⁻⁸), with one mean and one variance over all tokens of the batch that count;
        the variance divides by their number N, not by N − 1. 0 where a token does not count.

    Raises:
        ValueError: the two are not of one shape (the message says ``shape``), or no token counts (it says
            ``empty``).
    """
    ### BEGIN SOLUTION
    require_one_shape(values=values, mask=mask)
    if not mask.any():
        raise ValueError("the mask is empty: no token counts")
    mean, variance = values[mask].mean(), values[mask].var(correction=0)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return whitened.masked_fill(~mask, 0.0)
    ### END SOLUTION


# %% [markdown]
# By hand: the tokens that count have 0, 0, 4, 4: the mean 2, the variance 4.

# %% test="whiten_values" points=2
values = torch.tensor([[0.0, 4.0, 99.0], [4.0, 0.0, -99.0]])
mask = torch.tensor([[True, True, False], [True, True, False]])
check.close(
    whiten(values, mask),
    [[-1.0, 1.0, 0.0], [1.0, -1.0, 0.0]],
    because="(0 − 2)/2 and (4 − 2)/2: mean and variance of the tokens that count. Elsewhere 0.",
)
check.close(
    whiten(values, mask, shift_mean=False),
    [[1.0, 3.0, 0.0], [3.0, 1.0, 0.0]],
    because="With shift_mean=False the mean stays 2 and the variance is 1: the mean is added again after the division.",
)
check.close(
    whiten(torch.full((1, 2), 3.0), torch.tensor([[True, False]])),
    [[0.0, 0.0]],
    because="A single token has the variance 0: the result is 0, not NaN. The variance divides by N, not by N − 1.",
)
check.raises(
    ValueError,
    whiten,
    values,
    torch.zeros(2, 3, dtype=torch.bool),
    mentions="empty",
    because="Where no token counts there is no mean: say empty.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "ppo")
rng = inputs("whiten_values")
cases = []
for shape in [(2, 3), (5, 4), (1, 6)]:
    values = 3.0 * torch.randn(shape[::-1], generator=rng, dtype=torch.float64).to(device).T + 1.5
    mask = (torch.rand(shape, generator=rng) < 0.6).to(device)
    mask[0, :2], mask[-1, -1] = True, False
    cases += [(values, mask), (values, mask, True), (values, mask, False)]
kept = [tuple(x.clone() for x in case[:2]) for case in cases]
found = each(whiten, cases)
for case, got in zip(cases, found, strict=True):
    check.close(
        got,
        theirs.whiten(*case),
        because="One mean and one variance (divided by N) over all tokens that count; 0 elsewhere. With "
        "shift_mean=False the mean is added again after the division.",
    )
for case, before in zip(cases, kept, strict=True):
    check.equal(case[:2], before, because="An argument was changed in place.")
values, mask = cases[3][:2]
noise = 1e3 * torch.randn(5, 4, generator=rng, dtype=torch.float64).to(device)
other, larger, moved = each(
    whiten,
    [
        (torch.where(mask, values, noise), mask),
        (5.0 * values - 7.0, mask),
        (values + 7.0, mask, False),
    ],
)
check.close(other, found[3], because="What stands where no token counts changed the result.")
check.close(
    larger,
    found[3],
    because="Neither the level nor the scale of the numbers is left after whitening.",
)
check.close(
    moved,
    torch.where(mask, found[5] + 7.0, 0.0),
    because="With shift_mean=False a level that is added to all stays in the result as it is.",
)
check.close(
    whiten(1e-4 * values, mask),
    theirs.whiten(1e-4 * values, mask),
    because="10⁻⁸ is added to the variance, inside the root, not to the deviation.",
)
alike = torch.full_like(values, -2.0)
check.close(
    whiten(alike, mask, False),
    torch.where(mask, alike, 0.0),
    because="Numbers that are all the same have the variance 0: no division by it.",
)
for bad, says in [
    ((values, mask[:, :1]), "shape"),
    ((values[:1], mask), "shape"),
    ((values, mask[0]), "shape"),
    ((values, mask & ~mask), "empty"),
]:
    check.raises(
        ValueError,
        whiten,
        *bad,
        mentions=says,
        because="The mask has the shape of the values (say shape) and one token at least counts (say empty).",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · The clipped objective
#
# To sample responses is expensive, to learn from them once is a waste. But after the first step of learning the policy
# is no longer $\pi_{\text{old}}$, the one that said them. Every token is therefore weighed by how much more probable it
# has become (*importance sampling*):
#
# $$\mathbb E_{y \sim \pi}[\hat A] = \sum_y \pi_{\text{old}}(y)\, \frac{\pi(y)}{\pi_{\text{old}}(y)}\, \hat A(y) =
# \mathbb E_{y \sim \pi_{\text{old}}}[\rho\, \hat A], \qquad
# \rho_t = \frac{\pi(y_t \mid s_t)}{\pi_{\text{old}}(y_t \mid s_t)} = e^{\log \pi - \log \pi_{\text{old}}}.$$
#
# Both log-probabilities are of the same token: the one that was said. Before the first step $\rho = 1$ everywhere, and
# because $\nabla \rho = \rho\, \nabla \log \pi$, the gradient there is exactly the policy gradient. (The states $s_t$
# still come from $\pi_{\text{old}}$. That is one reason not to go far.)
#
# Far away $\rho$ grows without bound, a few tokens decide everything, and $\hat A$, measured under the old policy, is
# out of date. Schulman et al. (2017, Eq. 7) take away the incentive to go there:
#
# $$L^{\text{CLIP}} = \mathbb E_t\big[\min(\rho_t \hat A_t,\; \mathrm{clip}(\rho_t, 1 - \varepsilon, 1 + \varepsilon)\,
# \hat A_t)\big].$$
#
# Read it case by case:
#
# | advantage | low: $\rho < 1 - \varepsilon$ | between | high: $\rho > 1 + \varepsilon$ |
# | --- | --- | --- | --- |
# | $\hat A > 0$: more often! | $\rho \hat A$ | $\rho \hat A$ | $(1 + \varepsilon) \hat A$, **flat** |
# | $\hat A < 0$: less often! | $(1 - \varepsilon) \hat A$, **flat** | $\rho \hat A$ | $\rho \hat A$ |
#
# Where it is flat the token has gone far enough the right way, and no gradient takes it farther. Where it is out of
# bounds the *wrong* way, nothing is clipped, and the gradient brings it back.
#
# The minimum makes it a pessimist: whatever would look *better* by going far is not believed, whatever looks *worse*
# is. With a maximum it would be the reverse: flat where a mistake should be mended, and a slope outwards without end.
#
# It is $\rho$ that is clipped, not its logarithm. And it is an objective, to be maximised; the loss is its negative.
#
# The mean runs over all real tokens of the batch, so a long response weighs more than a short one. That is a choice,
# and a common one.
#
# In floating point $e^{100}$ is $\infty$ in `float32`, and $0 \cdot \infty$ in the backward pass is NaN, also where the
# clipping makes the gradient 0. So a log-ratio above 20 counts as 20: a token that has become some 500 million times as
# probable need not be told apart from one that has gone even farther.


# %%
MAX_LOG_RATIO = 20.0


class PolicyLoss(NamedTuple):
    """What a step of PPO minimises, and what to watch beside it."""

    loss: Tensor  # a scalar, to be minimised
    clip_fraction: Tensor  # the share of real tokens where clipping makes the objective smaller: no gradient there


# %% solution="policy"
def ppo_policy_loss(
    log_probs: Float[Tensor, "batch length"],
    old_log_probs: Float[Tensor, "batch length"],
    advantages: Float[Tensor, "batch length"],
    mask: Bool[Tensor, "batch length"],
    epsilon: float = 0.2,
) -> PolicyLoss:
    """PPO's clipped objective (Schulman et al. 2017, Eq. 7), negated, as one mean over the real tokens of the batch.

    Args:
        log_probs: of the tokens that were said, under the policy that learns.
        old_log_probs: of the same tokens, under the policy that said them. No gradient reaches them, also where they
            require one.
        advantages: of the same tokens; nor does it reach these.
        mask: ``True`` at the tokens of the response.
        epsilon: how far the ratio may move from 1 before it is clipped.

    Returns:
        The loss and the clip fraction, each one number. A log-ratio above ``MAX_LOG_RATIO`` counts as
        ``MAX_LOG_RATIO``, so that log-probabilities of any finite size, at tokens that count or not, give neither an
        infinity nor NaN, nor do their gradients. Tokens that do not count change nothing and get the gradient 0. A
        token counts as clipped where clip(ρ)·A is smaller than ρ·A, not where they are equal.

    Raises:
        ValueError: the four are not of one shape (the message says ``shape``), no token counts (it says
            ``empty``), or ``epsilon`` is not positive (it says ``epsilon``).
    """
    ### BEGIN SOLUTION
    require_one_shape(
        log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages, mask=mask
    )
    if not mask.any():
        raise ValueError("the mask is empty: no token counts")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    advantages = advantages.detach()
    ratio = (log_probs - old_log_probs.detach()).clamp(max=MAX_LOG_RATIO).exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon) * advantages
    objective = torch.minimum(unclipped, clipped)[mask].mean()
    return PolicyLoss(-objective, (clipped < unclipped)[mask].to(ratio).mean())
    ### END SOLUTION


# %% [markdown]
# By hand, with $\varepsilon = \frac12$, so the ratio is clipped to between $\frac12$ and $\frac32$. Ratios of 2 and
# $\frac14$, each with the advantages 1 and −1: the four outer cells of the table. Two of them are flat.

# %% test="policy_values" points=2
log_ratio = torch.tensor([[2.0, 2.0, 9.0], [0.25, 0.25, 9.0]]).log()
advantages = torch.tensor([[1.0, -1.0, 50.0], [1.0, -1.0, 50.0]])
mask = torch.tensor([[True, True, False], [True, True, False]])
old = torch.tensor([[-3.0, -2.0, -5.0], [-1.0, -4.0, -6.0]])
loss, clip_fraction = ppo_policy_loss(old + log_ratio, old, advantages, mask, epsilon=0.5)
check.close(
    loss,
    -(1.5 - 2.0 + 0.25 - 0.5) / 4,
    because="min(2, 1.5), min(−2, −1.5), min(0.25, 0.5) and min(−0.25, −0.5): their mean, with a minus. The ratio is "
    "exp(new − old), padding does not count, and it is the minimum.",
)
check.close(
    clip_fraction,
    2 / 4,
    because="Two of the four real tokens are held by the clip. In the other two the ratio is out of bounds as well, "
    "but the minimum takes what is not clipped.",
)
loss, clip_fraction = ppo_policy_loss(old, old, advantages, mask)
check.close(
    (loss, clip_fraction),
    (0.0, 0.0),
    because="Before the first step all ratios are 1: the loss is minus the mean advantage, and nothing is clipped.",
)
for four, epsilon, says in [
    ((old, old[:, :1], old, mask), 0.2, "shape"),
    ((old, old, old, mask & ~mask), 0.2, "empty"),
    ((old, old, old, mask), 0.0, "epsilon"),
]:
    check.raises(
        ValueError,
        ppo_policy_loss,
        *four,
        epsilon,
        mentions=says,
        because="One shape, a token that counts, and a positive ε: say shape, empty or epsilon.",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "ppo")
rng = inputs("policy_values")
cases = []
for shape, epsilon in [((3, 5), 0.2), ((4, 7), 0.1), ((1, 9), 0.4), ((6, 2), 0.2)]:
    old, step, advantages = torch.randn(3, *shape[::-1], generator=rng, dtype=torch.float64)
    old, step, advantages = (x.to(device).T for x in (old, step, advantages))
    mask = (torch.rand(shape, generator=rng) < 0.6).to(device)
    mask[0, 0] = True
    # Rows of different lengths, and advantages of different sizes in them.
    mask[-1, 1:] = False
    advantages = advantages * torch.arange(1, shape[0] + 1, device=device)[:, None] + 0.3
    cases.append((old + 0.5 * step - 2.0, old - 2.0, advantages, mask, epsilon))
found = each(ppo_policy_loss, cases)
for case, (loss, clip_fraction) in zip(cases, found, strict=True):
    right = theirs.ppo_policy_loss(*case)
    check.close(
        loss,
        right.loss,
        because="The negative mean, over all real tokens of the batch at once, of min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A).",
    )
    check.close(
        clip_fraction,
        right.clip_fraction,
        because="The share of real tokens for which clip(ρ)·A is smaller than ρ·A.",
    )
log_probs, old, advantages, mask, epsilon = cases[1]
away = 30.0 * torch.randn(4, 7, generator=rng, dtype=torch.float64).to(device)
moved, level, plain = each(
    ppo_policy_loss,
    [
        (
            torch.where(mask, log_probs, away),
            torch.where(mask, old, -away),
            torch.where(mask, advantages, 5.0 * away),
            mask,
            epsilon,
        ),
        (log_probs + away, old + away, advantages, mask, epsilon),
        (log_probs, old, advantages, mask),
    ],
)
check.close(moved[0], found[1][0], because="A token that does not count changed the loss.")
check.close(moved[1], found[1][1], because="A token that does not count changed the clip fraction.")
check.close(
    level[0],
    found[1][0],
    because="Only the ratio of the two probabilities of the same token counts: what is added to both log-probabilities "
    "of a token changes nothing.",
)
check.close(
    plain[0],
    theirs.ppo_policy_loss(log_probs, old, advantages, mask, 0.2).loss,
    because="Without being given ε is 0.2.",
)
for bad, says in [
    ((log_probs[:1], old, advantages, mask, 0.2), "shape"),
    ((log_probs, old[:, :1], advantages, mask, 0.2), "shape"),
    ((log_probs, old, advantages[:, :1], mask, 0.2), "shape"),
    ((log_probs, old, advantages[0], mask, 0.2), "shape"),
    ((log_probs, old, advantages, mask[:, :1], 0.2), "shape"),
    ((log_probs, old, advantages, mask & ~mask, 0.2), "empty"),
    ((log_probs, old, advantages, mask, -0.2), "epsilon"),
    ((log_probs, old, advantages, mask, math.nan), "epsilon"),
]:
    check.raises(
        ValueError,
        ppo_policy_loss,
        *bad,
        mentions=says,
        because="All four of one shape (say shape), a token that counts (say empty), a positive ε (say epsilon).",
    )
### END HIDDEN TESTS

# %% test="policy_gradient" points=2
old = torch.tensor([[-3.0, -2.0, -5.0], [-1.0, -4.0, -6.0]])
advantages = torch.tensor([[1.0, -1.0, 50.0], [1.0, -1.0, 50.0]])
mask = torch.tensor([[True, True, False], [True, True, False]])
# Before the first step.
log_probs = old.clone().requires_grad_()
ppo_policy_loss(log_probs, old, advantages, mask, epsilon=0.5).loss.backward()
check.close(
    log_probs.grad,
    [[-1 / 4, 1 / 4, 0.0], [-1 / 4, 1 / 4, 0.0]],
    because="Where new and old are the same the gradient is the policy gradient: −A/4 for each of the four tokens.",
)
# Ratios of 2 and 1/4, as above.
ratio = torch.tensor([[2.0, 2.0, 1.0], [0.25, 0.25, 1.0]])
log_probs = (old + ratio.log()).requires_grad_()
frozen, estimated = old.clone().requires_grad_(), advantages.clone().requires_grad_()
ppo_policy_loss(log_probs, frozen, estimated, mask, epsilon=0.5).loss.backward()
check.close(
    log_probs.grad,
    [[0.0, 2 / 4, 0.0], [-0.25 / 4, 0.0, 0.0]],
    because="−ρ·A/4 where the minimum takes what is not clipped, and exactly 0 where it takes what is.",
)
check.that(
    all(x.grad is None or not x.grad.any() for x in (frozen, estimated)),
    "A gradient reaches the old log-probabilities or the advantages. Both are numbers: detach them.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("alignment", "ppo")
rng = inputs("policy_gradient")
old, step, advantages = torch.randn(3, 5, 8, generator=rng, dtype=torch.float64).to(device)
old = old - 2.0
mask = (torch.rand(5, 8, generator=rng) < 0.7).to(device)
mask[0, :4], mask[4, 3:] = True, False
# One of each case, whatever is drawn: far out on both sides, with both signs.
step[0, :4] = torch.tensor([1.5, 1.5, -1.5, -1.5])
advantages[0, :4] = torch.tensor([2.0, -2.0, 2.0, -2.0])
number = mask.sum()


def slopes(log_probs):
    """The gradients that the answer's loss has by its first three arguments."""
    leaves = [x.clone().requires_grad_() for x in (log_probs, old, advantages)]
    ppo_policy_loss(*leaves, mask, 0.25)[0].backward()
    return [leaf.grad for leaf in leaves]


first, *_ = slopes(old)
check.that(
    first is not None, "No gradient reaches the log-probabilities of the policy that learns."
)
check.close(
    first,
    torch.where(mask, -advantages / number, 0.0),
    because="Where new and old are the same the gradient is the policy gradient, −A divided by the number of real "
    "tokens, and 0 at tokens that do not count.",
)
log_probs = old + 0.5 * step
ratio = (0.5 * step).exp()
flat = torch.where(advantages > 0, ratio > 1.25, ratio < 0.75)
moved, of_old, of_advantages = slopes(log_probs)
check.that(
    moved is not None, "No gradient reaches the log-probabilities of the policy that learns."
)
check.that(
    not bool(moved[flat].any()),
    "A gradient reaches a token that is clipped: beyond 1 + ε with a positive advantage, or below 1 − ε with a "
    "negative one, it is exactly 0.",
)
check.close(
    moved,
    torch.where(mask & ~flat, -ratio * advantages / number, 0.0),
    because="Elsewhere it is −ρ·A divided by the number of real tokens: also out of bounds, where the token has gone "
    "the wrong way.",
)
for gradient, name in ((of_old, "old log-probabilities"), (of_advantages, "advantages")):
    check.that(
        gradient is None or not bool(gradient.any()),
        f"A gradient reaches the {name}. They are numbers: detach them.",
    )
# A policy that ran away: at tokens that count, and at padding.
for dtype in (torch.float32, torch.float64):
    for size in (200.0, 1e4):
        far = torch.tensor([[size, size, -size, -size, size, 0.0]], dtype=dtype, device=device)
        signs = torch.tensor([[1.0, -1.0, 1.0, -1.0, -1.0, 3.0]], dtype=dtype, device=device)
        real = torch.tensor([[True, True, True, True, False, True]], device=device)
        new = far.clone().requires_grad_()
        loss, clip_fraction = ppo_policy_loss(new, torch.zeros_like(far), signs, real)
        right = theirs.ppo_policy_loss(far, torch.zeros_like(far), signs, real)
        check.close(
            loss,
            right.loss,
            because="A log-ratio above 20 counts as 20: otherwise exp overflows. Below there is no limit.",
        )
        check.close(
            clip_fraction,
            2 / 5,
            because="Far out, the two tokens that went the right way are clipped.",
        )
        loss.backward()
        check.that(new.grad is not None, "No gradient reaches the log-probabilities.")
        check.close(
            new.grad,
            [[0.0, 0.0, 0.0, 0.0, 0.0, -3 / 5]],
            because="exp overflows, and 0·∞ in the backward pass is NaN: limit the log-ratio before exp.",
        )
### END HIDDEN TESTS

# %% [markdown]
# ## 6 · The value loss
#
# The value head, one number for each state, learns by regression: its values should be the returns of part 3. PPO's
# implementations clip here as well (OpenAI Baselines, Dhariwal et al. 2017; the PPO paper does not have it): a value
# that has moved from what it was when the responses were sampled by more than $c$ is compared as if it had moved by
# $c$, and the *worse* of the two errors counts,
#
# $$L^V = \frac12\, \mathbb E_t\Big[\max\big((V_t - \hat R_t)^2,\; (V_t^{\text{clip}} - \hat R_t)^2\big)\Big], \qquad
# V_t^{\text{clip}} = V_t^{\text{old}} + \mathrm{clip}(V_t - V_t^{\text{old}}, -c, c).$$
#
# A pessimist again, and this time the maximum is the pessimist, for this is a loss already. Where the clipped error is
# the larger one the gradient is 0: the value has moved far enough towards the return for one batch. It makes the head
# slow and sure; whether it helps is open (Andrychowicz et al. 2021 found no benefit, in simulated robots).
# The half makes the derivative $V_t - \hat R_t$.


# %% solution="value"
def value_loss(
    values: Float[Tensor, "batch length"],
    old_values: Float[Tensor, "batch length"],
    returns: Float[Tensor, "batch length"],
    mask: Bool[Tensor, "batch length"],
    clip_range: float = 0.2,
) -> Float[Tensor, ""]:
    """Half the clipped squared error of the values, as one mean over the real tokens of the batch.

    Args:
        values: of the value head that learns.
        old_values: what it said when the responses were sampled. No gradient reaches them.
        returns: what the values should have been; nor does it reach these.
        mask: ``True`` at the tokens of the response. Where it is ``False`` the other three may be any finite numbers.
        clip_range: c, how far a value may move from the old one. ``math.inf`` switches clipping off.

    Returns:
        ½ of the mean of max((V − R)², (V_clip − R)²), with V_clip = V_old + clip(V − V_old, −c, c).

    Raises:
        ValueError: the four are not of one shape (the message says ``shape``), no token counts (it says
            ``empty``), or ``clip_range`` is not positive (it says ``clip_range``).
    """
    ### BEGIN SOLUTION
    require_one_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    if not mask.any():
        raise ValueError("the mask is empty: no token counts")
    if not clip_range > 0:
        raise ValueError(f"clip_range must be positive, got {clip_range}")
    old_values, returns = old_values.detach(), returns.detach()
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    errors = torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    return errors[mask].mean() / 2
    ### END SOLUTION


# %% [markdown]
# By hand, with $c = \frac12$: the value has moved from 1 to 3. Clipped it is $1\frac12$. If the return is 4 the errors
# are 1 and $6\frac14$, the clipped one is larger, and the gradient is 0. If it is 0 they are 9 and $2\frac14$.

# %% test="value_values" points=2
values = torch.tensor([[3.0, 3.0, 70.0]], requires_grad=True)
old_values = torch.tensor([[1.0, 1.0, 1.0]], requires_grad=True)
returns = torch.tensor([[4.0, 0.0, 0.0]], requires_grad=True)
mask = torch.tensor([[True, True, False]])
loss = value_loss(values, old_values, returns, mask, clip_range=0.5)
check.close(
    loss,
    (6.25 + 9.0) / 2 / 2,
    because="The larger error of each token: 6.25 and 9. Their mean over the two real tokens, and half of it.",
)
loss.backward()
check.close(
    values.grad,
    [[0.0, 3.0 / 2, 0.0]],
    because="0 where the clipped error is the larger one, (V − R)/2 at the other of the two real tokens.",
)
check.that(
    all(x.grad is None or not x.grad.any() for x in (old_values, returns)),
    "A gradient reaches the old values or the returns. Both are numbers: detach them.",
)
for bad, c, says in [
    (mask[:, :1], 0.5, "shape"),
    (mask & ~mask, 0.5, "empty"),
    (mask, 0.0, "clip_range"),
]:
    check.raises(
        ValueError,
        value_loss,
        values,
        old_values,
        returns,
        bad,
        c,
        mentions=says,
        because="One shape, a token that counts, and a positive range: say shape, empty or clip_range.",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "ppo")
rng = inputs("value_values")
cases = []
for shape, c in [((3, 5), 0.2), ((4, 7), 0.5), ((1, 6), 1.0), ((5, 3), math.inf)]:
    three = torch.randn(3, *shape[::-1], generator=rng, dtype=torch.float64).to(device)
    old_values, move, returns = (x.T for x in three)
    mask = (torch.rand(shape, generator=rng) < 0.6).to(device)
    mask[0, 0], mask[-1, 1:] = True, False
    returns = returns * torch.arange(1, shape[0] + 1, device=device)[:, None]
    cases.append((old_values + move, old_values, returns, mask, c))
found = each(value_loss, cases)
for case, loss in zip(cases, found, strict=True):
    check.close(
        loss,
        theirs.value_loss(*case),
        because="Half the mean, over all real tokens of the batch at once, of the larger of (V − R)² and "
        "(V_clip − R)².",
    )
values, old_values, returns, mask, _ = cases[3]
check.close(
    found[3],
    ((values - returns) ** 2)[mask].mean() / 2,
    because="With an infinite range nothing is clipped: half the mean squared error.",
)
values, old_values, returns, mask, c = cases[1]
away = 50.0 * torch.randn(4, 7, generator=rng, dtype=torch.float64).to(device)
junk, plain = each(
    value_loss,
    [
        (
            torch.where(mask, values, away),
            torch.where(mask, old_values, -away),
            torch.where(mask, returns, 2 * away),
            mask,
            c,
        ),
        (values, old_values, returns, mask),
    ],
)
check.close(junk, found[1], because="A token that does not count changed the loss.")
check.close(
    plain,
    theirs.value_loss(values, old_values, returns, mask, 0.2),
    because="Without being given the range is 0.2.",
)
leaves = [x.clone().requires_grad_() for x in (values, old_values, returns)]
value_loss(*leaves, mask, c).backward()
right = values.clone().requires_grad_()
theirs.value_loss(right, old_values, returns, mask, c).backward()
check.that(leaves[0].grad is not None, "No gradient reaches the values.")
check.close(
    leaves[0].grad,
    right.grad,
    because="(V − R) by the number of real tokens, and 0 where the clipped error is the larger one.",
)
for leaf, name in zip(leaves[1:], ("old values", "returns"), strict=True):
    check.that(
        leaf.grad is None or not bool(leaf.grad.any()),
        f"A gradient reaches the {name}. They are numbers: detach them.",
    )
for bad, says in [
    ((values[:1], old_values, returns, mask, c), "shape"),
    ((values, old_values[:, :1], returns, mask, c), "shape"),
    ((values, old_values, returns[:, :1], mask, c), "shape"),
    ((values, old_values, returns, mask[:, :1], c), "shape"),
    ((values, old_values, returns, mask & ~mask, c), "empty"),
    ((values, old_values, returns, mask, -0.2), "clip_range"),
    ((values, old_values, returns, mask, math.nan), "clip_range"),
]:
    check.raises(
        ValueError,
        value_loss,
        *bad,
        mentions=says,
        because="All four of one shape (say shape), a token that counts (say empty), a positive range (say "
        "clip_range).",
    )
### END HIDDEN TESTS

# %% [markdown] written="ppo_why" points=2
# **In your own words.** A colleague trains with $\beta = 0$. The reward model's score rises all the time and they
# report a success; people who read the responses find that, since some point in the middle, these have become worse.
# How can both be true? What did the KL term have to do with it, and what would it have cost to keep it? They also
# whiten the *rewards* with their mean taken away, and find that responses have become shorter, or longer, than before:
# why, and on what does it depend which? Last, they sample once and take 200 steps on that sample. Which part of the
# loss keeps the policy from running away, and what will the clip fraction do? (6 to 10 sentences.)

# %% [markdown]
# ## Experiment: which estimate of the divergence?
#
# A policy over fifty tokens, and references at growing distance from it. Nothing is sampled: mean and deviation of
# each estimate are sums over all tokens, so what you see is exact. It takes a second, and no GPU would be faster.
#
# Before you run it: of an estimate that is unbiased, how many samples does it take to know a divergence of 0.01 to
# within a tenth?

# %% experiment=true
import matplotlib.pyplot as plt

from lab import figures

SEED, TOKENS = 0, 50

rng = lab.generator(f"estimates {SEED}")
policy = torch.randn(TOKENS, generator=rng).double().log_softmax(-1)
direction = torch.randn(TOKENS, generator=rng).double()
divergences, biases, deviations = [], [], []
for distance in torch.logspace(-2, 0.5, 26).double():
    estimates = torch.stack(
        list(kl_estimators(policy, (policy + distance * direction).log_softmax(-1)))
    )
    means = (policy.exp() * estimates).sum(-1)
    scatter = (policy.exp() * (estimates - means[:, None]) ** 2).sum(-1).sqrt()
    divergences.append(means[0].item())  # k1 is unbiased by definition
    biases.append((means / means[0] - 1).tolist())
    deviations.append((scatter / means[0]).tolist())

figures.use_style()
fig, (ax_bias, ax_scatter) = plt.subplots(1, 2, figsize=(9, 3.4))
for name, bias, deviation, style in zip(
    KLEstimates._fields,
    zip(*biases, strict=True),
    zip(*deviations, strict=True),
    ("-", "--", ":"),
    strict=True,
):
    ax_bias.semilogx(divergences, bias, style, label=name)
    ax_scatter.loglog(divergences, deviation, style, label=name)
ax_bias.set(xlabel="KL divergence, nats", title="bias, as a part of the divergence")
ax_scatter.set(xlabel="KL divergence, nats", title="deviation of one sample, in divergences")
ax_bias.legend(fontsize=9)
near, far = deviations[0], deviations[-1]
figures.show(
    fig,
    alt="Three estimates of a KL divergence. The bias of k1 and k3 is 0 at every distance; that of k2 is "
    f"{biases[0][1]:+.1%} at {divergences[0]:.1e} nats and {biases[-1][1]:+.0%} at {divergences[-1]:.2g} nats. "
    f"One sample scatters, near the reference, by {near[0]:.0f} divergences for k1, {near[1]:.1f} for k2 and "
    f"{near[2]:.1f} for k3; at the far end by {far[0]:.1f}, {far[1]:.1f} and {far[2]:.1f}.",
)

# The variance of a mean of n samples is that of one, divided by n.
near = min(range(len(divergences)), key=lambda i: abs(divergences[i] - 0.01))
print(
    f"To know a divergence of {divergences[near]:.3f} nats to within a tenth (one deviation) it takes"
)
for name, deviation in zip(KLEstimates._fields, deviations[near], strict=True):
    print(f"  {round((deviation / 0.1) ** 2):7,} samples of {name}")

# %% [markdown]
# Near the reference one sample of $k_1$ is off by many times what it measures, and $k_3$ by about as much as it
# measures, with no bias at all. Far away little is left of the advantage. In part 2 it is nevertheless $k_1$ that is
# charged: not because it is a good estimate, but because its sum over a response is the log-ratio of Eq. 2. To *watch*
# a small divergence, take $k_3$.

# %% [markdown]
# ## Experiment: a reward that is only learnt
#
# Now all pieces together. `lab.instructions` is a small world in which the truth is known: people ask where somebody
# lives, what the opposite of a word is, what a list begins with. The checkpoint `instruct` is a small language model
# after supervised fine-tuning, which answers such questions: rightly, wrongly, or by saying that it does not know, in
# many styles. What a response is worth to the people of this world is the *gold reward*: a right answer is worth most,
# a courtesy or two are welcome, more of them tire, hesitations and superfluous words cost.
#
# Training never sees it. It sees people's *rankings* of four responses to each of a few hundred prompts, noise
# included. A reward model learns from these, and PPO raises what the reward model says. As in Gao, Schulman and
# Hilton (2022) the gold reward is only watched.
#
# First the reward model: a copy of the language model with a number instead of logits at each position, read at the
# last token. (How it is built and tested is the exercise on the reward model.) Here it is small and learns long from
# little, on purpose.

# %% experiment=true
import copy

from tqdm.auto import trange

from lab import checkpoints, training
from lab import instructions as world

PROMPTS, READ, STEPS, BATCH = (1000, 600, 200, 256) if device.type == "cuda" else (300, 200, 60, 64)
BETAS, RESPONSES, SEED = (0.02, 1.0), 4, 0

start = checkpoints.load("instruct").model.to(device)


class Scorer(torch.nn.Module):
    """A language model that gives a number at each position, of everything up to there. At first all are 0."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = copy.deepcopy(body)
        self.head = torch.nn.Linear(body.norm.normalized_shape[0], 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch length), as the tokens."""
        return self.head(self.body.states(tokens)).squeeze(-1)


def as_texts(asked: list, said: list) -> world.Texts:
    """Conversations on the device that computes."""
    return world.Texts(*(x.to(device) for x in world.texts(asked, said)))


def scores_of(model: Scorer, tokens: Tensor, mask: Tensor) -> Tensor:
    """One number for each text: that at its last token."""
    last = mask.sum(dim=1, keepdim=True) - 1
    return model(tokens).gather(1, last).squeeze(1)


class Compared(NamedTuple):
    """Responses of the start to some prompts, ``RESPONSES`` each, and how people rank them."""

    texts: world.Texts  # each (prompts · responses, length)
    ranks: Tensor  # (prompts, responses), 0 for the best
    gold: Tensor  # (prompts, responses)


def compared(split: str, prompts: int, rng: torch.Generator) -> Compared:
    """Has the start answer, and people rank."""
    asked = [i for i in world.instructions(split, prompts, rng) for _ in range(RESPONSES)]
    said = world.respond(start, asked, rng)
    worth = [world.gold(i, words) for i, words in zip(asked, said, strict=True)]
    gold = torch.tensor(worth).view(prompts, RESPONSES)
    return Compared(as_texts(asked, said), world.rank(gold, rng).to(device), gold.to(device))


one, other = torch.triu_indices(RESPONSES, RESPONSES, offset=1, device=device)
train_set = compared("comparisons", PROMPTS, lab.generator(f"comparisons {SEED}"))
held_out = compared("test", 250, lab.generator("held-out comparisons"))


def ranking_loss(model: Scorer, some: Tensor) -> Tensor:
    """Bradley and Terry's, over all pairs of responses of these prompts."""
    tokens, mask = (
        x.view(PROMPTS, RESPONSES, -1)[some].flatten(0, 1)
        for x in (train_set.texts.tokens, train_set.texts.mask)
    )
    scores, ranks = scores_of(model, tokens, mask).view(-1, RESPONSES), train_set.ranks[some]
    first_preferred = (ranks[:, other] - ranks[:, one]).sign()
    return -F.logsigmoid(first_preferred * (scores[:, one] - scores[:, other])).mean()


def accuracy(scores: Tensor) -> float:
    """The share of the held-out pairs that are in people's order; equal scores count one half."""
    first_preferred = (held_out.ranks[:, other] - held_out.ranks[:, one]).sign()
    return ((first_preferred * (scores[:, one] - scores[:, other])).sign() + 1).mean().item() / 2


torch.manual_seed(SEED)
reward_model = Scorer(start).to(device)
training.train(
    reward_model,
    lambda rng: torch.randint(PROMPTS, (16,), generator=rng).to(device),
    ranking_loss,
    READ,
    generator=lab.generator(f"rankings {SEED}"),
    label="reward model",
)
with torch.no_grad():
    found = scores_of(reward_model, held_out.texts.tokens, held_out.texts.mask)
level = found.mean().item()  # zero is what the start's responses get
print(
    f"Agreement with people's rankings that were held out: {accuracy(found.view(-1, RESPONSES)):.1%}"
)
print(f"The gold reward itself, for people are noisy:        {accuracy(held_out.gold):.1%}")

# %% [markdown]
# Now PPO, with your functions. Each step asks questions, has the policy answer them, scores the answers, works out
# rewards, advantages and returns, and then takes four steps of learning on that one sample. The value head
# is a `Scorer` too, and begins as a copy of the reward model, as InstructGPT's did (Ouyang et al. 2022, §3.5).
#
# Two runs that differ in nothing but $\beta$. The smaller is InstructGPT's, though that says little: rewards have other
# scales here. Together they take about a minute; on a GPU a larger preset runs.
#
# Before you run it: will the gold reward rise, fall, or both? And in which of the two runs will it be higher in the
# end?

# %% experiment=true
EPOCHS, SHOWN, LOOK = 4, 5, 5


class Note(NamedTuple):
    """What is written down before each step, means over the sample."""

    score: float  # of the reward model, 0 for the start
    gold: float
    divergence: float  # of whole responses from the start, by k1
    by_k3: float  # the same by k3
    clipped: float  # clip fraction in the last of the four steps of learning
    length: float  # tokens of a response


def token_log_probs(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """Of each token given those before it, at its own position: here is the shift. The first has none, and gets 0."""
    log_probs = model(tokens)[:, :-1].log_softmax(-1)
    return F.pad(log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1), (1, 0))


def values_before(model: Scorer, tokens: Tensor) -> Tensor:
    """The value of the state before each token, at the token's position."""
    return F.pad(model(tokens)[:, :-1], (1, 0))


def learn(
    policy: torch.nn.Module,
    critic: Scorer,
    optimizer: torch.optim.Optimizer,
    texts: world.Texts,
    beta: float,
) -> tuple[Tensor, KLEstimates, Tensor]:
    """Some steps of learning on one sample; returns scores, estimates for its tokens, and the last clip fraction."""
    tokens, mask, response = texts
    with torch.no_grad():
        old, ref = token_log_probs(policy, tokens), token_log_probs(start, tokens)
        old_values = values_before(critic, tokens)
        scores = scores_of(reward_model, tokens, mask) - level
    rewards = kl_shaped_rewards(scores, old, ref, response, beta)
    advantages, returns = gae(rewards, old_values, response)
    advantages = whiten(advantages, response)
    for _ in range(EPOCHS):
        policy_loss, clip_fraction = ppo_policy_loss(
            token_log_probs(policy, tokens), old, advantages, response
        )
        loss_of_values = value_loss(values_before(critic, tokens), old_values, returns, response)
        optimizer.zero_grad()
        (policy_loss + 0.5 * loss_of_values).backward()
        for model in (policy, critic):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return scores, kl_estimators(old, ref), clip_fraction


def ppo(beta: float) -> tuple[list[Note], list[torch.nn.Module]]:
    """What was noted, and copies of the policy every few steps, the start first."""
    rng = lab.generator(f"ppo {SEED}")
    policy, critic = copy.deepcopy(start), copy.deepcopy(reward_model)
    optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], lr=5e-4)
    notes, policies = [], []
    for step in trange(STEPS, desc=f"PPO, β = {beta}"):
        if step % LOOK == 0:
            policies.append(copy.deepcopy(policy))
        asked = world.instructions("prompts", BATCH, rng)
        said = world.respond(policy, asked, rng)
        texts = as_texts(asked, said)
        scores, (k1, _, k3), clip_fraction = learn(policy, critic, optimizer, texts, beta)
        gold = sum(world.gold(i, words) for i, words in zip(asked, said, strict=True)) / BATCH
        # The divergence of whole responses is the sum of those of their tokens, on average over what is said.
        k1, k3, length = ((x * texts.response).sum() / BATCH for x in (k1, k3, 1.0))
        means = (scores.mean(), gold, k1, k3, clip_fraction, length)
        notes.append(Note(*(float(x) for x in means)))
    return notes, [*policies, policy]


runs = {beta: ppo(beta) for beta in BETAS}

# %% [markdown]
# What rose, what fell, and how far did the policy go? Thin lines are single batches, thick ones means of nearby
# steps.


# %% experiment=true
def smooth(values: list[float], width: int = 7) -> list[float]:
    """Means of so many neighbours; at the beginning of fewer, so that the first value is that of the start."""
    halves = [min(width // 2, i) for i in range(len(values))]
    windows = [values[i - half : i + half + 1] for i, half in enumerate(halves)]
    return [sum(window) / len(window) for window in windows]


curves = {
    beta: {field: smooth([getattr(note, field) for note in notes]) for field in Note._fields}
    for beta, (notes, _) in runs.items()
}
peaks = {beta: max(range(STEPS), key=curves[beta]["gold"].__getitem__) for beta in BETAS}

fig, axes = plt.subplots(1, 4, figsize=(12, 3.2), width_ratios=[1, 1, 1.1, 0.9])
for ax, beta in zip(axes[:2], BETAS, strict=True):
    for i, (field, label) in enumerate([("score", "reward model"), ("gold", "gold reward")]):
        ax.plot([getattr(note, field) for note in runs[beta][0]], color=f"C{i}", lw=0.7, alpha=0.5)
        ax.plot(curves[beta][field], "-" if i == 0 else "--", color=f"C{i}", label=label)
    ax.axvline(peaks[beta], color="grey", linestyle=":", label="best gold")
    ax.set(xlabel="step", title=f"β = {beta}")
low, high = zip(*(ax.get_ylim() for ax in axes[:2]), strict=True)
for ax in axes[:2]:
    ax.set_ylim(min(low), max(high))
axes[1].legend(fontsize=8, loc="lower right")
for i, beta in enumerate(BETAS, start=2):
    curve, style = curves[beta], "-" if i == 2 else "--"
    axes[2].plot(curve["divergence"], style, color=f"C{i}", label=f"β = {beta}, k1")
    axes[2].plot(curve["by_k3"], ":", color=f"C{i}", lw=1.2, label=f"β = {beta}, k3")
    axes[3].plot(curve["divergence"], curve["gold"], style, color=f"C{i}")
axes[2].set(xlabel="step", title="KL to the start, nats")
axes[3].set(xlabel="KL to the start (k1), nats", title="gold reward")
axes[2].set_ylim(0, 1.4 * axes[2].get_ylim()[1])  # room for the legend
axes[2].legend(fontsize=8, ncols=2, loc="upper left")
says = []
for beta in BETAS:
    curve, peak = curves[beta], peaks[beta]
    first, best, last = (
        {field: f"{values[at]:.2f}" for field, values in curve.items()} for at in (0, peak, -1)
    )
    says.append(
        f"β = {beta}: the reward model's score goes from {first['score']} to {last['score']}; the gold reward from "
        f"{first['gold']} to its best, {best['gold']}, at step {peak}, and is {last['gold']} in the end; the KL "
        f"divergence from the start, by k1, is {best['divergence']} nats at the best and {last['divergence']} in the "
        f"end, and by k3 {best['by_k3']} and {last['by_k3']}; the clip fraction goes from {first['clipped']} to "
        f"{last['clipped']}, the length from {first['length']} to {last['length']} tokens."
    )
figures.show(fig, alt=f"PPO over {STEPS} steps, means over {BATCH} responses. " + " ".join(says))

# %% [markdown]
# The same questions, answered by the start, by the policy nearest to the best gold reward, and by the last one; after
# each answer its score and its gold reward.

# %% experiment=true
asked = world.instructions("prompts", SHOWN, lab.generator("questions to look at"))
for beta in BETAS:
    policies = runs[beta][1]
    stages = {"start": 0, "best gold": round(peaks[beta] / LOOK), "end": len(policies) - 1}
    print(f"\nβ = {beta}")
    answers = {
        stage: world.respond(policies[i], asked, lab.generator("answers to look at"))
        for stage, i in stages.items()
    }
    for i, instruction in enumerate(asked):
        print("  " + " ".join(instruction.question), f"({instruction.answer})")
        for stage, said in answers.items():
            texts = as_texts([instruction], [said[i]])
            with torch.no_grad():
                score = scores_of(reward_model, texts.tokens, texts.mask).item() - level
            worth = world.gold(instruction, said[i])
            print(f"    {stage:9}  score {score:+5.2f}  gold {worth:+5.2f}  " + " ".join(said[i]))

# %% [markdown]
# In both runs the score rises; that is what PPO does. With the small $\beta$ the gold reward rises with it at first,
# and then turns, while the score goes on: the policy has found what the reward model praises and people do not. Among
# the last answers are some of a kind that hardly occurs at the start, so that hardly a ranking told the reward model
# what they are worth. It learnt where the start goes, and is being read where the start never went. Gao, Schulman and
# Hilton (2022) measured such curves with far larger models, and found the same shape.
#
# With the larger $\beta$ the score ends lower and the gold reward higher. The penalty knows nothing of what is good. It
# keeps the policy where the reward model's word is worth something. (Gao, Schulman and Hilton report that in their
# setting the penalty gave no better gold reward at a given divergence than stopping early would have. Here, in the
# fourth panel, the gold reward of the larger $\beta$ is the higher one: what a penalty buys depends on the setting.)
#
# The dotted lines are $k_3$. Near the start they follow $k_1$; far from it the two part, for a token that the policy
# has all but given up, and says once more, makes $e^{-u}$ huge.
#
# Without the gold reward you would see two rising curves, and the smaller $\beta$ would look like the better choice.
# What could be seen from the inside? The divergence, and the answers themselves. Change `SEED`, or give the reward
# model more rankings (`PROMPTS`) or fewer steps (`READ`), and see how far the policy can go before the gold reward
# turns.
