"""The borders of DESIGN.md: what importing a room loads, and in which direction the rooms import each other."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import plantmodels

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("errors", "bundle", "serve", "build", "verify")
"""From the ground up: a room imports itself and those before it."""

BUILD_AND_BELOW = ROOMS[: ROOMS.index("build") + 1]
HEAVY = {"torch", "torchvision", "timm", "onnx", "onnxscript", "scipy", "pandas", "matplotlib", "mlflow"}


def module_names(package: str = "plantmodels") -> list[str]:
    names = [module.name for module in pkgutil.walk_packages(plantmodels.__path__, "plantmodels.")]
    return [name for name in names if name == package or name.startswith(f"{package}.")]


def loaded_by(*names: str) -> set[str]:
    """Top-level packages that a fresh process has loaded after importing these modules."""
    code = f"import sys\nfor name in {names!r}: __import__(name)\nprint(*sorted(m.split('.')[0] for m in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


def test_serving_loads_nothing_heavy() -> None:
    loaded = loaded_by(*module_names("plantmodels.serve"))

    assert not loaded & HEAVY
    assert {"plantmodels", "numpy", "onnxruntime", "PIL"} <= loaded


def test_the_ground_floor_needs_numpy_only() -> None:
    loaded = loaded_by("plantmodels.errors", *module_names("plantmodels.bundle"))

    assert not loaded & (HEAVY | {"onnxruntime", "PIL", "tqdm", "click"})
    assert "numpy" in loaded


def test_help_is_quick_because_the_command_line_loads_no_room_but_the_ground_floor() -> None:
    assert not loaded_by("plantmodels.cli") & (HEAVY | {"onnxruntime"})


@pytest.mark.slow
def test_nothing_loads_mlflow() -> None:
    names = module_names()
    loaded = loaded_by(*names)

    assert "mlflow" not in loaded
    assert {"torch", "timm", "onnx", "scipy"} <= loaded, "then it would prove nothing"
    assert {f"plantmodels.{room}" for room in ROOMS} <= set(names)


def imported_modules(path: Path) -> set[str]:
    """Every module that a source file imports anywhere in it, functions included."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def rooms_used(path: Path) -> set[str]:
    parts = (module.split(".") for module in imported_modules(path))
    return {part[1] for part in parts if part[0] == "plantmodels" and len(part) > 1} - {"__version__"}


def allowed_rooms(room: str) -> set[str]:
    if room == "demo":
        return {*BUILD_AND_BELOW, "demo"}
    return set(ROOMS[: ROOMS.index(room) + 1])


SOURCES = sorted((ROOT / "plantmodels").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_downwards_only(path: Path) -> None:
    room = path.relative_to(ROOT / "plantmodels").parts[0].removesuffix(".py")
    if room in ("cli", "__init__", "__main__"):
        pytest.skip("above all rooms")

    assert rooms_used(path) <= allowed_rooms(room)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_mlflow_is_imported_at_the_edge_only(path: Path) -> None:
    assert not {module for module in imported_modules(path) if module.split(".")[0] in ("mlflow", "mlflow_plugins")}


def test_the_direction_is_checked_at_all(tmp_path: Path) -> None:
    upward = tmp_path / "upward.py"
    upward.write_text("def f():\n    from plantmodels import verify\n    import plantmodels.build.export\n")

    assert rooms_used(upward) == {"verify", "build"}
    assert not rooms_used(upward) <= allowed_rooms("serve")
    assert rooms_used(upward) <= allowed_rooms("verify")
