"""LLaMA against Hugging Face's LlamaForCausalLM: folders that library writes, opened by the exercise's loader."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers import logging as transformers_logging
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from autograder.loader import reference
from lab import generator

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

CLOSE = {"rtol": 0.0, "atol": 1e-5}
# (heads, key-value heads, head_dim, layers, tied, theta, eps): the width is 24, which the heads need not share.
SIZES = [
    (4, 4, 6, 1, False, 10000.0, 1e-6),
    (4, 2, 6, 2, True, 500.0, 1e-5),
    (6, 2, 4, 2, False, 50.0, 1e-3),
    (6, 1, 8, 3, True, 10000.0, 0.1),
    (3, 1, 2, 1, False, 500000.0, 1e-5),
]


@pytest.fixture
def llama():
    return reference("open_weights", "llama")


def hugging_faces(size, **options):
    """A random model, its weights of the size of a trained one's, norms included."""
    heads, kv_heads, head_dim, layers, tied, theta, eps = size
    config = LlamaConfig(
        vocab_size=29,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=theta,
        rms_norm_eps=eps,
        tie_word_embeddings=tied,
        **options,
    )
    model = LlamaForCausalLM(config).eval()
    rng = generator(f"test_llama {size}")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.25 * torch.randn(parameter.shape, generator=rng))
    return model


def some_tokens(*shape):
    return torch.randint(29, shape, generator=generator(f"test_llama tokens {shape}"))


def logits_of(theirs, tokens):
    with torch.no_grad():
        return theirs(tokens).logits


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", ["halves", "interleaved"])
@pytest.mark.parametrize("length", [1, 40])
def test_a_folder_of_hugging_face_gives_its_logits(llama, tmp_path, size, layout, length):
    theirs = hugging_faces(size)
    theirs.save_pretrained(tmp_path)
    ours = llama.from_pretrained(tmp_path, layout)
    tokens = some_tokens(2, length)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), logits_of(theirs, tokens), **CLOSE)


@pytest.mark.parametrize("size", SIZES[1:3], ids=str)
def test_a_folder_in_several_files_gives_its_logits(llama, tmp_path, size):
    theirs = hugging_faces(size)
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    tokens = some_tokens(2, 9)
    with torch.no_grad():
        ours = llama.from_pretrained(tmp_path)(tokens)
    torch.testing.assert_close(ours, logits_of(theirs, tokens), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_folder_in_half_precision_is_computed_in_single(llama, tmp_path, dtype):
    hugging_faces(SIZES[2]).to(dtype).save_pretrained(tmp_path)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = some_tokens(2, 9)
    with torch.no_grad():
        ours = llama.from_pretrained(tmp_path)(tokens)
    torch.testing.assert_close(ours, logits_of(theirs, tokens), **CLOSE)


def test_configuration_of_version_4_is_read_too(llama, tmp_path):
    """As published checkpoints have it: the base at the top, and fields left out that had no other value."""
    theirs = hugging_faces((4, 4, 6, 2, False, 300.0, 1e-5))
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    fields["rope_theta"] = fields.pop("rope_parameters")["rope_theta"]
    fields["rope_scaling"] = None
    for name in ("num_key_value_heads", "head_dim", "tie_word_embeddings"):
        del fields[name]
    path.write_text(json.dumps(fields))
    tokens = some_tokens(1, 12)
    with torch.no_grad():
        ours = llama.from_pretrained(tmp_path)(tokens)
    torch.testing.assert_close(ours, logits_of(theirs, tokens), **CLOSE)


@pytest.mark.parametrize("pieces", [(1,) * 8, (5, 3), (2, 2, 4)])
def test_cache_is_hugging_faces(llama, tmp_path, pieces):
    theirs = hugging_faces(SIZES[2])
    theirs.save_pretrained(tmp_path)
    ours = llama.from_pretrained(tmp_path)
    tokens, cache, parts = some_tokens(2, 8), None, []
    with torch.no_grad():
        for piece in tokens.split(pieces, dim=1):
            logits, cache = ours.step(piece, cache)
            parts.append(logits)
        kept = theirs(tokens, use_cache=True).past_key_values
    torch.testing.assert_close(torch.cat(parts, dim=1), logits_of(theirs, tokens), **CLOSE)
    for (keys, values), layer in zip(cache, kept.layers, strict=True):
        torch.testing.assert_close(keys, layer.keys, **CLOSE)
        torch.testing.assert_close(values, layer.values, **CLOSE)


def test_norm_is_hugging_faces_and_torchs(llama):
    x = torch.randn(3, 4, 7, generator=generator("rms"))
    norm = LlamaRMSNorm(7, eps=0.1)
    torch.nn.init.normal_(norm.weight, generator=generator("rms weight"))
    ours = llama.rms_norm(x, norm.weight, 0.1)
    torch.testing.assert_close(ours, norm(x))
    torch.testing.assert_close(ours, torch.nn.functional.rms_norm(x, (7,), norm.weight, 0.1))


def test_halves_are_hugging_faces_rotation(llama):
    x = torch.randn(2, 3, 5, 8, generator=generator("halves"))
    positions = torch.tensor([4, 0, 9, 100, 31])
    frequencies = 1.0 / 700.0 ** (torch.arange(0, 8, 2) / 8)
    angles = torch.cat([positions[:, None] * frequencies] * 2, dim=-1)[None]
    theirs, _ = apply_rotary_pos_emb(x, x, angles.cos(), angles.sin())
    torch.testing.assert_close(llama.apply_rope(x, positions, 700.0, "halves"), theirs)


def test_interleaved_is_a_product_of_complex_numbers(llama):
    """As Meta's code has it."""
    x = torch.randn(2, 5, 8, generator=generator("complex"), dtype=torch.float64)
    positions = torch.tensor([4, 0, 9, 100, 31])
    frequencies = 700.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    turn = torch.exp(1j * positions[:, None] * frequencies)
    pairs = torch.view_as_complex(x.reshape(2, 5, 4, 2)) * turn
    expected = torch.view_as_real(pairs).reshape(x.shape)
    found = llama.apply_rope(x, positions, 700.0, "interleaved")
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("layout", ["halves", "interleaved"])
def test_rotation_is_the_matrix_of_the_paper(llama, layout):
    """R_m as a matrix, built pair by pair: orthogonal, and R_m^T R_n = R_(n - m)."""

    def matrix(position):
        identity = torch.eye(6, dtype=torch.float64)
        rows = torch.full((6,), position)
        return llama.apply_rope(identity, rows, 20.0, layout).T

    found = matrix(7).T @ matrix(12)
    torch.testing.assert_close(found, matrix(5), rtol=0.0, atol=1e-5)
    expected = torch.zeros(6, 6, dtype=torch.float64)
    for j in range(3):
        a, c = (2 * j, 2 * j + 1) if layout == "interleaved" else (j, j + 3)
        angle = 5 * 20.0 ** (-2 * j / 6)
        expected[a, a] = expected[c, c] = math.cos(angle)
        expected[a, c], expected[c, a] = -math.sin(angle), math.sin(angle)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)


