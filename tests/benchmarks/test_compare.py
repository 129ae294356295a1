"""Records of benchmarks set side by side, on made-up rounds: what is an alarm, what is not, what is refused."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import __main__ as every
from tests.benchmarks import compare, record
from tests.benchmarks.compare import BETTER, SAME, WORSE, verdict
from tests.benchmarks.record import Figure, Record

COMMAND = ["python", "-m", "tests.benchmarks.bench_made_up"]
MACHINE = {"cpu": "A", "cores": 2, "memory_gib": 24, "gpu": None}
VERSIONS = {"python": "3.11.7", "torch": "2.15.0", "commit": "0" * 40}
STEADY = [100.0, 101.0, 99.0, 100.5, 99.5, 100.2, 99.8]


def made_up(figures: dict[str, Figure], **changes: object) -> Record:
    same = Record("bench_made_up", COMMAND, "2026-01-01T00:00:00+00:00", MACHINE, VERSIONS, figures, {})
    return replace(same, **changes)


def time_of(values: list[float]) -> dict[str, Figure]:
    return {"a step": Figure(values, "ms", "lower")}


def put(path: Path, *made: Record) -> Path:
    """One record as a file, several as a folder."""
    if len(made) == 1:
        path.write_text(json.dumps(asdict(made[0])))
        return path
    path.mkdir()
    for one in made:
        put(path / f"{one.benchmark}.json", one)
    return path


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Compares two paths, or two records: the exit status, the lines of the table, those of stderr."""

    def compared(old, new, *options):
        paths = [put(tmp_path / f"{name}.json", one) if isinstance(one, Record) else one
                 for name, one in (("old", old), ("new", new))]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, paths), *options])
        status = compare.main()
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err.splitlines()

    return compared


def noise(rng, rounds, level=1.0, within=0.1, between=0.0):
    """Rounds of one process: times with a long tail, and a shift that they all share."""
    return (level * np.exp(rng.normal(0, between) + rng.normal(0, within, rounds))).tolist()


def verdicts(pairs, threshold=0.05):
    return [verdict(*(Figure(values, "ms", "lower") for values in pair), threshold, True) for pair in pairs]


@pytest.mark.parametrize(
    ("better", "factor", "wanted"),
    [("lower", 1.2, WORSE), ("lower", 0.8, BETTER), ("higher", 0.8, WORSE), ("higher", 1.2, BETTER)],
)
def test_a_figure_that_moved_is_an_alarm_in_one_direction(run, better, factor, wanted):
    old, new = (Figure([scale * value for value in STEADY], "s", better) for scale in (1, factor))
    status, table, warnings = run(made_up({"a": old}), made_up({"a": new}))
    assert status == (wanted == WORSE)
    assert table[1].split() == [
        "bench_made_up",
        "a",
        "100",
        "s",
        f"{100 * factor:g}",
        "s",
        f"{factor - 1:+.1%}",
        wanted,
    ]
    assert not warnings


def test_what_moves_by_less_than_the_threshold_is_none(run):
    old, new = made_up(time_of(STEADY)), made_up(time_of([1.04 * value for value in STEADY]))
    assert run(old, new)[0] == 0
    assert run(old, new, "--threshold", "3")[0] == 1


def test_what_moves_by_more_within_noise_is_none(run):
    status, table, _ = run(made_up(time_of([80, 90, 100, 110, 120])), made_up(time_of([85, 95, 110, 115, 125])))
    assert status == 0
    assert table[1].endswith("+10.0%  within noise")


def test_too_few_rounds_are_not_judged(run):
    status, table, _ = run(made_up(time_of([100, 100, 100])), made_up(time_of([200, 200, 200])))
    assert status == 0
    assert table[1].endswith("+100.0%  too few rounds")
    assert verdicts([([1, 1, 1, 1], [2] * 4), ([1] * 4, [2] * 6), ([1] * 5, [2] * 5)])[0] == "too few rounds"


def test_equal_runs_raise_few_alarms():
    """Noise of 10 %, which moves medians past the threshold again and again: the test of the rounds is what holds."""
    rng = np.random.default_rng(0)
    for rounds in (5, 7, 11):
        found = verdicts([(noise(rng, rounds), noise(rng, rounds)) for _ in range(1000)])
        assert 1 - found.count(SAME) / 1000 < 0.02
        medians = [np.median(noise(rng, rounds)) for _ in range(1000)]
        assert np.mean([abs(b / a - 1) > 0.05 for a, b in pairwise(medians)]) > 0.15


