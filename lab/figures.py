"""Figures of the book: one look, a text alternative for each, and steppers that need no kernel.

A figure becomes SVG inside the page, its ink `currentColor`, so that it follows the reader's light
or dark theme. Measured on a line plot with a legend, gzipped: SVG 3 KB, PNG at twice the size 24 KB.
A figure with thousands of marks would reverse that, and is stored as PNG.
"""

from __future__ import annotations

import base64
import gzip
import html
import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence

import ipywidgets as widgets
import matplotlib.pyplot as plt
from cycler import cycler
from IPython.display import HTML, display
from matplotlib.figure import Figure

__all__ = ["COLOURS", "formula", "formula_html", "show", "stepper", "stepper2", "use_style"]

# Blue and vermilion of Okabe and Ito (2008), then the colours farthest from all before them to normal
# and colour-blind eyes among those with a contrast of 3 on white and on the dark theme.
COLOURS = ("#0072B2", "#D55E00", "#6E9F70", "#8D05FC", "#ED0342", "#5D91FA")
INK = "#414549"  # written as `currentColor` into the page; as it stands on paper and in PNG
SHORTEST_ALT = 30
LARGEST_SVG = 60_000  # bytes gzipped; beyond it a PNG is lighter
LARGEST_GRID = 60

_number = itertools.count(1)


def use_style() -> None:
    """Set matplotlib's defaults to the book's look."""
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.4),
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": False,
            "grid.alpha": 0.3,
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "image.cmap": "viridis",
            "svg.fonttype": "none",
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "axes.edgecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "grid.color": INK,
        }
    )


def show(fig: Figure, alt: str) -> None:
    """Display the figure with its text alternative, and close it.

    Raises ValueError if `alt` does not say what the figure shows.
    """
    display(HTML(f'<figure class="course-plot">{_image(fig, alt)}</figure>'))


def stepper(
    frames: Sequence[tuple[str, Figure, str]],
    *,
    label: str,
    control: str = "slider",
    strip: int | Sequence[int] = 4,
) -> None:
    """Display frames `(title, figure, alt)` one at a time, chosen by a control that needs no kernel.

    In a live notebook this is an ipywidgets Stack linked in the browser to a "slider", a "play"
    button or a "dropdown". In the published book, which has no kernel, a native control does the
    same. Without scripts and in print the frames of `strip` (their number, or their indices) stand
    side by side. By the house's rule something called interactive has at least 20 frames.

    Raises ValueError for no frames, an unknown control, a strip that is not there, or a poor alt.
    """
    frames = [(title, _image(fig, alt), alt) for title, fig, alt in frames]
    shown = _strip(strip, len(frames))
    make_widget = _CONTROLS.get(control)
    if make_widget is None:
        raise ValueError(f"control must be one of {', '.join(_CONTROLS)}, not {control!r}")
    stack = widgets.Stack([widgets.HTML(_titled(t, image)) for t, image, _ in frames])
    chooser = make_widget([title for title, _, _ in frames], label, stack)
    cells = [(str(i), title, image) for i, (title, image, _) in enumerate(frames)]
    _display(widgets.VBox([chooser, stack]), _stepper_html([label], [control], cells, shown))


def stepper2(
    grid: Sequence[Sequence[tuple[str, str, Figure, str]]], labels: tuple[str, str]
) -> None:
    """Display `grid[i][j] = (title_i, title_j, figure, alt)`, with a slider for i and one for j.

    Without scripts and in print the frames at the four corners stand side by side.

    Raises ValueError for a ragged or empty grid, more than 60 frames, or a poor alt.
    """
    if not grid or not grid[0] or len({len(row) for row in grid}) != 1:
        raise ValueError("grid must have rows of one length, and at least one frame")
    rows, columns = len(grid), len(grid[0])
    if rows * columns > LARGEST_GRID:
        raise ValueError(f"{rows} × {columns} frames are more than {LARGEST_GRID}")
    images = [[(a, b, _image(fig, alt)) for a, b, fig, alt in row] for row in grid]
    titles = [row[0][0] for row in images], [frame[1] for frame in images[0]]

    # Every row has its own inner stack; one slider moves them all, so that j survives a change of i.
    inner = [
        widgets.Stack([widgets.HTML(_titled(f"{a}, {b}", image)) for a, b, image in row])
        for row in images
    ]
    outer = widgets.Stack(inner)
    choosers = [_slider(titles[0], labels[0], outer), _slider(titles[1], labels[1], *inner)]

    cells = [
        (f"{i},{j}", f"{a}, {b}", image)
        for i, row in enumerate(images)
        for j, (a, b, image) in enumerate(row)
    ]
    corners = {(i, j) for i in (0, rows - 1) for j in (0, columns - 1)}
    shown = {i * columns + j for i, j in corners}
    page = _stepper_html(labels, ["slider", "slider"], cells, shown, titles)
    _display(widgets.VBox([*choosers, outer]), page)


def formula(name: str, data: Mapping, *, label: str, alt: str) -> None:
    """Display the book's formula figure `name` (book/assets/figures/name.js) on the given data.

    In a live notebook, which does not load the book's scripts, the text alternative is shown.

    Raises ValueError for a poor alt.
    """
    display(HTML(formula_html(name, data, label=label, alt=alt)))


def formula_html(name: str, data: Mapping, *, label: str, alt: str) -> str:
    """The element that the book's script turns into the formula figure.

    Raises ValueError for a poor alt.
    """
    alt = html.escape(_checked(alt))
    # "</" would end the script element early.
    payload = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("</", "<\\/")
    return (
        f'<div class="course-figure" data-figure="{html.escape(name)}" role="group" '
        f'aria-label="{html.escape(label)}">'
        f'<script type="application/json">{payload}</script>'
        f'<p class="course-fallback"><strong>{html.escape(label)}.</strong> {alt}</p></div>'
    )


