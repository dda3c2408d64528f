# %% style="loops" part="positions"
def sinusoidal_positions(length, d_model):
    if d_model % 2 == 1:
        raise ValueError(f"{d_model} is an odd d_model")
    if length < 0:
        raise ValueError("length < 0")
    pe = torch.zeros(length, d_model)
    for pos in range(length):
        for i in range(d_model // 2):
            angle = pos / 10000 ** (2 * i / d_model)
            pe[pos, 2 * i] = math.sin(angle)
            pe[pos, 2 * i + 1] = math.cos(angle)
    return pe


# %% style="loops" part="layer_norm"
def layer_norm(x, weight, bias, eps=1e-5):
    """One vector at a time."""
    d = x.shape[-1]
    if weight.shape != (d,):
        raise ValueError(f"weight has shape {tuple(weight.shape)}")
    if bias.shape != (d,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}")
    rows = []
    for row in x.reshape(-1, d):
        mean = sum(row[j] for j in range(d)) / d
        variance = sum((row[j] - mean) ** 2 for j in range(d)) / d
        rows.append(weight * (row - mean) / (variance + eps) ** 0.5 + bias)
    return torch.stack(rows).reshape(x.shape)


# %% style="loops" part="encoder"
class EncoderBlock(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, norm_first=False):
        super().__init__()
        self.attention = MultiHeadAttention(d_model, num_heads)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.pre = norm_first

    def forward(self, x, mask=None):
        def look(y):
            return self.attention(y, y, y, mask)

        for sublayer, norm in ((look, self.norm1), (self.feed_forward, self.norm2)):
            x = x + sublayer(norm(x)) if self.pre else norm(x + sublayer(x))
        return x


# %% style="loops" part="transformer"
class Transformer(nn.Module):
    """One sentence at a time, without its padding: nothing is left to mask."""

    def __init__(
        self, vocab_size, d_model, num_heads, d_ff, num_layers, pad_id=0, norm_first=False
    ):
        super().__init__()
        self.pad_id = pad_id
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.embedding.weight.data /= math.sqrt(d_model)
        self.encoder_blocks, self.decoder_blocks = nn.ModuleList(), nn.ModuleList()
        for _ in range(num_layers):
            self.encoder_blocks.append(EncoderBlock(d_model, num_heads, d_ff, norm_first))
            self.decoder_blocks.append(DecoderBlock(d_model, num_heads, d_ff, norm_first))
        self.encoder_norm = self.decoder_norm = None
        if norm_first:
            self.encoder_norm, self.decoder_norm = LayerNorm(d_model), LayerNorm(d_model)

    def embed(self, tokens):
        d = self.embedding.embedding_dim
        positions = sinusoidal_positions(tokens.shape[-1], d)
        positions = positions.to(device=tokens.device, dtype=self.embedding.weight.dtype)
        return d**0.5 * self.embedding(tokens) + positions

    def encode(self, source):
        rows = []
        for sentence in source:
            n = int((sentence != self.pad_id).sum())
            x = self.embed(sentence[None, :n])
            for block in self.encoder_blocks:
                x = block(x)
            if self.encoder_norm is not None:
                x = self.encoder_norm(x)
            rows.append(torch.nn.functional.pad(x[0], (0, 0, 0, source.shape[1] - n)))
        return torch.stack(rows)

    def decode(self, target, memory, source):
        rows = []
        for written, seen, sentence in zip(target, memory, source, strict=True):
            n = int((sentence != self.pad_id).sum())
            x = self.embed(written[None])
            for block in self.decoder_blocks:
                x = block(x, seen[None, :n])
            if self.decoder_norm is not None:
                x = self.decoder_norm(x)
            rows.append(x[0] @ self.embedding.weight.T)
        return torch.stack(rows)

    def forward(self, source, target):
        if source.shape[0] != target.shape[0]:
            raise ValueError("not the same batch")
        return self.decode(target, self.encode(source), source)


# %% style="in_place" part="positions"
def sinusoidal_positions(length, d_model):
    if d_model % 2:
        raise ValueError("d_model has to be even")
    if length < 0:
        raise ValueError("length has to be 0 or more")
    # In float32 all the way, as in most code one finds.
    position = torch.arange(length).unsqueeze(1)
    div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
    pe = torch.zeros(length, d_model)
    pe[:, 0::2] = torch.sin(position * div_term)
    pe[:, 1::2] = torch.cos(position * div_term)
    return pe


# %% style="in_place" part="layer_norm"
def layer_norm(x, weight, bias, eps=1e-5):
    if weight.shape != x.shape[-1:]:
        raise ValueError("wrong shape of weight")
    if bias.shape != x.shape[-1:]:
        raise ValueError("wrong shape of bias")
    x = x.clone()
    x -= x.mean(-1, keepdim=True)
    root = x.var(-1, unbiased=False, keepdim=True).add_(eps).sqrt()
    out = x / root
    out = out * weight
    out += bias
    return out


# %% style="in_place" part="feed_forward"
class FeedForward(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        self.linear1 = nn.Linear(d_model, d_ff)
        self.relu = nn.ReLU(inplace=True)
        self.linear2 = nn.Linear(d_ff, d_model)

    def forward(self, x):
        hidden = self.linear1(x)
        self.relu(hidden)
        return self.linear2(hidden)


# %% style="in_place" part="encoder"
class EncoderBlock(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, norm_first=False):
        super().__init__()
        self.norm1 = LayerNorm(d_model)
        self.norm2 = LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.attention = MultiHeadAttention(d_model, num_heads)
        self.norm_first = norm_first

    def forward(self, x, mask=None):
        y = self.norm1(x) if self.norm_first else x
        out = self.attention(queries=y, keys=y, values=y, mask=mask)
        out += x
        if not self.norm_first:
            out = self.norm1(out)
        last = self.feed_forward(self.norm2(out) if self.norm_first else out)
        last += out
        return last if self.norm_first else self.norm2(last)


# %% style="in_place" part="decoder"
class DecoderBlock(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, norm_first=False):
        super().__init__()
        for i in (1, 2, 3):
            setattr(self, f"norm{i}", LayerNorm(d_model))
        self.self_attention = MultiHeadAttention(d_model, num_heads)
        self.cross_attention = MultiHeadAttention(d_model, num_heads)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.norm_first = norm_first

    def forward(self, x, memory, memory_mask=None):
        n = x.size(1)
        allowed = torch.zeros(n, n, dtype=torch.bool, device=x.device)
        for i in range(n):
            allowed[i, : i + 1] = True

        y = self.norm1(x) if self.norm_first else x
        out = self.self_attention(y, y, y, allowed)
        out += x
        x = out if self.norm_first else self.norm1(out)

        y = self.norm2(x) if self.norm_first else x
        out = self.cross_attention(y, memory, memory, memory_mask)
        out += x
        x = out if self.norm_first else self.norm2(out)

        out = self.feed_forward(self.norm3(x) if self.norm_first else x)
        out += x
        return out if self.norm_first else self.norm3(out)


# %% style="complex_numbers" part="positions"
def sinusoidal_positions(length, d_model):
    """Each pair is a point on the unit circle: turn it by one frequency per position."""
    pairs, odd = divmod(d_model, 2)
    if odd:
        raise ValueError("the d_model of sines and cosines comes in pairs")
    if length < 0:
        raise ValueError("no negative length")
    frequency = torch.logspace(0, -4, pairs + 1, dtype=torch.float64)[:pairs]
    angle = torch.outer(torch.arange(length).double(), frequency)
    turned = torch.view_as_real(torch.polar(torch.ones_like(angle), angle))  # (cos, sin)
    return turned.flip(-1).reshape(length, d_model).to(torch.float32)


# %% style="complex_numbers" part="layer_norm"
def layer_norm(x, weight, bias, eps=1e-5):
    """Centring is a projection; what is left is divided by its root mean square."""
    d = x.shape[-1]
    if tuple(weight.shape) != (d,) or tuple(bias.shape) != (d,):
        raise ValueError(f"weight and bias must be of shape ({d},)")
    projection = torch.eye(d, dtype=x.dtype, device=x.device) - 1 / d
    centred = x @ projection
    return torch.addcmul(
        bias,
        weight,
        centred * torch.rsqrt((centred @ centred.mT / d).diagonal(0, -2, -1)[..., None] + eps)
        if x.dim() > 1
        else centred * torch.rsqrt(centred @ centred / d + eps),
    )


# %% style="complex_numbers" part="feed_forward"
class FeedForward(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def forward(self, x):
        h = torch.einsum("...i,oi->...o", x, self.linear1.weight) + self.linear1.bias
        h = torch.where(h > 0, h, torch.zeros_like(h))
        return torch.einsum("...i,oi->...o", h, self.linear2.weight) + self.linear2.bias


# %% style="complex_numbers" part="transformer"
class Transformer(nn.Module):
    """Padding is counted once per sentence; positions are kept in a buffer that grows."""

    def __init__(
        self, vocab_size, d_model, num_heads, d_ff, num_layers, pad_id=0, norm_first=False
    ):
        super().__init__()
        self.pad = pad_id
        self.embedding = nn.Embedding.from_pretrained(
            torch.randn(vocab_size, d_model) / d_model**0.5, freeze=False
        )
        self.register_buffer("positions", sinusoidal_positions(4, d_model), persistent=False)
        make = [d_model, num_heads, d_ff]
        self.encoder_blocks = nn.ModuleList(
            [EncoderBlock(*make, norm_first=norm_first) for _ in range(num_layers)]
        )
        self.decoder_blocks = nn.ModuleList(
            [DecoderBlock(*make, norm_first=norm_first) for _ in range(num_layers)]
        )
        self.encoder_norm = LayerNorm(d_model) if norm_first else nn.Sequential()
        self.decoder_norm = LayerNorm(d_model) if norm_first else nn.Sequential()

    def embed(self, tokens):
        n, d = tokens.shape[1], self.embedding.weight.shape[1]
        if n > len(self.positions):
            self.positions = sinusoidal_positions(2 * n, d).to(self.positions)
        one_hot = torch.nn.functional.one_hot(tokens, self.embedding.weight.shape[0])
        return (
            one_hot.to(self.embedding.weight) @ (self.embedding.weight * math.sqrt(d))
            + self.positions[:n]
        )

    def encode(self, source):
        seen = source.ne(self.pad).unsqueeze(1)
        x = self.embed(source)
        for block in self.encoder_blocks:
            x = block(x, seen.expand(-1, source.shape[1], -1))
        x = self.encoder_norm(x)
        return x.masked_fill(source.eq(self.pad)[..., None], 0.0)

    def decode(self, target, memory, source):
        x = self.embed(target)
        for block in self.decoder_blocks:
            x = block(x, memory, source.ne(self.pad).unsqueeze(1).expand(-1, target.shape[1], -1))
        return torch.nn.functional.linear(self.decoder_norm(x), self.embedding.weight)

    def forward(self, source, target):
        if source.shape[:1] != target.shape[:1]:
            raise ValueError(f"batch {source.shape[0]} against batch {target.shape[0]}")
        memory = self.encode(source)
        return self.decode(target, memory, source)


# %% style="helpers" part="positions"
def _wave(position, column, d_model):
    even = column - column % 2
    angle = position / torch.pow(torch.tensor(10000.0, dtype=torch.float64), even / d_model)
    # A cosine is a sine a quarter of a turn ahead.
    return torch.sin(angle + (column % 2) * math.pi / 2)


def sinusoidal_positions(length, d_model):
    if d_model % 2 != 0:
        raise ValueError(f"{d_model=} is odd")
    if length < 0:
        raise ValueError(f"{length=} is negative")
    grid = torch.meshgrid(
        torch.arange(length).double(), torch.arange(d_model).double(), indexing="ij"
    )
    return _wave(*grid, d_model).float()


# %% style="helpers" part="layer_norm"
def _check_shape(name, parameter, d):
    if parameter.ndim != 1 or parameter.numel() != d:
        raise ValueError(f"{name}: expected {d} numbers")


def layer_norm(x, weight, bias, eps=1e-5):
    _check_shape("weight", weight, x.shape[-1])
    _check_shape("bias", bias, x.shape[-1])
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    return (x - mean) * (variance + eps).rsqrt() * weight + bias


# %% style="helpers" part="feed_forward"
class FeedForward(nn.Sequential):
    def __init__(self, d_model, d_ff):
        super().__init__()
        self.add_module("linear1", nn.Linear(d_model, d_ff))
        self.add_module("relu", nn.ReLU())
        self.add_module("linear2", nn.Linear(d_ff, d_model))


# %% style="helpers" part="encoder"
def _post(x, sublayer, norm):
    return norm(x + sublayer(x))


def _pre(x, sublayer, norm):
    return x + sublayer(norm(x))


class EncoderBlock(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, norm_first=False):
        super().__init__()
        self.attention = MultiHeadAttention(d_model, num_heads)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.norm1 = LayerNorm(d_model)
        self.norm2 = LayerNorm(d_model)
        self.around = _pre if norm_first else _post

    def forward(self, x, mask=None):
        x = self.around(x, lambda y: self.attention(y, y, y, mask), self.norm1)
        return self.around(x, self.feed_forward, self.norm2)


# %% style="helpers" part="decoder"
def _around(norm_first, x, sublayer, norm):
    if norm_first:
        return x + sublayer(norm(x))
    return norm(x + sublayer(x))


class DecoderBlock(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, norm_first=False):
        super().__init__()
        self.norm_first = norm_first
        self.self_attention = MultiHeadAttention(d_model, num_heads)
        self.cross_attention = MultiHeadAttention(d_model, num_heads)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.norm1, self.norm2, self.norm3 = (LayerNorm(d_model) for _ in range(3))

    def forward(self, x, memory, memory_mask=None):
        step = torch.arange(x.shape[1], device=x.device)
        past = step[None, :] <= step[:, None]
        steps = [
            (lambda y: self.self_attention(y, y, y, past.expand(len(y), -1, -1)), self.norm1),
            (lambda y: self.cross_attention(y, memory, memory, memory_mask), self.norm2),
            (lambda y: self.feed_forward(y), self.norm3),
        ]
        for sublayer, norm in steps:
            x = _around(self.norm_first, x, sublayer, norm)
        return x


# %% style="one_query_at_a_time" part="decoder"
class DecoderBlock(nn.Module):
    """No causal mask: position i is simply given nothing but positions 0 to i."""

    def __init__(self, d_model, num_heads, d_ff, norm_first=False):
        super().__init__()
        self.self_attention = MultiHeadAttention(d_model, num_heads)
        self.cross_attention = MultiHeadAttention(d_model, num_heads)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.norms = [LayerNorm(d_model), LayerNorm(d_model), LayerNorm(d_model)]
        self.norm1, self.norm2, self.norm3 = self.norms
        self.norm_first = norm_first

    def forward(self, x, memory, memory_mask=None):
        before = self.norm1(x) if self.norm_first else x
        looked = [
            self.self_attention(before[:, i : i + 1], before[:, : i + 1], before[:, : i + 1])
            for i in range(x.shape[1])
        ]
        x = x + torch.cat(looked, dim=1)
        if self.norm_first:
            x = x + self.cross_attention(self.norm2(x), memory, memory, memory_mask)
            x = x + self.feed_forward(self.norm3(x))
        else:
            x = self.norm1(x)
            x = self.norm2(x + self.cross_attention(x, memory, memory, memory_mask))
            x = self.norm3(x + self.feed_forward(x))
        return x


# %% style="one_query_at_a_time" part="feed_forward"
class FeedForward(nn.Module):
    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.linear1 = nn.Linear(d_model, d_ff)
        self.linear2 = nn.Linear(d_ff, d_model)

    def forward(self, x):
        return self.linear2(self.linear1(x).clamp(min=0))


# %% style="one_query_at_a_time" part="transformer"
class Transformer(nn.Module):
    """Source and target go through one list of steps; the mask is a row of each sentence."""

    def __init__(
        self, vocab_size, d_model, num_heads, d_ff, num_layers, pad_id=0, norm_first=False
    ):
        super().__init__()
        self.root = math.sqrt(d_model)
        self.is_real = lambda tokens: (tokens - pad_id).abs() > 0
        self.embedding = nn.Embedding(vocab_size, d_model)
        with torch.no_grad():
            self.embedding.weight.mul_(1 / self.root)
        self.encoder_blocks = nn.ModuleList()
        self.decoder_blocks = nn.ModuleList()
        while len(self.encoder_blocks) < num_layers:
            self.encoder_blocks.append(EncoderBlock(d_model, num_heads, d_ff, norm_first))
            self.decoder_blocks.append(DecoderBlock(d_model, num_heads, d_ff, norm_first))
        if norm_first:
            self.encoder_norm = LayerNorm(d_model)
            self.decoder_norm = LayerNorm(d_model)
        self.norm_first = norm_first

    def embed(self, tokens):
        code = sinusoidal_positions(tokens.shape[1], self.embedding.embedding_dim)
        return torch.add(code.to(self.embedding.weight), self.embedding(tokens), alpha=self.root)

    def encode(self, source):
        mask = self.is_real(source)[:, None]
        x = self.embed(source)
        for i in range(len(self.encoder_blocks)):
            x = self.encoder_blocks[i](x, mask)
        return self.encoder_norm(x) if self.norm_first else x

    def decode(self, target, memory, source):
        mask = self.is_real(source)[:, None]
        x = self.embed(target)
        for i in range(len(self.decoder_blocks)):
            x = self.decoder_blocks[i](x, memory, mask)
        if self.norm_first:
            x = self.decoder_norm(x)
        return torch.einsum("btd,vd->btv", x, self.embedding.weight)

    def forward(self, source, target):
        if len(source) != len(target):
            raise ValueError("source and target must be one batch")
        return self.decode(target=target, memory=self.encode(source), source=source)