def test_processes_that_differ_raise_few_alarms():
    """By 1 % each, with rounds that are more alike: the threshold is what holds."""
    rng = np.random.default_rng(0)
    pairs = [[noise(rng, 11, within=0.005, between=0.01) for _ in range(2)] for _ in range(1000)]
    assert 1 - verdicts(pairs).count(SAME) / 1000 < 0.01
    assert 1 - verdicts(pairs, threshold=0.0).count(SAME) / 1000 > 0.3


@pytest.mark.parametrize(("rounds", "within"), [(5, 0.02), (7, 0.05), (11, 0.06)])
def test_a_slow_down_of_15_percent_is_found(rounds, within):
    rng = np.random.default_rng(0)
    pairs = [(noise(rng, rounds, within=within), noise(rng, rounds, 1.15, within)) for _ in range(500)]
    found = verdicts(pairs)
    assert found.count(WORSE) / 500 > 0.9
    assert BETTER not in found


def test_a_figure_that_one_lacks_is_named(run):
    both = Figure(STEADY, "s", "lower")
    status, table, _ = run(made_up({"both": both, "gone": both}), made_up({"both": both, "fresh": both}))
    assert status == 0
    assert [line.split()[1] for line in table[1:]] == ["both", "fresh", "gone"]
    assert table[2].endswith("only in NEW")
    assert table[3].endswith("only in OLD")


def test_a_figure_of_another_unit_or_peer_is_not_judged(run):
    old, new = Figure(STEADY, "ratio", "higher", "timm"), Figure([value / 2 for value in STEADY], "ratio", "higher")
    status, table, _ = run(made_up({"a": old}), made_up({"a": new}))
    assert status == 0
    assert table[1].endswith("unit or peer changed")


def test_only_ratios_are_judged_on_another_machine(run):
    slower = [2 * value for value in STEADY]
    halved = [value / 2 for value in STEADY]
    old = made_up({**time_of(STEADY), "to timm": Figure(STEADY, "ratio", "higher", "timm")})
    new = made_up(
        {**time_of(slower), "to timm": Figure(halved, "ratio", "higher", "timm")}, machine={**MACHINE, "cpu": "B"}
    )
    status, table, warnings = run(old, new)
    assert status == 1
    assert table[1].endswith("other machine")
    assert table[2].endswith("worse")
    assert warnings == ["warning: bench_made_up: cpu A -> B; another machine: only ratios are judged"]


def test_other_versions_and_options_are_told_in_one_line(run):
    old = made_up(time_of(STEADY), command=[*COMMAND, "--json", "a.json"])
    new = made_up(time_of([2 * value for value in STEADY]), command=[*COMMAND, "--rounds", "7", "--json", "b.json"],
                  versions={**VERSIONS, "torch": "2.16.0", "commit": "1" * 40})  # fmt: skip
    status, table, warnings = run(old, new)
    assert warnings == ["warning: bench_made_up: torch 2.15.0 -> 2.16.0; options none -> --rounds 7"]
    assert (status, table[1].endswith("worse")) == (1, True)


def test_folders_are_matched_by_benchmark(run, tmp_path):
    slower = made_up(time_of([2 * value for value in STEADY]), benchmark="bench_b")
    same = made_up(time_of(STEADY))
    a, b, c, d = (replace(same, benchmark=f"bench_{letter}") for letter in "abcd")
    status, table, warnings = run(put(tmp_path / "old", a, b, c), put(tmp_path / "new", a, slower, d))
    assert status == 1
    assert [(line.split()[0], line.endswith("worse")) for line in table[1:]] == [("bench_a", False), ("bench_b", True)]
    assert warnings == ["warning: bench_c: only in OLD", "warning: bench_d: only in NEW"]


