"""Everything that a run needs before its first step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from loraloom.adapters.attach import create_adapters
from loraloom.adapters.readers import reader_remark
from loraloom.control import Control, heed, keep_going
from loraloom.data.cache import Encoders, LatentCache
from loraloom.data.sample import Dataset
from loraloom.errors import SettingsError
from loraloom.events import Listener, Notice
from loraloom.hardware import keep_freed_memory, return_freed_memory
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.training.base_loras import merge_base_loras, origin_metadata
from loraloom.training.captions import CaptionEncoder, needed_chunks, parts_fingerprint
from loraloom.training.disk import check_room
from loraloom.training.ema import Ema
from loraloom.training.identity import check_alike, identity_of
from loraloom.training.memory import MemoryWatch
from loraloom.training.opening import Opened, open_run
from loraloom.training.optimizers import create_optimizer
from loraloom.training.parameter_groups import parameter_groups
from loraloom.training.parts import RunParts
from loraloom.training.preservation import class_chunks
from loraloom.training.saving import FileFacts, save_adapter, save_whole
from loraloom.training.settings import TrainSettings
from loraloom.training.state import ResumePoint
from loraloom.training.step import Objective
from loraloom.training.team import ALONE, Team
from loraloom.training.trained import Trained, View
from loraloom.training.whole import WholeModel, WholeView, whole_groups, whole_parts
from loraloom.training.wishes import Wishes
from loraloom.training.without_effect import RunFacts, known_after_loading, known_before_loading

__all__ = ["prepare_parts"]

TOLD_REMARKS = ("layout", "regularization", "folder-name")
"""Kinds of remarks on a dataset that change what is trained, so they are shown even though nothing is wrong."""


@dataclass(frozen=True)
class _Loaded:
    """The checkpoint in memory, and what is asked of it."""

    model: LoadedModel
    objective: Objective
    max_token_length: int


@dataclass(frozen=True)
class _Attached:
    """What is trained, on the model; ``groups``: as the optimizer takes them."""

    adapters: Trained
    attachment: View
    groups: list[dict[str, Any]]
    write: Callable[[Path, FileFacts], None]

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder learns."""
        return any(part != "unet" for part in self.adapters.parts())


