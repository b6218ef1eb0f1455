"""Early stopping: ends a run whose validation score has stopped improving."""

from pathlib import Path

import jax
import numpy as np

from encnet_jax.run import checkpoint_folder
from encnet_jax.run.distributed import sum_over_hosts
from encnet_jax.run.metric_writer import read_scores


class EarlyStopping:
    """Counts the evaluations since the best one, in the metrics that the run wrote.

    This makes a resumed run stop at the same step as one that was never interrupted. A
    score missing from the metrics, as while a rerun repeats the last evaluation, is
    taken from its checkpoint.

    Args:
        patience: Evaluations without a better score after which the run ends; 0: never.
        metrics_path: `metrics.jsonl` of the run.
        metric: Name of the score that ranks checkpoints, greater is better.
    """

    def __init__(self, patience: int, metrics_path: Path, metric: str):
        self.patience, self.path, self.metric = patience, metrics_path, metric

    def reason(self, step: int) -> str:
        """Returns why a training ends, or an empty text if it does not.

        The same on every host. A score that is not finite is no improvement, nor is one
        equal to the best.

        Args:
            step: An evaluated step; later evaluations do not count.
        """
        if not self.patience:
            return ""
        counts = np.zeros(2, np.int64)
        if jax.process_index() == 0:
            counts[:] = _since_best(self._scores(step))
        best, since = map(int, sum_over_hosts(counts))
        if since < self.patience:
            return ""
        best_text = f"the best is that of step {best}" if best else "none is finite"
        return (
            f"stopped early at step {step}: {self.metric} has not improved in "
            f"{since} evaluations ({best_text}); to continue, rerun with "
            f"early_stopping above {since}, or 0"
        )

    def _scores(self, last_step: int) -> dict[int, float]:
        folder = self.path.parent / "checkpoints"
        saved = checkpoint_folder.read_scores(folder, self.metric).items()
        scores = {s: score for s, score in saved if score is not None}
        scores = {s: score for s, score in scores.items() if s <= last_step}
        return scores | read_scores(self.path, self.metric, last_step)


def _since_best(scores: dict[int, float]) -> tuple[int, int]:
    """Returns the best step (0: none), and how many evaluations came after it."""
    best = checkpoint_folder.best_step(scores) or 0
    return best, sum(step > best for step in scores)
