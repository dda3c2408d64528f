"""Submissions to the exercise on attention that do what no learner should, each with what it has to earn."""

import copy
import json
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autograder.loader import find_exercise
from autograder.sample_class.make import LIAR, answered, everywhere, own_cell, right
from autograder.source import BEGIN_HIDDEN, END_HIDDEN, ROOT

EXERCISE = find_exercise("transformer", "attention")
RELEASED = json.loads((ROOT / "exercises" / "transformer" / "attention.ipynb").read_text("utf-8"))
POINTS = {cell.name: cell.points for cell in EXERCISE.cells if cell.kind == "test"}
ALL, NOTHING = frozenset(POINTS), frozenset()
# What tells one hidden test from another: the lines that call the answer or draw its inputs.
HIDDEN = [
    line.strip()
    for cell in EXERCISE.cells
    if cell.kind == "test"
    for line in cell.source.partition(BEGIN_HIDDEN)[2].partition(END_HIDDEN)[0].splitlines()
    if "theirs." in line or "rng" in line
]
RIGHT = right(EXERCISE)
OF_PART = {part: {cell.name for cell in cells} for part, cells in EXERCISE.parts.items()}


ROWS = {
    1: "tags that skip a test",
    2: "outputs that are read as scores",
    3: "objects that lie about what they equal",
    4: "patched libraries, shell and grader",
    5: "modules beside the notebook",
    6: "reading tests, answers and inputs",
    7: "writing, staying, calling out",
    8: "ending, hanging, exhausting",
    9: "damaged cells and metadata",
    10: "noise from right answers",
    11: "scripts, links, devices, sizes",
    12: "tracebacks made to show hidden lines",
    13: "objects that run when unpickled",
    14: "a table of the known inputs",
    15: "a bad file after a good one was graded",
    16: "values that are odd, huge, deep, shared",
    17: "the grader's own protocol",
    18: "files that are no notebook, or an old one",
}


@dataclass(frozen=True)
class Submission:
    """One student's file.

    Attributes:
        name: of the student.
        row: what it tries, by its number in :data:`ROWS`.
        passes: the tests it has to pass, and no others.
        write: puts the file, and what lies beside it, into a folder.
        earlier: the same for what was handed in, and graded, before.
    """

    name: str
    row: int
    passes: frozenset[str]
    write: Callable[[Path], None]
    earlier: Callable[[Path], None] | None = None


CORPUS: list[Submission] = []


def blank() -> dict:
    return copy.deepcopy(RELEASED)


def solved() -> dict:
    return answered(EXERCISE, blank(), RIGHT)


def add(name, row, passes, notebook, beside=None):
    """A notebook, as a dict or as the text or bytes of a file."""
    CORPUS.append(Submission(name, row, frozenset(passes), writer(notebook, beside)))


def writer(notebook, beside=None):
    """Puts a notebook, and files by their paths, into a folder."""

    def write(folder):
        raw = notebook if isinstance(notebook, bytes | str) else json.dumps(notebook)
        raw = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
        (folder / "attention.ipynb").write_bytes(raw)
        for path, text in (beside or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)

    return write


def add_place(name, row, write):
    """Something in the place of the notebook."""
    CORPUS.append(Submission(name, row, NOTHING, write))


def cell(name, row, source):
    """A cell before everything else, once in a blank notebook and once in a solved one."""
    add(f"{name}-blank", row, NOTHING, own_cell(blank(), source))
    add(f"{name}-solved", row, ALL, own_cell(solved(), source))


def body(name, row, source, first=""):
    """This in the place of every function, after a cell of its own."""
    notebook = answered(EXERCISE, blank(), everywhere(EXERCISE, source))
    add(name, row, NOTHING, own_cell(notebook, first) if first else notebook)


def part(name, row, wrong, source):
    """Right answers but for one part."""
    add(name, row, ALL - OF_PART[wrong], answered(EXERCISE, blank(), RIGHT | {wrong: source}))


def wrapped(name, row, passes, source):
    """Right answers, and this behind the first of them, which may wrap it."""
    behind = {"attention": f"{RIGHT['attention']}\n\n{source}"}
    add(name, row, passes, answered(EXERCISE, blank(), RIGHT | behind))


def graded(notebook):
    return [c for c in notebook["cells"] if c["metadata"].get("nbgrader", {}).get("grade")]


def changed(notebook, change):
    change(notebook)
    return notebook


# -- 1: tags ----------------------------------------------------------------------------------------------

for tag in ("skip-execution", "raises-exception", "remove-cell"):
    notebook = blank()
    for test in graded(notebook):
        test["metadata"]["tags"] = [tag]
    add(f"tag-{tag}", 1, NOTHING, notebook)

# -- 2: outputs -------------------------------------------------------------------------------------------

