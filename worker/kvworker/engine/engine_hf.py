"""The engine over Hugging Face causal language models: the only file that imports transformers.

The decoder's layers are driven one by one (`stack.py`, `prompt_run.py`), which is what lets loading overlap with computing: before a
group's first layer runs, the stored rows of that group are placed in the request's cache. Only rows that are computed have hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from kvstore.core.errors import InvalidInputError, KVError, UnsupportedError
from kvstore.core.identity import KVLayout, LayerGroup, ModelIdentity
from kvworker.chunk import DTYPES, KVChunk, PassageKV
from kvworker.engine.asked import Asked, Span, asked_each, last_rows
from kvworker.engine.attention import attend
from kvworker.engine.engine import ChunkSource, Generation, Segment, Study, laid_out, unsourced
from kvworker.engine.families import Family, context_tokens, family_of, layout_of
from kvworker.engine.prompt_run import PromptRun
from kvworker.engine.rope import steady_tokens
from kvworker.engine.sampling import Sampling
from kvworker.engine.stack import Stack
from kvworker.engine.watcher import Watcher
from kvworker.engine.weights import read_settings, tokenizer_digest, weights_digest

_ATTENTION = "larder_rows"
_CROWDED = 6  # query heads of a KV head
_TEXT_MODELS = {"gemma3": "gemma3_text"}  # directories with image input, of which the text model is used


class HFEngine:
    """A model directory as an `Engine`. Not thread-safe.

    Parameters
    ----------
    model : transformers model
        In evaluation mode; only its decoder and its output layer are kept.
    tokenizer : transformers tokenizer
    identity : ModelIdentity
    eos_ids : frozenset of int
    """

    def __init__(self, model: Any, tokenizer: Any, identity: ModelIdentity, eos_ids: frozenset[int]) -> None:
        config = model.config.get_text_config()
        self.identity = identity
        self.eos_ids = eos_ids
        self.bos_id: int | None = tokenizer.bos_token_id
        self.max_context_tokens = context_tokens(config)
        self.max_reading_tokens = int(min(self.max_context_tokens, *(steady_tokens(group.rope) for group in identity.layout.groups)))
        self._tokenizer = tokenizer
        self._decoder = model.get_decoder()
        self._family: Family = family_of(config.model_type)
        self.needs_fine_keys = _needs_fine_keys(config, self._decoder)
        self._n_vocab: int = config.vocab_size
        softcap: float | None = getattr(config, "final_logit_softcapping", None)
        head, dtype = model.get_output_embeddings(), DTYPES[identity.dtype]
        self._stack = Stack(self._decoder, head, softcap, self._family, identity.layout, dtype)

    @property
    def device(self) -> str:
        """Where the model is: "cpu" or "cuda:0"."""
        return str(self._stack.device)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens; what looks like one in the text stays text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def export(
        self, passages: Sequence[Sequence[int]], sources: Mapping[int, ChunkSource] = MappingProxyType({}), n_observed: int = 0
    ) -> list[PassageKV]:
        """Prefill the concatenation of passages once and cut its KV at their borders, keys before RoPE; `sources` are loaded instead.

        Queries of the last `n_observed` rows of each passage are observed.
        """
        if min((len(passage) for passage in passages), default=0) == 0:
            raise InvalidInputError("export needs at least one passage, and at least 1 token in each")
        segments = [Segment(tuple(passage), sources.get(i)) for i, passage in enumerate(passages)]
        self._check_reading(sum(len(passage) for passage in passages))
        borders = accumulate((len(s.token_ids) for s in segments if s.source is None), initial=0)
        spans = list(pairwise(borders))
        groups = self._read(segments, last_rows(spans, n_observed))
        return [tuple(_cut(k, v, span, asked[i]) for k, v, asked in groups) for i, span in enumerate(spans)]

    @torch.inference_mode()
    def _read(self, segments: Sequence[Segment], observed: Sequence[Sequence[int]]) -> list[tuple[torch.Tensor, torch.Tensor, list[Asked]]]:
        """Prefill what has no source, and observe some rows of each of its passages.

        Return K before RoPE and V, (L, H, S, D), and what each passage's rows ask for, per layer group.
        """
        run, groups = self.begin(segments, Sampling(max_new_tokens=1)), self.identity.layout.groups
        at = torch.tensor([row for own in observed for row in own], device=self._stack.device)
        queried: AbstractContextManager[dict[int, torch.Tensor]] = nullcontext({})
        if len(at):
            queried = self._caught(self._family.query_module, lambda q: q[:, at])
        with self._caught(self._family.key_module, lambda k: k) as keys, queried as queries:
            run.compute(unsourced(segments))
        return [(_stacked(keys, group), run.values(g), asked_each(queries, group, observed)) for g, group in enumerate(groups)]

    def dependence(self, passages: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Prefill the concatenation of passages; return how much each row of each needs those before it: `KVChunk.need`."""
        run = self.begin([Segment(tuple(passage)) for passage in passages], Sampling(max_new_tokens=1))
        needs = torch.split(run.dependence().to(torch.float16), [len(passage) for passage in passages])
        return [need.clone() for need in needs]

    @torch.inference_mode()
    def study(self, token_ids: Sequence[int]) -> Study:
        """Read a text alone; return its KV with what its rows ask for and attend to."""
        self._check_reading(len(token_ids))
        run = self.begin([Segment(tuple(token_ids))], Sampling(max_new_tokens=1))
        watcher = Watcher(self.identity.layout)
        with self._caught(self._family.key_module, lambda k: k) as keys:
            run.watch(watcher.observe)
        return replace(watcher.study(keys, run.all_values()), grams=self._grams())

    @torch.inference_mode()
    def _grams(self) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Return the products of the channels of the weights that make K and V, per layer."""
        attentions = {layer: self._decoder.layers[layer].self_attn for group in self.identity.layout.groups for layer in group.layers}
        weights = {layer: [own.k_proj.weight.float().cpu(), own.v_proj.weight.float().cpu()] for layer, own in attentions.items()}
        return {layer: (k @ k.T, v @ v.T) for layer, (k, v) in weights.items()}

    def begin(self, segments: Sequence[Segment], sampling: Sampling = Sampling()) -> PromptRun:  # noqa: B008 (frozen)
        """Start the prompt made of `segments`.

        Beyond `max_reading_tokens` the whole prompt turns in another way than what was read, so nothing stored is exact: sources that
        claim to be are left unused, and their rows are computed.
        """
        self._check_links(segments)
        segments = laid_out(segments)
        token_ids = [token for segment in segments for token in segment.token_ids]
        self._check_tokens(token_ids)
        if len(token_ids) > self.max_reading_tokens:
            segments = [replace(s, source=None, is_exact=False) if s.is_exact or i == 0 else s for i, s in enumerate(segments)]
        n_new = min(sampling.max_new_tokens, self.max_context_tokens - len(token_ids) + 1)
        with torch.inference_mode():
            return PromptRun(self._stack, segments, replace(sampling, max_new_tokens=n_new), self.eos_ids)

    def prefill(self, segments: Sequence[Segment], rows: Sequence[int], sampling: Sampling = Sampling()) -> Generation:  # noqa: B008 (frozen)
        """Run a prompt in one step: `begin`, then `finish` with these rows."""
        return self.begin(segments, sampling).finish(rows)

    def _check_reading(self, n_tokens: int) -> None:
        """Raise unless what is read for the store reads the same whatever follows it."""
        if self.max_reading_tokens < n_tokens <= self.max_context_tokens:
            raise InvalidInputError(
                f"{n_tokens} tokens cannot be read at once for the store: beyond the {self.max_reading_tokens} of the trained context the "
                "model's rotary embedding depends on the length of the whole; read fewer or shorter passages at once"
            )

    def _check_links(self, segments: Sequence[Segment]) -> None:
        """Raise unless all links are special tokens: any other token says something, and no model was trained to link by it."""
        wrong = next((token for s in segments for token in s.links if not 0 <= token < self._n_vocab or self.decode([token])), None)
        if wrong is not None:
            raise InvalidInputError(
                f"token {wrong} is no special token of this model, so it links nothing; name the model's first link token, "
                "or take the policy segment_mask for a model without any"
            )

    def _check_tokens(self, token_ids: Sequence[int]) -> None:
        """Raise unless the ids belong to the vocabulary and fit the context."""
        if not token_ids:
            raise InvalidInputError("a prompt needs at least one token")
        if len(token_ids) > self.max_context_tokens:
            raise InvalidInputError(
                f"{len(token_ids)} tokens do not fit the model's context of {self.max_context_tokens}; use fewer or shorter passages"
            )
        if min(token_ids) < 0 or max(token_ids) >= self._n_vocab:
            raise InvalidInputError(f"token ids must be within 0 and {self._n_vocab - 1}, got {min(token_ids)} to {max(token_ids)}")

    @contextmanager
    def _caught(self, name: str, kept: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[dict[int, torch.Tensor]]:
        """Catch what `kept` keeps of K or Q before RoPE, (heads, T, D) per layer, in the passes run inside; `name` is its module.

        The hooks are gone afterwards.
        """
        found: dict[int, torch.Tensor] = {}

        def catch(layer: int, dim: int, _module: object, _inputs: object, output: torch.Tensor) -> None:
            found[layer] = kept(self._family.by_head(output, dim))

        hooks = []
        try:
            for group in self.identity.layout.groups:
                for layer in group.layers:
                    module = getattr(self._decoder.layers[layer].self_attn, name)
                    hooks.append(module.register_forward_hook(partial(catch, layer, group.k_dim)))
            yield found
        finally:
            for hook in hooks:
                hook.remove()


def _needs_fine_keys(config: Any, decoder: Any) -> bool:
    """Tell whether keys need more than a few bits: Qwen2.5, with both traits, collapses under 3-bit keys where others do not."""
    n_shared = config.num_attention_heads / (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    biases = (getattr(getattr(layer.self_attn, "k_proj", None), "bias", None) for layer in decoder.layers)
    return n_shared >= _CROWDED or any(bias is not None for bias in biases)


def _stacked(keys: Mapping[int, torch.Tensor], group: LayerGroup) -> torch.Tensor:
    """Return what was caught of a group's layers, (L, H, T, D)."""
    return torch.stack([keys[layer] for layer in group.layers])


