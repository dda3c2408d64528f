"""Keeps a library's finished answer out of an exercise that asks for it."""

import functools
import sys
from collections.abc import Callable

__all__ = ["refuse"]

# The names of the modules (notebooks) for which a library's name is refused, by owner and name.
_refused_for: dict[tuple[int, str], set[str]] = {}


def refuse(owner: object, name: str, *, instead: str) -> None:
    """From now on ``owner.name`` raises when this notebook itself calls it; everybody else still may.

    Args:
        owner: a module or class, ``torch.nn.functional`` say.
        name: the function or class in it that would do the exercise.
        instead: what to use, for the error message.

    Raises:
        AttributeError: ``owner`` has no such name.
    """
    original = getattr(owner, name)
    first_time = (id(owner), name) not in _refused_for
    notebooks = _refused_for.setdefault((id(owner), name), set())
    notebooks.add(sys._getframe(1).f_globals["__name__"])
    if first_time:
        setattr(owner, name, _refusing(original, name, notebooks, instead))


def _refusing(original: Callable, name: str, notebooks: set[str], instead: str) -> Callable:
    def check_caller() -> None:
        if sys._getframe(2).f_globals.get("__name__") in notebooks:
            raise RuntimeError(f"{name} does this exercise for you; write it with {instead}.")

    if isinstance(original, type):

        class Refusing(original):
            def __init__(self, *args: object, **kwargs: object) -> None:
                check_caller()
                super().__init__(*args, **kwargs)

        Refusing.__name__, Refusing.__qualname__ = original.__name__, original.__qualname__
        Refusing.__doc__, Refusing.__module__ = original.__doc__, original.__module__
        return Refusing

    @functools.wraps(original)
    def refusing(*args: object, **kwargs: object) -> object:
        check_caller()
        return original(*args, **kwargs)

    return refusing
