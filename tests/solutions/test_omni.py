"""One stream for text, picture and sound, against SciPy, scikit-learn, the FFT and brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.vq import vq
from sklearn.cluster import KMeans

from autograder.loader import reference
from lab import digits, generator, tones

CLOSE = {"rtol": 0.0, "atol": 1e-9}


@pytest.fixture(scope="module")
def omni():
    return reference("multimodal", "omni")


def randn(*shape, seed):
    return torch.randn(shape, generator=generator(f"omni {seed}"), dtype=torch.float64)


def goertzel(sound, frequency, rate):
    """The energy of a sound at one frequency, by Goertzel's recurrence (1958)."""
    turn = 2 * math.cos(2 * math.pi * frequency / rate)
    before, last = 0.0, 0.0
    for sample in sound.tolist():
        before, last = last, sample + turn * last - before
    return before**2 + last**2 - turn * before * last


# --- the codebook ---


def test_nearest_codes_are_scipys(omni):
    vectors, codes = 2.0 * randn(200, 3, seed="vectors"), 2.0 * randn(17, 3, seed="codes")
    found, _ = vq(vectors.numpy(), codes.numpy())
    assert omni.nearest(vectors, codes).tolist() == found.tolist()


def test_codes_rest_where_k_means_does(omni):
    """The means of their vectors are the only place where nothing moves the codes."""
    vectors = randn(120, 2, seed="clusters")
    fitted = KMeans(5, n_init=1, random_state=0, tol=0.0).fit(vectors.numpy())
    codes = torch.tensor(fitted.cluster_centers_, requires_grad=True)
    omni.codebook_loss(vectors, codes, 0.25).backward()
    torch.testing.assert_close(codes.grad, torch.zeros_like(codes), **CLOSE)


def test_finite_differences_of_quantize_are_zero_and_its_gradient_is_not(omni):
    """Why the straight-through estimator is needed, and that it is an estimator, no derivative."""
    codes = randn(4, 3, seed="few codes")
    vectors = randn(5, 3, seed="few vectors").requires_grad_()
    moved = omni.quantize(vectors + 1e-7, codes)[1].sum() - omni.quantize(vectors, codes)[1].sum()
    assert abs(moved.item()) < 1e-12
    omni.quantize(vectors, codes)[1].sum().backward()
    assert torch.equal(vectors.grad, torch.ones_like(vectors))


def test_a_few_steps_lower_the_loss_on_real_scans(omni):
    torch.manual_seed(0)
    scans = digits.digits("train").images[:200].unfold(1, 4, 4).unfold(2, 4, 4).reshape(-1, 16)
    tokenizer = omni.Tokenizer(16, 24, 4, 12)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = tokenizer(scans)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    codes = tokenizer.encode(scans)
    assert tokenizer.decode(codes).shape == scans.shape


# --- sound ---


@pytest.mark.parametrize("key", "".join(tones.KEYS))
@pytest.mark.parametrize("rate", [8000, 11025])
def test_tones_are_heard_by_goertzels_filter(omni, key, rate):
    phases = 6.0 * torch.rand(2, generator=generator(f"phases {key}"), dtype=torch.float64)
    sound = omni.dual_tone(tones.frequencies(key), 0.05, rate, phases)
    loudest = [
        max(possible, key=lambda f: goertzel(sound, f, rate))
        for possible in (tones.ROWS, tones.COLUMNS)
    ]
    assert tuple(loudest) == tones.frequencies(key)


def test_the_receiver_hears_the_labs_tones():
    """Made by other code, with noise and random loudness."""
    omni = reference("multimodal", "omni")
    every = "".join(tones.KEYS) * 4
    rng = generator("lab's tones")
    sounds = torch.stack([tones.tone(key, rng, seconds=0.04) for key in every])
    assert omni.hear(sounds, tones.RATE) == every


def test_energies_are_those_of_the_fft_where_frequencies_fit(omni):
    sounds = randn(3, 40, seed="sounds")
    frequencies = [25.0 * k for k in range(20)]
    expected = np.abs(np.fft.rfft(sounds.numpy())) ** 2
    found = omni.energies(sounds, frequencies, 1000)
    torch.testing.assert_close(found, torch.tensor(expected[:, :20]), **CLOSE)


def test_energies_are_goertzels_where_they_do_not(omni):
    sound = randn(57, seed="sound")
    frequencies = [0.0, 12.34, 697.0, 3999.0]
    found = omni.energies(sound, frequencies, 8000)
    expected = [goertzel(sound, frequency, 8000) for frequency in frequencies]
    assert found.tolist() == pytest.approx(expected)


