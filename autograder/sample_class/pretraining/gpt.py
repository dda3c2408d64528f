# %% style="loops" part="loss"
def causal_lm_loss(logits, tokens, mask=None):
    """One text and one token at a time."""
    vocab = logits.shape[-1]
    if tuple(tokens.shape) != tuple(logits.shape[:-1]):
        raise ValueError("tokens and logits do not match")
    if mask is not None and tuple(mask.shape) != tuple(tokens.shape):
        raise ValueError("mask and tokens do not match")
    length = tokens.shape[-1]
    losses = []
    for text in range(tokens.numel() // length if length else 0):
        row = logits.reshape(-1, length, vocab)[text]
        ids = tokens.reshape(-1, length)[text]
        for t in range(1, length):
            if mask is None or mask.reshape(-1, length)[text, t]:
                losses.append(torch.logsumexp(row[t - 1], dim=0) - row[t - 1, ids[t]])
    if not losses:
        raise ValueError("nothing to predict")
    return sum(losses) / len(losses)


# %% style="loops" part="attention"
class CausalSelfAttention(nn.Module):
    """One head and one query at a time: no mask is needed where a query is given only what it may see."""

    def __init__(self, d_model, num_heads):
        super().__init__()
        if num_heads <= 0 or d_model % num_heads != 0:
            raise ValueError(f"{num_heads} is no good num_heads for {d_model}")
        self.heads, self.width = num_heads, d_model // num_heads
        self.qkv_proj = nn.Linear(d_model, 3 * d_model)
        self.output_proj = nn.Linear(d_model, d_model)

    def forward(self, x, cache=None):
        queries, keys, values = self.qkv_proj(x).split(x.shape[-1], dim=-1)
        all_keys, all_values, outputs = [], [], []
        for h in range(self.heads):
            mine = slice(h * self.width, (h + 1) * self.width)
            q, k, v = queries[..., mine], keys[..., mine], values[..., mine]
            if cache is not None:
                k = torch.cat((cache[0][:, h], k), 1)
                v = torch.cat((cache[1][:, h], v), 1)
            past = k.shape[1] - q.shape[1]
            rows = []
            for i in range(q.shape[1]):
                seen = past + i + 1
                scores = (q[:, i : i + 1] * k[:, :seen]).sum(-1) / self.width**0.5
                rows.append((scores.softmax(-1).unsqueeze(-1) * v[:, :seen]).sum(1))
            outputs.append(torch.stack(rows, dim=1))
            all_keys.append(k)
            all_values.append(v)
        out = self.output_proj(torch.cat(outputs, dim=-1))
        return out, (torch.stack(all_keys, 1), torch.stack(all_values, 1))


# %% style="loops" part="generate"
def choose(logits, temperature=1.0, top_k=None, generator=None):
    if temperature < 0:
        raise ValueError("temperature < 0")
    if top_k is not None and top_k <= 0:
        raise ValueError("top_k <= 0")
    if temperature == 0:
        return torch.stack([row.argmax() for row in logits])
    if generator is None:
        raise ValueError("a generator, please")
    chosen = []
    for row in logits:
        row = row.cpu()
        order = sorted(range(len(row)), key=lambda i: -row[i].item())[:top_k]
        weights = torch.softmax(row[order] / temperature, dim=0)
        chosen.append(order[torch.multinomial(weights, 1, generator=generator).item()])
    return torch.tensor(chosen, device=logits.device)


@torch.no_grad()
def generate(
    step,
    prompt,
    new_tokens,
    block_size,
    *,
    temperature=1.0,
    top_k=None,
    generator=None,
    use_cache=True,
):
    """What is still to be read is kept apart from the text."""
    if prompt.shape[1] < 1:
        raise ValueError("the prompt is empty")
    if new_tokens < 0:
        raise ValueError("new_tokens < 0")
    text = prompt
    unread, cache = prompt[:, max(0, prompt.shape[1] - block_size) :], None
    for _ in range(new_tokens):
        logits, after = step(unread, cache)
        token = choose(logits[:, -1, :], temperature, top_k, generator)
        text = torch.cat((text, token.unsqueeze(1)), 1)
        if use_cache and text.shape[1] <= block_size:
            unread, cache = text[:, -1:], after
        else:
            unread, cache = text[:, -block_size:], None
    return text


# %% style="loops" part="classify"
def classification_tokens(texts, start, delimiter, extract):
    if not texts:
        raise ValueError("no texts")
    result = [start]
    for i, text in enumerate(texts):
        if i > 0:
            result.append(delimiter)
        for token in text:
            result.append(token)
    result.append(extract)
    return result


class ClassificationHead(nn.Module):
    def __init__(self, d_model, num_classes):
        super().__init__()
        self.output = nn.Linear(d_model, num_classes, bias=False)

    def forward(self, hidden, lengths):
        rows = []
        for text, length in zip(hidden, lengths.tolist()):
            if not 1 <= length <= len(text):
                raise ValueError("lengths out of range")
            rows.append(text[length - 1])
        return self.output(torch.stack(rows))


def fine_tuning_loss(class_logits, labels, lm_logits, tokens, lengths, lm_weight=0.5):
    real = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
    for row, length in enumerate(lengths.tolist()):
        real[row, :length] = True
    classes = -class_logits.log_softmax(-1)[range(len(labels)), labels].mean()
    return classes + lm_weight * causal_lm_loss(lm_logits, tokens, real)


# %% style="loops" part="prompts"
def build_prompt(task, examples, query, shots):
    prompt, left = "", shots
    if task != "":
        prompt += task + "\n"
    if left < 0:
        raise ValueError("negative shots")
    for question, answer in examples:
        if left == 0:
            break
        if question == query:
            continue
        prompt += question + " => " + answer + "\n"
        left -= 1
    if left > 0:
        raise ValueError("not enough examples for so many shots")
    return prompt + query + " =>"


def fill_context(task, examples, query, max_tokens, count_tokens):
    """From the most shots down to none."""
    shots = sum(question != query for question, _ in examples)
    while shots >= 0:
        prompt = build_prompt(task, examples, query, shots)
        if count_tokens(prompt) <= max_tokens:
            return prompt
        shots -= 1
    raise ValueError("even without examples there is no room: max_tokens")


# %% style="one_hot" part="loss"
def causal_lm_loss(logits, tokens, mask=None):
    if tokens.shape != logits.shape[:-1]:
        raise ValueError(f"tokens {tokens.shape}, logits {logits.shape}")
    weights = torch.ones(tokens.shape, dtype=logits.dtype, device=logits.device)
    if mask is not None:
        if mask.shape != tokens.shape:
            raise ValueError(f"mask {mask.shape}, tokens {tokens.shape}")
        weights = mask.to(logits.dtype)
    weights = weights[..., 1:]
    if weights.sum() == 0:
        raise ValueError("no token is left to predict")
    targets = torch.where(weights > 0, tokens[..., 1:], torch.zeros_like(tokens[..., 1:]))
    one_hot = F.one_hot(targets, logits.shape[-1]).to(logits.dtype)
    log_probs = torch.log_softmax(logits[..., :-1, :], dim=-1)
    return -torch.einsum("...tv,...tv,...t->...", log_probs, one_hot, weights).sum() / weights.sum()


# %% style="one_hot" part="attention"
class CausalSelfAttention(nn.Module):
    def __init__(self, d_model, num_heads):
        super().__init__()
        if num_heads < 1:
            raise ValueError("num_heads must be positive")
        if d_model % num_heads:
            raise ValueError("num_heads must divide d_model")
        self.h = num_heads
        self.qkv_proj = nn.Linear(d_model, 3 * d_model)
        self.output_proj = nn.Linear(d_model, d_model)

    def forward(self, x, cache=None):
        weight = self.qkv_proj.weight.unflatten(0, (3, self.h, -1))
        bias = self.qkv_proj.bias.unflatten(0, (3, self.h, -1))
        q, k, v = torch.einsum("bnd,khed->kbhne", x, weight) + bias[:, None, :, None]
        past = 0
        if cache:
            past = cache[0].size(-2)
            k = torch.cat([cache[0], k], dim=-2)
            v = torch.cat([cache[1], v], dim=-2)
        here = past + torch.arange(x.size(1), device=x.device)
        there = torch.arange(k.size(-2), device=x.device)
        scores = torch.einsum("bhqe,bhke->bhqk", q, k) * q.size(-1) ** -0.5
        scores = scores.masked_fill(there > here[:, None], float("-inf"))
        out = torch.einsum("bhqk,bhke->bqhe", scores.softmax(-1), v).flatten(2)
        return self.output_proj(out), (k, v)


# %% style="one_hot" part="model"
def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class Block(nn.Module):
    def __init__(self, d_model, num_heads):
        super().__init__()
        self.attention = CausalSelfAttention(d_model, num_heads)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)

    def forward(self, x, cache=None):
        out, new = self.attention(self.norm1(x), cache)
        out += x
        last = self.linear2(gelu(self.linear1(self.norm2(out))))
        last += out
        return last, new


