"""What a person can do next, as data: each door says it in its own words (a command, an option, a button).

Nothing below the doors knows a command or an option by name. A sentence that proposes something holds the
:class:`Action` where a door has words of its own, and reads in neutral words for everybody else::

    hint = Sentence(Action.LIST_RUNS, " lists them")
    str(hint)             "the overview of the runs lists them"
    hint.worded(WORDS)    the same with a command's name in it, where WORDS is the table of the command line
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

__all__ = ["Action", "Proposal", "Sentence", "Wording", "Words", "parts_from_record", "parts_to_record"]

Wording = str | Callable[[Mapping[str, str]], str]
"""How an action is worded: text with ``{names}`` of its values, or a function of them."""


class Action(Enum):
    """Everything that a sentence may propose. The value says it in neutral words, so that sentences read well.

    Values in braces come with the proposal; where one is not known, its name stands for it in capitals.
    """

    LIST_RUNS = "the overview of the runs"
    STOP_RUN = "a request to stop"
    RESUME_RUN = "from its last state"
    BRANCH_RUN = "a branch of the run"
    FORCE_RESUME = "go on all the same"
    NAME_RUN = "name the folder of the run"
    PLAN_MEMORY = "a plan of the memory with the same settings"
    LIMIT_MEMORY = "the memory {size}"
    COUNT_PROCESSES = "start as many processes on a machine as it has GPUs"
    MEETING_PLACE = "check the number of machines, the address at which they meet"
    START_CLUSTER = "start a cluster"

    LIST_JOBS = "the queue"
    RETRY_JOB = "another try"
    RELEASE_JOB = "a release"
    CANCEL_JOB = "a cancellation"
    NAME_HOME = "choose another folder"
    OPEN_STUDIO_AGAIN = "open it again: it is kept aside and made anew from the folders"

    LIST_SETTINGS = "the reference of the settings"
    PRINT_SETTINGS = "the settings have a file to fill in"

    TRAIN_FILE = "train with it"
    TRAIN_ON = "resume that run"
    LAUNCH_TOGETHER = "a process for each"
    IMPORT_RECIPE = "the import"
    CHECK_DATASET = "the check of the dataset"
    MAKE_CLASS_IMAGES = "make class images"
    PAINT_LIKE = "generating with its settings"

    NAME_OUTPUT = "for the pictures"
    NAME_INDEX = "for the index"
    NAME_DEMO_FOLDER = "name another folder"
    SCAN_LIBRARY = "name the folders to look into"
    TIDY_FOLDER = "their removal"
    SEARCH_LIBRARY = "a search of the library"

    INSPECT_FILE = "an inspection"
    HASH_FILE = "computing it"
    LIST_METADATA = "the list of its metadata"
    NAME_LORAS = "a LoRA and its weight"
    SHOW_TRACEBACK = "the traceback"
    SET_ENTRY = "the entry {entry}"
    CHANGE_METADATA = "an entry, a preview, or what to remove"
    CHOOSE_PLACE = "name a file to write, or let the file itself be replaced"
    CUT_RANK = "a rank"
    CHOOSE_NAMES = "a choice of names"
    MERGE_LORAS = "a merge"
    MERGE_PRECISION = "float"
    EXTRACT_LORA = "extract"
    RESIZE_LORA = "a resize"
    CONVERT_LORA = "a conversion"
    CONVERT_TO_DIFFUSERS = "a conversion to diffusers' form"

    def of(self, **values: object) -> Proposal:
        """The action with the values it is to be done with, such as the run's name."""
        return Proposal(self, tuple((name, str(value)) for name, value in values.items()))


Words = Mapping[Action, Wording]
"""A door's table: how it says each action."""


@dataclass(frozen=True)
class Proposal:
    """An action in a sentence, with the values it is to be done with."""

    action: Action
    values: tuple[tuple[str, str], ...] = ()

    def worded(self, words: Words | None = None) -> str:
        """In a door's words; in neutral ones without a table."""
        wording = self.action.value if words is None else words[self.action]
        values = _Known(self.values)
        return wording(values) if callable(wording) else string.Formatter().vformat(wording, (), values)


class _Known(dict[str, str]):
    """Values by name; one that is not known is its own name in capitals, as in a usage line."""

    def __missing__(self, name: str) -> str:
        return name.upper()


class Sentence(str):
    """Text in neutral words that keeps the actions it proposes: ``parts`` are pieces of text and proposals.

    It is a ``str``, and goes wherever text goes. Formatting it into another text leaves the neutral words; a sentence
    among the parts of a new one keeps its actions.
    """

    parts: tuple[str | Proposal, ...]

    def __new__(cls, *parts: str | Action | Proposal) -> Self:
        """Join the parts."""
        flat = tuple(_flat(parts))
        sentence = super().__new__(cls, "".join(part if isinstance(part, str) else part.worded() for part in flat))
        sentence.parts = flat
        return sentence

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.parts

    @property
    def actions(self) -> tuple[Proposal, ...]:
        """What it proposes, in its order: what a page makes buttons of."""
        return tuple(part for part in self.parts if isinstance(part, Proposal))

    def worded(self, words: Words) -> str:
        """The sentence in a door's words."""
        return "".join(part if isinstance(part, str) else part.worded(words) for part in self.parts)

    def each(self, change: Callable[[str], str]) -> Sentence:
        """The sentence with ``change`` made to every piece of text and every value in it."""
        return Sentence(
            *(
                change(part)
                if isinstance(part, str)
                else Proposal(part.action, tuple((name, change(value)) for name, value in part.values))
                for part in self.parts
            )
        )


def _flat(parts: Iterable[str | Action | Proposal]) -> Iterable[str | Proposal]:
    for part in parts:
        if isinstance(part, Sentence):
            yield from part.parts
        elif isinstance(part, Action):
            yield Proposal(part)
        else:
            yield part


def parts_to_record(sentence: Sentence) -> list[Any]:
    """The parts as JSON-ready data: text as it is, an action as a table of its name and values."""
    return [
        part if isinstance(part, str) else {"action": part.action.name.lower(), **dict(part.values)}
        for part in sentence.parts
    ]


def parts_from_record(parts: Iterable[Any]) -> Sentence:
    """The inverse of :func:`parts_to_record`. Raises KeyError for an action that this version does not know."""
    return Sentence(*(part if isinstance(part, str) else _proposal(part) for part in parts))


def _proposal(record: Mapping[str, Any]) -> Proposal:
    values = {name: str(value) for name, value in record.items() if name != "action"}
    return Action[str(record["action"]).upper()].of(**values)
