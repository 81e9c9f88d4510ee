import io
import struct
from collections.abc import Callable
from dataclasses import replace

import matplotlib
from PIL import Image

from plantmodels.bundle.manifest import FileDigest
from plantmodels.verify.measurements import Histogram, Share
from plantmodels.verify.plots import draw_plots
from plantmodels.verify.report import GateReport

Make = Callable[..., GateReport]


def read_size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


def test_both_pictures_are_drawn_large_enough_to_read(report: Make) -> None:
    plots = draw_plots(report())
    assert list(plots) == ["ood-scores.png", "file-sizes.png"]
    for png in plots.values():
        width, height = read_size(png)
        assert width >= 1400
        assert height >= 300


def test_the_same_report_gives_the_same_bytes(report: Make) -> None:
    assert draw_plots(report()) == draw_plots(report())


def test_without_scores_there_is_no_histogram(report: Make) -> None:
    assert list(draw_plots(report(rejection=None, not_run="x"))) == ["file-sizes.png"]
    rejection = report().rejection
    assert rejection is not None
    empty = replace(rejection, histogram=Histogram((), (), ()))
    assert list(draw_plots(report(rejection=empty))) == ["file-sizes.png"]


def test_one_group_alone_and_a_far_threshold_are_drawn(report: Make) -> None:
    rejection = report().rejection
    assert rejection is not None
    lonely = replace(rejection, threshold=1e9, non_plants=Share(0, 0), histogram=Histogram((1.0, 2.0), (5,), (0,)))
    assert draw_plots(report(rejection=lonely))["ood-scores.png"]


def count_red(png: bytes) -> int:
    colours = Image.open(io.BytesIO(png)).convert("RGB").getcolors(1 << 24) or []
    return sum(count for count, (r, g, b) in colours if r > 140 and g < 80 and b < 80)


def test_a_file_over_its_limit_is_red(report: Make) -> None:
    files = {**report().files, "swin-species-int8.onnx": FileDigest(28_000_000, "a" * 64)}
    assert count_red(draw_plots(report())["file-sizes.png"]) == 0
    assert count_red(draw_plots(report(files=files))["file-sizes.png"]) > 500


def test_a_bundle_without_onnx_files_can_still_be_drawn(report: Make) -> None:
    assert draw_plots(report(files={}, onnx_files=()))["file-sizes.png"]


def test_no_global_state_of_matplotlib_is_touched(report: Make) -> None:
    import sys

    before = dict(matplotlib.rcParams)
    draw_plots(report())
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
