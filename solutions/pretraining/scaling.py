# %% [markdown]
# # Scaling laws
#
# How good will a model be that is ten times as large, before anybody has trained it? Kaplan et al. (2020) found that
# the loss of language models falls as a power of their size, of their data and of the computation spent, over many
# orders of magnitude. That relation, and not the act of making models larger, is what *scaling law* means. Two years
# later Hoffmann et al. (2022) fitted it anew and came to another advice. You build the tools both worked with.
#
# **You build** parameter counts, training FLOPs, power-law fits, the compute-optimal size, exact match
# · **Minutes** 90 · **Points** 18 · **Difficulty** ●●○ ·
# **Before this** [Scaling](../../book/pretraining/scaling.md), [The Transformer](../transformer/block.ipynb)
#
# Run a cell with Shift+Enter. Write your answers where it says `YOUR CODE HERE`, then run the tests below them.
# A test that passes is silent; one that fails says what it expected, what came, and which mistake usually does that.
# More tests, on other inputs, run when your notebook is graded.

# %%
import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

import lab
from lab import check

device = lab.device()

# %% [markdown]
# ## 1 · How many parameters?
#
# Kaplan et al. (2020, §2.1) count parameters $N$ *without* the embeddings: with them the curves of models of different
# depth do not fall together, without them they do. We count both, exactly, for a model built as GPT-2: with
# $d = d_{\text{model}}$ and biases everywhere,
#
# | part | parameters |
# | --- | --- |
# | token embedding, which also writes the logits | $V d$ |
# | learned positions | $n_{\text{ctx}}\, d$ |
# | each block: two layer norms, scale and shift | $2 \cdot 2d$ |
# | each block: attention, four matrices and their biases | $4 d^2 + 4 d$ |
# | each block: feed-forward, $d \to d_{\text{ff}} \to d$, with biases | $2\, d\, d_{\text{ff}} + d_{\text{ff}} + d$ |
# | a last layer norm | $2 d$ |
#
# With $d_{\text{ff}} = 4d$ a block has $12 d^2$ parameters and some small change, hence the rule of thumb
# $N \approx 12\, n_{\text{layer}}\, d^2$. The number of heads does not appear: heads divide the width among them.


# %%
class ParameterCount(NamedTuple):
    """Parameters of a model, without its embeddings and in all."""

    non_embedding: int
    total: int


# %% solution="count"
def transformer_params(
    num_layers: int, d_model: int, vocab_size: int, context: int, d_ff: int | None = None
) -> ParameterCount:
    """Every parameter of a GPT-2: pre-LN blocks with biases, learned positions, tied embedding.

    Args:
        num_layers: number of blocks; 0 is allowed.
        d_model: width.
        vocab_size: rows of the token embedding; the logits use the same matrix, and have no bias.
        context: rows of the position embedding.
        d_ff: width of the feed-forward network; ``4 * d_model`` if ``None``.

    Returns:
        ``non_embedding`` leaves out the token and the position embedding (Kaplan et al. 2020, §2.1); ``total``
        holds everything, the shared embedding once.

    Raises:
        ValueError: ``num_layers`` is negative, or another size is less than 1; the message says its name.
    """
    ### BEGIN SOLUTION
    d_ff = 4 * d_model if d_ff is None else d_ff
    if num_layers < 0:
        raise ValueError(f"num_layers must not be negative, got {num_layers}")
    sizes = {"d_model": d_model, "vocab_size": vocab_size, "context": context, "d_ff": d_ff}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    norm = 2 * d_model
    attention = 4 * d_model**2 + 4 * d_model
    feed_forward = 2 * d_model * d_ff + d_ff + d_model
    non_embedding = num_layers * (2 * norm + attention + feed_forward) + norm
    return ParameterCount(non_embedding, non_embedding + (vocab_size + context) * d_model)
    ### END SOLUTION


# %% [markdown]
# By hand, one block of width 2 with a feed-forward of 3: norms 8, attention $16 + 8$, feed-forward $12 + 3 + 2$,
# last norm 4, together 53. And GPT-2 itself, the smallest: 124,439,808, of which 85,056,000 are not embeddings.

