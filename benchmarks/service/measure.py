"""Measures the service beside its peers, in turns, and under a crowd of 64 clients.

Clients and server share the cores with all other programs, so a rate is that of the whole machine. Beside it stand the
seconds of processor time for each answer, which hardly depend on other programs.
"""

import base64
import io
import json
import os
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from benchmarks.driver import Patience, run_child
from benchmarks.service.servers import MemoryWatch, Server, run_server
from benchmarks.serving import make_store_environment

CONTESTANTS: Final = ("native", "service", "mlflow", "echo")
CLIENTS: Final = (1, 16)

_CLIENTS_MODULE: Final = "benchmarks.service.clients"
_PHOTOGRAPHS: Final = 8
_PHOTOGRAPH_SIZE: Final = (4000, 3000)
_PHOTOGRAPH_BYTES: Final = 4_000_000


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: number of turns of each contestant with each number of clients.
        seconds: length of each turn.
        crowd_clients: number of clients in the crowd.
        crowd_seconds: how long the crowd asks.
    """

    rounds: int = 3
    seconds: float = 10.0
    crowd_clients: int = 64
    crowd_seconds: float = 60.0


def measure_service(bundle: Path, images: Sequence[Path], plan: Plan, patience: Patience) -> dict[str, Any]:
    """Register a bundle in a new store, and measure all contestants that serve it.

    Args:
        bundle: the bundle.
        images: files of images.
        plan: how long to measure.
        patience: how long to wait for a quiet machine.
    """
    with tempfile.TemporaryDirectory(prefix="plantmodels-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        environment = make_store_environment(temporary)
        run_child("benchmarks.serving", ["register", str(bundle), temporary], environment)
        run_child("benchmarks.serving", ["move", "1"], environment)
        write_bodies(images[:32], folder)
        servers = {
            name: stack.enter_context(run_server(name, environment, folder / f"{name}.log"))
            for name in CONTESTANTS
            if name != "native"
        }
        steady = measure_turns(bundle, folder, servers, plan, patience)
        expected = write_photographs(bundle, images[:_PHOTOGRAPHS], folder)
        patience.wait()
        crowd = measure_crowd(servers["service"], folder, expected, plan)
    return {"plan": asdict(plan), "steady": steady, "crowd": crowd}


def write_bodies(images: Sequence[Path], folder: Path) -> None:
    """Write the images as they are, and as MLflow's JSON."""
    for kind in ("images", "json"):
        (folder / kind).mkdir()
    for number, path in enumerate(images):
        content = path.read_bytes()
        (folder / "images" / f"{number:03}").write_bytes(content)
        document = json.dumps({"instances": [base64.b64encode(content).decode()]})
        (folder / "json" / f"{number:03}").write_text(document)


def write_photographs(bundle: Path, images: Sequence[Path], folder: Path) -> Path:
    """Write images as large as telephones make them, and the classifier's own answers to them; return their file."""
    from plantmodels.serve.classifier import PlantClassifier
    from plantmodels.service.answers import describe_row

    (folder / "photographs").mkdir()
    encoded = [enlarge(path) for path in images]
    for number, content in enumerate(encoded):
        (folder / "photographs" / f"{number:03}").write_bytes(content)
    answers = PlantClassifier.load(bundle).predict(encoded, on_error="raise")
    path = folder / "expected.json"
    path.write_text(json.dumps([describe_row(answer, top_k=0) for answer in answers]))
    return path


def enlarge(path: Path) -> bytes:
    """Return an image as a JPEG of 4000 × 3000 with noise, so that it has about 4 MB."""
    large = Image.open(path).convert("RGB").resize(_PHOTOGRAPH_SIZE)
    noise = np.random.default_rng(0).normal(0, 6, (*_PHOTOGRAPH_SIZE[::-1], 1))
    noisy = Image.fromarray(np.clip(np.asarray(large) + noise, 0, 255).astype(np.uint8))
    for quality in range(95, 30, -5):
        encoded = io.BytesIO()
        noisy.save(encoded, "JPEG", quality=quality)
        if encoded.tell() <= _PHOTOGRAPH_BYTES:
            break
    return encoded.getvalue()


