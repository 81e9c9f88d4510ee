"""Lanes: never more inside than there are, first come first served, and no lane is lost."""

import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from plantmodels import PlantClassifier
from plantmodels.serve import classifier as classifier_module
from plantmodels.serve.image_input import image_to_input
from plantmodels.serve.lanes import CROWD, Lanes
from tests.fixtures.bundles import TinyBundle


@pytest.fixture(scope="module")
def leaf(tiny_bundle) -> bytes:
    return next(path for path in sorted(tiny_bundle.data.rglob("*.jpg")) if path.is_file()).read_bytes()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_more_are_inside_than_there_are_lanes(count: int) -> None:
    lanes, lock, inside, most = Lanes(count), threading.Lock(), 0, 0

    def work(_: int) -> None:
        nonlocal inside, most
        with lanes:
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.001)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(200)))
    assert most == count
    assert lanes.free == count


def test_the_first_to_come_is_the_first_to_enter(wait_for: Callable[..., object]) -> None:
    lanes, order = Lanes(1), list[int]()

    def work(number: int) -> None:
        with lanes:
            order.append(number)

    with ThreadPoolExecutor(8) as pool, lanes:
        for number in range(8):
            pool.submit(work, number)
            wait_for(lambda number=number: len(lanes._waiting) == number + 1)
    assert order == list(range(8))


def test_an_error_inside_gives_the_lane_back() -> None:
    lanes = Lanes(1)
    with pytest.raises(KeyError), lanes:
        raise KeyError
    assert lanes.free == 1


@pytest.mark.parametrize(("threads", "calls"), [(CROWD, 0), (CROWD + 1, 1)])
def test_memory_is_given_back_once_a_crowd_has_left(threads: int, calls: int, wait_for: Callable[..., object]) -> None:
    called = list[int]()
    lanes = Lanes(1, lambda: called.append(lanes.free))

    def work(_: int) -> None:
        with lanes:
            pass

    with ThreadPoolExecutor(threads) as pool, lanes:
        for number in range(threads - 1):
            pool.submit(work, number)
        wait_for(lambda: len(lanes._waiting) == threads - 1)
    assert called == [1] * calls
    work(0)
    assert called == [1] * calls


@pytest.mark.parametrize("given", [False, True])
def test_an_interrupt_while_waiting_loses_no_lane(given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = Lanes(1)

    class Interrupted:
        """A lock whose second `acquire`, which waits for the turn, is interrupted; perhaps after the turn has come."""

        acquired = False

        def acquire(self) -> None:
            if self.acquired:
                if given:
                    lanes.__exit__(None, None, None)
                raise KeyboardInterrupt
            self.acquired = True

        def release(self) -> None:
            pass

    lanes.__enter__()
    monkeypatch.setattr("plantmodels.serve.lanes.Lock", Interrupted)
    with pytest.raises(KeyboardInterrupt), lanes:
        pass
    assert lanes.free == given
    assert not lanes._waiting


def test_images_of_all_callers_are_decoded_in_the_lanes(
    tiny_bundle: TinyBundle, leaf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, inside, most = threading.Lock(), 0, 0

    def count(*args: object, **options: object) -> object:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        try:
            time.sleep(0.002)
            return image_to_input(*args, **options)
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr("plantmodels.serve.models.count_cores", lambda: 2)
    classifier = PlantClassifier.load(tiny_bundle.bundle, threads=1)
    monkeypatch.setattr(classifier_module, "image_to_input", count)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: classifier.predict([leaf, b"no image"]), range(24)))
    assert most == 2
    assert all(answer == answers[0] for answer in answers)
    assert (answers[0][0].error, answers[0][1].species) == (None, None)


def test_workers_decode_as_well(tiny_bundle: TinyBundle, leaf: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, threads = PlantClassifier.load(tiny_bundle.bundle, threads=1, workers=2), set[str]()

    def note(*args: object, **options: object) -> object:
        threads.add(threading.current_thread().name)
        return image_to_input(*args, **options)

    expected = classifier.predict([leaf] * 8)
    monkeypatch.setattr(classifier_module, "image_to_input", note)
    assert classifier.predict([leaf] * 8) == expected
    assert threading.current_thread().name not in threads


def test_one_pillow_image_may_be_given_many_times(tiny_bundle: TinyBundle, leaf: bytes) -> None:
    classifier = PlantClassifier.load(tiny_bundle.bundle, threads=1, workers=4)
    expected = classifier.predict([leaf])[0]
    for _ in range(10):
        image = Image.open(io.BytesIO(leaf))
        assert classifier.predict([image] * 8) == [expected] * 8
