# %% style="loops" part="noise"
def random_lengths(total, parts, generator):
    """Deals the gaps out one by one, as one would with cards."""
    if parts < 1 or parts > total:
        raise ValueError("parts must lie between 1 and the total")
    lengths, gaps, cuts = [1], total - 1, parts - 1
    while gaps:
        # The next gap is a cut with the share of cuts among the gaps that are left.
        if int(torch.randint(gaps, (1,), generator=generator)) < cuts:
            lengths.append(1)
            cuts -= 1
        else:
            lengths[-1] += 1
        gaps -= 1
    return torch.tensor(lengths)


def noise_mask(length, generator, noise_density=0.15, mean_span_length=3.0):
    if length < 2:
        raise ValueError("the length is below 2")
    if noise_density <= 0 or noise_density >= 1:
        raise ValueError("noise_density is a share between 0 and 1")
    if mean_span_length < 1:
        raise ValueError("mean_span_length is below 1")
    noise = round(length * noise_density)
    if noise < 1:
        noise = 1
    if noise > length - 1:
        noise = length - 1
    spans = round(noise / mean_span_length)
    if spans < 1:
        spans = 1
    if spans > length - noise:
        spans = length - noise
    gone = random_lengths(noise, spans, generator)
    stays = random_lengths(length - noise, spans, generator)
    mask = []
    for i in range(spans):
        mask += [False] * int(stays[i]) + [True] * int(gone[i])
    return torch.tensor(mask)


# %% style="loops" part="spans"
def replace_spans(tokens, mask, vocab_size, num_sentinels=100):
    if tuple(mask.shape) != tuple(tokens.shape):
        raise ValueError("tokens and mask differ in shape")
    for token in tokens:
        if not 0 <= token < vocab_size - num_sentinels:
            raise ValueError("one of the tokens is a sentinel or no id at all")
    inputs, targets = [], []
    i, count = 0, 0
    while i < len(tokens):
        if not mask[i]:
            inputs.append(int(tokens[i]))
            i += 1
            continue
        inputs.append(vocab_size - 1 - count)
        targets.append(vocab_size - 1 - count)
        count += 1
        while i < len(tokens) and mask[i]:
            targets.append(int(tokens[i]))
            i += 1
    if count + 1 > num_sentinels:
        raise ValueError("num_sentinels is too small")
    targets.append(vocab_size - 1 - count)
    return (
        torch.tensor(inputs, dtype=torch.long, device=tokens.device),
        torch.tensor(targets, dtype=torch.long, device=tokens.device),
    )


def span_corrupt(
    tokens, vocab_size, generator, noise_density=0.15, mean_span_length=3.0, num_sentinels=100
):
    mask = noise_mask(tokens.shape[0], generator, noise_density, mean_span_length)
    return replace_spans(tokens, mask.to(tokens.device), vocab_size, num_sentinels)


# %% style="loops" part="tasks"
def make_text_to_text(task, fields, answer):
    """Reads the template from left to right."""
    source, rest = "", task.template
    while "{" in rest:
        before, _, rest = rest.partition("{")
        name, _, rest = rest.partition("}")
        if name not in fields:
            raise ValueError("no field " + name)
        source += before + fields[name]
    source += rest
    if len(task.labels) > 0:
        if answer < 0 or answer >= len(task.labels):
            raise ValueError("not one of the labels")
        return source, task.labels[answer]
    if task.step > 0:
        return source, "%.1f" % (task.step * round(answer / task.step))
    return source, answer


def read_answer(task, written):
    text = written.strip()
    if len(task.labels) > 0:
        for number, label in enumerate(task.labels):
            if label == text:
                return number
        return None
    if task.step > 0:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        return value if -math.inf < value < math.inf else None
    return text


# %% style="loops" part="teacher"
def shift_right(targets, start_id=0):
    rows = [
        torch.tensor([start_id, *row[:-1].tolist()])
        for row in targets.reshape(-1, targets.shape[-1])
    ]
    return torch.stack(rows).reshape(targets.shape).to(targets)


def seq2seq_loss(logits, targets, pad_id=0):
    if logits.shape[:-1] != targets.shape:
        raise ValueError("not as many targets as rows of logits")
    total, count = 0.0 * logits.sum(), 0
    for row, target in zip(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).tolist(), strict=True
    ):
        if target != pad_id:
            total = total + torch.logsumexp(row, dim=0) - row[target]
            count += 1
    return total / max(count, 1)


