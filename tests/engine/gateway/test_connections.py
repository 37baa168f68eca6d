"""Connections: how many there are, and how slow they may be, over real sockets."""

import asyncio
import json
import resource
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from aiohttp import web

from weft.engine.gateway import connections as connections_module
from weft.engine.gateway.connections import MAX_CONNECTIONS, Connections, num_connections

Connect = Callable[[], Awaitable[tuple[Reader, Writer]]]
Use = Callable[[Connections, Connect], Awaitable[None]]

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LONG = 16 << 20  # more than the kernel keeps for a reader that does not read


async def answer(request: web.Request) -> web.StreamResponse:
    """What is asked for by its path."""
    if request.path == "/long":
        response = web.StreamResponse()
        response.content_length = LONG
        await response.prepare(request)
        for _ in range(LONG >> 16):
            await response.write(bytes(1 << 16))
        return response
    if request.path == "/fail":
        raise RuntimeError("secret words")
    return web.Response(text="fine")


def serve(what: Use, **settings: float) -> None:
    """Run something with a server that has these bounds."""

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        assert runner.server is not None
        connections = Connections(runner.server, **settings)  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(connections, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        try:
            async with asyncio.timeout(20):
                await what(connections, partial(asyncio.open_connection, "127.0.0.1", port))
        finally:
            listener.close()
            await runner.cleanup()

    asyncio.run(main())


async def read_head(reader: Reader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def is_ended(reader: Reader) -> bool:
    """Whether the other side ends the connection; what it says until then is thrown away."""
    try:
        while await reader.read(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


async def counted(connections: Connections, number: int) -> None:
    while len(connections) != number:
        await asyncio.sleep(0.001)


def test_half_of_the_open_files_are_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert num_connections() == 512
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, -1))
    assert num_connections() == MAX_CONNECTIONS


def test_a_connection_is_served_again_and_again() -> None:
    async def use(connections: Connections, connect: Connect) -> None:
        reader, writer = await connect()
        for _ in range(3):
            writer.write(GET)
            assert (await read_head(reader)).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(4) == b"fine"
        assert len(connections) == 1
        writer.close()
        await counted(connections, 0)

    serve(use)


def test_requests_in_one_piece_are_answered_in_their_order() -> None:
    async def use(connections: Connections, connect: Connect) -> None:
        reader, writer = await connect()
        writer.write(GET * 100)
        for _ in range(100):
            await read_head(reader)
            assert await reader.readexactly(4) == b"fine"
        writer.close()

    serve(use)


def test_one_over_the_limit_is_told_so_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "REFUSED_S", 0.1)

    async def use(connections: Connections, connect: Connect) -> None:
        kept = [await connect() for _ in range(2)]
        await counted(connections, 2)
        reader, writer = await connect()
        writer.write(GET)
        head = await read_head(reader)
        assert head.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 1" in head
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        assert body == {"error": "too many connections are open", "code": "busy"}
        assert await is_ended(reader)
        writer.close()
        assert len(connections) == 2
        kept[0][1].close()
        await counted(connections, 1)
        reader, writer = await connect()
        writer.write(GET)
        assert (await read_head(reader)).startswith(b"HTTP/1.1 200")
        for _, each in [*kept, (reader, writer)]:
            each.close()

    serve(use, max_connections=2)


@pytest.mark.parametrize(
    "said", [b"", b"GET / HTTP/1.1\r\nHost: a\r\n"], ids=["nothing", "half a head"]
)
def test_one_that_begins_no_request_is_ended(said: bytes) -> None:
    async def use(connections: Connections, connect: Connect) -> None:
        reader, writer = await connect()
        writer.write(said)
        assert await is_ended(reader)
        writer.close()

    serve(use, idle_s=0.1)


def test_a_head_that_drips_is_ended() -> None:
    async def use(connections: Connections, connect: Connect) -> None:
        reader, writer = await connect()
        writer.write(GET[:-2])
        ended = asyncio.create_task(is_ended(reader))
        while not ended.done():
            writer.write(b"a: b\r\n")
            await asyncio.wait([ended], timeout=0.02)
        writer.close()

    serve(use, idle_s=0.2)


def test_a_reader_that_takes_nothing_is_cut_off() -> None:
    async def use(connections: Connections, connect: Connect) -> None:
        _, writer = await connect()
        writer.write(GET.replace(b"/ ", b"/long ", 1))
        await counted(connections, 1)
        await counted(connections, 0)
        writer.close()

    serve(use, stall_s=0.2)


def test_a_reader_that_takes_some_now_and_then_gets_everything() -> None:
    async def use(connections: Connections, connect: Connect) -> None:
        reader, writer = await connect()
        writer.write(GET.replace(b"/ ", b"/long ", 1))
        await read_head(reader)
        got = 0
        while got < LONG:
            got += len(await reader.read(1 << 20))
            await asyncio.sleep(0.001)
        writer.close()

    serve(use, stall_s=0.5)


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00 secret",
        b"GET / HTTP/1.1\r\nX-API-Key: secret\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nsecret" + b"a" * 9000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nabcde",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 500 + b"\r\n",
    ],
    ids=["TLS", "zero", "long", "two lengths", "smuggling", "many"],
)
def test_what_is_no_http_is_answered_and_neither_repeated_nor_logged(
    said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(connections: Connections, connect: Connect) -> None:
        reader, writer = await connect()
        writer.write(said)
        got = await reader.read()
        assert got.startswith(b"HTTP/1.")
        assert b" 400 " in got.split(b"\r\n")[0]
        assert b"secret" not in got
        assert b'"code":"malformed"' in got
        writer.close()

    caplog.set_level("DEBUG")
    serve(use)
    assert "secret" not in caplog.text


def test_a_fault_is_logged_without_its_words(caplog: pytest.LogCaptureFixture) -> None:
    async def use(connections: Connections, connect: Connect) -> None:
        reader, writer = await connect()
        writer.write(GET.replace(b"/ ", b"/fail ", 1))
        assert b" 500 " in await read_head(reader)
        writer.close()

    serve(use)
    assert "secret" not in caplog.text
    assert "RuntimeError" in caplog.text
