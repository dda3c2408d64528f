"""Mixtral against Hugging Face's MixtralForCausalLM: folders that library writes, opened by the exercise's loader."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM
from transformers import logging as transformers_logging
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from autograder.loader import reference
from lab import generator

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

CLOSE = {"rtol": 0.0, "atol": 1e-5}
# (heads, key-value heads, head_dim, layers, window, experts, experts a token, theta, eps)
SIZES = [
    (4, 4, 6, 1, 1, 4, 2, 10000.0, 1e-6),
    (4, 2, 6, 2, 3, 8, 2, 500.0, 1e-5),
    (6, 2, 4, 2, 7, 3, 1, 50.0, 1e-3),
    (6, 1, 8, 3, 16, 5, 3, 1e6, 0.1),
    (2, 1, 4, 2, None, 4, 4, 1e6, 1e-5),
]


@pytest.fixture
def mixtral():
    return reference("open_weights", "mixtral")


def hugging_faces(size):
    """A random model, its weights of the size of a trained one's, norms included."""
    heads, kv_heads, head_dim, layers, window, experts, k, theta, eps = size
    config = MixtralConfig(
        vocab_size=29,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        sliding_window=window,
        num_local_experts=experts,
        num_experts_per_tok=k,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": theta, "rope_type": "default"},
        rms_norm_eps=eps,
    )
    model = MixtralForCausalLM(config).eval()
    rng = generator(f"test_mixtral {size}")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.25 * torch.randn(parameter.shape, generator=rng))
    return model


def some_tokens(*shape):
    return torch.randint(29, shape, generator=generator(f"test_mixtral tokens {shape}"))


@torch.no_grad()
def logits_of(theirs, tokens):
    return theirs(tokens).logits


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("length", [1, 2, 40])
def test_a_folder_of_hugging_face_gives_its_logits(mixtral, tmp_path, size, length):
    theirs = hugging_faces(size)
    theirs.save_pretrained(tmp_path)
    ours = mixtral.from_pretrained(tmp_path)
    tokens = some_tokens(2, length)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), logits_of(theirs, tokens), **CLOSE)


@pytest.mark.parametrize("size", SIZES[:4], ids=str)
@pytest.mark.parametrize("pieces", [(1,) * 40, (13, 27), (30, 1, 9)], ids=len)
def test_rolling_caches_give_the_logits_of_the_text_read_at_once(mixtral, tmp_path, size, pieces):
    theirs = hugging_faces(size)
    theirs.save_pretrained(tmp_path)
    ours = mixtral.from_pretrained(tmp_path)
    tokens, caches, parts = some_tokens(2, 40), None, []
    with torch.no_grad():
        for piece in tokens.split(pieces, dim=1):
            step = ours.step(piece, caches)
            caches = step.caches
            parts.append(step.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), logits_of(theirs, tokens), **CLOSE)
    assert {keys.shape[2] for keys, _, _ in caches} == {size[4]}


@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_window_off_by_one_is_another_model(mixtral, tmp_path, wrong):
    """What the text says: right up to the window's end, off after it."""
    theirs = hugging_faces(SIZES[1])
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"sliding_window": fields["sliding_window"] + wrong}))
    ours = mixtral.from_pretrained(tmp_path)
    tokens = some_tokens(2, 12)
    with torch.no_grad():
        off = (ours(tokens) - logits_of(theirs, tokens)).abs().amax(dim=(0, 2))
    same = min(3, 3 + wrong)
    assert off[:same].max() < 1e-5
    assert off[same:].min() > 1e-4


@pytest.mark.parametrize("k", [1, 2, 3])
def test_balancing_loss_is_hugging_faces(mixtral, k):
    logits = torch.randn(50, 7, generator=generator("balance")) + torch.arange(7) / 4
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    mine, right = (
        mixtral.load_balancing_loss(ours, k),
        load_balancing_loss_func((theirs,), num_experts=7, top_k=k),
    )
    torch.testing.assert_close(mine, right)
    mine.backward()
    right.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_hugging_face_pools_the_layers_and_a_mean_over_layers_sees_more(mixtral):
    """What the experiment's text says: two layers, tilted in opposite ways, look balanced when they are pooled."""
    tilted = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
    layers = (tilted, tilted.flip(1))
    pooled = load_balancing_loss_func(layers, num_experts=2, top_k=1)
    torch.testing.assert_close(mixtral.load_balancing_loss(torch.cat(layers), 1), pooled)
    torch.testing.assert_close(pooled, torch.tensor(1.0))
    apart = torch.stack([mixtral.load_balancing_loss(layer, 1) for layer in layers]).mean()
    assert apart > 1.9


