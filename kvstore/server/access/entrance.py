"""Where every call of a store comes in: who calls, what it may do, and what is written down of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from kvstore.core import calling
from kvstore.core.errors import ForbiddenError, KVError
from kvstore.server.access.audit import AuditLog
from kvstore.server.access.auth import Identity, TokenAuthenticator
from kvstore.server.service import BoundStore, StoreService


@dataclass(frozen=True)
class Entrance:
    """Lets callers in to their tenant's store. Refusals are raised; those of nobody we know are noted by the server's guard."""

    service: StoreService
    authenticate: TokenAuthenticator
    audit: AuditLog

    def caller(self, context: grpc.ServicerContext) -> Identity:
        """Return who calls; raises AuthError."""
        caller = self.authenticate(context.invocation_metadata())
        calling.work_for(caller.tenant)
        return caller

    def bind(self, context: grpc.ServicerContext) -> BoundStore:
        """Return the store of the calling tenant, once for each call; raises AuthError, or QuotaError when too many are under way."""
        store = self.service.bind(self.caller(context).tenant)
        store.allowance.begin_call()
        if not context.add_callback(store.allowance.end_call):
            store.allowance.end_call()  # the caller is gone already
        return store

    @contextmanager
    def as_admin(self, context: grpc.ServicerContext, call: str, target: str = "") -> Iterator[BoundStore]:
        """Make a call that only an admin may make, and leave an audit line with its outcome; raises ForbiddenError for anybody else."""
        caller, outcome = self.caller(context), KVError.code
        if not caller.is_admin:
            error = ForbiddenError(f"{call} {target}".strip() + " needs the role admin: write it behind the token, or into the JWT")
            self.audit.refused(call, context.peer(), error, caller)
            raise error
        try:
            yield self.service.bind(caller.tenant)
            outcome = "OK"
        except KVError as error:
            outcome = error.code
            raise
        finally:
            self.audit.acted(caller, call, target, context.peer(), outcome)
