# %% style="loops" part="norm"
def rms_norm(x, weight, eps):
    """Row by row."""
    if tuple(weight.shape) != (x.shape[-1],):
        raise ValueError("weight")
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        wide = row if row.dtype == torch.float64 else row.to(torch.float32)
        rows.append((wide / ((wide @ wide) / len(row) + eps) ** 0.5).to(x.dtype) * weight)
    return torch.stack(rows).reshape(x.shape)


def swiglu(x, gate_proj, up_proj, down_proj):
    gate = F.linear(x, gate_proj)
    return F.linear(gate * torch.sigmoid(gate) * F.linear(x, up_proj), down_proj)


# %% style="loops" part="rope"
def apply_rope(x, positions, base, layout):
    """Pair by pair."""
    d = x.shape[-1]
    if d % 2 == 1:
        raise ValueError("head_dim")
    if tuple(positions.shape) != (x.shape[-2],):
        raise ValueError("positions")
    if layout not in ("interleaved", "halves"):
        raise ValueError("layout")
    columns = [None] * d
    for j in range(d // 2):
        one, other = (2 * j, 2 * j + 1) if layout == "interleaved" else (j, j + d // 2)
        angle = positions.to(torch.float32) / base ** (2 * j / d)
        cos, sin = torch.cos(angle).to(x.dtype), torch.sin(angle).to(x.dtype)
        columns[one] = x[..., one] * cos - x[..., other] * sin
        columns[other] = x[..., other] * cos + x[..., one] * sin
    return torch.stack(columns, dim=-1)


def _places(rows, num_heads):
    if num_heads <= 0 or rows % num_heads or (rows // num_heads) % 2:
        raise ValueError("num_heads")
    d = rows // num_heads
    return [h * d + i for h in range(num_heads) for i in [*range(0, d, 2), *range(1, d, 2)]]


def interleaved_to_halves(weight, num_heads):
    return weight[_places(weight.shape[0], num_heads)]


def halves_to_interleaved(weight, num_heads):
    back = torch.empty_like(weight)
    back[_places(weight.shape[0], num_heads)] = weight
    return back


# %% style="loops" part="attention"
class GroupedQueryAttention(nn.Module):
    """Head by head, with its own softmax."""

    def __init__(self, d_model, num_heads, num_kv_heads, head_dim, rope_base, layout):
        super().__init__()
        if num_kv_heads <= 0 or num_heads % num_kv_heads != 0:
            raise ValueError("num_kv_heads")
        self.sizes = num_heads, num_kv_heads, head_dim
        self.rope = rope_base, layout
        self.q_proj = nn.Linear(d_model, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(d_model, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(d_model, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, d_model, bias=False)

    def forward(self, x, cache=None):
        num_heads, num_kv_heads, d = self.sizes
        start = cache[0].shape[2] if cache else 0
        positions = torch.arange(start, start + x.shape[1], device=x.device)
        keys, values = [], []
        for h in range(num_kv_heads):
            part = slice(h * d, (h + 1) * d)
            k = apply_rope(self.k_proj(x)[..., part], positions, *self.rope)
            v = self.v_proj(x)[..., part]
            if cache:
                k, v = torch.cat([cache[0][:, h], k], 1), torch.cat([cache[1][:, h], v], 1)
            keys.append(k)
            values.append(v)
        seen = torch.arange(start + x.shape[1], device=x.device) <= positions[:, None]
        outputs = []
        for h in range(num_heads):
            q = apply_rope(self.q_proj(x)[..., h * d : (h + 1) * d], positions, *self.rope)
            shared = h * num_kv_heads // num_heads
            scores = q @ keys[shared].mT / math.sqrt(d)
            outputs.append(scores.masked_fill(~seen, -math.inf).softmax(-1) @ values[shared])
        return self.o_proj(torch.cat(outputs, -1)), (torch.stack(keys, 1), torch.stack(values, 1))


# %% style="loops" part="safetensors"
def read_safetensors(data):
    """One number at a time for the header's length, NumPy for the numbers."""
    import numpy as np

    if len(data) < 8:
        raise ValueError("header")
    size = sum(byte << (8 * i) for i, byte in enumerate(data[:8]))
    if len(data) - 8 < size:
        raise ValueError("header")
    header = json.loads(bytes(data[8 : 8 + size]).decode("utf-8"))
    header.pop("__metadata__", None)
    body = data[8 + size :]
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<i2"}
    found = {}
    for name in header:
        kind, shape = header[name]["dtype"], tuple(header[name]["shape"])
        begin, end = header[name]["data_offsets"]
        if kind not in kinds:
            raise ValueError(name)
        numbers = np.frombuffer(body[begin:end][: (end - begin) // 2 * 2], dtype=np.uint8)
        wanted = int(np.prod(shape, dtype=np.int64)) * np.dtype(kinds[kind]).itemsize
        if end - begin != wanted or len(numbers) != wanted:
            raise ValueError(name)
        tensor = torch.from_numpy(numbers.view(kinds[kind]).reshape(shape).copy())
        found[name] = tensor.view(torch.bfloat16) if kind == "BF16" else tensor
    return found


# %% style="loops" part="loading"
def read_config(fields):
    def field(name, default=None):
        value = fields.get(name)
        if value is None:
            if default is None:
                raise ValueError(name)
            return default
        return value

    if field("model_type") != "llama":
        raise ValueError("model_type")
    if field("hidden_act", "silu") != "silu":
        raise ValueError("hidden_act")
    if fields.get("rope_scaling") is not None:
        raise ValueError("rope_scaling")
    rope = field("rope_parameters", {})
    if rope.get("rope_type", "default") != "default":
        raise ValueError("rope_type")
    width, heads = field("hidden_size"), field("num_attention_heads")
    return LlamaConfig(
        field("vocab_size"),
        width,
        field("intermediate_size"),
        field("num_hidden_layers"),
        heads,
        field("num_key_value_heads", heads),
        field("head_dim", width // heads),
        field("rms_norm_eps", 1e-6),
        rope["rope_theta"] if "rope_theta" in rope else field("rope_theta", 1e4),
        field("tie_word_embeddings", False),
    )


def load_llama(files, layout="halves"):
    """All checks before a model is made."""
    if "config.json" not in files:
        raise ValueError("config.json")
    config = read_config(json.loads(files["config.json"]))
    names = ["model.safetensors"]
    if names[0] not in files and "model.safetensors.index.json" in files:
        names = json.loads(files["model.safetensors.index.json"])["weight_map"].values()
    tensors = {}
    for name in dict.fromkeys(names):
        if name not in files:
            raise ValueError(name)
        tensors.update(read_safetensors(files[name]))
    tensors = {n: t for n, t in tensors.items() if not n.endswith("rotary_emb.inv_freq")}
    wanted = _shapes(config)
    for name in sorted(wanted.keys() ^ tensors.keys()):
        raise ValueError(name)
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(name)
    if layout == "interleaved":
        for i in range(config.num_hidden_layers):
            for kind, heads in (
                ("q", config.num_attention_heads),
                ("k", config.num_key_value_heads),
            ):
                name = f"model.layers.{i}.self_attn.{kind}_proj.weight"
                tensors[name] = halves_to_interleaved(tensors[name], heads)
    model = Llama(config, layout)
    model.load_state_dict({n.removeprefix("model."): t.float() for n, t in tensors.items()})
    return model


def _shapes(config):
    width, inner = config.hidden_size, config.intermediate_size
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    shapes = {
        "model.embed_tokens.weight": (config.vocab_size, width),
        "model.norm.weight": (width,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    for i in range(config.num_hidden_layers):
        for name, shape in {
            "self_attn.q_proj": (q, width),
            "self_attn.k_proj": (kv, width),
            "self_attn.v_proj": (kv, width),
            "self_attn.o_proj": (width, q),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    return shapes


def dimensions(shapes):
    layers = {int(name.split(".")[2]) for name in shapes if name.startswith("model.layers.")}
    q, k = (shapes[f"model.layers.0.self_attn.{kind}_proj.weight"][0] for kind in "qk")
    inner = shapes["model.layers.0.mlp.down_proj.weight"][1]
    vocab, width = shapes["model.embed_tokens.weight"]
    return Dimensions(vocab, width, inner, max(layers) + 1, q // k, "lm_head.weight" not in shapes)


# %% style="complex_numbers" part="rope"
def apply_rope(x, positions, base, layout):
    """As Meta's code: a pair is a complex number, and turning it a product."""
    length, d = x.shape[-2:]
    if d % 2:
        raise ValueError("head_dim")
    if positions.shape != (length,):
        raise ValueError("positions")
    if layout == "halves":
        pairs = torch.stack([x[..., : d // 2], x[..., d // 2 :]], dim=-1)
    elif layout == "interleaved":
        pairs = x.reshape(*x.shape[:-1], d // 2, 2)
    else:
        raise ValueError("layout")
    wide = pairs if x.dtype == torch.float64 else pairs.float()
    frequencies = torch.pow(base, -torch.arange(0, d, 2, device=x.device).double() / d)
    angles = torch.outer(positions.double(), frequencies)
    turned = torch.view_as_complex(wide.contiguous()) * torch.polar(
        torch.ones_like(angles), angles
    ).to(torch.complex128 if x.dtype == torch.float64 else torch.complex64)
    pairs = torch.view_as_real(turned).to(x.dtype)
    return pairs.mT.flatten(-2) if layout == "halves" else pairs.flatten(-2)


def _split(weight, num_heads, inner):
    if num_heads < 1 or len(weight) % num_heads or len(weight) // num_heads % 2:
        raise ValueError("num_heads")
    half = len(weight) // num_heads // 2
    shape = (num_heads, half, 2) if inner else (num_heads, 2, half)
    return weight.reshape(*shape, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def interleaved_to_halves(weight, num_heads):
    """As the converting script does it: view, transpose, reshape."""
    return _split(weight, num_heads, True)


def halves_to_interleaved(weight, num_heads):
    return _split(weight, num_heads, False)


# %% style="complex_numbers" part="norm"
def rms_norm(x, weight, eps):
    if weight.shape != x.shape[-1:]:
        raise ValueError("weight")
    wide = x.double()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).type_as(x) * weight


def swiglu(x, gate_proj, up_proj, down_proj):
    both = x @ torch.cat([gate_proj, up_proj]).T
    gate, up = both.chunk(2, dim=-1)
    return torch.matmul(F.silu(gate) * up, down_proj.T)


# %% style="rotate_half" part="rope"
def apply_rope(x, positions, base, layout):
    """As Hugging Face's code: x·cos + rotate_half(x)·sin; the other layout by permuting there and back."""
    d = x.shape[-1]
    if d % 2 != 0:
        raise ValueError("head_dim must be even")
    if positions.dim() != 1 or len(positions) != x.shape[-2]:
        raise ValueError("positions")
    if layout == "interleaved":
        halved = torch.cat([x[..., ::2], x[..., 1::2]], dim=-1)
        turned = apply_rope(halved, positions, base, "halves")
        return torch.stack(turned.chunk(2, -1), dim=-1).reshape(x.shape)
    if layout != "halves":
        raise ValueError("layout")
    inv_freq = 1.0 / (base ** (torch.arange(0, d, 2, device=x.device).float() / d))
    angles = (positions.float()[:, None] * inv_freq).repeat(1, 2)
    rotated = torch.cat([-x[..., d // 2 :], x[..., : d // 2]], dim=-1)
    return x * angles.cos().to(x.dtype) + rotated * angles.sin().to(x.dtype)


def interleaved_to_halves(weight, num_heads):
    if num_heads < 1 or len(weight) % (num_heads * 2):
        raise ValueError("num_heads")
    heads = weight.unflatten(0, (num_heads, -1))
    return torch.cat([heads[:, ::2], heads[:, 1::2]], dim=1).flatten(0, 1)


def halves_to_interleaved(weight, num_heads):
    if num_heads < 1 or len(weight) % (num_heads * 2):
        raise ValueError("num_heads")
    first, second = weight.unflatten(0, (num_heads, -1)).chunk(2, dim=1)
    return torch.stack([first, second], dim=2).flatten(0, 2)


# %% style="rotate_half" part="attention"
class GroupedQueryAttention(nn.Module):
    """torch's own groups."""

    def __init__(self, d_model, num_heads, num_kv_heads, head_dim, rope_base, layout):
        super().__init__()
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError("num_kv_heads")
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.base, self.layout = rope_base, layout
        kv = num_kv_heads * head_dim
        self.q_proj = nn.Linear(d_model, num_heads * head_dim, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(d_model, kv, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(num_heads * head_dim, d_model, bias=False)

    def forward(self, x, cache=None):
        batch, new, _ = x.shape
        q = self.q_proj(x).view(batch, new, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, new, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, new, self.num_kv_heads, self.head_dim).transpose(1, 2)
        past = cache[0].size(2) if cache is not None else 0
        at = past + torch.arange(new, device=x.device)
        q, k = (apply_rope(t, at, self.base, self.layout) for t in (q, k))
        if past:
            k, v = (torch.cat(pair, dim=2) for pair in zip(cache, (k, v), strict=True))
        mask = at[:, None] >= torch.arange(past + new, device=x.device)
        heads = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
        return self.o_proj(heads.transpose(1, 2).reshape(batch, new, -1)), (k, v)


# %% style="grouped" part="attention"
class GroupedQueryAttention(nn.Module):
    """The groups as an axis of their own: nothing is repeated."""

    def __init__(self, d_model, num_heads, num_kv_heads, head_dim, rope_base, layout):
        super().__init__()
        if num_kv_heads < 1:
            raise ValueError("num_kv_heads must be positive")
        group, rest = divmod(num_heads, num_kv_heads)
        if rest or not group:
            raise ValueError("num_kv_heads must divide num_heads")
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        self.turn = lambda t, at: apply_rope(t, at, rope_base, layout)
        self.q_proj = nn.Linear(d_model, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(d_model, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(d_model, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, d_model, bias=False)

    def forward(self, x, cache=None):
        n, d = self.num_kv_heads, self.head_dim
        q = rearrange(self.q_proj(x), "b t (n g d) -> b n g t d", n=n, d=d)
        k = rearrange(self.k_proj(x), "b t (n d) -> b n t d", d=d)
        v = rearrange(self.v_proj(x), "b t (n d) -> b n t d", d=d)
        past = 0
        if cache is not None:
            past = cache[0].shape[-2]
        at = torch.arange(past, past + x.shape[1], device=x.device)
        q, k = self.turn(q, at), self.turn(k, at)
        if cache is not None:
            k, v = torch.cat((cache[0], k), -2), torch.cat((cache[1], v), -2)
        scores = torch.einsum("bngtd,bnsd->bngts", q, k) * d**-0.5
        future = torch.ones_like(scores[0, 0, 0]).triu(past + 1).bool()
        weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
        heads = torch.einsum("bngts,bnsd->btngd", weights, v)
        return self.o_proj(heads.flatten(2)), (k, v)


# %% style="grouped" part="model"
class LlamaBlock(nn.Module):
    def __init__(self, config, layout):
        super().__init__()
        c = config
        self.input_layernorm, self.post_attention_layernorm = (
            RMSNorm(c.hidden_size, c.rms_norm_eps) for _ in range(2)
        )
        self.self_attn = GroupedQueryAttention(
            d_model=c.hidden_size,
            num_heads=c.num_attention_heads,
            num_kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            rope_base=c.rope_theta,
            layout=layout,
        )
        self.mlp = FeedForward(c.hidden_size, c.intermediate_size)

    def forward(self, x, cache=None):
        y, kept = self.self_attn(self.input_layernorm(x), cache)
        y = x + y
        return y + self.mlp(self.post_attention_layernorm(y)), kept


class Llama(nn.Module):
    """forward is the other way round: step with nothing kept."""

    def __init__(self, config, layout="halves"):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList()
        for _ in range(config.num_hidden_layers):
            self.layers.append(LlamaBlock(config, layout))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.tie_word_embeddings is False:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens):
        logits, _ = self.step(tokens, None)
        return logits

    def step(self, tokens, cache=None):
        caches = list(cache) if cache is not None else [None] * len(self.layers)
        x = F.embedding(tokens, self.embed_tokens.weight)
        for i, layer in enumerate(self.layers):
            x, caches[i] = layer(x, caches[i])
        x = self.norm(x)
        if self.config.tie_word_embeddings:
            return F.linear(x, self.embed_tokens.weight), caches
        return self.lm_head(x), caches


# %% style="library" part="safetensors"
def read_safetensors(data):
    """The header by hand for what may be wrong, then the library."""
    import struct

    import safetensors.torch

    if len(data) < 8 or len(data) < 8 + struct.unpack("<Q", data[:8])[0]:
        raise ValueError("header")
    (size,) = struct.unpack("<Q", data[:8])
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            if entry["dtype"] not in DTYPES:
                raise ValueError(name)
            count = torch.Size(entry["shape"]).numel()
            begin, end = entry["data_offsets"]
            if count * torch.empty(0, dtype=DTYPES[entry["dtype"]]).element_size() != end - begin:
                raise ValueError(name)
            if end > len(data) - 8 - size:
                raise ValueError(name)
    return safetensors.torch.load(bytes(data))


# %% style="library" part="loading"
def read_config(fields):
    merged = {
        "num_key_value_heads": fields.get("num_attention_heads"),
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "rope_parameters": {},
    }
    merged |= {name: value for name, value in fields.items() if value is not None}
    for name, wanted in (("model_type", "llama"), ("hidden_act", "silu")):
        if merged.get(name) != wanted:
            raise ValueError(name)
    merged |= {k: v for k, v in merged["rope_parameters"].items() if k != "rope_scaling"}
    if merged.get("rope_scaling") or merged.get("rope_type", "default") != "default":
        raise ValueError("rope is scaled")
    for name in LlamaConfig.__dataclass_fields__:
        if name == "head_dim" and merged.get(name) is None:
            merged[name] = merged["hidden_size"] // merged["num_attention_heads"]
        if merged.get(name) is None:
            raise ValueError(name)
    return LlamaConfig(**{name: merged[name] for name in LlamaConfig.__dataclass_fields__})


def load_llama(files, layout="halves"):
    """torch's own check of names and shapes, its message with the names of the file."""
    try:
        config = read_config(json.loads(files["config.json"].decode()))
        if "model.safetensors" in files or "model.safetensors.index.json" not in files:
            tensors = read_safetensors(files["model.safetensors"])
        else:
            index = json.loads(files["model.safetensors.index.json"])
            shards = {f: read_safetensors(files[f]) for f in set(index["weight_map"].values())}
            tensors = {n: t for shard in shards.values() for n, t in shard.items()}
    except KeyError as error:
        raise ValueError(f"missing: {error}") from error

    class Whole(nn.Module):
        """The names of the files: a model in a model."""

        def __init__(self):
            super().__init__()
            self.model = Llama(config, layout)

    inner = {}
    for name, tensor in tensors.items():
        if "inv_freq" in name:
            continue
        if layout == "interleaved" and ".q_proj" in name and tensor.dim() == 2:
            tensor = halves_to_interleaved(tensor, config.num_attention_heads)
        inner["model.lm_head.weight" if name == "lm_head.weight" else name] = tensor
        if layout == "interleaved" and ".k_proj" in name and tensor.dim() == 2:
            inner[name] = halves_to_interleaved(tensor, config.num_key_value_heads)
    whole = Whole()
    try:
        whole.load_state_dict(inner)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return whole.model


def dimensions(shapes):
    def rows(name):
        return shapes[f"model.layers.0.{name}.weight"][0]

    return Dimensions(
        *shapes["model.embed_tokens.weight"],
        rows("mlp.up_proj"),
        len({name.split(".")[2] for name in shapes if "self_attn.q_proj" in name}),
        rows("self_attn.q_proj") // rows("self_attn.v_proj"),
        not any(name.startswith("lm_head") for name in shapes),
    )
