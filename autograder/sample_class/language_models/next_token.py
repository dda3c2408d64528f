# %% style="loops" part="likelihood"
def sequence_log_prob(logits, tokens):
    """One text and one position at a time."""
    vocab = logits.shape[-1]
    if tuple(logits.shape[:-1]) != tuple(tokens.shape):
        raise ValueError("logits and tokens do not belong together")
    if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= vocab):
        raise ValueError("token id not in the vocab")
    length = tokens.shape[-1]
    rows = logits.reshape(-1, length, vocab)
    ids = tokens.reshape(-1, length).tolist()
    totals = []
    for row, text in zip(rows, ids):
        total = row.new_zeros(())
        for t in range(1, length):
            z = row[t - 1]
            total = total + z[text[t]] - torch.logsumexp(z, dim=0)
        totals.append(total)
    return torch.stack(totals).reshape(tokens.shape[:-1])


def perplexity(log_probs, counts):
    if len(log_probs) != len(counts):
        raise ValueError("one of the counts for each text")
    total, n = 0.0, 0
    for lp, c in zip(log_probs.tolist(), counts.tolist()):
        if c < 0:
            raise ValueError("negative counts")
        total += lp
        n += c
    if n == 0:
        raise ValueError("counts are all 0")
    return torch.tensor(math.exp(-total / n), dtype=log_probs.dtype)


# %% style="loops" part="ngram"
class NGram:
    def __init__(self, order, vocab_size):
        if order <= 0:
            raise ValueError("order must be positive")
        self.n = order
        self.v = vocab_size
        self.counts = {}

    def _check(self, tokens):
        for token in tokens:
            if token < 0 or token >= self.v:
                raise ValueError(f"{token} >= vocab_size or negative")

    def fit(self, tokens):
        self._check(tokens)
        for length in range(self.n):
            for i in range(len(tokens) - length):
                gram = tuple(tokens[i : i + length + 1])
                self.counts[gram] = self.counts.get(gram, 0) + 1

    def _followed(self, h):
        return sum(self.counts.get((*h, w), 0) for w in range(self.v))

    def _p(self, w, h, alpha):
        # Straight from the formula, from the longest context down.
        lower = self._p(w, h[1:], alpha) if h else 1 / self.v
        return (self.counts.get((*h, w), 0) + alpha * lower) / (self._followed(h) + alpha)

    def _cut(self, context):
        return tuple(context[-(self.n - 1) :]) if self.n > 1 else ()

    def probability(self, token, context, alpha):
        return self.distribution(context, alpha)[token].item()

    def distribution(self, context, alpha):
        if alpha <= 0:
            raise ValueError("alpha > 0, please")
        h = self._cut(context)
        return torch.tensor([self._p(w, h, alpha) for w in range(self.v)], dtype=torch.float64)

    def log_prob(self, tokens, alpha):
        if alpha <= 0:
            raise ValueError("alpha > 0, please")
        self._check(tokens)
        total = 0.0
        for i in range(len(tokens)):
            total += math.log(self._p(tokens[i], self._cut(tokens[:i]), alpha))
        return total


# %% style="loops" part="choose"
def greedy(logits):
    rows = logits.reshape(-1, logits.shape[-1]).tolist()
    best = [max(range(len(row)), key=lambda i: (row[i], -i)) for row in rows]
    return torch.tensor(best, device=logits.device).reshape(logits.shape[:-1])


def temperature(logits, T):
    if T < 0 or T == math.inf or T != T:
        raise ValueError("temperature out of range")
    out = torch.empty_like(logits)
    flat_in, flat_out = logits.reshape(-1, logits.shape[-1]), out.reshape(-1, logits.shape[-1])
    for i, row in enumerate(flat_in.tolist()):
        top = max(row)
        if top == -math.inf:
            raise ValueError("only -inf in a row")
        if T == 0:
            weights = [1.0 if z == top else 0.0 for z in row]
        else:
            weights = [math.exp((z - top) / T) for z in row]
        total = sum(weights)
        flat_out[i] = torch.tensor([w / total for w in weights], dtype=logits.dtype)
    return flat_out.reshape(logits.shape)


