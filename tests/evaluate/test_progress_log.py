"""The log of an interrupted evaluation: what is read of it, and what is not."""

import numpy as np
import pytest

from encnet_jax.evaluate.accumulator import ImageMetrics
from encnet_jax.evaluate.progress_log import EvalProgressLog


def test_another_evaluation_beside_it_keeps_its_lines_apart(tmp_path):
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
