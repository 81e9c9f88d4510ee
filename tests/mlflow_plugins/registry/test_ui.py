"""MLflow's own UI in a real browser, against a real server with the gated registry.

The screenshots go to the test's folder below `--basetemp`; the documents show some of them (docs/ui-*.png).
"""

import base64
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support import expected_conditions as seen
from selenium.webdriver.support.ui import WebDriverWait

from mlflow_plugins import flavor
from mlflow_plugins.jobs.records import version_tags
from mlflow_plugins.registry.commands.history import list_decisions
from mlflow_plugins.registry.tags import WAIVE_TAG
from plantmodels.bundle.metadata import read_metadata
from plantmodels.export.bundle import export_bundle
from plantmodels.report.gate_report import read_report
from plantmodels.report.policy import read_policy
from plantmodels.verify.run import verify_bundle
from tests.fixtures.drawings import draw_image, list_classes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is deprecated since 2.9.0:FutureWarning"),  # stages
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="chromium and chromium-driver are not installed"),
]
NAME = "plant-disease"
PATIENCE_S = 120  # a promotion on a machine that other tests keep busy can take half a minute
CLASSIC_UI = "_mlflow_user_setting_dismiss_next_model_registry_ui"
PASSWORD = "of-the-test-1"
AUTH = (
    "[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///auth.db\nadmin_username = ada\n"
    f"admin_password = {PASSWORD}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
)
REFUSED = "ood_recall measured 50.00 %, limit ≥ 95 %"


@pytest.fixture
def server(start_server: Callable[..., Any]) -> str:
    return start_server("--workers", "1").address


@pytest.fixture
def browser(tmp_path: Path) -> Iterator:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --hide-scrollbars --window-size=1400,1000 --disable-dev-shm-usage"
    ).split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'chromium'}")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


FEW_IMAGES = """
parity.max_abs_diff = 0.05
int8_accuracy.min_images = 45
int8_accuracy.max_drop = 0.2
false_alarms = {min_images = 45, max = 0.2}
accuracy = {min_images = 45, min_species = 0.5, min_end_to_end = 0.5}
leakage = {min_images = 45, max = 0.3}
ood_precision = {min_images = 20, min = 0.7}
ood_recall = {min_images = 20, min = 0.9}
no_regression.min_images = 20
"""
"""Limits that the tiny networks meet on the 45 leaves and 26 non-plants of the tiny data."""


@pytest.fixture
def limits(tmp_path: Path) -> Path:
    path = tmp_path / "gates.toml"
    path.write_text(FEW_IMAGES)
    return path


@pytest.fixture
def measure(tiny_bundle, tmp_path: Path, limits: Path) -> Callable[..., Path]:
    """`measure(bundle, checkpoint, data)`: a copy of the bundle, verified on these validation leaves."""

    def verify(bundle: Path, checkpoint: Path, data: Path) -> Path:
        copy = Path(shutil.copytree(bundle, tmp_path / f"measured {len(list(tmp_path.iterdir()))}"))
        policy = read_policy(limits)
        verify_bundle(copy, data, checkpoint=checkpoint, non_plants=tiny_bundle.non_plants, policy=policy)
        return copy

    return verify


def blur_species(document: dict[str, Any]) -> None:
    """Make the network weaker: as far from its final species head as it is before the end of a training."""
    weight = document["state_dict"]["species_head.weight"]
    weight += 0.15 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))


def draw_other_leaves(data: Path, folder: Path) -> Path:
    """The same training leaves, and as many validation leaves that nobody has seen."""
    shutil.copytree(data / "train", folder / "train")
    for kind, (species, disease) in enumerate(list_classes()):
        (folder / "val" / f"{species}___{disease}").mkdir(parents=True)
        for seed in range(2000, 2005):
            draw_image(kind, seed).save(folder / "val" / f"{species}___{disease}" / f"{seed}.png")
    return folder


def register(bundle: Path, tags: dict[str, str] | None = None) -> str:
    with mlflow.start_run():
        mlflow.log_artifact(str(bundle / "report.html"))
        uri = flavor.log_model(bundle, name="m").model_uri
    return str(mlflow.register_model(uri, NAME, tags=tags).version)


def log_in(browser, user: str) -> None:
    token = base64.b64encode(f"{user}:{PASSWORD}".encode()).decode()
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": {"Authorization": f"Basic {token}"}})


