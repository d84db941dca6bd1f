"""The part of RESP2, the protocol of Redis, that carries records: commands in a pipeline, and values that land where they are wanted.

    command    *<words>\\r\\n, then for each word $<bytes>\\r\\n<word>\\r\\n
    replies    +<text>\\r\\n   -<refusal>\\r\\n   :<number>\\r\\n   $<bytes>\\r\\n<value>\\r\\n   $-1\\r\\n for a value that is not there

Everything that a server says is checked before it is used: lines and values have a longest length, and a value that lands has exactly the
length of its room. After anything else the stream cannot be trusted any more, and the connection is of no more use.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kvstore.core.errors import CapacityError, CorruptError, DeadlineError, KVError, TierUnavailableError
from kvstore.store.redis.socket import Channel

T = TypeVar("T")
Word = bytes | Sequence[memoryview]  # the second is one word in several buffers
_AHEAD_NBYTES = 16 << 10  # the longest line, and the most that is received ahead of where it belongs
_BATCH_NBYTES = 64 << 10  # small commands wait until there are so many bytes of them, or until a reply is wanted
_BY_REFERENCE_NBYTES = 4096  # shorter buffers are copied beside their headers
_NUMBER = re.compile(rb"-?\d{1,18}")


@dataclass(frozen=True)
class Refusal:
    """A server's answer that begins with "-": it understood and would not."""

    text: str

    @property
    def code(self) -> str:
        """The first word, such as "OOM" or "MOVED"."""
        return self.text.split(" ", 1)[0]

    def error(self, where: str) -> KVError:
        """Return the error that this means for a caller."""
        if self.code == "OOM":
            return CapacityError(f"{where}: Redis is full; raise its maxmemory or let it evict ({self.text})")
        if self.code == "WRONGTYPE":
            return CorruptError(f"{where}: a key of this store holds something else ({self.text})")
        hint = "; it is a node of a cluster: set cluster to on" if self.code == "MOVED" else ""
        return TierUnavailableError(f"{where}: refused: {self.text}{hint}")


Reply = bytes | int | Refusal | None


