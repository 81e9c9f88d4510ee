"""The few building blocks of the HTML pages: escaped tables, sections, figures, thumbnails, and the style.

>>> print(notes("a < b"), end="")
<p class="notes">a &lt; b</p>
"""

import base64
from collections.abc import Collection, Sequence
from html import escape
from typing import Final

from plantmodels.report.render.gallery import Gallery, Thumbnail
from plantmodels.report.statistics import Interval, Proportion


class Html(str):
    """Text that is HTML already; every other string is escaped."""

    __slots__ = ()


def document(title: str, body: str) -> str:
    """A whole page that needs no network and no scripts, of finished HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def table(
    header: Sequence[str], rows: Sequence[Sequence[str | Html]], *, numbers: Collection[int] = (), name: str = ""
) -> str:
    """A table; cells are escaped unless they are `Html`.

    Args:
        header: one cell a column.
        rows: as many cells each.
        numbers: columns to align on the right.
        name: CSS class.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        marks = (' class="number"' if column in numbers else "" for column in range(len(cells)))
        content = (cell if isinstance(cell, Html) else escape(cell) for cell in cells)
        return "<tr>" + "".join(f"<{tag}{m}>{c}</{tag}>" for m, c in zip(marks, content, strict=True)) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    kind = f' class="{escape(name)}"' if name else ""
    return (
        f'<div class="scroll"><table{kind}>\n<thead>{line(header, "th")}</thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
    )


def section(title: str, *parts: str) -> str:
    """A headed section of finished HTML parts."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{''.join(parts)}</section>\n"


def notes(text: str) -> str:
    """A paragraph in small type, escaped."""
    return f'<p class="notes">{escape(text)}</p>\n'


def fold(title: str, content: str) -> str:
    """Finished HTML that opens on a click."""
    return f"<details>\n<summary>{escape(title)}</summary>\n{content}</details>\n"


def figure(png: bytes | None, description: str) -> str:
    """A picture inside the page itself; nothing without one."""
    if png is None:
        return ""
    data = base64.b64encode(png).decode()
    return f'<figure><img src="data:image/png;base64,{data}" alt="{escape(description)}"></figure>\n'


def gallery(shown: Gallery) -> str:
    """Thumbnails side by side, inside the page itself; nothing without any."""
    if not shown.thumbnails:
        return ""
    left_out = shown.total - len(shown.thumbnails)
    more = notes(f"{left_out:,} more are not shown.") if left_out else ""
    return f'<div class="gallery">\n{"".join(map(_thumbnail, shown.thumbnails))}</div>\n{more}'


def _thumbnail(picture: Thumbnail) -> str:
    data = base64.b64encode(picture.jpeg).decode()
    title = escape(picture.title)
    lines = "".join(f"<span{_MARKS[line.right]}>{escape(line.text)}</span>" for line in picture.lines)
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{title}">'
        f"<figcaption><b>{title}</b>{lines}</figcaption></figure>\n"
    )


_MARKS: Final = {True: ' class="right"', False: ' class="wrong"', None: ""}


def share_cell(share: Proportion, *, interval: bool = True) -> Html:
    """A share in percent, its counts, and its 95 % interval below."""
    if share.value is None:
        return Html("–")
    below = span_interval(share.interval, "%") if interval else ""
    return Html(f'{100 * share.value:.2f} %<span class="of">{share.count:,} of {share.images:,}</span>{below}')


def span_interval(interval: Interval | None, unit: str) -> str:
    """A 95 % interval of a share or a difference in hundredths, as small type on a line of its own."""
    return "" if interval is None else f'<span class="what">{write_interval(interval)} {unit}</span>'


def write_interval(interval: Interval) -> str:
    """Both ends in hundredths, such as "78.9 to 82.8"."""
    low, high = (f"{round(100 * value, 2) + 0.0:.2f}".replace("-", "−") for value in interval)
    return f"{low} to {high}"


STYLE: Final = """
:root { --ink: #26302b; --muted: #6d7772; --line: #d9ddd8; --faint: #eef0ec; --good: #2f6b47; --bad: #a8352b; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 15px/1.5 "Source Sans 3", "Segoe UI", "Helvetica Neue", Helvetica, Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 56rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
header { margin-bottom: 2.25rem; }
.kicker { margin: 0; color: var(--muted); letter-spacing: .02em; }
h1, h2 { font-family: Charter, "Iowan Old Style", "Palatino Linotype", Georgia, serif; font-weight: 500;
  line-height: 1.15; }
h1 { margin: .1rem 0 .5rem; font-size: 2.6rem; letter-spacing: -.015em; }
h2 { margin: 0 0 .9rem; font-size: 1.45rem; letter-spacing: -.005em; }
header.good h1 { color: var(--good); }
header p { margin: 0 0 .35rem; }
.missed strong { color: var(--bad); font-weight: 600; }
.facts, .notes, .what, .of, th { color: var(--muted); }
section { margin-top: 3.25rem; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; }
th { font-weight: 400; text-align: left; font-size: .87rem; }
th, td { padding: .5rem 1.1rem .5rem 0; border-bottom: 1px solid var(--line); vertical-align: baseline; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:last-child td { border-bottom: 0; }
thead th { border-bottom-color: var(--ink); padding-bottom: .3rem; }
.number { text-align: right; white-space: nowrap; }
table.gates { border-bottom: 1px solid var(--ink); }
table.gates td { padding-top: .6rem; padding-bottom: .6rem; }
table.gates td:nth-child(5), table.gates th:nth-child(5) { padding-left: .9rem; white-space: nowrap; }
table.gates b { font-weight: 600; }
.what { display: block; font-size: .87rem; }
.why { display: block; font-size: .87rem; }
table.narrow { width: auto; min-width: 55%; }
.of { display: inline-block; min-width: 7.2em; margin-left: .8em; font-size: .87rem; }
.status i { font-style: normal; display: inline-block; width: 1.1em; }
.status.passed { color: var(--good); }
.status.failed { color: var(--bad); font-weight: 600; }
.status.not-measured { color: #8a6212; font-weight: 600; }
table.verdicts th:last-child, table.verdicts td:last-child { padding-left: .9rem; width: 40%; }
.better, .worse { font-weight: 600; }
.better { color: var(--good); }
.worse { color: var(--bad); }
.summary { max-width: 44rem; margin: 1rem 0 0; }
.notes { margin: .8rem 0; max-width: 44rem; font-size: .93rem; }
figure { margin: 0 0 .75rem; }
figure img { display: block; width: 100%; height: auto; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.6rem, 1fr)); gap: 1.2rem 1rem; }
.gallery figure { margin: 0; }
.gallery img { width: 112px; height: 112px; object-fit: cover; border-radius: 3px; }
figcaption { margin-top: .35rem; font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere; }
figcaption b { display: block; font-weight: 600; }
figcaption span { display: block; color: var(--muted); }
figcaption .right { color: var(--good); }
figcaption .wrong { color: var(--bad); }
.small { color: #8a6212; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--muted); }
summary:hover { color: var(--ink); }
details[open] summary { margin-bottom: .6rem; }
code { font: .87em/1.4 ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
td { overflow-wrap: anywhere; }
td:first-child { min-width: 9rem; }
@media (max-width: 40rem) {
  main { padding: 2rem 1rem 3rem; }
  h1 { font-size: 2rem; }
  table.gates tr > :nth-child(4) { display: none; }
  .of { display: block; min-width: 0; }
  td:first-child { min-width: 7rem; }
  th, td { padding-right: .7rem; }
}
@media print { main { padding: 0; max-width: none; } section { break-inside: avoid; } }
"""
