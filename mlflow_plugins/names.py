r"""Checks names of registered models: MLflow must be able to register them, and to load their versions by URI.

>>> check_name("prod.plants.disease")
>>> name_logged_model("prod.plants.disease"), filter_by_name("farmer's choice")
('prod-plants-disease', 'name = "farmer\'s choice"')
"""

import re
from typing import Final

from mlflow.exceptions import MlflowException

from mlflow_plugins._mlflow_compat import check_registered_name
from plantmodels.errors import RegistrationError

_UNLOADABLE: Final = {
    "@": "in models:/NAME@ALIAS it begins the alias",
    "#": "in a URI it begins the fragment",
    "?": "in a URI it begins the query",
    "\\": "MLflow takes it for a slash",
}
"""Characters that MLflow registers and that no `models:/` URI can contain, and why."""

_NOT_IN_LOGGED_MODELS: Final = re.compile(r"[/:.%\"']")
"""MLflow refuses these characters in the name of a logged model, though most are legal in a registered name."""


def check_name(name: str) -> None:
    """Refuse a name that MLflow cannot register, or whose versions it could not load by their URI.

    Raises:
        RegistrationError: says which character is in the way, and why.
    """
    refused = f"{name!r} cannot name a registered model"
    try:
        check_registered_name(name)
    except MlflowException as error:
        raise RegistrationError(f"{refused}: {error.message}") from error
    for character, reason in _UNLOADABLE.items():
        if character in name:
            raise RegistrationError(f"{refused}: {character} is not possible, because {reason}")
    if name != name.strip() or not name.isprintable():
        raise RegistrationError(f"{refused}: expected printable text without spaces at its ends")
    if "'" in name and '"' in name:
        raise RegistrationError(f"{refused}: MLflow's search takes names with ' or with \", not with both")


def name_logged_model(name: str) -> str:
    """Return the name of the logged model behind a registered name; characters that it may not have become hyphens."""
    return _NOT_IN_LOGGED_MODELS.sub("-", name)


def filter_by_name(name: str) -> str:
    """Return the condition of MLflow's search that finds the versions of a registered model."""
    quote = '"' if "'" in name else "'"
    return f"name = {quote}{name}{quote}"
