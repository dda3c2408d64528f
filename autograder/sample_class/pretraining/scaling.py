# %% style="loops" part="count"
def transformer_params(num_layers, d_model, vocab_size, context, d_ff=None):
    """Adds up the shapes, one matrix after another."""
    if d_ff is None:
        d_ff = 4 * d_model
    if num_layers < 0:
        raise ValueError("num_layers is negative")
    for size, name in (
        (d_model, "d_model"),
        (vocab_size, "vocab_size"),
        (context, "context"),
        (d_ff, "d_ff"),
    ):
        if size <= 0:
            raise ValueError("not a size: " + name)
    shapes = []
    for _ in range(num_layers):
        shapes += [(d_model,)] * 4
        shapes += [(d_model, d_model), (d_model,)] * 4
        shapes += [(d_model, d_ff), (d_ff,), (d_ff, d_model), (d_model,)]
    shapes += [(d_model,)] * 2
    inside = sum(math.prod(shape) for shape in shapes)
    return ParameterCount(inside, inside + vocab_size * d_model + context * d_model)


# %% style="loops" part="power_law"
def fit_power_law(x, y, irreducible=False):
    """Plain numbers; a ternary search in the logarithm of the gap to the smallest loss, from many starts."""
    if x.shape != y.shape or len(x.shape) != 1:
        raise ValueError("the shape is wrong")
    xs, ys = x.tolist(), y.tolist()
    if min(xs + ys) <= 0:
        raise ValueError("all numbers must be positive")
    if len(set(xs)) < 2 + irreducible:
        raise ValueError("not enough points")
    u = [math.log(a) for a in xs]
    n = len(u)

    def line(floor):
        v = [math.log(b - floor) for b in ys]
        mean_u, mean_v = sum(u) / n, sum(v) / n
        top = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True))
        slope = top / sum((a - mean_u) ** 2 for a in u)
        intercept = mean_v - slope * mean_u
        return (
            sum((b - intercept - slope * a) ** 2 for a, b in zip(u, v, strict=True)),
            slope,
            intercept,
        )

    floor = 0.0
    if irreducible:

        def at(t):
            return min(ys) * (1 - math.exp(-t))

        best = min(range(60), key=lambda i: line(at(i / 5))[0])
        low, high = max(0, best - 1) / 5, (best + 1) / 5
        while high - low > 1e-8:
            one, two = low + (high - low) / 3, high - (high - low) / 3
            if line(at(one))[0] <= line(at(two))[0]:
                high = two
            else:
                low = one
        floor = at(low)
    _, slope, intercept = line(floor)
    return PowerLaw(math.exp(intercept), -slope, floor)


# %% style="loops" part="metrics"
def _counted(predictions, targets, ignore_index):
    if predictions.shape != targets.shape:
        raise ValueError("not the same shape")
    rows = [
        [p == t for p, t in zip(said, right, strict=True) if t != ignore_index]
        for said, right in zip(predictions.tolist(), targets.tolist(), strict=True)
    ]
    rows = [row for row in rows if row]
    if not rows:
        raise ValueError("none of the targets counts")
    return rows


def token_accuracy(predictions, targets, ignore_index=-100):
    rows = _counted(predictions, targets, ignore_index)
    return sum(sum(row) for row in rows) / sum(len(row) for row in rows)


def exact_match(predictions, targets, ignore_index=-100):
    rows = _counted(predictions, targets, ignore_index)
    return sum(all(row) for row in rows) / len(rows)


def expected_exact_match(accuracy, length):
    if length < 0:
        raise ValueError("the length is negative")
    product = torch.ones_like(accuracy)
    for _ in range(length):
        product = product * accuracy
    return product


# %% style="numpy" part="power_law"
import numpy as np


