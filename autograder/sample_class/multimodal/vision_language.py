# %% style="by_hand" part="cross"
class CrossAttention(nn.Module):
    """The formula, written out head by head."""

    def __init__(self, d_model, d_image, num_heads):
        super().__init__()
        if d_model % num_heads != 0:
            raise ValueError("num_heads")
        self.heads = num_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_image, d_model, bias=False)
        self.v_proj = nn.Linear(d_image, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, picture):
        if x.shape[0] != picture.shape[0]:
            raise ValueError("batch")
        q, k, v = self.q_proj(x), self.k_proj(picture), self.v_proj(picture)
        found = []
        size = q.shape[-1] // self.heads
        for h in range(self.heads):
            mine = slice(h * size, (h + 1) * size)
            scores = q[..., mine] @ k[..., mine].transpose(1, 2) / math.sqrt(size)
            found.append(torch.softmax(scores, dim=-1) @ v[..., mine])
        return self.out_proj(torch.cat(found, dim=-1))


# %% style="by_hand" part="gate"
class GatedBlock(nn.Module):
    def __init__(self, d_model, d_image, num_heads):
        super().__init__()
        self.attention_gate = nn.Parameter(torch.tensor(0.0))
        self.mlp_gate = nn.Parameter(torch.tensor(0.0))
        self.attention = CrossAttention(d_model, d_image, num_heads)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model)
        )
        self.attention_norm, self.mlp_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, x, picture):
        a, b = self.attention_gate.exp(), self.mlp_gate.exp()
        first = (a - 1 / a) / (a + 1 / a)  # tanh, as it is defined
        second = (b - 1 / b) / (b + 1 / b)
        seen = x + first * self.attention(self.attention_norm(x), picture)
        return seen + second * self.mlp(self.mlp_norm(seen))


# %% style="by_hand" part="prefix"
def prefix_mask(patches, length):
    """One place after another."""
    n = patches + length
    mask = torch.zeros(n, n, dtype=torch.bool, device=device)
    for i in range(n):
        for j in range(n):
            if j < patches or (i >= patches and j <= i):
                mask[i, j] = True
    return mask


