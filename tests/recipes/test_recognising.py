"""Whose recipe a file is: every program by a small file in its form, and none by the names that all of them use."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.errors import FileFormatError
from loraloom.recipes.reading import read_recipe
from loraloom.recipes.recognising import PROGRAMS

AI_TOOLKIT = """
---
job: extension
config:
  name: "ink"
  process:
    - type: 'sd_trainer'
      training_folder: "output"
      network: {type: "lora", linear: 12, linear_alpha: 6}
      # python run.py config/ink.yaml
"""
INVOKE = "type: SDXL_LORA\nseed: 3\noptimizer:\n  optimizer_type: AdamW\n  learning_rate: 3e-4\nmax_train_epochs: 7\n"
BACKENDS = '[{"id": "ink", "type": "local", "instance_data_dir": "ink", "caption_strategy": "textfile", "repeats": 7}]'
SIMPLETUNER = '{"model_type": "lora", "model_family": "sdxl", "data_backend_config": "b.json", "max_train_steps": 30}'
OLD_SIMPLETUNER = '{"--model_type": "lora", "--lora_rank": 12, "--data_backend_config": "b.json", "--seed": 3}'
EVERYDREAM = '{"data_root": "ink", "resume_ckpt": "a", "max_epochs": 7, "batch_size": 3, "save_every_n_epochs": 2}'
PIPE = "output_dir = 'x'\nepochs = 7\nmicro_batch_size_per_gpu = 3\npipeline_stages = 1\n[model]\ntype = 'sdxl'\n"
MUSUBI = "[general]\nresolution = [640, 480]\nbatch_size = 3\n[[datasets]]\nimage_directory = 'ink'\nnum_repeats = 7\n"
WORKFLOW = '{"3": {"class_type": "KSampler", "inputs": {"seed": 3}}, "4": {"class_type": "VAEDecode", "inputs": {}}}'
CAPTIONS = '{"ink/a.png": {"caption": "a fox", "train_resolution": [512, 512]}, "ink/b.png": {"tags": "fox, ink"}}'
COMMAND = "accelerate launch --mixed_precision=bf16"


@pytest.mark.parametrize(
    ("name", "text", "whose"),
    [
        ("a.yaml", AI_TOOLKIT, "ai-toolkit's job"),
        ("a.json", '{"job": "train", "config": {"name": "ink", "process": []}}', "ai-toolkit's job"),
        ("a.sh", "python run.py config/ink.yml --recover\n", "ai-toolkit"),
        ("a.yaml", INVOKE, "invoke-training"),
        ("a.json", BACKENDS, "SimpleTuner's list of data backends"),
        ("a.json", SIMPLETUNER, "SimpleTuner's configuration"),
        ("a.json", OLD_SIMPLETUNER, "SimpleTuner's configuration"),
        ("config.env", "export TRAINING_NUM_PROCESSES=1\nexport LORA_RANK=12\n", "SimpleTuner"),
        ("a.sh", "accelerate launch train.py --data_backend_config=b.json --lora_rank=12\n", "SimpleTuner"),
        ("a.json", '{"algo": "lokr", "linear_dim": 12, "linear_alpha": 6, "factor": 3}', "LyCORIS' wrapper"),
        ("a.json", '{"net_dim": 12, "alpha": 6, "img_folder": "x", "unet_lr": 3e-4, "num_epochs": 3}', "early 2023"),
        ("a.json", EVERYDREAM, "EveryDream2"),
        ("a.json", '{"base": {"lr": 1e-6}, "text_encoder_overrides": {"lr": null}}', "EveryDream2"),
        ("a.toml", PIPE, "diffusion-pipe"),
        ("a.toml", "resolutions = [512]\n[[directory]]\npath = 'ink'\nnum_repeats = 7\n", "diffusion-pipe"),
        ("a.sh", "deepspeed --num_gpus=1 train.py --deepspeed --config ink.toml\n", "diffusion-pipe"),
        ("a.toml", MUSUBI, "musubi-tuner"),
        ("a.sh", f"{COMMAND} hv_train_network.py --dit=d.pt --network_module=networks.lora --network_dim=12", "musubi"),
        ("a.sh", f"{COMMAND} flux_train_network.py --network_dim=12 --network_args train_blocks=all", "another family"),
        (
            "a.toml",
            "dit = 'd.pt'\nt5 = 't.pt'\nnetwork_dim = 12\nlearning_rate = 3e-4\n",
            "another family",
        ),
        ("a.toml", "network_module = 'networks.lora_flux'\nnetwork_dim = 12\n", "another family"),
        ("a.toml", "model_train_type = 'flux-lora'\nnetwork_dim = 12\nlearning_rate = 3e-4\n", "another family"),
        ("a.sh", f"{COMMAND} sdxl_train_control_net.py --learning_rate=3e-4\n", "ControlNet"),
        ("a.sh", f"{COMMAND} train_dreambooth_lora_flux.py --rank=12 --instance_prompt='a fox'\n", "something other"),
        ("a.sh", f"{COMMAND} train_lora_dreambooth.py --instance_data_dir=ink --lora_rank=12\n", "cloneofsimo"),
        ("a.sh", "lora_pti --instance_data_dir=ink --lora_rank=12 --use_template=style\n", "cloneofsimo"),
        ("a.sh", "accelerate launch --rank=12 --num_train_epochs=3\n", "not of which one"),
        ("a.json", WORKFLOW, "ComfyUI"),
        ("a.json", '{"last_node_id": 9, "nodes": [], "links": []}', "ComfyUI"),
        ("a.json", '{"samples_save": true, "sd_model_checkpoint": "a.ckpt", "seed": 3}', "web UI"),
        ("a.json", '{"txt2img/Prompt/value": "", "txt2img/Seed/value": 3}', "web UI"),
        ("a.json", '{"peft_type": "LORA", "r": 12, "lora_alpha": 6, "target_modules": ["to_q"]}', "PEFT adapter"),
        ("a.json", '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "U"]}', "diffusers'"),
        ("a.json", '{"architectures": ["CLIPTextModel"], "seed": 3}', "transformers'"),
        ("a.json", '{"metadata": {}, "weight_map": {"a": "b.safetensors"}}', "index"),
        ("a.json", CAPTIONS, "captions in one file"),
        ("a.yaml", "compute_environment: LOCAL_MACHINE\nmixed_precision: bf16\n", "accelerate's configuration"),
        ("a.json", '[{"path": "ink", "image": {}, "text": {}, "balancing": 7}]', "OneTrainer's list of concepts"),
        ("a.json", '[{"prompt": "a fox", "random_seed": true, "diffusion_steps": 30}]', "list of samples"),
        (
            "a.toml",
            "[accelerate_launch]\nx = 1\n[basic]\nseed = 3\n[advanced]\nclip_skip = 2\n",
            "kohya_ss",
        ),
        ("a.yaml", "model: x\nlora_r: 12\nlearning_rate: 0.0003\n", "YAML"),
    ],
)
def test_files_of_other_programs_are_refused_by_name(tmp_path: Path, name: str, text: str, whose: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(FileFormatError, match=whose) as caught:
        read_recipe(tmp_path / name)
    assert "not read here" in caught.value.problem and caught.value.hint


@pytest.mark.parametrize(
    ("name", "text", "program"),
    [
        ("a.toml", "network_dim = 12\n", "sd-scripts"),
        ("a.toml", "[one]\nlearning_rate = 3e-4\n[two]\nseed = 3\n", "sd-scripts"),
        ("a.toml", "model_train_type = 'sdxl-lora'\nnetwork_dim = 12\nlr_restart_cycles = 3\n", "sd-scripts"),
        ("a.sh", "train_network.py --seed=3\n", "sd-scripts"),
        ("a.sh", "python my_wrapper.py --network_dim=12 --something=3\n", "sd-scripts"),
        ("a.ps1", '$network_dim = 12\n$unet_lr = "3e-4"\n', "sd-scripts"),
        ("a.toml", "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'ink'\n", "sd-scripts' dataset file"),
        ("a.toml", "[[subsets]]\nimage_dir = 'ink'\n", "LoRA_Easy_Training_Scripts"),
        ("a.toml", "[general_args.args]\nseed = 3\n", "LoRA_Easy_Training_Scripts"),
        ("a.sh", "train_text_to_image_lora.py --rank=12\n", "diffusers' script"),
        ("a.json", '[{"instance_data_dir": "ink"}]', "sd_dreambooth_extension's concepts list"),
        (
            "a.json",
            '{"training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", "peft_type": "LORA"}',
            "OneTrainer",
        ),
    ],
)
def test_files_that_are_read(tmp_path: Path, name: str, text: str, program: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_recipe(tmp_path / name).program == program


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "learning_rate = 3e-4\nlora_r = 12\nseed = 3\n"),
        ("a.json", '{"network_dim": 12, "one": 1, "two": 2, "three": 3}'),
        ("a.json", '{"name": "a package", "version": "1.0", "scripts": {"train": "x"}}'),
        ("a.sh", "python other_train.py --lr=3e-4 --seed=3\n"),
        ("a.toml", "[project]\nname = 'ink'\n[tool.ruff]\nline-length = 99\n"),
    ],
)
def test_what_is_not_known_is_refused_and_never_filled_up(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(FileFormatError, match="not a recipe that is known here") as caught:
        read_recipe(tmp_path / name)
    for program in ("sd-scripts", "OneTrainer", "LoRA_Easy_Training_Scripts", "diffusers"):
        assert program in caught.value.hint


def test_every_row_says_what_to_do() -> None:
    assert all(program.reader or program.hint for program in PROGRAMS)
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)
