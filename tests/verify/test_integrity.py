import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from plantmodels.bundle.layout import HEADS_FOLDER, PACKED_HEADS_FILE, SPECIES_FILES, head_file
from plantmodels.bundle.metadata import Metadata, read_metadata
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.checkpoint.reading import Checkpoint, read_checkpoint
from plantmodels.errors import BundleError
from plantmodels.export.onnx_heads import Int8Head, build_int8_head, quantize_head
from plantmodels.serve.session import open_session
from plantmodels.verify import integrity, opening
from plantmodels.verify.opening import open_heads, open_models

PEPPER, CHERRY, ALOE = (head_file(slug) for slug in ("pepper-bell", "cherry-including-sour", "aloe-sp-2"))


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return read_checkpoint(tiny_checkpoint)


@pytest.fixture
def metadata(bundle_copy: Path) -> Metadata:
    return read_metadata(bundle_copy)


def find_load_failures(bundle: Path, metadata: Metadata) -> dict[str, str]:
    names = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*.onnx"))
    contents = {name: (bundle / name).read_bytes() for name in names}
    return integrity.find_load_failures(contents, open_models(contents, metadata))


def find_head_problems(bundle: Path, metadata: Metadata, checkpoint: Checkpoint | None) -> tuple[str, ...]:
    return integrity.find_head_problems(open_heads(bundle, metadata), metadata, checkpoint)


def test_a_complete_bundle_has_no_problem(bundle_copy: Path, metadata: Metadata, checkpoint: Checkpoint) -> None:
    assert find_load_failures(bundle_copy, metadata) == {}
    assert find_head_problems(bundle_copy, metadata, checkpoint) == ()
    assert find_head_problems(bundle_copy, metadata, None) == ()


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
@pytest.mark.parametrize("name", [SPECIES_FILES["int8"], SPECIES_FILES["fp16"], PACKED_HEADS_FILE, PEPPER])
def test_a_truncated_file_fails_to_load(bundle_copy: Path, metadata: Metadata, name: str, share: float) -> None:
    path = bundle_copy / name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    failures = find_load_failures(bundle_copy, metadata)
    assert list(failures) == [name]
    assert str(bundle_copy) not in failures[name]


def test_a_file_that_the_checker_accepts_must_also_open(bundle_copy: Path, metadata: Metadata) -> None:
    model = onnx.load(bundle_copy / PEPPER)
    model.graph.node[-1].domain = "nobody.knows"
    model.opset_import.append(onnx.helper.make_opsetid("nobody.knows", 1))
    onnx.checker.check_model(model)
    onnx.save(model, bundle_copy / PEPPER)
    failures = find_load_failures(bundle_copy, metadata)
    assert list(failures) == [PEPPER]
    assert "ONNX Runtime cannot open it" in failures[PEPPER]


def test_swapped_heads_of_equal_shape_are_found(bundle_copy: Path, metadata: Metadata, checkpoint: Checkpoint) -> None:
    first, second = bundle_copy / PEPPER, bundle_copy / ALOE
    first.rename(bundle_copy / "spare")
    second.rename(first)
    (bundle_copy / "spare").rename(second)
    problems = find_head_problems(bundle_copy, metadata, checkpoint)
    against_checkpoint = [problem for problem in problems if "not the checkpoint's head" in problem]
    assert [problem.split(":")[0] for problem in against_checkpoint] == [PEPPER, ALOE]
    assert "of 'Pepper,_bell'" in against_checkpoint[0]
    against_packed = find_head_problems(bundle_copy, metadata, None)
    assert len(against_packed) == 2
    assert all(problem.startswith(f"{PACKED_HEADS_FILE}: its row of") for problem in against_packed)