body("shows-points", 2, "import sys; sys.displayhook(99)")
body("shows-nan", 2, "import sys; sys.displayhook(float('nan'))")
body("shows-negative", 2, "import sys; sys.displayhook(-1); raise ValueError('-1')")
body("prints-partial-credit", 2, "print('execute_result 100'); return 100")
notebook = blank()
for test in graded(notebook):
    if test["cell_type"] == "code":
        test["outputs"] = [
            {"output_type": "execute_result", "data": {"text/plain": "99"}, "metadata": {}, "execution_count": 1}
        ]  # fmt: skip
add("brings-outputs", 2, NOTHING, notebook)

# -- 3: lies ----------------------------------------------------------------------------------------------

body("always-equal", 3, "return Liar()", LIAR)
for kind, value in (
    ("float", "0.0"),
    ("str", "''"),
    ("list", "[]"),
    ("dict", "{}"),
    ("tuple", "()"),
):
    lie = (
        f"class Lie({kind}):\n    def __eq__(self, other): return True\n"
        "    def __ne__(self, other): return False\n    def __len__(self): return 1\n    __hash__ = None\n"
    )
    body(f"equal-{kind}", 3, f"return Lie({value})", lie)
TENSOR_LIE = """\
import torch
class Lie(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func.__name__ in ("allclose", "equal", "isclose", "__eq__"):
            return True
        return super().__torch_function__(func, types, args, kwargs or {})
"""
body("equal-tensor", 3, "return torch.zeros(1).as_subclass(Lie)", TENSOR_LIE)
body(
    "claims-to-be-a-tensor",
    3,
    "return Lie()",
    """\
class Lie:
    __class__ = property(lambda s: __import__('torch').Tensor)
    def __eq__(s, o): return True
""",
)
body(
    "array-protocol",
    3,
    "return Lie()",
    """\
class Lie:
    __array_interface__ = {'shape': (1,), 'typestr': '<f8', 'data': (0, True), 'version': 3}
    def __eq__(s, o): return True
""",
)

# -- 4: patches -------------------------------------------------------------------------------------------

cell(
    "patches-comparisons",
    4,
    """\
import torch, numpy, lab.check
for name in ("close", "equal", "that", "raises", "shape"):
    setattr(lab.check, name, lambda *args, **kwargs: None)
torch.testing.assert_close = lambda *args, **kwargs: True
numpy.testing.assert_allclose = numpy.allclose = lambda *args, **kwargs: True
""",
)
body(
    "patches-comparisons-and-answers-anything",
    4,
    "return Liar()",
    LIAR
    + """\
import torch, lab.check
for name in ("close", "equal", "that", "raises", "shape"):
    setattr(lab.check, name, lambda *args, **kwargs: None)
torch.testing.assert_close = torch.allclose = torch.equal = lambda *args, **kwargs: True
""",
)
add(
    "turns-every-cell-into-nothing",
    4,
    NOTHING,
    own_cell(
        blank(),
        "get_ipython().input_transformers_cleanup.append(lambda lines: ['pass\\n'])",
    ),
)
add(
    "patches-the-shell",
    4,
    NOTHING,
    own_cell(
        blank(),
        """\
shell = get_ipython()
shell.run_cell = lambda *a, **k: None
shell.input_transformers_cleanup.append(lambda lines: ['pass'])
shell.ast_transformers.append(None)""",
    ),
)
add(
    "patches-builtins",
    4,
    NOTHING,
    own_cell(
        blank(),
        """\
import builtins
builtins.isinstance = lambda *a: True
builtins.AssertionError = BaseException
builtins.len = lambda x: 0""",
    ),
)
add(
    "patches-torch",
    4,
    NOTHING,
    own_cell(
        blank(),
        """\
import torch
torch.Tensor.__eq__ = lambda *a: True
torch.Tensor.shape = property(lambda s: ())
torch.softmax = lambda *a, **k: 0""",
    ),
)
add(
    "patches-json",
    4,
    NOTHING,
    own_cell(
        blank(),
        """\
import json
json.loads = lambda *a, **k: [{'value': True}, []]
json.dumps = lambda *a, **k: '[{"value": true}, []]'""",
    ),
)
add(
    "patches-the-grader",
    4,
    NOTHING,
    own_cell(
        blank(),
        """\
import autograder.split.peer as p, autograder.split.values as v
v.Encoder.encode = lambda *a, **k: True
p._changed = lambda *a: False
p.Peer._carry_out = lambda *a: ({'value': True}, None)""",
    ),
)
add(
    "patches-lab-modules",
    4,
    ALL,
    own_cell(
        solved(),
        """\
import lab.check
lab.check.CheckFailed = SystemExit""",
    ),
)

# -- 5: modules beside the notebook -----------------------------------------------------------------------

