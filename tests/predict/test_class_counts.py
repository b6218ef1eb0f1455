"""Predictors whose data set has another number of classes than their model."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from encnet_jax import Classifier, Segmenter, UserError
from encnet_jax.data.dataset_info import DatasetInfo, voc_colormap
from encnet_jax.inference.tta import PyTorchEncodingProtocol
from encnet_jax.models import create_model
from encnet_jax.models.cifar import ClassifierOutput
from encnet_jax.models.heads import ClassifierHead
from encnet_jax.models.segmentation import SegmentationOutput

INFO = DatasetInfo("mine", tuple("abc"), voc_colormap(3), {})
TINY = dict(backbone="tiny", stem="plain", width=4, head_channels=8)
WINDOWS = PyTorchEncodingProtocol(
    base_size=16, crop_size=8, scales=(1.0,), flip=False, stride=8,
    align_corners=True, mean=INFO.mean, std=INFO.std,
)  # fmt: skip
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


class Foreign(nnx.Module):
    """A network of no layer of this package: each pixel times a matrix."""

    align_corners = True

    def __init__(self, classes):
        self.kernel = nnx.Param(jnp.eye(3, classes))

    def forward_low_res(self, images):
        return SegmentationOutput(images @ self.kernel[...])


class ForeignClassifier(Foreign):
    """Likewise, of the mean over the image."""

    def __call__(self, images):
        return ClassifierOutput(images.mean((1, 2)) @ self.kernel[...])


def abstract(name, classes, **settings):
    """Returns a network without its arrays."""
    return nnx.eval_shape(lambda: create_model(name, num_classes=classes, **settings))


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", ["encnet", "fcn", "pspnet", "deeplabv3"])
def test_segmenters_are_not_created_with_other_classes(name, classes):
    message = f"info.num_classes=3: must be {classes}, that of the model"
    with pytest.raises(UserError, match=message):
        Segmenter(abstract(name, classes, **TINY), INFO)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", ["resnet14", "se_resnet14", "encnet14"])
def test_classifiers_are_not_created_with_other_classes(name, classes):
    message = f"info.num_classes=3: must be {classes}, that of the model"
    with pytest.raises(UserError, match=message):
        Classifier(abstract(name, classes, width=16), INFO, 32)


def test_classes_are_those_of_a_classifier_that_was_replaced():
    model = create_model("fcn", num_classes=5, **TINY)
    channels = model.head.classifier.conv.kernel.shape[-2]
    model.head.classifier = ClassifierHead(channels, 3, dropout=0.1, rngs=nnx.Rngs(0))
    Segmenter(model, INFO)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("protocol", [None, WINDOWS])
def test_foreign_segmenters_are_refused_when_called(protocol, classes):
    assert Segmenter(Foreign(3), INFO, protocol=protocol)(PIXELS).labels.max() < 3
    segmenter = Segmenter(Foreign(classes), INFO, protocol=protocol)
    for _ in range(2):
        with pytest.raises(UserError, match=f"num_classes=3: must be {classes}, that"):
            segmenter(PIXELS)


@pytest.mark.parametrize("classes", [2, 4])
def test_foreign_classifiers_are_refused_when_called(classes):
    found = Classifier(ForeignClassifier(3), INFO, 8)(PIXELS)
    assert found.probabilities.shape == (3,)
    classifier = Classifier(ForeignClassifier(classes), INFO, 8)
    for _ in range(2):
        with pytest.raises(UserError, match=f"num_classes=3: must be {classes}, that"):
            classifier(PIXELS)


@pytest.mark.parametrize("classes", [256, 300])
@pytest.mark.parametrize("protocol", [None, WINDOWS])
def test_segmenters_of_more_classes_than_labels_are_refused(protocol, classes):
    info = DatasetInfo("mine", ("x",) * classes, voc_colormap(classes), {})
    with pytest.raises(UserError, match=f"{classes}: allowed are up to 255, as label"):
        Segmenter(Foreign(classes), info, protocol=protocol)
    found = Classifier(ForeignClassifier(classes), info, 8)(PIXELS)
    assert found.probabilities.shape == (classes,)


@pytest.mark.parametrize("protocol", [None, WINDOWS])
def test_the_last_of_255_classes_is_found(protocol):
    info = DatasetInfo("mine", ("x",) * 255, voc_colormap(255), {})
    model = Foreign(255)
    model.kernel.set_value(jnp.zeros((3, 255)).at[0, -1].set(9))
    pixels = np.full_like(PIXELS, 255)
    assert (Segmenter(model, info, protocol=protocol)(pixels).labels == 254).all()
