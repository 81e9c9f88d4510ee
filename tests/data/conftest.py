import logging
from collections.abc import Iterator

import pytest


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def progress_lines() -> Iterator[list[str]]:
    """What steps log when they end, whatever the logging of the program around them."""
    logger, handler = logging.getLogger("plantmodels.data.progress"), _Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a command line that ran before in this process prints what arrives above
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = True
