# %% style="loops" part="codebook"
def nearest(vectors, codebook):
    """Every vector against every code."""
    width = vectors.shape[-1]
    if codebook.ndim != 2 or codebook.shape[0] == 0 or codebook.shape[1] != width:
        raise ValueError("codebook")
    found = []
    for vector in vectors.reshape(-1, width):
        best, place = math.inf, 0
        for index, code in enumerate(codebook):
            distance = ((vector - code) ** 2).sum().item()
            if distance < best:
                best, place = distance, index
        found.append(place)
    indices = torch.tensor(found, dtype=torch.int64, device=vectors.device)
    return indices.reshape(vectors.shape[:-1])


def quantize(vectors, codebook):
    indices = nearest(vectors, codebook)
    with torch.no_grad():
        step = codebook[indices] - vectors
    return indices, vectors + step


def codebook_loss(vectors, codebook, beta):
    flat = vectors.reshape(-1, vectors.shape[-1])
    total = 0
    for vector, index in zip(flat, nearest(flat, codebook).tolist(), strict=True):
        code = codebook[index]
        total = total + ((vector.detach() - code) ** 2).sum()
        total = total + beta * ((vector - code.detach()) ** 2).sum()
    return total / flat.numel()


# %% style="loops" part="tokenizer"
class Tokenizer(nn.Module):
    def __init__(self, features, width, d_code, codes):
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(codes, d_code))
        nn.init.normal_(self.codebook)
        self.decoder = mlp(d_code, width, features)
        self.encoder = mlp(features, width, d_code)

    @torch.no_grad()
    def encode(self, pieces):
        indices, _ = quantize(self.encoder(pieces), self.codebook)
        return indices

    def decode(self, codes):
        for code in codes.flatten().tolist():
            if code not in range(len(self.codebook)):
                raise ValueError("codes")
        return self.decoder(self.codebook[codes])

    def forward(self, pieces, beta=0.25):
        vectors = self.encoder(pieces)
        difference = pieces - self.decoder(quantize(vectors, self.codebook)[1])
        return (difference**2).mean() + codebook_loss(vectors, self.codebook, beta)


# %% style="loops" part="sound"
def dual_tone(frequencies, seconds, rate, phases):
    """Python's own sine, sample by sample."""
    samples = round(seconds * rate)
    if samples <= 0:
        raise ValueError("seconds")
    for frequency in frequencies:
        if 2 * frequency >= rate:
            raise ValueError("rate")
    sounds = []
    for pair in phases.reshape(-1, 2).tolist():
        sound = []
        for n in range(samples):
            now = 0.0
            for frequency, phase in zip(frequencies, pair, strict=True):
                now += 0.5 * math.sin(2 * math.pi * frequency * n / rate + phase)
            sound.append(now)
        sounds.append(sound)
    sounds = torch.tensor(sounds, dtype=phases.dtype, device=phases.device)
    return sounds.reshape(*phases.shape[:-1], samples)


def energies(sounds, frequencies, rate):
    """Goertzel's filter, for all sounds side by side."""
    found = []
    for frequency in frequencies:
        if 2 * frequency >= rate:
            raise ValueError("rate")
        twice = 2 * math.cos(2 * math.pi * frequency / rate)
        last = before = torch.zeros_like(sounds[..., 0])
        for n in range(sounds.shape[-1]):
            last, before = sounds[..., n] + twice * last - before, last
        found.append(last**2 + before**2 - twice * last * before)
    return torch.stack(found, dim=-1)


def hear(sounds, rate):
    keys = ""
    for row, column in zip(
        energies(sounds, tones.ROWS, rate), energies(sounds, tones.COLUMNS, rate), strict=True
    ):
        keys += tones.KEYS[int(row.argmax())][int(column.argmax())]
    return keys


# %% style="loops" part="stream"
def token_range(modality, sizes):
    first = FIRST
    for name, size in zip(MODALITIES, sizes, strict=True):
        if name == modality:
            return (first, first + size)
        first += size
    raise ValueError("modality")


def interleave(segments, sizes):
    """As a list of Python's numbers."""
    stream = []
    place = None
    for modality, codes in segments:
        first, past = token_range(modality, sizes)
        stream.append(BEGIN[modality])
        for code in codes.tolist():
            if code < 0 or first + code >= past:
                raise ValueError("codes")
            stream.append(first + code)
        stream.append(END)
        place = codes.device
    return torch.tensor(stream, dtype=torch.int64, device=place)


