"""What becomes of a caption each time its picture is shown: a table of operations, applied in order.

The order is that of sd-scripts, with these differences: a line is chosen before prefix and suffix are added, so that
every line gets them; each operation has draws of its own, so that switching one on does not change what another does;
the trigger comes last and stays in front; commas inside the brackets of a weighted caption do not split it.

Everything is a pure function of the picture, the run's seed and the moment: nothing is remembered between draws.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from loraloom.data.settings import CaptionSettings
from loraloom.randomness import seed_of, shuffled, uniform

__all__ = [
    "FACES",
    "FILEWORDS",
    "OPERATIONS",
    "Moment",
    "caption_of",
    "file_words",
    "fullest_caption",
    "without_underscores",
]

FILEWORDS = "[filewords]"
"""What stands for the picture's own caption in captions.sentence."""

FACES = frozenset(
    {"0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@"}
    | {"^_^", "o_o", "u_u", "x_x", "|_|", "||_||"}
)
"""Tags that are faces: their underscores are kept."""

_LEADING_NUMBER = re.compile(r"^[-\d]+\s*")
_CHOICE = re.compile(r"\{([^{}]*)\}")
_OPEN, _CLOSE = "\ue000", "\ue001"  # stand for {{ and }} while choices are made


@dataclass(frozen=True)
class Moment:
    """When a caption is drawn: everything besides the picture that it depends on.

    ``epoch`` and ``step`` count from 0; ``occurrence`` numbers the showings of the picture within the epoch;
    ``total_steps`` and ``steps_per_epoch`` are those of the run (only tag warm-up asks for them and for ``step``).
    """

    seed: int
    epoch: int = 0
    occurrence: int = 0
    step: int = 0
    total_steps: int = 0
    steps_per_epoch: int = 0


@dataclass(frozen=True)
class Draft:
    """A caption on its way: text, or tags while it is taken apart (``front`` and ``back`` keep their places)."""

    text: str
    lines: tuple[str, ...] = ()
    front: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    back: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Draw:
    """One draw: the settings, and random numbers keyed by the picture, the moment and the operation's name."""

    settings: CaptionSettings
    moment: Moment
    identity: str

    def key(self, operation: str, *more: int | str) -> tuple[int | str, ...]:
        moment = self.moment
        return (moment.seed, "caption", operation, moment.epoch, self.identity, moment.occurrence, *more)


def caption_of(lines: Sequence[str], settings: CaptionSettings, identity: str, moment: Moment) -> str:
    """The caption that the model gets when the picture ``identity`` is shown at ``moment``.

    ``lines`` are the lines of its caption. With settings that change nothing it is the first of them.
    """
    draft = Draft("", tuple(lines) or ("",))
    draw = _Draw(settings, moment, identity)
    for _, wanted, operation in OPERATIONS:
        if wanted(settings):
            draft = operation(draft, draw)
    return draft.text


def fullest_caption(lines: Sequence[str], settings: CaptionSettings) -> str:
    """A caption with nothing left out, as long as it can become (counted in characters): what lengths are judged by."""
    calm = {"dropout": 0.0, "dropout_every_epochs": 0, "shuffle": False, "tag_dropout": 0.0, "warmup_steps": 0.0}
    plain = settings.model_copy(update={**calm, "warmup_epochs": 0.0, "wildcards": False, "lines": "first"})
    if settings.lines == "join":
        plain = plain.model_copy(update={"lines": "join"})
    choices = [tuple(lines)] if settings.lines != "random" else [(line,) for line in lines]
    texts = [caption_of(choice, plain, "", Moment(0)) for choice in choices or [("",)]]
    if settings.wildcards:
        texts = [_chosen(text, lambda options: max(options, key=len)) for text in texts]
    return max(texts, key=len)


def file_words(name: str) -> str:
    """The words of a file name without its suffix: a number in front is left out (the web UI's [filewords])."""
    return _LEADING_NUMBER.sub("", name).strip()


