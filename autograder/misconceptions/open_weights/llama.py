"""Wrong answers to the exercise on LLaMA."""

import json
from types import ModuleType

import torch
from safetensors.torch import save

from autograder.misconceptions import Equivalent, Misconception

WIDE = "wide = x.to(torch.promote_types(x.dtype, torch.float32))"
ROOT_MEAN_SQUARE = "torch.sqrt(wide.square().mean(dim=-1, keepdim=True) + eps)"
SCALED = "weight * (wide / root).to(x.dtype)"
GATED = "F.silu(x @ gate_proj.T) * (x @ up_proj.T)"
ANGLES = "angles = positions[:, None] * base**-exponents"
TURNED = "a * cos - c * sin, a * sin + c * cos"
INTERLEAVED = 'if layout == "interleaved":\n        a, c ='
TO_HALVES = '"(heads pair two) ... -> (heads two pair) ..."'
TO_INTERLEAVED = '"(heads two pair) ... -> (heads pair two) ..."'
POSITIONS = "torch.arange(past, past + x.shape[1], device=x.device)"
SHARED = "(t.repeat_interleave(self.group, dim=1) for t in (k, v))"
ATTENTION = "F.scaled_dot_product_attention(q, shared_k, shared_v, attn_mask=mask)"
ROTATED_KEYS = "k = apply_rope(k, positions, self.rope_base, self.layout)"
CONFIG_HEADS = """            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.rope_theta,
            layout,"""
OUTPUT = "return x + self.mlp(self.post_attention_layernorm(x)), cache"
LOGITS = "return x @ (self.lm_head or self.embed_tokens).weight.T, seen"
BLOCK_CALL = "block(x, cache[i] if cache else None)"
PERMUTED_KEYS = "halves_to_interleaved(tensor, config.num_key_value_heads)"
LAYERS = 'sum(name.endswith("mlp.gate_proj.weight") for name in shapes)'
GROUP = 'query_rows // shapes[f"{first}self_attn.k_proj.weight"][0]'
MISSING = 'raise ValueError(f"{in_file} is missing")'