def click(browser, xpath: str) -> None:
    WebDriverWait(browser, PATIENCE_S).until(seen.element_to_be_clickable((By.XPATH, xpath))).click()


def wait_for_text(browser, text: str) -> None:
    WebDriverWait(browser, PATIENCE_S).until(lambda driver: text in driver.find_element("tag name", "body").text)


def take_screenshot(browser, path: Path) -> None:
    browser.execute_script("document.querySelector('[data-component-id$=\"chat_panel.close\"]')?.click()")
    time.sleep(1)  # what slides in or out has then arrived
    browser.save_screenshot(str(path))


def promote_by_alias(browser, server: str, version: str) -> None:
    browser.get(f"{server}/#/models/{NAME}/versions/{version}")
    browser.refresh()
    click(browser, "//button[contains(@aria-label, 'alias') or normalize-space()='Add']")
    click(browser, "//*[@role='dialog']//input")
    field = browser.switch_to.active_element
    field.send_keys("production")
    field.send_keys(Keys.ENTER)
    click(browser, "//*[@role='dialog']//button[contains(., 'Save')]")


def promote_by_stage(browser, server: str, version: str) -> None:
    browser.get(f"{server}/#/models/{NAME}/versions/{version}")
    browser.execute_script(f"localStorage.setItem('{CLASSIC_UI}', 'true')")
    browser.refresh()
    click(browser, "//*[contains(@class, 'stage-transition-dropdown')] | //*[text()='None']")
    click(browser, "//*[@role='menuitem'][contains(., 'Production')]")
    click(browser, "//*[@role='dialog']//button[normalize-space()='OK' or normalize-space()='Transition']")


def test_promotion_by_stage(server, browser, good_bundle, bad_bundle, tmp_path, wait_for):
    good, bad = register(good_bundle), register(bad_bundle)
    promote_by_stage(browser, server, good)
    client = MlflowClient()
    wait_for(lambda: client.get_model_version(NAME, good).current_stage == "Production")
    assert client.get_model_version(NAME, good).aliases == ["production"]
    promote_by_stage(browser, server, bad)
    wait_for_text(browser, REFUSED)
    take_screenshot(browser, tmp_path / "ui-stage-refused.png")
    assert client.get_model_version(NAME, bad).current_stage == "None"


def test_promotion_by_alias(server, browser, good_bundle, bad_bundle, tmp_path, wait_for):
    good, bad = register(good_bundle), register(bad_bundle)
    client = MlflowClient()
    promote_by_alias(browser, server, good)
    wait_for(lambda: client.get_registered_model(NAME).aliases)
    assert client.get_model_version(NAME, good).current_stage == "Production"
    promote_by_alias(browser, server, bad)
    wait_for_text(browser, REFUSED)
    take_screenshot(browser, tmp_path / "ui-alias-refused.png")
    assert client.get_registered_model(NAME).aliases == {"production": good}


def test_a_worse_version_is_refused_and_an_equal_one_is_allowed(
    start_server, browser, tiny_bundle, tiny_checkpoint_factory, measure, limits, tmp_path, wait_for
):
    weak, data = tiny_checkpoint_factory(blur_species), tiny_bundle.data
    export_bundle(weak, data, tmp_path / "weak", non_plants=tiny_bundle.non_plants)
    worse = measure(tmp_path / "weak", weak, data)
    elsewhere = measure(tmp_path / "weak", weak, draw_other_leaves(data, tmp_path / "other"))
    good = measure(tiny_bundle.bundle, tiny_bundle.checkpoint, data)
    assert [read_report(bundle).passed for bundle in (good, worse, elsewhere)] == [True] * 3, (
        "each alone is good enough"
    )

    server = start_server("--workers", "1", PLANTMODELS_POLICY=str(limits)).address
    client, versions = MlflowClient(), [register(bundle) for bundle in (good, worse, good, elsewhere)]
    for version, reason in zip(versions, ("", "the same 45 images", "", "45 images, 45 others before"), strict=True):
        promote_by_alias(browser, server, version)
        if reason:
            wait_for_text(browser, "no_regression measured")
            text = browser.find_element("tag name", "body").text
            assert re.search(
                r"against version \d, which is in Production: end to end \d\d\.\d\d %, before 100\.00 %", text
            )
            assert re.search(rf"95 % interval of the loss \d+\.\d\d to \d\d\.\d\d points, {reason}", text)
            take_screenshot(browser, tmp_path / f"ui-worse-{version}.png")
            assert client.get_model_version(NAME, version).current_stage == "None"
        else:
            wait_for(lambda version=version: client.get_registered_model(NAME).aliases == {"production": version})


