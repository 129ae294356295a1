"""Bring the upstream archives of a data set to data/<scale>/raw/<dataset>/, verify them and write manifest.json.

    python -m pipelines.fetch imagenet [--scale paper]

Where a file comes from is its URL, by default `<origin>/<name>`: `sample:` writes a look-alike, a plain path or `file:`
is linked to where it lies, anything else is downloaded. An archive that somebody put into the folder by hand is as good
as a fetched one. Each verified file has `<name>.verified.json` beside it: as long as its size and time of change agree
with that, it is neither fetched nor hashed again. `manifest.json`, which `shard` depends on, is written last.

Of a data set whose origin is null, which is not given, no file and no image is fetched; its manifest says so.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from pipelines import samples
from pipelines.command import run_stage
from pipelines.config import Dataset, Params
from pipelines.crawl import RECORD, crawl
from pipelines.download import download, require_space
from pipelines.files import digest, human, locked, write_json
from pipelines.manifest import MANIFEST, verification, verification_file
from pipelines.paths import raw
from pipelines.section import parsed
from pipelines.sources import SOURCES

logger = logging.getLogger(__name__)


class Archive(NamedTuple):
    """One upstream file: where it comes from, where it goes, and what it must be."""

    path: Path
    url: str
    bytes: int | None  # None: the publisher states none
    checksum: str | None


def fetch(params: Params, scale: str, name: str) -> None:
    """The stage: afterwards every archive of the data set `name` is there, verified, and listed in its manifest.

    What an earlier run has fetched of one that is no longer given stays, for the day when it is given again.
    """
    dataset = params.dataset(name, scale)
    folder, origin = raw(scale, name), dataset.origin
    with locked(folder):
        (folder / MANIFEST).unlink(missing_ok=True)  # it speaks of what was verified by this run
        if origin is None:
            write_json(folder / MANIFEST, {"dataset": name, "files": [], "given": False})
            logger.info(f"{folder}: {name} is not given (origin: null), nothing was fetched")
            return
        archives = [
            Archive(folder / file, options.url or join(origin, file), options.bytes, options.checksum)
            for file, options in sorted(dataset.files.items())
        ]
        files = fetch_archives(archives, dataset.homepage)
        images = fetch_images(name, dataset, folder.absolute())  # a cluster's workers have another folder
        write_json(folder / MANIFEST, {"dataset": name, "files": files, **images})
    logger.info(f"{folder}: {len(files)} files, {human(sum(file['bytes'] for file in files))}, all verified")


def fetch_archives(archives: list[Archive], homepage: str) -> list[dict[str, Any]]:
    """Bring all archives to their paths and return what the manifest says of them: name, bytes, checksum.

    Not where they came from: archives that move are the same archives, and their shards too.

    `homepage` is where a person gets those that no program may download. Raises ValueError for whatever is missing,
    refused or not what it should be.
    """
    by_scheme: dict[str, list[Archive]] = {}
    for archive in archives:
        by_scheme.setdefault(scheme_of(archive.url), []).append(archive)
    for scheme, group in by_scheme.items():
        SCHEMES.get(scheme, _download)(group, homepage)
    records = [(archive, verification(archive.path)) for archive in archives]
    return [
        {"name": archive.path.name, "bytes": record["bytes"], "checksum": record["checksum"]}
        for archive, record in records
    ]


def fetch_images(name: str, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Bring the images that lists of a data set ask for by URL; what the manifest says of them, if there are any.

    crawl: how many were wanted, fetched, and dead of which cause. selection: how many of them are kept, and why not.
    """
    source = SOURCES.get(name)
    if source is None or source.wanted is None:
        if dataset.crawl is not None:
            raise ValueError(f"data set {name!r} has no list of URLs: its crawl must be null")
        return {}
    if dataset.crawl is None:
        raise ValueError(f"data set {name!r} has images that are fetched by URL: its crawl must say how, not be null")
    options = parsed(source.options, dataset.shard.options, f"data set {name}: shard.options")
    mirror = folder / dataset.crawl.mirror if dataset.crawl.mirror else None
    counts = crawl(partial(source.wanted, folder, options), folder, dataset.crawl, mirror)
    found = {"crawl": {**counts, "digest": digest(folder / "crawl" / RECORD, "sha256")}}
    return found | ({"selection": source.select(folder, options)} if source.select else {})


