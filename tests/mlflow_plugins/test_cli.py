"""`plantmodels-registry` and `python -m mlflow_plugins.jobs`, as they are typed."""

from pathlib import Path

from click.testing import CliRunner, Result
from mlflow import MlflowClient

from mlflow_plugins.cli import main as registry
from mlflow_plugins.jobs.__main__ import main as jobs
from plantmodels.cli import main as plantmodels


def run(*arguments: object) -> Result:
    return CliRunner().invoke(jobs, [str(argument) for argument in arguments])


def test_the_two_programs_for_people_share_compare_alone() -> None:
    assert set(registry.commands) & set(plantmodels.commands) == {"compare"}
    assert set(registry.commands) & set(jobs.commands) == set()


def test_register_names_the_version_its_gates_and_the_next_step(verified_bundle: Path) -> None:
    result = run("register", "--bundle", verified_bundle, "--name", "leaves")
    assert result.exit_code == 0, result.output
    assert "registered models:/leaves/1; gates not passed: " in result.stdout
    assert "The INT8 model names the right species for " in result.stdout
    assert "plantmodels-registry waive leaves 1 " in result.stdout
    assert 'set_registered_model_alias("leaves", "production", "1")' in result.stdout


def test_known_error_is_one_line_and_fails_the_run(tmp_path: Path, tiny_bundle) -> None:
    result = run("run", "--checkpoint", tmp_path / "no.ckpt", "--data", tiny_bundle.data, "--non-plants", "")
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1 and "no.ckpt" in lines[0]
    assert [entry.info.status for entry in MlflowClient().search_runs(["0"])] == ["FAILED"]


def test_an_example_that_does_not_exist_registers_nothing(tmp_path: Path, verified_bundle: Path) -> None:
    result = run("register", "--bundle", verified_bundle, "--example", tmp_path / "absent.jpg")
    assert result.exit_code == 1 and "absent.jpg: no such image" in result.stderr
    assert MlflowClient().search_registered_models() == []
