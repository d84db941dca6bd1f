"""Answer a question over stored passages: look up, plan, load beside computing, splice, repair, decode, report."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from kvclient.records import AnswerExplanation, Report, Token
from kvstore.core import calling, tracing
from kvstore.core.api import Hit, Status, StoreAPI
from kvstore.core.errors import DeadlineError, InvalidInputError, KVError
from kvstore.core.key import ChunkKey
from kvstore.planners.cost import Landed
from kvstore.planners.plan import Load
from kvstore.planners.planner import find_planner
from kvstore.planners.samples import CostSample, OutcomeSample, Pass, PassSample, ReadSample, WaitSample
from kvworker.answer.costs import CostBook
from kvworker.answer.course import Course, Timing
from kvworker.answer.device_tier import DeviceTier
from kvworker.answer.execute import SOONER, Execution
from kvworker.answer.explain import Explanations, explain
from kvworker.answer.fetches import RequestFetches
from kvworker.answer.job import job_of
from kvworker.answer.load import Loader, StoredSource
from kvworker.answer.probes import TierProbes
from kvworker.answer.prompt import DECODED, Asked, Prompt, forms, offers, read_as
from kvworker.answer.report import make_report
from kvworker.answer.target import Way, effect
from kvworker.answer.text_stream import TextStream
from kvworker.engine.engine import Engine
from kvworker.engine.sampling import Sampling
from kvworker.ingest.catalog import Catalog
from kvworker.ingest.passages import AUTO, Passage, Reading
from kvworker.ingest.restore import Restorer
from kvworker.quality.gate import Choice, Gate
from kvworker.quality.ladder import Ladder
from kvworker.quality.variants import ReadAs
from kvworker.settings import WorkerSettings

_LEASE_SLACK_S = 5.0
_WAITED = 0.6  # of the slack; the rest is for stopping to wait, and for a second pass: over what came, behind what was computed instead
_LOST = frozenset({"epoch", "deleted"})
_SILENT = frozenset({"unavailable", "breaker", "timeout"})  # why a store may have what it did not tell of
_REST_FACTOR, _LONGEST_REST_S = 10, 10.0  # a store that hangs costs a tenth of the time at most, not every question its timeout
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What is asked: passages by id or "source#index" in the order of the prompt, the text, and how to answer.

    Empty `policy` and `planner` mean the worker's defaults. `read_as` says which readings of the passages may be loaded: "auto" takes the
    best one that is stored, "document" and "alone" no other. `ttft_target_s`, 0 for the worker's, is the time to the first token that
    policy "auto" is to keep to.
    """

    passages: tuple[str, ...]
    text: str
    sampling: Sampling = field(default_factory=Sampling)
    policy: str = ""
    planner: str = ""
    read_as: str = AUTO
    ttft_target_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.ttft_target_s < math.inf:
            raise InvalidInputError(f"ttft_target_s must be 0 (the worker's) or more seconds, got {self.ttft_target_s}")


