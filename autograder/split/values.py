"""Values as they cross between examiner and learner: tagged JSON with raw buffers beside it.

Only the types named here cross, rebuilt on arrival from plain parts: nothing is unpickled or evaluated, and
no method of a received object exists to be called. Everything else stays where it is and is known to the
other side by a number, a *handle*.

A frame is ``<header length: u32> <buffers' length: u64> <header: JSON> <buffers>``. In the header ``null``,
``true``, ``false``, strings and small integers stand for themselves; all else is ``{tag: …}``.
"""

import dataclasses
import json
import struct
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Decoder",
    "Encoder",
    "ProtocolError",
    "pack",
    "raw_bytes",
    "unpack_header",
    "unpack_payload",
]

MAX_HEADER = 16 << 20
MAX_BUFFERS = 1 << 28
MAX_DEPTH = 64
MAX_NODES = 1_000_000
MAX_INT_BITS = 1 << 16
MAX_PLAIN_INT = 1 << 53  # larger ones are written in hexadecimal
MAX_DIMENSIONS = 64  # more no operation of torch or numpy takes
MAX_ALIKE = 64  # keys of a dict, or members of a set, that have the same hash

SHORT = 64  # bytes that are written in hexadecimal, not in a buffer of their own

HEAD = struct.Struct(">IQ")

# The state of a CPU generator, as far as it says which number is next: how many there are left, and where.
GENERATOR = struct.Struct("=8xi4xQ")
GENERATOR_NUMBERS = 624

# No circles are looked for: an encoder writes trees. Written as escapes two surrogates would arrive as one character.
_write = json.JSONEncoder(separators=(",", ":"), check_circular=False, ensure_ascii=False).encode

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        *(torch.complex64, torch.complex128),
    )
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Not whatever numpy reads as a dtype: a comma there makes a record, and a number a shape.
NUMPY_DTYPES = {
    dtype.str: dtype
    for code in "?bhilqBHILQefdgFDG"
    for dtype in (np.dtype(code).newbyteorder(order) for order in "<>")
}
THEMSELVES = frozenset({type(None), bool, int, str})


class ProtocolError(Exception):
    """A frame is not what this protocol writes, or is larger than it allows."""


def pack(message: dict, buffers: list[bytes]) -> bytes:
    """A message and its buffers as one frame.

    Raises:
        ProtocolError: it is larger than the other side would accept.
    """
    header = _write([message, [len(buffer) for buffer in buffers]]).encode("utf-8", "surrogatepass")
    size = sum(len(buffer) for buffer in buffers)
    _check_sizes(len(header), size)
    return b"".join((HEAD.pack(len(header), size), header, *buffers))


def unpack_header(head: bytes) -> tuple[int, int]:
    """The lengths of header and buffers that follow these :data:`HEAD` bytes.

    Raises:
        ProtocolError: they are larger than allowed.
    """
    header_size, buffers_size = HEAD.unpack(head)
    _check_sizes(header_size, buffers_size)
    return header_size, buffers_size


def unpack_payload(header: bytes, blob: bytes) -> tuple[dict, list[memoryview]]:
    """The message and its buffers.

    Raises:
        ProtocolError: the header is not JSON, or the buffers do not have the lengths it names.
    """
    try:
        message, lengths = json.loads(header)
    except (ValueError, TypeError, RecursionError) as error:
        raise ProtocolError("the header is not a message") from error
    if not isinstance(message, dict) or not isinstance(lengths, list):
        raise ProtocolError("the header is not a message")
    if len(lengths) > MAX_NODES:  # each costs a hundred times as much here as in the header
        raise ProtocolError("a message has too many buffers")
    if not all(type(length) is int and length >= 0 for length in lengths) or sum(lengths) != len(
        blob
    ):
        raise ProtocolError("the buffers do not have the lengths they should have")
    buffers, start, view = [], 0, memoryview(blob)
    for length in lengths:
        buffers.append(view[start : start + length])
        start += length
    return message, buffers


def _check_sizes(header: int, buffers: int) -> None:
    if header > MAX_HEADER or buffers > MAX_BUFFERS:
        raise ProtocolError(
            f"a value of {header + buffers:,} bytes is too large; "
            f"{MAX_HEADER:,} for structure and {MAX_BUFFERS:,} for numbers are allowed"
        )


def _stand_for_themselves(items: Collection) -> bool:
    """Whether each is written in JSON as it is: what is true of tokens and texts by the thousand."""
    kinds = set(map(type, items))
    if not kinds <= THEMSELVES:
        return False
    return int not in kinds or max(abs(item) for item in items if type(item) is int) < MAX_PLAIN_INT


def raw_bytes(tensor: Tensor) -> bytes:
    """A tensor's numbers in row-major order, wherever and however it holds them."""
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.dtype is torch.bfloat16:  # which numpy does not have
        tensor = tensor.contiguous().view(torch.int16)
    return tensor.numpy(force=True).tobytes()


