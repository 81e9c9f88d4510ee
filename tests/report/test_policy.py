import hashlib
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from plantmodels.errors import PolicyError
from plantmodels.report.gates import GATES
from plantmodels.report.policy import LIMITS, GatePolicy, read_policy

GATES_FILE = Path(__file__).parents[2] / "gates.toml"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my gates.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_file_at_the_root_holds_the_built_in_defaults_and_all_of_them() -> None:
    policy = read_policy(GATES_FILE)
    assert policy.sha256 == hashlib.sha256(GATES_FILE.read_bytes()).hexdigest()
    assert replace(policy, sha256=None) == GatePolicy()
    found = {(gate, key) for gate, table in tomllib.loads(GATES_FILE.read_text()).items() for key in table}
    optional = {(kind.gate, kind.key) for name, kind in LIMITS.items() if getattr(GatePolicy(), name) in (None, {})}
    assert found == {(kind.gate, kind.key) for kind in LIMITS.values()} - optional
    text = GATES_FILE.read_text()
    assert all(f"{key} = " in text or f"[{gate}.{key}]" in text for gate, key in optional), "optional keys are shown"


def test_the_defaults_are_those_of_contract_5() -> None:
    policy = read_policy(None)
    assert {gate: policy.limits_of(gate) for gate in GATES} == {
        "parity": {"": 0.01},
        "int8_accuracy": {"": 0.01},
        "ood_precision": {"": 0.99},
        "ood_recall": {"": 0.95},
        "false_alarms": {"": 0.01},
        "loads": {"": 0},
        "heads_complete": {"": 0},
        "species_size": {"": 5_000_000},
        "head_size": {"": 200_000},
        "latency": {"": 200},
        "accuracy": {
            "species": 0.7,
            "end to end": 0.6,
            "species above the commonest": 0,
            "end to end above the commonest": 0,
        },
        "coverage": {"": 0},
        "leakage": {"": 0.01},
    }
    images = {gate: policy.min_images_of(gate) for gate in GATES if policy.min_images_of(gate)}
    assert images == {
        "parity": 32,
        "int8_accuracy": 300,
        "ood_precision": 50,
        "ood_recall": 50,
        "false_alarms": 300,
        "accuracy": 300,
        "leakage": 300,
    }
    assert (policy.coverage_images_per_species, policy.coverage_images_per_class) == (5, 1)
    assert {gate: policy.confidence_of(gate) for gate in GATES if policy.confidence_of(gate)} == {"int8_accuracy": 0.95}
    assert policy.ood_precision_non_plant_share == 0.5
    assert policy.int8_accuracy_max_images == 10_000
    assert policy.sha256 is None
    assert policy.loosened == ()


def test_less_confidence_in_int8_is_a_looser_limit(tmp_path: Path) -> None:
    assert read_policy(write(tmp_path, "[int8_accuracy]\nconfidence = 0.5")).loosened == ("int8_accuracy_confidence",)
    assert GatePolicy(int8_accuracy_confidence=None).loosened == ("int8_accuracy_confidence",)
    assert read_policy(write(tmp_path, "[int8_accuracy]\nconfidence = 0.99")).loosened == ()


def test_what_a_file_leaves_out_keeps_its_default(tmp_path: Path) -> None:
    policy = read_policy(write(tmp_path, "[latency]\nmax_median_ms = 350\n"))
    assert replace(policy, sha256=None) == replace(GatePolicy(), latency_max_median_ms=350.0)
    assert policy.loosened == ("latency_max_median_ms",)


def test_a_stricter_limit_is_not_looser(tmp_path: Path) -> None:
    text = "[ood_recall]\nmin = 0.99\n[parity]\nmax_abs_diff = 0.001\n[int8_accuracy]\nmax_images = 5\n"
    assert read_policy(write(tmp_path, text)).loosened == ()
    assert read_policy(write(tmp_path, "[ood_recall]\nmin = 0.5")).loosened == ("ood_recall_min",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[speed]\nmax = 1",
            r"my gates\.toml: unknown gate 'speed'; gates with limits are parity, int8_accuracy",
        ),
        ("[loads]\nmax = 1", "unknown gate 'loads'; gates with limits are"),
        ("[parity]\nmax_diff = 1", r"\[parity\] has unknown key 'max_diff'; it may set max_abs_diff"),
        ("parity = 0.5", r"parity must be a table \[parity\] with max_abs_diff, min_images, got 0.5"),
        (
            "[parity]\nmax_abs_diff = '0.01'",
            r"\[parity\] max_abs_diff is '0.01', expected a number from 0 to 1000",
        ),
        ("[parity]\nmax_abs_diff = nan", "max_abs_diff is nan, expected a number"),
        ("[parity]\nmax_abs_diff = inf", "max_abs_diff is inf, expected a number"),
        ("[parity]\nmax_abs_diff = true", "max_abs_diff is True, expected a number"),
        ("[ood_recall]\nmin = 95", r"\[ood_recall\] min is 95, expected a number from 0 to 1"),
        ("[ood_precision]\nmin = -0.1", "min is -0.1, expected a number from 0 to 1"),
        ("[species_size]\nmax_bytes = 5e6", r"max_bytes is 5000000.0, expected an integer from 1 to"),
        ("[int8_accuracy]\nmax_images = 0", "max_images is 0, expected an integer from 1 to"),
        ("[int8_accuracy]\nmax_images = []", r"max_images is \[\], expected an integer from 1 to"),
        ("[parity\n", "not a TOML file"),
        ("[ood_recall]\nmin_images = 0", r"\[ood_recall\] min_images is 0, expected an integer from 1 to"),
        ("[loads]\nmin_images = 1", "unknown gate 'loads'; gates with limits are"),
        ("[latency]\nmin_images = 1", r"\[latency\] has unknown key 'min_images'; it may set max_median_ms"),
        ("[ood_recall]\nconfidence = 95", r"\[ood_recall\] confidence is 95, expected a number from 0.5 to 0.9999"),
        ("[parity]\nconfidence = 0.9", r"\[parity\] has unknown key 'confidence'"),
        ("[accuracy]\nmin_worst_class = 2", "min_worst_class is 2, expected a number from 0 to 1"),
        ("[accuracy]\nspecies = 0.5", "species is 0.5, expected a table of species, each with a number from 0 to 1"),
        ("[accuracy.species]\nRose = 2", "species is {'Rose': 2}, expected a table of species, each with a number"),
    ],
)
def test_a_malformed_policy_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        read_policy(write(tmp_path, text))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"absent\.toml: cannot be read \(No such file"):
        read_policy(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyError, match=r"binary\.toml: not a TOML file"):
        read_policy(tmp_path / "binary.toml")


def test_limits_set_in_code_are_checked_too() -> None:
    with pytest.raises(ValueError, match="ood_recall_min must be a number from 0 to 1, got 2"):
        GatePolicy(ood_recall_min=2)


def test_optional_limits_of_accuracy_and_confidence(tmp_path: Path) -> None:
    text = "[accuracy]\nmin_worst_species = 0.4\nconfidence = 0.9\nmin_images = 400\n[accuracy.species]\nRose = 0.9\n"
    policy = read_policy(write(tmp_path, text))
    assert policy.limits_of("accuracy") == GatePolicy().limits_of("accuracy") | {
        "worst species": 0.4,
        "species Rose": 0.9,
    }
    assert (policy.confidence_of("accuracy"), policy.min_images_of("accuracy")) == (0.9, 400)
    assert policy.loosened == ()
    assert read_policy(write(tmp_path, "[ood_recall]\nmin_images = 20")).loosened == ("ood_recall_min_images",)
