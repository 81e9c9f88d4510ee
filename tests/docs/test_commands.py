"""Documents name commands, options and project parameters that exist, and README names every command."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from mlflow_plugins.cli import main as registry_program
from mlflow_plugins.jobs.__main__ import main as jobs_program
from plantmodels.cli import main as program

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS: dict[str, click.Group] = {
    "plantmodels": program,
    "plantmodels-registry": registry_program,
    "python -m mlflow_plugins.jobs": jobs_program,
}
ENTRY_POINTS = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))["entry_points"]


def read_commands(text: str) -> Iterator[str]:
    """What is typed at a prompt on a page, continuation lines joined and comments removed."""
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in re.findall(r"^\$ (.*)$", block.replace("\\\n", " "), re.MULTILINE):
            yield re.sub(r" {2,}#.*| \[.*", "", line).strip()


def find_problem(command: str) -> str | None:
    """Why a command line does not fit its program; None if it does or is another program's."""
    if command.startswith("mlflow run "):
        words = shlex.split(command)
        entry = words[words.index("-e") + 1] if "-e" in words else "main"
        given = {words[i + 1].partition("=")[0] for i, word in enumerate(words) if word == "-P"}
        unknown = given - set(ENTRY_POINTS.get(entry, {}).get("parameters", ()))
        return f"{command}: {unknown}" if unknown or entry not in ENTRY_POINTS else None
    for name, group in PROGRAMS.items():
        if not command.startswith(f"{name} "):
            continue
        words = shlex.split(command.removeprefix(name))
        if words[0] not in group.commands:
            return f"{command}: no such command"
        known = {flag for parameter in group.commands[words[0]].params for flag in parameter.opts} | {"--help"}
        unknown = {word for word in words if word.startswith("--")} - known
        return f"{command}: {unknown}" if unknown else None
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_fits_its_program(document: Path) -> None:
    problems = map(find_problem, read_commands(document.read_text(encoding="utf-8")))
    assert [problem for problem in problems if problem] == []


def test_a_wrong_command_would_be_noticed() -> None:
    assert find_problem("plantmodels export --checkpoint a --data b") is None
    assert find_problem("plantmodels exports --checkpoint a") is not None
    assert find_problem("plantmodels verify --out models") is not None
    assert find_problem("mlflow run . -e score -P pictures=a") is not None


def test_readme_names_every_command_that_people_type() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| (`.*?) \| ", readme, re.MULTILINE)
    named = {name.split()[0] for cell in tables for name in re.findall("`([^`]+)`", cell)}

    assert {*program.commands, *registry_program.commands} <= named
