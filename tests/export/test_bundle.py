"""Checks a whole export: it writes exactly the files of contract 3, and a failure leaves an older bundle unchanged."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from plantmodels.bundle.detector import read_detector
from plantmodels.bundle.manifest import check_files, digest_file, list_files, read_manifest, write_manifest
from plantmodels.bundle.metadata import read_metadata
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.data.digests import digest_images
from plantmodels.data.leaves import digest_leaves, read_leaves
from plantmodels.data.non_plants import read_non_plants
from plantmodels.errors import PlantModelsError
from plantmodels.export import bundle as export_module
from plantmodels.export.bundle import export_bundle
from plantmodels.export.calibration.temperatures import fit_temperature
from plantmodels.export.network import load_network
from plantmodels.export.onnx_species import ExportedSpecies
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.preprocessing import decode_image, preprocess

ROOT = Path(__file__).resolve().parents[2]
FLOAT_ATOL = 2e-4
"""Float32 rounds differently in other kernels; the values are of order ten."""


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def ready_model(tiny_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip PyTorch's exporter: the species model of the session's bundle is used instead."""
    model = onnx.load(tiny_bundle.bundle / "swin-species.onnx")
    monkeypatch.setattr(export_module, "export_species", lambda *_: ExportedSpecies(model, "swin", 0.0))


@pytest.fixture
def old_bundle(tmp_path: Path) -> Path:
    out = tmp_path / "public" / "models"
    out.mkdir(parents=True)
    (out / "swin-species.onnx").write_text("good and old")
    write_manifest(out)
    return out


