# %% [markdown]
# # The Transformer, block by block
#
# Attention mixes positions and does nothing else. What makes a model of it is what stands around it: a code for the
# order, a small network at each position, a sum that carries the input past every layer, and a normalisation that
# keeps its size. You build these parts, the two blocks of 2017 from them, and the whole translator of
# Vaswani et al. (2017); then you train it.
#
# **You build** positions, layer norm, feed-forward, encoder and decoder blocks (post-LN and pre-LN), the Transformer
# · **Minutes** 120 · **Points** 20 · **Difficulty** ●●● ·
# **Before this** [The Transformer](../../book/transformer/transformer.md), [Attention](attention.ipynb)
#
# Run a cell with Shift+Enter. Write your answers where it says `YOUR CODE HERE`, then run the tests below them.
# A test that passes is silent; one that fails says what it expected, what came, and which mistake usually does that.
# More tests, on other inputs, run when your notebook is graded.

# %%
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

import lab
from lab import check

device = lab.device()
for owner, name in [
    (torch.nn, "LayerNorm"),
    (torch.nn.functional, "layer_norm"),
    (torch, "layer_norm"),
    (torch.nn, "Transformer"),
    (torch.nn, "TransformerEncoder"),
    (torch.nn, "TransformerEncoderLayer"),
    (torch.nn, "TransformerDecoder"),
    (torch.nn, "TransformerDecoderLayer"),
]:
    lab.refuse(
        owner, name, instead="tensor operations, nn.Linear, nn.Embedding and the parts above"
    )


def set_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """For the tests: loads the weights by name, and says which names or shapes are not as they should be."""
    check.equal(
        {name: tuple(value.shape) for name, value in module.state_dict().items()},
        {name: tuple(value.shape) for name, value in weights.items()},
        because="The module's parameters must have the names and shapes of its docstring, and there must be no others.",
    )
    module.load_state_dict(weights)


# %% [markdown]
# ## 1 · Positions
#
# Attention treats its keys as a set: shuffle them together with their values and the result is the same. A sentence
# is not a set, so the model must be told where each word stands. The paper adds to the embedding at position $p$ a
# vector that depends on $p$ alone (Vaswani et al. 2017, §3.5):
#
# $$PE_{(p,\,2i)} = \sin(p\,\omega_i), \qquad PE_{(p,\,2i+1)} = \cos(p\,\omega_i), \qquad
# \omega_i = 10000^{-2i/d_{\text{model}}}, \qquad i = 0, \dots, \tfrac{d_{\text{model}}}{2} - 1.$$
#
# Two neighbouring columns form a pair with one frequency: the hand of a clock, seen from two sides. The first hand
# takes $2\pi \approx 6.3$ positions for a turn, the last nearly $10000 \cdot 2\pi$. Fast hands tell neighbours apart,
# slow ones tell near from far, as the seconds and hours of a real clock do.
#
# Why a sine *and* a cosine? By the addition theorems, moving on by $k$ positions turns each pair by the angle
# $k\omega_i$, wherever it stood:
#
# $$\begin{pmatrix} \sin((p+k)\,\omega_i) \\ \cos((p+k)\,\omega_i) \end{pmatrix} =
# \begin{pmatrix} \cos k\omega_i & \sin k\omega_i \\ -\sin k\omega_i & \cos k\omega_i \end{pmatrix}
# \begin{pmatrix} \sin p\,\omega_i \\ \cos p\,\omega_i \end{pmatrix}$$
#
# So "three words back" is one linear map of $PE_p$, the same for every $p$, and a matrix of the model can learn it. A
# sine alone would not allow it. The paper gives this as its reason; position vectors learned like words worked about
# as well.
#
# Positions count from 0. Sines and cosines alternate: column 0 is a sine, column 1 a cosine.


# %% solution="positions"
def sinusoidal_positions(length: int, d_model: int) -> Float[Tensor, "length d_model"]:
    """The position code of positions 0 to ``length - 1`` (Vaswani et al. 2017, §3.5), in float32 on the CPU.

    Column ``2i`` is the sine and column ``2i + 1`` the cosine of ``position / 10000**(2i / d_model)``.

    Raises:
        ValueError: ``d_model`` is odd (the message says ``d_model``), or ``length`` is negative (it says
            ``length``).
    """
    ### BEGIN SOLUTION
    if d_model % 2:
        raise ValueError(f"d_model must be even, got {d_model}")
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")
    # In float64: the angle of a late position needs more digits than float32 has.
    position = torch.arange(length, dtype=torch.float64)
    frequency = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angle = position[:, None] * frequency  # (length, d_model / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(start_dim=1).float()
    ### END SOLUTION


# %% [markdown]
# At position 0 every sine is 0 and every cosine 1. With $d_{\text{model}} = 4$ the two frequencies are
# $\omega_0 = 1$ and $\omega_1 = 10000^{-1/2} = 1/100$.