def teacher_forcing_loss(model, inputs, targets, start_id=0, pad_id=0):
    return seq2seq_loss(model(inputs, shift_right(targets, start_id)), targets, pad_id)


# %% style="loops" part="relative"
def relative_position_bucket(relative_position, bidirectional, num_buckets=32, max_distance=128):
    half = num_buckets // 2 if bidirectional else num_buckets
    e = half // 2
    if not max_distance > e:
        raise ValueError("max_distance is too small")
    found = []
    for r in relative_position.reshape(-1).tolist():
        add = half if bidirectional and r > 0 else 0
        d = abs(r) if bidirectional else max(-r, 0)
        if d < e:
            bucket = d
        else:
            bucket = e + math.floor(math.log(d / e) / math.log(max_distance / e) * (half - e))
        found.append(add + min(bucket, half - 1))
    return torch.tensor(found, device=relative_position.device).reshape(relative_position.shape)


# %% style="loops" part="bias"
def relative_bias(table, queries, keys, bidirectional, max_distance=128):
    rows = []
    for i in range(queries):
        position = torch.arange(keys, device=table.device) - i
        rows.append(
            table[relative_position_bucket(position, bidirectional, len(table), max_distance)]
        )
    return torch.stack(rows).permute(2, 0, 1)


# %% style="vectorised" part="noise"
import numpy as np


def random_lengths(total, parts, generator):
    if parts < 1 or parts > total:
        raise ValueError(f"cannot make {parts} parts of {total}")
    # T5's way: shuffle ones and zeros, a one starts a new part.
    starts = (torch.arange(total - 1) < parts - 1)[torch.randperm(total - 1, generator=generator)]
    part = torch.cat([torch.zeros(1, dtype=torch.long), starts.long().cumsum(0)])
    return torch.bincount(part, minlength=parts)


def noise_mask(length, generator, noise_density=0.15, mean_span_length=3.0):
    if length < 2:
        raise ValueError("length < 2")
    if not 0.0 < noise_density < 1.0:
        raise ValueError("noise_density is not in (0, 1)")
    if mean_span_length < 1:
        raise ValueError("mean_span_length < 1")
    noise = int(np.clip(np.round(length * noise_density), 1, length - 1))
    spans = int(np.clip(np.round(noise / mean_span_length), 1, length - noise))
    gone = random_lengths(noise, spans, generator)
    stays = random_lengths(length - noise, spans, generator)
    ends = torch.stack([stays, gone], 1).view(-1).cumsum(0)
    changes = torch.zeros(length + 1, dtype=torch.long)
    changes[ends] = 1
    return changes.cumsum(0)[:length] % 2 == 1


# %% style="vectorised" part="spans"
def replace_spans(tokens, mask, vocab_size, num_sentinels=100):
    if mask.shape != tokens.shape:
        raise ValueError("the mask does not fit")
    if tokens.numel() and (tokens.min() < 0 or tokens.max() >= vocab_size - num_sentinels):
        raise ValueError("tokens out of range")
    previous = F.pad(mask, (1, 0), value=False)[:-1]
    starts = mask & ~previous
    count = int(starts.sum())
    if count >= num_sentinels:
        raise ValueError(f"{count} spans need more than num_sentinels")
    sentinels = vocab_size - starts.long().cumsum(0)
    inputs = torch.where(starts, sentinels, tokens)[~mask | starts]
    # Each noise token, with its sentinel before it where a span starts.
    both = torch.stack([sentinels, tokens], dim=1)
    keep = torch.stack([starts, mask], dim=1)
    end = tokens.new_full((1,), vocab_size - 1 - count)
    return inputs, torch.cat([both[keep], end])


def span_corrupt(tokens, vocab_size, generator, *how, num_sentinels=100, **named):
    """Hands everything on."""
    if len(how) == 3:
        *how, num_sentinels = how
    mask = noise_mask(len(tokens), generator, *how, **named)
    return replace_spans(tokens, mask.to(tokens.device), vocab_size, num_sentinels)


# %% style="vectorised" part="tasks"
import numpy as np


def make_text_to_text(task, fields, answer):
    class Strict(dict):
        def __missing__(self, name):
            raise ValueError(f"there is no {name} among the fields")

    source = task.template.format_map(Strict(fields))
    if task.labels:
        if answer not in range(len(task.labels)):
            raise ValueError(f"labels are 0 to {len(task.labels) - 1}")
        target = task.labels[answer]
    elif task.step:
        target = format(np.round(answer / task.step) * task.step, ".1f")
    else:
        target = answer
    return source, target


