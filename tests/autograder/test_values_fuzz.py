"""Whatever arrives is a value of the protocol's kinds, within its bounds, or is refused; nothing else happens."""

import contextlib
import itertools
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autograder.split import values as protocol
from autograder.split.values import (
    HEAD,
    NUMPY_DTYPES,
    Decoder,
    Encoder,
    ProtocolError,
    pack,
    unpack_header,
    unpack_payload,
)
from tests.autograder.fuzz import (
    CLASSES,
    Point,
    any_written,
    arrays,
    form,
    fuzzed,
    generators,
    integers,
    mutable,
    scalars,
    tensors,
    texts,
    values,
)

REFUSED = object()
OTHERS = object()
KINDS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    list,
    tuple,
    dict,
    set,
    frozenset,
    slice,
    range,
    Point,
)
KINDS += (torch.dtype, torch.device, torch.Generator, torch.Tensor, np.generic, np.ndarray, type(...))  # fmt: skip


def crossed(value, *, graph=False):
    """The value as it arrives on the other side, with the decoder that read it."""
    encoder = Encoder(_no_handle, graph=graph, classes=CLASSES)
    frame = pack({"value": encoder.encode(value)}, encoder.buffers)
    header, buffers = unpack_header(frame[: HEAD.size])
    start = HEAD.size + header
    assert len(frame) == start + buffers
    message, views = unpack_payload(frame[HEAD.size : start], frame[start:])
    decoder = Decoder(views, _no_handle, graph=graph, classes=CLASSES)
    return decoder.decode(message["value"])


def _no_handle(of: object) -> list:
    raise AssertionError(f"{of!r} was not written as a value")


def read(written, buffers=(), *, classes=CLASSES):
    """What is read there, or that it is refused; anything else that happens is a failure of the test."""
    views = [memoryview(buffer) for buffer in buffers]
    decoder = Decoder(views, lambda tag: OTHERS, graph=True, classes=classes)
    try:
        return decoder.decode(written)
    except ProtocolError:
        return REFUSED


