# %% style="loops" part="update"
def lora_update(lora_A, lora_B, alpha):
    """A sum of outer products, one for each rank."""
    if len(lora_A) != lora_B.shape[-1]:
        raise ValueError("rank")
    total = torch.zeros(lora_B.shape[0], lora_A.shape[1], dtype=lora_A.dtype, device=lora_A.device)
    for i in range(len(lora_A)):
        total = total + torch.outer(lora_B[:, i], lora_A[i])
    return total * alpha / len(lora_A)


def factorise(update, r, alpha):
    """Term by term."""
    if r < 1 or r > update.shape[0] or r > update.shape[1]:
        raise ValueError("rank")
    if alpha <= 0 or alpha != alpha:
        raise ValueError("alpha")
    U, S, Vh = torch.linalg.svd(update)
    A = torch.stack([S[i] * Vh[i] for i in range(r)])
    B = torch.stack([U[:, i] for i in range(r)], dim=1)
    return A / (alpha / r), B


# %% style="loops" part="layer"
class LoRALinear(nn.Module):
    """One term of the update after the other."""

    def __init__(
        self, in_features, out_features, r, alpha, *, dropout=0.0, bias=True, generator=None
    ):
        super().__init__()
        if r <= 0:
            raise ValueError("rank")
        self.r, self.alpha, self.p = r, alpha, dropout
        self.register_parameter("lora_A", nn.Parameter(torch.empty(r, in_features)))
        self.register_parameter("lora_B", nn.Parameter(torch.empty(out_features, r)))
        nn.init.normal_(self.lora_A, std=in_features**-0.5, generator=generator)
        nn.init.constant_(self.lora_B, 0.0)
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.weight.requires_grad = False
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features))
            self.bias.requires_grad = False
        else:
            self.register_parameter("bias", None)
        self.merged = False

    def forward(self, x):
        h = x @ self.weight.t()
        if self.bias is not None:
            h = h + self.bias
        if self.merged:
            return h
        z = F.dropout(x, self.p, training=self.training)
        for i in range(self.r):
            h = h + (self.alpha / self.r) * (z @ self.lora_A[i])[..., None] * self.lora_B[:, i]
        return h

    @torch.no_grad()
    def merge(self):
        if self.merged:
            return
        self.original = self.weight.data
        self.weight.data = self.original + self.alpha / self.r * self.lora_B @ self.lora_A
        self.merged = True

    @torch.no_grad()
    def unmerge(self):
        if not self.merged:
            return
        self.weight.data = self.original
        del self.original
        self.merged = False


# %% style="loops" part="adapters"
model_to_swap = build_model


