import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_plugins import required
from mlflow_plugins.registry_store import build_store
from plantmodels.errors import RegistryError
from tests.fixtures.registry import run_registry

LINE = "MLflow 3.1.4 is installed; this needs 3.17.2 or newer: pip install --upgrade 'plantmodels[registry]'"


@pytest.mark.parametrize("version", ["3.17.2", "3.18.0", "4.0.0rc1", "3.17.2.post1"])
def test_a_version_that_is_new_enough_is_accepted(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(required, "version", lambda _: version)
    required.check_mlflow()


@pytest.mark.parametrize("version", ["3.17.1", "3.16.0", "3.9.0", "2.22.5"])
def test_an_older_version_is_refused_with_the_one_that_is_needed(monkeypatch, version):
    monkeypatch.setattr(required, "version", lambda _: version)
    with pytest.raises(RegistryError, match=rf"^MLflow {version} is installed; this needs 3\.17\.2 or newer"):
        required.check_mlflow()


def test_a_missing_mlflow_is_said_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> str:
        raise required.PackageNotFoundError(name)

    monkeypatch.setattr(required, "version", find)
    with pytest.raises(RegistryError, match=r"^MLflow is not installed; this needs"):
        required.check_mlflow()


def test_the_command_and_the_store_say_it_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(required, "version", lambda _: "3.1.4")
    result = run_registry("audit", "plant-disease")
    assert (result.exit_code, result.output) == (1, f"Error: {LINE}\n")
    with pytest.raises(RegistryError, match=r"^MLflow 3\.1\.4 is installed"):
        build_store("plantmodels:sqlite:///mlflow.db")


def test_jobs_say_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from mlflow_plugins.jobs.__main__ import main

    monkeypatch.setattr(required, "version", lambda _: "3.1.4")
    result = CliRunner().invoke(main, ["show", "plant-disease"])
    assert (result.exit_code, result.output) == (1, f"Error: {LINE}\n")


def test_a_server_that_cannot_start_says_one_line(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    stores = ["--backend-store-uri", database, "--registry-store-uri", f"plantmodels:{database}"]
    command = [sys.executable, "-m", "mlflow", "server", *stores]
    environment = os.environ | {"PLANTMODELS_APPROVALS": "two", "MLFLOW_LOGGING_LEVEL": "ERROR"}
    result = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=600, check=False)
    line = "Error: PLANTMODELS_APPROVALS must be a number of users, such as 2, got 'two'"
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, line)
    assert "Traceback" not in result.stderr
