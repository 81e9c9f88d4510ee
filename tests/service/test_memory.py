"""What a crowd of large bodies took is given back."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import pathlib, sys
from plantmodels.service.memory import return_large_blocks

def measure_mb():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

if sys.argv[1] == "returned":
    return_large_blocks()
bytearray(b"x") * (30 * 2**20)  # the C library keeps blocks of up to this size from here on
before, kept = measure_mb(), []
bodies = []
for _ in range(16):
    bodies.append(bytearray(b"x") * (4 * 2**20))
    kept.append(bytes(100_000))
del bodies
print(measure_mb() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the option is one of the GNU C library")
def test_freed_bodies_are_given_back_although_small_blocks_lie_between() -> None:
    def measure(which: str) -> float:
        command = [sys.executable, "-c", SCRIPT, which]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert measure("returned") < 10
    assert measure("kept") > 50, "the option is no longer needed"
