"""The page of licences is in step with the pins and with what is installed."""

from pathlib import Path

import pytest

from docs import licences

PAGE = (Path(licences.__file__).parent / "licences.md").read_text(encoding="utf-8")


def rows() -> dict[str, tuple[str, str]]:
    cells = (line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| "))
    return {cell[0]: (cell[1], cell[2]) for cell in cells if cell[0] != "package"}


def test_every_pin_has_its_row_and_nothing_else_has() -> None:
    assert {name: version for name, (version, _) in rows().items()} == licences.read_pins()
    assert set(licences.CONSUMER) <= set(licences.read_pins())


def test_no_licence_is_unknown_without_being_named_so() -> None:
    unstated = [name for name, (_, licence) in rows().items() if licence.startswith(licences.UNSTATED)]
    assert all(licence for _, licence in rows().values())
    assert f"Without a licence in their metadata: {', '.join(f'`{name}`' for name in unstated) or 'none'}." in PAGE


def test_the_page_is_what_the_installed_packages_say() -> None:
    assert licences.render() == PAGE, "python docs/licences.py > docs/licences.md"


def test_another_version_than_the_pinned_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licences, "read_pins", lambda: {"numpy": "1.0"})
    with pytest.raises(ValueError, match=r"numpy is pinned to 1\.0, but .* is installed: make develop"):
        licences.render()