class _Counted:
    """Bounds how many values one message holds, and how deeply they are nested."""

    def __init__(self) -> None:
        self._nodes = self._deepest = 0

    def _count(self, values: int, depth: int) -> None:
        self._nodes += values
        if depth > self._deepest:
            self._deepest = depth
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise ProtocolError("a value is nested too deeply or holds too many values")


class Encoder(_Counted):
    """Writes values into one message.

    Args:
        handle_of: gives the tag of an object which cannot cross: ``["h", number]`` for one of ours,
            ``["o", number]`` for one of theirs going home.
        graph: whether tensors that require gradients take part in the call's graph; otherwise a leaf's
            gradient travels with it.
        classes: dataclasses and named tuples of given cells, by name.

    Attributes:
        buffers: the raw bytes, in order.
        shared: every mutable value written so far, in order; a second occurrence is written as a reference.
        in_call: the tensors that take part in the call's graph, in order.
    """

    def __init__(
        self, handle_of: Callable[[object], list], *, graph: bool, classes: Mapping[str, type]
    ) -> None:
        super().__init__()
        self.handle_of = handle_of
        self.graph = graph
        self.classes = classes
        self.buffers: list[bytes] = []
        self.shared: list[object] = []
        self.in_call: list[Tensor] = []
        self._seen: dict[int, int] = {}

    def encode(self, value: object, depth: int = 0) -> Any:
        """The JSON form of a value.

        Raises:
            ProtocolError: it is nested too deeply or holds too many values.
        """
        self._count(1, depth)
        if value is None or value is True or value is False:
            return value
        kind = type(value)
        if kind is int:
            return self._int(value)
        if kind is float:
            return {"f": value.hex()}
        if issubclass(kind, str):
            return str.__str__(value)
        if kind is bytes and len(value) <= SHORT:
            return {"x": value.hex()}
        if id(value) in self._seen:
            return {"r": self._seen[id(value)]}
        plain = self._plain(value, kind, depth)
        return {"h": self.handle_of(value)} if plain is None else plain

    def _plain(self, value: Any, kind: type, depth: int) -> dict | None:
        if isinstance(value, Tensor):
            return self._tensor(value, depth + 1)
        if self.classes.get(kind.__name__) is kind:
            return self._record(value, kind, depth + 1)
        if isinstance(value, list):
            self._share(value)
            return {"l": self._all(value, depth + 1)}
        if isinstance(value, tuple):
            return {"t": self._all(value, depth + 1)}
        if isinstance(value, dict):
            self._share(value)
            keys, items = value.keys(), value.values()
            return {"d": [self._all(keys, depth + 1), self._all(items, depth + 1)]}
        if kind is set:
            return {"s": self._all(value, depth + 1)}
        if kind is frozenset:
            return {"fs": self._all(value, depth + 1)}
        return self._rare(value, kind, depth + 1)

    def _all(self, items: Collection, depth: int) -> list:
        if _stand_for_themselves(items):
            self._count(len(items), depth)
            return list(items)
        return [self.encode(item, depth) for item in items]

    def _rare(self, value: Any, kind: type, depth: int) -> dict | None:
        if kind in (bytes, bytearray, memoryview):
            return {"b": self._buffer(bytes(value))}
        if isinstance(value, np.ndarray) and value.dtype.str in NUMPY_DTYPES:
            self._share(value)
            return {"A": [value.dtype.str, list(value.shape), self._buffer(value.tobytes())]}
        if isinstance(value, np.generic) and value.dtype.str in NUMPY_DTYPES:
            return {"n": [value.dtype.str, self._buffer(value.tobytes())]}
        if isinstance(value, torch.Generator):
            self._share(value)
            return {"G": self._buffer(value.get_state().numpy().tobytes())}
        if kind is complex:
            return {"c": [value.real.hex(), value.imag.hex()]}
        if kind is torch.dtype:
            return {"dt": str(value).removeprefix("torch.")}
        if kind is torch.device:
            return {"dv": str(value)}
        if kind in (slice, range):
            return {kind.__name__: self._all((value.start, value.stop, value.step), depth)}
        if value is Ellipsis:
            return {"e": 0}
        if isinstance(value, int):
            return self._int(int(value))
        return None

    def _record(self, value: Any, kind: type, depth: int) -> dict:
        names = (
            kind._fields if issubclass(kind, tuple) else [f.name for f in dataclasses.fields(kind)]
        )
        return {"D": [kind.__name__, [[n, self.encode(getattr(value, n), depth)] for n in names]]}

    def _int(self, value: int) -> int | dict:
        if abs(value) < MAX_PLAIN_INT:
            return value
        if value.bit_length() > MAX_INT_BITS:
            raise ProtocolError("an integer is too large")
        return {"i": hex(value)}

    def _tensor(self, value: Tensor, depth: int) -> dict:
        self._share(value)
        if value.dtype not in NAMES:
            raise ProtocolError(f"a tensor of dtype {value.dtype} cannot cross")
        written: dict[str, Any] = {
            "dtype": NAMES[value.dtype],
            "shape": list(value.shape),
            "data": self._buffer(raw_bytes(value)),
            "device": value.device.type,
        }
        if value.requires_grad:
            written["grad"] = "call" if self.graph else "leaf"
            if self.graph:
                self.in_call.append(value)
            elif value.is_leaf and value.grad is not None:
                written["gradient"] = self.encode(value.grad, depth)
        return {"T": written}

    def _buffer(self, raw: bytes) -> int:
        self.buffers.append(raw)
        return len(self.buffers) - 1

    def _share(self, value: object) -> None:
        self._seen[id(value)] = len(self.shared)
        self.shared.append(value)


