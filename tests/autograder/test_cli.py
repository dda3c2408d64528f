"""autograder scores: the table fits the terminal."""

import pytest
from rich.console import Console

from autograder import classes, cli
from autograder.classes import ClassFolder, Score


def score(student, era, exercise, auto, late=0.0):
    return Score(student, era, exercise, auto, 0.0, 10.0, 0.0, False, late)


FOUND = [
    score("Zed", "second_era", "three", 3.0),  # the first student has the last exercise alone
    score("ada", "first_era", "a_long_name", 7.0),
    score("ada", "first_era", "another_name", 2.5),
    score("ada", "second_era", "three", 10.0, late=60.0),
    score("[bold]bo", "first_era", "a_long_name", 1.0),
    score("[bold]bo", "first_era", "another_name", 0.0),  # not handed in
    score("Zed", "first_era", "a_long_name", 0.0),
]


@pytest.fixture
def shown(monkeypatch, tmp_path):
    def show(width):
        monkeypatch.setattr(cli, "console", Console(width=width, highlight=False))
        monkeypatch.setattr(classes, "scores", lambda url: FOUND)
        handed_in = tmp_path / "autograded" / "Zed" / "first_era" / "a_long_name.ipynb"
        handed_in.parent.mkdir(parents=True, exist_ok=True)
        handed_in.touch()
        with cli.console.capture() as said:
            cli.show_scores(ClassFolder(tmp_path))
        return said.get()

    return show


def row(table, student):
    line = next(line for line in table.splitlines() if student in line)
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_each_exercise_has_a_column_where_there_is_room(shown):
    table = shown(100)
    assert "a_long_name" in table and "first_era" not in table
    assert row(table, "ada") == ["ada (late)", "7", "2.5", "10"]
    assert row(table, "bo") == ["[bold]bo", "1", "–", "–"]
    assert row(table, "Zed") == ["Zed", "0", "–", "3"]


def test_each_era_has_a_column_where_there_is_none(shown):
    table = shown(46)
    assert "first_era" in table and "of 20" in table
    assert row(table, "ada") == ["ada (late)", "9.5", "10"]
    assert row(table, "bo") == ["[bold]bo", "1", "–"]
    assert "autograder report" in " ".join(table.split())


def test_the_sum_is_shown_where_not_even_eras_have_room(shown):
    table = shown(30)
    assert "first_era" not in table and "of 30" in table
    assert row(table, "ada") == ["ada (late)", "19.5"]
    assert row(table, "bo") == ["[bold]bo", "1"]
