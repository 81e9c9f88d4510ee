"""The files that hold weights: archives of `torch.save`, safetensors, and folders as Hugging Face writes them.

>>> with open_weights(checkpoint) as weights:
...     weights.select_state("model")["species_head.weight"].shape
(5, 32)
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from plantmodels.bundle.manifest import digest_file
from plantmodels.checkpoint.archive import TensorSource, TorchArchive
from plantmodels.checkpoint.inert_pickle import Foreign, StoredTensor
from plantmodels.checkpoint.spec import read_parameter_file
from plantmodels.data.inputs import WEIGHT_FILES
from plantmodels.errors import BundleError, CheckpointError
from plantmodels.foreign_text import quote_error

_STATE_ENTRIES: Final = ("state_dict", "model_state_dict", "model", "module", "net", "network")
"""Where files keep their weights, besides at the top. Lightning's is the first, Microsoft's Swin has "model"."""

_EMA_ENTRIES: Final = ("state_dict_ema", "ema_state_dict", "model_ema", "ema", "ema_weights")
"""Where timm and others keep averaged weights beside the trained ones."""

_PARAMETER_FILES: Final = ("hyper_parameters", "hparams", "config")
_PARAMETER_SUFFIXES: Final = (".json", ".yaml", ".yml")


@dataclass(frozen=True)
class Weights:
    """The content of a checkpoint, with tensors that are not read yet.

    Attributes:
        path: the file or folder that a person named.
        sha256: digest of the file; of several files, digest of their digests.
        size_bytes: size of all files.
        document: what was saved, as data; of safetensors, the tensors.
        parameters: the hyper-parameters inside, or in the JSON or YAML beside safetensors; None if there are none.
        archive: the open archive of `torch.save`; None for safetensors.
    """

    path: Path
    sha256: str
    size_bytes: int
    document: Mapping[Any, Any]
    parameters: object
    archive: TorchArchive | None

    def select_state(self, weights: str) -> dict[Any, Any]:
        """Return the state_dict that holds the network, or its averaged copy if `weights` is "ema" and it has one.

        Its tensors are `TensorSource`; whatever else it holds is as the file has it.

        Raises:
            CheckpointError: the file holds no state_dict.
        """
        if weights == "ema":
            callbacks = self.document.get("callbacks")
            others = callbacks.values() if isinstance(callbacks, dict) else ()
            for place in (self.document, *(state for state in others if isinstance(state, dict))):
                for name in _EMA_ENTRIES:
                    if _is_state(place.get(name)):
                        return self._describe(place[name])
        if "state_dict" in self.document:
            state = self.document["state_dict"]
            if isinstance(state, dict):
                return self._describe(state)
            raise self._refuse_state(state)
        for name in _STATE_ENTRIES[1:]:
            if _is_state(self.document.get(name)):
                return self._describe(self.document[name])
        if _is_state(self.document):
            return self._describe(self.document)
        raise self._refuse_state(None)

    @property
    def averaged_while_training(self) -> bool:
        """Whether state_dict itself is averaged, as Lightning's callback WeightAveraging writes it."""
        return "current_model_state" in self.document and "averaging_state" in self.document

    def _describe(self, state: Mapping[Any, Any]) -> dict[Any, Any]:
        archive = self.archive
        if archive is None:
            return dict(state)
        return {
            name: archive.describe_tensor(f"{name}", value) if isinstance(value, StoredTensor) else value
            for name, value in state.items()
        }

    def _refuse_state(self, state: object) -> CheckpointError:
        found = f"state_dict is {state.name}" if isinstance(state, Foreign) else f"it holds {_name_keys(self.document)}"
        return CheckpointError(
            f"{self.path}: expected a dict with 'state_dict' (a dict), as Lightning writes it, or a dict of tensors; "
            f"{found}"
        )


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, StoredTensor | TensorSource) for item in value.values())


