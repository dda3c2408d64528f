# %% style="loops" part="window"
def sliding_mask(query_positions, key_positions, window):
    """Cell by cell."""
    if window <= 0:
        raise ValueError("window")
    rows = []
    for q in query_positions.tolist():
        rows.append([q - window < k <= q for k in key_positions.tolist()])
    return torch.tensor(rows, dtype=torch.bool, device=query_positions.device)


# %% style="loops" part="cache"
def slot_positions(seen, window):
    """As they are written, one after the other."""
    if window < 1:
        raise ValueError("window")
    if seen < 0:
        raise ValueError("seen")
    slots = [0] * min(seen, window)
    for position in range(seen):
        slots[position % window] = position
    return torch.tensor(slots, dtype=torch.int64)


def store(cache, keys, values, window):
    held = {} if cache is None else {p: p % window for p in range(cache[2])[-window:]}
    past = 0 if cache is None else cache[2]
    columns = {}
    for slot in held.values():
        columns[slot] = cache[0][:, :, slot], cache[1][:, :, slot]
    for j in range(keys.shape[2]):
        columns[(past + j) % window] = keys[:, :, j], values[:, :, j]
    both = [torch.stack([columns[slot][i] for slot in sorted(columns)], dim=2) for i in (0, 1)]
    return *both, past + keys.shape[2]


