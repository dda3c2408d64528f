# %% [markdown]
# # GPT
#
# Half of the Transformer is enough, if it is asked one thing only: which token comes next? GPT (Radford et al. 2018)
# took the decoder, left out the encoder and the attention to it, trained it on books without a label, and fine-tuned it
# for a task; GPT-2 (Radford et al. 2019) and GPT-3 (Brown et al. 2020) left out the fine-tuning and wrote the task into
# the text. You build the loss, the model, generation that reads each token once, the head of 2018 and the prompt of
# 2020; then you train it on the plays of Shakespeare.
#
# **You build** the causal language-model loss, GPT-2's block and model, generation with a key-value cache, a
# classification head, zero-, one- and few-shot prompts
# · **Minutes** 120 · **Points** 20 · **Difficulty** ●●● ·
# **Before this** [GPT](../../book/pretraining/gpt.md), [The Transformer, block by block](../transformer/block.ipynb)
#
# Run a cell with Shift+Enter. Write your answers where it says `YOUR CODE HERE`, then run the tests below them.
# A test that passes is silent; one that fails says what it expected, what came, and which mistake usually does that.
# More tests, on other inputs, run when your notebook is graded.

# %%
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

import lab
from lab import check

device = lab.device()

# What an attention layer remembers: the keys and the values of all positions it has read.
KeysValues = tuple[
    Float[Tensor, "batch heads positions d_head"], Float[Tensor, "batch heads positions d_head"]
]


def set_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """For the tests: loads the weights by name, and says which names or shapes are not as they should be."""
    check.equal(
        {name: tuple(value.shape) for name, value in module.state_dict().items()},
        {name: tuple(value.shape) for name, value in weights.items()},
        because="The module's parameters must have the names and shapes of its docstring, and there must be no others.",
    )
    module.load_state_dict(weights)


# %% [markdown]
# ## 1 · The loss
#
# By the chain rule the probability of a text is a product, each token given those before it. GPT is trained to make
# its logarithm large (Radford et al. 2018, Eq. 1):
#
# $$L_1 = \sum_i \log P(u_i \mid u_{i-k}, \dots, u_{i-1})$$
#
# $k$ is the length of the context. As everywhere in this course the loss is the negative of that, as a *mean* over the
# predicted tokens, in nats.
#
# One pass of a decoder gives all these probabilities at once: the logits at position $t$ have seen the tokens
# $0, \dots, t$ and are about token $t + 1$. So logits and tokens are compared with a shift of one:
#
# ```
# tokens        F     i     r     s     t
# logits at     0     1     2     3     4
# predict       i     r     s     t     (nothing is there to compare with)
# ```
#
# The first token is predicted by nobody and the last logits predict nothing we know. A text of $n$ tokens has $n - 1$
# predictions. Without the shift the model is asked for the token it is looking at, and learns to copy it: the loss
# falls to almost 0, and what is generated is one character repeated.
#
# In a batch, shorter texts are filled up, and the filling must not be learnt. So the loss takes a mask. It says of
# each *token* whether it is counted when it is predicted; it is shifted with the tokens. The mean is taken over
# all counted tokens of the batch together, so that each counts the same, in a long text or a short one.


# %% solution="loss"
def causal_lm_loss(
    logits: Float[Tensor, "... length vocab"],
    tokens: Int[Tensor, "... length"],
    mask: Bool[Tensor, "... length"] | None = None,
) -> Float[Tensor, ""]:
    """The mean negative log-probability, in nats, of each token given those before it (Radford et al. 2018, Eq. 1).

    Args:
        logits: those at position ``t`` are for token ``t + 1``. Not normalised.
        tokens: what the model read. Leading dimensions are free.
        mask: ``True`` where a token counts when it is predicted; without it all count. What stands at the
            first position means nothing, for no logits predict that token. A token that does not count may be
            any number, also one outside the vocabulary.

    Returns:
        One mean over all counted tokens of the batch (not a mean of the sequences' means).

    Raises:
        ValueError: ``tokens`` or ``mask`` is not of the shape of ``logits`` without its last dimension (the
            message says ``tokens`` or ``mask``), or no token is left to predict (it says ``predict``).
    """
    ### BEGIN SOLUTION
    if tokens.shape != logits.shape[:-1]:
        raise ValueError(
            f"tokens must be of shape {tuple(logits.shape[:-1])}, got {tuple(tokens.shape)}"
        )
    if mask is None:
        mask = torch.ones_like(tokens, dtype=torch.bool)
    if mask.shape != tokens.shape:
        raise ValueError(f"mask must be of shape {tuple(tokens.shape)}, got {tuple(mask.shape)}")
    counted = mask[..., 1:]
    if not counted.any():
        raise ValueError("there is no token to predict")
    # The logits at t meet the token at t + 1.
    return F.cross_entropy(logits[..., :-1, :][counted], tokens[..., 1:][counted])
    ### END SOLUTION


# %% [markdown]
# By hand, with two tokens in the vocabulary: logits $(\ln 3, 0)$ give the probabilities $3/4$ and $1/4$. With the same
# logits everywhere the text 0, 0, 1 costs $-\ln\frac34$ for its second token and $-\ln\frac14$ for its third.

