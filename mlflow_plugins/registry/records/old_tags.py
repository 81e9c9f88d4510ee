"""Moves what older versions of the registry kept in tags into the tables: decisions, waivers and stamps.

It happens when a store is built on the database, and again if an older server has written such tags since. Each tag is
moved once: its key is kept with the decision.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy
from sqlalchemy import and_, or_, select

from mlflow_plugins._mlflow_compat import get_registry_tables
from mlflow_plugins.registry.records.identity import make_id
from mlflow_plugins.registry.records.tables import DECISIONS, OUTCOMES, STAMPS, WAIVERS, Records
from mlflow_plugins.registry.tags import (
    GATES_TAG,
    ID_TAG,
    OLD_AUDIT_TAG,
    OLD_COUNT_TAG,
    OLD_MANIFEST_TAG,
    OLD_MODEL_TAG,
    WAIVE_TAG,
)
from mlflow_plugins.registry.waivers import Waiver

_PROMOTIONS: Final = frozenset({"promote to stage Production", "set alias production"})

_KEYS_AT_ONCE: Final = 500
"""Tags that one statement deletes; databases limit the parameters of a statement."""


@dataclass(frozen=True)
class _OldModel:
    """A registered model with tags of an older registry.

    Attributes:
        workspace: its workspace.
        name: its name.
        identity: its identity in the tables.
        audit: its decisions by their tags' keys.
        versions: tags of its versions, by version and key.
    """

    workspace: str
    name: str
    identity: str
    audit: Mapping[str, Mapping[str, Any]]
    versions: Mapping[int, Mapping[str, str]]


def has_old_tags(engine: sqlalchemy.Engine) -> bool:
    """Return whether an older registry has left decisions or waivers in tags."""
    tables = get_registry_tables()
    model, version = tables["registered_model_tags"].c, tables["model_version_tags"].c
    audit = f"{OLD_AUDIT_TAG}%"
    old_waiver = and_(version.key.like(f"{WAIVE_TAG}%"), version.value.like('{"measured"%'))
    with engine.connect() as connection:
        return any(
            connection.execute(query.limit(1)).first() is not None
            for query in (
                select(model.key).where(model.key.like(audit)),
                select(version.key).where(or_(version.key.like(audit), old_waiver)),
            )
        )


def move_old_tags(engine: sqlalchemy.Engine, records: Records) -> None:
    """Move decisions, waivers and stamps from the tags of MLflow's database into the tables.

    The tables are written first, then the tags are deleted. After a crash in between nothing is written twice.
    """
    for model in _read_models(engine):
        _keep(records, model)
        _drop(engine, model)


def _read_models(engine: sqlalchemy.Engine) -> list[_OldModel]:
    tables = get_registry_tables()
    models, model_tags, version_tags = (
        tables[name] for name in ("registered_models", "registered_model_tags", "model_version_tags")
    )
    with engine.connect() as connection:
        times = {
            (row.workspace, row.name): row.creation_time
            for row in connection.execute(select(models.c.workspace, models.c.name, models.c.creation_time))
        }
        of_models = connection.execute(select(model_tags).where(model_tags.c.key.like("plantmodels.%"))).all()
        of_versions = connection.execute(select(version_tags).where(version_tags.c.key.like("plantmodels.%"))).all()
    audit: defaultdict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    versions: defaultdict[tuple[str, str], dict[int, dict[str, str]]] = defaultdict(dict)
    identities: dict[tuple[str, str], str] = {}
    for row in [*of_models, *of_versions]:
        if row.key.startswith(OLD_AUDIT_TAG):
            audit[row.workspace, row.name][row.key] = json.loads(row.value)
        elif row.key == ID_TAG:
            identities[row.workspace, row.name] = row.value
    for row in of_versions:
        versions[row.workspace, row.name].setdefault(row.version, {})[row.key] = row.value
    return [
        _OldModel(*key, identities.get(key) or make_id(*key, times.get(key)), audit[key], versions[key])
        for key in {*audit, *versions}
    ]


def _keep(records: Records, model: _OldModel) -> None:
    """Write what a model's tags hold into the tables."""
    whose = {"workspace": model.workspace, "model_id": model.identity}
    with records.begin() as connection:
        query = select(DECISIONS.c.old_tag).where(
            DECISIONS.c.model_id == model.identity, DECISIONS.c.old_tag.is_not(None)
        )
        kept = set(connection.execute(query).scalars())
        for row in _order_decisions(model):
            if row["old_tag"] in kept:
                continue
            made: Any = connection.execute(DECISIONS.insert().values(whose | row)).inserted_primary_key
            if row["production"] is not None:
                connection.execute(OUTCOMES.insert().values(decision_id=made[0], at=row["at"]))
        waivers = select(WAIVERS.c.version, WAIVERS.c.gate).where(WAIVERS.c.model_id == model.identity)
        known = {tuple(found) for found in connection.execute(waivers)}
        for row in _read_waivers(model):
            if (row["version"], row["gate"]) not in known:
                connection.execute(WAIVERS.insert().values(whose | row))
        stamped = set(connection.execute(select(STAMPS.c.version).where(STAMPS.c.model_id == model.identity)).scalars())
        for row in _read_stamps(model):
            if row["version"] not in stamped:
                connection.execute(STAMPS.insert().values(whose | row))


