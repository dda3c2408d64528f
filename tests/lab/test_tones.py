"""lab.tones: each key is heard at its row's and its column's frequency, by Goertzel's algorithm written here."""

import math

import pytest

from lab import generator, tones

EVERY = [key for row in tones.KEYS for key in row]


def goertzel(sound, frequency, rate):
    """The energy of a sound at one frequency, by Goertzel's recurrence (1958)."""
    turn = 2 * math.cos(2 * math.pi * frequency / rate)
    before, last = 0.0, 0.0
    for sample in sound.tolist():
        before, last = last, sample + turn * last - before
    return before**2 + last**2 - turn * before * last


def heard(sound):
    """The key whose row and whose column sound loudest."""
    row, column = (
        max(range(4), key=lambda i: goertzel(sound, of[i], tones.RATE))
        for of in (tones.ROWS, tones.COLUMNS)
    )
    return tones.KEYS[row][column]


@pytest.mark.parametrize("key", EVERY)
def test_a_receiver_hears_the_key(key):
    rng = generator(f"key {key}")
    assert all(heard(tones.tone(key, rng)) == key for _ in range(10))


def test_a_receiver_hears_it_in_noise_and_in_40_ms():
    rng = generator("noise")
    right = [heard(tones.tone(key, rng, seconds=0.04, noise=0.3)) == key for key in EVERY * 5]
    assert sum(right) >= len(right) - 1


def test_all_other_frequencies_are_quiet():
    sound = tones.tone("5", generator("five"), seconds=0.2, noise=0.0)
    energy = {f: goertzel(sound, f, tones.RATE) for f in tones.ROWS + tones.COLUMNS}
    assert sorted(energy, key=energy.get)[-2:] == sorted(tones.frequencies("5"), key=energy.get)
    assert sorted(energy.values())[-3] < 0.01 * min(sorted(energy.values())[-2:])


def test_the_frequencies_are_the_standards():
    assert tones.frequencies("1") == (697, 1209)
    assert tones.frequencies("0") == (941, 1336)
    assert tones.frequencies("D") == (941, 1633)


@pytest.mark.parametrize("key", ["", "x", "12", "a"])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(ValueError, match="is no key"):
        tones.tone(key, generator())


def test_a_sound_has_the_length_that_was_asked_for():
    assert tones.tone("1", generator(), seconds=0.04).shape == (320,)
    with pytest.raises(ValueError, match="no sample"):
        tones.tone("1", generator(), seconds=0.0)


def test_phases_differ_from_sound_to_sound():
    rng = generator("phases")
    one, other = tones.tone("1", rng, noise=0.0), tones.tone("1", rng, noise=0.0)
    assert (one - other).abs().max() > 0.05
    assert one.abs().max() <= 0.9
