"""The gated registry as a team runs it: processes of its own, users, promotions at the same time, a kill."""

import threading

import mlflow
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient

from mlflow_plugins import flavor
from mlflow_plugins.registry.commands.admin import reconcile_model
from mlflow_plugins.registry.commands.history import list_decisions
from mlflow_plugins.registry.tags import WAIVE_TAG
from plantmodels.bundle.layout import GATE_REPORT_FILE, IMAGES_FILE
from tests.fixtures.databases import ON_EVERY_DATABASE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is deprecated since 2.9.0:FutureWarning"),  # stages
]
NAME = "plant-disease"


def register(bundle, experiment_id: str | None = None) -> str:
    with mlflow.start_run(experiment_id=experiment_id):
        uri = flavor.log_model(bundle, name="m").model_uri
    return str(mlflow.register_model(uri, NAME).version)


def production() -> tuple[list[str], str | None]:
    client = MlflowClient()
    stage = [str(v.version) for v in client.search_model_versions(f"name='{NAME}'") if v.current_stage == "Production"]
    return stage, client.get_registered_model(NAME).aliases.get("production")


@pytest.fixture
def database(registry_database: str) -> str:
    """A database that the server makes its tables in, if it is sqlite."""
    return "sqlite:///server.db" if registry_database.startswith("sqlite") else registry_database


@ON_EVERY_DATABASE
def test_200_promotions_by_two_clients_end_in_one_state(start_server, database, good_bundle):
    start_server("--workers", "2", database=database)
    versions = [register(good_bundle), register(good_bundle)]
    failures: list[BaseException] = []

    def work(version: str) -> None:
        client = MlflowClient()
        for turn in range(100):
            try:
                if turn % 2:
                    client.transition_model_version_stage(NAME, version, "Production")
                else:
                    client.set_registered_model_alias(NAME, "production", version)
            except MlflowException as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    stage, alias = production()
    assert stage == [alias]
    promotions = [decision for decision in list_decisions(NAME) if decision.action != "register a version"]
    assert len(promotions) == 200
    assert promotions[-1].version == alias


def test_with_basic_auth_decisions_name_the_user(start_server, bad_bundle, monkeypatch, tmp_path):
    (tmp_path / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///auth.db\n"
        "admin_username = admin\nadmin_password = of the test 1\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    server = start_server(
        "--app-name",
        "basic-auth",
        "--workers",
        "1",
        MLFLOW_AUTH_CONFIG_PATH=str(tmp_path / "auth.ini"),
        MLFLOW_FLASK_SERVER_SECRET_KEY="of the test",
        PLANTMODELS_WAIVER_USERS="admin",
    )
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "of the test 1")
    version = register(bad_bundle)
    users = AuthServiceClient(server.address)
    users.create_user("editor", "of the test 1")
    users.create_user("reader", "of the test 1")
    users.grant_user_permission("editor", "registered_model", NAME, "EDIT")

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    with pytest.raises(MlflowException, match="Permission denied"):
        MlflowClient().set_registered_model_alias(NAME, "production", version)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "editor")
    with pytest.raises(MlflowException, match=r"ood_recall measured 50\.00 %"):
        MlflowClient().set_registered_model_alias(NAME, "production", version)
    with pytest.raises(MlflowException, match="editor may not waive gates; allowed users: admin"):
        MlflowClient().set_model_version_tag(NAME, version, f"{WAIVE_TAG}ood_recall", "fine")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    MlflowClient().set_model_version_tag(NAME, version, f"{WAIVE_TAG}ood_recall", "fine")
    MlflowClient().set_registered_model_alias(NAME, "production", version)
    assert [(d.user, d.action, d.allowed) for d in list_decisions(NAME)] == [
        ("admin", "register a version", True),
        ("editor", "set alias production", False),
        ("editor", "waive ood_recall", False),
        ("admin", "waive ood_recall", True),
        ("admin", "set alias production", True),
    ]


@ON_EVERY_DATABASE
def test_a_server_killed_in_the_midst_of_promotions_is_mended(start_server, database, good_bundle, bad_bundle):
    server = start_server("--workers", "2", database=database)
    good, failing = [register(good_bundle), register(good_bundle)], register(bad_bundle)
    for delay_s in (0.3, 0.4):
        answered = {version: threading.Event() for version in [*good, failing]}
        threads = [threading.Thread(target=_promote_until_killed, args=asked) for asked in answered.items()]
        for thread in threads:
            thread.start()
        assert all(event.wait(60) for event in answered.values())
        threading.Event().wait(delay_s)
        server.kill()
        for thread in threads:
            thread.join()
        server = start_server("--workers", "2", database=database)
        stage, alias = production()
        assert failing not in stage and alias != failing
        reconcile_model(NAME)
        stage, alias = production()
        assert stage == ([] if alias is None else [alias])
    assert any(not decision.allowed for decision in list_decisions(NAME, version=failing))


