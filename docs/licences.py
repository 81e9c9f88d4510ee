"""Writes docs/licences.md: the licence of every pinned package, as its installed metadata states it.

python docs/licences.py > docs/licences.md     # in .venv, after a pin was changed; a test compares the two
"""

import re
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

CONDA = Path(__file__).resolve().parents[1] / "conda.yaml"
CONSUMER = ("mlflow-skinny", "mlflow", "numpy", "onnxruntime", "pandas", "pillow")
"""What a version needs where it is served: `mlflow-skinny` or `mlflow`, and the others."""

UNSTATED = "not stated"
_NO_NAMES = ("OSI Approved", "DFSG approved")
"""Classifiers that approve of a licence without saying which."""

_HEAD = """# Licences

Of every package that `conda.yaml` pins, as its own metadata states it; made by `python docs/licences.py`. No package of
them travels with a version: a consumer installs the first table and what those ask for, and this project is Apache-2.0.
Beside the pins, torch brings CUDA libraries of the versions that it asks for: `nvidia-*` under NVIDIA's proprietary
licence, `cuda-bindings` and `cuda-pathfinder` (Apache-2.0), `triton` (MIT). Licences of checkpoints, photographs and
pretrained weights are the affair of whoever brings them: a bundle records their digests, not their terms.
"""


def read_pins(conda: Path = CONDA) -> dict[str, str]:
    """Name to version of every package under `pip:`, in the file's order."""
    return dict(re.findall(r"^      - ([\w.-]+)==(\S+)$", conda.read_text(encoding="utf-8"), re.MULTILINE))


def find_licence(name: str) -> str:
    """The licence of an installed package; `UNSTATED` and the head of its licence file where no field names one."""
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
    """The page.

    Raises:
        PackageNotFoundError: a pinned package is not installed.
        ValueError: it is installed in another version than the pinned one.
    """
    pins = read_pins()
    for name, version in pins.items():
        if (found := distribution(name).version) != version:
            raise ValueError(f"{name} is pinned to {version}, but {found} is installed: make setup")
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
