"""The learner process: runs the cells of one notebook and answers the examiner's calls on what they define.

It holds no test, no answer and no score, and nothing it writes is read as a verdict.
"""

import dataclasses
import importlib
import os
import random
import socket
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from autograder.split.isolation import Limits, isolate, limit, limit_processor_time
from autograder.split.peer import EVERYTHING, Peer, StandIn

__all__ = ["given_classes", "seed_torch", "start", "warm_up"]

MAX_TEXT = 20_000
MAX_PICTURE = 1 << 20


def warm_up() -> None:
    """Imports what notebooks import and makes the shell their cells run in."""
    torch.set_num_threads(1)
    import einops  # noqa: F401
    import jaxtyping  # noqa: F401
    import matplotlib.pyplot  # noqa: F401

    importlib.import_module(
        "torch.fx.experimental.symbolic_shapes"
    )  # the first backward pass wants it
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    import lab.check
    import lab.data  # noqa: F401

    quiet = Config({"HistoryManager": {"enabled": False}, "InteractiveShell": {"cache_size": 0}})
    shell = InteractiveShell.instance(config=quiet, colors="nocolor", banner1="")
    shell.showtraceback = shell.showsyntaxerror = lambda *args, **kwargs: None
    # Reads like a notebook, not like a part of the grader: nothing of the shell's own is in the way.
    shell.user_ns.update(__name__="__main__", __doc__=None)
    # What the first cell and the first random number would import.
    shell.run_cell("", store_history=False)
    _reseed()
    # The first number of half precision asks what the processor can do, in /proc, which no notebook will see.
    torch.ones(1).to(torch.float16)


def start(channel: socket.socket, *, isolated: bool) -> None:
    """Becomes the learner process of one notebook and serves until the examiner hangs up."""
    limits = Limits()
    if isolated:
        isolate(limits)
    limit(limits, bound_memory=os.environ.get("LAB_DEVICE", "cpu") == "cpu")
    _close_everything_but(channel)
    _reseed()
    notebook = _Notebook()
    peer = Peer(
        channel,
        services={
            "run": notebook.run,
            "begin": notebook.begin,
            "lend": notebook.lend,
            "lend_module": notebook.lend_module,
        },
        allowed=EVERYTHING,
        classes=notebook.classes,
    )
    peer.serve()


def seed_torch() -> None:
    """Gives torch's global generators the same start. Where no accelerator is used, none is asked: that takes long."""
    if os.environ.get("LAB_DEVICE", "cpu") == "cpu":
        torch.default_generator.manual_seed(0)
    else:
        torch.manual_seed(0)


def given_classes(namespace: dict[str, Any]) -> dict[str, type]:
    """The dataclasses and named tuples that cells defined: values of these cross by their fields."""
    return {
        name: kind
        for name, kind in namespace.items()
        if isinstance(kind, type)
        and kind.__module__ == namespace.get("__name__")
        and (
            dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
        )
    }


class _Notebook:
    """The cells' namespace, and what the examiner may ask of it."""

    def __init__(self) -> None:
        from IPython.core.interactiveshell import InteractiveShell

        shell = InteractiveShell.instance()
        self.run_cell = shell.run_cell  # as it is before any cell can replace it
        self.namespace = shell.user_ns
        self.classes: dict[str, type] = {}

    def run(self, seconds: float, source: str) -> dict:
        """Runs a cell as a notebook would; returns its error, if any, and what it showed."""
        from IPython.utils.capture import capture_output

        limit_processor_time(seconds)
        with capture_output() as shown:
            result = self.run_cell(source, store_history=False)
        self.classes.update(given_classes(self.namespace))
        error = result.error_before_exec or result.error_in_exec
        return {
            "error": [type(error).__name__, str(error)[:2000]] if error else None,
            "stdout": shown.stdout[:MAX_TEXT],
            "stderr": shown.stderr[:MAX_TEXT],
            "shown": [
                bundle for output in shown.outputs[:20] if (bundle := _harmless(output.data))
            ],
        }

    def begin(self, seconds: float, names: tuple[str, ...]) -> dict[str, Any]:
        """What the cells defined, of these names, for a test that may use so much processor time.

        Every test starts with the same random numbers, whatever ran before.
        """
        limit_processor_time(seconds)
        _reseed()
        return {name: self.namespace[name] for name in names if name in self.namespace}

    def lend(self, name: str, reference: Any) -> None:
        """Puts a function of the examiner's in the place of an answer that failed."""
        self.namespace[name] = reference

    def lend_module(self, name: str, construct: Callable, forward: Callable) -> None:
        """The same for a module class: its parameters live here, its computation over there."""
        self.namespace[name] = _lent_class(name, construct, forward)


def _lent_class(name: str, construct: StandIn, forward: StandIn) -> type[nn.Module]:
    class Lent(nn.Module):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__()
            over_there, parameters, buffers = construct(*args, **kwargs)
            self.__dict__["_over_there"] = over_there
            for path, value in parameters.items():
                holder, last = _holder(self, path)
                holder.register_parameter(last, nn.Parameter(value.detach()))
            for path, value in buffers.items():
                holder, last = _holder(self, path)
                holder.register_buffer(last, value)

        def forward(self, *args: object, **kwargs: object) -> Any:
            state = dict(self.named_parameters()) | dict(self.named_buffers())
            return forward(self._over_there, state, self.training, args, kwargs)

    Lent.__name__ = Lent.__qualname__ = name
    return Lent


def _holder(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    *folders, last = path.split(".")
    for folder in folders:
        if folder not in module._modules:
            module.add_module(folder, nn.Module())
        module = module._modules[folder]
    return module, last


def _harmless(data: dict) -> dict:
    """What may be shown to whoever grades by hand: plain text and pictures, nothing that runs."""
    kept = {}
    if isinstance(text := data.get("text/plain"), str):
        kept["text/plain"] = text[:MAX_TEXT]
    picture = data.get("image/png")
    if isinstance(picture, str) and len(picture) <= MAX_PICTURE:
        kept["image/png"] = picture
    return kept


def _reseed() -> None:
    random.seed(0)
    np.random.seed(0)
    seed_torch()


def _close_everything_but(channel: socket.socket) -> None:
    kept = channel.fileno()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.closerange(3, kept)
    os.closerange(kept + 1, 4096)
    # Writes at interpreter level must not fail on the closed copies.
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