def _promote_until_killed(version: str, answered: threading.Event) -> None:
    """Promote by plain requests, which do not try again when the server is gone."""
    url = f"{mlflow.get_tracking_uri()}/api/2.0/mlflow/registered-models/alias"
    try:
        while True:
            requests.post(url, json={"name": NAME, "alias": "production", "version": version}, timeout=30)
            answered.set()
    except requests.RequestException:
        return


def test_promotions_by_plain_http_are_refused(start_server, good_bundle, bad_bundle):
    """Both of MLflow's API prefixes; a metric logged afterwards; an artifact overwritten afterwards."""
    server = start_server("--workers", "1")
    bad, good = register(bad_bundle), register(good_bundle)
    client = MlflowClient()
    client.log_metric(client.search_runs(["0"])[0].info.run_id, "ood_recall", 1.0)
    for prefix in ("api", "ajax-api"):
        asked = {"name": NAME, "version": bad, "stage": "Production", "archive_existing_versions": True}
        answer = requests.post(
            f"{server.address}/{prefix}/2.0/mlflow/model-versions/transition-stage", json=asked, timeout=600
        )
        assert answer.status_code == 403
        assert "ood_recall measured 50.00 %, limit ≥ 95 %" in answer.json()["message"]

    place = client.get_model_version_download_uri(NAME, good).removeprefix("mlflow-artifacts:/")
    target = f"{server.address}/api/2.0/mlflow-artifacts/artifacts/{place}/data/bundle/report.html"
    requests.put(target, data=b"<h1>All passed</h1>", timeout=600).raise_for_status()
    with pytest.raises(MlflowException, match=r"refused to set alias production: .*changed: report\.html"):
        client.set_registered_model_alias(NAME, "production", good)
    assert production() == ([], None)


def test_no_alternation_of_two_reports_gets_a_failing_version_into_production(start_server, good_bundle, bad_bundle):
    """A client that may write artifacts swaps the failing report for a passing one and back, while it is judged."""
    server, stop, swaps = start_server("--workers", "1"), threading.Event(), []
    version, client = register(bad_bundle), MlflowClient()
    place = client.get_model_version_download_uri(NAME, version).removeprefix("mlflow-artifacts:/")
    target = f"{server.address}/api/2.0/mlflow-artifacts/artifacts/{place}/data/bundle"

    def swap() -> None:
        with requests.Session() as session:
            while not stop.is_set():
                for bundle in (good_bundle, bad_bundle):
                    for name in (IMAGES_FILE, GATE_REPORT_FILE):
                        session.put(f"{target}/{name}", data=(bundle / name).read_bytes(), timeout=600)
                    swaps.append(bundle)

    thread, refusals = threading.Thread(target=swap), []
    thread.start()
    asked = {"name": NAME, "alias": "production", "version": version}
    for _ in range(150):
        url = f"{server.address}/api/2.0/mlflow/registered-models/alias"
        refusals.append(requests.post(url, json=asked, timeout=600))
    stop.set()
    thread.join()
    assert {answer.status_code for answer in refusals} == {403}
    texts = " ".join(answer.json()["message"] for answer in refusals)
    assert "ood_recall measured" in texts and "changed: " in texts  # both reports were met
    assert len(swaps) > 20 and production() == ([], None)


def test_byte_code_put_beside_the_code_is_refused(start_server, good_bundle):
    """Python would run it instead of the source, whose digest is right."""
    server = start_server("--workers", "1")
    version, client = register(good_bundle), MlflowClient()
    place = client.get_model_version_download_uri(NAME, version).removeprefix("mlflow-artifacts:/")
    path = f"{place}/code/plantmodels/__pycache__/__init__.cpython-311.pyc"
    target = f"{server.address}/api/2.0/mlflow-artifacts/artifacts/{path}"
    requests.put(target, data=b"byte code", timeout=600).raise_for_status()
    with pytest.raises(MlflowException, match="its files are not those that were registered"):
        client.set_registered_model_alias(NAME, "production", version)


def test_each_workspace_is_gated_separately(start_server, good_bundle, bad_bundle, monkeypatch):
    start_server("--workers", "1", "--enable-workspaces")
    mlflow.create_workspace("greenhouse")
    for workspace in ("default", "greenhouse"):
        monkeypatch.setenv("MLFLOW_WORKSPACE", workspace)
        experiment_id = mlflow.create_experiment("leaves")
        good, bad = register(good_bundle, experiment_id), register(bad_bundle, experiment_id)
        assert (good, bad) == ("1", "2")
        MlflowClient().set_registered_model_alias(NAME, "production", good)
        with pytest.raises(MlflowException, match=r"ood_recall measured 50\.00 %"):
            MlflowClient().set_registered_model_alias(NAME, "production", bad)
        assert production() == ([good], good)
        assert len(list_decisions(NAME)) == 4
