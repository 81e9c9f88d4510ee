"""What a crowd of large bodies took is given back, and the search for garbage stops no thread for long."""

import gc
import platform
import subprocess
import sys
import weakref

import pytest

from plantmodels.serve.classifier import PlantClassifier
from plantmodels.service.settings import Settings
from tests.service.conftest import start

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


def test_the_collector_skips_what_is_there_when_the_model_is_open(tiny_bundle) -> None:
    running, stop = start(Settings(str(tiny_bundle.bundle), threads=1))
    version = running.service.model.wait(60)
    assert gc.get_freeze_count() > 10_000
    assert not any(found is version for found in gc.get_objects())
    stop()
    assert gc.get_freeze_count() == 0
    assert any(found is version for found in gc.get_objects())


def test_an_old_version_is_freed_without_the_collector(tiny_bundle, leaves: list[bytes]) -> None:
    classifier = PlantClassifier.load(tiny_bundle.bundle, threads=1, workers=2)
    classifier.predict(leaves[:4])
    freed = weakref.ref(classifier)
    gc.disable()
    try:
        del classifier
        assert freed() is None
    finally:
        gc.enable()
