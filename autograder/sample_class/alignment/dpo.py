# %% style="loops" part="log_probs"
def sequence_log_probs(logits, tokens, mask):
    """One sequence and one token at a time."""
    if tuple(tokens.shape) != tuple(logits.shape[:2]):
        raise ValueError("tokens")
    if tuple(mask.shape) != tuple(logits.shape[:2]):
        raise ValueError("mask")
    sums = []
    for row, ids, counted in zip(logits, tokens, mask, strict=True):
        total = row.sum() * 0
        for t in range(1, len(ids)):
            if counted[t]:
                total = total + row[t - 1, ids[t]] - torch.logsumexp(row[t - 1], dim=0)
        sums.append(total)
    return torch.stack(sums)


# %% style="loops" part="loss"
def implicit_reward(policy_log_probs, reference_log_probs, beta=0.1):
    return policy_log_probs * beta - reference_log_probs * beta


def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1):
    if not (
        policy_chosen.shape
        == policy_rejected.shape
        == reference_chosen.shape
        == reference_rejected.shape
    ):
        raise ValueError("shape")
    if beta <= 0:
        raise ValueError("beta")
    losses = []
    for w, l, ref_w, ref_l in zip(
        policy_chosen,
        policy_rejected,
        reference_chosen.tolist(),
        reference_rejected.tolist(),
        strict=True,
    ):
        losses.append(F.softplus(-beta * ((w - ref_w) - (l - ref_l))))
    if not losses:
        raise ValueError("comparison")
    return sum(losses) / len(losses)


# %% style="loops" part="metrics"
def preference_metrics(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    right, chosen, rejected = [], [], []
    for i in range(len(policy_chosen)):
        w = beta * float(policy_chosen[i] - reference_chosen[i])
        l = beta * float(policy_rejected[i] - reference_rejected[i])
        right.append(1.0 if w > l else 0.5 if w == l else 0.0)
        chosen.append(w)
        rejected.append(l)
    accuracy, chosen, rejected = (
        torch.tensor(x, dtype=policy_chosen.dtype).mean() for x in (right, chosen, rejected)
    )
    return PreferenceMetrics(accuracy, chosen - rejected, chosen, rejected)


# %% style="loops" part="bandit"
def expected_dpo_loss(log_probs, reference_log_probs, rewards, beta):
    n = len(rewards)
    if n < 2:
        raise ValueError("responses")
    total = 0
    for i in range(n):
        for j in range(n):
            if i != j:
                d = beta * (
                    log_probs[i] - reference_log_probs[i] - log_probs[j] + reference_log_probs[j]
                )
                total = total + torch.sigmoid(rewards[i] - rewards[j]) * F.softplus(-d)
    return total / math.comb(n, 2)


# %% style="cross_entropy" part="log_probs"
def sequence_log_probs(logits, tokens, mask):
    if tokens.shape != logits.shape[:-1]:
        raise ValueError("tokens")
    if mask.shape != tokens.shape:
        raise ValueError("mask")
    targets = torch.where(mask, tokens, -100)[:, 1:]
    return -F.cross_entropy(
        logits[:, :-1].transpose(1, 2), targets, ignore_index=-100, reduction="none"
    ).sum(-1)


# %% style="cross_entropy" part="optimum"
def optimal_log_probs(reference_log_probs, rewards, beta):
    if not beta > 0:
        raise ValueError("beta")
    scores = reference_log_probs + rewards / beta
    return scores - scores.logsumexp(dim=-1, keepdim=True)


def kl_objective(log_probs, reference_log_probs, rewards, beta):
    probs = log_probs.exp()
    reward = (probs * rewards).sum(-1)
    terms = torch.where(
        probs > 0, probs * (log_probs - reference_log_probs), torch.zeros_like(probs)
    )
    return reward - beta * terms.sum(-1)


# %% style="cross_entropy" part="loss"
def implicit_reward(policy_log_probs, reference_log_probs, beta=0.1):
    return (policy_log_probs - reference_log_probs).mul(beta)


def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1):
    """A classifier with two classes, whose logits are the implicit rewards."""
    shapes = [
        tuple(x.shape)
        for x in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    ]
    if shapes.count(shapes[0]) < 4:
        raise ValueError("shape")
    if 0 in shapes[0]:
        raise ValueError("comparison")
    if not beta > 0:
        raise ValueError("beta")
    with torch.no_grad():
        frozen = torch.stack([reference_chosen, reference_rejected], dim=-1)
    logits = beta * (torch.stack([policy_chosen, policy_rejected], dim=-1) - frozen)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