def test_a_packed_graph_with_two_species_swapped_is_found(
    bundle_copy: Path, metadata: Metadata, checkpoint: Checkpoint
) -> None:
    model = onnx.load(bundle_copy / PACKED_HEADS_FILE)
    for tensor in model.graph.initializer:
        if tensor.name in ("weight", "scale", "bias"):
            values = numpy_helper.to_array(tensor).copy()
            values[[0, 4]] = values[[4, 0]]
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, bundle_copy / PACKED_HEADS_FILE)
    for given in (checkpoint, None):
        problems = find_head_problems(bundle_copy, metadata, given)
        assert [problem.split("' ")[0] for problem in problems] == [
            f"{PACKED_HEADS_FILE}: its row of 'Pepper,_bell",
            f"{PACKED_HEADS_FILE}: its row of 'Aloe sp. 2",
        ]


def test_a_packed_graph_that_answers_classes_which_a_species_lacks_is_found(
    bundle_copy: Path, metadata: Metadata
) -> None:
    model = onnx.load(bundle_copy / PACKED_HEADS_FILE)
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "bias")
    values = np.where(np.isneginf(numpy_helper.to_array(bias)), 0, numpy_helper.to_array(bias))
    bias.CopyFrom(numpy_helper.from_array(values.astype(np.float32), "bias"))
    onnx.save(model, bundle_copy / PACKED_HEADS_FILE)
    assert len(find_head_problems(bundle_copy, metadata, None)) == 3, "Cherry has as many classes as the graph"


def test_two_classes_in_another_order_are_found(bundle_copy: Path, metadata: Metadata, checkpoint: Checkpoint) -> None:
    weight, bias = (tensor.numpy() for tensor in checkpoint.disease_heads[1])
    order = [1, 0, 2]
    onnx.save(build_int8_head(quantize_head(weight[order], bias[order])), bundle_copy / CHERRY)
    problems = find_head_problems(bundle_copy, metadata, checkpoint)
    assert any(problem.startswith(f"{CHERRY}: not the checkpoint's head") for problem in problems)


def test_one_wrong_weight_and_one_wrong_bias_are_found(
    bundle_copy: Path, metadata: Metadata, checkpoint: Checkpoint
) -> None:
    weight, bias = (tensor.numpy().copy() for tensor in checkpoint.disease_heads[1])
    weight[0, 0] += np.abs(weight[0]).max() / 40
    bias[2] += 0.01
    onnx.save(build_int8_head(quantize_head(weight, bias)), bundle_copy / CHERRY)
    problems = find_head_problems(bundle_copy, metadata, checkpoint)
    assert "1 of 96 weights and 1 of 3 biases differ by more than INT8 rounding" in problems[0]


@pytest.mark.parametrize("bits", [7, 8])
def test_rounding_to_seven_or_eight_bits_is_no_problem(
    bundle_copy: Path, metadata: Metadata, checkpoint: Checkpoint, bits: int
) -> None:
    levels = 2 ** (bits - 1) - 1
    for name, index in ((PEPPER, 0), (CHERRY, 1)):
        weight, bias = (tensor.numpy() for tensor in checkpoint.disease_heads[index])
        scale = np.abs(weight).max(axis=1) / levels
        rounded = np.rint(weight / scale[:, None]).astype(np.int8)
        onnx.save(build_int8_head(Int8Head(rounded.T, scale, bias)), bundle_copy / name)
    problems = find_head_problems(bundle_copy, metadata, checkpoint)
    assert not [problem for problem in problems if "not the checkpoint's head" in problem]


def test_a_missing_head_file_is_found(bundle_copy: Path, metadata: Metadata, checkpoint: Checkpoint) -> None:
    (bundle_copy / PEPPER).unlink()
    assert find_head_problems(bundle_copy, metadata, checkpoint) == (f"{PEPPER}: missing",)
    shutil.rmtree(bundle_copy / HEADS_FOLDER)
    assert len(find_head_problems(bundle_copy, metadata, checkpoint)) == 4


def test_a_missing_or_broken_packed_graph_is_found(bundle_copy: Path, metadata: Metadata) -> None:
    (bundle_copy / PACKED_HEADS_FILE).write_bytes(b"not onnx")
    (problem,) = find_head_problems(bundle_copy, metadata, None)
    assert problem.startswith(f"{PACKED_HEADS_FILE}: not an ONNX file")


