"""Wrong answers to the exercise on recurrence."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

MISCONCEPTIONS = [
    Misconception(
        name="bias_twice",
        part="rnn",
        says="Your bias is added twice, once with the input and once with the state. torch's nn.RNN has two biases "
        "and adds both; here there is one, and it is added once.",
        wrong={"h @ w_hh.T + bias": "bias + h @ w_hh.T + bias"},
    ),
    Misconception(
        name="no_tanh",
        part="rnn",
        says="Your states are the sums themselves, without the tanh around them.",
        wrong={"torch.tanh(x_t @ w_xh.T + h @ w_hh.T + bias)": "x_t @ w_xh.T + h @ w_hh.T + bias"},
    ),
    Misconception(
        name="sigmoid_for_tanh",
        part="rnn",
        says="Your states go through a sigmoid. It is tanh here, which lets a state be negative.",
        wrong={"torch.tanh(": "torch.sigmoid("},
    ),
    Misconception(
        name="tanh_around_the_state_alone",
        part="rnn",
        says="Your tanh closes too early: it goes around the whole sum of input, state and bias, not around the "
        "part that comes from the state.",
        wrong={
            "torch.tanh(x_t @ w_xh.T + h @ w_hh.T + bias)": (
                "x_t @ w_xh.T + torch.tanh(h @ w_hh.T) + bias"
            )
        },
    ),
    Misconception(
        name="state_not_carried",
        part="rnn",
        says="Every step of yours starts from h_0 again. The state must be carried from step to step: h is replaced in "
        "the loop.",
        wrong={"h @ w_hh.T": "h_0 @ w_hh.T"},
    ),
    Misconception(
        name="recurrent_weights_transposed",
        part="rnn",
        says="Your W_hh is used transposed. The equation has column vectors; with states in rows, W h is h @ w_hh.T.",
        wrong={"h @ w_hh.T": "h @ w_hh"},
    ),
    Misconception(
        name="returns_states_before",
        part="rnn",
        says="You return h_0 … h_{T-1}: each state is stored before its step is made. Store it after, so that the "
        "last row is h_T.",
        wrong={
            "        h = torch.tanh(x_t @ w_xh.T + h @ w_hh.T + bias)\n        states.append(h)\n": (
                "        states.append(h)\n        h = torch.tanh(x_t @ w_xh.T + h @ w_hh.T + bias)\n"
            )
        },
    ),
    Misconception(
        name="first_state_ignored",
        part="rnn",
        says="Your network starts from zeros even when it is given an h_0.",
        wrong={"    h = h_0\n": "    h = torch.zeros_like(h_0)\n"},
    ),
    Misconception(
        name="last_state_only",
        part="rnn",
        says="You return the last state alone. Return the state of every step: (…, length, hidden).",
        wrong={"return torch.stack(states, dim=-2)": "return h"},
    ),
    Misconception(
        name="forget_and_input_swapped",
        part="lstm",
        says="Your forget and input gates are exchanged. The rows of weight are, in this order, forget, input, "
        "output, candidate.",
        wrong={"f, i, o, candidate = stacked": "i, f, o, candidate = stacked"},
    ),
    Misconception(
        name="gates_in_torch_order",
        part="lstm",
        says="Your rows are read in the order of torch (input, forget, candidate, output). Here it is forget, input, "
        "output, candidate.",
        wrong={"f, i, o, candidate = stacked": "i, f, candidate, o = stacked"},
    ),
    Misconception(
        name="output_and_candidate_swapped",
        part="lstm",
        says="Your output gate and candidate are exchanged: the candidate is made by the last rows of weight.",
        wrong={"f, i, o, candidate = stacked": "f, i, candidate, o = stacked"},
    ),
    Misconception(
        name="cell_overwritten",
        part="lstm",
        says="Your cell state is overwritten at every step: what the forget gate keeps, f·c, is missing, and "
        "with it the memory.",
        wrong={"torch.sigmoid(f) * c + ": ""},
    ),
    Misconception(
        name="cell_never_forgets",
        part="lstm",
        says="Your cell keeps all of its old content: multiply it by the forget gate. (Without that gate it is the "
        "LSTM of 1997.)",
        wrong={"torch.sigmoid(f) * c + ": "c + "},
    ),
    Misconception(
        name="tanh_on_the_cell",
        part="lstm",
        says="Your tanh is on the cell state that is kept. It belongs to what is shown, h = o·tanh(c); the cell itself "
        "is the plain sum f·c + i·candidate.",
        wrong={
            "torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(candidate)": (
                "torch.tanh(torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(candidate))"
            ),
            "torch.sigmoid(o) * torch.tanh(c_next)": "torch.sigmoid(o) * c_next",
        },
    ),
    Misconception(
        name="no_tanh_on_the_output",
        part="lstm",
        says="Your cell state is right, but the hidden state is o·c: the tanh around the cell is missing.",
        wrong={"torch.tanh(c_next)": "c_next"},
    ),
    Misconception(
        name="output_from_old_cell",
        part="lstm",
        says="Your hidden state shows the cell of the step before. Make the new cell state first, then show it.",
        wrong={"torch.tanh(c_next)": "torch.tanh(c)"},
    ),
    Misconception(
        name="input_gate_is_what_was_forgotten",
        part="lstm",
        says="Your input gate is 1 − f, as in a GRU. The LSTM's input gate is its own, from the second group of rows.",
        wrong={"torch.sigmoid(i) * torch": "(1 - torch.sigmoid(f)) * torch"},
    ),
    Misconception(
        name="candidate_through_sigmoid",
        part="lstm",
        says="Your candidate goes through a sigmoid, so that a cell can only ever grow. It is a tanh; only the three "
        "gates are sigmoids.",
        wrong={"torch.tanh(candidate)": "torch.sigmoid(candidate)"},
    ),
    Misconception(
        name="lstm_input_before_state",
        part="lstm",
        says="You concatenate [x, h]. The columns of weight are those of the state first, then those of the input.",
        wrong={"torch.cat([h, x], dim=-1)": "torch.cat([x, h], dim=-1)"},
    ),
    Misconception(
        name="returns_cell_first",
        part="lstm",
        says="You return (c, h). The hidden state comes first.",
        wrong={"return h_next, c_next": "return c_next, h_next"},
    ),
    Misconception(
        name="lstm_bias_twice",
        part="lstm",
        says="Your LSTM adds the bias twice. torch's cell has one for the input and one for the state; here there is one.",
        wrong={"weight.T + bias": "weight.T + 2 * bias"},
    ),
    Misconception(
        name="one_added_to_forget_gate",
        part="lstm",
        says="You add 1 to the forget gate's bias inside the cell. That is a good way to start training, but it belongs "
        "into the bias that is handed in, not into the step.",
        wrong={"torch.sigmoid(f) * c": "torch.sigmoid(f + 1.0) * c"},
    ),
    Misconception(
        name="update_gate_inverted",
        part="gru",
        says="Your update gate is inverted: z weighs the old state, as in Cho et al. 2014 and in torch. Here z weighs "
        "the candidate: (1 − z)·h + z·candidate.",
        wrong={"(1 - z) * h + z * candidate": "z * h + (1 - z) * candidate"},
    ),
    Misconception(
        name="reset_and_update_swapped",
        part="gru",
        says="Your reset and update gates are exchanged: the first rows of gate_weight make the reset gate.",
        wrong={"r, z = gates": "z, r = gates"},
    ),
    Misconception(
        name="reset_after_the_matrix",
        part="gru",
        says="Your reset gate multiplies after the matrix, as torch's GRU does. Here it goes over the state before: "
        "W(r·h), not r·(W h).",
        wrong={
            "seen = torch.cat([r * h, x], dim=-1)": "seen = None",
            "seen @ candidate_weight.T": (
                "r * (h @ candidate_weight[:, :hidden].T) + x @ candidate_weight[:, hidden:].T"
            ),
        },
    ),
    Misconception(
        name="reset_gate_unused",
        part="gru",
        says="Your candidate sees the whole old state: the reset gate is computed and not used.",
        wrong={"torch.cat([r * h, x], dim=-1)": "torch.cat([h, x], dim=-1)"},
    ),
    Misconception(
        name="reset_gate_on_the_input_too",
        part="gru",
        says="Your reset gate goes over more than the state: the candidate sees the input in full.",
        wrong={
            "torch.cat([r * h, x], dim=-1)": "torch.cat([r * h, r.mean(-1, keepdim=True) * x], dim=-1)"
        },
    ),
    Misconception(
        name="reset_state_kept",
        part="gru",
        says="You blend the candidate with r·h. The reset gate acts inside the candidate only; what is kept is the "
        "old state h itself.",
        wrong={"(1 - z) * h + z": "(1 - z) * (r * h) + z"},
    ),
    Misconception(
        name="old_state_not_reduced",
        part="gru",
        says="You add z·candidate to the whole old state. The old state is weighed by 1 − z, so that the two weights "
        "sum to 1.",
        wrong={"(1 - z) * h": "h"},
    ),
    Misconception(
        name="gru_candidate_through_sigmoid",
        part="gru",
        says="Your GRU's candidate goes through a sigmoid. It is a tanh; only the two gates are sigmoids.",
        wrong={"candidate = torch.tanh(": "candidate = torch.sigmoid("},
    ),
    Misconception(
        name="gru_input_before_state",
        part="gru",
        says="Your GRU's gates see [x, h]. The columns of both weights are those of the state first, then those of "
        "the input.",
        wrong={
            "torch.cat([h, x], dim=-1)": "torch.cat([x, h], dim=-1)",
            "torch.cat([r * h, x], dim=-1)": "torch.cat([x, r * h], dim=-1)",
        },
    ),
    Misconception(
        name="jacobians_in_wrong_order",
        part="jacobians",
        says="Your Jacobians are multiplied in the wrong order: ∂h_T/∂h_t = J_T ⋯ J_{t+1}, the latest step on the left. "
        "Going back in time, each new factor is put on the right.",
        wrong={"product = product @ step": "product = step @ product"},
    ),
    Misconception(
        name="columns_scaled",
        part="jacobians",
        says="Your 1 − h² scales the columns of W_hh. It belongs to the unit that comes out of the tanh, which is the "
        "row: diag(1 − h²) W.",
        wrong={"[..., :, None] * w_hh": "[..., None, :] * w_hh"},
    ),
    Misconception(
        name="tanh_taken_twice",
        part="jacobians",
        says="You take the tanh of h once more: 1 − tanh(h)². The state is the value of the tanh already, so the "
        "derivative is 1 − h².",
        wrong={"1 - h.square()": "1 - h.tanh().square()"},
    ),
    Misconception(
        name="derivative_without_square",
        part="jacobians",
        says="Your derivative of tanh is 1 − h. It is 1 − h².",
        wrong={"1 - h.square()": "1 - h"},
    ),
    Misconception(
        name="derivative_of_sigmoid",
        part="jacobians",
        says="Your derivative is h(1 − h), that of the sigmoid. The derivative of tanh is 1 − h².",
        wrong={"1 - h.square()": "h * (1 - h)"},
    ),
    Misconception(
        name="derivative_of_tanh_forgotten",
        part="jacobians",
        says="Your Jacobian of a step is W_hh alone. The tanh has a derivative too: diag(1 − h²) W.",
        wrong={"(1 - h.square())[..., :, None]": "torch.ones_like(h)[..., :, None]"},
    ),
    Misconception(
        name="jacobian_transposed",
        part="jacobians",
        says="Your Jacobian is transposed: its rows are the units of the new state, its columns those of the old one.",
        wrong={
            "return (1 - h.square())[..., :, None] * w_hh": (
                "return ((1 - h.square())[..., :, None] * w_hh).mT"
            )
        },
    ),
    Misconception(
        name="product_one_step_early",
        part="jacobians",
        says="Your products use the step that made state t instead of the step that leaves it: ∂h_T/∂h_t has the "
        "factors J_{t+1} to J_T.",
        wrong={"reversed(steps[1:])": "reversed(steps[:-1])"},
    ),
    Misconception(
        name="products_by_distance",
        part="jacobians",
        says="Your products are ordered by distance from the end. Index t belongs to state t, so the identity stands "
        "last.",
        wrong={"products[::-1]": "products"},
    ),
    Misconception(
        name="each_step_alone",
        part="jacobians",
        says="You return the Jacobian of one step at each index. They must be multiplied up to the last state.",
        wrong={"product = product @ step": "product = step"},
    ),
    Misconception(
        name="gradient_without_transpose",
        part="gradient_norm",
        says="You go back with J instead of its transpose: δ before = Jᵀδ = Wᵀ((1 − h²)·δ).",
        wrong={"(gradient * (1 - h.square())) @ w_hh": "(gradient @ w_hh.T) * (1 - h.square())"},
    ),
    Misconception(
        name="weights_transposed_in_gradient",
        part="gradient_norm",
        says="Your gradient is multiplied by W instead of Wᵀ after 1 − h². With gradients in rows, Wᵀδ is δ @ w_hh.",
        wrong={"(1 - h.square())) @ w_hh": "(1 - h.square())) @ w_hh.T"},
    ),
    Misconception(
        name="scaled_after_the_matrix",
        part="gradient_norm",
        says="You multiply by W first and by 1 − h² afterwards. Going back, the tanh comes first: Wᵀ((1 − h²)·δ).",
        wrong={"(gradient * (1 - h.square())) @ w_hh": "(gradient @ w_hh) * (1 - h.square())"},
    ),
    Misconception(
        name="gradient_ignores_tanh",
        part="gradient_norm",
        says="Your gradient goes back through W alone; the derivative of the tanh, 1 − h², is missing at each step.",
        wrong={"(gradient * (1 - h.square()))": "gradient"},
    ),
    Misconception(
        name="norms_by_time",
        part="gradient_norm",
        says="Your norms are ordered by time. Index d is the distance from the end: index 0 is the last state.",
        wrong={"torch.stack(norms, dim=-1)": "torch.stack(norms[::-1], dim=-1)"},
    ),
    Misconception(
        name="squared_norm",
        part="gradient_norm",
        says="You return the sum of squares. The Euclidean norm is its root.",
        wrong={"torch.stack(norms, dim=-1)": "torch.stack(norms, dim=-1).square()"},
    ),
    Misconception(
        name="gradient_one_step_early",
        part="gradient_norm",
        says="Your first step back uses the 1 − h² of the state you are going to. It is that of the state the step made, "
        "which you are leaving.",
        wrong={"states.unbind(dim=-2)[1:]": "states.unbind(dim=-2)[:-1]"},
    ),
    Misconception(
        name="bound_for_gradient",
        part="gradient_norm",
        says="You multiply the norm by the norm of each Jacobian. That is an upper bound; the gradient itself is "
        "Jᵀδ, whose norm depends on its direction.",
        wrong={
            "gradient = (gradient * (1 - h.square())) @ w_hh": (
                "gradient = gradient * torch.linalg.matrix_norm("
                "(1 - h.square())[..., :, None] * w_hh, ord=2)[..., None]"
            )
        },
    ),
]

EQUIVALENT = [
    Equivalent(
        part="rnn",
        before="hidden = w_hh.shape[0]",
        after="hidden = w_hh.shape[1]",
        because="w_hh is square; where it is not, an error is raised all the same.",
    ),
    Equivalent(
        part="rnn",
        before="hidden = w_hh.shape[0]",
        after="hidden = w_hh.shape[-1]",
        because="w_hh is square; where it is not, an error is raised all the same.",
    ),
    Equivalent(
        part="jacobians",
        before="product = torch.eye(w_hh.shape[0], dtype=states.dtype, device=states.device)",
        after="product = torch.eye(w_hh.shape[0], dtype=states.dtype)",
        because="On the CPU there is one device. On a GPU the tests notice it.",
    ),
    Equivalent(
        part="jacobians",
        before="product = torch.eye(w_hh.shape[0], dtype=states.dtype, device=states.device)",
        after="product = torch.eye(w_hh.shape[1], dtype=states.dtype, device=states.device)",
        because="w_hh is square.",
    ),
    Equivalent(
        part="jacobians",
        before="product = torch.eye(w_hh.shape[0], dtype=states.dtype, device=states.device)",
        after="product = torch.eye(w_hh.shape[-1], dtype=states.dtype, device=states.device)",
        because="w_hh is square.",
    ),
    Equivalent(
        part="gradient_norm",
        before="gradient = gradient * (1 - h.square()) @ w_hh",
        after="gradient = gradient * (h.square() - 1) @ w_hh",
        because="The gradient changes its sign at every step, and its norm has none.",
    ),
    Equivalent(
        part="gradient_norm",
        before="if last_gradient.shape != states[..., -1, :].shape:",
        after="if last_gradient.shape != states[..., -0, :].shape:",
        because="Every state has the shape of the last.",
    ),
]


def _tensors(rng: torch.Generator, *shapes: tuple) -> list[torch.Tensor]:
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


def _rnn(answers: ModuleType, rng: torch.Generator) -> object:
    length, inputs, hidden = torch.randint(1, 5, (3,), generator=rng).tolist()
    shapes = (2, length, inputs), (hidden, inputs), (hidden, hidden), (hidden,)
    return answers.rnn_forward(*_tensors(rng, *shapes))


def _jacobians(answers: ModuleType, rng: torch.Generator) -> object:
    length, hidden = torch.randint(1, 5, (2,), generator=rng).tolist()
    states, w_hh = _tensors(rng, (2, length, hidden), (hidden, hidden))
    return answers.jacobians_to_last(states.tanh(), w_hh)


def _gradient_norm(answers: ModuleType, rng: torch.Generator) -> object:
    length, hidden = torch.randint(1, 5, (2,), generator=rng).tolist()
    states, w_hh, last = _tensors(rng, (2, length, hidden), (hidden, hidden), (2, hidden))
    return answers.gradient_norm_over_distance(states.tanh(), w_hh, last)


EXAMPLES = {"rnn": _rnn, "jacobians": _jacobians, "gradient_norm": _gradient_norm}
