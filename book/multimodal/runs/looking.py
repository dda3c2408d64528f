"""Questions about pictures, and whether who answers them looks: a picture as a prefix and by cross-attention.

A small Transformer first learns questions about scenes of coloured shapes and their answers without any pictures, so
that it knows which answers are frequent. Then two copies of it learn to answer with the picture before them. One reads
the encoded patches as a prefix of the question, as LLaVA does; the other looks at them through gated cross-attention in
each layer, as Flamingo does, its gates at zero in the beginning. All parameters are trained, in both; the picture's
encoder, the number of steps and the batches are the same. What is measured, on scenes drawn anew: the share of right
answers, by the kind of the question, with the picture that belongs to it, with the picture of another question, with
an empty one, and without any; and for six questions, where each word looks by cross-attention, and what becomes of the
answer when a patch is covered. The six are the first of their kinds, whatever was answered.
"""

import copy
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

import lab
from lab import runs, scenes, training

SEEDS = (0, 1, 2)
PIXELS, PATCH = 24, 8  # of a side; a patch is one cell of a scene's grid
SIDE = PIXELS // PATCH  # patches of a side
PATCHES = SIDE**2
WIDTH, HEADS, LAYERS = 64, 4, 2
LENGTH = 11  # of the longest question, with its start
POOL, TESTED, BATCH = 8000, 1200, 64
ALONE, STEPS, RATE = 300, 4000, 3e-3
SHOWN = (
    "colour",
    "shape",
    "number",
    "place",
    "place",
    "place",
)  # kinds of the questions that are kept
PAD = scenes.ID["<pad>"]

How = Literal["words", "prefix", "cross"]


class Asked(NamedTuple):
    """Questions with their pictures.

    Attributes:
        patches: their pixels, the ground at 0.
        words: tokens of the questions, padded at the end.
        last: the place of each question's last word.
        answers: the token of each right answer.
    """

    patches: Float[Tensor, "questions patches pixels"]
    words: Int[Tensor, "questions length"]
    last: Int[Tensor, " questions"]
    answers: Int[Tensor, " questions"]


class Block(nn.Module):
    """A pre-LN block; with ``looks``, a gated look at a memory comes first, which adds nothing while the gate is 0."""

    def __init__(self, looks: bool = False) -> None:
        super().__init__()
        if looks:
            self.look_norm = nn.LayerNorm(WIDTH)
            self.look = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            self.gate = nn.Parameter(torch.zeros(()))
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        hidden: Bool[Tensor, "length length"] | None = None,
        memory: Float[Tensor, "batch patches width"] | None = None,
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch length patches"] | None]:
        """The vectors after the block, and the weights of its look; ``hidden`` is True where one may not look."""
        weights = None
        if memory is not None:
            found, weights = self.look(self.look_norm(x), memory, memory)
            x = x + self.gate.tanh() * found
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, normed, attn_mask=hidden, need_weights=False)[0]
        return x + self.feed_forward(x), weights


