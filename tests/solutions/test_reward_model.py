"""The reward model against other ways to compute the same: a classifier's logit, NumPy's histograms, Newton's fit."""

import itertools
import math

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from autograder.loader import reference
from lab import generator

CLOSE = {"rtol": 0.0, "atol": 1e-9}


@pytest.fixture
def answers():
    return reference("alignment", "reward_model")


def randn(*shape, seed):
    return torch.randn(shape, generator=generator(f"reward model {seed}"), dtype=torch.float64)


def ranking(k, seed, ties=False):
    rng = generator(f"ranking {seed}")
    rank = torch.randint(1, 4, (k,), generator=rng) if ties else torch.randperm(k, generator=rng)
    return randn(k, seed=seed), rank


def test_read_at_the_position_where_hugging_faces_classifier_reads(answers):
    """Theirs looks for the padding id, so the texts here do not contain it."""
    theirs = GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=9, n_positions=6, n_embd=4, n_head=1, n_layer=1, num_labels=1, pad_token_id=0
        )
    )
    theirs = theirs.double().eval()
    lengths = torch.tensor([6, 1, 4])
    mask = torch.arange(6) < lengths[:, None]
    tokens = torch.randint(1, 9, (3, 6), generator=generator("texts")).masked_fill(~mask, 0)
    model = answers.RewardModel(9, 4, 1, 1, 6).double()
    torch.nn.init.zeros_(model.head.bias)
    model.head.weight = theirs.score.weight
    model.body.states = lambda tokens: theirs.transformer(tokens).last_hidden_state
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens, mask), theirs(tokens).logits.squeeze(-1), rtol=0.0, atol=1e-7
        )


def test_a_text_has_the_reward_it_has_alone(answers):
    model = answers.RewardModel(7, 6, 2, 2, 9).double()
    rng = generator("alone")
    tokens = torch.randint(7, (6, 9), generator=rng)
    lengths = torch.randint(1, 10, (6,), generator=rng)
    mask = torch.arange(9) < lengths[:, None]
    with torch.no_grad():
        alone = [
            model.head(model.body.states(row[None, :n]))[0, -1, 0]
            for row, n in zip(tokens, lengths, strict=True)
        ]
        torch.testing.assert_close(model(tokens, mask), torch.stack(alone), **CLOSE)


def test_starts_from_a_language_model(answers):
    """What the text says: the body's weights are those of a language model of the same sizes."""
    model = answers.RewardModel(7, 6, 2, 1, 9)
    model.body.load_state_dict(answers.CausalTransformer(7, 6, 2, 1, 9).state_dict())


def test_probability_of_the_larger_of_two_utilities_with_gumbel_noise(answers):
    """Another way to Bradley–Terry: each response has a utility, its reward plus noise of its own."""
    rng = np.random.default_rng(0)
    noise = rng.gumbel(size=(2, 400_000))
    for r1, r2 in [(0.0, 0.0), (1.0, 0.0), (-2.0, 0.5)]:
        share = float(np.mean(r1 + noise[0] > r2 + noise[1]))
        expected = answers.preference_probability(torch.tensor(r1), torch.tensor(r2)).item()
        assert share == pytest.approx(expected, abs=0.005)


def test_numbers_in_the_text(answers):
    probability = answers.preference_probability(torch.tensor([1.0, 3.0]), torch.zeros(2))
    assert [round(p, 2) for p in probability.tolist()] == [0.73, 0.95]
    assert math.comb(4, 2) == 6 and math.comb(9, 2) == 36
    assert torch.sigmoid(torch.tensor(-200.0)) == 0


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("ks", [(2,), (4,), (9,), (4, 9), (5, 6, 7, 8)])
def test_ranking_loss_is_a_double_loop(answers, ks, ties):
    drawn = [ranking(k, (ks, k, ties), ties) for k in ks]
    means = []
    for reward, rank in drawn:
        losses = []
        for i, j in itertools.combinations(range(len(rank)), 2):
            first = 1 / (1 + math.exp(reward[j] - reward[i]))
            share = 0.5 if rank[i] == rank[j] else float(rank[i] < rank[j])
            losses.append(-share * math.log(first) - (1 - share) * math.log(1 - first))
        means.append(np.mean(losses))
    loss = answers.ranking_loss([r for r, _ in drawn], [r for _, r in drawn])
    assert loss.item() == pytest.approx(np.mean(means), abs=1e-9)


