"""One tree of errors: drawn as it is, and told apart on the wire as far as its codes allow."""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
import pytest

from kvstore.core import errors
from kvstore.core.errors import KVError, error_for_code


def tree(root: type[KVError] = KVError) -> Iterator[type[KVError]]:
    """Iterate over the classes of the module's tree."""
    yield root
    for cls in root.__subclasses__():
        if cls.__module__ == errors.__name__:
            yield from tree(cls)


CLASSES = list(tree())


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """A reader believes it."""
    assert re.findall(r"\b[A-Z]\w+Error\b(?=\s{2,}|$)", errors.__doc__ or "", re.MULTILINE) == [cls.__name__ for cls in CLASSES]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_code_is_a_status_and_comes_back_as_a_class_of_that_status(cls: type[KVError]) -> None:
    """Subclasses may become their shared parent, never something else."""
    assert cls.code in grpc.StatusCode.__members__
    assert error_for_code(cls.code).code == cls.code


@pytest.mark.parametrize("code", ["", "OK", "NO SUCH", "CANCELLED"])
def test_an_unknown_code_is_an_error_all_the_same(code: str) -> None:
    """Newer servers may have more."""
    assert error_for_code(code) is KVError


def test_what_may_succeed_later_says_so() -> None:
    """Retries read it."""
    retryable = {cls.__name__ for cls in CLASSES if cls.retryable}
    assert retryable == {"CorruptError", "EvictedError", "CapacityError", "QuotaError", "TierUnavailableError", "ClosedError"}
