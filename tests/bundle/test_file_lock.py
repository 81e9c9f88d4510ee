import multiprocessing
import threading
from pathlib import Path

import pytest

from plantmodels.bundle.file_lock import LockedError, hold_file_lock


def test_the_holder_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with hold_file_lock(path, holder="first") as is_held:
        assert is_held and path.read_text() == "first"
        with pytest.raises(LockedError) as refused, hold_file_lock(path, holder="second"):
            pytest.fail("was entered")
        assert refused.value.holder == "first" and path.read_text() == "first"
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_holder_wrote_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.write_text("a name that is longer than the next one")
    with hold_file_lock(path, holder="short"):
        assert path.read_text() == "short"


def test_a_waiting_thread_takes_over(tmp_path: Path) -> None:
    path, order = tmp_path / "a.lock", []

    def wait() -> None:
        with hold_file_lock(path, timeout_s=600, holder="second"):
            order.append(path.read_text())

    thread = threading.Thread(target=wait)
    with hold_file_lock(path, holder="first"):
        thread.start()
        thread.join(0.2)
        order.append(path.read_text())
    thread.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def _sleep(ready: object) -> None:
    ready.set()
    threading.Event().wait()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    path, fork = tmp_path / "a.lock", multiprocessing.get_context("fork")
    ready = fork.Event()
    with hold_file_lock(path):
        child = fork.Process(target=_sleep, args=(ready,), daemon=True)
        child.start()
        assert ready.wait(600)
    try:
        with hold_file_lock(path) as is_held:
            assert is_held
    finally:
        child.kill()
        child.join()
