"""Checks whose failures teach.

Every check either returns ``None`` or raises :class:`CheckFailed`, which holds two things: ``because``, the
sentence that names the likely mistake and gives no value away, and ``detail``, what was expected, what came
and the first place where they differ. A visible test shows both; a hidden test shows the first alone.
"""

import contextlib
import functools
import linecache
import math
import traceback
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["CheckFailed", "close", "equal", "raises", "shape", "surveying", "that"]

# (relative, absolute) by dtype: what two right algorithms may differ by. In float64 too an answer may hold a
# constant that was computed in float32 (a root, say), so its tolerance is far above float64's own rounding.
TOLERANCES = {
    torch.float64: (1e-5, 1e-6),
    torch.float32: (1e-4, 1e-5),
    torch.float16: (1e-2, 1e-2),
    torch.bfloat16: (3e-2, 3e-2),
}


class CheckFailed(AssertionError):
    """An answer is not what it should be.

    Attributes:
        because: the likely mistake, in a sentence that is safe to show for a hidden input.
        summary: what kind of difference it is (type, shape, which share of values), without any value.
        detail: expected, got, and where they first differ; shown for visible inputs only.
    """

    def __init__(self, summary: str, *, because: str = "", detail: str = "") -> None:
        self.because = because
        self.summary = summary
        self.detail = detail
        super().__init__("\n".join(part for part in (summary, detail, because) if part))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the check that failed and what it found, not the way there through this file."""
        frame = None
        for step in traceback.extract_tb(self.__traceback__):
            if step.filename != __file__:
                frame = step
        place = []
        if frame is not None:
            lines = [
                linecache.getline(frame.filename, number).rstrip()
                for number in range(frame.lineno, frame.end_lineno + 1)
            ]
            place = [f"This check, from line {frame.lineno}, failed:", *lines, ""]
        return [*place, *str(self).splitlines()]


_survey: list[CheckFailed] | None = None


@contextlib.contextmanager
def surveying() -> Iterator[list[CheckFailed]]:
    """Inside, a failed check is noted and the test goes on. Gives the failures in order."""
    global _survey
    _survey = []
    try:
        yield _survey
    finally:
        _survey = None


def _check(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def check(*args: object, **kwargs: object) -> None:
        try:
            function(*args, **kwargs)
        except CheckFailed as error:
            if _survey is None:
                raise
            _survey.append(error)

    return check


@_check
def close(
    got: object,
    expected: object,
    *,
    because: str = "",
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """``got`` equals ``expected`` up to rounding: same shape, every value within ``atol + rtol·|expected|``.

    Numbers, NumPy arrays, sequences of numbers and tensors are compared as tensors, so that any of them is
    accepted for any other. The tolerance is that of the coarser of the two dtypes; give ``rtol`` and
    ``atol`` together to set it. NaN equals NaN, an infinity equals itself.

    Raises:
        CheckFailed: they differ, or ``got`` is nothing that holds numbers.
    """
    expected_tensor = _as_tensor(expected)
    try:
        got_tensor = _as_tensor(got)
    except (TypeError, ValueError, RuntimeError):
        raise CheckFailed(
            f"Expected a tensor of shape {_shape_of(expected_tensor)}, got {_kind(got)}.",
            because=because,
        ) from None
    shape.__wrapped__(got_tensor, expected_tensor.shape, because=because)
    if rtol is None or atol is None:
        rtol, atol = _tolerance(got_tensor, expected_tensor)
    got_values = got_tensor.detach().to("cpu", torch.float64)
    expected_values = expected_tensor.detach().to("cpu", torch.float64)
    good = torch.isclose(got_values, expected_values, rtol=rtol, atol=atol, equal_nan=True)
    if not good.all():
        _fail_close(got_values, expected_values, good, because)


@_check
def equal(got: object, expected: object, *, because: str = "") -> None:
    """``got`` equals ``expected`` exactly: integers, strings, bytes, booleans, or lists, tuples and dicts of them.

    Tensors and arrays are compared by their values; a list is not equal to a tuple.

    Raises:
        CheckFailed: they differ.
    """
    where = _first_difference(got, expected)
    if where is not None:
        place, got_there, expected_there = where
        raise CheckFailed(
            f"The result is not what it should be{' (' + place + ')' if place else ''}.",
            detail=f"expected {_short(expected_there)}\n     got {_short(got_there)}",
            because=because,
        )


@_check
def shape(got: Tensor, expected: Sequence[int], *, because: str = "") -> None:
    """``got`` has the shape ``expected``.

    Raises:
        CheckFailed: it has another shape, or is nothing that has a shape.
    """
    if not hasattr(got, "shape"):
        raise CheckFailed(
            f"Expected a tensor of shape {tuple(expected)}, got {_kind(got)}.", because=because
        )
    if tuple(got.shape) != tuple(expected):
        raise CheckFailed(
            f"Expected shape {tuple(expected)}, got {tuple(got.shape)}.",
            because=because,
        )


@_check
def that(condition: bool, message: str) -> None:
    """``condition`` holds; ``message`` says what is wrong and which mistake usually does it.

    ``condition`` is ``True`` or ``False``, or NumPy's or torch's; anything else that happens to be true is not.

    Raises:
        CheckFailed: it does not.
    """
    if not isinstance(condition, bool | np.bool_ | Tensor) or not condition:
        raise CheckFailed(message)


@_check
def raises(
    kind: type[Exception],
    function: Callable,
    *arguments: object,
    mentions: str = "",
    because: str = "",
) -> None:
    """``function(*arguments)`` raises an error of ``kind`` whose message contains ``mentions``.

    Raises:
        CheckFailed: it returns, raises something else, or its message does not say ``mentions``.
    """
    wanted = f"a {kind.__name__}" + (f" that mentions {mentions!r}" if mentions else "")
    try:
        function(*arguments)
    except NotImplementedError:
        raise  # an answer not yet written is not a wrong one
    except kind as error:
        if mentions.lower() in str(error).lower():
            return
        raise CheckFailed(
            f"Bad input should raise {wanted}: the kind is right, the message does not say it.",
            detail=f"the message was {_short(str(error))}",
            because=because,
        ) from None
    except Exception as error:
        raise CheckFailed(
            f"Bad input should raise {wanted}; a {type(error).__name__} came.",
            detail=f"its message was {_short(str(error))}",
            because=because,
        ) from None
    raise CheckFailed(f"Bad input should raise {wanted}; nothing was raised.", because=because)


def _as_tensor(value: object) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic | bool | int | float):
        return torch.as_tensor(
            value, dtype=None if isinstance(value, np.ndarray) else torch.float64
        )
    if isinstance(value, list | tuple):
        if value and all(isinstance(item, Tensor) for item in value):
            return torch.stack(list(value))
        return torch.tensor(value, dtype=torch.float64)
    raise TypeError(f"{_kind(value)} holds no numbers")


def _tolerance(*tensors: Tensor) -> tuple[float, float]:
    known = [TOLERANCES[tensor.dtype] for tensor in tensors if tensor.dtype in TOLERANCES]
    # Integers and booleans are exact: they add nothing to the tolerance of the other side.
    return max(known, default=(0.0, 0.0))


def _fail_close(got: Tensor, expected: Tensor, good: Tensor, because: str) -> None:
    bad = int((~good).sum())
    summary = f"{bad} of {good.numel()} values differ."
    if torch.isnan(got).any() and not torch.isnan(expected).any():
        summary = f"{int(torch.isnan(got).sum())} of {good.numel()} values are NaN."
    index = tuple(int(i) for i in (~good).nonzero()[0]) if good.dim() else ()
    at = f" at index {index}" if index else ""
    lines = [f"first difference{at}: expected {expected[index]:.6g}, got {got[index]:.6g}"]
    if 1 < good.numel() <= 12:
        lines += [f"expected {_numbers(expected)}", f"     got {_numbers(got)}"]
    raise CheckFailed(summary, detail="\n".join(lines), because=because)


def _numbers(values: Tensor) -> str:
    if values.dim() == 0:
        return f"{values.item():.4g}"
    return "[" + ", ".join(_numbers(row) for row in values) + "]"


def _first_difference(
    got: object, expected: object, place: str = ""
) -> tuple[str, object, object] | None:
    """Where two values first differ, as (place, got there, expected there); ``None`` when they are equal."""
    got, expected = _plain(got), _plain(expected)
    if isinstance(expected, list | tuple) and type(got) is type(expected):
        for i, (one, other) in enumerate(zip(got, expected, strict=False)):
            difference = _first_difference(one, other, f"{place}[{i}]")
            if difference:
                return difference
        if len(got) != len(expected):
            return f"length {len(got)} instead of {len(expected)}", got, expected
        return None
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in expected:
            if key not in got:
                return f"{place}[{key!r}] is missing", got, expected
            difference = _first_difference(got[key], expected[key], f"{place}[{key!r}]")
            if difference:
                return difference
        extra = [key for key in got if key not in expected]
        return (f"{place}[{extra[0]!r}] should not be there", got, expected) if extra else None
    same_kind = isinstance(got, bool) == isinstance(expected, bool)
    same = same_kind and (got == expected or _both_nan(got, expected))
    return None if same is True else (place, got, expected)


def _plain(value: object) -> object:
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    return value


def _both_nan(one: object, other: object) -> bool:
    return (
        isinstance(one, float)
        and isinstance(other, float)
        and math.isnan(one)
        and math.isnan(other)
    )


def _shape_of(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)


def _kind(value: object) -> str:
    if value is None:
        return "None (is the `return` missing?)"
    return f"{'an' if type(value).__name__[:1].lower() in 'aeiou' else 'a'} {type(value).__name__}"


def _short(value: object, limit: int = 300) -> str:
    written = repr(value)
    return written if len(written) <= limit else written[: limit - 1] + "…"
