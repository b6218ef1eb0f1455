"""A training run in the order in which it happens.

Open the data, build model, optimizer and step, restore; then, for every step: batch,
step, log, save, evaluate, stop.
"""

import itertools
import logging
import time
from contextlib import closing
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from encnet_jax.config import save_config
from encnet_jax.data.dataset_info import save_info
from encnet_jax.data.datasets import Dataset
from encnet_jax.data.image_io import set_max_image_pixels
from encnet_jax.data.prefetch import prefetched
from encnet_jax.errors import UserError
from encnet_jax.models import create_model
from encnet_jax.optimizer import create_optimizer
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.checkpoint_folder import (
    best_metric_name,
    check_workdir_path,
    saved_steps,
)
from encnet_jax.run.lock import lock_workdir
from encnet_jax.run.metric_writer import MetricWriter
from encnet_jax.run.model_config import check_config, model_settings
from encnet_jax.run.preemption import SigtermHandler
from encnet_jax.run.progress import Progress
from encnet_jax.run.sharding import batch_sharded, create_mesh, replicated
from encnet_jax.run.startup import log_missing_large_pages
from encnet_jax.run.state import create_train_state, split_model
from encnet_jax.run.tracker import start_tracker
from encnet_jax.train import class_balance, input_pipeline, resume, settings
from encnet_jax.train.early_stopping import EarlyStopping
from encnet_jax.train.finite import FiniteCheck
from encnet_jax.train.initialization import load_initial_weights
from encnet_jax.train.input_pipeline import Splits
from encnet_jax.train.step import make_train_step
from encnet_jax.train.validation import Validation, make_validate_fn, score_texts

_log = logging.getLogger(__name__)


def train(
    config: ConfigDict, workdir: str | Path, datasets: Splits | None = None
) -> dict[str, float] | None:
    """Trains with a configuration, or resumes the run in the workdir.

    Args:
        config: See `encnet_jax.config`.
        workdir: Folder for `config.json`, `metrics.jsonl`, TensorBoard events and
            `checkpoints/`; created if missing, once everything else is known to fit.
        datasets: Training and validation split, instead of those that `data` names:
            data sets of `encnet_jax.data`, or objects as `fit` takes them; those need
            `as_datasets(train, val, class_names=...)` unless they have class names.

    Returns:
        The scores of the last evaluation, of segmentation with `classes_scored` and
        `num_classes`; or None if SIGTERM ended the run early.

    Raises:
        UserError: A setting or file does not fit; names it.
        FloatingPointError: The loss is not finite; names the step.
    """
    check_config(config)
    workdir = check_workdir_path(workdir)
    input_pipeline.check_packages(config, datasets)
    log_missing_large_pages(jax.default_backend())
    mesh = create_mesh(config.mesh.data)
    settings.check_batch_size(config, mesh.size)
    settings.check_resize(config)
    set_max_image_pixels(config.data.max_image_pixels)
    config, dataset, validation = input_pipeline.open_splits(config, datasets, workdir)
    config = resume.with_stored_weights(config, workdir)
    settings.check_task(config, dataset.info)
    settings.log_warnings(config, resumes=bool(saved_steps(workdir / "checkpoints")))
    if datasets is None:
        settings.warn_of_splits(config)
    class_balance.warn_of_unlabeled_classes(dataset)
    trainer = Trainer(config, workdir, mesh, dataset, validation)
    workdir.mkdir(parents=True, exist_ok=True)
    with lock_workdir(workdir):
        # Again: another run may have come to its first checkpoint meanwhile.
        resume.check_workdir(config, workdir, dataset.info)
        if datasets is None:
            resume.check_splits(config, workdir, dataset.info)
        resume.log_changes(config, workdir, dataset.info)
        trainer.restore()
        return trainer.run()


