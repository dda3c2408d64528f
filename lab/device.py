"""Which device tensors live on."""

import os

import torch

__all__ = ["device"]


def device() -> torch.device:
    """The device this notebook computes on.

    The environment variable ``LAB_DEVICE`` decides (``cpu``, ``cuda``, ``cuda:1``, ``mps``). Without it:
    CUDA where there is one, else Apple's MPS, else the CPU.

    Raises:
        ValueError: ``LAB_DEVICE`` names a device which torch does not know or this machine does not have.
    """
    wanted = os.environ.get("LAB_DEVICE", "").strip()
    if not wanted:
        return torch.device(_best_available())
    try:
        chosen = torch.device(wanted)
    except RuntimeError as error:
        raise ValueError(
            f"LAB_DEVICE={wanted!r} is not a device torch knows; use cpu, cuda, cuda:<number> or mps."
        ) from error
    if not _is_there(chosen):
        raise ValueError(
            f"LAB_DEVICE={wanted!r}, but this machine has no such device. "
            f"Unset LAB_DEVICE to use {_best_available()!r}."
        )
    return chosen


def _best_available() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _is_there(chosen: torch.device) -> bool:
    if chosen.type == "cuda":
        return (chosen.index or 0) < torch.cuda.device_count()
    if chosen.type == "mps":
        return torch.backends.mps.is_available()
    return chosen.type == "cpu"
