"""`Process`: dead only where that is certain."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from mlflow_plugins.jobs import processes
from mlflow_plugins.jobs.processes import Process


@pytest.fixture
def here() -> Process:
    process = Process.current()
    if process is None:
        pytest.skip("this system has no /proc")
    return process


def test_this_process_is_not_dead(here: Process) -> None:
    assert not here.is_dead(here)
    assert Process.from_json(here.to_json()) == here == Process.current()


def test_a_killed_process_is_dead_before_and_after_its_parent_asks(here: Process) -> None:
    script = "from mlflow_plugins.jobs.processes import Process as P; print(P.current().to_json(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        process = Process.from_json(child.stdout.readline())
        assert process.pid == child.pid and not process.is_dead(here)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie
        assert process.is_dead(here)
    assert process.is_dead(here)


@pytest.mark.parametrize(
    ("change", "dead"),
    [
        ({"started": 1}, True),  # the id was given to another process
        ({"boot": "of before"}, True),
        ({"boot": "of before", "machine": "another"}, False),
        ({"boot": "of before", "namespace": "pid:[4026532000]"}, False),
        ({"namespace": "pid:[4026532000]", "pid": 2**22 + 1}, False),  # in a container beside this one
    ],
)
def test_only_a_certainly_dead_process_is_dead(here: Process, change: dict, dead: bool) -> None:
    here = dataclasses.replace(here, machine="this", namespace=processes._MAIN_NAMESPACE)
    assert dataclasses.replace(here, **change).is_dead(here) is dead


def test_without_a_machine_id_a_process_of_an_earlier_boot_is_not_certainly_dead(here: Process) -> None:
    here = dataclasses.replace(here, machine=None, namespace=processes._MAIN_NAMESPACE)
    assert not dataclasses.replace(here, boot="of before").is_dead(here)


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "[" * 100_000, json.dumps({"pid": 1})])
def test_a_tag_that_to_json_did_not_write_is_no_process(text: str) -> None:
    assert Process.from_json(text) is None


@pytest.mark.parametrize("pid", [0, -1, "1", True, 10**30])
def test_an_impossible_process_id_is_refused(here: Process, pid: object) -> None:
    assert Process.from_json(json.dumps(dataclasses.asdict(here) | {"pid": pid})) is None
