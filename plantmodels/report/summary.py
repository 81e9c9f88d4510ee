"""How often the model is right, in a sentence."""

from plantmodels.report.formatting import format_percent
from plantmodels.report.results import Accuracy


def describe_accuracy(accuracy: Accuracy | None) -> str:
    """Return a sentence with the INT8 model's accuracy: species, disease given the species, and both.

    Args:
        accuracy: None if the models could not be run.
    """
    if accuracy is None:
        return "The models could not be run, so their accuracy is unknown."
    int8 = accuracy.int8
    sentence = (
        f"INT8 names the species of {format_percent(int8.species.value, 1)} of {int8.species.images:,} validation "
        f"leaves, species and disease of {format_percent(int8.end_to_end.value, 1)}"
    )
    if int8.disease.images:
        sentence += f"; given the right species, the disease of {format_percent(int8.disease.value, 1)}"
    return f"{sentence}."
