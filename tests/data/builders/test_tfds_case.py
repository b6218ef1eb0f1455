"""TFDS's own test of a builder, on fake copies of the published files."""

import tempfile
from pathlib import Path
from unittest import mock

import pytest

tfds = pytest.importorskip("tensorflow_datasets")

from encnet_jax.data.builders import (  # noqa: E402
    ade20k,
    cityscapes,
    coco_stuff,
    pascal_context,
    voc2012,
)
from encnet_jax.data.builders.segmentation import find_pairs  # noqa: E402
from tests.data.builders import (  # noqa: E402
    test_ade20k,
    test_cityscapes,
    test_coco_stuff,
    test_pascal_context,
    test_voc2012,
)
from tests.data.builders.archives import unpack  # noqa: E402


def any_count(images, labels, count, **ends):
    return find_pairs(images, labels, None, **ends)


class Case(tfds.testing.DatasetBuilderTestCase):
    """What TFDS asks of a builder; `files` are those that people have unpacked."""

    module = None  # with `find_pairs`, where the number of files is checked

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.EXAMPLE_DIR = cls.folder.name
        unpack(Path(cls.EXAMPLE_DIR), cls.files())
        if cls.module is not None:
            patched = mock.patch.object(cls.module, "find_pairs", any_count)
            patched.start()
            cls.addClassCleanup(patched.stop)
        cls.addClassCleanup(cls.folder.cleanup)
        super().setUpClass()


class Ade20kTest(Case):
    DATASET_CLASS = ade20k.Ade20k
    SPLITS = test_ade20k.COUNTS
    module = ade20k
    files = staticmethod(test_ade20k.files)


class CityscapesTest(Case):
    DATASET_CLASS = cityscapes.Cityscapes
    SPLITS = {split: len(test_cityscapes.NAMES[split]) for split in ("train", "val")}
    module = cityscapes

    @staticmethod
    def files():
        return test_cityscapes.image_files() | test_cityscapes.label_files()


class CocoStuffTest(Case):
    DATASET_CLASS = coco_stuff.CocoStuff
    BUILDER_CONFIG_NAMES_TO_TEST = ["stuff"]
    SPLITS = test_coco_stuff.COUNTS
    module = coco_stuff
    files = staticmethod(test_coco_stuff.unpacked_files)


class PascalContextTest(Case):
    DATASET_CLASS = pascal_context.PascalContext
    SPLITS = {split: len(names) for split, names in test_pascal_context.LISTS.items()}

    @staticmethod
    def files():
        return test_pascal_context.image_files() | test_pascal_context.label_files()


class Voc2012Test(Case):
    DATASET_CLASS = voc2012.Voc2012
    BUILDER_CONFIG_NAMES_TO_TEST = ["voc"]
    SPLITS = {split: len(names) for split, names in test_voc2012.LISTS.items()}
    OVERLAPPING_SPLITS = ["trainval"]
    files = staticmethod(test_voc2012.voc_files)


del Case, tfds  # the base itself is no test
