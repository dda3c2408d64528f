"""GPT against Hugging Face's GPT-2: logits, cache, loss, greedy text and the classifier, on random small models."""

import math

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    set_seed,
)
from transformers import logging as transformers_logging

from autograder.loader import reference
from lab import generator

transformers_logging.set_verbosity_error()

CLOSE = {"rtol": 0.0, "atol": 1e-5}
VOCAB, BLOCK_SIZE = 23, 12
# (d_model, heads, layers)
SIZES = [(8, 2, 1), (12, 3, 2), (16, 1, 3), (6, 6, 2)]

# Hugging Face's name of each parameter of a block, by ours. Its Conv1D keeps a weight as inputs × outputs.
NAMES = {
    "norm1.weight": "ln_1.weight",
    "norm1.bias": "ln_1.bias",
    "attention.qkv_proj.weight": "attn.c_attn.weight",
    "attention.qkv_proj.bias": "attn.c_attn.bias",
    "attention.output_proj.weight": "attn.c_proj.weight",
    "attention.output_proj.bias": "attn.c_proj.bias",
    "norm2.weight": "ln_2.weight",
    "norm2.bias": "ln_2.bias",
    "linear1.weight": "mlp.c_fc.weight",
    "linear1.bias": "mlp.c_fc.bias",
    "linear2.weight": "mlp.c_proj.weight",
    "linear2.bias": "mlp.c_proj.bias",
}


@pytest.fixture
def gpt():
    return reference("pretraining", "gpt")


def config(d_model, heads, layers, **options):
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2Config(
        vocab_size=VOCAB,
        n_positions=BLOCK_SIZE,
        n_embd=d_model,
        n_head=heads,
        n_layer=layers,
        bos_token_id=None,
        eos_token_id=None,
        **dropouts,
        **options,
    )


def weights_of(transformer):
    """The weights of Hugging Face's model under our names."""
    theirs = transformer.state_dict()
    ours = {
        "token_embedding.weight": theirs["wte.weight"],
        "position_embedding.weight": theirs["wpe.weight"],
        "norm.weight": theirs["ln_f.weight"],
        "norm.bias": theirs["ln_f.bias"],
    }
    for i in range(transformer.config.n_layer):
        for one, other in NAMES.items():
            value = theirs[f"h.{i}.{other}"]
            linear = value.dim() == 2
            ours[f"blocks.{i}.{one}"] = value.T if linear else value
    return ours


def randomised(module, seed):
    """Weights of the size of a trained model's, biases and norms included."""
    rng = generator(f"test_gpt {seed}")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=rng))
    return module.double().eval()


def pair(gpt, d_model, heads, layers):
    theirs = randomised(GPT2LMHeadModel(config(d_model, heads, layers)), (d_model, heads, layers))
    ours = gpt.GPT(VOCAB, BLOCK_SIZE, d_model, heads, layers).double()
    ours.load_state_dict(weights_of(theirs.transformer))
    return ours, theirs


def some_tokens(*shape, seed=0):
    return torch.randint(VOCAB, shape, generator=generator(f"tokens {seed}"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", [1, 5, BLOCK_SIZE])
def test_logits_are_hugging_faces(gpt, size, length):
    ours, theirs = pair(gpt, *size)
    tokens = some_tokens(3, length)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, **CLOSE)
        hidden = theirs.transformer(tokens).last_hidden_state
        torch.testing.assert_close(ours.hidden(tokens)[0], hidden, **CLOSE)


def test_the_exact_gelu_would_be_noticed(gpt):
    """What the docstring says of the two GELUs: they are close, and not the same."""
    x = torch.linspace(-8, 8, 10_001, dtype=torch.float64)
    difference = (gpt.gelu(x) - torch.nn.functional.gelu(x)).abs().max()
    assert 1e-4 < difference < 1e-3
    ours, theirs = pair(gpt, *SIZES[1])
    exact = GPT2LMHeadModel(config(*SIZES[1], activation_function="gelu")).double().eval()
    exact.load_state_dict(theirs.state_dict())
    tokens = some_tokens(2, 8)
    with torch.no_grad():
        assert (exact(tokens).logits - ours(tokens)).abs().max() > 1e-4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pieces", [(1,) * BLOCK_SIZE, (5, 7), (1, 3, 8), (11, 1)])
def test_cached_logits_and_cache_are_hugging_faces(gpt, size, pieces):
    ours, theirs = pair(gpt, *size)
    tokens = some_tokens(2, BLOCK_SIZE)
    cache = past = None
    with torch.no_grad():
        whole = ours(tokens)
        start = 0
        for piece in tokens.split(pieces, dim=1):
            logits, cache = ours.step(piece, cache)
            output = theirs(piece, cache=past, use_cache=True)
            past = output.cache
            torch.testing.assert_close(logits, output.logits, **CLOSE)
            torch.testing.assert_close(logits, whole[:, start : start + piece.shape[1]], **CLOSE)
            start += piece.shape[1]
        for (keys, values), layer in zip(cache, past.layers, strict=True):
            torch.testing.assert_close(keys, layer.keys, **CLOSE)
            torch.testing.assert_close(values, layer.values, **CLOSE)


def test_loss_is_hugging_faces(gpt):
    ours, theirs = pair(gpt, *SIZES[1])
    tokens = some_tokens(3, 9)
    real = torch.arange(9) < torch.tensor([[9], [4], [6]])
    with torch.no_grad():
        for mask in (None, real):
            labels = tokens if mask is None else tokens.masked_fill(~mask, -100)
            loss = gpt.causal_lm_loss(ours(tokens), tokens, mask)
            # Theirs is computed in float32, whatever the model's dtype.
            torch.testing.assert_close(loss.float(), theirs(tokens, labels=labels).loss, **CLOSE)


def test_gradients_are_hugging_faces(gpt):
    ours, theirs = pair(gpt, *SIZES[1])
    tokens = some_tokens(3, 9)
    gpt.causal_lm_loss(ours(tokens), tokens).backward()
    theirs(tokens, labels=tokens).loss.backward()
    gradients = {name: p.grad for name, p in theirs.transformer.named_parameters()}
    torch.testing.assert_close(ours.token_embedding.weight.grad, gradients["wte.weight"], **CLOSE)
    torch.testing.assert_close(
        ours.position_embedding.weight.grad, gradients["wpe.weight"], **CLOSE
    )
    for i, block in enumerate(ours.blocks):
        for one, other in NAMES.items():
            gradient = gradients[f"h.{i}.{other}"]
            gradient = gradient.T if gradient.dim() == 2 else gradient
            torch.testing.assert_close(block.get_parameter(one).grad, gradient, **CLOSE)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_text_is_hugging_faces_as_long_as_it_fits(gpt, use_cache):
    ours, theirs = pair(gpt, *SIZES[2])
    prompt = some_tokens(4, 3)
    new = BLOCK_SIZE - 3
    text = gpt.generate(ours.step, prompt, new, BLOCK_SIZE, temperature=0.0, use_cache=use_cache)
    expected = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )
    assert text.tolist() == expected.tolist()


