"""Quantisation against torch's own quantisers, NumPy's integers, exhaustive search, simulation and printed numbers."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from autograder.loader import reference
from lab import checkpoints, generator

CLOSE = {"rtol": 0.0, "atol": 1e-9}

# The sixteen levels as bitsandbytes, the code of QLoRA, prints them.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip


@pytest.fixture
def quantization():
    return reference("open_weights", "quantization")


def randn(*shape, seed):
    return torch.randn(shape, generator=generator(f"quantization {seed}"), dtype=torch.float64)


@pytest.mark.parametrize("bits", range(2, 9))
def test_values_are_the_nearest_levels_by_exhaustive_search(quantization, bits):
    weights = randn(4, 9, seed=f"nearest {bits}")
    scale = quantization.absmax_scale(weights, bits)
    levels = torch.arange(1 - 2 ** (bits - 1), 2 ** (bits - 1), dtype=torch.float64)
    distances = (weights[..., None] - scale[:, None, None] * levels).abs()
    found = quantization.quantize(weights, scale, bits)
    assert torch.equal(found, levels[distances.argmin(-1)].to(torch.int8))
    assert (found.abs().amax(-1) == levels[-1]).all()  # the largest weight is on the outermost


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rows_are_as_torchs_fake_quantiser_has_them(quantization, bits):
    weights = randn(5, 17, seed=f"fake {bits}").float()
    scale = quantization.absmax_scale(weights, bits)
    largest = quantization.largest_level(bits)
    expected = torch.fake_quantize_per_channel_affine(
        weights, scale, torch.zeros(5, dtype=torch.int32), 0, -largest, largest
    )
    found = quantization.dequantize(quantization.quantize(weights, scale, bits), scale)
    torch.testing.assert_close(found, expected)


def test_a_whole_tensor_is_as_torchs_fake_quantiser_has_it(quantization):
    weights = randn(3, 11, seed="tensor").float()
    scale = quantization.absmax_scale(weights.flatten(), 8)
    expected = torch.fake_quantize_per_tensor_affine(weights, scale.item(), 0, -127, 127)
    values = quantization.quantize(weights.flatten(), scale, 8)
    found = quantization.dequantize(values, scale).view(3, 11)
    torch.testing.assert_close(found, expected)


def test_a_small_scale_saturates_and_never_wraps(quantization):
    weights = torch.linspace(-400, 400, 81, dtype=torch.float64)
    found = quantization.quantize(weights, torch.tensor(1.0, dtype=torch.float64), 8)
    assert np.array_equal(found.numpy(), np.clip(weights.numpy(), -127, 127).astype(np.int8))


@pytest.mark.parametrize("mean_square, rounded", [(1 / 12, torch.round), (1 / 3, torch.trunc)])
def test_error_of_rounding_is_what_the_integral_says(mean_square, rounded):
    """Of many weights on many levels: s²/12 to the nearest, s²/3 towards zero."""
    steps = 40 * randn(400_000, seed="integral")
    found = (steps - rounded(steps)).square().mean().item()
    assert found == pytest.approx(mean_square, rel=0.01)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_prediction_is_what_a_simulation_measures(quantization, bits):
    weights = randn(200, 512, seed="simulation") * (1 + torch.arange(200)[:, None] / 50)
    scale = quantization.absmax_scale(weights, bits)
    approximation = quantization.dequantize(quantization.quantize(weights, scale, bits), scale)
    measured = quantization.signal_to_noise(weights, approximation).item()
    predicted = quantization.predicted_signal_to_noise(weights, bits).item()
    assert measured == pytest.approx(predicted, abs=0.2)


def test_a_bit_is_worth_six_decibels_and_an_outlier_costs_its_share(quantization):
    weights = randn(8, 256, seed="bit").clamp(-3, 3)
    weights[:, 0] = 3.0
    at = {bits: quantization.predicted_signal_to_noise(weights, bits).item() for bits in (7, 8)}
    assert at[8] - at[7] == pytest.approx(20 * math.log10(127 / 63))
    assert at[8] - at[7] == pytest.approx(6.02, abs=0.1)
    # A step ten times as large costs 20 dB, less what the outlier adds to the power of the signal.
    spoilt = weights.clone()
    spoilt[:, 0] = 30.0
    power = (spoilt.square().sum() / weights.square().sum()).log10().item()
    lost = at[8] - quantization.predicted_signal_to_noise(spoilt, 8).item()
    assert lost == pytest.approx(20 - 10 * power)


@pytest.mark.parametrize("size", [1, 4, 5, 12, 50])
def test_groups_are_slices_quantised_alone(quantization, size):
    weights = randn(3, 12, seed="slices")
    values, scales = quantization.quantize_groups(weights, 4, size)
    back = quantization.dequantize_groups(values, scales, size)
    for group, start in enumerate(range(0, 12, size)):
        part = weights[:, start : start + size]
        scale = part.abs().amax(1) / 7
        torch.testing.assert_close(scales[:, group], scale, **CLOSE)
        assert ((back[:, start : start + size] - part).abs() <= scale[:, None] / 2 + 1e-12).all()
    assert values.shape == weights.shape
    if size == 1:  # a weight alone is its own scale
        torch.testing.assert_close(back, weights, **CLOSE)


def test_what_was_quantised_once_stays_as_it_is(quantization):
    values, scales = quantization.quantize_groups(randn(3, 10, seed="again"), 4, 4)
    again = quantization.dequantize_groups(values, scales, 4)
    values_again, scales_again = quantization.quantize_groups(again, 4, 4)
    assert torch.equal(values, values_again)
    torch.testing.assert_close(scales, scales_again, **CLOSE)


def test_size_is_that_of_llama_cpps_blocks(quantization):
    """Q4_0 and Q8_0: 32 weights in 2 + 16 and in 2 + 32 bytes."""
    assert quantization.bits_per_weight(4096, 4, 32) == 8 * 18 / 32
    assert quantization.bits_per_weight(4096, 8, 32) == 8 * 34 / 32


def test_every_pair_of_values_packs_into_its_byte_and_back(quantization):
    values = torch.arange(-8, 8, dtype=torch.int8)
    pairs = torch.cartesian_prod(values, values)
    packed = quantization.pack_int4(pairs)
    low, high = (pairs.numpy().view(np.uint8) & 0xF).T
    assert np.array_equal(packed[:, 0].numpy(), high << 4 | low)
    assert len(packed.unique()) == 256
    assert torch.equal(quantization.unpack_int4(packed, 2), pairs)
    odd = pairs.flatten()[:-1]
    assert torch.equal(quantization.unpack_int4(quantization.pack_int4(odd), len(odd)), odd)


def test_packing_leaves_its_input_alone(quantization):
    values = torch.tensor([[1, -2, 3]], dtype=torch.int8)
    kept = values.clone()
    quantization.pack_int4(values)
    assert torch.equal(values, kept)


@pytest.mark.parametrize("bits, bound", [(4, 0.12), (8, 0.01)])
def test_layer_is_nearly_the_linear_layer_it_was_made_from(quantization, bits, bound):
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    layer = quantization.QuantizedLinear(linear.weight, linear.bias, bits, 16)
    x = randn(5, 64, seed="layer").float()
    error = (layer(x) - linear(x)).norm() / (linear(x) - linear.bias).norm()
    assert 0 < error < bound
    assert list(layer.parameters()) == []


def test_gradient_through_the_layer_by_finite_differences(quantization):
    layer = quantization.QuantizedLinear(randn(4, 7, seed="grad"), randn(4, seed="bias"), 4, 3)
    x = randn(3, 7, seed="input").requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("bits", [4, 8])
def test_what_a_layer_keeps_is_what_the_formula_counts(quantization, bits):
    layer = quantization.QuantizedLinear(randn(6, 40, seed="kept"), None, bits, 16)
    kept = sum(tensor.nbytes for tensor in layer.state_dict().values())
    assert 8 * kept == quantization.bits_per_weight(40, bits, 16) * 6 * 40


def test_normal_float_is_what_bitsandbytes_prints(quantization):
    torch.testing.assert_close(
        quantization.normal_float_levels(4), torch.tensor(NF4), rtol=0.0, atol=1e-6
    )


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_normal_float_levels_are_quantiles(quantization, bits):
    """By SciPy: equal shares of the normal distribution between neighbours, on either side of 0."""
    levels = quantization.normal_float_levels(bits).double().numpy()
    half = 2 ** (bits - 1)
    highest = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    shares = norm.cdf(levels * norm.ppf(highest))
    np.testing.assert_allclose(np.diff(shares[half - 1 :]), (highest - 0.5) / half, atol=1e-6)
    if bits > 2:
        spacing = (highest - 0.5) / (half - 1)
        np.testing.assert_allclose(np.diff(shares[:half]), spacing, atol=1e-6)
    assert levels[half - 1] == 0 and levels[0] == -1 and levels[-1] == 1


def test_normal_float_beats_integers_on_normal_weights_of_a_row(quantization):
    """The point of it, where a scale serves many weights."""
    weights = randn(64, 512, seed="normal")
    scale = quantization.absmax_scale(weights, 4)
    integers = quantization.dequantize(quantization.quantize(weights, scale, 4), scale)
    levels = quantization.normal_float_levels(4)
    normal = quantization.codebook_dequantize(
        *quantization.codebook_quantize(weights, levels), levels
    )
    ratios = [quantization.signal_to_noise(weights, w).item() for w in (integers, normal)]
    assert ratios[1] > ratios[0] + 1


def test_codebook_of_equal_steps_is_absmax(quantization):
    weights = randn(5, 20, seed="codebook")
    indices, scale = quantization.codebook_quantize(weights, torch.arange(-7, 8).double() / 7)
    values = quantization.quantize(weights, quantization.absmax_scale(weights, 4), 4)
    assert torch.equal(indices - 7, values.long())
    torch.testing.assert_close(scale, weights.abs().amax(1), **CLOSE)


def test_the_courses_gpt_reads_on_at_eight_bits_and_not_at_two(quantization):
    """What the experiment shows, on a few lines."""
    gpt = checkpoints.load("gpt")
    trained = gpt.model.state_dict()
    text = "Blow, winds, and crack your cheeks! rage! blow!\nYou cataracts "
    tokens = gpt.encode(text)[None]

    @torch.no_grad()
    def loss(bits, size):
        changed = {}
        for name, tensor in trained.items():
            changed[name] = tensor
            if tensor.dim() == 2:
                values, scales = quantization.quantize_groups(tensor, bits, size)
                changed[name] = quantization.dequantize_groups(values, scales, size)
        model = checkpoints.load("gpt").model
        model.load_state_dict(changed)
        return nn.functional.cross_entropy(model(tokens[:, :-1])[0], tokens[0, 1:]).item()

    with torch.no_grad():
        full = nn.functional.cross_entropy(gpt.model(tokens[:, :-1])[0], tokens[0, 1:]).item()
    assert loss(8, 32) == pytest.approx(full, abs=0.02)
    assert loss(4, 32) == pytest.approx(full, abs=0.2)
    assert loss(2, 512) > full + 1
