"""The optimizer of the outer loop: AdamW with a warm-up and a cosine schedule."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch
from torch import nn
from torch.optim import AdamW

from ablations.settings import TrainConfig

NOT_DECAYED = (nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def make_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """Build AdamW with two groups: matrices decay; embeddings, norms, biases and other vectors do not."""
    groups: dict[float, list[nn.Parameter]] = {config.weight_decay: [], 0.0: []}
    for parameter, decays in _parameters(model):
        groups[config.weight_decay if decays else 0.0].append(parameter)
    listed = [{"params": held, "weight_decay": decay} for decay, held in groups.items() if held]
    return AdamW(listed, lr=config.lr, betas=(0.9, 0.95), fused=True)


def begin_state(optimizer: AdamW, parameters: Collection[nn.Parameter]) -> None:
    """Give some of an optimizer's parameters the state of AdamW before its first step: zeros."""
    for parameter in [x for group in optimizer.param_groups for x in group["params"] if x in parameters]:
        step = torch.zeros((), device=parameter.device)
        zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": step, **zeros}


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    """Every trained parameter once, with True if it decays; a tied one follows the first of its modules."""
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield parameter, parameter.dim() > 1 and not isinstance(module, NOT_DECAYED)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of a step, 0 for the first: a linear rise over `warmup`, then a cosine down to `final_lr`."""
    rise = math.ceil(config.warmup * config.steps)
    if step < rise:
        return config.lr * (step + 1) / rise
    done = (step - rise) / max(1, config.steps - 1 - rise)
    share = config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * done)) / 2
    return config.lr * share
