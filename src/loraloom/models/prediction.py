"""What a checkpoint's U-Net predicts, and whether its noise schedule ends in pure noise: the signs a file gives."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from loraloom.diffusion.objectives import Prediction
from loraloom.reading import read_bytes

__all__ = ["PredictionChoice", "prediction_metadata", "probe_prediction", "read_signs"]

_PARAMETERIZATION = re.compile(r"^\s*parameterization\s*:\s*[\"']?(\w+)", re.MULTILINE)
_PREDICTION = "modelspec.prediction_type"
_ENDING = "modelspec.zero_terminal_snr"
_PROBE_LEVEL = 0.5
_PROBE_SIZE = 16


@dataclass(frozen=True)
class PredictionChoice:
    """What the U-Net predicts, how its schedule ends, and what this was concluded from (for people)."""

    prediction: Prediction | None
    zero_terminal_snr: bool = False
    source: str = ""


def read_signs(
    names: Container[str],
    metadata: Mapping[str, str],
    path: Path | None = None,
    *,
    prediction: Literal["auto", "epsilon", "v"] = "auto",
    zero_terminal_snr: bool | None = None,
) -> PredictionChoice:
    """What the settings, the metadata, marker tensors or a ``.yaml`` beside the file say, in that order.

    ``names`` are the checkpoint's tensors. ``prediction`` of the result is None when none of them says anything.
    """
    signs: list[tuple[Prediction | None, str]] = [
        (None if prediction == "auto" else prediction, "the settings"),
        (_from_metadata(metadata), "the file's metadata"),
        ("v" if "v_pred" in names else None, "the marker tensor v_pred"),
        (None if path is None else _from_yaml(path), "the .yaml beside the file"),
    ]
    found, source = next(((sign, where) for sign, where in signs if sign is not None), (None, ""))
    if zero_terminal_snr is None:
        said = metadata.get(_ENDING, metadata.get("ss_zero_terminal_snr", ""))
        zero_terminal_snr = said.lower() == "true" or "ztsnr" in names
    return PredictionChoice(found, zero_terminal_snr, source)


def prediction_metadata(choice: PredictionChoice) -> dict[str, str]:
    """The metadata from which :func:`read_signs` reads the same again."""
    ending = {_ENDING: "true"} if choice.zero_terminal_snr else {}
    return ending if choice.prediction is None else {_PREDICTION: choice.prediction, **ending}


def probe_prediction(denoise: Callable[[Tensor, Tensor], Tensor], channels: int) -> Prediction:
    """Ask a U-Net at the last timestep, where the two predictions differ most.

    The input is as good as pure noise there. A model of epsilon returns it; a model of v returns minus the image
    it believes in. A flat input of +0.5 is far brighter than noise can be by chance, so that image is bright and
    the answer is below -0.5; for -0.5 it is the other way round. Averaging both cancels what does not depend on the
    input. ``denoise(noisy (1, C, 16, 16), timesteps (1,))`` is to be called with empty text.
    """
    timesteps = torch.tensor([999])
    flat = torch.full((1, channels, _PROBE_SIZE, _PROBE_SIZE), _PROBE_LEVEL)
    response = (denoise(flat, timesteps) - denoise(-flat, timesteps)).mean().item() / 2
    return "v" if response < -_PROBE_LEVEL else "epsilon"


def _from_metadata(metadata: Mapping[str, str]) -> Prediction | None:
    said = metadata.get(_PREDICTION, "").lower()
    if said in ("v", "v_prediction", "v-prediction"):
        return "v"
    if said in ("epsilon", "eps"):
        return "epsilon"
    said = metadata.get("ss_v_parameterization", metadata.get("ss_base_model_version", ""))
    if said == "True" or said.endswith("_v"):
        return "v"
    return "v" if metadata.get("modelspec.architecture", "").endswith("-768-v") else None


def _from_yaml(path: Path) -> Prediction | None:
    """The web UI's way: a file of the same name that says ``parameterization: "v"``."""
    config = path.with_suffix(".yaml")
    if path.is_dir() or not config.is_file():
        return None
    text = read_bytes(config).decode("utf-8", "replace")
    said = _PARAMETERIZATION.search(text)
    if said is not None:
        return "v" if said[1] == "v" else "epsilon"
    return "epsilon" if "LatentDiffusion" in text else None
