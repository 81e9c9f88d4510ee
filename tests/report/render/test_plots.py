import io
import struct
import sys
from collections.abc import Callable
from dataclasses import replace

import matplotlib
from PIL import Image

from plantmodels.bundle.manifest import FileDigest
from plantmodels.report.gate_report import GateReport
from plantmodels.report.policy import GatePolicy
from plantmodels.report.render.accuracy import list_classes
from plantmodels.report.render.plots import draw_plots
from plantmodels.report.render.plots_accuracy import MAX_MATRIX, shorten
from plantmodels.report.results import Accuracy, ClassRow, Histogram
from plantmodels.report.statistics import Proportion

Make = Callable[..., GateReport]


def read_size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


ALL = [
    "worst-classes.png",
    "confusion.png",
    "calibration.png",
    "ood-scores.png",
    "ood-roc.png",
    "ood-precision.png",
    "parity.png",
    "file-sizes.png",
    "latency.png",
]


def test_every_plot_is_large_enough_to_read(report: Make) -> None:
    plots = draw_plots(report())
    assert list(plots) == ALL
    for png in plots.values():
        width, height = read_size(png)
        assert width >= 1400
        assert height >= 250


def test_the_same_report_gives_the_same_bytes(report: Make) -> None:
    assert draw_plots(report()) == draw_plots(report())


def test_what_was_not_measured_is_not_drawn(report: Make) -> None:
    nothing = report(accuracy=None, rejection=None, parity=None, latency=None, not_run="x")
    assert list(draw_plots(nothing)) == ["file-sizes.png"]
    base = report()
    assert base.parity is not None
    assert "parity.png" not in draw_plots(report(parity=replace(base.parity, scatter=None)))


def test_without_scores_there_is_no_histogram(report: Make) -> None:
    assert "ood-scores.png" not in draw_plots(report(rejection=None, not_run="x"))
    rejection = report().rejection
    assert rejection is not None
    empty = replace(rejection, histogram=Histogram((), (), (), ()), separation=None, roc=())
    assert "ood-scores.png" not in draw_plots(report(rejection=empty))


def test_one_group_alone_and_a_far_threshold_are_drawn(report: Make) -> None:
    rejection = report().rejection
    assert rejection is not None
    lonely = replace(
        rejection, threshold=1e9, non_plants=Proportion(0, 0), histogram=Histogram((1.0, 2.0), (5,), (0,), (0,))
    )
    assert draw_plots(report(rejection=lonely))["ood-scores.png"]


def count_red(png: bytes) -> int:
    colours = Image.open(io.BytesIO(png)).convert("RGB").getcolors(1 << 24) or []
    return sum(count for count, (r, g, b) in colours if r > 140 and g < 80 and b < 80)


def test_a_file_over_its_limit_is_red(report: Make) -> None:
    files = {**report().files, "swin-species-int8.onnx": FileDigest(28_000_000, "a" * 64)}
    assert count_red(draw_plots(report())["file-sizes.png"]) == 0
    assert count_red(draw_plots(report(files=files))["file-sizes.png"]) > 500


def test_a_time_over_its_limit_is_red(report: Make) -> None:
    assert count_red(draw_plots(report())["latency.png"]) == 0
    assert count_red(draw_plots(report(GatePolicy(latency_max_median_ms=20)))["latency.png"]) > 500


def test_a_matrix_of_many_species_is_left_to_a_table(report: Make, accuracy: Callable[..., Accuracy]) -> None:
    def draw(species: int) -> dict[str, bytes]:
        names = [f"Species {i}" for i in range(species)]
        rows = {name: ClassRow(30, 28, 27) for name in names}
        confusions = {name: {names[i - 1]: 3} for i, name in enumerate(names)}
        return draw_plots(report(accuracy=accuracy(by_species=rows, confusions=confusions)))

    assert read_size(draw(MAX_MATRIX)["confusion.png"])[0] >= 1400
    assert "confusion.png" not in draw(MAX_MATRIX + 1)


def test_nothing_confused_and_nothing_calibrated_is_not_drawn(report: Make, accuracy: Callable[..., Accuracy]) -> None:
    base = accuracy().probabilities
    one = replace(base, served={name: base.served[name] for name in ("species",)})
    none = accuracy(confusions={}, probabilities=replace(base, served={}), by_disease={})
    assert "calibration.png" in draw_plots(report(accuracy=accuracy(probabilities=one)))
    assert [name for name in ALL[:3] if name in draw_plots(report(accuracy=none))] == ["worst-classes.png"]


def test_the_worst_classes_come_first_and_of_equal_ones_the_larger() -> None:
    rows = {"a": ClassRow(10, 9, 5), "b": ClassRow(20, 9, 10), "c": ClassRow(9, 9, 9), "d": ClassRow(5, 0, 0)}
    assert [row.name for row in list_classes(rows)][:3] == ["d", "b", "a"]
    assert list_classes(rows)[0].int8 == Proportion(0, 5)


def test_labels_are_short_and_no_formulas(report: Make, accuracy: Callable[..., Accuracy]) -> None:
    assert shorten("Tomato___Late_blight") == "Tomato · Late blight"
    assert len(shorten("x" * 200)) == 46
    formulas = {"a $\\frac{1}$ ^_": ClassRow(30, 20, 10)}
    drawn = draw_plots(report(accuracy=accuracy(by_species=formulas, by_disease=formulas, confusions={})))
    assert drawn["worst-classes.png"]


def test_a_bundle_without_onnx_files_can_still_be_drawn(report: Make) -> None:
    assert draw_plots(report(files={}))["file-sizes.png"]


def test_no_global_state_of_matplotlib_is_touched(report: Make) -> None:
    def open_figures() -> list[int]:
        return sys.modules["matplotlib.pyplot"].get_fignums() if "matplotlib.pyplot" in sys.modules else []

    before = dict(matplotlib.rcParams), open_figures()  # of other libraries' tests
    draw_plots(report())
    assert (dict(matplotlib.rcParams), open_figures()) == before
