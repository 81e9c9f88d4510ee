"""Run the contestants in turns: each waits in its own process, and only one runs at a time.

All other processes are stopped by a signal. Their thread pools would otherwise spin on after a run (ONNX Runtime's
threads used 50 ms of processor time in the next 30 ms) and disturb the next contestant.

Noise of the machine hits all contestants alike: a round asks everyone the same case before the next case comes, and
each round starts with another contestant.

    with Workers({"a": command_of_a, "b": command_of_b}) as workers:
        turns = alternate(workers, [{"source": "tensor", "batch": 1}], rounds=7)
"""

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import click

from benchmarks.processes import read_processor_s

PATH: Final = click.Path(path_type=Path)
"""The type of every argument that is a path."""

QUIET: Final = 0.05
"""Fraction of the processors that other programs may use. Two threads that wait for each other take four times as long
when a third program wants one of two cores, so a turn waits for a quiet machine and is repeated if disturbed."""

_TICKS: Final = os.sysconf("SC_CLK_TCK")
"""Ticks of the kernel's clock in a second."""

_IGNORED_TICKS: Final = 2
"""The kernel counts processor time in whole ticks, so a difference of so few means nothing."""

_ATTEMPTS: Final = 3
"""Number of tries for a turn that other programs disturb."""

_PROBE_S: Final = 0.2
"""Seconds over which the use of the processors is measured before a turn."""

_CLOSE_S: Final = 30
"""Seconds that a worker has to end by itself."""

_STDERR_TAIL: Final = 2_000
"""Characters of a failed worker's output that the error quotes."""


class Worker:
    """A process that answers each line of JSON with a line of JSON."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start the process; `close` ends it."""
        self.name = name
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed by close)
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=None if environment is None else dict(environment),
        )

    def ask(self, **request: Any) -> Any:
        """Send a request and wait for its answer.

        Raises:
            click.ClickException: if the process has ended; the message has the end of its output.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        self._process.send_signal(signal.SIGSTOP)
        if not line:
            self._log.seek(0)
            raise click.ClickException(f"{self.name}: {request} failed\n{self._log.read()[-_STDERR_TAIL:]}")
        return json.loads(line)

    def processor_s(self) -> float:
        """Return the seconds of processor time that the process has used."""
        return read_processor_s(self._process.pid)

    def close(self) -> None:
        """End the process by closing its input, or else by force."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.close()
            self._process.wait(_CLOSE_S)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


