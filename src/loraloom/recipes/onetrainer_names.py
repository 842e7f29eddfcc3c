"""OneTrainer's words: families, schedules, optimizers and their options, samplers, and what it takes for granted."""

from __future__ import annotations

from typing import Any

from loraloom.recipes.recipe import listed

__all__ = [
    "DEFAULTS",
    "FAMILIES",
    "OPTIMIZERS",
    "OPTIONS",
    "OTHER_PARTS",
    "PARTS",
    "RENAMED",
    "SAMPLERS",
    "SCHEDULES",
]

FAMILIES = ("STABLE_DIFFUSION_15", "STABLE_DIFFUSION_20", "STABLE_DIFFUSION_21", "STABLE_DIFFUSION_XL")
OTHER_PARTS = listed(
    "prior transformer unconditional_transformer text_encoder_3 text_encoder_4 effnet_encoder decoder "
    "decoder_text_encoder decoder_vqgan quantization"
)
"""Sections for models of other families; every export has them."""
PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")
RENAMED = {
    "lora_layers": "layer_filter",
    "lora_layer_preset": "layer_filter_preset",
    "lora_layers_regex": "layer_filter_regex",
    "save_after": "save_every",
    "save_after_unit": "save_every_unit",
}
"""Names of earlier versions of the file."""
DEFAULTS: dict[str, Any] = {
    "learning_rate": 3e-6,
    "learning_rate_scheduler": "CONSTANT",
    "learning_rate_warmup_steps": 200.0,
    "epochs": 100,
    "resolution": "512",
    "train_dtype": "FLOAT_16",
    "output_dtype": "FLOAT_32",
    "lora_rank": 16,
    "lora_alpha": 1.0,
    "layer_filter_preset": "full",
}
"""What OneTrainer takes where a preset leaves a key out and the value here is another."""
SCHEDULES = {
    "CONSTANT": "constant",
    "LINEAR": "linear",
    "COSINE": "cosine",
    "COSINE_WITH_RESTARTS": "cosine_with_restarts",
    "COSINE_WITH_HARD_RESTARTS": "cosine_with_restarts",
    "REX": "rex",
    "ADAFACTOR": "constant",
}
OPTIMIZERS = {
    "ADAM": "torch.optim.Adam",
    "ADAM_8BIT": "bitsandbytes.optim.Adam8bit",
    "ADAMW": "AdamW",
    "ADAMW_8BIT": "AdamW8bit",
    "ADAGRAD": "torch.optim.Adagrad",
    "ADAGRAD_8BIT": "bitsandbytes.optim.Adagrad8bit",
    "RMSPROP": "torch.optim.RMSprop",
    "RMSPROP_8BIT": "bitsandbytes.optim.RMSprop8bit",
    "SGD": "torch.optim.SGD",
    "SGD_8BIT": "SGDNesterov8bit",
    "LAMB": "pytorch_optimizer.Lamb",
    "LAMB_8BIT": "bitsandbytes.optim.LAMB8bit",
    "LARS": "pytorch_optimizer.LARS",
    "LARS_8BIT": "bitsandbytes.optim.LARS8bit",
    "LION": "Lion",
    "LION_8BIT": "Lion8bit",
    "SCHEDULE_FREE_ADAMW": "AdamWScheduleFree",
    "SCHEDULE_FREE_SGD": "SGDScheduleFree",
    "DADAPT_ADA_GRAD": "DAdaptAdaGrad",
    "DADAPT_ADAM": "DAdaptAdam",
    "DADAPT_ADAN": "DAdaptAdan",
    "DADAPT_LION": "DAdaptLion",
    "DADAPT_SGD": "DAdaptSGD",
    "PRODIGY": "Prodigy",
    "PRODIGY_PLUS_SCHEDULE_FREE": "prodigyplus.ProdigyPlusScheduleFree",
    "ADAFACTOR": "Adafactor",
    "CAME": "pytorch_optimizer.CAME",
    "ADABELIEF": "pytorch_optimizer.AdaBelief",
    "ADOPT": "pytorch_optimizer.ADOPT",
    "TIGER": "pytorch_optimizer.Tiger",
    "AIDA": "pytorch_optimizer.Aida",
    "YOGI": "pytorch_optimizer.Yogi",
    "MUON": "pytorch_optimizer.Muon",
}
OPTIONS = {
    "momentum": "SGD SGD_8BIT RMSPROP LARS DADAPT_SGD",
    "dampening": "SGD",
    "nesterov": "SGD",
    "alpha": "RMSPROP",
    "centered": "RMSPROP",
    "lr_decay": "ADAGRAD",
    "amsgrad": "ADAM ADAMW",
    "d0": "DADAPT_ADA_GRAD DADAPT_ADAM DADAPT_ADAN DADAPT_LION DADAPT_SGD PRODIGY PRODIGY_PLUS_SCHEDULE_FREE",
    "d_coef": "PRODIGY PRODIGY_PLUS_SCHEDULE_FREE",
    "growth_rate": "DADAPT_ADA_GRAD DADAPT_ADAM DADAPT_ADAN DADAPT_SGD PRODIGY",
    "decouple": "DADAPT_ADAM PRODIGY",
    "use_bias_correction": "DADAPT_ADAM PRODIGY",
    "safeguard_warmup": "PRODIGY",
    "slice_p": "PRODIGY",
    "weight_lr_power": "SCHEDULE_FREE_ADAMW SCHEDULE_FREE_SGD",
    "r": "SCHEDULE_FREE_ADAMW SCHEDULE_FREE_SGD",
    "relative_step": "ADAFACTOR",
    "scale_parameter": "ADAFACTOR",
    "warmup_init": "ADAFACTOR",
    "clip_threshold": "ADAFACTOR CAME",
    "decay_rate": "ADAFACTOR",
}
"""Arguments that are passed on, and the optimizers that have them; every export holds those of all."""
SAMPLERS = {
    "DDIM": "ddim",
    "EULER": "euler",
    "EULER_A": "euler_a",
    "DPMPP": "DPM++ 2M",
    "DPMPP_SDE": "DPM++ SDE",
    "UNIPC": "UniPC",
    "EULER_KARRAS": "Euler Karras",
    "DPMPP_KARRAS": "DPM++ 2M Karras",
    "DPMPP_SDE_KARRAS": "DPM++ SDE Karras",
    "UNIPC_KARRAS": "UniPC Karras",
}
