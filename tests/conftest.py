"""Shared fixtures: a very small real Swin with awkward class names, small drawn data, and its exported bundle.

Nothing is downloaded and no GPU is needed. What lies in session-scoped folders is read-only: a test that damages
something takes its own copy (`bundle_copy`) or writes its own checkpoint (`tiny_checkpoint_factory`).
"""

import copy
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import HealthCheck, settings
from PIL import Image

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.export.bundle import ExportSummary, export_bundle

pytest_plugins = ["tests.fixtures.reports"]

# Other programs on the machine must fail no test: neither an example's time nor that of drawing it counts.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

TINY_DISEASES = {
    "Pepper,_bell": ("Bacterial_spot", "healthy"),
    "Cherry_(including_sour)": ("Powdery_mildew", "Leaf spot", "healthy"),
    "Blueberry": ("healthy",),
    "Aloe sp. 2": ("rot", "healthy"),
}
TINY_SPECIES = ("Pepper,_bell", "Cherry_(including_sour)", "Mint", "Blueberry", "Aloe sp. 2")
"""Mint has no head, Blueberry has one class, and the dots of "Aloe sp. 2" cannot stand in a module's name."""

TINY_BACKBONE = "swin_tiny_patch4_window7_224"
TINY_KWARGS = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
TINY_DIM = 32
TINY_MEAN, TINY_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAIN_IMAGES, VAL_IMAGES, NON_PLANT_IMAGES = 20, 5, 24
SUFFIXES = (".jpg", ".png", ".webp", ".JPG", ".jpeg")


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own, in memory."""

    folder: Path

    def leave(self, size_kb: int) -> None:
        """Fills it but for so much."""
        filler = self.folder / "filler"
        filler.unlink(missing_ok=True)
        left = shutil.disk_usage(self.folder).free - size_kb * 1024
        filler.write_bytes(bytes(max(0, left)))

    def remount(self, mode: str) -> None:
        """Makes it read-only ("ro") or writable ("rw"); no file may be open for writing."""
        subprocess.run(["mount", "-o", f"remount,{mode}", self.folder], check=True)


class CheckpointFactory(Protocol):
    """Writes the tiny checkpoint, altered in place by `edit` where given, and returns its path."""

    def __call__(self, edit: Callable[[dict[str, Any]], None] | None = None) -> Path: ...


@dataclass(frozen=True)
class TinyBundle:
    """An exported bundle and what it was made from; all read-only."""

    bundle: Path
    checkpoint: Path
    data: Path
    non_plants: Path
    summary: ExportSummary


@dataclass(frozen=True)
class SigningKeys:
    """Files of two pairs of elliptic-curve keys."""

    private: Path
    public: Path
    other_private: Path
    other_public: Path


@dataclass(frozen=True)
class RealPaths:
    """The shared trained Swin-Tiny and real photographs."""

    checkpoint: Path
    leaves: Path
    non_plants: Path
    unseen_plants: Path


def make_picture(kind: int, seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A drawn picture: colour and stripes follow from `kind`, their phase and the noise from `seed`."""
    look, rng = np.random.default_rng(1_000 + kind), np.random.default_rng((kind, seed))
    colour, amplitude = look.uniform(60, 190, 3), look.uniform(20, 60, 3)
    frequency = look.uniform(0.5, 6, 2)
    y, x = np.mgrid[0 : size[1], 0 : size[0]] / max(size)
    wave = np.sin(2 * np.pi * (frequency[0] * x + frequency[1] * y) + rng.uniform(0, 2 * np.pi))
    pixels = colour + amplitude * wave[..., None] + rng.normal(0, 12, (*wave.shape, 3)) + rng.normal(0, 6, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session", autouse=True)
def ieee_floats() -> None:
    """Lets the test process keep denormal numbers, which hypothesis needs.

    ONNX Runtime asks the first session of a process alone whether denormals count as zero in the thread that
    opens it and in all that this starts later; ours say yes.
    """
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([], "nothing", [value], [value])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.float64(5e-324) * np.ones(1) > 0


def _class_labels() -> list[tuple[str, str]]:
    """Species and disease of each drawn kind; Mint's disease folder has a name that no head knows."""
    return [(name, disease) for name in TINY_SPECIES for disease in TINY_DISEASES.get(name, ("unlabelled",))]


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """`picture(kind, seed, size)`: one drawn RGB picture, always the same for the same arguments."""
    return make_picture


@pytest.fixture(scope="session")
def tiny_taxonomy() -> Taxonomy:
    return Taxonomy(TINY_SPECIES, TINY_DISEASES)


@pytest.fixture(scope="session")
def tiny_document() -> dict[str, Any]:
    """The tiny checkpoint as the dict that `torch.save` writes; copy it before changing it."""
    generator = torch.Generator().manual_seed(20)
    backbone = timm.create_model(TINY_BACKBONE, num_classes=0, **TINY_KWARGS)
    state = {f"backbone.{name}": tensor.clone() for name, tensor in backbone.state_dict().items()}
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            fan_in = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
        elif name.endswith(".bias"):
            state[name] = torch.randn(tensor.shape, generator=generator) * 0.1
    state["projection.weight"] = torch.randn(TINY_DIM, backbone.num_features, generator=generator) * 0.1
    state["projection.bias"] = torch.randn(TINY_DIM, generator=generator) * 0.1
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")})
    state |= _fit_heads(backbone.eval(), state["projection.weight"], state["projection.bias"])
    parameters = {
        "backbone": TINY_BACKBONE,
        "backbone_kwargs": TINY_KWARGS,
        "embedding_dim": TINY_DIM,
        "image_size": 224,
        "mean": list(TINY_MEAN),
        "std": list(TINY_STD),
        "species": list(TINY_SPECIES),
        "diseases": {name: list(diseases) for name, diseases in TINY_DISEASES.items()},
    }
    return {"epoch": 3, "state_dict": state, "hyper_parameters": parameters}


def _fit_heads(backbone: torch.nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
    """Heads by ridge regression on the random network's embedding: most drawn leaves are then recognised."""
    labels = _class_labels()
    pictures = [make_picture(kind, 500 + i).resize((224, 224)) for kind in range(len(labels)) for i in range(10)]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    pixels = (pixels - torch.tensor(TINY_MEAN).view(3, 1, 1)) / torch.tensor(TINY_STD).view(3, 1, 1)
    with torch.inference_mode():
        embedding = torch.nn.functional.linear(backbone(pixels), weight, bias)
    classes = [label for label in labels for _ in range(10)]
    state = _ridge("species_head", embedding, [TINY_SPECIES.index(species) for species, _ in classes])
    for species, diseases in TINY_DISEASES.items():
        rows = [i for i, label in enumerate(classes) if label[0] == species]
        targets = [diseases.index(classes[i][1]) for i in rows]
        state |= _ridge(f"disease_heads.{species.replace('.', '_')}", embedding[rows], targets)
    return state


def _ridge(name: str, features: torch.Tensor, labels: list[int]) -> dict[str, torch.Tensor]:
    targets = 6 * torch.nn.functional.one_hot(torch.tensor(labels)).float()
    padded = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    gram = padded.T @ padded + 0.01 * torch.eye(padded.shape[1])
    solution = torch.linalg.solve(gram, padded.T @ targets)
    return {f"{name}.weight": solution[:-1].T.contiguous(), f"{name}.bias": solution[-1].contiguous()}


@pytest.fixture(scope="session")
def tiny_checkpoint_factory(
    tiny_document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> CheckpointFactory:
    def write(edit: Callable[[dict[str, Any]], None] | None = None) -> Path:
        document = copy.deepcopy(tiny_document)
        if edit is not None:
            edit(document)
        path = tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt"
        torch.save(document, path)
        return path

    return write


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_checkpoint_factory: CheckpointFactory) -> Path:
    return tiny_checkpoint_factory()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Leaf folders: 20 train and 5 val images of each of 9 classes, in every accepted file type."""
    root = tmp_path_factory.mktemp("leaves")
    for kind, (species, disease) in enumerate(_class_labels()):
        for split, seeds in (("train", range(TRAIN_IMAGES)), ("val", range(900, 900 + VAL_IMAGES))):
            folder = root / split / f"{species}___{disease}"
            folder.mkdir(parents=True)
            for seed in seeds:
                make_picture(kind, seed).save(folder / f"leaf {seed}{SUFFIXES[seed % len(SUFFIXES)]}", quality=90)
    return root


@pytest.fixture(scope="session")
def tiny_non_plants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources, "bricks" and "noise", of 24 images each."""
    root = tmp_path_factory.mktemp("non_plants")
    for kind, source in ((100, "bricks"), (101, "noise")):
        (root / source).mkdir()
        for seed in range(NON_PLANT_IMAGES):
            image = make_picture(kind, seed)
            if source == "noise":
                image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))
            image.save(root / source / f"{seed}.png")
    return root


