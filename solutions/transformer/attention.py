# %% [markdown]
# # Attention
#
# In 2014 a translator learnt to look back at the words of its source while it wrote (Bahdanau et al. 2015). In
# 2017 the Transformer kept only the looking (Vaswani et al. 2017). You build that part here, from its one equation to a
# module that can be trained.
#
# **You build** scaled dot-product attention, its masks, and multi-head attention · **Minutes** 75 ·
# **Points** 16 · **Difficulty** ●●○ · **Before this** [Attention](../../book/transformer/attention.md)
#
# Run a cell with Shift+Enter. Write your answers where it says `YOUR CODE HERE`, then run the tests below them.
# A test that passes is silent; one that fails says what it expected, what came, and which mistake usually does that.
# More tests, on other inputs, run when your notebook is graded.

# %%
import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

import lab
from lab import check

device = lab.device()
for owner, name in [
    (torch.nn.functional, "scaled_dot_product_attention"),
    (torch.nn.functional, "multi_head_attention_forward"),
    (torch.nn, "MultiheadAttention"),
]:
    lab.refuse(owner, name, instead="@ (or einsum), torch.softmax and masked_fill")

# %% [markdown]
# ## 1 · Scaled dot-product attention
#
# A query asks, keys answer, values are what is handed over. Each query is compared with every key by a dot product.
# If the components of $q$ and $k$ are independent with mean 0 and variance 1, then
# $q \cdot k = \sum_{i=1}^{d_k} q_i k_i$ has variance $d_k$: the wider the vectors, the larger the scores, and a
# softmax of large scores is almost one-hot, where its gradient vanishes. Hence the division (Eq. 1):
#
# $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d_k}}\right)V$$
#
# The softmax runs over the keys: every *row* of weights, one for each query, sums to 1.
#
# A mask says which query may look at which key. Here `True` means *may attend*. (torch's own function uses the same
# convention; its `nn.MultiheadAttention` uses the opposite one.) A forbidden score becomes $-\infty$ before the
# softmax, so that its weight is exactly 0. A large negative number is not enough: a score of $10^5$ at a
# forbidden key would still beat it.
#
# A query that may attend nowhere has no weights at all: the softmax of a row of $-\infty$ is 0/0. We give it a
# row of zeros, as torch does.
#
# Write it with `@` or `einsum`, `softmax`, `masked_fill`. torch's built-in attention is not an answer here.


# %% solution="attention"
def scaled_dot_product_attention(
    q: Float[Tensor, "... queries d_k"],
    k: Float[Tensor, "... keys d_k"],
    v: Float[Tensor, "... keys d_v"],
    mask: Bool[Tensor, "... queries keys"] | None = None,
) -> Float[Tensor, "... queries d_v"]:
    """Attention of every query over every key (Vaswani et al. 2017, Eq. 1).

    Args:
        q: queries. Leading dimensions (batch, heads) are free and broadcast as in ``@``.
        k: keys, of the width of the queries.
        v: one value for each key.
        mask: ``True`` where a query may attend to a key; broadcasts against ``(... queries keys)``.

    Returns:
        For each query the average of the values, weighted by its softmax over the keys. A query that may
        attend nowhere gives zeros, and no NaN reaches the gradient of anything.

    Raises:
        ValueError: the last dimensions of ``q`` and ``k`` differ (the message says ``d_k``), or ``k`` and
            ``v`` do not have the same number of keys (the message says ``keys``).
    """
    ### BEGIN SOLUTION
    d_k = q.shape[-1]
    if k.shape[-1] != d_k:
        raise ValueError(f"q has d_k = {d_k} but k has d_k = {k.shape[-1]}")
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(f"k has {k.shape[-2]} keys but v has {v.shape[-2]}")
    scores = q @ k.transpose(-2, -1) / math.sqrt(d_k)  # (... queries keys)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = torch.softmax(scores, dim=-1)
    if mask is not None:
        # The softmax of a row that is all -inf is 0/0. Elsewhere these weights are 0 already.
        weights = weights.masked_fill(~mask, 0.0)
    return weights @ v
    ### END SOLUTION


# %% [markdown]
# Three cases one can check by hand. One query equally close to two keys takes the mean of their values. With
# $d_k = 4$ and scores 2 and 0 before scaling, the weights are $e^1$ and $e^0$ over their sum. And a masked key
# might as well not exist.

