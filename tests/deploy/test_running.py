"""The rendered store, run: its init command, its configuration, its probe and its stop, with the paths moved into a folder."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.deploy.rendering import NAMESPACE, RELEASE, Rendered, variant
from tests.e2e.processes import LARDER, Process, start

HOST = f"{RELEASE}-store.{NAMESPACE}.svc"


def moved(text: str, folder: Path) -> str:
    """Return a command or configuration with the pod's paths in a folder and ports that the system chooses."""
    for path in ("/etc/larder", "/run/larder", "/var/lib/larder"):
        text = text.replace(path, f"{folder}{path}")
    return text.replace("0.0.0.0:7420", "0.0.0.0:0").replace("tcp_port = 7422", "tcp_port = 0")


@pytest.fixture(scope="module")
def release() -> Rendered:
    """Return the chart with its defaults."""
    return variant("defaults")


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory, release: Rendered) -> Path:
    """Lay out what Kubernetes mounts, secrets readable by a group as it does, and run the init container's command."""
    folder = tmp_path_factory.mktemp("pod")
    for path in ("etc/larder/tls", "etc/larder/auth", "etc/larder/config", "run/larder", "var/lib/larder"):
        (folder / path).mkdir(parents=True)
    authority = trustme.CA()
    pair = authority.issue_cert(HOST)
    authority.cert_pem.write_to_path(folder / "etc/larder/tls/ca.crt")
    pair.cert_chain_pems[0].write_to_path(folder / "etc/larder/tls/tls.crt")
    pair.private_key_pem.write_to_path(folder / "etc/larder/tls/tls.key")
    for name, text in (("tokens", f"default {'t' * 32} admin\n"), ("secret", "ab" * 32)):
        (folder / "etc/larder/auth" / name).write_text(text)
        (folder / "etc/larder/auth" / name).chmod(0o440)
    (folder / "etc/larder/config/store.toml").write_text(moved(release.config_text("store"), folder))
    (init,) = release.pod("store")["initContainers"]
    subprocess.run([moved(word, folder) for word in init["command"]], check=True)
    return folder


@pytest.fixture(scope="module")
def store(pod: Path, release: Rendered) -> Iterator[Process]:
    """Run the container's command."""
    process = start(pod, *(moved(word, pod) for word in release.container("store")["args"]))
    yield process
    if process.popen.poll() is None:
        process.popen.kill()
        process.popen.wait()


def probe(release: Rendered, pod: Path, store: Process) -> subprocess.CompletedProcess[str]:
    """Run the readiness probe's command against the store's port."""
    command = release.container("store")["readinessProbe"]["exec"]["command"]
    port = store.address.rpartition(":")[2]
    words = [moved(word, pod).replace(":7420", f":{port}") for word in command[1:]]
    return subprocess.run([*LARDER, *words], capture_output=True, text=True, timeout=30, check=False)


def test_the_store_reads_copied_credentials_and_its_own_probe_finds_it(release: Rendered, pod: Path, store: Process) -> None:
    """Over TLS, at 127.0.0.1, under the name of the service."""
    assert probe(release, pod, store).returncode == 0


def test_a_client_with_the_token_is_served_by_the_name_of_the_service(pod: Path, store: Process) -> None:
    """As a worker in another pod is."""
    port = store.address.rpartition(":")[2]
    words = [
        "stats",
        f"--address=127.0.0.1:{port}",
        f"--server-name={HOST}",
        f"--ca={pod}/etc/larder/tls/ca.crt",
        f"--token={'t' * 32}",
        "--json",
    ]
    done = subprocess.run([*LARDER, *words], capture_output=True, text=True, timeout=30, check=False)
    assert '"name": "disk"' in done.stdout, done.stderr


def test_a_stopped_store_ends_well_before_the_pod_is_killed(release: Rendered, pod: Path, store: Process) -> None:
    """SIGTERM is what Kubernetes sends; the probe then fails."""
    began = time.monotonic()
    store.popen.send_signal(signal.SIGTERM)
    assert store.popen.wait(60) == 0
    assert time.monotonic() - began < release.pod("store")["terminationGracePeriodSeconds"]
    assert probe(release, pod, store).returncode != 0


def test_credentials_that_a_group_may_read_are_refused_without_the_copy(pod: Path, release: Rendered) -> None:
    """Why the init container is there: a mounted Secret is readable by the pod's group."""
    text = moved(release.config_text("store"), pod).replace("/run/larder/tokens", "/etc/larder/auth/tokens")
    (pod / "direct.toml").write_text(text)
    done = subprocess.run([*LARDER, "store", "--config", str(pod / "direct.toml")], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "chmod 600" in done.stderr
