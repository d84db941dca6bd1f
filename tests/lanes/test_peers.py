"""Who may come near the shared memory: processes of the store's own user, and nobody else."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvclient.lanes.frames import Kind
from kvclient.lanes.socket_frames import SocketFrames
from kvstore.core.api import PutNote
from kvstore.core.errors import AuthError, ConfigError
from kvstore.server.config import LanesConfig
from kvstore.server.grpc_server import RpcServer
from kvstore.server.lanes.listener import check_peer
from tests.lanes.raw import connect, doors_of, is_hung_up, offer, soon
from tests.server.chunks import make_blob, make_service
from tests.server.serving import LOOPBACK, dialing, serving
from tests.server.ways import parts_of, read

BLOB = make_blob(part_nbytes=50_000)
NOBODY = 65534


@pytest.fixture
def server() -> Iterator[RpcServer]:
    """A server that shares its memory."""
    service = make_service()
    service.bind("alpha").put(BLOB, PutNote())
    with serving(service) as running:
        yield running


@pytest.fixture
def descriptor(server: RpcServer) -> Iterator[int]:
    """The memory as a client is given it."""
    offered = offer(server)
    frames = SocketFrames(connect(offered, "shm"), "shm")
    frames.reads_ahead = False
    frames.send(Kind.HELLO, offered.ticket, soon())
    frames.expect(Kind.WELCOME, soon())
    given = frames.receive_descriptor(soon())
    yield given
    os.close(given)
    frames.close()


def test_a_peer_of_the_same_user_is_let_in() -> None:
    """The system says who it is, not the peer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    check_peer(ours)
    ours.close()
    theirs.close()


def test_a_peer_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By both users' numbers."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with pytest.raises(AuthError, match=f"user {user} may not use the memory of user {user + 1}"):
        check_peer(ours)
    ours.close()
    theirs.close()


def test_a_client_of_another_user_is_hung_up_on_before_its_ticket_is_read(server: RpcServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no memory is handed over."""
    offered = offer(server)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    connection = connect(offered, "shm")
    assert is_hung_up(connection)
    connection.close()
    monkeypatch.undo()
    assert doors_of(server)._tickets.redeem(offered.ticket).tenant == "alpha"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("is_open", [False, True], ids=["closed folder", "open folder"])
def test_a_process_of_another_user_does_not_get_in(server: RpcServer, is_open: bool) -> None:
    """By the folder's permissions; and where somebody opened folder and socket, by its credentials."""
    path = Path(offer(server).shm_path)
    if is_open:
        path.parent.chmod(0o755)
        path.chmod(0o777)
    code = f"import os, socket; os.setuid({NOBODY}); s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); print(s.recv(1))"
    ended = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert ended.stdout.strip() in (("b''",) if is_open else ("",))
    assert ("PermissionError" in ended.stderr) is not is_open


def test_socket_and_folder_are_closed_to_other_users(server: RpcServer) -> None:
    """In whatever mode files are made here."""
    path = Path(offer(server).shm_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_folder_of_ones_own_is_made_for_its_user_only(tmp_path: Path) -> None:
    """The socket in it is."""
    lanes = LanesConfig(shm="on", shm_directory=str(tmp_path / "lanes"))
    with serving(make_service(), replace(LOOPBACK, lanes=lanes)) as server:
        path = Path(offer(server).shm_path)
        assert path.parent == tmp_path / "lanes"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        with dialing(server, lane="shm") as remote:
            assert remote.put(BLOB, PutNote()).stored


def test_a_folder_whose_name_is_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    """With the setting and the length that works."""
    lanes, service = LanesConfig(shm="on", shm_directory=str(tmp_path / ("x" * 100))), make_service()
    with pytest.raises(ConfigError, match="shm_directory"), serving(service, replace(LOOPBACK, lanes=lanes)):
        pass
    service.close()


def test_a_server_that_ends_takes_its_socket_away() -> None:
    """Nobody dials a door that is gone."""
    with serving(make_service()) as server:
        path = Path(offer(server).shm_path)
        assert path.exists()
    assert not path.exists()


def test_a_client_can_not_map_the_memory_for_writing(descriptor: int, server: RpcServer) -> None:
    """Nor through a second descriptor of the same file, nor by any other call."""
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    for file in (descriptor, again):
        with pytest.raises(PermissionError):
            mmap.mmap(file, 0, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        for write in (lambda f: os.pwrite(f, b"x", 0), lambda f: os.ftruncate(f, 0), lambda f: os.ftruncate(f, 1 << 40)):
            with pytest.raises(PermissionError):
                write(file)
        with pytest.raises(PermissionError):
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, 0)
    os.close(again)
    with dialing(server, lane="shm") as remote:
        assert read(remote, BLOB) == parts_of(BLOB)


def test_a_mapping_for_reading_can_not_be_made_writable(descriptor: int) -> None:
    """In a process of its own, which the system would kill for a write."""
    code = (
        "import ctypes, mmap, sys; pages = mmap.mmap(int(sys.argv[1]), 0, prot=mmap.PROT_READ);"
        "import numpy; at = numpy.frombuffer(pages, numpy.uint8).ctypes.data;"
        "libc = ctypes.CDLL(None, use_errno=True); libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int];"
        "print(libc.mprotect(at, 4096, 3), ctypes.get_errno())"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(descriptor)], pass_fds=[descriptor], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["-1", "13"]
