"""The job `score` on real Spark: what it gives, how it resumes, and what it refuses."""

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import mlflow
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import udf

import mlflow_plugins
from mlflow_plugins.jobs.requests import ScoreRequest
from mlflow_plugins.jobs.scoring import spark
from mlflow_plugins.jobs.scoring.job import run_score
from mlflow_plugins.jobs.scoring.output import ScoreFolder
from mlflow_plugins.jobs.scoring.sources import find_unread
from plantmodels.errors import RegistrationError, ScoringError
from plantmodels.serve.classifier import PlantClassifier
from tests.fixtures.scoring import check_against_native, forget_contract, read_scores

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # py4j's sockets
    pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed"),
]


@pytest.fixture(scope="module", autouse=True)
def spark_of_this_file() -> Iterator[None]:
    """One Spark for all jobs of this file that run in this process; starting one takes longer than scoring."""
    with spark.spark_session("local[2]"):
        yield


def test_a_folder_is_scored_as_the_native_classifier_does(model, leaf_images, verified_bundle, tmp_path: Path) -> None:
    request = ScoreRequest(
        model, str(leaf_images), str(tmp_path / "out [2]" / "scores.parquet"), "local[2]", images_per_batch=20
    )
    scores = run_score(request)
    frame = read_scores(Path(request.output))
    files = [str(path) for path in leaf_images.glob("*/*")]
    assert frame["path"].tolist() == sorted(files)
    check_against_native(frame, verified_bundle)
    assert frame["error"].notna().sum() == scores.errors == 2
    assert frame["rejected"].dropna().sum() == scores.rejected
    assert (scores.images, scores.scored_now, scores.batches) == (45, 45, 3)
    assert set(frame["model"]) == {"models:/plants/1"}
    run = mlflow.last_active_run()
    assert run.data.metrics["images"] == 45 and run.data.params["plantmodels.version"] == "models:/plants/1"


def test_new_images_are_added_and_old_ones_left_alone(model, leaf_images, tmp_path: Path) -> None:
    images = Path(shutil.copytree(leaf_images, tmp_path / "leaf_images"))
    request = ScoreRequest(model, str(images), str(tmp_path / "scores"), "local[2]", partition_by=("rejected", "model"))
    run_score(request)
    before = {path: path.stat().st_mtime_ns for path in Path(request.output, "batch=0").rglob("*.parquet")}
    assert all({"rejected=", "model="} <= {part[: part.find("=") + 1] for part in path.parts} for path in before)
    leaf = min(images.glob("*/*.png"))
    shutil.copyfile(leaf, images / "new.PNG")
    empty = next(path for path in images.glob("*/*") if not path.stat().st_size)
    empty.write_bytes(leaf.read_bytes())
    shutil.copyfile(leaf, images / "of old.png")
    os.utime(images / "of old.png", (1e9, 1e9))  # as `cp -p` would, long before the newest that was scored
    scores = run_score(request)
    assert (scores.images, scores.scored_now, scores.errors) == (47, 2, 2)  # a file is scored as it was when met
    assert {path: path.stat().st_mtime_ns for path in before} == before
    frame = read_scores(Path(request.output))
    assert frame["path"].is_unique and len(frame) == 47
    alike = frame[frame["path"].isin(map(str, (leaf, images / "new.PNG", images / "of old.png")))]
    assert len(alike) == 3 and alike["ood_score"].nunique() == 1
    again = run_score(request)
    assert (again.images, again.scored_now, again.batches) == (47, 0, 0)


def test_a_version_of_contract_1_is_scored_by_its_columns(model: str, leaf_images: Path, tmp_path: Path) -> None:
    forget_contract(Path(mlflow.artifacts.download_artifacts(artifact_uri=model)))
    images = tmp_path / "in"
    images.mkdir()
    leaf = Path(shutil.copyfile(min(leaf_images.glob("*/*.png")), images / "leaf.png"))
    run_score(ScoreRequest(model, str(images), str(tmp_path / "scores"), "local[2]"))
    (row,) = read_scores(tmp_path / "scores").to_dict("records")
    (native,) = mlflow_plugins.load_model(model).predict([leaf.read_bytes()])
    assert "disease_given_species_probability" not in row
    assert row["disease_probability"] == pytest.approx(native.disease_given_species_probability, rel=1e-6)


