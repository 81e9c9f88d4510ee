"""The names of the files in a bundle, and of the models' inputs and outputs (contract 3).

>>> head_file("tomato")
'disease-heads/tomato-int8.onnx'
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, get_args

FORMAT_VERSION: Final = 1
"""Version of contract 3 that this code writes. Reading refuses a newer one."""

Precision = Literal["int8", "fp16"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
DEFAULT_PRECISION: Final[Precision] = "int8"

DEFAULT_BUNDLE: Final = Path("public/models")
"""The bundle's folder in every command, unless an option names another one."""

SPECIES_FILES: Final[dict[Precision, str]] = {"int8": "swin-species-int8.onnx", "fp16": "swin-species.onnx"}
ONE_FILES: Final[dict[Precision, str]] = {"int8": "plant-classifier-int8.onnx", "fp16": "plant-classifier.onnx"}
"""Network, heads, routing, temperatures and detector in one graph, for runtimes without this package. Every bundle has
the INT8 file; the FP16 file is there if the export was asked for it."""
PACKED_HEADS_FILE: Final = "disease-heads-packed.onnx"
HEADS_FOLDER: Final = "disease-heads"
HEADS_LIST_FILE: Final = "disease-heads-list.json"
DETECTOR_FILE: Final = "ood-detector.pkl"
METADATA_FILE: Final = "onnx-metadata.json"
GATE_REPORT_FILE: Final = "gate-report.json"
HTML_REPORT_FILE: Final = "report.html"
IMAGES_FILE: Final = "gate-images.csv"
PLOTS_FOLDER: Final = "plots"
REFERENCE_IMAGES_FILE: Final = "reference-images.webp"
REFERENCE_ANSWERS_FILE: Final = "reference-answers.json"
MANIFEST_FILE: Final = "manifest.json"
SIGNATURE_FILE: Final = "manifest.json.sig"
"""Signs the manifest and thereby every file. The manifest lists every file but itself and this one."""

REPORT_NAMES: Final = (
    GATE_REPORT_FILE,
    HTML_REPORT_FILE,
    IMAGES_FILE,
    PLOTS_FOLDER,
    REFERENCE_IMAGES_FILE,
    REFERENCE_ANSWERS_FILE,
)
"""What `verify` adds to an exported bundle; it measures all other files."""

IMAGE_INPUT: Final = "input"
SPECIES_OUTPUT: Final = "species_logits"
EMBEDDING: Final = "embedding"
SPECIES_INDEX_INPUT: Final = "species_index"
DISEASE_OUTPUT: Final = "disease_logits"
DISEASE_INDEX_OUTPUT: Final = "disease_index"
OOD_SCORE_OUTPUT: Final = "ood_score"
OOD_P_VALUE_OUTPUT: Final = "ood_p_value"
REJECTED_OUTPUT: Final = "rejected"
SPECIES_PROBABILITY_OUTPUT: Final = "species_probability"
DISEASE_GIVEN_SPECIES_OUTPUT: Final = "disease_given_species_probability"
DISEASE_PROBABILITY_OUTPUT: Final = "disease_probability"


def head_file(slug: str) -> str:
    """Return the name of the ONNX file of one species' disease head."""
    return f"{HEADS_FOLDER}/{slug}-int8.onnx"


def is_single_head(name: str) -> bool:
    """Return whether a file is the disease head of a single species; the packed file is not."""
    return name.startswith(f"{HEADS_FOLDER}/")


def describe_sizes(sizes: Mapping[str, int]) -> list[str]:
    """Return one line per file with its size in bytes, for terminals; all single heads share the last line."""
    heads = [size for name, size in sizes.items() if is_single_head(name)]
    lines = [f"{size:>12,}  {name}" for name, size in sizes.items() if not is_single_head(name)]
    return [*lines, f"{sum(heads):>12,}  {HEADS_FOLDER}/ ({len(heads)} files, largest {max(heads, default=0):,})"]


def summarize_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the size in bytes of each kind of model by its name for people; 0 for a kind that is missing.

    Args:
        sizes: size in bytes of each file, by its name in the bundle.
    """
    return {
        "species, INT8": sizes.get(SPECIES_FILES["int8"], 0),
        "species, FP16": sizes.get(SPECIES_FILES["fp16"], 0),
        "largest head": max((size for name, size in sizes.items() if is_single_head(name)), default=0),
        "all heads, packed": sizes.get(PACKED_HEADS_FILE, 0),
    }


def is_report(name: str) -> bool:
    """Return whether a file belongs to the gate report and not to the model."""
    return name.split("/", 1)[0] in REPORT_NAMES


def serving_files(precision: Precision) -> tuple[str, ...]:
    """Return the files that a precision needs: no other species model, no single heads and no reports."""
    return (METADATA_FILE, HEADS_LIST_FILE, DETECTOR_FILE, SPECIES_FILES[precision], PACKED_HEADS_FILE)
