"""Vision against other ways to compute the same: torch's unfold and convolution, Hugging Face's ViT and CLIP."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from autograder.loader import reference
from lab import digits, generator, scenes

CLOSE = {"rtol": 0.0, "atol": 1e-9}


@pytest.fixture
def vision():
    return reference("multimodal", "vision")


def randn(*shape, seed):
    return torch.randn(shape, generator=generator(f"vision {seed}"), dtype=torch.float64)


# --- patches ---


@pytest.mark.parametrize("height, width, patch_size", [(6, 9, 3), (4, 4, 1), (8, 4, 4), (5, 5, 5)])
def test_patches_are_those_of_torchs_unfold(vision, height, width, patch_size):
    images = randn(2, 3, height, width, seed="unfold")
    columns = nn.Unfold(patch_size, stride=patch_size)(images)  # (batch, features, patches)
    torch.testing.assert_close(vision.patchify(images, patch_size), columns.mT, **CLOSE)
    fold = nn.Fold((height, width), patch_size, stride=patch_size)
    torch.testing.assert_close(
        vision.unpatchify(columns.mT, patch_size, height, width), fold(columns), **CLOSE
    )


def test_every_patch_is_the_square_where_it_lies(vision):
    [image] = scenes.render([scenes.draw(3, generator("squares"))])
    patches = vision.patchify(image, 8)
    for row in range(4):
        for column in range(4):
            square = image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            assert patches[4 * row + column].tolist() == square.flatten().tolist()


def test_real_scans_come_back(vision):
    scans = digits.digits("test").images[:, None]
    assert torch.equal(vision.unpatchify(vision.patchify(scans, 2), 2, 8, 8), scans)


# --- the encoder ---


def test_embedding_is_a_convolution_with_a_step_of_its_own_size(vision):
    embedding = vision.PatchEmbedding(6, 2, 3, 5).double()
    convolution = nn.Conv2d(3, 5, kernel_size=2, stride=2).double()
    with torch.no_grad():
        convolution.weight.copy_(embedding.projection.weight.view(5, 3, 2, 2))
        convolution.bias.copy_(embedding.projection.bias)
        images = randn(2, 3, 6, 6, seed="convolution")
        patches = convolution(images).flatten(2).mT + embedding.positions[1:]
        torch.testing.assert_close(embedding(images)[:, 1:], patches, **CLOSE)


def hugging_faces_vit(layers):
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=6,
        patch_size=3,
        num_channels=2,
        hidden_dropout_prob=0.0,
        layer_norm_eps=1e-5,
    )
    model = ViTModel(config, add_pooling_layer=False).double().eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.data = 0.5 * randn(*parameter.shape, seed=f"vit {i}")
    return model


def renamed(state, layers):
    """Hugging Face's weights under the names of the exercise."""
    found = {
        "embedding.projection.weight": state[
            "embeddings.patch_embeddings.projection.weight"
        ].flatten(1),
        "embedding.projection.bias": state["embeddings.patch_embeddings.projection.bias"],
        "embedding.class_token": state["embeddings.cls_token"][0, 0],
        "embedding.positions": state["embeddings.position_embeddings"][0],
    }
    pairs = {"norm": "layernorm"}
    for i in range(layers):
        mine, other = f"blocks.{i}", f"layers.{i}"
        pairs |= {
            f"{mine}.attention_norm": f"{other}.layernorm_before",
            f"{mine}.mlp_norm": f"{other}.layernorm_after",
            f"{mine}.mlp.0": f"{other}.mlp.fc1",
            f"{mine}.mlp.2": f"{other}.mlp.fc2",
            f"{mine}.attention.out_proj": f"{other}.attention.o_proj",
        }
        for kind in ("weight", "bias"):
            found[f"{mine}.attention.in_proj_{kind}"] = torch.cat(
                [state[f"{other}.attention.{part}_proj.{kind}"] for part in "qkv"]
            )
    for mine, other in pairs.items():
        for kind in ("weight", "bias"):
            found[f"{mine}.{kind}"] = state[f"{other}.{kind}"]
    return found


@pytest.mark.parametrize("layers", [1, 3])
def test_encoder_is_hugging_faces_vit(vision, layers):
    theirs = hugging_faces_vit(layers)
    mine = vision.VisionTransformer(6, 3, 2, 8, 2, layers).double()
    mine.load_state_dict(renamed(theirs.state_dict(), layers))
    images = randn(3, 2, 6, 6, seed="vit images")
    with torch.no_grad():
        expected = theirs(pixel_values=images).last_hidden_state
        torch.testing.assert_close(mine.states(images), expected, **CLOSE)
        torch.testing.assert_close(mine(images), expected[:, 0], **CLOSE)


def test_mirroring_an_image_is_exchanging_patches_and_their_pixels(vision):
    """Without positions, an image of constant patches and its mirror image are one set."""
    model = vision.VisionTransformer(4, 2, 1, 8, 2, 2).double()
    image = randn(1, 1, 2, 2, seed="coarse").repeat_interleave(2, -1).repeat_interleave(2, -2)
    with torch.no_grad():
        assert (model(image) - model(image.flip(-1))).abs().max() > 1e-5
        model.embedding.positions.zero_()
        torch.testing.assert_close(model(image), model(image.flip(-1)), **CLOSE)


# --- the loss ---


def by_brute_force(images, texts, t):
    """Sums of exponentials, one number after another."""
    n = len(images)

    def s(i, j):
        a, b = images[i].tolist(), texts[j].tolist()
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return math.exp(t) * dot / (math.hypot(*a) * math.hypot(*b))

    total = 0.0
    for k in range(n):
        row = sum(math.exp(s(k, j)) for j in range(n))
        column = sum(math.exp(s(i, k)) for i in range(n))
        total += -math.log(math.exp(s(k, k)) / row) - math.log(math.exp(s(k, k)) / column)
    return total / (2 * n)


