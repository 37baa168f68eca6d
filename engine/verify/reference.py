"""The independent side: `transformers` for logits and greedy tokens, `peft` for gradients.

It holds a second copy of the weights, so it is opened after our side has been closed.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .probes import Probe
from .training import Tenant


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients of an adapter by our names, float32 on the host."""

    tensors: dict[str, Tensor]
    refusal: str = ""  # why they are not peft's


def has_peft() -> bool:
    """Whether `peft` is installed."""
    return importlib.util.find_spec("peft") is not None


class Reference:
    """A checkpoint as `transformers` runs it, with its plain attention, one sequence at a time."""

    def __init__(self, directory: Path, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM, GenerationConfig

        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(directory), dtype=dtype, attn_implementation="eager"
            )
        self._device = device
        self._model = model.to(device).eval().requires_grad_(False)
        # Nothing of the checkpoint's own habits: no penalty, no temperature, no end.
        self._model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)

    @torch.no_grad()
    def logits_of(self, probes: Sequence[Probe]) -> list[Tensor]:
        """Logits of every probe, [tokens, V] float32 on the host."""
        return [self._logits(probe.tokens, probe.start).float().cpu() for probe in probes]

    @torch.no_grad()
    def greedy_of(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """What `generate` answers to each prompt."""
        answers: list[list[int]] = []
        for prompt in prompts:
            tokens = torch.tensor([list(prompt)], device=self._device)
            with quiet():
                out = self._model.generate(
                    tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count
                )
            answers.append(out[0, len(prompt) :].tolist())
        return answers

    @torch.no_grad()
    def gaps_of(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """How far below the largest logit each token of an answer lies, given those before it."""
        logits_TV = self._logits([*prompt, *answer], 0)[len(prompt) - 1 : -1].float()
        chosen_T = logits_TV.gather(1, torch.tensor(answer, device=self._device)[:, None])[:, 0]
        gaps: list[float] = (logits_TV.max(1).values - chosen_T).tolist()
        return gaps

    def gradients_of(self, tenant: Tenant) -> Gradients:
        """Gradients of a tenant's adapter through `peft` and autograd, by our names.

        `peft` refuses or leaves out some linears: of models that can hand a weight to a kernel, and
        those whose names it takes for experts. Then the adapter is added to the linear's output,
        and the rest is autograd as well.
        """
        from peft import LoraConfig, get_peft_model

        modules = sorted({name.rsplit(".lora_", 1)[0] for name in tenant.tensors})
        config = LoraConfig(r=tenant.rank, lora_alpha=tenant.alpha, target_modules=modules)
        linears = {name: self._model.get_submodule(name) for name in modules}
        try:
            with quiet():
                model = get_peft_model(self._model, config, autocast_adapter_dtype=False)
        except ValueError as error:
            for name, linear in linears.items():  # those before the refused one are wrapped
                self._model.set_submodule(name, linear)
            refusal = str(error).strip().splitlines()[0].split(". ")[0]
            return Gradients(self._plain_gradients(tenant), refusal)
        parameters = dict(model.named_parameters())
        found = {name: parameters.get(_peft_name(name)) for name in tenant.tensors}
        leaves = {name: leaf for name, leaf in found.items() if leaf is not None}
        try:
            if len(leaves) == len(found):
                return Gradients(self._backward(model, tenant, leaves))
        finally:
            with quiet():
                self._model = model.unload()
        left_out = next(name for name in found if name not in leaves).rsplit(".lora_", 1)[0]
        return Gradients(self._plain_gradients(tenant), f"it makes no adapter for {left_out}")

    def _plain_gradients(self, tenant: Tenant) -> dict[str, Tensor]:
        leaves = {
            name: torch.empty_like(
                tensor, device=self._device, dtype=self._model.dtype, requires_grad=True
            )
            for name, tensor in tenant.tensors.items()
        }
        scale = tenant.alpha / tenant.rank
        handles = []
        for site in {name.rsplit(".lora_", 1)[0] for name in leaves}:
            pair = leaves[f"{site}.lora_a"], leaves[f"{site}.lora_b"], scale
            module = self._model.get_submodule(site)
            handles.append(module.register_forward_hook(partial(_add_adapter, *pair)))
        try:
            return self._backward(self._model, tenant, leaves)
        finally:
            for handle in handles:
                handle.remove()

    def _backward(self, model: Any, tenant: Tenant, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            for name, tensor in tenant.tensors.items():
                leaves[name].copy_(tensor)
        loss = self._loss(model, tenant)
        found = torch.autograd.grad(loss, list(leaves.values()))
        return {name: each.float().cpu() for name, each in zip(leaves, found, strict=True)}

    def _logits(self, tokens: Sequence[int], start: int) -> Tensor:
        ids = torch.tensor([list(tokens)], device=self._device)
        options: dict[str, Any] = {}
        if start:
            options["position_ids"] = torch.arange(start, start + len(tokens))[None].to(ids.device)
        logits: Tensor = self._model(input_ids=ids, use_cache=False, **options).logits[0]
        return logits

    def _loss(self, model: Any, tenant: Tenant) -> Tensor:
        losses = []
        for sequence, weights in zip(tenant.sequences, tenant.weights, strict=True):
            tokens = torch.from_numpy(sequence).to(self._device)
            with quiet():
                logits = model(input_ids=tokens[None], use_cache=False).logits[0].float()
            logprobs = logits.log_softmax(-1).gather(1, tokens.roll(-1)[:, None])[:, 0]
            losses.append(-(torch.from_numpy(weights).to(self._device) * logprobs).sum())
        return torch.stack(losses).sum()


def _add_adapter(
    lora_a: Tensor, lora_b: Tensor, scale: float, module: Any, inputs: Any, output: Tensor
) -> Tensor:
    delta: Tensor = inputs[0] @ lora_a.T @ lora_b.T
    return output + scale * delta


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries print while they load out of the table."""
    from transformers.utils import logging as their_logging

    was_showing = their_logging.is_progress_bar_enabled()
    their_logging.disable_progress_bar()
    loggers = {name: logging.getLogger(name) for name in ("transformers", "peft")}
    levels = {name: logger.level for name, logger in loggers.items()}
    for logger in loggers.values():
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
        if was_showing:
            their_logging.enable_progress_bar()


def _peft_name(name: str) -> str:
    site, half = name.rsplit(".lora_", 1)
    return f"base_model.model.{site}.lora_{half.upper()}.default.weight"