class Workers(Mapping[str, Worker]):
    """Named workers, which all end when the `with` block is left."""

    def __init__(self, commands: Mapping[str, Sequence[str]], environment: Mapping[str, str] | None = None) -> None:
        """Remember the commands; `with` starts them."""
        self._commands, self._environment = dict(commands), environment
        self._workers: dict[str, Worker] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Workers":
        """Start every process."""
        for name, command in self._commands.items():
            self._workers[name] = worker = Worker(name, command, self._environment)
            self._stack.callback(worker.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every process."""
        self._stack.close()

    def __getitem__(self, name: str) -> Worker:
        """Return the worker of that name."""
        return self._workers[name]

    def __iter__(self) -> Any:
        """Iterate over the names, in the order given."""
        return iter(self._workers)

    def __len__(self) -> int:
        """Return the number of workers."""
        return len(self._workers)


@dataclass(frozen=True)
class Turn:
    """One worker's timing of one case in one round.

    Attributes:
        seconds: median over the repeats.
        foreign: fraction of the machine's processors that something else used during the turn: other programs, the
            kernel, or other guests of the hypervisor.
    """

    seconds: float
    foreign: float


class Patience:
    """A budget of seconds to wait until other programs leave the machine alone."""

    def __init__(self, budget_s: float) -> None:
        """Start with the full budget of seconds; 0 never waits."""
        self.budget_s, self.left_s = budget_s, budget_s

    def wait(self) -> None:
        """Wait until the machine is quiet or the budget is spent; no worker may be running."""
        while self.left_s > 0:
            busy, start = read_busy_s(), time.perf_counter()
            time.sleep(_PROBE_S)
            elapsed = time.perf_counter() - start
            if share_of_cores(read_busy_s() - busy, elapsed) <= QUIET:
                return
            self.left_s -= elapsed


def alternate(
    workers: Mapping[str, Worker], turns: Iterable[tuple[str, dict[str, Any], int]], rounds: int, patience: Patience
) -> dict[tuple[str, str], list[Turn]]:
    """Time cases in turns.

    Args:
        workers: the workers by name.
        turns: (worker, case, repeats) in the order of one round, which asks each of them once.
        rounds: number of rounds.
        patience: how long to wait for a quiet machine.

    Returns:
        The turns of each (worker, case as text), one for each round.
    """
    ordered = list(turns)
    results: dict[tuple[str, str], list[Turn]] = {}
    for i in range(rounds):
        shift = i * len(ordered) // max(1, rounds)
        start = time.perf_counter()
        for name, case, repeats in ordered[shift:] + ordered[:shift]:
            results.setdefault((name, key_of(case)), []).append(_take_turn(workers[name], case, repeats, patience))
        click.echo(f"  round {i + 1}/{rounds}: {time.perf_counter() - start:.0f} s", err=True)
    return results


def _take_turn(worker: Worker, case: dict[str, Any], repeats: int, patience: Patience) -> Turn:
    answer, foreign = ask_quietly(worker, patience, do="time", case=case, repeats=repeats)
    return Turn(statistics.median(answer["seconds"]), foreign)


def ask_quietly(worker: Worker, patience: Patience, **request: Any) -> tuple[Any, float]:
    """Ask, and ask again if other programs were running and there is patience left.

    Returns:
        The answer of the attempt that other programs disturbed least, and the fraction that they used (see `Turn`).
        The worker's own speed does not influence the choice.
    """
    attempts: list[tuple[Any, float]] = []
    while not attempts or (len(attempts) < _ATTEMPTS and attempts[-1][1] > QUIET and patience.left_s > 0):
        patience.wait()
        busy, own, start = read_busy_s(), worker.processor_s(), time.perf_counter()
        answer = worker.ask(**request)
        elapsed = time.perf_counter() - start
        attempts.append((answer, share_of_cores((read_busy_s() - busy) - (worker.processor_s() - own), elapsed)))
    return min(attempts, key=lambda attempt: attempt[1])


def share_of_cores(processor_s: float, elapsed_s: float) -> float:
    """Return the fraction of all processors; differences of a few ticks of the kernel's clock are ignored."""
    return max(0.0, (processor_s - _IGNORED_TICKS / _TICKS) / (elapsed_s * (os.cpu_count() or 1)))


def read_busy_s() -> float:
    """Return the seconds, summed over processors, that were busy or taken by the hypervisor."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def key_of(case: Mapping[str, Any]) -> str:
    """Return a case as text, to use as a key."""
    return json.dumps(case, sort_keys=True)


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Return median, quartiles and extremes of seconds."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "median_s": statistics.median(values),
        "q1_s": quartiles[0],
        "q3_s": quartiles[2],
        "min_s": min(values),
        "max_s": max(values),
    }


def describe_turns(turns: Sequence[Turn]) -> dict[str, Any]:
    """Summarize the turns of a case.

    If at least half of the rounds were quiet, the summary leaves out the turns that other programs disturbed.

    Returns:
        The summary, `rounds_s` and `foreign` of every round, and whether the summary is `disturbed`.
    """
    quiet = [turn.seconds for turn in turns if turn.foreign <= QUIET]
    disturbed = 2 * len(quiet) < len(turns)
    return {
        **summarize([turn.seconds for turn in turns] if disturbed else quiet),
        "rounds_s": [turn.seconds for turn in turns],
        "foreign": [turn.foreign for turn in turns],
        "disturbed": disturbed,
    }


def run_child(module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Any:
    """Run a module's command in its own process.

    Returns:
        The last line that is a JSON document. A dict also gets `process_s`, the seconds from the start of the process
        to its end, and the fraction `foreign` (see `Turn`), unless the command counted this fraction itself.

    Raises:
        click.ClickException: if the command failed or printed no JSON document.
    """
    busy, own, start = read_busy_s(), _children_s(), time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [line for line in process.stdout if line.startswith(("{", "["))]
        seconds = time.perf_counter() - start
    if process.returncode or not lines:
        raise click.ClickException(f"{module} {' '.join(arguments[:2])} failed")
    answer = json.loads(lines[-1])
    if isinstance(answer, dict):
        foreign = (read_busy_s() - busy) - (_children_s() - own)
        answer["process_s"] = seconds
        answer.setdefault("foreign", share_of_cores(foreign, time.perf_counter() - start))
    return answer


def run_quietly(
    patience: Patience, module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Repeat `run_child` as `ask_quietly` does, and return the result that other programs disturbed least."""
    attempts: list[dict[str, Any]] = []
    while not attempts or (len(attempts) < _ATTEMPTS and attempts[-1]["foreign"] > QUIET and patience.left_s > 0):
        patience.wait()
        attempts.append(run_child(module, arguments, environment))
    return min(attempts, key=lambda attempt: float(attempt["foreign"]))


def _children_s() -> float:
    """Return the processor seconds of ended child processes, including their own children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def find_images(folder: Path) -> list[Path]:
    """Return the images in a folder, in a fixed order that mixes the classes.

    Raises:
        click.ClickException: if the folder holds no image.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"})
    if not found:
        raise click.ClickException(f"{folder}: holds no image")
    return sorted(found, key=lambda path: zlib.crc32(path.name.encode()))