MISCONCEPTIONS = [
    # --- norm ---
    Misconception(
        name="mean_subtracted",
        part="norm",
        says="Your RMSNorm subtracts the mean: that is layer norm. RMSNorm divides by the root of the mean square and "
        "leaves the mean where it is.",
        wrong={WIDE: f"{WIDE}\n    wide = wide - wide.mean(dim=-1, keepdim=True)"},
    ),
    Misconception(
        name="eps_outside_the_root",
        part="norm",
        says="Your eps is added to the root. It is added to the mean of the squares, under the root.",
        wrong={ROOT_MEAN_SQUARE: "torch.sqrt(wide.square().mean(dim=-1, keepdim=True)) + eps"},
    ),
    Misconception(
        name="eps_forgotten",
        part="norm",
        says="Your RMSNorm leaves out eps: a vector of zeros gives NaN, and small ones come out too large.",
        wrong={ROOT_MEAN_SQUARE: "torch.sqrt(wide.square().mean(dim=-1, keepdim=True))"},
    ),
    Misconception(
        name="sum_of_squares",
        part="norm",
        says="Your RMSNorm divides by the length of the vector, the root of the *sum* of the squares. It is their mean.",
        wrong={ROOT_MEAN_SQUARE: "torch.sqrt(wide.square().sum(dim=-1, keepdim=True) + eps)"},
    ),
    Misconception(
        name="no_root",
        part="norm",
        says="Your RMSNorm divides by the mean square itself. Take its root.",
        wrong={ROOT_MEAN_SQUARE: "wide.square().mean(dim=-1, keepdim=True) + eps"},
    ),
    Misconception(
        name="mean_over_everything",
        part="norm",
        says="Your mean of the squares runs over all positions and sequences. It is that of one vector, the last "
        "dimension.",
        wrong={ROOT_MEAN_SQUARE: "torch.sqrt(wide.square().mean() + eps)"},
    ),
    Misconception(
        name="weight_plus_one",
        part="norm",
        says="Your scale is 1 + weight, as in Gemma. LLaMA multiplies by weight itself, which starts at ones.",
        wrong={SCALED: "(1 + weight) * (wide / root).to(x.dtype)"},
    ),
    Misconception(
        name="half_precision_squares",
        part="norm",
        says="Your squares are computed in the type of x. In float16 they overflow above 65,504 and vanish when small: "
        "compute them in float32.",
        wrong={WIDE: "wide = x"},
    ),
    Misconception(
        name="silu_on_the_up_branch",
        part="norm",
        says="Your SiLU is on the up branch. It belongs to the gate.",
        wrong={GATED: "(x @ gate_proj.T) * F.silu(x @ up_proj.T)"},
    ),
    Misconception(
        name="sigmoid_gate",
        part="norm",
        says="Your gate is a sigmoid: that is the plain GLU. SiLU is z times the sigmoid of z.",
        wrong={GATED: "torch.sigmoid(x @ gate_proj.T) * (x @ up_proj.T)"},
    ),
    Misconception(
        name="gelu_gate",
        part="norm",
        says="Your gate is a GELU: that is GEGLU. SwiGLU's gate is SiLU, z·σ(z).",
        wrong={GATED: "F.gelu(x @ gate_proj.T) * (x @ up_proj.T)"},
    ),
    Misconception(
        name="silu_of_the_product",
        part="norm",
        says="Your SiLU is taken of the product of the two branches. It is taken of the gate alone, before the product.",
        wrong={GATED: "F.silu((x @ gate_proj.T) * (x @ up_proj.T))"},
    ),
    # --- rope ---
    Misconception(
        name="layouts_swapped",
        part="rope",
        says='Your two layouts are swapped: "interleaved" pairs neighbours, 2j and 2j+1 (the paper, Meta\'s code), '
        '"halves" pairs j and j + head_dim/2 (Hugging Face).',
        wrong={
            'if layout == "interleaved":\n        a, c = x[..., ::2], x[..., 1::2]\n    elif layout == "halves":': (
                'if layout == "halves":\n        a, c = x[..., ::2], x[..., 1::2]\n    elif layout == "interleaved":'
            ),
            'if layout == "interleaved":\n        return': 'if layout == "halves":\n        return',
        },
    ),
    Misconception(
        name="always_halves",
        part="rope",
        says="Your function pairs feature j with j + head_dim/2 in both layouts. Interleaved pairs are neighbours.",
        wrong={
            "a, c = x[..., ::2], x[..., 1::2]": "a, c = x.chunk(2, dim=-1)",
            "return torch.stack(turned, dim=-1).flatten(start_dim=-2)": "return torch.cat(turned, dim=-1)",
        },
    ),
    Misconception(
        name="pairs_not_put_back",
        part="rope",
        says="Your interleaved pairs are taken apart and not put back: all first members come out before all second "
        "ones. Each goes back to the place it came from.",
        wrong={
            "return torch.stack(turned, dim=-1).flatten(start_dim=-2)": "return torch.cat(turned, dim=-1)"
        },
    ),
    Misconception(
        name="frequencies_of_neighbours_in_halves",
        part="rope",
        says="In the halved layout your angles are laid out for interleaved pairs: features j and j + head_dim/2 make a "
        "pair and must be turned by one angle, number j.",
        wrong={
            "return torch.cat(turned, dim=-1)": (
                "cos, sin = (t.repeat_interleave(2, dim=-1) for t in (cos, sin))\n"
                "    return x * cos + torch.cat([-c, a], dim=-1) * sin"
            )
        },
    ),
    Misconception(
        name="positions_ignored",
        part="rope",
        says="Your rotation counts 0, 1, 2, … whatever positions says. With a cache, positions start later.",
        wrong={
            ANGLES: "angles = torch.arange(length, device=x.device)[:, None] * base**-exponents"
        },
    ),
    Misconception(
        name="positions_from_one",
        part="rope",
        says="Your angles are those of the next position: nothing is turned at position 0.",
        wrong={ANGLES: "angles = (positions[:, None] + 1) * base**-exponents"},
    ),
    Misconception(
        name="base_ignored",
        part="rope",
        says="Your base is 10,000 whatever is asked for. It is an argument, rope_theta in config.json.",
        wrong={ANGLES: "angles = positions[:, None] * 10000.0**-exponents"},
    ),
    Misconception(
        name="exponent_counts_pairs",
        part="rope",
        says="Your exponent is j/head_dim. It is 2j/head_dim for pair j: from 0 to nearly 1.",
        wrong={ANGLES: "angles = positions[:, None] * base ** (-exponents / 2)"},
    ),
    Misconception(
        name="frequencies_grow",
        part="rope",
        says="Your frequencies grow with j, base^(+2j/head_dim). They fall: the exponent is negative.",
        wrong={ANGLES: "angles = positions[:, None] * base**exponents"},
    ),
    Misconception(
        name="turned_backwards",
        part="rope",
        says="Your rotation turns the other way: (a, c) becomes (a·cos − c·sin, a·sin + c·cos).",
        wrong={TURNED: "a * cos + c * sin, c * cos - a * sin"},
    ),
    Misconception(
        name="reflected",
        part="rope",
        says="Your second component has a minus too many: a·sin + c·cos. As it is the pair is reflected, not turned.",
        wrong={TURNED: "a * cos - c * sin, a * sin - c * cos"},
    ),
    Misconception(
        name="angles_in_half_precision",
        part="rope",
        says="Your angles are computed in the type of x. bfloat16 has no number between 1000 and 1004, so late positions "
        "coincide: compute angles, sines and cosines in float32.",
        wrong={
            ANGLES: "angles = positions[:, None].to(x.dtype) * (base**-exponents).to(x.dtype)",
        },
    ),
    Misconception(
        name="permutations_swapped",
        part="rope",
        says="Your two permutations are swapped. To the halves: the even rows of each head first, then the odd ones.",
        wrong={
            TO_HALVES: TO_INTERLEAVED.replace("->", " ->"),  # not the text of the next line
            TO_INTERLEAVED: TO_HALVES,
        },
    ),
    Misconception(
        name="permuted_across_heads",
        part="rope",
        says="Your permutation runs over all rows at once and mixes the heads. It stays within each head.",
        wrong={
            TO_HALVES: '"(pair two heads) ... -> (two pair heads) ..."',
            TO_INTERLEAVED: '"(two pair heads) ... -> (pair two heads) ..."',
        },
    ),
    # --- attention ---
    Misconception(
        name="kv_heads_tiled",
        part="attention",
        says="Your key-value heads are repeated as a whole, 0 1 0 1. Neighbouring query heads share one: 0 0 1 1.",
        wrong={SHARED: "(t.repeat(1, self.group, 1, 1) for t in (k, v))"},
    ),
    Misconception(
        name="repeated_heads_cached",
        part="attention",
        says="Your cache keeps a copy of the keys and values for every query head: then sharing them saves nothing. "
        "Repeat them for the product only.",
        wrong={
            "        if cache is not None:": (
                "        k, v = (torch.repeat_interleave(t, self.group, dim=1) for t in (k, v))\n"
                "        if cache is not None:"
            ),
            SHARED: "(k, v)",
        },
    ),
    Misconception(
        name="positions_restart",
        part="attention",
        says="Your positions start again at 0 in each call. With a cache they go on where it ends.",
        wrong={POSITIONS: "torch.arange(x.shape[1], device=x.device)"},
    ),
    Misconception(
        name="cached_keys_rotated_again",
        part="attention",
        says="Your cached keys are rotated once more with every call. They were rotated when they came; only new keys are.",
        wrong={
            f"        {ROTATED_KEYS}\n": "",
            "        # The last query stands": (
                "        k = apply_rope(\n"
                "            k, torch.arange(k.shape[2], device=x.device), self.rope_base, self.layout\n"
                "        )\n"
                "        # The last query stands"
            ),
        },
    ),
    Misconception(
        name="no_rotation",
        part="attention",
        says="Your attention does not know any positions: rotate queries and keys after their projections.",
        wrong={
            f"        {ROTATED_KEYS}\n": "",
            "        q = apply_rope(q, positions, self.rope_base, self.layout)\n": "",
        },
    ),
    Misconception(
        name="keys_not_rotated",
        part="attention",
        says="Your attention rotates the queries alone. Keys are rotated too, each by its own position: then the score "
        "depends on the distance.",
        wrong={f"        {ROTATED_KEYS}\n": ""},
    ),
    Misconception(
        name="values_rotated",
        part="attention",
        says="Your values are rotated. Positions belong in the scores, so queries and keys alone are.",
        wrong={
            ROTATED_KEYS: f"{ROTATED_KEYS}\n        {ROTATED_KEYS.replace('k', 'v').replace('velf', 'self')}"
        },
    ),
    Misconception(
        name="scaled_by_the_width",
        part="attention",
        says="Your scores are divided by the root of the model's width. It is the width of a head, √head_dim.",
        wrong={
            ATTENTION: "F.scaled_dot_product_attention(\n"
            "            q, shared_k, shared_v, attn_mask=mask, scale=x.shape[-1] ** -0.5\n        )"
        },
    ),
    Misconception(
        name="not_causal",
        part="attention",
        says="Your attention looks into the future: it has no causal mask.",
        wrong={ATTENTION: "F.scaled_dot_product_attention(q, shared_k, shared_v)"},
    ),
    Misconception(
        name="mask_from_the_upper_left",
        part="attention",
        says="With a cache your mask counts from the upper left corner and hides what was read before. Its triangle "
        "counts from the lower right one.",
        wrong={".tril(past)": ".tril()"},
    ),
    Misconception(
        name="base_not_handed_on",
        part="attention",
        says="Your attention rotates with the base 10,000 whatever rope_base says.",
        wrong={
            "self.head_dim, self.rope_base, self.layout = head_dim, rope_base, layout": (
                "self.head_dim, self.rope_base, self.layout = head_dim, 10000.0, layout"
            )
        },
    ),
    Misconception(
        name="heads_share_by_default",
        part="attention",
        says="Your attention takes the first key-value head for all query heads, as multi-query attention does. Query "
        "head i takes number i // group.",
        wrong={SHARED: "(t[:, :1].expand(-1, q.shape[1], -1, -1) for t in (k, v))"},
    ),
    # --- model ---
    Misconception(
        name="final_norm_skipped",
        part="model",
        says="Your model lacks the last norm: the logits are made from the normalised sum.",
        wrong={"        x = self.norm(x)\n": ""},
    ),
    Misconception(
        name="norm_after",
        part="model",
        says="Your block normalises after the sub-layers (post-norm, as in 2017). LLaMA normalises what goes into them, "
        "and the sum keeps the x that was not normalised.",
        wrong={
            "attended, cache = self.self_attn(self.input_layernorm(x), cache)": (
                "attended, cache = self.self_attn(x, cache)"
            ),
            "x = x + attended": "x = self.input_layernorm(x + attended)",
            OUTPUT: "return self.post_attention_layernorm(x + self.mlp(x)), cache",
        },
    ),
    Misconception(
        name="residual_from_the_normalised",
        part="model",
        says="Your sum adds the sub-layer's output to the normalised x. The sum keeps the x that was not normalised.",
        wrong={
            "attended, cache = self.self_attn(self.input_layernorm(x), cache)": (
                "x = self.input_layernorm(x)\n        attended, cache = self.self_attn(x, cache)"
            ),
            OUTPUT: ("x = self.post_attention_layernorm(x)\n        return x + self.mlp(x), cache"),
        },
    ),
    Misconception(
        name="parallel_block",
        part="model",
        says="Your feed-forward network reads what the attention read, as in GPT-J. In LLaMA it comes after the attention "
        "and reads the sum with the attention's output in it.",
        wrong={
            "x = x + attended\n        return x + self.mlp(self.post_attention_layernorm(x)), cache": (
                "return x + attended + self.mlp(self.post_attention_layernorm(x)), cache"
            )
        },
    ),
    Misconception(
        name="norms_swapped",
        part="model",
        says="Your block uses its two norms the wrong way round: input_layernorm comes before the attention, "
        "post_attention_layernorm after the attention, before the feed-forward network.",
        wrong={
            "self.self_attn(self.input_layernorm(x), cache)": "self.self_attn(self.post_attention_layernorm(x), cache)",
            OUTPUT: "return x + self.mlp(self.input_layernorm(x)), cache",
        },
    ),
    Misconception(
        name="embedding_scaled",
        part="model",
        says="Your embedding is multiplied by the root of the width, as in 2017. LLaMA takes it as it is.",
        wrong={
            "x = self.embed_tokens(tokens)": (
                "x = self.embed_tokens(tokens) * math.sqrt(self.embed_tokens.embedding_dim)"
            )
        },
    ),
    Misconception(
        name="always_tied",
        part="model",
        says="Your logits come from the embedding even where the model has an lm_head of its own.",
        wrong={LOGITS: "return x @ self.embed_tokens.weight.T, seen"},
    ),
    Misconception(
        name="eps_of_the_config_ignored",
        part="model",
        says="Your norms use eps = 1e-5 whatever the configuration says. It is rms_norm_eps there.",
        wrong={
            "self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)": (
                "self.input_layernorm = RMSNorm(config.hidden_size, 1e-5)"
            ),
            "self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)": (
                "self.post_attention_layernorm = RMSNorm(config.hidden_size, 1e-5)"
            ),
            "self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)": (
                "self.norm = RMSNorm(config.hidden_size, 1e-5)"
            ),
        },
    ),
    Misconception(
        name="theta_of_the_config_ignored",
        part="model",
        says="Your model rotates with the base 10,000 whatever rope_theta is.",
        wrong={CONFIG_HEADS: CONFIG_HEADS.replace("config.rope_theta", "10000.0")},
    ),
    Misconception(
        name="layout_not_handed_on",
        part="model",
        says="Your blocks pair the features in halves whatever layout was asked for.",
        wrong={CONFIG_HEADS: CONFIG_HEADS.replace("layout", '"halves"')},
    ),
    Misconception(
        name="one_cache_for_all_blocks",
        part="model",
        says="Every block of your model gets the cache of the first one. Block i gets cache i.",
        wrong={BLOCK_CALL: "block(x, cache[0] if cache else None)"},
    ),
    Misconception(
        name="cache_list_changed",
        part="model",
        says="Your step writes into the list it was handed as the cache: a second continuation of the same beginning "
        "then starts from the first one's end. Make a new list.",
        wrong={
            "seen = []": "seen = cache if cache else [None] * len(self.layers)",
            BLOCK_CALL: "block(x, seen[i])",
            "seen.append(keys_values)": "seen[i] = keys_values",
        },
    ),
    # --- safetensors ---
    Misconception(
        name="offsets_from_the_start",
        part="safetensors",
        says="Your offsets count from the start of the file. They count from the end of the header.",
        wrong={
            "if start + end > len(data):": "if end > len(data):",
            "data[start + begin : start + end]": "data[begin:end]",
        },
    ),
    Misconception(
        name="offsets_from_the_headers_start",
        part="safetensors",
        says="Your offsets are 8 bytes off: the number before the header has a length too.",
        wrong={"data[start + begin : start + end]": "data[start - 8 + begin : start - 8 + end]"},
    ),
    Misconception(
        name="columns_first",
        part="safetensors",
        says="Your tensors are filled column by column. The last dimension runs fastest.",
        wrong={
            ".reshape(shape)": ".reshape(shape[::-1]).permute(*range(len(shape))[::-1])",
        },
    ),
    Misconception(
        name="order_of_the_header",
        part="safetensors",
        says="Your reader takes the tensors one after the other in the order of the header. Where each lies is said by its "
        "offsets alone.",
        wrong={
            "tensors = {}": "tensors, at = {}, start",
            "part = bytearray(data[start + begin : start + end])": (
                "part = bytearray(data[at : at + end - begin])\n        at += end - begin"
            ),
        },
    ),
    Misconception(
        name="everything_float32",
        part="safetensors",
        says="Your tensors are all float32. Each has the type that the header says.",
        wrong={".reshape(shape)": ".reshape(shape).float()"},
    ),
    Misconception(
        name="cut_off_unnoticed",
        part="safetensors",
        says="Your reader does not check that the file reaches as far as a tensor's offsets: a broken download then gives "
        "an obscure error, or none.",
        wrong={"if start + end > len(data):": "if False:"},
    ),
    Misconception(
        name="bfloat16_as_float16",
        part="safetensors",
        says="Your BF16 is read as float16. They have the same size and divide their bits differently.",
        wrong={
            'dtype, shape = DTYPES[entry["dtype"]]': (
                'dtype, shape = {**DTYPES, "BF16": torch.float16}[entry["dtype"]]'
            )
        },
    ),
    # --- loading ---
    Misconception(
        name="one_kv_head_by_default",
        part="loading",
        says="Without num_key_value_heads you take one. The field is absent from files written when every head had its "
        "own: the default is num_attention_heads.",
        wrong={'given.get("num_key_value_heads", heads)': 'given.get("num_key_value_heads", 1)'},
    ),
    Misconception(
        name="head_dim_always_the_quotient",
        part="loading",
        says="You compute head_dim from the width even where the file says it. Heads need not share the width.",
        wrong={
            'given.get("head_dim", given["hidden_size"] // heads)': 'given["hidden_size"] // heads'
        },
    ),
    Misconception(
        name="base_in_rope_parameters_ignored",
        part="loading",
        says="You look for rope_theta at the top of config.json alone. Newer files have it inside rope_parameters.",
        wrong={
            'rope.get("rope_theta", given.get("rope_theta", 10000.0))': 'given.get("rope_theta", 10000.0)'
        },
    ),
    Misconception(
        name="none_is_a_value",
        part="loading",
        says="A field that is None (null in the file) stands for an absent one: it has its default.",
        wrong={
            " if value is not None}": (
                ' if value is not None or name in ("num_key_value_heads", "head_dim")}'
            )
        },
    ),
    Misconception(
        name="scaled_positions_accepted",
        part="loading",
        says="You ignore that the rotary positions are scaled (rope_scaling, or a rope_type other than default). The "
        "model would run and be wrong.",
        wrong={
            'if "rope_scaling" in given or rope.get("rope_type", "default") != "default":': "if False:"
        },
    ),
    Misconception(
        name="missing_tensors_left_at_random",
        part="loading",
        says="What your loader does not find stays at its random start, as with strict=False. A missing tensor must be "
        "an error that names it.",
        wrong={
            MISSING: "continue",
            "model.load_state_dict(weights)": "model.load_state_dict(weights, strict=False)",
        },
    ),
    Misconception(
        name="unknown_tensors_skipped",
        part="loading",
        says="Your loader skips tensors that the model has no place for. They say that it is another model: name one.",
        wrong={
            'if not name.endswith("rotary_emb.inv_freq"):': "if False:",
        },
    ),
    Misconception(
        name="keys_permuted_by_query_heads",
        part="loading",
        says="You permute k_proj with the number of query heads. Its rows are those of the key-value heads.",
        wrong={
            PERMUTED_KEYS: (
                "halves_to_interleaved(\n                tensor, math.gcd(config.num_attention_heads, len(tensor) // 2)\n"
                "            )"
            )
        },
    ),
    Misconception(
        name="not_permuted",
        part="loading",
        says="For the interleaved layout you load q_proj and k_proj as they are in the file. The file is for the halves: "
        "permute their rows.",
        wrong={
            'if layout == "interleaved" and name.endswith("q_proj.weight"):': "if False:",
            'if layout == "interleaved" and name.endswith("k_proj.weight"):': "if False:",
        },
    ),
    Misconception(
        name="values_permuted",
        part="loading",
        says="You permute v_proj too. Values are not rotated, and o_proj expects them as they are.",
        wrong={
            'name.endswith("k_proj.weight"):': 'name.endswith(("k_proj.weight", "v_proj.weight")):'
        },
    ),
    Misconception(
        name="permuted_the_wrong_way",
        part="loading",
        says="You permute with interleaved_to_halves. The file is for the halves and the model is to be interleaved.",
        wrong={
            "halves_to_interleaved(tensor, config.num_attention_heads)": (
                "interleaved_to_halves(tensor, config.num_attention_heads)"
            ),
            PERMUTED_KEYS: "interleaved_to_halves(tensor, config.num_key_value_heads)",
        },
    ),
    Misconception(
        name="first_shard_alone",
        part="loading",
        says="You read one of the files that the index names. The tensors are spread over all of them.",
        wrong={
            'in set(json.loads(files[index])["weight_map"].values()):': (
                'in list(json.loads(files[index])["weight_map"].values())[:1]:'
            )
        },
    ),
    Misconception(
        name="names_of_the_module",
        part="loading",
        says="Your message has the name of the parameter in your module. Say the name that the tensor has in the file, "
        "with model. before it.",
        wrong={MISSING: 'raise ValueError(f"{name} is missing")'},
    ),
    Misconception(
        name="last_layer_by_spelling",
        part="loading",
        says="You compare the numbers of the layers as text, in which 9 comes after 10.",
        wrong={LAYERS: '1 + int(max(name.split(".")[2] for name in shapes if ".layers." in name))'},
    ),
    Misconception(
        name="last_layer_is_the_number",
        part="loading",
        says="You take the number of the last layer for their count. They count from 0.",
        wrong={LAYERS: 'max(int(name.split(".")[2]) for name in shapes if ".layers." in name)'},
    ),
    Misconception(
        name="width_from_the_queries",
        part="loading",
        says="You take the rows of q_proj for the width of the model. They are heads times head_dim, which need not be "
        "the width: read it off the embedding.",
        wrong={"hidden_size=hidden_size": "hidden_size=query_rows"},
    ),
    Misconception(
        name="always_untied",
        part="loading",
        says="You say that every model has a head of its own. Without lm_head.weight in the file it is tied.",
        wrong={'"lm_head.weight" not in shapes': "False"},
    ),
]