# %% test="attention_by_hand" points=2
# Two keys at the same distance: the mean of their values.
q = torch.tensor([[1.0, 0.0]])
k = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
v = torch.tensor([[2.0, 0.0, 4.0], [4.0, 2.0, 0.0]])
check.close(
    scaled_dot_product_attention(q, k, v),
    [[3.0, 1.0, 2.0]],
    because="Equal scores give equal weights that sum to 1: is the softmax over the keys (the last dimension)?",
)

# d_k = 4, scores 2 and 0: after the division by √4 the weights are e¹ and e⁰ over their sum.
q = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
k = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
v = torch.tensor([[1.0], [0.0]])
check.close(
    scaled_dot_product_attention(q, k, v),
    [[math.e / (math.e + 1)]],
    because="Scores are divided by √d_k, the root of the width of the queries, once.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("transformer", "attention")
rng = inputs("attention_by_hand")
for shape in [(), (2,), (3, 2)]:
    q = torch.randn(*shape, 3, 4, generator=rng, dtype=torch.float64).to(device)
    k = torch.randn(*shape, 5, 4, generator=rng, dtype=torch.float64).to(device)
    v = torch.randn(*shape, 5, 6, generator=rng, dtype=torch.float64).to(device)
    check.close(
        scaled_dot_product_attention(q, k, v),
        theirs.scaled_dot_product_attention(q, k, v),
        because="Without a mask the output must be softmax(QKᵀ/√d_k)V for any leading dimensions, "
        "with a softmax over the keys for each query.",
    )
    # Any order of the keys, with their values, gives the same answer.
    order = torch.randperm(5, generator=rng).to(device)
    check.close(
        scaled_dot_product_attention(q, k[..., order, :], v[..., order, :]),
        scaled_dot_product_attention(q, k, v),
        because="Attention does not see the order of the keys: key i goes with value i, and that is all.",
    )
# Not contiguous, and broadcast over heads.
q = torch.randn(2, 4, 3, generator=rng, dtype=torch.float64).to(device).transpose(-2, -1)
k = torch.randn(4, 5, generator=rng, dtype=torch.float64).to(device).T
v = torch.randn(5, 1, generator=rng, dtype=torch.float64).to(device).expand(5, 6)
check.close(
    scaled_dot_product_attention(q, k, v),
    theirs.scaled_dot_product_attention(q, k, v),
    because="Inputs may be transposed views, and leading dimensions broadcast.",
)
# Wide vectors: the scale must be √d_k of these queries, whatever it was before.
q = torch.randn(3, 64, generator=rng, dtype=torch.float64).to(device)
k = torch.randn(5, 64, generator=rng, dtype=torch.float64).to(device)
v = torch.randn(5, 2, generator=rng, dtype=torch.float64).to(device)
check.close(
    scaled_dot_product_attention(q, k, v),
    theirs.scaled_dot_product_attention(q, k, v),
    because="The scale is the square root of d_k, read off the queries.",
)
# One key: the output is its value, whatever the score.
check.close(
    scaled_dot_product_attention(q, k[:1], v[:1]),
    v[:1].expand(3, 2),
    because="With a single key its weight is 1.",
)
# Scores near 1e5, as logits of a trained model can be, must not overflow.
check.close(
    scaled_dot_product_attention(q * 1e5, k, v),
    theirs.scaled_dot_product_attention(q * 1e5, k, v),
    because="Large scores must not overflow: use torch.softmax, or subtract each row's largest score first.",
)
### END HIDDEN TESTS

# %% test="attention_mask" points=3
# The second key is masked: only the first value is left.
q = torch.tensor([[1.0, 0.0]])
k = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
v = torch.tensor([[2.0, 0.0], [4.0, 2.0]])
may_attend = torch.tensor([[True, False]])
check.close(
    scaled_dot_product_attention(q, k, v, may_attend),
    [[2.0, 0.0]],
    because="True means *may attend*; forbidden scores become -inf before the softmax, so the weights that are "
    "left sum to 1.",
)

# The masked key has a score of a hundred thousand. It must still count for nothing.
k = torch.tensor([[1.0, 0.0], [1e5 * math.sqrt(2), 0.0]])
check.close(
    scaled_dot_product_attention(q, k, v, may_attend),
    [[2.0, 0.0]],
    because="A masked score must be -inf. A large negative number added or put in its place can be outweighed.",
)

# A query that may attend nowhere.
check.close(
    scaled_dot_product_attention(q, k, v, torch.tensor([[False, False]])),
    [[0.0, 0.0]],
    because="The softmax of a row of -inf is NaN; such a query gives zeros.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("transformer", "attention")
rng = inputs("attention_mask")
for mask_shape in [(2, 3, 3, 5), (3, 5), (2, 1, 1, 5)]:
    q = torch.randn(2, 3, 3, 4, generator=rng, dtype=torch.float64).to(device)
    k = torch.randn(2, 3, 5, 4, generator=rng, dtype=torch.float64).to(device)
    v = torch.randn(2, 3, 5, 6, generator=rng, dtype=torch.float64).to(device)
    may_attend = (torch.rand(mask_shape, generator=rng) < 0.5).to(device)
    may_attend[..., 0, 1] = True
    expected = theirs.scaled_dot_product_attention(q, k, v, may_attend)
    check.close(
        scaled_dot_product_attention(q, k, v, may_attend),
        expected,
        because="With a mask, weights are a softmax over the allowed keys alone (True = may attend), and a query "
        "with no allowed key gives zeros.",
    )
    # What is masked everywhere cannot matter, however large.
    never = ~may_attend.expand(2, 3, 3, 5).any(dim=-2)
    check.close(
        scaled_dot_product_attention(
            q,
            k.masked_fill(never[..., None], 3e4),
            v.masked_fill(never[..., None], -7e5),
            may_attend,
        ),
        expected,
        because="A key that no query may see changed the output: its score is not -inf before the softmax.",
    )
# Scores of 1e5 at forbidden keys.
q = torch.ones(3, 4, dtype=torch.float64, device=device)
k = torch.randn(5, 4, generator=rng, dtype=torch.float64).to(device)
k[2] = 5e4
v = torch.randn(5, 6, generator=rng, dtype=torch.float64).to(device)
may_attend = torch.ones(3, 5, dtype=torch.bool, device=device)
may_attend[:, 2] = False
check.close(
    scaled_dot_product_attention(q, k, v, may_attend),
    theirs.scaled_dot_product_attention(q, k, v, may_attend),
    because="A masked score must be -inf: a masked key with a score of 1e5 still got weight.",
)
# Gradients: nothing flows to masked values, nothing is NaN where a query may attend nowhere.
q = torch.randn(3, 4, generator=rng, dtype=torch.float64).to(device).requires_grad_()
k = torch.randn(5, 4, generator=rng, dtype=torch.float64).to(device).requires_grad_()
v = torch.randn(5, 6, generator=rng, dtype=torch.float64).to(device).requires_grad_()
may_attend[1] = False
weight = torch.randn(3, 6, generator=rng, dtype=torch.float64).to(device)
(scaled_dot_product_attention(q, k, v, may_attend) * weight).sum().backward()
own = [tensor.detach().clone().requires_grad_() for tensor in (q, k, v)]
(theirs.scaled_dot_product_attention(*own, may_attend) * weight).sum().backward()
for mine, right in zip((q, k, v), own, strict=True):
    check.that(
        mine.grad is not None,
        "No gradient reaches q, k and v: is something detached or computed in NumPy?",
    )
    check.close(
        mine.grad,
        right.grad,
        because="The gradients of q, k and v are off: a masked value must get none, and a query that may attend "
        "nowhere must not turn them into NaN.",
    )
### END HIDDEN TESTS

# %% test="attention_inputs" points=1
check.raises(
    ValueError,
    scaled_dot_product_attention,
    torch.zeros(3, 4),
    torch.zeros(5, 6),
    torch.zeros(5, 2),
    mentions="d_k",
    because="Queries and keys of different widths have no dot product: say so, and say d_k.",
)
check.raises(
    ValueError,
    scaled_dot_product_attention,
    torch.zeros(3, 4),
    torch.zeros(5, 4),
    torch.zeros(6, 2),
    mentions="keys",
    because="Each key needs one value: say so, and say keys.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs

rng = inputs("attention_inputs")
q, k, v = (torch.randn(2, n, 4, generator=rng, dtype=torch.float64).to(device) for n in (3, 5, 5))
may_attend = (torch.rand(2, 3, 5, generator=rng) < 0.5).to(device)
before = [tensor.clone() for tensor in (q, k, v, may_attend)]
scaled_dot_product_attention(q, k, v, may_attend)
for mine, was in zip((q, k, v, may_attend), before, strict=True):
    check.close(
        mine, was, because="The function changed its own arguments; the caller still needs them."
    )
# A single value row must not be stretched over five keys.
check.raises(
    ValueError,
    scaled_dot_product_attention,
    q,
    k,
    v[:, :1],
    mentions="keys",
    because="One value for five keys is a mistake too, although broadcasting would accept it.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · Masks
#
# Two masks cover the whole of the Transformer. In a decoder, position $i$ may look at positions $j \le i$: itself and
# what came before, or the model would read the answer it has to give. And sequences of different lengths are padded
# to one length; nobody may look at the padding.


# %% solution="masks"
def causal_mask(length: int, device: torch.device | None = None) -> Bool[Tensor, "length length"]:
    """Which position (row) may attend to which (column): itself and everything before it.

    Raises:
        ValueError: ``length`` is negative.
    """
    ### BEGIN SOLUTION
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
    ### END SOLUTION


def padding_mask(
    lengths: Int[Tensor, "batch"], max_length: int
) -> Bool[Tensor, "batch 1 max_length"]:
    """Which keys are real: the first ``lengths[b]`` of ``max_length`` positions of sequence ``b``.

    The dimension of size 1 stands for the queries: the same keys are real for each of them.

    Raises:
        ValueError: a length is negative or greater than ``max_length``.
    """
    ### BEGIN SOLUTION
    if (lengths < 0).any() or (lengths > max_length).any():
        raise ValueError(f"lengths must lie between 0 and {max_length}, got {lengths.tolist()}")
    positions = torch.arange(max_length, device=lengths.device)
    return (positions < lengths[:, None])[:, None, :]
    ### END SOLUTION


# %% test="masks_by_hand" points=2
check.equal(
    causal_mask(3),
    [[True, False, False], [True, True, False], [True, True, True]],
    because="Row i is True up to and including column i: a position sees itself, and nothing after it.",
)
check.equal(
    padding_mask(torch.tensor([2, 3]), max_length=3),
    [[[True, True, False]], [[True, True, True]]],
    because="True for the first lengths[b] keys, False for the padding after them.",
)
check.that(causal_mask(2).dtype == torch.bool, "A mask is boolean: its dtype should be torch.bool.")
check.raises(
    ValueError,
    padding_mask,
    torch.tensor([4]),
    3,
    because="A sequence longer than max_length is bad input.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("transformer", "attention")
rng = inputs("masks")
for length in (0, 1, 2, 7):
    mask = causal_mask(length, device=device)
    check.shape(
        mask, (length, length), because="The causal mask has one row and one column per position."
    )
    check.equal(
        mask,
        theirs.causal_mask(length),
        because="The causal mask is wrong at some length, 0 and 1 included.",
    )
    check.that(
        mask.device.type == device.type, "The causal mask must lie on the device it was asked for."
    )
lengths = torch.randint(0, 8, (5,), generator=rng).to(device)
lengths[0], lengths[1] = 0, 7
mask = padding_mask(lengths, 7)
check.that(mask.dtype == torch.bool, "A mask is boolean: its dtype should be torch.bool.")
check.shape(
    mask, (5, 1, 7), because="The padding mask is (batch, 1, max_length): one row for all queries."
)
check.equal(
    mask, theirs.padding_mask(lengths, 7), because="Lengths from 0 to max_length are all allowed."
)
check.raises(ValueError, causal_mask, -1, because="A negative length is bad input.")
check.raises(
    ValueError, padding_mask, torch.tensor([2, -1]), 3, because="A negative length is bad input."
)
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · Multi-head attention
#
# One softmax can hardly look at two things at once: its weights sum to 1. So the paper splits the width
# $d_{\text{model}}$ into $h$ heads of width $d_k = d_{\text{model}}/h$, lets each attend for itself, and joins the
# results (§3.2.2):
#
# $$\mathrm{MultiHead}(Q,K,V) = \mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h)\,W^O,\qquad
# \mathrm{head}_i = \mathrm{Attention}(QW_i^Q,\, KW_i^K,\, VW_i^V)$$
#
# The $h$ matrices $W_i^Q$ are slices of one: `q_proj` maps $d_{\text{model}} \to d_{\text{model}}$ and head $i$ takes
# columns $i d_k$ to $(i+1) d_k$ of its output. That makes the heads a matter of shapes:
#
# ```
# (batch, length, d_model) → (batch, length, heads, d_k) → (batch, heads, length, d_k)
# ```
#
# The first arrow is a `view`, the second a `transpose`. A `view` straight to the last shape also runs, and mixes
# the positions.


# %% solution="multi_head"
class MultiHeadAttention(nn.Module):
    """Attention in several sub-spaces at once (Vaswani et al. 2017, §3.2.2).

    Attributes:
        q_proj, k_proj, v_proj, output_proj: ``nn.Linear(d_model, d_model, bias=False)``. Head ``i`` takes
            features ``i·d_k`` to ``(i+1)·d_k`` of the first three.

    Raises:
        ValueError: ``num_heads`` does not divide ``d_model``, or is not positive.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(f"num_heads = {num_heads} does not divide d_model = {d_model}")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.output_proj = nn.Linear(d_model, d_model, bias=False)
        ### END SOLUTION

    def forward(
        self,
        queries: Float[Tensor, "batch queries d_model"],
        keys: Float[Tensor, "batch keys d_model"],
        values: Float[Tensor, "batch keys d_model"],
        mask: Bool[Tensor, "batch queries keys"] | None = None,
    ) -> Float[Tensor, "batch queries d_model"]:
        """Every query attends to the keys, in each head for itself.

        ``mask`` is ``True`` where a query may attend, the same in all heads; ``(queries, keys)`` and
        ``(batch, 1, keys)`` broadcast.
        """
        ### BEGIN SOLUTION
        q, k, v = self.q_proj(queries), self.k_proj(keys), self.v_proj(values)
        # (batch, length, d_model) -> (batch, length, heads, d_k) -> (batch, heads, length, d_k)
        q, k, v = (x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
        if mask is not None and mask.dim() == 3:
            mask = mask[:, None]  # (batch, 1, queries, keys): the same for each head
        heads = scaled_dot_product_attention(q, k, v, mask)  # (batch, heads, queries, d_k)
        joined = heads.transpose(1, 2).flatten(start_dim=2)  # (batch, queries, d_model)
        return self.output_proj(joined)
        ### END SOLUTION


# %% test="multi_head_by_hand" points=2
# With identity projections and one-hot features each head sees its own half of the vector.
two_heads = MultiHeadAttention(d_model=4, num_heads=2)
identity = torch.eye(4)
two_heads.load_state_dict(
    {f"{name}.weight": identity for name in ("q_proj", "k_proj", "v_proj", "output_proj")}
)
x = torch.tensor([[[9.0, 0.0, 9.0, 0.0], [0.0, 9.0, 9.0, 0.0]]])
# Head 1 tells the two positions apart (scores 81/√2 and 0): each keeps its own half.
# Head 2 sees the same half twice, takes the mean, and changes nothing.
check.close(
    two_heads(x, x, x),
    x,
    because="Head i takes features i·d_k to (i+1)·d_k of every position: view as (batch, length, heads, d_k), then "
    "transpose; on the way back transpose first.",
)
check.raises(
    ValueError, MultiHeadAttention, 5, 2, because="A width of 5 cannot be split into 2 heads."
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("transformer", "attention")
rng = inputs("multi_head_by_hand")
for d_model, num_heads in [(6, 1), (6, 2), (6, 3), (6, 6)]:
    mine = MultiHeadAttention(d_model, num_heads).to(device).double()
    right = theirs.MultiHeadAttention(d_model, num_heads).to(device).double()
    weights = {
        name: torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
        for name, value in right.state_dict().items()
    }
    check.equal(
        sorted(mine.state_dict()),
        sorted(weights),
        because="The parameters are q_proj, k_proj, v_proj and output_proj, without biases.",
    )
    mine.load_state_dict(weights)
    right.load_state_dict(weights)
    queries = torch.randn(2, 3, d_model, generator=rng, dtype=torch.float64).to(device)
    keys = torch.randn(2, 5, d_model, generator=rng, dtype=torch.float64).to(device)
    values = torch.randn(2, 5, d_model, generator=rng, dtype=torch.float64).to(device)
    check.close(
        mine(queries, keys, values),
        right(queries, keys, values),
        because="Multi-head attention is off: queries, keys and values each have their projection, each head its "
        "own scale √(d_model/h), and the heads are joined in order before output_proj.",
    )
for num_heads in (0, -1, 4):
    check.raises(
        ValueError,
        MultiHeadAttention,
        6,
        num_heads,
        because="num_heads must be positive and divide d_model.",
    )
### END HIDDEN TESTS

# %% test="multi_head_masks" points=4
rng = lab.generator("multi_head_masks")
attention = MultiHeadAttention(d_model=8, num_heads=2)
x = torch.randn(1, 4, 8, generator=rng)
changed = x.clone()
changed[:, 3] += 1.0
causal = torch.tensor(
    [[True, False, False, False], [True, True, False, False], [True, True, True, False], [True] * 4]
)
before, after = attention(x, x, x, causal), attention(changed, changed, changed, causal)
check.close(
    after[:, :3],
    before[:, :3],
    because="Position 3 changed and an earlier output moved with it: the mask must reach every head.",
)
check.that(
    bool((after[:, 3] - before[:, 3]).detach().abs().max() > 1e-4),
    "The last position changed and its output did not: does the output depend on the input through attention?",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("transformer", "attention")
rng = inputs("multi_head_masks")
mine = MultiHeadAttention(6, 3).to(device).double()
right = theirs.MultiHeadAttention(6, 3).to(device).double()
weights = {
    name: torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
mine.load_state_dict(weights)
right.load_state_dict(weights)
queries, keys, values = (
    torch.randn(2, n, 6, generator=rng, dtype=torch.float64).to(device).requires_grad_()
    for n in (3, 5, 5)
)
for mask_shape in [(2, 3, 5), (3, 5), (2, 1, 5)]:
    may_attend = (torch.rand(mask_shape, generator=rng) < 0.6).to(device)
    check.close(
        mine(queries, keys, values, may_attend),
        right(queries, keys, values, may_attend),
        because="A mask of shape (batch, queries, keys), (queries, keys) or (batch, 1, keys) must mean the same in "
        "every head: where does the dimension of the heads go?",
    )
# Gradients reach all four projections and all three inputs.
pull = torch.randn(2, 3, 6, generator=rng, dtype=torch.float64).to(device)
may_attend = (torch.rand(2, 3, 5, generator=rng) < 0.6).to(device)
own = [tensor.detach().clone().requires_grad_() for tensor in (queries, keys, values)]
(mine(queries, keys, values, may_attend) * pull).sum().backward()
(right(*own, may_attend) * pull).sum().backward()
for input_, theirs_input in zip((queries, keys, values), own, strict=True):
    check.that(input_.grad is not None, "No gradient reaches one of queries, keys and values.")
    check.close(
        input_.grad, theirs_input.grad, because="The gradient of queries, keys or values is off."
    )
for name in ("q_proj", "k_proj", "v_proj", "output_proj"):
    gradient = getattr(mine, name).weight.grad
    check.that(gradient is not None, f"No gradient reaches {name}: is it used?")
    check.close(
        gradient, getattr(right, name).weight.grad, because=f"The gradient of {name} is off."
    )
### END HIDDEN TESTS

# %% [markdown] written="attention_why" points=2
# **In your own words.** A colleague removes the division by $\sqrt{d_k}$ and finds that their small model
# ($d_k = 4$) trains as before, but their large one ($d_k = 256$) hardly learns. Explain both observations: what
# happens to the scores, to the softmax, and to the gradient. (4 to 8 sentences.)

# %% [markdown]
# ## Experiment: what does the scale do?
#
# Your own attention, on random vectors as in the paper's footnote 4. As $d_k$ grows, the weights of the unscaled
# version collapse onto one key; with the scale they stay as they are. The derivative of a weight $p$ by its score is
# $p(1 - p)$: what does it come to where one weight is nearly 1 and the others nearly 0?

# %% experiment=true
import matplotlib.pyplot as plt

from lab import figures


@torch.no_grad()
def concentration(attend: Callable, d_k: int, draws: int = 400) -> float:
    """The mean largest weight over 32 keys."""
    rng = lab.generator(f"concentration {d_k}")
    q = torch.randn(draws, 1, d_k, generator=rng)
    k = torch.randn(draws, 32, d_k, generator=rng)
    # With the identity as values the output is the weights.
    weights = attend(q, k, torch.eye(32).expand(draws, 32, 32))
    return weights.max(dim=-1).values.mean().item()


def unscaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Your attention with the scale undone."""
    return scaled_dot_product_attention(q * math.sqrt(q.shape[-1]), k, v)


widths = [2**i for i in range(1, 11)]
with_scale = [concentration(scaled_dot_product_attention, d_k) for d_k in widths]
without = [concentration(unscaled, d_k) for d_k in widths]

figures.use_style()
fig, ax = plt.subplots()
ax.semilogx(widths, with_scale, "o-", base=2, label="divided by √d_k")
ax.semilogx(widths, without, "s--", base=2, label="not divided")
ax.set(xlabel="width of a head, d_k", ylabel="largest of 32 attention weights (mean)", ylim=(0, 1))
ax.legend()
figures.show(
    fig,
    alt=f"Mean largest attention weight against d_k: without the scale it rises from {without[0]:.2f} to "
    f"{without[-1]:.2f}; with it, it stays near {with_scale[-1]:.2f}.",
)

# %% [markdown]
# ## Experiment: train it to look things up
#
# A dictionary in miniature. Each sequence is a list of pairs, a key symbol and a value symbol; then a key is shown
# again, and the model must say the value that stood beside it. One layer of your multi-head attention is enough if it
# looks at the right place, and nothing but looking will do. On a GPU the larger preset runs.

# %% experiment=true
import torch.nn.functional as F
from tqdm.auto import trange

PAIRS, SYMBOLS, D_MODEL, STEPS = (24, 48, 128, 2000) if device.type == "cuda" else (8, 16, 64, 300)


class Lookup(nn.Module):
    """Embeds (key, value) pairs and a question, and reads the answer off by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.key_embedding = nn.Embedding(SYMBOLS, D_MODEL)
        self.value_embedding = nn.Embedding(SYMBOLS, D_MODEL)
        self.attention = MultiHeadAttention(D_MODEL, num_heads=4)
        self.to_logits = nn.Linear(D_MODEL, SYMBOLS)

    def forward(self, keys: Tensor, values: Tensor, question: Tensor) -> Tensor:
        """(batch, pairs) twice and (batch,) -> logits (batch, symbols)."""
        embedded = self.key_embedding(keys)
        asked = self.key_embedding(question)[:, None]
        return self.to_logits(self.attention(asked, embedded, self.value_embedding(values))[:, 0])


def draw(batch: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys without repetition, random values, the question and its answer."""
    keys = torch.rand(batch, SYMBOLS, generator=rng).argsort(dim=-1)[:, :PAIRS]
    values = torch.randint(SYMBOLS, (batch, PAIRS), generator=rng)
    asked = torch.randint(PAIRS, (batch, 1), generator=rng)
    return tuple(
        t.to(device)
        for t in (keys, values, keys.gather(1, asked)[:, 0], values.gather(1, asked)[:, 0])
    )


torch.manual_seed(0)
model = Lookup().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
rng = lab.generator("lookup training")
accuracies = []
for step in (progress := trange(STEPS, desc="training")):
    keys, values, question, answer = draw(64, rng)
    logits = model(keys, values, question)
    optimizer.zero_grad()
    F.cross_entropy(logits, answer).backward()
    optimizer.step()
    accuracies.append((logits.argmax(-1) == answer).float().mean().item())
    if step % 50 == 0:
        progress.set_postfix(accuracy=f"{accuracies[-1]:.2f}")

fig, ax = plt.subplots()
ax.semilogx(range(1, STEPS + 1), accuracies, label="one layer of attention")
ax.axhline(1 / SYMBOLS, color="C1", linestyle="--", label="guessing")
ax.set(xlabel="step", ylabel="accuracy on its batch", ylim=(0, 1.02))
ax.legend(loc="center right")
figures.show(
    fig,
    alt=f"Accuracy of looking up a value rises from {accuracies[0]:.2f} to "
    f"{sum(accuracies[-100:]) / 100:.2f}; guessing gives {1 / SYMBOLS:.2f}.",
)
