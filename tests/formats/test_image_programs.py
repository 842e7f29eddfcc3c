"""Images of other programs: whose they are, what they say in the web UI's words, and what is said of the rest."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from loraloom.errors import FileFormatError
from loraloom.formats.image_info import Parameters
from loraloom.formats.image_programs import read_image, read_text
from loraloom.formats.image_programs.novel_ai import translate_emphasis


def image(path: Path, **chunks: Any) -> Path:
    """A PNG with text chunks; what is no text is written as JSON. Underlines stand for dashes."""
    info = PngInfo()
    for name, value in chunks.items():
        info.add_itxt(name.replace("__", "-"), value if isinstance(value, str) else json.dumps(value))
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def read(folder: Path, **chunks: Any) -> Parameters:
    found = read_image(image(folder / "a.png", **chunks))
    assert found is not None
    return found


SWARM = {
    "sui_image_params": {
        "prompt": "a cat", "negativeprompt": "dog", "model": "folder/toy_xl.safetensors", "seed": 7, "steps": 23,
        "cfgscale": 6.5, "width": 832, "height": 1216, "sampler": "dpmpp_2m", "scheduler": "karras",
        "loras": ["ink/lines"], "loraweights": ["0.7"], "clipstopatlayer": "-2", "automaticvae": True,
        "swarm_version": "0.9.3", "freeuapplyto": "Both",
    },
    "sui_extra_data": {"date": "2024-11-13"},
}  # fmt: skip


def test_swarm_ui(tmp_path: Path) -> None:
    found = read(tmp_path, parameters=json.dumps(SWARM, indent=2))
    assert (found.program, found.prompt, found.negative_prompt) == ("SwarmUI", "a cat<lora:lines:0.7>", "dog")
    assert found.fields == {
        "Steps": "23", "Sampler": "dpmpp_2m", "Schedule type": "karras", "CFG scale": "6.5", "Seed": "7",
        "freeuapplyto": "Both", "Size": "832x1216", "Model": "toy_xl", "Clip skip": "-2", "Emphasis": "Comfy",
        "RNG": "CPU",
    }  # fmt: skip
    assert read_text(json.dumps(SWARM)) == found
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + json.dumps(SWARM).encode("utf-16-le")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg") == found


def test_a_lora_that_swarm_ui_lists_because_of_its_tag_counts_once(tmp_path: Path) -> None:
    told = {"prompt": "a <lora:ink/lines:0.7> cat", "loras": ["ink/lines", "dots"], "loraweights": ["0.7", "0.3"]}
    assert read(tmp_path, parameters={"sui_image_params": told}).prompt == "a <lora:ink/lines:0.7> cat<lora:dots:0.3>"


def test_fooocus(tmp_path: Path) -> None:
    told = {
        "prompt": "a cat", "full_prompt": ["a cat", "cinematic still"], "full_negative_prompt": ["blurry"],
        "negative_prompt": "", "steps": 30, "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "seed": "123",
        "guidance_scale": 4.0, "resolution": "(1152, 896)", "base_model": "juggernaut", "base_model_hash": "d91d35736d",
        "lora_combined_1": "offset.safetensors : 0.1", "lora_combined_2": "False : no.safetensors : 1",
        "sharpness": 2.0, "vae": "Default (model)", "metadata_scheme": "fooocus", "version": "Fooocus v2.5.0",
    }  # fmt: skip
    found = read(tmp_path, parameters=told, fooocus_scheme="fooocus")
    assert (found.program, found.prompt) == ("Fooocus", "a cat, cinematic still<lora:offset:0.1>")
    assert (found.negative_prompt, found.fields["Size"]) == ("blurry", "1152x896")
    assert (found.fields["Model hash"], found.fields["sharpness"]) == ("d91d35736d", "2")
    assert "VAE" not in found.fields
    old = {"prompt": "a", "sampler": "euler", "base_model": "b.safetensors", "seed": 3, "loras": [["x.pt", 0.3]]}
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", comment=json.dumps({**old, "width": 64, "height": 72}).encode())
    found = read_image(tmp_path / "a.jpg") or Parameters()
    assert (found.prompt, found.fields["Size"], found.fields["Model"]) == ("a<lora:x:0.3>", "64x72", "b")


def test_fooocus_in_the_web_uis_scheme_is_an_infotext(tmp_path: Path) -> None:
    found = read(tmp_path, parameters="a\nSteps: 30, Sampler: DPM++ 2M SDE Karras, Seed: 1, Version: Fooocus v2.5.0")
    assert (found.program, found.fields["Seed"]) == ("", "1")


def test_novel_ai(tmp_path: Path) -> None:
    comment = {
        "prompt": "unused", "steps": 28, "height": 1216, "width": 832, "scale": 5.5, "uncond_scale": 1.0,
        "cfg_rescale": 0.3, "seed": 5, "noise_schedule": "karras", "sampler": "k_euler_ancestral", "sm": True,
        "sm_dyn": False, "dynamic_thresholding": True, "skip_cfg_above_sigma": None, "uc": "{dog}, (x)",
    }  # fmt: skip
    found = read(
        tmp_path, Software="NovelAI", Source="Stable Diffusion XL 9CC2F394", Description="a {{cat}}", Comment=comment
    )
    assert (found.program, found.prompt, found.negative_prompt) == ("NovelAI", "a (cat:1.103)", r"(dog:1.05), \(x\)")
    assert found.fields == {
        "Steps": "28", "CFG scale": "5.5", "Seed": "5", "CFG rescale": "0.3", "Sampler": "k_euler_ancestral",
        "Schedule type": "karras", "Size": "832x1216", "Model": "Stable Diffusion XL 9CC2F394", "Clip skip": "2",
        "ENSD": "31337",
    }  # fmt: skip
    assert [word for word in ("SMEA", "decrisper", "1.05") if not any(word in text for text in found.remarks)] == []
    assert len(found.remarks) == 3
    first = read(tmp_path, Software="NovelAI", Description="a cat", Comment={"uc": "dog", "steps": 28, "seed": 5})
    assert (first.prompt, first.negative_prompt, first.fields["Seed"], first.remarks) == ("a cat", "dog", "5", ())


def test_prompts_of_novel_ais_characters_are_said(tmp_path: Path) -> None:
    captions = {"base_caption": "a yard", "char_captions": [{"char_caption": "girl"}, {"char_caption": "dog"}, 3]}
    comment = {"prompt": "a yard", "v4_prompt": {"caption": captions}}
    found = read(tmp_path, Software="NovelAI", Description="a yard", Comment=comment)
    assert [remark[-6:] for remark in found.remarks] == ["'girl'", " 'dog'"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a {b} c", "a (b:1.05) c"),
        ("{{{b}}}", "(b:1.158)"),
        ("[b]", "(b:0.9524)"),
        ("{[b]}", "b"),
        ("{a {b} c}", "(a :1.05)(b:1.103)( c:1.05)"),
        ("{a", "(a:1.05)"),
        ("a} b]", "a b"),
        ("(a) \\ :b", r"\(a\) \\ :b"),
        ("1.5::a cat::, dog", "(a cat:1.5), dog"),
        ("x, -1::a::b", "x, (a:-1)b"),
        ("{2::a::}", "(a:2.1)"),
        ("a::b", "ab"),
        ("{}" * 3, ""),
    ],
)
def test_novel_ais_emphasis(prompt: str, expected: str) -> None:
    assert translate_emphasis(prompt) == expected


def test_endless_braces_are_no_error() -> None:
    for mark in "{[":
        assert "a" in translate_emphasis(mark * 30_000 + "a")


def test_invoke_ai(tmp_path: Path) -> None:
    told = {
        "app_version": "5.0.0", "generation_mode": "txt2img", "positive_prompt": "a cat", "negative_prompt": "dog",
        "width": 640, "height": 512, "seed": 9, "rand_device": "cpu", "cfg_scale": 7.5, "steps": 30,
        "scheduler": "dpmpp_2m_k", "clip_skip": 1, "model": {"key": "x", "hash": "blake3:0", "name": "toy"},
        "loras": [{"model": {"name": "ink"}, "weight": 0.75}, {"lora": {"model_name": "old"}, "weight": 1}],
        "controlnets": [{"weight": 1}],
    }  # fmt: skip
    found = read(tmp_path, invokeai_metadata=told)
    assert (found.program, found.prompt, found.negative_prompt) == (
        "InvokeAI",
        "a cat<lora:ink:0.75><lora:old:1>",
        "dog",
    )
    wanted = {"Steps": "30", "Sampler": "dpmpp_2m", "Schedule type": "Karras", "RNG": "CPU", "Clip skip": "2"}
    assert wanted.items() <= found.fields.items()
    assert (found.fields["Model"], found.fields["Size"]) == ("toy", "640x512")
    assert "controlnets" in found.fields
    weighed = read(tmp_path, invokeai_metadata={**told, "positive_prompt": "a cat++ and (a dog)0.7"})
    assert "InvokeAI's own language" in weighed.remarks[0]


def test_invoke_ai_before_version_3(tmp_path: Path) -> None:
    picture = {"prompt": [{"prompt": "a cat [dog] here", "weight": 1}], "steps": 50, "cfg_scale": 7.5, "width": 512,
               "height": 704, "seed": 3, "sampler": "k_lms", "type": "txt2img"}  # fmt: skip
    found = read(tmp_path, sd__metadata={"model_weights": "sd-1.4", "app_version": "2.2", "image": picture})
    assert (found.prompt, found.negative_prompt) == ("a cat  here", "dog")
    assert (found.fields["Model"], found.fields["Size"], found.fields["Sampler"]) == ("sd-1.4", "512x704", "k_lms")
    found = read(tmp_path, Dream='"a \\"cat\\" [dog]" -s 50 -S3 -W 512 -H 704 -C 7.5 -A k_lms')
    assert (found.program, found.prompt, found.negative_prompt) == ("InvokeAI", 'a \\"cat\\"', "dog")
    assert found.fields == {"Steps": "50", "Seed": "3", "CFG scale": "7.5", "Sampler": "k_lms", "Size": "512x704"}


@pytest.mark.parametrize("dream", ["a cat", '"a cat', '"a cat"', '"a cat" -', '"a cat -s x -S'])
def test_a_command_line_of_invoke_ai_without_options(tmp_path: Path, dream: str) -> None:
    found = read(tmp_path, Dream=dream)
    assert found.prompt.strip('"').startswith("a cat")
    assert found.fields == {}


def test_a_blended_prompt_of_invoke_ai_is_said(tmp_path: Path) -> None:
    prompts = [{"prompt": "a cat [dog]", "weight": 0.7}, {"prompt": "a bird", "weight": 0.3}]
    found = read(tmp_path, **{"sd-metadata": {"image": {"prompt": prompts, "steps": 7}}})
    assert (found.prompt, found.negative_prompt) == ("a cat", "dog")
    assert found.remarks == ("it was blended with a second prompt, which is not taken over: 'a bird'",)
    assert read(tmp_path, **{"sd-metadata": {"image": {"prompt": []}}}).prompt == ""


def test_draw_things(tmp_path: Path) -> None:
    told = {"c": "a cat", "uc": "dog", "model": "sd_v1.5_f16.ckpt", "sampler": "DPM++ 2M Karras", "steps": 30,
            "scale": 7.5, "seed": 3, "size": "512x704", "seed_mode": "Torch CPU Compatible", "strength": 1,
            "lora": [{"model": "ink.ckpt", "weight": 0.3}], "v2": {}, "shift": 1.5}  # fmt: skip
    packet = f"<exif:UserComment><rdf:Alt><rdf:li>{json.dumps(told)}</rdf:li></rdf:Alt></exif:UserComment>"
    found = read(tmp_path, **{"XML:com.adobe.xmp": packet})
    assert (found.program, found.prompt, found.negative_prompt) == ("Draw Things", "a cat<lora:ink:0.3>", "dog")
    assert (found.fields["Size"], found.fields["RNG"], found.fields["shift"]) == ("512x704", "CPU", "1.5")


def test_easy_diffusion(tmp_path: Path) -> None:
    told = {"prompt": "a cat", "negative_prompt": "dog", "seed": "3", "use_stable_diffusion_model": "C:\\m\\toy.ckpt",
            "sampler_name": "euler_a", "num_inference_steps": "25", "guidance_scale": "7.5", "width": "512",
            "height": "704", "use_vae_model": "None", "clip_skip": "True", "tiling": "None",
            "use_lora_model": "ink", "lora_alpha": "0.3"}  # fmt: skip
    found = read(tmp_path, **told)
    assert (found.program, found.prompt, found.negative_prompt) == ("Easy Diffusion", "a cat<lora:ink:0.3>", "dog")
    assert found.fields == {
        "Steps": "25", "Sampler": "euler_a", "CFG scale": "7.5", "Seed": "3", "Size": "512x704", "Model": "toy",
        "Clip skip": "2",
    }  # fmt: skip
    spoken = {"Prompt": "a cat", "Stable Diffusion model": "m/toy.ckpt", "Steps": 25, "Width": 512, "Height": 704}
    assert read_text(json.dumps(spoken)).fields == {"Steps": "25", "Size": "512x704", "Model": "toy"}


def graph(**changes: Any) -> dict[str, Any]:
    nodes: dict[str, Any] = {
        "3": {"class_type": "KSampler", "inputs": {
            "seed": 156680208700286, "steps": 21, "cfg": 8.5, "sampler_name": "dpmpp_2m", "scheduler": "karras",
            "denoise": 1.0, "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd/toy.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 640, "height": 512, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat, embedding:style.pt", "clip": ["10", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "dog", "clip": ["10", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["8", 0]}},
        "10": {"class_type": "LoraLoader", "inputs": {
            "lora_name": "ink.safetensors", "strength_model": 0.7, "strength_clip": 0.3, "model": ["4", 0],
            "clip": ["4", 1]}},
    }  # fmt: skip
    return {**nodes, **changes}


def test_comfy_ui(tmp_path: Path) -> None:
    found = read(tmp_path, prompt=graph(), workflow={"nodes": []})
    assert (found.program, found.prompt, found.negative_prompt) == ("ComfyUI", "a cat, style<lora:ink:0.3:0.7>", "dog")
    assert found.fields == {
        "Steps": "21", "Sampler": "dpmpp_2m", "Schedule type": "karras", "CFG scale": "8.5", "Seed": "156680208700286",
        "Size": "640x512", "Model": "toy", "Emphasis": "Comfy", "RNG": "CPU",
    }  # fmt: skip
    assert found.remarks == ()
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(graph())
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    assert read_image(tmp_path / "a.webp") == found


def test_comfy_ui_through_other_nodes(tmp_path: Path) -> None:
    sampler = graph()["3"]["inputs"]
    nodes = graph(
        **{
            "3": {"class_type": "KSampler", "inputs": {
                **sampler, "seed": ["20", 0], "model": ["21", 0], "positive": ["22", 0], "negative": ["22", 1]}},
            "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["23", 0], "clip": ["24", 0]}},
            "20": {"class_type": "Seed (rgthree)", "inputs": {"seed": 11}},
            "21": {"class_type": "FreeU_V2", "inputs": {"b1": 1.3, "model": ["10", 0]}},
            "22": {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["6", 0], "negative": ["7", 0]}},
            "23": {"class_type": "String Literal", "inputs": {"string": "a [red:blue:0.3] fox"}},
            "24": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["10", 1]}},
            "25": {"class_type": "LatentUpscale", "inputs": {"samples": ["3", 0], "width": 1280, "height": 1024}},
            "26": {"class_type": "KSampler", "inputs": {**sampler, "denoise": 0.5, "latent_image": ["25", 0]}},
            "8": {"class_type": "VAEDecode", "inputs": {"samples": ["26", 0], "vae": ["27", 0]}},
            "27": {"class_type": "VAELoader", "inputs": {"vae_name": "mse.pt"}},
        }
    )  # fmt: skip
    found = read(tmp_path, prompt=nodes)
    assert (found.prompt, found.negative_prompt) == ("a [red:blue:0.3] fox<lora:ink:0.3:0.7>", "dog")
    assert (found.fields["Seed"], found.fields["Clip skip"], found.fields["VAE"]) == ("11", "2", "mse.pt")
    assert found.fields["Size"] == "640x512"
    words = ["FreeU_V2", "ControlNetApplyAdvanced", "KSampler (node 26)", "are text in ComfyUI"]
    assert [word for word in words if not any(word in remark for remark in found.remarks)] == []


def test_a_comfy_ui_prompt_made_by_unknown_nodes_is_said_with_what_stands_in_them(tmp_path: Path) -> None:
    """An empty prompt without a word would be another picture that looks like success."""
    sampler = graph()["3"]["inputs"]
    nodes = graph(
        **{
            "3": {"class_type": "KSampler", "inputs": {**sampler, "seed": ["40", 0], "cfg": ["41", 0], "steps": None}},
            "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["42", 0], "clip": ["4", 1]}},
            "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ["43", 0], "clip": ["4", 1]}},
            "40": {"class_type": "Random Integer", "inputs": {"minimum": 3}},
            "41": {"class_type": "Primitive", "inputs": {"value": ["41", 0]}},
            "42": {"class_type": "StringConcat", "inputs": {"a": "a fox", "b": "in snow", "separator": ", "}},
            "43": {"class_type": "ShowText", "inputs": {"text": ["43", 0]}},
        }
    )
    found = read(tmp_path, prompt=nodes)
    assert (found.prompt, found.negative_prompt) == ("<lora:ink:0.3:0.7>", "")
    assert "Seed" not in found.fields and "CFG scale" not in found.fields
    assert found.fields["Steps"] == "null"  # which is said where values are understood
    assert found.remarks == (
        "its CFG scale is made by the node Primitive, which is not read: give it yourself",
        "its Seed is made by the node Random Integer, which is not read: give it yourself",
        "the positive prompt is made by the node StringConcat, which is not read: give it yourself (its text: "
        "'a fox', 'in snow', ', ')",
        "the negative prompt is made by the node ShowText, which is not read: give it yourself",
    )


def test_comfy_ui_from_a_picture(tmp_path: Path) -> None:
    sampler = {**graph()["3"]["inputs"], "latent_image": ["30", 0], "denoise": 0.6}
    nodes = graph(
        **{
            "3": {"class_type": "KSampler", "inputs": {**sampler, "sampler_name": "uni_pc_bh2"}},
            "30": {"class_type": "VAEEncode", "inputs": {"pixels": ["31", 0]}},
            "31": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        }
    )
    found = read(tmp_path, prompt=nodes)
    assert (found.fields["Denoising strength"], found.fields["UniPC variant"]) == ("0.6", "bh2")
    assert "Size" not in found.fields


def test_tags_are_text_where_they_are_text(tmp_path: Path) -> None:
    """ComfyUI's own nodes know no LoRA tags; here they would look for a file."""
    nodes = graph(**{"6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a <lora:x:1>cat", "clip": ["4", 1]}}})
    found = read(tmp_path, prompt=nodes)
    assert found.prompt == "a cat<lora:ink:0.3:0.7>"
    assert found.remarks == ("<lora:x:1> in its prompt is text there: it is left out",)
    invoke = {"positive_prompt": "a <lyco:y>", "negative_prompt": "<lora:z:1>b"}
    found = read(tmp_path, invokeai_metadata=invoke)
    assert (found.prompt, found.negative_prompt, len(found.remarks)) == ("a ", "b", 2)
    assert read(tmp_path, parameters={"c": "a <lora:x:1>", "uc": ""}).prompt == "a "


