"""The table of names: which setting a key of sd-scripts is, and why the others are none.

A key with a :class:`~loraloom.setting_marks.Kohya` mark on a setting is taken over by that mark. The tables here hold
other spellings, and the reason for each key that has no setting. Keys that are read together are in the table of
:mod:`~loraloom.recipes.sd_scripts`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from loraloom.actions import Action, Sentence
from loraloom.errors import nearest
from loraloom.recipes.recipe import field_rows, listed

__all__ = [
    "ACCELERATE",
    "KINDS_NOT_OFFERED",
    "KOHYA_SAMPLERS",
    "REASONS",
    "SPELLINGS",
    "TRAIN_NETWORK_ARGUMENTS",
    "WHOLE_MODEL_RATES",
    "marked",
    "reason_for",
    "setting_of",
]


@cache
def marked() -> dict[str, str]:
    """Every name that a mark gives to a setting of the run (not of an entry of a list) and that setting's path."""
    return {name: row.path for row in field_rows().values() if "[]" not in row.path for name in row.kohya}


SPELLINGS = {
    "caption_extention": "caption_extension",
    "lr_warmup_ratio": "lr_warmup_steps",
    "scheduler": "lr_scheduler",
    "ckpt": "pretrained_model_name_or_path",
    "num_epochs": "max_train_epochs",
    "image_dir": "train_data_dir",
    "reg_dir": "reg_data_dir",
    "vae_path": "vae",
    "is_sd_v2_ckpt": "v2",
    "is_sd_v2_768_ckpt": "v_parameterization",
    "gradient_acc_steps": "gradient_accumulation_steps",
    "resume_path": "resume",
    "dataset_repeats": "num_repeats",
}
"""Other spellings, old ones and those of the guide's script, of sd-scripts' names."""

KOHYA_SAMPLERS = {
    "ddim": "DDIM",
    "euler": "Euler",
    "k_euler": "Euler",
    "euler_a": "Euler a",
    "k_euler_a": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "k_lms": "LMS",
    "pndm": "PLMS",
    "dpm_2": "DPM2",
    "k_dpm_2": "DPM2",
    "dpm_2_a": "DPM2 a",
    "k_dpm_2_a": "DPM2 a",
    "dpmsolver++": "DPM++ 2M",
}
"""Samplers of sd-scripts' previews that are the same here; the others become DPM++ 2M."""

_DISTRIBUTED = "an option of accelerate and DeepSpeed, which are not used"
_HUB = "uploads to the Hugging Face hub are not part of training here"
_SPEED = "not needed: attention is PyTorch's memory-efficient one"
_LOG = "every run logs to its own folder (events.jsonl); other loggers read from there"
_WORKERS = "not needed: pictures are encoded once before the first step, so nothing is loaded while training"
_DETECTED = "detected from the checkpoint"
_RESUME = Sentence("a run goes on from its own folder: ", Action.TRAIN_ON)
_PRECISION = "the LoRA itself stays in fp32 here, which costs little memory; mixed_precision decides the rest"
_METADATA = "not written into the file's metadata"
_OTHER_FAMILY = "belongs to a family of models that is not trained here (SD3, FLUX and others)"

_WHOLE_MODEL = "for training the whole model (method=full); this recipe is for a LoRA, and text_encoder_lr counts"

WHOLE_MODEL_RATES = ("learning_rate_te", "learning_rate_te1", "learning_rate_te2")
"""Rates of the text encoders in sd-scripts' programs for whole models."""
ACCELERATE = listed(
    "num_cpu_threads_per_process num_processes num_machines multi_gpu gpu_ids main_process_port main_process_ip "
    "machine_rank dynamo_mode dynamo_use_fullgraph dynamo_use_dynamic extra_accelerate_launch_args use_deepspeed "
    "use_cpu quiet same_network rdzv_backend"
)
"""Options of ``accelerate launch``."""


def _without(reason: str, keys: str) -> dict[str, str]:
    """Keys that become no setting for one reason."""
    return dict.fromkeys(listed(keys), reason)