def sample(probs, generator):
    rows = probs.reshape(-1, probs.shape[-1]).tolist()
    numbers = torch.rand(len(rows), generator=generator, dtype=torch.float64).tolist()
    drawn = []
    for row, u in zip(rows, numbers):
        u *= sum(row)
        choice = None
        for i, p in enumerate(row):
            if p == 0:
                continue
            choice = i
            u -= p
            if u < 0:
                break
        drawn.append(choice)
    return torch.tensor(drawn, device=probs.device).reshape(probs.shape[:-1])


# %% style="loops" part="truncate"
def _ranked(row):
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


def _keep(probs, chosen_of):
    out = []
    for row in probs.reshape(-1, probs.shape[-1]).tolist():
        chosen = set(chosen_of(row))
        total = sum(row[i] for i in chosen)
        out.append([row[i] / total if i in chosen else 0.0 for i in range(len(row))])
    return torch.tensor(out, dtype=probs.dtype, device=probs.device).reshape(probs.shape)


def top_k(probs, k):
    if k <= 0:
        raise ValueError("k must be positive")
    return _keep(probs, lambda row: _ranked(row)[:k])


def top_p(probs, p):
    if p < 0 or p > 1 or p != p:
        raise ValueError(f"p = {p}")

    def nucleus(row):
        chosen, total = [], 0.0
        for i in _ranked(row):
            chosen.append(i)
            total += row[i]
            if total >= p and p < 1:
                break
        return chosen

    return _keep(probs, nucleus)


# %% style="loops" part="generate"
def generate(next_token_logits, prompt, choose, max_new_tokens, stop=(), context_length=None):
    if max_new_tokens < 0:
        raise ValueError("max_new_tokens < 0")
    if context_length is not None and context_length <= 0:
        raise ValueError("context_length <= 0")
    ids = prompt.tolist()
    new = 0
    while new < max_new_tokens:
        visible = ids
        if context_length is not None and len(ids) > context_length:
            visible = ids[len(ids) - context_length :]
        logits = next_token_logits(torch.tensor(visible, dtype=torch.long, device=prompt.device))
        ids.append(int(choose(logits)))
        new += 1
        if ids[-1] in list(stop):
            break
    return torch.tensor(ids, dtype=torch.long, device=prompt.device)


# %% style="one_hot" part="likelihood"
def sequence_log_prob(logits, tokens):
    vocab = logits.size(-1)
    if logits.size()[:-1] != tokens.size():
        raise ValueError("there must be one row of logits for each of the tokens")
    if not ((tokens >= 0) & (tokens < vocab)).all():
        raise ValueError("tokens must be ids in the vocab")
    logits = logits[..., :-1, :]
    hot = torch.arange(vocab, device=tokens.device) == tokens[..., 1:, None]
    # where, not a product: 0 · -inf is NaN.
    picked = logits.where(hot, torch.zeros_like(logits)).sum(-1)
    return (picked - logits.logsumexp(-1)).sum(-1)


def perplexity(log_probs, counts):
    n = counts.sum()
    if counts.shape != log_probs.shape or counts.lt(0).any() or n <= 0:
        raise ValueError(f"unusable counts {counts.tolist()}")
    bits = -log_probs.sum() / math.log(2) / n
    return 2**bits


# %% style="one_hot" part="truncate"
def _before(probs):
    """For tokens i and j: does j come before i in the ranking?"""
    mine, other = probs.unsqueeze(-1), probs.unsqueeze(-2)
    ids = torch.arange(probs.shape[-1], device=probs.device)
    return (other > mine) | ((other == mine) & (ids[None, :] < ids[:, None]))


def _only(probs, keep):
    left = torch.where(keep, probs, torch.zeros_like(probs))
    return left / left.sum(-1, keepdim=True)


def top_k(probs, k):
    if k < 1:
        raise ValueError("k < 1")
    return _only(probs, _before(probs).sum(-1) < k)


def top_p(probs, p):
    if not (p >= 0 and p <= 1):
        raise ValueError("p is a probability")
    before = _before(probs)
    mass = (before * probs.unsqueeze(-2)).sum(-1)
    keep = (mass < p) | ~before.any(-1)
    return _only(probs, keep | (p == 1))


