"""The tools of scaling laws against Hugging Face's counts, scipy's fits and the published numbers."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize
from transformers import GPT2Config, GPT2LMHeadModel

from autograder.loader import reference


@pytest.fixture
def scaling():
    return reference("pretraining", "scaling")


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "layers, width, vocab, context, d_ff",
    [(0, 4, 9, 5, None), (1, 6, 11, 7, None), (3, 8, 20, 16, 12), (12, 768, 50257, 1024, None)],
)
def test_parameters_are_those_of_hugging_faces_gpt2(scaling, layers, width, vocab, context, d_ff):
    with torch.device("meta"):
        model = GPT2LMHeadModel(
            GPT2Config(
                n_layer=layers,
                n_embd=width,
                n_head=2,
                vocab_size=vocab,
                n_positions=context,
                n_inner=d_ff,
            )
        )
    total = sum(p.numel() for p in model.parameters())
    embeddings = model.transformer.wte.weight.numel() + model.transformer.wpe.weight.numel()
    count = scaling.transformer_params(layers, width, vocab, context, d_ff)
    assert count == (total - embeddings, total)


def test_gpt3_has_175_billion_parameters_and_took_3e23_flops(scaling):
    count = scaling.transformer_params(96, 12288, 50257, 2048)
    assert count.total == pytest.approx(175e9, rel=0.005)
    assert count.non_embedding == pytest.approx(12 * 96 * 12288**2, rel=1e-3)
    assert scaling.training_flops(count.non_embedding, 300e9) == pytest.approx(3.14e23, rel=0.01)


def test_attention_is_a_small_part_of_gpt3(scaling):
    count = scaling.transformer_params(96, 12288, 50257, 2048)
    share = scaling.attention_flops(96, 12288, 2048, 1) / scaling.training_flops(
        count.non_embedding, 1
    )
    assert share == pytest.approx(2048 / (12 * 12288), rel=1e-3)


def test_flops_are_those_of_the_products(scaling):
    """A tiny causal model, its multiplications counted by hand, where every matrix is applied to every token."""
    layers, width, context = 2, 8, 1024
    forward = 0
    for _ in range(layers):
        forward += context * 2 * (4 * width**2 + 8 * width**2)
        forward += sum(2 * 2 * width * (i + 1) for i in range(context))
    matrices = layers * 12 * width**2
    ours = scaling.training_flops(matrices, context)
    ours += scaling.attention_flops(layers, width, context, context)
    assert ours == pytest.approx(3 * forward, rel=2e-3)


@pytest.mark.parametrize("seed", range(5))
def test_line_is_that_of_polyfit(scaling, seed):
    x = (5 * torch.rand(9, generator=generator(seed), dtype=torch.float64)).exp()
    y = x**-0.3 * (0.2 * torch.randn(9, generator=generator(100 + seed)).double()).exp()
    law = scaling.fit_power_law(x, y)
    slope, intercept = np.polyfit(x.log().numpy(), y.log().numpy(), 1)
    assert law.exponent == pytest.approx(-slope)
    assert law.coefficient == pytest.approx(math.exp(intercept))
    assert law.irreducible == 0


@pytest.mark.parametrize("seed", range(8))
def test_no_floor_that_scipy_finds_is_better(scaling, seed):
    x = (2 + 4 * torch.rand(9, generator=generator(seed), dtype=torch.float64)).exp()
    noise = (0.05 * torch.randn(9, generator=generator(100 + seed)).double()).exp()
    y = 1 + 3 * x**-0.4 * noise

    def squares(floor):
        v, u = np.log(y.numpy() - floor), x.log().numpy()
        return float(np.square(v - np.polyval(np.polyfit(u, v, 1), u)).sum())

    law = scaling.fit_power_law(x, y, irreducible=True)
    smallest = y.min().item()
    best = optimize.brute(
        lambda f: squares(f[0]) if 0 <= f[0] < smallest else 9e9, [(0, smallest * 0.9999)], Ns=500
    )
    assert squares(law.irreducible) <= squares(best.item()) * (1 + 1e-6)


@pytest.mark.parametrize("floor", [0.0, 1e-3, 0.5, 1.69, 3.0])
def test_a_planted_law_is_found_again(scaling, floor):
    x = torch.logspace(3, 9, 8, dtype=torch.float64)
    law = scaling.fit_power_law(x, floor + 40 * x**-0.34, irreducible=True)
    assert law.exponent == pytest.approx(0.34, rel=1e-4)
    assert law.coefficient == pytest.approx(40, rel=1e-3)
    assert law.irreducible == pytest.approx(floor, rel=1e-4, abs=1e-6)
    assert torch.allclose(law.at(x), floor + 40 * x**-0.34)


def test_a_floor_left_out_makes_the_exponent_too_small(scaling):
    x = torch.logspace(6, 10, 9, dtype=torch.float64)
    y = 1.69 + 406.4 * x**-0.34
    assert scaling.fit_power_law(x, y).exponent < 0.15
    assert scaling.fit_power_law(x, y, irreducible=True).exponent == pytest.approx(0.34, rel=1e-3)


def test_points_in_float32_will_do(scaling):
    x = torch.tensor([1e3, 1e4, 1e5, 1e6])
    law = scaling.fit_power_law(x, 5 * x**-0.25)
    assert law.exponent == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("name", ["HOFFMANN", "BESIROGLU"])
@pytest.mark.parametrize("flops", [1e18, 5.88e23])
def test_no_other_split_of_the_budget_is_better(scaling, name, flops):
    law = getattr(scaling, name)
    best = scaling.chinchilla_optimal(law, flops)
    assert scaling.training_flops(*best) == pytest.approx(flops)
    found = optimize.minimize_scalar(
        lambda log_n: scaling.predicted_loss(law, math.exp(log_n), flops / 6 / math.exp(log_n)),
        bounds=(math.log(1e5), math.log(1e15)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert math.log(best.params) == pytest.approx(found.x, abs=1e-4)
    assert scaling.predicted_loss(law, *best) == pytest.approx(found.fun, rel=1e-9)


def test_published_losses(scaling):
    """Chinchilla, 70B on 1.4T tokens, against GPT-3, 175B on 300B, by the constants of Hoffmann et al."""
    law = scaling.HOFFMANN
    assert scaling.predicted_loss(law, 70e9, 1.4e12) == pytest.approx(1.937, abs=1e-3)
    assert scaling.predicted_loss(law, 175e9, 300e9) == pytest.approx(2.002, abs=1e-3)


def test_refit_comes_nearer_to_twenty_tokens_a_parameter(scaling):
    flops = scaling.training_flops(70e9, 1.4e12)
    ratios = {
        name: best.tokens / best.params
        for name in ("HOFFMANN", "BESIROGLU")
        for best in [scaling.chinchilla_optimal(getattr(scaling, name), flops)]
    }
    assert abs(math.log(ratios["BESIROGLU"] / 20)) < abs(math.log(ratios["HOFFMANN"] / 20))
    assert ratios["BESIROGLU"] == pytest.approx(20, rel=0.35)


@pytest.mark.parametrize("length", [1, 3, 8])
def test_independent_errors_give_the_expected_exact_match(scaling, length):
    targets = torch.zeros(20_000, length, dtype=torch.int64)
    wrong = torch.rand(20_000, length, generator=generator(length)) < 0.2
    accuracy = scaling.token_accuracy(wrong.long(), targets)
    assert accuracy == pytest.approx(0.8, abs=0.015)
    expected = scaling.expected_exact_match(torch.tensor(0.8), length).item()
    assert scaling.exact_match(wrong.long(), targets) == pytest.approx(expected, abs=0.015)


def test_numbers_in_the_text(scaling):
    """At p = 0.5 ten tokens are right once in a thousand, at 0.9 in 0.35 of the answers."""
    half, most = scaling.expected_exact_match(torch.tensor([0.5, 0.9]), 10).tolist()
    assert half == pytest.approx(1 / 1024)
    assert most == pytest.approx(0.35, abs=0.002)
