"""The pages as blocks of code, and a bundle of which one gate is not passed."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.rows import write_values

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def code_blocks() -> Callable[[str, str], list[str]]:
    """`code_blocks("service.md", "python")`: the blocks of one language on a page, in order; "" for plain text."""

    def read(page: str, language: str) -> list[str]:
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        return [content for name, content in blocks if name == language]

    return read


@pytest.fixture(scope="session")
def failing_bundle(tmp_path_factory: pytest.TempPathFactory, verified_bundle: Path) -> Path:
    """The verified tiny bundle with a report in which only `int8_accuracy` is not passed; read-only."""
    bundle = Path(shutil.copytree(verified_bundle, tmp_path_factory.mktemp("failing") / "models"))
    write_values(bundle, int8_accuracy=0.006)
    return bundle
