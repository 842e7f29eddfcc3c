"""The words of the terminal: what every action that a sentence may propose is called on the command line."""

from __future__ import annotations

from loraloom.actions import Action, Sentence, Words

__all__ = ["WORDS", "worded"]

WORDS: Words = {
    Action.LIST_RUNS: "`loraloom runs`",
    Action.STOP_RUN: "`loraloom stop RUN`",
    Action.RESUME_RUN: "with --resume",
    Action.BRANCH_RUN: "`loraloom train --branch {run}`",
    Action.FORCE_RESUME: "use --force",
    Action.NAME_RUN: "--run runs/my-lora",
    Action.PLAN_MEMORY: "`loraloom plan` with the same settings and --memory",
    Action.COUNT_PROCESSES: "give --nproc-per-node the number of GPUs",
    Action.MEETING_PLACE: "check --nnodes, --rdzv-endpoint",
    Action.START_CLUSTER: "`ray start --head`",
    Action.LIST_SETTINGS: "`loraloom settings`",
    Action.NAME_OUTPUT: "with --output",
    Action.NAME_INDEX: "with --index",
    Action.NAME_DEMO_FOLDER: "name another folder: loraloom demo FOLDER",
    Action.SCAN_LIBRARY: "loraloom library scan FOLDER",
    Action.SEARCH_LIBRARY: "`loraloom library search`",
    Action.INSPECT_FILE: "`loraloom inspect FILE`",
    Action.HASH_FILE: "--hash",
    Action.LIST_METADATA: "`loraloom metadata FILE`",
    Action.NAME_LORAS: "loraloom merge CHECKPOINT LORA:0.8 -o OUT.safetensors",
    Action.MERGE_PRECISION: "--precision float",
    Action.EXTRACT_LORA: "`loraloom extract`",
    Action.CONVERT_LORA: "`loraloom convert`",
    Action.CONVERT_TO_DIFFUSERS: "`loraloom convert --to diffusers`",
}
"""Commands stand in backquotes where they are words of a sentence, and bare where they end it."""


def worded(text: str) -> str:
    """A sentence as the terminal says it; any other text as it is."""
    return text.worded(WORDS) if isinstance(text, Sentence) else text