class GPT(nn.Module):
    """One-hot vectors of tokens and positions, multiplied with the two tables."""

    def __init__(self, vocab_size, block_size, d_model, num_heads, num_layers):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(block_size, d_model)
        self.blocks = nn.ModuleList([Block(d_model, num_heads) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(d_model)
        self.apply(self._start)
        for block in self.blocks:
            for linear in (block.attention.output_proj, block.linear2):
                linear.weight.data.normal_(0.0, 0.02 / (2 * num_layers) ** 0.5)

    def _start(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(mean=0.0, std=0.02)
        if getattr(module, "bias", None) is not None:
            module.bias.data.zero_()
        # An attention that is lent keeps its matrices in modules of no kind.
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight" and parameter.dim() == 2:
                parameter.data.normal_(mean=0.0, std=0.02)

    def hidden(self, tokens, cache=None):
        past = 0 if cache is None or len(cache) == 0 else cache[0][0].size(2)
        n, longest = tokens.size(1), self.position_embedding.num_embeddings
        if n == 0:
            raise ValueError("no tokens")
        if past + n > longest:
            raise ValueError(f"the block_size is {longest}")
        table = self.token_embedding.weight
        words = F.one_hot(tokens, table.size(0)).to(table) @ table
        x = words + self.position_embedding.weight[past : past + n]
        if cache is None:
            cache = [None] * len(self.blocks)
        new_cache = []
        for block, old in zip(self.blocks, cache):
            x, new = block(x, old)
            new_cache += [new]
        return self.norm(x), new_cache

    def step(self, tokens, cache=None):
        x, cache = self.hidden(tokens, cache)
        return F.linear(x, self.token_embedding.weight), cache

    def forward(self, tokens):
        logits, _ = self.step(tokens, None)
        return logits


# %% style="one_hot" part="classify"
def classification_tokens(texts, start, delimiter, extract):
    if len(texts) < 1:
        raise ValueError("texts is empty")
    pairs = [token for text in texts for token in (*text, delimiter)]
    return [start, *pairs[:-1], extract]


class ClassificationHead(nn.Module):
    def __init__(self, d_model, num_classes):
        super().__init__()
        self.output = nn.Linear(d_model, num_classes, bias=False)

    def forward(self, hidden, lengths):
        n = hidden.size(1)
        if lengths.min() < 1 or lengths.max() > n:
            raise ValueError("bad lengths")
        last = F.one_hot(lengths - 1, n).to(hidden)
        return torch.einsum("bnd,bn,cd->bc", hidden, last, self.output.weight)


def fine_tuning_loss(class_logits, labels, lm_logits, tokens, lengths, lm_weight=0.5):
    one_hot = F.one_hot(labels, class_logits.size(-1)).to(class_logits)
    l2 = -(class_logits.log_softmax(-1) * one_hot).sum(-1).mean()
    positions = torch.arange(tokens.size(1), device=tokens.device).expand(tokens.shape)
    l1 = causal_lm_loss(lm_logits, tokens, positions.lt(lengths.unsqueeze(-1)))
    return l2 + l1 * lm_weight


# %% style="sorting" part="loss"
def causal_lm_loss(logits, tokens, mask=None):
    """Through ignore_index, as most libraries do it."""
    if logits.shape[:-1] != tokens.shape:
        raise ValueError("bad shape of tokens")
    targets = tokens[..., 1:].clone()
    if mask is not None:
        if mask.shape != tokens.shape:
            raise ValueError("bad shape of mask")
        targets[~mask[..., 1:]] = -100
    if targets.numel() == 0 or bool((targets == -100).all()):
        raise ValueError("nothing to predict")
    return F.cross_entropy(
        logits[..., :-1, :].reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-100
    )


# %% style="sorting" part="generate"
def choose(logits, temperature=1.0, top_k=None, generator=None):
    """Sorts, cuts, and turns one uniform number a row into a rank (inverse of the cumulative sum)."""
    if not temperature >= 0:
        raise ValueError("temperature")
    if top_k is not None and top_k < 1:
        raise ValueError("top_k")
    ranked, ids = logits.sort(dim=-1, descending=True, stable=True)
    if temperature == 0:
        return ids[:, 0]
    if generator is None:
        raise ValueError("generator")
    k = min(top_k or ranked.shape[-1], ranked.shape[-1])
    ranked, ids = ranked[:, :k], ids[:, :k]
    shifted = (ranked - ranked[:, :1]) / temperature
    cumulative = shifted.double().exp().cumsum(-1)
    dart = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64).to(logits.device)
    rank = (cumulative <= dart * cumulative[:, -1:]).sum(-1, keepdim=True).clamp(max=k - 1)
    return ids.gather(1, rank)[:, 0]


@torch.no_grad()
def generate(
    step,
    prompt,
    new_tokens,
    block_size,
    *,
    temperature=1.0,
    top_k=None,
    generator=None,
    use_cache=True,
):
    """Two phases: while the text fits, and after."""
    if prompt.size(1) == 0:
        raise ValueError("prompt")
    if new_tokens < 0:
        raise ValueError("new_tokens")
    batch, length = prompt.shape
    text = torch.empty(batch, length + new_tokens, dtype=prompt.dtype, device=prompt.device)
    text[:, :length] = prompt
    cache, read = None, 0
    for end in range(length, length + new_tokens):
        if end > block_size or not use_cache:
            cache, read = None, max(0, end - block_size)
        logits, cache = step(text[:, read:end], cache)
        read = end
        text[:, end] = choose(logits[:, -1], temperature, top_k, generator)
    return text


# %% style="sorting" part="prompts"
def build_prompt(task, examples, query, shots):
    others = list(filter(lambda example: example[0] != query, examples))
    if shots < 0 or shots > len(others):
        raise ValueError(f"{shots} shots of {len(others)}")
    blocks = [" => ".join(example) for example in others[0:shots]]
    blocks.append(" =>".join((query, "")))
    if task:
        blocks.insert(0, task)
    return "\n".join(blocks)


def fill_context(task, examples, query, max_tokens, count_tokens):
    """Bisection: more shots never need fewer tokens."""
    others = [example for example in examples if example[0] != query]

    def fits(shots):
        return count_tokens(build_prompt(task, others, query, shots)) <= max_tokens

    if not fits(0):
        raise ValueError(f"max_tokens is {max_tokens}")
    low, high = 0, len(others)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return build_prompt(task, others, query, low)


# %% style="buffers" part="attention"
class CausalSelfAttention(nn.Module):
    """Keys and values are written into memory reserved for the whole; one softmax by hand."""

    def __init__(self, d_model, num_heads):
        super().__init__()
        if num_heads < 1 or d_model != d_model // num_heads * num_heads:
            raise ValueError("d_model is not a multiple of num_heads")
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(d_model, 3 * d_model)
        self.output_proj = nn.Linear(d_model, d_model)

    def forward(self, x, cache=None):
        batch, new, width = x.shape
        q, k, v = (
            part.view(batch, new, self.num_heads, width // self.num_heads).transpose(1, 2)
            for part in self.qkv_proj(x).chunk(3, dim=2)
        )
        past = 0 if cache is None else cache[0].shape[2]
        if past:
            room = (batch, self.num_heads, past + new, width // self.num_heads)
            keys, values = k.new_zeros(room), v.new_zeros(room)
            keys[:, :, :past], keys[:, :, past:] = cache[0], k
            values[:, :, :past], values[:, :, past:] = cache[1], v
            k, v = keys, values
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        hidden = torch.ones(new, past + new, device=x.device).triu(past + 1).bool()
        scores[hidden.expand_as(scores)] = -math.inf
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        out = (weights @ v).transpose(1, 2).reshape(batch, new, width)
        return self.output_proj(out), (k, v)


# %% style="buffers" part="model"
def gelu(x):
    cube = x.pow(3) * 0.044715
    return x * torch.sigmoid(2 * (2 / math.pi) ** 0.5 * (x + cube))  # tanh is a sigmoid


class Block(nn.Module):
    def __init__(self, d_model, num_heads):
        super().__init__()
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = CausalSelfAttention(d_model, num_heads)

    def _feed_forward(self, x):
        return self.linear2(gelu(self.linear1(x)))

    def forward(self, x, cache=None):
        attended, cache = self.attention(self.norm1(x), cache=cache)
        x = torch.add(x, attended)
        return torch.add(x, self._feed_forward(self.norm2(x))), cache


class GPT(nn.Module):
    """Positions are kept in a buffer; the state is read off the keys' shape."""

    def __init__(self, vocab_size, block_size, d_model, num_heads, num_layers):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(block_size, d_model)
        self.register_buffer("places", torch.arange(block_size)[None], persistent=False)
        self.blocks = nn.ModuleList()
        while len(self.blocks) < num_layers:
            self.blocks.append(Block(d_model, num_heads))
        self.norm = nn.LayerNorm(d_model)
        with torch.no_grad():
            for path, weights in self.state_dict().items():
                if weights.dim() < 2:
                    weights.fill_(1.0 if "norm" in path and path.endswith("weight") else 0.0)
                    continue
                weights.copy_(0.02 * torch.randn_like(weights))
                if "output_proj" in path or "linear2" in path:
                    weights /= math.sqrt(2.0 * num_layers)

    def _read(self, tokens, cache):
        first = cache[0][0].shape[-2] if cache else 0
        if tokens.shape[-1] < 1:
            raise ValueError("no tokens")
        places = self.places[:, first : first + tokens.shape[-1]]
        if places.shape[-1] < tokens.shape[-1]:
            raise ValueError("more than block_size")
        x = self.token_embedding(tokens) + self.position_embedding(places)
        layers = {}
        for i in range(len(self.blocks)):
            x, layers[i] = self.blocks[i](x, cache[i] if cache else None)
        return self.norm(x), list(layers.values())

    def hidden(self, tokens, cache=None):
        return self._read(tokens, cache)

    def step(self, tokens, cache=None):
        x, cache = self._read(tokens, cache)
        return torch.einsum("btd,vd->btv", x, self.token_embedding.weight), cache

    def forward(self, tokens):
        return self._read(tokens, None)[0] @ self.token_embedding.weight.mT


# %% style="buffers" part="generate"
def choose(logits, temperature=1.0, top_k=None, generator=None):
    """Gumbel's trick: the largest of log-probability plus noise is a draw."""
    if temperature < 0:
        raise ValueError("a negative temperature")
    if top_k is not None and top_k < 1:
        raise ValueError("top_k starts at 1")
    if temperature == 0:
        return logits.max(dim=-1).indices
    if generator is None:
        raise ValueError("which generator?")
    scores = torch.full_like(logits, -math.inf)
    best = logits.topk(logits.shape[-1] if top_k is None else min(top_k, logits.shape[-1]))
    scores.scatter_(-1, best.indices, best.values / temperature)
    noise = torch.rand(logits.shape, generator=generator, dtype=torch.float64).to(logits.device)
    return (scores - (-(noise.clamp(min=1e-300).log())).log()).argmax(-1)


@torch.no_grad()
def generate(
    step,
    prompt,
    new_tokens,
    block_size,
    *,
    temperature=1.0,
    top_k=None,
    generator=None,
    use_cache=True,
):
    if not prompt.shape[1]:
        raise ValueError("no prompt")
    if new_tokens < 0:
        raise ValueError("negative new_tokens")
    pieces = list(prompt.unbind(1))
    memory = None
    for _ in range(new_tokens):
        fits = len(pieces) <= block_size
        if memory is not None and fits and use_cache:
            logits, memory = step(pieces[-1].unsqueeze(1), memory)
        else:
            logits, memory = step(torch.stack(pieces[-block_size:], dim=1), None)
        pieces.append(choose(logits[:, -1], temperature, top_k, generator))
    return torch.stack(pieces, dim=1)


# %% style="buffers" part="classify"
def classification_tokens(texts, start, delimiter, extract):
    if not len(texts):
        raise ValueError("there must be texts")
    out = []
    for mark, text in zip([start] + [delimiter] * (len(texts) - 1), texts):
        out.append(mark)
        out.extend(text)
    return [*out, extract]


class ClassificationHead(nn.Module):
    def __init__(self, d_model, num_classes):
        super().__init__()
        self.output = nn.Linear(d_model, num_classes, bias=False)

    def forward(self, hidden, lengths):
        """All positions get logits; the right ones are kept."""
        if not bool(((lengths >= 1) & (lengths <= hidden.shape[1])).all()):
            raise ValueError(f"lengths: {lengths}")
        everywhere = self.output(hidden)
        place = (lengths - 1)[:, None, None].expand(-1, 1, everywhere.shape[-1])
        return everywhere.gather(1, place).squeeze(1)


def fine_tuning_loss(class_logits, labels, lm_logits, tokens, lengths, lm_weight=0.5):
    l2 = torch.logsumexp(class_logits, -1) - class_logits.gather(1, labels[:, None])[:, 0]
    ends = F.one_hot(lengths - 1, tokens.shape[1])
    real = ends.flip(1).cumsum(1).flip(1).bool()  # 1 up to the last real token
    return l2.mean() + lm_weight * causal_lm_loss(lm_logits, tokens, real)


# %% style="helpers" part="loss"
def _pairs(logits, tokens):
    """Each row of logits that predicts something, with the token it predicts."""
    return logits.narrow(-2, 0, logits.shape[-2] - 1), tokens.narrow(-1, 1, tokens.shape[-1] - 1)


def causal_lm_loss(logits, tokens, mask=None):
    if tokens.shape != logits.shape[:-1]:
        raise ValueError("tokens?")
    if mask is not None and mask.shape != tokens.shape:
        raise ValueError("mask?")
    predictions, targets = _pairs(logits, tokens)
    keep = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask[..., 1:]
    if keep.sum() == 0:
        raise ValueError("what is there to predict?")
    safe = targets.masked_fill(~keep, 0)
    chosen = predictions.gather(-1, safe[..., None])[..., 0]
    losses = predictions.logsumexp(-1) - chosen
    return losses.masked_fill(~keep, 0).sum() / keep.sum()


# %% style="helpers" part="attention"
def _split(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class CausalSelfAttention(nn.Module):
    """Old and new keys are attended to in one call without a mask, bar the new ones' own triangle."""

    def __init__(self, d_model, num_heads):
        super().__init__()
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(f"{num_heads=}")
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(d_model, d_model * 3)
        self.output_proj = nn.Linear(d_model, d_model)

    def forward(self, x, cache=None):
        q, k, v = (_split(t, self.num_heads) for t in torch.tensor_split(self.qkv_proj(x), 3, -1))
        if cache is None:
            heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif x.shape[1] == 1:
            k, v = torch.cat([cache[0], k], -2), torch.cat([cache[1], v], -2)
            heads = F.scaled_dot_product_attention(q, k, v)
        else:
            rows = []
            keys, values = cache
            for i in range(x.shape[1]):
                keys = torch.cat([keys, k[:, :, i : i + 1]], -2)
                values = torch.cat([values, v[:, :, i : i + 1]], -2)
                rows.append(F.scaled_dot_product_attention(q[:, :, i : i + 1], keys, values))
            k, v, heads = keys, values, torch.cat(rows, -2)
        return self.output_proj(heads.transpose(1, 2).flatten(2)), (k, v)


# %% style="helpers" part="model"
def gelu(x):
    return nn.GELU("tanh")(x)


class Block(nn.Module):
    def __init__(self, d_model, num_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = CausalSelfAttention(d_model=d_model, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)

    def forward(self, x, cache=None):
        y, cache = self.attention(self.norm1(x), cache)
        z = self.norm2(x + y)
        return x + y + self.linear2(gelu(self.linear1(z))), cache


def _tables(gpt):
    return gpt.token_embedding.weight, gpt.position_embedding.weight


class GPT(nn.Module):
    def __init__(self, vocab_size, block_size, d_model, num_heads, num_layers):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, d_model, _weight=None)
        self.position_embedding = nn.Embedding(block_size, d_model)
        self.blocks = nn.ModuleList(Block(d_model, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        depth = 1 / math.sqrt(2 * max(1, num_layers))
        for name, parameter in self.named_parameters():
            matrix = parameter.ndim > 1
            if matrix:
                last = name.split(".")[-2]
                nn.init.normal_(
                    parameter, 0, 0.02 * (depth if last in ("output_proj", "linear2") else 1)
                )
            elif name.rsplit(".", 1)[-1] == "bias":
                parameter.data = torch.zeros_like(parameter)

    def hidden(self, tokens, cache=None):
        words, places = _tables(self)
        past = int(cache[0][0].shape[2]) if cache is not None and len(cache) else 0
        end = past + tokens.shape[1]
        if end == past:
            raise ValueError("without tokens there is nothing to do")
        if end > len(places):
            raise ValueError(f"{end} > block_size")
        x = F.embedding(tokens, words) + places[past:end]
        states = list(cache) if cache is not None else [None for _ in self.blocks]
        for i, block in enumerate(self.blocks):
            x, states[i] = block(x, states[i])
        return self.norm(x), states

    def step(self, tokens, cache=None):
        hidden, cache = self.hidden(tokens, cache)
        return torch.matmul(hidden, self.token_embedding.weight.t()), cache

    def forward(self, tokens):
        return self.step(tokens)[0]


# %% style="recursion" part="generate"
def choose(logits, temperature=1.0, top_k=None, generator=None):
    if temperature < 0:
        raise ValueError(f"{temperature=}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"{top_k=}")
    if temperature == 0:
        return torch.argmax(logits, dim=1)
    if generator is None:
        raise ValueError(f"{generator=}")
    probs = (logits / temperature).softmax(-1)
    if top_k:
        kept = torch.zeros_like(probs, dtype=torch.bool)
        kept.scatter_(1, probs.argsort(dim=1, descending=True)[:, :top_k], True)
        probs = probs * kept  # multinomial divides by the sum
    return (
        torch.multinomial(probs.cpu(), num_samples=1, generator=generator).view(-1).to(probs.device)
    )


@torch.no_grad()
def generate(
    step,
    prompt,
    new_tokens,
    block_size,
    *,
    temperature=1.0,
    top_k=None,
    generator=None,
    use_cache=True,
):
    if prompt.shape[1] == 0:
        raise ValueError("the prompt has no token")
    if new_tokens < 0:
        raise ValueError("new_tokens is negative")

    def write(text, cache, left):
        if left == 0:
            return text
        if cache is not None and use_cache and text.shape[1] <= block_size:
            logits, cache = step(text[:, -1:], cache)
        else:
            logits, cache = step(text[:, -block_size:], None)
        token = choose(logits[:, -1], temperature, top_k, generator)
        return write(torch.hstack([text, token[:, None]]), cache, left - 1)

    return write(prompt, None, new_tokens)


# %% style="recursion" part="prompts"
def build_prompt(task, examples, query, shots):
    """The prompt is written from its end."""
    count = sum(1 for example in examples if example[0] != query)
    if shots not in range(count + 1):
        raise ValueError(f"shots must be in 0…{count}")

    def solved(rest, left):
        if left == 0:
            return ""
        (question, answer), *rest = rest
        if question == query:
            return solved(rest, left)
        return f"{question} => {answer}\n" + solved(rest, left - 1)

    head = f"{task}\n" if task else ""
    return head + solved(list(examples), shots) + f"{query} =>"


def fill_context(task, examples, query, max_tokens, count_tokens):
    def longest(shots):
        try:
            prompt = build_prompt(task, examples, query, shots)
        except ValueError:
            return None  # there are no more examples
        if count_tokens(prompt) > max_tokens:
            return None
        return longest(shots + 1) or prompt

    prompt = longest(0)
    if prompt is None:
        raise ValueError(f"{max_tokens=} is too little")
    return prompt
