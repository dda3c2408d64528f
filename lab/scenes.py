"""Rendered pictures of coloured shapes, with captions, and with questions that need looking.

A scene is a few things on a light ground: each has a colour and a shape and lies in a cell of a three by three grid, a
little off its middle. Four of the twenty pairs of colour and shape, :data:`HELD_OUT`, occur only where a caller asks
for them: each colour and each shape is seen without them, only not together. Of the questions none can be answered
from its words: what is asked for is drawn independently of the rest, held-out pairs apart.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "COLOURS",
    "HELD_OUT",
    "PAIRS",
    "SHAPES",
    "SIZE",
    "VOCABULARY",
    "Question",
    "Scene",
    "Thing",
    "ask",
    "caption",
    "decode",
    "draw",
    "encode",
    "render",
]

SIZE = 32  # pixels of a side
GRID = 3  # cells of a side
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.84, 0.15, 0.16),
    "green": (0.17, 0.60, 0.20),
    "blue": (0.12, 0.38, 0.80),
    "yellow": (0.93, 0.77, 0.10),
    "grey": (0.35, 0.35, 0.37),
}
SHAPES = ("circle", "square", "triangle", "cross")
GROUND = 0.95
NUMBERS = ("one", "two", "three", "four")

PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
HELD_OUT = (("red", "circle"), ("green", "square"), ("blue", "triangle"), ("yellow", "cross"))
SEEN = tuple(pair for pair in PAIRS if pair not in HELD_OUT)


class Thing(NamedTuple):
    """One thing of a scene.

    Attributes:
        colour, shape: keys of :data:`COLOURS`, members of :data:`SHAPES`.
        x, y: its middle, as shares of the picture's width and height from the upper left corner.
        radius: as a share of the width.
    """

    colour: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> tuple[str, str]:
        return (self.colour, self.shape)


Scene = tuple[Thing, ...]


class Question(NamedTuple):
    """A question about a scene: what it asks for, its words, and the one word that is right."""

    kind: Literal["colour", "shape", "number", "place"]
    words: tuple[str, ...]
    answer: str


# --- scenes ---------------------------------------------------------------------------------------------


def draw(things: int, rng: torch.Generator, *, pairs: Sequence[tuple[str, str]] = SEEN) -> Scene:
    """A random scene.

    Args:
        things: how many, at most four. No two have the same colour or the same shape, so that each has a name.
        rng: a CPU generator.
        pairs: the pairs of colour and shape to draw from; each thing's is drawn evenly from those still possible.

    Raises:
        ValueError: more than four things, fewer than one, or pairs of which so many cannot be chosen.
    """
    if not 1 <= things <= len(SHAPES):
        raise ValueError(f"a scene has 1 to {len(SHAPES)} things, not {things}.")
    if not pairs:
        raise ValueError("there are no pairs of colour and shape to draw from.")
    if not _can(tuple(pairs), things):
        raise ValueError(f"no {things} of these pairs differ in colour and in shape.")
    names: list[tuple[str, str]] = []
    while len(names) < things:
        left = [(c, s) for c, s in pairs if all(c != d and s != t for d, t in names)]
        # Some choices leave no pair for the last thing: then from the beginning.
        names = [*names, left[_below(len(left), rng)]] if left else []
    cells = torch.randperm(GRID**2, generator=rng)[:things].tolist()
    return tuple(_placed(name, cell, rng) for name, cell in zip(names, cells, strict=True))


@functools.cache
def _can(pairs: tuple[tuple[str, str], ...], things: int) -> bool:
    """Whether so many of the pairs differ from each other in colour and shape."""
    if things == 0:
        return True
    return any(
        _can(tuple((c, s) for c, s in pairs if c != colour and s != shape), things - 1)
        for colour, shape in pairs
    )


def _placed(name: tuple[str, str], cell: int, rng: torch.Generator) -> Thing:
    row, column = divmod(cell, GRID)
    dx, dy, more = (torch.rand(3, generator=rng) - 0.5).tolist()
    x, y = (column + 0.5 + 0.24 * dx) / GRID, (row + 0.5 + 0.24 * dy) / GRID
    return Thing(*name, x, y, (0.36 + 0.08 * more) / GRID)


def _below(n: int, rng: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=rng))


def _cell(thing: Thing) -> tuple[int, int]:
    """Row and column."""
    return int(thing.y * GRID), int(thing.x * GRID)


# --- pictures -------------------------------------------------------------------------------------------


def render(scenes: Sequence[Scene], size: int = SIZE) -> Float[Tensor, "scenes 3 size size"]:
    """The pictures, red, green and blue in 0…1, edges smooth over one pixel."""
    middles = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    pictures = torch.full((len(scenes), 3, size, size), GROUND)
    for picture, scene in zip(pictures, scenes, strict=True):
        for thing in scene:
            inside = (0.5 - size * _distance(thing, x - thing.x, y - thing.y)).clamp(0, 1)
            colour = torch.tensor(COLOURS[thing.colour])[:, None, None]
            picture.lerp_(colour.expand_as(picture), inside.expand_as(picture))
    return pictures


def _distance(
    thing: Thing, dx: Float[Tensor, "size size"], dy: Float[Tensor, "size size"]
) -> Float[Tensor, "size size"]:
    """How far outside the thing's edge each point lies, below zero inside; exact near the straight parts of edges."""
    r, ax, ay = thing.radius, dx.abs(), dy.abs()
    match thing.shape:
        case "circle":
            return torch.hypot(dx, dy) - r
        case "square":
            return torch.maximum(ax, ay) - 0.85 * r
        case "triangle":  # its tip is above
            return torch.maximum(dy - 0.75 * r, 0.9 * ax - 0.44 * dy - 0.44 * r)
        case "cross":
            arm = 0.33 * r
            return torch.minimum(torch.maximum(ax - r, ay - arm), torch.maximum(ax - arm, ay - r))
    raise ValueError(f"there is no shape {thing.shape!r}; there are {', '.join(SHAPES)}.")