def join(origin: str, name: str) -> str:
    """The URL of the file `name` at `origin`; a sample writes all its files at once, so its URL is theirs."""
    return origin if scheme_of(origin) == "sample" else f"{origin.rstrip('/')}/{name}"


def scheme_of(url: str) -> str:
    """What stands before the colon; "" for a plain path."""
    scheme = re.match("[a-z][a-z0-9+.-]+(?=:)", url)
    return scheme[0] if scheme else ""


def _write_samples(archives: list[Archive], _homepage: str) -> None:
    for url in sorted({archive.url for archive in archives}):
        group = [archive for archive in archives if archive.url == url]
        if not all(map(_is_verified, group)):
            _write_sample(url, group)


def _write_sample(url: str, archives: list[Archive]) -> None:
    """Write the sample beside its place and move it there when it is whole."""
    folder = archives[0].path.parent / ".sample"
    if folder.exists():  # of a run that was killed
        shutil.rmtree(folder)
    folder.mkdir()
    write, options = _sample(url)
    write(folder, **options)
    written = sorted(file.name for file in folder.iterdir())
    missing = [archive.path.name for archive in archives if archive.path.name not in written]
    if missing:
        raise ValueError(f"{url} does not write {', '.join(missing)}, only {', '.join(written)}")
    for archive in archives:
        _keep_what_is_not_ours(archive)
        (folder / archive.path.name).replace(archive.path)
        _verify(archive)
    shutil.rmtree(folder)


def _sample(url: str) -> tuple[Callable[..., Any], dict[str, int]]:
    """The function that a `sample:<name>?<option>=<int>&...` URL names, and its options."""
    parts = urlsplit(url)
    if parts.path not in samples.SAMPLES:
        raise ValueError(f"{url}: sample {parts.path!r} is unknown; there are: {', '.join(sorted(samples.SAMPLES))}")
    write = samples.SAMPLES[parts.path]
    try:
        options = {key: int(value) for key, value in parse_qsl(parts.query, keep_blank_values=True)}
        inspect.signature(write).bind(Path(), **options)
    except (ValueError, TypeError) as error:
        known = ", ".join([*inspect.signature(write).parameters][1:])
        raise ValueError(f"{url}: {error}; the options are whole numbers: {known}") from None
    return write, options


def _link(archives: list[Archive], homepage: str) -> None:
    """Link to files that lie somewhere on this machine; all that is missing is told at once."""
    sources = [_source(archive) for archive in archives]
    states = [_state(source, archive.bytes) for source, archive in zip(sources, archives, strict=True)]
    if any(state != "found" for state in states):
        raise ValueError(_shopping_list(archives, states, homepage))
    for archive, source in zip(archives, sources, strict=True):
        if not _is_verified(archive):
            if source != archive.path:
                _keep_what_is_not_ours(archive)
                _replace_by_link(archive.path, source)
            _verify(archive)


def _source(archive: Archive) -> Path:
    """Where the bytes lie: at the archive's own path if somebody put them there, else where its URL says."""
    source = _local(archive.url)
    is_same_folder = source.parent.resolve() == archive.path.parent.resolve()
    was_put_here = archive.path.is_file() and not archive.path.is_symlink() and not _is_outdated(archive)
    is_best = was_put_here and (_state(archive.path, archive.bytes) == "found" or not source.is_file())
    return archive.path if is_best or is_same_folder else source


def _local(url: str) -> Path:
    path = unquote(urlsplit(url).path) if scheme_of(url) == "file" else url
    return Path(path).expanduser().absolute()


def _state(source: Path, size: int | None) -> str:
    if not source.is_file():
        return "missing"
    found = source.stat().st_size
    if size is None or found == size:
        return "found"
    return f"{'a partial copy' if found < size else 'another file'}: has {found:,} of {size:,} bytes"


