from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import yaml

from pipelines import fetch as stage
from pipelines.fetch import Archive, fetch_archives
from pipelines.samples import SAMPLES
from pipelines.sources import SOURCES
from pipelines.sources.base import Source
from tests.file_server import Served, serving

HOME = "https://example.org/get"
BODIES = {"a.tar": b"first archive" * 5000, "b.tar": b"second" * 999}
FOLDER = Path("data/small/raw/toys")


def checksum(name: str, algorithm: str = "md5") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, BODIES[name]).hexdigest()}"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server():
    with serving() as running:
        running.files = {f"/v1/{name}": Served(body) for name, body in BODIES.items()}
        yield running


@pytest.fixture
def calls(monkeypatch):
    """The options that the sample `toys` was written with, time by time."""
    calls = []

    def write(folder: Path, *, letters: int = 1, times: int = 2) -> None:
        calls.append((letters, times))
        for name in BODIES:
            (folder / name).write_bytes(name[:letters].encode() * times)

    monkeypatch.setitem(SAMPLES, "toys", write)
    return calls


def run(origin: str | None, stated: bool = True, urls: dict[str, str] | None = None, crawl: dict | None = None) -> dict:
    """Run the stage by its command line and return the manifest."""
    files = {
        name: {
            "bytes": len(body) if stated else None,
            "checksum": checksum(name) if stated else None,
            "url": (urls or {}).get(name),
        }
        for name, body in BODIES.items()
    }
    shard = {"seed": 0, "samples_per_shard": 1, "stored_short_side": None, "max_pixels": 1, "max_bytes": 1}
    shard |= {"bad_images": "error", "samples": {}}
    dataset = {"origin": origin, "homepage": HOME, "files": files, "crawl": crawl, "shard": shard}
    params = {"scale": "small", "tables": {}, "scales": {"small": {"datasets": {"toys": dataset}, "recipes": {}}}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    stage.main(["toys"])
    return json.loads((FOLDER / "manifest.json").read_text())


def failure(capsys, *arguments, **options) -> str:
    """What the stage says on its way out."""
    with pytest.raises(SystemExit) as exit:
        run(*arguments, **options)
    assert exit.value.code == 1
    assert not (FOLDER / "manifest.json").exists()
    return capsys.readouterr().err


def place(folder: Path, bodies: dict[str, bytes] = BODIES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in bodies.items():
        (folder / name).write_bytes(body)
    return folder


def fetched() -> dict[str, bytes]:
    return {name: (FOLDER / name).read_bytes() for name in BODIES}


@pytest.mark.parametrize("stated", [True, False])
def test_archives_are_downloaded_and_listed(server, stated):
    manifest = run(f"{server.url}/v1/", stated)
    assert fetched() == BODIES
    algorithm = "md5" if stated else "sha256"
    assert manifest == {
        "dataset": "toys",
        "files": [
            {
                "name": name,
                "bytes": len(BODIES[name]),
                "checksum": checksum(name, algorithm),
            }
            for name in sorted(BODIES)
        ],
    }


def test_a_file_may_have_a_url_of_its_own(server):
    server.files["/else"] = server.files.pop("/v1/b.tar")
    urls = {"b.tar": f"{server.url}/else?id=7"}
    run(f"{server.url}/v1", urls=urls)
    assert fetched() == BODIES


def test_a_rerun_fetches_nothing_and_hashes_nothing(server):
    run(f"{server.url}/v1")
    manifest = (FOLDER / "manifest.json").read_bytes()
    (FOLDER / "manifest.json").unlink()  # as DVC does before it runs a stage
    server.requests.clear()
    status = (FOLDER / "a.tar").stat()
    (FOLDER / "a.tar").write_bytes(bytes(status.st_size))  # only a hash could tell
    os.utime(FOLDER / "a.tar", ns=(status.st_atime_ns, status.st_mtime_ns))
    run(f"{server.url}/v1")
    assert (FOLDER / "manifest.json").read_bytes() == manifest
    assert server.requests == []


def test_a_file_that_was_touched_is_hashed_again(server, capsys):
    run(f"{server.url}/v1")
    os.utime(FOLDER / "a.tar", ns=(0, 0))
    run(f"{server.url}/v1")
    (FOLDER / "a.tar").write_bytes(bytes(len(BODIES["a.tar"])))
    server.requests.clear()
    message = failure(capsys, f"{server.url}/v1")
    assert f"a.tar has md5:{hashlib.md5(bytes(len(BODIES['a.tar']))).hexdigest()}, not {checksum('a.tar')}" in message
    assert server.requests == []


def test_an_archive_that_was_put_there_by_hand_is_not_fetched(server):
    place(FOLDER, {"a.tar": BODIES["a.tar"]})
    run(f"{server.url}/v1")
    assert {request.path for request in server.requests} == {"/v1/b.tar"}
    assert fetched() == BODIES


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"x" + BODIES["a.tar"][1:], f"not {checksum('a.tar')}; delete "),
        (BODIES["a.tar"][:-1], "64,999 bytes, not 65,000; delete "),
    ],
)
def test_a_bad_archive_that_was_put_there_by_hand_is_named_and_left_alone(server, capsys, body, message):
    place(FOLDER, {"a.tar": body})
    error = failure(capsys, f"{server.url}/v1")
    assert error.startswith(f"error: {FOLDER}/a.tar has ")
    assert message in error
    assert (FOLDER / "a.tar").read_bytes() == body


