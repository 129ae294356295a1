"""One image from one URL, or the cause of its death: what `crawl` stands on.

http and https go through aiohttp: on the open web, answers that do not state their length are common, and obstore
refuses those ("Content-Length Header missing"); one client also serves all hosts. s3, gs, az and file go through
obstore, which finds their credentials in the environment (AWS_*, GOOGLE_*, AZURE_*); without any, S3 buckets are read
unsigned, as public ones are.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit
from weakref import WeakValueDictionary

from pipelines.archives import members, opened, read

if TYPE_CHECKING:
    import aiohttp
    from obstore.store import ObjectStore

    from pipelines.crawl import Crawl

# How files begin that `pipelines.images` reads, and their usual ending.
MAGICS = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png", b"GIF8": "gif", b"BM": "bmp"}
PASSING = (408, 425, 429, 500, 502, 503, 504)  # of a server that may answer otherwise in a while
REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 10
PEEK = 1024  # bytes that tell an image from a web page; of what is none, hardly more are read
PAUSE, MAX_PAUSE = 0.5, 60.0  # seconds before a second try, doubled each time; the most that a Retry-After is obeyed
KEEP_ALIVE = 3.0  # seconds; longer ones, times thousands of hosts, would use up the file descriptors
UNREACHABLE = {"unknown host", "no connection", "timeout"}  # causes that could be this machine's
OBJECT_SCHEMES = ("s3", "gs", "az", "file")
AWS_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                   "AWS_CONTAINER_CREDENTIALS_FULL_URI")  # fmt: skip
URL_ERRORS = (ValueError, LookupError)  # what yarl and aiohttp raise for odd ones, InvalidURL included
_BUCKET = re.compile(r"[\w.-]*", re.ASCII)  # on others obstore panics; a file's is empty
MAX_MIRROR_FILES = 1_000_000
HEADERS = {"User-Agent": "mobilenets-crawl/1", "Accept": "image/jpeg,image/png,image/*;q=0.8,*/*;q=0.5"}

Get = Callable[[str], Coroutine[Any, Any, bytes]]  # URL -> image; raises DeadError


class DeadError(Exception):
    """A URL gives no image. `cause` is one of a few phrases, for counting.

    is_passing: it may be otherwise in a while; `pause`: how many seconds the server asks to wait until then.
    """

    def __init__(self, cause: str, is_passing: bool = False, pause: float = 0.0) -> None:
        super().__init__(cause)
        self.cause, self.is_passing, self.pause = cause, is_passing, pause


def kind(image: bytes) -> str:
    """The ending of a file that begins so: "jpg", "png", "gif" or "bmp".

    Raises DeadError: "empty", "web page", "not an image".
    """
    for magic, ending in MAGICS.items():
        if image.startswith(magic):
            return ending
    if not image:
        raise DeadError("empty")
    text = image[:PEEK].decode("latin-1").lstrip("\xef\xbb\xbf \t\r\n").lower()
    is_page = text.startswith(("<!doctype html", "<html", "<head", "<body", "<script", "<!--"))
    raise DeadError("web page" if is_page else "not an image")


@contextmanager
def mirrored(path: Path, max_bytes: int) -> Iterator[Get]:
    """What stands in for the network: a tar whose members are named by URLs, percent-encoded throughout."""
    with opened(path) as file:
        found = members(file, str(path), max_members=MAX_MIRROR_FILES, max_bytes=1 << 40)
        held = {member.name: member for member in found}

        async def get(url: str) -> bytes:
            await asyncio.sleep(0)  # so that Ctrl-C is heard
            member = held.get(quote(url, safe=""))
            if member is None:
                raise DeadError("not in the mirror")
            if member.size > max_bytes:
                raise DeadError("too large")
            image = read(file, str(path), member)
            kind(image)
            return image

        yield get


@asynccontextmanager
async def network(options: Crawl) -> AsyncIterator[Get]:
    """The network itself, asked no more often and no more at once than `options` allow."""
    import aiohttp

    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(options.connections))  # names of dead hosts take long to look up
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),  # `_Slots` limits them
        cookie_jar=aiohttp.DummyCookieJar(),  # a real one would grow with the number of hosts
        headers=HEADERS,
        timeout=aiohttp.ClientTimeout(total=None),  # `_http` and `_object` see to it
        trust_env=True,
    ) as session:
        slots, stores = _Slots(options.connections, options.per_host), dict[str, "ObjectStore"]()

        async def once(url: str) -> bytes:
            if url.partition(":")[0].lower() in ("http", "https"):
                return await _http(session, slots, url, options)
            return await _object(stores, slots, url, options)

        async def get(url: str) -> bytes:
            for attempt in range(1, options.attempts + 1):
                try:
                    return await once(url)
                except DeadError as dead:
                    if not dead.is_passing or attempt == options.attempts:
                        raise
                    await asyncio.sleep(min(max(PAUSE * 2 ** (attempt - 1), dead.pause), MAX_PAUSE))
            raise AssertionError

        yield get


class _Slots:
    """Permissions to ask a host: so many at once, and so many of one host. What waits for a host holds up no other."""

    def __init__(self, connections: int, per_host: int) -> None:
        self.all, self.per_host = asyncio.Semaphore(connections), per_host
        self.hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def of(self, host: str) -> AsyncIterator[None]:
        slot = self.hosts.setdefault(host, asyncio.Semaphore(self.per_host))
        async with slot, self.all:
            yield


async def _http(session: aiohttp.ClientSession, slots: _Slots, url: str, options: Crawl) -> bytes:
    """One try. Redirects are followed here, so that the host which they lead to is not asked too often either."""
    import yarl

    for _ in range(MAX_REDIRECTS + 1):
        try:
            # As it is listed if it can be sent like that, so that signed URLs hold; otherwise in quoted form.
            at = yarl.URL(url, encoded=url.isascii() and url.isprintable() and " " not in url)
            host = at.host
        except URL_ERRORS:
            host = None
        if not host or not host.isprintable() or at.scheme not in ("http", "https"):
            raise DeadError("bad URL")
        with _told():
            async with (
                slots.of(host),
                asyncio.timeout(options.timeout_seconds),
                session.get(at, allow_redirects=False) as answer,
            ):
                if answer.status not in REDIRECTS or "Location" not in answer.headers:
                    return await _body(answer, options.max_bytes)
                url = _joined(at, answer.headers["Location"])
    raise DeadError("too many redirects")


def _joined(at: Any, location: str) -> str:
    import yarl

    try:
        return str(at.join(yarl.URL(location, encoded=location.isascii() and " " not in location)))
    except URL_ERRORS:
        raise DeadError("bad URL") from None


async def _body(answer: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The image that an answer brings, read no further than to the point where it can be refused."""
    if answer.status != 200:
        after = answer.headers.get("Retry-After", "")
        pause = float(after) if after.isascii() and after.isdigit() else 0.0
        raise DeadError(f"HTTP {answer.status}", answer.status in PASSING, pause)
    is_page = answer.content_type == "text/html"
    if (answer.content_length or 0) > max_bytes:
        raise DeadError("too large")
    image = bytearray()
    is_known = False
    async for block in answer.content.iter_any():
        image += block
        if not is_known and len(image) >= PEEK:
            is_known = bool(_kind_of_answer(image, is_page))
        if len(image) > max_bytes:
            raise DeadError("too large")
    _kind_of_answer(image, is_page)
    return bytes(image)


