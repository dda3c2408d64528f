"""What configuration cannot do for the published book.

- ``{course-figure}`` and ``{self-check}``, two directives;
- scripts, style and fonts served by the book itself, each on the pages that use it;
- the exercises as notebooks to download.
"""

from __future__ import annotations

import codecs
import html
import json
import re
import shutil
from pathlib import Path

import execute
from docutils import nodes
from docutils.parsers.rst import directives
from fontTools import subset
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from lab.figures import formula_html

ASSETS = Path(__file__).resolve().parents[1] / "assets"
TEMPLATES = Path(__file__).resolve().parent / "templates"
PARTS = ASSETS / "figures" / "parts.js"  # what several figures are made of
FIGURES = {path.stem for path in PARTS.parent.glob("*.js")} - {PARTS.stem}


# --- directives ---------------------------------------------------------------------------------


class CourseFigure(SphinxDirective):
    """A formula figure: one small script, the page's numbers, and a text for whoever has no scripts."""

    required_arguments = 1
    has_content = True
    option_spec = {  # noqa: RUF012
        "label": directives.unchanged_required,
        "alt": directives.unchanged_required,
        "data": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in FIGURES:
            raise self.error(f"no figure {name!r}; there are {', '.join(sorted(FIGURES))}")
        for option in ("label", "alt"):
            if option not in self.options:
                raise self.error(f"course-figure needs :{option}:")
        try:
            page = formula_html(
                name, self.data(), label=self.options["label"], alt=self.options["alt"]
            )
        except ValueError as problem:  # bad JSON and a poor alt alike
            raise self.error(f"course-figure {name}: {problem}") from problem
        return [nodes.raw("", page, format="html")]

    def data(self) -> dict:
        """The JSON of the body or of the file that `data` names; {} where there is neither."""
        if "data" not in self.options:
            return json.loads("\n".join(self.content) or "{}")
        relative, absolute = self.env.relfn2path(self.options["data"])
        self.env.note_dependency(relative)
        try:
            return json.loads(Path(absolute).read_text(encoding="utf-8"))
        except OSError as problem:
            raise self.error(f"course-figure cannot read {relative}") from problem


class SelfCheck(SphinxDirective):
    """A question whose options answer back; it works without scripts.

    The body is a list. An item starts with ``(x)`` where right and ``( )`` where wrong; its first
    paragraph is the option, the rest the reply.
    """

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        self.assert_has_content()
        body = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, body)
        if len(body.children) != 1 or not isinstance(body[0], nodes.bullet_list):
            raise self.error("self-check: the body must be one list")
        number = self.env.new_serialno("self-check")
        items = [self.item(item, f"check-{number}", i) for i, item in enumerate(body[0])]
        if [right for right, _ in items].count(True) != 1:
            raise self.error("self-check: exactly one item must start with (x)")
        legend, messages = self.state.inline_text(self.arguments[0], self.lineno)
        return [
            raw('<fieldset class="self-check"><legend>'),
            nodes.inline("", "", *legend),  # Sphinx writes a link only into a text element
            raw("</legend>"),
            *[node for _, parts in items for node in parts],
            raw("</fieldset>"),
            *messages,
        ]

    def item(self, item: nodes.list_item, group: str, i: int) -> tuple[bool, list[nodes.Node]]:
        """Whether the item is the right one, and its nodes."""
        option = item[0] if item.children else None
        if not isinstance(option, nodes.paragraph) or len(item) < 2:
            raise self.error("self-check: an item is an option, an empty line, and a reply")
        mark = re.match(r"\(([x ])\) ", option[0].astext() if option.children else "")
        if mark is None:
            raise self.error(
                f"self-check: this item starts with neither (x) nor ( ): {option.astext()}"
            )
        right = mark[1] == "x"
        option[0] = nodes.Text(option[0].astext()[mark.end() :])
        verdict = "Right." if right else "Not quite."
        reply = f"{group}-{i}-reply"
        return right, [
            raw(
                f'<div class="option {"right" if right else "wrong"}"><label>'
                f'<input type="radio" name="{group}" aria-describedby="{reply}"{_name(option)}> '
            ),
            nodes.inline("", "", *option.children),
            raw(f'</label><div class="reply" id="{reply}"><p class="verdict">{verdict}</p>\n'),
            *item.children[1:],
            raw("</div></div>"),
        ]


