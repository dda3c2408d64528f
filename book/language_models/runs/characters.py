"""Perplexity per character, on plays not seen in training, of models that count (n-grams up to order 8)
and of a small Transformer after trainings of several lengths; and the text that it writes, after the longest,
under six ways to decode."""

import functools
import math
import re

import numpy as np
import torch
from torch import nn

from lab import data, device, generator, runs
from lab.models import CausalTransformer
from lab.training import text_batches, token_loss, train

ORDER = 8
LENGTH = 96  # characters that the Transformer sees at once
# Every length is trained from the start, with a learning rate that falls to its end, and every result is shown.
STEPS, BATCH_SIZE = (1000, 2000, 4000, 8000), 16
DECODINGS = {
    "greedy": {"temperature": 0.0},
    "temperature 0.7": {"temperature": 0.7},
    "sampling": {},
    "temperature 1.3": {"temperature": 1.3},
    "top-k, k = 5": {"k": 5},
    "top-p, p = 0.9": {"p": 0.9},
}
PROMPTS, PROMPT_LENGTH, WRITTEN = 16, 48, 240


class NGramModel:
    """Counts what followed the last n - 1 tokens, for every n up to ``order``, and mixes the orders.

    The mixture is Witten and Bell's (1991): after a context seen c times with t different tokens following it,
    P_n(x) = (count(context, x) + t * P_{n-1}(x)) / (c + t). A context that was followed by many different
    tokens leaves more to the shorter context; one never seen leaves everything. P_0 is uniform.
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        self.counts, self.contexts = [], []
        for n in range(1, order + 1):
            codes, counts = np.unique(self._codes(tokens, n), return_counts=True)
            self.counts.append((codes, counts))
            # Codes are sorted, so those of one context stand together.
            contexts, first = np.unique(codes // vocab_size, return_index=True)
            seen = np.add.reduceat(counts, first)
            different = np.diff(np.append(first, len(codes)))
            self.contexts.append((contexts, seen, different))

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """P_n of each token but the first order - 1, given those before it: row n for n = 0 … order."""
        windows = [self._codes(tokens[self.order - n :], n) for n in range(1, self.order + 1)]
        return self._mix(windows)

    def next_token(self, context: np.ndarray) -> np.ndarray:
        """The distribution of the token after a context of at least order - 1 tokens."""
        windows = []
        for n in range(1, self.order + 1):
            last = context[len(context) - (n - 1) :]
            code = int(self._codes(last, n - 1)[0]) if n > 1 else 0
            windows.append(code * self.vocab_size + np.arange(self.vocab_size))
        return self._mix(windows)[-1]

    def unseen(self, tokens: np.ndarray, n: int) -> float:
        """The share of the text's n-grams that never occurred in training."""
        return float((_look_up(*self.counts[n - 1], self._codes(tokens, n)) == 0).mean())

    def _codes(self, tokens: np.ndarray, n: int) -> np.ndarray:
        """Every window of n tokens as one integer."""
        code = np.zeros(len(tokens) - n + 1, dtype=np.int64)
        for i in range(n):
            code = code * self.vocab_size + tokens[i : len(tokens) - n + 1 + i]
        return code

    def _mix(self, windows: list[np.ndarray]) -> np.ndarray:
        rows = [np.full(len(windows[0]), 1 / self.vocab_size)]
        for codes, counts, contexts in zip(windows, self.counts, self.contexts, strict=True):
            together = _look_up(*counts, codes)
            seen = _look_up(contexts[0], contexts[1], codes // self.vocab_size)
            different = _look_up(contexts[0], contexts[2], codes // self.vocab_size)
            mixed = (together + different * rows[-1]) / np.maximum(seen + different, 1)
            rows.append(np.where(seen > 0, mixed, rows[-1]))
        return np.stack(rows)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where the (sorted) keys do not hold it."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


@functools.cache
def alphabet() -> str:
    """The characters of the training plays, in order: character i is token i."""
    return "".join(sorted(set(data.text("train"))))


def encode(text: str) -> np.ndarray:
    """A text as the numbers of its characters."""
    number = {character: i for i, character in enumerate(alphabet())}
    return np.array([number[character] for character in text], dtype=np.int64)


def nats(probabilities: np.ndarray) -> list[float]:
    """The mean negative log-probability of each row."""
    return (-np.log(probabilities).mean(axis=1)).tolist()


def train_transformer(seed: int, steps: int, **options) -> tuple[nn.Module, list[float]]:
    """A small Transformer on the training plays, and its loss at each step."""
    rng = generator(seed)
    model = CausalTransformer(len(alphabet()), 64, 4, 3, LENGTH, generator=rng).to(device())
    tokens = torch.from_numpy(encode(data.text("train"))).to(device())
    batches = text_batches(tokens, BATCH_SIZE, LENGTH)
    losses = train(model, batches, token_loss, steps, lr=4e-3, generator=rng, **options)
    return model.eval(), losses


@torch.no_grad()
def transformer_nats(model: nn.Module, tokens: np.ndarray) -> float:
    """Mean negative log-probability; every character but the first 48 is predicted from 48 to 95 before it."""
    half = LENGTH // 2
    tokens = torch.from_numpy(tokens).to(device())
    windows = tokens.unfold(0, LENGTH + 1, half)
    losses = []
    for part in windows.split(64):
        logits = model(part[:, :-1])[:, half:]
        losses.append(
            nn.functional.cross_entropy(logits.flatten(0, 1), part[:, half + 1 :].flatten())
        )
    sizes = torch.tensor([len(part) for part in windows.split(64)], dtype=torch.float64)
    return float((torch.stack(losses).double().cpu() * sizes).sum() / sizes.sum())


def draw(logits, rng, temperature=1.0, k=None, p=1.0):
    """One token for each row of logits. Draws that a limit forbids are drawn again."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / temperature).softmax(-1)
    token = torch.multinomial(probabilities, 1, generator=rng)
    while True:
        likelier = probabilities > probabilities.gather(1, token)
        forbidden = (probabilities * likelier).sum(-1, keepdim=True) >= p
        if k is not None:
            forbidden |= likelier.sum(-1, keepdim=True) >= k
        if not forbidden.any():
            return token[:, 0]
        again = torch.multinomial(probabilities, 1, generator=rng)
        token = torch.where(forbidden, again, token)


@torch.no_grad()
def write(model: nn.Module, prompts: torch.Tensor, rng: torch.Generator, **how):
    """What the model writes after the prompts, (batch WRITTEN), and its mean surprise at it in nats."""
    text, surprise = prompts, []
    for _ in range(WRITTEN):
        logits = model(text[:, -LENGTH:].to(device()))[:, -1].cpu()
        token = draw(logits, rng, **how)
        surprise.append(nn.functional.cross_entropy(logits, token).item())
        text = torch.cat([text, token[:, None]], dim=1)
    return text[:, prompts.shape[1] :], sum(surprise) / len(surprise)


def loops(text: str) -> bool:
    """Whether a text ends in a phrase of at most a third of it, said three times in a row."""
    return any(
        any(character.isalpha() for character in text[-size:])
        and text[-size:] * 3 == text[-3 * size :]
        for size in range(2, len(text) // 3 + 1)
    )


def prompts_from(text: str) -> list[str]:
    """The beginnings of evenly spaced speeches, the speaker's name first."""
    starts = [match.end() for match in re.finditer(r"\n\n(?=[A-Z ]+\n)", text)]
    chosen = np.linspace(0, len(starts) - 20, PROMPTS).astype(int)
    return [text[starts[i] : starts[i] + PROMPT_LENGTH] for i in chosen]


def measure(seed: int) -> dict:
    """Everything for one seed. Counting has no seed: its numbers must come out the same each time."""
    test = encode(data.text("test"))
    counted = NGramModel(encode(data.text("train")), len(alphabet()), ORDER)
    transformer = []
    for steps in STEPS:
        model, losses = train_transformer(seed, steps)
        transformer.append(transformer_nats(model, test))
    prompts = prompts_from(data.text("test"))
    start = torch.stack([torch.from_numpy(encode(prompt)) for prompt in prompts])
    decoded = {}
    for name, how in DECODINGS.items():
        tokens, surprise = write(model, start, generator(f"{name}, seed {seed}"), **how)
        texts = ["".join(alphabet()[i] for i in row) for row in tokens]
        decoded[name] = {
            "perplexity": math.exp(surprise),
            "loops": sum(map(loops, texts)) / len(texts),
            "examples": [[prompts[i], texts[i]] for i in (1, 5, 14)],
        }
    return {
        "n-gram nats": nats(counted.probabilities(test)),
        "n-gram unseen": [counted.unseen(test, n) for n in range(1, ORDER + 1)],
        "transformer nats": transformer,
        "parameters": sum(p.numel() for p in model.parameters()),
        "characters read": [steps * BATCH_SIZE * LENGTH for steps in STEPS],
        "losses": [round(float(np.mean(losses[i : i + 25])), 4) for i in range(0, STEPS[-1], 25)],
        "decoded": decoded,
    }


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=(0, 1, 2))
