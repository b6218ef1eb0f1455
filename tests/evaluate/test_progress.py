"""Progress of an evaluation without a terminal."""

import logging

from encnet_jax.evaluate import progress


def test_lines_count_consumed_images_and_those_done_before(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "encnet_jax")
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", -1.0)
    assert list(progress.show_progress("abc", total=5, done=2)) == ["a", "b", "c"]
    assert [m.split(" ")[0] for m in caplog.messages] == ["3/5", "4/5"]
    assert all(m.endswith("min left") for m in caplog.messages)
