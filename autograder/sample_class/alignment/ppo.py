# %% style="loops" part="kl"
def kl_estimators(log_probs, ref_log_probs):
    """By the ratio π_ref/π of Schulman's note."""
    if tuple(log_probs.shape) != tuple(ref_log_probs.shape):
        raise ValueError("shape")
    log_r = ref_log_probs - log_probs
    r = torch.exp(log_r)
    return KLEstimates(k1=-log_r, k2=0.5 * log_r.square(), k3=(r - 1) - log_r)


# %% style="loops" part="rewards"
def kl_shaped_rewards(scores, log_probs, ref_log_probs, mask, beta):
    """Token by token."""
    if log_probs.shape != mask.shape or ref_log_probs.shape != mask.shape:
        raise ValueError("shape")
    if tuple(scores.shape) != (len(mask),):
        raise ValueError("scores")
    if math.isnan(beta) or beta < 0:
        raise ValueError("beta")
    rewards = log_probs.new_zeros(mask.shape)
    for i, row in enumerate(mask.tolist()):
        counted = [t for t, real in enumerate(row) if real]
        if not counted:
            raise ValueError("empty")
        if counted != list(range(counted[0], counted[-1] + 1)):
            raise ValueError("run")
        for t in counted:
            rewards[i, t] = beta * (ref_log_probs[i, t].item() - log_probs[i, t].item())
        rewards[i, counted[-1]] += scores[i].item()
    return rewards


# %% style="loops" part="gae"
def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """Row by row, with plain numbers."""
    require_one_shape(rewards=rewards, values=values, mask=mask)
    require_one_run(mask)
    if not 0 <= gamma <= 1:
        raise ValueError("gamma")
    if not 0 <= lam <= 1:
        raise ValueError("lam")
    advantages, returns = values.new_zeros(mask.shape), values.new_zeros(mask.shape)
    for i in range(len(mask)):
        later, value_after = 0.0, 0.0
        for t in range(mask.shape[1] - 1, -1, -1):
            if mask[i, t]:
                value = values[i, t].item()
                later = rewards[i, t].item() + gamma * value_after - value + gamma * lam * later
                value_after = value
                advantages[i, t], returns[i, t] = later, later + value
    return Advantages(advantages, returns)


# %% style="loops" part="whiten"
def whiten(values, mask, shift_mean=True):
    if values.shape != mask.shape:
        raise ValueError("shape")
    places = mask.nonzero().tolist()
    if not places:
        raise ValueError("empty")
    real = [values[i, j].item() for i, j in places]
    mean = sum(real) / len(real)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in real) / len(real) + 1e-8)
    result = torch.zeros_like(values)
    for (i, j), x in zip(places, real, strict=True):
        result[i, j] = (x - mean) / deviation + (0.0 if shift_mean else mean)
    return result


# %% style="loops" part="policy"
def ppo_policy_loss(log_probs, old_log_probs, advantages, mask, epsilon=0.2):
    """Case by case, as the table reads."""
    require_one_shape(new=log_probs, old=old_log_probs, advantages=advantages, mask=mask)
    if not epsilon > 0:
        raise ValueError("epsilon")
    total, flat, number = 0, 0, 0
    for i, j in mask.nonzero().tolist():
        a, number = advantages[i, j].item(), number + 1
        log_ratio = log_probs[i, j] - old_log_probs[i, j].item()
        if a > 0 and log_ratio > math.log1p(epsilon):
            total, flat = total + (1 + epsilon) * a, flat + 1
        elif a < 0 and epsilon < 1 and log_ratio < math.log1p(-epsilon):
            total, flat = total + (1 - epsilon) * a, flat + 1
        else:
            total = total + log_ratio.clamp(max=MAX_LOG_RATIO).exp() * a
    if number == 0:
        raise ValueError("empty")
    return PolicyLoss(-total / number, torch.tensor(flat / number))


