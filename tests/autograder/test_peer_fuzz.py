"""Whatever the other side asks or answers, this side answers, goes on or says that the pipe is of no use."""

import builtins
import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autograder.examiner import ALLOWED, Learner
from autograder.split.peer import EVERYTHING, Peer, PeerGone, PeerTimeout, StandIn
from autograder.split.values import HEAD, ProtocolError, pack, unpack_header, unpack_payload
from tests.autograder.fuzz import (
    CLASSES,
    any_written,
    form,
    fuzzed,
    junk,
    mutated,
    odd_numbers,
)

SECONDS = 20.0
SECRET = "what nobody may read"
ENDS = (PeerGone, PeerTimeout, ProtocolError)


class Guarded:
    """Something of the examiner's; it notes which of its attributes are asked for."""

    def __init__(self, touched: list):
        object.__setattr__(self, "_touched", touched)
        object.__setattr__(self, "secret", SECRET)

    def __getattribute__(self, name):
        if not name.startswith("__"):
            object.__getattribute__(self, "_touched").append(name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name, value):
        object.__getattribute__(self, "_touched").append(name)

    def steal(self, *args):
        return SECRET


def examiners_objects(touched: list) -> list:
    """Of every sort that an examiner hands out, with one to guard first."""
    leaf = torch.ones(2, requires_grad=True)

    def lent(*args: object, **kwargs: object) -> object:
        return (*args, kwargs)

    def with_gradients(x: Any = leaf) -> dict:
        return {"twice": 2 * x, "same": x}

    def calling(function: Any, *args: object) -> object:
        return function(*args)

    def changing(items: list) -> None:
        items.append(len(items))

    steps = (SECRET[:0] for _ in range(3))
    modules = nn.Sequential(nn.Linear(2, 2))
    return [Guarded(touched), lent, with_gradients, calling, changing, iter([1, 2]), steps, modules]


