"""The contract of what a run trains: adapters beside a checkpoint, or the checkpoint's own weights.

:class:`loraloom.adapters.attach.AdapterSet` and :class:`loraloom.training.whole.WholeModel` both meet :class:`Trained`,
``Attachment`` and ``WholeView`` both meet :class:`View`; neither inherits anything from the other. A run asks no more
than this, so the loop, exact resume, the running average, previews and validation are the same for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import nn

from loraloom.adapters.adapter import Rows

__all__ = ["Trained", "View"]


class View(Protocol):
    """How much of what is trained shows on the model."""

    def set_weights(self, *, unet: float, text_encoder: float) -> None:
        """Show each part so strongly: 0 is the checkpoint alone, 1 as it is trained."""

    def detach(self) -> None:
        """Take off what was put on. Safe to call twice."""


class Trained(Protocol):
    """Tensors that learn. The first members are those of every torch module."""

    training: bool

    def train(self, mode: bool = True) -> object:
        """Drop out what the settings say, or (False) nothing."""

    def eval(self) -> object:
        """Drop out nothing."""

    def modules(self) -> Iterator[nn.Module]:
        """Itself and all below."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every tensor, also those that are frozen."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same, each with the name that saved states know it by."""

    def state_dict(self) -> Mapping[str, Any]:
        """What a saved state keeps."""

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> object:
        """The inverse."""

    def parts(self) -> list[str]:
        """The parts of the model that learn, such as ``unet``."""

    def put_on(self, layers: Mapping[str, nn.Module]) -> View:
        """Show it on a live model (``layers``: module by kohya name)."""

    def rest_text_encoders(self) -> None:
        """Drop out nothing in the text encoders, which learn no more, until the next :meth:`train`."""

    def seed_step(self, *key: int | str) -> None:
        """Make this step's dropout a function of ``key`` alone."""

    def take_rows(self, unet: Rows | None, text_encoder: Rows | None) -> None:
        """Say which rows of a larger batch come next, so that each drops what it would have dropped there."""

    def apply_max_norm(self, limit: float) -> object:
        """Shorten every change that is longer than ``limit`` (Frobenius norm)."""
