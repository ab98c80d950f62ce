"""The queue from workers to the driver, with a mailbox in this process instead of an actor."""

import asyncio
import pickle
import queue
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from ray import cloudpickle
from ray.exceptions import RayActorError

from segmodel.core.dice import Step
from segmodel.core.errors import SegmodelError
from segmodel.runtime import messages as module
from segmodel.runtime.messages import Mailbox, receive_messages
from segmodel.training.messages import StepsDone


class LocalMailbox:
    """Put and take as the actor does; dies after `lives` calls of take."""

    def __init__(self, lives: int = 10**6) -> None:
        self.waiting: queue.Queue[bytes] = queue.Queue()
        self.lives, self.killed = lives, False

    def put(self, packed: bytes) -> None:
        self.waiting.put(packed)

    def take(self) -> list[bytes]:
        if self.lives == 0:
            raise RayActorError
        self.lives -= 1
        return [self.waiting.get()]

    def kill(self) -> None:
        self.killed = True


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> LocalMailbox:
    found = LocalMailbox()
    monkeypatch.setattr(module, "start_shared_actor", lambda kind: found)
    return found


def send(handle: Callable[[int], None], count: int, error: Exception | None = None) -> None:
    """Put 0, 1, …, then end the block, with an error if there is one."""
    with receive_messages(handle) as to_driver:
        for number in range(count):
            to_driver.put(number)
        if error is not None:
            raise error


def test_all_messages_are_handled_however_long_that_takes(
    mailbox: LocalMailbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.02)
    handled: list[int] = []

    def slowly(number: int) -> None:
        time.sleep(0.005)
        handled.append(number)

    send(slowly, 45)
    assert handled == list(range(45))
    assert "messages of the workers are still to be handled" in capsys.readouterr().out
    assert mailbox.killed


def test_an_error_over_one_message_is_raised_after_the_others_were_handled(
    mailbox: LocalMailbox,
) -> None:
    handled: list[int] = []

    def picky(number: int) -> None:
        if number == 1:
            raise ValueError("one")
        handled.append(number)

    with pytest.raises(ValueError, match="one"):
        send(picky, 4)
    assert handled == [0, 2, 3]


def test_a_mailbox_that_dies_is_an_error_and_no_silence(
    mailbox: LocalMailbox,
) -> None:
    mailbox.lives = 1
    handled: list[int] = []
    with pytest.raises(SegmodelError, match="may be lost"):
        send(handled.append, 2)
    assert handled == [0]


def test_an_error_of_the_block_is_raised_and_one_of_the_handler_printed(
    mailbox: LocalMailbox, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> None:
        raise ValueError("unknown message")

    with pytest.raises(KeyError, match="block"):
        send(broken, 1, KeyError("block"))
    assert "was not handled: unknown message" in capsys.readouterr().out


def test_a_mailbox_gives_all_that_wait_and_waits_where_none_does() -> None:
    async def use() -> tuple[list[bytes], list[bytes]]:
        box = Mailbox()
        await box.put(b"1")
        await box.put(b"2")
        first = await box.take()
        later = asyncio.create_task(box.take())
        await asyncio.sleep(0)
        assert not later.done()
        await box.put(b"3")
        return first, await later

    assert asyncio.run(use()) == ([b"1", b"2"], [b"3"])


def test_the_driver_understands_messages_without_torch() -> None:
    """Importing it would cost every training seconds."""
    step = Step(step=1, epoch=1, lr=1e-3, momentum=0.9, loss=0.5)
    packed = cloudpickle.dumps(StepsDone((step,)))
    look = "assert 'segmodel.training.messages' in sys.modules and 'torch' not in sys.modules"
    code = f"import pickle, sys; pickle.loads({packed!r}); {look}"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert pickle.loads(packed) == StepsDone((step,))