def test_a_ranking_of_two_is_a_comparison(answers):
    chosen, rejected = randn(2, 8, seed="two")
    pairs = torch.stack([chosen, rejected], dim=1)
    loss = answers.ranking_loss(list(pairs), [torch.tensor([1, 2])] * 8)
    torch.testing.assert_close(loss, answers.pairwise_loss(chosen, rejected), **CLOSE)


def test_gradients_by_finite_differences(answers):
    chosen, rejected = (randn(5, seed=name).requires_grad_() for name in ("chosen", "rejected"))
    assert torch.autograd.gradcheck(answers.pairwise_loss, (chosen, rejected))
    rank = torch.tensor([2, 1, 2, 4, 3])
    assert torch.autograd.gradcheck(lambda r: answers.ranking_loss([r], [rank]), (chosen,))


def test_fit_of_bradley_terry_is_zermelos(answers):
    """Five players and a table of games. Zermelo's iteration, of 1929, finds the strengths without a gradient."""
    rng = generator("tournament")
    true = torch.randn(5, generator=rng, dtype=torch.float64)
    i, j = torch.randint(5, (2, 600), generator=rng)
    i, j = i[i != j], j[i != j]
    i_won = torch.rand(len(i), generator=rng) < torch.sigmoid(true[i] - true[j])
    winner, loser = torch.where(i_won, i, j), torch.where(i_won, j, i)
    rewards = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([rewards], max_iter=200, tolerance_grad=1e-10, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        loss = answers.pairwise_loss(rewards[winner], rewards[loser])
        loss.backward()
        return loss

    optimizer.step(closure)
    wins = np.zeros((5, 5))
    np.add.at(wins, (winner.numpy(), loser.numpy()), 1)
    strength = np.ones(5)
    for _ in range(500):
        strength = wins.sum(1) / ((wins + wins.T) / (strength[:, None] + strength)).sum(1)
    ours, theirs = rewards.detach().numpy(), np.log(strength)
    np.testing.assert_allclose(ours - ours.mean(), theirs - theirs.mean(), atol=1e-4)


@pytest.mark.parametrize("bins", [1, 5, 10, 200])
def test_calibration_is_what_histograms_say(answers, bins):
    rng = generator("calibration")
    probabilities = torch.rand(300, generator=rng, dtype=torch.float64)
    preferred = torch.rand(300, generator=rng) < 0.3 + 0.5 * probabilities
    p, y = probabilities.numpy(), preferred.numpy().astype(float)
    count, total, won = (np.histogram(p, bins, (0, 1), weights=w)[0] for w in (np.ones(300), p, y))
    found = answers.calibration(probabilities, preferred, bins)
    np.testing.assert_array_equal(found.count.numpy(), count)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(found.predicted.numpy(), total / count)
        np.testing.assert_allclose(found.observed.numpy(), won / count)
    error = answers.expected_calibration_error(probabilities, preferred, bins).item()
    assert error == pytest.approx(np.abs(won - total).sum() / 300)


def test_the_trap_of_chosen_first(answers):
    """What the text says: with the chosen response always first, the curve is 1 everywhere."""
    first, second = 2 * randn(2, 20_000, seed="trap")
    probability = answers.preference_probability(first, second)
    preferred = torch.rand(20_000, generator=generator("labels")) < probability
    assert answers.expected_calibration_error(probability, preferred) < 0.02
    trap = torch.where(preferred, probability, 1 - probability)
    always = torch.ones_like(preferred)
    assert answers.calibration(trap, always).observed.tolist() == [1.0] * 10
    assert answers.expected_calibration_error(trap, always) > 0.1


def test_shift_changes_no_preference_and_a_scale_would(answers):
    rewards, demonstrations = 3 * randn(2, 6, seed="shift") + 2
    shifted = answers.shift_rewards(rewards, demonstrations)
    rank = torch.randperm(6, generator=generator("shift"))
    before = answers.ranking_loss([rewards], [rank])
    torch.testing.assert_close(answers.ranking_loss([shifted], [rank]), before, **CLOSE)
    scaled = shifted / demonstrations.std()
    assert (answers.ranking_loss([scaled], [rank]) - before).abs() > 1e-3
