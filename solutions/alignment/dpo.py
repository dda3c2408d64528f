# %% [markdown]
# # DPO
#
# Reinforcement learning from human feedback trains a reward model, then a policy that the reward model praises, held
# near where it began by a KL penalty. Rafailov et al. (2023) noticed that the best policy of that second problem can be
# written down, that this formula can be solved for the reward, and that the reward can then be left out: the policy
# itself is fitted to the comparisons, by a loss as simple as a classifier's. *Direct preference optimisation* has no
# reward model, no sampling and no reinforcement learning. You derive it, build it, and check it where the answer is
# known exactly.
#
# **You build** log-probabilities of responses, the optimum of the KL-constrained problem, the DPO loss and its implicit
# reward, its accuracy and margin, the exact loss of a small world
# · **Minutes** 75 · **Points** 18 · **Difficulty** ●●○ ·
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
from jaxtyping import Bool, Float, Int
from torch import Tensor

import lab
from lab import check

device = lab.device()

# %% [markdown]
# ## 1 · How probable is a response?
#
# DPO compares whole responses, so it needs the probability of a whole response $y$ to a prompt $x$. The chain rule:
#
# $$\log \pi(y \mid x) = \sum_{t} \log \pi(y_t \mid x, y_{<t}).$$
#
# A *sum* over the response's tokens. A mean would be the logarithm of a geometric mean, which is no probability of
# anything, and what is derived below would not hold. The prompt's tokens are conditions and not counted. As ever
# in a causal model the logits at position $t$ are for token $t + 1$:
#
# ```
# tokens    What  is  2+2  ?  four  .  <pad>
# mask      .     .   .    .  ✓     ✓  .
# logits used at           3  4
# ```


# %% solution="log_probs"
def sequence_log_probs(
    logits: Float[Tensor, "batch length vocab"],
    tokens: Int[Tensor, "batch length"],
    mask: Bool[Tensor, "batch length"],
) -> Float[Tensor, "batch"]:
    """The log-probability of each response given its prompt, in nats: a sum over the response's tokens.

    Args:
        logits: those at position ``t`` are for token ``t + 1``. Not normalised.
        tokens: prompt, response and padding. A token that is not counted may be any number, also −100.
        mask: ``True`` at the tokens of the response. What stands at the first position means nothing, for no logits
            predict that token.

    Returns:
        One number for each sequence. A sequence without a counted token has 0, the logarithm of 1.

    Raises:
        ValueError: ``tokens`` or ``mask`` is not ``(batch length)`` as ``logits`` say (the message says which).
    """
    ### BEGIN SOLUTION
    if tokens.shape != logits.shape[:-1]:
        raise ValueError(f"tokens must be {tuple(logits.shape[:-1])}, got {tuple(tokens.shape)}")
    if mask.shape != tokens.shape:
        raise ValueError(f"mask must be {tuple(tokens.shape)}, got {tuple(mask.shape)}")
    counted = mask[:, 1:]
    targets = tokens[:, 1:] * counted  # what is not counted need not be an id
    log_probs = logits[:, :-1].log_softmax(dim=-1)
    of_tokens = log_probs.take_along_dim(targets[..., None], dim=-1).squeeze(-1)  # (batch length-1)
    return of_tokens.masked_fill(~counted, 0.0).sum(dim=1)
    ### END SOLUTION


# %% [markdown]
# By hand: with two tokens and the logits $(\ln 3, 0)$ everywhere, token 0 has probability $\frac34$, token 1 $\frac14$.

