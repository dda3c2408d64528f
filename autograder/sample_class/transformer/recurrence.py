# %% style="loops" part="rnn"
def rnn_forward(x, w_xh, w_hh, bias, h_0=None):
    """Unit by unit, as the equation is written."""
    n = len(w_hh)
    if w_hh.dim() != 2 or w_hh.size(1) != n:
        raise ValueError("w_hh is not square")
    if w_xh.size(0) != n or w_xh.size(1) != x.size(-1):
        raise ValueError("w_xh does not fit")
    if list(bias.shape) != [n]:
        raise ValueError("bias does not fit")
    if h_0 is not None and h_0.size(-1) != n:
        raise ValueError("h_0 does not fit")
    previous = [torch.zeros_like(x[..., 0, 0]) if h_0 is None else h_0[..., i] for i in range(n)]
    rows = []
    for t in range(x.size(-2)):
        new = []
        for i in range(n):
            total = bias[i]
            for j in range(x.size(-1)):
                total = total + w_xh[i, j] * x[..., t, j]
            for j in range(n):
                total = total + w_hh[i, j] * previous[j]
            new.append(total.tanh())
        previous = new
        rows.append(torch.stack(new, -1))
    return torch.stack(rows, -2)


# %% style="loops" part="lstm"
def lstm_cell(x, h, c, weight, bias):
    n, m = h.size(-1), x.size(-1)
    if list(weight.shape) != [4 * n, n + m]:
        raise ValueError(f"bad weight {weight.shape}")
    if list(bias.shape) != [4 * n]:
        raise ValueError(f"bad bias {bias.shape}")
    if c.shape != h.shape:
        raise ValueError("cell and hidden state differ")

    def row(k):
        total = bias[k]
        for j in range(n):
            total = total + weight[k, j] * h[..., j]
        for j in range(m):
            total = total + weight[k, n + j] * x[..., j]
        return total

    new_h, new_c = [], []
    for u in range(n):
        forget, take, show = (1 / (1 + (-row(u + g * n)).exp()) for g in range(3))
        cell = forget * c[..., u] + take * row(u + 3 * n).tanh()
        new_c.append(cell)
        new_h.append(show * cell.tanh())
    return torch.stack(new_h, -1), torch.stack(new_c, -1)


# %% style="loops" part="jacobians"
def step_jacobian(h, w_hh):
    n = h.size(-1)
    if tuple(w_hh.shape) != (n, n):
        raise ValueError("w_hh has the wrong shape")
    rows = []
    for i in range(n):
        rows.append(torch.stack([(1 - h[..., i] * h[..., i]) * w_hh[i, j] for j in range(n)], -1))
    return torch.stack(rows, -2)


def jacobians_to_last(states, w_hh):
    length = states.size(-2)
    step_jacobian(states[..., 0, :], w_hh)
    out = []
    for k in range(length):
        # Forwards in time: each later factor is put on the left.
        total = torch.diag_embed(torch.ones_like(states[..., 0, :]))
        for t in range(k + 1, length):
            total = step_jacobian(states[..., t, :], w_hh) @ total
        out.append(total)
    return torch.stack(out, -3)


# %% style="loops" part="gradient_norm"
def gradient_norm_over_distance(states, w_hh, last_gradient):
    n = states.size(-1)
    if tuple(w_hh.shape) != (n, n):
        raise ValueError("w_hh")
    if last_gradient.shape != states.select(-2, 0).shape:
        raise ValueError("last_gradient")
    delta = [last_gradient[..., i] for i in range(n)]
    norms = []
    for t in range(states.size(-2) - 1, -1, -1):
        norms.append(sum(d * d for d in delta) ** 0.5)
        through = [delta[i] * (1 - states[..., t, i] ** 2) for i in range(n)]
        delta = [sum(w_hh[i, j] * through[i] for i in range(n)) for j in range(n)]
    return torch.stack(norms, -1)


