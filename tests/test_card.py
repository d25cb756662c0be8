"""Model cards: what is ours is marked, what is the author's stays, and nothing from a file has an effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import adapterpack
from adapterpack.adapter import Backbone
from adapterpack.card import model_card
from adapterpack.errors import CallError
from adapterpack.packing.sizes import describe_file
from tests.factories import make, pack

yaml = pytest.importorskip("yaml", reason="the hub extra is not installed")
FOLDER = "hf://me/adapters"
BACKBONE = Backbone("vit_base_patch16_224.orig_in21k", "sha256:" + "ab" * 32)


def described(name: str = "cifar", metadata: Any = None, backbone: Backbone = BACKBONE) -> dict[str, Any]:
    data = pack(make("lora", name, metadata=metadata or {}), backbone=backbone)
    return {**describe_file(adapterpack.open(data)), "path": f"{name}.apk"}


def card(*files: dict[str, Any], existing: str = "", **more: str) -> str:
    return model_card(files or (described(),), existing, folder=FOLDER, **more)


def front(text: str) -> dict[str, Any]:
    opening, matter, _ = text.split("---\n", 2)
    assert opening == ""
    found: dict[str, Any] = yaml.safe_load(matter)
    return found


def test_a_new_card() -> None:
    found = front(card())
    assert found["library_name"] == "adapterpack" and "adapterpack" in found["tags"]
    assert found["base_model"] == ["timm/vit_base_patch16_224.orig_in21k"]
    assert found["base_model_relation"] == "adapter"
    assert not found.keys() & {"license", "metrics", "model-index"}


def test_the_hub_library_reads_it() -> None:
    hub = pytest.importorskip("huggingface_hub")
    read = hub.ModelCard(card(described(metadata={"accuracy": 0.934, "dataset": "cifar100"})))
    assert read.data.library_name == "adapterpack" and read.data.metrics == ["accuracy"]
    result = read.data.eval_results[0]
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("cifar100", "accuracy", 0.934)


def test_the_table_says_what_inspect_says() -> None:
    file = described(metadata={"accuracy": 0.93, "training": {"validation_accuracy": 0.9}})
    task, text = file["tasks"][0], card(file)
    row = next(line for line in text.splitlines() if line.startswith("| cifar.apk | cifar |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    parts = task["bytes_by_part"]
    assert cells[2:9] == [
        "lora", "1", "5", str(task["bytes"]), str(parts["adapter"]), str(parts["head"]), f"{task['dense_bytes']:,}"
    ]  # fmt: skip
    assert cells[9] == "0.93 (accuracy), 0.9 (validation accuracy)"
    assert file["digest"] in text and "sha256:" + "ab" * 32 in text
    assert 'adapterpack.load("hf://me/adapters/cifar.apk", model)' in text


@pytest.mark.parametrize(
    ("name", "base", "expected"),
    [
        ("vit_base_patch16_224", "", None),  # no tag: timm could mean any of several weights
        ("timm/vit_x.y", "", ["timm/vit_x.y"]),
        ("", "", None),
        ("mine", "me/backbone", ["me/backbone"]),
    ],
)
def test_base_model(name: str, base: str, expected: list[str] | None) -> None:
    found = front(card(described(backbone=Backbone(name)), base_model=base))
    assert found.get("base_model") == expected


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("vit_base_patch16_224", 'timm.create_model("vit_base_patch16_224", pretrained=True)'),
        ("timm/vit_x.y", 'timm.create_model("vit_x.y", pretrained=True)'),
        ("test_vit", 'timm.create_model("test_vit", pretrained=True)'),
        ("base", 'create_backbone("base.safetensors").model'),
        ("vit", 'create_backbone("vit.safetensors").model'),
        ("me/backbone", 'create_backbone("backbone.safetensors").model'),
        ("", 'create_backbone("backbone.safetensors").model'),
        ("a`b <!-- c", 'create_backbone("backbone.safetensors").model'),
    ],
)
def test_the_code_makes_the_backbone(name: str, made: str) -> None:
    """By timm's name where it is one; a file's stem is none."""
    text = card(described(backbone=Backbone(name)))
    code = text.split("```python\n")[1].split("```")[0]
    assert made in code and ("import adapterpack, timm\n" in code) == made.startswith("timm")
    compile(code, "card", "exec")
    assert "<!-- c" not in code and ("the weights that it was trained on" in code) != made.startswith("timm")


def test_the_code_runs_with_the_backbones_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from adapterpack.adapter import Branch, Site
    from tests import _images, _vit

    monkeypatch.chdir(_images.backbone(tmp_path).parent)
    site = Site.parse("blocks.0.attn.proj")
    branch = Branch(site, "lora", {"scale": 1.0}, {"down": _vit.dense(2, 24), "up": _vit.dense(24, 2)})
    adapterpack.pack(_vit.adapter([branch], classes=0), tmp_path / "toy.apk", backbone=tmp_path / "tiny.safetensors")
    file = {**describe_file(adapterpack.open(tmp_path / "toy.apk")), "path": "toy.apk"}
    code = model_card([file], "", folder=str(tmp_path)).split("```python\n")[1].split("```")[0]
    exec(code, {"images": torch.zeros(1, 3, _images.SIDE, _images.SIDE)})


AUTHORS = "---\nlicense: mit\ntags:\n- mine\n---\n\n# My adapters\n\nWords.\n\n<b>more</b>\n"


def test_an_authors_card_keeps_every_line() -> None:
    text = card(existing=AUTHORS)
    assert front(text)["license"] == "mit"
    assert front(text)["tags"] == ["mine"]  # the author's, and given once
    assert front(text)["library_name"] == "adapterpack"
    for line in AUTHORS.splitlines():
        assert line in text.splitlines()
    assert AUTHORS.split("---\n", 2)[2] in text


def test_bringing_up_to_date_changes_our_part_alone() -> None:
    first = card(existing=AUTHORS)
    edited = first.replace("Words.", "Other words.").rstrip("\n") + "\n\nThe end.\n"
    again = card(described("cifar"), described("dtd"), existing=edited)
    assert "| dtd.apk | dtd |" in again and "Other words." in again and again.endswith("\n\nThe end.\n")
    assert again.count("adapterpack: begin") == 2
    assert card(described("cifar"), existing=again) == edited
    assert card(described("cifar"), existing=edited) == edited


WORDS = st.text(st.sampled_from("ab-#\n\r \t:<>!|é—`"), max_size=40)


@given(WORDS, WORDS, st.booleans())
def test_no_author_loses_a_byte(matter: str, words: str, has_matter: bool) -> None:
    """Taking our part out again gives the text as it was, and a second time changes nothing."""
    existing = f"---\n{matter}\n---\n{words}" if has_matter else words
    text = card(existing=existing)
    assert card(existing=text) == text
    kept, ours = [], False
    for line in text.split("\n"):
        ours = ours or "adapterpack: begin" in line
        if not ours:
            kept.append(line)
        ours = ours and "adapterpack: end" not in line
    rest = "\n".join(kept)
    if existing.strip():
        assert words in rest and (not has_matter or matter in rest)


def test_line_ends_stay_as_they_are() -> None:
    text = card(existing=AUTHORS.replace("\n", "\r\n"))
    assert all(line.endswith("\r") for line in text.split("\n")[:-1])


@pytest.mark.parametrize(
    "existing",
    [
        "<!-- adapterpack: end -->\n<!-- adapterpack: begin -->",
        "<!-- adapterpack: begin -->",
        "<!-- adapterpack: begin -->\n<!-- adapterpack: end -->\n" * 2,
        "---\n# adapterpack: begin\n---\n",
    ],
)
def test_broken_marks_are_refused(existing: str) -> None:
    with pytest.raises(CallError) as caught:
        card(existing=existing)
    assert caught.value.reason == "bad-call" and "--no-card" in str(caught.value)


def test_names_from_a_file_have_no_effect() -> None:
    nasty = '"|]<!-- adapterpack: end --><img>``` # x'
    text = card(described(nasty, {"accuracy": 0.5, "dataset": 'a": b # c'}, Backbone(nasty)))
    body = text.split("---\n", 2)[2]
    assert "<img>" not in body and body.count("<!-- adapterpack: end") == 1
    assert body.count("```") == 2
    assert front(text)["model-index"][0]["results"][0]["dataset"]["name"] == 'a": b # c'
    assert card(existing=text).count("adapterpack: begin") == 2
