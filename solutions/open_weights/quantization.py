# %% [markdown]
# # Quantisation
#
# The smallest LLaMA has 6.7 billion weights. At 16 bits each they take 13.5 GB, and to write one token all of them have
# to be read from memory once. With 4 bits each they take a little over a quarter of that: less to read for every token,
# and small enough for a laptop. In March 2023, weeks after LLaMA came out, llama.cpp ran it so. *Quantisation* (the
# papers write *quantization*) replaces each weight by a small integer and keeps one real number, a scale, for many of
# them. You build it, derive what it costs in error, count what it costs in bytes, and measure both on a language model.
#
# **You build** rounding to 8 bits and fewer, its error in decibels, groups with scales of their own, two weights packed
# into a byte, a linear layer that keeps integers, the levels of NormalFloat
# · **Minutes** 90 · **Points** 20 · **Difficulty** ●●○ ·
# **Before this** [GPT](../pretraining/gpt.ipynb)
#
# Run a cell with Shift+Enter. Write your answers where it says `YOUR CODE HERE`, then run the tests below them.
# A test that passes is silent; one that fails says what it expected, what came, and which mistake usually does that.
# More tests, on other inputs, run when your notebook is graded.

# %%
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor, nn

import lab
from lab import check

device = lab.device()

# %% [markdown]
# ## 1 · Rounding to a few levels
#
# A ruler has marks at equal distances. Give each weight the number of its nearest mark, and remember the distance $s$
# between two marks, the *scale*. The number $q$ is a small integer; what the model computes with is $\hat w = s q$:
#
# ```
# w        2.1   -0.6    0.1   -1.0          s = 0.3
# w / s    7.0   -2.0    0.33  -3.33
# q        7     -2      0     -3            the nearest integer
# s q      2.1   -0.6    0.0   -0.9          what the model computes with
# ```
#
# How large should $s$ be? A signed integer of $b$ bits goes from $-2^{b-1}$ to $2^{b-1} - 1$, from $-128$ to 127
# for 8 bits. Leave out the lowest, so that the levels are the same on both sides of 0, and the outermost is
# $q_{\max} = 2^{b-1} - 1$: 127 for 8 bits, 7 for 4 bits, 1 for 2. *Absmax* quantisation puts it on the largest weight:
#
# $$s = \frac{\max_i |w_i|}{q_{\max}}, \qquad
# q_i = \operatorname{clamp}\!\big(\operatorname{round}(w_i / s),\, -q_{\max},\, q_{\max}\big), \qquad
# \hat w_i = s\, q_i.$$
#
# With this $s$ no weight lies outside. The clamp is for scales that come from elsewhere: rounded to 16 bits to save
# space, or made smaller on purpose, so that a few large weights are cut off and all others get finer levels. Clamp
# *before* you turn the numbers into `int8`, which holds 300 as 44.
#
# Round to the *nearest*. Conversion to integers, `.to(torch.int8)`, drops the fraction, which is rounding towards
# zero; the next part says what that costs. Half-way between two levels both are as near: `torch.round` takes the even
# one, other programs the one farther from zero, and either is right here.
#
# Vectors of zeros occur. Their scale is 0, and 0/0 is not a number: see to it.
#
# All functions work along the last axis: each vector of $n$ weights has one scale. So the shape decides how many
# weights share a scale. A matrix has one for each row; the same matrix flattened has one in all. Scales have the shape
# of the weights without the last axis, and need a new one, `scale[..., None]`, to meet them. Without it torch matches
# scales with columns: an error if you are lucky, and none if the matrix is square.


# %% solution="absmax"
def largest_level(bits: int) -> int:
    """The outermost level of a symmetric integer of so many bits: 2^(bits − 1) − 1.

    Raises:
        ValueError: ``bits`` is below 2 or above 8 (the message says ``bits``).
    """
    ### BEGIN SOLUTION
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must lie between 2 and 8, got {bits}")
    return 2 ** (bits - 1) - 1
    ### END SOLUTION


def absmax_scale(weights: Float[Tensor, "... n"], bits: int) -> Float[Tensor, "..."]:
    """The distance between two levels that puts the outermost on the largest weight, for each vector of the last axis.

    Args:
        weights: finite; ``n`` is at least 1.
        bits: from 2 to 8.

    Returns:
        In the dtype of ``weights``. A vector of zeros has the scale 0.

    Raises:
        ValueError: ``bits`` as in ``largest_level``.
    """
    ### BEGIN SOLUTION
    return weights.abs().amax(dim=-1) / largest_level(bits)
    ### END SOLUTION


def quantize(
    weights: Float[Tensor, "... n"], scale: Float[Tensor, "..."], bits: int
) -> Int8[Tensor, "... n"]:
    """The number of each weight's nearest level, between −largest_level and largest_level.

    Args:
        weights: finite.
        scale: the distance between two levels for each vector of the last axis, 0 or more. It need not be that of
            ``absmax_scale``: a weight beyond the outermost level gets the outermost level.
        bits: from 2 to 8.

    Returns:
        ``int8``, whatever ``bits`` is. Half-way between two levels either is right. Where the scale is 0, all are 0.

    Raises:
        ValueError: ``bits`` as in ``largest_level``, or ``scale`` is not one number for each vector (the message says
            ``scale``).
    """
    ### BEGIN SOLUTION
    largest = largest_level(bits)
    if scale.shape != weights.shape[:-1]:
        raise ValueError(f"scale must be {tuple(weights.shape[:-1])}, got {tuple(scale.shape)}")
    steps = weights / scale.masked_fill(scale == 0, math.inf)[..., None]
    return steps.round().clamp(-largest, largest).to(torch.int8)
    ### END SOLUTION


def dequantize(
    values: Int8[Tensor, "... n"], scale: Float[Tensor, "..."]
) -> Float[Tensor, "... n"]:
    """The weights that the levels stand for, in the dtype of ``scale``."""
    ### BEGIN SOLUTION
    return values * scale[..., None]
    ### END SOLUTION


# %% test="absmax_scale" points=1
check.equal(
    [largest_level(bits) for bits in (2, 4, 8)],
    [1, 7, 127],
    because="2^(bits − 1) − 1: one bit is the sign, and the lowest number, which has no counterpart, is left out.",
)
check.close(
    absmax_scale(torch.tensor([[2.1, -0.6, 0.1, -1.0], [0.4, -0.7, 0.26, 0.0]]), bits=4),
    [0.3, 0.1],
    because="Each row's largest absolute value, 2.1 and 0.7, divided by 7: the outermost of the 4-bit levels.",
)
check.raises(ValueError, largest_level, 1, mentions="bits", because="One bit has no level but 0.")
check.raises(ValueError, largest_level, 9, mentions="bits", because="int8 holds no more than 8.")
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("open_weights", "quantization")
rng = inputs("absmax_scale")
check.equal(
    [largest_level(bits) for bits in range(2, 9)],
    [theirs.largest_level(bits) for bits in range(2, 9)],
    because="The outermost level is 2^(bits − 1) − 1.",
)
cases = []
for shape in [(1,), (7,), (3, 5), (2, 3, 4), (5, 1)]:
    weights = torch.randn(*shape, 2, generator=rng, dtype=torch.float64).to(device)[..., 1]
    cases += [(weights, bits) for bits in (2, 3, 5, 8)]
for case, scale in zip(cases, each(absmax_scale, cases), strict=True):
    check.close(
        scale,
        theirs.absmax_scale(*case),
        because="The scale is the largest absolute value of each vector along the last axis, divided by "
        "2^(bits − 1) − 1.",
    )
check.that(
    absmax_scale(torch.ones(2, 3, device=device), 8).dtype == torch.float32,
    "The scale has the dtype of the weights.",
)
weights = torch.randn(4, 6, generator=rng, dtype=torch.float64).to(device)
weights[1] = 0.0
check.close(
    absmax_scale(weights, 4),
    theirs.absmax_scale(weights, 4),
    because="A vector of zeros has the scale 0.",
)
for bits in (-4, 0, 1, 9, 16):
    check.raises(
        ValueError,
        absmax_scale,
        weights,
        bits,
        mentions="bits",
        because="Fewer than 2 bits and more than 8 are bad input: say bits.",
    )
