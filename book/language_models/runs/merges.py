"""Byte-level BPE by Hugging Face `tokenizers`, trained on the training plays: its merges, a line of text cut with
ever more of them, how long other texts come out, and what counting models make of the tokens on unseen plays."""

import json
import math

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lab import data, runs

VOCABULARIES = [256, 512, 1024, 2048, 4096, 8192]
LINE = "To be, or not to be, that is the question:"
TEXTS = {
    "the line": LINE,
    "English, 2017": "The Transformer was invented in 2017.",
    "Chinese": "我喜欢你",
    "emoji": "🙂",
}
NGramModel = runs.script("language_models/characters").NGramModel


def trained_tokenizer(vocab_size: int) -> Tokenizer:
    """GPT-2's kind of tokenizer, with merges from the training plays."""
    tokenizer = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plays = [play.text for play in data.plays() if play.split == "train"]
    tokenizer.train_from_iterator(plays, trainer)
    return tokenizer


def byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def shortened(tokenizer: Tokenizer, merges: int) -> Tokenizer:
    """The same tokenizer with its first merges only, which is what a smaller vocabulary would have been."""
    first = merges_of(tokenizer)[:merges]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in first]
    vocabulary = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    return byte_level(models.BPE(vocab=vocabulary, merges=first))


def stages(tokenizer: Tokenizer, text: str) -> list[dict]:
    """How a text is cut after 0, 1, … merges, listed where the cut changes."""

    def cut(merges: int) -> list[str]:
        return readable(shortened(tokenizer, merges), text)

    # Merges only ever join, so where both ends are cut alike nothing changed between them.
    def between(low: int, high: int, low_cut: list[str], high_cut: list[str]) -> list[int]:
        if low_cut == high_cut:
            return []
        if high - low == 1:
            return [high]
        middle = (low + high) // 2
        middle_cut = cut(middle)
        return between(low, middle, low_cut, middle_cut) + between(
            middle, high, middle_cut, high_cut
        )

    last = len(merges_of(tokenizer))
    found = [0, *between(0, last, cut(0), cut(last))]
    return [{"merges": merges, "tokens": cut(merges)} for merges in found]


def readable(tokenizer: Tokenizer, text: str) -> list[str]:
    """The tokens of a text as text; a token that ends inside a character shows as bytes."""
    encoding = tokenizer.encode(text)
    alone = [tokenizer.decode([i]) for i in encoding.ids]
    return [piece if "\ufffd" not in piece else "�" for piece in alone]


def measure(seed: int) -> dict:
    """All of it; nothing here is random."""
    tokenizer = trained_tokenizer(max(VOCABULARIES))
    train, test = data.text("train"), data.text("test")
    sizes = []
    for size in VOCABULARIES:
        smaller = shortened(tokenizer, size - 256)
        tokens = np.array(smaller.encode(test).ids, dtype=np.int64)
        model = NGramModel(np.array(smaller.encode(train).ids, dtype=np.int64), size, 3)
        nats = -np.log(model.probabilities(tokens)).mean(axis=1)
        characters = len(test) / len(tokens)
        sizes.append(
            {
                "vocabulary": size,
                "characters per token": characters,
                "trigram perplexity per token": math.exp(nats[3]),
                "trigram nats per character": nats[3] / characters,
            }
        )
    return {
        "merges": [
            [tokenizer.decode([tokenizer.token_to_id(symbol)]) for symbol in pair]
            for pair in merges_of(tokenizer)
        ][:1000],
        "stages": stages(tokenizer, LINE),
        "texts": {
            name: {
                "text": text,
                "bytes": len(text.encode()),
                "tokens": readable(tokenizer, text),
            }
            for name, text in TEXTS.items()
        },
        "sizes": sizes,
    }


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=(0,))
