r"""Puts foreign text into ours: other libraries' messages without their noise, and strangers' words safe to print.

>>> quote_error(RuntimeError("\x1b[31mcannot open\x1b[0m\n  the model"))
'cannot open the model'
>>> shorten("a" * 10 + "the reason", 15)
'aa … the reason'
>>> escape_controls("passed\n2026 allowed: ada\x1b[2K")
'passed\\n2026 allowed: ada\\x1b[2K'
>>> escape_controls("größer als 5 µm")
'größer als 5 µm'
>>> fit_encoding("温 ≥ 5 °C", "ascii"), fit_encoding("温 ≥ 5 °C", "cp1252")
('\\u6e29 >= 5 \\xb0C', '\\u6e29 >= 5 °C')
>>> name_some(["a.jpg", "b.jpg", "c.jpg", "d.jpg"], 2)
'a.jpg, b.jpg and 2 more'
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

MAX_QUOTE: Final = 1200
"""Characters of a quoted message. PyTorch's and Spark's longest messages name the cause after 600 characters."""

_MAX_READ: Final = 10_000
"""Characters of a message that are looked at; of a longer one, the middle is dropped first."""

_ANSI: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_STACK: Final = re.compile(r"\n?\bException raised from .*|\n?C\+\+ CapturedTraceback:.*", re.DOTALL)
_STACK_LINE: Final = re.compile(r"^\s*(?:at [\w.$/<>]+\([^()\n]*\)|\.\.\. \d+ more|frame #\d+: .*)\s*$", re.MULTILINE)
_SOURCE: Final = re.compile(r"(?<![^\s:(\[])[^\s:(\[]+\.(?:cc|cpp|cxx|cu|cuh|h|hpp):\d+:?\s*")
_CALL: Final = re.compile(r"(?<![\w:~<>])[\w:~<>]++(?=\()")
_RETURN_TYPE: Final = re.compile(r"(?:(?<!\S)(?:static|virtual|inline|const|void|bool|int|\S+::\S+)\s+){1,6}$")
_LONGEST_SIGNATURE: Final = 600
_AFTER_SIGNATURE: Final = re.compile(r"\s*(?:const\b|noexcept\b|\[with [^\]]*\])")

_CONTROLS: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that are invisible, change the direction of text, end a line or steer a terminal."""


_IN_ASCII: Final = str.maketrans({"≥": ">=", "≤": "<=", "−": "-", "…": "...", "→": "->"})
"""Characters of our own texts that some databases cannot hold, and what is written instead."""


def fit_encoding(text: str, encoding: str) -> str:
    """Return a text that an encoding can hold: `≥` and its like become ASCII; what it lacks is escaped."""
    return text.translate(_IN_ASCII).encode(encoding, "backslashreplace").decode(encoding)


def find_control(text: str) -> str | None:
    """Return the first control or format character of a text in escaped form; None if it has none."""
    return next((_escape(character) for character in text if unicodedata.category(character) in _CONTROLS), None)


def escape_controls(text: str) -> str:
    """Return a text in which every control and format character is written as its escape sequence.

    So what a stranger wrote can neither begin a line of its own nor steer a terminal.
    """
    return "".join(
        _escape(character) if unicodedata.category(character) in _CONTROLS else character for character in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def quote_error(error: BaseException | str) -> str:
    """Return another library's error as one line to put into an error of ours.

    ANSI codes, C++ signatures, source positions and stack traces are removed. A message longer than `MAX_QUOTE` loses
    its middle, because the reason stands at the end. If nothing is left, the line is the name of the error's type.
    """
    text = _STACK_LINE.sub("", _STACK.sub("", _ANSI.sub("", shorten(str(error), _MAX_READ))))
    text = _drop_signatures(_SOURCE.sub(" ", text))
    return shorten(" ".join(text.split()), MAX_QUOTE) or type(error).__name__


def shorten(text: str, length: int) -> str:
    """Return text of at most `length` characters: of longer text its beginning, an ellipsis and most of its end."""
    if len(text) <= length:
        return text
    head = (length - 3) // 5
    return f"{text[:head].rstrip()} … {text[len(text) - (length - 3 - head) :].lstrip()}"


def name_some(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """Return the first `most` names, and how many more there are: "a, b and 3 more", or "a; b; and 3 more"."""
    named = separator.join(names[:most])
    link = " " if separator == ", " else separator
    return f"{named}{link}and {len(names) - most:,} more" if len(names) > most else named


def _drop_signatures(text: str) -> str:
    """Remove C++ function signatures such as `onnxruntime::Model::Model(onnx::ModelProto&&, bool) const`."""
    kept, start = "", 0
    for found in _CALL.finditer(text):
        end = _find_closing(text, found.end()) if "::" in found[0] and found.start() >= start else None
        if end is None or not re.search(r"[&*]|::|\bconst\b|\(\)", text[found.end() : end]):
            continue
        kept += text[start : found.start()]
        if returned := _RETURN_TYPE.search(kept, max(0, len(kept) - _LONGEST_SIGNATURE)):
            kept = kept[: returned.start()]
        while after := _AFTER_SIGNATURE.match(text, end):
            end = after.end()
        start = end
    return kept + text[start:]


def _find_closing(text: str, start: int) -> int | None:
    """Return the position behind the bracket that closes the one at `start`; None if nothing closes it."""
    depth = 0
    for position in range(start, min(len(text), start + _LONGEST_SIGNATURE)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    return None