def _order_decisions(model: _OldModel) -> Iterable[dict[str, Any]]:
    """Yield the rows of a model's decisions in their order, with what each did to Production."""
    held = 0
    for key, old in sorted(model.audit.items(), key=lambda item: (item[1].get("number", 0), item[0])):
        version = None if old["version"] is None else int(old["version"])
        production = _find_effect(str(old["action"]), version, held) if old["allowed"] else None
        held = held if production is None else production
        yield {
            "name": model.name,
            "version": version,
            "at": old["at"],
            "user": old["user"],
            "action": old["action"],
            "allowed": old["allowed"],
            "reason": old["reason"],
            "manifest_sha256": old["manifest_sha256"],
            "production": production,
            "old_tag": key,
        }


def _find_effect(action: str, version: int | None, held: int) -> int | None:
    """Return the version that an allowed action put into Production; 0 for none, None if it changed nothing there."""
    if action in _PROMOTIONS:
        return version
    leaves = action in ("delete alias production", "promote to stage Staging") or action.startswith("move to stage ")
    if held and ((leaves and version == held) or action == f"delete version {held}"):
        return 0
    return None


def _read_waivers(model: _OldModel) -> Iterable[dict[str, Any]]:
    for version, tags in model.versions.items():
        for key, value in tags.items():
            waiver = Waiver.from_json(value) if key.startswith(WAIVE_TAG) else None
            if waiver is not None:
                yield {"version": version, "gate": key.removeprefix(WAIVE_TAG), **waiver.to_row()}


def _read_stamps(model: _OldModel) -> Iterable[dict[str, Any]]:
    for version, tags in model.versions.items():
        if OLD_MANIFEST_TAG in tags and OLD_MODEL_TAG in tags:
            times = (old["at"] for old in model.audit.values() if old["version"] == str(version))
            yield {
                "version": version,
                "at": min(times, default=""),
                "manifest_sha256": tags[OLD_MANIFEST_TAG],
                "model_sha256": tags[OLD_MODEL_TAG],
                "gates": tags.get(GATES_TAG, ""),
            }


def _drop(engine: sqlalchemy.Engine, model: _OldModel) -> None:
    """Delete the tags that were moved, shorten those of waivers, and write the model's identity."""
    tables = get_registry_tables()
    of_model, of_versions = tables["registered_model_tags"], tables["model_version_tags"]
    with engine.begin() as connection:
        keys = [*model.audit, OLD_COUNT_TAG]
        for table in (of_model, of_versions):
            whose = and_(table.c.workspace == model.workspace, table.c.name == model.name)
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                some = table.c.key.in_(keys[start : start + _KEYS_AT_ONCE])
                connection.execute(table.delete().where(whose, some))
        identity = and_(
            of_model.c.workspace == model.workspace, of_model.c.name == model.name, of_model.c.key == ID_TAG
        )
        if connection.execute(select(of_model.c.key).where(identity)).first() is None:
            connection.execute(
                of_model.insert().values(workspace=model.workspace, name=model.name, key=ID_TAG, value=model.identity)
            )
        whose = and_(of_versions.c.workspace == model.workspace, of_versions.c.name == model.name)
        for row in _read_waivers(model):
            key = f"{WAIVE_TAG}{row['gate']}"
            found = and_(whose, of_versions.c.version == row["version"], of_versions.c.key == key)
            shown = Waiver.from_row(row).to_tag()
            connection.execute(of_versions.update().where(found).values(value=shown))
