"""Figures, steppers and questions: that they move without a kernel, and show the right numbers."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow

# --- the mathematics of the formula figures, against torch ---------------------------------------


@pytest.fixture
def elements(sample, page):
    page.goto(sample.url + "elements.html")
    return page


def call(page, figure: str, function: str, *arguments):
    return page.evaluate(
        "([f, g, a]) => window.courseFigures[f][g](...a)", [figure, function, list(arguments)]
    )


def expected_distribution(logits, temperature, k, p):
    """Temperature, top-k, then top-p by sorting, in float64: another algorithm than the figure's."""
    full = torch.softmax(torch.tensor(logits, dtype=torch.float64) / temperature, 0)
    ordered, index = full.sort(descending=True, stable=True)
    ordered[k:] = 0
    ordered /= ordered.sum()
    before = ordered.cumsum(0) - ordered
    ordered[before >= p - 1e-12] = 0
    return torch.zeros_like(full).scatter(0, index, ordered / ordered.sum())


@pytest.mark.parametrize(
    ("temperature", "k", "p"),
    [(1, 23, 1), (0.1, 23, 1), (3, 23, 0.9), (1, 5, 1), (0.7, 9, 0.55), (2, 1, 0.05)],
)
def test_next_token_is_torchs_distribution(elements, temperature, k, p):
    logits = np.random.default_rng(7).normal(scale=2.5, size=23).tolist()
    got = call(
        elements, "next_token", "distribution", logits, {"temperature": temperature, "k": k, "p": p}
    )
    expected = expected_distribution(logits, temperature, k, p)
    torch.testing.assert_close(
        torch.tensor(got["probabilities"], dtype=torch.float64), expected, rtol=0, atol=1e-12
    )
    assert len(got["kept"]) == int((expected > 0).sum())
    entropy = torch.distributions.Categorical(probs=expected).entropy() / np.log(2)
    assert got["entropy"] == pytest.approx(entropy.item(), abs=1e-10)


def test_next_token_survives_large_logits_and_ties(elements):
    settings = {"temperature": 0.1, "k": 2, "p": 1}
    got = call(elements, "next_token", "distribution", [1000, 1000, 1000, -1000], settings)
    assert got["probabilities"] == [0.5, 0.5, 0, 0]
    crossing = call(
        elements,
        "next_token",
        "distribution",
        np.log([0.5, 0.3, 0.2]).tolist(),
        {"temperature": 1, "k": 3, "p": 0.6},
    )
    assert crossing["kept"] == [0, 1], "top-p keeps the token that crosses p"


@pytest.mark.parametrize(("d_model", "base"), [(16, 10000), (32, 100), (64, 10000)])
def test_positions_are_those_of_the_paper(elements, d_model, base):
    length, chosen = 50, 13
    position = np.arange(length)[:, None]
    angle = position / base ** (np.arange(0, d_model, 2) / d_model)
    expected = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, d_model)
    rows = call(elements, "positions", "table", length, d_model, base)
    np.testing.assert_allclose(rows, expected, atol=1e-12)
    np.testing.assert_allclose(
        call(elements, "positions", "products", rows, chosen),
        expected @ expected[chosen],
        atol=1e-10,
    )


# The constants of Hoffmann et al. 2022, approach 3.
HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}


def test_scaling_loss_is_the_papers(elements):
    assert call(elements, "scaling", "loss", HOFFMANN, 70e9, 1.4e12) == pytest.approx(
        1.937, abs=5e-4
    )
    assert call(elements, "scaling", "loss", HOFFMANN, 175e9, 300e9) == pytest.approx(
        2.002, abs=5e-4
    )


@pytest.mark.parametrize("compute", [1e18, 5.88e23, 1e26])
def test_scaling_optimum_is_where_no_other_size_is_better(elements, compute):
    best = call(elements, "scaling", "optimum", HOFFMANN, compute)
    assert 6 * best["N"] * best["D"] == pytest.approx(compute)

    def loss(n):
        c = HOFFMANN
        return c["E"] + c["A"] / n ** c["alpha"] + c["B"] / (compute / (6 * n)) ** c["beta"]

    sizes = best["N"] * np.geomspace(0.1, 10, 2001)
    assert sizes[np.argmin([loss(n) for n in sizes])] == pytest.approx(best["N"], rel=2e-3)


