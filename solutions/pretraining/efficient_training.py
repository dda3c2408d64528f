# %% [markdown]
# # Training that fits: precision, memory, machines
#
# Between 2018 and 2020 models grew from a hundred million to 175 billion parameters. They did not get there by a new
# architecture. Four techniques of *training* carried them, all older than GPT-3: numbers of half the size, batches in
# pieces, activations computed twice instead of stored, and gradients summed over many machines. You build the four.
#
# **You build** a mixed-precision step with loss scaling, gradient accumulation, checkpointing as an autograd function,
# the ring all-reduce · **Minutes** 90 · **Points** 19 · **Difficulty** ●●● ·
# **Before this** [Scale](../../book/pretraining/scaling.md),
# [The Transformer, block by block](../transformer/block.ipynb)
#
# Run a cell with Shift+Enter. Write your answers where it says `YOUR CODE HERE`, then run the tests below them.
# A test that passes is silent; one that fails says what it expected, what came, and which mistake usually does that.
# More tests, on other inputs, run when your notebook is graded.

# %%
import functools
import math
from collections.abc import Callable

import torch
import torch.utils.checkpoint
from jaxtyping import Float, Int
from torch import Tensor, nn

import lab
from lab import check

device = lab.device()
for owner, name, instead in [
    (torch.amp, "GradScaler", "a multiplication, a division and isfinite"),
    (torch.utils.checkpoint, "checkpoint", "torch.autograd.Function"),
    (torch.utils.checkpoint, "checkpoint_sequential", "your checkpoint"),
]:
    lab.refuse(owner, name, instead=instead)


def backward(result: Tensor, gradient: Tensor, because: str) -> None:
    """For the tests: the backward pass of ``result``; an error in it becomes a message."""
    try:
        result.backward(gradient)
    except NotImplementedError:
        raise
    except RuntimeError as error:
        raise check.CheckFailed(
            "The backward pass ends with an error.", because=because, detail=str(error)
        ) from None


# %% [markdown]
# ## 1 · Mixed precision
#
# A float16 takes half the memory of a float32 and half the time to move, and hardware made for it multiplies it many
# times as fast. The number of operations stays the same. But float16 has 11 significant bits; its smallest positive
# number is $2^{-24} \approx 6 \cdot 10^{-8}$, its largest 65504. Training meets both ends. Micikevicius et al. (2017)
# keep three things from going wrong:
#
# - **Master weights.** An update $\eta g$ smaller than about $w/2048$ is rounded away when it is subtracted from a
#   float16 $w$. So the weights live in float32; every step works on a copy in half precision, and the update goes to
#   the original.
# - **Loss scaling.** Many gradients lie below $2^{-24}$ and become 0. The chain rule is linear: a loss multiplied by
#   $s$ has a gradient multiplied by $s$, in every layer. So multiply the loss by $s$ before the backward pass, bring
#   the gradients to float32, and divide by $s$ there.
# - **A scale that finds itself.** Too large an $s$ makes gradients infinite. Then the step is *skipped* and $s$
#   halved; after a number of good steps in a row $s$ is doubled again.
#
# bfloat16 keeps the 8 exponent bits of float32 and only 8 significant bits. It hardly under- or overflows, and is
# mostly used without a scale; the master weights it needs all the more.
#
# The optimiser here is plain gradient descent, $w \leftarrow w - \eta g$, so that nothing hides the three points.


# %% solution="autocast"
def autocast_step(
    loss_fn: Callable[[dict[str, Tensor]], Float[Tensor, ""]],
    weights: dict[str, Float[Tensor, "..."]],
    lr: float,
    scale: float,
    good_steps: int = 0,
    *,
    dtype: torch.dtype = torch.float16,
    growth_interval: int = 2000,
) -> tuple[Float[Tensor, ""], float, int]:
    """One step of gradient descent in mixed precision (Micikevicius et al. 2017, §3).

    ``loss_fn`` is called once, with copies of the weights in ``dtype`` that require gradients, under the same names.
    The loss it returns is multiplied by the scale, the gradients of the copies are brought to float32 and divided
    by the scale, and the weights are changed by ``-lr`` times that.

    If any gradient has a value that is infinite or not a number, no weight is changed, the scale is halved, and the
    count of good steps starts again at 0. Otherwise the count goes up by one; once it has reached ``growth_interval``,
    the scale is doubled for the next step and the count starts again at 0.

    Args:
        loss_fn: gives the loss, a scalar in float32 or in ``dtype``.
        weights: the master weights, float32, changed in place, whether they require gradients or not. One that the
            loss does not use stays as it is.
        lr: the learning rate η.
        scale: the factor of the loss in this step.
        good_steps: how many steps in a row before this one have gone well with this scale.
        dtype: in which ``loss_fn`` computes.
        growth_interval: good steps in a row before the scale is doubled.

    Returns:
        The loss, in float32, without the scale and without a graph, also when the step was skipped; and for the next
        step the scale and the count of good steps.

    Raises:
        ValueError: a weight is not float32 (the message says ``float32``), the scale is not positive (it says
            ``scale``), or ``growth_interval`` is less than 1 (it says ``growth_interval``).
    """
    ### BEGIN SOLUTION
    if any(weight.dtype != torch.float32 for weight in weights.values()):
        raise ValueError("the master weights must be float32")
    if scale <= 0:
        raise ValueError(f"the scale must be positive, got {scale}")
    if growth_interval < 1:
        raise ValueError(f"growth_interval must be at least 1, got {growth_interval}")
    copies = {name: weight.detach().to(dtype).requires_grad_() for name, weight in weights.items()}
    loss = loss_fn(copies)
    (loss * scale).backward()
    gradients = {
        name: copy.grad.float() / scale for name, copy in copies.items() if copy.grad is not None
    }
    loss = loss.detach().float()
    if not all(gradient.isfinite().all() for gradient in gradients.values()):
        return loss, scale / 2, 0
    with torch.no_grad():
        for name, gradient in gradients.items():
            weights[name] -= lr * gradient
    if good_steps + 1 >= growth_interval:
        return loss, scale * 2, 0
    return loss, scale, good_steps + 1
    ### END SOLUTION


# %% [markdown]
# By hand: $L = 3w_1 + w_2/2$ has the gradient $(3, \tfrac12)$. With $\eta = \tfrac12$, $w = (1, -2)$ becomes
# $(-\tfrac12, -\tfrac94)$, whatever the scale. The second loss has a gradient of $2^{-26}$, which float16 does not
# have.

# %% test="autocast_by_hand" points=2
weights = {"w": torch.tensor([1.0, -2.0], device=device)}
slopes = torch.tensor([3.0, 0.5], device=device)
loss, scale, good_steps = autocast_step(
    lambda w: (w["w"].float() * slopes).sum(), weights, 0.5, 8.0, 0
)
check.close(
    weights["w"],
    [-0.5, -2.25],
    because="The gradient is (3, 0.5): what the backward pass gives is 8 times that, and is divided by 8 again.",
)
check.close(loss, 2.0, because="The loss comes back without the scale: 3·1 + 0.5·(−2).")
check.equal(good_steps, 1, because="A good step counts.")
check.equal(scale, 8.0, because="The scale stays until growth_interval good steps are done.")