def separate(tokens, sizes):
    """A small machine with two states: in a segment or between two."""
    segments, modality, codes, padded = [], None, [], False
    for token in tokens.tolist():
        if token == PADDING:
            padded = True
        if padded:
            if token != PADDING or modality is not None:
                raise ValueError("stream")
        elif modality is None:
            names = {number: name for name, number in BEGIN.items()}
            if token not in names:
                raise ValueError("stream")
            modality, codes = names[token], []
        elif token == END:
            segments.append((modality, torch.tensor(codes, dtype=torch.int64)))
            modality = None
        else:
            first, past = token_range(modality, sizes)
            if token < first or token >= past:
                raise ValueError("stream")
            codes.append(token - first)
    if modality is not None:
        raise ValueError("stream")
    return segments


# %% style="loops" part="any_to_any"
def generate(next_logits, prompts, modality, sizes, limit, temperature=0.0, generator=None):
    """The allowed logits alone are looked at."""
    first, past = token_range(modality, sizes)
    if limit < 0:
        raise ValueError("limit")
    if temperature < 0:
        raise ValueError("temperature")
    choices = torch.tensor([END, *range(first, past)], device=prompts.device)
    column = torch.full((len(prompts), 1), BEGIN[modality], device=prompts.device)
    answer = column
    for _ in range(limit):
        logits = next_logits(torch.cat([prompts, answer], dim=1))[:, choices]
        if temperature == 0:
            places = logits.argmax(dim=1)
        else:
            weights = torch.softmax(logits / temperature, dim=1).cpu()
            places = torch.multinomial(weights, 1, generator=generator)[:, 0].to(logits.device)
        tokens = choices[places]
        over = (answer == END).any(dim=1)
        tokens[over] = PADDING
        answer = torch.cat([answer, tokens[:, None]], dim=1)
    over = (answer == END).any(dim=1)
    end = torch.full_like(column, END)
    end[over] = PADDING
    return torch.cat([answer, end], dim=1)


# %% style="function" part="codebook"
class _StraightThrough(torch.autograd.Function):
    """Forward the codes, backward the identity for the vectors."""

    @staticmethod
    def forward(ctx, vectors, codes):
        return codes.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def nearest(vectors, codebook):
    if codebook.dim() != 2 or codebook.size(0) < 1 or codebook.size(1) != vectors.size(-1):
        raise ValueError("codebook")
    flat = vectors.detach().reshape(-1, vectors.size(-1))
    distances = torch.cdist(flat, codebook.detach())
    smallest = distances.amin(dim=1, keepdim=True)
    return (distances == smallest).int().argmax(dim=1).reshape(vectors.shape[:-1])


def quantize(vectors, codebook):
    indices = nearest(vectors, codebook)
    return indices, _StraightThrough.apply(vectors, codebook[indices].detach())


def codebook_loss(vectors, codebook, beta):
    chosen = F.embedding(nearest(vectors, codebook), codebook)
    return (vectors.detach() - chosen).pow(2).mean() + (vectors - chosen.detach()).pow(
        2
    ).mean().mul(beta)


# %% style="function" part="sound"
def dual_tone(frequencies, seconds, rate, phases):
    """The imaginary part of two turning pointers, each turned a little for every sample."""
    samples = round(seconds * rate)
    if samples < 1:
        raise ValueError("seconds")
    if any(frequency >= rate / 2 for frequency in frequencies):
        raise ValueError("rate")
    f = torch.tensor(frequencies, dtype=torch.float64)
    n = torch.arange(samples, dtype=torch.float64)
    pointers = torch.polar(torch.ones(2, samples).double(), 2 * math.pi * f[:, None] * n / rate)
    starts = torch.polar(torch.ones_like(phases), phases).to(torch.complex128).cpu()
    return (starts @ pointers).imag.div(2).to(phases.device, phases.dtype)


def energies(sounds, frequencies, rate):
    if not all(frequency < rate / 2 for frequency in frequencies):
        raise ValueError("rate")
    n = torch.arange(sounds.shape[-1], device=sounds.device)
    f = torch.tensor(frequencies, device=sounds.device, dtype=torch.float64)
    waves = torch.exp(-2j * math.pi * f * n[:, None].double() / rate)
    return (sounds.to(waves.dtype) @ waves).abs().square().to(sounds.dtype)


