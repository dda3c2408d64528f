"""Zip files of learning management systems."""

import stat
import zipfile

import pytest

from autograder.intake import unpack
from autograder.notebooks import MAX_NOTEBOOK, SubmissionError


def archive(folder, members):
    path = folder / "class.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, text in members.items():
            opened.writestr(name, text)
    return path


def files(folder):
    return {
        str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.mark.parametrize(
    ("name", "student"),
    [
        ("ada/transformer/attention.ipynb", "ada"),
        ("some class/ada/transformer/attention.ipynb", "ada"),
        ("ada/attention.ipynb", "ada"),
        ("lovelaceada_1815_4711_attention.ipynb", "lovelaceada_1815"),
        ("lovelaceada_LATE_1815_4711_attention-2.ipynb", "lovelaceada_1815"),
        ("Ada Lovelace_1815_assignsubmission_file_/attention.ipynb", "Ada_Lovelace_1815"),
        ("Ada Lovelace_1815_assignsubmission_file/attention (1).ipynb", "Ada_Lovelace_1815"),
        ("陳 小明_12_assignsubmission_file_/attention.ipynb", "陳_小明_12"),
    ],
)
def test_each_form_of_archive_says_whose_a_notebook_is(tmp_path, name, student):
    assert unpack(archive(tmp_path, {name: "{}"}), tmp_path / "submitted") == []
    assert files(tmp_path / "submitted") == {f"{student}/transformer/attention.ipynb": "{}"}


@pytest.mark.parametrize(
    "name",
    [
        "../../ada/attention.ipynb",
        "/etc/attention.ipynb",
        "..\\..\\x/attention.ipynb",
        "../attention.ipynb",
        ".hidden/attention.ipynb",
        "a\nb/attention.ipynb",
    ],
)
def test_no_path_of_an_archive_leads_out_of_the_class(tmp_path, name):
    inside = tmp_path / "one" / "two"
    inside.mkdir(parents=True)
    unpack(archive(inside, {name: "{}"}), inside / "submitted")
    assert [p for p in tmp_path.rglob("*") if p.is_file() and inside not in p.parents] == []
    [written] = (inside / "submitted").rglob("*.ipynb")
    assert written.parent.parent.parent == inside / "submitted"
    assert not written.parent.parent.name.startswith(".")


def test_the_latest_of_several_files_counts(tmp_path):
    path = tmp_path / "class.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for name, year in [
            ("a_1_10_attention.ipynb", 2024),
            ("a_1_12_attention-2.ipynb", 2026),
            ("a_1_11_attention-1.ipynb", 2025),
        ]:
            opened.writestr(zipfile.ZipInfo(name, (year, 1, 1, 0, 0, 0)), str(year))
    unpack(path, tmp_path / "submitted")
    assert files(tmp_path / "submitted") == {"a_1/transformer/attention.ipynb": "2026"}


def test_a_notebook_that_was_there_is_kept_beside_the_new_one(tmp_path):
    submitted = tmp_path / "submitted"
    for text in ("first", "second", "second", "third"):
        unpack(archive(tmp_path, {"ada/attention.ipynb": text}), submitted)
    assert files(submitted / "ada" / "transformer") == {
        "attention.ipynb": "third",
        "attention.earlier-1.ipynb": "first",
        "attention.earlier-2.ipynb": "second",
    }


def test_what_is_no_notebook_of_the_course_is_named(tmp_path):
    notes = unpack(
        archive(
            tmp_path,
            {
                "ada/attention.ipynb": "{}",
                "ada/essay.docx": "",
                "ada/cats.ipynb": "",
                "__MACOSX/ada/attention.ipynb": "",
            },
        ),
        tmp_path / "submitted",
    )
    assert notes == ["not notebooks of this course: ada/essay.docx, ada/cats.ipynb"]


def test_a_bomb_is_not_unpacked(tmp_path):
    path = archive(
        tmp_path, {"ada/attention.ipynb": "0" * (MAX_NOTEBOOK + 1), "bob/attention.ipynb": "{}"}
    )
    assert path.stat().st_size < MAX_NOTEBOOK / 100
    [note] = unpack(path, tmp_path / "submitted")
    assert "ada" in note
    assert "20 MB" in note
    assert list(files(tmp_path / "submitted")) == ["bob/transformer/attention.ipynb"]


def test_a_link_in_an_archive_is_a_file_with_a_path_in_it(tmp_path):
    path = tmp_path / "class.zip"
    link = zipfile.ZipInfo("ada/attention.ipynb")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr(link, "/etc/passwd")
    unpack(path, tmp_path / "submitted")
    [written] = (tmp_path / "submitted").rglob("*.ipynb")
    assert not written.is_symlink()
    assert written.read_text() == "/etc/passwd"


def test_a_broken_member_costs_its_student_alone(tmp_path):
    path = archive(tmp_path, {"ada/attention.ipynb": "a" * 1000, "bob/attention.ipynb": "b"})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"ada/attention.ipynb") + 20] ^= 0xFF
    path.write_bytes(raw)
    [note] = unpack(path, tmp_path / "submitted")
    assert note.startswith("ada, transformer/attention: not taken out of the archive")
    assert list(files(tmp_path / "submitted")) == ["bob/transformer/attention.ipynb"]


@pytest.mark.parametrize(("text", "says"), [(b"no zip", "zip file"), (None, "zip file")])
def test_what_is_no_zip_file_is_refused(tmp_path, text, says):
    path = tmp_path / "class.zip"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(SubmissionError, match=says):
        unpack(path, tmp_path / "submitted")


def test_an_archive_without_a_notebook_of_the_course_is_refused(tmp_path):
    with pytest.raises(SubmissionError, match=r"no notebook of this course.*attention"):
        unpack(archive(tmp_path, {"ada/essay.docx": ""}), tmp_path / "submitted")
