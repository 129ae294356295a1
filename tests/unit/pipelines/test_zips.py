"""Hostile, damaged and ordinary zip archives; the standard library's `zipfile` is the oracle."""

from __future__ import annotations

import io
import random
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.zips import ZipMember, read_zip, zip_members

PLAIN = {"a.jpg": b"first", "folder/b.jpg": b"x" * 1500, "empty": b""}
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]

# Where an entry of the directory has what: PKWARE's APPNOTE.TXT, 4.3.12.
ENTRY = b"PK\1\2"
FIELDS = {"flags": (8, "<H"), "method": (10, "<H"), "crc": (16, "<I"), "packed": (20, "<I"), "size": (24, "<I"),
          "attributes": (38, "<I"), "header": (42, "<I")}  # fmt: skip


def zip_bytes(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return file.getvalue()


def entry(data: bytes, name: str) -> int:
    """Where the directory's entry for a name begins."""
    position = data.index(ENTRY)
    while data[position + 46 : position + 46 + len(name)] != name.encode():
        position = data.index(ENTRY, position + 1)
    return position


def patched(data: bytes, name: str, **values: int) -> bytes:
    """The archive with another value in some fields of the directory's entry for a name."""
    changed = bytearray(data)
    for field, value in values.items():
        offset, form = FIELDS[field]
        struct.pack_into(form, changed, entry(data, name) + offset, value)
    return bytes(changed)


def renamed(data: bytes, old: str, new: str) -> bytes:
    """The archive with a name replaced wherever it stands, by one as long."""
    assert len(old) == len(new)
    assert data.count(old.encode()) == 2
    return data.replace(old.encode(), new.encode())


def members(path: Path, data: bytes, max_members: int = 100, max_bytes: int = 10**6) -> list[ZipMember]:
    path.write_bytes(data)
    return zip_members(path, max_members=max_members, max_bytes=max_bytes)


def contents(path: Path, data: bytes) -> dict[str, bytes]:
    found = members(path, data)
    with path.open("rb") as file:
        return {member.name: read_zip(file, "x.zip", member)[0] for member in found}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.zip"


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(
        st.from_regex(r"[a-z\u00e9]{1,8}(/[a-z]{1,90}\.jpg)?", fullmatch=True), st.binary(max_size=300)
    ),
    methods=st.lists(st.sampled_from(METHODS), min_size=1),
)
def test_gives_what_zipfile_gives(path: Path, files: dict[str, bytes], methods: list[int]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for index, (name, data) in enumerate(files.items()):
            archive.writestr(name, data, methods[index % len(methods)])
    with zipfile.ZipFile(path) as archive:
        expected = {name: archive.read(name) for name in archive.namelist()}
    assert contents(path, path.read_bytes()) == expected == files


@pytest.mark.parametrize("method", METHODS)
def test_members_come_in_the_order_of_the_directory(path: Path, method: int) -> None:
    found = members(path, zip_bytes(PLAIN, method))
    assert [member.name for member in found] == list(PLAIN)
    assert [member.size for member in found] == [5, 1500, 0]
    assert {member.method for member in found} == {method}


def test_a_stored_member_is_told_its_place_and_a_packed_one_has_none(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("packed", b"x" * 100, zipfile.ZIP_DEFLATED)
        info = zipfile.ZipInfo("stored")
        info.extra = struct.pack("<HH5s", 0x7777, 5, b"extra")  # between the name and the bytes
        archive.writestr(info, b"y" * 100)
        with archive.open("long", "w", force_zip64=True) as member:
            member.write(b"z" * 100)
    whole = b"#!/bin/sh\n" * 20 + path.read_bytes()  # as archives that unpack themselves are
    for data in (path.read_bytes(), whole):
        packed, stored, long = members(path, data)
        with path.open("rb") as file:
            assert read_zip(file, "x.zip", packed) == (b"x" * 100, None)
            for member, content in ((stored, b"y" * 100), (long, b"z" * 100)):
                read, offset = read_zip(file, "x.zip", member)
                assert read == content
                assert data[offset : offset + 100] == content


def test_archives_that_were_streamed_have_their_sizes_in_the_directory(path: Path) -> None:
    class Pipe(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:
            chunks.append(bytes(data))
            return len(data)

    chunks: list[bytes] = []
    with zipfile.ZipFile(Pipe(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in PLAIN.items():
            archive.writestr(name, data)
    assert b"".join(chunks)[6] & 0x8  # the local header leaves them open
    assert contents(path, b"".join(chunks)) == PLAIN


def test_folders_are_passed_over(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("folder")
        archive.writestr("other/", b"")
        archive.writestr("folder/b.jpg", b"data")
    assert contents(path, path.read_bytes()) == {"folder/b.jpg": b"data"}


@pytest.mark.parametrize("name", ["/etc/passwd", "../up.jpg", "a/../../up.jpg", "..", "..\\up.jpg", ".", "../", "/"])
def test_names_that_leave_the_archive_are_refused(path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not a path inside the archive") as caught:
        members(path, zip_bytes({"a.jpg": b"", name: b"data"}))
    assert str(path) in str(caught.value)
    assert repr(name) in str(caught.value)


def test_a_name_with_a_zero_byte_is_cut_there_as_zipfile_does(path: Path) -> None:
    data = renamed(zip_bytes({"a.jpg": b"1", "b.jpgXXX": b"2"}), "b.jpgXXX", "a.jpg\0XX")
    with pytest.raises(ValueError, match=r"two members are named 'a\.jpg'"):
        members(path, data)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR])
def test_only_plain_files_are_accepted(path: Path, kind: int) -> None:
    mode = (kind | 0o777) << 16
    with pytest.raises(ValueError, match=r"x\.zip: member 'a\.jpg' is not a plain file"):
        members(path, patched(zip_bytes({"a.jpg": b"/etc/passwd"}), "a.jpg", attributes=mode))
    if kind != stat.S_IFDIR:
        with pytest.raises(ValueError, match=r"x\.zip: member 'a/' is not a plain file"):
            members(path, patched(zip_bytes({"a/": b""}), "a/", attributes=mode))


def test_what_is_encrypted_or_packed_otherwise_is_refused(path: Path) -> None:
    plain = zip_bytes(PLAIN)
    with pytest.raises(ValueError, match=r"x\.zip: member 'a\.jpg' is encrypted or packed by method 0"):
        members(path, patched(plain, "a.jpg", flags=0x1))
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(ValueError, match=rf"'a\.jpg' is encrypted or packed by method {method}"):
            members(path, zip_bytes({"a.jpg": b"x" * 100}, method))
    with pytest.raises(ValueError, match=r"'a\.jpg' is encrypted or packed by method 99"):
        members(path, patched(plain, "a.jpg", method=99))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"first")
        archive.writestr("a.jpg", b"second")
    with pytest.raises(ValueError, match=r"x\.zip: two members are named 'a\.jpg'"):
        members(path, path.read_bytes())


def test_sizes_and_counts_are_capped(path: Path) -> None:
    plain = zip_bytes(PLAIN)
    assert len(members(path, plain, max_members=3, max_bytes=1500)) == 3
    with pytest.raises(ValueError, match=r"x\.zip has more than 2 members"):
        members(path, plain, max_members=2)
    with pytest.raises(ValueError, match=r"x\.zip: member 'folder/b\.jpg' claims 1500 bytes, allowed are 1499"):
        members(path, plain, max_bytes=1499)
    for field in ("size", "packed"):
        with pytest.raises(ValueError, match=r"'a\.jpg' claims 4000000000 bytes, allowed are 1000000"):
            members(path, patched(plain, "a.jpg", **{field: 4_000_000_000}))


@pytest.mark.parametrize("comment", [b"", b"c" * 65_535])
def test_a_directory_without_end_is_refused_before_it_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, comment: bytes
) -> None:
    data = zip_bytes({f"{number:0500d}": b"" for number in range(50)})  # 27 kB of directory
    path.write_bytes(data[:-2] + len(comment).to_bytes(2, "little") + comment)
    assert len(zip_members(path, max_members=50, max_bytes=10)) == 50
    monkeypatch.setattr(zipfile, "ZipFile", None)  # which would hold all entries
    with pytest.raises(ValueError, match=r"has more than 20 members, or names without end"):
        zip_members(path, max_members=20, max_bytes=10)


def test_the_large_form_of_the_directory_is_bounded_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZIP64_LIMIT", 10_000)  # in place of 4 GB
        path.write_bytes(zip_bytes({f"{number:0500d}": b"" for number in range(50)}))
    assert b"PK\x06\x06" in path.read_bytes()
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(ValueError, match=r"has more than 20 members, or names without end"):
        zip_members(path, max_members=20, max_bytes=10)


def test_a_bomb_is_refused_by_what_it_claims(path: Path) -> None:
    data = zip_bytes({"bomb": bytes(10**8)}, zipfile.ZIP_DEFLATED)
    assert len(data) < 10**5 + 500
    with pytest.raises(ValueError, match="'bomb' claims 100000000 bytes, allowed are 1000000"):
        members(path, data)


def test_a_bomb_that_lies_is_never_unpacked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes out of the unpacker is at most one byte more than the directory says."""
    sizes = []
    unpackers = zlib.decompressobj

    class Watched:
        def __init__(self, *arguments: int) -> None:
            self.inner = unpackers(*arguments)

        def decompress(self, data: bytes, most: int) -> bytes:
            sizes.append(len(out := self.inner.decompress(data, most)))
            return out

        @property
        def eof(self) -> bool:
            return self.inner.eof

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    data = patched(zip_bytes({"bomb": bytes(10**8)}, zipfile.ZIP_DEFLATED), "bomb", size=1000)
    with pytest.raises(ValueError, match=r"x\.zip: member 'bomb' is cut or corrupt"):
        contents(path, data)
    assert sizes == [1001]


def test_many_names_for_the_same_bytes_are_refused(path: Path) -> None:
    """The bomb of https://www.bamsoftware.com/hacks/zipbomb/: whole within each cap, huge together."""
    data = zip_bytes({"a.jpg": b"x" * 50, "b.jpg": b"x" * 50, "c.jpg": b"x" * 50})
    for header in (0, 10, 79):  # the first member's header, within it, within its bytes
        with pytest.raises(ValueError, match=r"x\.zip: member '[ab]\.jpg' lies within another or beyond"):
            members(path, patched(data, "b.jpg", header=header))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", [-1, 1])
def test_sizes_that_lie_are_noticed(path: Path, method: int, change: int) -> None:
    data = zip_bytes({"a.jpg": b"0123456789" * 20, "b.jpg": b"x"}, method)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = archive.getinfo("a.jpg")
    with pytest.raises(ValueError, match=r"x\.zip: member 'a\.jpg' is cut or corrupt"):
        contents(path, patched(data, "a.jpg", size=info.file_size + change))
    if method == zipfile.ZIP_STORED or change < 0:  # a byte behind the end of a packed stream is no part of it
        with pytest.raises(ValueError, match=r"x\.zip: member 'a\.jpg' is cut or corrupt"):
            contents(path, patched(data, "a.jpg", packed=info.compress_size + change))


@pytest.mark.parametrize("method", METHODS)
def test_a_flipped_byte_or_checksum_is_noticed(path: Path, method: int) -> None:
    content = random.Random(0).randbytes(300)
    data = zip_bytes({"a.jpg": content}, method)
    for position in range(36, 335, 13):  # behind 30 bytes of header, 5 of name, 1 of deflate's with spare bits
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(ValueError, match=r"x\.zip: member 'a\.jpg' (is cut or corrupt|does not unpack)"):
            contents(path, bytes(damaged))
    with pytest.raises(ValueError, match=r"x\.zip: member 'a\.jpg' is cut or corrupt"):
        contents(path, patched(data, "a.jpg", crc=zlib.crc32(content) ^ 1))


def test_a_member_without_its_header_is_noticed(path: Path) -> None:
    data = bytearray(zip_bytes(PLAIN))
    data[0:4] = b"PK\5\6"
    with pytest.raises(ValueError, match=r"x\.zip: member 'a\.jpg' has no header at byte 0"):
        contents(path, bytes(data))
    with pytest.raises(ValueError, match=r"x\.zip: member 'empty' lies within another or beyond the archive's end"):
        members(path, patched(zip_bytes(PLAIN), "empty", header=3_000_000_000))


def test_every_cut_is_noticed(path: Path) -> None:
    whole = zip_bytes(PLAIN, zipfile.ZIP_DEFLATED)
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"x\.zip"):
            contents(path, whole[:length])
    assert contents(path, whole) == PLAIN


def test_an_archive_that_shrinks_after_it_was_listed_is_noticed(path: Path) -> None:
    whole = zip_bytes(PLAIN)
    found = members(path, whole)
    for length in (0, 20, 34, 38):
        path.write_bytes(whole[:length])
        with (
            path.open("rb") as file,
            pytest.raises(ValueError, match=r"x\.zip: member 'a\.jpg' (has no header|is cut)"),
        ):
            read_zip(file, "x.zip", found[0])


def test_what_is_absent_or_no_zip_is_named(path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.zip does not exist"):
        zip_members(path, max_members=1, max_bytes=1)
    for data in (b"", b"<html>quota exceeded</html>", bytes(1000), b"PK\5\6" + b"\xff" * 18):
        with pytest.raises(ValueError, match=r"x\.zip is cut or is not a zip archive"):
            members(path, data)
    assert members(path, zip_bytes({})) == []


def test_whatever_is_damaged_is_a_value_error_that_names_the_archive(path: Path) -> None:
    chance = random.Random(0)
    whole = zip_bytes({**PLAIN, "packed": bytes(range(50)) * 5}, zipfile.ZIP_DEFLATED)
    outcomes = {True: 0, False: 0}
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 2, 4])):
            data[chance.randrange(len(data))] = chance.choice([0, 127, 255, chance.randrange(256)])
        try:
            contents(path, bytes(data))
        except ValueError as error:
            assert "x.zip" in str(error)
            outcomes[False] += 1
        else:
            outcomes[True] += 1
    assert outcomes[False] > outcomes[True] > 100
