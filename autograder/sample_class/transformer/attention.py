# %% style="einsum" part="attention"
def scaled_dot_product_attention(q, k, v, mask=None):
    if q.shape[-1] != k.shape[-1]:
        raise ValueError("q and k need the same d_k")
    if k.shape[-2] != v.shape[-2]:
        raise ValueError("k and v need the same number of keys")
    scores = torch.einsum("...qd,...kd->...qk", q, k) * q.shape[-1] ** -0.5
    if mask is None:
        return torch.einsum("...qk,...kd->...qd", scores.softmax(-1), v)
    exp = torch.where(
        mask, scores - scores.where(mask, scores.new_tensor(-1e300)).amax(-1, keepdim=True), 0.0
    ).exp()
    exp = exp * mask
    total = exp.sum(-1, keepdim=True)
    return torch.einsum("...qk,...kd->...qd", exp / torch.where(total == 0, 1.0, total), v)


# %% style="einsum" part="masks"
def causal_mask(length, device=None):
    if length < 0:
        raise ValueError("length must not be negative")
    i = torch.arange(length, device=device)
    return i[:, None] >= i[None, :]


def padding_mask(lengths, max_length):
    if lengths.min() < 0 or lengths.max() > max_length:
        raise ValueError("bad lengths")
    return torch.arange(max_length, device=lengths.device).expand(
        len(lengths), 1, -1
    ) < lengths.reshape(-1, 1, 1)


# %% style="loops" part="attention"
def scaled_dot_product_attention(q, k, v, mask=None):
    """One query at a time, in plain sums."""
    if q.size(-1) != k.size(-1):
        raise ValueError(f"d_k differs: {q.size(-1)} and {k.size(-1)}")
    if k.size(-2) != v.size(-2):
        raise ValueError(f"{k.size(-2)} keys, {v.size(-2)} values")
    batch = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    if mask is not None:
        mask = mask.expand(*batch, q.shape[-2], k.shape[-2])
    q, k, v = (t.expand(*batch, *t.shape[-2:]) for t in (q, k, v))
    rows = []
    for i in range(q.shape[-2]):
        scores = torch.stack(
            [
                (q[..., i, :] * k[..., j, :]).sum(-1) / math.sqrt(q.size(-1))
                for j in range(k.shape[-2])
            ],
            -1,
        )
        if mask is not None:
            allowed = mask[..., i, :]
            scores = torch.where(allowed, scores, torch.full_like(scores, float("-inf")))
            dead = ~allowed.any(-1, keepdim=True)
            scores = torch.where(dead, torch.zeros_like(scores), scores)
        top = scores.max(-1, keepdim=True).values
        weights = (scores - top).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        if mask is not None:
            weights = torch.where(dead, torch.zeros_like(weights), weights)
        rows.append((weights[..., None] * v).sum(-2))
    return torch.stack(rows, -2)


# %% style="loops" part="masks"
def causal_mask(length, device=None):
    if length < 0:
        raise ValueError
    mask = torch.zeros(length, length, dtype=torch.bool, device=device)
    for i in range(length):
        for j in range(i + 1):
            mask[i, j] = True
    return mask


def padding_mask(lengths, max_length):
    mask = torch.zeros(len(lengths), 1, max_length, dtype=torch.bool, device=lengths.device)
    for b, n in enumerate(lengths.tolist()):
        if not 0 <= n <= max_length:
            raise ValueError(f"length {n}")
        mask[b, 0, :n] = True
    return mask


# %% style="loops" part="multi_head"
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, num_heads):
        super().__init__()
        if num_heads <= 0 or d_model % num_heads != 0:
            raise ValueError("num_heads must divide d_model")
        self.h = num_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.output_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, queries, keys, values, mask=None):
        q, k, v = self.q_proj(queries), self.k_proj(keys), self.v_proj(values)
        d = q.shape[-1] // self.h
        heads = []
        for i in range(self.h):
            part = slice(i * d, (i + 1) * d)
            heads.append(
                scaled_dot_product_attention(q[..., part], k[..., part], v[..., part], mask)
            )
        return self.output_proj(torch.cat(heads, dim=-1))


# %% style="in_place" part="attention"
def scaled_dot_product_attention(q, k, v, mask=None):
    d_k = k.shape[-1]
    if q.shape[-1] != d_k:
        raise ValueError(f"d_k: {q.shape[-1]} against {d_k}")
    if v.shape[-2] != k.shape[-2]:
        raise ValueError("the keys and the values are not equally many")
    scores = torch.matmul(q / math.sqrt(d_k), k.mT)
    if mask is not None:
        mask = mask.broadcast_to(scores.shape) if mask.dim() <= scores.dim() else mask
        scores.masked_fill_(mask.logical_not(), torch.finfo(scores.dtype).min)
    scores = scores - scores.max(dim=-1, keepdim=True).values
    weights = scores.exp()
    if mask is not None:
        weights = weights * mask
    return (weights @ v) / weights.sum(-1, keepdim=True).clamp_min(
        1e-300 if weights.dtype == torch.float64 else 1e-38
    )


# %% style="in_place" part="multi_head"
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, num_heads):
        super().__init__()
        if num_heads < 1:
            raise ValueError("at least one head")
        self.d_k, rest = divmod(d_model, num_heads)
        if rest:
            raise ValueError("d_model must be a multiple of num_heads")
        for name in ("q_proj", "k_proj", "v_proj", "output_proj"):
            setattr(self, name, nn.Linear(d_model, d_model, bias=False))

    def forward(self, queries, keys, values, mask=None):
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.d_k)).movedim(-2, -3)
            for proj, x in ((self.q_proj, queries), (self.k_proj, keys), (self.v_proj, values))
        )
        if mask is not None:
            mask = mask.unsqueeze(-3)
        out = torch.empty_like(q[..., :0, :])
        out = scaled_dot_product_attention(q, k, v, mask)
        return self.output_proj(out.movedim(-3, -2).flatten(-2))


# %% style="einops" part="multi_head"
from einops import rearrange


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model: int, num_heads: int):
        super().__init__()
        if not (num_heads > 0 and d_model % num_heads == 0):
            raise ValueError(f"{d_model=} {num_heads=}")
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.output_proj = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )

    def forward(self, queries, keys, values, mask=None):
        def split(x):
            return rearrange(x, "b n (h d) -> (b h) n d", h=self.num_heads)

        if mask is not None:
            mask = mask.expand(queries.shape[0], queries.shape[1], keys.shape[1])
            mask = mask.repeat_interleave(self.num_heads, dim=0)
        out = scaled_dot_product_attention(
            split(self.q_proj(queries)), split(self.k_proj(keys)), split(self.v_proj(values)), mask
        )
        return self.output_proj(rearrange(out, "(b h) n d -> b n (h d)", h=self.num_heads))


# %% style="helpers" part="attention"
def _softmax(x):
    # Written out, with the largest score taken off for safety.
    e = (x - x.amax(dim=-1, keepdim=True)).exp()
    return e / e.sum(dim=-1, keepdim=True)


def scaled_dot_product_attention(q, k, v, mask=None):
    if q.shape[-1] != k.shape[-1]:
        raise ValueError("the d_k of queries and keys must be the same")
    if k.shape[-2] != v.shape[-2]:
        raise ValueError("there must be as many values as keys")
    attention_scores = (q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1) / torch.tensor(
        float(q.shape[-1])
    ).sqrt()
    if mask is None:
        return _softmax(attention_scores) @ v
    usable = mask | ~mask.any(-1, keepdim=True)
    weights = _softmax(attention_scores.masked_fill(~usable, float("-inf")))
    return (weights * mask) @ v