class Llava(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.projection = nn.Linear(sizes.d_image, sizes.d_model)
        self.language = LanguageModel(sizes)

    def forward(self, tokens, picture):
        _, patches, _ = picture.shape
        _, length = tokens.shape
        words = self.language.tokens(tokens)
        words = words + self.language.positions(torch.arange(length, device=tokens.device))
        patches_as_words = picture @ self.projection.weight.T + self.projection.bias
        x = torch.cat((patches_as_words, words), 1)
        for number in range(len(self.language.blocks)):
            x = self.language.blocks[number](x, prefix_mask(patches, length))
        return self.language.norm(x) @ self.language.tokens.weight.T


# %% style="by_hand" part="loss"
def answer_labels(tokens, questions, patches):
    rows = []
    for row, question in zip(tokens.tolist(), questions.tolist(), strict=True):
        labels = [IGNORE] * patches
        for place, token in enumerate(row):
            labels.append(IGNORE if place < question or token == PADDING else token)
        rows.append(labels)
    return torch.tensor(rows, dtype=torch.int64, device=tokens.device)


def answer_loss(logits, labels):
    if list(logits.shape[:2]) != list(labels.shape):
        raise ValueError("shape")
    total, count = 0, 0
    for b in range(labels.shape[0]):
        for i in range(1, labels.shape[1]):
            if labels[b, i] != IGNORE:
                z = logits[b, i - 1]
                total = total + torch.logsumexp(z, dim=0) - z[labels[b, i]]
                count += 1
    if count == 0:
        raise ValueError("label")
    return total / count


# %% style="by_hand" part="looking"
def derangement(n, generator):
    """Draw until nobody stays."""
    if n <= 1:
        raise ValueError("n = " + str(n))
    while True:
        order = torch.randperm(n, generator=generator)
        if all(order[i] != i for i in range(n)):
            return order


def blind_accuracy(questions, answers):
    if questions.shape != answers.shape:
        raise ValueError("shape")
    if questions.numel() == 0:
        raise ValueError("question")
    counts = {}
    for q, a in zip(questions.tolist(), answers.tolist(), strict=True):
        counts.setdefault(q, {})
        counts[q][a] = counts[q].get(a, 0) + 1
    return sum(max(c.values()) for c in counts.values()) / len(questions)


# %% style="einsum" part="cross"
class CrossAttention(nn.Module):
    def __init__(self, d_model, d_image, num_heads):
        super().__init__()
        self.size, rest = divmod(d_model, num_heads)
        if rest:
            raise ValueError("num_heads")
        for name, width in [
            ("q_proj", d_model),
            ("k_proj", d_image),
            ("v_proj", d_image),
            ("out_proj", d_model),
        ]:
            setattr(self, name, nn.Linear(width, d_model, False))

    def forward(self, x, picture):
        if x.size(0) != picture.size(0):
            raise ValueError("batch")
        q = self.q_proj(x).unflatten(2, (-1, self.size))
        k = self.k_proj(picture).unflatten(2, (-1, self.size))
        v = self.v_proj(picture).unflatten(2, (-1, self.size))
        weights = torch.einsum("bthd,bnhd->bhtn", q, k).div(self.size**0.5).softmax(-1)
        return self.out_proj(torch.einsum("bhtn,bnhd->bthd", weights, v).flatten(2))


# %% style="einsum" part="flamingo"
class Flamingo(nn.Module):
    """Frozen parameter by parameter."""

    def __init__(self, sizes):
        super().__init__()
        self.adapters = nn.ModuleList()
        self.language = LanguageModel(sizes)
        for parameter in self.language.parameters():
            parameter.requires_grad = False
        for _ in self.language.blocks:
            self.adapters.append(GatedBlock(sizes.d_model, sizes.d_image, sizes.num_heads))

    def forward(self, tokens, picture):
        length = tokens.shape[1]
        x = self.language.embed(tokens)
        for i in range(len(self.adapters)):
            x = self.adapters[i](x, picture)
            x = self.language.blocks[i](x, causal_mask(length))
        return self.language.head(x)


# %% style="einsum" part="prefix"
def prefix_mask(patches, length):
    """Four corners: all, nothing, all, a triangle."""
    n = patches + length
    mask = torch.ones(n, n, dtype=torch.bool, device=device)
    mask[:patches, patches:] = False
    mask[patches:, patches:] = causal_mask(length)
    return mask


class Llava(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.language = LanguageModel(sizes)
        self.projection = nn.Linear(sizes.d_image, sizes.d_model)

    def forward(self, tokens, picture):
        words = self.language.embed(tokens)
        patches = torch.einsum("bnf,df->bnd", picture, self.projection.weight)
        patches = patches + self.projection.bias
        x = torch.cat([patches, words], dim=-2)
        mask = prefix_mask(patches.size(1), words.size(1))
        for block in self.language.blocks:
            x = block(x, mask=mask)
        return self.language.head(x)


# %% style="einsum" part="loss"
def answer_labels(tokens, questions, patches):
    batch, length = tokens.shape
    labels = torch.full((batch, patches + length), IGNORE, dtype=torch.int64, device=tokens.device)
    for row in range(batch):
        begin = int(questions[row])
        answer = tokens[row, begin:]
        labels[row, patches + begin :] = torch.where(answer == PADDING, IGNORE, answer)
    return labels


def answer_loss(logits, labels):
    """Log-probabilities, gathered and averaged."""
    if labels.dim() != 2 or logits.shape[:2] != labels.shape:
        raise ValueError("shape")
    following = labels[:, 1:]
    kept = following.ne(IGNORE)
    if not kept.any():
        raise ValueError("label")
    log_probabilities = logits[:, :-1].log_softmax(-1)
    picked = log_probabilities.gather(-1, following.clamp(min=0)[..., None])[..., 0]
    return -(picked * kept).sum() / kept.sum()


# %% style="einsum" part="looking"
def derangement(n, generator):
    """A permutation, in which whoever stayed gives their number to a neighbour."""
    if n < 2:
        raise ValueError(f"n = {n}")
    order = torch.randperm(n, generator=generator)
    for i in range(n):
        if order[i] == i:
            j = (i + 1) % n
            order[i], order[j] = order[j].item(), order[i].item()
    return order


def blind_accuracy(questions, answers):
    if len(questions) != len(answers):
        raise ValueError("shape")
    if len(questions) == 0:
        raise ValueError("no question")
    q = questions.unique(return_inverse=True)[1]
    a = answers.unique(return_inverse=True)[1]
    table = torch.zeros(int(q.max()) + 1, int(a.max()) + 1, device=q.device)
    table.index_put_((q, a), torch.ones(len(q), device=q.device), accumulate=True)
    return table.max(dim=1).values.sum() / table.sum()


# %% style="torchs_own" part="cross"
class CrossAttention(nn.Module):
    """torch's attention function, given all four matrices."""

    def __init__(self, d_model, d_image, num_heads):
        super().__init__()
        if d_model % num_heads:
            raise ValueError("num_heads")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_image, d_model, bias=False)
        self.v_proj = nn.Linear(d_image, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, picture):
        if len(picture) != len(x):
            raise ValueError("batch")
        text_first, picture_first = x.transpose(0, 1), picture.transpose(0, 1)
        found, _ = F.multi_head_attention_forward(
            text_first,
            picture_first,
            picture_first,
            embed_dim_to_check=x.shape[-1],
            num_heads=self.num_heads,
            in_proj_weight=None,
            in_proj_bias=None,
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=self.out_proj.weight,
            out_proj_bias=None,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
        )
        return found.transpose(0, 1)


# %% style="torchs_own" part="gate"
class GatedBlock(nn.Module):
    """Both branches in one loop."""

    def __init__(self, d_model, d_image, num_heads):
        super().__init__()
        for branch in ("attention", "mlp"):
            setattr(self, f"{branch}_norm", nn.LayerNorm(d_model))
            setattr(self, f"{branch}_gate", nn.Parameter(torch.zeros([])))
        self.attention = CrossAttention(d_model, d_image, num_heads)
        self.mlp = mlp(d_model)

    def forward(self, x, picture):
        branches = [
            (self.attention_gate, lambda y: self.attention(self.attention_norm(y), picture)),
            (self.mlp_gate, lambda y: self.mlp(self.mlp_norm(y))),
        ]
        for gate, branch in branches:
            x = torch.addcmul(x, gate.tanh(), branch(x))
        return x


# %% style="torchs_own" part="looking"
def derangement(n, generator):
    """A rotation by a random number of places."""
    if n < 2:
        raise ValueError(f"there is none of n = {n}")
    step = torch.randint(1, n, (1,), generator=generator)
    return (torch.arange(n) + step) % n


def blind_accuracy(questions, answers):
    if questions.numel() != answers.numel():
        raise ValueError("shape")
    if not questions.numel():
        raise ValueError("question")
    pairs = torch.stack([questions, answers], dim=1)
    kinds, counts = pairs.unique(dim=0, return_counts=True)
    best = {}
    for q, count in zip(kinds[:, 0].tolist(), counts.tolist(), strict=True):
        best[q] = max(count, best.get(q, 0))
    return torch.tensor(sum(best.values()) / questions.numel())


# %% style="recursive" part="flamingo"
class Flamingo(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.language = LanguageModel(sizes)
        self.adapters = nn.ModuleList(
            [GatedBlock(sizes.d_model, sizes.d_image, sizes.num_heads)]
            + [
                GatedBlock(sizes.d_model, sizes.d_image, sizes.num_heads)
                for _ in range(sizes.num_layers - 1)
            ]
            if sizes.num_layers
            else []
        )
        self.language.requires_grad_(False)

    def _after(self, depth, tokens, picture):
        if depth == 0:
            return self.language.embed(tokens)
        below = self._after(depth - 1, tokens, picture)
        causal = causal_mask(tokens.shape[1])
        return self.language.blocks[depth - 1](self.adapters[depth - 1](below, picture), causal)

    def forward(self, tokens, picture):
        return self.language.head(self._after(len(self.adapters), tokens, picture))


# %% style="recursive" part="prefix"
def prefix_mask(patches, length):
    """The patches are moved to one time, the words count on from it."""
    times = torch.cat([torch.zeros(patches), torch.arange(1, length + 1)]).to(device)
    return times[None, :] <= times[:, None]


class Llava(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.language = LanguageModel(sizes)
        self.projection = nn.Linear(sizes.d_image, sizes.d_model)

    def forward(self, tokens, picture):
        batch, patches, _ = picture.shape
        width = self.projection.out_features
        x = picture.new_empty(batch, patches + tokens.shape[1], width)
        x[:, :patches] = self.projection(picture)
        x[:, patches:] = self.language.embed(tokens)
        for block in self.language.blocks:
            x = block(x, prefix_mask(patches, tokens.shape[1]))
        return self.language.head(x)


# %% style="recursive" part="loss"
def answer_labels(tokens, questions, patches):
    """Sets what is not learned in a copy."""
    labels = tokens.clone().long()
    labels[tokens == PADDING] = IGNORE
    labels[torch.arange(tokens.shape[1], device=tokens.device) < questions.unsqueeze(1)] = IGNORE
    front = torch.ones_like(tokens[:, :1]).repeat(1, patches) * IGNORE
    return torch.cat([front, labels], dim=1)


def answer_loss(logits, labels):
    """The labels are shifted, not the logits."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError("shape")
    shifted = labels.roll(-1, dims=1)
    shifted[:, -1] = IGNORE
    chosen = shifted != IGNORE
    if chosen.sum() == 0:
        raise ValueError("label")
    return F.nll_loss(logits[chosen].log_softmax(-1), shifted[chosen])


# %% style="recursive" part="gate"
class GatedBlock(nn.Module):
    def __init__(self, d_model, d_image, num_heads):
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model)
        self.mlp_norm = nn.LayerNorm(d_model)
        self.mlp = mlp(d_model)
        self.attention = CrossAttention(d_model, d_image, num_heads)
        self.register_parameter("attention_gate", nn.Parameter(torch.zeros(1).squeeze()))
        self.register_parameter("mlp_gate", nn.Parameter(torch.zeros(1).squeeze()))

    def forward(self, x, picture):
        x = torch.add(
            x, self.attention(self.attention_norm(x), picture) * self.attention_gate.tanh()
        )
        normed = F.layer_norm(x, x.shape[-1:], self.mlp_norm.weight, self.mlp_norm.bias)
        return x + self.mlp(normed) * (2 * torch.sigmoid(2 * self.mlp_gate) - 1)


# %% style="one_of_each" part="cross"
class CrossAttention(nn.Module):
    """Each picture with its text, alone, through the given attention."""

    def __init__(self, d_model, d_image, num_heads):
        super().__init__()
        if num_heads * (d_model // num_heads) != d_model:
            raise ValueError("num_heads")
        self.num_heads = num_heads
        self.q_proj, self.out_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(d_image, d_model, bias=False) for _ in range(2))

    def forward(self, x, picture):
        if len(x) != len(picture):
            raise ValueError("batch")
        rows = []
        for text, patches in zip(x, picture, strict=True):
            q, k, v = self.q_proj(text), self.k_proj(patches), self.v_proj(patches)
            rows.append(attend(q[None], k[None], v[None], self.num_heads)[0])
        return self.out_proj(torch.stack(rows))


# %% style="one_of_each" part="prefix"
def prefix_mask(patches, length):
    places = torch.arange(patches + length, device=device)
    return (places <= places[:, None]) | (places < patches)


class Llava(nn.Module):
    """Patches and words in two lists until the blocks need them together."""

    def __init__(self, sizes):
        super().__init__()
        self.projection = nn.Linear(sizes.d_image, sizes.d_model)
        self.language = LanguageModel(sizes)

    def forward(self, tokens, picture):
        patches = [self.projection(patch) for patch in picture.unbind(1)]
        words = self.language.embed(tokens).unbind(1)
        x = torch.stack([*patches, *words], dim=1)
        mask = prefix_mask(len(patches), len(words))
        for block in self.language.blocks:
            x = block(x, mask)
        return self.language.head(x)


# %% style="one_of_each" part="looking"
def derangement(n, generator):
    """Sattolo's shuffle: each changes places with one before it, never with itself."""
    if n < 2:
        raise ValueError("n = 1 or less")
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        j = int(torch.randint(i, (), generator=generator))
        order[i], order[j] = order[j], order[i]
    return torch.tensor(order)


def blind_accuracy(questions, answers):
    if tuple(questions.shape) != tuple(answers.shape):
        raise ValueError("shape")
    if len(questions) < 1:
        raise ValueError("question")
    right = 0.0
    for q in set(questions.tolist()):
        right += (answers[questions == q].mode().values == answers[questions == q]).sum().item()
    return right / len(questions)