# %% style="trie" part="ngram"
class _Node:
    """What followed a context; children are reached by one token further to the left."""

    __slots__ = ("children", "followers", "total")

    def __init__(self):
        self.children = {}
        self.followers = {}
        self.total = 0


class NGram:
    def __init__(self, order: int, vocab_size: int):
        if not order >= 1:
            raise ValueError(f"{order=} is not a useful order")
        self.order, self.vocab_size, self.root = order, vocab_size, _Node()

    def _valid(self, tokens):
        if len(tokens) and (min(tokens) < 0 or max(tokens) >= self.vocab_size):
            raise ValueError("ids must be below vocab_size and not negative")

    def _path(self, tokens, end, make=False):
        """The nodes for the contexts that end before ``end``, shortest first."""
        node = self.root
        yield node
        for i in range(end - 1, max(-1, end - self.order), -1):
            child = node.children.get(tokens[i])
            if child is None:
                if not make:
                    return
                child = node.children[tokens[i]] = _Node()
            node = child
            yield node

    def fit(self, tokens):
        self._valid(tokens)
        for t, token in enumerate(tokens):
            for node in self._path(tokens, t, make=True):
                node.followers[token] = node.followers.get(token, 0) + 1
                node.total += 1

    def probability(self, token, context, alpha):
        return self.distribution(context, alpha)[token].item()

    def distribution(self, context, alpha):
        if not alpha > 0:
            raise ValueError(f"{alpha=}")
        p = torch.full((self.vocab_size,), 1 / self.vocab_size, dtype=torch.float64)
        for node in self._path(context, len(context)):
            p *= alpha
            for token, count in node.followers.items():
                p[token] += count
            p /= node.total + alpha
        return p

    def log_prob(self, tokens, alpha):
        if not alpha > 0:
            raise ValueError(f"{alpha=}")
        self._valid(tokens)
        logs = []
        for t, token in enumerate(tokens):
            p = 1 / self.vocab_size
            for node in self._path(tokens, t):
                p = (node.followers.get(token, 0) + alpha * p) / (node.total + alpha)
            logs.append(math.log(p))
        return math.fsum(logs)


# %% style="trie" part="choose"
def greedy(logits):
    # The first place where the logit is the largest one.
    is_best = logits == logits.max(dim=-1, keepdim=True).values
    ids = torch.arange(logits.size(-1), device=logits.device)
    return torch.where(is_best, ids, logits.size(-1)).min(dim=-1).values


def temperature(logits, T):
    if math.isnan(T) or math.isinf(T) or T < 0:
        raise ValueError(f"bad temperature {T}")
    top = logits.max(dim=-1, keepdim=True).values
    if torch.isneginf(top).any():
        raise ValueError("a row of nothing but -inf")
    weights = (logits == top).to(logits) if T == 0 else ((logits - top) / T).exp()
    return torch.nn.functional.normalize(weights, p=1, dim=-1)


def sample(probs, generator):
    # An exponential race: the first to arrive at rate p is token i with probability p_i.
    rows = probs.detach().cpu().double()
    clocks = torch.empty_like(rows, memory_format=torch.contiguous_format).exponential_(
        generator=generator
    )
    return (clocks / rows).argmin(dim=-1).to(probs.device)


# %% style="dense" part="ngram"
class NGram:
    """Counts as tensors with one axis for each token of the n-gram."""

    def __init__(self, order, vocab_size):
        if order < 1:
            raise ValueError("order is at least 1")
        self.vocab_size = vocab_size
        self.counts = [
            torch.zeros((vocab_size,) * n, dtype=torch.float64) for n in range(1, order + 1)
        ]

    def fit(self, tokens):
        ids = self._ids(tokens)
        for n, table in enumerate(self.counts, start=1):
            if len(ids) >= n:
                grams = ids.unfold(0, n, 1)
                table.index_put_(
                    tuple(grams.T), torch.ones(len(grams), dtype=torch.float64), accumulate=True
                )

    def probability(self, token, context, alpha):
        return self.distribution(context, alpha)[token].item()

    def distribution(self, context, alpha):
        if alpha <= 0:
            raise ValueError("alpha is positive")
        p = torch.full((self.vocab_size,), 1 / self.vocab_size, dtype=torch.float64)
        context = list(context)
        for length, table in enumerate(self.counts):
            if length > len(context):
                break
            row = table[tuple(context[len(context) - length :])]
            p = (row + alpha * p) / (row.sum() + alpha)
        return p

    def log_prob(self, tokens, alpha):
        if alpha <= 0:
            raise ValueError("alpha is positive")
        self._ids(tokens)
        return sum(
            float(self.distribution(tokens[max(0, t - 8) : t], alpha)[token].log())
            for t, token in enumerate(tokens)
        )

    def _ids(self, tokens):
        ids = torch.tensor(list(tokens), dtype=torch.int64)
        if ((ids < 0) | (ids >= self.vocab_size)).any():
            raise ValueError("an id is not below vocab_size")
        return ids


