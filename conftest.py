"""Fixtures for the tests and for the examples in docstrings; each module of `tests/fixtures` holds one kind.

Nothing is downloaded and no GPU is needed.
"""

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = [
    "tests.fixtures.drawings",
    "tests.fixtures.checkpoints",
    "tests.fixtures.bundles",
    "tests.fixtures.machine",
    "tests.fixtures.tracking",
    "tests.fixtures.databases",
    "tests.fixtures.servers",
    "tests.fixtures.proxy",
    "tests.fixtures.reports",
    "tests.fixtures.doctests",
]

# Other programs on the machine must fail no test: neither the time of an example nor that of drawing it counts.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

SLOWEST_FILES = (
    "tests/mlflow_plugins/jobs/test_main_job_real.py",
    "tests/mlflow_plugins/registry/test_server.py",
    "tests/mlflow_plugins/loading/test_handle.py",
    "tests/mlflow_plugins/jobs/test_project.py",
    "tests/mlflow_plugins/jobs/scoring/test_processes_of_spark.py",
    "tests/mlflow_plugins/jobs/scoring/test_job.py",
    "tests/mlflow_plugins/jobs/test_faults.py",
    "tests/reliability/test_fuzz.py",
    "tests/mlflow_plugins/checking/test_hostile.py",
    "tests/mlflow_plugins/registry/test_ui.py",
    "tests/mlflow_plugins/registry/test_store.py",
)
"""They start first, so that at the end no worker waits for another one's long file."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first, in the order of `SLOWEST_FILES`; all other tests keep their order."""
    places = {file: place for place, file in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the ten files that took longest, whose table is in CONTRIBUTING.md."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration
    if len(seconds) > 10:
        terminalreporter.section("ten slowest files")
        for file, total in seconds.most_common(10):
            terminalreporter.write_line(f"{total:7.1f}s {file}")