def test_an_infotext_beside_a_graph_goes_first(tmp_path: Path) -> None:
    text = "a dog\nSteps: 20, Sampler: Euler, Seed: 3"
    assert read(tmp_path, parameters=text, prompt=graph()).prompt == "a dog"


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ({"parameters": '{"sui_image_params": {"prompt": "a"},}'}, "SwarmUI wrote into the image is damaged"),
        ({"Software": "NovelAI", "Comment": "{"}, "NovelAI wrote into the image is damaged"),
        ({"invokeai_metadata": "[1]"}, "InvokeAI wrote into the image is not a JSON object"),
        ({"prompt": {"1": {"class_type": "SamplerCustomAdvanced", "inputs": {}}}}, "SamplerCustomAdvanced"),
        ({"prompt": "{broken", "workflow": {}}, "ComfyUI wrote into the image is damaged"),
        ({"prompt": json.dumps(graph())[:-9]}, "ComfyUI wrote into the image is damaged"),
        ({"Model": "prompt:" + json.dumps(graph())[:-9]}, "ComfyUI wrote into the image is damaged"),
        ({"workflow": {"nodes": []}}, "ComfyUI (its workflow"),
        ({"Description": "a cat --v 5 Job ID: 0123"}, "Midjourney"),
        ({"parameters": {"any": "thing"}}, "JSON of a program that is not known"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, chunks: dict[str, Any], words: str) -> None:
    with pytest.raises(FileFormatError) as error:
        read_image(image(tmp_path / "a.png", **chunks))
    assert words in error.value.problem
    assert str(tmp_path / "a.png") in error.value.problem


