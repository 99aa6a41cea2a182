import platform
import subprocess
import sys

import pytest

from kd_lightning.cli import allocator

SCRIPT = """
import resource
import torch
from kd_lightning.cli.allocator import keep_freed_memory
assert keep_freed_memory()

def step():
    for _ in range(20):
        parts = [torch.ones(4 << 20, dtype=torch.uint8) for _ in range(8)]
        del parts
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults() -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_was_freed_is_not_cleared_anew() -> None:
    assert faults() < 1000  # of the 163,840 pages of 20 steps


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert allocator.keep_freed_memory() is False
