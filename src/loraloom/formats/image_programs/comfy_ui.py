"""ComfyUI: no list of settings but the graph that made the image, read where it is a simple one.

It is followed from the node that saves, back over the sampler, to prompts, checkpoint, LoRAs and size. An unknown node
on the way is passed through along its one input of the same kind, and reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from loraloom.errors import FileFormatError
from loraloom.formats.image_info import Parameters
from loraloom.formats.image_programs.facts import json_object, lora_tag, model_name, plain, without_tags

__all__ = ["is_graph", "read_comfy_ui"]

Node = Mapping[str, Any]

_SAMPLERS = ("KSampler", "KSamplerAdvanced")
_ENCODERS = ("CLIPTextEncode", "CLIPTextEncodeSDXL")
_CHECKPOINTS = ("CheckpointLoaderSimple", "CheckpointLoader")
_LORAS = ("LoraLoader", "LoraLoaderModelOnly")
_EMPTY = ("EmptyLatentImage",)
_HARMLESS = ("VAEDecode", "VAEDecodeTiled", "SaveImage", "PreviewImage", "Reroute", "PrimitiveNode")
_WAYS_ON = ("samples", "images", "image", "latent_image", "conditioning", "positive", "model", "clip", "latent")
_SAMPLER_FIELDS = {
    "steps": "Steps",
    "sampler_name": "Sampler",
    "scheduler": "Schedule type",
    "cfg": "CFG scale",
    "seed": "Seed",
    "noise_seed": "Seed",
}
_TEXTS = ("text", "text_g", "string", "value", "prompt", "positive")
_EMBEDDING = re.compile(r"\bembedding:\s*([^\s,():]+)")
_ACTS_HERE = re.compile(r"\bAND\b|\bBREAK\b|\[[^\[\]:|]*[:|][^\[\]]*\]")


def is_graph(data: Mapping[str, Any]) -> bool:
    """Whether JSON is a graph in ComfyUI's form for its programming interface."""
    return bool(data) and all(
        isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in data.values()
    )


def read_comfy_ui(text: str) -> Parameters:
    """Raises FileFormatError for a graph that is damaged, or has no known sampler."""
    data = json_object(text, program="ComfyUI")
    nodes = {
        key: node for key, node in data.items() if isinstance(node, dict) and isinstance(node.get("class_type"), str)
    }
    return _Graph(nodes).parameters()


