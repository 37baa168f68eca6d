"""Routes that hand out files: the SDK is given addresses that need no key, and fetches from them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime

from aiohttp import web

from ...client.errors import NotFound, Unauthorized
from .call import CHECKPOINT, Call, Gateway, Reply, Route, json_reply
from .downloads import ARCHIVE, Archive, Download, no_file
from .names import from_weft


async def external_weights_urls(call: Call) -> Reply:
    """An address for each file of exported weights."""
    path = call.checkpoint()
    if path.kind != "external_weights":
        raise NotFound(f"{from_weft(str(path))} holds no external weights")
    download = await Download.open(call.door, str(path))
    download.close()
    token, until = call.gateway.links.make(call.door, str(path))
    urls = {name: f"{call.origin}/files/{token}/{name}" for name in download.files}
    return json_reply({"urls": urls, "expires": datetime.fromtimestamp(until, UTC).isoformat()})


async def archive(call: Call) -> Reply:
    """The address of a checkpoint's files in one archive, for SDKs before 0.36."""
    path = call.checkpoint()
    await call.ask("checkpoints", str(path))
    token, until = call.gateway.links.make(call.door, str(path))
    url = f"{call.origin}/files/{token}/{ARCHIVE}"
    expires = datetime.fromtimestamp(until, UTC)
    headers = {"Location": url, "Expires": expires.strftime("%a, %d %b %Y %H:%M:%S GMT")}
    body = json_reply({"url": url, "expires": expires.isoformat()}).body
    return Reply(body, status=302, headers=headers)


async def send_file(gateway: Gateway, request: web.Request) -> web.StreamResponse:
    """Stream a file to whoever has its address."""
    link = gateway.links.find(request.match_info["token"])
    name = request.match_info["name"]
    try:
        door = await gateway.doors.admit(link.key)
    except Unauthorized:
        raise no_file() from None
    with door.used():
        download = await Download.open(door, link.path)
        try:
            if name == ARCHIVE:
                whole = Archive(download)
                return await _stream(request, whole.read(), whole.num_bytes)
            if name not in download.files:
                raise NotFound(f"no file {name[:80]!r} in this checkpoint")
            return await _stream(request, download.read(name), download.files[name])
        finally:
            download.close()


async def _stream(
    request: web.Request, pieces: AsyncGenerator[bytes | memoryview], num_bytes: int
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    response.content_length = num_bytes
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    async with aclosing(pieces) as each:
        async for piece in each:
            await response.write(piece)
    await response.write_eof()
    return response


ROUTES = [
    Route("GET", f"{CHECKPOINT}/external_weights_urls", external_weights_urls),
    Route("GET", f"{CHECKPOINT}/archive", archive),
]
