"""Answers that have much in common: copies are found under other names, and what everybody writes points at nobody."""

import textwrap

import pytest

from autograder import similarity
from autograder.similarity import compare

STUB = '''
def merge(pairs: dict, word: tuple) -> tuple:
    """Joins the pair of highest rank until none is left."""
    raise NotImplementedError()
'''


def answer(body):
    return STUB.replace("    raise NotImplementedError()\n", textwrap.indent(body, "    "))


LOOP = answer("""\
parts = list(word)
while len(parts) > 1:
    candidates = [(pairs[a, b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if (a, b) in pairs]
    if not candidates:
        break
    rank, place = min(candidates)
    parts[place : place + 2] = [parts[place] + parts[place + 1]]
return tuple(parts)
""")
RENAMED = answer("""\
# I wrote this myself
symbols = list(word)
while len(symbols) > 1:
    found = [
        (pairs[left, right], k)
        for k, (left, right) in enumerate(zip(symbols, symbols[1:]))
        if (left, right) in pairs
    ]
    if not found:
        break  # nothing left to merge
    _, at = min(found)
    symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
return tuple(symbols)
""")
RECURSIVE = answer("""\
best = None
for index in range(len(word) - 1):
    pair = word[index : index + 2]
    if pair in pairs and (best is None or pairs[pair] < pairs[word[best : best + 2]]):
        best = index
if best is None:
    return tuple(word)
joined = "".join(word[best : best + 2])
return merge(pairs, (*word[:best], joined, *word[best + 2 :]))
""")
BY_RANK = answer("""\
result = tuple(word)
for pair, _ in sorted(pairs.items(), key=lambda item: item[1]):
    merged, skip = [], False
    for one, other in zip(result, result[1:] + (None,)):
        if skip:
            skip = False
        elif (one, other) == pair:
            merged.append(one + other)
            skip = True
        else:
            merged.append(one)
    result = tuple(merged)
return result
""")
INDEPENDENT = {"iris": LOOP, "ravi": RECURSIVE, "rosa": BY_RANK}


def groups(answers, reference=BY_RANK):
    return [group.students for group in compare(answers, STUB, reference).groups]


def test_a_copy_with_other_names_and_comments_is_found():
    [found] = compare(INDEPENDENT | {"copy": RENAMED}, STUB, BY_RANK).groups
    assert found.students == ["copy", "iris"]
    assert found.same == "but for names and comments"
    assert found.share == (1.0, 1.0)
    assert found.texts == [("copy", RENAMED), ("iris", LOOP)]


def test_a_copy_with_a_line_more_and_one_less_is_found():
    edited = RENAMED.replace("symbols = list(word)\n", "symbols = list(word)\n    count = 0\n")
    [found] = compare(INDEPENDENT | {"copy": edited}, STUB, BY_RANK).groups
    assert found.students == ["copy", "iris"]
    assert not found.same
    assert 0.9 < found.share[0] < 1


def test_the_same_text_is_the_same_to_the_letter():
    [found] = compare(INDEPENDENT | {"copy": LOOP}, STUB, BY_RANK).groups
    assert (found.students, found.same) == (["copy", "iris"], "to the letter")


def test_independent_right_answers_are_not_found():
    likeness = compare(INDEPENDENT, STUB, BY_RANK)
    assert likeness.groups == []
    assert likeness.typical < 0.5


def test_it_is_said_when_answers_are_nearly_the_courses_own():
    [found] = compare(INDEPENDENT | {"copy": RENAMED}, STUB, reference=LOOP).groups
    assert found.like_reference
    [found] = compare(INDEPENDENT | {"copy": RENAMED}, STUB, reference=BY_RANK).groups
    assert not found.like_reference


@pytest.mark.parametrize(
    "text",
    [STUB, "raise NotImplementedError()", "", answer("return tuple(word)\n")],
    ids=["stub", "cleared", "empty", "short"],
)
def test_the_stub_and_short_answers_are_not_compared(text):
    likeness = compare({f"s{i}": text for i in range(4)}, STUB, LOOP)
    assert (likeness.groups, likeness.compared, likeness.short) == ([], 0, 4)


def test_what_the_released_cell_contains_counts_as_nobodys():
    long_stub = STUB.replace(
        "    raise", "    assert pairs and word and all(word)\n" * 30 + "    raise"
    )
    likeness = compare({"a": long_stub, "b": long_stub + "\n"}, long_stub, LOOP)
    assert likeness.short == 2


def test_a_way_to_write_it_that_many_share_points_at_nobody():
    many = {f"s{i:02}": LOOP for i in range(20)} | INDEPENDENT
    likeness = compare(many, STUB, LOOP)
    assert likeness.groups == []
    assert likeness.common.students == sorted({"iris"} | {f"s{i:02}" for i in range(20)})
    assert likeness.common.like_reference
    # Nor does an answer that is nearly the common one.
    assert groups(many | {"near": RENAMED.replace("list(word)", "[*word]")}) == []


def test_answers_that_are_somewhat_like_the_next_do_not_chain_a_class_together():
    lines = [
        f"    v{i} = word.count({i}) + pairs.get(({i}, {i + 1}), {i * i}) * len(word)\n"
        for i in range(90)
    ]
    sliding = {f"s{i:02}": STUB + "".join(lines[2 * i : 2 * i + 20]) for i in range(35)}
    found = groups(sliding)
    assert all(len(students) <= similarity.LARGEST_GROUP for students in found)


def test_what_is_no_python_is_compared_as_far_as_it_can_be_read():
    broken = LOOP.replace("return tuple(parts)", "return tuple(parts")
    assert groups(INDEPENDENT | {"copy": broken}) == [["copy", "iris"]]
    for text in ("'''", "\x00", "\ud800 = 1", "if x:\n  y\n z", "é" * 1000):
        assert compare({"a": text, "b": text}, STUB, LOOP).short == 2


def test_more_answers_than_can_be_compared_are_counted(monkeypatch):
    monkeypatch.setattr(similarity, "MOST_ANSWERS", 2)
    likeness = compare(INDEPENDENT, STUB, LOOP)
    assert (likeness.distinct, likeness.left_out) == (3, 1)


def test_an_answer_of_any_length_costs_a_bounded_comparison():
    endless = "".join(f"a{i} = b{i}.c{i}(d, {i})\n" for i in range(5000))
    [found] = compare({"a": endless, "b": endless + "e = f.g()\n"}, STUB, LOOP).groups
    assert found.share == (1.0, 1.0)