# --- one figure as HTML -------------------------------------------------------------------------


def _checked(alt: str) -> str:
    """The alt without outer space; ValueError if it does not say what the figure shows."""
    alt = " ".join(alt.split())
    if re.fullmatch(r"\S+\.(png|svg|jpe?g|gif|webp|pdf)", alt, re.IGNORECASE):
        raise ValueError(f"a file name is no text alternative: {alt!r}")
    if len(alt) < SHORTEST_ALT:
        raise ValueError(
            f"the text alternative {alt!r} is shorter than {SHORTEST_ALT} characters: "
            "say what the figure shows, with its numbers"
        )
    return alt


def _image(fig: Figure, alt: str) -> str:
    """The figure as an <svg> or <img> element with its text alternative; closes the figure."""
    alt = html.escape(_checked(alt))
    svg = _svg(fig)
    if len(gzip.compress(svg.encode())) <= LARGEST_SVG:
        plt.close(fig)
        return svg.replace("<svg ", f'<svg role="img" aria-label="{alt}" ', 1)
    buffer = io.BytesIO()
    # Its ink is fixed, so it brings its own paper.
    fig.savefig(buffer, format="png", dpi=200, facecolor="white")
    plt.close(fig)
    data = base64.b64encode(buffer.getvalue()).decode()
    width = round(fig.get_figwidth() * 96)
    return f'<img alt="{alt}" width="{width}" src="data:image/png;base64,{data}">'


def _svg(fig: Figure) -> str:
    """The figure as SVG that may stand inside an HTML page, next to others."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "course"}):
        fig.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    # matplotlib's style sheet says `*`: inside a page it would restyle the page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"', _page_size, svg, count=1)
    svg = re.sub(rf"{INK}|#000000", "currentColor", svg, flags=re.IGNORECASE)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)  # the page's own font
    return re.sub(r"\s*\n\s*", "\n", _own_ids(svg)).strip()


def _page_size(match: re.Match) -> str:
    width = round(float(match[2]) * 96 / 72)
    return (
        f'{match[1]} width="{width}" '
        # matplotlib leaves out the fill where it is black, and says joins in its style sheet.
        'style="max-width: 100%; height: auto; fill: currentColor; stroke-linejoin: round"'
    )


def _own_ids(svg: str) -> str:
    """Drop the ids that nothing refers to, and make the others unique on the page."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    prefix = f"figure{next(_number)}-"
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    return re.sub(r'(url\(#|href="#| id=")([^)"]+)', lambda m: f"{m[1]}{prefix}{m[2]}", svg)


# --- steppers -----------------------------------------------------------------------------------


def _strip(strip: int | Sequence[int], count: int) -> set[int]:
    """The indices of the frames that print shows."""
    if count == 0:
        raise ValueError("a stepper needs frames")
    if isinstance(strip, int):
        wanted = max(1, min(strip, count))
        return {round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)}
    if not strip or not all(0 <= i < count for i in strip):
        raise ValueError(f"strip {list(strip)} must name frames from 0 to {count - 1}")
    return set(strip)


def _titled(title: str, image: str) -> str:
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{image}</figure>"


def _slider(titles: Sequence[str], label: str, *stacks: widgets.Stack) -> widgets.Widget:
    slider = widgets.SelectionSlider(
        options=[(title, i) for i, title in enumerate(titles)],
        index=0,
        description=label,
        style={"description_width": "initial"},
        layout={"width": "32em"},
    )
    for stack in stacks:
        stack.selected_index = 0
        widgets.jslink((slider, "index"), (stack, "selected_index"))
    return slider


def _dropdown(titles: Sequence[str], label: str, stack: widgets.Stack) -> widgets.Widget:
    stack.selected_index = 0
    dropdown = widgets.Dropdown(
        options=list(titles), index=0, description=label, style={"description_width": "initial"}
    )
    widgets.jslink((dropdown, "index"), (stack, "selected_index"))
    return dropdown


def _play(titles: Sequence[str], label: str, stack: widgets.Stack) -> widgets.Widget:
    play = widgets.Play(min=0, max=len(titles) - 1, interval=700, description=label)
    slider = _slider(titles, label, stack)
    widgets.jslink((play, "value"), (slider, "index"))
    return widgets.HBox([play, slider])


_CONTROLS = {"slider": _slider, "play": _play, "dropdown": _dropdown}


def _stepper_html(
    labels: Sequence[str],
    controls: Sequence[str],
    cells: Sequence[tuple[str, str, str]],
    shown: set[int],
    titles: Sequence[Sequence[str]] | None = None,
) -> str:
    """The strip, which the book's script turns into a stepper. `hidden` frames need the script."""
    titles = titles or [[title for _, title, _ in cells]]
    axes = [
        {"label": label, "control": control, "titles": list(names)}
        for label, control, names in zip(labels, controls, titles, strict=True)
    ]
    figures = "\n".join(
        f'<figure data-at="{at}"{" data-strip" if k in shown else " hidden"}>'
        f"<figcaption>{html.escape(title)}</figcaption>{image}</figure>"
        for k, (at, title, image) in enumerate(cells)
    )
    return (
        f'<div class="course-stepper" role="group" aria-label="{html.escape(" and ".join(labels))}" '
        f'data-axes="{html.escape(json.dumps(axes, ensure_ascii=False))}">\n{figures}\n</div>'
    )


def _display(widget: widgets.Widget, page: str) -> None:
    """Offer both forms: a notebook prefers the widget, the published book the page."""
    bundle = widget._repr_mimebundle_()
    display({**bundle, "text/html": page}, raw=True)
