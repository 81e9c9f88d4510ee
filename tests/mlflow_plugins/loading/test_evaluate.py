"""`mlflow.models.evaluate` on a registered version and a plain labelled DataFrame."""

from pathlib import Path

import mlflow
import pandas as pd
import pytest

from mlflow_plugins.jobs.main import run_register
from plantmodels.report.gate_report import read_report

URI = "models:/plant-disease/1"


@pytest.fixture
def leaves(tiny_bundle) -> pd.DataFrame:
    """Every validation leaf with its labels."""
    paths = sorted(tiny_bundle.data.glob("val/*/*"))
    rows = [(path.read_bytes(), *path.parent.name.split("___")) for path in paths]
    return pd.DataFrame(rows, columns=["image", "species", "disease"])


def test_evaluate_counts_as_verify_does(verified_bundle: Path, leaves: pd.DataFrame) -> None:
    run_register(verified_bundle, "plant-disease", None)
    accuracy = read_report(verified_bundle).accuracy
    assert accuracy is not None
    for precision, counts in (("int8", accuracy.int8), ("fp16", accuracy.fp16)):
        result = mlflow.models.evaluate(
            URI,
            leaves,
            targets="species",
            model_type="classifier",
            model_config={"column": "species", "precision": precision},
        )
        assert result.metrics["example_count"] == counts.species.images
        assert result.metrics["accuracy_score"] == pytest.approx(counts.species.value)
        assert {"per_class_metrics", "confusion_matrix"} <= set(result.artifacts)


def test_evaluate_counts_a_wrong_label(verified_bundle: Path, leaves: pd.DataFrame) -> None:
    run_register(verified_bundle, "plant-disease", None)
    answers = mlflow.pyfunc.load_model(URI).predict(leaves)
    leaves.loc[:6, "species"] = "Blueberry"
    right = (answers["species"] == leaves["species"]).mean()
    assert right < 1
    result = mlflow.models.evaluate(
        URI, leaves, targets="species", model_type="classifier", model_config={"column": "species"}
    )
    assert result.metrics["accuracy_score"] == pytest.approx(right)


def test_evaluate_measures_rejection(verified_bundle: Path, tiny_bundle, leaves: pd.DataFrame) -> None:
    run_register(verified_bundle, "plant-disease", None)
    others = [(path.read_bytes(), True) for path in sorted(tiny_bundle.non_plants.glob("*/*"))]
    images = pd.concat([leaves[["image"]].assign(rejected=False), pd.DataFrame(others, columns=["image", "rejected"])])
    rejected = mlflow.pyfunc.load_model(URI).predict(images)["rejected"].astype(bool).to_numpy()
    result = mlflow.models.evaluate(
        URI, images, targets="rejected", model_type="classifier", model_config={"column": "rejected"}
    )
    plants = len(leaves)
    assert result.metrics["true_positives"] == rejected[plants:].sum()
    assert result.metrics["false_positives"] == rejected[:plants].sum()
    assert result.metrics["recall_score"] == pytest.approx(rejected[plants:].mean())


def test_a_column_that_no_answer_has_is_refused(verified_bundle: Path) -> None:
    run_register(verified_bundle, "plant-disease", None)
    with pytest.raises(ValueError, match=r"column must be one of species, .*, error, got 'plant'"):
        mlflow.pyfunc.load_model(URI, model_config={"column": "plant"})