def test_what_was_verified_is_held_to_what_is_stated_later(server, capsys):
    url = f"{server.url}/v1"
    run(url, stated=False)
    server.requests.clear()
    assert run(url)["files"][0]["checksum"] == checksum("a.tar")
    BODIES["a.tar"], right = bytes(65_000), BODIES["a.tar"]
    try:
        assert f"not {checksum('a.tar')}; delete " in failure(capsys, url)
    finally:
        BODIES["a.tar"] = right
    assert server.requests == []


def test_a_mirror_of_a_verified_file_is_not_asked(server):
    manifest = run(f"{server.url}/v1")
    server.requests.clear()
    assert run(f"{server.url}/v2") == manifest  # what depends on it need not be made again
    assert server.requests == []


def test_without_a_checksum_another_url_is_another_file(server):
    run(f"{server.url}/v1", stated=False)
    for name in BODIES:
        server.files[f"/v2/{name}"] = Served(name.encode() * 100)
    run(f"{server.url}/v2", stated=False)
    assert fetched() == {name: name.encode() * 100 for name in BODIES}


def test_one_dead_link_leaves_the_others_verified(server, capsys):
    lost = server.files.pop("/v1/b.tar")
    assert f"error: {server.url}/v1/b.tar: HTTP 404 Not Found\n" in failure(capsys, f"{server.url}/v1")
    server.files["/v1/b.tar"] = lost
    server.requests.clear()
    run(f"{server.url}/v1")
    assert {request.path for request in server.requests} == {"/v1/b.tar"}


def test_space_for_all_files_is_asked_for_before_the_first_one(server, tmp_path):
    huge = Archive(tmp_path / "huge.tar", f"{server.url}/huge.tar", 10**18, None)
    with pytest.raises(ValueError, match=r"needs 1.0 EB, but the disk has .* are missing"):
        fetch_archives([Archive(tmp_path / "a.tar", f"{server.url}/v1/a.tar", None, None), huge], HOME)
    assert server.requests == []


def test_a_sample_is_written_once(calls):
    manifest = run("sample:toys?letters=2&times=30", stated=False)
    assert calls == [(2, 30)]
    assert fetched() == {"a.tar": b"a." * 30, "b.tar": b"b." * 30}
    assert run("sample:toys?letters=2&times=30", stated=False) == manifest
    assert calls == [(2, 30)]


def test_a_sample_with_other_options_is_written_again(calls):
    run("sample:toys", stated=False)
    run("sample:toys?times=3", stated=False)
    assert calls == [(1, 2), (1, 3)]
    assert fetched()["a.tar"] == b"aaa"


