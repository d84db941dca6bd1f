"""Commands for keys on any number of Redis servers, in one round trip."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from kvstore.core.errors import DeadlineError, KVError, TierUnavailableError
from kvstore.store.redis.node import Leases, Node
from kvstore.store.redis.resp import Refusal, Reply, Word
from kvstore.store.redis.route import Route

SMALL_WINDOW = 512  # unanswered commands per server when commands and replies are short
Command = tuple[bytes, bytes, *tuple[Word, ...]]  # its name, the key, and what else it takes
Answer = Reply | KVError


def exchange(route: Route, commands: Sequence[Command], window: int = SMALL_WINDOW) -> list[Answer]:
    """Send each command to the server that has its key, at most `window` unanswered per server, and return their replies in order.

    A server that cannot be reached, or fails in between, costs its timeout once; its error stands in the place of every reply that it owed.
    A command that is redirected is sent once more. Values are not copied.
    """
    answers: list[Answer] = [None] * len(commands)
    owners: list[Node | None] = [None] * len(commands)
    for number, command in enumerate(commands):
        try:
            owners[number] = route.node_of(command[1])
        except (TierUnavailableError, DeadlineError) as error:
            answers[number] = error
    leases = Leases(owner for owner in owners if owner is not None)
    talks = {owner: _Talk(owner, leases, answers, window) for owner in owners if owner is not None}
    try:
        for number, (owner, command) in enumerate(zip(owners, commands, strict=True)):
            if owner is not None:
                talks[owner].ask(number, command)
        for talk in talks.values():
            talk.hear_all()
    finally:
        leases.close()
    for number, (owner, answer) in enumerate(zip(owners, answers, strict=True)):
        if owner is not None and isinstance(answer, Refusal):
            answers[number] = _redirected(route, owner, answer, commands[number])
    return answers


def first_problem(answers: Sequence[Answer], where: str) -> KVError | None:
    """Return the first error among the answers, if there is one."""
    for answer in answers:
        if isinstance(answer, KVError):
            return answer
        if isinstance(answer, Refusal):
            return answer.error(where)
    return None


class _Talk:
    """What one server is asked and answers within an exchange."""

    def __init__(self, node: Node, leases: Leases, answers: list[Answer], window: int) -> None:
        self._error: KVError | None = leases.errors.get(node)
        self._connection = None if self._error else leases[node]
        self._answers = answers
        self._window = window
        self._awaited: deque[int] = deque()

    def ask(self, number: int, command: Command) -> None:
        """Send a command, behind hearing an answer when so many are owed already."""
        if len(self._awaited) >= self._window:
            self._hear()
        self._awaited.append(number)
        if self._connection is not None:
            try:
                self._connection.ask(*command)
            except (TierUnavailableError, DeadlineError) as error:
                self._error, self._connection = error, None
        if self._error is not None:
            self._owe(self._error)

    def hear_all(self) -> None:
        """Hear the answers that are still owed."""
        while self._awaited:
            self._hear()

    def _hear(self) -> None:
        """Hear the next answer; behind a failure there is none to wait for any more."""
        if self._connection is None:
            return
        try:
            self._answers[self._awaited[0]] = self._connection.reply()
            self._awaited.popleft()
        except (TierUnavailableError, DeadlineError) as error:
            self._error, self._connection = error, None
            self._owe(error)

    def _owe(self, error: KVError) -> None:
        """Give every answer that is owed the reason why it does not come."""
        while self._awaited:
            self._answers[self._awaited.popleft()] = error


def _redirected(route: Route, node: Node, refusal: Refusal, command: Command) -> Answer:
    """Send a command once more, to the node that the refusal points to; other refusals are answers."""
    if refusal.code not in ("MOVED", "ASK"):
        return refusal
    try:
        other = route.redirect(node, refusal)
        leases = Leases([other])
        leases.require()
        try:
            if refusal.code == "ASK":
                leases[other].ask(b"ASKING")
            leases[other].ask(*command)
            if refusal.code == "ASK":
                leases[other].reply()
            return leases[other].reply()
        finally:
            leases.close()
    except (TierUnavailableError, DeadlineError) as error:
        return error
