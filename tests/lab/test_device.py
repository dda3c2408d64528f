"""LAB_DEVICE decides, and a wish that cannot be granted is refused with what to do."""

import subprocess
import sys

import pytest
import torch

import lab


def test_the_environment_decides(monkeypatch):
    monkeypatch.setenv("LAB_DEVICE", "cpu")
    assert lab.device() == torch.device("cpu")


def test_without_a_wish_the_best_device_is_taken(monkeypatch):
    monkeypatch.delenv("LAB_DEVICE", raising=False)
    expected = (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )
    assert lab.device().type == expected


@pytest.mark.parametrize(
    "wish, says", [("gpu9", "not a device torch knows"), ("cuda:99", "no such device")]
)
def test_a_wish_that_cannot_be_granted_is_an_error(monkeypatch, wish, says):
    monkeypatch.setenv("LAB_DEVICE", wish)
    with pytest.raises(ValueError, match=says):
        lab.device()


def test_a_named_generator_repeats_and_differs_from_others():
    draws = [torch.rand(4, generator=lab.generator(seed)) for seed in ("a", "a", "b", 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert len({tuple(draw.tolist()) for draw in draws}) == 4


def test_a_notebook_computes_with_one_thread():
    code = "import torch, lab; print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