# %% style="loops" part="value"
def value_loss(values, old_values, returns, mask, clip_range=0.2):
    require_one_shape(values=values, old=old_values, returns=returns, mask=mask)
    if not clip_range > 0:
        raise ValueError("clip_range")
    losses = []
    for i, j in mask.nonzero().tolist():
        v, old, target = values[i, j], old_values[i, j].item(), returns[i, j].item()
        held = v.clamp(old - clip_range, old + clip_range)
        losses.append(torch.maximum((v - target) ** 2, (held - target) ** 2))
    if not losses:
        raise ValueError("empty")
    return sum(losses) / (2 * len(losses))


# %% style="matrix" part="gae"
def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """All sums at once: a triangular matrix of the powers of γλ, times the δ."""
    require_one_shape(rewards=rewards, values=values, mask=mask)
    require_one_run(mask)
    for name, factor in dict(gamma=gamma, lam=lam).items():
        if not (factor >= 0 and factor <= 1):
            raise ValueError(name)
    with torch.no_grad():
        length = mask.shape[1]
        rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
        after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
        deltas = torch.where(mask, rewards + gamma * after - values, 0.0)
        steps = torch.arange(length, device=mask.device)
        apart = steps - steps[:, None]
        powers = torch.pow(gamma * lam, apart.clamp(min=0).to(values)).triu()
        advantages = torch.einsum("tl,bl->bt", powers, deltas) * mask
        return Advantages(advantages, advantages + values)


# %% style="matrix" part="rewards"
def kl_shaped_rewards(scores, log_probs, ref_log_probs, mask, beta):
    """The last token is the one with no token of the response behind it."""
    require_one_shape(log_probs=log_probs, ref_log_probs=ref_log_probs, mask=mask)
    require_one_run(mask)
    if scores.dim() != 1 or len(scores) != len(mask):
        raise ValueError("scores")
    if (mask.sum(1) == 0).any():
        raise ValueError("empty")
    if not beta >= 0:
        raise ValueError("beta")
    with torch.no_grad():
        behind = mask.long().flip(1).cumsum(1).flip(1)
        ends = (mask & (behind == 1)).to(log_probs.dtype)
        penalty = torch.where(mask, log_probs - ref_log_probs, 0.0)
        return torch.einsum("b,bt->bt", scores, ends) - beta * penalty


# %% style="matrix" part="whiten"
def whiten(values, mask, shift_mean=True):
    """Moments as weighted sums."""
    require_one_shape(values=values, mask=mask)
    if mask.sum() == 0:
        raise ValueError("empty")
    weights = mask.to(values) / mask.sum()
    mean = torch.einsum("bt,bt->", torch.where(mask, values, 0.0), weights)
    centred = torch.where(mask, values - mean, 0.0)
    result = centred / (torch.einsum("bt,bt,bt->", centred, centred, weights) + 1e-8).sqrt()
    return result if shift_mean else result + mean * mask


# %% style="matrix" part="policy"
def ppo_policy_loss(log_probs, old_log_probs, advantages, mask, epsilon=0.2):
    """The bound written by the sign of the advantage: (1 ± ε)·A, of which the minimum is never more."""
    require_one_shape(new=log_probs, old=old_log_probs, advantages=advantages, mask=mask)
    if not mask.any():
        raise ValueError("empty")
    if not epsilon > 0:
        raise ValueError("epsilon")
    with torch.no_grad():
        old, advantage = old_log_probs.clone(), advantages.clone()
        weights = mask.to(log_probs) / mask.sum()
        bound = torch.where(advantage >= 0, 1 + epsilon, max(0.0, 1 - epsilon)) * advantage
    objective = torch.exp(torch.clamp(log_probs - old, max=MAX_LOG_RATIO)) * advantage
    held = bound < objective
    chosen = torch.where(held, bound, objective)
    return PolicyLoss(
        loss=-torch.einsum("bt,bt->", torch.where(mask, chosen, 0.0), weights),
        clip_fraction=(held * weights).sum(),
    )


