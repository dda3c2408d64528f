"""What crosses between the processes arrives as it was; what is not of the protocol is refused."""

import contextlib
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autograder.split.values import (
    HEAD,
    Decoder,
    Encoder,
    ProtocolError,
    pack,
    unpack_header,
    unpack_payload,
)


def crossed(value, classes=None):
    """The value as it arrives on the other side."""
    encoder = Encoder(lambda _: ["ours", 1, "object"], graph=False, classes=classes or {})
    frame = pack({"value": encoder.encode(value)}, encoder.buffers)
    header, buffers = unpack_header(frame[: HEAD.size])
    assert len(frame) == HEAD.size + header + buffers
    start = HEAD.size + header
    message, views = unpack_payload(frame[HEAD.size : start], frame[start:])
    return Decoder(views, lambda tag: ("handle", *tag), graph=False, classes=classes or {}).decode(
        message["value"]
    )


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=30,
)


@given(plain)
@settings(deadline=None)
def test_plain_values_arrive_equal_and_of_their_type(value):
    arrived = crossed(value)
    assert arrived == value
    assert repr(arrived) == repr(value)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8,
              torch.bool, torch.complex64]
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (2, 0, 3)])
def test_tensors_arrive_with_dtype_shape_and_values(dtype, shape):
    value = (torch.randn(shape) * 3).to(dtype)
    arrived = crossed(value)
    assert arrived.dtype == dtype
    assert arrived.shape == value.shape
    assert torch.equal(arrived, value)


def test_nan_and_infinities_arrive():
    tensor = crossed(torch.tensor([math.nan, math.inf, -math.inf]))
    assert torch.isnan(tensor[0])
    assert tensor[1:].tolist() == [math.inf, -math.inf]
    assert math.isnan(crossed(math.nan))
    assert crossed([math.inf, -math.inf, -0.0]) == [math.inf, -math.inf, 0.0]


def test_tensors_that_share_overlap_or_are_not_contiguous_arrive_as_plain_clones():
    base = torch.arange(12.0).reshape(3, 4)
    for view in (
        base.T,
        base[:, ::2],
        torch.arange(3.0).expand(4, 3),
        base.as_strided((3, 3), (1, 1)),
    ):
        arrived = crossed(view)
        assert torch.equal(arrived, view)
        arrived.zero_()
    assert base[1, 1] == 5
    assert torch.equal(crossed(torch.eye(3).to_sparse()), torch.eye(3))


def test_a_sub_class_of_tensor_arrives_as_a_tensor():
    class Liar(torch.Tensor):
        def __eq__(self, other):
            return True

    assert type(crossed(torch.ones(2).as_subclass(Liar))) is torch.Tensor
    assert type(crossed(torch.nn.Parameter(torch.ones(2)))) is torch.Tensor


def test_the_same_list_twice_is_one_list_on_the_other_side():
    one = [1]
    first, second = crossed([one, one])
    assert first is second


def test_numpy_arrives():
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T
    assert np.array_equal(crossed(array), array)
    assert crossed(np.float32(1.5)) == np.float32(1.5)
    assert type(crossed(np.bool_(True))) is np.bool_


def test_a_generator_arrives_with_its_state():
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    arrived = crossed(generator)
    assert torch.equal(torch.rand(4, generator=arrived), torch.rand(4, generator=generator))


def test_what_has_no_place_in_the_table_becomes_a_handle():
    assert crossed(lambda: None) == ("handle", "ours", 1, "object")
    assert crossed(object())[0] == "handle"


def test_a_value_that_contains_itself_is_refused():
    endless: list = []
    endless.append(endless)
    with pytest.raises(ProtocolError, match="itself"):
        crossed(endless)


def test_one_list_may_stand_in_several_places():
    row = [1, 2]
    arrived = crossed([row, row, {"again": row}])
    assert arrived == [[1, 2], [1, 2], {"again": [1, 2]}]
    assert arrived[0] is arrived[1]


def test_few_lists_that_stand_for_very_many_are_refused():
    wide: list = ["a"]
    for _ in range(40):
        wide = [wide, wide]
    with pytest.raises(ProtocolError, match="too many"):
        crossed(wide)


def test_depth_is_bounded_through_references_too():
    rows: list = [[]]
    for _ in range(500):
        rows.append([rows[-1]])
    with pytest.raises(ProtocolError, match="deep"):
        crossed(rows)


def test_deep_and_huge_values_are_refused():
    deep = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(ProtocolError, match="deep"):
        crossed(deep)
    with pytest.raises(ProtocolError, match="too large"):
        crossed(torch.zeros(1 << 26, dtype=torch.float64))
    with pytest.raises(ProtocolError, match="too large"):
        crossed(1 << (1 << 20))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*"fibctdrshDTAGn", "dt", "dv", "slice", "range", "e", "x"]),
            inner,
            max_size=2,
        )
    ),
    max_leaves=20,
)


@given(json_like, st.binary(max_size=40))
@settings(max_examples=500, deadline=None)
def test_garbage_is_refused_and_nothing_else_happens(written, blob):
    decoder = Decoder([memoryview(blob)], lambda tag: ("handle", tag), graph=True, classes={})
    with contextlib.suppress(ProtocolError):
        decoder.decode(written)


@given(st.binary(max_size=60), st.binary(max_size=20))
@settings(deadline=None)
def test_a_header_that_is_no_message_is_refused(header, blob):
    try:
        unpack_payload(header, blob)
    except ProtocolError:
        return
    message, lengths = json.loads(header)
    assert isinstance(message, dict)
    assert sum(lengths) == len(blob)


def test_lengths_beyond_the_bounds_are_refused_before_anything_is_read():
    with pytest.raises(ProtocolError, match="too large"):
        unpack_header(HEAD.pack(1 << 31, 0))
    with pytest.raises(ProtocolError, match="too large"):
        unpack_header(HEAD.pack(10, 1 << 40))
