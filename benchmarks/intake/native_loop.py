"""The native loop that `predict` is compared with: as many images as a program of one's own could score.

python -m benchmarks.intake.native_loop public/models images

One session of one thread, and a thread for each core that reads and scores 32 files at a time. Nothing is written.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from plantmodels.serve.classifier import CHUNK, PlantClassifier
from plantmodels.serve.cores import count_cores


def main(bundle: str, folder: str) -> None:
    """Score every file of a folder."""
    classifier = PlantClassifier.load(bundle, threads=1)
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())

    def score(start: int) -> int:
        answers = classifier.predict([path.read_bytes() for path in files[start : start + CHUNK]])
        return sum(answer.error is None for answer in answers)

    with ThreadPoolExecutor(count_cores()) as pool:
        print(sum(pool.map(score, range(0, len(files), CHUNK))))


if __name__ == "__main__":
    main(*sys.argv[1:])
