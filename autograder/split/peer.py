"""Calls across the pipe, the same on both sides.

Each side keeps the objects it has handed out and answers requests on them; while it waits for its own answer
it serves the other side's requests, so that a function passed as an argument can be called back. Gradients
cross too: a call whose result requires gradients leaves its graph where it ran, and the caller gets tensors
whose backward pass asks for it.
"""

import builtins
import contextlib
import copy
import functools
import operator
import os
import socket
import time
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autograder.split.values import (
    HEAD,
    Decoder,
    Encoder,
    ProtocolError,
    pack,
    raw_bytes,
    unpack_header,
    unpack_payload,
)

__all__ = ["EVERYTHING", "Peer", "PeerGone", "PeerTimeout", "StandIn", "each"]

EVERYTHING = frozenset(
    {
        "backward",
        "call",
        "contains",
        "each",
        "getattr",
        "getitem",
        "iter",
        "len",
        "method",
        "next",
        "service",
        "setattr",
    }
)

# What can be changed in place, and comes back where it was.
CHANGEABLE = (Tensor, torch.Generator, list, dict, np.ndarray)

# What reading an attribute gives where it is a method of the object itself.
METHOD = object()

AT_ONCE = 1 << 16
MAX_HANDLES = 100_000
MAX_GRAPHS = 10_000
MAX_NESTING = 50
MAX_STEPS = 100_000


class PeerGone(BaseException):
    """The other process has ended. Not an ``Exception``: no test may catch it by accident."""


class PeerTimeout(BaseException):
    """The other process did not answer in time. Not an ``Exception``: no test may catch it by accident."""


