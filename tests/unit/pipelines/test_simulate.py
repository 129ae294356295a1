"""The command that simulates a table's runs: what it writes, says and refuses."""

import csv
from pathlib import Path

import pytest

from pipelines.config import load
from pipelines.simulate import candidates, main, need, numbers

ROOT = Path(__file__).parents[3]


def test_needs_of_runs_at_paper_scale():
    runs = load().runs("imagenet", "paper")
    chosen = [runs["imagenet_w100_r224"], runs["imagenet_w025_r128"]]
    fast, small = candidates(chosen, 1000, 25.0, None)
    assert (fast.parameters, small.parameters) == (4_231_976, 470_072)
    found = need(fast, (1, 2, 4, 8, 16))
    shares = {number: fast.efficiency(16, number) for number in (1, 2, 4, 8, 16)}
    assert found.now == shares[8]
    assert found.then == shares[found.worthwhile] >= 0.9 * max(shares.values())
    assert all(shares[number] < 0.9 * max(shares.values()) for number in shares if number < found.worthwhile)
    # On a device forty times slower the exchange hardly matters.
    (slow,) = candidates(chosen[:1], 1000, 25.0, 150.0)
    assert need(slow, (1, 2, 4)).enough == 1


@pytest.mark.parametrize("text", ["0,1", "two", "", "1,5000", "1.5", "-1"])
def test_numbers_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=r"--workers is '.*'; it must be whole numbers from 1 to 4096"):
        numbers(text, "workers")


def test_the_command_writes_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "scaling"
    options = ["--table", "geolocation", "--scale", "paper", "--workers", "2,1", "--servers", "1,2"]
    main([*options, "--out", str(out)])
    with (out / "scaling.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["workers"], row["servers"]) for row in rows] == [
        (run, workers, servers)
        for run in ("geolocation_inception_v3", "geolocation_w100_r224")
        for workers in "12"
        for servers in "12"
    ]
    assert all(0 < float(row["efficiency"]) < 1 for row in rows)
    assert (out / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert "geolocation_inception_v3" in (out / "scaling.svg").read_text()
    said = capsys.readouterr().out
    assert "geolocation_w100_r224 " in said
    first = (out / "scaling.csv").read_bytes(), (out / "scaling.svg").read_bytes()
    main([*options, "--out", str(out)])
    assert first == ((out / "scaling.csv").read_bytes(), (out / "scaling.svg").read_bytes())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--table", "nothing"], "table 'nothing' is unknown"),
        (["--gigabits", "0"], "--gigabits is 0.0; it must be above 0"),
        (["--images-per-second", "nan"], "--images-per-second is nan; it must be above 0"),
        (["--servers", "x"], "--servers is 'x'; it must be whole numbers from 1 to 1024"),
    ],
)
def test_a_mistake_is_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        main([*options, "--out", str(tmp_path / "out")])
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()