@contextlib.contextmanager
def peer_that_hears(frames: list[bytes], **options: Any) -> Iterator[tuple[Peer, socket.socket]]:
    """A peer to which all this was said, after which the other side hung up; and the other side."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"".join(frames))
        theirs.shutdown(socket.SHUT_WR)
        peer = Peer(ours, classes=CLASSES, **options)
        peer.deadline = time.monotonic() + SECONDS
        yield peer, theirs


def all_said(theirs: socket.socket) -> list[dict]:
    """The messages that were sent to the other side."""
    theirs.setblocking(False)
    data = bytearray()
    with contextlib.suppress(BlockingIOError):
        while more := theirs.recv(1 << 20):
            data += more
    messages = []
    while data:
        header, buffers = unpack_header(data[: HEAD.size])
        end = HEAD.size + header + buffers
        start = HEAD.size + header
        messages.append(unpack_payload(bytes(data[HEAD.size : start]), bytes(data[start:end]))[0])
        del data[:end]
    return messages


# -- what is said -----------------------------------------------------------------------------------------


def _one_of_many(usual: st.SearchStrategy, odd: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(usual, usual, usual, odd)


handles = st.integers(0, 9).map(lambda number: {"h": ["theirs", number]})
stand_ins = st.integers(0, 9).map(lambda number: {"h": ["ours", number, "object"]})
names = st.sampled_from(
    ["secret", "steal", "gi_frame", "weight", "close", "append", "__class__", "__globals__", ""]
)
TENSOR = {"T": {"dtype": "float32", "shape": [2], "data": 0, "device": "cpu", "grad": "call"}}
several = st.integers(0, 2).map(lambda buffer: {"T": TENSOR["T"] | {"data": buffer}})
plain = junk | handles | stand_ins | several
arguments = st.lists(plain, max_size=3).map(lambda items: {"t": items})
named = st.lists(
    st.tuples(st.sampled_from("xyz"), plain), max_size=2, unique_by=lambda p: p[0]
).map(lambda pairs: {"d": [[name for name, _ in pairs], [value for _, value in pairs]]})
forgotten = st.lists(st.integers(-1, 20), max_size=3)


def requests(ops: st.SearchStrategy) -> st.SearchStrategy[dict]:
    """Requests, most of them as a peer would make them, for one of these operations."""
    usual = st.fixed_dictionaries(
        {
            "op": ops,
            "on": _one_of_many(handles, plain),
            "name": _one_of_many(names, junk),
            "args": _one_of_many(arguments, plain),
            "kwargs": _one_of_many(named, plain),
            "graph": _one_of_many(st.booleans(), junk),
            "forget": _one_of_many(st.just([]), forgotten | junk),
        }
    )
    broken = usual.flatmap(lambda request: mutated(request, plain)).filter(
        lambda request: isinstance(request, dict)
    )
    return st.one_of(usual, usual, broken)


blobs = st.lists(st.just(bytes(8)) | st.binary(max_size=16), min_size=1, max_size=3)
errors = st.tuples(
    st.sampled_from(["Own", ""]), st.sampled_from(dir(builtins)), st.text(max_size=5)
).map(list)
changes = st.lists(st.tuples(st.integers(-1, 6) | odd_numbers, plain).map(list), max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> tuple[dict, list[bytes]]:
    """Answers with their buffers: values, changes of arguments, graphs, methods, errors, nonsense."""
    value, buffers = draw(st.tuples(plain, blobs) | any_written)
    answer = {"value": value} | draw(
        st.fixed_dictionaries(
            {},
            optional={
                "changed": _one_of_many(changes, junk),
                "graph": _one_of_many(st.integers(0, 3), junk),
                "method": st.booleans() | junk,
            },
        )
    )
    kind = draw(st.sampled_from(["value", "value", "error", "broken"]))
    if kind == "error":
        answer = {"error": draw(_one_of_many(errors, junk))}
    elif kind == "broken":
        answer = draw(mutated(answer, plain).filter(lambda broken: isinstance(broken, dict)))
    return answer, buffers


def _frame(message: tuple[dict, list[bytes]]) -> bytes:
    return pack(*message)


frames = st.one_of(
    answers().map(_frame),
    answers().map(_frame),
    st.tuples(requests(st.sampled_from(sorted(EVERYTHING))), blobs).map(_frame),
    st.binary(max_size=60),
)


# -- requests ---------------------------------------------------------------------------------------------


def _served(request: dict, buffers: list[bytes], said: list[bytes]) -> tuple[list[dict], list[str]]:
    """What an examiner replied to a request, and what was touched of the object that it guards."""
    touched: list[str] = []
    stolen = {name: lambda *_: touched.append("service") for name in ("", "secret", "steal")}
    with peer_that_hears(said, allowed=ALLOWED, services=stolen) as (peer, theirs):
        objects = examiners_objects(touched)
        for item in objects:
            peer._handle_of(item)
        outputs = [torch.ones(2, requires_grad=True)]
        peer._graphs[peer._next_number()] = (outputs, outputs)
        try:
            peer._serve_one(request, [memoryview(buffer) for buffer in buffers])
        except ENDS:
            return [], touched
        return all_said(theirs), touched


@given(requests(st.sampled_from(sorted(ALLOWED)) | junk), blobs, st.lists(frames, max_size=3))
@fuzzed(250)
def test_any_request_is_answered_or_the_pipe_is_given_up(request, buffers, said):
    replies, touched = _served(request, buffers, said)
    assert not touched
    if replies:
        assert replies[-1].keys() & {"value", "error"}


@given(requests(st.sampled_from(sorted(EVERYTHING - ALLOWED))), blobs, st.lists(frames, max_size=1))
@fuzzed(200)
def test_no_request_looks_into_an_object_of_the_examiners(request, buffers, said):
    replies, touched = _served(request, buffers, said)
    assert not touched
    assert SECRET not in str(replies)
    if request.get("op") not in list(ALLOWED):
        assert all("error" in reply for reply in replies)


@given(st.lists(frames, max_size=4))
@fuzzed(120)
def test_an_examiner_that_serves_any_bytes_ends_in_an_ordinary_way(said):
    with (
        peer_that_hears(said, allowed=ALLOWED) as (peer, _),
        contextlib.suppress(PeerTimeout, ProtocolError),
    ):
        peer.serve()


# -- answers ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def only_ordinary_ends() -> Iterator[None]:
    """What happens inside ends well, with a built-in error, or with one of the pipe's own."""
    try:
        yield
    except ENDS:
        return
    except Exception as error:
        assert type(error).__module__ == "builtins"


def _arguments() -> dict[str, Any]:
    return {
        "list": [1, "a"],
        "dict": {"a": 1},
        "tensor": torch.arange(4.0).reshape(2, 2),
        "leaf": torch.ones(2, requires_grad=True),
        "array": np.arange(3),
        "generator": torch.Generator().manual_seed(1),
    }


def _named_as_changed(said: list[bytes]) -> set:
    """The places of arguments that some of the frames call changed, as far as these can be read."""
    found = set()
    with contextlib.suppress(ProtocolError):
        for frame in said:
            header, _ = unpack_header(frame[: HEAD.size])
            start = HEAD.size + header
            message, _ = unpack_payload(frame[HEAD.size : start], frame[start:])
            changed = message.get("changed")
            pairs = changed if isinstance(changed, list) else []
            found |= {p[0] for p in pairs if isinstance(p, list) and p and type(p[0]) is int}
    return found


@given(st.lists(frames.filter(lambda frame: len(frame) >= HEAD.size), min_size=1, max_size=3))
@fuzzed(200)
def test_any_answer_is_a_value_or_an_ordinary_error_and_changes_what_it_says(said):
    arguments, untouched = _arguments(), _arguments()
    with peer_that_hears(said, allowed=ALLOWED) as (peer, _), only_ordinary_ends():
        peer.ask("call", StandIn(peer, 1, "object"), args=tuple(arguments.values()), kwargs={})
    allowed = _named_as_changed(said)
    for position, name in enumerate(arguments):
        before, after = untouched[name], arguments[name]
        if position not in allowed:
            assert form(after) == form(before), name
        if isinstance(before, torch.Tensor | np.ndarray):
            assert (after.shape, after.dtype) == (before.shape, before.dtype)