def test_a_table_keeps_its_columns(model, leaf_images, verified_bundle, tmp_path: Path, monkeypatch) -> None:
    leaves = sorted(leaf_images.glob("*/*.webp"))
    table = pd.DataFrame({"id": range(len(leaves) + 1), "image": [*(path.read_bytes() for path in leaves), None]})
    table.to_parquet(tmp_path / "leaf_images.parquet")
    monkeypatch.chdir(tmp_path)
    scores = run_score(ScoreRequest(model, "leaf_images.parquet", "scores.parquet", "local[2]", routing="soft"))
    frame = pd.read_parquet("scores.parquet").sort_values("id", ignore_index=True)
    native = PlantClassifier.load(verified_bundle).predict([path.read_bytes() for path in leaves], routing="soft")
    assert frame["id"].tolist() == table["id"].tolist() and "image" not in frame
    assert frame["disease"].tolist()[:-1] == pytest.approx([row.disease for row in native], nan_ok=True)
    assert frame["disease_probability"].tolist()[:-1] == pytest.approx(
        [float("nan") if row.disease_probability is None else row.disease_probability for row in native], nan_ok=True
    )
    assert scores.errors == 1 and "is missing" in frame["error"].iloc[-1]
    job, registration = MlflowClient().search_runs(["0"])  # and no third one: a stream logs in the run of its job
    assert job.data.metrics["images_scored"] == len(table) and registration.data.metrics == {}


def test_every_listed_file_has_a_row(model: str, leaf_images: Path, verified_bundle: Path, tmp_path: Path) -> None:
    """Names that Hadoop does not know, links, and files whose content alone says that they are images."""
    leaf = min(leaf_images.glob("*/*.png"))
    images, output = tmp_path / "2026-05-01T10:32", tmp_path / "scores:1"
    (images / "a:b").mkdir(parents=True)
    good = ["2026-05-01T10:32:11.jpg", "a:b/x.png", "photo", "x.jfif", "_leading.png", "100%20 #?[*]{a},.png"]
    for name in good:
        shutil.copyfile(leaf, images / name)
    shutil.copyfile(leaf, os.fsencode(images) + b"/caf\xe9.jpg")
    (images / "caf\\xe9.jpg").symlink_to(leaf)  # the name under which the one before stands in the scores
    (images / "gone:1.jpg").symlink_to("absent")
    (images / "self.jpg").symlink_to("self.jpg")
    (images / "empty.jpg").touch()
    with (images / "large.jpg").open("wb") as file:
        file.truncate(spark.MAX_IMAGE_BYTES + 1)
    (images / "more").symlink_to(images / "a:b")
    (images / "notes.txt").touch()
    (images / ".hidden.jpg").touch()

    request = ScoreRequest(model, str(images), str(output), "local[2]", images_per_batch=4)
    scores = run_score(request)
    frame = read_scores(output)
    errors = {Path(path).name: error for path, error in zip(frame["path"], frame["error"], strict=True)}
    assert (scores.images, scores.errors, scores.batches) == (13, 4, 4) and len(frame) == 13
    assert frame["path"].value_counts()[f"{images}/caf\\xe9.jpg"] == 2
    assert errors.pop("gone:1.jpg") == "cannot be read (a link to nothing)"
    assert errors.pop("empty.jpg") == "zero bytes: expected an encoded image"
    assert errors.pop("large.jpg") == "a file of 134,217,729 bytes: at most 134,217,728 are read"
    assert errors.pop("self.jpg") == "cannot be read (Too many levels of symbolic links)"
    assert all(map(pd.isna, errors.values())) and {Path(name).name for name in good} <= errors.keys()
    assert frame["ood_score"].dropna().nunique() == 1
    again = run_score(request)
    assert (again.images, again.scored_now) == (13, 0)


def test_a_batch_that_was_cut_off_is_written_again(model: str, leaf_images: Path, tmp_path: Path) -> None:
    request = ScoreRequest(model, str(leaf_images), str(tmp_path / "scores"), "local[2]", images_per_batch=20)
    run_score(request)
    (tmp_path / "scores" / "batch=1" / "_SUCCESS").unlink()
    (tmp_path / "scores" / "batch=3").mkdir()
    (tmp_path / "scores" / "batch=3" / "part.parquet").write_bytes(b"half")
    scores = run_score(request)

    assert (scores.images, scores.scored_now, scores.batches) == (45, 20, 1)
    assert read_scores(tmp_path / "scores")["path"].is_unique


