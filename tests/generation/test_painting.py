"""What is planned before the first step: images, their LoRAs in every pass, and the passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from loraloom.events import Event, Listener, Notice, ignore
from loraloom.generation.loras import AppliedLora, LoraStore
from loraloom.generation.painting import plan_painting
from loraloom.generation.prompts import LoraTag
from loraloom.generation.settings import GenerateSettings
from loraloom.models.loaded import LoadedModel

Models = Callable[[str], LoadedModel]
WriteLora = Callable[..., None]


class CountingStore(LoraStore):
    """Says which LoRAs were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def load(
        self, tag: LoraTag, folders: Sequence[Path], model: LoadedModel, listener: Listener = ignore
    ) -> AppliedLora:
        self.asked.append(tag.name)
        return super().load(tag, folders, model, listener)


def settings(**changes: object) -> GenerateSettings:
    base = {"prompt": "a cat", "width": 64, "height": 48, "steps": 3, "seed": 7, "lora_folders": []}
    return GenerateSettings.parse({**base, **changes})


def test_each_lora_is_looked_for_once_whatever_paints_with_it(
    toy_model: Models, write_lora: WriteLora, tmp_path: Path
) -> None:
    model, store = toy_model("sd1"), CountingStore()
    for seed, name in enumerate(("one", "two")):
        write_lora(model, tmp_path / f"{name}.safetensors", seed)
    asked = settings(
        prompt="a cat <lora:one:0.7>",
        hires_prompt="a dog <lora:one:0.7> <lora:two:0.3>",
        hires_scale=1.5,
        count=3,
        lora_folders=[tmp_path],
    )
    painting = plan_painting(model, asked, (), (), store, ignore)
    assert store.asked == ["one", "two"]
    assert [[len(loras) for loras in job.loras] for job in painting.jobs] == [[1, 2]] * 3
    assert [lora.name for lora in painting.jobs[0].loras_of_all()] == ["one", "two"]


def test_a_high_resolution_pass_comes_second_and_counts_the_steps_before_it(toy_model: Models) -> None:
    asked = settings(hires_scale=1.5, hires_steps=2, hires_prompt="[a dog:a fox:1.5]", count=2, batch_size=2)
    painting = plan_painting(toy_model("sd1"), asked, (), (), LoraStore(), ignore)
    first, second = painting.passes(ignore)
    assert (first.size, second.size) == ((64, 48), (96, 72))
    assert (first.earlier_steps, second.earlier_steps, painting.steps) == (None, 3, 5)
    assert [(number, len(batch)) for number, batch in painting.batches()] == [(0, 2)]
    assert [prompt.text for prompt in painting.jobs[1].prompts] == ["a cat", "[a dog:a fox:1.5]"]
    assert len(second.plans(painting.jobs[0].prompts[1]).positive.texts) == 2


def test_images_that_are_named_have_prompts_and_seeds_of_their_own(toy_model: Models) -> None:
    heard: list[Event] = []
    wanted = [("a house", "", 3), ("a tree <lora:none:0>", "fog <lora:x:1>", 11)]
    asked = settings(variation_strength=0.2, variation_seed=5, sampler="DPM adaptive", batch_size=4)
    plain = plan_painting(toy_model("sd1"), asked, wanted[:1], (), LoraStore(), heard.append)
    assert [(job.prompt.text, job.seed.seed, job.seed.variation_seed) for job in plain.jobs] == [("a house", 3, 5)]
    assert any(isinstance(event, Notice) and "images are made one at a time" in event.text for event in heard)
    assert not any(isinstance(event, Notice) and "negative prompt do nothing" in event.text for event in heard)
