"""Models saved and loaded again predict as before; their cards describe and run."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from flax import nnx
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.numpy import save_file
from torch_networks import small_weights

from encnet_jax import Classifier, Segmenter, UserError, create_model
from encnet_jax.config import default
from encnet_jax.data.dataset_info import CAMVID, DatasetInfo, voc_colormap
from encnet_jax.evaluate.scores import save_scores
from encnet_jax.evaluate.settings import (
    protocol_from_config,
    set_protocol,
    whole_image_size,
)
from encnet_jax.export.run import export_workdir
from encnet_jax.inference.tta import MmsegProtocol, PyTorchEncodingProtocol
from encnet_jax.run import folder_config
from encnet_jax.run.model_card import folder_card, is_card
from encnet_jax.run.training_record import training_record
from encnet_jax.run.workdir import load_workdir
from tests.random_module import random_module
from tests.small_workdir import TINY, write_workdir

INFO = DatasetInfo(
    "mine | 😀",
    ("road", "car | truck", "sky"),
    ((1, 2, 3), (250, 0, 9), (0, 0, 0)),
    {},
    label_map={4: 0, 7: 1, 9: 2, 200: 255},
    label_colors={(9, 9, 9): 4, (1, 1, 1): 7, (3, 2, 1): 9},
    mean=(0.4, 0.5, 0.6),
    std=(0.3, 0.2, 0.25),
    value_range=(-2.5, 3),
)
PROTOCOLS = {
    "whole": dict(data=dict(base_size=40)),
    "aligned": dict(
        data=dict(base_size=70), evaluation=dict(base_size=33, align_corners=True)
    ),
    "slide": dict(data=dict(base_size=40, crop_size=24), evaluation=dict(mode="slide")),
    "scales": dict(
        data=dict(base_size=40),
        evaluation=dict(scales=(0.75, 1.25), flip=True, crop_size=24, stride=20),
    ),
    "mmseg": dict(
        evaluation=dict(protocol="mmseg", base_size=50, short_size=36, flip=True)
    ),
    "mmseg-slide": dict(
        data=dict(crop_size=24), evaluation=dict(protocol="mmseg", mode="slide")
    ),
}


def image_of(height=36, width=48):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def check_same(found, expected):
    """Checks that two segmenters predict the same, bit for bit."""
    assert found.info == expected.info
    there, here = expected(image_of()), found(image_of())
    np.testing.assert_array_equal(here.labels, there.labels)
    np.testing.assert_array_equal(here.presence, there.presence)
    np.testing.assert_array_equal(here.probabilities, there.probabilities)
    assert np.ptp(here.probabilities[..., 0]) > 1e-3


@pytest.mark.parametrize("name", PROTOCOLS)
def test_settings_of_prediction_return_as_they_were(name):
    config = default()
    for group, values in PROTOCOLS[name].items():
        config[group].update(values)
    model = SimpleNamespace(align_corners=True)

    def of(config):
        protocol = protocol_from_config(config, model, INFO)
        whole = whole_image_size(config), config.evaluation.align_corners
        return (protocol, *whole) if protocol is None else protocol

    def stored(config):
        return folder_config.to_json(config, INFO, {})

    path = Path("config.json")
    found = folder_config.from_json(stored(config), path)
    assert of(found.config) == of(config)
    assert stored(found.config) == stored(config)
    # As saved from a segmenter, which knows no configuration.
    other = default()
    protocol = protocol_from_config(config, model, INFO)
    corners = config.evaluation.align_corners
    set_protocol(other, whole_image_size(config), corners, protocol)
    assert stored(other)["prediction"] == stored(config)["prediction"]


@pytest.mark.parametrize("name", ["whole", "slide"])
def test_segmenter_of_a_workdir_returns_as_it_was(tmp_path, name):
    write_workdir(tmp_path / "run", info=INFO, **PROTOCOLS[name], **TINY)
    expected = Segmenter.from_workdir(tmp_path / "run")
    expected.save_pretrained(tmp_path / "a")
    found = Segmenter.from_pretrained(str(tmp_path / "a"))
    assert found.protocol == expected.protocol
    check_same(found, expected)
    # Saved again, and by the command.
    found.save_pretrained(tmp_path / "b")
    export_workdir(tmp_path / "run", tmp_path / "c", "pretrained")
    for other in "bc":
        for file in (tmp_path / "a").iterdir():
            assert (tmp_path / other / file.name).read_bytes() == file.read_bytes()


def test_classifier_returns_as_it_was(tmp_path):
    info = dataclasses.replace(INFO, task="classification")
    data = dict(crop_size=24)
    write_workdir(tmp_path / "run", info=info, data=data, name="resnet14", width=2)
    expected = Classifier.from_workdir(tmp_path / "run")
    expected.save_pretrained(tmp_path / "a")
    found = Classifier.from_pretrained(tmp_path / "a")
    assert found.info == info and found.size == 24
    here, there = found(image_of()), expected(image_of())
    np.testing.assert_array_equal(here.probabilities, there.probabilities)
    for load in (Segmenter.from_pretrained, Segmenter.from_workdir):
        with pytest.raises(UserError, match="classification, not segmentation"):
            load(tmp_path / "a")
    scope = run_card(tmp_path / "a")
    assert scope["result"].label == here.label


def test_imported_weights_return_as_they_were(tmp_path):
    weights = small_weights("mmseg_encnet_r50_d8")
    path = tmp_path / "encnet.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, path)
    for size in (33, 0):  # 0: images keep their size
        expected = Segmenter.from_torch(path, base_size=size, align_corners=True)
        expected.save_pretrained(tmp_path / "a")
        found = Segmenter.from_pretrained(tmp_path / "a")
        assert found.base_size == size and found.align_corners
        check_same(found, expected)


def test_model_built_by_hand_needs_its_settings(tmp_path):
    model = random_module(create_model, name="encnet", num_classes=3, **TINY)
    with pytest.raises(UserError, match="pass Segmenter.*settings=.*create_model"):
        Segmenter(model, INFO).save_pretrained(tmp_path / "a")
    segmenter = Segmenter(model, INFO, 40, settings=dict(name="encnet", **TINY))
    segmenter.save_pretrained(tmp_path / "a")
    check_same(Segmenter.from_pretrained(tmp_path / "a"), segmenter)
    other = MmsegProtocol(40, 24, (1.0,), False, 0, False, (0, 0, 0), (1, 1, 1))
    wrong = Segmenter(model, INFO, protocol=other, settings=dict(name="encnet", **TINY))
    with pytest.raises(UserError, match="protocol=.*mean and std must be those"):
        wrong.save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        (dict(align_corners=False), "align_corners is False, by the settings True"),
        (dict(gate="plain"), "head.context.residual is False, by the settings True"),
        (dict(code_reduction="sum"), "code_reduction is 'sum', by the settings 'mean'"),
        (dict(pad_to_stride=True), "size_divisor is 8, by the settings 1"),
        (dict(output_stride=16), "stride is 2, by the settings 1"),
    ],
)
def test_settings_of_another_prediction_are_refused(tmp_path, setting, found):
    """The arrays of both networks have the same shapes."""
    small = dict(name="encnet", **TINY)
    model = random_module(create_model, num_classes=3, **small, **setting)
    other = Segmenter(model, INFO, 40, settings=small)
    with pytest.raises(UserError, match=f"not that of its settings: .*{found}"):
        other.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    # How it is computed is not what it predicts, nor which layer computes it.
    computed = dict(conv_impl="winograd", remat=(3,), dropout=0.5)
    model = random_module(create_model, num_classes=3, **small, **computed)
    conv = model.head.classifier.conv
    channels = conv.kernel.shape[2]
    model.head.classifier.conv = nnx.Conv(channels, 3, (1, 1), rngs=nnx.Rngs(0))
    Segmenter(model, INFO, 40, settings=small).save_pretrained(tmp_path / "a")


@pytest.mark.parametrize("scale_drop", [False, True])
def test_range_of_random_scales_is_a_setting_of_the_prediction(tmp_path, scale_drop):
    """Other scales are arrays, whatever they start with."""
    small = dict(name="encnet14", width=8, num_codes=4, scale_drop=scale_drop)
    model = random_module(create_model, num_classes=3, **small, scale_init="scaled")
    info = dataclasses.replace(INFO, task="classification")
    classifier = Classifier(model, info, 32, settings=small)
    if not scale_drop:
        classifier.save_pretrained(tmp_path / "a")
        return
    with pytest.raises(UserError, match="min_scale is -0.*, by the settings -1.0"):
        classifier.save_pretrained(tmp_path / "a")


@pytest.fixture(scope="module")
def camvid_folder(tmp_path_factory):
    """Returns the model folder of a run with scores."""
    root = tmp_path_factory.mktemp("camvid")
    workdir = root / "run: 1"
    write_workdir(workdir, info=CAMVID, data=dict(base_size=40), **TINY)
    results = dict(mean_iou=0.5, pixel_accuracy=0.75, per_class_iou=np.array([np.nan]))
    for name, step, scales in (("val", 3, ()), ("test", 7, ()), ("test-ms", 7, (1, 2))):
        save_scores(
            results,
            workdir / "evaluation" / f"{name}.json",
            split=name.removesuffix("-ms"),
            step=step,
            evaluation=dict(scales=scales, flip=bool(scales)),
            differs_from_training={},
        )
    (workdir / "evaluation" / "notes.json").write_text("[]")
    export_workdir(workdir, root / "model", "pretrained")
    return root / "model"


def run_card(folder):
    """Runs the code of a card in its folder; returns its variables."""
    (code,) = re.findall(
        "```python\n(.*?)```", (folder / "README.md").read_text(), re.S
    )
    scope = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Image.fromarray(image_of()).save(folder / "photo.jpg")
        exec(code, scope)
    return scope


def test_card_has_the_metadata_of_the_hub(camvid_folder):
    card = ModelCard.load(camvid_folder / "README.md")
    data = card.data
    assert data.license == "unknown" and data.library_name == "encnet_jax"
    assert data.pipeline_tag == "image-segmentation" and data.datasets == ["camvid"]
    assert {"encnet", "semantic-segmentation"} <= {*data.tags}
    assert data.metrics == ["mean_iou", "pixel_accuracy"]
    assert data.model_name == "run: 1"
    results = [
        (r.dataset_type, r.dataset_split, r.metric_type, r.metric_name, r.metric_value)
        for r in data.eval_results
    ]
    assert results == [
        ("camvid", "test", metric, f"{name} ({kind})", value)
        for kind in ("2 scales, windows, mirrored", "single scale")
        for metric, name, value in (
            ("mean_iou", "mean IoU", 0.5),
            ("pixel_accuracy", "pixel accuracy", 0.75),
        )
    ]


def test_card_describes_the_model_and_its_code_runs(camvid_folder):
    text = (camvid_folder / "README.md").read_text()
    for part in (
        "# encnet (tiny), 11 classes, step 7 of run: 1",
        "encnet predict --workdir=. --output=predictions PHOTO.jpg",
        "| camvid | test | single scale | 50.00 | 75.00 |",
        "Trained for 7 of 9 steps of 16 images of 480 pixels, learning rate 0.01, sgd",
        "resized to a long side of 40 pixels",
        "License: Research use only.",
        "| 4 | Pavement | #3c28de |",
        "@inproceedings{zhang2018context",
    ):
        assert part in text, part
    scope = run_card(camvid_folder)
    assert scope["result"].labels.shape == (36, 48)
    assert (camvid_folder / "overlay.png").stat().st_size


def test_card_tells_how_images_are_resized_and_scored(tmp_path):
    settings = dict(protocol="mmseg", mode="slide", base_size=80, short_size=20)
    settings |= dict(crop_size=24, scales=(0.5, 1.75), flip=True)
    workdir = tmp_path / "run"
    write_workdir(workdir, info=INFO, evaluation=settings, **TINY)
    other = {"value": 40, "training": 80}
    save_scores(
        dict(mean_iou=0.5),
        workdir / "evaluation" / "val.json",
        split="val",
        step=7,
        data="elsewhere",
        evaluation=dict(mode="slide"),
        differs_from_training={"evaluation.base_size": other},
    )
    export_workdir(workdir, tmp_path / "model", "pretrained")
    text = (tmp_path / "model" / "README.md").read_text()
    assert (
        "resized to a long side of 80 pixels and a short side of 20 pixels, or less to "
        "keep the other bound (times 0.5, 1.75) and cut into windows of 24 pixels. "
        "Their mirror images are predicted as well.\n"
    ) in text
    row = "| elsewhere | val | single scale, windows, evaluation.base_size=40 | 50.00 |"
    assert row in text


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((80, 0), "resized to a long side of 80 pixels (times 0.5, 1)."),
        ((0, 0), "resized by 0.5, 1."),
    ],
)
def test_card_names_scales_of_whole_images(tmp_path, bounds, expected):
    settings = dict(protocol="mmseg", scales=(0.5, 1))
    settings |= dict(zip(("base_size", "short_size"), bounds))
    write_workdir(tmp_path / "run", info=INFO, evaluation=settings, **TINY)
    export_workdir(tmp_path / "run", tmp_path / "model", "pretrained")
    text = (tmp_path / "model" / "README.md").read_text()
    assert f"Before that they are {expected}\n" in text


@pytest.mark.parametrize(
    ("settings", "windows"),
    [
        (dict(evaluation=dict(crop_size=96, stride=48)), (96, 48)),
        (dict(data=dict(crop_size=72)), (72, 0)),
    ],
)
def test_windows_of_slides_return_as_they_were(tmp_path, settings, windows):
    write_workdir(tmp_path / "run", info=INFO, **settings, **TINY)
    expected = Segmenter.from_workdir(tmp_path / "run")
    slides = expected.slide_protocol
    assert (slides.crop_size, slides.stride) == windows
    export_workdir(tmp_path / "run", tmp_path / "exported", "pretrained")
    expected.save_pretrained(tmp_path / "saved")
    for name in ("exported", "saved"):
        found = Segmenter.from_pretrained(tmp_path / name)
        assert found.slide_protocol == slides
        assert found.protocol is expected.protocol is None


def test_bibtex_is_that_of_the_readme(camvid_folder):
    from tests.commands import ROOT

    entries = [
        re.search("```bibtex\n(.*?)```", (path / "README.md").read_text(), re.S)[1]
        for path in (ROOT, camvid_folder)
    ]
    assert entries[0] == entries[1]


def test_names_of_any_characters_keep_the_card_valid(tmp_path):
    weights = dict(weights="/home/me/secret/resnet.pth")  # paths stay here
    write_workdir(tmp_path / 'a "b": #1 é 😀', info=INFO, **weights, **TINY)
    (run,) = tmp_path.iterdir()
    save_scores(
        dict(mean_iou=0.25),
        run / "evaluation" / "test.json",
        split="no",
        step=7,
        evaluation={},
    )
    segmenter = Segmenter.from_workdir(run)
    segmenter.save_pretrained(tmp_path / "out", license="cc-by-4.0")
    text = (tmp_path / "out" / "README.md").read_text()
    data = yaml.safe_load(text.split("---\n")[1])
    assert data["license"] == "cc-by-4.0" and "datasets" not in data
    (entry,) = data["model-index"]
    assert entry["name"] == run.name
    assert entry["results"][0]["dataset"]["name"] == INFO.name
    assert entry["results"][0]["dataset"]["split"] == "no"
    assert r"| 1 | car \| truck | #fa0009 | 7 |" in text
    assert "learning rate 0.01, sgd, from pretrained weights." in text
    text += (tmp_path / "out" / "config.json").read_text()
    assert "secret" not in text and str(tmp_path) not in text


def test_hostile_names_stay_in_their_place_in_the_card():
    names = ("a\nb", "<b>*x*</b>", "\x85\u2028\ud800|", "__a_b_ $&lt; & ~c~")
    info = dataclasses.replace(
        INFO, name="mine", class_names=names, colors=voc_colormap(4)
    )
    score = dict(dataset="a|b", split="\x7f\ud800", evaluation="e", mean_iou=0.5)
    training = dict(run="r\n# Title\x85", step=1, scores=[score])
    model, prediction = dict(name="encnet", backbone="tiny"), dict(mode="whole")
    config = dict(model=model, prediction=prediction, training=training)
    text = folder_card(config, info, "mit", "")
    assert is_card(text.encode())
    assert "# encnet (tiny), 4 classes, step 1 of r # Title\n" in text
    for row in (
        "| 0 | a b |",
        r"| 1 | \<b>\*x\*\</b> |",
        r"| 3 | \_\_a_b\_ \$\&lt; & \~c\~ |",
        "| 2 | \ufffd\\| |",
        r"| a\|b | \ufffd | e | 50.00 |".replace(r"\ufffd", "\ufffd"),
    ):
        assert row in text, row
    (entry,) = yaml.safe_load(text.split("---\n")[1])["model-index"]
    assert entry["name"] == training["run"]
    assert entry["results"][0]["dataset"]["split"] == "\x7f\ufffd"


def test_sizes_of_numpy_are_stored(tmp_path):
    model = random_module(create_model, name="encnet", num_classes=3, **TINY)
    settings = dict(name="encnet", **TINY)
    sizes = dict(base_size=np.int64(40), align_corners=np.bool_(True))
    Segmenter(model, INFO, **sizes, settings=settings).save_pretrained(tmp_path / "a")
    found = Segmenter.from_pretrained(tmp_path / "a")
    assert (found.base_size, found.align_corners) == (40, True)
    protocol = PyTorchEncodingProtocol(
        *(40.0, 24, (1.0,), False, 0), True, mean=INFO.mean, std=INFO.std
    )
    other = Segmenter(model, INFO, protocol=protocol, settings=settings)
    with pytest.raises(UserError, match="a size is of another type: .*40.0"):
        other.save_pretrained(tmp_path / "b")
    with pytest.raises(UserError, match="hf://me/model: must be a folder"):
        other.save_pretrained("hf://me/model")


@pytest.mark.parametrize("license", ["", "Apache 2.0", "a\nb: c", None])
def test_license_must_be_an_identifier(camvid_folder, tmp_path, license):
    segmenter = Segmenter.from_pretrained(camvid_folder)
    with pytest.raises(UserError, match="license=.*apache-2.0"):
        segmenter.save_pretrained(tmp_path / "a", license=license)


def test_score_during_training_is_used_without_an_evaluation(tmp_path):
    config = default()
    config.data.name = "camvid"
    scores = training_record(tmp_path, config, CAMVID, 7, 0.125)["scores"]
    entry = dict(dataset="camvid", split="val", evaluation="during training")
    assert scores == [entry | {"mean_iou": 0.125}]
    for unknown in (None, np.inf):
        assert "scores" not in training_record(tmp_path, config, CAMVID, 7, unknown)


OTHER_DATA = {"data.name": {"value": "mine", "training": "camvid"}}


@pytest.mark.parametrize(
    "name, other, repeated",
    [
        ("val", {}, True),
        ("val", {"data": "mine"}, False),
        ("val", {"data": None, "differs_from_training": OTHER_DATA}, False),
        ("test", {"split": "test"}, False),
        ("val", {"differs_from_training": {"evaluation.mode": {"value": "a"}}}, False),
        ("val-ms", {"differs_from_training": {"evaluation.scales": {}}}, False),
        ("val-ms", {"differs_from_training": None}, False),  # of an older version
    ],
)
def test_score_during_training_stays_beside_other_evaluations(
    tmp_path, name, other, repeated
):
    config = default()
    config.data.name = "camvid"
    stored = dict(step=7, split="val", data="camvid", differs_from_training={}) | other
    stored = {key: value for key, value in stored.items() if value is not None}
    save_scores(dict(mean_iou=0.25), tmp_path / f"evaluation/{name}.json", **stored)
    scores = training_record(tmp_path, config, CAMVID, 7, 0.125)["scores"]
    assert [score["mean_iou"] for score in scores] == [0.25, 0.125][: 2 - repeated]


def test_a_step_is_that_of_the_folder(camvid_folder):
    assert load_workdir(camvid_folder, "7").step == 7
    with pytest.raises(UserError, match="step=6: .* is a model folder, of step 7"):
        load_workdir(camvid_folder, "6")
