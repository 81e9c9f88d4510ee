"""Writes the tree of docs/architecture.md: each source file with the first line of its docstring or first comment.

python docs/tree.py     # after a file was added, moved or described anew; a test compares the page with the files
"""

import ast
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
START, END = "<!-- tree: written by docs/tree.py -->", "<!-- end of the tree -->"

_PACKAGES: Final = ("plantmodels", "mlflow_plugins", "examples/drawn_leaves", "page", "benchmarks", "reliability")

_FOLDERS: Final = (
    "plantmodels",
    "plantmodels/bundle",
    "plantmodels/serve",
    "plantmodels/service",
    "plantmodels/data",
    "plantmodels/checkpoint",
    "plantmodels/export",
    "plantmodels/ood",
    "plantmodels/training",
    "plantmodels/verify",
    "plantmodels/report",
    "plantmodels/compare",
    "plantmodels/cli",
    "mlflow_plugins",
    "mlflow_plugins/loading",
    "mlflow_plugins/checking",
    "mlflow_plugins/registry",
    "mlflow_plugins/jobs",
    "examples/drawn_leaves",
    "page",
    "benchmarks",
    "reliability",
)
"""Reading order: upwards from what everything else rests on. A folder that is not named here follows its parent."""


def list_sources(root: Path = ROOT) -> list[str]:
    """Return the name of every Python and JavaScript file but those of tests and documents, in reading order."""
    names = [path.relative_to(root) for package in _PACKAGES for path in _walk(root / package)]
    names.sort(key=lambda name: (_find_place(name.parent), name.parent, name.name != "__init__.py", name))
    return [name.as_posix() for name in names]


def _find_place(folder: Path) -> int:
    named = next(place.as_posix() for place in (folder, *folder.parents) if place.as_posix() in _FOLDERS)
    return _FOLDERS.index(named)


def _walk(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.suffix in (".py", ".mjs", ".js")]
    return [path for path in found if not {"__pycache__", "node_modules"} & set(path.parts)]


def read_summary(path: Path) -> str:
    """Return the first line of a module's docstring or comment, safe inside a table cell."""
    text = path.read_text(encoding="utf-8")
    about = (
        ast.get_docstring(ast.parse(text)) or "" if path.suffix == ".py" else text.partition("*/")[0].lstrip("/* \n")
    )
    return about.partition("\n")[0].rstrip().replace("|", "\\|").replace("<", "&lt;")


def render_tree() -> str:
    """Return one table for each folder, with a row for each file."""
    parts, folder = [], ""
    for name in list_sources():
        summary = read_summary(ROOT / name)
        if folder != (folder := name.rpartition("/")[0]):
            parts += [f"\n### {folder}\n", "| file | what it holds |", "|---|---|"]
        parts.append(f"| `{name.rpartition('/')[2]}` | {summary} |")
    return "\n".join(parts) + "\n"


def replace_tree(page: str) -> str:
    """Return the page with its tree written anew."""
    before, after = page.partition(START)[0], page.partition(END)[2]
    return f"{before}{START}\n{render_tree()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(replace_tree(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