def test_a_sample_whose_code_changed_is_written_again(calls, tmp_path, monkeypatch):
    run("sample:toys", stated=False)
    (tmp_path / "__init__.py").write_text("newer = True\n")
    monkeypatch.setattr(stage.samples, "__file__", str(tmp_path / "__init__.py"))
    run("sample:toys", stated=False)
    assert len(calls) == 2


def test_what_a_killed_sample_left_is_cleared(calls):
    place(FOLDER / ".sample", {"a.tar": b"half"})
    run("sample:toys", stated=False)
    assert fetched()["a.tar"] == b"aa"
    assert not (FOLDER / ".sample").exists()


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("sample:toy", "error: sample:toy: sample 'toy' is unknown; there are: "),
        ("sample:toys?letters=x", "'x'; the options are whole numbers: letters, times\n"),
        ("sample:toys?letters=", "''; the options are whole numbers: letters, times\n"),
        ("sample:toys?size=3", "unexpected keyword argument 'size'; the options are whole numbers: letters, times\n"),
    ],
)
def test_a_wrong_sample_says_what_is_allowed(calls, capsys, origin, message):
    assert message in failure(capsys, origin, stated=False)
    assert calls == []


def test_a_sample_that_lacks_a_file_is_named(monkeypatch, capsys):
    monkeypatch.setitem(SAMPLES, "toys", lambda folder: place(folder, {"a.tar": b"a"}))
    assert "sample:toys does not write b.tar, only a.tar" in failure(capsys, "sample:toys", stated=False)


def test_a_file_that_somebody_put_there_is_never_replaced(calls, capsys, project):
    place(FOLDER, {"a.tar": b"mine"})
    says = "a.tar would be replaced by that of sample:toys; move it away first if it is not needed"
    assert says in failure(capsys, "sample:toys", stated=False)
    assert (FOLDER / "a.tar").read_bytes() == b"mine"
    place(project / "one", BODIES)
    (FOLDER / "a.tar").write_bytes(BODIES["a.tar"])
    run("one", stated=False)
    place(project / "two", dict.fromkeys(BODIES, b"other"))
    assert "a.tar would be replaced by that of two/a.tar" in failure(capsys, "two", stated=False)
    assert fetched()["a.tar"] == BODIES["a.tar"]


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_local_archives_are_linked_not_copied(project, form):
    origin = place(project / "my disk")
    url = form.format(str(origin).replace(" ", "%20") if form.startswith("file") else origin)
    run(url)
    for name in BODIES:
        assert (FOLDER / name).is_symlink()
        assert (FOLDER / name).readlink() == origin / name
    assert fetched() == BODIES


def test_a_relative_origin_is_relative_to_the_project(project):
    place(project / "archives")
    run("archives")
    assert (FOLDER / "a.tar").readlink() == project / "archives/a.tar"


def test_an_origin_may_begin_at_home(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project / "me"))
    place(project / "me/archives")
    run("~/archives")
    assert (FOLDER / "a.tar").readlink() == project / "me/archives/a.tar"


def test_verified_local_archives_are_not_hashed_again(project):
    origin = place(project / "archives")
    run("archives")
    status = (origin / "a.tar").stat()
    (origin / "a.tar").write_bytes(bytes(status.st_size))
    os.utime(origin / "a.tar", ns=(status.st_atime_ns, status.st_mtime_ns))
    run("archives")


def test_a_local_archive_with_another_checksum_is_named(project, capsys):
    origin = place(project / "archives", {**BODIES, "a.tar": bytes(len(BODIES["a.tar"]))})
    message = failure(capsys, "archives")
    assert f"not {checksum('a.tar')}; delete {origin}/a.tar" in message
    place(project / "archives")
    run("archives")