class Eye(nn.Module):
    """Encodes the patches of a picture: a small Vision Transformer without a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * PATCH**2, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(PATCHES, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(
        self, patches: Float[Tensor, "batch patches pixels"]
    ) -> Float[Tensor, "batch patches width"]:
        x = self.embed(patches) + self.places
        for block in self.blocks:
            x, _ = block(x)
        return self.norm(x)


class Answerer(nn.Module):
    """A Transformer that reads a question from left to right and answers at its last word.

    Args:
        how: ``"words"`` reads the question alone.
    """

    def __init__(self, how: How) -> None:
        super().__init__()
        self.how = how
        self.embed = nn.Embedding(len(scenes.VOCABULARY), WIDTH)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.ModuleList(Block(how == "cross") for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.eye = None if how == "words" else Eye()
        self.project = nn.Linear(WIDTH, WIDTH) if how == "prefix" else None

    def forward(self, asked: Asked) -> Float[Tensor, "questions vocabulary"]:
        return self.read(asked)[0]

    def read(
        self, asked: Asked
    ) -> tuple[
        Float[Tensor, "questions vocabulary"], list[Float[Tensor, "questions length patches"]]
    ]:
        """Logits of the answers, and where each word looks in each layer."""
        x = self.embed(asked.words) + self.places[: asked.words.shape[1]]
        memory = None if self.eye is None else self.eye(asked.patches)
        before = 0
        if self.how == "prefix":
            x, before, memory = torch.cat([self.project(memory), x], 1), PATCHES, None
        weights = []
        for block in self.blocks:
            x, looked = block(x, hidden_from(x.shape[1], before), memory)
            weights.append(looked)
        last = x[torch.arange(len(x)), before + asked.last]
        return self.norm(last) @ self.embed.weight.T, weights


def hidden_from(length: int, before: int) -> Bool[Tensor, "length length"]:
    """True where a place may not look: ahead, except within the ``before`` first ones, which all see each other."""
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    hidden[:before, :before] = False
    return hidden


def questions(
    number: int, rng: torch.Generator
) -> tuple[list[scenes.Scene], list[scenes.Question]]:
    """Scenes of one to three things with a question about each."""
    drawn = [scenes.draw(1 + i % 3, rng) for i in range(number)]
    return drawn, [scenes.ask(scene, rng) for scene in drawn]


def as_tensors(drawn: list[scenes.Scene], asked: list[scenes.Question]) -> Asked:
    pictures = scenes.render(drawn, PIXELS) - scenes.GROUND
    # (questions, 3, PIXELS, PIXELS) → (questions, 3, SIDE, PATCH, SIDE, PATCH) → (questions, PATCHES, 3 · PATCH²)
    cut = pictures.view(-1, 3, SIDE, PATCH, SIDE, PATCH).permute(0, 2, 4, 1, 3, 5)
    words = [scenes.encode(("<start>", *one.words)) for one in asked]
    return Asked(
        cut.reshape(len(drawn), PATCHES, -1),
        torch.stack([nn.functional.pad(w, (0, LENGTH - len(w)), value=PAD) for w in words]),
        torch.tensor([len(w) - 1 for w in words]),
        scenes.encode([one.answer for one in asked]),
    )


def rows_of(asked: Asked, rows: Tensor) -> Asked:
    return Asked(*(part[rows] for part in asked))


def loss(model: Answerer, asked: Asked) -> Float[Tensor, ""]:
    return nn.functional.cross_entropy(model(asked), asked.answers)


def trained(model: Answerer, shown: Asked, steps: int, seed: int) -> Answerer:
    def batch(rng: torch.Generator) -> Asked:
        return rows_of(shown, torch.randint(len(shown.words), (BATCH,), generator=rng))

    rng = lab.generator(f"looking {seed}")
    training.train(model, batch, loss, steps, RATE, generator=rng, progress=False)
    return model.eval()


def with_a_picture(alone: Answerer, how: How) -> Answerer:
    """The text model, able to see: all it has learnt is kept, what is new is drawn at random."""
    model = Answerer(how)
    model.load_state_dict(copy.deepcopy(alone.state_dict()), strict=False)
    return model


@torch.no_grad()
def right(model: Answerer, asked: Asked) -> Bool[Tensor, " questions"]:
    return model(asked).argmax(-1) == asked.answers


def shares(hits: Bool[Tensor, " questions"], kinds: list[str]) -> dict[str, float]:
    """The share of right answers of all questions and of each kind."""
    found = {"all": hits.double().mean().item()}
    for kind in sorted(set(kinds)):
        chosen = torch.tensor([k == kind for k in kinds])
        found[kind] = hits[chosen].double().mean().item()
    return {name: round(share, 4) for name, share in found.items()}


@torch.no_grad()
def covered(model: Answerer, one: Asked) -> tuple[list[float], list[str]]:
    """The right answer's probability, and the likeliest answer, with each patch covered."""
    masks = torch.eye(PATCHES, dtype=torch.bool)
    many = rows_of(one, torch.zeros(PATCHES, dtype=torch.int64))
    many = many._replace(patches=many.patches.masked_fill(masks[..., None], 0))
    probabilities = model(many).softmax(-1)
    likeliest = [scenes.VOCABULARY[i] for i in probabilities.argmax(-1).tolist()]
    return [round(p, 3) for p in probabilities[:, one.answers.item()].tolist()], likeliest


@torch.no_grad()
def examples(model: Answerer, seed: int) -> list[dict]:
    """The six questions: the scene, where each word looks, and what becomes of the answer."""
    drawn, asked = questions(200, lab.generator(f"looking examples {seed}"))
    kept, left = [], list(range(len(asked)))
    for kind in SHOWN:
        kept.append(next(i for i in left if asked[i].kind == kind and len(drawn[i]) > 1))
        left.remove(kept[-1])
    found = []
    for i in kept:
        one = as_tensors([drawn[i]], [asked[i]])
        logits, weights = model.read(one)
        probabilities, likeliest = covered(model, one)
        length = int(one.last) + 1
        looks = torch.stack(weights)[:, 0, 1:length].mean(
            0
        )  # of the question's words, over the layers
        found.append(
            {
                "things": [thing._asdict() for thing in drawn[i]],
                "words": list(asked[i].words),
                "answer": asked[i].answer,
                "said": scenes.VOCABULARY[int(logits.argmax())],
                "probability": round(float(logits.softmax(-1)[0, one.answers]), 3),
                "looks": [[round(w, 3) for w in row] for row in looks.tolist()],
                "covered": probabilities,
                "covered, said": likeliest,
            }
        )
    return found


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def models(seed: int) -> dict[How, Answerer]:
    """The model that has only read, and the two that see."""
    torch.manual_seed(seed)
    shown = as_tensors(*questions(POOL, lab.generator(f"looking shown {seed}")))
    alone = trained(Answerer("words"), shown, ALONE, seed)
    seeing = {
        how: trained(with_a_picture(alone, how), shown, STEPS, seed) for how in ("prefix", "cross")
    }
    return {"words": alone, **seeing}


def measure(seed: int) -> dict:
    found = models(seed)
    drawn, asked = questions(TESTED, lab.generator(f"looking test {seed}"))
    test, kinds = as_tensors(drawn, asked), [one.kind for one in asked]
    others = torch.randperm(TESTED, generator=lab.generator(f"looking others {seed}"))
    pictures = {
        "its own": test,
        "another's": test._replace(patches=test.patches[others]),
        "empty": test._replace(patches=torch.zeros_like(test.patches)),
    }
    return {
        "questions": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "words": shares(right(found["words"], test), kinds),
        **{
            how: {name: shares(right(found[how], seen), kinds) for name, seen in pictures.items()}
            for how in ("prefix", "cross")
        },
        "parameters": {how: parameters(model) for how, model in found.items()},
        "gates": [round(block.gate.tanh().item(), 3) for block in found["cross"].blocks],
        "examples": examples(found["cross"], seed),
    }


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=SEEDS)
