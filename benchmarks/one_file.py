"""Measure the one file against the three steps that Python takes: images, what follows the network, and cold start.

Both answer in turns, in one process and on one thread. Other programs disturb processor time less than the clock,
because only the time of this process counts. `python -m benchmarks` runs this as the part one-file.

python -m benchmarks.one_file compare public/models public/models/plant-classifier-int8.onnx leaf.jpg int8 --rounds 7
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from benchmarks.driver import PATH, Patience, run_quietly
from plantmodels.arrays import Embeddings, Inputs, Labels, Logits
from plantmodels.bundle.layout import EMBEDDING, IMAGE_INPUT, ONE_FILES, PRECISIONS, SPECIES_OUTPUT, Precision
from plantmodels.bundle.metadata import read_metadata
from plantmodels.export.one_file.build import write_one_files
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.image_input import image_to_input
from plantmodels.serve.routing import softmax
from plantmodels.serve.session import open_session

MODULE: Final = "benchmarks.one_file"

REPEATS: Final = 10
"""Calls in a turn where the whole way runs."""

BATCH: Final = 32
"""Images in one call, where a batch is measured; it runs once in a turn."""

TAIL_REPEATS: Final = 200
"""Calls in a turn where only what follows the network runs."""

WAYS: Final = ("three steps", "one file")

Times = dict[str, float]
"""Seconds on the clock and of processor time, by name."""


@click.group()
def main() -> None:
    """Measure the one file against the three steps."""


def measure_one_file(bundle: Path, image: Path, rounds: int, patience: Patience) -> dict[str, Any]:
    """Return the times of each round, by precision: of images, of what follows the network, and of a cold start.

    Args:
        bundle: the bundle.
        image: an encoded image.
        rounds: number of rounds; in each, both ways have a turn.
        patience: how long to wait for a quiet machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(bundle, Path(folder, "bundle")))
        write_one_files(
            copy, read_metadata(copy), [name for name in PRECISIONS if not (copy / ONE_FILES[name]).exists()]
        )
        return {
            precision: _measure_precision(bundle, copy, image, precision, rounds, patience) for precision in PRECISIONS
        }


