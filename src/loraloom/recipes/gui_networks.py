"""Kinds of LoRA in kohya_ss: the module that each stands for, and which fields of the form it uses."""

from __future__ import annotations

from dataclasses import dataclass

from loraloom.recipes.recipe import listed

__all__ = ["NETWORKS", "NETWORK_KEYS", "PASSED_AS", "Network", "used_by"]

NETWORK_KEYS = listed(
    "conv_dim conv_alpha block_dims block_alphas conv_block_dims conv_block_alphas conv_dims conv_alphas rank_dropout "
    "module_dropout rank_dropout_scale unit factor bypass_mode dora_wd use_cp use_tucker use_scalar constrain rescaled "
    "train_norm decompose_both train_on_input down_lr_weight mid_lr_weight up_lr_weight block_lr_zero_threshold "
    "LyCORIS_preset loraplus_lr_ratio loraplus_unet_lr_ratio loraplus_text_encoder_lr_ratio"
)
"""Fields of the form that are arguments of a network."""
PASSED_AS = {"LyCORIS_preset": "preset", "constrain": "constraint"}
"""The two that the network has other names for."""
_BLOCKS = (
    "down_lr_weight mid_lr_weight up_lr_weight block_lr_zero_threshold "
    "block_dims block_alphas conv_block_dims conv_block_alphas"
)
_PLUS = "loraplus_lr_ratio loraplus_unet_lr_ratio loraplus_text_encoder_lr_ratio"
_CONV = "conv_dim conv_alpha"
_DROPOUT = "rank_dropout module_dropout"
_LYCORIS = f"LyCORIS_preset {_CONV} {_DROPOUT} rank_dropout_scale train_norm"
_LOCON = f"{_LYCORIS} use_tucker bypass_mode dora_wd use_scalar"


@dataclass(frozen=True)
class Network:
    """An entry of the menu LoRA_type."""

    module: str
    """sd-scripts' network_module, for LyCORIS with its algorithm."""
    fields: str
    """Those of NETWORK_KEYS that the GUI passes on. It saves the others all the same."""


NETWORKS = {
    "Standard": Network("networks.lora", f"{_BLOCKS} {_DROPOUT}"),
    "Kohya LoCon": Network("networks.lora", f"{_CONV} {_BLOCKS} {_DROPOUT}"),
    "LoRA-FA": Network("networks.lora_fa", f"{_BLOCKS} {_DROPOUT}"),
    "Kohya DyLoRA": Network("networks.dylora", f"{_CONV} {_BLOCKS} {_DROPOUT} unit"),
    "Kohya LoHa": Network("networks.loha", f"{_CONV} use_tucker {_DROPOUT}"),
    "Kohya LoKr": Network("networks.lokr", f"{_CONV} use_tucker factor {_DROPOUT}"),
    "LoCon": Network("lycoris.kohya algo=locon", _LOCON),
    "LyCORIS/LoCon": Network("lycoris.kohya algo=locon", _LOCON),
    "LyCORIS/LoHa": Network("lycoris.kohya algo=loha", _LOCON),
    "LyCORIS/LoKr": Network(
        "lycoris.kohya algo=lokr", f"{_LYCORIS} use_tucker bypass_mode dora_wd factor use_cp use_scalar decompose_both"
    ),
    "LyCORIS/Diag-OFT": Network("lycoris.kohya algo=diag-oft", f"{_LYCORIS} use_tucker constrain rescaled"),
    "LyCORIS/BOFT": Network("lycoris.kohya algo=boft", f"{_LYCORIS} use_tucker"),
    "LyCORIS/DyLoRA": Network("lycoris.kohya algo=dylora", f"{_LYCORIS} use_tucker unit"),
    "LyCORIS/GLoRA": Network("lycoris.kohya algo=glora", f"{_LYCORIS} use_tucker"),
    "LyCORIS/iA3": Network("lycoris.kohya algo=ia3", f"LyCORIS_preset {_CONV} train_on_input"),
    "LyCORIS/Native Fine-Tuning": Network(
        "lycoris.kohya algo=full", f"LyCORIS_preset {_DROPOUT} rank_dropout_scale train_norm"
    ),
}
"""The menu. A kind that it does not have and that begins with LyCORIS/ is an algorithm of that name."""


def used_by(kind: str) -> frozenset[str]:
    """The fields that count for an entry of the menu; none for one that is not known."""
    return frozenset(f"{NETWORKS[kind].fields} {_PLUS}".split()) if kind in NETWORKS else frozenset()