# %% style="table" part="bandit"
def expected_dpo_loss(log_probs, reference_log_probs, rewards, beta):
    """The table of all ordered pairs, less its diagonal."""
    n = log_probs.numel()
    if n < 2:
        raise ValueError("responses")
    h = beta * (log_probs - reference_log_probs)
    costs = -torch.sigmoid(rewards[:, None] - rewards) * F.logsigmoid(h[:, None] - h)
    return (costs.sum() - costs.diagonal().sum()) / (n * (n - 1) / 2)


# %% style="table" part="metrics"
def preference_metrics(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    policy = torch.stack([policy_chosen, policy_rejected])
    frozen = torch.stack([reference_chosen, reference_rejected])
    w, l = beta * (policy - frozen)
    accuracy = ((w > l).to(w) + 0.5 * (w == l)).mean()
    return PreferenceMetrics(
        accuracy=accuracy, margin=(w - l).mean(), chosen=w.mean(), rejected=l.mean()
    )


# %% style="table" part="optimum"
def optimal_log_probs(reference_log_probs, rewards, beta):
    if not beta > 0:
        raise ValueError("beta")
    return F.log_softmax(rewards / beta + reference_log_probs, -1)


def kl_objective(log_probs, reference_log_probs, rewards, beta):
    probs = log_probs.exp()
    log_ratio = torch.nan_to_num(log_probs - reference_log_probs, nan=0.0, neginf=0.0)
    return torch.einsum("...y,...y->...", probs, rewards - beta * log_ratio)


# %% style="closed_form" part="optimum"
def optimal_log_probs(reference_log_probs, rewards, beta):
    """Shifted by its largest score, then normalised by hand."""
    if beta != beta or beta <= 0:
        raise ValueError("beta")
    scores = reference_log_probs + rewards / beta
    scores = scores - scores.max(dim=-1, keepdim=True).values
    return scores - scores.exp().sum(dim=-1, keepdim=True).log()


def kl_objective(log_probs, reference_log_probs, rewards, beta):
    """Row by row, over the responses that are said."""
    width = log_probs.shape[-1]
    rows = []
    for p, q, r in zip(
        log_probs.reshape(-1, width),
        reference_log_probs.reshape(-1, width),
        rewards.reshape(-1, width),
        strict=True,
    ):
        said = p > -math.inf
        p, q, r = p[said], q[said], r[said]
        rows.append(p.exp() @ (r - beta * (p - q)))
    return torch.stack(rows).reshape(log_probs.shape[:-1])


# %% style="margin" part="loss"
def implicit_reward(policy_log_probs, reference_log_probs, beta=0.1):
    return beta * policy_log_probs - beta * reference_log_probs


def _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected):
    return (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected).detach()


def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1):
    """The policy's log-ratio against the reference's, as the authors' code writes it."""
    for other in (policy_rejected, reference_chosen, reference_rejected):
        if other.shape != policy_chosen.shape:
            raise ValueError("shape")
    if not policy_chosen.numel():
        raise ValueError("comparison")
    if beta <= 0.0:
        raise ValueError("beta")
    margin = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return torch.logaddexp(torch.zeros_like(margin), -beta * margin).mean()


# %% style="margin" part="log_probs"
def sequence_log_probs(logits, tokens, mask):
    """The counted tokens alone, added up where they belong."""
    if tokens.shape != logits.shape[:-1]:
        raise ValueError("tokens")
    if mask.shape != tokens.shape:
        raise ValueError("mask")
    rows, places = mask[:, 1:].nonzero(as_tuple=True)
    found = logits[rows, places].log_softmax(-1)
    picked = found[torch.arange(len(rows), device=logits.device), tokens[rows, places + 1]]
    return logits.new_zeros(len(tokens)).index_add(0, rows, picked)
