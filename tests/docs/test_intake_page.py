"""Each row of docs/intake.md names a test that exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (?P<brought>.+) \| (?P<happens>.+) \| `(?P<file>tests/[\w/]+\.py)?::(?P<test>[\w:]+)` \|$")


def read_rows(text: str) -> list[tuple[str, str]]:
    """What people bring, and the node id of its test; a row without a file means that of the row before."""
    rows, file = [], ""
    for line in text.splitlines():
        if not line.startswith("| ") or line.startswith("| you bring |"):
            continue
        found = ROW.match(line)
        assert found is not None, f"a row without a test: {line}"
        file = found["file"] or file
        rows.append((found["brought"], f"{file}::{found['test']}"))
    return rows


def list_tests(file: Path) -> set[str]:
    """The tests of a file, those of classes as `Class::test`."""
    tests = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        tests |= {f"{prefix}{one.name}" for one in inner if isinstance(one, ast.FunctionDef)}
    return tests


def test_every_row_names_a_test_that_exists() -> None:
    rows = read_rows((ROOT / "docs" / "intake.md").read_text(encoding="utf-8"))
    missing = [
        (brought, test)
        for brought, test in rows
        if not (ROOT / test.partition("::")[0]).is_file()
        or test.partition("::")[2] not in list_tests(ROOT / test.partition("::")[0])
    ]

    assert missing == [] and len(rows) > 50


def test_a_row_without_a_test_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="a row without a test"):
        read_rows("| you bring | what happens | test |\n|---|---|---|\n| a | b |")
