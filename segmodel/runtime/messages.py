"""Messages from the workers of a job to its driver; if any are lost, the job says so."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ray import cloudpickle
from ray.exceptions import RayError

from segmodel.core.errors import SegmodelError
from segmodel.core.progress import say
from segmodel.runtime.shared_actor import SharedActor, start_shared_actor

END = b""
"""The driver's own last message."""
PATIENCE_S = 30.0
"""How often a driver that is still handling messages after the work says so."""


class Mailbox:
    """Keeps packed messages until the driver takes them; an actor beside the driver.

    It does not unpack them: what the messages are made of need not be imported here.
    """

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._arrived = asyncio.Event()

    async def put(self, packed: bytes) -> None:
        """Add a message."""
        self._waiting.append(packed)
        self._arrived.set()

    async def take(self) -> list[bytes]:
        """All messages that are waiting, oldest first; waits until there is one."""
        await self._arrived.wait()
        self._arrived.clear()
        taken, self._waiting = self._waiting, []
        return taken


class MessageQueue:
    """Takes messages from workers for the driver; any process of the job can receive a copy."""

    def __init__(self, mailbox: SharedActor) -> None:
        self._mailbox = mailbox

    def put(self, message: object) -> None:
        """Send a message; once this returns, the worker's death cannot lose it."""
        self._mailbox.put(cloudpickle.dumps(message))  # type: ignore[no-untyped-call]


@contextmanager
def receive_messages(handle: Callable[[Any], None]) -> Iterator[MessageQueue]:
    """Give workers a queue; a thread of the driver calls `handle` with each message, in order.

    When the block ends, all messages that were put before have been handled.

    Raises:
        Exception: the first error of `handle`; the other messages were still handled.
        SegmodelError: the process that kept the messages died, so some may be lost.
    """
    mailbox = start_shared_actor(Mailbox)
    listener = _Listener(mailbox, handle)
    listener.start()
    try:
        yield MessageQueue(mailbox)
    except BaseException:
        listener.finish()
        for error in listener.errors:  # the block's own error is the one that is raised
            say(f"a message from the workers was not handled: {error}")
        raise
    listener.finish()
    if listener.errors:
        raise listener.errors[0]


class _Listener(threading.Thread):
    """Takes messages and handles them until `END` comes."""

    def __init__(self, mailbox: SharedActor, handle: Callable[[Any], None]) -> None:
        super().__init__(name="messages", daemon=True)
        self.mailbox, self.handle = mailbox, handle
        self.errors: list[Exception] = []
        self.waiting = 0

    def run(self) -> None:
        """Handle every message; errors are kept for the caller's thread."""
        try:
            while self._handle_all(self.mailbox.take()):
                pass
        except RayError as error:
            self.errors.append(
                SegmodelError(
                    "the process that keeps the workers' messages for the driver died, some may be "
                    f"lost ({type(error).__name__}); see Ray's logs, then give the same command "
                    "again"
                )
            )

    def _handle_all(self, packed: list[bytes]) -> bool:
        """Handle messages; return whether more may come."""
        for number, message in enumerate(packed):
            self.waiting = len(packed) - number
            if message == END:
                return False
            try:
                self.handle(cloudpickle.loads(message))
            except Exception as error:  # noqa: BLE001 - raised in the caller's thread
                self.errors.append(error)
        return True

    def finish(self) -> None:
        """Wait until all messages so far are handled, however long that takes."""
        with suppress(RayError):  # the thread reports it
            self.mailbox.put(END)
        self.join(PATIENCE_S)
        while self.is_alive():
            say(f"{self.waiting:,} messages of the workers are still to be handled")
            self.join(PATIENCE_S)
        self.mailbox.kill()