weights = {"w": torch.tensor([0.0], device=device)}
autocast_step(lambda w: w["w"].float().sum() * 2.0**-26, weights, 2.0**26, 2.0**10)
check.close(
    weights["w"],
    [-1.0],
    because="2⁻²⁶ is 0 in float16; multiplied by 2¹⁰ it is not. Divide by the scale only in float32.",
)
check.raises(
    ValueError,
    autocast_step,
    lambda w: w["w"].sum(),
    {"w": torch.zeros(2, dtype=torch.float16, device=device)},
    0.1,
    2.0**16,
    mentions="float32",
    because="Master weights in half precision would lose small updates: refuse them, and say float32.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("pretraining", "efficient_training")
rng = inputs("autocast_by_hand")
for dtype in (torch.float16, torch.bfloat16):
    start = {
        "matrix": torch.randn(3, 4, generator=rng).to(device),
        "unused": torch.randn(2, generator=rng).to(device),
        "bias": torch.randn(3, generator=rng).to(device),
    }
    x = torch.randn(5, 4, generator=rng).to(device)
    seen = []

    def loss_fn(w, x=x, seen=seen):
        seen.append(
            sorted((name, str(value.dtype), value.requires_grad) for name, value in w.items())
        )
        hidden = x.to(w["matrix"].dtype) @ w["matrix"].T + w["bias"]
        return hidden.float().square().mean()

    own = {name: value.clone() for name, value in start.items()}
    right = {name: value.clone() for name, value in start.items()}
    loss, scale, good_steps = autocast_step(loss_fn, own, 0.3, 256.0, 5, dtype=dtype)
    check.equal(
        seen,
        [[(name, str(dtype), True) for name in ("bias", "matrix", "unused")]],
        because="The loss is computed once, on copies of all weights in dtype which require gradients.",
    )
    right_loss, *_ = theirs.autocast_step(loss_fn, right, 0.3, 256.0, 5, dtype=dtype)
    check.close(loss, right_loss, because="The loss comes back in float32, without the scale.")
    check.that(loss.dtype == torch.float32, "The loss should come back in float32.")
    check.that(not loss.requires_grad, "The loss comes back without its graph: detach it.")
    for name in start:
        check.that(own[name].dtype == torch.float32, "The master weights must stay float32.")
        check.close(
            own[name],
            right[name],
            because="The new weights are w − lr·gradient, the gradient in float32 and without the scale; an unused "
            "weight stays.",
        )
    check.that(
        scale == 256.0 and good_steps == 6,
        "After a good step the scale is the same and the count one higher.",
    )
# Updates far below the spacing of half precision add up in the master weights.
weights = {"w": (1.0 + torch.rand(4, generator=rng)).to(device)}
start = weights["w"].clone()
for _ in range(4):
    autocast_step(lambda w: w["w"].float().sum(), weights, 3e-4, 4.0)
check.close(
    weights["w"],
    start - 4 * 3e-4,
    rtol=0.0,
    atol=1e-5,
    because="Small updates get lost: subtract them from the float32 weights, not from the copy in half precision.",
)
# Gradients that float16 does not have, with a scale that lifts them.
factors = (2.0 ** torch.randint(-30, -26, (6,), generator=rng)).to(device)
weights = {"w": torch.zeros(6, device=device)}
autocast_step(lambda w: (w["w"].float() * factors).sum(), weights, 2.0**28, 2.0**14)
check.close(
    weights["w"],
    -(2.0**28) * factors,
    because="Tiny gradients are lost: scale the loss before the backward pass, bring the gradients to float32, and "
    "only then divide.",
)
# A loss in half precision, of which the scale times the loss would overflow.
weights = {"w": torch.tensor([40.0], device=device)}
loss, scale, good_steps = autocast_step(lambda w: w["w"].sum(), weights, 1.0, 2.0**12)
check.close(weights["w"], [39.0], because="It is the gradients that must be finite, nothing else.")
check.close(loss, 40.0, because="The loss comes back without the scale.")
check.that(loss.dtype == torch.float32, "A loss in half precision should come back in float32.")
# A scale below 1 is allowed, the count is 0 unless given, and the weights may require gradients.
weights = {"w": torch.randn(3, generator=rng).to(device).requires_grad_()}
start = weights["w"].detach().clone()
_, scale, good_steps = autocast_step(lambda w: w["w"].float().sum(), weights, 0.25, 0.5)
check.close(
    weights["w"],
    start - 0.25,
    because="Weights that require gradients are changed all the same, and a scale between 0 and 1 is a scale.",
)
check.that(scale == 0.5 and good_steps == 1, "The count of good steps is 0 unless given.")
### END HIDDEN TESTS

# %% test="autocast_overflow" points=2
# The gradient is 1000: times 2¹⁰ it is beyond 65504.
weights = {"w": torch.tensor([1.0, 2.0], device=device)}
loss, scale, good_steps = autocast_step(
    lambda w: 1000.0 * w["w"].float().sum(), weights, 0.1, 1024.0, 7
)
check.close(
    weights["w"],
    [1.0, 2.0],
    because="A gradient was infinite: the step is skipped, no weight changes.",
)
check.equal(scale, 512.0, because="After an overflow the scale is halved.")
check.equal(good_steps, 0, because="After an overflow the count starts again at 0.")
check.close(loss, 3000.0, because="The loss is reported although the step was skipped.")

_, scale, good_steps = autocast_step(
    lambda w: w["w"].float().sum(), weights, 0.1, 32.0, 2, growth_interval=3
)
check.equal(scale, 64.0, because="The third good step of three doubles the scale.")
check.equal(good_steps, 0, because="After the scale has grown the count starts again at 0.")
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("pretraining", "efficient_training")
rng = inputs("autocast_overflow")
slopes = torch.randn(2, 5, generator=rng).to(device)
own = {name: torch.randn(5, generator=rng).to(device) for name in ("a", "b")}
right = {name: value.clone() for name, value in own.items()}
scale = right_scale = 2.0**12
good_steps = right_steps = 1
# The factors make some steps overflow, in the first weight, in the second, or in both.
for big_a, big_b in [(1, 1), (1, 1), (1, 1), (1e4, 1), (1, 1), (1, 1e5), (1, 1)]:

    def loss_fn(w, big_a=big_a, big_b=big_b):
        return (
            big_a * (w["a"].float() * slopes[0]).sum() + big_b * (w["b"].float() * slopes[1]).sum()
        )

    right_loss, right_scale, right_steps = theirs.autocast_step(
        loss_fn, right, 0.1, right_scale, right_steps, growth_interval=3
    )
    loss, scale, good_steps = autocast_step(loss_fn, own, 0.1, scale, good_steps, growth_interval=3)
    check.that(
        scale == right_scale,
        "The scale is halved when a gradient is not finite, doubled after growth_interval good steps in a row, and "
        "else left alone.",
    )
    check.that(
        good_steps == right_steps,
        "The count goes up with a good step, and back to 0 after an overflow and after the scale has grown.",
    )
    check.close(loss, right_loss, because="The loss is returned without the scale, skipped or not.")
    for name in own:
        check.close(
            own[name],
            right[name],
            because="One infinite gradient anywhere and the whole step is skipped; otherwise every weight moves.",
        )
# Not a number is not finite either.
weights = {"w": torch.randn(3, generator=rng).to(device), "v": torch.ones(2, device=device)}
before = {name: value.clone() for name, value in weights.items()}
not_a_number = float("nan")
_, scale, good_steps = autocast_step(
    lambda w: (w["w"].float() * not_a_number).sum() + w["v"].float().sum(),
    weights,
    0.1,
    2.0,
)
check.that(scale == 1.0, "NaN in a gradient is an overflow too: the scale is halved.")
for name in weights:
    check.close(
        weights[name], before[name], because="NaN in a gradient is an overflow too: skip the step."
    )
# A count that is beyond the interval already, and an interval of one.
for good_steps, interval in [(9, 4), (0, 1)]:
    _, scale, good_steps = autocast_step(
        lambda w: w["v"].float().sum(),
        weights,
        0.1,
        4.0,
        good_steps,
        growth_interval=interval,
    )
    check.that(
        scale == 8.0 and good_steps == 0,
        "Once the count has reached growth_interval the scale is doubled and the count starts again.",
    )
_, scale, good_steps = autocast_step(lambda w: w["v"].float().sum(), weights, 0.1, 4.0, 1998)
check.that(scale == 4.0, "growth_interval is 2000 unless given.")
_, scale, good_steps = autocast_step(lambda w: w["v"].float().sum(), weights, 0.1, 4.0, 1999)
check.that(scale == 8.0, "growth_interval is 2000 unless given.")
for bad_scale, interval, word in [
    (0.0, 5, "scale"),
    (-2.0, 5, "scale"),
    (2.0, 0, "growth_interval"),
]:
    check.raises(
        ValueError,
        functools.partial(autocast_step, growth_interval=interval),
        lambda w: w["v"].float().sum(),
        weights,
        0.1,
        bad_scale,
        mentions=word,
        because="A scale that is not positive and an interval below 1 are bad input: name them in the message.",
    )
check.raises(
    ValueError,
    autocast_step,
    lambda w: w["v"].float().sum(),
    {"v": torch.ones(2, device=device), "w": torch.ones(2, dtype=torch.float64, device=device)},
    0.1,
    2.0**16,
    mentions="float32",
    because="Every master weight must be float32, not only the first.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · Gradient accumulation
#
# A batch too large for the memory is cut into micro-batches. Each goes forward and backward for itself; the gradients
# add up, since the derivative of a sum is the sum of the derivatives; then follows one step of the optimiser. The
# result should be that of the whole batch, exactly. So what must the weights of the sum be?
#
# The loss of a language model is a mean over the targets that count (those that are not −100). With $n_m$ of them in
# micro-batch $m$, $n = \sum_m n_m$ in all, and $L_m$ the mean over the $n_m$:
#
# $$L = \frac1n \sum_m \sum_{t \in m} \ell_t = \sum_m \frac{n_m}{n} L_m, \qquad
# \nabla L = \sum_m \frac{n_m}{n} \nabla L_m.$$
#
# The mean of the means, $\frac1M \sum_m L_m$, is the same only if all $n_m$ are equal. With padded sequences they are
# not, and a short answer then counts as much as a long one. The libraries that most people used did just this until
# October 2024, when the difference was noticed anew and mended (Han and Han 2024).
#
# Go backward through each micro-batch before the next one goes forward: adding up the losses and going backward once
# gives the same gradient, but holds every graph at the same time, and then nothing is saved.


# %% solution="accumulation"
def accumulate_gradients(
    loss_fn: Callable[[dict[str, Tensor], Tensor, Tensor], Float[Tensor, ""]],
    weights: dict[str, Float[Tensor, "..."]],
    micro_batches: list[tuple[Tensor, Int[Tensor, "..."]]],
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, "..."]]]:
    """Loss and gradient of a whole batch, one micro-batch at a time.

    Args:
        loss_fn: ``loss_fn(weights, inputs, targets)`` is the mean loss over the targets of one micro-batch that are
            not −100. It is called once for each micro-batch, in order, after the backward pass of the one before; not
            for a micro-batch where no target counts (that mean would be 0/0).
        weights: the parameters by name, whether they require gradients or not. They are left unchanged, and their
            ``grad`` too.
        micro_batches: inputs and targets of each; they may be of different sizes.

    Returns:
        The mean loss over all targets of all micro-batches that are not −100, without a graph, and its gradient for
        each weight, by name: zeros for one that the loss does not use.

    Raises:
        ValueError: no target counts in any micro-batch, or there is none (the message says ``target``).
    """
    ### BEGIN SOLUTION
    counts = [int((targets != -100).sum()) for _, targets in micro_batches]
    total = sum(counts)
    if total == 0:
        raise ValueError("no micro-batch has a target that counts")
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    mean = 0.0
    for i, (x, targets) in enumerate(micro_batches):
        if counts[i]:
            share = loss_fn(leaves, x, targets) * (counts[i] / total)
            share.backward()
            mean = mean + share.detach()
    gradients = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }
    return mean, gradients
    ### END SOLUTION