class Trainer:
    """Model, optimizer, step and validation of one run, and the loop over its steps.

    Args:
        config: See `encnet_jax.config`.
        workdir: Folder of the run; need not exist before `run`.
        mesh: Devices that share a batch.
        dataset: Training split.
        validation: Split scored during training.

    Raises:
        UserError: The workdir belongs to another model, `model.weights` does not fit,
            or images to be cached on the device differ in size.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        mesh: Mesh,
        dataset: Dataset,
        validation: Dataset,
    ):
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.dataset, info = dataset, dataset.info
        model = create_model(
            num_classes=info.num_classes,
            rngs=nnx.Rngs(config.seed),
            **model_settings(config),
        )
        resume.check_workdir(config, workdir, info)
        self.checkpoints = Checkpoints(workdir, best_metric_name(info))
        if config.model.weights and not self.checkpoints.steps():
            rgb = info.display_channels if info.banded else ()
            report = load_initial_weights(
                model, config.model.weights, info.class_names, rgb
            )
            _log.info("%s: %s", config.model.weights, report)
        model_def, params, batch_stats = split_model(model)
        self.schedule = settings.create_schedule(config)
        tx = create_optimizer(self.schedule, **settings.optimizer_settings(config))
        ema_decay = config.optimizer.ema_decay
        self.state = create_train_state(params, batch_stats, tx, keep_ema=ema_decay > 0)
        self.class_weights = class_balance.create_weights(
            config, dataset, workdir, resumes=bool(self.checkpoints.steps())
        )
        self.resident = input_pipeline.resident_arrays(config, dataset)
        self.step_fn = make_train_step(
            model_def,
            tx,
            info,
            augmentation=input_pipeline.create_augmentation(config),
            loss_settings=settings.loss_settings(config, self.class_weights),
            grad_accum_steps=config.grad_accum_steps,
            ema_decay=ema_decay,
        )
        self.validate = make_validate_fn(config, model, validation, info)
        self.early_stopping = EarlyStopping(
            config.early_stopping, workdir / "metrics.jsonl", self.checkpoints.metric
        )
        self.finite = FiniteCheck()

    def restore(self) -> None:
        """Takes the state of the newest readable checkpoint, if there is one."""
        restored = self.checkpoints.restore_latest(self.state, replicated(self.mesh))
        if restored is None:
            state = self.state
            if jax.process_count() > 1:
                # Arrays on this host's devices cannot move to those of other hosts.
                state = jax.device_get(state)
            self.state = jax.device_put(state, replicated(self.mesh))
            return
        self.state = restored
        _log.info("resuming at step %d of %s", int(restored.step), self.workdir)

    def run(self) -> dict[str, float] | None:
        """Takes the remaining steps.

        If the evaluation of the restored step failed or was killed, it comes first.

        Returns:
            The scores of the last evaluation, made after all steps or when early
            stopping ends the run; or None if SIGTERM ended it earlier, at a step that
            is saved.

        Raises:
            FloatingPointError: The loss is not finite; names the step.
            UserError: An image of the validation split cannot be read, or the
                checkpoint of the last step taken does not fit on the disk.
        """
        start = int(self.state.step)
        scored = start == 0 or self.checkpoints.has_scores(start)
        done = self._done(start, scored=scored)
        if done and scored:  # the workdir stays that of the steps that were taken
            with closing(self.checkpoints):
                return self._score(start).summary
        evaluation_due = not scored and (done or self._is_scored_at(start))
        if not evaluation_due:
            self._save_settings()
        tracker = start_tracker(self.config, self.workdir, self.dataset.info.name)
        self.writer = MetricWriter(
            self.workdir, start, keep_evaluation=not evaluation_due, tracker=tracker
        )
        scores: dict[str, float] | None = None
        with closing(self.writer), closing(self.checkpoints):
            if evaluation_due:
                scores = self._evaluate_and_store(start)
                done = done or self._done(start, scored=True)
                if not done:
                    self._save_settings()
            if not done:
                scores = self._take_steps(start)
        if not done and scores is not None:
            self._check_saved(int(self.state.step))
        return scores

    def _save_settings(self) -> None:
        if jax.process_index() == 0:
            save_config(self.config, self.workdir / "config.json")
            save_info(self.dataset.info, self.workdir / "classes.json")
            class_balance.save_weights(
                self.class_weights, self.config, self.dataset, self.workdir
            )

    def _done(self, step: int, *, scored: bool) -> bool:
        """Returns whether training ends at a step, and logs why."""
        if step >= self.config.total_steps:
            reason = f"all {step} steps are done"
        else:
            reason = self.early_stopping.reason(step) if scored else ""
        if reason:
            _log.info("%s", reason)
        return bool(reason)

    def _take_steps(self, start: int) -> dict[str, float] | None:
        """Takes the steps after `start`; returns as `run`."""
        config = self.config
        host_batches = input_pipeline.create_batches(config, self.dataset, start)
        # No more than are needed: a later one may have an image that cannot be read.
        needed = itertools.islice(host_batches, config.total_steps - start)
        batches = prefetched(needed, batch_sharded(self.mesh))
        resident = jax.device_put(self.resident, replicated(self.mesh))
        self.progress = Progress(start, config.total_steps, config.batch_size)
        scores: dict[str, float] | None = None
        with SigtermHandler() as sigterm, closing(self.progress), closing(host_batches):
            for step in range(start + 1, config.total_steps + 1):
                last = step == config.total_steps
                batch = next(batches)
                with jax.transfer_guard("disallow"):
                    self.state, metrics = self.step_fn(self.state, resident, batch)
                self.finite.add(metrics["loss"])
                self.progress.advance(metrics["loss"])
                if last or step % config.log_every == 0:
                    self._log_metrics(step, metrics)
                evaluates = self._is_scored_at(step)
                if evaluates or step % config.checkpoint_every == 0:
                    self.finite.check_weights(step, self.state.params)
                    # First: an evaluation that fails or is killed costs no step.
                    self.checkpoints.save(self.state, step)
                if evaluates:
                    with self.progress.paused():
                        scores = self._evaluate_and_store(step)
                    if not last and self._done(step, scored=True):
                        return scores
                if not last and sigterm.due(step):
                    self._save_and_stop(step)
                    return None
        return scores

    def _is_scored_at(self, step: int) -> bool:
        return step == self.config.total_steps or step % self.config.eval_every == 0

    def _check_saved(self, step: int) -> None:
        # Other hosts may see the folder as it was before.
        if jax.process_index() == 0 and step not in self.checkpoints.steps():
            raise UserError(
                f"{self.workdir}: the checkpoint of step {step}, the last one taken, "
                "does not fit on the disk; free space and rerun the command"
            )

    def _log_metrics(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self.finite.check_losses(step)
        values = {key: float(value) for key, value in metrics.items()}
        values["learning_rate"] = float(self.schedule(step - 1))
        values["images_per_second"] = self.progress.images_per_second()
        self.writer.scalars(step, values, "train")
        self.progress.show(values["loss"], values["images_per_second"])

    def _evaluate_and_store(self, step: int) -> dict[str, float]:
        """Scores a step, and keeps the scores with its checkpoint; returns them."""
        result = self._evaluate(step)
        self.checkpoints.add_scores(step, result.scores, result.mean_gate)
        return result.summary

    def _evaluate(self, step: int) -> Validation:
        """Scores a step, and writes scores and panel to the logs."""
        result = self._score(step)
        self.writer.scalars(step, result.scores, "evaluation")
        self.writer.image(step, "predictions", result.panel)
        return result

    def _score(self, step: int) -> Validation:
        started = time.perf_counter()
        try:
            result = self.validate(*self.state.evaluated)
        except UserError as error:
            self.checkpoints.close()
            if step not in self.checkpoints.steps():
                raise
            raise UserError(
                f"{error} (in the evaluation of step {step}, which is saved: a resumed "
                "run evaluates it again and continues from there)"
            ) from error
        _log.info(
            "step %d: %s (%d images, %.0f s)",
            step,
            ", ".join(score_texts(result.summary)),
            result.images,
            time.perf_counter() - started,
        )
        return result

    def _save_and_stop(self, step: int) -> None:
        self.finite.check_weights(step, self.state.params)
        self.checkpoints.save(self.state, step)
        self.checkpoints.close()
        self._check_saved(step)
        _log.info(
            "SIGTERM: saved step %d of %d in %s; rerun the command to resume",
            *(step, self.config.total_steps, self.workdir),
        )