# --- by keyboard ----------------------------------------------------------------------------------


def test_next_token_moves_by_keyboard_and_says_so(elements):
    figure = elements.locator('[data-figure="next_token"]')
    data = json.loads(figure.locator("script").text_content())
    assert len(data["tokens"]) >= 20
    temperature, k, p = figure.get_by_role("slider").all()
    temperature.focus()
    for _ in range(5):
        elements.keyboard.press("ArrowLeft")
    assert temperature.get_attribute("aria-valuetext") == "0.5"
    k.focus()
    elements.keyboard.press("Home")
    for _ in range(6):
        elements.keyboard.press("ArrowRight")
    p.focus()
    for _ in range(2):
        elements.keyboard.press("ArrowLeft")
    expected = expected_distribution(data["logits"], 0.5, 7, 0.9)
    kept = int((expected > 0).sum())
    state = figure.locator("[aria-live]").text_content()
    assert state.startswith(f"{kept} of {len(expected)} tokens can be drawn.")
    assert f"probability {expected.max():.4f}" in state
    shown = figure.get_by_role("listitem").locator("b").all_text_contents()
    numbers = sorted((f"{q:.4f}" for q in expected if q > 0), reverse=True)
    assert shown == numbers + ["out"] * (len(expected) - kept)


def test_scaling_moves_by_keyboard_and_says_so(elements):
    figure = elements.locator('[data-figure="scaling"]')
    state = figure.locator("[aria-live]")
    model = figure.get_by_role("combobox").first
    model.focus()
    elements.keyboard.press("ArrowDown")
    assert "175 billion parameters on 300 billion tokens: 1.7 tokens" in state.text_content()
    assert "predicted loss 2.002" in state.text_content()
    _, tokens, compute = figure.get_by_role("slider").all()
    assert compute.get_attribute("aria-valuetext") == "3.2 × 10²³"  # 6ND
    compute.focus()
    elements.keyboard.press("Home")
    text = state.text_content()
    # On the optimum of its compute both halves of the text say the same loss.
    first, second = re.findall(r"(?:loss |: )(\d\.\d{3})\.", text)
    assert first == second
    tokens.focus()
    elements.keyboard.press("End")
    assert tokens.get_attribute("aria-valuetext") == "100 trillion"
    assert first != re.findall(r"loss (\d\.\d{3})\.", state.text_content())[0]


def test_positions_move_by_keyboard_and_say_so(elements):
    figure = elements.locator('[data-figure="positions"]')
    figure.get_by_role("slider").focus()
    elements.keyboard.press("ArrowRight")
    state = figure.locator("[aria-live]").text_content()
    assert "Position 9" in state
    assert "with itself the product is 16.00" in state
    dimensions = figure.get_by_role("combobox").first
    dimensions.focus()
    elements.keyboard.press("ArrowDown")
    state = figure.locator("[aria-live]").text_content()
    assert "d = 64" in state
    assert "with itself the product is 32.00" in state
    # cos differences: the neighbour's product is the sum of cos(base^(-2i/d)).
    neighbour = np.cos(10000.0 ** -(np.arange(0, 64, 2) / 64)).sum()
    assert f"neighbour {neighbour:.2f}" in state


def test_writing_moves_by_keyboard_and_says_so(elements):
    figure = elements.locator('[data-figure="writing"]')
    state = figure.locator("[aria-live]")
    assert "Step 1, greedy: the model chooses “b”, the likeliest" in state.text_content()
    slider = figure.get_by_role("slider")
    slider.focus()
    for _ in range(3):
        elements.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "4 of 20"
    assert figure.locator(".writing-text").text_content() == "to bbbb"
    rows = figure.get_by_role("listitem")
    assert rows.locator("code").all_text_contents() == ["b", "␣", "c", "others"]
    assert rows.locator("b").all_text_contents() == ["0.500", "0.250", "0.125", "0.125"]
    figure.get_by_role("combobox").focus()
    elements.keyboard.press("ArrowDown")
    # A token outside the list gets a row of its own.
    assert figure.locator(".writing-text").text_content() == "to bzbz"
    assert rows.locator("code").all_text_contents() == ["b", "␣", "c", "z"]
    assert figure.locator(".chosen b").all_text_contents() == ["0.060"]
    assert "number 5, with probability 0.060. Entropy 1.50 bits" in state.text_content()
    slider.focus()
    elements.keyboard.press("End")
    assert slider.get_attribute("aria-valuetext") == "20 of 20"


