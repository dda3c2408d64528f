"""The tokenizer beside others': Hugging Face's encoding, GPT-2's pattern, UTF-8 as Python reads it, a naive trainer."""

import sys
import unicodedata
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from autograder.loader import reference
from lab import data

course = reference("language_models", "tokenizer")
SPECIAL = ["<|end|>", "[PAD]", "<|end|><|end|>", "< the end>"]
CHINESE = (
    "晋太元中，武陵人捕鱼为业。缘溪行，忘路之远近。忽逢桃花林，夹岸数百步，中无杂树，芳草鲜美，落英缤纷。"
    * 3
)
MIXED = (
    "We'll see  Macbeth's 3 witches…\n\n\n  naïve café — 三个女巫。\t👩🏽‍🚀🎉 don't 2½ x²  "
    + CHINESE
    + " 12,345.67\r\n"
)


@pytest.fixture(scope="module")
def trained():
    text = data.text("train")[:60_000] + "<|end|>" + MIXED * 5
    return course.train_bpe(text, 1200, SPECIAL)


def byte_characters():
    """GPT-2's way to write bytes as characters: printable Latin-1 as itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + i) for i, byte in enumerate(others)
    }


class CoursePattern:
    """The course's pre-tokens, as a pre-tokenizer of Hugging Face's."""

    def pre_tokenize(self, pretok):
        pretok.split(self._split)

    def _split(self, _, normalized):
        pieces, start = [], 0
        for pre_token in course.pre_tokenize(str(normalized)):
            pieces.append(normalized[start : start + len(pre_token)])
            start += len(pre_token)
        return pieces


def hugging_face(vocab, merges, special, pattern):
    """Hugging Face's tokenizer with the course's vocabulary and merges."""
    written = byte_characters()

    def write(token):
        return "".join(written[byte] for byte in token)

    ids = {write(token): id_ for id_, token in vocab.items()}
    ids |= {token: ids.pop(write(token.encode())) for token in special}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(ids, [(write(left), write(right)) for left, right in merges])
    )
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in special])
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    if pattern == "gpt2":
        tokenizer.pre_tokenizer = byte_level(add_prefix_space=False, use_regex=True)
    else:
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.PreTokenizer.custom(CoursePattern()),
                byte_level(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def test_encoding_equals_hugging_face_on_a_held_out_play(trained):
    vocab, merges = trained
    play = next(play.text for play in data.plays() if play.name == "macbeth")
    theirs = hugging_face(vocab, merges, SPECIAL, "gpt2")
    ids = course.encode(play, vocab, merges, SPECIAL)
    assert len(ids) > 20_000
    assert ids == theirs.encode(play).ids
    assert course.decode(ids, vocab) == play


def test_encoding_equals_hugging_face_on_chinese_and_emoji(trained):
    vocab, merges = trained
    text = "<|end|>".join([CHINESE, "👩🏽‍🚀🎉😀", "[PAD]", "‘naïve’ — façade"]) + "<|end|><|end|>"
    theirs = hugging_face(vocab, merges, SPECIAL, "gpt2")
    assert course.encode(text, vocab, merges, SPECIAL) == theirs.encode(text).ids
    assert theirs.decode(theirs.encode(text).ids, skip_special_tokens=False) == text


ANY_TEXT = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *SPECIAL,
                "'ll",
                "'s",
                "'",
                " ",
                "\n",
                "  ",
                "the",
                " of",
                "中文",
                "🎉",
                "é",
                "\u0301",
                "½",
            ]
        ),
        st.text(max_size=4),
    ),
    max_size=25,
).map("".join)


@given(text=ANY_TEXT)
@settings(max_examples=100, deadline=None)
def test_encoding_equals_hugging_face_on_any_text(trained_once, text):
    vocab, merges, theirs = trained_once
    assert course.encode(text, vocab, merges, SPECIAL) == theirs.encode(text).ids


@pytest.fixture(scope="module")
def trained_once(trained):
    return *trained, hugging_face(*trained, SPECIAL, "course")


@given(text=ANY_TEXT)
@settings(max_examples=100, deadline=None)
def test_round_trip_on_any_text(trained_once, text):
    vocab, merges, _ = trained_once
    for special in ([], SPECIAL):
        assert course.decode(course.encode(text, vocab, merges, special), vocab) == text


@given(text=ANY_TEXT, cuts=st.lists(st.integers(0, 60), max_size=12))
@settings(max_examples=100, deadline=None)
def test_streaming_equals_the_whole_wherever_it_is_cut(trained_once, text, cuts):
    vocab, merges, _ = trained_once
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    encoder = course.StreamingEncoder(vocab, merges, SPECIAL)
    chunks = [text[a:b] for a, b in pairwise(places)]
    assert list(course.encode_iterable(chunks, encoder)) == course.encode(
        text, vocab, merges, SPECIAL
    )


@given(ids=st.lists(st.integers(0, 1199), max_size=40))
@settings(max_examples=100, deadline=None)
def test_streaming_decoder_gives_what_python_reads(trained_once, ids):
    vocab, _, _ = trained_once
    ids = [id_ for id_ in ids if id_ in vocab]
    decoder = course.StreamingDecoder(vocab)
    text = "".join(decoder.feed([id_]) for id_ in ids) + decoder.feed([], final=True)
    assert text == b"".join(vocab[id_] for id_ in ids).decode("utf-8", errors="replace")


def naive_train(text, num_merges):
    """From the definition: the text as one list, pre-tokens apart, everything counted again for each merge."""
    words = [[bytes([b]) for b in p.encode()] for p in course.pre_tokenize(text)]
    merges = []
    while len(merges) < num_merges:
        counts = {}
        for word in words:
            for i in range(len(word) - 1):
                counts[word[i], word[i + 1]] = counts.get((word[i], word[i + 1]), 0) + 1
        if not counts:
            break
        best = sorted(counts, key=lambda pair: (counts[pair], pair))[-1]
        merges.append(best)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [best[0] + best[1]]
                i += 1
    return merges


@given(text=st.text(alphabet="aaabbc  '中é\n1", max_size=200))
@settings(max_examples=100, deadline=None)
def test_training_equals_the_definition_and_names_each_token_once(text):
    vocab, merges = course.train_bpe(text, 256 + 60)
    assert merges == naive_train(text, 60)
    assert len(set(vocab.values())) == len(vocab)
    # Encoding does to each word of the text what training did to it; a smaller tokenizer is a prefix.
    assert course.train_bpe(text, 256 + 7)[1] == merges[:7]


def test_training_equals_the_definition_on_a_play():
    text = data.text("train")[:6_000]
    assert course.train_bpe(text, 256 + 100)[1] == naive_train(text, 100)


@pytest.mark.slow
def test_pattern_is_gpt2s_on_every_character_but_those_named():
    """GPT-2's pattern and the course's differ on numbers that are no decimal digits, and nowhere in the plays."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

    def gpt2(text):
        return [text[a:b] for _, (a, b) in byte_level.pre_tokenize_str(text)]

    assert gpt2(data.text("validation")) == course.pre_tokenize(data.text("validation"))
    # Nl and No: as the exercise says. Cn: newer characters than this Python's tables know. 1C to 1F: control
    # characters which Python takes for white space.
    excused = {"Nl", "No", "Cn"}
    for code in [
        *range(0x3400),
        *range(0x3400, 0xD800, 11),
        *range(0xF900, sys.maxunicode + 1, 53),
    ]:
        character = chr(code)
        if 0x1C <= code <= 0x1F or 0xD800 <= code < 0xE000:
            continue
        if unicodedata.category(character) in excused:
            continue
        text = f"ab{character}12{character}{character} {character}?{character}  {character}\n"
        assert course.pre_tokenize(text) == gpt2(text), hex(code)


@given(text=st.text())
def test_pre_tokens_joined_are_the_text(text):
    assert "".join(course.pre_tokenize(text)) == text
