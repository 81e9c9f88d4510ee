"""Every test runs: what lies on disk is collected, and every test that a document names is one that is collected."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*/README.md"))]
PACKAGES_WITH_EXAMPLES = ("plantmodels", "mlflow_plugins", "examples")
SKIP = "doctest: " + "+SKIP"


def find_options(target: str) -> list[str]:
    """What the Makefile's target gives to Python, which is pytest and its options."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(rf"^{target}:.*\n\tpython (-m pytest\b.*)$", makefile, re.MULTILINE)
    assert recipe is not None, f"the Makefile's target `{target}` runs pytest"
    return shlex.split(recipe[1])


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """Node ids that `make test` and `make slow-tests` collect; parameters in brackets are cut off."""
    quick, slow = (find_options(target) for target in ("test", "slow-tests"))
    assert (quick.pop(), slow.pop()) == ("not slow and not real", "slow or real"), "no test is left out or runs twice"
    assert quick == slow and quick.pop() == "-m"
    command = [sys.executable, *quick, "-n", "0", "--collect-only", "--quiet"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    return {line.partition("[")[0] for line in ran.stdout.splitlines() if "::" in line}


@pytest.mark.slow
def test_every_test_file_on_disk_is_collected(collected: set[str]) -> None:
    on_disk = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    tests = {name for name in on_disk if Path(name).name not in ("conftest.py", "__init__.py")}
    tests -= {name for name in on_disk if name.startswith("tests/fixtures/")}

    assert tests <= {name.partition("::")[0] for name in collected}
    assert all(Path(name).name.startswith("test_") for name in tests)


@pytest.mark.slow
def test_every_file_that_starts_first_is_collected(collected: set[str], pytestconfig: pytest.Config) -> None:
    slowest = pytestconfig.pluginmanager.get_plugin(str(ROOT / "conftest.py")).SLOWEST_FILES

    assert set(slowest) <= {name.partition("::")[0] for name in collected}


@pytest.mark.slow
def test_every_example_in_a_docstring_is_collected(collected: set[str]) -> None:
    sources = (path for package in PACKAGES_WITH_EXAMPLES for path in (ROOT / package).rglob("*.py"))
    with_examples = {path.relative_to(ROOT).as_posix() for path in sources if ">>> " in path.read_text("utf-8")}

    assert with_examples and with_examples <= {name.partition("::")[0] for name in collected}


def test_no_example_in_a_docstring_is_skipped() -> None:
    sources = (path for package in PACKAGES_WITH_EXAMPLES for path in (ROOT / package).rglob("*.py"))

    assert [path for path in sources if SKIP in path.read_text("utf-8")] == []


@pytest.mark.slow
def test_every_test_that_a_document_names_is_collected(collected: set[str]) -> None:
    """`tests/file.py::test` names a file; a `::test` after it in the same document means the same file."""
    missing = []
    for document in DOCUMENTS:
        file = ""
        for path, name in re.findall(r"`(tests/[\w/]+\.py)?::([\w:]+)`", document.read_text(encoding="utf-8")):
            file = path or file
            named = f"{file}::{name}"
            if named not in collected and not any(one.startswith(f"{named}::") for one in collected):
                missing.append(f"{document.relative_to(ROOT)}: {named}")

    assert missing == []
