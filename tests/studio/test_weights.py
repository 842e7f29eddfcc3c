"""Which merge it is, where edited metadata goes, and what is reported: the same for every door."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.adapters.strength import LoraStrength
from loraloom.cli.words import worded
from loraloom.errors import MissingFileError, SettingsError
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.studio.reports import layer_lines, report_lines
from loraloom.studio.weights import (
    convert_lora,
    edit_metadata,
    extract_lora,
    merge_checkpoints,
    merge_files,
    read_entries,
    read_merge,
    resize_lora,
)
from random_loras import random_lora
from toys import toy_tensors


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, another one, and two LoRAs."""
    folder = tmp_path_factory.mktemp("models")
    tensors = toy_tensors("sd1")
    write_tensors(folder / "base.safetensors", tensors)
    changed = {name: tensor * 1.07 if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
    write_tensors(folder / "tuned.safetensors", changed)
    for number in (1, 2):
        lora = random_lora("sd1", number, conv=number == 2)
        write_tensors(folder / f"{number}.safetensors", lora.file_tensors(), metadata={"note": "old"})
    return folder


def test_what_comes_first_decides_which_merge_it_is(models: Path) -> None:
    one, two = models / "1.safetensors", models / "2.safetensors"
    checkpoint, loras = read_merge(str(models / "base.safetensors"), [f"{one}:0.3", str(two)], ["OUTD", "MIDD"])
    assert checkpoint == models / "base.safetensors"
    assert [lora.path for lora in loras] == [one, two]
    assert [lora.strength.unet for lora in loras] == [0.3, 1.0]
    assert loras[0].strength.blocks != loras[1].strength.blocks

    checkpoint, loras = read_merge(f"{one}:0.3:0.7", [str(two)])
    assert checkpoint is None
    assert [lora.path for lora in loras] == [one, two]
    assert loras[0].strength == LoraStrength(0.7, 0.3)

    # A LoRA that comes first has block weights of its own, a checkpoint has none.
    assert read_merge(str(one), [str(two)], ["OUTD", "MIDD"])[0] is None
    with pytest.raises(SettingsError, match="2 block weights for 1 LoRAs"):
        read_merge(str(models / "base.safetensors"), [str(two)], ["OUTD", "MIDD"])
    with pytest.raises(MissingFileError):
        read_merge(str(models / "none.safetensors"), [str(one)])


@pytest.mark.parametrize(
    ("given", "neutral", "typed"),
    [
        ({"rank": 3}, "a rank", "--rank"),
        ({"conv_rank": 3}, "a rank", "--rank"),
        ({"to": "kohya", "rank": 3}, "a choice of names", "--to"),
    ],
)
def test_a_checkpoint_takes_neither_ranks_nor_names(
    models: Path, tmp_path: Path, given: dict[str, int | str], neutral: str, typed: str
) -> None:
    base = models / "base.safetensors"
    _, loras = read_merge(str(base), [str(models / "1.safetensors")])
    with pytest.raises(SettingsError) as caught:
        merge_files(base, loras, tmp_path / "out.safetensors", **given)  # type: ignore[arg-type]
    assert caught.value.problem == f"{neutral} is for LoRAs merged into a LoRA"
    assert worded(caught.value.problem) == f"{typed} is for LoRAs merged into a LoRA"
    assert caught.value.hint == f"{base} is a checkpoint"
    assert not (tmp_path / "out.safetensors").exists()


def test_both_merges_are_reported(models: Path, tmp_path: Path) -> None:
    texts = [f"{models / '1.safetensors'}:0.3", str(models / "2.safetensors")]
    output = tmp_path / "out.safetensors"
    lines = report_lines(merge_files(*read_merge(str(models / "base.safetensors"), texts), output))
    assert [line.partition(": ")[0] for line in lines] == [
        *(text.partition(":0")[0] for text in texts),
        f"wrote {output}",
    ]
    assert " of 993 tensors changed" in lines[2]

    (line,) = report_lines(merge_files(*read_merge(texts[0], texts[1:]), output))
    assert "ranks 2 to 4, in the names of" in line and "left out" not in line
    (line,) = report_lines(merge_files(*read_merge(texts[0], texts[1:]), output, rank=1))
    assert ", rank 1; left out: " in line
    (line,) = report_lines(merge_files(*read_merge(texts[0], texts[1:]), output, rank=64))
    assert "; left out: 0.00% of the norm" in line


def test_what_the_other_tools_report(models: Path, tmp_path: Path) -> None:
    one, output = models / "1.safetensors", tmp_path / "out.safetensors"
    lines = report_lines(convert_lora(one, output, to="diffusers"))
    assert lines[0] == "read as: kohya sd-scripts, AUTOMATIC1111, ComfyUI, for Stable Diffusion 1"
    assert lines[1].startswith(f"wrote {output}: ") and lines[1].endswith("in the names of diffusers with PEFT")

    resized = resize_lora(one, output, rank=1)
    kept = min(layer.kept for layer in resized.layers)
    assert f"at least {kept:.2%} in" in report_lines(resized)[0]
    assert "ranks 1 to 1, in the names of" in report_lines(resized)[1]
    assert len(layer_lines(resized)) == len(resized.layers) and "rank 2 to 1, " in layer_lines(resized)[0]

    base, tuned = models / "base.safetensors", models / "tuned.safetensors"
    extracted = extract_lora(
        base, tuned, output, rank=3, conv_rank=0, to_residual=None, min_difference=0.0, precision="float"
    )
    worst = max(layer.residual for layer in extracted.layers)
    first, second = report_lines(extracted)
    assert f"at most {worst:.2%} in" in first
    assert second.endswith(f"{len(extracted.layers)} layers, ranks 3 to 3; {extracted.unchanged} unchanged")
    assert len(layer_lines(extracted)) == len(extracted.layers) and ": rank 3, " in layer_lines(extracted)[0]

    (line,) = report_lines(merge_checkpoints(base, [(tuned, 0.3)], output))
    assert line.startswith(f"wrote {output}: ") and line.endswith(" tensors merged")


def test_metadata_is_typed_as_key_and_value() -> None:
    assert read_entries([" title =a=b", "tags=", "title=c"]) == {"title": "c", "tags": ""}
    with pytest.raises(SettingsError) as caught:
        read_entries(["title=a", "author"])
    assert caught.value.problem == "the entry 'author' is not KEY=VALUE"
    assert worded(caught.value.problem) == "--set 'author' is not KEY=VALUE"
    assert worded(caught.value.hint) == "--set title='Inked lines'"


def test_edited_metadata_has_one_place(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((models / "1.safetensors").read_bytes())
    before = path.read_bytes()
    assert edit_metadata(path, None, {}) is None
    for output, in_place in ((None, False), (tmp_path / "b.safetensors", True)):
        with pytest.raises(SettingsError, match="where should the result go"):
            edit_metadata(path, output, {"title": "x"}, in_place=in_place)
    for output, in_place in ((None, True), (tmp_path / "b.safetensors", False)):
        with pytest.raises(SettingsError, match="nothing to change") as caught:
            edit_metadata(path, output, {}, in_place=in_place)
        assert worded(caught.value.hint).startswith("--set, ")
    assert path.read_bytes() == before and not (tmp_path / "b.safetensors").exists()

    edit = edit_metadata(path, tmp_path / "b.safetensors", {"title": "x"}, remove=["note"])
    assert edit is not None
    assert report_lines(edit) == [f"wrote {tmp_path / 'b.safetensors'}: 1 changed, 1 removed"]
    assert path.read_bytes() == before
    edit = edit_metadata(path, None, {}, in_place=True, remove=["note"])
    assert edit is not None and edit.path == path
    assert "note" not in open_tensors(path).metadata
