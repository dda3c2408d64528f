import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import lab
from lab import checkpoints, models, runs

SIZES = {"vocab_size": 5, "d_model": 8, "num_heads": 2, "num_layers": 1, "max_length": 6}
FACTS = {"command": "python -m lab.runs era/name", "loss": 1.5}


def model(**changes):
    return models.CausalTransformer(**(SIZES | changes), generator=lab.generator("checkpoint"))


def saved(folder, name="small", made=None, sizes=SIZES, facts=FACTS, vocabulary="abcd\n"):
    made = model() if made is None else made
    return checkpoints.save(name, made, sizes, vocabulary=vocabulary, facts=facts, folder=folder)


def test_what_is_saved_comes_back(tmp_path):
    made = model()
    file = saved(tmp_path, made=made)
    assert checkpoints.names(tmp_path) == ["small"]
    found = checkpoints.load("small", folder=tmp_path)
    assert type(found.model) is models.CausalTransformer
    assert not found.model.training
    assert found.facts == FACTS
    assert found.vocabulary == ("a", "b", "c", "d", "\n")
    for name, value in made.state_dict().items():
        assert found.model.state_dict()[name].dtype == torch.float32
        assert torch.equal(found.model.state_dict()[name], value.half().float())
    text = "bad\ncab"
    assert found.encode(text).tolist() == [1, 0, 3, 4, 2, 0, 1]
    assert found.decode(found.encode(text)) == text
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_equal_arguments_give_equal_bytes(tmp_path):
    facts = {**FACTS, **{f"fact {i}": i for i in range(20)}}
    one = saved(tmp_path, facts=facts).read_bytes()
    assert saved(tmp_path, facts=facts).read_bytes() == one


def test_a_model_with_special_tokens_can_be_any_of_lab_models(tmp_path):
    sizes = {"source_size": 5, "target_size": 5, "d_model": 8, "num_heads": 2}
    sizes |= {"num_layers": 1, "max_length": 6}
    made = models.Translator(**sizes, generator=lab.generator("checkpoint"))
    saved(tmp_path, made=made, sizes=sizes, vocabulary=("[MASK]", "a", "b", "c", "d"))
    found = checkpoints.load("small", folder=tmp_path)
    assert type(found.model) is models.Translator
    assert found.encode("ab").tolist() == [1, 2]


def test_an_unknown_character_is_named_with_its_place(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"no token for 'x' \(place 2 "):
        checkpoints.load("small", folder=tmp_path).encode("abx")


def test_an_unknown_name_lists_what_there_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'gtp'\. There are: none"):
        checkpoints.load("gtp", folder=tmp_path)
    saved(tmp_path)
    with pytest.raises(FileNotFoundError, match="There are: small"):
        checkpoints.load("gtp", folder=tmp_path)


def rewritten(file, *, tensors=None, **changes):
    """The file with other metadata or tensors."""
    kept = load_file(file)
    says = {"model": "CausalTransformer", "sizes": SIZES, "vocabulary": list("abcd\n"), "facts": {}}
    metadata = {"checkpoint": json.dumps(says | changes)}
    save_file(kept if tensors is None else tensors(kept), file, metadata)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-7]), "damaged"),
        (lambda file: file.write_bytes(b"not a tensor"), "damaged"),
        (lambda file: file.write_bytes(b""), "damaged"),
        (lambda file: save_file(load_file(file), file), "does not say what it holds"),
        (lambda file: save_file(load_file(file), file, {"checkpoint": "{"}), "does not say"),
        (lambda file: rewritten(file, model="Linear"), "holds a 'Linear'"),
        (lambda file: rewritten(file, sizes=SIZES | {"d_model": 16}), "do not fit together"),
        (lambda file: rewritten(file, sizes=SIZES | {"widht": 16}), "widht"),
        (lambda file: rewritten(file, tensors=lambda t: dict(list(t.items())[1:])), "Missing key"),
        (
            lambda file: rewritten(
                file, tensors=lambda t: {k: v * torch.nan for k, v in t.items()}
            ),
            "not finite",
        ),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, damage, message):
    damage(saved(tmp_path))
    with pytest.raises(ValueError, match=message):
        checkpoints.load("small", folder=tmp_path)


def test_save_refuses_what_load_could_not_bring_back(tmp_path):
    with pytest.raises(ValueError, match="'Linear'"):
        saved(tmp_path, made=torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="command"):
        saved(tmp_path, facts={})
    with pytest.raises(ValueError, match="do not fit together"):
        saved(tmp_path, sizes=SIZES | {"vocab_size": 6})
    large = model()
    large.embed.tokens.weight.data[2, 3] = 1e6
    with pytest.raises(ValueError, match=r"embed.tokens.weight holds a value that half precision"):
        saved(tmp_path, made=large)
    wide = {"d_model": 320}
    with pytest.raises(ValueError, match="more than 2,000,000"):
        saved(tmp_path, made=model(**wide), sizes=SIZES | wide)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", checkpoints.names())
def test_every_checkpoint_of_the_course_says_which_run_made_it(name):
    found = checkpoints.load(name)
    run = found.facts["command"].removeprefix("python -m lab.runs ")
    assert run in runs.names()
    assert (checkpoints.FOLDER / f"{name}.safetensors").stat().st_size <= 2_000_000
