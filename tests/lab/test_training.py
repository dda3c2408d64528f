import math

import pytest
import torch
from torch import nn

import lab
from lab import models, training


def echo(generator):
    """Sequences of bits and, at each position, the bit before it (at the first, itself)."""
    bits = torch.randint(2, (32, 6), generator=generator)
    return bits, torch.cat([bits[:, :1], bits[:, :-1]], dim=1)


def model(dropout=0.0):
    return models.CausalTransformer(
        2, 16, 2, 1, 6, dropout=dropout, generator=lab.generator("model")
    )


def run(steps=5, seed="run", **options):
    trained = model(options.pop("dropout", 0.0))
    generator = lab.generator(seed)
    losses = training.train(
        trained, echo, training.token_loss, steps, generator=generator, progress=False, **options
    )
    return trained, losses


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_equal_generators_give_equal_runs(dropout):
    torch.manual_seed(1)
    one, losses = run(dropout=dropout)
    torch.manual_seed(2)
    other, again = run(dropout=dropout)
    assert losses == again
    assert len(losses) == 5
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert run(seed="another")[1] != losses


def test_torchs_own_generator_is_left_as_it_was():
    torch.manual_seed(3)
    expected = torch.rand(2)
    trained = model(dropout=0.3)
    torch.manual_seed(3)
    training.train(trained, echo, training.token_loss, 2, progress=False)
    assert torch.equal(torch.rand(2), expected)


def test_it_learns_to_echo():
    trained, losses = run(steps=150, lr=1e-2)
    assert losses[0] == pytest.approx(math.log(2), abs=0.1)
    bits, before = echo(lab.generator("held out"))
    assert (trained(bits).argmax(-1) == before).float().mean() == 1


def test_one_step_is_a_step_of_adamw():
    """With the gradient's sign known, the first step of Adam moves every parameter by lr."""
    weight = nn.Linear(3, 1, bias=False).double()
    start = weight.weight.detach().clone()
    x = torch.tensor([[1.0, -2.0, 3.0]]).double()
    training.train(
        weight,
        lambda _: x,
        lambda m, batch: m(batch).sum(),
        1,
        lr=0.1,
        schedule=lambda _: 0.5,
        progress=False,
    )
    assert torch.allclose(weight.weight - start, -0.05 * x.sign(), atol=1e-6)


def test_the_mode_of_the_model_comes_back():
    for mode in (True, False):
        trained = model().train(mode)
        training.train(trained, echo, training.token_loss, 1, progress=False)
        assert trained.training is mode


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_step_and_cause(bad):
    seen = []

    def loss(trained, batch):
        seen.append(1)
        return training.token_loss(trained, batch) * (bad if len(seen) == 3 else 1)

    trained = model().eval()
    with pytest.raises(FloatingPointError, match=r"at step 2 .*lr = 0.001.*learning rate"):
        training.train(trained, echo, loss, 5, progress=False)
    assert all(p.isfinite().all() for p in trained.parameters())
    assert not trained.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"lr": 0.0}, "lr must be positive, not 0.0"),
        ({"loss_fn": lambda m, b: m(b[0])}, "scalar"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {"model": model(), "batches": echo, "loss_fn": training.token_loss, "steps": 1}
    with pytest.raises(ValueError, match=message):
        training.train(**(arguments | changes), progress=False)


def test_token_loss_leaves_out_what_is_marked():
    trained = model().double()
    bits, before = echo(lab.generator("marked"))
    some = before.clone()
    some[:, :4] = -100
    log_probs = trained(bits).log_softmax(-1)
    expected = -log_probs[:, 4:].gather(-1, before[:, 4:, None]).mean()
    assert torch.allclose(training.token_loss(trained, (bits, some)), expected)


def test_text_batches_are_windows_whose_targets_follow():
    text = torch.arange(10, 30)
    draw = training.text_batches(text, 64, 5)
    inputs, targets = draw(lab.generator("windows"))
    assert inputs.shape == targets.shape == (64, 5)
    assert torch.equal(inputs + 1, targets)
    # Every window of the text can come, the last one too.
    starts = {int(s) for _ in range(20) for s in draw(lab.generator("w"))[0][:, 0]}
    many = training.text_batches(text, 2000, 5)(lab.generator("many"))[0][:, 0]
    assert starts <= set(many.tolist()) == set(range(10, 25))
    with pytest.raises(ValueError, match="does not fit into 5"):
        training.text_batches(text[:5], 1, 5)


def test_warmup_then_cosine():
    factor = training.warmup_cosine(100, warmup=10, final=0.1)
    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == pytest.approx(1.0)
    assert factor(55) == pytest.approx(0.55)
    assert factor(100) == pytest.approx(0.1)
    assert all(factor(i) > factor(i + 1) for i in range(10, 99))


def test_a_terminal_gets_a_bar_and_a_notebook_the_curve(monkeypatch, capsys):
    training.train(model(), echo, training.token_loss, 3, label="echo", progress=True)
    assert "echo" in capsys.readouterr().err

    shown = []

    class Handle:
        def update(self, picture):
            shown.append(picture.data)

    def display(picture, display_id):
        shown.append(picture.data)
        return Handle()

    monkeypatch.setattr(training, "get_ipython", lambda: object())
    monkeypatch.setattr(training, "display", display)
    monkeypatch.setattr(training, "SECONDS_BETWEEN_PICTURES", -1.0)
    losses = training.train(model(), echo, training.token_loss, 3, label="<b>", progress=True)
    assert len(shown) == 3
    assert f"step 3 of 3, loss {losses[0]:.4g} at first, now {losses[-1]:.4g}" in shown[-1]
    assert "<b>" not in shown[-1]
    assert shown[-1].count("<polyline") == 1

    shown.clear()
    monkeypatch.setenv("LAB_PROGRESS", "0")
    training.train(model(), echo, training.token_loss, 3)
    assert shown == []
    assert capsys.readouterr().err.count("echo") <= 1