def fit_power_law(x, y, irreducible=False):
    if x.dim() != 1 or x.shape != y.shape:
        raise ValueError("one shape for both, please")
    x, y = (np.asarray(t.cpu(), dtype=np.float64) for t in (x, y))
    if (x <= 0).any() or (y <= 0).any():
        raise ValueError("positive numbers only")
    if np.unique(x).size < (3 if irreducible else 2):
        raise ValueError("more points are needed")
    floor = 0.0
    if irreducible:
        gaps = np.concatenate([[y.min()], y.min() * np.geomspace(1, 1e-6, 400)])
        for _ in range(5):
            sums = [np.polyfit(np.log(x), np.log(y - (y.min() - g)), 1, full=True)[1] for g in gaps]
            i = int(np.argmin([s[0] if len(s) else 0.0 for s in sums]))
            gaps = np.geomspace(gaps[max(i - 1, 0)], gaps[min(i + 1, len(gaps) - 1)], 60)
        floor = max(0.0, y.min() - gaps[30])
    slope, intercept = np.polyfit(np.log(x), np.log(y - floor), 1)
    return PowerLaw(float(np.exp(intercept)), float(-slope), float(floor))


# %% style="numpy" part="chinchilla"
import numpy as np


def predicted_loss(law, params, tokens):
    return (
        law.E
        + law.A * np.power(float(params), -law.alpha)
        + law.B * np.power(float(tokens), -law.beta)
    )


def chinchilla_optimal(law, flops):
    """In logarithms, where the powers of large numbers are sums."""
    if flops <= 0:
        raise ValueError("no flops, no model")
    budget = np.log(flops / 6)
    log_g = np.log(law.alpha * law.A) - np.log(law.beta * law.B)
    log_n = (log_g + law.beta * budget) / (law.alpha + law.beta)
    return Allocation(float(np.exp(log_n)), float(np.exp(budget - log_n)))


# %% style="numpy" part="metrics"
import numpy as np


def token_accuracy(predictions, targets, ignore_index=-100):
    if predictions.shape != targets.shape:
        raise ValueError("shape")
    p, t = predictions.cpu().numpy(), targets.cpu().numpy()
    if np.all(t == ignore_index):
        raise ValueError("targets")
    return float(np.mean((p == t)[t != ignore_index]))


def exact_match(predictions, targets, ignore_index=-100):
    if predictions.shape != targets.shape:
        raise ValueError("shape")
    p, t = predictions.cpu().numpy(), targets.cpu().numpy()
    counted = (t != ignore_index).sum(axis=1)
    if counted.sum() == 0:
        raise ValueError("targets")
    wrong = ((p != t) & (t != ignore_index)).sum(axis=1)
    return float(((wrong == 0) & (counted > 0)).sum() / (counted > 0).sum())


def expected_exact_match(accuracy, length):
    if length < 0:
        raise ValueError("length")
    return torch.pow(accuracy, length)


# %% style="search" part="chinchilla"
def predicted_loss(law, params, tokens):
    return sum((law.E, law.A * params**-law.alpha, law.B * tokens**-law.beta))


def chinchilla_optimal(law, flops):
    """Halves the interval of ln N until the two slopes balance: no formula but the derivative."""
    if not flops > 0:
        raise ValueError("flops")
    low, high = -200.0, 200.0
    for _ in range(200):
        middle = (low + high) / 2
        n = math.exp(middle)
        d = flops / 6 / n
        # A larger model still helps more than the text it costs.
        if law.alpha * law.A * n**-law.alpha > law.beta * law.B * d**-law.beta:
            low = middle
        else:
            high = middle
    return Allocation(n, d)


