"""Folders of classes: nothing of somebody else's is lost."""

import shutil

import pytest

from autograder import classes
from autograder.class_folder import ClassFolder
from autograder.engine import Engine
from autograder.loader import find_exercise
from autograder.sample_class.make import make_sample_class
from autograder.source import ROOT, read_exercise


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


def test_what_is_no_students_folder_is_left_out_and_named(tmp_path):
    released = ROOT / "exercises" / "transformer" / "attention.ipynb"
    for name in ("ada", "two\nlines"):
        place = tmp_path / "submitted" / name / "transformer"
        place.mkdir(parents=True)
        shutil.copy(released, place)
    (tmp_path / "submitted" / "eve").symlink_to("ada")
    (tmp_path / "submitted" / "ian").mkdir()
    (tmp_path / "submitted" / "ian" / "transformer").symlink_to("../ada/transformer")
    where = ClassFolder(tmp_path)
    notes = classes._take_in(where, lambda what, done, total: None)
    assert [path.name for path in where.intake.iterdir()] == ["ada"]
    assert len(notes) == 3
    assert all(any(name in note for note in notes) for name in ("eve", "ian", r"two\nlines"))