class Decoder(_Counted):
    """Rebuilds the values of one message.

    Args:
        buffers: the message's raw bytes.
        object_of: gives the object or stand-in for a handle's tag.
        graph: whether tensors marked as part of the call's graph become leaves that require gradients.
        classes: dataclasses and named tuples of given cells, by name.

    Attributes:
        shared: every mutable value rebuilt so far, in the order in which they were written.
        leaves: the leaves of the call's graph, in order.
    """

    def __init__(
        self,
        buffers: list[memoryview],
        object_of: Callable[[list], object],
        *,
        graph: bool,
        classes: Mapping[str, type],
    ) -> None:
        super().__init__()
        self.buffers: list[memoryview | None] = [*buffers]
        self.object_of = object_of
        self.graph = graph
        self.classes = classes
        self.shared: list[object] = []
        self.leaves: list[Tensor] = []
        # How many values each shared one holds, and how deep; None while it is read.
        self._extents: list[tuple[int, int] | None] = []

    def decode(self, written: Any, depth: int = 0) -> Any:
        """The value behind a JSON form.

        Raises:
            ProtocolError: it is not one that :class:`Encoder` writes, or is too large.
        """
        self._count(1, depth)
        if type(written) in THEMSELVES:
            return written
        if not isinstance(written, dict) or len(written) != 1:
            raise ProtocolError("not a value")
        [(tag, body)] = written.items()
        read = TAGS.get(tag)
        if read is None:
            raise ProtocolError(f"unknown tag {tag[:20]!r}")
        try:
            return read(self, body, depth + 1)
        except ProtocolError:
            raise
        # The class of a given cell can raise anything where its fields are odd.
        except Exception as error:
            raise ProtocolError(f"a malformed value with the tag {tag!r}") from error

    def _all(self, items: list, depth: int) -> list:
        if type(items) is not list:
            raise ProtocolError("not a list")
        if THEMSELVES.issuperset(map(type, items)):
            self._count(len(items), depth)
            return items
        return [self.decode(item, depth) for item in items]

    def _read_f(self, body: str, depth: int) -> float:
        return float.fromhex(body)

    def _read_i(self, body: str, depth: int) -> int:
        if len(body) > MAX_INT_BITS // 4 + 3:
            raise ProtocolError("an integer is too large")
        return int(body, 16)

    def _read_c(self, body: list, depth: int) -> complex:
        real, imaginary = body
        return complex(float.fromhex(real), float.fromhex(imaginary))

    def _read_b(self, body: int, depth: int) -> bytes:
        return bytes(self._buffer(body))

    def _read_x(self, body: str, depth: int) -> bytes:
        return bytes.fromhex(body)

    def _read_l(self, body: list, depth: int) -> list:
        values: list = []
        begun = self._begin(values, depth)
        values += self._all(body, depth)
        self._end(begun, depth)
        return values

    def _read_t(self, body: list, depth: int) -> tuple:
        return tuple(self._all(body, depth))

    def _read_d(self, body: list, depth: int) -> dict:
        values: dict = {}
        keys, items = body
        begun = self._begin(values, depth)
        keys, items = self._all(keys, depth), self._all(items, depth)
        values.update(zip(_told_apart(keys), items, strict=True))
        self._end(begun, depth)
        return values

    def _read_s(self, body: list, depth: int) -> set:
        return set(_told_apart(self._all(body, depth)))

    def _read_fs(self, body: list, depth: int) -> frozenset:
        return frozenset(_told_apart(self._all(body, depth)))

    def _read_r(self, body: int, depth: int) -> object:
        if type(body) is not int or not 0 <= body < len(self.shared):
            raise ProtocolError("a reference to nothing")
        # Whoever walks through the value meets all of it again: a few lists can stand for more than any memory holds.
        if self._extents[body] is None:
            raise ProtocolError("a value holds itself")
        values, height = self._extents[body]
        self._count(values, depth + height)
        return self.shared[body]

    def _read_D(self, body: list, depth: int) -> object:
        name, fields = body
        return self.classes[name](**{field: self.decode(value, depth) for field, value in fields})

    def _read_h(self, body: list, depth: int) -> object:
        return self.object_of(body)

    def _read_dt(self, body: str, depth: int) -> torch.dtype:
        return DTYPES[body]

    def _read_dv(self, body: str, depth: int) -> torch.device:
        return torch.device(body)

    def _read_e(self, body: int, depth: int) -> Any:
        return Ellipsis

    def _read_slice(self, body: list, depth: int) -> slice:
        return slice(*self._all(body, depth))

    def _read_range(self, body: list, depth: int) -> range:
        return range(*self._all(body, depth))

    def _read_G(self, body: int, depth: int) -> torch.Generator:
        state = bytearray(self._buffer(body))
        left, following = GENERATOR.unpack_from(state)
        if left + following > GENERATOR_NUMBERS + 1:  # torch would draw from behind the end
            raise ProtocolError("a generator's next number is outside of its state")
        generator = torch.Generator()
        generator.set_state(torch.frombuffer(state, dtype=torch.uint8))
        self._share(generator)
        return generator

    def _read_A(self, body: list, depth: int) -> np.ndarray:
        dtype, shape, index = body
        array = np.frombuffer(bytearray(self._buffer(index)), NUMPY_DTYPES[dtype])
        array = array.reshape(_shape(shape))
        self._share(array)
        return array

    def _read_n(self, body: list, depth: int) -> np.generic:
        dtype, index = body
        [value] = np.frombuffer(self._buffer(index), NUMPY_DTYPES[dtype])
        return value

    def _read_T(self, body: dict, depth: int) -> Tensor:
        tensor = self._plain_tensor(body)
        grad = body.get("grad")
        if grad == "call" and self.graph:
            leaf = tensor.requires_grad_()
            self.leaves.append(leaf)
            tensor = leaf.clone()  # what arrives may be changed in place; a leaf may not
        elif grad is not None:
            tensor.requires_grad_()
            if "gradient" in body:
                begun = self._begin(tensor, depth)
                tensor.grad = self.decode(body["gradient"], depth)
                self._end(begun, depth)
                return tensor
        self._share(tensor)
        return tensor

    def _plain_tensor(self, body: dict) -> Tensor:
        dtype, shape, raw = DTYPES[body["dtype"]], _shape(body["shape"]), self._buffer(body["data"])
        count = 1
        for size in shape:
            count *= size
        if count * dtype.itemsize != len(raw):
            raise ProtocolError("a tensor's bytes do not fit its shape")
        if not raw:
            tensor = torch.empty(shape, dtype=dtype)
        else:
            tensor = torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)
        return (
            tensor.to("cuda") if body["device"] == "cuda" and torch.cuda.is_available() else tensor
        )

    def _share(self, value: object) -> None:
        self.shared.append(value)
        self._extents.append((1, 0))

    def _begin(self, container: object, depth: int) -> tuple[int, int, int]:
        """Shares what holds other values; :meth:`_end` notes how much that is, once it has been read."""
        begun = (len(self.shared), self._nodes, self._deepest)
        self.shared.append(container)
        self._extents.append(None)
        self._deepest = depth
        return begun

    def _end(self, begun: tuple[int, int, int], depth: int) -> None:
        place, before, deepest = begun
        self._extents[place] = (self._nodes - before + 1, self._deepest - depth)
        if deepest > self._deepest:
            self._deepest = deepest

    def _buffer(self, index: int) -> memoryview:
        if type(index) is not int or not 0 <= index < len(self.buffers):
            raise ProtocolError("a buffer that is not there")
        # Each is read once: a few bytes that are named again and again would become more than any memory holds.
        raw, self.buffers[index] = self.buffers[index], None
        if raw is None:
            raise ProtocolError("a buffer that has been read already")
        return raw


TAGS = {
    name.removeprefix("_read_"): read
    for name, read in vars(Decoder).items()
    if name.startswith("_read_")
}


def _told_apart(keys: list) -> list:
    """The keys; not if so many have one hash that a table of them would take hours to fill."""
    if len(keys) > MAX_ALIKE and max(Counter(map(hash, keys)).values()) > MAX_ALIKE:
        raise ProtocolError("too many keys have the same hash")
    return keys


def _shape(sizes: list) -> tuple[int, ...]:
    if len(sizes) > MAX_DIMENSIONS or not all(
        type(size) is int and 0 <= size < 1 << 40 for size in sizes
    ):
        raise ProtocolError("not a shape")
    return tuple(sizes)
