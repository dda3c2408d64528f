# %% style="loops" part="absmax"
def largest_level(bits):
    if bits < 2 or bits > 8:
        raise ValueError("bits")
    level = 0
    for _ in range(bits - 1):
        level = 2 * level + 1
    return level


def absmax_scale(weights, bits):
    largest = largest_level(bits)
    vectors = weights.reshape(-1, weights.shape[-1])
    scales = [max(abs(w) for w in vector.tolist()) / largest for vector in vectors]
    return torch.tensor(scales, dtype=weights.dtype, device=weights.device).reshape(
        weights.shape[:-1]
    )


def quantize(weights, scale, bits):
    """One weight at a time; half-way it goes up."""
    largest = largest_level(bits)
    if tuple(scale.shape) != tuple(weights.shape[:-1]):
        raise ValueError("scale")
    rows = []
    for vector, s in zip(
        weights.reshape(-1, weights.shape[-1]).tolist(), scale.reshape(-1).tolist(), strict=True
    ):
        rows.append(
            [0 if s == 0 else min(largest, max(-largest, math.floor(w / s + 0.5))) for w in vector]
        )
    return torch.tensor(rows, dtype=torch.int8, device=weights.device).reshape(weights.shape)


def dequantize(values, scale):
    return values.to(scale.dtype) * scale.unsqueeze(-1)


# %% style="loops" part="groups"
def quantize_groups(weights, bits, group_size):
    """Slice after slice."""
    if group_size <= 0:
        raise ValueError("group_size")
    values, scales = torch.empty_like(weights, dtype=torch.int8), []
    for start in range(0, weights.shape[1], group_size):
        part = weights[:, start : start + group_size]
        scale = absmax_scale(part, bits)
        values[:, start : start + group_size] = quantize(part, scale, bits)
        scales.append(scale)
    return values, torch.stack(scales, dim=1)


