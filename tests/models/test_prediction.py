"""Signs of v-prediction and zero terminal SNR: settings, metadata, marker tensors, a yaml beside the file, a probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.diffusion.schedules import NoiseSchedule
from loraloom.events import Event, Notice
from loraloom.formats.tensors import write_tensors
from loraloom.models.loaded import load_model
from loraloom.models.prediction import PredictionChoice, prediction_metadata, probe_prediction, read_signs
from toys import toy_tensors

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ({"modelspec.prediction_type": "v"}, "v"),
        ({"modelspec.prediction_type": "v_prediction"}, "v"),
        ({"ss_v_parameterization": "True"}, "v"),
        ({"ss_base_model_version": "sd_v2_v"}, "v"),
        ({"ss_base_model_version": "sd_v2"}, None),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v"),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, None),
    ],
)
def test_metadata(metadata: dict[str, str], expected: str | None) -> None:
    assert read_signs([], metadata).prediction == expected


def test_marker_tensors() -> None:
    assert read_signs(["v_pred", "ztsnr"], {}) == PredictionChoice("v", True, "the marker tensor v_pred")
    assert read_signs(["v_pred"], {}).zero_terminal_snr is False


def test_settings_come_first() -> None:
    names, metadata = ["v_pred", "ztsnr"], {"modelspec.prediction_type": "v"}
    forced = read_signs(names, metadata, prediction="epsilon", zero_terminal_snr=False)
    assert (forced.prediction, forced.zero_terminal_snr) == ("epsilon", False)


@pytest.mark.parametrize("choice", [PredictionChoice("v", True), PredictionChoice("epsilon"), PredictionChoice("v")])
def test_written_metadata_reads_the_same(choice: PredictionChoice) -> None:
    again = read_signs([], prediction_metadata(choice))
    assert (again.prediction, again.zero_terminal_snr) == (choice.prediction, choice.zero_terminal_snr)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('model:\n  params:\n    parameterization: "v"\n', "v"),
        ("    parameterization: v # comment\n", "v"),
        ("    parameterization: 'eps'\n", "epsilon"),
        ("model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n", "epsilon"),
        ("something: else\n", None),
        ("# parameterization: v\n", None),
    ],
)
def test_yaml_beside_the_file(tmp_path: Path, text: str, expected: str | None) -> None:
    (tmp_path / "model.yaml").write_text(text, encoding="utf-8")
    assert read_signs([], {}, tmp_path / "model.safetensors").prediction == expected


@pytest.mark.parametrize("brightness", [0.3, 1.0, 3.0])
def test_probe_tells_ideal_models_apart(brightness: float) -> None:
    """Against the exact predictors for images whose mean is normal with that deviation (per channel)."""
    schedule = NoiseSchedule.scaled_linear()
    signal, noise = schedule.signal[999], schedule.noise[999]

    def clean(noisy: Tensor) -> Tensor:
        mean = noisy.mean(dim=(2, 3), keepdim=True)
        variance = noise**2 / (noisy.shape[2] * noisy.shape[3])
        return (signal * mean / (signal**2 + variance / brightness**2)).expand_as(noisy)

    def epsilon(noisy: Tensor, timesteps: Tensor) -> Tensor:
        assert timesteps.tolist() == [999]
        return (noisy - signal * clean(noisy)) / noise

    def v(noisy: Tensor, timesteps: Tensor) -> Tensor:
        return signal * epsilon(noisy, timesteps) - noise * clean(noisy)

    assert probe_prediction(epsilon, 4) == "epsilon"
    assert probe_prediction(v, 4) == "v"


def test_sd2_without_any_sign_is_probed_and_says_so(toy_file: Callable[[str], Path]) -> None:
    heard: list[Event] = []
    assert load_model(toy_file("sd2"), device=CPU, listener=heard.append).prediction == "epsilon"
    (notice,) = [event for event in heard if isinstance(event, Notice)]
    assert "prediction=v" in notice.text
    heard.clear()
    model = load_model(toy_file("sd2"), device=CPU, prediction="v", zero_terminal_snr=True, listener=heard.append)
    assert (model.prediction, model.schedule.zero_terminal_snr) == ("v", True)
    assert not any("probe" in event.text for event in heard if isinstance(event, Notice))


def test_marked_sdxl_file_loads_as_v_with_zero_terminal_snr(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, toy_tensors("sdxl") | {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])})
    model = load_model(path, device=CPU)
    assert (model.prediction, model.schedule.zero_terminal_snr) == ("v", True)
    assert model.schedule.alphas_cumprod[-1] == 0
