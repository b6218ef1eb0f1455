"""The log of an interrupted evaluation: what is read of it, and what is not."""

import numpy as np
import pytest

from encnet_jax.errors import UserError
from encnet_jax.evaluate import progress_log
from encnet_jax.evaluate.accumulator import ImageMetrics
from encnet_jax.evaluate.progress_log import (
    EvalProgressLog,
    known_to_all_hosts,
    open_progress_log,
)


def metrics_of(*indices):
    return [ImageMetrics(index, np.eye(2, dtype=np.int64)) for index in indices]


def test_another_evaluation_beside_it_keeps_its_lines_apart(tmp_path):
    # On a file system without locks.
    def opened(step):
        return EvalProgressLog(tmp_path / "val.partial", {"step": step}, 2)

    one = opened(2)
    one.add(ImageMetrics(0, np.eye(2, dtype=np.int64)))
    other = opened(4)
    other.add(ImageMetrics(1, np.eye(2, dtype=np.int64)))
    one.add(ImageMetrics(2, np.eye(2, dtype=np.int64)))
    assert [metrics.index for metrics in opened(4).done] == [1]
    one.remove()
    other.remove()


def test_second_evaluation_of_a_file_is_refused_while_the_first_lasts(tmp_path):
    path = tmp_path / "evaluation" / "val.json"
    for _ in range(2):
        with open_progress_log(path, {}, 2):
            with open_progress_log(path.with_name("test.json"), {}, 2) as other:
                other.remove()
            expected = r"val.json: another evaluation is writing it \(process \d+ on "
            with pytest.raises(UserError, match=expected):
                with open_progress_log(path, {}, 2):
                    raise AssertionError("two evaluations at once")
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == [".test.lock", ".val.lock", "val.partial-0.jsonl"]


def test_split_may_have_a_name_with_brackets(tmp_path):
    path = tmp_path / "val[1].json"
    with open_progress_log(path, {}, 2) as log:
        log.add(*metrics_of(3))
    with open_progress_log(path, {}, 2) as log:
        assert [metrics.index for metrics in log.done] == [*log.lines()] == [3]
        log.remove()
    assert [file.name for file in tmp_path.iterdir()] == [".val[1].lock"]


def test_lines_are_written_through_now_and_then_and_at_the_end(tmp_path, monkeypatch):
    now, written = [100.0], []
    monkeypatch.setattr(progress_log.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress_log.os, "fsync", written.append)
    with open_progress_log(tmp_path / "val.json", {}, 2) as log:
        for index, seconds in enumerate((0, 20, 20, 20)):
            now[0] += seconds
            log.add(*metrics_of(index))
        assert len(written) == 1
        log.sync()
        assert len(written) == 2

    def fail(descriptor):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(progress_log.os, "fsync", fail)
    with open_progress_log(tmp_path / "val.json", {}, 2) as log:
        log.sync()
        assert [*log.lines()] == [0, 1, 2, 3]


def test_images_that_not_all_hosts_know_are_done_again(monkeypatch):
    known = metrics_of(0, 2, 3)
    assert known_to_all_hosts(known, 5) == known
    assert known_to_all_hosts([], 5) == []
    others = np.array([0, 1, 1, 0, 0])  # what the second of two hosts knows
    monkeypatch.setattr(progress_log, "sum_over_hosts", lambda times: times + others)
    monkeypatch.setattr(progress_log.jax, "process_count", lambda: 2)
    assert known_to_all_hosts(known, 5) == [known[1]]


@pytest.mark.parametrize("damage", [b"\0\0\n", b"\xff\xfe\n", b"{}\n", b"[1]\n"])
def test_images_after_a_damaged_line_are_done_again(tmp_path, damage):
    log = EvalProgressLog(tmp_path / "val.partial", {"step": 1}, 2)
    for index in range(3):
        log.add(ImageMetrics(index, np.eye(2, dtype=np.int64)))
    (file,) = tmp_path.iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], damage, *lines[2:]]))
    done = EvalProgressLog(tmp_path / "val.partial", {"step": 1}, 2).done
    assert [metrics.index for metrics in done] == [0]
    # Rewritten without the damage.
    assert file.read_bytes() == b"".join(lines[:2])
