"""Wrong answers to the exercise on Mixtral."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

SEEN = "(distance >= 0) & (distance < window)"
SLOTS = "return latest - (latest - slots) % window"
WRITE = "slots = torch.arange(past, seen)[-window:] % window"
SIZE = "kept = new.new_zeros(*new.shape[:2], min(seen, window), new.shape[3])"
KEPT = "kept[:, :, slots] = new[:, :, -window:]"
ROLLED = f"{SIZE}\n        kept[:, :, : old.shape[2]] = old\n        {KEPT}"
POSITIONS = "positions = torch.arange(past, past + x.shape[1], device=x.device)"
ROTATED = "q, k = (rotate(t, positions, self.rope_base) for t in (q, k))"
PLACES = "places = torch.cat([old, positions])"
SHARED = "(t.repeat_interleave(self.group, dim=1) for t in (keys, values))"
ATTENTION = "F.scaled_dot_product_attention(q, shared_k, shared_v, attn_mask=mask)"
OLD_AND_NEW = """\
            keys, values = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
            old = slot_positions(past, self.window).to(x.device)
            places = torch.cat([old, positions])
"""
TOP = "return largest.softmax(dim=-1), experts"
SHARE = "share = torch.bincount(chosen.flatten(), minlength=num_experts) / tokens"
PROBABILITY = "probability = logits.softmax(dim=-1).mean(dim=0)"
PRICE = "return num_experts * (share * probability).sum()"
ROUTED = "weights, chosen = (t.flatten(end_dim=1) for t in route(logits, self.k))"
GATHER = "tokens, places = torch.where(chosen == number)"
ADD = "output.index_add_(0, tokens, weights[tokens, places, None] * expert(vectors[tokens]))"
LOOP = f"""\
        for number, expert in enumerate(self.experts):
            {GATHER}
            {ADD}