# %% style="in_place" part="kl"
def kl_estimators(log_probs, ref_log_probs):
    require_one_shape(a=log_probs, b=ref_log_probs)
    u = log_probs - ref_log_probs
    k3 = u.clone()
    k3 += torch.expm1(-u)
    return KLEstimates(u, u.pow(2).mul_(0.5), k3)


# %% style="in_place" part="rewards"
def kl_shaped_rewards(scores, log_probs, ref_log_probs, mask, beta):
    require_one_shape(log_probs=log_probs, ref_log_probs=ref_log_probs, mask=mask)
    require_one_run(mask)
    if scores.shape != (mask.shape[0],):
        raise ValueError("scores")
    lengths = mask.sum(dim=1)
    if (lengths < 1).any():
        raise ValueError("empty")
    if not beta >= 0:
        raise ValueError("beta")
    rewards = log_probs.detach().clone()
    rewards.sub_(ref_log_probs.detach()).mul_(-beta)
    rewards[~mask] = 0
    first = mask.to(torch.int64).argmax(dim=1, keepdim=True)
    last = first + lengths[:, None] - 1
    return rewards.scatter_add_(1, last, scores.detach()[:, None].to(rewards))


# %% style="in_place" part="gae"
def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """The δ become the advantages, from behind."""
    require_one_shape(rewards=rewards, values=values, mask=mask)
    require_one_run(mask)
    if not 0 <= gamma <= 1:
        raise ValueError("gamma")
    if not 0 <= lam <= 1:
        raise ValueError("lam")
    rewards, values = rewards.detach().clone(), values.detach().clone()
    rewards[~mask] = values[~mask] = 0
    advantages = rewards - values
    advantages[:, :-1] += gamma * values[:, 1:]
    for t in range(mask.shape[1] - 2, -1, -1):
        advantages[:, t] += gamma * lam * advantages[:, t + 1] * mask[:, t + 1]
    advantages[~mask] = 0
    return Advantages(advantages, advantages + values)


# %% style="in_place" part="whiten"
def whiten(values, mask, shift_mean=True):
    """The real tokens taken out and put back."""
    require_one_shape(values=values, mask=mask)
    real = torch.masked_select(values, mask)
    if real.numel() == 0:
        raise ValueError("empty")
    variance, mean = torch.var_mean(real, unbiased=False)
    real = real.sub(mean).div_(variance.add(1e-8).sqrt())
    if not shift_mean:
        real += mean
    return torch.zeros_like(values).masked_scatter(mask, real)


# %% style="in_place" part="value"
def value_loss(values, old_values, returns, mask, clip_range=0.2):
    require_one_shape(values=values, old=old_values, returns=returns, mask=mask)
    if mask.sum() == 0:
        raise ValueError("empty")
    if not clip_range > 0:
        raise ValueError("clip_range")
    v, old, target = values[mask], old_values[mask].detach(), returns[mask].detach()
    held = torch.minimum(torch.maximum(v, old - clip_range), old + clip_range)
    return 0.5 * torch.max((v - target).square(), (held - target).square()).mean()


# %% style="losses" part="policy"
def ppo_policy_loss(log_probs, old_log_probs, advantages, mask, epsilon=0.2):
    """As the implementations write it: two losses, and the larger one."""
    require_one_shape(new=log_probs, old=old_log_probs, advantages=advantages, mask=mask)
    number = mask.sum()
    if number == 0:
        raise ValueError("empty")
    if not epsilon > 0:
        raise ValueError("epsilon")
    with torch.no_grad():
        a = torch.where(mask, advantages, 0.0)
    log_ratio = torch.where(mask, log_probs - old_log_probs.detach(), 0.0)
    ratio = torch.where(log_ratio > MAX_LOG_RATIO, MAX_LOG_RATIO, log_ratio).exp()
    free, held = -a * ratio, -a * torch.clamp(ratio, 1.0 - epsilon, 1.0 + epsilon)
    fraction = (held > free).sum() / number
    return PolicyLoss(torch.max(free, held).sum() / number, fraction)


