"""Reads, as a client, the audit of a registered model and which version was in Production at a given time."""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

from mlflow_plugins.registry.audit import Decision, DecisionQuery, name_user
from mlflow_plugins.registry.commands.questions import Question, ask, ask_about


def parse_time(text: str, *, is_end: bool = False) -> str:
    """Return a time as the audit writes it, in UTC.

    Args:
        text: ISO 8601, such as 2026-11-24T10:00 or 2026-11-24T10:00+01:00; UTC if it names no zone.
        is_end: whether a date alone means its last moment instead of its first.

    Raises:
        ValueError: it is not such a time.

    >>> parse_time("2026-11-24T10:00+01:00"), parse_time("2026-11-24", is_end=True)
    ('2026-11-24T09:00:00.000000Z', '2026-11-24T23:59:59.999999Z')
    """
    try:
        if len(text) == len("2026-11-24"):
            moment = datetime.combine(date.fromisoformat(text), time.max if is_end else time.min)
        else:
            moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a time such as 2026-11-24T10:00 or 2026-11-24") from error
    in_utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return in_utc.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def list_decisions(
    name: str, *, version: str | None = None, since: str | None = None, until: str | None = None
) -> list[Decision]:
    """Return the decisions about a registered model and its versions, deleted ones included, oldest first.

    Args:
        name: registered model; it may have been deleted.
        version: only decisions about this version.
        since: only decisions at this time or later, as `parse_time` returns it.
        until: only decisions at this time or earlier.

    Raises:
        RegistryError: there never was such a model, it is not a gated registry, or it cannot be reached.
    """
    return list(_read_pages(DecisionQuery(name, version=version, since=since, until=until)))


def _read_pages(query: DecisionQuery) -> Iterator[Decision]:
    while True:
        arguments = {key: value for key, value in dataclasses.asdict(query).items() if key != "name"}
        page = [_read_decision(document) for document in ask_about("audit", query.name, **arguments)]
        yield from page
        if len(page) < query.limit:
            return
        query = dataclasses.replace(query, beyond=page[-1].number)


def _read_decision(document: dict[str, Any]) -> Decision:
    known = {field.name for field in dataclasses.fields(Decision)}  # a newer server may say more
    return Decision(**{key: value for key, value in document.items() if key in known})


@dataclass(frozen=True)
class InProduction:
    """What was in Production at a time.

    Attributes:
        name: registered model.
        at: the time in UTC, ISO 8601.
        version: version number; None if nothing was in Production.
        since: when it was put there, or when the last version was taken out; None if there was never any.
        user: who did that; None if the server does not know its users.
        gates: what each gate measured at the last promotion until then; None if the audit does not say.
        reason: why that promotion was allowed: "all gates passed", or the waivers.
        manifest_sha256: digest of the version's manifest.
        unfinished: a change of Production that was allowed later and cut off by a crash; None if there is none.
    """

    name: str
    at: str
    version: str | None
    since: str | None
    user: str | None
    gates: tuple[Any, ...] | None
    reason: str | None
    manifest_sha256: str | None
    unfinished: Decision | None

    def to_lines(self) -> list[str]:
        """Return what people read."""
        if self.since is None:
            lines = [f"{self.name}: nothing had ever been in Production at {self.at}"]
        elif self.version is None:
            lines = [f"{self.name}: nothing was in Production at {self.at}"]
            lines.append(f"  since     {self.since}, when {name_user(self.user)} took the last version out")
        else:
            lines = [f"{self.name}: version {self.version} was in Production at {self.at}"]
            lines.append(f"  since     {self.since}, promoted by {name_user(self.user)}")
            lines.append(f"  manifest  {self.manifest_sha256}")
            lines.append(f"  allowed   {self.reason}")
            for gate in self.gates or ():
                lines.append(f"  gate      {gate['gate']}: {gate['status']}, {gate['measured']}, limit {gate['limit']}")
        if self.unfinished is not None:
            meant = f"version {self.unfinished.production}" if self.unfinished.production else "no version"
            lines.append(
                f"  note      at {self.unfinished.at} {meant} was allowed into Production, and the server stopped "
                f"before the change was complete; run plantmodels-registry reconcile {self.name}"
            )
        return lines


def find_production(name: str, at: str) -> InProduction:
    """Return what was in Production at a time.

    Args:
        name: registered model; it may have been deleted.
        at: the time, as `parse_time` returns it.

    Raises:
        RegistryError: there never was such a model, it is not a gated registry, or it cannot be reached.
    """
    last: Decision | None = None
    first: Decision | None = None
    unfinished: Decision | None = None
    for decision in _read_pages(DecisionQuery(name, until=at, about_production=True, newest_first=True, limit=100)):
        if decision.carried_out_at is None or decision.carried_out_at > at:
            if last is None and unfinished is None and decision.allowed:
                unfinished = decision
        elif last is None:
            first = last = decision
        elif decision.production == last.production:  # it was promoted once more later
            first = decision
        else:
            break
    if first is None or last is None:
        return InProduction(name, at, None, None, None, None, None, None, unfinished)
    version = str(last.production) if last.production else None
    return InProduction(
        name, at, version, first.carried_out_at, first.user, last.gates, last.reason, last.manifest_sha256, unfinished
    )


def examine_models(names: Iterable[str]) -> dict[str, list[dict[str, str]]]:
    """Return what is wrong with registered models, and what mends it, by name.

    Args:
        names: registered models; all guarded ones if there are none.

    Raises:
        RegistryError: there is no such model, it is not a gated registry, or it cannot be reached.
    """
    chosen = list(names) or list(ask(Question("guarded", "", {})))
    return {name: ask_about("doctor", name) for name in chosen}
