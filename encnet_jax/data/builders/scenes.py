"""TFDS builder of `scenes`, the synthetic data set that is drawn, not downloaded."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from encnet_jax.data import scenes

_SHAPE = (scenes.IMAGE_SIZE, scenes.IMAGE_SIZE)


@dataclasses.dataclass(eq=False)
class ScenesConfig(tfds.core.BuilderConfig):
    """Number of scenes to draw, and the seed.

    Attributes:
        seed: Determines an endless sequence of scenes, of which splits are slices.
        train: Number of training scenes.
        validation: Number of validation scenes.
        test: Number of test scenes.
    """

    seed: int = 0
    train: int = 4000
    validation: int = 400
    test: int = 400


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Images in which only the distant backdrop determines the object classes."""

    VERSION = tfds.core.Version("1.3.0")
    RELEASE_NOTES = {"1.3.0": "More objects."}
    BUILDER_CONFIGS = [ScenesConfig(name="default", description="4,800 scenes.")]

    def _info(self) -> tfds.core.DatasetInfo:
        """Returns the features: `image` and `label` as PNG, and `id`."""
        return self.dataset_info_from_configs(
            description=scenes.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(*_SHAPE, 3), encoding_format="png"
                    ),
                    "label": tfds.features.Image(
                        shape=(*_SHAPE, 1), encoding_format="png"
                    ),
                    "id": tfds.features.Text(),
                }
            ),
            # Records are stored in the order of their indices.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        """Returns the splits: disjoint slices of one sequence of scenes."""
        del dl_manager  # Nothing is downloaded.
        config, start, splits = self.builder_config, 0, {}
        for name in ("train", "validation", "test"):
            stop = start + getattr(config, name)
            splits[name] = self._generate_examples(config.seed, start, stop)
            start = stop
        return splits

    def _generate_examples(
        self, seed: int, start: int, stop: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the scenes `start` to `stop` - 1, keyed by index."""
        for index in range(start, stop):
            scene = scenes.draw(seed, index)
            yield (
                index,
                {
                    "image": scene.image,
                    "label": scene.labels[..., None],
                    "id": f"scenes_{seed}_{index:06d}",
                },
            )