ONE_DEVICE = "On the CPU there is one device. On a GPU the tests notice it."
SAME_LENGTH = "Keys and values in a cache are of the same positions."

EQUIVALENT = [
    Equivalent(
        part="norm",
        before="wide = x.to(torch.promote_types(x.dtype, torch.float32))",
        after="wide = x.to(torch.promote_types(torch.float32, x.dtype))",
        because="The type that holds both does not depend on their order.",
    ),
    Equivalent(
        part="rope",
        before="exponents = torch.arange(0, head_dim, 2, device=x.device) / head_dim",
        after="exponents = torch.arange(0, head_dim, 2) / head_dim",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="attention",
        before="positions = torch.arange(past, past + x.shape[1], device=x.device)",
        after="positions = torch.arange(past, past + x.shape[1])",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="attention",
        before="mask = torch.ones(x.shape[1], k.shape[2], dtype=torch.bool, device=x.device).tril(past)",
        after="mask = torch.ones(x.shape[1], k.shape[2], dtype=torch.bool).tril(past)",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="attention",
        before="past = 0 if cache is None else cache[0].shape[2]",
        after="past = 0 if cache is None else cache[1].shape[2]",
        because=SAME_LENGTH,
    ),
    Equivalent(
        part="attention",
        before="past = 0 if cache is None else cache[0].shape[2]",
        after="past = 0 if cache is None else cache[-1].shape[2]",
        because=SAME_LENGTH,
    ),
    Equivalent(
        part="safetensors",
        before="part = bytearray(data[start + begin:start + end])",
        after="part = data[start + begin:start + end]",
        because="The numbers are the same; torch warns that nothing may be written to them.",
    ),
    Equivalent(
        part="loading",
        before="for name in set(json.loads(files[index])['weight_map'].values()):",
        after="for name in json.loads(files[index])['weight_map'].values():",
        because="A file that is read several times gives the same tensors each time.",
    ),
]