def _shopping_list(archives: list[Archive], states: list[str], homepage: str) -> str:
    lines = [f"{sum(state != 'found' for state in states)} of {len(archives)} files are not there:"]
    for archive, state in zip(archives, states, strict=True):
        size = "size unknown" if archive.bytes is None else f"{human(archive.bytes)} ({archive.bytes:,} bytes)"
        lines.append(f"  {archive.path.name}  {size}  {archive.checksum or 'checksum unknown'}  {state}")
    folders = ", ".join(sorted({str(_local(archive.url).parent) for archive in archives}))
    lines.append(
        f"Get them from {homepage} and put them into {folders}, or say in params.yaml (origin) where they are."
    )
    lines.append("An origin that is a folder is only read: nothing was downloaded.")
    lines.append("To go without this data set, let its origin be null.")
    return "\n".join(lines)


def _keep_what_is_not_ours(archive: Archive) -> None:
    """Raises ValueError for a file that somebody put where another one shall go: it may be the only copy."""
    path = archive.path
    made_here = scheme_of(verification(path).get("origin", "")) == "sample"
    if path.is_file() and not path.is_symlink() and not made_here:
        raise ValueError(f"{path} would be replaced by that of {archive.url}; move it away first if it is not needed")


def _replace_by_link(path: Path, source: Path) -> None:
    link = path.with_name(f".{path.name}.link")
    link.unlink(missing_ok=True)
    link.symlink_to(source)
    link.replace(path)


def _download(archives: list[Archive], _homepage: str) -> None:
    to_fetch = []
    for archive in archives:
        if archive.path.exists() and not _is_outdated(archive):
            if not _is_verified(archive):
                _verify(archive)
        else:
            to_fetch.append(archive)
    require_space({archive.path: archive.bytes or 0 for archive in to_fetch})
    for archive in to_fetch:
        _verify(archive, download(archive.url, archive.path, archive.bytes, archive.checksum))


def _is_outdated(archive: Archive) -> bool:
    """Whether a file is known to come from elsewhere, and not known to be the same nevertheless."""
    record = verification(archive.path)
    is_same = archive.checksum is not None and archive.checksum == record.get("checksum")
    return bool(record) and record["origin"] != _origin(archive.url) and not is_same


def _is_verified(archive: Archive) -> bool:
    record = verification(archive.path)
    if not record or not archive.path.is_file():
        return False
    status = archive.path.stat()
    is_same_file = (status.st_size, status.st_mtime_ns) == (record["bytes"], record["mtime_ns"])
    is_wanted = archive.bytes in (None, status.st_size) and archive.checksum in (None, record["checksum"])
    return is_same_file and is_wanted and not _is_outdated(archive)


def _verify(archive: Archive, found: str | None = None) -> None:
    """Record that the file at the archive's path is what it should be; `found` is its checksum if that is known."""
    path = archive.path
    status = path.stat()
    if archive.bytes not in (None, status.st_size):
        raise ValueError(f"{path} has {status.st_size:,} bytes, not {archive.bytes:,}; delete it to fetch it again")
    found = found or digest(path, (archive.checksum or "sha256").partition(":")[0])
    if archive.checksum not in (None, found):
        raise ValueError(f"{path} has {found}, not {archive.checksum}; delete {path.resolve()} and get it again")
    record = {
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "checksum": found,
        "origin": _origin(archive.url),
    }
    write_json(verification_file(path), record)


def _origin(url: str) -> str:
    """What decides a file's bytes: its URL, and for a sample also the code that draws it."""
    if scheme_of(url) != "sample":
        return url
    code = hashlib.sha256()
    for file in sorted(Path(samples.__file__).parent.glob("*.py")):
        code.update(file.read_bytes())
    return f"{url}#{code.hexdigest()}"


SCHEMES = {"sample": _write_samples, "": _link, "file": _link}  # any other is for obstore


def main(argv: list[str] | None = None) -> None:
    """The command line of this stage."""
    run_stage(fetch, "dataset", __doc__, argv)


if __name__ == "__main__":
    main()
