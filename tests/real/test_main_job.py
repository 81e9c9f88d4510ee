"""The main job on the real Swin-Tiny and a subset of the real photographs."""

from pathlib import Path

import mlflow
import pandas as pd
import pytest

from mlflow_plugins.jobs import Request, run_main_job
from plantmodels.verify.report import read_report

TRAIN, VAL, NON_PLANTS = 12, 3, 15
"""Images of each class or source."""


def link_subset(source: Path, target: Path, count: int) -> None:
    for folder in sorted(source.iterdir()):
        (target / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:: max(1, len(list(folder.iterdir())) // count)][:count]:
            (target / folder.name / path.name).symlink_to(path)


@pytest.mark.real
@pytest.mark.slow
def test_real_swin_becomes_one_version(real_paths, embedded_mlflow: str, tmp_path: Path) -> None:
    link_subset(real_paths.leaves / "train", tmp_path / "leaves" / "train", TRAIN)
    link_subset(real_paths.leaves / "val", tmp_path / "leaves" / "val", VAL)
    link_subset(real_paths.non_plants, tmp_path / "others", NON_PLANTS)
    version = run_main_job(
        Request(real_paths.checkpoint, tmp_path / "leaves", tmp_path / "others", out=tmp_path / "models")
    )
    report = read_report(tmp_path / "models")
    for name in ("parity", "loads", "heads_complete", "head_size", "latency"):
        assert report.gate(name).passed, report.table()
    assert not report.gate("species_size").passed, "27.5 million weights cannot fit into 5 MB"
    assert report.accuracy is not None and report.accuracy.fp16.species.value > 0.65
    assert report.accuracy.species_flips <= 3

    leaves = sorted((real_paths.leaves / "val" / "Corn_(maize)___Common_rust_").iterdir())[:10]
    model = mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}")
    rows = model.predict(pd.DataFrame({"image": [leaf.read_bytes() for leaf in leaves]}))
    assert rows["error"].isna().all()
    assert (rows["species"] + rows["disease"] == "Corn_(maize)Common_rust_").sum() >= 8
