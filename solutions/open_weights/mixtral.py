# %% [markdown]
# # Mixtral
#
# Two models of Mistral AI kept LLaMA's design and added one idea each. Mistral 7B (27 September 2023; Jiang et al.
# 2023) *remembers* less: a position looks back through a window, and the cache of keys and values stops growing.
# Mixtral 8x7B (11 December 2023; Jiang et al. 2024) *computes* less: each block has eight feed-forward networks, and a
# router picks two of them for each token. Of its 46.7 billion parameters 12.9 billion work on a token. You build the
# window, the cache that goes with it, the router and its experts, and the model around them, which opens a folder as
# Hugging Face's library writes it and gives the same logits.
#
# **You build** a sliding-window mask, a rolling cache, windowed attention, top-k routing, the load-balancing loss, a
# sparse mixture of experts, the model
# · **Minutes** 120 · **Points** 20 · **Difficulty** ●●● ·
# **Before this** [LLaMA](llama.ipynb)
#
# Run a cell with Shift+Enter. Write your answers where it says `YOUR CODE HERE`, then run the tests below them.
# A test that passes is silent; one that fails says what it expected, what came, and which mistake usually does that.
# More tests, on other inputs, run when your notebook is graded.

# %%
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from safetensors.torch import load
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
# ## 1 · A window
#
# In causal attention position $i$ has $i + 1$ keys to compare with. A text twice as long costs four times as many
# scores, and the cache has no end. With a *sliding window* of $W$ positions, $i$ attends to itself and to the $W - 1$
# before it, and to nothing older. (The pattern is older than Mistral: Child et al. 2019, Beltagy et al. 2020.)
#
# ```
#            key    0 1 2 3 4 5
# query 0           x
#       1           x x
#       2           x x x              W = 3
#       3             x x x
#       4               x x x
#       5                 x x x
# ```
#
# What lies before the window is not lost. A block hands on what it saw, so information moves on by $W - 1$ positions a
# block. After $L$ blocks position $i$ can depend on everything from $i - L(W - 1)$ on. For Mistral 7B with $W = 4096$
# and 32 blocks that is 131,040 positions, the paper's "approximately 131K tokens". It says *theoretical* attention
# span, and rightly: what could arrive is not what is used.
#
# **How many is W?** The paper says that $i$ attends to the positions "between $i - W$ and $i$", which are $W + 1$ with
# both ends, and the mask of the small reference program published with the model does the same when it reads a prompt.
# The cache of the same program holds $W$. Hugging Face's code counts $W$ with the position itself, and so do we. Wrong
# by one in either way, the model still runs, and every logit from the end of the first window on is off.
#
# The function is given positions, not a length, because in part 3 keys will not stand in their order.


# %% solution="window"
def sliding_mask(
    query_positions: Int[Tensor, "queries"], key_positions: Int[Tensor, "keys"], window: int
) -> Bool[Tensor, "queries keys"]:
    """Which keys each query may attend to: ``True`` = may.

    A key may be seen by a query that stands at its position or after it, and by no query that is ``window`` positions
    or more further on: a query sees at most ``window`` positions, its own among them.

    Args:
        query_positions: where each query stands, in any order.
        key_positions: where each key stands, in any order.
        window: W.

    Raises:
        ValueError: ``window`` is below 1 (the message says ``window``).
    """
    ### BEGIN SOLUTION
    if window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    distance = query_positions[:, None] - key_positions
    return (distance >= 0) & (distance < window)
    ### END SOLUTION