@pytest.mark.parametrize(("prompt", "step"), [(3, 0), (3, 1), (16, 39)])
def test_writing_counts_what_a_cache_saves(elements, prompt, step):
    """Without a cache step i reads the prompt and the i tokens written before it."""
    lengths = [prompt + i for i in range(step + 1)]
    got = call(elements, "writing", "work", prompt, step)
    assert got == {"cached": lengths[-1], "uncached": sum(lengths)}


def test_asking_moves_by_keyboard_and_says_so(elements):
    figure = elements.locator('[data-figure="asking"]')
    state, text = figure.locator("[aria-live]"), figure.locator(".asking-text")
    assert text.text_content() == "where ? rome"
    assert "Told: rome. Word 1 of base: “rome”, the likeliest word" in state.text_content()
    assert "of 100 answers: right 60, wrong 40" in state.text_content()
    question, model = figure.get_by_role("combobox").all()
    slider = figure.get_by_role("slider")
    slider.focus()
    elements.keyboard.press("ArrowRight")
    assert text.text_content() == "where ? rome ."
    assert slider.get_attribute("aria-valuetext") == "2 of 2"
    # Another model begins at its first word, and its row of the table stands out.
    model.focus()
    elements.keyboard.press("ArrowDown")
    assert text.text_content() == "where ? i"
    assert figure.locator("tr.chosen").all_text_contents() == ["tuned0991"]
    # Another question changes how many words there are; a word outside the list gets a row of its own.
    question.focus()
    elements.keyboard.press("ArrowDown")
    model.focus()
    elements.keyboard.press("ArrowUp")
    assert slider.get_attribute("aria-valuetext") == "1 of 12"
    rows = figure.get_by_role("listitem")
    assert rows.locator("code").all_text_contents() == ["rome", "i", "um"]
    assert figure.locator(".chosen b").all_text_contents() == ["0.063"]
    assert "number 7 of its words" in state.text_content()
    slider.focus()
    elements.keyboard.press("End")
    assert slider.get_attribute("aria-valuetext") == "12 of 12"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([3, 0, 0], "of 3 answers: right 3"),
        ([1, 2, 3], "of 6 answers: right 1, does not know 2, wrong 3"),
    ],
)
def test_asking_leaves_out_what_there_is_none_of(elements, counts, expected):
    assert call(elements, "asking", "told", counts) == expected


def test_asking_shows_no_chance_as_none(elements):
    assert call(elements, "asking", "chance", 0.0004) == "< 0.001"
    assert call(elements, "asking", "chance", 0.25) == "0.250"


def test_asking_joins_words_with_spaces(elements):
    steps = [{"word": word} for word in ("i", "do", "not")]
    assert call(elements, "asking", "said", steps, 0) == {"before": "", "next": "i"}
    assert call(elements, "asking", "said", steps, 2) == {"before": "i do ", "next": "not"}


@pytest.mark.parametrize(
    ("turn", "tokens", "window", "first", "again"),
    [
        (1, 150, 4096, 1, 150),
        (5, 400, 2048, 1, 6000),
        (6, 400, 2048, 2, 8000),
        (3, 100, 100, 3, 300),
    ],
)
def test_conversation_keeps_the_latest_turns_that_fit(elements, turn, tokens, window, first, again):
    got = call(elements, "conversation", "prompt", turn, tokens, window)
    assert got["first"] == first
    assert got["read"] == (turn - first + 1) * tokens <= window
    read = call(elements, "conversation", "reading", turn, tokens, window)
    assert read == {"again": again, "kept": turn * tokens}