# %% style="dense" part="choose"
def greedy(logits):
    return torch.sort(logits, dim=-1, descending=True, stable=True).indices[..., 0]


def temperature(logits, T):
    if not (math.isfinite(T) and T >= 0):
        raise ValueError("temperature must be finite and at least 0")
    z = logits - logits.max(-1, keepdim=True)[0]
    if z.isnan().any():  # -inf minus -inf
        raise ValueError("some row is -inf everywhere")
    if T > 0:
        z = z / T
    else:
        z = torch.zeros_like(z).masked_fill(z < 0, -math.inf)
    return z.softmax(-1)


def sample(probs, generator):
    flat = probs.cpu().flatten(0, -2) if probs.dim() > 1 else probs.cpu()[None]
    cdf = flat.double().cumsum(-1)
    cdf = cdf / cdf[:, -1:]
    u = torch.rand(len(flat), 1, generator=generator, dtype=torch.float64)
    drawn = torch.searchsorted(cdf, u, right=True)[:, 0]
    return drawn.view(probs.shape[:-1]).to(probs.device)


# %% style="dense" part="truncate"
def _rank(probs):
    return probs.argsort(dim=-1, descending=True, stable=True).argsort(
        dim=-1
    )  # each token's place in the ranking


def top_k(probs, k):
    if k < 1:
        raise ValueError("at least one token: k >= 1")
    left = probs.masked_fill(_rank(probs) >= k, 0.0)
    return left / left.sum(-1, keepdim=True)


def top_p(probs, p):
    if p != min(max(p, 0.0), 1.0):
        raise ValueError("p out of range")
    if p >= 1:
        return probs / probs.sum(-1, keepdim=True)
    order = torch.argsort(-probs, dim=-1, stable=True)
    reached = probs.gather(-1, order).cumsum(-1)
    # As many as have not reached p, and the one that does.
    size = (reached < p).sum(-1, keepdim=True) + 1
    left = probs.where(_rank(probs) < size, probs.new_zeros(()))
    return left / left.sum(-1, keepdim=True)


# %% style="dense" part="generate"
def generate(next_token_logits, prompt, choose, max_new_tokens, stop=(), context_length=None):
    """One buffer of the final length, filled from the left."""
    if max_new_tokens < 0:
        raise ValueError("max_new_tokens must be >= 0")
    if context_length is not None and context_length < 1:
        raise ValueError("context_length must be >= 1")
    end = len(prompt)
    buffer = torch.empty(end + max_new_tokens, dtype=torch.int64, device=prompt.device)
    buffer[:end] = prompt
    endings = frozenset(int(s) for s in stop)
    while end < len(buffer):
        start = 0 if context_length is None else max(0, end - context_length)
        buffer[end] = choose(next_token_logits(buffer[start:end]))
        end += 1
        if buffer[end - 1].item() in endings:
            break
    return buffer[:end].clone()


# %% style="in_place" part="likelihood"
def sequence_log_prob(logits, tokens):
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(f"shapes: tokens {tokens.shape}, logits {logits.shape}")
    *batch, length, vocab = logits.shape
    if tokens.lt(0).any() or tokens.ge(vocab).any():
        raise ValueError("outside of vocab")
    flat = logits[..., : length - 1, :].reshape(-1, vocab)
    wanted = tokens[..., 1:].reshape(-1)
    scores = flat - flat.detach().amax(-1, keepdim=True) if length > 1 else flat
    scores = scores - scores.exp().sum(-1, keepdim=True).log()
    return scores[torch.arange(len(wanted), device=wanted.device), wanted].view(*batch, -1).sum(-1)


