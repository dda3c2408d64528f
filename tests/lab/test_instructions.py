"""lab.instructions: no stage sees another's instructions, gold rewards are what they say, people rank as told."""

import itertools

import pytest
import torch
from torch import nn

import lab
from lab import instructions
from lab.instructions import END, MAX_LENGTH, MAX_RESPONSE, SPLITS, VOCABULARY, Instruction

HOT = Instruction("opposite", ("hot",), "cold", told=True)
LAST = Instruction("last", ("figs", "rice", "nuts"), "nuts", told=True)


def drawn(split, number=600, name="drawn"):
    return instructions.instructions(split, number, lab.generator(name))


def test_no_instruction_is_in_two_splits():
    found = {split: {(i.task, i.about) for i in drawn(split)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not found[one] & found[other]


def test_more_than_five_hundred_test_instructions_are_different():
    assert len(set(drawn("test", 1500))) > 500


def test_every_split_has_every_kind_of_instruction_and_things_the_base_text_does_not_tell():
    for split in SPLITS:
        asked = drawn(split)
        assert {i.task for i in asked} == {"city", "job", "opposite", "first", "last"}
        assert 0 < sum(not i.told for i in asked) < len(asked) / 2


def test_draws_follow_the_generator():
    assert drawn("test") == drawn("test")
    assert drawn("test") != drawn("test", name="drawn otherwise")


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="demonstrations"):
        drawn("train")


def test_the_base_text_tells_what_is_told_and_nothing_else():
    text = " ".join(instructions.decode(instructions.base_text(300_000, lab.generator("text"))))
    facts = [i for split in SPLITS for i in drawn(split) if i.task in ("city", "job")]
    for fact in set(facts):
        assert (" ".join(fact.statement) in text) == fact.told, fact


def test_the_base_text_has_the_length_asked_for_and_no_turns():
    text = instructions.base_text(5_001, lab.generator("text"))
    assert text.shape == (5_001,)
    words = set(instructions.decode(text))
    assert END in words
    assert not words & {"<user>", "<assistant>", "<pad>"}


@pytest.mark.parametrize("split", SPLITS)
def test_demonstrations_are_right_or_admit_not_to_know(split):
    rng = lab.generator("shown")
    for one in drawn(split, 200):
        shown = instructions.demonstrate(one, rng)
        assert instructions.judge(one, shown) == ("right" if one.told else "refusal")
        answered = instructions.demonstrate(one, rng, refusals=False)
        assert instructions.judge(one, answered) == "right"
        assert shown.index(END) == len(shown) - 1
        assert len(shown) <= MAX_RESPONSE


@pytest.mark.parametrize(
    "instruction, response, verdict",
    [
        (HOT, "cold .", "right"),
        (HOT, "the opposite of hot is cold .", "right"),
        (HOT, "the opposite of hot is hot .", "wrong"),
        (HOT, "cold dry .", "wrong"),
        (HOT, "i do not know .", "refusal"),
        (HOT, "i do not know cold .", "right"),
        (HOT, "i do not know dry .", "wrong"),
        (HOT, "do not know .", "wrong"),
        (HOT, "", "wrong"),
        (LAST, "the last is nuts .", "right"),
        (LAST, "figs rice nuts .", "wrong"),
    ],
)
def test_what_is_right(instruction, response, verdict):
    assert instructions.judge(instruction, response.split()) == verdict


@pytest.mark.parametrize(
    "response, worth",
    [
        ("cold . <end>", 4.0),
        ("i do not know . <end>", 1.5),
        ("dry . <end>", -1.0),
        ("gladly cold . <end>", 4.0 + 1.6 - 0.5),
        ("gladly cold friend cheers . <end>", 4.0 + 4.8 - 4.5),
        ("well um cold . <end>", 4.0 - 1.2),
        ("the opposite of hot is cold . <end>", 4.0),
        ("the the the opposite of hot is cold . <end>", 4.0 - 0.4),
        ("cold .", 4.0 - 2.0),
    ],
)
def test_what_a_response_is_worth(response, worth):
    assert instructions.gold(HOT, response.split()) == pytest.approx(worth)


def test_people_rank_by_bradley_and_terry():
    worth = torch.tensor([[0.0, 1.0, 3.0]]).expand(20_000, 3)
    ranks = instructions.rank(worth, lab.generator("ranks"))
    assert torch.equal(ranks.sort(dim=1).values, torch.arange(3).expand(20_000, 3))
    for one, other in ((0, 1), (1, 2), (0, 2)):
        preferred = (ranks[:, other] < ranks[:, one]).double().mean().item()
        expected = torch.sigmoid(worth[0, other] - worth[0, one]).item()
        assert preferred == pytest.approx(expected, abs=0.012)  # some three deviations


def test_texts_say_where_the_response_is():
    asked, said = [HOT, LAST], [("cold", ".", END), ()]
    tokens, mask, response = instructions.texts(asked, said)
    assert instructions.decode(tokens[0][mask[0]]) == (
        *("<user>", "what", "is", "the", "opposite", "of", "hot", "?", "<assistant>"),
        *("cold", ".", END),
    )
    assert instructions.decode(tokens[0][response[0]]) == ("cold", ".", END)
    assert not response[1].any()
    assert instructions.decode(tokens[1][mask[1]])[-1] == "<assistant>"
    assert (tokens[~mask] == 0).all()
    plain = instructions.texts(asked, said, chat=False)
    assert instructions.decode(plain.tokens[0][~plain.response[0] & plain.mask[0]]) == (
        END,
        *HOT.question,
    )


def test_every_conversation_fits_into_the_model():
    longest = max(len(i.question) for split in SPLITS for i in drawn(split))
    assert longest + 2 + MAX_RESPONSE <= MAX_LENGTH


def test_a_word_of_another_world_is_refused():
    with pytest.raises(ValueError, match="'hobbit'"):
        instructions.encode(["where", "does", "hobbit", "live", "?"])


class Counting(nn.Module):
    """After the prompt it says the foods in turn, and ends where the last has been said."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, tokens):
        logits = torch.full((*tokens.shape, len(VOCABULARY)), -1e4)
        foods = [VOCABULARY.index(food) for food in instructions.FOODS]
        following = dict(zip(foods, [*foods[1:], VOCABULARY.index(END)], strict=True))
        for row, text in zip(logits, tokens.tolist(), strict=True):
            for place, token in enumerate(text):
                row[place, following.get(token, foods[-2])] = 0.0
        return logits


def test_responses_are_drawn_word_by_word_until_they_end():
    [said, other] = instructions.respond(Counting(), [HOT, LAST], lab.generator("said"))
    assert said == other == (*instructions.FOODS[-2:], END)


def test_responses_have_a_longest_length():
    class Endless(Counting):
        def forward(self, tokens):
            logits = super().forward(tokens)
            logits[..., VOCABULARY.index(END)] = -2e4
            return logits

    [said] = instructions.respond(Endless(), [HOT], lab.generator("said"))
    assert len(said) == MAX_RESPONSE
    assert END not in said


def test_responses_follow_the_models_chances():
    """Equal texts are computed once, and drawn apart."""

    class Coin(Counting):
        def forward(self, tokens):
            logits = torch.full((*tokens.shape, len(VOCABULARY)), -1e4)
            logits[..., VOCABULARY.index("rice")] = torch.tensor(3.0).log()
            logits[..., VOCABULARY.index(END)] = 0.0
            return logits

    said = instructions.respond(Coin(), [HOT] * 4000, lab.generator("said"))
    assert sum(one[0] == "rice" for one in said) / 4000 == pytest.approx(0.75, abs=0.03)
    second = [one[1] for one in said if len(one) > 1]
    assert sum(word == "rice" for word in second) / len(second) == pytest.approx(0.75, abs=0.03)
    cold = instructions.respond(Coin(), [HOT] * 500, lab.generator("said"), temperature=0.1)
    assert all(one[0] == "rice" for one in cold)