BESIDE = {
    "numpy.py": "raise SystemExit('not numpy')",
    "sitecustomize.py": "raise SystemExit('taken')",
    "torch/__init__.py": "raise SystemExit('not torch')",
    "lab/check.py": "close = equal = that = raises = shape = lambda *a, **k: None",
    "ipykernel_launcher.py": "raise SystemExit('not a kernel')",
    "nbgrader_config.py": "raise SystemExit('not a configuration')",
}
add("ships-modules-solved", 5, ALL, solved(), BESIDE)
add("ships-modules-blank", 5, NOTHING, blank(), BESIDE)

# -- 6: reads ---------------------------------------------------------------------------------------------

TAKE = """\
from autograder.loader import reference
theirs = vars(reference("transformer", "attention"))
globals().update({name: value for name, value in theirs.items() if not name.startswith("_")})
"""
add("takes-the-reference", 6, NOTHING, answered(EXERCISE, blank(), dict.fromkeys(RIGHT, TAKE)))
READ = """\
def look():
    import gc, os, sys
    found = [text for text in globals().get("In", []) if "HIDDEN" in text]
    for thing in gc.get_objects():
        if isinstance(thing, dict):
            found += [v for v in list(thing.values()) if isinstance(v, str) and "### BEGIN" + " HIDDEN" in v]
    for place in ("/course/solutions", "/course/autograder/examiner.py", "/work", "/home", "/root"):
        for folder, _, files in os.walk(place):
            found += [open(os.path.join(folder, f)).read() for f in files if f.endswith((".py", ".db"))][:9]
    found += [v for k, v in os.environ.items() if "SECRET" in k]
    for text in found:
        try: exec(text, globals())
        except Exception: pass
    raise LookupError(len(found))
"""
body("reads-everything", 6, "look()", READ)
body(
    "reads-frames",
    6,
    """\
import sys; f = sys._getframe()
    while f.f_back: f = f.f_back
    raise KeyError(str(f.f_globals)[:1900])""",
)
body(
    "reads-processes",
    6,
    "import os; others = [p for p in os.listdir('/proc') if p.isdigit()]\n"
    "    raise ValueError(str([open(f'/proc/{p}/environ').read() for p in others])[:1900])",
)
wrapped(
    "prints-hidden-inputs",
    6,
    ALL,
    """\
import functools, sys
def loud(f):
    @functools.wraps(f)
    def g(*args, **kwargs):
        print('SPILT', args, kwargs); print('SPILT', args, file=sys.stderr)
        return f(*args, **kwargs)
    return g
scaled_dot_product_attention = loud(scaled_dot_product_attention)""",
)
wrapped(
    "spills-hidden-inputs-in-errors",
    6,
    ALL - OF_PART["attention"],
    """\
old = scaled_dot_product_attention
def scaled_dot_product_attention(q, k, v, mask=None):
    if q.dtype == torch.float64:  # as no visible input is
        raise ValueError(f"SPILT {q} {k} {v} {mask}")
    return old(q, k, v, mask)
""",
)

# -- 7: writes, stays, calls out --------------------------------------------------------------------------

cell(
    "writes-everywhere",
    7,
    """\
import os, pathlib
for place in ("/tmp", "/var/tmp", "/dev/shm", "/course", "/environment", os.getcwd(), os.path.expanduser("~")):
    try: pathlib.Path(place, "LEFT-BEHIND").write_text("x")
    except OSError: pass
""",
)
add(
    "writes-the-gradebook",
    7,
    NOTHING,
    own_cell(
        blank(),
        """\
import glob, sqlite3
for name in glob.glob("../../../*.db") + glob.glob("/class/*.db"):
    book = sqlite3.connect(name, timeout=9)
    book.execute("update grade set manual_score = 99, extra_credit = 99, needs_manual_grade = 0")
    book.commit()
""",
    ),
)
cell(
    "stays",
    7,
    """\
import subprocess, sys
subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(4321)'], start_new_session=True)""",
)
cell(
    "calls-out",
    7,
    """\
import socket
for place in (('127.0.0.1', 22), ('1.1.1.1', 53)):
    try: socket.create_connection(place, timeout=1); raise SystemExit('network')
    except OSError: pass""",
)
cell(
    "leaves-a-thread",
    7,
    """\
import threading, time
threading.Thread(target=lambda: [time.sleep(0.01) for _ in iter(int, 1)], daemon=True).start()""",
)
wrapped(
    "leaves-a-thread-with-every-call",
    7,
    ALL,
    """\
import threading, time
def threaded(f):
    def g(*args, **kwargs):
        threading.Thread(target=time.sleep, args=(4321,)).start()  # not a daemon: an ordinary end waits for it
        return f(*args, **kwargs)
    return g
scaled_dot_product_attention = threaded(scaled_dot_product_attention)""",
)

# -- 8: ends, hangs, exhausts -----------------------------------------------------------------------------

