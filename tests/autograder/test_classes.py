"""Folders of classes: nothing of somebody else's is lost."""

import pytest

from autograder.engine import Engine
from autograder.loader import find_exercise
from autograder.sample_class.make import make_sample_class
from autograder.source import read_exercise


def test_a_sample_class_replaces_itself_and_nothing_else(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not empty"):
        make_sample_class(mine)
    assert (mine / "thesis.txt").read_text() == "years of work"
    sample = tmp_path / "sample"
    students = make_sample_class(sample)
    assert make_sample_class(sample) == students


def test_a_new_sentence_in_the_text_of_an_exercise_grades_nobody_anew(tmp_path):
    exercise = find_exercise("transformer", "attention")
    text = exercise.path.read_text()
    folder = tmp_path / exercise.era
    folder.mkdir()
    engine = Engine(cache=tmp_path)

    def key(changed):
        (folder / exercise.path.name).write_text(changed)
        return engine.key(read_exercise(folder / exercise.path.name), [])

    assert key(text.replace("# # Attention", "# # Attention, again")) == key(text)
    assert key(text.replace("math.sqrt(d_k)", "d_k ** 0.5")) != key(text)