def prepare_parts(
    settings: TrainSettings,
    folder: Path,
    listener: Listener,
    control: Control = keep_going,
    resume: ResumePoint | None = None,
    *,
    watch: MemoryWatch | None = None,
    narrowed: Callable[[Dataset], Dataset] = lambda dataset: dataset,
    team: Team = ALONE,
) -> RunParts:
    """Read the dataset, load the checkpoint, cache latents, put a new LoRA on the model.

    ``watch`` is given the run before anything is loaded; ``narrowed`` leaves a part of the dataset. ``resume`` is only
    checked here. ``control`` is heeded between the stages and the pieces of each (pictures, tensors, batches that are
    encoded, layers that get adapters): a pause is waited out, and Interrupted raised where the run is to end, since
    there is nothing to save yet.
    """
    started = time.time()
    wishes = Wishes(control, team, listener, step=resume.state.step if resume is not None else 0)
    heed(wishes)  # it may have been asked while torch was imported
    team.check(settings.batch_size, settings.gradient_accumulation)
    opened = open_run(settings, listener, device=team.device(settings.device), leads=team.leads, control=wishes.of_one)
    settings, device, precision = opened.settings, opened.device, opened.precision
    if device.type == "cpu" and settings.quantize == "none" and not settings.keep_file_precision:
        keep_freed_memory()  # weights that are made dense at every use would leave their holes in the heap

    # Whatever is to be said or refused comes before the minutes that loading and encoding take.
    facts = opened.facts
    origins = _say_what_is_known(opened, facts, listener)
    heed(wishes)
    _require_alike(opened, resume, team, listener, wishes.of_one)
    opened = replace(opened, dataset=narrowed(opened.dataset))
    if watch is not None:
        own = math.ceil(settings.batch_size / team.size)  # the largest share of a batch
        watch.start(settings.model_copy(update={"batch_size": own}), opened.checkpoint, opened.dataset)
    heed(wishes)

    loaded = _load(opened, facts, listener, wishes.seldom)
    model = loaded.model
    if team.leads and watch is not None:  # without one these are steps on trial, of which nothing is kept
        goes_on = resume is not None and not resume.branch
        check_room(settings, folder, opened.dataset, model, listener, goes_on=goes_on)
    cache = _encode(opened, model, listener, wishes, team)
    heed(wishes)
    _put_vae_to_rest(model, listener)

    merge_base_loras(model, settings.adapter, listener, wishes)
    attached = (_whole if settings.method == "full" else _with_adapters)(model, settings, listener, wishes.seldom)
    if settings.method != "full":
        team.copy_leader(attached.adapters.state_dict().values())
    if attached.trains_text and settings.dataset.cache_text_to_disk:
        hint = (
            "dataset.cache_text_to_disk has no effect while a text encoder is trained: captions are encoded each time"
        )
        listener(Notice(hint, "warning"))
    for part, module in model.parts.items():
        if part != "vae":
            module.gradient_checkpointing = settings.gradient_checkpointing  # type: ignore[assignment]

    return RunParts(
        settings=settings,
        folder=folder,
        listener=listener,
        dataset=opened.dataset,
        model=model,
        precision=precision,
        adapters=attached.adapters,
        attachment=attached.attachment,
        write=attached.write,
        cache=cache,
        encode=CaptionEncoder(
            model,
            settings,
            chunks=loaded.max_token_length // 75,
            trained=attached.trains_text,
            listener=listener,
            control=control,
        ),
        objective=loaded.objective,
        optimizer=create_optimizer(attached.groups, settings.optimizer),
        scaler=torch.amp.GradScaler(device.type, enabled=precision.needs_loss_scaling),
        max_token_length=loaded.max_token_length,
        started=started,
        ema=Ema(attached.adapters.named_parameters(), settings.ema) if settings.ema.enabled else None,
        held_out=opened.held_out,
        origins=origins,
        team=team,
    )


def _say_what_is_known(opened: Opened, facts: RunFacts, listener: Listener) -> Mapping[str, str]:
    """Everything that people should hear before the checkpoint is loaded.

    Returns the metadata about the LoRA files that the training starts from, which are read for it.
    """
    adapter = opened.settings.adapter
    for remark in known_before_loading(facts):
        listener(Notice(remark, "warning"))
    if opened.settings.method != "full" and (remark_of_readers := reader_remark(adapter)):
        listener(Notice(remark_of_readers))
    origins = origin_metadata(adapter)
    for problem in opened.problems:
        if problem.severity != "info" or problem.kind in TOLD_REMARKS:
            listener(Notice(str(problem), "info" if problem.severity == "info" else "warning"))
    return origins


def _require_alike(
    opened: Opened, resume: ResumePoint | None, team: Team, listener: Listener, control: Control
) -> None:
    """The run that goes on must be the one that wrote the state, and every process must train the same."""
    settings, dataset, precision = opened.settings, opened.dataset, opened.precision
    if resume is not None:
        resume.check(identity_of(settings, dataset, opened.checkpoint, control), precision.name, listener)
    if team.size > 1:
        pictures = replace(dataset, samples=(*dataset.samples, *opened.held_out))
        check_alike(team.exchange((identity_of(settings, pictures, opened.checkpoint), precision.name)))
        listener(Notice(_shared_work(settings, team)))


def _load(opened: Opened, facts: RunFacts, listener: Listener, control: Control) -> _Loaded:
    """Load the checkpoint, and say what it is and what it makes of the settings."""
    settings, device, precision = opened.settings, opened.device, opened.precision
    model = load_model(
        opened.checkpoint,
        device=device,
        compute=precision.compute,
        keep_file_precision=settings.keep_file_precision or settings.method == "full",
        prediction=settings.prediction,
        zero_terminal_snr=settings.zero_terminal_snr,
        offload=settings.low_memory,
        quantize=settings.quantize,
        listener=listener,
        control=control,
    )
    listener(
        Notice(
            f"{settings.checkpoint.name} is {model.family.title}, predicts {model.prediction}; "
            f"training on {device} with mixed precision {precision.name}"
        )
    )
    model.check_clip_skip(settings.clip_skip)

    objective = Objective(model.schedule, model.prediction, settings.seed, settings.objective)
    if not opened.objective_was_checked:
        objective.check()
    facts = replace(facts, dataset=opened.dataset, prediction=model.prediction)
    for text in (*known_after_loading(facts), *opened.trigger_remarks):
        listener(Notice(text, "warning"))
    return _Loaded(model, objective, _max_token_length(settings, opened.dataset, model, listener))