def dequantize_groups(values, scales, group_size):
    rows, columns = values.shape
    if tuple(scales.shape) != (rows, -(-columns // group_size)):
        raise ValueError("scales")
    weights = torch.empty(rows, columns, dtype=scales.dtype, device=scales.device)
    for column in range(columns):
        weights[:, column] = values[:, column] * scales[:, column // group_size]
    return weights


def bits_per_weight(columns, bits, group_size, scale_bits=16):
    groups = len(range(0, columns, group_size))
    return (columns * bits + groups * scale_bits) / columns


# %% style="loops" part="packing"
def pack_int4(values):
    if values.numel() and (values.min() < -8 or values.max() > 7):
        raise ValueError("values")
    n = values.shape[-1]
    rows = []
    for row in values.reshape(math.prod(values.shape[:-1]), n).tolist():
        row = [v % 16 for v in row] + [0] * (n % 2)
        rows.append([row[i] + 16 * row[i + 1] for i in range(0, len(row), 2)])
    return torch.tensor(rows, dtype=torch.uint8, device=values.device).reshape(
        *values.shape[:-1], (n + 1) // 2
    )


def unpack_int4(packed, n):
    if packed.shape[-1] != (n + 1) // 2:
        raise ValueError("packed")
    rows = []
    for row in packed.reshape(math.prod(packed.shape[:-1]), packed.shape[-1]).tolist():
        found = []
        for byte in row:
            found += [byte % 16, byte // 16]
        rows.append([v if v < 8 else v - 16 for v in found[:n]])
    return torch.tensor(rows, dtype=torch.int8, device=packed.device).reshape(*packed.shape[:-1], n)


# %% style="loops" part="normal_float"
def normal_float_levels(bits):
    half = 2 ** (bits - 1)
    highest = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2

    def quantile(p):
        return math.sqrt(2) * torch.erfinv(torch.tensor(2 * p - 1, dtype=torch.float64)).item()

    levels = [0.0]
    for number, sign in ((half, 1), (half - 1, -1)):
        for i in range(number):
            levels.append(sign * quantile(highest + i * (0.5 - highest) / number))
    return torch.tensor(sorted(levels)) / quantile(highest)


def codebook_quantize(weights, levels):
    table = levels.tolist()
    indices, scales = [], []
    for vector in weights.reshape(-1, weights.shape[-1]).tolist():
        scale = max(abs(w) for w in vector)
        scales.append(scale)
        indices.append(
            [
                min(range(len(table)), key=lambda i: abs(table[i] - (w / scale if scale else 0.0)))
                for w in vector
            ]
        )
    return (
        torch.tensor(indices, device=weights.device).reshape(weights.shape),
        torch.tensor(scales, dtype=weights.dtype, device=weights.device).reshape(
            weights.shape[:-1]
        ),
    )


def codebook_dequantize(indices, scale, levels):
    return torch.take(levels, indices) * scale.unsqueeze(-1)


# %% style="by_hand" part="absmax"
def largest_level(bits):
    levels = {2: 1, 3: 3, 4: 7, 5: 15, 6: 31, 7: 63, 8: 127}
    if bits not in levels:
        raise ValueError("bits")
    return levels[bits]


def absmax_scale(weights, bits):
    low, high = torch.aminmax(weights, dim=-1)
    return torch.maximum(-low, high) / largest_level(bits)


def quantize(weights, scale, bits):
    """Half-way it goes away from zero: the size and the sign apart."""
    largest = largest_level(bits)
    if list(scale.shape) != list(weights.shape)[:-1]:
        raise ValueError("scale")
    sizes = torch.where(
        scale[..., None] > 0, weights.abs() / scale[..., None], torch.zeros_like(weights)
    )
    return (weights.sign() * (sizes + 0.5).floor().clamp(max=largest)).to(torch.int8)


def dequantize(values, scale):
    return torch.einsum("...n,...->...n", values.to(scale), scale)


# %% style="by_hand" part="error"
def signal_to_noise(weights, approximation):
    if tuple(weights.shape) != tuple(approximation.shape):
        raise ValueError("approximation")
    error = approximation - weights
    return 20 * torch.log10(torch.linalg.vector_norm(weights) / torch.linalg.vector_norm(error))


def predicted_signal_to_noise(weights, bits):
    scale = absmax_scale(weights, bits)
    signal = weights.pow(2).sum()
    noise = (scale**2 / 12).sum() * weights.shape[-1]
    return 10 * torch.log10(signal) - 10 * torch.log10(noise)


# %% style="by_hand" part="layer"
class QuantizedLinear(nn.Module):
    """Keeps everything the same, computes group by group."""

    def __init__(self, weight, bias, bits, group_size):
        super().__init__()
        if bits != 4 and bits != 8:
            raise ValueError("bits")
        self.packed = bits == 4
        self.group_size = group_size
        self.columns = weight.size(1)
        with torch.no_grad():
            values, scales = quantize_groups(weight, bits, group_size)
            if self.packed:
                values = pack_int4(values)
            self.register_buffer("values", values.clone())
            self.register_buffer("scales", scales.to(torch.float16))
            self.register_buffer("bias", bias.clone() if bias is not None else None)

    def forward(self, x):
        values = unpack_int4(self.values, self.columns) if self.packed else self.values
        y = 0
        for group in range(self.scales.shape[1]):
            part = slice(group * self.group_size, (group + 1) * self.group_size)
            sums = x[..., part] @ values[:, part].to(x.dtype).T
            y = y + sums * self.scales[:, group].to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


# %% style="by_hand" part="normal_float"
def normal_float_levels(bits):
    """With the quantiles of torch's own normal distribution."""
    n = 2**bits
    delta = (1 / (2 * n) + 1 / (2 * n - 2)) / 2
    normal = torch.distributions.Normal(0.0, 1.0)
    negative = normal.icdf(torch.linspace(delta, 0.5, n // 2))
    positive = normal.icdf(torch.linspace(0.5, 1 - delta, n // 2 + 1))
    levels = torch.cat([negative[:-1], positive])
    levels[n // 2 - 1] = 0.0
    return levels / levels[-1]


def codebook_quantize(weights, levels):
    scale = weights.abs().max(dim=-1).values
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    middle = ((levels[1:] + levels[:-1]) / 2).to(weights)
    return torch.bucketize(weights / safe[..., None], middle), scale


def codebook_dequantize(indices, scale, levels):
    return levels.to(scale.dtype)[indices] * scale[..., None]


# %% style="pieces" part="absmax"
def largest_level(bits):
    if not 1 < bits < 9:
        raise ValueError("bits")
    return (1 << (bits - 1)) - 1


def absmax_scale(weights, bits):
    return torch.linalg.vector_norm(weights, ord=math.inf, dim=-1) / largest_level(bits)


def quantize(weights, scale, bits):
    """With the number of levels in one unit of weight."""
    largest = largest_level(bits)
    if scale.shape != weights.shape[:-1]:
        raise ValueError("scale")
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    return torch.round(weights * inverse[..., None]).clamp_(-largest, largest).char()


def dequantize(values, scale):
    return (values.movedim(-1, 0) * scale).movedim(0, -1)


# %% style="pieces" part="groups"
def quantize_groups(weights, bits, group_size):
    """The whole groups at once, then the rest."""
    if not group_size >= 1:
        raise ValueError("group_size")
    rows, columns = weights.shape
    whole = columns // group_size * group_size
    values, scales = [], []
    if whole:
        groups = weights[:, :whole].reshape(rows, -1, group_size)
        scales.append(absmax_scale(groups, bits))
        values.append(quantize(groups, scales[-1], bits).reshape(rows, whole))
    if whole < columns:
        rest = weights[:, whole:]
        scales.append(absmax_scale(rest, bits)[:, None])
        values.append(quantize(rest, scales[-1][:, 0], bits))
    return torch.cat(values, dim=1), torch.cat(scales, dim=1)


def dequantize_groups(values, scales, group_size):
    columns = values.shape[1]
    if list(scales.shape) != [len(values), math.ceil(columns / group_size)]:
        raise ValueError("scales")
    group_of = torch.arange(columns, device=scales.device) // group_size
    return values * scales[:, group_of]


def bits_per_weight(columns, bits, group_size, scale_bits=16):
    return bits + scale_bits * ((columns + group_size - 1) // group_size) / columns


# %% style="pieces" part="packing"
def pack_int4(values):
    """A weighted sum: the first counts 1, the second 16."""
    if not torch.equal(values, values.clamp(-8, 7)):
        raise ValueError("values")
    unsigned = torch.remainder(values.to(torch.int16), 16)
    if unsigned.shape[-1] % 2:
        unsigned = torch.cat([unsigned, torch.zeros_like(unsigned[..., :1])], dim=-1)
    pairs = unsigned.reshape(*unsigned.shape[:-1], -1 if unsigned.numel() else 0, 2)
    return (pairs[..., 0] + 16 * pairs[..., 1]).to(torch.uint8)


def unpack_int4(packed, n):
    if math.ceil(n / 2) != packed.shape[-1]:
        raise ValueError("packed")
    values = torch.empty(*packed.shape[:-1], 2 * packed.shape[-1], dtype=torch.int8)
    values = values.to(packed.device)
    values[..., ::2] = (packed << 4).view(torch.int8) >> 4
    values[..., 1::2] = packed.contiguous().view(torch.int8) >> 4
    return values[..., :n]


# %% style="table" part="packing"
def pack_int4(values):
    """Looked up among the two's complements."""
    if ((values + 8) & -16).any() or (values > 7).any():
        raise ValueError("values")
    patterns = torch.tensor([*range(8, 16), *range(8)], dtype=torch.uint8, device=values.device)
    nibbles = patterns[values.long() + 8]
    n = values.shape[-1]
    packed = nibbles.new_zeros(*values.shape[:-1], (n + 1) // 2)
    packed += nibbles[..., 0::2]
    packed[..., : n // 2] += nibbles[..., 1::2] * 16
    return packed


def unpack_int4(packed, n):
    if n not in (2 * packed.shape[-1], 2 * packed.shape[-1] - 1):
        raise ValueError("packed")
    signed = torch.tensor([*range(8), *range(-8, 0)], dtype=torch.int8, device=packed.device)
    byte = packed.long()
    both = torch.stack([signed[byte % 16], signed[byte // 16]], dim=-1)
    return both.reshape(*packed.shape[:-1], 2 * packed.shape[-1])[..., :n]


# %% style="table" part="layer"
class QuantizedLinear(nn.Module):
    """One column after another, with the index of its group."""

    def __init__(self, weight, bias, bits, group_size):
        super().__init__()
        if bits not in {4, 8}:
            raise ValueError("bits")
        values, scales = quantize_groups(weight.data, bits, group_size)
        columns = weight.shape[1]
        self.unpack = (
            (lambda kept: unpack_int4(kept, columns)) if bits == 4 else (lambda kept: kept)
        )
        self.group_of = [column // group_size for column in range(columns)]
        self.register_buffer("values", pack_int4(values) if bits == 4 else values)
        self.register_buffer("scales", scales.half())
        self.register_buffer("bias", None if bias is None else bias.data)

    def forward(self, x):
        weight = self.unpack(self.values).to(x.dtype) * self.scales[:, self.group_of].to(x.dtype)
        y = torch.einsum("...i,oi->...o", x, weight)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y


# %% style="table" part="groups"
def quantize_groups(weights, bits, group_size):
    """Row after row, each split by torch."""
    if group_size < 1:
        raise ValueError("group_size")
    values, scales = [], []
    for row in weights:
        parts = row.split(group_size)
        steps = [absmax_scale(part, bits) for part in parts]
        codes = [quantize(part, step, bits) for part, step in zip(parts, steps, strict=True)]
        values.append(torch.cat(codes))
        scales.append(torch.stack(steps))
    return torch.stack(values), torch.stack(scales)


def dequantize_groups(values, scales, group_size):
    rows, columns = values.shape
    if scales.shape != (rows, -(columns // -group_size)):
        raise ValueError("scales")
    spread = scales[:, :, None].expand(-1, -1, group_size).reshape(rows, -1)
    return values.to(scales.dtype).mul(spread[:, :columns])


def bits_per_weight(columns, bits, group_size, scale_bits=16):
    sizes = [min(group_size, columns - start) for start in range(0, columns, group_size)]
    return sum(size * bits + scale_bits for size in sizes) / sum(sizes)


# %% style="powers" part="error"
def signal_to_noise(weights, approximation):
    """A difference of logarithms, from means."""
    if approximation.shape != weights.shape:
        raise ValueError("approximation")
    signal, noise = (x.pow(2).mean() for x in (weights, weights - approximation))
    return 10 * (torch.log(signal) - torch.log(noise)) / math.log(10)


def predicted_signal_to_noise(weights, bits):
    noises = [
        vector.numel() * float(absmax_scale(vector, bits)) ** 2 / 12
        for vector in weights.reshape(-1, weights.shape[-1])
    ]
    return 10 * torch.log10(weights.square().sum() / sum(noises))


# %% style="powers" part="normal_float"
def normal_float_levels(bits):
    """The quantiles found by bisection."""
    n = 2**bits
    low = (1 / (2 * n) + 1 / (2 * (n - 1))) / 2
    shares = [low + i * (0.5 - low) / (n // 2 - 1) for i in range(n // 2 - 1)]
    shares += [0.5 + i * (0.5 - low) / (n // 2) for i in range(n // 2 + 1)]
    levels = []
    for share in shares:
        below, above = -8.0, 8.0
        for _ in range(60):
            middle = (below + above) / 2
            if (1 + math.erf(middle / math.sqrt(2))) / 2 < share:
                below = middle
            else:
                above = middle
        levels.append(above)
    return torch.tensor([level / levels[-1] for level in levels])


def codebook_quantize(weights, levels):
    """The best level so far, updated in place."""
    scale = weights.abs().amax(-1)
    target = weights / torch.clamp(scale, min=1e-30)[..., None]
    best = torch.full_like(weights, math.inf)
    indices = torch.zeros_like(weights, dtype=torch.int64)
    for i in range(len(levels)):
        distance = (target - levels[i]).abs()
        closer = distance < best
        best[closer] = distance[closer]
        indices[closer] = i
    return indices, scale


def codebook_dequantize(indices, scale, levels):
    one_hot = F.one_hot(indices, len(levels)).to(scale.dtype)
    return one_hot @ levels.to(scale.dtype) * scale[..., None]
