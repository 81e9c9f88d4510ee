"""Streams of decoded images: order, unreadable files and their limit, and how far ahead files are decoded."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.data import streaming
from plantmodels.data.streaming import ImageStream
from plantmodels.errors import DataError
from plantmodels.serve.preprocessing import decode_image, preprocess

PREPROCESSING = Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def paths(tiny_data: Path) -> list[Path]:
    """All 180 train leaves."""
    return sorted(path for path in (tiny_data / "train").rglob("*") if path.is_file())


class TestStream:
    def test_order_and_pixels_are_kept(self, paths: list[Path]) -> None:
        stream = ImageStream(paths[:40], PREPROCESSING)
        streamed = list(stream)

        assert [index for index, _ in streamed] == list(range(40))
        assert stream.unreadable == ()
        for index in (0, 7, 39):
            expected = preprocess(decode_image(paths[index].read_bytes()), PREPROCESSING)
            np.testing.assert_array_equal(streamed[index][1], expected)

    def test_unreadable_files_are_skipped_counted_and_named(self, paths: list[Path], tmp_path: Path) -> None:
        (tmp_path / "text.jpg").write_text("no image")
        mixed = [*paths[:120], tmp_path / "text.jpg", *paths[120:], tmp_path / "none.jpg", *paths[:20]]
        stream = ImageStream(mixed, PREPROCESSING)
        indices = [i for i, _ in stream]

        assert indices == [i for i in range(len(mixed)) if i not in (120, 181)]
        assert [image.path for image in stream.unreadable] == [tmp_path / "text.jpg", tmp_path / "none.jpg"]
        assert "not an image of format" in stream.unreadable[0].reason
        assert "cannot be read (No such file or directory)" in stream.unreadable[1].reason

    @pytest.mark.parametrize(
        ("bad", "total", "refused"), [(1, 100, False), (2, 100, True), (1, 99, True), (2, 200, False)]
    )
    def test_over_one_percent_is_an_error(
        self, paths: list[Path], tmp_path: Path, bad: int, total: int, refused: bool
    ) -> None:
        for i in range(bad):
            (tmp_path / f"bad{i}.jpg").write_bytes(b"")
        mixed = [tmp_path / f"bad{i}.jpg" for i in range(bad)] + [paths[i % 9] for i in range(total - bad)]
        stream = ImageStream(mixed, PREPROCESSING)
        if not refused:
            assert len(list(stream)) == total - bad
            return
        match = rf"over 1% of {total} images cannot be read \({bad} so far\): .*bad0.jpg: zero bytes"
        with pytest.raises(DataError, match=match):
            list(stream)

    def test_the_limit_refers_to_the_whole_set_when_it_is_read_in_parts(
        self, paths: list[Path], tmp_path: Path
    ) -> None:
        (tmp_path / "bad.jpg").write_bytes(b"")
        part = [tmp_path / "bad.jpg", *paths[:10]]
        first = ImageStream(part, PREPROCESSING, set_size=100)

        assert len(list(first)) == 10
        assert len(first.unreadable) == 1
        again = ImageStream(part, PREPROCESSING, set_size=100, skipped_before=first.unreadable)
        assert len(list(again)) == 10, "one broken file counts once, however often it is read"
        (tmp_path / "worse.jpg").write_bytes(b"")
        part = [tmp_path / "worse.jpg", *part]
        second = ImageStream(part, PREPROCESSING, set_size=100, skipped_before=first.unreadable)
        with pytest.raises(DataError, match=r"over 1% of 100 images cannot be read \(2 so far\)"):
            list(second)
        assert len(second.unreadable) == 1, "its own alone"

    def test_only_a_few_are_decoded_ahead_of_the_consumer(self, paths: list[Path], monkeypatch) -> None:
        lock, begun = threading.Lock(), [0]
        load = streaming._load

        def count(*arguments):
            with lock:
                begun[0] += 1
            return load(*arguments)

        monkeypatch.setattr(streaming, "_load", count)
        stream = iter(ImageStream(paths * 20, PREPROCESSING))
        for taken, _ in enumerate(itertools.islice(stream, 60), start=1):
            assert begun[0] <= taken + 20
        stream.close()
        assert begun[0] <= 80

    def test_nothing_is_decoded_before_it_is_asked_for(self, monkeypatch) -> None:
        monkeypatch.setattr(streaming, "_load", lambda *_: pytest.fail("was decoded"))
        stream = ImageStream([Path("a.jpg")], PREPROCESSING)

        assert isinstance(iter(stream), Iterator)
        assert isinstance(stream.batches(2), Iterator)

    def test_no_paths_give_nothing(self) -> None:
        assert list(ImageStream([], PREPROCESSING)) == []

    def test_batches_are_the_stream_cut_into_pieces(self, paths: list[Path], tmp_path: Path) -> None:
        (tmp_path / "bad.jpg").write_bytes(b"")
        stream = ImageStream([*paths[:3], tmp_path / "bad.jpg", *paths[3:9]], PREPROCESSING, set_size=100)
        batches = list(stream.batches(4))

        assert [positions for positions, _ in batches] == [[0, 1, 2, 4], [5, 6, 7, 8], [9]]
        np.testing.assert_array_equal(np.concatenate([inputs for _, inputs in batches]), [image for _, image in stream])

    def test_a_second_iteration_counts_unreadable_files_anew(self, paths: list[Path], tmp_path: Path) -> None:
        stream = ImageStream([tmp_path / "none.jpg", *paths[:3]], PREPROCESSING, set_size=100)

        assert [len(list(stream)), len(list(stream))] == [3, 3]
        assert [image.path for image in stream.unreadable] == [tmp_path / "none.jpg"]

    def test_a_bug_in_decoding_is_not_mistaken_for_a_bad_image(self, paths: list[Path], monkeypatch) -> None:
        def fail(*_: object) -> None:
            raise ZeroDivisionError("bug")

        monkeypatch.setattr(streaming, "image_to_input", fail)
        with pytest.raises(ZeroDivisionError, match="bug"):
            list(ImageStream(paths, PREPROCESSING))

    def test_progress_is_shown_with_a_description_only(self, paths: list[Path], progress_lines: list[str]) -> None:
        list(ImageStream(paths[:3], PREPROCESSING))
        assert progress_lines == []
        list(ImageStream(paths[:3], PREPROCESSING, description="score leaves"))
        (line,) = progress_lines
        assert line.startswith("score leaves: 3 images, ")
