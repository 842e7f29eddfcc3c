"""The prompt language: that of the AUTOMATIC1111 web UI, with what its users add to it."""

from loraloom.generation.prompts.attention import parse_attention
from loraloom.generation.prompts.tags import LoraTag, extract_loras

__all__ = ["LoraTag", "extract_loras", "parse_attention"]