def test_all_missing_archives_are_told_at_once(project, capsys):
    place(project / "archives", {"b.tar": BODIES["b.tar"][:1000]})
    message = failure(capsys, "archives")
    assert message.splitlines() == [
        "error: 2 of 2 files are not there:",
        f"  a.tar  65.0 kB (65,000 bytes)  {checksum('a.tar')}  missing",
        f"  b.tar  6.0 kB (5,994 bytes)  {checksum('b.tar')}  a partial copy: has 1,000 of 5,994 bytes",
        f"Get them from {HOME} and put them into {project}/archives, or say in params.yaml (origin) where they are.",
        "An origin that is a folder is only read: nothing was downloaded.",
        "To go without this data set, let its origin be null.",
    ]
    place(project / "archives", {"a.tar": BODIES["a.tar"], "b.tar": BODIES["b.tar"] + b"x"})
    message = failure(capsys, "archives")
    assert message.startswith("error: 1 of 2 files are not there:\n")
    assert f"{checksum('a.tar')}  found\n" in message
    assert "another file: has 5,995 of 5,994 bytes\n" in message
    assert not (FOLDER / "a.tar").exists()


def test_local_archives_may_lie_in_the_folder_itself(project):
    place(FOLDER)
    run("nowhere")
    run(str(FOLDER))
    run(str(project / FOLDER))
    assert not any((FOLDER / name).is_symlink() for name in BODIES)
    assert fetched() == BODIES


@pytest.mark.parametrize("stated", [True, False])
def test_an_origin_that_is_the_folder_keeps_its_links(project, stated):
    origin = place(project / "archives")
    run("archives", stated)
    run(str(FOLDER), stated)
    assert (FOLDER / "a.tar").readlink() == origin / "a.tar"
    assert fetched() == BODIES


def test_a_moved_archive_is_linked_again(project):
    run(str(place(project / "old")))
    (project / "old").rename(project / "new")
    run("new")
    assert (FOLDER / "a.tar").readlink() == project / "new/a.tar"


@pytest.mark.parametrize("stated", [True, False])
def test_real_archives_take_the_place_of_a_sample_and_back(calls, project, stated, server):
    run("sample:toys?times=7", stated=False)
    run(str(place(project / "archives")), stated)
    assert fetched() == BODIES
    run("sample:toys?times=7", stated=False)
    assert fetched()["a.tar"] == b"a" * 7
    assert (project / "archives/a.tar").read_bytes() == BODIES["a.tar"]
    run(f"{server.url}/v1", stated)
    assert fetched() == BODIES


def test_a_foreign_sidecar_is_named(server, capsys):
    place(FOLDER, {**BODIES, "a.tar.verified.json": b"{"})
    assert "a.tar.verified.json is not JSON" in failure(capsys, f"{server.url}/v1")


NOT_GIVEN = {"dataset": "toys", "files": [], "given": False}


def test_of_a_data_set_that_is_not_given_no_file_and_no_image_is_fetched(server, monkeypatch, caplog):
    lists = []
    source = Source(list, lambda *_: [], iter, wanted=lambda folder, _: iter(lists.append(folder) or ()))
    monkeypatch.setitem(SOURCES, "toys", source)
    crawl = {"mirror": None, "connections": 1, "per_host": 1, "attempts": 1, "timeout_seconds": 1, "max_bytes": 1}
    values = {"urls": {"b.tar": f"{server.url}/v1/b.tar"}, "crawl": {**crawl, "part_size": 1}}
    with caplog.at_level("INFO"):
        assert run(None, **values) == NOT_GIVEN
    assert (server.requests, lists) == ([], [])
    assert {path.name for path in FOLDER.iterdir()} == {"manifest.json", ".lock"}
    assert caplog.messages == [f"{FOLDER}: toys is not given (origin: null), nothing was fetched"]
    assert run(f"{server.url}/v1", **values)["crawl"]["wanted"] == 0  # where it is given, both are
    assert len(server.requests) >= len(BODIES)
    assert lists


def test_archives_outlive_that_their_data_set_is_not_given(server):
    manifest = run(f"{server.url}/v1")
    before = {path: path.stat() for path in FOLDER.iterdir() if path.name.startswith(("a.tar", "b.tar"))}
    server.requests.clear()
    assert run(None) == NOT_GIVEN
    assert run(f"{server.url}/v1") == manifest
    assert {path: path.stat() for path in before} == before
    assert len(before) == 4
    assert server.requests == []
