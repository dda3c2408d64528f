"""Wrong answers to the exercise on supervised fine-tuning."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

ROW = "row += [openings[i % 2], *content, template.end]"
SAID = "F.pad(is_open[..., :-1], (1, 0))"
CROSS_ENTROPY = "F.cross_entropy(logits[:, :-1][counted], tokens[:, 1:][counted])"
OF_TOKENS = (
    'F.cross_entropy(logits[:, :-1].transpose(1, 2), (tokens[:, 1:] * counted), reduction="none")'
)
FITS = "fits = (row for row, tokens in enumerate(used) if tokens + len(text) <= length)"
SHARES = "(correct[known], refused[known], wrong[~known])"

MISCONCEPTIONS = [
    # --- template ---
    Misconception(
        name="special_tokens_let_in",
        part="template",
        says="Your render takes special tokens inside a content. With them a user closes the turn and writes the "
        "assistant's: refuse them.",
        wrong={"not set(template).isdisjoint(content)": "False"},
    ),
    Misconception(
        name="special_tokens_dropped",
        part="template",
        says="Your render leaves special tokens out of a content without a word. The row is then not what was said: "
        "refuse them with a ValueError.",
        wrong={
            "if not set(template).isdisjoint(content):": "if False:",
            ROW: "row += [openings[i % 2], *(t for t in content if t not in template), template.end]",
        },
    ),
    Misconception(
        name="only_end_refused",
        part="template",
        says="Your render refuses the end in a content, but not the two openings. All three are special.",
        wrong={"not set(template).isdisjoint(content)": "template.end in content"},
    ),
    Misconception(
        name="assistant_not_searched",
        part="template",
        says="Your render looks for special tokens in the user's content alone. What an assistant is said to have said "
        "may come from outside as well.",
        wrong={"if not set(template)": "if i % 2 == 0 and not set(template)"},
    ),
    Misconception(
        name="end_only_after_the_assistant",
        part="template",
        says="Your render closes the assistant's turns alone. Every turn has its end, the user's too.",
        wrong={
            ROW: "row += [openings[i % 2], *content]\n        if i % 2:\n            row.append(template.end)"
        },
    ),
    Misconception(
        name="one_end_for_all",
        part="template",
        says="Your render writes one end, after the last turn. Every turn has its own.",
        wrong={
            ROW: (
                "row += [openings[i % 2], *content]\n"
                "        if i == len(conversation) - 1:\n            row.append(template.end)"
            )
        },
    ),
    Misconception(
        name="empty_turn_left_out",
        part="template",
        says="Your render leaves out a turn without content. It has an opening and an end all the same.",
        wrong={ROW: ROW.replace("]", "] if content else []")},
    ),
    Misconception(
        name="opening_closed",
        part="template",
        says="With open_assistant your row has an end after the assistant's opening: there is nothing left to say. The "
        "opening is the last token.",
        wrong={
            "row.append(template.assistant)": "row += [template.assistant, template.end]",
        },
    ),
    Misconception(
        name="always_open",
        part="template",
        says="Your render opens an assistant's turn whether it is asked to or not.",
        wrong={
            "if open_assistant:\n        if len(conversation) % 2 == 0:": (
                "if len(conversation) % 2 or open_assistant:\n        if len(conversation) % 2 == 0:"
            )
        },
    ),
    Misconception(
        name="roles_swapped",
        part="template",
        says="Your templates have the openings exchanged: the user's turns begin with the assistant's token.",
        wrong={
            "openings = (template.user, template.assistant)\n    row": (
                "openings = (template.assistant, template.user)\n    row"
            )
        },
    ),
    Misconception(
        name="specials_stay_in_the_content",
        part="template",
        says="Your parse leaves the end in the content. The special tokens are the template's, and no content.",
        wrong={
            "conversation.append((ROLES[turn], content))": (
                "conversation.append((ROLES[turn], [*content, token]))"
            )
        },
    ),
    Misconception(
        name="parse_drops_empty_turns",
        part="template",
        says="Your parse drops a turn without content, as a split that filters out what is empty does. It is a turn.",
        wrong={
            "            conversation.append((ROLES[turn], content))": (
                "            if content:\n                conversation.append((ROLES[turn], content))"
            )
        },
    ),
    Misconception(
        name="unfinished_turn_accepted",
        part="template",
        says="Your parse takes a row that stops within a turn. Without its end it is no turn: refuse it.",
        wrong={
            'raise ValueError("the last turn has no end")': (
                "conversation.append((ROLES[len(conversation) % 2], content))"
            )
        },
    ),
    Misconception(
        name="tokens_between_turns_skipped",
        part="template",
        says="Your parse skips what stands between turns. What belongs to no turn is a bug somewhere before: refuse it.",
        wrong={
            "            if token != openings[turn]:": (
                "            if token not in template:\n                continue\n"
                "            if token != openings[turn]:"
            )
        },
    ),
    Misconception(
        name="opening_in_a_turn_is_content",
        part="template",
        says="Your parse takes an opening inside a turn for content. The turn before was never closed: refuse it.",
        wrong={"elif token in openings:": "elif False:"},
    ),
    Misconception(
        name="opening_ends_a_turn",
        part="template",
        says="Your parse lets an opening end the turn before it. Every turn has its own end: without one, refuse the "
        "row.",
        wrong={
            'raise ValueError(f"token {token} opens a turn before the end of the last one")': (
                "conversation.append((ROLES[turn], content))\n            content = []"
            )
        },
    ),
    # --- mask ---
    Misconception(
        name="prompt_in_the_mask",
        part="mask",
        says="Your mask counts the user's turns as well. The user's words are conditions: only what the assistant says "
        "is learnt.",
        wrong={
            "(tokens == template.assistant) | (tokens == template.end)": (
                "(tokens == template.assistant) | (tokens == template.user) | (tokens == template.end)"
            ),
            "tokens.gather(-1, last) == template.assistant": "tokens.gather(-1, last) != template.end",
        },
    ),
    Misconception(
        name="mask_at_the_predicting_position",
        part="mask",
        says="Your mask is one place to the left: it stands at the position that predicts. It marks the token that is "
        "predicted, and the loss does the shift.",
        wrong={SAID: "is_open"},
    ),
    Misconception(
        name="end_left_out",
        part="mask",
        says="Your mask leaves out the assistant's end. A model that is not taught to stop does not stop.",
        wrong={SAID: f"{SAID} & (tokens != template.end)"},
    ),
    Misconception(
        name="opening_in_the_mask",
        part="mask",
        says="Your mask counts the assistant's opening. It is written by the template, never by the model.",
        wrong={SAID: f"{SAID} | (tokens == template.assistant)"},
    ),
    Misconception(
        name="every_end_in_the_mask",
        part="mask",
        says="Your mask counts every end, the user's too. An end counts where a turn of the assistant is open.",
        wrong={SAID: f"{SAID} | (tokens == template.end)"},
    ),
    Misconception(
        name="last_turn_only",
        part="mask",
        says="Your mask counts the last turn of the assistant alone. Every one of its turns is in the loss.",
        wrong={
            SAID: (
                f"{SAID} & (last >= (place * (tokens == template.assistant)).amax(-1, keepdim=True))"
            )
        },
    ),
    Misconception(
        name="first_turn_only",
        part="mask",
        says="Your mask stops after the first turn of the assistant. Every one of its turns is in the loss.",
        wrong={SAID: f"{SAID} & ((tokens == template.assistant).long().cumsum(-1) == 1)"},
    ),
    Misconception(
        name="all_after_the_first_opening",
        part="mask",
        says="Your mask counts everything after the assistant's first opening, as for a conversation of one question "
        "and one answer. Later turns of the user, and padding, do not count.",
        wrong={
            "(tokens == template.assistant) | (tokens == template.end)": "tokens == template.assistant"
        },
    ),
    Misconception(
        name="padding_by_the_id_of_the_end",
        part="mask",
        says="Your mask counts ends in the padding: there no turn is open.",
        wrong={
            SAID: (
                f"{SAID} | ((tokens == template.end) "
                "& (F.pad(tokens[..., :-1], (1, 0), value=-1) == template.end))"
            )
        },
    ),
    # --- loss ---
    Misconception(
        name="no_shift",
        part="loss",
        says="Your loss scores token t with the logits at t, which have read it already. The logits at t belong to "
        "token t + 1.",
        wrong={
            CROSS_ENTROPY: "F.cross_entropy(logits[:, 1:][counted], tokens[:, 1:][counted])",
        },
    ),
    Misconception(
        name="mask_not_shifted",
        part="loss",
        says="Your mask is one place off: it is read at the position that predicts. It is shifted with the tokens, "
        "mask[:, 1:].",
        wrong={
            "counted = mask[:, 1:]": "counted = mask[:, :-1]",
            "tokens[:, 1:][counted]": "tokens[:, 1:][counted].clamp(0, logits.shape[-1] - 1)",
        },
    ),
    Misconception(
        name="shifted_twice",
        part="loss",
        says="Your loss looks two tokens ahead: one shift too many. The logits at t belong to token t + 1.",
        wrong={
            CROSS_ENTROPY: (
                "F.cross_entropy(logits[:, :-2][counted[:, 1:]], tokens[:, 2:][counted[:, 1:]])"
            )
        },
    ),
    Misconception(
        name="prompt_in_the_loss",
        part="loss",
        says="Your loss counts every token, prompt and padding too. Only the tokens that the mask marks count.",
        wrong={
            CROSS_ENTROPY: (
                "F.cross_entropy(logits[:, :-1].flatten(0, 1), "
                "tokens[:, 1:].clamp(0, logits.shape[-1] - 1).flatten())"
            )
        },
    ),
    Misconception(
        name="mean_over_padding",
        part="loss",
        says="Your loss divides by all tokens, prompt and padding too. It is divided by the number of tokens that count.",
        wrong={CROSS_ENTROPY: f"({OF_TOKENS} * counted).mean()"},
    ),
    Misconception(
        name="mean_of_row_means",
        part="loss",
        says="Your loss takes the mean of each row and then of the rows: a token of a short answer weighs more than one "
        "of a long. It is one mean over all tokens that count.",
        wrong={
            CROSS_ENTROPY: (
                f"(({OF_TOKENS} * counted).sum(1)[counted.any(1)] / counted.sum(1)[counted.any(1)]).mean()"
            )
        },
    ),
    Misconception(
        name="divided_by_rows",
        part="loss",
        says="Your loss is a sum over the tokens, divided by the number of rows. It is divided by the number of tokens "
        "that count.",
        wrong={CROSS_ENTROPY: f"({OF_TOKENS} * counted).sum() / len(tokens)"},
    ),
    Misconception(
        name="summed_loss",
        part="loss",
        says="Your loss is a sum over the tokens. It is a mean.",
        wrong={"tokens[:, 1:][counted])": 'tokens[:, 1:][counted], reduction="sum")'},
    ),
    Misconception(
        name="first_position_in_the_denominator",
        part="loss",
        says="Your loss is divided by all marks of the mask. One at the first position marks a token that nobody "
        "predicts.",
        wrong={CROSS_ENTROPY: f"({OF_TOKENS} * counted).sum() / mask.sum()"},
    ),
    Misconception(
        name="nothing_is_zero",
        part="loss",
        says="Your loss is a number where no token counts. There is no mean of nothing: a batch without a response is a "
        "bug, and refused.",
        wrong={
            'raise ValueError("no token of a response is in the batch")': "return logits.sum() * 0"
        },
    ),
    Misconception(
        name="log_of_softmax",
        part="loss",
        says="Your loss takes the logarithm of a softmax, which is −∞ where the softmax is 0 in floating point: use "
        "log_softmax or cross_entropy.",
        wrong={
            CROSS_ENTROPY: (
                "F.nll_loss(logits[:, :-1][counted].softmax(-1).log(), tokens[:, 1:][counted])"
            )
        },
    ),
    # --- pack ---
    Misconception(
        name="positions_run_on",
        part="pack",
        says="Your positions run on through the row. They restart with each text, or the second stands where no "
        "conversation begins.",
        wrong={
            "packed.positions[here] = torch.arange(": "packed.positions[here] = start + torch.arange("
        },
    ),
    Misconception(
        name="border_in_the_loss",
        part="pack",
        says="Your packed mask counts the first token of a text. What stands before it is another text, which must not "
        "learn to predict it.",
        wrong={
            "        packed.mask[row, start] = False  # what stands before it is another text\n": ""
        },
    ),
    Misconception(
        name="attends_across_texts",
        part="pack",
        says="Your attention mask is causal over the whole row: a text reads the one before it. A token attends to its "
        "own document.",
        wrong={
            "(same & real).tril()": "((documents[:, None, :] >= 0) & real).tril()",
        },
    ),
    Misconception(
        name="attends_ahead",
        part="pack",
        says="Your attention mask lets a token look at what stands after it in its document. It is block-diagonal and "
        "causal.",
        wrong={"(same & real).tril()": "same & real"},
    ),
    Misconception(
        name="attention_mask_inverted",
        part="pack",
        says="Your attention mask is True where a token may not attend. In this course True means: may attend.",
        wrong={"(same & real).tril()": "~(same & real).tril()"},
    ),
    Misconception(
        name="attention_mask_transposed",
        part="pack",
        says="Your attention mask has its axes exchanged: the second is the token that looks, the third the one that "
        "is looked at.",
        wrong={".tril()": ".triu()"},
    ),
    Misconception(
        name="not_to_itself",
        part="pack",
        says="In your attention mask a token does not attend to itself. It has read itself when it predicts the next.",
        wrong={".tril()": ".tril(-1)"},
    ),
    Misconception(
        name="padding_attends",
        part="pack",
        says="In your attention mask padding attends to padding, as if −1 were a document.",
        wrong={"(same & real)": "same"},
    ),
    Misconception(
        name="next_fit",
        part="pack",
        says="Your packing looks at the last row alone, and never goes back to one that still has room. First-fit takes "
        "the first row with room.",
        wrong={
            FITS: (
                "fits = (row for row, tokens in enumerate(used) "
                "if row == len(used) - 1 and tokens + len(text) <= length)"
            )
        },
    ),
    Misconception(
        name="last_place_left_free",
        part="pack",
        says="Your packing opens a new row for a text that would have filled one to the last place. It fits.",
        wrong={"if tokens + len(text) <= length)": "if tokens + len(text) < length)"},
    ),
    Misconception(
        name="best_fit",
        part="pack",
        says="Your packing takes the fullest row with room. First-fit takes the first one with room.",
        wrong={
            "row = next(fits, len(used))": (
                "row = max(fits, key=lambda row: used[row], default=len(used))"
            )
        },
    ),
    Misconception(
        name="one_text_a_row",
        part="pack",
        says="Your rows hold one text each: that is padding, not packing.",
        wrong={"row = next(fits, len(used))": "row = len(used)"},
    ),
    Misconception(
        name="sorted_by_length",
        part="pack",
        says="Your packing takes the longest texts first. Here they are taken in the order given.",
        wrong={
            "    for text in texts:\n": (
                "    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))\n"
                "    texts, masks = [texts[i] for i in order], [masks[i] for i in order]\n"
                "    for text in texts:\n"
            )
        },
    ),
    Misconception(
        name="documents_counted_by_row",
        part="pack",
        says="Your documents are counted anew in each row. A document's number is the index of its text in the list.",
        wrong={
            "packed.documents[here] = i": (
                "packed.documents[here] = sum(other == row for other, _ in places[:i])"
            ),
        },
    ),
    Misconception(
        name="padding_is_a_document",
        part="pack",
        says="Your padding has the number of a document, 0. It has −1.",
        wrong={"zeros - 1,": "zeros.clone(),"},
    ),
    Misconception(
        name="long_text_cut",
        part="pack",
        says="Your packing cuts a text that is longer than a row: its end, which the model should learn, is lost. "
        "Refuse it.",
        wrong={
            "    used: list[int] = []": (
                "    texts, masks = [t[:length] for t in texts], [m[:length] for m in masks]\n"
                "    used: list[int] = []"
            )
        },
    ),
    # --- rates ---
    Misconception(
        name="refusal_is_hallucination",
        part="rates",
        says="Your hallucination rate counts refusals. To say that one does not know is not to make something up.",
        wrong={"wrong = ~refused & ~correct": "wrong = ~correct"},
    ),
    Misconception(
        name="share_of_those_answered",
        part="rates",
        says="Your hallucination rate is a share of the questions that were answered. It is a share of all unknown "
        "questions: refused ones stay in the denominator.",
        wrong={"wrong[~known])": "wrong[~known & ~refused])"},
    ),
    Misconception(
        name="accuracy_without_refusals",
        part="rates",
        says="Your accuracy leaves refused questions out: a model that answers one question of a hundred, rightly, has "
        "100 %. It is a share of all known questions.",
        wrong={"(correct[known],": "(correct[known & ~refused],"},
    ),
    Misconception(
        name="share_of_all_questions",
        part="rates",
        says="Your rates are shares of all questions. Each is a share of its kind, known or unknown.",
        wrong={SHARES: "(correct & known, refused & known, wrong & ~known)"},
    ),
    Misconception(
        name="all_wrong_answers",
        part="rates",
        says="Your hallucination rate counts wrong answers to known questions. Those are errors; here it is about what "
        "the model cannot know.",
        wrong={"wrong[~known])": "wrong)"},
    ),
    Misconception(
        name="refusal_of_the_unknown",
        part="rates",
        says="Your refusal rate is that of unknown questions, where a refusal is right. What it costs shows in the "
        "known ones.",
        wrong={"refused[known]": "refused[~known]"},
    ),
    Misconception(
        name="guess_is_hallucination",
        part="rates",
        says="Your hallucination rate counts every answer to an unknown question. A right one is luck, and not wrong.",
        wrong={"wrong = ~refused & ~correct": "wrong = ~refused"},
    ),
]

ONE_DEVICE = "On the CPU there is one device. On a GPU the tests notice it."
ZEROS = "zeros = torch.zeros(len(used), length, dtype=torch.int64, device=texts[0].device)"

EQUIVALENT = [
    Equivalent(
        part="mask",
        before="place = torch.arange(tokens.shape[-1], device=tokens.device)",
        after="place = torch.arange(tokens.shape[-1])",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="pack",
        before=ZEROS,
        after=ZEROS.replace(", device=texts[0].device", ""),
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="pack",
        before=ZEROS,
        after=ZEROS.replace("texts[0]", "texts[-1]"),
        because="The texts are on one device.",
    ),
]


def _talk(rng: torch.Generator, template: tuple[int, ...]) -> list[tuple[str, list[int]]]:
    turns = int(torch.randint(1, 5, (), generator=rng))
    return [
        (("user", "assistant")[i % 2], torch.randint(3, 9, (n,), generator=rng).tolist())
        for i, n in enumerate(torch.randint(4, (turns,), generator=rng).tolist())
    ]


def _template(answers: ModuleType, rng: torch.Generator) -> object:
    template = answers.ChatTemplate(0, 1, 2)
    talk = _talk(rng, template)
    row = answers.render(talk, template)
    return row, answers.parse(row, template)


def _mask(answers: ModuleType, rng: torch.Generator) -> object:
    template = answers.ChatTemplate(0, 1, 2)
    row = [token for _, content in _talk(rng, template) for token in content]
    return answers.response_mask(torch.tensor([0, *row, 2, 1, *row, 2, 2, 2]), template)


def _loss(answers: ModuleType, rng: torch.Generator) -> object:
    logits = torch.randn(2, 4, 3, generator=rng)
    tokens = torch.randint(3, (2, 4), generator=rng)
    mask = torch.rand(2, 4, generator=rng) < 0.5
    mask[0, 2] = True
    return answers.sft_loss(logits, tokens, mask)


def _pack(answers: ModuleType, rng: torch.Generator) -> object:
    lengths = torch.randint(1, 6, (6,), generator=rng).tolist()
    texts = [torch.randint(9, (n,), generator=rng) for n in lengths]
    packed = answers.pack(texts, [text > 4 for text in texts], 6)
    return *packed, answers.packed_attention_mask(packed[2])


def _rates(answers: ModuleType, rng: torch.Generator) -> object:
    known, refused, correct = torch.rand(3, 9, generator=rng) < 0.5
    known[:2] = torch.tensor([True, False])
    return torch.stack(list(answers.answer_rates(known, refused, correct & ~refused)))


EXAMPLES = {
    "template": _template,
    "mask": _mask,
    "loss": _loss,
    "pack": _pack,
    "rates": _rates,
}
