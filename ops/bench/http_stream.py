"""A client that costs little per token: one POST on one connection, over plain asyncio streams.

httpx spends three times as long on a chunk (measured with 32 streams: 145 us against 45), on
cores that the server under test may share. What arrives is only noted with its time; it is
taken apart after the burst.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from urllib.parse import urlsplit

from ops.client import key_header

_READ_BYTES = 65536


class BrokenAnswer(Exception):
    """The connection ended within the answer, or what came is not HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to POST."""

    host: str
    port: int
    authority: str  # as the Host header has it
    path: str
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str, path: str, api_key: str | None = None) -> Endpoint:
        """`path` below the server's root `url`; a root as OpenAI's clients take it, with /v1, too.

        Raises:
            ValueError: not a http:// URL.
        """
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r} does not begin with http:// and a host")
        root = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, parts.port or 80, parts.netloc, root + path, api_key)


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, and the body in pieces, each with the perf_counter() time it was read at.

    `written_s`: when the request was with the kernel. What is later than due by then, we are.
    """

    status: int
    pieces: list[tuple[float, bytes]]
    written_s: float = 0.0

    def text(self) -> str:
        """The whole body."""
        return b"".join(piece for _, piece in self.pieces).decode(errors="replace")

    def events(self) -> Iterator[tuple[float, str]]:
        """Time and data of each server-sent event. Lines end at line feeds only."""
        rest = b""
        for time_s, piece in self.pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield time_s, line.removeprefix(b"data:").decode(errors="replace").strip()


async def post(endpoint: Endpoint, body: bytes) -> Answer:
    """Connect, send a JSON body, read the answer to its end, close.

    Raises:
        OSError: no connection, or it was reset.
        BrokenAnswer: see there.
    """
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    try:
        writer.write(
            f"POST {endpoint.path} HTTP/1.1\r\nHost: {endpoint.authority}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"{_key_line(endpoint.api_key)}Connection: close\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        written_s = perf_counter()
        status_line, *headers = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        status = int(status_line.split()[1])
        chunked = any(
            header.startswith(b"transfer-encoding:") and b"chunked" in header for header in headers
        )
        pieces = [piece async for piece in (_chunks(reader) if chunked else _until_closed(reader))]
    except (EOFError, ValueError, IndexError, asyncio.LimitOverrunError) as error:
        raise BrokenAnswer(f"the answer broke off or is not HTTP/1.1: {error}") from error
    finally:
        writer.close()
    return Answer(status, pieces, written_s)


def _key_line(api_key: str | None) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in key_header(api_key).items())


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[tuple[float, bytes]]:
    """Bodies of chunks; what may stand behind the last one is of no interest."""
    while size := int((await reader.readuntil(b"\n")).split(b";")[0], 16):
        chunk = await reader.readexactly(size + 2)  # with the line end behind it
        yield perf_counter(), chunk[:-2]


async def _until_closed(reader: asyncio.StreamReader) -> AsyncIterator[tuple[float, bytes]]:
    while piece := await reader.read(_READ_BYTES):
        yield perf_counter(), piece