@pytest.mark.parametrize("length", [2, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 5])
@pytest.mark.parametrize("how", [{"temperature": 0.0}, {"top_k": 4}, {"temperature": 0.7}])
def test_text_is_the_same_with_and_without_the_cache_beyond_the_context(gpt, length, how):
    ours, _ = pair(gpt, *SIZES[1])
    prompt = some_tokens(2, length)
    one, other, window = (
        gpt.generate(step, prompt, 15, BLOCK_SIZE, generator=generator("draws"), use_cache=c, **how)
        for step, c in ((ours.step, True), (ours.step, False), (last_window(ours), False))
    )
    assert one.tolist() == other.tolist() == window.tolist()


def last_window(model):
    """The step without any cache, for a check of the other two."""

    def step(tokens, cache):
        assert cache is None
        return model(tokens), "read"

    return step


def test_classifier_is_hugging_faces(gpt):
    """Theirs looks for the last token that is not padding; ours is told the lengths."""
    theirs = randomised(
        GPT2ForSequenceClassification(config(12, 3, 2, num_labels=4, pad_token_id=0)), "classifier"
    )
    ours = gpt.GPT(VOCAB, BLOCK_SIZE, 12, 3, 2).double()
    ours.load_state_dict(weights_of(theirs.transformer))
    head = gpt.ClassificationHead(12, 4).double()
    head.load_state_dict({"output.weight": theirs.score.weight.detach()})
    tokens = 1 + some_tokens(4, 9) % (VOCAB - 1)
    lengths = torch.tensor([9, 1, 5, 8])
    tokens[torch.arange(9) >= lengths[:, None]] = 0
    with torch.no_grad():
        logits = head(ours.hidden(tokens)[0], lengths)
        torch.testing.assert_close(logits, theirs(tokens).logits, **CLOSE)


def test_small_gpt_2_has_the_parameters_of_its_model_card(gpt):
    """124M, with the tied embedding counted once."""
    with torch.device("meta"):
        model = gpt.GPT(50257, 1024, 768, 12, 12)
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808


def test_the_sum_keeps_its_size_at_the_start_whatever_the_depth(gpt):
    """Why the matrices added to the sum start smaller by 1/√(2L)."""
    set_seed(0)
    sizes = []
    for layers in (2, 8, 32):
        model = gpt.GPT(VOCAB, BLOCK_SIZE, 64, 4, layers)
        x = torch.randn(4, BLOCK_SIZE, 64, generator=generator("sum"))
        before = x.std()
        with torch.no_grad():
            for block in model.blocks:
                x, _ = block(x)
        sizes.append((x.std() / before).item())
    assert max(sizes) / min(sizes) < 1.05


def test_a_trained_model_copies_if_the_loss_is_not_shifted(gpt):
    """What the text says of the missing shift: near-zero loss, and nothing learnt of what comes next."""
    set_seed(0)
    model = gpt.GPT(10, 8, 32, 2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    rng = generator("unshifted")
    for _ in range(60):
        tokens = torch.randint(10, (16, 8), generator=rng)
        loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    start = torch.tensor([[3]])
    text = gpt.generate(model.step, start, 5, 8, temperature=0.0)
    assert text.tolist() == [[3] * 6]
    assert gpt.causal_lm_loss(model(tokens), tokens) > math.log(10)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_builds_no_graph(gpt, use_cache):
    seen = []

    def step(tokens, cache):
        logits, cache = model.step(tokens, cache)
        seen.append(logits.requires_grad)
        return logits, cache

    model = gpt.GPT(VOCAB, BLOCK_SIZE, 8, 2, 1)
    gpt.generate(step, some_tokens(1, 3), 3, BLOCK_SIZE, temperature=0.0, use_cache=use_cache)
    assert seen == [False] * 3