def test_router_is_hugging_faces_whichever_comes_first(mixtral):
    """Softmax over all, the largest k, divided by their sum; or the k largest logits, then the softmax."""
    logits = 2 * torch.randn(40, 6, generator=generator("router"), dtype=torch.float64)
    weights, experts = mixtral.route(logits, 2)
    largest, theirs = logits.softmax(dim=-1).topk(2, dim=-1)
    assert torch.equal(experts, theirs)
    torch.testing.assert_close(weights, largest / largest.sum(dim=-1, keepdim=True))
    assert (largest.sum(dim=-1) < 0.999).any()


def test_router_of_one_expert_has_no_gradient(mixtral):
    """What the text says of k = 1."""
    logits = torch.randn(9, 4, generator=generator("one")).requires_grad_()
    mixtral.route(logits, 1)[0].square().sum().backward()
    assert not logits.grad.any()


def test_gradients_of_the_mixture_are_those_of_finite_differences(mixtral):
    layer = mixtral.SparseMoE(3, 2, 4, 2).double()
    rng = generator("gradcheck")
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=rng)
    x = torch.randn(1, 5, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], x)

    def with_router(matrix):
        return torch.func.functional_call(layer, {"gate.weight": matrix}, (x.detach(),))[0]

    assert torch.autograd.gradcheck(with_router, layer.gate.weight)


def test_slots_are_those_of_a_plain_list(mixtral):
    """Written one after the other into a list, as the paper's figure shows it."""
    for window in (1, 2, 3, 8):
        slots = []
        for position in range(30):
            assert mixtral.slot_positions(position, window).tolist() == slots
            if len(slots) < window:
                slots.append(position)
            else:
                slots[position % window] = position


@pytest.mark.parametrize("layers, window", [(1, 3), (2, 3), (3, 4), (4, 1)])
def test_information_moves_window_minus_one_positions_a_block(mixtral, layers, window):
    """The last position depends on exactly layers · (window − 1) positions before it: the span the paper computes."""
    config = mixtral.MixtralConfig(5, 8, 6, layers, 2, 1, 4, 1e-5, 10.0, window, 3, 2)
    model = mixtral.Mixtral(config).double()
    rng = generator(f"reach {layers} {window}")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    embedded = torch.randn(1, 15, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    model.embed_tokens.forward = lambda tokens: embedded
    model(torch.zeros(1, 15, dtype=torch.int64))[0, -1].square().sum().backward()
    reached = embedded.grad.abs().amax(dim=(0, 2)) > 0
    assert reached.tolist() == [14 - i <= layers * (window - 1) for i in range(15)]


def test_the_published_sizes_give_the_published_numbers_of_parameters(mixtral):
    """46.7 billion, of which a token uses 12.9 (Mistral AI's announcement of 11 December 2023)."""
    config = mixtral.MixtralConfig(
        32000, 4096, 14336, 32, 32, 8, 128, 1e-5, 1e6, 131072, num_local_experts=8, num_experts_per_tok=2
    )  # fmt: skip
    with torch.device("meta"):
        model = mixtral.Mixtral(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert round(total / 1e9, 1) == 46.7
    assert round((total - experts * 6 / 8) / 1e9, 1) == 12.9


def test_a_damaged_folder_is_refused_with_the_name_of_the_tensor(mixtral, tmp_path):
    """By torch, which the given loader leaves it to."""
    hugging_faces(SIZES[0]).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    for name, tensor in list(whole.items())[::5]:
        short = name.removeprefix("model.")
        save_file({n: t for n, t in whole.items() if n != name}, path)
        with pytest.raises(RuntimeError, match=short):
            mixtral.from_pretrained(tmp_path)
        save_file(whole | {name: tensor[:-1].clone()}, path)
        with pytest.raises(RuntimeError, match=short):
            mixtral.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"hidden_act": "gelu"},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_configuration_of_something_else_is_refused(mixtral, tmp_path, change):
    hugging_faces(SIZES[0]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"type|act|tie|scaling"):
        mixtral.from_pretrained(tmp_path)
