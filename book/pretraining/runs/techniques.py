"""Memory and time of a training step with and without checkpointing and mixed precision, on one small Transformer.

Recorded are, for each combination, the most bytes that autograd keeps for the backward pass at once (each storage
counted once, second forward passes included), the processor seconds of a step (the median of several) and how often a
block is computed in a step. Mixed precision is bfloat16 by torch's autocast, the weights stay float32; checkpointing is
torch's, each block for itself.
"""

import functools
import time

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

import lab
from lab import models, runs

WIDTH, HEADS, LAYERS, LENGTH, BATCH, LETTERS = 96, 4, 8, 64, 8, 80
REPEATS = 5


class Meter:
    """Counts what autograd keeps: used through ``saved_tensors_hooks``."""

    def __init__(self) -> None:
        self.holders: dict[int, int] = {}
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> "Kept":
        return Kept(self, tensor)

    def count(self, storage: torch.UntypedStorage, change: int) -> None:
        before = self.holders.get(storage.data_ptr(), 0)
        self.holders[storage.data_ptr()] = before + change
        if before == 0 or before + change == 0:
            self.now += change * storage.nbytes()
            self.peak = max(self.peak, self.now)


class Kept:
    """A tensor on its way from the forward to the backward pass."""

    def __init__(self, meter: Meter, tensor: Tensor) -> None:
        self.meter, self.tensor = meter, tensor
        meter.count(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self.meter.count(self.tensor.untyped_storage(), -1)


class Checkpointed(nn.Module):
    """A block that keeps its input only, and is computed again in the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, **how: object) -> tuple:
        # The other kind keeps what it computes again out of the meter's sight.
        return torch.utils.checkpoint.checkpoint(
            functools.partial(self.block, **how), x, use_reentrant=True
        )


def step(model: nn.Module, tokens: Tensor, half: bool) -> None:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
    loss.backward()


def cost(seed: int, checkpointed: bool, half: bool) -> dict:
    rng = lab.generator(f"techniques {seed}")
    model = models.CausalTransformer(LETTERS, WIDTH, HEADS, LAYERS, LENGTH, generator=rng)
    tokens = torch.randint(LETTERS, (BATCH, LENGTH + 1), generator=rng)
    computed = []
    for i, block in enumerate(model.blocks):
        block.feed_forward.register_forward_hook(lambda *_: computed.append(1))
        if checkpointed:
            model.blocks[i] = Checkpointed(block)
    meter = Meter()
    with torch.autograd.graph.saved_tensors_hooks(meter.pack, lambda kept: kept.tensor):
        step(model, tokens, half)
    passes = len(computed) / LAYERS
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        step(model, tokens, half)
        seconds.append(time.process_time() - start)
    gradients = [p.grad.float().norm() for p in model.parameters()]
    return {
        "kept_bytes": meter.peak,
        "seconds": sorted(seconds)[REPEATS // 2],
        "passes": passes,
        "gradient_norm": torch.stack(gradients).norm().item(),
        "parameter_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
    }


def measure(seed: int) -> dict:
    return {
        f"{'checkpointed' if checkpointed else 'plain'}, {'bfloat16' if half else 'float32'}": cost(
            seed, checkpointed, half
        )
        for checkpointed in (False, True)
        for half in (False, True)
    }


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=(0, 1, 2))
