"""LoRA against Hugging Face's peft, against plain linear algebra, and against what the paper counts."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from autograder.loader import reference
from lab import generator

CLOSE = {"rtol": 0.0, "atol": 1e-6}
TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture
def lora():
    return reference("open_weights", "lora")


def randn(*shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=generator(f"lora {seed}"), dtype=dtype)


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=13,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_bias=True,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def pair(lora):
    """The same model with the same adapters, ours and peft's, and tokens to read."""
    base = llama()
    theirs = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS)
    ).eval()
    ours = copy.deepcopy(base)
    lora.apply_lora(ours, TARGETS, 3, 5.0)
    load_into_peft(theirs, redraw(lora, ours, "first"))
    tokens = torch.randint(13, (2, 6), generator=generator("lora tokens"))
    return ours, theirs, tokens


def redraw(lora, model, seed):
    """Puts random numbers into an adapter, B included, and returns it."""
    state = {
        name: randn(*value.shape, seed=f"{seed} {name}", dtype=value.dtype) / 3
        for name, value in lora.adapter_state(model).items()
    }
    lora.swap_adapter(model, state)
    return state


def peft_name(name):
    path, _, factor = name.rpartition(".")
    return f"base_model.model.{path}.{factor}.weight"


def load_into_peft(model, state, adapter="default"):
    parameters = dict(model.named_parameters())
    for name, value in state.items():
        path = peft_name(name).removesuffix(".weight")
        parameters[f"{path}.{adapter}.weight"].data.copy_(value)


def test_same_layers_same_names_same_counts_as_peft(lora, pair):
    ours, theirs, _ = pair
    stored = get_peft_model_state_dict(theirs)
    assert sorted(map(peft_name, lora.adapter_state(ours))) == sorted(stored)
    for name, value in lora.adapter_state(ours).items():
        assert torch.equal(stored[peft_name(name)], value)
    assert tuple(lora.trainable_parameters(ours)) == theirs.get_nb_trainable_parameters()


def test_forward_is_that_of_peft(pair):
    ours, theirs, tokens = pair
    torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, **CLOSE)


def test_gradients_are_those_of_peft(lora, pair):
    ours, theirs, tokens = pair
    for model in (ours, theirs):
        model(tokens, labels=tokens).loss.backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if name in lora.adapter_state(ours):
            path = peft_name(name).removesuffix(".weight")
            torch.testing.assert_close(
                parameter.grad, expected[f"{path}.default.weight"].grad, **CLOSE
            )
        else:
            assert parameter.grad is None


def test_merged_weights_are_those_of_peft(lora, pair):
    ours, theirs, tokens = pair
    expected = theirs(tokens).logits
    merged = theirs.merge_and_unload()
    for module in ours.modules():
        if isinstance(module, lora.LoRALinear):
            module.merge()
    plain = {n: v for n, v in ours.state_dict().items() if "lora" not in n}
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(plain[name], value, **CLOSE)
    torch.testing.assert_close(ours(tokens).logits, expected, **CLOSE)


def test_adapters_are_exchanged_as_in_peft(lora, pair):
    ours, theirs, tokens = pair
    theirs.add_adapter("second", LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS))
    first = lora.adapter_state(ours)
    second = redraw(lora, ours, "second")
    load_into_peft(theirs, second, "second")
    for adapter, state in (("second", second), ("default", first), ("second", second)):
        lora.swap_adapter(ours, state)
        theirs.set_adapter(adapter)
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, **CLOSE)


def test_dropout_is_that_of_peft(lora):
    """The same random numbers, in training."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("up", nn.Linear(20, 5))
    theirs = get_peft_model(
        copy.deepcopy(model),
        LoraConfig(r=2, lora_alpha=6, target_modules=["up"], lora_dropout=0.4),
    ).train()
    lora.apply_lora(model, ["up"], 2, 6.0, dropout=0.4)
    load_into_peft(theirs, redraw(lora, model, "dropout"))
    x = randn(7, 20, seed="dropout x", dtype=torch.float32)
    outputs = []
    for layer in (model, theirs):
        torch.manual_seed(1)
        outputs.append(layer(x))
    torch.testing.assert_close(*outputs, **CLOSE)
    assert not torch.allclose(outputs[0], model.eval()(x))


def test_peft_starts_uniform_and_narrower(lora):
    """What the text says of the library: the bound of torch's own linear layer, and B = 0."""
    model = nn.Sequential()
    model.add_module("up", nn.Linear(400, 30))
    layer = get_peft_model(model, LoraConfig(r=50, target_modules=["up"])).base_model.model.up
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert not B.any()
    assert 0.049 < A.abs().max() <= 1 / 400**0.5
    ours = lora.LoRALinear(400, 30, 50, 1.0, generator=generator("lora start")).lora_A
    assert (ours.std() / A.std()).item() == pytest.approx(3**0.5, rel=0.03)


