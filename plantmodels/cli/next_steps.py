"""What a command prints last: what a person does next, as a command that can be copied.

>>> print(suggest("export it", "plantmodels", "export", "--checkpoint", Path("my leaves.ckpt")))
<BLANKLINE>
Next: export it:
  plantmodels export --checkpoint 'my leaves.ckpt'
"""

import shlex
from pathlib import Path

from plantmodels.bundle.layout import DEFAULT_BUNDLE, HTML_REPORT_FILE
from plantmodels.report.gate_report import GateReport

LOST_REPORT = (
    "The folder held a verified bundle. Its gate report was about the old files and is gone: verify the bundle again."
)


def suggest(purpose: str, *words: object) -> str:
    """Return text that suggests a command for a purpose; words are quoted for a shell where they need it."""
    return f"\nNext: {purpose}:\n  {shlex.join(str(word) for word in words)}"


def suggest_verify(
    bundle: Path,
    data: Path | None = None,
    checkpoint: Path | None = None,
    non_plants: Path | None = None,
    hyper_parameters: Path | None = None,
) -> str:
    """Return text that suggests measuring the gates of a bundle; inputs that are not known are placeholders."""
    words: list[object] = ["plantmodels", "verify", *_bundle_words(bundle), "--data", data or "DATA"]
    if checkpoint is not None:
        words += ["--checkpoint", checkpoint]
    if hyper_parameters is not None:
        words += ["--hyper-parameters", hyper_parameters]
    if non_plants is not None or data is None:
        words += ["--non-plants", non_plants or "FOLDER"]
    return suggest("measure the gates", *words)


def suggest_register(report: GateReport, bundle: Path) -> str:
    """Return text that suggests looking at the report of a verified bundle and registering it."""
    note = "" if report.passed else ", even with failed gates (the registry will not promote it without a waiver)"
    return suggest(f"open {bundle / HTML_REPORT_FILE}, then register the bundle{note}", *_register_words(bundle))


def suggest_register_signed(bundle: Path) -> str:
    """Return text that suggests registering a bundle that was just signed."""
    return suggest("register the signed bundle", *_register_words(bundle))


def suggest_export(checkpoint: Path, data: Path) -> str:
    """Return text that suggests exporting a new checkpoint."""
    words = ["plantmodels", "export", "--checkpoint", checkpoint, "--data", data, "--non-plants", "FOLDER"]
    return suggest("export the checkpoint", *words)


def _register_words(bundle: Path) -> list[object]:
    return ["python", "-m", "mlflow_plugins.jobs", "register", *_bundle_words(bundle)]


def _bundle_words(bundle: Path) -> list[object]:
    return [] if bundle == DEFAULT_BUNDLE else ["--bundle", bundle]
