"""The out-of-distribution detector: arrays, score, and a reader that never runs what a pickle says.

The score of an embedding `f`, L2-normalised first when `normalize` is true, is the smallest Mahalanobis
distance to a row of `mean`: `min_c sqrt((f - mean_c) · inv_cov · (f - mean_c))`. Higher means more
out-of-distribution; `score > threshold` rejects. With one mean and no normalisation it is scipy's
`mahalanobis`, the classic detector.

References:
    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples", NeurIPS 2018.
"""

import io
import pickle
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, get_args

import numpy as np
from numpy.typing import NDArray

from plantmodels.bundle.documents import write_bytes
from plantmodels.errors import DetectorError

Method = Literal["mahalanobis", "class_mahalanobis"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)

FORMAT_VERSION: Final = 1
MAX_PICKLE_BYTES: Final = 256 * 2**20
MAX_PICKLE_OPCODES: Final = 5_000
_PICKLE_PROTOCOL: Final = 4
_LARGEST: Final = float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class OODDetector:
    """Arrays of a fitted detector.

    Attributes:
        method: "mahalanobis" (one mean) or "class_mahalanobis" (a mean for each class, tied covariance).
        mean: (C, D) float64, one row for each class; one row for the classic detector.
        inv_cov: (D, D) float64, symmetric and positive definite.
        threshold: scores above it are rejected.
        normalize: whether embeddings are L2-normalised before scoring.
        fit: how it was fitted, plain numbers and text for people; not used in scoring.
    """

    method: Method
    mean: NDArray[np.float64]
    inv_cov: NDArray[np.float64]
    threshold: float
    normalize: bool = False
    fit: Mapping[str, float | int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks shapes, finiteness and definiteness.

        Raises:
            DetectorError: naming the field, what it holds and what is required.
        """
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise DetectorError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        mean = np.atleast_2d(np.asarray(self.mean, dtype=np.float64))
        inv_cov = np.asarray(self.inv_cov, dtype=np.float64)
        if mean.ndim != 2 or 0 in mean.shape or inv_cov.shape != (mean.shape[1], mean.shape[1]):
            raise DetectorError(f"mean must be (C, D) and inv_cov (D, D), got {mean.shape} and {inv_cov.shape}")
        if self.method == "mahalanobis" and len(mean) != 1:
            raise DetectorError(f"method 'mahalanobis' has one mean, got {len(mean)}")
        if not (np.isfinite(mean).all() and np.isfinite(inv_cov).all() and np.isfinite(self.threshold)):
            raise DetectorError("mean, inv_cov and threshold must be finite, got NaN or infinity")
        if not np.allclose(inv_cov, inv_cov.T, rtol=1e-6, atol=1e-9 * float(np.abs(inv_cov).max())):
            raise DetectorError("inv_cov must be symmetric")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "inv_cov", inv_cov)
        object.__setattr__(self, "threshold", float(self.threshold))
        _ = self._whitened_mean

    @property
    def embedding_dim(self) -> int:
        """D, the length of the embeddings that it scores."""
        return int(self.mean.shape[1])

    @cached_property
    def _whitening(self) -> NDArray[np.float64]:
        """Cholesky factor W of inv_cov, upper: the distance is the Euclidean one after `W f`."""
        try:
            factor: NDArray[np.float64] = np.linalg.cholesky(self.inv_cov / 2 + self.inv_cov.T / 2).astype(np.float64)
        except np.linalg.LinAlgError as error:
            raise DetectorError("inv_cov must be positive definite") from error
        return np.ascontiguousarray(factor.T)

    @cached_property
    def _whitened_mean(self) -> NDArray[np.float64]:
        means: NDArray[np.float64] = (self.mean - self.mean[0]) @ self._whitening.T
        return means

    def score(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Distance of each embedding to its nearest mean; higher means more out-of-distribution.

        Args:
            features: (N, D) any float dtype; computed in float64. NaN gives NaN.

        Returns:
            (N,) float64.

        Raises:
            ValueError: another shape.
        """
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or features.shape[1] != self.embedding_dim:
            raise ValueError(f"features must be (N, {self.embedding_dim}), got {features.shape}")
        if self.normalize:
            features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        whitened = _project_upper(features - self.mean[0], self._whitening)
        squared = (
            np.sum(whitened**2, axis=1)[:, None]
            - 2 * _project(whitened, self._whitened_mean)
            + np.sum(self._whitened_mean**2, axis=1)
        )
        scores: NDArray[np.float64] = np.sqrt(np.maximum(squared.min(axis=1), 0))
        return scores

    def rejects(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether each score is above the threshold; a NaN is rejected."""
        return ~(scores <= self.threshold)


_BLOCK: Final = 96
"""Rows of a triangular matrix that are taken together."""


def _project(rows: NDArray[np.float64], onto: NDArray[np.float64]) -> NDArray[np.float64]:
    """Products (N, M) of rows (N, D) and (M, D), on the calling thread alone.

    `rows @ onto.T` wakes BLAS's own threads, which then spin beside ONNX Runtime's: with both, a whole prediction
    took up to twice as long.
    """
    products: NDArray[np.float64] = np.einsum("nd,md->nm", rows, onto)
    return products


def _project_upper(rows: NDArray[np.float64], onto: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same for an upper triangular `onto`: its zeros, nearly half of what would be read, are passed over."""
    starts = range(0, len(onto), _BLOCK)
    return np.concatenate([_project(rows[:, i:], onto[i : i + _BLOCK, i:]) for i in starts], axis=1)


def write_detector(path: Path, detector: OODDetector) -> None:
    """Writes the detector as a pickle of one dict of plain arrays, numbers and text.

    A reader that knows only `mean`, `inv_cov` and `threshold` gets the classic decision when `method` is
    "mahalanobis": `mean` is then one-dimensional.
    """
    classic = detector.method == "mahalanobis"
    document = {
        "format_version": FORMAT_VERSION,
        "method": detector.method,
        "normalize": detector.normalize,
        "mean": np.ascontiguousarray(detector.mean[0] if classic else detector.mean),
        "inv_cov": np.ascontiguousarray(detector.inv_cov),
        "threshold": detector.threshold,
        "fit": dict(detector.fit),
    }
    write_bytes(path, pickle.dumps(document, protocol=_PICKLE_PROTOCOL))


def read_detector(path: Path) -> OODDetector:
    """Reads a detector pickle without running anything that it names.

    The opcodes are scanned against a list first; the few numpy names that plain arrays need are answered by
    inert stand-ins. Check the file's digest against the manifest before, all the same.

    Raises:
        DetectorError: not such a pickle, anything in it beyond plain arrays, numbers and text, or arrays that
            are no detector.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_PICKLE_BYTES:
            raise DetectorError(f"{path}: {size_bytes:,} bytes, at most {MAX_PICKLE_BYTES:,} are read")
        data = path.read_bytes()
    except OSError as error:
        raise DetectorError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_detector(path, data)


def parse_detector(path: Path, content: bytes) -> OODDetector:
    """The same for a file whose bytes are at hand; the path only names it.

    Raises:
        DetectorError: as `read_detector`.
    """
    if len(content) > MAX_PICKLE_BYTES:
        raise DetectorError(f"{path}: {len(content):,} bytes, at most {MAX_PICKLE_BYTES:,} are read")
    try:
        return _build_detector(load_plain_pickle(content))
    except DetectorError as error:
        raise DetectorError(f"{path}: {error}") from error


def _build_detector(document: dict[str, Any]) -> OODDetector:
    version = document.get("format_version", FORMAT_VERSION)
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise DetectorError(f"format_version {version!r}, this code reads 1 to {FORMAT_VERSION}")
    missing = {"mean", "inv_cov", "threshold"} - set(document)
    if missing:
        raise DetectorError(f"{', '.join(sorted(missing))} missing; it holds {', '.join(map(str, document))}")
    threshold = document["threshold"]
    if isinstance(threshold, bool) or not isinstance(threshold, float | int) or not abs(threshold) <= _LARGEST:
        raise DetectorError(f"threshold must be a finite number, got {threshold!r:.80}")
    for name in ("mean", "inv_cov"):
        if not isinstance(document[name], np.ndarray):
            raise DetectorError(f"{name} must be an array, got {type(document[name]).__name__}")
    normalize, fit = document.get("normalize", False), document.get("fit", {})
    if not isinstance(normalize, bool):
        raise DetectorError(f"normalize must be true or false, got {normalize!r:.80}")
    if not isinstance(fit, dict):
        raise DetectorError(f"fit must be a dict, got {type(fit).__name__}")
    return OODDetector(
        method=document.get("method", "mahalanobis"),
        mean=document["mean"],
        inv_cov=document["inv_cov"],
        threshold=float(threshold),
        normalize=normalize,
        fit=fit,
    )


_ALLOWED_OPCODES: Final = frozenset(
    "PROTO FRAME STOP MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET "
    "NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
    "SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS "
    "GLOBAL STACK_GLOBAL REDUCE BUILD".split()
)
"""What pickles of plain dicts and arrays consist of, protocols 2 to 4 (5 in band). No extension registry, no
persistent ids, no instances (INST, OBJ, NEWOBJ)."""

_SHAREABLE: Final = frozenset(
    "GLOBAL STACK_GLOBAL REDUCE SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8".split()
)
"""Opcodes whose result the memo may hand out again. A dict or tuple that is used twice is refused: sixty nested
tuples, each used twice, take forever to hash, and dicts of dicts of dicts any memory."""

_PICKLE_ERRORS: Final = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def load_plain_pickle(data: bytes) -> dict[str, Any]:
    """Reads a pickle of a dict of numbers, text, dicts of these, and numeric numpy arrays; nothing else.

    Raises:
        DetectorError: naming the opcode, global or value that is refused.
    """
    _scan_opcodes(data)
    try:
        document = _PlainUnpickler(data).load()
        plain = _unwrap(document)
    except DetectorError:
        raise
    except _PICKLE_ERRORS as error:
        raise DetectorError(f"not a pickle of plain arrays ({type(error).__name__}: {error})") from error
    if not isinstance(plain, dict):
        raise DetectorError(f"expected a pickled dict, got {type(plain).__name__}")
    return plain


def _scan_opcodes(data: bytes) -> None:
    position, previous = -1, ""
    memo: dict[int, bool] = {}
    try:
        for count, (opcode, argument, start) in enumerate(pickletools.genops(data)):
            if opcode.name not in _ALLOWED_OPCODES:
                raise DetectorError(f"pickle opcode {opcode.name} at byte {start} is refused")
            if count >= MAX_PICKLE_OPCODES:
                raise DetectorError(f"more than {MAX_PICKLE_OPCODES:,} pickle opcodes")
            _check_memo(opcode.name, argument, previous, memo)
            previous = previous if opcode.name == "FRAME" else opcode.name
            position = start or 0
    except (ValueError, IndexError, OverflowError, MemoryError) as error:
        raise DetectorError(f"not a whole pickle ({error})") from error
    if position != len(data) - 1:
        raise DetectorError(f"{len(data) - 1 - position:,} bytes follow the end of the pickle")


def _check_memo(opcode: str, argument: Any, previous: str, memo: dict[int, bool]) -> None:
    """Follows in `memo` which of its entries may be used again, and refuses the use of any other."""
    if opcode in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        index = len(memo) if opcode == "MEMOIZE" else argument
        if index > MAX_PICKLE_OPCODES:
            raise DetectorError(f"pickle memo index {index:,} is refused")
        memo[index] = previous in _SHAREABLE
    if opcode in ("GET", "BINGET", "LONG_BINGET") and not memo.get(argument):
        raise DetectorError(f"pickle memo index {argument:,} is refused: it is unset, or a dict or tuple used twice")


class _Inert:
    """Base of the stand-ins: a pickle can neither set state on them nor give them attributes."""

    __slots__ = ()

    def __setstate__(self, state: object) -> NoReturn:
        raise DetectorError("a pickle that sets the state of a function is refused")


class _NdarrayToken(_Inert):
    """Stands for the class `numpy.ndarray`, which `_reconstruct` takes; it cannot be called."""

    __slots__ = ()


class _Dtype:
    """A numeric dtype by its name; the state that numpy adds may only give the byte order."""

    __slots__ = ("dtype",)

    def __init__(self, name: object) -> None:
        if not isinstance(name, str) or name not in {"f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1"}:
            raise DetectorError(f"dtype {name!r:.40} is refused: numeric arrays only")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise DetectorError("dtype state is refused")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array under construction; becomes a `numpy.ndarray` in `_unwrap` only."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise DetectorError("array state is refused")
        _, shape, dtype, fortran, raw = state
        self.value = _make_array(raw, dtype, shape, "F" if fortran else "C")


def _make_array(raw: object, dtype: object, shape: object, order: object) -> NDArray[Any]:
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise DetectorError("array content is refused: expected bytes of a numeric dtype")
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n <= len(raw) for n in shape):
        raise DetectorError(f"array shape {shape!r:.60} is refused")
    return np.frombuffer(raw, dtype=dtype.dtype).reshape(shape, order=order)


class _Reconstruct(_Inert):
    __slots__ = ()

    def __call__(self, array_type: object, shape: object, typecode: object) -> _Array:
        if not isinstance(array_type, _NdarrayToken):
            raise DetectorError("arrays of a subclass are refused")
        return _Array()


class _FromBuffer(_Inert):
    __slots__ = ()

    def __call__(self, raw: object, dtype: object, shape: object, order: object) -> _Array:
        array = _Array()
        array.value = _make_array(raw, dtype, shape, order)
        return array


class _Scalar(_Inert):
    __slots__ = ()

    def __call__(self, dtype: object, raw: object) -> float | int | bool:
        number: float | int | bool = _make_array(raw, dtype, (1,), "C").item()
        return number


class _MakeDtype(_Inert):
    __slots__ = ()

    def __call__(self, name: object, align: object = False, copy: object = True) -> _Dtype:
        return _Dtype(name)


class _Encode(_Inert):
    """Text to bytes, as protocol 2 stores them; in all no more than the file holds, so that none multiplies."""

    __slots__ = ("_left",)

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes

    def __call__(self, text: object, encoding: object = "latin1") -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise DetectorError("_codecs.encode is accepted for latin1 text only")
        self._left -= len(text)
        if self._left < 0:
            raise DetectorError("the same text is encoded again and again: refused")
        return text.encode("latin1")


_STAND_INS: Final[dict[tuple[str, str], _Inert]] = {
    ("numpy", "ndarray"): _NdarrayToken(),
    ("numpy", "dtype"): _MakeDtype(),
    **{
        (f"{core}.{module}", name): stand_in
        for core in ("numpy.core", "numpy._core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Reconstruct()),
            ("multiarray", "scalar", _Scalar()),
            ("numeric", "_frombuffer", _FromBuffer()),
        )
    },
}


class _PlainUnpickler(pickle.Unpickler):
    """Answers the exact names of `_STAND_INS` and no other; the real callables are never handed out."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._stand_ins = {**_STAND_INS, ("_codecs", "encode"): _Encode(len(data))}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._stand_ins[module, name]
        except KeyError:
            raise DetectorError(f"pickle names {module}.{name}, which plain arrays do not need: refused") from None


def _unwrap(value: object, depth: int = 0) -> Any:
    if isinstance(value, dict):
        if depth > 2:
            raise DetectorError("dicts are nested too deeply")
        if not all(isinstance(key, str) for key in value):
            raise DetectorError("keys must be text")
        return {key: _unwrap(item, depth + 1) for key, item in value.items()}
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise DetectorError(f"a value of type {type(value).__name__.lstrip('_')} is refused: arrays, numbers and text only")
