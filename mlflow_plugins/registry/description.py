"""Shows in MLflow's UI how the gates of a version stand, and which version is in Production since when.

The registry writes its own part of a description. A Markdown comment after it says how many lines it has, with their
digest. All other text is a person's and is never changed. If a person edits the registry's part, that becomes a
person's text too.

>>> text = renew_part("Leaves of 2026.", "Gates passed.")
>>> text.splitlines()[:3]
['Leaves of 2026.', '', 'Gates passed.']
>>> renew_part(text.replace("passed", "are fine"), "Gates failed.") is None
True
"""

import contextlib
import hashlib
import html
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

from mlflow.entities.model_registry import ModelVersion, ModelVersionTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from mlflow_plugins._mlflow_compat import locate_artifacts
from mlflow_plugins.registry.artifacts.origin import find_run
from mlflow_plugins.registry.audit import name_user, read_clock, read_user
from mlflow_plugins.registry.evidence import Evidence
from mlflow_plugins.registry.guard.rows import Rows
from mlflow_plugins.registry.tags import GLANCE_TAG
from mlflow_plugins.registry.waivers import Waiver, Waivers
from plantmodels.bundle.layout import HTML_REPORT_FILE, summarize_sizes
from plantmodels.report.gates import GateResult
from plantmodels.report.policy import GatePolicy
from plantmodels.report.summary import describe_accuracy, summarize_field

_LOGGER: Final = logging.getLogger("mlflow.plantmodels.description")

_MOST_CHARACTERS: Final = 5000
"""MLflow's limit of a description."""

_MARK: Final = re.compile(r"^<!-- (\d+) lines? above written by the registry ([0-9a-f]{12}) -->$", re.MULTILINE)
_ANY_MARK: Final = "written by the registry"
_MARKDOWN: Final = re.compile(r"([\\`*_{}\[\]()#+!~=|])")
"""Characters that MLflow's UI lets a backslash escape."""


def renew_part(text: str | None, part: str) -> str | None:
    """Return a description with the registry's part renewed, or added if it has none.

    Args:
        text: the description as it is; None or "" if there is none.
        part: Markdown of the registry's part.

    Returns:
        The new description. None if it must stay as it is: a person edited the registry's part, or the result would be
        longer than MLflow allows.
    """
    text = text or ""
    part = part.encode("ascii", "xmlcharrefreplace").decode()  # MySQL's tables may be Latin-1, which has no ≥
    if _ANY_MARK not in text:
        renewed = f"{text.rstrip()}\n\n{_sign_part(part)}".lstrip()
    elif (place := _find_part(text)) is not None:
        renewed = f"{text[: place[0]]}{_sign_part(part)}{text[place[1] :]}"
    else:
        return None
    return renewed if len(renewed) <= _MOST_CHARACTERS else None


def _sign_part(part: str) -> str:
    lines = part.count("\n") + 1
    return (
        f"{part}\n<!-- {lines} line{'' if lines == 1 else 's'} above written by the registry {_digest_part(part)} -->"
    )


def _find_part(text: str) -> tuple[int, int] | None:
    """Return where the registry's part begins and where its comment ends; None if a person edited it."""
    marks = list(_MARK.finditer(text))
    if len(marks) != 1:
        return None
    lines = text[: marks[0].start()].splitlines(keepends=True)[-int(marks[0][1]) :]
    part = "".join(lines)
    if _digest_part(part.removesuffix("\n")) != marks[0][2]:
        return None
    return marks[0].start() - len(part), marks[0].end()


def _digest_part(part: str) -> str:
    return hashlib.sha256(part.encode()).hexdigest()[:12]


def escape_markdown(text: str) -> str:
    """Return a person's text so that Markdown shows it as it is, on one line."""
    escaped = _MARKDOWN.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))
    return escaped.replace("://", "&#58;//")  # no address becomes a link by itself


def summarize_gates(
    failed: Mapping[GateResult, Waiver | None] | None, uncertain: Iterable[GateResult] = (), quote: str = ""
) -> str:
    """Return whether a version passed its gates, in a few words.

    Args:
        failed: each failed gate and its waiver, if it has one; None if the version was never verified.
        uncertain: the gates that passed uncertainly.
        quote: what stands before and after the name of a gate.
    """
    if failed is None:
        return "never verified"

    def list_names(gates: Iterable[GateResult]) -> str:
        return ", ".join(f"{quote}{gate.name}{quote}" for gate in gates)

    refused = [gate for gate, waiver in failed.items() if waiver is None]
    if refused:
        return f"failed: {list_names(refused)}"
    doubted = list_names(uncertain)
    passed = f"passed, uncertain: {doubted}" if doubted else "passed"
    return f"{passed}; waived: {list_names(failed)}" if failed else passed


def describe_version(
    evidence: Evidence, policy: GatePolicy, failed: Mapping[GateResult, Waiver | None] | None, link: str | None
) -> str:
    """Return the registry's part of a version's description, as Markdown.

    Args:
        evidence: what the version's files prove.
        policy: the registry's limits.
        failed: each failed gate and its waiver, if it has one; None if the version was never verified.
        link: address of report.html; None if the run does not hold it.
    """
    report = evidence.report
    if report is None or failed is None:
        return "Gates never verified: this version holds no gate report, so it cannot be promoted."
    bytes_of = {name: entry.size_bytes for name, entry in report.files.items()}
    sizes = (f"{name} {_format_size(size)}" for name, size in summarize_sizes(bytes_of).items())
    lines = [
        f"Gates {summarize_gates(failed, evidence.find_uncertain(policy), quote='`')}",
        "",
        "| gate | limit | measured | result |",
        "|---|---|---|---|",
        *(_write_row(gate, failed) for gate in evidence.judge_gates(policy)),
        "",
        " ".join(filter(None, (describe_accuracy(report.accuracy), summarize_field(report.field)))),
        "",
        f"Sizes: {'; '.join(sizes)}.",
    ]
    return "\n".join(lines + ([] if link is None else ["", f"[Gate report]({link})"]))


