"""lab.runs: a record says what was measured, and goes stale when, and only when, the code that made it changes."""

import ast
import json
import textwrap

import pytest

from lab import runs

LAB = {
    "__init__.py": "from lab.seeds import generator\n",
    "seeds.py": "def generator(seed):\n    return seed\n",
    "data.py": '"""Text."""\nfrom lab import letters\n\n\ndef text():\n    return letters.ALL\n',
    "letters.py": 'ALL = "abc"\n',
    "unused.py": "X = 1\n",
    "runs.py": "# stands for this module, which records and does not compute\n",
}

SCRIPT = '''
"""The length of a text."""

from lab import data, generator, runs

def measure(seed):
    """Measures."""
    return {"length": {"all": len("abc") + seed}}  # a comment
'''


@pytest.fixture
def course(tmp_path):
    """A course with one era and a small lab of its own."""
    for name, source in LAB.items():
        write(tmp_path / "lab" / name, source)
    write(tmp_path / "book/era/runs/length.py", SCRIPT)
    return tmp_path


def write(file, source):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(source).lstrip("\n"), encoding="utf-8")


def edit(file, old, new):
    source = file.read_text(encoding="utf-8")
    assert source.count(old) == 1
    file.write_text(source.replace(old, new), encoding="utf-8")


def measured(course, measure=lambda seed: {"length": {"all": 3 + seed}}, **options):
    options = {"seeds": (0, 1, 2), **options}
    return runs.record(course / "book/era/runs/length.py", measure, **options)


def test_record_says_what_was_measured_and_how(course):
    made = measured(course)
    assert made == runs.load("era/length", root=course)
    assert made.name == "era/length"
    assert made.measures == "The length of a text."
    assert made.seeds == (0, 1, 2)
    assert made.values("length", "all") == [3, 4, 5]
    assert len(made.seconds) == 3 and all(second >= 0 for second in made.seconds)
    assert len(made.cpu_seconds) == 3
    assert made.peak_memory_mb is None or made.peak_memory_mb > 10
    assert made.command == "python -m lab.runs era/length"
    assert {"python", "torch"} <= set(made.versions)
    assert made.command in made.cost() and "0, 1, 2" in made.cost()


def test_record_is_one_json_file_beside_the_script(course):
    measured(course)
    files = sorted(file.name for file in (course / "book/era/runs").iterdir())
    assert files == ["length.json", "length.py"]
    assert json.loads((course / "book/era/runs/length.json").read_text())["seeds"] == [0, 1, 2]
    assert str(course) not in (course / "book/era/runs/length.json").read_text()


def test_a_record_is_found_by_name_and_by_path(course):
    made = measured(course)
    assert runs.load(course / "book/era/runs/length.py") == made
    assert runs.load(course / "book/era/runs/length.json") == made


def test_values_says_what_there_is(course):
    with pytest.raises(KeyError, match=r"no 'width'; there are \['length'\]"):
        measured(course).values("width")


def test_code_is_the_script_and_every_lab_module_it_reaches_but_this_one(course):
    assert list(measured(course).code) == [
        "book/era/runs/length.py",
        "lab/data.py",
        "lab/letters.py",
        "lab/seeds.py",
    ]


@pytest.mark.parametrize(
    "statement", ["import lab.unused", "from lab.unused import X", "import lab\nlab.unused.X"]
)
def test_every_way_to_import_counts(course, statement):
    script = course / "book/era/runs/length.py"
    write(script, '"""Doc."""\n' + statement)
    assert "lab/unused.py" in measured(course).code


def test_a_run_whose_functions_are_borrowed_counts(course):
    write(course / "book/other/runs/width.py", '"""Doc."""\nfrom lab import unused\n')
    edit(
        course / "book/era/runs/length.py",
        "def measure",
        'width = runs.script("other/width")\n\ndef measure',
    )
    assert {"book/other/runs/width.py", "lab/unused.py"} <= set(measured(course).code)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("book/era/runs/length.py", "+ seed", "- seed"),
        ("lab/data.py", "letters.ALL", "letters.ALL * 2"),
        ("lab/letters.py", '"abc"', '"abcd"'),
        ("lab/seeds.py", "return seed", "return seed + 1"),
    ],
)
def test_changed_code_makes_a_record_stale(course, file, old, new):
    measured(course)
    assert not runs.is_stale("era/length", root=course)
    edit(course / file, old, new)
    assert runs.is_stale("era/length", root=course)
    assert runs.changed("era/length", root=course) == [file]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("book/era/runs/length.py", '    """Measures."""\n', '    """Measures\n\n    all."""\n'),
        ("book/era/runs/length.py", "# a comment", "# another"),
        ("lab/data.py", "\n\n\n", "\n\n\n# why\n\n"),
        ("lab/unused.py", "X = 1", "X = 2"),
        ("lab/runs.py", "# stands", "X = 1  # stands"),
    ],
)
def test_what_computes_nothing_makes_no_record_stale(course, file, old, new):
    measured(course)
    edit(course / file, old, new)
    assert not runs.is_stale("era/length", root=course)


def test_a_string_that_looks_like_a_comment_counts(course):
    write(course / "lab/letters.py", 'ALL = "a # b"\n')
    measured(course)
    edit(course / "lab/letters.py", "# b", "# c")
    assert runs.is_stale("era/length", root=course)