def test_a_head_of_another_size_is_found(bundle_copy: Path, metadata: Metadata, checkpoint: Checkpoint) -> None:
    shutil.copyfile(bundle_copy / PEPPER, bundle_copy / CHERRY)
    (problem,) = find_head_problems(bundle_copy, metadata, checkpoint)
    assert problem.startswith(
        f"{CHERRY}: maps [('embedding', 32)] to [('disease_logits', 2)], but species "
        "'Cherry_(including_sour)' needs [('embedding', 32)] to [('disease_logits', 3)]"
    )


def test_a_head_that_does_not_run_is_found(bundle_copy: Path, metadata: Metadata, checkpoint: Checkpoint) -> None:
    model = onnx.load(bundle_copy / PEPPER)
    model.graph.node.append(onnx.helper.make_node("Reshape", ["embedding", "shape"], ["impossible"]))
    model.graph.node.append(onnx.helper.make_node("Gather", ["product", "far"], ["off"], axis=1))
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, -1]), "shape"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 99]), "far"))
    last = next(node for node in model.graph.node if "disease_logits" in node.output)
    last.input[0] = "off"
    onnx.save(model, bundle_copy / PEPPER)
    (problem,) = find_head_problems(bundle_copy, metadata, checkpoint)
    assert problem.startswith(f"{PEPPER}: does not run (")


def test_another_class_order_than_the_checkpoints_is_found(
    bundle_copy: Path, metadata: Metadata, checkpoint: Checkpoint
) -> None:
    taxonomy = metadata.taxonomy
    turned = {**taxonomy.diseases, "Pepper,_bell": taxonomy.diseases["Pepper,_bell"][::-1]}
    object.__setattr__(metadata, "taxonomy", Taxonomy(taxonomy.species, turned))
    (problem,) = find_head_problems(bundle_copy, metadata, checkpoint)
    assert f"class-order digest {metadata.taxonomy.digest} is not the checkpoint's {taxonomy.digest}" in problem


def test_a_species_that_the_checkpoint_does_not_know_is_found(
    bundle_copy: Path, metadata: Metadata, checkpoint: Checkpoint
) -> None:
    taxonomy = metadata.taxonomy
    species = ("Pepper_bell", *taxonomy.species[1:])
    diseases = {name.replace("Pepper,_bell", "Pepper_bell"): names for name, names in taxonomy.diseases.items()}
    object.__setattr__(metadata, "taxonomy", Taxonomy(species, diseases))
    problems = find_head_problems(bundle_copy, metadata, checkpoint)
    assert any("has no head for species 'Pepper_bell'" in problem for problem in problems)


def test_single_heads_are_not_kept_open(bundle_copy: Path, metadata: Metadata) -> None:
    """10,000 open sessions take gigabytes."""
    models = open_heads(bundle_copy, metadata)
    assert models.sessions[PEPPER] is not models.sessions[PEPPER]
    assert models.sessions[PACKED_HEADS_FILE] is models.sessions[PACKED_HEADS_FILE]
    heads = {head_file(metadata.taxonomy.slugs[i]) for i in metadata.taxonomy.species_with_head}
    assert set(models.sessions) == {PACKED_HEADS_FILE, *heads} and len(models.sessions) == len(heads) + 1
    assert list(models.select([PEPPER]).sessions) == [PEPPER]


def test_memory_that_runs_out_while_a_head_is_opened_again_is_no_fault_of_the_head(
    bundle_copy: Path, metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "ONNX Runtime cannot open it"

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise BundleError(f"{path}: {reason}")

    monkeypatch.setattr(opening, "open_session", lambda *given, **options: open_(*given, **options))
    open_ = open_session
    models = open_heads(bundle_copy, metadata)
    open_ = refuse
    with pytest.raises(BundleError, match=reason):
        models.get_session(PEPPER)
    reason = "ONNX Runtime cannot open it (std::bad_alloc)"
    for read in (lambda: models.get_session(PEPPER), lambda: integrity.find_head_problems(models, metadata, None)):
        with pytest.raises(MemoryError, match="bad_alloc"):
            read()
