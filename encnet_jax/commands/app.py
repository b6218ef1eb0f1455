"""Serves a web page that segments images: encnet app --workdir=runs/NAME.

Drop an image on the page, or take one with the camera. It shows the labels over the
image with a slider for their opacity, the classes by presence, and maps of the
codewords, and has the labels to download as PNG. The page is for this machine only,
unless --host says otherwise: whoever reaches it can use it. Uploads are bounded, and
kept in a temporary folder until the command ends.
"""

from absl import flags

from encnet_jax import cli


def define_flags() -> None:
    """Defines the flags of the verb."""
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the run, a model folder, or hf://OWNER/REPO.",
        required=True,
    )
    flags.DEFINE_string("step", "best", "Checkpoint: best, latest or a step number.")
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
    flags.DEFINE_integer("port", 7860, "Port; 0 is a free one.", 0, 65535)


def main(arguments: list[str]) -> None:
    """Serves the page until it is interrupted."""
    from encnet_jax.errors import UserError, require_package
    from encnet_jax.predict.predictor import Segmenter
    from encnet_jax.run.workdir import load_run_info

    values = flags.FLAGS
    cli.reject_positional(arguments)
    require_package("gradio", "app", "encnet app")
    workdir = cli.run_folder(values.workdir)
    if load_run_info(workdir).task == "classification":
        raise UserError(f"{workdir}: classifies; encnet app takes a segmenter")
    segmenter = Segmenter.from_workdir(workdir, values.step)
    from encnet_jax.app.analysis import Analyzer
    from encnet_jax.app.page import serve

    serve(Analyzer(segmenter), "encnet", values.host, values.port)
