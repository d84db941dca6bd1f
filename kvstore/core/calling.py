"""On whose behalf this thread works: the request's id and its tenant, for logs, reports and whoever is called next."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar

REQUEST_KEY = "larder-request-id"  # the metadata in which a request's id travels
_ID = re.compile("[0-9A-Za-z_-]{8,64}")
_request_id: ContextVar[str] = ContextVar("larder_request_id", default="")
_tenant: ContextVar[str] = ContextVar("larder_tenant", default="")


def request_id() -> str:
    """Return the id of the request that this thread works for; "" outside of one."""
    return _request_id.get()


def tenant() -> str:
    """Return the tenant that this thread works for; "" outside of a call."""
    return _tenant.get()


def join_request(offered: str) -> None:
    """Work for the request that a caller names from now on; what is no id is ignored."""
    if is_request_id(offered):
        _request_id.set(offered)


def begin_request() -> str:
    """Return the id of the request that this thread works for; where it has none, a new one that it has from now on."""
    if not _request_id.get():
        _request_id.set(new_request_id())
    return _request_id.get()


def work_for(name: str) -> None:
    """Work for a tenant from now on."""
    _tenant.set(name)


def new_request_id() -> str:
    """Return an id that nobody has: 16 hex digits."""
    return uuid.uuid4().hex[:16]


def is_request_id(text: str) -> bool:
    """Tell whether a text from elsewhere may serve as an id: 8 to 64 letters, digits, "_" and "-"."""
    return _ID.fullmatch(text) is not None
