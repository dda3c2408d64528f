"""Small trained models which pages and exercises start from: safetensors files of less than 2 MB, in ``lab/weights``.

A recorded run of the book trains each of them and writes it, so that one command makes it again and prints its loss.
The file says which model of :mod:`lab.models` it holds, of which sizes, what its tokens stand for, and how it was
made. Weights are kept in half precision and computed with in single; the losses printed are those of the file.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lab import models

__all__ = ["Checkpoint", "load", "names", "save"]

FOLDER = Path(__file__).resolve().parent / "weights"
LARGEST = 2_000_000  # bytes


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, ready to be used or to be trained further.

    Attributes:
        name: as in :func:`load`.
        model: in evaluation mode, its parameters in single precision.
        vocabulary: token ``i`` stands for ``vocabulary[i]``: a character, a word, or the name of a special token.
        facts: how it was made: the ``command``, and losses.
    """

    name: str
    model: nn.Module
    vocabulary: tuple[str, ...]
    facts: Mapping[str, object]

    def encode(self, text: Iterable[str]) -> Int[Tensor, " length"]:
        """The tokens of a text: a string where they are characters, a list where they are words.

        Raises:
            ValueError: a character, or word, is not in the vocabulary.
        """
        ids, found = {token: i for i, token in enumerate(self.vocabulary)}, []
        for place, piece in enumerate(text):
            if piece not in ids:
                raise ValueError(f"{self.name} has no token for {piece!r} (place {place} of the text).")  # fmt: skip
            found.append(ids[piece])
        return torch.tensor(found, dtype=torch.int64)

    def decode(self, tokens: Int[Tensor, " length"]) -> str:
        """The text of tokens, one straight after the other."""
        return "".join(self.vocabulary[i] for i in tokens.tolist())


def names(folder: Path = FOLDER) -> list[str]:
    """Every checkpoint there is."""
    return sorted(file.stem for file in folder.glob("*.safetensors"))


def load(name: str, *, folder: Path = FOLDER) -> Checkpoint:
    """The checkpoint of that name, on the CPU.

    Raises:
        FileNotFoundError: there is none; the message lists those that there are.
        ValueError: the file is damaged, is no checkpoint of the course, or does not fit its model.
    """
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        there = ", ".join(names(folder)) or "none"
        raise FileNotFoundError(f"There is no checkpoint {name!r}. There are: {there}.")
    try:
        with safe_open(file, "pt") as opened:
            says = json.loads((opened.metadata() or {})["checkpoint"])
            tensors = {key: opened.get_tensor(key).float() for key in opened.keys()}  # noqa: SIM118
        kind, sizes = says["model"], says["sizes"]
        vocabulary, facts = tuple(says["vocabulary"]), says["facts"]
    except SafetensorError as error:
        raise ValueError(
            f"{file.name} is damaged, or is no safetensors file: {error}. "
            "Take it from the repository again, or make it again with its run."
        ) from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{file.name} does not say what it holds ({error!r}): it was not written by lab.checkpoints.save."
        ) from error
    if kind not in models.__all__:
        raise ValueError(
            f"{file.name} holds a {kind!r}; lab.models has {', '.join(models.__all__)}."
        )
    return Checkpoint(name, _filled(kind, sizes, tensors, file.name), vocabulary, facts)


def save(
    name: str,
    model: nn.Module,
    sizes: Mapping[str, object],
    *,
    vocabulary: Sequence[str],
    facts: Mapping[str, object],
    folder: Path = FOLDER,
) -> Path:
    """Write a model of :mod:`lab.models` so that :func:`load` brings it back; returns the file.

    Equal arguments give equal bytes.

    Args:
        name: under which it is loaded; replaces one of the same name.
        model: what was trained.
        sizes: the arguments that make such a model, by name.
        vocabulary: what each token stands for.
        facts: how it was made, with at least the ``command``; values that JSON can hold.
        folder: where to.

    Raises:
        ValueError: the model is not one of ``lab.models``, ``sizes`` make another one, ``facts`` name no
            command, half precision cannot hold a weight, or the file would be larger than 2 MB.
    """
    kind = type(model).__name__
    if kind not in models.__all__:
        raise ValueError(f"{name} is a {kind!r}; lab.models has {', '.join(models.__all__)}.")
    if "command" not in facts:
        raise ValueError(f"{name}: facts must name the command that makes it again.")
    tensors = {}
    for key, value in model.state_dict().items():
        tensors[key] = value.detach().cpu().half().contiguous()
        if not tensors[key].isfinite().all():
            raise ValueError(f"{name}: {key} holds a value that half precision cannot.")
    _filled(kind, sizes, {key: value.float() for key, value in tensors.items()}, name)
    says = {
        "model": kind,
        "sizes": dict(sizes),
        "vocabulary": list(vocabulary),
        "facts": dict(facts),
    }
    # One entry, since safetensors writes several in an order of its own each time.
    metadata = {"checkpoint": json.dumps(says, ensure_ascii=False, allow_nan=False)}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.part"
    save_file(tensors, part, metadata)
    size = part.stat().st_size
    if size > LARGEST:
        part.unlink()
        raise ValueError(f"{name} would take {size:,} bytes, more than {LARGEST:,}.")
    return part.replace(folder / f"{name}.safetensors")


def _filled(kind: str, sizes: Mapping[str, object], tensors: dict, where: str) -> nn.Module:
    """A model of these sizes with these weights, in evaluation mode."""
    try:
        model = getattr(models, kind)(**sizes)
        model.load_state_dict(tensors)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{where}: its sizes and its weights do not fit together: {error}"
        ) from error
    if not all(value.isfinite().all() for value in tensors.values()):
        raise ValueError(f"{where} holds weights that are not finite.")
    return model.eval()
