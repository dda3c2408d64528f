"""One training loop for every page and experiment: AdamW, a schedule, a bar, a picture of the loss."""

import html
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from IPython import get_ipython
from IPython.display import HTML, display
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

__all__ = ["text_batches", "token_loss", "train", "warmup_cosine"]

Batches = Callable[[torch.Generator], object]
Loss = Callable[[nn.Module, object], Tensor]

SECONDS_BETWEEN_PICTURES = 1.0


def train(
    model: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    steps: int,
    lr: float = 1e-3,
    *,
    generator: torch.Generator | None = None,
    schedule: Callable[[int], float] | None = None,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.98),
    clip: float = 1.0,
    progress: bool | None = None,
    label: str = "training",
) -> list[float]:
    """Train ``model`` in place for ``steps`` steps of AdamW and return the loss before each of them.

    Two calls with equal parameters and generators in equal states give equal losses on one device: the
    generator draws the batches, and seeds torch's own while the loop runs (dropout).

    Args:
        model: what is trained; it is in training mode afterwards as it was before.
        batches: ``batches(generator)`` draws one batch, on the device of the model.
        loss_fn: ``loss_fn(model, batch)`` is a scalar, for instance :func:`token_loss`.
        steps: number of steps.
        lr: the learning rate, which ``schedule`` multiplies.
        generator: CPU generator for all that is drawn; a new one seeded 0 if ``None``.
        schedule: factor of the learning rate at step 0, 1, …; :func:`warmup_cosine` if ``None``.
        weight_decay: of matrices; biases and norms never decay.
        betas: of AdamW; the second is that of the 2017 paper.
        clip: largest norm of the gradient.
        progress: whether to show a bar and, in a notebook, the loss as it falls. ``None``: yes, unless
            the environment variable ``LAB_PROGRESS`` is ``0``. Pages of the book pass ``False``.
        label: what the bar says.

    Raises:
        ValueError: ``steps`` is below 1 or ``lr`` is not positive, or the loss is no scalar.
        FloatingPointError: the loss is infinite or not a number; the model then holds the parameters that gave it.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}.")
    if not lr > 0:
        raise ValueError(f"lr must be positive, not {lr}.")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    schedule = warmup_cosine(steps) if schedule is None else schedule
    optimizer = torch.optim.AdamW(_groups(model, weight_decay), lr=lr, betas=betas, eps=1e-9)
    was_training = model.training
    model.train()
    losses: list[float] = []
    try:
        with _seeded(generator), _Watch(steps, label, progress) as watch:
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = lr * schedule(step)
                loss = loss_fn(model, batches(generator))
                losses.append(_finite(loss, step, losses, lr))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                watch.update(losses)
    finally:
        model.train(was_training)
    return losses


def token_loss(
    model: nn.Module, batch: tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]
) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of the targets under ``model(inputs)``; a target of -100 is left out."""
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def text_batches(tokens: Int[Tensor, " n"], batch_size: int, length: int) -> Batches:
    """Draws windows of a text: (inputs, targets), each (batch length), the targets one token further.

    Raises:
        ValueError: the text has no window of ``length`` + 1 tokens.
    """
    if len(tokens) <= length:
        raise ValueError(f"A window of {length} + 1 tokens does not fit into {len(tokens)}.")

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(tokens) - length, (batch_size, 1), generator=generator)
        windows = tokens[(starts + torch.arange(length + 1)).to(tokens.device)]
        return windows[:, :-1], windows[:, 1:]

    return draw


def warmup_cosine(
    steps: int, warmup: int | None = None, final: float = 0.05
) -> Callable[[int], float]:
    """A factor that rises linearly to 1 over ``warmup`` steps (a tenth of all), then falls to ``final`` as a cosine."""
    warmup = max(1, steps // 10) if warmup is None else max(1, warmup)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

    return factor


def _groups(model: nn.Module, weight_decay: float) -> list[dict]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def _finite(loss: Tensor, step: int, losses: list[float], lr: float) -> float:
    if loss.dim() != 0:
        raise ValueError(f"loss_fn must return a scalar, not shape {tuple(loss.shape)}.")
    value = loss.item()
    if math.isfinite(value):
        return value
    before = f"it was {losses[-1]:.4g} one step before" if losses else "it is the first loss"
    raise FloatingPointError(
        f"The loss is {value} at step {step} ({before}, lr = {lr:g}). Usual causes: a learning rate "
        "too high, a logarithm or division of 0, a softmax over a row that is all -inf."
    )


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """torch's own generators follow ``generator``, and are afterwards where they were."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


class _Watch:
    """Shows how far the training is: a bar, and in a live notebook the loss curve."""

    def __init__(self, steps: int, label: str, progress: bool | None) -> None:
        if progress is None:
            progress = os.environ.get("LAB_PROGRESS", "") != "0"
        self.steps, self.label = steps, label
        self.bar = tqdm(total=steps, desc=label, disable=not progress, file=sys.stderr)
        self.pictures = progress and get_ipython() is not None
        self.handle = None
        self.drawn = time.monotonic()

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def update(self, losses: list[float]) -> None:
        self.bar.update()
        self.bar.set_postfix_str(f"loss {losses[-1]:.4g}", refresh=False)
        late = time.monotonic() - self.drawn > SECONDS_BETWEEN_PICTURES
        last = len(losses) == self.steps and self.handle is not None
        if self.pictures and (late or last):
            self._draw(losses)

    def _draw(self, losses: list[float]) -> None:
        picture = HTML(_loss_picture(losses, self.steps, self.label))
        if self.handle is None:
            self.handle = display(picture, display_id=True)
        else:
            self.handle.update(picture)
        self.drawn = time.monotonic()


def _loss_picture(losses: list[float], steps: int, label: str) -> str:
    """The losses so far as an SVG that follows the notebook's theme; its text alternative says them."""
    width, height, most = 480, 120, 240
    # At most `most` points, each the mean of the steps it stands for.
    size = max(1, math.ceil(len(losses) / most))
    means = [sum(part) / len(part) for part in _chunks(losses, size)]
    low, high = min(means), max(means)
    points = " ".join(
        f"{width * min((i + 0.5) * size, steps) / steps:.1f},"
        f"{height * (high - mean) / (high - low or 1):.1f}"
        for i, mean in enumerate(means)
    )
    says = f"{label}: step {len(losses)} of {steps}, loss {losses[0]:.4g} at first, now {means[-1]:.4g}"
    return (
        f'<figure style="margin:0"><svg role="img" aria-label="{html.escape(says)}" width="{width}" '
        f'viewBox="-2 -4 {width + 4} {height + 8}" style="max-width:100%">'
        f'<path d="M0 0V{height}H{width}" fill="none" stroke="currentColor" opacity="0.5"/>'
        f'<polyline points="{points}" fill="none" stroke="#0072B2" stroke-width="2"/></svg>'
        f"<figcaption>{html.escape(says)}; the axis runs from {low:.4g} to {high:.4g}</figcaption></figure>"
    )


def _chunks(values: list[float], size: int) -> Iterator[list[float]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
