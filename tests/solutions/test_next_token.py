"""The next token against outside oracles: torch's own loss, exact fractions, the definition of the nucleus."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from autograder.hidden import reference
from lab import generator

answers = reference("language_models", "next_token")


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_log_prob_is_minus_the_summed_cross_entropy(shape):
    rng = generator(f"cross entropy {shape}")
    logits = torch.randn(*shape, 5, 7, generator=rng, dtype=torch.float64)
    tokens = torch.randint(7, (*shape, 5), generator=rng)
    loss = F.cross_entropy(
        logits[..., :-1, :].reshape(-1, 7), tokens[..., 1:].reshape(-1), reduction="none"
    )
    expected = -loss.reshape(*shape, 4).sum(-1)
    torch.testing.assert_close(answers.sequence_log_prob(logits, tokens), expected)


def test_probabilities_of_all_texts_of_one_length_sum_to_one():
    rng = generator("all texts")
    model = answers.NGram(3, 3)
    model.fit(torch.randint(3, (20,), generator=rng).tolist())
    texts = itertools.product(range(3), repeat=5)
    total = sum(math.exp(model.log_prob(text, 0.5)) for text in texts)
    assert total == pytest.approx(1)


def test_perplexity_of_the_source_is_two_to_its_entropy():
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    # A text in which every token occurs exactly as often as its probability says.
    log_probs = (8 * p * p.log()).sum()[None]
    assert answers.perplexity(log_probs, torch.tensor([8])) == pytest.approx(
        2 ** stats.entropy(p, base=2)
    )


def exact(texts, order, vocab, context, alpha):
    """The smoothed distribution in exact fractions, by looking for the context all over the texts."""
    context = tuple(context)[max(0, len(context) - order + 1) :]
    below = (
        exact(texts, order, vocab, context[1:], alpha)
        if context
        else [Fraction(1, vocab) for _ in range(vocab)]
    )
    after = Counter(
        text[i + len(context)]
        for text in texts
        for i in range(len(text) - len(context))
        if tuple(text[i : i + len(context)]) == context
    )
    return [(after[w] + alpha * below[w]) / (after.total() + alpha) for w in range(vocab)]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ngram_is_the_formula_in_exact_fractions(order):
    rng = generator(f"fractions {order}")
    texts = [torch.randint(3, (n,), generator=rng).tolist() for n in (17, 9, 1)]
    model = answers.NGram(order, 4)
    for text in texts:
        model.fit(text)
    for length in range(5):
        for context in itertools.product(range(4), repeat=length):
            expected = exact(texts, order, 4, context, Fraction(3, 4))
            assert sum(expected) == 1
            got = model.distribution(context, 0.75).tolist()
            assert got == pytest.approx([float(p) for p in expected])


def test_scoring_a_text_does_not_make_the_model_grow():
    model = answers.NGram(4, 6)
    model.fit([0, 1, 2, 3])
    size = len(model.followers), len(model.totals)
    model.log_prob([5, 4, 5, 4, 5, 4], 1.0)
    model.distribution([5, 5, 5], 1.0)
    assert (len(model.followers), len(model.totals)) == size


def test_temperature_zero_is_the_limit():
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0], [-math.inf, 0.5, 0.25, -2.0]], dtype=torch.float64)
    torch.testing.assert_close(answers.temperature(logits, 0.0), answers.temperature(logits, 1e-4))


def smallest_sets_reaching(probs, p):
    """All sets of tokens that reach p with as few tokens as possible, and of those the most probable."""
    for size in range(1, len(probs) + 1):
        sets = [c for c in itertools.combinations(range(len(probs)), size)]
        sums = {c: sum(probs[i] for i in c) for c in sets}
        best = max(sums.values())
        if best >= p:
            return [c for c in sets if sums[c] == best]
    raise AssertionError("nothing reaches p")


@pytest.mark.parametrize("seed", range(6))
def test_nucleus_is_the_smallest_set_that_reaches_p(seed):
    rng = generator(f"nucleus {seed}")
    sixteenths = torch.bincount(torch.randint(6, (16,), generator=rng), minlength=6)
    probs = (sixteenths / 16).double()
    for p in (0.0, 0.0625, 0.25, 0.3, 0.5, 0.6875, 0.9, 0.9375):
        kept = answers.top_p(probs, p)
        chosen = tuple((kept > 0).nonzero()[:, 0].tolist())
        # The first in order of ids is the one with the smaller ids among equals.
        assert chosen == smallest_sets_reaching(probs.tolist(), p)[0]
        torch.testing.assert_close(
            kept[list(chosen)], probs[list(chosen)] / probs[list(chosen)].sum()
        )


def test_top_k_agrees_with_torch_where_nothing_ties():
    probs = torch.randn(4, 50, generator=generator("topk"), dtype=torch.float64).softmax(-1)
    values, ids = probs.topk(9)
    expected = torch.zeros_like(probs).scatter(-1, ids, values / values.sum(-1, keepdim=True))
    torch.testing.assert_close(answers.top_k(probs, 9), expected)


def test_samples_pass_a_chi_squared_test():
    probs = torch.tensor([0.5, 0.2, 0.2, 0.09, 0.01], dtype=torch.float64)
    draws = answers.sample(probs.expand(50_000, 5), generator("chi squared"))
    counts = torch.bincount(draws, minlength=5)
    assert stats.chisquare(counts.numpy(), (50_000 * probs).numpy()).pvalue > 1e-9


def test_a_generated_text_is_as_probable_as_its_model_says():
    """Closing the circle: texts drawn from a model have its perplexity, up to chance."""
    model = answers.NGram(2, 4)
    model.fit(torch.randint(4, (30,), generator=generator("circle, text")).tolist())
    rng = generator("circle, draws")
    text = answers.generate(
        lambda tokens: model.distribution(tokens.tolist(), 0.5).log(),
        torch.tensor([0]),
        lambda logits: answers.sample(answers.temperature(logits, 1.0), rng),
        4000,
    ).tolist()
    rows = torch.stack([model.distribution([w], 0.5) for w in range(4)])
    expected = -(rows[text[:-1]] * rows[text[:-1]].log()).sum()
    surprise = -(model.log_prob(text, 0.5) - model.log_prob(text[:1], 0.5))
    variance = (rows[text[:-1]] * rows[text[:-1]].log().square()).sum() - (
        (rows[text[:-1]] * rows[text[:-1]].log()).sum(-1).square().sum()
    )
    assert abs(surprise - expected) < 6 * variance.sqrt()


def test_generate_starts_from_a_prompt_without_tokens():
    """Not promised by the docstring, but what everybody expects: an empty prompt starts a text."""
    text = answers.generate(
        lambda tokens: F.one_hot(torch.tensor(len(tokens)), 5).double(),
        torch.tensor([], dtype=torch.int64),
        lambda logits: logits.argmax(),
        3,
    )
    assert text.tolist() == [0, 1, 2]
