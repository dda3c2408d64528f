# %% style="index" part="template"
def render(conversation, template, *, open_assistant=False):
    """Roles checked first, contents after."""
    roles = [role for role, _ in conversation]
    if roles == []:
        raise ValueError("empty")
    if roles != [ROLES[i % 2] for i in range(len(roles))]:
        raise ValueError("role")
    if open_assistant and roles[-1] != "user":
        raise ValueError("role")
    opening = {"user": template.user, "assistant": template.assistant}
    ids = []
    for role, content in conversation:
        if any(token in tuple(template) for token in content):
            raise ValueError("special")
        ids.extend([opening[role]])
        ids.extend(content)
        ids.extend([template.end])
    if open_assistant:
        ids.append(opening["assistant"])
    return torch.LongTensor(ids)


def parse(tokens, template):
    """From one end to the next."""
    ids = [int(token) for token in tokens]
    if len(ids) == 0:
        raise ValueError("empty")
    turns, start = [], 0
    while start < len(ids):
        role = ROLES[len(turns) % 2]
        if ids[start] != getattr(template, role):
            raise ValueError("role")
        if template.end not in ids[start:]:
            raise ValueError("end")
        stop = ids.index(template.end, start)
        content = ids[start + 1 : stop]
        if template.user in content or template.assistant in content:
            raise ValueError("end")
        turns.append((role, content))
        start = stop + 1
    return turns


# %% style="loops" part="mask"
def response_mask(tokens, template):
    """One token after the other, and whether a turn of the assistant is open."""
    rows = tokens.reshape(-1, tokens.shape[-1]).tolist()
    marks = []
    for row in rows:
        is_open = False
        for token in row:
            marks.append(is_open)
            if token == template.assistant:
                is_open = True
            elif token == template.end:
                is_open = False
    return torch.tensor(marks, device=tokens.device).reshape(tokens.shape)


# %% style="loops" part="loss"
def sft_loss(logits, tokens, mask):
    """Every token by itself."""
    if tuple(tokens.shape) != tuple(logits.shape[:2]):
        raise ValueError("tokens")
    if tuple(mask.shape) != tuple(logits.shape[:2]):
        raise ValueError("mask")
    total, many = 0.0, 0
    for row, ids, counted in zip(logits, tokens.tolist(), mask.tolist(), strict=True):
        for t in range(1, len(ids)):
            if counted[t]:
                total = total + torch.logsumexp(row[t - 1], dim=0) - row[t - 1, ids[t]]
                many += 1
    if many == 0:
        raise ValueError("response")
    return total / many


# %% style="loops" part="pack"
def pack(texts, masks, length):
    """Rows as lists, filled up at the end."""
    if len(texts) == 0:
        raise ValueError("text")
    if len(texts) != len(masks):
        raise ValueError("mask")
    rows = []
    for number, (text, mask) in enumerate(zip(texts, masks, strict=True)):
        if len(text) != len(mask):
            raise ValueError("mask")
        if len(text) == 0:
            raise ValueError("empty")
        if len(text) > length:
            raise ValueError("length")
        entries = [
            (token, counts and position > 0, number, position)
            for position, (token, counts) in enumerate(
                zip(text.tolist(), mask.tolist(), strict=True)
            )
        ]
        for row in rows:
            if len(row) + len(entries) <= length:
                row.extend(entries)
                break
        else:
            rows.append(entries)
    padding = (0, False, -1, 0)
    table = [row + [padding] * (length - len(row)) for row in rows]
    columns = [
        torch.tensor([[entry[i] for entry in row] for row in table], device=texts[0].device)
        for i in range(4)
    ]
    return Packed(*columns)


def packed_attention_mask(documents):
    """Query by query, key by key."""
    found = []
    for row in documents.tolist():
        n = len(row)
        found.append(
            [[j <= i and row[i] == row[j] and row[j] != -1 for j in range(n)] for i in range(n)]
        )
    return torch.tensor(found, dtype=torch.bool, device=documents.device)


# %% style="loops" part="rates"
def answer_rates(known, refused, correct):
    if not (known.shape == refused.shape and known.shape == correct.shape):
        raise ValueError("shape")
    asked = {True: 0, False: 0}
    right = silent = invented = 0
    for k, r, c in zip(known.tolist(), refused.tolist(), correct.tolist(), strict=True):
        if r and c:
            raise ValueError("refused")
        asked[k] += 1
        if k:
            right += c
            silent += r
        elif not r and not c:
            invented += 1
    if 0 in asked.values():
        raise ValueError("known")
    return AnswerRates(
        torch.tensor(right / asked[True]),
        torch.tensor(silent / asked[True]),
        torch.tensor(invented / asked[False]),
    )


# %% style="state" part="template"
_OPENS = ("user", "assistant")


