"""Answers that have more in common than answers of the same class usually have: worth a look, never a proof.

An answer is read as Python's tokens: comments, layout and docstrings are dropped, and every name its author could have
chosen becomes the same token. So renaming hides nothing. Statements that the released cell contains too are left out.
What is left is compared as runs of three tokens by RapidFuzz: the share of runs that two answers have in common, in the
same order.

Two right answers may well be alike. What is typical of the part is measured on the class itself, and a way to write it
that many students share points at nobody.
"""

import builtins
import io
import itertools
import keyword
import random
import statistics
import tokenize
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Indel
from rapidfuzz.process import cdist

__all__ = ["Group", "Likeness", "compare"]

# Below so many tokens (about six lines) right answers coincide by themselves.
SHORTEST = 60
# What a comparison may cost at most, whatever is submitted: tokens of one answer, answers of one part.
LONGEST, MOST_ANSWERS = 2_000, 3_000
RUN = 3
# Independent right answers in deliberately different styles share 20 to 60 %, renamed copies 100 %.
LEAST_SHARE = 0.8
# A way to write it that more students share is a common one: this many, in a small class one in four.
LARGEST_GROUP, SMALL_CLASS = 10, 4
SAMPLE, BLOCK = 250, 256

CHOSEN, TEXT = "name", "text"
LAYOUT = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NL,
}

Statement = tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Students whose answers to one part are nearly the same.

    Attributes:
        students: who, in order.
        share: what two of these answers have in common, from the least to the most alike that were compared.
        same: ``"to the letter"``, ``"but for names and comments"``, or ``""``.
        texts: two of the answers as submitted, with their students.
        like_reference: whether one of them is also nearly the course's own answer.
    """

    students: list[str]
    share: tuple[float, float]
    same: str
    texts: list[tuple[str, str]]
    like_reference: bool


@dataclass(frozen=True)
class Likeness:
    """How alike a class's answers to one part are.

    Attributes:
        compared: how many students' answers were compared.
        short: how many were too short for that.
        distinct: how many different ones there are, names and comments aside.
        left_out: how many of these were too many to compare.
        typical: the median of what two different answers have in common; ``None`` for fewer than three.
        cutoff: what two answers must have in common to be noticed.
        common: who wrote it in the most common way, or nearly so, where those are too many to point at anybody.
        groups: what is worth a look, what stands out most first.
    """

    compared: int
    short: int
    distinct: int
    left_out: int
    typical: float | None
    cutoff: float
    common: Group | None
    groups: list[Group]


@dataclass(frozen=True)
class _Answer:
    """One answer, names and comments aside, and all who gave it."""

    runs: bytes
    given: list[tuple[str, str]]


class _Link(NamedTuple):
    """Two answers by their numbers, and the share of runs that they have in common."""

    one: int
    other: int
    share: float


def compare(answers: Mapping[str, str], stub: str, reference: str) -> Likeness:
    """Finds the answers to one part that have strikingly much in common.

    Args:
        answers: each student's answer cell.
        stub: the cell as it was released; what it says counts as nobody's.
        reference: the course's own answer.
    """
    courses = frozenset(_statements(stub))
    distinct = _distinct(answers, courses)
    compared = sum(len(answer.given) for answer in distinct)
    left_out, distinct = len(distinct[MOST_ANSWERS:]), distinct[:MOST_ANSWERS]
    typical = _typical(distinct)
    cutoff = max(LEAST_SHARE, (1 + (typical or 0)) / 2)
    limit = max(2, min(LARGEST_GROUP, compared // SMALL_CLASS))
    crowd, links = _neighbours(distinct, cutoff, limit)
    own = _runs(_tokens(reference, courses))
    groups = [_group(distinct, joined, own, cutoff) for joined in _joined(distinct, links, limit)]
    return Likeness(
        compared=compared,
        short=len(answers) - compared,
        distinct=len(distinct) + left_out,
        left_out=left_out,
        typical=typical,
        cutoff=cutoff,
        common=_group(distinct, crowd, own, cutoff) if crowd else None,
        groups=sorted(groups, key=lambda g: (-g.share[1], g.students)),
    )


# -- reading an answer ------------------------------------------------------------------------------------


def _distinct(answers: Mapping[str, str], courses: frozenset[Statement]) -> list[_Answer]:
    """The different answers that are long enough, those that most students gave first."""
    by_text: dict[str, list[str]] = {}
    for student, text in sorted(answers.items()):
        by_text.setdefault(text, []).append(student)
    by_tokens: dict[Statement, list[tuple[str, str]]] = {}
    for text, students in by_text.items():
        tokens = _tokens(text, courses)
        if len(tokens) >= SHORTEST:
            by_tokens.setdefault(tokens, []).extend((student, text) for student in students)
    found = [_Answer(_runs(tokens), sorted(given)) for tokens, given in by_tokens.items()]
    return sorted(found, key=lambda answer: (-len(answer.given), answer.given))


def _tokens(text: str, courses: frozenset[Statement]) -> Statement:
    """The tokens of an answer without the statements which the course gave."""
    own = (statement for statement in _statements(text) if statement not in courses)
    return tuple(itertools.islice(itertools.chain.from_iterable(own), LONGEST))


def _statements(text: str) -> Iterator[Statement]:
    """Each statement as its tokens, as far as the text can be read as Python; docstrings are left out."""
    statement: list[str] = []
    before = ("", "")
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NEWLINE:
                if set(statement) != {TEXT}:
                    yield tuple(statement)
                statement, before = [], ("", "")
            elif token.type not in LAYOUT:
                statement.append(_normal(token, before))
                before = (before[1], token.string)
    except (tokenize.TokenError, SyntaxError, ValueError):
        pass  # an answer that is no Python; what stands before that place is compared
    if statement:
        yield tuple(statement)


def _normal(token: tokenize.TokenInfo, before: tuple[str, str]) -> str:
    """A token as it counts; ``before`` are the two that stand before it."""
    if token.type == tokenize.STRING or tokenize.tok_name[token.type].startswith("FSTRING"):
        return TEXT
    if token.type != tokenize.NAME or keyword.iskeyword(token.string) or token.string == "self":
        return token.string
    if before[1] == ".":  # what belongs to a library keeps its name
        return CHOSEN if before[0] == "self" else token.string
    return token.string if hasattr(builtins, token.string) else CHOSEN


def _runs(tokens: Statement) -> bytes:
    """Every run of three tokens as one byte, which RapidFuzz compares fastest.

    Different runs may have the same byte; that adds a few hundredths to what unlike answers seem to have in common.
    """
    windows = (tokens[start : start + RUN] for start in range(max(0, len(tokens) - RUN + 1)))
    return bytes(
        zlib.crc32("\0".join(window).encode("utf-8", "replace")) & 0xFF for window in windows
    )


# -- comparing --------------------------------------------------------------------------------------------


def _typical(distinct: list[_Answer]) -> float | None:
    """What two different answers usually have in common; from a sample where there are many."""
    if len(distinct) < 3:
        return None
    sample = distinct
    if len(distinct) > SAMPLE:
        sample = random.Random(0).sample(distinct, SAMPLE)
    runs = [answer.runs for answer in sample]
    shares = cdist(runs, runs, scorer=Indel.normalized_similarity, dtype=np.float32)
    return statistics.median(shares[np.triu_indices(len(runs), k=1)].tolist())


def _neighbours(
    distinct: list[_Answer], cutoff: float, limit: int
) -> tuple[list[_Link], list[_Link]]:
    """The most common way to write it, with the answers near it, and the links between answers with few neighbours.

    Every answer is compared with every other, a block at a time, so that memory does not grow with their square.
    """
    runs = [answer.runs for answer in distinct]
    sizes = np.array([len(answer.given) for answer in distinct], dtype=int)
    crowds = np.zeros(len(distinct), dtype=int)
    crowd: list[_Link] = []
    links: list[_Link] = []
    for start in range(0, len(runs), BLOCK):
        block = runs[start : start + BLOCK]
        shares = cdist(
            block,
            runs,
            scorer=Indel.normalized_similarity,
            score_cutoff=cutoff,
            dtype=np.float32,
            workers=-1,
        )
        for number, row in enumerate(shares, start):
            near = np.flatnonzero(row)
            crowds[number] = sizes[near].sum()
            if crowds[number] > max(limit, crowds[:number].max(initial=0)):
                crowd = _links(number, near, row, sizes)
            elif crowds[number] <= limit:
                links += _links(number, near[near >= number], row, sizes)
    return crowd, [link for link in links if crowds[link.other] <= limit]


def _links(number: int, near: np.ndarray, shares: np.ndarray, sizes: np.ndarray) -> list[_Link]:
    """An answer's links to those near it, and to itself where several students gave it."""
    return [
        _Link(number, int(other), float(shares[other]))
        for other in near
        if other != number or sizes[number] > 1
    ]


