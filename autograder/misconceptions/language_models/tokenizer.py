"""Wrong answers to the exercise on the tokenizer."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

MISCONCEPTIONS = [
    Misconception(
        name="special_not_escaped",
        part="pieces",
        says="Your special tokens go into the regular expression as they are, where | means *or* and brackets and dots "
        "have meanings of their own: `<|end|>` then splits at `<`, at `end` and at `>`. Use re.escape.",
        wrong={"re.escape(token) for token": "token for token"},
    ),
    Misconception(
        name="special_shortest_first",
        part="pieces",
        says="Where a short and a long special token begin at the same place, your answer takes the short one. In a "
        "regular expression the first alternative that fits wins, so put the longest first.",
        wrong={"key=len, reverse=True": "key=len"},
    ),
    Misconception(
        name="special_longest_anywhere",
        part="pieces",
        says="Your answer looks for the longest special token in the whole text first, then for the next. They are found "
        "from left to right: one that begins earlier goes first, and only of those that begin together the longest.",
        wrong={
            '    pattern = "|".join(re.escape(token) for token in longest_first)': (
                "    for token in longest_first:\n"
                "        if token in text:\n"
                "            before, _, after = text.partition(token)\n"
                "            return [\n"
                "                *split_special(before, special_tokens),\n"
                "                token,\n"
                "                *split_special(after, special_tokens),\n"
                "            ]\n"
                '    pattern = "|".join(re.escape(token) for token in longest_first)'
            )
        },
    ),
    Misconception(
        name="special_lost",
        part="pieces",
        says="Your pieces have lost the special tokens themselves: joined, they must give the text back. re.split keeps "
        "what it splits at only if the pattern is in a group, (…).",
        wrong={'f"({pattern})"': "pattern"},
    ),
    Misconception(
        name="words_counted_once",
        part="merging",
        says="Your counts take each distinct word once. A word that occurs n times gives each of its pairs n counts.",
        wrong={"counts.get(pair, 0) + times": "counts.get(pair, 0) + 1"},
    ),
    Misconception(
        name="pairs_once_per_word",
        part="merging",
        says="Your counts take a pair once in each word, even where it stands there several times (banana has (a, n) "
        "twice, aaa has (a, a) twice).",
        wrong={"for pair in pairwise(word):": "for pair in set(pairwise(word)):"},
    ),
    Misconception(
        name="merges_overlap",
        part="merging",
        says="Your merges overlap: a token that has been merged is used again with its other neighbour, so that aaa "
        "becomes (aa, aa). Step over both tokens after a merge.",
        wrong={
            "            i += 2": "            i += 1 if word[i + 1 : i + 3] == pair else 2",
        },
    ),
    Misconception(
        name="first_occurrence_only",
        part="merging",
        says="Your merge stops after the first occurrence in a word. Every occurrence is merged.",
        wrong={
            "if word[i : i + 2] == pair:": "if word[i : i + 2] == pair and len(merged) == i:",
        },
    ),
    Misconception(
        name="pair_joined",
        part="merging",
        says="Your merge compares the joined bytes, so (ab, c) is taken for (a, bc). A pair is its two tokens.",
        wrong={
            "if word[i : i + 2] == pair:": 'if i + 1 < len(word) and word[i] + word[i + 1] == b"".join(pair):'
        },
    ),
    Misconception(
        name="ties_first_seen",
        part="training",
        says="Of several pairs with the highest count your training takes the one that was counted first. The rule is the "
        "lexicographically greatest pair: max over (count, pair).",
        wrong={
            "max(pair for pair, count in counts.items() if count == highest)": (
                "next(pair for pair, count in counts.items() if count == highest)"
            )
        },
    ),
    Misconception(
        name="ties_smallest",
        part="training",
        says="Of several pairs with the highest count your training takes the lexicographically smallest. The rule is the "
        "greatest.",
        wrong={"best = max(pair": "best = min(pair"},
    ),
    Misconception(
        name="ties_joined",
        part="training",
        says="Your ties are decided by the joined bytes of a pair. Pairs are compared as tuples, the first token first: "
        "(ab, a) is greater than (a, bb).",
        wrong={
            "for pair, count in counts.items() if count == highest)": (
                'for pair, count in counts.items() if count == highest and b"".join(pair) == '
                'max(b"".join(p) for p, c in counts.items() if c == highest))'
            )
        },
    ),
    Misconception(
        name="never_recounted",
        part="training",
        says="Your counts are those of the beginning: after a merge nothing is counted again, so no pair with a merged "
        "token is ever found. Take the old pairs of the changed words off, and add the new ones.",
        wrong={
            "        for index in where.pop(best):": "        counts.pop(best)\n        for index in ():",
        },
    ),
    Misconception(
        name="old_pairs_stay",
        part="training",
        says="Your counts gain the new pairs after a merge but keep the old ones, which no longer exist: take the pairs "
        "of a word off the counts before it changes.",
        wrong={
            "merges.append(best)": "merges.append(best)\n        counts.pop(best)",
            "                counts[pair] -= times[index]\n"
            "                if counts[pair] == 0:\n"
            "                    del counts[pair]": "                pass",
        },
    ),
    Misconception(
        name="across_pre_tokens",
        part="training",
        says="Your training merges across pre-tokens: the text goes in uncut, and tokens such as `o b` appear. Each "
        "pre-token is a word of its own.",
        wrong={"pre_tokens.update(pre_tokenize(piece))": "pre_tokens.update([piece])"},
    ),
    Misconception(
        name="distinct_pre_tokens",
        part="training",
        says="Your training counts each distinct pre-token once. How often it occurs in the text is its weight.",
        wrong={
            "times = list(pre_tokens.values())": "times = [1] * len(words)",
        },
    ),
    Misconception(
        name="special_tokens_are_text",
        part="training",
        says="Your training reads the special tokens as text and learns merges from their characters. Split at them, and "
        "leave them out.",
        wrong={"in split_special(text, special_tokens):": "in [text] if text else []:"},
    ),
    Misconception(
        name="special_tokens_counted",
        part="training",
        says="Your training splits at the special tokens but then counts them as words too.",
        wrong={"if piece not in special_tokens:": "if piece:"},
    ),
    Misconception(
        name="no_room_for_special",
        part="training",
        says="Your vocabulary is larger than vocab_size: the special tokens need room too, so there are "
        "vocab_size − 256 − len(special_tokens) merges.",
        wrong={"len(merges) < num_merges": "len(merges) < vocab_size - 256"},
    ),
    Misconception(
        name="special_before_merges",
        part="training",
        says="Your vocabulary numbers the special tokens before the merges. Here they come last, as in GPT-2.",
        wrong={
            "tokens += [left + right for left, right in merges]": (
                "tokens += [token.encode() for token in special_tokens]"
            ),
            "    tokens += [token.encode() for token in special_tokens]\n    return": (
                "    tokens += [left + right for left, right in merges]\n    return"
            ),
        },
    ),
    Misconception(
        name="merges_twice_or_more",
        part="training",
        says="Your training stops when the highest count is 1. Pairs that occur once are merged too, as long as the "
        "vocabulary has room.",
        wrong={"    while counts and": "    while max(counts.values(), default=0) > 1 and"},
    ),
    Misconception(
        name="longest_token",
        part="encoding",
        says="Your encoding takes the longest token of the vocabulary that fits, from left to right. That is WordPiece; "
        "BPE merges the pairs in the order in which they were learnt.",
        wrong={
            "        known = [pair for pair in pairwise(tokens) if pair in ranks]\n"
            "        if not known:\n"
            "            return tokens\n"
            "        tokens = merge_pair(tokens, min(known, key=lambda pair: ranks[pair]))": (
                "        vocabulary = {left + right for left, right in ranks}\n"
                "        tokens, i = (), 0\n"
                "        while i < len(word):\n"
                "            end = next(\n"
                "                (j for j in range(len(word), i, -1) if word[i:j] in vocabulary), i + 1\n"
                "            )\n"
                "            tokens, i = (*tokens, word[i:end]), end\n"
                "        return tokens"
            )
        },
    ),
    Misconception(
        name="leftmost_pair",
        part="encoding",
        says="Your encoding merges the first pair it knows, from the left. The pair of the lowest rank goes first, "
        "wherever it stands.",
        wrong={
            "merge_pair(tokens, min(known, key=lambda pair: ranks[pair]))": "merge_pair(tokens, known[0])"
        },
    ),
    Misconception(
        name="highest_rank",
        part="encoding",
        says="Your encoding merges the pair of the highest rank first. The lowest was learnt first and goes first.",
        wrong={"min(known, key": "max(known, key"},
    ),
    Misconception(
        name="longest_pair",
        part="encoding",
        says="Your encoding merges the pair that gives the longest token first. Length does not count: the pair that was "
        "learnt first goes first.",
        wrong={
            "min(known, key=lambda pair: ranks[pair])": "max(known, key=lambda pair: len(pair[0] + pair[1]))"
        },
    ),
    Misconception(
        name="bytes_only",
        part="encoding",
        says="Your encoding looks for pairs once and never again, so it finds only pairs of single bytes. After each "
        "merge look again: the new token may be part of a pair.",
        wrong={
            "        tokens = merge_pair(tokens, min(known, key=lambda pair: ranks[pair]))": (
                "        for pair in sorted(set(known), key=lambda pair: ranks[pair]):\n"
                "            tokens = merge_pair(tokens, pair)\n"
                "        return tokens"
            )
        },
    ),
    Misconception(
        name="encode_across_pre_tokens",
        part="encoding",
        says="Your encoding merges across pre-tokens. Cut the text with pre_tokenize, and merge inside each.",
        wrong={"in pre_tokenize(piece):": "in [piece]:"},
    ),
    Misconception(
        name="encode_drops_special",
        part="encoding",
        says="Your encoding leaves the special tokens out: each of them is one id, at its place.",
        wrong={"encoded.append(ids[piece.encode()])": "pass"},
    ),
    Misconception(
        name="encode_cuts_special",
        part="encoding",
        says="Your encoding spells the special tokens out like text. Split at them first, and give each its own id.",
        wrong={"        if piece in special_tokens:": "        if piece not in piece:"},
    ),
    Misconception(
        name="ids_from_ranks",
        part="encoding",
        says="Your ids are worked out from the order of the merges. Which id a token has is for the vocabulary to say; "
        "another tokenizer numbers otherwise.",
        wrong={
            "{token: id_ for id_, token in vocab.items()}": (
                "{token: i for i, token in enumerate([bytes([b]) for b in range(256)] "
                "+ [left + right for left, right in merges] "
                '+ [t.encode("utf-8") for t in special_tokens if t.encode("utf-8") in vocab.values()])}'
            )
        },
    ),
    Misconception(
        name="decode_each_token",
        part="decoding",
        says="Your decoding reads each token as UTF-8 by itself. A token may hold part of a character: join the bytes of "
        "all tokens first.",
        wrong={
            'b"".join(vocab[id_] for id_ in ids).decode("utf-8", errors="replace")': (
                '"".join(vocab[id_].decode("utf-8", errors="replace") for id_ in ids)'
            )
        },
    ),
    Misconception(
        name="decode_ignores_errors",
        part="decoding",
        says="Your decoding drops bytes that are not UTF-8. They become U+FFFD, so that one can see that something is "
        "missing: errors='replace'.",
        wrong={'"utf-8", errors="replace"': '"utf-8", errors="ignore"'},
    ),
    Misconception(
        name="decode_bytes_as_characters",
        part="decoding",
        says="Your decoding makes each byte a character (Latin-1). A character of UTF-8 may have up to four bytes.",
        wrong={'.decode("utf-8", errors="replace")': '.decode("latin-1")'},
    ),
    Misconception(
        name="decode_drops_unknown",
        part="decoding",
        says="Your decoding leaves ids out that the vocabulary does not have. That hides a mistake: raise ValueError.",
        wrong={
            '        if id_ not in vocab:\n            raise ValueError(f"the id {id_} is not in the vocabulary")': (
                "        pass"
            ),
            "vocab[id_] for id_ in ids).decode": "vocab[id_] for id_ in ids if id_ in vocab).decode",
        },
    ),
    Misconception(
        name="chunks_encoded_alone",
        part="streaming",
        says="Your encoder encodes each chunk by itself. A chunk may end inside a word, a special token or a run of "
        "spaces; what is not certain must wait for the next.",
        wrong={
            "cut = len(text) if final else safe_cut(text, self.special_tokens)": "cut = len(text)"
        },
    ),
    Misconception(
        name="waits_for_the_end",
        part="streaming",
        says="Your encoder keeps the whole text until the end. That is no stream: what stands before a safe cut must "
        "come out at once.",
        wrong={"if final else safe_cut(text, self.special_tokens)": "if final else 0"},
    ),
    Misconception(
        name="end_forgotten",
        part="streaming",
        says="Your encoder never gives out what waits at the end of the text: with final=True nothing may wait any more.",
        wrong={"cut = len(text) if final else safe_cut": "cut = safe_cut"},
    ),
    Misconception(
        name="cut_inside_white_space",
        part="streaming",
        says="Your cut may fall between two white spaces. How a run of them is cut depends on what follows it; cut in "
        "front of the whole run.",
        wrong={r"(?<=\S)(?=\s)": r"(?=\s)"},
    ),
    Misconception(
        name="cut_after_white_space",
        part="streaming",
        says="Your cut falls behind white space. But a space belongs to the word that follows it: cut in front of it.",
        wrong={r"(?<=\S)(?=\s)": r"(?<=\s)(?=\S)"},
    ),
    Misconception(
        name="cut_in_coming_special",
        part="streaming",
        says="Your cut does not reckon with a special token that has only begun: one with a space in it can be cut in "
        "two. At least L − 1 characters must stand after the cut.",
        wrong={"latest = len(text) - (longest - 1)": "latest = len(text)"},
    ),
    Misconception(
        name="cut_in_present_special",
        part="streaming",
        says="Your cut may fall inside a special token that holds white space.",
        wrong={"        if piece not in special_tokens:": "        if piece:"},
    ),
    Misconception(
        name="stream_decodes_each_call",
        part="streaming",
        says="Your decoder reads the bytes of each call as UTF-8 by themselves. A character may come in two calls: keep "
        "the bytes that are not complete yet.",
        wrong={
            'self.decoder.decode(b"".join(self.vocab[id_] for id_ in ids), final)': (
                'b"".join(self.vocab[id_] for id_ in ids).decode("utf-8", errors="replace")'
            )
        },
    ),
    Misconception(
        name="stream_drops_the_end",
        part="streaming",
        says="Your decoder forgets the incomplete character at the end of the ids. With final=True it becomes U+FFFD.",
        wrong={"for id_ in ids), final)": "for id_ in ids), False)"},
    ),
]

EQUIVALENT = [
    Equivalent(
        part="pieces",
        before="longest_first = sorted(special_tokens, key=len, reverse=True)",
        after="longest_first = sorted(special_tokens, reverse=True)",
        because="Only of two tokens that begin alike must the longer come first, and it does in the reversed alphabet too.",
    ),
    Equivalent(
        part="training",
        before="counts = count_pairs(dict(zip(words, times, strict=True)))",
        after="counts = count_pairs(dict(zip(words, times)))",
        because="There are as many words as times.",
    ),
    Equivalent(
        part="training",
        before="counts = count_pairs(dict(zip(words, times, strict=True)))",
        after="counts = count_pairs(dict(zip(words, times, strict=False)))",
        because="There are as many words as times.",
    ),
    Equivalent(
        part="encoding",
        before="if pre_token not in ids_of:",
        after="if True:",
        because="A pre-token that was met before is merged again, with the same result.",
    ),
    Equivalent(
        part="streaming",
        before="longest = max((len(token) for token in special_tokens), default=1)",
        after="longest = max((len(token) for token in special_tokens), default=2)",
        because="Without special tokens no white space can be followed by part of one: the last place is safe either way.",
    ),
    Equivalent(
        part="streaming",
        before="longest = max((len(token) for token in special_tokens), default=1)",
        after="longest = max((len(token) for token in special_tokens), default=0)",
        because="Without special tokens no white space can be followed by part of one: the last place is safe either way.",
    ),
]

LETTERS = "ab <|>é\n"


def _draw(rng: torch.Generator, characters: str, longest: int) -> str:
    length = int(torch.randint(longest + 1, (), generator=rng))
    return "".join(
        characters[i] for i in torch.randint(len(characters), (length,), generator=rng).tolist()
    )


def _special(rng: torch.Generator) -> list[str]:
    drawn = {_draw(rng, "<|>", 3) for _ in range(3)}
    return [token for token in drawn if len(token) > 1]


def _pieces(answers: ModuleType, rng: torch.Generator) -> object:
    return answers.split_special(_draw(rng, LETTERS, 30), _special(rng))


def _training(answers: ModuleType, rng: torch.Generator) -> object:
    return answers.train_bpe(_draw(rng, LETTERS, 30), 262, ["<|>"])


def _encoding(answers: ModuleType, rng: torch.Generator) -> object:
    merges = [(b"a", b"b"), (b"ab", b"a"), (b" ", b"a")]
    vocab = {byte: bytes([byte]) for byte in range(256)}
    vocab |= {256 + i: b"".join(pair) for i, pair in enumerate(merges)} | {259: b"<|>"}
    return answers.encode(_draw(rng, LETTERS, 30), vocab, merges, ["<|>"])


def _streaming(answers: ModuleType, rng: torch.Generator) -> object:
    return answers.safe_cut(
        _draw(rng, LETTERS, 30), _special(rng) if torch.rand((), generator=rng) < 0.5 else ()
    )


EXAMPLES = {
    "pieces": _pieces,
    "training": _training,
    "encoding": _encoding,
    "streaming": _streaming,
}
