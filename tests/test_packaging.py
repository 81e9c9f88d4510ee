"""What a package index and a fresh environment get; `.ci/environments.py` builds and installs it for real."""

import importlib.util
import io
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def load_environments() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environments", ROOT / ".ci" / "environments.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["environments"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


ENVIRONMENTS = load_environments()


def test_the_floors_are_those_of_the_base_and_of_the_extras() -> None:
    floors = ENVIRONMENTS.read_floors(("cpu",))
    assert "onnxruntime==1.23" in floors and "click==8.1" in floors
    assert len(floors) == len(PROJECT["dependencies"]) + 1


def test_a_requirement_without_a_floor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"project": {"dependencies": ["click>=8.1", "numpy"], "optional-dependencies": {}}}
    monkeypatch.setattr(ENVIRONMENTS.tomllib, "loads", lambda _: document)
    with pytest.raises(ValueError, match=r"pyproject\.toml: 'numpy' declares no floor, such as name>=1\.0"):
        ENVIRONMENTS.read_floors(())


def test_the_floors_are_tried_on_the_oldest_python_and_the_newest_versions_on_the_others(monkeypatch) -> None:
    versions = {"new": "3.13.0", "old": "3.9.18", "mid": "3.12.10"}
    monkeypatch.setattr(ENVIRONMENTS, "read_version", lambda python: versions[str(python)])
    found = ENVIRONMENTS.list_environments([Path(name) for name in versions])
    assert [environment.name for environment in found] == [
        "Python 3.9.18 with the floors",
        "Python 3.12.10",
        "Python 3.13.0",
    ]
    assert found[0].packages == ENVIRONMENTS.read_floors(ENVIRONMENTS.EXTRAS) and found[1].packages == ()


def test_this_python_is_found() -> None:
    minor = sys.version_info[1]
    found = {ENVIRONMENTS.read_version(python).rpartition(".")[0] for python in ENVIRONMENTS.find_pythons()}
    assert found <= {f"3.{number}" for number in range(11, 15)}
    assert f"3.{minor}" in found or not 11 <= minor <= 14


def test_a_file_that_the_source_distribution_lacks_is_found(tmp_path: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not in a git checkout")
    with tarfile.open(tmp_path / "source.tar.gz", "w:gz") as archive:
        for name in tracked.stdout.splitlines():
            if name != "MLproject":
                archive.addfile(tarfile.TarInfo(f"plantmodels-0.2.0/{name}"), io.BytesIO())
    assert ENVIRONMENTS.find_missing(tmp_path / "source.tar.gz") == ["MLproject"]


def test_the_description_has_no_link_that_a_package_index_cannot_follow() -> None:
    text = (ROOT / PROJECT["readme"]).read_text(encoding="utf-8")
    assert [link for link in re.findall(r"\]\(([^)]*)\)", text) if not link.startswith("https://")] == []


def test_supported_pythons_are_said_everywhere() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert PROJECT["requires-python"] == f">=3.{ENVIRONMENTS.OLDEST}"
    assert f"(3, {ENVIRONMENTS.OLDEST}) <= sys.version_info[:2] <= (3, {ENVIRONMENTS.NEWEST})" in makefile
    for page in ("README.md", "CONTRIBUTING.md", "docs/tutorial.md", "docs/troubleshooting.md"):
        assert f"3.{ENVIRONMENTS.OLDEST} to 3.{ENVIRONMENTS.NEWEST}" in (ROOT / page).read_text(encoding="utf-8"), page


def test_every_extra_for_users_is_explained() -> None:
    text = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    for extra in set(PROJECT["optional-dependencies"]) - {"test", "docs", "dev", "bench"}:
        assert f"`{extra}`" in text, extra
