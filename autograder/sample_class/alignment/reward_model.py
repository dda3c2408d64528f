# %% style="loops" part="reward"
class RewardModel(nn.Module):
    """One text at a time, cut to its length."""

    def __init__(self, vocab_size, d_model, num_heads, num_layers, max_length):
        super().__init__()
        self.body = CausalTransformer(vocab_size, d_model, num_heads, num_layers, max_length)
        self.head = nn.Linear(d_model, 1)

    def forward(self, tokens, mask):
        if tuple(mask.shape) != tuple(tokens.shape):
            raise ValueError("mask and tokens differ")
        rewards = []
        for row, real in zip(tokens, mask, strict=True):
            n = int(real.sum())
            if n == 0:
                raise ValueError("empty text")
            if not real[:n].all():
                raise ValueError("padding goes to the right")
            rewards.append(self.head(self.body.states(row[None, :n])[0, -1])[0])
        return torch.stack(rewards)


# %% style="loops" part="pairwise"
def preference_probability(first, second):
    return 1 / (1 + torch.exp(second - first))


def pairwise_loss(chosen, rejected):
    if chosen.shape != rejected.shape:
        raise ValueError("not one shape")
    losses = [
        F.softplus(loser - winner)
        for winner, loser in zip(chosen.reshape(-1), rejected.reshape(-1), strict=True)
    ]
    if not losses:
        raise ValueError("no comparison")
    return sum(losses) / len(losses)


# %% style="loops" part="ranking"
def ranking_loss(rewards, ranks):
    if len(rewards) != len(ranks):
        raise ValueError("ranks for other prompts")
    if len(rewards) == 0:
        raise ValueError("no prompt")
    total = 0
    for reward, rank in zip(rewards, ranks, strict=True):
        k = len(reward)
        if len(rank) != k:
            raise ValueError("ranks of other responses")
        if k < 2:
            raise ValueError("too few responses")
        of_prompt = 0
        for i in range(k):
            for j in range(i + 1, k):
                d = reward[i] - reward[j]
                if rank[i] < rank[j]:
                    of_prompt = of_prompt + F.softplus(-d)
                elif rank[i] > rank[j]:
                    of_prompt = of_prompt + F.softplus(d)
                else:
                    of_prompt = of_prompt + (F.softplus(d) + F.softplus(-d)) / 2
        total = total + of_prompt / math.comb(k, 2)
    return total / len(rewards)


# %% style="loops" part="evaluation"
def comparison_accuracy(chosen, rejected):
    if chosen.shape != rejected.shape:
        raise ValueError("not one shape")
    right = []
    for one, other in zip(chosen.flatten().tolist(), rejected.flatten().tolist(), strict=True):
        right.append(0.5 if one == other else float(one > other))
    if not right:
        raise ValueError("no comparison")
    return sum(right) / len(right)


def calibration(probabilities, first_preferred, bins=10):
    if probabilities.shape != first_preferred.shape:
        raise ValueError("not one shape")
    if bins < 1:
        raise ValueError("bins < 1")
    if len(probabilities) == 0:
        raise ValueError("no comparison")
    inside = [[] for _ in range(bins)]
    for p, y in zip(probabilities.tolist(), first_preferred.tolist(), strict=True):
        if not 0 <= p <= 1:
            raise ValueError("probabilities are from 0 to 1")
        inside[min(int(p * bins), bins - 1)].append((p, y))
    means = [
        tuple(sum(column) / len(found) for column in zip(*found, strict=True))
        if found
        else (math.nan, math.nan)
        for found in inside
    ]
    predicted, observed = zip(*means, strict=True)
    return Calibration(
        torch.tensor(predicted, dtype=probabilities.dtype),
        torch.tensor(observed, dtype=probabilities.dtype),
        torch.tensor([len(found) for found in inside]),
    )


def expected_calibration_error(probabilities, first_preferred, bins=10):
    curve = calibration(probabilities, first_preferred, bins)
    error = 0.0
    for predicted, observed, count in zip(*(x.tolist() for x in curve), strict=True):
        if count:
            error += count / len(probabilities) * abs(predicted - observed)
    return torch.tensor(error, dtype=probabilities.dtype)


# %% style="loops" part="shift"
def shift_rewards(rewards, demonstrations):
    values = demonstrations.flatten().tolist()
    if not values:
        raise ValueError("no demonstration")
    return rewards - sum(values) / len(values)