def _turn(role, content, template):
    """One turn as ids."""
    for token in content:
        if token in (template.user, template.assistant, template.end):
            raise ValueError(f"special token {token}")
    return [getattr(template, role), *content, template.end]


def render(conversation, template, *, open_assistant=False):
    """Turn by turn, with the role that is due."""
    due = 0
    pieces = []
    for role, content in conversation:
        if role != _OPENS[due]:
            raise ValueError(f"the role should be {_OPENS[due]}")
        pieces.append(torch.tensor(_turn(role, content, template), dtype=torch.int64))
        due = 1 - due
    if not pieces:
        raise ValueError("empty")
    if open_assistant:
        if due == 0:
            raise ValueError("the role of the last turn")
        pieces.append(torch.tensor([template.assistant]))
    return torch.cat(pieces)


def parse(tokens, template):
    """Rendered again, what was read must be what was given."""
    if tokens.numel() == 0:
        raise ValueError("empty")
    turns, where = [], "outside"
    for token in tokens:
        token = token.item()
        if where == "outside":
            role = _OPENS[len(turns) % 2]
            if token != getattr(template, role):
                raise ValueError("role")
            turns.append((role, []))
            where = "inside"
        elif token == template.end:
            where = "outside"
        else:
            if token in template:
                raise ValueError("end")
            turns[-1][1].append(token)
    if where == "inside":
        raise ValueError("end")
    return turns


# %% style="state" part="mask"
def response_mask(tokens, template):
    """Which turn a token is in, carried along."""
    is_open = torch.zeros_like(tokens[..., 0], dtype=torch.bool)
    columns = []
    for column in tokens.unbind(-1):
        columns.append(is_open)
        is_open = (is_open | (column == template.assistant)) & (column != template.end)
    return torch.stack(columns, dim=-1)


# %% style="state" part="rates"
def answer_rates(known, refused, correct):
    """By counts."""
    if len({tuple(x.shape) for x in (known, refused, correct)}) > 1:
        raise ValueError("shape")
    if bool((refused * correct).any()):
        raise ValueError("refused")
    n_known, n_unknown = known.sum(), (~known).sum()
    if n_known == 0 or n_unknown == 0:
        raise ValueError("known")
    return AnswerRates(
        accuracy=(known & correct).sum() / n_known,
        refusal=(known & refused).sum() / n_known,
        hallucination=1 - (~known & (refused | correct)).sum() / n_unknown,
    )


# %% style="ignore_index" part="loss"
def sft_loss(logits, tokens, mask):
    """What does not count has the target that cross_entropy leaves out."""
    if tokens.shape != logits.shape[:-1]:
        raise ValueError("tokens")
    if mask.shape != tokens.shape:
        raise ValueError("mask")
    targets = torch.where(mask, tokens, -100)[:, 1:]
    if (targets == -100).all():
        raise ValueError("response")
    return F.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-100
    )


# %% style="ignore_index" part="pack"
def pack(texts, masks, length):
    """Rows of whole texts first, tensors by cat and pad."""
    if not len(texts):
        raise ValueError("text")
    if len(masks) != len(texts) or any(len(m) != len(t) for m, t in zip(masks, texts, strict=True)):
        raise ValueError("mask")
    sizes = [len(text) for text in texts]
    if min(sizes) == 0:
        raise ValueError("empty")
    if max(sizes) > length:
        raise ValueError("length")
    rows, room = [], []
    for i, size in enumerate(sizes):
        free = [r for r in range(len(rows)) if room[r] >= size]
        if free:
            rows[free[0]].append(i)
            room[free[0]] -= size
        else:
            rows.append([i])
            room.append(length - size)

    def filled(piece, padding):
        """Every row: the pieces of its texts, and padding."""
        joined = [torch.cat([piece(i) for i in row]) for row in rows]
        return torch.stack([F.pad(row, (0, length - len(row)), value=padding) for row in joined])

    places = [torch.arange(size, device=texts[0].device) for size in sizes]
    return Packed(
        filled(lambda i: texts[i], 0),
        filled(lambda i: masks[i] & (places[i] > 0), False),
        filled(lambda i: torch.full_like(places[i], i), -1),
        filled(lambda i: places[i], 0),
    )


def packed_attention_mask(documents):
    """Blocks and triangle."""
    n = documents.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool, device=documents.device).tril()
    looking, seen = documents.unsqueeze(2), documents.unsqueeze(1)
    return causal & looking.eq(seen) & seen.ne(-1)


# %% style="sums" part="loss"
def sft_loss(logits, tokens, mask):
    """Sums over everything, with weights of 0 and 1."""
    if tokens.shape != logits.shape[:-1]:
        raise ValueError("tokens")
    if mask.shape != tokens.shape:
        raise ValueError("mask")
    weights = mask[:, 1:].to(logits)
    if weights.sum() == 0:
        raise ValueError("response")
    ids = tokens[:, 1:].masked_fill(~mask[:, 1:], 0)
    log_probs = torch.log_softmax(logits, dim=-1)[:, :-1]
    picked = log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return -(picked * weights).sum() / weights.sum()