def _encode(opened: Opened, model: LoadedModel, listener: Listener, wishes: Wishes, team: Team) -> LatentCache:
    """The latents of all pictures, each process's share encoded here."""
    settings = opened.settings
    cache = LatentCache(model.encode_images, vae_key=vae_fingerprint(model), folder=settings.dataset.latent_folder)
    with model.using("vae"):
        cache.prepare(
            [*opened.dataset.samples, *opened.held_out],
            settings.dataset.flip,
            1 if opened.device.type == "cpu" else 4,
            listener,
            among=Encoders(team.rank, team.size, team.exchange),
            control=wishes,
        )
    return cache


def _put_vae_to_rest(model: LoadedModel, listener: Listener) -> None:
    """Nothing needs the VAE until a preview is painted."""
    if freed := model.rest("vae"):
        listener(Notice(f"the VAE is unloaded until it is needed: {freed / 2**20:.0f} MiB less"))
    if model.device.type == "cpu":
        return_freed_memory()  # what encoding left is in pieces that a step would hardly use


def _with_adapters(model: LoadedModel, settings: TrainSettings, listener: Listener, control: Control) -> _Attached:
    """New adapters on the model's layers."""
    adapters = create_adapters(
        settings.adapter,
        model.targets,
        seed=settings.seed,
        family=model.family.name,
        weight=model.weight_of,
        listener=listener,
        control=control,
    ).to(model.device)
    return _Attached(
        adapters,
        adapters.put_on({target.name: model.layer(target) for target in model.targets}),
        parameter_groups(adapters, settings.optimizer, model.family.name),
        lambda path, facts: save_adapter(path, adapters, facts),
    )


def _whole(model: LoadedModel, settings: TrainSettings, listener: Listener, control: Control) -> _Attached:
    """The model's own weights, to be trained."""
    heed(control)
    parts = whole_parts(model, settings.adapter)
    if not parts:
        raise SettingsError(["nothing is trained"], "set adapter.unet or adapter.text_encoder to true")
    listener(Notice(f"the checkpoint's own weights are trained: {', '.join(parts)}"))
    whole = WholeModel(model, parts)
    return _Attached(whole, WholeView(whole), whole_groups(whole, settings.optimizer), save_whole)


def _shared_work(settings: TrainSettings, team: Team) -> str:
    pictures = settings.batch_size * settings.gradient_accumulation
    return (
        f"{team.size} processes share the {pictures} pictures of each step (batch_size={settings.batch_size} x "
        f"gradient_accumulation={settings.gradient_accumulation}: in all, not for each process)"
    )


def vae_fingerprint(model: LoadedModel) -> str:
    """A hash of the VAE's weights and of the type it computes in: what cached latents depend on."""
    return parts_fingerprint(model, ["vae"], str(model.vae_compute))


def _max_token_length(settings: TrainSettings, dataset: Dataset, model: LoadedModel, listener: Listener) -> int:
    chunks = max((needed_chunks(sample, model) for sample in dataset.samples), default=1)
    classes = class_chunks(settings, [sample.fullest_caption for sample in dataset.training], model)
    needed = 75 * max(chunks, classes, 1)
    if settings.max_token_length is None:
        if needed > 75:
            listener(Notice(f"max_token_length = {needed}: the longest caption needs it"))
        return needed
    if settings.max_token_length < needed:
        text = f"captions longer than max_token_length = {settings.max_token_length} are cut; {needed} would keep all"
        listener(Notice(text, "warning"))
    return settings.max_token_length