def test_an_error_in_one_batch_stops_the_other_and_begins_no_more(
    model: str, leaf_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ScoreRequest(model, str(leaf_images), str(tmp_path / "scores"), "local[2]", images_per_batch=5)
    write, begun, failed = ScoreFolder.write, [], Event()

    def fail_once(folder: ScoreFolder, rows: DataFrame, place: str) -> None:
        begun.append(Path(place).name)
        if place.endswith("batch=1"):
            failed.set()
            raise ScoringError("the disk is full")
        assert failed.wait(60)
        write(folder, rows.withColumn("path", without_end("path")), place)

    without_end = udf(lambda _: time.sleep(600), "string")
    with monkeypatch.context() as patched:
        patched.setattr(ScoreFolder, "write", fail_once)
        with pytest.raises(ScoringError, match=r"^the disk is full$"):
            run_score(request)
    assert sorted(begun) == ["batch=0", "batch=1"] and not list(Path(request.output).glob("batch=*/_SUCCESS"))
    run_score(request)
    assert sorted(read_scores(tmp_path / "scores")["path"]) == sorted(map(str, leaf_images.glob("*/*")))


def test_java_of_a_local_folder_is_less_optimized_and_users_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", "-Xmx2g")
    seen = []

    def start(*_: object) -> None:
        seen.append(os.environ["SPARK_SUBMIT_OPTS"])
        raise ScoringError("enough")

    monkeypatch.setattr(SparkSession.Builder, "getOrCreate", start)
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)
    for master, by_java in (("local[2]", False), ("local[2]", True), ("yarn", False)):
        with pytest.raises(ScoringError, match="enough"), spark.spark_session(master, java_reads_images=by_java):
            pass
    assert seen == ["-XX:TieredStopAtLevel=1 -Xmx2g", "-Xmx2g", "-Xmx2g"]
    assert os.environ["SPARK_SUBMIT_OPTS"] == "-Xmx2g"


def test_a_folder_that_has_a_uri_is_read_by_hadoop(model: str, leaf_images: Path, tmp_path: Path) -> None:
    """Names with spaces, % and letters beyond ASCII are the same text in the listing, the stream and the scores."""
    images = Path(shutil.copytree(leaf_images, tmp_path / "images [1], {é}"))
    min(images.glob("*/*.webp")).rename(images / "100%25 #a?, b.webp")
    (images / "0%20\u00e9.jpg").touch()
    request = ScoreRequest(model, f"file://{images}", str(tmp_path / "scores"), "local[2]", images_per_batch=25)
    scores = run_score(request)
    assert (scores.images, scores.errors, scores.batches) == (46, 3, 2)
    frame = read_scores(tmp_path / "scores")
    errors = dict(zip(frame["path"], frame["error"], strict=True))
    assert errors[f"{images}/0%20\u00e9.jpg"] == "zero bytes: expected an encoded image"
    assert pd.isna(errors[f"{images}/100%25 #a?, b.webp"])
    shutil.copyfile(min(images.glob("*/*.png")), images / "new.png")
    assert run_score(request).scored_now == 1

    shutil.copyfile(min(images.glob("*/*.png")), images / "10:32.jpg")
    with pytest.raises(ScoringError, match=r"^Spark: .*/10:32\.jpg\); Hadoop takes no colon in a file name"):
        run_score(request)


def test_files_that_hadoop_passes_over_have_a_reason() -> None:
    session = SparkSession.active()
    files = session.createDataFrame(
        [("a", 5), ("b", 0), ("c", spark.MAX_IMAGE_BYTES + 1), ("d", 5)], "path string, length long"
    )
    unread = find_unread(files, session.createDataFrame([("a",)], "path string"))
    assert {row.path: row.error for row in unread.collect()} == {
        "b": "zero bytes: expected an encoded image",
        "c": "a file of 134,217,729 bytes: at most 134,217,728 are read",
        "d": "cannot be read",
    }


def test_a_table_of_hugging_face_is_read(model: str, leaf_images: Path, tmp_path: Path) -> None:
    leaves = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(leaf_images.glob("*/*.webp"))]
    (tmp_path / "set" / "data").mkdir(parents=True)
    for part, rows in {"train": leaves[:5], "test": [*leaves[5:], {"bytes": None, "path": "gone.jpg"}]}.items():
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array(rows, kind), "label": [0] * len(rows)})
        pq.write_table(table, tmp_path / "set" / "data" / f"{part}-00000-of-00001.parquet")
    scores = run_score(ScoreRequest(model, str(tmp_path / "set"), str(tmp_path / "scores"), "local[2]"))

    frame = pd.read_parquet(tmp_path / "scores", partitioning=pyarrow.dataset.partitioning(flavor="hive"))
    assert (scores.images, scores.errors) == (len(leaves) + 1, 1) and set(frame["label"]) == {0}
    assert frame["error"].dropna().tolist() == ["the image is missing (null)"]


