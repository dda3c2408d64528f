"""A fine-tuned model that answers from memory, two that have a found page before their eyes, and the search alone.

The portraits of the base text, gathered by person, are the pages; a search engine ranks them for a question by TF-IDF.
A small base model (as in the run `instruct`, with room for a page) is fine-tuned three times, alike but for what
stands in the prompts of its demonstrations: the bare question; in front of it the page that the engine ranks first; or
such a page on which every fact that is asked for has been changed, as in the demonstrated answer, so that memory is of
no use. All answer test questions about people, one word drawn after the other. What is counted: right answers,
refusals and wrong answers, for what the base text tells, for what it does not tell, and for facts that have changed
since: the same told questions, where page and right answer name another city or job than the base text. Of the search
alone it is counted whether the page ranked first contains the right answer, another possible answer, or neither. The
seeds change the text that is drawn, the first weights, demonstrations, responses and changes.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

import lab
from lab import instructions, models, runs, training
from lab.instructions import Instruction

instruct = runs.script("alignment/instruct")

SEEDS = (0, 1, 2)
PAGE = 12  # words of the longest page
MAX_LENGTH = instructions.MAX_LENGTH + PAGE
DEMONSTRATIONS, STEPS, RATE = (
    8000,
    1000,
    1e-3,
)  # more than in `instruct`: reading is learnt more slowly
TESTED = 1500
SHOWN = 8  # answers of each kind that the record keeps

Page = tuple[str, ...]


# --- the pages, and the engine --------------------------------------------------------------------


def pages(text: Tensor) -> list[Page]:
    """The portraits of a base text, one page a person: each sentence once, in the order of its first appearance."""
    found: dict[str, dict[Page, None]] = {}
    for document in " ".join(instructions.decode(text)).split(" <end> "):
        if "?" in document:
            continue
        for sentence in document.split(" . "):
            words = tuple(sentence.removesuffix(" .").split())
            if words[:1] and words[0] in instructions.PEOPLE and _whole(words):
                found.setdefault(words[0], {})[words] = None
    return [tuple(w for s in own for w in (*s, ".")) for own in found.values()]


def _whole(words: Page) -> bool:
    """Whether a sentence was not cut off by the end of the text."""
    return words[-1] in {*instructions.CITIES, *instructions.JOBS, *instructions.FOODS}


class Engine:
    """Ranks pages for a question by the cosine of their TF-IDF vectors."""

    def __init__(self, pages: Sequence[Page]) -> None:
        self.pages = list(pages)
        self._vectors = TfidfVectorizer(token_pattern=r"[^\s.?]+")
        self._index = self._vectors.fit_transform([" ".join(page) for page in self.pages])

    def best(self, asked: Sequence[Instruction]) -> list[Page]:
        """The page ranked first for each question."""
        queries = self._vectors.transform([" ".join(one.question) for one in asked])
        scores = (queries @ self._index.T).toarray()
        return [self.pages[i] for i in scores.argmax(axis=1)]


@dataclass(frozen=True)
class WithPage:
    """An instruction whose question comes after a found page."""

    asked: Instruction
    page: Page

    @property
    def task(self) -> str:
        return self.asked.task

    @property
    def about(self) -> tuple[str, ...]:
        return self.asked.about

    @property
    def answer(self) -> str:
        return self.asked.answer

    @property
    def question(self) -> tuple[str, ...]:
        return (*self.page, *self.asked.question)


Prompt = Instruction | WithPage


def bare(prompt: Prompt) -> Instruction:
    """The instruction without a page."""
    return prompt.asked if isinstance(prompt, WithPage) else prompt


def with_pages(asked: Sequence[Instruction], engine: Engine) -> list[WithPage]:
    return [WithPage(one, page) for one, page in zip(asked, engine.best(asked), strict=True)]


def changed(found: WithPage, rng: torch.Generator) -> WithPage:
    """The same question after the person has moved or found another job, and the page says so."""
    old = found.asked.answer
    others = [one for one in instructions.KINDS[found.task] if one != old]
    new = others[int(torch.randint(len(others), (), generator=rng))]
    page = tuple(new if word == old else word for word in found.page)
    return WithPage(found.asked._replace(answer=new), page)


# --- training -------------------------------------------------------------------------------------


def base(seed: int) -> nn.Module:
    """As the small model of `instruct`, with room for a page."""
    sizes = {**instruct.sizes(instruct.SMALL), "max_length": MAX_LENGTH}
    model = models.CausalTransformer(**sizes, generator=lab.generator(f"base weights {seed}"))
    batches = training.text_batches(instruct.text(seed), instruct.BATCH, MAX_LENGTH)
    rng = lab.generator(f"base batches {seed}")
    training.train(
        model,
        batches,
        training.token_loss,
        instruct.STEPS,
        instruct.RATE,
        generator=rng,
        progress=False,
    )
    return model.eval()


def fine_tuned(start: nn.Module, seed: int, prompts: Sequence[Prompt]) -> nn.Module:
    """The model after training on the demonstrated answers, with the base text besides, as in `instruct`."""
    rng = lab.generator(f"answers {seed}")
    shown = [instructions.demonstrate(bare(one), rng) for one in prompts]
    tokens, _, response = instructions.texts(prompts, shown)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].masked_fill(~response[:, 1:], -100)
    more_text = training.text_batches(instruct.text(seed), instruct.BATCH, MAX_LENGTH)

    def batch(rng: torch.Generator) -> tuple:
        rows = torch.randint(len(prompts), (instruct.BATCH,), generator=rng)
        return (inputs[rows], targets[rows]), more_text(rng)

    def loss(model: nn.Module, batch: tuple) -> Tensor:
        demonstrated, read = (training.token_loss(model, part) for part in batch)
        return demonstrated + instruct.KEPT * read

    model = copy.deepcopy(start)
    rng = lab.generator(f"fine-tuning {seed}")
    training.train(model, batch, loss, STEPS, RATE, generator=rng, progress=False)
    return model.eval()


def demonstrations(seed: int, engine: Engine) -> dict[str, Sequence[Prompt]]:
    """The same instructions in three forms, by the name of the model that learns from them."""
    rng = lab.generator(f"demonstrations {seed}")
    asked = instructions.instructions("demonstrations", DEMONSTRATIONS, rng)
    found = with_pages(asked, engine)
    news = [changed(one, rng) if instruct.kind(one.asked) == "told" else one for one in found]
    return {"from memory": asked, "with the page": found, "with the page, changes shown": news}


# --- what is counted ------------------------------------------------------------------------------


def shares(asked: Sequence, responses: Sequence[tuple[str, ...]]) -> dict[str, float]:
    """The shares of right answers, refusals and wrong ones."""
    found = [instructions.judge(one, said) for one, said in zip(asked, responses, strict=True)]
    return {v: round(found.count(v) / len(found), 4) for v in ("right", "refusal", "wrong")}


def on_the_page(prompts: Sequence[WithPage]) -> dict[str, float]:
    """How often the page ranked first contains the right answer, another possible answer only, or neither."""
    found = []
    for one in prompts:
        said = {word for word in one.page if word in instructions.KINDS[one.task]}
        found.append("right" if one.answer in said else "wrong" if said else "nothing")
    return {v: round(found.count(v) / len(found), 4) for v in ("right", "nothing", "wrong")}


def measure(seed: int) -> dict:
    drawn = instructions.instructions("test", TESTED, lab.generator(f"test {seed}"))
    asked = [one for one in drawn if instruct.kind(one) != "words"]
    engine = Engine(pages(instruct.text(seed)))
    rng = lab.generator(f"changes {seed}")
    kinds: dict[str, list[WithPage]] = {"told": [], "untold": [], "changed": []}
    for one in with_pages(asked, engine):
        kinds[instruct.kind(one.asked)].append(one)
        if one.asked.told:
            kinds["changed"].append(changed(one, rng))

    start = base(seed)
    models_ = {
        name: fine_tuned(start, seed, prompts)
        for name, prompts in demonstrations(seed, engine).items()
    }
    results: dict[str, dict] = {"search alone": {k: on_the_page(own) for k, own in kinds.items()}}
    samples = {
        kind: [
            {
                "question": " ".join(one.asked.question),
                "page": " ".join(one.page),
                "answer": one.answer,
            }
            for one in prompts[:SHOWN]
        ]
        for kind, prompts in kinds.items()
    }
    for name, model in models_.items():
        results[name] = {}
        for kind, prompts in kinds.items():
            given = [bare(one) for one in prompts] if name == "from memory" else prompts
            said = instructions.respond(model, given, lab.generator(f"{name} {kind} {seed}"))
            results[name][kind] = shares(prompts, said)
            for sample, response in zip(samples[kind], said, strict=False):
                sample[name] = " ".join(response)
    return {
        "pages": len(engine.pages),
        "tested": {kind: len(prompts) for kind, prompts in kinds.items()},
        "results": results,
        "samples": samples,
    }


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=SEEDS)
