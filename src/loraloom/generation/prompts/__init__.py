"""The prompt language: that of the AUTOMATIC1111 web UI, with what its users add to it.

In the order in which a prompt is read: ``comments``, ``styles``, ``wildcards``, ``tags`` (all by ``reading``), then
``parts``, ``schedules`` (both by ``plan``), ``attention``.
"""

from loraloom.generation.prompts.attention import parse_attention
from loraloom.generation.prompts.plan import PromptPlan, plan_prompt
from loraloom.generation.prompts.reading import ImagePrompt, PromptReader
from loraloom.generation.prompts.tags import LoraTag, extract_loras

__all__ = [
    "ImagePrompt",
    "LoraTag",
    "PromptPlan",
    "PromptReader",
    "extract_loras",
    "parse_attention",
    "plan_prompt",
]
