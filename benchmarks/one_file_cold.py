"""Answer one image in a fresh process, by the one file or by the three steps; prints the seconds of loading as JSON.

python -m benchmarks.one_file_cold "three steps" public/models leaf.jpg

Imports nothing but what a service imports, so that the process costs what a service costs.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Load, answer, and print how long loading took, on the clock and of processor time."""
    way, bundle, image = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if way == "three steps":
        from plantmodels.serve.classifier import PlantClassifier

        clock, processor = time.perf_counter(), time.process_time()
        classifier = PlantClassifier.load(bundle, threads=1)
        loaded = time.perf_counter() - clock, time.process_time() - processor
        classifier.predict([image.read_bytes()])
    else:
        from plantmodels.bundle.layout import IMAGE_INPUT, ONE_FILES
        from plantmodels.bundle.metadata import read_metadata
        from plantmodels.serve.image_input import image_to_input
        from plantmodels.serve.session import open_session

        clock, processor = time.perf_counter(), time.process_time()
        metadata = read_metadata(bundle)
        session = open_session(bundle / ONE_FILES["int8"], options=metadata.session_options, threads=1)
        loaded = time.perf_counter() - clock, time.process_time() - processor
        session.run(None, {IMAGE_INPUT: image_to_input(image.read_bytes(), metadata.preprocessing)[None]})
    print(json.dumps({"load_clock_s": loaded[0], "load_processor_s": loaded[1]}))


if __name__ == "__main__":
    main()
