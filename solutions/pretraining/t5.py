# %% [markdown]
# # T5: every task is text
#
# BERT fills blanks but cannot write; GPT writes but reads from left to right only. T5 (Raffel et al. 2020, first on
# arXiv in October 2019) keeps the whole Transformer: an encoder that reads in both directions, a decoder that writes.
# It is pre-trained to write what was cut out of a text, and every task it is given afterwards, translation,
# classification or a score, is text in and text out.
#
# **You build** span corruption, tasks as text, teacher forcing, relative position buckets
# · **Minutes** 90 · **Points** 20 · **Difficulty** ●●○ ·
# **Before this** [GPT and T5](../../book/pretraining/gpt.md), [The Transformer](../transformer/block.ipynb)
#
# Run a cell with Shift+Enter. Write your answers where it says `YOUR CODE HERE`, then run the tests below them.
# A test that passes is silent; one that fails says what it expected, what came, and which mistake usually does that.
# More tests, on other inputs, run when your notebook is graded.

# %%
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

import lab
from lab import check

device = lab.device()


def put_back(inputs: Sequence[int], targets: Sequence[int], first_sentinel: int) -> list[int]:
    """For the tests: the text again, each sentinel of the inputs replaced by what follows it in the targets.

    Tokens from ``first_sentinel`` on are sentinels.
    """
    spans, at = {}, None
    for token in targets:
        if token >= first_sentinel:
            at = token
            spans[at] = []
        elif at is not None:
            spans[at].append(token)
    return [t for token in inputs for t in spans.get(token, [token])]


# %% [markdown]
# ## 1 · Which tokens to cut out
#
# BERT hides single tokens. T5 hides *spans*, several tokens in a row: the model must then say what is missing and how
# much. Two numbers describe the noise (Raffel et al. 2020, §3.3.4): the *noise density*, the share of tokens that are
# cut out, 15 % as in BERT, and the *mean span length*, 3 in the models that were released.
#
# Neither is a probability here. For a text of $L$ tokens, both counts are fixed:
#
# $$n = \mathrm{round}(0.15\,L) \text{ tokens are noise}, \qquad k = \mathrm{round}(n / 3) \text{ spans hold them}.$$
#
# Chance decides only how long each span is, and how much text stands between them. Take the $n$ noise tokens in a row.
# There are $n - 1$ gaps between neighbours; choose $k - 1$ of them, each choice equally likely, and cut there:
#
# ```
# n = 6, k = 3          o o | o | o o o          lengths 2, 1, 3
# ```
#
# Every way to write $n$ as a sum of $k$ positive numbers, in order, comes out with the same probability,
# $1/\binom{n-1}{k-1}$. The $L - n$ tokens that are kept are cut into $k$ pieces in the same way. Then the pieces
# alternate, kept text first:
#
# ```
# kept  noise  kept  noise  …  kept  noise
# ```
#
# So no two spans touch, the first token of a text always stays and the last one always goes. (T5's own code does the
# same, unless told otherwise.)


# %% solution="noise"
def random_lengths(total: int, parts: int, generator: torch.Generator) -> Int[Tensor, "parts"]:
    """``total`` as a sum of ``parts`` positive integers, every such sequence with the same probability.

    ``(1, 3)`` and ``(3, 1)`` are two sequences. All that is random comes from ``generator``, in whichever way.

    Returns:
        The lengths, int64, on the CPU.

    Raises:
        ValueError: ``parts`` is less than 1 or greater than ``total`` (the message says ``parts``).
    """
    ### BEGIN SOLUTION
    if not 1 <= parts <= total:
        raise ValueError(f"{total} cannot be a sum of {parts} parts, all positive")
    cuts = torch.randperm(total - 1, generator=generator)[: parts - 1].sort().values + 1
    return torch.tensor([0, *cuts, total]).diff()
    ### END SOLUTION


def noise_mask(
    length: int,
    generator: torch.Generator,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
) -> Bool[Tensor, "length"]:
    """Which tokens of a text are cut out (Raffel et al. 2020, §3.3.4): ``True`` where a token is noise.

    The number of noise tokens is ``round(length * noise_density)``, but at least 1 and at most ``length - 1``. The
    number of spans is that number divided by ``mean_span_length``, rounded, but at least 1 and at most the
    number of tokens that are kept. ``round`` is Python's: halves go to the even neighbour. Kept and noise spans
    alternate, a kept one first; the lengths of the noise spans and those of the kept spans are two independent
    draws of ``random_lengths``. All that is random comes from ``generator``, in whichever way.

    Returns:
        The mask, on the CPU.

    Raises:
        ValueError: ``length`` is less than 2, ``noise_density`` is not between 0 and 1 (both excluded), or
            ``mean_span_length`` is less than 1; the message says which.
    """
    ### BEGIN SOLUTION
    if length < 2:
        raise ValueError(f"length must be at least 2, got {length}")
    if not 0 < noise_density < 1:
        raise ValueError(f"noise_density must lie between 0 and 1, got {noise_density}")
    if mean_span_length < 1:
        raise ValueError(f"mean_span_length must be at least 1, got {mean_span_length}")
    noise = min(max(round(length * noise_density), 1), length - 1)
    kept = length - noise
    spans = min(max(round(noise / mean_span_length), 1), kept)
    lengths = [random_lengths(total, spans, generator) for total in (kept, noise)]
    in_turn = torch.stack(lengths, dim=1).flatten()  # kept, noise, kept, noise, …
    return torch.tensor([False, True]).repeat(spans).repeat_interleave(in_turn)
    ### END SOLUTION


# %% [markdown]
# A sum of 5 in one part is 5, in five parts it is 1 + 1 + 1 + 1 + 1. With two parts there are four, and over many draws
# each should come about equally often.

