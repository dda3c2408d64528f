"""Wrong answers to the exercise on scaling laws."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

LINE = "slope = v @ u / (u @ u)"

MISCONCEPTIONS = [
    # --- counting parameters ---
    Misconception(
        name="embeddings_in_n",
        part="count",
        says="Your non_embedding holds the token embedding. Kaplan et al. count N without embeddings.",
        wrong={
            "ParameterCount(non_embedding, ": "ParameterCount(non_embedding + vocab_size * d_model, "
        },
    ),
    Misconception(
        name="positions_in_n",
        part="count",
        says="Your non_embedding holds the position embedding. It is an embedding too, and left out.",
        wrong={
            "ParameterCount(non_embedding, ": "ParameterCount(non_embedding + context * d_model, "
        },
    ),
    Misconception(
        name="positions_forgotten",
        part="count",
        says="Your total lacks the learned positions: one row of width d_model for each place of the context.",
        wrong={"(vocab_size + context) * d_model": "vocab_size * d_model"},
    ),
    Misconception(
        name="tied_embedding_counted_twice",
        part="count",
        says="Your total counts a matrix of its own for the logits. GPT-2 uses the token embedding for them: it counts once.",
        wrong={"(vocab_size + context) * d_model": "(2 * vocab_size + context) * d_model"},
    ),
    Misconception(
        name="biases_forgotten",
        part="count",
        says="You count the matrices and not their biases.",
        wrong={
            "4 * d_model**2 + 4 * d_model": "4 * d_model**2",
            "2 * d_model * d_ff + d_ff + d_model": "2 * d_model * d_ff",
        },
    ),
    Misconception(
        name="norms_forgotten",
        part="count",
        says="You count no layer norms: each has a scale and a shift, two in each block and one at the end.",
        wrong={"norm = 2 * d_model": "norm = 0"},
    ),
    Misconception(
        name="norm_has_no_shift",
        part="count",
        says="Your layer norms have a scale and no shift. In GPT-2 they have both.",
        wrong={"norm = 2 * d_model": "norm = d_model"},
    ),
    Misconception(
        name="no_last_norm",
        part="count",
        says="Your count lacks the layer norm after the last block.",
        wrong={
            "non_embedding = num_layers * (2 * norm + attention + feed_forward) + norm": (
                "non_embedding = num_layers * (2 * norm + attention + feed_forward)"
            )
        },
    ),
    Misconception(
        name="no_output_projection",
        part="count",
        says="Your attention has three matrices, for queries, keys and values. The fourth joins the heads.",
        wrong={"4 * d_model**2 + 4 * d_model": "3 * d_model**2 + 3 * d_model"},
    ),
    Misconception(
        name="rule_of_thumb",
        part="count",
        says="Your N is the rule of thumb 12·num_layers·d_model². Here every parameter counts.",
        wrong={
            "non_embedding = num_layers * (2 * norm + attention + feed_forward) + norm": (
                "non_embedding = 12 * num_layers * d_model**2"
            )
        },
    ),
    Misconception(
        name="feed_forward_always_four",
        part="count",
        says="Your feed-forward network is 4·d_model wide whatever d_ff says.",
        wrong={
            "    norm = 2 * d_model\n": "    d_ff = 4 * d_model\n    norm = 2 * d_model\n",
        },
    ),
    # --- FLOPs ---
    Misconception(
        name="forward_only",
        part="flops",
        says="You count the forward pass alone, 2 FLOPs for each parameter and token. The backward pass takes twice as many "
        "more: 6 in all.",
        wrong={"return 6.0 * params * tokens": "return 2.0 * params * tokens"},
    ),
    Misconception(
        name="multiplications_only",
        part="flops",
        says="You count a multiplication and an addition as one: 3·N·D. They are 2 FLOPs.",
        wrong={"return 6.0 * params * tokens": "return 3.0 * params * tokens"},
    ),
    Misconception(
        name="attention_forward_only",
        part="flops",
        says="Your attention counts its forward pass alone. Training takes three times that.",
        wrong={"return 6.0 * num_layers": "return 2.0 * num_layers"},
    ),
    Misconception(
        name="attention_of_the_whole_context",
        part="flops",
        says="Your attention sees the whole context at every token. In a causal model it sees half of it on average.",
        wrong={"return 6.0 * num_layers": "return 12.0 * num_layers"},
    ),
    # --- power law ---
    Misconception(
        name="fit_in_linear_space",
        part="power_law",
        says="Your fit makes the residuals of y itself small, so the largest losses decide. The line is to be fitted to the "
        "logarithms.",
        wrong={
            "    coefficient = (mean - slope": (
                "    from scipy.optimize import curve_fit\n\n"
                "    start = ((mean - slope * x.log().mean()).exp().item(), slope.item())\n"
                "    if not irreducible and len(x) > 2:\n"
                "        (a, power), _ = curve_fit(\n"
                "            lambda t, a, power: a * t**power, x.cpu().numpy(), y.cpu().numpy(), start, maxfev=9999\n"
                "        )\n"
                "        return PowerLaw(float(a), -float(power))\n"
                "    coefficient = (mean - slope"
            )
        },
    ),
    Misconception(
        name="exponent_is_the_slope",
        part="power_law",
        says="Your exponent is the slope, which is negative where the loss falls. The law is written x^(-exponent): change the "
        "sign.",
        wrong={"-slope.item(), floors": "slope.item(), floors"},
    ),
    Misconception(
        name="coefficient_is_its_logarithm",
        part="power_law",
        says="Your coefficient is the intercept of the line, the logarithm of the coefficient. Take the exponential.",
        wrong={"(mean - slope * x.log().mean()).exp()": "(mean - slope * x.log().mean())"},
    ),
    Misconception(
        name="intercept_is_the_mean",
        part="power_law",
        says="Your coefficient is the geometric mean of the losses. The intercept of the line is at ln x = 0, not at the mean "
        "of ln x.",
        wrong={"(mean - slope * x.log().mean()).exp()": "mean.exp()"},
    ),
    Misconception(
        name="line_through_the_ends",
        part="power_law",
        says="Your line goes through the smallest and the largest x and does not look at the others. All points count.",
        wrong={
            LINE: "i, j = u.argmin(), u.argmax()\n"
            "        slope = (v[:, j] - v[:, i]) / (u[j] - u[i])"
        },
    ),
    Misconception(
        name="line_through_the_origin",
        part="power_law",
        says="Your line goes through the origin: the coefficient is always 1. Take the means off before the slope.",
        wrong={
            LINE: "slope = v @ x.log() / (x.log() @ x.log())\n        mean = slope * x.log().mean()",
        },
    ),
    Misconception(
        name="x_on_y",
        part="power_law",
        says="You fit ln x on ln y and turn the line round. The residuals to make small are those of ln y.",
        wrong={LINE: "slope = (v - mean[:, None]).square().sum(dim=1) / (v @ u)"},
    ),
    Misconception(
        name="irreducible_ignored",
        part="power_law",
        says="Your fit has no irreducible loss even where it is asked for one.",
        wrong={"    if irreducible:\n": "    if False:\n"},
    ),
    Misconception(
        name="floor_is_the_smallest_loss",
        part="power_law",
        says="You take the smallest loss for the irreducible one, as if the largest model had reached it. It lies below, and is "
        "searched for.",
        wrong={
            "        floors = floors[best : best + 1]": "        floors = y.min()[None] * 0.999"
        },
    ),
    Misconception(
        name="floor_left_out_of_the_answer",
        part="power_law",
        says="You find the floor and return 0 for it: coefficient and exponent belong to the losses above the floor.",
        wrong={"-slope.item(), floors.item())": "-slope.item(), 0.0)"},
    ),
    Misconception(
        name="line_without_the_floor",
        part="power_law",
        says="You find the floor and return the line of the losses themselves. The line belongs to ln(y - floor).",
        wrong={
            "    coefficient = (mean": (
                "    found, (_, slope, mean) = floors, lines(x.new_zeros(1))\n"
                "    floors = found\n"
                "    coefficient = (mean"
            )
        },
    ),
    Misconception(
        name="grid_too_coarse",
        part="power_law",
        says="Your grid of floors is coarse, and you stop there. Look again around the best candidate, more finely.",
        wrong={
            "for _ in range(6):": "for _ in range(1):",
            "torch.linspace(low, high, 100, dtype": "torch.linspace(low, high, 50, dtype",
        },
    ),
    # --- chinchilla ---
    Misconception(
        name="exponents_exchanged",
        part="chinchilla",
        says="Your exponents are exchanged: the model grows as C^(β/(α+β)), the text as C^(α/(α+β)).",
        wrong={
            "params=balance * (flops / 6) ** (law.beta / both)": (
                "params=balance * (flops / 6) ** (law.alpha / both)"
            ),
            "tokens=(flops / 6) ** (law.alpha / both)": "tokens=(flops / 6) ** (law.beta / both)",
        },
    ),
    Misconception(
        name="balance_upside_down",
        part="chinchilla",
        says="Your G is upside down: it is (αA/βB)^(1/(α+β)), and multiplies the parameters.",
        wrong={
            "(law.alpha * law.A / (law.beta * law.B))": "(law.beta * law.B / (law.alpha * law.A))"
        },
    ),
    Misconception(
        name="budget_not_divided_by_six",
        part="chinchilla",
        says="You spend C = N·D. A token costs 6 FLOPs for each parameter: divide the budget by 6.",
        wrong={
            "params=balance * (flops / 6)": "params=balance * flops",
            "tokens=(flops / 6)": "tokens=flops",
        },
    ),
    Misconception(
        name="both_terms_equal",
        part="chinchilla",
        says="You make A/N^α and B/D^β equal. At the best point their changes are equal: αA/N^α = βB/D^β.",
        wrong={"(law.alpha * law.A / (law.beta * law.B))": "(law.A / law.B)"},
    ),
    Misconception(
        name="twenty_tokens_each",
        part="chinchilla",
        says="You take 20 tokens for each parameter. That is what came out for one law and one budget; here it follows from the "
        "law you are given.",
        wrong={
            "params=balance * (flops / 6) ** (law.beta / both)": "params=(flops / 120) ** 0.5",
            "tokens=(flops / 6) ** (law.alpha / both) / balance": "tokens=20 * (flops / 120) ** 0.5",
        },
    ),
    Misconception(
        name="square_roots",
        part="chinchilla",
        says="You let model and text both grow as the root of the budget. That holds only if α = β.",
        wrong={"(law.beta / both)": "0.5", "(law.alpha / both)": "0.5"},
    ),
    Misconception(
        name="root_of_balance_forgotten",
        part="chinchilla",
        says="Your G lacks its exponent 1/(α+β).",
        wrong={"** (1 / both)  # G": "  # G"},
    ),
    Misconception(
        name="loss_without_e",
        part="chinchilla",
        says="Your predicted loss lacks E, what no model can avoid.",
        wrong={"return law.E + law.A": "return law.A"},
    ),
    Misconception(
        name="loss_shares_its_exponent",
        part="chinchilla",
        says="Your predicted loss has one exponent for both terms. The data term has β.",
        wrong={"tokens**law.beta": "tokens**law.alpha"},
    ),
    # --- metrics ---
    Misconception(
        name="mean_of_answers",
        part="metrics",
        says="Your token accuracy is the mean of each answer's accuracy: a token of a short answer weighs more. Every token "
        "counts once.",
        wrong={
            "return (predictions == targets)[counts].double().mean().item()": (
                "some = counts.any(dim=1)\n"
                "    right = ((predictions == targets) & counts).sum(dim=1)[some]\n"
                "    return (right / counts.sum(dim=1)[some]).double().mean().item()"
            )
        },
    ),
    Misconception(
        name="ignored_tokens_are_wrong",
        part="metrics",
        says="Your token accuracy divides by the number of all positions, so that ignored ones count as wrong.",
        wrong={
            "return (predictions == targets)[counts].double().mean().item()": (
                "return ((predictions == targets) & counts).double().mean().item()"
            )
        },
    ),
    Misconception(
        name="exact_match_of_ignored_tokens",
        part="metrics",
        says="Your exact match asks for the ignored positions too, where no prediction can be right.",
        wrong={
            "right = ((predictions == targets) | ~counts).all(dim=1)": (
                "right = (predictions == targets).all(dim=1)"
            )
        },
    ),
    Misconception(
        name="any_for_all",
        part="metrics",
        says="Your exact match is content with one right token. All that count must be right.",
        wrong={
            "right = ((predictions == targets) | ~counts).all(dim=1)": (
                "right = ((predictions == targets) & counts).any(dim=1)"
            )
        },
    ),
    Misconception(
        name="empty_answers_are_right",
        part="metrics",
        says="Your exact match counts answers in which nothing counts as right. They are left out.",
        wrong={
            "return right[counts.any(dim=1)].double()": "return right.double()",
        },
    ),
    Misconception(
        name="product_for_power",
        part="metrics",
        says="Your expected exact match is p times the length. All tokens must be right: p to the power of the length.",
        wrong={"return accuracy**length": "return accuracy * length"},
    ),
    Misconception(
        name="one_minus_errors",
        part="metrics",
        says="Your expected exact match is 1 - (1 - p)^L: that at least one token is right. All must be: p^L.",
        wrong={"return accuracy**length": "return 1 - (1 - accuracy) ** length"},
    ),
]

EQUIVALENT: list[Equivalent] = [
    Equivalent(
        part="power_law",
        before="residuals = v - mean[:, None] - slope[:, None] * u",
        after="residuals = slope[:, None] * u - (v - mean[:, None])",
        because="They are squared: their sign does not matter.",
    ),
    Equivalent(
        part="power_law",
        before="low, high = (0.0, 14.0)",
        after="low, high = (0.0, 28.0)",
        because="A wider first grid, which the next ones narrow as well.",
    ),
    Equivalent(
        part="power_law",
        before="for _ in range(6):",
        after="for _ in range(7):",
        because="Five grids, each a fiftieth of the one before, are as good as six or seven for four digits.",
    ),
    Equivalent(
        part="power_law",
        before="for _ in range(6):",
        after="for _ in range(5):",
        because="Five grids, each a fiftieth of the one before, are as good as six or seven for four digits.",
    ),
    Equivalent(
        part="power_law",
        before="nearness = torch.linspace(low, high, 100, dtype=y.dtype, device=y.device)",
        after="nearness = torch.linspace(low, high, 100, device=y.device)",
        because="float32 is fine enough for the grid: the next ones narrow it.",
    ),
    Equivalent(
        part="power_law",
        before="nearness = torch.linspace(low, high, 100, dtype=y.dtype, device=y.device)",
        after="nearness = torch.linspace(low, high, 100, dtype=y.dtype)",
        because="The same where there is one device; only a second one can tell.",
    ),
    Equivalent(
        part="power_law",
        before="nearness = torch.linspace(low, high, 100, dtype=y.dtype, device=y.device)",
        after="nearness = torch.linspace(low, high, 101, dtype=y.dtype, device=y.device)",
        because="A grid of one point more or less narrows as well.",
    ),
    Equivalent(
        part="power_law",
        before="nearness = torch.linspace(low, high, 100, dtype=y.dtype, device=y.device)",
        after="nearness = torch.linspace(low, high, 99, dtype=y.dtype, device=y.device)",
        because="A grid of one point more or less narrows as well.",
    ),
    Equivalent(
        part="power_law",
        before="low, high = (max(0.0, (nearness[best] - step).item()), (nearness[best] + step).item())",
        after="low, high = (max(0.0, (nearness[best] - step).item()), nearness[best] + step)",
        because="linspace takes a tensor with one number as it takes a number.",
    ),
    Equivalent(
        part="power_law",
        before="step = nearness.diff()[0]",
        after="step = nearness.diff()[1]",
        because="The points of the grid lie evenly.",
    ),
    Equivalent(
        part="power_law",
        before="step = nearness.diff()[0]",
        after="step = nearness.diff()[-1]",
        because="The points of the grid lie evenly.",
    ),
    Equivalent(
        part="power_law",
        before="low, high = (max(0.0, (nearness[best] - step).item()), (nearness[best] + step).item())",
        after="low, high = (max(0.0, nearness[best] - step), (nearness[best] + step).item())",
        because="linspace takes a tensor with one number as it takes a number.",
    ),
    Equivalent(
        part="power_law",
        before="low, high = (max(0.0, (nearness[best] - step).item()), (nearness[best] + step).item())",
        after="low, high = (max(0.0, (nearness[best] - step).item()), (nearness[best + 1] + step).item())",
        because="The next grid reaches a step further, and is narrowed all the same.",
    ),
    Equivalent(
        part="power_law",
        before="x, y = (x.double(), y.double())",
        after="pass",
        because="Four digits are asked for, and float32 carries seven.",
    ),
    Equivalent(
        part="power_law",
        before="x, y = (x.double(), y.double())",
        after="x, y = (x.double(), y)",
        because="Four digits are asked for, and float32 carries seven.",
    ),
]


def _power_law(answers: ModuleType, rng: torch.Generator) -> object:
    points = int(torch.randint(5, 12, (), generator=rng))
    a, alpha, floor = torch.rand(3, generator=rng, dtype=torch.float64).tolist()
    x = torch.linspace(1, 8, points, dtype=torch.float64).exp()
    y = 0.5 + floor + (1 + a) * x ** -(0.2 + 0.3 * alpha)
    return tuple(answers.fit_power_law(x, y)), tuple(answers.fit_power_law(x, y, True))


EXAMPLES = {"power_law": _power_law}
