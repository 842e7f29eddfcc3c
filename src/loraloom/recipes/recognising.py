"""Whose file it is: decided before anything in it is read as a setting, by what only that program writes.

One table for all programs, those that are read and those that are not. Names that several programs use alike
(``learning_rate``, ``seed``) decide nothing, and a file that no row knows is refused: what is left out of somebody
else's recipe must not be filled up with sd-scripts' defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from loraloom.actions import Action, Sentence
from loraloom.errors import FileFormatError
from loraloom.recipes.dataset_config import is_dataset_config
from loraloom.recipes.diffusers_names import SCRIPTS
from loraloom.recipes.dreambooth import is_db_config
from loraloom.recipes.dreambooth_concepts import is_concepts_list
from loraloom.recipes.easy_scripts import is_easy_scripts
from loraloom.recipes.gui import is_gui_file
from loraloom.recipes.names import REASONS, SPELLINGS, TRAIN_NETWORK_ARGUMENTS, WHOLE_MODEL_RATES
from loraloom.recipes.onetrainer import is_onetrainer
from loraloom.recipes.parsing import Document, flattened
from loraloom.recipes.recipe import listed
from loraloom.recipes.scripts import Script

__all__ = ["PROGRAMS", "READ", "Evidence", "Program", "Reader", "recognise", "refusal"]

Reader = Literal[
    "concepts list", "OneTrainer", "db_config", "Easy Scripts", "dataset file", "GUI", "sd-scripts", "diffusers"
]
"""Who reads a file that was recognised."""

READ = (
    "sd-scripts, kohya_ss, LoRA_Easy_Training_Scripts, sd_dreambooth_extension, OneTrainer, the scripts of diffusers, "
    "and LoRA files"
)
"""The programs whose recipes are read, for people."""


@dataclass(frozen=True)
class Evidence:
    """What a file shows of the program that wrote it."""

    document: Document
    script: Script | None = None

    @property
    def table(self) -> Mapping[str, Any]:
        """The data where it is a table; else an empty one."""
        return self.document.data if isinstance(self.document.data, Mapping) else {}

    @property
    def entries(self) -> list[Mapping[str, Any]]:
        """The data where it is a list of tables; else none."""
        data = self.document.data
        is_tables = isinstance(data, list) and bool(data) and all(isinstance(entry, Mapping) for entry in data)
        return data if is_tables else []

    @property
    def program(self) -> str:
        """The Python program that a command line calls."""
        return "" if self.script is None else self.script.program

    @property
    def names(self) -> frozenset[str]:
        """Names of settings: the keys of a table without sections and of its sections, or those of a command line."""
        if self.script is not None:
            return frozenset(_plain(name) for name, _ in self.script.pairs) | {*map(_plain, self.script.computed)}
        return frozenset(_plain(key) for key, _ in flattened(self.table))

    def has(self, *keys: str) -> bool:
        """Whether the table has all these keys."""
        return all(key in self.table for key in keys)

    def says(self, pattern: str) -> bool:
        """Whether a text that is neither JSON nor TOML has this in it."""
        is_text = self.document.kind in ("script", "text")
        return is_text and bool(re.search(pattern, self.document.text, re.MULTILINE))


@dataclass(frozen=True)
class Program:
    """A kind of file, how it is known, and who reads it. One without a reader is refused, with the hint."""

    name: str
    is_its: Callable[[Evidence], bool]
    reader: Reader | None = None
    hint: str = ""


def _plain(name: Any) -> str:
    return str(name).strip().lstrip("-").replace("-", "_")


def _count(names: str) -> Callable[[Evidence], int]:
    marks = frozenset(listed(names))
    return lambda evidence: len(marks & evidence.names)


_SD_SCRIPTS = frozenset(
    listed(
        "train_network.py sdxl_train_network.py train_db.py fine_tune.py sdxl_train.py train_textual_inversion.py "
        "sdxl_train_textual_inversion.py train_textual_inversion_XTI.py"
    )
)
_SHARED = frozenset(
    listed(
        "resolution seed learning_rate output_dir mixed_precision gradient_accumulation_steps gradient_checkpointing "
        "lr_scheduler scheduler lr_warmup_steps max_train_steps max_grad_norm train_batch_size logging_dir log_with "
        "resume vae deepspeed prior_loss_weight torch_compile noise_offset use_8bit_adam train_data_dir sample_prompts "
        "pretrained_model_name_or_path text_encoder_lr cache_latents loss_type huber_c huber_schedule clip_skip "
        "sdpa xformers min_snr_gamma save_every_n_epochs max_train_epochs optimizer_type caption_prefix num_epochs "
        "save_every_n_steps random_crop wandb_api_key lowram v2 image_dir num_processes"
    )
)
"""sd-scripts' names that other programs use too."""
_EVERYDREAM = _count("resume_ckpt data_root project_name max_epochs ckpt_every_n_minutes optimizer_config flip_p")
_SIMPLETUNER = _count(
    "data_backend_config model_family aspect_bucket_rounding disable_benchmark checkpoint_step_interval "
    "DATALOADER_CONFIG MAX_NUM_STEPS INSTANCE_DIR TRACKER_PROJECT_NAME MODEL_FAMILY TRAINING_NUM_PROCESSES"
)
_DIFFUSERS = _count(
    "num_train_epochs rank validation_prompt validation_epochs checkpointing_steps report_to instance_data_dir "
    "instance_prompt with_prior_preservation snr_gamma dataset_name caption_column adam_beta1 adam_weight_decay"
)
_MUSUBI = _count(
    "dit task t5 text_encoder1 text_encoder2 fp8_scaled discrete_flow_shift blocks_to_swap vae_dtype qwen3"
)
_WEB_UI = _count("samples_save sd_model_checkpoint outdir_samples outdir_txt2img_samples samples_filename_pattern")
_OTHER_FAMILIES = re.compile(
    r"\w+_train_network\.py|(flux|sd3|lumina|hunyuan|hv|wan|fpack|qwen|zimage|anima|chroma|hidream|kandinsky)\w*_train\.py"
)
_KOHYA_GUI_DEFAULTS = ("accelerate_launch", "advanced", "basic")