# %% test="random_lengths" points=2
rng = lab.generator("random_lengths")
check.equal(random_lengths(5, 1, rng), [5], because="One part is all of it.")
check.equal(random_lengths(5, 5, rng), [1, 1, 1, 1, 1], because="Each part is at least 1.")
draws = [tuple(int(n) for n in random_lengths(5, 2, rng)) for _ in range(60)]
check.equal(
    sorted(set(draws)),
    [(1, 4), (2, 3), (3, 2), (4, 1)],
    because="5 in two parts is 1 + 4, 2 + 3, 3 + 2 or 4 + 1, and all four must come.",
)
# 400 gaps and 200 cuts: after each cut the next gap is cut as often as not, and a length of 1 is the result. Over
# three draws the share strays from ½ by about 0.014.
ones = [int(n) == 1 for _ in range(3) for n in random_lengths(401, 201, rng)]
check.that(
    abs(sum(ones) / len(ones) - 0.5) < 0.09,
    "Of 201 lengths that add up to 401 about half should be 1: choose the places of the cuts among the gaps, each "
    "choice equally likely.",
)
check.raises(
    ValueError,
    random_lengths,
    2,
    3,
    rng,
    mentions="parts",
    because="2 has no sum of three positive numbers: say so, and say parts.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs

rng = inputs("random_lengths")
seed = int(torch.randint(2**31, (), generator=rng))
cases = [(total, parts) for total in (1, 2, 3, 7, 20) for parts in (1, 2, 5, 19, 20)]
cases = [case for case in cases if case[1] <= case[0]]
draws = lab.generator(seed)
for (total, parts), got in zip(
    cases, each(random_lengths, [(*case, draws) for case in cases]), strict=True
):
    check.shape(got, (parts,), because="One length for each part.")
    check.that(got.dtype == torch.int64, "Lengths are counts: their dtype should be torch.int64.")
    check.that(
        int(got.sum()) == total and int(got.min()) >= 1,
        "The lengths must be at least 1 and add up to the total.",
    )
# The state of the generator decides, and nothing else; and it is moved on.
same = [
    [got.tolist() for got in each(random_lengths, [(50, 9, lab.generator(seed))] * 3)]
    for _ in range(2)
]
check.equal(
    same[0],
    same[1],
    because="The same state of the generator must give the same lengths: draw from it alone.",
)
check.that(
    len({tuple(lengths) for lengths in same[0]}) == 3,
    "Three draws in a row gave the same lengths: the generator must be drawn from, not copied or seeded anew.",
)
# 6 in three parts: ten sequences. The chi-square of 9 degrees of freedom exceeds 66 once in 10^10.
counts = {}
for got in each(random_lengths, [(6, 3, draws)] * 600):
    counts[tuple(got.tolist())] = counts.get(tuple(got.tolist()), 0) + 1
chi_square = sum((count - 60) ** 2 / 60 for count in counts.values()) + 60 * (10 - len(counts))
check.that(
    chi_square < 66,
    "Some sequences of lengths come more often than others: choose the cuts among the gaps, each choice "
    "equally likely, instead of drawing one length after another.",
)
for total, parts in [(3, 0), (3, 4), (5, -1)]:
    check.raises(
        ValueError,
        random_lengths,
        total,
        parts,
        rng,
        mentions="parts",
        because="Fewer than one part, or more parts than there are tokens, is bad input: say parts.",
    )
### END HIDDEN TESTS

# %% [markdown]
# Twenty tokens: 15 % are 3, which is one span of 3, and it stands at the end. With a density of one half and spans of
# mean length 2, ten tokens are noise, in five spans.

# %% test="noise_mask" points=2
rng = lab.generator("noise_mask")
check.equal(
    noise_mask(20, rng),
    [False] * 17 + [True] * 3,
    because="round(0.15 · 20) = 3 tokens are noise, round(3 / 3) = 1 span holds them, and kept text comes first.",
)
mask = torch.as_tensor(noise_mask(20, rng, noise_density=0.5, mean_span_length=2.0))
check.that(mask.dtype == torch.bool, "A mask is boolean: its dtype should be torch.bool.")
check.equal(int(mask.sum()), 10, because="Half of twenty tokens are noise.")
check.equal(
    [value for value, _ in groupby(mask.tolist())],
    [False, True] * 5,
    because="Ten noise tokens at a mean length of 2 make five spans, with kept text before each.",
)
check.equal(
    noise_mask(2, rng), [False, True], because="At least one token is noise and at least one kept."
)
check.raises(
    ValueError,
    noise_mask,
    1,
    rng,
    mentions="length",
    because="One token cannot be both kept and cut out: say so, and say length.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "t5")
rng = inputs("noise_mask")
seed = int(torch.randint(2**31, (), generator=rng))
draws = lab.generator(seed)
cases = [(length, density, mean) for length in (2, 3, 7, 13, 64) for density, mean in [(0.15, 3.0)]]
cases += [(30, 0.15, 3.0), (50, 0.15, 3.0)]  # 4.5 and 7.5 tokens
cases += [(10, 0.5, 2.0), (12, 0.25, 2.0), (30, 0.5, 2.0)]  # 2.5, 1.5 and 7.5 spans
cases += [
    (10, 0.9, 3.0),
    (10, 0.9, 1.0),
    (9, 0.97, 2.0),
    (20, 0.01, 3.0),
    (30, 0.5, 1.0),
    (10, 0.7, 1.0),
]
cases += [(40, 0.3, 20.0), (31, 0.4, 1.7), (100, 0.15, 10.0)]
got = each(noise_mask, [(length, draws, *how) for length, *how in cases])
for (length, *how), mask in zip(cases, got, strict=True):
    check.shape(mask, (length,), because="One entry for each token.")
    check.that(mask.dtype == torch.bool, "A mask is boolean: its dtype should be torch.bool.")
    right = theirs.noise_mask(length, lab.generator(0), *how)
    check.equal(
        int(mask.sum()),
        int(right.sum()),
        because="The number of noise tokens is round(length · noise_density), at least 1, at most length - 1.",
    )
    check.equal(
        [value for value, _ in groupby(mask.tolist())],
        [value for value, _ in groupby(right.tolist())],
        because="The number of spans is round(noise tokens / mean_span_length), at least 1 and at most the number "
        "of kept tokens; kept and noise alternate, kept first.",
    )
# Without them given, density and mean length are 0.15 and 3.
check.equal(
    [value for value, _ in groupby(noise_mask(200, draws).tolist())],
    [False, True] * 10,
    because="By default 15 % of the tokens are noise, in spans of mean length 3.",
)
same = [noise_mask(300, lab.generator(seed)).tolist() for _ in range(2)]
check.equal(same[0], same[1], because="The same state of the generator must give the same mask.")
check.that(
    noise_mask(300, draws).tolist() != noise_mask(300, draws).tolist(),
    "Two draws in a row gave the same mask: the generator must be drawn from.",
)
# Five noise tokens in three spans (six ways), four kept tokens in three (three ways): eighteen masks, all equally
# likely. The chi-square of 17 degrees of freedom exceeds 84 once in 10^10.
counts = {}
for mask in each(noise_mask, [(9, draws, 0.55, 1.7)] * 900):
    counts[tuple(mask.tolist())] = counts.get(tuple(mask.tolist()), 0) + 1
chi_square = sum((count - 50) ** 2 / 50 for count in counts.values()) + 50 * (18 - len(counts))
check.that(
    chi_square < 84,
    "Some masks come more often than others: the lengths of the noise spans and of the kept spans must be two "
    "independent draws of random_lengths.",
)
for length, how, says in [
    (0, (), "length"),
    (20, (0.0,), "noise_density"),
    (20, (1.0,), "noise_density"),
    (20, (-0.2,), "noise_density"),
    (20, (1.5,), "noise_density"),
    (20, (0.3, 0.9), "mean_span_length"),
    (20, (0.3, -3.0), "mean_span_length"),
]:
    check.raises(
        ValueError,
        noise_mask,
        length,
        draws,
        *how,
        mentions=says,
        because=f"Bad input should be refused: say {says}.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · Span corruption
#
# The inputs are the text with one *sentinel* in the place of each span. The targets are the spans alone, each after
# its sentinel, and one more sentinel to say that it is over. With the example of the paper (Figure 2), where
# `<X>`, `<Y>` and `<Z>` are sentinels:
#
# ```
# text      Thank you for inviting me to your party last week .
# noise               ^^^^^^^^^^^^                  ^^^^
# inputs    Thank you <X> me to your party <Y> week .
# targets   <X> for inviting <Y> last <Z>
# ```
#
# BERT predicts at every position of the text it has read. Here the decoder writes only what is missing, so the targets
# are short, and short targets are cheap to train on.
#
# Each sentinel stands for one span of this text, so they must all differ. They are extra ids at the end of the
# vocabulary, counted downwards: in a vocabulary of $V$ ids the first is $V - 1$, the second $V - 2$. (T5 has 32,100
# ids, of which the last 100 are sentinels: `<extra_id_0>` is 32,099.)


# %% solution="spans"
def replace_spans(
    tokens: Int[Tensor, "length"],
    mask: Bool[Tensor, "length"],
    vocab_size: int,
    num_sentinels: int = 100,
) -> tuple[Int[Tensor, "inputs"], Int[Tensor, "targets"]]:
    """Cuts the masked spans out (Raffel et al. 2020, Figure 2).

    A span is a run of ``True``, as long as possible. Sentinel number ``i``, from 0, is the id
    ``vocab_size - 1 - i``; the last ``num_sentinels`` ids of the vocabulary are sentinels and no token of a text
    is one of them.

    Args:
        tokens: a text, left unchanged. It may be empty.
        mask: ``True`` where a token is noise. Any mask will do, also one that begins with noise or has none.

    Returns:
        ``inputs``, the text with each span replaced by one sentinel, in order; and ``targets``, for each span its
        sentinel and its tokens, and after the last span the next sentinel. Both of the dtype and on the device
        of ``tokens``.

    Raises:
        ValueError: ``mask`` does not have the shape of ``tokens`` (the message says ``mask``); a token is
            negative or is a sentinel (it says ``tokens``); or the spans and the end need more than
            ``num_sentinels`` sentinels (it says ``num_sentinels``).
    """
    ### BEGIN SOLUTION
    if mask.shape != tokens.shape:
        raise ValueError(f"mask {tuple(mask.shape)} does not fit tokens {tuple(tokens.shape)}")
    if ((tokens < 0) | (tokens >= vocab_size - num_sentinels)).any():
        raise ValueError(f"tokens must lie between 0 and {vocab_size - num_sentinels - 1}")
    inputs, targets = [], []
    sentinel = vocab_size - 1
    inside = False
    for token, noise in zip(tokens.tolist(), mask.tolist(), strict=True):
        if noise and not inside:
            inputs.append(sentinel)
            targets.append(sentinel)
            sentinel -= 1
        (targets if noise else inputs).append(token)
        inside = noise
    targets.append(sentinel)
    if vocab_size - sentinel > num_sentinels:
        raise ValueError(f"num_sentinels = {num_sentinels} are too few for this text")
    return tokens.new_tensor(inputs), tokens.new_tensor(targets)
    ### END SOLUTION


def span_corrupt(
    tokens: Int[Tensor, "length"],
    vocab_size: int,
    generator: torch.Generator,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
    num_sentinels: int = 100,
) -> tuple[Int[Tensor, "inputs"], Int[Tensor, "targets"]]:
    """One example of T5's pre-training: a fresh ``noise_mask``, then ``replace_spans``.

    Raises:
        ValueError: as ``noise_mask`` and ``replace_spans``.
    """
    ### BEGIN SOLUTION
    mask = noise_mask(len(tokens), generator, noise_density, mean_span_length)
    return replace_spans(tokens, mask.to(tokens.device), vocab_size, num_sentinels)
    ### END SOLUTION


# %% [markdown]
# The example of the paper, with ids 0 to 10 for its words and a vocabulary of 20, of which the last 5 are sentinels.

# %% test="replace_spans" points=3
text = torch.arange(11)
noise = torch.zeros(11, dtype=torch.bool)
noise[[2, 3, 8]] = True
corrupted, missing = replace_spans(text, noise, vocab_size=20, num_sentinels=5)
check.equal(
    corrupted,
    [0, 1, 19, 4, 5, 6, 7, 18, 9, 10],
    because="Each span becomes one sentinel, however long it is: 19 for the first, 18 for the second.",
)
check.equal(
    missing,
    [19, 2, 3, 18, 8, 17],
    because="Each span stands after its own sentinel, and the next sentinel, 17, ends the targets.",
)
corrupted, missing = replace_spans(text[:3], noise[:3] & False, vocab_size=20, num_sentinels=5)
check.equal(corrupted, [0, 1, 2], because="Without noise the inputs are the text.")
check.equal(
    missing, [19], because="Without noise the targets are the final sentinel, here the first."
)
check.raises(
    ValueError,
    replace_spans,
    text,
    noise,
    20,
    2,
    mentions="num_sentinels",
    because="Two spans and the end need three sentinels: say so, and say num_sentinels.",
)
check.raises(
    ValueError,
    replace_spans,
    text,
    noise,
    15,
    5,
    mentions="tokens",
    because="In a vocabulary of 15 with 5 sentinels id 10 is a sentinel, and no token of a text: say tokens.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "t5")
rng = inputs("replace_spans")
cases = []
for length in (1, 2, 3, 8, 13, 40):
    for density in (0.2, 0.5, 0.9):
        tokens = torch.randint(70, (length,), generator=rng).to(device)
        mask = (torch.rand(length, generator=rng) < density).to(device)
        cases.append((tokens, mask, 100, 30))
tokens = torch.randint(900, (9,), generator=rng).to(device)
cases += [(tokens, torch.full((9,), all_noise, device=device), 1000) for all_noise in (True, False)]
cases.append((tokens[:0], torch.zeros(0, dtype=torch.bool, device=device), 1000))
# By default there are 100 sentinels: 99 spans and the end.
cases.append((torch.arange(197).to(device), (torch.arange(197) % 2 == 0).to(device), 1000))
cases.append((tokens - tokens.max() + 899, torch.zeros(9, dtype=torch.bool, device=device), 1000))
# Exactly as many sentinels as are needed: three spans and the end.
comb = torch.tensor([True, False, True, False, True]).to(device)
cases.append((tokens[:5], comb, 904, 4))
# Not contiguous; the same token inside and outside a span; the largest id that is no sentinel.
wide = torch.randint(70, (12, 2), generator=rng).to(device)
wide[3:6], wide[9] = 69, 69
cases.append((wide[:, 1], (torch.rand(12, 2, generator=rng) < 0.5).to(device)[:, 0], 100, 30))
for (tokens, mask, *sizes), (corrupted, missing) in zip(
    cases, each(replace_spans, cases), strict=True
):
    right_inputs, right_targets = theirs.replace_spans(tokens, mask, *sizes)
    check.equal(
        corrupted,
        right_inputs,
        because="In the inputs each run of noise is one sentinel, vocab_size - 1 for the first and one less for each "
        "further span; everything else stays, in order.",
    )
    check.equal(
        missing,
        right_targets,
        because="The targets are, for each span in order, its sentinel and its tokens, and after the last span the "
        "next sentinel.",
    )
    for tensor in (corrupted, missing):
        check.that(
            tensor.dtype == torch.int64, "Token ids are integers: the dtype should be torch.int64."
        )
        check.that(
            tensor.device.type == tokens.device.type,
            "Inputs and targets must lie on the device of the tokens.",
        )
    check.equal(
        put_back(corrupted.tolist(), missing.tolist(), sizes[0] - (sizes[1:] or [100])[0]),
        tokens,
        because="Put back into the inputs, the spans of the targets must give the text again.",
    )
# What comes in stays as it was.
tokens, mask = cases[4][0].clone(), cases[4][1].clone()
replace_spans(tokens, mask, 100, 30)
check.equal(tokens, cases[4][0], because="The function changed its own tokens.")
check.equal(mask, cases[4][1], because="The function changed its own mask.")
tokens = torch.arange(5).to(device)
for bad_tokens, bad_mask, sizes, says in [
    (tokens, comb[:4], (100, 30), "mask"),
    (tokens, comb[:1], (100, 30), "mask"),
    (tokens, comb[None], (100, 30), "mask"),
    (tokens - 1, comb, (100, 30), "tokens"),
    (tokens, comb & False, (10, 6), "tokens"),
    (tokens, comb, (100, 3), "num_sentinels"),
    (tokens, comb & False, (100, 0), "num_sentinels"),
    (torch.arange(199), torch.arange(199) % 2 == 0, (1000,), "num_sentinels"),
    (tokens + 896, comb, (1000,), "tokens"),
]:
    check.raises(
        ValueError,
        replace_spans,
        bad_tokens,
        bad_mask,
        *sizes,
        mentions=says,
        because=f"Bad input should be refused, also where it could be stretched or cut to fit: say {says}.",
    )
### END HIDDEN TESTS

# %% test="span_corrupt" points=1
text = torch.arange(20)
corrupted, missing = span_corrupt(text, 200, lab.generator("span_corrupt"))
check.equal(
    corrupted,
    [*range(17), 199],
    because="Of 20 tokens the last 3 are noise, as in part 1: kept text comes first.",
)
check.equal(
    missing, [199, 17, 18, 19, 198], because="The span after its sentinel, then the final sentinel."
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "t5")
rng = inputs("span_corrupt")
draws = lab.generator(int(torch.randint(2**31, (), generator=rng)))
cases = []
for length, how in [(40, ()), (200, ()), (60, (0.5, 2.0, 16)), (60, (0.3, 6.0, 4)), (2, ())]:
    tokens = torch.randint(100, (length,), generator=rng).to(device)
    cases += [(tokens, 500, draws, *how)] * 2
pairs = each(span_corrupt, cases)
for (tokens, _, _, *how), (corrupted, missing) in zip(cases, pairs, strict=True):
    first = 500 - (how[2:] or [100])[0]
    right_inputs, right_targets = theirs.span_corrupt(tokens, 500, lab.generator(0), *how)
    check.shape(
        corrupted,
        right_inputs.shape,
        because="The inputs are the kept tokens and one sentinel for each span of noise_mask.",
    )
    check.shape(
        missing,
        right_targets.shape,
        because="The targets are the noise tokens, a sentinel for each span and the final one.",
    )
    check.equal(
        put_back(corrupted.tolist(), missing.tolist(), first),
        tokens,
        because="Put back into the inputs, the spans of the targets must give the text again.",
    )
check.that(
    pairs[2][0].tolist() != pairs[3][0].tolist(),
    "The same text came out corrupted in the same way twice: each call draws a fresh mask from the generator.",
)
same = [span_corrupt(cases[2][0], 500, lab.generator(7))[0].tolist() for _ in range(2)]
check.equal(same[0], same[1], because="The same state of the generator must give the same example.")
# By default there are 100 sentinels: in a vocabulary of 500 the largest token is 399.
tokens = torch.full((20,), 399, device=device)
check.equal(
    span_corrupt(tokens, 500, draws)[0],
    [399] * 17 + [499],
    because="Unless given, the last 100 ids are sentinels, and no others.",
)
check.raises(
    ValueError,
    span_corrupt,
    tokens + 1,
    500,
    draws,
    mentions="tokens",
    because="Unless given, the last 100 ids are sentinels: a token among them is bad input.",
)
for bad, says in [((500, draws, 1.5), "noise_density"), ((500, draws, 0.5, 1.0, 5), "num_senti")]:
    check.raises(
        ValueError,
        span_corrupt,
        cases[2][0],
        *bad,
        mentions=says,
        because="What noise_mask and replace_spans refuse, span_corrupt refuses.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · Tasks as text
#
# BERT has one head for classes, another for spans, a third for tokens. T5 has none. A task is written into the text,
# before the input, and the answer is written out as text too (§2.4). Some of the paper's own:
#
# | task | the model reads | it must write |
# | --- | --- | --- |
# | translation | `translate English to German: That is good.` | `Das ist gut.` |
# | a class (CoLA) | `cola sentence: The course is jumping well.` | `not acceptable` |
# | a score (STS-B) | `stsb sentence1: The rhino grazed … sentence2: A rhino is …` | `3.8` |
#
# A class is written as its name. A score becomes the nearest multiple of 0.2, written with one decimal: most scores
# of STS-B lie at such steps, says the paper, and a number is text like any other. Nothing keeps the model from writing
# something else, "hamburger" where a class is asked for. Such an answer counts as wrong; here it is read as `None`.
#
# `Task` is given: a template with the names of its fields in braces, and what kind of answer it has.


# %%
@dataclass(frozen=True)
class Task:
    """A task written as text.

    Attributes:
        template: what the model reads, each ``{name}`` standing for a field of the example.
        labels: the names of the classes, if the answer is a class.
        step: what a score is a multiple of, if the answer is a score; 0 if it is not.
    """

    template: str
    labels: tuple[str, ...] = ()
    step: float = 0.0


TRANSLATE = Task("translate English to German: {text}")
COLA = Task("cola sentence: {sentence}", labels=("not acceptable", "acceptable"))
STSB = Task("stsb sentence1: {sentence1} sentence2: {sentence2}", step=0.2)


# %% solution="tasks"
def make_text_to_text(
    task: Task, fields: dict[str, str], answer: str | int | float
) -> tuple[str, str]:
    """An example as two texts: what the model reads, and what it must write (Raffel et al. 2020, §2.4).

    Args:
        task: how it is written.
        fields: a text for each name in the template. Others are left out. A text is used as it stands, also one
            with braces in it.
        answer: a text; for a task with ``labels`` the number of the class, from 0; for one with a ``step`` a
            number.

    Returns:
        The filled template, and the answer as text: itself, the label, or the nearest multiple of ``step`` with
        one decimal (between two multiples, either).

    Raises:
        ValueError: a field of the template is missing (the message says its name), or the number of the class is
            negative or too large (it says ``labels``).
    """
    ### BEGIN SOLUTION
    try:
        source = task.template.format(**fields)
    except KeyError as error:
        raise ValueError(f"the task needs the field {error}") from None
    if task.labels:
        if not 0 <= answer < len(task.labels):
            raise ValueError(f"{answer} is none of the {len(task.labels)} labels")
        return source, task.labels[answer]
    if task.step:
        return source, f"{round(answer / task.step) * task.step:.1f}"
    return source, answer
    ### END SOLUTION


def read_answer(task: Task, written: str) -> str | int | float | None:
    """What the model has written, as an answer: the way back from text.

    White space at both ends is dropped first.

    Returns:
        The text; for a task with ``labels`` the number of the class whose name it is, exactly; for one with a
        ``step`` the number it says, not rounded. ``None`` for what is no class, or no finite number.
    """
    ### BEGIN SOLUTION
    written = written.strip()
    if task.labels:
        return task.labels.index(written) if written in task.labels else None
    if task.step:
        try:
            number = float(written)
        except ValueError:
            number = math.nan
        return number if math.isfinite(number) else None
    return written
    ### END SOLUTION


# %% test="text_to_text" points=3
check.equal(
    make_text_to_text(TRANSLATE, {"text": "That is good."}, "Das ist gut."),
    ("translate English to German: That is good.", "Das ist gut."),
    because="The task's name stands before the text, in the same string; the answer is the second one.",
)
check.equal(
    make_text_to_text(COLA, {"sentence": "The course is jumping well."}, 0),
    ("cola sentence: The course is jumping well.", "not acceptable"),
    because="A class is written as its name, not as its number.",
)
sentences = {"sentence2": "It rains.", "sentence1": "Rain is falling."}
check.equal(
    make_text_to_text(STSB, sentences, 3.77),
    ("stsb sentence1: Rain is falling. sentence2: It rains.", "3.8"),
    because="Fields go where the template names them; a score is the nearest multiple of 0.2, as text.",
)
check.equal(
    make_text_to_text(STSB, sentences, 5)[1],
    "5.0",
    because="A score is always written with one decimal.",
)
check.equal(
    [read_answer(COLA, text) for text in ("acceptable", " not acceptable\n", "hamburger")],
    [1, 0, None],
    because="A label is read back as its number; what is no label is None, not a class.",
)
check.equal(
    [read_answer(STSB, text) for text in ("3.8", "three")],
    [3.8, None],
    because="A score is read back as a number; what is no number is None.",
)
check.equal(read_answer(TRANSLATE, " Das ist gut. "), "Das ist gut.", because="Text stays text.")
check.raises(
    ValueError,
    make_text_to_text,
    STSB,
    {"sentence1": "It rains."},
    1.0,
    mentions="sentence2",
    because="A field is missing: say which.",
)
check.raises(
    ValueError,
    make_text_to_text,
    COLA,
    {"sentence": "It rains."},
    2,
    mentions="labels",
    because="There are only classes 0 and 1: say so, and say labels.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "t5")
rng = inputs("text_to_text")
letters = "abcdefg {}"


def word() -> str:
    """A random text, braces among its letters."""
    return "x" + "".join(letters[i] for i in torch.randint(10, (6,), generator=rng).tolist()) + "y"


names = tuple(word() for _ in range(5))
sort = Task("{b} of {a}, {b}: which?", labels=names)
weigh = Task("weigh {a}", step=0.5)
plain = Task("say: {a}")
cases = []
for _ in range(4):
    fields = {"a": word(), "b": word(), "c": word()}
    cases += [
        (sort, fields, int(torch.randint(5, (), generator=rng))),
        (weigh, fields, round(10 * torch.rand((), generator=rng).item(), 3) + 0.0003),
        (plain, fields, word()),
        (STSB, {"sentence1": word(), "sentence2": word()}, 0.2 * len(cases) + 0.07),
        (STSB, {"sentence1": word(), "sentence2": word()}, 0.2 * (len(cases) + 2) - 0.07),
    ]
cases += [(sort, fields, 4), (sort, fields, 0), (weigh, fields, 0.1), (plain, fields, "7")]
# A text that looks like a field is a text; its braces stay.
cases += [(sort, {"a": "{b}", "b": "{a}{{}}"}, 1), (STSB, {"sentence1": "{}", "sentence2": "{"}, 4)]
for case, got in zip(cases, each(make_text_to_text, cases), strict=True):
    check.equal(
        got,
        theirs.make_text_to_text(*case),
        because="The template with its fields filled in, as they are, wherever they are named; and the answer as "
        "text: itself, the name of the class, or the nearest multiple of the task's own step with one decimal.",
    )
answers = [(sort, f"\t {name} ") for name in names]
answers += [(sort, text) for text in (names[2].upper(), names[1][:-1], names[3] + "s", "2", "")]
answers += [(COLA, text) for text in ("acceptable", "not", "Acceptable", "unacceptable")]
answers += [
    (STSB, text) for text in ("0.0", " 4.97 ", "7", "-1.5", "", "nan", "inf", "-inf", "3.8 of 5")
]
answers += [(plain, text) for text in ("  two words \n", "3.8", "")]
for case, got in zip(answers, each(read_answer, answers), strict=True):
    check.equal(
        got,
        theirs.read_answer(*case),
        because="White space at the ends is dropped; then a class by its exact name, a score as the finite number "
        "it says, any other text as it is, and None for what is none of these.",
    )
# There and back.
exact = [case for case in cases[:20] if not case[0].step]
written = [
    (case[0], pair[1]) for case, pair in zip(exact, each(make_text_to_text, exact), strict=True)
]
for (*_, answer), got in zip(exact, each(read_answer, written), strict=True):
    check.equal(
        got, answer, because="An answer written as text and read again must be the same answer."
    )
for answer in (-1, 5):
    check.raises(
        ValueError,
        make_text_to_text,
        sort,
        {"a": "1", "b": "2"},
        answer,
        mentions="labels",
        because="A class that does not exist is bad input, a negative one too: say labels.",
    )
check.raises(
    ValueError,
    make_text_to_text,
    sort,
    {"a": "1"},
    0,
    mentions="b",
    because="A field is missing: say its name.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · Teacher forcing
#
# A decoder that writes reads its own words: token $t$ is predicted from the tokens before it. In training we know those
# tokens, so we let it read the *right* ones, whatever it would have written itself. This is *teacher forcing*
# (Williams and Zipser 1989), and with a causal mask it makes all predictions of a target in one pass:
#
# ```
# targets           Das    ist   gut   .     </s>
# decoder reads     <s>    Das   ist   gut   .
# ```
#
# The decoder's inputs are the targets moved one place to the right, with a start token in front, and the last target is
# read by nobody. Without the shift each position would read the very token it is to predict: a loss of almost 0, and a
# model that has learnt to copy.
#
# T5 has no start token of its own: it uses the id of the padding, 0. Targets of different lengths are padded at the
# end, and padding is not part of the text. The loss is the mean over the tokens that are not padding, of all
# texts of the batch together:
#
# $$\mathcal L = -\frac{1}{\sum_{b,t} m_{b,t}} \sum_{b,t} m_{b,t} \log p(y_{b,t} \mid y_{b,<t}, x_b),
# \qquad m_{b,t} = \begin{cases} 0 & y_{b,t} \text{ is padding} \\ 1 & \text{otherwise.} \end{cases}$$


# %% solution="teacher"
def shift_right(targets: Int[Tensor, "... length"], start_id: int = 0) -> Int[Tensor, "... length"]:
    """What the decoder reads: ``start_id``, then all targets but the last one of each text.

    ``targets`` is left unchanged; the result has its shape and dtype.
    """
    ### BEGIN SOLUTION
    return F.pad(targets[..., :-1], (1, 0), value=start_id)
    ### END SOLUTION


def seq2seq_loss(
    logits: Float[Tensor, "... length vocab"], targets: Int[Tensor, "... length"], pad_id: int = 0
) -> Float[Tensor, ""]:
    """The mean negative log-probability, in nats, of the targets that are not padding.

    Args:
        logits: at each position those of the target at the *same* position, not normalised.
        targets: token ids; ``pad_id`` is padding, wherever it stands.

    Returns:
        The mean over all targets that are not ``pad_id``, of all texts together: every token has the same
        weight. 0 if there are none, and then the gradient is 0 too.

    Raises:
        ValueError: ``logits`` without its last dimension does not have the shape of ``targets`` (the message
            says ``targets``).
    """
    ### BEGIN SOLUTION
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit targets {tuple(targets.shape)}")
    real = targets != pad_id
    total = F.cross_entropy(logits[real], targets[real], reduction="sum")
    return total / real.sum().clamp(min=1)
    ### END SOLUTION


def teacher_forcing_loss(
    model: Callable[[Tensor, Tensor], Tensor],
    inputs: Int[Tensor, "batch source"],
    targets: Int[Tensor, "batch length"],
    start_id: int = 0,
    pad_id: int = 0,
) -> Float[Tensor, ""]:
    """The loss of an encoder-decoder on a batch, with one call of ``model``.

    ``model(inputs, decoder_inputs)`` gives logits of shape (batch, length, vocab): at position ``t`` those of
    the token after ``decoder_inputs[:, t]``.
    """
    ### BEGIN SOLUTION
    logits = model(inputs, shift_right(targets, start_id))
    return seq2seq_loss(logits, targets, pad_id)
    ### END SOLUTION


# %% test="shift_right" points=1
targets = torch.tensor([[5, 6, 7], [8, 9, 0]])
check.equal(
    shift_right(targets),
    [[0, 5, 6], [0, 8, 9]],
    because="The start token first, then every target but the last: to the right, not to the left.",
)
check.equal(targets, [[5, 6, 7], [8, 9, 0]], because="The targets were changed in place.")
check.equal(
    shift_right(targets, start_id=3),
    [[3, 5, 6], [3, 8, 9]],
    because="start_id says what comes first.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "t5")
rng = inputs("shift_right")
for shape in [(1,), (4,), (2, 1), (3, 5), (2, 3, 4)]:
    targets = torch.randint(2, 50, shape, generator=rng).to(device)
    was = targets.clone()
    cases = [(targets, start_id) for start_id in (0, 1, 77)]
    for case, got in zip(cases, each(shift_right, cases), strict=True):
        check.equal(
            got,
            theirs.shift_right(*case),
            because="For each text: the start token, then its targets without the last, whatever the leading "
            "dimensions, a length of 1 included.",
        )
        check.that(got.dtype == torch.int64, "Token ids stay torch.int64.")
    check.equal(
        targets, was, because="The targets were changed in place; the loss still needs them."
    )
targets = torch.randint(2, 50, (4, 3), generator=rng).to(device).T
check.equal(
    shift_right(targets),
    theirs.shift_right(targets),
    because="Targets may be a transposed view: the texts run along the last dimension.",
)
### END HIDDEN TESTS

# %% [markdown]
# By hand, with two tokens and odds of 1 : 3: the loss of token 1 is $-\ln \frac34$. Padding, with the id 0, does not
# count, and each remaining token counts once.

# %% test="teacher_forcing" points=3
odds = torch.tensor([[[1.0, 3.0, 0.0], [1.0, 1.0, 2.0]], [[1.0, 1.0, 0.0], [9.0, 1.0, 0.0]]])
logits = (odds + 1e-30).log()
check.close(
    seq2seq_loss(logits, torch.tensor([[1, 2], [1, 0]])),
    (math.log(4 / 3) + math.log(2) + math.log(2)) / 3,
    because="Three targets are real: the sum of their -log p, divided by 3. Position 4 is padding.",
)
check.close(
    seq2seq_loss(logits, torch.tensor([[0, 0], [0, 0]])),
    0.0,
    because="Nothing but padding: the loss is 0, not 0/0.",
)
check.raises(
    ValueError,
    seq2seq_loss,
    logits,
    torch.tensor([[1, 2, 1], [1, 2, 1]]),
    mentions="targets",
    because="Three targets for two rows of logits: say so, and say targets.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "t5")
rng = inputs("teacher_forcing")
cases = []
for shape, pad_id in [((4,), 0), ((3, 5), 0), ((3, 5), 4), ((2, 3, 4), 0), ((3, 1), 0)]:
    logits = 2 * torch.randn(*shape, 7, generator=rng, dtype=torch.float64).to(device) + 3
    targets = torch.randint(1, 7, shape, generator=rng).to(device)
    # Texts of different lengths, so that a mean of means is another number; with 0 as a token where pad_id is 4.
    targets[..., -1:][torch.rand(targets[..., -1:].shape, generator=rng).to(device) < 0.4] = pad_id
    if len(shape) > 1 and shape[-1] > 1:
        targets[0, ..., 1:] = pad_id
        targets[1, ..., 0] = 0 if pad_id else 1
    cases.append((logits.requires_grad_(), targets, pad_id))
losses, right_losses, right_logits = each(seq2seq_loss, cases), [], []
for (logits, targets, pad_id), loss in zip(cases, losses, strict=True):
    right_logits.append(logits.detach().clone().requires_grad_())
    right_losses.append(theirs.seq2seq_loss(right_logits[-1], targets, pad_id))
    check.shape(loss, (), because="The loss is one number.")
    check.close(
        loss,
        right_losses[-1],
        because="The loss is the mean of -log softmax at the target of the same position, in nats, over all tokens of "
        "all texts that are not pad_id; each token counts once.",
    )
sum(losses).backward()
sum(right_losses).backward()
for (mine, *_), right in zip(cases, right_logits, strict=True):
    check.that(mine.grad is not None, "No gradient reaches the logits: is something detached?")
    check.close(
        mine.grad,
        right.grad,
        because="The gradient of the logits is off: padding must get none, and the others (softmax - one-hot) / count.",
    )
# One token alone among padding.
logits = torch.randn(2, 3, 5, generator=rng, dtype=torch.float64).to(device)
targets = torch.tensor([[0, 0, 0], [3, 0, 0]]).to(device)
check.close(
    seq2seq_loss(logits, targets),
    theirs.seq2seq_loss(logits, targets),
    because="With one token that is not padding the loss is that of this token.",
)
# Nothing but padding: no loss, no gradient, no NaN.
logits = torch.randn(2, 3, 5, generator=rng, dtype=torch.float64).to(device).requires_grad_()
loss = seq2seq_loss(logits, torch.zeros(2, 3, dtype=torch.int64, device=device))
check.close(loss, 0.0, because="Nothing but padding has a loss of 0.")
loss.backward()
check.close(
    logits.grad, torch.zeros(2, 3, 5), because="Nothing but padding sends no gradient, and no NaN."
)
# Large logits.
logits = 800 * torch.randn(2, 3, 5, generator=rng, dtype=torch.float64).to(device)
targets = torch.randint(1, 5, (2, 3), generator=rng).to(device)
check.close(
    seq2seq_loss(logits, targets),
    theirs.seq2seq_loss(logits, targets),
    because="Large logits must not overflow: use log_softmax or cross_entropy, not the log of a softmax.",
)
for bad in (targets[:, :2], targets[:1], targets.flatten()):
    check.raises(
        ValueError,
        seq2seq_loss,
        logits,
        bad,
        mentions="targets",
        because="Targets that are not one for each row of logits are bad input: say targets.",
    )
# With a model that notes what it is given.
source = torch.randint(1, 5, (2, 4), generator=rng).to(device)
for targets, start_id, pad_id in [
    (torch.tensor([[3, 1, 4, 2], [2, 4, 0, 0]]).to(device), 0, 0),
    (torch.tensor([[3, 0, 4, 1], [2, 1, 1, 1]]).to(device), 2, 1),
]:
    logits = torch.randn(2, 4, 5, generator=rng, dtype=torch.float64).to(device).requires_grad_()
    seen = []

    def model(inputs: Tensor, decoder_inputs: Tensor, logits: Tensor = logits, seen: list = seen):
        seen.append((inputs.tolist(), decoder_inputs.tolist()))
        return logits

    loss = teacher_forcing_loss(model, source, targets, start_id, pad_id)
    check.equal(
        seen,
        [(source.tolist(), theirs.shift_right(targets, start_id).tolist())],
        because="The model is called once, with the inputs and with the targets shifted to the right, which start "
        "with start_id.",
    )
    check.close(
        loss,
        theirs.seq2seq_loss(logits, targets, pad_id),
        because="The loss compares the logits with the targets themselves, not with what the decoder read, and "
        "leaves out pad_id.",
    )
    loss.backward()
    check.that(
        logits.grad is not None and bool(logits.grad.abs().sum() > 0),
        "No gradient reaches what the model returned.",
    )
seen.clear()
check.close(
    teacher_forcing_loss(model, source, targets),
    theirs.seq2seq_loss(logits, targets),
    because="Without a pad_id given, padding has the id 0.",
)
check.equal(
    seen[0][1],
    theirs.shift_right(targets).tolist(),
    because="Without a start_id given, the decoder starts with the id 0.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · Relative positions in buckets
#
# T5 adds no position code to its embeddings. It adds to each *score* of its attention a number that depends on how far
# the key stands from the query, one number for each head, learnt (§2.1):
#
# $$\mathrm{score}_{ij} = q_i \cdot k_j + b_{\mathrm{bucket}(j - i)}.$$
#
# A number for every distance would be many, and most distances of a long text are rare. So distances are put into
# *buckets*. With `num_buckets` buckets for one direction:
#
# - the first half hold one distance each: 0, 1, 2, …, up to $e - 1$, where $e$ is half the number of buckets, rounded
#   down;
# - the others grow: distance $d \ge e$ falls into bucket
#
# $$e + \left\lfloor \frac{\ln(d / e)}{\ln(d_{\max} / e)} \,(\text{buckets} - e) \right\rfloor,$$
#
# - and everything from $d_{\max}$ on falls into the last bucket.
#
# Near tokens are told apart exactly, far ones by their order of magnitude, very far ones not at all. An encoder looks
# both ways (*bidirectional*): half of the buckets are for keys at or before the query, the other half, from
# `num_buckets // 2` on, for keys after it. A decoder looks back only, and has all of them for that; a key after the
# query, which its mask forbids, counts as distance 0. T5 uses 32 buckets and $d_{\max} = 128$.


# %% solution="relative"
def relative_position_bucket(
    relative_position: Int[Tensor, "..."],
    bidirectional: bool,
    num_buckets: int = 32,
    max_distance: int = 128,
) -> Int[Tensor, "..."]:
    """The bucket of each relative position (Raffel et al. 2020, §2.1).

    Args:
        relative_position: position of the key minus position of the query; negative looks back.
        bidirectional: whether keys after the query have buckets of their own: then each direction has
            ``num_buckets // 2``, numbered from 0 for keys at or before the query, and from
            ``num_buckets // 2`` for keys after it. Otherwise keys after the query are in bucket 0.
        num_buckets: of both directions together; even if ``bidirectional``.
        max_distance: from this distance on, all are in the last bucket of their direction.

    Returns:
        Buckets from 0 to ``num_buckets - 1``, int64. A distance on the very boundary of two of the growing
        buckets may be in either, as rounding has it.

    Raises:
        ValueError: ``max_distance`` is not greater than the number of buckets that hold one distance each (the
            message says ``max_distance``).
    """
    ### BEGIN SOLUTION
    buckets = num_buckets // 2 if bidirectional else num_buckets
    exact = buckets // 2
    if max_distance <= exact:
        raise ValueError(f"max_distance must be greater than {exact}, got {max_distance}")
    if bidirectional:
        first = (relative_position > 0) * buckets
        distance = relative_position.abs()
    else:
        first = 0
        distance = (-relative_position).clamp(min=0)
    # Negative below exact, where it is not used.
    growth = torch.log(distance / exact) / math.log(max_distance / exact)
    far = exact + (growth * (buckets - exact)).long()
    return first + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))
    ### END SOLUTION


# %% [markdown]
# By hand, looking back only, with 4 buckets and $d_{\max} = 10$: $e = 2$, so distances 0 and 1 have buckets of their
# own. Distance 4: $\ln 2 / \ln 5 = 0.43$, times 2 is 0.86, bucket 2. Distance 5: $\ln 2.5 / \ln 5 = 0.57$, times 2 is
# 1.14, bucket 3. With both directions and 8 buckets, keys after the query have the same buckets plus 4.

# %% test="relative_position_bucket" points=2
back = torch.tensor([0, -1, -2, -3, -4, -5, -9, -10, -11, -500])
check.equal(
    relative_position_bucket(back, False, num_buckets=4, max_distance=10),
    [0, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    because="Looking back is negative. The first half of the buckets hold one distance each, the others grow "
    "with the logarithm, and the last takes all from max_distance on.",
)
check.equal(
    relative_position_bucket(-back, False, num_buckets=4, max_distance=10),
    [0] * 10,
    because="Without both directions, keys after the query count as distance 0.",
)
check.equal(
    relative_position_bucket(back, True, num_buckets=8, max_distance=10),
    [0, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    because="With both directions each has half of the buckets; looking back has the lower ones.",
)
check.equal(
    relative_position_bucket(-back, True, num_buckets=8, max_distance=10),
    [0, 5, 6, 6, 6, 7, 7, 7, 7, 7],
    because="Keys after the query have the upper half of the buckets; distance 0 is in bucket 0.",
)
check.raises(
    ValueError,
    relative_position_bucket,
    back,
    False,
    8,
    4,
    mentions="max_distance",
    because="Four buckets hold distances 0 to 3, and a max_distance of 4 leaves nothing to grow: say max_distance.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "t5")
rng = inputs("relative_position_bucket")
cases = []
# None of these has a distance on a boundary of two growing buckets, but for the last bucket's end.
for num_buckets, max_distance in [(10, 71), (12, 100), (32, 127), (6, 50), (20, 333)]:
    every = torch.arange(-max_distance - 20, max_distance + 21)
    some = torch.randint(-3 * max_distance, 3 * max_distance, (3, 5), generator=rng)
    for positions in (every, some, some.T, some[0, 0]):
        for bidirectional in (True, False):
            cases.append((positions.to(device), bidirectional, num_buckets, max_distance))
cases += [(torch.arange(-40, 41).to(device), False, *sizes) for sizes in [(7, 30), (3, 17)]]
for case, got in zip(cases, each(relative_position_bucket, cases), strict=True):
    check.equal(
        got,
        theirs.relative_position_bucket(*case),
        because="For each direction: e = buckets // 2 distances of their own, then "
        "e + floor(ln(d/e) / ln(max_distance/e) · (buckets - e)), at most buckets - 1.",
    )
    check.that(got.dtype == torch.int64, "Buckets are indices: their dtype should be torch.int64.")
# T5's own sizes, left out: 32 buckets up to 128. 11, 16, 23, 32, 45, 64, 91 begin new ones; 16, 32 and 64 lie on
# boundaries.
positions = torch.tensor(
    [-3000, -129, -128, -113, -112, -91, -90, -46, -20, -11, -10, -8, -7, 0, 7, 12, 40, 1000]
)
for bidirectional in (True, False):
    check.equal(
        relative_position_bucket(positions.to(device), bidirectional),
        theirs.relative_position_bucket(positions, bidirectional),
        because="Unless given, there are 32 buckets, and distances from 128 on share the last.",
    )
was = positions.clone()
relative_position_bucket(was, True)
check.equal(was, positions, because="The function changed its own argument.")
for how in [(True, 32, 8), (False, 32, 16), (False, 32, 3), (True, 32, -1)]:
    check.raises(
        ValueError,
        relative_position_bucket,
        positions,
        *how,
        mentions="max_distance",
        because="A max_distance within the buckets of one distance each is bad input: say max_distance.",
    )
### END HIDDEN TESTS

# %% [markdown]
# A table with one row for each bucket and one column for each head turns buckets into what is added to the scores.


# %% solution="bias"
def relative_bias(
    table: Float[Tensor, "num_buckets heads"],
    queries: int,
    keys: int,
    bidirectional: bool,
    max_distance: int = 128,
) -> Float[Tensor, "heads queries keys"]:
    """What is added to the attention's scores: for each head the number of each query's and key's bucket.

    Queries and keys stand at positions 0, 1, 2, … of one text. The result is differentiable in ``table``.
    """
    ### BEGIN SOLUTION
    query = torch.arange(queries, device=table.device)
    key = torch.arange(keys, device=table.device)
    buckets = relative_position_bucket(
        key - query[:, None], bidirectional, table.shape[0], max_distance
    )
    return table[buckets].permute(2, 0, 1)  # (queries, keys, heads) -> (heads, queries, keys)
    ### END SOLUTION


# %% test="relative_bias" points=1
table = torch.tensor([[0.0, 100.0], [1.0, 101.0], [2.0, 102.0], [3.0, 103.0]])
bias = relative_bias(table, 2, 3, bidirectional=False, max_distance=10)
check.close(
    bias,
    [[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [[100.0, 100.0, 100.0], [101.0, 100.0, 100.0]]],
    because="Row i, column j of head h holds the table's number for bucket(j - i): key minus query.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "t5")
rng = inputs("relative_bias")
cases = [
    (torch.randn(10, 3, generator=rng, dtype=torch.float64).to(device).requires_grad_(), *how)
    for how in [
        (5, 7, True, 6),
        (7, 5, True, 6),
        (9, 9, False, 11),
        (1, 4, True, 50),
        (60, 40, True, 33),
    ]
]
biases = each(relative_bias, cases)
mine_sum = right_sum = 0.0
tables = []
for (table, *how), bias in zip(cases, biases, strict=True):
    tables.append(table.detach().clone().requires_grad_())
    expected = theirs.relative_bias(tables[-1], *how)
    check.close(
        bias,
        expected,
        because="The bias is (heads, queries, keys): the table's row bucket(key - query), with as many buckets as the "
        "table has rows.",
    )
    pull = torch.randn(expected.shape, generator=rng, dtype=torch.float64).to(device)
    mine_sum = mine_sum + (bias * pull).sum()
    right_sum = right_sum + (expected * pull).sum()
mine_sum.backward()
right_sum.backward()
for (mine, *_), right in zip(cases, tables, strict=True):
    check.that(mine.grad is not None, "No gradient reaches the table: it is learnt.")
    check.close(mine.grad, right.grad, because="The gradient of the table is off.")
table = torch.randn(32, 2, generator=rng, dtype=torch.float64).to(device)
check.close(
    relative_bias(table, 140, 9, True)[..., 1],
    theirs.relative_bias(table, 140, 9, True)[..., 1],
    because="Unless given, max_distance is 128.",
)
### END HIDDEN TESTS

# %% [markdown] written="t5_why" points=2
# **In your own words.** A colleague changes span corruption so that every span is replaced by the *same* sentinel, and
# leaves out the final one, "to save ids". Another trains the decoder on its own greedy output in place of the right
# tokens, "because that is what it will read in use". For each, say what the model can no longer learn or what the
# training loses, and what is right about the idea. (5 to 8 sentences.)

# %% [markdown]
# ## Experiment: what span corruption makes of a text
#
# First look at it. A word is a token here, and the sentinels are written `<0>`, `<1>`, … Then count: of a text of 512
# tokens, how much must the decoder write? With spans of length 1 every token costs a sentinel too, and the targets are
# twice as long as the noise. With longer spans both sides get shorter. Raffel et al. (2020, §3.3.4) found limited
# differences in quality between mean lengths; they took 3, partly for its shorter targets (§3.7).

# %% experiment=true
import matplotlib.pyplot as plt

from lab import data, figures

verse = data.text("test").split()[3000:3040]
vocabulary = sorted(set(verse))
size = len(vocabulary) + 100
ids = torch.tensor([vocabulary.index(word) for word in verse])


def as_words(tokens: Tensor) -> str:
    """Words, and sentinels as <0>, <1>, …"""
    return " ".join(
        vocabulary[t] if t < len(vocabulary) else f"<{size - 1 - t}>" for t in tokens.tolist()
    )


corrupted, missing = span_corrupt(ids, size, lab.generator("a look"))
print(f"text     {as_words(ids)}\n\ninputs   {as_words(corrupted)}\n\ntargets  {as_words(missing)}")

MEANS = (1, 2, 3, 5, 10)
text = torch.zeros(512, dtype=torch.int64)
pairs = [span_corrupt(text, 1000, lab.generator(0), mean_span_length=mean) for mean in MEANS]
read, written = ([len(side) for side in sides] for sides in zip(*pairs, strict=True))

figures.use_style()
fig, ax = plt.subplots()
ax.plot(MEANS, read, "o-", label="inputs, which the encoder reads")
ax.plot(MEANS, written, "s--", label="targets, which the decoder writes")
ax.axhline(len(text), linestyle=":", color="grey", label="the text")
ax.set(xlabel="mean span length", ylabel="tokens", ylim=(0, 560), xticks=MEANS)
ax.legend(loc="center right")
figures.show(
    fig,
    alt=f"Tokens of inputs and targets for a text of {len(text)}, by mean span length: "
    + ", ".join(f"{i} and {t} at {mean}" for mean, i, t in zip(MEANS, read, written, strict=True))
    + ".",
)

# %% [markdown]
# ## Experiment: one model, four tasks
#
# A small T5 of your parts: one encoder-decoder, one vocabulary of characters, one loss. It learns four tasks at once:
# two that rewrite a word, one that names a class and one that gives a score. Which task it is stands in the text and
# nowhere else. To see what these words do, a second model of the same size gets the same examples without them.
#
# As in T5, all layers of a stack share one table of relative positions, norms stand before the sub-layers and only
# scale, and there are no biases. (T5 also leaves out the division of the scores by $\sqrt{d_k}$; torch's attention has
# it.) It takes one or two minutes; on a GPU a larger preset runs. No word of the test was seen in training.
#
# Before you run it: with no prefix, what can the second model do at best?

# %% experiment=true
from itertools import product

from torch import nn

from lab import training

if device.type == "cuda":
    WIDTH, HEADS, LAYERS, LETTERS, LENGTH, STEPS, BATCH = 128, 8, 3, "abcdefgh", 6, 4000, 256
else:
    WIDTH, HEADS, LAYERS, LETTERS, LENGTH, STEPS, BATCH = 64, 4, 2, "abcdefgh", 5, 700, 64
SEED = 0
PAD, END = 0, 1
CHARACTERS = " .:0123456789abcdefghijklmnopqrstuvwxyz"
TASKS = {
    "reverse": Task("reverse: {word}"),
    "sort": Task("sort: {word}"),
    "has a": Task("has a: {word}", labels=("no", "yes")),
    "vowels": Task("vowels: {word}", step=0.2),
}


def solve(name: str, word: str) -> str | int | float:
    """The right answer."""
    return {
        "reverse": word[::-1],
        "sort": "".join(sorted(word)),
        "has a": int("a" in word),
        "vowels": sum(letter in "aeiou" for letter in word) / len(word),
    }[name]


def examples(names: list[str], words: list[str], prefix: bool) -> list[tuple[str, str]]:
    """What the model reads and must write; without the prefix, the word alone."""
    pairs = [
        make_text_to_text(TASKS[name], {"word": word}, solve(name, word))
        for name, word in zip(names, words, strict=True)
    ]
    return (
        pairs
        if prefix
        else [(word, target) for word, (_, target) in zip(words, pairs, strict=True)]
    )


def tokens(texts: Sequence[str]) -> Tensor:
    """(texts, longest): character ids, an end token, then padding."""
    rows = [torch.tensor([*(2 + CHARACTERS.index(c) for c in text), END]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


def characters(row: list[int]) -> str:
    """What stands before the end token."""
    row = row[: row.index(END)] if END in row else row
    return "".join(CHARACTERS[i - 2] for i in row if i > END)


class Attention(nn.Module):
    """Multi-head attention with a number added to each score."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """``bias`` broadcasts against (batch, heads, queries, keys)."""
        q, k, v = (
            layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer, y in ((self.q, x), (self.k, memory), (self.v, memory))
        )
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.o(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, in the decoder cross-attention, and a feed-forward network, each on a normed copy."""

    def __init__(self, cross: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(3))
        self.attention = Attention()
        self.cross = Attention() if cross else None
        self.feed_forward = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH, bias=False),
            nn.ReLU(),
            nn.Linear(4 * WIDTH, WIDTH, bias=False),
        )

    def forward(self, x: Tensor, bias: Tensor, memory: Tensor | None, hidden: Tensor) -> Tensor:
        """``hidden`` is added to the scores of the memory: -inf at its padding."""
        normed = self.norms[0](x)
        x = x + self.attention(normed, normed, bias)
        if self.cross is not None:
            x = x + self.cross(self.norms[1](x), memory, hidden)
        return x + self.feed_forward(self.norms[2](x))


class SmallT5(nn.Module):
    """Encoder and decoder with your relative positions; one embedding reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2 + len(CHARACTERS), WIDTH)
        self.tables = nn.ParameterList(torch.zeros(32, HEADS) for _ in range(2))
        self.encoder = nn.ModuleList(Block(cross=False) for _ in range(LAYERS))
        self.decoder = nn.ModuleList(Block(cross=True) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(2))

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The memory, and what hides its padding."""
        length = inputs.shape[1]
        hidden = torch.where(inputs == PAD, -math.inf, 0.0)[:, None, None]
        bias = relative_bias(self.tables[0], length, length, bidirectional=True) + hidden
        x = self.embedding(inputs)
        for block in self.encoder:
            x = block(x, bias, None, hidden)
        return self.norms[0](x), hidden

    def decode(self, decoder_inputs: Tensor, memory: Tensor, hidden: Tensor) -> Tensor:
        """The logits after each of the decoder's inputs."""
        length = decoder_inputs.shape[1]
        ahead = torch.full((length, length), -math.inf, device=device).triu(1)
        bias = relative_bias(self.tables[1], length, length, bidirectional=False) + ahead
        x = self.embedding(decoder_inputs)
        for block in self.decoder:
            x = block(x, bias[None], memory, hidden)
        return self.norms[1](x) @ self.embedding.weight.T / math.sqrt(WIDTH)

    def forward(self, inputs: Tensor, decoder_inputs: Tensor) -> Tensor:
        """The logits after each of the decoder's inputs."""
        return self.decode(decoder_inputs, *self.encode(inputs))

    @torch.no_grad()
    def write(self, texts: Sequence[str], longest: int) -> list[str]:
        """Greedy: the likeliest character, one after another, each read again for the next."""
        memory, hidden = self.encode(tokens(texts))
        written = torch.full((len(texts), 1), PAD, device=device)  # T5's start token
        for _ in range(longest):
            following = self.decode(written, memory, hidden)[:, -1:].argmax(dim=-1)
            written = torch.cat([written, following], dim=1)
        return [characters(row) for row in written[:, 1:].tolist()]


words = ["".join(letters) for letters in product(LETTERS, repeat=LENGTH)]
order = torch.randperm(len(words), generator=lab.generator(f"words {SEED}")).tolist()
test_words, train_words = [words[i] for i in order[:200]], [words[i] for i in order[200:]]


def train(prefix: bool) -> SmallT5:
    """A model trained on all tasks at once."""

    def batch(rng: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(train_words), (BATCH,), generator=rng).tolist()
        names = [list(TASKS)[i] for i in torch.randint(len(TASKS), (BATCH,), generator=rng)]
        pairs = examples(names, [train_words[i] for i in chosen], prefix)
        sources, targets = zip(*pairs, strict=True)
        return tokens(sources), tokens(targets)

    torch.manual_seed(SEED)
    small_t5 = SmallT5().to(device)
    training.train(
        small_t5,
        batch,
        lambda model, pair: teacher_forcing_loss(model, *pair),
        STEPS,
        lr=2e-3,
        generator=lab.generator(f"T5 {SEED}"),
        label="with prefix" if prefix else "without prefix",
    )
    return small_t5


def accuracy(model: SmallT5, name: str, prefix: bool) -> float:
    """The share of test words for which the answer, read back, is right."""
    pairs = examples([name] * len(test_words), test_words, prefix)
    written = model.write([source for source, _ in pairs], LENGTH + 2)
    right = [
        read_answer(TASKS[name], text) == read_answer(TASKS[name], target)
        for text, (_, target) in zip(written, pairs, strict=True)
    ]
    return sum(right) / len(right)


models = {prefix: train(prefix) for prefix in (True, False)}
scores = {p: [accuracy(model, name, p) for name in TASKS] for p, model in models.items()}

word = test_words[0]
for name, task in TASKS.items():
    source, target = make_text_to_text(task, {"word": word}, solve(name, word))
    print(f"{source:16} → {models[True].write([source], LENGTH + 2)[0]:7} (right: {target})")
print(f"{word:16} → {models[False].write([word], LENGTH + 2)[0]:7} (the model without prefixes)")

fig, ax = plt.subplots()
places = torch.arange(len(TASKS))
for shift, (prefix, heights) in zip((-0.2, 0.2), scores.items(), strict=True):
    bars = ax.bar(
        places + shift, heights, 0.38, label="with prefix" if prefix else "without prefix"
    )
    ax.bar_label(bars, [f"{height:.2f}" for height in heights], fontsize=9)
ax.set_xticks(places, TASKS)
ax.set(ylabel="test words answered right", ylim=(0, 1.1))
ax.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.18))
figures.show(
    fig,
    alt=f"Share of {len(test_words)} unseen words answered right. "
    + " ".join(
        f"{'With' if prefix else 'Without'} the prefix: "
        + ", ".join(f"{name} {height:.2f}" for name, height in zip(TASKS, heights, strict=True))
        + "."
        for prefix, heights in scores.items()
    ),
)

# %% [markdown]
# The model without prefixes is no worse a model: it was asked a question that has four answers, and it can give one.
# That is all a prefix does here: it says which question it is. It is a name, learnt from labelled examples; `vowels:`
# means nothing to the model before. Models that follow instructions they were never trained on came later.
