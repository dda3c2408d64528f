"""What the fuzz tests share: how much they try, values of every kind that crosses, and broken JSON.

They try few examples and always the same ones; ``FUZZ=100`` tries a hundred times as many, and others each time.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from autograder.split.values import DTYPES, SHORT, TAGS, Encoder

TIMES = int(os.environ.get("FUZZ", "1"))


def fuzzed(examples: int) -> settings:
    """So many examples, or so many times ``FUZZ``."""
    return settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# -- values that cross ------------------------------------------------------------------------------------


@dataclass
class Point:
    """A dataclass as a given cell would define it."""

    x: Any
    y: Any = 0


class Pair(NamedTuple):
    """A named tuple as a given cell would define it."""

    first: Any
    second: Any


CLASSES = {"Point": Point, "Pair": Pair}
NUMPY_DTYPES = [order + code for code in "?bhilqBHILQefdFD" for order in "<>"] + ["g", "G"]


texts = st.text(st.characters() | st.sampled_from("\ud83d\ude00"), max_size=20)
integers = st.integers() | st.builds(
    lambda bits, off, sign: sign * ((1 << bits) + off),
    st.integers(50, (1 << 16) - 2),
    st.integers(-2, 2),
    st.sampled_from([1, -1]),
)
shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Arrays of every numeric dtype, of any bytes, some of them views that are not contiguous."""
    dtype = np.dtype(draw(st.sampled_from(NUMPY_DTYPES)))
    shape = draw(shapes)
    array = np.frombuffer(_raw(draw, math.prod(shape), dtype.itemsize, dtype.kind == "b"), dtype)
    array = array.reshape(shape)
    if array.ndim and draw(st.booleans()):
        array = draw(st.sampled_from([array.T, array[::2], np.broadcast_to(array, (2, *shape))]))
    return array


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Tensors of every dtype, of any bytes: views, leaves with gradients, scalars, empty ones."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(shapes)
    tensor = _tensor(draw, shape, dtype)
    if tensor.dim() and draw(st.booleans()):
        views = [tensor.mT if tensor.dim() > 1 else tensor, tensor[::2], tensor.expand(2, *shape)]
        tensor = draw(st.sampled_from(views))
    if dtype.is_complex and draw(st.booleans()):
        tensor = tensor.conj()
    if (dtype.is_floating_point or dtype.is_complex) and draw(st.booleans()):
        tensor = tensor.detach().requires_grad_()
        if draw(st.booleans()):
            tensor.grad = _tensor(draw, tuple(tensor.shape), dtype)
    return tensor