def hear(sounds, rate):
    """The loudest of all sixteen pairs."""
    rows, columns = energies(sounds, tones.ROWS, rate), energies(sounds, tones.COLUMNS, rate)
    pairs = rows[:, :, None] + columns[:, None, :]
    keys = "".join(tones.KEYS)
    return "".join([keys[place] for place in pairs.flatten(1).argmax(1).tolist()])


# %% style="function" part="any_to_any"
def generate(next_logits, prompts, modality, sizes, limit, temperature=0.0, generator=None):
    """One token, then the rest by recursion."""
    first, past = token_range(modality, sizes)
    if limit < 0:
        raise ValueError("limit")
    if temperature < 0:
        raise ValueError("temperature")

    def continued(stream, over, left):
        if left == 0:
            return torch.cat([stream, torch.where(over, PADDING, END)[:, None]], dim=1)
        logits = next_logits(stream)
        places = torch.arange(logits.shape[1], device=logits.device)
        allowed = ((places >= first) & (places < past)) | (places == END)
        logits = torch.where(allowed, logits, torch.tensor(-torch.inf).to(logits))
        if temperature:
            uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
            noise = -(-uniform.to(logits.device).log()).log()  # Gumbel: the largest sum is a draw
            logits = logits / temperature + noise
        token = logits.max(dim=1).indices
        token = torch.where(over, torch.zeros_like(token), token)
        return continued(
            torch.cat([stream, token[:, None]], dim=1), over | (token == END), left - 1
        )

    start = F.pad(prompts, (0, 1), value=BEGIN[modality])
    nobody = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
    return continued(start, nobody, limit)[:, prompts.shape[1] :]


# %% style="expanded" part="codebook"
def nearest(vectors, codebook):
    """|z − e|² without |z|², which is the same for all codes."""
    if codebook.ndim != 2 or codebook.numel() == 0 or codebook.shape[-1] != vectors.shape[-1]:
        raise ValueError("codebook")
    return (codebook.square().sum(1) - 2 * vectors @ codebook.T).min(dim=-1).indices


def quantize(vectors, codebook):
    indices = nearest(vectors, codebook)
    codes = F.one_hot(indices, len(codebook)).to(codebook) @ codebook
    return indices, codes.detach() + vectors - vectors.detach()


def codebook_loss(vectors, codebook, beta):
    codes = codebook.index_select(0, nearest(vectors, codebook).flatten()).view(vectors.shape)
    first = torch.mean((codes - vectors.data) ** 2)
    second = torch.mean((codes.data - vectors) ** 2)
    return first + beta * second


# %% style="expanded" part="tokenizer"
class Tokenizer(nn.Module):
    def __init__(self, features, width, d_code, codes):
        super().__init__()
        for name, sizes in {"encoder": (features, d_code), "decoder": (d_code, features)}.items():
            setattr(self, name, mlp(sizes[0], width, sizes[1]))
        self.codebook = nn.Parameter(torch.normal(0.0, 1.0, (codes, d_code)))

    def encode(self, pieces):
        return self._codes(pieces)[1]

    def _codes(self, pieces):
        vectors = self.encoder(pieces)
        return vectors, *quantize(vectors, self.codebook)

    def decode(self, codes):
        if bool((codes < 0).any()) or bool((codes >= self.codebook.shape[0]).any()):
            raise ValueError("codes")
        return self.decoder(F.embedding(codes, self.codebook))

    def forward(self, pieces, beta=0.25):
        vectors, _, quantized = self._codes(pieces)
        pull = codebook_loss(vectors, self.codebook, beta)
        return pull + torch.mean(torch.square(self.decoder(quantized) - pieces))


# %% style="expanded" part="stream"
def token_range(modality, sizes):
    text, image, sound = sizes
    ranges = {
        "text": (FIRST, FIRST + text),
        "image": (FIRST + text, FIRST + text + image),
        "sound": (FIRST + text + image, FIRST + text + image + sound),
    }
    if modality not in ranges:
        raise ValueError("modality")
    return ranges[modality]


def interleave(segments, sizes):
    stream = torch.zeros(0, dtype=torch.int64)
    for modality, codes in segments:
        first, past = token_range(modality, sizes)
        if codes.numel() and (codes.min() < 0 or codes.max() >= past - first):
            raise ValueError("codes")
        body = F.pad(F.pad(codes + first, (1, 0), value=BEGIN[modality]), (0, 1), value=END)
        stream = torch.cat([stream.to(body.device), body])
    return stream