### END HIDDEN TESTS

# %% test="absmax_values" points=2
weights = torch.tensor([[2.1, -0.6, 0.1, -1.0], [0.4, -0.7, 0.26, 0.0]])
check.close(
    quantize(weights, torch.tensor([0.3, 0.1]), bits=4),
    [[7, -2, 0, -3], [4, -7, 3, 0]],
    because="Divided by the scale of its row and rounded to the nearest integer. 2.6 is nearer to 3 than to 2: did you "
    "round towards zero?",
)
check.close(
    quantize(torch.tensor([[50.0, -0.2, -300.0]]), torch.tensor([1.0]), bits=8),
    [[50, 0, -127]],
    because="−300 lies beyond the outermost level, which is −127: clamp, before the numbers become int8.",
)
check.close(
    quantize(torch.zeros(1, 3), torch.zeros(1), bits=8),
    [[0, 0, 0]],
    because="A scale of 0: every value is 0.",
)
check.raises(
    ValueError,
    quantize,
    weights,
    torch.ones(4),
    4,
    mentions="scale",
    because="Two rows need two scales. Four would be stretched over the columns without an error: say scale.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("open_weights", "quantization")
rng = inputs("absmax_values")
cases = []
for shape in [(1,), (9,), (4, 4), (3, 5), (2, 3, 7)]:
    weights = torch.randn(*shape, 2, generator=rng, dtype=torch.float64).to(device)[..., 1]
    for bits in (2, 3, 4, 8):
        cases.append((weights, theirs.absmax_scale(weights, bits), bits))
for case, values in zip(cases, each(quantize, cases), strict=True):
    check.that(values.dtype == torch.int8, "The values must be int8.")
    check.close(
        values,
        theirs.quantize(*case),
        because="The nearest level of each weight, by the scale of its own vector: round(w / s).",
    )
# Scales from elsewhere, far too small: most weights lie beyond the outermost level.
cases = [(50 * weights, 0.1 * scale + 0.1, bits) for weights, scale, bits in cases]
for case, values in zip(cases, each(quantize, cases), strict=True):
    check.close(
        values,
        theirs.quantize(*case),
        because="A weight beyond the outermost level gets the outermost level, 2^(bits − 1) − 1 or its negative: clamp "
        "before the numbers become int8.",
    )
weights = torch.randn(4, 6, generator=rng, dtype=torch.float64).to(device)
scale = theirs.absmax_scale(weights, 4)
scale[2] = 0.0
for some in (weights, weights * (scale > 0)[:, None]):
    check.close(
        quantize(some, scale, 4),
        theirs.quantize(some, scale, 4),
        because="Where the scale is 0 every value is 0, and other vectors are as ever.",
    )
for bad in (scale[:3], scale[None], scale[:, None], scale[0]):
    check.raises(
        ValueError,
        quantize,
        weights,
        bad,
        4,
        mentions="scale",
        because="The scale must have the shape of the weights without the last axis, and nothing is broadcast: say "
        "scale.",
    )
for bits in (1, 9):
    check.raises(ValueError, quantize, weights, scale, bits, mentions="bits", because="Say bits.")
### END HIDDEN TESTS

# %% test="absmax_back" points=1
check.close(
    dequantize(torch.tensor([[7, -2], [4, -7]], dtype=torch.int8), torch.tensor([0.3, 0.1])),
    [[2.1, -0.6], [0.4, -0.7]],
    because="Each level times the scale of its row.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("open_weights", "quantization")
rng = inputs("absmax_back")
cases = []
for shape in [(1,), (9,), (4, 4), (3, 5), (2, 3, 7)]:
    values = torch.randint(-127, 128, shape, generator=rng).to(torch.int8).to(device)
    cases.append((values, torch.rand(shape[:-1], generator=rng, dtype=torch.float64).to(device)))
for case, weights in zip(cases, each(dequantize, cases), strict=True):
    check.that(weights.dtype == torch.float64, "The weights must have the dtype of the scale.")
    check.close(
        weights,
        theirs.dequantize(*case),
        because="Each level times the scale of its own vector along the last axis.",
    )
half = dequantize(values, torch.full((2, 3), 0.25, device=device).half())
check.that(half.dtype == torch.float16, "The weights must have the dtype of the scale.")
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · What rounding costs
#
# Let $e = \hat w - w$ be the error of one weight. Rounding to the nearest of levels at distance $s$ leaves $e$ between
# $-\frac s2$ and $\frac s2$. If the weights are spread over many levels, no place within a step is preferred, and
# $e$ is uniform there, with density $\frac1s$. Its mean is 0 and its mean square
#
# $$\mathbb E[e^2] = \int_{-s/2}^{s/2} e^2\, \frac{\mathrm de}{s}
# = \frac1s \cdot \frac{2}{3}\Big(\frac s2\Big)^3 = \frac{s^2}{12}.$$
#
# Rounding towards zero leaves an error between 0 and $s$ in size: the mean square is
# $\int_0^s e^2\, \frac{\mathrm de}{s} = \frac{s^2}{3}$, four times as much, and all weights shrink.
#
# An error is large or small beside what it is an error *of*. Engineers divide the power of the signal by the power of
# the noise and take ten times the decimal logarithm, the *signal-to-noise ratio in decibels* (dB):
#
# $$\mathrm{SNR} = 10 \log_{10} \frac{\sum_i w_i^2}{\sum_i (w_i - \hat w_i)^2}.$$
#
# 20 dB means that the error has a hundredth of the power, a tenth of the size. Put $s^2 / 12$ into it, for one
# vector whose weights have mean square $\sigma^2$ and largest absolute value $a$, so that $s = a / q_{\max}$:
#
# $$\mathrm{SNR} \approx 10 \log_{10} \frac{12\, \sigma^2}{s^2}
# = 20 \log_{10} q_{\max} + 10 \log_{10} 12 - 20 \log_{10} \frac{a}{\sigma}.$$
#
# The first term says what a bit is worth. One bit more doubles $q_{\max}$, nearly, halves the step and quarters the
# noise: $20 \log_{10} 2 = 6.02$ dB. Rounding towards zero, at four times the noise, throws away one bit.
#
# The last term says what the largest weight costs. Among a hundred normally distributed weights it is about $2.5$ to
# $3\,\sigma$. One outlier of $30\,\sigma$ makes the step ten times as large for all of them, and their noise a hundred
# times. To the ninety-nine others that is a loss of 20 dB, more than 3 bits.
#
# With several vectors of $n$ weights each, the noise is the mean of their $s^2 / 12$. It is powers that are averaged,
# not decibels.


# %% solution="error"
def signal_to_noise(
    weights: Float[Tensor, "..."], approximation: Float[Tensor, "..."]
) -> Float[Tensor, ""]:
    """10·log10(Σ w² / Σ (w − ŵ)²), in decibels, the sums over all weights.

    Args:
        weights: not all of them 0.
        approximation: ŵ, for each weight. Where it equals ``weights`` everywhere the result is +∞.

    Raises:
        ValueError: ``approximation`` has another shape than ``weights`` (the message says ``approximation``).
    """
    ### BEGIN SOLUTION
    if approximation.shape != weights.shape:
        raise ValueError(
            f"approximation must be {tuple(weights.shape)}, got {tuple(approximation.shape)}"
        )
    noise = (weights - approximation).square().sum()
    return 10 * (weights.square().sum() / noise).log10()
    ### END SOLUTION


def predicted_signal_to_noise(weights: Float[Tensor, "... n"], bits: int) -> Float[Tensor, ""]:
    """The signal-to-noise ratio, in decibels, if the error of every weight had the mean square s²/12.

    ``s`` is the ``absmax_scale`` of the weight's own vector along the last axis. Signal and noise are sums over all
    weights, as in ``signal_to_noise``.
    """
    ### BEGIN SOLUTION
    noise = absmax_scale(weights, bits).square().mean() / 12
    return 10 * (weights.square().mean() / noise).log10()
    ### END SOLUTION


# %% [markdown]
# By hand: the weights $(3, 4)$ have the power 25. An error of $\frac12$ in one of them has the power $\frac14$, and the
# ratio is 100. For the prediction: $(1, -1)$ and $(2, 0)$ at 2 bits have the steps 1 and 2, so
# $\sum w^2 = 6$ and $\sum \frac{s^2}{12} = 2 \cdot \frac1{12} + 2 \cdot \frac4{12} = \frac{10}{12}$.

# %% test="error_decibels" points=2
check.close(
    signal_to_noise(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])),
    20.0,
    because="10·log10(25 / 0.25): squares, signal above noise, and ten times the logarithm.",
)
check.close(
    predicted_signal_to_noise(torch.tensor([[1.0, -1.0], [2.0, 0.0]]), bits=2),
    10 * math.log10(6 / (10 / 12)),
    because="Σ w² = 6 and Σ s²/12 = 10/12, each weight with the step of its own row. It is powers that add up.",
)
check.raises(
    ValueError,
    signal_to_noise,
    torch.ones(2, 2),
    torch.ones(2),
    mentions="approximation",
    because="Another shape would be broadcast without an error: say approximation.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("open_weights", "quantization")
rng = inputs("error_decibels")
cases = []
for shape in [(2,), (7,), (3, 5), (2, 3, 4)]:
    weights, noise = torch.randn(2, *shape, generator=rng, dtype=torch.float64).to(device)
    weights = weights + 0.5
    cases += [(weights, weights + size * noise) for size in (0.01, 0.3, 5.0)]
for case, ratio in zip(cases, each(signal_to_noise, cases), strict=True):
    check.close(
        ratio,
        theirs.signal_to_noise(*case),
        because="10·log10 of the sum of the squared weights over the sum of the squared errors. The signal is that of "
        "the weights, not of the approximation, and no mean is subtracted.",
    )
check.close(
    signal_to_noise(weights, weights.clone()),
    theirs.signal_to_noise(weights, weights),
    because="Without any error the ratio is +∞.",
)
cases = []
for shape in [(1,), (7,), (3, 5), (2, 3, 4)]:
    weights = torch.randn(shape, generator=rng, dtype=torch.float64)
    sizes = 0.1 + 3 * torch.rand(*shape[:-1], 1, generator=rng, dtype=torch.float64)
    cases += [((sizes * weights).to(device), bits) for bits in (2, 4, 8)]
for case, ratio in zip(cases, each(predicted_signal_to_noise, cases), strict=True):
    check.close(
        ratio,
        theirs.predicted_signal_to_noise(*case),
        because="10·log10 of the mean of w² over the mean of s²/12, where s is the absmax scale of each vector along "
        "the last axis.",
    )
for bad in (weights[:1], weights[None], weights[..., :1]):
    check.raises(
        ValueError,
        signal_to_noise,
        weights,
        bad,
        mentions="approximation",
        because="The approximation must have the shape of the weights: say approximation.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · Groups
#
# An outlier spoils the step for every weight that shares its scale. So let fewer share one. A scale for the whole
# matrix, *per tensor*, is spoilt for all by the largest weight of all. A scale for each row, one for each output of the
# layer, keeps the damage in the row. Still finer, cut each row into *groups* of $g$ neighbours. They lie along the
# input axis, the columns: these are the weights that are multiplied with inputs and summed.
#
# ```
# row      0.7 -0.2 │ 7.0 -1.6 │ 0.14          g = 2, 4 bits
# scales   0.1      │ 1.0      │ 0.02
# values   7   -2   │ 7   -2   │ 7
# ```
#
# The last group may be shorter. No group reaches from one row into the next.
#
# In the predicted ratio it is the term $a / \sigma$ that shrinks. Without outliers it does so slowly, for the largest
# of $g$ normal numbers grows roughly like $\sqrt{2 \ln g}$. With outliers it is the whole point: they ruin $g$ weights
# and no more.
#
# And the price: scales have to be kept too. A scale of 16 bits for every $g$ weights of $b$ bits makes
#
# $$b + \frac{16}{g} \text{ bits per weight,}$$
#
# $4.5$ for 4 bits and groups of 32, the format that llama.cpp calls Q4_0. "4-bit" models are larger than 4 bits.
# A row of $n$ weights has $\lceil n / g \rceil$ groups, and a short group costs as much as a full one.
#
# A range that does not lie around 0, such as that of the output of a ReLU, wants a second number for each group, where
# its zero lies. Weights do lie around 0, so you build none.


# %% solution="groups"
def quantize_groups(
    weights: Float[Tensor, "rows columns"], bits: int, group_size: int
) -> tuple[Int8[Tensor, "rows columns"], Float[Tensor, "rows groups"]]:
    """Absmax quantisation of each group of ``group_size`` neighbours within a row.

    Args:
        weights: finite, at least one column.
        bits: from 2 to 8.
        group_size: 1 or more; what is left at the end of a row is a shorter group, also where it is the only one.

    Returns:
        The level of each weight, and the ``absmax_scale`` of each group, with ⌈columns / group_size⌉ groups in a row.

    Raises:
        ValueError: ``bits`` as in ``largest_level``, or ``group_size`` is below 1 (the message says ``group_size``).
    """
    ### BEGIN SOLUTION
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")
    columns = weights.shape[1]
    # Zeros at the end of a short group change neither its largest weight nor its levels.
    grouped = F.pad(weights, (0, -columns % group_size)).unflatten(1, (-1, group_size))
    scales = absmax_scale(grouped, bits)
    return quantize(grouped, scales, bits).flatten(1)[:, :columns], scales
    ### END SOLUTION


def dequantize_groups(
    values: Int8[Tensor, "rows columns"], scales: Float[Tensor, "rows groups"], group_size: int
) -> Float[Tensor, "rows columns"]:
    """The weights that the levels stand for, in the dtype of ``scales``.

    Raises:
        ValueError: ``scales`` has not ⌈columns / group_size⌉ numbers in each row (the message says ``scales``).
    """
    ### BEGIN SOLUTION
    rows, columns = values.shape
    expected = (rows, math.ceil(columns / group_size))
    if scales.shape != expected:
        raise ValueError(f"scales must be {expected}, got {tuple(scales.shape)}")
    return values * scales.repeat_interleave(group_size, dim=1)[:, :columns]
    ### END SOLUTION


def bits_per_weight(columns: int, bits: int, group_size: int, scale_bits: int = 16) -> float:
    """What one weight of a matrix with so many columns takes, on average, with its share of the scales, in bits."""
    ### BEGIN SOLUTION
    return bits + scale_bits * math.ceil(columns / group_size) / columns
    ### END SOLUTION


# %% test="groups_values" points=2
row = torch.tensor([[0.7, -0.2, 7.0, -1.6, 0.14]])
values, scales = quantize_groups(row, bits=4, group_size=2)
check.close(
    scales, [[0.1, 1.0, 0.02]], because="The largest of each pair, and of the one left, over 7."
)
check.close(values, [[7, -2, 7, -2, 7]], because="Each weight with the scale of its own group.")
check.raises(
    ValueError, quantize_groups, row, 4, 0, mentions="group_size", because="No group is empty."
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("open_weights", "quantization")
rng = inputs("groups_values")
cases = []
for rows, columns in [(1, 1), (4, 6), (6, 4), (3, 7), (2, 13)]:
    weights = torch.randn(columns, rows, generator=rng, dtype=torch.float64).to(device).T
    cases += [(weights, 3 + size % 6, size) for size in (1, 2, 3, 4, 6, 20)]
for case, got in zip(cases, each(quantize_groups, cases), strict=True):
    for name, one, other in zip(
        ("values", "scales"), got, theirs.quantize_groups(*case), strict=True
    ):
        check.close(
            one,
            other,
            because=f"The {name} are off. Groups are neighbours within one row, along the columns; the last group of a "
            "row may be shorter, and no group reaches into the next row.",
        )
    check.that(got[0].dtype == torch.int8, "The values must be int8.")
weights = torch.randn(3, 8, generator=rng, dtype=torch.float64).to(device)
weights[1, 4:] = 0.0
for one, other in zip(
    quantize_groups(weights, 4, 4), theirs.quantize_groups(weights, 4, 4), strict=True
):
    check.close(one, other, because="A group of zeros has the scale 0 and values of 0.")
for size in (0, -3):
    check.raises(
        ValueError,
        quantize_groups,
        weights,
        4,
        size,
        mentions="group_size",
        because="A group has at least one weight: say group_size.",
    )
### END HIDDEN TESTS

# %% test="groups_back" points=1
check.close(
    dequantize_groups(
        torch.tensor([[7, -2, 7, -2, 7]], dtype=torch.int8), torch.tensor([[0.1, 1.0, 0.02]]), 2
    ),
    [[0.7, -0.2, 7.0, -2.0, 0.14]],
    because="Each level times the scale of its group: scale 0.1 twice, then 1.0 twice, then 0.02.",
)
check.raises(
    ValueError,
    dequantize_groups,
    torch.zeros(1, 5, dtype=torch.int8),
    torch.ones(1, 2),
    2,
    mentions="scales",
    because="Five columns in groups of 2 have 3 scales: say scales.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("open_weights", "quantization")
rng = inputs("groups_back")
cases = []
for rows, columns in [(1, 1), (4, 6), (6, 4), (3, 7), (2, 13)]:
    values = torch.randint(-7, 8, (rows, columns), generator=rng).to(torch.int8).to(device)
    for size in (1, 2, 3, 4, 6, 20):
        groups = math.ceil(columns / size)
        scales = torch.rand(rows, groups, generator=rng, dtype=torch.float64).to(device)
        cases.append((values, scales, size))
for case, weights in zip(cases, each(dequantize_groups, cases), strict=True):
    check.that(weights.dtype == torch.float64, "The weights must have the dtype of the scales.")
    check.close(
        weights,
        theirs.dequantize_groups(*case),
        because="Each level times the scale of its group: the first scale of a row belongs to its first group_size "
        "columns, and the last may belong to fewer.",
    )
for bad in (scales[:1], scales[0], scales.repeat(1, 2)):
    check.raises(
        ValueError,
        dequantize_groups,
        values,
        bad,
        20,
        mentions="scales",
        because="Every row has ⌈columns / group_size⌉ scales, and nothing is broadcast or cut off: say scales.",
    )
### END HIDDEN TESTS

# %% test="groups_size" points=1
check.close(
    bits_per_weight(columns=4096, bits=4, group_size=32),
    4.5,
    because="4 bits and a share of 1/32 in a scale of 16 bits.",
)
check.close(
    bits_per_weight(columns=10, bits=4, group_size=4),
    4 + 3 * 16 / 10,
    because="Ten columns make groups of 4, 4 and 2: three scales for ten weights.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("open_weights", "quantization")
rng = inputs("groups_size")
cases = [(columns, bits, size) for columns, bits, size in zip(
    torch.randint(1, 60, (30,), generator=rng).tolist(),
    torch.randint(2, 9, (30,), generator=rng).tolist(),
    torch.randint(1, 70, (30,), generator=rng).tolist(),
    strict=True,
)]  # fmt: skip
cases += [(7, 3, 7, 32), (7, 3, 2, 8)]
for case, bits in zip(cases, each(bits_per_weight, cases), strict=True):
    check.close(
        bits,
        theirs.bits_per_weight(*case),
        because="The bits of a weight, and scale_bits for each of the row's ⌈columns / group_size⌉ groups, spread over "
        "its columns.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · Two weights in a byte
#
# No computer addresses half a byte. Values of 4 bits are kept in `int8` while one works with them, and *packed* two to
# a byte for keeping; without that, 4-bit quantisation saves nothing over 8 bits.
#
# How is a negative number written in 4 bits? In *two's complement*, as in 8: $-1$ is `1111`, $-2$ is `1110`, down to
# $-8$, `1000`. Read without a sign, the four bits of $v$ are $v$ if $v \ge 0$ and $v + 16$ if $v < 0$; in code,
# `v & 15`, the low half of the byte. The first value of a pair goes into the low four bits, the second into the high
# four:
#
# ```
# values   3          -2                     byte
# bits     0011       1110        1110 0011  =  14 · 16 + 3  =  227
#                                 high low
# ```
#
# In code: `a | b << 4` puts `b` above `a`; `byte & 15` and `byte >> 4` take them apart. In torch `>>` of an `int8`
# drags the sign along, of a `uint8` it does not. What comes out lies between 0 and 15, and half of those stand for
# negative numbers.
#
# The quantiser of part 1 uses $-7$ to 7. Packing takes $-8$ too: four bits can say it, and other quantisers use it.


# %% solution="packing"
def pack_int4(values: Int8[Tensor, "... n"]) -> UInt8[Tensor, "... bytes"]:
    """Two values a byte along the last axis: the first in the low four bits, the second in the high four.

    Args:
        values: from −8 to 7.

    Returns:
        ⌈n / 2⌉ bytes for each vector. Where ``n`` is odd, the high four bits of the last byte are 0.

    Raises:
        ValueError: a value lies outside −8 … 7 (the message says ``values``).
    """
    ### BEGIN SOLUTION
    if ((values < -8) | (values > 7)).any():
        raise ValueError("values must lie between −8 and 7: four bits hold no others")
    nibbles = F.pad(values, (0, values.shape[-1] % 2)).to(torch.uint8) & 15
    return nibbles[..., ::2] | nibbles[..., 1::2] << 4
    ### END SOLUTION


def unpack_int4(packed: UInt8[Tensor, "... bytes"], n: int) -> Int8[Tensor, "... n"]:
    """The values that ``pack_int4`` packed.

    Args:
        packed: ⌈n / 2⌉ bytes for each vector.
        n: the number of values of each vector, which an odd last byte does not tell.

    Raises:
        ValueError: ``packed`` has not ⌈n / 2⌉ bytes for each vector (the message says ``packed``).
    """
    ### BEGIN SOLUTION
    if packed.shape[-1] != math.ceil(n / 2):
        raise ValueError(f"packed has {packed.shape[-1]} bytes, {n} values take {math.ceil(n / 2)}")
    nibbles = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)[..., :n]
    return (nibbles.to(torch.int8) ^ 8) - 8  # the sign bit counts −8 instead of 8
    ### END SOLUTION


# %% test="packing_bytes" points=2
packed = pack_int4(torch.tensor([[3, -2, -8], [1, 0, 7]], dtype=torch.int8))
check.that(packed.dtype == torch.uint8, "Bytes are uint8.")
check.close(
    packed,
    [[227, 8], [1, 7]],
    because="3 and −2 make 0011 and 1110, the byte 1110 0011 = 227: the first value is in the low half. Of three "
    "values the last stands alone in its byte.",
)
check.raises(
    ValueError,
    pack_int4,
    torch.tensor([8], dtype=torch.int8),
    mentions="values",
    because="8 does not fit into four bits with a sign: it would come back as −8. Say values.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("open_weights", "quantization")
rng = inputs("packing_bytes")
every = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).to(torch.int8).to(device)
cases = [(every,), (every.flatten(),), (torch.zeros(2, 0, dtype=torch.int8, device=device),)]
for shape in [(1,), (5,), (3, 4), (2, 3, 7)]:
    values = torch.randint(-8, 8, (*shape, 2), generator=rng).to(torch.int8).to(device)
    cases.append((values[..., 1],))
for case, packed in zip(cases, each(pack_int4, cases), strict=True):
    check.that(packed.dtype == torch.uint8, "Bytes are uint8.")
    check.close(
        packed,
        theirs.pack_int4(*case),
        because="The bytes are off: two's complement in four bits, the first of two neighbours in the low half, along "
        "the last axis, a last odd value alone in its byte.",
    )
for wrong in (8, -9, 127, -128):
    bad = values.clone()
    bad[1, 2, 3] = wrong
    check.raises(
        ValueError,
        pack_int4,
        bad,
        mentions="values",
        because="A value outside −8 … 7 would come back as another: say values.",
    )
### END HIDDEN TESTS

# %% test="packing_back" points=1
check.close(
    unpack_int4(torch.tensor([[227, 8], [1, 7]], dtype=torch.uint8), 3),
    [[3, -2, -8], [1, 0, 7]],
    because="The low half of a byte comes first, and the patterns 8 to 15 stand for −8 to −1.",
)
check.raises(
    ValueError,
    unpack_int4,
    torch.zeros(2, 2, dtype=torch.uint8),
    5,
    mentions="packed",
    because="Two bytes hold no five values: say packed.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("open_weights", "quantization")
rng = inputs("packing_back")
every = torch.arange(256, device=device).to(torch.uint8)
cases = [(every, 512), (every, 511), (every[:, None], 2), (every[:, None], 1)]
for shape in [(1, 1), (3, 4), (2, 3, 7)]:
    packed = torch.randint(256, (*shape, 2), generator=rng).to(torch.uint8).to(device)[..., 1]
    cases += [(packed, 2 * shape[-1]), (packed, 2 * shape[-1] - 1)]
cases.append((packed[..., :0], 0))
for case, values in zip(cases, each(unpack_int4, cases), strict=True):
    check.that(values.dtype == torch.int8, "The values must be int8.")
    check.close(
        values,
        theirs.unpack_int4(*case),
        because="The values are off: low half first, then the high half; 8 to 15 stand for −8 to −1; n values of each "
        "vector.",
    )
for n in (0, 11, 12, 15, 16, 28):
    check.raises(
        ValueError,
        unpack_int4,
        packed,
        n,
        mentions="packed",
        because="n values take ⌈n / 2⌉ bytes, no more and no fewer: say packed.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · A layer that keeps integers
#
# Where weights are stored as integers the layer computes with $\hat W$, made anew each time it is used:
#
# $$y = x \hat W^\top + b, \qquad \hat W_{ij} = s_{i,\lfloor j/g \rfloor}\, q_{ij}.$$
#
# A real kernel does that for a few rows at a time, in the processor's fastest memory, and never writes $\hat W$ out;
# what crosses from the slow memory is integers and scales. Yours makes the whole $\hat W$, uses it, and forgets it.
# The bias is small, and stays as it is.
#
# Scales are kept in half precision, 16 bits. That moves each by up to 1 part in 2,048, and $\hat w$ by a small part of
# a step. But it is *storage*. Computation happens in the precision of the input: an $\hat W$ computed in half precision
# would be rounded once more, needlessly.
#
# Tensors that belong to a layer and are not trained are *buffers*: `self.register_buffer("values", values)` makes
# `self.values`, which moves to another device with the module and is saved in its `state_dict`. A parameter would not
# even be possible: integers have no gradients. But gradients must pass *through* the layer to its input. QLoRA
# (Dettmers et al. 2023) trains small matrices of real numbers beside a model that is frozen in 4 bits, and the
# gradients that reach them have come through the frozen layers above.


# %% solution="layer"
class QuantizedLinear(nn.Module):
    """A linear layer, y = x Ŵᵀ + bias, which keeps its weights as integers and scales. It has no parameters.

    Buffers, and it has no others:
        values: for 8 bits ``int8``, ``(out_features in_features)``; for 4 bits ``uint8``,
            ``(out_features ⌈in_features / 2⌉)``, each row packed as by ``pack_int4``.
        scales: ``float16``, ``(out_features groups)``.
        bias: as it was given, or ``None``.

    Args:
        weight: the matrix to quantise, with groups along ``in_features``.
        bias: one number for each output, or ``None``.
        bits: 4 or 8.
        group_size: 1 or more; the last group of a row may be shorter.

    ``values`` and ``scales`` are those of ``quantize_groups``; only then are the scales rounded to half precision.

    Raises:
        ValueError: ``bits`` is neither 4 nor 8 (the message says ``bits``).
    """

    def __init__(
        self,
        weight: Float[Tensor, "out_features in_features"],
        bias: Float[Tensor, "out_features"] | None,
        bits: int,
        group_size: int,
    ) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        if bits not in (4, 8):
            raise ValueError(f"bits must be 4 or 8, got {bits}")
        self.bits, self.group_size, self.in_features = bits, group_size, weight.shape[1]
        values, scales = quantize_groups(weight.detach(), bits, group_size)
        self.register_buffer("values", pack_int4(values) if bits == 4 else values)
        self.register_buffer("scales", scales.half())
        self.register_buffer("bias", None if bias is None else bias.detach())
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... out_features"]:
        """Ŵ is computed in the dtype of ``x``, and so is the result. Nothing is rounded but weights and scales."""
        ### BEGIN SOLUTION
        values = unpack_int4(self.values, self.in_features) if self.bits == 4 else self.values
        weight = dequantize_groups(values, self.scales.to(x.dtype), self.group_size)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, weight, bias)
        ### END SOLUTION


# %% [markdown]
# By hand: the row $(0.875,\ {-0.25},\ 0.4375)$ in groups of 2 at 4 bits has the scales $\frac18$ and $\frac1{16}$ and
# the values 7, $-2$, 7. The input $(1, 2, 0)$ then gives $0.875 - 0.5$, plus the bias.

# %% test="layer_output" points=2
layer = QuantizedLinear(
    torch.tensor([[0.875, -0.25, 0.4375]]), torch.tensor([1.0]), 4, group_size=2
)
stored = layer.state_dict()
check.equal(
    {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in stored.items()},
    {
        "values": ((1, 2), "torch.uint8"),
        "scales": ((1, 2), "torch.float16"),
        "bias": ((1,), "torch.float32"),
    },
    because="The layer keeps values, scales and bias, each as its docstring says: three values of 4 bits take 2 bytes.",
)
check.close(
    stored["values"], [[231, 7]], because="7 and −2 make the byte 1110 0111; 7 stands alone."
)
check.close(
    layer(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 16.0]])),
    [[1.375], [8.0]],
    because="y = x Ŵᵀ + bias, with Ŵ = (0.875, −0.25, 0.4375).",
)
check.raises(
    ValueError,
    QuantizedLinear,
    torch.ones(2, 2),
    None,
    3,
    2,
    mentions="bits",
    because="There is no storage for 3 bits here: say bits.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("open_weights", "quantization")
rng = inputs("layer_output")
layers = []
for bits, size, rows, columns, biased in [
    (4, 3, 4, 7, True),
    (8, 3, 5, 8, False),
    (8, 20, 3, 5, True),
    (4, 2, 6, 6, False),
]:
    weight = torch.randn(columns, rows, generator=rng, dtype=torch.float64).to(device).T
    bias = torch.randn(rows, generator=rng, dtype=torch.float64).to(device) if biased else None
    layer = QuantizedLinear(weight, bias, bits, size)
    other = theirs.QuantizedLinear(weight, bias, bits, size)
    stored, expected = layer.state_dict(), other.state_dict()
    check.equal(
        {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in stored.items()},
        {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in expected.items()},
        because="The layer keeps values, scales and, if one was given, the bias, each as its docstring says, and "
        "nothing else.",
    )
    for name, tensor in expected.items():
        check.close(
            stored[name],
            tensor,
            because=f"What the layer keeps as {name} is off: integers and scales of quantize_groups, scales in half "
            "precision, 4 bits packed, the bias untouched.",
        )
    x, pull = (torch.randn(2, 3, n, generator=rng).to(device) for n in (columns, rows))
    for dtype in (torch.float32, torch.float64):
        own, same = (x.detach().to(dtype, copy=True).requires_grad_() for _ in range(2))
        y, right = layer(own), other(same)
        check.that(y.dtype == dtype, "The output must have the dtype of the input.")
        check.close(
            y,
            right,
            because="y = x Ŵᵀ + bias, where Ŵ is computed in the dtype of x from the values and the scales that the "
            "layer keeps.",
        )
        check.that(y.requires_grad, "No gradient passes through the layer to its input.")
        (y * pull).sum().backward()
        (right * pull).sum().backward()
        check.close(
            own.grad, same.grad, because="The gradient that passes to the input is off: it is Ŵ's."
        )
    check.that(
        not layer(x).requires_grad,
        "Something in the layer asks for a gradient: it has buffers and no parameters.",
    )
    another = theirs.QuantizedLinear(-0.7 * weight.flip(0), bias, bits, size)
    layer.load_state_dict(another.state_dict())
    check.close(
        layer(x),
        another(x),
        because="After loading other values and scales the layer still computes with the old: it keeps the weights "
        "somewhere else too.",
    )
trained = nn.Linear(5, 3, dtype=torch.float64, device=device)
check.that(
    not QuantizedLinear(trained.weight, trained.bias, 8, 4)(
        x.new_ones(2, 5).double()
    ).requires_grad,
    "The layer was made from parameters and still hangs on them: detach.",
)
for bits in (0, 2, 5, 16):
    check.raises(
        ValueError,
        QuantizedLinear,
        weight,
        None,
        bits,
        2,
        mentions="bits",
        because="Only 4 and 8 bits can be stored: say bits.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 6 · Levels where the weights are
#
# Trained weights are nearly normally distributed, many near 0 and few far out. Equal steps spend as many levels on the
# few as on the many. QLoRA (Dettmers et al. 2023) lays the levels so that about as many weights fall on each: at
# *quantiles* of the normal distribution, the values below which given shares of it lie. This is *NormalFloat*, NF4
# with 4 bits.
#
# Let $\Phi^{-1}(p)$ be the value below which a normal variable falls with probability $p$. It is
# `torch.special.ndtri`, and $\Phi^{-1}(\frac12) = 0$. The levels of $b$ bits, as the authors' code lays them:
#
# - $2^{b-1}$ positive levels: $\Phi^{-1}(p)$ for $2^{b-1}$ probabilities at equal distances from $p_{\max}$ down
#   towards $\frac12$, such that one more step would reach $\frac12$;
# - $2^{b-1} - 1$ negative levels: $-\Phi^{-1}(p)$ for $2^{b-1} - 1$ such probabilities, again from $p_{\max}$
#   down, one more step from $\frac12$;
# - 0 itself, so that a weight of 0 stays 0;
# - all divided by $\Phi^{-1}(p_{\max})$, so that they go from $-1$ to 1.
#
# Probability 1 would lie at infinity, so $p_{\max}$ stays half a share below it. A share is one in $2^b$, or one in
# $2^b - 1$ if the level 0 is not counted; the mean of both is taken:
#
# $$p_{\max} = 1 - \frac12 \left(\frac{1}{2 \cdot 2^b} + \frac{1}{2\,(2^b - 1)}\right),$$
#
# which makes the constant 0.9677083 in their code for $b = 4$ (the formula behind it is written down by Yoshida 2023).
# For $b = 2$, two positive levels: probabilities $p_{\max}$ and $\frac12 (p_{\max} + \frac12)$.
#
# To quantise, divide a vector by its largest absolute value, which is its scale here, and keep the *index* of the
# nearest level. The levels are no longer equally spaced, so no rounding finds it; compare with each, or with the mid
# points between neighbours. Back: the level of that index, times the scale.


# %% solution="normal_float"
def normal_float_levels(bits: int) -> Float[Tensor, "levels"]:
    """The 2^bits levels of NormalFloat (Dettmers et al. 2023), ascending from −1 to 1, one of them 0, in ``float32``.

    There is one positive level more than negative ones. ``bits`` is from 2 to 8.
    """
    ### BEGIN SOLUTION
    count = 2**bits
    highest = 1 - (1 / (2 * count) + 1 / (2 * (count - 1))) / 2

    def side(number: int) -> Float[Tensor, "number"]:
        """So many positive quantiles, up to the highest."""
        return torch.special.ndtri(torch.linspace(0.5, highest, number + 1)[1:])

    levels = torch.cat([-side(count // 2 - 1), torch.zeros(1), side(count // 2)])
    return (levels / levels.max()).sort().values
    ### END SOLUTION


def codebook_quantize(
    weights: Float[Tensor, "... n"], levels: Float[Tensor, "levels"]
) -> tuple[Int[Tensor, "... n"], Float[Tensor, "..."]]:
    """The index of the level nearest to each weight, and the largest absolute value of each vector, its scale.

    Args:
        weights: finite, ``n`` at least 1. Each vector along the last axis is divided by its own scale before it is
            compared. The scale of a vector of zeros is 0, and its weights stay 0.
        levels: ascending from −1 to 1, with 0 among them. They need not be NormalFloat's.

    Returns:
        Indices, ``int64``, and scales, in the dtype of ``weights``. Half-way between two levels either is right.
    """
    ### BEGIN SOLUTION
    scale = weights.abs().amax(dim=-1)
    relative = (weights / scale[..., None]).nan_to_num()  # 0/0 is to be 0
    return (relative[..., None] - levels).abs().argmin(dim=-1), scale
    ### END SOLUTION


def codebook_dequantize(
    indices: Int[Tensor, "... n"], scale: Float[Tensor, "..."], levels: Float[Tensor, "levels"]
) -> Float[Tensor, "... n"]:
    """The weights that the indices stand for."""
    ### BEGIN SOLUTION
    return levels[indices] * scale[..., None]
    ### END SOLUTION


# %% test="normal_float_levels" points=1
check.close(
    normal_float_levels(4),
    [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0,
     0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0],
    rtol=0.0,
    atol=1e-4,
    because="The sixteen levels of NF4 as QLoRA's code lays them: 7 negative ones, 0, and 8 positive ones.",
)  # fmt: skip
### BEGIN HIDDEN TESTS
from autograder.hidden import each, reference

theirs = reference("open_weights", "quantization")
cases = [(bits,) for bits in (2, 3, 4, 5, 8)]
for case, levels in zip(cases, each(normal_float_levels, cases), strict=True):
    check.close(
        levels,
        theirs.normal_float_levels(*case),
        because="2^(bits − 1) positive quantiles, 0, and one negative quantile fewer, ascending, divided by the "
        "largest. The highest probability depends on bits as the formula says.",
    )
check.that(levels.dtype == torch.float32, "The levels must be float32.")
### END HIDDEN TESTS

# %% test="normal_float_codes" points=2
few = torch.tensor([-1.0, 0.0, 0.25, 1.0])
indices, scale = codebook_quantize(
    torch.tensor([[2.0, 0.2, 0.3, -0.9], [0.6, -4.0, 2.6, -2.2]]), few
)
check.close(
    scale, [2.0, 4.0], because="Each row's largest absolute value, with no division by a level."
)
check.close(
    indices,
    [[3, 1, 2, 1], [2, 0, 3, 0]],
    because="Divided by 2 the first row is 1, 0.1, 0.15, −0.45: the nearest of −1, 0, 0.25 and 1, by index. The mid "
    "points are −0.5, 0.125 and 0.625.",
)
check.close(
    codebook_dequantize(indices, scale, few),
    [[2.0, 0.0, 0.5, 0.0], [1.0, -4.0, 4.0, -4.0]],
    because="The level of each index, times the scale of its row.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("open_weights", "quantization")
rng = inputs("normal_float_codes")
uneven = torch.tensor([-1.0, -0.9, -0.2, 0.0, 0.05, 0.6, 1.0], device=device)
cases = []
for shape in [(1,), (40,), (4, 4), (3, 50), (2, 3, 30)]:
    weights = torch.randn(*shape, 2, generator=rng, dtype=torch.float64).to(device)[..., 1]
    cases += [(weights, theirs.normal_float_levels(4).to(device)), (weights, uneven)]
backward = []
for (weights, levels), (indices, scale) in zip(cases, each(codebook_quantize, cases), strict=True):
    right, largest = theirs.codebook_quantize(weights, levels)
    check.close(
        scale,
        largest,
        because="The scale is the largest absolute value of each vector along the last axis.",
    )
    check.that(indices.dtype == torch.int64, "The indices must be int64.")
    check.close(
        indices,
        right,
        because="The index of the level nearest to w / scale. Between two levels it changes half-way.",
    )
    backward.append((right, largest + 0.25, levels))
for case, weights in zip(backward, each(codebook_dequantize, backward), strict=True):
    check.close(
        weights,
        theirs.codebook_dequantize(*case),
        because="The level of each index, times the scale of its own vector.",
    )
weights = torch.randn(3, 5, generator=rng, dtype=torch.float64).to(device)
weights[1] = 0.0
indices, scale = codebook_quantize(weights, uneven)
right, largest = theirs.codebook_quantize(weights, uneven)
check.close(scale, largest, because="A vector of zeros has the scale 0.")
check.close(indices, right, because="In a vector of zeros every index is that of the level 0.")
### END HIDDEN TESTS

# %% [markdown] written="quantization_why" points=2
# **In your own words.** A colleague quantises a model to 3 bits in groups of 4 weights and says that it takes less room
# than your 4 bits in groups of 64, with a smaller error. Count both. Then: in a row of 4,096 weights, scaled as one, a
# single weight is 60 times as large as the standard deviation of the others. What do the others become at 4 bits, and
# why? What do groups of 32 change, for how many weights, and at what price? And why does rounding towards zero cost one
# bit? (5 to 9 sentences.)

# %% [markdown]
# ## Experiment: perplexity against bytes
#
# The course's small GPT was trained on plays of Shakespeare, character by character. Quantise every one of its
# matrices with your functions, embeddings included, to 8, 4, 3 and 2 bits, with one scale for a matrix, for a row
# and for groups. Scales are rounded to 16 bits and counted; biases and norms, which are few, stay at 16 bits. Then read
# three plays that it has not seen and measure the perplexity. Nothing is drawn at random; the three plays stand in for
# repetitions.
#
# On the right, one of its matrices: the signal-to-noise ratio that your quantiser has, and what $s^2/12$ predicts.
#
# Before you run it: the same number of bytes can be spent on more bits, or on more scales. Which is better? And down to
# how many bits will the prediction hold?

# %% experiment=true
from typing import NamedTuple

import matplotlib.pyplot as plt
from tqdm.auto import tqdm

from lab import checkpoints, data, figures

# Characters of each play, a multiple of WINDOW · BATCH, and sizes of groups, which divide every width of the model.
CHARACTERS, GROUPS = (65_536, (64, 32, 16, 8)) if device.type == "cuda" else (4096, (32, 8))
BITS, WINDOW, BATCH, START = (8, 4, 3, 2), 64, 64, 10_000
GROUPINGS = ("matrix", "row", *GROUPS)

gpt = checkpoints.load("gpt")
model = gpt.model.to(device)
trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
plays = {
    play.title: gpt.encode(play.text[START : START + CHARACTERS + 1]).to(device)
    for play in data.plays()
    if play.split == "test"
}


class Measured(NamedTuple):
    """A model's size, all told, and its perplexity on each play."""

    megabytes: float
    perplexities: list[float]

    def mean(self) -> float:
        """The mean perplexity of the plays."""
        return sum(self.perplexities) / len(self.perplexities)


@torch.no_grad()
def perplexities(state: dict[str, Tensor]) -> list[float]:
    """The perplexity of a character, on each play, of the model with these weights."""
    model.load_state_dict(state)
    found = []
    for tokens in plays.values():
        inputs = tokens[:-1].view(-1, WINDOW).split(BATCH)
        targets = tokens[1:].view(-1, WINDOW).split(BATCH)
        losses = [
            F.cross_entropy(model(some).flatten(0, 1), right.flatten()).item()
            for some, right in zip(inputs, targets, strict=True)
        ]
        found.append(math.exp(sum(losses) / len(losses)))
    return found


def measure(approximate, state: dict[str, Tensor]) -> Measured:
    """The model after ``approximate``, which gives for a matrix another one and its size in bits."""
    bits, changed = 0, {}
    for name, tensor in state.items():
        changed[name], size = tensor, 16 * tensor.numel()
        if tensor.dim() == 2:
            changed[name], size = approximate(tensor)
        bits += size
    return Measured(bits / 8e6, perplexities(changed))


def with_integers(bits: int, grouping: str | int):
    """Your absmax quantisation, with a scale for each "matrix", each "row" or groups of a size."""

    def approximate(matrix: Tensor) -> tuple[Tensor, float]:
        rows = matrix.reshape(1, -1) if grouping == "matrix" else matrix
        columns = rows.shape[1]
        size = grouping if isinstance(grouping, int) else columns
        values, scales = quantize_groups(rows, bits, size)
        kept = dequantize_groups(values, scales.half().float(), size)
        return kept.view_as(matrix), bits_per_weight(columns, bits, size) * matrix.numel()

    return approximate


def with_normal_float(bits: int, grouping: str | int):
    """Your NormalFloat, with a scale for each "row" or groups of a size."""
    levels = normal_float_levels(bits).to(device)

    def approximate(matrix: Tensor) -> tuple[Tensor, float]:
        columns = matrix.shape[1]
        size = grouping if isinstance(grouping, int) else columns
        indices, scale = codebook_quantize(matrix.reshape(-1, size), levels)
        kept = codebook_dequantize(indices, scale.half().float(), levels)
        return kept.view_as(matrix), bits_per_weight(columns, bits, size) * matrix.numel()

    return approximate


def told(grouping: str | int) -> str:
    """What has a scale, in words."""
    return f"groups of {grouping}" if isinstance(grouping, int) else f"a {grouping}"


ways = {(f"{bits} bits", g): with_integers(bits, g) for bits in BITS for g in GROUPINGS}
ways |= {("NF4", g): with_normal_float(4, g) for g in GROUPINGS[1:]}
full = measure(lambda matrix: (matrix, 16 * matrix.numel()), trained)
measured = {way: measure(ways[way], trained) for way in tqdm(ways, desc="quantised models")}

print(f"perplexity on {', '.join(plays)}:")
print(f"16 bits{'':27}{full.megabytes:.3f} MB", *(f"{x:9.3f}" for x in full.perplexities))
for (kind, grouping), one in measured.items():
    numbers = (f"{x:9.3f}" for x in one.perplexities)
    print(f"{kind:8}{'scale for ' + told(grouping):26}{one.megabytes:.3f} MB", *numbers)

matrix = trained["blocks.0.feed_forward.0.weight"]
vectors = {
    "matrix": matrix.reshape(1, -1),
    "row": matrix,
    GROUPS[0]: matrix.reshape(-1, GROUPS[0]),
}
ratios = {}  # measured and predicted
for grouping, rows in vectors.items():
    for bits in range(2, 9):
        scale = absmax_scale(rows, bits)
        got = signal_to_noise(rows, dequantize(quantize(rows, scale, bits), scale))
        ratios[grouping, bits] = got.item(), predicted_signal_to_noise(rows, bits).item()

figures.use_style()
fig, (ax, ax_ratio) = plt.subplots(1, 2, figsize=(10.5, 4.2), width_ratios=[1.4, 1])
marks = dict(zip(GROUPINGS, "osD^vP", strict=False))
for i, kind in enumerate(dict.fromkeys(kind for kind, _ in measured)):
    found = {grouping: one for (k, grouping), one in measured.items() if k == kind}
    line = "--" if kind == "NF4" else "-"
    sizes, means = zip(*((one.megabytes, one.mean()) for one in found.values()), strict=True)
    ax.plot(sizes, means, line, color=f"C{i}", label=kind)
    for grouping, one in found.items():
        three = one.perplexities
        ax.plot([one.megabytes] * len(three), three, marks[grouping], color=f"C{i}", markersize=4)
for grouping, mark in marks.items():
    ax.plot([], [], mark, color="grey", markersize=4, label=f"a scale for {told(grouping)}")
ax.axhline(full.mean(), color="grey", linewidth=0.8, linestyle=":")
ax.set(
    yscale="log",
    xlabel=f"megabytes, scales included ({full.megabytes:.2f} at 16 bits, dotted)",
    ylabel="perplexity",
    title="three plays that the model has not seen",
)
ax.set_yticks([6, 8, 10, 20, 40, 80], ["6", "8", "10", "20", "40", "80"])
ax.minorticks_off()
ax.legend(fontsize=8, ncols=2)
for i, grouping in enumerate(vectors):
    got, predicted = zip(*(ratios[grouping, bits] for bits in range(2, 9)), strict=True)
    ax_ratio.plot(range(2, 9), got, marks[grouping], color=f"C{i}", label=told(grouping))
    ax_ratio.plot(range(2, 9), predicted, color=f"C{i}", linewidth=0.9)
ax_ratio.set(xlabel="bits", ylabel="dB", title="signal to noise: measured, lines by s²/12")
ax_ratio.legend(fontsize=8, title="a scale for", title_fontsize=8)
figures.show(
    fig,
    alt=f"Perplexity against size, the mean of three plays. At 16 bits, {full.megabytes:.2f} megabytes: "
    f"{full.mean():.2f}. "
    + " ".join(
        f"{kind}, a scale for {told(grouping)}, {one.megabytes:.3f} megabytes: {one.mean():.2f}."
        for (kind, grouping), one in measured.items()
    )
    + " Signal-to-noise ratio of one matrix, measured and predicted, in decibels: "
    + "; ".join(
        f"{bits} bits, a scale for {told(grouping)}: {got:.1f} and {predicted:.1f}"
        for (grouping, bits), (got, predicted) in ratios.items()
    )
    + ".",
)

# %% [markdown]
# Eight bits cost nothing that could be seen. Four bits cost little if there is a scale for each row or group, and a
# good deal if there is one for each matrix. Below that it gets steep.
#
# Each line goes from few scales to many, and with integers more scales help. But look at what they cost. Three bits
# with a scale for every 8 weights take more bytes than 4 bits with a scale for every 32, and are worse; whoever does
# not count the scales takes them for the smaller model. NF4 lays its 16 levels elsewhere. It gains where a scale serves
# a whole row, for which the quantiles of a normal distribution are made. Among 8 or 32 weights, divided by the largest
# of them, it gains nothing here.
#
# On the right each bit is worth about 6 dB, and the measured ratios lie on the lines down to 3 bits. With 2 bits there
# are three levels. Most weights become 0, the error is no longer uniform, and its mean square is not $s^2/12$.
#
# This is one small model made smaller and smaller. Dettmers and Zettlemoyer (2023) compared models of up to 176 billion
# parameters at equal numbers of bits in all, large ones of few bits each against small ones of many, and found 4 bits
# the best choice nearly everywhere. And rounding to the nearest looks at each weight alone. GPTQ (Frantar et al. 2023)
# rounds column after column, and corrects the columns still to come for the error that was made.
#
# ### Outliers
#
# The weights of this small model hardly have outliers, so a scale for each row was nearly as good as groups. Give it
# some, without changing what it computes: divide one component of each layer norm by 16, and multiply by 16 the column
# of the matrix that reads it. The two cancel, so at full precision the model is the same function. But in every row of
# these matrices one weight now tends to be far larger than the others. In large models outliers arise by themselves,
# above all in the activations (Dettmers et al. 2022), and SmoothQuant (Xiao et al. 2023) uses the same two factors to
# move them from there into the weights.
#
# Before you run it: what happens to 8 bits, and what to 4?

# %% experiment=true
FACTOR, COMPONENT = 16, 5

uneven = {name: tensor.clone() for name, tensor in trained.items()}
for block in range(len(model.blocks)):
    for norm, reader in (
        ("attention_norm", "attention.in_proj_weight"),
        ("feed_forward_norm", "feed_forward.0.weight"),
    ):
        for name in ("weight", "bias"):
            uneven[f"blocks.{block}.{norm}.{name}"][COMPONENT] /= FACTOR
        uneven[f"blocks.{block}.{reader}"][:, COMPONENT] *= FACTOR

same = perplexities(uneven)
print("at full precision, as trained:    ", *(f"{x:.3f}" for x in full.perplexities))
print("at full precision, with outliers: ", *(f"{x:.3f}" for x in same))
compared = [(f"{bits} bits", grouping) for bits in (8, 4) for grouping in GROUPINGS]
spoilt = {way: measure(ways[way], uneven) for way in tqdm(compared, desc="with outliers")}

fig, ax = plt.subplots(figsize=(9, 3.6))
for i, (name, found) in enumerate({"as trained": measured, "with outliers": spoilt}.items()):
    places = [place + 0.3 * (i - 0.5) for place in range(len(compared))]
    for play in range(len(plays)):
        values = [found[way].perplexities[play] for way in compared]
        label = None if play else name
        ax.plot(places, values, "os"[i], color=f"C{i}", markersize=4, label=label)
ax.axvline(len(GROUPINGS) - 0.5, color="grey", linewidth=0.8)
ax.set(
    yscale="log", ylabel="perplexity", title="three plays; the same function, two sets of weights"
)
ax.set_yticks([6, 10, 20, 50, 100, 200], ["6", "10", "20", "50", "100", "200"])
ax.minorticks_off()
names = [f"{kind}\n{told(grouping)}" for kind, grouping in compared]
ax.set_xticks(range(len(compared)), names, fontsize=8)
ax.legend(fontsize=9, loc="upper left")
figures.show(
    fig,
    alt="Perplexity of the quantised model, the mean of three plays, as it was trained and as the same function with "
    "outliers. "
    + " ".join(
        f"{kind}, a scale for {told(grouping)}: {measured[kind, grouping].mean():.2f} and "
        f"{spoilt[kind, grouping].mean():.2f}."
        for kind, grouping in compared
    ),
)

# %% [markdown]
# The function is the same, its numbers are not. At 8 bits there are levels to spare. At 4 bits the step in each row, or
# in the whole matrix, is what the outlier commands, and many other weights become 0. Groups confine the damage to the
# outlier's neighbours, and the smaller they are, the less of it there is.
#
# Last, is the count honest? Put your layer in the place of all feed-forward layers, 4 bits in groups of 32, and compare
# the bytes of its buffers with the formula.

# %% experiment=true
repacked = checkpoints.load("gpt").model.to(device)
before, after, counted = 0, 0, 0.0
for block in repacked.blocks:
    for place in (0, 2):
        linear = block.feed_forward[place]
        layer = QuantizedLinear(linear.weight, linear.bias, bits=4, group_size=32)
        before += 2 * linear.weight.numel()
        after += layer.values.nbytes + layer.scales.nbytes
        counted += bits_per_weight(linear.in_features, 4, 32) * linear.weight.numel() / 8
        block.feed_forward[place] = layer

model.load_state_dict(trained)
inputs = torch.stack([tokens[:WINDOW] for tokens in plays.values()])
targets = torch.stack([tokens[1 : WINDOW + 1] for tokens in plays.values()])
with torch.no_grad():
    losses = [
        F.cross_entropy(reader(inputs).flatten(0, 1), targets.flatten()).item()
        for reader in (model, repacked)
    ]
print(f"feed-forward matrices at 16 bits: {before:,} bytes")
print(f"in your layers: {after:,} bytes; by the formula: {counted:,.0f}")
print(f"nats a character on a few lines: {losses[0]:.3f} before, {losses[1]:.3f} with your layers")
