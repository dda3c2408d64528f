"""The Transformer's blocks against torch's own layers, and against what the paper says of them."""

import math

import pytest
import torch
from torch import nn

from autograder.loader import reference

EXACT = {"rtol": 0.0, "atol": 1e-6}

# torch's name of each parameter of a block, by ours.
ENCODER_NAMES = {
    "attention.torch_attention.in_proj_weight": "self_attn.in_proj_weight",
    "attention.torch_attention.out_proj.weight": "self_attn.out_proj.weight",
    "feed_forward.linear1.weight": "linear1.weight",
    "feed_forward.linear1.bias": "linear1.bias",
    "feed_forward.linear2.weight": "linear2.weight",
    "feed_forward.linear2.bias": "linear2.bias",
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
}
DECODER_NAMES = {
    ours.replace("attention.torch", "self_attention.torch"): theirs
    for ours, theirs in ENCODER_NAMES.items()
} | {
    "cross_attention.torch_attention.in_proj_weight": "multihead_attn.in_proj_weight",
    "cross_attention.torch_attention.out_proj.weight": "multihead_attn.out_proj.weight",
    "norm3.weight": "norm3.weight",
    "norm3.bias": "norm3.bias",
}
D_MODEL, HEADS, D_FF = 6, 3, 10


@pytest.fixture
def block():
    return reference("transformer", "block")


def random(*shape, seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def with_weights_of(ours, theirs, names):
    """Both modules with the same random weights; the biases of torch's attention, which we lack, are 0."""
    values = {
        ours_name: 0.7 * random(*value.shape, seed=i)
        for i, (ours_name, value) in enumerate(sorted(ours.state_dict().items()))
    }
    ours.load_state_dict(values)
    as_theirs = {name: torch.zeros_like(value) for name, value in theirs.state_dict().items()}
    as_theirs |= {names[name]: value for name, value in values.items()}
    theirs.load_state_dict(as_theirs)


def assert_same_gradients(ours, theirs, names):
    for name, parameter in ours.named_parameters():
        expected = theirs.get_parameter(names[name]).grad
        torch.testing.assert_close(parameter.grad, expected, **EXACT, msg=name)


def padding(lengths, width):
    """(batch, 1, width), True for the real positions."""
    return (torch.arange(width) < torch.tensor(lengths)[:, None])[:, None]


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 7), (2, 3, 4, 6)])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_layer_norm_is_torchs(block, shape, eps):
    theirs = nn.LayerNorm(shape[-1], eps=eps).double()
    weight, bias = random(shape[-1], seed=1), random(shape[-1], seed=2)
    theirs.load_state_dict({"weight": weight, "bias": bias})
    x = 3.0 + 2.0 * random(*shape, seed=3)
    torch.testing.assert_close(block.layer_norm(x, weight, bias, eps), theirs(x), **EXACT)


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_block_is_torchs(block, norm_first):
    ours = block.EncoderBlock(D_MODEL, HEADS, D_FF, norm_first).double()
    theirs = nn.TransformerEncoderLayer(
        D_MODEL, HEADS, D_FF, dropout=0.0, batch_first=True, norm_first=norm_first
    ).double()
    with_weights_of(ours, theirs, ENCODER_NAMES)
    x = random(2, 5, D_MODEL, seed=100)
    real = padding([5, 3], 5)
    output = ours(x, real)
    expected = theirs(x, src_key_padding_mask=~real[:, 0])
    torch.testing.assert_close(output, expected, **EXACT)
    pull = random(2, 5, D_MODEL, seed=101)
    (output * pull).sum().backward()
    (expected * pull).sum().backward()
    assert_same_gradients(ours, theirs, ENCODER_NAMES)