def test_conversation_moves_by_keyboard_and_says_so(elements):
    figure = elements.locator('[data-figure="conversation"]')
    state = figure.locator("[aria-live]")
    assert state.text_content().startswith(
        "For turn 1 the model reads this turn, 400 of 2,048 tokens."
    )
    figure.get_by_role("slider").focus()
    elements.keyboard.press("End")
    assert (
        "reads turns 8 to 12, 2,000 of 2,048 tokens. Turns 1 to 7 are forgotten."
        in state.text_content()
    )
    assert figure.locator(".forgotten").count() == 7 and figure.locator(".seen").count() == 5
    # A window of 1,024 holds two turns.
    figure.get_by_role("combobox", name="Context window").select_option("1,024")
    assert figure.locator(".seen").count() == 2
    assert "sees 2, up to turn 12" in figure.get_by_role("img").get_attribute("aria-label")


def test_cloze_hides_a_word_until_it_is_guessed_and_counts_each_once(elements):
    figure = elements.locator('[data-figure="cloze"]')
    state, text = figure.locator("[aria-live]"), figure.locator(".cloze-text")
    assert "cat" not in text.text_content()
    assert text.text_content().startswith("The ") and text.text_content().endswith(
        " sat, and slept."
    )
    assert figure.get_by_role("listitem").count() == 0
    guess = figure.get_by_role("textbox", name="Your guess")
    guess.fill(" CAT")
    guess.press("Enter")
    assert text.text_content() == "The cat sat, and slept."
    assert "It was “cat”, your guess is right." in state.text_content()
    assert "both: number 1; left: number 4." in state.text_content()
    assert "Right so far, of 1: you 1, both 1, left 0." in state.text_content()
    assert figure.get_by_role("list", name="left").locator("code").all_text_contents() == [
        "cat",
        "dog",
        "sun",
    ]
    guess.fill("dog")
    guess.press("Enter")  # the same blank again changes no score
    assert "Right so far, of 1: you 1, both 1, left 0." in state.text_content()
    slider = figure.get_by_role("slider")
    slider.focus()
    elements.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "2 of 2"
    assert guess.input_value() == ""
    assert "slept" not in text.text_content()
    guess.press("Enter")  # who has no idea may just look
    assert "Right so far, of 2: you 1, both 1, left 0." in state.text_content()
    figure.get_by_role("combobox").focus()
    elements.keyboard.press("ArrowDown")
    assert slider.get_attribute("aria-valuetext") == "1 of 1"
    assert text.text_content().endswith("!")


@pytest.mark.parametrize(
    ("words", "place", "expected"),
    [
        (["A", "b", ",", "c", "."], 0, {"before": "", "after": " b, c."}),
        (["A", "b", ",", "c", "."], 3, {"before": "A b,", "after": "."}),
    ],
)
def test_cloze_spaces_words_as_print_does(elements, words, place, expected):
    assert call(elements, "cloze", "around", words, place) == expected


# --- learning from preferences --------------------------------------------------------------------