def test_permutation_is_that_of_the_converting_script(llama):
    """Its view, transpose and reshape, for queries and for fewer key-value heads."""
    for heads, head_dim in [(4, 6), (2, 6), (1, 8)]:
        w = torch.randn(heads * head_dim, 5, generator=generator(f"permute {heads}"))
        expected = w.view(heads, head_dim // 2, 2, 5).transpose(1, 2).reshape(w.shape)
        assert torch.equal(llama.interleaved_to_halves(w, heads), expected)
        assert torch.equal(llama.halves_to_interleaved(expected, heads), w)


def test_wrong_layout_is_noticed_by_the_logits_alone(llama, tmp_path):
    """What the text says: no error, the first position right, the others not."""
    hugging_faces(SIZES[1]).save_pretrained(tmp_path)
    right = llama.from_pretrained(tmp_path)
    config = llama.read_config(json.loads((tmp_path / "config.json").read_text()))
    wrong = llama.Llama(config, "interleaved")
    wrong.load_state_dict(right.state_dict())
    tokens = some_tokens(2, 9)
    with torch.no_grad():
        one, other = right(tokens), wrong(tokens)
    torch.testing.assert_close(one[:, 0], other[:, 0], **CLOSE)
    assert (one - other)[:, 1:].abs().amax(dim=-1).min() > 1e-3


def test_reader_agrees_with_the_library(llama, tmp_path):
    rng = generator("safetensors")
    tensors = {
        f"t{i}.{dtype}": torch.randn(3, i + 1, 2, generator=rng).to(dtype)
        for i, dtype in enumerate(llama.DTYPES.values())
    }
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    found = llama.read_safetensors((tmp_path / "a.safetensors").read_bytes())
    expected = load_file(tmp_path / "a.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_every_way_to_cut_a_file_is_noticed(llama):
    data = save({"one": torch.ones(3), "two": torch.ones(2, 2)})
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"header|one|two"):
            llama.read_safetensors(data[:length])


def test_a_damaged_folder_is_refused_with_the_name_of_the_tensor(llama, tmp_path):
    hugging_faces(SIZES[0]).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    for name, tensor in whole.items():
        save_file({n: t for n, t in whole.items() if n != name}, path)
        with pytest.raises(ValueError, match=name):
            llama.from_pretrained(tmp_path)
        save_file(whole | {name: tensor[:-1].clone()}, path)
        with pytest.raises(ValueError, match=name):
            llama.from_pretrained(tmp_path)


@pytest.mark.parametrize("options", [{"attention_bias": True}, {"mlp_bias": True}])
def test_biases_are_refused(llama, tmp_path, options):
    hugging_faces(SIZES[0], **options).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="bias"):
        llama.from_pretrained(tmp_path)


def test_scaled_positions_as_of_llama_3_1_are_refused(llama, tmp_path):
    scaled = {
        "rope_theta": 500000.0,
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    hugging_faces(SIZES[0], rope_parameters=scaled).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="rope"):
        llama.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_dimensions_are_those_of_the_configuration(llama, size):
    theirs = hugging_faces(size)
    heads, kv_heads, _, layers, tied, *_ = size
    shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    if tied:  # the library lists the tied head, and does not save it
        del shapes["lm_head.weight"]
    found = llama.dimensions(shapes)
    assert found == (29, 24, 40, layers, heads // kv_heads, tied)
