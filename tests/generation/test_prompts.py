"""The prompt grammar: every row of the web UI's table, LoRA tags, and anything else a person may type."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraloom.errors import PromptError
from loraloom.generation.prompts import LoraTag, extract_loras, parse_attention
from loraloom.models.conditioning import BREAK, Segment


def parsed(prompt: str) -> list[tuple[str, float]]:
    return [(segment.text, round(segment.weight, 7)) for segment in parse_attention(prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("((x))", [("x", 1.21)]),
        ("[x]", [("x", 0.9090909)]),
        ("[[x]]", [("x", 0.8264463)]),
        ("(x:1.3)", [("x", 1.3)]),
        ("(a:.7)", [("a", 0.7)]),
        ("(x:-0.5)", [("x", -0.5)]),
        ("(x : 1.2 )", [("x ", 1.2)]),
        ("(x:+2)", [("x", 2.0)]),
        ("(x:2.)", [("x", 2.0)]),
        ("(a (b:1.2) c:1.1)", [("a ", 1.1), ("b", 1.32), (" c", 1.1)]),
        ("(x", [("x", 1.1)]),
        ("[x", [("x", 0.9090909)]),
        ("x)", [("x)", 1.0)]),
        ("x]", [("x]", 1.0)]),
        (r"\(x\) \[y\] \\", [("(x) [y] \\", 1.0)]),
        (r"(\(x\):1.5)", [("(x)", 1.5)]),
        (r"a\b", [("ab", 1.0)]),
        ("[x:1.2]", [("x:1.2", 0.9090909)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("ratio 16:9", [("ratio 16:9", 1.0)]),
        ("cat :3", [("cat :3", 1.0)]),
        (":1.2)", [(":1.2)", 1.0)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("", [("", 1.0)]),
        ("()", [("", 1.0)]),
        ("(:1.3)", [("", 1.0)]),
        ("a BREAK b", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
        ("a breaks, BREAKFAST", [("a breaks, BREAKFAST", 1.0)]),
        ("a\nBREAK\nb", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
        ("(a BREAK b:1.2)", [("a", 1.2), ("BREAK", -1.0), ("b", 1.2)]),
        ("[a BREAK b]", [("a", 0.9090909), ("BREAK", -1.0), ("b", 0.9090909)]),
        ("BREAK BREAK", [("BREAK", -1.0), ("BREAK", -1.0)]),
    ],
)
def test_attention(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert parsed(prompt) == expected


def test_double_brackets_have_the_web_uis_exact_weight() -> None:
    assert parse_attention("((x))") == [Segment("x", 1.2100000000000002)]


def test_break_is_the_encoders_own() -> None:
    assert parse_attention("(a BREAK b:1.2)")[1] is BREAK


@given(st.text(alphabet="ab ()[]\\:.1-+<>,|\nBREAK", max_size=60))
def test_no_prompt_is_an_error_and_no_text_is_invented(prompt: str) -> None:
    segments = parse_attention(prompt)
    assert segments
    letters = "".join(segment.text for segment in segments if segment is not BREAK)
    assert set(letters) <= set(prompt)
    assert all(-1e9 < segment.weight < 1e9 or "1" in prompt for segment in segments)


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("<lora:ada>", LoraTag("ada", 1.0, 1.0)),
        ("<lora:ada:0.8>", LoraTag("ada", 0.8, 0.8)),
        ("<lora:ada:0.5:0.9>", LoraTag("ada", 0.5, 0.9)),
        ("<lora:ada:te=0.5>", LoraTag("ada", 0.5, 0.5)),
        ("<lora:ada:unet=0.5>", LoraTag("ada", 1.0, 0.5)),
        ("<lora:ada:0.2:unet=.5>", LoraTag("ada", 0.2, 0.5)),
        ("<lora:ada:te=0:unet=-1>", LoraTag("ada", 0.0, -1.0)),
        ("<lora:ada::0.5>", LoraTag("ada", 1.0, 0.5)),
        ("<lyco:ada:1.5>", LoraTag("ada", 1.5, 1.5)),
        ("<lora:My Style v1.2 (épée) 猫:0.7>", LoraTag("My Style v1.2 (épée) 猫", 0.7, 0.7)),
        ("<lora:folder/ada.safetensors:1>", LoraTag("folder/ada.safetensors", 1.0, 1.0)),
        (r"<lora:C:\loras\ada.safetensors:0.5>", LoraTag(r"C:\loras\ada.safetensors", 0.5, 0.5)),
        ("<lora:/tmp/ada.pt>", LoraTag("/tmp/ada.pt", 1.0, 1.0)),
    ],
)
def test_lora_tags(tag: str, expected: LoraTag) -> None:
    assert extract_loras(f"a{tag}b") == ("ab", (expected,))


def test_several_tags_keep_their_order_and_other_angles_stay() -> None:
    text, tags = extract_loras("a <b> <lora:x:1>, c < d <lora:y:0.5:1> > e")
    assert text == "a <b> , c < d  > e"
    assert [tag.name for tag in tags] == ["x", "y"]


@pytest.mark.parametrize(
    "tag",
    ["<lora:>", "<lora: :1>", "<lora:x:strong>", "<lora:x:1:2:3>", "<lora:x:nan>", "<lora:x:inf>", "<lora:x:dyn=8>"],
)
def test_wrong_tags_are_told(tag: str) -> None:
    with pytest.raises(PromptError) as error:
        extract_loras(f"a cat {tag}")
    assert tag in error.value.problem
    assert error.value.hint
