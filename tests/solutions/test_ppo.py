"""PPO against other ways to compute the same: torch's divergence, a filter, exact gradients of a small world."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from autograder.loader import reference
from lab import generator

CLOSE = {"rtol": 0.0, "atol": 1e-9}


@pytest.fixture
def ppo():
    return reference("alignment", "ppo")


def randn(*shape, seed):
    return torch.randn(shape, generator=generator(f"ppo {seed}"), dtype=torch.float64)


def runs(starts, lengths, total):
    """A mask: in each row one response, after a prompt and before padding."""
    places = torch.arange(total) - torch.tensor(starts)[:, None]
    return (places >= 0) & (places < torch.tensor(lengths)[:, None])


def test_estimates_average_to_torchs_divergence(ppo):
    policy, base = (torch.distributions.Categorical(logits=x) for x in randn(2, 9, seed="kl"))
    k1, k2, k3 = ppo.kl_estimators(policy.logits, base.logits)
    exact = torch.distributions.kl_divergence(policy, base)
    for unbiased in (k1, k3):
        torch.testing.assert_close((policy.probs * unbiased).sum(), exact, **CLOSE)
    assert abs((policy.probs * k2).sum() - exact) > 0.1  # k2 is biased, here visibly
    assert (k3 > 0).all() and (k1 < 0).any()


def test_k2_and_k3_agree_near_the_reference(ppo):
    """What the text derives from the expansion: both are u²/2 where u is small."""
    base = randn(9, seed="near").log_softmax(-1)
    near = (base + 1e-4 * randn(9, seed="step")).log_softmax(-1)
    _, k2, k3 = ppo.kl_estimators(near, base)
    torch.testing.assert_close(k2, k3, rtol=1e-3, atol=0.0)


def test_k3_scatters_less_than_k1(ppo):
    policy, base = randn(50, seed="scatter"), randn(50, seed="scatter of the other")
    policy, base = (0.3 * policy).log_softmax(-1), (0.3 * base).log_softmax(-1)
    k1, k2, k3 = ppo.kl_estimators(policy, base)

    def deviation(k):
        mean = (policy.exp() * k).sum()
        return (policy.exp() * (k - mean) ** 2).sum().sqrt()

    assert deviation(k2) < deviation(k1)
    assert deviation(k3) < deviation(k1)


def test_rewards_add_up_to_equation_2(ppo):
    mask = runs([2, 0, 4], [3, 6, 1], 6)
    policy, base = randn(2, 3, 6, seed="rewards")
    scores = randn(3, seed="scores")
    rewards = ppo.kl_shaped_rewards(scores, policy, base, mask, 0.3)
    for row, real, score, p, q in zip(rewards, mask, scores, policy, base, strict=True):
        assert row.sum().item() == pytest.approx((score - 0.3 * (p[real] - q[real]).sum()).item())
        last = real.nonzero()[-1]
        assert (row[last] - score + 0.3 * (p[last] - q[last])).abs() < 1e-12
        assert not row[~real].any()


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.6), (0.7, 0.0), (0.8, 1.0)])
def test_advantages_are_a_filter_of_the_deltas(ppo, gamma, lam):
    """The recursion is a one-pole filter that runs backwards; SciPy has that."""
    rewards, values = randn(2, 4, 8, seed="gae")
    starts, lengths = [0, 3, 2, 7], [8, 5, 1, 1]
    mask = runs(starts, lengths, 8)
    advantages, returns = ppo.gae(rewards, values, mask, gamma, lam)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        here = slice(start, start + length)
        r, v = rewards[row, here].numpy(), values[row, here].numpy()
        deltas = r + gamma * np.append(v[1:], 0.0) - v
        expected = lfilter([1.0], [1.0, -gamma * lam], deltas[::-1])[::-1]
        np.testing.assert_allclose(advantages[row, here], expected, atol=1e-9)
        np.testing.assert_allclose(returns[row, here], expected + v, atol=1e-9)
    assert not advantages[~mask].any() and not returns[~mask].any()


def test_exact_values_leave_no_advantage(ppo):
    """Where nothing is random and the values are right, no token is better than expected, for any λ."""
    rewards, mask = randn(2, 5, seed="sure"), torch.ones(2, 5, dtype=torch.bool)
    values = rewards.flip(1).cumsum(1).flip(1)
    for lam in (0.0, 0.5, 1.0):
        advantages, returns = ppo.gae(rewards, values, mask, 1.0, lam)
        torch.testing.assert_close(advantages, torch.zeros_like(advantages), **CLOSE)
        torch.testing.assert_close(returns, values, **CLOSE)


@pytest.mark.parametrize("shift", [True, False])
def test_whitened_as_numpy_does(ppo, shift):
    values, mask = 3 * randn(5, 7, seed="whiten") + 2, runs([1, 0, 3, 2, 6], [3, 7, 2, 4, 1], 7)
    real = ppo.whiten(values, mask, shift)[mask].numpy()
    expected = (values[mask].numpy() - values[mask].numpy().mean()) / values[mask].numpy().std()
    np.testing.assert_allclose(
        real, expected + (0.0 if shift else values[mask].mean().item()), atol=1e-7
    )
    assert real.std() == pytest.approx(1.0)


def small_world():
    """All responses over three tokens of which 0 ends one, of at most three tokens, and a bigram policy."""
    responses = []
    for length in (1, 2, 3):
        for said in itertools.product((1, 2), repeat=length - 1):
            responses += [(*said, last) for last in ((0, 1, 2) if length == 3 else (0,))]
    return responses, randn(3, 3, seed="policy"), randn(3, 3, seed="base")


def log_probs_of(response, table):
    """The first token follows on the prompt, which is token 0."""
    log_probs = table.log_softmax(-1)
    return torch.stack([log_probs[a, b] for a, b in zip((0, *response), response, strict=False)])[
        None
    ]


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_pieces_together_are_the_gradient_of_equation_2(ppo, lam):
    """Over all responses the first step of PPO climbs the objective exactly, for any λ, if the values are right."""
    responses, table, base = small_world()
    scores, beta = randn(len(responses), seed="world's scores"), 0.4
    table = table.requires_grad_()
    found = [(log_probs_of(r, table), log_probs_of(r, base)) for r in responses]
    probabilities = torch.cat([new.sum()[None] for new, _ in found]).exp()
    assert probabilities.sum().item() == pytest.approx(1.0)
    ratios = torch.stack([(new - old).sum() for new, old in found])
    objective = (probabilities * (scores - beta * ratios)).sum()
    (right,) = torch.autograd.grad(objective, table, retain_graph=True)

    rewards = [
        ppo.kl_shaped_rewards(score[None], new, old, torch.ones_like(new, dtype=torch.bool), beta)
        for score, (new, old) in zip(scores, found, strict=True)
    ]

    def value(prefix):
        """What is to be expected, on average, after these tokens."""
        chances, earned = [], []
        for response, chance, reward in zip(responses, probabilities, rewards, strict=True):
            if response[: len(prefix)] == prefix:
                chances.append(chance.item())
                earned.append(reward[0, len(prefix) :].sum().item())
        return np.average(earned, weights=chances)

    loss = 0.0
    for response, chance, reward, (new, _) in zip(
        responses, probabilities.detach(), rewards, found, strict=True
    ):
        values = torch.tensor([[value(response[:t]) for t in range(len(response))]]).double()
        mask = torch.ones_like(values, dtype=torch.bool)
        advantages, _ = ppo.gae(reward, values, mask, 1.0, lam)
        of_tokens = ppo.ppo_policy_loss(new, new.detach(), advantages, mask).loss
        loss = loss + chance * len(response) * of_tokens  # the loss is a mean over tokens
    (climbed,) = torch.autograd.grad(-loss, table)
    torch.testing.assert_close(climbed, right, **CLOSE)


def test_objective_never_believes_more_than_is_measured(ppo):
    """The minimum is a lower bound of what importance sampling says, token by token."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    for log_ratio, advantage in itertools.product((-1.0, -0.1, 0.0, 0.1, 1.0), (-2.0, 2.0)):
        new, a = torch.tensor([[log_ratio]]), torch.tensor([[advantage]])
        believed = -ppo.ppo_policy_loss(new, torch.zeros(1, 1), a, mask).loss
        assert believed <= math.exp(log_ratio) * advantage + 1e-6


