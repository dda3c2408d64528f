"""Seconds to train the exercise's tokenizer, beside Hugging Face's trainer, on the same text in one run.

    python -m tests.benchmarks.tokenizer [--characters 1000000] [--vocab-size 4096] [--repeats 3]

The text is the beginning of ``lab.data.text("train")``. Both split it with GPT-2's pattern and start from the 256
bytes. The merges are not the same: of pairs with the same count, the exercise takes the lexicographically greatest,
Hugging Face the one of the smallest ids. Hugging Face's trainer is Rust and may use all processors; set
``RAYON_NUM_THREADS=1`` for one. Processor time is what to compare on a machine that others use too.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable

import tokenizers

from autograder.loader import reference
from lab import data


def train_course(text: str, vocab_size: int) -> int:
    """Train the reference answer; the number of merges."""
    return len(reference("language_models", "tokenizer").train_bpe(text, vocab_size)[1])


def train_hugging_face(text: str, vocab_size: int) -> int:
    """Train ``tokenizers``' byte-level BPE; the number of merges."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer.get_vocab_size() - 256


def best_of(
    repeats: int, train: Callable[[str, int], int], text: str, vocab_size: int
) -> tuple[float, float, int]:
    """The shortest wall time and processor time of ``repeats`` runs, and the number of merges."""
    wall, processor = [], []
    for _ in range(repeats):
        started, started_processor = time.perf_counter(), time.process_time()
        merges = train(text, vocab_size)
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - started_processor)
    return min(wall), min(processor), merges


def main() -> None:
    """Print one line for each trainer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--characters", type=int, default=1_000_000)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    text = data.text("train")[: options.characters]
    reference("language_models", "tokenizer")  # loaded before the clock runs
    print(
        f"{len(text):,} characters of the training plays, vocabulary {options.vocab_size:,}, "
        f"best of {options.repeats}; "
        f"Python {platform.python_version()}, tokenizers {tokenizers.__version__}, {os.cpu_count()} processors"
    )
    for name, train in [("course", train_course), ("Hugging Face", train_hugging_face)]:
        wall, processor, merges = best_of(options.repeats, train, text, options.vocab_size)
        print(f"{name:>14}  {wall:8.2f} s wall  {processor:8.2f} s processor  {merges:,} merges")


if __name__ == "__main__":
    main()