def _norm(answers: ModuleType, rng: torch.Generator) -> object:
    x, weight = torch.randn(3, 4, generator=rng), torch.randn(4, generator=rng)
    gate, up = torch.randn(2, 5, 4, generator=rng)
    down = torch.randn(4, 5, generator=rng)
    return answers.rms_norm(x, weight, 0.1), answers.swiglu(x, gate, up, down)


def _rope(answers: ModuleType, rng: torch.Generator) -> object:
    heads, half = torch.randint(1, 4, (2,), generator=rng).tolist()
    x = torch.randn(2, 3, 2 * half, generator=rng)
    positions = torch.randint(30, (3,), generator=rng)
    weight = torch.randn(2 * half * heads, 3, generator=rng)
    return (
        answers.apply_rope(x, positions, 20.0, "interleaved"),
        answers.apply_rope(x, positions, 20.0, "halves"),
        answers.interleaved_to_halves(weight, heads),
        answers.halves_to_interleaved(weight, heads),
    )


def _filled(module: torch.nn.Module, rng: torch.Generator) -> torch.nn.Module:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=rng)
    return module.requires_grad_(requires_grad=False)


def _config(answers: ModuleType, rng: torch.Generator) -> object:
    layers, kv_heads, group = torch.randint(1, 3, (3,), generator=rng).tolist()
    tied = torch.rand((), generator=rng).item() < 0.5
    return answers.LlamaConfig(7, 6, 5, layers, kv_heads * group, kv_heads, 4, 0.1, 20.0, tied)


