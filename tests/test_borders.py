"""The borders of docs/architecture.md: what importing a room loads, and which rooms each room may import."""

import ast
import pkgutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import plantmodels

ROOT = Path(__file__).resolve().parents[1]

GROUND = {"arrays", "errors", "extras", "foreign_text", "plain_yaml"}
SERVING = GROUND | {"bundle", "serve"}
READING = SERVING | {"data", "checkpoint"}
PREPARING = READING | {"ood", "export"}

ROOMS = {
    "arrays": set(),
    "errors": GROUND,
    "extras": set(),
    "foreign_text": set(),
    "plain_yaml": {"foreign_text"},
    "bundle": GROUND | {"bundle"},
    "serve": SERVING,
    "service": SERVING | {"service"},
    "report": GROUND | {"bundle", "report"},
    "compare": GROUND | {"bundle", "report", "compare"},
    "data": SERVING | {"data"},
    "ood": SERVING | {"data", "ood"},
    "checkpoint": READING,
    "export": PREPARING,
    "training": PREPARING | {"training", "report"},  # the style of its curves, and the limit of a file's size
    "verify": PREPARING | {"verify", "report"},
}
"""Which rooms of `plantmodels` each room may import."""

PLUGIN_ROOMS = {
    "_mlflow_compat": (set(), {"_mlflow_compat"}),
    "environment": (set(), {"environment"}),
    "names": (GROUND, {"_mlflow_compat", "names"}),
    "servers": (GROUND, {"_mlflow_compat", "environment", "servers"}),
    "required": (GROUND, {"required"}),
    "project_run": (GROUND, {"servers", "project_run"}),
    "loading": (SERVING, {"loading"}),  # consumers have MLflow from 2.17 on, and often mlflow-skinny
    "flavor": (SERVING, {"loading", "flavor"}),
    "registry": (GROUND | {"bundle", "report"}, {"_mlflow_compat", "names", "loading", "registry"}),
    "registry_store": (GROUND, {"_mlflow_compat", "registry", "required"}),
    "checking": (SERVING | {"report", "verify"}, {"_mlflow_compat", "loading", "flavor", "registry", "checking"}),
    "jobs": (
        {*ROOMS, "cli"},
        {"_mlflow_compat", "environment", "names", "servers", "required", "loading", "flavor", "jobs"},
    ),
}
"""Which rooms of `plantmodels`, and which of `mlflow_plugins`, each room of `mlflow_plugins` may import."""

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


@pytest.mark.parametrize("program", ["plantmodels.cli", "mlflow_plugins.cli", "mlflow_plugins.jobs.__main__"])
def test_help_is_quick_because_the_command_lines_load_nothing_heavy(program: str) -> None:
    assert not loaded_by(program) & (HEAVY | {"onnxruntime", "tqdm"})


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


def rooms_used(path: Path, package: str = "plantmodels") -> set[str]:
    parts = (module.split(".") for module in imported_modules(path))
    return {part[1] for part in parts if part[0] == package and len(part) > 1} - {"__version__"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def room_of(path: Path, package: str) -> str:
    return path.relative_to(ROOT / package).parts[0].removesuffix(".py")


ABOVE_ALL_ROOMS = ("__init__", "__main__", "cli")


@pytest.mark.parametrize("path", sources("plantmodels"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_downwards_only(path: Path) -> None:
    room = room_of(path, "plantmodels")
    if room in ABOVE_ALL_ROOMS:
        return

    assert rooms_used(path) <= ROOMS[room]


@pytest.mark.parametrize("path", sources("mlflow_plugins"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_plugins_import_the_rooms_below_them_only(path: Path) -> None:
    room = room_of(path, "mlflow_plugins")
    if room in ABOVE_ALL_ROOMS:
        return

    library, plugins = PLUGIN_ROOMS[room]
    assert rooms_used(path) <= library
    assert rooms_used(path, "mlflow_plugins") <= plugins


@pytest.mark.parametrize("path", sources("plantmodels"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_mlflow_is_imported_at_the_edge_only(path: Path) -> None:
    assert not {module for module in imported_modules(path) if module.split(".")[0] in ("mlflow", "mlflow_plugins")}


def test_the_direction_is_checked_at_all(tmp_path: Path) -> None:
    upward = tmp_path / "upward.py"
    upward.write_text("def f():\n    from plantmodels import verify\n    import plantmodels.export.bundle\n")

    assert rooms_used(upward) == {"verify", "export"}
    assert not rooms_used(upward) <= ROOMS["serve"]
    assert rooms_used(upward) <= ROOMS["verify"]


@pytest.mark.parametrize("package", ["plantmodels", "mlflow_plugins"])
def test_no_file_is_over_400_lines_and_no_folder_over_14_files(package: str) -> None:
    long = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(package)}
    folders = Counter(path.parent.relative_to(ROOT).as_posix() for path in sources(package))

    assert not {name: lines for name, lines in long.items() if lines > 400}
    assert not {folder: files for folder, files in folders.items() if files > 14}
