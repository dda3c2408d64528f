# %% style="loops" part="masking"
def mask_tokens(tokens, vocab_size, mask_id, special_ids, generator, rate=0.15):
    """One sequence and one token at a time."""
    if rate <= 0 or rate > 1:
        raise ValueError("rate")
    rows = tokens.tolist()
    for number in [mask_id, *(token for row in rows for token in row)]:
        if number < 0 or number >= vocab_size:
            raise ValueError(f"{number} is not below vocab_size")

    def uniform():
        return torch.rand((), generator=generator).item()

    inputs, labels = [], []
    for row in rows:
        places = [i for i, token in enumerate(row) if token not in special_ids]
        count = min(len(places), max(1, round(rate * len(places))))
        order = torch.randperm(len(places), generator=generator)[:count].tolist()
        new, asked = list(row), [-100] * len(row)
        for i in sorted(places[k] for k in order):
            asked[i] = row[i]
            u = uniform()
            if u < 0.8:
                new[i] = mask_id
            elif u < 0.9:
                new[i] = torch.randint(vocab_size, (1,), generator=generator).item()
        inputs.append(new)
        labels.append(asked)
    return torch.tensor(inputs, device=tokens.device), torch.tensor(labels, device=tokens.device)


# %% style="loops" part="losses"
def mlm_loss(logits, labels):
    """One blank at a time."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError("labels of another shape")
    losses = []
    for scores, label in zip(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).tolist()):
        if label == -100:
            continue
        if not 0 <= label < len(scores):
            raise ValueError(f"{label} among the labels")
        losses.append(scores.logsumexp(0) - scores[label])
    if not losses:
        return 0.0 * logits.sum()
    return sum(losses) / len(losses)


def pretraining_loss(mlm_logits, nsp_logits, labels, nsp_labels):
    loss = mlm_loss(mlm_logits, labels)
    classes = nsp_labels.tolist()
    if len(classes) != len(nsp_logits) or any(c not in (0, 1) for c in classes):
        raise ValueError("nsp_labels")
    for scores, c in zip(nsp_logits, classes):
        loss = loss + (scores.logsumexp(0) - scores[c]) / len(classes)
    return loss


# %% style="loops" part="pairs"
def make_nsp_pairs(documents, generator):
    full = []
    for i in range(len(documents)):
        if len(documents[i]) > 0:
            full.append(i)
    if len(full) < 2:
        raise ValueError("too few documents")
    pairs = []
    for i in full:
        for j in range(len(documents[i]) - 1):
            if torch.rand(1, generator=generator).item() < 0.5:
                pairs.append((documents[i][j], documents[i][j + 1], 0))
            else:
                k = i
                while k == i:
                    k = full[torch.randint(len(full), (1,), generator=generator).item()]
                s = torch.randint(len(documents[k]), (1,), generator=generator).item()
                pairs.append((documents[i][j], documents[k][s], 1))
    return pairs


def pack_pair(first, second, cls_id, sep_id, max_length):
    if max_length - 3 < 2:
        raise ValueError("max_length is too small")
    a, b = len(first), len(second)
    while a + b > max_length - 3:
        if b >= a:
            b -= 1
        else:
            a -= 1
    tokens, segments = [cls_id], [0]
    for i in range(a):
        tokens.append(first[i])
        segments.append(0)
    tokens.append(sep_id)
    segments.append(0)
    for i in range(b):
        tokens.append(second[i])
        segments.append(1)
    tokens.append(sep_id)
    segments.append(1)
    return tokens, segments


# %% style="loops" part="encoder"
class EncoderBlock(nn.Module):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__()
        self.attention = SelfAttention(d_model, num_heads)
        self.norm1 = nn.LayerNorm(d_model, eps=1e-12)
        self.linear1 = nn.Linear(d_model, d_ff)
        self.linear2 = nn.Linear(d_ff, d_model)
        self.norm2 = nn.LayerNorm(d_model, eps=1e-12)

    def feed_forward(self, x):
        x = self.linear1(x)
        return self.linear2(x * 0.5 * (1 + torch.erf(x / 2**0.5)))

    def forward(self, x, real=None):
        if real is None:
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        x = self.norm1(self.attention(x, real) + x)
        return self.norm2(self.feed_forward(x) + x)


class Bert(nn.Module):
    """One position at a time where the embeddings are added."""

    def __init__(self, vocab_size, d_model, num_heads, d_ff, num_layers, max_length):
        super().__init__()
        self.max_length = max_length
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.segment_embedding = nn.Embedding(2, d_model)
        self.position_embedding = nn.Embedding(max_length, d_model)
        self.embedding_norm = nn.LayerNorm(d_model, eps=1e-12)
        self.blocks = nn.ModuleList()
        for _ in range(num_layers):
            self.blocks.append(EncoderBlock(d_model, num_heads, d_ff))
        self.pooler = nn.Linear(d_model, d_model)
        self.apply(start_small)

    def forward(self, tokens, segments=None, real=None):
        batch, length = tokens.shape
        if length > self.max_length:
            raise ValueError("more tokens than max_length")
        if segments is not None and segments.shape != (batch, length):
            raise ValueError("the shape of segments")
        if real is not None and real.shape != (batch, length):
            raise ValueError("the shape of real")
        columns = []
        for i in range(length):
            column = self.token_embedding(tokens[:, i]) + self.position_embedding.weight[i]
            if segments is None:
                column = column + self.segment_embedding.weight[0]
            else:
                column = column + self.segment_embedding(segments[:, i])
            columns.append(self.embedding_norm(column))
        x = torch.stack(columns, dim=1)
        for block in self.blocks:
            x = block(x, real)
        return x, self.pooler(x[:, 0, :]).tanh()


# %% style="loops" part="pretraining"
class BertForPreTraining(nn.Module):
    def __init__(self, vocab_size, d_model, num_heads, d_ff, num_layers, max_length):
        super().__init__()
        self.bert = Bert(vocab_size, d_model, num_heads, d_ff, num_layers, max_length)
        self.transform = nn.Linear(d_model, d_model)
        self.transform_norm = nn.LayerNorm(d_model, eps=1e-12)
        self.mlm_bias = nn.Parameter(torch.zeros(vocab_size))
        self.nsp = nn.Linear(d_model, 2)
        for layer in (self.transform, self.nsp):
            start_small(layer)

    def forward(self, tokens, segments=None, real=None):
        hidden, pooled = self.bert(tokens, segments, real)
        embedding = self.bert.token_embedding.weight
        rows = []
        for sentence in hidden:
            row = self.transform_norm(F.gelu(self.transform(sentence)))
            rows.append(row.matmul(embedding.t()).add(self.mlm_bias))
        return torch.stack(rows), self.nsp(pooled)


# %% style="loops" part="heads"
class SequenceClassifier(nn.Module):
    def __init__(self, bert, d_model, num_classes):
        super().__init__()
        self.bert = bert
        self.head = nn.Linear(d_model, num_classes)

    def forward(self, tokens, segments=None, real=None):
        _, pooled = self.bert(tokens, segments, real)
        return self.head(pooled)


class TokenClassifier(nn.Module):
    def __init__(self, bert, d_model, num_classes):
        super().__init__()
        self.bert = bert
        self.head = nn.Linear(d_model, num_classes)

    def forward(self, tokens, segments=None, real=None):
        hidden, _ = self.bert(tokens, segments, real)
        return torch.stack([self.head(hidden[:, i]) for i in range(tokens.shape[1])], dim=1)


class SpanClassifier(nn.Module):
    def __init__(self, bert, d_model):
        super().__init__()
        self.bert = bert
        self.head = nn.Linear(d_model, 2)

    def forward(self, tokens, segments=None, real=None):
        hidden, _ = self.bert(tokens, segments, real)
        scores = self.head(hidden)
        return scores[..., 0], scores[..., 1]


def best_span(start_logits, end_logits, in_passage, max_answer):
    if max_answer < 1:
        raise ValueError("max_answer")
    spans = []
    for start, end, allowed in zip(start_logits.tolist(), end_logits.tolist(), in_passage.tolist()):
        best = None
        for i in range(len(start)):
            for j in range(i, min(len(start), i + max_answer)):
                if allowed[i] and allowed[j]:
                    score = start[i] + end[j]
                    if best is None or score > best[0]:
                        best = (score, i, j)
        if best is None:
            raise ValueError("nothing in_passage")
        spans.append(best[1:])
    return torch.tensor(spans, device=start_logits.device)


# %% style="in_place" part="masking"
def mask_tokens(tokens, vocab_size, mask_id, special_ids, generator, rate=0.15):
    """As Hugging Face's collator writes it, with the number of BERT's own code."""
    if not (rate > 0 and rate <= 1):
        raise ValueError(f"a rate of {rate}")
    if tokens.numel() and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise ValueError("vocab_size")
    if mask_id < 0 or mask_id >= vocab_size:
        raise ValueError("vocab_size")
    inputs, labels = tokens.clone(), tokens.clone()
    special = torch.zeros_like(tokens, dtype=torch.bool)
    for id_ in special_ids:
        special |= tokens == id_
    chosen = torch.zeros_like(special)
    for row in range(len(tokens)):
        places = (~special[row]).nonzero().flatten().cpu()
        if len(places):
            count = max(1, round(rate * len(places)))
            shuffled = places[torch.randperm(len(places), generator=generator)]
            chosen[row, shuffled[:count].to(tokens.device)] = True
    labels[~chosen] = -100

    def heads(p):
        share = torch.full(tokens.shape, p)
        return torch.bernoulli(share, generator=generator).bool().to(tokens.device)

    replaced = heads(0.8) & chosen
    inputs[replaced] = mask_id
    randomly = heads(0.5) & chosen & ~replaced
    words = torch.randint(vocab_size, tokens.shape, generator=generator).to(tokens.device)
    inputs[randomly] = words[randomly]
    return inputs, labels


# %% style="in_place" part="losses"
def mlm_loss(logits, labels):
    vocab = logits.shape[-1]
    if tuple(labels.shape) != tuple(logits.shape)[:-1]:
        raise ValueError("labels do not fit")
    ignored = labels.eq(-100)
    if not (ignored | (labels.ge(0) & labels.lt(vocab))).all():
        raise ValueError("labels are no ids")
    n = (~ignored).sum()
    total = F.cross_entropy(
        logits.reshape(-1, vocab), labels.reshape(-1), ignore_index=-100, reduction="sum"
    )
    return total / n if n else total


def pretraining_loss(mlm_logits, nsp_logits, labels, nsp_labels):
    if nsp_labels.shape != (nsp_logits.shape[0],):
        raise ValueError("nsp_labels: one for each pair")
    if not torch.isin(nsp_labels.cpu(), torch.tensor([0, 1])).all():
        raise ValueError("nsp_labels: 0 or 1")
    loss = F.nll_loss(nsp_logits.log_softmax(-1), nsp_labels)
    loss += mlm_loss(mlm_logits, labels)
    return loss


# %% style="in_place" part="pairs"
def make_nsp_pairs(documents, generator):
    """All coins of a document at once."""
    documents = [d for d in documents if len(d)]
    if len(documents) < 2:
        raise ValueError("documents")
    pairs = []
    for d, document in enumerate(documents):
        coins = torch.rand(len(document) - 1, generator=generator) < 0.5
        for s, is_random in enumerate(coins.tolist()):
            second = document[s + 1]
            if is_random:
                other = int(torch.randint(len(documents) - 1, (), generator=generator))
                other += other >= d
                place = int(torch.randint(len(documents[other]), (), generator=generator))
                second = documents[other][place]
            pairs.append((list(document[s]), list(second), int(is_random)))
    return pairs


def pack_pair(first, second, cls_id, sep_id, max_length):
    if max_length < 5:
        raise ValueError("max_length")
    first, second = first[:], second[:]
    for _ in range(len(first) + len(second) + 3 - max_length):
        longer = first if len(first) > len(second) else second
        del longer[-1]
    first.insert(0, cls_id)
    first.append(sep_id)
    second.append(sep_id)
    return first + second, [0 for _ in first] + [1 for _ in second]


# %% style="in_place" part="heads"
class Head(nn.Module):
    def __init__(self, bert, d_model, num_classes):
        super().__init__()
        self.bert, self.head = bert, nn.Linear(d_model, num_classes)


class SequenceClassifier(Head):
    def forward(self, tokens, segments=None, real=None):
        return self.head(self.bert(tokens, segments=segments, real=real)[1])


class TokenClassifier(Head):
    def forward(self, tokens, segments=None, real=None):
        return self.head(self.bert(tokens, segments=segments, real=real)[0])


class SpanClassifier(Head):
    def __init__(self, bert, d_model):
        super().__init__(bert, d_model, 2)

    def forward(self, tokens, segments=None, real=None):
        logits = self.head(self.bert(tokens, segments=segments, real=real)[0])
        start, end = logits.split(1, dim=-1)
        return start.squeeze(-1), end.squeeze(-1)


def best_span(start_logits, end_logits, in_passage, max_answer):
    """One length of answer after another; what is better, or as good and earlier, replaces what was found."""
    if max_answer < 1:
        raise ValueError("max_answer must be positive")
    if (in_passage.sum(1) == 0).any():
        raise ValueError("in_passage is empty")
    batch, length = start_logits.shape
    best = torch.full((batch, length), -math.inf, dtype=start_logits.dtype).to(start_logits.device)
    best_length = torch.zeros_like(best, dtype=torch.int64)
    for more in range(min(max_answer, length)):
        n = length - more
        scores = start_logits[:, :n] + end_logits[:, more:]
        scores = torch.where(in_passage[:, :n] & in_passage[:, more:], scores, -math.inf)
        better = scores > best[:, :n]
        best[:, :n] = torch.where(better, scores, best[:, :n])
        best_length[:, :n] = torch.where(better, more, best_length[:, :n])
    first = best.argmax(1, keepdim=True)
    return torch.cat([first, first + best_length.gather(1, first)], dim=1)


# %% style="one_hot" part="masking"
def mask_tokens(tokens, vocab_size, mask_id, special_ids, generator, rate=0.15):
    """Shares of the four outcomes as one multinomial; places by the k-th smallest lot."""
    if rate <= 0 or 1 < rate:
        raise ValueError("rate")
    every = torch.cat([tokens.flatten(), torch.tensor([mask_id], device=tokens.device)])
    if bool((every < 0).any()) or bool((every >= vocab_size).any()):
        raise ValueError("vocab_size")
    ordinary = torch.ones_like(tokens, dtype=torch.bool)
    for id_ in special_ids:
        ordinary &= tokens.ne(id_)
    lots = torch.rand(tokens.shape, dtype=torch.float64, generator=generator).to(tokens.device)
    lots[~ordinary] = 2.0
    n = ordinary.sum(1)
    counts = [min(k, max(1, round(rate * k))) for k in n.tolist()]
    ordered = lots.sort(dim=1).values
    limit = torch.stack([row[c - 1] if c else row[0] - 1 for row, c in zip(ordered, counts)])
    chosen = lots <= limit[:, None]
    outcome = torch.multinomial(
        torch.tensor([0.8, 0.1, 0.1]), tokens.numel(), replacement=True, generator=generator
    ).view(tokens.shape)
    outcome = outcome.to(tokens.device)
    words = torch.randint(vocab_size, tokens.shape, generator=generator).to(tokens.device)
    options = torch.stack([torch.full_like(tokens, mask_id), words, tokens], dim=-1)
    new = options.gather(-1, outcome[..., None])[..., 0]
    return torch.where(chosen, new, tokens), tokens.masked_fill(~chosen, -100)


# %% style="one_hot" part="losses"
def mlm_loss(logits, labels):
    if logits.shape[:-1] != labels.shape:
        raise ValueError("labels")
    asked = labels != -100
    target = labels.where(asked, 0)
    if (target < 0).any() or (target > logits.shape[-1] - 1).any():
        raise ValueError("labels")
    picked = logits.log_softmax(dim=-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return -(picked * asked).sum() / max(1, int(asked.sum()))


def pretraining_loss(mlm_logits, nsp_logits, labels, nsp_labels):
    if nsp_labels.dim() != 1 or len(nsp_labels) != len(nsp_logits):
        raise ValueError("nsp_labels")
    if not bool(((nsp_labels == 0) | (nsp_labels == 1)).all()):
        raise ValueError("nsp_labels")
    sign = 1.0 - 2.0 * nsp_labels  # 1 for IsNext, -1 for NotNext
    margin = sign * (nsp_logits[:, 0] - nsp_logits[:, 1])
    return mlm_loss(mlm_logits, labels) + F.softplus(-margin).mean()


# %% style="one_hot" part="encoder"
def normed(d_model):
    return nn.LayerNorm(d_model, eps=EPS)


class EncoderBlock(nn.Module):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__()
        self.norm2, self.norm1 = normed(d_model), normed(d_model)
        self.linear1, self.linear2 = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)
        self.attention = SelfAttention(d_model, num_heads)
        self.gelu = nn.GELU()

    def forward(self, x, real=None):
        y = x + self.attention(x, real=real)
        y = self.norm1(y)
        z = self.gelu(F.linear(y, self.linear1.weight, self.linear1.bias))
        return self.norm2(self.linear2(z) + y)


class Bert(nn.Module):
    """Embeddings as products with one-hot vectors."""

    def __init__(self, vocab_size, d_model, num_heads, d_ff, num_layers, max_length):
        super().__init__()
        self.sizes = vocab_size, max_length
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(max_length, d_model)
        self.segment_embedding = nn.Embedding(2, d_model)
        self.embedding_norm = normed(d_model)
        blocks = [EncoderBlock(d_model, num_heads, d_ff) for _ in range(num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.pooler = nn.Linear(d_model, d_model)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def embed(self, tokens, segments):
        weight = self.token_embedding.weight
        hot = F.one_hot(tokens, self.sizes[0]).to(weight)
        which = F.one_hot(segments, 2).to(weight)
        positions = self.position_embedding.weight[: tokens.shape[1]]
        return hot @ weight + which @ self.segment_embedding.weight + positions

    def forward(self, tokens, segments=None, real=None):
        if tokens.shape[1] > self.sizes[1]:
            raise ValueError("max_length")
        segments = tokens * 0 if segments is None else segments
        real = tokens == tokens if real is None else real
        if segments.shape != tokens.shape:
            raise ValueError("segments")
        if real.shape != tokens.shape:
            raise ValueError("real")
        x = self.embedding_norm(self.embed(tokens, segments))
        for i in range(len(self.blocks)):
            x = self.blocks[i](x, real)
        return x, torch.tanh(F.linear(x.select(1, 0), self.pooler.weight, self.pooler.bias))


# %% style="one_hot" part="pretraining"
class BertForPreTraining(nn.Module):
    def __init__(self, *sizes, **named):
        super().__init__()
        self.bert = Bert(*sizes, **named)
        vocab_size, d_model = self.bert.token_embedding.weight.shape
        self.transform = nn.Linear(d_model, d_model)
        self.transform_norm = nn.LayerNorm(d_model, eps=EPS)
        self.nsp = nn.Linear(d_model, 2)
        self.register_parameter("mlm_bias", nn.Parameter(torch.zeros(vocab_size)))
        self.apply(start_small)

    def forward(self, tokens, segments=None, real=None):
        hidden, pooled = self.bert(tokens, segments=segments, real=real)
        x = self.transform_norm(nn.GELU()(self.transform(hidden)))
        logits = F.linear(x, self.bert.token_embedding.weight, self.mlm_bias)
        return logits, self.nsp(pooled)


# %% style="einsum" part="pretraining"
class BertForPreTraining(nn.Module):
    def __init__(self, vocab_size, d_model, num_heads, d_ff, num_layers, max_length):
        super().__init__()
        self.nsp = nn.Linear(d_model, 2)
        self.transform_norm = nn.LayerNorm(d_model, eps=EPS)
        self.transform = nn.Linear(d_model, d_model)
        self.apply(start_small)
        self.mlm_bias = nn.Parameter(torch.zeros(vocab_size))
        self.bert = Bert(vocab_size, d_model, num_heads, d_ff, num_layers, max_length)

    def mlm_head(self, hidden):
        x = F.gelu(torch.einsum("bld,ed->ble", hidden, self.transform.weight) + self.transform.bias)
        embedding = self.bert.token_embedding.weight
        return torch.einsum("ble,ve->blv", self.transform_norm(x), embedding) + self.mlm_bias

    def forward(self, tokens, segments=None, real=None):
        hidden, pooled = self.bert(tokens, segments, real)
        return self.mlm_head(hidden), torch.einsum(
            "bd,cd->bc", pooled, self.nsp.weight
        ) + self.nsp.bias


# %% style="einsum" part="heads"
def linear(layer, x):
    return torch.einsum("...d,cd->...c", x, layer.weight) + layer.bias


class SequenceClassifier(nn.Module):
    def __init__(self, bert, d_model, num_classes):
        super().__init__()
        self.add_module("bert", bert)
        self.add_module("head", nn.Linear(d_model, num_classes))

    def forward(self, tokens, segments=None, real=None):
        return linear(self.head, self.bert(tokens, segments, real)[1])


class TokenClassifier(SequenceClassifier):
    def forward(self, tokens, segments=None, real=None):
        return linear(self.head, self.bert(tokens, segments, real)[0])


class SpanClassifier(TokenClassifier):
    def __init__(self, bert, d_model):
        super().__init__(bert, d_model, 2)

    def forward(self, tokens, segments=None, real=None):
        logits = super().forward(tokens, segments, real)
        return logits.permute(2, 0, 1)[0], logits.permute(2, 0, 1)[1]


def best_span(start_logits, end_logits, in_passage, max_answer):
    """All spans in a square of which a band above the diagonal counts."""
    if max_answer <= 0:
        raise ValueError("max_answer")
    if not bool(in_passage.any(1).all()):
        raise ValueError("in_passage")
    n = start_logits.shape[-1]
    band = torch.ones(n, n, dtype=torch.bool, device=start_logits.device)
    band = band.triu() & ~band.triu(max_answer)
    spans = start_logits.unsqueeze(2) + end_logits.unsqueeze(1)
    may = torch.einsum("bi,bj->bij", in_passage.float(), in_passage.float()).bool() & band
    spans = torch.where(may, spans, float("-inf"))
    best_end = spans.max(dim=2)
    start = best_end.values.argmax(dim=1)
    end = best_end.indices[torch.arange(len(start)), start]
    return torch.stack((start, end), dim=-1)


# %% style="bert_code" part="masking"
def mask_tokens(tokens, vocab_size, mask_id, special_ids, generator, rate=0.15):
    """After the order of BERT's own code: shuffle the candidates, then walk until enough are masked."""
    if not 0 < rate <= 1:
        raise ValueError("rate out of range")
    if not 0 <= mask_id < vocab_size:
        raise ValueError("mask_id is not below vocab_size")
    if len(tokens.flatten()) and not (0 <= int(tokens.min()) and int(tokens.max()) < vocab_size):
        raise ValueError("a token is not below vocab_size")
    special = set(special_ids)
    inputs = tokens.detach().cpu().clone()
    labels = torch.full_like(inputs, -100)
    for b, row in enumerate(tokens.tolist()):
        candidates = [i for i, token in enumerate(row) if token not in special]
        if not candidates:
            continue
        wanted = max(1, round(len(candidates) * rate))
        shuffled = [candidates[i] for i in torch.randperm(len(candidates), generator=generator)]
        dice = torch.rand(wanted, 2, generator=generator).tolist()
        words = torch.randint(vocab_size, (wanted,), generator=generator).tolist()
        for i, (one, other), word in zip(shuffled[:wanted], dice, words):
            labels[b, i] = row[i]
            if one < 0.8:
                inputs[b, i] = mask_id
            elif other >= 0.5:
                inputs[b, i] = word
    return inputs.to(tokens.device), labels.to(tokens.device)


