"""Wrong answers to the exercise on attention."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

MISCONCEPTIONS = [
    Misconception(
        name="no_scale",
        part="attention",
        says="Your output equals attention without the division by √d_k: the scores are used as they are. "
        "Divide them by math.sqrt(q.shape[-1]) before the softmax.",
        wrong={"q @ k.transpose(-2, -1) / math.sqrt(d_k)": "q @ k.transpose(-2, -1)"},
    ),
    Misconception(
        name="scale_without_root",
        part="attention",
        says="Your scores are divided by d_k instead of √d_k. A sum of d_k products has variance d_k, so its "
        "standard deviation is √d_k.",
        wrong={"/ math.sqrt(d_k)": "/ d_k"},
    ),
    Misconception(
        name="softmax_over_queries",
        part="attention",
        says="Your softmax runs over the queries (dim=-2). Each query distributes its attention over the keys: "
        "the weights of one row, dim=-1, sum to 1.",
        wrong={"torch.softmax(scores, dim=-1)": "torch.softmax(scores, dim=-2)"},
    ),
    Misconception(
        name="mask_after_softmax",
        part="attention",
        says="Your mask is applied after the softmax: the weights that are left no longer sum to 1. Put -inf "
        "into the scores before it.",
        wrong={"scores = scores.masked_fill(~mask, -math.inf)": "pass"},
    ),
    Misconception(
        name="mask_inverted",
        part="attention",
        says="Your mask is read the wrong way round: here True means *may attend*, so it is ~mask that gets -inf.",
        wrong={
            "masked_fill(~mask, -math.inf)": "masked_fill(mask, -math.inf)",
            "masked_fill(~mask, 0.0)": "masked_fill(mask, 0.0)",
        },
    ),
    Misconception(
        name="large_negative_for_minus_infinity",
        part="attention",
        says="Your masked scores get −10⁴ added. That is not −∞: a masked key with a score of 10⁵ still wins, and a "
        "query that may attend nowhere averages what it may not see.",
        wrong={
            "scores.masked_fill(~mask, -math.inf)": "scores + (~mask) * -1e4",
            "weights = weights.masked_fill(~mask, 0.0)": "pass",
        },
    ),
    Misconception(
        name="nowhere_is_nan",
        part="attention",
        says="A query that may attend nowhere gives NaN in your answer: the softmax of a row of −∞ is 0/0. Such a "
        "query gives zeros.",
        wrong={"weights = weights.masked_fill(~mask, 0.0)": "pass"},
    ),
    Misconception(
        name="output_is_values",
        part="attention",
        says="Your output does not depend on the scores: it is the plain mean of the values.",
        wrong={
            "torch.softmax(scores, dim=-1)": "torch.softmax(0 * q @ k.transpose(-2, -1), dim=-1)"
        },
    ),
    Misconception(
        name="causal_strict",
        part="masks",
        says="Your causal mask hides a position from itself: the diagonal belongs to what may be attended.",
        wrong={".tril()": ".tril(diagonal=-1)"},
    ),
    Misconception(
        name="causal_one_ahead",
        part="masks",
        says="Your causal mask lets each position see the next one, which is the answer it has to predict.",
        wrong={".tril()": ".tril(diagonal=1)"},
    ),
    Misconception(
        name="causal_transposed",
        part="masks",
        says="Your causal mask is transposed: rows are queries, so the allowed keys lie below the diagonal.",
        wrong={".tril()": ".triu()"},
    ),
    Misconception(
        name="padding_one_more",
        part="masks",
        says="Your padding mask keeps one padding position too many: positions count from 0, so the real ones are "
        "those smaller than the length.",
        wrong={"positions < lengths[:, None]": "positions <= lengths[:, None]"},
    ),
    Misconception(
        name="heads_without_transpose",
        part="multi_head",
        says="Your heads are cut by a view straight to (batch, heads, length, d_k), which mixes positions with "
        "features. View as (batch, length, heads, d_k), then transpose.",
        wrong={
            "x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)": (
                "x.reshape(x.shape[0], self.num_heads, x.shape[1], -1)"
            )
        },
    ),
    Misconception(
        name="heads_joined_without_transpose",
        part="multi_head",
        says="Your heads are split well but joined without the transpose back: (batch, heads, length, d_k) must "
        "become (batch, length, heads, d_k) before it is flattened.",
        wrong={"heads.transpose(1, 2).flatten(start_dim=2)": "heads.reshape(queries.shape)"},
    ),
    Misconception(
        name="scale_of_whole_width",
        part="multi_head",
        says="Your heads use the scale √d_model. Each head's vectors have d_k = d_model / h components, and the "
        "scale is √d_k.",
        wrong={
            "scaled_dot_product_attention(q, k, v, mask)": (
                "scaled_dot_product_attention(q / math.sqrt(self.num_heads), k, v, mask)"
            )
        },
    ),
    Misconception(
        name="values_from_keys",
        part="multi_head",
        says="Your values are projected from the keys: v_proj must be given the third argument.",
        wrong={"self.v_proj(values)": "self.v_proj(keys)"},
    ),
    Misconception(
        name="no_output_projection",
        part="multi_head",
        says="Your heads are joined but not projected: the result must go through output_proj (W^O).",
        wrong={"return self.output_proj(joined)": "return joined"},
    ),
    Misconception(
        name="returns_its_input",
        part="multi_head",
        says="Your module returns its queries unchanged.",
        wrong={"return self.output_proj(joined)": "return queries"},
    ),
    Misconception(
        name="mask_forgotten",
        part="multi_head",
        says="Your module takes a mask and does not use it.",
        wrong={"(q, k, v, mask)": "(q, k, v)"},
    ),
    Misconception(
        name="mask_of_batch_for_heads",
        part="multi_head",
        says="Your mask meets (batch, heads, queries, keys) without a dimension for the heads, so the batch of the "
        "mask is taken for the heads. Insert it: mask[:, None].",
        wrong={
            "mask = mask[:, None]": "mask = mask.repeat(self.num_heads, 1, 1)[: self.num_heads]"
        },
    ),
]

EQUIVALENT = [
    Equivalent(
        part="masks",
        before="positions = torch.arange(max_length, device=lengths.device)",
        after="positions = torch.arange(max_length)",
        because="On the CPU there is one device. On a GPU the tests notice it.",
    ),
    Equivalent(
        part="masks",
        before="return torch.ones(length, length, dtype=torch.bool, device=device).tril()",
        after="return torch.ones(length, length, dtype=torch.bool).tril()",
        because="On the CPU there is one device. On a GPU the tests notice it.",
    ),
]


def _masks(answers: ModuleType, rng: torch.Generator) -> object:
    length = int(torch.randint(1, 12, (), generator=rng))
    lengths = torch.randint(0, length + 1, (5,), generator=rng)
    return answers.causal_mask(length), answers.padding_mask(lengths, length)


EXAMPLES = {"masks": _masks}
