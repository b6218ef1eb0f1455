"""Trackers: stand-ins of the same shape, and the real ones where they are installed."""

import json
import logging
import sys
import threading
import types

import pytest
from PIL import Image

from encnet_jax.config import default
from encnet_jax.run import tracker as tracker_module
from encnet_jax.run.metric_writer import MetricWriter
from encnet_jax.run.tracker import start_tracker

PANEL = Image.new("RGB", (4, 2), (255, 0, 0))


class FakeRun:
    """A run of either; records what it is given."""

    dir, offline, url = "folder", False, "https://tracker/run"

    def __init__(self, **given):
        self.given, self.logged, self.exit_code = given, [], None

    def log(self, values, step=None):
        if step is not None:
            values = {"step": step, **values}
        self.logged.append(values)

    def define_metric(self, name, step_metric=None):
        self.step_metric = step_metric

    def finish(self, exit_code=None):
        self.exit_code = exit_code


@pytest.fixture
def fake(monkeypatch):
    """Installs a stand-in of a tracker; returns the runs that it started."""

    def install(name, init=None):
        runs = []

        def start(**given):
            runs.append(FakeRun(**given))
            return runs[-1]

        module = types.ModuleType(name)
        module.init = init or start
        module.Image = lambda panel: ("image", panel.size)
        module.Settings = dict
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
        return runs

    return install


def write(name, workdir, steps, project="my set"):
    """Writes a line for each step, and a panel at the last, as a training does."""
    workdir.mkdir(exist_ok=True)
    config = default()
    config.tracker = name
    tracker = start_tracker(config, workdir, project)
    writer = MetricWriter(workdir, tracker=tracker)
    try:
        for step in steps:
            writer.scalars(step, {"loss": step / 2}, "train")
        writer.image(step, "predictions", PANEL)
    finally:
        writer.close()


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_what_is_logged_and_under_which_name(fake, tmp_path, caplog, name):
    runs = fake(name)
    write(name, tmp_path / "run-a", (10, 20))
    (run,) = runs
    assert run.logged == [
        {"step": 10, "train/loss": 5.0},
        {"step": 20, "train/loss": 10.0},
        {"step": 20, "predictions": ("image", (4, 2))},
    ]
    stored = json.loads((tmp_path / "run-a" / "tracker.json").read_text())[name]
    assert run.given["project"] == stored["project"] == "my-set"
    assert run.given["config"]["optimizer"]["momentum"] == 0.9
    assert run.given["name"].startswith("run-a") and run.given["resume"] == "allow"
    assert not warnings_of(caplog)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_resumed_under_the_same_id_with_steps_taken_again(fake, tmp_path, name):
    runs = fake(name)
    write(name, tmp_path / "run", (10, 20))
    write(name, tmp_path / "run", (10, 20, 30))
    write(name, tmp_path / "other", (10,))
    key = "id" if name == "wandb" else "name"  # Trackio resumes by name
    first, second, other = (run.given[key] for run in runs)
    assert first == second != other
    assert [line["step"] for line in runs[1].logged] == [10, 20, 30, 30]
    if name == "wandb":  # without its own steps, of which earlier ones are dropped
        assert runs[0].step_metric == "step"


def test_each_tracker_keeps_its_id(fake, tmp_path):
    wandb, trackio = fake("wandb"), fake("trackio")
    for name in ("wandb", "trackio", "wandb"):
        write(name, tmp_path, (1,))
    assert wandb[0].given["id"] == wandb[1].given["id"]
    stored = json.loads((tmp_path / "tracker.json").read_text())
    assert trackio[0].given["name"].endswith(stored["trackio"]["id"])


def test_project_of_the_environment(fake, tmp_path, monkeypatch):
    runs = fake("wandb")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    write("wandb", tmp_path, (1,))
    assert runs[0].given["project"] == "mine"


def test_a_run_that_raises_is_marked_as_failed(fake, tmp_path):
    runs = fake("wandb")
    write("wandb", tmp_path, (1,))
    with pytest.raises(TypeError):
        write("wandb", tmp_path, ("not a step",))
    assert [run.exit_code for run in runs] == [0, 1]


def raising(**given):
    raise ConnectionError("no route\nto host")


def hanging(**given):
    threading.Event().wait()