def without_underscores(text: str, separator: str = ",") -> str:
    """Underscores as spaces, except in faces."""
    pattern = re.compile(rf"(?:(?!{re.escape(separator)})\S)+")
    return pattern.sub(lambda word: word[0] if word[0] in FACES else word[0].replace("_", " "), text)


# -- the operations ------------------------------------------------------------------------------------------------


def _line(draft: Draft, draw: _Draw) -> Draft:
    match draw.settings.lines:
        case "first":
            text = draft.lines[0]
        case "random":
            text = draft.lines[seed_of(*draw.key("line")) % len(draft.lines)]
        case "join":
            text = _joint(draw.settings).join(line.strip().rstrip(draw.settings.separator) for line in draft.lines)
    return replace(draft, text=text)


def _sentence(draft: Draft, draw: _Draw) -> Draft:
    return replace(draft, text=draw.settings.sentence.replace(FILEWORDS, draft.text))


def _prefix_and_suffix(draft: Draft, draw: _Draw) -> Draft:
    parts = (draw.settings.prefix, draft.text, draw.settings.suffix)
    return replace(draft, text=" ".join(part for part in parts if part))


def _wildcards(draft: Draft, draw: _Draw) -> Draft:
    made = 0

    def choose(options: list[str]) -> str:
        nonlocal made
        made += 1
        return options[seed_of(*draw.key("wildcard", made)) % len(options)]

    return replace(draft, text=_chosen(draft.text, choose))


def _underscores(draft: Draft, draw: _Draw) -> Draft:
    settings = draw.settings
    text, trigger = draft.text, settings.trigger
    parts = re.split(f"({re.escape(trigger)})", text, flags=re.IGNORECASE) if trigger else [text]
    changed = [part if index % 2 else without_underscores(part, settings.separator) for index, part in enumerate(parts)]
    return replace(draft, text="".join(changed))


def _split(draft: Draft, draw: _Draw) -> Draft:
    settings = draw.settings
    mark = settings.keep_tokens_separator
    if mark and mark in draft.text:
        front, _, rest = draft.text.partition(mark)
        middle, _, back = rest.partition(mark)
        return replace(draft, front=_tags(front, settings), tags=_tags(middle, settings), back=_tags(back, settings))
    tags = _tags(draft.text, settings)
    return replace(draft, front=tags[: settings.keep_tokens], tags=tags[settings.keep_tokens :])


def _warm_up(draft: Draft, draw: _Draw) -> Draft:
    """The first tags only: their number grows evenly from warmup_min to all of them."""
    settings, moment = draw.settings, draw.moment
    steps = settings.warmup_steps
    if settings.warmup_epochs:
        steps = settings.warmup_epochs * moment.steps_per_epoch
    elif steps < 1:
        steps = math.floor(steps * moment.total_steps)
    if moment.step >= steps:
        return draft
    least = min(settings.warmup_min, len(draft.tags))
    return replace(draft, tags=draft.tags[: least + math.floor(moment.step * (len(draft.tags) - least) / steps)])


def _shuffle(draft: Draft, draw: _Draw) -> Draft:
    return replace(draft, tags=tuple(shuffled(draft.tags, *draw.key("shuffle"))))


def _drop_tags(draft: Draft, draw: _Draw) -> Draft:
    settings = draw.settings
    kept = {tag.casefold() for tag in (*settings.keep_tags, settings.trigger) if tag}
    times: dict[str, int] = {}
    tags = []
    for tag in draft.tags:  # keyed by the tag, not by its place: shuffling does not change what is dropped
        times[tag] = times.get(tag, -1) + 1
        if tag.casefold() in kept or uniform(*draw.key("tag dropout", tag, times[tag])) >= settings.tag_dropout:
            tags.append(tag)
    return replace(draft, tags=tuple(tags))


def _join(draft: Draft, draw: _Draw) -> Draft:
    tags = (*draft.front, *draft.tags, *draft.back)
    return replace(draft, text=_joint(draw.settings).join(tags))


def _without_mark(draft: Draft, draw: _Draw) -> Draft:
    settings = draw.settings
    parts = (part.strip().strip(settings.separator) for part in draft.text.split(settings.keep_tokens_separator))
    return replace(draft, text=_joint(settings).join(part.strip() for part in parts if part.strip()))