# --- words ----------------------------------------------------------------------------------------------


def caption(scene: Scene) -> tuple[str, ...]:
    """What the scene shows, things in the order of the scene: *a red circle and a grey cross*."""
    phrases = [("a", *thing.name) for thing in scene]
    return tuple(
        word for i, phrase in enumerate(phrases) for word in (("and",) if i else ()) + phrase
    )


def ask(scene: Scene, rng: torch.Generator) -> Question:
    """A random question about the scene: a colour, a shape, a number, or what lies at the side of something.

    A question about a place is asked only of scenes where just one thing lies on that side of the other.
    """
    kinds = [_colour, _shape, _number]
    places = _places(scene)
    if places:
        kinds.append(lambda _, rng: places[_below(len(places), rng)])
    return kinds[_below(len(kinds), rng)](scene, rng)


def _colour(scene: Scene, rng: torch.Generator) -> Question:
    thing = scene[_below(len(scene), rng)]
    return Question("colour", ("what", "colour", "is", "the", thing.shape, "?"), thing.colour)


def _shape(scene: Scene, rng: torch.Generator) -> Question:
    thing = scene[_below(len(scene), rng)]
    return Question(
        "shape", ("what", "shape", "is", "the", thing.colour, "thing", "?"), thing.shape
    )


def _number(scene: Scene, rng: torch.Generator) -> Question:
    return Question("number", ("how", "many", "things", "?"), NUMBERS[len(scene) - 1])


def _places(scene: Scene) -> list[Question]:
    """Every question of the kind *what colour is the thing left of the cross?* that has one answer."""
    sides = {
        ("left", "of"): lambda a, b: a[1] < b[1],
        ("right", "of"): lambda a, b: a[1] > b[1],
        ("above",): lambda a, b: a[0] < b[0],
        ("below",): lambda a, b: a[0] > b[0],
    }
    found = []
    for thing in scene:
        for side, lies in sides.items():
            there = [other for other in scene if lies(_cell(other), _cell(thing))]
            if len(there) == 1:
                words = ("what", "colour", "is", "the", "thing", *side, "the", thing.shape, "?")
                found.append(Question("place", words, there[0].colour))
    return found


def _vocabulary() -> tuple[str, ...]:
    words = "<pad> <start> <end> a and what colour shape is the thing things how many left right of above below ?"
    return (*words.split(), *COLOURS, *SHAPES, *NUMBERS)


VOCABULARY = _vocabulary()
ID = {word: i for i, word in enumerate(VOCABULARY)}


def encode(words: Sequence[str]) -> Int[Tensor, " length"]:
    """The tokens of some words.

    Raises:
        ValueError: a word is not in the vocabulary.
    """
    if strange := [word for word in words if word not in ID]:
        raise ValueError(f"{strange[0]!r} is not among the {len(VOCABULARY)} words of the scenes.")
    return torch.tensor([ID[word] for word in words], dtype=torch.int64)


def decode(tokens: Int[Tensor, " length"]) -> tuple[str, ...]:
    """The words of some tokens."""
    return tuple(VOCABULARY[i] for i in tokens.tolist())
