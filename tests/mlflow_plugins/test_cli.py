from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from mlflow_plugins.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help_names_every_option(command: str) -> None:
    assert run(command, "--help").exit_code == 0
    assert all(option.help for option in main.commands[command].params if isinstance(option, click.Option))


def test_register_prints_the_uri(verified_bundle: Path) -> None:
    result = run("register", "--out", verified_bundle, "--name", "leaves")
    assert result.exit_code == 0, result.output
    assert "registered models:/leaves/1" in result.stdout


def test_known_error_is_one_line_and_fails_the_run(tmp_path: Path, tiny_bundle) -> None:
    result = run("run", "--checkpoint", tmp_path / "no.ckpt", "--data", tiny_bundle.data, "--non-plants", "")
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1 and "no.ckpt" in lines[0]
    assert [entry.info.status for entry in MlflowClient().search_runs(["0"])] == ["FAILED"]
