# %% [markdown]
# # BERT
#
# A model that writes from left to right sees, at each word, only what stands before it. BERT (Devlin et al. 2019; on
# arXiv on 11 October 2018) reads a whole text at once, both sides of every word in every layer, and so cannot
# be trained to say the next word: it sees it already. You build what it is trained with instead, blanks to fill in and
# pairs of sentences to judge; then the model; then the small heads that turn it to other tasks.
#
# **You build** masking, both losses, sentence pairs, the encoder, BERT's heads for pre-training and for three tasks ·
# **Minutes** 120 · **Points** 20 · **Difficulty** ●●● ·
# **Before this** [The Transformer, block by block](../transformer/block.ipynb)
#
# Run a cell with Shift+Enter. Write your answers where it says `YOUR CODE HERE`, then run the tests below them.
# A test that passes is silent; one that fails says what it expected, what came, and which mistake usually does that.
# More tests, on other inputs, run when your notebook is graded.

# %%
import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

import lab
from lab import check

device = lab.device()
for owner, name in [(torch.nn, "TransformerEncoder"), (torch.nn, "TransformerEncoderLayer")]:
    lab.refuse(owner, name, instead="nn.Linear, nn.LayerNorm, nn.Embedding and the parts given")

IGNORED = (
    -100
)  # the label of a position that no loss counts; torch's cross_entropy has the same default
EPS = 1e-12  # of BERT's layer norms


def set_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """For the tests: loads the weights by name, and says which names or shapes are not as they should be."""
    check.equal(
        {name: tuple(value.shape) for name, value in module.state_dict().items()},
        {name: tuple(value.shape) for name, value in weights.items()},
        because="The module's parameters must have the names and shapes of its docstring, and there must be no others.",
    )
    module.load_state_dict(weights)


def chance_explains(count: int, n: int, p: float) -> bool:
    """For the tests: whether ``count`` of ``n`` independent trials may succeed by chance if each does with ``p``.

    ``False`` means that a right answer gives such a count less than once in 10¹² runs: by Chernoff's bound its
    probability is at most 2·exp(−n·KL(count/n, p)).
    """
    terms = [(count / n, p), (1 - count / n, 1 - p)]
    divergence = sum(q * math.log(q / r) for q, r in terms if q > 0)
    return n * divergence < 30.0


# %% [markdown]
# ## 1 · Blanks to fill in
#
# The *masked language model* (Devlin et al. 2019, §3.1) hides some tokens of a text and asks for them. 15 % of the
# positions are chosen at random; the model must predict what stood there, and nothing else. A chosen token
#
# - becomes `[MASK]` with probability 80 %: "my dog is hairy" → "my dog is `[MASK]`";
# - becomes a random token with 10 %: "my dog is apple";
# - stays as it is with 10 %: "my dog is hairy".
#
# Why not always `[MASK]`? No text that BERT is used on later contains one. Were only `[MASK]` ever asked for, the model
# could leave all other positions without a good representation; now any token it reads may be the wrong one and may be
# asked for. What is random touches only 1.5 % of the text.
#
# The label of a chosen position is the token that stood there, in all three cases. The label of every other position
# is −100, "not asked". Special tokens (`[CLS]`, `[SEP]`, padding) are never chosen: nothing could be learned from
# them.
#
# Two readings of "15 %" are in use. BERT's own code chooses a fixed number in each sequence, 0.15·n rounded;
# Hugging Face's collator tosses a coin for each position. We do as BERT's code does: the number is exact, the places
# are random.


# %% solution="masking"
def mask_tokens(
    tokens: Int[Tensor, "batch length"],
    vocab_size: int,
    mask_id: int,
    special_ids: Sequence[int],
    generator: torch.Generator,
    rate: float = 0.15,
) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """Hides tokens for the masked language model (Devlin et al. 2019, §3.1 and A.1).

    Of the ``n`` tokens of a sequence that are not in ``special_ids``, ``rate·n`` are chosen, rounded to the nearest
    integer (a tie may go either way) but at least one where ``n`` > 0. All sets of that size are equally likely, in
    each sequence for itself. Each chosen token, independently, becomes ``mask_id`` with probability 0.8 and a token
    drawn uniformly from all ``vocab_size`` ids with 0.1 (special ones and the token itself included, as in
    BERT's own code), and stays as it is with 0.1.

    Args:
        tokens: ids from 0 to ``vocab_size - 1``; left unchanged.
        vocab_size: the number of ids.
        mask_id: the id of ``[MASK]``.
        special_ids: ids that are never chosen: padding, ``[CLS]``, ``[SEP]`` …; may be empty.
        generator: a CPU generator. All randomness comes from it, and it advances.
        rate: the share of tokens to choose.

    Returns:
        ``inputs``, the tokens after masking, and ``labels``: the original token at every chosen position and −100 at
        every other one. Both are int64 and on the device of ``tokens``.

    Raises:
        ValueError: a token or ``mask_id`` is not an id (the message says ``vocab_size``), or ``rate`` is not
            above 0 and at most 1 (it says ``rate``).
    """
    ### BEGIN SOLUTION
    if not 0 < rate <= 1:
        raise ValueError(f"rate must be above 0 and at most 1, got {rate}")
    if not 0 <= mask_id < vocab_size or ((tokens < 0) | (tokens >= vocab_size)).any():
        raise ValueError(f"tokens and mask_id must lie between 0 and vocab_size = {vocab_size}")
    may_choose = ~torch.isin(tokens, torch.tensor(special_ids).to(tokens))
    available = may_choose.sum(dim=1, keepdim=True)
    count = (rate * available).round().clamp(min=available.clamp(max=1))
    # Everyone draws a lot, special tokens the last one; who is among the first `count` is chosen.
    lots = torch.rand(tokens.shape, generator=generator).to(tokens.device)
    chosen = lots.masked_fill(~may_choose, math.inf).argsort().argsort() < count
    die = torch.randint(10, tokens.shape, generator=generator).to(tokens.device)
    random_tokens = torch.randint(vocab_size, tokens.shape, generator=generator).to(tokens.device)
    hidden = torch.where(die < 9, torch.where(die < 8, mask_id, random_tokens), tokens)
    return torch.where(chosen, hidden, tokens), torch.where(chosen, tokens, IGNORED)
    ### END SOLUTION


# %% [markdown]
# A sequence of `[CLS]`, twenty words, `[SEP]` and four of padding has 20 tokens that may be chosen: 3 are.

# %% test="masking_counts" points=2
PAD, CLS, SEP, MASK = 0, 1, 2, 3
words = torch.arange(10, 30)
tokens = torch.cat([torch.tensor([CLS]), words, torch.tensor([SEP] + [PAD] * 4)])[None]
before = tokens.clone()
inputs_, labels = mask_tokens(tokens, 40, MASK, [PAD, CLS, SEP, MASK], lab.generator("blanks"))
chosen = labels != IGNORED
check.equal(tokens, before, because="tokens were changed in place: the labels are then lost.")
check.equal(
    int(chosen.sum()),
    3,
    because="0.15 · 20 = 3 positions have a label, whether they became [MASK], a random token or stayed as they were. "
    "Special tokens do not count among the 20.",
)
check.that(
    not bool(chosen[:, [0, 21, 22, 23, 24, 25]].any()),
    "A special token was chosen: [CLS], [SEP] and padding never have a label.",
)
check.equal(
    labels[chosen],
    tokens[chosen],
    because="The label of a chosen position is the token that stood there before masking.",
)
check.equal(
    inputs_[~chosen], tokens[~chosen], because="A position that was not chosen stays as it was."
)
check.raises(
    ValueError,
    mask_tokens,
    tokens,
    20,
    MASK,
    [PAD, CLS, SEP],
    lab.generator("blanks"),
    mentions="vocab_size",
    because="A token of 29 is none of 20 ids: say so, and say vocab_size.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("pretraining", "bert")
rng = inputs("masking_counts")
special, vocab_size, mask_id = [4, 9, 30], 50, 30
ordinary = torch.tensor([id_ for id_ in range(vocab_size) if id_ not in special])
# Sequences with 0, 1, 2 … ordinary tokens among special ones. 0.15·n is never halfway between two integers.
available = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 22, 24, 27, 37, 44, 48]
tokens = torch.tensor(special)[torch.randint(3, (len(available), 48), generator=rng)]
for row, n in zip(tokens, available, strict=True):
    places = torch.randperm(48, generator=rng)[:n]
    row[places] = ordinary[torch.randint(len(ordinary), (n,), generator=rng)]
tokens = tokens.to(device)
may_choose = ~torch.isin(tokens, torch.tensor(special).to(device))
for given in (tokens, tokens.T.contiguous().T):
    before = given.clone()
    masked, labels = mask_tokens(given, vocab_size, mask_id, special, rng)
    check.equal(given, before, because="mask_tokens changed its argument.")
    check.shape(masked, given.shape, because="inputs have the shape of tokens.")
    check.shape(labels, given.shape, because="labels have the shape of tokens.")
    check.that(
        masked.dtype == torch.int64 and labels.dtype == torch.int64,
        "inputs and labels are token ids: int64.",
    )
    check.that(
        masked.device == given.device and labels.device == given.device,
        "inputs and labels must lie on the device of tokens.",
    )
    chosen = labels != IGNORED
    check.that(
        not bool((chosen & ~may_choose).any()),
        "A special token was chosen: ids in special_ids never have a label.",
    )
    check.equal(
        chosen.sum(dim=1),
        [max(round(0.15 * n), min(n, 1)) for n in available],
        because="In each sequence for itself the number of labels is 0.15·n, rounded, and at least 1 where there is "
        "anything to choose; n leaves out the special tokens, and a label does not depend on what became of the token.",
    )
    check.equal(
        labels[chosen],
        given[chosen],
        because="A label is the original token, also where the input now shows [MASK] or a random one.",
    )
    check.that(
        not bool(((masked < 0) | (masked >= vocab_size)).any()),
        "An input is no id of the vocabulary.",
    )
    check.equal(
        masked[~chosen], given[~chosen], because="An input changed at a position without a label."
    )
# The id of [MASK] may be 0.
masked, labels = mask_tokens(tokens + 1, vocab_size + 1, 0, [], rng, 1.0)
check.that(
    bool((masked == 0).any()) and bool((labels == tokens + 1).all()), "The id of [MASK] may be 0."
)
# Another rate, all of it, and nothing special.
for rate, expected in [(1.0, 48), (0.4, 19), (0.01, 1)]:
    _, labels = mask_tokens(tokens, vocab_size, mask_id, [], rng, rate)
    check.equal(
        (labels != IGNORED).sum(dim=1),
        [expected] * len(available),
        because="rate says which share is chosen, up to all of it, and special_ids may be empty.",
    )
