"""Is it a question? Fine-tuning on few labelled sentences, with pre-training and without, from both sides or the left.

A sentence of the plays is given without the mark at its end. Was that mark `?` or another? Half of the sentences are
questions. The checkpoints `bert` and `left_to_right` get a new output layer and are fine-tuned, all weights, on 20 to
1,280 sentences; so are the same models with random weights, and the left-to-right one once more with GPT-1's second
loss, that of predicting its text. A logistic regression on the words of a sentence stands beside them. The text of
pre-training had one mark for all ends of sentences, so that it held no answer. The seeds change which sentences have
labels, the order of the batches and the new weights.
"""

import functools

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import lab
from lab import checkpoints, data, runs, training

blanks = runs.script("pretraining/blanks")

SEEDS = (0, 1, 2)
LABELLED = (20, 80, 320, 1280)
TESTED = 2000
SHORTEST, LONGEST = 4, 24  # words of a sentence
STEPS, BATCH = 200, 16
RATES = {"pre-trained": 5e-4, "from scratch": 2e-3}
AUXILIARY = 0.5  # weight of GPT-1's second loss, its lambda


# --- sentences with labels ------------------------------------------------------------------------


@functools.cache
def sentences(split: str) -> tuple[Tensor, Tensor]:
    """Sentences without their end, (sentence LONGEST), and whether it was a question mark: as many of each kind."""
    found = {True: [], False: []}
    for block in data.text(split).split("\n\n"):
        heading, _, speech = block.partition("\n")
        words = []
        for word in blanks.WORD.findall(speech.lower() if heading.isupper() else ""):
            if word not in ".?!":
                words.append(word)
                continue
            if SHORTEST <= len(words) <= LONGEST:
                found[word == "?"].append(words)
            words = []
    count = min(map(len, found.values()))
    rng = lab.generator(f"sentences {split}")
    rows, labels = [], []
    for question, texts in found.items():
        for i in torch.randperm(len(texts), generator=rng)[:count].tolist():
            rows.append(blanks.encode(texts[i]))
            labels.append(question)
    order = torch.randperm(len(rows), generator=rng)
    padded = nn.utils.rnn.pad_sequence(
        [*rows, torch.zeros(LONGEST, dtype=torch.int64)], batch_first=True, padding_value=blanks.PAD
    )[:-1]
    return padded[order], torch.tensor(labels)[order].long()


# --- classifiers ----------------------------------------------------------------------------------


class Classifier(nn.Module):
    """A model with a new layer on one of its vectors.

    The masked model's is that of a [MASK] in front, which may gather from everything, as BERT's [CLS]: tried on
    validation plays it was better than a [MASK] at the end, and than the mean of all words. The other model's is that
    of the last word, which has seen all before.
    """

    def __init__(self, body: nn.Module, kind: str, generator: torch.Generator) -> None:
        super().__init__()
        self.body, self.kind = body, kind
        self.output = nn.Linear(blanks.WIDTH, 2)
        nn.init.normal_(self.output.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.output.bias)

    def forward(self, texts: Tensor) -> Tensor:
        """Logits of the two classes for padded sentences, (batch 2)."""
        in_front = blanks.MASK if self.kind == "masked" else blanks.PAD
        states = self.body.states(nn.functional.pad(texts, (1, 0), value=in_front))
        if self.kind == "masked":
            return self.output(states[:, 0])
        return self.output(states[torch.arange(len(texts)), (texts != blanks.PAD).sum(-1)])


def body(kind: str, pretrained: bool, seed: int) -> nn.Module:
    if pretrained:
        return checkpoints.load(blanks.CHECKPOINTS[kind]).model
    return blanks.untrained(kind, f"few labels {seed}")


def fine_tuned(
    kind: str, labelled: int, seed: int, *, pretrained: bool, auxiliary: float = 0.0
) -> Classifier:
    """A classifier after training on so many sentences, the same ones for every kind."""
    texts, labels = sentences("train")
    some = torch.randperm(len(texts), generator=lab.generator(f"labelled {seed}"))[:labelled]
    texts, labels = texts[some], labels[some]

    def batch(rng: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(labelled, (BATCH,), generator=rng)
        return texts[rows], labels[rows]

    def loss(model: Classifier, batch: tuple[Tensor, Tensor]) -> Tensor:
        found = nn.functional.cross_entropy(model(batch[0]), batch[1])
        return found + auxiliary * blanks.next_loss(model.body, batch[0]) if auxiliary else found

    model = Classifier(body(kind, pretrained, seed), kind, lab.generator(f"output {seed}"))
    training.train(
        model,
        batch,
        loss,
        STEPS,
        RATES["pre-trained" if pretrained else "from scratch"],
        generator=lab.generator(f"few labels batches {seed}"),
        progress=False,
    )
    return model.eval()


@torch.no_grad()
def accuracy(model: Classifier, split: str) -> float:
    """Share of the split's first sentences told right."""
    texts, labels = (part[:TESTED] for part in sentences(split))
    found = torch.cat([model(part).argmax(-1) for part in texts.split(200)])
    return round((found == labels).float().mean().item(), 4)


def of_words(labelled: int, seed: int, split: str) -> float:
    """The same for a logistic regression on which words a sentence has."""

    def has(texts: Tensor) -> Tensor:
        return torch.zeros(len(texts), blanks.VOCABULARY).scatter_(1, texts, 1.0)[:, 1:]

    texts, labels = sentences("train")
    some = torch.randperm(len(texts), generator=lab.generator(f"labelled {seed}"))[:labelled]
    model = LogisticRegression(max_iter=1000).fit(has(texts[some]).numpy(), labels[some].numpy())
    tested, right = (part[:TESTED] for part in sentences(split))
    return round(float(model.score(has(tested).numpy(), right.numpy())), 4)


# --- the record -----------------------------------------------------------------------------------

WAYS = {
    "both sides, pre-trained": {"kind": "masked", "pretrained": True},
    "from the left, pre-trained": {"kind": "left to right", "pretrained": True},
    "from the left, pre-trained, second loss": {
        "kind": "left to right",
        "pretrained": True,
        "auxiliary": AUXILIARY,
    },
    "both sides, from scratch": {"kind": "masked", "pretrained": False},
    "from the left, from scratch": {"kind": "left to right", "pretrained": False},
}


def measure(seed: int, split: str = "test") -> dict:
    found = {
        way: {
            str(labelled): accuracy(fine_tuned(labelled=labelled, seed=seed, **how), split)
            for labelled in LABELLED
        }
        for way, how in WAYS.items()
    }
    found["words alone"] = {str(n): of_words(n, seed, split) for n in LABELLED}
    return {"tested": len(sentences(split)[1][:TESTED]), "accuracy": found}


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=SEEDS)