@cache
def _known_to_sd_scripts() -> frozenset[str]:
    return frozenset({*TRAIN_NETWORK_ARGUMENTS, *SPELLINGS, *WHOLE_MODEL_RATES, "sdxl", "learning_rate_te"})


def _is_sd_scripts(evidence: Evidence) -> bool:
    """A name that only sd-scripts has, among names of which at least half are its own; or nothing but its names."""
    names = evidence.names
    arguments = names & _known_to_sd_scripts()
    own, known = arguments - _SHARED, arguments | (names & REASONS.keys())
    if evidence.script is not None:
        return evidence.program in _SD_SCRIPTS or bool(own)
    return bool(arguments) and (known == names or (bool(own) and 2 * len(known) >= len(names)))


def _trains_another_family(evidence: Evidence) -> bool:
    """sd-scripts' programs for other models, and musubi-tuner's, which are called alike."""
    module = str(evidence.table.get("network_module", ""))
    is_theirs = re.fullmatch(r"networks\.lora_(?!fa$)\w+", module) is not None
    program = _OTHER_FAMILIES.fullmatch(evidence.program)
    kind = str(evidence.table.get("model_train_type", "sd-lora"))  # of lora-scripts, which calls sd-scripts
    is_other = not kind.startswith(("sd-", "sdxl-"))
    return is_theirs or is_other or (program is not None and evidence.program not in _SD_SCRIPTS)


def _is_backend(entry: Mapping[str, Any]) -> bool:
    marks = {"dataset_type", "caption_strategy", "metadata_backend", "cache_dir_vae", "crop_style", "cache_dir"}
    return "id" in entry and "type" in entry and bool(marks & set(entry))


def _is_own(data: Mapping[str, Any]) -> bool:
    dataset = data.get("dataset")
    return isinstance(dataset, Mapping) and bool({"folder", "concepts"} & set(dataset))