# %% style="loops" part="attention"
class SlidingWindowAttention(nn.Module):
    """One position at a time through a list of all keys that were kept."""

    def __init__(self, d_model, num_heads, num_kv_heads, head_dim, rope_base, window):
        super().__init__()
        self.sizes = num_heads, num_kv_heads, head_dim
        self.base, self.window = rope_base, window
        self.q_proj = nn.Linear(d_model, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(d_model, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(d_model, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, d_model, bias=False)

    def forward(self, x, cache=None):
        num_heads, num_kv_heads, d = self.sizes
        outputs = []
        for j in range(x.shape[1]):
            here = x[:, j : j + 1]
            position = torch.tensor([cache[2] if cache else 0], device=x.device)
            q, k, v = (p(here).unflatten(2, (-1, d)).transpose(1, 2) for p in self._three())
            q, k = rotate(q, position, self.base), rotate(k, position, self.base)
            # One position at a time: what it overwrites is just out of its own window.
            cache = store(cache, k, v, self.window)
            heads = []
            for h in range(num_heads):
                shared = h * num_kv_heads // num_heads
                scores = q[:, h] @ cache[0][:, shared].mT / d**0.5
                heads.append(scores.softmax(dim=-1) @ cache[1][:, shared])
            outputs.append(self.o_proj(torch.cat(heads, dim=-1)))
        return torch.cat(outputs, dim=1), cache

    def _three(self):
        return self.q_proj, self.k_proj, self.v_proj


# %% style="loops" part="routing"
def route(logits, k):
    """The largest, then the largest of the others, and so on."""
    if k <= 0 or k > logits.shape[-1]:
        raise ValueError("k")
    left = logits.detach().clone()
    chosen = []
    for _ in range(k):
        best = left.argmax(dim=-1, keepdim=True)
        chosen.append(best)
        left = left.scatter(-1, best, -math.inf)
    experts = torch.cat(chosen, dim=-1)
    picked = logits.gather(-1, experts)
    raised = torch.exp(picked - picked[..., :1].detach())
    return raised / raised.sum(dim=-1, keepdim=True), experts


def load_balancing_loss(logits, k):
    tokens, number = logits.shape
    experts = route(logits, k)[1].tolist()
    total = 0.0
    for i in range(number):
        share = sum(row.count(i) for row in experts) / tokens
        probability = sum(logits[t].softmax(dim=0)[i] for t in range(tokens)) / tokens
        total = total + share * probability
    return number * total


# %% style="loops" part="experts"
class SparseMoE(nn.Module):
    """Token by token, each through its own experts."""

    def __init__(self, d_model, d_ff, num_experts, k):
        super().__init__()
        self.gate = nn.Linear(d_model, num_experts, bias=False)
        self.experts = nn.ModuleList([Expert(d_model, d_ff) for _ in range(num_experts)])
        self.k = k

    def forward(self, x):
        logits = x @ self.gate.weight.T
        weights, experts = route(logits, self.k)
        rows = []
        for b in range(x.shape[0]):
            row = []
            for t in range(x.shape[1]):
                parts = [
                    weights[b, t, j] * self.experts[e](x[b, t])
                    for j, e in enumerate(experts[b, t].tolist())
                ]
                row.append(sum(parts))
            rows.append(torch.stack(row))
        return torch.stack(rows), logits


# %% style="hugging_face" part="window"
def sliding_mask(query_positions, key_positions, window):
    """Two masks, one on the other."""
    if window < 1:
        raise ValueError("window")
    causal = key_positions[None, :] <= query_positions[:, None]
    return causal & (key_positions[None, :] > query_positions[:, None] - window)


# %% style="hugging_face" part="routing"
def route(logits, k):
    """The softmax over all first, then divided by the sum of the chosen."""
    if k < 1 or k > logits.size(-1):
        raise ValueError(f"k={k}")
    probabilities = F.softmax(logits, dim=-1)
    weights, experts = torch.topk(probabilities, k, dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True), experts


def load_balancing_loss(logits, k):
    """With one-hot vectors, as older versions of the library had it."""
    probabilities = F.softmax(logits, dim=-1)
    _, experts = torch.topk(probabilities, k, dim=-1)
    mask = F.one_hot(experts, logits.size(-1)).to(logits.dtype)
    per_expert = mask.mean(dim=0)
    return (per_expert * probabilities.mean(dim=0)[None]).sum() * logits.size(-1)


# %% style="hugging_face" part="experts"
class SparseMoE(nn.Module):
    """A mask of experts × places × tokens; experts without tokens are skipped."""

    def __init__(self, d_model, d_ff, num_experts, k):
        super().__init__()
        self.num_experts, self.k = num_experts, k
        self.gate = nn.Linear(d_model, num_experts, bias=False)
        self.experts = nn.ModuleList([Expert(d_model, d_ff) for _ in range(num_experts)])

    def forward(self, x):
        batch, length, width = x.shape
        vectors = x.reshape(-1, width)
        logits = self.gate(vectors)
        weights, experts = route(logits, self.k)
        mask = F.one_hot(experts, self.num_experts).permute(2, 1, 0)
        output = torch.zeros_like(vectors)
        for i in range(self.num_experts):
            place, token = torch.where(mask[i])
            if len(token) == 0:
                continue
            made = self.experts[i](vectors[token]) * weights[token, place, None]
            output = output.index_add(0, token, made)
        return output.reshape(batch, length, width), logits.reshape(batch, length, -1)


# %% style="hugging_face" part="model"
class MixtralBlock(nn.Module):
    """With the names of the library's code."""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SlidingWindowAttention(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.rope_theta,
            config.sliding_window,
        )
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.block_sparse_moe = SparseMoE(
            config.hidden_size,
            config.intermediate_size,
            config.num_local_experts,
            config.num_experts_per_tok,
        )

    def forward(self, x, cache=None):
        residual = x
        hidden_states, new_cache = self.self_attn(self.input_layernorm(x), cache)
        residual = residual + hidden_states
        hidden_states, router_logits = self.block_sparse_moe(
            self.post_attention_layernorm(residual)
        )
        return residual + hidden_states, new_cache, router_logits


class Mixtral(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MixtralBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def step(self, tokens, caches=None):
        caches = list(caches) if caches is not None else [None] * len(self.layers)
        routed = [None] * len(self.layers)
        hidden_states = F.embedding(tokens, self.embed_tokens.weight)
        for i in range(len(self.layers)):
            hidden_states, caches[i], routed[i] = self.layers[i](hidden_states, caches[i])
        logits = F.linear(self.norm(hidden_states), self.lm_head.weight)
        return Step(logits=logits, caches=caches, router_logits=routed)

    def forward(self, tokens):
        return self.step(tokens).logits


# %% style="in_order" part="cache"
def slot_positions(seen, window):
    """The last positions in order, then rolled."""
    if window < 1:
        raise ValueError("window must be at least 1")
    if seen < 0:
        raise ValueError("seen must be at least 0")
    last = torch.arange(max(0, seen - window), seen)
    return torch.roll(last, seen % window) if seen > window else last


def store(cache, keys, values, window):
    """Everything in the order of the text, cut, then sorted into the slots."""
    seen, positions = 0, torch.empty(0, dtype=torch.int64)
    if cache is not None:
        seen, positions = cache[2], slot_positions(cache[2], window)
        keys = torch.cat([cache[0], keys], dim=2)
        values = torch.cat([cache[1], values], dim=2)
    new = keys.shape[2] - len(positions)
    positions = torch.cat([positions, torch.arange(seen, seen + new)])
    latest = positions.argsort()[-window:]
    latest = latest[(positions[latest] % window).argsort()].to(keys.device)
    return keys[:, :, latest], values[:, :, latest], seen + new


# %% style="in_order" part="attention"
class SlidingWindowAttention(nn.Module):
    """The old keys put back into the order of the text, and a mask of two triangles."""

    def __init__(self, d_model, num_heads, num_kv_heads, head_dim, rope_base, window):
        super().__init__()
        self.head_dim, self.rope_base, self.window = head_dim, rope_base, window
        self.q_proj = nn.Linear(d_model, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(d_model, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(d_model, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, d_model, bias=False)

    def forward(self, x, cache=None):
        batch, new, _ = x.shape
        q = self.q_proj(x).view(batch, new, -1, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, new, -1, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, new, -1, self.head_dim).transpose(1, 2)
        seen = cache[2] if cache is not None else 0
        at = torch.arange(new, device=x.device) + seen
        q, k = rotate(q, at, self.rope_base), rotate(k, at, self.rope_base)
        kept = store(cache, k, v, self.window)
        if cache is not None:
            order = slot_positions(seen, self.window).argsort().to(x.device)
            k = torch.cat([cache[0][:, :, order], k], dim=2)
            v = torch.cat([cache[1][:, :, order], v], dim=2)
        old = k.shape[2] - new
        mask = torch.ones(new, old + new, dtype=torch.bool, device=x.device)
        mask = mask.tril(old).triu(old - self.window + 1)
        heads = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
        return self.o_proj(heads.transpose(1, 2).reshape(batch, new, -1)), kept


# %% style="sorted_tokens" part="experts"
class SparseMoE(nn.Module):
    """All pairs of a token and an expert sorted by expert, then split."""

    def __init__(self, d_model, d_ff, num_experts, k):
        super().__init__()
        self.k = k
        self.gate = nn.Linear(d_model, num_experts, bias=False)
        self.experts = nn.ModuleList(Expert(d_model, d_ff) for _ in range(num_experts))

    def forward(self, x):
        logits = self.gate(x)
        weights, chosen = route(logits, self.k)
        order = chosen.flatten().argsort(stable=True)
        tokens = order // self.k
        counts = torch.bincount(chosen.flatten(), minlength=len(self.experts)).tolist()
        pieces = x.flatten(0, 1)[tokens].split(counts)
        made = torch.cat(
            [expert(piece) for expert, piece in zip(self.experts, pieces, strict=True)]
        )
        back = torch.empty_like(made)
        back[order] = made * weights.flatten()[order, None]
        return back.view(*x.shape[:2], self.k, -1).sum(dim=2), logits


# %% style="sorted_tokens" part="routing"
def route(logits, k):
    if not 0 < k <= logits.shape[-1]:
        raise ValueError("k is not a number of experts")
    ordered, experts = logits.sort(dim=-1, descending=True)
    chosen = ordered[..., :k]
    return (chosen - chosen.logsumexp(dim=-1, keepdim=True)).exp(), experts[..., :k]


def load_balancing_loss(logits, k):
    """With a table of zeros and ones."""
    chosen = route(logits, k)[1]
    table = torch.zeros_like(logits).scatter_(1, chosen, 1.0).detach()
    return logits.shape[1] * table.mean(0) @ logits.softmax(1).mean(0)


# %% style="windows_gathered" part="attention"
class SlidingWindowAttention(nn.Module):
    """For each query the keys of its window alone are gathered; no score outside it is computed."""

    def __init__(self, d_model, num_heads, num_kv_heads, head_dim, rope_base, window):
        super().__init__()
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        self.rope_base, self.window = rope_base, window
        self.q_proj = nn.Linear(d_model, num_heads * head_dim, bias=False)
        self.k_proj, self.v_proj = (
            nn.Linear(d_model, num_kv_heads * head_dim, bias=False) for _ in "kv"
        )
        self.o_proj = nn.Linear(num_heads * head_dim, d_model, bias=False)

    def forward(self, x, cache=None):
        past = cache[2] if cache else 0
        now = torch.arange(past, past + x.shape[1], device=x.device)
        q = rearrange(
            self.q_proj(x), "b n (kv g d) -> b kv g n d", kv=self.num_kv_heads, d=self.head_dim
        )
        k, v = (
            rearrange(p(x), "b n (kv d) -> b kv n d", d=self.head_dim)
            for p in (self.k_proj, self.v_proj)
        )
        q = rotate(q.flatten(1, 2), now, self.rope_base).view(q.shape)
        k = rotate(k, now, self.rope_base)
        # Where each position of the past or of this piece stands among the old slots and the new keys.
        place = {p: i for i, p in enumerate(now.tolist(), start=min(past, self.window))}
        place |= {p: p % self.window for p in range(past)[-self.window :]}
        keys = torch.cat([cache[0], k], dim=2) if cache else k
        values = torch.cat([cache[1], v], dim=2) if cache else v
        outputs = []
        for j, position in enumerate(now.tolist()):
            seen = [place[p] for p in range(max(0, position - self.window + 1), position + 1)]
            scores = torch.einsum("bkgd,bknd->bkgn", q[:, :, :, j], keys[:, :, seen])
            weights = (scores / math.sqrt(self.head_dim)).softmax(dim=-1)
            outputs.append(torch.einsum("bkgn,bknd->bkgd", weights, values[:, :, seen]).flatten(1))
        return self.o_proj(torch.stack(outputs, dim=1)), store(cache, k, v, self.window)


# %% style="windows_gathered" part="window"
def sliding_mask(query_positions, key_positions, window):
    if not window >= 1:
        raise ValueError("a window has at least one position")
    ages = torch.sub(query_positions.unsqueeze(1), key_positions.unsqueeze(0))
    return torch.logical_and(ages.ge(0), ages.lt(window))
