"""Wrong answers to the exercise on reward models."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

READ = "self.head(states[rows, last]).squeeze(-1)"
PAIRWISE = "-F.logsigmoid(chosen - rejected).mean()"
PAIR = "-(first_preferred * first + (1 - first_preferred) * second).mean()"
PREFERRED = "((rank[j] - rank[i]).sign() + 1) / 2"
ACCURACY = "(chosen > rejected).to(chosen).mean() + (chosen == rejected).to(chosen).mean() / 2"
COMPARISONS = "return torch.stack(of_prompts).mean()"

MISCONCEPTIONS = [
    # --- reward ---
    Misconception(
        name="reads_the_last_pad",
        part="reward",
        says="Your reward is read at the last position of the batch (index −1). In a shorter text that is padding: "
        "read at the last position where the mask is True.",
        wrong={READ: "self.head(states[rows, -1]).squeeze(-1)"},
    ),
    Misconception(
        name="reads_the_first_pad",
        part="reward",
        says="Your reward is read one position behind the text. A text of n tokens ends at position n − 1.",
        wrong={"mask.sum(dim=1) - 1": "mask.sum(dim=1).clamp(max=mask.shape[1] - 1)"},
    ),
    Misconception(
        name="reads_one_token_early",
        part="reward",
        says="Your reward is read at the last token but one, which has not seen the last one.",
        wrong={"mask.sum(dim=1) - 1": "(mask.sum(dim=1) - 2).clamp(min=0)"},
    ),
    Misconception(
        name="reads_the_first_token",
        part="reward",
        says="Your reward is read at the first token, as BERT reads [CLS]. In a causal model the first token has seen "
        "nothing but itself: read at the last one.",
        wrong={"mask.sum(dim=1) - 1": "0 * mask.sum(dim=1)"},
    ),
    Misconception(
        name="looks_for_a_padding_id",
        part="reward",
        says="Your reward finds the end of a text by looking for the id 0. Padding may have any id, and 0 may occur "
        "in the text: use the mask.",
        wrong={
            "mask.sum(dim=1) - 1": (
                "torch.where((tokens == 0).any(dim=1), (tokens == 0).int().argmax(dim=1) - 1, tokens.shape[1] - 1)"
            )
        },
    ),
    Misconception(
        name="sum_over_tokens",
        part="reward",
        says="Your reward is the sum of the head over all real tokens: long texts get large rewards. It is one "
        "number, read at the last real token.",
        wrong={READ: "(self.head(states).squeeze(-1) * mask).sum(dim=1)"},
    ),
    Misconception(
        name="mean_over_tokens",
        part="reward",
        says="Your reward is the mean of the head over all real tokens, most of which have not seen the whole "
        "response. It is read at the last real token alone.",
        wrong={READ: "(self.head(states).squeeze(-1) * mask).sum(dim=1) / mask.sum(dim=1)"},
    ),
    Misconception(
        name="squashed_reward",
        part="reward",
        says="Your reward goes through a sigmoid. A reward is any real number; the sigmoid belongs to the difference "
        "of two.",
        wrong={READ: "torch.sigmoid(self.head(states[rows, last])).squeeze(-1)"},
    ),
    Misconception(
        name="column_of_rewards",
        part="reward",
        says="Your rewards have the shape (batch, 1). Against a (batch,) that would be broadcast to all pairs of the "
        "batch: drop the last axis.",
        wrong={READ: "self.head(states[rows, last])"},
    ),
    Misconception(
        name="body_frozen",
        part="reward",
        says="No gradient reaches your model's body: it is detached, and only the head is trained. Both are.",
        wrong={"states = self.body.states(tokens)": "states = self.body.states(tokens).detach()"},
    ),
    Misconception(
        name="empty_text_accepted",
        part="reward",
        says="Your model accepts a text without a real token: its length 0 makes the index −1, which is padding.",
        wrong={"if not mask.any(dim=1).all():": "if mask.numel() == 0:"},
    ),
    Misconception(
        name="padding_on_the_left_accepted",
        part="reward",
        says="Your model accepts padding on the left or inside a text, and then reads at a wrong position. Refuse it.",
        wrong={"if (mask[:, 1:] & ~mask[:, :-1]).any():": "if mask.dim() != 2:"},
    ),
    # --- pairwise ---
    Misconception(
        name="sign",
        part="pairwise",
        says="Your loss has the wrong sign inside: it makes the rejected response's reward larger. It is −log "
        "σ(chosen − rejected).",
        wrong={PAIRWISE: "-F.logsigmoid(rejected - chosen).mean()"},
    ),
    Misconception(
        name="log_likelihood_itself",
        part="pairwise",
        says="Your loss is the log-likelihood, without the minus: minimising it makes what was observed unlikely.",
        wrong={PAIRWISE: "F.logsigmoid(chosen - rejected).mean()"},
    ),
    Misconception(
        name="log_of_sigmoid",
        part="pairwise",
        says="Your loss takes the logarithm of a sigmoid. Where the sigmoid is 0 in floating point that is infinite, "
        "and its gradient NaN: use F.logsigmoid or F.softplus.",
        wrong={PAIRWISE: "-torch.log(torch.sigmoid(chosen - rejected)).mean()"},
    ),
    Misconception(
        name="log_of_sigmoid_with_an_epsilon",
        part="pairwise",
        says="Your loss adds an epsilon inside the logarithm. It is then finite, but caps the loss and starves the "
        "pairs that are most wrong of their gradient: use F.logsigmoid or F.softplus.",
        wrong={PAIRWISE: "-torch.log(torch.sigmoid(chosen - rejected) + 1e-8).mean()"},
    ),
    Misconception(
        name="softmax_by_hand",
        part="pairwise",
        says="Your preference is a quotient of exponentials of rewards, which overflow to NaN. Divide by the first: "
        "it is the sigmoid of the difference.",
        wrong={
            "torch.sigmoid(first - second)": "torch.exp(first) / (torch.exp(first) + torch.exp(second))"
        },
    ),
    Misconception(
        name="quotient_of_rewards",
        part="pairwise",
        says="Your preference is r₁/(r₁ + r₂). Bradley and Terry's strengths are positive: they are exp(r), not r.",
        wrong={"torch.sigmoid(first - second)": "first / (first + second)"},
    ),
    Misconception(
        name="probability_of_the_second",
        part="pairwise",
        says="Your probability is that of the second response being preferred: σ(first − second), not σ(second − "
        "first).",
        wrong={"torch.sigmoid(first - second)": "torch.sigmoid(second - first)"},
    ),
    Misconception(
        name="summed_loss",
        part="pairwise",
        says="Your loss is a sum over the comparisons: it grows with the batch. It is a mean.",
        wrong={PAIRWISE: "-F.logsigmoid(chosen - rejected).sum()"},
    ),
    Misconception(
        name="averages_before_comparing",
        part="pairwise",
        says="Your loss takes the mean of the rewards first and compares once. Each chosen response is compared with "
        "its own rejected one; the mean is taken over the losses.",
        wrong={PAIRWISE: "-F.logsigmoid(chosen.mean() - rejected.mean())"},
    ),
    Misconception(
        name="sigmoid_without_logarithm",
        part="pairwise",
        says="Your loss is 1 − σ(d), the probability of the wrong order, without a logarithm: its gradient vanishes "
        "where the model is most wrong. The likelihood asks for −log σ(d).",
        wrong={PAIRWISE: "torch.sigmoid(rejected - chosen).mean()"},
    ),
    Misconception(
        name="hinge",
        part="pairwise",
        says="Your loss is a hinge, max(0, 1 − d). Bradley–Terry's likelihood gives −log σ(d).",
        wrong={PAIRWISE: "(1 - chosen + rejected).clamp(min=0).mean()"},
    ),
    Misconception(
        name="gradient_to_the_chosen_alone",
        part="pairwise",
        says="Your rejected rewards are detached: they get no gradient. The chosen one is pushed up and the rejected "
        "one down.",
        wrong={PAIRWISE: "-F.logsigmoid(chosen - rejected.detach()).mean()"},
    ),
    # --- ranking ---
    Misconception(
        name="mean_over_pairs",
        part="ranking",
        says="Your loss is one mean over the pairs of all prompts: a prompt with nine responses weighs six times as "
        "much as one with four. Take the mean of each prompt first, then the mean over prompts.",
        wrong={
            PAIR: PAIR.removesuffix(".mean()"),
            COMPARISONS: "return torch.cat(of_prompts).mean()",
        },
    ),
    Misconception(
        name="sum_over_pairs",
        part="ranking",
        says="Your loss of a prompt is a sum over its pairs, without 1/C(K, 2): prompts with more responses weigh "
        "more.",
        wrong={PAIR: PAIR.replace("mean", "sum")},
    ),
    Misconception(
        name="divided_by_ordered_pairs",
        part="ranking",
        says="Your loss divides by K(K − 1), or by K², while each pair is counted once. There are K(K − 1)/2 pairs: "
        "the 1/2 is missing.",
        wrong={PAIR: f"{PAIR} / 2"},
    ),
    Misconception(
        name="pairs_counted_twice",
        part="ranking",
        says="Your loss counts every pair twice and divides by K(K − 1)/2: it is twice what it should be.",
        wrong={PAIR: f"2 * {PAIR}"},
    ),
    Misconception(
        name="responses_with_themselves",
        part="ranking",
        says="Your pairs include each response with itself. It adds ln 2 and no information: i < j, not i ≤ j.",
        wrong={"offset=1": "offset=0"},
    ),
    Misconception(
        name="sum_over_prompts",
        part="ranking",
        says="Your loss is a sum over prompts: it grows with the batch. It is a mean.",
        wrong={COMPARISONS: "return torch.stack(of_prompts).sum()"},
    ),
    Misconception(
        name="large_rank_is_good",
        part="ranking",
        says="Your ranks are read the wrong way round: rank 1 is the best response, the smaller the better.",
        wrong={"rank[j] - rank[i]": "rank[i] - rank[j]"},
    ),
    Misconception(
        name="listed_order_is_the_ranking",
        part="ranking",
        says="Your loss takes the responses to be listed from best to worst. The ranks say which is better.",
        wrong={PREFERRED: "torch.ones_like(reward[i])"},
    ),
    Misconception(
        name="neighbours_only",
        part="ranking",
        says="Your loss compares neighbours in the ranking alone, K − 1 pairs. Eq. 1 takes all K(K − 1)/2.",
        wrong={
            "i, j = torch.triu_indices(len(reward), len(reward), offset=1, device=reward.device)": (
                "order = rank.argsort()\n        i, j = order[:-1], order[1:]"
            )
        },
    ),
    Misconception(
        name="best_against_the_rest",
        part="ranking",
        says="Your loss compares the best response with each other one, K − 1 pairs. Eq. 1 takes all K(K − 1)/2.",
        wrong={
            "i, j = torch.triu_indices(len(reward), len(reward), offset=1, device=reward.device)": (
                "order = rank.argsort()\n        i, j = order[:1].expand(len(order) - 1), order[1:]"
            )
        },
    ),
    Misconception(
        name="ties_left_out",
        part="ranking",
        says="Your loss leaves tied pairs out of the sum. A tie is half a preference each way: it costs half of −log "
        "σ(d) and half of −log σ(−d), and counts as a pair.",
        wrong={
            PAIR: (
                "F.binary_cross_entropy_with_logits(logits, first_preferred, weight=(rank[i] != rank[j]).to(reward))"
            )
        },
    ),
    Misconception(
        name="ties_as_a_preference",
        part="ranking",
        says="Your loss takes a tie as a preference for one of the two. It is half a preference each way.",
        wrong={PREFERRED: "(rank[i] <= rank[j]).to(reward)"},
    ),
    Misconception(
        name="ties_counted_in_full_both_ways",
        part="ranking",
        says="Your loss counts a tie as two preferences, one each way, at full weight. It is half a preference each "
        "way.",
        wrong={
            PAIR: (
                "F.binary_cross_entropy_with_logits(logits, first_preferred, weight=1 + (rank[i] == "
                "rank[j]).to(reward))"
            )
        },
    ),
    Misconception(
        name="log_of_sigmoid_in_a_ranking",
        part="ranking",
        says="Your loss over rankings takes the logarithm of a sigmoid, which is infinite where the sigmoid is 0 in "
        "floating point: use logsigmoid or softplus.",
        wrong={
            PAIR: (
                "-(first_preferred * logits.sigmoid().log() + (1 - first_preferred) * (-logits).sigmoid().log()).mean()"
            )
        },
    ),
    # --- evaluation ---
    Misconception(
        name="ties_are_right",
        part="evaluation",
        says="Your accuracy counts equal rewards as right: a model that gives everything the same reward has 100 %. "
        "They count one half.",
        wrong={ACCURACY: "(chosen >= rejected).to(chosen).mean()"},
    ),
    Misconception(
        name="ties_are_wrong",
        part="evaluation",
        says="Your accuracy counts equal rewards as wrong. They count one half, as a coin would.",
        wrong={ACCURACY: "(chosen > rejected).to(chosen).mean()"},
    ),
    Misconception(
        name="ties_left_out_of_the_accuracy",
        part="evaluation",
        says="Your accuracy leaves equal rewards out of what it divides by. They stay in, and count one half.",
        wrong={
            ACCURACY: "(chosen > rejected).to(chosen).sum() / (chosen != rejected).to(chosen).sum().clamp(min=1)"
        },
    ),
    Misconception(
        name="positive_reward_is_right",
        part="evaluation",
        says="Your accuracy asks whether the chosen reward is positive. Only the difference to the rejected one means "
        "something.",
        wrong={ACCURACY: "(chosen > 0).to(chosen).mean()"},
    ),
    Misconception(
        name="middle_of_the_bin",
        part="evaluation",
        says="Your predicted value of a bin is its middle. It is the mean of the predictions that fell into it.",
        wrong={
            "Calibration(mean(probabilities), mean(first_preferred), count)": (
                "Calibration((mean(probabilities) * bins).floor().clamp(max=bins - 1).add(0.5) / bins, "
                "mean(first_preferred), count)"
            )
        },
    ),
    Misconception(
        name="empty_bins_are_zero",
        part="evaluation",
        says="Your empty bins say 0. They have no mean: NaN, with a count of 0.",
        wrong={"minlength=bins) / count": "minlength=bins) / count.clamp(min=1)"},
    ),
    Misconception(
        name="bins_without_their_weight",
        part="evaluation",
        says="Your calibration error is a plain mean over bins. A bin counts with its share of the predictions.",
        wrong={"(distance * count).sum() / count.sum()": "distance.sum() / (count > 0).sum()"},
    ),
    Misconception(
        name="empty_bins_divide",
        part="evaluation",
        says="Your calibration error divides by the number of all bins, empty ones too. A bin counts with its share "
        "of the predictions.",
        wrong={"(distance * count).sum() / count.sum()": "distance.mean()"},
    ),
    Misconception(
        name="errors_cancel",
        part="evaluation",
        says="Your calibration error lets a bin that is too high cancel one that is too low. Take the distance in "
        "each bin.",
        wrong={
            "(observed - predicted).abs()": "(observed - predicted)",
            "(distance * count).sum() / count.sum()": "(distance * count).sum().abs() / count.sum()",
        },
    ),
    Misconception(
        name="squared_calibration_error",
        part="evaluation",
        says="Your calibration error takes squares. It is the mean absolute distance.",
        wrong={"(observed - predicted).abs()": "(observed - predicted).square()"},
    ),
    Misconception(
        name="one_gets_a_bin_of_its_own",
        part="evaluation",
        says="Your prediction of exactly 1 is lost or has a bin of its own. The last bin includes 1.",
        wrong={
            "count = torch.bincount(in_bin, minlength=bins)": (
                "count = torch.bincount(in_bin[probabilities < 1], minlength=bins)"
            )
        },
    ),
    Misconception(
        name="edges_go_down",
        part="evaluation",
        says="Your bins exclude their lower edge and include the upper one. Here bin m starts at m/bins, this value "
        "included.",
        wrong={
            "(probabilities * bins).long().clamp(max=bins - 1)": (
                "((probabilities * bins).ceil() - 1).long().clamp(0, bins - 1)"
            )
        },
    ),
    # --- shift ---
    Misconception(
        name="shift_by_the_rewards_themselves",
        part="shift",
        says="Your shift takes the mean of the rewards it is applied to. It is the demonstrations that get the mean 0.",
        wrong={"demonstrations.mean()": "rewards.mean()"},
    ),
    Misconception(
        name="shift_scaled",
        part="shift",
        says="Your shift also divides by a standard deviation. That changes every preference the model predicts: only "
        "shift.",
        wrong={
            "rewards - demonstrations.mean()": (
                "(rewards - demonstrations.mean()) / (demonstrations.std(correction=0) + 1e-8)"
            )
        },
    ),
    Misconception(
        name="shift_upwards",
        part="shift",
        says="Your shift adds the mean of the demonstrations, which doubles it. Subtract it.",
        wrong={"rewards - demonstrations.mean()": "rewards + demonstrations.mean()"},
    ),
    Misconception(
        name="shift_by_the_median",
        part="shift",
        says="Your shift uses the median of the demonstrations. The paper's is their mean.",
        wrong={"demonstrations.mean()": "demonstrations.median()"},
    ),
    Misconception(
        name="shift_in_place",
        part="shift",
        says="Your shift changes the rewards it was given. Return new ones.",
        wrong={"rewards - demonstrations.mean()": "rewards.sub_(demonstrations.mean())"},
    ),
]

ONE_DEVICE = "On the CPU there is one device. On a GPU the tests notice it."
SAME_LENGTH = "The two have one length: that was checked before."
PROMPTS = "for reward, rank in zip(rewards, ranks, strict=True):"

EQUIVALENT = [
    Equivalent(
        part="reward",
        before="rows = torch.arange(len(tokens), device=tokens.device)",
        after="rows = torch.arange(len(tokens))",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="reward",
        before="return self.head(states[rows, last]).squeeze(-1)",
        after="return self.head(states[rows, last]).squeeze(1)",
        because="Of two axes the last is axis 1.",
    ),
    Equivalent(
        part="ranking",
        before=PROMPTS,
        after="for reward, rank in zip(rewards, ranks):",
        because=SAME_LENGTH,
    ),
    Equivalent(
        part="ranking",
        before=PROMPTS,
        after="for reward, rank in zip(rewards, ranks, strict=False):",
        because=SAME_LENGTH,
    ),
    Equivalent(
        part="ranking",
        before="i, j = torch.triu_indices(len(reward), len(reward), offset=1, device=reward.device)",
        after="i, j = torch.triu_indices(len(reward), len(reward), offset=1)",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="evaluation",
        before="distance = (observed - predicted).abs().nan_to_num()",
        after="distance = (predicted - observed).abs().nan_to_num()",
        because="A distance is the same from either end.",
    ),
]


def _evaluation(answers: ModuleType, rng: torch.Generator) -> object:
    number, bins = torch.randint(1, 9, (2,), generator=rng).tolist()
    probabilities = torch.rand(number, generator=rng, dtype=torch.float64)
    preferred = torch.rand(number, generator=rng) < probabilities
    found = answers.calibration(probabilities, preferred, bins)
    error = answers.expected_calibration_error(probabilities, preferred, bins)
    return torch.cat([*(x.double() for x in found), error[None]])


def _reward(answers: ModuleType, rng: torch.Generator) -> object:
    torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
    model = answers.RewardModel(3, 2, 1, 1, 4)
    lengths = torch.randint(1, 5, (3, 1), generator=rng)
    with torch.no_grad():
        return model(torch.randint(3, (3, 4), generator=rng), torch.arange(4) < lengths)


def _ranking(answers: ModuleType, rng: torch.Generator) -> object:
    ks = torch.randint(2, 7, (2,), generator=rng).tolist()
    rewards = [torch.randn(k, generator=rng) for k in ks]
    return answers.ranking_loss(rewards, [torch.randint(4, (k,), generator=rng) for k in ks])


EXAMPLES = {"reward": _reward, "ranking": _ranking, "evaluation": _evaluation}