# %% style="einsum" part="rnn"
def rnn_forward(x, w_xh, w_hh, bias, h_0=None):
    (hidden,) = {w_hh.shape[0]}
    if w_hh.shape[1] != hidden:
        raise ValueError(f"w_hh: {tuple(w_hh.shape)}")
    if w_xh.shape != (hidden, x.shape[-1]):
        raise ValueError(f"w_xh: {tuple(w_xh.shape)}")
    if bias.shape != (hidden,):
        raise ValueError(f"bias: {tuple(bias.shape)}")
    if h_0 is not None and h_0.shape != (*x.shape[:-2], hidden):
        raise ValueError(f"h_0: {tuple(h_0.shape)}")
    # What the input says does not depend on the state: all steps at once.
    drive = torch.einsum("hi,...ti->...th", w_xh, x) + bias
    h = torch.zeros_like(drive[..., 0, :]) if h_0 is None else h_0
    out = []
    for t in range(drive.shape[-2]):
        h = (drive[..., t, :] + torch.einsum("hk,...k->...h", w_hh, h)).tanh()
        out += [h[..., None, :]]
    return torch.cat(out, dim=-2)


# %% style="einsum" part="lstm"
def lstm_cell(x, h, c, weight, bias):
    hidden = h.shape[-1]
    if weight.shape != (4 * hidden, hidden + x.shape[-1]):
        raise ValueError("weight")
    if bias.shape != (4 * hidden,):
        raise ValueError("bias")
    if c.shape != h.shape:
        raise ValueError("cell state")
    stacked = weight.unflatten(0, (4, hidden))
    parts = (
        torch.einsum("ghk,...k->...gh", stacked[..., :hidden], h)
        + torch.einsum("ghi,...i->...gh", stacked[..., hidden:], x)
        + bias.view(4, hidden)
    )
    gates = parts[..., :3, :].sigmoid()
    c = torch.einsum(
        "...gh,...gh->...h",
        gates[..., :2, :],
        torch.stack([c, parts[..., 3, :].tanh()], dim=-2),
    )
    return gates[..., 2, :] * c.tanh(), c


# %% style="einsum" part="gru"
def gru_cell(x, h, gate_weight, gate_bias, candidate_weight, candidate_bias):
    n, m = h.shape[-1], x.shape[-1]
    if gate_weight.shape != (2 * n, n + m):
        raise ValueError("gate_weight")
    if gate_bias.shape != (2 * n,):
        raise ValueError("gate_bias")
    if candidate_weight.shape != (n, n + m):
        raise ValueError("candidate_weight")
    if candidate_bias.shape != (n,):
        raise ValueError("candidate_bias")
    u, w = gate_weight[:, :n], gate_weight[:, n:]
    gates = torch.einsum("gk,...k->...g", u, h) + torch.einsum("gi,...i->...g", w, x) + gate_bias
    reset, update = gates[..., :n].sigmoid(), gates[..., n:].sigmoid()
    new = torch.einsum("hk,...k->...h", candidate_weight[:, :n], reset * h)
    new = new + torch.einsum("hi,...i->...h", candidate_weight[:, n:], x) + candidate_bias
    return torch.lerp(h, new.tanh(), update)


# %% style="einsum" part="jacobians"
def step_jacobian(h, w_hh):
    if w_hh.shape != (h.shape[-1],) * 2:
        raise ValueError(f"w_hh is {tuple(w_hh.shape)} for {h.shape[-1]} units")
    return torch.einsum("...i,ij->...ij", 1 - h * h, w_hh)


def jacobians_to_last(states, w_hh):
    jacobians = step_jacobian(states, w_hh)
    result = torch.empty_like(jacobians)
    result[..., -1, :, :] = torch.eye(len(w_hh), dtype=states.dtype, device=states.device)
    for k in range(states.shape[-2] - 2, -1, -1):
        result[..., k, :, :] = torch.einsum(
            "...ij,...jk->...ik", result[..., k + 1, :, :].clone(), jacobians[..., k + 1, :, :]
        )
    return result


# %% style="einsum" part="gradient_norm"
def gradient_norm_over_distance(states, w_hh, last_gradient):
    # Through the matrices of part 4: more work, the same numbers.
    if last_gradient.shape != states.shape[:-2] + states.shape[-1:]:
        raise ValueError("last_gradient")
    to_last = jacobians_to_last(states, w_hh)
    gradients = torch.einsum("...tij,...i->...tj", to_last, last_gradient)
    return torch.linalg.vector_norm(gradients, dim=-1).flip(-1)