@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_block_is_torchs(block, norm_first):
    ours = block.DecoderBlock(D_MODEL, HEADS, D_FF, norm_first).double()
    theirs = nn.TransformerDecoderLayer(
        D_MODEL, HEADS, D_FF, dropout=0.0, batch_first=True, norm_first=norm_first
    ).double()
    with_weights_of(ours, theirs, DECODER_NAMES)
    x, memory = random(2, 4, D_MODEL, seed=100), random(2, 5, D_MODEL, seed=101)
    real = padding([5, 3], 5)
    output = ours(x, memory, real)
    expected = theirs(
        x,
        memory,
        tgt_mask=~torch.ones(4, 4, dtype=torch.bool).tril(),
        memory_key_padding_mask=~real[:, 0],
    )
    torch.testing.assert_close(output, expected, **EXACT)
    pull = random(2, 4, D_MODEL, seed=102)
    (output * pull).sum().backward()
    (expected * pull).sum().backward()
    assert_same_gradients(ours, theirs, DECODER_NAMES)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_whole_transformer_is_torchs(block):
    """Pre-LN, as torch's nn.Transformer ends each stack with a norm, which the paper's post-LN does not."""
    ours = block.Transformer(11, D_MODEL, HEADS, D_FF, num_layers=2, norm_first=True).double()
    theirs = nn.Transformer(
        D_MODEL, HEADS, 2, 2, D_FF, dropout=0.0, batch_first=True, norm_first=True
    ).double()
    names = {}
    for stack, blocks in (("encoder", ENCODER_NAMES), ("decoder", DECODER_NAMES)):
        for i in range(2):
            names |= {
                f"{stack}_blocks.{i}.{one}": f"{stack}.layers.{i}.{other}"
                for one, other in blocks.items()
            }
        names |= {f"{stack}_norm.{p}": f"{stack}.norm.{p}" for p in ("weight", "bias")}
    embedding = random(11, D_MODEL, seed=200)
    with_weights_of(nn.ModuleDict(without_embedding(ours)), theirs, names)
    ours.embedding.load_state_dict({"weight": embedding})
    source = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
    target = torch.tensor([[5, 3, 5, 8], [9, 7, 9, 3]])

    def embed(tokens):
        code = block.sinusoidal_positions(tokens.shape[1], D_MODEL)
        return embedding[tokens] * D_MODEL**0.5 + code

    hidden = theirs(
        embed(source),
        embed(target),
        tgt_mask=~torch.ones(4, 4, dtype=torch.bool).tril(),
        src_key_padding_mask=source == 0,
        memory_key_padding_mask=source == 0,
    )
    torch.testing.assert_close(ours(source, target), hidden @ embedding.T, **EXACT)


def without_embedding(model):
    return {name: child for name, child in model.named_children() if name != "embedding"}


def test_given_attention_gives_zeros_and_no_nan_where_nothing_may_be_seen(block):
    attention = block.MultiHeadAttention(D_MODEL, HEADS).double()
    x = random(2, 3, D_MODEL, seed=1).requires_grad_()
    mask = torch.ones(2, 3, 3, dtype=torch.bool)
    mask[1, 2] = False
    output = attention(x, x, x, mask)
    assert output[1, 2].eq(0).all()
    output.sum().backward()
    assert x.grad.isfinite().all()
    attention.eval()
    with torch.no_grad():  # torch has another path for this
        torch.testing.assert_close(attention(x, x, x, mask), output, **EXACT)


def test_given_attention_keeps_its_weights_when_asked(block):
    attention = block.MultiHeadAttention(D_MODEL, HEADS).double()
    x, memory = random(2, 3, D_MODEL, seed=1), random(2, 5, D_MODEL, seed=2)
    real = padding([5, 3], 5)
    plain = attention(x, memory, memory, real)
    assert attention.weights is None
    attention.keep_weights = True
    torch.testing.assert_close(attention(x, memory, memory, real), plain, **EXACT)
    assert attention.weights.shape == (2, 3, 5)
    torch.testing.assert_close(
        attention.weights.sum(-1), torch.ones(2, 3, dtype=torch.float64), **EXACT
    )
    assert attention.weights[1, :, 3:].eq(0).all()


def test_moving_on_by_k_turns_each_pair_by_one_angle(block):
    """The linear map of §3.5, the same for every position."""
    d_model, k = 8, 3
    code = block.sinusoidal_positions(20, d_model).double().unflatten(1, (-1, 2))
    angle = k * 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    turn = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    moved = torch.einsum("ioj,pij->pio", turn, code[:-k])
    torch.testing.assert_close(moved, code[k:], **EXACT)


def test_late_positions_are_exact_in_float32(block):
    code = block.sinusoidal_positions(20_001, 4)
    assert code[20_000, 0].item() == pytest.approx(math.sin(20_000), abs=1e-6)
    assert code[20_000, 3].item() == pytest.approx(math.cos(200), abs=1e-6)


def test_base_model_has_about_the_parameters_of_the_paper(block):
    """65 million in Table 3, with a vocabulary of about 37,000."""
    with torch.device("meta"):
        model = block.Transformer(37_000, 512, 8, 2048, 6)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 60e6 < parameters < 66e6


@pytest.mark.parametrize(
    "name",
    [
        "LayerNorm",
        "Transformer",
        "TransformerEncoder",
        "TransformerEncoderLayer",
        "TransformerDecoder",
        "TransformerDecoderLayer",
    ],
)
def test_torchs_answer_is_refused(block, name):
    # A call written in the notebook, whatever its arguments.
    with pytest.raises(RuntimeError, match="does this exercise for you"):
        exec(f"nn.{name}()", block.__dict__)


def test_functional_layer_norm_is_refused(block):
    for call in ("nn.functional.layer_norm", "torch.layer_norm"):
        with pytest.raises(RuntimeError, match="does this exercise for you"):
            exec(f"{call}(torch.zeros(3), (3,))", block.__dict__)
