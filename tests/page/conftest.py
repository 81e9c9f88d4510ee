"""The built page behind a web server of its own, and a browser that visits it."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PAGE = Path(__file__).resolve().parents[2] / "page"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --window-size=1200,1000 --disable-dev-shm-usage"
)


@dataclass
class Site:
    """A folder behind a web server. Every request is kept; `stop` makes the server vanish, as without a network."""

    folder: Path
    cors: bool = False
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *words: object) -> None:
                site.requests.append(self.path)

            def end_headers(self) -> None:
                if site.cors:
                    self.send_header("Access-Control-Allow-Origin", "*")
                super().end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(self.folder)))
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="session")
def built_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page as `make page` builds it, without a bundle; read-only."""
    if not (PAGE / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("the page's packages are not installed: npm ci --prefix page")
    folder = tmp_path_factory.mktemp("page")
    subprocess.run(["node", str(PAGE / "build.mjs"), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture
def serve(tmp_path: Path, built_page: Path) -> Iterator[Callable[..., Site]]:
    """`serve(bundle)`: the page with this bundle beside it, on a server of its own; or the bundle alone."""
    sites: list[Site] = []

    def start(bundle: Path | None, *, page: bool = True) -> Site:
        folder = tmp_path / f"site {len(sites)}"
        folder.mkdir()
        for part in built_page.iterdir() if page else ():
            (folder / part.name).symlink_to(part)
        if bundle is not None:
            (folder / "models").symlink_to(bundle)
        sites.append(Site(folder, cors=not page))
        return sites[-1]

    yield start
    for site in sites:
        site.stop()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Chrome"]:
    if not shutil.which("chromedriver"):
        pytest.skip("chromium and chromium-driver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()