# All randomness comes from the generator, which advances.
state = rng.get_state()
draws = [mask_tokens(tokens, vocab_size, mask_id, special, rng) for _ in range(2)]
rng.set_state(state)
again = mask_tokens(tokens, vocab_size, mask_id, special, rng)
check.equal(
    again,
    draws[0],
    because="The same generator state must give the same masking: pass generator to every draw.",
)
check.that(
    draws[0][1].tolist() != draws[1][1].tolist(),
    "Two calls with one generator chose the same positions: it must advance, not be seeded anew.",
)
for bad, word in [
    ((torch.full((1, 3), vocab_size), vocab_size, mask_id, special, rng), "vocab_size"),
    ((torch.full((1, 3), -1), vocab_size, mask_id, special, rng), "vocab_size"),
    ((tokens, vocab_size, vocab_size, special, rng), "vocab_size"),
    ((tokens, vocab_size, -1, special, rng), "vocab_size"),
    ((tokens, vocab_size, mask_id, special, rng, 0.0), "rate"),
    ((tokens, vocab_size, mask_id, special, rng, 1.1), "rate"),
]:
    check.raises(
        ValueError,
        mask_tokens,
        *bad,
        mentions=word,
        because="Ids run from 0 to vocab_size - 1, and the rate is above 0 and at most 1.",
    )
### END HIDDEN TESTS

# %% [markdown]
# What is random is tested by counting: 4,000 blanks. A right answer fails such a test less than once in $10^{12}$ runs.

# %% test="masking_distribution" points=2
tokens = torch.full((20, 200), 7)
inputs_, labels = mask_tokens(tokens, 1000, 3, [0], lab.generator("shares"), rate=1.0)
check.that(
    chance_explains(int((inputs_ == 3).sum()), 4000, 0.8 + 0.1 / 1000),
    "80 % of the chosen tokens become [MASK].",
)
check.that(
    chance_explains(int((inputs_ == 7).sum()), 4000, 0.1 + 0.1 / 1000),
    "10 % of the chosen tokens stay as they are. A second draw on what the first has left is on 20 %: half of that.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("pretraining", "bert")
rng = inputs("masking_distribution")
for vocab_size, mask_id in [(12, 10), (4, 1)]:
    word = 2
    tokens = torch.full((120, 400), word, device=device)
    masked, labels = mask_tokens(tokens, vocab_size, mask_id, [3], rng, 0.5)
    chosen = labels != IGNORED
    n = 120 * 200
    check.equal(int(chosen.sum()), n, because="Half of the tokens are chosen at a rate of 0.5.")
    found = torch.bincount(masked[chosen].flatten().cpu(), minlength=vocab_size).tolist()
    check.that(
        chance_explains(found[mask_id], n, 0.8 + 0.1 / vocab_size),
        "80 % of the chosen tokens become [MASK], and one in vocab_size of the random ones.",
    )
    check.that(
        chance_explains(found[word], n, 0.1 + 0.1 / vocab_size),
        "10 % of the chosen tokens stay as they are, and one in vocab_size of the random ones happens to be the same.",
    )
    for id_ in range(vocab_size):
        if id_ not in (mask_id, word):
            check.that(
                chance_explains(found[id_], n, 0.1 / vocab_size),
                "A random token is drawn uniformly from all ids, 0 to vocab_size - 1, special ones included.",
            )
    random = masked[chosen & (masked != mask_id) & (masked != word)].cpu()
    check.that(
        chance_explains(
            int((random[1:] == random[:-1]).sum()), len(random) - 1, 1 / (vocab_size - 2)
        ),
        "Neighbouring random tokens are the same too often or too seldom: each is a draw of its own.",
    )
    for in_row in ((masked == mask_id) & chosen).sum(dim=1).tolist():
        check.that(
            chance_explains(in_row, 200, 0.8 + 0.1 / vocab_size),
            "The 80/10/10 is decided for each chosen token for itself, not for a sequence as a whole.",
        )
# Which positions are chosen: three of eighteen, equally often each, and neighbours together as often as chance says.
row = torch.tensor([1, *range(5, 23), 1], device=device)
masked, labels = mask_tokens(row.repeat(3000, 1), 40, 3, [1], rng)
chosen = (labels != IGNORED).cpu()
for place in range(1, 19):
    check.that(
        chance_explains(int(chosen[:, place].sum()), 3000, 3 / 18),
        "Some positions are chosen more often than others: every set of positions should be equally likely, in "
        "each sequence for itself.",
    )
check.that(
    chance_explains(int((chosen[:, 4] & chosen[:, 5]).sum()), 3000, 3 / 18 * 2 / 17),
    "Neighbours are chosen together too often or too seldom: positions are chosen one by one.",
)
for state in (chosen[1:, 4] & chosen[:-1, 4], chosen[1:, 4] & chosen[:-1, 9]):
    # Every other pair of sequences, so that the pairs share none.
    check.that(
        chance_explains(int(state[::2].sum()), 1500, (3 / 18) ** 2),
        "What is chosen in one sequence depends on what is chosen in the one before.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · What is minimised
#
# BERT is trained on two questions at once, and the losses are added (A.2). With $M$ the set of chosen positions of the
# whole batch, $\tilde x$ the masked text, and $C_b$ the vector that stands for the $b$-th of $B$ pairs,
#
# $$\mathcal{L} = -\frac{1}{|M|} \sum_{i \in M} \log p(x_i \mid \tilde x)
# \;-\; \frac1B \sum_{b=1}^{B} \log p(y_b \mid C_b).$$
#
# The first mean is over the *chosen* positions. Divide by all positions and it is about seven times smaller; count
# the padding and the model is praised for predicting padding after padding. And $|M|$ is that of the batch: each blank
# counts the same, not each sequence.
#
# The second term has two classes, 0 and 1, and both count. (A much-copied BERT in PyTorch used one loss for both
# terms, told to ignore the label 0, its padding. That drops half of the sentence pairs.)
#
# There is no shift: the label of a position stands at that position. Shifts belong to models that predict the next
# token.


# %% solution="losses"
def mlm_loss(logits: Float[Tensor, "... vocab"], labels: Int[Tensor, "..."]) -> Float[Tensor, ""]:
    """The masked language model's loss: mean negative log-likelihood, in nats, of the labels that are not −100.

    The mean is over all such positions of the batch together. Where there is none the loss is 0, and so is its
    gradient.

    Args:
        logits: scores of every token at every position, any leading dimensions.
        labels: the original token at the chosen positions, −100 at all others.

    Raises:
        ValueError: ``labels`` is not of the shape of ``logits`` without its last dimension, or holds something
            that is neither −100 nor an id from 0 to vocab − 1 (the message says ``labels``).
    """
    ### BEGIN SOLUTION
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}")
    chosen = labels != IGNORED
    if (chosen & ((labels < 0) | (labels >= logits.shape[-1]))).any():
        raise ValueError(f"labels must be {IGNORED} or lie between 0 and {logits.shape[-1] - 1}")
    total = F.cross_entropy(logits[chosen], labels[chosen], reduction="sum")
    return total / chosen.sum().clamp(min=1)
    ### END SOLUTION


def pretraining_loss(
    mlm_logits: Float[Tensor, "batch length vocab"],
    nsp_logits: Float[Tensor, "batch 2"],
    labels: Int[Tensor, "batch length"],
    nsp_labels: Int[Tensor, "batch"],
) -> Float[Tensor, ""]:
    """``mlm_loss`` plus the mean negative log-likelihood of next-sentence prediction (Devlin et al. 2019, A.2).

    Args:
        mlm_logits, labels: as for ``mlm_loss``.
        nsp_logits: scores of the two classes for each pair.
        nsp_labels: 0 where the second sentence follows the first (IsNext), 1 where it does not (NotNext).

    Raises:
        ValueError: as ``mlm_loss``; or ``nsp_labels`` is not of shape ``(batch,)``, or holds anything but 0 and
            1 (the message says ``nsp_labels``).
    """
    ### BEGIN SOLUTION
    if nsp_labels.shape != nsp_logits.shape[:1] or ((nsp_labels < 0) | (nsp_labels > 1)).any():
        raise ValueError(f"nsp_labels must be {len(nsp_logits)} zeros and ones, got {nsp_labels}")
    return mlm_loss(mlm_logits, labels) + F.cross_entropy(nsp_logits, nsp_labels)
    ### END SOLUTION


# %% [markdown]
# By hand: logits that are logarithms of probabilities are their own log-softmax. Two positions are asked, and their
# right tokens have probabilities 1/2 and 1/4: the loss is $(\ln 2 + \ln 4)/2 = 1.5 \ln 2$.

# %% test="mlm_loss" points=2
p = torch.tensor([[[0.5, 0.25, 0.25], [0.9, 0.05, 0.05], [0.25, 0.5, 0.25], [0.98, 0.01, 0.01]]])
labels = torch.tensor([[0, IGNORED, 2, IGNORED]])
check.close(
    mlm_loss(p.log(), labels),
    1.5 * math.log(2),
    because="The mean is over the two positions with a label, each judged by the logits of the same position.",
)
check.close(
    mlm_loss(p.log(), torch.full((1, 4), IGNORED)),
    0.0,
    because="Without any label the mean is 0/0; such a batch has loss 0.",
)
check.raises(
    ValueError,
    mlm_loss,
    p.log(),
    torch.tensor([[0, IGNORED, 3, IGNORED]]),
    mentions="labels",
    because="A label of 3 is none of three tokens: say so, and say labels.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "bert")
rng = inputs("mlm_loss")
for shape in [(3, 5), (7,), (2, 3, 4)]:
    logits = (3.0 * torch.randn(*shape, 6, generator=rng, dtype=torch.float64)).to(device)
    labels = torch.randint(6, shape, generator=rng).to(device)
    asked = (torch.rand(shape, generator=rng) < 0.6).to(device)
    asked.view(-1)[0], asked.view(-1)[-1] = True, False
    labels.view(-1)[0] = 0
    labels = labels.masked_fill(~asked, IGNORED)
    own, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    # What was not asked cannot matter.
    elsewhere = torch.where(asked[..., None], logits, 50.0 - 9.0 * logits)
    # The same blanks with more padding after them.
    longer = torch.cat([logits, torch.zeros_like(logits)], dim=-2)
    longer_labels = torch.cat([labels, torch.full_like(labels, IGNORED)], dim=-1)
    loss, of_elsewhere, of_longer = each(
        mlm_loss, [(own, labels), (elsewhere, labels), (longer, longer_labels)]
    )
    expected = theirs.mlm_loss(other, labels)
    check.close(
        loss,
        expected,
        because="The loss is the mean of −log p(label) over all positions of the batch whose label is not −100. "
        "Token 0 is a token like any other, and nothing is shifted.",
    )
    (2.0 * loss).backward()
    (2.0 * expected).backward()
    check.that(own.grad is not None, "No gradient reaches the logits.")
    check.close(own.grad, other.grad, because="The gradient of the logits is off.")
    check.close(
        of_elsewhere,
        expected,
        because="Logits of a position without a label changed the loss.",
    )
    check.close(
        of_longer,
        expected,
        because="More padding changed the loss: divide by the number of labels, not of positions.",
    )
# A single blank.
logits = torch.randn(2, 3, 4, generator=rng, dtype=torch.float64).to(device)
labels = torch.full((2, 3), IGNORED, device=device)
labels[1, 0] = 3
check.close(
    mlm_loss(logits, labels),
    theirs.mlm_loss(logits, labels),
    because="A single label is judged alone, whatever the number of positions.",
)
# Large logits, of a model that is sure of itself.
logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, 300.0, 900.0]], dtype=torch.float64, device=device)
labels = torch.tensor([2, 1], device=device)
check.close(
    mlm_loss(logits, labels),
    theirs.mlm_loss(logits, labels),
    because="Large logits must not overflow: use log_softmax or cross_entropy, not the log of a softmax.",
)
# No label at all.
logits = torch.randn(2, 3, 4, generator=rng, dtype=torch.float64).to(device).requires_grad_()
loss = mlm_loss(logits, torch.full((2, 3), IGNORED, device=device))
check.close(loss, torch.tensor(0.0, dtype=torch.float64), because="No label: the loss is 0.")
check.that(loss.requires_grad, "Without labels the loss is still a function of the logits.")
loss.backward()
check.that(logits.grad is not None, "Without labels the loss is still a function of the logits.")
check.close(logits.grad, torch.zeros(2, 3, 4), because="No label: the gradient is 0, not NaN.")
for shape, label in [((2, 4), 1), ((3,), 1), ((2, 3), -1), ((2, 3), 4)]:
    check.raises(
        ValueError,
        mlm_loss,
        logits.detach(),
        torch.full(shape, label, device=device),
        mentions="labels",
        because="Labels have the shape of logits without its last dimension, and are −100 or an id.",
    )
