"""Time of one layer against the length of the sequence, and of writing a text against reading it.

A simple RNN, an LSTM and causal self-attention, one layer each and of one width, forward and backward: the least of
several repetitions, in seconds of one core, so that what else ran on the machine does not count. Then a small
Transformer reads a text in one pass, as in training, and writes one of the same length token by token, as in
generation (nothing is cached).
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import lab
from lab import models, runs

WIDTH = 512
BATCH = 1
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)
WRITTEN = (16, 32, 64, 128)
REPETITIONS = 4


class Attention(nn.Module):
    """Causal self-attention with the four projections of the paper, one head."""

    def __init__(self) -> None:
        super().__init__()
        self.queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.queries_keys_values(x).chunk(3, dim=-1)
        return self.output(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "rnn": lambda: nn.RNN(WIDTH, WIDTH, batch_first=True),
    "lstm": lambda: nn.LSTM(WIDTH, WIDTH, batch_first=True),
    "attention": Attention,
}


def seconds(work: Callable[[], object], repetitions: int = REPETITIONS) -> float:
    """The least time of some repetitions: caches and clock rates can only add to it."""
    work()
    times = []
    for _ in range(repetitions):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def layer_seconds(kind: str, length: int, seed: int) -> float:
    """One forward and backward pass of one layer over ``BATCH`` sequences."""
    layer = LAYERS[kind]()
    x = torch.randn(BATCH, length, WIDTH, generator=lab.generator(seed))

    def work() -> None:
        out = layer(x)
        (out[0] if isinstance(out, tuple) else out).sum().backward()

    return seconds(work)


def reading_and_writing(length: int, seed: int) -> dict:
    model = models.CausalTransformer(
        64, 128, 4, 2, max(WRITTEN), generator=lab.generator(seed)
    ).eval()
    text = torch.randint(64, (1, length), generator=lab.generator(seed))

    def write() -> None:
        written = text[:, :1]
        for _ in range(length - 1):
            following = model(written)[:, -1].argmax(-1, keepdim=True)
            written = torch.cat([written, following], dim=1)

    with torch.no_grad():
        return {"read": seconds(lambda: model(text)), "write": seconds(write, 2)}


def measure(seed: int) -> dict:
    return {
        "layer": {kind: {str(n): layer_seconds(kind, n, seed) for n in LENGTHS} for kind in LAYERS},
        "text": {str(n): reading_and_writing(n, seed) for n in WRITTEN},
    }


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=(0, 1, 2))