# %% style="sums" part="mask"
def response_mask(tokens, template):
    """All pairs of tokens: what was said before, in the same turn."""
    opening = (tokens == template.user) | (tokens == template.assistant)
    # The number of the turn that a token is in, and which turns are the assistant's.
    turn = opening.long().cumsum(-1)
    length = tokens.shape[-1]
    same_turn = turn[..., :, None] == turn[..., None, :]
    earlier = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril(-1)
    spoken = (same_turn & earlier & (tokens == template.assistant)[..., None, :]).any(-1)
    closed = (same_turn & earlier & (tokens == template.end)[..., None, :]).any(-1)
    return spoken & ~closed


# %% style="sums" part="pack"
def pack(texts, masks, length):
    """Flat indices: each token knows its place in the table."""
    if len(texts) == 0:
        raise ValueError("text")
    if list(map(len, texts)) != list(map(len, masks)):
        raise ValueError("mask")
    used = []
    starts = []
    for text in texts:
        n = text.numel()
        if n == 0:
            raise ValueError("empty")
        if n > length:
            raise ValueError("length")
        row = 0
        while row < len(used) and used[row] + n > length:
            row += 1
        if row == len(used):
            used.append(0)
        starts.append(row * length + used[row])
        used[row] += n
    where = texts[0].device
    sizes = torch.tensor([len(text) for text in texts], device=where)
    numbers = torch.arange(len(texts), device=where).repeat_interleave(sizes)
    positions = torch.cat([torch.arange(len(text), device=where) for text in texts])
    flat = torch.tensor(starts, device=where)[numbers] + positions
    total = len(used) * length
    tokens = torch.zeros(total, dtype=torch.int64, device=where)
    mask = torch.zeros(total, dtype=torch.bool, device=where)
    documents = torch.full((total,), -1, device=where)
    restarted = torch.zeros(total, dtype=torch.int64, device=where)
    tokens[flat] = torch.cat(list(texts))
    mask[flat] = torch.cat(list(masks)) & (positions != 0)
    documents[flat] = numbers
    restarted[flat] = positions
    return Packed(*(x.view(len(used), length) for x in (tokens, mask, documents, restarted)))


def packed_attention_mask(documents):
    """As a table of allowed pairs, set in place."""
    rows, length = documents.shape
    allowed = torch.zeros(rows, length, length, dtype=torch.bool, device=documents.device)
    for i in range(length):
        allowed[:, i, : i + 1] = documents[:, : i + 1] == documents[:, i : i + 1]
        allowed[:, i][documents[:, i] == -1] = False
    return allowed


# %% style="tensor_ops" part="template"
def render(conversation, template, *, open_assistant=False):
    """Without a loop over tokens."""
    if not len(conversation):
        raise ValueError("empty")
    expected = ["user", "assistant"] * len(conversation)
    rows = []
    for (role, content), right in zip(conversation, expected, strict=False):
        if role != right:
            raise ValueError("role")
        if set(content) & set(template):
            raise ValueError("special")
        rows.append([template.user if role == "user" else template.assistant])
        rows.append(content)
        rows.append([template.end])
    if open_assistant:
        if conversation[-1][0] == "assistant":
            raise ValueError("role")
        rows.append([template.assistant])
    return torch.tensor([token for row in rows for token in row], dtype=torch.long)


def parse(tokens, template):
    """Cut behind every end."""
    if not len(tokens):
        raise ValueError("empty")
    ends = (tokens == template.end).nonzero().squeeze(1).tolist()
    pieces, start = [], 0
    for end in [*ends, len(tokens)]:
        pieces.append(tokens[start : end + 1].tolist())
        start = end + 1
    if not pieces[-1]:
        pieces.pop()
    turns = []
    for i, piece in enumerate(pieces):
        opening = template.user if i % 2 == 0 else template.assistant
        if piece[0] != opening:
            raise ValueError("role")
        if piece[-1] != template.end or set(piece[1:-1]) & {template.user, template.assistant}:
            raise ValueError("end")
        turns.append((ROLES[i % 2], piece[1:-1]))
    return turns


# %% style="tensor_ops" part="rates"
def answer_rates(known, refused, correct):
    """Weighted means."""
    if known.shape != refused.shape or refused.shape != correct.shape:
        raise ValueError("shape")
    if torch.logical_and(refused, correct).any():
        raise ValueError("refused")
    if known.float().sum() * (1 - known.float()).sum() == 0:
        raise ValueError("known")

    def share(of, among):
        return (of & among).double().sum() / among.double().sum()

    made_up = ~(refused | correct)
    return AnswerRates(share(correct, known), share(refused, known), share(made_up, ~known))
