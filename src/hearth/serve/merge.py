"""Several asynchronous iterators as one: the answers of a request side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _End:
    """A source has ended, by itself or with an error."""

    error: Exception | None = None


async def merged(sources: Sequence[AsyncIterator[Item]]) -> AsyncIterator[Item]:
    """The items of all sources in the order of their coming, and so in order within each.

    The first error of a source is raised; the other sources are then cancelled, as they are when
    the consumer leaves. A single source is handed on as it is, without a task and a queue.
    """
    if len(sources) == 1:
        async for item in sources[0]:
            yield item
        return
    queue: asyncio.Queue[Item | _End] = asyncio.Queue()

    async def pump(source: AsyncIterator[Item]) -> None:
        try:
            async for item in source:
                queue.put_nowait(item)
        except Exception as error:  # noqa: BLE001 -- handed to the consumer, who raises it
            queue.put_nowait(_End(error))
        else:
            queue.put_nowait(_End())

    tasks = [asyncio.ensure_future(pump(source)) for source in sources]
    try:
        num_open = len(tasks)
        while num_open:
            found = await queue.get()
            if not isinstance(found, _End):
                yield found
            elif found.error is not None:
                raise found.error
            else:
                num_open -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
