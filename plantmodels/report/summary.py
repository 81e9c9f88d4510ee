"""How often the model is right, in words.

>>> from plantmodels.report.gate_report import read_report
>>> describe_accuracy(read_report(bundle).accuracy)[:38]
'The INT8 model names the right species'
"""

from plantmodels.report.formatting import format_percent
from plantmodels.report.results import Accuracy


def describe_accuracy(accuracy: Accuracy | None) -> str:
    """Return the accuracy of the INT8 model, which is served, in words: species, both, and disease given the species.

    Args:
        accuracy: the measured accuracy; None when the models could not be run.
    """
    if accuracy is None:
        return "The models could not be run, so their accuracy is unknown."
    int8 = accuracy.int8
    text = (
        f"The INT8 model names the right species for {format_percent(int8.species.value, 1)} of "
        f"{int8.species.images:,} validation images, and the right species and disease for "
        f"{format_percent(int8.end_to_end.value, 1)}."
    )
    if int8.disease.images:
        text += f" Given the true species, it names the right disease for {format_percent(int8.disease.value, 1)}."
    return text