def _measure_precision(
    bundle: Path, one_files: Path, image: Path, precision: Precision, rounds: int, patience: Patience
) -> dict[str, Any]:
    arguments = [str(bundle), str(one_files / ONE_FILES[precision]), str(image), precision]
    found = run_quietly(patience, MODULE, ["compare", *arguments, "--rounds", str(rounds)])
    cold: dict[str, list[Times]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            patience.wait()
            cold[way].append(_start_cold(way, arguments))
    return {**found, "cold": cold}


def _start_cold(way: str, arguments: list[str]) -> Times:
    """Answer one image in a new process. Return the seconds that it took, and the figures that it prints."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-m", f"{MODULE}_cold", way, *arguments]
    printed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"clock_s": time.perf_counter() - start, "processor_s": used, **printed}


@main.command()
@click.argument("bundle", type=PATH)
@click.argument("one_file", type=PATH)
@click.argument("image", type=PATH)
@click.argument("precision", type=click.Choice(PRECISIONS))
@click.option("--rounds", default=7, show_default=True)
def compare(bundle: Path, one_file: Path, image: Path, precision: Precision, rounds: int) -> None:
    """Print the times of one image, of a batch, and of what follows the network, by both ways."""
    classifier = PlantClassifier.load(bundle, threads=1, precision=precision)
    options = classifier.metadata.session_options
    content = one_file.read_bytes()
    session = open_session(one_file, content, options=options, threads=1)
    tail = open_session(Path("tail.onnx"), cut_tail(onnx.load_from_string(content)), options=options, threads=1)
    inputs = image_to_input(image.read_bytes(), classifier.metadata.preprocessing)[None]
    logits, embedding = classifier.embed(inputs)
    species = logits.argmax(axis=1).astype(np.int64)

    def ways(rows: Inputs) -> dict[str, Callable[[], object]]:
        return {"three steps": lambda: answer_in_three_steps(classifier, rows), "one file": _ask(session, rows)}

    tails = {
        "three steps": lambda: follow_network(classifier, logits, embedding, species),
        "one file": lambda: tail.run(None, {SPECIES_OUTPUT: logits, EMBEDDING: embedding}),
    }
    result = {
        "image": time_in_turns(ways(inputs), rounds, REPEATS),
        "batch": time_in_turns(ways(np.repeat(inputs, BATCH, axis=0)), rounds, 1),
        "tail": time_in_turns(tails, rounds, TAIL_REPEATS),
    }
    click.echo(json.dumps(result))


def _ask(session: ort.InferenceSession, inputs: Inputs) -> Callable[[], object]:
    return lambda: session.run(None, {IMAGE_INPUT: inputs})


def answer_in_three_steps(classifier: PlantClassifier, inputs: Inputs) -> object:
    """Compute everything that the one file computes, as `PlantClassifier` does."""
    logits, embedding = classifier.embed(inputs)
    return follow_network(classifier, logits, embedding, logits.argmax(axis=1).astype(np.int64))


def follow_network(classifier: PlantClassifier, logits: Logits, embedding: Embeddings, species: Labels) -> object:
    """Compute what the one file computes after the network: disease, probabilities, score, p-value and rejection."""
    metadata, detector = classifier.metadata, classifier.detector
    heads = classifier.run_heads(embedding, species)
    scores = detector.score(embedding)
    probabilities = softmax(logits, metadata.species_temperature), softmax(heads, metadata.disease_temperature)
    return heads.argmax(axis=1), probabilities, detector.rejects(scores), detector.p_values(scores, species)


def time_in_turns(ways: Mapping[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, list[Times]]:
    """Return the times of one call of each way in each round, in which all ways have a turn of several calls."""
    found: dict[str, list[Times]] = {way: [] for way in ways}
    for call in ways.values():
        call()
    for turn in range(rounds):
        for way in sorted(ways, reverse=bool(turn % 2)):
            clock, processor = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                ways[way]()
            used = time.process_time() - processor
            elapsed = time.perf_counter() - clock
            found[way].append({"clock_s": elapsed / repeats, "processor_s": used / repeats})
    return found


def cut_tail(model: onnx.ModelProto) -> bytes:
    """Return the part of a one file that follows the network: species logits and embedding in, the answer out."""
    graph = model.graph
    if len(graph.node) == 1:  # a Scan, whose body names everything with a prefix
        graph = next(attribute.g for attribute in graph.node[0].attribute if attribute.name == "body")
    prefix = graph.input[0].name.removesuffix(".row").removesuffix(IMAGE_INPUT)
    cut = {prefix + SPECIES_OUTPUT: SPECIES_OUTPUT, prefix + EMBEDDING: EMBEDDING}
    makers = {name: node for node in graph.node for name in node.output}
    outputs = [value for value in graph.output if value.name.removesuffix(".row") not in cut]
    wanted, nodes = [value.name for value in outputs], []
    while wanted:
        name = wanted.pop()
        node = makers.get(name)
        if name not in cut and node is not None and node not in nodes:
            nodes.append(node)
            wanted += node.input
    used = {name for node in nodes for name in node.input}
    sizes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in model.graph.output}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, sizes[cut[name]][1]]) for name in cut]
    body = helper.make_graph(
        [node for node in graph.node if node in nodes],
        "tail",
        inputs,
        outputs,
        [value for value in graph.initializer if value.name in used],
    )
    part = helper.make_model(body, opset_imports=model.opset_import, ir_version=model.ir_version)
    for node in part.graph.node:
        node.input[:] = [cut.get(name, name) for name in node.input]
    for value in part.graph.input:
        value.name = cut[value.name]
    return part.SerializeToString()


if __name__ == "__main__":
    main()
