"""Rate and time left of a training."""

import time

from encnet_jax.run import progress
from encnet_jax.run.progress import Progress


def test_time_of_an_evaluation_does_not_count(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    assert time.perf_counter() == 100
    shown = Progress(start=10, total=20, images_per_step=4)
    for seconds in (1, 1):
        now[0] += seconds
        shown.advance()
    with shown.paused():
        now[0] += 60
    now[0] += 2
    shown.advance()
    rate = shown.images_per_second()
    assert rate == 3 * 4 / 4
    shown.show(0.5, rate)
    # 7 steps of 4 images are left.
    assert capsys.readouterr().err == (
        "step 13/20  loss 0.5000  3.0 images/s  0:00:09 left\n"
    )


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
