"""lab.digits: all scans, once, in 0…1."""

import pytest
import torch
from sklearn.datasets import load_digits

from lab import digits


def test_the_splits_are_the_whole_file():
    both = [digits.digits(split) for split in ("train", "test")]
    images = torch.cat([one.images for one in both])
    file = load_digits()
    assert images.shape == (1797, 8, 8)
    assert torch.equal((images * 16).round().long(), torch.tensor(file.images).long())
    assert torch.cat([one.labels for one in both]).tolist() == file.target.tolist()


def test_every_digit_is_in_both_splits_about_equally_often():
    for split in ("train", "test"):
        counts = digits.digits(split).labels.bincount(minlength=10)
        assert counts.min() > 0.8 * counts.float().mean()


def test_what_a_caller_changes_is_not_changed_for_the_next():
    digits.digits("train").images.zero_()
    assert digits.digits("train").images.max() == 1


def test_there_are_two_splits():
    with pytest.raises(ValueError, match="train or test"):
        digits.digits("validation")