# %% style="bert_code" part="encoder"
class EncoderBlock(nn.Module):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__()
        self.attention = SelfAttention(d_model, num_heads)
        for i, (width, outputs) in enumerate([(d_model, d_ff), (d_ff, d_model)], start=1):
            setattr(self, f"linear{i}", nn.Linear(width, outputs))
            setattr(self, f"norm{i}", nn.LayerNorm(d_model, eps=EPS))

    def forward(self, x, real=None):
        def intermediate(y):
            return self.linear2(F.gelu(self.linear1(y)))

        for sublayer, norm in [
            (lambda y: self.attention(y, real), self.norm1),
            (intermediate, self.norm2),
        ]:
            x = norm(x + sublayer(x))
        return x


class Bert(nn.Module):
    def __init__(self, vocab_size, d_model, num_heads, d_ff, num_layers, max_length):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(max_length, d_model)
        self.segment_embedding = nn.Embedding(2, d_model)
        self.embedding_norm = nn.LayerNorm(d_model, eps=EPS)
        self.blocks = nn.ModuleList(
            [EncoderBlock(d_model, num_heads, d_ff) for _ in range(num_layers)]
        )
        self.pooler = nn.Linear(d_model, d_model)
        self.register_buffer("position_ids", torch.arange(max_length)[None], persistent=False)
        self.apply(start_small)

    def forward(self, tokens, segments=None, real=None):
        length = tokens.size(1)
        if length > self.position_ids.size(1):
            raise ValueError(f"max_length is {self.position_ids.size(1)}")
        if segments is None:
            segments = torch.zeros(tokens.shape, dtype=torch.long, device=tokens.device)
        if segments.shape != tokens.shape:
            raise ValueError("segments")
        if real is not None and real.shape != tokens.shape:
            raise ValueError("real")
        x = self.token_embedding(tokens)
        x = x + self.segment_embedding(segments)
        x = x + self.position_embedding(self.position_ids[:, :length])
        x = self.embedding_norm(x)
        for layer in self.blocks:
            x = layer(x, real)
        first = x[:, 0:1, :].squeeze(1)
        return x, torch.tanh(self.pooler(first))
