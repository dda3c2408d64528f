"""A character GPT at nanoGPT's CPU setting, on the plays: its loss on plays not seen, and its speed.

4 layers, 4 heads, width 128, 64 characters of context, batches of 12, 2,000 steps, no dropout; learning rate,
schedule, weight decay and AdamW's constants as in nanoGPT's configuration too. Recorded are the loss on training,
validation and test plays, and the tokens that a training step handles in a second of processor time, in turn with
the same model from torch's own nn.TransformerEncoderLayer. The model of the first seed becomes the checkpoint `gpt`.
"""

import functools
import hashlib
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import lab
from lab import checkpoints, data, models, runs, training

SEEDS = (0, 1, 2)
WIDTH, HEADS, LAYERS, LENGTH = 128, 4, 4, 64
STEPS, BATCH, LEARNING_RATE = 2000, 12, 1e-3
OPTIMIZER = {"weight_decay": 0.1, "betas": (0.9, 0.99)}
NANOGPT = 1.88  # printed in its README, for its own text
TEST_WINDOWS = 1200  # evenly spaced over each split
SPEED_STEPS, SPEED_WARM = 80, 8


@functools.cache
def alphabet() -> str:
    """The characters of the training plays, in order: character i is token i."""
    return "".join(sorted(set(data.text("train"))))


def encode(text: str) -> Tensor:
    number = {character: i for i, character in enumerate(alphabet())}
    return torch.tensor([number[character] for character in text])


def sizes() -> dict:
    return {
        "vocab_size": len(alphabet()),
        "d_model": WIDTH,
        "num_heads": HEADS,
        "num_layers": LAYERS,
        "max_length": LENGTH,
    }


def untrained(seed: int) -> models.CausalTransformer:
    return models.CausalTransformer(**sizes(), generator=lab.generator(f"gpt {seed}"))


@functools.cache
def batches() -> training.Batches:
    return training.text_batches(encode(data.text("train")), BATCH, LENGTH)


def train(seed: int, steps: int = STEPS) -> tuple[models.CausalTransformer, list[float]]:
    """A model after the first ``steps`` of its ``STEPS`` steps, and its losses."""
    model = untrained(seed)
    losses = training.train(
        model,
        batches(),
        training.token_loss,
        steps,
        lr=LEARNING_RATE,
        generator=lab.generator(f"gpt batches {seed}"),
        schedule=training.warmup_cosine(STEPS, warmup=100, final=0.1),
        progress=False,
        **OPTIMIZER,
    )
    return model.eval(), losses


@functools.cache
def windows(split: str) -> Tensor:
    """Evenly spaced windows of one split, (window, LENGTH + 1)."""
    tokens = encode(data.text(split))
    starts = torch.linspace(0, len(tokens) - LENGTH - 1, TEST_WINDOWS).long()
    return tokens[starts[:, None] + torch.arange(LENGTH + 1)]


@torch.no_grad()
def loss(model: nn.Module, split: str) -> float:
    """Mean nats per character over all positions of the windows, as nanoGPT estimates it."""
    parts = windows(split).split(100)
    return statistics.fmean(
        training.token_loss(model, (part[:, :-1], part[:, 1:])).item() for part in parts
    )


# --- speed ----------------------------------------------------------------------------------------


class TorchGPT(nn.Module):
    """The same model from torch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(len(alphabet()), WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", norm_first=True, batch_first=True
        )
        self.blocks = nn.TransformerEncoder(
            layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False
        )
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        x = self.tokens(tokens) + self.positions.weight[:n]
        x = self.blocks(x, mask=self.mask[:n, :n], is_causal=True)
        return x @ self.tokens.weight.T


# What a parameter of CausalTransformer is called in TorchGPT.
NAMES = {
    "embed.": "",
    "attention_norm": "norm1",
    "feed_forward_norm": "norm2",
    "attention.": "self_attn.",
    "feed_forward.0": "linear1",
    "feed_forward.2": "linear2",
}


def as_torch(model: models.CausalTransformer) -> TorchGPT:
    """torch's layers with the weights of ours."""
    weights = {}
    for name, value in model.state_dict().items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        name = name.replace("blocks.", "blocks.layers.")
        weights["blocks.norm." + name[5:] if name.startswith("norm.") else name] = value
    twin = TorchGPT()
    twin.load_state_dict(weights, strict=False)
    assert set(weights) == {name for name, _ in twin.named_parameters()}
    return twin


def step_of(model: nn.Module) -> Callable[[tuple[Tensor, Tensor]], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, **OPTIMIZER)

    def step(batch: tuple[Tensor, Tensor]) -> None:
        training.token_loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def speed(seed: int, steps: int = SPEED_STEPS) -> dict:
    """Tokens per second of processor time in training, ours and torch's, step by step in turn."""
    ours = untrained(seed)
    twin = as_torch(ours)
    rng = lab.generator(f"gpt speed {seed}")
    batch = batches()(rng)
    with torch.no_grad():
        apart = (ours(batch[0]) - twin(batch[0])).abs().max().item()
    racers = {"ours": step_of(ours.train()), "torch": step_of(twin.train())}
    seconds = {name: [] for name in racers}
    for i in range(SPEED_WARM + steps):
        batch = batches()(rng)
        for name in sorted(racers, reverse=i % 2 == 1):
            start = time.process_time()
            racers[name](batch)
            if i >= SPEED_WARM:
                seconds[name].append(time.process_time() - start)
    found = {name: BATCH * LENGTH / statistics.median(s) for name, s in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["torch"], strict=True)]
    return {**found, "ratio": statistics.median(ratios), "largest_logit_difference": apart}


# --- the record -----------------------------------------------------------------------------------


def store(model: models.CausalTransformer, seed: int) -> dict:
    """Writes the checkpoint; its hash, its size, and the losses of the weights as they are in the file."""
    facts = {
        "command": "python -m lab.runs pretraining/shakespeare",
        "seed": seed,
        "steps": STEPS,
        "test loss, nats per character": round(loss(model, "test"), 4),
    }
    file = checkpoints.save("gpt", model, sizes(), vocabulary=alphabet(), facts=facts)
    stored = checkpoints.load("gpt").model
    return {
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "bytes": file.stat().st_size,
        "test": loss(stored, "test"),
    }


def measure(seed: int) -> dict:
    model, losses = train(seed)
    return {
        "losses": [round(value, 4) for value in losses[::20]],
        "first_losses": [round(value, 5) for value in losses[:40]],
        "train": loss(model, "train"),
        "validation": loss(model, "validation"),
        "test": loss(model, "test"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "speed": speed(seed),
        **({"checkpoints": {"gpt": store(model, seed)}} if seed == SEEDS[0] else {}),
    }


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=SEEDS)
