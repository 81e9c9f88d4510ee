"""Times the steps of an export that read every file of a data set: prints JSON. Run by `benchmarks.intake files`.

It imports only names that older copies of this project have as well; a step that such a copy lacks is left out.
"""

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(root: Path) -> None:
    """Print seconds and added resident memory of each step."""
    from plantmodels.bundle.taxonomy import Taxonomy
    from plantmodels.data.digests import digest_images
    from plantmodels.data.leaves import digest_leaves, read_leaves, split_by_name
    from plantmodels.data.non_plants import read_non_plants

    classes = sorted({path.name.partition("___")[::2] for path in (root / "data" / "train").iterdir()})
    names = list(dict.fromkeys(species for species, _ in classes))
    taxonomy = Taxonomy(tuple(names), {name: tuple(d for s, d in classes if s == name) for name in names})
    steps: dict[str, dict[str, float]] = {}

    def measure(name: str, step: Callable[[], Any]) -> Any:
        memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        result = step()
        added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
        steps[name] = {"seconds": round(time.perf_counter() - start, 2), "added_mb": round(added, 1)}
        return result

    leaves = measure("list leaves", lambda: read_leaves(root / "data", "train", taxonomy))
    others = measure("list non-plants", lambda: read_non_plants(root / "non_plants"))
    measure("digest leaves", lambda: digest_leaves(leaves))
    measure("digest non-plants", lambda: digest_images(others.root, others.paths))
    measure("choose leaves", lambda: split_by_name(leaves, 1.0, 2000, 0))
    measure("halve non-plants", lambda: (others.half("selection"), others.half("gate")))
    try:
        checks = importlib.import_module("plantmodels.export.checks.non_plants")
    except ModuleNotFoundError:
        checks = None
    if checks is not None:
        measure("find leaves among non-plants", lambda: checks.refuse_known_files(others, leaves.paths, leaves.root))
    steps["all"] = {key: round(sum(step[key] for step in steps.values()), 2) for key in ("seconds", "added_mb")}
    print(json.dumps(steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