def _name_keys(document: Mapping[Any, Any]) -> str:
    return ", ".join(f"{key!r:.60}" for key in list(document)[:8]) or "nothing"


@contextmanager
def open_weights(path: Path) -> Iterator[Weights]:
    """Open a checkpoint file, a safetensors file, or a folder that holds one, and check what it claims.

    Raises:
        CheckpointError: there is no such file, it is not a checkpoint, or it claims more than it holds.
    """
    with ExitStack() as stack:
        files = _list_files(path)
        try:
            digests = {file: digest_file(file.resolve()) for file in files}  # Lightning's last.ckpt is a link
        except BundleError as error:
            raise CheckpointError(str(error)) from error
        archive: TorchArchive | None = None
        document: dict[Any, Any] = {}
        if files[0].suffix == ".safetensors":
            for file in files:
                document |= _open_safetensors(file, stack)
        else:
            archive = stack.enter_context(TorchArchive(files[0]))
            document = _read_archive(path, archive)
        parameters = document.get("hyper_parameters")
        if parameters is None and (path.is_dir() or archive is None):
            parameters = _read_parameters_beside(path, files[0])
        hashes = [digest.sha256 for digest in digests.values()]
        combined = hashes[0] if len(hashes) == 1 else sha256("".join(hashes).encode()).hexdigest()
        size = sum(digest.size_bytes for digest in digests.values())
        yield Weights(path, combined, size, document, parameters, archive)


def _list_files(path: Path) -> list[Path]:
    """Return the files that hold the weights: the file itself, or those of a folder."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint file")
    for name in WEIGHT_FILES:
        if not (path / name).is_file():
            continue
        if name.endswith(".index.json"):
            return _read_index(path / name)
        return [path / name]
    raise CheckpointError(f"{path}: no such checkpoint file: the folder holds none of {', '.join(WEIGHT_FILES)}")


def _read_index(index: Path) -> list[Path]:
    """Return the parts of weights that Hugging Face split into several files."""
    places = read_parameter_file(index).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    wrong = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if not names or wrong:
        found = f"{wrong[0]!r:.100} is not a file beside it" if wrong else "it names no files"
        raise CheckpointError(f"{index}: expected weight_map, from tensors to files in this folder; {found}")
    return [index.parent / name for name in names]


def _read_parameters_beside(path: Path, file: Path) -> object:
    """Return the hyper-parameters in the JSON or YAML beside a safetensors file, or in its folder; None without one."""
    for stem in (*(() if path.is_dir() else (file.stem,)), *_PARAMETER_FILES):
        for suffix in _PARAMETER_SUFFIXES:
            candidate = file.parent / f"{stem}{suffix}"
            if candidate.is_file():
                return read_parameter_file(candidate)
    return None


def _open_safetensors(path: Path, stack: ExitStack) -> dict[str, TensorSource]:
    try:
        file = stack.enter_context(safe_open(path, "pt"))
        return {name: _describe_safetensor(path, file, name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({quote_error(error)})") from error


def _describe_safetensor(path: Path, file: Any, name: str) -> TensorSource:
    part = file.get_slice(name)
    dtype = _SAFE_DTYPES.get(part.get_dtype())
    if dtype is None:
        raise CheckpointError(f"{path}: {name} has dtype {part.get_dtype()}, which PyTorch does not have")
    return TensorSource(tuple(part.get_shape()), dtype, partial(file.get_tensor, name))


_SAFE_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def _read_archive(path: Path, archive: TorchArchive) -> dict[Any, Any]:
    document = archive.read_document()
    if isinstance(document, Foreign):
        raise CheckpointError(
            f"{path}: expected a dict with 'state_dict', as Lightning writes it; the file holds a whole object, "
            f"{document.name}: save its state_dict() instead"
        )
    if not isinstance(document, dict):
        raise CheckpointError(
            f"{path}: expected a dict with 'state_dict', as Lightning writes it, got {type(document).__name__}"
        )
    return document