# %% style="in_place" part="rnn"
def rnn_forward(x, w_xh, w_hh, bias, h_0=None):
    hidden = w_hh.shape[0]
    for name, tensor, shape in (
        ("w_hh", w_hh, (hidden, hidden)),
        ("w_xh", w_xh, (hidden, x.shape[-1])),
        ("bias", bias, (hidden,)),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {shape}")
    if h_0 is not None and tuple(h_0.shape) != (*x.shape[:-2], hidden):
        raise ValueError(f"h_0 has shape {tuple(h_0.shape)}")
    states = torch.nn.functional.linear(x, w_xh, bias)
    previous = h_0
    rows = list(states.unbind(-2))
    for t, row in enumerate(rows):
        if previous is not None:
            row = row + torch.nn.functional.linear(previous, w_hh)
        previous = rows[t] = row.tanh()
    return torch.stack(rows, -2)


# %% style="in_place" part="lstm"
def lstm_cell(x, h, c, weight, bias):
    hidden = h.shape[-1]
    if weight.shape[0] != 4 * hidden or weight.shape[1] != hidden + x.shape[-1]:
        raise ValueError("the weight has the wrong shape")
    if bias.ndim != 1 or len(bias) != 4 * hidden:
        raise ValueError("the bias has the wrong shape")
    if tuple(c.shape) != tuple(h.shape):
        raise ValueError("the cell state has the wrong shape")
    z = nn.functional.linear(torch.cat((h, x), -1), weight, bias)
    f, i, o, g = z.split(hidden, -1)
    new = c.clone()
    new *= f.sigmoid()
    new += i.sigmoid() * g.tanh()
    return o.sigmoid().mul(new.tanh()), new


# %% style="in_place" part="gru"
def gru_cell(x, h, gate_weight, gate_bias, candidate_weight, candidate_bias):
    n = h.shape[-1]
    k = n + x.shape[-1]
    shapes = {"gate_weight": (2 * n, k), "gate_bias": (2 * n,)}
    shapes |= {"candidate_weight": (n, k), "candidate_bias": (n,)}
    given = {"gate_weight": gate_weight, "gate_bias": gate_bias}
    given |= {"candidate_weight": candidate_weight, "candidate_bias": candidate_bias}
    for name in shapes:
        if tuple(given[name].shape) != shapes[name]:
            raise ValueError(f"{name}: expected {shapes[name]}")
    both = torch.cat((h, x), dim=-1)
    r, z = nn.functional.linear(both, gate_weight, gate_bias).sigmoid().split(n, dim=-1)
    both = both.clone()
    both[..., :n] *= r
    candidate = nn.functional.linear(both, candidate_weight, candidate_bias).tanh()
    return h + z * (candidate - h)


# %% style="in_place" part="gradient_norm"
def gradient_norm_over_distance(states, w_hh, last_gradient):
    if w_hh.shape != (states.shape[-1], states.shape[-1]):
        raise ValueError("w_hh is not as wide as the states")
    if last_gradient.shape != (*states.shape[:-2], states.shape[-1]):
        raise ValueError("last_gradient is not shaped like one state")
    length = states.shape[-2]
    delta = last_gradient.clone()
    norms = states.new_empty(*states.shape[:-2], length)
    for d in range(length):
        norms[..., d] = delta.pow(2).sum(-1).sqrt()
        delta *= 1 - states[..., length - 1 - d, :].pow(2)
        delta = torch.matmul(delta, w_hh)
    return norms


# %% style="split_weights" part="lstm"
class _Gate:
    """One group of rows: its weights for the state and for the input, and its bias."""

    def __init__(self, weight, bias, number, hidden):
        rows = slice(number * hidden, (number + 1) * hidden)
        self.of_state, self.of_input = weight[rows, :hidden], weight[rows, hidden:]
        self.bias = bias[rows]

    def __call__(self, x, h):
        return x @ self.of_input.mT + h @ self.of_state.mT + self.bias


def lstm_cell(x, h, c, weight, bias):
    hidden, inputs = h.shape[-1], x.shape[-1]
    if weight.shape != torch.Size([4 * hidden, hidden + inputs]):
        raise ValueError("Weight has the wrong shape")
    if bias.shape != torch.Size([4 * hidden]):
        raise ValueError("Bias has the wrong shape")
    if c.shape != h.shape:
        raise ValueError("Cell state has the wrong shape")
    forget, remember, output, candidate = (_Gate(weight, bias, k, hidden) for k in range(4))
    c = torch.sigmoid(forget(x, h)) * c + torch.sigmoid(remember(x, h)) * torch.tanh(
        candidate(x, h)
    )
    return torch.sigmoid(output(x, h)) * torch.tanh(c), c


# %% style="split_weights" part="gru"
def _gate(weight, bias, state, x):
    hidden = state.shape[-1]
    return state @ weight[:, :hidden].T + x @ weight[:, hidden:].T + bias


def gru_cell(x, h, gate_weight, gate_bias, candidate_weight, candidate_bias):
    hidden, inputs = h.shape[-1], x.shape[-1]
    if gate_weight.shape != (2 * hidden, hidden + inputs):
        raise ValueError("gate_weight")
    if gate_bias.shape != (2 * hidden,):
        raise ValueError("gate_bias")
    if candidate_weight.shape != (hidden, hidden + inputs):
        raise ValueError("candidate_weight")
    if candidate_bias.shape != (hidden,):
        raise ValueError("candidate_bias")
    reset = torch.sigmoid(_gate(gate_weight[:hidden], gate_bias[:hidden], h, x))
    # sigmoid(-a) = 1 - sigmoid(a)
    keep = torch.sigmoid(-_gate(gate_weight[hidden:], gate_bias[hidden:], h, x))
    candidate = torch.tanh(_gate(candidate_weight, candidate_bias, reset * h, x))
    return keep * h + (1 - keep) * candidate


# %% style="autograd" part="jacobians"
def step_jacobian(h, w_hh):
    """The chain rule left to autograd, at the point the state came from."""
    if w_hh.shape != (h.shape[-1], h.shape[-1]):
        raise ValueError("w_hh")
    before_tanh = torch.atanh(h.detach())

    def step(nudge):  # the step's state, when the state before it is nudged
        return torch.tanh(before_tanh + nudge @ w_hh.T)

    nudge = torch.zeros_like(before_tanh, requires_grad=True)
    with torch.enable_grad():
        new = step(nudge)
        rows = [
            torch.autograd.grad(new[..., i].sum(), nudge, retain_graph=True)[0]
            for i in range(h.shape[-1])
        ]
    return torch.stack(rows, dim=-2)


def jacobians_to_last(states, w_hh):
    factors = step_jacobian(states, w_hh).movedim(-3, 0)
    product = torch.zeros_like(factors[0]) + torch.eye(
        len(w_hh), dtype=states.dtype, device=states.device
    )
    results = {len(factors) - 1: product}
    for k in range(len(factors) - 1, 0, -1):
        results[k - 1] = product = torch.matmul(product, factors[k])
    return torch.stack([results[k] for k in range(len(factors))], dim=-3)


# %% style="autograd" part="gradient_norm"
def gradient_norm_over_distance(states, w_hh, last_gradient):
    hidden = states.shape[-1]
    if w_hh.shape != (hidden, hidden):
        raise ValueError("w_hh")
    if last_gradient.shape != states[..., 0, :].shape:
        raise ValueError("last_gradient")
    # The inputs that, with these weights, give these states; then run the network and ask autograd.
    states = states.detach()
    drive = torch.atanh(states[..., 1:, :]) - states[..., :-1, :] @ w_hh.detach().T
    with torch.enable_grad():
        h = states[..., 0, :].clone().requires_grad_()
        trail = [h]
        for a in drive.unbind(-2):
            h = torch.tanh(a + h @ w_hh.detach().T)
            trail.append(h)
        gradients = torch.autograd.grad((h * last_gradient.detach()).sum(), trail)
    return torch.stack([g.norm(dim=-1) for g in gradients[::-1]], dim=-1)


# %% style="columns" part="rnn"
def rnn_forward(x, w_xh, w_hh, bias, h_0=None):
    """Column vectors as in the equation, the time axis first."""
    hidden, second = w_hh.shape
    if hidden != second:
        raise ValueError("w_hh must be square")
    if tuple(w_xh.shape) != (hidden, x.shape[-1]):
        raise ValueError("w_xh must be (hidden, inputs)")
    if tuple(bias.shape) != (hidden,):
        raise ValueError("bias must be (hidden,)")
    if h_0 is None:
        h_0 = torch.zeros((*x.shape[:-2], hidden), dtype=x.dtype, device=x.device)
    elif h_0.shape != (*x.shape[:-2], hidden):
        raise ValueError("h_0 must be (..., hidden)")
    weights = torch.cat([w_hh, w_xh, bias[:, None]], dim=1)
    one = torch.ones_like(x[..., 0, :1])
    h, states = h_0, []
    for step in x.movedim(-2, 0):
        column = torch.cat([h, step, one], dim=-1)[..., None]
        h = torch.tanh(weights @ column).squeeze(-1)
        states.append(h)
    return torch.stack(states).movedim(0, -2)


# %% style="columns" part="lstm"
def lstm_cell(x, h, c, weight, bias):
    n = h.shape[-1]
    if tuple(weight.shape) != (4 * n, n + x.shape[-1]):
        raise ValueError("weight must be (4 hidden, hidden + inputs)")
    if tuple(bias.shape) != (4 * n,):
        raise ValueError("bias must be (4 hidden,)")
    if c.shape != h.shape:
        raise ValueError("cell state and hidden state must have one shape")
    column = torch.cat([h, x], dim=-1).unsqueeze(-1)
    stacked = (weight @ column).squeeze(-1) + bias

    def gate(k):
        return (1 + torch.tanh(stacked[..., k * n : (k + 1) * n] / 2)) / 2  # = sigmoid

    kept = gate(0) * c
    added = gate(1) * stacked[..., 3 * n :].tanh()
    return gate(2) * (kept + added).tanh(), kept + added


# %% style="columns" part="gru"
def gru_cell(x, h, gate_weight, gate_bias, candidate_weight, candidate_bias):
    n, m = h.shape[-1], x.shape[-1]
    expected = [(2 * n, n + m), (2 * n,), (n, n + m), (n,)]
    given = [gate_weight, gate_bias, candidate_weight, candidate_bias]
    names = ["gate_weight", "gate_bias", "candidate_weight", "candidate_bias"]
    for name, tensor, shape in zip(names, given, expected, strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {shape}")
    logits = (gate_weight @ torch.cat([h, x], -1).unsqueeze(-1)).squeeze(-1) + gate_bias
    r, z = (1 / (1 + torch.exp(-part)) for part in (logits[..., :n], logits[..., n:]))
    column = torch.cat([r * h, x], -1).unsqueeze(-1)
    new = torch.tanh((candidate_weight @ column).squeeze(-1) + candidate_bias)
    return h - z * h + z * new


# %% style="columns" part="jacobians"
def step_jacobian(h, w_hh):
    if w_hh.shape[0] != h.shape[-1] or w_hh.shape[1] != h.shape[-1]:
        raise ValueError("w_hh must be square, and as wide as the state")
    return torch.diag_embed(1 - h**2) @ w_hh


def jacobians_to_last(states, w_hh):
    steps = [step_jacobian(h, w_hh) for h in states.unbind(-2)]
    later = [torch.diag_embed(torch.ones_like(states[..., -1, :]))]
    for step in steps[:0:-1]:
        later.insert(0, later[0] @ step)
    return torch.stack(later, dim=-3)


# %% style="columns" part="gradient_norm"
def gradient_norm_over_distance(states, w_hh, last_gradient):
    if last_gradient.shape != states[..., -1, :].shape:
        raise ValueError("last_gradient must be shaped like the last state")
    column = last_gradient.unsqueeze(-1)
    norms = [torch.linalg.norm(column, dim=(-2, -1))]
    jacobians = step_jacobian(states, w_hh)
    for k in range(jacobians.shape[-3] - 1, 0, -1):
        column = jacobians[..., k, :, :].mT @ column
        norms.append(torch.linalg.norm(column, dim=(-2, -1)))
    return torch.stack(norms).movedim(0, -1)
