"""The job `score` as a process of its own: killed and resumed, and on a cluster."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fixtures.scoring import check_against_native, read_scores
from tests.fixtures.tracking import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # py4j's sockets
    pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed"),
]


def start(arguments: list[str], log: Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    command = [*prefix, sys.executable, "-m", "mlflow_plugins.jobs", "score", *arguments]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


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
    arguments += ["--images-per-batch", "25"]
    process = start(arguments, tmp_path / "log")
    try:
        wait_for(lambda: len([*output.glob("batch=*/_SUCCESS")]) >= 4 or process.poll() is not None, 1200)
        time.sleep(0.5)  # the next batches are on their way
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the JVM, too; its Python workers end with it
        process.wait()
    done = sorted(path.parent.name for path in output.glob("batch=*/_SUCCESS"))
    assert 4 <= len(done) < 16, (tmp_path / "log").read_text()
    before = {path: path.stat().st_mtime_ns for name in done for path in (output / name).glob("*.parquet")}

    resumed = start(arguments, tmp_path / "log")
    assert resumed.wait(1200) == 0, (tmp_path / "log").read_text()
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith(f"{output}: 400 images, ") and "8 bad" in last
    scored_now = int(last.split()[3].replace(",", ""))
    assert scored_now == 400 - 25 * len(done)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    frame = read_scores(output)
    assert frame["path"].tolist() == [str(images / f"{i:04d}.jpg") for i in range(400)]
    assert frame.index[frame["error"].notna()].tolist() == list(range(7, 400, 50))
    check_against_native(frame, verified_bundle)


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
