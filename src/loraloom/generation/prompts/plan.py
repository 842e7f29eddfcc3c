"""What the text encoders must encode for a prompt, and which of it counts at which step."""

from __future__ import annotations

from dataclasses import dataclass

from loraloom.generation.prompts.parts import Part, split_parts
from loraloom.generation.prompts.schedules import State, prompt_states, state_at
from loraloom.generation.settings import PromptCompatibility

__all__ = ["PlannedPart", "PromptPlan", "plan_prompt"]


@dataclass(frozen=True)
class PlannedPart:
    """One part of a prompt and the texts it is in turn."""

    weight: float
    states: tuple[State, ...]


@dataclass(frozen=True)
class PromptPlan:
    """The parts of a prompt."""

    parts: tuple[PlannedPart, ...]
    compatibility: PromptCompatibility = "none"

    def texts_at(self, step: int) -> tuple[str, ...]:
        """The text of each part at a step (from 1)."""
        return tuple(
            part.states[state_at(part.states, step, compatibility=self.compatibility)].text for part in self.parts
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that counts at some step, each once, in the order of the parts."""
        return tuple(dict.fromkeys(state.text for part in self.parts for state in part.states))


def plan_prompt(
    prompt: str,
    steps: int,
    *,
    calls_per_step: int = 1,
    earlier_steps: int | None = None,
    is_negative: bool = False,
    compatibility: PromptCompatibility = "none",
) -> PromptPlan:
    """The plan of a prompt without LoRA tags; the numbers are those of :func:`schedules.prompt_states`.

    AND in a negative prompt is a word, as in the web UI: there is one direction away from which guidance leads.
    """
    parts = (Part(prompt),) if is_negative else split_parts(prompt, compatibility=compatibility)
    return PromptPlan(
        tuple(
            PlannedPart(
                part.weight,
                prompt_states(
                    part.text,
                    steps,
                    calls_per_step=calls_per_step,
                    earlier_steps=earlier_steps,
                    compatibility=compatibility,
                ),
            )
            for part in parts
        ),
        compatibility,
    )
