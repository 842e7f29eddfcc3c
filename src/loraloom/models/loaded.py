"""A checkpoint in memory: its parts as modules, and the five things activities ask of it.

encode text, encode images, decode latents, denoise, and give back its tensors. Weights are frozen; a part may
rest on the CPU until it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from loraloom.control import Control, keep_going
from loraloom.diffusion.objectives import Prediction
from loraloom.diffusion.schedules import NoiseSchedule
from loraloom.errors import CheckpointError, SettingsError
from loraloom.events import Listener, Notice, ignore
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.tensors import TensorInfo
from loraloom.models.checkpoint import Checkpoint, open_checkpoint
from loraloom.models.conditioning import (
    Chunk,
    Conditioning,
    Emphasis,
    Text,
    TextEmbedding,
    TextLength,
    apply_emphasis,
    measure,
    tokenise,
)
from loraloom.models.family import SIZE_CHANNELS, Family, TextPart
from loraloom.models.parts import built_part, load_part, part_plans
from loraloom.models.placement import Placement
from loraloom.models.prediction import probe_prediction, read_signs
from loraloom.models.quantized import Quantization, QuantizedWeight
from loraloom.models.text_encoders import TextEncoder
from loraloom.models.tokenizer import Tokenizer, clip_tokenizer
from loraloom.models.unet import UNet, timestep_embedding
from loraloom.models.vae import VAE

__all__ = ["LoadedModel", "ModelTensors", "load_model"]

_PIXELS_PER_LATENT = 8
_LATENT_CHANNELS = 4


class LoadedModel:
    """A model ready for use. Made by :func:`load_model`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        parts: Mapping[str, nn.Module],
        prefixes: Mapping[str, str],
        *,
        device: torch.device,
        compute: torch.dtype,
        schedule: NoiseSchedule,
        prediction: Prediction = "epsilon",
        offload: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.parts = dict(parts)
        """``unet``, ``vae``, ``text_encoder``, and for SDXL ``text_encoder_2``."""
        self.prefixes = dict(prefixes)
        """What the names of each part's tensors begin with in the checkpoint."""
        self.device = device
        self.compute = compute
        self.schedule = schedule
        self.prediction: Prediction = prediction
        self.tokenizer: Tokenizer = clip_tokenizer()
        self.damage: dict[str, CheckpointError] = {}
        """What is wrong with a part that was loaded all the same, because another may take its place (the VAE)."""
        self._placements = {name: Placement(module, device) for name, module in parts.items()} if offload else {}

    @property
    def family(self) -> Family:
        """The family of the checkpoint."""
        return self.checkpoint.family

    @property
    def unet(self) -> UNet:
        """The denoiser."""
        return cast(UNet, self.parts["unet"])

    @property
    def vae(self) -> VAE:
        """The autoencoder."""
        return cast(VAE, self.parts["vae"])

    @property
    def text_encoders(self) -> dict[str, TextEncoder]:
        """The text encoders by part name, in the order of the family."""
        return {part.part: cast(TextEncoder, self.parts[part.part]) for part in self.family.text_parts}

    @property
    def vae_compute(self) -> torch.dtype:
        """The VAE's precision: fp16 overflows in SDXL's, so it computes in fp32 where the rest computes in fp16."""
        return torch.float32 if self.compute == torch.float16 else self.compute

    @cached_property
    def targets(self) -> list[AdapterTarget]:
        """Every layer that an adapter can be put on."""
        return self.family.adapter_targets(self.checkpoint.infos)

    @cached_property
    def file_targets(self) -> list[AdapterTarget]:
        """Every layer that a LoRA file may change: ``targets``, and those that only other trainers train."""
        return self.family.file_targets(self.checkpoint.infos)

    def layer(self, target: AdapterTarget) -> nn.Module:
        """The live layer of a target."""
        return self.parts[target.part].get_submodule(target.module)

    def weight_of(self, target: AdapterTarget) -> Tensor:
        """The live weight of a target, as it is stored: dense or quantized, in the precision that it has in memory."""
        weight = self.layer(target).weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    def restore(self, target: AdapterTarget, *, bias: bool = False) -> None:
        """Make the weight (or bias) of a layer what it was when it was loaded; no copy was kept, so the file is read
        again."""
        name = target.bias if bias else target.tensor
        path, _, own = name.removeprefix(self.prefixes[target.part]).rpartition(".")
        owner = self.parts[target.part].get_submodule(path)
        live = getattr(owner, own)
        stored = self.checkpoint.mapped(name).to(live.device, live.dtype)
        owner.register_parameter(own, nn.Parameter(stored, requires_grad=False))

    def add_to_weight(self, target: AdapterTarget, change: Tensor, *, bias: bool = False) -> None:
        """Add to the weight (or bias) of a layer, in memory alone: a tensor mapped from the file is replaced.

        ``change`` has the shape of what it is added to, or one with as many elements. The sum is rounded once, to the
        type that the live weight has. Raises CheckpointError for a layer without bias.
        """
        key = (target.bias if bias else target.tensor).removeprefix(self.prefixes[target.part])
        path, _, name = key.rpartition(".")
        owner = self.parts[target.part].get_submodule(path)
        live = getattr(owner, name, None)
        if not isinstance(live, nn.Parameter):
            raise CheckpointError(f"layer {target.name} has no bias to change", "the LoRA was made for another model")
        if isinstance(live, QuantizedWeight):
            total = live.dequantize(torch.float32)
        else:
            total = live.detach().to(torch.float32, copy=True)
        rows = total if target.rows is None else total[slice(*target.rows)]
        rows += change.to(rows.device).reshape(rows.shape)
        changed = total.to(live.dtype)
        if isinstance(live, QuantizedWeight):
            changed = QuantizedWeight.quantize(changed, live.method)
        owner.register_parameter(name, nn.Parameter(changed, requires_grad=False))

    @contextmanager
    def using(self, *parts: str) -> Iterator[None]:
        """Inside, these parts are on the device. Free unless the model was loaded with ``offload``."""
        with ExitStack() as stack:
            for name in parts:
                if name in self._placements:
                    placement = self._placements[name]
                    placement.enter()
                    stack.callback(placement.leave)
            yield

    def unfreeze(self, part: str) -> nn.Module:
        """Give a part fp32 weights of its own on the device, to be trained; nothing of it stays mapped or offloaded.

        Raises SettingsError for a model whose weights are quantized.
        """
        self._placements.pop(part, None)
        module = self.parts[part]
        for owner in module.modules():
            for name, parameter in list(owner.named_parameters(recurse=False)):
                if isinstance(parameter, QuantizedWeight):
                    raise SettingsError(["a quantized weight cannot be trained itself"], "set quantize=none")
                own = parameter.detach().to(self.device, torch.float32, copy=True)
                owner.register_parameter(name, nn.Parameter(own))
        return module

    def rest(self, part: str) -> int:
        """Let a part wait in the checkpoint file until :meth:`using` asks for it. Returns the bytes that this frees.

        Its answers stay the same: a weight in the file's precision is converted at the moment of use. 0 where nothing
        is gained: the part lies mapped on the CPU already, or rests there as it is.
        """
        module, freed = self.parts[part], 0
        if part in self._placements:
            return 0
        for path, owner in module.named_modules():
            start = self.prefixes[part] + (f"{path}." if path else "")
            for name, parameter in list(owner.named_parameters(recurse=False)):
                stored = self.checkpoint.mapped(start + name)
                if parameter.device == stored.device and parameter.dtype == stored.dtype:
                    continue
                freed += parameter.nbytes
                owner.register_parameter(name, nn.Parameter(stored, requires_grad=parameter.requires_grad))
        if freed and self.device.type != "cpu":
            self._placements[part] = Placement(module, self.device)
        return freed

    def check_part(self, part: str) -> None:
        """Raise the CheckpointError of a part that must not be used."""
        if part in self.damage:
            raise self.damage[part]

    # -------------------------------------------------------------------------------------------- text

    def measure_text(self, text: Text, *, max_chunks: int | None = None) -> TextLength:
        """Tokens and chunks a text needs, and the tokens lost when only ``max_chunks`` are allowed."""
        return measure(text, self.tokenizer, max_chunks=max_chunks)

    def max_clip_skip(self) -> int:
        """The largest ``clip_skip`` that leaves every text encoder a layer to read."""
        encoders = self.text_encoders
        return min(
            len(encoders[part.part].layer_list()) - self._normal_skip(part) + 1 for part in self.family.text_parts
        )

    def check_clip_skip(self, depth: int) -> None:
        """Raise SettingsError unless ``clip_skip`` leaves every text encoder a layer to read."""
        if not 1 <= depth <= self.max_clip_skip():
            problem = f"clip_skip is {depth}, but this model allows 1 to {self.max_clip_skip()}"
            raise SettingsError([problem], "1 suits most checkpoints, 2 those based on NAI")

    def _normal_skip(self, part: TextPart) -> int:
        return part.skip_in(len(self.text_encoders[part.part].layer_list()))

    def encode_text(
        self,
        texts: Sequence[Text],
        *,
        clip_skip: int | None = None,
        max_chunks: int | None = None,
        emphasis: Emphasis = "original",
        comma_backtrack: int = 20,
        embeddings: Sequence[TextEmbedding] = (),
    ) -> Conditioning:
        """Encode texts into a batch, in the compute precision; differentiable with respect to the encoders.

        ``clip_skip`` 1 (the default) is the layer the family normally reads, each step more is one layer earlier
        (for SDXL 1 already is the last layer but one). ``max_chunks`` cuts long texts, see :meth:`measure_text`.
        ``emphasis`` is how segment weights act; ``comma_backtrack`` and ``embeddings`` are those of
        :func:`conditioning.tokenise`. Raises SettingsError for a clip skip deeper than the encoder.
        """
        depth = 1 if clip_skip is None else clip_skip
        self.check_clip_skip(depth)
        chunked = [
            tokenise(text, self.tokenizer, comma_backtrack=comma_backtrack, embeddings=embeddings)[:max_chunks]
            for text in texts
        ]
        chunks = [chunk for text_chunks in chunked for chunk in text_chunks]
        encoded = [self._encode_chunks(part, chunks, depth, emphasis=emphasis) for part in self.family.text_parts]
        context = torch.cat([hidden for hidden, _ in encoded], dim=-1)
        pooled = encoded[-1][1]
        rows, first = [], 0
        for text_chunks in chunked:
            joined = context[first : first + len(text_chunks)].flatten(0, 1)[None]
            rows.append(Conditioning(joined, None if pooled is None else pooled[first : first + 1]))
            first += len(text_chunks)
        return Conditioning.stack(rows)

    def _encode_chunks(
        self, part: TextPart, chunks: Sequence[Chunk], depth: int, *, emphasis: Emphasis
    ) -> tuple[Tensor, Tensor | None]:
        emphasised = any(chunk.emphasised for chunk in chunks)
        with_empty = [*chunks, *tokenise("", self.tokenizer)] if emphasised and emphasis == "comfy" else chunks
        ids = torch.tensor([chunk.padded_with(part.pad_id).ids for chunk in with_empty], device=self.device)
        inserted = [
            (row, place, embedding.vectors[part.part])
            for row, chunk in enumerate(chunks)
            for place, embedding in chunk.embeddings
        ]
        with self.using(part.part):
            hidden, pooled = self.text_encoders[part.part](
                ids,
                skip=self._normal_skip(part) + depth - 1,
                normalize=part.normalize,
                pooled=self.family.uses_sizes and part is self.family.text_parts[-1],
                dtype=self.compute,
                inserted=inserted,
            )
        hidden, empty = hidden[: len(chunks)], hidden[len(chunks) :]
        if emphasised:
            hidden = apply_emphasis(hidden, torch.tensor([chunk.weights for chunk in chunks]), emphasis, empty)
        return hidden, pooled

    # -------------------------------------------------------------------------------------------- images

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> mean and standard deviation of the latents, (B, 4, H/8, W/8) fp32, scaled."""
        self.check_part("vae")
        with self.using("vae"):
            mean, std = self.vae.encode(pixels.to(self.device, self.vae_compute))
        return mean.float() * self.family.latent_scale, std.float() * self.family.latent_scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) scaled latents -> (B, 3, 8h, 8w) fp32 in [-1, 1]; one picture at a time, to save memory."""
        self.check_part("vae")
        unscaled = latents.to(self.device, self.vae_compute) / self.family.latent_scale
        with self.using("vae"):
            pictures = [self.vae.decode(row[None]) for row in unscaled]
        return torch.cat(pictures).float().clamp(-1.0, 1.0)

    # -------------------------------------------------------------------------------------------- denoising

    def denoise(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's raw prediction (epsilon or v), fp32, differentiable.

        ``noisy`` is (B, 4, h, w), ``timesteps`` (B,) whole or fractional. Without sizes in the conditioning, an SDXL
        model is given those of an uncropped picture of the size being made. Raises CheckpointError for an inpainting or
        depth model, whose U-Net needs more than latents.
        """
        unet = self.unet
        if unet.in_channels != noisy.shape[1]:
            raise CheckpointError(
                f"{self.checkpoint.path} is {self.checkpoint.purpose}: its U-Net reads {unet.in_channels} channels",
                "it can be inspected and merged; generating and training need a checkpoint with 4 channels",
            )
        conditioning = conditioning.to(self.device, self.compute)
        with self.using("unet"):
            predicted = unet(
                noisy.to(self.device, self.compute),
                timesteps.to(self.device),
                conditioning.context,
                self._vector(noisy, conditioning) if self.family.uses_sizes else None,
            )
        return predicted.float()

    def _vector(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        """(B, D): pooled text, then six sizes as sinusoids."""
        if conditioning.pooled is None:
            raise ValueError("this family's conditioning needs the pooled text")
        sizes = conditioning.sizes
        if sizes is None:
            height, width = (_PIXELS_PER_LATENT * extent for extent in noisy.shape[-2:])
            sizes = torch.tensor([[height, width, 0, 0, height, width]] * len(noisy), device=self.device)
        waves = timestep_embedding(sizes.flatten(), SIZE_CHANNELS).reshape(len(sizes), -1)
        return torch.cat([conditioning.pooled, waves.to(conditioning.pooled.dtype)], dim=-1)

    # -------------------------------------------------------------------------------------------- saving

    def tensors(self) -> ModelTensors:
        """Every tensor of the checkpoint under its own name and in the file's precision: what saving writes."""
        return ModelTensors(self)


class ModelTensors(Mapping[str, Tensor]):
    """The live weights under checkpoint names; what no module holds comes from the file, one tensor at a time."""

    def __init__(self, model: LoadedModel) -> None:
        self.checkpoint = model.checkpoint
        self._live: dict[str, nn.Parameter] = {
            model.prefixes[part] + name: parameter
            for part, module in model.parts.items()
            for name, parameter in module.named_parameters()
        }

    def __getitem__(self, name: str) -> Tensor:
        stored = self.checkpoint[name]
        if name not in self._live:
            return stored
        if isinstance(self._live[name], QuantizedWeight):
            return stored
        live = self._live[name].detach().to("cpu")
        if live.dtype == stored.dtype:
            return live
        # A weight rounded on loading and not changed since is given back as it was in the file.
        return stored if torch.equal(stored.to(live.dtype), live) else live.to(stored.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoint)

    def __len__(self) -> int:
        return len(self.checkpoint)

    def __contains__(self, name: object) -> bool:
        return name in self.checkpoint

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor, without touching its data."""
        return self.checkpoint.info(name)


# ------------------------------------------------------------------------------------------------ loading


def load_model(
    checkpoint: Checkpoint | Path,
    *,
    device: torch.device,
    compute: torch.dtype = torch.float32,
    keep_file_precision: bool = False,
    prediction: Literal["auto", "epsilon", "v"] = "auto",
    zero_terminal_snr: bool | None = None,
    offload: bool = False,
    quantize: Quantization = "none",
    listener: Listener = ignore,
    control: Control = keep_going,
) -> LoadedModel:
    """Load a checkpoint for use, frozen and in eval mode.

    Activations are in ``compute``; weights too, unless ``keep_file_precision`` leaves them as they are in the file
    (on the CPU they are then never copied at all). ``offload`` keeps every part on the CPU while it is not in use.
    ``quantize`` keeps the weights of U-Net and text encoders in 8 or 4 bits. ``control`` is heeded between tensors.
    ``prediction`` and ``zero_terminal_snr`` are read from the file unless given. Raises CheckpointError when a part
    is missing or does not fit, or a weight is NaN or infinite; that of a VAE is kept in ``model.damage``, where
    :func:`loraloom.models.vae_file.replace_vae` can still mend it.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint)
    parts: dict[str, nn.Module] = {}
    prefixes: dict[str, str] = {}
    damage: dict[str, CheckpointError] = {}
    weight_type = None if keep_file_precision else compute
    rest = torch.device("cpu") if offload else device
    for plan in part_plans(checkpoint):
        name = plan.name
        prefix, empty = built_part(checkpoint, plan)

        # The VAE overflows in fp16, and rounding it to a few bits would be seen in every picture.
        part_type = torch.float32 if name == "vae" and weight_type == torch.float16 else weight_type
        prefixes[name] = prefix
        method = "none" if name == "vae" else quantize
        parts[name], problem = load_part(checkpoint, prefix, empty, rest, part_type, method, control)

        # A broken VAE can still be replaced by another one; every other part is the checkpoint itself.
        if problem is not None:
            damage[name] = problem
            if name != "vae":
                raise problem

    if quantize != "none":
        listener(_quantized_notice(parts, quantize))
    if compute == torch.float16:
        listener(Notice("the VAE computes in fp32, because it overflows in fp16"))
    signs = read_signs(
        checkpoint,
        checkpoint.metadata,
        checkpoint.path,
        prediction=prediction,
        zero_terminal_snr=zero_terminal_snr,
    )
    model = LoadedModel(
        checkpoint,
        parts,
        prefixes,
        device=device,
        compute=compute,
        schedule=NoiseSchedule.scaled_linear(zero_terminal_snr=signs.zero_terminal_snr),
        prediction=signs.prediction or "epsilon",
        offload=offload,
    )
    model.damage |= damage

    if signs.prediction is not None and prediction == "auto" and signs.prediction == "v":
        listener(Notice(f"v-prediction, known from {signs.source}"))
    # Only the U-Net itself can tell then. One that reads more channels (inpainting) is not asked what it is not for.
    if (
        signs.prediction is None
        and checkpoint.family.probes_prediction
        and checkpoint.input_channels == _LATENT_CHANNELS
    ):
        model.prediction = _probe(model)
        listener(
            Notice(
                f"{checkpoint.path.name} does not say what it predicts; a probe of its U-Net says "
                f"{model.prediction} (prediction=epsilon or prediction=v decides otherwise)"
            )
        )
    if signs.zero_terminal_snr:
        listener(Notice("the noise schedule has zero terminal SNR"))
    return model


def _quantized_notice(parts: Mapping[str, nn.Module], method: str) -> Notice:
    weights = [weight for part in parts.values() for weight in part.parameters() if isinstance(weight, QuantizedWeight)]
    before = sum(weight.numel() * weight.dtype.itemsize for weight in weights)
    after = sum(weight.stored_bytes for weight in weights)
    return Notice(
        f"quantize={method}: {len(weights)} frozen weights take {after / 2**20:.0f} MiB instead of "
        f"{before / 2**20:.0f}; the LoRA is trained beside a checkpoint that is slightly off"
    )


def _probe(model: LoadedModel) -> Prediction:
    with torch.no_grad():
        empty = model.encode_text([""])
        return probe_prediction(lambda noisy, timesteps: model.denoise(noisy, timesteps, empty).cpu(), _LATENT_CHANNELS)