USES = {
    "attribute": lambda thing: thing.weight,
    "method": lambda thing: thing.append(1),
    "set": lambda thing: setattr(thing, "weight", 1),
    "item": lambda thing: thing["a"],
    "length": len,
    "inside": lambda thing: 1 in thing,
    "steps": lambda thing: [step for step, _ in zip(thing, range(5), strict=False)],
    "call": lambda thing: thing(1, x=thing),
    "calls": lambda thing: thing._ask("each", args=([(1,), (2,)],)),
    "words": repr,
}


@given(
    st.sampled_from(list(USES)), st.sampled_from(["object", "module"]), st.lists(frames, max_size=4)
)
@fuzzed(200)
def test_any_use_of_a_stand_in_ends_in_an_ordinary_way(use, kind, said):
    with peer_that_hears(said, allowed=ALLOWED) as (peer, _), only_ordinary_ends():
        USES[use](StandIn(peer, 1, kind))


@given(st.lists(frames, max_size=2), junk | st.integers(0, 3))
@fuzzed(80)
def test_any_gradient_is_one_or_an_ordinary_error(said, graph):
    first = pack({"value": TENSOR, "graph": graph}, [bytes(8)])
    x = torch.ones(3, requires_grad=True)
    with peer_that_hears([first, *said], allowed=ALLOWED) as (peer, _), only_ordinary_ends():
        peer.ask("call", StandIn(peer, 1, "object"), args=(x,), kwargs={}).sum().backward()
    assert x.grad is None or (x.grad.shape, x.grad.dtype) == (x.shape, x.dtype)


# -- what was found here once -----------------------------------------------------------------------------


def _called(**request: Any) -> tuple[dict, list[str]]:
    """The reply to a call of the function that gives its arguments back."""
    usual = {"op": "call", "on": {"h": ["theirs", 2]}, "args": {"t": []}, "kwargs": {"d": [[], []]}}
    [reply], touched = _served(usual | request, [], [])
    return reply, touched


@pytest.mark.parametrize("args", [{"range": [5]}, {"l": [1]}, "text", {"h": ["theirs", 6]}])
def test_arguments_that_are_no_tuple_are_refused(args):
    reply, _ = _called(args=args)
    assert "error" in reply


def test_named_arguments_that_are_an_object_of_the_examiners_are_refused():
    _, touched = _called(kwargs={"h": ["theirs", 1]})
    assert not touched


def _asked_with(argument: Any, answer: dict, *more: dict) -> Any:
    with peer_that_hears([pack(one, []) for one in (answer, *more)], allowed=ALLOWED) as (peer, _):
        return peer.ask("call", StandIn(peer, 1, "object"), args=(argument,), kwargs={})


@pytest.mark.parametrize("changed", [{"range": [5]}, "text", {"t": [1]}, {"s": [1]}])
def test_a_list_can_only_have_become_a_list(changed):
    items = [1]
    with pytest.raises((*ENDS, TypeError)):
        _asked_with(items, {"value": None, "changed": [[0, changed]]})
    assert items == [1]


def test_a_dict_can_only_have_become_a_dict():
    named = {"a": 1}
    with pytest.raises((*ENDS, TypeError)):
        _asked_with(named, {"value": None, "changed": [[0, 5]]})
    assert named == {"a": 1}


def test_an_exception_group_arrives_as_an_error_of_theirs():
    with pytest.raises(Exception, match="text") as error:
        _asked_with(1, {"error": ["ExceptionGroup", "ExceptionGroup", "text"]})
    assert error.value.raised_there == "ExceptionGroup"


def test_an_answer_cannot_end_an_iteration_of_the_test():
    def checked(number: int) -> bool:
        return _asked_with(number, {"error": ["StopIteration", "StopIteration", ""]})

    with pytest.raises(RuntimeError):
        assert all(map(checked, range(3)))


@pytest.mark.parametrize("number", [None, [1], "1", {"a": 1}])
def test_the_number_of_a_graph_is_a_number(number):
    first = pack({"value": TENSOR, "graph": number}, [bytes(8)])
    with (
        peer_that_hears([first], allowed=ALLOWED) as (peer, _),
        pytest.raises(ProtocolError),
    ):
        peer.ask("call", StandIn(peer, 1, "object"), args=(torch.ones(1),), kwargs={})


@pytest.mark.parametrize("kind", ["ValueError", "RuntimeError", "IndexError"])
def test_an_outcome_that_raises_when_it_is_looked_at_is_none(kind):
    outcome = {"value": {"h": ["ours", 1, "object"]}}
    with peer_that_hears(
        [pack(outcome, []), pack({"error": ["Own", kind, ""]}, [])], allowed=ALLOWED
    ) as (peer, _):
        learner = Learner.__new__(Learner)
        learner.peer = peer
        with pytest.raises(ProtocolError):
            learner.run({"source": ""})