def parts_of(value: Any) -> list:
    """The values directly inside one."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, slice):
        return [value.start, value.stop, value.step]
    if isinstance(value, torch.Tensor):
        return [value.grad] if value.is_leaf and value.grad is not None else []
    return [value.x, value.y] if isinstance(value, Point) else []


def all_parts(value: Any, depth: int = 0) -> Iterator[tuple[Any, int]]:
    """Every value in a value, each time it stands there, with how deep that is."""
    yield value, depth
    for part in parts_of(value):
        yield from all_parts(part, depth + 1)


def weight(value: Any) -> int:
    """The bytes of the numbers in a value."""
    if isinstance(value, bytes | bytearray):
        return len(value)
    return getattr(value, "nbytes", 0)


# -- what is sent arrives ---------------------------------------------------------------------------------


@given(values)
@fuzzed(250)
def test_every_value_arrives_equal_and_of_its_type(value):
    assert form(crossed(value)) == form(value)


@given(tensors() | arrays())
@fuzzed(400)
def test_tensors_and_arrays_arrive_whatever_their_layout(value):
    assert form(crossed(value)) == form(value)


@given(integers)
@fuzzed(100)
def test_integers_of_any_size_arrive(value):
    assert crossed([value, (value, "")]) == [value, (value, "")]


@given(
    mutable | st.lists(scalars, max_size=3) | st.dictionaries(texts, scalars, max_size=3), scalars
)
@fuzzed(150)
def test_what_stands_in_a_value_twice_is_one_object_there(shared, other):
    before, (first, between, second), named = crossed(
        [other, (shared, other, shared), {"again": shared}]
    )
    assert first is second is named["again"]
    assert form(first) == form(shared)
    assert form(between) == form(before) == form(other)


@given(st.lists(tensors(), max_size=5))
@fuzzed(100)
def test_the_leaves_of_a_call_are_those_that_want_gradients_in_order(sent):
    encoder = Encoder(_no_handle, graph=True, classes={})
    written = encoder.encode(sent)
    decoder = Decoder([memoryview(b) for b in encoder.buffers], _no_handle, graph=True, classes={})
    arrived = decoder.decode(written)
    assert [form(t.tolist()) for t in decoder.leaves] == [form(t.tolist()) for t in encoder.in_call]
    assert [t.requires_grad for t in arrived] == [t.requires_grad for t in sent]


@given(generators())
@fuzzed(50)
def test_a_generator_goes_on_where_it_was(generator):
    arrived = crossed(generator)
    for _ in range(3):
        assert torch.equal(torch.rand(700, generator=arrived), torch.rand(700, generator=generator))


@given(values, st.integers(1, 20), st.integers(1, 5))
@fuzzed(200)
def test_what_is_within_the_bounds_when_it_is_sent_is_so_when_it_is_read(value, most, deepest):
    encoder = Encoder(_no_handle, graph=False, classes=CLASSES)
    with mock.patch.multiple(protocol, MAX_NODES=most, MAX_DEPTH=deepest):
        try:
            written = encoder.encode(value)
        except ProtocolError:
            return
        assert read(written, encoder.buffers) is not REFUSED


# -- what is made up is refused ---------------------------------------------------------------------------


@given(any_written)
@fuzzed(500)
def test_whatever_is_written_is_refused_or_a_value_of_the_kinds_that_cross(what):
    if (value := read(*what)) is REFUSED:
        return
    for part, _ in all_parts(value):
        assert isinstance(part, KINDS) or part is OTHERS
        if isinstance(part, np.ndarray | np.generic):
            assert part.dtype.str in NUMPY_DTYPES
    encoder = Encoder(lambda _: ["theirs", 1], graph=False, classes=CLASSES)
    with contextlib.suppress(ProtocolError):
        pack({"value": encoder.encode(value)}, encoder.buffers)


@given(any_written)
@fuzzed(300)
def test_what_is_read_is_within_the_bounds(what):
    with mock.patch.multiple(protocol, MAX_NODES=40, MAX_DEPTH=6):
        value = read(*what)
    if value is not REFUSED:
        parts = list(all_parts(value))
        assert len(parts) <= 40
        assert max(depth for _, depth in parts) <= 6


@given(st.binary(max_size=80), st.binary(max_size=20))
@fuzzed(300)
def test_any_bytes_are_a_message_or_refused(header, blob):
    try:
        message, buffers = unpack_payload(header, blob)
    except ProtocolError:
        return
    assert isinstance(message, dict)
    assert b"".join(buffers) == blob


lengths = st.lists(
    st.integers(0, 4) | st.sampled_from([-1, 1 << 70, True, None, 1.0, "1", []]), max_size=4
)


@given(
    st.dictionaries(texts, texts, max_size=2) | st.lists(texts) | texts | st.none(),
    lengths | texts | st.integers() | st.dictionaries(texts, texts),
    st.binary(max_size=8),
    st.sampled_from(["utf-8", "utf-16", "utf-32"]),
)
@fuzzed(300)
def test_buffers_have_the_lengths_that_were_named_or_the_message_is_refused(
    message, named, blob, encoding
):
    header = json.dumps([message, named]).encode(encoding)
    try:
        _, buffers = unpack_payload(header, blob)
    except ProtocolError:
        return
    assert [len(buffer) for buffer in buffers] == named
    assert b"".join(buffers) == blob


@given(st.binary(min_size=HEAD.size, max_size=HEAD.size))
@fuzzed(200)
def test_any_sizes_are_within_the_bounds_or_refused(head):
    try:
        header, buffers = unpack_header(head)
    except ProtocolError:
        return
    assert header <= protocol.MAX_HEADER
    assert buffers <= protocol.MAX_BUFFERS


@pytest.mark.parametrize("written", [{"i": "f" * 20_000}, {"i": "-0x" + "f" * 16_385}])
def test_an_integer_larger_than_is_written_is_refused(written):
    assert read(written) is REFUSED


# -- what was found here once -----------------------------------------------------------------------------


def test_a_text_of_surrogates_arrives():
    assert crossed("\ud83d\ude00") == "\ud83d\ude00"


def test_a_frozen_set_arrives_and_can_be_a_key():
    assert type(crossed(frozenset({1}))) is frozenset
    assert crossed({frozenset({1}): {frozenset({2})}}) == {frozenset({1}): {frozenset({2})}}


def test_what_is_not_too_deep_to_be_sent_is_not_too_deep_to_be_read():
    nested: list = []
    for _ in range(protocol.MAX_DEPTH + 5):
        try:
            written = Encoder(_no_handle, graph=False, classes={}).encode(nested)
        except ProtocolError:
            return
        assert read(written) is not REFUSED
        nested = [nested]


@pytest.mark.parametrize(
    "one, buffer",
    [
        ({"b": 0}, b"x" * 100),
        ({"A": ["|u1", [100], 0]}, b"x" * 100),
        ({"T": {"dtype": "uint8", "shape": [100], "data": 0, "device": "cpu"}}, b"x" * 100),
        ({"G": 0}, torch.Generator().get_state().numpy().tobytes()),
    ],
    ids=["bytes", "array", "tensor", "generator"],
)
def test_what_is_read_holds_no_more_bytes_than_came(one, buffer):
    assert read({"t": [one] * 10}, [buffer]) is REFUSED


def test_the_number_of_buffers_is_bounded():
    with mock.patch.object(protocol, "MAX_NODES", 10), pytest.raises(ProtocolError):
        unpack_payload(json.dumps([{}, [0] * 11]).encode(), b"")


@pytest.mark.parametrize("dtype", ["2i,V4", "2i,S3", "1i,u1", "2f8"])
def test_a_dtype_is_one_number_and_no_record(dtype):
    size = np.dtype(dtype).itemsize
    assert read({"A": [dtype, [1], 0]}, [bytes(size)]) is REFUSED
    assert read({"n": [dtype, 0]}, [bytes(size)]) is REFUSED


@dataclass
class Picky:
    """A given cell's dataclass that looks at what it is made from."""

    error: str

    def __post_init__(self):
        raise {"attribute": AttributeError, "zero": ZeroDivisionError, "assert": AssertionError}[
            self.error
        ]


