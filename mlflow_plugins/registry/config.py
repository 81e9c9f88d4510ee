"""The configuration of a gated registry, which only the server's environment sets.

>>> RegistryConfig(guarded=("prod-*",)).guards("Pröd-plants")
True
>>> parse_owners("ood_recall=ada, bob; latency=carl")
{'ood_recall': ('ada', 'bob'), 'latency': ('carl',)}
>>> RegistryConfig(unguarded=("scratch-*",)).exempts("Scratch-plants")
False
"""

import fnmatch
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mlflow_plugins.registry.guard.names import fold
from mlflow_plugins.registry.tags import ALIAS
from plantmodels.errors import RegistryError
from plantmodels.report.gates import GATES
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
        aliases: protected aliases (`PLANTMODELS_ALIASES`, separated by commas); `production` always is one.
        promoters: users who may promote, and take out of Production (`PLANTMODELS_PROMOTERS`, separated by commas). If
            empty, everybody who may edit a version may promote.
        approvals: number of users who must ask for a promotion before it happens (`PLANTMODELS_APPROVALS`).
        gate_owners: gate to the users who alone may waive it (`PLANTMODELS_GATE_OWNERS`, such as
            `ood_recall=ada,bob;latency=carl`).
    """

    guarded: tuple[str, ...] = ()
    unguarded: tuple[str, ...] = ()
    waiver_users: tuple[str, ...] = ()
    policy: GatePolicy = field(default_factory=GatePolicy)
    database_uri: str | None = None
    aliases: tuple[str, ...] = (ALIAS,)
    promoters: tuple[str, ...] = ()
    approvals: int = 1
    gate_owners: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values that a server could not work with.

        Raises:
            RegistryError: an alias cannot be one, or fewer users may promote than must ask for a promotion.
        """
        for alias in self.aliases:
            if not _ALIAS.fullmatch(alias):
                raise RegistryError(
                    f"PLANTMODELS_ALIASES: {alias!r} cannot be an alias; expected lowercase letters, digits, _ and -, "
                    "and neither 'latest' nor a name such as 'v1'"
                )
        if self.approvals < 1:
            raise RegistryError(f"PLANTMODELS_APPROVALS must be at least 1, got {self.approvals}")
        if self.promoters and len(set(map(fold, self.promoters))) < self.approvals:
            raise RegistryError(
                f"PLANTMODELS_APPROVALS: {self.approvals} users must ask for a promotion, but PLANTMODELS_PROMOTERS "
                f"lists only {', '.join(self.promoters)}"
            )

    @classmethod
    def from_environment(cls) -> "RegistryConfig":
        """Return the configuration that the environment variables describe.

        Raises:
            PolicyError: the policy file cannot be read or is not a gate policy.
            RegistryError: another variable has a value that it cannot have.
        """
        policy = os.environ.get("PLANTMODELS_POLICY")
        return cls(
            guarded=_split(os.environ.get("PLANTMODELS_GUARDED", "")),
            unguarded=_split(os.environ.get("PLANTMODELS_UNGUARDED", "")),
            waiver_users=_split(os.environ.get("PLANTMODELS_WAIVER_USERS", "")),
            policy=read_policy(Path(policy) if policy else None),
            database_uri=os.environ.get("PLANTMODELS_DATABASE_URI") or None,
            aliases=tuple(dict.fromkeys((ALIAS, *_split(os.environ.get("PLANTMODELS_ALIASES", ""))))),
            promoters=_split(os.environ.get("PLANTMODELS_PROMOTERS", "")),
            approvals=_parse_approvals(os.environ.get("PLANTMODELS_APPROVALS", "1")),
            gate_owners=parse_owners(os.environ.get("PLANTMODELS_GATE_OWNERS", "")),
        )

    def guards(self, name: str) -> bool:
        """Return whether the configuration lists a model name.

        Case, accents, width and invisible characters are ignored, because some databases and all readers ignore them.
        """
        return any(fnmatch.fnmatchcase(fold(name), fold(pattern)) for pattern in self.guarded)

    def exempts(self, name: str) -> bool:
        """Return whether the configuration exempts a model name, which must be spelled as the pattern is."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.unguarded)


_ALIAS: Final = re.compile(r"(?!latest$|v\d+$)[a-z0-9_-]{1,255}")
"""What MLflow accepts as an alias, without capitals: databases differ in whether they tell them apart."""


def _parse_approvals(text: str) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,4}\s*", text):
        raise RegistryError(f"PLANTMODELS_APPROVALS must be a number of users, such as 2, got {text!r}")
    return int(text)


def parse_owners(text: str) -> dict[str, tuple[str, ...]]:
    """Return gate to owners, as `PLANTMODELS_GATE_OWNERS` names them: `ood_recall=ada,bob;latency=carl`.

    Raises:
        RegistryError: an entry has another form, names no gate, or names a gate a second time.
    """
    owners: dict[str, tuple[str, ...]] = {}
    for entry in filter(str.strip, text.split(";")):
        gate, _, users = (part.strip() for part in entry.partition("="))
        if gate not in GATES or gate in owners or not _split(users):
            raise RegistryError(
                f"PLANTMODELS_GATE_OWNERS: expected entries such as 'ood_recall=ada,bob', separated by semicolons and "
                f"each gate once, got {entry.strip()!r}; gates are {', '.join(GATES)}"
            )
        owners[gate] = _split(users)
    return owners


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
