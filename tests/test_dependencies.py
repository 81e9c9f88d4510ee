"""pyproject.toml declares what the code imports, and each command names the extra that it lacks."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import plantmodels
from plantmodels import extras
from plantmodels.extras import EXTRAS, describe_missing, read_version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = {"plantmodels", "mlflow_plugins", "examples", "benchmarks", "reliability", "tests", "docs"}
FOR_USERS = ("cpu", "parquet", "build", "registry", "spark", "server", "service", "signing", "heic")

DISTRIBUTIONS = {
    module: {canonicalize_name(name) for name in names} for module, names in packages_distributions().items()
}
"""The installed packages that bring each module."""


def declared(*names: str) -> set[str]:
    lists = [PROJECT["dependencies"] if name == "base" else PROJECT["optional-dependencies"][name] for name in names]
    return {canonicalize_name(Requirement(text).name) for texts in lists for text in texts}


def imported_modules(*folders: str) -> dict[str, str]:
    """Modules of others that these folders import anywhere, and a file that does."""
    found: dict[str, str] = {}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.partition(".")[0]: path.relative_to(ROOT).as_posix() for name in names}
    return {name: path for name, path in found.items() if name not in OWN | set(sys.stdlib_module_names)}


def test_each_import_is_declared_in_the_base_or_in_the_extras_that_its_error_names() -> None:
    wrong = {}
    for module, path in imported_modules("plantmodels", "mlflow_plugins").items():
        lists = EXTRAS.get(module, ("base",))
        if not all(DISTRIBUTIONS[module] & declared(name) for name in lists):
            wrong[module] = f"{path}: expected in {lists}"
    assert wrong == {}


def test_the_extras_of_a_module_are_those_that_declare_it() -> None:
    found = {m: {extra for extra in FOR_USERS if DISTRIBUTIONS[m] & declared(extra)} for m in EXTRAS}
    assert found == {module: set(names) for module, names in EXTRAS.items()}


def test_every_package_of_an_extra_has_an_error_that_names_it() -> None:
    named = set().union(*(DISTRIBUTIONS[module] for module in EXTRAS))
    assert declared(*FOR_USERS) - declared("base") - named == set()


def test_tests_examples_and_benchmarks_import_what_an_extra_declares() -> None:
    everything = declared("base", *PROJECT["optional-dependencies"])
    modules = imported_modules("tests", "examples", "benchmarks", "reliability", ".ci")
    undeclared = {
        module: path
        for module, path in modules.items()
        if module in DISTRIBUTIONS and not DISTRIBUTIONS[module] & everything  # nncf has an environment of its own
    }
    assert undeclared == {}


def test_a_declared_package_that_the_base_does_not_import_would_be_found() -> None:
    used = set().union(*(DISTRIBUTIONS[module] for module in imported_modules("plantmodels", "mlflow_plugins")))
    assert declared("base") - used == set()


@pytest.mark.parametrize(
    ("module", "preferred", "line"),
    [
        ("torch", "", "torch is not installed; the extra build brings it: pip install 'plantmodels\\[build\\]'"),
        ("onnx.helper", "", "onnx.helper is not installed; the extra build brings it"),
        ("pandas", "registry", "pandas is not installed; the extra registry brings it"),
        ("pandas", "spark", "pandas is not installed; the extra build brings it"),
        ("onnxruntime", "", "the extra cpu brings it: .*, or install the ONNX Runtime of your hardware"),
    ],
)
def test_a_missing_module_names_its_extra(module: str, preferred: str, line: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=line):
        raise ModuleNotFoundError(describe_missing(ModuleNotFoundError("x", name=module), preferred))


@pytest.mark.parametrize("error", [ModuleNotFoundError("x", name="plantmodels.wrong"), ImportError("x", name="torch")])
def test_a_bug_and_a_broken_library_are_no_missing_extra(error: ImportError) -> None:
    assert describe_missing(error) is None


def test_a_public_name_whose_library_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(plantmodels, "import_module", fail)
    monkeypatch.delitem(vars(plantmodels), "export_bundle", raising=False)
    missing = "torch"
    with pytest.raises(ModuleNotFoundError, match=r"^export_bundle: torch is not installed; the extra build brings it"):
        _ = plantmodels.export_bundle
    missing = "plantmodels.wrong"
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'plantmodels\.wrong'$"):
        _ = plantmodels.export_bundle


def test_each_build_of_onnx_runtime_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> str:
        if name == "onnxruntime-openvino":
            return "1.24.1"
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "version", find)
    assert read_version("onnxruntime") == "1.24.1"
    with pytest.raises(PackageNotFoundError, match="numpy"):
        read_version("numpy")


HIDING = """
import json, sys
hidden, commands = json.loads(sys.argv[1])

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Hiding, sys.meta_path)
from click.testing import CliRunner
from mlflow_plugins.cli import main as registry
from mlflow_plugins.jobs.__main__ import main as jobs
from plantmodels.cli import main
programs = {"plantmodels": main, "plantmodels-registry": registry, "jobs": jobs}
results = [CliRunner().invoke(programs[program], words) for program, *words in commands]
print("\\n" + json.dumps([[result.exit_code, result.output, repr(result.exception)] for result in results]))
"""


def run_without(modules: Mapping[str, object], commands: list[list[str]]) -> list[tuple[int, str]]:
    """Exit status and output of each command in a process that has none of these modules."""
    command = [sys.executable, "-c", HIDING, json.dumps([list(modules), [list(map(str, c)) for c in commands]])]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stderr
    return [
        (status, output if output.startswith(("Error", "{")) else f"{output} {problem}")
        for status, output, problem in json.loads(ran.stdout.splitlines()[-1])
    ]


def test_every_command_without_an_extra_says_so_in_one_line(tiny_bundle, tmp_path: Path) -> None:
    checkpoint, data, bundle = tiny_bundle.checkpoint, tiny_bundle.data, tiny_bundle.bundle
    leaf = next(data.glob("val/*/*.jpg"))
    out = tmp_path / "out"
    (key := tmp_path / "key.pem").write_text("key")
    build = {
        "export": ["--checkpoint", checkpoint, "--data", data, "--bundle", out],
        "describe": [checkpoint],
        "verify": ["--checkpoint", checkpoint, "--data", data, "--bundle", bundle],
        "train": ["--data", data, "--out", tmp_path / "a.ckpt"],
        "distill": ["--teacher", checkpoint, "--data", data, "--out", tmp_path / "b.ckpt"],
    }
    others = [
        ["plantmodels", "predict", leaf, "--bundle", bundle, "--output", tmp_path / "scores.parquet"],
        ["plantmodels", "sign", "--bundle", bundle, "--private-key", key],
        ["plantmodels", "predict", leaf, "--bundle", bundle],
    ]
    commands = [["plantmodels", name, *words] for name, words in build.items()] + others
    results = run_without({name: 0 for name in EXTRAS if name != "onnxruntime"}, commands)
    for name, (status, output) in zip(build, results[: len(build)], strict=True):
        assert status == 1 and output.count("\n") == 1, output
        assert output.startswith(f"Error: {name}: ") and output.endswith("pip install 'plantmodels[build]'\n"), output
    (table, signing, served) = results[len(build) :]
    assert table[0] == 1 and table[1].startswith("Error: a .parquet file needs pyarrow; the extra parquet brings it")
    assert signing[0] == 1 and "the extra signing brings both: pip install 'plantmodels[signing]'" in signing[1]
    assert served[0] == 0 and json.loads(served[1])["error"] is None
    assert not out.exists()


def test_without_a_runtime_predict_names_the_extra_and_the_choice(tiny_bundle) -> None:
    ((status, output),) = run_without(
        {"onnxruntime": 0}, [["plantmodels", "predict", "a.jpg", "--bundle", str(tiny_bundle.bundle)]]
    )
    assert status == 1 and output.count("\n") == 1, output
    assert output.startswith("Error: predict: onnxruntime is not installed; the extra cpu brings it: pip install"), (
        output
    )


def test_registry_commands_and_jobs_without_their_libraries_name_the_extra(tiny_bundle) -> None:
    register = ["jobs", "register", "--name", "plants", "--bundle", str(tiny_bundle.bundle)]
    words = [["plantmodels-registry", "audit", "plants"], register]
    for status, output in run_without(dict.fromkeys(("mlflow", "sqlalchemy", "flask")), words):
        assert status == 1 and output.count("\n") == 1, output
        assert "is not installed; the extra registry brings it: pip install 'plantmodels[registry]'" in output
