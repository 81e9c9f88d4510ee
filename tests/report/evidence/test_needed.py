"""How many images would make a gate certain: the hint is checked against the intervals themselves."""

import pytest

from plantmodels.report.evidence.coverage import find_unreachable, tell_leaves, tell_times_as_many
from plantmodels.report.policy import GatePolicy
from plantmodels.report.statistics import PairedCounts, Proportion
from tests.fixtures.reports import make_accuracy, make_measured


@pytest.mark.parametrize(("share", "limit"), [(0.97, 0.95), (0.96, 0.95), (1.0, 0.95), (0.0, 0.01), (0.004, 0.01)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_a_share_needs_as_many_images_as_its_interval_says(share: float, limit: float, confidence: float) -> None:
    needed = Proportion(round(share * 1000), 1000).images_needed(limit, confidence)
    assert needed is not None
    met = []
    for images in (round(needed * 0.7), round(needed * 1.4)):
        low, high = Proportion(round(share * images), images).interval_at(confidence) or (0, 0)
        met.append(low >= limit if share > limit else high <= limit)
    assert met == [False, True]


def test_some_limits_no_number_of_images_reaches() -> None:
    assert Proportion(95, 100).images_needed(0.95, 0.95) is None
    assert Proportion(9, 9).images_needed(1.0, 0.95) is None
    assert Proportion(0, 0).images_needed(0.5, 0.95) is None
    assert PairedCounts(90, 5, 1, 4).images_needed(0.01, 0.95) is None
    assert PairedCounts(0, 0, 0, 0).images_needed(0.01, 0.95) is None
    lost = PairedCounts(90, 5, 1, 4)
    assert tell_leaves(make_accuracy(species=lost), 0.01, 0.95) == ""


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 3), (5, 2), (1, 6)])
def test_losses_need_as_many_images_as_their_interval_says(first: int, second: int) -> None:
    needed = PairedCounts(1000 - first - second, first, second, 0).images_needed(0.01, 0.95)
    assert needed is not None
    ends = []
    for images in (round(needed * 0.9), round(needed * 1.1)):
        a, b = (part * images / 1000 for part in (first, second))
        interval = PairedCounts(images - a - b, a, b, 0).interval  # type: ignore[arg-type]  # rates, not whole images
        assert interval is not None
        ends.append(interval[1] <= 0.01)
    assert ends == [False, True]


def test_a_precision_says_how_many_leaves_and_non_plants_would_do() -> None:
    rejection = make_measured().rejection
    assert rejection is not None
    assert tell_times_as_many(rejection, 0.95, 0.95) == (
        "at these rates about 210 leaves and 53 non-plants would make it certain"
    )
    assert tell_times_as_many(rejection, 0.9999, 0.95) == ""


def test_what_the_given_images_can_never_make_certain_is_named_with_how_many_would_do() -> None:
    """Each number is checked against the gate's own interval of a perfect result."""
    policy = GatePolicy(
        ood_precision_confidence=0.95,
        ood_recall_confidence=0.95,
        false_alarms_confidence=0.95,
        accuracy_confidence=0.95,
        accuracy_min_species=0.995,
        leakage_confidence=0.95,
    )
    lines = find_unreachable(policy, leaves=300, non_plants=60)
    named = {line.split(":")[0]: int(line.split("at least ")[1].split(" ")[0].replace(",", "")) for line in lines}
    assert named == {
        "int8_accuracy": 381,
        "ood_precision": 791,
        "ood_recall": 73,
        "false_alarms": 381,
        "accuracy": 765,
        "leakage": 381,
    }
    assert find_unreachable(policy, leaves=791, non_plants=73) == ()
    assert [line.split(":")[0] for line in find_unreachable(policy, leaves=790, non_plants=73)] == ["ood_precision"]
    assert find_unreachable(GatePolicy(ood_recall_confidence=0.95), leaves=500, non_plants=None) == ()


def test_a_limit_of_everything_is_never_certain() -> None:
    policy = GatePolicy(
        ood_precision_min=1.0, ood_precision_confidence=0.95, false_alarms_max=0, false_alarms_confidence=0.9
    )
    lines = find_unreachable(policy, leaves=10_000, non_plants=100)
    assert [line.split(":")[0] for line in lines] == ["ood_precision", "false_alarms"]
    assert all(line.endswith("; no number would do") for line in lines)
