"""Optimizers by name: each a few lines around a library's class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loraloom.registry import Entry, Registry

if TYPE_CHECKING:
    import torch

    from loraloom.training.settings import OptimizerSettings

__all__ = ["OPTIMIZERS", "create_optimizer"]


def adamw(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101) as torch has it."""
    from torch.optim import AdamW

    return AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay)


OPTIMIZERS = Registry(
    "optimizer", {"adamw": Entry("loraloom.training.optimizers:adamw", "AdamW")}, aliases={"AdamW": "adamw"}
)


def create_optimizer(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer that the settings name, over parameter groups ``{"params", "lr", "name"}``."""
    optimizer: torch.optim.Optimizer = OPTIMIZERS.load(settings.name)(groups, settings)
    return optimizer
