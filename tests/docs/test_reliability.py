"""The tests that docs/reliability.md names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_is_named_exists() -> None:
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)?::([\w:]+)`", text)
    missing, file = [], ""
    for path, name in named:
        file = path or file
        source = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).is_file() else ""
        if not all(re.search(rf"^ *(def|class) {part}\b", source, re.MULTILINE) for part in name.split("::")):
            missing.append(f"{file}::{name}")

    assert len(named) > 100
    assert missing == []
