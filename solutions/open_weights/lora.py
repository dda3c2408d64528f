# %% [markdown]
# # LoRA
#
# Whoever has open weights can train them further. But the weights of a large model are many. To train all of them takes
# several times their memory, and leaves a copy as large as the model for every task. *Low-rank adaptation* (LoRA, Hu et
# al. 2021, Microsoft) leaves the weights as they are and trains a small correction beside each matrix, the product of
# two thin ones. LoRA is one method. *Parameter-efficient fine-tuning*, PEFT, is the name of the whole class, and of the
# library of Hugging Face that has this method among others.
#
# **You build** the low-rank update and the best one of its rank, a linear layer that has it and can take it in and give
# it back, the same for a whole model, and adapters that are exchanged while the model stays
# · **Minutes** 90 · **Points** 20 · **Difficulty** ●●○ ·
# **Before this** [Supervised fine-tuning](../alignment/sft.ipynb)
#
# Run a cell with Shift+Enter. Write your answers where it says `YOUR CODE HERE`, then run the tests below them.
# A test that passes is silent; one that fails says what it expected, what came, and which mistake usually does that.
# More tests, on other inputs, run when your notebook is graded.

# %%
import math
from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

import lab
from lab import check

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
# ## 1 · A thin update
#
# Fine-tuning takes a weight matrix $W_0$ to $W_0 + \Delta W$. $W_0$ is $d \times k$: it takes $k$ features to $d$. So
# $\Delta W$ has $dk$ numbers as well, and all of them are trained. Need it be so many? A matrix of *rank* $r$ is a
# product of two thin ones:
#
# $$\Delta W = B A, \qquad B \in \mathbb R^{d \times r},\quad A \in \mathbb R^{r \times k},$$
#
# which have $r(d + k)$ numbers. Of an input $x$ it takes $r$ features, $Ax$, and nothing else of $x$ counts; $B$ says
# what each of them does to the output. Hu et al. suppose that what a model must change for one task is of this kind,
# with a small $r$, and find that it often is.
#
# In GPT-3, $d = k = 12{,}288$. A matrix has 151 million weights; the two thin ones of rank 4 have 98 thousand together.
#
# The product gets a factor:
#
# $$\Delta W = \frac{\alpha}{r}\, B A.$$
#
# $\alpha$ is a constant, chosen once. The division by $r$ is there for whoever tries several ranks. $BA$ is a sum of
# $r$ terms, a column of $B$ times a row of $A$. With the factor it is a mean of them, times $\alpha$, and other
# settings, such as the learning rate, need less tuning when $r$ changes (§4.1). Code that leaves the factor out still
# learns, at another speed. But give it an adapter that was trained with $\alpha = 16$ and $r = 8$, and the correction
# is half of what it should be, without a warning. (Kalajdzievski (2023) argues for $\alpha / \sqrt r$, which `peft` has
# as an option, `use_rslora`. Here it is $\alpha / r$.)
#
# **The best one.** If $\Delta W$ is known, which product of rank $r$ comes closest to it? Every matrix has a *singular
# value decomposition*, $\Delta W = U \Sigma V^\top = \sum_i \sigma_i\, u_i v_i^\top$. The columns $v_i$ of $V$ are
# directions of the input, at right angles to each other, the columns $u_i$ of $U$ directions of the output, and the
# *singular values* $\sigma_1 \ge \sigma_2 \ge \dots \ge 0$ say how much of one becomes how much of the other. Eckart
# and Young (1936): no matrix of rank $r$ is closer to $\Delta W$, in the sum of squared differences, than the first $r$
# terms of that sum. What is lost is $\sum_{i > r} \sigma_i^2$. So
#
# $$\frac{\alpha}{r}\, B A = \sum_{i \le r} \sigma_i\, u_i v_i^\top .$$
#
# How $\sigma_i$, and the factor, are shared between $A$ and $B$ is free. `torch.linalg.svd(x, full_matrices=False)`
# gives $U$, the $\sigma_i$ and $V^\top$, in this order. In the experiment you use it to ask of a full fine-tuning how
# thin it was.


# %% solution="update"
def lora_update(
    lora_A: Float[Tensor, "r in_features"],
    lora_B: Float[Tensor, "out_features r"],
    alpha: float,
) -> Float[Tensor, "out_features in_features"]:
    """ΔW = (α/r)·B·A (Hu et al. 2021, §4.1). Gradients reach both factors.

    Raises:
        ValueError: the two have not the same rank (the message says ``rank``).
    """
    ### BEGIN SOLUTION
    r = lora_A.shape[0]
    if lora_B.shape[1] != r:
        raise ValueError(f"A has rank {r}, B has rank {lora_B.shape[1]}")
    return alpha / r * (lora_B @ lora_A)
    ### END SOLUTION


def factorise(
    update: Float[Tensor, "out_features in_features"], r: int, alpha: float
) -> tuple[Float[Tensor, "r in_features"], Float[Tensor, "out_features r"]]:
    """``(A, B)`` for which (α/r)·B·A is the matrix of rank at most ``r`` that is closest to ``update``.

    Closest in the sum of squared differences (Eckart and Young 1936). Of the many pairs that give this matrix any will
    do. Where ``update`` itself has a smaller rank than ``r``, it is met exactly.

    Raises:
        ValueError: ``r`` is not between 1 and the smaller side of ``update`` (the message says ``rank``), or
            ``alpha`` is not positive (it says ``alpha``).
    """
    ### BEGIN SOLUTION
    if not 1 <= r <= min(update.shape):
        raise ValueError(f"the rank must be from 1 to {min(update.shape)}, got {r}")
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    U, S, Vh = torch.linalg.svd(update, full_matrices=False)
    half = S[:r].sqrt()
    return half[:, None] * Vh[:r], U[:, :r] * half * (r / alpha)
    ### END SOLUTION


