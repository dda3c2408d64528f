# %% style="grad_of_lists" part="autocast"
def autocast_step(
    loss_fn, weights, lr, scale, good_steps=0, *, dtype=torch.float16, growth_interval=2000
):
    """torch.autograd.grad over lists."""
    for name in weights:
        if weights[name].dtype is not torch.float32:
            raise ValueError(f"{name} is not float32")
    if not scale > 0:
        raise ValueError("scale must be positive")
    if growth_interval <= 0:
        raise ValueError("growth_interval must be positive")
    names = list(weights)
    halves = [weights[name].to(dtype).detach().requires_grad_(True) for name in names]
    loss = loss_fn(dict(zip(names, halves, strict=True)))
    scaled = loss.float() * scale
    found = torch.autograd.grad(scaled, halves, allow_unused=True)
    finite = True
    for gradient in found:
        if gradient is not None and not torch.isfinite(gradient).all():
            finite = False
    if finite:
        for name, gradient in zip(names, found, strict=True):
            if gradient is not None:
                weights[name].data.sub_(gradient.to(torch.float32).div_(scale), alpha=lr)
        good_steps += 1
        if good_steps >= growth_interval:
            scale, good_steps = scale * 2, 0
    else:
        scale, good_steps = scale / 2, 0
    return loss.detach().to(torch.float32), scale, good_steps


# %% style="grad_of_lists" part="accumulation"
def accumulate_gradients(loss_fn, weights, micro_batches):
    """Sums over targets first, one division at the end."""
    total, loss_sum = 0, None
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for x, targets in micro_batches:
        n = (targets.flatten() != -100).sum().item()
        if n == 0:
            continue
        own = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        loss = loss_fn(own, x, targets)
        found = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
        for name, gradient in zip(own, found, strict=True):
            if gradient is not None:
                sums[name] += n * gradient
        total += n
        loss_sum = n * loss.detach() + (0 if loss_sum is None else loss_sum)
    if not total:
        raise ValueError("there is no target to learn from")
    return loss_sum / total, {name: value / total for name, value in sums.items()}


# %% style="grad_of_lists" part="ring"
def ring_all_reduce(buffer, rank, world_size, exchange):
    """Slices of one copy, written in place."""
    if len(buffer.shape) != 1:
        raise ValueError("the buffer must be flat")
    if rank < 0 or rank >= world_size:
        raise ValueError("no such rank")
    short, longer = divmod(len(buffer), world_size)
    bounds = [0]
    for i in range(world_size):
        bounds.append(bounds[-1] + short + (i < longer))
    work = buffer.clone()

    def chunk(i):
        i %= world_size
        return work[bounds[i] : bounds[i + 1]]

    for step in range(1, world_size):
        chunk(rank - step).add_(exchange(chunk(rank - step + 1)))
    for step in range(1, world_size):
        chunk(rank - step + 1).copy_(exchange(chunk(rank - step + 2)))
    return work


# %% style="product_and_fork" part="checkpoint"
class Checkpoint(torch.autograd.Function):
    """Goes backward from a product, inside a forked generator."""

    @staticmethod
    def forward(ctx, function, *tensors):
        ctx.function, ctx.start = function, rng_state()
        ctx.save_for_backward(*tensors)
        with torch.no_grad():
            return function(*tensors)

    @staticmethod
    def backward(ctx, gradient):
        again = []
        for tensor in ctx.saved_tensors:
            copy = tensor.detach()
            copy.requires_grad = tensor.requires_grad
            again.append(copy)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            set_rng_state(ctx.start)
            (ctx.function(*again) * gradient).sum().backward()
        return None, *(copy.grad for copy in again)


def checkpoint(function, *tensors):
    for tensor in tensors:
        if not torch.is_tensor(tensor):
            raise ValueError(f"{tensor!r} is not a tensor")
    return Checkpoint.apply(function, *tensors)


class CheckpointedStack(nn.Module):
    """The segments are modules of functions made beforehand."""

    def __init__(self, d_model: int, depth: int, segment: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        self.segment = segment

    def forward(self, x):
        waiting = list(self.layers)
        while waiting:
            now, waiting = waiting[: self.segment], waiting[self.segment :]

            def run(x, now=now):
                for layer in now:
                    x = self.dropout(layer(x).tanh()) + x
                return x

            x = checkpoint(run, x)
        return x


# %% style="product_and_fork" part="ring"
def ring_all_reduce(buffer, rank, world_size, exchange):
    """A dictionary of chunks, and the number of the next chunk that goes down by one."""
    if buffer.ndim != 1:
        raise ValueError("buffer: one dimension, please")
    if rank not in range(world_size):
        raise ValueError("rank out of range")
    own = dict(enumerate(torch.tensor_split(buffer, world_size)))
    going = rank
    for i in range(2 * (world_size - 1)):
        arrived = exchange(own[going])
        going = (going - 1) % world_size
        own[going] = own[going] + arrived if i < world_size - 1 else arrived
    return torch.cat([own[i] for i in range(world_size)])


# %% style="flat_gradient" part="autocast"
def autocast_step(
    loss_fn, weights, lr, scale, good_steps=0, *, dtype=torch.float16, growth_interval=2000
):
    """All gradients as one vector; a sum that is not finite tells of an overflow."""
    if {weight.dtype for weight in weights.values()} - {torch.float32}:
        raise ValueError("only float32 master weights")
    if scale <= 0.0:
        raise ValueError("scale <= 0")
    if growth_interval < 1:
        raise ValueError("growth_interval < 1")
    low = {name: nn.Parameter(weight.to(dtype)) for name, weight in weights.items()}
    loss = loss_fn(low)
    loss.backward(torch.full_like(loss, scale))
    pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in low.values()]
    flat = torch.cat([piece.flatten() for piece in pieces]).float() / scale
    loss = loss.detach().float()
    if not flat.abs().max().isfinite():
        return loss, scale * 0.5, 0
    changes = flat.split([weight.numel() for weight in weights.values()])
    with torch.no_grad():
        for weight, change in zip(weights.values(), changes, strict=True):
            weight.copy_(weight - lr * change.view_as(weight))
    grown = good_steps + 1 >= growth_interval
    return loss, scale * (2.0 if grown else 1.0), 0 if grown else good_steps + 1


