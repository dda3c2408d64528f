"""DPO against other ways to compute the same: Hugging Face's loss, exact small worlds, a search for the optimum."""

import itertools
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from autograder.loader import reference
from lab import generator

CLOSE = {"rtol": 0.0, "atol": 1e-9}


@pytest.fixture
def dpo():
    return reference("alignment", "dpo")


def randn(*shape, seed):
    return torch.randn(shape, generator=generator(f"dpo {seed}"), dtype=torch.float64)


def minimised(loss_of, logits):
    """The logits at the minimum, found by descent."""
    logits = logits.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=500,
        tolerance_grad=1e-11,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = loss_of(logits.log_softmax(-1))
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().log_softmax(-1)


def test_log_probs_are_hugging_faces_loss(dpo):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=4, n_head=1, n_layer=1))
    model = model.eval()
    tokens = torch.randint(9, (1, 8), generator=generator("tokens"))
    mask = torch.arange(8)[None] >= 3
    with torch.no_grad():
        loss = model(tokens, labels=tokens.masked_fill(~mask, -100)).loss
        found = dpo.sequence_log_probs(model(tokens).logits, tokens, mask)
    torch.testing.assert_close(found, -loss[None] * 5, rtol=0.0, atol=1e-5)


def test_probabilities_of_all_responses_add_up_to_one(dpo):
    """All texts of three tokens after a prompt, under logits that depend on what was read."""
    table = 2 * randn(3, 3, seed="bigram")
    responses = torch.tensor(list(itertools.product(range(3), repeat=3)))
    tokens = torch.cat([torch.tensor([[1, 2]]).expand(27, 2), responses], dim=1)
    mask = (torch.arange(5) >= 2).expand(27, 5)
    log_probs = dpo.sequence_log_probs(table[tokens], tokens, mask)
    assert log_probs.exp().sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_optimum_is_what_a_search_finds(dpo, beta):
    base, rewards = randn(5, seed="base").log_softmax(-1), randn(5, seed="rewards")
    found = minimised(lambda p: -dpo.kl_objective(p, base, rewards, beta), torch.zeros_like(base))
    best = dpo.optimal_log_probs(base, rewards, beta)
    torch.testing.assert_close(found.exp(), best.exp(), rtol=0.0, atol=1e-5)
    log_z = math.log(
        sum(math.exp(b + r / beta) for b, r in zip(base.tolist(), rewards.tolist(), strict=True))
    )
    assert dpo.kl_objective(best, base, rewards, beta).item() == pytest.approx(beta * log_z)


def test_objective_is_torchs_kl(dpo):
    policy, base = randn(2, 6, seed="kl").log_softmax(-1)
    rewards = randn(6, seed="kl rewards")
    kl = torch.nn.functional.kl_div(base, policy, log_target=True, reduction="sum")
    expected = policy.exp() @ rewards - 0.7 * kl
    torch.testing.assert_close(dpo.kl_objective(policy, base, rewards, 0.7), expected, **CLOSE)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_dpo_leads_to_the_optimum_of_the_constrained_problem(dpo, beta):
    """The point of the exercise: the same policy, with no reward model and no reinforcement learning."""
    base, rewards = randn(5, seed="bandit").log_softmax(-1), randn(5, seed="bandit rewards")
    found = minimised(lambda p: dpo.expected_dpo_loss(p, base, rewards, beta), base)
    best = dpo.optimal_log_probs(base, rewards, beta)
    torch.testing.assert_close(found.exp(), best.exp(), rtol=0.0, atol=1e-4)


def test_expected_loss_is_the_mean_of_the_loss_over_choices(dpo):
    """Every ordered pair as a comparison, with the probability of its choice as weight."""
    policy, base = randn(2, 4, seed="expected").log_softmax(-1)
    rewards = randn(4, seed="expected rewards")
    total = 0.0
    for w, l in itertools.permutations(range(4), 2):  # noqa: E741
        chance = torch.sigmoid(rewards[w] - rewards[l])
        total += chance * dpo.dpo_loss(policy[[w]], policy[[l]], base[[w]], base[[l]], 0.3)
    torch.testing.assert_close(
        dpo.expected_dpo_loss(policy, base, rewards, 0.3), total / 6, **CLOSE
    )


def test_loss_is_the_reward_models_on_implicit_rewards(dpo):
    reward_model = reference("alignment", "reward_model")
    four = randn(4, 9, seed="four")
    implicit = [dpo.implicit_reward(four[i], four[i + 2], 0.4) for i in (0, 1)]
    expected = reward_model.pairwise_loss(*implicit)
    torch.testing.assert_close(dpo.dpo_loss(*four, 0.4), expected, **CLOSE)
    accuracy = dpo.preference_metrics(*four, 0.4).accuracy
    torch.testing.assert_close(accuracy, reward_model.comparison_accuracy(*implicit), **CLOSE)


def test_gradient_by_finite_differences(dpo):
    chosen, rejected = (randn(4, seed=name).requires_grad_() for name in ("chosen", "rejected"))
    frozen = randn(2, 4, seed="frozen")
    assert torch.autograd.gradcheck(
        lambda *policy: dpo.dpo_loss(*policy, *frozen, 0.7), (chosen, rejected)
    )


def test_before_the_first_step(dpo):
    """What the text says: loss ln 2, accuracy one half."""
    chosen, rejected = randn(2, 5, seed="start")
    assert dpo.dpo_loss(chosen, rejected, chosen, rejected).item() == pytest.approx(math.log(2))
    assert dpo.preference_metrics(chosen, rejected, chosen, rejected).accuracy == 0.5
