"""Run one contestant in its own process, which answers each line of JSON on standard input with a line of JSON.

The driver starts it. Requests: `{"do": "open"}` (seconds, resident memory after the first answer), `{"do": "time",
"case": …, "repeats": n}` (seconds of each), `{"do": "rows", "images": [paths], "embeddings": path}` (answers to these
images; their embeddings go into a file), `{"do": "steps", "repeats": n}` (only ours: seconds of the steps after the
species model). The output of a runtime goes to standard error.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.contestants import Contestant, Mode, Ours, Setup, open_contestant
from benchmarks.processes import read_memory
from benchmarks.rows import make_rows
from plantmodels.arrays import Inputs
from plantmodels.serve.image_input import image_to_input


class Worker:
    """A contestant, its images, and a method for each request."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """Read the images and options that the driver passes as an argument."""
        self._name, self._threads = spec["name"], spec["threads"]
        self._setup = Setup(Path(spec["bundle"]), Path(spec["peers"]), Path(spec["checkpoint"]))
        self._encoded = [Path(path).read_bytes() for path in spec["images"]]
        self._opened: dict[Mode, Contestant] = {}
        self._warm: set[str] = set()
        self._inputs: Inputs = np.empty(0, np.float32)

    def open(self) -> dict[str, float]:
        """Open the contestant for single images and ask it once."""
        start = time.perf_counter()
        contestant = self._contestant("whole")
        opened = time.perf_counter()
        contestant.answer_encoded(self._encoded[:1])
        answered = time.perf_counter()
        resident_mb = read_memory()["resident_mb"]
        preprocessing = contestant.metadata.preprocessing
        self._inputs = np.stack([image_to_input(data, preprocessing) for data in self._encoded])
        return {"open_s": opened - start, "first_s": answered - opened, "resident_mb": resident_mb}

    def time(self, case: dict[str, Any], repeats: int) -> dict[str, list[float]]:
        """Time a case after one untimed answer, which fills the caches that other contestants used.

        The first untimed answer of a case is the whole batch, because runtimes compile and allocate by shape; later
        ones are a single image.
        """
        ask, again = self._call(case), self._call({**case, "batch": 1})
        known = json.dumps(case, sort_keys=True)
        (again if known in self._warm else ask)()
        self._warm.add(known)
        return {"seconds": [_timed(ask) for _ in range(repeats)]}

    def rows(self, images: Sequence[str], embeddings: str) -> dict[str, list[dict[str, Any]]]:
        """Answer every image by itself; each is decoded when its turn comes, so any number fits into memory.

        Args:
            images: paths of encoded images.
            embeddings: the file to write their embeddings to, (N, D) float32 in numpy's format.
        """
        contestant = self._contestant("whole")
        preprocessing = contestant.metadata.preprocessing
        inputs = (image_to_input(Path(path).read_bytes(), preprocessing) for path in images)
        rows, vectors = [], []
        for pixels in inputs:
            logits, embedding = contestant.embed(pixels[None])
            vectors.append(np.array(embedding[0], np.float32))  # a copy: a runtime may use its memory again
            rows += contestant.complete(logits, embedding)
        np.save(embeddings, np.stack(vectors))
        keys = ("species_index", "species_probability", "disease", "rejected")
        return {"rows": [{key: getattr(row, key) for key in keys} for row in rows]}

    def steps(self, repeats: int) -> dict[str, list[float]]:
        """Time the steps after the species model on one image, right after the model has run, as in an answer."""
        contestant = self._contestant("whole")
        if not isinstance(contestant, Ours):
            raise TypeError(f"{self._name} is not ours: its steps are not known")
        classifier = contestant.classifier
        seconds: dict[str, list[float]] = {"species": [], "disease": [], "ood": [], "row": []}
        for i in range(repeats):
            inputs = self._inputs[i % len(self._inputs)][None]
            marks = [time.perf_counter()]
            logits, embedding = classifier.embed(inputs)
            marks.append(time.perf_counter())
            diseases = classifier.run_heads(embedding, logits.argmax(axis=1).astype(np.int64))
            marks.append(time.perf_counter())
            scores = classifier.detector.score(embedding)
            marks.append(time.perf_counter())
            make_rows(classifier.taxonomy, classifier.detector.threshold, logits, diseases, scores)
            marks.append(time.perf_counter())
            for step, duration in zip(seconds, np.diff(marks).tolist(), strict=True):
                seconds[step].append(duration)
        return seconds

    def _call(self, case: dict[str, Any]) -> Callable[[], object]:
        contestant, batch = self._contestant(case["mode"]), case["batch"]
        which = [i % len(self._encoded) for i in range(batch)]
        if case["source"] == "tensor":
            inputs = np.ascontiguousarray(self._inputs[which])
            return lambda: contestant.answer(inputs)
        encoded = [self._encoded[i] for i in which]
        return lambda: contestant.answer_encoded(encoded)

    def _contestant(self, mode: Mode) -> Contestant:
        if mode not in self._opened:
            self._opened[mode] = open_contestant(self._name, self._setup, threads=self._threads, mode=mode)
        return self._opened[mode]


def _timed(ask: Callable[[], object]) -> float:
    start = time.perf_counter()
    ask()
    return time.perf_counter() - start


@contextmanager
def answers_apart() -> Iterator[TextIO]:
    """Reserve standard output for answers; for everything else file descriptor 1 becomes standard error."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        yield answers


def main() -> None:
    """Answer requests until standard input ends."""
    with answers_apart() as answers:
        worker = Worker(json.loads(sys.argv[1]))
        for line in sys.stdin:
            request = json.loads(line)
            answer = getattr(worker, request.pop("do"))(**request)
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
