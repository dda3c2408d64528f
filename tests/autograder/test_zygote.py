"""The warm process."""

import os

from autograder.split.zygote import gather_memory


def test_gathering_memory_changes_nothing_in_it_here_or_in_a_child():
    memory = bytearray(os.urandom(1 << 10)) * (8 << 10)
    before = bytes(memory)
    gather_memory()
    child = os.fork()
    if not child:
        memory[-1] ^= 1
        os._exit(0 if memory[:-1] == before[:-1] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert memory == before
