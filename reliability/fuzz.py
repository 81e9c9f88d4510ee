"""Feed damaged and invented files to every reader of untrusted files.

python -m reliability.fuzz --minutes 60
python -m reliability.fuzz --target image --case 1234    # repeat one case

A reader must either read a case or refuse it with one of its own errors. Everything else is a finding: another error,
a signal, more than ten seconds of processor time, or a side effect (a file opened for writing, a process, a connection,
a name that a pickle looked up). The cases run in a worker process with limited memory. If a case ends the worker, a new
one continues with the next case.
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

from benchmarks.processes import read_memory, read_processor_s
from reliability.fuzz_targets import PLANTED, TARGETS, Target

MAX_MEMORY: Final = 4 * 2**30
"""Bytes of address space in addition to what the worker has mapped at its start, which is 3.5 GB with PyTorch."""

_COUNTERS: Final = ("case", "running", "accepted", "refused", "slowest_us", "slowest_case", "memory_kb", "memory_case")
_LAYOUT: Final = struct.Struct(f"<{len(_COUNTERS)}q")
_POLL_S: Final = 0.2
"""Seconds between two looks at a worker."""

_LAZY_IMPORTS: Final = ("PIL", "encodings", "linecache", "numpy", "torch")
"""Packages that import parts of themselves while they read; these imports are not side effects."""


@dataclass
class TargetResult:
    """The figures of one target; `memory_mb` is the growth of the worker's peak memory."""

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
@click.option(
    "--minutes", default=60.0, show_default=True, type=click.FloatRange(min=0), help="Time for all targets together."
)
@click.option(
    "--cases",
    type=click.IntRange(min=1),
    help="Number of cases of each target.  [default: as many as fit into --minutes]",
)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--target",
    "names",
    type=click.Choice([*TARGETS, *PLANTED]),
    multiple=True,
    help="Fuzz only this reader; repeat the option for more than one.",
)
@click.option(
    "--hang-after",
    default=10.0,
    show_default=True,
    help="Seconds of processor time after which a case counts as hanging.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures to this JSON file after each target.")
@click.option("--case", type=int, help="Run only the case of this number, in this process, and print the result.")
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
    """Fuzz every reader of untrusted files; the exit status is 1 if anything was found."""
    names = names or tuple(TARGETS)
    if worker is not None:
        _run_cases(names[0], seed, worker[0], worker[1], cases)
        return
    if case is not None:
        _show_case(names[0], seed, case)
        return
    results = {}
    for name in names:
        results[name] = fuzz(name, seed=seed, seconds=60 * minutes / len(names), cases=cases, hang_after_s=hang_after)
        click.echo(f"{name}: {_summarize(results[name])}", err=True)
        if out is not None:
            document = {"seed": seed, "targets": {name: asdict(result) for name, result in results.items()}}
            out.write_text(json.dumps(document, indent=1), encoding="utf-8")
    click.echo(render_table(results))
    if any(result.crashes or result.hangs or result.side_effects for result in results.values()):
        sys.exit(1)


def fuzz(name: str, *, seed: int, seconds: float, cases: int | None, hang_after_s: float) -> TargetResult:
    """Run cases of one target until the time is over or the number is reached.

    Args:
        name: name of the target in `TARGETS`.
        seed: seed of all cases; target, seed and number together identify a case.
        seconds: wall-clock time for all cases.
        cases: maximum number of cases; None for no limit.
        hang_after_s: seconds of processor time after which a case counts as hanging.
    """
    result, start, deadline = TargetResult(), 0, time.monotonic() + seconds
    while time.monotonic() < deadline and (cases is None or start < cases):
        with tempfile.TemporaryDirectory() as folder:
            shared = Path(folder, "counters")
            shared.write_bytes(_LAYOUT.pack(start - 1, *[0] * (len(_COUNTERS) - 1)))
            ended_by = _watch_worker(name, seed, shared, start, cases, hang_after_s, deadline, result)
            counts = dict(zip(_COUNTERS, _LAYOUT.unpack(shared.read_bytes()), strict=True))
        result.accepted += counts["accepted"]
        result.refused += counts["refused"]
        if counts["slowest_us"] / 1e6 > result.slowest_s:
            result.slowest_s, result.slowest_case = counts["slowest_us"] / 1e6, counts["slowest_case"]
        if counts["memory_kb"] * 1024 / 1e6 > result.memory_mb:
            result.memory_mb, result.memory_case = counts["memory_kb"] * 1024 / 1e6, counts["memory_case"]
        if ended_by == "hang":
            result.hangs.append(counts["case"])
        elif ended_by:
            result.crashes.append({"case": counts["case"], "error": ended_by})
        result.cases = start = counts["case"] + 1
    result.seconds = seconds - max(0.0, deadline - time.monotonic())
    return result


