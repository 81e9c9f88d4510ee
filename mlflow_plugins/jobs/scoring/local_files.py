r"""Image files of a folder on this machine, listed and read by our own code instead of Hadoop's.

Hadoop cannot name files with colons or with bytes that are not UTF-8, and skips broken links and files that it may not
read. So the driver lists the folder by the project's one rule, and sends the bytes of the names to the workers, which
open the files themselves.

>>> [(file, name)] = list_new(tmp, Counter()) if (tmp / "10:32.jpg").write_bytes(image.read_bytes()) else []
>>> name == f"file:{tmp}/10:32.jpg", list_new(tmp, Counter([name]))
(True, [])
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from plantmodels.data.image_files import printable_name
from plantmodels.data.listing import list_images, log_left_out

if TYPE_CHECKING:
    import pyarrow as pa

READ_SCHEMA: Final = "path string, image binary, read_error string"
"""What `build_reader` yields, in Spark's words."""

NewFile = tuple[bytes, str]
"""The name of an image file as the system knows it, and as it stands in the scores."""


def list_new(folder: Path, known: Counter[str]) -> list[NewFile]:
    r"""Return the image files of a folder that have no row yet, sorted by path.

    Bytes of a name that are not UTF-8 are written as `\xe9` in the scores.

    Args:
        folder: an absolute path.
        known: the names in the scores, and how often each occurs. Two files may have one name in the scores.

    Raises:
        DataError: a folder cannot be listed.
    """
    listing = list_images(folder)
    log_left_out({str(folder): listing})
    named = [(os.fsencode(path), f"file:{printable_name(str(path))}") for path in listing.paths]
    left = known.copy()
    new = []
    for file, name in named:
        if left[name] > 0:
            left[name] -= 1
        else:
            new.append((file, name))
    return new


def build_reader(max_bytes: int) -> Callable[[Iterable["pa.RecordBatch"]], Iterator["pa.RecordBatch"]]:
    """Return the function that reads files on the workers, for `DataFrame.mapInArrow`.

    It takes rows of `file` and `path`, and yields rows of path, content and why the file cannot be read. Since it is a
    function inside a function, Spark sends its code along: workers need not have this project.

    Args:
        max_bytes: a larger file is not read.
    """

    def read(batches: "Iterable[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
        import os
        import stat
        from pathlib import Path

        import pyarrow as pa

        def read_file(file: bytes) -> bytes | str:
            """Return the content of a file, or why it has none."""
            try:
                with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as content:  # a pipe would block
                    status = os.fstat(content.fileno())
                    if not stat.S_ISREG(status.st_mode):
                        return "cannot be read (not a regular file)"
                    if status.st_size > max_bytes:
                        return f"a file of {status.st_size:,} bytes: at most {max_bytes:,} are read"
                    return content.read()
            except FileNotFoundError:
                is_link = Path(os.fsdecode(file)).is_symlink()
                return f"cannot be read ({'a link to nothing' if is_link else 'no such file here'})"
            except OSError as error:
                return f"cannot be read ({error.strerror})"

        types = pa.schema([("path", pa.string()), ("image", pa.binary()), ("read_error", pa.string())])
        for batch in batches:
            for row in batch.to_pylist():
                found = read_file(row["file"])
                values = {"read_error": found} if isinstance(found, str) else {"image": found}
                yield pa.RecordBatch.from_pylist([{"path": row["path"], **values}], types)

    return read