# %% test="positions_by_hand" points=1
check.close(
    sinusoidal_positions(3, 4),
    [
        [0.0, 1.0, 0.0, 1.0],
        [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)],
        [math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)],
    ],
    because="Positions count from 0; columns 0 and 1 are sine and cosine of the position itself, columns 2 and 3 of "
    "the position divided by 10000^(2/4) = 100.",
)
check.raises(
    ValueError,
    sinusoidal_positions,
    3,
    5,
    mentions="d_model",
    because="An odd width leaves a sine without its cosine: say so, and say d_model.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("transformer", "block")
rng = inputs("positions_by_hand")
for d_model in (2, 6, 10, 64):
    length = 20 + int(torch.randint(20, (1,), generator=rng))
    codes = sinusoidal_positions(length, d_model)
    check.shape(codes, (length, d_model), because="One row per position, one column per feature.")
    check.that(codes.dtype == torch.float32, "The position code should be float32.")
    # The tolerance leaves room for angles computed in float32.
    check.close(
        codes,
        theirs.sinusoidal_positions(length, d_model),
        rtol=0.0,
        atol=2e-4,
        because="Pair i (columns 2i and 2i + 1) is the sine and the cosine of position / 10000^(2i/d_model): one "
        "frequency for both, and the exponent counts columns, not pairs.",
    )
check.shape(sinusoidal_positions(0, 6), (0, 6), because="No positions: no rows.")
check.shape(sinusoidal_positions(1, 6), (1, 6), because="One position: one row.")
check.raises(
    ValueError,
    sinusoidal_positions,
    4,
    7,
    mentions="d_model",
    because="An odd d_model is bad input.",
)
check.raises(
    ValueError,
    sinusoidal_positions,
    -1,
    6,
    mentions="length",
    because="A negative length is bad input: say so, and say length.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · Layer norm
#
# A sum of many terms grows; the next layer would see inputs of another size at every depth and every step of the
# training. Layer norm (Ba et al. 2016) sets the size anew. It takes the $d$ features of *one position* of *one
# sequence*, moves their mean to 0 and their variance to 1, and gives each feature a learned scale and shift:
#
# $$\mu = \frac1d \sum_{j=1}^d x_j, \qquad \sigma^2 = \frac1d \sum_{j=1}^d (x_j - \mu)^2, \qquad
# \mathrm{LN}(x)_j = \gamma_j\,\frac{x_j - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta_j.$$
#
# Three details are easily missed.
#
# - $\sigma^2$ is the mean of the squares, divided by $d$ and not by $d - 1$: nothing is estimated here from a sample.
#   (`Tensor.var` divides by $d - 1$ unless told otherwise.)
# - $\epsilon$ stands under the root. It matters when all features are equal: then the result is $\beta$, not 0/0.
# - Batch norm takes its mean over the batch; layer norm does not. What else is in the batch, and how long the other
#   sequences are, changes nothing, in training as in use.
#
# For small $\epsilon$, $\mathrm{LN}(ax + c) = \mathrm{LN}(x)$ for $a > 0$: the size of $x$ is forgotten. You will meet
# that again in the gradient: what comes back through a layer norm is divided by $\sigma$.


# %% solution="layer_norm"
def layer_norm(
    x: Float[Tensor, "... d_model"],
    weight: Float[Tensor, "d_model"],
    bias: Float[Tensor, "d_model"],
    eps: float = 1e-5,
) -> Float[Tensor, "... d_model"]:
    """Each vector of the last dimension at mean 0 and variance 1, then scaled and shifted (Ba et al. 2016).

    Args:
        x: any leading dimensions; left unchanged.
        weight: γ, the scale of each feature.
        bias: β, the shift of each feature.
        eps: added to the variance (the mean of the squared deviations), under the root.

    Raises:
        ValueError: ``weight`` or ``bias`` is not of shape ``(d_model,)`` (the message says ``weight`` or
            ``bias``).
    """
    ### BEGIN SOLUTION
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter.shape != x.shape[-1:]:
            raise ValueError(
                f"{name} must be of shape {tuple(x.shape[-1:])}, got {tuple(parameter.shape)}"
            )
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return weight * centred / torch.sqrt(variance + eps) + bias
    ### END SOLUTION


# %% [markdown]
# By hand: $(1, 3)$ has mean 2 and variance 1, so without $\epsilon$ it becomes $(-1, 1)$. With $\epsilon = 3$ the root
# is $\sqrt{1 + 3} = 2$.

# %% test="layer_norm_by_hand" points=2
one, zero = torch.ones(2), torch.zeros(2)
check.close(
    layer_norm(torch.tensor([1.0, 3.0]), one, zero, eps=0.0),
    [-1.0, 1.0],
    because="The variance of (1, 3) is ((-1)² + 1²)/2 = 1: divide by d, not by d − 1.",
)
check.close(
    layer_norm(torch.tensor([1.0, 3.0]), one, zero, eps=3.0),
    [-0.5, 0.5],
    because="eps is added to the variance under the root: √(1 + 3) = 2.",
)
check.close(
    layer_norm(
        torch.tensor([[1.0, 3.0], [30.0, 10.0]]),
        torch.tensor([2.0, 3.0]),
        torch.tensor([0.5, 0.0]),
        eps=0.0,
    ),
    [[-1.5, 3.0], [2.5, -3.0]],
    because="Each row is normalised for itself, multiplied by weight, and then bias is added.",
)
check.close(
    layer_norm(torch.tensor([5.0, 5.0]), one, torch.tensor([1.0, 2.0])),
    [1.0, 2.0],
    because="Equal features have variance 0; eps keeps the division finite, and bias is what is left.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("transformer", "block")
rng = inputs("layer_norm_by_hand")
for shape, eps in [((5,), 0.1), ((3, 5), 0.1), ((2, 3, 6), 0.3), ((2, 3, 4, 7), 1e-5)]:
    x = (1.5 + 0.7 * torch.randn(shape, generator=rng, dtype=torch.float64)).to(device)
    weight, bias = torch.randn(2, shape[-1], generator=rng, dtype=torch.float64).to(device)
    check.close(
        layer_norm(x, weight, bias, eps),
        theirs.layer_norm(x, weight, bias, eps),
        because="For each vector of the last dimension: subtract its mean, divide by √(variance + eps) with the "
        "variance divided by d, multiply by weight, add bias.",
    )
# Without eps given it is 1e-5, which shows when the variance is small.
x = (2e-3 * torch.randn(3, 5, generator=rng, dtype=torch.float64)).to(device)
weight, bias = torch.randn(2, 5, generator=rng, dtype=torch.float64).to(device)
check.close(
    layer_norm(x, weight, bias),
    theirs.layer_norm(x, weight, bias),
    because="eps is 1e-5 unless given, and counts beside a small variance.",
)
# Not contiguous.
x = torch.randn(5, 3, generator=rng, dtype=torch.float64).to(device).T
check.close(
    layer_norm(x, weight, bias),
    theirs.layer_norm(x, weight, bias),
    because="The input may be a transposed view: it is its last dimension that is normalised.",
)
# What else is in the batch does not matter.
x = torch.randn(4, 3, 5, generator=rng, dtype=torch.float64).to(device)
check.close(
    layer_norm(x, weight, bias)[1:2, :2],
    layer_norm(x[1:2, :2], weight, bias),
    because="A vector's result changed with its neighbours: the mean and variance are of one position alone.",
)
### END HIDDEN TESTS

# %% test="layer_norm_inputs" points=1
check.raises(
    ValueError,
    layer_norm,
    torch.zeros(2, 3),
    torch.ones(1),
    torch.zeros(3),
    mentions="weight",
    because="One scale for three features would be stretched by broadcasting: refuse it, and say weight.",
)
x = torch.tensor([1.0, 3.0])
layer_norm(x, torch.ones(2), torch.zeros(2))
check.equal(x, [1.0, 3.0], because="x was changed in place; the residual sum still needs it.")
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("transformer", "block")
rng = inputs("layer_norm_inputs")
mine = [
    torch.randn(s, generator=rng, dtype=torch.float64).to(device).requires_grad_()
    for s in [(2, 3, 5), (5,), (5,)]
]
right = [tensor.detach().clone().requires_grad_() for tensor in mine]
pull = torch.randn(2, 3, 5, generator=rng, dtype=torch.float64).to(device)
(layer_norm(*mine, 0.1) * pull).sum().backward()
(theirs.layer_norm(*right, 0.1) * pull).sum().backward()
for name, own, other in zip(("x", "weight", "bias"), mine, right, strict=True):
    check.that(own.grad is not None, f"No gradient reaches {name}: is something detached?")
    check.close(
        own.grad,
        other.grad,
        because=f"The gradient of {name} is off: it flows through the mean and the variance too.",
    )
for weight_shape, bias_shape, word in [
    ((5,), (1,), "bias"),
    ((3, 5), (5,), "weight"),
    ((1, 5), (5,), "weight"),
    ((5,), (6,), "bias"),
]:
    check.raises(
        ValueError,
        layer_norm,
        torch.zeros(3, 5),
        torch.ones(weight_shape),
        torch.zeros(bias_shape),
        mentions=word,
        because="weight and bias are of shape (d_model,), also where broadcasting would accept another.",
    )
### END HIDDEN TESTS

# %% [markdown]
# The blocks need a module that holds γ and β. It is given, and calls your function.


# %%
class LayerNorm(nn.Module):
    """``layer_norm`` with its parameters: ``weight`` (ones at the start) and ``bias`` (zeros)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Each position at mean 0 and variance 1, scaled and shifted."""
        return layer_norm(x, self.weight, self.bias)


# %% [markdown]
# ## 3 · Feed-forward
#
# Attention is an average of values: for given weights it is linear. What bends is the feed-forward network, two
# linear layers with a ReLU between them, applied to each position for itself (§3.3, Eq. 2):
#
# $$\mathrm{FFN}(x) = \max(0,\; xW_1 + b_1)\,W_2 + b_2, \qquad
# W_1 \in \mathbb{R}^{d_{\text{model}} \times d_{\text{ff}}}, \;
# W_2 \in \mathbb{R}^{d_{\text{ff}} \times d_{\text{model}}}.$$
#
# The paper takes $d_{\text{ff}} = 4\,d_{\text{model}}$ (512 and 2048), so the two matrices hold
# $8\,d_{\text{model}}^2$ numbers, against $4\,d_{\text{model}}^2$ in the projections of the attention beside it: two
# thirds of an encoder block are feed-forward.
#
# It is often told that the Transformer uses GELU (Hendrycks & Gimpel 2016). That came with GPT-1 and BERT in 2018;
# in 2017 it is ReLU.


# %% solution="feed_forward"
class FeedForward(nn.Module):
    """Two linear layers with a ReLU between, at each position for itself (Vaswani et al. 2017, Eq. 2).

    Attributes:
        linear1: ``nn.Linear(d_model, d_ff)``.
        linear2: ``nn.Linear(d_ff, d_model)``.
    """

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.linear1 = nn.Linear(d_model, d_ff)
        self.linear2 = nn.Linear(d_ff, d_model)
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The network's output at each position; ``x`` is left unchanged."""
        ### BEGIN SOLUTION
        return self.linear2(torch.relu(self.linear1(x)))
        ### END SOLUTION


# %% [markdown]
# By hand: from $x = (1, -2)$ the first layer makes $(1, -2, 3)$ (the last is $x_1 - x_2$); the ReLU takes the $-2$
# away; the second layer sums, and adds its bias. (An `nn.Linear` keeps its weight as outputs × inputs.)

# %% test="feed_forward_by_hand" points=1
network = FeedForward(d_model=2, d_ff=3)
set_weights(
    network,
    {
        "linear1.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]),
        "linear1.bias": torch.tensor([0.0, 0.0, 0.0]),
        "linear2.weight": torch.tensor([[1.0, 1.0, 1.0], [-1.0, 0.0, -1.0]]),
        "linear2.bias": torch.tensor([10.0, 0.0]),
    },
)
check.close(
    network(torch.tensor([[1.0, -2.0]])),
    [[14.0, -4.0]],
    because="A ReLU stands between the two layers: (1, 0, 3) reaches the second. Nothing stands after it: −4 stays.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, gradients, inputs, reference

theirs = reference("transformer", "block")
rng = inputs("feed_forward_by_hand")
mine = FeedForward(4, 7).to(device, torch.float64)
right = theirs.FeedForward(4, 7).to(device, torch.float64)
weights = {
    name: torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
set_weights(mine, weights)
right.load_state_dict(weights)
cases = [
    (5 * torch.randn(shape, generator=rng, dtype=torch.float64).to(device),)
    for shape in [(4,), (3, 4), (2, 3, 5, 4)]
]
for (x,), got in zip(cases, each(mine, cases), strict=True):
    check.close(
        got,
        right(x),
        because="FFN(x) = max(0, xW₁ + b₁)W₂ + b₂: the ReLU of 2017 between the layers, both biases, any leading "
        "dimensions.",
    )
x = torch.randn(2, 3, 4, generator=rng, dtype=torch.float64).to(device)
before = x.clone()
pull = torch.randn(2, 3, 4, generator=rng, dtype=torch.float64).to(device)
(mine(x) * pull).sum().backward()
(right(x) * pull).sum().backward()
check.close(
    x, before, because="The network changed its input in place; the residual sum still needs it."
)
mine_gradients, right_gradients = gradients(mine), gradients(right)
for name in weights:
    gradient = mine_gradients.get(name)
    check.that(gradient is not None, f"No gradient reaches {name}: is it used?")
    check.close(gradient, right_gradients[name], because=f"The gradient of {name} is off.")
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · The encoder block
#
# An encoder block has two sub-layers, attention and feed-forward. Each of them only *adds* to what passes by: with a
# sub-layer $F$, the block passes on $x + F(x)$ (a residual connection). Were $F$ zero, $x$ would go through
# unharmed, and the derivative of $x + F(x)$ is $I + F'(x)$: a gradient always has a way past the layer.
#
# Where does the layer norm go? In 2017 on the sum, **post-LN** (§3.1); from GPT-2 on mostly on the way into the
# sub-layer, **pre-LN**:
#
# $$\text{post-LN:}\quad x \leftarrow \mathrm{LN}(x + F(x)) \qquad\qquad
# \text{pre-LN:}\quad x \leftarrow x + F(\mathrm{LN}(x))$$
#
# The difference looks small. In post-LN no path avoids the norms: after $L$ blocks the gradient has come through
# $2L$ of them. In pre-LN the sum itself is never normalised, and the identity in $I + F'$ runs from the last block to
# the first (Xiong et al. 2020); but the sum grows from block to block, so the *stack* ends with one more norm. In
# pre-LN mind what is added to what: the sub-layer reads the normalised $x$, the sum keeps $x$ as it was.
#
# The attention is not the task here, so it is given: torch's `nn.MultiheadAttention`, wrapped for this course's
# convention (a mask is boolean, `True` = may attend; torch's module has it the other way round). It is called as
# `attention(queries, keys, values, mask)`. Your own from the exercise on attention has the same call, computes
# the same and would do as well; the tests load weights by the parameter names of the given one.


# %%
class MultiHeadAttention(nn.Module):
    """torch's multi-head attention, with masks that are ``True`` where a query may attend.

    A query that may attend nowhere gives zeros. While ``keep_weights`` is true, a call leaves its attention weights,
    averaged over the heads, in ``weights`` (batch, queries, keys).

    Raises:
        ValueError: ``num_heads`` does not divide ``d_model``, or is not positive.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(f"num_heads = {num_heads} does not divide d_model = {d_model}")
        self.torch_attention = nn.MultiheadAttention(
            d_model, num_heads, bias=False, batch_first=True
        )
        self.keep_weights, self.weights = False, None

    def forward(
        self,
        queries: Float[Tensor, "batch queries d_model"],
        keys: Float[Tensor, "batch keys d_model"],
        values: Float[Tensor, "batch keys d_model"],
        mask: Bool[Tensor, "batch queries keys"] | None = None,
    ) -> Float[Tensor, "batch queries d_model"]:
        """Every query attends to the keys. ``(queries, keys)`` and ``(batch, 1, keys)`` broadcast as masks."""
        if mask is None:
            output, self.weights = self.torch_attention(
                queries, keys, values, need_weights=self.keep_weights
            )
            return output
        mask = mask.expand(queries.shape[0], queries.shape[1], keys.shape[1])
        nowhere = ~mask.any(dim=-1, keepdim=True)
        # torch wants True where a query may NOT attend, once for each head; a row without a key would give NaN.
        forbidden = ~(mask | nowhere)
        output, self.weights = self.torch_attention(
            queries,
            keys,
            values,
            attn_mask=forbidden.repeat_interleave(self.torch_attention.num_heads, dim=0),
            need_weights=self.keep_weights,
        )
        return output.masked_fill(nowhere, 0.0)


# %% solution="encoder"
class EncoderBlock(nn.Module):
    """Self-attention and feed-forward, each with its residual sum and its layer norm.

    Post-LN (Vaswani et al. 2017, §3.1) unless ``norm_first``, then pre-LN (as in GPT-2).

    Attributes:
        attention: ``MultiHeadAttention(d_model, num_heads)``.
        feed_forward: ``FeedForward(d_model, d_ff)``.
        norm1, norm2: ``LayerNorm(d_model)``, of the attention and of the feed-forward sub-layer.
    """

    def __init__(self, d_model: int, num_heads: int, d_ff: int, norm_first: bool = False) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.attention = MultiHeadAttention(d_model, num_heads)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.norm1 = LayerNorm(d_model)
        self.norm2 = LayerNorm(d_model)
        self.norm_first = norm_first
        ### END SOLUTION

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        mask: Bool[Tensor, "batch length length"] | None = None,
    ) -> Float[Tensor, "batch length d_model"]:
        """One block of the encoder; ``mask`` is handed to the attention. ``x`` is left unchanged."""
        ### BEGIN SOLUTION
        if self.norm_first:
            normed = self.norm1(x)
            x = x + self.attention(normed, normed, normed, mask)
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x + self.attention(x, x, x, mask))
        return self.norm2(x + self.feed_forward(x))
        ### END SOLUTION


# %% [markdown]
# With all matrices zero both sub-layers add nothing but the last bias. Then one can see by hand what the norms do:
# post-LN turns $(1, 3)$ into $(-1, 1)$; pre-LN must return its input as it came.

# %% test="encoder_post_ln" points=2
block = EncoderBlock(d_model=2, num_heads=1, d_ff=3)
silent = {name: torch.zeros_like(value) for name, value in block.state_dict().items()}
silent |= {"norm1.weight": torch.ones(2), "norm2.weight": torch.ones(2)}
set_weights(block, silent)
check.close(
    block(torch.tensor([[[1.0, 3.0], [30.0, 10.0]]])),
    [[[-1.0, 1.0], [1.0, -1.0]]],
    because="With silent sub-layers post-LN leaves LN(LN(x)): the norm is taken of the sum x + F(x).",
)
# Now the feed-forward adds (3, 0): the norm of (-1, 1) + (3, 0) = (2, 1) is (1, -1).
set_weights(block, silent | {"feed_forward.linear2.bias": torch.tensor([3.0, 0.0])})
check.close(
    block(torch.tensor([[[1.0, 3.0]]])),
    [[[1.0, -1.0]]],
    because="Post-LN: norm2 is applied to the sum of x and the feed-forward output, not to one of them.",
    rtol=1e-3,
    atol=1e-3,
)
# The last of three positions is padding: nobody may look at it.
rng = lab.generator("encoder_post_ln")
block = EncoderBlock(d_model=4, num_heads=2, d_ff=5)
x = torch.randn(1, 3, 4, generator=rng)
changed = x.clone()
changed[:, 2] = 7.0 * torch.randn(4, generator=rng)
real = torch.tensor([[[True, True, False]]])
check.close(
    block(changed, real)[:, :2],
    block(x, real)[:, :2],
    because="The padding changed and a real position moved with it: the mask must reach the attention.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, gradients, inputs, reference

theirs = reference("transformer", "block")
rng = inputs("encoder_post_ln")
mine = EncoderBlock(6, 2, 9).to(device, torch.float64)
right = theirs.EncoderBlock(6, 2, 9).to(device, torch.float64)
weights = {
    name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
set_weights(mine, weights)
right.load_state_dict(weights)
for length in (1, 4):
    x = (1.0 + 2.0 * torch.randn(3, length, 6, generator=rng, dtype=torch.float64)).to(device)
    before = x.clone()
    check.close(
        mine(x),
        right(x),
        because="Post-LN: x ← norm1(x + attention(x, x, x)), then x ← norm2(x + feed_forward(x)).",
    )
    check.close(x, before, because="The block changed its input in place.")
x = (1.0 + 2.0 * torch.randn(3, 4, 6, generator=rng, dtype=torch.float64)).to(device)
cases = [
    (x, (torch.rand(shape, generator=rng) < 0.5).to(device))
    for shape in [(3, 4, 4), (4, 4), (3, 1, 4)]
]
for _, may_attend in cases:
    may_attend[..., 0] = True
for (_, may_attend), got in zip(cases, each(mine, cases), strict=True):
    check.close(
        got,
        right(x, may_attend),
        because="A mask of shape (batch, length, length), (length, length) or (batch, 1, length) goes to the "
        "attention as it is, True = may attend.",
    )
# Gradients of the input and of every parameter.
own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
pull = torch.randn(3, 4, 6, generator=rng, dtype=torch.float64).to(device)
(mine(own, may_attend) * pull).sum().backward()
(right(other, may_attend) * pull).sum().backward()
check.that(own.grad is not None, "No gradient reaches the block's input.")
check.close(own.grad, other.grad, because="The gradient of the block's input is off.")
mine_gradients, right_gradients = gradients(mine), gradients(right)
for name in weights:
    gradient = mine_gradients.get(name)
    check.that(gradient is not None, f"No gradient reaches {name}: is it used?")
    check.close(gradient, right_gradients[name], because=f"The gradient of {name} is off.")
### END HIDDEN TESTS

# %% test="encoder_pre_ln" points=2
block = EncoderBlock(d_model=2, num_heads=1, d_ff=3, norm_first=True)
silent = {name: torch.zeros_like(value) for name, value in block.state_dict().items()}
silent |= {"norm1.weight": torch.ones(2), "norm2.weight": torch.ones(2)}
set_weights(block, silent)
check.close(
    block(torch.tensor([[[1.0, 3.0], [30.0, 10.0]]])),
    [[[1.0, 3.0], [30.0, 10.0]]],
    because="With silent sub-layers pre-LN returns x itself: the norm is on the way into the sub-layer, and the sum "
    "keeps the x that was not normalised.",
)
# Attention that copies a single position, of what it is given: LN(1, 3) = (-1, 1) is added to (1, 3).
copy = {
    "attention.torch_attention.in_proj_weight": torch.cat([torch.eye(2)] * 3),
    "attention.torch_attention.out_proj.weight": torch.eye(2),
}
set_weights(block, silent | copy)
check.close(
    block(torch.tensor([[[1.0, 3.0]]])),
    [[[0.0, 4.0]]],
    because="Pre-LN: queries, keys and values are all the normalised x, and what comes out is added to x.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import gradients, inputs, reference

theirs = reference("transformer", "block")
rng = inputs("encoder_pre_ln")
mine = EncoderBlock(6, 3, 7, norm_first=True).to(device, torch.float64)
right = theirs.EncoderBlock(6, 3, 7, norm_first=True).to(device, torch.float64)
weights = {
    name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
set_weights(mine, weights)
right.load_state_dict(weights)
for length in (1, 5):
    x = (1.0 + 2.0 * torch.randn(2, length, 6, generator=rng, dtype=torch.float64)).to(device)
    before = x.clone()
    check.close(
        mine(x),
        right(x),
        because="Pre-LN: x ← x + attention(norm1(x), norm1(x), norm1(x)), then x ← x + feed_forward(norm2(x)).",
    )
    check.close(x, before, because="The block changed its input in place.")
may_attend = (torch.rand(2, 5, 5, generator=rng) < 0.5).to(device)
may_attend[..., 0] = True
own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
pull = torch.randn(2, 5, 6, generator=rng, dtype=torch.float64).to(device)
output, expected = mine(own, may_attend), right(other, may_attend)
check.close(output, expected, because="In the pre-LN block the mask must reach the attention too.")
(output * pull).sum().backward()
(expected * pull).sum().backward()
check.that(own.grad is not None, "No gradient reaches the block's input.")
check.close(own.grad, other.grad, because="The gradient of the block's input is off.")
mine_gradients, right_gradients = gradients(mine), gradients(right)
for name in weights:
    gradient = mine_gradients.get(name)
    check.that(gradient is not None, f"No gradient reaches {name}: is it used?")
    check.close(gradient, right_gradients[name], because=f"The gradient of {name} is off.")
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · The decoder block
#
# The decoder writes the translation, one token after another. Its block has three sub-layers:
#
# 1. **Self-attention**, causal: position $i$ sees positions $j \le i$ of what has been written. In training the whole
#    right translation is given to the decoder at once, and all its predictions are computed in parallel; without the
#    mask, position $i$ would find the word it must predict at position $i + 1$.
# 2. **Cross-attention**: the queries come from the decoder, keys *and* values from the encoder's output, the
#    *memory*. This is the look back at the source. It is not causal, for the whole source is known; but its padding
#    is masked.
# 3. **Feed-forward**, as before.
#
# Post-LN and pre-LN are as in the encoder block, now three times. In pre-LN the norm of the cross-attention
# is for the decoder's $x$; the memory comes normalised from the end of the encoder and is used as it is.


# %% solution="decoder"
class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention and feed-forward (Vaswani et al. 2017, §3.1 and §3.2.3).

    Post-LN unless ``norm_first``. The block makes its causal mask itself: position ``i`` attends to positions
    ``0`` to ``i``, itself included.

    Attributes:
        self_attention, cross_attention: ``MultiHeadAttention(d_model, num_heads)``.
        feed_forward: ``FeedForward(d_model, d_ff)``.
        norm1, norm2, norm3: ``LayerNorm(d_model)``, of the three sub-layers in this order.
    """

    def __init__(self, d_model: int, num_heads: int, d_ff: int, norm_first: bool = False) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.self_attention = MultiHeadAttention(d_model, num_heads)
        self.cross_attention = MultiHeadAttention(d_model, num_heads)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.norm1 = LayerNorm(d_model)
        self.norm2 = LayerNorm(d_model)
        self.norm3 = LayerNorm(d_model)
        self.norm_first = norm_first
        ### END SOLUTION

    def forward(
        self,
        x: Float[Tensor, "batch target d_model"],
        memory: Float[Tensor, "batch source d_model"],
        memory_mask: Bool[Tensor, "batch target source"] | None = None,
    ) -> Float[Tensor, "batch target d_model"]:
        """One block of the decoder.

        Args:
            x: the target's positions; left unchanged.
            memory: the encoder's output, which is not normalised again.
            memory_mask: which target position may attend to which position of the memory; ``(batch, 1, source)``
                broadcasts.
        """
        ### BEGIN SOLUTION
        length = x.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        if self.norm_first:
            normed = self.norm1(x)
            x = x + self.self_attention(normed, normed, normed, causal)
            x = x + self.cross_attention(self.norm2(x), memory, memory, memory_mask)
            return x + self.feed_forward(self.norm3(x))
        x = self.norm1(x + self.self_attention(x, x, x, causal))
        x = self.norm2(x + self.cross_attention(x, memory, memory, memory_mask))
        return self.norm3(x + self.feed_forward(x))
        ### END SOLUTION


# %% [markdown]
# By hand, with pre-LN and all other parts silent: a cross-attention that copies adds the memory's only position to
# every $x$; a self-attention that copies, at the first position, adds $\mathrm{LN}(x)$ of that position alone.

# %% test="decoder_causal" points=2
block = DecoderBlock(d_model=2, num_heads=1, d_ff=3, norm_first=True)
silent = {name: torch.zeros_like(value) for name, value in block.state_dict().items()}
silent |= {f"norm{i}.weight": torch.ones(2) for i in (1, 2, 3)}
# Queries and keys stay zero: all visible positions get equal weights.
values_only = torch.cat([torch.zeros(4, 2), torch.eye(2)])
set_weights(
    block,
    silent
    | {
        "self_attention.torch_attention.in_proj_weight": values_only,
        "self_attention.torch_attention.out_proj.weight": torch.eye(2),
    },
)
# LN gives (-1, 1) and (1, -1): the first position adds its own, the second the mean of both, which is 0.
check.close(
    block(torch.tensor([[[1.0, 3.0], [6.0, 4.0]]]), torch.zeros(1, 2, 2)),
    [[[0.0, 4.0], [6.0, 4.0]]],
    because="Self-attention is causal: position 0 sees itself alone, position 1 sees both.",
)
rng = lab.generator("decoder_causal")
for norm_first in (False, True):
    block = DecoderBlock(d_model=4, num_heads=2, d_ff=5, norm_first=norm_first)
    x, memory = torch.randn(2, 1, 4, 4, generator=rng)
    changed = x.clone()
    changed[:, 2:] = 3.0 * torch.randn(2, 4, generator=rng)
    check.close(
        block(changed, memory)[:, :2],
        block(x, memory)[:, :2],
        because="Positions 2 and 3 changed and an earlier output moved with them: the decoder attends ahead.",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("transformer", "block")
rng = inputs("decoder_causal")
for norm_first in (False, True):
    mine = (DecoderBlock(6, 2, 9, True) if norm_first else DecoderBlock(6, 2, 9)).to(
        device, torch.float64
    )
    right = theirs.DecoderBlock(6, 2, 9, norm_first).to(device, torch.float64)
    weights = {
        name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
        for name, value in right.state_dict().items()
    }
    set_weights(mine, weights)
    right.load_state_dict(weights)
    x = torch.randn(2, 5, 6, generator=rng, dtype=torch.float64).to(device)
    memory = torch.randn(2, 5, 6, generator=rng, dtype=torch.float64).to(device)
    # Perturb the future of position `last`, and ask what its output knows of it.
    cases = [(x, memory), (x[:, :3], memory)]
    for last in range(4):
        changed = x.clone()
        changed[:, last + 1 :] += 2.0 * torch.randn(
            2, 4 - last, 6, generator=rng, dtype=torch.float64
        ).to(device)
        cases.append((changed, memory))
    output, short, *others = each(mine, cases)
    for last, got in enumerate(others):
        check.close(
            got[:, : last + 1],
            output[:, : last + 1],
            because="A later position changed and an earlier output moved with it: the decoder attends ahead.",
        )
    check.close(
        short,
        output[:, :3],
        because="The first positions must come out the same whether or not more follow.",
    )
    check.close(
        output,
        right(x, memory),
        because="With no memory mask the decoder block is off: is the causal mask exactly j ≤ i, for the "
        "self-attention alone, and does the position see itself?",
    )
### END HIDDEN TESTS

# %% test="decoder_cross_attention" points=2
block = DecoderBlock(d_model=2, num_heads=1, d_ff=3, norm_first=True)
silent = {name: torch.zeros_like(value) for name, value in block.state_dict().items()}
silent |= {f"norm{i}.weight": torch.ones(2) for i in (1, 2, 3)}
values_only = torch.cat([torch.zeros(4, 2), torch.eye(2)])
set_weights(
    block,
    silent
    | {
        "cross_attention.torch_attention.in_proj_weight": values_only,
        "cross_attention.torch_attention.out_proj.weight": torch.eye(2),
    },
)
x = torch.tensor([[[1.0, 3.0], [6.0, 4.0]]])
memory = torch.tensor([[[10.0, 20.0], [30.0, 60.0]]])
check.close(
    block(x, memory),
    [[[21.0, 43.0], [26.0, 44.0]]],
    because="Cross-attention adds the mean (20, 40) of the memory to every position: keys and values are the memory "
    "as it came, and all of it may be seen.",
)
check.close(
    block(x, memory, torch.tensor([[[True, False]]])),
    [[[11.0, 23.0], [16.0, 24.0]]],
    because="The second position of the memory is masked: only (10, 20) is left to add.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, gradients, inputs, reference

theirs = reference("transformer", "block")
rng = inputs("decoder_cross_attention")
for norm_first in (False, True):
    mine = DecoderBlock(6, 3, 7, norm_first).to(device, torch.float64)
    right = theirs.DecoderBlock(6, 3, 7, norm_first).to(device, torch.float64)
    weights = {
        name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
        for name, value in right.state_dict().items()
    }
    set_weights(mine, weights)
    right.load_state_dict(weights)
    order = "pre-LN" if norm_first else "post-LN"
    # Equal lengths first, then a source longer and one shorter than the target.
    cases = [
        tuple(
            (1.0 + torch.randn(2, length, 6, generator=rng, dtype=torch.float64)).to(device)
            for length in lengths
        )
        for lengths in [(4, 4), (3, 5), (4, 2), (1, 1)]
    ]
    kept = [(x.clone(), memory.clone()) for x, memory in cases]
    for (x, memory), before, got in zip(cases, kept, each(mine, cases), strict=True):
        check.close(
            got,
            right(*before),
            because=f"The {order} block is off: causal self-attention (norm1), then cross-attention with queries "
            "from x, keys and values from the memory as it is (norm2), then feed-forward (norm3), each with its sum.",
        )
        check.close(x, before[0], because="The block changed x in place.")
        check.close(memory, before[1], because="The block changed the memory in place.")
    x = (1.0 + torch.randn(2, 3, 6, generator=rng, dtype=torch.float64)).to(device)
    memory = (1.0 + torch.randn(2, 5, 6, generator=rng, dtype=torch.float64)).to(device)
    for shape in [(2, 1, 5), (2, 3, 5)]:
        may_attend = (torch.rand(shape, generator=rng) < 0.5).to(device)
        may_attend[..., 1], may_attend[..., 4] = True, False
        expected = right(x, memory, may_attend)
        changed = memory.clone()
        changed[:, 4] = 50.0
        got, of_changed = each(mine, [(x, memory, may_attend), (x, changed, may_attend)])
        check.close(
            got,
            expected,
            because=f"The {order} block's memory mask goes to the cross-attention, True = may attend.",
        )
        check.close(
            of_changed,
            expected,
            because="A masked position of the memory changed and the output moved with it.",
        )
    own = [tensor.clone().requires_grad_() for tensor in (x, memory)]
    other = [tensor.clone().requires_grad_() for tensor in (x, memory)]
    pull = torch.randn(2, 3, 6, generator=rng, dtype=torch.float64).to(device)
    (mine(*own, may_attend) * pull).sum().backward()
    (right(*other, may_attend) * pull).sum().backward()
    for which, one, two in zip(("x", "the memory"), own, other, strict=True):
        check.that(one.grad is not None, f"No gradient reaches {which}.")
        check.close(one.grad, two.grad, because=f"The gradient of {which} is off.")
    mine_gradients, right_gradients = gradients(mine), gradients(right)
    for name in weights:
        gradient = mine_gradients.get(name)
        check.that(gradient is not None, f"No gradient reaches {name}: is it used?")
        check.close(gradient, right_gradients[name], because=f"The gradient of {name} is off.")
### END HIDDEN TESTS

# %% [markdown]
# ## 6 · The Transformer
#
# What is left is the way in and the way out (§3.4). One matrix $E$, `vocab_size` × $d_{\text{model}}$, does three
# things: it embeds the source, embeds the target, and makes the logits.
#
# $$\text{in:}\quad h_p = \sqrt{d_{\text{model}}}\,E_{t_p} + PE_p, \qquad\qquad
# \text{out:}\quad \mathrm{logits}_p = h_p E^\top.$$
#
# Why the root? The paper does not say. A reason that fits: on the way out, $h_p$ has features of variance 1, so a logit
# $\sum_j h_j E_{tj}$ has variance about 1 when the entries of $E$ have variance $1/d_{\text{model}}$; and with a logit
# that small, training begins near the loss of a guess, $\ln(\text{vocab\_size})$. But on the way in, entries of size
# $1/\sqrt{d_{\text{model}}}$ would drown beside the sines and cosines. The root brings them back to size 1. So $E$
# starts normal with standard deviation $1/\sqrt{d_{\text{model}}}$ here. (`nn.Embedding` alone starts with 1.)
#
# The encoder embeds the source and sends it through its blocks; the decoder embeds the target, which begins with a
# start token, and sends it through its own, each of which looks at the *last* encoder block's output. Padding in the
# source may be seen by nobody, in the encoder or from the decoder. Padding in the target needs no mask: it stands at
# the end, the real positions before it cannot see it, and its own logits are left out of the loss.
#
# With pre-LN, each stack ends with one more layer norm. The dropout of the paper (0.1) is left out.


# %% solution="transformer"
class Transformer(nn.Module):
    """The encoder-decoder of Vaswani et al. 2017, §3, without dropout.

    Args:
        vocab_size: source and target share one vocabulary.
        num_layers: blocks in each stack. With 0 the embedded tokens pass straight through.
        pad_id: the token that fills up the end of shorter sequences.
        norm_first: pre-LN blocks, and a layer norm after each stack.

    Attributes:
        embedding: ``nn.Embedding(vocab_size, d_model)``, drawn from a normal distribution of mean 0 and standard
            deviation ``1/√d_model``. It embeds source and target, and the logits use its weight too.
        encoder_blocks, decoder_blocks: an ``nn.ModuleList`` of ``num_layers`` blocks each.
        encoder_norm, decoder_norm: ``LayerNorm(d_model)`` with ``norm_first``; without it they hold no parameters.
            There are no other parameters or persistent buffers.

    Raises:
        ValueError: ``num_heads`` does not divide ``d_model`` (with ``num_layers`` of at least 1).
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        num_heads: int,
        d_ff: int,
        num_layers: int,
        pad_id: int = 0,
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.d_model, self.pad_id = d_model, pad_id
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
        sizes = (d_model, num_heads, d_ff, norm_first)
        self.encoder_blocks = nn.ModuleList(EncoderBlock(*sizes) for _ in range(num_layers))
        self.decoder_blocks = nn.ModuleList(DecoderBlock(*sizes) for _ in range(num_layers))
        self.encoder_norm = LayerNorm(d_model) if norm_first else nn.Identity()
        self.decoder_norm = LayerNorm(d_model) if norm_first else nn.Identity()
        ### END SOLUTION

    def embed(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length d_model"]:
        """The tokens' embeddings times ``√d_model``, plus the code of their positions."""
        ### BEGIN SOLUTION
        embedded = self.embedding(tokens) * math.sqrt(self.d_model)
        return embedded + sinusoidal_positions(tokens.shape[1], self.d_model).to(embedded)
        ### END SOLUTION

    def encode(self, source: Int[Tensor, "batch source"]) -> Float[Tensor, "batch source d_model"]:
        """The memory. What stands at padded positions is not specified; nothing real depends on it."""
        ### BEGIN SOLUTION
        real = (source != self.pad_id)[:, None, :]  # (batch, 1, source): the same for every query
        x = self.embed(source)
        for block in self.encoder_blocks:
            x = block(x, real)
        return self.encoder_norm(x)
        ### END SOLUTION

    def decode(
        self,
        target: Int[Tensor, "batch target"],
        memory: Float[Tensor, "batch source d_model"],
        source: Int[Tensor, "batch source"],
    ) -> Float[Tensor, "batch target vocab_size"]:
        """Logits of the token after each target position, given that position, those before it and the memory.

        ``source`` says which positions of the memory are padding.
        """
        ### BEGIN SOLUTION
        real = (source != self.pad_id)[:, None, :]
        x = self.embed(target)
        for block in self.decoder_blocks:
            x = block(x, memory, real)
        return self.decoder_norm(x) @ self.embedding.weight.T
        ### END SOLUTION

    def forward(
        self, source: Int[Tensor, "batch source"], target: Int[Tensor, "batch target"]
    ) -> Float[Tensor, "batch target vocab_size"]:
        """Logits for the whole target at once, as in training (not probabilities).

        Raises:
            ValueError: ``source`` and ``target`` differ in the size of the batch (the message says ``batch``).
        """
        ### BEGIN SOLUTION
        if len(source) != len(target):
            raise ValueError(f"source is a batch of {len(source)}, target a batch of {len(target)}")
        return self.decode(target, self.encode(source), source)
        ### END SOLUTION


# %% [markdown]
# By hand: two tokens, $d_{\text{model}} = 2$, no blocks, and $E$ the identity. Token 0 at position 0 is embedded as
# $\sqrt2\,(1, 0) + (0, 1)$, and its logits are the same two numbers.

# %% test="transformer_embedding" points=1
bare = Transformer(vocab_size=2, d_model=2, num_heads=1, d_ff=3, num_layers=0, pad_id=-1)
set_weights(bare, {"embedding.weight": torch.eye(2)})
root = math.sqrt(2)
check.close(
    bare.embed(torch.tensor([[0, 1]])),
    [[[root, 1.0], [math.sin(1), root + math.cos(1)]]],
    because="The embedding is multiplied by √d_model, then the position code is added (not multiplied).",
)
check.close(
    bare(torch.tensor([[1]]), torch.tensor([[0]])),
    [[[root, 1.0]]],
    because="The logits are the decoder's output times Eᵀ, with no softmax and no bias.",
)
torch.manual_seed(0)
weight = Transformer(
    vocab_size=1000, d_model=64, num_heads=4, d_ff=8, num_layers=0
).embedding.weight
check.that(
    bool(abs(weight.detach().std().item() * math.sqrt(64) - 1) < 0.1),
    "The embedding should start with a standard deviation of 1/√d_model; nn.Embedding alone starts with 1.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("transformer", "block")
rng = inputs("transformer_embedding")
for norm_first in (False, True):
    mine = Transformer(11, 6, 2, 7, num_layers=0, norm_first=norm_first).to(device, torch.float64)
    right = theirs.Transformer(11, 6, 2, 7, num_layers=0, norm_first=norm_first).to(
        device, torch.float64
    )
    weights = {
        name: torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
        for name, value in right.state_dict().items()
    }
    set_weights(mine, weights)
    right.load_state_dict(weights)
    source = torch.randint(1, 11, (2, 9), generator=rng).to(device)
    target = torch.randint(1, 11, (2, 4), generator=rng).to(device)
    # Position codes may have been computed in float32.
    check.close(
        mine.embed(source),
        right.embed(source),
        rtol=1e-4,
        atol=1e-5,
        because="embed: the embedding times √d_model, plus the position code counted from 0.",
    )
    check.close(
        mine.encode(source),
        right.encode(source),
        rtol=1e-4,
        atol=1e-5,
        because="Without blocks the memory is the embedded source, normalised by encoder_norm with norm_first alone.",
    )
    check.close(
        mine(source, target),
        right(source, target),
        rtol=1e-4,
        atol=1e-5,
        because="Without blocks the logits are the embedded target (after decoder_norm, with norm_first alone) "
        "times the transposed embedding matrix.",
    )
for d_model in (16, 256):
    weight = Transformer(900, d_model, 4, 8, num_layers=1).embedding.weight.detach()
    scaled = weight * math.sqrt(d_model)
    check.that(
        abs(scaled.std().item() - 1) < 0.1 and abs(scaled.mean().item()) < 0.1,
        "The embedding should start with mean 0 and a standard deviation of 1/√d_model.",
    )
### END HIDDEN TESTS

# %% test="transformer_masks" points=2
torch.manual_seed(0)
model = Transformer(vocab_size=9, d_model=8, num_heads=2, d_ff=16, num_layers=2)
source, target = torch.tensor([[3, 5, 4]]), torch.tensor([[1, 7, 2, 6]])
logits = model(source, target)
check.shape(
    logits, (1, 4, 9), because="One row of logits over the vocabulary for each target position."
)
check.close(
    model(torch.tensor([[3, 5, 4, 0, 0]]), target),
    logits,
    because="Two pad tokens (id 0) at the end of the source changed the logits: padding must be masked in the encoder "
    "and in the cross-attention.",
)
check.close(
    model(source, torch.tensor([[1, 7, 8, 3]]))[:, :2],
    logits[:, :2],
    because="Later target tokens changed and earlier logits moved with them.",
)
check.raises(
    ValueError,
    model,
    torch.ones(2, 3, dtype=torch.int64),
    torch.ones(3, 4, dtype=torch.int64),
    mentions="batch",
    because="Two sources for three targets is bad input: say so, and say batch.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("transformer", "block")
rng = inputs("transformer_masks")
for norm_first, pad_id in [(False, 0), (True, 10)]:
    mine = Transformer(11, 6, 2, 7, 2, pad_id=pad_id, norm_first=norm_first).to(
        device, torch.float64
    )
    right = theirs.Transformer(11, 6, 2, 7, 2, pad_id=pad_id, norm_first=norm_first)
    weights = {
        name: 0.6 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
        for name, value in right.state_dict().items()
    }
    set_weights(mine, weights)
    source = torch.randint(1, 10, (2, 4), generator=rng).to(device)
    target = torch.randint(1, 10, (2, 5), generator=rng).to(device)
    padded = torch.cat([source, torch.full((2, 3), pad_id, device=device)], dim=1)
    longer = torch.cat([target, torch.full((2, 2), pad_id, device=device)], dim=1)
    # Sequences of different lengths in one batch, against each alone.
    mixed = padded.clone()
    mixed[1, 2:] = pad_id
    # Every real token of the source reaches every logit through the cross-attention.
    other = source.clone()
    other[:, 3] = 1 + other[:, 3] % 9
    cases = [(source, target), (padded, target), (source, longer), (mixed, target)]
    cases += [(source[1:, :2], target[1:]), (other, target)]
    for last in range(4):
        changed = target.clone()
        changed[:, last + 1 :] = 1 + changed[:, last + 1 :] % 9
        cases.append((source, changed))
    logits, of_padded, of_longer, in_batch, alone, of_other, *of_changed = each(mine, cases)
    check.close(
        of_padded,
        logits,
        because="Padding at the end of the source changed the logits: it is masked by pad_id in every encoder "
        "block and in every cross-attention.",
    )
    check.close(
        mine.encode(padded)[:, :4],
        mine.encode(source),
        because="Padding at the end of the source changed the memory of real positions.",
    )
    check.close(
        of_longer[:, :5],
        logits,
        because="Padding at the end of the target changed the logits of real positions.",
    )
    check.close(
        in_batch[1:],
        alone,
        because="A sequence's logits changed with the company it keeps in the batch.",
    )
    for last, got in enumerate(of_changed):
        check.close(
            got[:, : last + 1],
            logits[:, : last + 1],
            because="A later target token changed and an earlier prediction moved with it.",
        )
    check.that(
        bool(((of_other - logits).detach().abs().amax(dim=-1) > 1e-8).all()),
        "The last source token changed and some position's logits did not: every target position may see all of the "
        "source.",
    )
check.raises(
    ValueError,
    mine,
    source,
    target[:1],
    mentions="batch",
    because="Two sources for one target are bad input too, although broadcasting might accept it.",
)
### END HIDDEN TESTS

# %% test="transformer_logits" points=2
torch.manual_seed(1)
model = Transformer(vocab_size=50, d_model=32, num_heads=4, d_ff=64, num_layers=2)
check.equal(
    sorted({name.split(".")[0] for name in model.state_dict()}),
    ["decoder_blocks", "embedding", "encoder_blocks"],
    because="A post-LN model has its embedding and its two stacks of blocks, and no other parameters.",
)
rng = lab.generator("transformer_logits")
source, target = torch.randint(1, 50, (2, 16, 12), generator=rng)
loss = nn.functional.cross_entropy(
    model(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten()
)
check.that(
    bool(abs(loss.item() - math.log(50)) < 1.5),
    "Before training the loss should be near ln(vocab_size), a guess among all tokens: are the logits far too large?",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import gradients, inputs, reference

theirs = reference("transformer", "block")
rng = inputs("transformer_logits")
for norm_first in (False, True):
    mine = Transformer(11, 6, 2, 7, num_layers=2, norm_first=norm_first).to(device, torch.float64)
    right = theirs.Transformer(11, 6, 2, 7, num_layers=2, norm_first=norm_first).to(
        device, torch.float64
    )
    weights = {
        name: 0.6 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
        for name, value in right.state_dict().items()
    }
    set_weights(mine, weights)
    right.load_state_dict(weights)
    order = "pre-LN" if norm_first else "post-LN"
    source = torch.randint(1, 11, (3, 5), generator=rng).to(device)
    source[0, 3:] = 0
    target = torch.randint(1, 11, (3, 4), generator=rng).to(device)
    # Position codes may have been computed in float32.
    check.close(
        mine.encode(source)[1:],
        right.encode(source)[1:],
        rtol=1e-4,
        atol=1e-5,
        because=f"The {order} encoder is off: embed, then each of its blocks once in order, "
        "then the final norm (pre-LN alone).",
    )
    memory = torch.randn(3, 5, 6, generator=rng, dtype=torch.float64).to(device)
    check.close(
        mine.decode(target, memory, source),
        right.decode(target, memory, source),
        rtol=1e-4,
        atol=1e-5,
        because=f"decode with a given memory is off ({order}): embed the target, each decoder block once in order with "
        "that memory and the source's padding mask, the final norm (pre-LN alone), the product with Eᵀ.",
    )
    check.close(
        mine(source, target),
        right(source, target),
        rtol=1e-4,
        atol=1e-5,
        because=f"The logits of the {order} model are off although encode and decode agree alone.",
    )
    pull = torch.randn(3, 4, 11, generator=rng, dtype=torch.float64).to(device)
    (mine(source, target) * pull).sum().backward()
    (right(source, target) * pull).sum().backward()
    mine_gradients, right_gradients = gradients(mine), gradients(right)
    for name in weights:
        gradient = mine_gradients.get(name)
        check.that(gradient is not None, f"No gradient reaches {name}: is it used?")
        check.close(
            gradient,
            right_gradients[name],
            rtol=1e-3,
            atol=1e-4,
            because=f"The gradient of {name} is off. (The embedding collects from source, target and logits.)",
        )
### END HIDDEN TESTS

# %% [markdown] written="block_why" points=2
# **In your own words.** A colleague trains 24 post-LN blocks with the full learning rate from the first step; the loss
# jumps about and stays high. With pre-LN blocks the same run works. Follow the gradient from the loss back to the
# first block in both stacks and explain the difference. Why does the pre-LN stack need one more layer norm at its end,
# and why would the post-LN stack gain nothing from one? (5 to 9 sentences.)

# %% [markdown]
# ## Experiment: where the gradient is large before the first step
#
# Stacks of your encoder blocks at the start of training, with Xavier's initialisation as in Xiong et al. (2020),
# random input and a random class to predict at each position. The left picture goes through one deep stack
# from its first block to its last; the right one asks the last block of stacks of several depths. With post-LN the
# blocks near the loss get a gradient that no depth makes smaller, and the first full-size steps shake them: one of the
# reasons, say Xiong et al., for warm-up. With pre-LN it falls with depth (the bound of Theorem 1 falls as
# $1/\sqrt{L}$): the sum that the last norm divides has grown.

# %% experiment=true
import matplotlib.pyplot as plt
import torch.nn.functional as F
from tqdm.auto import tqdm, trange

from lab import figures

WIDTH, HEADS, DEPTHS, DRAWS = (
    (256, 8, [2, 4, 8, 16, 32], 8) if device.type == "cuda" else (64, 4, [2, 4, 8, 16], 5)
)


def gradient_norms(depth: int, norm_first: bool, draw: int) -> list[float]:
    """The gradient norm of the feed-forward's second matrix in each block, at initialisation."""
    torch.manual_seed(draw)
    blocks = nn.ModuleList(EncoderBlock(WIDTH, HEADS, 4 * WIDTH, norm_first) for _ in range(depth))
    head = nn.Sequential(LayerNorm(WIDTH) if norm_first else nn.Identity(), nn.Linear(WIDTH, 100))
    for parameter in [*blocks.parameters(), *head.parameters()]:
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    blocks, head = blocks.to(device), head.to(device)
    rng = lab.generator(f"gradient norms {draw}")
    x = torch.randn(16, 32, WIDTH, generator=rng).to(device)
    classes = torch.randint(100, (16 * 32,), generator=rng).to(device)
    for block in blocks:
        x = block(x)
    F.cross_entropy(head(x).flatten(0, 1), classes).backward()
    return [block.feed_forward.linear2.weight.grad.norm().item() for block in blocks]


norms = {
    (norm_first, depth): torch.tensor(
        [gradient_norms(depth, norm_first, draw) for draw in range(DRAWS)]
    ).mean(0)
    for norm_first in (False, True)
    for depth in tqdm(DEPTHS, desc="pre-LN" if norm_first else "post-LN")
}
deepest = DEPTHS[-1]
last = {
    norm_first: [norms[norm_first, depth][-1].item() for depth in DEPTHS]
    for norm_first in (False, True)
}

figures.use_style()
fig, (by_block, by_depth) = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
for norm_first, style, label in [(False, "o-", "post-LN (2017)"), (True, "s--", "pre-LN")]:
    by_block.plot(range(1, deepest + 1), norms[norm_first, deepest], style, label=label)
    by_depth.semilogx(DEPTHS, last[norm_first], style, base=2, label=label)
by_block.set(
    xlabel="block",
    ylabel="gradient norm at the start",
    title=f"all blocks of a stack of {deepest}",
    ylim=(0, None),
    xticks=[1, *range(4, deepest + 1, 4)],
)
by_depth.set(xlabel="blocks in the stack", title="the last block of each stack")
by_depth.set_xticks(DEPTHS, DEPTHS)
by_block.legend()
stacks = {
    label: f"in {label} they go from {norms[norm_first, deepest][0]:.2f} in the first block to "
    f"{norms[norm_first, deepest][-1]:.2f} in the last, and the last block's from "
    f"{last[norm_first][0]:.2f} with {DEPTHS[0]} blocks to {last[norm_first][-1]:.2f} with {deepest}"
    for norm_first, label in [(False, "post-LN"), (True, "pre-LN")]
}
figures.show(
    fig,
    alt=f"Gradient norms before training, stacks of up to {deepest} blocks: {'; '.join(stacks.values())}.",
)

# %% [markdown]
# ## Experiment: train it to translate
#
# A translator small enough for a minute: from dates as people write them ("12 June 2017", "June 12, 2017",
# "Mon, 12 Jun 2017") to the form of the standard ISO 8601, "2017-06-12". It reads and writes characters, so it has to
# learn the order of the parts, the names of the months, and that 7 becomes 07. No day of the test set is seen in
# training, in any form. On a GPU a larger preset runs.
#
# The optimiser is that of the paper (§5.3, Eq. 3): Adam with $\beta_2 = 0.98$, and a learning rate that rises linearly
# for some steps and then falls as $1/\sqrt{\text{step}}$.

# %% experiment=true
import datetime

LAYERS, D_MODEL, STEPS, BATCH = (3, 128, 3000, 256) if device.type == "cuda" else (2, 64, 600, 64)
WARMUP, PEAK = 100, 2e-3
FORMS = ["{d} {B} {Y}", "{B} {d}, {Y}", "{a}, {d} {b} {Y}", "{d:02} {b} {Y}"]


def write(day: datetime.date, form: str) -> str:
    """A day as people write it."""
    return form.format(
        d=day.day, Y=day.year, B=day.strftime("%B"), b=day.strftime("%b"), a=day.strftime("%a")
    )


first = datetime.date(1950, 1, 1)
days = [first + datetime.timedelta(days=i) for i in range(36525)]  # a century
characters = sorted({c for day in days[:366] for form in FORMS for c in write(day, form)} | {"-"})
START = 1  # 0 is padding
ids = {character: 2 + i for i, character in enumerate(characters)}


def tokens(texts: list[str]) -> Int[Tensor, "batch length"]:
    """Character ids, filled up with 0 at the end."""
    rows = [torch.tensor([ids[c] for c in text]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


order = torch.randperm(len(days), generator=lab.generator("days")).tolist()
test_days, train_days = [days[i] for i in order[:200]], [days[i] for i in order[200:]]


def batch_of(some_days: list[datetime.date], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sources in random forms, and targets with the start token before them."""
    forms = torch.randint(len(FORMS), (len(some_days),), generator=rng).tolist()
    source = tokens([write(day, FORMS[form]) for day, form in zip(some_days, forms, strict=True)])
    target = tokens([day.isoformat() for day in some_days])
    return source, F.pad(target, (1, 0), value=START)


@torch.no_grad()
def translate(model: nn.Module, source: Tensor, length: int = 10) -> Tensor:
    """Greedy: the most likely character, one after another, each read again for the next."""
    memory = model.encode(source)
    target = torch.full((len(source), 1), START, device=device)
    for _ in range(length):
        logits = model.decode(target, memory, source)
        target = torch.cat([target, logits[:, -1:].argmax(dim=-1)], dim=1)
    return target


torch.manual_seed(0)
translator = Transformer(2 + len(characters), D_MODEL, 4, 4 * D_MODEL, LAYERS).to(device)
optimizer = torch.optim.Adam(translator.parameters(), lr=PEAK, betas=(0.9, 0.98), eps=1e-9)
schedule = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda step: min((step + 1) / WARMUP, math.sqrt(WARMUP / (step + 1)))
)
rng = lab.generator("date training")
source_test, target_test = batch_of(test_days, lab.generator("date test"))
losses, accuracies = [], []
for step in (progress := trange(1, STEPS + 1, desc="training")):
    chosen = torch.randint(len(train_days), (BATCH,), generator=rng).tolist()
    source, target = batch_of([train_days[i] for i in chosen], rng)
    logits = translator(source, target[:, :-1])  # it reads <start>2017-06-1 and writes 2017-06-12
    loss = F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
    if step % 50 == 0:
        exact = (translate(translator, source_test) == target_test).all(dim=1).float().mean().item()
        accuracies.append((step, exact))
        progress.set_postfix(loss=f"{loss.item():.3f}", exact=f"{exact:.2f}")

fig, ax = plt.subplots()
ax.plot(*zip(*accuracies, strict=True), "o-")
ax.set(xlabel="step", ylabel="dates right in all ten characters", ylim=(0, 1.02))
figures.show(
    fig,
    alt=f"Share of {len(test_days)} unseen days translated without a mistake: "
    f"{accuracies[0][1]:.2f} after {accuracies[0][0]} steps, {accuracies[-1][1]:.2f} after {accuracies[-1][0]}.",
)

# %% [markdown]
# Where did it look? Each row is a character it wrote, each column a character it read, and a bright square a large
# weight of the cross-attention, averaged over the heads, in the last block. Nobody told it which
# belongs to which. (Attention weights show what was mixed in, not why; treat them as a hint.)

# %% experiment=true
text = "12 June 2017"
source = tokens([text])
for block in translator.decoder_blocks:
    block.cross_attention.keep_weights = True
written = translate(translator, source)
translation = "".join(characters[i - 2] for i in written[0, 1:].tolist())
with torch.no_grad():
    translator(source, written[:, :-1])
weights = translator.decoder_blocks[-1].cross_attention.weights[0].cpu()

fig, ax = plt.subplots(figsize=(5.6, 4.4))
image = ax.imshow(weights, vmin=0, vmax=1, aspect="auto")
ax.set_xticks(range(len(text)), ["␣" if c == " " else c for c in text])
ax.set_yticks(range(len(translation)), translation)
ax.set(xlabel="read", ylabel="written")
fig.colorbar(image, ax=ax, label="attention weight")
peaks = [
    f"{c} at {text[j]!r}" for c, j in zip(translation, weights.argmax(dim=-1).tolist(), strict=True)
]
figures.show(
    fig,
    alt=f"Cross-attention while “{text}” becomes “{translation}”. The largest weight of each written character: "
    + ", ".join(peaks)
    + ".",
)
