"""The demo: the whole job once (``job``), on what a plan teaches (``plans``), painted as it goes (``pictures``)."""

from loraloom.studio.demo.job import STAGES, DemoResult, run_demo
from loraloom.studio.demo.pictures import WEIGHTS, paint_regularization
from loraloom.studio.demo.plans import (
    CHARACTER,
    GUIDANCE,
    RESOLUTION_PX,
    SAMPLER,
    STEPS,
    STYLE,
    DemoPlan,
    copy_dataset,
    make_checkpoint,
    training_settings,
)

__all__ = [
    "CHARACTER",
    "GUIDANCE",
    "RESOLUTION_PX",
    "SAMPLER",
    "STAGES",
    "STEPS",
    "STYLE",
    "WEIGHTS",
    "DemoPlan",
    "DemoResult",
    "copy_dataset",
    "make_checkpoint",
    "paint_regularization",
    "run_demo",
    "training_settings",
]
