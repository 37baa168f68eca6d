"""The independent side: `transformers` for logits and greedy tokens, `peft` for gradients.

It holds a second copy of the weights, so it is opened after our side has been closed.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .probes import Probe
from .training import Tenant


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

    def gradients_of(self, tenant: Tenant) -> dict[str, Tensor]:
        """Gradients of a tenant's adapter through `peft` and autograd, by our names."""
        from peft import LoraConfig, get_peft_model

        modules = sorted({name.rsplit(".lora_", 1)[0] for name in tenant.tensors})
        config = LoraConfig(r=tenant.rank, lora_alpha=tenant.alpha, target_modules=modules)
        with quiet():
            model = get_peft_model(self._model, config, autocast_adapter_dtype=False)
        try:
            parameters = dict(model.named_parameters())
            with torch.no_grad():
                for name, tensor in tenant.tensors.items():
                    parameters[_peft_name(name)].copy_(tensor)
            self._loss(model, tenant).backward()  # type: ignore[no-untyped-call]
            return {
                name: parameters[_peft_name(name)].grad.float().cpu() for name in tenant.tensors
            }
        finally:
            with quiet():
                self._model = model.unload()

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