@pytest.mark.parametrize("pairs, t", [(1, 1.0), (2, 0.3), (6, 2.66)])
def test_loss_by_brute_force(vision, pairs, t):
    images, texts = 3.0 * randn(2, pairs, 4, seed="brute force")
    found = vision.clip_loss(images, texts, torch.tensor(t, dtype=torch.float64))
    assert found.item() == pytest.approx(by_brute_force(images, texts, t))


def test_logits_and_loss_are_hugging_faces(vision):
    config = CLIPConfig(
        text_config={
            "vocab_size": 9,
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 5,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 6,
            "patch_size": 3,
        },
        projection_dim=5,
    )
    model = CLIPModel(config).eval()
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07), abs=1e-3)
    tokens = torch.tensor([[1, 4, 5, 2], [1, 6, 2, 2], [1, 3, 8, 2]])
    images = randn(3, 3, 6, 6, seed="clip images").float()
    with torch.no_grad():
        output = model(input_ids=tokens, pixel_values=images, return_loss=True)
        image_features = model.visual_projection(model.vision_model(images).pooler_output)
        text_features = model.text_projection(model.text_model(tokens).pooler_output)
        features = (image_features, text_features, model.logit_scale)
        torch.testing.assert_close(vision.clip_logits(*features), output.logits_per_image)
        torch.testing.assert_close(vision.clip_loss(*features), output.loss)


def test_gradient_by_finite_differences(vision):
    images, texts = (randn(4, 3, seed=name).requires_grad_() for name in ("images", "texts"))
    t = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(vision.clip_loss, (images, texts, t))


def test_gradient_of_a_logit_is_as_derived(vision):
    """The formula of the text, (p − δ + q − δ) / 2N, against autograd."""
    n = 4
    logits = randn(n, n, seed="derived").requires_grad_()
    right = torch.arange(n)
    loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    loss.backward()
    p, q = logits.softmax(1), logits.softmax(0)
    torch.testing.assert_close(logits.grad, (p + q - 2 * torch.eye(n)) / (2 * n), **CLOSE)


def test_what_the_text_says_of_bare_cosines():
    """The best 64 pairs could ever have without a factor."""
    best = math.e / (math.e + 63 / math.e)
    assert best == pytest.approx(0.10, abs=0.005)
    assert -math.log(best) > 2.2


def test_loss_of_equal_vectors_is_that_of_a_guess(vision):
    same = torch.ones(7, 3, dtype=torch.float64)
    found = vision.clip_loss(same, same, torch.tensor(2.0))
    assert found.item() == pytest.approx(math.log(7))


def test_two_pairs_with_one_caption_cannot_cost_less_than_ln_2(vision):
    vectors = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 2]]
    found = vision.clip_loss(vectors, vectors, torch.tensor(math.log(100.0)))
    assert found.item() == pytest.approx(math.log(2) / 2)  # two of four pay it


# --- CLIP and its classes ---


@pytest.fixture
def clip(vision):
    torch.manual_seed(0)
    sizes = vision.Sizes(scenes.SIZE, 8, 3, len(scenes.VOCABULARY), 4, 16, 2, 1, 8)
    return vision.CLIP(sizes)


def test_a_few_steps_lower_the_loss(vision, clip):
    rng = generator("few steps")
    drawn = [scenes.draw(1, rng) for _ in range(12)]
    images = scenes.render(drawn)
    tokens = torch.stack([scenes.encode(scenes.caption(scene)) for scene in drawn])
    optimizer = torch.optim.AdamW(clip.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = clip(images, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clip.clamp_scale()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_scale_comes_back_after_it_was_clamped(clip):
    """What a clamp inside the loss would prevent."""
    optimizer = torch.optim.SGD([clip.log_scale], lr=0.1)
    with torch.no_grad():
        clip.log_scale.fill_(9.0)
    clip.clamp_scale()
    assert clip.log_scale.exp().item() == pytest.approx(100.0)
    clip.log_scale.grad = torch.tensor(1.0)
    optimizer.step()
    assert clip.log_scale.item() == pytest.approx(math.log(100) - 0.1)


def test_padding_changes_no_text(clip):
    words = scenes.encode(("a", "red", "circle"))[None]
    with torch.no_grad():
        alone, padded = clip.encode_texts(words), clip.encode_texts(F.pad(words, (0, 1)))
    torch.testing.assert_close(alone, padded)


def test_zero_shot_is_the_loss_with_classes_for_captions(vision):
    """The negative log-probability of the right class is the rows' half of the loss."""
    images, classes = randn(2, 5, 4, seed="classes")
    t = torch.tensor(1.1, dtype=torch.float64)
    probabilities = vision.zero_shot(images, classes[:, None], t)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5, dtype=torch.float64), **CLOSE)
    rows = F.cross_entropy(vision.clip_logits(images, classes, t), torch.arange(5))
    torch.testing.assert_close(-probabilities.diagonal().log().mean(), rows, **CLOSE)


def test_a_class_is_the_direction_nearest_to_its_prompts(vision):
    """No other unit vector has a larger mean cosine with the prompts."""
    prompts = randn(1, 6, 3, seed="prompts")
    [best] = vision.class_embeddings(prompts)
    others = F.normalize(randn(500, 3, seed="others"), dim=-1)

    def mean_cosine(x):
        return (F.normalize(prompts[0], dim=-1) @ x.mT).mean(0)

    assert (mean_cosine(others) <= mean_cosine(best[None])).all()
