"""Trains the reference model from nothing, on CPU.

    python examples/reference/train.py --out scratch/reference

Stop it at any time: the same command goes on from the last checkpoint. The finished folder loads with `AutoModelForCausalLM`.

The committed weights are what this script gives from nothing with its default seed. On two virtual cores of a shared machine (AMX, a C++
compiler, nothing else running) the first 2,250 of its 4,550 steps took 19 minutes; the later ones take 0.7 to 1.2 s each, so it is about 50
minutes in all. Shorter stages, 3,300 and 3,400 steps, took 34 and 39 minutes and left carried facts at 0.93 and 0.91. Of the questions
about 80 contexts of 8 passages of 8 facts the committed model answers 0.998 of the direct ones, 1.000 of the carried ones, and 0.994 of
those under a second name.

Stages: induction heads and look-ups with four layers; then six layers, most of the batches drills, with guidance in the middle of the
network; then mostly the questions that are asked of it. `batches.STAGES` has them all.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from batches import N_STEPS, STAGES, Batch, draw
from evaluate import EIGHT_PASSAGES, accuracy
from fast_attention import use_fast_attention
from guidance import guidance_loss
from prompts import BOS_ID, EOS_ID, IGNORED, PAD_ID, VOCABULARY_SIZE
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from kvworker.reference.tokenizer import save_tokenizer

# Steps over which the rate of each stage would fall to a twentieth; the first two are cut short by the next stage.
FALLING_STEPS = (3200, 1650, 400, 900)
CHECK_EVERY = 250
_BAR = 30


def build_model(n_layers: int) -> LlamaForCausalLM:
    """Return an untrained model: 0.87 M parameters with 4 layers, 1.26 M with 6."""
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE, hidden_size=128, intermediate_size=384, num_hidden_layers=n_layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, rope_theta=10000.0, tie_word_embeddings=True,
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def grow(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return a model of 6 layers made of this one's 4: behind layer 1 a silent copy of it, before the last a copy that speaks.

    Four layers are just deep enough for one look-up behind another; alias questions in crowded contexts stay near 0.65 with them. Layer 1
    does the look-up of direct questions, which its second copy is to do again under the second name. The silent one's outputs are zero.
    """
    deeper, weights = build_model(6), model.state_dict()
    grown = {name: value for name, value in weights.items() if ".layers." not in name}
    for place, (source, is_silent) in enumerate(((0, False), (1, False), (1, True), (2, False), (1, False), (3, False))):
        prefix = f"model.layers.{source}."
        for name, value in ((n, v) for n, v in weights.items() if n.startswith(prefix)):
            rest = name.removeprefix(prefix)
            is_output = rest in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            grown[f"model.layers.{place}.{rest}"] = torch.zeros_like(value) if is_silent and is_output else value
    deeper.load_state_dict(grown)
    return deeper


def stage_at(step: int) -> int:
    """Return the index of the stage that a step belongs to."""
    return max(index for index, stage in enumerate(STAGES) if stage.first_step <= step)


def learning_rate(step: int) -> float:
    """Return the rate of a step: in each stage a short rise, then a fall along a cosine."""
    index = stage_at(step)
    since = step - STAGES[index].first_step
    falling = 0.05 + 0.475 * (1 + math.cos(math.pi * since / FALLING_STEPS[index]))
    return STAGES[index].peak_rate * min(1.0, (since + 1) / STAGES[index].n_rising) * falling


class Training:
    """A model, its optimizer and its source of randomness, which one file brings back."""

    def __init__(self, seed: int, path: Path) -> None:
        torch.manual_seed(seed)
        self.path = path
        self.rng = random.Random(seed)
        self.step = 0
        # bfloat16 is fast where the processor multiplies matrices in it; fusing wants a compiler.
        self._precision = torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_amx_tile_supported())
        self._train(build_model(STAGES[0].n_layers))

    def _train(self, model: LlamaForCausalLM) -> None:
        """Train this model from now on, with a fresh optimizer."""
        self.model = model
        use_fast_attention(model)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate(0), betas=(0.9, 0.98), weight_decay=0.01)
        self._read: Callable[..., object] = torch.compile(model.model, dynamic=True) if shutil.which("g++") else model.model

    def save(self) -> None:
        """Write a checkpoint; a crash while writing leaves the one before."""
        state = {"step": self.step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "rng": self.rng.getstate()}
        torch.save(state, self.path.with_suffix(".new"))
        self.path.with_suffix(".new").replace(self.path)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.step = state["step"]
            self._train(build_model(STAGES[stage_at(max(0, self.step - 1))].n_layers))
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.rng.setstate(state["rng"])

    def advance(self) -> float:
        """Take one step and return its loss; a stage that wants a deeper model gets it first."""
        stage = STAGES[stage_at(self.step)]
        if stage.n_layers != self.model.config.num_hidden_layers:
            self._train(grow(self.model))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step)
        loss = self._loss(draw(self.rng, self.step, stage), stage.guidance_weight)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def _loss(self, batch: Batch, guidance_weight: float) -> torch.Tensor:
        wanted = batch.targets != IGNORED
        with self._precision:
            # A mask of ones: without one, jumps of the positions would be taken for borders between unrelated sequences.
            out = self._read(
                input_ids=batch.ids, attention_mask=torch.ones_like(batch.ids), position_ids=batch.positions, use_cache=False,
                output_hidden_states=guidance_weight > 0,
            )  # fmt: skip
            logits = self.model.lm_head(out.last_hidden_state[wanted])  # type: ignore[attr-defined]
        loss = cross_entropy(logits.float(), batch.targets[wanted])
        if guidance_weight:
            states = out.hidden_states  # type: ignore[attr-defined]
            loss = loss + guidance_weight * guidance_loss(self.model, states, batch.ids, batch.positions)
        return loss

    def check(self) -> str:
        """Return the accuracy on the test split, by kind, as text."""
        self.model.set_attn_implementation("sdpa")
        shares, _ = accuracy(self.model, EIGHT_PASSAGES, n_contexts=12)
        use_fast_attention(self.model)
        return "  ".join(f"{kind} {share:.3f}" for kind, share in shares.items())


def show(step: int, n_steps: int, loss: float, rate_s: float) -> None:
    """Draw the progress bar on standard error."""
    done = _BAR * step // n_steps
    left = (n_steps - step) * rate_s / 60
    bar = "#" * done + "." * (_BAR - done)
    print(f"\r[{bar}] {step}/{n_steps}  loss {loss:.3f}  {rate_s:.2f} s/step  {left:.0f} min left ", end="", file=sys.stderr, flush=True)


def export(model: LlamaForCausalLM, folder: Path) -> None:
    """Write weights, configuration and tokenizer as Hugging Face reads them."""
    model.set_attn_implementation("sdpa")
    model.generation_config = GenerationConfig(bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, do_sample=False)
    model.save_pretrained(folder)
    save_tokenizer(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model; its checkpoint lies beside it")
    parser.add_argument("--steps", type=int, default=N_STEPS, help="stop after this many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    training = Training(arguments.seed, arguments.out.with_suffix(".checkpoint"))
    training.resume()
    began, first = time.monotonic(), training.step
    while training.step < arguments.steps:
        loss = training.advance()
        show(training.step, arguments.steps, loss, (time.monotonic() - began) / (training.step - first))
        if training.step % CHECK_EVERY == 0 or training.step == arguments.steps:
            print(f"\nstep {training.step}  loss {loss:.3f}  {training.check()}  {time.monotonic() - began:.0f} s", flush=True)
            training.save()
    export(training.model, arguments.out)


if __name__ == "__main__":
    main()
