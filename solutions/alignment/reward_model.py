# %% [markdown]
# # The reward model
#
# What is a good answer? Nobody can write the formula, but most people can say which of two answers they like better.
# A *reward model* turns such comparisons into a number for every answer, which reinforcement learning can then raise.
# Christiano et al. (2017) learned to play Atari games and to move simulated robots this way, Ziegler et al. (2019) and
# Stiennon et al. (2020) brought it to language models, Ouyang et al. (2022) made it the second of the three steps of
# InstructGPT. You build that step: the model, the loss, and what tells whether the numbers mean anything.
#
# **You build** a scalar head on a language model, the Bradley–Terry loss, InstructGPT's loss over rankings, accuracy
# and calibration, the shift before reinforcement learning
# · **Minutes** 90 · **Points** 19 · **Difficulty** ●●○ ·
# **Before this** [GPT](../pretraining/gpt.ipynb)
#
# Run a cell with Shift+Enter. Write your answers where it says `YOUR CODE HERE`, then run the tests below them.
# A test that passes is silent; one that fails says what it expected, what came, and which mistake usually does that.
# More tests, on other inputs, run when your notebook is graded.

# %%
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

import lab
from lab import check
from lab.models import CausalTransformer

device = lab.device()


def set_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """For the tests: loads the weights by name, and says which names or shapes are not as they should be."""
    check.equal(
        {name: tuple(value.shape) for name, value in module.state_dict().items()},
        {name: tuple(value.shape) for name, value in weights.items()},
        because="The module's parameters must have the names and shapes of its docstring, and there must be no others.",
    )
    module.load_state_dict(weights)


# %% [markdown]
# ## 1 · One number for a text
#
# A reward model is a language model that has lost its last layer. Ouyang et al. (2022, §3.5) take the model after
# supervised fine-tuning, remove the matrix that writes logits, and put one that writes a single number in its place.
# What the body has learnt about language is kept; what is new is $d_{\text{model}}$ weights and a bias:
#
# $$r_\theta(x, y) = w^\top h_{\text{last}}(x, y) + b.$$
#
# $x$ is the prompt, $y$ the response, both in one text, and $h_{\text{last}}$ the vector that the body has at the last
# token. Why there? A causal model sees at each position what stands before it. At the last token, and nowhere else,
# it has seen the whole response.
#
# In a batch the shorter texts are filled up on the right:
#
# ```
# tokens    12   7   3   5      mask   ✓  ✓  ✓  ✓      read at 3
#            9   4   0   0             ✓  ✓  .  .      read at 1
# ```
#
# In the second row index $-1$ is padding: a vector that is the same kind of nonsense for good and bad answers. Nor can
# the end be found by looking for the padding's id: many vocabularies have no token for padding and use one that also
# occurs in the text, such as the end-of-text token. So the mask says which tokens are real.
#
# The body is `CausalTransformer` from `lab.models`. `body.states(tokens)` gives the vectors, `(batch length d_model)`.
# To start from a fine-tuned language model of the same sizes is then one line:
# `model.body.load_state_dict(language_model.state_dict())`.


