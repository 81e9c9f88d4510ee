"""The readers that `reliability.fuzz` tries, the errors that they may raise, and the source of their cases.

target = TARGETS["manifest"]()
target.read(target.invent(Random("manifest/0/7"), 7))
"""

import json
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from mlflow_plugins.loading.mlmodel import read_yaml
from plantmodels.bundle.detector import parse_detector
from plantmodels.bundle.files import parse_json
from plantmodels.bundle.layout import EMBEDDING, HEADS_LIST_FILE, IMAGE_INPUT, METADATA_FILE, SPECIES_INDEX_INPUT
from plantmodels.bundle.manifest import FileDigest, Manifest
from plantmodels.bundle.metadata import Metadata, Preprocessing, read_metadata, write_metadata
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.errors import BundleError, CheckpointError, DetectorError, ImageError
from plantmodels.serve.preprocessing import decode_image, preprocess
from plantmodels.serve.session import RUN_ERRORS, open_session
from reliability.model_mutations import (
    damage_checkpoint,
    damage_onnx,
    damage_yaml,
    make_checkpoints,
    make_mlmodel_files,
    make_onnx_models,
)
from reliability.mutations import damage_image, damage_json, damage_pickle, make_detector_pickles, make_images


@dataclass(frozen=True)
class Target:
    """A reader, the errors by which it refuses a case, and `invent(Random, case number)`, which makes a case."""

    read: Callable[[Any], None]
    refusals: tuple[type[Exception], ...]
    invent: Callable[[Random, int], Any]


def _pickle_target() -> Target:
    random = np.random.default_rng(3)
    form = {"mean": random.normal(size=4), "inv_cov": np.eye(4), "threshold": 2.5, "normalize": False}
    ratio = {"other_mean": random.normal(size=4), "other_inv_cov": np.eye(4, dtype=np.float32) / 2}
    plain = {"format_version": 3, "method": "gaussian_ratio", "plant_scores": np.arange(5.0), "fit": {"images": 5}}
    files = [*make_detector_pickles(form), *make_detector_pickles(form | ratio | plain)]
    return Target(
        lambda data: _ignore(parse_detector(Path("fuzzed.pkl"), data)),
        (DetectorError,),
        lambda random, _: damage_pickle(random.choice(files), files, random),
    )


def _manifest_target() -> Target:
    names = ("swin-species-int8.onnx", "disease-heads/tomato-int8.onnx", "onnx-metadata.json")
    document = Manifest({name: FileDigest(100, "0" * 63 + str(i)) for i, name in enumerate(names)}).to_dict()
    text = json.dumps(document).encode()
    return Target(
        lambda data: _ignore(Manifest.from_dict(parse_json(Path("manifest.json"), data))),
        (BundleError,),
        lambda random, _: damage_json(document, [text], random),
    )


def _metadata_target() -> Target:
    taxonomy = Taxonomy(("Pepper, bell", "Rose", "Tomato"), {"Pepper, bell": ("spot", "healthy"), "Tomato": ("rot",)})
    metadata = Metadata(
        taxonomy=taxonomy,
        preprocessing=Preprocessing(224, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
        embedding_dim=768,
        session_options={"session.set_denormal_as_zero": "1"},
        models={"swin-species-int8.onnx": {"rows_per_run": 1, "recipe": {"products": "tokens"}}},
        provenance={"seed": 0},
        versions={"onnx": "1"},
        cpu={"features": []},
    )
    with tempfile.TemporaryDirectory() as folder:
        write_metadata(Path(folder), metadata)
        texts = {name: Path(folder, name).read_bytes() for name in (METADATA_FILE, HEADS_LIST_FILE)}
    documents = {name: json.loads(text) for name, text in texts.items()}

    def invent(random: Random, _: int) -> dict[str, bytes]:
        name = random.choice((METADATA_FILE, METADATA_FILE, HEADS_LIST_FILE))
        return texts | {name: damage_json(documents[name], list(texts.values()), random)}

    return Target(lambda contents: _ignore(read_metadata(Path("bundle"), contents)), (BundleError,), invent)


def _image_target() -> Target:
    files = make_images()
    preprocessing = Preprocessing(64, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), crop_pct=0.9)

    def read(data: bytes) -> None:
        pixels = preprocess(decode_image(data, preprocessing), preprocessing)
        if pixels.shape != (3, 64, 64) or not np.isfinite(pixels).all():
            raise AssertionError(f"pixels of shape {pixels.shape}")

    return Target(read, (ImageError,), lambda random, _: damage_image(random.choice(files), files, random))


def _onnx_target() -> Target:
    """Open a model, and run it if its inputs have the names that ours have."""
    models = make_onnx_models()
    files = [model.SerializeToString() for model in models]
    batch = {
        IMAGE_INPUT: np.ones((2, 3, 8, 8), np.float32),
        EMBEDDING: np.ones((2, 8), np.float32),
        SPECIES_INDEX_INPUT: np.array([0, 2]),
    }
    ort.set_default_logger_severity(4)

    def read(content: bytes) -> None:
        session = open_session(Path("fuzzed.onnx"), content, threads=1)
        names = [value.name for value in session.get_inputs()]
        if set(names) <= set(batch):
            try:
                session.run(None, {name: batch[name] for name in names})
            except RUN_ERRORS as error:
                raise BundleError("does not run") from error

    for file in files:
        read(file)
    return Target(read, (BundleError,), lambda random, _: damage_onnx(random.choice(models), files, random))


def _checkpoint_target() -> Target:
    import torch  # takes seconds, and the other readers do not need it

    from plantmodels.checkpoint.reading import read_checkpoint

    files = make_checkpoints()
    read = _read_from_disk(read_checkpoint)
    read(files[0])
    repr(torch.zeros(1))  # as PyTorch's messages do, for which it imports more modules
    return Target(read, (CheckpointError,), lambda random, _: damage_checkpoint(random.choice(files), files, random))


def _mlmodel_target() -> Target:
    texts = make_mlmodel_files()
    read = _read_from_disk(read_yaml)
    return Target(read, (BundleError,), lambda random, _: damage_yaml(random.choice(texts), texts, random))


def _read_from_disk(read_path: Callable[[Path], object]) -> Callable[[bytes], None]:
    """Turn a reader of files into a reader of bytes; its one file is opened for writing before the first case."""
    file = tempfile.NamedTemporaryFile(buffering=0)  # noqa: SIM115 - open as long as the reader is in use

    def read(data: bytes) -> None:
        file.seek(0)
        file.truncate()
        file.write(data)
        read_path(Path(file.name))

    return read


def _planted_target() -> Target:
    """Return a target with planted faults, which shows that the harness finds what it looks for."""

    def read(case: int) -> None:
        if case == 3:
            raise KeyError("planted")
        if case == 5:
            os.kill(os.getpid(), signal.SIGSEGV)
        while case == 7:
            pass
        if case == 9:
            os.close(os.open(os.devnull, os.O_WRONLY))
        if case % 2:
            raise BundleError("planted")

    return Target(read, (BundleError,), lambda _, case: case)


TARGETS: Final[dict[str, Callable[[], Target]]] = {
    "pickle": _pickle_target,
    "manifest": _manifest_target,
    "metadata": _metadata_target,
    "image": _image_target,
    "onnx": _onnx_target,
    "checkpoint": _checkpoint_target,
    "mlmodel": _mlmodel_target,
}
PLANTED: Final[dict[str, Callable[[], Target]]] = {"planted": _planted_target}


def _ignore(_: object) -> None:
    """Discard what was read."""
