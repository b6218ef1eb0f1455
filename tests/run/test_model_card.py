"""Cards of models of bands: they name files that the model takes."""

import re

import jax
import numpy as np
import pytest

from encnet_jax.data.dataset_info import DatasetInfo, voc_colormap
from encnet_jax.export.readme import export_readme
from encnet_jax.export.run import export_workdir
from tests.small_workdir import TINY, write_workdir

BANDS = dict(mean=(0.5,) * 5, std=(0.3,) * 5, value_range=((0, 4095),) * 5)
INFO = DatasetInfo("mine", ("road", "car"), voc_colormap(2), {}, **BANDS)


def test_code_of_a_card_of_bands_runs_on_a_tiff(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    (tmp_path / "run").mkdir()
    data = dict(base_size=0, channels=5)
    write_workdir(tmp_path / "run", info=INFO, data=data, **TINY)
    export_workdir(tmp_path / "run", tmp_path / "model", "pretrained")
    monkeypatch.chdir(tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text()
    assert ".jpg" not in text and "--output=predictions IMAGE.tif\n" in text
    assert "TIFF files its extra `tiff`, a download" in text
    assert 'segmenter("image.tif")  # of 5 channels, or an array (h, w, 5)' in text
    assert "Images have 5 channels; values of 0 to 4095 are mapped" in text
    image = np.random.default_rng(0).integers(0, 4096, (24, 32, 5), np.uint16)
    tifffile.imwrite("image.tif", image, photometric="minisblack")
    (code,) = re.findall("```python\n(.*?)```", text, re.S)
    scope = {}
    exec(code, scope)
    assert scope["result"].labels.shape == (24, 32)


def test_readme_of_an_export_tells_the_channels():
    text = export_readme(
        *("t", INFO, jax.ShapeDtypeStruct((1, 33, 40, 5), np.float32), {}),
        **dict(network="encnet", training={}, smallest=9, base_size=0),
        **dict(file_format="onnx", checked=""),
    )
    row = "| float32 (1, 33, 40, 5) | 5 channels with the values that a .tif holds |"
    assert row in text
    assert "np.zeros((1, 33, 40, 5), np.float32)  # 5 channels with the values" in text