class StandIn:
    """An object that lives in the other process. What it does, it does there; only values come back."""

    __slots__ = ("__weakref__", "_methods", "_stand_in")

    def __init__(self, peer: "Peer", number: int, kind: str) -> None:
        object.__setattr__(self, "_stand_in", (peer, number, kind))
        object.__setattr__(self, "_methods", set())
        weakref.finalize(self, peer.forget, number).atexit = False

    @property
    def __class__(self) -> type:
        return (
            torch.nn.Module
            if object.__getattribute__(self, "_stand_in")[2] == "module"
            else StandIn
        )

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self._ask("call", args=args, kwargs=kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        # A name known to be a method is not looked up again before each call: that is half of all the asking.
        methods = object.__getattribute__(self, "_methods")
        if name not in methods:
            value = self._ask("getattr", name=name)
            if value is not METHOD:
                return _read_only(value)
            methods.add(name)
        return functools.partial(_call_method, self, name)

    def __setattr__(self, name: str, value: object) -> None:
        self._ask("setattr", name=name, args=(value,))

    def __getitem__(self, key: object) -> Any:
        return _read_only(self._ask("getitem", args=(key,)))

    def __len__(self) -> int:
        return self._ask("len")

    def __contains__(self, item: object) -> bool:
        return self._ask("contains", args=(item,))

    def __iter__(self) -> Iterable:
        steps = self._ask("iter")
        for _ in range(MAX_STEPS):
            ended, item = steps._ask("next")
            if ended:
                return
            yield _read_only(item)
        raise RuntimeError(f"an iterator had not ended after {MAX_STEPS:,} steps")

    def __repr__(self) -> str:
        return "<an object of the answer>"

    def _ask(self, op: str, *, name: str = "", args: tuple = (), kwargs: dict | None = None) -> Any:
        peer, _, _ = object.__getattribute__(self, "_stand_in")
        return peer.ask(op, self, name=name, args=args, kwargs=kwargs or {})


def _call_method(of: StandIn, name: str, *args: object, **kwargs: object) -> Any:
    return of._ask("method", name=name, args=args, kwargs=kwargs)


def each(function: Callable, cases: Iterable[tuple]) -> list:
    """What a function gives for each of the cases, called on one after the other.

    Where it lives in the other process all cases go there in one message; one by one they would take longer to
    cross than to answer.
    """
    cases = list(cases)
    if type(function) is StandIn:
        return function._ask("each", args=(cases,))
    if isinstance(function, functools.partial) and function.func is _call_method:
        of, name = function.args
        return of._ask("each", name=name, args=(cases,))
    return _in_turn(function, cases)


class _Copy(Tensor):
    """A tensor read off a stand-in. Writing to it would change nothing over there, so it refuses."""

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: tuple, args: tuple = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        if (in_place and name != "requires_grad_") or name in (
            "__setitem__",
            "__iadd__",
            "__imul__",
        ):
            raise RuntimeError(
                "this is a copy of a tensor of the answer: writing to it changes nothing there"
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _read_only(value: Any) -> Any:
    if type(value) is Tensor:
        copy = value.detach().as_subclass(_Copy)
        copy.requires_grad_(value.requires_grad)
        copy.grad = value.grad
        return copy
    if type(value) is tuple:
        return tuple(_read_only(item) for item in value)
    return value


class Peer:
    """One end of the pipe.

    Args:
        channel: a connected stream socket.
        services: functions the other side may ask for by name.
        allowed: what the other side may do with objects it was handed. An examiner lets its functions be
            called and its iterators be stepped, but no attribute be read: from a generator's frame one
            could reach everything.
        classes: dataclasses and named tuples of given cells, by name; fill it once they are defined.
        trace: called with every answer to our own requests, as ``("ok", value)`` or ``("error", type name)``.
    """

    def __init__(
        self,
        channel: socket.socket,
        *,
        services: dict[str, Callable] | None = None,
        allowed: frozenset[str],
        classes: dict[str, type] | None = None,
        trace: Callable[[tuple], None] | None = None,
    ) -> None:
        self.channel = channel
        self.services = services or {}
        self.allowed = allowed
        self.classes = {} if classes is None else classes
        self.trace = trace
        self.deadline: float | None = None
        self._process = os.getpid()
        self._objects: dict[int, object] = {}
        self._graphs: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self._next = 0
        self._nesting = 0
        self._forgotten: list[int] = []
        self._received = bytearray()

    def ask(
        self,
        op: str,
        target: StandIn | None = None,
        *,
        name: str = "",
        args: tuple = (),
        kwargs: dict,
    ) -> Any:
        """Has the other side do something and returns what comes of it.

        Raises:
            Exception: whatever was raised there, as the built-in type it derives from.
            PeerGone: the other side has ended.
            PeerTimeout: it did not answer before ``deadline``.
            ProtocolError: what came is not an answer.
        """
        graph = torch.is_grad_enabled()
        encoder = self._encoder(graph)
        request = {
            "op": op,
            "on": None if target is None else {"h": self._handle_of(target)},
            "name": name,
            "args": encoder.encode(args),
            "kwargs": encoder.encode(kwargs),
            "graph": graph,
            "forget": self._take_forgotten(),
        }
        self._send(request, encoder.buffers)
        while True:
            message, buffers = self._receive()
            if "op" not in message:
                return self._answered(message, buffers, encoder)
            self._serve_one(message, buffers)

    def serve(self) -> None:
        """Answers requests until the other side closes the pipe."""
        try:
            while True:
                self._serve_one(*self._receive())
        except PeerGone:
            return

    def forget(self, number: int) -> None:
        """Notes that a stand-in is gone; the other side hears of it with the next request."""
        self._forgotten.append(number)

    def _take_forgotten(self) -> list[int]:
        taken, self._forgotten = self._forgotten[:1000], self._forgotten[1000:]
        return taken

    # -- answers ------------------------------------------------------------------------------------------

    def _answered(self, message: dict, buffers: list[memoryview], encoder: Encoder) -> Any:
        decoder = self._decoder(buffers, graph=False)
        if "error" in message:
            error = _rebuilt_error(message["error"])
            self._note("error", type(error).__name__)
            raise error
        if "changed" in message:
            _change(encoder.shared, message["changed"], decoder)
        if message.get("method") is True:
            return METHOD
        value = decoder.decode(message.get("value"))
        if "graph" in message:
            self._join_graph(message["graph"], decoder.in_call, encoder.in_call)
        self._note("ok", value)
        return value

    def _note(self, outcome: str, value: object) -> None:
        if self.trace:
            self.trace((outcome, value))

    def _join_graph(self, number: int, outputs: list[Tensor], inputs: list[Tensor]) -> None:
        """Gives tensors that came back a backward pass which runs over there, wherever they stand."""
        if type(number) is not int:
            raise ProtocolError("a graph that has no number")
        anchor = torch.empty(0, requires_grad=True)
        _Remote.apply(self, number, len(outputs), anchor, *outputs, *inputs)

    # -- requests -----------------------------------------------------------------------------------------

    def _serve_one(self, message: dict, buffers: list[memoryview]) -> None:
        self._nesting += 1
        try:
            if self._nesting > MAX_NESTING:
                raise RecursionError("calls back and forth are nested too deeply")
            reply, encoder = self._carry_out(message, buffers)
        except (PeerGone, PeerTimeout):
            raise
        except BaseException as error:
            reply, encoder = {"error": _written_error(error)}, None
        finally:
            self._nesting -= 1
        try:
            self._send(reply, encoder.buffers if encoder else [])
        except ProtocolError as error:
            self._send({"error": _written_error(error)}, [])

    def _carry_out(self, message: dict, buffers: list[memoryview]) -> tuple[dict, Encoder]:
        for number in message.get("forget", []):
            self._drop(number)
        graph = bool(message.get("graph"))
        with torch.set_grad_enabled(graph):
            decoder = self._decoder(buffers, graph=graph)
            target = decoder.decode(message.get("on"))
            args = decoder.decode(message.get("args"))
            kwargs = decoder.decode(message.get("kwargs"))
            # Anything else would be spread out, and an object of ours asked for what it holds.
            if type(args) is not tuple or type(kwargs) is not dict:
                raise ProtocolError("arguments that are none")
            before = [_snapshot(value) for value in decoder.shared]
            value = self._do(message, target, args, kwargs)
            if message["op"] in ("call", "each", "method", "service"):
                return self._reply(value, graph, decoder, before)
            if message["op"] == "getattr" and _is_method(value, target):
                return {"method": True}, self._encoder(graph=False)
            encoder = self._encoder(graph=False)
            return {"value": encoder.encode(value)}, encoder

    def _do(self, message: dict, target: Any, args: tuple, kwargs: dict) -> Any:
        op, name = message["op"], message.get("name", "")
        if op not in self.allowed:
            raise AttributeError(f"{op!r} is not possible on an object of the examiner")
        if op == "call":
            return target(*args, **kwargs)
        if op == "each":
            _check_name(name)
            return _in_turn(getattr(target, name) if name else target, *args)
        if op == "service":
            return self.services[name](*args)
        if op == "backward":
            return self._backward(*args)
        if op in ("getattr", "setattr"):
            _check_name(name)
            return getattr(target, name) if op == "getattr" else setattr(target, name, *args)
        if op == "method":
            _check_name(name)
            return getattr(target, name)(*args, **kwargs)
        if op == "next":
            try:
                return (False, next(target))
            except StopIteration:
                return (True, None)
        plain = {"getitem": lambda: target[args[0]], "contains": lambda: args[0] in target}
        plain |= {"len": lambda: len(target), "iter": lambda: iter(target)}
        return plain[op]()

    def _reply(
        self, value: Any, graph: bool, decoder: Decoder, before: list
    ) -> tuple[dict, Encoder]:
        encoder = self._encoder(graph)
        reply: dict = {}
        changed = [i for i, shared in enumerate(decoder.shared) if _changed(shared, before[i])]
        if changed:
            reply["changed"] = [[i, encoder.encode(_fresh(decoder.shared[i]))] for i in changed]
        reply["value"] = encoder.encode(value)
        if encoder.in_call:
            if len(self._graphs) >= MAX_GRAPHS:
                raise RuntimeError("too many results whose gradients may still be asked for")
            reply["graph"] = self._next_number()
            self._graphs[reply["graph"]] = (decoder.in_call, encoder.in_call)
        return reply, encoder

    def _backward(self, number: int, gradients: list) -> list:
        if number not in self._graphs:
            raise RuntimeError("the graph of this result is gone")
        leaves, outputs = self._graphs[number]
        for leaf in leaves:
            leaf.grad = None
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None]
        if pairs:
            kept, pulls = zip(*pairs, strict=True)
            torch.autograd.backward(kept, pulls, retain_graph=True)
        return [leaf.grad for leaf in leaves]

    def _drop(self, number: int) -> None:
        self._graphs.pop(number, None)
        self._objects.pop(number, None)

    # -- objects that do not cross ------------------------------------------------------------------------

    def _handle_of(self, value: object) -> list:
        """The tag of an object that stays here, or of one that is going home."""
        if type(value) is StandIn:
            peer, number, _ = object.__getattribute__(value, "_stand_in")
            if peer is self:
                return ["theirs", number]
        if len(self._objects) >= MAX_HANDLES:
            raise ProtocolError("too many objects are shared")
        # A new number each time, also for the same object: a number is forgotten by the one who got it.
        number = self._next_number()
        self._objects[number] = value
        return ["ours", number, "module" if isinstance(value, torch.nn.Module) else "object"]

    def _next_number(self) -> int:
        self._next += 1
        return self._next

    def _object_of(self, tag: list) -> object:
        if tag[0] == "theirs":
            return self._objects[tag[1]]
        whose, number, kind = tag
        if whose != "ours" or type(number) is not int:
            raise ProtocolError("not a handle")
        return StandIn(self, number, kind)

    # -- frames -------------------------------------------------------------------------------------------

    def _encoder(self, graph: bool) -> Encoder:
        return Encoder(self._handle_of, graph=graph, classes=self.classes)

    def _decoder(self, buffers: list[memoryview], *, graph: bool) -> Decoder:
        return Decoder(buffers, self._object_of, graph=graph, classes=self.classes)

    def _send(self, message: dict, buffers: list[bytes]) -> None:
        if os.getpid() != self._process:
            os._exit(1)  # forked by an answer and returned from it: one question has one answer
        frame = pack(message, buffers)
        try:
            self._set_timeout()
            self.channel.sendall(frame)
        except TimeoutError as error:
            raise PeerTimeout from error
        except OSError as error:
            raise PeerGone from error

    def _receive(self) -> tuple[dict, list[memoryview]]:
        header_size, buffers_size = unpack_header(self._read(HEAD.size))
        header = self._read(header_size)
        return unpack_payload(header, self._read(buffers_size))

    def _read(self, size: int) -> bytearray:
        while (missing := size - len(self._received)) > 0:
            try:
                self._set_timeout()
                data = self.channel.recv(max(missing, AT_ONCE))
            except TimeoutError as error:
                raise PeerTimeout from error
            except OSError as error:
                raise PeerGone from error
            if not data:
                raise PeerGone
            self._received += data
        read = self._received[:size]
        del self._received[:size]
        return read

    def _set_timeout(self) -> None:
        if self.deadline is None:
            self.channel.settimeout(None)
            return
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.channel.settimeout(left)


class _Remote(torch.autograd.Function):
    """A call that ran in the other process: its results stay as they are, backward asks for the gradients."""

    @staticmethod
    def forward(
        ctx: Any, peer: Peer, number: int, outputs: int, anchor: Tensor, *tensors: Tensor
    ) -> tuple:
        ctx.peer, ctx.number = peer, number
        ctx.outputs, ctx.inputs = outputs, len(tensors) - outputs
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(*tensors[:outputs])  # they join the graph themselves, without a copy
        weakref.finalize(ctx, peer.forget, number).atexit = False
        return tensors[:outputs]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple:
        answer = ctx.peer.ask("backward", args=(ctx.number, list(gradients)), kwargs={})
        if type(answer) is not list or len(answer) != ctx.inputs:
            raise ProtocolError("not one gradient for each input")
        return (None, None, None, None, *[None] * ctx.outputs, *answer)


def _check_name(name: object) -> None:
    if type(name) is not str or name.startswith("__"):
        raise AttributeError(name)


def _in_turn(function: Callable, cases: list[tuple]) -> list:
    return [_of_its_own(function(*case)) for case in cases]


def _of_its_own(value: Any) -> Any:
    """A result that stays as it is when the next call writes into the same tensor or list."""
    if type(value) is Tensor:
        return value.clone()
    return copy.copy(value) if type(value) in (list, dict) else value


def _is_method(value: object, of: object) -> bool:
    return type(value) is types.MethodType and value.__self__ is of


def _snapshot(value: Any) -> Any:
    """What :func:`_changed` needs to tell whether the value was changed in place."""
    if isinstance(value, Tensor):
        return (value.shape, raw_bytes(value))
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if type(value) is list:
        return value.copy()
    if type(value) is dict:
        return list(value.items())
    return value.tobytes()


def _changed(value: Any, before: Any) -> bool:
    # Containers and tensors inside are shared values themselves and have snapshots of their own.
    if type(value) is list:
        return len(value) != len(before) or not all(map(operator.is_, value, before))
    if type(value) is dict:
        return len(value) != len(before) or any(
            key is not old_key or item is not old_item
            for (key, item), (old_key, old_item) in zip(value.items(), before, strict=True)
        )
    return _snapshot(value) != before


def _fresh(value: Any) -> Any:
    """The changed argument as a value of its own, outside every graph."""
    return value.detach() if isinstance(value, Tensor) else value


def _change(sent: list, changed: list, decoder: Decoder) -> None:
    """Makes the caller's arguments what the other side made of them."""
    if type(changed) is not list:
        raise ProtocolError("not a list of changes")
    for change in changed:
        if type(change) is not list or len(change) != 2:
            raise ProtocolError("not a change")
        position, written = change
        if type(position) is not int or not 0 <= position < len(sent):
            raise ProtocolError("a change to an argument that was not sent")
        _copy_into(sent[position], decoder.decode(written))


def _copy_into(mine: Any, changed: Any) -> None:
    kind = next(kind for kind in CHANGEABLE if isinstance(mine, kind))
    # What was sent as a list can have become no range of any length, and no object that gives what it likes.
    if not isinstance(changed, kind):
        raise ProtocolError("an argument has become something of another kind")
    if kind is Tensor or kind is np.ndarray:
        if mine.shape != changed.shape or mine.dtype != changed.dtype:
            raise RuntimeError(
                "an argument's shape or dtype was changed in place, "
                f"to {tuple(changed.shape)}, {changed.dtype}"
            )
        with torch.no_grad():
            mine[...] = changed
    elif kind is torch.Generator:
        mine.set_state(changed.get_state())
    elif kind is list:
        mine[:] = changed
    else:
        mine.clear()
        mine.update(changed)


def _written_error(error: BaseException) -> list[str]:
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    try:
        text = str(error)[:2000]
    except Exception:
        text = ""
    return [type(error).__name__[:100], kinds[0], text]


def _made_of_a_text(kind: type[Exception]) -> type[Exception]:
    """The nearest kind of error that a text alone makes and that ends nothing but what raised it."""
    if issubclass(kind, StopIteration | StopAsyncIteration):
        return RuntimeError  # as in a generator: it would end whatever loop the caller is in
    for base in kind.__mro__:
        with contextlib.suppress(TypeError):
            if isinstance(base(""), Exception):
                return base
    return RuntimeError


ERRORS = {
    name: _made_of_a_text(kind)
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception)
}


def _rebuilt_error(written: list) -> Exception:
    """The exception as the nearest built-in type; what would end a process arrives as an ordinary error."""
    if type(written) is not list or list(map(type, written)) != [str, str, str]:
        raise ProtocolError("not an error")
    name, kind, text = written
    error = ERRORS.get(kind, RuntimeError)(text)
    error.raised_there = name
    return error
