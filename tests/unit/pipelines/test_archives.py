"""Hostile, damaged and ordinary archives; the standard library's `tarfile` is the oracle."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.archives import Member, members, opened, read

PLAIN = {"a.jpg": b"first", "folder/b.jpg": b"x" * 1500, "empty": b""}


def tar_bytes(files: dict[str, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def header(name: str = "a.jpg", format: int = tarfile.USTAR_FORMAT, **fields: object) -> bytes:
    """One header block and the end mark."""
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(format) + bytes(1024)


def contents(data: bytes, **limits: int) -> dict[str, bytes]:
    file = io.BytesIO(data)
    limits = {"max_members": 100, "max_bytes": 10**6, **limits}
    return {member.name: read(file, "x.tar", member) for member in members(file, "x.tar", **limits)}


@settings(max_examples=50, deadline=None)
@given(
    files=st.dictionaries(st.from_regex(r"[a-z]{1,8}(/[a-z]{1,90}\.JPEG)?", fullmatch=True), st.binary(max_size=1200)),
    format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]),
)
def test_gives_what_tarfile_gives(files: dict[str, bytes], format: int) -> None:
    assert contents(tar_bytes(files, format)) == files


def test_directories_are_passed_over() -> None:
    data = header("folder", type=tarfile.DIRTYPE)[:512] + tar_bytes(PLAIN)
    assert contents(data) == PLAIN


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/etc/passwd", "not a path inside"),
        ("../up.jpg", "not a path inside"),
        ("a/../../up.jpg", "not a path inside"),
        ("..", "not a path inside"),
        ("..\\up.jpg", "not a path inside"),
        (".", "not a path inside"),
    ],
)
def test_names_that_leave_the_archive_are_refused(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        contents(header(name))
    assert "x.tar" in str(caught.value)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    "type",
    [
        tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, b"Z",
    ],
)  # fmt: skip
def test_only_plain_files_are_accepted(type: bytes) -> None:
    with pytest.raises(ValueError, match=r"x\.tar: member 'a\.jpg' is not a plain file"):
        contents(header(type=type, linkname="/etc/passwd"))


def test_extended_headers_of_a_real_writer_are_refused() -> None:
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with pytest.raises(ValueError, match="is not a plain file"):
            contents(tar_bytes({"n" * 300: b"data"}, format))


def test_sizes_and_counts_are_capped() -> None:
    with pytest.raises(ValueError, match=r"'a\.jpg' claims 9895604649984 bytes, allowed are 1000000"):
        contents(header(size=9 << 40, format=tarfile.GNU_FORMAT))
    with pytest.raises(ValueError, match=r"claims -1 bytes"):
        contents(header(size=-1, format=tarfile.GNU_FORMAT))
    with pytest.raises(ValueError, match="'folder' claims 512 bytes"):
        contents(header("folder", type=tarfile.DIRTYPE, size=512))
    assert len(contents(tar_bytes(PLAIN), max_members=3, max_bytes=1500)) == 3
    with pytest.raises(ValueError, match="more than 2 members"):
        contents(tar_bytes(PLAIN), max_members=2)
    with pytest.raises(ValueError, match=r"folder/b\.jpg' claims 1500 bytes, allowed are 1499"):
        contents(tar_bytes(PLAIN), max_bytes=1499)


def test_a_name_that_comes_twice_is_refused() -> None:
    one = tar_bytes({"a.jpg": b""})[:512]
    with pytest.raises(ValueError, match=r"two members are named 'a\.jpg'"):
        contents(one + one + bytes(1024))


def test_every_cut_is_noticed() -> None:
    whole = tar_bytes(PLAIN)
    end = 3 * 512 + 512 + 1536 + 512  # three headers, payloads, the first block of the end mark
    for length in range(end):
        with pytest.raises(ValueError, match=r"x\.tar is cut"):
            contents(whole[:length])
    assert contents(whole[:end]) == PLAIN


def test_damaged_headers_are_noticed() -> None:
    whole = tar_bytes(PLAIN)
    for position in (0, 60, 130, 150, 200, 300, 1024, 1030):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        with pytest.raises(ValueError, match="no tar header at byte"):
            contents(bytes(damaged))
    with pytest.raises(ValueError, match="no tar header at byte 0"):
        contents(b"<html>quota exceeded</html>".ljust(2048))


def test_an_inner_archive_is_read_in_place_and_never_beyond_its_end() -> None:
    inner = tar_bytes(PLAIN)
    for data, says in ((inner, None), (inner[:3584], "is cut"), (inner[:2048], "beyond"), (inner[:512], "beyond")):
        file = io.BytesIO(tar_bytes({"inner.tar": data, "secret.jpg": b"of the outer archive"}))
        outer = next(members(file, "x.tar", max_members=9, max_bytes=10**6))
        found = members(file, "x.tar:inner.tar", max_members=9, max_bytes=10**6, within=outer)
        if says:
            with pytest.raises(ValueError, match=rf"x\.tar:inner\.tar.*{says}"):
                list(found)
        else:
            assert {member.name: read(file, "x", member) for member in found} == PLAIN


def test_opened_reads_gzip_and_names_what_is_wrong(tmp_path: Path) -> None:
    whole = gzip.compress(tar_bytes({"a.jpg": bytes(range(256)) * 40}))
    path = tmp_path / "kit.tar.gz"
    for data in (whole, whole[:-300], b"<html>", whole[:200] + b"\0" * 50 + whole[250:]):
        path.write_bytes(data)
        if data == whole:
            with opened(path) as file:
                (member,) = members(file, str(path), max_members=1, max_bytes=10**6)
                assert member == Member("a.jpg", 512, 10240)
        else:
            with pytest.raises(ValueError, match=r"kit\.tar\.gz"), opened(path) as file:
                for member in members(file, str(path), max_members=1, max_bytes=10**6):
                    read(file, str(path), member)
    with pytest.raises(ValueError, match=r"absent\.tar does not exist"), opened(tmp_path / "absent.tar"):
        pass
