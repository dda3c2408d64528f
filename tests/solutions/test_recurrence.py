"""The exercise on recurrence against torch's own layers, with their conventions mapped, and against autograd."""

import pytest
import torch
from torch import nn

from autograder.loader import reference

answers = reference("transformer", "recurrence")
INPUTS, HIDDEN, BATCH, LENGTH = 4, 3, 2, 5


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(7)


def randn(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def fill(module, rng):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(randn(rng, *parameter.shape))


def blocks(tensor, order, of):
    """The rows of torch's stacked weight, block by block in our order."""
    chunks = dict(zip(of, tensor.chunk(len(of)), strict=True))
    return torch.cat([chunks[name] for name in order])


def test_rnn_equals_torch_rnn_whose_two_biases_are_summed(rng):
    layer = nn.RNN(INPUTS, HIDDEN, batch_first=True, dtype=torch.float64)
    fill(layer, rng)
    x, h_0 = randn(rng, BATCH, LENGTH, INPUTS), randn(rng, BATCH, HIDDEN)
    expected, last = layer(x, h_0[None])
    states = answers.rnn_forward(
        x, layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0 + layer.bias_hh_l0, h_0
    )
    torch.testing.assert_close(states, expected)
    torch.testing.assert_close(states[:, -1], last[0])


def lstm_arguments(cell):
    # torch: input, forget, candidate, output; here: forget, input, output, candidate.
    torch_order, ours = "ifco", "fioc"
    weight = torch.cat(
        [blocks(cell.weight_hh, ours, torch_order), blocks(cell.weight_ih, ours, torch_order)],
        dim=1,
    )
    return weight, blocks(cell.bias_ih + cell.bias_hh, ours, torch_order)


def test_lstm_cell_equals_torch_with_its_rows_reordered(rng):
    cell = nn.LSTMCell(INPUTS, HIDDEN, dtype=torch.float64)
    fill(cell, rng)
    h, c = randn(rng, BATCH, HIDDEN), randn(rng, BATCH, HIDDEN)
    ours = h, c
    weight, bias = lstm_arguments(cell)
    for _ in range(LENGTH):
        x = randn(rng, BATCH, INPUTS)
        h, c = cell(x, (h, c))
        ours = answers.lstm_cell(x, *ours, weight, bias)
        torch.testing.assert_close(ours, (h, c))


def gru_arguments(cell):
    # torch: reset, update, candidate. Its z weighs the old state, so our update gate is its negative.
    sign = torch.ones(2 * HIDDEN, dtype=torch.float64)
    sign[HIDDEN:] = -1
    weight = torch.cat([cell.weight_hh, cell.weight_ih], dim=1)
    bias = cell.bias_ih + cell.bias_hh
    gates, candidate = weight.split([2 * HIDDEN, HIDDEN])
    gate_bias, candidate_bias = bias.split([2 * HIDDEN, HIDDEN])
    return sign[:, None] * gates, sign * gate_bias, candidate, candidate_bias


@pytest.mark.parametrize("matrix", ["diagonal", "reset gate open"])
def test_gru_cell_equals_torch_where_the_place_of_the_reset_gate_does_not_matter(rng, matrix):
    cell = nn.GRUCell(INPUTS, HIDDEN, dtype=torch.float64)
    fill(cell, rng)
    with torch.no_grad():
        cell.bias_hh[2 * HIDDEN :] = 0  # torch's reset gate would go over this bias too
        if matrix == "diagonal":
            # W(r·h) = r·(W h) when W is diagonal.
            cell.weight_hh[2 * HIDDEN :] = torch.diag(randn(rng, HIDDEN))
        else:
            cell.bias_ih[:HIDDEN] = 60.0
    ours = theirs = randn(rng, BATCH, HIDDEN)
    for _ in range(LENGTH):
        x = randn(rng, BATCH, INPUTS)
        theirs = cell(x, theirs)
        ours = answers.gru_cell(x, ours, *gru_arguments(cell))
        torch.testing.assert_close(ours, theirs)


def test_gru_cell_differs_from_torch_when_the_reset_gate_meets_a_full_matrix(rng):
    cell = nn.GRUCell(INPUTS, HIDDEN, dtype=torch.float64)
    fill(cell, rng)
    x, h = randn(rng, BATCH, INPUTS), randn(rng, BATCH, HIDDEN)
    difference = answers.gru_cell(x, h, *gru_arguments(cell)) - cell(x, h)
    assert difference.abs().max() > 1e-2


def states_and_weights(rng, length=LENGTH):
    x = randn(rng, BATCH, length, INPUTS)
    w_xh, w_hh, bias = randn(rng, HIDDEN, INPUTS), randn(rng, HIDDEN, HIDDEN), randn(rng, HIDDEN)
    return x, w_xh, w_hh, bias


def test_jacobian_of_a_step_is_what_autograd_finds(rng):
    x, w_xh, w_hh, bias = states_and_weights(rng, length=1)
    h_0 = randn(rng, BATCH, HIDDEN)
    for b in range(BATCH):

        def step(h, x_b=x[b]):
            return answers.rnn_forward(x_b, w_xh, w_hh, bias, h)[0]

        expected = torch.autograd.functional.jacobian(step, h_0[b])
        torch.testing.assert_close(answers.step_jacobian(step(h_0[b]), w_hh), expected)


def test_jacobians_to_last_are_what_autograd_finds(rng):
    x, w_xh, w_hh, bias = states_and_weights(rng)
    states = answers.rnn_forward(x, w_xh, w_hh, bias)
    products = answers.jacobians_to_last(states, w_hh)
    assert products.shape == (BATCH, LENGTH, HIDDEN, HIDDEN)
    for k in range(LENGTH):

        def rest(h, start=k + 1):
            if start == LENGTH:
                return h
            return answers.rnn_forward(x[:, start:], w_xh, w_hh, bias, h)[:, -1]

        # (batch, hidden, batch, hidden): sequences do not touch each other.
        full = torch.autograd.functional.jacobian(rest, states[:, k])
        expected = torch.stack([full[b, :, b] for b in range(BATCH)])
        torch.testing.assert_close(products[:, k], expected)


def test_gradient_norms_are_those_of_autograd(rng):
    x, w_xh, w_hh, bias = states_and_weights(rng, length=12)
    h = torch.zeros(BATCH, HIDDEN, dtype=torch.float64, requires_grad=True)
    trail = []
    for t in range(12):
        h = answers.rnn_forward(x[:, t : t + 1], w_xh, w_hh, bias, h)[:, 0]
        trail.append(h)
    last_gradient = randn(rng, BATCH, HIDDEN)
    gradients = torch.autograd.grad((h * last_gradient).sum(), trail)
    expected = torch.stack([g.norm(dim=-1) for g in reversed(gradients)], dim=-1)
    states = torch.stack(trail, dim=1).detach()
    norms = answers.gradient_norm_over_distance(states, w_hh, last_gradient)
    torch.testing.assert_close(norms, expected)


def test_no_jacobian_exceeds_the_largest_singular_value(rng):
    x, w_xh, w_hh, bias = states_and_weights(rng, length=20)
    w_hh = 0.9 * w_hh / torch.linalg.matrix_norm(w_hh, ord=2)
    products = answers.jacobians_to_last(answers.rnn_forward(x, w_xh, w_hh, bias), w_hh)
    bound = 0.9 ** torch.arange(19, -1, -1, dtype=torch.float64)
    assert (torch.linalg.matrix_norm(products, ord=2) <= bound + 1e-12).all()


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_torchs_own_layers_are_refused_in_the_answer(name):
    make = f"nn.{name}(4, 3)"
    assert eval(make, {"nn": nn}) is not None  # others may still use them
    with pytest.raises(RuntimeError, match=name):
        eval(make, vars(answers))


@pytest.mark.parametrize("name", ["rnn_tanh_cell", "lstm_cell", "gru_cell"])
def test_torchs_own_functions_are_refused_in_the_answer(name):
    with pytest.raises(RuntimeError, match=name):
        eval(f"torch.{name}()", vars(answers))
