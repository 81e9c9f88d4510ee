import copy
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.bars import Bar, compare_rounds, judge_bars
from benchmarks.contestants import CONTESTANTS, modes_of
from benchmarks.driver import Turn, describe_turns
from benchmarks.plots import draw_batches, draw_fidelity, draw_species
from benchmarks.report import render
from benchmarks.rows import FloatHeads, make_rows
from benchmarks.speed import best_entry, count_agreement, measure_distance
from plantmodels.bundle.taxonomy import Taxonomy

SECONDS = {"literal recipe INT8": 0.09, "OpenVINO bf16": 0.030, "OpenVINO INT8": 0.020, "ours INT8": 0.024}
DISTANCES = {"literal recipe INT8": 0.09, "OpenVINO bf16": 0.005, "OpenVINO INT8": 0.0223, "ours INT8": 0.00534}
APART = {"OpenVINO INT8": 0.5, "ours INT8": 0.25}
"""Of a whole batch's time; others have no better mode."""


def _entry(name, batch, mode, seconds, **more):
    described = describe_turns([Turn(seconds, 0.0)] * 3)
    return {"contestant": name, "threads": 2, "source": "tensor", "batch": batch, "mode": mode, **described, **more}


@pytest.fixture
def result():
    speed = [_entry(name, batch, "whole", seconds * batch) for name, seconds in SECONDS.items() for batch in (1, 32)]
    speed += [_entry(name, 32, "apart", 32 * SECONDS[name] * share) for name, share in APART.items()]
    step = {"median_s": 0.0001, "q3_s": 0.0002}
    steps = dict.fromkeys(("species", "disease", "ood", "row"), step)
    heads = {"quantize_and_write_s": 1, "check_s": 1, "open_s": 1, "packed_rows_s": 1, "packed_bytes": 1}
    return {
        "machine": {
            "cpu": "A CPU",
            "family": "1/2/3",
            "cores": 2,
            "hypervisor": True,
            "memory_gb": 4,
            "kernel": "6",
            "features": ["avx2"],
            "python": "3.11",
            "versions": {"nncf": None, "numpy": "2"},
            "commit": "abc",
            "date": "today",
        },
        "speed": {
            "speed": speed,
            "opened": [{"contestant": name, "threads": 2, "resident_mb": 100.4} for name in SECONDS],
            "agreement": {
                name: {"images": 1064, "species": 1063, "species_and_disease": 1061, "embedding_rms": rms}
                for name, rms in DISTANCES.items()
            },
            "steps": steps,
            "steps_disturbed": False,
        },
        "species": [
            {
                "species": count,
                "heads": {**heads, "exported_and_checked": {"median_s": 0.9}},
                "export": {"total_s": 20, "steps": {"export species": 10}},
                "load": {"median_s": 0.5},
                "resident_mb": 180,
                "steps": steps,
                "tensor": describe_turns([Turn(0.02, 0.0)]),
            }
            for count in (14, 330)
        ],
        "cold": {
            "cold_start": {"native": {"median_s": 1.2, "min_s": 1.1, "max_s": 1.4, "disturbed": False}},
            "memory": {"native": {"resident_mb": 260.0, "peak_mb": 300.0}},
            "download": {"native_int8_files": 7, "native_int8_mb": 46, "pyfunc_files": 362, "pyfunc_mb": 108},
        },
    }


def test_bars_compare_with_the_best_of_each_peer_and_its_better_mode(result):
    bars = judge_bars(result)
    measured = [bar.measured for bar in bars]
    np.testing.assert_allclose(measured[:4], [0.024 / 0.09, 0.024 / 0.020, 0.010 / 0.006, 0.2])
    assert measured[4:12] == [None, None, None, 1.2, 260.0, None, 0.9, None]  # first the three of the one file
    assert bars[1].detail == "OpenVINO INT8; 1.2 to 1.2 in 3 rounds"
    absent = "not measured"
    expected = ["met", "**missed**", "moonshot", "met", absent, absent, absent]
    expected += ["met", "**missed**", absent, "moonshot", absent, *[absent] * 14]
    assert [bar.verdict for bar in bars] == expected


