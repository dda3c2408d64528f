"""lab.figures: the look, the text alternatives, the steppers' two forms."""

from __future__ import annotations

import re

import ipywidgets
import matplotlib
import numpy as np
import pytest

matplotlib.use("agg")

import matplotlib.pyplot as plt
from ipywidgets.widgets.widget import _instances as instances

from lab import figures

ALT = "The line falls from 1.00 to 0.37 over ten steps, ever more slowly."


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        figures.use_style()
        yield
    plt.close("all")


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, as mime bundles."""
    bundles = []

    def display(thing, raw=False):
        bundles.append(thing if raw else {"text/html": thing.data})

    monkeypatch.setattr(figures, "display", display)
    return bundles


def line():
    fig, ax = plt.subplots()
    ax.plot(np.exp(-np.arange(10) / 10), label="gradient")
    ax.set_xlabel("distance & time")
    ax.legend()
    return fig


def luminance(colour: str) -> float:
    channels = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("background", ["#ffffff", "#121212"])
def test_every_colour_is_seen_in_both_themes(background):
    assert min(contrast(colour, background) for colour in figures.COLOURS) >= 3


def test_colours_differ_for_the_colour_blind():
    # Machado, Oliveira and Fernandes (2009), severity 1: deuteranopia, then protanopia.
    matrices = [
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ],
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
    ]
    colours = np.array([matplotlib.colors.to_rgb(c) for c in figures.COLOURS])
    for matrix in matrices:
        seen = np.clip(colours @ np.array(matrix).T, 0, 1)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert distance[~np.eye(len(colours), dtype=bool)].min() > 0.3


def test_show_writes_an_svg_that_follows_the_theme(shown):
    fig = line()
    figures.show(fig, ALT + ' <b>&"')
    page = shown[0]["text/html"]
    assert f'role="img" aria-label="{ALT} &lt;b&gt;&amp;&quot;"' in page
    assert "currentColor" in page
    assert figures.INK.lower() not in page.lower()
    assert "<style" not in page, "a style sheet would reach the whole page"
    assert "distance &amp; time" in page
    assert not plt.fignum_exists(fig.number)


def test_two_figures_share_no_id(shown):
    figures.show(line(), ALT)
    figures.show(line(), ALT)
    first, second = (set(re.findall(r' id="([^"]+)"', b["text/html"])) for b in shown)
    assert first and second
    assert not first & second
    for ids, bundle in zip((first, second), shown, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", bundle["text/html"])) <= ids


def test_a_figure_of_many_marks_becomes_a_png(shown):
    fig, ax = plt.subplots()
    ax.scatter(*np.random.default_rng(0).normal(size=(2, 20_000)), s=1)
    figures.show(fig, ALT)
    assert f'<img alt="{ALT}"' in shown[0]["text/html"]
    assert "data:image/png;base64,iVBOR" in shown[0]["text/html"]


@pytest.mark.parametrize(
    "alt", ["", "   ", "too short", "a-figure-of-the-gradient-norm-over-distance.png"]
)
def test_show_refuses_a_poor_alternative(alt, shown):
    with pytest.raises(ValueError, match="text alternative"):
        figures.show(line(), alt)
    assert not shown


def frames(count):
    return [(f"step {i}", line(), f"Frame {i}: {ALT}") for i in range(count)]


@pytest.mark.parametrize(
    ("control", "kind"), [("slider", "SelectionSlider"), ("play", "HBox"), ("dropdown", "Dropdown")]
)
def test_stepper_has_a_form_for_notebooks_and_one_for_the_page(shown, monkeypatch, control, kind):
    made = []
    monkeypatch.setattr(figures, "_display", lambda widget, page: made.append((widget, page)))
    figures.stepper(frames(6), label="Step", control=control)
    widget, page = made[0]
    chooser, stack = widget.children
    assert type(chooser).__name__ == kind
    assert isinstance(stack, ipywidgets.Stack)
    assert len(stack.children) == 6
    assert all(f'aria-label="Frame {i}: {ALT}"' in c.value for i, c in enumerate(stack.children))
    assert page.count("<figure") == 6
    assert [int(i) for i in re.findall(r'data-at="(\d+)" data-strip', page)] == [0, 2, 3, 5]
    assert page.count(" hidden>") == 2


def test_stepper_offers_both_forms_in_one_output(shown):
    figures.stepper(frames(2), label="Step")
    assert {"text/html", "application/vnd.jupyter.widget-view+json"} <= set(shown[0])


def test_stepper_links_its_stack_in_the_browser(shown):
    before = set(instances)
    figures.stepper(frames(3), label="Step")
    links = [w for k, w in instances.items() if k not in before and type(w).__name__ == "Link"]
    targets = {
        (type(k.source[0]).__name__, k.source[1], type(k.target[0]).__name__, k.target[1])
        for k in links
    }
    assert ("SelectionSlider", "index", "Stack", "selected_index") in targets


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"frames": []}, "needs frames"),
        ({"control": "knob"}, "slider, play, dropdown"),
        ({"strip": [0, 9]}, "from 0 to 2"),
        ({"strip": []}, "from 0 to 2"),
    ],
)
def test_stepper_refuses(arguments, says, shown):
    given = {"frames": frames(3), "label": "Step", **arguments}
    with pytest.raises(ValueError, match=says):
        figures.stepper(given.pop("frames"), **given)


def grid(rows, columns):
    return [
        [(f"a{i}", f"b{j}", line(), f"{i},{j}: {ALT}") for j in range(columns)] for i in range(rows)
    ]


def test_stepper2_nests_two_and_prints_the_corners(shown):
    figures.stepper2(grid(3, 2), labels=("a", "b"))
    page = shown[0]["text/html"]
    assert re.findall(r'data-at="([\d,]+)" data-strip', page) == ["0,0", "0,1", "2,0", "2,1"]
    assert page.count("<figure") == 6


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "at least one"),
        ([[]], "at least one"),
        ([[1, 2], [1]], "one length"),
        ([[1] * 31] * 2, "more than 60"),
    ],
)
def test_stepper2_refuses(rows, says):
    with pytest.raises(ValueError, match=says):
        figures.stepper2(rows, labels=("a", "b"))


def test_formula_data_cannot_end_its_script_early():
    page = figures.formula_html("x", {"t": "</script><b>"}, label="a & b", alt=ALT)
    assert page.count("</script>") == 1
    assert 'aria-label="a &amp; b"' in page
    with pytest.raises(ValueError, match="not JSON compliant"):
        figures.formula_html("x", {"t": float("nan")}, label="x", alt=ALT)
