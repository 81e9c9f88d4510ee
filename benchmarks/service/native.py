"""The classifier without HTTP: a thread for each caller, in a process of its own.

python -m benchmarks.service.native public/models images --clients 16 --seconds 10
"""

import json
import time
from pathlib import Path

import click

from benchmarks.driver import PATH
from benchmarks.service.clients import run_threads


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH)
@click.option("--clients", type=int, required=True)
@click.option("--seconds", type=float, required=True)
def main(bundle: Path, images: Path, clients: int, seconds: float) -> None:
    """Classify the files of a folder again and again, and print how long each took."""
    from plantmodels.serve.classifier import PlantClassifier

    classifier = PlantClassifier.load(bundle)
    encoded = [file.read_bytes() for file in sorted(images.iterdir())]
    classifier.predict(encoded[:4])
    taken: list[float] = []
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        turn = number
        while (start := time.perf_counter()) < end:
            classifier.predict([encoded[turn % len(encoded)]])
            taken.append(time.perf_counter() - start)
            turn += clients

    begin, own = time.perf_counter(), time.process_time()
    run_threads([lambda number=number: work(number) for number in range(clients)])  # type: ignore[misc]
    elapsed, used = time.perf_counter() - begin, time.process_time() - own
    click.echo(json.dumps({"elapsed_s": elapsed, "server_s": used, "client_s": 0.0, "seconds": taken}))


if __name__ == "__main__":
    main()