# %% style="losses" part="value"
def _masked_mean(x, mask):
    return (x * mask).sum() / mask.sum()


def value_loss(values, old_values, returns, mask, clip_range=0.2):
    """Padding has errors of 0; the half stands in front."""
    require_one_shape(values=values, old=old_values, returns=returns, mask=mask)
    if not mask.any():
        raise ValueError("empty")
    if not clip_range > 0:
        raise ValueError("clip_range")
    old, target = old_values.detach(), returns.detach()
    held = torch.where(
        (values - old).abs() <= clip_range, values, old + clip_range * (values - old).sign()
    )
    free_errors, held_errors = (values - target) ** 2, (held - target) ** 2
    larger = torch.where(held_errors > free_errors, held_errors, free_errors)
    return 0.5 * _masked_mean(larger, mask)


# %% style="losses" part="kl"
def kl_estimators(log_probs, ref_log_probs):
    require_one_shape(log_probs=log_probs, ref_log_probs=ref_log_probs)
    ratio = (ref_log_probs - log_probs).exp()
    return KLEstimates(
        log_probs - ref_log_probs,
        (log_probs - ref_log_probs).pow(2).div(2),
        ratio - 1 - (ref_log_probs - log_probs),
    )


# %% style="recursive" part="gae"
def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """The first token, and the advantages of the rest."""
    require_one_shape(rewards=rewards, values=values, mask=mask)
    require_one_run(mask)
    for name, factor in (("gamma", gamma), ("lam", lam)):
        if not 0 <= factor <= 1:
            raise ValueError(name)

    def of(rewards, values):
        if len(rewards) == 0:
            return []
        rest = of(rewards[1:], values[1:])
        after, later = (values[1], rest[0]) if rest else (0.0, 0.0)
        return [rewards[0] + gamma * after - values[0] + gamma * lam * later, *rest]

    advantages = torch.zeros_like(values, requires_grad=False)
    for i, real in enumerate(mask):
        found = of(rewards[i, real].tolist(), values[i, real].tolist())
        advantages[i, real] = torch.tensor(found, dtype=values.dtype, device=values.device)
    return Advantages(advantages, (advantages + values.detach()) * mask)


# %% style="recursive" part="rewards"
def kl_shaped_rewards(scores, log_probs, ref_log_probs, mask, beta):
    """The end of a response is where the mask falls."""
    require_one_shape(log_probs=log_probs, ref_log_probs=ref_log_probs, mask=mask)
    require_one_run(mask)
    if list(scores.shape) != [len(mask)]:
        raise ValueError("scores")
    if not torch.any(mask, dim=1).all():
        raise ValueError("empty")
    if not beta >= 0:
        raise ValueError("beta")
    ends = torch.cat([mask[:, :-1] & ~mask[:, 1:], mask[:, -1:]], dim=1)
    with torch.no_grad():
        rewards = torch.where(mask, beta * (ref_log_probs - log_probs), 0.0)
        rewards[ends] += scores  # one end a row, in the order of the rows
    return rewards


# %% style="recursive" part="whiten"
def whiten(values, mask, shift_mean=True):
    """The deviation by the mean of the squares."""
    require_one_shape(values=values, mask=mask)
    if not mask.any():
        raise ValueError("empty")
    number = mask.sum()
    mean = values.masked_fill(~mask, 0).sum() / number
    centred = (values - mean).masked_fill(~mask, 0)
    scaled = centred / torch.sqrt(centred.pow(2).sum() / number + 1e-8)
    return scaled if shift_mean else torch.where(mask, scaled + mean, 0.0)
