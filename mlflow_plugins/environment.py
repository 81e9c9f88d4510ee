"""Changes environment variables for a while: MLflow and Spark take some options nowhere else.

>>> with changed_environment({"PLANTMODELS_EXAMPLE": "1"}):
...     os.environ["PLANTMODELS_EXAMPLE"]
'1'
>>> "PLANTMODELS_EXAMPLE" in os.environ
False
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def changed_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process in the block, and then put back what these were."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