# %% test="parameters" points=2
check.equal(
    tuple(transformer_params(1, 2, vocab_size=5, context=7, d_ff=3)),
    (53, 53 + 24),
    because="Norms 2·2·2, attention 4·2² + 4·2, feed-forward 2·2·3 + 3 + 2, last norm 2·2; embeddings (5 + 7)·2.",
)
check.equal(
    tuple(transformer_params(12, 768, vocab_size=50257, context=1024)),
    (85_056_000, 124_439_808),
    because="GPT-2: biases everywhere, d_ff = 4·d_model, a last norm, and the shared embedding counted once.",
)
check.raises(
    ValueError,
    transformer_params,
    2,
    0,
    5,
    7,
    mentions="d_model",
    because="A width of 0 is bad input: say so, and say d_model.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "scaling")
rng = inputs("parameters")
cases = [(0, 6, 11, 5), (1, 1, 1, 1), (96, 12288, 50257, 2048)]
for _ in range(4):
    layers, width, vocab, context, hidden = (
        2 + torch.randint(50, (5,), generator=rng) * torch.tensor([1, 3, 17, 5, 7])
    ).tolist()
    cases += [(layers, width, vocab, context), (layers, width, vocab, context, hidden)]
for case, count in zip(cases, each(transformer_params, cases), strict=True):
    right = theirs.transformer_params(*case)
    check.equal(
        count.non_embedding,
        right.non_embedding,
        because="Without embeddings: for each block two norms, attention with four matrices and biases, feed-forward "
        "with d_ff and biases; and one last norm.",
    )
    check.equal(
        count.total,
        right.total,
        because="In all: the token embedding, once, and the positions, besides what is in the blocks.",
    )
for sizes, says in [
    ((-1, 4, 5, 7), "num_layers"),
    ((2, -4, 5, 7), "d_model"),
    ((2, 4, 0, 7), "vocab_size"),
    ((2, 4, 5, 0), "context"),
    ((2, 4, 5, 7, 0), "d_ff"),
]:
    check.raises(
        ValueError,
        transformer_params,
        *sizes,
        mentions=says,
        because=f"A size that no model can have is bad input: say {says}.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · How much computation?
#
# A parameter of a matrix is used once for each token: one multiplication and one addition, 2 FLOPs. That is the
# forward pass, $2N$ for each token. The backward pass computes two products for each one of the forward pass, the
# gradient of the input and that of the weights: $4N$. Hence (Kaplan et al. 2020, §2.1)
#
# $$C \approx 6\,N D$$
#
# for $D$ tokens of training. GPT-3, with $N = 175 \cdot 10^9$ and $D = 300 \cdot 10^9$, took about
# $3.15 \cdot 10^{23}$ FLOPs.
#
# What is left out? Embeddings are looked up and cost nothing there. And attention computes with activations, not with
# parameters: a query is multiplied with its keys ($2d$ FLOPs for each) and sums up their values ($2d$ again), in each
# layer. In a causal model it sees on average half of the context, $n_{\text{ctx}}/2$ tokens. So the forward pass takes
# $2\, n_{\text{layer}}\, n_{\text{ctx}}\, d$ FLOPs more for each token, and training three times that. It is a small
# part as long as $n_{\text{ctx}} \ll 6\,d$.


# %% solution="flops"
def training_flops(params: float, tokens: float) -> float:
    """FLOPs of training a model of ``params`` parameters (no embeddings) on ``tokens`` tokens, about ``6 N D``.

    Raises:
        ValueError: ``params`` or ``tokens`` is negative; the message says which.
    """
    ### BEGIN SOLUTION
    if params < 0:
        raise ValueError(f"params must not be negative, got {params}")
    if tokens < 0:
        raise ValueError(f"tokens must not be negative, got {tokens}")
    return 6.0 * params * tokens
    ### END SOLUTION


def attention_flops(num_layers: int, d_model: int, context: int, tokens: float) -> float:
    """What the products of queries, keys and values add to ``6 N D`` in training, for a causal model.

    Three times the forward pass, which takes ``2 * num_layers * context * d_model`` FLOPs for each token.
    """
    ### BEGIN SOLUTION
    return 6.0 * num_layers * context * d_model * tokens
    ### END SOLUTION


# %% test="training_cost" points=1
check.close(
    training_flops(175e9, 300e9) / 1e23,
    3.15,
    because="GPT-3: 6 FLOPs for each parameter and token, 2 forward and 4 backward.",
)
check.close(
    attention_flops(1, 2, 3, 5),
    180.0,
    because="Forward 2·1·3·2 = 12 for each token, three times that in training, for 5 tokens.",
)
check.raises(
    ValueError,
    training_flops,
    1e9,
    -1,
    mentions="tokens",
    because="A negative number of tokens is bad input: say tokens.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs

rng = inputs("training_cost")
for _ in range(3):
    n, d = (1 + 50 * torch.rand(2, generator=rng, dtype=torch.float64)).tolist()
    check.close(
        training_flops(n, d),
        6 * n * d,
        because="Training takes about 6·N·D FLOPs, forward and backward.",
    )
    layers, width, context, tokens = torch.randint(2, 20, (4,), generator=rng).tolist()
    check.close(
        attention_flops(layers, width, context, tokens),
        6 * layers * width * context * tokens,
        because="In training: 3 · 2·num_layers·context·d_model for each token.",
    )
check.close(training_flops(0, 7), 0.0, because="No parameters, no FLOPs.")
check.close(training_flops(7, 0), 0.0, because="No tokens, no FLOPs.")
for params in (-2, -0.5):
    check.raises(ValueError, training_flops, params, 5, mentions="params", because="Say params.")
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · Fit a power law
#
# A power law is a straight line if both axes are logarithmic:
#
# $$y = a\,x^{-\alpha} \quad\Longleftrightarrow\quad \ln y = \ln a - \alpha \ln x.$$
#
# So take logarithms and draw the best line, that with the smallest sum of squared residuals. With
# $u = \ln x$, $v = \ln y$ and their means $\bar u$, $\bar v$:
#
# $$\text{slope} = \frac{\sum_i (u_i - \bar u)(v_i - \bar v)}{\sum_i (u_i - \bar u)^2}, \qquad
# \ln a = \bar v - \text{slope} \cdot \bar u, \qquad \alpha = -\text{slope}.$$
#
# Fitting $y$ itself instead of $\ln y$ would count an error of 1 % in the largest losses more than one of 1 % in
# the smallest, and it is the small end from which one wants to look further.
#
# Text has an entropy: no model can predict it without a loss. So a power law that goes to 0 cannot hold for ever, and
# Hoffmann et al. (2022), like Henighan et al. (2020) before them, add an *irreducible* loss, $L(\infty)$:
#
# $$y = L_\infty + a\,x^{-\alpha} \quad\Longleftrightarrow\quad \ln(y - L_\infty) = \ln a - \alpha \ln x.$$
#
# If we knew $L_\infty$, we would subtract it and draw the line as before. We do not, so we try: each candidate $f$
# with $0 \le f < \min_i y_i$ gives a best line through $\ln(y_i - f)$ and a sum of squared residuals, and the
# candidate with the smallest sum is $L_\infty$. One number is left to search for. A fine grid finds where it is; a
# finer grid around the best candidate finds it better; and so on.
#
# (Hoffmann et al. compare logarithms of the loss itself and use a Huber loss, which listens less to outliers. For
# points without noise both give the same answer.)


# %%
class PowerLaw(NamedTuple):
    """``irreducible + coefficient * x ** -exponent``."""

    coefficient: float
    exponent: float
    irreducible: float = 0.0

    def at(self, x: Tensor) -> Tensor:
        """What the law says at ``x``."""
        return self.irreducible + self.coefficient * x**-self.exponent


# %% solution="power_law"
def fit_power_law(
    x: Float[Tensor, "points"], y: Float[Tensor, "points"], irreducible: bool = False
) -> PowerLaw:
    """The power law through points, by least squares in log space.

    Without ``irreducible``: the line through ``(ln x, ln y)`` with the smallest sum of squared residuals in
    ``ln y``, and an irreducible part of 0. With it: the same for ``(ln x, ln(y - f))``, where ``f`` is that number
    from 0 to the smallest ``y`` (excluded) for which this smallest sum is smallest.

    Args:
        x: sizes, all positive, in any order.
        y: losses, all positive.

    Returns:
        ``coefficient`` and ``exponent`` (positive for a loss that falls), and ``irreducible``, which is ``f``;
        all to at least four digits.

    Raises:
        ValueError: ``x`` and ``y`` are not of one shape ``(points,)`` (the message says ``shape``); a number is
            not positive (it says ``positive``); or fewer than two different ``x``, with ``irreducible`` fewer
            than three (it says ``points``).
    """
    ### BEGIN SOLUTION
    if x.dim() != 1 or x.shape != y.shape:
        raise ValueError(f"x and y must be of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    if not ((x > 0).all() and (y > 0).all()):
        raise ValueError("x and y must be positive")
    if len(x.unique()) < (3 if irreducible else 2):
        raise ValueError(f"too few different points: {x.tolist()}")
    x, y = x.double(), y.double()
    u = x.log() - x.log().mean()

    def lines(floors: Float[Tensor, "floors"]) -> tuple[Tensor, Tensor, Tensor]:
        """For each floor the best line through ln(y - floor): its squared residuals, slope and mean."""
        v = (y - floors[:, None]).log()  # (floors, points)
        mean = v.mean(dim=1)
        slope = v @ u / (u @ u)
        residuals = v - mean[:, None] - slope[:, None] * u
        return residuals.square().sum(dim=1), slope, mean

    floors = x.new_zeros(1)
    if irreducible:
        # Evenly in ln(y.min() - floor): candidates just below the smallest loss are tried too.
        low, high = 0.0, 14.0
        for _ in range(6):
            nearness = torch.linspace(low, high, 100, dtype=y.dtype, device=y.device)
            floors = -y.min() * torch.expm1(-nearness)
            best = lines(floors)[0].argmin()
            step = nearness.diff()[0]
            low, high = max(0.0, (nearness[best] - step).item()), (nearness[best] + step).item()
        floors = floors[best : best + 1]
    _, slope, mean = lines(floors)
    coefficient = (mean - slope * x.log().mean()).exp()
    return PowerLaw(coefficient.item(), -slope.item(), floors.item())
    ### END SOLUTION


# %% [markdown]
# Three points of $3\,x^{-1/2}$, and the same three lifted by 1.

# %% test="fit_line" points=2
law = fit_power_law(torch.tensor([1.0, 4.0, 16.0]), torch.tensor([3.0, 1.5, 0.75]))
check.that(
    all(isinstance(number, float) for number in law),
    "A PowerLaw holds Python's floats, and yours holds something else: .item() makes one of a tensor.",
)
check.close(
    [law.coefficient, law.exponent, law.irreducible],
    [3.0, 0.5, 0.0],
    rtol=1e-4,
    atol=1e-4,
    because="Each time x is four times as large y is halved: exponent 1/2. The coefficient is y at x = 1.",
)
# These four lie on no line: ln y is 0, 1, 0, 1 at ln x = 0, 1, 2, 3. Slope 1/5, mean 1/2 at ln x = 3/2.
law = fit_power_law(
    torch.tensor([0.0, 1.0, 2.0, 3.0]).exp(), torch.tensor([0.0, 1.0, 0.0, 1.0]).exp()
)
check.close(
    [law.coefficient, law.exponent],
    [math.exp(0.2), -0.2],
    rtol=1e-4,
    atol=1e-4,
    because="Least squares of ln y on ln x; the exponent is minus the slope, the coefficient e to the intercept.",
)
check.raises(
    ValueError,
    fit_power_law,
    torch.tensor([1.0, 2.0]),
    torch.tensor([1.0, -2.0]),
    mentions="positive",
    because="A negative loss has no logarithm: say so, and say positive.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "scaling")
rng = inputs("fit_line")
cases = []
for points, noise in [(2, 0.0), (3, 0.0), (7, 0.3), (20, 0.3), (5, 1.0)]:
    a, alpha = (0.1 + 3 * torch.rand(2, generator=rng, dtype=torch.float64)).tolist()
    log_x = 6 * torch.rand(points, generator=rng, dtype=torch.float64) + 2
    log_y = math.log(a) - alpha * log_x + noise * torch.randn(points, generator=rng).double()
    cases.append((log_x.exp().to(device), log_y.exp().to(device)))
# Some x twice; a transposed view; whole numbers as large as a model's; a law that rises.
cases.append((cases[2][0].repeat(2), torch.cat([cases[2][1], 2 * cases[2][1].flip(0)])))
cases.append(tuple(torch.stack(cases[3], dim=1).unbind(dim=1)))
cases.append((1e9 * cases[3][0], cases[3][1]))
cases.append((cases[3][0], 1 / cases[3][1]))
for (x, y), law in zip(cases, each(fit_power_law, cases), strict=True):
    right = theirs.fit_power_law(x, y)
    check.close(
        law.exponent,
        right.exponent,
        rtol=1e-4,
        atol=1e-5,
        because="The exponent is minus the slope of the least-squares line through (ln x, ln y), all points counted "
        "alike.",
    )
    check.close(
        math.log(max(law.coefficient, 1e-300)),
        math.log(right.coefficient),
        rtol=1e-4,
        atol=1e-4,
        because="The coefficient is e to the intercept: the mean of ln y minus slope times the mean of ln x.",
    )
    check.close(law.irreducible, 0.0, because="Without irreducible nothing is subtracted.")
x, y = cases[2]
was = x.clone(), y.clone()
fit_power_law(x, y)
fit_power_law(x, y, True)
check.close(
    torch.stack([x, y]), torch.stack(was), because="The function changed its own arguments."
)
one = torch.ones(3, dtype=torch.float64, device=device)
for bad_x, bad_y, says in [
    (x[:3], y[:4], "shape"),
    (x[:3], y[:1], "shape"),
    (x[:3, None], y[:3, None], "shape"),
    (-x, y, "positive"),
    (x, torch.cat([y[:-1], 0 * y[:1]]), "positive"),
    (torch.cat([x[:-1], 0 * x[:1]]), y, "positive"),
    (x[:1], y[:1], "points"),
    (one, y[:3], "points"),
]:
    check.raises(
        ValueError,
        fit_power_law,
        bad_x,
        bad_y,
        mentions=says,
        because=f"Points through which no such line can be drawn are bad input: say {says}.",
    )
### END HIDDEN TESTS

# %% test="fit_irreducible" points=4
sizes = torch.tensor([1.0, 4.0, 16.0, 64.0], dtype=torch.float64)
lifted = 1 + 3 * sizes**-0.5
law = fit_power_law(sizes, lifted, irreducible=True)
check.close(
    [law.coefficient, law.exponent, law.irreducible],
    [3.0, 0.5, 1.0],
    rtol=1e-3,
    atol=1e-3,
    because="With 1 taken off, the points are those of 3·x^(-1/2): search for the floor that leaves the straightest "
    "line.",
)
check.close(
    fit_power_law(sizes, lifted - 1, irreducible=True).irreducible,
    0.0,
    rtol=0.0,
    atol=1e-3,
    because="Where the points lie on a line already, nothing is taken off: 0 is a candidate too.",
)
check.that(
    fit_power_law(sizes, lifted).exponent < 0.35,
    "Without irreducible a floor in the data makes the exponent look smaller; here it should be about 0.29.",
)
check.raises(
    ValueError,
    fit_power_law,
    sizes[:2],
    lifted[:2],
    True,
    mentions="points",
    because="Two points lie on a line for every floor: say points.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "scaling")
rng = inputs("fit_irreducible")
planted = []
for span in (2.0, 3.0, 4.0, 4.0):
    a, alpha, floor = torch.rand(3, generator=rng, dtype=torch.float64).tolist()
    log_x = torch.linspace(math.log(50), math.log(50) + span, 8, dtype=torch.float64)
    log_x = log_x[torch.randperm(8, generator=rng)]
    alpha, floor = 0.25 + 0.25 * alpha, 0.3 + 3 * floor
    # The smallest model's loss is between 1.4 and 3.9 times the floor, the largest one's above 1.05 times.
    a = floor * (0.4 + 2.5 * a) * 50**alpha
    planted.append(((log_x.exp(), floor + a * (-alpha * log_x).exp(), True), (a, alpha, floor)))
laws = each(fit_power_law, [(x.to(device), y.to(device), f) for (x, y, f), _ in planted])
for law, ((x, y, _), (a, alpha, floor)) in zip(laws, planted, strict=True):
    check.close(
        [law.irreducible, law.exponent, math.log(max(law.coefficient, 1e-300))],
        [floor, alpha, math.log(a)],
        rtol=2e-3,
        atol=2e-3,
        because="A law was planted, with an irreducible part and without noise, and not found again: search finely "
        "for the floor, between 0 and the smallest y, and give the line that belongs to it.",
    )
    check.close(
        law.irreducible + law.coefficient * x**-law.exponent,
        y,
        rtol=1e-3,
        atol=1e-3,
        because="The three numbers do not belong together: coefficient and exponent are those of the line through "
        "ln(y - irreducible).",
    )


def squares(law: tuple, x: Tensor, y: Tensor) -> float:
    """The squared residuals of a law in ln(y - irreducible)."""
    v = (y - law.irreducible).log()
    return float((v - math.log(law.coefficient) + law.exponent * x.log()).square().sum())


noisy = []
for (x, y, _), (_, _, floor) in planted:
    noise = torch.randn(8, generator=rng, dtype=torch.float64)
    noisy.append((x.to(device), (floor + (y - floor) * (0.1 * noise).exp()).to(device), True))
# A line without a floor, points that bend the other way, and three points.
x, y, _ = noisy[0]
noisy += [
    (x, 5 * x**-0.4, True),
    (x, 2 * x**-0.2 - 0.4 * x.max() ** -0.2, True),
    (x[:3], 0.5 + 3 * x[:3] ** -0.3, True),
]
for case, law in zip(noisy, each(fit_power_law, noisy), strict=True):
    right = theirs.fit_power_law(*case)
    check.that(
        law.coefficient > 0 and 0 <= law.irreducible < float(case[1].min()),
        "The irreducible part must lie between 0 and the smallest y, and the coefficient must be positive.",
    )
    check.that(
        squares(law, *case[:2]) <= squares(right, *case[:2]) * 1.01 + 1e-5,
        "There is a floor, with its line, that leaves smaller squared residuals in ln(y - floor): search the whole "
        "range, then more finely around the best candidate.",
    )
# Units: losses in bits instead of nats, sizes in thousands.
x, y, _ = noisy[2]
law, scaled = fit_power_law(x, y, True), fit_power_law(x / 1000, y / math.log(2), True)
check.close(
    [scaled.exponent, scaled.irreducible],
    [law.exponent, law.irreducible / math.log(2)],
    rtol=2e-3,
    atol=2e-3,
    because="The exponent must not depend on the units of size and loss, and the floor must follow those of the loss.",
)
check.raises(
    ValueError,
    fit_power_law,
    x[[0, 1, 0, 1]],
    y[:4],
    True,
    mentions="points",
    because="Two different sizes, each twice, are two: say points.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · The best use of a budget
#
# With twice the computation, is it better to double the model or the text? Kaplan et al. (2020) put most of it into the
# model, $N_{\text{opt}} \propto C^{0.73}$. GPT-3 followed: 175 billion parameters, 300 billion tokens. Hoffmann et al.
# (2022), known by their model Chinchilla, let both vary and fitted
#
# $$L(N, D) = E + \frac{A}{N^\alpha} + \frac{B}{D^\beta}:$$
#
# what no model can avoid, what a model of this size cannot express, and what this much text cannot teach. Under
# $C = 6ND$ the tokens are $D = C/(6N)$, so we minimise over $N$ alone. Set the derivative to zero:
#
# $$-\alpha A N^{-\alpha - 1} + \beta B \Big(\frac{6}{C}\Big)^{\beta} N^{\beta - 1} = 0
# \quad\Longrightarrow\quad N^{\alpha + \beta} = \frac{\alpha A}{\beta B}\Big(\frac{C}{6}\Big)^{\beta},$$
#
# and with $G = \big(\frac{\alpha A}{\beta B}\big)^{1/(\alpha + \beta)}$ (their Eq. 4)
#
# $$N_{\text{opt}} = G \Big(\frac{C}{6}\Big)^{a}, \qquad D_{\text{opt}} = \frac{1}{G} \Big(\frac{C}{6}\Big)^{b},
# \qquad a = \frac{\beta}{\alpha + \beta}, \quad b = \frac{\alpha}{\alpha + \beta}.$$
#
# Mind the exponents: $a$, for the *model*, has $\beta$ on top. Where more text helps fast ($\beta$ large) one needs
# little of it, and the rest of the budget goes into the model. Since $a + b = 1$, $6\,N_{\text{opt}} D_{\text{opt}} =
# C$.
#
# At the optimum $\alpha A N^{-\alpha} = \beta B D^{-\beta}$: a percent more parameters and a percent more tokens would
# help equally.
#
# If $\alpha$ and $\beta$ are near each other, both grow as about $\sqrt C$. From this and two other methods Hoffmann
# et al. concluded that model and text should grow in about equal steps, and trained 70 billion parameters on 1.4
# trillion tokens, 20 for each parameter. The constants of their fit are another matter: Besiroglu et al. (2024) fitted
# the points of their figure again and found others, which agree better with Chinchilla's own 20 to 1.


# %%
class LossLaw(NamedTuple):
    """``E + A / N ** alpha + B / D ** beta``, in nats for each token."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float


class Allocation(NamedTuple):
    """A model of ``params`` parameters, trained on ``tokens`` tokens."""

    params: float
    tokens: float


HOFFMANN = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # Hoffmann et al. (2022)
BESIROGLU = LossLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)  # 2024


# %% solution="chinchilla"
def predicted_loss(law: LossLaw, params: float, tokens: float) -> float:
    """The loss, in nats for each token, that ``law`` predicts (Hoffmann et al. 2022)."""
    ### BEGIN SOLUTION
    return law.E + law.A / params**law.alpha + law.B / tokens**law.beta
    ### END SOLUTION


def chinchilla_optimal(law: LossLaw, flops: float) -> Allocation:
    """Parameters and tokens with the smallest predicted loss among all with ``6 N D = flops`` (their Eq. 4).

    Both are real numbers, not rounded, to at least four digits.

    Raises:
        ValueError: ``flops`` is not positive (the message says ``flops``).
    """
    ### BEGIN SOLUTION
    if flops <= 0:
        raise ValueError(f"flops must be positive, got {flops}")
    both = law.alpha + law.beta
    balance = (law.alpha * law.A / (law.beta * law.B)) ** (1 / both)  # G
    return Allocation(
        params=balance * (flops / 6) ** (law.beta / both),
        tokens=(flops / 6) ** (law.alpha / both) / balance,
    )
    ### END SOLUTION


# %% [markdown]
# By hand: with $A = B$ and $\alpha = \beta$ the two are alike, $N = D = \sqrt{C/6}$. With $\alpha = 1$, $\beta = 2$,
# $A = 54$, $B = 1$ and $C = 6 \cdot 8$: $N^3 = 27 \cdot 8^2$, so $N = 12$ and $D = 2/3$.

# %% test="compute_optimal" points=4
check.close(
    predicted_loss(LossLaw(E=1.0, A=4.0, B=9.0, alpha=0.5, beta=1.0), params=16.0, tokens=3.0),
    1 + 1 + 3,
    because="E + A/N^α + B/D^β: 1 + 4/4 + 9/3.",
)
best = chinchilla_optimal(LossLaw(E=1.7, A=5.0, B=5.0, alpha=0.3, beta=0.3), flops=600.0)
check.close(
    [best.params, best.tokens],
    [10.0, 10.0],
    rtol=1e-3,
    atol=1e-3,
    because="With both sides alike N = D = √(C/6): is the budget divided by 6?",
)
best = chinchilla_optimal(LossLaw(E=0.0, A=54.0, B=1.0, alpha=1.0, beta=2.0), flops=48.0)
check.close(
    [best.params, best.tokens],
    [12.0, 2 / 3],
    rtol=1e-3,
    atol=1e-3,
    because="N = G·(C/6)^(β/(α+β)) and D = (C/6)^(α/(α+β))/G with G = (αA/βB)^(1/(α+β)).",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "scaling")
rng = inputs("compute_optimal")
laws = [HOFFMANN, BESIROGLU]
for _ in range(4):
    E, A, B, alpha, beta = torch.rand(5, generator=rng, dtype=torch.float64).tolist()
    laws.append(LossLaw(E + 1, 50 + 900 * A, 50 + 900 * B, 0.1 + alpha, 1.3 - beta))
cases = [(law, flops) for law in laws for flops in (1e6, 5.88e23)]
for (law, flops), best in zip(cases, each(chinchilla_optimal, cases), strict=True):
    right = theirs.chinchilla_optimal(law, flops)
    check.close(
        [math.log(max(best.params, 1e-300)), math.log(max(best.tokens, 1e-300))],
        [math.log(right.params), math.log(right.tokens)],
        rtol=1e-4,
        atol=1e-4,
        because="Among all N and D with 6ND = flops another pair has the smaller loss: N = G·(C/6)^(β/(α+β)), "
        "D = (C/6)^(α/(α+β))/G.",
    )
    check.close(
        6 * best.params * best.tokens / flops,
        1.0,
        rtol=1e-3,
        atol=0.0,
        because="The budget must be spent, and not more: 6·N·D = flops.",
    )
small = chinchilla_optimal(LossLaw(E=0.0, A=1.0, B=1.0, alpha=0.5, beta=0.5), 0.5)
check.close(
    [small.params, small.tokens],
    [(0.5 / 6) ** 0.5] * 2,
    rtol=1e-4,
    because="A budget below 1 is small, but it is a budget.",
)
places = [(law, *theirs.chinchilla_optimal(law, flops)) for law, flops in cases]
places += [(law, n, 3 * d) for law, n, d in places[:4]]
for place, loss in zip(places, each(predicted_loss, places), strict=True):
    check.close(loss, theirs.predicted_loss(*place), because="The loss is E + A/N^α + B/D^β.")
# E is what no budget changes, so it cannot change how the budget is spent.
law = laws[-1]
check.close(
    chinchilla_optimal(law._replace(E=7.0), 1e9).params,
    chinchilla_optimal(law, 1e9).params,
    because="The irreducible loss must not matter for the best size.",
)
for flops in (0.0, -1e20):
    check.raises(
        ValueError,
        chinchilla_optimal,
        HOFFMANN,
        flops,
        mentions="flops",
        because="A budget that is not positive buys nothing: say flops.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · Emergence, and its critique
#
# Wei et al. (2022) call an ability *emergent* if it is "not present in smaller models but is present in larger
# models": plotted against size, a score stays near chance and then rises. Schaeffer et al. (2023) answered that in
# many of these plots it is the *metric* that bends. Suppose the probability $p$ of a right token grows smoothly with
# size. A task that counts only if all $L$ tokens of the answer are right succeeds with a probability of about
#
# $$P(\text{exact match}) \approx p^{L},$$
#
# if the tokens were independent. At $p = 0.5$ and $L = 10$ that is one in a thousand; at $p = 0.9$ it is 0.35. The
# same models, on the same answers, look smooth by one metric and sudden by the other. (The argument says nothing on
# whether an ability that is needed in one piece is of use before it is there in one piece.)
#
# You build both metrics. Some positions do not count, marked by a target of −100 as in BERT's loss.


# %% solution="metrics"
def token_accuracy(
    predictions: Int[Tensor, "batch length"],
    targets: Int[Tensor, "batch length"],
    ignore_index: int = -100,
) -> float:
    """The share of right tokens among all targets of all answers that are not ``ignore_index``.

    Raises:
        ValueError: the shapes differ (the message says ``shape``), or no target counts (it says ``targets``).
    """
    ### BEGIN SOLUTION
    if predictions.shape != targets.shape:
        raise ValueError(f"shapes differ: {tuple(predictions.shape)}, {tuple(targets.shape)}")
    counts = targets != ignore_index
    if not counts.any():
        raise ValueError("no targets count")
    return (predictions == targets)[counts].double().mean().item()
    ### END SOLUTION


def exact_match(
    predictions: Int[Tensor, "batch length"],
    targets: Int[Tensor, "batch length"],
    ignore_index: int = -100,
) -> float:
    """The share of answers with every counted token right; an answer in which no target counts is left out.

    Raises:
        ValueError: as ``token_accuracy``.
    """
    ### BEGIN SOLUTION
    if predictions.shape != targets.shape:
        raise ValueError(f"shapes differ: {tuple(predictions.shape)}, {tuple(targets.shape)}")
    counts = targets != ignore_index
    if not counts.any():
        raise ValueError("no targets count")
    right = ((predictions == targets) | ~counts).all(dim=1)
    return right[counts.any(dim=1)].double().mean().item()
    ### END SOLUTION


def expected_exact_match(accuracy: Float[Tensor, "..."], length: int) -> Float[Tensor, "..."]:
    """The exact match of answers of ``length`` tokens which are right independently, each with ``accuracy``.

    Raises:
        ValueError: ``length`` is negative (the message says ``length``).
    """
    ### BEGIN SOLUTION
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")
    return accuracy**length
    ### END SOLUTION


# %% test="metrics_by_hand" points=3
said = torch.tensor([[1, 2, 3], [4, 5, 6]])
answer = torch.tensor([[1, 2, 3], [4, 5, 7]])
check.close(token_accuracy(said, answer), 5 / 6, because="Five of six tokens are right.")
check.close(exact_match(said, answer), 1 / 2, because="One of two answers is right in every token.")
check.that(
    isinstance(token_accuracy(said, answer), float)
    and isinstance(exact_match(said, answer), float),
    "Both metrics return a float of Python, and yours something else: .item() makes one of a tensor.",
)
answer = torch.tensor([[1, 9, 9], [4, 5, -100], [-100, -100, -100]])
said = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
check.close(
    token_accuracy(said, answer),
    3 / 5,
    because="Positions whose target is -100 do not count, neither above nor below, and each token counts once, in "
    "whichever answer it stands.",
)
check.close(
    exact_match(said, answer),
    1 / 2,
    because="The second answer is right in all that counts. The third has nothing that counts and is left out.",
)
check.close(
    expected_exact_match(torch.tensor([0.5, 0.9]), 10),
    [0.5**10, 0.9**10],
    because="Ten tokens, all right, independently: p to the power of 10.",
)
check.raises(
    ValueError,
    exact_match,
    said,
    answer[:2],
    mentions="shape",
    because="Three predictions for two answers: say so, and say shape.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "scaling")
rng = inputs("metrics_by_hand")
cases = []
for batch, length, ignore_index in [
    (1, 1, -100),
    (5, 1, -100),
    (6, 4, -100),
    (40, 3, 0),
    (9, 7, 3),
]:
    targets = 4 + torch.randint(6, (batch, length), generator=rng)
    wrong = torch.rand(batch, length, generator=rng) < 0.2
    predictions = torch.where(wrong, targets + 1, targets)
    # Answers of different lengths, at least one of them with nothing that counts.
    lengths = torch.randint(length + 1, (batch, 1), generator=rng)
    lengths[0], lengths[-1] = 0, length
    targets[torch.arange(length) >= lengths] = ignore_index
    cases.append((predictions.to(device), targets.to(device), ignore_index))
predictions, targets, _ = cases[2]
cases.append((predictions, targets))
cases.append((torch.where(targets == -100, -100, predictions), targets))
cases.append((predictions + 20, targets))  # nothing right
cases.append(
    (predictions.T, torch.where(targets == -100, 5, targets).T, -1)
)  # all count, transposed
for metric, right, what in [
    (token_accuracy, theirs.token_accuracy, "right tokens among all counted tokens of all answers"),
    (exact_match, theirs.exact_match, "answers right in every counted token, among those with any"),
]:
    for case, got in zip(cases, each(metric, cases), strict=True):
        check.close(
            got,
            right(*case),
            because=f"The share of {what}: what is ignored may be predicted rightly or wrongly and counts nowhere.",
        )
    for bad, says in [
        ((predictions, targets[:, :1]), "shape"),
        ((predictions[:1], targets), "shape"),
        ((predictions, torch.full_like(targets, -100)), "targets"),
        ((predictions, torch.full_like(targets, 5), 5), "targets"),
    ]:
        check.raises(
            ValueError,
            metric,
            *bad,
            mentions=says,
            because=f"Shapes that differ, or nothing to count, are bad input for both metrics: say {says}.",
        )
p = torch.rand(3, 4, generator=rng, dtype=torch.float64).to(device)
for length in (0, 1, 2, 7):
    check.close(
        expected_exact_match(p, length),
        p**length,
        because="Each of the tokens must be right: the product of their probabilities.",
    )
check.raises(
    ValueError,
    expected_exact_match,
    p,
    -1,
    mentions="length",
    because="An answer of negative length is bad input: say length.",
)
### END HIDDEN TESTS

# %% [markdown] written="scaling_why" points=2
# **In your own words.** A newspaper writes: "The scaling law says that making models larger makes them more
# intelligent, and at a certain size new abilities appear suddenly." Correct both halves of the sentence: say what a
# scaling law relates, under which conditions, and what it does not speak about; and say what would have to be shown,
# beyond a plot of exact match against size, before you believed in a sudden ability. (5 to 9 sentences.)

# %% [markdown]
# ## Experiment: a family of models
#
# Seven Transformers on the plays, from about 2,000 to 100,000 parameters, all of two blocks, each trained once on the
# same 800,000 characters in the same order. Then your code fits the loss on plays that none of them has read. It takes
# about two minutes; on a GPU a larger family runs on more text.
#
# Before you run it: which of the two fits can have the larger exponent, the one with or the one without an irreducible
# loss? And what happens to the points if the embeddings are counted as well?

# %% experiment=true
import matplotlib.pyplot as plt
import torch.nn.functional as F

from lab import data, figures, models, training

if device.type == "cuda":
    WIDTHS, LAYERS, HEADS = (16, 24, 32, 48, 64, 96, 128, 192), 4, 4
    LENGTH, BATCH, STEPS = 128, 128, 2000
else:
    WIDTHS, LAYERS, HEADS = (8, 12, 16, 24, 32, 48, 64), 2, 2
    LENGTH, BATCH, STEPS = 64, 16, 800
SEED = 0

train_text, held_out = data.text("train"), data.text("validation")
vocabulary = sorted(set(train_text) | set(held_out))
ids = {character: i for i, character in enumerate(vocabulary)}
train_ids, held_out_ids = (
    torch.tensor([ids[c] for c in text], device=device) for text in (train_text, held_out)
)
windows, answers = training.text_batches(held_out_ids, 1024, LENGTH)(lab.generator("held out"))
answers = answers.cpu()


def train(width: int) -> tuple[models.CausalTransformer, list[float]]:
    """A model of this width, and its training losses."""
    model = models.CausalTransformer(
        len(vocabulary), width, HEADS, LAYERS, LENGTH, generator=lab.generator(f"{width} {SEED}")
    ).to(device)
    losses = training.train(
        model,
        training.text_batches(train_ids, BATCH, LENGTH),
        training.token_loss,
        STEPS,
        lr=6e-3,
        generator=lab.generator(f"family {SEED}"),
        label=f"width {width}",
    )
    return model, losses


@torch.no_grad()
def ask(model: models.CausalTransformer) -> tuple[float, Tensor]:
    """The loss on plays it has not read, and the character it thinks likeliest at each place."""
    logits = torch.cat([model(part).cpu() for part in windows.split(64)])
    loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
    return loss.item(), logits.argmax(dim=-1)


family, curves = zip(*(train(width) for width in WIDTHS), strict=True)
counts = [transformer_params(LAYERS, width, len(vocabulary), LENGTH) for width in WIDTHS]
for model, count in zip(family, counts, strict=True):
    check.equal(count.total, sum(p.numel() for p in model.parameters()))
losses, predictions = zip(*(ask(model) for model in family), strict=True)
losses = torch.tensor(losses, dtype=torch.float64)
N, total = (torch.tensor(numbers, dtype=torch.float64) for numbers in zip(*counts, strict=True))

laws = {
    name: fit_power_law(N, losses, floor) for name, floor in (("without", False), ("with", True))
}
# How firm is an exponent? Leave each model out once.
spread = {}
for name in laws:
    keep = [[j for j in range(len(N)) if j != i] for i in range(len(N))]
    spread[name] = sorted(fit_power_law(N[k], losses[k], name == "with").exponent for k in keep)
    print(
        f"{name} irreducible loss: exponent {laws[name].exponent:.3f}, with one model left out "
        f"{spread[name][0]:.3f} to {spread[name][-1]:.3f}; irreducible {laws[name].irreducible:.2f}"
    )

figures.use_style()
fig, (by_size, by_compute) = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
line = torch.logspace(math.log10(N[0]) - 0.1, math.log10(total[-1]) + 0.1, 100).double()
by_size.loglog(N, losses, "o", label="without embeddings")
by_size.loglog(total, losses, "x", color="grey", label="with embeddings")
for (name, law), style in zip(laws.items(), ("--", "-"), strict=True):
    label = f"fit {name} $L_\\infty$: exponent {law.exponent:.3f}"
    by_size.loglog(line, law.at(line), style, label=label)
by_size.set(
    xlabel="parameters $N$", ylabel="loss in nats for each character", title="held out, at the end"
)
smooth = STEPS // 20
for i, (width, curve, count) in enumerate(zip(WIDTHS, curves, counts, strict=True)):
    means = torch.tensor(curve).unfold(0, smooth, smooth).mean(dim=1)
    seen = BATCH * LENGTH * smooth * torch.arange(1, len(means) + 1)
    flops = [training_flops(count.non_embedding, tokens) for tokens in seen.tolist()]
    colour = plt.cm.viridis(0.9 * i / len(WIDTHS))
    by_compute.loglog(flops, means, color=colour, label=f"width {width}")
by_compute.set(xlabel="training FLOPs, $6ND$", title="on the text they train on")
ticks = [2.0, 2.2, 2.5, 3.0, 3.5, 4.0]
by_size.set_yticks(ticks, [f"{tick:.1f}" for tick in ticks])
by_size.minorticks_off()
by_size.legend(fontsize=8)
by_compute.legend(fontsize=8, ncols=2)
figures.show(
    fig,
    alt="Held-out loss by parameters without embeddings: "
    + ", ".join(f"{loss:.3f} at {int(n)}" for n, loss in zip(N, losses, strict=True))
    + f". The fitted exponent is {laws['without'].exponent:.3f} without and {laws['with'].exponent:.3f} with an "
    f"irreducible loss, which is {laws['with'].irreducible:.2f}. Beside it the training losses by computation, one "
    "line for each model, the smaller models to the left.",
)

# %% [markdown]
# Do not compare these exponents with those of Kaplan et al. (0.076 for $N$): their tokens are not characters, their
# text is not these plays, and our models all stop after the same short training, long before their size alone limits
# them. What carries over is the method, and its limits. If the second fit puts $L_\infty$ at 0, that does not mean
# that the plays have no entropy: over less than two decades the points bend too little to tell. See how far the
# exponents move when one model is left out, and change `SEED`.
#
# ## Experiment: an ability that emerges?
#
# The same seven models, the same predictions. One line is the share of characters that they predict right. The others
# are the share of runs of 2 and of 4 characters that are right from beginning to end. Nothing was trained in between.

# %% experiment=true
RUNS = (1, 2, 4)
shares = {
    run: torch.tensor(
        [exact_match(p.reshape(-1, run), answers.reshape(-1, run)) for p in predictions]
    )
    for run in RUNS
}
accuracy = torch.tensor([token_accuracy(p, answers) for p in predictions])

fig, (measured, relative) = plt.subplots(1, 2, figsize=(9, 3.6))
for (run, share), marker in zip(shares.items(), "os^", strict=True):
    label = "one character" if run == 1 else f"{run} in a row"
    (drawn,) = measured.semilogx(N, share, f"{marker}-", label=label)
    measured.semilogx(N, expected_exact_match(accuracy, run), ":", color=drawn.get_color())
    relative.semilogx(N, share / share[-1], f"{marker}-")
measured.set(
    xlabel="parameters $N$", ylabel="share that is right", ylim=(0, None), title="dotted: $p^L$"
)
relative.set(
    xlabel="parameters $N$", ylabel="divided by the largest model's", title="each on its own scale"
)
measured.legend(fontsize=8)
figures.show(
    fig,
    alt="Share that is right, from the smallest model to the largest: "
    + "; ".join(
        f"{share[0]:.4f} to {share[-1]:.4f} for {run} in a row, where independent errors would give "
        f"{expected_exact_match(accuracy, run)[0]:.4f} to {expected_exact_match(accuracy, run)[-1]:.4f}"
        for run, share in shares.items()
    )
    + ".",
)

# %% [markdown]
# On the right: asked for runs, the same models improve by a larger factor than asked for single characters, and no
# threshold was crossed in between. The dotted lines are what independent errors would give, a factor larger still. But
# errors are not independent: what a small model gets right stands together, in common words. So $p^L$ says in which
# direction the metric bends the curve, and not by how much. And this is one mechanism, shown on one task. It makes a
# jump of a metric weak evidence for a jump of a model; it does not prove that no ability ever comes suddenly.
