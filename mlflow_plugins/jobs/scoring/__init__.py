"""The job `score`: any number of images, scored on Spark."""
