"""Damaged and invented files against everything that reads files of other people.

python -m reliability.fuzz --minutes 60
python -m reliability.fuzz --target image --case 1234    # one case again

Each case either is read or is refused by an error of ours. Whatever else happens is found: another error, a signal,
a case that takes over ten seconds of processor time, and side effects (a file opened for writing, a process, a
connection, a name that a pickle looked up). The cases run in a process of their own, limited in memory, that is started
again behind a case that ended it.
"""

import json
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import click

from benchmarks.machine import read_memory
from reliability.fuzz_targets import PLANTED, TARGETS, Target

MAX_MEMORY: Final = 4 * 2**30
"""Beside what the worker has mapped when it begins, which with torch is 3.5 GB."""

_COUNTERS: Final = ("case", "accepted", "refused", "slowest_us", "slowest_case", "memory_kb", "memory_case")
_LAYOUT: Final = struct.Struct(f"<{len(_COUNTERS)}q")
_POLL_S: Final = 0.2
_LAZY_IMPORTS: Final = ("PIL", "encodings", "linecache", "numpy", "torch")


@dataclass
class Outcome:
    """Figures of one target; memory is the growth of the process' peak."""

    cases: int = 0
    accepted: int = 0
    refused: int = 0
    crashes: list[dict[str, Any]] = field(default_factory=list)
    hangs: list[int] = field(default_factory=list)
    side_effects: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    slowest_s: float = 0.0
    slowest_case: int = 0
    memory_mb: float = 0.0
    memory_case: int = 0


@click.command()
@click.option("--minutes", default=60.0, show_default=True, type=click.FloatRange(min=0), help="For all targets.")
@click.option("--cases", type=click.IntRange(min=1), help="Of each target; without it, as many as there is time for.")
@click.option("--seed", default=0, show_default=True)
@click.option("--target", "names", type=click.Choice([*TARGETS, *PLANTED]), multiple=True, help="May be given again.")
@click.option("--hang-after", default=10.0, show_default=True, help="Seconds of processor time that a case may take.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file of the figures, after each target.")
@click.option("--case", type=int, help="Run this one case in this process, and show what happens.")
@click.option("--worker", nargs=2, hidden=True, type=(click.Path(path_type=Path), int))
def main(
    minutes: float,
    cases: int | None,
    seed: int,
    names: tuple[str, ...],
    hang_after: float,
    out: Path | None,
    case: int | None,
    worker: tuple[Path, int] | None,
) -> None:
    """Fuzz every reader of foreign files; exit status 1 when something was found."""
    names = names or tuple(TARGETS)
    if worker is not None:
        _run_cases(names[0], seed, worker[0], worker[1], cases)
        return
    if case is not None:
        _show_case(names[0], seed, case)
        return
    outcomes = {}
    for name in names:
        outcomes[name] = fuzz(name, seed=seed, seconds=60 * minutes / len(names), cases=cases, hang_after_s=hang_after)
        click.echo(f"{name}: {_describe(outcomes[name])}", err=True)
        if out is not None:
            document = {"seed": seed, "targets": {name: asdict(outcome) for name, outcome in outcomes.items()}}
            out.write_text(json.dumps(document, indent=1), encoding="utf-8")
    click.echo(table(outcomes))
    if any(outcome.crashes or outcome.hangs or outcome.side_effects for outcome in outcomes.values()):
        sys.exit(1)


def fuzz(name: str, *, seed: int, seconds: float, cases: int | None, hang_after_s: float) -> Outcome:
    """Runs cases of one target until the time is over or there were enough.

    Args:
        name: of `TARGETS`.
        seed: of all cases; a case is known by target, seed and number.
        seconds: of wall-clock time.
        cases: how many at most; None for any number.
        hang_after_s: processor time after which a case counts as hanging.
    """
    outcome, start, deadline = Outcome(), 0, time.monotonic() + seconds
    while time.monotonic() < deadline and (cases is None or start < cases):
        with tempfile.TemporaryDirectory() as folder:
            shared = Path(folder, "counters")
            shared.write_bytes(bytes(_LAYOUT.size))
            ended_by = _watch_worker(name, seed, shared, start, cases, hang_after_s, deadline, outcome)
            counts = dict(zip(_COUNTERS, _LAYOUT.unpack(shared.read_bytes()), strict=True))
        outcome.accepted += counts["accepted"]
        outcome.refused += counts["refused"]
        if counts["slowest_us"] / 1e6 > outcome.slowest_s:
            outcome.slowest_s, outcome.slowest_case = counts["slowest_us"] / 1e6, counts["slowest_case"]
        if counts["memory_kb"] * 1024 / 1e6 > outcome.memory_mb:
            outcome.memory_mb, outcome.memory_case = counts["memory_kb"] * 1024 / 1e6, counts["memory_case"]
        if ended_by == "hang":
            outcome.hangs.append(counts["case"])
        elif ended_by:
            outcome.crashes.append({"case": counts["case"], "error": ended_by})
        outcome.cases = start = counts["case"] + 1
    outcome.seconds = seconds - max(0.0, deadline - time.monotonic())
    return outcome


