"""Turns a trained hierarchical plant classifier into one verified, servable bundle.

The names below are the public API. Each is imported when it is first used, so `import plantmodels` loads nothing but
the standard library, and serving never loads PyTorch.

| name | what it does |
|---|---|
| `PlantClassifier`, `Prediction` | load a bundle and classify images |
| `export_bundle` | write a bundle from a checkpoint |
| `verify_bundle` | measure every gate of a bundle and write its report |
| `read_report`, `compare_bundles` | read the report of a bundle; compare the reports of two bundles |
| `sign_bundle`, `check_signature` | sign a bundle; check its signature and every file |
| `PlantModelsError` and its subclasses | every error that correct code can meet (`plantmodels.errors`) |

Every other module is internal and may change in any version. `docs/architecture.md` says what each folder holds and
which folders it may import. Nothing in this package imports MLflow; `mlflow_plugins` does.

>>> import plantmodels
>>> plantmodels.PlantClassifier.load(bundle, threads=1).predict([image.read_bytes()])[0].error is None
True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plantmodels.bundle.signature import check_signature, sign_bundle
    from plantmodels.compare.compare import compare_bundles
    from plantmodels.errors import (
        BundleError,
        CheckpointError,
        DataError,
        DetectorError,
        ExportError,
        GatesNotPassedError,
        ImageError,
        ManifestMismatchError,
        PlantModelsError,
        PolicyError,
        RegistrationError,
        RegistryError,
        ScoringError,
        ServiceError,
        SignatureError,
        TaxonomyError,
        TrainingError,
    )
    from plantmodels.export.bundle import export_bundle
    from plantmodels.report.gate_report import read_report
    from plantmodels.serve.classifier import PlantClassifier
    from plantmodels.serve.prediction import Prediction
    from plantmodels.verify.run import verify_bundle

__version__ = "0.2.0"

__all__ = [
    "BundleError",
    "CheckpointError",
    "DataError",
    "DetectorError",
    "ExportError",
    "GatesNotPassedError",
    "ImageError",
    "ManifestMismatchError",
    "PlantClassifier",
    "PlantModelsError",
    "PolicyError",
    "Prediction",
    "RegistrationError",
    "RegistryError",
    "ScoringError",
    "ServiceError",
    "SignatureError",
    "TaxonomyError",
    "TrainingError",
    "__version__",
    "check_signature",
    "compare_bundles",
    "export_bundle",
    "read_report",
    "sign_bundle",
    "verify_bundle",
]

_MODULES = {
    "PlantClassifier": "serve.classifier",
    "Prediction": "serve.prediction",
    "check_signature": "bundle.signature",
    "compare_bundles": "compare.compare",
    "export_bundle": "export.bundle",
    "read_report": "report.gate_report",
    "sign_bundle": "bundle.signature",
    "verify_bundle": "verify.run",
}
"""The module of each public name, except the errors."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    except ModuleNotFoundError as error:
        from plantmodels.extras import describe_missing

        if (line := describe_missing(error)) is None:
            raise
        raise ModuleNotFoundError(f"{name}: {line}", name=error.name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, whether they were used already or not."""
    return sorted(__all__)
