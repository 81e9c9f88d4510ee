"""Names of images in digests and reports."""

from pathlib import Path

import pytest

from plantmodels.data.image_files import name_in_digest, name_in_report

ROOT = Path("/data")


@pytest.mark.parametrize(
    ("path", "in_digest", "below"),
    [
        ("/data/train/Apple___rot/a.jpg", "train/Apple___rot/a.jpg", "train/Apple___rot/a.jpg"),
        ("/elsewhere/deep/a.jpg", "/elsewhere/deep/a.jpg", "a.jpg"),
        ("/database/a.jpg", "/database/a.jpg", "a.jpg"),
        ("relative/a.jpg", "relative/a.jpg", "a.jpg"),
    ],
)
def test_an_image_outside_the_folder_has_its_path_in_digests_and_its_bare_name_in_reports(
    path: str, in_digest: str, below: str
) -> None:
    assert name_in_digest(ROOT, Path(path)) == in_digest
    assert name_in_report(ROOT, Path(path)) == below
