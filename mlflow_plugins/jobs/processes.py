"""Which process a run belongs to, and whether it is certain that this one is dead.

Certain is: a process of this boot and process namespace whose id is free or belongs to one that started at another
time, or one of an earlier boot of this machine. Other machines' and other containers' processes are never dead.

>>> Process.from_json(tag).is_dead(Process.current())  # doctest: +SKIP
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
"""Linux's name for the process namespace that it boots with; a container has one of its own."""

_MAX_PID: Final = 2**31

_ENDED: Final = ("Z", "X")
"""States in /proc of a process that was killed and that its parent has not asked for yet."""


@dataclass(frozen=True)
class Process:
    """One process, told apart from every other one before and after it.

    Attributes:
        machine: digest of the machine's id and name; None where it has no id.
        boot: the kernel's id of this boot.
        namespace: in which `pid` counts.
        pid: process id.
        started: clock ticks between boot and its start, so that the clock may be set.
    """

    machine: str | None
    boot: str
    namespace: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> "Process | None":
        """This one; None where the system does not tell."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            namespace, pid = str(Path("/proc/self/ns/pid").readlink()), os.getpid()
            _, started = _read_state(pid)
        except (OSError, ValueError, IndexError):
            return None
        return cls(_machine(), boot, namespace, pid, started)

    @classmethod
    def from_json(cls, text: str) -> "Process | None":
        """Reads a tag's value; None when it is not one that `to_json` wrote."""
        try:
            process = decode_text(cls, text, "process")
        except ValueError:
            return None
        return process if 0 < process.pid < _MAX_PID else None

    def to_json(self) -> str:
        """The tag's value."""
        return json.dumps(asdict(self))

    def is_dead(self, here: "Process") -> bool:
        """Whether it is certain that it is gone, asked by a process of this machine."""
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


def _machine() -> str | None:
    """A machine's id is no secret that leaves it: systemd asks to publish digests only."""
    try:
        machine_id = Path("/etc/machine-id").read_text().strip()
    except OSError:
        return None
    return hashlib.sha256(f"plantmodels {machine_id} {platform.node()}".encode()).hexdigest() if machine_id else None


def _read_state(pid: int) -> tuple[str, int]:
    """State and start of a process: fields 3 and 22 of /proc/PID/stat, behind the name, which may hold anything."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])