def _secondary(draft: Draft, draw: _Draw) -> Draft:
    settings = draw.settings
    return replace(draft, text=_joint(settings).join(p.strip() for p in draft.text.split(settings.secondary_separator)))


def _trigger(draft: Draft, draw: _Draw) -> Draft:
    trigger = draw.settings.trigger
    if re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", draft.text, re.IGNORECASE):
        return draft
    return replace(draft, text=_joint(draw.settings).join(part for part in (trigger, draft.text) if part))


def _dropout(draft: Draft, draw: _Draw) -> Draft:
    settings = draw.settings
    every = settings.dropout_every_epochs
    by_epoch = every > 0 and (draw.moment.epoch + 1) % every == 0
    if by_epoch or (settings.dropout > 0 and uniform(*draw.key("dropout")) < settings.dropout):
        return replace(draft, text="")
    return draft


# -- their material ------------------------------------------------------------------------------------------------


def _joint(settings: CaptionSettings) -> str:
    """What tags are joined with: the separator and a space."""
    return settings.separator if settings.separator[-1].isspace() else f"{settings.separator} "


def _tags(text: str, settings: CaptionSettings) -> tuple[str, ...]:
    return tuple(tag for tag in _pieces(text, settings.separator, settings) if tag)


def _pieces(text: str, separator: str, settings: CaptionSettings) -> list[str]:
    """The text between separators; those inside the brackets of a weighted caption do not count."""
    if not settings.weighted or not any(bracket in text for bracket in "([") or not separator:
        return [piece.strip() for piece in text.split(separator)]

    pieces, start, position, open_brackets = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2
            continue
        if character in "([":
            open_brackets += 1
        elif character in ")]":
            open_brackets = max(0, open_brackets - 1)
        elif open_brackets == 0 and text.startswith(separator, position):
            pieces.append(text[start:position].strip())
            position = start = position + len(separator)
            continue
        position += 1

    if open_brackets:  # a bracket that is never closed holds nothing together
        return [piece.strip() for piece in text.split(separator)]
    return [*pieces, text[start:].strip()]


def _chosen(text: str, choose: Callable[[list[str]], str]) -> str:
    """Each {a|b|c} as one of its choices, the innermost first; doubled braces as single ones."""
    text = text.replace("{{", _OPEN).replace("}}", _CLOSE)
    while (match := _CHOICE.search(text)) is not None:
        text = text[: match.start()] + choose(match[1].split("|")).strip() + text[match.end() :]
    return text.replace(_OPEN, "{").replace(_CLOSE, "}")


Operation = tuple[str, Callable[[CaptionSettings], bool], Callable[[Draft, _Draw], Draft]]

OPERATIONS: tuple[Operation, ...] = (
    ("choose the line", lambda s: True, _line),
    ("put it into the sentence", lambda s: bool(s.sentence), _sentence),
    ("add prefix and suffix", lambda s: bool(s.prefix or s.suffix), _prefix_and_suffix),
    ("choose among {a|b}", lambda s: s.wildcards, _wildcards),
    ("underscores to spaces", lambda s: s.replace_underscores, _underscores),
    ("take it apart into tags", lambda s: s.splits, _split),
    ("leave out tags that come later", lambda s: bool(s.warmup_steps or s.warmup_epochs), _warm_up),
    ("shuffle", lambda s: s.shuffle, _shuffle),
    ("drop tags", lambda s: s.tag_dropout > 0, _drop_tags),
    ("join the tags", lambda s: s.splits, _join),
    ("remove the separator of kept tags", lambda s: bool(s.keep_tokens_separator) and not s.splits, _without_mark),
    ("separate what was held together", lambda s: bool(s.secondary_separator), _secondary),
    ("put the trigger in front", lambda s: bool(s.trigger), _trigger),
    ("drop the caption", lambda s: s.dropout > 0 or s.dropout_every_epochs > 0, _dropout),
)
"""(what it does, whether settings ask for it, how) of every operation, in the order in which they are applied."""
