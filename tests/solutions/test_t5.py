"""T5's parts against Hugging Face's T5, and against what the paper says of them."""

import math
from collections import Counter
from itertools import groupby

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

from autograder.loader import reference

EXACT = {"rtol": 0.0, "atol": 1e-6}


@pytest.fixture
def t5():
    return reference("pretraining", "t5")


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=40,
        d_model=8,
        d_kv=4,
        d_ff=12,
        num_layers=1,
        num_heads=2,
        relative_attention_num_buckets=10,
        relative_attention_max_distance=71,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config).double().eval()


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("sizes", [(32, 128), (32, 127), (10, 71), (12, 100), (20, 333)])
def test_buckets_are_those_of_hugging_face(t5, sizes, bidirectional):
    positions = torch.arange(-600, 601)
    expected = T5Attention._relative_position_bucket(positions, bidirectional, *sizes)
    assert torch.equal(t5.relative_position_bucket(positions, bidirectional, *sizes), expected)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_bias_is_that_of_hugging_face(t5, theirs, stack):
    attention = getattr(theirs, stack).block[0].layer[0].SelfAttention
    table = attention.relative_attention_bias.weight
    ours = t5.relative_bias(table, 90, 90, stack == "encoder", max_distance=71)
    torch.testing.assert_close(ours, attention.compute_bias(90, 90)[0], **EXACT)


def test_teacher_forcing_gives_the_loss_of_hugging_face(t5, theirs):
    inputs = torch.randint(1, 40, (3, 7), generator=generator(1))
    targets = torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0], [9, 9, 1, 0]])
    expected = theirs(input_ids=inputs, labels=targets.masked_fill(targets == 0, -100)).loss
    loss = t5.teacher_forcing_loss(
        lambda x, y: theirs(input_ids=x, decoder_input_ids=y).logits, inputs, targets
    )
    torch.testing.assert_close(loss, expected, **EXACT)


def test_shift_is_that_of_hugging_face(t5, theirs):
    targets = torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0]])
    assert torch.equal(t5.shift_right(targets), theirs._shift_right(targets))


def test_the_first_sentinel_of_t5_is_32099(t5):
    inputs, targets = t5.span_corrupt(torch.arange(20), 32_100, generator(0))
    assert inputs[-1] == targets[0] == 32_099
    assert targets[-1] == 32_098


def test_the_example_of_the_paper(t5):
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
    mask = torch.tensor([word in ("for", "inviting", "last") for word in words])
    inputs, targets = t5.replace_spans(torch.arange(11), mask, 111)
    name = {110: "<X>", 109: "<Y>", 108: "<Z>"} | dict(enumerate(words))
    assert " ".join(name[i] for i in inputs.tolist()) == "Thank you <X> me to your party <Y> week ."
    assert " ".join(name[i] for i in targets.tolist()) == "<X> for inviting <Y> last <Z>"


def test_a_window_of_512_has_77_noise_tokens_in_26_spans(t5):
    """The counts which T5's own preprocessing gives: round(76.8) and round(77 / 3)."""
    mask = t5.noise_mask(512, generator(0))
    assert int(mask.sum()) == 77
    assert sum(value for value, _ in groupby(mask.tolist())) == 26


def test_each_token_but_the_ends_is_noise_with_about_the_density(t5):
    masks = torch.stack([t5.noise_mask(40, generator(seed), 0.25, 2.5) for seed in range(3000)])
    share = masks.double().mean(dim=0)
    assert share[0] == 0
    assert share[-1] == 1
    # Four standard deviations of a share of 3000, and what the fixed ends change.
    assert (share[4:-4] - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / 3000) + 0.03


def test_every_sum_of_positive_numbers_comes_equally_often(t5):
    rng = generator(5)
    counts = Counter(tuple(t5.random_lengths(6, 3, rng).tolist()) for _ in range(3000))
    assert len(counts) == math.comb(5, 2)
    assert all(abs(count - 300) < 6 * math.sqrt(300) for count in counts.values())


@pytest.mark.parametrize("length", [2, 3, 17, 512])
def test_the_spans_put_back_give_the_text(t5, length):
    for seed in range(20):
        tokens = torch.randint(900, (length,), generator=generator(seed))
        pair = t5.span_corrupt(tokens, 1000, generator(seed))
        assert t5.put_back(*(side.tolist() for side in pair), 900) == tokens.tolist()
        # Every token is on one side, every sentinel on both but the last.
        assert len(pair[0]) + len(pair[1]) == length + 2 * int((pair[0] >= 900).sum()) + 1


def test_put_back_leaves_out_what_the_targets_do_not_say(t5):
    assert t5.put_back([1, 9, 2, 8, 3], [5, 9, 4, 4, 7, 6], 7) == [1, 4, 4, 2, 8, 3]


@pytest.mark.parametrize("score", [0.0, 1.0, 2.6, 3.8, 5.0])
def test_scores_at_steps_stay_as_they_are(t5, score):
    source, target = t5.make_text_to_text(t5.STSB, {"sentence1": "a", "sentence2": "b"}, score)
    assert source == "stsb sentence1: a sentence2: b"
    assert t5.read_answer(t5.STSB, target) == score


def test_nothing_but_padding_has_no_gradient(t5):
    logits = torch.randn(2, 3, 5, generator=generator(0)).requires_grad_()
    t5.seq2seq_loss(logits, torch.zeros(2, 3, dtype=torch.int64)).backward()
    assert logits.grad.eq(0).all()