REASONS: dict[str, str] = {
    "v2": _DETECTED,
    "sdxl": _DETECTED,
    "tokenizer_cache_dir": "the tokenizer is part of the program",
    "tokenizer": "the tokenizer is part of the program",
    "vae": "the checkpoint's own VAE encodes the pictures; put another one into the checkpoint",
    "xformers": _SPEED,
    "sdpa": _SPEED,
    "mem_eff_attn": _SPEED,
    "torch_compile": "kernels are chosen by the program",
    "dynamo_backend": "kernels are chosen by the program",
    "cache_latents": "always done",
    "vae_batch_size": "chosen by the program; it changes no result",
    "skip_cache_check": "not needed: encoded pictures are found by what is in them, so a changed picture is seen",
    "cache_text_encoder_outputs": "always done while the text encoder is not trained",
    "text_encoder_batch_size": "chosen by the program; it changes no result",
    "cache_info": "not needed: captions and sizes are read again in seconds, and never out of date",
    "disable_mmap_load_safetensors": "files are always mapped",
    "max_data_loader_n_workers": _WORKERS,
    "persistent_data_loader_workers": _WORKERS,
    "no_half_vae": "not needed: the VAE encodes in a precision that cannot overflow",
    "highvram": "chosen by the program",
    "lowvram": "see low_memory",
    "cpu_offload_checkpointing": "not offered; gradient_checkpointing=full keeps fewest activations",
    "full_fp16": _PRECISION,
    "full_bf16": _PRECISION,
    "fused_backward_pass": "not offered: gradients are kept until the step; those of a LoRA are small",
    "face_crop_aug_range": "random crops around faces are not offered; dataset.random_crop crops anywhere",
    "debug_dataset": Sentence(Action.CHECK_DATASET, " shows what a dataset is made of"),
    "dataset_class": "a dataset cannot be given as Python code",
    "resize_interpolation": "chosen by the program: pictures are shrunk and enlarged without moire",
    "no_token_padding": "captions are always padded, as programs that use the LoRA do",
    "network_multiplier": "a LoRA has one strength for all datasets; loss_weight of a concept makes its pictures count "
    "more",
    "custom_attributes": "free attributes of a folder are not read, except for diff_output_preservation",
    "no_metadata": "the metadata is always written; it holds no folder names beyond the last one",
    "metadata_usage_hint": _METADATA,
    "metadata_thumbnail": _METADATA,
    "metadata_merged_from": Sentence("written by ", Action.MERGE_LORAS, ", not by training"),
    "metadata_preprocessor": _METADATA,
    "metadata_is_negative_embedding": "a LoRA is not an embedding",
    "use_safetensors": "saving.format is safetensors unless it says otherwise",
    "save_last_n_steps_state": "states are counted, not measured in steps: saving.keep_states",
    "resume": _RESUME,
    "resume_from_huggingface": _RESUME,
    "initial_epoch": _RESUME,
    "initial_step": _RESUME,
    "skip_until_initial_step": _RESUME,
    "max_validation_steps": "all held-out pictures are measured",
    "output_config": Sentence(Action.PRINT_SETTINGS),
    "mode_scale": _OTHER_FAMILY,
    "model_train_type": "see method and adapter.kind",
    "blocks_to_swap": "low_memory=true keeps each part on the device only while it is used",
    "zero3_init_flag": _DISTRIBUTED,
    "train_inpainting": "inpainting models are not trained",
    "desired_training_time": "a run is as long as epochs or steps say; minutes cannot be given",
    "gpu_training_speed": "only needed for desired_training_time",
    "is_random_seed": "the seed is a number; every value is a new draw: seed=1337",
    "do_not_interrupt": "training never stops to ask something",
    "test_run": "settings are always checked before anything is loaded",
    "sd_scripts_dir": "sd-scripts is not needed",
    "use_vae": "the checkpoint's own VAE encodes the pictures; put another one into the checkpoint",
    "logging_enabled": _LOG,
    **_without(
        _DISTRIBUTED,
        "deepspeed zero_stage offload_optimizer_device offload_optimizer_nvme_path offload_param_device "
        "offload_param_nvme_path zero3_save_16bit_model fp16_master_weights_and_gradients ddp_timeout "
        "ddp_gradient_as_bucket_view ddp_static_graph",
    ),
    **_without(
        _HUB,
        "huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_token "
        "huggingface_repo_visibility save_state_to_huggingface async_upload",
    ),
    **_without(
        _LOG,
        "logging_dir log_with log_prefix log_tracker_name log_tracker_config log_config wandb_run_name wandb_api_key "
        "use_wandb console_log_level console_log_file console_log_simple",
    ),
    **dict.fromkeys((*WHOLE_MODEL_RATES, "train_text_encoder"), _WHOLE_MODEL),
    **_without("not offered", "blockwise_fused_optimizers flux_fused_backward_pass fused_optimizer_groups"),
    **_without(
        "for training an embedding, which is not offered",
        "init_word num_vectors_per_token template token_string weights",
    ),
    **_without(
        "for files of captions and latents made beforehand; here captions are text files, and the run makes latents",
        "create_caption create_buckets caption_metadata_filename latent_metadata_filename full_path "
        "use_latent_files image_folder batch_size_finetune",
    ),
    **dict.fromkeys(ACCELERATE, "an option of accelerate, which is not used"),
}
"""Why a key becomes no setting."""

