"""Rate and time left of a training, and its log."""

import json
import time

import jax.numpy as jnp

from encnet_jax.run import progress
from encnet_jax.run.metric_writer import MetricWriter, read_scores
from encnet_jax.run.progress import Progress

LOSS = jnp.zeros(())


def test_compilation_and_evaluations_do_not_count(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    assert time.perf_counter() == 100
    shown = Progress(start=10, total=20, images_per_step=4)
    now[0] += 30  # compilation
    shown.advance(LOSS)
    now[0] += 1
    shown.advance(LOSS)
    with shown.paused():
        now[0] += 60
    now[0] += 3
    shown.advance(LOSS)
    rate = shown.images_per_second()
    assert rate == 2 * 4 / 4
    shown.show(0.5, rate)
    # 7 steps of 4 images are left.
    assert capsys.readouterr().err == (
        "step 13/20  loss 0.5000  2.0 images/s  0:00:14 left\n"
    )


def test_first_step_has_a_rate_if_it_is_the_only_one(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    shown = Progress(start=10, total=12, images_per_step=4)
    now[0] += 8
    shown.advance(LOSS)
    assert shown.images_per_second() == 0.5
    now[0] += 2
    shown.advance(LOSS)
    assert shown.images_per_second() == 2


def test_time_of_an_evaluation_does_not_count_on_a_terminal(monkeypatch):
    class Bar:
        paused = 0

        def unpause(self):
            self.paused += 1

    bar = Bar()
    monkeypatch.setattr(progress, "_bar", lambda **settings: bar)
    with Progress(start=0, total=2, images_per_step=4).paused():
        assert bar.paused == 0
    assert bar.paused == 1


def test_line_after_one_that_a_full_disk_cut_is_whole(tmp_path):
    log = tmp_path / "metrics.jsonl"
    writer = MetricWriter(tmp_path, 0)
    writer.scalars(1, {"mean_iou": 0.1}, "evaluation")
    with log.open("a") as file:
        file.write('{"step": 2, "mean_')
    for step in (3, 4):
        writer.scalars(step, {"mean_iou": step / 10}, "evaluation")
    writer.close()
    assert read_scores(log, "mean_iou", 4) == {1: 0.1, 3: 0.3, 4: 0.4}
    MetricWriter(tmp_path, 4, keep_evaluation=True).close()
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == [1, 3, 4]
