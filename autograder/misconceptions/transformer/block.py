"""Wrong answers to the exercise on the Transformer's blocks."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

MISCONCEPTIONS = [
    # --- positions ---
    Misconception(
        name="sines_then_cosines",
        part="positions",
        says="Your position code has all sines in the first half and all cosines in the second. In the paper they "
        "alternate: column 2i is the sine and column 2i + 1 the cosine of the same angle.",
        wrong={
            "torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(start_dim=1)": (
                "torch.cat([angle.sin(), angle.cos()], dim=-1)"
            )
        },
    ),
    Misconception(
        name="cosine_first",
        part="positions",
        says="Your position code has the cosine in the even columns. Column 0 is a sine: position 0 reads "
        "0, 1, 0, 1, …",
        wrong={"[angle.sin(), angle.cos()]": "[angle.cos(), angle.sin()]"},
    ),
    Misconception(
        name="exponent_counts_pairs",
        part="positions",
        says="Your frequencies are 10000^(−i/d_model) where they should be 10000^(−2i/d_model): pair i stands in "
        "columns 2i and 2i + 1, and the exponent uses the column.",
        wrong={
            "10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)": (
                "10000.0 ** (-torch.arange(d_model // 2, dtype=torch.float64) / d_model)"
            )
        },
    ),
    Misconception(
        name="cosine_of_its_own_column",
        part="positions",
        says="Your sine and cosine of one pair have different frequencies: the cosine uses the exponent "
        "(2i + 1)/d_model. Both use 2i/d_model, or the pair is not a hand of one clock.",
        wrong={
            "angle.cos()]": ("(position[:, None] * frequency * 10000.0 ** (-1 / d_model)).cos()]")
        },
    ),
    Misconception(
        name="positions_from_one",
        part="positions",
        says="Your positions count from 1. The first token stands at position 0, where every sine is 0.",
        wrong={
            "torch.arange(length, dtype=torch.float64)": (
                "torch.arange(1, length + 1, dtype=torch.float64)"
            )
        },
    ),
    # --- layer norm ---
    Misconception(
        name="unbiased_variance",
        part="layer_norm",
        says="Your variance is divided by d − 1. Layer norm takes the mean of the squares, divided by d: with "
        "Tensor.var, say unbiased=False.",
        wrong={
            "centred.square().mean(dim=-1, keepdim=True)": "x.var(dim=-1, keepdim=True)",
        },
    ),
    Misconception(
        name="eps_outside_the_root",
        part="layer_norm",
        says="Your eps is added to the standard deviation. It belongs under the root: √(variance + eps).",
        wrong={"torch.sqrt(variance + eps)": "(torch.sqrt(variance) + eps)"},
    ),
    Misconception(
        name="no_eps",
        part="layer_norm",
        says="Your layer norm does not use eps: equal features give 0/0, and nearly equal ones are blown up.",
        wrong={"torch.sqrt(variance + eps)": "torch.sqrt(variance)"},
    ),
    Misconception(
        name="divided_by_variance",
        part="layer_norm",
        says="Your layer norm divides by the variance. It divides by its root, the standard deviation.",
        wrong={"torch.sqrt(variance + eps)": "(variance + eps)"},
    ),
    Misconception(
        name="mean_kept",
        part="layer_norm",
        says="Your result still contains the mean: x is divided by the standard deviation but not centred first.",
        wrong={"weight * centred": "weight * x"},
    ),
    Misconception(
        name="normalised_over_all",
        part="layer_norm",
        says="Your mean and variance are taken over the whole tensor. They belong to one position of one sequence: "
        "dim=-1 alone.",
        wrong={
            "x.mean(dim=-1, keepdim=True)": "x.mean()",
            "centred.square().mean(dim=-1, keepdim=True)": "centred.square().mean()",
        },
    ),
    Misconception(
        name="statistics_detached",
        part="layer_norm",
        says="Your values are right, your gradient is not: the standard deviation is treated as a constant "
        "(detach or no_grad). The gradient flows through it too.",
        wrong={"torch.sqrt(variance + eps)": "torch.sqrt(variance + eps).detach()"},
    ),
    # --- feed-forward ---
    Misconception(
        name="gelu_for_relu",
        part="feed_forward",
        says="Your feed-forward network uses GELU. The Transformer of 2017 uses ReLU; GELU came with GPT-1 and BERT.",
        wrong={"torch.relu(self.linear1(x))": "nn.functional.gelu(self.linear1(x))"},
    ),
    Misconception(
        name="no_activation",
        part="feed_forward",
        says="Your two linear layers follow each other directly, which is one linear layer. A ReLU stands between.",
        wrong={"torch.relu(self.linear1(x))": "self.linear1(x)"},
    ),
    Misconception(
        name="relu_at_the_end",
        part="feed_forward",
        says="Your output went through a ReLU and is never negative. The ReLU stands between the two layers only.",
        wrong={
            "return self.linear2(torch.relu(self.linear1(x)))": (
                "return torch.relu(self.linear2(torch.relu(self.linear1(x))))"
            )
        },
    ),
    Misconception(
        name="residual_inside_feed_forward",
        part="feed_forward",
        says="Your feed-forward network adds its input to its output. The residual sum belongs to the block, which "
        "would then add x twice.",
        wrong={
            "return self.linear2(torch.relu(self.linear1(x)))": (
                "return x + self.linear2(torch.relu(self.linear1(x)))"
            )
        },
    ),
    # --- encoder block ---
    Misconception(
        name="post_ln_norm_before_the_sum",
        part="encoder",
        says="Your post-LN block normalises what the sub-layer returns and then adds x. In post-LN the norm is "
        "taken of the sum: LN(x + F(x)).",
        wrong={
            "self.norm1(x + self.attention(x, x, x, mask))": (
                "x + self.norm1(self.attention(x, x, x, mask))"
            ),
            "self.norm2(x + self.feed_forward(x))": "x + self.norm2(self.feed_forward(x))",
        },
    ),
    Misconception(
        name="post_ln_residual_from_the_normalised_input",
        part="encoder",
        says="Your post-LN block normalises its input first and adds the sub-layer to that. In post-LN F reads x as it "
        "came, and the norm comes after the sum.",
        wrong={
            "x = self.norm1(x + self.attention(x, x, x, mask))": (
                "x = self.norm1(x); x = x + self.attention(x, x, x, mask); x = self.norm2(x)"
            ),
            "return self.norm2(x + self.feed_forward(x))": "return x + self.feed_forward(x)",
        },
    ),
    Misconception(
        name="pre_ln_residual_from_the_normalised_input",
        part="encoder",
        says="Your pre-LN block adds the sub-layer to the normalised x. The sum keeps x as it was; only the sub-layer "
        "reads the normalised one.",
        wrong={
            "x = x + self.attention(normed, normed, normed, mask)": (
                "x = normed + self.attention(normed, normed, normed, mask)"
            ),
            "return x + self.feed_forward(self.norm2(x))": (
                "x = self.norm2(x); return x + self.feed_forward(x)"
            ),
        },
    ),
    Misconception(
        name="pre_ln_normalises_queries_only",
        part="encoder",
        says="In your pre-LN block only the queries are normalised. Queries, keys and values are all norm1(x).",
        wrong={
            "self.attention(normed, normed, normed, mask)": "self.attention(normed, x, x, mask)",
        },
    ),
    Misconception(
        name="norm_first_ignored",
        part="encoder",
        says="Your block is post-LN also when norm_first is true.",
        wrong={"if self.norm_first:": "if False:"},
    ),
    Misconception(
        name="norm_first_inverted",
        part="encoder",
        says="Your block is pre-LN by default and post-LN with norm_first: the two are exchanged.",
        wrong={"if self.norm_first:": "if not self.norm_first:"},
    ),
    Misconception(
        name="no_residual",
        part="encoder",
        says="Your sub-layers replace x; nothing is added. Each passes on x + F(x).",
        wrong={
            "x = x + self.attention(normed, normed, normed, mask)": (
                "x = self.attention(normed, normed, normed, mask)"
            ),
            "return x + self.feed_forward(self.norm2(x))": "return self.feed_forward(self.norm2(x))",
            "self.norm1(x + self.attention(x, x, x, mask))": (
                "self.norm1(self.attention(x, x, x, mask))"
            ),
            "self.norm2(x + self.feed_forward(x))": "self.norm2(self.feed_forward(x))",
        },
    ),
    Misconception(
        name="one_norm_for_both",
        part="encoder",
        says="Your block uses norm1 for both sub-layers. Each has a norm of its own; norm2 gets no gradient.",
        wrong={
            "self.feed_forward(self.norm2(x))": "self.feed_forward(self.norm1(x))",
            "self.norm2(x + self.feed_forward(x))": "self.norm1(x + self.feed_forward(x))",
        },
    ),
    Misconception(
        name="encoder_mask_forgotten",
        part="encoder",
        says="Your block takes a mask and does not hand it to the attention: real positions see the padding.",
        wrong={
            "self.attention(normed, normed, normed, mask)": "self.attention(normed, normed, normed)",
            "self.attention(x, x, x, mask)": "self.attention(x, x, x)",
        },
    ),
    Misconception(
        name="encoder_is_causal",
        part="encoder",
        says="Your encoder block hides later positions. Only the decoder is causal: the whole source is known.",
        wrong={
            "if self.norm_first:": (
                "ones = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()\n"
                "        mask = ones if mask is None else mask & ones\n"
                "        if self.norm_first:"
            )
        },
    ),
    # --- decoder block ---
    Misconception(
        name="decoder_attends_ahead",
        part="decoder",
        says="Your decoder's self-attention has no causal mask: each position sees the word it has to predict.",
        wrong={"dtype=torch.bool, device=x.device).tril()": "dtype=torch.bool, device=x.device)"},
    ),
    Misconception(
        name="decoder_attends_one_ahead",
        part="decoder",
        says="Your causal mask lets each position see the next one, which is the word it has to predict.",
        wrong={".tril()": ".tril(diagonal=1)"},
    ),
    Misconception(
        name="decoder_hides_itself",
        part="decoder",
        says="Your causal mask hides a position from itself; the first one then sees nothing at all. The diagonal "
        "may be attended.",
        wrong={".tril()": ".tril(diagonal=-1)"},
    ),
    Misconception(
        name="cross_attention_is_causal",
        part="decoder",
        says="Your cross-attention is causal too. The whole source is known from the start: only memory_mask limits it.",
        wrong={
            "if self.norm_first:": (
                "ahead = torch.ones(length, memory.shape[1], dtype=torch.bool, device=x.device).tril()\n"
                "        memory_mask = ahead if memory_mask is None else memory_mask & ahead\n"
                "        if self.norm_first:"
            )
        },
    ),
    Misconception(
        name="memory_normalised_again",
        part="decoder",
        says="Your pre-LN block normalises the memory with norm2. The norm is for the decoder's x; the memory is used "
        "as it came.",
        wrong={
            "self.cross_attention(self.norm2(x), memory, memory, memory_mask)": (
                "self.cross_attention("
                "self.norm2(x), self.norm2(memory), self.norm2(memory), memory_mask)"
            )
        },
    ),
    Misconception(
        name="cross_attention_looks_at_itself",
        part="decoder",
        says="Your cross-attention takes its keys and values from the decoder: the memory is never read, and the "
        "translation cannot depend on the source.",
        wrong={
            "self.cross_attention(self.norm2(x), memory, memory, memory_mask)": (
                "self.cross_attention(self.norm2(x), self.norm2(x), self.norm2(x))"
            ),
            "self.cross_attention(x, memory, memory, memory_mask)": (
                "self.cross_attention(x, x, x)"
            ),
        },
    ),
    Misconception(
        name="memory_asks",
        part="decoder",
        says="In your cross-attention the memory asks and the decoder answers. Queries come from the decoder; keys and "
        "values are the memory.",
        wrong={
            "self.cross_attention(self.norm2(x), memory, memory, memory_mask)": (
                "self.cross_attention(memory, self.norm2(x), self.norm2(x))"
            ),
            "self.cross_attention(x, memory, memory, memory_mask)": (
                "self.cross_attention(memory, x, x)"
            ),
        },
    ),
    Misconception(
        name="memory_mask_forgotten",
        part="decoder",
        says="Your block takes a memory mask and does not use it: the decoder sees the padding of the source.",
        wrong={
            "self.cross_attention(self.norm2(x), memory, memory, memory_mask)": (
                "self.cross_attention(self.norm2(x), memory, memory)"
            ),
            "self.cross_attention(x, memory, memory, memory_mask)": (
                "self.cross_attention(x, memory, memory)"
            ),
        },
    ),
    Misconception(
        name="cross_attention_without_residual",
        part="decoder",
        says="Your cross-attention replaces x; it should be added to it. What the decoder has written is lost there.",
        wrong={
            "x = x + self.cross_attention(": "x = self.cross_attention(",
            "self.norm2(x + self.cross_attention(": "self.norm2(self.cross_attention(",
        },
    ),
    Misconception(
        name="cross_attention_first",
        part="decoder",
        says="Your decoder block looks at the memory first and at itself second. Self-attention comes first.",
        wrong={
            "x = x + self.self_attention(normed, normed, normed, causal)": "pass",
            "x = x + self.cross_attention(self.norm2(x), memory, memory, memory_mask)": (
                "x = x + self.cross_attention(self.norm2(x), memory, memory, memory_mask)\n"
                "            normed = self.norm1(x)\n"
                "            x = x + self.self_attention(normed, normed, normed, causal)"
            ),
            "x = self.norm1(x + self.self_attention(x, x, x, causal))": "pass",
            "x = self.norm2(x + self.cross_attention(x, memory, memory, memory_mask))": (
                "x = self.norm2(x + self.cross_attention(x, memory, memory, memory_mask))\n"
                "        x = self.norm1(x + self.self_attention(x, x, x, causal))"
            ),
        },
    ),
    # --- Transformer ---
    Misconception(
        name="no_root_of_d_model",
        part="transformer",
        says="Your embeddings are not multiplied by √d_model: at the start they drown beside the position code.",
        wrong={"self.embedding(tokens) * math.sqrt(self.d_model)": "self.embedding(tokens)"},
    ),
    Misconception(
        name="divided_by_the_root",
        part="transformer",
        says="Your embeddings are divided by √d_model, as scores of attention are by √d_k. Embeddings are multiplied.",
        wrong={"* math.sqrt(self.d_model)": "/ math.sqrt(self.d_model)"},
    ),
    Misconception(
        name="positions_scaled_too",
        part="transformer",
        says="Your position code is multiplied by √d_model with the embedding. The root is for the embedding alone.",
        wrong={
            "embedded + sinusoidal_positions(tokens.shape[1], self.d_model).to(embedded)": (
                "embedded + math.sqrt(self.d_model)"
                " * sinusoidal_positions(tokens.shape[1], self.d_model).to(embedded)"
            )
        },
    ),
    Misconception(
        name="no_positions",
        part="transformer",
        says="Your model never adds the position code: to the encoder every order of the source is the same.",
        wrong={
            "return embedded + sinusoidal_positions(tokens.shape[1], self.d_model).to(embedded)": (
                "return embedded"
            )
        },
    ),
    Misconception(
        name="embedding_starts_large",
        part="transformer",
        says="Your embedding starts with standard deviation 1, as nn.Embedding makes it. The logits are then √d_model "
        "times too large: draw it with 1/√d_model.",
        wrong={"nn.init.normal_(self.embedding.weight, std=d_model**-0.5)": "pass"},
    ),
    Misconception(
        name="untied_logits",
        part="transformer",
        says="Your logits have a matrix of their own. In §3.4 they use the embedding's, transposed.",
        wrong={
            "self.d_model, self.pad_id = d_model, pad_id": (
                "self.d_model, self.pad_id = d_model, pad_id\n"
                "        self.output_proj = nn.Linear(d_model, vocab_size, bias=False)"
            ),
            "self.decoder_norm(x) @ self.embedding.weight.T": "self.output_proj(self.decoder_norm(x))",
        },
    ),
    Misconception(
        name="logits_are_probabilities",
        part="transformer",
        says="Your model returns probabilities: it ends in a softmax, and cross_entropy would take a second one. "
        "Return the logits.",
        wrong={
            "return self.decoder_norm(x) @ self.embedding.weight.T": (
                "return (self.decoder_norm(x) @ self.embedding.weight.T).softmax(dim=-1)"
            )
        },
    ),
    Misconception(
        name="encoder_sees_padding",
        part="transformer",
        says="Your encoder blocks get no padding mask: a sentence's memory changes with the padding after it.",
        wrong={"x = block(x, real)": "x = block(x)"},
    ),
    Misconception(
        name="decoder_sees_padding",
        part="transformer",
        says="Your cross-attention gets no padding mask: the logits change with the padding of the source.",
        wrong={"x = block(x, memory, real)": "x = block(x, memory)"},
    ),
    Misconception(
        name="pad_id_is_always_zero",
        part="transformer",
        says="Your padding mask looks for token 0. Which token is padding is said by pad_id.",
        wrong={
            "self.d_model, self.pad_id = d_model, pad_id": "self.d_model, self.pad_id = d_model, 0"
        },
    ),
    Misconception(
        name="layers_share_their_weights",
        part="transformer",
        says="Your stack is one block repeated ([block] * num_layers): all layers share their weights. Make a new block "
        "for each layer.",
        wrong={
            "nn.ModuleList(EncoderBlock(*sizes) for _ in range(num_layers))": (
                "nn.ModuleList([EncoderBlock(*sizes)] * num_layers)"
            ),
            "nn.ModuleList(DecoderBlock(*sizes) for _ in range(num_layers))": (
                "nn.ModuleList([DecoderBlock(*sizes)] * num_layers)"
            ),
        },
    ),
    Misconception(
        name="memory_of_the_embedded_source",
        part="transformer",
        says="Your memory is the embedded source: the encoder's blocks run and their result is not passed on.",
        wrong={"x = block(x, real)": "block(x, real)"},
    ),
    Misconception(
        name="no_final_norm",
        part="transformer",
        says="Your pre-LN stacks end without their final layer norm, so the sum leaves them as large as it grew.",
        wrong={
            "return self.encoder_norm(x)": "return x + 0 * self.encoder_norm(x)",
            "self.decoder_norm(x) @": "(x + 0 * self.decoder_norm(x)) @",
        },
    ),
    Misconception(
        name="final_norm_in_post_ln",
        part="transformer",
        says="Your post-LN stacks end with a layer norm of their own. Their last block has normalised its output already; "
        "the final norm belongs to pre-LN.",
        wrong={
            "self.encoder_norm = LayerNorm(d_model) if norm_first else nn.Identity()": (
                "self.encoder_norm = LayerNorm(d_model)"
            ),
            "self.decoder_norm = LayerNorm(d_model) if norm_first else nn.Identity()": (
                "self.decoder_norm = LayerNorm(d_model)"
            ),
        },
    ),
]

EQUIVALENT = [
    Equivalent(
        part="positions",
        before="position = torch.arange(length, dtype=torch.float64)",
        after="position = torch.arange(length)",
        because="A product of integers with the frequencies, which are float64, is float64.",
    ),
    Equivalent(
        part="positions",
        before="frequency = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)",
        after="frequency = 10000.0 ** (-torch.arange(0, d_model, 2) / d_model)",
        because="float32 is precise enough: the angles of a few dozen positions are off by less than the tolerance.",
    ),
    Equivalent(
        part="decoder",
        before="causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()",
        after="causal = torch.ones(length, length, dtype=torch.bool).tril()",
        because="On the CPU there is one device. On a GPU the tests notice it.",
    ),
    Equivalent(
        part="transformer",
        before="return embedded + sinusoidal_positions(tokens.shape[1], self.d_model).to(embedded)",
        after="return embedded + sinusoidal_positions(tokens.shape[1], self.d_model)",
        because="A sum with float32 positions has the dtype of the embedding, float32 or float64; and on the CPU there is one device.",
    ),
]


def _positions(answers: ModuleType, rng: torch.Generator) -> object:
    length, pairs = torch.randint(1, 17, (2,), generator=rng).tolist()
    return answers.sinusoidal_positions(length, 2 * pairs)


def _decoder(answers: ModuleType, rng: torch.Generator) -> object:
    torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
    block = answers.DecoderBlock(4, 2, 6).double()
    source, length = torch.randint(1, 5, (2,), generator=rng).tolist()
    x, memory = (torch.randn(1, n, 4, generator=rng, dtype=torch.float64) for n in (length, source))
    return block(x, memory)


def _transformer(answers: ModuleType, rng: torch.Generator) -> object:
    torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
    model = answers.Transformer(7, 4, 2, 6, 1)
    model = model.double() if torch.randint(2, (), generator=rng) else model
    return model.embed(torch.randint(7, (2, 5), generator=rng))


EXAMPLES = {"positions": _positions, "decoder": _decoder, "transformer": _transformer}