def _watch_worker(
    name: str,
    seed: int,
    shared: Path,
    start: int,
    cases: int | None,
    hang_after_s: float,
    deadline: float,
    outcome: Outcome,
) -> str:
    """Runs a worker to its end; "" when that was its own or came with the deadline, else what ended it."""
    command = [sys.executable, "-m", "reliability.fuzz", "--target", name, "--seed", str(seed)]
    command += ["--worker", str(shared), str(start), *([] if cases is None else ["--cases", str(cases)])]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"TMPDIR": str(shared.parent)}
        ) as process,
    ):
        ended_by, case, case_began_s = "", -1, 0.0
        while process.poll() is None:
            time.sleep(_POLL_S)
            now, used_s = _LAYOUT.unpack(shared.read_bytes())[0], _processor_s(process.pid)
            if now != case:
                case, case_began_s = now, used_s
            elif used_s - case_began_s > hang_after_s:
                ended_by = "hang"
            if ended_by or time.monotonic() > deadline:
                process.kill()
                break
        status = process.wait()
        log.seek(0)
        found = [line for line in log if line.startswith("{")]
        log.seek(0)
        tail = log.read()[-300:]
    for line in found:
        entry = json.loads(line)
        (outcome.side_effects if entry.pop("side_effect") else outcome.crashes).append(entry)
    if ended_by or status == 0 or (status == -signal.SIGKILL and time.monotonic() > deadline):
        return ended_by
    return f"exit status {status}: {tail}"


def _processor_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _run_cases(name: str, seed: int, shared: Path, start: int, cases: int | None) -> None:
    """The worker: its counters lie in a shared file, so that they outlive it."""
    os.nice(19)
    target = (TARGETS | PLANTED)[name]()
    warnings.simplefilter("ignore")  # Pillow's and numpy's, for absurd values
    effects = _watch_side_effects()
    limit = MAX_MEMORY + resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with shared.open("r+b") as file, mmap.mmap(file.fileno(), _LAYOUT.size) as memory:
        counts = dict.fromkeys(_COUNTERS, 0)
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        case = start
        while cases is None or case < cases:
            counts["case"] = case
            _LAYOUT.pack_into(memory, 0, *counts.values())
            invented = target.invent(Random(f"{name}/{seed}/{case}"), case)
            began = time.process_time()
            effects.clear()
            found = _read(target, invented)
            used_us = int(1e6 * (time.process_time() - began))
            if effects:
                click.echo(json.dumps({"side_effect": True, "case": case, "error": effects[0]}))
            if found in ("accepted", "refused"):
                counts[found] += 1
            else:
                click.echo(json.dumps({"side_effect": False, "case": case, "error": found}))
            if used_us > counts["slowest_us"]:
                counts["slowest_us"], counts["slowest_case"] = used_us, case
            grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kb
            if grown_kb > counts["memory_kb"]:
                counts["memory_kb"], counts["memory_case"] = grown_kb, case
            _LAYOUT.pack_into(memory, 0, *counts.values())
            case += 1


def _read(target: Target, invented: Any) -> str:
    try:
        target.read(invented)
    except target.refusals:
        return "refused"
    except BaseException:
        return traceback.format_exc(limit=-3)[-600:]
    return "accepted"


def _watch_side_effects() -> list[str]:
    """What the interpreter's audit reports from now on and reading never needs; the list is for clearing."""
    effects: list[str] = []

    def hook(event: str, arguments: Sequence[Any]) -> None:
        if event == "open":
            mode, flags = arguments[1], arguments[2] or 0
            if (isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                effects.append(f"open {arguments[0]!r}")
        elif event == "import":
            if str(arguments[0]).split(".")[0] not in _LAZY_IMPORTS:
                effects.append(f"import {arguments[0]}")
        elif event == "exec" and getattr(arguments[0], "co_name", "") == "<module>":
            return  # the import of which was looked at above
        elif event.split(".")[0] in ("os", "subprocess", "socket", "shutil", "ctypes", "pickle", "exec"):
            effects.append(f"{event} {arguments!r:.100}")

    sys.addaudithook(hook)
    return effects


def _show_case(name: str, seed: int, case: int) -> None:
    target = (TARGETS | PLANTED)[name]()
    invented = target.invent(Random(f"{name}/{seed}/{case}"), case)
    click.echo(f"{invented!r:.2000}")
    before = read_memory()["peak_mb"]
    click.echo(f"{_read(target, invented)}; memory {read_memory()['peak_mb'] - before:+.0f} MB")


def _describe(outcome: Outcome) -> str:
    return (
        f"{outcome.cases:,} cases in {outcome.seconds / 60:.1f} minutes, {outcome.accepted:,} read, "
        f"{outcome.refused:,} refused, {len(outcome.crashes)} crashes, {len(outcome.hangs)} hangs, "
        f"{len(outcome.side_effects)} side effects"
    )


def table(outcomes: dict[str, Outcome]) -> str:
    """A Markdown table of the figures."""
    lines = [
        "| reader | cases | read | refused | crashes | hangs | side effects | slowest | most memory |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in outcomes.items():
        figures = (one.cases, one.accepted, one.refused, len(one.crashes), len(one.hangs), len(one.side_effects))
        cells = [name, *(f"{figure:,}" for figure in figures), f"{one.slowest_s:.2f} s", f"{one.memory_mb:.0f} MB"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