class Answerer:
    """Answers questions. Thread-safe: the engine is used under `engine_lock`, one prefill or one decoding step at a time."""

    def __init__(
        self,
        engine: Engine,
        engine_lock: threading.Lock,
        catalog: Catalog,
        ladder: Ladder,
        loader: Loader,
        device_tier: DeviceTier,
        costs: CostBook,
        gate: Gate,
        restorer: Restorer,
        explanations: Explanations,
        settings: WorkerSettings,
    ) -> None:
        self._engine, self._lock, self._catalog, self._ladder = engine, engine_lock, catalog, ladder
        self._codecs = {codec.spec.variant(): codec.spec for codec in ladder.codecs}
        self._loader, self._device_tier, self._costs, self._gate = loader, device_tier, costs, gate
        self._restorer, self._explanations, self._settings = restorer, explanations, settings
        self._probes = TierProbes(loader, costs)
        self._resting_until: dict[str, float] = {}  # by tenant: whose token the store refuses must not stop the others

    def answer(self, tenant: str, store: StoreAPI, question: Question) -> Iterator[Token | Report]:
        """Yield the answer's tokens as they come, then one report; the report's passages follow the question's.

        Whatever the store does, the answer comes: what cannot be loaded in time is computed. Raises NotFoundError, InvalidInputError
        or UnsupportedError for passages, policies and planners that are not known and for a prompt that is too long.
        """
        started, costs, request_id = time.perf_counter(), self._costs.model, calling.request_id() or calling.new_request_id()
        course = self._plan(tenant, store, question)
        with tracing.span("larder.prefill", {"larder.passages": len(course.asked), "larder.planner": course.planner}):
            token, tokens = self._prefill(tenant, store, course, question.sampling)
        course.timing.ttft_s = time.perf_counter() - started
        with tracing.apart("larder.decode"):
            yield from self._text(course, token, tokens)
        self._learn(tenant, course)
        self._probes.after(tenant, store, course)
        self._restore(tenant, store, course)
        report = make_report(request_id, course, self._codecs)
        self._explanations.keep(tenant, AnswerExplanation(report, tuple(explain(report, course, costs))))
        yield report

    def _text(self, course: Course, token: int | None, tokens: Iterator[int]) -> Iterator[Token]:
        """Yield the answer as it comes, and count it."""
        stream = TextStream(self._engine.decode)
        while token is not None:
            course.n_generated += 1
            yield from stream.push(token)
            token = self._next(tokens)
        yield from stream.flush()

    def _next(self, tokens: Iterator[int]) -> int | None:
        """Return the next token, or None at the end."""
        with self._lock:
            return next(tokens, None)

    def _plan(self, tenant: str, store: StoreAPI, question: Question) -> Course:
        """Look up all passages in one call and let the planner decide."""
        planner = find_planner(question.planner or self._settings.planner)
        spec = question.policy or self._settings.policy
        named = self._catalog.readings(tenant, question.passages, self._gate.read_as(spec, question.read_as))
        prompt = Prompt(tuple(p for p, _ in named), self._question_ids(question))
        self._check_room(prompt, question.sampling)
        timing = Timing()
        with timing.measure("lookup"), tracing.span("larder.lookup"):
            asked = self._lookup(tenant, store, named)
            device_nbytes = self._on_device(tenant, [s.hit for a in asked for s in a.stored])
        best = [a.best(device_nbytes) for a in asked]
        with timing.measure("plan"), tracing.span("larder.plan"):
            hits = offers(asked, self._codecs, device_nbytes)
            target_s, ways = question.ttft_target_s or self._settings.ttft_target_s, list[Way]()
            for choice in self._careful_first(spec, read_as(prompt, best), target_s):
                request = prompt.read_in(best).request(choice.policy, self._engine.identity.layout)
                ways.append(Way(choice, request, planner.plan(request, hits, self._costs.model)))
                if ways[-1].keeps_to(target_s):
                    break
            choice, request, plan = ways[-1]
        read = [a.form(i.offer) if isinstance(i, Load) else b for a, b, i in zip(asked, best, plan.items, strict=True)]
        target = effect(target_s, ways)
        return Course(prompt.read_in(read), choice, planner.name, asked, read, request, plan, planner.is_binding, timing, target)

    def _careful_first(self, spec: str, reading: ReadAs, target_s: float) -> list[Choice]:
        """Return the policies to plan with until one keeps to the target; without a target, the cheapest that the gate lets through."""
        choices = self._gate.choices(spec, reading)
        return choices if target_s else choices[-1:]

    def _question_ids(self, question: Question) -> tuple[int, ...]:
        """Return the tokens behind the passages; without any passage, the prompt starts with BOS."""
        ids = self._engine.encode(self._settings.question_template.replace("{question}", question.text))
        bos = () if question.passages or self._engine.bos_id is None else (self._engine.bos_id,)
        return (*bos, *ids)

    def _check_room(self, prompt: Prompt, sampling: Sampling) -> None:
        """Raise InvalidInputError for a prompt that leaves no room for an answer, or an answer longer than allowed."""
        most = self._engine.max_context_tokens
        if prompt.n_tokens >= most:
            raise InvalidInputError(f"the prompt has {prompt.n_tokens} tokens, the model reads {most} with the answer; name fewer passages")
        if sampling.max_new_tokens > self._settings.max_new_tokens:
            raise InvalidInputError(f"max_tokens {sampling.max_new_tokens} is over worker.max_new_tokens {self._settings.max_new_tokens}")

    def _lookup(self, tenant: str, store: StoreAPI, named: Sequence[tuple[Passage, Sequence[Reading]]]) -> list[Asked]:
        """Return what the store has of every reading, in any codec that it may be stored in, found in one call."""
        keys = [key for _, readings in named for r in readings for key in self._ladder.keys(r.passage.content)]
        hits, n = iter(self._hits(tenant, store, keys)), len(self._ladder.codecs)
        return [Asked(p, tuple(s for r in readings for s in forms(r, list(islice(hits, n))))) for p, readings in named]

    def _hits(self, tenant: str, store: StoreAPI, keys: Sequence[ChunkKey]) -> list[Hit]:
        """Return one hit per key; a store that fails or is late has nothing, and rests for ten times as long as its failure took."""
        started, reason = time.monotonic(), "breaker"
        try:
            if started >= self._resting_until.get(tenant, 0.0):
                lease_s = self._settings.load_timeout_s + _LEASE_SLACK_S
                return store.lookup(keys, lease_s, _WAITED * self._settings.load_slack_s) if keys else []
        except KVError as error:
            now, reason = time.monotonic(), "timeout" if isinstance(error, DeadlineError) else "unavailable"
            self._resting_until[tenant] = now + min(_LONGEST_REST_S, _REST_FACTOR * (now - started))
            _log.warning("lookup failed, everything is computed: %s", error)
        return [Hit(key, Status.ABSENT, reason=reason) for key in keys]

    def _on_device(self, tenant: str, hits: Sequence[Hit]) -> dict[ChunkKey, int]:
        """Return the sizes of decoded copies; copies of what was invalidated or deleted are dropped."""
        self._device_tier.drop((tenant, hit.key) for hit in hits if hit.reason in _LOST)
        sizes = {hit.key: self._device_tier.nbytes((tenant, hit.key)) for hit in hits}
        return {key: nbytes for key, nbytes in sizes.items() if nbytes}

    def _prefill(self, tenant: str, store: StoreAPI, course: Course, sampling: Sampling) -> tuple[int | None, Iterator[int]]:
        """Load and compute; return the first token, if any, and the others to come."""
        job = job_of(self._engine, course, self._costs.model, sampling, self._patience_s(course))
        fetches = RequestFetches(tenant, store, course.asked, self._loader, self._device_tier)
        execution = Execution(job, fetches, self._lock, course.timing)
        try:
            generation = execution.run()
        finally:
            execution.close()
        outcome = execution.outcome
        course.sources, course.failures, course.samples = outcome.used, outcome.failures, outcome.samples
        course.last_step = outcome.last_step
        course.rows, tokens = generation.work.rows, iter(generation)
        return self._next(tokens), tokens

    def _patience_s(self, course: Course) -> float:
        """Return how long loads are waited for that computing does not race: most of the slack, so that no more than that is ever lost.

        Where the planner's word is binding, as long as computing the whole prompt takes on top.
        """
        compute_s: float | None = 0.0
        if course.is_binding:
            compute_s = self._costs.model.predict_prefill(course.request.n_tokens, course.request.n_tokens / 2)
        return min(self._settings.load_timeout_s, math.inf if compute_s is None else compute_s + _WAITED * self._settings.load_slack_s)

    def _restore(self, tenant: str, store: StoreAPI, course: Course) -> None:
        """Have what the store lacks computed and stored again behind the answer; a store that does not answer is left alone.

        A reading that is worse than one that is stored is not missed.
        """
        for asked in course.asked:
            for lost in asked.lacking():
                if lost.hit.reason not in _SILENT:
                    self._restorer.ask(tenant, store, lost.reading.passage)

    def _learn(self, tenant: str, course: Course) -> None:
        """Keep what was decoded in device memory, and let the cost model know what was measured."""
        samples: list[CostSample | WaitSample] = [*self._passes(course)]
        for source in course.sources.values():
            if isinstance(source, StoredSource) and source.has_arrived:  # what is computed all again leaves its chunk on its way
                self._loader.keep(tenant, source)
                samples += [ReadSample(source.tier, source.nbytes, source.seconds), WaitSample(source.tier, source.queued_s)]
        ttft_s = course.timing.ttft_s - course.timing.seconds.get("queue", 0.0)
        if course.planned_s and set(course.failures.values()) <= {SOONER}:
            samples.append(OutcomeSample(course.manner, course.planned_s, ttft_s))
        self._costs.observe(samples)

    def _passes(self, course: Course) -> Iterator[PassSample]:
        """Yield what the passes of a request took, beside what they were measured to take at start."""
        costs = self._costs.model
        found = [costs.pass_sample(Pass.STEP, step) for step in course.samples]
        if course.last_step:
            is_whole = not course.sources and not course.samples
            found.append(costs.pass_sample(Pass.WHOLE if is_whole else Pass.LAST, course.last_step, self._landed(course)))
        yield from (sample for sample in found if sample)

    def _landed(self, course: Course) -> Iterator[Landed]:
        """Yield what was put in its place."""
        for index, source in course.sources.items():
            n_tokens = len(course.prompt.passages[index].token_ids)
            if isinstance(source, StoredSource):
                yield Landed(self._codecs[source.key.variant].label, source.nbytes, n_tokens)
            else:
                yield Landed(DECODED, sum(chunk.nbytes for chunk in source.kv), n_tokens)
