"""What a LoRA file's metadata says about its kind, in the words of sd-scripts and LyCORIS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.adapter_kinds import ADAPTERS

if TYPE_CHECKING:
    from loraloom.adapters.adapter import Adapter

__all__ = ["network_args", "network_metadata"]


def network_metadata(settings: AdapterSettings) -> dict[str, object]:
    """``ss_network_*`` without the prefix: module, dim, alpha and dropout as the file has them.

    Ranks that differ from layer to layer are ``Dynamic``, as in files that sd-scripts has resized.
    """
    kind: type[Adapter] = ADAPTERS.load(settings.kind)
    by_layer = settings.rank_from_file or settings.block_ranks is not None
    rank: int | str = "Dynamic" if by_layer else settings.rank
    alpha: float | str = settings.alpha or float(settings.rank)

    # Readers divide alpha by the rank in the file, and know neither rank stabilization nor a doubled rank.
    if isinstance(rank, int) and not isinstance(alpha, str):
        if settings.rank_stabilized:
            alpha *= rank**0.5
        if kind.doubles_rank(settings):
            rank, alpha = 2 * rank, 2 * alpha

    if by_layer or settings.block_alphas is not None:
        alpha = "Dynamic"

    return {
        "network_module": kind.network_module or kind.__module__,
        "network_dim": rank,
        "network_alpha": alpha,
        "network_dropout": settings.dropout,
        "scale_weight_norms": settings.max_norm or None,
    }


def network_args(settings: AdapterSettings) -> dict[str, object]:
    """What sd-scripts writes as ``ss_network_args``: only what was asked for."""
    args: dict[str, object] = {}
    kind: type[Adapter] = ADAPTERS.load(settings.kind)
    if kind.algorithm:
        args["algo"] = kind.algorithm
    if settings.conv_rank:
        args |= {"conv_dim": settings.conv_rank, "conv_alpha": settings.conv_alpha or settings.conv_rank}
    args |= kind.network_args(settings) | settings.args
    for name, value in (("rank_dropout", settings.rank_dropout), ("module_dropout", settings.module_dropout)):
        if value:
            args[name] = value
    blocks = {
        "block_dims": settings.block_ranks,
        "block_alphas": settings.block_alphas,
        "conv_block_dims": settings.conv_block_ranks,
        "conv_block_alphas": settings.conv_block_alphas,
    }
    args |= {name: ",".join(f"{value:g}" for value in values) for name, values in blocks.items() if values is not None}
    return args
