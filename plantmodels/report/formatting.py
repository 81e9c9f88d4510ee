"""Numbers, names and tables as people read them: one minus sign, no "-0.00", classes without underscores.

>>> format_percent(0.8090)
'80.90 %'
>>> format_points(-0.00001)
'+0.00 points'
>>> spell_class("Tomato___Late_blight")
'Tomato · Late blight'
"""

from collections.abc import Sequence
from typing import Final

MISSING: Final = "–"
"""Stands where a value was not measured or is not defined."""


def format_number(value: float, digits: int, *, sign: bool = False) -> str:
    """Return a number with a fixed number of decimals, a true minus sign and no negative zero.

    Args:
        value: a finite number.
        digits: number of decimals.
        sign: whether positive numbers and zero get a plus sign.
    """
    rounded = round(value, digits) + 0.0  # turns -0.0 into 0.0
    return f"{rounded:{'+' if sign else ''},.{digits}f}".replace("-", "−")


def format_percent(proportion: float | None, digits: int = 2) -> str:
    """Return a proportion between 0 and 1 in percent, such as "80.90 %"; "–" for None."""
    return MISSING if proportion is None else f"{format_number(100 * proportion, digits)} %"


def format_points(difference: float | None) -> str:
    """Return the difference of two proportions in percentage points, such as "−0.19 points"; "–" for None."""
    return MISSING if difference is None else f"{format_number(100 * difference, 2, sign=True)} points"


def format_range(low: float, high: float, digits: int = 2) -> str:
    """Return both ends of an interval, such as "78.86 to 82.78"."""
    return f"{format_number(low, digits)} to {format_number(high, digits)}"


def spell_class(name: str) -> str:
    """Return a class's name for people: "Tomato___Late_blight" becomes "Tomato · Late blight"."""
    return name.replace("___", " · ").replace("_", " ").strip()


def align_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a plain-text table for a terminal: header, rule and rows, columns two blanks apart."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return [line.rstrip() for line in lines]
