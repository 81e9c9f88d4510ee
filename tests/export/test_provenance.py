"""The provenance names the processor and the commit as the system states them, and nothing where it states nothing."""

import re
import subprocess
from pathlib import Path

import pytest

from plantmodels.export import provenance
from plantmodels.export.provenance import describe_cpu

INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse avx avx2 avx512f avx512_vnni amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: another one
flags\t\t: fpu
"""
OLD_INTEL = "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i5-4590\nflags\t\t: fpu sse avx avx2 fma\n"
ALDER_LAKE = "model name\t: i9\nflags\t\t: avx2 avx_vnni\n"
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes crc32 atomics asimddp sve i8mm bf16
CPU implementer\t: 0x41
"""


@pytest.mark.parametrize(
    ("machine", "text", "name", "features", "has_int8_dot_product"),
    [
        (
            "x86_64",
            INTEL,
            "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            ("avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16"),
            True,
        ),
        ("x86_64", OLD_INTEL, "Intel(R) Core(TM) i5-4590", ("avx2",), False),
        ("x86_64", ALDER_LAKE, "i9", ("avx2", "avx_vnni"), True),
        ("aarch64", ARM, "", ("asimddp", "i8mm"), True),
        ("x86_64", "", "", (), False),
        ("x86_64", "no colon here\n::\n: x\nflags\n", "", (), False),
        ("AMD64", "", "", (), False),
        ("i686", OLD_INTEL, "Intel(R) Core(TM) i5-4590", ("avx2",), False),
        ("arm64", "", "", (), True),
    ],
)
def test_describe_cpu(tmp_path: Path, monkeypatch, machine, text, name, features, has_int8_dot_product) -> None:
    monkeypatch.setattr(provenance.platform, "machine", lambda: machine)
    (tmp_path / "cpuinfo").write_text(text)
    cpu = describe_cpu(tmp_path / "cpuinfo")

    assert (cpu.architecture, cpu.model, cpu.features) == (machine, name, features)
    assert cpu.has_int8_dot_product is has_int8_dot_product


def test_a_machine_without_cpuinfo_has_no_known_features(tmp_path: Path) -> None:
    cpu = describe_cpu(tmp_path / "none")

    assert (cpu.model, cpu.features) == ("", ())


class TestGitCommit:
    def test_is_a_commit_of_this_checkout_or_none(self) -> None:
        commit = provenance.read_git_commit()

        assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)

    @pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, ["git"])])
    def test_is_none_without_git_or_a_checkout(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(provenance.subprocess, "run", fail)
        assert provenance.read_git_commit() is None
