"""Fixtures for the tests and for the examples in docstrings; each module of `tests/fixtures` holds one kind.

Nothing is downloaded and no GPU is needed.
"""

from hypothesis import HealthCheck, settings

pytest_plugins = [
    "tests.fixtures.drawings",
    "tests.fixtures.checkpoints",
    "tests.fixtures.bundles",
    "tests.fixtures.machine",
    "tests.fixtures.tracking",
    "tests.fixtures.reports",
    "tests.fixtures.doctests",
]

# Other programs on the machine must fail no test: neither the time of an example nor that of drawing it counts.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