# %% test="update_product" points=1
# Rank 1: a column times a row, times α.
check.close(
    lora_update(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[3.0], [-1.0]]), alpha=2.0),
    [[6.0, 12.0, 0.0], [-2.0, -4.0, 0.0]],
    because="α/r is 2. Entry (i, j) is 2·B[i, 0]·A[0, j]: rows belong to outputs, columns to inputs.",
)
# Rank 2: each term counts half as much.
check.close(
    lora_update(
        torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 5.0]]),
        torch.tensor([[3.0, 0.0], [-1.0, 1.0]]),
        alpha=2.0,
    ),
    [[3.0, 6.0, 0.0], [-1.0, -2.0, 5.0]],
    because="α/r is 1: the number of rows of A is r, and the sum of the r terms is divided by it.",
)
check.raises(
    ValueError,
    lora_update,
    torch.zeros(2, 3),
    torch.zeros(4, 3),
    1.0,
    mentions="rank",
    because="An A with 2 rows and a B with 3 columns do not belong together: say rank.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("open_weights", "lora")
rng = inputs("lora_update")
cases = []
for r, n_in, n_out in [(1, 1, 1), (1, 5, 3), (2, 3, 6), (4, 7, 5), (6, 4, 3)]:
    # Not contiguous: the transpose of what is drawn.
    A = torch.randn(n_in, r, generator=rng, dtype=torch.float64).to(device).T
    B = torch.randn(n_out, r, generator=rng, dtype=torch.float64).to(device)
    cases += [(A, B, alpha) for alpha in (1.0, 0.7 * r, 16.0)]
for case, found in zip(cases, each(lora_update, cases), strict=True):
    check.close(
        found,
        theirs.lora_update(*case),
        because="ΔW = (α/r)·B·A, with r the number of rows of A: of shape (out_features, in_features).",
    )
own_A, own_B = (x.detach().clone().requires_grad_() for x in cases[9][:2])
A, B = (x.detach().clone().requires_grad_() for x in cases[9][:2])
pull = torch.randn(5, 7, generator=rng, dtype=torch.float64).to(device)
product = lora_update(own_A, own_B, 3.0)
check.that(product.requires_grad, "No gradient passes through the update: is something detached?")
(product * pull).sum().backward()
(theirs.lora_update(A, B, 3.0) * pull).sum().backward()
for name, own, other in (("A", own_A, A), ("B", own_B, B)):
    check.that(own.grad is not None, f"No gradient reaches {name}.")
    check.close(own.grad, other.grad, because=f"The gradient of {name} is off.")
for shapes in [((2, 3), (3, 1)), ((3, 2), (2, 2)), ((1, 3), (4, 2))]:
    check.raises(
        ValueError,
        lora_update,
        *(torch.ones(shape, device=device) for shape in shapes),
        1.0,
        mentions="rank",
        because="The rows of A and the columns of B are the same r: say rank.",
    )
### END HIDDEN TESTS

# %% test="update_best" points=2
# Singular values 3 and 1, along the axes.
wide = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
A, B = factorise(wide, 1, alpha=2.0)
check.shape(A, (1, 3), because="A is (r, in_features).")
check.shape(B, (2, 1), because="B is (out_features, r).")
check.close(
    2.0 * B @ A,
    [[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    because="Of rank 1 the closest keeps the largest singular value, 3, whole. With the factor: (α/r)·B·A, here 2·B·A.",
)
A, B = factorise(wide, 2, alpha=3.0)
check.close(1.5 * B @ A, wide, because="With rank 2 nothing is lost; α/r is 3/2.")
for r, alpha, says in [(0, 1.0, "rank"), (3, 1.0, "rank"), (1, 0.0, "alpha")]:
    check.raises(
        ValueError,
        factorise,
        wide,
        r,
        alpha,
        mentions=says,
        because="A rank of 0, or above the smaller side, is bad input (say rank), and so is α = 0 (say alpha).",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("open_weights", "lora")
rng = inputs("lora_factorise")
cases = []
for n_out, n_in in [(1, 1), (4, 6), (7, 3), (5, 5)]:
    update = torch.randn(n_in, n_out, generator=rng, dtype=torch.float64).to(device).T
    cases += [(update, r, 0.5 + 1.5 * r) for r in range(1, min(n_out, n_in) + 1)]
# Of rank 2, and of rank 0.
thin = torch.randn(6, 2, generator=rng, dtype=torch.float64) @ torch.randn(
    2, 5, generator=rng, dtype=torch.float64
)
cases += [
    (thin.to(device), 3, 2.0),
    (torch.zeros(3, 4, dtype=torch.float64, device=device), 2, 1.0),
]
for (update, r, alpha), (A, B) in zip(cases, each(factorise, cases), strict=True):
    check.shape(A, (r, update.shape[1]), because="A is (r, in_features), for any r.")
    check.shape(B, (update.shape[0], r), because="B is (out_features, r), for any r.")
    check.close(
        theirs.lora_update(A, B, alpha),
        theirs.lora_update(*theirs.factorise(update, r, alpha), alpha),
        because="(α/r)·B·A must be the sum of the first r terms σ_i·u_i·v_iᵀ: u_i a column of U, v_iᵀ a row of Vᵀ, "
        "each σ_i once, and the factor undone.",
    )
for r in (-1, 0, 4):
    check.raises(
        ValueError,
        factorise,
        cases[-1][0],
        r,
        1.0,
        mentions="rank",
        because="The rank is from 1 to the smaller side: say rank.",
    )
for alpha in (0.0, -2.0, math.nan):
    check.raises(
        ValueError,
        factorise,
        thin.to(device),
        2,
        alpha,
        mentions="alpha",
        because="With an α that is not positive nothing can be scaled back: say alpha.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · A layer with an adapter
#
# Beside the frozen matrix the update is a second way through the layer:
#
# $$h = W_0\, x + b + \frac{\alpha}{r}\, B\,(A\,x).$$
#
# In this order, $A$ first, it costs $r(d + k)$ multiplications for each $x$. $BA$ is never made in training.
#
# **The beginning.** Before the first step the layer should do what it did, $\Delta W = 0$. Then one factor is 0, and
# why not both? Let $g = \partial L / \partial h$. Then
#
# $$\frac{\partial L}{\partial B} = \frac{\alpha}{r}\; g\,(A x)^\top, \qquad
# \frac{\partial L}{\partial A} = \frac{\alpha}{r}\; B^\top g\, x^\top.$$
#
# With $A = 0$ and $B = 0$ both gradients are 0, and stay 0: nothing is ever learnt. With $B = 0$ alone the first step
# moves $B$, and from the second on both move. So $A$ is drawn from a normal distribution and $B$ is 0. The paper does
# not say how wide; here the standard deviation is $1/\sqrt{k}$, so that $Ax$ has components of the size of those of
# $x$. The authors' code, `loralib`, and the library `peft` draw $A$ from a uniform distribution instead (torch's usual
# one for a linear layer, narrower by $\sqrt3$); $B$ is 0 in all of them.
#
# **What is trained.** $A$ and $B$, and nothing else: $W_0$ and $b$ do not require gradients. This is what saves the
# memory. With Adam a trained weight brings a gradient and two running means along; a frozen one brings nothing.
#
# **Dropout**, where it is wanted, falls on what enters $A$, in training only. The way through $W_0$ is left alone.
#
# **Taking it in.** When training is over, $W_0 + \Delta W$ is a matrix as large as $W_0$: put it in its place, and the
# layer costs what it cost before. So LoRA adds no time when the model is used, unlike adapters of other kinds which
# put layers in between. A merged layer must no longer go the second way, or the update counts twice.
#
# **Giving it back.** To use another adapter the base has to come back *as it was*. Subtracting $\Delta W$ does not
# quite do that, for $(w + \delta) - \delta$ is rounded twice. In half precision $(1 + 1000) - 1000$ is 1, and
# $(0.1 + 1000) - 1000$ is 0. And if $A$ and $B$ have changed in the meantime, what is subtracted is not what was added.
# We keep a copy of the weight while it is merged. (`peft` subtracts, which needs no second copy. For one exchange the
# error is small.) Your `lora_update` gives what is to be added.


# %% solution="layer"
class LoRALinear(nn.Module):
    """A linear layer with a low-rank update: ``x`` → W·x + b + (α/r)·B·A·x (Hu et al. 2021, Eq. 3).

    Args:
        r: rank of the update.
        alpha: α.
        dropout: probability that a component of what enters A is dropped in training; what is left is divided by
            the probability of being left, as ``nn.Dropout`` does.
        bias: whether there is a ``bias``; without it the attribute is ``None``.
        generator: a CPU generator that draws ``lora_A``; torch's own if ``None``.

    Attributes:
        weight: (out_features in_features). Frozen: it does not require gradients.
        bias: (out_features). Frozen too.
        lora_A: (r in_features). Normal with mean 0 and standard deviation 1/√in_features at the start.
        lora_B: (out_features r). 0 at the start.

    ``weight`` and ``bias`` are 0 until the pre-trained ones are put there. All four are parameters; the ``state_dict``
    holds them and nothing else, also while the layer is merged.

    Raises:
        ValueError: ``r`` is less than 1 (the message says ``rank``).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int,
        alpha: float,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        if r < 1:
            raise ValueError(f"the rank must be at least 1, got {r}")
        self.alpha = alpha
        self.scaling = alpha / r
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.zeros(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None
        normal = torch.randn(r, in_features, generator=generator)
        self.lora_A = nn.Parameter(normal / math.sqrt(in_features))
        self.lora_B = nn.Parameter(torch.zeros(out_features, r))
        self.kept: Tensor | None = None  # the weight as it was, while the layer is merged
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... out_features"]:
        """The layer's output; merged, that of ``weight`` and ``bias`` alone."""
        ### BEGIN SOLUTION
        h = F.linear(x, self.weight, self.bias)
        if self.kept is not None:
            return h
        return h + self.scaling * (self.dropout(x) @ self.lora_A.T @ self.lora_B.T)
        ### END SOLUTION

    def merge(self) -> None:
        """Adds the update to ``weight``, and from now on the layer is a plain linear layer. A and B stay as they are.

        Merging a merged layer changes nothing.
        """
        ### BEGIN SOLUTION
        if self.kept is None:
            self.kept = self.weight.data.clone()
            with torch.no_grad():
                self.weight += lora_update(self.lora_A, self.lora_B, self.alpha)
        ### END SOLUTION

    def unmerge(self) -> None:
        """Undoes ``merge``: ``weight`` is, bit for bit, what it was before, also where A or B have changed since.

        A layer that is not merged stays as it is.
        """
        ### BEGIN SOLUTION
        if self.kept is not None:
            with torch.no_grad():
                self.weight.copy_(self.kept)
            self.kept = None
        ### END SOLUTION


# %% test="layer_start" points=2
layer = LoRALinear(100, 40, r=20, alpha=1.0, generator=lab.generator("start"))
check.equal(
    {name: tuple(value.shape) for name, value in layer.state_dict().items()},
    {"weight": (40, 100), "bias": (40,), "lora_A": (20, 100), "lora_B": (40, 20)},
    because="The parameters are weight (out in), bias (out), lora_A (r in) and lora_B (out r), in any order.",
)
check.close(
    layer.lora_B, torch.zeros(40, 20), because="B is 0: the layer starts where the base is."
)
check.that(
    0.09 < layer.lora_A.std().item() < 0.11,
    "A is normal with standard deviation 1/√in_features, here 0.1. If A is 0 as well, nothing is ever learnt.",
)
check.equal(
    [layer.weight.requires_grad, layer.bias.requires_grad],
    [False, False],
    because="The base is frozen: weight and bias do not require gradients.",
)
check.equal(
    [layer.lora_A.requires_grad, layer.lora_B.requires_grad],
    [True, True],
    because="A and B are trained.",
)
check.that(LoRALinear(3, 2, 1, 1.0, bias=False).bias is None, "Without bias, bias is None.")
check.raises(
    ValueError, LoRALinear, 3, 2, 0, 1.0, mentions="rank", because="There is no rank 0: say rank."
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs

rng = inputs("lora_start")
for n_in, n_out, r in [(3, 5, 2), (5, 1, 1), (2, 3, 4)]:
    for bias in (True, False):
        layer = LoRALinear(n_in, n_out, r, 8.0, bias=bias)
        names = {"weight": (n_out, n_in), "lora_A": (r, n_in), "lora_B": (n_out, r)}
        check.equal(
            {name: tuple(value.shape) for name, value in layer.state_dict().items()},
            names | ({"bias": (n_out,)} if bias else {}),
            because="weight (out in), lora_A (r in), lora_B (out r), and bias (out) where it is wanted; nothing else.",
        )
large = LoRALinear(400, 30, 60, 4.0, generator=rng)
A = 20.0 * large.lora_A.detach().double().cpu()  # 24,000 numbers of a standard normal distribution
check.that(
    abs(A.mean().item()) < 0.05 and 0.95 < A.std().item() < 1.05,
    "A has mean 0 and standard deviation 1/√in_features, whatever r is.",
)
check.that(
    0.03 < (A.abs() > 2).double().mean().item() < 0.06,
    "A is normal, not uniform: one value in twenty-two lies beyond two standard deviations.",
)
for name in ("weight", "bias", "lora_B"):
    check.that(
        not getattr(large, name).any(), f"{name} is 0 at the start; only A is drawn at random."
    )
again, other = (LoRALinear(6, 4, 3, 1.0, generator=lab.generator(seed)).lora_A for seed in (5, 6))
check.close(
    LoRALinear(6, 4, 3, 1.0, generator=lab.generator(5)).lora_A,
    again,
    because="A generator in the same state draws the same A: is it used?",
)
check.that(not torch.equal(again, other), "Another generator draws another A: is it used?")
for r in (-3, 0):
    check.raises(
        ValueError, LoRALinear, 4, 3, r, 1.0, mentions="rank", because="r is at least 1: say rank."
    )
### END HIDDEN TESTS

# %% [markdown]
# By hand: let $W$ be the identity, $b = (10, 20)$, $A = (1\;\; 1)$, $B = (2\;\; 0)^\top$, $\alpha = 3$, $r = 1$. From
# $x = (1, 4)$ come $Wx + b = (11, 24)$ and $Ax = 5$, and so $h = (11 + 3 \cdot 2 \cdot 5,\; 24) = (41, 24)$.

# %% test="layer_forward" points=2
layer = LoRALinear(2, 2, r=1, alpha=3.0)
set_weights(
    layer,
    {
        "weight": torch.eye(2),
        "bias": torch.tensor([10.0, 20.0]),
        "lora_A": torch.tensor([[1.0, 1.0]]),
        "lora_B": torch.tensor([[2.0], [0.0]]),
    },
)
check.close(
    layer(torch.tensor([[1.0, 4.0], [0.0, 0.0]])),
    [[41.0, 24.0], [10.0, 20.0]],
    because="W·x + b + (α/r)·B·(A·x): the update depends on x, its factor is α/r = 3, and the bias comes once.",
)
layer(torch.tensor([[1.0, 4.0]])).sum().backward()
check.close(layer.lora_A.grad, [[6.0, 24.0]], because="The gradient of A is (α/r)·Bᵀ·g·xᵀ.")
check.close(layer.lora_B.grad, [[15.0], [15.0]], because="The gradient of B is (α/r)·g·(A·x)ᵀ.")
check.that(layer.weight.grad is None, "A gradient reached the base weight, which is frozen.")
### BEGIN HIDDEN TESTS
from autograder.hidden import gradients, inputs, reference

theirs = reference("open_weights", "lora")
rng = inputs("lora_forward")
for n_in, n_out, r, alpha, bias in [
    (3, 5, 2, 1.0, True),
    (5, 2, 3, 16.0, False),
    (4, 4, 4, 0.5, True),
    (1, 3, 2, 3.0, False),
]:
    mine = LoRALinear(n_in, n_out, r, alpha, bias=bias).to(device).double()
    right = theirs.LoRALinear(n_in, n_out, r, alpha, bias=bias).to(device).double()
    weights = {
        name: torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
        for name, value in right.state_dict().items()
    }
    set_weights(mine, weights)
    right.load_state_dict(weights)
    for shape in [(n_in,), (4, n_in), (0, n_in), (2, 3, n_in)]:
        x = torch.randn(shape, generator=rng, dtype=torch.float64).to(device)
        before = x.clone()
        check.close(
            mine(x),
            right(x),
            because="W·x + b + (α/r)·B·(A·x), for any leading dimensions, with or without a bias.",
        )
        check.close(x, before, because="The layer changed its input in place.")
    # Not contiguous, and the gradients.
    own = torch.randn(n_in, 2, 3, generator=rng, dtype=torch.float64).to(device).requires_grad_()
    other = own.detach().clone().requires_grad_()
    pull = torch.randn(2, 3, n_out, generator=rng, dtype=torch.float64).to(device)
    mine.zero_grad()
    (mine(own.permute(1, 2, 0)) * pull).sum().backward()
    (right(other.permute(1, 2, 0)) * pull).sum().backward()
    check.that(own.grad is not None, "No gradient reaches the input.")
    check.close(
        own.grad, other.grad, because="The gradient of the input is off: both ways carry one."
    )
    collected, expected = gradients(mine), gradients(right)
    for name in ("lora_A", "lora_B"):
        check.that(collected[name] is not None, f"No gradient reaches {name}.")
        check.close(collected[name], expected[name], because=f"The gradient of {name} is off.")
    for name in ("weight", "bias")[: 1 + bias]:
        check.that(collected[name] is None, f"A gradient reached {name}, which is frozen.")
# At the start: the base alone, and a gradient for B.
fresh = LoRALinear(4, 3, 2, 5.0, generator=rng).to(device).double()
base = {
    "weight": torch.randn(3, 4, generator=rng, dtype=torch.float64).to(device),
    "bias": torch.randn(3, generator=rng, dtype=torch.float64).to(device),
}
fresh.load_state_dict(base, strict=False)
x = torch.randn(6, 4, generator=rng, dtype=torch.float64).to(device)
check.close(
    fresh(x),
    F.linear(x, base["weight"], base["bias"]),
    because="Before the first step the layer does what the base does: B is 0.",
)
fresh(x).square().sum().backward()
check.that(
    bool(gradients(fresh)["lora_B"].any()),
    "At the start no gradient reaches B. If A is 0 too, nothing is ever learnt.",
)
### END HIDDEN TESTS

# %% test="layer_dropout" points=1
# Everything is dropped: in training only the base is left.
layer = LoRALinear(2, 2, r=1, alpha=3.0, dropout=1.0)
set_weights(
    layer,
    {
        "weight": torch.eye(2),
        "bias": torch.tensor([10.0, 20.0]),
        "lora_A": torch.tensor([[1.0, 1.0]]),
        "lora_B": torch.tensor([[2.0], [0.0]]),
    },
)
x = torch.tensor([1.0, 4.0])
layer.train()
check.close(
    layer(x),
    [11.0, 24.0],
    because="In training dropout falls on what enters A; the base's way is whole.",
)
layer.eval()
check.close(layer(x), [41.0, 24.0], because="In evaluation nothing is dropped.")
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs

rng = inputs("lora_dropout")
# One input feature, three ranks: the feature is dropped for all ranks at once or for none.
layer = LoRALinear(1, 2, 3, 6.0, dropout=0.25).to(device).double()
A = torch.rand(3, 1, generator=rng, dtype=torch.float64).to(device) + 1.0
B = torch.rand(2, 3, generator=rng, dtype=torch.float64).to(device) + 1.0
set_weights(
    layer,
    {
        "weight": torch.tensor([[5.0], [-7.0]], dtype=torch.float64, device=device),
        "bias": torch.tensor([1.0, 2.0], dtype=torch.float64, device=device),
        "lora_A": A,
        "lora_B": B,
    },
)
x = torch.ones(2000, 1, dtype=torch.float64, device=device)
base = torch.tensor([6.0, -5.0], dtype=torch.float64, device=device)
kept = 2.0 * (B @ A).flatten() / 0.75
layer.eval()
check.close(
    layer(x[:5]), (base + 0.75 * kept).expand(5, 2), because="In evaluation nothing is dropped."
)
layer.train()
update = layer(x) - base
dropped = (update.abs() < 1e-9).all(dim=1)
whole = ((update - kept).abs() < 1e-9 * kept.abs().max()).all(dim=1)
check.that(
    bool((dropped | whole).all()),
    "Dropout falls on what enters A, and on nothing else; what is left is divided by the probability of being left.",
)
check.that(
    0.17 < dropped.double().mean().item() < 0.33,
    "The share that is dropped is not the probability that was given.",
)
plain = LoRALinear(1, 2, 3, 6.0).to(device).double()
plain.load_state_dict(layer.state_dict())
plain.train()
check.close(
    plain(x[:50]), (base + 0.75 * kept).expand(50, 2), because="Without dropout nothing is dropped."
)
### END HIDDEN TESTS

# %% test="layer_merge" points=3
layer = LoRALinear(2, 2, r=1, alpha=3.0)
weights = {
    "weight": torch.tensor([[0.1, 0.2], [0.3, 0.4]]),
    "bias": torch.tensor([10.0, 20.0]),
    "lora_A": torch.tensor([[1.0, 1.0]]),
    "lora_B": torch.tensor([[2.0], [1000.0]]),
}
set_weights(layer, weights)
x = torch.tensor([1.0, 4.0])
output = layer(x)
layer.merge()
check.close(
    layer.weight,
    [[6.1, 6.2], [3000.3, 3000.4]],
    because="Merged, the weight is W + (α/r)·B·A, with the same factor as in forward.",
)
check.close(
    layer(x),
    output,
    because="Merged, the output is the same: from the weight alone, the update counts once.",
)
layer.merge()
check.close(
    layer.weight,
    [[6.1, 6.2], [3000.3, 3000.4]],
    because="Merging a merged layer changes nothing; the update is in the weight once.",
)
check.that(not layer.weight.requires_grad, "The weight is frozen, merged or not.")
layer.unmerge()
check.equal(
    layer.weight,
    weights["weight"],
    because="The weight must be bit for bit what it was. (w + δ) − δ is not w in floating point.",
)
check.close(layer(x), output, because="Unmerged, the layer takes both ways again.")
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("open_weights", "lora")
rng = inputs("lora_merge")
for n_in, n_out, r, alpha, bias in [(3, 5, 2, 1.0, True), (4, 2, 3, 12.0, False)]:
    mine = LoRALinear(n_in, n_out, r, alpha, bias=bias, dropout=0.5).to(device)
    right = theirs.LoRALinear(n_in, n_out, r, alpha, bias=bias).to(device)
    weights = {
        name: 3.0 * torch.randn(value.shape, generator=rng).to(device)
        for name, value in right.state_dict().items()
    }
    weights["lora_B"] *= 100.0
    set_weights(mine, weights)
    right.load_state_dict(weights)
    x = torch.randn(2, 4, n_in, generator=rng).to(device)
    expected = right(x)
    merged = weights["weight"] + theirs.lora_update(weights["lora_A"], weights["lora_B"], alpha)
    mine.unmerge()
    check.equal(
        mine.weight,
        weights["weight"],
        because="A layer that is not merged was changed by unmerge.",
    )
    for _ in range(1, 3):
        mine.merge()
        state = mine.state_dict()
        check.equal(
            sorted(state),
            sorted(weights),
            because="Merged, the state_dict holds the same names as before.",
        )
        check.close(
            state["weight"],
            merged,
            because="Merged, the weight is W + (α/r)·B·A, however often merge is called.",
            rtol=1e-4,
            atol=1e-3,
        )
        for name in ("lora_A", "lora_B", "bias")[: 2 + bias]:
            check.equal(state[name], weights[name], because=f"Merging changed {name}.")
        # In training mode: what is merged knows no dropout.
        check.close(
            mine(x),
            expected,
            because="Merged, the output is the weight's and the bias's alone: no second way, and no dropout.",
            rtol=1e-4,
            atol=1e-2,
        )
    check.equal(
        [mine.weight.requires_grad, mine.lora_A.requires_grad, mine.lora_B.requires_grad],
        [False, True, True],
        because="Merging changes nothing of what is frozen and what is trained.",
    )
    # Merged, the layer does not look at A and B any more.
    mine.load_state_dict(
        {"lora_A": 2 * weights["lora_A"], "lora_B": -weights["lora_B"]}, strict=False
    )
    check.close(
        mine(x), expected, because="Merged, the layer does not use A and B.", rtol=1e-4, atol=1e-2
    )
    for _ in range(2):
        mine.unmerge()
        check.equal(
            mine.weight,
            weights["weight"],
            because="Unmerged, the weight is bit for bit what it was before, also where A and B have changed since.",
        )
    mine.eval()
    check.close(
        mine(x),
        F.linear(x, weights["weight"], weights.get("bias"))
        + x @ theirs.lora_update(2 * weights["lora_A"], -weights["lora_B"], alpha).T,
        because="Unmerged, the layer goes both ways again, with A and B as they are now.",
        rtol=1e-4,
        atol=1e-2,
    )
    # A second time around.
    mine.load_state_dict(weights)
    mine.merge()
    check.close(
        mine.weight,
        merged,
        because="Merged again after unmerge, the weight is W + (α/r)·B·A.",
        rtol=1e-4,
        atol=1e-3,
    )
    mine.unmerge()
    check.equal(mine.weight, weights["weight"], because="Unmerged again, the weight is W.")
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · A whole model
#
# Which matrices get an adapter? They are chosen by name. The linear layers of a model have paths such as
# `blocks.0.attention.q_proj`; a *target* is the last component, `q_proj`, and means that layer in every block. Hu et
# al. adapted the projections of the attention, and for GPT-3 often only those of queries and values; today all linear
# layers of a block are usual, as Dettmers et al. (2023) found to be needed for results like those of full fine-tuning.
#
# Four things go wrong here without an error:
#
# - **A target that matches nothing.** A model calls its layer `query`, not `q_proj`: nothing is adapted, nothing is
#   trained, and the loss does not fall. So it is an error.
# - **A target that matches too much.** `proj` is a part of `q_proj` and of `output_proj`, and it is neither.
# - **What is not frozen.** Freezing only the layers that were replaced leaves embeddings, norms and the other layers in
#   training. Everything is frozen, then the adapters are added.
# - **A copy for the base.** The new layer takes the old one's weight and bias *themselves*, the same `nn.Parameter`.
#   A copy is right only until something else changes the original, and it doubles the memory.
#
# The new layer also has to have the old one's dtype, device, and mode: a model in evaluation must not find dropout in
# it. `model.named_modules()` gives every path with its module, `model.get_submodule(path)` the module at a path, and
# `model.get_submodule("")` the model. A layer is replaced by `setattr(parent, name, layer)`.
#
# For GPT-3, with rank 4 on queries and values in 96 layers, that is
# $96 \cdot 2 \cdot 4\,(12{,}288 + 12{,}288) \approx 19$ million trained parameters of 175 billion, one in 9,300. Hu et
# al. speak of 10,000 times fewer, and of a third of the GPU memory in training, 350 GB instead of 1.2 TB (§4.2). Much
# less is not to be had in this way: 350 GB is what the frozen weights take in half precision, and they are read in
# every step.


# %%
class ParameterCount(NamedTuple):
    """How many numbers a model learns.

    Attributes:
        trained: elements of all parameters that require gradients.
        total: elements of all parameters, those of adapters included.
    """

    trained: int
    total: int


def build_model(layout: dict[str, tuple]) -> nn.Module:
    """For the tests: a model with modules at these dotted paths.

    Args:
        layout: a kind with its sizes for each path: ``("linear", in, out)``, ``("linear", in, out, bias)``,
            ``("lora", in, out, r)``, ``("embedding", number, width)`` or ``("norm", width)``.
    """
    kinds = {
        "linear": nn.Linear,
        "embedding": nn.Embedding,
        "norm": nn.LayerNorm,
        "lora": lambda n_in, n_out, r: LoRALinear(n_in, n_out, r, alpha=2.0 * r),
    }
    model = nn.Module()
    for path, (kind, *sizes) in layout.items():
        parent = model
        *folders, last = path.split(".")
        for folder in folders:
            if not hasattr(parent, folder):
                parent.add_module(folder, nn.Module())
            parent = getattr(parent, folder)
        parent.add_module(last, kinds[kind](*sizes))
    return model.to(device)


# %% solution="apply"
model_to_adapt = (
    build_model  # the tests make their models with it, where your code runs: leave this line
)


def apply_lora(
    model: nn.Module,
    targets: Collection[str],
    r: int,
    alpha: float,
    *,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Freezes a model and puts a ``LoRALinear`` in the place of every ``nn.Linear`` that is a target, in place.

    A target is the last component of a path: ``"q_proj"`` means ``blocks.0.q_proj`` and ``blocks.1.q_proj``, and
    neither ``my_q_proj`` nor ``q_proj.inner``. Modules that are no ``nn.Linear`` are never replaced.

    Each new layer takes over the old one's ``weight`` and ``bias`` themselves, not copies, and has its dtype, its
    device, and its mode (training or evaluation). Afterwards ``lora_A`` and ``lora_B`` of the new layers require
    gradients, and no other parameter of the model does.

    Args:
        generator: draws every ``lora_A``, one after the other.

    Returns:
        The paths of the replaced layers, in the order of ``model.named_modules()``.

    Raises:
        ValueError: there are no ``targets`` (the message says ``targets``), a target is no ``nn.Linear`` of the model
            (it names the target), the model holds a ``LoRALinear`` already (it says ``already``), or ``r`` is less
            than 1 (it says ``rank``). The model is then as it was.
    """
    ### BEGIN SOLUTION
    if not targets:
        raise ValueError("there are no targets")
    modules = dict(model.named_modules())
    if any(isinstance(module, LoRALinear) for module in modules.values()):
        raise ValueError("the model has LoRA layers already")
    chosen = {
        path: module
        for path, module in modules.items()
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in targets
    }
    found = {path.rpartition(".")[2] for path in chosen}
    for target in targets:
        if target not in found:
            raise ValueError(f"the model has no nn.Linear named {target!r}")
    adapted = {}
    for path, old in chosen.items():
        new = LoRALinear(
            old.in_features,
            old.out_features,
            r,
            alpha,
            dropout=dropout,
            generator=generator,
        )
        new.to(old.weight)
        new.weight, new.bias = old.weight, old.bias
        adapted[path] = new.train(old.training)
    # Nothing can go wrong from here on.
    model.requires_grad_(False)
    for path, new in adapted.items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)
    return list(adapted)
    ### END SOLUTION


def trainable_parameters(model: nn.Module) -> ParameterCount:
    """How many numbers of a model are trained, and how many there are. One that is used in two places counts once."""
    ### BEGIN SOLUTION
    parameters = list(model.parameters())
    return ParameterCount(
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        total=sum(p.numel() for p in parameters),
    )
    ### END SOLUTION


# %% test="apply_replaces" points=2
layout = {
    "embedding": ("embedding", 7, 4),
    "blocks.0.q_proj": ("linear", 4, 6),
    "blocks.0.out": ("linear", 6, 4, False),
    "blocks.1.q_proj": ("linear", 4, 6),
    "blocks.1.out": ("linear", 6, 4, False),
    "norm": ("norm", 4),
}
model = model_to_adapt(layout)
before = {name: value.clone() for name, value in model.state_dict().items()}
check.equal(
    apply_lora(model, ["q_proj"], r=2, alpha=4.0),
    ["blocks.0.q_proj", "blocks.1.q_proj"],
    because="Every layer whose last component is the target, in every block.",
)
check.equal(
    {name: tuple(value.shape) for name, value in model.state_dict().items() if "lora" in name},
    {
        "blocks.0.q_proj.lora_A": (2, 4),
        "blocks.0.q_proj.lora_B": (6, 2),
        "blocks.1.q_proj.lora_A": (2, 4),
        "blocks.1.q_proj.lora_B": (6, 2),
    },
    because="LoRALinear stands where the target stood, with the old layer's sizes.",
)
check.close(
    model.state_dict()["blocks.1.q_proj.weight"],
    before["blocks.1.q_proj.weight"],
    because="The new layer takes over the pre-trained weight.",
)
for targets, says in [(["proj"], "proj"), (["norm"], "norm"), ([], "targets")]:
    check.raises(
        ValueError,
        apply_lora,
        model_to_adapt(layout),
        targets,
        2,
        4.0,
        mentions=says,
        because="proj is only a part of a name, norm is no nn.Linear, and no target at all is a mistake: name it.",
    )
check.raises(
    ValueError,
    apply_lora,
    model,
    ["out"],
    2,
    4.0,
    mentions="already",
    because="The model has adapters already: say already.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("open_weights", "lora")
rng = inputs("lora_apply")
layout = {
    "proj": ("linear", 5, 3),
    "q_proj": ("linear", 5, 3),
    "deep.er.proj": ("linear", 4, 2, False),
    "deep.er.proj_out": ("linear", 2, 4),
    "deep.proj.inner": ("linear", 3, 3),
    "other.proj": ("norm", 3),
    "tokens": ("embedding", 6, 5),
    "head": ("linear", 3, 6),
}
for targets, expected, dtype in [
    (("proj",), ["proj", "deep.er.proj"], torch.float32),
    (["proj", "head"], ["proj", "deep.er.proj", "head"], torch.float32),
    ({"inner", "q_proj"}, ["q_proj", "deep.proj.inner"], torch.float64),
]:
    model = model_to_adapt(layout).to(dtype)
    weights = {
        name: torch.randn(value.shape, generator=rng, dtype=dtype).to(device)
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(weights)
    old = {path: model.get_submodule(path) for path in layout}
    check.equal(
        apply_lora(model, targets, 2, 6.0),
        expected,
        because="The paths whose last component is one of the targets, whole and not as a part of it, and which are "
        "nn.Linear; in the order of the modules.",
    )
    state = model.state_dict()
    check.equal(
        sorted(state),
        sorted(list(weights) + [f"{path}.lora_{x}" for path in expected for x in "AB"]),
        because="Only targets are replaced, and what they had keeps its name.",
    )
    for name, value in weights.items():
        check.equal(
            state[name],
            value,
            because="Weights and biases of the model must be the pre-trained ones, before and after.",
        )
    for path in expected:
        check.equal(
            str(state[f"{path}.lora_A"].dtype),
            str(dtype),
            because="A and B have the dtype of the layer they belong to.",
        )
        # B away from 0, to see factor and way.
        _, n_in, n_out, *_ = layout[path]
        A = torch.randn(2, n_in, generator=rng, dtype=dtype).to(device)
        B = torch.randn(n_out, 2, generator=rng, dtype=dtype).to(device)
        model.load_state_dict({f"{path}.lora_A": A, f"{path}.lora_B": B}, strict=False)
        x = torch.randn(4, n_in, generator=rng, dtype=dtype).to(device)
        W, b = weights[f"{path}.weight"], weights.get(f"{path}.bias")
        check.close(
            model.get_submodule(path)(x),
            F.linear(x, W, b) + x @ theirs.lora_update(A, B, 6.0).T,
            because="Each new layer has the old weight and bias, and the r and α that were given.",
        )
        # The old layer, which something else may hold, and the new one are of one piece.
        changed = torch.randn(n_out, n_in, generator=rng, dtype=dtype).to(device)
        old[path].load_state_dict({"weight": changed}, strict=False)
        check.equal(
            model.state_dict()[f"{path}.weight"],
            changed,
            because="The new layer takes the old weight itself, the same parameter, not a copy.",
        )
# The mode, and dropout.
for training in (False, True):
    model = model_to_adapt(layout).train(training)
    apply_lora(model, ["q_proj"], 2, 6.0, dropout=1.0)
    layer = model.get_submodule("q_proj")
    layer.load_state_dict({"lora_B": torch.ones(3, 2, device=device)}, strict=False)
    x = torch.ones(2, 5, device=device)
    base = F.linear(x, layer.weight.detach(), layer.bias.detach())
    check.that(
        bool((layer(x) - base).abs().max() < 1e-5) == training,
        "The dropout that was given, in the mode the model was in: a model in evaluation drops nothing.",
    )
first, second, third = (
    (model := model_to_adapt(layout), apply_lora(model, ["proj", "q_proj"], 2, 1.0, generator=g))[0]
    for g in (lab.generator(1), lab.generator(1), lab.generator(2))
)
A = [m.state_dict() for m in (first, second, third)]
check.equal(
    A[1]["q_proj.lora_A"], A[0]["q_proj.lora_A"], because="The same generator draws the same A."
)
check.that(
    not torch.equal(A[2]["q_proj.lora_A"], A[0]["q_proj.lora_A"])
    and not torch.equal(A[0]["proj.lora_A"], A[0]["q_proj.lora_A"]),
    "Each layer's A is drawn anew from the generator that was given.",
)
# Bad input leaves the model as it was.
model = model_to_adapt(layout)
names = sorted(model.state_dict())
for targets, says in [
    (["proj", "lm_head"], "lm_head"),
    (["q_proj", "er"], "er"),
    (["deep.er.proj"], "deep.er.proj"),
    (["tokens"], "tokens"),
    (["Head"], "Head"),
    ((), "targets"),
    (["head"], "rank"),
]:
    check.raises(
        ValueError,
        apply_lora,
        model,
        targets,
        0 if says == "rank" else 2,
        1.0,
        mentions=says,
        because="A target that is the last component of no nn.Linear's path: name it. Without any: say targets. A rank "
        "of 0: say rank.",
    )
    check.equal(
        [sorted(model.state_dict()), model.get_submodule("head").weight.requires_grad],
        [names, True],
        because="After an error the model must be as it was: look before you replace.",
    )
apply_lora(model, ["head"], 1, 1.0)
for targets in (["q_proj"], ["proj"]):
    check.raises(
        ValueError,
        apply_lora,
        model,
        targets,
        1,
        1.0,
        mentions="already",
        because="A model that has a LoRALinear anywhere gets no second adapter: say already.",
    )
### END HIDDEN TESTS

# %% test="apply_freezes" points=2
layout = {
    "embedding": ("embedding", 7, 4),
    "block.q_proj": ("linear", 4, 6),
    "block.out": ("linear", 6, 4),
    "norm": ("norm", 4),
}
model = model_to_adapt(layout)
check.equal(
    trainable_parameters(model),
    ParameterCount(trained=28 + 30 + 28 + 8, total=94),
    because="Before, everything is trained: 28 in the embedding, 30 and 28 in the linear layers, 8 in the norm.",
)
apply_lora(model, ["q_proj"], r=2, alpha=4.0)
check.equal(
    trainable_parameters(model),
    ParameterCount(trained=2 * (4 + 6), total=94 + 20),
    because="A and B of one layer are trained, r·(in + out) numbers. Embedding, norm, the other layer and every bias "
    "are frozen. The total has the adapters in it.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs

rng = inputs("lora_freeze")
for _ in range(3):
    n_in, n_out, r = (int(torch.randint(3, 9, (), generator=rng)) for _ in range(3))
    layout = {
        "tokens": ("embedding", 11, n_in),
        "a.up": ("linear", n_in, n_out),
        "a.down": ("linear", n_out, n_in, False),
        "b.up": ("linear", n_in, n_out, False),
        "b.norm": ("norm", n_out),
        "head": ("linear", n_out, 11),
    }
    model = model_to_adapt(layout)
    model.get_submodule("head").requires_grad_(False)
    sizes = {name: value.numel() for name, value in model.state_dict().items()}
    total = sum(sizes.values())
    check.equal(
        list(trainable_parameters(model)),
        [total - sizes["head.weight"] - sizes["head.bias"], total],
        because="Trained are the elements of parameters that require gradients; the total counts all elements.",
    )
    apply_lora(model, ["up"], r, 2.0)
    learns = {name: p.requires_grad for name, p in model.state_dict(keep_vars=True).items()}
    check.equal(
        sorted(name for name in learns if learns[name]),
        ["a.up.lora_A", "a.up.lora_B", "b.up.lora_A", "b.up.lora_B"],
        because="Afterwards A and B of every target are trained, and nothing the model had before: no embedding, norm, "
        "bias, head or other layer. Freeze first, then put the adapters in.",
    )
    trained = 2 * r * (n_in + n_out)
    check.equal(
        list(trainable_parameters(model)),
        [trained, total + trained],
        because="With adapters: r·(in + out) trained numbers a layer, and the total has them in it.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · Adapters change, the base stays
#
# All that was learnt is in the $A$s and $B$s. Store these, and a task costs $r(d + k)$ numbers a matrix instead of
# $dk$. For GPT-3 Hu et al. name 350 GB for the model, and 35 MB for an adapter of rank 4 on queries and values: the 19
# million numbers from above, at two bytes each. One base can then serve many tasks. It stays in memory, and the
# adapters change.
#
# An adapter is a dictionary from the paths of the parameters to their values:
#
# ```
# blocks.0.q_proj.lora_A    (r in)
# blocks.0.q_proj.lora_B    (out r)
# blocks.1.q_proj.lora_A    …
# ```
#
# Two traps. A dictionary of the parameters *themselves* is no memory: when the model is trained further, or another
# adapter is put in, its values change with it. So the values are copies. And an adapter *takes the place* of the one
# before; nothing is added up. Note what is not in there: neither $r$, which the shapes say, nor $\alpha$, which they do
# not. (Files of `peft` have both in `adapter_config.json`; the names of its tensors begin with `base_model.model.`
# and end in `lora_A.weight`.)
#
# A *merged* layer does not look at $A$ and $B$. Unmerge before you swap.


# %% solution="adapters"
model_to_swap = (
    build_model  # the tests make their models with it, where your code runs: leave this line
)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of ``lora_A`` and ``lora_B`` of every ``LoRALinear`` of a model, by path, and nothing else.

    They require no gradients, and do not change when the model does. A model without adapters has ``{}``.
    """
    ### BEGIN SOLUTION
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] in ("lora_A", "lora_B")
    }
    ### END SOLUTION


def swap_adapter(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Puts another adapter in, and gives back the one that was there, as ``adapter_state`` gives it.

    No layer is merged. A and B are still trained afterwards, and the base is not touched. ``state`` stays as it is.

    Args:
        model: has adapters.
        state: as ``adapter_state`` gives it, of a model with adapters at the same places and of the same rank.

    Raises:
        ValueError: ``state`` lacks a name, has one that the model has not (the message holds the name), or a value of
            another shape (it says ``shape``). Nothing is changed then.
    """
    ### BEGIN SOLUTION
    old = adapter_state(model)
    for name in set(old) ^ set(state):
        raise ValueError(f"{name} is not in the model and in the state")
    for name, value in state.items():
        if value.shape != old[name].shape:
            raise ValueError(
                f"{name} has the shape {tuple(old[name].shape)}, not {tuple(value.shape)}"
            )
    model.load_state_dict(state, strict=False)
    return old
    ### END SOLUTION


# %% test="adapters_state" points=1
layout = {"embedding": ("embedding", 7, 3), "block.up": ("lora", 3, 2, 1), "head": ("linear", 2, 7)}
model = model_to_swap(layout)
model.load_state_dict(
    {"block.up.lora_B": torch.tensor([[1.0], [-1.0]], device=device)}, strict=False
)
state = adapter_state(model)
check.equal(
    {name: tuple(value.shape) for name, value in state.items()},
    {"block.up.lora_A": (1, 3), "block.up.lora_B": (2, 1)},
    because="Only A and B, under their paths. The base's weight and bias are the same for all adapters.",
)
check.close(state["block.up.lora_B"], [[1.0], [-1.0]], because="The values are those of the model.")
check.that(
    not any(value.requires_grad for value in state.values()),
    "An adapter's values are plain numbers: detach them.",
)
model.load_state_dict(
    {"block.up.lora_B": torch.tensor([[5.0], [5.0]], device=device)}, strict=False
)
check.close(
    state["block.up.lora_B"],
    [[1.0], [-1.0]],
    because="The model changed and the adapter with it: its values must be copies.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs

rng = inputs("lora_state")
layout = {
    "lora_A": ("linear", 2, 3),
    "lora_B.up": ("lora", 4, 2, 3),
    "tokens": ("embedding", 5, 4),
    "a.up": ("lora", 4, 3, 2),
    "a.norm": ("norm", 3),
    "b.up": ("lora", 4, 3, 2),
}
model = model_to_swap(layout).double()
weights = {
    name: torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in model.state_dict().items()
}
model.load_state_dict(weights)
state = adapter_state(model)
names = [f"{path}.lora_{x}" for path in ("lora_B.up", "a.up", "b.up") for x in "AB"]
check.equal(
    sorted(state),
    sorted(names),
    because="The whole path of lora_A and lora_B of every LoRALinear, wherever it stands; nothing of other layers, "
    "whatever their names.",
)
for name in names:
    check.equal(state[name], weights[name], because="The values are those of the model.")
    check.that(not state[name].requires_grad, "An adapter's values are plain numbers: detach them.")
check.equal(
    adapter_state(model_to_swap({"head": ("linear", 3, 4), "norm": ("norm", 3)})),
    {},
    because="A model without adapters has an empty one.",
)
### END HIDDEN TESTS

# %% test="adapters_swap" points=2
model = model_to_swap({"block.up": ("lora", 2, 2, 1), "head": ("linear", 2, 3)})
polite = {
    "block.up.lora_A": torch.tensor([[1.0, 0.0]], device=device),
    "block.up.lora_B": torch.tensor([[2.0], [3.0]], device=device),
}
terse = {name: -10.0 * value for name, value in polite.items()}
check.equal(
    sorted(adapter_state(model)),
    sorted(polite),
    because="The names of an adapter are those of adapter_state: the paths of A and B.",
)
swap_adapter(model, polite)
first = swap_adapter(model, terse)
check.close(
    first["block.up.lora_B"],
    [[2.0], [3.0]],
    because="What comes back is the adapter that was there before; is it a copy?",
)
check.close(
    model.state_dict()["block.up.lora_B"],
    [[-20.0], [-30.0]],
    because="The new adapter takes the place of the old one; they are not added up.",
)
swap_adapter(model, first)
x = torch.tensor([[1.0, 5.0]], device=device)
check.close(
    model.get_submodule("block.up")(x),
    [[4.0, 6.0]],
    because="Swapped there and back, the model is what it was: α/r is 2, A·x is 1, B is (2, 3).",
)
for bad, says in [
    ({"block.up.lora_A": polite["block.up.lora_A"]}, "block.up.lora_B"),
    (polite | {"head.lora_A": polite["block.up.lora_A"]}, "head.lora_A"),
    (polite | {"block.up.lora_A": torch.ones(2, 2, device=device)}, "shape"),
]:
    check.raises(
        ValueError,
        swap_adapter,
        model,
        bad,
        mentions=says,
        because="A name that is missing, one that is too many, or another shape: an adapter of another model.",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import gradients, inputs

rng = inputs("lora_swap")
layout = {
    "tokens": ("embedding", 5, 4),
    "a.up": ("lora", 4, 3, 2),
    "a.down": ("linear", 3, 4),
    "b.up": ("lora", 4, 3, 2),
    "b.wide": ("lora", 3, 6, 3),
}
model = model_to_swap(layout).double()
base = {
    name: torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in model.state_dict().items()
}
model.load_state_dict(base)
names = [name for name in base if "lora" in name]
check.equal(
    sorted(adapter_state(model)),
    sorted(names),
    because="The names of an adapter are those of adapter_state: the paths of A and B.",
)
adapters = [{name: base[name] for name in names}]
for _ in range(2):
    adapters.append({name: torch.randn_like(base[name]) for name in reversed(names)})
before = 0
for number in (1, 2, 1, 0, 2):
    given = {name: value.clone() for name, value in adapters[number].items()}
    old = swap_adapter(model, given)
    check.equal(given, adapters[number], because="The adapter that was handed over was changed.")
    check.equal(
        {name: old[name] for name in sorted(old)},
        {name: adapters[before][name] for name in sorted(names)},
        because="What comes back is the adapter that was there before: copies, by path, of A and B alone.",
    )
    check.that(
        not any(value.requires_grad for value in old.values()),
        "The values that come back are plain numbers, as adapter_state gives them.",
    )
    state = model.state_dict(keep_vars=True)
    for name in base:
        check.equal(
            state[name],
            adapters[number].get(name, base[name]),
            because="After a swap A and B are those of the new adapter, in every layer, and nothing else has changed.",
        )
        check.that(
            "lora" not in name or state[name].requires_grad,
            "After a swap A and B are still trained.",
        )
    before = number
# It is the layers that changed, not something beside them.
x = torch.randn(5, 4, generator=rng, dtype=torch.float64).to(device)
layer = model.get_submodule("b.up")
layer(x).sum().backward()
check.close(
    layer(x),
    F.linear(x, base["b.up.weight"], base["b.up.bias"])
    + 2.0 * x @ adapters[2]["b.up.lora_A"].T @ adapters[2]["b.up.lora_B"].T,
    because="The layers must compute with the new adapter.",
)
check.that(
    gradients(model)["b.up.lora_A"] is not None, "After a swap no gradient reaches A any more."
)
good = adapters[1]
short = {name: value for name, value in good.items() if name != "a.up.lora_A"}
broad = {name: value[:1] if name == "a.up.lora_A" else value for name, value in good.items()}
for bad, says in [
    (short, "a.up.lora_A"),
    ({}, "lora"),
    (good | {"tokens.weight": base["tokens.weight"]}, "tokens.weight"),
    (good | {"c.up.lora_A": good["a.up.lora_A"]}, "c.up.lora_A"),
    (broad, "shape"),
    (good | {"b.wide.lora_B": good["b.wide.lora_B"].T}, "shape"),
]:
    check.raises(
        ValueError,
        swap_adapter,
        model,
        bad,
        mentions=says,
        because="The names must be those of the model's adapter, no fewer and no more (say the name), and so must the "
        "shapes (say shape).",
    )
    state = model.state_dict()
    check.that(
        all(torch.equal(state[name], adapters[2].get(name, base[name])) for name in base),
        "After an error the model must be as it was: check everything first.",
    )
### END HIDDEN TESTS

# %% [markdown] written="lora_why" points=2
# **In your own words.** A colleague starts $A$ and $B$ both from small random numbers, "so that both learn from the
# first step", and stores of the result only the adapter. What is lost against $B = 0$, and what would have been lost
# with $A = 0$ as well? Then: which costs of training fall with LoRA and which do not (weights, gradients, Adam's means,
# activations, the forward pass)? And a service with one base and a hundred adapters: why would it *not* merge, though
# merging makes each answer cheaper? (5 to 9 sentences.)

# %% [markdown]
# ## Experiment: how thin may it be?
#
# The checkpoint `larger_base` has read about a small world of invented people, and never saw a conversation. Now it is
# to answer what it is asked, in one word and a full stop: `where does … live ?`, `oslo .`. It knows the answers; what
# it has to learn is the manner. Five hundred questions with their answers are shown. Full fine-tuning trains all
# weights. Your `apply_lora` puts adapters of rank 1, 2, 4 and 8 on the queries and values, as Hu et al. did with GPT-3.
# Then each is asked questions that were not shown, and an answer is right if every word is as it should be. The
# cross-entropy of text like that which it had read says what was forgotten.
#
# One thing has to be got out of the way. The models of `lab` use torch's own attention, which takes the *weights* of
# its projections and never calls the layers: an adapter there is passed by, in silence. (Try `apply_lora` on such a
# model with the target `out_proj`. The layer is replaced, and its A and B never get a gradient.) So the attention is
# exchanged for one that has the same weights in four layers.
#
# Before you run it: what share of the parameters will be enough? And of the update that full fine-tuning makes, how
# much is lost when your `factorise` cuts it to rank 1? It takes a minute or two; on a GPU a larger preset runs.

# %% experiment=true
import copy

import matplotlib.pyplot as plt

from lab import checkpoints, figures, instructions, training
from lab.instructions import Instruction

SHOWN, STEPS, BATCH = (2000, 1000, 64) if device.type == "cuda" else (500, 200, 32)
RANKS, ALPHA, SEED = (1, 2, 4, 8), 4.0, 0
TARGETS = ("q_proj", "v_proj")
RATES = {"full": 1e-3, "lora": 1e-2}  # each has the learning rate that suits it


class Attention(nn.Module):
    """What ``nn.MultiheadAttention`` computes in a causal model, with its projections as layers that are called."""

    def __init__(self, torchs: nn.MultiheadAttention) -> None:
        super().__init__()
        width, self.num_heads = torchs.embed_dim, torchs.num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in "qkv")
        self.output_proj = torchs.out_proj
        projections = (self.q_proj, self.k_proj, self.v_proj)
        weights, biases = torchs.in_proj_weight.chunk(3), torchs.in_proj_bias.chunk(3)
        for projection, weight, bias in zip(projections, weights, biases, strict=True):
            projection.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, x: Tensor, *_: Tensor, **how: object) -> tuple[Tensor, None]:
        """The output, and no weights."""
        heads = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(*heads, is_causal=True)
        return self.output_proj(attended.transpose(1, 2).flatten(2)), None


def load_base() -> nn.Module:
    """The checkpoint, with attention that can be adapted."""
    model = checkpoints.load("larger_base").model
    for block in model.blocks:
        block.attention = Attention(block.attention)
    return model.to(device).eval()


def in_a_word(one: Instruction) -> tuple[str, ...]:
    """The answer alone."""
    return (one.answer, ".", instructions.END)


def politely(one: Instruction) -> tuple[str, ...]:
    """The answer as a sentence, with courtesies."""
    return ("gladly", *one.statement, "friend", ".", instructions.END)


def questions(split: str, number: int) -> list[Instruction]:
    """Questions to which the base was told the answer."""
    found = instructions.instructions(split, 2 * number, lab.generator(f"{split} {SEED}"))
    return [one for one in found if one.told][:number]


def tensors(asked: list[Instruction], manner) -> tuple[Tensor, Tensor]:
    """Inputs and targets; what is no part of the response is −100."""
    tokens, _, response = instructions.texts(asked, [manner(one) for one in asked])
    targets = tokens[:, 1:].masked_fill(~response[:, 1:], -100)
    return tokens[:, :-1].to(device), targets.to(device)


def fine_tune(model: nn.Module, manner, rate: float, label: str) -> None:
    """Trains what is not frozen to answer in this manner."""
    inputs, targets = tensors(questions("demonstrations", SHOWN), manner)

    def batch(rng: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(inputs), (BATCH,), generator=rng).to(device)
        return inputs[rows], targets[rows]

    rng = lab.generator(f"fine-tuning {SEED}")
    training.train(model, batch, training.token_loss, STEPS, rate, generator=rng, label=label)
    model.eval()


TESTED = questions("test", 500)
OLD_TEXT = instructions.base_text(16_000, lab.generator("old text")).view(-1, 32).to(device)


@torch.no_grad()
def share_right(model: nn.Module, manner) -> float:
    """How many of the test's answers have every word as it should be, if the likeliest word is always taken."""
    inputs, targets = tensors(TESTED, manner)
    right = (model(inputs).argmax(-1) == targets) | (targets == -100)
    return right.all(dim=1).double().mean().item()


@torch.no_grad()
def old_loss(model: nn.Module) -> float:
    """Nats a word on text of the kind that the base had read."""
    return training.token_loss(model, (OLD_TEXT[:, :-1], OLD_TEXT[:, 1:])).item()


class Result(NamedTuple):
    """What became of a model."""

    share: float  # of the base's parameters that were trained
    right: float  # of the test's answers
    forgot: float  # nats a word on the old text


def measured(model: nn.Module, trained: int) -> Result:
    return Result(trained / size, share_right(model, in_a_word), old_loss(model))


base = load_base()
size = trainable_parameters(base).total
before = measured(base, 0)

full = load_base()
fine_tune(full, in_a_word, RATES["full"], "full fine-tuning")
whole = measured(full, size)

thin, cut = {}, {}
for r in RANKS:
    model = load_base()
    apply_lora(model, TARGETS, r, ALPHA, generator=lab.generator(f"adapter {SEED}"))
    fine_tune(model, in_a_word, RATES["lora"], f"LoRA, rank {r}")
    thin[r] = measured(model, trainable_parameters(model).trained)
    # Full fine-tuning again, with the updates of all linear layers cut to rank r.
    model = copy.deepcopy(full)
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            old = base.get_submodule(path).weight.data
            A, B = factorise(layer.weight.data - old, r, ALPHA)
            layer.weight.data = old + lora_update(A, B, ALPHA)
    cut[r] = share_right(model, in_a_word)

figures.use_style()
fig, (ax, ax_old) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=[1.5, 1])
ax.axhline(whole.right, color="grey", label="full fine-tuning")
ax.plot(RANKS, [thin[r].right for r in RANKS], "o-", label="LoRA of rank r")
ax.plot(RANKS, list(cut.values()), "s--", label="full, its updates cut to rank r")
ax.set(xscale="log", xlabel="rank, and the share of parameters that LoRA trains")
ax.set(title="answers right", ylim=(min(0.6, *cut.values()) - 0.1, 1.05))
ax.set_xticks(RANKS, [f"{r}\n{thin[r].share:.1%}" for r in RANKS])
ax.minorticks_off()
ax.legend(fontsize=9, loc="lower right")
names = ["base", "full", *(f"rank {r}" for r in RANKS)]
forgot = [before.forgot, whole.forgot, *(thin[r].forgot for r in RANKS)]
ax_old.barh(names, forgot, color=["grey", "grey", *["C0"] * len(RANKS)])
ax_old.set(title="the old text, nats a word")
ax_old.invert_yaxis()
figures.show(
    fig,
    alt=f"Right answers to {len(TESTED)} questions that were not shown: base {before.right:.1%}, full fine-tuning "
    f"{whole.right:.1%}. "
    + " ".join(
        f"Rank {r}: {thin[r].share:.1%} of the parameters trained, {thin[r].right:.1%} right; full fine-tuning with "
        f"its updates cut to this rank {cut[r]:.1%}."
        for r in RANKS
    )
    + " Nats a word on the old text: "
    + ", ".join(f"{name} {value:.2f}" for name, value in zip(names, forgot, strict=True))
    + ".",
)

# %% [markdown]
# With rank 1, well under one parameter in a hundred is trained, and it is enough: about as many answers are right as
# after full fine-tuning, often more. More rank adds little; what is left of differences changes with `SEED`. That is
# the paper's finding, on a task that suits it. The base knows where people live, and had to learn a manner. And five
# hundred examples are few: whoever trains everything can learn them by heart. Where much that is new has to be learnt,
# as in going on with pre-training on programs, small ranks stay behind full fine-tuning, and forget less (Biderman et
# al. 2024).
#
# The dashed line is the hypothesis itself. Nobody asked full fine-tuning for a thin update. Yet of what it did to the
# linear layers a few singular values are enough, and one is not quite. (Its embeddings, norms and biases stay as they
# were trained.) LoRA of rank 1 does better than that: it has looked for the best thin update from the start, and not
# for the best update, to be cut afterwards.
#
# On the right, everybody has forgotten some of the old text. Full fine-tuning has forgotten most. With LoRA it comes
# back at once: take the adapter out.
#
# **Two adapters on one base.** A second adapter learns to answer the same questions politely, in a sentence. The base
# is loaded once; the adapters are swapped. Before you run it: what do the words become when no adapter is in, and when
# the adapter of one manner has been merged before the other is put in?

# %% experiment=true
RANK = 2
model = load_base()
untouched = {name: value.clone() for name, value in model.state_dict().items()}
apply_lora(model, TARGETS, RANK, ALPHA, generator=lab.generator(f"adapter {SEED}"))
manners = {"in a word": in_a_word, "politely": politely}
adapters = {"none": adapter_state(model)}  # B is 0
for name, manner in manners.items():
    swap_adapter(model, adapters["none"])
    fine_tune(model, manner, RATES["lora"], name)
    adapters[name] = adapter_state(model)

asked = TESTED[:2]
for one in asked:
    print(" ".join(one.question))
    for name, adapter in adapters.items():
        swap_adapter(model, adapter)
        rng = lab.generator(f"answers {SEED}")
        [words] = instructions.respond(model, [one], rng, temperature=0.01)
        print(f"  {name}:", " ".join(words))

table = {}
for name, adapter in adapters.items():
    swap_adapter(model, adapter)
    table[name] = [share_right(model, manner) for manner in manners.values()]

layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
swap_adapter(model, adapters["in a word"])
for layer in layers:
    layer.merge()
swap_adapter(model, adapters["politely"])  # merged layers do not look at it
table["politely, the other still merged"] = [share_right(model, m) for m in manners.values()]
for layer in layers:
    layer.unmerge()
kept = all(torch.equal(model.state_dict()[path], value) for path, value in untouched.items())
stored = sum(value.numel() for value in adapters["politely"].values())

fig, ax = plt.subplots(figsize=(8, 2.6))
places = torch.arange(len(table))
for i, name in enumerate(manners):
    shares = [row[i] for row in table.values()]
    ax.barh(places + 0.4 * i - 0.2, shares, 0.38, label=f"asked to answer {name}")
ax.set_yticks(places, list(table))
ax.set(
    xlabel="answers right",
    xlim=(0, 1.02),
    title=f"adapters of {stored:,} numbers on one base of {size:,}",
)
ax.invert_yaxis()
ax.legend(fontsize=9, loc="upper right")
figures.show(
    fig,
    alt="Share of answers that are right in a word, and politely. "
    + " ".join(f"Adapter {name}: {a:.1%} and {b:.1%}." for name, (a, b) in table.items())
    + f" The base is {'bit for bit what it was' if kept else 'changed'} after all of this.",
)
print("The base is", "bit for bit what it was." if kept else "changed.")

# %% [markdown]
# Each adapter is less than a hundredth of the base, and makes another assistant of it. Without one it does what it
# always did, and goes on with a text. The last row is the trap: the swap raised no error, and did nothing, for the
# layers were merged and went on answering in a word. And after all of this, merging and swapping, the base is the base.
#
# Change `TARGETS` to all four projections of the attention, or add `"0"` and `"2"`, the layers of the feed-forward
# network; compare at the same number of trained parameters, not at the same rank. Or set `ALPHA` to 0.1 and to 100:
# how far can it be from where it should be, before the learning rate has to follow?
