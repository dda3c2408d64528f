import pytest
import torch
from torch import nn

import lab
from lab import models


def causal(**changes):
    sizes = {"vocab_size": 11, "d_model": 12, "num_heads": 3, "num_layers": 2, "max_length": 9}
    return models.CausalTransformer(**(sizes | changes), generator=lab.generator("causal"))


def bidirectional():
    return models.BidirectionalTransformer(
        11, 12, 3, 2, 9, generator=lab.generator("bidirectional")
    )


def translator():
    return models.Translator(13, 7, 12, 3, 2, 9, generator=lab.generator("translator"))


def tokens(vocab_size, *shape, name="tokens"):
    return torch.randint(1, vocab_size, shape, generator=lab.generator(name))


LANGUAGE_MODELS = [
    causal,
    *(
        lambda cell=cell: models.RecurrentModel(
            11, 12, 2, cell=cell, generator=lab.generator("recurrent")
        )
        for cell in ("rnn", "gru", "lstm")
    ),
]


@pytest.mark.parametrize("make", LANGUAGE_MODELS)
def test_language_models_give_logits_that_never_see_the_future(make):
    model = make().double()
    before = tokens(11, 2, 8)
    after = before.clone()
    after[:, 5] = (after[:, 5] + 1) % 11
    logits, changed = model(before), model(after)
    assert logits.shape == (2, 8, 11)
    assert torch.equal(logits[:, :5], changed[:, :5])
    # The change itself is seen, at once and at every later position.
    assert ((logits - changed)[:, 5:].abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("make", [*LANGUAGE_MODELS, bidirectional, translator])
def test_the_generator_alone_decides_the_parameters(make):
    torch.manual_seed(1)
    one = make().state_dict()
    torch.manual_seed(2)
    other = make().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(value.std() > 0 for value in one.values() if value.dim() > 1)


def test_the_first_loss_is_that_of_a_uniform_guess():
    model = causal(vocab_size=50, d_model=48)
    x = tokens(50, 8, 9)
    loss = nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten())
    assert loss.item() == pytest.approx(torch.tensor(50.0).log().item(), abs=0.3)


def test_attention_weights_are_causal_and_sum_to_one():
    model = causal().double()
    weights = model.attention_weights(tokens(11, 2, 7))
    assert weights.shape == (2, 2, 3, 7, 7)
    assert torch.allclose(weights.sum(-1), torch.ones(()).double())
    assert (weights.triu(1) == 0).all()


def test_a_bidirectional_model_sees_both_sides_and_no_padding():
    model = bidirectional().double()
    before = tokens(11, 2, 8)
    after = before.clone()
    after[:, 5] = after[:, 5] % 10 + 1
    assert ((model(before) - model(after)).abs().amax(-1) > 1e-6).all()
    padded = nn.functional.pad(before[:, :6], (0, 2), value=model.PADDING)
    assert torch.allclose(model(padded)[:, :6], model(before[:, :6]))


@pytest.mark.parametrize("make", [causal, bidirectional])
def test_logits_are_read_off_the_states(make):
    model = make().double()
    x = tokens(11, 2, 7)
    states = model.states(x)
    assert states.shape == (2, 7, 12)
    assert torch.equal(states @ model.embed.tokens.weight.T, model(x))


def test_asking_for_weights_does_not_change_what_is_computed():
    model = causal().double()
    x = tokens(11, 2, 7)
    block = model.blocks[0]
    embedded = model.embed(x)
    mask = torch.ones(7, 7, dtype=torch.bool).triu(1)
    quick, none, _ = block(embedded, mask=mask)
    slow, weights, _ = block(embedded, mask=mask, need_weights=True)
    assert none is None
    assert weights is not None
    assert torch.allclose(quick, slow)


def test_dropout_acts_in_training_only():
    model = causal(dropout=0.5)
    x = tokens(11, 2, 7)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_a_forget_bias_is_where_torch_keeps_the_forget_gate():
    model = models.RecurrentModel(5, 4, cell="lstm", forget_bias=40.0)
    # An open forget gate keeps the cell: with no input and no candidate it comes back unchanged.
    with torch.no_grad():
        model.recurrent.weight_ih_l0.zero_()
        model.recurrent.weight_hh_l0.zero_()
    cell = torch.randn(1, 1, 4, generator=lab.generator("cell"))
    _, (_, after) = model.recurrent(torch.zeros(1, 6, 4), (torch.zeros(1, 1, 4), cell))
    assert torch.allclose(after, cell)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: causal(num_heads=5), "num_heads = 5"),
        (lambda: causal()(torch.zeros(1, 10, dtype=torch.int64)), "max_length of 9"),
        (lambda: causal()(torch.zeros(4, dtype=torch.int64)), r"\(batch length\)"),
        (lambda: models.RecurrentModel(5, 4, cell="rmm"), "'rmm'"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_translator_reads_all_of_the_source_and_only_the_past_of_the_target():
    model = translator().double()
    source, target = tokens(13, 2, 6), tokens(7, 2, 5, name="target")
    logits = model(source, target)
    assert logits.shape == (2, 5, 7)
    later = target.clone()
    later[:, 3] = (later[:, 3] + 1) % 7
    assert torch.equal(logits[:, :3], model(source, later)[:, :3])
    last = source.clone()
    last[:, -1] = last[:, -1] % 12 + 1
    assert ((logits - model(last, target)).abs().amax(-1) > 1e-6).all()


def test_padding_of_the_source_changes_nothing_and_gets_no_attention():
    model = translator().double()
    source, target = tokens(13, 2, 6), tokens(7, 2, 5, name="target")
    padded = nn.functional.pad(source, (0, 3), value=models.Translator.PADDING)
    assert torch.allclose(model(source, target), model(padded, target))
    weights = model.cross_attention(padded, target)
    assert weights.shape == (2, 2, 3, 5, 9)
    assert (weights[..., 6:] == 0).all()
    assert torch.allclose(weights.sum(-1), torch.ones(()).double())


def test_translate_takes_the_likeliest_token_each_time():
    model = translator().double()
    source = tokens(13, 2, 6)
    out = model.translate(source, begin=0, length=5)
    assert out.shape == (2, 5)
    # The logits of the finished target, read in one go, name the same tokens.
    fed = nn.functional.pad(out[:, :-1], (1, 0), value=0)
    assert torch.equal(model(source, fed).argmax(-1), out)


def test_every_parameter_learns():
    for model, inputs in [
        (causal(), (tokens(11, 2, 9),)),
        (translator(), (tokens(13, 2, 9), tokens(7, 2, 9, name="target"))),
    ]:
        logits = model(*inputs)
        nn.functional.cross_entropy(logits.flatten(0, 1), inputs[-1].flatten()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