def _cut(k: torch.Tensor, v: torch.Tensor, span: Span, asked: Asked) -> KVChunk:
    """Return the rows of a passage as a chunk with memory of its own."""
    k, v = (x[:, :, slice(*span)].clone(memory_format=torch.contiguous_format) for x in (k, v))
    return KVChunk(k, v, asked=asked)


def load_engine(
    directory: str | Path,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    digest_cache_dir: Path | None = None,
) -> HFEngine:
    """Load a local model directory (config.json, safetensors, tokenizer); nothing is downloaded and no code in it is run.

    Parameters
    ----------
    directory : path
        A causal language model of a family in `families.FAMILIES`.
    device : str, optional
        "cpu" or "cuda"; CUDA where there is one, if not given.
    dtype : str, optional
        A key of `chunk.DTYPES`; the checkpoint's own, if not given.
    threads : int, optional
        CPU threads of torch, for the whole process.
    digest_cache_dir : path, optional
        Where digests of weights are remembered by file name, size and times, so that large files are hashed once.

    Raises InvalidInputError for a directory that holds no model, UnsupportedError for a model that cannot be served exactly.
    """
    directory = Path(directory)
    layout, dtype = read_layout(directory, dtype)
    if (directory / "adapter_config.json").exists():
        raise UnsupportedError(f"{directory.name} holds an adapter; merge it into the weights and save the model again")
    if threads is not None:
        torch.set_num_threads(threads)
    digest = weights_digest(directory, read_settings(directory), digest_cache_dir)
    with _library_errors(directory):
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        model = _load_model(directory, dtype).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    identity = ModelIdentity(directory.resolve().name, digest, layout, dtype, tokenizer_digest(directory))
    return HFEngine(model, tokenizer, identity, _eos_ids(model, tokenizer))


