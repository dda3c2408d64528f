# %% [markdown]
# # A tokenizer
#
# A language model reads and writes numbers out of a fixed list. What stands on that list is decided before any model
# is trained, by a program that is trained too, by counting. You build it: the byte-level byte-pair encoding of
# GPT-2 (Radford et al. 2019, §2.2), which many models after it kept.
#
# **You build** a byte-level BPE tokenizer: training, encoding, decoding, streaming · **Minutes** 120 ·
# **Points** 20 · **Difficulty** ●●○ · **Before this** [Tokens](../../book/language_models/tokens.md)
#
# Run a cell with Shift+Enter. Write your answers where it says `YOUR CODE HERE`, then run the tests below them.
# A test that passes is silent; one that fails says what it expected, what came, and which mistake usually does that.
# More tests, on other inputs, run when your notebook is graded. Plain Python and `re` are all you need.

# %%
import codecs
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch

import lab
from lab import check

device = lab.device()

Pair = tuple[bytes, bytes]  # two neighbouring tokens
Word = tuple[bytes, ...]  # a stretch of text, cut into tokens

# %% [markdown]
# ## What should a token be?
#
# *Whole words?* Then the list is long, and whatever was not on it when it was made (a name, a typing error, another
# language) becomes the same `<unk>`. *Characters?* Unicode has about 150,000 of them, and the sequences get long.
# *Bytes?* UTF-8 writes every character of every language with one to four of 256 bytes, so nothing is ever unknown,
# but the sequences get longer still.
#
# Byte-pair encoding starts from the short list and buys length with it. It was a way to compress files (Gage 1994):
# find the pair of symbols that most often stand side by side, give it a symbol of its own, repeat. Sennrich et al.
# (2016) saw that the list of new symbols, learnt on one text, cuts *other* texts into useful pieces: a frequent word
# becomes one token, a rare one a few. GPT-2 began it from bytes. Its list has $256 + 50{,}000 + 1 = 50{,}257$ tokens:
# the bytes, the merges, and one special token, `<|endoftext|>`.
#
# ### Pre-tokens
#
# Run on raw text, BPE learns tokens such as `dog.`, `dog!` and `dog?` side by side, which wastes the list. So GPT-2
# first cuts the text with a regular expression into *pre-tokens*, and no merge crosses from one to the next. Read the
# pattern from left to right; the first alternative that fits is taken:
#
# | part | takes |
# | --- | --- |
# | `'(?:[sdmt]\|ll\|ve\|re)` | the English endings in *dog's*, *I'd*, *we'll* |
# | ` ?[^\W\d_]+` | letters, with the one space before them |
# | ` ?\d+` | digits, with the one space before them |
# | ` ?(?:[^\s\w]\|_)+` | anything else that is not white space, with the one space before it |
# | `\s+(?!\S)` | white space, but for its last character if something follows |
# | `\s+` | that last character, where it could not join what follows |
#
# This is GPT-2's pattern in the words of Python's `re`. GPT-2's own says `\p{L}` and `\p{N}`, which `re` does not know;
# the two differ where a number is not a decimal digit (½, ², Ⅷ: here a letter, there a digit), and in four control
# characters which `re` takes for white space.

# %%
PATTERN = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


def pre_tokenize(text: str) -> list[str]:
    """The pre-tokens of a text, in order; joined, they are the text again."""
    return PATTERN.findall(text)


pre_tokenize("We'll see  Macbeth's 3 witches... 三个女巫。")

# %% [markdown]
# ## 1 · Special tokens
#
# Some tokens are signals, not text: *a document ends here*, *this is padding*. They are written as text, such as
# `<|endoftext|>`, but must never be cut up, and nothing may merge with them. So they are taken out first, in training
# as in encoding, and what lies between them is ordinary text.
#
# Where two special tokens begin at the same place, say `<|end|>` and `<|end|><|end|>`, the longer one counts. (In a
# regular expression the first alternative that fits wins, not the longest. And `|` has a meaning there.)


# %% solution="pieces"
def split_special(text: str, special_tokens: Sequence[str]) -> list[str]:
    """Cut a text in front of and behind each special token.

    Args:
        text: any text.
        special_tokens: the special tokens, none of them empty, in any order. There may be none.

    Returns:
        The pieces in order; joined, they are the text again. Each occurrence of a special token is one piece, and
        no piece is empty. Occurrences are found from left to right and do not overlap; of those that begin at the
        same place the longest counts.
    """
    ### BEGIN SOLUTION
    if not special_tokens:
        return [text] if text else []
    longest_first = sorted(special_tokens, key=len, reverse=True)
    pattern = "|".join(re.escape(token) for token in longest_first)
    # The group makes re.split keep what it splits at.
    return [piece for piece in re.split(f"({pattern})", text) if piece]
    ### END SOLUTION