def read_answer(task, written):
    text = written.strip(" \t\n")
    if task.labels:
        numbers = {label: number for number, label in enumerate(task.labels)}
        return numbers.get(text)
    if not task.step:
        return text
    try:
        return float(text) if abs(float(text)) != math.inf and float(text) == float(text) else None
    except ValueError:
        return None


# %% style="vectorised" part="teacher"
def shift_right(targets, start_id=0):
    shifted = torch.empty_like(targets)
    shifted[..., 0] = start_id
    shifted[..., 1:] = targets[..., :-1]
    return shifted


def seq2seq_loss(logits, targets, pad_id=0):
    if logits.shape[:-1] != targets.shape:
        raise ValueError("targets and logits do not belong together")
    nats = -torch.log_softmax(logits, -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    weight = (targets != pad_id).to(nats.dtype)
    return (nats * weight).sum() / weight.sum().clamp_min(1.0)


def teacher_forcing_loss(model, inputs, targets, start_id=0, pad_id=0):
    decoder_inputs = shift_right(targets, start_id=start_id)
    return seq2seq_loss(model(inputs, decoder_inputs), targets, pad_id=pad_id)


# %% style="vectorised" part="relative"
def relative_position_bucket(relative_position, bidirectional, num_buckets=32, max_distance=128):
    if bidirectional:
        num_buckets = num_buckets // 2
    max_exact = num_buckets // 2
    if max_distance <= max_exact:
        raise ValueError("max_distance")
    # The smallest distance of each bucket; how many of them a distance has reached is its bucket.
    steps = torch.arange(num_buckets - max_exact, dtype=torch.float64) / (num_buckets - max_exact)
    grown = max_exact * (max_distance / max_exact) ** steps
    starts = torch.cat([torch.arange(max_exact, dtype=torch.float64), grown])
    starts = (starts - 1e-9).to(relative_position.device)
    n = -relative_position
    offset = torch.zeros_like(relative_position)
    if bidirectional:
        offset[n < 0] = num_buckets
        n = n.abs()
    else:
        n = n.clamp(min=0)
    return offset + torch.searchsorted(starts, n.double().contiguous(), right=True) - 1


# %% style="vectorised" part="bias"
def relative_bias(table, queries, keys, bidirectional, max_distance=128):
    q = torch.arange(queries, device=table.device).view(queries, 1)
    k = torch.arange(keys, device=table.device).view(1, keys)
    buckets = relative_position_bucket(k - q, bidirectional, table.shape[0], max_distance)
    return torch.einsum("qkb,bh->hqk", F.one_hot(buckets, table.shape[0]).to(table), table)


# %% style="numpy_lists" part="noise"
import numpy as np


def random_lengths(total, parts, generator):
    if parts not in range(1, total + 1):
        raise ValueError("parts out of range")
    # The smallest parts - 1 of random keys say where the cuts are.
    keys = torch.rand(total - 1, generator=generator, dtype=torch.float64).numpy()
    cuts = np.sort(np.argsort(keys)[: parts - 1]) + 1
    return torch.from_numpy(np.diff(np.concatenate([[0], cuts, [total]])).astype(np.int64))


def noise_mask(length, generator, noise_density=0.15, mean_span_length=3.0):
    if length < 2:
        raise ValueError("length")
    if not 0 < noise_density < 1:
        raise ValueError("noise_density")
    if mean_span_length < 1:
        raise ValueError("mean_span_length")
    noise = min(length - 1, max(1, round(noise_density * length)))
    spans = min(length - noise, max(1, round(noise / mean_span_length)))
    lengths = np.empty((spans, 2), dtype=np.int64)
    lengths[:, 1] = random_lengths(noise, spans, generator)
    lengths[:, 0] = random_lengths(length - noise, spans, generator)
    return torch.from_numpy(np.repeat(np.tile([False, True], spans), lengths.ravel()))


# %% style="numpy_lists" part="spans"
import numpy as np


def replace_spans(tokens, mask, vocab_size, num_sentinels=100):
    if mask.shape != tokens.shape:
        raise ValueError("mask")
    largest = vocab_size - num_sentinels - 1
    if any(t < 0 or t > largest for t in tokens.tolist()):
        raise ValueError(f"tokens go from 0 to {largest}")
    inputs, targets, spans = [], [], 0
    for noise, run in groupby(
        zip(mask.tolist(), tokens.tolist(), strict=True), key=lambda pair: pair[0]
    ):
        run = [token for _, token in run]
        if noise:
            spans += 1
            inputs.append(vocab_size - spans)
            targets.extend([vocab_size - spans, *run])
        else:
            inputs.extend(run)
    if spans + 1 > num_sentinels:
        raise ValueError("more spans than num_sentinels allows")
    targets.append(vocab_size - spans - 1)
    return (
        torch.as_tensor(np.array(inputs, dtype=np.int64)).to(tokens.device),
        torch.as_tensor(np.array(targets, dtype=np.int64)).to(tokens.device),
    )


def span_corrupt(tokens, vocab_size, generator, *how, num_sentinels=100, **named):
    """Hands everything on."""
    if len(how) == 3:
        *how, num_sentinels = how
    mask = noise_mask(len(tokens), generator, *how, **named)
    return replace_spans(tokens, mask.to(tokens.device), vocab_size, num_sentinels)


# %% style="numpy_lists" part="tasks"
import re


def make_text_to_text(task, fields, answer):
    def fill(match):
        if match[1] not in fields:
            raise ValueError(f"{match[1]} is missing")
        return fields[match[1]]

    source = re.sub(r"\{(\w+)\}", fill, task.template)
    if task.labels:
        if answer < 0:
            raise ValueError("labels count from 0")
        try:
            return source, task.labels[answer]
        except IndexError:
            raise ValueError("there are not so many labels") from None
    if task.step:
        return source, f"{float(round(answer / task.step)) * task.step:.1f}"
    return source, answer


def read_answer(task, written):
    text = written.strip(" \t\n")
    if task.labels:
        numbers = {label: number for number, label in enumerate(task.labels)}
        return numbers.get(text)
    if not task.step:
        return text
    try:
        return float(text) if abs(float(text)) != math.inf and float(text) == float(text) else None
    except ValueError:
        return None


# %% style="numpy_lists" part="teacher"
def shift_right(targets, start_id=0):
    start = torch.full_like(targets[..., :1], start_id)
    return torch.cat([start, targets], dim=-1)[..., :-1]


def seq2seq_loss(logits, targets, pad_id=0):
    if logits.shape[:-1] != targets.shape:
        raise ValueError("wrong targets")
    vocab = logits.shape[-1]
    total = F.cross_entropy(
        logits.reshape(-1, vocab), targets.reshape(-1), ignore_index=pad_id, reduction="sum"
    )
    return total / max(int((targets != pad_id).sum()), 1)


def teacher_forcing_loss(model, inputs, targets, start_id=0, pad_id=0):
    decoder_inputs = shift_right(targets, start_id=start_id)
    return seq2seq_loss(model(inputs, decoder_inputs), targets, pad_id=pad_id)


# %% style="numpy_lists" part="relative"
import numpy as np


def relative_position_bucket(relative_position, bidirectional, num_buckets=32, max_distance=128):
    n = num_buckets // 2 if bidirectional else num_buckets
    exact = n // 2
    if max_distance <= exact:
        raise ValueError(f"max_distance {max_distance} <= {exact}")
    r = relative_position.cpu().numpy()
    d = np.abs(r) if bidirectional else np.maximum(-r, 0)
    large = exact + (
        np.log(np.maximum(d, exact) / exact) / np.log(max_distance / exact) * (n - exact)
    ).astype(np.int64)
    bucket = np.where(d < exact, d, np.minimum(large, n - 1))
    if bidirectional:
        bucket = bucket + n * (r > 0)
    return torch.as_tensor(bucket, dtype=torch.int64).to(relative_position.device)


# %% style="float32" part="relative"
def relative_position_bucket(relative_position, bidirectional, num_buckets=32, max_distance=128):
    """In float32 all the way, as in most code one finds."""
    buckets = torch.zeros_like(relative_position)
    if bidirectional:
        num_buckets //= 2
        buckets = buckets + torch.where(relative_position > 0, num_buckets, 0)
        relative_position = torch.abs(relative_position)
    else:
        relative_position = -torch.minimum(relative_position, torch.zeros_like(relative_position))
    max_exact = num_buckets // 2
    if max_distance <= max_exact:
        raise ValueError("max_distance too small")
    ratio = torch.log(relative_position.float() / max_exact) / math.log(max_distance / max_exact)
    large = max_exact + (ratio * (num_buckets - max_exact)).nan_to_num(neginf=0.0).long()
    large = torch.minimum(large, torch.full_like(large, num_buckets - 1))
    return buckets + torch.where(relative_position < max_exact, relative_position, large)


# %% style="float32" part="teacher"
def shift_right(targets, start_id=0):
    shifted = targets.roll(1, dims=-1).clone()
    shifted[..., 0] = start_id
    return shifted


def _real_tokens(logits, targets, pad_id):
    keep = targets.flatten() != pad_id
    return logits.flatten(end_dim=-2)[keep], targets.flatten()[keep]


def seq2seq_loss(logits, targets, pad_id=0):
    if targets.shape != logits.shape[:-1]:
        raise ValueError("shape of targets")
    real_logits, real_targets = _real_tokens(logits, targets, pad_id)
    if len(real_targets) == 0:
        return logits.sum() * 0
    return F.cross_entropy(real_logits, real_targets)


def teacher_forcing_loss(model, inputs, targets, start_id=0, pad_id=0):
    decoder_inputs = shift_right(targets, start_id=start_id)
    return seq2seq_loss(model(inputs, decoder_inputs), targets, pad_id=pad_id)


# %% style="float32" part="bias"
def relative_bias(table, queries, keys, bidirectional, max_distance=128):
    grid_q, grid_k = torch.meshgrid(torch.arange(queries), torch.arange(keys), indexing="ij")
    buckets = relative_position_bucket(
        (grid_k - grid_q).to(table.device), bidirectional, table.shape[0], max_distance
    )
    return F.embedding(buckets, table).movedim(-1, 0)


# %% style="subsets" part="noise"
def random_lengths(total, parts, generator):
    """Rejection: random gaps until enough of them differ."""
    if parts > total or parts <= 0:
        raise ValueError("no such number of parts")
    cuts = set()
    while len(cuts) < parts - 1:
        cuts.add(int(torch.randint(1, total, (), generator=generator)))
    edges = [0, *sorted(cuts), total]
    return torch.tensor([edges[i + 1] - edges[i] for i in range(parts)])


def _counts(length, noise_density, mean_span_length):
    noise = sorted((1, round(length * noise_density), length - 1))[1]
    return noise, max(1, min(round(noise / mean_span_length), length - noise))


def noise_mask(length, generator, noise_density=0.15, mean_span_length=3.0):
    for wrong, what in (
        (length < 2, "length"),
        (not 0 < noise_density < 1, "noise_density"),
        (mean_span_length < 1, "mean_span_length"),
    ):
        if wrong:
            raise ValueError(f"{what} is out of range")
    noise, spans = _counts(length, noise_density, mean_span_length)
    mask = torch.zeros(length, dtype=torch.bool)
    at = 0
    gone = random_lengths(noise, spans, generator).tolist()
    for stays, goes in zip(
        random_lengths(length - noise, spans, generator).tolist(), gone, strict=True
    ):
        mask[at + stays : at + stays + goes] = True
        at += stays + goes
    return mask


# %% style="subsets" part="spans"
def replace_spans(tokens, mask, vocab_size, num_sentinels=100):
    if mask.shape != tokens.shape:
        raise ValueError("mask and tokens")
    first = vocab_size - num_sentinels
    if ((tokens < 0) | (tokens >= first)).any():
        raise ValueError("tokens")
    edges = torch.diff(F.pad(mask.long(), (1, 1)))
    starts, ends = edges.eq(1).nonzero()[:, 0].tolist(), edges.eq(-1).nonzero()[:, 0].tolist()
    if len(starts) >= num_sentinels:
        raise ValueError("num_sentinels")

    def sentinel(i):
        return tokens.new_tensor([vocab_size - 1 - i])

    inputs, targets, at = [], [], 0
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        inputs += [tokens[at:start], sentinel(i)]
        targets += [sentinel(i), tokens[start:end]]
        at = end
    return torch.cat([*inputs, tokens[at:]]), torch.cat([*targets, sentinel(len(starts))])


def span_corrupt(tokens, vocab_size, generator, *how, num_sentinels=100, **named):
    """Hands everything on."""
    if len(how) == 3:
        *how, num_sentinels = how
    mask = noise_mask(len(tokens), generator, *how, **named)
    return replace_spans(tokens, mask.to(tokens.device), vocab_size, num_sentinels)
