"""The words of diffusers' training scripts: their defaults, and their arguments beside sd-scripts'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loraloom.actions import Action, Sentence
from loraloom.recipes.names import REASONS
from loraloom.recipes.recipe import listed

__all__ = ["ALIKE", "NAMES", "PRODIGY", "SCRIPTS", "WITHOUT_SETTING", "Defaults"]


@dataclass(frozen=True)
class Defaults:
    """What a script does where an argument is missing."""

    resolution: int
    batch: int
    epochs: int
    lr: float
    output: str
    full: bool = False
    """The whole model is trained."""
    weight_decay: float = 0.01
    preview_epochs: int = 1
    more: Mapping[str, Any] = field(default_factory=dict)


_XL_DREAMBOOTH = {"text_encoder_lr": 5e-6}
SCRIPTS: Mapping[str, Defaults] = {
    "train_text_to_image_lora.py": Defaults(512, 16, 100, 1e-4, "sd-model-finetuned-lora"),
    "train_text_to_image_lora_sdxl.py": Defaults(1024, 16, 100, 1e-4, "sd-model-finetuned-lora"),
    "train_dreambooth_lora.py": Defaults(512, 4, 1, 5e-4, "lora-dreambooth-model", preview_epochs=50),
    "train_dreambooth_lora_sdxl.py": Defaults(
        1024, 4, 1, 1e-4, "lora-dreambooth-model", weight_decay=1e-4, preview_epochs=50, more=_XL_DREAMBOOTH
    ),
    "train_text_to_image.py": Defaults(512, 16, 100, 1e-4, "sd-model-finetuned", full=True, preview_epochs=5),
    "train_text_to_image_sdxl.py": Defaults(1024, 16, 100, 1e-4, "sdxl-model-finetuned", full=True),
    "train_dreambooth.py": Defaults(512, 4, 1, 5e-6, "dreambooth-model", full=True),
}
"""The scripts that are read, and their defaults."""

NAMES = {
    "rank": "network_dim",
    "lora_dropout": "network_dropout",
    "snr_gamma": "min_snr_gamma",
    "random_flip": "flip_aug",
    "num_train_epochs": "max_train_epochs",
    "lr_num_cycles": "lr_scheduler_num_cycles",
    "lr_power": "lr_scheduler_power",
    "pretrained_vae_model_name_or_path": "vae",
    "input_perturbation": "ip_noise_gamma",
    "proportion_empty_prompts": "caption_dropout_rate",
    "report_to": "log_with",
    "tracker_project_name": "log_tracker_name",
    "dataloader_num_workers": "max_data_loader_n_workers",
    "enable_xformers_memory_efficient_attention": "xformers",
    "resume_from_checkpoint": "resume",
    "push_to_hub": "huggingface_repo_id",
    "hub_model_id": "huggingface_repo_id",
    "hub_token": "huggingface_token",
    "pre_compute_text_embeddings": "cache_text_encoder_outputs",
}
"""Arguments that are sd-scripts' under another name."""
ALIKE = listed(
    "pretrained_model_name_or_path seed resolution train_batch_size gradient_accumulation_steps gradient_checkpointing "
    "learning_rate lr_scheduler lr_warmup_steps max_grad_norm noise_offset max_train_steps mixed_precision "
    "use_8bit_adam logging_dir text_encoder_lr"
)
"""Arguments that are sd-scripts' too."""
WITHOUT_SETTING = {
    "revision": "which version of a model on the Hugging Face hub",
    "variant": "which files of a model on the Hugging Face hub",
    "non_ema_revision": "which version of a model on the Hugging Face hub",
    "cache_dir": "models and pictures are used where they lie",
    "image_column": "pictures are the files of a folder",
    "dataset_config_name": "pictures are the files of a folder",
    "max_train_samples": "all pictures of the folder are used",
    "image_interpolation_mode": "chosen by the program: pictures are shrunk and enlarged without moire",
    "allow_tf32": "not offered; mixed_precision=bf16 is faster than it",
    "set_grads_to_none": "always done",
    "enable_npu_flash_attention": REASONS["xformers"],
    "local_rank": "several GPUs are used with torchrun",
    "debug_loss": "every run logs its losses",
    "sample_batch_size": Sentence("regularization images are made before training: ", Action.MAKE_CLASS_IMAGES),
    "prior_generation_precision": Sentence(
        "regularization images are made before training: ", Action.MAKE_CLASS_IMAGES
    ),
    "tokenizer_name": "the tokenizer is part of the program",
    "tokenizer_max_length": "see max_token_length; unset: what the longest caption needs",
    "text_encoder_use_attention_mask": "captions are padded as programs that use the LoRA do",
    "class_labels_conditioning": "belongs to another family of models",
    "do_edm_style_training": "EDM's weights of noise levels are not offered",
    "output_kohya_format": "LoRA files are always in the form that the web UI reads",
    "adam_weight_decay_text_encoder": "one weight decay holds for all parts",
    "validation_images": "previews are painted from noise",
    "validation_scheduler": "the sampler of previews is preview.sampler",
    "validation_steps": "see preview.every_steps",
    "dream_training": "DREAM is not offered",
    "dream_detail_preservation": "DREAM is not offered",
    "offload_ema": "chosen by the program",
    "foreach_ema": "chosen by the program",
    "skip_save_text_encoder": "what was trained is in one file",
    "timestep_bias_strategy": "objective.timestep_sampling chooses timesteps: logit_normal or importance",
    "timestep_bias_multiplier": "see objective.timestep_sampling",
    "timestep_bias_begin": "see objective.timestep_sampling",
    "timestep_bias_end": "see objective.timestep_sampling",
    "timestep_bias_portion": "see objective.timestep_sampling",
}
PRODIGY = {
    "prodigy_decouple": "weight_decouple",
    "prodigy_use_bias_correction": "bias_correction",
    "prodigy_safeguard_warmup": "safeguard_warmup",
    "prodigy_beta3": "beta3",
}
