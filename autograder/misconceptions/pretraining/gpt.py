"""Wrong answers to the exercise on GPT."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

MISCONCEPTIONS = [
    # --- loss ---
    Misconception(
        name="no_shift",
        part="loss",
        says="Your loss compares the logits at position t with token t, which the model has just read: it would learn to "
        "copy. The logits at t belong to token t + 1.",
        wrong={
            "counted = mask[..., 1:]": "counted = mask",
            "F.cross_entropy(logits[..., :-1, :][counted], tokens[..., 1:][counted])": (
                "F.cross_entropy(logits[counted], tokens[counted])"
            ),
        },
    ),
    Misconception(
        name="double_shift",
        part="loss",
        says="Your loss is shifted by two: the logits at t are compared with token t + 2. (This happens when the targets are "
        "shifted already and the loss shifts them again.)",
        wrong={
            "counted = mask[..., 1:]": "counted = mask[..., 2:]",
            "logits[..., :-1, :][counted], tokens[..., 1:][counted]": (
                "logits[..., :-2, :][counted], tokens[..., 2:][counted]"
            ),
        },
    ),
    Misconception(
        name="shifted_backwards",
        part="loss",
        says="Your loss is shifted the wrong way: the logits at t are compared with token t − 1, which the model has read.",
        wrong={
            "logits[..., :-1, :][counted], tokens[..., 1:][counted]": (
                "logits[..., 1:, :][counted], tokens[..., :-1][counted]"
            ),
        },
    ),
    Misconception(
        name="summed_loss",
        part="loss",
        says="Your loss is a sum over the tokens: it grows with the length of the text and the size of the batch. It is a "
        "mean.",
        wrong={"tokens[..., 1:][counted])": 'tokens[..., 1:][counted], reduction="sum")'},
    ),
    Misconception(
        name="softmax_twice",
        part="loss",
        says="Your loss takes a softmax before cross_entropy, which takes one itself: the loss hardly moves whatever the "
        "logits say. Hand over the logits.",
        wrong={"logits[..., :-1, :][counted]": "logits.softmax(dim=-1)[..., :-1, :][counted]"},
    ),
    Misconception(
        name="log_of_softmax",
        part="loss",
        says="Your loss takes the logarithm of a softmax. Of a token with probability 0 in floating point that is infinite: "
        "use log_softmax or cross_entropy.",
        wrong={
            "F.cross_entropy(logits[..., :-1, :][counted], tokens[..., 1:][counted])": (
                "F.nll_loss(logits.softmax(-1)[..., :-1, :][counted].log(), tokens[..., 1:][counted])"
            )
        },
    ),
    Misconception(
        name="mask_of_the_position",
        part="loss",
        says="Your mask is read at the position that predicts. It says of each token whether it counts when it is predicted, so "
        "it is shifted with the tokens: mask[..., 1:].",
        wrong={"counted = mask[..., 1:]": "counted = mask[..., :-1]"},
    ),
    Misconception(
        name="mask_forgotten",
        part="loss",
        says="Your loss takes a mask and counts every token all the same: the model would learn the filling.",
        wrong={
            "logits[..., :-1, :][counted], tokens[..., 1:][counted]": (
                "logits[..., :-1, :].flatten(0, -2), tokens[..., 1:].flatten().clamp(0, logits.shape[-1] - 1)"
            )
        },
    ),
    Misconception(
        name="mean_over_masked_too",
        part="loss",
        says="Your loss adds up the counted tokens alone but divides by the number of all: the more filling, the smaller it "
        "is. Divide by the number of counted tokens.",
        wrong={
            "return F.cross_entropy(": "return counted.double().mean().to(logits.dtype) * F.cross_entropy("
        },
    ),
    Misconception(
        name="mean_of_the_texts_means",
        part="loss",
        says="Your loss is a mean of each text's mean: a token of a short text weighs more than one of a long text. Take one "
        "mean over all counted tokens.",
        wrong={
            "return F.cross_entropy(logits[..., :-1, :][counted], tokens[..., 1:][counted])": (
                "losses = F.cross_entropy(logits[..., :-1, :].movedim(-1, 1 if tokens.dim() > 1 else -1), "
                "tokens[..., 1:].masked_fill(~counted, -100), reduction='none')\n"
                "    return (losses.sum(-1) / counted.sum(-1)).mean()"
            )
        },
    ),
    # --- attention ---
    Misconception(
        name="no_causal_mask",
        part="attention",
        says="Your attention has no causal mask: in training each position sees the token it has to predict.",
        wrong={".tril(keys - queries)": ""},
    ),
    Misconception(
        name="sees_one_ahead",
        part="attention",
        says="Your mask lets each position see the next one, which is the token it has to predict.",
        wrong={".tril(keys - queries)": ".tril(keys - queries + 1)"},
    ),
    Misconception(
        name="mask_from_the_upper_left",
        part="attention",
        says="With a cache your mask counts from the upper left corner (tril() or is_causal=True): the first new token sees "
        "the first cached key and no more. It counts from the lower right: tril(keys − queries).",
        wrong={".tril(keys - queries)": ".tril()"},
    ),
    Misconception(
        name="no_mask_with_a_cache",
        part="attention",
        says="With a cache your attention drops the mask. That is right for one new token; of several, the first would see the "
        "later ones.",
        wrong={
            ".tril(keys - queries)": ".tril(keys - queries if cache is None else keys)",
        },
    ),
    Misconception(
        name="new_keys_first",
        part="attention",
        says="Your cache has the new keys and values before the old ones. The new ones follow: cat([old, new]).",
        wrong={
            "torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)": (
                "torch.cat([k, cache[0]], dim=2), torch.cat([v, cache[1]], dim=2)"
            )
        },
    ),
    Misconception(
        name="cache_holds_the_new_alone",
        part="attention",
        says="The cache you return holds the new positions alone: everything before them is forgotten at the next call.",
        wrong={
            "self.output_proj(joined), (k, v)": (
                "self.output_proj(joined), (k[:, :, -queries:], v[:, :, -queries:])"
            )
        },
    ),
    Misconception(
        name="cache_changed_in_place",
        part="attention",
        says="Your attention changes the cache it is handed: a second continuation from the same beginning finds the first in "
        "it. Return new tensors.",
        wrong={
            "queries, keys = q.shape[2], k.shape[2]": (
                "queries, keys = q.shape[2], k.shape[2]\n"
                "        if cache is not None:\n"
                "            cache[0][:, :, -1:], cache[1][:, :, -1:] = k[:, :, -1:], v[:, :, -1:]"
            )
        },
    ),
    Misconception(
        name="heads_by_view_alone",
        part="attention",
        says="Your heads are split by a view without a transpose: features of different positions are mixed. View as (batch, "
        "new, heads, d_head), then transpose.",
        wrong={
            '"batch new (three heads d_head) -> three batch heads new d_head",\n'
            "            three=3,\n"
            "            heads=self.num_heads,": (
                '"batch new (three width) -> three batch new width", three=3'
            ),
            "if cache is not None:": (
                "q, k, v = (\n"
                "            t.reshape(len(x), self.num_heads, x.shape[1], -1) for t in (q, k, v)\n"
                "        )\n"
                "        if cache is not None:"
            ),
        },
    ),
    Misconception(
        name="qkv_by_head",
        part="attention",
        says="Your qkv_proj is read head by head (query, key, value of head 0, then of head 1, …). In GPT-2 the queries of all "
        "heads come first, then all keys, then all values.",
        wrong={"(three heads d_head)": "(heads three d_head)"},
    ),
    Misconception(
        name="scale_of_d_model",
        part="attention",
        says="Your scores are divided by √d_model. Each head has its own scale, √d_head.",
        wrong={"attn_mask=mask)": "attn_mask=mask, scale=x.shape[-1] ** -0.5)"},
    ),
    # --- model ---
    Misconception(
        name="exact_gelu",
        part="model",
        says="Your gelu is the exact x·Φ(x). GPT-2 uses the tanh approximation: F.gelu(x, approximate='tanh').",
        wrong={'F.gelu(x, approximate="tanh")': "F.gelu(x)"},
    ),
    Misconception(
        name="relu",
        part="model",
        says="Your feed-forward layer uses ReLU, as the Transformer of 2017. GPT uses GELU.",
        wrong={'F.gelu(x, approximate="tanh")': "torch.relu(x)"},
    ),
    Misconception(
        name="post_ln",
        part="model",
        says="Your block is post-LN, as the Transformer of 2017 and GPT of 2018. In GPT-2 the norm stands on the way into "
        "each sub-layer.",
        wrong={
            "self.attention(self.norm1(x), cache)": "self.attention(x, cache)",
            "x = x + attended": "x = self.norm1(x + attended)",
            "return x + self.linear2(gelu(self.linear1(self.norm2(x)))), cache": (
                "return self.norm2(x + self.linear2(gelu(self.linear1(x)))), cache"
            ),
        },
    ),
    Misconception(
        name="residual_from_the_normalised_input",
        part="model",
        says="Your block adds the sub-layers to the normalised x. The sum keeps x as it came; only the sub-layer reads the "
        "normalised one.",
        wrong={
            "x = x + attended": "x = self.norm1(x) + attended",
            "return x + self.linear2": "return self.norm2(x) + self.linear2",
        },
    ),
    Misconception(
        name="positions_restart",
        part="model",
        says="With a cache your positions start at 0 again. The first new token stands where the cache ends.",
        wrong={"torch.arange(past, past + new, device": "torch.arange(new, device"},
    ),
    Misconception(
        name="no_positions",
        part="model",
        says="Your model never adds the position vectors.",
        wrong={
            "self.token_embedding(tokens) + self.position_embedding(positions)": (
                "self.token_embedding(tokens)"
            )
        },
    ),
    Misconception(
        name="embedding_times_root",
        part="model",
        says="Your embeddings are multiplied by √d_model, as in 2017. GPT-2 adds token and position vectors as they are.",
        wrong={
            "self.token_embedding(tokens) + ": (
                "math.sqrt(self.norm.weight.numel()) * self.token_embedding(tokens) + "
            )
        },
    ),
    Misconception(
        name="no_final_norm",
        part="model",
        says="Your model ends without its last layer norm, so the sum leaves the stack as large as it grew.",
        wrong={"return self.norm(x), seen": "return x + 0 * self.norm(x), seen"},
    ),
    Misconception(
        name="untied_logits",
        part="model",
        says="Your logits have a matrix of their own. In GPT they use the token embedding's, transposed.",
        wrong={
            "self.norm = nn.LayerNorm(d_model)\n": (
                "self.norm = nn.LayerNorm(d_model)\n"
                "        self.output = nn.Linear(d_model, vocab_size, bias=False)\n"
            ),
            "x @ self.token_embedding.weight.T, seen": "self.output(x), seen",
        },
    ),
    Misconception(
        name="probabilities",
        part="model",
        says="Your model returns probabilities. It should return logits: cross_entropy and choose take the softmax themselves.",
        wrong={
            "x @ self.token_embedding.weight.T, seen": (
                "(x @ self.token_embedding.weight.T).softmax(dim=-1), seen"
            )
        },
    ),
    Misconception(
        name="one_cache_for_all",
        part="model",
        says="All your blocks get the first block's cache. Each layer has keys and values of its own: block i gets cache[i].",
        wrong={"cache[i] if cache else None": "cache[0] if cache else None"},
    ),
    Misconception(
        name="cache_not_handed_on",
        part="model",
        says="Your model takes a cache and its blocks never get it: new tokens see nothing of what was read before.",
        wrong={"cache[i] if cache else None": "None"},
    ),
    Misconception(
        name="cache_list_appended",
        part="model",
        says="Your model appends to the list it was handed as the cache. Return a new list, so that two continuations may "
        "start from one cache.",
        wrong={
            "seen = []\n": "seen = [] if cache is None else cache\n",
            "seen.append(keys_values)": ("seen[i:] = [keys_values, *seen[i + 1 :]]"),
        },
    ),
    Misconception(
        name="block_size_of_the_new_alone",
        part="model",
        says="Your check of block_size counts the new tokens alone. The cached ones stand before them and count too.",
        wrong={
            "if past + new > self.block_size:": "if new > self.block_size:",
            "torch.arange(past, past + new, device=tokens.device)": (
                "torch.arange(past, past + new, device=tokens.device).clamp(max=self.block_size - 1)"
            ),
        },
    ),
    Misconception(
        name="layers_share_their_weights",
        part="model",
        says="Your stack is one block repeated ([block] * num_layers): all layers share their weights. Make a new block for "
        "each layer.",
        wrong={
            "nn.ModuleList(Block(d_model, num_heads) for _ in range(num_layers))": (
                "nn.ModuleList([Block(d_model, num_heads)] * num_layers)"
            )
        },
    ),
    Misconception(
        name="default_initialisation",
        part="model",
        says="Your matrices start as torch makes them: embeddings with standard deviation 1, so that the first logits are far "
        "too large. All start with 0.02, those added to the sum with 0.02/√(2L).",
        wrong={"for name, parameter in self.named_parameters():": "for name, parameter in ():"},
    ),
    Misconception(
        name="residual_matrices_not_scaled",
        part="model",
        says="Your matrices all start with 0.02. Those whose outputs are added to the sum (output_proj and linear2) start with "
        "0.02/√(2L), so that it does not grow with the depth.",
        wrong={"2 * num_layers if added else 1": "1"},
    ),
    # --- generate ---
    Misconception(
        name="temperature_multiplies",
        part="generate",
        says="Your logits are multiplied by the temperature. Divide by it: a low temperature makes the large ones larger.",
        wrong={"logits / temperature": "logits * temperature"},
    ),
    Misconception(
        name="top_k_does_nothing",
        part="generate",
        says="Your top_k does nothing: tokens outside the k largest are still drawn. Their logits become −∞ before the "
        "softmax.",
        wrong={
            "logits = logits.masked_fill(logits < smallest_kept, -math.inf)": (
                "logits.masked_fill(logits < smallest_kept, -math.inf)"
            )
        },
    ),
    Misconception(
        name="top_k_fills_with_zero",
        part="generate",
        says="Your top_k sets the logits it cuts off to 0 (or to a tiny number). A logit of 0 is a good one where the others "
        "are negative: use −∞.",
        wrong={
            "logits.masked_fill(logits < smallest_kept, -math.inf)": (
                "logits.masked_fill(logits < smallest_kept, 1e-10)"
            )
        },
    ),
    Misconception(
        name="top_k_keeps_one_more",
        part="generate",
        says="Your top_k keeps k + 1 tokens.",
        wrong={"logits.topk(top_k).values": "logits.topk(top_k + 1).values"},
    ),
    Misconception(
        name="always_greedy",
        part="generate",
        says="Your choose always takes the largest logit. At a temperature above 0 the token is drawn from the softmax.",
        wrong={"if temperature == 0:": "if True:"},
    ),
    Misconception(
        name="own_generator",
        part="generate",
        says="Your draws do not come from the caller's generator: the same seed does not give the same text.",
        wrong={
            "torch.multinomial(probs.cpu(), 1, generator=generator)": (
                "torch.multinomial(probs.cpu(), 1)"
            )
        },
    ),
    Misconception(
        name="first_logits",
        part="generate",
        says="Your generation reads the logits at the first position of the call. The next token is said by the last.",
        wrong={"choose(logits[:, -1], ": "choose(logits[:, 0], "},
    ),
    Misconception(
        name="new_tokens_alone",
        part="generate",
        says="Your result holds the new tokens alone. It begins with the prompt.",
        wrong={"    return tokens\n": "    return tokens[:, prompt.shape[1] :]\n"},
    ),
    Misconception(
        name="cache_never_used",
        part="generate",
        says="The tokens are right, but use_cache is not followed: with it each step reads the new token alone, without it the "
        "whole text again.",
        wrong={"if cache is None or tokens.shape[1] > block_size:": "if True:"},
    ),
    Misconception(
        name="whole_text_with_the_cache",
        part="generate",
        says="With the cache you hand the whole text to step again: everything is read twice. Only the new token is new.",
        wrong={"step(tokens[:, -1:], cache)": "step(tokens, cache)"},
    ),
    Misconception(
        name="cache_kept_beyond_the_window",
        part="generate",
        says="When the text grows beyond block_size you go on with the old cache: it holds more than the model can read. The "
        "moved window is read anew.",
        wrong={"if cache is None or tokens.shape[1] > block_size:": "if cache is None:"},
    ),
    Misconception(
        name="window_forgotten",
        part="generate",
        says="When the text is longer than block_size you begin anew from the last token alone: the window before it is "
        "forgotten.",
        wrong={
            "step(tokens[:, -block_size:], None)": (
                "step(tokens[:, -block_size:] if tokens.shape[1] <= block_size else tokens[:, -1:], None)"
            )
        },
    ),
    Misconception(
        name="first_tokens_of_the_prompt",
        part="generate",
        says="Of a text that is too long you read the first block_size tokens. The model sees the last ones.",
        wrong={"tokens[:, -block_size:]": "tokens[:, :block_size]"},
    ),
    Misconception(
        name="rebuilt_one_late",
        part="generate",
        says="Your window is off by one: a text of block_size + 1 tokens is still read with the old cache.",
        wrong={"tokens.shape[1] > block_size:": "tokens.shape[1] > block_size + 1:"},
    ),
    Misconception(
        name="choice_not_handed_on",
        part="generate",
        says="Your generate does not hand temperature and top_k on to choose.",
        wrong={
            "choose(logits[:, -1], temperature, top_k, generator)": (
                "choose(logits[:, -1], 0.0 if temperature == 0 else 1.0, None, generator)"
            )
        },
    ),
    # --- classify ---
    Misconception(
        name="reads_the_filling",
        part="classify",
        says="Your head reads the last position of the batch, which for shorter texts is filling. Read position lengths − 1.",
        wrong={"hidden[rows, lengths - 1]": "hidden[:, -1]"},
    ),
    Misconception(
        name="one_behind_the_last",
        part="classify",
        says="Your head reads position lengths, the one behind the last real token. Positions count from 0.",
        wrong={
            "hidden[rows, lengths - 1]": ("hidden[rows, lengths.clamp(max=hidden.shape[1] - 1)]")
        },
    ),
    Misconception(
        name="reads_the_first",
        part="classify",
        says="Your head reads the first position, as BERT does. In a causal model the first has seen nothing but itself.",
        wrong={"hidden[rows, lengths - 1]": "hidden[:, 0]"},
    ),
    Misconception(
        name="no_delimiter",
        part="classify",
        says="Your texts follow each other without a delimiter: the model cannot tell where one ends.",
        wrong={"tokens += [delimiter, *text]": "tokens += [*text]"},
    ),
    Misconception(
        name="delimiter_after_each",
        part="classify",
        says="You put a delimiter after each text, also after the last. It stands between texts; after the last comes extract.",
        wrong={"[*tokens, extract]": "[*tokens, delimiter, extract]"},
    ),
    Misconception(
        name="extract_first",
        part="classify",
        says="Your extract token stands at the start, as BERT's [CLS]. In a causal model it must be last, where all has been "
        "seen.",
        wrong={
            "[start, *texts[0]]": "[extract, *texts[0]]",
            "[*tokens, extract]": "[*tokens, start]",
        },
    ),
    Misconception(
        name="lm_loss_forgotten",
        part="classify",
        says="Your loss is the classes' alone. The language model's is added with the weight λ.",
        wrong={"+ lm_weight * causal_lm_loss(": "+ 0 * causal_lm_loss("},
    ),
    Misconception(
        name="weight_on_the_classes",
        part="classify",
        says="Your λ weighs the loss of the classes. It belongs to the language model's: L2 + λ·L1.",
        wrong={
            "F.cross_entropy(class_logits, labels) + lm_weight * causal_lm_loss(": (
                "lm_weight * F.cross_entropy(class_logits, labels) + causal_lm_loss("
            )
        },
    ),
    Misconception(
        name="filling_in_the_lm_loss",
        part="classify",
        says="Your language-model loss counts the filling behind shorter texts. Count the first lengths[b] tokens of each.",
        wrong={"lm_logits, tokens, real\n": "lm_logits, tokens\n"},
    ),
    # --- prompts ---
    Misconception(
        name="space_at_the_end",
        part="prompts",
        says="Your prompt ends in a space. In a byte-level vocabulary the space belongs to the next token: end with =>.",
        wrong={'f"{query} =>"': 'f"{query} => "'},
    ),
    Misconception(
        name="question_among_the_examples",
        part="prompts",
        says="Your prompt may show the question among its examples, with the answer. Such an example is passed over.",
        wrong={
            "usable = [(given, answer) for given, answer in examples if given != query]\n"
            "    if not 0": "usable = list(examples)\n    if not 0",
        },
    ),
    Misconception(
        name="left_out_after_counting",
        part="prompts",
        says="You take the first shots examples and then leave out those that ask the question, so there are too few. The next "
        "example takes the place.",
        wrong={
            "for given, answer in usable[:shots]]": (
                "for given, answer in examples[:shots] if given != query]"
            )
        },
    ),
    Misconception(
        name="one_shot_too_many",
        part="prompts",
        says="Your prompt has one example too many: zero-shot means none.",
        wrong={"usable[:shots]": "usable[: shots + 1]"},
    ),
    Misconception(
        name="empty_line_for_no_task",
        part="prompts",
        says="Without a description your prompt begins with an empty line.",
        wrong={"[task] if task else []": "[task]"},
    ),
    Misconception(
        name="counts_characters",
        part="prompts",
        says="Your fill_context counts characters. How many tokens a text has is said by count_tokens.",
        wrong={
            "if count_tokens(prompt) <= max_tokens]": (
                "if len(prompt) <= max_tokens or (prompt == prompts[0] and count_tokens(prompt) <= max_tokens)]"
            )
        },
    ),
    Misconception(
        name="prompt_cut_to_size",
        part="prompts",
        says="Your fill_context takes all examples and cuts the prompt. Examples are whole or left out, and the question must "
        "not be lost.",
        wrong={
            "return fitting[-1]": (
                "prompt = prompts[-1]\n"
                "    while count_tokens(prompt) > max_tokens:\n"
                "        prompt = prompt[1:]\n"
                "    return prompt"
            )
        },
    ),
    Misconception(
        name="room_not_used_up",
        part="prompts",
        says="A prompt of exactly max_tokens fits: at most max_tokens, not fewer.",
        wrong={
            "if count_tokens(prompt) <= max_tokens]": (
                "if count_tokens(prompt) < max_tokens or (prompt == prompts[0] and count_tokens(prompt) <= max_tokens)]"
            )
        },
    ),
]

ONE_DEVICE = "On the CPU there is one device. On a GPU the tests notice it."
ONE_SHAPE = "All keys and values in a cache have one number of positions, whichever is asked."

EQUIVALENT = [
    Equivalent(
        part="attention",
        before="mask = torch.ones(queries, keys, dtype=torch.bool, device=x.device).tril(keys - queries)",
        after="mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="model",
        before="positions = torch.arange(past, past + new, device=tokens.device)",
        after="positions = torch.arange(past, past + new)",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="model",
        before="past = cache[0][0].shape[2] if cache else 0",
        after="past = cache[0][1].shape[2] if cache else 0",
        because=ONE_SHAPE,
    ),
    Equivalent(
        part="model",
        before="past = cache[0][0].shape[2] if cache else 0",
        after="past = cache[0][-1].shape[2] if cache else 0",
        because=ONE_SHAPE,
    ),
    Equivalent(
        part="model",
        before="past = cache[0][0].shape[2] if cache else 0",
        after="past = cache[-1][0].shape[2] if cache else 0",
        because=ONE_SHAPE,
    ),
    Equivalent(
        part="generate",
        before="return torch.multinomial(probs.cpu(), 1, generator=generator).squeeze(1).to(logits.device)",
        after="return torch.multinomial(probs.cpu(), 1, generator=generator).squeeze(1)",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="generate",
        before="return torch.multinomial(probs.cpu(), 1, generator=generator).squeeze(1).to(logits.device)",
        after="return torch.multinomial(probs, 1, generator=generator).squeeze(1).to(logits.device)",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="generate",
        before="if top_k is not None and top_k < logits.shape[1]:",
        after="if top_k is not None and top_k <= logits.shape[1]:",
        because="With top_k the size of the vocabulary no logit is below the smallest that is kept.",
    ),
    Equivalent(
        part="classify",
        before="rows = torch.arange(len(hidden), device=hidden.device)",
        after="rows = torch.arange(len(hidden))",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="classify",
        before="real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]",
        after="real = torch.arange(tokens.shape[1]) < lengths[:, None]",
        because=ONE_DEVICE,
    ),
]


def _attention(answers: ModuleType, rng: torch.Generator) -> object:
    torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
    past, new = torch.randint(1, 4, (2,), generator=rng).tolist()
    attention = answers.CausalSelfAttention(4, 2)
    with torch.no_grad():
        _, cache = attention(torch.randn(1, past, 4))
        return attention(torch.randn(1, new, 4), cache)[0]


def _model(answers: ModuleType, rng: torch.Generator) -> object:
    torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
    past, new, layers = torch.randint(1, 3, (3,), generator=rng).tolist()
    model = answers.GPT(3, 4, 2, 1, layers)
    tokens = torch.randint(3, (1, past + new), generator=rng)
    with torch.no_grad():
        _, cache = model.hidden(tokens[:, :past])
        return model.hidden(tokens[:, past:], cache)[0]


def _generate(answers: ModuleType, rng: torch.Generator) -> object:
    logits = torch.randn(3, 5, generator=rng)
    top_k = int(torch.randint(1, 7, (), generator=rng))
    return answers.choose(logits, 0.8, top_k, rng)


def _classify(answers: ModuleType, rng: torch.Generator) -> object:
    torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
    lengths = torch.randint(2, 5, (3,), generator=rng)
    head = answers.ClassificationHead(2, 3)
    logits = head(torch.randn(3, 4, 2, generator=rng), lengths)
    tokens, labels = torch.randint(3, (3, 4), generator=rng), torch.randint(3, (3,), generator=rng)
    lm_logits = torch.randn(3, 4, 3, generator=rng)
    return answers.fine_tuning_loss(logits, labels, lm_logits, tokens, lengths)


EXAMPLES = {
    "attention": _attention,
    "model": _model,
    "generate": _generate,
    "classify": _classify,
}
