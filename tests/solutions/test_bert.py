"""BERT against Hugging Face's on random tiny configurations, and its counts against exact probabilities."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
import transformers
from scipy import stats

from autograder.hidden import reference
from lab import generator

answers = reference("pretraining", "bert")
EXACT = {"rtol": 0.0, "atol": 1e-5}

# Hugging Face's name of each of our parameters; a block's stand under its number.
NAMES = {
    "token_embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "segment_embedding": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
BLOCK_NAMES = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.output_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}
# vocab_size, d_model, num_heads, d_ff, num_layers, max_length
SIZES = [(11, 6, 3, 7, 2, 8), (30, 8, 2, 20, 1, 5), (7, 4, 1, 3, 3, 16)]


def bert_names(num_layers, ours="bert.", theirs="bert."):
    names = {ours + one: theirs + other for one, other in NAMES.items()}
    for i in range(num_layers):
        names |= {
            f"{ours}blocks.{i}.{one}": f"{theirs}encoder.layer.{i}.{other}"
            for one, other in BLOCK_NAMES.items()
        }
    return {
        f"{one}.{kind}": f"{other}.{kind}"
        for one, other in names.items()
        for kind in ("weight", "bias")
    }


def config(sizes, **more):
    vocab_size, d_model, num_heads, d_ff, num_layers, max_length = sizes
    return transformers.BertConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        num_attention_heads=num_heads,
        intermediate_size=d_ff,
        num_hidden_layers=num_layers,
        max_position_embeddings=max_length,
        pad_token_id=None,  # else the embedding of token 0 gets no gradient from the input
        **more,
    )


def same_weights(ours, theirs, names):
    """Both models in float64 with the same random weights; what of theirs is not ours stays as it is."""
    ours, theirs = ours.double(), theirs.double().eval()
    weights = {
        name: 0.4 * torch.randn(value.shape, generator=generator(name), dtype=torch.float64)
        for name, value in ours.state_dict().items()
    }
    ours.load_state_dict(weights)
    missing = theirs.load_state_dict(
        {names[n]: value for n, value in weights.items()}, strict=False
    )
    assert missing.unexpected_keys == []
    return ours, theirs, missing.missing_keys


def batch(sizes):
    vocab_size, length = sizes[0], sizes[-1]
    rng = generator(f"batch {sizes}")
    tokens = torch.randint(vocab_size, (3, length), generator=rng)
    segments = (torch.arange(length) > length // 2).long().repeat(3, 1)
    lengths = torch.tensor([length, length - 1, 2])
    return tokens, segments, torch.arange(length) < lengths[:, None]


@pytest.mark.parametrize("sizes", SIZES)
def test_pretraining_is_hugging_faces(sizes):
    names = bert_names(sizes[4]) | {
        "transform.weight": "cls.predictions.transform.dense.weight",
        "transform.bias": "cls.predictions.transform.dense.bias",
        "transform_norm.weight": "cls.predictions.transform.LayerNorm.weight",
        "transform_norm.bias": "cls.predictions.transform.LayerNorm.bias",
        "mlm_bias": "cls.predictions.bias",
        "nsp.weight": "cls.seq_relationship.weight",
        "nsp.bias": "cls.seq_relationship.bias",
    }
    ours, theirs, missing = same_weights(
        answers.BertForPreTraining(*sizes), transformers.BertForPreTraining(config(sizes)), names
    )
    theirs.tie_weights()
    assert {name.rpartition(".")[0] for name in missing} <= {"cls.predictions.decoder"}
    tokens, segments, real = batch(sizes)
    labels = torch.where(torch.arange(sizes[-1]) % 3 == 0, tokens, -100)
    nsp_labels = torch.tensor([0, 1, 0])
    mlm_logits, nsp_logits = ours(tokens, segments, real)
    expected = theirs(
        tokens,
        token_type_ids=segments,
        attention_mask=real.long(),
        labels=labels,
        next_sentence_label=nsp_labels,
    )
    torch.testing.assert_close(mlm_logits, expected.prediction_logits, **EXACT)
    torch.testing.assert_close(nsp_logits, expected.seq_relationship_logits, **EXACT)
    loss = answers.pretraining_loss(mlm_logits, nsp_logits, labels, nsp_labels)
    torch.testing.assert_close(loss, expected.loss, **EXACT)
    loss.backward()
    expected.loss.backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, theirs.get_parameter(names[name]).grad, **EXACT, msg=name
        )


def test_defaults_are_hugging_faces():
    sizes = SIZES[0]
    names = bert_names(sizes[4], ours="", theirs="")
    ours, theirs, _ = same_weights(
        answers.Bert(*sizes), transformers.BertModel(config(sizes)), names
    )
    tokens, _, _ = batch(sizes)
    hidden, pooled = ours(tokens)
    expected = theirs(tokens)
    torch.testing.assert_close(hidden, expected.last_hidden_state, **EXACT)
    torch.testing.assert_close(pooled, expected.pooler_output, **EXACT)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("task", ["sequence", "token", "span"])
def test_task_heads_are_hugging_faces(sizes, task):
    d_model, num_layers = sizes[1], sizes[4]
    bert = answers.Bert(*sizes)
    ours, theirs, head = {
        "sequence": lambda: (
            answers.SequenceClassifier(bert, d_model, 5),
            transformers.BertForSequenceClassification(config(sizes, num_labels=5)),
            "classifier",
        ),
        "token": lambda: (
            answers.TokenClassifier(bert, d_model, 5),
            transformers.BertForTokenClassification(config(sizes, num_labels=5)),
            "classifier",
        ),
        "span": lambda: (
            answers.SpanClassifier(bert, d_model),
            transformers.BertForQuestionAnswering(config(sizes)),
            "qa_outputs",
        ),
    }[task]()
    names = bert_names(num_layers) | {
        f"head.{kind}": f"{head}.{kind}" for kind in ("weight", "bias")
    }
    if task != "sequence":  # theirs have no pooler, which ours do not use
        ours.bert.pooler.requires_grad_(False)
    ours, theirs = ours.double(), theirs.double().eval()
    weights = {
        name: 0.4 * torch.randn(value.shape, generator=generator(name), dtype=torch.float64)
        for name, value in ours.state_dict().items()
    }
    ours.load_state_dict(weights)
    there = theirs.state_dict()
    theirs.load_state_dict({names[n]: v for n, v in weights.items() if names[n] in there})
    tokens, segments, real = batch(sizes)
    got = ours(tokens, segments, real)
    expected = theirs(tokens, token_type_ids=segments, attention_mask=real.long())
    if task == "span":
        torch.testing.assert_close(got[0], expected.start_logits, **EXACT)
        torch.testing.assert_close(got[1], expected.end_logits, **EXACT)
    else:
        torch.testing.assert_close(got, expected.logits, **EXACT)


def test_mlm_loss_is_torchs():
    rng = generator("torch's loss")
    logits = torch.randn(4, 5, 7, generator=rng, dtype=torch.float64)
    labels = torch.randint(7, (4, 5), generator=rng)
    labels[torch.rand(4, 5, generator=rng) < 0.5] = -100
    torch.testing.assert_close(
        answers.mlm_loss(logits, labels), F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    )


def test_base_and_large_have_about_the_parameters_of_the_paper():
    """110 and 340 million, with a vocabulary of about 30,000 and 512 positions."""
    for sizes, millions in [
        ((30_522, 768, 12, 3072, 12, 512), 110),
        ((30_522, 1024, 16, 4096, 24, 512), 340),
    ]:
        with torch.device("meta"):
            model = answers.Bert(*sizes)
        parameters = sum(p.numel() for p in model.parameters())
        assert parameters == pytest.approx(millions * 1e6, rel=0.02)


def masked(rows, length, rate, vocab_size=12):
    tokens = torch.full((rows, length), 7)
    return answers.mask_tokens(tokens, vocab_size, 10, [3], generator("masked"), rate)


def test_shares_are_those_of_the_paper():
    vocab_size = 12
    inputs, labels = masked(400, 500, 0.5, vocab_size)
    chosen = labels != -100
    counts = torch.bincount(inputs[chosen], minlength=vocab_size).double()
    p = torch.full((vocab_size,), 0.1 / vocab_size, dtype=torch.float64)
    p[10] += 0.8
    p[7] += 0.1
    assert stats.chisquare(counts, counts.sum() * p).pvalue > 1e-6


def test_every_set_of_places_is_equally_likely():
    _, labels = masked(20_000, 6, 0.34)  # 2 of 6: fifteen sets
    sets = Counter(tuple(row.nonzero().flatten().tolist()) for row in labels != -100)
    assert len(sets) == math.comb(6, 2)
    assert stats.chisquare(list(sets.values())).pvalue > 1e-6


def test_places_and_shares_are_independent():
    inputs, labels = masked(2000, 20, 0.25)
    chosen = labels != -100
    became_mask = (inputs == 10) & chosen
    table = [became_mask.sum(0).tolist(), (chosen & ~became_mask).sum(0).tolist()]
    assert stats.chi2_contingency(table).pvalue > 1e-6


def test_pairs_are_half_and_half_and_from_elsewhere():
    documents = [[[100 * d + s] for s in range(90)] for d in range(20)]
    pairs = answers.make_nsp_pairs(documents, generator("pairs"))
    assert len(pairs) == 20 * 89
    labels = [label for _, _, label in pairs]
    assert stats.binomtest(sum(labels), len(labels), 0.5).pvalue > 1e-6
    drawn = Counter(
        (second[0] // 100 - first[0] // 100) % 20 for first, second, label in pairs if label
    )
    assert 0 not in drawn
    assert stats.chisquare([drawn[i] for i in range(1, 20)]).pvalue > 1e-6


@pytest.mark.parametrize("max_answer", [1, 2, 5, 50])
def test_best_span_by_trying_all(max_answer):
    rng = generator(f"spans {max_answer}")
    start, end = torch.randint(-2, 3, (2, 40, 8), generator=rng).double()
    in_passage = torch.rand(40, 8, generator=rng) < 0.5
    in_passage[:, 5] = True
    expected = [
        max(
            (
                (i, j)
                for i in range(8)
                for j in range(i, min(8, i + max_answer))
                if in_passage[row, i] and in_passage[row, j]
            ),
            key=lambda span, row=row: (start[row, span[0]] + end[row, span[1]], -span[0], -span[1]),
        )
        for row in range(40)
    ]
    got = answers.best_span(start, end, in_passage, max_answer)
    assert [tuple(span) for span in got.tolist()] == expected


def test_a_bound_on_chance_is_a_bound():
    """What the tests call too unlikely has a probability below 1e-12, by the binomial distribution itself."""
    for n, p in [(24_000, 0.8), (24_000, 0.1 / 12), (200, 0.81), (3000, 1 / 6), (900, 0.5)]:
        refused = [k for k in range(n + 1) if not answers.chance_explains(k, n, p)]
        assert refused
        assert stats.binom.pmf(refused, n, p).sum() < 1e-12


def test_given_attention_does_not_look_at_padding():
    attention = answers.SelfAttention(6, 2).double()
    x = torch.randn(2, 4, 6, generator=generator("attention"), dtype=torch.float64)
    real = torch.tensor([[True, True, False, False], [True] * 4])
    torch.testing.assert_close(attention(x, real)[:1, :2], attention(x[:1, :2]))
    torch.testing.assert_close(attention(x, real)[1:], attention(x[1:]))


@pytest.mark.parametrize("name", ["TransformerEncoder", "TransformerEncoderLayer"])
def test_torchs_answer_is_refused(name):
    with pytest.raises(RuntimeError, match="does this exercise for you"):
        exec(f"nn.{name}()", answers.__dict__)
