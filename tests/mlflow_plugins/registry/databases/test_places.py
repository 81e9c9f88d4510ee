import threading

import anyio
import pytest
from anyio.to_thread import current_default_thread_limiter

from mlflow_plugins.registry import places
from mlflow_plugins.registry.places import lend_place


def test_a_waiting_request_lets_another_one_be_answered() -> None:
    """With room for one request at a time, the first could never be woken by the second."""
    woken = threading.Event()

    def wait() -> bool:
        with lend_place():
            return woken.wait(60)

    async def serve() -> float:
        current_default_thread_limiter().total_tokens = 1
        async with anyio.create_task_group() as requests:
            requests.start_soon(anyio.to_thread.run_sync, wait)
            await anyio.sleep(0.1)
            with anyio.fail_after(30):
                await anyio.to_thread.run_sync(woken.set)
        return current_default_thread_limiter().total_tokens

    assert anyio.run(serve) == 1
    assert woken.is_set()


def test_no_more_places_are_lent_than_threads_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_lent", threading.Semaphore(1))

    def count() -> float:
        return anyio.from_thread.run_sync(lambda: current_default_thread_limiter().total_tokens)

    def wait() -> list[float]:
        with lend_place(), lend_place():
            return [count()]

    async def serve() -> list[float]:
        before = current_default_thread_limiter().total_tokens
        return [before, *(await anyio.to_thread.run_sync(wait)), current_default_thread_limiter().total_tokens]

    before, during, after = anyio.run(serve)
    assert (during, after) == (before + 1, before)