@pytest.mark.parametrize(
    "init, message",
    [
        (raising, "ConnectionError: no route to host"),
        (hanging, "does not respond"),
        (lambda **given: sys.exit(3), "SystemExit: 3"),
    ],
)
def test_tracker_that_is_down_costs_one_line(
    fake, tmp_path, caplog, monkeypatch, init, message
):
    if init is hanging:  # what raises gets all the time it needs
        monkeypatch.setattr(tracker_module, "_START_SECONDS", 0.1)
        monkeypatch.setattr(tracker_module, "_FINISH_SECONDS", 0.1)
    fake("wandb", init)
    write("wandb", tmp_path, (1, 2))
    expected = f"WARNING: tracker=wandb: {message}; nothing more is tracked"
    assert warnings_of(caplog) == [expected]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_tracker_that_fails_later_costs_one_line(fake, tmp_path, caplog, monkeypatch):
    runs = fake("trackio")
    monkeypatch.setattr(FakeRun, "log", lambda *given, **named: 1 / 0)
    write("trackio", tmp_path, range(5))
    (line,) = warnings_of(caplog)
    assert len(runs) == 1 and "tracker=trackio: ZeroDivisionError" in line


def test_run_whose_logging_fails_is_marked_as_failed(fake, tmp_path, monkeypatch):
    runs = fake("wandb")
    monkeypatch.setattr(FakeRun, "log", lambda *given, **named: 1 / 0)
    write("wandb", tmp_path, range(5))
    assert [run.exit_code for run in runs] == [1]


def test_tracker_that_does_not_keep_up(fake, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tracker_module, "_QUEUED", 3)
    monkeypatch.setattr(tracker_module, "_FINISH_SECONDS", 0.1)
    fake("wandb", hanging)
    write("wandb", tmp_path, range(9))
    (line,) = warnings_of(caplog)
    assert "tracker=wandb: does not keep up" in line


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_run_of_a_tracker_that_does_not_keep_up_is_finished(
    fake, tmp_path, caplog, monkeypatch, name
):
    runs, finished = fake(name), []
    begun, go_on = threading.Event(), threading.Event()

    def log(*given, **named):
        begun.set()
        go_on.wait()

    monkeypatch.setattr(tracker_module, "_QUEUED", 3)
    monkeypatch.setattr(FakeRun, "log", log)
    monkeypatch.setattr(
        FakeRun, "finish", lambda run, exit_code=None: finished.append(exit_code)
    )
    config = default()
    config.tracker = name
    tracker = start_tracker(config, tmp_path, "set")
    tracker.scalars(0, {"loss": 1.0})
    assert begun.wait(60)  # a run given up before its first entry is finished at once
    for step in range(1, 9):
        tracker.scalars(step, {"loss": 1.0})
    assert not finished
    go_on.set()
    tracker.close()
    assert len(runs) == 1 and finished == [1 if name == "wandb" else None]
    (line,) = warnings_of(caplog)
    assert "does not keep up" in line


def test_missing_package_is_one_line_with_the_extra(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if not installed
    write("wandb", tmp_path, (1,))
    (line,) = warnings_of(caplog)
    assert "pip install 'encnet-jax[wandb]'" in line


def test_damaged_id_is_kept(fake, tmp_path, caplog):
    fake("wandb")
    (tmp_path / "tracker.json").write_text("{")
    write("wandb", tmp_path, (1,))
    (line,) = warnings_of(caplog)
    assert "tracker.json: damaged; delete it" in line
    assert (tmp_path / "tracker.json").read_text() == "{"


def test_only_the_first_host_tracks(fake, tmp_path, monkeypatch):
    runs = fake("wandb")
    monkeypatch.setattr("jax.process_index", lambda: 1)
    write("wandb", tmp_path, (1,))
    assert not runs and not (tmp_path / "tracker.json").exists()


@pytest.mark.filterwarnings("default")
def test_trackio_itself(tmp_path, monkeypatch, caplog):
    utils = pytest.importorskip("trackio.utils")
    import trackio
    from trackio import sqlite_storage
    from trackio.media import media

    for module in (utils, sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    for module in (utils, media):
        monkeypatch.setattr(module, "MEDIA_DIR", tmp_path / "trackio" / "media")
    write("trackio", tmp_path / "run", (10, 20))
    write("trackio", tmp_path / "run", (20, 30))
    assert not warnings_of(caplog)
    (run,) = trackio.Api().runs("my-set")
    assert run.name.startswith("run-")
    rows = sqlite_storage.SQLiteStorage.get_logs("my-set", run.name)
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(10, 5.0), (20, 10.0), (20, 10.0), (30, 15.0)]
    assert sum("predictions" in row for row in rows) == 2


@pytest.mark.filterwarnings("default")
def test_wandb_itself_offline(tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb.sdk")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    write("wandb", tmp_path / "run", (10, 20))
    write("wandb", tmp_path / "run", (10, 20, 30))
    assert not warnings_of(caplog)
    id = json.loads((tmp_path / "run" / "tracker.json").read_text())["wandb"]["id"]
    files = list((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{id}.wandb"))
    assert files and all(file.stat().st_size > 0 for file in files)