_PLAIN = "adapter.kind=lora trains a plain LoRA instead"
_TURNS = "which turns weights instead of adding to them, is not offered: adapter.kind=lokr or dora is nearest to it"
KINDS_NOT_OFFERED = {
    "dylora": Sentence(
        f"DyLoRA, which learns all ranks up to its own at once, is not offered: {_PLAIN}, ",
        Action.RESIZE_LORA,
        " lowers its rank afterwards",
    ),
    "oft": f"OFT, {_TURNS}",
    "boft": f"BOFT, {_TURNS}",
    "glora": f"GLoRA is not offered: {_PLAIN}",
    "vera": f"VeRA is not offered: {_PLAIN}",
}
"""What to do about kinds of adapters that are not trained here."""

NETWORK_REASONS = {
    "rank_dropout_scale": "what dropout leaves is scaled as adapter.rank_dropout does it",
    "unit": "DyLoRA is not offered",
    "block_size": "DyLoRA is not offered",
    "preset": "layers are chosen by adapter.unet, text_encoder, conv_rank, include and exclude",
    "train_norm": "normalisation layers are not trained beside a LoRA; method=full trains them with everything else",
    "use_tucker": "the Tucker form of convolutions is not offered",
    "use_cp": "the Tucker form of convolutions is not offered",
    "use_scalar": "a scalar to train per layer is not offered",
    "bypass_mode": "chosen by the program; it changes no result",
    "dora_wd": "DoRA is adapter.kind=dora, for plain LoRA only",
    "wd_on_output": "see adapter.dora_axis",
    "unbalanced_factorization": "the sides of LoKr are chosen by adapter.lokr_factor",
    "constraint": "OFT is not offered",
    "constrain": "OFT is not offered",
    "rescaled": "OFT is not offered",
    "enable_all_linear": "OFT is not offered",
    "enable_conv": "OFT is not offered",
    "train_on_input": "chosen by layer: see adapter.kind",
    "train_lora_ggpo": "the gradient-guided perturbation (GGPO) is not offered",
    "ggpo_sigma": "the gradient-guided perturbation (GGPO) is not offered",
    "ggpo_beta": "the gradient-guided perturbation (GGPO) is not offered",
    "disable_conv_cp": "the Tucker form of convolutions is not offered",
    "regularizers": "not offered",
}
"""The same for what is in network_args."""

