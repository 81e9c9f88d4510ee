"""Names of the alias and the tags that the gated registry writes.

Every tag that starts with `plantmodels.` is reserved, and so is `.gates`: the registry refuses such tags from clients.
The one exception is `plantmodels.waive.<gate>`, by which a person asks for a waiver.
"""

from typing import Final

ALIAS: Final = "production"
"""The alias that moves together with stage Production."""

RESERVED: Final = "plantmodels."
"""Prefix of the registry's own tags."""

GUARDED_TAG: Final = f"{RESERVED}guarded"
"""On a registered model: the gates apply to it."""

MANIFEST_TAG: Final = f"{RESERVED}when_registered.manifest_sha256"
"""On a version: digest of its manifest when it was registered. MLflow's UI sorts tags by name: digests stand last."""

MODEL_TAG: Final = f"{RESERVED}when_registered.model_sha256"
"""On a version: digest of all its files when it was registered."""

OLD_MANIFEST_TAG: Final = f"{RESERVED}manifest_sha256"
"""`MANIFEST_TAG` of registries of version 0.2."""

OLD_MODEL_TAG: Final = f"{RESERVED}model_sha256"
"""`MODEL_TAG` of registries of version 0.2."""

GATES_TAG: Final = f"{RESERVED}gates"
"""On a version: "passed", "passed, uncertain: " and gates, "never verified", or the gates that failed."""

UNREAD_TAG: Final = f"{RESERVED}not_read"
"""On a version of ours whose files the server could not read when it was registered: why."""

CLAIM_TAG: Final = "sha256.class_order"
"""Set by our client on what it logs and registers, so that a version is known as ours if its files cannot be read."""

WAIVE_TAG: Final = f"{RESERVED}waive."
"""Prefix, followed by a gate's name: a person sets it to ask for a waiver. The waiver itself is in the tables."""

ID_TAG: Final = f"{RESERVED}id"
"""On a registered model: its identity in the registry's tables, which survives a new name."""

OLD_AUDIT_TAG: Final = f"{RESERVED}audit."
"""Prefix of tags that held the decisions before there were tables."""

OLD_COUNT_TAG: Final = f"{RESERVED}decisions"
"""Tag of a registered model that counted its decisions before there were tables."""

GLANCE_TAG: Final = ".gates"
"""On a version: "passed", or which gates failed or are uncertain, for people. MLflow's UI sorts tags by name, so it
stands first."""