def read_layout(directory: Path, dtype: str | None = None) -> tuple[KVLayout, str]:
    """Return the KV layout of a model directory and the dtype of its KV, from config.json alone; raises what `load_engine` raises."""
    model_type = str(read_settings(directory).get("model_type", ""))
    family_of(_TEXT_MODELS.get(model_type, model_type))
    with _library_errors(directory):
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        return layout_of(config.get_text_config()), _dtype_name(config, dtype)


@contextmanager
def _library_errors(directory: Path) -> Iterator[None]:
    """Turn what the library raises over a directory's content, in many trees of its own, into InvalidInputError."""
    try:
        yield
    except (KVError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InvalidInputError(f"{directory.name} could not be loaded: {type(error).__name__}: {error}") from error


def _dtype_name(config: Any, dtype: str | None) -> str:
    """Return the dtype asked for, else the checkpoint's, else float32."""
    own = config.dtype or config.get_text_config().dtype or torch.float32
    name = dtype or str(own).removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedError(f"dtype {name!r} is not supported; supported: {', '.join(DTYPES)}")
    return name


def _load_model(directory: Path, dtype: str) -> Any:
    """Load the weights; a checkpoint that lacks any of them is refused, because the library would fill it with random numbers."""
    AttentionInterface.register(_ATTENTION, attend)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=DTYPES[dtype],
        attn_implementation=_ATTENTION,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    model, report = loaded
    absent = sorted(set(report["missing_keys"]) | {str(key) for key in report["mismatched_keys"]})
    if absent:
        raise InvalidInputError(f"{len(absent)} weights are missing in {directory.name} or have another shape, the first is {absent[0]}")
    return model.eval()


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return every token that the model or its tokenizer calls end of sequence."""
    ids: set[int] = set()
    for own in (model.generation_config.eos_token_id, model.config.get_text_config().eos_token_id, tokenizer.eos_token_id):
        ids.update(own if isinstance(own, list) else [] if own is None else [own])
    return frozenset(ids)