def test_the_version_and_the_model_say_how_they_stand(server, browser, bad_bundle, tmp_path):
    given = version_tags(read_metadata(bad_bundle), read_report(bad_bundle))
    version, client = register(bad_bundle, given), MlflowClient()
    browser.get(f"{server}/#/models/{NAME}/versions/{version}")
    wait_for_text(browser, "Gates failed: ood_recall")
    rows = [row.text for row in browser.find_elements(By.XPATH, "//table[.//th='measured']//tr")]
    assert "ood_recall ≥ 95 % 50.00 % failed" in [" ".join(row.split()) for row in rows]
    assert "written by the registry" not in browser.find_element("tag name", "body").text
    tags = [cell.text for cell in browser.find_elements(By.XPATH, "//tr[contains(., '.gates')]//td")]
    assert tags[:2] == [".gates", "failed: ood_recall"]
    written = client.get_model_version(NAME, version).tags
    cells = browser.find_elements(By.XPATH, "//table[.//td[normalize-space()='.gates']]//tr/td[1]")
    shown = [cell for cell in cells if cell.text]  # the first row of the table only measures its columns
    digests = {name for name, value in written.items() if re.fullmatch("[0-9a-f]{64}", value)}
    assert sorted(written) == [cell.text for cell in shown] and len(digests) >= 3
    assert {cell.text for cell in shown[-len(digests) :]} == digests, "digests stand last"
    browser.execute_script("arguments[0].scrollIntoView({block: 'end'})", shown[-1])
    take_screenshot(browser, tmp_path / "ui-tags.png")
    browser.execute_script("arguments[0].scrollIntoView({block: 'end'})", shown[0])
    take_screenshot(browser, tmp_path / "ui-version.png")

    client.set_model_version_tag(NAME, version, f"{WAIVE_TAG}ood_recall", "greenhouse only")
    client.set_registered_model_alias(NAME, "production", version)
    browser.refresh()
    wait_for_text(browser, "Gates passed, uncertain: ood_precision; waived: ood_recall")
    browser.find_element(By.LINK_TEXT, "Gate report").click()
    browser.switch_to.window(browser.window_handles[-1])
    WebDriverWait(browser, PATIENCE_S).until(lambda driver: driver.current_url.endswith("/artifacts/report.html"))
    browser.get(f"{server}/#/models/{NAME}")
    wait_for_text(browser, f"In Production: version {version} since 20")
    take_screenshot(browser, tmp_path / "ui-model.png")


def test_the_second_user_completes_a_promotion(start_server, browser, good_bundle, tmp_path, monkeypatch, wait_for):
    (tmp_path / "auth.ini").write_text(AUTH)
    address = start_server(
        "--app-name",
        "basic-auth",
        "--workers",
        "1",
        MLFLOW_AUTH_CONFIG_PATH=str(tmp_path / "auth.ini"),
        MLFLOW_FLASK_SERVER_SECRET_KEY="of the test",
        PLANTMODELS_APPROVALS="2",
        PLANTMODELS_PROMOTERS="ada,bob",
    ).address
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    version, users, client = register(good_bundle), AuthServiceClient(address), MlflowClient()
    for user in ("bob", "carl"):
        users.create_user(user, PASSWORD)
        users.grant_user_permission(user, "registered_model", NAME, "EDIT")
    for user in ("ada", "bob"):
        log_in(browser, user)
        promote_by_alias(browser, address, version)
        if user == "ada":
            wait_for_text(browser, "ada's request is noted (approval 1 of 2); one more user must ask for it")
            take_screenshot(browser, tmp_path / "ui-approval.png")
            assert client.get_registered_model(NAME).aliases == {}
    wait_for(lambda: client.get_registered_model(NAME).aliases)
    assert "approved by ada, bob" in list_decisions(NAME)[-1].reason
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "carl")
    with pytest.raises(MlflowException, match="carl is not one of the promoters: ada, bob"):
        client.transition_model_version_stage(NAME, version, "Archived")
