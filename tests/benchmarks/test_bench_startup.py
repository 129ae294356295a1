"""The parts of a start add up, and a round of the benchmark measures all of them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks import bench_startup
from tests.benchmarks.startup_parts import Parts

ROOT = Path(__file__).parents[2]


def test_all_commands_are_started() -> None:
    mains = [path for path in (ROOT / "pipelines").rglob("*.py") if '__name__ == "__main__"' in path.read_text()]
    names = {".".join(path.relative_to(ROOT / "pipelines").with_suffix("").parts) for path in mains}
    assert {name.removesuffix(".__main__") for name in names} == set(bench_startup.COMMANDS)


def test_parts_are_what_lies_between_their_ends() -> None:
    began = time.monotonic()
    parts = Parts(began)
    for name in ("first", "second", "first"):
        time.sleep(0.01)
        parts.end(name)
    assert [name for name, _, _ in parts.found] == ["first", "second"]
    assert sum(seconds for _, seconds, _ in parts.found) == pytest.approx(parts.last - began)
    assert all(seconds >= 0.01 for _, seconds, _ in parts.found)


def test_a_process_is_timed_and_its_failure_told(tmp_path: Path) -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint('done')"
    took = bench_startup.run(tmp_path, "-c", busy)
    assert took.said == "done\n"
    assert took.seconds >= took.cpu * 0.9 >= 0.27
    with pytest.raises(ValueError, match=r"ended with exit code 2:\n.*no such option|ended with exit code 2"):
        bench_startup.run(tmp_path, "-c", "import sys; print('no such option', file=sys.stderr); sys.exit(2)")


@pytest.mark.long
def test_a_round_measures_commands_parts_and_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "startup.json"
    monkeypatch.setattr(sys, "argv", ["bench_startup", "--rounds", "1", "--json", str(target)])
    bench_startup.main()
    written = json.loads(target.read_text())
    figures = {name: figure["values"][0] for name, figure in written["figures"].items()}
    (rows,) = written["details"]["rows"]
    assert [name for name, *_ in rows] == bench_startup.ROWS
    further = sorted(seconds - loop for _, seconds, loop in rows[1:])
    assert figures["train: a further row, beside its loop"] == further[1] > 0
    whole = bench_startup.WHOLE
    for suffix in ("", ", CPU"):
        parts = [
            value
            for name, value in figures.items()
            if name.startswith("train: ") and name.endswith(", CPU") == bool(suffix)
            and not name.startswith((whole, "train: a further row"))
        ]  # fmt: skip
        assert len(parts) == 13
        assert sum(parts) == pytest.approx(figures[f"{whole}{suffix}"])
    assert figures[f"{whole}, from source"] > figures[whole]
    assert figures["import torch, CPU"] > figures["train --help, CPU"] > figures["python -c pass, CPU"]
    said = capsys.readouterr().out
    assert f"| {whole} | " in said