# %% test="loss_shift" points=1
three_to_one = torch.tensor([math.log(3), 0.0])
check.close(
    causal_lm_loss(three_to_one.expand(3, 2), torch.tensor([0, 0, 1])),
    -(math.log(3 / 4) + math.log(1 / 4)) / 2,
    because="Three tokens have two predictions: token 1 from the logits at 0, token 2 from those at 1. Mean, in nats.",
)
# Logits sure of the token that follows, and of nothing else.
text = torch.tensor([[2, 0, 1, 1, 2]])
sure = 50.0 * F.one_hot(torch.tensor([[0, 1, 1, 2, 0]]), 3).float()
check.close(
    causal_lm_loss(sure, text),
    0.0,
    because="These logits are sure of the next token, so the loss is 0: the logits at t belong to token t + 1.",
)
check.raises(
    ValueError,
    causal_lm_loss,
    torch.zeros(2, 3, 5),
    torch.zeros(2, 4, dtype=torch.int64),
    mentions="tokens",
    because="Four tokens and three rows of logits do not belong together: say tokens.",
)
check.raises(
    ValueError,
    causal_lm_loss,
    torch.zeros(2, 1, 5),
    torch.zeros(2, 1, dtype=torch.int64),
    mentions="predict",
    because="A text of one token has nothing to predict, and the mean of nothing is NaN: refuse it, and say predict.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("pretraining", "gpt")
rng = inputs("loss_shift")
for shape in [(2,), (6,), (3, 4), (2, 3, 5)]:
    tokens = torch.randint(7, shape, generator=rng).to(device)
    logits = 2.0 * torch.randn(*shape, 7, generator=rng, dtype=torch.float64).to(device)
    before = logits.clone()
    check.close(
        causal_lm_loss(logits, tokens),
        theirs.causal_lm_loss(logits, tokens),
        because="The loss is the mean over all predictions of −log softmax(logits at t)[token t + 1], for any leading "
        "dimensions.",
    )
    check.close(logits, before, because="The function changed the logits in place.")
# The first token and the last logits take no part.
tokens = torch.randint(7, (3, 5), generator=rng).to(device)
logits = torch.randn(3, 5, 7, generator=rng, dtype=torch.float64).to(device)
loss = causal_lm_loss(logits, tokens)
other_start, other_end = tokens.clone(), logits.clone()
other_start[:, 0] = (other_start[:, 0] + 1) % 7
other_end[:, -1] += 3.0 * torch.randn(7, generator=rng, dtype=torch.float64).to(device)
check.close(
    causal_lm_loss(other_end, other_start),
    loss,
    because="The loss moved with the first token or with the last logits; no prediction has to do with them.",
)
# Sure and wrong: −log of a probability that is 0 in floating point.
check.close(
    causal_lm_loss(1e3 * logits, tokens),
    theirs.causal_lm_loss(1e3 * logits, tokens),
    because="Large logits must not overflow: use cross_entropy or log_softmax, not the logarithm of a softmax.",
)
# Not contiguous, and the gradient.
own = torch.randn(7, 4, 3, generator=rng, dtype=torch.float64).to(device).requires_grad_()
other = own.detach().clone().requires_grad_()
tokens = torch.randint(7, (4, 3), generator=rng).to(device).T
causal_lm_loss(own.permute(2, 1, 0), tokens).backward()
theirs.causal_lm_loss(other.permute(2, 1, 0), tokens).backward()
check.that(own.grad is not None, "No gradient reaches the logits: is something detached?")
check.close(own.grad, other.grad, because="The gradient of the logits is off.")
for shape in [(4,), (3,), (3, 5, 1), (15,)]:
    check.raises(
        ValueError,
        causal_lm_loss,
        logits,
        torch.zeros(shape, dtype=torch.int64, device=device),
        mentions="tokens",
        because="tokens must have the shape of the logits without the vocabulary.",
    )
### END HIDDEN TESTS

# %% test="loss_mask" points=2
# The second text is shorter: its last two tokens are filling.
logits = torch.tensor([math.log(3), 0.0]).expand(2, 4, 2)
tokens = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 0]])
real = torch.tensor([[True, True, True, True], [True, True, False, False]])
check.close(
    causal_lm_loss(logits, tokens, real),
    -(2 * math.log(3 / 4) + 2 * math.log(1 / 4)) / 4,
    because="Four tokens are counted (0, 0, 1 of the first text, 1 of the second): one mean over these four.",
)
check.raises(
    ValueError,
    causal_lm_loss,
    logits,
    tokens,
    torch.tensor([[True, False, False, False]] * 2),
    mentions="predict",
    because="Only first tokens are left, which nobody predicts: say predict.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("pretraining", "gpt")
rng = inputs("loss_mask")
for shape in [(6,), (3, 5), (2, 3, 4)]:
    tokens = torch.randint(7, shape, generator=rng).to(device)
    logits = 2.0 * torch.randn(*shape, 7, generator=rng, dtype=torch.float64).to(device)
    mask = (torch.rand(shape, generator=rng) < 0.5).to(device)
    mask[..., 1:3], mask[..., -1] = True, False
    expected = theirs.causal_lm_loss(logits, tokens, mask)
    check.close(
        causal_lm_loss(logits, tokens, mask),
        expected,
        because="With a mask the loss is one mean over the counted tokens; the mask belongs to the token that is "
        "predicted, so it is shifted with the tokens.",
    )
    first = mask.clone()
    first[..., 0] = ~first[..., 0]
    check.close(
        causal_lm_loss(logits, tokens, first),
        expected,
        because="What the mask says of the first token means nothing: nobody predicts it.",
    )
    # What is not counted may be anything.
    filled, noisy = tokens.clone(), logits.clone()
    filled[..., 1:][~mask[..., 1:]] = -100
    filled[..., -1] = 10_000
    noisy[..., :-1, :][~mask[..., 1:]] = 30.0
    check.close(
        causal_lm_loss(noisy, filled, mask),
        expected,
        because="A token that does not count changed the loss, or its id was looked up: it may be any number.",
    )
# Texts of different lengths: a mean over tokens, not over texts.
tokens = torch.randint(7, (2, 6), generator=rng).to(device)
logits = torch.randn(2, 6, 7, generator=rng, dtype=torch.float64).to(device)
logits[1] *= 4.0
mask = torch.ones(2, 6, dtype=torch.bool, device=device)
mask[1, 2:] = False
check.close(
    causal_lm_loss(logits, tokens, mask),
    theirs.causal_lm_loss(logits, tokens, mask),
    because="Each counted token has the same weight, whether its text is long or short: one mean over the batch.",
)
own, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
causal_lm_loss(own, tokens, mask).backward()
theirs.causal_lm_loss(other, tokens, mask).backward()
check.that(own.grad is not None, "No gradient reaches the logits.")
check.close(
    own.grad,
    other.grad,
    because="The gradient is off: logits whose next token does not count get none.",
)
for shape in [(1, 6), (6,), (2, 5)]:
    check.raises(
        ValueError,
        causal_lm_loss,
        logits,
        tokens,
        torch.ones(shape, dtype=torch.bool, device=device),
        mentions="mask",
        because="A mask of another shape is bad input, also where it would broadcast: say mask.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · Causal self-attention with a memory
#
# Position $i$ may look at positions $j \le i$. In training the whole text is there, and a triangular mask does it. In
# generation the text grows by one token at a time, and computing everything anew for each would be a waste: in a
# causal model the keys and values of what has been read do not change when something is added at the end. So each
# attention layer keeps them. This memory is the **key-value cache**. A new token brings one query, one key and one
# value; its query meets all keys, the kept ones and its own. The query itself is not kept: nobody asks it again.
#
# The cache can be fed more than one token at a time (a prompt, say, or a prompt in pieces). Then the mask is no longer
# square. With 3 positions kept and 2 new tokens, the rows are the new queries, at positions 3 and 4, and the columns
# are all keys:
#
# ```
#              0  1  2  3  4
# position 3   ✓  ✓  ✓  ✓  .
# position 4   ✓  ✓  ✓  ✓  ✓
# ```
#
# The triangle counts from the lower *right* corner. A mask that counts from the upper left one, as `tril()` without an
# argument and `is_causal=True` of torch's attention do, would hide from position 3 everything but position 0.
#
# `F.scaled_dot_product_attention(q, k, v, attn_mask=…)` takes a boolean mask, `True` = may attend. You wrote it in the
# exercise on attention, so you may use torch's here. GPT-2's layers have biases, and queries, keys and values
# come from one matrix, `qkv_proj`: the first third of its outputs are the queries, then the keys, then the values; in
# each third head $i$ takes the features $i\,d_{\text{head}}$ to $(i+1)\,d_{\text{head}}$.


# %% solution="attention"
class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which no position sees a later one, with a cache (as in GPT-2).

    Attributes:
        qkv_proj: ``nn.Linear(d_model, 3 * d_model)``. The features are the queries of all heads, then the keys of
            all heads, then the values.
        output_proj: ``nn.Linear(d_model, d_model)``.

    Raises:
        ValueError: ``num_heads`` does not divide ``d_model``, or is not positive (the message says
            ``num_heads``).
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(f"num_heads = {num_heads} does not divide d_model = {d_model}")
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(d_model, 3 * d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        ### END SOLUTION

    def forward(
        self, x: Float[Tensor, "batch new d_model"], cache: KeysValues | None = None
    ) -> tuple[Float[Tensor, "batch new d_model"], KeysValues]:
        """Attention of the new positions over all that came before them, and themselves.

        Args:
            x: the positions that follow those in the cache, at least one.
            cache: keys and values of the positions before, each ``(batch heads positions d_head)``; ``None`` if
                there are none. It is left unchanged, so that two continuations may start from it.

        Returns:
            The output at the new positions, and the keys and values of all positions, old and new in order.
        """
        ### BEGIN SOLUTION
        q, k, v = rearrange(
            self.qkv_proj(x),
            "batch new (three heads d_head) -> three batch heads new d_head",
            three=3,
            heads=self.num_heads,
        )
        if cache is not None:
            k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
        queries, keys = q.shape[2], k.shape[2]
        # The last query stands at the last key: the triangle counts from the lower right corner.
        mask = torch.ones(queries, keys, dtype=torch.bool, device=x.device).tril(keys - queries)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        joined = rearrange(heads, "batch heads new d_head -> batch new (heads d_head)")
        return self.output_proj(joined), (k, v)
        ### END SOLUTION


# %% [markdown]
# By hand: with queries and keys of zeros all visible positions get the same weight, and with the identity for the
# values and the output each position gives the mean of what it sees. From $(2, 0), (4, 6), (0, 3)$ come $(2, 0)$,
# $(3, 3)$ and $(2, 3)$, at once or one after the other.

# %% test="attention_causal" points=1
average = CausalSelfAttention(d_model=2, num_heads=1)
set_weights(
    average,
    {
        "qkv_proj.weight": torch.cat([torch.zeros(4, 2), torch.eye(2)]),
        "qkv_proj.bias": torch.zeros(6),
        "output_proj.weight": torch.eye(2),
        "output_proj.bias": torch.zeros(2),
    },
)
x = torch.tensor([[[2.0, 0.0], [4.0, 6.0], [0.0, 3.0]]])
check.close(
    average(x)[0],
    [[[2.0, 0.0], [3.0, 3.0], [2.0, 3.0]]],
    because="Position i sees positions 0 to i, itself included, and nothing later.",
)
check.raises(
    ValueError,
    CausalSelfAttention,
    5,
    2,
    mentions="num_heads",
    because="A width of 5 cannot be split into 2 heads: say num_heads.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, gradients, inputs, reference

theirs = reference("pretraining", "gpt")
rng = inputs("attention_causal")
for num_heads in (2, 6, 3):
    mine = CausalSelfAttention(6, num_heads).to(device, torch.float64)
    right = theirs.CausalSelfAttention(6, num_heads).to(device, torch.float64)
    weights = {
        name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
        for name, value in right.state_dict().items()
    }
    set_weights(mine, weights)
    right.load_state_dict(weights)
    # A transposed view, and a single position.
    x = torch.randn(5, 2, 6, generator=rng, dtype=torch.float64).to(device).transpose(0, 1)
    cases = [(x,), (x[:, :1],)]
    for (some,), (got, _) in zip(cases, each(mine, cases), strict=True):
        check.close(
            got,
            right(some)[0],
            because="The attention is off: queries, keys and values are the first, second and third d_model features "
            "of qkv_proj; head i takes its own slice of each; scale 1/√d_head; mask j ≤ i; heads joined in order.",
        )
x, before = x.contiguous(), x.clone()
cases = [(x,)]
for last in range(4):
    changed = x.clone()
    changed[:, last + 1 :] += torch.randn(2, 4 - last, 6, generator=rng, dtype=torch.float64).to(
        device
    )
    cases.append((changed,))
(output, _), *others = each(mine, cases)
check.close(x, before, because="The attention changed its input in place.")
for last, (got, _) in enumerate(others):
    check.close(
        got[:, : last + 1],
        output[:, : last + 1],
        because="A later position changed and an earlier output moved with it.",
    )
own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
pull = torch.randn(2, 5, 6, generator=rng, dtype=torch.float64).to(device)
(mine(own)[0] * pull).sum().backward()
(right(other)[0] * pull).sum().backward()
check.that(own.grad is not None, "No gradient reaches the input.")
check.close(own.grad, other.grad, because="The gradient of the input is off.")
mine_gradients, right_gradients = gradients(mine), gradients(right)
for name in weights:
    gradient = mine_gradients.get(name)
    check.that(gradient is not None, f"No gradient reaches {name}: is it used?")
    check.close(gradient, right_gradients[name], because=f"The gradient of {name} is off.")
for num_heads in (0, -2, 4, 12):
    check.raises(
        ValueError,
        CausalSelfAttention,
        6,
        num_heads,
        mentions="num_heads",
        because="num_heads must be positive and divide d_model.",
    )
### END HIDDEN TESTS

# %% test="attention_cache" points=2
average = CausalSelfAttention(d_model=2, num_heads=1)
set_weights(
    average,
    {
        "qkv_proj.weight": torch.cat([torch.zeros(4, 2), torch.eye(2)]),
        "qkv_proj.bias": torch.zeros(6),
        "output_proj.weight": torch.eye(2),
        "output_proj.bias": torch.zeros(2),
    },
)
x = torch.tensor([[[2.0, 0.0], [4.0, 6.0], [0.0, 3.0]]])
with torch.no_grad():
    _, cache = average(x[:, :1])
    check.shape(
        cache[0],
        (1, 1, 1, 2),
        because="The keys in the cache are (batch, heads, positions, d_head).",
    )
    check.close(
        average(x[:, 1:], cache)[0],
        [[[3.0, 3.0], [2.0, 3.0]]],
        because="Two new positions after one in the cache: the first of them sees the cache and itself, the second all "
        "three. The mask counts from the lower right corner.",
    )
    _, cache = average(x[:, 1:2], cache)
    check.close(
        average(x[:, 2:], cache)[0],
        [[[2.0, 3.0]]],
        because="The cache that comes back holds the old positions and the new ones, in order.",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("pretraining", "gpt")
rng = inputs("attention_cache")
mine = CausalSelfAttention(6, 3).to(device, torch.float64)
right = theirs.CausalSelfAttention(6, 3).to(device, torch.float64)
weights = {
    name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
set_weights(mine, weights)
right.load_state_dict(weights)
x = torch.randn(2, 5, 6, generator=rng, dtype=torch.float64).to(device)
with torch.no_grad():
    whole, (keys, values) = right(x)
    for pieces in [(1, 1, 1, 1, 1), (2, 3), (1, 4), (3, 1, 1)]:
        cache, parts = None, []
        for piece in x.split(pieces, dim=1):
            output, cache = mine(piece, cache)
            parts.append(output)
        check.close(
            torch.cat(parts, dim=1),
            whole,
            because="Read in pieces, with the cache handed on, the output differs from the whole read at once: new "
            "query i stands after all cached keys and sees new keys 0 to i.",
        )
        check.close(
            torch.stack([cache[0], cache[1]]),
            torch.stack([keys, values]),
            because="The cache is (keys, values), each (batch, heads, positions, d_head), all positions in order.",
        )
    # Two continuations of one beginning.
    _, cache = mine(x[:, :3])
    kept = [cache[0].clone(), cache[1].clone()]
    one, _ = mine(x[:, 3:], cache)
    other = torch.randn(2, 2, 6, generator=rng, dtype=torch.float64).to(device)
    two, _ = mine(other, cache)
    check.close(
        torch.stack([cache[0], cache[1]]),
        torch.stack(kept),
        because="The cache that was handed in was changed; it still stands for the beginning alone.",
    )
    check.close(one, whole[:, 3:], because="A continuation from the cache is off.")
    check.close(
        two,
        right(torch.cat([x[:, :3], other], dim=1))[0][:, 3:],
        because="A second continuation from the same cache is off: something of the first was left in it.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · The model
#
# What stands around the attention is as in the exercise on the Transformer's blocks, with these choices of GPT-2
# (Radford et al. 2019, §2.3):
#
# - **Pre-LN**: each sub-layer reads a normalised copy, the sum keeps $x$; one more norm stands at the end of the stack.
#   (GPT of 2018 was post-LN, like the Transformer of 2017.)
# - **Learned positions**: a vector for each position, in a table like the tokens', added to the embedding without any
#   factor. Position `block_size` has none: a longer text does not fit.
# - **GELU** (Hendrycks & Gimpel 2016) where the Transformer has ReLU. It is $x\,\Phi(x)$, with $\Phi$ the normal
#   distribution function. OpenAI's code of GPT and GPT-2 computes an approximation, and a model trained with it must be
#   run with it:
#
#   $$\mathrm{gelu}(x) = \tfrac12\, x \left(1 + \tanh\!\left(\sqrt{2/\pi}\,\big(x + 0.044715\,x^3\big)\right)\right)$$
#
#   The two differ by less than 0.001 everywhere; in torch they are `F.gelu(x, approximate="tanh")` and `F.gelu(x)`, in
#   Hugging Face's configurations `gelu_new` and `gelu`. We use the approximation.
# - **Tied logits**: the matrix that embeds the tokens also makes the logits, $\mathrm{logits} = h\,E^\top$.
# - **Initialisation**: matrices start normal with standard deviation 0.02, biases at 0. The matrices whose outputs are
#   added to the sum, two in each of the $L$ blocks, start smaller by $1/\sqrt{2L}$, so that the sum does not grow with
#   the depth. (OpenAI's code starts the positions with 0.01; here they start with 0.02, as in most later code.)
#
# With the cache one thing can go wrong here: the *positions*. The token after 7 read tokens stands at position 7,
# although it is the first of its call.
#
# The dropout of the paper is left out. `nn.LayerNorm` and `nn.Embedding` are torch's.


# %% solution="model"
def gelu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """GELU in the tanh approximation of GPT and GPT-2 (``gelu_new`` in Hugging Face's configurations)."""
    ### BEGIN SOLUTION
    return F.gelu(x, approximate="tanh")
    ### END SOLUTION


class Block(nn.Module):
    """Causal self-attention and feed-forward, each on a normalised copy and added to ``x`` (pre-LN, GPT-2).

    Attributes:
        norm1, norm2: ``nn.LayerNorm(d_model)``, of the attention and of the feed-forward sub-layer.
        attention: ``CausalSelfAttention(d_model, num_heads)``.
        linear1, linear2: ``nn.Linear(d_model, 4 * d_model)`` and back, with ``gelu`` between them.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = CausalSelfAttention(d_model, num_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        ### END SOLUTION

    def forward(
        self, x: Float[Tensor, "batch new d_model"], cache: KeysValues | None = None
    ) -> tuple[Float[Tensor, "batch new d_model"], KeysValues]:
        """The block's output at the new positions, and its attention's cache of all positions."""
        ### BEGIN SOLUTION
        attended, cache = self.attention(self.norm1(x), cache)
        x = x + attended
        return x + self.linear2(gelu(self.linear1(self.norm2(x)))), cache
        ### END SOLUTION


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019) without dropout.

    Args:
        block_size: the longest text the model can read, since each position has a learned vector.
        num_layers: blocks. With 0 the embedded tokens go straight to the last norm, and there is no cache.

    Attributes:
        token_embedding: ``nn.Embedding(vocab_size, d_model)``; the logits use its weight too.
        position_embedding: ``nn.Embedding(block_size, d_model)``.
        blocks: an ``nn.ModuleList`` of ``num_layers`` times ``Block(d_model, num_heads)``.
        norm: the last ``nn.LayerNorm(d_model)``. There are no other parameters or persistent buffers.

    At the start every matrix is normal with mean 0 and standard deviation 0.02, but ``output_proj`` of each
    attention and ``linear2`` of each block with ``0.02 / sqrt(2 * num_layers)``; all biases are 0, the norms'
    weights 1.

    Raises:
        ValueError: ``num_heads`` does not divide ``d_model`` (with ``num_layers`` of at least 1).
    """

    def __init__(
        self, vocab_size: int, block_size: int, d_model: int, num_heads: int, num_layers: int
    ) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.block_size = block_size
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(block_size, d_model)
        self.blocks = nn.ModuleList(Block(d_model, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                added = name.endswith(("output_proj.weight", "linear2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * num_layers if added else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        ### END SOLUTION

    def hidden(
        self, tokens: Int[Tensor, "batch new"], cache: Sequence[KeysValues] | None = None
    ) -> tuple[Float[Tensor, "batch new d_model"], list[KeysValues]]:
        """What the logits are made from: the last norm's output at the new positions, and the new cache.

        Args:
            tokens: those that follow what the cache holds, at least one.
            cache: one ``(keys, values)`` for each block, as the last call returned it; ``None`` at the start of a
                text. It is left unchanged.

        Raises:
            ValueError: with these tokens the text, cached tokens included, is longer than ``block_size`` (the
                message says ``block_size``), or there is no token (it says ``tokens``).
        """
        ### BEGIN SOLUTION
        new = tokens.shape[1]
        past = cache[0][0].shape[2] if cache else 0
        if new < 1:
            raise ValueError("there are no tokens to read")
        if past + new > self.block_size:
            raise ValueError(f"{past} + {new} tokens are more than block_size = {self.block_size}")
        positions = torch.arange(past, past + new, device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        seen = []
        for i, block in enumerate(self.blocks):
            x, keys_values = block(x, cache[i] if cache else None)
            seen.append(keys_values)
        return self.norm(x), seen
        ### END SOLUTION

    def step(
        self, tokens: Int[Tensor, "batch new"], cache: Sequence[KeysValues] | None = None
    ) -> tuple[Float[Tensor, "batch new vocab_size"], list[KeysValues]]:
        """Logits at the new positions, and the new cache; ``tokens`` and ``cache`` as in ``hidden``."""
        ### BEGIN SOLUTION
        x, seen = self.hidden(tokens, cache)
        return x @ self.token_embedding.weight.T, seen
        ### END SOLUTION

    def forward(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length vocab_size"]:
        """Logits of the next token at every position, as in training; errors as in ``hidden``."""
        ### BEGIN SOLUTION
        return self.step(tokens)[0]
        ### END SOLUTION


# %% [markdown]
# By hand: gelu is nearly $x$ for large $x$ and nearly 0 for very negative ones; at 1 it is 0.84119 in the approximation
# (0.84134 exactly). A block whose matrices are all zero passes $x$ through. And without blocks, with the identity for
# $E$, token 0 is embedded as $(1, 0)$, the norm makes $(1, -1)$ of it, and these are the logits.

# %% test="model_block" points=1
check.close(
    gelu(torch.tensor([0.0, 1.0, -1.0, 6.0], dtype=torch.float64)),
    [0.0, 0.8411919906, -0.1588080094, 5.9999999996],
    because="The tanh approximation: 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))).",
)
block = Block(d_model=2, num_heads=1)
silent = {name: torch.zeros_like(value) for name, value in block.state_dict().items()}
silent |= {"norm1.weight": torch.ones(2), "norm2.weight": torch.ones(2)}
set_weights(block, silent)
x = torch.tensor([[[1.0, 3.0], [30.0, 10.0]]])
check.close(
    block(x)[0],
    x,
    because="With silent sub-layers pre-LN returns x itself: the sum keeps the x that was not normalised.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import gradients, inputs, reference

theirs = reference("pretraining", "gpt")
rng = inputs("model_block")
for shape in [(9,), (2, 3, 4)]:
    x = 3.0 * torch.randn(shape, generator=rng, dtype=torch.float64).to(device)
    before = x.clone()
    check.close(
        gelu(x),
        theirs.gelu(x),
        rtol=0.0,
        atol=1e-6,
        because="gelu is the tanh approximation, with √(2/π) and 0.044715·x³, applied to each number.",
    )
    check.close(x, before, because="gelu changed its input in place.")
# Where the exact GELU and the approximation differ most.
x = torch.tensor([-2.2, -2.0, 2.0, 2.3], dtype=torch.float64, device=device)
check.close(
    gelu(x),
    theirs.gelu(x),
    rtol=0.0,
    atol=1e-6,
    because="This is the exact GELU, x·Φ(x), or another approximation of it. GPT-2 uses the one with tanh.",
)
mine = Block(6, 3).to(device, torch.float64)
right = theirs.Block(6, 3).to(device, torch.float64)
weights = {
    name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
set_weights(mine, weights)
right.load_state_dict(weights)
x = (1.0 + 2.0 * torch.randn(2, 5, 6, generator=rng, dtype=torch.float64)).to(device)
before = x.clone()
check.close(
    mine(x)[0],
    right(x)[0],
    because="Pre-LN: x ← x + attention(norm1(x)), then x ← x + linear2(gelu(linear1(norm2(x)))).",
)
check.close(x, before, because="The block changed its input in place.")
with torch.no_grad():
    whole, (keys, values) = right(x)
    start, cache = mine(x[:, :2])
    end, cache = mine(x[:, 2:], cache)
    check.close(
        torch.cat([start, end], dim=1),
        whole,
        because="The block hands its cache to the attention and returns the attention's new one.",
    )
    check.close(
        torch.stack([cache[0], cache[1]]),
        torch.stack([keys, values]),
        because="The block's cache is its attention's, of all positions.",
    )
own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
pull = torch.randn(2, 5, 6, generator=rng, dtype=torch.float64).to(device)
(mine(own)[0] * pull).sum().backward()
(right(other)[0] * pull).sum().backward()
check.that(own.grad is not None, "No gradient reaches the block's input.")
check.close(own.grad, other.grad, because="The gradient of the block's input is off.")
mine_gradients, right_gradients = gradients(mine), gradients(right)
for name in weights:
    gradient = mine_gradients.get(name)
    check.that(gradient is not None, f"No gradient reaches {name}: is it used?")
    check.close(gradient, right_gradients[name], because=f"The gradient of {name} is off.")
### END HIDDEN TESTS

# %% test="model_logits" points=2
bare = GPT(vocab_size=2, block_size=3, d_model=2, num_heads=1, num_layers=0)
set_weights(
    bare,
    {
        "token_embedding.weight": torch.eye(2),
        "position_embedding.weight": torch.tensor([[0.0, 0.0], [0.0, 5.0], [9.0, 0.0]]),
        "norm.weight": torch.ones(2),
        "norm.bias": torch.zeros(2),
    },
)
check.close(
    bare(torch.tensor([[0, 0, 1]])),
    [[[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]]],
    because="Token and position vectors are added, the last norm is applied, and the logits are its output times Eᵀ.",
    rtol=1e-3,
    atol=1e-3,
)
check.raises(
    ValueError,
    bare,
    torch.zeros(1, 4, dtype=torch.int64),
    mentions="block_size",
    because="There is no vector for a fourth position: refuse the text, and say block_size.",
)
torch.manual_seed(0)
model = GPT(vocab_size=50, block_size=16, d_model=32, num_heads=4, num_layers=2)
tokens = torch.randint(50, (8, 16), generator=lab.generator("model_logits"))
logits = model(tokens)
check.that(
    bool(abs(F.cross_entropy(logits.flatten(0, 1), tokens.flatten()) - math.log(50)) < 0.5),
    "Before training the loss should be near ln(vocab_size), that of a guess: are the matrices too large at the start?",
)
changed = tokens.clone()
changed[:, 9:] = (changed[:, 9:] + 1) % 50
check.close(
    model(changed)[:, :9],
    logits[:, :9],
    because="Later tokens changed and earlier logits moved with them.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, gradients, inputs, reference

theirs = reference("pretraining", "gpt")
rng = inputs("model_logits")
for layers, heads in [(2, 3), (0, 1)]:
    mine = GPT(11, 7, 6, heads, layers).to(device, torch.float64)
    right = theirs.GPT(11, 7, 6, heads, layers).to(device, torch.float64)
    weights = {
        name: 0.6 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
        for name, value in right.state_dict().items()
    }
    set_weights(mine, weights)
    right.load_state_dict(weights)
    cases = [(torch.randint(11, (2, length), generator=rng).to(device),) for length in (1, 4, 7)]
    for (tokens,), got in zip(cases, each(mine, cases), strict=True):
        check.close(
            got,
            right(tokens),
            because="The logits are off: token plus position vectors (no factor), each block once in order, the last "
            "norm, the product with the transposed embedding.",
        )
    check.close(
        mine.hidden(tokens)[0],
        right.hidden(tokens)[0],
        because="hidden gives the output of the last norm, from which the logits are made.",
    )
    if not layers:
        continue
    places = torch.arange(7, device=device)
    changed = [(tokens + 3 * (places > last)) % 11 for last in (0, 2, 5)]
    logits, alone, *others = each(mine, [(some,) for some in (tokens, tokens[1:], *changed)])
    for last, got in zip((0, 2, 5), others, strict=True):
        check.close(
            got[:, : last + 1],
            logits[:, : last + 1],
            because="A later token changed and an earlier prediction moved with it.",
        )
    check.close(
        alone,
        logits[1:],
        because="A text's logits changed with the company it keeps in the batch.",
    )
    pull = torch.randn(2, 7, 11, generator=rng, dtype=torch.float64).to(device)
    (mine(tokens) * pull).sum().backward()
    (right(tokens) * pull).sum().backward()
    mine_gradients, right_gradients = gradients(mine), gradients(right)
    for name in weights:
        gradient = mine_gradients.get(name)
        check.that(gradient is not None, f"No gradient reaches {name}: is it used?")
        check.close(
            gradient,
            right_gradients[name],
            because=f"The gradient of {name} is off. (The embedding collects from the way in and the way out.)",
        )
for shape, says in [((2, 8), "block_size"), ((2, 0), "tokens")]:
    check.raises(
        ValueError,
        mine,
        torch.zeros(shape, dtype=torch.int64, device=device),
        mentions=says,
        because=f"A text of length {shape[1]} is bad input for a block_size of 7: say {says}.",
    )
### END HIDDEN TESTS

# %% test="model_cache" points=2
torch.manual_seed(1)
model = GPT(vocab_size=9, block_size=6, d_model=8, num_heads=2, num_layers=2)
with torch.no_grad():
    for name, weight in model.state_dict().items():
        if "norm" not in name:
            weight.mul_(25)  # at the size of a trained model a mistake shows
    tokens = torch.tensor([[3, 1, 4, 1, 5, 8], [2, 7, 1, 8, 2, 8]])
    start, cache = model.step(tokens[:, :4])
    end, _ = model.step(tokens[:, 4:], cache)
    check.equal(
        len(cache), 2, because="The cache is a list with one (keys, values) for each block."
    )
    check.close(
        torch.cat([start, end], dim=1),
        model(tokens),
        because="Four tokens, then two with the cache, must give the logits of six read at once: do the positions go "
        "on at 4, and does each block get its own cache?",
    )
check.raises(
    ValueError,
    model.step,
    tokens[:, :3],
    cache,
    mentions="block_size",
    because="Four cached tokens and three new ones are more than block_size = 6: say block_size.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("pretraining", "gpt")
rng = inputs("model_cache")
mine = GPT(11, 8, 6, 2, 3).to(device, torch.float64)
right = theirs.GPT(11, 8, 6, 2, 3).to(device, torch.float64)
weights = {
    name: 0.6 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
set_weights(mine, weights)
right.load_state_dict(weights)
tokens = torch.randint(11, (3, 8), generator=rng).to(device)
with torch.no_grad():
    whole, states = right(tokens), right.hidden(tokens)[0]
    for pieces in [(1,) * 8, (5, 3), (2, 2, 4)]:
        cache, parts = None, []
        for piece in tokens.split(pieces, dim=1):
            logits, cache = mine.step(piece, cache)
            parts.append(logits)
        check.close(
            torch.cat(parts, dim=1),
            whole,
            because="Read in pieces, with the cache handed on, the logits differ from those of the text read at once: "
            "positions go on where the cache ends, and block i gets and returns cache i.",
        )
    _, cache = mine.hidden(tokens[:, :5])
    check.equal(len(cache), 3, because="The cache has one (keys, values) for each block.")
    check.shape(
        cache[0][0],
        (3, 2, 5, 3),
        because="The cached keys are (batch, heads, positions, d_head), of all positions read.",
    )
    check.close(
        mine.hidden(tokens[:, 5:], cache)[0],
        states[:, 5:],
        because="hidden, too, goes on from a cache.",
    )
    check.shape(
        cache[0][0],
        (3, 2, 5, 3),
        because="The list that was handed in as the cache was changed; it still stands for the text it stood for.",
    )
    other = torch.randint(11, (3, 2), generator=rng).to(device)
    check.close(
        mine.step(other, cache)[0],
        right(torch.cat([tokens[:, :5], other], dim=1))[:, 5:],
        because="A second continuation from the same cache is off: was the list or a tensor in it changed?",
    )
    # One block alone.
    small, one = (
        GPT(11, 8, 6, 2, 1).to(device, torch.float64),
        theirs.GPT(11, 8, 6, 2, 1).to(device),
    )
    one.double().load_state_dict({n: v for n, v in weights.items() if n in one.state_dict()})
    set_weights(small, one.state_dict())
    _, first = small.step(tokens[:, :6])
    check.close(
        small.step(tokens[:, 6:], first)[0],
        one(tokens)[:, 6:],
        because="With a single block, too, the text goes on from its cache.",
    )
check.raises(
    ValueError,
    mine.step,
    tokens[:, :4],
    cache,
    mentions="block_size",
    because="Cached and new tokens together must not be more than block_size.",
)
check.raises(
    ValueError,
    mine.step,
    tokens[:, :0],
    cache,
    mentions="tokens",
    because="With a cache, too, there must be a token to read: say tokens.",
)
# The start: 10 % is more than ten standard errors of the smallest sample.
model = GPT(400, 300, 48, 4, num_layers=3)
start = {name: value.detach().cpu() for name, value in model.state_dict().items()}
for name, value in start.items():
    if value.dim() == 2:
        added = name.endswith(("output_proj.weight", "linear2.weight"))
        std = 0.02 / math.sqrt(6) if added else 0.02
        check.that(
            bool(abs(value.std() / std - 1) < 0.1) and bool(value.mean().abs() < 0.2 * std),
            f"{name} should start with mean 0 and a standard deviation of "
            + ("0.02/√(2·num_layers)." if added else "0.02."),
        )
    else:
        wanted = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        check.that(bool((value == wanted).all()), f"{name} should start at {wanted:g}.")
check.that(
    bool((start["blocks.0.linear1.weight"] != start["blocks.1.linear1.weight"]).any()),
    "All blocks are one and the same: make a new one for each layer.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · Generation
#
# Read the text, take the logits at its *last* position, choose a token, append it, and go on. Choosing was an
# exercise of its own (*the next token*), so here in brief: the logits are divided by the temperature, all but the
# `top_k` largest become $-\infty$, and a token is drawn from the softmax of the rest. Filling with a small number such
# as 0 or $10^{-10}$ is no truncation: of logits, 0 may be among the largest.
#
# With the cache, `step` reads the prompt once and then one token at a time. How much does that save? Without it, a text
# of length $n$ costs $1 + 2 + \dots + n \approx n^2/2$ readings of a token, with it $n$. (The attention of a new token
# still goes over all kept keys, so the time per token grows slowly; the memory grows with every token.)
#
# And when the text becomes longer than `block_size`? The model then sees its last `block_size` tokens: a window that
# moves on by one with each new token. But in the moved window *every* token stands one position earlier than before.
# Its learned position vector is another, its keys and values are others, and the cache is worth nothing. (Keys of later
# layers also hold what they took from the token that has just left.) So from there on the window is read anew for each
# token, exactly as without a cache.
#
# `generate` gets the model as a function, `step(tokens, cache)`, which returns logits and a new cache: `model.step`, or
# something a test has made up. It hands the cache on and never looks into it.


# %% solution="generate"
def choose(
    logits: Float[Tensor, "batch vocab"],
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "batch"]:
    """One token for each row of logits.

    Args:
        logits: not normalised.
        temperature: divides the logits. 0 takes the largest logit, among equals the smallest id, and draws nothing.
        top_k: all but the ``top_k`` largest logits get probability 0; which of several equal ones at the edge
            stay is not specified. ``None``, or more than there are, keeps all.
        generator: a CPU generator, the only source of randomness. Rows are independent draws.

    Raises:
        ValueError: ``temperature`` is negative (the message says ``temperature``), ``top_k`` is less than 1 (it
            says ``top_k``), or ``temperature`` is not 0 and there is no ``generator`` (it says ``generator``).
    """
    ### BEGIN SOLUTION
    if temperature < 0:
        raise ValueError(f"the temperature must not be negative, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if temperature == 0:
        return logits.argmax(dim=1)
    if generator is None:
        raise ValueError("to draw a token a generator is needed")
    if top_k is not None and top_k < logits.shape[1]:
        smallest_kept = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, -math.inf)
    probs = torch.softmax(logits / temperature, dim=1)
    return torch.multinomial(probs.cpu(), 1, generator=generator).squeeze(1).to(logits.device)
    ### END SOLUTION


@torch.no_grad()
def generate(
    step: Callable[[Tensor, object], tuple[Tensor, object]],
    prompt: Int[Tensor, "batch prompt"],
    new_tokens: int,
    block_size: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Int[Tensor, "batch prompt+new_tokens"]:
    """The prompt and ``new_tokens`` tokens after it, each chosen by ``choose`` from the logits at the end.

    Each token is chosen by what the model says of the last ``block_size`` tokens of prompt and generated text
    (all of them, as long as they are no more), the first of which stands at position 0.

    Args:
        step: ``step(tokens, cache)`` gives the logits at ``tokens`` (batch new vocab) and the cache for the next
            call, which is never ``None``. At the start of a text it is called with the cache ``None``. Called by
            position, once for each new token.
        prompt: at least one token; all rows are of one length.
        block_size: the longest text that ``step`` can read, cached tokens included.
        temperature, top_k, generator: as in ``choose``.
        use_cache: if true, ``step`` gets only tokens it has not read, as long as the text is no longer than
            ``block_size``; beyond that, and always if false, it gets the whole window with the cache ``None``. The
            tokens are the same either way.

    Raises:
        ValueError: the prompt is empty (the message says ``prompt``), ``new_tokens`` is negative (it says
            ``new_tokens``); and as in ``choose``.
    """
    ### BEGIN SOLUTION
    if prompt.shape[1] == 0:
        raise ValueError("the prompt must hold at least one token")
    if new_tokens < 0:
        raise ValueError(f"new_tokens must not be negative, got {new_tokens}")
    tokens, cache = prompt, None
    for _ in range(new_tokens):
        if cache is None or tokens.shape[1] > block_size:
            # A window that has moved puts every token at another position: nothing cached is valid.
            logits, cache = step(tokens[:, -block_size:], None)
        else:
            logits, cache = step(tokens[:, -1:], cache)
        if not use_cache:
            cache = None
        following = choose(logits[:, -1], temperature, top_k, generator)
        tokens = torch.cat([tokens, following[:, None]], dim=1)
    return tokens
    ### END SOLUTION


# %% [markdown]
# By hand, with a made-up model over 10 digits that says the sum of all it has read, modulo 10. Its cache is the tokens
# themselves. After 1, 2 comes 3, then 6, then 12 mod 10 = 2.

# %% test="generate_choose" points=1
row = torch.tensor([[0.5, 2.0, -3.0, 1.0]])
check.equal(
    choose(row, temperature=0.0), [1], because="Temperature 0 takes the id of the largest logit."
)
# The allowed logits are negative, as all may be: what is cut off must still be below them.
low = torch.tensor([-5.0, -1.0, -9.0, -1.5, -4.0])
drawn = choose(low.expand(2000, 5), 1.0, 2, lab.generator("generate_choose"))
check.equal(
    sorted(set(drawn.tolist())),
    [1, 3],
    because="With top_k = 2 only the two largest logits may be drawn: the others become −∞, not 0 or a small number.",
)
# Odds of e^0.5 : 1, that is 0.62; a right answer leaves this range less than once in 10^9 seeds.
check.that(
    0.54 < (drawn == 1).double().mean().item() < 0.70,
    "With logits −1 and −1.5 left, the first should be drawn in 62 of 100 cases: softmax over what is left.",
)
check.raises(
    ValueError, choose, row, 1.0, 0, lab.generator(), mentions="top_k", because="top_k starts at 1."
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "gpt")
rng = inputs("generate_choose")
logits = torch.randn(40, 7, generator=rng, dtype=torch.float64).to(device) - 2.0
logits[3, [2, 5]] = 4.0
before = logits.clone()
cases = [(logits, 0.0, top_k) for top_k in (None, 1, 3)]
for case, got in zip(cases, each(choose, cases), strict=True):
    check.equal(
        got,
        theirs.choose(*case),
        because="At temperature 0 the largest logit is taken, among equals the smallest id, without a generator.",
    )
seed = int(torch.randint(2**40, (), generator=rng))
check.equal(
    choose(logits[:3], 1.0, 1, torch.Generator().manual_seed(seed)),
    logits[:3].argmax(dim=-1),
    because="top_k = 1 leaves the largest logit alone.",
)
check.close(logits, before, because="choose changed the logits in place.")
# Frequencies. By Hoeffding's inequality one share misses by 0.05 in 6,000 independent draws with probability
# 2 exp(-30): with 49 shares a right answer fails less than once in 10^10 courses.
row = torch.tensor([-3.0, 0.9, -0.2, -4.0, 0.3, -0.9, 1.2], dtype=torch.float64)
row = row[torch.randperm(7, generator=rng)].to(device) - 3.0
for number, options in enumerate(
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.5},
        {"top_k": 3},
        {"temperature": 2.0, "top_k": 4},
        {"top_k": 7},
        {"top_k": 50},
    ]
):
    temperature, top_k = options.get("temperature", 1.0), options.get("top_k")
    generator = torch.Generator().manual_seed(seed + number)
    drawn = choose(row.expand(6_000, 7), generator=generator, **options)
    check.shape(drawn, (6_000,), because="One token for each row.")
    check.that(drawn.dtype == torch.int64, "Token ids are integers (torch.int64).")
    kept = row.sort(descending=True).values[: top_k or 7]
    allowed = row >= kept[-1]
    probs = torch.softmax((row / temperature).masked_fill(~allowed, -math.inf), dim=-1)
    shares = torch.bincount(drawn, minlength=7) / 6_000
    check.that(
        bool((shares[~allowed] == 0).all()),
        "With top_k a token outside the largest was drawn: its logit must be −∞ before the softmax.",
    )
    check.that(
        bool(((shares - probs).abs() < 0.05).all()),
        "Tokens do not come as often as softmax(logits / temperature), over those that top_k leaves, says.",
    )
# The caller's generator decides, and is used up.
flat = torch.zeros(60, 5, device=device)
generator = torch.Generator().manual_seed(seed)
first, second = choose(flat, generator=generator), choose(flat, generator=generator)
check.equal(
    choose(flat, 1.0, None, torch.Generator().manual_seed(seed)),
    first,
    because="The same seed must give the same draws: is the generator the only source of randomness?",
)
check.that(
    bool((first != second).any()),
    "Two draws in a row from one generator were the same: it must not be seeded again or copied.",
)
check.that(
    bool((choose(flat, generator=torch.Generator().manual_seed(seed + 1)) != first).any()),
    "Another seed gave the same draws: use the caller's generator.",
)
for arguments, says in [
    ((-0.5, None, generator), "temperature"),
    ((1.0, 0, generator), "top_k"),
    ((1.0, -2, generator), "top_k"),
    ((0.0, 0, generator), "top_k"),
    ((1.0, None, None), "generator"),
]:
    check.raises(
        ValueError,
        choose,
        logits,
        *arguments,
        mentions=says,
        because=f"This is bad input: say {says}.",
    )
### END HIDDEN TESTS

# %% test="generate_cache" points=2
calls = []


def says_the_sum(tokens, cache):
    """Logits for the sum of all tokens read, modulo 10; the cache is a list of one tensor, the tokens."""
    read = tokens if cache is None else torch.cat([cache[0], tokens], dim=1)
    calls.append((tokens.shape[1], read.shape[1]))
    sums = read.cumsum(dim=1)[:, -tokens.shape[1] :] % 10
    return F.one_hot(sums, 10).float(), [read]


start = torch.tensor([[1, 2], [5, 5]])
check.equal(
    generate(says_the_sum, start, 3, block_size=8, temperature=0.0),
    [[1, 2, 3, 6, 2], [5, 5, 0, 0, 0]],
    because="The prompt and three new tokens: each is chosen from the logits at the last position and appended.",
)
check.equal(
    calls,
    [(2, 2), (1, 3), (1, 4)],
    because="With the cache step reads the prompt once (2 tokens, 2 read in all), then one new token at a time. "
    "(Listed: tokens in the call, tokens read in all.)",
)
# A window of 3: 1, 2 gives 3; 1, 2, 3 gives 6; then 2, 3, 6 gives 1 and 3, 6, 1 gives 0.
calls.clear()
check.equal(
    generate(says_the_sum, start[:1], 4, block_size=3, temperature=0.0),
    [[1, 2, 3, 6, 1, 0]],
    because="When the text is longer than block_size the model sees its last block_size tokens.",
)
check.equal(
    calls,
    [(2, 2), (1, 3), (3, 3), (3, 3)],
    because="When the window moves, every token has another position: all of it is read anew, with the cache None.",
)
calls.clear()
check.equal(
    generate(says_the_sum, start, 3, block_size=8, temperature=0.0, use_cache=False),
    [[1, 2, 3, 6, 2], [5, 5, 0, 0, 0]],
    because="Without the cache the tokens are the same.",
)
check.equal(
    calls,
    [(2, 2), (3, 3), (4, 4)],
    because="With use_cache=False step reads the whole text each time, with the cache None.",
)
check.raises(
    ValueError,
    generate,
    says_the_sum,
    start[:, :0],
    3,
    8,
    mentions="prompt",
    because="Without a token there is nothing to go on from: say prompt.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("pretraining", "gpt")
rng = inputs("generate_cache")
# A model whose logits depend on each token it has read and on where it stood.
table = torch.randn(40, 7, 7, generator=rng, dtype=torch.float64).to(device)
calls = []


def step(tokens, cache):
    """Sums a row of the table for each token at its position, and notes the call."""
    read = tokens if cache is None else torch.cat([cache[0], tokens], dim=1)
    calls.append((tokens.shape[1], read.shape[1], cache is None))
    positions = torch.arange(read.shape[1], device=read.device)
    logits = table[positions, read].cumsum(dim=1)
    return logits[:, read.shape[1] - tokens.shape[1] :], [read]


for length, new, block_size in [
    (3, 5, 20),
    (2, 5, 4),  # below the window, as long, and beyond
    (9, 2, 5),
    (5, 2, 5),
    (1, 3, 1),
]:
    prompt = torch.randint(7, (2, length), generator=rng).to(device)
    before = prompt.clone()
    for use_cache in (True, False):
        calls.clear()
        expected = theirs.generate(
            step, prompt, new, block_size, temperature=0.0, use_cache=use_cache
        )
        wanted = list(calls)
        calls.clear()
        got = generate(step, prompt, new, block_size, temperature=0.0, use_cache=use_cache)
        check.equal(
            got,
            expected,
            because="The tokens are off: each is chosen from the logits at the last position, given the last "
            "block_size tokens, the first of which stands at position 0.",
        )
        check.equal(
            calls,
            wanted,
            because="step was called otherwise than the docstring says: with the cache, the prompt's window, then "
            "one new token at a time; the whole window with the cache None once the text is longer than block_size, "
            "or always without the cache.",
        )
    check.equal(prompt, before, because="The prompt was changed in place.")
calls.clear()
check.equal(
    generate(step, prompt, 0, 5, temperature=0.0),
    prompt,
    because="No new tokens: the prompt comes back.",
)
check.equal(calls, [], because="No new tokens: step need not be called.")
# Sampling: cached or not, the same draws.
prompt = torch.randint(7, (10, 3), generator=rng).to(device)
seed = int(torch.randint(2**40, (), generator=rng))
how = {"temperature": 0.8, "top_k": 3}
one, two = (
    generate(step, prompt, 5, 6, generator=torch.Generator().manual_seed(seed), use_cache=c, **how)
    for c in (True, False)
)
check.equal(one, two, because="With one seed the tokens are the same with and without the cache.")
check.that(
    bool((one[:, 3:] != one[:1, 3:]).any()),
    "All rows of the batch drew alike: rows are independent.",
)
three = generate(step, prompt, 5, 6, generator=torch.Generator().manual_seed(seed + 1), **how)
check.that(
    bool((one != three).any()), "Another seed gave the same text: use the caller's generator."
)
for row in range(10):
    for end in range(3, 8):
        window = one[row : row + 1, max(0, end - 6) : end]
        allowed = step(window, None)[0][0, -1].topk(3).indices
        check.that(
            bool((allowed == one[row, end]).any()),
            "A token was drawn that is not among the top_k of its place: is top_k handed on, and is it the last logits "
            "that are used?",
        )
# Without a temperature given it is 1. Bounds as in the test of choose.
row = torch.tensor([2.0, -1.0, 0.5, 1.0], dtype=torch.float64).to(device)


def always_the_same(tokens, cache):
    """The same logits whatever was read."""
    return row.expand(*tokens.shape, 4), [tokens]


many = torch.zeros(6_000, 1, dtype=torch.int64, device=device)
drawn = generate(always_the_same, many, 1, 6, generator=torch.Generator().manual_seed(seed))[:, 1]
check.that(
    bool(((torch.bincount(drawn, minlength=4) / 6_000 - row.softmax(0)).abs() < 0.05).all()),
    "Without temperature and top_k the tokens should come as often as the softmax of the logits says.",
)
# The temperature is handed on too: near 0 nothing but the largest logit is left.
check.equal(
    generate(step, prompt, 2, 6, temperature=1e-9, generator=torch.Generator().manual_seed(seed)),
    theirs.generate(step, prompt, 2, 6, temperature=0.0),
    because="A temperature near 0 must draw the largest logit: is the temperature handed on?",
)
for arguments, options, says in [
    ((prompt[:, :0], 2, 6), {"temperature": 0.0}, "prompt"),
    ((prompt, -1, 6), {"temperature": 0.0}, "new_tokens"),
    ((prompt, 2, 6), {}, "generator"),
]:
    check.raises(
        ValueError,
        lambda arguments=arguments, options=options: generate(step, *arguments, **options),
        mentions=says,
        because=f"This is bad input: say {says}.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · A head for classification
#
# In 2018 a task still meant fine-tuning (Radford et al. 2018, §3.2). The text is written between special tokens that
# are learned with the task; two texts, as for entailment, stand one behind the other with a delimiter between them:
#
# ```
# <start> premise <delimiter> hypothesis <extract>
# ```
#
# The last of them, `<extract>`, is where the answer is read off. It must be the last: in a causal model no other
# position has seen the whole. (BERT, which is not causal, takes its first.) Its hidden state $h^m$ goes through one new
# matrix (Eqs. 3 and 4), and the loss of the language model stays as a second goal with a weight of $\lambda = 0.5$
# (Eq. 5):
#
# $$P(y \mid x^1, \dots, x^m) = \mathrm{softmax}(h^m W_y), \qquad L_3 = L_2 + \lambda L_1$$
#
# The paper maximises sums of log-probabilities; here each term is a mean of negative ones, as everywhere in this
# course: $L_2$ over the texts, $L_1$ over the predicted tokens. In a batch the texts have different lengths, and
# behind the last real token stands filling. (GPT of 2018 was given no task in words: prompts such as "translate to
# French" came with its successors.)


# %% solution="classify"
def classification_tokens(
    texts: Sequence[Sequence[int]], start: int, delimiter: int, extract: int
) -> list[int]:
    """``start``, the texts with ``delimiter`` between them, and ``extract`` (Radford et al. 2018, §3.3 and Fig. 1).

    Raises:
        ValueError: there is no text (the message says ``texts``).
    """
    ### BEGIN SOLUTION
    if len(texts) == 0:
        raise ValueError("there are no texts to classify")
    tokens = [start, *texts[0]]
    for text in texts[1:]:
        tokens += [delimiter, *text]
    return [*tokens, extract]
    ### END SOLUTION


class ClassificationHead(nn.Module):
    """Logits of the classes, from the hidden state at the last real token (Radford et al. 2018, Eq. 3).

    Attributes:
        output: ``nn.Linear(d_model, num_classes, bias=False)``, the paper's W_y.
    """

    def __init__(self, d_model: int, num_classes: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.output = nn.Linear(d_model, num_classes, bias=False)
        ### END SOLUTION

    def forward(
        self, hidden: Float[Tensor, "batch length d_model"], lengths: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch num_classes"]:
        """Logits, not probabilities. The last real token of text ``b`` is the one before position ``lengths[b]``.

        Raises:
            ValueError: a length is less than 1 or more than ``length`` (the message says ``lengths``).
        """
        ### BEGIN SOLUTION
        if (lengths < 1).any() or (lengths > hidden.shape[1]).any():
            raise ValueError(
                f"lengths must lie between 1 and {hidden.shape[1]}, got {lengths.tolist()}"
            )
        rows = torch.arange(len(hidden), device=hidden.device)
        return self.output(hidden[rows, lengths - 1])
        ### END SOLUTION


def fine_tuning_loss(
    class_logits: Float[Tensor, "batch num_classes"],
    labels: Int[Tensor, "batch"],
    lm_logits: Float[Tensor, "batch length vocab"],
    tokens: Int[Tensor, "batch length"],
    lengths: Int[Tensor, "batch"],
    lm_weight: float = 0.5,
) -> Float[Tensor, ""]:
    """L2 + λ·L1 (Radford et al. 2018, Eq. 5), both as mean negative log-probabilities.

    L2 is the mean over the texts of the batch; L1 is ``causal_lm_loss`` over the real tokens, the first
    ``lengths[b]`` of each text; λ is ``lm_weight``.
    """
    ### BEGIN SOLUTION
    real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    return F.cross_entropy(class_logits, labels) + lm_weight * causal_lm_loss(
        lm_logits, tokens, real
    )
    ### END SOLUTION


# %% test="classify_head" points=1
check.equal(
    classification_tokens([[7, 8], [9]], start=1, delimiter=2, extract=3),
    [1, 7, 8, 2, 9, 3],
    because="start, the first text, the delimiter, the second text, extract.",
)
head = ClassificationHead(d_model=2, num_classes=3)
set_weights(head, {"output.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])})
hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]], [[5.0, 6.0], [7.0, 8.0], [0.5, 1.0]]])
check.close(
    head(hidden, torch.tensor([2, 3])),
    [[3.0, 4.0, 7.0], [0.5, 1.0, 1.5]],
    because="The first text has 2 real tokens: its last stands at position 1, and what comes after it is filling.",
)
check.raises(
    ValueError,
    head,
    hidden,
    torch.tensor([0, 3]),
    mentions="lengths",
    because="A text without a token has no last one (and index −1 would silently be the filling): say lengths.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, gradients, inputs, reference

theirs = reference("pretraining", "gpt")
rng = inputs("classify_head")
for count in (1, 2, 4):
    texts = [
        torch.randint(5, 90, (int(torch.randint(5, (), generator=rng)),), generator=rng).tolist()
        for _ in range(count)
    ]
    kept = [list(text) for text in texts]
    check.equal(
        classification_tokens(texts, 0, 4, 3),
        theirs.classification_tokens(kept, 0, 4, 3),
        because="One start, a delimiter between texts and nowhere else, one extract at the end, also for empty texts.",
    )
    check.equal(texts, kept, because="The texts were changed in place.")
check.raises(
    ValueError, classification_tokens, [], 0, 4, 3, mentions="texts", because="No text: say texts."
)
mine = ClassificationHead(4, 3).to(device, torch.float64)
right = theirs.ClassificationHead(4, 3).to(device, torch.float64)
weights = {"output.weight": torch.randn(3, 4, generator=rng, dtype=torch.float64).to(device)}
set_weights(mine, weights)
right.load_state_dict(weights)
hidden = torch.randn(5, 6, 4, generator=rng, dtype=torch.float64).to(device)
cases = [
    (hidden, torch.tensor(lengths, device=device))
    for lengths in ([6, 6, 6, 6, 6], [1, 2, 6, 4, 3], [3, 1, 5, 2, 6])
]
for (_, lengths), got in zip(cases, each(mine, cases), strict=True):
    check.close(
        got,
        right(hidden, lengths),
        because="Text b is read off at position lengths[b] − 1, with the plain product and no softmax.",
    )
own, other = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
pull = torch.randn(5, 3, generator=rng, dtype=torch.float64).to(device)
(mine(own, lengths) * pull).sum().backward()
(right(other, lengths) * pull).sum().backward()
check.that(own.grad is not None, "No gradient reaches the hidden states.")
check.close(
    own.grad,
    other.grad,
    because="The gradient reaches each text's last real token and no other position.",
)
gradient = gradients(mine).get("output.weight")
check.that(gradient is not None, "No gradient reaches output.weight.")
check.close(gradient, right.output.weight.grad, because="The gradient of output.weight is off.")
for lengths in ([3, 0, 1, 1, 1], [3, 7, 1, 1, 1], [3, -1, 1, 1, 1]):
    check.raises(
        ValueError,
        mine,
        hidden,
        torch.tensor(lengths, device=device),
        mentions="lengths",
        because="A length below 1 or beyond the batch's is bad input: say lengths.",
    )
### END HIDDEN TESTS

# %% test="classify_loss" points=1
# Classes 3 : 1 for both texts, right once and wrong once; tokens 3 : 1 as above, with filling behind the second text.
three_to_one = torch.tensor([math.log(3), 0.0])
check.close(
    fine_tuning_loss(
        three_to_one.expand(2, 2),
        torch.tensor([0, 1]),
        three_to_one.expand(2, 3, 2),
        torch.tensor([[0, 0, 0], [0, 1, 1]]),
        torch.tensor([3, 2]),
    ),
    -(math.log(3 / 4) + math.log(1 / 4)) / 2 - 0.5 * (2 * math.log(3 / 4) + math.log(1 / 4)) / 3,
    because="The mean loss of the two classes, plus half the mean loss of the three real tokens that are predicted.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("pretraining", "gpt")
rng = inputs("classify_loss")
lengths = torch.tensor([5, 2, 4, 3], device=device)
labels = torch.randint(3, (4,), generator=rng).to(device)
tokens = torch.randint(7, (4, 5), generator=rng).to(device)
mine = [
    2.0 * torch.randn(s, generator=rng, dtype=torch.float64).to(device) for s in [(4, 3), (4, 5, 7)]
]
mine = [tensor.requires_grad_() for tensor in mine]
right = [tensor.detach().clone().requires_grad_() for tensor in mine]
for weight in (0.5, 0.0, 1.0, 2.5):
    check.close(
        fine_tuning_loss(mine[0], labels, mine[1], tokens, lengths, weight),
        theirs.fine_tuning_loss(right[0], labels, right[1], tokens, lengths, weight),
        because="L2 + λ·L1: the weight belongs to the language model's loss, which counts real tokens alone.",
    )
check.close(
    fine_tuning_loss(mine[0], labels, mine[1], tokens, lengths),
    theirs.fine_tuning_loss(right[0], labels, right[1], tokens, lengths, 0.5),
    because="Without lm_weight given λ is 0.5.",
)
fine_tuning_loss(mine[0], labels, mine[1], tokens, lengths).backward()
theirs.fine_tuning_loss(right[0], labels, right[1], tokens, lengths).backward()
for name, own, other in zip(("class", "language-model"), mine, right, strict=True):
    check.that(own.grad is not None, f"No gradient reaches the {name} logits.")
    check.close(own.grad, other.grad, because=f"The gradient of the {name} logits is off.")
### END HIDDEN TESTS

# %% [markdown]
# ## 6 · The task in the text
#
# A model that goes on with a text can be asked in the text. GPT-3 (Brown et al. 2020, Fig. 2.1) is given a description
# of the task, some solved examples, the *shots*, and a question that stops where the answer should begin:
#
# ```
# Translate English to French:
# sea otter => loutre de mer
# peppermint => menthe poivrée
# cheese =>
# ```
#
# With no example this is *zero-shot*, with one *one-shot*, with several *few-shot*. No weight is changed: what the
# examples do, they do as context. Three things to mind:
#
# - The prompt ends with `=>`, without a space. In a byte-level vocabulary the space belongs to the token that
#   follows (" from" is one token), so a prompt that ends in a space asks for a rare continuation.
# - The question must not be among the examples, or its answer can be copied.
# - All must fit into the context. The authors of GPT-3 took as many examples as fit into its 2048 tokens, typically 10
#   to 100. A prompt that is too long is not cut: `generate` would drop its *beginning*, the description.


# %% solution="prompts"
def build_prompt(task: str, examples: Sequence[tuple[str, str]], query: str, shots: int) -> str:
    """A prompt with ``shots`` solved examples (Brown et al. 2020, Fig. 2.1): lines joined by a newline.

    The lines are the description of the task (no line if it is empty), then ``input => output`` for each of
    the first ``shots`` examples in order, then ``query =>``, with nothing after it. An example whose input equals
    ``query`` would give the answer away: it is passed over, and the next one takes its place.

    Raises:
        ValueError: ``shots`` is negative or more than there are such examples (the message says ``shots``).
    """
    ### BEGIN SOLUTION
    usable = [(given, answer) for given, answer in examples if given != query]
    if not 0 <= shots <= len(usable):
        raise ValueError(f"shots must lie between 0 and {len(usable)}, got {shots}")
    lines = [task] if task else []
    lines += [f"{given} => {answer}" for given, answer in usable[:shots]]
    return "\n".join([*lines, f"{query} =>"])
    ### END SOLUTION


def fill_context(
    task: str,
    examples: Sequence[tuple[str, str]],
    query: str,
    max_tokens: int,
    count_tokens: Callable[[str], int],
) -> str:
    """The prompt of ``build_prompt`` with as many shots as fit: the most for which it has at most ``max_tokens``.

    Args:
        max_tokens: room for the prompt, the context's length less what the answer may take.
        count_tokens: how many tokens a text has. A prompt with more shots never has fewer.

    Raises:
        ValueError: the prompt without any example is too long already (the message says ``max_tokens``).
    """
    ### BEGIN SOLUTION
    usable = [(given, answer) for given, answer in examples if given != query]
    prompts = [build_prompt(task, usable, query, shots) for shots in range(len(usable) + 1)]
    fitting = [prompt for prompt in prompts if count_tokens(prompt) <= max_tokens]
    if not fitting:
        raise ValueError(f"the prompt has more than max_tokens = {max_tokens} without an example")
    return fitting[-1]
    ### END SOLUTION


# %% test="prompts_shots" points=1
task = "Translate English to French:"
animals = [("sea otter", "loutre de mer"), ("cheese", "fromage"), ("peppermint", "menthe poivrée")]
check.equal(
    build_prompt(task, animals, "plush giraffe", 0),
    "Translate English to French:\nplush giraffe =>",
    because="Zero-shot: the description, a newline, and the question, which ends in => without a space.",
)
check.equal(
    build_prompt(task, animals, "plush giraffe", 1),
    "Translate English to French:\nsea otter => loutre de mer\nplush giraffe =>",
    because="One-shot: one solved example stands between the description and the question.",
)
check.equal(
    build_prompt("", animals, "cheese", 2),
    "sea otter => loutre de mer\npeppermint => menthe poivrée\ncheese =>",
    because="The example that asks the same question is passed over; an empty description has no line.",
)
check.raises(
    ValueError,
    build_prompt,
    task,
    animals,
    "cheese",
    3,
    mentions="shots",
    because="One of the three examples is the question itself, so there are no three shots: say shots.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "gpt")
rng = inputs("prompts_shots")
sums = [(f"{a} + {b}", str(a + b)) for a, b in torch.randint(100, (6, 2), generator=rng).tolist()]
sums.insert(2, ("1000 + 1", "1001"))  # the question of some cases, and of one more
sums.insert(5, ("1000 + 1", "one thousand and one"))
kept = list(sums)
cases = [
    (description, sums, query, shots)
    for description in ("Add the numbers.", "", "Two lines\nof description")
    for query in ("7 + 700", "1000 + 1", " 7 + 7 ")
    for shots in (0, 1, 2, 3, 6)
]
for case, got in zip(cases, each(build_prompt, cases), strict=True):
    check.equal(
        got,
        theirs.build_prompt(*case),
        because="Description (if any), the first shots examples in order as `input => output` without those that ask "
        "the query, and `query =>`; one newline between lines, none at the end.",
    )
check.equal(sums, kept, because="The list of examples was changed.")
check.equal(
    build_prompt("t", sums, "7 + 700", 8),
    theirs.build_prompt("t", sums, "7 + 700", 8),
    because="All examples may be used.",
)
for query, shots in [("1000 + 1", 7), ("7 + 700", 9), ("7 + 700", -1)]:
    check.raises(
        ValueError,
        build_prompt,
        "t",
        sums,
        query,
        shots,
        mentions="shots",
        because="A negative number of shots, or more than there are usable examples, is bad input: say shots.",
    )
### END HIDDEN TESTS


# %% test="prompts_fill" points=1
def words(text):
    """A simple count: words, with => as one of them."""
    return len(text.split())


task = "Translate English to French:"
animals = [("sea otter", "loutre de mer"), ("cheese", "fromage"), ("peppermint", "menthe poivrée")]
check.equal(
    fill_context(task, animals, "plush giraffe", 16, words),
    "Translate English to French:\nsea otter => loutre de mer\ncheese => fromage\nplush giraffe =>",
    because="4 words of description, 3 of the question, 6 and 3 of the first two examples: 16 fit exactly. The third "
    "would make it 20.",
)
check.equal(
    fill_context(task, animals, "plush giraffe", 15, words),
    "Translate English to French:\nsea otter => loutre de mer\nplush giraffe =>",
    because="With room for 15 the second example no longer fits; examples are whole or not there.",
)
check.raises(
    ValueError,
    fill_context,
    task,
    animals,
    "plush giraffe",
    6,
    words,
    mentions="max_tokens",
    because="The description and the question alone take 7: say max_tokens.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("pretraining", "gpt")
rng = inputs("prompts_fill")


def letters(text):
    """Characters count thrice, so that len() is another count."""
    return 3 * len(text)


def filled(*arguments):
    """The prompt, or a word where it was refused."""
    try:
        return fill_context(*arguments)
    except ValueError:
        return "refused"


sizes = torch.randint(2, 12, (5, 2), generator=rng).tolist()
examples = [("i" * 1 + str(n) * a, "o" * b) for n, (a, b) in enumerate(sizes)]
kept = list(examples)
query = examples[3][0]
for asked in (query, "another"):
    room = [letters(theirs.build_prompt("Describe.", examples, asked, shots)) for shots in range(5)]
    for max_tokens in (room[0], room[2] - 1, room[2] + 1, room[3], 10_000):
        check.equal(
            filled("Describe.", examples, asked, max_tokens, letters),
            theirs.fill_context("Describe.", examples, asked, max_tokens, letters),
            because="The prompt holds as many of the first usable examples as fit, a prompt of max_tokens included.",
        )
    check.raises(
        ValueError,
        fill_context,
        "Describe.",
        examples,
        asked,
        room[0] - 1,
        letters,
        mentions="max_tokens",
        because="Where not even the question fits, say max_tokens.",
    )
check.equal(examples, kept, because="The list of examples was changed.")
check.equal(
    fill_context("Describe.", [], "another", 1000, letters),
    theirs.build_prompt("Describe.", [], "another", 0),
    because="Without examples the prompt is zero-shot.",
)
### END HIDDEN TESTS

# %% [markdown] written="gpt_why" points=2
# **In your own words.** A colleague drops the rebuilding of the cache. When the text grows longer than `block_size`,
# they remove the oldest key and value from each layer's cache and give every new token the last position,
# `block_size - 1`. Generation stays fast, but from there on the logits are not those of the model without a cache.
# Give the two reasons why not: one would remain even without position vectors, in a model of more than one layer. And
# why is the cache exact as long as the text fits? (5 to 9 sentences.)

# %% [markdown]
# ## Experiment: train it on the plays
#
# A GPT of your parts learns the characters of Shakespeare's plays with your loss. It is tested on plays it has not
# seen. The dotted lines are what counting gives on the same plays: how often each character occurs, and how often
# after each other. It takes one to two minutes on a CPU. On a GPU a larger preset runs.

# %% experiment=true
import matplotlib.pyplot as plt

from lab import data, figures
from lab.training import train

if device.type == "cuda":
    LAYERS, HEADS, D_MODEL, BLOCK_SIZE, BATCH, STEPS, LR = 6, 6, 384, 256, 64, 3000, 1e-3
else:
    LAYERS, HEADS, D_MODEL, BLOCK_SIZE, BATCH, STEPS, LR = 3, 4, 64, 128, 8, 2000, 4e-3
SEED = 0

characters = sorted(set(data.text("train")))
number = {character: i for i, character in enumerate(characters)}


def encode(text: str) -> Tensor:
    """A text as token ids, one for each character; what training never showed is left out."""
    return torch.tensor([number[c] for c in text if c in number], device=device)


train_tokens, held_out = encode(data.text("train")), encode(data.text("validation"))
windows = held_out[: len(held_out) // BLOCK_SIZE * BLOCK_SIZE].view(-1, BLOCK_SIZE)
windows = windows[:: max(1, len(windows) // 128)]  # some 128, from all held-out plays


@torch.no_grad()
def held_out_loss(model: nn.Module) -> float:
    """Nats per character on plays not seen in training."""
    return causal_lm_loss(model(windows), windows).item()


def counting_loss(order: int) -> float:
    """The same for character frequencies (order 1) or frequencies after each character (order 2), smoothed by 1."""
    counts = torch.ones(len(characters), len(characters), dtype=torch.float64)
    pairs = torch.stack([train_tokens[:-1], train_tokens[1:]]).cpu()
    counts.index_put_(tuple(pairs), torch.ones(1, dtype=torch.float64), accumulate=True)
    if order == 1:
        counts = counts.sum(dim=0, keepdim=True).expand_as(counts)
    log_probs = (counts / counts.sum(dim=1, keepdim=True)).log()
    before, after = windows[:, :-1].cpu(), windows[:, 1:].cpu()
    return -log_probs[before, after].mean().item()


torch.manual_seed(SEED)
model = GPT(len(characters), BLOCK_SIZE, D_MODEL, HEADS, LAYERS).to(device)
tests = [(0, held_out_loss(model))]


def batches(rng: torch.Generator) -> Tensor:
    """Windows of the training plays, (batch block_size)."""
    starts = torch.randint(len(train_tokens) - BLOCK_SIZE + 1, (BATCH, 1), generator=rng)
    return train_tokens[(starts + torch.arange(BLOCK_SIZE)).to(device)]


def loss_and_test(model: nn.Module, tokens: Tensor) -> Tensor:
    """Your loss on a batch, and now and then on the plays held out."""
    global steps_done
    if steps_done and steps_done % (STEPS // 10) == 0:
        tests.append((steps_done, held_out_loss(model)))
    steps_done += 1
    return causal_lm_loss(model(tokens), tokens)


steps_done = 0
losses = train(
    model,
    batches,
    loss_and_test,
    STEPS,
    lr=LR,
    generator=lab.generator(f"GPT {SEED}"),
    weight_decay=0.1,
)
tests.append((STEPS, held_out_loss(model)))
model.eval()
by_counting = {"counting characters": counting_loss(1), "counting pairs": counting_loss(2)}

figures.use_style()
fig, ax = plt.subplots()
ax.plot(range(STEPS), losses, alpha=0.35, linewidth=1, label="training, each batch")
ax.plot(*zip(*tests, strict=True), "o-", label="plays held out")
for (label, value), colour in zip(by_counting.items(), ("C2", "C3"), strict=True):
    ax.axhline(value, linestyle=":", color=colour, label=label)
ax.set(xlabel="step", ylabel="nats per character", ylim=(1, 4.8))
ax.legend()
figures.show(
    fig,
    alt=f"Loss of a small GPT on the plays held out, from {tests[0][1]:.2f} nats per character before training to "
    f"{tests[-1][1]:.2f} after {STEPS} steps; counting characters gives {by_counting['counting characters']:.2f}, "
    f"counting pairs {by_counting['counting pairs']:.2f}.",
)

# %% [markdown]
# ## Experiment: what does the cache save?
#
# The same text from the same seed, with the cache and without, well beyond `block_size`. A clock around `model.step`
# takes the time of each new token: the processor's time, so that what else runs on the machine does not count, and
# on a GPU the time by the wall. Before the dashed line the cached run reads one token at a time and the other the whole
# text. Behind it the window moves, and both do the same work.
#
# Read what it wrote, too. It has learnt how a play looks and how words are spelt, more or less; do not look for sense.
# Nor does a model of this size learn a task from examples in its prompt: Brown et al. (2020) report that this grows
# with the size of the model.

# %% experiment=true
import time

NEW = BLOCK_SIZE * 3 // 2
clock = time.perf_counter if device.type == "cuda" else time.process_time


def timed(step: Callable, times: list[float]) -> Callable:
    """The step, with the milliseconds of each call noted."""

    def with_clock(tokens: Tensor, cache: object) -> tuple[Tensor, object]:
        start = clock()
        logits, cache = step(tokens, cache)
        logits[0, -1, 0].item()  # a GPU answers before it is done; reading a number waits for it
        times.append(1000 * (clock() - start))
        return logits, cache

    return with_clock


def median_around(values: list[float], reach: int = 4) -> list[float]:
    """The median of each value and its neighbours, against the jitter of a busy machine."""
    rows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sorted(row)[len(row) // 2] for row in rows]


prompt = encode("\n\n")[None]
milliseconds, texts = {}, {}
for label, use_cache in [("with the cache", True), ("without", False)]:
    milliseconds[label] = []
    texts[label] = generate(
        timed(model.step, milliseconds[label]),
        prompt,
        NEW,
        BLOCK_SIZE,
        temperature=0.8,
        top_k=20,
        generator=lab.generator(f"text {SEED}"),
        use_cache=use_cache,
    )
same = torch.equal(*texts.values())
print("The two texts are", "the same:" if same else "NOT the same:", "\n")
print("".join(characters[i] for i in texts["with the cache"][0].tolist()))

fig, ax = plt.subplots()
for (label, times), style in zip(milliseconds.items(), ["-", "--"], strict=True):
    ax.plot(range(len(prompt[0]), len(prompt[0]) + NEW), median_around(times), style, label=label)
ax.axvline(BLOCK_SIZE, color="grey", linestyle="--", linewidth=1)
ax.text(BLOCK_SIZE, 0, " the window moves", ha="left", va="bottom", color="grey")
ax.set(
    xlabel="length of the text, in characters", ylabel="milliseconds for one more", ylim=(0, None)
)
ax.legend(loc="upper left")
at = BLOCK_SIZE - 20
says = [
    f"{label} {times[at]:.1f} ms at length {at} and {times[-1]:.1f} ms at {NEW}"
    for label, times in ((label, median_around(times)) for label, times in milliseconds.items())
]
figures.show(
    fig,
    alt=f"Time for one more character against the length of the text: {'; '.join(says)}. "
    f"The context is {BLOCK_SIZE} characters.",
)
