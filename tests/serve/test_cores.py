"""The cores that a process may use: affinity, and the quota of its container in both versions of control groups."""

import os
from pathlib import Path

import pytest

from plantmodels.serve.cores import count_cores, read_cpu_quota

V2 = {"proc/self/cgroup": "0::/pod/me\n"}
V1 = {"proc/self/cgroup": "5:memory:/pod/me\n4:cpu,cpuacct:/pod/me\n0::/\n"}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        (V2 | {"sys/fs/cgroup/pod/me/cpu.max": "max 100000\n"}, None),
        (V2 | {"sys/fs/cgroup/pod/me/cpu.max": "50000 100000\n"}, 0.5),
        (V2 | {"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        (V2 | {"sys/fs/cgroup/pod/cpu.max": "100000 100000", "sys/fs/cgroup/pod/me/cpu.max": "400000 100000"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 50000"}, 3),
        ({"proc/self/cgroup": "0::/../../other\n", "sys/fs/cgroup/cpu.max": "garbage"}, None),
        (
            V1
            | {
                "sys/fs/cgroup/cpu,cpuacct/pod/me/cpu.cfs_quota_us": "150000",
                "sys/fs/cgroup/cpu,cpuacct/pod/me/cpu.cfs_period_us": "100000",
            },
            1.5,
        ),
        (
            V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        (V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_the_smallest_quota_of_all_groups_counts(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert read_cpu_quota(write(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("limit", "affinity", "cores"),
    [("50000 100000", 2, 1), ("250000 100000", 8, 2), ("800000 100000", 4, 4), ("max 100000", 3, 3)],
)
def test_quota_and_affinity_count_both(monkeypatch, tmp_path: Path, limit: str, affinity: int, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)

    assert count_cores(write(tmp_path, V2 | {"sys/fs/cgroup/pod/me/cpu.max": limit})) == cores
