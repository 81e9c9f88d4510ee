"""The configuration of a gated registry, which only the server's environment sets.

>>> RegistryConfig(guarded=("prod-*",)).guards("Prod-plants")
True
"""

import fnmatch
import os
from dataclasses import dataclass, field
from pathlib import Path

from plantmodels.report.policy import GatePolicy, read_policy


@dataclass(frozen=True)
class RegistryConfig:
    """What a server guards, who may waive gates, and the limits that it applies.

    Attributes:
        guarded: patterns of model names that are always guarded (`PLANTMODELS_GUARDED`, separated by commas).
        waiver_users: users who may waive a gate (`PLANTMODELS_WAIVER_USERS`, separated by commas). If empty, everybody
            who may edit a version may waive.
        policy: limits that every report must meet, whatever limits it was made with (`PLANTMODELS_POLICY`, the path
            of a `gates.toml`). The default limits apply if it is not given.
        database_uri: the database that holds the registry's own tables (`PLANTMODELS_DATABASE_URI`). If None, they
            are beside MLflow's.
    """

    guarded: tuple[str, ...] = ()
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
            _split(os.environ.get("PLANTMODELS_GUARDED", "")),
            _split(os.environ.get("PLANTMODELS_WAIVER_USERS", "")),
            read_policy(Path(policy) if policy else None),
            os.environ.get("PLANTMODELS_DATABASE_URI") or None,
        )

    def guards(self, name: str) -> bool:
        """Return whether the configuration guards a model name. Case is ignored, because some databases ignore it."""
        return any(fnmatch.fnmatchcase(name.casefold(), pattern.casefold()) for pattern in self.guarded)


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
