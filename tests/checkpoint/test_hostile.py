"""Checks that hostile checkpoints are refused, run nothing and take no more memory than their size explains."""

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.errors import CheckpointError
from tests.fixtures.checkpoints import MINT_PARAMETERS

ROOT = Path(__file__).resolve().parents[2]

Members = list[tuple[str, bytes]]


def members_of(document: object) -> Members:
    buffer = io.BytesIO()
    torch.save(document, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return [(member.filename, archive.read(member)) for member in archive.infolist()]


HEAD = {"species_head.weight": torch.ones(1, 4), "species_head.bias": torch.ones(1)}
PLAIN = {"state_dict": {"backbone.a": torch.ones(4)} | HEAD, "hyper_parameters": {}}


def with_pickle(content: bytes) -> Members:
    return [(name, content if name.endswith("data.pkl") else data) for name, data in members_of(PLAIN)]


def tensor(
    size: tuple[int, ...], stride: tuple[int, ...], *, offset: int = 0, numel: int = 4, key: str = "0"
) -> Members:
    """Build a checkpoint with one tensor, declared by hand over a storage of four float32."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, OrderedDict())

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, key, "cpu", numel) if isinstance(value, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(
        {"state_dict": {"backbone.a": Tensor(), "species_head.weight": Tensor()}, "hyper_parameters": MINT_PARAMETERS}
    )
    return with_pickle(buffer.getvalue())


def of_state(**changes: torch.Tensor) -> Members:
    state = {f"backbone.{name}": tensor for name, tensor in changes.items()} | HEAD
    return members_of({"state_dict": state, "hyper_parameters": MINT_PARAMETERS})


def of_parameters(**changes: object) -> Members:
    return members_of({"state_dict": PLAIN["state_dict"], "hyper_parameters": MINT_PARAMETERS | changes})


def recursive() -> Members:
    names: list[object] = []
    names.append(names)
    return of_parameters(species=names)


def call(module: str, name: str, argument: bytes) -> Members:
    return with_pickle(b"\x80\x02c" + f"{module}\n{name}\n".encode() + argument + b"\x85R.")


SIXTEEN_GB = b"\x8a\x05" + (2**34).to_bytes(5, "little")
WHOLE = "the file holds a whole object, "
STRIDES = r"strides .* and offset 0 is refused"
BEYOND = r"a tensor of shape .* ends at element [\d,]+ of a storage of 4"

ABSURD: dict[str, tuple[Callable[[], Members], str]] = {
    "a bytearray of 16 GB": (
        lambda: call("builtins", "bytearray", SIXTEEN_GB),
        WHOLE + "builtins.bytearray",
    ),
    "a bytearray under its old name": (
        lambda: call("__builtin__", "bytearray", SIXTEEN_GB),
        WHOLE + "builtins.bytearray",
    ),
    "an old tensor of 64 GB": (
        lambda: call("torch", "FloatTensor", SIXTEEN_GB),
        WHOLE + "torch.FloatTensor",
    ),
    "bytes doubled again and again": (lambda: call("_codecs", "encode", b"N"), WHOLE + "_codecs.encode"),
    "a storage of 4 TB": (
        lambda: tensor((4,), (1,), numel=2**40),
        "a tensor needs 4,398,046,511,104 bytes of 'archive/data/0', which has 16",
    ),
    "a storage of less than nothing": (lambda: tensor((4,), (1,), numel=-4), r"storage \(.*-4\) is refused"),
    "a shape of 4 TB": (lambda: tensor((2**40,), (1,)), "with which the tensors take 4,398,046,511,104 bytes"),
    "a shape beyond 64 bits": (lambda: tensor((2**70,), (1,)), r"backbone.a has the shape \(1180591620717411303424,\)"),
    "a shape of 2⁶⁰ without strides": (
        lambda: tensor((2**20, 2**40), (0, 0)),
        r"backbone.a has shape \(1048576, 1099511627776\), with which the tensors take .* bytes; the file has",
    ),
    "4 GB without strides": (lambda: tensor((2**30,), (0,)), r"take 4,294,967,296 bytes; the file has 1,"),
    "a shape of 2⁸⁰ without strides": (
        lambda: tensor((2**40, 2**40), (0, 0)),
        "with which the tensors take [0-9,]{30,} bytes",
    ),
    "a negative stride": (lambda: tensor((4,), (-1,)), STRIDES),
    "a stride that overflows": (lambda: tensor((3,), (2**62,)), BEYOND),
    "a negative size": (lambda: tensor((-4,), (1,)), r"backbone.a has the shape \(-4,\)"),
    "an offset beyond the end": (lambda: tensor((4,), (1,), offset=2**40), BEYOND),
    "an offset before the start": (lambda: tensor((4,), (1,), offset=-4), "offset -4 is refused"),
    "a storage outside the archive": (
        lambda: tensor((4,), (1,), key="../../../etc/passwd"),
        "a tensor needs 16 bytes of 'archive/data/../../../etc/passwd', which has 0",
    ),
    "a sparse tensor": (
        lambda: of_state(a=torch.sparse_coo_tensor([[0]], [1.0], (2**40,), check_invariants=True)),
        "backbone.a is not a plain tensor, got .*_rebuild_sparse_tensor",
    ),
    "a tensor without values": (
        lambda: of_state(a=torch.empty(2**40, device="meta")),
        "backbone.a is not a plain tensor, got .*_rebuild_meta_tensor_no_storage",
    ),
    "one storage in a hundred tensors": (
        lambda: of_state(**dict.fromkeys(map(str, range(100)), torch.ones(1000).expand(10, 1000))),
        "with which the tensors take",
    ),
    "species that are a tensor": (
        lambda: of_parameters(species=torch.ones(1)),
        "holds torch.Tensor, which is not a plain value",
    ),
    "a mean without end": (
        lambda: of_parameters(mean=torch.ones(1).expand(2**40)),
        "holds torch.Tensor, which is not a plain value",
    ),
    "species that hold themselves": (recursive, "is nested too deeply or holds too many values"),
    "200,000 lists in one another": (
        lambda: with_pickle(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
        "expected a dict with 'state_dict', .* got list",
    ),
    "a member twice": (
        lambda: [*members_of(PLAIN), members_of(PLAIN)[0]],
        "'archive/data.pkl' is in the archive 2 times",
    ),
    "a member outside the archive's folder": (
        lambda: [*members_of(PLAIN), ("../../evil", b"")],
        "hyper_parameters lack backbone",
    ),
}


def write_archive(path: Path, members: Members, *, deflated: str = "") -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if name == deflated else zipfile.ZIP_STORED)


@pytest.mark.filterwarnings("ignore:Duplicate name", "ignore:Sparse invariant checks")
@pytest.mark.parametrize("case", ABSURD)
def test_archives_that_claim_what_they_do_not_hold_are_refused(tmp_path: Path, case: str) -> None:
    make, match = ABSURD[case]
    path = tmp_path / "a.ckpt"
    write_archive(path, make())
    with pytest.raises(CheckpointError, match=match) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 600 + 3 * len(str(path))


def test_members_that_lie_over_one_another_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_archive(path, members_of(PLAIN))
    data = bytearray(path.read_bytes())
    entry = data.find(b"PK\x01\x02")
    struct.pack_into("<II", data, entry + 20, 2**31, 2**31)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"its members claim 2,147,48\d,\d{3} bytes, the file has \d,\d{3}"):
        read_checkpoint(path)


READ = """
import pathlib, resource, sys
from plantmodels.checkpoint.reading import read_checkpoint
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28,) * 2)
for path in sys.argv[1:]:
    try:
        read_checkpoint(pathlib.Path(path))
    except Exception as error:
        print(type(error).__name__, str(error).replace("\\n", " "))