def _attention(answers: ModuleType, rng: torch.Generator) -> object:
    kv_heads, group = torch.randint(1, 4, (2,), generator=rng).tolist()
    layer = answers.GroupedQueryAttention(5, kv_heads * group, kv_heads, 4, 20.0, "halves")
    x = torch.randn(2, 5, 5, generator=rng)
    _filled(layer, rng)
    first, cache = layer(x[:, :3])
    second, cache = layer(x[:, 3:], cache)
    return first, second, *cache


def _model(answers: ModuleType, rng: torch.Generator) -> object:
    model = _filled(answers.Llama(_config(answers, rng), "interleaved"), rng)
    tokens = torch.randint(7, (2, 5), generator=rng)
    _, cache = model.step(tokens[:, :3])
    return model(tokens), model.step(tokens[:, 3:], cache)[0]


def _safetensors(answers: ModuleType, rng: torch.Generator) -> object:
    tensors = {"a": torch.randn(2, 3, generator=rng), "b": torch.randn(4, generator=rng).half()}
    read = answers.read_safetensors(save(tensors))
    return read["a"], read["b"]


def _loading(answers: ModuleType, rng: torch.Generator) -> object:
    config = _config(answers, rng)
    model = _filled(answers.Llama(config), rng)
    tensors = {
        name if name == "lm_head.weight" else f"model.{name}": value
        for name, value in model.state_dict().items()
    }
    fields = {"model_type": "llama", **vars(config)}
    places = {name: f"{i % 2}.safetensors" for i, name in enumerate(tensors)}
    files = {"config.json": json.dumps(fields).encode()}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
    for place in set(places.values()):
        files[place] = save({name: tensors[name] for name in tensors if places[name] == place})
    tokens = torch.randint(7, (1, 4), generator=rng)
    sizes = answers.dimensions({name: tuple(value.shape) for name, value in tensors.items()})
    return answers.load_llama(files, "interleaved")(tokens).detach(), tuple(sizes)


EXAMPLES = {
    "norm": _norm,
    "rope": _rope,
    "attention": _attention,
    "model": _model,
    "safetensors": _safetensors,
    "loading": _loading,
}