@dataclass
class _Graph:
    nodes: Mapping[str, Node]
    fields: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    passed: set[str] = field(default_factory=set)

    def parameters(self) -> Parameters:
        sampler, others = self._sampler()
        inputs = _inputs(self.nodes[sampler])
        for key, title in _SAMPLER_FIELDS.items():
            if key in inputs and not self._unread(inputs[key], f"its {title}"):
                self.fields[title] = plain(self._value(inputs[key]))
        if self.fields.get("Sampler", "").startswith("uni_pc"):
            variant = "bh2" if self.fields["Sampler"].endswith("bh2") else "bh1"
            self.fields |= {"Sampler": "uni_pc", "UniPC variant": variant}
        self._amount(inputs)
        self._latent(sampler)
        tags = self._model(sampler)
        prompt, negative = (self._prompt(sampler, name) for name in ("positive", "negative"))
        self.remarks += [f"{name} painted on from there: its settings are not taken over" for name in others]
        if any(_ACTS_HERE.search(text) for text in (prompt, negative)):
            self.remarks.append("AND, BREAK and [a:b:0.5] are text in ComfyUI, and act here")
        # ComfyUI draws noise on the CPU, as here.
        fields = {**self.fields, "Emphasis": "Comfy", "RNG": "CPU"}
        return Parameters(prompt + tags, negative, fields, remarks=tuple(self.remarks))

    def _sampler(self) -> tuple[str, list[str]]:
        """The sampler that begins, and the titles of those that paint on after it."""
        found = [key for key, node in self.nodes.items() if node["class_type"] in _SAMPLERS]
        if not found:
            kinds = sorted({plain(node["class_type"]) for node in self.nodes.values() if _is_sampling(node)})
            known = f" (it samples with {', '.join(kinds)})" if kinds else ""
            raise FileFormatError(
                f"the image was made by a ComfyUI graph without a KSampler{known}",
                "give the prompt and the settings yourself",
            )

        # A sampler that others lead up to only paints on: prompt and seed are those of the one that begins.
        first = min(found, key=lambda key: len([other for other in self._back(key) if other in found]))
        return first, [f"{self.nodes[key]['class_type']} (node {key})" for key in found if key != first]

    def _back(self, key: str) -> Iterator[str]:
        """Every node that a node depends on, itself not among them."""
        seen = {key}
        waiting = [key]
        while waiting:
            for value in _inputs(self.nodes[waiting.pop()]).values():
                other = self._linked(value)
                if other is not None and other not in seen:
                    seen.add(other)
                    waiting.append(other)
                    yield other

    def _linked(self, value: object) -> str | None:
        """The node that an input comes from: a link is a list of its key and the number of its output."""
        is_link = isinstance(value, list) and len(value) == 2 and str(value[0]) in self.nodes
        return str(value[0]) if is_link else None  # type: ignore[index]

    def _value(self, value: object) -> object:
        """An input's value; where another node gives it, that node's one plain value of the usual names."""
        return self._followed(value)[0]

    def _followed(self, value: object) -> tuple[object, Node | None]:
        """The same, and the node at which the way to it ends unread: one of a kind that is not known, or a circle."""
        node = None
        for _ in range(len(self.nodes) + 1):
            other = self._linked(value)
            if other is None:
                return value, None
            node = self.nodes[other]
            inputs = _inputs(node)
            name = next((name for name in (*_TEXTS, "seed", "int", "float") if name in inputs), None)
            if name is None:
                return None, node
            value = inputs[name]
        return None, node

    def _unread(self, value: object, what: str) -> bool:
        """Whether a node that is not read gives an input; reported, with the texts in the node."""
        _, node = self._followed(value)
        if node is None:
            return False
        texts = [repr(plain(text)) for text in _inputs(node).values() if isinstance(text, str) and text.strip()]
        standing = f" (its text: {', '.join(texts)})" if texts else ""
        kind = plain(node["class_type"])
        self.remarks.append(f"{what} is made by the node {kind}, which is not read: give it yourself{standing}")
        return True

    def _chain(self, key: str, name: str) -> Iterator[tuple[str, Node]]:
        """The nodes on the way back from an input, one after another."""
        seen: set[str] = set()
        following = self._linked(_inputs(self.nodes[key]).get(name))
        while following is not None and following not in seen:
            seen.add(following)
            node = self.nodes[following]
            yield following, node
            inputs = _inputs(node)
            ways = [name, *_WAYS_ON, *(way for way in inputs if way.startswith((name, "conditioning")))]
            following = next((link for way in ways if (link := self._linked(inputs.get(way))) is not None), None)

    def _say(self, key: str, node: Node, what: str) -> None:
        if key not in self.passed and node["class_type"] not in _HARMLESS:
            self.passed.add(key)
            self.remarks.append(f"the node {plain(node['class_type'])} acts on {what}: it is not taken over")

    def _amount(self, inputs: Mapping[str, Any]) -> None:
        denoise = self._value(inputs.get("denoise", 1))
        if isinstance(denoise, (int, float)) and denoise != 1:
            self.fields["Denoising strength"] = plain(denoise)
        steps, start, end = (self._value(inputs.get(name)) for name in ("steps", "start_at_step", "end_at_step"))
        is_part = isinstance(end, int) and isinstance(steps, int) and end < steps
        if (isinstance(start, int) and start > 0) or is_part:
            self.remarks.append(f"it sampled only from step {plain(start)} to {plain(end)}: that is not taken over")

    def _latent(self, sampler: str) -> None:
        for key, node in self._chain(sampler, "latent_image"):
            inputs = _inputs(node)
            if node["class_type"] in _EMPTY:
                sides = [plain(self._value(inputs.get(side))) for side in ("width", "height")]
                self.fields["Size"] = "x".join(sides)
                return
            if node["class_type"] == "VAEEncode":
                self.fields.setdefault("Denoising strength", "1")
                return
            if node["class_type"] not in _SAMPLERS:
                self._say(key, node, "the picture it begins with")

    def _model(self, sampler: str) -> str:
        """The LoRAs' tags, in the order they were put on; checkpoint, VAE and clip skip become fields."""
        loras: dict[str, str] = {}
        for key, node in self._chain(sampler, "model"):
            inputs = _inputs(node)
            if node["class_type"] in _LORAS:
                unet = self._value(inputs.get("strength_model", 1))
                text = self._value(inputs.get("strength_clip", 0))
                loras[key] = lora_tag(self._value(inputs.get("lora_name")), [text, unet])
            elif node["class_type"] in _CHECKPOINTS:
                self.fields["Model"] = model_name(self._value(inputs.get("ckpt_name")))
            else:
                self._say(key, node, "the model")
        for node in self.nodes.values():
            inputs = _inputs(node)
            if node["class_type"] == "CLIPSetLastLayer":
                self.fields["Clip skip"] = plain(self._value(inputs.get("stop_at_clip_layer"))).removeprefix("-")
            elif node["class_type"] == "VAELoader":
                self.fields["VAE"] = plain(self._value(inputs.get("vae_name")))
        return "".join(reversed(loras.values()))

    def _prompt(self, sampler: str, name: str) -> str:
        for key, node in self._chain(sampler, name):
            inputs = _inputs(node)
            if node["class_type"] in _ENCODERS:
                given = next((inputs[field] for field in ("text", "text_g") if field in inputs), "")
                if self._unread(given, f"the {name} prompt"):
                    return ""
                said = self._value(given)
                if "text_l" in inputs and self._value(inputs["text_l"]) != said:
                    self.remarks.append("its two text encoders had different prompts: that of the second is taken")
                text = _EMBEDDING.sub(lambda match: model_name(match[1]), plain(said or ""))
                return without_tags(text, self.remarks)
            self._say(key, node, f"the {name} prompt")
        self.remarks.append(f"the {name} prompt is made by nodes that are not known here")
        return ""


def _inputs(node: Node) -> Mapping[str, Any]:
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def _is_sampling(node: Node) -> bool:
    return "sampl" in plain(node["class_type"]).lower()
