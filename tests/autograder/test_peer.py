"""Calls across the pipe behave like calls: values, gradients, in-place changes, callbacks, errors."""

import os
import socket
import threading
import time
from typing import NamedTuple

import pytest
import torch
from torch import nn

from autograder.split.peer import EVERYTHING, Peer, PeerGone, PeerTimeout, StandIn, each

ALLOWED = frozenset({"backward", "call", "getitem", "iter", "len", "next"})


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2, bias=False)

    def forward(self, x):
        return self.linear(x)


def counts():
    number = 0
    while True:
        yield number
        number += 1


def raises(kind):
    raise kind("with a message")


class Odd(KeyError):
    pass


def raise_odd():
    raise Odd("odd")


class Turns:
    """Its step replaces itself: a way to write a machine with states."""

    def step(self):
        self.step = self._second
        return 1

    def _second(self):
        return 2


class Collector:
    """Every call gives back the same list and the same tensor, with more in them."""

    def __init__(self):
        self.items, self.total = [], torch.zeros(1)

    def feed(self, item):
        self.items.append(item)
        return self.items

    def add(self, number):
        return self.total.add_(number)


class Record(NamedTuple):
    """As a given cell would define it."""

    double: torch.Tensor
    again: torch.Tensor


def record(x):
    double = 2 * x
    return Record(double, double)


NAMES = {
    "record": record,
    "members": lambda x: {3 * x},
    "keep": lambda items, x: items.append(5 * x),
    "Collector": Collector,
    "Scale": Scale,
    "product": lambda x, y: (x * y).sum(),
    "pair": lambda x, y: {"sum": x + y, "both": [x * y, x - y]},
    "double_in_place": lambda x: x.mul_(2),
    "append": lambda items: items.append(4),
    "draw": lambda generator: torch.rand(3, generator=generator),
    "apply": lambda function, x: function(x) + 1,
    "counts": counts,
    "raises": lambda name: raises(
        {"value": ValueError, "exit": SystemExit, "stop": KeyboardInterrupt}[name]
    ),
    "odd": raise_odd,
    "Turns": Turns,
    "sleep": lambda: time.sleep(30),
    "look": lambda thing: thing.gi_frame,
    "rewind": lambda thing: thing._ask("method", name="close"),
    "identity": lambda x: x,
    "fork": os.fork,
}


@pytest.fixture
def answers():
    """Looks names up on the other side of a pipe, as an examiner does."""
    ours, theirs = socket.socketpair()
    classes = {"Record": Record}
    server = Peer(theirs, services={"get": NAMES.__getitem__}, allowed=EVERYTHING, classes=classes)
    threading.Thread(target=server.serve, daemon=True).start()
    peer = Peer(ours, allowed=ALLOWED, classes=classes)

    def get(name):
        return peer.ask("service", name="get", args=(name,), kwargs={})

    get.peer, get.server = peer, server
    yield get
    ours.close()


def test_gradients_reach_the_arguments(answers):
    x, y = (torch.randn(4, requires_grad=True) for _ in range(2))
    answers("product")(x, y).backward()
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(y.grad, x.detach())


def test_gradients_through_nested_results(answers):
    x, y = (torch.randn(4, requires_grad=True) for _ in range(2))
    found = answers("pair")(x, y)
    (found["sum"].sum() + (3 * found["both"][0]).sum()).backward()
    assert torch.allclose(x.grad, 1 + 3 * y.detach())


def test_gradients_reach_what_stands_anywhere_in_a_result(answers):
    x = torch.randn(4, requires_grad=True)
    found, items = answers("record")(x), []
    [member] = answers("members")(x)
    answers("keep")(items, x)
    assert found.double is found.again
    (found.double.sum() + member.sum() + items[0].sum()).backward()
    assert torch.equal(x.grad, torch.full((4,), 2.0 + 3 + 5))


def test_gradcheck_passes_through_the_pipe(answers):
    inputs = tuple(torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(answers("product"), inputs)


def test_no_graph_is_kept_without_gradients(answers):
    with torch.no_grad():
        assert not answers("product")(
            torch.ones(2, requires_grad=True), torch.ones(2)
        ).requires_grad
    assert not answers.server._graphs


def test_a_module_is_a_stand_in_whose_parameters_collect_gradients(answers):
    module = answers("Scale")()
    assert isinstance(module, nn.Module)
    weight = torch.arange(6.0).reshape(2, 3)
    module.load_state_dict({"linear.weight": weight})
    x = torch.randn(4, 3)
    output = module(x)
    assert torch.allclose(output, x @ weight.T)
    output.sum().backward()
    assert torch.allclose(module.linear.weight.grad, x.sum(0).expand(2, 3))
    module.zero_grad()
    assert module.linear.weight.grad is None
    assert [name for name, _ in module.named_parameters()] == ["linear.weight"]


def test_what_is_read_off_a_stand_in_refuses_to_be_written(answers):
    weight = answers("Scale")().linear.weight
    with pytest.raises(RuntimeError, match="copy"):
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="copy"):
        weight[0] = 1.0
    assert type(weight * 2) is torch.Tensor


def test_changes_in_place_come_back(answers):
    x, items = torch.ones(3), [1]
    answers("double_in_place")(x)
    answers("append")(items)
    assert x.tolist() == [2, 2, 2]
    assert items == [1, 4]


def test_an_argument_inside_a_graph_may_be_changed_in_place(answers):
    x = torch.ones(2, requires_grad=True)
    answers("double_in_place")(x * 3).sum().backward()
    assert x.grad.tolist() == [6, 6]