def _write_row(gate: GateResult, failed: Mapping[GateResult, Waiver | None]) -> str:
    waiver = failed.get(gate)
    result = gate.status if gate.passed else f"**{gate.status}**"
    if waiver is not None:
        end = "" if waiver.until is None else f" until {waiver.until}"
        user, reason = escape_markdown(name_user(waiver.user)), escape_markdown(waiver.reason)
        result = f"{gate.status}, waived by {user}{end}: {reason}"
    cells = (f"`{gate.name}`", html.escape(gate.limit_text), html.escape(gate.measured_text))
    return f"| {' | '.join(f'{cell}&ensp;' for cell in cells)} | {result} |"  # MLflow's columns touch each other


def _format_size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:,.1f} KB"


def describe_production(name: str, version: str | None) -> str:
    """Return the registry's part of a registered model's description, as of now.

    Args:
        name: registered model.
        version: the version that is in Production from now on; None if there is none any more.
    """
    at = f"{read_clock()[:16].replace('T', ' ')} UTC"
    user = read_user()
    what, how = ("nothing", "taken out") if version is None else (_link_version(name, version), "promoted")
    return f"In Production: {what} since {at}{'' if user is None else f', {how} by {escape_markdown(user)}'}."


def _link_version(name: str, version: str) -> str:
    return f"[version {version}](#/models/{quote(name, safe='')}/versions/{version})"


class Descriptions:
    """Writes what people see at a glance. A failure is logged, and does not undo what it is about."""

    def __init__(self, store: Any, rows: Rows, policy: GatePolicy, waivers: Waivers) -> None:
        """Take MLflow's own store, without the gate, its rows, and the registry's limits and waivers."""
        self._store = store
        self._rows = rows
        self._policy = policy
        self._waivers = waivers

    def make_tag(self, evidence: Evidence) -> ModelVersionTag:
        """Return the tag of a new version, which has no waivers."""
        if evidence.report is None:
            return ModelVersionTag(GLANCE_TAG, summarize_gates(None))
        failed = dict.fromkeys(evidence.find_failures(self._policy))
        return ModelVersionTag(GLANCE_TAG, summarize_gates(failed, evidence.find_uncertain(self._policy)))

    def renew_version(self, name: str, number: str, evidence: Evidence) -> None:
        """Write the gates of a version into its description, and their outcome into the tag that sorts first.

        Args:
            name: registered model.
            number: version number.
            evidence: what its files prove.
        """
        with _log_failures(f"{name} version {number}"):
            version = self._rows.read_version(name, number)
            if version is None:  # it was deleted meanwhile
                return
            failed, uncertain = None, tuple[GateResult, ...]()
            if evidence.report is not None:
                uncertain = evidence.find_uncertain(self._policy)
                failures = evidence.find_failures(self._policy)
                digest = evidence.manifest_sha256
                failed = {gate: self._waivers.find(name, number, gate, digest) for gate in failures}
            glance = summarize_gates(failed, uncertain)
            if version.tags.get(GLANCE_TAG) != glance:
                self._store.set_model_version_tag(name, number, ModelVersionTag(GLANCE_TAG, glance))
            part = describe_version(evidence, self._policy, failed, _find_report_page(version))
            renewed = renew_part(version.description, part)
            if renewed is not None and renewed != version.description:
                self._store.update_model_version(name, number, renewed)

    def renew_model(self, name: str, version: str | None) -> None:
        """Write into a model's description what is in Production from now on.

        Args:
            name: registered model.
            version: version number; None if nothing is in Production any more.
        """
        with _log_failures(name):
            description = self._rows.read_description(name)
            if version is not None and f"In Production: {_link_version(name, version)} since" in (description or ""):
                return  # promoted once more, so it is there since the first time
            renewed = renew_part(description, describe_production(name, version))
            if renewed is not None:
                self._rows.write_description(name, renewed)


@contextlib.contextmanager
def _log_failures(subject: str) -> Iterator[None]:
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        _LOGGER.warning("%s: its description was not renewed: %s", subject, error)


def _find_report_page(version: ModelVersion) -> str | None:
    """Return the address of report.html in MLflow's UI; None if the version's run does not hold it."""
    if not version.run_id:
        return None
    known = re.search(
        rf"#/experiments/\w+/runs/{version.run_id}/artifacts/{HTML_REPORT_FILE}", version.description or ""
    )
    if known is not None:
        return known[0]
    try:
        experiment_id, location = find_run(version.run_id)
        repository, path, _ = locate_artifacts(location)
        names = {entry.path.rsplit("/", 1)[-1] for entry in repository.list_artifacts(path or None)}
    except Exception as error:  # the errors of artifact stores share no base class
        _LOGGER.info("run %s: %s was not looked for: %s", version.run_id, HTML_REPORT_FILE, error)
        return None
    if HTML_REPORT_FILE not in names:
        return None
    return f"#/experiments/{experiment_id}/runs/{version.run_id}/artifacts/{HTML_REPORT_FILE}"
