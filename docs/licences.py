"""Write docs/licences.md: the licence of every pinned package, as its installed metadata states it.

python docs/licences.py > docs/licences.md     # in .venv, after a pin was changed; a test compares the two
"""

import re
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = (ROOT / "conda.yaml", ROOT / "requirements-dev.txt")
CONSUMER = ("mlflow-skinny", "mlflow", "numpy", "onnxruntime", "pandas", "pillow")
"""The packages that a served model version needs; of the first two either will do."""

UNSTATED = "not stated"
_NO_NAMES = ("OSI Approved", "DFSG approved")
"""Classifiers that do not name the licence which they approve."""

_HEAD = """# Licences

The licence of every package that `conda.yaml` and `requirements-dev.txt` pin, as the package's own metadata states it.
`python docs/licences.py` writes this page. None of these packages travels with a model version: a consumer installs the
packages of the first table and their dependencies. This project is Apache-2.0.

PyTorch also installs the CUDA libraries that it asks for: `nvidia-*` under NVIDIA's proprietary licence,
`cuda-bindings` and `cuda-pathfinder` (Apache-2.0), `triton` (MIT). Whoever brings checkpoints, images and pretrained
weights is responsible for their licences: a bundle records their digests, not their terms.
"""


def read_pins(lists: Iterable[Path] = PINS) -> dict[str, str]:
    """Return the version of every pinned package by its name, in the order of the lists."""
    text = "".join(path.read_text(encoding="utf-8") for path in lists)
    return dict(re.findall(r"^(?:      - )?([\w.-]+)==(\S+)$", text, re.MULTILINE))


def find_licence(name: str) -> str:
    """Return the licence of an installed package; `UNSTATED` and its licence file's first line if no field names it."""
    package = distribution(name)
    fields = package.metadata
    if stated := fields.get("License-Expression"):
        return str(stated)
    classifiers = [entry.split(" :: ")[-1] for entry in fields.get_all("Classifier", []) if entry.startswith("License")]
    if named := [entry for entry in classifiers if entry not in _NO_NAMES]:
        return ", ".join(named)
    stated = (fields.get("License") or "").strip()
    if stated and "\n" not in stated:
        return str(stated)
    return f"{UNSTATED}; its licence file begins “{_head_of_licence(package.files or ())}”"


def _head_of_licence(files: Iterable[Path]) -> str:
    texts = [path.read_text(encoding="utf-8") for path in files if path.name.upper().startswith("LICEN")]
    return next((text.strip().splitlines()[0] for text in texts if text.strip()), "")


def render() -> str:
    """Return the page as Markdown.

    Raises:
        PackageNotFoundError: if a pinned package is not installed.
        ValueError: if it is installed in another version.
    """
    pins = read_pins()
    for name, version in pins.items():
        if (found := distribution(name).version) != version:
            raise ValueError(f"{name} is pinned to {version}, but {found} is installed: make develop")
    others = [name for name in pins if name not in CONSUMER]
    unstated = [f"`{name}`" for name in pins if find_licence(name).startswith(UNSTATED)]
    notes = f"\nWithout a licence in their metadata: {', '.join(unstated) or 'none'}.\n"
    tables = [("A consumer's packages", CONSUMER), ("All others", others)]
    return _HEAD + notes + "".join(_render_table(title, names, pins) for title, names in tables)


def _render_table(title: str, names: Iterable[str], pins: dict[str, str]) -> str:
    rows = "".join(f"| {name} | {pins[name]} | {find_licence(name)} |\n" for name in names)
    return f"\n## {title}\n\n| package | version | licence |\n|---|---|---|\n{rows}"


if __name__ == "__main__":
    print(render(), end="")
