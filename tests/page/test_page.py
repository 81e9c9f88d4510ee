"""The page in Chromium: it answers as Python does, on the device alone, and says what is wrong with bad input."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from plantmodels.bundle.detector import read_detector
from plantmodels.bundle.layout import DETECTOR_FILE, METADATA_FILE, ONE_FILES
from plantmodels.bundle.manifest import write_manifest
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.prediction import Prediction
from tests.fixtures.bundles import TinyBundle
from tests.fixtures.checkpoints import RealPaths
from tests.page.conftest import PAGE, Site

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.slow

ONE_FILE = ONE_FILES["int8"]
Serve = Callable[..., Site]

ROUNDING = 0.02
"""Of a probability: products of INT8 are rounded otherwise in WebAssembly than in ONNX Runtime for Python."""


def wait(browser: "Chrome", done: Callable[["Chrome"], Any], seconds: float = 60) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, poll_frequency=0.1).until(done)


def open_page(browser: "Chrome", address: str) -> str:
    """Visit the page; return what it says of its model once it is ready or has failed."""
    browser.get(address)
    wait(browser, lambda driver: driver.find_element("id", "model").get_attribute("data-state") != "busy")
    return browser.find_element("id", "model").text


def classify(browser: "Chrome", images: list[Path]) -> list[Any]:
    """Give the page these files, one after another; return their cards in the same order."""
    for image in images:
        browser.find_element("id", "files").send_keys(str(image))
    return wait_for_cards(browser, len(images))


def wait_for_cards(browser: "Chrome", number: int) -> list[Any]:
    cards = "#results .card:not([data-state=waiting])"
    wait(browser, lambda driver: len(driver.find_elements("css selector", cards)) >= number)
    return browser.find_elements("css selector", cards)[:number][::-1]


def read_names(card: Any) -> list[str]:
    """Species, its probability, disease, its probability."""
    return [span.text for span in card.find_elements("css selector", ".name span")]


def check_answer(card: Any, expected: Prediction) -> None:
    assert card.get_attribute("data-state") == ("rejected" if expected.rejected else "answered"), card.text
    names = read_names(card)
    assert names[0] == str(expected.species).replace("_", " ")
    assert abs(float(names[1].removesuffix(" %")) / 100 - (expected.species_probability or 0)) <= ROUNDING
    if expected.disease is None:
        assert names[2:] == ["none known for this species"]
    else:
        if (expected.disease_given_species_probability or 0) > 0.5 + ROUNDING:  # else two diseases may be as likely
            assert names[2] == expected.disease.replace("_", " ")
        assert abs(float(names[3].removesuffix(" %")) / 100 - (expected.disease_probability or 0)) <= ROUNDING


def predict(bundle: Path, images: list[Path]) -> list[Prediction]:
    return PlantClassifier.load(bundle, threads=1).predict([image.read_bytes() for image in images])


def test_the_page_answers_as_python_does(
    browser: "Chrome", serve: Serve, tiny_bundle: TinyBundle, tmp_path: Path
) -> None:
    turned, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    leaves = sorted(tiny_bundle.data.glob("val/*/*"))[::7]
    Image.open(leaves[0]).convert("RGB").rotate(90, expand=True).save(turned, quality=95, exif=exif)
    images = [*leaves, *sorted(tiny_bundle.non_plants.rglob("*.*"))[:2], turned]
    expected = predict(tiny_bundle.bundle, images)
    assert {one.rejected for one in expected} == {False, True}, "then it would prove nothing"

    said = open_page(browser, serve(tiny_bundle.bundle).address)
    cards = classify(browser, images)

    assert re.fullmatch(r"Ready: \d+ species, \d+ classes, \d\.\d MB\.", said)
    for card, prediction in zip(cards, expected, strict=True):
        check_answer(card, prediction)
        assert re.search(r"\d+ ms: \d+ ms to decode and resize, \d+ ms in the model", card.text)
    assert browser.find_element("id", "announcement").get_attribute("textContent").startswith("turned.jpg: ")


@pytest.mark.real
def test_real_images_are_answered_as_in_python(
    browser: "Chrome", serve: Serve, tiny_bundle: TinyBundle, real_paths: RealPaths
) -> None:
    images = [
        *sorted((real_paths.leaves / "val").glob("*/*"))[::45],
        *sorted(real_paths.non_plants.glob("*/*"))[::60],
    ]
    assert len(images) > 40
    open_page(browser, serve(tiny_bundle.bundle).address)

    cards = classify(browser, images)

    threshold = read_detector(tiny_bundle.bundle / DETECTOR_FILE).threshold
    for card, expected in zip(cards, predict(tiny_bundle.bundle, images), strict=True):
        (score,) = map(float, re.findall(r"OOD score (\S+)", card.text))
        species, probability, *_ = read_names(card)
        certain = expected.species_probability or 0
        assert (card.get_attribute("data-state") == "rejected") == (score > threshold)
        assert abs(score - expected.ood_score) < 2, "scores of these images lie between -100 and 75"
        assert abs(float(probability.removesuffix(" %")) / 100 - certain) < 0.05
        assert species == str(expected.species).replace("_", " ") or certain < 0.5, "two species may be as likely"


ENDLESS = """
const [base, done] = arguments;
(async () => {
  const { Classifier } = await import(`${base}page/src/classifier.mjs`);
  const waits = [], ends = [], messages = [], wait = window.setTimeout;
  window.setTimeout = (call, ms) => (waits.push(ms), wait(call, 0));
  const classifier = new Classifier({ postMessage() {}, terminate() { ends.push("ended"); } });
  for (const image of ["first", "second"]) {
    await classifier.classify(new Blob([image])).catch((error) => messages.push(error.message));
  }
  done({ waits, ends, messages });
})();
"""


def test_a_model_that_never_ends_is_stopped(browser: "Chrome", serve: Serve) -> None:
    address = serve(None).address
    open_page(browser, address)

    found = browser.execute_async_script(ENDLESS, address)

    assert (found["waits"], found["ends"]) == ([120_000], ["ended"])
    stopped = "no answer within 120 seconds: the model was stopped; reload the page"
    assert found["messages"] == [stopped, stopped]


PASTE_AND_DROP = """
const [kind, encoded] = arguments;
const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
const files = new DataTransfer();
files.items.add(new File([bytes], kind === "paste" ? "" : "dropped.png", { type: "image/png" }));
const paste = () => new ClipboardEvent("paste", { clipboardData: files });
document.dispatchEvent(kind === "paste" ? paste() : new DragEvent("drop", { dataTransfer: files }));
"""


def test_images_are_dropped_pasted_and_taken_and_never_leave_the_device(
    browser: "Chrome", serve: Serve, tiny_bundle: TinyBundle
) -> None:
    import base64

    leaf = sorted(tiny_bundle.data.glob("val/*/*"))[0]
    site = serve(tiny_bundle.bundle)
    open_page(browser, site.address)
    wait(browser, lambda driver: driver.execute_script("return navigator.serviceWorker.controller !== null"))
    before = len(site.requests)
    browser.get_log("performance")

    for kind in ("paste", "drop"):
        browser.execute_script(PASTE_AND_DROP, kind, base64.b64encode(leaf.read_bytes()).decode())
    browser.find_element("id", "camera-files").send_keys(str(leaf))
    cards = wait_for_cards(browser, 3)

    assert {card.get_attribute("data-state") for card in cards} <= {"answered", "rejected"}
    assert [card.find_element("class name", "file").text for card in cards] == [
        "pasted image",
        "dropped.png",
        leaf.name,
    ]
    assert len({tuple(read_names(card)) for card in cards}) == 1
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in sent if not url.startswith("blob:")] == []
    assert len(site.requests) == before
    browser.find_element("id", "clear").click()
    assert browser.find_elements("class name", "card") == []


def test_it_works_without_a_network_after_the_first_visit(
    browser: "Chrome", serve: Serve, tiny_bundle: TinyBundle
) -> None:
    leaf = sorted(tiny_bundle.data.glob("val/*/*"))[0]
    site = serve(tiny_bundle.bundle)
    open_page(browser, site.address)
    first = read_names(classify(browser, [leaf])[0])
    wait(browser, lambda driver: driver.execute_script("return navigator.serviceWorker.controller !== null"))
    site.stop()

    said = open_page(browser, site.address)
    second = read_names(classify(browser, [leaf])[0])

    assert said.endswith("no network: the copy on this device.")
    assert second == first


def test_a_bundle_from_another_server_is_named_and_every_third_server_is_forbidden(
    browser: "Chrome", serve: Serve, tiny_bundle: TinyBundle
) -> None:
    elsewhere, third = serve(tiny_bundle.bundle, page=False), serve(tiny_bundle.bundle, page=False)
    fetch = "const [url, done] = arguments; fetch(url).then(() => done('sent'), () => done('forbidden'));"

    said = open_page(browser, f"{serve(None).address}?bundle={elsewhere.address}models")

    assert said.startswith("Ready: ")
    origin = elsewhere.address.rstrip("/")
    assert browser.find_element("id", "origin").text == f"This model comes from {origin}, not from this page's server."
    assert browser.execute_async_script(fetch, third.address) == "forbidden"
    assert browser.execute_async_script(fetch, elsewhere.address) == "sent"
    assert third.requests == []


def without_one_file(bundle: Path) -> None:
    (bundle / ONE_FILE).unlink()
    write_manifest(bundle)


def changed_model(bundle: Path) -> None:
    content = bytearray((bundle / ONE_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / ONE_FILE).write_bytes(content)


def garbage_model(bundle: Path) -> None:
    (bundle / ONE_FILE).write_bytes(b"no protobuf" * 100)
    write_manifest(bundle)


def other_model(bundle: Path) -> None:
    shutil.copy(bundle / "disease-heads-packed.onnx", bundle / ONE_FILE)
    write_manifest(bundle)


def longer_model(bundle: Path) -> None:
    with (bundle / ONE_FILE).open("ab") as file:
        file.write(b"x")


def edit_metadata(**changes: Any) -> Callable[[Path], None]:
    def edit(bundle: Path) -> None:
        document = json.loads((bundle / METADATA_FILE).read_text())
        (bundle / METADATA_FILE).write_text(json.dumps(document | changes))
        write_manifest(bundle)

    return edit


def edit_manifest(text: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / "manifest.json").write_text(text) and None


def huge_model(bundle: Path) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    document["files"][ONE_FILE]["size_bytes"] = 10**9
    (bundle / "manifest.json").write_text(json.dumps(document))


HTML = "<img src=x onerror=alert(1)>"

BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no one file": (without_one_file, rf"the bundle has no {ONE_FILE}: export it again with the newest plantmodels"),
    "changed": (changed_model, rf"{ONE_FILE} differs from manifest\.json"),
    "longer": (longer_model, r"over [\d,]+ bytes, more than expected"),
    "garbage": (garbage_model, rf"{ONE_FILE} cannot be opened \("),
    "another model": (other_model, rf"{ONE_FILE} lacks input, "),
    "too large": (huge_model, rf"{ONE_FILE}: 1,000,000,000 bytes, at most 268,435,456 are read"),
    "no json": (edit_manifest("<html>"), r"manifest\.json: not JSON in UTF-8"),
    "another version": (edit_manifest('{"format_version": 9}'), r"this page reads format_version 1 to 1, got 9"),
    "no manifest": (lambda bundle: (bundle / "manifest.json").unlink(), r"manifest\.json: the server answers 404"),
    "new metadata": (edit_metadata(format_version=99), r"this page reads format_version 1 to \d, got 99"),
    "html": (edit_metadata(preprocessing=HTML), r'preprocessing must be an object, got "<img src=x onerror'),
    "other species": (edit_metadata(taxonomy={"species": ["\u202eplant"], "diseases": {}}), r"list of plain text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_bundle_is_refused_by_name(name: str, browser: "Chrome", serve: Serve, bundle_copy: Path) -> None:
    harm, message = BROKEN[name]
    harm(bundle_copy)

    said = open_page(browser, serve(bundle_copy).address)

    assert said.startswith("The model cannot be used: ")
    assert re.search(message, said), said
    assert browser.find_elements("css selector", "main img") == []


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("ftp://example.org/models", "bundle must be an http or https address without a password, got ftp://"),
        ("javascript:alert(1)", "bundle must be an http or https address"),
        ("http://127.0.0.1:9/", "http://127.0.0.1:9/manifest.json cannot be reached"),
    ],
)
def test_a_wrong_address_is_refused(wanted: str, message: str, browser: "Chrome", serve: Serve) -> None:
    assert message in open_page(browser, f"{serve(None).address}?bundle={wanted}")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_files_get_a_card_each_and_a_hundred_megapixels_an_answer(
    browser: "Chrome", serve: Serve, tiny_bundle: TinyBundle, tmp_path: Path
) -> None:
    text, large = tmp_path / f"{HTML.replace('/', '')}.txt", tmp_path / "large.jpg"
    text.write_text("leaf")
    leaf = Image.open(sorted(tiny_bundle.data.glob("val/*/*"))[0]).convert("RGB")
    leaf.resize((10_800, 10_000), Image.Resampling.NEAREST).save(large, quality=40)

    open_page(browser, serve(tiny_bundle.bundle).address)
    bad, good = classify(browser, [text, large])

    assert bad.get_attribute("data-state") == "failed"
    assert bad.text == f"{text.name}\nNot classified: not an image of format JPEG, PNG, WEBP (4 bytes)"
    check_answer(good, predict(tiny_bundle.bundle, [large])[0])
    assert "10800×10000 pixels" in good.text


def test_a_browser_without_simd_is_told_so(browser: "Chrome", serve: Serve, tiny_bundle: TinyBundle) -> None:
    hide = "WebAssembly.validate = () => false;"
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": hide})
    site = serve(tiny_bundle.bundle)

    said = open_page(browser, site.address)
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)

    assert said.endswith("this browser has no WebAssembly SIMD: use a browser from 2023 or later")
    assert not [line for line in site.requests if "onnx" in line], "nothing large was downloaded"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_is_accessible(width: int, scheme: str, browser: "Chrome", serve: Serve, tiny_bundle: TinyBundle) -> None:
    images = [
        sorted(tiny_bundle.data.glob("val/*/*"))[0],
        sorted(tiny_bundle.non_plants.rglob("*.*"))[0],
        PAGE / "sw.js",
    ]
    window = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    scheme_of_device = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme_of_device)
    open_page(browser, serve(tiny_bundle.bundle).address)
    classify(browser, images)

    browser.execute_script((PAGE / "node_modules" / "axe-core" / "axe.min.js").read_text())
    found = browser.execute_async_script("axe.run().then(arguments[0])")
    overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
    assert len(found["passes"]) > 20
    assert overflow <= 0


def test_the_keyboard_reaches_everything(browser: "Chrome", serve: Serve, tiny_bundle: TinyBundle) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, serve(tiny_bundle.bundle).address)
    classify(browser, [PAGE / "sw.js"])
    reached = []
    for _ in range(3):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.switch_to.active_element.text)

    assert reached == ["Choose images", "Clear the list", "Use another model"]
