"""Lets `mlflow run` of this project say at once that a server is down, before MLflow repeats each request for minutes.

MLflow itself creates the run, so no code of a job is reached before. This is a plugin that MLflow asks for the default
experiment and for headers of each request. It answers neither; it only looks at the servers, once, and only in a
process that runs this project.

>>> ProjectRunCheck().in_context()
False
"""

import sys
from pathlib import Path
from typing import Final

_NAME: Final = "name: plantmodels"
"""The first line of this project's MLproject."""

_LIMIT_S: Final = 4.0
"""Longest wait for one answer. The command `mlflow` takes five seconds to import before it asks."""


class ProjectRunCheck:
    """A plugin of MLflow for default experiments and for request headers."""

    _is_done = False

    def in_context(self) -> bool:
        """Return False. The first call in an `mlflow run` of this project ends the process if a server is down.

        Raises:
            SystemExit: a server cannot be used; one line on standard error says which, and why.
        """
        if not ProjectRunCheck._is_done:
            ProjectRunCheck._is_done = True  # the check itself sends requests
            if is_run_of_this_project(sys.argv):
                _check()
        return False

    def get_experiment_id(self) -> str:
        """Return the default experiment; never called, as this plugin has none."""
        return "0"

    def request_headers(self) -> dict[str, str]:
        """Return no headers; never called."""
        return {}


def is_run_of_this_project(arguments: list[str]) -> bool:
    """Return whether a command line is `mlflow run` with a folder of this project."""
    program, *others = arguments or [""]
    is_mlflow = Path(program).name == "mlflow" or Path(program).parts[-2:] == ("mlflow", "__main__.py")
    if not is_mlflow or "run" not in others:
        return False
    return any(_is_this_project(Path(word)) for word in others[others.index("run") + 1 :])


def _is_this_project(folder: Path) -> bool:
    try:
        with (folder / "MLproject").open(encoding="utf-8") as file:
            return file.readline().strip() == _NAME
    except (OSError, ValueError):
        return False


def _check() -> None:
    from mlflow_plugins.servers import check_servers
    from plantmodels.errors import RegistrationError

    try:
        check_servers(creates=True, limit_s=_LIMIT_S)
    except RegistrationError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
