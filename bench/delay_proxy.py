"""A slow link: forwards TCP connections and delays every byte by half a round trip each way."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any


class DelayProxy:
    """Listens on a free port of 127.0.0.1 and forwards to `port`, `one_way_s` later each way.

    Bandwidth is not limited and order is kept, as on a long fast line.
    """

    def __init__(self, port: int, one_way_s: float) -> None:
        self._target = port
        self._one_way_s = one_way_s
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="delay-proxy")
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Drop all connections."""

        async def stop() -> None:
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._call(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            pending: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
            for work in (self._read(source, pending), self._write(sink, pending)):
                task = self._loop.create_task(work)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _read(
        self, source: asyncio.StreamReader, pending: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        data = b"first"
        while data:
            data = await source.read(1 << 16)
            pending.put_nowait((self._loop.time() + self._one_way_s, data))

    async def _write(
        self, sink: asyncio.StreamWriter, pending: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        try:
            while True:
                due, data = await pending.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not data:
                    return
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            return
        finally:
            sink.close()