def test_preferences_fits_bradley_and_terry(elements):
    """scikit-learn's logistic regression without intercept, whose C is the prior's variance, is the same problem."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(3)
    differences = rng.normal(size=(40, 3)) * [1, 3, 0.3]
    signs = np.where(rng.random(40) < 1 / (1 + np.exp(-differences @ [1, -0.5, 2])), 1, -1)
    differences *= signs[:, None]
    model = LogisticRegression(fit_intercept=False, C=4, tol=1e-10)
    model.fit(np.concatenate([differences, -differences]), [1] * 40 + [0] * 40, [0.5] * 80)
    got = call(elements, "preferences", "fit", differences.tolist(), 3)
    np.testing.assert_allclose(got, model.coef_[0], atol=1e-4)


def test_preferences_starts_from_nothing_and_stays_finite(elements):
    assert call(elements, "preferences", "fit", [], 2) == [0, 0]
    separable = [[1, 0], [1, 0], [3, 0]]
    weights = call(elements, "preferences", "fit", separable, 2)
    assert 0.5 < weights[0] < 5 and weights[1] == 0


def test_preferences_makes_every_pair_of_a_ranking(elements):
    got = call(elements, "preferences", "pairs", [[5, 1], [3, 0], [0, 0]])
    assert got == [[2, 1], [5, 1], [3, 0]]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_preferences_best_of_n_is_the_mean_over_all_draws(elements, n):
    rewards, gold = [2, 0, 1, 1, 2], [7.0, 1.0, 3.0, -2.0, 4.0]
    best = []
    for drawn in itertools.combinations(range(5), n):
        top = max(rewards[i] for i in drawn)
        equals = [gold[i] for i in drawn if rewards[i] == top]
        best.append((top, np.mean(equals)))
    expected = np.mean(best, axis=0)
    got = call(elements, "preferences", "bestOf", n, rewards, gold)
    assert [got["reward"], got["gold"]] == pytest.approx(expected.tolist())


def test_preferences_counts_agreement_without_ties_of_gold(elements):
    got = call(elements, "preferences", "agreement", [3, 1, 1, 0], [2, 1, 0, 2])
    # 3>1 right; 3>1 right; (1, 1) tied; 3 and 0 have equal gold; 1>0 wrong; 1>0 wrong.
    assert got == {"right": 2.5, "all": 5}


def test_preferences_learns_by_keyboard_and_says_so(elements):
    figure = elements.locator('[data-figure="preferences"]')
    state, weights = figure.locator("[aria-live]"), figure.get_by_role("listitem").locator("b")
    assert "No ranking yet" in state.text_content()
    assert "where ?" in figure.locator(".preferences-question").text_content()
    best = figure.get_by_role("button", name="sure rome")
    best.press("Enter")
    assert best.get_attribute("aria-pressed") == "true"
    figure.get_by_role("button", name="Take the last pick back").press("Enter")
    assert best.get_attribute("aria-pressed") == "false"
    best.press("Enter")
    # Two of three settle the third, the next question comes, and the focus stays among its answers.
    figure.get_by_role("button", name="rome", exact=True).press("Enter")
    assert "1 ranking, 3 pairs. The learnt reward orders 100 %" in state.text_content()
    assert "what ?" in figure.locator(".preferences-question").text_content()
    assert elements.evaluate("document.activeElement.textContent") == "sure ash"
    polite, right = weights.all_text_contents()[-2:]
    assert polite.startswith("+") and right.startswith("+")
    people = figure.get_by_role("button", name="Let people rank 20")
    people.press("Enter")
    assert "21 rankings, 63 pairs" in state.text_content()
    # Hidden, a feature has no weight, and agreement with the gold reward is lower.
    agrees = [int(re.findall(r"(\d+) % of pairs of new", state.text_content())[0])]
    figure.get_by_role("checkbox").press("Space")
    agrees.append(int(re.findall(r"(\d+) % of pairs of new", state.text_content())[0]))
    assert agrees[0] == 100 > agrees[1]
    assert weights.all_text_contents()[-1] == "unseen"
    figure.get_by_role("button", name="Forget all rankings").press("Enter")
    assert "No ranking yet" in state.text_content()


@pytest.mark.parametrize("advantage", [1.5, -2.0, 0.0])
@pytest.mark.parametrize("ratio", [0.3, 0.9, 1.0, 1.15, 1.7])
def test_clip_is_torchs_objective_with_its_gradient(elements, ratio, advantage):
    r = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    value = torch.minimum(r * advantage, r.clamp(0.8, 1.2) * advantage)
    (slope,) = torch.autograd.grad(value, r)
    got = call(elements, "clip", "objective", ratio, advantage, 0.2)
    assert got["value"] == pytest.approx(value.item())
    assert got["slope"] == pytest.approx(slope.item())


def test_clip_moves_by_keyboard_and_says_so(elements):
    figure = elements.locator('[data-figure="clip"]')
    state = figure.locator("[aria-live]")
    assert "the smaller, 1.20. Slope 0" in state.text_content()
    ratio, advantage, epsilon = figure.get_by_role("slider").all()
    advantage.focus()
    for _ in range(8):
        elements.keyboard.press("ArrowLeft")
    assert advantage.get_attribute("aria-valuetext") == "−1.00"
    assert (
        "the smaller, −1.30. Slope −1.00: the token's probability is pushed down."
        in state.text_content()
    )
    assert "the wrong way" in state.text_content()
    ratio.focus()
    elements.keyboard.press("Home")
    assert "the smaller, −0.80. Slope 0" in state.text_content()
    epsilon.focus()
    elements.keyboard.press("End")
    assert "the smaller, −0.50. Slope 0" in state.text_content()


def test_overoptimisation_moves_by_keyboard_and_says_so(elements):
    figure = elements.locator('[data-figure="overoptimisation"]')
    state, slider = figure.locator("[aria-live]"), figure.get_by_role("slider")
    slider.focus()
    for _ in range(3):
        elements.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "30 of 110"
    assert "Step 30 of PPO, seed 0: 1.50 nats from the start." in state.text_content()
    assert (
        "Learnt reward +0.30, gold reward +2.10. Right 50 %, refusals 10 %." in state.text_content()
    )
    method, seed = figure.get_by_role("combobox").all()
    seed.focus()
    elements.keyboard.press("ArrowDown")
    method.focus()
    elements.keyboard.press("ArrowDown")
    # A shorter run ends where it ends.
    assert slider.get_attribute("aria-valuetext") == "7 of 7"
    assert "Step 7 of DPO, seed 3: 0.25 nats" in state.text_content()
    assert "Learnt reward +1.50, gold reward −0.50" in state.text_content()
    cells = figure.locator("tbody tr").first.locator("th, td").all_text_contents()
    assert cells == ["where ? Right is rome.", "i friend", "wrong", "−0.10"]


def test_open_models_move_by_keyboard_in_order_of_time_and_say_so(elements):
    figure = elements.locator('[data-figure="open_models"]')
    state, slider = figure.locator("[aria-live]"), figure.get_by_role("slider")
    # The data come in another order.
    assert state.text_content() == (
        "M00, quarter 0: 1 billion parameters; context of 1,024 tokens. "
        "Licence: Apache 2.0 (for any purpose). No model here is its base."
    )
    slider.focus()
    for _ in range(9):
        elements.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "M09 (10 of 20)"
    assert "10 billion parameters, 2.5 billion of them used for a token" in state.text_content()
    assert "Trained further from M05. Trained further to M12." in state.text_content()
    assert state.text_content().endswith("Its training data is public: a set.")
    assert "10 of them are larger" in figure.get_by_role("img").get_attribute("aria-label")
    # Of the licence chosen there is one; the slider goes to it, and comes back with it.
    licence = figure.get_by_role("combobox")
    licence.select_option("not commercial")
    assert slider.get_attribute("aria-valuetext") == "M05 (1 of 1)"
    assert "Licence: research only (not commercial)." in state.text_content()
    licence.select_option("all")
    assert slider.get_attribute("aria-valuetext") == "M05 (6 of 20)"
    slider.focus()
    elements.keyboard.press("End")
    assert slider.get_attribute("aria-valuetext") == "M19 (20 of 20)"


def test_a_licence_that_no_open_model_has_cannot_be_chosen(elements):
    figure = elements.locator('[data-figure="open_models"]')
    assert figure.locator("option", has_text="with conditions").is_disabled()


@pytest.mark.parametrize(
    ("count", "text"), [(340e6, "340 million"), (6.74e9, "6.74 billion"), (405e9, "405 billion")]
)
def test_open_models_say_sizes_in_three_digits(elements, count, text):
    assert call(elements, "open_models", "size", count) == text


def test_open_models_family_goes_back_to_the_first(elements):
    models = [{"name": "a"}, {"name": "b", "from": "a"}, {"name": "c", "from": "b"}]
    assert call(elements, "open_models", "family", models, "c") == {
        "before": ["b", "a"],
        "after": [],
    }
    assert call(elements, "open_models", "family", models, "a") == {"before": [], "after": ["b"]}


def test_an_adapter_is_turned_by_keyboard_and_says_so(elements):
    figure = elements.locator('[data-figure="adapter"]')
    state = figure.locator("[aria-live]")
    rank, alpha = figure.get_by_role("slider").all()
    assert rank.get_attribute("aria-valuetext") == "4, 12 % trained"
    assert state.text_content() == (
        "r = 4, α = 4, α / r = 1. The change has the size that fine-tuning gave it. "
        "Loss 1.00 (fine-tuned 0.90), gold reward +1.00."
    )
    alpha.focus()
    elements.keyboard.press("ArrowRight")
    assert "α / r = 2. The change has 2 times the size" in state.text_content()
    rank.focus()
    elements.keyboard.press("Home")
    assert "r = 1, α = 8, α / r = 8." in state.text_content()
    assert "Loss 8.00 (fine-tuned 0.90), gold reward −6.00." in state.text_content()
    cells = figure.locator("tbody tr").first.locator("th, td").all_text_contents()
    assert cells == ["where ?", "rank 1", "right"]
    assert "Loss 8.00" in figure.get_by_role("img").get_attribute("aria-label")
    alpha.focus()
    elements.keyboard.press("Home")
    assert "α / r = 0. The matrices are those of the base." in state.text_content()


@pytest.mark.parametrize(
    ("alpha", "r", "text"), [(8, 1, "8"), (4, 4, "1"), (1, 4, "1/4"), (0, 2, "0")]
)
def test_an_adapter_says_its_scale_as_one_reads_it(elements, alpha, r, text):
    assert call(elements, "adapter", "scale", alpha, r) == text


def test_where_words_look_is_found_by_keyboard_and_said(elements):
    figure = elements.locator('[data-figure="looking"]')
    state = figure.locator("[aria-live]")
    word, row, column = figure.get_by_role("slider").all()
    assert word.get_attribute("aria-valuetext") == "?"
    row.focus()
    elements.keyboard.press("Home")
    column.focus()
    elements.keyboard.press("Home")
    assert state.text_content() == (
        "“which colour ?” The model says red; it gives red 90 %. Row 1, column 1, the red circle: “?” looks here with "
        "70 %, most of all “?” (70 %) and “which” (25 %). With this patch covered red has 20 %, and "
        "the model says blue."
    )
    elements.keyboard.press("End")
    assert "Row 1, column 2, the ground: “?” looks here with 10 %" in state.text_content()
    assert state.text_content().endswith("covered red has 80 %.")
    word.focus()
    elements.keyboard.press("Home")
    assert "“which” looks here with 25 %" in state.text_content()
    label = figure.get_by_role("img").get_attribute("aria-label")
    assert (
        label == "A picture of a red circle, a blue cross, and where the word “which” looks in it."
    )


def test_a_click_chooses_a_patch_and_a_question_begins_where_covering_costs_most(elements):
    figure = elements.locator('[data-figure="looking"]')
    state, picture = figure.locator("[aria-live]"), figure.get_by_role("img")
    box = picture.bounding_box()
    for share in (0.4, 0.9):  # the lower right of the picture, and of the map beside it
        figure.get_by_role("slider").nth(1).focus()
        elements.keyboard.press("Home")
        picture.click(position={"x": share * box["width"], "y": 0.75 * box["height"]})
        assert "Row 2, column 2, the blue cross" in state.text_content()
    figure.get_by_role("combobox").select_option("1")
    assert state.text_content().startswith(
        "“how many ?” The model says two, right is one; it gives one 30 %. Row 1, column 1, the ground: “?” looks"
    )


@pytest.mark.parametrize(
    ("patch", "there"),
    [(0, "the red circle"), (1, "the ground"), (3, "the blue cross, the grey square")],
)
def test_what_lies_in_a_patch_is_named(elements, patch, there):
    things = [
        {"colour": "red", "shape": "circle", "x": 0.3, "y": 0.2, "radius": 0.1},
        {"colour": "blue", "shape": "cross", "x": 0.75, "y": 0.7, "radius": 0.1},
        {"colour": "grey", "shape": "square", "x": 0.8, "y": 0.8, "radius": 0.1},
    ]
    assert call(elements, "looking", "lying", things, patch, 2) == there


def visible_frames(stepper):
    return [f for f in stepper.locator("figure").all() if f.is_visible()]


@pytest.mark.parametrize(("name", "last"), [("Temperature", "T = 2.0"), ("Heating", "T = 0.6")])
def test_a_slider_steps_by_keyboard_without_a_kernel(elements, name, last):
    stepper = elements.get_by_role("group", name=name, exact=True)
    (frame,) = visible_frames(stepper)
    assert frame.locator("figcaption").text_content() == "T = 0.1"
    stepper.get_by_role("slider").focus()
    for _ in range(4):
        elements.keyboard.press("ArrowRight")
    (frame,) = visible_frames(stepper)
    assert frame.locator("figcaption").text_content() == "T = 0.5"
    assert stepper.get_by_role("slider").get_attribute("aria-valuetext") == "T = 0.5"
    assert "temperature 0.5" in stepper.get_by_role("status").text_content()
    elements.keyboard.press("End")
    assert visible_frames(stepper)[0].locator("figcaption").text_content() == last


def test_play_runs_and_pauses(elements):
    stepper = elements.get_by_role("group", name="Heating")
    button = stepper.get_by_role("button", name="Play")
    button.focus()
    elements.keyboard.press("Enter")
    frame = stepper.locator("figure:visible figcaption")
    elements.wait_for_function(
        "(n) => n.textContent !== 'T = 0.1'", arg=stepper.locator(".course-value").element_handle()
    )
    stepper.get_by_role("button", name="Pause").press("Enter")
    stood = frame.text_content()
    elements.wait_for_timeout(900)
    assert frame.text_content() == stood != "T = 0.1"


def test_a_dropdown_steps(elements):
    stepper = elements.get_by_role("group", name="Choose")
    stepper.get_by_role("combobox").focus()
    elements.keyboard.press("ArrowDown")
    assert visible_frames(stepper)[0].locator("figcaption").text_content() == "T = 0.2"


def test_two_sliders_keep_each_others_place(elements):
    stepper = elements.get_by_role("group", name="Temperature and k")
    first, second = stepper.get_by_role("slider").all()
    second.focus()
    elements.keyboard.press("ArrowRight")
    first.focus()
    elements.keyboard.press("End")
    (frame,) = visible_frames(stepper)
    assert frame.locator("figcaption").text_content() == "T = 4, k = 2"


def test_a_question_answers_back(elements):
    question = elements.get_by_role("group", name=re.compile("causal model"))
    replies = question.locator(".reply")
    assert [r.is_visible() for r in replies.all()] == [False, False]
    wrong = question.get_by_role("radio").nth(1)
    wrong.focus()
    elements.keyboard.press("Space")
    assert [r.is_visible() for r in replies.all()] == [False, True]
    assert "Not quite. Then it would be given the answer" in " ".join(
        replies.nth(1).text_content().split()
    )
    elements.keyboard.press("ArrowUp")
    assert [r.is_visible() for r in replies.all()] == [True, False]


def test_plain_widgets_move_beside_mathematics(sample, page):
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(sample.url + "widgets.html")
    handle = page.get_by_role("slider")
    handle.wait_for()
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("row 1", exact=True).wait_for()
    assert page.get_by_text("row 0", exact=True).is_hidden()
    page.locator(".widget-label mjx-container").wait_for()  # the label's mathematics is set
    assert not problems


def test_a_play_widget_plays(sample, page):
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(sample.url + "play.html")
    page.get_by_role("button", name="Play").press("Enter")
    page.get_by_text("row 3", exact=True).wait_for()
    assert not problems


# --- with no scripts, and on paper ---------------------------------------------------------------


def captions(page, label: str) -> list[str]:
    frames = page.locator(f'.course-stepper[aria-label="{label}"] figure:visible figcaption')
    return frames.all_text_contents()


def assert_strips(page) -> None:
    assert captions(page, "Temperature") == ["T = 0.1", "T = 0.7", "T = 1.4", "T = 2.0"]
    assert captions(page, "Heating") == ["T = 0.1", "T = 0.6"]
    corners = ["T = 0.5, k = 1", "T = 0.5, k = 3", "T = 4, k = 1", "T = 4, k = 3"]
    assert captions(page, "Temperature and k") == corners
    for figure in page.locator(".course-figure").all():
        assert figure.locator(".course-fallback").is_visible()
        assert (
            figure.get_by_role("slider").count() == 0
            or not figure.get_by_role("slider").first.is_visible()
        )


def test_without_scripts_the_strip_is_shown(sample, browser):
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(sample.url + "elements.html")
        assert_strips(page)
        assert page.get_by_role("slider").count() == 0
        page.locator(".self-check .wrong input").check()
        assert page.locator(".wrong .reply").is_visible()


def test_print_shows_the_strip(elements):
    elements.emulate_media(media="print")
    assert_strips(elements)
    assert elements.locator(".right .reply").is_visible()


def test_modules_would_not_load_from_a_folder(sample, page, tmp_path):
    """Why the figures are shipped as classic scripts; when this fails they need not be."""
    (tmp_path / "figure.js").write_text("export const x = 1;")
    (tmp_path / "page.html").write_text(
        '<script type="module">import { x } from "./figure.js"; document.title = x;</script>'
    )
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_timeout(300)
    assert page.title() != "1"
