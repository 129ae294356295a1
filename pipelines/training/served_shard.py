"""A parameter server as an actor, which Ray asks, and workers of its own machine by a socket.

Where vectors lie in shared memory a push is a thousand bytes, and by Ray most of its time would be Ray's.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from threading import Lock, Thread
from typing import Any, NamedTuple, TypeAlias

from pipelines.training.messages import Push, Reply, ServerPlan
from pipelines.training.parameter_server import ParameterShard
from pipelines.training.shared_vectors import this_machine


class Address(NamedTuple):
    """Where a server listens. name: of the socket, which is no file and so leaves none; key: that both sides have."""

    name: str
    key: bytes


ServerConnection: TypeAlias = "Connection[Push, Reply | Exception]"  # a worker's end


def connected(address: Address) -> ServerConnection:
    """A connection to a server. Raises OSError, EOFError or AuthenticationError where there is none."""
    connection: ServerConnection = Client(address.name, "AF_UNIX", authkey=address.key)
    return connection


class ServedShard:
    """A `ParameterShard` that answers one question at a time, whichever way it comes."""

    def __init__(self, plan: ServerPlan, index: int) -> None:
        self._shard = ParameterShard(plan, index)
        self._lock = Lock()
        self._address = Address(f"\0parameter-server-{secrets.token_hex(8)}", secrets.token_bytes(32))
        if this_machine() is not None:  # else no worker will ask for the address: such sockets are Linux's alone, too
            Thread(target=self._listen, args=(Listener(self._address.name, "AF_UNIX"),), daemon=True).start()

    def address(self) -> Address:
        """For a worker that shares memory with this server, and only for it: who has the key is believed."""
        return self._address

    def ask(self, method: str, *values: Any) -> Any:
        """What a method of the shard returns."""
        with self._lock:
            return getattr(self._shard, method)(*values)

    def _listen(self, listener: Listener) -> None:
        while True:
            Thread(target=self._answer, args=(listener.accept(),), daemon=True).start()

    def _answer(self, worker: Connection[Reply | Exception, Push]) -> None:
        with worker, suppress(EOFError, OSError, AuthenticationError):  # the worker's end
            # Here and not in `accept`, where one who stops in the middle would keep all others out.
            deliver_challenge(worker, self._address.key)
            answer_challenge(worker, self._address.key)
            while True:
                worker.send(self._told(worker.recv()))

    def _told(self, push: Push) -> Reply | Exception:
        try:
            reply: Reply = self.ask("push", push)
        except Exception as error:  # noqa: BLE001 - the worker raises it
            return error
        return reply
