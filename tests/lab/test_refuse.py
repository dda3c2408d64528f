"""A refused name raises in the notebook that refused it, and nowhere else."""

import types

import pytest

import lab


@pytest.fixture
def library():
    module = types.ModuleType("library")
    exec(
        "def answer(x):\n    return 2 * x\n\nclass Layer:\n    def __init__(self, n):\n        self.n = n\n",
        vars(module),
    )
    exec("def uses(x):\n    return answer(x)\n", vars(module))
    return module


def notebook(library, name):
    namespace = {"__name__": name, "lab": lab, "library": library}
    exec("def refuse(what):\n    lab.refuse(library, what, instead='a loop')", namespace)
    exec(
        "def call():\n    return library.answer(2)\ndef make():\n    return library.Layer(3)",
        namespace,
    )
    return namespace


def test_a_function_is_refused_in_its_notebook_alone(library):
    here, elsewhere = notebook(library, "here"), notebook(library, "elsewhere")
    here["refuse"]("answer")
    with pytest.raises(
        RuntimeError, match="answer does this exercise for you; write it with a loop"
    ):
        here["call"]()
    assert elsewhere["call"]() == 4
    assert library.uses(2) == 4


def test_a_class_is_refused_in_its_notebook_alone(library):
    original = library.Layer
    here, elsewhere = notebook(library, "here"), notebook(library, "elsewhere")
    here["refuse"]("Layer")
    with pytest.raises(RuntimeError, match="Layer does this exercise"):
        here["make"]()
    assert isinstance(elsewhere["make"](), original)


def test_two_notebooks_may_refuse_the_same_name(library):
    one, two = notebook(library, "one"), notebook(library, "two")
    for each in (one, two, one):
        each["refuse"]("answer")
    for each in (one, two):
        with pytest.raises(RuntimeError):
            each["call"]()


def test_a_name_that_is_not_there_is_an_error(library):
    with pytest.raises(AttributeError):
        lab.refuse(library, "missing", instead="")
