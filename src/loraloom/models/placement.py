"""A part of a model that rests on the CPU and is on the device only while it is used."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

__all__ = ["Placement"]


@dataclass
class Placement:
    """Where a part rests and where it is used. Its resting tensors are kept, so leaving the device copies nothing."""

    module: nn.Module
    device: torch.device
    users: int = 0
    resting: list[tuple[nn.Module, str, nn.Parameter]] = field(default_factory=list)

    def enter(self) -> None:
        """Move the part to the device, unless somebody uses it already."""
        if self.users == 0:
            self.resting = [
                (owner, name, parameter)
                for owner in self.module.modules()
                for name, parameter in owner.named_parameters(recurse=False)
            ]
            for owner, name, parameter in self.resting:
                moved = nn.Parameter(parameter.detach().to(self.device), requires_grad=parameter.requires_grad)
                owner.register_parameter(name, moved)
        self.users += 1

    def leave(self) -> None:
        """Put the resting tensors back when the last user leaves."""
        self.users -= 1
        if self.users == 0:
            for owner, name, parameter in self.resting:
                owner.register_parameter(name, parameter)
            self.resting = []