# %% style="flat_gradient" part="accumulation"
def accumulate_gradients(loss_fn, weights, micro_batches):
    """Parameters whose grad collects the sums."""
    shares = torch.tensor([(targets != -100).sum().item() for _, targets in micro_batches])
    if shares.sum() == 0:
        raise ValueError("not one target counts")
    shares = (shares / shares.sum().double()).tolist()
    own = {name: nn.Parameter(weight.clone()) for name, weight in weights.items()}
    losses = []
    for share, batch in zip(shares, micro_batches, strict=True):
        if share > 0:
            part = share * loss_fn(own, *batch)
            part.backward()
            losses.append(part.detach())
    gradients = {}
    for name, parameter in own.items():
        if parameter.grad is None:
            gradients[name] = parameter.detach() * 0
        else:
            gradients[name] = parameter.grad
    return torch.stack(losses).sum(), gradients


# %% style="explicit_lists" part="checkpoint"
def _again(function, tensors, needed, start, gradient):
    before = rng_state()
    try:
        set_rng_state(start)
        leaves = [t.clone().detach() for t in tensors]
        for leaf, wants in zip(leaves, needed, strict=True):
            if wants:
                leaf.requires_grad_()
        with torch.set_grad_enabled(True):
            result = function(*leaves)
    finally:
        set_rng_state(before)
    result.backward(gradient)
    return [leaf.grad for leaf in leaves]


class Checkpoint(torch.autograd.Function):
    """Keeps its inputs in a list, and has a helper do the second run."""

    @staticmethod
    def forward(ctx, function, *tensors):
        ctx.kept = (function, [t.detach() for t in tensors], ctx.needs_input_grad[1:], rng_state())
        return function(*ctx.kept[1])

    @staticmethod
    def backward(ctx, gradient):
        return None, *_again(*ctx.kept, gradient)


def checkpoint(function, *tensors):
    if any(not isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise ValueError("tensors only")
    return Checkpoint.apply(function, *tensors)


class CheckpointedStack(nn.Module):
    """A method for a segment, its layers bound by name."""

    def __init__(self, d_model: int, depth: int, segment: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        self.segment = segment

    def forward(self, x):
        i = 0
        while i < len(self.layers):
            x = checkpoint(functools.partial(self._run, list(self.layers)[i : i + self.segment]), x)
            i += self.segment
        return x

    def _run(self, layers, x):
        for layer in layers:
            x = torch.add(x, self.dropout(torch.tanh(layer(x))))
        return x


# %% style="sums_of_losses" part="accumulation"
def accumulate_gradients(loss_fn, weights, micro_batches):
    """Weighs the gradient that goes backward, not the loss."""
    counting = [(x, t, int(torch.count_nonzero(t + 100))) for x, t in micro_batches]
    counting = [item for item in counting if item[2]]
    if not counting:
        raise ValueError("no target")
    n = sum(count for *_, count in counting)
    own = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
    total = torch.zeros((), dtype=next(iter(weights.values())).dtype, device=device)
    for x, targets, count in counting:
        loss = loss_fn(own, x, targets)
        loss.backward(torch.full_like(loss, count / n))
        total += loss.detach() * count / n
    return total, {
        name: leaf.grad if leaf.grad is not None else torch.zeros_like(leaf).detach()
        for name, leaf in own.items()
    }


# %% style="roll" part="ring"
def ring_all_reduce(buffer, rank, world_size, exchange):
    """The chunks in the order in which this rank sends them: its own first, then downwards."""
    if buffer.dim() - 1:
        raise ValueError("buffer must be a vector")
    if not (rank >= 0 and rank < world_size):
        raise ValueError("rank is not in the ring")
    order = [(rank - i) % world_size for i in range(world_size)]
    pieces = torch.tensor_split(buffer, world_size)
    queue = [pieces[i] for i in order]
    for i in range(1, world_size):
        queue[i] = queue[i] + exchange(queue[i - 1])
    # The last of the queue is complete; it goes first around again.
    arrived = queue[-1]
    for i in range(world_size - 1):
        arrived = exchange(arrived)
        queue[i] = arrived
    result = [None] * world_size
    for i, chunk in zip(order, queue, strict=True):
        result[i] = chunk
    return torch.cat(result).clone()