def _joined(distinct: list[_Answer], links: list[_Link], limit: int) -> list[list[_Link]]:
    """The links in groups of at most so many students, grown from the most alike answers.

    Without a limit, answers of which each is somewhat like the next would chain half a class together.
    """
    home: dict[int, list[int]] = {}
    for link in sorted(links, key=lambda link: -link.share):
        one, other = (home.setdefault(n, [n]) for n in (link.one, link.other))
        if one is not other and sum(len(distinct[n].given) for n in one + other) <= limit:
            one += other
            home.update(dict.fromkeys(other, one))
    groups: dict[int, list[_Link]] = {}
    for link in links:
        if home[link.one] is home[link.other]:
            groups.setdefault(id(home[link.one]), []).append(link)
    return list(groups.values())


def _group(distinct: list[_Answer], links: list[_Link], reference: bytes, cutoff: float) -> Group:
    members = sorted({number for link in links for number in (link.one, link.other)})
    given = [pair for number in members for pair in distinct[number].given]
    same = ""
    if len(members) == 1:
        same = "but for names and comments"
        if len({text for _, text in given}) == 1:
            same = "to the letter"
    # One text of each kind where there are several, else two of the same kind.
    other = distinct[members[1]].given[0] if len(members) > 1 else given[1]
    shares = [link.share for link in links]
    return Group(
        students=sorted(student for student, _ in given),
        share=(min(shares), max(shares)),
        same=same,
        texts=[given[0], other],
        like_reference=any(
            Indel.normalized_similarity(distinct[number].runs, reference) >= cutoff
            for number in members
        ),
    )
