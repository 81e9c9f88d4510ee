"""Install this project in fresh environments and run the serving rooms' tests there: `make environments`.

1. The wheel and the source distribution are built, and checked by twine and check-wheel-contents.
2. The wheel is installed without the checkout: on the oldest Python with exactly the floors of pyproject.toml, on
   every other Python that is found with the newest versions.
3. In each environment, the tests of the rooms `serve` and `bundle` run. None of them has PyTorch; the bundle that they
   serve is made once, by .venv.

`python .ci/environments.py PYTHON...` uses these interpreters in place of those that it finds.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = (sys.executable, "-m", "uv", "--quiet")
OLDEST, NEWEST = 11, 14
"""The minor versions of Python 3 that are supported."""

CHECKS = (
    ("twine==7.0.0", "check", "--strict"),
    ("check-wheel-contents==0.6.3", "--config", str(ROOT / "pyproject.toml")),
)
"""Run by `uv tool run`, as nothing else in the project needs them."""

TEST_TOOLS = ("filelock", "hypothesis", "onnx", "pandas", "pytest", "pytest-timeout", "scipy")
"""What the serving rooms' tests import beside the project."""

EXTRAS = ("cpu", "parquet", "signing")
"""The extras of a service, whose floors are tested too."""

TESTS = ("tests/serve", "tests/bundle")


@dataclass(frozen=True)
class Environment:
    """An environment in which tests run: its name, its interpreter, and the packages beside the wheel."""

    name: str
    python: Path
    packages: tuple[str, ...]


def read_floors(extras: tuple[str, ...]) -> tuple[str, ...]:
    """Return `name==floor` for each package of the base and of some extras.

    Raises:
        ValueError: a requirement declares no floor.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    found = [re.fullmatch(r"([\w.\[\]-]+)>=([\d.]+)", text) for text in asked]
    if None in found:
        raise ValueError(f"pyproject.toml: {asked[found.index(None)]!r} declares no floor, such as name>=1.0")
    return tuple(f"{match[1]}=={match[2]}" for match in found if match is not None)


def find_pythons() -> Iterator[Path]:
    """Yield one interpreter of each supported version, of those on the path and of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in range(OLDEST, NEWEST + 1):
        on_path = shutil.which(f"python3.{minor}")
        candidates = [*sorted(pyenv.glob(f"3.{minor}.*/bin/python")), *([Path(on_path)] if on_path else [])]
        code = f"import sys; sys.exit(sys.version_info[:2] != (3, {minor}))"
        for python in candidates:
            if subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0:
                yield python
                break


def read_version(python: Path) -> str:
    """Return an interpreter's version, such as 3.12.1."""
    return subprocess.check_output(
        [python, "-c", "import platform; print(platform.python_version())"], text=True
    ).strip()


def build(folder: Path) -> Path:
    """Build wheel and source distribution into a folder, check both, and return the wheel."""
    subprocess.run([*UV, "build", "--out-dir", folder, ROOT], check=True)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    for tool, *arguments in CHECKS:
        files = [wheel, source] if tool.startswith("twine") else [wheel]
        subprocess.run([*UV, "tool", "run", "--from", tool, tool.partition("==")[0], *arguments, *files], check=True)
    if missing := find_missing(source):
        raise RuntimeError(f"{source.name}: lacks {', '.join(missing[:5])}; name them in MANIFEST.in")
    return wheel


def find_missing(source: Path) -> list[str]:
    """Return the files of the checkout that a source distribution lacks."""
    with tarfile.open(source) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    return [name for name in tracked if name not in {*held, ".gitignore"}]


def test(environment: Environment, wheel: Path, folder: Path, kept: Path) -> str:
    """Make an environment, run the tests in it, and return a line about them.

    Raises:
        RuntimeError: a step failed; holds its output.
    """
    start, place = time.perf_counter(), folder / environment.name.replace(" ", "-")
    python = place / "venv" / "bin" / "python"
    _run([*UV, "venv", "--python", environment.python, place / "venv"])
    _run(
        [*UV, "pip", "install", "--python", python, f"{wheel}[{','.join(EXTRAS)}]", *environment.packages, *TEST_TOOLS]
    )
    installed = time.perf_counter()
    shutil.copytree(ROOT / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copyfile(ROOT / name, place / name)
    variables = os.environ | {"PLANTMODELS_TEST_FILES": str(kept), "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    output = _run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS], cwd=place, env=variables)
    seconds = f"installed in {installed - start:.0f} s, tested in {time.perf_counter() - installed:.0f} s"
    return f"{environment.name}: {output.splitlines()[-1].partition(' in ')[0]}; {seconds}"


def _run(command: list[object], **options: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def list_environments(pythons: list[Path]) -> list[Environment]:
    """Return what is tested: the floors on the oldest interpreter, and the newest versions on all others."""
    oldest, *others = sorted(pythons, key=lambda python: tuple(map(int, read_version(python).split("."))))
    floors = Environment(f"Python {read_version(oldest)} with the floors", oldest, read_floors(EXTRAS))
    return [floors, *(Environment(f"Python {read_version(python)}", python, ()) for python in others)]


def main(arguments: list[str]) -> int:
    """Test all environments, two at a time, and print a line for each; return the exit status."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="environments-") as temporary:
        folder = Path(temporary)
        wheel, kept = build(folder / "dist"), folder / "kept"
        print("wheel and source distribution: twine and check-wheel-contents find nothing", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/serve/test_pickling.py"]
        _run(command, cwd=ROOT, env=os.environ | {"PLANTMODELS_TEST_FILES": str(kept), "OMP_NUM_THREADS": "1"})
        environments = list_environments([Path(python) for python in arguments] or list(find_pythons()))
        with ThreadPoolExecutor(2) as pool:
            for tried in [pool.submit(test, environment, wheel, folder, kept) for environment in environments]:
                try:
                    print(tried.result(), flush=True)
                except RuntimeError as error:
                    failed += 1
                    print(error, flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