# %% test="pieces_by_hand" points=1
check.equal(
    split_special("to be<|end|>or not<|end|>", ["<|end|>"]),
    ["to be", "<|end|>", "or not", "<|end|>"],
    because="Each special token is a piece of its own and stays in the list; `|` is an ordinary character in it, so "
    "escape it (re.escape); no piece is empty.",
)
check.equal(
    split_special("a<|end|><|end|>b<|end|>", ["<|end|>", "<|end|><|end|>"]),
    ["a", "<|end|><|end|>", "b", "<|end|>"],
    because="Of the special tokens that begin at the same place the longest counts.",
)
check.equal(
    split_special("to be", []), ["to be"], because="Without special tokens the text is one piece."
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("language_models", "tokenizer")
rng = inputs("tokenizer pieces")
scraps = [
    "<|end|>",
    "<|end|>",
    "<|",
    "|>",
    "end",
    "[PAD]",
    "A",
    " ",
    "\n",
    "a.b",
    "axb",
    "中",
    "😀",
]
special_tokens = ["[PAD]", "<|end|>", "a.b", "<|end|><|end|>"]
for length in (0, 1, 5, 40, 40):
    drawn = torch.randint(len(scraps), (length,), generator=rng).tolist()
    text = "".join(scraps[i] for i in drawn)
    pieces = split_special(text, special_tokens)
    check.that(
        "".join(pieces) == text,
        "The pieces, joined, must be the text again: nothing may be lost or added.",
    )
    check.equal(
        pieces,
        theirs.split_special(text, special_tokens),
        because="The text is cut wrongly at some special token: escape its characters in a pattern, prefer the "
        "longest where several begin, and leave out empty pieces.",
    )
    check.equal(
        split_special(text, ["中"]),
        theirs.split_special(text, ["中"]),
        because="Only the special tokens one is given count, and one may be a single character.",
    )
check.equal(
    split_special("to be<||>or", ["<||", "|>or not", "|>or"]),
    ["to be", "<||", ">or"],
    because="Special tokens are found from left to right: one that begins earlier goes first, even if it is shorter.",
)
check.equal(split_special("", []), [], because="An empty text has no pieces.")
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · Counting and merging
#
# The whole algorithm is made of two steps. Take *to be or not to be*. Its pre-tokens are `to`, `␣be`, `␣or`, `␣not`,
# `␣to`, `␣be` (`␣` is the space). Each distinct pre-token is kept once, as a tuple of bytes, with the number of times
# it occurs:
#
# $$\texttt{(␣, b, e)} : 2 \qquad \texttt{(t, o)} : 1 \qquad \texttt{(␣, t, o)} : 1 \qquad \texttt{(␣, o, r)} : 1 \qquad
# \texttt{(␣, n, o, t)} : 1$$
#
# **Count.** If word $w$ occurs $n_w$ times and $c_w(a, b)$ of its neighbours are $a, b$, then the count of the pair is
# $n(a, b) = \sum_w n_w\, c_w(a, b)$. Here $n(\texttt t, \texttt o) = 2$, once from `to` and once from `␣to`. Neighbours
# that overlap all count: `aaa` holds the pair `(a, a)` twice.
#
# **Merge.** Replace the pair by one new token everywhere, from left to right. What has been merged is used up: `aaa`
# becomes `(aa, a)`, and `aaaa` becomes `(aa, aa)`.


# %% solution="merging"
def count_pairs(words: Mapping[Word, int]) -> dict[Pair, int]:
    """How often each two tokens stand side by side.

    Args:
        words: each word with the number of times it occurs.

    Returns:
        A plain ``dict`` with every pair of neighbours inside a word, counted in each occurrence of the word.
        Overlapping neighbours all count. A pair that does not occur is not in it.
    """
    ### BEGIN SOLUTION
    counts: dict[Pair, int] = {}
    for word, times in words.items():
        for pair in pairwise(word):
            counts[pair] = counts.get(pair, 0) + times
    return counts
    ### END SOLUTION


def merge_pair(word: Word, pair: Pair) -> Word:
    """The word with each occurrence of the pair made into one token, found from left to right without overlap."""
    ### BEGIN SOLUTION
    merged = []
    i = 0
    while i < len(word):
        if word[i : i + 2] == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)
    ### END SOLUTION


