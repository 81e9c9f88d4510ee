"""Write the pins of everything that pyproject.toml asks for, in three lists without a common package.

- `conda.yaml`: what `mlflow run` needs, so what `make demo` installs.
- `requirements-dev.txt`: what tests, checks, documents and a team's registry need beyond it.
- `benchmarks/requirements.txt`: what `make bench` needs beyond it.

`make lock` keeps every version that still satisfies pyproject.toml; `make lock UPGRADE=--upgrade` takes the newest
of the first two lists.
What only PyTorch asks for (its CUDA libraries, Triton, setuptools) is left out: PyTorch pins those by itself.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT, CONDA = ROOT / "pyproject.toml", ROOT / "conda.yaml"
DEVELOPMENT, BENCHMARKS = ROOT / "requirements-dev.txt", ROOT / "benchmarks" / "requirements.txt"

RUN_EXTRAS = ("cpu", "build", "registry", "spark")
DEVELOPMENT_EXTRAS = ("heic", "parquet", "server", "service", "signing", "test", "docs", "dev")
BENCHMARK_EXTRAS = ("bench",)

BROUGHT_BY_TORCH = re.compile(r"(nvidia-.*|cuda-.*|triton|setuptools)==")
PIN = re.compile(r"^[ -]*([\w.-]+==\S+)$", re.MULTILINE)

CONDA_HEAD = """\
# Written by `make lock` from pyproject.toml: what `mlflow run` and `make demo` install. Do not edit by hand.
name: plantmodels
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - pip:
"""
DEVELOPMENT_HEAD = """\
# Written by `make lock` from pyproject.toml: what development and a team's registry need beyond conda.yaml.
"""
BENCHMARKS_HEAD = """\
# Written by `make lock` from pyproject.toml: what `make bench` needs beyond conda.yaml, in an environment of its own
# (.venv-bench), which reads the other packages from .venv.
"""


def read_pins(*lists: Path) -> list[str]:
    """Return the `name==version` lines of these lists."""
    return [pin for path in lists if path.exists() for pin in PIN.findall(path.read_text(encoding="utf-8"))]


def resolve(extras: Iterable[str], known: Iterable[str], options: Iterable[str] = ()) -> list[str]:
    """Return a pin of every package that pyproject.toml needs with these extras; `known` pins are kept if they fit."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pins.txt"
        output.write_text("\n".join(known), encoding="utf-8")
        command = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python-version", "3.11"]
        command += [f"--extra={extra}" for extra in extras]
        subprocess.run([*command, *options, "--output-file", output, PYPROJECT], check=True, stdout=subprocess.DEVNULL)
        return [pin for pin in read_pins(output) if not BROUGHT_BY_TORCH.match(pin)]


def main(options: list[str]) -> None:
    """Resolve and write the three lists; `options` go to the `uv pip compile` that chooses most versions."""
    known = read_pins(CONDA, DEVELOPMENT, BENCHMARKS)
    everything = resolve((*RUN_EXTRAS, *DEVELOPMENT_EXTRAS), known, options)
    run = resolve(RUN_EXTRAS, everything)
    bench = resolve((*RUN_EXTRAS, *BENCHMARK_EXTRAS), [*everything, *known])
    CONDA.write_text(CONDA_HEAD + "".join(f"      - {pin}\n" for pin in run), encoding="utf-8")
    for path, head, pins in ((DEVELOPMENT, DEVELOPMENT_HEAD, everything), (BENCHMARKS, BENCHMARKS_HEAD, bench)):
        path.write_text(head + "".join(f"{pin}\n" for pin in pins if pin not in run), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
