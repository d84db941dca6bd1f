"""One prompt under way: the steps that fill its cache, each of which can be abandoned between two layers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from kvworker.engine.arrangement import arrangement_of
from kvworker.engine.attention import Observer
from kvworker.engine.engine import Change, Generation, Narrowing, Segment, Work, always_computed, check_rows, never, spans_of, unsourced
from kvworker.engine.rope import RotaryTable, Rows
from kvworker.engine.sampling import Sampling
from kvworker.engine.splice import place_group, stored_runs
from kvworker.engine.stack import Pass, Stack, positions_at


class PromptRun:
    """A prompt over a `Stack`; implements `kvworker.engine.engine.Prefill`."""

    def __init__(self, stack: Stack, segments: Sequence[Segment], sampling: Sampling, eos_ids: frozenset[int]) -> None:
        self.segments = tuple(segments)
        self._stack, self._sampling, self._eos_ids = stack, sampling, eos_ids
        self._token_ids = [token for segment in segments for token in segment.token_ids]
        self._sourced = [row for span in spans_of(segments) if span.is_sourced for row in range(span.start, span.stop)]
        self._overlay = stack.overlay(len(self._token_ids) + sampling.max_new_tokens - 1)
        self._arrangement = arrangement_of(segments)
        self._computed: list[int] = []
        self._placed: list[set[int]] = [set() for _ in stack.layout.groups]
        self._layer_rows = 0

    @property
    def computed(self) -> Sequence[int]:
        """The rows that went through all layers so far, ascending."""
        return self._computed

    @torch.inference_mode()
    def compute(self, rows: Sequence[int], stop: Callable[[], bool] = never) -> bool:
        """Run `rows` through all layers; return False when `stop`, which is called between layers, says True."""
        last = rows[-1] if rows else -1
        check_rows(self.segments, rows, self._lacking(row for row in unsourced(self.segments) if row < last))
        new = self._lacking(rows)
        if not new:
            return True
        work = self._pass(new)
        with self._step(new) as keep:
            for _ in self._layers(work):
                if stop():
                    return False
            keep()
        self._computed = sorted([*self._computed, *new])
        return True

    @torch.inference_mode()
    def attention(self) -> torch.Tensor:
        """Run the rows that no source gives over everything stored; return what the last segment pays attention to, (L, T) float32."""
        n_layers = sum(len(group.layers) for group in self._stack.layout.groups)
        found = torch.empty(n_layers, len(self._token_ids))

        def observe(layer: int, _queries: torch.Tensor, weights: torch.Tensor) -> None:
            found[layer] = weights.mean(0)

        last = spans_of(self.segments)[-1]
        rows = sorted({*self._lacking(always_computed(self.segments)), *range(last.start, last.stop)})
        with self._step(rows):
            for _ in self._layers(self._pass(rows, observe, last.stop - last.start)):
                pass
        return found

    @torch.inference_mode()
    def dependence(self) -> torch.Tensor:
        """Compute every row; return the share of its attention that each pays to earlier segments, (T,) float32, mean over layers.

        The first row of a segment draws attention whatever it says, so it does not count.
        """
        spans = spans_of(self.segments)
        owner = torch.tensor([i for i, span in enumerate(spans) for _ in range(span.start, span.stop)], device=self._stack.device)
        elsewhere = owner[:, None] > owner[None]
        elsewhere[:, [span.start for span in spans]] = False
        found = torch.zeros(len(owner), device=self._stack.device)

        def observe(_layer: int, _queries: torch.Tensor, weights: torch.Tensor) -> None:
            found.add_((weights * elsewhere).sum(1))

        self.watch(observe)
        return found / self._stack.layout.n_layers

    @torch.inference_mode()
    def watch(self, observe: Observer) -> None:
        """Compute every row and have `observe` told, in each layer, of the queries and the attention of all of them."""
        rows = range(len(self._token_ids))
        with self._step(rows):
            for _ in self._layers(self._pass(rows, observe, len(rows))):
                pass

    @torch.inference_mode()
    def finish(self, rows: Sequence[int], narrowing: Narrowing | None = None) -> Generation:
        """Run the last step and return the answer."""
        last = len(self._token_ids) - 1
        check_rows(self.segments, rows, {*self._lacking(always_computed(self.segments)), last})
        work = self._pass([*self._lacking(rows[:-1]), last])
        with self._step(work.rows) as keep:
            for _ in self._layers(work, narrowing):
                pass
            keep()
        done = Work(tuple(sorted({*self._computed, *work.rows})), self._layer_rows)
        return Generation(self._stack.logits(work.hidden[0, -1]), done, self._stepper(), self._eos_ids, self._sampling)

    def values(self, index: int) -> torch.Tensor:
        """Return V of the rows computed so far in layer group `index`, (L, H, S, D)."""
        return self._overlay.group(index)[1][:, :, torch.tensor(self._computed, device=self._stack.device)]

    def all_values(self) -> list[torch.Tensor]:
        """Return V of every row of the prompt, per layer group, (L, H, T, D), after a pass over all of them."""
        return [self._overlay.group(n)[1][:, :, : len(self._token_ids)] for n in range(len(self._stack.layout.groups))]

    def _lacking(self, rows: Collection[int] | Iterator[int]) -> list[int]:
        """Return those of `rows` that are not computed yet."""
        computed = set(self._computed)
        return [row for row in rows if row not in computed]

    def _pass(self, rows: Sequence[int], observer: Observer | None = None, n_observed: int = 0) -> Pass:
        hidden = self._stack.embed([self._token_ids[row] for row in rows])
        return Pass(rows, hidden, len(self._token_ids), self._arrangement, observer, n_observed)

    @contextmanager
    def _step(self, rows: Sequence[int]) -> Iterator[Callable[[], None]]:
        """Run a step over `rows`; unless the function it yields is called, what was stored under them is to be placed again."""
        kept = False

        def keep() -> None:
            nonlocal kept
            kept = True

        try:
            yield keep
        finally:
            if not kept:
                touched = {i for i, s in enumerate(spans_of(self.segments)) if bisect_left(rows, s.start) < bisect_left(rows, s.stop)}
                for placed in self._placed:
                    placed -= touched

    def _layers(self, work: Pass, narrowing: Narrowing | None = None) -> Iterator[int]:
        """Take a pass through all layers, yielding between them."""
        asked = narrowing.layers if narrowing else ()
        for index, group in enumerate(self._stack.layout.groups):
            for i, layer in enumerate(group.layers):
                if index or i:
                    yield layer
                if narrowing and layer in asked:
                    self._narrow(work, narrowing, index, i)
                if i == 0 or layer in asked:
                    self._place(index, work.rows, i)
                self._stack.run(layer, group, work, self._overlay)
                self._layer_rows += len(work.rows)

    def _place(self, index: int, rows: Sequence[int], first: int) -> None:
        """Have what a pass over `rows` needs of the stored segments in the cache, from layer `first` of a group on."""
        runs = stored_runs(self.segments, rows, self._computed, self._placed[index])
        if runs:
            group = self._stack.layout.groups[index]
            place_group(self._overlay, index, group, runs, partial(self._angles, self._stack.table(group)), first)
            self._placed[index].update(piece.segment for run in runs for piece in run)

    def _angles(self, table: RotaryTable, place: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin of rows of the prompt."""
        return table.angles(positions_at(place, self._arrangement, self._stack.device), self._arrangement.n_positions(len(self._token_ids)))

    def _narrow(self, work: Pass, narrowing: Narrowing, index: int, first: int) -> None:
        """Take rows out of a pass before layer `first` of a group."""
        sourced = set(self._sourced)
        last = work.rows[-1]
        own = [row for row in work.rows if row in sourced and row != last]
        kept = set(narrowing.keep(self._stack.layout.groups[index].layers[first], own, lambda: self._look(work, own, index, first)))
        if len(kept) < len(own):
            dropped = set(own) - kept
            work.narrow([row for row in work.rows if row not in dropped])

    def _look(self, work: Pass, rows: Sequence[int], index: int, first: int) -> Change:
        """Return the fresh and the stored K and V of `rows` in layer `first` of a group, and leave the fresh ones in the cache."""
        group = self._stack.layout.groups[index]
        layer = group.layers[first]
        self._place(index, [row for row in work.rows if row not in set(rows)], first)
        at = torch.tensor(rows, device=self._stack.device)
        stored = self._overlay.layer(layer, at)
        k, v = self._stack.fresh(layer, group, work)
        self._overlay.begin(work.place, work.n_tokens)
        self._overlay.update(k[None], v[None], layer)
        of_pass = torch.tensor([bisect_right(work.rows, row) - 1 for row in rows], device=self._stack.device)
        return Change(tuple(rows), (k[:, of_pass], v[:, of_pass]), stored)

    def _stepper(self) -> Callable[[int], torch.Tensor]:
        """Return the function that appends one token to the prompt and returns the next logits."""
        n_seen = len(self._token_ids)

        @torch.inference_mode()
        def step(token: int) -> torch.Tensor:
            nonlocal n_seen
            n_seen += 1
            work = Pass([n_seen - 1], self._stack.embed([token]), n_seen, self._arrangement)
            self._stack.run_all(work, self._overlay)
            return self._stack.logits(work.hidden[0, -1])

        return step