"""


@pytest.mark.slow
def test_no_memory_is_reserved_for_what_a_file_only_claims(tmp_path: Path) -> None:
    """The process may only use 256 MB beyond what torch uses, so reserving more would raise a MemoryError."""
    zeros = [(name, bytes(2**29) if name.endswith("data/0") else data) for name, data in members_of(PLAIN)]
    write_archive(tmp_path / "zip bomb.ckpt", zeros, deflated="archive/data/0")
    assert (tmp_path / "zip bomb.ckpt").stat().st_size < 2**20
    cases = ("4 GB without strides", "a bytearray of 16 GB", "an old tensor of 64 GB", "a mean without end")
    for case in cases:
        write_archive(tmp_path / f"{case}.ckpt", ABSURD[case][0]())
    paths = [tmp_path / f"{name}.ckpt" for name in ("zip bomb", *cases)]
    command = [sys.executable, "-c", READ, *map(str, paths)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=1200)
    lines = ran.stdout.splitlines()
    expected = (
        r"'archive/data/0' is compressed, [\d,]+ bytes become 536,870,912",
        *(ABSURD[case][1] for case in cases),
    )
    for line, path, match in zip(lines, paths, expected, strict=True):
        with pytest.raises(CheckpointError, match=match):
            raise CheckpointError(line)
        assert line.startswith(f"CheckpointError {path}: ")