TRAIN_NETWORK_ARGUMENTS = listed(
    "adaptive_noise_scale alpha_mask async_upload base_weights base_weights_multiplier bucket_no_upscale "
    "bucket_reso_steps cache_info cache_latents cache_latents_to_disk caption_dropout_every_n_epochs "
    "caption_dropout_rate caption_extension caption_extention caption_prefix caption_separator caption_suffix "
    "caption_tag_dropout_rate clip_skip color_aug conditioning_data_dir config_file console_log_file "
    "console_log_level console_log_simple cpu_offload_checkpointing dataset_class dataset_config dataset_repeats "
    "ddp_gradient_as_bucket_view ddp_static_graph ddp_timeout debiased_estimation_loss debug_dataset deepspeed "
    "dim_from_weights dynamo_backend enable_bucket enable_wildcard face_crop_aug_range flip_aug "
    "fp16_master_weights_and_gradients fp8_base fp8_base_unet full_bf16 full_fp16 fused_backward_pass "
    "gradient_accumulation_steps gradient_checkpointing highvram huber_c huber_scale huber_schedule "
    "huggingface_path_in_repo huggingface_repo_id huggingface_repo_type huggingface_repo_visibility "
    "huggingface_token in_json initial_epoch initial_step ip_noise_gamma ip_noise_gamma_random_strength keep_tokens "
    "keep_tokens_separator learning_rate log_config log_prefix log_tracker_config log_tracker_name log_with "
    "logging_dir loss_type lowram lr_decay_steps lr_scheduler lr_scheduler_args lr_scheduler_min_lr_ratio "
    "lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_timescale lr_scheduler_type lr_warmup_steps masked_loss "
    "max_bucket_reso max_data_loader_n_workers max_grad_norm max_timestep max_token_length max_train_epochs "
    "max_train_steps max_validation_steps mem_eff_attn metadata_author metadata_description "
    "metadata_is_negative_embedding metadata_license metadata_merged_from metadata_preprocessor metadata_tags "
    "metadata_thumbnail metadata_title metadata_trigger_phrase metadata_usage_hint min_bucket_reso min_snr_gamma "
    "min_timestep mixed_precision multires_noise_discount multires_noise_iterations network_alpha network_args "
    "network_dim network_dropout network_module network_train_text_encoder_only network_train_unet_only "
    "network_weights no_half_vae no_metadata noise_offset noise_offset_random_strength offload_optimizer_device "
    "offload_optimizer_nvme_path offload_param_device offload_param_nvme_path optimizer_args optimizer_type "
    "output_config output_dir output_name persistent_data_loader_workers pretrained_model_name_or_path "
    "prior_loss_weight random_crop reg_data_dir resize_interpolation resolution resume resume_from_huggingface "
    "sample_at_first sample_every_n_epochs sample_every_n_steps sample_prompts sample_sampler save_every_n_epochs "
    "save_every_n_steps save_last_n_epochs save_last_n_epochs_state save_last_n_steps save_last_n_steps_state "
    "save_model_as save_n_epoch_ratio save_precision save_state save_state_on_train_end save_state_to_huggingface "
    "scale_v_pred_loss_like_noise_pred scale_weight_norms sdpa secondary_separator seed shuffle_caption "
    "skip_cache_check skip_until_initial_step text_encoder_lr tokenizer_cache_dir token_warmup_min token_warmup_step "
    "torch_compile train_batch_size train_data_dir training_comment unet_lr use_8bit_adam use_lion_optimizer v2 "
    "v_parameterization v_pred_like_loss vae vae_batch_size validate_every_n_epochs validate_every_n_steps "
    "validation_seed validation_split wandb_api_key wandb_run_name weighted_captions xformers zero3_init_flag "
    "zero3_save_16bit_model zero_stage zero_terminal_snr"
)
"""Every argument of sd-scripts' train_network.py (of February 2026): the list that coverage is measured on."""


def setting_of(name: str) -> str | None:
    """The path of the setting that a key of sd-scripts is; None where there is none."""
    name = SPELLINGS.get(name, name)
    return marked().get(name)


def reason_for(name: str, *, network: bool = False) -> str | None:
    """Why a key of sd-scripts is not a setting; None for a key that is not known."""
    name = SPELLINGS.get(name, name)
    return (NETWORK_REASONS.get(name) if network else None) or REASONS.get(name) or NETWORK_REASONS.get(name)


def unknown(name: str, others: Iterable[str] = ()) -> str:
    """What to say of a key that is not known, with the nearest name that is."""
    known = {*TRAIN_NETWORK_ARGUMENTS, *marked(), *REASONS, *NETWORK_REASONS, *SPELLINGS, *others}
    close = nearest(name, known)
    return "not known" + (f"; the nearest name is {close[0]}" if close else "")