def test_one_output_holds_the_scores_of_one_request(model, leaf_images, tmp_path: Path) -> None:
    first = ScoreRequest(model, str(leaf_images), str(tmp_path / "scores"), "local[2]")
    run_score(first)
    files = Counter(tmp_path.rglob("*"))
    second = mlflow.register_model(MlflowClient().get_model_version("plants", "1").source, "plants")
    MlflowClient().set_registered_model_alias("plants", "production", second.version)
    for change, message in (
        ({}, "scores: begun with model models:/plants/1, but this job has models:/plants/2; repeat the first"),
        ({"model": "models:/plants/1", "routing": "soft"}, "begun with routing hard, but this job has soft"),
        (
            {"model": "models:/plants/1", "partition_by": ("species",)},
            r"partition_by \[\], but this job has \['species'\]",
        ),
    ):
        with pytest.raises(ScoringError, match=message):
            run_score(ScoreRequest(**{**vars(first), **change}))
        assert mlflow.last_active_run().info.status == "FAILED"
    assert Counter(tmp_path.rglob("*")) == files


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"images": "damaged.parquet"}, r"^Spark: .*damaged\.parquet.*; write the file again, or remove it$"),
        ({"images": "s3://bucket/images"}, r'^Spark: .*No FileSystem for scheme "s3"; Spark lacks the connector'),
        ({"output": "/proc/scores"}, r"^Spark: .*/proc/scores.*; choose places that Spark may read and write$"),
    ],
)
def test_failures_of_spark_are_one_line(model: str, leaf_images: Path, change: dict[str, str], match: str) -> None:
    Path("damaged.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR2")
    good = ScoreRequest(model, str(leaf_images), "scores", "local[2]")
    with pytest.raises(ScoringError, match=match) as caught:
        run_score(ScoreRequest(**{**vars(good), **change}))
    assert "\n" not in str(caught.value)


def test_bad_requests_are_refused(model, leaf_images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = ScoreRequest(model, str(leaf_images), str(tmp_path / "scores"), "local[2]")

    def refused(error: type[Exception], match: str, **change: object) -> None:
        with pytest.raises(error, match=match):
            run_score(ScoreRequest(**{**vars(good), **change}))

    refused(
        RegistrationError,
        "models:/absent/1 cannot be found in the registry sqlite:.*not found",
        model="models:/absent/1",
    )
    refused(
        RegistrationError,
        "models:/plants@nobody cannot be found in the registry sqlite:.*not found",
        model="models:/plants@nobody",
    )
    refused(RegistrationError, "does not name a version of a registered model", model="models:/m-123")
    refused(ScoringError, "/absent: no such folder or table of images", images="/absent")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    refused(
        ScoringError,
        "thesis: exists already and holds no scores; choose another output",
        output=str(tmp_path / "thesis"),
    )
    (tmp_path / "empty").mkdir()
    refused(ScoringError, "empty: holds no image to score", images=str(tmp_path / "empty"))
    file = str(min(leaf_images.glob("*/*.png")))
    refused(ScoringError, r"\.png: expected a folder of images or a table", images=file)
    output = str(tmp_path / "other scores")
    refused(
        ScoringError,
        "cannot partition by colour: the scores have path, species",
        partition_by=("colour",),
        output=output,
    )
    pd.DataFrame({"image": ["text"]}).to_parquet(tmp_path / "text.parquet")
    refused(
        ScoringError,
        "expected a binary column 'image', the columns are image string",
        images=str(tmp_path / "text.parquet"),
        output=str(tmp_path / "scores 3"),
    )
    pd.DataFrame({"image": [b""], "error": [""]}).to_parquet(tmp_path / "taken.parquet")
    refused(
        ScoringError,
        "rename error; the scores have columns of these names",
        images=str(tmp_path / "taken.parquet"),
        output=str(tmp_path / "scores 4"),
    )
    monkeypatch.setattr("pyspark.sql.SparkSession.getActiveSession", lambda: None)
    refused(ScoringError, r"spark://127.0.0.1:9: no Spark master answers .*refused", spark_master="spark://127.0.0.1:9")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    refused(ScoringError, "Spark needs Java 17")
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    refused(ScoringError, "bulk scoring needs pyspark")
