"""A warm process: it has imported what every notebook imports, and forks another process for each.

Importing torch takes seconds, forking a process that has imported it takes milliseconds. Nothing is computed
here, so that no thread pool exists (a fork after one has started can hang).

Requests come one by one on the control socket: ``{"spawn": number, …}`` with a file descriptor, the new
process's channel; ``{"kill": number}``; ``{"keep": name, "size": bytes}``, followed by the bytes.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["gather_memory", "main", "processor_here", "run", "stay_on"]

MAX_REQUEST = 1 << 16
LARGE_PAGE, MADV_COLLAPSE = 1 << 21, 25


def run(
    control: socket.socket,
    start: Callable[[socket.socket, dict], None],
    keep: Callable[[str, bytes], None] | None = None,
) -> None:
    """Serves the control socket until it closes.

    ``start`` runs in each new process, which then ends; ``keep`` gets what later processes shall find in
    their memory.
    """
    _settle()
    gather_memory()
    children: dict[int, int] = {}
    control.send(b"{}")  # warm, and ready
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST, 1)
        if not request:
            break
        _reap(children)
        order = json.loads(request)
        if "kill" in order:
            _kill(children, order["kill"])
        elif "keep" in order and keep:
            keep(order["keep"], b"".join(_chunks(control, order["size"])))
            _settle()
        else:
            children[order["spawn"]] = _fork(control, descriptors[0], order, start)
    for number in list(children):
        _kill(children, number)


def gather_memory() -> None:
    """Has the kernel put this process's memory into large pages: a fork then copies 512 times fewer entries.

    Half the time of a fork goes, and two are made for each notebook. A kernel that cannot do it (before Linux 6.1)
    leaves the memory as it is.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, _, _, inode, *name = line.split()
        if access.startswith("rw") and inode == "0" and name in ([], ["[heap]"]):
            start, end = (int(address, 16) for address in span.split("-"))
            start, end = -(-start // LARGE_PAGE) * LARGE_PAGE, end // LARGE_PAGE * LARGE_PAGE
            if start < end:
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_COLLAPSE)


def processor_here() -> int | None:
    """The processor on which this process runs now, where the system says."""
    if sys.platform != "linux":
        return None
    number = ctypes.CDLL(None).sched_getcpu()
    return number if number >= 0 else None


def stay_on(processor: int | None) -> None:
    """Keeps this process on one processor.

    The two sides of a notebook take turns and never compute at once. On two processors each turn would have to
    wake the other one up, which takes longer than most of the calls themselves.
    """
    if processor is not None:
        with contextlib.suppress(OSError):  # it may have been taken away
            os.sched_setaffinity(0, {processor})


def main() -> None:
    """Entry of the warm learner process, inside the sandbox."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--isolated", type=int, choices=(0, 1), required=True)
    arguments = parser.parse_args()
    control = socket.socket(fileno=arguments.control)
    from autograder.split import learner

    def start(channel: socket.socket, order: dict) -> None:
        stay_on(order["processor"])
        learner.start(channel, isolated=bool(arguments.isolated))

    learner.warm_up()
    run(control, start)


def _settle() -> None:
    """The collector of a child leaves alone what there is now, so its memory stays shared."""
    gc.collect()
    gc.freeze()


def _chunks(control: socket.socket, size: int) -> Iterator[bytes]:
    while size > 0:
        chunk = control.recv(MAX_REQUEST)
        size -= len(chunk)
        yield chunk


def _fork(control: socket.socket, descriptor: int, order: dict, start: Callable) -> int:
    child = os.fork()
    if child:
        os.close(descriptor)
        return child
    status = 1
    try:
        os.setsid()
        control.close()
        start(socket.socket(fileno=descriptor), order)
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.__stderr__, flush=True)
    finally:
        os._exit(status)


def _kill(children: dict[int, int], number: int) -> None:
    process = children.pop(number, None)
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)


def _reap(children: dict[int, int]) -> None:
    for number, process in list(children.items()):
        if os.waitpid(process, os.WNOHANG)[0]:
            del children[number]


if __name__ == "__main__":
    main()