class Connection:
    """One stream of commands and their replies, in order. Not thread-safe.

    Commands may be sent while replies are still on their way; `n_owed` counts those. A caller bounds it, so that never both sides wait for
    the other to read: replies that nobody reads stay short, and so do commands to values that nobody reads.

    Parameters
    ----------
    channel : Channel
        The open stream; this object closes it.
    where : str
        Whom it leads to, for messages.
    timeout_s : float
        Most seconds for sending a batch, and for receiving one reply.
    failed : callable
        Called when the server does not answer, answers too late, or says what is not RESP2.
    """

    def __init__(self, channel: Channel, where: str, timeout_s: float, failed: Callable[[], None] = lambda: None) -> None:
        self._channel = channel
        self._where = where
        self._timeout_s = timeout_s
        self._failed = failed
        self._bytes = bytearray(_AHEAD_NBYTES)
        self._ahead = memoryview(self._bytes)
        self._start = self._end = 0  # of what was received ahead
        self._until = 0.0
        self._unsent: list[memoryview] = []
        self._unsent_nbytes = self._n_unsent = 0
        self.n_owed = 0
        self._is_broken = False

    @property
    def is_clean(self) -> bool:
        """Whether the next reply would belong to the next command."""
        return not (self.n_owed or self._is_broken or self._end > self._start)

    def is_stale(self) -> bool:
        """Tell whether an idle connection was closed by the server, or has something to read that nobody asked for."""
        return self._channel.is_stale()

    def ask(self, *words: Word) -> None:
        """Queue one command; it leaves with the next `flush`, or when enough bytes wait. Long buffers are not copied."""
        for part in encode(words):
            self._unsent.append(part)
            self._unsent_nbytes += part.nbytes
        self._n_unsent += 1
        self.n_owed += 1
        if self._unsent_nbytes > _BATCH_NBYTES:
            self.flush()

    def flush(self) -> None:
        """Send what is queued; raises TierUnavailableError or DeadlineError."""
        parts, self._unsent, self._unsent_nbytes, self._n_unsent = self._unsent, [], 0, 0
        if parts:
            self._within("take the commands", lambda: self._channel.send(parts, self._until))

    def reply(self, most_nbytes: int = 512) -> Reply:
        """Return the next reply; raises TierUnavailableError also for a value longer than `most_nbytes`, or DeadlineError."""
        self._flush_if_awaited()
        return self._within("answer", lambda: self._reply(most_nbytes))

    def land(self, room: memoryview) -> bool | Refusal:
        """Receive the value of the next reply straight into `room`; returns whether there is one, and it is not empty.

        Copies: the kernel's, and one more of at most 16 KiB that came together with the line before. Raises CorruptError for a value of any
        other length than the room's, TierUnavailableError or DeadlineError; the connection is of no use after any of them.
        """
        self._flush_if_awaited()
        return self._within("send a whole value", lambda: self._land(room))

    def close(self) -> None:
        """Close the socket. Safe to call again."""
        self._channel.close()

    def _within(self, what: str, call: Callable[[], T]) -> T:
        """Give the call its seconds, and turn what a socket raises into our errors."""
        self._until = time.monotonic() + self._timeout_s
        try:
            return call()
        except (TimeoutError, BlockingIOError) as error:
            self._break()
            raise DeadlineError(f"{self._where}: did not {what} within {self._timeout_s:.3f} s") from error
        except (OSError, _GarbageError) as error:
            self._break()
            raise TierUnavailableError(f"{self._where}: {error}") from error

    def _break(self) -> None:
        self._is_broken = True
        self._failed()

    def _flush_if_awaited(self) -> None:
        """Send what is queued when the next reply belongs to it; until then more commands may join."""
        if self.n_owed == self._n_unsent:
            self.flush()

    def _reply(self, most_nbytes: int) -> Reply:
        kind, rest = self._line()
        if kind == b"-":
            answer: Reply = Refusal(rest[:200].decode("utf-8", "replace"))
        elif kind == b"+":
            answer = rest
        elif kind == b":":
            answer = _number(rest)
        elif kind == b"$":
            answer = self._value(_number(rest), most_nbytes)
        else:
            raise _GarbageError(f"a reply begins with {kind!r}")
        self.n_owed -= 1
        return answer

    def _land(self, room: memoryview) -> bool | Refusal:
        kind, rest = self._line()
        if kind == b"-":
            self.n_owed -= 1
            return Refusal(rest[:200].decode("utf-8", "replace"))
        if kind != b"$":
            raise _GarbageError(f"a value begins with {kind!r}")
        nbytes = _number(rest)
        if nbytes not in (-1, 0, room.nbytes):
            self._is_broken = True
            raise CorruptError(f"{self._where}: a piece has {nbytes} B instead of {room.nbytes} B")
        if nbytes >= 0:
            self._receive(room[:nbytes])
        self.n_owed -= 1
        return nbytes > 0

    def _line(self) -> tuple[bytes, bytes]:
        """Return the first byte and the rest of the next line."""
        while (end := self._bytes.find(b"\r\n", self._start, self._end)) < 0:
            self._receive_more()
        line = bytes(self._ahead[self._start : end])
        self._start = end + 2
        return line[:1], line[1:]

    def _value(self, nbytes: int, most_nbytes: int) -> bytes | None:
        if nbytes == -1:
            return None
        if not 0 <= nbytes <= most_nbytes:
            raise _GarbageError(f"a value of {nbytes} B was announced where {most_nbytes} B are the most")
        room = bytearray(nbytes)
        self._receive(memoryview(room))
        return bytes(room)

    def _receive(self, room: memoryview) -> None:
        """Fill the room, first with what came ahead, and take the end of the line behind it."""
        count = min(self._end - self._start, room.nbytes)
        room[:count] = self._ahead[self._start : self._start + count]
        self._start += count
        if count < room.nbytes:
            self._channel.receive_all(room[count:], self._until)
        while self._end - self._start < 2:
            self._receive_more()
        if not self._bytes.startswith(b"\r\n", self._start):
            raise _GarbageError("a value is longer than announced")
        self._start += 2

    def _receive_more(self) -> None:
        """Receive more ahead, behind what is there."""
        count = self._end - self._start
        if self._start:
            self._ahead[:count] = self._ahead[self._start : self._end]
            self._start, self._end = 0, count
        if count == _AHEAD_NBYTES:
            raise _GarbageError(f"a line is longer than {_AHEAD_NBYTES} B")
        self._end += self._channel.receive(self._ahead[count:], self._until)


def encode(words: Sequence[Word]) -> Iterator[memoryview]:
    """Return one command in parts; copies words that are bytes, which are names and numbers, and buffers shorter than 4 KiB."""
    small = bytearray(b"*%d\r\n" % len(words))
    for word in words:
        if isinstance(word, bytes):
            small += b"$%d\r\n%s\r\n" % (len(word), word)
            continue
        small += b"$%d\r\n" % sum(buffer.nbytes for buffer in word)
        for buffer in word:
            if buffer.nbytes < _BY_REFERENCE_NBYTES:
                small += buffer
            else:
                yield memoryview(small)
                yield buffer
                small = bytearray()
        small += b"\r\n"
    yield memoryview(small)


class _GarbageError(Exception):
    """What came is not RESP2, or not what was asked for."""


def _number(text: bytes) -> int:
    if not _NUMBER.fullmatch(text):
        raise _GarbageError(f"{text[:20]!r} is not a number")
    return int(text)
