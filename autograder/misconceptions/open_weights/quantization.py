"""Wrong answers to the exercise on quantisation."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

LEVEL = "return 2 ** (bits - 1) - 1"
SCALE = "return weights.abs().amax(dim=-1) / largest_level(bits)"
ROUNDED = "steps.round().clamp(-largest, largest).to(torch.int8)"
STEPS = "weights / scale.masked_fill(scale == 0, math.inf)[..., None]"
RATIO = "10 * (weights.square().sum() / noise).log10()"
NOISE = "(weights - approximation).square().sum()"
PREDICTED = "absmax_scale(weights, bits).square().mean() / 12"
GROUPED = "F.pad(weights, (0, -columns % group_size)).unflatten(1, (-1, group_size))"
QUANTIZED = "return quantize(grouped, scales, bits).flatten(1)[:, :columns], scales"
SPREAD = "scales.repeat_interleave(group_size, dim=1)[:, :columns]"
SIZE = "bits + scale_bits * math.ceil(columns / group_size) / columns"
PACKED = "nibbles[..., ::2] | nibbles[..., 1::2] << 4"
SIGNED = "(nibbles.to(torch.int8) ^ 8) - 8"
WEIGHT = "dequantize_groups(values, self.scales.to(x.dtype), self.group_size)"

MISCONCEPTIONS = [
    # --- absmax ---
    Misconception(
        name="lowest_integer_used",
        part="absmax",
        says="Your outermost level is 2^(bits − 1), which no signed integer of so many bits reaches: 8 bits end at 127. "
        "The largest weight would wrap round to −128.",
        wrong={LEVEL: "return 2 ** (bits - 1)"},
    ),
    Misconception(
        name="sign_bit_forgotten",
        part="absmax",
        says="Your outermost level is 2^bits − 1, as for integers without a sign. One bit is the sign.",
        wrong={LEVEL: "return 2**bits - 1"},
    ),
    Misconception(
        name="scale_of_the_whole_tensor",
        part="absmax",
        says="Your scale is one for all: the largest weight of the whole tensor. Each vector along the last axis has a "
        "scale of its own.",
        wrong={
            SCALE: "return (weights.abs().amax() / largest_level(bits)).expand(weights.shape[:-1])"
        },
    ),
    Misconception(
        name="largest_without_absolute_value",
        part="absmax",
        says="Your scale looks at the largest weight with its sign. A large negative weight counts as much: take the "
        "absolute values first.",
        wrong={SCALE: "return weights.amax(dim=-1) / largest_level(bits)"},
    ),
    Misconception(
        name="scale_inverted",
        part="absmax",
        says="Your scale is upside down: the number of levels for one unit of weight. It is the distance between two "
        "levels, largest weight over outermost level.",
        wrong={
            SCALE: "return largest_level(bits) / weights.abs().amax(dim=-1)",
            STEPS: "weights * scale.masked_fill(scale.isinf(), 0.0)[..., None]",
            "return values * scale[..., None]": "return values / scale[..., None]",
        },
    ),
    Misconception(
        name="rounds_towards_zero",
        part="absmax",
        says="Your values are rounded towards zero, as a conversion to integers does. Round to the nearest, or you "
        "throw away one bit.",
        wrong={ROUNDED: "steps.clamp(-largest, largest).to(torch.int8)"},
    ),
    Misconception(
        name="rounds_down",
        part="absmax",
        says="Your values are rounded down. Round to the nearest.",
        wrong={ROUNDED: "steps.floor().clamp(-largest, largest).to(torch.int8)"},
    ),
    Misconception(
        name="clamp_forgotten",
        part="absmax",
        says="Your values are not clamped: a weight beyond the outermost level overflows the integer and comes back "
        "with another size and sign.",
        wrong={ROUNDED: "steps.round().to(torch.int8)"},
    ),
    Misconception(
        name="clamped_after_the_conversion",
        part="absmax",
        says="Your values become int8 first and are clamped then, when what int8 cannot hold has wrapped round already.",
        wrong={ROUNDED: "steps.round().to(torch.int8).clamp(-largest, largest)"},
    ),
    Misconception(
        name="clamped_to_the_lowest_integer",
        part="absmax",
        says="Your clamp lets −2^(bits − 1) through. The levels are the same on both sides of 0.",
        wrong={ROUNDED: "steps.round().clamp(-largest - 1, largest).to(torch.int8)"},
    ),
    Misconception(
        name="zeros_divided_by_zero",
        part="absmax",
        says="Your values are no numbers where the scale is 0: 0/0. A vector of zeros occurs, and its values are 0.",
        wrong={
            STEPS: "weights / scale[..., None]",
            ROUNDED: "steps.round().clamp(-largest, largest).nan_to_num(-largest).to(torch.int8)",
        },
    ),
    # --- error ---
    Misconception(
        name="twenty_times_the_logarithm",
        part="error",
        says="Your decibels are 20 times the logarithm of a ratio of powers. Twenty belongs to a ratio of sizes; for "
        "sums of squares it is ten.",
        wrong={RATIO: "20 * (weights.square().sum() / noise).log10()"},
    ),
    Misconception(
        name="noise_above_signal",
        part="error",
        says="Your ratio is upside down: signal above, noise below, so that more decibels are better.",
        wrong={RATIO: "10 * (noise / weights.square().sum()).log10()"},
    ),
    Misconception(
        name="relative_to_the_approximation",
        part="error",
        says="Your signal is the power of the approximation. It is that of the weights, which an approximation of zeros "
        "would show.",
        wrong={RATIO: "10 * (approximation.square().sum() / noise).log10()"},
    ),
    Misconception(
        name="error_of_truncation",
        part="error",
        says="Your predicted noise is s²/3, that of rounding towards zero. To the nearest it is s²/12.",
        wrong={PREDICTED: "absmax_scale(weights, bits).square().mean() / 3"},
    ),
    Misconception(
        name="mean_step_squared",
        part="error",
        says="Your predicted noise squares the mean step. It is the mean of the squared steps: powers add up.",
        wrong={PREDICTED: "absmax_scale(weights, bits).mean().square() / 12"},
    ),
    Misconception(
        name="decibels_averaged",
        part="error",
        says="Your prediction averages the decibels of the vectors. Powers are averaged, and the logarithm comes last.",
        wrong={
            PREDICTED: "absmax_scale(weights, bits).square() / 12",
            "10 * (weights.square().mean() / noise).log10()": (
                "10 * (weights.square().mean(dim=-1) / noise).log10().mean()"
            ),
        },
    ),
    # --- groups ---
    Misconception(
        name="groups_along_the_rows",
        part="groups",
        says="Your groups run down the columns of the matrix, across outputs. They are neighbours within a row, along "
        "the input axis.",
        wrong={
            GROUPED: (
                "F.pad(weights.T, (0, -weights.shape[0] % group_size)).unflatten(1, (-1, group_size))"
            ),
            QUANTIZED: (
                "return quantize(grouped, scales, bits).flatten(1)[:, : weights.shape[0]].T, scales.T"
            ),
        },
    ),
    Misconception(
        name="groups_across_rows",
        part="groups",
        says="Your groups are cut from the flattened matrix, so that one reaches from the end of a row into the next. "
        "Every row starts a new group.",
        wrong={
            GROUPED: (
                "F.pad(weights.flatten(), (0, -weights.numel() % group_size)).unflatten(0, (-1, group_size))"
            ),
            QUANTIZED: (
                "return quantize(grouped, scales, bits).flatten()[: weights.numel()].view(weights.shape), scales"
            ),
        },
    ),
    Misconception(
        name="short_group_dropped",
        part="groups",
        says="Your last group is missing where it is shorter than the others, and its weights with it.",
        wrong={
            GROUPED: (
                "weights[:, : columns - columns % group_size].unflatten(1, (columns // group_size, group_size))"
            )
        },
    ),
    Misconception(
        name="padding_left_in",
        part="groups",
        says="Your values still hold the zeros that filled up the last group. There is one value for each weight.",
        wrong={QUANTIZED: "return quantize(grouped, scales, bits).flatten(1), scales"},
    ),
    Misconception(
        name="scales_in_turn",
        part="groups",
        says="Your scales take turns: first, second, third, first again. The first scale belongs to the first group_size "
        "columns, then comes the second.",
        wrong={SPREAD: "scales.repeat(1, group_size)[:, :columns]"},
    ),
    Misconception(
        name="scales_for_free",
        part="groups",
        says="Your size counts the integers alone. The scales are stored too.",
        wrong={SIZE: "float(bits)"},
    ),
    Misconception(
        name="one_scale_counted_a_row",
        part="groups",
        says="Your size counts one scale for each row. There is one for each group.",
        wrong={SIZE: "bits + scale_bits / columns"},
    ),
    Misconception(
        name="short_group_costs_less",
        part="groups",
        says="Your size counts a part of a scale for the short group at the end of a row. It has a whole one.",
        wrong={SIZE: "bits + scale_bits / group_size"},
    ),
    # --- packing ---
    Misconception(
        name="nibbles_swapped",
        part="packing",
        says="Your bytes have the first value in the high four bits. It belongs into the low ones. Packing and unpacking "
        "your own way round gives no error; other people's files would.",
        wrong={
            PACKED: "nibbles[..., 1::2] | nibbles[..., ::2] << 4",
            "[packed & 15, packed >> 4]": "[packed >> 4, packed & 15]",
        },
    ),
    Misconception(
        name="sign_lost",
        part="packing",
        says="Your unpacked values are all 0 or more: the patterns 8 to 15 stand for −8 to −1.",
        wrong={SIGNED: "nibbles.to(torch.int8)"},
    ),
    Misconception(
        name="offset_instead_of_twos_complement",
        part="packing",
        says="Your packing adds 8 to each value. Some formats do, but two's complement leaves 0 to 7 as they are.",
        wrong={
            "values.shape[-1] % 2)).to(torch.uint8) & 15": "values.shape[-1] % 2)).add(8).to(torch.uint8) & 15",
            SIGNED: "nibbles.to(torch.int8) - 8",
        },
    ),
    Misconception(
        name="high_bits_not_masked",
        part="packing",
        says="Your low half is not cut to four bits: the sign of a negative first value runs over the second.",
        wrong={".to(torch.uint8) & 15": ".to(torch.uint8)"},
    ),
    Misconception(
        name="halves_instead_of_neighbours",
        part="packing",
        says="Your bytes join a value of the first half of the vector with one of the second. Neighbours share a byte.",
        wrong={
            PACKED: (
                "nibbles[..., : nibbles.shape[-1] // 2] | nibbles[..., nibbles.shape[-1] // 2 :] << 4"
            ),
            "dim=-1).flatten(-2)": "dim=-2).flatten(-2)",
        },
    ),
    Misconception(
        name="odd_value_dropped",
        part="packing",
        says="Your packing loses the last value where their number is odd. It has a byte of its own.",
        wrong={
            "F.pad(values, (0, values.shape[-1] % 2))": "values[..., : values.shape[-1] // 2 * 2]"
        },
    ),
    # --- layer ---
    Misconception(
        name="float_weights_kept",
        part="layer",
        says="Your layer keeps Ŵ as real numbers beside the integers, and computes with those. Nothing is saved so.",
        wrong={
            'self.register_buffer("scales", scales.half())': (
                'self.register_buffer("scales", scales.half())\n'
                "        self.kept = dequantize_groups(values, self.scales.double(), group_size)"
            ),
            WEIGHT: "self.kept.to(x.dtype)",
        },
    ),
    Misconception(
        name="computes_in_half_precision",
        part="layer",
        says="Your Ŵ is computed in half precision, so every weight is rounded once more. Half precision is for keeping "
        "scales; compute in the dtype of the input.",
        wrong={WEIGHT: "dequantize_groups(values, self.scales, self.group_size).to(x.dtype)"},
    ),
    Misconception(
        name="not_packed",
        part="layer",
        says="Your layer keeps 4-bit values one to a byte, and takes as much room as 8 bits. Pack them.",
        wrong={
            "pack_int4(values) if bits == 4 else values": "values",
            "unpack_int4(self.values, self.in_features) if self.bits == 4 else self.values": "self.values",
        },
    ),
    Misconception(
        name="scales_in_single_precision",
        part="layer",
        says="Your layer keeps its scales as they came. They are stored in half precision: they are part of the size.",
        wrong={
            'self.register_buffer("scales", scales.half())': 'self.register_buffer("scales", scales)'
        },
    ),
    Misconception(
        name="bias_forgotten",
        part="layer",
        says="Your layer leaves the bias out.",
        wrong={"F.linear(x, weight, bias)": "F.linear(x, weight)"},
    ),
    Misconception(
        name="gradient_stopped",
        part="layer",
        says="No gradient passes through your layer. The integers have none, but its input has.",
        wrong={"return F.linear(x, weight, bias)": "return F.linear(x.detach(), weight, bias)"},
    ),
    Misconception(
        name="scales_trained",
        part="layer",
        says="Your scales are parameters. Nothing in the layer is trained: they are buffers.",
        wrong={
            'self.register_buffer("scales", scales.half())': "self.scales = nn.Parameter(scales.half())"
        },
    ),
    # --- normal_float ---
    Misconception(
        name="even_levels",
        part="normal_float",
        says="Your levels lie at equal distances. NormalFloat's are quantiles of the normal distribution: dense near 0.",
        wrong={
            "torch.special.ndtri(torch.linspace(0.5, highest, number + 1)[1:])": "torch.linspace(0.5, highest, number + 1)[1:] - 0.5"
        },
    ),
    Misconception(
        name="levels_not_normalised",
        part="normal_float",
        says="Your levels are not divided by the largest: they must go from −1 to 1.",
        wrong={"(levels / levels.max()).sort()": "levels.sort()"},
    ),
    Misconception(
        name="more_negative_levels",
        part="normal_float",
        says="Your levels have the odd one on the negative side. There is one positive level more.",
        wrong={
            "-side(count // 2 - 1), torch.zeros(1), side(count // 2)": "-side(count // 2), torch.zeros(1), side(count // 2 - 1)"
        },
    ),
    Misconception(
        name="symmetric_without_zero",
        part="normal_float",
        says="Your levels are the same on both sides and 0 is not one of them. A weight of 0 must stay 0.",
        wrong={
            "-side(count // 2 - 1), torch.zeros(1), side(count // 2)": "-side(count // 2), side(count // 2)"
        },
    ),
    Misconception(
        name="constant_of_four_bits",
        part="normal_float",
        says="Your highest probability is that of 4 bits, whatever bits says.",
        wrong={"1 - (1 / (2 * count) + 1 / (2 * (count - 1))) / 2": "0.9677083"},
    ),
    Misconception(
        name="level_below",
        part="normal_float",
        says="Your index is that of the level below. Take the nearest: the index changes half-way between two levels.",
        wrong={
            "(relative[..., None] - levels).abs().argmin(dim=-1)": "(relative[..., None] >= levels).sum(dim=-1) - 1"
        },
    ),
    Misconception(
        name="rounded_as_if_even",
        part="normal_float",
        says="Your index comes from rounding, as if the levels were at equal distances. Compare with the levels.",
        wrong={
            "(relative[..., None] - levels).abs().argmin(dim=-1)": "((relative + 1) / 2 * (len(levels) - 1)).round().to(torch.int64)"
        },
    ),
    Misconception(
        name="compared_without_scale",
        part="normal_float",
        says="Your weights are compared with the levels as they are. Divide by the scale first: the levels end at 1.",
        wrong={"(relative[..., None] - levels)": "(weights[..., None] - levels)"},
    ),
    Misconception(
        name="indices_multiplied",
        part="normal_float",
        says="Your weights are the indices times the scale. An index says which level; the level is multiplied.",
        wrong={"levels[indices] * scale[..., None]": "indices * scale[..., None]"},
    ),
]

EQUIVALENT = [
    Equivalent(
        part="error",
        before="noise = (weights - approximation).square().sum()",
        after="noise = (approximation - weights).square().sum()",
        because="The sign of an error is lost in its square.",
    ),
    Equivalent(
        part="normal_float",
        before="return ((relative[..., None] - levels).abs().argmin(dim=-1), scale)",
        after="return ((levels - relative[..., None]).abs().argmin(dim=-1), scale)",
        because="A distance is the same from both ends.",
    ),
]


def _error(answers: ModuleType, rng: torch.Generator) -> object:
    weights, noise = torch.randn(2, 3, 4, generator=rng)
    ratio = answers.signal_to_noise(weights, weights + 0.1 * noise)
    return torch.stack([ratio, answers.predicted_signal_to_noise(weights, 4)])


def _normal_float(answers: ModuleType, rng: torch.Generator) -> object:
    levels = answers.normal_float_levels(int(torch.randint(2, 6, (), generator=rng)))
    indices, scale = answers.codebook_quantize(torch.randn(2, 5, generator=rng), levels)
    return answers.codebook_dequantize(indices, scale, levels)


EXAMPLES = {"error": _error, "normal_float": _normal_float}
