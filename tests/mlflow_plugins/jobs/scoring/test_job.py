"""The job `score` on real Spark: what it gives, how it resumes, and what it refuses."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from pyspark.sql import SparkSession

from mlflow_plugins import flavor
from mlflow_plugins.jobs.requests import ScoreRequest
from mlflow_plugins.jobs.scoring import spark
from mlflow_plugins.jobs.scoring.job import run_score
from mlflow_plugins.jobs.scoring.sources import find_unread
from mlflow_plugins.loading import pyfunc
from plantmodels.errors import RegistrationError, ScoringError
from plantmodels.serve.classifier import PlantClassifier
from tests.fixtures.tracking import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # py4j's sockets
    pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed"),
]

COLUMNS = list(pyfunc.PREDICTION_COLUMNS)


@pytest.fixture(scope="module", autouse=True)
def spark_of_this_file() -> Iterator[None]:
    """One Spark for all jobs of this file that run in this process; starting one takes longer than scoring."""
    with spark.spark_session("local[2]"):
        yield


@pytest.fixture
def model(verified_bundle: Path) -> str:
    """The URI of a registered version, its alias production, in an embedded registry."""
    with mlflow.start_run():
        info = flavor.log_model(verified_bundle, name="plants")
    version = mlflow.register_model(info.model_uri, "plants")
    MlflowClient().set_registered_model_alias("plants", "production", version.version)
    return "models:/plants@production"


@pytest.fixture(scope="module")
def leaf_images(tmp_path_factory: pytest.TempPathFactory, tiny_bundle) -> Path:
    """The 45 val leaves in their awkward folders, one of them truncated and one empty, and files of no interest."""
    folder = Path(shutil.copytree(tiny_bundle.data / "val", tmp_path_factory.mktemp("leaf_images") / "in [1], {a}*"))
    leaves = sorted(folder.glob("*/*.jpg"))
    leaves[0].write_bytes(leaves[0].read_bytes()[:300])
    leaves[1].write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    return folder


def read_scores(output: Path) -> pd.DataFrame:
    """The scores as any reader of Parquet sees them, by path."""
    frame = pd.read_parquet(output, partitioning=pyarrow.dataset.partitioning(flavor="hive"))
    frame["path"] = frame["path"].str.removeprefix("file:")
    return frame.sort_values("path", ignore_index=True)


def check_against_native(frame: pd.DataFrame, bundle: Path) -> None:
    classifier = PlantClassifier.load(bundle, threads=1, allow_paths=True)
    native = classifier.predict(frame["path"])
    for row, expected in zip(frame.to_dict("records"), native, strict=True):
        for name in COLUMNS:
            value, wanted = row[name], getattr(expected, name)
            if wanted is None:
                assert pd.isna(value), (row, name)
            elif isinstance(wanted, float):
                assert value == pytest.approx(wanted, rel=1e-6)
            else:
                assert value == wanted, (row, name)


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


def start(arguments: list[str], log: Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    command = [*prefix, sys.executable, "-m", "mlflow_plugins.jobs", "score", *arguments]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


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


def test_a_folder_that_has_a_uri_is_read_by_hadoop(model: str, leaf_images: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(leaf_images, tmp_path / "images"))
    request = ScoreRequest(model, images.as_uri(), str(tmp_path / "scores"), "local[2]", images_per_batch=25)
    scores = run_score(request)
    assert (scores.images, scores.errors, scores.batches) == (45, 2, 2)
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


def test_killed_half_way_and_resumed(
    model: str, tiny_bundle, verified_bundle: Path, tmp_path: Path, wait_for: Callable[..., None]
) -> None:
    """400 images, 8 of them broken; SIGKILL of every process while a batch is being written."""
    leaves = [path.read_bytes() for path in sorted(tiny_bundle.data.glob("*/*/*")) if path.suffix in (".jpg", ".png")]
    images, output = tmp_path / "images", tmp_path / "scores.parquet"
    images.mkdir()
    for i in range(400):
        data = leaves[i % len(leaves)]
        (images / f"{i:04d}.jpg").write_bytes(data[:200] if i % 50 == 7 else data)
    arguments = ["--model", model, "--images", str(images), "--output", str(output), "--spark-master", "local[2]"]
    arguments += ["--images-per-batch", "50"]
    process = start(arguments, tmp_path / "log")
    try:
        wait_for(lambda: (output / "batch=3" / "_SUCCESS").exists() or process.poll() is not None, 1200)
        time.sleep(1)  # the next batch is on its way
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the JVM, too; its Python workers end with it
        process.wait()
    done = sorted(path.parent.name for path in output.glob("batch=*/_SUCCESS"))
    assert 4 <= len(done) < 8, (tmp_path / "log").read_text()
    before = {path: path.stat().st_mtime_ns for name in done[:-1] for path in (output / name).glob("*.parquet")}

    resumed = start(arguments, tmp_path / "log")
    assert resumed.wait(1200) == 0, (tmp_path / "log").read_text()
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith(f"{output}: 400 images, ") and "8 bad" in last
    scored_now = int(last.split()[3].replace(",", ""))
    assert 400 - 50 * len(done) <= scored_now <= 400 - 50 * (len(done) - 1)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    frame = read_scores(output)
    assert frame["path"].tolist() == [str(images / f"{i:04d}.jpg") for i in range(400)]
    assert frame.index[frame["error"].notna()].tolist() == list(range(7, 400, 50))
    check_against_native(frame, verified_bundle)


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


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[..., None]) -> Iterator[str]:
    """Spark's standalone master and one worker with two cores; the master's URL."""
    import pyspark

    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    command = [str(Path(pyspark.__file__).parent / "bin" / "spark-class"), "org.apache.spark.deploy.{0}.{1}"]
    url = f"spark://127.0.0.1:{free_port()}"
    started = []

    def launch(role: str, *arguments: str) -> str:
        words = [word.format(role, role.capitalize()) for word in command]
        log = tmp_path / f"{role}.log"
        with log.open("w") as file:
            started.append(subprocess.Popen([*words, *arguments], stdout=file, stderr=file, start_new_session=True))
        return str(log)

    try:
        master = launch("master", "--host", "127.0.0.1", "--port", url.rsplit(":", 1)[1], "--webui-port", "0")
        wait_for(lambda: "I have been elected leader" in Path(master).read_text(), 600)
        launch("worker", "--cores", "2", "--memory", "1g", "--webui-port", "0", "--work-dir", f"{tmp_path}/work", url)
        wait_for(lambda: "Registering worker" in Path(master).read_text(), 600)
        yield url
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_cluster_gives_the_rows_of_one_machine(
    model, cluster: str, leaf_images, verified_bundle, tmp_path: Path
) -> None:
    arguments = ["--model", model, "--images", str(leaf_images), "--output", str(tmp_path / "scores")]
    assert start([*arguments, "--spark-master", cluster], tmp_path / "log").wait(600) == 0, (
        tmp_path / "log"
    ).read_text()
    assert "45 images, 45 of them scored now; 2 bad, " in (tmp_path / "log").read_text()
    check_against_native(read_scores(tmp_path / "scores"), verified_bundle)
    assert list(tmp_path.glob("work/app-*")), "then it ran elsewhere"


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
