"""Five hundred clients that connect and go silent: the next one is served in time, and what they cost comes back when they are gone."""

from __future__ import annotations

import ctypes
import gc
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from kvclient.channel import bearer
from kvclient.lanes.choice import LaneName
from kvclient.lanes.frames import Kind
from kvclient.lanes.socket_frames import SocketFrames
from kvclient.retry import Retry
from kvstore.core.api import PutNote
from kvstore.server.access.auth import Identity
from kvstore.server.grpc_server import RpcServer
from tests.lanes.raw import connect, doors_of, soon
from tests.server.chunks import key, make_blob, make_service
from tests.server.leaks import open_files
from tests.server.raw import head_of, put_on
from tests.server.serving import TOKENS, dialing, serving
from tests.server.ways import parts_of, read

N_SILENT = 500
DEADLINE_S = 10.0
STUBBORN = Retry(attempts=100, longest_pause_s=0.2, seed=1)  # a full server says so at once
GONE_S = 10.0
MEMORY_SLACK_NBYTES = 32 << 20
BLOB = make_blob(part_nbytes=300_000)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5)  # and empty settings
Silence = Callable[[RpcServer, ExitStack], object]


def say_nothing(lane: str) -> Silence:
    """Connect to a lane."""
    return lambda server, stack: stack.enter_context(connect(doors_of(server).open_lane(Identity("alpha")), lane))


def show_a_ticket(lane: str) -> Silence:
    """Connect to a lane, show a ticket and ask for nothing."""

    return lambda server, stack: welcomed(server, stack, lane)


def welcomed(server: RpcServer, stack: ExitStack, lane: str) -> SocketFrames:
    """Connect and show a ticket."""
    offered = doors_of(server).open_lane(Identity("alpha"))
    frames = SocketFrames(connect(offered, lane), lane)
    stack.callback(frames.close)
    frames.reads_ahead = False
    frames.send(Kind.HELLO, offered.ticket, soon())
    frames.expect(Kind.WELCOME, soon())
    if lane == "shm":
        socket.close(frames.receive_descriptor(soon()))
    return frames


def announce_a_put(lane: str) -> Silence:
    """Show a ticket, and send the head of a put that never comes."""

    def enter(server: RpcServer, stack: ExitStack) -> None:
        frames = welcomed(server, stack, lane)
        frames.send(Kind.PUT, head_of(SMALL), soon(), body_nbytes=len(SMALL) - len(head_of(SMALL)))

    return enter


def dial_grpc(preface: bytes) -> Silence:
    """Connect to gRPC and say so much of HTTP/2."""

    def enter(server: RpcServer, stack: ExitStack) -> None:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        connection.sendall(preface)

    return enter


def begin_a_call(server: RpcServer, stack: ExitStack) -> None:
    """Begin a put by gRPC, on a channel of its own."""
    channel = stack.enter_context(grpc.insecure_channel(server.address, (("grpc.use_local_subchannel_pool", 1),)))
    over = threading.Event()
    stack.callback(over.set)
    call = put_on(channel).future(held_until(over), metadata=bearer(TOKENS["alpha"]), timeout=60)
    stack.callback(call.cancel)


def held_until(over: threading.Event) -> Iterator[bytes]:
    """Send the head of a put, and nothing more."""
    yield head_of(SMALL)
    over.wait()


SMALL = make_blob(1)
WAYS: dict[str, tuple[LaneName, Silence]] = {
    "shm before the ticket": ("shm", say_nothing("shm")),
    "shm behind the ticket": ("shm", show_a_ticket("shm")),
    "shm in a put": ("shm", announce_a_put("shm")),
    "tcp before the ticket": ("tcp", say_nothing("tcp")),
    "tcp behind the ticket": ("tcp", show_a_ticket("tcp")),
    "tcp in a put": ("tcp", announce_a_put("tcp")),
    "grpc without a word": ("grpc", dial_grpc(b"")),
    "grpc without a call": ("grpc", dial_grpc(PREFACE)),
    "grpc in a call": ("grpc", begin_a_call),
}


@pytest.fixture(scope="module")
def many_files() -> Iterator[None]:
    """Both ends of every connection are this process's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * N_SILENT + 1024
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"{wanted} open files are needed, the system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def server(many_files: None) -> Iterator[RpcServer]:
    """A server as it is configured by default."""
    with serving(make_service()) as running:
        yield running


def n_threads() -> int:
    """Return how many threads there are beside those that answer calls, which stay for the next call."""
    return sum(not thread.name.startswith("rpc") for thread in threading.enumerate())


def memory_nbytes() -> int:
    """Return the resident memory of this process, less what the allocator keeps for later."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def is_served(server: RpcServer, lane: LaneName) -> bool:
    """Put a chunk, read it and delete it, each within the deadline."""
    with dialing(server, retry=STUBBORN, timeout_s=DEADLINE_S, lane=lane) as remote:
        is_stored = remote.put(BLOB, PutNote()).stored
        is_right = read(remote, BLOB) == parts_of(BLOB)
        return is_stored and is_right and remote.delete([key(BLOB)]) == 1


def held() -> dict[str, int]:
    """Return what this process holds."""
    return {"threads": n_threads(), "files": len(open_files()), "bytes": memory_nbytes()}


def more_than(before: dict[str, int]) -> dict[str, int]:
    """Return of what there is more than before, and how much; memory may grow by a little."""
    now = held() | {"bytes": memory_nbytes() - MEMORY_SLACK_NBYTES}
    return {name: count - before[name] for name, count in now.items() if count > before[name]}


@pytest.mark.parametrize(("lane", "silence"), WAYS.values(), ids=WAYS.keys())
def test_five_hundred_silent_clients_do_not_stop_the_next(server: RpcServer, lane: LaneName, silence: Silence) -> None:
    """Whatever they said before they fell silent."""
    assert is_served(server, lane)
    before = held()
    with ExitStack() as stack:
        for _ in range(N_SILENT):
            silence(server, stack)
        assert is_served(server, lane)
    ends = time.monotonic() + GONE_S
    while more_than(before) and time.monotonic() < ends:
        gc.collect()
        time.sleep(0.02)
    assert not more_than(before)
