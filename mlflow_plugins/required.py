"""Says in one line which MLflow is needed, where an older one is installed.

>>> check_mlflow()
"""

import re
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from plantmodels.errors import RegistryError

NEEDED: Final = "3.17.2"
"""The oldest MLflow that this project was tested with; 3.16 lacks names that the registry uses."""


def check_mlflow() -> None:
    """Raise if no MLflow is installed, or an older one than is needed.

    Raises:
        RegistryError: names the version that is installed and the one that is needed.
    """
    found = _find_version()
    if found is None or _read_numbers(found) < _read_numbers(NEEDED):
        what = "MLflow is not installed" if found is None else f"MLflow {found} is installed"
        raise RegistryError(f"{what}; this needs {NEEDED} or newer: pip install --upgrade 'plantmodels[registry]'")


def _find_version() -> str | None:
    for name in ("mlflow", "mlflow-skinny"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _read_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])