# %% [markdown]
# By hand: a loss of $w$ times the mean input, and micro-batches of one and of three targets.


# %% test="accumulation_by_hand" points=2
def scaled_mean(w: dict[str, Tensor], x: Tensor, targets: Tensor) -> Tensor:
    """w times the mean of the inputs whose targets count."""
    return w["w"] * x[targets != -100].mean()


weights = {"w": torch.tensor(2.0, device=device)}
one = (torch.tensor([4.0], device=device), torch.tensor([1], device=device))
three = (torch.tensor([0.0, 4.0, 8.0], device=device), torch.tensor([1, 2, 3], device=device))
loss, gradients = accumulate_gradients(scaled_mean, weights, [one, three])
check.close(
    gradients["w"],
    4.0,
    because="The mean over all four inputs is (4 + 0 + 4 + 8)/4 = 4.",
)
check.close(loss, 8.0, because="The loss is that of the whole batch: 2 times 4.")

padded = (
    torch.tensor([10.0, 99.0, 99.0], device=device),
    torch.tensor([1, -100, -100], device=device),
)
_, gradients = accumulate_gradients(scaled_mean, weights, [padded, three])
check.close(
    gradients["w"],
    5.5,
    because="Targets of −100 do not count: (10 + 0 + 4 + 8)/4, where the mean of the means would be (10 + 4)/2.",
)
check.raises(
    ValueError,
    accumulate_gradients,
    scaled_mean,
    weights,
    [],
    mentions="target",
    because="The mean over no targets is 0/0: say so, and say target.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("pretraining", "efficient_training")
rng = inputs("accumulation_by_hand")


def token_loss(w, x, targets):
    logits = x @ w["matrix"] + w["bias"]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


weights = {
    "matrix": torch.randn(4, 7, generator=rng, dtype=torch.float64).to(device),
    "bias": torch.randn(7, generator=rng, dtype=torch.float64).to(device),
    "unused": torch.randn(2, 3, generator=rng, dtype=torch.float64).to(device),
}
weights = {name: value.requires_grad_() for name, value in weights.items()}
before = {name: value.detach().clone() for name, value in weights.items()}
micro_batches = []
for sequences, length, padding in [(1, 2, 0.0), (3, 5, 0.6), (2, 3, 1.0), (2, 6, 0.2)]:
    x = 2 * torch.randn(sequences, length, 4, generator=rng, dtype=torch.float64)
    targets = torch.randint(7, (sequences, length), generator=rng)
    targets[torch.rand(sequences, length, generator=rng) < padding] = -100
    if padding < 1:
        targets[0, 0] = 3
    micro_batches.append((x.to(device), targets.to(device)))
for chosen in [(0, 1, 2, 3), (3, 1), (2, 0), (1,), (2, 2, 3)]:
    batches = [micro_batches[i] for i in chosen]
    loss, gradients = accumulate_gradients(token_loss, weights, batches)
    right_loss, right_gradients = theirs.accumulate_gradients(token_loss, weights, batches)
    check.close(
        loss,
        right_loss,
        because="The loss is the mean over every target that counts in the whole batch: each micro-batch's mean has "
        "the weight (its targets)/(all targets).",
    )
    check.that(not loss.requires_grad, "The loss comes back without a graph: detach it.")
    check.equal(
        sorted(gradients),
        sorted(weights),
        because="There is one gradient for each weight, by name.",
    )
    for name in sorted(weights):
        check.close(
            gradients[name],
            right_gradients[name],
            because="The gradient is not that of the whole batch: weigh each micro-batch by the targets that count in "
            "it, and average only once. Zeros for what the loss does not use.",
        )
for name in weights:
    check.close(weights[name], before[name], because="The weights are not changed here.")
    check.that(weights[name].grad is None, "The weights' own grad is left alone.")
for nothing in ([micro_batches[2]], [micro_batches[2]] * 2, []):
    check.raises(
        ValueError,
        accumulate_gradients,
        token_loss,
        weights,
        nothing,
        mentions="target",
        because="Where no target counts in any micro-batch there is no mean.",
    )
### END HIDDEN TESTS

# %% test="accumulation_memory" points=1
events = []


class Noted(torch.autograd.Function):
    """The identity; notes when it is passed forward and when backward."""

    @staticmethod
    def forward(ctx, value: Tensor, name: str) -> Tensor:
        events.append(f"forward {name}")
        ctx.name = name
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        events.append(f"backward {ctx.name}")
        return gradient, None


def noted_mean(w: dict[str, Tensor], x: Tensor, targets: Tensor) -> Tensor:
    """w times the mean input, noting its passes under the first target."""
    return Noted.apply(w["w"], str(targets[0].item())) * x.mean()


first = (torch.tensor([1.0, 2.0], device=device), torch.tensor([1, 1], device=device))
second = (torch.tensor([3.0], device=device), torch.tensor([2], device=device))
accumulate_gradients(noted_mean, {"w": torch.tensor(2.0, device=device)}, [first, second])
check.equal(
    events,
    ["forward 1", "backward 1", "forward 2", "backward 2"],
    because="Go backward through a micro-batch before the next one goes forward, or all their graphs are held at once.",
)
### BEGIN HIDDEN TESTS
events.clear()
nothing = (torch.ones(2, device=device), torch.tensor([-100, -100], device=device))
third = (torch.tensor([5.0], device=device), torch.tensor([3], device=device))
accumulate_gradients(
    noted_mean, {"w": torch.tensor(-1.0, device=device)}, [third, nothing, first, second]
)
check.equal(
    events,
    [f"{way} {name}" for name in "312" for way in ("forward", "backward")],
    because="Each micro-batch once and in order, forward and at once backward; none where no target counts.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · Checkpointing
#
# The backward pass needs what the forward pass computed: all activations of all layers wait in memory. Chen et al.
# (2016) keep only a few, the *checkpoints*, and compute what lies between them again when the backward pass gets there.
#
# That does not save computation. It costs one more forward pass. If the backward pass takes twice the time of the
# forward pass, a step takes $4/3$ of the time. In return, $n$ layers in segments of $k$ keep $n/k$ checkpoints and,
# at any one time, the activations of one segment. The sum $n/k + k$ is smallest at $k = \sqrt n$: memory grows as
# $\sqrt n$ and not as $n$.
#
# In torch a `torch.autograd.Function` is what one needs. Its `forward` runs without recording; its `backward` is given
# the gradient of the output and must return one for each argument of `forward`, `None` for what has none:
#
# 1. forward: keep the *inputs* and run the function;
# 2. backward: take the inputs out of the old graph (`detach`), run the function again, this time recorded
#    (`torch.enable_grad()`), go backward through this small graph with the gradient you were given. That leaves their
#    gradients in the inputs, and in every parameter which the function uses.
#
# The second run must be the first one again. Dropout draws random numbers: so keep the state of the random numbers at
# the first run, set it for the second, and afterwards put back the one you found, or what is drawn later repeats what
# was drawn before. Two helpers are given for this.


# %%
def rng_state() -> list[Tensor]:
    """The states of torch's global random numbers, on the CPU and on the device."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state())
    return states


def set_rng_state(states: list[Tensor]) -> None:
    """Puts the random numbers where they were when ``rng_state()`` gave these states."""
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1])


# %% solution="checkpoint"
class Checkpoint(torch.autograd.Function):
    """Runs a function without keeping what it computes, and again in the backward pass (Chen et al. 2016)."""

    @staticmethod
    def forward(ctx, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """``function(*tensors)``, called once and not recorded; its inputs are kept for the backward pass."""
        ### BEGIN SOLUTION
        ctx.function = function
        ctx.rng = rng_state()
        ctx.save_for_backward(*tensors)
        return function(*tensors)
        ### END SOLUTION

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Calls the function once more, now recorded, and goes backward through it.

        The random numbers are the same as in the forward pass, and afterwards go on as if nothing had been drawn.
        The gradients of parameters that the function uses are added to them.

        Returns:
            One gradient for each argument of ``forward``: ``None`` for the function and for a tensor that needs none.
        """
        ### BEGIN SOLUTION
        inputs = [t.detach().requires_grad_(t.requires_grad) for t in ctx.saved_tensors]
        present = rng_state()
        set_rng_state(ctx.rng)
        with torch.enable_grad():
            output = ctx.function(*inputs)
        set_rng_state(present)
        torch.autograd.backward(output, gradient)
        return None, *(tensor.grad for tensor in inputs)
        ### END SOLUTION


def checkpoint(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)`` with the same gradients, but without its activations in memory.

    Args:
        function: takes the tensors and returns one tensor that depends on them. It may use parameters and dropout.
        tensors: at least one of them must require gradients for any to flow, also to the function's parameters.
            Those that do not require any (token ids, masks) get none.

    Raises:
        ValueError: one of ``tensors`` is not a tensor (the message says ``tensor``).
    """
    ### BEGIN SOLUTION
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ValueError("every argument after the function must be a tensor")
    return Checkpoint.apply(function, *tensors)
    ### END SOLUTION


class CheckpointedStack(nn.Module):
    """Residual blocks ``x + dropout(tanh(layers[i](x)))``, one after another, checkpointed in segments.

    Args:
        d_model: width.
        depth: number of blocks.
        segment: how many neighbouring blocks are one checkpointed segment; the last may be shorter.
        dropout: probability that a component of a block's change is dropped in training.
    """

    def __init__(self, d_model: int, depth: int, segment: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        self.segment = segment

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Blocks 0 to ``segment - 1`` under one ``checkpoint``, then the next ``segment`` blocks, to the last block."""

        ### BEGIN SOLUTION
        def run(start: int, x: Tensor) -> Tensor:
            for layer in self.layers[start : start + self.segment]:
                x = x + self.dropout(torch.tanh(layer(x)))
            return x

        for start in range(0, len(self.layers), self.segment):
            x = checkpoint(functools.partial(run, start), x)
        return x
        ### END SOLUTION


# %% [markdown]
# A cube, $y = x^3$, at $x = (1, 2)$: $\nabla = 3x^2$. The function must be called twice, first without recording and
# then, in the backward pass, with.

# %% test="checkpoint_gradients" points=2
calls = []


def cube(x: Tensor) -> Tensor:
    """x³, noting whether it is recorded."""
    calls.append(torch.is_grad_enabled())
    return x**3


x = torch.tensor([1.0, 2.0], device=device, requires_grad=True)
y = checkpoint(cube, x)
check.close(y, [1.0, 8.0], because="The value is that of the function.")
check.equal(
    calls, [False], because="The forward pass calls the function once, and keeps no graph of it."
)
backward(
    y,
    torch.tensor([1.0, 10.0], device=device),
    because="Are the inputs detached before the function is run again with torch.enable_grad()?",
)
check.equal(
    calls, [False, True], because="The backward pass runs the function once more, now recorded."
)
check.close(
    x.grad,
    [3.0, 120.0],
    because="The gradient is 3x² times the gradient that arrives, (1, 10), and it reaches x once: is the input "
    "detached?",
)
check.raises(
    ValueError,
    checkpoint,
    cube,
    [1.0, 2.0],
    mentions="tensor",
    because="A list is no tensor: say so, and say tensor.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs

rng = inputs("checkpoint_gradients")


def draw(*shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64).to(device)


scale, rows = draw(4).requires_grad_(), torch.tensor([2, 0, 2], device=device)
x, w, shift = draw(5, 3).T.requires_grad_(), draw(5, 4).requires_grad_(), draw(3, 4)
pull, count = draw(3, 4), []


def layer(x, rows, w, shift):
    """Uses three tensors that arrive, one of them of integers, and a parameter that does not."""
    count.append(torch.is_grad_enabled())
    return torch.tanh(x[rows] @ w + shift) * scale


def found(run):
    """The value and all gradients, where the inputs come from a graph and are used outside as well."""
    for leaf in (x, w, scale):
        leaf.grad = None
    wide = 2 * x
    y = run(layer, wide, rows, w, shift) + wide.sum()
    backward(
        y,
        pull,
        because="The backward pass must work inside a larger graph: detach the inputs, and give one gradient for each "
        "argument, None where none is needed.",
    )
    return y.detach(), [leaf.grad for leaf in (x, w, scale)]


right, right_gradients = found(lambda function, *tensors: function(*tensors))
count.clear()
value, gradients = found(checkpoint)
check.close(
    value, right, because="The value is function(*tensors), with all tensors in their order."
)
check.that(
    count == [False, True],
    "The function runs once without recording, and once more, recorded, in the backward pass.",
)
for name, mine, expected in zip(
    ("first tensor", "third tensor", "parameter inside"), gradients, right_gradients, strict=True
):
    check.that(mine is not None, f"No gradient reaches the {name}.")
    check.close(
        mine,
        expected,
        because=f"The gradient of the {name} is off: give each argument its own, multiply by the gradient that "
        "arrives, and let parameters collect theirs.",
    )
check.that(shift.grad is None, "A tensor that requires no gradient gets none.")
# Only the last tensor requires one.
late = draw(3, 4).requires_grad_()
y = checkpoint(layer, x.detach(), rows, w.detach(), late)
backward(y, pull, because="Any one of the tensors may be the only one that requires a gradient.")
check.that(late.grad is not None, "No gradient reaches the last tensor.")
expected = late.detach().clone().requires_grad_()
backward(layer(x.detach(), rows, w.detach(), expected), pull, because="")
check.close(late.grad, expected.grad, because="The gradient of the last tensor is off.")
# Without gradients there is nothing to run again.
count.clear()
with torch.no_grad():
    value = checkpoint(layer, 2 * x, rows, w, shift)
check.close(value, right - 2 * x.detach().sum(), because="Without gradients the value is the same.")
check.that(count == [False], "Without gradients the function runs once.")
for bad in [(None,), (x, 3.0), (x, "x")]:
    check.raises(
        ValueError,
        checkpoint,
        layer,
        *bad,
        mentions="tensor",
        because="Every argument after the function must be a tensor.",
    )
### END HIDDEN TESTS

# %% test="checkpoint_randomness" points=2
# With weights 0 and biases 1 a block adds tanh(1)/(1 − ½) where dropout keeps, and 0 elsewhere: the output shows the
# mask of the first run, the gradient of the bias that of the second.
stack = CheckpointedStack(d_model=6, depth=1, segment=1, dropout=0.5).to(device)
set_to = {"layers.0.weight": torch.zeros(6, 6), "layers.0.bias": torch.ones(6)}
stack.load_state_dict(set_to)
x = torch.zeros(30, 6, device=device, requires_grad=True)
y = stack(x)
kept = (y.detach() > 0).float()
backward(y, torch.ones(30, 6, device=device), because="The backward pass of one block should work.")
slope = 2 * (1 - torch.tanh(torch.tensor(1.0)).item() ** 2)
check.close(
    stack.layers[0].bias.grad,
    slope * kept.sum(dim=0),
    because="Dropout dropped other components in the second run than in the first: put the random numbers back to "
    "where they were in the forward pass.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import gradients, inputs

rng = inputs("checkpoint_randomness")
for segment in (1, 2):
    stack, weights = CheckpointedStack(5, 2, segment, 0.5).to(device), {}
    # Where dropout keeps, block 0 adds 1 to a component and block 1 adds 1.5.
    added = (1.0, 1.5)
    for i in range(2):
        bias = torch.full((5,), math.atanh(added[i] / 2))
        weights |= {f"layers.{i}.weight": torch.zeros(5, 5), f"layers.{i}.bias": bias}
    stack.load_state_dict(weights)
    x = torch.randn(40, 5, generator=rng).to(device).requires_grad_()
    y = stack(x)
    change = (y - x).detach()
    kept_second = (change > added[1] - 0.05).float()
    kept_first = (change - added[1] * kept_second > added[0] - 0.05).float()
    backward(
        y,
        torch.ones(40, 5, device=device),
        because="A stack of two blocks must go backward: detach the inputs of each segment.",
    )
    collected = gradients(stack)
    for i, kept in enumerate((kept_first, kept_second)):
        check.close(
            collected[f"layers.{i}.bias"],
            2 * (1 - (added[i] / 2) ** 2) * kept.sum(dim=0),
            because="The second run of a segment must draw the same random numbers as its first.",
        )
# What is drawn after the backward pass is new: neither the segment's numbers again nor those drawn since.
stack = CheckpointedStack(5, 1, 1, 0.5).to(device)
stack.load_state_dict({"layers.0.bias": torch.ones(5), "layers.0.weight": torch.zeros(5, 5)})
x = torch.zeros(40, 5, device=device).requires_grad_()
first, second = stack(x), stack(x)
backward(first, torch.ones(40, 5, device=device), because="The backward pass should work.")
third = stack(x)
for earlier in (first, second):
    check.that(
        not torch.equal(third.detach(), earlier.detach()),
        "After the backward pass random numbers repeat that were drawn before: put back the state that you found.",
    )
### END HIDDEN TESTS


# %% test="checkpoint_stack" points=2
def noted_stack(depth: int, segment: int, dtype: torch.dtype) -> tuple[nn.Module, list]:
    """A stack, and a list of each run of a layer with whether it is recorded."""
    stack, runs = CheckpointedStack(4, depth, segment).to(device, dtype), []
    layers = stack.layers
    for i in range(depth):
        layers[i].register_forward_hook(
            lambda layer, args, output, i=i: runs.append((i, torch.is_grad_enabled()))
        )
    return stack, runs


stack, runs = noted_stack(depth=3, segment=2, dtype=torch.float32)
y = stack(torch.ones(2, 4, device=device, requires_grad=True))
check.equal(
    runs,
    [(0, False), (1, False), (2, False)],
    because="Forward, every layer runs once and is not recorded.",
)
runs.clear()
backward(
    y,
    torch.ones(2, 4, device=device),
    because="Each segment must stand alone: is its input detached before the second run?",
)
check.equal(
    runs,
    [(2, True), (0, True), (1, True)],
    because="Backward, the last segment (block 2) runs again first, then blocks 0 and 1. If the last segment runs "
    "several times: a function made in a loop sees the loop's last value unless it is given its own.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import gradients, inputs, reference

theirs = reference("pretraining", "efficient_training")
rng = inputs("checkpoint_stack")
for depth, segment in [(5, 2), (2, 2), (2, 1), (1, 3)]:
    stack, runs = noted_stack(depth, segment, torch.float64)
    weights = {}
    for i in range(depth):
        weights[f"layers.{i}.weight"] = torch.randn(4, 4, generator=rng, dtype=torch.float64)
        weights[f"layers.{i}.bias"] = torch.randn(4, generator=rng, dtype=torch.float64)
    weights = {name: value.to(device).requires_grad_() for name, value in weights.items()}
    stack.load_state_dict({name: value.detach() for name, value in weights.items()})
    x = torch.randn(2, 3, 4, generator=rng, dtype=torch.float64).to(device).requires_grad_()
    plain = x.detach().clone().requires_grad_()
    expected = plain
    for i in range(depth):
        layer = torch.nn.functional.linear(
            expected, weights[f"layers.{i}.weight"], weights[f"layers.{i}.bias"]
        )
        expected = expected + torch.tanh(layer)
    pull = torch.randn(2, 3, 4, generator=rng, dtype=torch.float64).to(device)
    expected.backward(pull)
    y = stack(x)
    check.close(
        y,
        expected,
        because="Every block in its order, x + dropout(tanh(layer(x))), to the last, whole segment or not.",
    )
    runs.clear()
    backward(
        y,
        pull,
        because="Each segment must stand alone: is its input detached before the second run?",
    )
    starts = range(0, depth, segment)
    again = [(i, True) for s in reversed(starts) for i in range(s, min(s + segment, depth))]
    check.that(
        runs == again,
        "Backward, the segments run again from the last to the first, each of segment blocks (the last may be "
        "shorter), each once.",
    )
    check.close(x.grad, plain.grad, because="The gradient of the input is off.")
    collected = gradients(stack)
    for name, value in weights.items():
        check.that(collected[name] is not None, "No gradient reaches a layer of the stack.")
        check.close(
            collected[name],
            value.grad,
            because="The gradients of the layers are those of the stack without checkpoints. Parameters collect theirs "
            "when one goes backward through the second run.",
        )
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · The ring all-reduce
#
# In data-parallel training every machine (*rank*) holds the whole model and sees its own share of the batch. Before the
# step all need the same gradient: the sum over the ranks. If all send theirs to rank 0 and get the sum back, rank 0
# receives and sends $n - 1$ gradients, and the more machines there are the longer all wait for it.
#
# In the ring all-reduce (Patarasuk and Yuan 2009) rank $r$ only ever sends to its right neighbour, rank $r + 1$, and
# receives from its left one; the last rank's right neighbour is rank 0. The gradient is cut into $n$ chunks.
# All ranks do at the same time, counting modulo $n$:
#
# 1. **Reduce-scatter**, steps $s = 0, \dots, n - 2$: rank $r$ sends its chunk $r - s$, receives chunk $r - s - 1$ and
#    *adds* it to its own. A chunk goes around and collects; in the end rank $r$ has the whole sum of chunk $r + 1$.
# 2. **All-gather**, steps $s = 0, \dots, n - 2$: rank $r$ sends its chunk $r + 1 - s$, which is complete, and receives
#    chunk $r - s$, which *replaces* its own.
#
# Each rank sends $2(n-1)$ messages of $1/n$ of the gradient, together less than two gradients, however many ranks there
# are.
#
# Write what *one* rank does. `exchange(chunk)` hands a chunk to the right neighbour and gives what came from the left.
# In the tests the other ranks are played; in the experiment the same function runs in real processes.
#
# The result is the sum. Whether it is divided by the number of ranks is decided once, outside; whoever averages here
# as well averages twice.


# %% solution="ring"
def ring_all_reduce(
    buffer: Float[Tensor, "size"],
    rank: int,
    world_size: int,
    exchange: Callable[[Float[Tensor, "chunk"]], Float[Tensor, "chunk"]],
) -> Float[Tensor, "size"]:
    """The sum of all ranks' buffers, as one rank of the ring finds it (Patarasuk and Yuan 2009).

    The buffer is cut as ``torch.tensor_split(buffer, world_size)`` cuts it: chunks of nearly equal size, the longer
    ones first, empty ones last where there are more ranks than elements.

    Args:
        buffer: this rank's numbers; left unchanged. All ranks' buffers are of the same size.
        rank: which rank this is, from 0.
        world_size: how many there are. With one rank nothing is sent.
        exchange: sends a chunk, also an empty one, to rank ``rank + 1`` and returns the one that rank ``rank - 1`` has
            sent in the same step (modulo ``world_size``). What it returns may be kept and changed. It is called
            ``2 * (world_size - 1)`` times, for the steps of the reduce-scatter and then of the all-gather.

    Raises:
        ValueError: ``buffer`` does not have one dimension (the message says ``buffer``), or ``rank`` is not one of
            0 to ``world_size - 1`` (it says ``rank``).
    """
    ### BEGIN SOLUTION
    if buffer.dim() != 1:
        raise ValueError(f"buffer must have one dimension, got shape {tuple(buffer.shape)}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie between 0 and {world_size - 1}, got {rank}")
    chunks = list(buffer.clone().tensor_split(world_size))
    for step in range(world_size - 1):
        arrived = exchange(chunks[(rank - step) % world_size])
        chunks[(rank - step - 1) % world_size] += arrived
    for step in range(world_size - 1):
        arrived = exchange(chunks[(rank + 1 - step) % world_size])
        chunks[(rank - step) % world_size] = arrived
    return torch.cat(chunks)
    ### END SOLUTION


# %%
def play(
    function: Callable, buffer: Tensor, rank: int, world_size: int, arriving: list[Tensor]
) -> tuple[Tensor | None, list[Tensor]]:
    """For the tests: runs one rank, whose left neighbour sends ``arriving``; gives its result and what it sent."""
    sent = []

    def exchange(chunk: Tensor) -> Tensor:
        sent.append(chunk.clone())
        step = len(sent) - 1
        return arriving[step].clone() if step < len(arriving) else torch.zeros_like(chunk)

    try:
        return function(buffer, rank, world_size, exchange), sent
    except NotImplementedError:
        raise
    except (RuntimeError, IndexError):  # chunks of different sizes, mostly; what was sent says more
        return None, sent


# %% [markdown]
# Two ranks with $(1, 2, 3, 4)$ and $(10, 20, 30, 40)$. Rank 0 sends $(1, 2)$ and gets $(30, 40)$: its second chunk is
# now $(33, 44)$, complete. It sends that and gets the complete first chunk, $(11, 22)$.

# %% test="ring_by_hand" points=2
mine = torch.tensor([1.0, 2.0, 3.0, 4.0], device=device)
arriving = [torch.tensor([30.0, 40.0], device=device), torch.tensor([11.0, 22.0], device=device)]
result, sent = play(ring_all_reduce, mine, 0, 2, arriving)
check.equal(
    len(sent), 2, because="Two ranks: one step of the reduce-scatter, one of the all-gather."
)
check.close(sent[0], [1.0, 2.0], because="In the first step rank 0 sends its chunk 0.")
check.close(
    sent[1],
    [33.0, 44.0],
    because="In the all-gather rank 0 first sends chunk 1, which is complete.",
)
check.close(
    result,
    [11.0, 22.0, 33.0, 44.0],
    because="What arrives is added in the reduce-scatter and replaces in the all-gather; the result is the sum, not "
    "the mean.",
)
check.equal(mine, [1.0, 2.0, 3.0, 4.0], because="The buffer was changed in place: work on a copy.")

# Rank 1 of three, with one number a chunk: 1, 2, 3; the others hold 10, 20, 30 and 100, 200, 300.
arriving = [torch.tensor([value], device=device) for value in (10.0, 330.0, 222.0, 111.0)]
result, sent = play(ring_all_reduce, torch.tensor([1.0, 2.0, 3.0], device=device), 1, 3, arriving)
check.equal(
    [chunk.tolist() for chunk in sent],
    [[2.0], [11.0], [333.0], [222.0]],
    because="Rank 1 sends chunks 1 and 0 (with what it received for 0 added), then the complete chunks 2 and 1.",
)
check.close(result, [111.0, 222.0, 333.0], because="The result is the sum over the three ranks.")
check.raises(
    ValueError,
    ring_all_reduce,
    torch.zeros(2, 2, device=device),
    0,
    2,
    lambda chunk: chunk,
    mentions="buffer",
    because="A matrix must be flattened first: say so, and say buffer.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs

rng = inputs("ring_by_hand")
# One rank has the sum already.
alone = torch.randn(5, generator=rng, dtype=torch.float64).to(device)
result, sent = play(ring_all_reduce, alone, 0, 1, [])
check.close(result, alone, because="With one rank the sum is the buffer itself.")
check.that(len(sent) == 0, "With one rank nothing is sent.")
for rank, world_size in [(-1, 3), (3, 3), (4, 3), (0, 0), (0, -1)]:
    check.raises(
        ValueError,
        ring_all_reduce,
        alone,
        rank,
        world_size,
        lambda chunk: chunk,
        mentions="rank",
        because="A rank lies between 0 and world_size − 1: say so, and say rank.",
    )
for shape in [(), (1, 5)]:
    check.raises(
        ValueError,
        ring_all_reduce,
        torch.zeros(shape, device=device),
        0,
        2,
        lambda chunk: chunk,
        mentions="buffer",
        because="A buffer has one dimension.",
    )
### END HIDDEN TESTS

# %% test="ring_messages" points=2
# Every rank sends 2(n − 1) messages, of the chunks' sizes.
quiet = [torch.zeros(2, device=device)] * 6
_, sent = play(ring_all_reduce, torch.ones(8, device=device), 2, 4, quiet)
check.equal(
    [len(chunk) for chunk in sent],
    [2] * 6,
    because="Four ranks: three steps of each kind, each with one chunk of a quarter of the buffer.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs

rng = inputs("ring_messages")


def ring_of(buffers):
    """What each rank of a right ring sends, in order."""
    n = len(buffers)
    chunks = [buffer.tensor_split(n) for buffer in buffers]
    messages = []
    for r in range(n):
        partial = [
            sum(chunks[(r - i) % n][(r - step) % n] for i in range(step + 1))
            for step in range(n - 1)
        ]
        whole = [sum(chunks[i][(r + 1 - step) % n] for i in range(n)) for step in range(n - 1)]
        messages.append(partial + whole)
    return messages


for world_size, size, ranks in [
    (2, 5, (0, 1)),
    (3, 7, (0, 1, 2)),
    (4, 12, (0, 3)),
    (5, 3, (0, 2, 4)),
]:
    buffers = [
        torch.randn(2 * size, generator=rng, dtype=torch.float64).to(device)[::2]
        for _ in range(world_size)
    ]
    before = [buffer.clone() for buffer in buffers]
    messages = ring_of(buffers)
    for rank in ranks:
        result, sent = play(ring_all_reduce, buffers[rank], rank, world_size, messages[rank - 1])
        check.that(
            len(sent) == 2 * (world_size - 1),
            "Each rank sends world_size − 1 chunks in the reduce-scatter and as many in the all-gather.",
        )
        for step, (own, right) in enumerate(zip(sent, messages[rank], strict=False)):
            phase = "reduce-scatter" if step < world_size - 1 else "all-gather"
            check.close(
                own,
                right,
                because=f"A message of the {phase} is not the one that the right neighbour needs: which chunk is it, "
                "as torch.tensor_split cuts them, and has what arrived for it been added?",
            )
        check.close(
            result,
            sum(before),
            because="The result is the sum of all ranks' buffers, in the order of the elements, whatever the sizes.",
        )
        check.close(
            buffers[rank], before[rank], because="The buffer is left unchanged: work on a copy."
        )
### END HIDDEN TESTS

# %% [markdown] written="efficient_why" points=2
# **In your own words.** A colleague reports: "Checkpointing and mixed precision are the efficient architecture of the
# scaling era: both reduce the computation of a training step." What is wrong with each half of that sentence? Say for
# both techniques what becomes less, what stays, and what becomes more. Then: with four machines and four micro-batches
# on each, where exactly must the mean be taken, and how would the training look if it were taken twice? (5 to 9
# sentences.)

# %% [markdown]
# ## Experiment: memory for time
#
# Your stack, with segments of different length. We count the bytes that autograd keeps alive at the worst moment of a
# step, the second runs included, and the time of a step. One segment of all blocks keeps one checkpoint, and then all
# activations at once when it runs again; segments of one block keep a checkpoint for every block. The smallest memory
# lies between them. A block of $c$ tensors, each of the size of a checkpoint, makes it $n/k + ck$ in all, so that the
# smallest is at $k = \sqrt{n/c}$; we measure $c$ on the stack without checkpoints.

# %% experiment=true
import time

import matplotlib.pyplot as plt
from tqdm.auto import tqdm

from lab import figures

DEPTH, WIDTH, BATCH, REPEATS = (
    (144, 1024, 4096, 10) if device.type == "cuda" else (36, 128, 512, 10)
)


# On a CPU the processor's time, which other programs do not lengthen.
clock = time.perf_counter if device.type == "cuda" else time.process_time


class Meter:
    """Counts the bytes of the tensors that autograd keeps for backward passes, each storage once."""

    def __init__(self) -> None:
        self.kept, self.now, self.peak = {}, 0, 0

    def pack(self, tensor: Tensor) -> "Kept":
        """What autograd holds in place of a tensor."""
        return Kept(self, tensor)

    def add(self, storage: torch.UntypedStorage, count: int) -> None:
        """Counts a storage once more, or once less."""
        key = storage.data_ptr()
        before = self.kept.get(key, 0)
        self.kept[key] = before + count
        if before == 0 or before + count == 0:
            self.now += count * storage.nbytes()
            self.peak = max(self.peak, self.now)


class Kept:
    """A tensor that waits for the backward pass, and tells the meter when it no longer does."""

    def __init__(self, meter: Meter, tensor: Tensor) -> None:
        self.meter, self.tensor = meter, tensor
        meter.add(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self.meter.add(self.tensor.untyped_storage(), -1)


def step_of(stack: nn.Module, x: Tensor) -> None:
    """Forward and backward."""
    stack.zero_grad()
    stack(x).square().mean().backward()


def plain_stack(x: Tensor, stack: nn.Module) -> Tensor:
    """The same blocks with nothing checkpointed."""
    for layer in stack.layers:
        x = x + stack.dropout(torch.tanh(layer(x)))
    return x


def measure(segment: int | None) -> tuple[float, float]:
    """Most megabytes kept at once, and seconds of a step (the median); ``None`` is without checkpoints."""
    torch.manual_seed(0)
    stack = CheckpointedStack(WIDTH, DEPTH, segment or DEPTH, dropout=0.1).to(device)
    if segment is None:
        stack.forward = functools.partial(plain_stack, stack=stack)
    x = torch.randn(BATCH, WIDTH, generator=lab.generator("memory")).to(device).requires_grad_()
    meter = Meter()
    with torch.autograd.graph.saved_tensors_hooks(meter.pack, lambda kept: kept.tensor):
        step_of(stack, x)
    seconds = []
    for _ in range(REPEATS):
        start = clock()
        step_of(stack, x)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return meter.peak / 2**20, sorted(seconds)[REPEATS // 2]


segments = [k for k in range(1, DEPTH + 1) if DEPTH % k == 0]
plain_memory, plain_seconds = measure(None)
measured = [measure(segment) for segment in tqdm(segments, desc="segments")]
tensors = plain_memory * 2**20 / (DEPTH * BATCH * WIDTH * 4)  # c: float32 has four bytes
memory, slower = [m for m, _ in measured], [s / plain_seconds for _, s in measured]

figures.use_style()
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
left.plot(segments, memory, "o-", label="checkpointed")
left.axhline(plain_memory, color=figures.COLOURS[1], linestyle="--", label="nothing checkpointed")
left.axvline(math.sqrt(DEPTH / tensors), color="grey", linestyle=":", label="√(n/c)")
left.set(ylabel="megabytes kept, at most", ylim=(0, None))
left.legend(fontsize=8)
right.plot(segments, slower, "o-")
right.axhline(1, color=figures.COLOURS[1], linestyle="--", label="nothing checkpointed")
right.axhline(4 / 3, color="grey", linestyle=":", label="4/3")
right.set(ylabel="time of a step, relative", ylim=(0, None))
right.legend(fontsize=8, loc="lower right")
for ax in (left, right):
    ax.set_xscale("log")
    ax.set_xticks(segments, segments)
    ax.minorticks_off()
    ax.set_xlabel("blocks in a segment")
best = min(range(len(segments)), key=memory.__getitem__)
figures.show(
    fig,
    alt=f"{DEPTH} blocks. Nothing checkpointed: {plain_memory:.1f} MB kept at most, c = {tensors:.1f}. "
    f"With checkpoints the least is {memory[best]:.1f} MB, with segments of {segments[best]}; "
    f"{memory[0]:.1f} MB with segments of 1 and {memory[-1]:.1f} MB with one segment. "
    f"A step takes {min(slower):.2f} to {max(slower):.2f} times as long.",
)

# %% [markdown]
# ## Experiment: training with half the digits
#
# A small network learns which character of the plays follows the eight before it. What we see is one micro-batch of a
# batch of $2^{22}$ (four million) characters: its loss is divided by all of them, as in part 2, so that the gradient of
# a single logit is tiny, and most lie below what float16 has. The learning rate makes up for it, as if the other
# micro-batches said the same as this one. Three trainings from the same start with your step: float32, float16 without
# a scale (scale 1, never changed), float16 with the scale that finds itself; and for the third, the scale as it went.

# %% experiment=true
import torch.nn.functional as F

from lab import data

STEPS, BATCH, HIDDEN = (3000, 65536, 1024) if device.type == "cuda" else (200, 4096, 96)
CONTEXT, EMBED, RATE, SEED = 8, 16, 1.0, 0
SHARE = BATCH / 2**22
text = data.text("train")[:1_000_000]
characters = sorted(set(text))
ids = torch.tensor([characters.index(c) for c in text], device=device)


def first_weights(seed: int) -> dict[str, Tensor]:
    """The network's weights before training."""
    rng = lab.generator(f"half precision {seed}")
    shapes = {"embed": (len(characters), EMBED), "hidden": (CONTEXT * EMBED, HIDDEN)}
    shapes |= {"out": (HIDDEN, len(characters))}
    return {
        name: (torch.randn(shape, generator=rng) / math.sqrt(shape[0])).to(device)
        for name, shape in shapes.items()
    }


def text_loss(w: dict[str, Tensor], windows: Tensor) -> Tensor:
    """Nats for the last character of each window: their sum, over the size of the whole batch."""
    x = w["embed"][windows[:, :-1]].flatten(1)
    logits = torch.relu(x @ w["hidden"]) @ w["out"]
    return F.cross_entropy(logits.float(), windows[:, -1]) * SHARE


def train_in(dtype: torch.dtype, scaled: bool, bar: tqdm) -> tuple[list[float], list[float]]:
    """Losses and scales of one training."""
    weights, rng = first_weights(SEED), lab.generator(f"half batches {SEED}")
    scale, good_steps = 2.0**24 if scaled else 1.0, 0
    losses, scales = [], []
    for _ in range(STEPS):
        starts = torch.randint(len(ids) - CONTEXT, (BATCH, 1), generator=rng).to(device)
        windows = ids[starts + torch.arange(CONTEXT + 1, device=device)]
        scales.append(scale)
        loss, *after = autocast_step(
            lambda w, windows=windows: text_loss(w, windows),
            weights,
            RATE / SHARE,
            scale,
            good_steps,
            dtype=dtype,
            growth_interval=25,
        )
        losses.append(loss.item() / SHARE)
        if scaled:
            scale, good_steps = after
        bar.update()
    return losses, scales


kinds = {
    "float32": (torch.float32, False),
    "float16, no scale": (torch.float16, False),
    "float16, scaled": (torch.float16, True),
}
with tqdm(total=len(kinds) * STEPS, desc="steps") as bar:
    trained = {label: train_in(*kind, bar) for label, kind in kinds.items()}

fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
for (label, (losses, _)), style in zip(trained.items(), ("-", ":", "--"), strict=True):
    left.plot(losses, style, label=label)
left.set(xlabel="step", ylabel="loss, nats per character")
left.legend(fontsize=8)
right.semilogy(trained["float16, scaled"][1], color=figures.COLOURS[2], base=2)
right.set(xlabel="step", ylabel="scale of the loss")
ends = {label: sum(losses[-10:]) / 10 for label, (losses, _) in trained.items()}
scales = trained["float16, scaled"][1]
figures.show(
    fig,
    alt="Mean loss of the last ten steps: "
    + ", ".join(f"{end:.3f} in {label}" for label, end in ends.items())
    + f". The scale began at {scales[0]:.0f} and ended at {scales[-1]:.0f}.",
)

# %% [markdown]
# With the scale float16 learns what float32 learns. Without one it gets worse than it was at the start: of the
# gradient of the logits, $(p_i - [i = \text{target}])/2^{22}$, only the part of the right character is large enough
# for float16. What should push the others down becomes 0, and the network is pushed to one side only. In the right
# picture the scale doubles after 25 good steps, and each fall is a step that overflowed and was skipped.
#
# ## Experiment: a ring of real processes
#
# Your `ring_all_reduce`, in processes of their own which share no memory and talk through sockets
# (`torch.distributed` with its backend gloo). Each holds a buffer of random numbers in the place of a gradient. We
# compare the result with torch's own all-reduce, and count what the busiest process sends, against the plan in which
# all send to rank 0 and rank 0 sends the sum to all.

# %% experiment=true
import multiprocessing
import os
import sys
import tempfile

import torch.distributed as dist

WORLDS, SIZE = (2, 3, 4, 6, 8), 24 * (1_000_000 if device.type == "cuda" else 10_000)


def one_rank(rank: int, world_size: int, folder: str, found: multiprocessing.Queue) -> None:
    """What each process runs: it meets the others, sums in both ways, and reports."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    buffer = torch.randn(SIZE, generator=lab.generator(f"gradient {rank}"))
    sent = []

    def exchange(chunk: Tensor) -> Tensor:
        arrived = torch.empty_like(chunk)  # SIZE divides by every world size: chunks are equal
        sending = dist.isend(chunk.contiguous(), (rank + 1) % world_size)
        dist.recv(arrived, (rank - 1) % world_size)
        sending.wait()
        sent.append(len(chunk))
        return arrived

    ours = ring_all_reduce(buffer, rank, world_size, exchange)
    torchs = buffer.clone()
    dist.all_reduce(torchs)
    central = sum_at_rank_0(buffer.clone(), rank, world_size)
    error = (ours - torchs).abs().max().item()
    found.put((rank, error, sum(sent) / SIZE, central / SIZE))
    dist.destroy_process_group()


def sum_at_rank_0(total: Tensor, rank: int, world_size: int) -> int:
    """All send to rank 0, rank 0 sends the sum to all; how many numbers this rank has sent."""
    if rank:
        dist.send(total, 0)
        dist.recv(total, 0)
        return len(total)
    for other in range(1, world_size):
        arrived = torch.empty_like(total)
        dist.recv(arrived, other)
        total += arrived
    for other in range(1, world_size):
        dist.send(total, other)
    return (world_size - 1) * len(total)


def ring_of_processes(world_size: int) -> tuple[float, float, float]:
    """Largest error, and gradients sent by the busiest process: in the ring, and with everything at rank 0."""
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=one_rank, args=(rank, world_size, folder, found), daemon=True)
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        reports = [found.get(timeout=120) for _ in ranks]
        for process in ranks:
            process.join(timeout=60)
    _, errors, ring, central = zip(*reports, strict=True)
    return max(errors), max(ring), max(central)


if "fork" not in multiprocessing.get_all_start_methods():
    print("This experiment needs processes that are forked, which this system does not have.")
else:
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all processes are on this machine
    errors, ring, central = zip(
        *(ring_of_processes(n) for n in tqdm(WORLDS, desc="rings")), strict=True
    )
    fig, ax = plt.subplots()
    ax.plot(WORLDS, central, "s--", color=figures.COLOURS[1], label="all to rank 0")
    ax.plot(WORLDS, ring, "o-", color=figures.COLOURS[0], label="ring")
    ax.set(xlabel="processes", ylabel="gradients sent by the busiest", ylim=(0, None))
    ax.legend()
    figures.show(
        fig,
        alt="Gradients sent by the busiest process: "
        + "; ".join(
            f"{n} processes, {r:.2f} in the ring and {c:.0f} with everything at rank 0"
            for n, r, c in zip(WORLDS, ring, central, strict=True)
        )
        + f". The ring's sums differ from torch's by at most {max(errors):.0e}.",
    )

# %% [markdown]
# The busiest process of the ring sends less than two gradients however many there are; rank 0 sends one more for every
# machine that joins. The ring pays with steps: $2(n-1)$ of them, each waiting for the slowest link. For small messages
# on many machines libraries therefore use trees, or mix both.