### END HIDDEN TESTS

# %% test="both_losses" points=1
p = torch.tensor([[[0.5, 0.25, 0.25], [0.9, 0.05, 0.05], [0.25, 0.5, 0.25], [0.98, 0.01, 0.01]]])
labels = torch.tensor([[0, IGNORED, 2, IGNORED]])
pairs = torch.tensor([[0.25, 0.75]])
check.close(
    pretraining_loss(p.log(), pairs.log(), labels, torch.tensor([0])),
    1.5 * math.log(2) + math.log(4),
    because="The two losses are added. Class 0 of the pairs (IsNext) counts as class 1 does: 0 is no padding here.",
)
check.close(
    pretraining_loss(p.log(), pairs.log(), labels, torch.tensor([1])),
    1.5 * math.log(2) + math.log(4 / 3),
    because="The second term is −log of the probability of the pair's own class.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("pretraining", "bert")
rng = inputs("both_losses")
mlm_logits = torch.randn(5, 4, 6, generator=rng, dtype=torch.float64).to(device)
nsp_logits = (2.0 * torch.randn(5, 2, generator=rng, dtype=torch.float64)).to(device)
labels = torch.randint(6, (5, 4), generator=rng).to(device)
labels[(torch.rand(5, 4, generator=rng) < 0.5).to(device)] = IGNORED
labels[0, 0] = 0
for nsp_labels in ([0, 1, 0, 0, 1], [0] * 5, [1] * 5):
    nsp_labels = torch.tensor(nsp_labels, device=device)
    own, other = ([x.clone().requires_grad_() for x in (mlm_logits, nsp_logits)] for _ in range(2))
    loss, expected = (
        pretraining_loss(*own, labels, nsp_labels),
        theirs.pretraining_loss(*other, labels, nsp_labels),
    )
    check.close(
        loss,
        expected,
        because="The loss is mlm_loss plus the mean cross-entropy of all pairs, of both classes.",
    )
    loss.backward()
    expected.backward()
    for name, mine, right in zip(("mlm_logits", "nsp_logits"), own, other, strict=True):
        check.that(mine.grad is not None, f"No gradient reaches {name}.")
        check.close(mine.grad, right.grad, because=f"The gradient of {name} is off.")
check.close(
    pretraining_loss(
        mlm_logits, nsp_logits, torch.full((5, 4), IGNORED, device=device), nsp_labels
    ),
    theirs.pretraining_loss(
        mlm_logits, nsp_logits, torch.full((5, 4), IGNORED, device=device), nsp_labels
    ),
    because="Without a blank the loss of the pairs is left.",
)
for bad in ([0, 1, 2, 0, 1], [0, 1, IGNORED, 0, 1], [0, 1, -1, 0, 1], [0, 1, 0, 1]):
    check.raises(
        ValueError,
        pretraining_loss,
        mlm_logits,
        nsp_logits,
        labels,
        torch.tensor(bad, device=device),
        mentions="nsp_labels",
        because="nsp_labels hold one 0 or 1 for each pair.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · Pairs of sentences
#
# Some tasks are about two texts: does this follow from that, does this answer that. So BERT is trained on pairs
# (§3.1, task 2). Half of the time the second sentence is the one that follows the first, class 0 (IsNext); half of the
# time it comes from another document, class 1 (NotNext). A "sentence" may be any span of text. BERT reports 97 to
# 98 % accuracy on this task.
#
# Does it help? BERT's ablation (§5.1) says so for question answering and inference. RoBERTa (Liu et al. 2019) left it
# out and found results as good or slightly better; ALBERT (Lan et al. 2020) asks instead which of two neighbouring
# spans comes first. A different document is often told by its topic alone.
#
# The pair is then packed into one sequence, and a second row, the *segments*, says which sentence each token is of:
#
# ```
# tokens     [CLS]  my  dog  is  hairy  [SEP]  he  likes  play  [SEP]
# segments     0     0   0    0    0      0     1    1      1     1
# ```


# %% solution="pairs"
def make_nsp_pairs(
    documents: Sequence[Sequence[list[int]]], generator: torch.Generator
) -> list[tuple[list[int], list[int], int]]:
    """Pairs for next-sentence prediction (Devlin et al. 2019, §3.1).

    Every sentence that has a next one in its document gives one pair, in the order of the documents. With probability
    1/2, independently, its second sentence is the next one and the label 0. Else the label is 1, and the second
    sentence is drawn as in BERT's own code: first one of the *other* documents, all equally likely, then one of its
    sentences, all equally likely. Documents without a sentence are left out.

    Args:
        documents: for each document its sentences, each a list of token ids; left unchanged.
        generator: a CPU generator. All randomness comes from it, and it advances.

    Returns:
        ``(first, second, label)`` for each pair.

    Raises:
        ValueError: fewer than two documents have a sentence (the message says ``documents``).
    """
    ### BEGIN SOLUTION
    documents = [document for document in documents if document]
    if len(documents) < 2:
        raise ValueError("a random second sentence needs two documents that are not empty")

    def pick(items: list) -> object:
        """One of the items, all equally likely."""
        return list(items).pop(torch.randint(len(items), (), generator=generator))

    pairs = []
    for number, document in enumerate(documents):
        others = documents[:number] + documents[number + 1 :]
        for first, following in itertools.pairwise(document):
            if pick([True, False]):
                pairs.append((first, following, 0))
            else:
                pairs.append((first, pick(pick(others)), 1))
    return pairs
    ### END SOLUTION


def pack_pair(
    first: list[int], second: list[int], cls_id: int, sep_id: int, max_length: int
) -> tuple[list[int], list[int]]:
    """``[CLS] first [SEP] second [SEP]`` and the segment of each token (Devlin et al. 2019, Figure 2).

    Segment 0 reaches to the first ``[SEP]``, that one included; the rest is segment 1. A pair that is too long loses
    tokens from the end of its longer sentence, one after another (of the second where both are equally long), until all
    fits.

    Args:
        first, second: token ids, at least one each; left unchanged.
        cls_id, sep_id: the ids of ``[CLS]`` and ``[SEP]``.
        max_length: the most tokens that are returned.

    Returns:
        tokens and segments, two lists of one length.

    Raises:
        ValueError: ``max_length`` leaves no room for one token of each sentence (the message says ``max_length``).
    """
    ### BEGIN SOLUTION
    if max_length < 5:
        raise ValueError(f"max_length must be at least 5, got {max_length}")
    first, second = list(first), list(second)
    while len(first) + len(second) + 3 > max_length:
        (first if len(first) > len(second) else second).pop()
    head, tail = [cls_id, *first, sep_id], [*second, sep_id]
    return head + tail, [0] * len(head) + [1] * len(tail)
    ### END SOLUTION


# %% test="nsp_pairs" points=2
documents = [[[10], [11], [12]], [[20]], [[30], [31]]]
pairs = make_nsp_pairs(documents, lab.generator("pairs"))
check.equal(
    [first for first, _, _ in pairs],
    [[10], [11], [30]],
    because="Each sentence that has a next one in its own document is the first of one pair; the last of a document "
    "has none.",
)
for first, second, label in pairs:
    check.that(
        second[0] == first[0] + 1 if label == 0 else second[0] // 10 != first[0] // 10,
        "Label 0 goes with the next sentence of the same document, label 1 with a sentence of another document.",
    )
check.raises(
    ValueError,
    make_nsp_pairs,
    [[[10], [11]], []],
    lab.generator("pairs"),
    mentions="documents",
    because="With one document there is no other to draw from: say so, and say documents.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("pretraining", "bert")
rng = inputs("nsp_pairs")
# A token is 10,000 times its document and the number of its sentence.
sizes = {1: 3, 2: 0, 3: 5, 4: 1801, 5: 1, 6: 2}
documents = [[[10_000 * d + s, 7] for s in range(size)] for d, size in sizes.items()]
kept = [[list(sentence) for sentence in document] for document in documents]
pairs = make_nsp_pairs(documents, rng)
check.equal(documents, kept, because="make_nsp_pairs changed the documents.")
check.equal(
    [first for first, _, _ in pairs],
    [[10_000 * d + s, 7] for d, size in sizes.items() for s in range(size - 1)],
    because="One pair for each sentence that has a next one in its own document, in order; none across documents.",
)
random = []  # (document, sentence) of what was drawn for the long document
for first, second, label in pairs:
    check.that(label in (0, 1), "A label is 0 or 1.")
    same = second[0] // 10_000 == first[0] // 10_000
    check.that(second[1:] == [7], "A sentence of a pair is not whole.")
    check.that(
        label == 1 or second[0] == first[0] + 1,
        "A pair with label 0 (IsNext) does not hold the next sentence.",
    )
    check.that(
        label == 0 or not same,
        "A pair with label 1 (NotNext) holds a sentence of the same document; by chance it may even be the next.",
    )
    if label == 1 and first[0] // 10_000 == 4:
        random.append(divmod(second[0], 10_000))
labels = [label for _, _, label in pairs]
check.that(chance_explains(sum(labels), len(labels), 0.5), "Half of the pairs are random: label 1.")
check.that(
    chance_explains(
        sum(one != other for one, other in itertools.pairwise(labels)),
        len(labels) - 1,
        0.5,
    ),
    "Labels follow a pattern: each pair is decided by a draw of its own.",
)
for d in (1, 3, 5, 6):
    check.that(
        chance_explains(sum(document == d for document, _ in random), len(random), 1 / 4),
        "First one of the other documents is drawn, all equally likely, whatever their sizes; then a sentence.",
    )
    drawn = [sentence for document, sentence in random if document == d]
    for s in range(sizes[d]):
        if sizes[d] > 1 and drawn:
            check.that(
                chance_explains(drawn.count(s), len(drawn), 1 / sizes[d]),
                "All sentences of the document that was drawn are equally likely, its first and last ones too.",
            )
few = [[[10 * d + s] for s in range(8)] for d in range(5)]
state = rng.get_state()
pairs = make_nsp_pairs(few, rng)
check.that(
    make_nsp_pairs(few, rng) != pairs,
    "Two calls with one generator gave the same pairs: it must advance.",
)
rng.set_state(state)
check.equal(
    make_nsp_pairs(few, rng),
    pairs,
    because="The same generator state must give the same pairs: pass generator to every draw.",
)
for bad in ([], [[[1], [2]]], [[], []], [[], [[1], [2]]]):
    check.raises(
        ValueError,
        make_nsp_pairs,
        bad,
        rng,
        mentions="documents",
        because="Fewer than two documents with a sentence are bad input.",
    )
check.equal(
    make_nsp_pairs([[[1]], [[2]]], rng),
    [],
    because="Where no sentence has a next one there are no pairs.",
)
### END HIDDEN TESTS

# %% test="packed_pairs" points=1
check.equal(
    pack_pair([10, 11], [20], cls_id=1, sep_id=2, max_length=8),
    ([1, 10, 11, 2, 20, 2], [0, 0, 0, 0, 1, 1]),
    because="[CLS] first [SEP] is segment 0, second [SEP] is segment 1.",
)
check.equal(
    pack_pair([10, 11, 12, 13], [20, 21], cls_id=1, sep_id=2, max_length=7),
    ([1, 10, 11, 2, 20, 21, 2], [0, 0, 0, 0, 1, 1, 1]),
    because="Too long by two: the longer sentence loses its last two tokens, and the special tokens stay.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("pretraining", "bert")
rng = inputs("packed_pairs")
cases = []
for sizes in [(1, 1), (3, 3), (7, 2), (2, 7), (5, 4), (9, 9), (1, 12), (12, 1)]:
    for max_length in (5, 6, 8, 9, 13, 40):
        first, second = (torch.randint(50, (n,), generator=rng).tolist() for n in sizes)
        cls_id, sep_id = torch.randint(60, 90, (2,), generator=rng).tolist()
        cases.append((first, second, cls_id, sep_id, max_length))
kept = [(list(first), list(second)) for first, second, *_ in cases]
for case, (tokens, segments) in zip(cases, each(pack_pair, cases), strict=True):
    right_tokens, right_segments = theirs.pack_pair(*case)
    check.equal(
        list(tokens),
        right_tokens,
        because="[CLS] first [SEP] second [SEP], cut to max_length: as long as it is too long, the longer sentence "
        "loses its last token, the second one where both are equally long.",
    )
    check.equal(
        list(segments),
        right_segments,
        because="[CLS], the first sentence and its [SEP] are segment 0; the second and its [SEP] are segment 1.",
    )
check.equal(
    [(first, second) for first, second, *_ in cases],
    kept,
    because="pack_pair changed the sentences it was given: cut copies.",
)
for max_length in (4, 0, -3):
    check.raises(
        ValueError,
        pack_pair,
        [5, 6, 7],
        [8, 9],
        1,
        2,
        max_length,
        mentions="max_length",
        because="Three special tokens and one token of each sentence need five places.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · The encoder
#
# BERT is the encoder of 2017 with four differences.
#
# - Positions are learned, one vector for each of `max_length` positions, in place of sines and cosines.
# - A third vector tells the segments apart. The input of the first block is the layer norm of the sum
#   $E_{\text{token}} + E_{\text{position}} + E_{\text{segment}}$ (Figure 2); nothing is multiplied by $\sqrt{d}$.
# - The feed-forward network bends with GELU, $x\,\Phi(x)$ (Hendrycks & Gimpel 2016), in place of ReLU. We take the
#   exact one, as Hugging Face does, not its approximation by tanh.
# - All linear layers have biases, also those of the attention.
#
# The blocks are post-LN, $x \leftarrow \mathrm{LN}(x + F(x))$, and all positions see all others: that is the point.
# Only padding is hidden, in every block. Forget that, as published code has done, and what BERT says of a sentence
# changes with the padding after it.
#
# At the end a *pooler*, a linear layer and tanh on the vector at `[CLS]`, makes one vector $C$ for the whole input.
#
# The paper also drops a tenth of the activations at random while it trains. We leave dropout out, so that the same
# input always gives the same output.
#
# The self-attention is given, and so is the start of the weights. With $\mathcal{N}(0, 0.02^2)$ all logits are near 0
# at first, so that the first loss is near $\ln(\text{vocab size}) + \ln 2$, a guess.


# %%
class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, with biases (torch computes it).

    Raises:
        ValueError: ``num_heads`` does not divide ``d_model``, or is not positive.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(f"num_heads = {num_heads} does not divide d_model = {d_model}")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        real: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length d_model"]:
        """Every position attends to all that are real (``True``); to all where ``real`` is ``None``."""
        # (batch, length, d_model) -> (batch, heads, length, d_k)
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = (
            None if real is None else real[:, None, None]
        )  # the same keys for every head and query
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output_proj(heads.transpose(1, 2).flatten(start_dim=2))


def start_small(module: nn.Module) -> None:
    """BERT's start, for ``model.apply(start_small)``: weights with standard deviation 0.02, biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


# %% solution="encoder"
class EncoderBlock(nn.Module):
    """Self-attention and a feed-forward network with GELU, post-LN (Devlin et al. 2019, §3).

    Attributes:
        attention: ``SelfAttention(d_model, num_heads)``.
        linear1, linear2: ``nn.Linear``, from ``d_model`` to ``d_ff`` and back.
        norm1, norm2: ``nn.LayerNorm(d_model, eps=EPS)``, of the sum after the attention and of that after the
            feed-forward network.
    """

    def __init__(self, d_model: int, num_heads: int, d_ff: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.attention = SelfAttention(d_model, num_heads)
        self.linear1 = nn.Linear(d_model, d_ff)
        self.linear2 = nn.Linear(d_ff, d_model)
        self.norm1 = nn.LayerNorm(d_model, eps=EPS)
        self.norm2 = nn.LayerNorm(d_model, eps=EPS)
        ### END SOLUTION

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        real: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length d_model"]:
        """One block; ``real`` is ``True`` at what may be attended to, ``None`` means everything."""
        ### BEGIN SOLUTION
        x = self.norm1(x + self.attention(x, real))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))
        ### END SOLUTION


class Bert(nn.Module):
    """BERT's encoder with its pooler (Devlin et al. 2019, §3).

    Attributes:
        token_embedding, position_embedding, segment_embedding: ``nn.Embedding`` of ``vocab_size``,
            ``max_length`` and 2 vectors of width ``d_model``.
        embedding_norm: ``nn.LayerNorm(d_model, eps=EPS)``, of their sum.
        blocks: ``nn.ModuleList`` of ``num_layers`` times ``EncoderBlock(d_model, num_heads, d_ff)``.
        pooler: ``nn.Linear(d_model, d_model)``.

    All weights start as ``start_small`` sets them.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        num_heads: int,
        d_ff: int,
        num_layers: int,
        max_length: int,
    ) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(max_length, d_model)
        self.segment_embedding = nn.Embedding(2, d_model)
        self.embedding_norm = nn.LayerNorm(d_model, eps=EPS)
        self.blocks = nn.ModuleList(
            EncoderBlock(d_model, num_heads, d_ff) for _ in range(num_layers)
        )
        self.pooler = nn.Linear(d_model, d_model)
        self.apply(start_small)
        ### END SOLUTION

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None = None,
        real: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length d_model"], Float[Tensor, "batch d_model"]]:
        """Reads a batch of sequences.

        Args:
            tokens: ids; the first of each sequence is ``[CLS]``. Position ``i`` of a sequence is position ``i``,
                counted from 0, whatever is padding.
            segments: 0 or 1 for each token; all 0 where ``None``.
            real: ``True`` for tokens, ``False`` for padding, which no position attends to in any block; all real
                where ``None``.

        Returns:
            The vectors of all positions after the last block, and for each sequence the pooled vector
            ``tanh(pooler(vector of the first position))``.

        Raises:
            ValueError: the sequences are longer than ``max_length`` (the message says ``max_length``), or
                ``segments`` or ``real`` is not of the shape of ``tokens`` (it says ``segments`` or ``real``).
        """
        ### BEGIN SOLUTION
        length, max_length = tokens.shape[1], self.position_embedding.weight.shape[0]
        if length > max_length:
            raise ValueError(f"{length} tokens are more than max_length = {max_length}")
        if segments is None:
            segments = torch.zeros_like(tokens)
        for name, value in (("segments", segments), ("real", real)):
            if value is not None and value.shape != tokens.shape:
                raise ValueError(f"{name} must be {tuple(tokens.shape)}, got {tuple(value.shape)}")
        x = self.embedding_norm(
            self.token_embedding(tokens)
            + self.position_embedding.weight[:length]
            + self.segment_embedding(segments)
        )
        for block in self.blocks:
            x = block(x, real)
        return x, torch.tanh(self.pooler(x[:, 0]))
        ### END SOLUTION


# %% [markdown]
# By hand. A block whose sub-layers are silent leaves $\mathrm{LN}(\mathrm{LN}(x))$, which turns $(1, 3)$ into
# $(-1, 1)$. A BERT without blocks is the layer norm of three vectors' sum, and a pooler.

# %% test="encoder_by_hand" points=1
block = EncoderBlock(d_model=2, num_heads=1, d_ff=3)
silent = {name: torch.zeros_like(value) for name, value in block.state_dict().items()}
silent |= {"norm1.weight": torch.ones(2), "norm2.weight": torch.ones(2)}
set_weights(block, silent)
check.close(
    block(torch.tensor([[[1.0, 3.0], [30.0, 10.0]]])),
    [[[-1.0, 1.0], [1.0, -1.0]]],
    because="Post-LN: with silent sub-layers the block leaves LN(LN(x)).",
)
# With norm1 silent too, linear1 gives -1 in each of three features; GELU(-1) is negative, ReLU(-1) would be 0.
set_weights(
    block,
    silent
    | {
        "norm1.weight": torch.zeros(2),
        "linear1.bias": torch.full((3,), -1.0),
        "linear2.weight": torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]),
    },
)
check.close(
    block(torch.tensor([[[1.0, 3.0]]])),
    [[[-1.0, 1.0]]],
    because="linear2 gets GELU(-1) = -0.159 three times: (-0.476, 0) is the sum, and its layer norm (-1, 1).",
)
bert = Bert(vocab_size=4, d_model=2, num_heads=1, d_ff=3, num_layers=0, max_length=3)
set_weights(
    bert,
    {
        "token_embedding.weight": torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [9.0, 0.0]]),
        "position_embedding.weight": torch.tensor([[0.0, 2.0], [0.0, 4.0], [0.0, 0.0]]),
        "segment_embedding.weight": torch.tensor([[0.0, 0.0], [8.0, 0.0]]),
        "embedding_norm.weight": torch.ones(2),
        "embedding_norm.bias": torch.zeros(2),
        "pooler.weight": torch.tensor([[1.0, 0.0], [0.0, 0.5]]),
        "pooler.bias": torch.tensor([0.0, 1.0]),
    },
)
hidden, pooled = bert(torch.tensor([[1, 2]]), torch.tensor([[0, 1]]))
check.close(
    hidden,
    [[[-1.0, 1.0], [1.0, -1.0]]],
    because="The sums are (1, 2) and (2 + 8, 4): token, position (counted from 0) and segment. Then the layer norm.",
)
check.close(
    pooled,
    [[math.tanh(-1.0), math.tanh(1.5)]],
    because="The pooler reads the first position: tanh of its linear layer.",
)
check.raises(
    ValueError,
    bert,
    torch.tensor([[1, 2, 3, 3]]),
    mentions="max_length",
    because="There is no fourth position: say so, and say max_length.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, gradients, inputs, reference

theirs = reference("pretraining", "bert")
rng = inputs("encoder_by_hand")
mine = EncoderBlock(6, 2, 9).to(device, torch.float64)
right = theirs.EncoderBlock(6, 2, 9).to(device, torch.float64)
weights = {
    name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
set_weights(mine, weights)
right.load_state_dict(weights)
real = torch.tensor(
    [[True] * 5, [True, True, True, False, False], [False, True, False, True, True]]
)
x = (1.0 + 2.0 * torch.randn(3, 5, 6, generator=rng, dtype=torch.float64)).to(device)
before = x.clone()
cases = [(x.clone().requires_grad_(), mask) for mask in (None, real.to(device))]
mine_sum = right_sum = 0.0
right_inputs = []
for (_, mask), output in zip(cases, each(mine, cases), strict=True):
    right_inputs.append(x.clone().requires_grad_())
    expected = right(right_inputs[-1], mask)
    check.close(
        output,
        expected,
        because="Post-LN with GELU: x ← norm1(x + attention(x, real)), x ← norm2(x + linear2(gelu(linear1(x)))), "
        "with the exact GELU.",
    )
    pull = torch.randn(3, 5, 6, generator=rng, dtype=torch.float64).to(device)
    mine_sum = mine_sum + (output * pull).sum()
    right_sum = right_sum + (expected * pull).sum()
mine_sum.backward()
right_sum.backward()
for (own, _), other in zip(cases, right_inputs, strict=True):
    check.that(own.grad is not None, "No gradient reaches the block's input.")
    check.close(own.grad, other.grad, because="The gradient of the block's input is off.")
mine_gradients, right_gradients = gradients(mine), gradients(right)
for name in weights:
    gradient = mine_gradients.get(name)
    check.that(gradient is not None, f"No gradient reaches {name}: is it used?")
    check.close(gradient, right_gradients[name], because=f"The gradient of {name} is off.")
mine(x)
check.close(x, before, because="The block changed its input in place.")
# An input so small that the eps of a layer norm shows.
small = {name: 1e-4 * value if "norm" not in name else value for name, value in weights.items()}
set_weights(mine, small)
right.load_state_dict(small)
check.close(
    mine(1e-4 * x),
    right(1e-4 * x),
    because="The layer norms have eps = EPS: torch's default is large beside a small variance.",
)
check.raises(ValueError, EncoderBlock, 6, 4, 9, because="Four heads cannot share a width of 6.")
### END HIDDEN TESTS

# %% test="bert_reads" points=2
rng = lab.generator("bert_reads")
bert = Bert(vocab_size=20, d_model=8, num_heads=2, d_ff=16, num_layers=2, max_length=9)
tokens = torch.randint(4, 20, (2, 5), generator=rng)
hidden, pooled = bert(tokens)
padded = torch.cat([tokens, torch.zeros(2, 3, dtype=torch.int64)], dim=1)
real = torch.tensor([[True] * 5 + [False] * 3] * 2)
check.close(
    bert(padded, real=real)[0][:, :5],
    hidden,
    because="Padding after a sentence changed the vectors of its words: real must reach the attention of every block.",
)
changed = tokens.clone()
changed[:, 4] = 3
check.that(
    bool((bert(changed)[0][:, 0] - hidden[:, 0]).detach().abs().amax(dim=-1).gt(1e-4).all()),
    "The last token changed and the vector of the first did not: every position sees all others, on both sides.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, gradients, inputs, reference

theirs = reference("pretraining", "bert")
rng = inputs("bert_reads")
mine = Bert(11, 6, 3, 7, 2, 8).to(device, torch.float64)
right = theirs.Bert(11, 6, 3, 7, 2, 8).to(device, torch.float64)
weights = {
    name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
set_weights(mine, weights)
right.load_state_dict(weights)
tokens = torch.randint(11, (3, 5), generator=rng).to(device)
segments = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]], device=device)
real = torch.tensor(
    [
        [True, True, True, True, False],
        [True, True, True, False, False],
        [True, False, True, True, True],
    ],
    device=device,
)
cases = [(tokens,), (tokens, segments), (tokens, None, real), (tokens, segments, real)]
for given, found in zip(cases, each(mine, cases), strict=True):
    for got, expected, name in zip(found, right(*given), ("hidden", "pooled"), strict=True):
        check.close(
            got,
            expected,
            because=f"The {name} vectors are off: token, position and segment embeddings, added and normalised; each "
            "block once in order, with real; tanh of the pooler at the first position. Segments are 0 and everything "
            "is real where nothing is said.",
        )
# One token, the longest sequence, and a batch that is a transposed view.
cases = [(torch.randint(11, (length, 2), generator=rng).to(device).T,) for length in (1, 8)]
for (wide,), (got, _) in zip(cases, each(mine, cases), strict=True):
    check.close(
        got,
        right(wide)[0],
        because="Sequences may be 1 to max_length tokens long, and a batch may be a transposed view.",
    )
# Padding, whatever stands there, changes nothing for the others.
others = torch.where(
    real, tokens, (tokens + 1 + torch.randint(10, (3, 5), generator=rng).to(device)) % 11
)
(of_others, _), (hidden, pooled), (_, alone) = each(
    mine,
    [
        (others, segments, real),
        (tokens, segments, real),
        (tokens[1:2, :3], segments[1:2, :3]),
    ],
)
check.close(
    of_others[real],
    hidden[real],
    because="What stands at the padding changed the vectors of real tokens: it is hidden in every block.",
)
check.close(
    alone,
    pooled[1:2],
    because="A sentence's pooled vector changed with its padding or its company in the batch.",
)
# Gradients of every parameter.
pulls = [
    torch.randn(shape, generator=rng, dtype=torch.float64).to(device)
    for shape in [(3, 5, 6), (3, 6)]
]
for model in (mine, right):
    sum(
        (out * pull).sum() for out, pull in zip(model(tokens, segments, real), pulls, strict=True)
    ).backward()
mine_gradients, right_gradients = gradients(mine), gradients(right)
for name in weights:
    gradient = mine_gradients.get(name)
    check.that(gradient is not None, f"No gradient reaches {name}: is it used?")
    check.close(gradient, right_gradients[name], because=f"The gradient of {name} is off.")
# Embeddings so small that the eps of their layer norm shows.
small = {
    name: 1e-4 * value if name.endswith("embedding.weight") else value
    for name, value in weights.items()
}
set_weights(mine, small)
right.load_state_dict(small)
check.close(
    mine(tokens)[0],
    right(tokens)[0],
    because="embedding_norm has eps = EPS: torch's default is large beside the variance of BERT's first embeddings.",
)
# The start.
fresh = Bert(200, 32, 2, 64, 1, 50)
for name, value in fresh.state_dict().items():
    if value.dim() > 1:
        deviation = value.double().square().mean().sqrt().item()
        check.that(
            0.015 < deviation < 0.025,
            f"{name} should start with standard deviation 0.02: apply start_small to the whole model.",
        )
for bad, word in [
    ((torch.zeros(2, 9, dtype=torch.int64),), "max_length"),
    ((tokens, segments[:, :4]), "segments"),
    ((tokens, segments[:1]), "segments"),
    ((tokens, segments, real[:, :4]), "real"),
    ((tokens, None, real[:1]), "real"),
]:
    check.raises(
        ValueError,
        mine,
        *(value.to(device) if value is not None else None for value in bad),
        mentions=word,
        because="Too long a sequence, and segments or real of another shape than tokens, are bad input, also where "
        "broadcasting would accept it.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · Heads for pre-training
#
# The masked language model reads each vector $h_i$ of the last block. It passes a *transform*, a linear layer with
# GELU and a layer norm, and is compared with every token's embedding; each token has a bias of its own:
#
# $$\text{logits}_i = \mathrm{LN}\big(\mathrm{GELU}(W h_i + b)\big)\,E^\top + b_{\text{vocab}}.$$
#
# $E$ is the token embedding itself, *tied*: there is no second matrix of this size. A gradient then reaches it from
# both ends. Next-sentence prediction is one linear layer, from the pooled vector $C$ to two classes.


# %% solution="pretraining"
class BertForPreTraining(nn.Module):
    """BERT with the two heads it is pre-trained with (Devlin et al. 2019, §3.1).

    Attributes:
        bert: ``Bert`` of these sizes.
        transform: ``nn.Linear(d_model, d_model)``.
        transform_norm: ``nn.LayerNorm(d_model, eps=EPS)``.
        mlm_bias: ``nn.Parameter`` of ``vocab_size`` zeros.
        nsp: ``nn.Linear(d_model, 2)``.

    There is no other parameter: the token embedding of ``bert`` is also the last matrix of the masked language model.
    All weights start as ``start_small`` sets them.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        num_heads: int,
        d_ff: int,
        num_layers: int,
        max_length: int,
    ) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.bert = Bert(vocab_size, d_model, num_heads, d_ff, num_layers, max_length)
        self.transform = nn.Linear(d_model, d_model)
        self.transform_norm = nn.LayerNorm(d_model, eps=EPS)
        self.mlm_bias = nn.Parameter(torch.zeros(vocab_size))
        self.nsp = nn.Linear(d_model, 2)
        self.apply(start_small)
        ### END SOLUTION

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None = None,
        real: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length vocab"], Float[Tensor, "batch 2"]]:
        """Logits of every token at every position, and of IsNext (0) and NotNext (1); arguments as in ``Bert``."""
        ### BEGIN SOLUTION
        hidden, pooled = self.bert(tokens, segments, real)
        transformed = self.transform_norm(F.gelu(self.transform(hidden)))
        return transformed @ self.bert.token_embedding.weight.T + self.mlm_bias, self.nsp(pooled)
        ### END SOLUTION


# %% test="pretraining_heads" points=2
torch.manual_seed(1)
model = BertForPreTraining(
    vocab_size=50, d_model=32, num_heads=4, d_ff=64, num_layers=2, max_length=12
)
check.equal(
    sorted({name.split(".")[0] for name in model.state_dict()}),
    ["bert", "mlm_bias", "nsp", "transform", "transform_norm"],
    because="The decoder is tied: the token embedding is its matrix, and there is no other.",
)
rng = lab.generator("pretraining_heads")
tokens = torch.randint(50, (16, 12), generator=rng)
mlm_logits, nsp_logits = model(tokens)
check.shape(
    mlm_logits, (16, 12, 50), because="A score for each token of the vocabulary, at each position."
)
check.shape(nsp_logits, (16, 2), because="Two classes for each pair.")
check.that(
    bool((mlm_logits.detach().logsumexp(-1) - math.log(50)).abs().max() < 1.0),
    "Before training all logits should be near 0, a guess among all tokens: apply start_small to the whole model.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import gradients, inputs, reference

theirs = reference("pretraining", "bert")
rng = inputs("pretraining_heads")
sizes = (11, 6, 2, 7, 2, 8)
mine = BertForPreTraining(*sizes).to(device, torch.float64)
right = theirs.BertForPreTraining(*sizes).to(device, torch.float64)
weights = {
    name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
    for name, value in right.state_dict().items()
}
set_weights(mine, weights)
right.load_state_dict(weights)
tokens = torch.randint(11, (3, 5), generator=rng).to(device)
segments = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]], device=device)
real = torch.tensor([[True] * 5, [True, True, True, False, False], [True] * 5], device=device)
for given in [(tokens,), (tokens, segments, real)]:
    own, expected = mine(*given), right(*given)
    check.close(
        own[0],
        expected[0],
        because="MLM logits are off: transform, GELU, transform_norm, the product with the token embedding, mlm_bias; "
        "with segments and real handed on to bert, and no softmax.",
    )
    check.close(
        own[1],
        expected[1],
        because="NSP logits are off: one linear layer on the pooled vector, and no softmax.",
    )
pulls = [
    torch.randn(shape, generator=rng, dtype=torch.float64).to(device)
    for shape in [(3, 5, 11), (3, 2)]
]
for model in (mine, right):
    sum(
        (out * pull).sum() for out, pull in zip(model(tokens, segments, real), pulls, strict=True)
    ).backward()
mine_gradients, right_gradients = gradients(mine), gradients(right)
for name in weights:
    gradient = mine_gradients.get(name)
    check.that(gradient is not None, f"No gradient reaches {name}: is it used?")
    check.close(
        gradient,
        right_gradients[name],
        because=f"The gradient of {name} is off. (The token embedding collects from input and logits.)",
    )
# A transform so small that the eps of its layer norm shows.
small = weights | {name: 1e-4 * weights[name] for name in ("transform.weight", "transform.bias")}
set_weights(mine, small)
right.load_state_dict(small)
check.close(
    mine(tokens)[0],
    right(tokens)[0],
    because="transform_norm has eps = EPS: torch's default is large beside a small variance.",
)
# The start.
fresh = BertForPreTraining(200, 32, 2, 64, 1, 50).state_dict()
check.close(fresh["mlm_bias"], torch.zeros(200), because="mlm_bias starts at 0.")
for name in ("transform", "nsp"):
    deviation = fresh[f"{name}.weight"].double().square().mean().sqrt().item()
    check.that(
        0.01 < deviation < 0.03,
        f"{name} should start with standard deviation 0.02: apply start_small to the whole model.",
    )
    check.close(
        fresh[f"{name}.bias"], torch.zeros_like(fresh[f"{name}.bias"]), because="Biases start at 0."
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 6 · Heads for tasks
#
# After pre-training both heads are thrown away. A task brings a head of its own, one new linear layer, and everything
# is trained further together, *fine-tuned* (§4). Three kinds of head serve nearly all tasks of the paper:
#
# - **A sequence**: is this review kind, does this follow from that, of which genre is this play? A layer on the pooled
#   vector.
# - **Each token**: is this a name, and of what (*named-entity recognition*)? A layer on each vector of the last block.
# - **A span**: where in this passage is the answer (SQuAD, the Stanford *Question Answering* Dataset)? Two numbers for
#   each token: $S \cdot h_i$, how well an answer starts here, and $E \cdot h_j$, how well it ends here.
#
# The span from $i$ to $j$ has the score $S \cdot h_i + E \cdot h_j$, and the answer is the best span with $j \ge i$
# (§4.2). The best start and the best end, each for itself, need not make a span: the end may come first.


# %% solution="heads"
class SequenceClassifier(nn.Module):
    """A class for each sequence (Devlin et al. 2019, §4.1).

    Attributes:
        bert: the ``Bert`` it is given, which is trained with it.
        head: ``nn.Linear(d_model, num_classes)``, on the pooled vector.
    """

    def __init__(self, bert: nn.Module, d_model: int, num_classes: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.bert = bert
        self.head = nn.Linear(d_model, num_classes)
        ### END SOLUTION

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None = None,
        real: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch num_classes"]:
        """Logits of the classes; arguments as in ``Bert``."""
        ### BEGIN SOLUTION
        return self.head(self.bert(tokens, segments, real)[1])
        ### END SOLUTION


class TokenClassifier(nn.Module):
    """A class for each token (Devlin et al. 2019, §5.3).

    Attributes:
        bert: the ``Bert`` it is given, which is trained with it.
        head: ``nn.Linear(d_model, num_classes)``, on the vector of each position.
    """

    def __init__(self, bert: nn.Module, d_model: int, num_classes: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.bert = bert
        self.head = nn.Linear(d_model, num_classes)
        ### END SOLUTION

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None = None,
        real: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length num_classes"]:
        """Logits of the classes at each position; arguments as in ``Bert``."""
        ### BEGIN SOLUTION
        return self.head(self.bert(tokens, segments, real)[0])
        ### END SOLUTION


class SpanClassifier(nn.Module):
    """The start and the end of an answer (Devlin et al. 2019, §4.2).

    Attributes:
        bert: the ``Bert`` it is given, which is trained with it.
        head: ``nn.Linear(d_model, 2)``. Output 0 is the score of a start, output 1 that of an end.
    """

    def __init__(self, bert: nn.Module, d_model: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.bert = bert
        self.head = nn.Linear(d_model, 2)
        ### END SOLUTION

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None = None,
        real: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length"], Float[Tensor, "batch length"]]:
        """Logits of the start and of the end over the positions; arguments as in ``Bert``."""
        ### BEGIN SOLUTION
        start, end = self.head(self.bert(tokens, segments, real)[0]).unbind(dim=-1)
        return start, end
        ### END SOLUTION


def best_span(
    start_logits: Float[Tensor, "batch length"],
    end_logits: Float[Tensor, "batch length"],
    in_passage: Bool[Tensor, "batch length"],
    max_answer: int,
) -> Int[Tensor, "batch 2"]:
    """The span with the largest ``start_logits[i] + end_logits[j]`` (Devlin et al. 2019, §4.2).

    ``i ≤ j``, both are in the passage, and the span has at most ``max_answer`` tokens. Of spans with equal scores
    the one that starts first, and of those the one that ends first.

    Args:
        start_logits, end_logits: of ``SpanClassifier``.
        in_passage: ``True`` where an answer may start and end: not in the question, not at a special token.
        max_answer: the most tokens of an answer, 1 or more.

    Returns:
        For each sequence ``(i, j)``, the first and the last token of the answer.

    Raises:
        ValueError: nowhere in some sequence may an answer stand (the message says ``in_passage``), or
            ``max_answer`` is below 1 (it says ``max_answer``).
    """
    ### BEGIN SOLUTION
    if max_answer < 1:
        raise ValueError(f"max_answer must be at least 1, got {max_answer}")
    if not in_passage.any(dim=1).all():
        raise ValueError("in_passage holds a sequence without a passage")
    length = start_logits.shape[1]
    positions = torch.arange(length, device=start_logits.device)
    tokens_more = positions - positions[:, None]  # (start, end): 0 where the span is a single token
    allowed = in_passage[:, :, None] & in_passage[:, None, :]
    allowed = allowed & (tokens_more >= 0) & (tokens_more < max_answer)
    scores = start_logits[:, :, None] + end_logits[:, None, :]  # (batch, start, end)
    best = scores.masked_fill(~allowed, -math.inf).flatten(start_dim=1).argmax(dim=1)
    return torch.stack([best // length, best % length], dim=1)
    ### END SOLUTION


# %% test="task_heads" points=1
bert = Bert(vocab_size=20, d_model=4, num_heads=2, d_ff=6, num_layers=1, max_length=6)
tokens = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]])
real = tokens != 0
hidden, pooled = bert(tokens, real=real)
genre, tags, span = (
    SequenceClassifier(bert, 4, 3),
    TokenClassifier(bert, 4, 5),
    SpanClassifier(bert, 4),
)
for head in (genre, tags, span):
    state = head.state_dict()
    state["head.weight"] = torch.ones_like(state["head.weight"])
    state["head.bias"] = torch.arange(len(state["head.bias"])).float()
    head.load_state_dict(state)
check.close(
    genre(tokens, real=real),
    pooled.sum(-1)[:, None] + torch.arange(3),
    because="A sequence is classified by its pooled vector.",
)
check.close(
    tags(tokens, real=real),
    hidden.sum(-1)[..., None] + torch.arange(5),
    because="Each token is classified by its own vector of the last block.",
)
start, end = span(tokens, real=real)
check.close(
    start, hidden.sum(-1), because="Output 0 of the head is the start, one number a position."
)
check.close(
    end, hidden.sum(-1) + 1, because="Output 1 of the head is the end, one number a position."
)
### BEGIN HIDDEN TESTS
from autograder.hidden import gradients, inputs, reference

theirs = reference("pretraining", "bert")
rng = inputs("task_heads")
sizes = (11, 6, 2, 7, 1, 8)
tokens = torch.randint(11, (3, 5), generator=rng).to(device)
segments = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]], device=device)
real = torch.tensor([[True] * 5, [True, True, True, False, False], [True] * 5], device=device)
for mine, right, outputs in [
    (
        SequenceClassifier(Bert(*sizes), 6, 4),
        theirs.SequenceClassifier(theirs.Bert(*sizes), 6, 4),
        (4,),
    ),
    (
        TokenClassifier(Bert(*sizes), 6, 4),
        theirs.TokenClassifier(theirs.Bert(*sizes), 6, 4),
        (5, 4),
    ),
    (SpanClassifier(Bert(*sizes), 6), theirs.SpanClassifier(theirs.Bert(*sizes), 6), (5,)),
]:
    mine, right = mine.to(device, torch.float64), right.to(device, torch.float64)
    weights = {
        name: 0.7 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
        for name, value in right.state_dict().items()
    }
    set_weights(mine, weights)
    right.load_state_dict(weights)
    pull = torch.randn(2, 3, *outputs, generator=rng, dtype=torch.float64).to(device)
    for given in [(tokens,), (tokens, segments, real)]:
        got, expected = mine(*given), right(*given)
        if outputs != (5,):
            got, expected = (got,), (expected,)
        check.that(
            len(got) == len(expected), "A span has start logits and end logits, in this order."
        )
        for one, other in zip(got, expected, strict=True):
            check.close(
                one,
                other,
                because="The head's logits are off: a sequence is judged by the pooled vector, tokens and spans by the "
                "vector of each position; segments and real are handed on; nothing follows the linear layer.",
            )
    for outs in (got, expected):
        sum((out * p).sum() for out, p in zip(outs, pull, strict=False)).backward()
    mine_gradients, right_gradients = gradients(mine), gradients(right)
    for name in weights:
        if right_gradients[name] is None:
            continue
        gradient = mine_gradients.get(name)
        check.that(
            gradient is not None, f"No gradient reaches {name}: all of BERT is trained further."
        )
        check.close(gradient, right_gradients[name], because=f"The gradient of {name} is off.")
### END HIDDEN TESTS

# %% test="best_span" points=2
# The best start (3) lies behind the best end (1).
start = torch.tensor([[0.0, 1.0, 0.0, 4.0]])
end = torch.tensor([[0.0, 5.0, 2.0, 0.5]])
anywhere = torch.tensor([[True] * 4])
check.equal(
    best_span(start, end, anywhere, 4),
    [[1, 1]],
    because="The scores of spans that end before they start do not count: (1, 1) has 6, (3, 3) has 4.5.",
)
check.equal(
    best_span(start, end, torch.tensor([[True, False, True, True]]), 4),
    [[3, 3]],
    because="Position 1 is not in the passage: no answer starts or ends there.",
)
start = torch.tensor([[3.0, 0.0, 0.0, 0.0]])
end = torch.tensor([[0.0, 0.0, 1.0, 2.0]])
check.equal(best_span(start, end, anywhere, 3), [[0, 2]], because="Three tokens are 0, 1 and 2.")
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("pretraining", "bert")
rng = inputs("best_span")
for max_answer in (1, 2, 3, 7, 100):
    # Few different values: ties occur.
    start, end = torch.randint(-3, 4, (2, 60, 7), generator=rng).double().to(device)
    in_passage = (torch.rand(60, 7, generator=rng) < 0.6).to(device)
    in_passage[:, 2] = True
    spans = best_span(start, end, in_passage, max_answer)
    check.shape(spans, (60, 2), because="A first and a last token for each sequence.")
    check.equal(
        spans,
        theirs.best_span(start, end, in_passage, max_answer),
        because="Of all spans i ≤ j < i + max_answer with both ends in the passage, the largest "
        "start_logits[i] + end_logits[j]; of equal ones the first start, then the first end.",
    )
start, end = torch.randn(2, 5, 9, generator=rng, dtype=torch.float64).to(device)
for scale in (1.0, -1e6):
    in_passage = (torch.rand(5, 9, generator=rng) < 0.5).to(device)
    in_passage[:, 8] = True
    check.equal(
        best_span(scale * start - 1e7, scale * end - 1e7, in_passage, 4),
        theirs.best_span(scale * start - 1e7, scale * end - 1e7, in_passage, 4),
        because="Logits may all be very negative: what is not allowed is −∞, not 0 or −10⁴.",
    )
check.equal(
    best_span(start[:, :1], end[:, :1], in_passage[:, 8:], 3),
    [[0, 0]] * 5,
    because="A passage of one token has one span.",
)
in_passage[3] = False
check.raises(
    ValueError,
    best_span,
    start,
    end,
    in_passage,
    4,
    mentions="in_passage",
    because="One sequence has no passage: say so, and say in_passage.",
)
check.raises(
    ValueError,
    best_span,
    start,
    end,
    in_passage | True,
    0,
    mentions="max_answer",
    because="An answer has at least one token: say max_answer.",
)
### END HIDDEN TESTS

# %% [markdown] written="bert_why" points=2
# **In your own words.** A colleague pre-trains BERT and replaces every chosen token by `[MASK]`, never by a random one,
# and never leaves one as it was. Which positions can their model neglect, and why may that hurt a tagger which is
# fine-tuned from it? Then: BERT asks for 15 % of the positions of a batch, a model that writes from left to right for
# all of them. What does BERT pay for seeing both sides, and why can it not ask for every position? (5 to 9 sentences.)

# %% [markdown]
# ## Experiment: learn from the plays, then from a few labels
#
# Your BERT is pre-trained on the training plays of Shakespeare, on pairs of speeches: words in small letters, so that
# no capital gives a name away, and the rarer words all one `[UNK]`. Then it gets a head for each word and is
# fine-tuned to tag who speaks and who is named, on few speeches with labels. The same head on the same BERT *without*
# pre-training, with the same steps on the same speeches, is what to compare with. On a GPU a larger preset runs.
#
# The labels come from the print: a speech begins with its speaker, in capitals; a word inside a speech is a *name* if
# it has a capital and some character of the play is called so.

# %% experiment=true
import re
from collections import Counter

import matplotlib.pyplot as plt

from lab import data, figures, training

VOCAB, D_MODEL, HEADS, LAYERS, LENGTH, BATCH, STEPS, LR = (
    (8000, 256, 8, 4, 64, 64, 6000, 5e-4)
    if device.type == "cuda"
    else (2000, 64, 2, 2, 40, 32, 1500, 3e-3)
)
SIZES = (VOCAB, D_MODEL, HEADS, 4 * D_MODEL, LAYERS, LENGTH)
PAD, CLS, SEP, MASK, UNK = range(5)
SPECIAL = [PAD, CLS, SEP, MASK, UNK]  # nobody can guess which rare word stood there
SEED = 0
WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*|[.,;:!?]")


def speeches_of(text: str) -> list[tuple[list[str], list[str]]]:
    """The speeches of a play: the words of the heading, and those spoken."""
    blocks = [block.partition("\n") for block in text.split("\n\n")]
    return [(WORD.findall(h), WORD.findall(b)) for h, _, b in blocks if b and h.isupper()]


plays = {play.name: speeches_of(play.text) for play in data.plays()}
split = {play.name: play.split for play in data.plays()}
known = Counter(
    word.lower()
    for name in plays
    if split[name] == "train"
    for h, b in plays[name]
    for word in h + b
)
vocab = {
    word: len(SPECIAL) + i for i, (word, _) in enumerate(known.most_common(VOCAB - len(SPECIAL)))
}
word_of = {i: word for word, i in vocab.items()}


def ids(words: list[str]) -> list[int]:
    """Words to token ids."""
    return [vocab.get(word.lower(), UNK) for word in words]


def packed(documents: list, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of your two functions as tensors: tokens, segments, next-sentence labels."""
    pairs = make_nsp_pairs(documents, rng)
    rows = [pack_pair(first, second, CLS, SEP, LENGTH) for first, second, _ in pairs]
    tokens, segments = (
        nn.utils.rnn.pad_sequence([torch.tensor(row[i]) for row in rows], batch_first=True)
        for i in (0, 1)
    )
    return tuple(x.to(device) for x in (tokens, segments, torch.tensor([y for *_, y in pairs])))


documents = {
    part: [[ids(h + b) for h, b in plays[name]] for name in plays if split[name] == part]
    for part in ("train", "validation")
}
train_pairs = packed(documents["train"], lab.generator(f"pairs {SEED}"))
held_out = packed(documents["validation"], lab.generator("held-out pairs"))

# %% [markdown]
# Pre-training. The masked language model starts near $\ln 2000 \approx 7.6$ nats; who knows how frequent each word
# is, and nothing else, gets what is shown as the *unigram* line. Of next-sentence prediction expect little here: two
# short speeches with their rare words hidden tell little, and a minute is short.

# %% experiment=true
blanks, answers_ = mask_tokens(held_out[0], VOCAB, MASK, SPECIAL, lab.generator("held-out blanks"))
frequency = torch.bincount(train_pairs[0].flatten(), minlength=VOCAB).float()
frequency[SPECIAL] = 0.0
unigram = mlm_loss((frequency + 1e-9).log().expand(*answers_.shape, VOCAB), answers_).item()


def draw(rng: torch.Generator) -> tuple[Tensor, ...]:
    """A batch of pairs, masked anew each time."""
    rows = torch.randint(len(train_pairs[0]), (BATCH,), generator=rng).to(device)
    tokens, segments, nsp_labels = (x[rows] for x in train_pairs)
    return *mask_tokens(tokens, VOCAB, MASK, SPECIAL, rng), segments, nsp_labels


losses = []  # of the masked language model alone


def loss_of(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Both losses; the first is noted."""
    inputs, labels, segments, nsp_labels = batch
    mlm_logits, nsp_logits = model(inputs, segments, inputs != PAD)
    losses.append(mlm_loss(mlm_logits.detach(), labels).item())
    return pretraining_loss(mlm_logits, nsp_logits, labels, nsp_labels)


torch.manual_seed(SEED)
model = BertForPreTraining(*SIZES).to(device)
training.train(
    model,
    draw,
    loss_of,
    STEPS,
    LR,
    generator=lab.generator(f"pre-training {SEED}"),
    label="pre-training",
)


def mean_of_windows(values: list[float], width: int = 25) -> tuple[list[int], list[float]]:
    """Means of ``width`` steps, each at its middle."""
    starts = range(0, len(values) - width + 1, width)
    return [s + width // 2 for s in starts], [sum(values[s : s + width]) / width for s in starts]


@torch.no_grad()
def on_held_out() -> tuple[float, float]:
    """The loss of the masked language model and the accuracy of next-sentence prediction, on plays not seen."""
    model.eval()
    sums, right, rows = 0.0, 0, range(0, len(blanks), 256)
    for start in rows:
        part = slice(start, start + 256)
        mlm_logits, nsp_logits = model(blanks[part], held_out[1][part], blanks[part] != PAD)
        asked = (answers_[part] != IGNORED).sum().item()
        sums += mlm_loss(mlm_logits, answers_[part]).item() * asked
        right += (nsp_logits.argmax(-1) == held_out[2][part]).sum().item()
    model.train()
    return sums / (answers_ != IGNORED).sum().item(), right / len(blanks)


mlm_held_out, nsp_held_out = on_held_out()
figures.use_style()
fig, ax = plt.subplots()
ax.plot(*mean_of_windows(losses), label="training plays")
ax.axhline(unigram, color="C1", linestyle="--", label="unigram, held-out plays")
ax.plot(STEPS, mlm_held_out, "o", color="C2", label="BERT, held-out plays")
ax.set(xlabel="step", ylabel="nats a blank", title="masked language model")
ax.legend()
figures.show(
    fig,
    alt=f"Loss of the masked language model over {STEPS} steps: from {losses[0]:.2f} to "
    f"{sum(losses[-50:]) / len(losses[-50:]):.2f} nats on its batches; on held-out plays {mlm_held_out:.2f}, where "
    f"the frequency of words alone gives {unigram:.2f}.",
)
print(f"next-sentence prediction on held-out plays: {nsp_held_out:.2f} right (guessing: 0.50)")

# %% [markdown]
# What does it put into a blank? Not one right word: a distribution, which has to fit on both sides. After a minute it
# knows some company that words keep, and hardly any grammar. Try blanks of your own.

# %% experiment=true
SENTENCES = [
    "ROMEO I pray you , tell me where the [MASK] is .",
    "KING Good morrow , my [MASK] lord .",
    "HAMLET O , what a [MASK] is this !",
]


@torch.no_grad()
def fill(sentence: str, best: int = 6) -> list[tuple[str, float]]:
    """The likeliest words for the blank, with their probabilities."""
    row = [MASK if word == "[MASK]" else ids([word])[0] for word in sentence.split()]
    tokens = torch.tensor([[CLS, *row, SEP]], device=device)
    logits = model(tokens)[0][0, 1 + row.index(MASK)]
    logits[SPECIAL] = -math.inf
    p, words = logits.softmax(-1).topk(best)
    return [(word_of[w], q) for w, q in zip(words.tolist(), p.tolist(), strict=True)]


filled = [fill(sentence) for sentence in SENTENCES]
fig, axes = plt.subplots(1, 3, figsize=(9.0, 2.8))
for ax, sentence, words in zip(axes, SENTENCES, filled, strict=True):
    ax.barh([word for word, _ in words][::-1], [p for _, p in words][::-1])
    ax.set_title(
        sentence.replace("[MASK]", "____").replace(" ,", ",").replace(" .", "."), fontsize=8
    )
    ax.set_xlabel("probability")
figures.show(
    fig,
    alt="The likeliest words for a blank. "
    + " ".join(
        f"“{sentence}”: " + ", ".join(f"{word} {p:.2f}" for word, p in words[:3]) + "."
        for sentence, words in zip(SENTENCES, filled, strict=True)
    ),
)

# %% [markdown]
# Fine-tuning: three classes a word (other, speaks, is named). Both models have the same head, the same labelled
# speeches and the same number of steps. *F1* is the harmonic mean of precision and recall, here of the words that name
# somebody: most words do not, so that accuracy would flatter.
#
# Two questions are asked. In the same plays: who is named in speeches that had no labels? Pre-training has read those
# speeches, as unlabelled text is what there is plenty of. And in other plays, which neither model has read: their
# names are often `[UNK]`, so that only the words around are left to go by.

# %% experiment=true
LABELLED, FINE_STEPS, FINE_LR = (50, 200, 1000), 150, 2e-3
plays_with = Counter(
    word for name in plays for word in {word for h, _ in plays[name] for word in h}
)


def tagged(*parts: str) -> tuple[Tensor, Tensor]:
    """Every speech of these plays, [CLS] speech [SEP], and the class of each word."""
    rows, classes = [], []
    for name in (name for name in plays if split[name] in parts):
        # LORD, KING and MESSENGER speak in many plays: they are no names.
        names = {word for h, _ in plays[name] for word in h if plays_with[word] < 7}
        for h, b in plays[name]:
            tags = [1] * len(h) + [2 if w[0].isupper() and w.upper() in names else 0 for w in b]
            rows.append(torch.tensor([CLS, *ids(h + b)[: LENGTH - 2], SEP]))
            classes.append(torch.tensor([IGNORED, *tags[: LENGTH - 2], IGNORED]))
    pad = nn.utils.rnn.pad_sequence
    return (
        pad(rows, batch_first=True, padding_value=PAD).to(device),
        pad(classes, batch_first=True, padding_value=IGNORED).to(device),
    )


speeches, tags = tagged("train")
order = torch.randperm(len(speeches), generator=lab.generator(f"labelled {SEED}")).to(device)
unlabelled = order[max(LABELLED) :][:3000]
tests = {
    "the same plays": (speeches[unlabelled], tags[unlabelled]),
    "other plays": tagged("validation", "test"),
}


@torch.no_grad()
def f1(tagger: nn.Module, texts: Tensor, right: Tensor, tag: int = 2) -> float:
    """F1 of one class."""
    found = torch.cat([tagger(x, real=x != PAD).argmax(-1) for x in texts.split(512)])
    hits = ((found == tag) & (right == tag)).sum().item()
    said = ((found == tag) & (right != IGNORED)).sum().item()
    return 2 * hits / (said + (right == tag).sum().item())


def fine_tuned(labelled: int, pretrained: bool) -> dict[str, float]:
    """F1 of names after fine-tuning on so many speeches."""
    torch.manual_seed(SEED)
    bert = Bert(*SIZES).to(device)
    if pretrained:
        bert.load_state_dict(model.bert.state_dict())
    tagger = TokenClassifier(bert, D_MODEL, 3).to(device)
    rows = order[:labelled]

    def batch(rng: torch.Generator) -> tuple[Tensor, Tensor]:
        some = rows[torch.randint(labelled, (16,), generator=rng).to(device)]
        return speeches[some], tags[some]

    def tag_loss(tagger: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return mlm_loss(tagger(batch[0], real=batch[0] != PAD), batch[1])

    training.train(
        tagger,
        batch,
        tag_loss,
        FINE_STEPS,
        FINE_LR,
        generator=lab.generator(f"fine-tuning {SEED}"),
        label=f"{labelled} speeches, {'pre-trained' if pretrained else 'from scratch'}",
    )
    return {where: f1(tagger, *test) for where, test in tests.items()}


scores = {p: [fine_tuned(n, p) for n in LABELLED] for p in (True, False)}
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
for ax, where in zip(axes, tests, strict=True):
    for pretrained, style, label in [
        (True, "o-", "pre-trained, then fine-tuned"),
        (False, "s--", "from scratch"),
    ]:
        ax.semilogx(LABELLED, [score[where] for score in scores[pretrained]], style, label=label)
    ax.set_xticks(LABELLED, LABELLED)
    ax.minorticks_off()
    ax.set(xlabel="speeches with labels", title=where, ylim=(0, 1))
axes[0].set_ylabel("F1 of names")
axes[1].legend()
figures.show(
    fig,
    alt="F1 of the words that name a character, pre-trained against from scratch. "
    + " ".join(
        f"In {where}: "
        + ", ".join(
            f"{one[where]:.2f} against {other[where]:.2f} with {n} labelled speeches"
            for n, one, other in zip(LABELLED, scores[True], scores[False], strict=True)
        )
        + "."
        for where in tests
    ),
)
