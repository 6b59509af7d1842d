from __future__ import annotations

import asyncio
from threading import Event

from progressor.rpc.asgi import Answer, Application, Message, page


def test_a_page_that_is_not_there_when_the_server_stops() -> None:
    begun, end = Event(), Event()
    told: list[Message] = []

    def read() -> Answer:
        begun.set()
        end.wait()
        return Answer()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        told.append(message)

    async def ask() -> None:
        scope = {"path": "/slow", "method": "GET", "headers": [], "state": {}}
        asked = asyncio.create_task(Application({"/slow": page(read)})(scope, receive, send))
        await asyncio.to_thread(begun.wait)
        asked.cancel()
        await asyncio.wait([asked])
        end.set()

    asyncio.run(ask())
    assert told[0]["status"] == 503
    assert told[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