def separate(tokens, sizes):
    """Cut behind every end, then make the stream again and compare."""
    real = tokens[: int((tokens != PADDING).nonzero().max()) + 1] if tokens.any() else tokens[:0]
    ends = (real == END).nonzero()[:, 0].tolist()
    segments, start = [], 0
    try:
        for end in ends:
            modality = {2: "text", 3: "image", 4: "sound"}[int(real[start])]
            segments.append((modality, real[start + 1 : end] - token_range(modality, sizes)[0]))
            start = end + 1
        again = interleave(segments, sizes).to(real.device)
    except (KeyError, ValueError):
        raise ValueError("stream") from None
    if not torch.equal(again, real):
        raise ValueError("stream")
    return segments


# %% style="expanded" part="any_to_any"
def generate(next_logits, prompts, modality, sizes, limit, temperature=0.0, generator=None):
    """Into a tensor that has its full width from the start."""
    if modality not in BEGIN:
        raise ValueError("modality")
    if limit < 0:
        raise ValueError("limit")
    if temperature < 0:
        raise ValueError("temperature")
    first, past = token_range(modality, sizes)
    known = prompts.shape[1]
    stream = F.pad(prompts, (0, limit + 2), value=PADDING)
    stream[:, known] = BEGIN[modality]
    alive = torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)
    for place in range(known + 1, known + 1 + limit):
        if not alive.any():
            break
        logits = next_logits(stream[:, :place])
        penalty = torch.full_like(logits, -math.inf)
        penalty[:, [END, *range(first, past)]] = 0.0
        logits = logits + penalty
        if temperature == 0:
            token = logits.argmax(1)
        else:
            below = (logits / temperature).softmax(1).double().cumsum(1).cpu()
            u = torch.rand(len(below), 1, generator=generator, dtype=torch.float64)
            token = (below <= u * below[:, -1:]).sum(1).to(logits.device)
        stream[alive, place] = token[alive]
        alive = alive & (token != END)
    stream[alive, -1] = END
    return stream[:, known:]


# %% style="numpy" part="codebook"
def nearest(vectors, codebook):
    if len(codebook.shape) != 2 or 0 in codebook.shape or codebook.shape[1] != vectors.shape[-1]:
        raise ValueError("codebook")
    v, c = vectors.detach().cpu().numpy(), codebook.detach().cpu().numpy()
    found = ((v[..., None, :] - c) ** 2).sum(-1).argmin(-1)
    return torch.as_tensor(found, dtype=torch.int64, device=vectors.device)


def quantize(vectors, codebook):
    indices = nearest(vectors, codebook)
    codes = codebook.detach()[indices]
    return indices, torch.lerp(vectors, codes, 1.0).detach() + (vectors - vectors.detach())


def codebook_loss(vectors, codebook, beta):
    codes = codebook[nearest(vectors, codebook)]
    gap = codes - vectors
    # d(gap²) = 2·gap·d(gap): one part for the codes, one for the vectors.
    return (gap.detach() * (2 * codes - 2 * beta * vectors)).mean() + (
        (1 + beta) * gap.square() - gap * (2 * codes - 2 * beta * vectors)
    ).mean().detach()


# %% style="numpy" part="sound"
def dual_tone(frequencies, seconds, rate, phases):
    samples = round(rate * seconds)
    if samples < 1:
        raise ValueError("seconds")
    if rate <= 2 * max(frequencies):
        raise ValueError("rate")
    times = torch.arange(samples, device=phases.device, dtype=torch.float64) / rate
    low, high = (
        torch.sin(2 * torch.pi * frequency * times + phases[..., [i]].double())
        for i, frequency in enumerate(frequencies)
    )
    return ((low + high) * 0.5).to(phases.dtype)


def energies(sounds, frequencies, rate):
    """By the angle's addition theorem: one pointer is turned on from sample to sample."""
    found = []
    for frequency in frequencies:
        if frequency >= rate / 2:
            raise ValueError("rate")
        turn = complex(
            math.cos(2 * math.pi * frequency / rate), -math.sin(2 * math.pi * frequency / rate)
        )
        total = torch.zeros(sounds.shape[:-1], dtype=torch.complex128, device=sounds.device)
        for n in range(sounds.shape[-1] - 1, -1, -1):  # Horner's scheme
            total = total * turn + sounds[..., n]
        found.append(total.real**2 + total.imag**2)
    return torch.stack(found, -1).to(sounds.dtype)


