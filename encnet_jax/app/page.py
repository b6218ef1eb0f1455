"""The web page, and the server that shows it on this machine."""

import contextlib
import os
import signal
import socket
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from encnet_jax.app.analysis import MAX_BYTES, Analysis, Analyzer
from encnet_jax.errors import UserError

if TYPE_CHECKING:
    import gradio

_KEPT_DOWNLOADS = 20  # label files
_OPACITY = 0.55
# Read when gradio is imported or starts. Nothing is reported to anyone.
_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def serve(analyzer: Analyzer, title: str, host: str, port: int) -> None:
    """Shows the page until the process is interrupted or terminated.

    Args:
        analyzer: Analyzes the images.
        title: Title of the page.
        host: Address to listen on.
        port: Its port; 0 is a free one.

    Raises:
        UserError: The address cannot be listened on.
    """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with running(analyzer, title, host, port) as address:
        print(f"{title}: {address} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            stop.wait()


@contextlib.contextmanager
def running(analyzer: Analyzer, title: str, host: str, port: int) -> Iterator[str]:
    """Shows the page while the block runs; arguments and errors as of `serve`.

    Yields:
        The address of the page.
    """
    import httpx  # of Gradio

    os.environ.update(_ENVIRONMENT)
    host = host.removeprefix("[").removesuffix("]")  # of an IPv6 address
    port = listenable_port(host, port)
    _bypass_proxies(host)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="encnet-app-"))
        os.environ["GRADIO_TEMP_DIR"] = folder
        stack.callback(os.environ.pop, "GRADIO_TEMP_DIR", None)
        page = build_page(analyzer, title, Path(folder))
        try:
            _, address, _ = page.launch(
                server_name=f"[{host}]" if ":" in host else host,
                server_port=port,
                max_file_size=MAX_BYTES,
                theme=_theme(),
                footer_links=[],
                share=False,
                ssr_mode=False,
                run_history=False,
                mcp_server=False,
                enable_monitoring=False,
                inbrowser=False,
                quiet=True,
                prevent_thread_lock=True,
            )
        except (OSError, httpx.HTTPError) as error:  # Gradio asks its own page
            raise _no_listening(host, port, error) from error
        stack.callback(page.close, verbose=False)
        yield address


def build_page(analyzer: Analyzer, title: str, folder: Path) -> "gradio.Blocks":
    """Returns the page.

    Args:
        analyzer: Analyzes the images.
        title: Title of the page.
        folder: Where files to download are kept.
    """
    import gradio as gr

    actions = _Actions(analyzer, folder)
    with gr.Blocks(
        title=title, analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        state = gr.State(time_to_live=3600)
        limits = analyzer.limits
        gr.Markdown(f"# {title}\nImages of up to {limits}. They stay on this machine.")
        with gr.Row():
            image = gr.Image(
                label="Image",
                type="filepath",
                image_mode=None,
                sources=["upload", "webcam", "clipboard"],
                buttons=[],
                elem_id="image",
            )
            # Gradio opens the file here: of one that is no image it shows no message.
            image.preprocess = lambda payload: payload and payload.path
            with gr.Column():
                drawn = gr.Image(
                    label="Prediction", format="png", buttons=[], elem_id="overlay"
                )
                slider = gr.Slider(
                    0, 1, _OPACITY, step=0.05, label="Opacity", elem_id="opacity"
                )
                download = gr.DownloadButton(
                    "Download labels (PNG)", interactive=False, elem_id="download"
                )
        presence = gr.Label(
            label="Presence: the probability that a class occurs in the image",
            num_top_classes=10,
            show_heading=False,
            visible=analyzer.explainer is not None,
            elem_id="presence",
        )
        codewords = gr.Gallery(
            label="Codewords by their share of the image",
            columns=3,
            format="png",
            buttons=[],
            visible=analyzer.explainer is not None,
            elem_id="codewords",
        )
        gr.Markdown(
            "Maps of codewords: how much of each pixel they take, from nothing "
            "(violet) to the most that they take of any (yellow).",
            visible=analyzer.explainer is not None,
        )
        outputs = [state, drawn, presence, codewords, download]
        image.change(
            actions.analyze, [image, slider], outputs, api_visibility="private"
        )
        slider.change(
            actions.redraw, [state, slider], drawn, show_progress="hidden",
            trigger_mode="always_last", api_visibility="private",
        )  # fmt: skip
    return page


class _Actions:
    """What the page does when an image or the slider changes."""

    def __init__(self, analyzer: Analyzer, folder: Path):
        self._analyzer = analyzer
        self._folder = folder
        self._downloads: deque[Path] = deque()

    def analyze(self, path: str | None, opacity: float) -> list[Any]:
        """Returns the outputs of the page for an upload, or for none."""
        import gradio as gr

        if path is None:
            return [None, None, None, None, gr.DownloadButton(interactive=False)]
        try:
            analysis = self._analyzer(path)
        except UserError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        file = _save_download(analysis, self._folder, self._downloads)
        return [
            analysis,
            self._analyzer.overlay(analysis, opacity),
            analysis.presence,
            analysis.codewords,
            gr.DownloadButton(value=file, interactive=True),
        ]

    def redraw(self, analysis: Analysis | None, opacity: float) -> Image.Image | None:
        """Returns the overlay for another opacity; the network does not run."""
        return analysis and self._analyzer.overlay(analysis, opacity)


def _save_download(analysis: Analysis, folder: Path, downloads: deque[Path]) -> str:
    """Writes the label file; removes that of an image long ago."""
    parent = folder / uuid.uuid4().hex
    parent.mkdir()
    file = parent / "labels.png"
    file.write_bytes(analysis.label_png)
    downloads.append(file)
    if len(downloads) > _KEPT_DOWNLOADS:
        oldest = downloads.popleft()
        oldest.unlink(missing_ok=True)
        oldest.parent.rmdir()
    return str(file)


def _bypass_proxies(host: str) -> None:
    """Has Gradio reach its own page on this machine, where proxies are set."""
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name for name in others.split(",") if name]
    names += {"localhost", "127.0.0.1", "::1", host} - {*names}
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(names)


def _theme() -> Any:
    """Returns a theme with fonts of the system: none is fetched."""
    import gradio as gr

    fonts = ["system-ui", "sans-serif"]
    return gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])


def listenable_port(host: str, port: int) -> int:
    """Returns the port, a free one for 0; raises `UserError` unless it can be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as tried:
            # As the server does: a port is free as soon as its last server has ended.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
            return tried.getsockname()[1]
    except (OSError, UnicodeError) as error:
        raise _no_listening(host, port, error) from error


def _no_listening(host: str, port: int, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error).split(". ")[0]
    return UserError(f"--host={host} --port={port}: cannot be listened on: {reason}")
