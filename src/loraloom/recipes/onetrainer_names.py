"""The tables of OneTrainer's configuration: which keys are settings here, and why the others are none."""

from __future__ import annotations

from typing import Any

from loraloom.recipes.recipe import listed

__all__ = [
    "DEFAULTS",
    "FAMILIES",
    "OFF",
    "OPTIMIZERS",
    "OPTIONS",
    "OTHER_PARTS",
    "PARTS",
    "REASONS",
    "RENAMED",
    "SAME",
    "SAMPLERS",
    "SCHEDULES",
    "SILENT",
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
SAME = {
    "epochs": "epochs",
    "batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "ema_decay": "ema.decay",
    "ema_update_step_interval": "ema.every",
    "dropout_probability": "adapter.dropout",
    "offset_noise_weight": "objective.noise_offset",
    "rescale_noise_scheduler_to_zero_terminal_snr": "zero_terminal_snr",
    "normalize_masked_area_loss": "objective.masked_loss_normalized",
    "unmasked_weight": "objective.mask_floor",
    "aspect_ratio_bucketing": "dataset.buckets",
    "lora_model_name": "adapter.start_from",
    "rolling_backup_count": "saving.keep_states",
}
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

_CHOSEN = "chosen by the program"
_EMBEDDING = "embeddings are not trained"
_GPUS = "several GPUs: torchrun -m loraloom train"
REASONS = {
    "compile": _CHOSEN,
    "continue_last_backup": "a run goes on from its own folder: loraloom train --resume RUN",
    "custom_conditioning_image": "pictures for conditioning are not used in training",
    "debug_mode": "loraloom dataset check FOLDER shows what a dataset is made of",
    "device_indexes": _GPUS,
    "dynamic_timestep_shifting": "not for Stable Diffusion",
    "embedding_learning_rate": _EMBEDDING,
    "preserve_embedding_norm": _EMBEDDING,
    "force_circular_padding": "pictures without seams are not trained for",
    "generalized_offset_noise": "noise is offset alike at all timesteps; see objective.noise_offset",
    "include_train_config": "always done: a LoRA file records every setting",
    "lokr_use_tucker": "the Tucker form is not offered",
    "lokr_weight_decompose": "LoKr with DoRA is not offered",
    "lora_weight_dtype": "what is trained stays in fp32; mixed_precision decides the rest",
    "loss_scaler": "an image's loss counts alike in every batch; a factor on all of it changes nothing for Adam",
    "masked_prior_preservation_weight": "the checkpoint's own answer outside of masks is not asked for",
    "multi_gpu": _GPUS,
    "only_cache": "encoded pictures are made when a run starts",
    "perturbation_noise_weight": "there the target is disturbed with the noise, which only makes it stronger; "
    "objective.ip_noise_gamma disturbs what the model sees",
    "prevent_overwrites": "nothing is ever written over",
    "rolling_backup": "see saving.keep_states",
    "sample_skip_first": "previews begin with the first time that is due",
    "save_filename_prefix": "files have the run's name",
    "save_skip_first": "files are saved from the first time that is due",
    "tensorboard": "the curves are drawn into curves.png; tensorboard=true writes them for TensorBoard too",
    "tensorboard_always_on": "only while a run writes them",
    "tensorboard_expose": "the curves are files; start TensorBoard on their folder",
    "timestep_shift": "timesteps are not shifted; see objective.timestep_sampling",
    "unmasked_probability": "masks are used in every step",
    "unet.activation_offloading": "not offered; gradient_checkpointing=full keeps fewest activations",
    "unet.offload_fraction": "whole parts rest in main memory with low_memory=true",
}
"""Why a key becomes no setting."""
OFF = {
    "perturbation_noise_weight": 0,
    "masked_prior_preservation_weight": 0,
    "timestep_shift": 1,
    "lora_weight_dtype": "FLOAT_32",
    "loss_scaler": "NONE",
    "include_train_config": "NONE",
}
"""Values with which a key of REASONS asks for nothing, beyond those that are empty or off."""
SILENT = frozenset(
    listed(
        "async_offloading cache_dir cloud dataloader_threads embedding additional_embeddings embedding_weight_dtype "
        "enable_autocast_cache fallback_train_dtype frames huggingface_cache_dir latent_caching oft_block_share "
        "oft_block_size oft_scaled optimizer_defaults sample_audio_format sample_video_format secrets temp_device "
        "tensorboard_port text_encoder_2_sequence_length text_encoder_sequence_length vb_loss_strength train_device "
        "lokr_vec_trick lokr_dora_on_output lora_decompose_norm_epsilon bundle_additional_embeddings debug_dir "
        "attention_mechanism backup_before_save clear_cache_before_training gradient_reduce_precision "
        "gradient_reduce_prevision fused_gradient_reduce async_gradient_reduce async_gradient_reduce_buffer "
        "non_ema_sampling samples_to_tensorboard workspace_dir offline_mode sample_image_format"
    )
)
"""Keys of every export that say nothing about what is learned."""