# %% test="merging_by_hand" points=2
check.equal(
    count_pairs({(b"t", b"o"): 1, (b" ", b"t", b"o"): 1, (b" ", b"b", b"e"): 2}),
    {(b"t", b"o"): 2, (b" ", b"t"): 1, (b" ", b"b"): 2, (b"b", b"e"): 2},
    because="A word that occurs n times gives each of its pairs n counts.",
)
check.equal(
    count_pairs({(b"a", b"a", b"a"): 1}),
    {(b"a", b"a"): 2},
    because="Overlapping neighbours all count: there are two in aaa.",
)
check.equal(
    merge_pair((b" ", b"t", b"o"), (b"t", b"o")),
    (b" ", b"to"),
    because="The two tokens of the pair become one, and the others stay.",
)
check.equal(
    merge_pair((b"a", b"a", b"a", b"a", b"a"), (b"a", b"a")),
    (b"aa", b"aa", b"a"),
    because="From left to right, and a token that has been merged is used up.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("language_models", "tokenizer")
rng = inputs("tokenizer merging")
tokens = [b"a", b"b", b"ab", b"aa", b"\xe4\xb8"]
words = {}
for length in (0, 1, 2, 3, 4, 6, 9, 12, 20):
    word = tuple(tokens[i] for i in torch.randint(len(tokens), (length,), generator=rng).tolist())
    words[word] = int(torch.randint(2, 50, (1,), generator=rng))
check.equal(
    count_pairs(words),
    theirs.count_pairs(words),
    because="Some pair is counted wrongly: each word counts as often as it occurs, words of one token have no pair, "
    "and a pair is its two tokens, not the bytes they have when joined.",
)
check.equal(count_pairs({}), {}, because="No words, no pairs.")
check.equal(
    merge_pair((b"aa", b"b", b"a", b"ab"), (b"a", b"ab")),
    (b"aa", b"b", b"aab"),
    because="A pair is its two tokens: others that have the same bytes when joined are not it.",
)
run = tuple([b"a"] * int(torch.randint(5, 20, (1,), generator=rng)))
for word in [*words, run]:
    for pair in [(b"a", b"a"), (b"a", b"b"), (b"b", b"a"), (b"a", b"ab"), (b"\xe4\xb8", b"a")]:
        check.equal(
            merge_pair(word, pair),
            theirs.merge_pair(word, pair),
            because="Some word is merged wrongly: every occurrence of exactly these two tokens, in this order, from "
            "left to right, none of them twice; the result is a tuple.",
        )
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · Training
#
# Count, merge the most frequent pair, count again, until the vocabulary is full. In *to be or not to be* three pairs
# occur twice: `(␣, b)`, `(b, e)` and `(t, o)`. A rule must decide, or the same text would give different tokenizers:
# of the pairs with the highest count **the lexicographically greatest** is merged. Pairs are compared as Python
# compares tuples of `bytes`: first tokens first, byte by byte. So `(t, o)` goes first. Then
#
# | step | words | merged, because |
# | --- | --- | --- |
# | 1 | `to`, `␣ to`, `␣ b e` (2), … | `(t, o)`, greatest of three that occur twice |
# | 2 | `␣ be` (2), … | `(b, e)`, greater than `(␣, b)` |
# | 3 | `␣be` (2), … | `(␣, be)`, the only pair left that occurs twice |
# | 4 | `␣ n ot`, … | `(o, t)`, greatest of those that occur once |
#
# Step 3 shows why one counts again: `(␣, be)` did not exist before step 2, and `(␣, b)` no longer exists.
#
# Counting everything again after each merge is right, and slow: all of the training text's distinct words, for each of
# thousands of merges. But a merge changes only the words that hold the pair. Keep, for each pair, the words it occurs
# in; take the old pairs of those words off the counts, and add the new ones. On the plays of
# the experiment that turns four minutes into seven seconds; the tests accept either.
#
# The result is two tables. The **merges**, in the order in which they were learnt: they are the tokenizer. And the
# **vocabulary**, which gives each token its number. We number as GPT-2 does: the 256 bytes, then a new token for each
# merge, the special tokens last. (GPT-2 has its 256 bytes in another order; here byte $i$ is token $i$.) No two merges
# give the same bytes, so the vocabulary can be read in both directions. For what is inside a token has been merged
# with nothing outside it; its merges are those it would have gone through alone, and there is one way to go.


# %% solution="training"
def train_bpe(
    text: str, vocab_size: int, special_tokens: Sequence[str] = ()
) -> tuple[dict[int, bytes], list[Pair]]:
    """Learn a byte-level BPE tokenizer from a text (Sennrich et al. 2016, Algorithm 1; Radford et al. 2019, §2.2).

    The text is split at the special tokens, the rest cut into pre-tokens, and each of these is a word of single
    bytes (UTF-8). Then the most frequent pair of neighbours is merged, again and again; of several with the same
    count the lexicographically greatest ``(bytes, bytes)``. Pairs that occur once are merged too.

    Args:
        text: the training text.
        vocab_size: how many tokens the vocabulary shall have, bytes and special tokens included. When no
            pair is left to merge, it has fewer.
        special_tokens: tokens which the text is split at; they take no part in the counting.

    Returns:
        The vocabulary, from id to bytes: 0 to 255 are the bytes, then one token for each merge in order, then
        the special tokens in the order given. And the merges, in the order in which they were made.

    Raises:
        ValueError: ``vocab_size`` is less than 256 plus the special tokens (the message says ``vocab_size``), or a
            special token is given twice or has fewer than two bytes in UTF-8 (the message says ``special``).
    """
    ### BEGIN SOLUTION
    num_merges = vocab_size - 256 - len(special_tokens)
    if num_merges < 0:
        raise ValueError(f"vocab_size must be at least {vocab_size - num_merges}, got {vocab_size}")
    if len(set(special_tokens)) < len(special_tokens):
        raise ValueError("a special token is given twice")
    if any(len(token.encode()) < 2 for token in special_tokens):
        raise ValueError(
            "a special token must have at least two bytes: one byte is a token already"
        )

    pre_tokens: Counter[str] = Counter()
    for piece in split_special(text, special_tokens):
        if piece not in special_tokens:
            pre_tokens.update(pre_tokenize(piece))
    words = [tuple(bytes([b]) for b in pre_token.encode()) for pre_token in pre_tokens]
    times = list(pre_tokens.values())

    counts = count_pairs(dict(zip(words, times, strict=True)))
    where: dict[Pair, set[int]] = defaultdict(set)  # the words a pair occurs in, or once did
    for index, word in enumerate(words):
        for pair in pairwise(word):
            where[pair].add(index)

    merges: list[Pair] = []
    while counts and len(merges) < num_merges:
        highest = max(counts.values())
        best = max(pair for pair, count in counts.items() if count == highest)
        merges.append(best)
        for index in where.pop(best):
            for pair in pairwise(words[index]):
                counts[pair] -= times[index]
                if counts[pair] == 0:
                    del counts[pair]
            words[index] = merge_pair(words[index], best)
            for pair in pairwise(words[index]):
                counts[pair] = counts.get(pair, 0) + times[index]
                where[pair].add(index)

    tokens = [bytes([b]) for b in range(256)]
    tokens += [left + right for left, right in merges]
    tokens += [token.encode() for token in special_tokens]
    return dict(enumerate(tokens)), merges
    ### END SOLUTION


# %% test="training_by_hand" points=2
vocab, merges = train_bpe("to be or not to be", 260)
check.equal(
    merges,
    [(b"t", b"o"), (b"b", b"e"), (b" ", b"be"), (b"o", b"t")],
    because="Merge the most frequent pair, of several the lexicographically greatest, and count again "
    "after each merge.",
)
check.equal(
    [vocab[i] for i in (0, 97, 255, 256, 257, 258, 259)],
    [b"\x00", b"a", b"\xff", b"to", b"be", b" be", b"ot"],
    because="Ids 0 to 255 are the single bytes, then one id for each merge, in order.",
)
check.equal(len(vocab), 260, because="vocab_size counts the 256 bytes too.")

# aaaaa -> aa aa a -> aaaa a -> aaaaa, and then no pair is left.
vocab, merges = train_bpe("aaaaa", 1000)
check.equal(
    merges,
    [(b"a", b"a"), (b"aa", b"aa"), (b"aaaa", b"a")],
    because="Pairs that occur once are merged too; stop when no pair is left.",
)
check.equal(
    len(vocab),
    259,
    because="When no pair is left, the vocabulary has fewer than vocab_size tokens.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("language_models", "tokenizer")
rng = inputs("tokenizer training")
for alphabet, length, vocab_size in [
    ("aaab  ", 120, 290),  # runs of one letter: overlaps
    ("abcd ", 200, 300),  # few letters: many ties, between bytes and between merged tokens
    ("aabc  '1!\n。é中文😀", 200, 320),  # every kind of pre-token, one to four bytes a character
]:
    drawn = torch.randint(len(alphabet), (length,), generator=rng).tolist()
    text = "".join(alphabet[i] for i in drawn)
    vocab, merges = train_bpe(text, vocab_size)
    right_vocab, right_merges = theirs.train_bpe(text, vocab_size)
    check.equal(
        merges,
        right_merges,
        because="Some merge is another one. Counts are of neighbours inside pre-tokens as they are after all earlier "
        "merges, each pre-token as often as it occurs; ties go to the greatest pair of bytes, whichever came first.",
    )
    check.equal(
        vocab,
        right_vocab,
        because="The vocabulary is the 256 bytes and then left + right of each merge.",
    )
# A frequent word outweighs many rare ones.
rare = "".join(f" {letter}y" for letter in "abcdefgh")
check.equal(
    train_bpe(rare + " zq" * 20, 258)[1],
    theirs.train_bpe(rare + " zq" * 20, 258)[1],
    because="A pre-token counts as often as it occurs in the text.",
)
for text in ("", " ", "x", "a1"):
    check.equal(
        train_bpe(text, 300)[1],
        [],
        because="A text in which no pre-token has two bytes has nothing to merge.",
    )
### END HIDDEN TESTS

# %% test="training_special" points=2
# Without the special tokens the text is ab, ab, ab: one merge.
vocab, merges = train_bpe("ab<|end|>ab<|end|>ab", 258, ["<|end|>"])
check.equal(
    merges,
    [(b"a", b"b")],
    because="The special tokens are no text: split there, and leave them out of the counts.",
)
check.equal(
    (vocab[256], vocab[257], len(vocab)),
    (b"ab", b"<|end|>", 258),
    because="The merges come first, then the special tokens, and vocab_size counts both.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("language_models", "tokenizer")
rng = inputs("tokenizer training special")
scraps = ["<|end|>", "[PAD]", "the ", "then", " end", "|>", "<|", "结束", "\n"]
special_tokens = ["<|end|>", "[PAD]", "<|end|><|end|>"]
for length, vocab_size in [(60, 259), (60, 275), (40, 500)]:
    drawn = torch.randint(len(scraps), (length,), generator=rng).tolist()
    text = "".join(scraps[i] for i in drawn)
    vocab, merges = train_bpe(text, vocab_size, special_tokens)
    right_vocab, right_merges = theirs.train_bpe(text, vocab_size, special_tokens)
    check.equal(
        merges,
        right_merges,
        because="With special tokens in the text some merge is another one: no merge crosses a special token or "
        "comes from one, and the number of merges leaves room for them in vocab_size.",
    )
    check.equal(
        vocab,
        right_vocab,
        because="The vocabulary is the bytes, the merges, and the special tokens in the order given, also when "
        "the merges run out early.",
    )
### END HIDDEN TESTS

# %% test="training_inputs" points=1
check.raises(
    ValueError,
    train_bpe,
    "to be",
    256,
    ["<|end|>"],
    mentions="vocab_size",
    because="256 bytes and a special token do not fit into 256.",
)
check.raises(
    ValueError,
    train_bpe,
    "to be",
    300,
    ["<|end|>", "<|end|>"],
    mentions="special",
    because="A special token given twice is bad input: say special.",
)
check.raises(
    ValueError,
    train_bpe,
    "to be",
    300,
    [""],
    mentions="special",
    because="A special token of fewer than two bytes is bad input: say special.",
)
### BEGIN HIDDEN TESTS
for too_small in (-1, 0, 255):
    check.raises(
        ValueError,
        train_bpe,
        "to be",
        too_small,
        mentions="vocab_size",
        because="The 256 bytes alone need 256 ids.",
    )
check.equal(
    train_bpe("to be", 257, ["<|end|>"])[1],
    [],
    because="A vocabulary with room for the bytes and the special tokens only is allowed: no merges.",
)
check.raises(
    ValueError,
    train_bpe,
    "to be",
    300,
    ["<|end|>", "x"],
    mentions="special",
    because="A special token that is one byte would be the token of that byte.",
)
check.equal(
    train_bpe("to be", 257, ["é"])[0][256],
    "é".encode(),
    because="What counts is the bytes of a special token in UTF-8, not its characters.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · Encoding
#
# A new text is encoded by doing to each of its pre-tokens what training did: the merges, in the order in which they
# were learnt. The *rank* of a pair is its place in that order. As long as any two neighbours have a rank, merge the
# pair of the lowest.
#
# Note what this is not. It does not look for the longest token in the vocabulary, and it does not merge the first
# pair it can, from the left. With the merges `(b, c)`, `(a, b)`, in this order, `abc` is `a`, `bc`: the pair learnt
# first goes first, although `ab` stands before it. (WordPiece, which BERT uses, does take the longest token.)
#
# Most words occur many times, so keep what you have worked out: a `dict` from pre-token to ids makes the encoding of a
# play several times faster.


# %% solution="encoding"
def merge_by_rank(word: bytes, ranks: Mapping[Pair, int]) -> Word:
    """The tokens of one pre-token, given as its bytes in UTF-8.

    Args:
        word: the bytes.
        ranks: each merge with its place in the order of training; the lowest is merged first.
    """
    ### BEGIN SOLUTION
    tokens = tuple(bytes([b]) for b in word)
    while True:
        known = [pair for pair in pairwise(tokens) if pair in ranks]
        if not known:
            return tokens
        tokens = merge_pair(tokens, min(known, key=lambda pair: ranks[pair]))
    ### END SOLUTION


def encode(
    text: str,
    vocab: Mapping[int, bytes],
    merges: Sequence[Pair],
    special_tokens: Sequence[str] = (),
) -> list[int]:
    """The ids of a text.

    Args:
        text: any text.
        vocab: from id to bytes. The ids may be any integers, as in a tokenizer made elsewhere; each token has one.
        merges: the merges in the order of training.
        special_tokens: those to look for in the text. A special token which is not named here is ordinary text.

    Returns:
        One id for each special token, and the ids of each pre-token between them.

    Raises:
        ValueError: a special token is not in the vocabulary (the message says ``special``).
    """
    ### BEGIN SOLUTION
    ids = {token: id_ for id_, token in vocab.items()}
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for token in special_tokens:
        if token.encode() not in ids:
            raise ValueError(f"the special token {token!r} is not in the vocabulary")

    ids_of: dict[str, list[int]] = {}  # pre-tokens that have been seen
    encoded: list[int] = []
    for piece in split_special(text, special_tokens):
        if piece in special_tokens:
            encoded.append(ids[piece.encode()])
            continue
        for pre_token in pre_tokenize(piece):
            if pre_token not in ids_of:
                tokens = merge_by_rank(pre_token.encode(), ranks)
                ids_of[pre_token] = [ids[token] for token in tokens]
            encoded += ids_of[pre_token]
    return encoded
    ### END SOLUTION


# %% test="encoding_by_hand" points=2
check.equal(
    merge_by_rank(b"abc", {(b"b", b"c"): 0, (b"a", b"b"): 1}),
    (b"a", b"bc"),
    because="The pair of the lowest rank is merged first, wherever it stands.",
)
# a b c d: (c, d) first, then (b, cd); that leaves a, and (a, b) finds no b any more.
check.equal(
    merge_by_rank(b"abcd", {(b"c", b"d"): 0, (b"b", b"cd"): 1, (b"a", b"b"): 2}),
    (b"a", b"bcd"),
    because="After each merge look again: the new token may be part of a pair of its own.",
)
check.equal(
    merge_by_rank(b"ababa", {(b"a", b"b"): 0}),
    (b"ab", b"ab", b"a"),
    because="Every occurrence of the pair is merged.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("language_models", "tokenizer")
rng = inputs("tokenizer encoding")
for alphabet in ("aab", "abc", "abcd", "é中"):
    drawn = torch.randint(len(alphabet), (150,), generator=rng).tolist()
    merges = theirs.train_bpe("".join(alphabet[i] for i in drawn), 296)[1]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for length in (0, 1, 2, 5, 9, 17, 30):
        word = "".join(
            alphabet[i] for i in torch.randint(len(alphabet), (length,), generator=rng).tolist()
        ).encode()
        check.equal(
            merge_by_rank(word, ranks),
            theirs.merge_by_rank(word, ranks),
            because="Some word is cut otherwise than training would have cut it: merge the pair of the lowest rank "
            "that is there, everywhere in the word, and look again until no pair has a rank.",
        )
### END HIDDEN TESTS

# %% test="encoding_text" points=2
vocab = {byte: bytes([byte]) for byte in range(256)}
vocab |= {256: b"to", 257: b"o ", 258: b"<|end|>"}
merges = [(b"t", b"o"), (b"o", b" ")]
check.equal(
    encode("to o to", vocab, merges),
    [256, 32, 111, 32, 256],
    because="The pre-tokens are 'to', ' o', ' to'; no merge crosses from one to the next, so 'o ' never occurs.",
)
check.equal(
    encode("to<|end|>to", vocab, merges, ["<|end|>"]),
    [256, 258, 256],
    because="A special token is one id of its own, and stays in the list.",
)
check.equal(
    encode("<|", vocab, merges),
    [60, 124],
    because="Without merges for them, characters are their bytes.",
)
check.equal(
    encode("中😀", vocab, merges),
    [0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x98, 0x80],
    because="Every character is known: it is one to four bytes of UTF-8.",
)
check.raises(
    ValueError,
    encode,
    "to",
    vocab,
    merges,
    ["<|pad|>"],
    mentions="special",
    because="A special token that the vocabulary does not have is bad input: say special.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("language_models", "tokenizer")
rng = inputs("tokenizer encoding text")
special_tokens = ["<|end|>", "[PAD]", "<|end|><|end|>"]
scraps = [
    "<|end|>",
    "[PAD]",
    "the ",
    "then",
    " end",
    "'s",
    "''s",
    "'lll",
    "  ",
    "\n\n",
    "12",
    "。",
    "中文",
    "é",
    "😀",
]


def draw(length):
    drawn = torch.randint(len(scraps), (length,), generator=rng).tolist()
    return "".join(scraps[i] for i in drawn)


vocab, merges = theirs.train_bpe(draw(200), 320, special_tokens)
# Another numbering: the ids are those of the vocabulary, whatever the order of the merges.
order = torch.randperm(1000, generator=rng)[: len(vocab)].tolist()
renumbered = {order[id_]: token for id_, token in vocab.items()}
for length in (0, 1, 12, 60):
    text = draw(length)
    for numbering in (vocab, renumbered):
        for special in ([], special_tokens[:1], special_tokens):
            check.equal(
                encode(text, numbering, merges, special),
                theirs.encode(text, numbering, merges, special),
                because="Some text gets other ids. Split at the special tokens one is given (and at no others), then "
                "into pre-tokens; merge inside each; look every token's id up in the vocabulary.",
            )
# Characters the training never saw.
text = "".join(chr(c) for c in torch.randint(0x20, 0xD7FF, (200,), generator=rng).tolist())
ids = encode(text, vocab, merges)
check.that(
    b"".join(vocab[id_] for id_ in ids) == text.encode(),
    "The bytes of the tokens, joined, must be those of the text in UTF-8, for any text.",
)
check.equal(
    ids,
    theirs.encode(text, vocab, merges),
    because="Text in scripts the training never saw gets other ids.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · Decoding
#
# Join the bytes of the tokens, then read them as UTF-8. In this order: a token is a piece of *bytes* and may hold half
# a character. `中` is the bytes `E4 B8 AD`; a tokenizer trained on English has them as three tokens, none of which is
# text by itself.
#
# A model can write any ids, also bytes that are no UTF-8 at all. Then there is no text to give back, but there must be
# no crash either: what cannot be read becomes `�`, the replacement character U+FFFD, as with Python's
# `errors="replace"`.


# %% solution="decoding"
def decode(ids: Sequence[int], vocab: Mapping[int, bytes]) -> str:
    """The text of some ids.

    Bytes that are not UTF-8 become U+FFFD, as Python's ``errors="replace"`` has it.

    Raises:
        ValueError: an id is not in the vocabulary (the message says which, after the word ``id``).
    """
    ### BEGIN SOLUTION
    for id_ in ids:
        if id_ not in vocab:
            raise ValueError(f"the id {id_} is not in the vocabulary")
    return b"".join(vocab[id_] for id_ in ids).decode("utf-8", errors="replace")
    ### END SOLUTION


# %% test="decoding_by_hand" points=2
vocab = {byte: bytes([byte]) for byte in range(256)} | {
    256: b"to",
    257: b"\xe4\xb8",
    258: b"<|end|>",
}
check.equal(
    decode([256, 32, 256, 258], vocab),
    "to to<|end|>",
    because="Each token stands for its bytes, a special token too.",
)
check.equal(
    decode([257, 0xAD, 0xF0, 0x9F, 0x98, 0x80], vocab),
    "中😀",
    because="A token may hold part of a character: join all bytes first, then decode them together.",
)
check.equal(
    decode([256, 257, 256], vocab),
    "to\ufffdto",
    because="Bytes that are not UTF-8 become U+FFFD.",
)
check.raises(
    ValueError,
    decode,
    [256, 300],
    vocab,
    mentions="id 300",
    because="An id that the vocabulary does not have is bad input: say 'id 300'.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("language_models", "tokenizer")
rng = inputs("tokenizer decoding")
vocab, merges = theirs.train_bpe("to be or not to be 生存还是毁灭 生存 😀😁😂", 300, ["<|end|>"])
order = torch.randperm(1000, generator=rng)[: len(vocab)].tolist()
renumbered = {order[id_]: token for id_, token in vocab.items()}
for low, high in [(0x20, 0x7F), (0x20, 0xD7FF), (0x1F600, 0x1F640)]:
    text = "".join(chr(c) for c in torch.randint(low, high, (40,), generator=rng).tolist())
    for numbering in (vocab, renumbered):
        ids = theirs.encode(text + "<|end|>", numbering, merges, ["<|end|>"])
        check.equal(
            decode(ids, numbering),
            text + "<|end|>",
            because="Decoding what was encoded must give the text back, in any script, with any numbering.",
        )
# Anything a model may write, also what is no text.
for _ in range(5):
    ids = torch.randint(len(vocab), (30,), generator=rng).tolist()
    check.equal(
        decode(ids, vocab),
        theirs.decode(ids, vocab),
        because="Bytes that are not UTF-8 become U+FFFD, as errors='replace' has it, and all others stay.",
    )
check.equal(decode([], vocab), "", because="No ids, no text.")
missing = max(order) + 7
check.raises(
    ValueError,
    decode,
    [order[0], missing],
    renumbered,
    mentions=f"id {missing}",
    because="Which ids there are is for the vocabulary to say; name the one that is missing.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 6 · Streaming
#
# A corpus does not fit into memory, and a reader does not wait until a model has finished. Both directions must work
# piece by piece, and give what they would have given for the whole.
#
# **Decoding** is the easy one. Ids come one at a time; a character is shown when its last byte is there. Keep the bytes
# that do not make a character yet. (Python's `codecs` has a decoder that does so.)
#
# **Encoding** is harder, because the end of a chunk says nothing about the end of a pre-token: `wit` may become
# `witch`, `'l` may become `'ll`, two spaces in front of a word are cut otherwise than two at the end, and `<|en` may be
# the beginning of `<|end|>`. Some text must wait. But how much can go?
#
# Look at the pattern: white space either begins a pre-token or is all of it. So no pre-token has white space *after*
# something else, and a cut between a character that is not white space and one that is falls between two pre-tokens,
# whatever comes later. That is a *safe cut*:
#
# ```
# The| witches| meet| on| the|  he        (every safe cut of a text that may go on with: ath)
# ```
#
# The converse does not hold: not every place between two pre-tokens is safe. `\n\n` before `b` is two pre-tokens, but a
# text that ends in `\n\n` ends in one.
#
# A special token may hold white space, so a cut must not fall inside one, neither one that is there nor one that may be
# coming. If the longest has $L$ characters, one that begins before the cut is complete when at least $L - 1$ characters
# stand after the cut.


# %% solution="streaming"
def safe_cut(text: str, special_tokens: Sequence[str] = ()) -> int:
    """How much of a text that may go on can be encoded already.

    Returns:
        A position such that, however the text goes on, what stands before it and what stands after it can be
        encoded one without the other, with the ids of the whole. It is not before the last place that has a
        character that is no white space on its left, white space on its right, at least ``L - 1`` characters
        after it (``L`` is the length of the longest special token, 1 if there is none), and is not inside a
        special token. Without such a place it may be 0, and 0 is always safe.
    """
    ### BEGIN SOLUTION
    longest = max((len(token) for token in special_tokens), default=1)
    latest = len(text) - (longest - 1)  # what begins before it can be seen whole
    cut = start = 0
    for piece in split_special(text, special_tokens):
        if piece not in special_tokens:
            places = [start + match.start() for match in re.finditer(r"(?<=\S)(?=\s)", piece)]
            cut = max([cut, *(place for place in places if place <= latest)])
        start += len(piece)
    return cut
    ### END SOLUTION


class StreamingEncoder:
    """Encodes a text that comes in chunks, cut anywhere.

    The ids of all calls together are those which ``encode`` gives for the whole text. What is before the
    ``safe_cut`` of the text that has come is not kept waiting.
    """

    def __init__(
        self, vocab: Mapping[int, bytes], merges: Sequence[Pair], special_tokens: Sequence[str] = ()
    ) -> None:
        ### BEGIN SOLUTION
        self.vocab, self.merges, self.special_tokens = vocab, merges, special_tokens
        self.waiting = ""
        ### END SOLUTION

    def feed(self, chunk: str, final: bool = False) -> list[int]:
        """The ids that are certain now and were not before.

        ``final=True`` says that the text ends with this chunk: nothing waits any more, and the next chunk begins
        a new text.
        """
        ### BEGIN SOLUTION
        text = self.waiting + chunk
        cut = len(text) if final else safe_cut(text, self.special_tokens)
        self.waiting = text[cut:]
        return encode(text[:cut], self.vocab, self.merges, self.special_tokens)
        ### END SOLUTION


class StreamingDecoder:
    """Decodes ids that come a few at a time.

    The texts of all calls together are what ``decode`` gives for all ids. A character comes with the call that
    brings its last byte.
    """

    def __init__(self, vocab: Mapping[int, bytes]) -> None:
        ### BEGIN SOLUTION
        self.vocab = vocab
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        ### END SOLUTION

    def feed(self, ids: Sequence[int], final: bool = False) -> str:
        """The text that is complete now and was not before.

        ``final=True`` says that no more ids come: an incomplete character becomes U+FFFD, and the next ids
        begin a new text.

        Raises:
            ValueError: an id is not in the vocabulary (the message says which, after the word ``id``).
        """
        ### BEGIN SOLUTION
        for id_ in ids:
            if id_ not in self.vocab:
                raise ValueError(f"the id {id_} is not in the vocabulary")
        return self.decoder.decode(b"".join(self.vocab[id_] for id_ in ids), final)
        ### END SOLUTION


# %% test="streaming_encoder" points=3
check.equal(
    safe_cut("The witches meet"),
    11,
    because="'meet' may go on; in front of the space before it the text can be cut.",
)
check.that(
    11 <= safe_cut("The witches meet on<|end of", ["<|end of play|>"]) <= 19,
    "'<|end of' may become '<|end of play|>', which has 15 characters: the cut is not after its beginning (at 19), but "
    "in front of ' meet' (at 11) there are 14 characters after it, and it is safe.",
)
vocab = {byte: bytes([byte]) for byte in range(256)}
vocab |= {256: b"'l", 257: b"'ll", 258: b"\n\n", 259: b"<|end|>"}
merges = [(b"'", b"l"), (b"'l", b"l"), (b"\n", b"\n")]
text = "we'll go\n\nnow<|end|>we'll\n\n"
encoder = StreamingEncoder(vocab, merges, ["<|end|>"])
ids = []
for character in text:
    ids += encoder.feed(character)
check.that(
    len(ids) >= 6,
    'Too little comes out before the end: the six tokens of "we\'ll go" are certain long before, and must not wait.',
)
ids += encoder.feed("", final=True)
check.equal(
    ids,
    [119, 101, 257, 32, 103, 111, 10, 10, 110, 111, 119, 259, 119, 101, 257, 258],
    because="Character by character the ids must be those of the whole text: only what stands before a safe cut is "
    "certain.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("language_models", "tokenizer")
rng = inputs("tokenizer streaming encoder")
special_tokens = ["<e>", "<e><e>", "< the end>"]
scraps = [
    "<e>",
    "< the end",
    ">",
    "< the",
    "the",
    "n",
    " ",
    " ",
    "\n",
    "'l",
    "l",
    "'",
    "s",
    "1",
    "。",
    "中",
]


def draw(length):
    drawn = torch.randint(len(scraps), (length,), generator=rng).tolist()
    return "".join(scraps[i] for i in drawn)


vocab, merges = theirs.train_bpe(draw(300) + "we'll\n\n it's   then" * 20, 330, special_tokens)
for special in ([], special_tokens[:1], special_tokens):
    text = draw(60) + "\n\n"
    expected = theirs.encode(text, vocab, merges, special)
    encoder = StreamingEncoder(vocab, merges, special)
    for shortest, longest in ((1, 1), (0, 4), (0, 30)):
        chunks, rest = [], text
        while rest:
            size = int(torch.randint(shortest, longest + 1, (1,), generator=rng))
            chunks.append((rest[:size],))
            rest = rest[size:]
        ids = [id_ for part in each(encoder.feed, chunks) for id_ in part]
        ids += encoder.feed("", final=True)
        check.equal(
            ids,
            expected,
            because="Chunks cut anywhere must give the ids of the whole text, in a second text as well: a chunk may "
            "end inside a word, between two spaces, before the s of 's, or inside a special token.",
        )
    # The last chunk may come with final=True.
    ids = encoder.feed(text[:20]) + encoder.feed(text[20:], final=True)
    check.equal(ids, expected, because="With final=True the chunk itself belongs to the text too.")
# Every cut is safe, whatever comes.
cases = [(draw(8), draw(6)) for _ in range(20)]
cases += [
    ("go\n\n", "\nnow"),
    ("go\n\n", ""),
    ("go  ", "on"),
    ("I'l", "l"),
    ("it'", "s"),
    ("<e>", "<e>"),
]
cases += [
    ("we see< the end", ">"),
    ("so< the end>andthenandthen", ""),
    ("to be", "lieve"),
    ("", "to"),
]
for special in ([], special_tokens):
    cuts = each(safe_cut, [(begun, special) for begun, _ in cases])
    for (begun, more), cut in zip(cases, cuts, strict=True):
        check.that(
            isinstance(cut, int) and 0 <= cut <= len(begun),
            "A cut is a position in the text, from 0 to its length.",
        )
        check.equal(
            theirs.encode(begun[:cut], vocab, merges, special)
            + theirs.encode(begun[cut:] + more, vocab, merges, special),
            theirs.encode(begun + more, vocab, merges, special),
            because="The cut is not safe: with more text the ids before it would have been others. It falls between "
            "a character that is no white space and one that is, and outside of every special token, "
            "present or coming.",
        )
        check.that(
            cut >= theirs.safe_cut(begun, special),
            "The cut is earlier than it must be: there is a later place in front of white space that no special "
            "token can cover.",
        )
# What is certain comes at once; only the end of the text waits.
encoder = StreamingEncoder(vocab, merges, special_tokens)
ids = encoder.feed("the then the " * 10 + "12 ")
ids += encoder.feed("the end " * 10)
check.that(
    len(b"".join(vocab[id_] for id_ in ids)) >= 180,
    "Too much text waits: what stands before the safe cut must come out with the call that makes it certain.",
)
### END HIDDEN TESTS

# %% test="streaming_decoder" points=1
vocab = {byte: bytes([byte]) for byte in range(256)} | {256: b"to", 257: b"\xe4\xb8"}
decoder = StreamingDecoder(vocab)
check.equal(
    [decoder.feed([id_]) for id_ in (256, 257, 0xAD, 256)],
    ["to", "", "中", "to"],
    because="A character comes with the id that brings its last byte, not before and not after.",
)
check.equal(
    decoder.feed([257], final=True),
    "\ufffd",
    because="At the end an incomplete character becomes U+FFFD.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("language_models", "tokenizer")
rng = inputs("tokenizer streaming decoder")
vocab, merges = theirs.train_bpe("to be or not to be 生存还是毁灭 生存 😀😁😂", 290)
decoder, right = StreamingDecoder(vocab), theirs.StreamingDecoder(vocab)
for low, high in [(0x20, 0x24F), (0x20, 0xD7FF), (0x1F600, 0x1F640)]:
    text = "".join(chr(c) for c in torch.randint(low, high, (30,), generator=rng).tolist())
    ids = theirs.encode(text, vocab, merges)
    got = [*each(decoder.feed, [([id_],) for id_ in ids]), decoder.feed([], final=True)]
    check.equal(
        got,
        [right.feed([id_]) for id_ in ids] + [right.feed([], final=True)],
        because="Each character must come with the call that brings its last byte, and nothing twice.",
    )
# Several ids at a time, and bytes that are no text: the whole must be what decode gives.
for longest in (1, 3, 7):
    ids = torch.randint(len(vocab), (40,), generator=rng).tolist()
    chunks, rest = [], ids
    while rest:
        size = int(torch.randint(longest + 1, (1,), generator=rng))
        chunks.append((rest[:size],))
        rest = rest[size:]
    check.equal(
        "".join(each(decoder.feed, chunks)) + decoder.feed([], final=True),
        theirs.decode(ids, vocab),
        because="The texts of all calls together must be what decode gives for all ids, also where the bytes are no "
        "UTF-8; after final=True nothing of the old text may be left.",
    )
check.raises(
    ValueError,
    decoder.feed,
    [1000],
    mentions="id 1000",
    because="An unknown id is bad input: say which.",
)
### END HIDDEN TESTS

# %% [markdown]
# Both ends of a pipe, now that you have them. Nothing here ever holds more than a line of the text:


# %%
def encode_iterable(chunks: Iterable[str], encoder: "StreamingEncoder") -> Iterator[int]:
    """The ids of a text that comes in chunks, one by one."""
    for chunk in chunks:
        yield from encoder.feed(chunk)
    yield from encoder.feed("", final=True)


# %% [markdown]
# ## Experiment: what does a larger vocabulary buy?
#
# Train your tokenizer on some plays of Shakespeare, and measure *compression*, the characters of text per token, on
# three texts: the plays it was trained on, a play it has not seen, and a page of Chinese (the beginning of
# *The Peach Blossom Spring* by Tao Yuanming, about 421). One training is enough for all sizes: the first merges of a
# large tokenizer are the merges of a small one.
#
# If your training counts everything again after each merge, this takes some minutes (leave 4096 out then); if it
# touches only the words that change, seconds. Change `SEED` to train on other plays. On a machine with a GPU the larger
# preset runs.

# %% experiment=true
import time

import matplotlib.pyplot as plt
from tqdm.auto import tqdm

from lab import data, figures

SEED = 0
NUM_PLAYS, SIZES = (
    (32, [256, 512, 1024, 2048, 4096, 8192, 16384])
    if device.type == "cuda"
    else (6, [256, 512, 1024, 2048, 4096])
)

seen_plays = [play for play in data.plays() if play.split == "train"]
chosen = torch.randperm(len(seen_plays), generator=lab.generator(f"plays {SEED}"))[:NUM_PLAYS]
training_text = "<|end|>".join(seen_plays[i].text for i in chosen.tolist())

started = time.perf_counter()
vocab, merges = train_bpe(training_text, max(SIZES) + 1, ["<|end|>"])
print(
    f"{len(merges)} merges from {len(training_text) / 1e6:.1f} million characters "
    f"in {time.perf_counter() - started:.1f} s"
)

# %% experiment=true
PEACH_BLOSSOM_SPRING = """晋太元中，武陵人捕鱼为业。缘溪行，忘路之远近。忽逢桃花林，夹岸数百步，中无杂树，
芳草鲜美，落英缤纷。渔人甚异之，复前行，欲穷其林。林尽水源，便得一山，山有小口，仿佛若有光。便舍船，从口入。
初极狭，才通人。复行数十步，豁然开朗。土地平旷，屋舍俨然，有良田、美池、桑竹之属。阡陌交通，鸡犬相闻。
其中往来种作，男女衣着，悉如外人。黄发垂髫，并怡然自乐。"""

texts = {
    "a play of the training": seen_plays[chosen[0]].text,
    "a play never seen": next(play.text for play in data.plays() if play.name == "macbeth"),
    "Chinese": PEACH_BLOSSOM_SPRING,
}
compression = {name: [] for name in texts}
for size in tqdm(SIZES, desc="encoding"):
    smaller = {id_: vocab[id_] for id_ in range(size)}
    for name, text in texts.items():
        ids = encode(text, smaller, merges[: size - 256])
        assert decode(ids, smaller) == text
        compression[name].append(len(text) / len(ids))

figures.use_style()
fig, ax = plt.subplots()
for (name, values), style in zip(compression.items(), ("o-", "s--", "^:"), strict=True):
    ax.semilogx(SIZES, values, style, base=2, label=name)
ax.set(xlabel="vocabulary size", ylabel="characters per token", ylim=(0, None), xticks=SIZES)
ax.set_xticklabels(SIZES)
ax.legend()
figures.show(
    fig,
    alt=f"Characters per token as the vocabulary grows from {SIZES[0]} to {SIZES[-1]}: "
    + "; ".join(f"{name}: from {v[0]:.2f} to {v[-1]:.2f}" for name, v in compression.items()),
)
for name, values in compression.items():
    print(f"{name:>22}", "  ".join(f"{value:.2f}" for value in values))

# %% [markdown]
# The first doubling of the vocabulary buys the most. The play that was never seen falls behind the one from the
# training as the tokens get more special: names, above all. The Chinese page does not move. Look at the cuts:

# %% experiment=true
line = "Tomorrow, and tomorrow, and tomorrow, creeps in this petty pace. 明日复明日。"
for size in SIZES:
    smaller = {id_: vocab[id_] for id_ in range(size)}
    tokens = [smaller[id_] for id_ in encode(line, smaller, merges[: size - 256])]
    shown = "|".join(token.decode("utf-8", errors="backslashreplace") for token in tokens)
    print(f"{size:>6}: {len(tokens)} tokens\n        {shown}")

longest = sorted((left + right for left, right in merges), key=len)[-12:]
print("\nthe longest tokens:", [token.decode("utf-8", errors="replace") for token in longest])

# Character by character through a pipe, and back: what a chat program does with a model's answer.
special = ["<|end|>"]
pipe = encode_iterable(iter(line + "<|end|>"), StreamingEncoder(vocab, merges, special))
decoder = StreamingDecoder(vocab)
print("streamed:", "·".join(decoder.feed([id_]) for id_ in pipe))

# %% [markdown] written="tokenizer_chinese" points=2
# **In your own words.** In the experiment the Chinese page costs almost three tokens for each character, at every
# size of the vocabulary. Explain why a larger vocabulary does not help it, and why nevertheless no character is ever
# unknown. What does it mean for somebody who writes Chinese to a model with this tokenizer, if the model reads at most
# 8,192 tokens and is paid by the token? Name one change to the training that would help, and what it would cost the
# readers of Shakespeare. (5 to 8 sentences.)