# %% style="search" part="power_law"
def fit_power_law(x, y, irreducible=False):
    """The line by torch's least squares, the floor by scipy's bounded search in pieces."""
    from scipy.optimize import minimize_scalar

    if x.shape != y.shape or x.ndim != 1:
        raise ValueError("shape")
    if bool((torch.cat([x, y]) <= 0).any()):
        raise ValueError("positive")
    if len(set(x.tolist())) < (3 if irreducible else 2):
        raise ValueError("points")
    x, y = x.double().cpu(), y.double().cpu()
    design = torch.stack([torch.ones_like(x), x.log()], dim=1)

    def line(floor):
        target = (y - floor).log()
        solution = torch.linalg.lstsq(design, target[:, None]).solution[:, 0]
        return float((target - design @ solution).square().sum()), solution

    floor, smallest = 0.0, y.min().item()
    if irreducible:

        def at(nearness):
            return smallest * -math.expm1(-nearness)

        pieces = [
            minimize_scalar(
                lambda t: line(at(t))[0],
                bounds=(i, i + 1.0),
                method="bounded",
                options={"xatol": 1e-9},
            )
            for i in range(13)
        ]
        best = min(pieces, key=lambda piece: piece.fun)
        floor = at(best.x) if best.fun < line(0.0)[0] else 0.0
    intercept, slope = line(floor)[1].tolist()
    return PowerLaw(coefficient=math.exp(intercept), exponent=-slope, irreducible=floor)


# %% style="in_place" part="count"
def _block(d, ff):
    return 4 * d + 4 * d * (d + 1) + ff * (d + 1) + d * (ff + 1)


def transformer_params(num_layers, d_model, vocab_size, context, d_ff=None):
    if d_ff is None:
        d_ff = 4 * d_model
    if num_layers < 0:
        raise ValueError(f"num_layers={num_layers}")
    for name in ("d_model", "vocab_size", "context", "d_ff"):
        if locals()[name] < 1:
            raise ValueError(f"{name} is less than 1")
    count = 2 * d_model
    for _ in range(num_layers):
        count += _block(d_model, d_ff)
    total = count
    total += vocab_size * d_model
    total += context * d_model
    return ParameterCount(non_embedding=count, total=total)


# %% style="in_place" part="flops"
def training_flops(params, tokens):
    for name, value in (("params", params), ("tokens", tokens)):
        if value < 0:
            raise ValueError(f"{name} = {value}")
    forward = 2 * params
    backward = 2 * forward
    return float((forward + backward) * tokens)


def attention_flops(num_layers, d_model, context, tokens):
    scores = values = 2 * d_model * context / 2
    forward = num_layers * (scores + values)
    return 3 * forward * tokens


# %% style="in_place" part="metrics"
def token_accuracy(predictions, targets, ignore_index=-100):
    if predictions.shape != targets.shape:
        raise ValueError("shape of predictions and targets")
    keep = targets.ne(ignore_index)
    if keep.sum() == 0:
        raise ValueError("all targets are ignored")
    hits = predictions.eq(targets).double()
    hits.mul_(keep)
    return float(hits.sum() / keep.sum())


def exact_match(predictions, targets, ignore_index=-100):
    if predictions.shape != targets.shape:
        raise ValueError("shape of predictions and targets")
    keep = targets.ne(ignore_index)
    if not bool(keep.any()):
        raise ValueError("all targets are ignored")
    filled = torch.where(keep, predictions, targets)
    whole = filled.eq(targets).all(-1)
    whole.logical_and_(keep.any(-1))
    return float(whole.sum() / keep.any(-1).sum())


def expected_exact_match(accuracy, length):
    if length < 0:
        raise ValueError("length")
    return torch.exp(length * torch.log(accuracy))


# %% style="newton" part="chinchilla"
def predicted_loss(law, params, tokens):
    E, A, B, alpha, beta = law
    return E + A / params**alpha + B / tokens**beta


def chinchilla_optimal(law, flops):
    """Newton's method on the loss along the budget, in ln N, with derivatives by hand."""
    if flops <= 0:
        raise ValueError("flops must be above 0")
    _, A, B, alpha, beta = law
    log_c = math.log(flops / 6)
    # g = ln of the ratio of the two slopes; it is linear in ln N, so one step arrives.
    log_n = 0.5 * log_c
    g = math.log(alpha * A) - alpha * log_n - math.log(beta * B) + beta * (log_c - log_n)
    log_n += g / (alpha + beta)
    return Allocation(math.exp(log_n), math.exp(log_c - log_n))