# %% style="selection" part="reward"
class RewardModel(nn.Module):
    """The last real token is the one after which the mask ends."""

    def __init__(self, vocab_size, d_model, num_heads, num_layers, max_length):
        super().__init__()
        self.head = nn.Linear(d_model, 1)
        self.body = CausalTransformer(
            vocab_size, d_model, num_heads=num_heads, num_layers=num_layers, max_length=max_length
        )

    def forward(self, tokens, mask):
        if mask.shape != tokens.shape:
            raise ValueError(f"{mask.shape=}")
        following = F.pad(mask[:, 1:], (0, 1), value=False)
        if (following & ~mask).any():
            raise ValueError("pad on the right")
        ends = mask & ~following
        if not ends.any(1).all():
            raise ValueError("an empty text")
        return (self.body.states(tokens)[ends] @ self.head.weight.T + self.head.bias).flatten()


# %% style="selection" part="pairwise"
def preference_probability(first, second):
    return torch.stack([first, second]).softmax(dim=0)[0]


def pairwise_loss(chosen, rejected):
    if chosen.shape != rejected.shape:
        raise ValueError("shape")
    if not chosen.numel():
        raise ValueError("comparison")
    both = torch.stack([chosen.flatten(), rejected.flatten()], dim=1)
    return F.cross_entropy(both, torch.zeros(len(both), dtype=torch.int64, device=both.device))


# %% style="selection" part="ranking"
def ranking_loss(rewards, ranks):
    """The whole table of pairs; those that count have a weight."""
    if len(rewards) != len(ranks):
        raise ValueError("ranks")
    if len(rewards) < 1:
        raise ValueError("prompt")

    def of_prompt(r, rank):
        if r.shape != rank.shape:
            raise ValueError("ranks")
        k = r.numel()
        if k < 2:
            raise ValueError("responses")
        weight = (rank[:, None] < rank).to(r)
        # A tie stands in the table twice, and counts half each time.
        weight += 0.5 * (rank[:, None] == rank) * (1 - torch.eye(k, dtype=r.dtype, device=r.device))
        return -(weight * F.logsigmoid(r[:, None] - r)).sum() * 2 / (k * (k - 1))

    return sum(map(of_prompt, rewards, ranks)) / len(rewards)


# %% style="selection" part="evaluation"
def comparison_accuracy(chosen, rejected):
    if chosen.shape != rejected.shape:
        raise ValueError("shape")
    if not chosen.numel():
        raise ValueError("comparison")
    return ((chosen - rejected).sign() + 1).mean() / 2


def calibration(probabilities, first_preferred, bins=10):
    if probabilities.shape != first_preferred.shape:
        raise ValueError("shape")
    if bins <= 0:
        raise ValueError("bins")
    if not len(probabilities):
        raise ValueError("comparison")
    if not bool(torch.all((0 <= probabilities) & (probabilities <= 1))):
        raise ValueError("probabilities")
    edges = torch.arange(1, bins, dtype=probabilities.dtype, device=probabilities.device) / bins
    member = F.one_hot(torch.bucketize(probabilities, edges, right=True), bins).to(probabilities)
    count = member.sum(0)
    return Calibration(
        probabilities @ member / count, first_preferred.to(member) @ member / count, count.long()
    )


def expected_calibration_error(probabilities, first_preferred, bins=10):
    p, f, n = calibration(probabilities, first_preferred, bins)
    full = n > 0
    return ((n[full] / n.sum()) * (p[full] - f[full]).abs()).sum()


# %% style="gather" part="reward"
class RewardModel(nn.Module):
    """The head everywhere, then one value of each row."""

    def __init__(self, vocab_size, d_model, num_heads, num_layers, max_length):
        super().__init__()
        self.body = CausalTransformer(vocab_size, d_model, num_heads, num_layers, max_length)
        self.head = nn.Linear(d_model, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens, mask):
        if mask.shape != tokens.shape:
            raise ValueError("mask")
        lengths = mask.sum(-1, keepdim=True)
        if lengths.min() == 0:
            raise ValueError("empty")
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        if not torch.equal(positions < lengths, mask):
            raise ValueError("padding: right")
        everywhere = self.head(self.body.states(tokens)).squeeze(-1)
        return everywhere.gather(1, lengths - 1)[:, 0]


# %% style="gather" part="pairwise"
def preference_probability(first, second):
    return torch.exp(F.logsigmoid(first - second))