def _tables(value: Any) -> Sequence[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def _is_workflow(evidence: Evidence) -> bool:
    nodes = [value for value in evidence.table.values() if isinstance(value, Mapping)]
    is_prompt = bool(nodes) and all("class_type" in node for node in nodes)
    return evidence.has("nodes", "links") or is_prompt


def _are_captions(evidence: Evidence) -> bool:
    rows = list(evidence.table.values())
    is_row = {"caption", "tags", "train_resolution"}
    return bool(rows) and all(isinstance(row, Mapping) and is_row & set(row) for row in rows)


_BY_HAND = Action.PRINT_SETTINGS
_OTHER_MODELS = "LoRAs for Stable Diffusion 1, 2 and XL are trained here"
_CAPTIONS = "captions of many pictures in one file are dataset.captions.table=FILE"

PROGRAMS: tuple[Program, ...] = (
    Program(
        "a settings file of this program already",
        lambda e: _is_own(e.table),
        hint=Sentence(Action.TRAIN_FILE.of(file="FILE")),
    ),
    # Lists.
    Program(
        "SimpleTuner's list of data backends",
        lambda e: any(_is_backend(entry) for entry in e.entries),
        hint="name the folder of each as an entry of dataset.concepts, with its repeats and caption",
    ),
    Program("sd_dreambooth_extension's concepts list", lambda e: is_concepts_list(e.document.data), "concepts list"),
    Program(
        "OneTrainer's list of concepts",
        lambda e: any({"path", "image", "text"} <= set(entry) for entry in e.entries),
        hint="import the configuration that names it (concept_file_name); the list is read with it",
    ),
    Program(
        "OneTrainer's list of samples",
        lambda e: any({"prompt", "random_seed", "diffusion_steps"} <= set(entry) for entry in e.entries),
        hint="import the configuration that names it (sample_definition_file_name); the list is read with it",
    ),
    # What is not a recipe at all.
    Program(
        "a workflow of ComfyUI",
        _is_workflow,
        hint=Sentence("it paints pictures and trains nothing; ", Action.PAINT_LIKE, " paints as an image was painted"),
    ),
    Program(
        "the web UI's own configuration",
        lambda e: _WEB_UI(e) >= 2 or any(str(key).startswith("txt2img/") for key in e.table),
        hint="it holds no recipe; that of sd_dreambooth_extension is models/dreambooth/NAME/db_config.json",
    ),
    Program(
        "the description of a PEFT adapter",
        lambda e: e.has("peft_type") and not e.has("training_method"),
        hint=Sentence("the weights are beside it: ", Action.INSPECT_FILE.of(file="adapter_model.safetensors")),
    ),
    Program(
        "the description of a model in diffusers' or transformers' form",
        lambda e: e.has("_class_name") or e.has("_diffusers_version") or e.has("architectures"),
        hint="a Diffusers folder is a checkpoint: checkpoint=FOLDER",
    ),
    Program("an index of a model's files", lambda e: e.has("weight_map"), hint="give checkpoint=FOLDER or FILE"),
    Program("sd-scripts' captions in one file", _are_captions, hint=_CAPTIONS),
    Program(
        "accelerate's configuration",
        lambda e: e.has("compute_environment") or e.says(r"^compute_environment\s*:"),
        hint="it says how processes are started and holds no recipe; several GPUs are used with torchrun",
    ),
    # Other trainers.
    Program("OneTrainer", lambda e: is_onetrainer(e.document.data), "OneTrainer"),
    Program(
        "ai-toolkit's job",
        lambda e: e.has("job", "config") or (e.says(r"^job\s*:") and e.says(r"^\s*process\s*:")),
        hint=Sentence(
            _BY_HAND,
            ": adapter.rank is its network.linear, optimizer.lr its train.lr, steps its train.steps, "
            "dataset.folder its folder_path",
        ),
    ),
    Program(
        "a command line of ai-toolkit", lambda e: e.says(r"\brun\.py\s+\S+\.(ya?ml|json)"), hint=Sentence(_BY_HAND)
    ),
    Program(
        "SimpleTuner's configuration",
        lambda e: (
            _SIMPLETUNER(e) >= 2
            or "data_backend_config" in e.names
            or e.says(r"\bsimpletuner\s+train\b|^(export\s+)?(TRAINING_NUM_PROCESSES|DATALOADER_CONFIG|MODEL_FAMILY)=")
        ),
        hint=Sentence(
            _BY_HAND,
            ": adapter.rank is its lora_rank, optimizer.lr its learning_rate, steps its max_train_steps; "
            "the pictures are in the file that data_backend_config names",
        ),
    ),
    Program(
        "a configuration of LyCORIS' wrapper",
        lambda e: e.has("apply_preset") or e.has("algo", "linear_dim"),
        hint="adapter.kind, adapter.rank and adapter.alpha say it here: algo, linear_dim and linear_alpha",
    ),
    Program(
        "a JSON file of LoRA_Easy_Training_Scripts of early 2023",
        lambda e: e.has("net_dim") and bool({"img_folder", "base_model", "train_resolution"} & set(e.table)),
        hint=Sentence(
            _BY_HAND,
            ": adapter.rank is its net_dim, adapter.alpha its alpha, dataset.folder its img_folder; the "
            "TOML files of later versions are read",
        ),
    ),
    Program(
        "EveryDream2's recipe",
        lambda e: _EVERYDREAM(e) >= 2 or e.has("base", "text_encoder_overrides"),
        hint=Sentence(
            _BY_HAND,
            ": it trains the whole model (method=full), dataset.folder is its data_root, epochs its "
            "max_epochs, checkpoint its resume_ckpt",
        ),
    ),
    Program(
        "diffusion-pipe's recipe",
        lambda e: (
            e.has("micro_batch_size_per_gpu")
            or e.has("pipeline_stages")
            or bool(_tables(e.table.get("directory")))
            or {"deepspeed", "config"} == e.names
        ),
        hint=_OTHER_MODELS,
    ),
    Program(
        "invoke-training's recipe",
        lambda e: e.says(r"^type\s*:\s*[A-Z]+_(LORA|TEXTUAL_INVERSION|FINETUNE|LORA_AND_TEXTUAL_INVERSION)\b"),
        hint=Sentence(
            _BY_HAND,
            ": adapter.rank is its lora_rank_dim, epochs its max_train_epochs; its metadata.jsonl is read "
            "as dataset.captions.table",
        ),
    ),
    Program(
        "a dataset file of musubi-tuner",
        lambda e: any(
            {"image_directory", "video_directory", "image_jsonl_file", "video_jsonl_file"} & set(dataset)
            for dataset in _tables(e.table.get("datasets"))
        ),
        hint=_OTHER_MODELS,
    ),
    Program(
        "a recipe of sd-scripts or musubi-tuner for another family of models",
        lambda e: _trains_another_family(e) or (_MUSUBI(e) >= 2 and not is_gui_file(e.document.data)),
        hint=_OTHER_MODELS,
    ),
    Program(
        "the defaults of kohya_ss' form",
        lambda e: e.has(*_KOHYA_GUI_DEFAULTS),
        hint="save the form itself (Configuration, Save as) and import that JSON file",
    ),
    Program(
        "a command line that trains a ControlNet or a LECO",
        lambda e: re.search(r"control_?net|lllite|leco", e.program) is not None,
        hint=_OTHER_MODELS,
    ),
    Program(
        "cloneofsimo's command line",
        lambda e: e.program == "train_lora_dreambooth.py" or e.says(r"\blora_pti\b"),
        hint=Sentence(_BY_HAND),
    ),
    # What is read, from the most peculiar to the most general.
    Program("sd_dreambooth_extension's db_config.json", lambda e: is_db_config(e.document.data), "db_config"),
    Program("LoRA_Easy_Training_Scripts", lambda e: is_easy_scripts(e.document.data), "Easy Scripts"),
    Program("sd-scripts' dataset file", lambda e: is_dataset_config(e.document.data), "dataset file"),
    Program("kohya_ss' GUI", lambda e: is_gui_file(e.document.data), "GUI"),
    Program("diffusers' script", lambda e: e.program in SCRIPTS, "diffusers"),
    Program(
        "a command line of diffusers for something other than what is trained here",
        lambda e: (
            e.program not in _SD_SCRIPTS
            and re.match(
                r"(train_(dreambooth|text_to_image|controlnet|instruct|lcm|custom|uncond)|textual_inv)", e.program
            )
            is not None
        ),
        hint=f"read are {', '.join(SCRIPTS)}",
    ),
    Program("sd-scripts", _is_sd_scripts, "sd-scripts"),
    Program(
        "arguments of a script of diffusers, but not of which one",
        lambda e: _DIFFUSERS(e) >= 2,
        hint="give the whole command line, with the name of the script: what is left out depends on it",
    ),
    Program(
        "a YAML file of a program that is not known",
        lambda e: e.document.kind == "text" and len(re.findall(r"^[\w-]+:(\s|$)", e.document.text, re.MULTILINE)) > 1,
        hint=f"read are those of {READ}",
    ),
)
"""The first row that knows a file has it. What is peculiar comes before what is general."""


def recognise(evidence: Evidence) -> Program | None:
    """The kind of file; None for one that is not known."""
    return next((program for program in PROGRAMS if program.is_its(evidence)), None)


def _with_name(hint: str, path: Path) -> str:
    """The hint with the file's name where it says FILE."""
    return Sentence(hint).each(lambda text: text.replace("FILE", str(path)))


def refusal(evidence: Evidence, program: Program | None) -> FileFormatError:
    """What to say of a file that is not read: whose it is and what to do, or that it is not known."""
    path = evidence.document.path
    if program is not None:
        more = "" if program is PROGRAMS[0] else ", which is not read here"
        return FileFormatError(f"{path} is {program.name}{more}", _with_name(program.hint, path))
    keys = sorted(evidence.names)
    examples = f": its settings ({', '.join(keys[:3])}) belong to none of them" if keys else ""
    return FileFormatError(f"{path} is not a recipe that is known here{examples}", f"read are those of {READ}")