def test_a_generator_comes_back_advanced(answers):
    ours, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    for _ in range(2):
        assert torch.equal(answers("draw")(ours), torch.rand(3, generator=theirs))


def test_functions_are_called_back_with_gradients(answers):
    calls = []

    def square(x):
        calls.append(x)
        return x * x

    x = torch.tensor([3.0], requires_grad=True)
    answers("apply")(square, x).backward()
    assert len(calls) == 1
    assert x.grad.item() == 6


def test_an_endless_iterator_is_stepped(answers):
    steps = iter(answers("counts")())
    assert [next(steps) for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    "name, kind", [("value", ValueError), ("exit", RuntimeError), ("stop", RuntimeError)]
)
def test_errors_arrive_as_ordinary_errors(answers, name, kind):
    with pytest.raises(kind, match="with a message"):
        answers("raises")(name)


def test_an_error_of_ones_own_class_arrives_as_the_built_in_it_derives_from(answers):
    with pytest.raises(KeyError) as error:
        answers("odd")()
    assert error.value.raised_there == "Odd"


def test_silence_is_a_time_out_and_not_an_exception(answers):
    answers.peer.deadline = time.monotonic() + 0.2
    with pytest.raises(PeerTimeout):
        answers("sleep")()
    assert not issubclass(PeerTimeout, Exception)


def test_the_end_of_the_other_side_is_noticed(answers):
    identity = answers("identity")
    answers.server.channel.shutdown(socket.SHUT_RDWR)
    with pytest.raises(PeerGone):
        identity(1)


def test_a_process_that_an_answer_forks_answers_nothing(answers):
    answers.peer.deadline = time.monotonic() + 10
    for number in range(5):
        child = answers("fork")()
        assert child > 0
        os.waitpid(child, 0)
        assert answers("identity")(number) == number


def test_the_answer_may_not_look_into_what_it_is_handed(answers):
    generator = (x for x in range(3))
    with pytest.raises(AttributeError, match="not possible"):
        answers("look")(generator)


def test_the_answer_may_call_no_method_of_what_it_is_handed(answers):
    generator = (x for x in range(3))
    with pytest.raises(AttributeError, match="not possible"):
        answers("rewind")(generator)
    assert next(generator) == 0


def test_a_method_is_called_with_one_question(answers):
    module, asked = answers("Scale")(), []
    module.eval()
    ask = answers.peer.ask
    answers.peer.ask = lambda op, *args, **kwargs: asked.append(op) or ask(op, *args, **kwargs)
    for _ in range(3):
        module.eval()
    assert asked == ["method"] * 3


@pytest.mark.parametrize("here", [True, False], ids=["here", "there"])
class TestManyCallsInOneQuestion:
    @pytest.fixture
    def named(self, answers, here):
        return NAMES.__getitem__ if here else answers

    def test_give_what_single_calls_give(self, named):
        x, y = torch.randn(2, 3), torch.randn(2, 3)
        product = named("product")
        assert each(product, [(x, y), (y, y)]) == [product(x, y), product(y, y)]
        assert each(product, []) == []

    def test_of_a_method_see_what_earlier_ones_did(self, named):
        assert each(named("Turns")().step, [()]) == [1]
        assert each(named("Collector")().feed, [(1,), (2,)]) == [[1], [1, 2]]

    def test_keep_a_result_that_the_next_call_writes_into(self, named):
        assert each(named("Collector")().add, [(1,), (2,)]) == [torch.ones(1), 3 * torch.ones(1)]

    def test_let_gradients_through(self, named):
        x, y = torch.randn(4, requires_grad=True), torch.randn(4)
        sum(each(named("product"), [(x, y), (x, 2 * y)])).backward()
        assert torch.allclose(x.grad, 3 * y)

    def test_change_their_arguments_in_place(self, named):
        x = torch.ones(2)
        each(named("double_in_place"), [(x,), (x,)])
        assert torch.equal(x, 4 * torch.ones(2))

    def test_end_with_the_first_error(self, named):
        with pytest.raises(ValueError, match="with a message"):
            each(named("raises"), [("value",), ("exit",)])


def test_many_calls_are_one_question(answers):
    feed, asked = answers("Collector")().feed, []
    answers.peer._send, send = (lambda *args: (asked.append(1), send(*args))), answers.peer._send
    each(feed, [(number,) for number in range(100)])
    assert len(asked) == 1


def test_a_method_that_replaced_itself_is_the_new_one(answers):
    turns = answers("Turns")()
    assert [turns.step() for _ in range(3)] == [1, 2, 2]


def test_a_method_can_be_handed_on(answers):
    turns = answers("Turns")()
    assert answers("apply")(lambda _: turns.step(), 0) == 2


def test_a_stand_in_is_equal_to_nothing_but_itself(answers):
    one, other = answers("identity"), answers("identity")
    assert one == one
    assert one != other
    assert one != 1
    assert type(one) is StandIn


def test_an_object_that_comes_home_is_itself(answers):
    mine = object()
    assert answers("identity")(mine) is mine


def test_what_is_forgotten_is_freed(answers):
    for _ in range(50):
        answers("Scale")()
    answers("identity")(1)
    assert len(answers.server._objects) < 10


def test_a_forged_handle_is_refused(answers):
    message, _ = (
        {"op": "call", "on": {"h": ["theirs", 999]}, "args": {"t": []}, "kwargs": {"d": [[], []]}},
        None,
    )
    answers.peer._send(message, [])
    reply, _ = answers.peer._receive()
    assert reply["error"][0] == "ProtocolError"