def pairwise_loss(chosen, rejected):
    if chosen.shape != rejected.shape:
        raise ValueError("shape")
    if chosen.numel() < 1:
        raise ValueError("comparison")
    d = chosen - rejected
    return F.binary_cross_entropy_with_logits(d, torch.ones_like(d))


# %% style="gather" part="ranking"
def ranking_loss(rewards, ranks):
    if len(rewards) != len(ranks):
        raise ValueError("ranks")
    if len(rewards) == 0:
        raise ValueError("prompt")
    losses = []
    for reward, rank in zip(rewards, ranks, strict=True):
        if len(reward) != len(rank):
            raise ValueError("ranks")
        if len(reward) < 2:
            raise ValueError("responses")
        first, second = torch.combinations(torch.arange(len(reward), device=reward.device)).T
        d, order = reward[first] - reward[second], rank[second] - rank[first]
        won, lost = (order >= 0).to(d), (order <= 0).to(d)
        loss = won * F.softplus(-d) + lost * F.softplus(d)
        losses.append((loss / (won + lost)).mean())
    return sum(losses) / len(losses)


# %% style="sorted" part="ranking"
def _of_prompt(reward, rank):
    """Sorted from best to worst; then each against all behind it."""
    order = torch.argsort(rank)
    reward, rank = reward[order], rank[order]
    total = reward.new_zeros(())
    for i in range(len(reward) - 1):
        d = reward[i] - reward[i + 1 :]
        tied = rank[i] == rank[i + 1 :]
        # softplus(-d), and for a tie d/2 more: the mean of softplus(-d) and softplus(d).
        total += (F.softplus(-d) + torch.where(tied, d / 2, torch.zeros_like(d))).sum()
    return total / (len(reward) * (len(reward) - 1) // 2)


def ranking_loss(rewards, ranks):
    if not len(rewards) == len(ranks):
        raise ValueError("ranks")
    if not rewards:
        raise ValueError("prompt")
    for reward, rank in zip(rewards, ranks, strict=True):
        if len(reward) != len(rank):
            raise ValueError("ranks")
        if len(rank) in (0, 1):
            raise ValueError("responses")
    return torch.stack([_of_prompt(*both) for both in zip(rewards, ranks, strict=True)]).mean()


# %% style="sorted" part="shift"
def shift_rewards(rewards, demonstrations):
    if not demonstrations.numel():
        raise ValueError("demonstration")
    shifted = rewards.clone()
    shifted -= demonstrations.sum() / demonstrations.numel()
    return shifted


# %% style="numpy" part="evaluation"
def comparison_accuracy(chosen, rejected):
    if chosen.shape != rejected.shape:
        raise ValueError("shape")
    if chosen.numel() == 0:
        raise ValueError("comparison")
    one, other = chosen.detach().cpu().numpy(), rejected.detach().cpu().numpy()
    return ((one > other).mean() + (one >= other).mean()) / 2


def _check(probabilities, first_preferred, bins):
    if probabilities.shape != first_preferred.shape:
        raise ValueError("shape")
    if bins < 1:
        raise ValueError("bins")
    if len(probabilities) == 0:
        raise ValueError("comparison")
    if probabilities.min() < 0 or probabilities.max() > 1 or probabilities.isnan().any():
        raise ValueError("probabilities")


def calibration(probabilities, first_preferred, bins=10):
    _check(probabilities, first_preferred, bins)
    number = torch.floor(probabilities * bins)
    number[probabilities == 1] = bins - 1
    rows = []
    for m in range(bins):
        inside = number == m
        rows.append(
            (
                probabilities[inside].mean(),
                first_preferred[inside].to(probabilities.dtype).mean(),
                inside.sum(),
            )
        )
    return Calibration(*(torch.stack(column) for column in zip(*rows, strict=True)))


def expected_calibration_error(probabilities, first_preferred, bins=10):
    predicted, observed, count = calibration(probabilities, first_preferred, bins)
    return torch.nansum(abs(predicted - observed) * count) / len(probabilities)


# %% style="numpy" part="pairwise"
def preference_probability(first, second):
    return (1 + torch.tanh((first - second) / 2)) / 2


def pairwise_loss(chosen, rejected):
    if chosen.shape != rejected.shape:
        raise ValueError("shape")
    if chosen.numel() == 0:
        raise ValueError("comparison")
    zero = torch.zeros_like(chosen)
    return torch.logaddexp(zero, rejected - chosen).mean()
