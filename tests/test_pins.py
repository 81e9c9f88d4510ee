"""The lists of pins say what pyproject.toml asks for, and each list holds only what it is for."""

import importlib.util
import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import requires, version
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def load_lock() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", ROOT / ".ci" / "lock.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOCK = load_lock()


def pins_of(path: Path) -> dict[str, str]:
    pins = [pin.split("==") for pin in LOCK.read_pins(path)]
    assert len({name for name, _ in pins}) == len(pins)
    return {canonicalize_name(name): pin for name, pin in pins}


def asked_for(extras: Iterable[str]) -> list[Requirement]:
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(text) for requirements in lists for text in requirements]


def with_dependencies(requirements: Iterable[Requirement]) -> set[str]:
    """Names of these packages and of all that they need, as the installed packages state it."""
    found: set[str] = set()
    left = [(requirement, "") for requirement in requirements]
    seen: set[tuple[str, str]] = set()
    while left:
        requirement, extra = left.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found.add(name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in seen and not LOCK.BROUGHT_BY_TORCH.match(f"{name}=="):
                seen.add((name, wanted))
                left += [(Requirement(text), wanted) for text in requires(name) or ()]
    return {name for name in found if not LOCK.BROUGHT_BY_TORCH.match(f"{name}==")}


RUN = pins_of(LOCK.CONDA)
DEVELOPMENT = pins_of(LOCK.DEVELOPMENT)
BENCHMARKS = pins_of(LOCK.BENCHMARKS)


@pytest.mark.parametrize(
    ("extras", "pins"),
    [
        (LOCK.RUN_EXTRAS, RUN),
        (LOCK.DEVELOPMENT_EXTRAS, RUN | DEVELOPMENT),
        (LOCK.BENCHMARK_EXTRAS, RUN | BENCHMARKS),
    ],
    ids=["conda.yaml", "requirements-dev.txt", "benchmarks"],
)
def test_every_direct_dependency_is_pinned_as_pyproject_allows(extras: tuple[str, ...], pins: dict[str, str]) -> None:
    for requirement in asked_for(extras):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_every_extra_is_in_one_list() -> None:
    extras = [*LOCK.RUN_EXTRAS, *LOCK.DEVELOPMENT_EXTRAS, *LOCK.BENCHMARK_EXTRAS]
    assert sorted(extras) == sorted(PROJECT["optional-dependencies"])


def test_mlflow_run_installs_what_it_needs_and_nothing_else() -> None:
    """No test tools, no signing, no browser."""
    assert set(RUN) == with_dependencies(asked_for(LOCK.RUN_EXTRAS))


def test_the_development_list_is_what_the_other_extras_need_beyond_it() -> None:
    assert set(DEVELOPMENT) == with_dependencies(asked_for(LOCK.DEVELOPMENT_EXTRAS)) - set(RUN)


def test_the_pins_are_installed_and_agree_between_the_lists() -> None:
    assert {name: version(name) for name in RUN | DEVELOPMENT} == RUN | DEVELOPMENT
    assert not set(DEVELOPMENT) & set(RUN) and not set(BENCHMARKS) & set(RUN)
    assert all(DEVELOPMENT[name] == BENCHMARKS[name] for name in set(DEVELOPMENT) & set(BENCHMARKS))


@pytest.mark.parametrize("path", [LOCK.CONDA, LOCK.DEVELOPMENT, LOCK.BENCHMARKS], ids=lambda path: path.name)
def test_a_list_holds_pins_and_names_no_address(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if re.fullmatch(r"(      - )?[\w.-]+==[\w.]+", line)]
    rest = path.name == "conda.yaml" and LOCK.CONDA_HEAD.splitlines()

    assert len(pins) == len(LOCK.read_pins(path)) > 0
    assert [line for line in lines if line not in pins and not line.startswith("#")] == [
        line for line in rest or [] if not line.startswith("#")
    ]
    assert "://" not in path.read_text(encoding="utf-8")