def _kind_of_answer(image: bytearray, is_page: bool) -> str:
    """As `kind`, but a server that calls something a web page is believed, unless it is an image."""
    try:
        return kind(bytes(image[:PEEK]))
    except DeadError as dead:
        if is_page and dead.cause == "not an image":
            raise DeadError("web page") from None
        raise


@contextmanager
def _told() -> Iterator[None]:
    """Turns what aiohttp and the system raise into causes."""
    import aiohttp

    try:
        yield
    except TimeoutError:
        raise DeadError("timeout", is_passing=True) from None
    except aiohttp.ClientConnectorDNSError as error:
        is_passing = getattr(error.os_error, "errno", None) == socket.EAI_AGAIN
        raise DeadError("unknown host", is_passing) from None
    except aiohttp.ClientSSLError:
        raise DeadError("no secure connection") from None
    except aiohttp.ClientConnectorError as error:
        if error.os_error.errno in (errno.EMFILE, errno.ENFILE):  # ours, not the host's
            raise error.os_error from None
        raise DeadError("no connection", is_passing=True) from None
    except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, ConnectionError):
        raise DeadError("broken off", is_passing=True) from None
    except URL_ERRORS:
        raise DeadError("bad URL") from None
    except aiohttp.ClientError:  # what answers there does not speak HTTP
        raise DeadError("bad answer") from None


async def _object(stores: dict[str, ObjectStore], slots: _Slots, url: str, options: Crawl) -> bytes:
    """One try to read an object of a bucket, or a file."""
    import obstore
    from obstore.exceptions import BaseError

    try:
        parts = urlsplit(url)
        if parts.scheme not in OBJECT_SCHEMES or not _BUCKET.fullmatch(parts.netloc):
            raise DeadError("bad URL")
        root = f"{parts.scheme}://{parts.netloc}/"
        if root not in stores:
            stores[root] = _store(root, options.timeout_seconds)
        async with slots.of(root), asyncio.timeout(options.timeout_seconds):
            answer = await obstore.get_async(stores[root], unquote(parts.path).lstrip("/"))
            if answer.meta["size"] > options.max_bytes:
                raise DeadError("too large")
            image = bytes(await answer.bytes_async())
    except TimeoutError:
        raise DeadError("timeout", is_passing=True) from None
    except FileNotFoundError:
        raise DeadError("no such file" if parts.scheme == "file" else "HTTP 404") from None
    except ValueError:  # as of a path that climbs
        raise DeadError("bad URL") from None
    except BaseError as error:
        status = re.search(r"status code: (\d{3})", str(error))
        number = int(status[1]) if status else None
        cause = f"HTTP {number}" if number else "no connection"
        raise DeadError(cause, number is None or number in PASSING) from None
    kind(image)
    return image


def _store(root: str, timeout_seconds: float) -> ObjectStore:
    """The client of a bucket, or of the file system. Repeating is left to `network`."""
    from obstore.store import from_url

    timeout = f"{round(timeout_seconds * 1000)}ms"
    common: Any = {
        "client_options": {"allow_http": True, "timeout": timeout, "connect_timeout": timeout},
        "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=timeout_seconds)},
    }
    if root.startswith("file:"):
        return from_url(root)
    if root.startswith("s3:") and not any(map(os.environ.get, AWS_CREDENTIALS)):
        return from_url(root, skip_signature=True, **common)
    return from_url(root, **common)