"""
ATTENDED = "attended, cache = self.self_attn(self.input_layernorm(x), cache)"
MIXED = "mixed, router_logits = self.block_sparse_moe(self.post_attention_layernorm(x))"
CALL = "block(x, caches[i] if caches else None)"

MISCONCEPTIONS = [
    # --- window ---
    Misconception(
        name="window_one_short",
        part="window",
        says="Your window is one position short. It counts the query's own position: W positions in all, W − 1 before it.",
        wrong={SEEN: "(distance >= 0) & (distance < window - 1)"},
    ),
    Misconception(
        name="window_one_long",
        part="window",
        says="Your window is one position long, as the paper's words have it (from i − W to i). Here W counts the query's "
        "own position.",
        wrong={SEEN: "(distance >= 0) & (distance <= window)"},
    ),
    Misconception(
        name="no_window",
        part="window",
        says="Your mask is the plain causal one: it looks back to the beginning. Keys that are W positions old are hidden.",
        wrong={SEEN: "distance >= 0"},
    ),
    Misconception(
        name="window_both_ways",
        part="window",
        says="Your window reaches into the future: keys after the query are hidden, however near.",
        wrong={SEEN: "distance.abs() < window"},
    ),
    Misconception(
        name="itself_hidden",
        part="window",
        says="Your mask hides a query's own position. It is the last of the window.",
        wrong={SEEN: "(distance > 0) & (distance <= window)"},
    ),
    Misconception(
        name="mask_upside_down",
        part="window",
        says="Your mask is True where a key is hidden. In this course True means: may attend.",
        wrong={SEEN: "(distance < 0) | (distance >= window)"},
    ),
    Misconception(
        name="positions_ignored",
        part="window",
        says="Your mask goes by the places in the two lists. It must go by the positions that stand there: with a rolling "
        "cache, keys are out of order.",
        wrong={
            "distance = query_positions[:, None] - key_positions": (
                "rows, columns = (torch.arange(len(t)) for t in (query_positions, key_positions))\n"
                "    distance = rows[:, None] - columns"
            )
        },
    ),
    Misconception(
        name="keys_first",
        part="window",
        says="Your mask is keys × queries. Its rows are the queries.",
        wrong={SEEN: f"({SEEN}).T"},
    ),
    # --- cache ---
    Misconception(
        name="slots_in_the_order_of_the_text",
        part="cache",
        says="Your slot_positions lists the last positions from old to new. Position p is in slot p mod window, so after "
        "the first window the order is rolled.",
        wrong={SLOTS: "return seen - len(slots) + slots"},
    ),
    Misconception(
        name="slots_of_the_first_round",
        part="cache",
        says="Your slot_positions says what stood in the slots in the first round, 0, 1, 2, … Later positions have taken "
        "those places.",
        wrong={SLOTS: "return slots"},
    ),
    Misconception(
        name="slots_a_round_ahead",
        part="cache",
        says="Your slot_positions names positions that have not been read: the slots behind the latest one still hold the "
        "round before.",
        wrong={SLOTS: "return latest // window * window + slots"},
    ),
    Misconception(
        name="cache_shifted",
        part="cache",
        says="Your cache drops the oldest and moves the rest up, so that it stays in order. Then slot p mod window does "
        "not hold position p, and whoever masks by the slots masks wrongly.",
        wrong={
            ROLLED: "kept = torch.cat([old, new], dim=2)[:, :, -window:]",
        },
    ),
    Misconception(
        name="slots_counted_from_the_piece",
        part="cache",
        says="Your new keys are put into slots counted from the first of them. A slot is the position in the whole text "
        "mod window: count from seen.",
        wrong={WRITE: "slots = torch.arange(keys.shape[2])[-window:] % window"},
    ),
    Misconception(
        name="slot_one_late",
        part="cache",
        says="Your positions are one slot too far. Position 0 goes into slot 0, position window into slot 0 again.",
        wrong={WRITE: "slots = torch.arange(past + 1, seen + 1)[-window:] % min(seen, window)"},
    ),
    Misconception(
        name="first_ones_kept",
        part="cache",
        says="Of more than window new keys your cache keeps the first. The last ones are those that will be looked at.",
        wrong={
            WRITE: "slots = torch.arange(past, seen)[:window] % window",
            KEPT: "kept[:, :, slots] = new[:, :, :window]",
        },
    ),
    Misconception(
        name="cache_grows",
        part="cache",
        says="Your cache keeps every position. It has window slots at most: a position takes the place of the one window "
        "before it.",
        wrong={ROLLED: "kept = torch.cat([old, new], dim=2)"},
    ),
    Misconception(
        name="seen_counts_the_slots",
        part="cache",
        says="Your seen stops at window. It counts all positions that were read: where they stand, and how they are "
        "rotated, follows from it.",
        wrong={"return *rolled, seen": "return *rolled, min(seen, window)"},
    ),
    Misconception(
        name="seen_of_the_last_piece",
        part="cache",
        says="Your seen counts the new positions alone. Those read before belong to it.",
        wrong={"return *rolled, seen": "return *rolled, keys.shape[2]"},
    ),
    Misconception(
        name="old_cache_overwritten",
        part="cache",
        says="Your store writes into the cache it was given. That one must stay as it was: another continuation may start "
        "from it.",
        wrong={
            "        kept[:, :, : old.shape[2]] = old\n": (
                "        kept[:, :, : old.shape[2]] = old\n"
                "        if old.shape == kept.shape:\n            kept = old\n"
            )
        },
    ),
    Misconception(
        name="old_slots_lost",
        part="cache",
        says="Your cache holds the new keys alone. The old ones stay where no new one has come.",
        wrong={"        kept[:, :, : old.shape[2]] = old\n": ""},
    ),
    # --- attention ---
    Misconception(
        name="stored_before_attending",
        part="attention",
        says="Your new keys are stored before the new queries attend. The first queries of a piece then miss keys that the "
        "last ones overwrote: attend to the old slots and the new keys, store afterwards.",
        wrong={
            OLD_AND_NEW: (
                "            rolled = store(cache, k, v, self.window)\n"
                "            keys, values, seen = rolled\n"
                "            places = slot_positions(seen, self.window).to(x.device)\n"
            )
        },
    ),
    Misconception(
        name="rotated_by_the_slot",
        part="attention",
        says="Your queries and keys are rotated by their slot. Rotate them by their position in the text: slots are used "
        "again, and the distance of two slots says nothing.",
        wrong={
            ROTATED: "q, k = (rotate(t, positions % self.window, self.rope_base) for t in (q, k))"
        },
    ),
    Misconception(
        name="positions_restart",
        part="attention",
        says="Your positions start again at 0 in each piece. They go on at the number of positions read.",
        wrong={
            ROTATED: "q, k = (rotate(t, positions - past, self.rope_base) for t in (q, k))",
        },
    ),
    Misconception(
        name="positions_from_the_slots",
        part="attention",
        says="Your positions go on at the number of slots. After the first window that is no longer the number of "
        "positions read.",
        wrong={
            "past = 0 if cache is None else cache[2]": (
                "past = 0 if cache is None else cache[0].shape[2]"
            )
        },
    ),
    Misconception(
        name="slots_masked_as_if_in_order",
        part="attention",
        says="Your mask takes the slots for the last positions in their order. After the first window they are rolled: ask "
        "slot_positions what stands in each.",
        wrong={
            PLACES: ("places = torch.arange(past - len(old), past + x.shape[1], device=x.device)")
        },
    ),
    Misconception(
        name="cache_not_read",
        part="attention",
        says="Your new queries see the new keys alone. What the cache holds is within their windows too.",
        wrong={
            f"        if cache is not None:\n            # The new queries still need what the new keys are about to overwrite.\n{OLD_AND_NEW}": ""
        },
    ),
    Misconception(
        name="window_in_the_cache_alone",
        part="attention",
        says="Your attention has no window within a piece: what is read at once is seen whole. The mask needs the window "
        "too, not the cache alone.",
        wrong={"sliding_mask(positions, places, self.window)": "positions[:, None] >= places"},
    ),
    Misconception(
        name="keys_not_rotated",
        part="attention",
        says="Your attention rotates the queries alone. Keys are rotated too, each by its own position.",
        wrong={ROTATED: "q = rotate(q, positions, self.rope_base)"},
    ),
    Misconception(
        name="values_rotated",
        part="attention",
        says="Your values are rotated. Positions belong in the scores: queries and keys alone are.",
        wrong={ROTATED: "q, k, v = (rotate(t, positions, self.rope_base) for t in (q, k, v))"},
    ),
    Misconception(
        name="kv_heads_tiled",
        part="attention",
        says="Your key-value heads are repeated as a whole, 0 1 0 1. Neighbouring query heads share one: 0 0 1 1.",
        wrong={SHARED: "(t.repeat(1, self.group, 1, 1) for t in (keys, values))"},
    ),
    Misconception(
        name="mask_forgotten",
        part="attention",
        says="Your attention has no mask: it looks into the future and beyond the window.",
        wrong={ATTENTION: "F.scaled_dot_product_attention(q, shared_k, shared_v)"},
    ),
    # --- routing ---
    Misconception(
        name="softmax_over_all",
        part="routing",
        says="Your weights are the probabilities among all experts, and sum to less than 1. Mixtral's softmax runs over "
        "the chosen ones; after a softmax over all, divide by the sum of the chosen.",
        wrong={TOP: "return logits.softmax(dim=-1).gather(-1, experts), experts"},
    ),
    Misconception(
        name="top_one",
        part="routing",
        says="Your router gives the whole weight to the first choice. All k chosen experts share it.",
        wrong={TOP: "return F.one_hot(torch.zeros_like(experts[..., 0]), k).to(largest), experts"},
    ),
    Misconception(
        name="smallest_chosen",
        part="routing",
        says="Your router chooses the experts with the smallest logits. Sort in descending order.",
        wrong={
            "logits.topk(k)": "logits.topk(k, largest=False)",
        },
    ),
    Misconception(
        name="softmax_over_tokens",
        part="routing",
        says="Your softmax runs over the tokens. It runs over the chosen experts of one token, the last dimension.",
        wrong={TOP: "return largest.softmax(dim=0), experts"},
    ),
    Misconception(
        name="equal_weights",
        part="routing",
        says="Your chosen experts all get the weight 1/k. The weights follow from the logits, and the router learns "
        "through them.",
        wrong={TOP: "return torch.full_like(largest, 1 / k), experts"},
    ),
    Misconception(
        name="sigmoid_weights",
        part="routing",
        says="Your weights are sigmoids of the logits. Mixtral takes the softmax over the chosen ones.",
        wrong={TOP: "return largest.sigmoid(), experts"},
    ),
    Misconception(
        name="router_cut",
        part="routing",
        says="No gradient flows back through your weights, so the router cannot learn. Which experts are chosen has no "
        "gradient, how they are weighted has: do not detach it.",
        wrong={TOP: "return largest.softmax(dim=-1).detach(), experts"},
    ),
    Misconception(
        name="balance_without_the_factor",
        part="routing",
        says="Your balancing loss lacks the factor N: an even load then gives k/N, and less the more experts there are.",
        wrong={PRICE: "return (share * probability).sum()"},
    ),
    Misconception(
        name="balance_detached",
        part="routing",
        says="Your balancing loss has no gradient: the probabilities are detached. The count f is what has none; the "
        "probabilities carry the gradient.",
        wrong={PROBABILITY: "probability = logits.detach().softmax(dim=-1).mean(dim=0)"},
    ),
    Misconception(
        name="balance_of_the_first_choice",
        part="routing",
        says="Your balancing loss counts the first choice of each token alone. All k experts of a token count.",
        wrong={
            SHARE: "share = torch.bincount(chosen[:, 0].flatten(), minlength=num_experts) / tokens"
        },
    ),
    Misconception(
        name="balance_of_the_choices",
        part="routing",
        says="Your shares sum to 1: they are shares of the choices. f_i is the share of the *tokens* that chose expert i, "
        "and these sum to k.",
        wrong={
            SHARE: "share = torch.bincount(chosen.flatten(), minlength=num_experts) / (tokens * k)"
        },
    ),
    Misconception(
        name="balance_of_the_weights",
        part="routing",
        says="Your P is the mean of the mixture's weights, from the softmax over the chosen. It is that of the "
        "probabilities among all experts: one not chosen must be able to become likelier.",
        wrong={
            "_, chosen = route(logits, k)": "weights, chosen = route(logits, k)",
            PROBABILITY: "probability = torch.zeros_like(logits).scatter(1, chosen, weights).mean(dim=0)",
        },
    ),
    Misconception(
        name="balance_of_the_probabilities",
        part="routing",
        says="Your balancing loss is N Σ P². The first factor is f, the share of tokens that chose the expert.",
        wrong={PRICE: "return num_experts * (probability * probability).sum()"},
    ),
    # --- experts ---
    Misconception(
        name="weights_ignored",
        part="experts",
        says="Your mixture adds the experts' outputs without their weights.",
        wrong={ADD: "output.index_add_(0, tokens, expert(vectors[tokens]))"},
    ),
    Misconception(
        name="weight_of_another_token",
        part="experts",
        says="Your experts' outputs are multiplied by the weights of other tokens: the first ones of the list. Gather the "
        "weights as you gather the vectors.",
        wrong={
            "weights[tokens, places, None]": "weights[: len(tokens)].gather(1, places[:, None])"
        },
    ),
    Misconception(
        name="first_weight_for_all",
        part="experts",
        says="Your experts all get the weight of the token's first choice. Each has its own.",
        wrong={"weights[tokens, places, None]": "weights[tokens, :1]"},
    ),
    Misconception(
        name="last_expert_wins",
        part="experts",
        says="Your experts overwrite each other: of a token's k results only the last remains. They are added.",
        wrong={ADD: "output[tokens] = weights[tokens, places, None] * expert(vectors[tokens])"},
    ),
    Misconception(
        name="not_scattered_back",
        part="experts",
        says="Your experts' results are added to the first rows of the output. Each goes back to the token it came from.",
        wrong={
            ADD: (
                "output[: len(tokens)] = output[: len(tokens)] + weights[tokens, places, None] * expert(\n"
                "                vectors[tokens]\n            )"
            )
        },
    ),
    Misconception(
        name="mixed_before_the_activation",
        part="experts",
        says="Your experts' matrices are mixed into one network for each token. Mix the outputs: the SiLU lies between, and "
        "the mean of activations is not the activation of the mean.",
        wrong={
            LOOP: (
                "        shares = torch.zeros_like(logits.flatten(end_dim=1)).scatter(1, chosen, weights)\n"
                "        w1, w2, w3 = (\n"
                "            torch.einsum(\n"
                "                'te,eoi->toi', shares, torch.stack([getattr(e, name).weight for e in self.experts])\n"
                "            )\n"
                "            for name in ('w1', 'w2', 'w3')\n"
                "        )\n"
                "        gate, up = ((w @ vectors[..., None]).squeeze(-1) for w in (w1, w3))\n"
                "        output = (w2 @ (F.silu(gate) * up)[..., None]).squeeze(-1)\n"
            )
        },
    ),
    Misconception(
        name="weight_on_the_input",
        part="experts",
        says="Your weights multiply what goes into the experts. They multiply what comes out: an expert is not linear.",
        wrong={
            ADD: "output.index_add_(0, tokens, expert(weights[tokens, places, None] * vectors[tokens]))"
        },
    ),
    Misconception(
        name="dense",
        part="experts",
        says="Your mixture computes every expert for every token and multiplies by zero. The sum is right and nothing is "
        "saved; and an expert that overflows for a token that did not choose it spoils it, since 0 · ∞ is NaN.",
        wrong={
            LOOP: (
                "        for number, expert in enumerate(self.experts):\n"
                "            share = (weights * (chosen == number)).sum(dim=1, keepdim=True)\n"
                "            output = output + share * expert(vectors)\n"
            )
        },
    ),
    Misconception(
        name="router_cut_in_the_mixture",
        part="experts",
        says="No gradient reaches your router: the weights are detached before they multiply the experts' outputs.",
        wrong={
            "weights[tokens, places, None]": "weights.detach()[tokens, places, None]",
        },
    ),
    Misconception(
        name="one_expert_a_token",
        part="experts",
        says="Your mixture uses one expert for each token whatever k is.",
        wrong={"route(logits, self.k)": "route(logits, 1)"},
    ),
    Misconception(
        name="choice_taken_for_the_expert",
        part="experts",
        says="Your first choice goes to expert 0, your second to expert 1. The router says which experts: their numbers are "
        "what route returns.",
        wrong={
            GATHER: "tokens, places = torch.where(torch.arange(self.k).expand_as(chosen) == number)"
        },
    ),
    Misconception(
        name="probabilities_returned",
        part="experts",
        says="Your second result is a softmax. The logits are returned as they are; the balancing loss takes its own.",
        wrong={
            "return output.view_as(x), logits": "return output.view_as(x), logits.softmax(dim=-1)"
        },
    ),
    # --- model ---
    Misconception(
        name="mixture_replaces_the_sum",
        part="model",
        says="Your block returns the mixture alone. It is added to what it read.",
        wrong={"return x + mixed, cache, router_logits": "return mixed, cache, router_logits"},
    ),
    Misconception(
        name="mixture_reads_the_sum",
        part="model",
        says="Your mixture reads the sum as it is. It reads the sum normalised by post_attention_layernorm.",
        wrong={MIXED: "mixed, router_logits = self.block_sparse_moe(x)"},
    ),
    Misconception(
        name="norms_swapped",
        part="model",
        says="Your block uses its two norms the wrong way round: input_layernorm comes before the attention.",
        wrong={
            ATTENDED: ATTENDED.replace("input_layernorm", "post_attention_layernorm"),
            MIXED: MIXED.replace("post_attention_layernorm", "input_layernorm"),
        },
    ),
    Misconception(
        name="one_cache_for_all",
        part="model",
        says="Your blocks all read the first block's cache. Each has its own.",
        wrong={CALL: "block(x, caches[0] if caches else None)"},
    ),
    Misconception(
        name="caches_not_read",
        part="model",
        says="Your model does not hand the caches to its blocks, so it has forgotten what it read before.",
        wrong={CALL: "block(x, None)"},
    ),
    Misconception(
        name="last_norm_skipped",
        part="model",
        says="Your model lacks the last norm, before lm_head.",
        wrong={"self.lm_head(self.norm(x))": "self.lm_head(x)"},
    ),
    Misconception(
        name="routers_logits_of_the_last_block",
        part="model",
        says="Your router_logits are those of the last block. Each block has a router, and all are balanced.",
        wrong={"router_logits.append(routed)": "router_logits = [routed]"},
    ),
]

EQUIVALENT = [
    Equivalent(
        part="cache",
        before="old_keys, old_values, past = cache or (keys[:, :, :0], values[:, :, :0], 0)",
        after="old_keys, old_values, past = cache or (keys[:, :, :1], values[:, :, :0], 0)",
        because="The first piece fills every slot there is, so whatever stood in the first is overwritten.",
    ),
    Equivalent(
        part="cache",
        before="old_keys, old_values, past = cache or (keys[:, :, :0], values[:, :, :0], 0)",
        after="old_keys, old_values, past = cache or (keys[:, :, :0], values[:, :, :1], 0)",
        because="The first piece fills every slot there is, so whatever stood in the first is overwritten.",
    ),
    Equivalent(
        part="attention",
        before="positions = torch.arange(past, past + x.shape[1], device=x.device)",
        after="positions = torch.arange(past, past + x.shape[1])",
        because="Where there is no GPU everything is on the CPU.",
    ),
    Equivalent(
        part="attention",
        before="old = slot_positions(past, self.window).to(x.device)",
        after="old = slot_positions(past, self.window)",
        because="Where there is no GPU everything is on the CPU.",
    ),
    Equivalent(
        part="routing",
        before="probability = logits.softmax(dim=-1).mean(dim=0)",
        after="probability = logits.softmax(dim=1).mean(dim=0)",
        because="The logits are a matrix, whose last dimension is number 1.",
    ),
]


def _cache(answers: ModuleType, rng: torch.Generator) -> object:
    window, first, second = torch.randint(1, 6, (3,), generator=rng).tolist()
    keys, values = torch.randn(2, 1, 2, first + second, 3, generator=rng)
    cache = answers.store(None, keys[:, :, :first], values[:, :, :first], window)
    after = answers.store(cache, keys[:, :, first:], values[:, :, first:], window)
    slots = answers.slot_positions(after[2], window)
    return *cache, *after, slots


def _attention(answers: ModuleType, rng: torch.Generator) -> object:
    window, kv_heads, group, first, second = torch.randint(1, 5, (5,), generator=rng).tolist()
    layer = answers.SlidingWindowAttention(5, kv_heads * group, kv_heads, 4, 20.0, window)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=rng)
    x = torch.randn(2, first + second, 5, generator=rng)
    with torch.no_grad():
        before, cache = layer(x[:, :first])
        after, cache = layer(x[:, first:], cache)
    return before, after, *cache


def _routing(answers: ModuleType, rng: torch.Generator) -> object:
    tokens, experts = torch.randint(1, 7, (2,), generator=rng).tolist()
    logits = torch.randn(tokens, experts, generator=rng)
    k = int(torch.randint(1, experts + 1, (), generator=rng))
    return *answers.route(logits, k), answers.load_balancing_loss(logits, k)


EXAMPLES = {"cache": _cache, "attention": _attention, "routing": _routing}