def adapter_state(model):
    """Layer by layer."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            found[f"{path}.lora_A"] = module.lora_A.data.clone()
            found[f"{path}.lora_B"] = module.lora_B.data.clone()
    return found


def swap_adapter(model, state):
    before = adapter_state(model)
    for name in before:
        if name not in state:
            raise ValueError(f"{name} is missing")
        if state[name].shape != before[name].shape:
            raise ValueError("shape")
    for name in state:
        if name not in before:
            raise ValueError(f"{name} is unknown")
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            module.lora_A.data.copy_(state[f"{path}.lora_A"])
            module.lora_B.data.copy_(state[f"{path}.lora_B"])
    return before


# %% style="wrapped" part="layer"
class LoRALinear(nn.Module):
    """The update is made whole, and the two ways are one."""

    def __init__(
        self, in_features, out_features, r, alpha, *, dropout=0.0, bias=True, generator=None
    ):
        if not r >= 1:
            raise ValueError("rank")
        super().__init__()
        base = nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)
        for parameter in base.parameters():
            parameter.zero_()
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = nn.Parameter(
            torch.normal(0.0, 1 / math.sqrt(in_features), (r, in_features), generator=generator)
        )
        self.lora_B = nn.Parameter(torch.zeros(out_features, r))
        self.alpha = alpha
        self.drop = nn.Dropout(dropout)
        self.states = []

    def forward(self, x):
        if self.states:
            return F.linear(x, self.weight, self.bias)
        if self.training and self.drop.p > 0:
            return F.linear(x, self.weight, self.bias) + F.linear(self.drop(x), self.update())
        return F.linear(x, self.weight + self.update(), self.bias)

    def update(self):
        return torch.einsum("or,ri->oi", self.lora_B, self.lora_A) * (
            self.alpha / self.lora_A.size(0)
        )

    def merge(self):
        if not self.states:
            self.states.append(self.weight)
            self.weight = nn.Parameter((self.weight + self.update()).detach(), requires_grad=False)

    def unmerge(self):
        if self.states:
            self.weight = self.states.pop()


# %% style="wrapped" part="update"
def lora_update(lora_A, lora_B, alpha):
    r, _ = lora_A.shape
    if tuple(lora_B.shape)[1:] != (r,):
        raise ValueError("rank")
    return torch.einsum("or,ri->oi", lora_B, lora_A).mul(alpha).div(r)


def factorise(update, r, alpha):
    """By projection: B holds directions of the output, A what they read."""
    if r not in range(1, min(update.shape) + 1):
        raise ValueError("rank")
    if not alpha > 0:
        raise ValueError("alpha")
    _, vectors = torch.linalg.eigh(update @ update.T)
    B = vectors[:, -r:]  # eigenvalues come in ascending order
    return r / alpha * B.T @ update, B


# %% style="wrapped" part="apply"
model_to_adapt = build_model


def apply_lora(model, targets, r, alpha, *, dropout=0.0, generator=None):
    """By recursion over the children, after everything was looked at."""
    targets = list(targets)
    if len(targets) == 0:
        raise ValueError("targets")
    if r < 1:
        raise ValueError("rank")
    for target in targets:
        if not any(
            path.split(".")[-1] == target and isinstance(m, nn.Linear)
            for path, m in model.named_modules()
        ):
            raise ValueError(target)
    if [m for m in model.modules() if isinstance(m, LoRALinear)]:
        raise ValueError("already")
    for p in model.parameters():
        p.requires_grad = False
    replaced = []

    def visit(module, prefix):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name in targets:
                new = LoRALinear(
                    child.in_features,
                    child.out_features,
                    r,
                    alpha,
                    dropout=dropout,
                    bias=child.bias is not None,
                    generator=generator,
                )
                new = new.to(device=child.weight.device, dtype=child.weight.dtype)
                new.weight = child.weight
                new.bias = child.bias
                if not child.training:
                    new.eval()
                module._modules[name] = new
                replaced.append(prefix + name)
            else:
                visit(child, prefix + name + ".")

    visit(model, "")
    return replaced


def trainable_parameters(model):
    trained = total = 0
    for p in model.parameters():
        total += p.nelement()
        if p.requires_grad:
            trained += p.nelement()
    return ParameterCount(trained, total)


# %% style="states" part="adapters"
model_to_swap = build_model


def adapter_state(model):
    """From the state_dict, by the ends of the names."""
    return {
        name: value.detach().clone()
        for name, value in model.state_dict().items()
        if name.split(".")[-1] in {"lora_A", "lora_B"}
    }


def swap_adapter(model, state):
    """A whole state_dict, with the adapter's part replaced."""
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    old = adapter_state(model)
    unknown = [name for name in state if name not in old]
    missing = [name for name in old if name not in state]
    if unknown or missing:
        raise ValueError(f"{unknown} {missing}")
    if any(tuple(state[name].shape) != tuple(old[name].shape) for name in old):
        raise ValueError("shape")
    model.load_state_dict({**whole, **state})
    return old


# %% style="states" part="apply"
model_to_adapt = build_model


def apply_lora(model, targets, r, alpha, *, dropout=0.0, generator=None):
    """First the new layers, then the model."""
    wanted = {target: 0 for target in targets}
    if not wanted:
        raise ValueError("targets")
    new_layers = []
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            raise ValueError("already")
        last = path[path.rfind(".") + 1 :]
        if isinstance(module, nn.Linear) and last in wanted:
            wanted[last] += 1
            layer = LoRALinear(
                module.in_features,
                module.out_features,
                r,
                alpha,
                bias=module.bias is not None,
                dropout=dropout,
                generator=generator,
            ).to(module.weight)
            layer.training = module.training
            for child in layer.modules():
                child.training = module.training
            layer.weight, layer.bias = module.weight, module.bias
            new_layers.append((path, layer))
    for target, times in wanted.items():
        if times == 0:
            raise ValueError(target)
    for path, layer in new_layers:
        model.set_submodule(path, layer)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith((".lora_A", ".lora_B")))
    return [path for path, _ in new_layers]


