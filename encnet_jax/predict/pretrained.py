"""Predictors as model folders: saved, loaded, and shared on the Hugging Face hub."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.errors import UserError
from encnet_jax.files import user_path
from encnet_jax.models.cifar import CifarResNet14
from encnet_jax.models.heads import ClassifierHead
from encnet_jax.run import hub
from encnet_jax.run.folder_config import FolderConfig
from encnet_jax.run.model_card import check_license
from encnet_jax.run.model_config import (
    abstract_model,
    config_of_model,
    prediction_attributes,
)
from encnet_jax.run.model_folder import find_model_folder, write_model_folder
from encnet_jax.run.state import split_model
from encnet_jax.run.workdir import LoadedRun, load_model_folder, load_workdir


class Pretrained(ABC):
    """What `Segmenter` and `Classifier` share: where models come from and go to.

    Args:
        model: The model as trained.
        info: Its classes and normalization.
        settings: Arguments of `create_model` that built it; None if they are not known,
            then it cannot be saved.

    Raises:
        UserError: The model has another number of classes than `info`, or segments into
            more than 255.
    """

    task: ClassVar[str]

    def __init__(
        self,
        model: nnx.Module,
        info: DatasetInfo,
        settings: Mapping[str, Any] | None,
    ):
        if self.task == "segmentation" and info.num_classes > IGNORE_LABEL:
            raise UserError(
                f"info.num_classes={info.num_classes}: allowed are up to "
                f"{IGNORE_LABEL}, as label maps have 8 bits and {IGNORE_LABEL} marks "
                "ignored pixels"
            )
        self.info = info
        self._settings = settings
        self._training: Mapping[str, Any] = {}
        count = _class_count(model)
        self._checked = count is not None
        if count is not None:
            self._check_classes(count)
        if settings is not None:
            self._attributes = prediction_attributes(model)
            # On the host, and copied: training may continue with the model.
            _, *arrays = split_model(model)
            self._trained = jax.tree.map(np.array, jax.device_get(arrays))

    def _check_classes(self, count: int) -> None:
        """Raises `UserError` if `info` has another number of classes."""
        if count != self.info.num_classes:
            raise UserError(
                f"info.num_classes={self.info.num_classes}: must be {count}, that of "
                "the model"
            )

    def _check_first_output(self, scores: Callable[..., Any], *inputs: Any) -> None:
        """Checks the classes of a model that does not tell their number itself.

        Args:
            scores: Returns an array of one value a class along the last axis; only its
                shape is computed, and only once.
            *inputs: Its arguments.

        Raises:
            UserError: The model has another number of classes than `info`.
        """
        if not self._checked:
            self._check_classes(jax.eval_shape(scores, *inputs).shape[-1])
            self._checked = True

    @classmethod
    def from_workdir(cls, path: str | Path, step: str | int = "best") -> Self:
        """Loads a model that `train.py` wrote.

        Images are resized, and cut into windows, as the evaluation of the run does.

        Args:
            path: The workdir.
            step: Which checkpoint: `"best"`, `"latest"` or a step number.

        Raises:
            UserError: No workdir, no such checkpoint, a damaged one, or a model of the
                other task.
        """
        return cls._loaded(load_workdir(user_path(path), step), path)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """Loads a model that `save_pretrained` or `push_to_hub` wrote.

        Nothing in its files is executed.

        Args:
            source: A model folder, or one on the Hugging Face hub: `OWNER/REPO` or
                `hf://OWNER/REPO@REVISION`, with a branch, a tag or a commit. A folder
                of this name on this machine comes first.

        Raises:
            UserError: No such folder or repository, a file that is missing or damaged,
                arrays that do not fit the network, or a model of the other task.
        """
        return cls._loaded(load_model_folder(find_model_folder(source)), source)

    def save_pretrained(self, folder: str | Path, *, license: str = "unknown") -> None:
        """Writes a model folder, for `from_pretrained` and every command.

        `model.safetensors` holds the weights as trained, `config.json` the network,
        classes, normalization and sizes, and `README.md` is a model card.

        Args:
            folder: A new or empty folder, or one with an earlier model folder in it and
                nothing else, which is replaced.
            license: License of the weights for the card, an identifier of the hub:
                `"apache-2.0"`, `"cc-by-4.0"`, `"other"`, ...

        Raises:
            UserError: The folder holds something else or cannot be written to, or the
                settings of the model are not known or not those of its weights.
        """
        self._write(user_path(folder), license)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        commit_message: str = "Upload model",
        license: str = "unknown",
    ) -> str:
        """Uploads a model folder to the Hugging Face hub, in one commit.

        Log in first (`hf auth login`, or `HF_TOKEN`). Files of the same names in the
        repository are replaced, also a card that was edited there; its history keeps
        them.

        Args:
            repo_id: OWNER/REPO, created if there is none.
            private: Whether a new repository is private.
            revision: The branch, created if there is none; by default `main`.
            commit_message: Message of the commit.
            license: As in `save_pretrained`.

        Returns:
            The address of the repository.

        Raises:
            UserError: As `save_pretrained`; or the upload failed.
        """
        hub.check_repository(repo_id)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "model"
            self._write(folder, license, repo_id + (f"@{revision}" if revision else ""))
            return hub.upload_folder(
                folder,
                repo_id,
                private=private,
                revision=revision,
                message=commit_message,
            )

    @classmethod
    def _loaded(cls, run: LoadedRun, source: str | Path) -> Self:
        if run.info.task != cls.task:
            raise UserError(f"{source}: a model for {run.info.task}, not {cls.task}")
        predictor = cls._of_run(run)
        predictor._training = run.training
        return predictor

    @classmethod
    @abstractmethod
    def _of_run(cls, run: LoadedRun) -> Self:
        """Returns the predictor of a loaded run."""

    @abstractmethod
    def _set_prediction(self, config: ConfigDict, model: Any) -> None:
        """Sets how images are resized and cut into windows in a configuration.

        Args:
            config: Its network is set.
            model: That network, with shapes in place of arrays.
        """

    def _write(self, folder: Path, license_id: str, address: str = "") -> None:
        check_license(license_id)
        if self._settings is None:
            name = type(self).__name__
            raise UserError(
                f"the settings of the model are not known: pass {name}(..., settings="
                "{...}), the arguments of create_model"
            )
        config = config_of_model(self._settings)
        model_def, *shapes = abstract_model(config, self.info.num_classes)
        model = model_def.merge_abstract(*shapes)
        self._check_settings(model)
        try:
            self._set_prediction(config, model)
        except TypeError as error:
            raise UserError(f"a size is of another type: {error}") from error
        write_model_folder(
            folder,
            FolderConfig(config, self.info, dict(self._training)),
            *self._trained,
            license_id=license_id,
            address=address,
        )

    def _check_settings(self, model: nnx.Module) -> None:
        """Raises `UserError` where the network is not the one of its settings."""
        there = prediction_attributes(model)
        for key, value in self._attributes.items():
            if key in there and there[key] != value:
                raise UserError(
                    f"the model is not that of its settings: {key[0]} is {value!r}, by "
                    f"the settings {there[key]!r}"
                )


def create_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `create_model` that are set in a configuration."""
    return {**config.model.to_dict(), "in_channels": config.data.channels}


def _class_count(model: Any) -> int | None:
    """Returns the number of classes of a network; None of one that is not known here.

    Read off the last layer, which may have been replaced since the model was created.
    """
    if isinstance(model, CifarResNet14):
        return int(model.linear.kernel.shape[-1])
    classifier = getattr(getattr(model, "head", None), "classifier", None)
    if isinstance(classifier, ClassifierHead):
        return int(classifier.conv.kernel.shape[-1])
    return None