# %% solution="reward"
class RewardModel(nn.Module):
    """A language model with a scalar head, read at the last real token of each text (Ouyang et al. 2022, §3.5).

    Attributes:
        body: ``CausalTransformer(vocab_size, d_model, num_heads, num_layers, max_length)``.
        head: ``nn.Linear(d_model, 1)``.
    """

    def __init__(
        self, vocab_size: int, d_model: int, num_heads: int, num_layers: int, max_length: int
    ) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.body = CausalTransformer(vocab_size, d_model, num_heads, num_layers, max_length)
        self.head = nn.Linear(d_model, 1)
        ### END SOLUTION

    def forward(
        self, tokens: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch"]:
        """The reward of each text, any real number.

        Args:
            tokens: ids of the vocabulary. What stands at padding may be any id, also one that occurs in the text.
            mask: ``True`` where a token is real. Every row is a run of ``True``, at least one, and then padding.

        Raises:
            ValueError: ``mask`` is not of the shape of ``tokens`` (the message says ``mask``), a text has no
                real token (it says ``empty``), or a real token follows on padding (it says ``right``: that is
                where padding belongs).
        """
        ### BEGIN SOLUTION
        if mask.shape != tokens.shape:
            raise ValueError(f"mask must be {tuple(tokens.shape)}, got {tuple(mask.shape)}")
        if not mask.any(dim=1).all():
            raise ValueError("a text is empty: it has no real token")
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError("padding must stand on the right of a text, and nowhere else")
        last = mask.sum(dim=1) - 1
        states = self.body.states(tokens)  # (batch length d_model)
        rows = torch.arange(len(tokens), device=tokens.device)
        return self.head(states[rows, last]).squeeze(-1)
        ### END SOLUTION


# %% [markdown]
# By hand: in a body whose blocks add nothing, the vector at a position is the normalised embedding of its token. With
# embeddings $(1,0,0)$, $(0,1,0)$ and $(0,0,1)$ these are $(\sqrt2, -\frac1{\sqrt2}, -\frac1{\sqrt2})$ and so on. A head
# with weights $(\sqrt2, 0, 0)$ and bias $\frac12$ gives a text that ends in token 0 the reward $2\frac12$, any other
# $-1 + \frac12$.

# %% test="reward_last" points=2
model = RewardModel(vocab_size=3, d_model=3, num_heads=1, num_layers=1, max_length=4)
silent = CausalTransformer(3, 3, 1, 1, 4).state_dict()
weights = {f"body.{name}": torch.zeros_like(value) for name, value in silent.items()}
weights["body.embed.tokens.weight"] = 100 * torch.eye(3)
weights["body.norm.weight"] = torch.ones(3)
weights["head.weight"] = torch.tensor([[math.sqrt(2), 0.0, 0.0]])
weights["head.bias"] = torch.tensor([0.5])
set_weights(model, weights)
tokens = torch.tensor([[1, 2, 2, 0], [0, 1, 0, 0], [2, 0, 1, 1]])
mask = torch.tensor(
    [[True, True, True, True], [True, True, False, False], [True, True, False, False]]
)
check.close(
    model(tokens, mask),
    [2.5, -0.5, 2.5],
    because="The last real tokens are 0, 1 and 0: the mask says where a text ends. One number for each text, of shape "
    "(batch,).",
)
for bad, says in [
    (torch.tensor([[True] * 3] * 3), "mask"),
    (torch.tensor([[True] * 4, [False] * 4, [True] * 4]), "empty"),
    (torch.tensor([[False, True, True, True], [True] * 4, [True] * 4]), "right"),
]:
    check.raises(
        ValueError,
        model,
        tokens,
        bad,
        mentions=says,
        because="A mask of another shape, a text without a token (index −1 would be padding) and padding on the left "
        "are bad input: say mask, empty, or right.",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("alignment", "reward_model")
rng = inputs("reward_last")
sizes = (11, 6, 2, 2, 7)
mine = RewardModel(*sizes).to(device).double()
right = theirs.RewardModel(*sizes).to(device).double()
weights = {
    name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
lengths = torch.tensor([7, 1, 4, 2, 6])
mask = (torch.arange(7) < lengths[:, None]).to(device)
tokens = torch.randint(11, (5, 7), generator=rng).to(device)
with torch.no_grad():
    # A bias that makes rewards of both signs.
    right.load_state_dict(weights)
    weights["head.bias"] = weights["head.bias"] - right(tokens, mask).mean()
    set_weights(mine, weights)
    right.load_state_dict(weights)
    # A batch, a batch that is a transposed view, single tokens, a text alone.
    for some, real in [
        (tokens, mask),
        (tokens.T.contiguous().T, mask.T.contiguous().T),
        (tokens[:, :1], mask[:, :1]),
        (tokens[2:3, :4], mask[2:3, :4]),
    ]:
        check.close(
            mine(some, real),
            right(some, real),
            because="The reward is the head's output, unchanged, at the last position where the mask is True; shape "
            "(batch,), also for one text and for one token.",
        )
    before = tokens.clone()
    mine(tokens, mask)
    check.equal(tokens, before, because="The tokens were changed in place.")
for bad, says in [
    (mask[:, :6], "mask"),
    (mask[:4], "mask"),
    (mask[:1], "mask"),
    (mask[0], "mask"),
    (mask & torch.tensor([True, True, True, False, True], device=device)[:, None], "empty"),
    (mask & torch.tensor([True, True, True, False, True, True, True], device=device), "right"),
    (mask.flip(1), "right"),
]:
    check.raises(
        ValueError,
        mine,
        tokens,
        bad,
        mentions=says,
        because="The mask has the shape of the tokens (say mask), no row is without a real token (say empty), and "
        "padding stands on the right, not on the left or in between (say right).",
    )
### END HIDDEN TESTS

# %% test="reward_padding" points=2
model = RewardModel(vocab_size=5, d_model=4, num_heads=2, num_layers=1, max_length=6)
text = torch.tensor([[3, 0, 4]])
with torch.no_grad():
    alone = model(text, torch.ones(1, 3, dtype=torch.bool))
    for pad in range(5):
        padded = torch.cat([text, torch.full((1, 3), pad)], dim=1)
        check.close(
            model(padded, torch.tensor([[True, True, True, False, False, False]])),
            alone,
            because="Padding changed the reward. It may have any id, also 0, which occurs in this text, or 4, in "
            "which the text ends: only the mask says where a text ends.",
        )
### BEGIN HIDDEN TESTS
from autograder.hidden import gradients, inputs, reference

theirs = reference("alignment", "reward_model")
rng = inputs("reward_padding")
sizes = (9, 4, 2, 1, 8)
mine = RewardModel(*sizes).to(device).double()
right = theirs.RewardModel(*sizes).to(device).double()
weights = {
    name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
set_weights(mine, weights)
right.load_state_dict(weights)
lengths = torch.tensor([3, 8, 1, 5])
mask = (torch.arange(8) < lengths[:, None]).to(device)
tokens = torch.randint(8, (4, 8), generator=rng).to(device)
with torch.no_grad():
    expected = torch.cat(
        [
            right(row[None, :n], real[None, :n])
            for row, n, real in zip(tokens, lengths, mask, strict=True)
        ]
    )
    fillings = [
        torch.randint(9, (4, 8), generator=rng).to(device),
        torch.zeros_like(tokens),
        torch.full_like(tokens, 8),
        # Each text filled with its own last token.
        tokens.gather(1, lengths[:, None].to(device) - 1).expand(4, 8),
    ]
    for filling in fillings:
        check.close(
            mine(torch.where(mask, tokens, filling), mask),
            expected,
            because="A text has the same reward alone and in a batch, whatever id its padding has.",
        )
# Gradients: to the head, to all of the body, and to no token that is only padding (8 occurs nowhere else).
padded = tokens.masked_fill(~mask, 8)
pull = torch.randn(4, generator=rng, dtype=torch.float64).to(device)
mine.zero_grad()
(mine(padded, mask) * pull).sum().backward()
(right(padded, mask) * pull).sum().backward()
mine_gradients, right_gradients = gradients(mine), gradients(right)
for name in weights:
    gradient = mine_gradients.get(name)
    check.that(
        gradient is not None,
        f"No gradient reaches {name}: head and body are both trained, and nothing is detached.",
    )
    check.close(
        gradient,
        right_gradients[name],
        because=f"The gradient of {name} is off: it comes from the last real token, through what that has seen.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · From comparisons to rewards
#
# People give comparisons, the model gives numbers. What links them is a model of choice, of Zermelo (1929) and of
# Bradley and Terry (1952): each response has a positive strength, and the first is preferred with a probability
# in proportion to it. Write the strength as $e^{r}$, so that $r$ can be any number:
#
# $$P(y_1 \succ y_2 \mid x) = \frac{e^{r_1}}{e^{r_1} + e^{r_2}} = \frac{1}{1 + e^{-(r_1 - r_2)}} = \sigma(r_1 - r_2).$$
#
# The second step divides by $e^{r_1}$. So the difference of two rewards is the log-odds of a preference: a
# difference of 0 is a coin toss, of 1 a preference of 73 %, of 3 one of 95 %. Three things follow:
#
# - $P(y_1 \succ y_2) + P(y_2 \succ y_1) = 1$, because $\sigma(-d) = 1 - \sigma(d)$.
# - Only differences count. Add a constant to all responses of a prompt and no preference changes. The data cannot
#   tell at which level rewards lie, not even whether two prompts have the same.
# - The model cannot say "they are alike, and everybody agrees so". Preference and certainty are one number.
#
# Now maximum likelihood, as for every model in this course: make what was observed likely. If $y_w$ was preferred to
# $y_l$, the negative log-likelihood is
#
# $$\ell = -\log \sigma(d), \qquad d = r_w - r_l.$$
#
# This is the cross-entropy of a classifier whose logit is $d$ and whose label is always "the first". Its
# derivative, with $\sigma' = \sigma(1 - \sigma)$:
#
# $$\frac{\partial \ell}{\partial r_w} = -\frac{\sigma(d)\,(1 - \sigma(d))}{\sigma(d)} = -(1 - \sigma(d)), \qquad
# \frac{\partial \ell}{\partial r_l} = +(1 - \sigma(d)).$$
#
# The chosen reward is pushed up and the rejected one down, equally, in proportion to the probability that the model
# gave to the *wrong* order. A pair that it has right already teaches it next to nothing.
#
# **In floating point** $\sigma(-200)$ is 0 in `float32`, its logarithm $-\infty$, and the gradient NaN: the pair that
# is most wrong breaks the training. But $-\log\sigma(d) = \log(1 + e^{-d})$, which is $\text{softplus}(-d)$: near
# $-d$ for large negative $d$, and $e^{-d}$ for large positive. `F.logsigmoid` and `F.softplus` compute it without
# overflow.


# %% solution="pairwise"
def preference_probability(
    first: Float[Tensor, "..."], second: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """The probability that the response with reward ``first`` is preferred to the one with ``second``.

    Bradley and Terry (1952), with strengths ``exp(reward)``. Finite rewards of any size give no NaN.
    """
    ### BEGIN SOLUTION
    return torch.sigmoid(first - second)
    ### END SOLUTION


def pairwise_loss(
    chosen: Float[Tensor, "..."], rejected: Float[Tensor, "..."]
) -> Float[Tensor, ""]:
    """The mean negative log-likelihood, in nats, that every chosen response is preferred to its rejected one.

    Args:
        chosen: rewards of the preferred responses, finite, of any size (±10⁴ gives no infinity and no NaN, neither
            in the loss nor in its gradient).
        rejected: rewards of the others, in the same order.

    Returns:
        One mean over all comparisons.

    Raises:
        ValueError: the two are not of one shape (the message says ``shape``; nothing is broadcast), or there is
            no comparison (it says ``comparison``).
    """
    ### BEGIN SOLUTION
    if chosen.shape != rejected.shape:
        raise ValueError(
            f"chosen and rejected must have one shape, got {tuple(chosen.shape)} and {tuple(rejected.shape)}"
        )
    if chosen.numel() == 0:
        raise ValueError("there is no comparison")
    return -F.logsigmoid(chosen - rejected).mean()
    ### END SOLUTION


# %% [markdown]
# By hand: strengths 3 and 1, that is rewards $\ln 3$ and 0, are a preference of $\frac34$. Strengths 1 and 4 are one of
# $\frac15$.

# %% test="pairwise_values" points=2
three, four, one = math.log(3), math.log(4), 0.0
check.close(
    preference_probability(torch.tensor([three, one, 7.0]), torch.tensor([one, four, 7.0])),
    [3 / 4, 1 / 5, 1 / 2],
    because="Strengths 3 : 1, 1 : 4 and equal: σ(first − second), so 3/4, 1/5 and 1/2.",
)
check.close(
    pairwise_loss(torch.tensor([three, one]), torch.tensor([one, four])),
    -(math.log(3 / 4) + math.log(1 / 5)) / 2,
    because="Two comparisons, which the model gave 3/4 and 1/5: the mean of −ln of these. A smaller loss means that "
    "the chosen response has the larger reward.",
)
check.raises(
    ValueError,
    pairwise_loss,
    torch.zeros(3, 1),
    torch.zeros(3),
    mentions="shape",
    because="(3, 1) against (3,) would be broadcast to 9 comparisons: refuse it, and say shape.",
)
check.raises(
    ValueError,
    pairwise_loss,
    torch.zeros(0),
    torch.zeros(0),
    mentions="comparison",
    because="The mean of nothing is NaN: refuse it, and say comparison.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "reward_model")
rng = inputs("pairwise_values")
shapes = [(), (1,), (6,), (3, 4), (2, 3, 5)]
pairs = [
    tuple(3.0 * torch.randn(2, *shape, generator=rng, dtype=torch.float64).to(device))
    for shape in shapes
]
probabilities = each(preference_probability, pairs)
losses = each(pairwise_loss, pairs)
for (chosen, rejected), probability, loss in zip(pairs, probabilities, losses, strict=True):
    check.close(
        probability,
        theirs.preference_probability(chosen, rejected),
        because="P(first ≻ second) = σ(first − second), for each pair.",
    )
    check.close(
        loss,
        theirs.pairwise_loss(chosen, rejected),
        because="The loss is one mean over all pairs of −log σ(chosen − rejected), for any leading dimensions.",
    )
# P(a ≻ b) + P(b ≻ a) = 1, and the loss of a pair the wrong way round is larger by the difference.
chosen, rejected = pairs[3]
check.close(
    preference_probability(chosen, rejected) + preference_probability(rejected, chosen),
    torch.ones(3, 4, dtype=torch.float64, device=device),
    because="One of two responses is preferred: the two probabilities add up to 1.",
)
check.close(
    pairwise_loss(rejected, chosen) - pairwise_loss(chosen, rejected),
    (chosen - rejected).mean(),
    because="−log σ(−d) = −log σ(d) + d: exchanging chosen and rejected changes the loss by the mean difference.",
)
# A constant for each prompt is not seen.
level = 5.0 * torch.randn(3, 1, generator=rng, dtype=torch.float64).to(device)
check.close(
    pairwise_loss(chosen + level, rejected + level),
    losses[3],
    because="Only differences count: a constant added to all rewards of a prompt changes nothing.",
)
for one, other in [((2, 3), (3,)), ((4, 1), (4, 5)), ((3,), (1,)), ((), (3,)), ((2, 3), (3, 2))]:
    check.raises(
        ValueError,
        pairwise_loss,
        torch.zeros(one, device=device),
        torch.zeros(other, device=device),
        mentions="shape",
        because="chosen and rejected are pairs: of one shape, and nothing is broadcast. Say shape.",
    )
check.raises(
    ValueError,
    pairwise_loss,
    torch.zeros(2, 0, device=device),
    torch.zeros(2, 0, device=device),
    mentions="comparison",
    because="Without a comparison there is no mean: say comparison.",
)
### END HIDDEN TESTS

# %% test="pairwise_gradient" points=2
# 10⁴ apart, the right way round and the wrong one; and the derivative at strengths 3 : 1.
chosen = torch.tensor([1e4, -1e4, math.log(3)], requires_grad=True)
rejected = torch.tensor([-1e4, 1e4, 0.0], requires_grad=True)
loss = pairwise_loss(chosen, rejected)
check.close(
    loss,
    (0 + 2e4 - math.log(3 / 4)) / 3,
    because="−log σ(−20000) is 20000, not infinity: use logsigmoid or softplus, not the logarithm of a sigmoid.",
)
loss.backward()
check.close(
    chosen.grad,
    [0.0, -1 / 3, -1 / 12],
    because="The derivative by the chosen reward is −(1 − σ(d)), by 3 for the mean: 0 where all is right, −1 where "
    "all is wrong, −1/4 at 3 : 1.",
)
check.close(
    rejected.grad,
    [0.0, 1 / 3, 1 / 12],
    because="The rejected reward is pushed down as much as the chosen one is pushed up.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "reward_model")
rng = inputs("pairwise_gradient")
chosen, rejected = (
    2.0 * torch.randn(3, 2, generator=rng, dtype=torch.float64).to(device) for _ in range(2)
)
own = [chosen.clone().requires_grad_(), rejected.clone().requires_grad_()]
pairwise_loss(*own).backward()
for tensor, name in zip(own, ("chosen", "rejected"), strict=True):
    check.that(tensor.grad is not None, f"No gradient reaches the {name} rewards.")
# Central differences of the answer's own loss: what autograd gives must be the slope of what the loss gives.
step = 1e-4
nudges = [
    (side, row, column, sign * step)
    for side in (0, 1)
    for row in range(3)
    for column in range(2)
    for sign in (1, -1)
]
cases = []
for side, row, column, nudge in nudges:
    moved = [chosen.clone(), rejected.clone()]
    moved[side][row, column] += nudge
    cases.append(tuple(moved))
values = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in each(pairwise_loss, cases)])
slopes = ((values[0::2] - values[1::2]) / (2 * step)).view(2, 3, 2)
check.close(
    torch.stack([tensor.grad for tensor in own]),
    slopes,
    because="The gradient is not the slope of the loss: is something detached or rounded?",
    rtol=1e-4,
    atol=1e-6,
)
wrong = torch.sigmoid(rejected - chosen) / 6
check.close(
    own[0].grad, -wrong, because="The derivative by chosen is −σ(rejected − chosen) / pairs."
)
check.close(
    own[1].grad, wrong, because="The derivative by rejected is +σ(rejected − chosen) / pairs."
)
# Far apart, in both precisions.
for dtype in (torch.float32, torch.float64):
    for size in (80.0, 120.0, 800.0, 1e4):
        d = size * (1 + torch.rand(4, generator=rng, dtype=torch.float64)).to(device, dtype)
        d = d * torch.tensor([1, -1, 1, -1], dtype=dtype, device=device)
        high, low = d.clone().requires_grad_(), (-d).requires_grad_()
        loss = pairwise_loss(high, low)
        check.close(
            loss,
            theirs.pairwise_loss(d, -d),
            because="Rewards up to ±10⁴ must give a finite loss: −log σ(d) is softplus(−d).",
        )
        loss.backward()
        check.that(
            high.grad is not None and bool(torch.isfinite(high.grad).all()),
            "The gradient is NaN or infinite for rewards that are far apart.",
        )
        check.close(
            high.grad,
            torch.where(d > 0, 0.0, -0.25),
            because="A pair that is all wrong has the derivative −1 (by the number of pairs), one that is right 0.",
        )
        check.close(
            preference_probability(d, -d),
            torch.where(d > 0, 1.0, 0.0),
            because="Rewards far apart are a preference of 1 or 0, not NaN: exp of a reward overflows.",
        )
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · Rankings
#
# To read a prompt and a few answers takes longer than to order them. So the labelers of InstructGPT ranked $K$ = 4 to 9
# responses to a prompt at once, and a ranking of $K$ holds $\binom K2 = \frac{K(K-1)}{2}$ comparisons: 6 for four, 36
# for nine. The loss (Ouyang et al. 2022, Eq. 1):
#
# $$\text{loss}(\theta) = -\frac{1}{\binom K2}\; \mathbb E_{(x, y_w, y_l) \sim D}
# \left[\log \sigma\big(r_\theta(x, y_w) - r_\theta(x, y_l)\big)\right]$$
#
# Read it with the sentence around it: all $\binom K2$ comparisons of one prompt are *one* element of a batch. For each
# prompt the mean over its pairs; then the mean over prompts. A prompt with nine responses weighs as much as one with
# four. Thrown into one heap of pairs it would weigh six times as much, and that for one labeler's work on one text.
#
# Two reasons for keeping a prompt's pairs together (same section). The comparisons of a ranking repeat each
# other: shuffled into one data set, each response comes up in $K - 1$ updates, and the paper's model overfitted within
# a single pass. And it is cheaper: the model reads each response once for all the pairs it is in.
#
# **Ties.** Labelers may call two responses equally good. Eq. 1 does not say what becomes of them. We follow Christiano
# et al. (2017, §2.2): a tie is half a preference each way,
#
# $$-\tfrac12 \log\sigma(d) - \tfrac12 \log \sigma(-d),$$
#
# which is smallest at $d = 0$, where it is $\ln 2$: a tie pulls two rewards together. So a ranking always has
# $\binom K2$ pairs, with ties or without.


# %% solution="ranking"
def ranking_loss(
    rewards: Sequence[Float[Tensor, "responses"]], ranks: Sequence[Int[Tensor, "responses"]]
) -> Float[Tensor, ""]:
    """InstructGPT's loss over rankings (Ouyang et al. 2022, Eq. 1), in nats.

    Args:
        rewards: for each prompt the rewards of its K responses; K may differ from prompt to prompt.
        ranks: for each prompt the ranks of the same responses: of two, the one with the smaller rank was preferred;
            equal ranks are a tie. Only the order counts, not the numbers (1, 2, 4 is 0, 10, 11).

    Returns:
        The mean over the prompts of the mean over all K(K − 1)/2 pairs of a prompt's responses, each pair once. A
        pair costs the negative log-probability of its preference; a tied pair half of that of each order.

    Raises:
        ValueError: there is no prompt (the message says ``prompt``); a prompt's ranks are not as many as its
            rewards, or there are more or fewer prompts with ranks than with rewards (it says ``ranks``); or a
            prompt has fewer than two responses (it says ``responses``).
    """
    ### BEGIN SOLUTION
    if len(rewards) != len(ranks):
        raise ValueError(f"{len(rewards)} prompts have rewards, and {len(ranks)} have ranks")
    if not rewards:
        raise ValueError("there is no prompt")
    of_prompts = []
    for reward, rank in zip(rewards, ranks, strict=True):
        if reward.shape != rank.shape:
            raise ValueError(f"ranks are {tuple(rank.shape)}, rewards {tuple(reward.shape)}")
        if len(reward) < 2:
            raise ValueError(f"a ranking needs two responses, got {len(reward)}")
        i, j = torch.triu_indices(len(reward), len(reward), offset=1, device=reward.device)
        # 1 where the first was preferred, 1/2 for a tie, 0 where the second was.
        first_preferred = ((rank[j] - rank[i]).sign() + 1) / 2
        logits = reward[i] - reward[j]
        first, second = F.logsigmoid(logits), F.logsigmoid(-logits)
        of_prompts.append(-(first_preferred * first + (1 - first_preferred) * second).mean())
    return torch.stack(of_prompts).mean()
    ### END SOLUTION


# %% [markdown]
# By hand: strengths 4, 2 and 1 in the right order have the pairs 4 : 2, 4 : 1 and 2 : 1. A second prompt has one pair,
# strengths 1 : 3 with the second better.

# %% test="ranking_mean" points=2
two, three, four = math.log(2), math.log(3), math.log(4)
first = -(math.log(4 / 6) + math.log(4 / 5) + math.log(2 / 3)) / 3
second = -math.log(3 / 4)
check.close(
    ranking_loss([torch.tensor([two, four, 0.0])], [torch.tensor([2, 1, 3])]),
    first,
    because="The second response is best, then the first, then the third: three pairs, 4 : 6, 4 : 5 and 2 : 3, each "
    "once, and their mean. Rank 1 is the best.",
)
check.close(
    ranking_loss(
        [torch.tensor([two, four, 0.0]), torch.tensor([0.0, three])],
        [torch.tensor([2, 1, 3]), torch.tensor([2, 1])],
    ),
    (first + second) / 2,
    because="The mean of the two prompts' means: a prompt with three pairs weighs as much as one with one.",
)
for rewards, ranks, says in [
    ([], [], "prompt"),
    ([torch.zeros(3)], [torch.tensor([1, 2])], "ranks"),
    ([torch.zeros(1)], [torch.tensor([1])], "responses"),
]:
    check.raises(
        ValueError,
        ranking_loss,
        rewards,
        ranks,
        mentions=says,
        because="No prompt, ranks that do not fit the rewards and a single response are bad input: say prompt, ranks, "
        "or responses.",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "reward_model")
rng = inputs("ranking_mean")


def by_double_loop(rewards, ranks):
    """Every ordered pair, one by one: a pair counts where the first of the two was preferred."""
    means = []
    for reward, rank in zip(rewards, ranks, strict=True):
        found = []
        for w, better in zip(reward.tolist(), rank.tolist(), strict=True):
            for loser, worse in zip(reward.tolist(), rank.tolist(), strict=True):
                if better < worse:
                    found.append(math.log1p(math.exp(loser - w)))
        means.append(sum(found) / len(found))
    return sum(means) / len(means)


def ranking_of(k):
    """Rewards and a ranking without ties, which the rewards know nothing of."""
    reward = 2.0 * torch.randn(k, generator=rng, dtype=torch.float64).to(device)
    return reward, torch.randperm(k, generator=rng).to(device) + 1


cases = []
for ks in [(k,) for k in range(2, 10)] + [(4, 9), (9, 2, 5), (6, 7, 8, 4)]:
    drawn = [ranking_of(k) for k in ks]
    cases.append(([reward for reward, _ in drawn], [rank for _, rank in drawn]))
losses = each(ranking_loss, cases)
for (rewards, ranks), loss in zip(cases, losses, strict=True):
    check.close(
        loss,
        by_double_loop(rewards, ranks),
        because="For each prompt the mean over its K(K − 1)/2 pairs, each once, of −log σ(better − worse); then the "
        "mean over prompts, each weighing the same.",
    )
# The order of the responses, the numbers of the ranks and a constant for each prompt mean nothing.
rewards, ranks = cases[-1]
orders = [torch.randperm(len(r), generator=rng).to(device) for r in rewards]
levels = (10.0 * torch.randn(len(rewards), generator=rng)).tolist()
for changed, why in [
    (
        (
            [r[o] for r, o in zip(rewards, orders, strict=True)],
            [r[o] for r, o in zip(ranks, orders, strict=True)],
        ),
        "The loss depends on the order in which responses are listed: the ranks say which is better.",
    ),
    (
        (rewards, [7 * r - 20 for r in ranks]),
        "Ranks are an order: 1, 2, 3 is the same as -13, -6, 1.",
    ),
    (
        ([r + level for r, level in zip(rewards, levels, strict=True)], ranks),
        "A constant added to all rewards of a prompt changes no preference.",
    ),
    ((rewards[::-1], ranks[::-1]), "The order of the prompts means nothing."),
]:
    check.close(ranking_loss(*changed), losses[-1], because=why)
# The gradient, and what two responses are: a comparison.
own = [r.clone().requires_grad_() for r in rewards]
other = [r.clone().requires_grad_() for r in rewards]
ranking_loss(own, ranks).backward()
theirs.ranking_loss(other, ranks).backward()
for one, right in zip(own, other, strict=True):
    check.that(one.grad is not None, "No gradient reaches the rewards of a prompt.")
    check.close(one.grad, right.grad, because="The gradient of the rewards is off.")
for size in (200.0, 1e4):
    far = (size * torch.tensor([1.0, -1.0, 0.0, 0.5], device=device)).requires_grad_()
    order = torch.tensor([3, 1, 4, 2], device=device)
    loss = ranking_loss([far], [order])
    check.close(
        loss,
        theirs.ranking_loss([far.detach()], [order]),
        because="Rewards of ±10⁴ must give a finite loss: logsigmoid or softplus, not the logarithm of a sigmoid.",
    )
    loss.backward()
    check.that(
        far.grad is not None and bool(torch.isfinite(far.grad).all()),
        "The gradient is NaN or infinite for rewards that are far apart.",
    )
for wrong, says in [
    ((rewards, ranks[:3]), "ranks"),
    ((rewards[:3], ranks), "ranks"),
    (([], ranks[:1]), "ranks"),
    ((rewards[:2], [ranks[1], ranks[0]]), "ranks"),
    (([rewards[0], rewards[1][:1]], [ranks[0], ranks[1][:1]]), "responses"),
    (([rewards[0][:0]], [ranks[0][:0]]), "responses"),
    (([], []), "prompt"),
]:
    check.raises(
        ValueError,
        ranking_loss,
        *wrong,
        mentions=says,
        because="As many ranks as rewards, for as many prompts (say ranks); two responses at least (say responses); "
        "one prompt at least (say prompt).",
    )
### END HIDDEN TESTS

# %% test="ranking_ties" points=2
three = math.log(3)
tie = -(math.log(3 / 4) + math.log(1 / 4)) / 2
check.close(
    ranking_loss([torch.tensor([three, 0.0])], [torch.tensor([1, 1])]),
    tie,
    because="A tie is half a preference each way: the mean of −ln(3/4) and −ln(1/4).",
)
check.close(
    ranking_loss([torch.tensor([0.0, three, 0.0])], [torch.tensor([2, 1, 2])]),
    (-2 * math.log(3 / 4) + math.log(2)) / 3,
    because="Of three pairs two are preferences, 3 : 1 each, and one is a tie of equal rewards, ln 2. All three count.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "reward_model")
rng = inputs("ranking_ties")


def by_double_loop(rewards, ranks):
    """Every pair once; a tie costs half of either order."""
    means = []
    for reward, rank in zip(rewards, ranks, strict=True):
        reward, rank, found = reward.tolist(), rank.tolist(), []
        for i in range(len(rank)):
            for j in range(i):
                first = math.log1p(math.exp(reward[j] - reward[i]))
                second = math.log1p(math.exp(reward[i] - reward[j]))
                if rank[i] == rank[j]:
                    found.append((first + second) / 2)
                else:
                    found.append(first if rank[i] < rank[j] else second)
        means.append(sum(found) / len(found))
    return sum(means) / len(means)


cases = []
for ks in [(k,) for k in range(2, 10)] + [(5, 9, 4), (2, 8)]:
    rewards = [2.0 * torch.randn(k, generator=rng, dtype=torch.float64).to(device) for k in ks]
    # Two or three ranks for all: many ties. The last one always ties with the first.
    ranks = [torch.randint(1, 4, (k,), generator=rng).to(device) for k in ks]
    for rank in ranks:
        rank[-1] = rank[0]
    cases.append((rewards, ranks))
kept = [([r.clone() for r in rewards], [r.clone() for r in ranks]) for rewards, ranks in cases]
for (rewards, ranks), loss in zip(cases, each(ranking_loss, cases), strict=True):
    check.close(
        loss,
        by_double_loop(rewards, ranks),
        because="A tied pair costs half of −log σ(d) and half of −log σ(−d) and counts as one of the K(K − 1)/2 pairs.",
    )
check.equal(cases, kept, because="Rewards or ranks were changed in place.")
# All tied: the loss is smallest, ln 2, where all rewards are the same, and its gradient pulls them together.
level = torch.full((5,), 3.0, dtype=torch.float64, device=device)
same = torch.full((5,), 2, device=device)
check.close(
    ranking_loss([level], [same]),
    math.log(2),
    because="Equal rewards and a tie: ln 2 for each pair.",
)
spread = (level + torch.tensor([0.0, 1.0, -2.0, 3.0, -1.0], device=device)).requires_grad_()
loss = ranking_loss([spread], [same])
check.that(
    bool(loss > math.log(2) + 0.1), "Different rewards for tied responses must cost more than ln 2."
)
loss.backward()
other = spread.detach().clone().requires_grad_()
theirs.ranking_loss([other], [same]).backward()
check.that(spread.grad is not None, "No gradient reaches the rewards of tied responses.")
check.close(
    spread.grad, other.grad, because="A tie pulls two rewards together; its gradient is off."
)
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · Is it any good?
#
# **Accuracy** is the share of held-out comparisons in which the chosen response has the larger reward. People do not
# agree with each other either, so 100 % is out of reach: InstructGPT's reward models predicted the preferences of the
# labelers they were trained on with 72.4 %, and of labelers held out with 69.6 % (Ouyang et al. 2022, §4.1, in
# five-fold cross-validation). Two equal rewards are no prediction. They count one half, so that a model which
# gives every response the same reward has 50 %, as a coin, and not 0 or 100.
#
# **Calibration** asks for more: when the model says 80 %, is it right in 80 of 100 cases? Reinforcement learning uses
# differences of rewards, not just their sign, so their size should mean what Bradley–Terry says it means. Sort the
# predictions $p_n = \sigma(r_1 - r_2)$ into $M$ bins of equal width, $[0, \frac1M), [\frac1M, \frac2M), \dots,
# [\frac{M-1}{M}, 1]$. In each bin $B_m$ compare the mean prediction with the share of cases in which the first was
# in fact preferred:
#
# $$\text{predicted}_m = \frac1{|B_m|}\sum_{n \in B_m} p_n, \qquad
# \text{observed}_m = \frac1{|B_m|}\sum_{n \in B_m} [\text{first preferred}]_n.$$
#
# The *expected calibration error* (Naeini et al. 2015; Guo et al. 2017) is the mean distance, each bin with the
# share of the $N$ predictions in it; a bin without predictions says nothing and weighs nothing:
#
# $$\text{ECE} = \sum_{m=1}^M \frac{|B_m|}{N}\,\big|\text{observed}_m - \text{predicted}_m\big|.$$
#
# A trap: comparison data are stored as (chosen, rejected). With the chosen one always as "first" the observed share is
# 1 in every bin, and the curve shows nothing. Which of two comes first must not depend on which was preferred: keep the
# order in which the labeler saw them, or toss a coin.


# %%
class Calibration(NamedTuple):
    """What was predicted and what came, for each bin: ``(bins,)`` each. Without predictions, NaN, NaN and 0."""

    predicted: Tensor  # the mean of the predicted probabilities
    observed: Tensor  # the share of cases in which the first was preferred
    count: Tensor  # how many predictions


# %% solution="evaluation"
def comparison_accuracy(
    chosen: Float[Tensor, "..."], rejected: Float[Tensor, "..."]
) -> Float[Tensor, ""]:
    """The share of comparisons in which the chosen response has the larger reward; equal rewards count one half.

    Raises:
        ValueError: as ``pairwise_loss``: the shapes differ (the message says ``shape``), or there is no
            comparison (it says ``comparison``).
    """
    ### BEGIN SOLUTION
    if chosen.shape != rejected.shape:
        raise ValueError(
            f"chosen and rejected must have one shape, got {tuple(chosen.shape)} and {tuple(rejected.shape)}"
        )
    if chosen.numel() == 0:
        raise ValueError("there is no comparison")
    return (chosen > rejected).to(chosen).mean() + (chosen == rejected).to(chosen).mean() / 2
    ### END SOLUTION


def calibration(
    probabilities: Float[Tensor, "comparisons"],
    first_preferred: Bool[Tensor, "comparisons"],
    bins: int = 10,
) -> Calibration:
    """Predicted probability against observed frequency, in ``bins`` bins of equal width.

    Bin ``m`` holds the probabilities p with m/bins ≤ p < (m + 1)/bins; the last one also p = 1. (Where an edge is no
    binary fraction, a probability within rounding of it may go to either side.)

    Args:
        probabilities: that the first of two responses is preferred.
        first_preferred: whether it was.

    Returns:
        Three tensors ``(bins,)``: mean prediction, observed share, number of predictions. An empty bin has NaN, NaN, 0.

    Raises:
        ValueError: the shapes differ (the message says ``shape``), there is no comparison (it says
            ``comparison``), a probability is not from 0 to 1 (it says ``probabilities``), or ``bins`` is less
            than 1 (it says ``bins``).
    """
    ### BEGIN SOLUTION
    if probabilities.shape != first_preferred.shape:
        raise ValueError(
            f"probabilities and first_preferred must have one shape, got {tuple(probabilities.shape)} and "
            f"{tuple(first_preferred.shape)}"
        )
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if probabilities.numel() == 0:
        raise ValueError("there is no comparison")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must lie between 0 and 1")
    in_bin = (probabilities * bins).long().clamp(max=bins - 1)
    count = torch.bincount(in_bin, minlength=bins)

    def mean(values: Tensor) -> Tensor:
        return torch.bincount(in_bin, weights=values, minlength=bins) / count

    return Calibration(mean(probabilities), mean(first_preferred), count)
    ### END SOLUTION


def expected_calibration_error(
    probabilities: Float[Tensor, "comparisons"],
    first_preferred: Bool[Tensor, "comparisons"],
    bins: int = 10,
) -> Float[Tensor, ""]:
    """The distance of prediction and observation in the bins of ``calibration``, each with its share of the data.

    Raises:
        ValueError: as ``calibration``.
    """
    ### BEGIN SOLUTION
    predicted, observed, count = calibration(probabilities, first_preferred, bins)
    distance = (observed - predicted).abs().nan_to_num()
    return (distance * count).sum() / count.sum()
    ### END SOLUTION


# %% test="accuracy" points=1
check.close(
    comparison_accuracy(torch.tensor([2.0, -1.0, 0.0, 5.0]), torch.tensor([1.0, -3.0, 4.0, 5.0])),
    (1 + 1 + 0 + 0.5) / 4,
    because="Two right, one wrong, and two equal rewards, which count one half.",
)
check.close(
    comparison_accuracy(torch.zeros(3), torch.zeros(3)),
    0.5,
    because="A model that gives everything the same reward has said nothing: 50 %, neither 0 nor 100.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "reward_model")
rng = inputs("accuracy")
cases = [
    # Few different rewards, negative ones too: ties occur.
    tuple(torch.randint(-3, 4, (2, *shape), generator=rng).double().to(device))
    for shape in [(), (1,), (9,), (5, 7), (2, 3, 4)]
]
got = each(comparison_accuracy, cases)
for case, accuracy in zip(cases, got, strict=True):
    check.close(
        accuracy,
        theirs.comparison_accuracy(*case),
        because="One share over all comparisons: 1 where chosen > rejected, 1/2 where they are equal, 0 where it is "
        "less.",
    )
close_by = 1e4 + torch.tensor([0.0, 1e-3, -1e-3], dtype=torch.float64, device=device)
check.close(
    comparison_accuracy(close_by, torch.full_like(close_by, 1e4)),
    0.5,
    because="Rewards that differ a little are not equal: compare them as they are.",
)
chosen, rejected = cases[3]
check.close(
    comparison_accuracy(chosen, rejected) + comparison_accuracy(rejected, chosen),
    1.0,
    because="What is right one way round is wrong the other way, and ties are half each time.",
)
check.raises(
    ValueError,
    comparison_accuracy,
    chosen,
    rejected[:1],
    mentions="shape",
    because="chosen and rejected have one shape, and nothing is broadcast: say shape.",
)
check.raises(
    ValueError,
    comparison_accuracy,
    chosen[:0],
    rejected[:0],
    mentions="comparison",
    because="Without a comparison there is no share: say comparison.",
)
### END HIDDEN TESTS

# %% test="calibration_bins" points=3
probabilities = torch.tensor([0.1, 0.2, 0.5, 0.7, 0.9, 1.0])
preferred = torch.tensor([False, True, True, False, True, True])
found = calibration(probabilities, preferred, bins=4)
check.equal(
    found.count,
    [2, 0, 2, 2],
    because="Bins [0, ¼), [¼, ½), [½, ¾), [¾, 1]: 0.5 belongs to the third, and 1 to the last.",
)
check.close(
    found.predicted,
    [0.15, math.nan, 0.6, 0.95],
    because="The mean of the predictions in each bin, not its middle; NaN where there are none.",
)
check.close(
    found.observed,
    [0.5, math.nan, 0.5, 1.0],
    because="The share of cases in which the first was preferred; NaN where there are none.",
)
check.close(
    expected_calibration_error(probabilities, preferred, bins=4),
    (2 * 0.35 + 2 * 0.1 + 2 * 0.05) / 6,
    because="Distances 0.35, 0.1 and 0.05 with two of six predictions each; the empty bin weighs nothing.",
)
check.raises(
    ValueError,
    calibration,
    torch.tensor([0.5, 1.2]),
    torch.tensor([True, False]),
    mentions="probabilities",
    because="1.2 is no probability (a reward, perhaps): say probabilities.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("alignment", "reward_model")
rng = inputs("calibration_bins")
for number, bins in [(200, 10), (40, 7), (5, 16), (1, 3), (30, 1)]:
    # Away from the edges, where rounding decides. Low, middle and high ones.
    cell = torch.randint(bins, (number,), generator=rng)
    within = 0.05 + 0.9 * torch.rand(number, generator=rng, dtype=torch.float64)
    probabilities = ((cell + within) / bins).to(device)
    preferred = (torch.rand(number, generator=rng) < 0.6).to(device)
    kept = probabilities.clone()
    right = theirs.calibration(probabilities, preferred, bins)
    found = calibration(probabilities, preferred, bins)
    check.equal(
        found.count,
        right.count,
        because="The count of each bin of width 1/bins, empty ones with 0.",
    )
    check.close(
        found.predicted,
        right.predicted,
        because="The mean of the predictions in each bin (not its middle), NaN for an empty one.",
    )
    check.close(
        found.observed,
        right.observed,
        because="The share of True in each bin, NaN for an empty one.",
    )
    check.close(
        expected_calibration_error(probabilities, preferred, bins),
        theirs.expected_calibration_error(probabilities, preferred, bins),
        because="Σ count/N · |observed − predicted| over the bins that are not empty.",
    )
    check.equal(probabilities, kept, because="The probabilities were changed in place.")
low = torch.tensor([0.31, 0.11, 0.33], dtype=torch.float64, device=device)
check.equal(
    calibration(low, preferred[:3]).count,
    [0, 1, 0, 2, 0, 0, 0, 0, 0, 0],
    because="Without bins given there are 10, and the last ones are there too when they are empty.",
)
check.equal(
    torch.isnan(torch.as_tensor(calibration(low, preferred[:3]).observed)),
    [True, False, True, False] + [True] * 6,
    because="An empty bin has NaN, also the last ones.",
)
check.close(
    expected_calibration_error(probabilities, preferred),
    theirs.expected_calibration_error(probabilities, preferred, 10),
    because="Without bins given there are 10.",
)
# Edges that floating point knows exactly: a probability on an edge goes up, and 1 goes into the last bin.
edges = torch.arange(9, dtype=torch.float64, device=device) / 8
outcome = torch.tensor([True, False, True] * 3, device=device)
check.equal(
    calibration(edges, outcome, 8).count,
    [1] * 7 + [2],
    because="Bin m starts at m/bins, this value included; the last one includes 1 too.",
)
check.close(
    calibration(edges, outcome, 4).observed,
    theirs.calibration(edges, outcome, 4).observed,
    because="Bin m starts at m/bins, this value included; the last one includes 1 too.",
)
# Errors of opposite sign in different bins do not cancel; within a bin they do.
sure = torch.tensor([0.05, 0.95], dtype=torch.float64, device=device)
check.close(
    expected_calibration_error(sure, torch.tensor([True, False], device=device), 10),
    0.95,
    because="Too high in one bin and too low in another are both errors: the distance is taken in each bin.",
)
check.close(
    expected_calibration_error(sure, torch.tensor([True, False], device=device), 1),
    0.0,
    because="In one bin the mean prediction, 1/2, is what was observed.",
)
for arguments, says in [
    ((edges, outcome[:8], 4), "shape"),
    ((edges[:0], outcome[:0], 4), "comparison"),
    ((edges, outcome, 0), "bins"),
    ((edges, outcome, -2), "bins"),
    ((edges + 0.01, outcome, 4), "probabilities"),
    ((edges - 0.01, outcome, 4), "probabilities"),
    ((edges + math.nan, outcome, 4), "probabilities"),
]:
    for function in (calibration, expected_calibration_error):
        check.raises(
            ValueError,
            function,
            *arguments,
            mentions=says,
            because="Say shape, comparison, bins or probabilities where one of them is not as it should be.",
        )
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · Where is zero?
#
# Comparisons fix rewards up to a constant, so the level of a trained reward model is an accident of its initialisation.
# Reinforcement learning gets the number itself. There a constant changes no best policy, but it does change what the
# first estimates of value look like, and a positive level can be read as praise for anything. Ouyang et al. (2022,
# §3.5) fix it before reinforcement learning: a bias is added so that the *demonstrations*, responses written by people,
# have a mean reward of 0. Then a positive reward says: better than what a labeler writes, on average.
#
# It is a shift and nothing else. Dividing by the standard deviation as well would change every preference that the
# model predicts, for $\sigma(d / s) \ne \sigma(d)$. For your model the shift is one line on `head.bias`; here it is
# applied to rewards.


# %% solution="shift"
def shift_rewards(
    rewards: Float[Tensor, "..."], demonstrations: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """The rewards after the shift that gives demonstrations a mean of 0 (Ouyang et al. 2022, §3.5).

    Args:
        rewards: of any responses.
        demonstrations: rewards of the demonstrations, before the shift; one mean over all of them.

    Returns:
        A new tensor of the shape of ``rewards``; nothing is changed in place.

    Raises:
        ValueError: there is no demonstration (the message says ``demonstration``).
    """
    ### BEGIN SOLUTION
    if demonstrations.numel() == 0:
        raise ValueError("there is no demonstration")
    return rewards - demonstrations.mean()
    ### END SOLUTION


# %% test="shift_mean" points=1
check.close(
    shift_rewards(torch.tensor([5.0, 1.0]), torch.tensor([2.0, 4.0, 6.0])),
    [1.0, -3.0],
    because="The demonstrations have the mean 4, so everything moves down by 4: the mean of the demonstrations, not of "
    "the rewards.",
)
check.raises(
    ValueError,
    shift_rewards,
    torch.zeros(2),
    torch.zeros(0),
    mentions="demonstration",
    because="Without demonstrations there is no mean: say demonstration.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("alignment", "reward_model")
rng = inputs("shift_mean")
for shape, many in [((), 1), ((5,), 4), ((3, 4), 7), ((2, 3, 2), 1)]:
    rewards = 3.0 * torch.randn(shape, generator=rng, dtype=torch.float64).to(device) - 1.0
    demonstrations = 2.0 * torch.randn(many, generator=rng, dtype=torch.float64).to(device) + 4.0
    kept = rewards.clone(), demonstrations.clone()
    check.close(
        shift_rewards(rewards, demonstrations),
        theirs.shift_rewards(rewards, demonstrations),
        because="Every reward moves by the mean of the demonstrations, and by nothing else.",
    )
    check.close(
        shift_rewards(demonstrations, demonstrations).mean(),
        0.0,
        because="After the shift the demonstrations have the mean 0.",
    )
    check.equal((rewards, demonstrations), kept, because="The rewards were changed in place.")
table = torch.randn(3, 4, generator=rng, dtype=torch.float64).to(device)
shifted = shift_rewards(table, demonstrations.expand(2, 5) + table[:2, :1])
check.close(
    shifted[:, :1] - shifted,
    table[:, :1] - table,
    because="A shift leaves all differences as they are, and so every preference: one mean, over all demonstrations.",
)
### END HIDDEN TESTS

# %% [markdown] written="reward_model_why" points=2
# **In your own words.** A colleague has 1,000 prompts with $K = 9$ ranked responses and 3,000 with $K = 4$. They put
# all pairs into one list, shuffle it, and train on batches of 64 pairs for one epoch. How many of the pairs come from
# the prompts with nine responses, and what does that do to the loss, compared with Eq. 1? Why may the model
# overfit within one epoch? Their model then reaches 95 % on training comparisons and 66 % on held-out ones, and on
# those its predictions of 90 % come true in 70 % of cases. What would reinforcement learning make of that, and would
# the shift of part 5 help? (6 to 10 sentences.)

# %% [markdown]
# ## Experiment: learn what people like
#
# The world of this chapter is small, and its truth is known. Instructions ask where somebody lives, what they do, for
# the opposite of a word, or for one word of a list. The checkpoint `instruct`, a language model fine-tuned on
# demonstrations, answers each of them four times: rightly or wrongly, briefly or at length, with courtesies or without.
# The *gold reward* likes a right answer most and an admission of not knowing better than a wrong answer, likes a
# courtesy or two, and dislikes hesitations and length. Nobody sees it: *labelers* rank the four responses, each ranking
# drawn with Bradley–Terry's probabilities. So they err, most often where two responses are nearly as good, and they
# contradict each other. Your model starts from the language model's weights and gets rankings, nothing else.
#
# Because the truth is known, so is the best accuracy that *any* model can expect against such labels: that of the gold
# reward itself. Before you run it: with 50 ranked prompts, will the accuracy be nearer to that bound or to the coin?
# It takes about a minute; on a GPU a larger preset runs.

# %% experiment=true
import matplotlib.pyplot as plt

from lab import checkpoints, figures, training
from lab import instructions as world

BATCH, STEPS, SIZES = (
    (32, 1500, (50, 200, 800, 3200, 12800))
    if device.type == "cuda"
    else (16, 400, (50, 200, 800, 3200))
)
K, HELD_OUT, SEED = 4, 500, 0

start = checkpoints.load("instruct").model.to(device)


class Ranked(NamedTuple):
    """Ranked responses of the start to some instructions."""

    tokens: Tensor  # (prompts K length)
    mask: Tensor  # (prompts K length)
    ranks: Tensor  # (prompts K), 0 for the best
    gold: Tensor  # (prompts K)


def as_tensors(asked: list, responses: list) -> tuple[Tensor, Tensor]:
    """Prompt and response as tokens, and the mask."""
    texts = world.texts(asked, responses)
    return texts.tokens.to(device), texts.mask.to(device)


def ranked(split: str, prompts: int, rng: torch.Generator) -> Ranked:
    """Has the start answer each instruction ``K`` times, and labelers rank the responses."""
    asked = [one for one in world.instructions(split, prompts, rng) for _ in range(K)]
    responses = world.respond(start, asked, rng)
    gold = torch.tensor(list(map(world.gold, asked, responses))).view(prompts, K)
    tokens, mask = (x.view(prompts, K, -1) for x in as_tensors(asked, responses))
    return Ranked(tokens, mask, world.rank(gold, rng).to(device), gold.to(device))


train_set = ranked("comparisons", max(SIZES), lab.generator(f"labels {SEED}"))
held_out = ranked("test", HELD_OUT, lab.generator("held-out labels"))
for i in held_out.ranks[0].argsort():
    words = " ".join(world.decode(held_out.tokens[0, i][held_out.mask[0, i]].cpu()))
    print(f"ranked {held_out.ranks[0, i] + 1}, gold {held_out.gold[0, i]:+.1f}: {words}")


def rewards_of(model: RewardModel, tokens: Tensor, mask: Tensor) -> Tensor:
    """Rewards ``(prompts K)``: every response is read once, for all pairs it is in."""
    return model(tokens.flatten(0, 1), mask.flatten(0, 1)).view(tokens.shape[:2])


def trained(prompts: int) -> RewardModel:
    """Your model after training on the first so many ranked prompts."""
    torch.manual_seed(SEED)
    vocab_size, d_model = start.embed.tokens.weight.shape
    heads, layers = start.blocks[0].attention.num_heads, len(start.blocks)
    model = RewardModel(vocab_size, d_model, heads, layers, world.MAX_LENGTH).to(device)
    model.body.load_state_dict(start.state_dict())
    tokens, mask, ranks, _ = train_set

    def batch(rng: torch.Generator) -> Tensor:
        return torch.randint(prompts, (BATCH,), generator=rng).to(device)

    def loss_of(model: RewardModel, some: Tensor) -> Tensor:
        return ranking_loss(list(rewards_of(model, tokens[some], mask[some])), list(ranks[some]))

    training.train(
        model,
        batch,
        loss_of,
        STEPS,
        lr=2e-3,
        generator=lab.generator(f"rankings {SEED}"),
        label=f"{prompts} ranked prompts",
    )
    return model


models = {prompts: trained(prompts) for prompts in SIZES}

# %% [markdown]
# Three questions to the models, all on rankings that none of them was trained on. How often do they agree with the
# labelers? Do predictions of 80 % come true in 80 %? And what happens to the rewards of demonstrations in the shift?

# %% experiment=true
tokens, mask, ranks, gold = held_out
pair = torch.triu_indices(K, K, offset=1, device=device)
# The responses stand in the order in which they were drawn, which knows nothing of their ranks.
first_preferred = (ranks[:, pair[0]] < ranks[:, pair[1]]).flatten()


def accuracy_of(rewards: Tensor) -> float:
    """Accuracy on the held-out comparisons, by your function."""
    first, second = rewards[:, pair[0]].flatten(), rewards[:, pair[1]].flatten()
    chosen = torch.where(first_preferred, first, second)
    rejected = torch.where(first_preferred, second, first)
    return comparison_accuracy(chosen, rejected).item()


def predictions_of(rewards: Tensor) -> Tensor:
    """The probability, for every held-out pair, that the first is preferred."""
    return preference_probability(rewards[:, pair[0]], rewards[:, pair[1]]).flatten()


with torch.no_grad():
    rewards = {prompts: rewards_of(model, tokens, mask) for prompts, model in models.items()}
accuracy = {prompts: accuracy_of(rewards[prompts]) for prompts in SIZES}
error = {
    prompts: expected_calibration_error(predictions_of(rewards[prompts]), first_preferred).item()
    for prompts in SIZES
}
best = accuracy_of(gold)

rng = lab.generator("shown")
asked = world.instructions("demonstrations", 300, rng)
shown = [world.demonstrate(one, rng) for one in asked]
few, many = SIZES[0], SIZES[-1]
with torch.no_grad():
    demonstrations = models[many](*as_tensors(asked, shown))
others = rewards[many].flatten()
after = [shift_rewards(some, demonstrations).cpu() for some in (demonstrations, others)]
before = [demonstrations.cpu(), others.cpu()]

figures.use_style()
fig, (ax_acc, ax_cal, ax_shift) = plt.subplots(1, 3, figsize=(11, 3.6))
ax_acc.semilogx(SIZES, [accuracy[n] for n in SIZES], "o-", label="your model")
ax_acc.axhline(best, color="C1", linestyle="--", label="gold reward")
ax_acc.axhline(0.5, color="grey", linestyle=":", label="coin")
ax_acc.set_xticks(SIZES, SIZES, fontsize=9)
ax_acc.minorticks_off()
ax_acc.set(xlabel="ranked prompts", ylim=(0.45, 0.95), title="held-out accuracy")
ax_acc.legend(fontsize=8, loc="upper left")
ax_cal.plot([0, 1], [0, 1], color="grey", linestyle=":")
for prompts, style in ((few, "s--"), (many, "o-")):
    curve = calibration(predictions_of(rewards[prompts]), first_preferred)
    label = f"{prompts} prompts, error {error[prompts]:.3f}"
    ax_cal.plot(curve.predicted.cpu(), curve.observed.cpu(), style, label=label)
ax_cal.set(xlabel="predicted", ylabel="observed", title="first preferred", xlim=(0, 1), ylim=(0, 1))
ax_cal.legend(fontsize=8, loc="upper left")
ax_shift.boxplot(
    [before[0], before[1], after[0], after[1]],
    showfliers=False,
    tick_labels=[
        "demon-\nstrations\nbefore",
        "others\nbefore",
        "demon-\nstrations\nafter",
        "others\nafter",
    ],
)
ax_shift.axhline(0, color="grey", linestyle=":")
ax_shift.tick_params(axis="x", labelsize=8)
ax_shift.set(title=f"rewards, {many} prompts")
figures.show(
    fig,
    alt="Left, held-out accuracy: "
    + ", ".join(f"{accuracy[n]:.3f} with {n} ranked prompts" for n in SIZES)
    + f"; the gold reward has {best:.3f}. Middle, calibration curves: expected calibration error {error[few]:.3f} with "
    f"{few} prompts and {error[many]:.3f} with {many}. Right, rewards before and after the shift: mean of the "
    f"demonstrations {before[0].mean():.2f} and {after[0].mean():.2f}, of other responses {before[1].mean():.2f} and "
    f"{after[1].mean():.2f}.",
)

# %% [markdown]
# The accuracy rises with the number of ranked prompts towards the dashed line, and not towards 1: what is missing there
# is the labelers' noise, which no model can predict. All models took the same number of steps, so the one with the
# fewest prompts has seen each of them most often. It has learnt its labels by heart, noise included, and speaks with a
# certainty that is not borne out: its calibration curve leaves the diagonal. A number for the accuracy would not have
# told you so.
#
# The shift moves demonstrations and others by the same amount and changes nothing else. What can be read off
# afterwards, and could not before, is whether a response is better or worse than what people write. It mends no
# calibration and no order.
#
# How far such a reward can be *raised* before it parts from the gold one is not shown here: all responses came from the
# distribution that the labelers had seen. Change `SEED`, or let the labelers err more: multiply the noise in `ranking`
# and see what happens to the dashed line and to the calibration curve.
