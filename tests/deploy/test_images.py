"""What goes into the images: pinned, complete, and for a user without rights."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.architecture.source import ROOT

DOCKER = ROOT / "deploy" / "docker"
IMAGES = ("store", "worker")
COMMON = {"store", "cli", "lz4", "otel"}
LOCKS = {"store": COMMON, "worker": COMMON | {"worker", "kernels"}, "worker-ray": COMMON | {"worker", "kernels", "ray"}}


def instructions(image: str) -> list[tuple[str, str]]:
    """Return the instructions of an image's Dockerfile, continued lines joined."""
    text = (DOCKER / f"{image}.Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, rest in lines]


def locked(lock: str) -> dict[str, str]:
    """Return what a lock installs: version by name."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (DOCKER / f"{lock}.lock").read_text(), re.MULTILINE))


def project() -> dict[str, Any]:
    """Return the project table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_holds_what_the_project_requires(lock: str) -> None:
    """A requirement that is newer than the lock would fail when the server starts: run `make lock`."""
    extras = project()["optional-dependencies"]
    wanted = [Requirement(text) for text in [*project()["dependencies"], *(t for extra in LOCKS[lock] for t in extras[extra])]]
    versions = locked(lock)
    lacking = [str(each) for each in wanted if each.name != "kv-larder" and not each.specifier.contains(versions.get(each.name, "0"))]
    assert not lacking


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_a_digest(lock: str) -> None:
    """pip then refuses a file that was replaced."""
    pinned = re.findall(r"^\S+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", (DOCKER / f"{lock}.lock").read_text(), re.MULTILINE)
    assert len(pinned) == len(locked(lock))


def test_a_worker_with_ray_has_the_versions_of_one_without() -> None:
    """What is measured with one holds for the other."""
    assert locked("worker").items() <= locked("worker-ray").items()


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_installs_nothing_that_is_not_locked(image: str) -> None:
    """A digest that nobody asks for pins nothing; the worker's lock is an argument of its build."""
    lock = {"store": "store", "worker": "${LOCK}"}[image]
    assert any(f"--require-hashes --only-binary :all: -r /locks/{lock}.lock" in rest for name, rest in instructions(image) if name == "RUN")
    assert [rest for name, rest in instructions(image) if name == "ARG"][1:] == ([] if image == "store" else ["LOCK=worker"])


def test_the_store_goes_without_torch() -> None:
    """It is a tenth of the size of the worker, and starts where no GPU is."""
    assert not locked("store").keys() & {"torch", "triton", "transformers", "ray"}
    assert locked("worker").keys() >= {"torch", "triton", "nvidia-cublas"}


@pytest.mark.parametrize("image", IMAGES)
def test_bases_are_pinned_to_a_full_version(image: str) -> None:
    """The same build next month begins from the same release."""
    base, *_ = [rest for name, rest in instructions(image) if name == "ARG"]
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-[a-z]+", base)
    assert [rest.split()[0] for name, rest in instructions(image) if name == "FROM"] == ["${BASE}", "${BASE}"]


@pytest.mark.parametrize("image", IMAGES)
def test_images_run_as_a_numbered_user_that_is_not_root(image: str) -> None:
    """Kubernetes can check a number, and not a name, against runAsNonRoot."""
    assert [rest for name, rest in instructions(image) if name == "USER"] == ["10001:10001"]


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_there_and_let_into_the_build(image: str) -> None:
    """`.dockerignore` keeps everything out but what it names."""
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [source for name, rest in instructions(image) if name == "COPY" and "--from" not in rest for source in rest.split()[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert any(Path(source).match(pattern) for pattern in let_in)


@pytest.mark.parametrize("image", IMAGES)
def test_every_package_of_the_wheel_is_in_the_build(image: str) -> None:
    """A folder that is not copied would be missing from the wheel without an error."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    copied = {rest.split()[0] for name, rest in instructions(image) if name == "COPY"}
    assert {package.split("/")[0] for package in packages} <= copied
