"""Zero-shot classification by contrast: pictures of a colour and a shape that were never shown together.

The CLIP of the exercise multimodal/vision learns pictures of one thing with their captions, of sixteen of the twenty
pairs of colour and shape. Then it sorts pictures among all twenty, each named by a text. What is measured: the share of
pictures for which both words, the colour, and the shape are right, for the pairs that were seen and for the four that
were held out. Two settings: small pictures, of which a patch of four pixels shows a larger piece, and larger ones.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

import lab
from autograder.loader import reference
from lab import runs, scenes, training

SEEDS = (0, 1, 2)
WIDTH, HEADS, LAYERS, BATCH, RATE = 32, 2, 2, 48, 2e-3
SHOWN, TESTED = 4096, 800
SEEN = [pair for pair in scenes.PAIRS if pair not in scenes.HELD_OUT]

vision = reference("multimodal", "vision")


class Setting(NamedTuple):
    """The pictures' side in pixels, and the steps of training."""

    pixels: int
    steps: int


SETTINGS = {"24 pixels": Setting(24, 600), "32 pixels": Setting(32, 800)}


def pictures(drawn: list[scenes.Scene], setting: Setting) -> Tensor:
    """The scenes rendered, the ground at 0."""
    return scenes.render(drawn, setting.pixels) - scenes.GROUND


def texts(phrases: list[tuple[str, ...]]) -> Tensor:
    """Their tokens; the phrases are of one length."""
    return torch.stack([scenes.encode(words) for words in phrases])


PROMPTS = texts([("a", *pair) for pair in scenes.PAIRS])


def trained(setting: Setting, seed: int) -> nn.Module:
    """A CLIP that has seen pictures of the sixteen kinds with their captions, and nothing else."""
    rng = lab.generator(f"contrast shown {seed}")
    drawn = [scenes.draw(1, rng, pairs=SEEN) for _ in range(SHOWN)]
    images, captions = pictures(drawn, setting), texts([scenes.caption(scene) for scene in drawn])

    def batch(rng: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(SHOWN, (BATCH,), generator=rng)
        return images[rows], captions[rows]

    def loss(model: nn.Module, pairs: tuple[Tensor, Tensor]) -> Tensor:
        model.clamp_scale()  # what the step before may have made too large
        return model(*pairs)

    torch.manual_seed(seed)
    sizes = vision.Sizes(
        image_size=setting.pixels,
        patch_size=4,
        channels=3,
        vocab_size=len(scenes.VOCABULARY),
        max_length=PROMPTS.shape[1],
        d_model=WIDTH,
        num_heads=HEADS,
        num_layers=LAYERS,
        d_joint=WIDTH,
    )
    model, rng = vision.CLIP(sizes), lab.generator(f"contrast {seed}")
    training.train(model, batch, loss, setting.steps, RATE, generator=rng, progress=False)
    return model


@torch.no_grad()
def right(
    model: nn.Module, pairs: list[tuple[str, str]], setting: Setting, seed: int
) -> dict[str, float]:
    """How often the nearest of the twenty texts has both words, the colour, the shape right."""
    rng = lab.generator(f"contrast test {seed} {pairs}")
    drawn = [scenes.draw(1, rng, pairs=pairs) for _ in range(TESTED)]
    kinds = torch.tensor([scenes.PAIRS.index(scene[0].name) for scene in drawn])
    prompts = model.encode_texts(PROMPTS)[:, None]  # one template
    said = vision.zero_shot(
        model.encode_images(pictures(drawn, setting)), prompts, model.log_scale
    ).argmax(-1)
    number = len(scenes.SHAPES)  # the kinds are in order of colour, then shape
    hits = {
        "both": said == kinds,
        "colour": said // number == kinds // number,
        "shape": said % number == kinds % number,
    }
    return {name: round(hit.double().mean().item(), 4) for name, hit in hits.items()}


def measure(seed: int) -> dict:
    found = {}
    for name, setting in SETTINGS.items():
        model = trained(setting, seed)
        found[name] = {
            "seen": right(model, SEEN, setting, seed),
            "held out": right(model, list(scenes.HELD_OUT), setting, seed),
        }
    return found


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=SEEDS, answers=("multimodal/vision",))
