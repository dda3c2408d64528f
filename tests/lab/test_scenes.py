"""lab.scenes: pictures show what the scene says, and no question can be answered without looking."""

from collections import Counter

import pytest
import torch

from lab import generator, scenes


def some(number, seed="scenes", **settings):
    rng = generator(seed)
    return [scenes.draw(1 + i % 4, rng, **settings) for i in range(number)]


def test_no_pair_that_is_held_out_is_drawn_unless_asked_for():
    seen = {thing.name for scene in some(400) for thing in scene}
    assert seen == set(scenes.PAIRS) - set(scenes.HELD_OUT)
    held = {thing.name for scene in some(60, pairs=scenes.HELD_OUT) for thing in scene}
    assert held == set(scenes.HELD_OUT)


def test_each_colour_and_shape_that_is_held_out_together_is_seen_apart():
    seen = {thing.name for scene in some(400) for thing in scene}
    for colour, shape in scenes.HELD_OUT:
        assert colour in {c for c, _ in seen} and shape in {s for _, s in seen}


def test_things_of_a_scene_differ_in_colour_and_shape_and_lie_apart():
    for scene in some(200):
        assert len({thing.colour for thing in scene}) == len(scene)
        assert len({thing.shape for thing in scene}) == len(scene)
        for i, one in enumerate(scene):
            for other in scene[:i]:
                apart = max(abs(one.x - other.x), abs(one.y - other.y))
                assert apart > one.radius + other.radius


@pytest.mark.parametrize("things", [0, 5])
def test_a_scene_has_one_to_four_things(things):
    with pytest.raises(ValueError, match="1 to 4"):
        scenes.draw(things, generator())


def test_pairs_that_cannot_differ_are_refused():
    with pytest.raises(ValueError, match="no 2 of these pairs"):
        scenes.draw(2, generator(), pairs=[("red", "circle"), ("red", "square")])
    with pytest.raises(ValueError, match="no pairs"):
        scenes.draw(1, generator(), pairs=[])


def test_a_choice_with_a_dead_end_is_drawn_again():
    pairs = [("red", "circle"), ("green", "square"), ("red", "square")]
    for seed in range(20):
        scene = scenes.draw(2, generator(seed), pairs=pairs)
        assert {thing.name for thing in scene} == set(pairs[:2])


def test_the_middle_of_a_thing_has_its_colour_and_the_corner_is_ground():
    for scene in some(100):
        picture = scenes.render([scene])[0]
        assert picture.shape == (3, scenes.SIZE, scenes.SIZE)
        assert picture.min() >= 0 and picture.max() <= 1
        for thing in scene:
            pixel = picture[:, int(thing.y * scenes.SIZE), int(thing.x * scenes.SIZE)]
            torch.testing.assert_close(
                pixel, torch.tensor(scenes.COLOURS[thing.colour]), atol=0.02, rtol=0
            )
        torch.testing.assert_close(picture[:, 0, 0], torch.full((3,), scenes.GROUND))


def test_every_pair_looks_unlike_every_other():
    things = [(scenes.Thing(*pair, 0.5, 0.5, 0.12),) for pair in scenes.PAIRS]
    flat = scenes.render(things).flatten(1)
    apart = torch.cdist(flat, flat) + 10 * torch.eye(len(things))
    assert apart.min() > 0.8


def test_a_larger_picture_shows_the_same():
    [scene] = some(1)
    small, large = scenes.render([scene]), scenes.render([scene], 128)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(large, 4), small, atol=0.12, rtol=0)


def test_captions_name_the_things_in_order():
    scene = (
        scenes.Thing("red", "square", 0.2, 0.2, 0.1),
        scenes.Thing("grey", "cross", 0.8, 0.8, 0.1),
    )
    assert " ".join(scenes.caption(scene)) == "a red square and a grey cross"


def test_questions_have_the_right_answer():
    a, b, c = (
        scenes.Thing("red", "square", 0.2, 0.2, 0.1),
        scenes.Thing("grey", "cross", 0.8, 0.2, 0.1),
        scenes.Thing("blue", "circle", 0.5, 0.8, 0.1),
    )
    rng, found = generator("asked"), {}
    for _ in range(300):
        question = scenes.ask((a, b, c), rng)
        found[" ".join(question.words)] = question.answer
    assert found["what colour is the cross ?"] == "grey"
    assert found["what shape is the blue thing ?"] == "circle"
    assert found["how many things ?"] == "three"
    assert found["what colour is the thing left of the circle ?"] == "red"
    assert found["what colour is the thing right of the circle ?"] == "grey"
    assert found["what colour is the thing below the square ?"] == "blue"
    # Two things lie above the circle, none above the others, and one row has no order.
    assert not any("above" in asked for asked in found)
    assert "what colour is the thing left of the square ?" not in found


def test_without_the_picture_nobody_is_right_much_more_often_than_by_chance():
    rng, answers = generator("blind"), {}
    for scene in some(6000, "blind scenes"):
        question = scenes.ask(scene, rng)
        answers.setdefault(question.words, Counter())[question.answer] += 1
    best = sum(max(counts.values()) for counts in answers.values())
    assert best / 6000 < 0.45  # the largest share that knowing all frequencies can reach


def test_every_word_has_a_number():
    rng = generator("words")
    for scene in some(200):
        question = scenes.ask(scene, rng)
        for words in (question.words, (question.answer,), scenes.caption(scene)):
            assert scenes.decode(scenes.encode(words)) == tuple(words)
    with pytest.raises(ValueError, match="'purple'"):
        scenes.encode(["a", "purple", "cow"])


def test_draws_repeat():
    assert some(5) == some(5) != some(5, "other scenes")
