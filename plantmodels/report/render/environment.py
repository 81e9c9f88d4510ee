"""The Jinja environment of the HTML pages: every value is escaped, and an unknown name is an error.

A page is one file: the style sheet and all images are part of it, and it needs neither scripts nor the network.

>>> make_environment().from_string("{{ name }} is right on {{ value|percent }}").render(name="<b>", value=0.8)
'&lt;b&gt; is right on 80.00 %'
"""

import base64
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from plantmodels.report.formatting import format_number, format_percent, format_points, format_range, spell_class
from plantmodels.report.statistics import ALPHA

DIGEST_DIGITS: Final = 12
"""Hexadecimal digits that are shown of a digest: enough to tell two files apart."""

_SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@cache
def make_environment(*packages: str) -> Environment:
    """Return the environment whose templates lie in this package and in further ones.

    Args:
        packages: names of packages that have a folder `templates`.
    """
    loaders = [PackageLoader(package) for package in ("plantmodels.report.render", *packages)]
    environment = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= _FILTERS
    return environment


def encode_data_uri(content: bytes, mime_type: str) -> str:
    """Return an image as an address that holds the image itself."""
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"


def format_p_value(value: float) -> str:
    """Return a p-value with two digits, such as "p = 0.0023"."""
    return f"p = {value:.2g}" if value >= 1e-4 else "p under 0.0001"


def judge_chance(p_value: float) -> str:
    """Return whether a difference is more than chance would make."""
    return "more than chance" if p_value < ALPHA else "no more than chance"


def format_power(value: float | None) -> str:
    """Return two digits and a power of ten as a superscript, with no place to break the line."""
    if value is None:
        return "missing or not finite"
    mantissa, _, exponent = f"{value:.2g}".partition("e")
    if not exponent:
        return mantissa
    return f"{mantissa}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10" + str(int(exponent)).translate(_SUPERSCRIPTS)


def _format_count(count: int) -> str:
    return f"{count:,}"


def _format_percent_range(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{format_range(100 * low, 100 * high)} %"


_FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "chance": judge_chance,
    "count": _format_count,
    "data_uri": encode_data_uri,
    "number": format_number,
    "p_value": format_p_value,
    "percent": format_percent,
    "percent_range": _format_percent_range,
    "points": format_points,
    "power": format_power,
    "short_digest": lambda digest: digest[:DIGEST_DIGITS],
    "spell_class": spell_class,
}
