"""The tree of docs/architecture.md lists every source file, says what each holds, and lists nothing else."""

import re
from pathlib import Path

from docs import tree

PAGE = tree.PAGE.read_text(encoding="utf-8")


def test_every_source_file_is_listed_and_no_other() -> None:
    listed, folder = set(), ""
    for line in PAGE.partition(tree.START)[2].partition(tree.END)[0].splitlines():
        if line.startswith("### "):
            folder = line.removeprefix("### ")
        elif row := re.match(r"\| `([\w-]+\.(?:py|m?js))` \| \S", line):
            listed.add(f"{folder}/{row[1]}")

    assert listed == set(tree.list_sources())


def test_the_tree_says_what_the_files_say_of_themselves() -> None:
    assert tree.replace_tree(PAGE) == PAGE, "run: python docs/tree.py"


def test_a_file_without_a_description_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "plantmodels" / "new").mkdir(parents=True)
    (tmp_path / "plantmodels" / "new" / "room.py").write_text('"""Holds a | b for <species>.\n\nMore.\n"""')

    (tmp_path / "page" / "node_modules").mkdir(parents=True)
    (tmp_path / "page" / "node_modules" / "theirs.mjs").write_text("")
    (tmp_path / "page" / "ours.mjs").write_text("/**\n * Draws | leaves.\n *\n * More.\n */\nlet x;\n")

    assert tree.list_sources(tmp_path) == ["plantmodels/new/room.py", "page/ours.mjs"]
    assert tree.read_summary(tmp_path / "page" / "ours.mjs") == "Draws \\| leaves."
    assert tree.read_summary(tmp_path / "plantmodels" / "new" / "room.py") == "Holds a \\| b for &lt;species>."