def perplexity(log_probs, counts):
    if counts.dim() != 1 or counts.shape != log_probs.shape:
        raise ValueError("counts and log_probs go in pairs")
    if bool((counts < 0).any()) or not bool((counts > 0).any()):
        raise ValueError("counts must be positive somewhere and negative nowhere")
    return log_probs.sum().div(counts.sum()).neg().exp()


# %% style="in_place" part="truncate"
def top_k(probs, k):
    if k < 1:
        raise ValueError("k")
    probs = probs.clone(memory_format=torch.contiguous_format)
    order = probs.argsort(dim=-1, descending=True, stable=True)
    probs.scatter_(-1, order[..., k:], 0.0)
    return probs.div_(probs.sum(-1, keepdim=True))


def top_p(probs, p):
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p should be in [0, 1], not {p}")
    if p == 1.0:
        return probs
    values, order = torch.sort(probs, dim=-1, descending=True, stable=True)
    crossed = values.cumsum(-1) >= p
    drop = crossed.roll(1, -1)  # everything after the token that crosses
    drop[..., 0] = False
    values = values.masked_fill(drop, 0.0)
    values.div_(values.sum(-1, keepdim=True))
    return torch.empty_like(values).scatter_(-1, order, values)


# %% style="in_place" part="generate"
def generate(next_token_logits, prompt, choose, max_new_tokens, stop=(), context_length=None):
    """Recursive: one token, then the rest."""
    if max_new_tokens < 0:
        raise ValueError("max_new_tokens")
    if context_length is not None and context_length < 1:
        raise ValueError("context_length")
    if max_new_tokens == 0:
        return prompt.clone()
    window = prompt if context_length is None else prompt[max(len(prompt) - context_length, 0) :]
    token = torch.as_tensor(choose(next_token_logits(window)), device=prompt.device).reshape(1)
    longer = torch.cat((prompt, token))
    left = 0 if token.item() in stop else max_new_tokens - 1
    return generate(next_token_logits, longer, choose, left, stop, context_length)


# %% style="rescan" part="ngram"
class NGram:
    """Keeps the texts and counts when asked."""

    def __init__(self, order, vocab_size):
        if order < 1:
            raise ValueError(f"order {order}")
        self.order = order
        self.vocab_size = vocab_size
        self.texts = []

    def fit(self, tokens):
        self._known(tokens)
        self.texts.append(list(tokens))

    def probability(self, token, context, alpha):
        return self.distribution(context, alpha)[token].item()

    def distribution(self, context, alpha):
        if alpha <= 0:
            raise ValueError(f"alpha {alpha}")
        context = list(context)[max(0, len(context) + 1 - self.order) :]
        if context:
            base = self._smoothed(context[1:], alpha)
        else:
            base = torch.ones(self.vocab_size, dtype=torch.float64) / self.vocab_size
        return self._mix(context, base, alpha)

    def _smoothed(self, context, alpha):
        base = (
            self._smoothed(context[1:], alpha)
            if context
            else torch.ones(self.vocab_size, dtype=torch.float64) / self.vocab_size
        )
        return self._mix(context, base, alpha)

    def _mix(self, context, base, alpha):
        found = Counter()
        for text in self.texts:
            for i in range(len(text) - len(context)):
                if text[i : i + len(context)] == context:
                    found[text[i + len(context)]] += 1
        seen = sum(found.values())
        trust = seen / (seen + alpha)  # a weighted mean of counting and believing
        counted = torch.tensor([found[w] for w in range(self.vocab_size)], dtype=torch.float64)
        return trust * counted / max(seen, 1) + (1 - trust) * base

    def log_prob(self, tokens, alpha):
        if alpha <= 0:
            raise ValueError(f"alpha {alpha}")
        self._known(tokens)
        memory = {}
        total = 0.0
        for t in range(len(tokens)):
            key = tuple(tokens[max(0, t + 1 - self.order) : t])
            if key not in memory:
                memory[key] = self.distribution(key, alpha).log()
            total += memory[key][tokens[t]].item()
        return total

    def _known(self, tokens):
        if not set(tokens) <= set(range(self.vocab_size)):
            raise ValueError("vocab_size is smaller than some id, or an id is negative")
