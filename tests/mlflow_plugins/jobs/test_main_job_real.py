"""The main job on the real Swin-Tiny and a subset of the real photographs."""

import base64
import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import requests

from mlflow_plugins.flavor import load_model
from mlflow_plugins.jobs.main import run_main_job
from mlflow_plugins.jobs.requests import JobRequest, ScoreRequest
from mlflow_plugins.jobs.scoring import run_score
from mlflow_plugins.loading.pyfunc import PREDICTION_COLUMNS
from plantmodels.bundle.layout import PRECISIONS
from plantmodels.report.gate_report import read_report

TRAIN, VAL, NON_PLANTS = 12, 3, 15
"""Images of each class or source."""


def link_subset(source: Path, target: Path, count: int) -> None:
    for folder in sorted(source.iterdir()):
        (target / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:: max(1, len(list(folder.iterdir())) // count)][:count]:
            (target / folder.name / path.name).symlink_to(path)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # py4j's sockets
def test_real_swin_becomes_one_version(real_paths, embedded_mlflow: str, tmp_path: Path, serve) -> None:
    link_subset(real_paths.leaves / "train", tmp_path / "leaves" / "train", TRAIN)
    link_subset(real_paths.leaves / "val", tmp_path / "leaves" / "val", VAL)
    link_subset(real_paths.non_plants, tmp_path / "others", NON_PLANTS)
    version = run_main_job(
        JobRequest(real_paths.checkpoint, tmp_path / "leaves", tmp_path / "others", bundle=tmp_path / "models")
    )
    report = read_report(tmp_path / "models")
    for name in ("parity", "loads", "heads_complete", "head_size", "latency"):
        assert report.gate(name).passed, report.table()
    assert not report.gate("species_size").passed, "27.5 million weights cannot fit into 5 MB"
    assert report.accuracy is not None and report.accuracy.fp16.species.value > 0.65
    assert report.accuracy.species_flips <= 3

    uri = f"models:/{version.name}/{version.version}"
    leaves = sorted((real_paths.leaves / "val" / "Corn_(maize)___Common_rust_").iterdir())[:10]
    model = mlflow.pyfunc.load_model(uri)
    rows = model.predict(pd.DataFrame({"image": [leaf.read_bytes() for leaf in leaves]}))
    assert rows["error"].isna().all()
    assert (rows["species"] + rows["disease"] == "Corn_(maize)Common_rust_").sum() >= 8

    check_every_way_gives_the_same_rows(uri, sorted(real_paths.leaves.glob("val/*/*"))[::3][:500], tmp_path, serve)


def check_every_way_gives_the_same_rows(uri: str, leaves: list[Path], folder: Path, serve) -> None:
    """Native, pyfunc, served and, where Java is, Spark; batches of 32 and single images in both precisions."""
    assert len(leaves) == 500
    images = [leaf.read_bytes() for leaf in leaves]
    native = load_model(uri).predict(images)
    expected = pd.DataFrame([{name: getattr(row, name) for name in PREDICTION_COLUMNS} for row in native])
    check_equal(mlflow.pyfunc.load_model(uri).predict(images), expected)

    with serve(uri, folder) as url:
        answers: list[dict[str, object]] = []
        for start, end in [*((i, i + 1) for i in range(20)), *((i, min(i + 32, 500)) for i in range(20, 500, 32))]:
            batch = {"instances": [base64.b64encode(image).decode() for image in images[start:end]]}
            answer = requests.post(url, json=batch, timeout=120)
            assert answer.status_code == 200, answer.text
            answers += answer.json()["predictions"]
    check_equal(pd.DataFrame(answers), expected)

    for precision in PRECISIONS:
        classifier = load_model(uri, precision=precision)
        for alone, together in zip(images[:32], classifier.predict(images[:32]), strict=True):
            (row,) = classifier.predict([alone])
            assert (row.species, row.disease, row.rejected) == (together.species, together.disease, together.rejected)
            assert row.ood_score == pytest.approx(
                together.ood_score, rel=1e-12 if precision == "int8" else 1e-4, abs=0.1
            )

    if shutil.which("java") is None:
        return
    (folder / "photographs").mkdir()
    for i, image in enumerate(images):
        (folder / "photographs" / f"{i:03d}.jpg").write_bytes(image)
    scores = run_score(ScoreRequest(uri, str(folder / "photographs"), str(folder / "scores"), "local[2]"))
    assert (scores.images, scores.errors) == (500, 0)
    check_equal(pd.read_parquet(folder / "scores").sort_values("path", ignore_index=True), expected)


def check_equal(rows: pd.DataFrame, expected: pd.DataFrame) -> None:
    for name in PREDICTION_COLUMNS:
        values, wanted = rows[name].tolist(), expected[name].tolist()
        if name in ("species_probability", "disease_probability", "ood_score"):
            assert values == pytest.approx(wanted, rel=1e-6), name
        else:
            assert [None if pd.isna(value) else value for value in values] == wanted, name
