"""The value of the tag by which a person asks for a waiver: a reason, and until when the waiver holds.

>>> parse_request("until 2026-12-31: greenhouse only")
WaiverRequest(reason='greenhouse only', until='2026-12-31T23:59:59Z')
>>> parse_request("greenhouse only").until is None
True
"""

import re
from dataclasses import dataclass
from typing import Final

from mlflow_plugins.registry.commands.history import parse_time

_REQUEST: Final = re.compile(r"until\s+(\S+?):(?:\s+(.*))?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class WaiverRequest:
    """What a person asks for.

    Attributes:
        reason: why a version may be used although a gate failed.
        until: time in UTC, ISO 8601, after which the waiver does not hold any more; None for no end.
    """

    reason: str
    until: str | None

    def to_text(self) -> str:
        """Return the value of the tag."""
        return self.reason if self.until is None else f"until {self.until}: {self.reason}"


def parse_request(text: str) -> WaiverRequest:
    """Return what the value of a tag asks for.

    Raises:
        ValueError: the text begins with `until …:`, but names no date or time.
    """
    found = _REQUEST.fullmatch(text.strip())
    if found is None:
        return WaiverRequest(text.strip(), None)
    return WaiverRequest((found[2] or "").strip(), parse_end(found[1]))


def parse_end(text: str) -> str:
    """Return the end of a waiver as a time in UTC, ISO 8601; a date means the end of that day in UTC.

    Raises:
        ValueError: it is neither a date nor a time.
    """
    return parse_time(text, is_end=True)[: len("2026-12-31T23:59:59")] + "Z"
