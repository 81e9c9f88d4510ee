"""Identifies the process that a run belongs to, and says whether that process is certainly dead.

A process is certainly dead in two cases: it belongs to this boot and process namespace, and its id is free or belongs
to a process that started at another time; or it belongs to an earlier boot of this machine. Processes of other machines
and containers are never taken for dead.

>>> process = Process(machine=None, boot="b", namespace="n", pid=7, started=1)
>>> Process.from_json(process.to_json()) == process
True
"""

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from plantmodels.bundle.serialization import decode_text

_MAIN_NAMESPACE: Final = "pid:[4026531836]"
"""Linux's name for the process namespace that it boots with; each container has another."""

_MAX_PID: Final = 2**31

_ENDED: Final = ("Z", "X")
"""States in /proc of a process that has ended but that its parent has not waited for yet."""


@dataclass(frozen=True)
class Process:
    """One process, distinguished from every other, earlier or later.

    Attributes:
        machine: digest of the machine's id and name; None if the machine has no id.
        boot: the kernel's id of this boot.
        namespace: process namespace in which `pid` is valid.
        pid: process id.
        started: clock ticks between boot and the start of the process, which do not change when the clock is set.
    """

    machine: str | None
    boot: str
    namespace: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> "Process | None":
        """Return this process; None where the system has no /proc."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            namespace, pid = str(Path("/proc/self/ns/pid").readlink()), os.getpid()
            _, started = _read_state(pid)
        except (OSError, ValueError, IndexError):
            return None
        return cls(_digest_machine(), boot, namespace, pid, started)

    @classmethod
    def from_json(cls, text: str) -> "Process | None":
        """Read a tag's value; None if `to_json` did not write it."""
        try:
            process = decode_text(cls, text, "process")
        except ValueError:
            return None
        return process if 0 < process.pid < _MAX_PID else None

    def to_json(self) -> str:
        """Return the tag's value."""
        return json.dumps(asdict(self))

    def is_dead(self, here: "Process") -> bool:
        """Return whether the process is certainly dead.

        Args:
            here: this process.
        """
        if self.boot != here.boot:
            same = self.machine is not None and self.machine == here.machine
            return same and self.namespace == here.namespace == _MAIN_NAMESPACE
        return self.namespace == here.namespace and not self._is_alive()

    def _is_alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass  # another user's
        try:
            state, started = _read_state(self.pid)
        except (OSError, ValueError, IndexError):  # hidden, or it ended just now: not certain
            return True
        return started == self.started and state not in _ENDED


def _digest_machine() -> str | None:
    """Return a digest of this machine's id, because systemd asks not to publish the id itself."""
    try:
        machine_id = Path("/etc/machine-id").read_text().strip()
    except OSError:
        return None
    return hashlib.sha256(f"plantmodels {machine_id} {platform.node()}".encode()).hexdigest() if machine_id else None


def _read_state(pid: int) -> tuple[str, int]:
    """Return state and start time of a process, which follow its name, of any text, in /proc/PID/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])