def _name(option: nodes.paragraph) -> str:
    """An accessible name for an option that is nothing but a formula, whose typeset form has none."""
    words = "".join(part.astext() for part in option.children if not isinstance(part, nodes.math))
    if words.strip(" .,;"):
        return ""
    spoken = re.sub(r"\\(times|cdot)", "×", option.astext())
    spoken = re.sub(r"[\\${}]", " ", spoken)
    return f' aria-label="{html.escape(" ".join(spoken.split()), quote=True)}"'


def raw(markup: str) -> nodes.raw:
    return nodes.raw("", markup, format="html")


# --- one page -----------------------------------------------------------------------------------


def drop_unseen_widgets(app: Sphinx, env) -> None:
    """Leave the widget manager (446 KB gzipped) and the widgets' state out where no view is shown.

    A stepper is shown as HTML; its widgets are for live notebooks.
    """
    for name, data in getattr(env, "nb_metadata", {}).items():
        files = data.get("js_files", {})
        if any(key.startswith("ipywidgets") for key in files) and not shows_widget(env, name):
            data["js_files"] = {k: v for k, v in files.items() if not k.startswith("ipywidgets")}


def shows_widget(env, name: str) -> bool:
    """Whether the page has an output whose only rich form is a widget."""
    bundles = env.get_doctree(name).findall(
        lambda node: (
            node.get("nb_element") == "mime_bundle" if isinstance(node, nodes.Element) else False
        )
    )
    for bundle in bundles:
        types = {child.get("mime_type") for child in bundle.children}
        if "application/vnd.jupyter.widget-view+json" in types and "text/html" not in types:
            return True
    return False


