"""Efficient training against torch's own checkpoint, gradient scaler and whole batches, and a ring of real threads."""

import queue
import threading

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from autograder.loader import reference

EXACT = {"rtol": 0.0, "atol": 1e-12}


@pytest.fixture
def training():
    return reference("pretraining", "efficient_training")


def random(*shape, seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def test_scale_moves_as_torchs_scaler_moves_it(training):
    """torch.amp.GradScaler, given the same finite and infinite gradients."""
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=64.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=3
    )
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    ours, scale, good_steps = {"w": torch.ones(2)}, 64.0, 0
    for slope in [1, 1, 1, 1, float("inf"), 1, 1, float("nan"), 1, 1, 1, 1]:
        optimizer.zero_grad()
        scaler.scale((slope * weight).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        _, scale, good_steps = training.autocast_step(
            lambda w, slope=slope: (slope * w["w"].float()).sum(),
            ours,
            0.1,
            scale,
            good_steps,
            growth_interval=3,
        )
        assert scale == scaler.get_scale()
        torch.testing.assert_close(ours["w"], weight.detach())


@pytest.mark.parametrize("cut", [(1, 2, 5), (4, 4), (8,)])
def test_accumulated_gradients_are_those_of_the_whole_batch(training, cut):
    x, matrix = random(8, 3, 4, seed=1), random(4, 6, seed=2)
    targets = torch.randint(6, (8, 3), generator=torch.Generator().manual_seed(3))
    targets[2, 1:] = targets[5] = -100

    def loss_fn(w, x, targets):
        return nn.functional.cross_entropy((x @ w["matrix"]).flatten(0, 1), targets.flatten())

    loss, gradients = training.accumulate_gradients(
        loss_fn, {"matrix": matrix}, list(zip(x.split(cut), targets.split(cut), strict=True))
    )
    leaf = matrix.clone().requires_grad_()
    whole = loss_fn({"matrix": leaf}, x, targets)
    whole.backward()
    torch.testing.assert_close(loss, whole.detach(), **EXACT)
    torch.testing.assert_close(gradients["matrix"], leaf.grad, **EXACT)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_checkpoint_is_torchs(training, dropout):
    block = nn.Sequential(nn.Linear(5, 7), nn.Dropout(dropout), nn.Tanh(), nn.Linear(7, 3)).double()
    found = []
    for run in (
        lambda f, x: f(x),
        training.checkpoint,
        lambda f, x: torch.utils.checkpoint.checkpoint(f, x, use_reentrant=True),
    ):
        block.zero_grad()
        torch.manual_seed(7)
        x = random(4, 5, seed=8).requires_grad_()
        y = run(block, 2 * x)
        (y * random(4, 3, seed=9)).sum().backward()
        found.append([y, x.grad, *(p.grad.clone() for p in block.parameters()), torch.rand(3)])
    for ours, theirs in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    for ours, theirs in zip(found[1], found[2], strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_checkpoint_keeps_the_inputs_and_nothing_else(training):
    kept = []
    x = random(6, 5, seed=1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        training.checkpoint(lambda x: torch.tanh(torch.tanh(x) @ random(5, 9, seed=2)), x)
    assert kept == [(6, 5)]


@pytest.mark.parametrize("world_size, size", [(1, 4), (2, 5), (3, 9), (5, 3), (4, 101)])
def test_ring_of_threads_sums(training, world_size, size):
    """All ranks at the same time, with queues between neighbours."""
    buffers = [random(size, seed=rank) for rank in range(world_size)]
    links = [queue.Queue() for _ in range(world_size)]
    results, sent = [None] * world_size, [0] * world_size

    def run(rank):
        def exchange(chunk):
            links[(rank + 1) % world_size].put(chunk.clone())
            sent[rank] += len(chunk)
            return links[rank].get(timeout=10)

        results[rank] = training.ring_all_reduce(buffers[rank], rank, world_size, exchange)

    ranks = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(timeout=20)
    for result in results:
        torch.testing.assert_close(result, sum(buffers), **EXACT)
    # 2(n - 1)/n of the buffer, up to a chunk's rounding.
    longest = -(-size // world_size)
    assert max(sent) <= 2 * (world_size - 1) * longest


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint_sequential"])
def test_torchs_checkpoint_is_refused(training, name):
    with pytest.raises(RuntimeError, match="does this exercise for you"):
        exec(f"torch.utils.checkpoint.{name}(abs, 1)", training.__dict__)


def test_torchs_scaler_is_refused(training):
    with pytest.raises(RuntimeError, match="does this exercise for you"):
        exec("torch.amp.GradScaler('cpu')", training.__dict__)
