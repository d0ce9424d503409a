"""Freed memory stays with the process, so that a step does not page it in again."""

import os
import resource
import subprocess
import sys
import textwrap

PROGRAM = """
    import resource, sys, torch
    from train.host_memory import keep_freed_memory
    if sys.argv[1] == "keep":
        keep_freed_memory()
    def step():
        parts = [torch.ones(1 << 20) for _ in range(8)]  # 4 MiB each
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    # glibc gives blocks back or not as the heap's layout has it; with this it always does, unless told otherwise.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), mode],
        check=True, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    return int(done.stdout)


def test_steps_do_not_page_their_memory_in_again() -> None:
    pages = 5 * (32 << 20) // resource.getpagesize()  # 5 steps of 32 MiB
    assert faults("keep") < pages / 10 < faults("leave")
