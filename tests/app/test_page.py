"""The web page in a browser: an image in, overlay, bars, maps, and a download out."""

import importlib.util
import os
import shutil
import socket
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encnet_jax import Segmenter
from encnet_jax.data.registry import open_dataset
from encnet_jax.visualize.overlay import label_image
from tests.commands import ROOT, command, environment, errors, run

# Not imported: it leaves sockets open, which warn.
if importlib.util.find_spec("gradio") is None:
    pytest.skip("needs gradio", allow_module_level=True)
MODEL = ROOT / "tests" / "fixtures" / "scenes_encnet"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def address(tmp_path):
    """The address of a running page; checks that it leaves nothing behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "tmp").mkdir()
    (tmp_path / "cwd").mkdir()
    server = subprocess.Popen(
        command("-m", "encnet_jax", "app", f"--workdir={MODEL}", f"--port={port}"),
        cwd=tmp_path / "cwd",
        env={**environment(), "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        try:
            line = server.stdout.readline()
            assert line == f"encnet: http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
            names = [path.name for path in (tmp_path / "tmp").iterdir()]
            assert any(name.startswith("encnet-app-") for name in names)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
    assert server.returncode == 0
    assert not [*(tmp_path / "tmp").iterdir()] and not [*(tmp_path / "cwd").iterdir()]


@pytest.mark.slow
def test_page_is_served_and_its_port_is_taken(address):
    html = urllib.request.urlopen(address).read().decode()
    assert '"title":"encnet"' in html
    port = address.rpartition(":")[2]
    second = run("-m", "encnet_jax", "app", f"--workdir={MODEL}", f"--port={port}")
    assert second.returncode == 2
    (message,) = errors(second)
    assert f"--host=127.0.0.1 --port={port}: cannot be listened on" in message


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]"])
def test_page_is_reached_past_proxies_and_at_any_kind_of_address(host):
    flags = [f"--workdir={MODEL}", "--port=0", f"--host={host}"]
    server = subprocess.Popen(
        command("-m", "encnet_jax", "app", *flags),
        env={**environment(), "http_proxy": "http://127.0.0.1:9", "no_proxy": "x.org"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        line = server.stdout.readline()
        server.terminate()
    shown = "[::1]" if ":" in host else host
    assert line.startswith(f"encnet: http://{shown}:")
    assert server.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_page_in_a_browser(address, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    photo = tmp_path / "photo.png"
    Image.fromarray(open_dataset("scenes", "validation", in_memory=True)[0].image).save(
        photo
    )
    segmenter = Segmenter.from_pretrained(MODEL)
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        visit(browser, address, photo, segmenter, tmp_path)
        browser.close()


def visit(browser, address, photo, segmenter, folder):
    tab = browser.new_page(viewport={"width": 1180, "height": 1000})
    requested = []
    tab.on("request", lambda request: requested.append(request.url))
    tab.goto(address)
    tab.locator("#image input[type=file]").set_input_files(photo)
    overlay = tab.locator("#overlay img")
    overlay.wait_for(timeout=120_000)
    before = overlay.get_attribute("src")
    expected = segmenter(photo)
    likely = expected.class_names[expected.presence.argmax()]
    assert likely in tab.locator("#presence").inner_text()
    tab.locator("#codewords img").first.wait_for()
    assert tab.locator("#codewords img").count() >= 2

    with tab.expect_download() as download:
        tab.locator("#download").click()
    download.value.save_as(folder / "labels.png")
    assert download.value.suggested_filename == "labels.png"
    with Image.open(folder / "labels.png") as labels:
        stored = label_image(expected.labels, segmenter.info)
        np.testing.assert_array_equal(np.asarray(labels), np.asarray(stored))

    if "ENCNET_SCREENSHOT" in os.environ:
        tab.screenshot(path=os.environ["ENCNET_SCREENSHOT"], full_page=True)
    tab.locator("#opacity input[type=number]").fill("0.1")
    tab.locator("#opacity input[type=number]").press("Enter")
    sync = f"document.querySelector('#overlay img').src !== {before!r}"
    tab.wait_for_function(sync)

    broken = Path(folder / "broken.png")
    for content in (photo.read_bytes()[: photo.stat().st_size // 2], b"text"):
        broken.write_bytes(content)
        tab.reload()
        tab.locator("#image input[type=file]").set_input_files(broken)
        tab.get_by_text("cannot be decoded as an image").wait_for()
    outside = [
        url for url in requested if not url.startswith((address, "data:", "blob:"))
    ]
    assert not outside