def test_bars_of_a_result_without_parts_are_not_measured():
    assert {bar.verdict for bar in judge_bars({})} == {"not measured"}
    measured = [bar for bar in judge_bars({"int8_accuracy_drop": 0.02}) if bar.measured is not None]
    assert [(bar.what, bar.met) for bar in measured] == [("INT8 accuracy below FP16, all validation leaves", False)]


def test_a_ratio_is_the_median_of_the_rounds_that_were_quiet_for_both():
    ours = describe_turns([Turn(1, 0), Turn(2, 0), Turn(9, 0.5), Turn(4, 0)])
    peer = describe_turns([Turn(2, 0), Turn(2, 0.01), Turn(2, 0), Turn(1, 0.9)])
    assert compare_rounds(ours, peer) == ([0.5, 1.0], False)
    busy = describe_turns([Turn(2, 0.9)] * 3 + [Turn(1, 0)])
    assert compare_rounds(ours, busy) == ([0.5, 1.0, 4.5, 4.0], True)


@pytest.mark.parametrize(
    ("sense", "rounds", "verdict"),
    [
        ("≤", (0.9, 1.1), "undecided"),
        ("≤", (0.7, 0.95), "met"),
        ("≤", (0.7, 0.9), "moonshot"),
        ("≤", (1.1, 1.2), "**missed**"),
        ("≥", (0.9, 1.1), "undecided"),
        ("≥", (1.05, 1.3), "met"),
    ],
)
def test_a_bar_within_the_range_of_the_rounds_is_undecided(sense, rounds, verdict):
    moonshot = 0.9 if sense == "≤" else 1.2
    bar = Bar("x", sum(rounds) / 2, 1.0, moonshot, sense, rounds=rounds)
    assert (bar.verdict, bar.met) == (verdict, {"undecided": None, "**missed**": False}.get(verdict, True))


def test_the_rounds_of_a_speed_decide_its_bar(result):
    for entry in result["speed"]["speed"]:
        if entry["contestant"] == "OpenVINO INT8" and entry["batch"] == 1:
            entry |= describe_turns([Turn(0.020, 0.0), Turn(0.020, 0.0), Turn(0.030, 0.0)])
    bar = judge_bars(result)[1]
    assert (bar.verdict, bar.measured) == ("undecided", pytest.approx(1.2))
    assert "| undecided |" in render(result)


def test_tables_show_medians_modes_and_agreement(result):
    text = render(result)
    assert (
        "| ours INT8 | 24.0 (24.0–24.0) |  | 166.7 (166.7–166.7) |  | apart | 100 | 1,063 (1,061) of 1,064 | 0.0053 |"
        in text
    )
    assert "| literal recipe INT8 | 90.0 | 90.0 |" in text
    assert "| native, to the first prediction | 1.20 (1.10–1.40) | 260 | 300 |" in text
    assert "numpy 2" in text
    assert "nncf" not in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_a_figure_without_enough_quiet_rounds_is_marked(result):
    entry = result["speed"]["speed"][0]
    entry |= describe_turns([Turn(0.09, 0.5)] * 3)
    assert [bar.disturbed for bar in judge_bars(result)].count(True) == 1 and judge_bars(result)[0].disturbed
    text = render(result)
    assert "| 0.267× † | met |" in text
    assert "90.0 (90.0–90.0) †" in text
    assert f"1 of {len(result['speed']['speed'])} figures" in text


def test_parts_that_were_not_run_are_left_out(result):
    text = render({"machine": result["machine"]})
    assert "not measured" in text
    assert "cold process |" not in text


def test_plots_name_every_contestant_and_keep_the_names_apart(result):
    figure = draw_batches(result["speed"]["speed"])
    figure.canvas.draw()
    labels = figure.axes[0].texts
    assert {label.get_text().split("  ")[0] for label in labels} == set(SECONDS)
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    assert all(upper.y0 >= lower.y1 for lower, upper in pairwise(boxes))
    assert len(draw_species(result["species"]).axes) == 4