def test_gradients_by_finite_differences(ppo):
    new, old, advantages = randn(3, 2, 4, seed="policy loss")
    mask = runs([1, 0], [2, 4], 4)
    new = (old + 0.3 * new).requires_grad_()
    values, old_values = randn(2, 2, 4, seed="values")
    values.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: ppo.ppo_policy_loss(x, old, advantages, mask).loss, (new,)
    )
    assert torch.autograd.gradcheck(
        lambda v: ppo.value_loss(v, old_values, advantages, mask), (values,)
    )


def test_value_loss_by_numpy(ppo):
    values, old, returns = randn(3, 4, 6, seed="value loss")
    mask, c = runs([0, 1, 2, 5], [6, 2, 3, 1], 6), 0.4
    v, o, r = (x[mask].numpy() for x in (values, old, returns))
    worse = np.maximum((v - r) ** 2, (np.clip(v, o - c, o + c) - r) ** 2)
    assert ppo.value_loss(values, old, returns, mask, c).item() == pytest.approx(worse.mean() / 2)


def test_empty_row_changes_nothing(ppo):
    four, mask = randn(4, 3, 5, seed="empty"), runs([1, 0, 2], [2, 0, 3], 5)
    kept = torch.tensor([0, 2])
    for loss in (
        lambda *x: ppo.ppo_policy_loss(*x).loss,
        ppo.value_loss,
    ):
        torch.testing.assert_close(
            loss(*four[:3], mask), loss(*four[:3, kept], mask[kept]), **CLOSE
        )
