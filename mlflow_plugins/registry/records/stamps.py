"""Stamps: what the files of a version were when it was registered. The version's tags only show them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import bindparam, select

from mlflow_plugins.registry.audit import read_clock
from mlflow_plugins.registry.records.identity import Identities
from mlflow_plugins.registry.records.tables import STAMPS, Records
from mlflow_plugins.registry.tags import GATES_TAG, MANIFEST_TAG, MODEL_TAG

_FIRST_OF_VERSION: Final = (
    select(STAMPS)
    .where(STAMPS.c.model_id == bindparam("model_id"), STAMPS.c.version == bindparam("number"))
    .order_by(STAMPS.c.id)
    .limit(1)
)


@dataclass(frozen=True)
class Stamp:
    """What the files of one version were.

    Attributes:
        at: when it was stamped: time in UTC, ISO 8601.
        manifest_sha256: digest of the bundle's manifest.
        model_sha256: digest of the names and digests of all files of the model.
        gates: "passed", "passed, uncertain: " and gates, "never verified", or the gates that failed.
    """

    at: str
    manifest_sha256: str
    model_sha256: str
    gates: str


class Stamps:
    """Writes stamps into the registry's tables and reads them back."""

    def __init__(self, records: Records, identities: Identities) -> None:
        """Take the registry's tables and the identities of its models."""
        self._records = records
        self._identities = identities

    def keep(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Write down the stamps of a version. If it has been stamped before, that still counts.

        Args:
            name: registered model.
            version: version number.
            tags: the stamps as the version's tags show them.
        """
        row = {
            "workspace": self._identities.get_workspace(),
            "model_id": self._identities.find(name),
            "version": int(version),
            "at": read_clock(),
            "manifest_sha256": tags[MANIFEST_TAG],
            "model_sha256": tags[MODEL_TAG],
            "gates": tags[GATES_TAG],
        }
        with self._records.begin() as connection:
            connection.execute(STAMPS.insert().values(row))

    def find(self, name: str, version: str) -> Stamp | None:
        """Return the stamp of a version; None if it has none."""
        asked = {"model_id": self._identities.find(name), "number": int(version)}
        with self._records.begin() as connection:
            row = connection.execute(_FIRST_OF_VERSION, asked).first()
        return None if row is None else Stamp(row.at, row.manifest_sha256, row.model_sha256, row.gates)
