"""Predictors as model folders: saved, loaded, and shared on the Hugging Face hub."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.errors import UserError
from encnet_jax.files import user_path
from encnet_jax.run import hub
from encnet_jax.run.folder_config import FolderConfig
from encnet_jax.run.model_card import check_license
from encnet_jax.run.model_config import config_of_model
from encnet_jax.run.model_folder import find_model_folder, write_model_folder
from encnet_jax.run.state import split_model
from encnet_jax.run.workdir import LoadedRun, load_model_folder, load_workdir


class Pretrained:
    """What `Segmenter` and `Classifier` share: where models come from and go to.

    Args:
        model: The model as trained.
        info: Its classes and normalization.
        settings: Arguments of `create_model` that built it; None if they are not known,
            then it cannot be saved.
    """

    task: ClassVar[str]

    def __init__(
        self,
        model: nnx.Module,
        info: DatasetInfo,
        settings: Mapping[str, Any] | None,
    ):
        self.info = info
        self._settings = settings
        self._training: Mapping[str, Any] = {}
        if settings is not None:
            # On the host, and copied: training may continue with the model.
            _, *arrays = split_model(model)
            self._trained = jax.tree.map(np.array, jax.device_get(arrays))

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
            self._write(folder, license, repo_id)
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
    def _of_run(cls, run: LoadedRun) -> Self:
        raise NotImplementedError

    def _set_prediction(self, config: ConfigDict) -> None:
        """Sets how images are resized and cut into windows in a configuration."""
        raise NotImplementedError

    def _write(self, folder: Path, license_id: str, address: str = "") -> None:
        check_license(license_id)
        if self._settings is None:
            name = type(self).__name__
            raise UserError(
                f"the settings of the model are not known: pass {name}(..., settings="
                "{...}), the arguments of create_model"
            )
        config = config_of_model(self._settings)
        try:
            self._set_prediction(config)
        except TypeError as error:
            raise UserError(f"a size is of another type: {error}") from error
        write_model_folder(
            folder,
            FolderConfig(config, self.info, dict(self._training)),
            *self._trained,
            license_id=license_id,
            address=address,
        )
