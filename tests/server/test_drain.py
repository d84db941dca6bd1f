"""Stopping: what runs is finished, what was acknowledged is kept, nothing new is begun."""

from __future__ import annotations

import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (  # type: ignore[import-untyped]
    ProtoReflectionDescriptorDatabase,
)

from kvclient.channel import bearer, discover_token
from kvclient.lanes.frames import parse_receipt
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvproto.v1 import store_pb2 as pb
from kvproto.v1.store_pb2_grpc import StoreServiceStub
from kvstore.core.api import PutNote, Status
from kvstore.core.errors import ConfigError, KVError
from kvstore.core.tokens import Credential
from kvstore.server.access.auth import TokenAuthenticator, known_tokens
from kvstore.server.config import ServerConfig
from kvstore.server.grpc_server import RpcServer
from kvstore.server.store_servicer import register_store
from tests.server.chunks import key, make_blob, make_service
from tests.server.raw import body_of, head_of, put_on
from tests.server.serving import TOKENS, serving

COMMAND = "from kvclient.cli.main import main; raise SystemExit(main())"


@contextmanager
def store_process(data_dir: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `larder store` as a process; yield it and its address. It is killed at the end if it still runs."""
    command = [sys.executable, "-c", COMMAND, "store", "--address", "127.0.0.1:0", "--data-dir", str(data_dir), "--memory", "4MiB", *flags]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LARDER_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.search(r"listens on (\S+)", line)
            assert match, (line, process.stderr and process.stderr.read())
            yield process, match[1]
        finally:
            if process.poll() is None:
                process.kill()


def dial(address: str, data_dir: Path) -> RemoteStore:
    """Connect to a process with the token it wrote."""
    return RemoteStore(address, discover_token(address, data_dir=data_dir, environ={}), retry=Retry(attempts=1))


def test_sigterm_keeps_every_acknowledged_put(tmp_path: Path) -> None:
    """More chunks than memory holds, none of them asked to be durable, and a writer that never stops."""
    acknowledged: list[bytearray] = []
    with store_process(tmp_path, "--disk", "256MiB") as (process, address):
        transport = dial(address, tmp_path)
        is_far = threading.Event()

        def write() -> None:
            for seed in range(1000):
                blob = make_blob(seed, part_nbytes=50_000)
                try:
                    transport.put(blob, PutNote())
                except KVError:
                    return
                acknowledged.append(blob)
                if len(acknowledged) == 40:
                    is_far.set()

        writer = threading.Thread(target=write)
        writer.start()
        assert is_far.wait(30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        writer.join()
        transport.close()
    with store_process(tmp_path, "--disk", "256MiB") as (process, address):
        transport = dial(address, tmp_path)
        hits = transport.lookup([key(blob) for blob in acknowledged])
        assert {hit.status for hit in hits} == {Status.READY}
        for blob in random.Random(0).sample(acknowledged, 5):
            reader = transport.get(key(blob))
            assert reader is not None
            assert reader.part(0)
            reader.close()
        transport.close()


def test_a_second_store_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    """Two indexes of one directory would disagree."""
    with store_process(tmp_path) as _:
        command = [sys.executable, "-c", COMMAND, "store", "--address", "127.0.0.1:0", "--data-dir", str(tmp_path)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 4
    assert second.stderr.startswith("larder: ")
    assert "Traceback" not in second.stderr


def test_a_wrong_flag_ends_with_a_sentence(tmp_path: Path) -> None:
    """And with exit code 2."""
    command = [sys.executable, "-c", COMMAND, "store", "--data-dir", str(tmp_path), "--memory", "much", "--print-config"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "tiers.memory.capacity" in done.stderr


def wait_for_refusal(stub: StoreServiceStub) -> None:
    """Make new calls until the server takes none."""
    with suppress(grpc.RpcError):
        while True:
            stub.Stats(pb.StatsRequest(), metadata=bearer(TOKENS["alpha"]), timeout=5)


def test_a_running_put_is_finished_while_the_server_drains() -> None:
    """Its last piece comes after the stop began."""
    blob, messages = make_blob(), queue.Queue[bytes | None]()
    service = make_service()
    server = RpcServer(ServerConfig(address="127.0.0.1:0", drain_s=10))
    known = known_tokens([Credential("alpha", TOKENS["alpha"])])
    server.start([register_store(service, TokenAuthenticator(lambda: known), server)])
    with grpc.insecure_channel(server.address) as channel:
        stub = StoreServiceStub(channel)  # type: ignore[no-untyped-call]
        messages.put(head_of(blob))
        call = put_on(channel).future(iter(messages.get, None), metadata=bearer(TOKENS["alpha"]))
        while not server.budget.lent_bytes:
            threading.Event().wait(0.01)
        drained: list[bool] = []
        drain = threading.Thread(target=lambda: drained.append(server.drain()))
        drain.start()
        wait_for_refusal(stub)
        messages.put(body_of(blob))
        messages.put(None)
        assert parse_receipt(call.result(timeout=10)).stored
        drain.join()
    assert drained == [True]
    assert service.bind("alpha").get(key(blob)) is not None
    service.close()


def test_health_and_reflection_answer_without_a_token() -> None:
    """Orchestrators and people look at a server with neither."""
    with serving(make_service()) as server, grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "kvproto.v1.StoreService"):
            assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == health_pb2.HealthCheckResponse.SERVING
        assert "kvproto.v1.StoreService" in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_watching_health_is_unimplemented_rather_than_a_held_thread() -> None:
    """The health protocol lets a client go on without it."""
    with serving(make_service()) as server, grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            next(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()))
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_address_that_is_taken_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    """Rather than shared with whoever has it; gRPC is not asked, which would say more on standard error."""
    with serving(make_service()) as first:
        second = RpcServer(ServerConfig(address=first.address))
        with pytest.raises(ConfigError, match="can't be bound: Address already in use"):
            second.start([])
    assert capfd.readouterr().err == ""


def test_an_address_of_another_machine_is_refused() -> None:
    """A documentation address is nobody's."""
    server = RpcServer(ServerConfig(address="203.0.113.1:7420", allow_plaintext=True))
    with pytest.raises(ConfigError, match="can't be bound: Cannot assign requested address"):
        server.start([])


def test_a_restarted_server_is_found_again() -> None:
    """By the same transport, without being told."""
    blob = make_blob()
    with serving(make_service()) as first:
        address = first.address
        transport = RemoteStore(address, TOKENS["alpha"], retry=Retry(attempts=50, longest_pause_s=0.2, seed=1))
        transport.put(blob, PutNote())
    with serving(make_service(), ServerConfig(address=address, drain_s=0.5)):
        assert transport.get(key(blob)) is None
        assert transport.put(blob, PutNote()).stored
    transport.close()
