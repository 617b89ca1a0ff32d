"""A server on this machine that answers as it was told to, and classes that say they come from some package."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

S = TypeVar("S", bound="Service")


class Service:
    """`plan` holds (status, headers, body) for the next requests, None to break the connection; then it answers."""

    def __init__(self) -> None:
        self.plan: list[tuple[int, dict[str, str], bytes] | None] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                request, *lines = head.decode().strip().split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.requests.append({"request": request, **body})
                self.headers.append(headers)
                planned = self.plan.pop(0) if self.plan else (200, {}, self.answer(body))
                if planned is None:
                    break
                status, extra, content = planned
                fields = {"Content-Type": "application/json", "Content-Length": str(len(content)), **extra}
                lines = [f"HTTP/1.1 {status} Whatever", *[f"{name}: {value}" for name, value in fields.items()]]
                writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def answer(self, body: dict[str, Any]) -> bytes:
        """What it answers when nothing is planned."""
        raise NotImplementedError


@asynccontextmanager
async def serving(service: S) -> AsyncIterator[S]:
    """The service, reachable at its `url`."""
    server = await asyncio.start_server(service.handle, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    service.url = f"http://{host}:{port}/v1"
    try:
        yield service
    finally:
        server.close()
        await server.wait_closed()


def package_class(module: str, name: str, **members: Any) -> type:
    """A class that says it comes from that package, and one of a user's derived from it."""
    base = type("Base", (), {"__module__": module, **members})
    return type(name, (base,), {"__module__": "app"})
