"""Answer one image in a fresh process, by the one file or by the three steps; prints its cost as JSON.

python -m benchmarks.one_file_cold "one file" public/models public/models/plant-classifier-int8.onnx leaf.jpg int8

Imports nothing but what a service imports, so that the process costs what a service costs.
"""

import json
import sys
import time
from pathlib import Path

from benchmarks.processes import read_memory


def main() -> None:
    """Load, answer, and print how long loading took, on the clock and of processor time, and the peak of memory."""
    way, precision = sys.argv[1], sys.argv[5]
    bundle, one_file, image = map(Path, sys.argv[2:5])
    if way == "three steps":
        from plantmodels.serve.classifier import PlantClassifier

        clock, processor = time.perf_counter(), time.process_time()
        classifier = PlantClassifier.load(bundle, threads=1, precision=precision)
        loaded = time.perf_counter() - clock, time.process_time() - processor
        classifier.predict([image.read_bytes()])
    else:
        from plantmodels.bundle.layout import IMAGE_INPUT
        from plantmodels.bundle.metadata import read_metadata
        from plantmodels.serve.image_input import image_to_input
        from plantmodels.serve.session import open_session

        clock, processor = time.perf_counter(), time.process_time()
        metadata = read_metadata(bundle)
        session = open_session(one_file, options=metadata.session_options, threads=1)
        loaded = time.perf_counter() - clock, time.process_time() - processor
        session.run(None, {IMAGE_INPUT: image_to_input(image.read_bytes(), metadata.preprocessing)[None]})
    print(json.dumps({"load_clock_s": loaded[0], "load_processor_s": loaded[1], **read_memory()}))


if __name__ == "__main__":
    main()