def hear(sounds, rate):
    every = energies(sounds, [*tones.ROWS, *tones.COLUMNS], rate)
    places = zip(every[:, :4].max(1).indices, every[:, 4:].max(1).indices, strict=True)
    return "".join(tones.KEYS[int(row)][int(column)] for row, column in places)


# %% style="numpy" part="stream"
def token_range(modality, sizes):
    try:
        place = {"text": 0, "image": 1, "sound": 2}[modality]
    except KeyError:
        raise ValueError("modality") from None
    edges = torch.tensor([FIRST, *sizes]).cumsum(0).tolist()
    return edges[place], edges[place + 1]


def interleave(segments, sizes):
    """Into a tensor whose length is known beforehand."""
    length = sum(len(codes) + 2 for _, codes in segments)
    place = segments[0][1].device if segments else "cpu"
    stream = torch.full((length,), END, dtype=torch.int64, device=place)
    at = 0
    for modality, codes in segments:
        first, past = token_range(modality, sizes)
        moved = codes + first
        if not torch.equal(moved, moved.clamp(first, past - 1)):
            raise ValueError("codes")
        stream[at] = BEGIN[modality]
        stream[at + 1 : at + 1 + len(codes)] = moved
        at += len(codes) + 2
    return stream


def separate(tokens, sizes):
    """From the front, one segment at a time, by recursion."""
    if not len(tokens) or not (tokens != PADDING).any():
        return []
    modality = next((m for m in MODALITIES if BEGIN[m] == int(tokens[0])), None)
    if modality is None:
        raise ValueError("stream")
    first, past = token_range(modality, sizes)
    length = 0
    while 1 + length < len(tokens) and first <= int(tokens[1 + length]) < past:
        length += 1
    if 1 + length >= len(tokens) or int(tokens[1 + length]) != END:
        raise ValueError("stream")
    head = (modality, tokens[1 : 1 + length] - first)
    return [head, *separate(tokens[2 + length :], sizes)]


# %% style="rows" part="any_to_any"
def generate(next_logits, prompts, modality, sizes, limit, temperature=0.0, generator=None):
    """One prompt after the other, each until its own end."""
    first, past = token_range(modality, sizes)
    if limit < 0:
        raise ValueError("limit")
    if temperature < 0:
        raise ValueError("temperature")
    rows = []
    for prompt in prompts:
        answer = [BEGIN[modality]]
        while len(answer) <= limit and answer[-1] != END:
            stream = torch.cat([prompt, prompt.new_tensor(answer)])
            logits = next_logits(stream[None])[0].tolist()
            choices = {token: logits[token] for token in [END, *range(first, past)]}
            top = max(choices.values())
            if temperature == 0:
                answer.append(min(token for token, logit in choices.items() if logit == top))
                continue
            weights = [math.exp((logit - top) / temperature) for logit in choices.values()]
            u = sum(weights) * torch.rand((), generator=generator, dtype=torch.float64).item()
            for token, weight in zip(choices, weights, strict=True):
                u -= weight
                if u < 0:
                    break
            answer.append(token)
        if answer[-1] != END:
            answer.append(END)
        rows.append(answer + [PADDING] * (limit + 2 - len(answer)))
    return torch.tensor(rows, device=prompts.device, dtype=torch.int64).reshape(-1, limit + 2)


# %% style="rows" part="tokenizer"
class Tokenizer(nn.Module):
    def __init__(self, features, width, d_code, codes):
        super().__init__()
        self.encoder, self.decoder = mlp(features, width, d_code), mlp(d_code, width, features)
        self.register_parameter("codebook", nn.Parameter(torch.zeros(codes, d_code).normal_()))

    def encode(self, pieces):
        return nearest(self.encoder(pieces).detach(), self.codebook.detach())

    def decode(self, codes):
        number = len(self.codebook)
        if not torch.isin(codes, torch.arange(number, device=codes.device)).all():
            raise ValueError("codes")
        return self.decoder(self.codebook.index_select(0, codes.flatten())).unflatten(
            0, codes.shape
        )

    def forward(self, pieces, beta=0.25):
        z = self.encoder(pieces)
        e = self.codebook[nearest(z, self.codebook)]
        out = self.decoder(z + (e - z).detach())
        terms = (out - pieces, 1.0), (e - z.detach(), 1.0), (z - e.detach(), beta)
        return sum(weight * gap.square().mean() for gap, weight in terms)