@pytest.fixture(scope="session")
def tiny_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_data: Path, tiny_non_plants: Path
) -> TinyBundle:
    bundle = tmp_path_factory.mktemp("export") / "models"
    summary = export_bundle(tiny_checkpoint, tiny_data, bundle, non_plants=tiny_non_plants)
    return TinyBundle(bundle, tiny_checkpoint, tiny_data, tiny_non_plants, summary)


@pytest.fixture
def bundle_copy(tiny_bundle: TinyBundle, tmp_path: Path) -> Path:
    """A private copy of the tiny bundle, to damage."""
    return Path(shutil.copytree(tiny_bundle.bundle, tmp_path / "bundle copy"))


@pytest.fixture(scope="session")
def signing_keys(tmp_path_factory: pytest.TempPathFactory) -> SigningKeys:
    """Two pairs of P-256 keys, the private ones without a password."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("", "other-"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{name}private.pem").write_bytes(private)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}public.pem").write_bytes(public)
    names = ("private.pem", "public.pem", "other-private.pem", "other-public.pem")
    return SigningKeys(*(folder / name for name in names))


@pytest.fixture(scope="session")
def real_paths() -> RealPaths:
    """The shared real data; skips where it is not. PLANTMODELS_SHARED names another place."""
    shared = Path(os.environ.get("PLANTMODELS_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    checkpoints = sorted((shared / "checkpoints" / "hierarchical_full").glob("*.ckpt"))
    if not checkpoints or not (shared / "data").is_dir():
        pytest.skip(f"no checkpoint and photographs in {shared}")
    data = shared / "data"
    return RealPaths(checkpoints[-1], data / "leaves", data / "non_plants", data / "unseen_plants")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], SmallDisk]]:
    """`small_disk(1024)`: a disk of so many KB; skips where none can be mounted."""
    mounted: list[Path] = []

    def mount(size_kb: int) -> SmallDisk:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={size_kb}k,mode=755"]
        if subprocess.run(["mount", *options, "tmpfs", folder], capture_output=True, check=False).returncode:
            pytest.skip("file systems cannot be mounted here")
        mounted.append(folder)
        return SmallDisk(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def embedded_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """sqlite tracking and registry and a local artifact folder, all below the test's own folder."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(None)
    yield uri
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_for(condition: Callable[[], object], timeout_s: float = 30) -> None:
    """Asks again and again until something is true."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.2)


@pytest.fixture(scope="session", name="wait_for")
def _wait_for() -> Callable[..., None]:
    return wait_for


@pytest.fixture(scope="session", name="answers")
def _answers() -> Callable[[str], bool]:
    return answers


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[str]]:
    """`with serve(model_uri, folder) as url`: `mlflow models serve` and the address of its invocations."""

    @contextmanager
    def start(model_uri: str, folder: Path) -> Iterator[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "models",
            "serve",
            "--model-uri",
            model_uri,
            "--env-manager",
            "local",
        ]
        with (folder / "serve.log").open("w") as log:
            process = subprocess.Popen(
                [*command, "--port", address.rsplit(":", 1)[1], "--workers", "1"],
                cwd=folder,
                env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},  # uvicorn is there
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_for(lambda: process.poll() is not None or answers(f"http://{address}/ping"), 90)
            assert process.poll() is None, (folder / "serve.log").read_text()
            yield f"http://{address}/invocations"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    return start