def test_a_file_that_is_gone_makes_a_record_stale(course):
    measured(course)
    (course / "lab/letters.py").unlink()
    assert runs.changed("era/length", root=course) == ["lab/letters.py"]


ANSWER = """
# %% [markdown]
# # Title
# %%
SCALE = 2
# %% solution="part"
def answer():
    return SCALE
# %% test="part_values" points=3
assert answer() == 2
# %% experiment=true
print(answer())
"""


def test_an_answer_counts_but_not_its_tests(course):
    solution = course / "solutions/era/exercise.py"
    write(solution, ANSWER)
    made = measured(course, answers=["era/exercise"])
    assert "solutions/era/exercise.py" in made.code
    edit(solution, "== 2", "== 1 + 1")
    edit(solution, "# # Title", "# # Another title")
    edit(solution, "print(answer())", "print(-answer())")
    assert not runs.is_stale("era/length", root=course)
    edit(solution, "return SCALE", "return -SCALE")
    assert runs.is_stale("era/length", root=course)


def test_an_answer_that_is_not_there(course):
    with pytest.raises(FileNotFoundError, match="no exercise era/nothing"):
        measured(course, answers=["era/nothing"])


def test_whoever_imports_an_answer_must_name_it(course):
    edit(course / "book/era/runs/length.py", "from lab", "import autograder.loader\nfrom lab")
    with pytest.raises(ValueError, match="name it in answers"):
        measured(course)


def test_a_run_needs_seeds_and_a_docstring(course):
    with pytest.raises(ValueError, match="at least one seed"):
        measured(course, seeds=())
    write(course / "book/era/runs/length.py", "def measure(seed): ...")
    with pytest.raises(ValueError, match="docstring"):
        measured(course)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {1, 2}])
def test_a_result_that_is_not_json_is_refused_and_leaves_the_old_record(course, bad):
    made = measured(course)
    with pytest.raises(ValueError, match="era/length, seed 0"):
        measured(course, lambda seed: {"length": bad})
    assert runs.load("era/length", root=course) == made


def test_a_run_without_a_record_says_how_to_make_it(course):
    with pytest.raises(FileNotFoundError, match=r"Make it: python -m lab\.runs era/length"):
        runs.load("era/length", root=course)


def test_an_unknown_run_says_which_there_are(course):
    for ask in (runs.load, runs.script, runs.is_stale):
        with pytest.raises(FileNotFoundError, match=r"no run era/width\. There are: era/length"):
            ask("era/width", root=course)


@pytest.mark.parametrize("content", ["{", "{}", '{"seeds": 3}', "[]"])
def test_a_file_that_is_no_record_is_refused(course, content):
    write(course / "book/era/runs/length.json", content)
    with pytest.raises(ValueError, match="is not a record"):
        runs.load("era/length", root=course)


def test_script_gives_the_functions_of_the_run(course):
    write(course / "book/era/runs/length.py", '"""Doc."""\ndef double(x):\n    return 2 * x\n')
    assert runs.script("era/length", root=course).double(4) == 8


RECORDING = '''
"""What a seed is."""
from lab import runs

def measure(seed):
    return {"seed": seed}

if __name__ == "__main__":
    runs.record(__file__, measure, seeds=(5,))
'''


def use_real_lab(course):
    """Scripts that are executed record themselves with the course's own lab."""
    (course / "lab").rename(course / "not_lab")
    (course / "lab").symlink_to(runs.ROOT / "lab")


def test_main_makes_all_records_or_those_named(course, capfd):
    write(course / "book/era/runs/length.py", RECORDING)
    write(course / "book/other/runs/length.py", RECORDING)
    edit(course / "book/other/runs/length.py", "(5,)", "(6,)")
    use_real_lab(course)
    assert runs.main(["era/length"], root=course) == 0
    assert runs.load("era/length", root=course).values("seed") == [5]
    assert not (course / "book/other/runs/length.json").exists()
    assert runs.main(["--stale"], root=course) == 0
    assert runs.load("other/length", root=course).values("seed") == [6]
    printed = capfd.readouterr().out
    assert "[1/1] other/length" in printed
    assert printed.count("again    python -m lab.runs") == 2


def test_main_goes_on_after_a_failure_and_says_so(course, capfd):
    write(course / "book/era/runs/bad.py", "raise SystemExit(3)")
    write(course / "book/era/runs/length.py", RECORDING)
    use_real_lab(course)
    assert runs.main([], root=course) == 1
    assert (course / "book/era/runs/length.json").exists()
    assert "1 of 2 failed: era/bad" in capfd.readouterr().err


def test_main_refuses_an_unknown_name(course, capsys):
    assert runs.main(["era/width"], root=course) == 2
    assert "no run era/width. There are: era/length" in capsys.readouterr().err


def test_lab_never_imports_the_instructors_package():
    for file in (runs.ROOT / "lab").glob("*.py"):
        assert "autograder" not in {module for module, _ in runs._imports(file)}, file.name


def test_names_are_the_scripts_of_the_book():
    for name in runs.names():
        era, run = name.split("/")
        source = (runs.ROOT / "book" / era / "runs" / f"{run}.py").read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(source)), f"{name} does not say what it measures"
