"""What `--help` says: every command and option is explained by sentences, and every default stands once."""

import click
import pytest
from click.testing import CliRunner

from mlflow_plugins.cli import main as registry
from mlflow_plugins.jobs.__main__ import main as jobs
from mlflow_plugins.jobs.requests import JobRequest, ScoreRequest
from plantmodels.cli import main as plantmodels
from plantmodels.serve.loading import LoadOptions
from plantmodels.training.recipe import Recipe
from plantmodels.training.requests import DistillRequest, TrainRequest

PROGRAMS = {"plantmodels": plantmodels, "plantmodels-registry": registry, "jobs": jobs}
COMMANDS = [(program, name) for program, group in PROGRAMS.items() for name in group.commands]


def options_of(program: str, command: str) -> dict[str, click.Option]:
    parameters = PROGRAMS[program].commands[command].params
    return {option.name: option for option in parameters if isinstance(option, click.Option) and option.name}


def is_sentence(text: str | None) -> bool:
    return bool(text) and (text[0].isupper() or text[0].isdigit()) and text.rstrip().endswith(".")


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_every_command_and_option_is_explained_by_sentences(program: str, command: str) -> None:
    result = CliRunner().invoke(PROGRAMS[program], [command, "--help"])
    assert result.exit_code == 0
    assert is_sentence(PROGRAMS[program].commands[command].help)
    assert [name for name, option in options_of(program, command).items() if not is_sentence(option.help)] == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_is_explained_by_sentences(program: str) -> None:
    assert is_sentence(PROGRAMS[program].help)
    assert CliRunner().invoke(PROGRAMS[program], ["--help"]).exit_code == 0


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_the_bundle_is_spelled_the_same_everywhere(program: str, command: str) -> None:
    parameters = {parameter.name: parameter for parameter in PROGRAMS[program].commands[command].params}
    assert "out" not in parameters or command in ("train", "distill")
    if "bundle" in parameters:
        assert parameters["bundle"].opts == ["--bundle"] and str(parameters["bundle"].default) == "public/models"


@pytest.mark.parametrize(
    ("program", "command", "library"),
    [
        ("plantmodels", "predict", LoadOptions),
        ("plantmodels", "train", TrainRequest),
        ("plantmodels", "distill", DistillRequest),
        ("jobs", "train", TrainRequest),
        ("jobs", "distill", DistillRequest),
        ("jobs", "run", JobRequest),
        ("jobs", "export", JobRequest),
        ("jobs", "verify", JobRequest),
        ("jobs", "score", ScoreRequest),
    ],
)
def test_a_default_is_the_library_s(program: str, command: str, library: type) -> None:
    missing = {"", ()}
    compared = 0
    for name, option in options_of(program, command).items():
        if not option.required and hasattr(library, name):
            expected = getattr(library, name)
            assert option.default == expected or (option.default in missing and not expected), name
            compared += 1
    assert compared


def test_the_defaults_of_a_training_are_its_recipe_s() -> None:
    for name in ("batch_size", "learning_rate", "patience", "seed", "scale_patches"):
        assert getattr(TrainRequest, name) == getattr(Recipe, name)
