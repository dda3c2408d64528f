"""Vision and language against other ways to compute the same: torch's attention, hand-made sums, finite differences."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autograder.loader import reference
from lab import generator, scenes

CLOSE = {"rtol": 0.0, "atol": 1e-9}


@pytest.fixture
def answers():
    return reference("multimodal", "vision_language")


@pytest.fixture
def sizes(answers):
    return answers.Sizes(
        vocab_size=9, max_length=6, d_model=8, num_heads=2, num_layers=2, d_image=5
    )


def randn(*shape, seed):
    return torch.randn(shape, generator=generator(f"vision_language {seed}"), dtype=torch.float64)


def randomised(module, seed):
    module = module.double()
    for i, parameter in enumerate(module.parameters()):
        parameter.data = 0.6 * randn(*parameter.shape, seed=f"{seed} {i}")
    return module


# --- cross-attention and its gate ---


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_cross_attention_is_torchs_multihead_attention(answers, heads):
    mine = randomised(answers.CrossAttention(8, 5, heads), "cross")
    theirs = nn.MultiheadAttention(8, heads, bias=False, kdim=5, vdim=5, batch_first=True).double()
    with torch.no_grad():
        theirs.q_proj_weight.copy_(mine.q_proj.weight)
        theirs.k_proj_weight.copy_(mine.k_proj.weight)
        theirs.v_proj_weight.copy_(mine.v_proj.weight)
        theirs.out_proj.weight.copy_(mine.out_proj.weight)
    text, picture = randn(3, 4, 8, seed="text"), randn(3, 6, 5, seed="picture")
    torch.testing.assert_close(
        mine(text, picture), theirs(text, picture, picture, need_weights=False)[0], **CLOSE
    )


def test_the_order_of_the_patches_does_not_matter_to_cross_attention(answers):
    attention = randomised(answers.CrossAttention(8, 5, 2), "order")
    text, picture = randn(2, 3, 8, seed="text"), randn(2, 6, 5, seed="picture")
    shuffled = picture[:, torch.randperm(6, generator=generator("patches"))]
    torch.testing.assert_close(attention(text, shuffled), attention(text, picture), **CLOSE)


def test_derivatives_at_the_gate_are_as_derived(answers):
    """(1 − tanh²α)·g·a and tanh(α)·g, against autograd."""
    alpha = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x, g = randn(5, seed="x"), randn(5, seed="g")
    fetched = randn(5, seed="fetched").requires_grad_()
    (g * (x + torch.tanh(alpha) * fetched)).sum().backward()
    assert alpha.grad.item() == pytest.approx((1 - math.tanh(0.7) ** 2) * (g @ fetched).item())
    torch.testing.assert_close(fetched.grad, math.tanh(0.7) * g, **CLOSE)


@pytest.mark.parametrize("twice, moves", [(False, True), (True, False)])
def test_a_closed_gate_opens_unless_what_it_multiplies_is_zero_too(answers, twice, moves):
    torch.manual_seed(0)
    block = answers.GatedBlock(8, 5, 2).double()
    if twice:
        nn.init.zeros_(block.attention.out_proj.weight)
    nn.init.zeros_(block.mlp[2].weight), nn.init.zeros_(block.mlp[2].bias)
    before = block.attention.v_proj.weight.clone()
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    text, picture, aim = (
        randn(2, 3, 8, seed="t"),
        randn(2, 4, 5, seed="p"),
        randn(2, 3, 8, seed="a"),
    )
    moved = []
    for _ in range(2):
        optimizer.zero_grad()
        (block(text, picture) - aim).square().sum().backward()
        optimizer.step()
        moved.append(not torch.equal(block.attention.v_proj.weight, before))
    assert moved == [False, moves]
    assert (block.attention_gate.item() != 0.0) == moves


def test_gradient_of_a_gated_block_by_finite_differences(answers):
    block = randomised(answers.GatedBlock(4, 3, 2), "gradcheck")
    text = randn(1, 2, 4, seed="text").requires_grad_()
    picture = randn(1, 3, 3, seed="picture").requires_grad_()
    assert torch.autograd.gradcheck(block, (text, picture))


# --- the two models ---


def test_the_given_language_model_is_torchs_encoder_with_a_causal_mask(answers, sizes):
    """What all else here is built upon."""
    model = randomised(answers.LanguageModel(sizes), "language")
    tokens = torch.tensor([[1, 4, 2, 7], [3, 3, 8, 0]])
    x = model.embed(tokens)
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(
            8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        ).double()
        pairs = {
            "self_attn.in_proj_": block.qkv_proj,
            "self_attn.out_proj.": block.out_proj,
            "linear1.": block.mlp[0],
            "linear2.": block.mlp[2],
            "norm1.": block.attention_norm,
            "norm2.": block.mlp_norm,
        }
        layer.load_state_dict(
            {
                f"{name}{kind}": getattr(m, kind)
                for name, m in pairs.items()
                for kind in ("weight", "bias")
            }
        )
        x = layer(x, src_mask=~answers.causal_mask(4).cpu())
    torch.testing.assert_close(model(tokens), model.head(x), **CLOSE)


def test_a_new_flamingo_is_its_language_model_to_the_last_bit(answers, sizes):
    torch.manual_seed(0)
    model = answers.Flamingo(sizes)
    tokens = torch.tensor([[1, 4, 2, 7]])
    assert torch.equal(model(tokens, torch.randn(1, 3, 5)), model.language(tokens))


def test_training_leaves_flamingos_language_model_as_it_was(answers, sizes):
    torch.manual_seed(0)
    model = answers.Flamingo(sizes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    tokens, picture = torch.tensor([[1, 4, 2, 7]]), torch.randn(1, 3, 5)
    for _ in range(3):
        answers.answer_loss(model(tokens, picture), tokens).backward()
        optimizer.step()
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed
    assert all(name.startswith("adapters.") for name in changed)


@pytest.mark.parametrize("patches, length", list(itertools.product([0, 1, 4], [0, 1, 3])))
def test_prefix_mask_by_its_words(answers, patches, length):
    mask = answers.prefix_mask(patches, length)
    for i, j in itertools.product(range(patches + length), repeat=2):
        assert bool(mask[i, j]) == (j < patches or (i >= patches and j <= i))


def test_llava_reads_word_vectors_as_its_language_model_reads_words(answers, sizes):
    """A picture of one patch whose projection is an embedding is a word at the beginning, positions apart."""
    model = randomised(answers.Llava(sizes), "llava")
    model.language.positions.weight.data.zero_()
    tokens = torch.tensor([[3, 4, 2]])
    with torch.no_grad():
        aim = model.language.tokens.weight[7] - model.projection.bias
        patch = torch.linalg.lstsq(model.projection.weight[:5], aim[:5, None]).solution.T
        model.projection.weight.data[5:] = 0.0
        model.projection.bias.data[5:] = model.language.tokens.weight[7, 5:]
        expected = model.language(torch.tensor([[7, 3, 4, 2]]))
        torch.testing.assert_close(model(tokens, patch[None]), expected, **CLOSE)


def test_the_order_of_the_patches_does_not_matter_to_llavas_words(answers, sizes):
    """They have no positions of the language model, and see each other all."""
    model = randomised(answers.Llava(sizes), "order")
    tokens, picture = torch.tensor([[3, 4, 2]]), randn(1, 4, 5, seed="patches")
    torch.testing.assert_close(
        model(tokens, picture.flip(1))[:, 4:], model(tokens, picture)[:, 4:], **CLOSE
    )


# --- loss and measures ---


def test_loss_by_brute_force(answers):
    logits, ignore = randn(3, 5, 4, seed="logits"), answers.IGNORE
    labels = torch.tensor([[1, 2, ignore, 0, 3], [ignore, ignore, ignore, 2, ignore], [ignore] * 5])
    terms = []
    for b, i in itertools.product(range(3), range(1, 5)):
        if labels[b, i] != ignore:
            powers = [math.exp(z) for z in logits[b, i - 1].tolist()]
            terms.append(-math.log(powers[labels[b, i]] / sum(powers)))
    assert len(terms) == 4
    assert answers.answer_loss(logits, labels).item() == pytest.approx(sum(terms) / 4)


def test_no_gradient_at_places_that_predict_nothing_learned(answers):
    tokens = torch.tensor([[1, 5, 6, 7, 2], [1, 5, 8, 2, 0]])
    labels = answers.answer_labels(tokens, torch.tensor([3, 2]), 2)
    logits = randn(2, 7, 9, seed="places").requires_grad_()
    answers.answer_loss(logits, labels).backward()
    learning = logits.grad.abs().amax(-1) > 0
    assert learning.nonzero().tolist() == [[0, 4], [0, 5], [1, 3], [1, 4]]


def test_a_caption_is_learned_from_the_last_patch_on(answers):
    tokens = torch.tensor([[5, 6]])
    labels = answers.answer_labels(tokens, torch.tensor([0]), 3)
    logits = randn(1, 5, 9, seed="caption").requires_grad_()
    answers.answer_loss(logits, labels).backward()
    assert (logits.grad.abs().amax(-1) > 0).tolist() == [[False, False, True, True, False]]


def test_loss_is_torchs_with_the_labels_shifted(answers):
    logits = randn(4, 6, 7, seed="shift")
    labels = torch.randint(7, (4, 6), generator=generator("shift"))
    expected = F.cross_entropy(logits[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1))
    torch.testing.assert_close(answers.answer_loss(logits, labels), expected, **CLOSE)


def test_derangements_of_four_are_all_of_the_circles_and_nothing_else(answers):
    rng = generator("derangements")
    found = {tuple(answers.derangement(4, rng).tolist()) for _ in range(300)}
    every = {p for p in itertools.permutations(range(4)) if all(p[i] != i for i in range(4))}
    assert len(every) == 9
    assert found <= every
    assert len(found) == 6  # one circle through all four: (4 − 1)!


def test_a_random_permutation_keeps_one_in_its_place_on_average():
    """What the text says of randperm."""
    rng = generator("fixed places")
    for n in (5, 100):
        stay = [(torch.randperm(n, generator=rng) == torch.arange(n)).sum() for _ in range(2000)]
        assert torch.stack(stay).double().mean().item() == pytest.approx(1.0, abs=0.12)


def test_nobody_blind_does_better(answers):
    """Every way to give each question one answer, tried."""
    rng = generator("blind")
    questions = torch.randint(3, (20,), generator=rng)
    said = torch.randint(4, (20,), generator=rng)
    best = max(
        (torch.tensor(way)[questions] == said).double().mean().item()
        for way in itertools.product(range(4), repeat=3)
    )
    assert float(answers.blind_accuracy(questions, said)) == pytest.approx(best)


def test_longest_row_of_the_experiment_fits():
    """<start>, the longest question or the longest caption, the answer, <end>: 13 tokens."""
    rng = generator("rows")
    longest = 0
    for number in [1, 2, 3] * 150:
        scene = scenes.draw(number, rng)
        asked = scenes.ask(scene, rng)
        longest = max(longest, len(asked.words) + 3, len(scenes.caption(scene)) + 2)
    assert longest == 13