def measure_turns(
    bundle: Path, folder: Path, servers: dict[str, Server], plan: Plan, patience: Patience
) -> list[dict[str, Any]]:
    """Let the contestants take turns, and return a summary of each with each number of clients."""
    turns: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for turn in range(plan.rounds):
        for clients in CLIENTS:
            for name in sorted(CONTESTANTS, reverse=bool(turn % 2)):
                patience.wait()
                taken = _take_turn(name, bundle, folder, servers, clients, plan.seconds)
                turns.setdefault((name, clients), []).append(taken)
    return [{"name": name, "clients": clients, **summarize(taken)} for (name, clients), taken in turns.items()]


def _take_turn(
    name: str, bundle: Path, folder: Path, servers: dict[str, Server], clients: int, seconds: float
) -> dict[str, Any]:
    options = ["--clients", str(clients), "--seconds", str(seconds)]
    if name == "native":
        return dict(run_child("benchmarks.service.native", [str(bundle), str(folder / "images"), *options]))
    path, kind, bodies = ("/predict", "image/jpeg", "images")
    if name == "mlflow":
        path, kind, bodies = ("/invocations", "application/json", "json")
    server = servers[name]
    before = server.processor_s()
    found = run_child(_CLIENTS_MODULE, ["steady", str(server.port), path, kind, str(folder / bodies), *options])
    used = server.processor_s() - before
    return found | {"server_s": used, "foreign": _measure_others(found, used)}


def _measure_others(found: dict[str, Any], server_s: float) -> float:
    """Return the share of the cores that other programs used: neither the clients nor the server."""
    return float(max(0.0, found["foreign"] - server_s / (found["process_s"] * (os.cpu_count() or 1))))


def summarize(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over turns of the rate, of quantiles of seconds, and of processor time for each answer.

    `rounds_per_second` and `rounds_p50_s` are the rate and the median of each turn.
    """
    rates = [len(turn["seconds"]) / turn["elapsed_s"] for turn in turns]
    middles = [statistics.median(turn["seconds"]) for turn in turns]

    def median(values: Iterable[float]) -> float:
        return statistics.median(values)

    return {
        "rounds_per_second": rates,
        "rounds_p50_s": middles,
        "per_second": median(rates),
        "p50_s": median(middles),
        "p95_s": median(float(np.quantile(turn["seconds"], 0.95)) for turn in turns),
        "server_s": median(turn["server_s"] / len(turn["seconds"]) for turn in turns),
        "client_s": median(turn["client_s"] / len(turn["seconds"]) for turn in turns),
        "foreign": median(turn["foreign"] for turn in turns),
    }


def measure_crowd(server: Server, folder: Path, expected: Path, plan: Plan) -> dict[str, Any]:
    """Let a crowd ask the service, and return its answers, its memory and how soon it refused."""
    arguments = ["crowd", str(server.port), str(folder / "photographs"), str(expected)]
    options = ["--clients", str(plan.crowd_clients), "--seconds", str(plan.crowd_seconds)]
    before = server.processor_s()
    with MemoryWatch(server) as watch:
        found = run_child(_CLIENTS_MODULE, [*arguments, *options])
    found["foreign"] = _measure_others(found, server.processor_s() - before)
    refused, answered = found.pop("refused_s"), found.pop("answered_s")
    half = len(watch.samples) // 2
    return {
        **{key: found[key] for key in ("answers", "wrong", "first_wrong", "foreign")},
        "peak_mb": max(watch.samples),
        "halves_mb": [max(watch.samples[:half]), max(watch.samples[half:])],
        "answered": len(answered),
        "answered_p50_s": statistics.median(answered) if answered else None,
        "answered_max_s": max(answered, default=None),
        "refused": len(refused),
        "refused_p50_s": statistics.median(refused) if refused else None,
        "refused_p99_s": float(np.quantile(refused, 0.99)) if refused else None,
        "refused_max_s": max(refused, default=None),
    }
