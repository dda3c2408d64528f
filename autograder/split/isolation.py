"""Cuts one learner process off from the next: namespaces of its own, limits, no way back.

The warm process already lives in bubblewrap's sandbox (:mod:`autograder.sandbox`): no network, a read-only
file system with nothing of the course but ``lab``. What is done here keeps one submission from another.
"""

import ctypes
import math
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "IsolationError",
    "Limits",
    "end_with_parent",
    "isolate",
    "limit",
    "limit_processor_time",
]

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CAPABILITY_VERSION_3 = 0x20080522


class IsolationError(Exception):
    """The system did not give the isolation that was asked for."""


@dataclass(frozen=True)
class Limits:
    """What one learner process may use.

    Attributes:
        memory: bytes of private memory (``RLIMIT_DATA``) of each of its processes.
        processes: processes and threads, all together. The kernel does not apply this to root's.
        cpu_seconds: seconds of processor time of each of its processes.
        file_size: bytes of any file it writes.
        scratch: bytes of its private ``/tmp``.
        open_files: file descriptors of each of its processes.
    """

    memory: int = 3 << 30
    processes: int = 64
    cpu_seconds: int = 900
    file_size: int = 64 << 20
    scratch: int = 256 << 20
    open_files: int = 256


def isolate(limits: Limits) -> None:
    """Returns in a new process that shares nothing with any other but what the sandbox shows read-only.

    The process that called waits for the new one and ends with it.

    Raises:
        IsolationError: a namespace or a mount was refused. Nothing of a submission has run yet.
    """
    user, group = os.getuid(), os.getgid()
    _call(
        "unshare",
        CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWUTS,
    )
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")
    child = os.fork()  # a new PID namespace begins with the next child
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    # An empty /proc hides the old one, through which the memory of other processes would be in reach.
    for folder, size in (
        ("/tmp", limits.scratch),
        ("/dev/shm", limits.scratch // 4),
        ("/proc", 4096),
    ):
        options = f"size={size},nr_inodes=10k".encode()
        _call("mount", b"tmpfs", folder.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options)
    _call("mount", b"none", b"/proc", None, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, None)
    _drop_capabilities()


def end_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent ends, however that happens. Elsewhere than on Linux: nothing."""
    if sys.platform == "linux":
        _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it has ended already
            os._exit(1)


def limit(limits: Limits, *, bound_memory: bool) -> None:
    """Bounds what this process and its children may use. Python's own limits, so it works everywhere.

    Args:
        limits: how much.
        bound_memory: ``False`` where a GPU's driver reserves more address space than any limit allows.
    """
    bounds = {
        resource.RLIMIT_NPROC: limits.processes,
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_FSIZE: limits.file_size,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if bound_memory:
        bounds[resource.RLIMIT_DATA] = limits.memory
    for what, value in bounds.items():
        _, hard = resource.getrlimit(what)
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (bounded, bounded))


def limit_processor_time(seconds: float) -> None:
    """Has the kernel end this process when it has computed for so long from now.

    Processor time, because a right answer must not fail on a machine that is busy with something else. An
    answer that undoes this, or sleeps, is ended by the examiner's clock, which is more patient.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (min(soft, hard), hard))


def _drop_capabilities() -> None:
    """Gives up the power over the new namespaces: with it, the mounts above could be taken away."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _call("capset", ctypes.byref(header), ctypes.byref(nothing))
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _call(name: str, *arguments: object) -> None:
    if sys.platform != "linux":
        raise IsolationError(f"{name} exists on Linux only")
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise IsolationError(f"{name}: {os.strerror(ctypes.get_errno())}")


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise IsolationError(f"{path}: {error.strerror}") from error
