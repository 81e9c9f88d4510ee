"""Who may promote, and how many users must ask for a promotion before it happens.

A request counts for one version with exactly these files, whose gates and waivers are as they were, and for one alias.
It counts for seven days, or until the alias moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import func, select

from mlflow_plugins.registry.audit import AuditLog, name_user, read_clock, read_user
from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.guard.names import fold
from mlflow_plugins.registry.records.identity import Identities
from mlflow_plugins.registry.records.tables import APPROVALS, Records

VALID_DAYS: Final = 7
"""How long a request counts, so that nobody completes one that was long forgotten."""

_NO_USERS: Final = "the server does not know its users; start it with `--app-name basic-auth`"


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        name: registered model.
        version: version number.
        alias: the protected alias that shall name the version.
        action: what was asked, as the audit records it.
        model_sha256: digest of all files of the version.
        state: why the gates let the version through, with all waivers.
    """

    name: str
    version: str
    alias: str
    action: str
    model_sha256: str
    state: str


class Approvals:
    """Knows who may promote, and collects the requests for promotions that need several users."""

    def __init__(self, records: Records, identities: Identities, config: RegistryConfig, audit: AuditLog) -> None:
        """Take the registry's tables, the identities of its models, its configuration and its audit."""
        self._records = records
        self._identities = identities
        self._config = config
        self._audit = audit

    def check_promoter(self, name: str, version: str | None, action: str) -> None:
        """Refuse whoever is not one of the promoters, if the configuration lists any.

        Raises:
            MlflowException: PERMISSION_DENIED, with the list.
        """
        allowed, user = self._config.promoters, read_user()
        if not allowed or user in allowed:
            return
        reason = f"{name_user(user)} is not one of the promoters: {', '.join(allowed)}"
        raise self._audit.refuse(name, version, action, reason if user else f"{reason} ({_NO_USERS})")

    def collect(self, request: Request) -> str:
        """Write a request down, and return who asked, once enough different users did. Callers hold the model's lock.

        Returns:
            Who asked, for the audit; "" if one user is enough.

        Raises:
            MlflowException: PERMISSION_DENIED; more users must ask, or the server does not know who asks.
        """
        needed = self._config.approvals
        if needed == 1:
            return ""
        user = read_user()
        if user is None:
            reason = f"{needed} different users must ask for it, and {_NO_USERS}"
            raise self._audit.refuse(request.name, request.version, request.action, reason)
        before = self._read_users(request)
        users = _list_different([*before, user])
        if len(users) < needed:
            if len(users) > len(before):
                self._write(request, user)
            raise self._audit.refuse(
                request.name, request.version, request.action, _explain(user, before, len(users), needed)
            )
        self._write(request, None)
        return f"approved by {', '.join(users)}"

    def _read_users(self, request: Request) -> list[str]:
        """Return the different users who asked for this before."""
        since = (datetime.now(UTC) - timedelta(days=VALID_DAYS)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        same_alias = (
            APPROVALS.c.model_id == self._identities.find(request.name),
            APPROVALS.c.alias == request.alias,
        )
        done = select(func.coalesce(func.max(APPROVALS.c.id), 0)).where(*same_alias, APPROVALS.c.user.is_(None))
        query = select(APPROVALS).where(*same_alias, APPROVALS.c.id > done.scalar_subquery(), APPROVALS.c.at > since)
        with self._records.begin() as connection:
            rows = connection.execute(query.order_by(APPROVALS.c.id)).all()
        wanted = (request.version, request.model_sha256, request.state)
        return _list_different([row.user for row in rows if (str(row.version), row.model_sha256, row.state) == wanted])

    def _write(self, request: Request, user: str | None) -> None:
        """Add a row: a user's request, or with None the end of all requests for this alias so far."""
        row = {
            "workspace": self._identities.get_workspace(),
            "model_id": self._identities.find(request.name),
            "alias": request.alias,
            "version": int(request.version),
            "at": read_clock(),
            "user": user,
            "model_sha256": request.model_sha256,
            "state": request.state,
        }
        with self._records.begin() as connection:
            connection.execute(APPROVALS.insert().values(row))


def _list_different(users: Sequence[str]) -> list[str]:
    """Return users without repetitions. Some databases let a user log in under another spelling of the name."""
    return list({fold(user): user for user in reversed(users)}.values())[::-1]


def _explain(user: str, before: Sequence[str], count: int, needed: int) -> str:
    missing = needed - count
    more = "one more user must ask" if missing == 1 else f"{missing} more users must ask"
    asked = f"{user} asked for it before" if count == len(before) else f"{user}'s request is noted"
    return f"{asked} (approval {count} of {needed}); {more} for it within {VALID_DAYS} days"