class TestBundle:
    def test_holds_exactly_the_files_of_contract_3(self, tiny_bundle) -> None:
        assert list_files(tiny_bundle.bundle) == (
            "disease-heads-list.json",
            "disease-heads-packed.onnx",
            "disease-heads/aloe-sp-2-int8.onnx",
            "disease-heads/blueberry-int8.onnx",
            "disease-heads/cherry-including-sour-int8.onnx",
            "disease-heads/pepper-bell-int8.onnx",
            "onnx-metadata.json",
            "ood-detector.pkl",
            "plant-classifier-int8.onnx",
            "swin-species-int8.onnx",
            "swin-species.onnx",
        )
        check_files(tiny_bundle.bundle, read_manifest(tiny_bundle.bundle))
        assert [path.name for path in tiny_bundle.bundle.parent.iterdir()] == ["models"]

    def test_every_model_passes_the_checker(self, tiny_bundle) -> None:
        for path in tiny_bundle.bundle.rglob("*.onnx"):
            onnx.checker.check_model(str(path), full_check=True)
            assert "/work" not in path.read_bytes().decode("latin1")

    def test_only_products_are_quantized(self, tiny_bundle) -> None:
        graph = onnx.shape_inference.infer_shapes(onnx.load(tiny_bundle.bundle / "swin-species-int8.onnx")).graph
        kinds = [node.op_type for node in graph.node]
        types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        inputs = [
            node.input[0]
            for node in graph.node
            if node.op_type in ("LayerNormalization", "Attention", "Gelu", "Conv", "Gemm")
        ]

        assert {"MatMulIntegerToFloat", "DynamicQuantizeLinear", "LayerNormalization", "Attention", "Gelu"} <= set(
            kinds
        )
        assert not {"ConvInteger", "QLinearConv", "QLinearMatMul", "MatMul"} & set(kinds)
        assert kinds.count("Gemm") == 2, "projection and species head, on one row an image"
        assert {types.get(name, onnx.TensorProto.FLOAT) for name in inputs} == {onnx.TensorProto.FLOAT}

    def test_the_metadata_describes_every_model_as_it_is(self, tiny_bundle, tiny_taxonomy) -> None:
        metadata = read_metadata(tiny_bundle.bundle)
        written = json.loads((tiny_bundle.bundle / "onnx-metadata.json").read_text())

        assert written == json.loads(json.dumps(tiny_bundle.summary.metadata.to_dict()))
        assert metadata.taxonomy == tiny_taxonomy
        assert set(metadata.models) == {name for name in list_files(tiny_bundle.bundle) if name.endswith(".onnx")}
        for name, model in metadata.models.items():
            session = ort.InferenceSession(tiny_bundle.bundle / name, providers=["CPUExecutionProvider"])
            for described, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
                assert [(v["name"], v["shape"]) for v in model[described]] == [(v.name, v.shape) for v in values]
                kinds = {"float32": "tensor(float)", "int64": "tensor(int64)", "bool": "tensor(bool)"}
                assert [kinds[v["dtype"]] for v in model[described]] == [v.type for v in values]
            assert model["opset"]["ai.onnx"] >= 18
        species = metadata.models["swin-species-int8.onnx"]
        assert species["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["batch", 3, 224, 224]}]
        assert (species["precision"], species["rows_per_run"], species["recipe"]["per_channel"]) == ("int8", 1, True)
        assert metadata.models["swin-species.onnx"]["rows_per_run"] is None

    def test_the_summary_counts_single_heads_apart_from_the_packed_file(self, tiny_bundle) -> None:
        text = tiny_bundle.summary.describe()
        assert "disease-heads/ (4 files, largest" in text and "  disease-heads-packed.onnx" in text

    def test_the_summary_says_how_often_int8_is_right(self, tiny_bundle) -> None:
        found = re.search(
            r"^INT8 names the right species for (\d+\.\d) % of 180 training leaves, and given the species, the right "
            r"disease for (\d+\.\d) % of 140$",
            tiny_bundle.summary.describe(),
            re.MULTILINE,
        )
        assert found is not None and min(map(float, found.groups())) > 70

    def test_the_metadata_names_its_inputs_and_versions(self, tiny_bundle) -> None:
        metadata = read_metadata(tiny_bundle.bundle)
        provenance = metadata.provenance

        assert provenance["checkpoint_sha256"] == digest_file(tiny_bundle.checkpoint).sha256
        assert provenance["data_sha256"] == digest_leaves(read_leaves(tiny_bundle.data, "train", metadata.taxonomy))
        others = tiny_bundle.non_plants.rglob("*.png")
        assert provenance["non_plants_sha256"] == digest_images(tiny_bundle.non_plants, others)
        assert (provenance["seed"], provenance["backbone"]) == (0, "swin_tiny_patch4_window7_224")
        assert metadata.versions["torch"] == torch.__version__.split("+")[0]
        assert metadata.versions.keys() >= {"plantmodels", "timm", "onnx", "onnxruntime", "numpy"}
        assert metadata.session_options == {"session.set_denormal_as_zero": "1"}
        assert metadata.cpu["architecture"]
        assert str(tiny_bundle.checkpoint.parent) not in (tiny_bundle.bundle / "onnx-metadata.json").read_text()

    def test_fp16_equals_pytorch_with_rounded_weights_on_leaves(self, tiny_bundle, tiny_checkpoint_factory) -> None:
        classifier = PlantClassifier.load(tiny_bundle.bundle, precision="fp16", threads=1)
        network = load_network(read_checkpoint(tiny_checkpoint_factory(round_to_fp16)))
        paths = sorted((tiny_bundle.data / "val").rglob("*.*"))[::4]
        preprocessing = classifier.metadata.preprocessing
        pixels = np.stack([preprocess(decode_image(p.read_bytes()), preprocessing) for p in paths if p.is_file()])
        with torch.inference_mode():
            expected = [output.numpy() for output in network(torch.from_numpy(pixels))]

        for output, reference in zip(classifier.embed(pixels), expected, strict=True):
            np.testing.assert_allclose(output, reference, atol=FLOAT_ATOL)
        for slug, head in load_network(read_checkpoint(tiny_bundle.checkpoint)).disease_heads.items():
            index = classifier.taxonomy.slugs.index(slug)
            rows = np.full(len(pixels), index, np.int64)
            logits = classifier.run_heads(expected[1].astype(np.float32), rows)
            with torch.inference_mode():
                exact = head(torch.from_numpy(expected[1].copy())).numpy()
            # INT8 weights: half a step of 1/127 of the largest weight of a class, for each embedding value
            step = head.weight.detach().abs().max(dim=1).values.numpy() / 127
            bound = np.abs(expected[1]).sum(axis=1, keepdims=True) * step / 2 + 1e-3
            assert (np.abs(logits[:, : exact.shape[1]] - exact) <= bound).all()

    def test_the_summary_lists_sizes_and_times(self, tiny_bundle) -> None:
        summary = tiny_bundle.summary

        assert summary.bundle == tiny_bundle.bundle
        assert summary.unreadable == ()
        assert summary.sizes == {
            name: (tiny_bundle.bundle / name).stat().st_size for name in read_metadata(tiny_bundle.bundle).models
        }
        assert all(seconds >= 0 for seconds in summary.seconds.values())
        assert {"read", "export species", "quantize INT8", "disease heads", "select detector"} <= set(summary.seconds)


def round_to_fp16(document: dict[str, Any]) -> None:
    for name, tensor in document["state_dict"].items():
        if tensor.is_floating_point() and tensor.numel() >= 16:
            document["state_dict"][name] = tensor.half().float()


def embed_by_hand(bundle: Path, paths: tuple[Path, ...]) -> np.ndarray:
    session = ort.InferenceSession(bundle / "swin-species-int8.onnx", providers=["CPUExecutionProvider"])
    preprocessing = read_metadata(bundle).preprocessing
    rows = [
        session.run(["embedding"], {"input": preprocess(decode_image(path.read_bytes()), preprocessing)[None]})[0][0]
        for path in paths
    ]
    return np.stack(rows).astype(np.float64)


def test_the_temperatures_are_fitted_on_the_served_outputs_of_training_leaves(tiny_bundle, tiny_taxonomy) -> None:
    classifier = PlantClassifier.load(tiny_bundle.bundle, threads=1)
    metadata = classifier.metadata
    leaves = read_leaves(tiny_bundle.data, "train", tiny_taxonomy)
    pixels = np.stack([preprocess(decode_image(p.read_bytes()), metadata.preprocessing) for p in leaves.paths])
    logits, embedding = classifier.embed(pixels)
    species = np.array([s.species_index for s in leaves.samples])
    headed = np.array([s.disease_index is not None for s in leaves.samples])
    diseases = np.array([s.disease_index for s in leaves.samples if s.disease_index is not None])
    heads = classifier.run_heads(embedding[headed], species[headed])

    assert metadata.species_temperature == pytest.approx(fit_temperature(logits, species), rel=1e-4)
    assert metadata.disease_temperature == pytest.approx(fit_temperature(heads, diseases), rel=1e-4)


def test_the_detector_is_fitted_on_all_leaves_and_the_selection_half(tiny_bundle, tiny_taxonomy) -> None:
    detector = read_detector(tiny_bundle.bundle / "ood-detector.pkl")
    leaves = read_leaves(tiny_bundle.data, "train", tiny_taxonomy)
    others = read_non_plants(tiny_bundle.non_plants).half("selection")
    plants, other_features = (embed_by_hand(tiny_bundle.bundle, part.paths) for part in (leaves, others))
    labels = np.array([f"{s.species_index} {s.disease_index}" for s in leaves.samples])
    order = dict.fromkeys(f"{s.species_index} {s.disease_index}" for s in sorted(leaves.samples, key=by_class))
    means = np.stack([plants[labels == label].mean(axis=0) for label in order])

    assert detector.method == "gaussian_ratio"
    np.testing.assert_allclose(detector.mean, means, atol=1e-5)
    np.testing.assert_allclose(detector.other_mean, other_features.mean(axis=0), atol=1e-5)
    assert detector.fit["fit_images"] == detector.fit["calibration_images"] == len(detector.plant_scores) == 180
    assert detector.fit["selection_images"] == detector.fit["fit_non_plants"] == len(others.paths)
    assert detector.fit["quantile"] == pytest.approx((detector.plant_scores <= detector.threshold).mean())


def test_the_evidence_for_the_detector_is_in_the_metadata(tiny_bundle) -> None:
    entry = read_metadata(tiny_bundle.bundle).provenance["detector"]
    served = [trial["method"] for trial in entry["trials"] if trial["served"]]

    assert served == ["mahalanobis", "class_mahalanobis", "gaussian_ratio"]
    assert len(entry["trials"]) == 11
    assert entry["reason"].startswith("of ")


def by_class(sample) -> tuple[int, int]:
    return sample.species_index, -1 if sample.disease_index is None else sample.disease_index


@pytest.mark.usefixtures("ready_model")
class TestVariants:
    def test_without_non_plants_the_classic_detector(self, tiny_bundle, tmp_path: Path) -> None:
        # the val folder is absent, a link leads to the checkpoint, and the parents of `out` are made
        data = tmp_path / "data"
        data.mkdir()
        (data / "train").symlink_to(tiny_bundle.data / "train")
        (tmp_path / "last.ckpt").symlink_to(tiny_bundle.checkpoint)
        summary = export_bundle(tmp_path / "last.ckpt", data, tmp_path / "a" / "b" / "models")
        detector = read_detector(summary.bundle / "ood-detector.pkl")

        assert (detector.method, detector.mean.shape) == ("mahalanobis", (1, 32))
        assert summary.metadata.provenance["non_plants_sha256"] is None
        assert detector.fit["selection_images"] == 0

    def test_an_old_bundle_is_replaced_with_its_report(self, tiny_bundle, old_bundle: Path) -> None:
        (old_bundle / "gate-report.json").write_text("{}")
        export_bundle(tiny_bundle.checkpoint, tiny_bundle.data, old_bundle)

        assert list_files(old_bundle) == list_files(tiny_bundle.bundle)
        PlantClassifier.load(old_bundle, threads=1)

    def test_the_seed_chooses_the_held_out_leaves(self, tiny_bundle, tmp_path: Path) -> None:
        fits = []
        for seed in (0, 1):
            summary = export_bundle(tiny_bundle.checkpoint, tiny_bundle.data, tmp_path / "models", seed=seed)
            detector = read_detector(summary.bundle / "ood-detector.pkl")
            assert summary.metadata.provenance["seed"] == seed
            fits.append((detector.threshold, detector.mean[0, 0]))

        assert fits[0] != fits[1]

    def test_one_unreadable_image_of_many_is_skipped_and_named(self, tiny_bundle, tmp_path: Path) -> None:
        data, bad = self.leaves_by_manifest(tiny_bundle.data, tmp_path, bad=1)
        summary = export_bundle(tiny_bundle.checkpoint, data, tmp_path / "models")

        assert [image.path for image in summary.unreadable] == bad
        assert "No such file" in summary.unreadable[0].reason

    def test_a_checkpoint_without_any_head(self, tiny_bundle, tiny_checkpoint_factory, tmp_path: Path) -> None:
        def edit(document: dict[str, Any]) -> None:
            document["hyper_parameters"]["diseases"] = {}
            state = document["state_dict"]
            document["state_dict"] = {n: t for n, t in state.items() if not n.startswith("disease_heads.")}

        summary = export_bundle(tiny_checkpoint_factory(edit), tiny_bundle.data, tmp_path / "models")
        image = (tiny_bundle.data / "val" / "Blueberry___healthy" / "leaf 900.jpg").read_bytes()
        row = PlantClassifier.load(summary.bundle, threads=1).predict([image])[0]

        assert (row.species, row.disease, row.error) == ("Blueberry", None, None)
        assert json.loads((summary.bundle / "disease-heads-list.json").read_text()) == {}
        assert not [name for name in list_files(summary.bundle) if name.startswith("disease-heads/")]

    @staticmethod
    def leaves_by_manifest(data: Path, tmp_path: Path, *, bad: int) -> tuple[Path, list[Path]]:
        """A manifest of the train leaves and of `bad` files that are not there."""
        paths = sorted(path for path in (data / "train").rglob("*") if path.is_file())
        absent = [tmp_path / f"absent {i}.jpg" for i in range(bad)]
        lines = [f'"{path}","{path.parent.name.replace("___", chr(34) + "," + chr(34))}",train' for path in paths]
        lines += [f'"{path}",Mint,,train' for path in absent]
        manifest = tmp_path / "leaves.csv"
        manifest.write_text("\n".join(["path,species,disease,split", *lines]) + "\n")
        return manifest, absent


Arguments = dict[str, Any]

FAILURES: dict[str, tuple[Callable[[Arguments, Any], object], str]] = {
    "no checkpoint": (lambda a, tmp: a.update(checkpoint=tmp / "none.ckpt"), "no such checkpoint file"),
    "no data": (lambda a, tmp: a.update(data=tmp / "none"), "no such data folder or manifest"),
    "no train split": (lambda a, tmp: a.update(data=a["data"] / "val"), "train: no such folder"),
    "no non-plants": (lambda a, tmp: a.update(non_plants=tmp / "none"), "no such folder of non-plants"),
    "too few leaves": (lambda a, tmp: a.update(data=few_leaves(a["data"], tmp, 60)), "training images"),
    "an unknown class": (lambda a, tmp: a.update(data=unknown_class(a["data"], tmp)), "'Fig___rot' is not in the"),
    "unreadable leaves": (
        lambda a, tmp: a.update(data=TestVariants.leaves_by_manifest(a["data"], tmp, bad=3)[0]),
        "over 1% of 183 images cannot be read",
    ),
    "unreadable non-plants": (
        lambda a, tmp: a.update(non_plants=bad_non_plants(tmp)),
        "over 1% of 20 images cannot be read",
    ),
}


def few_leaves(data: Path, tmp_path: Path, count: int) -> Path:
    target = tmp_path / "few" / "train"
    for path in sorted(p for p in (data / "train").rglob("*") if p.is_file())[:count]:
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        (target / path.parent.name / path.name).symlink_to(path)
    return target.parent


def unknown_class(data: Path, tmp_path: Path) -> Path:
    few = few_leaves(data, tmp_path, 150)
    (few / "train" / "Fig___rot").mkdir()
    (few / "train" / "Fig___rot" / "a.jpg").write_bytes(b"")
    return few


def bad_non_plants(tmp_path: Path) -> Path:
    (tmp_path / "others").mkdir()
    for i in range(20):
        (tmp_path / "others" / f"{i}.png").write_text(f"bad {i}")
    return tmp_path / "others"


class TestFailure:
    def export(self, tiny_bundle, out: Path, tmp_path: Path, change: Callable[[Arguments, Any], object]) -> None:
        arguments = {name: getattr(tiny_bundle, name) for name in ("checkpoint", "data", "non_plants")}
        change(arguments, tmp_path)
        export_bundle(arguments["checkpoint"], arguments["data"], out, non_plants=arguments["non_plants"])

    @pytest.mark.usefixtures("ready_model")
    @pytest.mark.parametrize("case", FAILURES)
    def test_leaves_the_old_bundle_as_it_was(self, tiny_bundle, old_bundle: Path, tmp_path: Path, case: str) -> None:
        change, match = FAILURES[case]
        before = snapshot(old_bundle)

        with pytest.raises(PlantModelsError, match=match):
            self.export(tiny_bundle, old_bundle, tmp_path, change)
        assert snapshot(old_bundle) == before
        assert [path.name for path in old_bundle.parent.iterdir()] == ["models"]

    @pytest.mark.parametrize("case", ["no train split", "too few leaves", "an unknown class"])
    def test_invalid_inputs_are_refused_before_the_work(
        self, tiny_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
    ) -> None:
        monkeypatch.setattr(export_module, "export_species", lambda *_: pytest.fail("the work was begun"))
        change, match = FAILURES[case]

        with pytest.raises(PlantModelsError, match=match):
            self.export(tiny_bundle, tmp_path / "models", tmp_path, change)

    def test_embeddings_that_overflow_are_refused(
        self, tiny_bundle, old_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = onnx.load(tiny_bundle.bundle / "swin-species.onnx")
        node = next(node for node in model.graph.node if "embedding" in node.output)
        for other in model.graph.node:
            other.input[:] = ["finite" if name == "embedding" else name for name in other.input]
        node.output[:] = ["finite" if name == "embedding" else name for name in node.output]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(3e38, np.float32), "huge"))
        for source, target in (("finite", "larger"), ("larger", "embedding")):
            model.graph.node.append(onnx.helper.make_node("Mul", [source, "huge"], [target]))
        monkeypatch.setattr(export_module, "export_species", lambda *_: ExportedSpecies(model, "swin", 0.0))
        before = snapshot(old_bundle)

        with pytest.raises(PlantModelsError, match="an embedding holds NaN or infinity"):
            export_bundle(tiny_bundle.checkpoint, tiny_bundle.data, old_bundle)
        assert snapshot(old_bundle) == before

    def test_a_weight_beyond_float16_is_refused(
        self, tiny_bundle, old_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        weight = onnx.numpy_helper.from_array(np.full(16, 1e5, np.float32), "giant")
        model = onnx.load(tiny_bundle.bundle / "swin-species.onnx")
        model.graph.initializer.append(weight)
        monkeypatch.setattr(export_module, "export_species", lambda *_: ExportedSpecies(model, "swin", 0.0))
        before = snapshot(old_bundle)

        with pytest.raises(PlantModelsError, match=r"weight 'giant' holds 1e\+05, beyond float16's 65504"):
            export_bundle(tiny_bundle.checkpoint, tiny_bundle.data, old_bundle)
        assert snapshot(old_bundle) == before

    def test_a_folder_of_something_else_is_not_replaced(self, tiny_bundle, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "a.jpg").write_bytes(b"dear")
        (tmp_path / "file").write_text("")
        for out, match in ((tmp_path / "photos", "not a bundle"), (tmp_path / "file", "not a folder")):
            with pytest.raises(PlantModelsError, match=match):
                export_bundle(tmp_path / "not read yet.ckpt", tmp_path, out)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos"]

    @pytest.mark.usefixtures("ready_model")
    def test_an_interrupt_leaves_nothing_behind(self, tiny_bundle, old_bundle: Path, monkeypatch) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = snapshot(old_bundle)
        monkeypatch.setattr(export_module, "write_detector", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_bundle(tiny_bundle.checkpoint, tiny_bundle.data, old_bundle)
        assert snapshot(old_bundle) == before
        assert [path.name for path in old_bundle.parent.iterdir()] == ["models"]
