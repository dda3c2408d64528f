"""One model for names, pictures and tones of digits: from each form to each other.

A tokenizer with a codebook is trained for squares of scikit-learn's scans of digits, and one for pieces of telephone
tones (both are the exercise's). Then one Transformer learns streams of two forms of the same digit, a name in letters,
a scan, or a tone, in all six orders, the loss being that of the second form. Asked with a form that it has not trained
with, it writes another. Judges who have not seen the model say whether it is the right digit: for pictures a support
vector classifier fitted to the real training scans, for tones the exercise's receiver, for names the spelling. Also
what the judges say of real scans and tones that were coded and decoded, which is the most that can be expected. For
the page: what the model of the first seed makes of the ten names, as pictures and as tones. The seeds change the
tokenizers, the first weights, the noise and phases of tones, and all that is drawn.
"""

import itertools
import math

import torch
from jaxtyping import Float, Int
from sklearn.svm import SVC
from torch import Tensor

import lab
from autograder.loader import reference
from lab import digits, runs, tones, training
from lab.models import CausalTransformer

omni = reference("multimodal", "omni")
vision = reference("multimodal", "vision")

SEEDS = (0, 1, 2)
WIDTH, HEADS, LAYERS, STEPS, BATCH = 64, 4, 2, 1500, 48
RATE, TEMPERATURE = 3e-3, 0.5
CODES, D_CODE, HIDDEN, TOKENIZER_STEPS = 128, 8, 64, 500
SECONDS, FRAME, PATCH, SIDE, NOISE = 0.04, 32, 4, 8, 0.02
HEARD, TESTED = 200, 20  # tones of each digit to train with; forms of each digit to test with
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FORMS = {"text": "name", "image": "picture", "sound": "tone"}
SIZES = (26, CODES, CODES)
LIMITS = {"text": 5, "image": (SIDE // PATCH) ** 2, "sound": round(SECONDS * tones.RATE) // FRAME}
LENGTH = sum(sorted(LIMITS.values())[1:]) + 4
DIRECTIONS = list(itertools.permutations(FORMS, 2))
TRAIN, TEST = digits.digits("train"), digits.digits("test")
JUDGE = SVC().fit(TRAIN.images.flatten(1), TRAIN.labels)


# --- pieces and tokenizers ------------------------------------------------------------------------


def pieces_of(form: str, given: Float[Tensor, "n ..."]) -> Float[Tensor, "n pieces features"]:
    """The squares of scans, or the frames of sounds."""
    if form == "image":
        return vision.patchify(given[:, None], PATCH)  # one channel
    return given.unflatten(1, (-1, FRAME))


def tones_of_all(count: int, rng: torch.Generator) -> Float[Tensor, "10 count samples"]:
    """So many noisy tones of each digit's key."""
    sounds = []
    for digit in range(10):
        phases = 2 * math.pi * torch.rand(count, 2, generator=rng)
        sounds.append(omni.dual_tone(tones.frequencies(str(digit)), SECONDS, tones.RATE, phases))
    stacked = torch.stack(sounds)
    return stacked + NOISE * torch.randn(stacked.shape, generator=rng)


def fitted(pieces: Float[Tensor, "n features"], name: str) -> torch.nn.Module:
    """A tokenizer for such pieces. Codes that nothing chooses are put where the encoder has put something."""
    tokenizer = omni.Tokenizer(pieces.shape[1], HIDDEN, D_CODE, CODES)
    steps = itertools.count()

    @torch.no_grad()
    def revive(rng: torch.Generator) -> None:
        some = pieces[torch.randint(len(pieces), (2048,), generator=rng)]
        idle = tokenizer.encode(some).bincount(minlength=CODES) == 0
        chosen = torch.randint(len(some), (int(idle.sum()),), generator=rng)
        tokenizer.codebook[idle] = tokenizer.encoder(some[chosen])

    def batch(rng: torch.Generator) -> Tensor:
        step = next(steps)
        if step % 20 == 0 and step < 0.8 * TOKENIZER_STEPS:
            revive(rng)
        return pieces[torch.randint(len(pieces), (256,), generator=rng)]

    rng = lab.generator(name)
    training.train(
        tokenizer,
        batch,
        lambda model, rows: model(rows),
        TOKENIZER_STEPS,
        RATE,
        generator=rng,
        progress=False,
    )
    return tokenizer


# --- one seed's tokenizers and model --------------------------------------------------------------


class World:
    """What reads and writes each form, and the model that goes from one to another."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.seed = seed
        heard = tones_of_all(HEARD, lab.generator(f"tones {seed}"))
        self.tokenizers = {
            "image": fitted(pieces_of("image", TRAIN.images).flatten(0, 1), f"scans {seed}"),
            "sound": fitted(heard.reshape(-1, FRAME), f"tones to code {seed}"),
        }
        # What there is of each digit, as segments: streams[form][digit] is (n, length).
        self.streams = {
            "text": [self.spelled(digit)[None] for digit in range(10)],
            "image": [self.segments("image", TRAIN.images[TRAIN.labels == d]) for d in range(10)],
            "sound": [self.segments("sound", sounds) for sounds in heard],
        }
        self.model = CausalTransformer(omni.FIRST + sum(SIZES), WIDTH, HEADS, LAYERS, LENGTH)
        rng = lab.generator(f"streams {seed}")
        training.train(
            self.model, self.batch, training.token_loss, STEPS, RATE, generator=rng, progress=False
        )
        self.model.eval()
        self.prompts = self.unseen()

    def spelled(self, digit: int) -> Int[Tensor, " length"]:
        letters = torch.tensor([ord(letter) - ord("a") for letter in WORDS[digit]])
        return omni.interleave([("text", letters)], SIZES)

    def segments(self, form: str, given: Float[Tensor, "n ..."]) -> Int[Tensor, "n length"]:
        """Scans or sounds as segments of a stream."""
        codes = self.tokenizers[form].encode(pieces_of(form, given))
        return torch.stack([omni.interleave([(form, row)], SIZES) for row in codes])

    @torch.no_grad()
    def decoded(self, form: str, segment: Int[Tensor, " length"]) -> Tensor | None:
        """The scan or sound that a segment stands for; none if it has not as many codes as it needs."""
        [(_, codes)] = omni.separate(segment, SIZES)
        if len(codes) != LIMITS[form]:
            return None
        pieces = self.tokenizers[form].decode(codes)
        if form == "sound":
            return pieces.flatten()
        return vision.unpatchify(pieces, PATCH, SIDE, SIDE).squeeze(0)  # (1, 8, 8) → (8, 8)

    def is_right(self, form: str, segment: Int[Tensor, " length"], digit: int) -> bool:
        """Whether a judge takes a segment for this digit."""
        if form == "text":
            return segment[segment != omni.PADDING].tolist() == self.spelled(digit).tolist()
        made = self.decoded(form, segment)
        if made is None:
            return False
        if form == "image":
            return int(JUDGE.predict(made.flatten()[None])[0]) == digit
        return omni.hear(made[None], tones.RATE) == str(digit)

    def batch(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Digits in one form and then in another; the loss is that of the second form, its begin left out."""
        streams = torch.full((BATCH, LENGTH), omni.PADDING)
        targets = torch.full((BATCH, LENGTH), -100)
        drawn = torch.randint(10, (BATCH,), generator=rng).tolist()
        places = torch.rand(BATCH, 2, generator=rng).tolist()
        for i, digit in enumerate(drawn):
            pair = [self.streams[form][digit] for form in DIRECTIONS[i % len(DIRECTIONS)]]
            first, second = (
                rows[int(p * len(rows))] for rows, p in zip(pair, places[i], strict=True)
            )
            middle, end = len(first), len(first) + len(second)
            streams[i, :middle], streams[i, middle:end] = first, second
            targets[i, middle + 1 : end] = second[1:]
        return streams[:, :-1], targets[:, 1:]

    @torch.no_grad()
    def answers(self, prompts: Int[Tensor, "n length"], form: str) -> Int[Tensor, "n longest"]:
        """What the model says in another form."""
        rng = lab.generator(f"answers {self.seed} {form}")
        return omni.generate(
            lambda tokens: self.model(tokens)[:, -1],
            prompts,
            form,
            SIZES,
            LIMITS[form],
            TEMPERATURE,
            rng,
        )

    def unseen(self) -> dict[str, list[Int[Tensor, "n length"]]]:
        """Digits that were not trained with, in each form, by digit; the names are always the same."""
        sounds = tones_of_all(TESTED, lab.generator(f"test tones {self.seed}"))
        scans = [TEST.images[TEST.labels == digit][:TESTED] for digit in range(10)]
        return {
            "text": [self.spelled(digit).repeat(TESTED, 1) for digit in range(10)],
            "image": [self.segments("image", one) for one in scans],
            "sound": [self.segments("sound", one) for one in sounds],
        }


def share(world: World, source: str, target: str) -> float:
    """How many answers a judge takes for the digit that was meant; with one form, how many real ones after coding."""
    hits = []
    for digit, prompts in enumerate(world.prompts[source]):
        answers = prompts if source == target else world.answers(prompts, target)
        hits += [world.is_right(target, answer, digit) for answer in answers]
    return round(sum(hits) / len(hits), 4)


def made_of_names(world: World, form: str) -> list[list[int] | None]:
    """What the model makes of the ten names, in whole numbers: pixels of 0 to 16, samples of -127 to 127."""
    scale = 16 if form == "image" else 127
    made = []
    for prompts in world.prompts["text"]:
        found = world.decoded(form, world.answers(prompts[:1], form)[0])
        whole = None if found is None else (scale * found).round().clamp(-scale, scale)
        made.append(None if whole is None else whole.int().flatten().tolist())
    return made


def measure(seed: int) -> dict:
    world = World(seed)
    found = {
        "right": {f"{FORMS[a]} → {FORMS[b]}": share(world, a, b) for a, b in DIRECTIONS},
        "coded": {FORMS[form]: share(world, form, form) for form in ("image", "sound")},
        "judge": round(float(JUDGE.score(TEST.images.flatten(1), TEST.labels)), 4),
        "parameters": sum(p.numel() for p in world.model.parameters()),
    }
    if seed == SEEDS[0]:
        found |= {
            name: made_of_names(world, form)
            for name, form in (("pictures", "image"), ("tones", "sound"))
        }
    return found


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=SEEDS, answers=("multimodal/omni", "multimodal/vision"))