def _tensor(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    raw = _raw(draw, math.prod(shape), dtype.itemsize, dtype is torch.bool)
    return torch.frombuffer(raw, dtype=dtype).reshape(shape)


def _raw(draw: st.DrawFn, count: int, itemsize: int, is_bool: bool) -> bytearray:
    size = count * itemsize
    few = draw(st.binary(min_size=min(size, 1), max_size=min(size, 64)))
    raw = (few * (size // len(few) + 1))[:size] if size else b""
    return bytearray(byte & 1 for byte in raw) if is_bool else bytearray(raw)


@st.composite
def numpy_scalars(draw: st.DrawFn) -> np.generic:
    """Scalars of every numeric dtype, of any bytes."""
    dtype = np.dtype(draw(st.sampled_from(NUMPY_DTYPES[:-2])))
    return np.frombuffer(_raw(draw, 1, dtype.itemsize, dtype.kind == "b"), dtype)[0]


def generators() -> st.SearchStrategy[torch.Generator]:
    """Generators at any place of their sequence."""

    def at(seed: int, drawn: int) -> torch.Generator:
        generator = torch.Generator().manual_seed(seed)
        torch.rand(drawn, generator=generator)
        return generator

    return st.builds(at, st.integers(0, 1 << 60), st.integers(0, 1500))


scalars = (
    st.none()
    | st.booleans()
    | integers
    | st.floats()
    | st.complex_numbers()
    | texts
    | st.binary(max_size=3)
    | st.binary(min_size=SHORT - 1, max_size=SHORT + 1)
    | numpy_scalars()
    | st.builds(range, integers, integers, integers.filter(bool))
    | st.just(...)
    | st.sampled_from(list(DTYPES.values()))
    | st.sampled_from(["cpu", "cuda:1", "meta"]).map(torch.device)
)
keys = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.frozensets(inner, max_size=3)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=4,
)
mutable = tensors() | arrays() | generators()


def containers(inner: st.SearchStrategy) -> st.SearchStrategy:
    """Everything that holds other values."""
    return (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
        | st.builds(slice, inner, inner, inner)
        | st.builds(Point, inner, inner)
        | st.builds(Pair, inner, inner)
    )


values = st.recursive(scalars | mutable, containers, max_leaves=12)


def form(value: Any) -> Any:
    """What a value is, as something to compare: kinds, numbers to the last bit, order where there is one."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        about = (str(value.dtype), tuple(value.shape), value.requires_grad)
        grad = value.grad if value.is_leaf else None
        return (kind, *about, form(value.tolist()), form(grad))
    if isinstance(value, np.ndarray):
        return (kind, value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, np.generic):
        return ("numpy", value.dtype.str, value.tobytes())  # longlong is int64 by another name
    if isinstance(value, torch.Generator):
        return (kind, value.get_state().numpy().tobytes())
    if isinstance(value, list | tuple):
        return (kind, [form(item) for item in value])
    if isinstance(value, dict):
        return (kind, [(form(key), form(item)) for key, item in value.items()])
    if isinstance(value, set | frozenset):
        return (kind, sorted((form(item) for item in value), key=repr))
    if isinstance(value, slice | range):
        return (kind, [form(part) for part in (value.start, value.stop, value.step)])
    if isinstance(value, Point):
        return (kind, form(value.x), form(value.y))
    if isinstance(value, float):
        return (kind, value.hex())
    if isinstance(value, complex):
        return (kind, value.real.hex(), value.imag.hex())
    if isinstance(value, int):
        return (kind, hex(value))  # which can be written out at any size
    return (kind, str(value) if isinstance(value, torch.dtype | torch.device) else value)


# -- JSON, broken -----------------------------------------------------------------------------------------


def places(tree: Any, at: tuple = ()) -> Iterator[tuple]:
    """The path of every part of a JSON value, the whole included."""
    yield at
    if isinstance(tree, dict | list):
        for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from places(part, (*at, key))


def part_at(tree: Any, path: tuple) -> Any:
    """The part of a JSON value at a path."""
    for key in path:
        tree = tree[key]
    return tree


def with_part(tree: Any, path: tuple, new: Any) -> Any:
    """A copy of a JSON value with another part at a path."""
    if not path:
        return new
    changed = tree.copy()
    changed[path[0]] = with_part(tree[path[0]], path[1:], new)
    return changed


@st.composite
def mutated(draw: st.DrawFn, tree: Any, junk: st.SearchStrategy, most: int = 3) -> Any:
    """A JSON value with a few parts replaced, removed, doubled, wrapped, renamed or copied elsewhere."""
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(list(places(tree))))
        tree = with_part(tree, path, draw(_changed_part(tree, part_at(tree, path), junk)))
    return tree


@st.composite
def _changed_part(draw: st.DrawFn, tree: Any, part: Any, junk: st.SearchStrategy) -> Any:
    change = draw(st.sampled_from(["replace", "copy", "wrap", "remove", "double", "rename"]))
    if change == "copy":
        return part_at(tree, draw(st.sampled_from(list(places(tree)))))
    if change == "wrap":
        return draw(st.sampled_from([[part], [part, part], {"l": [part]}, {"t": part}, str(part)]))
    if isinstance(part, list) and part and change != "replace":
        at = draw(st.integers(0, len(part) - 1))
        if change == "remove":
            return part[:at] + part[at + 1 :]
        return [*part[: at + 1], *part[at:]]
    if isinstance(part, dict) and part and change != "replace":
        key = draw(st.sampled_from(list(part)))
        rest = {name: item for name, item in part.items() if name != key}
        if change == "remove":
            return rest
        return rest | {draw(st.text(max_size=3) | st.sampled_from(list(part))): part[key]}
    return draw(junk)


# -- written values, as they should be and as they should not ----------------------------------------------

# Sizes nobody has, words that mean something at another place, and what JSON can say besides.
odd_numbers = st.sampled_from(
    [
        -1,
        0,
        1,
        2,
        3,
        31,
        63,
        64,
        1 << 31,
        1 << 40,
        1 << 62,
        -(1 << 63),
        10**30,
        0.5,
        math.inf,
        math.nan,
    ]
)
words = st.sampled_from(
    [*DTYPES, *TAGS, "cpu", "cuda", "meta", "ours", "theirs", "module", "object", "Point", "Pair", "x", "y", "first",
     "second", "shape", "dtype", "data", "grad", "gradient", "leaf", "call", "<f4", "|b1", ">i8", "<M8", "O", "<f0",
     "", "0", "f", "nan", "-inf", "0x1p3", "0x1p9999", "-0x1f", "0_1", "\ud800", "_all", "op", "value"]
)  # fmt: skip
junk = st.recursive(
    st.none() | st.booleans() | odd_numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=2),
    max_leaves=5,
)


def _or_junk(usual: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(usual, usual, usual, junk)


small = st.integers(0, 3)
written_tensors = st.fixed_dictionaries(
    {
        "dtype": _or_junk(st.sampled_from(list(DTYPES))),
        "shape": _or_junk(st.lists(_or_junk(small), max_size=3)),
        "data": _or_junk(small),
        "device": _or_junk(st.sampled_from(["cpu", "cuda"])),
    },
    optional={
        "grad": _or_junk(st.sampled_from(["call", "leaf"])),
        "gradient": _or_junk(st.deferred(lambda: written_tensors.map(lambda body: {"T": body}))),
    },
)
handles = st.tuples(st.sampled_from(["ours", "theirs"]), small, st.just("object")).map(list)


def _tagged(inner: st.SearchStrategy) -> st.SearchStrategy:
    many = st.lists(inner, max_size=4)
    usual = {
        **dict.fromkeys(("l", "t", "s", "fs", "slice", "range"), many),
        **dict.fromkeys(("b", "G", "r", "e"), small),
        **dict.fromkeys(("f", "i", "x", "dt", "dv"), words),
        "c": st.tuples(words, words).map(list),
        "d": many.map(lambda items: [items, items]) | st.tuples(many, many).map(list),
        "A": st.tuples(words, st.lists(small, max_size=3), small).map(list),
        "n": st.tuples(words, small).map(list),
        "T": written_tensors,
        "D": st.tuples(
            _or_junk(st.sampled_from(list(CLASSES))),
            st.lists(st.tuples(words, inner).map(list), max_size=3),
        ).map(list),
        "h": handles,
    }
    return st.sampled_from(sorted(usual)).flatmap(
        lambda tag: _or_junk(usual[tag]).map(lambda body: {tag: body})
    )


@st.composite
def deep(draw: st.DrawFn) -> Any:
    """Values within values, around the depth that is allowed and far beyond."""
    written = draw(st.none() | st.just({"r": 0}) | odd_numbers)
    tags = draw(st.lists(st.sampled_from(["l", "t", "s", "fs", "slice"]), min_size=1, max_size=4))
    for level in range(draw(st.integers(1, 70) | st.sampled_from([63, 64, 65, 66, 200]))):
        written = {tags[level % len(tags)]: [written]}
    return written


tagged = st.recursive(junk, _tagged, max_leaves=8)


@st.composite
def changed_values(draw: st.DrawFn) -> tuple[Any, list[bytes]]:
    """A value as it is written, with a few parts of that changed; and its buffers, or others."""
    encoder = Encoder(lambda _: ["ours", 1, "object"], graph=draw(st.booleans()), classes=CLASSES)
    written = draw(mutated(encoder.encode(draw(values)), tagged))
    buffers = encoder.buffers
    if buffers and draw(st.booleans()):
        buffers = draw(st.permutations(buffers))[: draw(st.integers(0, len(buffers)))]
    return written, buffers


made_up_values = st.tuples(
    tagged | deep(), st.lists(st.binary(max_size=40) | st.just(bytes(5056)), max_size=4)
)
any_written = st.one_of(changed_values(), made_up_values)