def test_plain_texts_and_none(tmp_path: Path) -> None:
    assert read_image(image(tmp_path / "a.png")) is None
    assert read_image(image(tmp_path / "a.png", Software="a camera")) is None
    assert read(tmp_path, parameters="only a prompt") == Parameters("only a prompt")


ODD = [None, True, -1, 3.5, 10**400, "", "x", [], [[]], {}, {"a": []}, ["3", 0], "\ud800", float("nan")]


def mutated(value: Any, draw: random.Random) -> Any:
    """The same JSON with some values replaced by odd ones, some keys gone, some copied to other places."""
    if draw.random() < 0.12:
        return draw.choice(ODD)
    if isinstance(value, dict):
        return {key: mutated(item, draw) for key, item in value.items() if draw.random() > 0.05}
    if isinstance(value, list):
        return [mutated(item, draw) for item in value if draw.random() > 0.05]
    return value


def test_mutated_texts_are_read_or_refused() -> None:
    """No other exception, whatever types the values have."""
    from loraloom.formats.image_programs import table

    draw = random.Random(8)
    invoke = {"positive_prompt": "a", "loras": [{"model": {"name": "x"}, "weight": 1}], "model": {"name": "m"}}
    easy = {"prompt": "a", "use_stable_diffusion_model": "m", "use_lora_model": ["a"], "lora_alpha": [0.3], "width": 8}
    draw_things = {"c": "a", "uc": "b", "lora": [{"model": "m", "weight": 0.3}], "seed_mode": "Torch CPU"}
    fooocus = {"prompt": "a", "base_model": "b", "sampler": "c", "lora_combined_1": "a : 1", "loras": [["a", 1]]}
    novel = {"uc": "b", "steps": 28, "sampler": "k_euler", "width": 8, "height": 8, "uncond_scale": 1, "sm": True}
    kinds: list[tuple[str, Any]] = [
        ("parameters", SWARM), ("parameters", fooocus), ("invokeai_metadata", invoke), ("parameters", easy),
        ("sd-metadata", {"image": {"prompt": [{"prompt": "a"}], "width": 8, "height": 8}}), ("prompt", graph()),
        ("parameters", draw_things), ("Comment", novel),
    ]  # fmt: skip
    read_well = 0
    for number in range(1500):
        name, value = kinds[number % len(kinds)]
        try:
            text = json.dumps(mutated(value, draw))
        except ValueError:  # a number of so many digits is no JSON for Python
            continue
        texts = {name: text, "Software": "NovelAI"} if name == "Comment" else {name: text}
        try:
            read_well += table._read(texts) is not None
        except FileFormatError:
            continue
    assert read_well > 700