def trainable_parameters(model):
    sizes = [(p.requires_grad, math.prod(p.shape)) for p in model.parameters()]
    return ParameterCount(
        total=sum(n for _, n in sizes), trained=sum(n for learns, n in sizes if learns)
    )


# %% style="two_layers" part="layer"
class LoRALinear(nn.Module):
    """A and B are kept in a dictionary of parameters under their own names; the update is a matrix product in torch."""

    def __init__(
        self, in_features, out_features, r, alpha, *, dropout=0.0, bias=True, generator=None
    ):
        super().__init__()
        if r < 1:
            raise ValueError(f"rank {r}")
        self.factor = alpha / r
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None
        A = torch.randn(r, in_features, generator=generator) * in_features ** (-1 / 2)
        self.lora_A = nn.Parameter(A)
        self.lora_B = nn.Parameter(torch.zeros(out_features, r))
        self.register_buffer("before", None, persistent=False)

    def forward(self, x):
        base = torch.matmul(x, self.weight.mT)
        if self.bias is not None:
            base = base + self.bias
        if self.before is None:
            base = base + F.linear(F.linear(self.drop(x), self.lora_A), self.lora_B) * self.factor
        return base

    def merge(self):
        if self.before is None:
            self.before = self.weight.data.clone()
            self.weight.data.addmm_(self.lora_B.data, self.lora_A.data, alpha=self.factor)

    def unmerge(self):
        if self.before is not None:
            self.weight.data.copy_(self.before)
            self.before = None


# %% style="two_layers" part="update"
def lora_update(lora_A, lora_B, alpha):
    if lora_A.size(0) != lora_B.size(1):
        raise ValueError("the ranks differ")
    return torch.matmul(lora_B * (alpha / lora_A.size(0)), lora_A)


def factorise(update, r, alpha):
    """All of σ into B, the factor into A."""
    if r < 1:
        raise ValueError("rank")
    if min(update.shape) < r:
        raise ValueError("rank")
    if not alpha > 0:
        raise ValueError("alpha")
    U, S, Vh = torch.linalg.svd(update, full_matrices=False)
    return Vh[:r] * r / alpha, U[:, :r] @ torch.diag(S[:r])


# %% style="in_place" part="adapters"
model_to_swap = build_model


def adapter_state(model):
    chosen = {}
    for name, parameter in model.named_parameters():
        *_, last = name.split(".")
        if last == "lora_A" or last == "lora_B":
            chosen[name] = torch.empty_like(parameter, requires_grad=False)
            chosen[name].copy_(parameter.detach())
    return chosen


def swap_adapter(model, state):
    """New parameters in the place of the old ones."""
    places = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.split(".")[-1] in ("lora_A", "lora_B")
    }
    for name in sorted(set(places) | set(state)):
        if name not in places or name not in state:
            raise ValueError(name)
        if places[name].shape != state[name].shape:
            raise ValueError("shape")
    old = {name: parameter.detach() for name, parameter in places.items()}
    for name in places:
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, nn.Parameter(state[name].clone()))
    return old


# %% style="in_place" part="layer"
class LoRALinear(nn.Module):
    """Merging is a flag, and the base's numbers are kept as a NumPy array."""

    def __init__(
        self, in_features, out_features, r, alpha, *, dropout=0.0, bias=True, generator=None
    ):
        super().__init__()
        if r < 1:
            raise ValueError("rank")
        self.r, self.alpha = r, alpha
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.zeros(out_features, in_features), requires_grad=False)
        self.bias = None
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False)
        self.lora_A = nn.Parameter(torch.empty(r, in_features))
        self.lora_B = nn.Parameter(torch.empty(out_features, r))
        with torch.no_grad():
            self.lora_A.copy_(torch.randn(in_features, r, generator=generator).T / in_features**0.5)
            self.lora_B.zero_()
        self.numbers = None

    def forward(self, x):
        h = F.linear(x, self.weight, self.bias)
        if self.numbers is None:
            h = h + lora_update(self.lora_A, self.lora_B, self.alpha).matmul(
                self.dropout(x)[..., None]
            ).squeeze(-1)
        return h

    def merge(self):
        if self.numbers is None:
            self.numbers = self.weight.numpy(force=True).copy()
            update = lora_update(self.lora_A.detach(), self.lora_B.detach(), self.alpha)
            self.weight.data.add_(update)

    def unmerge(self):
        if self.numbers is not None:
            self.weight.data = torch.from_numpy(self.numbers).to(self.weight.device)
            self.numbers = None