# %% test="log_probs_sum" points=3
logits = torch.tensor([math.log(3), 0.0]).expand(2, 4, 2)
tokens = torch.tensor([[0, 1, 0, 1], [1, 1, 0, -100]])
mask = torch.tensor([[False, False, True, True], [False, False, True, False]])
check.close(
    sequence_log_probs(logits, tokens, mask),
    [math.log(3 / 4) + math.log(1 / 4), math.log(3 / 4)],
    because="The responses are 0, 1 and 0: the sum over their tokens. No prompt, no padding, and no mean.",
)
# Logits that are sure of the token that follows.
text = torch.tensor([[2, 0, 1, 1]])
sure = 50.0 * F.one_hot(torch.tensor([[0, 1, 1, 2]]), 3).float()
check.close(
    sequence_log_probs(sure, text, torch.tensor([[False, True, True, True]])),
    [0.0],
    because="These logits are sure of the next token: the logits at t belong to token t + 1.",
)
check.close(
    sequence_log_probs(sure, text, torch.zeros(1, 4, dtype=torch.bool)),
    [0.0],
    because="Nothing is counted: the log-probability is 0.",
)
check.raises(
    ValueError,
    sequence_log_probs,
    sure,
    text,
    torch.ones(4, dtype=torch.bool),
    mentions="mask",
    because="A mask of another shape is bad input: say mask.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("alignment", "dpo")
rng = inputs("log_probs_sum")
for batch, length in [(1, 1), (1, 2), (3, 5), (4, 7)]:
    tokens = torch.randint(6, (batch, length), generator=rng).to(device)
    logits = torch.randn(6, length, batch, generator=rng, dtype=torch.float64).to(device)
    logits = 2.0 * logits.permute(2, 1, 0)
    mask = (torch.rand(batch, length, generator=rng) < 0.6).to(device)
    mask[:, -1] = True
    mask[0, 1:] = False
    expected = theirs.sequence_log_probs(logits, tokens, mask)
    check.close(
        sequence_log_probs(logits, tokens, mask),
        expected,
        because="The sum, over the tokens where the mask is True, of log softmax(logits at t)[token t + 1]; 0 if there "
        "is none.",
    )
    # What is not counted may be anything, the first token and the last logits included.
    odd, noisy, first = tokens.masked_fill(~mask, -100), logits.clone(), mask.clone()
    odd[:, 0] = 10_000
    noisy[:, -1] = 40.0 * noisy[:, -1] + torch.arange(6, device=device)
    noisy[:, :-1][~mask[:, 1:]] = -25.0
    first[:, 0] = ~first[:, 0]
    check.close(
        sequence_log_probs(noisy, odd, first),
        expected,
        because="A token that is not counted changed the sum, or its id was looked up. The first token is predicted by "
        "nobody, and the last logits predict nothing.",
    )
own, other = (logits.detach().clone().requires_grad_() for _ in range(2))
pull = torch.randn(4, generator=rng, dtype=torch.float64).to(device)
(sequence_log_probs(own, tokens, mask) * pull).sum().backward()
(theirs.sequence_log_probs(other, tokens, mask) * pull).sum().backward()
check.that(own.grad is not None, "No gradient reaches the logits: is something detached?")
check.close(own.grad, other.grad, because="The gradient of the logits is off.")
check.close(
    sequence_log_probs(1e3 * logits, tokens, mask),
    theirs.sequence_log_probs(1e3 * logits, tokens, mask),
    because="Large logits must not give an infinity: log_softmax, not the logarithm of a softmax.",
)
for bad in (tokens[:, :6], tokens[:1], tokens[0]):
    check.raises(
        ValueError,
        sequence_log_probs,
        logits,
        bad,
        mask,
        mentions="tokens",
        because="tokens must have the shape of the logits without the vocabulary: say tokens.",
    )
    check.raises(
        ValueError,
        sequence_log_probs,
        logits,
        tokens,
        bad > 2,
        mentions="mask",
        because="The mask must have the shape of the tokens, and nothing is broadcast: say mask.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · The optimum, in closed form
#
# What does reinforcement learning from human feedback look for? For one prompt $x$, with a reward $r(y)$ and a
# reference $\pi_{\text{ref}}$, the policy before, it maximises (Ziegler et al. 2019; Ouyang et al. 2022, Eq. 2)
#
# $$J(\pi) = \sum_y \pi(y)\, r(y) - \beta \sum_y \pi(y) \log\frac{\pi(y)}{\pi_{\text{ref}}(y)}
# = \mathbb E_\pi[r] - \beta\, \mathrm{KL}(\pi \,\|\, \pi_{\text{ref}}).$$
#
# Write $r = \beta \log e^{r/\beta}$ and draw everything into one logarithm:
#
# $$J(\pi) = -\beta \sum_y \pi(y) \log \frac{\pi(y)}{\pi_{\text{ref}}(y)\, e^{r(y)/\beta}}.$$
#
# The denominator is a distribution but for its sum, $Z = \sum_y \pi_{\text{ref}}(y)\, e^{r(y)/\beta}$. Call
#
# $$\pi^*(y) = \frac1Z\, \pi_{\text{ref}}(y)\, e^{r(y)/\beta}, \qquad\text{then}\qquad
# J(\pi) = \beta \log Z - \beta\, \mathrm{KL}(\pi \,\|\, \pi^*).$$
#
# The first term does not depend on $\pi$, and a KL divergence is at least 0, and 0 only for equal distributions. So
# $\pi^*$ is *the* optimum, and $J(\pi^*) = \beta \log Z$. A small $\beta$ makes it sharp, a large one keeps it at the
# reference. What the reference gives probability 0 keeps 0, whatever its reward.
#
# Nobody can compute $Z$ for a language model: it sums over all texts. For a handful of responses, a *bandit*, we can.


# %% solution="optimum"
def optimal_log_probs(
    reference_log_probs: Float[Tensor, "... responses"],
    rewards: Float[Tensor, "... responses"],
    beta: float,
) -> Float[Tensor, "... responses"]:
    """Logarithms of π*(y) = π_ref(y)·exp(r(y)/β)/Z (Rafailov et al. 2023, Eq. 4), in nats, over the last axis.

    Args:
        reference_log_probs: normalised; −∞ where the reference never says a response, which π* then never says either.
        rewards: finite, of any size: exp(r/β) may overflow, the result does not.
        beta: the weight of the KL divergence.

    Raises:
        ValueError: ``beta`` is not positive (the message says ``beta``).
    """
    ### BEGIN SOLUTION
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    return (reference_log_probs + rewards / beta).log_softmax(dim=-1)
    ### END SOLUTION


def kl_objective(
    log_probs: Float[Tensor, "... responses"],
    reference_log_probs: Float[Tensor, "... responses"],
    rewards: Float[Tensor, "... responses"],
    beta: float,
) -> Float[Tensor, "..."]:
    """J(π) = E_π[r] − β·KL(π ‖ π_ref), in closed form, a sum over the last axis.

    A response that the policy never says (−∞) adds nothing, also where the reference never says it.
    """
    ### BEGIN SOLUTION
    said = log_probs.exp()
    log_ratio = (log_probs - reference_log_probs).masked_fill(said == 0, 0.0)
    return (said * (rewards - beta * log_ratio)).sum(dim=-1)
    ### END SOLUTION


# %% [markdown]
# By hand: reference $(\frac12, \frac12)$, rewards $\beta \ln 3$ and 0. Then $\pi_{\text{ref}}\, e^{r/\beta}$ is
# $(\frac32, \frac12)$, $Z = 2$, $\pi^* = (\frac34, \frac14)$, and $J(\pi^*) = \beta \ln 2$.

# %% test="optimum_policy" points=2
half = torch.tensor([0.5, 0.5]).log()
check.close(
    optimal_log_probs(half, torch.tensor([2 * math.log(3), 0.0]), beta=2.0).exp(),
    [3 / 4, 1 / 4],
    because="π_ref·exp(r/β) is (3/2, 1/2), divided by Z = 2. Rewards are divided by β, not multiplied.",
)
check.raises(
    ValueError,
    optimal_log_probs,
    half,
    torch.zeros(2),
    0.0,
    mentions="beta",
    because="β = 0 has no such optimum: say beta.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("alignment", "dpo")
rng = inputs("optimum_policy")
for shape in [(1,), (5,), (3, 4), (2, 3, 6)]:
    base = torch.randn(shape, generator=rng, dtype=torch.float64).log_softmax(-1).to(device)
    rewards = 2.0 * torch.randn(shape, generator=rng, dtype=torch.float64).to(device)
    for beta in (0.3, 1.7):
        check.close(
            optimal_log_probs(base, rewards, beta),
            theirs.optimal_log_probs(base, rewards, beta),
            because="log π* = log π_ref + r/β − log Z, normalised over the last axis.",
        )
check.close(
    optimal_log_probs(base, 1e4 * rewards, 0.1),
    theirs.optimal_log_probs(base, 1e4 * rewards, 0.1),
    because="exp(r/β) overflows: stay with logarithms and use log_softmax or logsumexp.",
)
never = torch.tensor([0.25, 0.0, 0.75], dtype=torch.float64, device=device).log()
check.close(
    optimal_log_probs(never, torch.tensor([0.0, 9.0, 1.0], device=device).double(), 0.5).exp(),
    theirs.optimal_log_probs(
        never, torch.tensor([0.0, 9.0, 1.0], device=device).double(), 0.5
    ).exp(),
    because="What the reference never says, π* never says.",
)
for beta in (0.0, -1.0, math.nan):
    check.raises(
        ValueError, optimal_log_probs, base, rewards, beta, mentions="beta", because="Say beta."
    )
### END HIDDEN TESTS

# %% test="optimum_objective" points=2
half, three_to_one = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
check.close(
    kl_objective(three_to_one, half, torch.tensor([2 * math.log(3), 0.0]), 2.0),
    2 * math.log(2),
    because="At the optimum J is β·log Z = 2 ln 2: the expected reward less β times KL(π ‖ π_ref).",
)
check.close(
    kl_objective(half, half, torch.tensor([5.0, -1.0]), 2.0),
    2.0,
    because="At the reference the KL divergence is 0 and J is the expected reward.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("alignment", "dpo")
rng = inputs("optimum_objective")
for shape in [(1,), (5,), (3, 4), (2, 3, 6)]:
    policy, base = torch.randn(2, *shape, generator=rng, dtype=torch.float64).log_softmax(-1)
    policy, base = policy.to(device), base.to(device)
    rewards = torch.randn(shape, generator=rng, dtype=torch.float64).to(device)
    for beta in (0.3, 2.0):
        best = theirs.optimal_log_probs(base, rewards, beta)
        log_z = (base + rewards / beta).logsumexp(-1)
        gap = (policy.exp() * (policy - best)).sum(-1)
        check.close(
            kl_objective(policy, base, rewards, beta),
            beta * log_z - beta * gap,
            because="J = E_π[r] − β·KL(π ‖ π_ref): the KL divergence averages over π, is subtracted, and has the "
            "policy above and the reference below.",
        )
never, seldom = (
    torch.tensor(p, dtype=torch.float64, device=device).log()
    for p in ([0.5, 0.0, 0.5], [0.25, 0.0, 0.75])
)
also = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64, device=device).log()
rewards = torch.tensor([1.0, 5.0, -2.0], dtype=torch.float64, device=device)
for base in (seldom, also):
    check.close(
        kl_objective(never, base, rewards, 0.7),
        theirs.kl_objective(never, base, rewards, 0.7),
        because="0·log 0 is 0: a response that the policy never says adds nothing, not NaN.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · The loss
#
# Solve the optimum for the reward instead (Rafailov et al. 2023, Eq. 5):
#
# $$r(x, y) = \beta \log\frac{\pi^*(y \mid x)}{\pi_{\text{ref}}(y \mid x)} + \beta \log Z(x).$$
#
# Every reward is the log-ratio of its own best policy and the reference, up to a term that depends on the prompt alone.
# And preferences depend on *differences* of rewards of one prompt: in Bradley–Terry's
# $P(y_w \succ y_l) = \sigma(r_w - r_l)$ the term with $Z$, which nobody can compute, cancels. So put a trainable
# $\pi_\theta$ for $\pi^*$ and do what the reward model does, maximum likelihood (Eq. 7):
#
# $$\mathcal L_{\text{DPO}} = -\mathbb E\left[\log \sigma\left(
# \beta \log\frac{\pi_\theta(y_w \mid x)}{\pi_{\text{ref}}(y_w \mid x)} -
# \beta \log\frac{\pi_\theta(y_l \mid x)}{\pi_{\text{ref}}(y_l \mid x)}\right)\right].$$
#
# What stands for the reward is the *implicit reward*, $\hat r = \beta \log \frac{\pi_\theta}{\pi_{\text{ref}}}$. As
# there, the gradient of a pair is $\sigma(\hat r_l - \hat r_w)$, the weight of the wrong order, times
# $-\beta\,(\nabla \log \pi_\theta(y_w) - \nabla \log\pi_\theta(y_l))$.
#
# $\beta$ stands inside the sigmoid. Outside it would only scale the learning rate, and nothing would hold the policy
# near the reference. The reference is *frozen*: a copy of the policy as it was before, that gets no gradient. Before
# the first step the two are the same, every implicit reward is 0, and the loss is $\ln 2$.


# %% solution="loss"
def implicit_reward(
    policy_log_probs: Float[Tensor, "..."],
    reference_log_probs: Float[Tensor, "..."],
    beta: float = 0.1,
) -> Float[Tensor, "..."]:
    """β·log(π_θ(y|x)/π_ref(y|x)) of responses, from their log-probabilities (Rafailov et al. 2023, §4)."""
    ### BEGIN SOLUTION
    return beta * (policy_log_probs - reference_log_probs)
    ### END SOLUTION


def dpo_loss(
    policy_chosen: Float[Tensor, "batch"],
    policy_rejected: Float[Tensor, "batch"],
    reference_chosen: Float[Tensor, "batch"],
    reference_rejected: Float[Tensor, "batch"],
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    """The DPO loss (Rafailov et al. 2023, Eq. 7), a mean over the comparisons, in nats.

    Args:
        policy_chosen: log π_θ of the preferred responses, each a sum over its tokens.
        policy_rejected: the same of the others.
        reference_chosen: log π_ref of the preferred responses. The reference is frozen: no gradient reaches these two,
            also where they require one.
        reference_rejected: the same of the others.
        beta: the weight of the KL divergence, inside the sigmoid.

    Returns:
        One number, finite for finite input of any size.

    Raises:
        ValueError: the four are not of one shape (the message says ``shape``), there is no comparison (it says
            ``comparison``), or ``beta`` is not positive (it says ``beta``).
    """
    ### BEGIN SOLUTION
    four = (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    if len({x.shape for x in four}) > 1:
        raise ValueError(f"all four must have one shape, got {[tuple(x.shape) for x in four]}")
    if policy_chosen.numel() == 0:
        raise ValueError("there is no comparison")
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    chosen = implicit_reward(policy_chosen, reference_chosen.detach(), beta)
    rejected = implicit_reward(policy_rejected, reference_rejected.detach(), beta)
    return -F.logsigmoid(chosen - rejected).mean()
    ### END SOLUTION


# %% [markdown]
# By hand, with $\beta = \frac12$: the policy has made the chosen response 9 times as probable as the reference has it
# and left the rejected one. Implicit rewards $\frac12 \ln 9 = \ln 3$ and 0, a preference of $\frac34$.

# %% test="loss_values" points=3
at = torch.tensor([-4.0])
check.close(
    implicit_reward(at + math.log(9), at, beta=0.5),
    [math.log(3)],
    because="β·(log π_θ − log π_ref) = ½·ln 9.",
)
check.close(
    dpo_loss(at + math.log(9), at - 2, at, at - 2, beta=0.5),
    -math.log(3 / 4),
    because="Implicit rewards ln 3 and 0, so −ln σ(ln 3) = −ln(3/4).",
)
check.close(
    dpo_loss(at - 3, at, at - 3, at),
    math.log(2),
    because="Policy and reference are the same: all implicit rewards are 0 and the loss is ln 2.",
)
check.raises(
    ValueError,
    dpo_loss,
    at,
    at,
    torch.zeros(2),
    torch.zeros(2),
    mentions="shape",
    because="The four belong to the same comparisons: say shape.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("alignment", "dpo")
rng = inputs("loss_values")
for number, beta in [(1, 0.1), (5, 0.5), (7, 2.0)]:
    four = 3.0 * torch.randn(4, number, generator=rng, dtype=torch.float64).to(device) - 8.0
    check.close(
        implicit_reward(four[0], four[2], beta),
        theirs.implicit_reward(four[0], four[2], beta),
        because="The implicit reward is β·(log π_θ − log π_ref).",
    )
    check.close(
        dpo_loss(*four, beta),
        theirs.dpo_loss(*four, beta),
        because="The mean of −log σ(β·[(log π_θ − log π_ref) of chosen − the same of rejected]).",
    )
    # What a prompt adds to both responses cancels, as log Z does.
    level = torch.randn(number, generator=rng, dtype=torch.float64).to(device)
    moved = four + torch.stack([level, level, 0 * level, 0 * level])
    check.close(
        dpo_loss(*moved, beta),
        theirs.dpo_loss(*four, beta),
        because="What is added to the log-ratios of both responses of a prompt cancels, as the partition function "
        "does.",
    )
check.close(dpo_loss(*four), theirs.dpo_loss(*four, 0.1), because="Without beta given it is 0.1.")
check.close(
    implicit_reward(four[0], four[2]),
    theirs.implicit_reward(four[0], four[2], 0.1),
    because="Without beta given it is 0.1.",
)
for four_, beta, says in [
    ((four[0], four[1][:3], four[2], four[3]), 0.1, "shape"),
    ((four[0], four[1], four[2][:1], four[3][:1]), 0.1, "shape"),
    ((four[0], four[1], four[2], four[3][:, None]), 0.1, "shape"),
    (tuple(four[:, :0]), 0.1, "comparison"),
    (tuple(four), 0.0, "beta"),
    (tuple(four), -0.1, "beta"),
]:
    check.raises(
        ValueError,
        dpo_loss,
        *four_,
        beta,
        mentions=says,
        because="Four tensors of one shape (say shape), one comparison at least (say comparison), a positive β (say "
        "beta).",
    )
### END HIDDEN TESTS

# %% test="loss_gradient" points=2
policy = [
    torch.tensor([-4.0 + math.log(9)], requires_grad=True),
    torch.tensor([-6.0], requires_grad=True),
]
frozen = [torch.tensor([-4.0], requires_grad=True), torch.tensor([-6.0], requires_grad=True)]
dpo_loss(*policy, *frozen, beta=0.5).backward()
check.close(
    torch.cat([x.grad for x in policy]),
    [-1 / 8, 1 / 8],
    because="−β·σ(r̂_l − r̂_w) = −½·¼ for the chosen response, the opposite for the rejected one.",
)
check.that(
    all(x.grad is None or not x.grad.any() for x in frozen),
    "A gradient reaches the reference: it is frozen. Detach its log-probabilities.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("alignment", "dpo")
rng = inputs("loss_gradient")
values = 3.0 * torch.randn(4, 6, generator=rng, dtype=torch.float64).to(device) - 8.0
mine = [x.clone().requires_grad_() for x in values]
right = [x.clone().requires_grad_() for x in values]
dpo_loss(*mine, 0.7).backward()
theirs.dpo_loss(*right, 0.7).backward()
for own, other in zip(mine[:2], right[:2], strict=True):
    check.that(own.grad is not None, "No gradient reaches the policy's log-probabilities.")
    check.close(
        own.grad, other.grad, because="The gradient of the policy's log-probabilities is off."
    )
check.that(
    all(x.grad is None or not bool(x.grad.any()) for x in mine[2:]),
    "A gradient reaches the reference, which is frozen: detach its log-probabilities.",
)
for size in (200.0, 1e4):
    far = torch.tensor([size, -size], device=device).requires_grad_()
    zero = torch.zeros(2, device=device)
    loss = dpo_loss(far, zero, zero, zero, 1.0)
    check.close(
        loss,
        size / 2,
        because="−log σ of a very negative number is its size, not infinity: use logsigmoid or softplus.",
    )
    loss.backward()
    check.that(far.grad is not None, "No gradient reaches the policy's log-probabilities.")
    check.close(
        far.grad, [0.0, -0.5], because="The gradient must stay finite: logsigmoid or softplus."
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · Watch it learn
#
# The loss hides much. Two numbers to plot beside it: how often the chosen response has the larger implicit reward, and
# by how much on average. Equal rewards count one half, as in the exercise on the reward model: before the first step
# all are 0, and the accuracy is that of a coin.
#
# Look at the two rewards apart, too. The loss asks for a difference alone, and *both* may fall (Pal et al. 2024): the
# chosen response becomes less probable, and the rejected one more so.


# %%
class PreferenceMetrics(NamedTuple):
    """Of the implicit rewards of a batch of comparisons."""

    accuracy: Tensor  # the share in which chosen > rejected; equal ones count one half
    margin: Tensor  # the mean of chosen - rejected
    chosen: Tensor  # the mean over chosen responses
    rejected: Tensor  # the mean over rejected responses


# %% solution="metrics"
def preference_metrics(
    policy_chosen: Float[Tensor, "batch"],
    policy_rejected: Float[Tensor, "batch"],
    reference_chosen: Float[Tensor, "batch"],
    reference_rejected: Float[Tensor, "batch"],
    beta: float = 0.1,
) -> PreferenceMetrics:
    """Accuracy, margin and means of the implicit rewards; arguments as of ``dpo_loss``, one comparison at least."""
    ### BEGIN SOLUTION
    chosen = implicit_reward(policy_chosen, reference_chosen, beta)
    rejected = implicit_reward(policy_rejected, reference_rejected, beta)
    margin = chosen - rejected
    return PreferenceMetrics(
        (margin.sign() + 1).mean() / 2, margin.mean(), chosen.mean(), rejected.mean()
    )
    ### END SOLUTION


# %% test="metrics_values" points=2
found = preference_metrics(
    torch.tensor([-1.0, -3.0, -5.0, -7.0]),
    torch.tensor([-2.0, -2.0, -5.0, -9.0]),
    torch.tensor([-3.0, -3.0, -5.0, -3.0]),
    torch.tensor([-2.0, -4.0, -5.0, -9.0]),
    beta=0.5,
)
check.close(
    torch.stack(list(found)),
    [(1 + 0 + 0.5 + 0) / 4, (1.0 - 1.0 + 0.0 - 2.0) / 4, -0.25, 0.25],
    because="Implicit rewards (1, 0, 0, −2) against (0, 1, 0, 0): one right, one tie, two wrong. It is the log-ratios "
    "that are compared, not the policy's log-probabilities.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("alignment", "dpo")
rng = inputs("metrics_values")
for number, beta in [(1, 1.0), (6, 0.5), (30, 0.25)]:
    # Few different values: ties occur, and are exact.
    four = torch.randint(-6, 0, (4, number), generator=rng).double().to(device)
    for field, got, expected in zip(
        PreferenceMetrics._fields,
        preference_metrics(*four, beta),
        theirs.preference_metrics(*four, beta),
        strict=True,
    ):
        check.close(
            got,
            expected,
            because=f"The {field} is off: implicit rewards have β and the reference in them, ties count one half.",
        )
check.close(
    preference_metrics(*four).margin,
    theirs.preference_metrics(*four, 0.1).margin,
    because="Without beta given it is 0.1.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · A world where the answer is known
#
# Does the loss lead to the optimum of part 2? Take a bandit with a handful of responses and let people choose as
# Bradley–Terry says, with rewards $r$. With endlessly many comparisons, every pair of responses asked equally often,
# the loss is its expectation:
#
# $$\mathcal L = \frac{1}{\binom n2} \sum_{i < j} \Big[-\sigma(r_i - r_j) \log \sigma(\hat r_i - \hat r_j)
# - \sigma(r_j - r_i) \log \sigma(\hat r_j - \hat r_i)\Big].$$
#
# Each term is a cross-entropy, smallest where the two probabilities are equal, $\hat r_i - \hat r_j = r_i - r_j$. A
# policy that has this for all pairs has $\beta \log \frac{\pi(y)}{\pi_{\text{ref}}(y)} = r(y) + \text{constant}$:
# it is $\pi_{\text{ref}}\, e^{r/\beta} / Z$, the optimum of the KL-constrained problem, found without a reward model.


# %% solution="bandit"
def expected_dpo_loss(
    log_probs: Float[Tensor, "responses"],
    reference_log_probs: Float[Tensor, "responses"],
    rewards: Float[Tensor, "responses"],
    beta: float,
) -> Float[Tensor, ""]:
    """The DPO loss in expectation, over Bradley–Terry's choices between all pairs of responses.

    Args:
        log_probs: of the policy, finite.
        reference_log_probs: finite.
        rewards: those by which people choose; of any size.
        beta: as in ``dpo_loss``.

    Returns:
        The mean over all pairs of different responses; exchanging the two of a pair gives the same.

    Raises:
        ValueError: there are fewer than two responses (the message says ``responses``).
    """
    ### BEGIN SOLUTION
    if len(log_probs) < 2:
        raise ValueError(f"a comparison needs two responses, got {len(log_probs)}")
    i, j = torch.triu_indices(len(rewards), len(rewards), offset=1, device=rewards.device)
    implicit = implicit_reward(log_probs, reference_log_probs, beta)
    preferred = torch.sigmoid(rewards[i] - rewards[j])
    return F.binary_cross_entropy_with_logits(implicit[i] - implicit[j], preferred)
    ### END SOLUTION


# %% test="bandit_optimum" points=2
# Two responses, preferred 3 : 1. The policy is the reference, so it says 1 : 1.
half = torch.tensor([0.5, 0.5]).log()
check.close(
    expected_dpo_loss(half, half, torch.tensor([math.log(3), 0.0]), 1.0),
    math.log(2),
    because="Implicit rewards of 0: every choice costs ln 2.",
)
check.close(
    expected_dpo_loss(
        torch.tensor([0.75, 0.25]).log(), half, torch.tensor([math.log(3), 0.0]), 1.0
    ),
    -(3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4)),
    because="At the optimum the loss is the entropy of the choices: 3 : 1 came and 3 : 1 was predicted.",
)
# A step to any side of the optimum is uphill.
base, rewards, beta = torch.tensor([0.2, 0.5, 0.3]).log(), torch.tensor([1.0, 0.0, -1.0]), 0.5
logits = (base + rewards / beta).requires_grad_()
expected_dpo_loss(logits.log_softmax(-1), base, rewards, beta).backward()
check.close(
    logits.grad,
    [0.0, 0.0, 0.0],
    because="π_ref·exp(r/β)/Z is the minimum of the expected loss: the gradient there is 0.",
)
check.raises(
    ValueError,
    expected_dpo_loss,
    half[:1],
    half[:1],
    half[:1],
    1.0,
    mentions="responses",
    because="One response cannot be compared: say responses.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "dpo")
rng = inputs("bandit_optimum")
cases = []
for n in (2, 3, 5, 8):
    policy, base = torch.randn(2, n, generator=rng, dtype=torch.float64).log_softmax(-1).to(device)
    cases.append((policy, base, 2 * torch.randn(n, generator=rng).double().to(device), 0.2 * n))
for case, loss in zip(cases, each(expected_dpo_loss, cases), strict=True):
    check.close(
        loss,
        theirs.expected_dpo_loss(*case),
        because="The mean over all n(n − 1)/2 pairs of the cross-entropy of σ(r_i − r_j) with σ(r̂_i − r̂_j), where "
        "r̂ has β and the reference in it.",
    )
policy, base, rewards, beta = cases[-1]
own, other = policy.clone().requires_grad_(), policy.clone().requires_grad_()
expected_dpo_loss(own, base, rewards, beta).backward()
theirs.expected_dpo_loss(other, base, rewards, beta).backward()
check.that(own.grad is not None, "No gradient reaches the policy.")
check.close(own.grad, other.grad, because="The gradient of the policy's log-probabilities is off.")
check.close(
    expected_dpo_loss(policy, base, 1e4 * rewards, 1e4 * beta),
    theirs.expected_dpo_loss(policy, base, 1e4 * rewards, 1e4 * beta),
    because="Large rewards must not give an infinity or NaN.",
)
for n in (0, 1):
    check.raises(
        ValueError,
        expected_dpo_loss,
        policy[:n],
        base[:n],
        rewards[:n],
        beta,
        mentions="responses",
        because="Fewer than two responses make no comparison: say responses.",
    )
### END HIDDEN TESTS

# %% [markdown] written="dpo_why" points=2
# **In your own words.** A colleague computes the log-probability of a response as the *mean* over its tokens, and
# lets the reference be the policy itself, without a copy. What does the loss say in the second case, for any policy,
# and why does nothing hold the policy near its beginning? In the first case, where does the derivation break, and
# what becomes of long responses? Then: in the derivation $Z$ cancels because both responses have the same prompt.
# What would go wrong with pairs whose two responses answer *different* prompts? (5 to 9 sentences.)

# %% [markdown]
# ## Experiment: what the loss finds, and when it runs away
#
# Six responses, a reference that likes some of them more than others, and rewards. Your `expected_dpo_loss` is what
# endlessly many comparisons would give. Descend it from the reference, for three $\beta$, and see whether the policy
# arrives at your `optimal_log_probs`. Nothing is sampled: it takes seconds, and no GPU would be faster.
#
# Before you run it: with which $\beta$ does the policy end farthest from the reference?

# %% experiment=true
import matplotlib.pyplot as plt

from lab import figures, training

BETAS, STEPS = (0.3, 1.0, 3.0), 2000
RESPONSES, SEED = 6, 0

rng = lab.generator(f"bandit {SEED}")
base = torch.randn(RESPONSES, generator=rng).double().log_softmax(-1).to(device)
rewards = torch.randn(RESPONSES, generator=rng).double().to(device)


class Bandit(torch.nn.Module):
    """A policy over the responses to one prompt: one logit each, at first those of the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(base.clone())

    def log_probs(self) -> Tensor:
        return self.logits.log_softmax(-1)


def kl(log_p: Tensor, log_q: Tensor) -> float:
    """KL(p ‖ q) in nats."""
    return (log_p.exp() * (log_p - log_q)).sum().item()


def descend(beta: float, loss_fn, seen, label: str) -> list:
    """Trains a policy from the reference; returns what ``seen`` says of it before each step."""
    notes = []

    def noted_loss(policy: Bandit, _: None) -> Tensor:
        log_probs = policy.log_probs()
        notes.append(seen(log_probs.detach()))
        return loss_fn(log_probs, beta)

    training.train(
        Bandit().to(device),
        lambda _: None,  # the loss is exact: there is no batch to draw
        noted_loss,
        STEPS,
        lr=0.05,
        schedule=lambda step: 1.0,
        betas=(0.9, 0.999),
        label=label,
    )
    return notes


optima = {beta: optimal_log_probs(base, rewards, beta) for beta in BETAS}
paths = {
    beta: descend(
        beta,
        lambda log_probs, beta: expected_dpo_loss(log_probs, base, rewards, beta),
        lambda log_probs: log_probs,
        f"β = {beta}",
    )
    for beta in BETAS
}
gaps = {beta: [kl(p, optima[beta]) for p in paths[beta]] for beta in BETAS}

figures.use_style()
fig, axes = plt.subplots(1, 4, figsize=(10.5, 3.2), width_ratios=[1, 1, 1, 1.4])
places = torch.arange(RESPONSES)
for ax, beta in zip(axes[:3], BETAS, strict=True):
    ax.bar(places, paths[beta][-1].exp().cpu(), color="C0", label="policy, descended")
    ax.plot(places, optima[beta].exp().cpu(), "o", color="C1", label="optimum, by formula")
    ax.plot(places, base.exp().cpu(), "_", color="grey", markersize=14, label="reference")
    ax.set(title=f"β = {beta}", xlabel="response", ylim=(0, 1), xticks=places)
axes[0].set_ylabel("probability")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
# Below 1e-12 nats there is only rounding, which may be negative.
for beta, style in zip(BETAS, ("-", "--", ":"), strict=True):
    axes[3].semilogy([max(gap, 1e-12) for gap in gaps[beta]], style, label=f"β = {beta}")
axes[3].set(xlabel="step", ylabel="nats", title="KL(policy ‖ optimum)")
axes[3].legend(fontsize=9)
figures.show(
    fig,
    alt="The policy after descending the expected loss, beside the optimum by formula. "
    + " ".join(
        f"β = {beta}: the largest difference of a probability is "
        f"{(paths[beta][-1].exp() - optima[beta].exp()).abs().max():.1e}, the KL divergence from the optimum fell from "
        f"{gaps[beta][0]:.2g} to {max(gaps[beta][-1], 0):.1e} nats, and the policy is "
        f"{kl(paths[beta][-1], base):.2f} nats from the reference."
        for beta in BETAS
    ),
)

# %% [markdown]
# The bars reach the points. Supervised learning on choices found the optimum of a reinforcement learning problem.
#
# What held the policy near the reference? That people disagree. Every pair was decided now one way and now the other,
# and it takes finite rewards to predict that. Now take the same bandit with a handful of comparisons, each made once,
# between responses that differ. Nobody contradicts: the data say that what was chosen is chosen with certainty, and no
# finite difference of rewards is large enough for that. A smaller loss is always to be had farther away. $\beta$ scales
# how fast the policy goes there, and does not stop it.
#
# The dotted line is for responses that no comparison mentions. Before you run it: will they rise, fall or stay?

# %% experiment=true
order = rewards.argsort(descending=True)
# Two comparisons without contradiction. The best and the worst response occur in none.
chosen, rejected = order[[1, 2]], order[[3, 4]]
apart = order[[0, 5]]


def loss_of_few(log_probs: Tensor, beta: float) -> Tensor:
    """Your loss on the comparisons there are."""
    return dpo_loss(log_probs[chosen], log_probs[rejected], base[chosen], base[rejected], beta)


def seen(log_probs: Tensor) -> tuple[float, ...]:
    """Mean log-probability of chosen, rejected and unmentioned responses, and the distance from the reference."""
    groups = (log_probs[some].mean().item() for some in (chosen, rejected, apart))
    return *groups, kl(log_probs, base)


few = {beta: descend(beta, loss_of_few, seen, f"few, β = {beta}") for beta in BETAS}
middle = BETAS[1]
fig, (ax_log, ax_kl) = plt.subplots(1, 2, figsize=(9, 3.6))
names = ("chosen", "rejected", "in no comparison")
for name, values, style in zip(
    names, zip(*few[middle], strict=True), ("-", "--", ":"), strict=False
):
    ax_log.plot(values, style, label=name)
ax_log.set(
    xlabel="step", ylabel="mean log-probability, nats", title=f"few comparisons, β = {middle}"
)
ax_log.legend(fontsize=9)
for i, beta in enumerate(BETAS):
    ax_kl.plot([note[3] for note in few[beta]], color=f"C{i}", label=f"few, β = {beta}")
    ax_kl.plot(
        [kl(p, base) for p in paths[beta]], "--", color=f"C{i}", label=f"endless, β = {beta}"
    )
ax_kl.set(xlabel="step", ylabel="nats", title="KL(policy ‖ reference)")
ax_kl.set_ylim(0, 1.5 * ax_kl.get_ylim()[1])  # room for the legend
ax_kl.legend(fontsize=8, ncols=2, loc="upper right")
start, end = few[middle][0], few[middle][-1]
figures.show(
    fig,
    alt=f"Two comparisons, β = {middle}: mean log-probabilities over {STEPS} steps go from "
    + ", ".join(f"{a:.2f} to {b:.2f} ({n})" for n, a, b in zip(names, start, end[:3], strict=False))
    + ". The KL divergence from the reference, with the few comparisons and with endlessly many: "
    + "; ".join(
        f"{few[beta][-1][3]:.2f} and {kl(paths[beta][-1], base):.2f} nats at β = {beta}"
        for beta in BETAS
    )
    + ". At the middle of the run it was "
    + "; ".join(
        f"{few[beta][STEPS // 2][3]:.2f} and {kl(paths[beta][STEPS // 2], base):.2f}"
        for beta in BETAS
    )
    + ".",
)

# %% [markdown]
# On the right, the dashed lines stay where their $\beta$ puts them, and the solid ones climb towards one height,
# whatever $\beta$ is: that at which the chosen responses have all the probability. A small world ends there. The
# log-probability of the rejected responses does not end; it goes on falling, ever more slowly, though the comparisons
# have long been predicted. And the responses that nobody was asked about fall with them, the best one included: the
# loss never mentions them, but the probability that the chosen ones gain has to come from somewhere. What stops this in
# practice is not the loss: few epochs, a small learning rate, many comparisons, or another loss (Azar et al. 2023
# start from this very failure).
#
# This is a table of six numbers. A language model shares its parameters among all responses, and where the probability
# goes is then another question.