@pytest.mark.parametrize("error", ["attribute", "zero", "assert"])
def test_a_record_that_refuses_its_fields_is_refused(error):
    written = {"D": ["Picky", [["error", error]]]}
    assert read(written, classes={"Picky": Picky}) is REFUSED


def _tensor_with_gradients(levels: int) -> dict:
    body = {"dtype": "float32", "shape": [0], "device": "cpu", "grad": "leaf"}
    written = {"T": body | {"data": levels}}
    for level in reversed(range(levels)):
        written = {"T": body | {"data": level, "gradient": written}}
    return written


def test_gradients_of_gradients_are_bounded_like_all_that_is_nested():
    assert read(_tensor_with_gradients(1), [b""] * 2) is not REFUSED
    assert read(_tensor_with_gradients(100), [b""] * 101) is REFUSED


def test_two_tensors_that_are_each_others_gradient_are_refused():
    one, other = (torch.ones(1, requires_grad=True) for _ in range(2))
    one.grad, other.grad = other, one
    with pytest.raises(ProtocolError):
        crossed(one)


@pytest.mark.parametrize("left, following", [(624, 624), (2, 624), (624, 2)])
def test_a_generator_whose_next_number_is_outside_of_its_state_is_refused(left, following):
    state = bytearray(torch.Generator().manual_seed(1).get_state().numpy().tobytes())
    assert read({"G": 0}, [state]) is not REFUSED
    struct.pack_into("<iiQ", state, 8, left, 1, following)
    assert read({"G": 0}, [state]) is REFUSED


MERSENNE = 2**61 - 1  # whose multiples all have the hash 0


@pytest.mark.parametrize("tag", ["s", "fs", "d"])
def test_keys_that_were_chosen_for_their_hash_are_refused(tag):
    many = [{"i": hex(number * MERSENNE)} for number in range(200)]
    assert read({tag: [many, [None] * 200] if tag == "d" else many}) is REFUSED


def test_keys_that_happen_to_have_the_same_hash_arrive():
    assert hash(-1) == hash(-2)
    grid = set(itertools.product(range(-9, 10), repeat=3))
    assert crossed(grid) == grid


@pytest.mark.parametrize("count", [0, 2])
def test_a_number_of_numpy_is_one(count):
    assert read({"n": ["<f4", 0]}, [bytes(4)]) == 0
    assert read({"n": ["<f4", 0]}, [bytes(4 * count)]) is REFUSED


def test_a_tensor_of_many_dimensions_arrives():
    assert crossed(torch.ones((1,) * 64)).shape == (1,) * 64