def _watch_worker(
    name: str,
    seed: int,
    shared: Path,
    start: int,
    cases: int | None,
    hang_after_s: float,
    deadline: float,
    result: TargetResult,
) -> str:
    """Run a worker to its end; return what ended it, or "" if it finished or the deadline came."""
    command = [sys.executable, "-m", "reliability.fuzz", "--target", name, "--seed", str(seed)]
    command += ["--worker", str(shared), str(start), *([] if cases is None else ["--cases", str(cases)])]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"TMPDIR": str(shared.parent)}
        ) as process,
    ):
        ended_by, case, case_began_s = "", start, 0.0
        while process.poll() is None:
            time.sleep(_POLL_S)
            (now, running, *_), used_s = _LAYOUT.unpack(shared.read_bytes()), read_processor_s(process.pid)
            if now != case or not running:  # it starts, is between two cases, or ends
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
        (result.side_effects if entry.pop("side_effect") else result.crashes).append(entry)
    if ended_by or status == 0 or (status == -signal.SIGKILL and time.monotonic() > deadline):
        return ended_by
    return f"exit status {status}: {tail}"


def _run_cases(name: str, seed: int, shared: Path, start: int, cases: int | None) -> None:
    """Run cases in this worker process; its counters are in a shared file, which outlives it."""
    os.nice(19)
    target = (TARGETS | PLANTED)[name]()
    warnings.simplefilter("ignore")  # Pillow and numpy warn about absurd values
    effects = _watch_side_effects()
    limit = MAX_MEMORY + resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with shared.open("r+b") as file, mmap.mmap(file.fileno(), _LAYOUT.size) as memory:
        counts = dict.fromkeys(_COUNTERS, 0)
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        case = start
        while cases is None or case < cases:
            counts["case"], counts["running"] = case, 1
            _LAYOUT.pack_into(memory, 0, *counts.values())
            invented = target.invent(Random(f"{name}/{seed}/{case}"), case)
            began = time.process_time()
            effects.clear()
            found = _classify(target, invented)
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
            counts["running"] = 0
            _LAYOUT.pack_into(memory, 0, *counts.values())
            case += 1


def _classify(target: Target, invented: Any) -> str:
    """Return "accepted", "refused" or, for any other end, the traceback."""
    try:
        target.read(invented)
    except target.refusals:
        return "refused"
    except BaseException:
        return traceback.format_exc(limit=-3)[-600:]
    return "accepted"


def _watch_side_effects() -> list[str]:
    """Return a list that grows with each audited event which reading never needs; the caller clears it."""
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
            return  # its import was checked above
        elif event.split(".")[0] in ("os", "subprocess", "socket", "shutil", "ctypes", "pickle", "exec"):
            effects.append(f"{event} {arguments!r:.100}")

    sys.addaudithook(hook)
    return effects


def _show_case(name: str, seed: int, case: int) -> None:
    target = (TARGETS | PLANTED)[name]()
    invented = target.invent(Random(f"{name}/{seed}/{case}"), case)
    click.echo(f"{invented!r:.2000}")
    before = read_memory()["peak_mb"]
    click.echo(f"{_classify(target, invented)}; memory {read_memory()['peak_mb'] - before:+.0f} MB")


def _summarize(result: TargetResult) -> str:
    return (
        f"{result.cases:,} cases in {result.seconds / 60:.1f} minutes, {result.accepted:,} read, "
        f"{result.refused:,} refused, {len(result.crashes)} crashes, {len(result.hangs)} hangs, "
        f"{len(result.side_effects)} side effects"
    )


def render_table(results: dict[str, TargetResult]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| reader | cases | read | refused | crashes | hangs | side effects | slowest | most memory |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in results.items():
        figures = (one.cases, one.accepted, one.refused, len(one.crashes), len(one.hangs), len(one.side_effects))
        cells = [name, *(f"{figure:,}" for figure in figures), f"{one.slowest_s:.2f} s", f"{one.memory_mb:.0f} MB"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
