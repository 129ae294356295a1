"""An extra worker that fails by an error of its own begins anew as often as it may, and the run tells of it."""

import json

import pytest

from pipelines.training import extra_workers
from pipelines.training.extra_workers import failures, persevere
from pipelines.training.loop import SUMMARY, write_summary


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(extra_workers, "PAUSE_SECONDS", 0)


class Work:
    """Fails so often."""

    def __init__(self, fails):
        self.fails, self.calls = fails, 0

    def __call__(self):
        self.calls += 1
        if self.calls <= self.fails:
            raise RuntimeError(f"error {self.calls}\nand a traceback")


@pytest.mark.parametrize(
    ("fails", "max_failures", "calls"),
    [(0, 0, 1), (2, 2, 3), (3, 2, 3), (9, 2, 3), (1, 0, 1), (30, -1, 31)],
    ids=["well", "as often as it may", "once more", "always", "never may", "always may"],
)
def test_work_is_done_anew_as_often_as_it_may_fail(tmp_path, caplog, fails, max_failures, calls):
    work, failed = Work(fails), min(fails, calls)
    persevere(work, tmp_path, 3, max_failures)
    assert work.calls == calls
    assert failures(tmp_path) == ({3: failed} if failed else {})
    said = [f"{tmp_path.name}: extra worker 3 failed {failed} times, at last by RuntimeError: error {failed}"]
    assert caplog.messages == (said if failed else [])


def test_a_worker_that_ray_has_started_elsewhere_adds_to_what_is_told(tmp_path):
    for rank, fails in ((11, 1), (2, 1), (11, 2)):
        persevere(Work(fails), tmp_path, rank, 5)
    assert failures(tmp_path) == {2: 1, 11: 3}


def test_a_stop_from_outside_is_no_failure(tmp_path):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        persevere(stopped, tmp_path, 0, 5)
    assert failures(tmp_path) == {}


def test_a_summary_has_the_failures_of_a_run_that_had_some(make_job):
    job = make_job()
    write_summary(job, {"seconds": 2.0})
    assert "extra_worker_failures" not in json.loads((job.folder / SUMMARY).read_text())
    persevere(Work(2), job.folder, 1, 5)
    write_summary(job, {"seconds": 2.0})
    assert json.loads((job.folder / SUMMARY).read_text())["extra_worker_failures"] == {"1": 2}
