"""Wrong answers to the exercise on T5."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

MISCONCEPTIONS = [
    # --- noise ---
    Misconception(
        name="lengths_one_after_another",
        part="noise",
        says="You draw one length after another, each from what is left, so the first ones come out long and the last "
        "ones short. Choose the places of all cuts at once: then every sequence of lengths is equally likely.",
        wrong={
            "    cuts = torch.randperm(total - 1, generator=generator)[: parts - 1].sort().values + 1\n"
            "    return torch.tensor([0, *cuts, total]).diff()\n": (
                "    lengths = []\n"
                "    for left in range(parts - 1, 0, -1):\n"
                "        most = total - sum(lengths) - left\n"
                "        lengths.append(1 + int(torch.randint(most, (), generator=generator)))\n"
                "    return torch.tensor([*lengths, total - sum(lengths)])\n"
            )
        },
    ),
    Misconception(
        name="lengths_all_alike",
        part="noise",
        says="Your lengths are as equal as they can be, every time. Only the mean is fixed: a sum of positive numbers is "
        "drawn, and 1 + 5 is as likely as 3 + 3.",
        wrong={
            "    cuts = torch.randperm(total - 1, generator=generator)[: parts - 1].sort().values + 1\n": (
                "    cuts = torch.arange(1, parts) * total // parts\n"
            )
        },
    ),
    Misconception(
        name="cuts_with_replacement",
        part="noise",
        says="Your cuts are drawn with replacement: two may fall on one place, and a part of length 0 comes out. Each "
        "gap can be cut once.",
        wrong={
            "torch.randperm(total - 1, generator=generator)[: parts - 1].sort().values + 1": (
                "torch.randint(1, max(total, 2), (parts - 1,), generator=generator).sort().values"
            )
        },
    ),
    Misconception(
        name="generator_ignored",
        part="noise",
        says="You do not draw from the generator you are given: the same state of it gives other lengths each time. "
        "Hand it to every function that draws.",
        wrong={"torch.randperm(total - 1, generator=generator)": "torch.randperm(total - 1)"},
    ),
    Misconception(
        name="density_counts_spans",
        part="noise",
        says="Your noise density is off: 15 % of the length is taken for the number of spans, so that three times as "
        "many tokens are cut out. 15 % is the share of tokens; divide by the mean length to get the spans.",
        wrong={
            "noise = min(max(round(length * noise_density), 1), length - 1)": (
                "noise = min(max(round(length * noise_density * mean_span_length), 1), length - 1)"
            )
        },
    ),
    Misconception(
        name="number_of_noise_tokens_rounded_down",
        part="noise",
        says="Your number of noise tokens is rounded down, as int() does. It is round(length · noise_density).",
        wrong={"max(round(length * noise_density), 1)": "max(int(length * noise_density), 1)"},
    ),
    Misconception(
        name="number_of_spans_rounded_down",
        part="noise",
        says="Your number of spans is rounded down, as // does. It is round(noise tokens / mean_span_length).",
        wrong={"round(noise / mean_span_length)": "int(noise // mean_span_length)"},
    ),
    Misconception(
        name="noise_first",
        part="noise",
        says="Your mask begins with noise, or is turned round. True means noise, which is cut out, and kept text comes first: the "
        "first token of a text always stays.",
        wrong={"torch.tensor([False, True])": "torch.tensor([True, False])"},
    ),
    Misconception(
        name="tokens_masked_one_by_one",
        part="noise",
        says="You draw single tokens, as BERT does. The right number is cut out, but not in spans of the right number: "
        "draw lengths of spans and lengths of what stands between them.",
        wrong={
            "    return torch.tensor([False, True]).repeat(spans).repeat_interleave(in_turn)": (
                "    return torch.randperm(length, generator=generator) < noise"
            )
        },
    ),
    Misconception(
        name="spans_more_than_kept_tokens",
        part="noise",
        says="You do not limit the number of spans: with much noise there are more spans than kept tokens to stand "
        "between them.",
        wrong={
            "spans = min(max(round(noise / mean_span_length), 1), kept)": (
                "spans = max(round(noise / mean_span_length), 1)\n"
                "    if spans > kept:\n"
                "        return torch.arange(length) >= kept"
            )
        },
    ),
    # --- spans ---
    Misconception(
        name="sentinel_reused",
        part="spans",
        says="All your spans have the same sentinel. Each needs its own, or nobody knows which span of the targets "
        "belongs where: vocab_size - 1 for the first, one less for each further one.",
        wrong={
            "            sentinel -= 1\n": "",
            "    targets.append(sentinel)\n    if": "    targets.append(sentinel - bool(mask.any()))\n    if",
        },
    ),
    Misconception(
        name="sentinels_count_upwards",
        part="spans",
        says="Your sentinels count upwards from the first id of the last num_sentinels. They count downwards: the first "
        "is vocab_size - 1.",
        wrong={
            "    return tokens.new_tensor(inputs)": (
                "    first = vocab_size - num_sentinels\n"
                "    inputs = [first + vocab_size - 1 - t if t >= first else t for t in inputs]\n"
                "    targets = [first + vocab_size - 1 - t if t >= first else t for t in targets]\n"
                "    return tokens.new_tensor(inputs)"
            )
        },
    ),
    Misconception(
        name="no_final_sentinel",
        part="spans",
        says="Your targets end with the last span. One more sentinel comes after it: it says that nothing else is "
        "missing.",
        wrong={"tokens.new_tensor(targets)": "tokens.new_tensor(targets[:-1])"},
    ),
    Misconception(
        name="one_sentinel_for_each_token",
        part="spans",
        says="You put one sentinel for each token that is cut out. A span of any length becomes one sentinel: how long it "
        "was is for the model to find out.",
        wrong={"if noise and not inside:": "if noise:"},
    ),
    Misconception(
        name="kept_tokens_in_the_targets",
        part="spans",
        says="Your targets hold the kept text too. Only what was cut out belongs there, each span after its sentinel.",
        wrong={
            "        (targets if noise else inputs).append(token)\n": (
                "        targets.append(token)\n        if not noise:\n            inputs.append(token)\n"
            )
        },
    ),
    Misconception(
        name="sentinel_after_its_span",
        part="spans",
        says="In your targets each sentinel stands after its span. It comes first: it says which span is to be written.",
        wrong={
            "            targets.append(sentinel)\n": "",
            "        inside = noise\n": (
                "        inside = noise\n"
                "        after = len(inputs) + sum(t < vocab_size - num_sentinels for t in targets)\n"
                "        after -= sum(t >= vocab_size - num_sentinels for t in inputs)\n"
                "        if noise and (after == len(mask) or not mask[after]):\n"
                "            targets.append(sentinel + 1)\n"
            ),
        },
    ),
    Misconception(
        name="sentinel_zero_is_vocab_size",
        part="spans",
        says="Your first sentinel is vocab_size, which is no id of the vocabulary. Ids end at vocab_size - 1.",
        wrong={
            "    sentinel = vocab_size - 1\n": "    sentinel = vocab_size\n",
            "if vocab_size - sentinel > num_sentinels:": "if vocab_size - sentinel >= num_sentinels:",
        },
    ),
    Misconception(
        name="texts_may_hold_sentinels",
        part="spans",
        says="You accept tokens that are sentinels. In the inputs nobody could tell them from the ones that stand for a "
        "span: refuse them.",
        wrong={
            "((tokens < 0) | (tokens >= vocab_size - num_sentinels)).any()": (
                "((tokens < 0) | (tokens >= vocab_size)).any()"
            )
        },
    ),
    Misconception(
        name="noise_settings_not_handed_on",
        part="spans",
        says="Your span_corrupt takes noise_density and mean_span_length and does not hand them to noise_mask.",
        wrong={
            "noise_mask(len(tokens), generator, noise_density, mean_span_length)": (
                "noise_mask(len(tokens), generator)"
            )
        },
    ),
    # --- tasks ---
    Misconception(
        name="class_as_a_number",
        part="tasks",
        says="You write a class as its number. Its name is what the model must write: text that means something from "
        "pre-training.",
        wrong={"return source, task.labels[answer]": "return source, str(answer)"},
    ),
    Misconception(
        name="prefix_left_out",
        part="tasks",
        says="The model is not told which task it is to do: you hand over the fields without the words of the template.",
        wrong={
            "source = task.template.format(**fields)": (
                'task.template.format(**fields); source = " ".join(fields.values())'
            )
        },
    ),
    Misconception(
        name="score_not_rounded",
        part="tasks",
        says="Your scores are written as they come. They are rounded to the nearest multiple of the task's step first.",
        wrong={"{round(answer / task.step) * task.step:.1f}": "{answer:.1f}"},
    ),
    Misconception(
        name="score_rounded_down",
        part="tasks",
        says="Your scores are rounded down to a multiple of the step. The nearest one is wanted.",
        wrong={
            "round(answer / task.step) * task.step": "math.floor(answer / task.step) * task.step"
        },
    ),
    Misconception(
        name="step_is_always_a_fifth",
        part="tasks",
        says="You round to multiples of 0.2 in every task. The task says its step.",
        wrong={"round(answer / task.step) * task.step": "round(answer * 5) / 5"},
    ),
    Misconception(
        name="fields_replaced_one_by_one",
        part="tasks",
        says="You put the fields in one after another, so a text that itself reads like a field is filled in as well. "
        "Fill all at once, as str.format does.",
        wrong={
            "source = task.template.format(**fields)": (
                "task.template.format(**fields)\n"
                "        source = task.template\n"
                "        for name, text in fields.items():\n"
                '            source = source.replace("{" + name + "}", text)'
            )
        },
    ),
    Misconception(
        name="any_answer_is_a_class",
        part="tasks",
        says="You read what is no label as class 0. It is no class: None, which counts as wrong.",
        wrong={
            "return task.labels.index(written) if written in task.labels else None": (
                "return task.labels.index(written) if written in task.labels else 0"
            )
        },
    ),
    Misconception(
        name="label_found_inside_the_answer",
        part="tasks",
        says="You look for a label inside what was written: “not acceptable” holds “acceptable” too. The whole text must be "
        "the label.",
        wrong={
            "return task.labels.index(written) if written in task.labels else None": (
                "return next((i for i, label in reversed(list(enumerate(task.labels))) if label in written), None)"
            )
        },
    ),
    Misconception(
        name="nan_is_a_score",
        part="tasks",
        says="You take “nan” and “inf” for scores, since float() does. Only a finite number is one.",
        wrong={"return number if math.isfinite(number) else None": "return number"},
    ),
    # --- teacher forcing ---
    Misconception(
        name="no_shift",
        part="teacher",
        says="Your decoder reads the targets unshifted: at each position it sees the token it is to predict. The start token "
        "comes first, and everything moves one place to the right.",
        wrong={
            "return F.pad(targets[..., :-1], (1, 0), value=start_id)": "return targets.clone()",
        },
    ),
    Misconception(
        name="shift_left",
        part="teacher",
        says="You shift to the left: the decoder reads the token after the one it is to predict. It reads the one before.",
        wrong={
            "return F.pad(targets[..., :-1], (1, 0), value=start_id)": (
                "return F.pad(targets[..., 1:], (0, 1), value=start_id)"
            )
        },
    ),
    Misconception(
        name="rolled",
        part="teacher",
        says="You roll the targets: the last token comes round to the front. The start token belongs there.",
        wrong={
            "return F.pad(targets[..., :-1], (1, 0), value=start_id)": "return targets.roll(1, dims=-1)",
        },
    ),
    Misconception(
        name="start_without_shift",
        part="teacher",
        says="You write the start token over the first target and move nothing: every other position still reads the token "
        "it is to predict.",
        wrong={
            "return F.pad(targets[..., :-1], (1, 0), value=start_id)": (
                "return torch.cat([torch.full_like(targets[..., :1], start_id), targets[..., 1:]], dim=-1)"
            )
        },
    ),
    Misconception(
        name="padding_in_the_loss",
        part="teacher",
        says="Your loss counts padding as tokens to predict. Leave out the targets that are pad_id, above and below.",
        wrong={"real = targets != pad_id": "real = torch.ones_like(targets, dtype=torch.bool)"},
    ),
    Misconception(
        name="divided_by_all_positions",
        part="teacher",
        says="Your loss leaves padding out of the sum and divides by the number of all positions, so that it falls with "
        "every pad. Divide by the number of tokens that are not padding.",
        wrong={"real.sum().clamp(min=1)": "max(targets.numel(), 1)"},
    ),
    Misconception(
        name="mean_of_means",
        part="teacher",
        says="Your loss is the mean over texts of each text's mean: a token of a short text weighs more. All tokens of all "
        "texts weigh the same.",
        wrong={
            '    total = F.cross_entropy(logits[real], targets[real], reduction="sum")\n'
            "    return total / real.sum().clamp(min=1)": (
                "    nats = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0] * real\n"
                "    return (nats.sum(-1) / real.sum(-1).clamp(min=1)).mean()"
            )
        },
    ),
    Misconception(
        name="pad_id_always_zero",
        part="teacher",
        says="You take 0 for padding whatever pad_id says.",
        wrong={"real = targets != pad_id": "real = targets != 0"},
    ),
    Misconception(
        name="no_tokens_nan",
        part="teacher",
        says="Your loss is 0/0 where there is nothing but padding. It is 0 there, with a gradient of 0.",
        wrong={"real.sum().clamp(min=1)": "real.sum()"},
    ),
    Misconception(
        name="logits_shifted_too",
        part="teacher",
        says="Your loss drops the last row of logits and the first target, as for a model that reads its own text. Here the "
        "decoder's inputs are shifted already: row t is for target t.",
        wrong={
            "    real = targets != pad_id\n": (
                "    logits, targets = logits[..., :-1, :], targets[..., 1:]\n"
                "    real = targets != pad_id\n"
            )
        },
    ),
    Misconception(
        name="loss_against_the_decoder_inputs",
        part="teacher",
        says="Your loss compares the logits with what the decoder read. They are to be compared with the targets, which are "
        "one place further.",
        wrong={
            "return seq2seq_loss(logits, targets, pad_id)": (
                "return seq2seq_loss(logits, shift_right(targets, start_id), pad_id)"
            )
        },
    ),
    # --- relative positions ---
    Misconception(
        name="query_minus_key",
        part="bias",
        says="Your relative position is query minus key. It is key minus query: negative looks back.",
        wrong={"key - query[:, None]": "query[:, None] - key"},
    ),
    Misconception(
        name="halves_exchanged",
        part="relative",
        says="With both directions, your upper half of the buckets is for keys before the query. It is for keys after it.",
        wrong={"(relative_position > 0) * buckets": "(relative_position < 0) * buckets"},
    ),
    Misconception(
        name="both_directions_alike",
        part="relative",
        says="With both directions, you put a key three to the left and one three to the right into one bucket. Each direction "
        "has half of the buckets.",
        wrong={"first = (relative_position > 0) * buckets": "first = 0"},
    ),
    Misconception(
        name="all_buckets_for_each_direction",
        part="relative",
        says="With both directions, each has num_buckets // 2 buckets. You give each num_buckets, and the largest number is "
        "twice too large.",
        wrong={
            "buckets = num_buckets // 2 if bidirectional else num_buckets": "buckets = num_buckets"
        },
    ),
    Misconception(
        name="future_mirrored",
        part="relative",
        says="Without both directions, keys after the query count as distance 0. You take the absolute value.",
        wrong={
            "distance = (-relative_position).clamp(min=0)": "distance = relative_position.abs()"
        },
    ),
    Misconception(
        name="distances_only_clipped",
        part="relative",
        says="You give every distance a bucket of its own and clip at the last. Only the first half of the buckets are so; the "
        "others grow with the logarithm of the distance.",
        wrong={
            "torch.where(distance < exact, distance, far.clamp(max=buckets - 1))": (
                "distance.clamp(max=buckets - 1)"
            )
        },
    ),
    Misconception(
        name="no_last_bucket",
        part="relative",
        says="Distances beyond max_distance run out of the buckets. All of them share the last one of their direction.",
        wrong={"far.clamp(max=buckets - 1)": "far"},
    ),
    Misconception(
        name="logarithm_of_the_distance",
        part="relative",
        says="Your growing buckets take ln d over ln max_distance. They start at e, so both are divided by e first: "
        "ln(d/e) / ln(max_distance/e).",
        wrong={
            "torch.log(distance / exact) / math.log(max_distance / exact)": (
                "torch.log(distance) / math.log(max_distance)"
            )
        },
    ),
    Misconception(
        name="heads_last",
        part="bias",
        says="Your bias is (queries, keys, heads). Attention adds it to scores of shape (heads, queries, keys).",
        wrong={"table[buckets].permute(2, 0, 1)": "table[buckets]"},
    ),
    Misconception(
        name="heads_by_reshape",
        part="bias",
        says="You reshape (queries, keys, heads) to (heads, queries, keys), which mixes heads and positions. Permute the "
        "dimensions.",
        wrong={
            "table[buckets].permute(2, 0, 1)": "table[buckets].reshape(table.shape[1], queries, keys)"
        },
    ),
    Misconception(
        name="max_distance_not_handed_on",
        part="bias",
        says="Your relative_bias takes max_distance and does not hand it to relative_position_bucket.",
        wrong={"bidirectional, table.shape[0], max_distance": "bidirectional, table.shape[0]"},
    ),
    Misconception(
        name="queries_and_keys_exchanged",
        part="bias",
        says="Your bias has a row for each key and a column for each query. A row is a query, as in the scores.",
        wrong={".permute(2, 0, 1)": ".permute(2, 1, 0)"},
    ),
]

ONE_DEVICE = "On the CPU there is one device. On a GPU the tests notice it."
SAME_SHAPE = "That both have one shape was checked before: neither ends before the other."
LOOP = "for token, noise in zip(tokens.tolist(), mask.tolist(), strict=True):"

EQUIVALENT = [
    Equivalent(
        part="spans",
        before=LOOP,
        after="for token, noise in zip(tokens.tolist(), mask.tolist()):",
        because=SAME_SHAPE,
    ),
    Equivalent(
        part="spans",
        before=LOOP,
        after="for token, noise in zip(tokens.tolist(), mask.tolist(), strict=False):",
        because=SAME_SHAPE,
    ),
    Equivalent(
        part="spans",
        before=LOOP,
        after="for token, noise in zip(tokens, mask.tolist(), strict=True):",
        because="new_tensor makes the same of tensors of one number as of numbers.",
    ),
    Equivalent(
        part="spans",
        before=LOOP,
        after="for token, noise in zip(tokens.tolist(), mask, strict=True):",
        because="A tensor of one boolean is as true as the boolean.",
    ),
    Equivalent(
        part="spans",
        before="return replace_spans(tokens, mask.to(tokens.device), vocab_size, num_sentinels)",
        after="return replace_spans(tokens, mask, vocab_size, num_sentinels)",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="relative",
        before="return first + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))",
        after="return first + torch.where(distance <= exact, distance, far.clamp(max=buckets - 1))",
        because="At the distance exact the logarithm is 0, so the growing buckets begin with bucket exact.",
    ),
    Equivalent(
        part="bias",
        before="query = torch.arange(queries, device=table.device)",
        after="query = torch.arange(queries)",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="bias",
        before="key = torch.arange(keys, device=table.device)",
        after="key = torch.arange(keys)",
        because=ONE_DEVICE,
    ),
]


def _spans(answers: ModuleType, rng: torch.Generator) -> object:
    length = int(torch.randint(2, 40, (), generator=rng))
    tokens = torch.randint(100, (length,), generator=rng)
    mask = torch.rand(length, generator=rng) < 0.4
    return answers.replace_spans(tokens, mask, 150, 40), answers.span_corrupt(tokens, 200, rng)


def _relative(answers: ModuleType, rng: torch.Generator) -> object:
    buckets, further = torch.randint(2, 20, (2,), generator=rng).tolist()
    positions = torch.randint(-300, 300, (40,), generator=rng)
    both = bool(torch.randint(2, (), generator=rng))
    return answers.relative_position_bucket(positions, both, 2 * buckets, 2 * buckets + further)


def _bias(answers: ModuleType, rng: torch.Generator) -> object:
    queries, keys, further = torch.randint(1, 20, (3,), generator=rng).tolist()
    table = torch.randn(10, 3, generator=rng)
    both = bool(torch.randint(2, (), generator=rng))
    return answers.relative_bias(table, queries, keys, both, 10 + further)


EXAMPLES = {"spans": _spans, "relative": _relative, "bias": _bias}
