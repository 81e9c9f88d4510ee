"""MLflow's own UI in a real browser, against a real server with the gated registry.

The screenshots go to the test's folder below `--basetemp`; the documents show some of them (docs/ui-*.png).
"""

import base64
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
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
from mlflow_plugins.registry.commands.history import list_decisions
from mlflow_plugins.registry.tags import WAIVE_TAG

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is deprecated since 2.9.0:FutureWarning"),  # stages
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="chromium and chromium-driver are not installed"),
]
NAME = "plant-disease"
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


def register(bundle: Path) -> str:
    with mlflow.start_run():
        mlflow.log_artifact(str(bundle / "report.html"))
        uri = flavor.log_model(bundle, name="m").model_uri
    return str(mlflow.register_model(uri, NAME).version)


def log_in(browser, user: str) -> None:
    token = base64.b64encode(f"{user}:{PASSWORD}".encode()).decode()
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": {"Authorization": f"Basic {token}"}})


def click(browser, xpath: str) -> None:
    WebDriverWait(browser, 30).until(seen.element_to_be_clickable((By.XPATH, xpath))).click()


def wait_for_text(browser, text: str) -> None:
    WebDriverWait(browser, 30).until(lambda driver: text in driver.find_element("tag name", "body").text)


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


def test_the_version_and_the_model_say_how_they_stand(server, browser, bad_bundle, tmp_path):
    version, client = register(bad_bundle), MlflowClient()
    browser.get(f"{server}/#/models/{NAME}/versions/{version}")
    wait_for_text(browser, "Gates failed: ood_recall")
    rows = [row.text for row in browser.find_elements(By.XPATH, "//table[.//th='measured']//tr")]
    assert "ood_recall ≥ 95 % 50.00 % failed" in [" ".join(row.split()) for row in rows]
    assert "written by the registry" not in browser.find_element("tag name", "body").text
    tags = [cell.text for cell in browser.find_elements(By.XPATH, "//tr[contains(., '.gates')]//td")]
    assert tags[:2] == [".gates", "failed: ood_recall"]
    take_screenshot(browser, tmp_path / "ui-version.png")

    client.set_model_version_tag(NAME, version, f"{WAIVE_TAG}ood_recall", "greenhouse only")
    client.set_registered_model_alias(NAME, "production", version)
    browser.refresh()
    wait_for_text(browser, "Gates passed; waived: ood_recall")
    browser.find_element(By.LINK_TEXT, "Gate report").click()
    browser.switch_to.window(browser.window_handles[-1])
    WebDriverWait(browser, 30).until(lambda driver: driver.current_url.endswith("/artifacts/report.html"))
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
