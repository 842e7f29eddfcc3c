"""What the model is asked in training. No torch here: the command line reads this file to print help."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from loraloom.setting_marks import Kohya, Unit
from loraloom.settings import Settings

__all__ = ["ObjectiveSettings"]


class ObjectiveSettings(Settings):
    """What the model is asked in training and how its answer is judged: timesteps, noise, loss and its weights."""

    loss_type: Annotated[Literal["l2", "l1", "huber", "smooth_l1"], Kohya("loss_type")] = "l2"
    """How the error of a prediction counts: l2 (squared), l1 (absolute), huber and smooth_l1 (squared while small,
    absolute beyond: outliers count less than with l2)."""
    huber_schedule: Annotated[Literal["constant", "exponential", "snr"], Kohya("huber_schedule")] = "snr"
    """How huber_c changes from clean to noisy timesteps."""
    huber_c: Annotated[float, Kohya("huber_c"), Field(gt=0)] = 0.1
    """Where huber and smooth_l1 change from squared to absolute."""
    huber_scale: Annotated[float, Kohya("huber_scale"), Field(gt=0)] = 1.0
    """Multiplies huber_c under the constant and the exponential schedule."""
    min_snr_gamma: Annotated[float, Kohya("min_snr_gamma"), Field(ge=0)] = 0.0
    """Makes clean timesteps, whose loss is high but teaches little, count less. 5 is usual, less is more. 0: off."""
    debiased_estimation: Annotated[bool, Kohya("debiased_estimation_loss")] = False
    """Makes noisy timesteps, where the composition is decided, count more: 1 / sqrt(SNR). With min_snr_gamma both
    weights are multiplied, as in sd-scripts."""
    scale_v_like_noise: Annotated[bool, Kohya("scale_v_pred_loss_like_noise_pred")] = False
    """For v models: weigh timesteps as the loss of a noise-predicting model would."""
    v_like_loss: Annotated[float, Kohya("v_pred_like_loss"), Field(ge=0)] = 0.0
    """For noise-predicting models: add the loss of a v model, times this. 0: off."""
    min_timestep: Annotated[int, Kohya("min_timestep"), Field(ge=0, le=999)] = 0
    """Smallest timestep to train (0 is clean). Raise it to leave fine detail as it is."""
    max_timestep: Annotated[int, Kohya("max_timestep"), Field(ge=1, le=1000)] = 1000
    """Timesteps stop before this one (999 is the noisiest). Lower it to leave composition as it is."""
    timestep_sampling: Annotated[
        Literal["uniform", "logit_normal", "importance"], Kohya("timestep_sampling", "weighting_scheme")
    ] = "uniform"
    """How timesteps are drawn. logit_normal: mostly from the middle; importance: more often where the loss is expected
    to be high, with weights that leave its average as under uniform."""
    logit_mean: Annotated[float, Kohya("logit_mean"), Field(ge=-10, le=10)] = 0.0
    """Middle of logit_normal; above 0 it lies at noisier timesteps."""
    logit_std: Annotated[float, Kohya("logit_std"), Field(gt=0, le=10)] = 1.0
    """Width of logit_normal."""
    stratified_timesteps: bool = False
    """Spread the timesteps of a batch evenly over the range: the loss is less noisy. Needs batch_size above 1."""
    noise_offset: Annotated[float, Kohya("noise_offset"), Field(ge=0, le=1)] = 0.0
    """Shift the noise of every channel as a whole by this times a random number, so that dark and bright pictures can
    be learned; 0.03 to 0.1 is usual. 0: off."""
    noise_offset_random_strength: Annotated[bool, Kohya("noise_offset_random_strength")] = False
    """Draw the strength of noise_offset for each image between 0 and its value."""
    adaptive_noise_scale: Annotated[float, Kohya("adaptive_noise_scale"), Field(ge=-1, le=1)] = 0.0
    """Add this times the absolute mean of the picture's latents to noise_offset."""
    multires_noise_iterations: Annotated[int, Kohya("multires_noise_iterations"), Field(ge=0, le=16)] = 0
    """Number of coarser layers in the noise, for the same purpose as noise_offset; 6 to 10 is usual. 0: off."""
    multires_noise_discount: Annotated[float, Kohya("multires_noise_discount"), Field(gt=0, le=1)] = 0.3
    """Strength of each coarser layer relative to the one before."""
    ip_noise_gamma: Annotated[float, Kohya("ip_noise_gamma"), Field(ge=0, le=1)] = 0.0
    """Extra noise in what the model sees but not in what it has to predict (input perturbation); 0.1 is usual. 0:
    off."""
    ip_noise_gamma_random_strength: Annotated[bool, Kohya("ip_noise_gamma_random_strength")] = False
    """Draw the strength of ip_noise_gamma for each image between 0 and its value."""
    masked_loss_normalized: bool = True
    """Divide the loss by the area of the mask, so that a small subject counts as much as a large one. False: by the
    whole area, as sd-scripts does."""
    mask_floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """How much the part outside the mask still counts."""
    prior_loss_min: Annotated[float | None, Field(ge=0)] = None
    """Last weight of the regularization images' loss: it changes evenly from prior_loss_weight. Unset: it stays."""
    prior_loss_steps: Annotated[int | None, Field(ge=1), Unit("steps")] = None
    """Steps until prior_loss_min is reached. Unset: the whole run."""
    preserve_regularization: bool = False
    """For regularization images the target is what the checkpoint alone predicts, instead of the noise."""
    preserve_class: str = ""
    """Keep what the checkpoint makes of this word: every picture is also shown with it in place of the trigger word in
    its caption, and the target is then what the checkpoint alone predicts. Needs no regularization images, takes twice
    the time."""
    preserve_trigger: str = ""
    """The trigger word that preserve_class replaces. Empty: saving.trigger."""
    preserve_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the loss that preserve_class adds."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = []
        if self.min_timestep >= self.max_timestep:
            problems.append(f"min_timestep={self.min_timestep} must be below max_timestep={self.max_timestep}")
        if self.scale_v_like_noise and self.v_like_loss:
            problems.append("scale_v_like_noise is for v models and v_like_loss for noise-predicting ones: choose one")
        if problems:
            raise ValueError("; ".join(problems))
        return self