def test_twice_the_rate_is_an_octave_and_no_key(omni):
    """What the written answer asks: key 1, made for 8,000 samples a second and played at 16,000."""
    sound = omni.dual_tone(tones.frequencies("1"), 0.1, 8000, torch.zeros(2, dtype=torch.float64))
    frequencies = [float(f) for f in range(400, 3500, 2)]
    energies = omni.energies(sound, frequencies, 16000)
    loudest = sorted(frequencies[i] for i in energies.topk(20).indices.tolist())
    assert min(loudest) == pytest.approx(2 * 697, abs=12)
    assert max(loudest) == pytest.approx(2 * 1209, abs=12)
    right = omni.energies(sound, [697.0, 1209.0], 8000).min()
    assert omni.energies(sound, [*tones.ROWS, *tones.COLUMNS], 16000).max() < 0.1 * right


# --- the stream ---

SIZES = st.tuples(*[st.integers(1, 6)] * 3)


@given(st.data(), SIZES, st.integers(0, 3))
def test_streams_come_apart_into_what_they_were_made_of(data, sizes, padding):
    omni = reference("multimodal", "omni")
    segments = []
    for place in data.draw(st.lists(st.integers(0, 2), max_size=4)):
        codes = data.draw(st.lists(st.integers(0, sizes[place] - 1), max_size=4))
        segments.append((omni.MODALITIES[place], codes))
    stream = omni.interleave(
        [(modality, torch.tensor(codes, dtype=torch.int64)) for modality, codes in segments], sizes
    )
    found = omni.separate(torch.nn.functional.pad(stream, (0, padding)), sizes)
    assert [(modality, codes.tolist()) for modality, codes in found] == segments


def test_ranges_share_no_token_and_leave_none_out(omni):
    sizes = (4, 1, 7)
    tokens = [t for m in omni.MODALITIES for t in range(*omni.token_range(m, sizes))]
    special = [omni.PADDING, omni.END, *omni.BEGIN.values()]
    assert sorted(special + tokens) == list(range(omni.FIRST + sum(sizes)))


def test_of_all_short_streams_those_that_can_be_made_are_accepted(omni):
    sizes = (1, 1, 1)
    segments = [
        (modality, torch.zeros(n, dtype=torch.int64))
        for modality in omni.MODALITIES
        for n in (0, 1, 2)
    ]
    possible = set()
    for count in range(3):
        for chosen in itertools.product(segments, repeat=count):
            stream = omni.interleave(chosen, sizes).tolist()
            possible |= {tuple(stream + [0] * n) for n in range(5 - len(stream))}
    for length in range(5):
        for tokens in itertools.product(range(8), repeat=length):
            stream = torch.tensor(tokens, dtype=torch.int64)
            if tokens in possible:
                omni.separate(stream, sizes)
            else:
                with pytest.raises(ValueError, match="stream"):
                    omni.separate(stream, sizes)


# --- any to any ---


def test_the_likeliest_answer_by_brute_force(omni):
    """Of a model of pairs of tokens, greedily, with the rules written out."""
    sizes, table = (2, 3, 2), randn(12, 12, seed="table")
    for modality, allowed in [("text", [5, 6]), ("image", [7, 8, 9]), ("sound", [10, 11])]:
        expected = [omni.BEGIN[modality]]
        while expected[-1] != omni.END and len(expected) < 6:
            expected.append(max([omni.END, *allowed], key=lambda t: table[expected[-1], t].item()))
        if expected[-1] != omni.END:
            expected.append(omni.END)
        expected += [omni.PADDING] * (7 - len(expected))
        prompt = torch.tensor([[2, 5, 1]])
        found = omni.generate(lambda tokens: table[tokens[:, -1]], prompt, modality, sizes, 5)
        assert found.tolist() == [expected]


def test_answers_are_streams_whatever_the_model_says(omni):
    rng = generator("noise")
    sizes = (3, 4, 5)
    for modality in omni.MODALITIES:
        for temperature in (0.0, 1.0, 3.0):
            answers = omni.generate(
                lambda tokens: 9.0 * torch.randn(len(tokens), 17, generator=rng),
                torch.zeros(20, 0, dtype=torch.int64),
                modality,
                sizes,
                6,
                temperature,
                rng,
            )
            for answer in answers:
                [(name, codes)] = omni.separate(answer, sizes)
                assert name == modality
                assert len(codes) <= 6


def test_draws_have_the_probabilities_of_the_softmax(omni):
    logits = torch.tensor([9.0, 0.0, 9.0, 9.0, 9.0, 1.0, 2.0, 9.0])  # END 1, text 5 and 6
    answers = omni.generate(
        lambda tokens: logits.expand(len(tokens), -1),
        torch.zeros(20_000, 0, dtype=torch.int64),
        "text",
        (2, 1, 0),
        1,
        0.5,
        generator("draws"),
    )
    shares = answers[:, 1].bincount(minlength=8).double() / len(answers)
    expected = torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(shares[[1, 5, 6]], expected, rtol=0.0, atol=0.02)