# %% test="window_mask" points=1
check.equal(
    sliding_mask(torch.arange(4), torch.arange(4), 2),
    [
        [True, False, False, False],
        [True, True, False, False],
        [False, True, True, False],
        [False, False, True, True],
    ],
    because="With a window of 2 each position sees itself and the one before it. True = may attend.",
)
check.equal(
    sliding_mask(torch.tensor([7]), torch.tensor([8, 6, 7, 4, 5]), 3),
    [[False, True, True, False, True]],
    because="The query at 7 sees the keys at 5, 6 and 7, wherever they are in the list.",
)
check.raises(
    ValueError,
    sliding_mask,
    torch.arange(2),
    torch.arange(2),
    0,
    mentions="window",
    because="Say window.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("open_weights", "mixtral")
rng = inputs("window_mask")
for queries, keys, window in [(1, 1, 1), (5, 5, 1), (6, 6, 3), (4, 9, 2), (3, 8, 5), (5, 7, 50)]:
    at = torch.randperm(12, generator=rng)[:queries].to(device)
    places = torch.randperm(12, generator=rng)[:keys].to(device)
    for q, k in ((at, places), (at + 70, places + 70)):
        check.equal(
            sliding_mask(q, k, window),
            theirs.sliding_mask(q, k, window),
            because="A key is seen if it is not later than the query and less than window positions before it. The "
            "result is queries × keys, and positions are those given.",
        )
whole = torch.arange(9, device=device)
check.equal(
    sliding_mask(whole, whole, 4).sum(dim=1),
    [1, 2, 3, 4, 4, 4, 4, 4, 4],
    because="Away from the beginning every position sees exactly window positions, itself among them.",
)
for window in (0, -3):
    check.raises(
        ValueError,
        sliding_mask,
        whole,
        whole,
        window,
        mentions="window",
        because="A window below 1 lets a position see nothing, not even itself: say window.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · A cache that rolls
#
# A key that is $W$ positions old is never read again. So the cache needs $W$ slots and no more: the key of position $p$
# goes into slot $p \bmod W$, where it takes the place of the one of $p - W$. The paper calls that a *rolling buffer
# cache*. With $W = 3$:
#
# ```
#                slot   0  1  2
# 2 positions read      0  1             no more slots than positions
# 3                     0  1  2
# 4                     3  1  2          3 mod 3 = 0
# 5                     3  4  2
# 6                     3  4  5
# 7                     6  4  5
# ```
#
# The slots are not in the order of the text. But what stands in each follows from the number of positions read, so no
# list of positions has to be kept. Of all positions that leave the remainder $s$, slot $s$ holds the latest.


# %%
# What an attention layer remembers: the rotated keys and the values of the last ``window`` positions, in
# ``min(seen, window)`` slots, position p in slot p % window; and ``seen``, how many positions were read, forgotten ones
# included.
RollingCache = tuple[
    Float[Tensor, "batch kv_heads slots head_dim"],
    Float[Tensor, "batch kv_heads slots head_dim"],
    int,
]


# %% [markdown]
# A cache is written as three things, `(keys, values, seen)`. `store` makes a new one and leaves the old one as it was,
# so that two continuations can start from it. (A program made for speed takes all $W$ slots at the start and writes
# into them in place: one position costs one slot.) New keys may be many at once, also more than $W$: then only the last
# $W$ of them remain.


# %% solution="cache"
def slot_positions(seen: int, window: int) -> Int[Tensor, "slots"]:
    """The position that stands in each slot after ``seen`` positions were read; ``min(seen, window)`` of them.

    Slot ``s`` holds the last position ``p < seen`` with ``p % window == s``. On the CPU, ``int64``.

    Raises:
        ValueError: ``window`` is below 1 or ``seen`` negative (the message says which).
    """
    ### BEGIN SOLUTION
    if window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    if seen < 0:
        raise ValueError(f"seen must not be negative, but is {seen}")
    latest = seen - 1
    slots = torch.arange(min(seen, window))
    return latest - (latest - slots) % window
    ### END SOLUTION


def store(
    cache: RollingCache | None,
    keys: Float[Tensor, "batch kv_heads new head_dim"],
    values: Float[Tensor, "batch kv_heads new head_dim"],
    window: int,
) -> RollingCache:
    """The cache (keys, values, seen) after ``new`` further positions: each in its slot, in the place of what was there.

    Args:
        cache: of the positions before, made with the same ``window``; ``None`` if there are none. It is left unchanged.
        keys, values: of the positions that follow, at least one, in their order.
        window: W, at least 1.
    """
    ### BEGIN SOLUTION
    old_keys, old_values, past = cache or (keys[:, :, :0], values[:, :, :0], 0)
    seen = past + keys.shape[2]
    slots = torch.arange(past, seen)[-window:] % window
    rolled = []
    for old, new in ((old_keys, keys), (old_values, values)):
        kept = new.new_zeros(*new.shape[:2], min(seen, window), new.shape[3])
        kept[:, :, : old.shape[2]] = old
        kept[:, :, slots] = new[:, :, -window:]
        rolled.append(kept)
    return *rolled, seen
    ### END SOLUTION


# %% test="cache_slots" points=1
for seen, expected in [(0, []), (2, [0, 1]), (3, [0, 1, 2]), (5, [3, 4, 2]), (7, [6, 4, 5])]:
    check.equal(
        slot_positions(seen, 3),
        expected,
        because=f"The table above: {seen} positions read, window 3. Slot s holds the latest position p with p % 3 = s.",
    )
check.raises(ValueError, slot_positions, 4, 0, mentions="window", because="No slots: say window.")
check.raises(ValueError, slot_positions, -1, 3, mentions="seen", because="Say seen.")
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("open_weights", "mixtral")
rng = inputs("cache_slots")
cases = [(seen, window) for window in (1, 2, 5) for seen in (0, 1, 2, 3, 4, 5, 6, 9, 10, 11)]
cases += [tuple(torch.randint(1, 400, (2,), generator=rng).tolist()) for _ in range(20)]
for (seen, window), got in zip(cases, each(slot_positions, cases), strict=True):
    check.equal(
        got,
        theirs.slot_positions(seen, window),
        because="There are min(seen, window) slots; slot s holds the last position p < seen with p % window == s.",
    )
for seen, window, says in [(5, 0, "window"), (0, -2, "window"), (-1, 4, "seen"), (-7, 1, "seen")]:
    check.raises(
        ValueError, slot_positions, seen, window, mentions=says, because=f"Bad input: say {says}."
    )
### END HIDDEN TESTS

# %% test="cache_store" points=2
numbers = torch.arange(1.0, 8.0).view(1, 1, 7, 1)
first = store(None, numbers[:, :, :2], -numbers[:, :, :2], window=3)
check.equal(first[2], 2, because="Two positions were read.")
check.close(
    first[0].flatten(),
    [1.0, 2.0],
    because="Two positions in two slots: there is nothing for the third yet.",
)
second = store(first, numbers[:, :, 2:5], -numbers[:, :, 2:5], window=3)
check.close(
    second[0].flatten(),
    [4.0, 5.0, 3.0],
    because="Positions 2, 3 and 4 go into the slots 2, 0 and 1.",
)
check.close(second[1].flatten(), [-4.0, -5.0, -3.0], because="The values go where their keys go.")
check.equal(second[2], 5, because="Five positions were read, though three are kept.")
check.close(first[0].flatten(), [1.0, 2.0], because="The cache that was handed in was changed.")
check.close(
    store(None, numbers, -numbers, window=3)[0].flatten(),
    [7.0, 5.0, 6.0],
    because="Seven positions at once: the last three remain, position 6 in slot 0.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("open_weights", "mixtral")
rng = inputs("cache_store")
for window, pieces in [
    (1, (1, 1, 3)),
    (4, (1,) * 10),
    (4, (3, 2, 1, 6, 1)),
    (3, (11, 1, 2)),
    (5, (5, 5, 3)),
    (9, (2, 4)),
    (2, (2, 7)),
]:
    mine, right = None, None
    for new in pieces:
        keys, values = (
            torch.randn(2, 2, new, 3, 4, generator=rng, dtype=torch.float64)
            .transpose(2, 3)
            .to(device)
        )
        before = mine and (mine[0].clone(), mine[1].clone())
        after = store(mine, keys, values, window)
        right = theirs.store(right, keys, values, window)
        check.equal(after[2], right[2], because="seen counts all positions that were read.")
        for got, expected, word in (
            (after[0], right[0], "keys"),
            (after[1], right[1], "values"),
        ):
            check.close(
                got,
                expected,
                because=f"The {word} are off: position p, from the start of the text, goes into slot p % window; "
                "of more than window new ones the last remain; there are min(seen, window) slots.",
            )
        if mine is not None:
            check.close(
                torch.stack([mine[0], mine[1]]),
                torch.stack(before),
                because="The cache that was handed in was changed.",
            )
        mine = after
single = store(
    None, torch.ones(1, 1, 2, 3, device=device), torch.ones(1, 1, 2, 3, device=device), 4
)
check.that(single[0].dtype == torch.float32, "The cache keeps the type of the keys and the values.")
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · Attention through the window
#
# Around the window everything is as in the exercise on LLaMA: grouped queries, rotary positions, no biases. The
# rotation is given, in Hugging Face's layout.


# %%
def rotate(
    x: Float[Tensor, "batch heads length head_dim"], positions: Int[Tensor, "length"], base: float
) -> Float[Tensor, "batch heads length head_dim"]:
    """Rotary positions, features j and j + head_dim/2 a pair (``apply_rope`` of LLaMA in the layout "halves")."""
    exponents = torch.arange(0, x.shape[-1], 2, device=x.device) / x.shape[-1]
    angles = positions[:, None] * base**-exponents
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, c = x.chunk(2, dim=-1)
    return torch.cat([a * cos - c * sin, a * sin + c * cos], dim=-1)


# %% [markdown]
# Two things change with the cache.
#
# **Positions are those in the text.** Slots are reused, positions are not. The first new position is number `seen`, and
# a key is rotated by the position it had when it came, which stays right for ever: a score depends on the distance of
# two *positions*.
#
# **Attend first, store afterwards.** Say $W = 3$, three positions were read, and three new ones come at once. The first
# of these, position 3, must see 1 and 2. But storing 4 and 5 overwrites 1 and 2. So the new queries attend to the old
# slots and the new keys side by side,
#
# ```
# key at position     0 1 2   3 4 5
# query 3               x x   x
#       4                 x   x x
#       5                     x x x
# ```
#
# and then the new keys are stored. If more positions were read than there are slots, the old ones stand out of order;
# a mask made from positions does not mind.
#
# `F.scaled_dot_product_attention(q, k, v, attn_mask=…)` takes the mask and divides by $\sqrt{\texttt{head\_dim}}$.


# %% solution="attention"
class SlidingWindowAttention(nn.Module):
    """Causal self-attention through a window, with rotary positions and grouped queries (Jiang et al. 2023, §2).

    Args:
        d_model: width of what comes in and goes out.
        num_heads: query heads.
        num_kv_heads: key-value heads, a divisor of ``num_heads``; query head ``i`` uses number
            ``i // (num_heads // num_kv_heads)``.
        head_dim: features of a head, even.
        rope_base: the base of the rotary positions.
        window: how many positions a query sees, its own among them.

    Attributes:
        q_proj: ``nn.Linear(d_model, num_heads * head_dim, bias=False)``, the rows of head 0 first.
        k_proj, v_proj: ``nn.Linear(d_model, num_kv_heads * head_dim, bias=False)``.
        o_proj: ``nn.Linear(num_heads * head_dim, d_model, bias=False)``.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rope_base: float,
        window: int,
    ) -> None:
        super().__init__()
        self.head_dim, self.group = head_dim, num_heads // num_kv_heads
        self.rope_base, self.window = rope_base, window
        self.q_proj = nn.Linear(d_model, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(d_model, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(d_model, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "batch new d_model"], cache: RollingCache | None = None
    ) -> tuple[Float[Tensor, "batch new d_model"], RollingCache]:
        """Attention of the new positions over those in their windows.

        Args:
            x: the positions that follow those read so far, at least one and any number, also more than ``window``.
            cache: of the positions before; ``None`` if there are none. It is left unchanged.

        Returns:
            The output at the new positions, and the cache with them in it.
        """
        ### BEGIN SOLUTION
        q, k, v = (
            rearrange(project(x), "batch new (heads d) -> batch heads new d", d=self.head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        past = 0 if cache is None else cache[2]
        positions = torch.arange(past, past + x.shape[1], device=x.device)
        q, k = (rotate(t, positions, self.rope_base) for t in (q, k))
        keys, values, places = k, v, positions
        if cache is not None:
            # The new queries still need what the new keys are about to overwrite.
            keys, values = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
            old = slot_positions(past, self.window).to(x.device)
            places = torch.cat([old, positions])
        mask = sliding_mask(positions, places, self.window)
        shared_k, shared_v = (t.repeat_interleave(self.group, dim=1) for t in (keys, values))
        heads = F.scaled_dot_product_attention(q, shared_k, shared_v, attn_mask=mask)
        output = self.o_proj(rearrange(heads, "batch heads new d -> batch new (heads d)"))
        return output, store(cache, k, v, self.window)
        ### END SOLUTION


# %% [markdown]
# By hand: where queries are zero, each position gives the mean of the values it sees.

# %% test="attention_window" points=2
average = SlidingWindowAttention(2, 1, 1, 2, rope_base=10.0, window=2)
set_weights(
    average,
    {
        "q_proj.weight": torch.zeros(2, 2),
        "k_proj.weight": torch.eye(2),
        "v_proj.weight": torch.eye(2),
        "o_proj.weight": torch.eye(2),
    },
)
x = torch.tensor([[[2.0, 0.0], [4.0, 6.0], [0.0, 3.0], [8.0, 1.0]]])
check.close(
    average(x)[0],
    [[[2.0, 0.0], [3.0, 3.0], [2.0, 4.5], [4.0, 2.0]]],
    because="With a window of 2 each position gives the mean of its own value and the one before it.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import gradients, inputs, reference

theirs = reference("open_weights", "mixtral")
rng = inputs("attention_window")
near = {"rtol": 1e-4, "atol": 2e-5}
for heads, kv_heads, head_dim, base, window in [
    (1, 1, 2, 10.0, 1),
    (4, 2, 6, 20.0, 3),
    (6, 2, 4, 7.0, 2),
    (6, 3, 4, 50.0, 5),
    (3, 1, 8, 30.0, 40),
]:
    sizes = (5, heads, kv_heads, head_dim, base, window)
    mine = SlidingWindowAttention(*sizes).to(device).double()
    right = theirs.SlidingWindowAttention(*sizes).to(device).double()
    weights = {
        name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
        for name, value in right.state_dict().items()
    }
    set_weights(mine, weights)
    right.load_state_dict(weights)
    # A transposed view, and a single position.
    x = torch.randn(8, 2, 5, generator=rng, dtype=torch.float64).to(device).transpose(0, 1)
    for some in (x, x[:, :1]):
        check.close(
            mine(some)[0],
            right(some)[0],
            because=f"The attention is off ({heads} heads, {kv_heads} for keys and values, window {window}): rotate "
            "queries and keys by position, not values; query head i uses key-value head i // group; each position sees "
            "window positions, itself among them.",
            **near,
        )
sizes = (5, 4, 2, 6, 20.0, 3)
mine = SlidingWindowAttention(*sizes).to(device).double()
right = theirs.SlidingWindowAttention(*sizes).to(device).double()
weights = {
    name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
set_weights(mine, weights)
right.load_state_dict(weights)
x = x.contiguous()
before, output = x.clone(), mine(x)[0]
check.close(x, before, because="The attention changed its input in place.")
for place in (0, 3, 7):
    changed = x.clone()
    changed[:, place] += 1.0 + torch.rand(2, 5, generator=rng).to(x)
    moved = (mine(changed)[0] - output).abs().amax(dim=(0, 2)) > 1e-6
    check.equal(
        moved,
        [place <= i < place + 3 for i in range(8)],
        because="One position was changed. Its own output and those of the window − 1 positions after it must move, "
        "no others.",
    )
own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
pull = torch.randn(2, 8, 5, generator=rng, dtype=torch.float64).to(device)
mine.zero_grad()
(mine(own)[0] * pull).sum().backward()
(right(other)[0] * pull).sum().backward()
check.that(own.grad is not None, "No gradient reaches the input.")
check.close(own.grad, other.grad, because="The gradient of the input is off.", **near)
mine_gradients, right_gradients = gradients(mine), gradients(right)
for name in weights:
    gradient = mine_gradients.get(name)
    check.that(gradient is not None, f"No gradient reaches {name}: is it used?")
    check.close(gradient, right_gradients[name], because=f"The gradient of {name} is off.", **near)
### END HIDDEN TESTS

# %% [markdown]
# The same four positions, read in pieces. In the last piece two positions come at once, and the first of them needs
# what the second overwrites.

# %% test="attention_cache" points=2
average = SlidingWindowAttention(2, 1, 1, 2, rope_base=10.0, window=2)
set_weights(
    average,
    {
        "q_proj.weight": torch.zeros(2, 2),
        "k_proj.weight": torch.eye(2),
        "v_proj.weight": torch.eye(2),
        "o_proj.weight": torch.eye(2),
    },
)
x = torch.tensor([[[2.0, 0.0], [4.0, 6.0], [0.0, 3.0], [8.0, 1.0]]])
with torch.no_grad():
    _, cache = average(x[:, :2])
    output, cache = average(x[:, 2:], cache)
check.close(
    output,
    [[[2.0, 4.5], [4.0, 2.0]]],
    because="Position 2 sees 1 and 2, position 3 sees 2 and 3: attend to the old slots and the new keys, then store.",
)
check.equal(cache[2], 4, because="Four positions were read.")
check.close(
    cache[0][0, 0, 1],
    [8 * math.cos(3) - math.sin(3), 8 * math.sin(3) + math.cos(3)],
    because="Position 3 is in slot 1, its key rotated by 3 radians: by the position in the text, not by the slot.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("open_weights", "mixtral")
rng = inputs("attention_cache")
near = {"rtol": 1e-4, "atol": 2e-5}
for heads, kv_heads, window in [(4, 2, 3), (3, 1, 4), (2, 2, 1), (2, 1, 20)]:
    sizes = (5, heads, kv_heads, 6, 8.0, window)
    mine = SlidingWindowAttention(*sizes).to(device).double()
    right = theirs.SlidingWindowAttention(*sizes).to(device).double()
    weights = {
        name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
        for name, value in right.state_dict().items()
    }
    set_weights(mine, weights)
    right.load_state_dict(weights)
    x = torch.randn(2, 11, 5, generator=rng, dtype=torch.float64).to(device)
    with torch.no_grad():
        whole, expected = right(x)
        for pieces in [(11,), (1,) * 11, (3, 4, 4), (2, 1, 7, 1), (8, 3)]:
            cache, parts = None, []
            for piece in x.split(pieces, dim=1):
                output, cache = mine(piece, cache)
                parts.append(output)
            check.close(
                torch.cat(parts, dim=1),
                whole,
                because="Read in pieces, with the cache handed on, the output differs from the whole read at once. Are "
                "positions those in the text? Does the mask know which position each slot holds? Do the new queries "
                "attend before anything is overwritten?",
                **near,
            )
            check.equal(cache[2], 11, because="seen counts all positions that were read.")
            for got, kept, word in (
                (cache[0], expected[0], "keys"),
                (cache[1], expected[1], "values"),
            ):
                check.close(
                    got,
                    kept,
                    because=f"The cached {word} are off: the last window positions, p in slot p % window; keys rotated "
                    "by their position, values not.",
                    **near,
                )
        _, cache = mine(x[:, :5])
        kept = [cache[0].clone(), cache[1].clone()]
        other = torch.randn(2, 2, 5, generator=rng, dtype=torch.float64).to(device)
        mine(x[:, 5:], cache)
        check.close(
            torch.stack([cache[0], cache[1]]),
            torch.stack(kept),
            because="The cache that was handed in was changed; it still stands for the beginning alone.",
        )
        check.close(
            mine(other, cache)[0],
            right(torch.cat([x[:, :5], other], dim=1))[0][:, 5:],
            because="A second continuation from the same cache is off: something of the first was left in it.",
            **near,
        )
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · The router
#
# Most parameters of a Transformer are in its feed-forward networks. A *mixture of experts* has $N$ of them in the place
# of one, and a *router* that decides which ones work on a token (Shazeer et al. 2017). With the router's weights $g_i$
#
# $$y = \sum_{i=1}^{N} g_i(x)\, E_i(x).$$
#
# If $g_i = 0$ for most $i$, most experts need not be computed. The router is one matrix, which makes a logit for each
# expert; the $k$ largest are kept, and a softmax over *these* gives their weights (Jiang et al. 2024, §2.1):
#
# $$\ell = W_g\,x, \qquad g = \mathrm{softmax}(\mathrm{TopK}(\ell)), \qquad
# \mathrm{TopK}(\ell)_i = \begin{cases}\ell_i & \text{among the } k \text{ largest}\\
# -\infty & \text{else.}\end{cases}$$
#
# **Does the order matter?** Hugging Face's code takes the softmax over all $N$ first, then the $k$ largest, and then
# divides by their sum. That is the same, because the denominator of the first softmax cancels. For $i$ among the chosen
# $T$
#
# $$\frac{p_i}{\sum_{j \in T} p_j}
# = \frac{e^{\ell_i} / \sum_{j=1}^N e^{\ell_j}}{\sum_{j \in T} e^{\ell_j} / \sum_{j=1}^N e^{\ell_j}}
# = \frac{e^{\ell_i}}{\sum_{j \in T} e^{\ell_j}}.$$
#
# Without the division the weights sum to less than 1, and it is another model. Take three experts with the logits
# $\ln 1, \ln 2, \ln 5$ and $k = 2$. Over the two chosen the weights are $\frac57$ and $\frac27$; over all they would be
# $\frac58$ and $\frac28$, together $\frac78$. There are models that mean it so. Look it up before you port one.
#
# With $k = 1$ the two differ most. The softmax over a single number is 1 whatever the number, its derivative is 0, and
# the router learns nothing from the text. The Switch Transformer (Fedus et al. 2022), which takes one expert, therefore
# weighs it with its probability among all $N$.
#
# ### Balance
#
# Nothing so far says that all experts should be used. One that is chosen often learns more, gets better, and is chosen
# more often. So a second loss is added to that of the text, with a small factor (Fedus et al. 2022, Eq. 4 to 6):
#
# $$L_{\text{balance}} = N \sum_{i=1}^{N} f_i P_i,$$
#
# where $f_i$ is the share of the tokens that chose expert $i$, and $P_i$ the mean over the tokens of its probability
# $p_i$, from the softmax over *all* $N$. $f_i$ is a count and has no gradient; $P_i$ has one. So $f_i$ acts as a price:
# the more tokens an expert has, the more its probability costs.
#
# With top-$k$ the shares $f_i$ sum to $k$, the $P_i$ to 1. If the load is even, $f_i = k/N$ and the loss is $k$. If all
# tokens go to the same $k$ experts and their probabilities with them, it is $N$. The factor $N$ is there so that the
# value for an even load does not depend on the number of experts.


# %% solution="routing"
def route(
    logits: Float[Tensor, "... experts"], k: int
) -> tuple[Float[Tensor, "... k"], Int[Tensor, "... k"]]:
    """The ``k`` experts with the largest logits, and their weights: the softmax over these ``k`` (Jiang et al. 2024).

    Returns:
        Weights and numbers of the chosen experts, the largest logit first. Of equal logits any may be taken.

    Raises:
        ValueError: ``k`` is below 1 or above the number of experts (the message says ``k``).
    """
    ### BEGIN SOLUTION
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k must be between 1 and {logits.shape[-1]} experts, not {k}")
    largest, experts = logits.topk(k)
    return largest.softmax(dim=-1), experts
    ### END SOLUTION


def load_balancing_loss(logits: Float[Tensor, "tokens experts"], k: int) -> Float[Tensor, ""]:
    """N Σ f_i P_i (Fedus et al. 2022, Eq. 4 to 6), for the ``k`` experts of each token.

    f_i is the number of tokens that have expert i among their ``k``, divided by the number of tokens; P_i is the mean
    over the tokens of the softmax over all experts. Gradients flow through P alone.

    Args:
        logits: the router's, at least one token.
        k: experts of a token, from 1 to all.
    """
    ### BEGIN SOLUTION
    tokens, num_experts = logits.shape
    _, chosen = route(logits, k)
    share = torch.bincount(chosen.flatten(), minlength=num_experts) / tokens
    probability = logits.softmax(dim=-1).mean(dim=0)
    return num_experts * (share * probability).sum()
    ### END SOLUTION


# %% test="routing_top" points=2
logits = torch.tensor([1.0, 2.0, 5.0]).log()
weights, experts = route(logits, 2)
check.equal(experts, [2, 1], because="The two largest logits, the largest first.")
check.close(
    weights,
    [5 / 7, 2 / 7],
    because="The softmax over the two chosen logits. Over all three it would be 5/8 and 2/8, which sum to less than 1.",
)
check.close(
    route(logits, 1)[0], [1.0], because="Over a single logit the softmax is 1, whatever the logit."
)
check.raises(
    ValueError, route, logits, 4, mentions="k", because="Of three experts nobody can take four."
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("open_weights", "mixtral")
rng = inputs("routing_top")
for shape, k in [((2,), 1), ((5,), 5), ((4, 6), 2), ((2, 3, 7), 3), ((3, 1, 8), 2)]:
    logits = 2 * torch.randn(*shape[::-1], generator=rng, dtype=torch.float64).to(device)
    logits = logits.permute(*reversed(range(len(shape))))
    before = logits.clone()
    weights, experts = route(logits, k)
    right_weights, right_experts = theirs.route(logits, k)
    check.equal(
        experts, right_experts, because="The k experts with the largest logits, the largest first."
    )
    check.close(
        weights,
        right_weights,
        because="The weights are the softmax over the k chosen logits, and sum to 1.",
    )
    check.close(logits, before, because="The logits were changed in place.")
# Equal logits: any choice, and equal weights.
weights, experts = route(torch.zeros(3, 5, device=device), 2)
check.close(weights, torch.full((3, 2), 0.5), because="Equal logits have equal weights.")
check.that(
    all(len(set(row)) == 2 for row in experts.tolist()), "A token chose the same expert twice."
)
# Large logits: no overflow.
weights, _ = route(torch.tensor([[800.0, -5.0, 799.0]], device=device), 2)
check.close(
    weights,
    [[1 / (1 + math.exp(-1)), 1 / (1 + math.e)]],
    because="With large logits the weights overflow: take torch's softmax.",
)
own = torch.randn(4, 6, generator=rng, dtype=torch.float64).to(device).requires_grad_()
other = own.detach().clone().requires_grad_()
pull = torch.randn(4, 3, generator=rng, dtype=torch.float64).to(device)
weights, _ = route(own, 3)
check.that(weights.requires_grad, "No gradient reaches the logits: the router would learn nothing.")
(weights * pull).sum().backward()
(theirs.route(other, 3)[0] * pull).sum().backward()
check.close(
    own.grad,
    other.grad,
    because="The gradient of the logits is off: it reaches the chosen, and no others.",
)
for k in (0, -1, 7):
    check.raises(
        ValueError,
        route,
        own,
        k,
        mentions="k",
        because="k is at least 1 and at most the number of experts: say k.",
    )
### END HIDDEN TESTS

# %% [markdown]
# By hand, with two experts and $k = 1$: two tokens with the logits $(\ln 3, 0)$ and one with $(0, \ln 3)$. Then
# $f = (\frac23, \frac13)$. The probabilities are $\frac34$ and $\frac14$, so
# $P_1 = \frac13(\frac34 + \frac34 + \frac14) = \frac7{12}$, $P_2 = \frac5{12}$, and the loss is
# $2\,(\frac23 \cdot \frac7{12} + \frac13 \cdot \frac5{12}) = \frac{19}{18}$.

# %% test="routing_balance" points=2
tilted = torch.tensor([[3.0, 1.0], [3.0, 1.0], [1.0, 3.0]]).log()
check.close(
    load_balancing_loss(tilted, 1),
    19 / 18,
    because="N Σ f_i P_i = 2 (2/3 · 7/12 + 1/3 · 5/12).",
)
check.close(
    load_balancing_loss(torch.eye(4), 1),
    1.0,
    because="An even load with k = 1 gives 1, whatever N is.",
)
check.close(
    load_balancing_loss(60.0 * torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0]] * 3), 2),
    5.0,
    because="All three tokens on the same two of five experts: f = 1 and P = 1/2 for both, so the loss is N = 5.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("open_weights", "mixtral")
rng = inputs("routing_balance")
for tokens, experts, k in [(1, 3, 1), (7, 4, 1), (9, 5, 2), (6, 8, 3), (5, 3, 3)]:
    own = torch.randn(experts, tokens, generator=rng, dtype=torch.float64).to(device).T
    own = (1.5 * own + torch.arange(experts, device=device) / 3).requires_grad_()
    other = own.detach().clone().requires_grad_()
    mine, right = load_balancing_loss(own, k), theirs.load_balancing_loss(other, k)
    check.shape(mine, (), because="The loss is one number.")
    check.close(
        mine,
        right,
        because="N Σ f_i P_i: f_i counts the tokens that have expert i among their k, divided by the tokens, and sums "
        "to k; P_i is the mean of the softmax over all experts.",
    )
    check.that(
        mine.requires_grad, "No gradient reaches the logits: it flows through the probabilities P."
    )
    mine.backward()
    right.backward()
    check.close(
        own.grad,
        other.grad,
        because="The gradient of the logits is off: it flows through the probabilities P, over all experts.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · The experts
#
# An expert is the SwiGLU of LLaMA; only the names differ. Those in Mixtral's files are `w1` for the gate, `w3` for the
# branch it multiplies, and `w2` for the way back.


# %%
class Expert(nn.Module):
    """w2(SiLU(w1 x) ⊙ w3 x), without biases."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(d_model, d_ff, bias=False)
        self.w2 = nn.Linear(d_ff, d_model, bias=False)
        self.w3 = nn.Linear(d_model, d_ff, bias=False)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The gated feed-forward network, for each vector by itself."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


# %% [markdown]
# To compute every expert for every token and multiply most results by zero would give the right sum and save nothing.
# So go the other way round: for each expert, find its tokens, gather their vectors, run the expert on these alone,
# multiply each result by the weight that *its token* gives to this expert, and add it to the sum of that token.
#
# ```
#           experts of the token, weights      expert 0 gets x0, x2     expert 2 gets x0, x1
# x0        2 (0.7)   0 (0.3)                  expert 1 gets x1, x2     expert 3 gets nothing
# x1        1 (0.6)   2 (0.4)
# x2        0 (0.9)   1 (0.1)                  y0 = 0.7 E2(x0) + 0.3 E0(x0)
# ```
#
# Two tools may help. `torch.where(condition)` gives the row and the column of each `True` of a matrix, in two tensors.
# `y.index_add_(0, rows, values)` adds `values[j]` to `y[rows[j]]`.
#
# All experts must be in memory, for the next token may choose any. But the numbers of one that no token chose need not
# even be read.
#
# The experts are whole networks. Their *outputs* are mixed, not their weights, and not what goes into them: between
# lies the SiLU, and the mean of two activations is not the activation of a mean.
#
# Nobody tells an expert what it is for. The choice is made for each token in each block by a product with a matrix, and
# is learnt with everything else. "The expert for mathematics" is a popular picture and not what this is; the authors of
# Mixtral looked for experts of a topic and found no clear pattern (Jiang et al. 2024, §5).


# %% solution="experts"
class SparseMoE(nn.Module):
    """A mixture of experts of which each token uses ``k`` (Jiang et al. 2024, §2.1).

    Args:
        d_model: width of what comes in and goes out.
        d_ff: width inside each expert.
        num_experts: N.
        k: experts of each token.

    Attributes:
        gate: the router, ``nn.Linear(d_model, num_experts, bias=False)``.
        experts: an ``nn.ModuleList`` of ``num_experts`` times ``Expert(d_model, d_ff)``.
    """

    def __init__(self, d_model: int, d_ff: int, num_experts: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.gate = nn.Linear(d_model, num_experts, bias=False)
        self.experts = nn.ModuleList(Expert(d_model, d_ff) for _ in range(num_experts))

    def forward(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> tuple[Float[Tensor, "batch length d_model"], Float[Tensor, "batch length num_experts"]]:
        """Σ g_i E_i(x) over the ``k`` experts of each token, and the router's logits of all experts.

        An expert is computed for the tokens that chose it and for no others: whatever it would make of the others,
        infinity or NaN, does not show.
        """
        ### BEGIN SOLUTION
        logits = self.gate(x)
        weights, chosen = (t.flatten(end_dim=1) for t in route(logits, self.k))
        vectors = x.flatten(end_dim=1)
        output = torch.zeros_like(vectors)
        for number, expert in enumerate(self.experts):
            tokens, places = torch.where(chosen == number)
            output.index_add_(0, tokens, weights[tokens, places, None] * expert(vectors[tokens]))
        return output.view_as(x), logits
        ### END SOLUTION


# %% [markdown]
# By hand, with experts of one feature: if $w_1 = w_3 = 1$ and $w_2 = c$, then $E(x) = c\,x \cdot \mathrm{SiLU}(x)$, and
# at $x = \ln 3$ it is $c\,\frac34 \ln^2 3$.

# %% test="experts_mixture" points=2
three = SparseMoE(1, 1, num_experts=3, k=2)
tens = {0: 1.0, 1: 10.0, 2: 100.0}
set_weights(
    three,
    {"gate.weight": torch.tensor([[0.0], [1.0], [-1.0]])}
    | {f"experts.{i}.{name}.weight": torch.ones(1, 1) for i in tens for name in ("w1", "w3")}
    | {f"experts.{i}.w2.weight": torch.full((1, 1), c) for i, c in tens.items()},
)
x = torch.tensor([[[math.log(3)], [-math.log(3)]]])
output, logits = three(x)
up, down = 0.75 * math.log(3) ** 2, 0.25 * math.log(3) ** 2
check.close(
    logits,
    [[[0.0, math.log(3), -math.log(3)], [0.0, -math.log(3), math.log(3)]]],
    because="The router's logits are returned as they are, of all experts.",
)
check.close(
    output,
    [[[(0.75 * 10 + 0.25 * 1) * up], [(0.75 * 100 + 0.25 * 1) * down]]],
    because="The first token chooses expert 1 with weight 3/4 and expert 0 with 1/4, the second 2 with 3/4 and 0 with "
    "1/4. Each output is weighted by its own token's weight, and both are added.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("open_weights", "mixtral")
rng = inputs("experts_mixture")
near = {"rtol": 1e-4, "atol": 2e-5}
for shape, d_ff, experts, k in [
    ((2, 7, 4), 6, 5, 2),
    ((1, 1, 3), 2, 4, 2),
    ((3, 5, 4), 3, 3, 3),
    ((2, 9, 5), 4, 6, 1),
    ((1, 4, 3), 5, 1, 1),
    ((2, 6, 4), 3, 7, 3),
]:
    mine = SparseMoE(shape[-1], d_ff, experts, k).to(device).double()
    right = theirs.SparseMoE(shape[-1], d_ff, experts, k).to(device).double()
    weights = {
        name: torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
        for name, value in right.state_dict().items()
    }
    set_weights(mine, weights)
    right.load_state_dict(weights)
    x = torch.randn(*shape[::-1], generator=rng, dtype=torch.float64).to(device).permute(2, 1, 0)
    before = x.clone()
    output, logits = mine(x)
    right_output, right_logits = right(x)
    check.close(
        logits, right_logits, because="The second result is the router's logits of all experts."
    )
    check.close(
        output,
        right_output,
        because=f"The mixture is off ({experts} experts, {k} for each token): the sum over the token's experts of its "
        "weight times the expert's output.",
        **near,
    )
    check.close(x, before, because="The input was changed in place.")
    # The dense way, every expert for every token, gives the same sum.
    chosen_weights, chosen = theirs.route(right_logits, k)
    shares = torch.zeros_like(right_logits).scatter(-1, chosen, chosen_weights)
    dense = sum(shares[..., i, None] * expert(x) for i, expert in enumerate(right.experts))
    check.close(output, dense, because="The sparse sum must equal the dense one.", **near)
# Each token for itself.
order = torch.randperm(6, generator=rng).to(device)
check.close(
    mine(x[:, order])[0],
    output[:, order],
    because="The tokens were put in another order, and their outputs changed: each belongs to its own token.",
    **near,
)
### END HIDDEN TESTS

# %% test="experts_sparse" points=2
two = SparseMoE(1, 1, num_experts=2, k=1)
set_weights(
    two,
    {"gate.weight": torch.tensor([[1.0], [0.0]])}
    | {f"experts.0.{name}.weight": torch.ones(1, 1) for name in ("w1", "w2", "w3")}
    | {f"experts.1.{name}.weight": torch.full((1, 1), math.nan) for name in ("w1", "w2", "w3")},
)
check.close(
    two(torch.tensor([[[math.log(3)]]]))[0],
    [[[0.75 * math.log(3) ** 2]]],
    because="Nobody chose expert 1, whose weights are NaN. It must not be computed: 0 · NaN is NaN.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import gradients, inputs, reference

theirs = reference("open_weights", "mixtral")
rng = inputs("experts_sparse")
near = {"rtol": 1e-4, "atol": 2e-5}
mine = SparseMoE(3, 4, 4, 2).to(device).double()
right = theirs.SparseMoE(3, 4, 4, 2).to(device).double()
weights = {
    name: torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
# Feature 0 decides: positive chooses experts 0 and 1, negative 2 and 3.
weights["gate.weight"] = torch.tensor(
    [[5.0, 0.3, 0.1], [4.0, -0.2, 0.3], [-5.0, 0.1, 0.2], [-4.0, 0.4, -0.1]], dtype=torch.float64
).to(device)
# Experts 2 and 3 overflow at the vectors of the others: their large weights meet feature 2, which is 0 in their own.
for i in (2, 3):
    for name in ("w1", "w3"):
        weights[f"experts.{i}.{name}.weight"][:, 2] = 1e200
set_weights(mine, weights)
right.load_state_dict(weights)
x = torch.randn(2, 6, 3, generator=rng, dtype=torch.float64).to(device)
x[..., 0] = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0], device=device) * (1 + x[..., 0].abs())
x[..., 2] = torch.where(x[..., 0] > 0, 1.0, 0.0).to(x)
check.close(
    mine(x)[0],
    right(x)[0],
    because="An expert was computed for a token that did not choose it: there it overflows, and 0 · ∞ is NaN.",
    **near,
)
# Gradients: reach the router and the chosen experts; an expert without tokens gets none, or zeros.
mine = SparseMoE(4, 5, 5, 2).to(device).double()
right = theirs.SparseMoE(4, 5, 5, 2).to(device).double()
weights = {
    name: torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
weights["gate.weight"][3] = weights["gate.weight"][2]
weights["gate.weight"][3, 0] -= 60.0
set_weights(mine, weights)
right.load_state_dict(weights)
own = torch.randn(2, 7, 4, generator=rng, dtype=torch.float64).to(device)
own[..., 0] = 1 + own[..., 0].abs()
own.requires_grad_()
other = own.detach().clone().requires_grad_()
pull = torch.randn(2, 7, 4, generator=rng, dtype=torch.float64).to(device)
mine.zero_grad()
(mine(own)[0] * pull).sum().backward()
(right(other)[0] * pull).sum().backward()
check.that(own.grad is not None, "No gradient reaches the input.")
check.close(
    own.grad,
    other.grad,
    because="The gradient of the input is off: it flows through the experts and through the router.",
    **near,
)
mine_gradients, right_gradients = gradients(mine), gradients(right)
for name in weights:
    gradient, expected = mine_gradients.get(name), right_gradients[name]
    if expected is None or not expected.any():
        check.that(
            gradient is None or not gradient.any(),
            "An expert that no token chose must not get a gradient.",
        )
        continue
    check.that(
        gradient is not None,
        f"No gradient reaches {name}: the weights of the mixture carry it to the router.",
    )
    check.close(gradient, expected, because=f"The gradient of {name} is off.", **near)
### END HIDDEN TESTS

# %% [markdown]
# ## 6 · The model
#
# The rest is LLaMA, with the mixture in the place of the feed-forward network. What you have built there is given here:
# the norm (torch's), the configuration and the modules. The names are those in the files.


# %%
@dataclass(frozen=True)
class MixtralConfig:
    """The fields of a Mixtral's config.json that its computation depends on, under their names.

    Attributes:
        vocab_size: tokens.
        hidden_size: the width of the model, elsewhere d_model.
        intermediate_size: the width inside an expert, d_ff.
        num_hidden_layers: blocks.
        num_attention_heads, num_key_value_heads: query heads and key-value heads.
        head_dim: features of a head.
        rms_norm_eps: ε of every RMSNorm.
        rope_theta: the base of the rotary positions.
        sliding_window: W.
        num_local_experts: N.
        num_experts_per_tok: k.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    sliding_window: int
    num_local_experts: int
    num_experts_per_tok: int


class Step(NamedTuple):
    """What a model says of new positions.

    Attributes:
        logits: of the next token, ``(batch new vocab_size)``.
        caches: one ``RollingCache`` for each block.
        router_logits: for each block those of its router, ``(batch new num_local_experts)``.
    """

    logits: Float[Tensor, "batch new vocab_size"]
    caches: list[RollingCache]
    router_logits: list[Float[Tensor, "batch new num_local_experts"]]


# %% solution="model"
class MixtralBlock(nn.Module):
    """x + attention(norm(x)), then x + mixture(norm(x)).

    Attributes:
        input_layernorm: before the attention.
        self_attn: the ``SlidingWindowAttention`` of the configuration.
        post_attention_layernorm: before the mixture.
        block_sparse_moe: the ``SparseMoE`` of the configuration.
    """

    def __init__(self, config: MixtralConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SlidingWindowAttention(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.rope_theta,
            config.sliding_window,
        )
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.block_sparse_moe = SparseMoE(
            config.hidden_size,
            config.intermediate_size,
            config.num_local_experts,
            config.num_experts_per_tok,
        )

    def forward(
        self, x: Float[Tensor, "batch new hidden_size"], cache: RollingCache | None = None
    ) -> tuple[
        Float[Tensor, "batch new hidden_size"],
        RollingCache,
        Float[Tensor, "batch new num_local_experts"],
    ]:
        """The block's output at the new positions, its attention's new cache, and its router's logits."""
        ### BEGIN SOLUTION
        attended, cache = self.self_attn(self.input_layernorm(x), cache)
        x = x + attended
        mixed, router_logits = self.block_sparse_moe(self.post_attention_layernorm(x))
        return x + mixed, cache, router_logits
        ### END SOLUTION


class Mixtral(nn.Module):
    """Mixtral (Jiang et al. 2024). Embedding and ``lm_head`` are two matrices, never one.

    Attributes:
        embed_tokens: the embedding, taken as it is.
        layers: ``num_hidden_layers`` times ``MixtralBlock(config)``.
        norm: the last norm, before the logits.
        lm_head: makes the logits.
    """

    def __init__(self, config: MixtralConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MixtralBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def step(
        self, tokens: Int[Tensor, "batch new"], caches: Sequence[RollingCache] | None = None
    ) -> Step:
        """What the model says of new tokens, given those it has read.

        Args:
            tokens: those that follow, at least one.
            caches: one for each block, as the last call returned them; ``None`` at the start of a text. They are left
                unchanged.
        """
        ### BEGIN SOLUTION
        x = self.embed_tokens(tokens)
        kept, router_logits = [], []
        for i, block in enumerate(self.layers):
            x, cache, routed = block(x, caches[i] if caches else None)
            kept.append(cache)
            router_logits.append(routed)
        return Step(self.lm_head(self.norm(x)), kept, router_logits)
        ### END SOLUTION

    def forward(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length vocab_size"]:
        """Logits of the next token at every position."""
        return self.step(tokens).logits


# %% [markdown]
# The first test has one block whose attention and experts are silent; the second reads a text in two pieces.

# %% test="model_logits" points=2
torch.manual_seed(0)
small = MixtralConfig(2, 2, 3, 1, 1, 1, 2, 0.0, 10.0, 2, num_local_experts=3, num_experts_per_tok=2)
silent = Mixtral(small)
weights = {name: torch.zeros_like(value) for name, value in silent.state_dict().items()}
weights |= {"embed_tokens.weight": torch.tensor([[3.0, 0.0], [0.0, 2.0]])}
weights |= {"norm.weight": torch.ones(2), "lm_head.weight": torch.tensor([[1.0, 0.0], [0.0, 5.0]])}
set_weights(silent, weights)
check.close(
    silent(torch.tensor([[0, 1]])),
    [[[math.sqrt(2), 0.0], [0.0, 5 * math.sqrt(2)]]],
    because="Embedding, a block that adds nothing, the last norm, lm_head: (3, 0) becomes (√2, 0).",
)
model = Mixtral(MixtralConfig(9, 8, 12, 2, 4, 2, 4, 1e-5, 10.0, 3, 4, 2))
tokens = torch.tensor([[3, 1, 4, 1, 5, 8], [2, 7, 1, 8, 2, 8]])
with torch.no_grad():
    start = model.step(tokens[:, :4])
    end = model.step(tokens[:, 4:], start.caches)
    check.equal(
        (len(start.caches), len(start.router_logits)),
        (2, 2),
        because="One cache and one router's logits for each block.",
    )
    check.close(
        torch.cat([start.logits, end.logits], dim=1),
        model(tokens),
        because="Four tokens, then two with the caches, must give the logits of six read at once: does each block get "
        "its own cache?",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import gradients, inputs, reference

theirs = reference("open_weights", "mixtral")
rng = inputs("model_logits")
near = {"rtol": 1e-4, "atol": 1e-4}
for layers, heads, kv_heads, window, experts, k in [
    (2, 4, 2, 3, 4, 2),
    (3, 2, 1, 2, 3, 1),
    (1, 3, 3, 50, 5, 3),
]:
    config = MixtralConfig(11, 6, 5, layers, heads, kv_heads, 4, 0.1, 9.0, window, experts, k)
    mine = Mixtral(config).to(device).double()
    right = theirs.Mixtral(config).to(device).double()
    weights = {
        name: 0.6 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
        for name, value in right.state_dict().items()
    }
    set_weights(mine, weights)
    right.load_state_dict(weights)
    tokens = torch.randint(11, (2, 12), generator=rng).to(device)
    with torch.no_grad():
        whole = right.step(tokens)
        for pieces in [(12,), (1,) * 12, (5, 4, 3)]:
            caches, parts, routed = None, [], []
            for piece in tokens.split(pieces, dim=1):
                step = mine.step(piece, caches)
                caches = step.caches
                parts.append(step.logits)
                routed.append(torch.stack([*step.router_logits]))
            check.close(
                torch.cat(parts, dim=1),
                whole.logits,
                because="The logits are off: embedding (no factor), each block once in order with its own cache, the "
                "last norm, lm_head. A block is x ← x + attention(norm(x)), then x ← x + mixture(norm(x)).",
                **near,
            )
            check.close(
                torch.cat(routed, dim=2),
                torch.stack(whole.router_logits),
                because="router_logits has those of each block's router, in order.",
                **near,
            )
        # What lies further back than the windows of all blocks together cannot arrive.
        reach = layers * (window - 1)
        if reach < 11:
            changed = tokens.clone()
            changed[:, : 11 - reach] = (changed[:, : 11 - reach] + 4) % 11
            check.close(
                mine(changed)[:, -1],
                whole.logits[:, -1],
                because="A token further back than layers · (window − 1) positions moved the last logits.",
                **near,
            )
    pull = torch.randn(2, 12, 11, generator=rng, dtype=torch.float64).to(device)
    mine.zero_grad()
    (mine(tokens) * pull).sum().backward()
    (right(tokens) * pull).sum().backward()
    mine_gradients, right_gradients = gradients(mine), gradients(right)
    for name in weights:
        gradient, expected = mine_gradients.get(name), right_gradients[name]
        if expected is None or not expected.any():
            continue  # an expert that no token chose, or the router of a single expert
        check.that(gradient is not None, f"No gradient reaches {name}: is it used?")
        check.close(
            gradient, expected, because=f"The gradient of {name} is off.", rtol=1e-3, atol=1e-3
        )
# One block alone.
config = MixtralConfig(11, 6, 5, 1, 2, 1, 4, 0.2, 12.0, 3, 4, 2)
right = theirs.MixtralBlock(config).to(device).double()
mine = MixtralBlock(config).to(device).double()
weights = {
    name: 0.6 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
set_weights(mine, weights)
right.load_state_dict(weights)
x = (1.0 + 2.0 * torch.randn(2, 5, 6, generator=rng, dtype=torch.float64)).to(device)
before = x.clone()
output, _, routed = mine(x)
right_output, _, right_routed = right(x)
check.close(output, right_output, because="The block's output is off.", **near)
check.close(routed, right_routed, because="The third result is the router's logits.", **near)
check.close(x, before, because="The block changed its input in place.")
### END HIDDEN TESTS

# %% [markdown] written="mixtral_why" points=2
# **In your own words.** Mixtral 8x7B has 46.7 billion parameters, of which 12.9 billion work on a token. What does that
# save against a dense model of 46.7 billion, and what does it not save? Is it the same when one text is generated and
# when a thousand are at once? Why is the total not 8 · 7 = 56 billion? Why can no router be trained with one expert a
# token and the softmax over the chosen? And what does the balancing loss ask for that the loss of the text does not?
# (6 to 10 sentences.)

# %% [markdown]
# ## A folder
#
# The loader is given: it is the one you wrote for LLaMA, without its care, on the library of safetensors. (What it
# raises of a broken file is what that library and torch say.) A field that would change the computation and that this
# model does not have is refused.
#
# Mixtral 8x7B itself was published without a window: `sliding_window` is `null` in its file. The longest text it was
# made for stands in the window's place then.


# %%
def read_config(fields: Mapping[str, object]) -> MixtralConfig:
    """The configuration in the contents of a config.json.

    Raises:
        ValueError: it is of another model, or asks for something that this model does not have.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    rope = given.get("rope_parameters", {})
    for name, value, known in [
        ("model_type", given.get("model_type"), "mixtral"),
        ("hidden_act", given.get("hidden_act", "silu"), "silu"),
        ("tie_word_embeddings", given.get("tie_word_embeddings", False), False),
        ("rope_type", rope.get("rope_type", "default"), "default"),
        ("rope_scaling", given.get("rope_scaling"), None),
    ]:
        if value != known:
            raise ValueError(f"{name} is {value!r}; this model has {known!r}")
    heads = given["num_attention_heads"]
    longest = given.get("max_position_embeddings", 131072)
    return MixtralConfig(
        vocab_size=given["vocab_size"],
        hidden_size=given["hidden_size"],
        intermediate_size=given["intermediate_size"],
        num_hidden_layers=given["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=given.get("num_key_value_heads", heads),
        head_dim=given.get("head_dim", given["hidden_size"] // heads),
        rms_norm_eps=given["rms_norm_eps"],
        rope_theta=rope.get("rope_theta", given.get("rope_theta", 1e6)),
        sliding_window=given.get("sliding_window", longest),
        num_local_experts=given["num_local_experts"],
        num_experts_per_tok=given["num_experts_per_tok"],
    )


def from_pretrained(folder: Path | str) -> nn.Module:
    """The Mixtral in a folder as Hugging Face's library writes it, in float32.

    Raises:
        ValueError: as ``read_config``.
        RuntimeError: a tensor is missing, has another shape, or is one too many; torch's message has its name.
    """
    model = Mixtral(read_config(json.loads((Path(folder) / "config.json").read_text())))
    weights = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        weights |= load(path.read_bytes())
    model.load_state_dict({name.removeprefix("model."): t for name, t in weights.items()})
    return model


# %% [markdown]
# ## Experiment: what sparsity buys
#
# First the count. On the device `meta` a model has shapes and no numbers, so that Mixtral 8x7B fits. Multiply before
# you run it: what do eight experts of three matrices of 4096 × 14336 come to, in 32 blocks?

# %% experiment=true
published = MixtralConfig(
    32000,
    4096,
    14336,
    32,
    32,
    8,
    128,
    1e-5,
    1e6,
    131072,
    num_local_experts=8,
    num_experts_per_tok=2,
)
with torch.device("meta"):
    giant = Mixtral(published)
sizes = {name: parameter.numel() for name, parameter in giant.named_parameters()}
in_experts = sum(size for name, size in sizes.items() if ".experts." in name)
idle = in_experts * (1 - published.num_experts_per_tok / published.num_local_experts)
print(f"all parameters:     {sum(sizes.values()) / 1e9:.1f} billion")
print(f"in the experts:     {in_experts / 1e9:.1f} billion")
print(f"used for one token: {(sum(sizes.values()) - idle) / 1e9:.1f} billion")

# %% [markdown]
# Then four small models learn the plays, character by character. They share everything but the feed-forward networks:
# eight experts of which a token uses two, with the balancing loss and without; one network as wide as two experts,
# which computes as much; and one as wide as eight, which holds as much. (One network is a mixture of one expert.)
# `SEED` draws the first weights and the training text. On a GPU a larger preset runs.
#
# Before you run it: in which order will their losses come? How many of the eight experts will be at work where nothing
# asks for balance?

# %% experiment=true
import time

import matplotlib.pyplot as plt

from lab import data, figures
from lab.training import text_batches, train

SEED = 0
WIDTH, D_FF, LAYERS, LENGTH, BATCH, STEPS = (
    (256, 256, 4, 256, 64, 2000) if device.type == "cuda" else (64, 32, 2, 64, 16, 400)
)
EXPERTS, CHOSEN, WINDOW, FACTOR = 8, 2, LENGTH // 2, 0.01

characters = sorted(set(data.text("train") + data.text("validation")))
ids = {character: i for i, character in enumerate(characters)}
plays, held_out = (
    torch.tensor([ids[c] for c in data.text(split)], device=device)
    for split in ("train", "validation")
)
windows = text_batches(held_out, 64, LENGTH)


def new_model(experts: int, chosen: int, d_ff: int, window: int = WINDOW) -> Mixtral:
    """A small Mixtral, its first weights drawn from the seed."""
    sizes = (len(characters), WIDTH, d_ff, LAYERS, 4, 2, WIDTH // 4, 1e-5, 1e4, window)
    torch.manual_seed(SEED)
    model = Mixtral(MixtralConfig(*sizes, experts, chosen)).to(device)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            size = 0.02 if "embed" in name else 0.6 / math.sqrt(parameter.shape[1])
            nn.init.normal_(parameter, std=size)
    return model


def text_loss(step: Step, targets: Int[Tensor, "batch length"]) -> Float[Tensor, ""]:
    """Mean nats a character."""
    return F.cross_entropy(step.logits.flatten(0, 1), targets.flatten())


def balance(step: Step) -> Float[Tensor, ""]:
    """The balancing loss, block by block, and the mean of that."""
    losses = [load_balancing_loss(logits.flatten(0, 1), CHOSEN) for logits in step.router_logits]
    return torch.stack(losses).mean()


@torch.no_grad()
def held_out_loss(model: Mixtral) -> tuple[float, Tensor]:
    """Nats a character on the same held-out windows every time, and the share of the choices for each expert."""
    rng, losses, counts = lab.generator("held-out windows"), [], 0
    for _ in range(4):
        inputs, targets = windows(rng)
        step = model.step(inputs)
        losses.append(text_loss(step, targets).item())
        routed = torch.stack(step.router_logits)  # (blocks, batch, length, experts)
        experts = routed.shape[-1]
        _, chosen = route(routed.flatten(1, 2), min(CHOSEN, experts))
        counts = counts + F.one_hot(chosen.flatten(1), experts).sum(dim=1).cpu()
    return sum(losses) / 4, counts / counts.sum(dim=1, keepdim=True)


models, losses, shares = {}, {}, {}
for name, (experts, chosen, d_ff, factor) in {
    "sparse, balanced": (EXPERTS, CHOSEN, D_FF, FACTOR),
    "sparse": (EXPERTS, CHOSEN, D_FF, 0.0),
    "dense, computes as much": (1, 1, CHOSEN * D_FF, 0.0),
    "dense, holds as much": (1, 1, EXPERTS * D_FF, 0.0),
}.items():

    def loss(model: Mixtral, batch: tuple[Tensor, Tensor], factor: float = factor) -> Tensor:
        """The text's loss, and the balancing loss where it is asked for."""
        step = model.step(batch[0])
        return text_loss(step, batch[1]) + (factor * balance(step) if factor else 0.0)

    model, start = new_model(experts, chosen, d_ff), time.perf_counter()
    train(
        model,
        text_batches(plays, BATCH, LENGTH),
        loss,
        STEPS,
        lr=3e-3 if WIDTH < 128 else 1e-3,
        generator=lab.generator(f"plays {SEED}"),
        label=name,
    )
    seconds = time.perf_counter() - start
    models[name] = model
    losses[name], shares[name] = held_out_loss(model)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{name:24} {size:9,} parameters  {losses[name]:.3f} nats  {seconds:5.1f} s of training")

figures.use_style()
fig, (by_model, by_expert) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=[3, 2])
by_model.plot(list(losses.values()), range(4), "o")
by_model.set_yticks(range(4), losses)
by_model.set(ylim=(3.5, -0.5), xlabel="held-out loss, nats a character")
by_model.grid(visible=True)
for name, colour in {"sparse, balanced": "C0", "sparse": "C1"}.items():
    for block, row in enumerate(shares[name]):
        loads = sorted((100 * row).tolist(), reverse=True)
        label = None if block else name
        by_expert.plot(range(1, EXPERTS + 1), loads, "o-", color=colour, markersize=4, label=label)
by_expert.axhline(100 / EXPERTS, color="grey", linewidth=0.8)
by_expert.set(xlabel="experts, the busiest first", ylabel="% of the choices", ylim=(0, 50))
by_expert.legend(fontsize=9)
figures.show(
    fig,
    alt="Held-out loss in nats a character: "
    + "; ".join(f"{name} {value:.3f}" for name, value in losses.items())
    + ". Share of the choices that each expert gets, in per cent, block by block: "
    + "; ".join(
        f"{name} "
        + ", ".join(" ".join(f"{100 * s:.0f}" for s in row) for row in shares[name].tolist())
        for name in ("sparse, balanced", "sparse")
    )
    + f". An even load would be {100 / EXPERTS:.1f} each.",
)

# %% [markdown]
# Three things to read off, and to try again with other seeds before you believe them.
#
# **Loss.** When this was written it was run with the seeds 0, 1 and 2. Each time the balanced mixture was better than
# the dense model that computes as much, and worse than the dense one that holds as much: at equal computation the idle
# experts are worth something, and less than the same parameters would be that always work. The differences are
# hundredths of a nat, in models this small after so few steps. They say which way it goes, and not how far it goes in a
# large model.
#
# **Balance.** Without the balancing loss some experts get several times their share and others next to nothing; which
# ones depends on the seed. With it all are near the line. In the three runs the balanced mixture also had the lower
# loss, though its training asked for something else besides. That is no law: make `D_FF` 64 and look again.
#
# **Time.** Equal computation is not equal time. The sparse models multiply as many numbers as the narrow dense one, and
# take longer: eight small products and their gathering cost more than one large product. That is true of large machines
# as well, and much of the work on mixtures of experts since has gone into it.
#
# (Hugging Face's code, in version 5, pools the choices and the probabilities of all blocks before it multiplies them.
# An expert that is overloaded in one block and idle in the next then looks balanced. Here the loss is taken block by
# block.)
#
# Last the cache. The balanced model reads held-out text one character at a time, once through its window and once with
# a window as long as the text. What the caches hold is measured, in bytes. In both it is the same weights.

# %% experiment=true
READ = 8 * WINDOW
text, held_bytes = held_out[None, :READ], {}
for name, window in {"rolling": WINDOW, "full": READ}.items():
    model = new_model(EXPERTS, CHOSEN, D_FF, window)
    model.load_state_dict(models["sparse, balanced"].state_dict())
    caches, held_bytes[name] = None, []
    with torch.no_grad():
        for position in range(READ):
            caches = model.step(text[:, position : position + 1], caches).caches
            held_bytes[name].append(sum(keys.nbytes + values.nbytes for keys, values, _ in caches))

fig, ax = plt.subplots()
for name, sizes in held_bytes.items():
    ax.plot(range(1, READ + 1), [size / 1024 for size in sizes], label=name)
ax.axvline(WINDOW, color="grey", linewidth=0.8)
ax.set(
    xlabel=f"characters read; the window is {WINDOW}", ylabel="keys and values, KiB", ylim=(0, None)
)
ax.legend()
figures.show(
    fig,
    alt=f"Bytes held by the caches after each of {READ} characters. Both grow alike up to {WINDOW}, to "
    f"{held_bytes['rolling'][WINDOW - 1]}; there the rolling one stays, {held_bytes['rolling'][-1]} at the end, and "
    f"the full one goes on to {held_bytes['full'][-1]}.",
)

# %% [markdown]
# The rolling cache stops growing at the window, to the byte. Work it out for Mistral 7B: 32 blocks, 8 key-value heads
# of 128 features, 16 bits, a window of 4096. How much do the keys and values of a text of 32,768 tokens take with the
# full cache, and with the rolling one? What that costs in quality this picture does not say: nothing here needs to look
# further back than the window.
