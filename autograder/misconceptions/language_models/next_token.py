"""Wrong answers to the exercise on the next token."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

SHIFT = "predictions, targets = logits[..., :-1, :], tokens[..., 1:]"
MEAN = "nats = -log_probs.sum() / counts.sum()"
KEPT = "kept = torch.zeros_like(probs).scatter(-1, order[..., :k], 1.0)"
NUCLEUS = "before < p"
SMOOTHED = "(self.followers[shorter][token] + alpha * p) / (self.totals[shorter] + alpha)"

MISCONCEPTIONS = [
    # --- likelihood
    Misconception(
        name="no_shift",
        part="likelihood",
        says="Your model predicts x_t from a context that ends with x_t itself: row t of the logits has already "
        "seen token t. Compare row t with token t + 1.",
        wrong={SHIFT: "predictions, targets = logits, tokens"},
    ),
    Misconception(
        name="no_shift_first_token_dropped",
        part="likelihood",
        says="You leave out the first token, but still compare row t with token t, which row t has seen. The rows "
        "start one earlier than the tokens they predict.",
        wrong={SHIFT: "predictions, targets = logits[..., 1:, :], tokens[..., 1:]"},
    ),
    Misconception(
        name="shift_backwards",
        part="likelihood",
        says="Your shift goes the wrong way: you compare row t with token t − 1, which it has seen. Drop the last "
        "row and the first token.",
        wrong={SHIFT: "predictions, targets = logits[..., 1:, :], tokens[..., :-1]"},
    ),
    Misconception(
        name="logits_as_log_probs",
        part="likelihood",
        says="You add up the logits themselves. They are not normalised: take log_softmax over the vocabulary first.",
        wrong={"torch.log_softmax(predictions, dim=-1)": "predictions"},
    ),
    Misconception(
        name="softmax_over_positions",
        part="likelihood",
        says="Your softmax runs over the positions of the text. It is the tokens of the vocabulary, the last "
        "dimension, that compete for each place.",
        wrong={"torch.log_softmax(predictions, dim=-1)": "torch.log_softmax(predictions, dim=-2)"},
    ),
    Misconception(
        name="mean_for_sum",
        part="likelihood",
        says="You return the mean over the tokens. The log-probability of a text is the sum; the mean comes with "
        "perplexity.",
        wrong={
            "[..., 0].sum(dim=-1)": "[..., 0].sum(dim=-1) / max(1, targets.shape[-1])",
        },
    ),
    Misconception(
        name="product_of_probabilities",
        part="likelihood",
        says="You multiply probabilities and take the logarithm at the end. For a long text the product is below what "
        "a float can hold, and the result −∞: add logarithms.",
        wrong={"[..., 0].sum(dim=-1)": "[..., 0].exp().prod(dim=-1).log()"},
    ),
    Misconception(
        name="log_of_softmax",
        part="likelihood",
        says="You take the logarithm of a softmax. Where a probability is too small for a float that is log 0 = −∞; "
        "log_softmax never forms the probability.",
        wrong={
            "torch.log_softmax(predictions, dim=-1)": "torch.softmax(predictions, dim=-1).log()"
        },
    ),
    Misconception(
        name="bits_for_nats",
        part="likelihood",
        says="Your log-probability is in bits (log₂). This course counts in nats: natural logarithms.",
        wrong={"[..., 0].sum(dim=-1)": "[..., 0].sum(dim=-1) / math.log(2)"},
    ),
    Misconception(
        name="one_number_for_all_texts",
        part="likelihood",
        says="You sum over the texts of the batch as well. Each text has its own log-probability: sum over the last "
        "dimension only.",
        wrong={"[..., 0].sum(dim=-1)": "[..., 0].sum()"},
    ),
    Misconception(
        name="perplexity_two_to_the_nats",
        part="likelihood",
        says="You raise 2 to a number of nats. The base must be that of the logarithm: e for nats, 2 only for bits.",
        wrong={"return torch.exp(nats)": "return 2**nats"},
    ),
    Misconception(
        name="perplexity_without_minus",
        part="likelihood",
        says="Your perplexity lacks the minus sign: it is the mean probability, at most 1. A perplexity is at least 1.",
        wrong={MEAN: "nats = log_probs.sum() / counts.sum()"},
    ),
    Misconception(
        name="perplexity_is_the_loss",
        part="likelihood",
        says="You return the mean negative log-probability. The perplexity is its exponential.",
        wrong={"return torch.exp(nats)": "return nats"},
    ),
    Misconception(
        name="mean_of_perplexities",
        part="likelihood",
        says="You average the perplexities of the texts. Add up the log-probabilities of all texts, divide by the "
        "number of all tokens, and take the exponential once.",
        wrong={"return torch.exp(nats)": "return torch.exp(-log_probs / counts).mean()"},
    ),
    Misconception(
        name="texts_weigh_the_same",
        part="likelihood",
        says="You take the mean per text, then the mean over texts, so that a short text weighs as much as a long "
        "one. Every token has the same weight: divide the whole sum by the number of all tokens.",
        wrong={MEAN: "nats = -(log_probs / counts).mean()"},
    ),
    Misconception(
        name="per_text_not_per_token",
        part="likelihood",
        says="You divide by the number of texts. Perplexity is per token: divide by the sum of the counts.",
        wrong={MEAN: "nats = -log_probs.mean()"},
    ),
    # --- ngram
    Misconception(
        name="conditions_on_itself",
        part="ngram",
        says="In log_prob your context reaches up to the token that is to be predicted. P(x_t | …) may see x_{t−1} "
        "and what is before it, never x_t.",
        wrong={
            "context = tokens[max(0, t - self.order + 1) : t]": (
                "context = tokens[max(0, t - self.order + 2) : t + 1]"
            )
        },
    ),
    Misconception(
        name="forgets_the_newest",
        part="ngram",
        says="When you shorten a context you drop its newest token. The tokens nearest to the predicted one tell "
        "most: drop the oldest.",
        wrong={"shorter = context[len(context) - length :]": "shorter = context[:length]"},
    ),
    Misconception(
        name="start_of_the_context",
        part="ngram",
        says="From a long context you take the first order − 1 tokens. The model looks at the last ones.",
        wrong={
            "tuple(context[max(0, len(context) - self.order + 1) :])": (
                "tuple(context[: self.order - 1])"
            )
        },
    ),
    Misconception(
        name="order_is_the_context",
        part="ngram",
        says="Your model of order n looks at n tokens. An n-gram is the context and the predicted token together: n − 1 "
        "tokens of context.",
        wrong={
            "self.order = order": "self.order = order + 1",
        },
    ),
    Misconception(
        name="counts_the_last_context",
        part="ngram",
        says="Your c(h) also counts the h at the end of the text, which no token follows. Then the probabilities after "
        "h sum to less than 1. Count h only together with the token after it.",
        wrong={
            "        ### END SOLUTION\n\n    def probability(": (
                "        for length in range(1, min(len(tokens), self.order - 1) + 1):\n"
                "            self.totals[tuple(tokens[len(tokens) - length :])] += 1\n"
                "        ### END SOLUTION\n\n    def probability("
            )
        },
    ),
    Misconception(
        name="no_shorter_context",
        part="ngram",
        says="You smooth with the uniform distribution at every order. Here a context is smoothed with what the next "
        "shorter context says; the uniform one stands only below the empty context.",
        wrong={"+ alpha * p)": "+ alpha / self.vocab_size)"},
    ),
    Misconception(
        name="alpha_for_each_token",
        part="ngram",
        says="You add alpha for every token of the vocabulary to the denominator. Here alpha is shared out among the "
        "tokens by P(w | h'), which sums to 1, so the denominator grows by alpha once.",
        wrong={
            "(self.totals[shorter] + alpha)": "(self.totals[shorter] + alpha * self.vocab_size)"
        },
    ),
    Misconception(
        name="add_alpha_to_every_count",
        part="ngram",
        says="You add alpha to every count and alpha · vocab_size to the total (Laplace's rule). Here a context is "
        "smoothed with what the shorter one says.",
        wrong={
            SMOOTHED: "(self.followers[shorter][token] + alpha) / (self.totals[shorter] + alpha * self.vocab_size)"
        },
    ),
    Misconception(
        name="alpha_forgotten_below",
        part="ngram",
        says="Your denominator lacks alpha, so that the probabilities sum to more than 1.",
        wrong={"(self.totals[shorter] + alpha)": "self.totals[shorter]"},
    ),
    Misconception(
        name="shorter_only_when_unseen",
        part="ngram",
        says="You ask the shorter context only when the n-gram was not seen, and then add its probability on top: "
        "the probabilities no longer sum to 1. Mix the two always.",
        wrong={
            SMOOTHED: (
                "self.followers[shorter][token] / self.totals[shorter] "
                "if self.followers[shorter][token] else alpha * p / (self.totals[shorter] + alpha)"
            )
        },
    ),
    Misconception(
        name="second_text_replaces_first",
        part="ngram",
        says="Your second call of fit forgets the first text. Make the counters when the model is made, and add to "
        "them in fit.",
        wrong={
            "for t, token in enumerate(tokens):\n            for length in range(": (
                "self.followers.clear()\n        self.totals.clear()\n"
                "        for t, token in enumerate(tokens):\n            for length in range("
            )
        },
    ),
    Misconception(
        name="texts_run_together",
        part="ngram",
        says="Your counts reach across the boundary of two texts: the end of one text is taken for the context of the "
        "next one's beginning. Every text starts with the empty context.",
        wrong={
            "for t, token in enumerate(tokens):\n            for length in range(min(": (
                "tail = getattr(self, 'tail', [])\n"
                "        tokens = tail + list(tokens)\n"
                "        self.tail = tokens[max(0, len(tokens) - self.order + 1) :]\n"
                "        for t, token in enumerate(tokens):\n"
                "            if t < len(tail):\n"
                "                continue\n"
                "            for length in range(min("
            )
        },
    ),
    Misconception(
        name="full_contexts_only",
        part="ngram",
        says="You count a token only where a full context of order − 1 tokens stands before it. The first tokens of a "
        "text count too, with the shorter contexts they have.",
        wrong={
            "for length in range(min(t, self.order - 1) + 1):": (
                "for length in range(self.order if t >= self.order - 1 else 0):"
            )
        },
    ),
    Misconception(
        name="skips_the_beginning",
        part="ngram",
        says="Your log_prob leaves out the first tokens, which have no full context. They are predicted too, from the "
        "shorter context they have.",
        wrong={
            "total += math.log(self.probability(token, context, alpha))": (
                "total += math.log(self.probability(token, context, alpha)) * (t >= self.order - 1)"
            )
        },
    ),
    Misconception(
        name="mean_log_prob",
        part="ngram",
        says="Your log_prob is the mean over the tokens. It is the sum.",
        wrong={"return total\n": "return total / max(1, len(tokens))\n"},
    ),
    Misconception(
        name="ngram_in_bits",
        part="ngram",
        says="Your log_prob is in bits (log₂). This course counts in nats: math.log.",
        wrong={"math.log(self.probability(": "math.log2(self.probability("},
    ),
    # --- choose
    Misconception(
        name="greedy_last_of_equals",
        part="choose",
        says="Among equal logits your greedy takes the largest id. It should be the smallest, which argmax gives.",
        wrong={
            "logits.argmax(dim=-1)": "logits.shape[-1] - 1 - logits.flip(-1).argmax(dim=-1)",
        },
    ),
    Misconception(
        name="greedy_returns_the_value",
        part="choose",
        says="Your greedy returns the largest logit. It should return where it stands: the token's id.",
        wrong={"logits.argmax(dim=-1)": "logits.amax(dim=-1)"},
    ),
    Misconception(
        name="greedy_over_the_whole_batch",
        part="choose",
        says="Your greedy takes one argmax of the whole tensor. Each row has its own: dim=-1.",
        wrong={"logits.argmax(dim=-1)": "logits.argmax()"},
    ),
    Misconception(
        name="temperature_multiplies",
        part="choose",
        says="You multiply the logits by the temperature. Divide: a high temperature makes the distribution flatter.",
        wrong={"torch.softmax(shifted / T, dim=-1)": "torch.softmax(shifted * T, dim=-1)"},
    ),
    Misconception(
        name="temperature_on_probabilities",
        part="choose",
        says="You divide the probabilities by the temperature and take a second softmax. The temperature divides the "
        "logits, before the one softmax.",
        wrong={
            "torch.softmax(shifted / T, dim=-1)": (
                "torch.softmax(torch.softmax(shifted, dim=-1) / T, dim=-1)"
            )
        },
    ),
    Misconception(
        name="temperature_cancels",
        part="choose",
        says="Your temperature has no effect: you divide the probabilities by T, and it cancels when they are "
        "normalised. Divide the logits.",
        wrong={"torch.softmax(shifted / T, dim=-1)": "torch.softmax(shifted, dim=-1)"},
    ),
    Misconception(
        name="zero_takes_one_of_equals",
        part="choose",
        says="At temperature 0 you give everything to one token, even where several share the first place. In the "
        "limit they share the probability equally.",
        wrong={
            "best = (shifted == 0).to(logits.dtype)": (
                "best = torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)"
            )
        },
    ),
    Misconception(
        name="zero_divides",
        part="choose",
        says="At temperature 0 you divide by 0 and get NaN. Treat 0 by itself: it is the limit T → 0.",
        wrong={"if T == 0:": "if False:"},
    ),
    Misconception(
        name="tiny_temperature_overflows",
        part="choose",
        says="At a tiny temperature logits / T is infinite and the softmax gives NaN. Take the largest logit off each "
        "row before you divide.",
        wrong={
            "torch.softmax(shifted / T, dim=-1)": "torch.softmax(logits / T, dim=-1)",
        },
    ),
    Misconception(
        name="temperature_has_a_floor",
        part="choose",
        says="You put a small number in the place of temperature 0. That is not the limit: a token just behind the first "
        "still gets a share. Find the largest logits and share among them alone.",
        wrong={
            "shifted = logits": "T = max(T, 1e-6)\n    shifted = logits",
        },
    ),
    Misconception(
        name="temperature_over_the_batch",
        part="choose",
        says="Your softmax does not run over the vocabulary (the last dimension), so the rows do not sum to 1.",
        wrong={"torch.softmax(shifted / T, dim=-1)": "torch.softmax(shifted / T, dim=0)"},
    ),
    Misconception(
        name="global_randomness",
        part="choose",
        says="Your draws come from torch's global randomness: the caller's generator is not passed on, so the same seed "
        "does not give the same text.",
        wrong={"torch.multinomial(rows, 1, generator=generator)": "torch.multinomial(rows, 1)"},
    ),
    Misconception(
        name="seeded_again",
        part="choose",
        says="You seed the generator again at each call, so that every call draws the same numbers. Use it as it comes.",
        wrong={
            "generator=generator)": "generator=generator.manual_seed(generator.initial_seed()))"
        },
    ),
    Misconception(
        name="seeded_with_a_constant",
        part="choose",
        says="You draw from a generator of your own with a fixed seed. The caller's generator decides.",
        wrong={"generator=generator)": "generator=torch.Generator().manual_seed(0))"},
    ),
    Misconception(
        name="samples_uniformly",
        part="choose",
        says="You draw uniformly among the tokens that are possible at all. Each token comes with its own probability.",
        wrong={"torch.multinomial(rows, 1,": "torch.multinomial((rows > 0).to(rows.dtype), 1,"},
    ),
    Misconception(
        name="noise_times_probability",
        part="choose",
        says="You multiply each probability by a uniform random number and take the largest. That draws likely tokens "
        "too often (the noise that works is exponential, as a divisor).",
        wrong={
            "torch.multinomial(rows, 1, generator=generator)": (
                "(rows * torch.rand(rows.shape, generator=generator, dtype=rows.dtype)).argmax(-1)"
            )
        },
    ),
    Misconception(
        name="one_draw_for_all_rows",
        part="choose",
        says="All your rows use the same random number. Each row is a draw of its own.",
        wrong={
            "torch.multinomial(rows, 1, generator=generator)": (
                "(rows.cumsum(-1) <= torch.rand(1, generator=generator).to(rows.dtype)).sum(-1)"
                ".clamp(max=rows.shape[-1] - 1)"
            )
        },
    ),
    Misconception(
        name="sample_is_greedy",
        part="choose",
        says="Your sample always takes the most probable token. That is greedy decoding; draw instead.",
        wrong={
            "torch.multinomial(rows, 1, generator=generator)": "rows.argmax(-1)",
        },
    ),
    # --- truncate
    Misconception(
        name="top_k_keeps_ties",
        part="truncate",
        says="Your top_k keeps every token as probable as the k-th one, so with ties there are more than k. Keep "
        "exactly k: among equals the smaller id goes first.",
        wrong={
            KEPT: (
                "edge = probs.sort(dim=-1, descending=True).values[..., : k][..., -1:]\n"
                "    kept = (probs >= edge).to(probs.dtype)"
            )
        },
    ),
    Misconception(
        name="top_k_larger_ids_first",
        part="truncate",
        says="Among equal probabilities your top_k takes the larger ids. An ascending sort whose end is cut off does "
        "that: sort in descending order, with stable=True.",
        wrong={
            KEPT: "kept = torch.zeros_like(probs).scatter(-1, probs.sort(dim=-1, stable=True).indices.flip(-1)[..., :k], 1.0)"
        },
    ),
    Misconception(
        name="top_k_not_renormalised",
        part="truncate",
        says="After top_k your probabilities do not sum to 1. Divide what is kept by its sum.",
        wrong={KEPT: KEPT + "\n    return probs * kept"},
    ),
    Misconception(
        name="top_k_softmax_again",
        part="truncate",
        says="You take a softmax of the probabilities that are left. They are probabilities already: divide them by "
        "their sum.",
        wrong={
            KEPT: KEPT
            + "\n    return torch.softmax(probs.masked_fill(kept == 0, float('-inf')), dim=-1)"
        },
    ),
    Misconception(
        name="top_k_one_more",
        part="truncate",
        says="Your top_k keeps k + 1 tokens: the edge lies after the k-th, and positions count from 0.",
        wrong={"order[..., :k]": "order[..., : k + 1]"},
    ),
    Misconception(
        name="top_k_leaves_them_sorted",
        part="truncate",
        says="Your top_k returns the probabilities in sorted order. Every probability must stay at its token's id.",
        wrong={
            KEPT: (
                "probs = probs.gather(-1, order)\n"
                "    kept = (torch.arange(probs.shape[-1], device=probs.device) < k).to(probs.dtype)"
            )
        },
    ),
    Misconception(
        name="top_k_mask_in_sorted_order",
        part="truncate",
        says="Your top_k drops tokens by their id instead of their rank: a mask made in sorted order must be scattered "
        "back to where the tokens stand.",
        wrong={
            KEPT: "kept = (torch.arange(probs.shape[-1], device=probs.device) < k).to(probs.dtype)"
        },
    ),
    Misconception(
        name="top_k_does_nothing",
        part="truncate",
        says="Your top_k returns its input unchanged.",
        wrong={KEPT: "kept = torch.ones_like(probs)"},
    ),
    Misconception(
        name="nucleus_drops_the_crossing",
        part="truncate",
        says="Your nucleus leaves out the token that crosses p. The nucleus must reach p, so that token belongs to it: "
        "keep a token when what comes *before* it is less than p.",
        wrong={NUCLEUS: "before + ranked <= p"},
    ),
    Misconception(
        name="nucleus_one_more",
        part="truncate",
        says="Your nucleus takes another token when p has been reached exactly. It is the smallest set that reaches p: "
        "the comparison is <, not <=.",
        wrong={NUCLEUS: "before <= p"},
    ),
    Misconception(
        name="nucleus_empty_at_zero",
        part="truncate",
        says="At p = 0 your nucleus is empty, and 0/0 gives NaN. The most probable token is always kept.",
        wrong={"in_nucleus[..., 0] = True": "pass"},
    ),
    Misconception(
        name="nucleus_is_a_threshold",
        part="truncate",
        says="You keep the tokens whose own probability is at least 1 − p. The nucleus is about the sum of the most "
        "probable ones, from the top down.",
        wrong={NUCLEUS: "ranked >= 1 - p"},
    ),
    Misconception(
        name="nucleus_from_the_tail",
        part="truncate",
        says="Your nucleus collects the least probable tokens: the sort is ascending. Start with the most probable.",
        wrong={
            "ranked, order = probs.sort(dim=-1, descending=True, stable=True)": (
                "ranked, order = probs.sort(dim=-1, stable=True)"
            )
        },
    ),
    Misconception(
        name="nucleus_unsorted",
        part="truncate",
        says="You add up the probabilities in the order of the ids. Sort them first: the nucleus holds the most "
        "probable tokens.",
        wrong={
            "ranked, order = probs.sort(dim=-1, descending=True, stable=True)": (
                "ranked, order = probs, torch.arange(probs.shape[-1], device=probs.device).expand(probs.shape)"
            )
        },
    ),
    Misconception(
        name="nucleus_mask_in_sorted_order",
        part="truncate",
        says="Your nucleus is found in sorted order and applied to the tokens in the order of their ids. Scatter the "
        "mask back to where the tokens stand.",
        wrong={
            "kept = torch.zeros_like(probs).scatter(-1, order, in_nucleus.to(probs.dtype))": (
                "kept = in_nucleus.to(probs.dtype)"
            )
        },
    ),
    Misconception(
        name="nucleus_not_renormalised",
        part="truncate",
        says="After top_p your probabilities do not sum to 1. Divide what is kept by its sum.",
        wrong={
            "scatter(-1, order, in_nucleus.to(probs.dtype))": (
                "scatter(-1, order, in_nucleus.to(probs.dtype))\n    return probs * kept"
            )
        },
    ),
    Misconception(
        name="nucleus_of_one_is_cut",
        part="truncate",
        says="At p = 1 you drop very improbable tokens: by rounding the running sum reaches 1 before the last token. "
        "p = 1 changes nothing.",
        wrong={"if p == 1:": "if False:"},
    ),
    # --- generate
    Misconception(
        name="shows_the_last_token_only",
        part="generate",
        says="Your model is shown the newest token alone. It needs all tokens so far: what it says depends on every "
        "one of them.",
        wrong={
            "seen = tokens if context_length is None else tokens[-context_length:]": "seen = tokens[-1:]"
        },
    ),
    Misconception(
        name="shows_the_prompt_only",
        part="generate",
        says="Your model is shown the prompt at every step. What it has written must be fed back, or it writes the "
        "same token again and again.",
        wrong={"next_token_logits(seen)": "next_token_logits(prompt)"},
    ),
    Misconception(
        name="forgets_the_prompt",
        part="generate",
        says="Your model is shown what it has written, without the prompt.",
        wrong={
            "next_token_logits(seen)": (
                "next_token_logits(tokens[len(prompt) :] if len(tokens) > len(prompt) else seen)"
            )
        },
    ),
    Misconception(
        name="drops_the_stop_token",
        part="generate",
        says="Your result ends before the stop token. Here the stop token is part of it: append, then look whether to "
        "stop.",
        wrong={
            "tokens = torch.cat([tokens, tokens.new_tensor([token])])\n        if token in stop:\n            break": (
                "if token in stop:\n            break\n"
                "        tokens = torch.cat([tokens, tokens.new_tensor([token])])"
            )
        },
    ),
    Misconception(
        name="prompt_stops_it",
        part="generate",
        says="A stop token in the prompt ends your text. Only a newly generated one does.",
        wrong={"if token in stop:": "if any(t in stop for t in tokens.tolist()):"},
    ),
    Misconception(
        name="first_stop_only",
        part="generate",
        says="You compare with the first id of stop only. Any of them ends the text.",
        wrong={"if token in stop:": "if stop and token == next(iter(stop)):"},
    ),
    Misconception(
        name="never_stops",
        part="generate",
        says="Your loop takes stop tokens and does not look at them.",
        wrong={"if token in stop:": "if False:"},
    ),
    Misconception(
        name="prompt_counts_as_new",
        part="generate",
        says="You count the prompt among max_new_tokens. The limit is for new tokens alone.",
        wrong={"range(max_new_tokens)": "range(max_new_tokens - len(prompt))"},
    ),
    Misconception(
        name="one_token_too_many",
        part="generate",
        says="Your loop adds one token more than max_new_tokens.",
        wrong={"range(max_new_tokens)": "range(max_new_tokens + 1)"},
    ),
    Misconception(
        name="new_tokens_only",
        part="generate",
        says="You return the new tokens without the prompt. The result is the whole text.",
        wrong={"return tokens\n": "return tokens[len(prompt) :]\n"},
    ),
    Misconception(
        name="context_from_the_start",
        part="generate",
        says="When the text is longer than context_length you show the model its beginning. Show the end: the model "
        "continues from there.",
        wrong={"tokens[-context_length:]": "tokens[:context_length]"},
    ),
    Misconception(
        name="context_ignored",
        part="generate",
        says="You show the model the whole text, however long. It can read context_length tokens at most.",
        wrong={"tokens if context_length is None else tokens[-context_length:]": "tokens"},
    ),
    Misconception(
        name="context_cuts_the_result",
        part="generate",
        says="You cut the text itself to context_length, so that its beginning is lost. Only what the model sees is cut.",
        wrong={
            "        logits = next_token_logits(seen)": (
                "        tokens = seen\n        logits = next_token_logits(seen)"
            )
        },
    ),
    Misconception(
        name="context_of_prompt_only",
        part="generate",
        says="You cut the prompt to context_length once, before the loop; what the model sees then grows beyond it.",
        wrong={
            "tokens if context_length is None else tokens[-context_length:]": (
                "tokens if context_length is None else tokens[max(0, len(prompt) - context_length) :]"
            )
        },
    ),
    Misconception(
        name="softmax_before_choose",
        part="generate",
        says="You hand `choose` probabilities. It expects the model's logits and makes the softmax itself.",
        wrong={"choose(logits)": "choose(logits.softmax(-1))"},
    ),
    Misconception(
        name="always_greedy",
        part="generate",
        says="Your loop takes the argmax itself and does not ask `choose`.",
        wrong={"int(choose(logits))": "int(logits.argmax())"},
    ),
]

EQUIVALENT = [
    Equivalent(
        part="likelihood",
        before="predictions, targets = (logits[..., :-1, :], tokens[..., 1:])",
        after="predictions, targets = (logits[..., :, :], tokens[..., 1:])",
        because="gather takes the rows for which there are targets; the last, for which there is none, is left.",
    ),
    Equivalent(
        part="likelihood",
        before="return log_probs.gather(-1, targets[..., None])[..., 0].sum(dim=-1)",
        after="return log_probs.gather(-1, targets[..., None])[..., -1].sum(dim=-1)",
        because="The dimension has one entry: the first is the last.",
    ),
    Equivalent(
        part="ngram",
        before="if shorter not in self.totals:",
        after="if False:",
        because="Counts of 0 leave p as it is: (0 + alpha * p) / (0 + alpha).",
    ),
    Equivalent(
        part="ngram",
        before="break",
        after="continue",
        because="If a context was never seen, no longer one was.",
    ),
    Equivalent(
        part="ngram",
        before="context = tuple(context[max(0, len(context) - self.order + 1):])",
        after="context = tuple(context[:])",
        because="No context of order tokens or more is counted, so a longer one is cut at the first that was never seen.",
    ),
    Equivalent(
        part="ngram",
        before="context = tuple(context[max(0, len(context) - self.order + 1):])",
        after="context = tuple(context[0:])",
        because="No context of order tokens or more is counted, so a longer one is cut at the first that was never seen.",
    ),
    Equivalent(
        part="ngram",
        before="context = tuple(context[max(0, len(context) - self.order + 1):])",
        after="context = tuple(context[max(0, len(context) - self.order - 1):])",
        because="No context of order tokens or more is counted, so a longer one is cut at the first that was never seen.",
    ),
    Equivalent(
        part="ngram",
        before="context = tuple(context[max(0, len(context) - self.order + 1):])",
        after="context = tuple(context[max(0, len(context) - self.order + 0):])",
        because="No context of order tokens or more is counted, so a longer one is cut at the first that was never seen.",
    ),
    Equivalent(
        part="ngram",
        before="context = tokens[max(0, t - self.order + 1):t]",
        after="context = tokens[:t]",
        because="probability cuts the context itself.",
    ),
    Equivalent(
        part="ngram",
        before="context = tokens[max(0, t - self.order + 1):t]",
        after="context = tokens[0:t]",
        because="probability cuts the context itself.",
    ),
    Equivalent(
        part="ngram",
        before="context = tokens[max(0, t - self.order + 1):t]",
        after="context = tokens[max(0, t - self.order - 1):t]",
        because="probability cuts the context itself.",
    ),
    Equivalent(
        part="ngram",
        before="context = tokens[max(0, t - self.order + 1):t]",
        after="context = tokens[max(0, t - self.order + 0):t]",
        because="probability cuts the context itself.",
    ),
    Equivalent(
        part="ngram",
        before="for length in range(min(t, self.order - 1) + 1):",
        after="for length in range(t + 1):",
        because="The longer contexts are counted and never looked up.",
    ),
    Equivalent(
        part="ngram",
        before="for length in range(min(t, self.order - 1) + 1):",
        after="for length in range(min(t, self.order + 1) + 1):",
        because="The longer contexts are counted and never looked up.",
    ),
    Equivalent(
        part="ngram",
        before="for length in range(min(t, self.order - 1) + 1):",
        after="for length in range(min(t, self.order - 0) + 1):",
        because="The longer contexts are counted and never looked up.",
    ),
    Equivalent(
        part="choose",
        before="rows = probs.reshape(-1, probs.shape[-1]).cpu()",
        after="rows = probs.reshape(-1, probs.shape[-1])",
        because="On the CPU there is one device. On a GPU the tests notice it.",
    ),
    Equivalent(
        part="choose",
        before="return drawn.reshape(probs.shape[:-1]).to(probs.device)",
        after="return drawn.reshape(probs.shape[:-1])",
        because="On the CPU there is one device. On a GPU the tests notice it.",
    ),
    Equivalent(
        part="truncate",
        before="ranked, order = probs.sort(dim=-1, descending=True, stable=True)",
        after="ranked, order = probs.sort(descending=True, stable=True)",
        because="The last dimension is what sort takes by default.",
    ),
    Equivalent(
        part="truncate",
        before="order = probs.sort(dim=-1, descending=True, stable=True).indices",
        after="order = probs.sort(descending=True, stable=True).indices",
        because="The last dimension is what sort takes by default.",
    ),
    Equivalent(
        part="truncate",
        before="kept = torch.zeros_like(probs).scatter(-1, order[..., :k], 1.0)",
        after="kept = torch.zeros_like(probs).scatter(-1, order[..., :k], 2.0)",
        because="What is kept is divided by its sum: a common factor is lost.",
    ),
    Equivalent(
        part="truncate",
        before="return probs.clone()",
        after="return probs",
        because="The same numbers; nobody promised a copy.",
    ),
    Equivalent(
        part="truncate",
        before="kept = torch.zeros_like(probs).scatter(-1, order, in_nucleus.to(probs.dtype))",
        after="kept = probs.scatter(-1, order, in_nucleus.to(probs.dtype))",
        because="Every entry is written over.",
    ),
    Equivalent(
        part="generate",
        before="tokens = prompt.clone()",
        after="tokens = prompt",
        because="torch.cat makes a new tensor; the prompt is never written to.",
    ),
]


def _likelihood(answers: ModuleType, rng: torch.Generator) -> object:
    logits = 2 * torch.randn(2, 5, 7, generator=rng, dtype=torch.float64)
    return answers.sequence_log_prob(logits, torch.randint(7, (2, 5), generator=rng))


def _ngram(answers: ModuleType, rng: torch.Generator) -> object:
    order, seen, asked = torch.randint(1, 5, (3,), generator=rng).tolist()
    model = answers.NGram(order, 3)
    for _ in range(2):
        model.fit(torch.randint(3, (3 * seen,), generator=rng).tolist())
    text = torch.randint(3, (2 * asked,), generator=rng).tolist()
    return model.distribution(text, 0.5), model.log_prob(text, 0.5)


def _probs(rng: torch.Generator) -> torch.Tensor:
    return torch.randn(3, 5, generator=rng, dtype=torch.float64).softmax(dim=-1)


def _choose(answers: ModuleType, rng: torch.Generator) -> object:
    return answers.sample(_probs(rng), rng)


def _truncate(answers: ModuleType, rng: torch.Generator) -> object:
    k, p = int(torch.randint(1, 7, (), generator=rng)), float(torch.rand((), generator=rng))
    probs = _probs(rng)
    return answers.top_k(probs, k), answers.top_p(probs, 1 - p), answers.top_p(probs, 1.0)


def _generate(answers: ModuleType, rng: torch.Generator) -> object:
    table = torch.randn(5, 5, generator=rng)
    prompt = torch.randint(5, (3,), generator=rng)
    new, stop = torch.randint(5, (2,), generator=rng).tolist()
    before = prompt.clone()
    result = answers.generate(
        lambda tokens: table[tokens[-1]], prompt, lambda logits: logits.argmax(), new, {stop}
    )
    return result, torch.equal(prompt, before)


EXAMPLES = {
    "likelihood": _likelihood,
    "ngram": _ngram,
    "choose": _choose,
    "truncate": _truncate,
    "generate": _generate,
}