def add_scripts(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    """Give the page the scripts that it uses, and an exercise its download."""
    # sphinxcontrib-bibtex writes a role that no longer exists inside role="list".
    body = context.get("body", "").replace('role="doc-biblioentry"', 'role="listitem"')
    context["body"] = body
    assets = context["pathto"]("_static/vendor/widgets/", resource=True)
    if "application/vnd.jupyter.widget-view+json" in body:
        # embed.js looks for its fonts here; and a label in a widget asks for MathJax 2.
        app.add_js_file(
            None, body=f"window.__jupyter_widgets_assets_path__ = {json.dumps(assets)};"
        )
        app.add_js_file("mathjax_hub.js", priority=600, defer="defer")
    for name in sorted(set(re.findall(r'class="course-figure" data-figure="(\w+)"', body))):
        app.add_js_file(f"figures/{name}.js", priority=600, defer="defer")
    app.add_js_file("course.js", priority=700, defer="defer")
    if page.startswith("exercises/") and body:
        path = context["pathto"](f"_downloads/{page}.ipynb", resource=True)
        context["body"] = DOWNLOAD.format(path=path, name=Path(page).name) + body


DOWNLOAD = (
    '<p class="course-download"><a href="{path}" download>'
    "Download this exercise as a notebook ({name}.ipynb)</a></p>\n"
)


# --- files of the site --------------------------------------------------------------------------


def check_vendor(app: Sphinx, config) -> None:
    """Stop early, with what to do, when the scripts from npm are not there."""
    if not (ASSETS / "vendor" / ".manifest").is_file():
        raise ExtensionError(
            "run `python book/assets/vendor.py` first: it brings the book's scripts"
        )
    config.templates_path.append(str(TEMPLATES))


def reread_stale_pages(app: Sphinx, env, added: set, changed: set, removed: set) -> list[str]:
    """Read every page again whose results may rest on an older `lab` or an older recorded run."""
    cache = Path(app.config.nb_execution_cache_path).resolve()
    execute.forget_stale_results(cache)
    now = execute.inputs_hash()
    stale = getattr(env, "course_inputs", now) != now
    env.course_inputs = now
    return [name for name in env.found_docs if not name.startswith("exercises/")] if stale else []


def copy_files(app: Sphinx, problem: Exception | None = None) -> None:
    """Copy what the pages load. Not `html_static_path`: a build that changed no page skips that."""
    if problem or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    for folder in ("mathjax", "widgets"):
        shutil.copytree(ASSETS / "vendor" / folder, static / "vendor" / folder, dirs_exist_ok=True)
    for name in ("course.css", "course.js", "mathjax_hub.js"):
        shutil.copyfile(ASSETS / name, static / name)
    (static / "figures").mkdir(exist_ok=True)
    for name in FIGURES:
        module = (ASSETS / "figures" / f"{name}.js").read_text(encoding="utf-8")
        (static / "figures" / f"{name}.js").write_text(classic(name, module), encoding="utf-8")
    for notebook in Path(app.srcdir, "exercises").glob("*/*.ipynb"):
        target = Path(app.outdir, "_downloads", notebook.relative_to(app.srcdir))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(notebook, target)


def classic(name: str, module: str) -> str:
    """The module as a classic script: browsers refuse modules on a page opened from a folder.

    What it imports from parts.js stands in the script itself, in a scope of its own.
    """
    exports = re.findall(r"^export (?:async )?(?:function|const|class) (\w+)", module, re.MULTILINE)
    body = re.sub(r'^import (\{[^}]*\}) from "\./parts\.js";', _parts, module, flags=re.MULTILINE)
    body = _without_export(body)
    if re.search(r"^(import|export) ", body, re.MULTILINE):
        raise ExtensionError(
            f"figures/{name}.js: only `export function|const|class`, and no import but of parts.js"
        )
    return (
        f"(() => {{\n{body}\n"
        f"(window.courseFigures ??= {{}}).{name} = {{ {', '.join(exports)} }};\n}})();\n"
    )


def _parts(found: re.Match) -> str:
    parts = _without_export(PARTS.read_text(encoding="utf-8"))
    return f"const {found[1]} = (() => {{\n{parts}\nreturn {found[1]};\n}})();"


def _without_export(module: str) -> str:
    return re.sub(r"^export ", "", module, flags=re.MULTILINE)


def shrink_icons(app: Sphinx, problem: Exception | None) -> None:
    """Keep of the icon font (156 KB) what the site shows (3 KB)."""
    if problem or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    sheets = [path.read_text(encoding="utf-8") for path in static.rglob("*.css")]
    used = {"fa-sun", "fa-moon", "fa-circle-half-stroke"}  # which of them a script decides
    for page in Path(app.outdir).rglob("*.html"):
        used |= set(re.findall(r"\bfa-[\w-]+", page.read_text(encoding="utf-8")))
    codes = set()
    for sheet in sheets:
        for names, code in re.findall(
            r'((?:\.fa-[\w-]+:before,?)+)\{content:"\\([0-9a-f]+)"', sheet
        ):
            if used & set(re.findall(r"fa-[\w-]+", names)):
                codes.add(int(code, 16))
        # Icons of boxes stand in the style sheets as characters of the private area.
        codes |= {ord(c) for c in re.findall("[\ue000-\uf8ff]", sheet)}
    font = TTFont(static / "vendor" / "fontawesome" / "webfonts" / "fa-solid-900.ttf")
    subsetter = subset.Subsetter()
    subsetter.populate(unicodes=codes)
    subsetter.subset(font)
    font.flavor = "woff"
    font.save(static / "icons.woff")


def forget_greedy_codec() -> None:
    """Take back what `future-typing` registers, which answers to every name of a codec.

    It comes with the plays' package. The bibliography is read in the codec "ulatex", which would
    never be asked. Python 3.10 and later need nothing that it does.
    """
    try:
        from future_typing.codec import search_function
    except ImportError:
        return
    for _ in range(10):  # it is registered once for each time Python reads the folder's .pth files
        try:
            codecs.lookup("no-such-codec")
        except LookupError:
            return
        codecs.unregister(search_function)


def setup(app: Sphinx) -> dict:
    forget_greedy_codec()
    app.add_directive("course-figure", CourseFigure)
    app.add_directive("self-check", SelfCheck)
    app.add_css_file("course.css", priority=900)
    app.connect("config-inited", check_vendor)
    app.connect("builder-inited", copy_files)
    app.connect("env-get-outdated", reread_stale_pages)
    app.connect("env-updated", drop_unseen_widgets)
    app.connect("html-page-context", add_scripts)
    app.connect("build-finished", copy_files)
    app.connect("build-finished", shrink_icons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
