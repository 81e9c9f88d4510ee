"""The configuration of a gated registry, which only the server's environment sets.

>>> RegistryConfig(guarded=("prod-*",)).guards("Pröd-plants")
True
>>> RegistryConfig(unguarded=("scratch-*",)).exempts("Scratch-plants")
False
"""

import fnmatch
import os
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_plugins.registry.guard.names import fold
from plantmodels.report.policy import GatePolicy, read_policy


@dataclass(frozen=True)
class RegistryConfig:
    """What a server guards, who may waive gates, and the limits that it applies.

    Attributes:
        guarded: patterns of model names that are always guarded (`PLANTMODELS_GUARDED`, separated by commas).
        unguarded: patterns of model names that are never guarded, whatever their versions hold
            (`PLANTMODELS_UNGUARDED`, separated by commas). They outweigh `guarded`.
        waiver_users: users who may waive a gate (`PLANTMODELS_WAIVER_USERS`, separated by commas). If empty, everybody
            who may edit a version may waive.
        policy: limits that every report must meet, whatever limits it was made with (`PLANTMODELS_POLICY`, the path
            of a `gates.toml`). The default limits apply if it is not given.
        database_uri: the database that holds the registry's own tables (`PLANTMODELS_DATABASE_URI`). If None, they
            are beside MLflow's.
    """

    guarded: tuple[str, ...] = ()
    unguarded: tuple[str, ...] = ()
    waiver_users: tuple[str, ...] = ()
    policy: GatePolicy = field(default_factory=GatePolicy)
    database_uri: str | None = None

    @classmethod
    def from_environment(cls) -> "RegistryConfig":
        """Return the configuration that the environment variables describe.

        Raises:
            PolicyError: the policy file cannot be read or is not a gate policy.
        """
        policy = os.environ.get("PLANTMODELS_POLICY")
        return cls(
            guarded=_split(os.environ.get("PLANTMODELS_GUARDED", "")),
            unguarded=_split(os.environ.get("PLANTMODELS_UNGUARDED", "")),
            waiver_users=_split(os.environ.get("PLANTMODELS_WAIVER_USERS", "")),
            policy=read_policy(Path(policy) if policy else None),
            database_uri=os.environ.get("PLANTMODELS_DATABASE_URI") or None,
        )

    def guards(self, name: str) -> bool:
        """Return whether the configuration lists a model name.

        Case, accents, width and invisible characters are ignored, because some databases and all readers ignore them.
        """
        return any(fnmatch.fnmatchcase(fold(name), fold(pattern)) for pattern in self.guarded)

    def exempts(self, name: str) -> bool:
        """Return whether the configuration exempts a model name, which must be spelled as the pattern is."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.unguarded)


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