def test_the_plot_of_fidelity_shows_time_distance_and_changed_answers(result):
    result["speed"]["agreement"]["OpenVINO bf16"]["embedding_rms"] = 0.0  # as the reference has
    figure = draw_fidelity(result["speed"])
    figure.canvas.draw()
    shown = {label.get_text(): label.xy for label in figure.axes[0].texts}
    assert shown == {
        "literal recipe INT8: 90.0 ms, 1 other species": (pytest.approx(90), 0.09),
        "OpenVINO INT8: 20.0 ms, 1 other species": (pytest.approx(20), 0.0223),
        "ours INT8: 24.0 ms, 1 other species": (pytest.approx(24), 0.00534),
    }
    assert "1,064 leaves" in figure.axes[0].get_title(loc="left")


def test_the_distance_of_embeddings_is_the_root_mean_square():
    reference = np.zeros((2, 3), np.float32)
    assert measure_distance(reference + np.float32([3, 0, 4]), reference) == pytest.approx((25 / 3) ** 0.5)


def test_the_better_mode_is_the_faster_one(result):
    speed = copy.deepcopy(result["speed"]["speed"])
    assert best_entry(speed, "ours INT8", threads=2, source="tensor", batch=32)["mode"] == "apart"
    assert best_entry(speed, "ours INT8", threads=1, source="tensor", batch=32) is None


def test_one_thread_leaves_our_classifier_one_mode():
    assert [modes_of("ours INT8", threads) for threads in (1, 2)] == [("whole",), ("whole", "apart")]
    assert all("whole" in modes_of(name, 1) for name in CONTESTANTS)


def test_agreement_counts_a_disease_only_below_the_right_species():
    reference = [{"species_index": 0, "disease": "rot"}, {"species_index": 1, "disease": "rot"}] * 2
    rows = [
        *reference[:1],
        {"species_index": 0, "disease": "rot"},
        {"species_index": 0, "disease": "rust"},
        reference[3],
    ]
    assert count_agreement(rows, reference) == {"images": 4, "species": 3, "species_and_disease": 2}


def test_rows_by_float_heads_are_those_of_a_slow_loop(tmp_path):
    taxonomy = Taxonomy(("Rose", "Mint", "Pepper"), {"Rose": ("healthy", "rot", "rust"), "Pepper": ("spot", "healthy")})
    generator = np.random.default_rng(0)
    weight, bias = generator.normal(size=(3, 3, 4)).astype("f4"), np.full((3, 3), -np.inf, "f4")
    bias[0], bias[2, :2] = 0, 1
    np.savez(tmp_path / "heads.npz", weight=weight, bias=bias)
    embedding, logits = generator.normal(size=(3, 4)).astype("f4"), 3 * np.eye(3, dtype="f4")
    diseases = FloatHeads(tmp_path / "heads.npz").run(embedding, logits.argmax(axis=1))
    rows = make_rows(taxonomy, 1.5, logits, diseases, np.array([1.0, 2.0, np.nan]))
    for n, name in enumerate(taxonomy.species):
        scores = [sum(weight[n, k] * embedding[n]) for k in range(len(taxonomy.diseases_of(n)))]
        expected = taxonomy.diseases_of(n)[int(np.argmax(scores))] if scores else None
        assert (rows[n].species, rows[n].disease) == (name, expected)
        if scores:
            share = np.exp(max(scores)) / np.exp(scores).sum()
            assert rows[n].disease_given_species_probability == pytest.approx(share, rel=1e-5)
            chance = rows[n].species_probability
            assert rows[n].disease_probability == pytest.approx(chance * share, rel=1e-5)
    assert rows[0].species_probability == pytest.approx(np.exp(3) / (np.exp(3) + 2))
    assert [row.rejected for row in rows[:2]] == [False, True]