def test_peft_divides_by_the_root_of_the_rank_only_if_told_to():
    scaling = {}
    for rslora in (False, True):
        model = nn.Sequential()
        model.add_module("up", nn.Linear(3, 3))
        config = LoraConfig(r=4, lora_alpha=6, target_modules=["up"], use_rslora=rslora)
        scaling[rslora] = get_peft_model(model, config).base_model.model.up.scaling["default"]
    assert scaling == {False: 6 / 4, True: 6 / 2}


def test_update_by_gradcheck(lora):
    A, B = randn(2, 4, seed="A").requires_grad_(), randn(3, 2, seed="B").requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: lora.lora_update(a, b, 7.0), (A, B))


def test_layer_by_gradcheck(lora):
    layer = lora.LoRALinear(4, 3, 2, 5.0).double()
    A, B = (
        randn(2, 4, seed="layer A").requires_grad_(),
        randn(3, 2, seed="layer B").requires_grad_(),
    )
    x = randn(2, 4, seed="layer x").requires_grad_()

    def output(x, A, B):
        return torch.func.functional_call(layer, {"lora_A": A, "lora_B": B}, (x,))

    assert torch.autograd.gradcheck(output, (x, A, B))


def test_no_matrix_of_the_rank_is_closer(lora):
    """Eckart and Young: lost are the squares of the other singular values, and a search finds nothing better."""
    update = randn(6, 5, seed="update")
    sigma = torch.linalg.svdvals(update)
    for r in (1, 2, 4):
        best = lora.lora_update(*lora.factorise(update, r, 3.0), 3.0)
        assert torch.linalg.matrix_rank(best) == r
        lost = (update - best).square().sum()
        torch.testing.assert_close(lost, sigma[r:].square().sum(), **CLOSE)
        # Alternating least squares from a random start.
        B = randn(6, r, seed=f"start {r}")
        for _ in range(200):
            A = torch.linalg.lstsq(B, update).solution
            B = torch.linalg.lstsq(A.T, update.T).solution.T
        torch.testing.assert_close(B @ A, best, rtol=0.0, atol=1e-4)


def test_with_both_factors_zero_nothing_is_learnt(lora):
    layer = lora.LoRALinear(3, 2, 1, 1.0)
    x, y = randn(8, 3, seed="zero x", dtype=torch.float32), torch.ones(8, 2)
    for both in (True, False):
        nn.init.normal_(layer.lora_A)
        nn.init.zeros_(layer.lora_B)
        if both:
            nn.init.zeros_(layer.lora_A)
        optimizer = torch.optim.SGD([layer.lora_A, layer.lora_B], lr=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            F.mse_loss(layer(x), y).backward()
            optimizer.step()
        assert layer.lora_B.any().item() != both


def test_a_thousand_merges_leave_the_base_in_half_precision(lora):
    """What subtracting would not do: the text's example, and its error over many exchanges."""
    half = torch.float16
    assert (torch.tensor(1.0, dtype=half) + 1000) - 1000 == 1
    assert (torch.tensor(0.1, dtype=half) + 1000) - 1000 == 0
    layer = lora.LoRALinear(16, 16, 2, 2.0).to(torch.bfloat16)
    layer.weight.data.normal_(generator=generator("lora half"))
    layer.lora_B.data.normal_(generator=generator("lora half B"))
    before, drifting = layer.weight.clone(), layer.weight.clone()
    update = lora.lora_update(layer.lora_A, layer.lora_B, 2.0).detach()
    for _ in range(1000):
        layer.merge()
        layer.unmerge()
        drifting = drifting + update - update
    assert torch.equal(layer.weight, before)
    assert not torch.equal(drifting, before)


def test_counts_of_the_paper(lora):
    """GPT-3, rank 4 on queries and values: about one trained parameter in 10,000, and 35 MB in half precision."""
    with torch.device("meta"):
        layer = lora.LoRALinear(12_288, 12_288, 4, 4.0)
    trained = 96 * 2 * lora.trainable_parameters(layer).trained
    assert trained == 18_874_368
    assert 175e9 / trained == pytest.approx(9_300, rel=0.01)
    assert 2 * trained / 2**20 == pytest.approx(36, rel=0.01)
    matrix, thin = 12_288 * 12_288, 4 * (12_288 + 12_288)
    assert (matrix, thin) == (150_994_944, 98_304)