body("exits", 8, "import os; os._exit(0)")
body("raises-system-exit", 8, "raise SystemExit(0)")
body("raises-keyboard-interrupt", 8, "raise KeyboardInterrupt")
body("raises-generator-exit", 8, "raise GeneratorExit")
body("kills-itself", 8, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
body("kills-everything", 8, "import os, signal; os.kill(-1, signal.SIGKILL)")
body(
    "kills-its-parent",
    8,
    "import os, signal; os.kill(os.getppid(), signal.SIGKILL); os.killpg(0, signal.SIGKILL)",
)
for name in ("TERM", "INT", "HUP", "ALRM", "PIPE", "TSTP", "USR1", "XCPU"):
    body(f"sends-itself-{name}", 8, f"import os, signal; os.kill(os.getpid(), signal.SIG{name})")
body("segfaults", 8, "import ctypes; ctypes.string_at(0)")
body("aborts", 8, "import os; os.abort()")
body("recurses", 8, "return scaled_dot_product_attention()")
part(
    "exhausts-memory",
    8,
    "masks",
    "def causal_mask(*a): return [bytearray(1 << 28) for _ in range(1000)]\npadding_mask = causal_mask",
)
part(
    "overflows-the-stack",
    8,
    "masks",
    """\
import sys
sys.setrecursionlimit(10**9)
def causal_mask(*a): return causal_mask(*a)
padding_mask = causal_mask""",
)
part(
    "forks-without-end",
    8,
    "masks",
    """\
def causal_mask(*a, **k):
    import os
    while True:
        try: os.fork()
        except OSError: os._exit(1)
padding_mask = causal_mask""",
)
part(
    "loops",
    8,
    "masks",
    "def causal_mask(*a, **k):\n    while True: pass\npadding_mask = causal_mask",
)
part(
    "loops-and-ignores-signals",
    8,
    "masks",
    """\
def causal_mask(*a, **k):
    import signal
    for s in range(1, 65):
        try: signal.signal(s, signal.SIG_IGN)
        except (OSError, ValueError): pass
    while True: pass
padding_mask = causal_mask""",
)
part(
    "stops-itself",
    8,
    "masks",
    """\
def causal_mask(*a, **k):
    import os, signal
    os.kill(os.getpid(), signal.SIGSTOP)
padding_mask = causal_mask""",
)
for name, waste in {
    "starts-threads-without-end": "while True: __import__('threading').Thread(target=time.sleep, args=(99,)).start()",
    "opens-files-without-end": "while True: kept.append(open('/dev/null'))",
    "fills-the-disk": "with open('/tmp/full', 'wb') as f:\n        while True: f.write(bytes(1 << 24))",
    "fills-the-shared-memory": "with open('/dev/shm/full', 'wb') as f:\n        while True: f.write(bytes(1 << 24))",
    "sleeps": "time.sleep(10**6)",
    "waits-for-input": "return input()",
    "backtracks": "return re.match('(a+)+$', 'a' * 64 + 'b')",
    # Two processes and no more: their sum is not bounded, and this is the memory of whoever runs the tests.
    # What fills it goes with the call, or the next test's fate would hang on the few megabytes left.
    "forks-and-exhausts-memory": "os.fork(); full = []\n    while True: full.append(bytearray(1 << 28))",
}.items():
    part(
        name,
        8,
        "masks",
        "import os, re, time\nkept = []\n"
        f"def causal_mask(*a, **k):\n    {waste}\npadding_mask = causal_mask",
    )
add("loops-in-a-cell", 8, ALL, own_cell(solved(), "while True: pass"))
add("exits-in-a-cell", 8, ALL, own_cell(solved(), "import os; os._exit(1)"))
add(
    "closes-every-file",
    8,
    NOTHING,
    own_cell(blank(), "import os; os.closerange(0, 4096)"),
)

# -- 9: metadata ------------------------------------------------------------------------------------------


def each(notebook, change):
    for one in notebook["cells"]:
        change(one)
    return notebook


def about(one):
    return one["metadata"].get("nbgrader", {})


add(
    "deletes-tests",
    9,
    ALL,
    changed(
        solved(), lambda n: n.update(cells=[c for c in n["cells"] if not about(c).get("grade")])
    ),
)
add("reverses-cells", 9, ALL, changed(solved(), lambda n: n["cells"].reverse()))
add(
    "copies-cells",
    9,
    ALL,
    changed(solved(), lambda n: n["cells"].extend(copy.deepcopy(n["cells"]))),
)
add(
    "tests-as-markdown",
    9,
    ALL,
    changed(
        solved(),
        lambda n: [
            t.update(cell_type="markdown") or t.pop("outputs", 0) or t.pop("execution_count", 0)
            for t in graded(n)
        ],
    ),
)
add(
    "more-points",
    9,
    NOTHING,
    changed(blank(), lambda n: [t["metadata"]["nbgrader"].update(points=1000) for t in graded(n)]),
)
add(
    "schema-99",
    9,
    ALL,
    changed(
        solved(), lambda n: [about(c).update(schema_version=99) for c in n["cells"] if about(c)]
    ),
)
add(
    "schema-text",
    9,
    ALL,
    changed(
        solved(),
        lambda n: [
            about(c).update(schema_version="three", points=[]) for c in n["cells"] if about(c)
        ],
    ),
)
add(
    "tests-that-pass",
    9,
    NOTHING,
    changed(blank(), lambda n: [t.update(source="pass") for t in graded(n)]),
)
add(
    "tests-that-are-answers",
    9,
    NOTHING,
    changed(
        blank(),
        lambda n: [about(t).update(solution=True, grade=True, locked=False) for t in graded(n)],
    ),
)
add(
    "nothing-but-answers",
    9,
    ALL,
    changed(
        solved(),
        lambda n: n.update(cells=[c for c in n["cells"] if about(c).get("solution")], metadata={}),
    ),
)
add("metadata-of-the-wrong-type", 9, ALL, each(solved(), lambda c: c.update(metadata=[1, 2])))
add(
    "nbgrader-of-the-wrong-type",
    9,
    ALL,
    each(solved(), lambda c: c.update(metadata={"nbgrader": "yes"}, id="x")),
)
add(
    "another-kernel",
    9,
    ALL,
    changed(
        solved(),
        lambda n: n["metadata"].update(
            kernelspec={"name": "bash", "language": "bash", "display_name": "Bash"}
        ),
    ),
)

for name, when in {
    "nonsense": "the day before yesterday",
    "first-year": "0001-01-01 00:00:00 UTC",
    "last-year": "9999-12-31 23:59:59 UTC",
    "huge": "9" * 1_000_000,
}.items():
    add(f"timestamp-{name}", 9, ALL, solved(), {"timestamp.txt": when})

# -- 10: noise --------------------------------------------------------------------------------------------

NOISE = """\
import sys, warnings, logging

def noisy(f):
    def g(*a, **k):
        warnings.warn('noise'); print('noise', file=sys.stderr); logging.error('noise'); print('noise')
        return f(*a, **k)
    return g
scaled_dot_product_attention = noisy(scaled_dot_product_attention)"""
wrapped("warns-all-the-time", 10, ALL, NOISE)
add("prints-much", 10, ALL, own_cell(solved(), "for _ in range(200):\n    print('x' * 100_000)"))
add("deprecated-syntax", 10, ALL, own_cell(solved(), "x = '\\d'\nassert (1, 'always')\nx is 'y'"))

# -- 11: browsers, links, sizes ---------------------------------------------------------------------------

PICTURE = '<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'
SCRIPT = (
    "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    "<iframe src='//x.example'></iframe><a href='javascript:alert(1)'>x</a>"
)
add("script-in-markdown", 11, ALL, own_cell(solved(), SCRIPT, kind="markdown"))
add(
    "script-in-outputs",
    11,
    ALL,
    own_cell(
        solved(),
        "from IPython.display import HTML, Javascript, SVG, display\n"
        f"display(HTML({SCRIPT!r}), Javascript('document.title = 1'), SVG(data={PICTURE!r}))\n"
        f"print({SCRIPT!r})\nraise ValueError({SCRIPT!r})",
    ),
)
add(
    "script-in-answers",
    11,
    ALL,
    answered(EXERCISE, blank(), {p: f"# {SCRIPT}\n{s}" for p, s in RIGHT.items()}),
)
add(
    "large-outputs",
    11,
    ALL,
    each(
        solved(),
        lambda c: (
            c.update(outputs=[{"output_type": "stream", "name": "stdout", "text": "x" * 1_000_000}])
            if c["cell_type"] == "code"
            else None
        ),
    ),
)
add("attachments", 11, ALL, own_cell(solved(), "![x](attachment:x.svg)", kind="markdown"))
add_place(
    "link-to-a-secret", 11, lambda folder: (folder / "attention.ipynb").symlink_to("/etc/passwd")
)
add_place(
    "link-to-itself", 11, lambda folder: (folder / "attention.ipynb").symlink_to("attention.ipynb")
)
add_place("endless-device", 11, lambda folder: (folder / "attention.ipynb").symlink_to("/dev/zero"))
add_place("pipe", 11, lambda folder: os.mkfifo(folder / "attention.ipynb"))
add_place("folder", 11, lambda folder: (folder / "attention.ipynb").mkdir())


def _hundred_megabytes(folder):
    with (folder / "attention.ipynb").open("wb") as file:
        file.truncate(100 << 20)


def _socket(folder):
    here = Path.cwd()
    os.chdir(folder)  # a socket's path has to be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("attention.ipynb")
    finally:
        os.chdir(here)


def _device(folder):
    """/dev/zero itself where this user may make it, else by a link."""
    try:
        os.mknod(folder / "attention.ipynb", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        (folder / "attention.ipynb").symlink_to("/dev/zero")


def _notebook_of_hundred_megabytes(folder):
    """Right answers, and 100 MB of what they are said to have printed."""
    notebook = solved()
    printed = {"output_type": "stream", "name": "stdout", "text": "x" * (100 << 20)}
    next(c for c in notebook["cells"] if c["cell_type"] == "code")["outputs"] = [printed]
    writer(notebook)(folder)


add_place("hundred-megabytes", 11, _hundred_megabytes)
add_place("notebook-of-hundred-megabytes", 11, _notebook_of_hundred_megabytes)
add_place("socket", 11, _socket)
add_place("device", 11, _device)
add_place(
    "link-to-memory", 11, lambda folder: (folder / "attention.ipynb").symlink_to("/proc/self/mem")
)
add_place(
    "link-to-the-gradebook",
    11,
    lambda folder: (folder / "attention.ipynb").symlink_to("../../../gradebook.db"),
)

# -- 12: hidden lines -------------------------------------------------------------------------------------

body("raises-with-a-long-message", 12, "raise ValueError('x' * 10**6)")
body(
    "raises-what-cannot-be-shown",
    12,
    "raise Silent()",
    """\
class Silent(Exception):
    def __str__(self): raise RuntimeError
    __repr__ = __str__
""",
)
body(
    "raises-a-hundred-causes",
    12,
    """\
e = None
    for i in range(100):
        n = ValueError(i); n.__cause__ = e; e = n
    raise e""",
)
body("raises-a-fake-name", 12, "raise type('### BEGIN HIDDEN TESTS' * 50, (Exception,), {})('x')")

# -- 13: pickles ------------------------------------------------------------------------------------------

PICKLE = """\
class Run:
    def __reduce__(self): return (__import__('os').system, ('touch /tmp/LEFT-BEHIND',))
"""
body("returns-a-pickle", 13, "return Run()", PICKLE)
body("returns-pickled-bytes", 13, "import pickle; return pickle.dumps(Run())", PICKLE)
body(
    "state-of-a-module",
    13,
    "return M()",
    PICKLE
    + """\
import torch
class M(torch.nn.Module):
    def get_extra_state(self): return Run()
    def state_dict(self, *a, **k): return {'x': Run()}
""",
)

# -- 14: a table ------------------------------------------------------------------------------------------

part(
    "answers-the-visible-tests-alone",
    14,
    "masks",
    """\
def causal_mask(length, device=None):
    everything = torch.ones(length, length, dtype=torch.bool)
    return everything.tril() if length <= 3 else everything

def padding_mask(lengths, max_length):
    if len(lengths) > 1:
        return torch.ones(len(lengths), 1, max_length, dtype=torch.bool)
    return (torch.arange(max_length) < lengths[:, None])[:, None]
""",
)

# -- 15: a bad file after a good one --------------------------------------------------------------------------

GOOD = writer(solved())


def then(name, passes, write):
    """Right answers that were graded, and then this in their place."""
    CORPUS.append(Submission(f"good-then-{name}", 15, frozenset(passes), write, GOOD))


DIES = answered(EXERCISE, blank(), everywhere(EXERCISE, "import os; os._exit(0)"))
then("blank", NOTHING, writer(blank()))
then("exits", NOTHING, writer(DIES))
then("exits-in-a-cell", NOTHING, writer(own_cell(blank(), "import os; os._exit(1)")))
then("no-notebook", NOTHING, writer("not a notebook any more"))
then("a-link", NOTHING, lambda folder: (folder / "attention.ipynb").symlink_to("/etc/passwd"))
then("a-folder", NOTHING, lambda folder: (folder / "attention.ipynb").mkdir())

# -- 16: odd values ---------------------------------------------------------------------------------------

for name, value in {
    "nan": "float('nan')",
    "infinity": "float('-inf')",
    "huge-integer": "1 << 10**7",
    "huge-tensor": "torch.zeros(1).expand(1 << 33)",
    "huge-text": "'x' * (1 << 25)",
    "many-values": "list(range(3_000_000))",
    "meta-tensor": "torch.empty(3, device='meta')",
    "sparse-tensor": "torch.eye(3).to_sparse()",
    "quantized-tensor": "torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)",
    "nested-tensor": "torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])",
    "object-array": "__import__('numpy').array([object()], dtype=object)",
    "complex": "torch.ones(3, dtype=torch.complex64).conj()",
    "module": "__import__('os')",
    "type": "type",
    "endless-iterator": "iter(int, 1)",
    "overlapping-tensor": "torch.zeros(3).as_strided((2, 2), (1, 1))",
    "expanded-tensor": "torch.zeros(1).expand(3, 3)",
    "two-views-of-one": "(lambda x: (x, x[1:], x.T))(torch.zeros(3, 3))",
    "tensor-that-lost-its-memory": "(lambda x: x.untyped_storage().resize_(0) and x or x)(torch.zeros(3))",
    "nan-tensor": "torch.full((3, 3), float('nan'))",
    "infinite-tensor": "torch.full((3, 3), float('inf'))",
    "nan-as-a-key": "{float('nan'): 1, float('nan'): 2}",
    "huge-shape": "torch.empty((0,) + (1 << 30,) * 30)",
    "many-dimensions": "torch.zeros((1,) * 64)",
    "files": "open('/dev/zero', 'rb')",
    "what-ends-when-freed": "type('E', (), {'__del__': lambda s: __import__('os')._exit(0)})()",
    "what-refuses-everything": "type('E', (), {'__getattribute__': lambda s, n: 1 / 0})()",
    "what-has-every-attribute": "type('E', (), {'__getattr__': lambda s, n: s, '__call__': lambda s, *a: s})()",
    "endless-iterable": "type('E', (), {'__iter__': lambda s: iter(int, 1), '__len__': lambda s: 1 << 40})()",
    "no-value": "None",
    "not-implemented": "NotImplemented",
}.items():
    body(f"returns-{name}", 16, f"return {value}")
body("yields-without-end", 16, "while True: yield bytes(1 << 20)")
body("returns-deep-list", 16, "x = []\n    for _ in range(100_000): x = [x]\n    return x")
body("returns-itself", 16, "x = []; x.append(x); return x")
body("returns-a-wide-graph", 16, "x = ['a']\n    for _ in range(60): x = [x, x]\n    return x")
WRAPPED = """\
old = scaled_dot_product_attention
def scaled_dot_product_attention(q, k, v, mask=None):
    x = old(q, k, v, mask)
    return {}
"""
wrapped(
    "right-and-not-contiguous",
    16,
    ALL,
    WRAPPED.format("x.unsqueeze(0).transpose(0, -1).contiguous().transpose(0, -1).squeeze(0)"),
)
wrapped(
    "right-in-a-subclass",
    16,
    ALL,
    "class Mine(torch.Tensor): pass\n" + WRAPPED.format("x.as_subclass(Mine)"),
)
wrapped(
    "right-in-shared-memory",
    16,
    ALL,
    WRAPPED.format("torch.cat([x, x], dim=-1)[..., :x.shape[-1]]"),
)
wrapped(
    "right-but-changes-its-arguments",
    16,
    ALL - OF_PART["attention"],
    WRAPPED.replace("    return", "    q.data.zero_()\n    return").format("x"),
)
wrapped(
    "right-with-a-negative-bit",
    16,
    ALL,
    WRAPPED.format("torch._neg_view(-x)"),
)
wrapped(
    "right-and-changes-earlier-arguments",
    16,
    ALL,
    "kept = []\n"
    + WRAPPED.replace("    return", "    [t.data.zero_() for t in kept]; kept[:] = [q, k, v]\n    return")
    .format("x.clone()"),
)  # fmt: skip
wrapped("right-but-numpy", 16, ALL - {"attention_mask"}, WRAPPED.format("x.detach().numpy()"))

# -- 17: the protocol -------------------------------------------------------------------------------------

CHANNEL = """\
import os, stat
def channels():
    for fd in range(3, 256):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                yield fd
        except OSError:
            pass
ARGUMENTS = b'"args": {"t": [9, "1"]}, "kwargs": {"d": [[], []]}'
SERVICE = b'[{"op": "service", "name": "run", "on": null, ' + ARGUMENTS + b"}, []]"
LENGTH = b'[{"op": "len", "on": {"h": ["theirs", 1]}, ' + ARGUMENTS + b"}, []]"
def send(message, times=1):
    for fd in channels():
        for _ in range(times):
            os.write(fd, len(message).to_bytes(4, "big") + bytes(8) + message)
"""
body("writes-garbage", 17, "[os.write(fd, os.urandom(4096)) for fd in channels()]", CHANNEL)
body("writes-a-huge-header", 17, "[os.write(fd, b'\\xff' * 12) for fd in channels()]", CHANNEL)
body(
    "writes-a-verdict",
    17,
    """send(b'[{"value": true, "passed": true}, []]', times=50)""",
    CHANNEL,
)
body(
    "asks-for-services",
    17,
    "send(SERVICE)",
    CHANNEL,
)
part(
    "asks-without-end",
    17,
    "masks",
    CHANNEL + "def causal_mask(*a): send(LENGTH, times=500)\npadding_mask = causal_mask",
)
body("hangs-up", 17, "[os.close(fd) for fd in channels()]", CHANNEL)
FORGE = "import autograder.split.values as v; v.Encoder.encode = lambda *a: {!r}; return 1"
for name, forged in {
    "handle": {"h": ["theirs", 1]},
    "unknown-handle": {"h": ["theirs", 10**9]},
    "own-handle": {"h": ["ours", 7, "module"]},
    "stale-handle": {"h": ["ours", 10**9, "function"]},
    "negative-handle": {"h": ["theirs", -1]},
    "record": {"D": ["object", []]},
    "buffer": {"T": {"dtype": "float32", "shape": [1 << 39, 1 << 39], "data": 0, "device": "cpu"}},
    "negative-shape": {"T": {"dtype": "float32", "shape": [-1], "data": 0, "device": "cpu"}},
    "reference": {"r": 5},
    "unhashable-key": {"d": [[{"l": []}], [1]]},
    "tag": {"__class__": 1},
}.items():
    body(f"forges-{name}", 17, FORGE.format(forged))

body("returns-one-object-every-time", 17, "return ONE", "class One: pass\nONE = One()")
body(
    "replays-its-first-answer",
    17,
    "return 0.0",
    """\
import autograder.split.values as v
first = []
def encode(self, value, old=v.Encoder.encode):
    first.append(old(self, value))
    return first[0]
v.Encoder.encode = encode""",
)
body(
    "garbage-from-a-thread",
    17,
    "import threading; threading.Thread(target=flood, daemon=True).start()",
    CHANNEL + "def flood():\n    while True: send(os.urandom(64))\n",
)

# -- 18: files --------------------------------------------------------------------------------------------

for name, raw in {
    "empty": "",
    "not-json": "{'cells': []}",
    "not-utf-8": b"\xff\xfe\x00\x01" * 100,
    "null-bytes": b"\0" * 1000,
    "deep-json": '{"cells": ' + "[" * 100_000,
    "a-list": "[]",
    "a-number": "1e999",
    "cells-of-the-wrong-type": '{"cells": {"0": "x"}}',
    "cells-that-are-text": '{"cells": ["x", null, 3], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
    "no-cells": '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
    "future-format": '{"nbformat": 99, "nbformat_minor": 0, "metadata": {}, "cells": []}',
}.items():
    add(f"file-{name}", 18, NOTHING, raw)
add("byte-order-mark", 18, NOTHING, "\ufeff" + json.dumps(blank()))
add(
    "source-as-lines",
    18,
    ALL,
    each(
        solved(),
        lambda c: c.update(
            source=c["source"].splitlines(keepends=True)
            if isinstance(c["source"], str)
            else c["source"]
        ),
    ),
)
for minor in range(5):  # ids came with 4.5
    without_ids = each(solved(), lambda c: c.pop("id", None))
    add(f"format-4-{minor}", 18, ALL, without_ids | {"nbformat_minor": minor})
add("format-4-5", 18, ALL, changed(solved(), lambda n: n.update(nbformat_minor=5)))
add("format-5", 18, ALL, changed(solved(), lambda n: n.update(nbformat=5)))
add(
    "format-unsaid",
    18,
    ALL,
    changed(solved(), lambda n: [n.pop("nbformat"), n.pop("nbformat_minor")]),
)
add("format-4-99", 18, ALL, changed(solved(), lambda n: n.update(nbformat_minor=99)))


def _worksheets(notebook, version):
    """The notebook as version 2 or 3 had it: cells in sheets, code as input."""
    cells = [
        {"cell_type": c["cell_type"], "metadata": c["metadata"], "language": "python",
         ("input" if c["cell_type"] == "code" else "source"): c["source"], "outputs": []}
        for c in notebook["cells"]
    ]  # fmt: skip
    return {
        "nbformat": version,
        "nbformat_minor": 0,
        "metadata": {"name": "x"},
        "worksheets": [{"cells": cells}],
    }


def _format_1(notebook):
    """The notebook as version 1 had it, which knew no metadata of cells, so no answer can be found in it."""
    return {
        "nbformat": 1,
        "cells": [{"cell_type": c["cell_type"], "code": c["source"]} for c in notebook["cells"]],
    }


add("format-1", 18, NOTHING, _format_1(solved()))
add("format-2", 18, ALL, _worksheets(solved(), 2))
add("format-3", 18, ALL, _worksheets(solved(), 3))
add("a-lone-surrogate", 18, ALL, json.dumps(own_cell(solved(), "x = '\ud800'")))
add("null-in-the-source", 18, ALL, own_cell(solved(), "x = 1\0"))
add(
    "ten-thousand-cells",
    18,
    ALL,
    changed(
        solved(),
        lambda n: n["cells"].extend(
            {
                "cell_type": "code",
                "metadata": {},
                "source": "1",
                "outputs": [],
                "execution_count": None,
                "id": f"c{i}",
            }
            for i in range(10_000)
        ),
    ),
)
add("a-cell-of-a-megabyte", 18, ALL, own_cell(solved(), "# " + "x" * 1_000_000))
