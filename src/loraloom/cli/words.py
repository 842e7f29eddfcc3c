"""The words of the terminal: what every action that a sentence may propose is called on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping

from loraloom.actions import Action, Sentence, Words

__all__ = ["WORDS", "worded"]


def _make_class_images(values: Mapping[str, str]) -> str:
    """As it is typed: what is known of it in its place, the whole where all is."""
    if "folder" not in values:
        return "loraloom dataset class-images" + (f" ... --count {values['count']}" if "count" in values else "")
    words = ["loraloom", "dataset", "class-images", values["checkpoint"], values["folder"], values["prompt"]]
    for option in ("output", "trigger", "count"):
        words += [f"--{option}", values[option]] if option in values else []
    words += [f"{name}={values[name]}" for name in ("negative_prompt", "cfg_scale", "steps") if name in values]
    return " ".join(word if re.fullmatch(r"[\w.,:/\\=+-]+", word) else f'"{word}"' for word in words)


WORDS: Words = {
    Action.LIST_RUNS: "`loraloom runs`",
    Action.STOP_RUN: "`loraloom stop RUN`",
    Action.RESUME_RUN: "with --resume",
    Action.BRANCH_RUN: "`loraloom train --branch {run}`",
    Action.FORCE_RESUME: "use --force",
    Action.NAME_RUN: "--run runs/my-lora",
    Action.PLAN_MEMORY: "`loraloom plan` with the same settings and --memory",
    Action.LIMIT_MEMORY: "--memory {size}",
    Action.COUNT_PROCESSES: "give --nproc-per-node the number of GPUs",
    Action.MEETING_PLACE: "check --nnodes, --rdzv-endpoint",
    Action.START_CLUSTER: "`ray start --head`",
    Action.LIST_JOBS: "`loraloom jobs`",
    Action.RETRY_JOB: "`loraloom jobs retry {job}`",
    Action.RELEASE_JOB: "`loraloom jobs release {job}`",
    Action.CANCEL_JOB: "`loraloom jobs cancel {job}`",
    Action.NAME_HOME: "choose another folder",
    Action.OPEN_STUDIO_AGAIN: "give the command again: it is kept aside and made anew from the folders",
    Action.LIST_SETTINGS: "`loraloom settings`",
    Action.PRINT_SETTINGS: "loraloom settings --toml prints a file to fill in",
    Action.TRAIN_FILE: "loraloom train {file}",
    Action.TRAIN_ON: "loraloom train --resume {run}",
    Action.LAUNCH_TOGETHER: "torchrun -m loraloom train",
    Action.IMPORT_RECIPE: "loraloom train --import",
    Action.CHECK_DATASET: "loraloom dataset check FOLDER",
    Action.MAKE_CLASS_IMAGES: _make_class_images,
    Action.PAINT_LIKE: "loraloom generate --like {image}",
    Action.NAME_OUTPUT: "with --output",
    Action.NAME_INDEX: "with --index",
    Action.NAME_DEMO_FOLDER: "name another folder: loraloom demo FOLDER",
    Action.SCAN_LIBRARY: "loraloom library scan FOLDER",
    Action.TIDY_FOLDER: "`loraloom doctor --tidy {folder}`",
    Action.SEARCH_LIBRARY: "`loraloom library search`",
    Action.INSPECT_FILE: "`loraloom inspect {file}`",
    Action.HASH_FILE: "--hash",
    Action.LIST_METADATA: "`loraloom metadata FILE`",
    Action.NAME_LORAS: "loraloom merge CHECKPOINT LORA:0.8 -o OUT.safetensors",
    Action.SHOW_TRACEBACK: "--debug",
    Action.SET_ENTRY: "--set {entry}",
    Action.CHANGE_METADATA: "--set, --trigger, --description, --notes, --preview, --remove",
    Action.CHOOSE_PLACE: "give either -o OUT.safetensors or --in-place",
    Action.CUT_RANK: "--rank",
    Action.CHOOSE_NAMES: "--to",
    Action.MERGE_LORAS: "loraloom merge",
    Action.MERGE_PRECISION: "--precision float",
    Action.EXTRACT_LORA: "`loraloom extract`",
    Action.RESIZE_LORA: "loraloom resize",
    Action.CONVERT_LORA: "`loraloom convert`",
    Action.CONVERT_TO_DIFFUSERS: "`loraloom convert --to diffusers`",
}
"""Commands stand in backquotes where they are words of a sentence, and bare where they end it."""


def worded(text: str) -> str:
    """A sentence as the terminal says it; any other text as it is."""
    return text.worded(WORDS) if isinstance(text, Sentence) else text