def refused(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


BAD = {
    "not JSON": ("{", "Invalid JSON"),
    "another form": ('{"seconds": [1]}', "benchmark: Field required"),
    "no rounds": (
        json.dumps(asdict(made_up(time_of(STEADY)))).replace(str(STEADY), "[]"),
        "figures.a step: .*from 0 on",
    ),
    "a NaN": (json.dumps(asdict(made_up(time_of(STEADY)))).replace("99.8", "NaN"), "figures.a step: .*finite"),
    "another sense": (
        json.dumps(asdict(made_up(time_of(STEADY)))).replace("lower", "less"),
        "'less', not one of higher",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_is_named_in_one_line(run, tmp_path, bad):
    content, reason = BAD[bad]
    path = refused(tmp_path / "bad.json", content)
    for pair in ((path, made_up(time_of(STEADY))), (made_up(time_of(STEADY)), path)):
        status, table, errors = run(*pair)
        assert (status, table) == (2, [])
        assert re.fullmatch(f"compare: {re.escape(str(path))}: .*{reason}.*", "\n".join(errors))


def test_what_cannot_be_compared_is_refused(run, tmp_path):
    one, other = made_up(time_of(STEADY)), made_up(time_of(STEADY), benchmark="bench_other")
    status, _, errors = run(one, other)
    assert (status, len(errors)) == (2, 1)
    assert errors[0].endswith("new.json: of bench_other, while " + str(tmp_path / "old.json") + " is of bench_made_up")
    status, _, errors = run(tmp_path / "none.json", one)
    assert (status, errors) == (2, [f"compare: {tmp_path / 'none.json'}: No such file or directory"])
    folder = tmp_path / "folder"
    folder.mkdir()
    assert run(folder, one)[::2] == (2, [f"compare: {folder}: the folder has no *.json"])
    put(folder / "a.json", one)
    put(folder / "b.json", one)
    status, _, errors = run(folder, one)
    assert (status, len(errors)) == (2, 1)
    assert errors[0].startswith(f"compare: {folder / 'b.json'}: another file of this folder has bench_made_up too")


def test_what_is_written_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_made_up.py", "--rounds", "7"])
    monkeypatch.setattr(record, "PACKAGES", ("numpy", "a-package-that-nobody-has"))
    path = tmp_path / "folder" / "made_up.json"
    record.write(path, "bench_made_up", time_of(STEADY), {"images": 3})
    found = compare.load(path)
    assert (found.command, found.figures, found.details) == (
        [*COMMAND, "--rounds", "7"], time_of(STEADY), {"images": 3},
    )  # fmt: skip
    assert found.versions["numpy"] == np.__version__
    assert found.versions["a-package-that-nobody-has"] is None
    assert found.machine["cores"] >= 1
    assert list(path.parent.iterdir()) == [path]


def test_times_are_set_beside_a_peers():
    found = record.faster("a step", [0.5, 0.25], [1.0, 1.0], "timm", "ms")
    assert found == {
        "a step": Figure([2.0, 4.0], "ratio", "higher", "timm"),
        "a step, time": Figure([500.0, 250.0], "ms", "lower"),
    }
    assert record.spread(range(11)) == (5, 1, 9)
    assert record.said(range(11), 1) == "5.0 (1.0 to 9.0)"


def test_all_benchmarks_are_run_and_their_ratios_shown(tmp_path, monkeypatch, capfd):
    """Two that stand in for them: one writes a record, the other fails and leaves none of an earlier run behind."""
    figures = {"speed": Figure([2.0, 2.5, 3.0], "ratio", "higher", "timm"), **time_of(STEADY)}
    figures["cost"] = Figure([12.34], "ratio", "lower", "gloo")
    written = put(tmp_path / "written.json", made_up(figures))
    folder, out = tmp_path / "tests" / "benchmarks", tmp_path / "out"
    folder.mkdir(parents=True)
    out.mkdir()
    good = f"import shutil, sys\nprint('said by it')\nshutil.copy({str(written)!r}, sys.argv[2])\n"
    (folder / "bench_good.py").write_text(good)
    (folder / "bench_bad.py").write_text("raise SystemExit(1)\n")
    put(out / "bench_bad.json", made_up(figures, benchmark="bench_bad"))
    monkeypatch.setattr(every, "ROOT", tmp_path)
    monkeypatch.setattr(every, "NAMES", ["bench_bad", "bench_good", "bench_gpu"])
    monkeypatch.setattr(every, "gpu", lambda: None)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--out", str(out)])
    assert every.main() == 1
    said = capfd.readouterr()
    assert "benchmarks: failed: bench_bad\n" in said.err
    assert "bench_gpu is left out: torch finds no CUDA device\n" in said.out
    assert "\nbench_good\nsaid by it\n" in said.out
    assert said.out.splitlines()[-6:] == [
        "| figure | peer, in the same run | median | 10th to 90th percentile | command |",
        "| --- | --- | ---: | ---: | --- |",
        "| speed | timm | 2.50x | 2.10x to 2.90x | `bench_made_up` |",
        "| cost (lower is better) | gloo | 12.3x | one round | `bench_made_up` |",
        "",
        "Measured on A, no GPU.",
    ]
    assert [path.name for path in out.iterdir()] == ["bench_good.json"]
