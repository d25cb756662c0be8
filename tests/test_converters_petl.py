"""FacT, Convpass, SSF and BitFit: their published forward passes, written out here, against what their state dicts load to."""

# ruff: noqa: E501 (a bad case a line)

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import adapterpack
from adapterpack.converters import recognise
from adapterpack.converters._base import Hints, Imported
from adapterpack.converters.state_dict import adapter_from
from adapterpack.errors import AdapterPackError
from adapterpack.runtime.load import load_adapter
from tests._converter_samples import silent
from tests._vit import DEPTH, WIDTH, array, close, images, same, snapshot, vit

State = dict[str, NDArray[np.float32]]
RANK = 4
FACT = {"scale": 0.5, "num_class": 7}


def head() -> State:
    return {"head.weight": array(7, WIDTH, seed=3), "head.bias": array(7, seed=4)}


def fact_tt() -> State:
    state = {"FacTu.weight": array(RANK, WIDTH), "FacTv.weight": array(WIDTH, RANK)}
    for i in range(DEPTH):
        for n, name in enumerate("qkv"):
            state[f"blocks.{i}.attn.{name}_FacTs.weight"] = array(RANK, RANK, seed=10 * i + n)
        state[f"blocks.{i}.attn.proj_FacTs.weight"] = array(RANK, RANK, seed=10 * i + 3)
        state[f"blocks.{i}.mlp.fc1_FacTs.weight"] = array(4 * RANK, RANK, seed=i)
        state[f"blocks.{i}.mlp.fc2_FacTs.weight"] = array(RANK, 4 * RANK, seed=i)
    return state | head()


def fact_tk() -> State:
    names = {
        "FacTu.weight": (RANK, WIDTH),
        "FacTv.weight": (WIDTH, RANK),
        "FacTc": (RANK,) * 3,
        "FacTp": (RANK, 12 * DEPTH),
    }
    return {name: array(*shape, spread=0.6) for name, shape in names.items()} | head()


def convpass(beside: tuple[str, ...] = ("attn", "mlp"), dim: int = 3) -> State:
    shapes = {"down": (dim, WIDTH), "conv": (dim, dim, 3, 3), "up": (WIDTH, dim)}
    state = {}
    for i in range(DEPTH):
        for n, part in enumerate(beside):
            for name, shape in shapes.items():
                state[f"blocks.{i}.adapter_{part}.adapter_{name}.weight"] = array(*shape, seed=10 * i + n)
                state[f"blocks.{i}.adapter_{part}.adapter_{name}.bias"] = array(shape[0], seed=10 * i + n)
    return state | head()


def ssf() -> State:
    sizes = {"patch_embed.{}_1": WIDTH, "{}_1": WIDTH}
    for i in range(DEPTH):
        sizes |= {f"blocks.{i}.{{}}_1": WIDTH, f"blocks.{i}.{{}}_2": WIDTH}
        sizes |= {f"blocks.{i}.attn.{{}}_1": 3 * WIDTH, f"blocks.{i}.attn.{{}}_2": WIDTH}
        sizes |= {f"blocks.{i}.mlp.{{}}_1": 4 * WIDTH, f"blocks.{i}.mlp.{{}}_2": WIDTH}
    state = {name.format("ssf_scale"): 1 + array(size, seed=n) for n, (name, size) in enumerate(sizes.items())}
    state |= {name.format("ssf_shift"): array(size, seed=50 + n) for n, (name, size) in enumerate(sizes.items())}
    return state | head()


def bitfit() -> State:
    names = [name for name, _ in vit().named_parameters() if name.endswith(".bias") and not name.startswith("head")]
    return {name: array(*vit().get_parameter(name).shape, seed=n) for n, name in enumerate(names)} | head()


def tensors(state: State) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in state.items()}


def run(state: State, change: Callable[[nn.Module, dict[str, torch.Tensor]], None]) -> torch.Tensor:
    """The logits of a model whose forwards were changed as the trainer changes them."""
    model = vit()
    values = tensors(state)
    with torch.no_grad():
        model.head.weight.copy_(values["head.weight"])
        model.head.bias.copy_(values["head.bias"])
        change(model, values)
        found: torch.Tensor = model(images())
    return found


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.einsum("...i,oi->...o", x, weight)


def hook(module: Any, gain: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    module.register_forward_hook(lambda _, args, out: gain(args[0], out))


def gain_of(mixed: Callable[[torch.Tensor], torch.Tensor], up: torch.Tensor, s: float) -> Any:
    """One FacT gain: U, what is between, V a piece at a time, s."""

    def gain(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        pieces = mixed(x).unflatten(-1, (-1, RANK))
        return out + s * linear(pieces, up).flatten(-2)

    return gain


def put_fact_tt(model: nn.Module, w: dict[str, torch.Tensor]) -> None:
    """Jie & Deng 2023: v(Σ(u(x))), for fc1 into four pieces, for fc2 out of four."""
    u, v = w["FacTu.weight"], w["FacTv.weight"]
    for i, block in enumerate(model.blocks):  # type: ignore[arg-type]
        core = {name.split(".")[-2]: value for name, value in w.items() if name.startswith(f"blocks.{i}.")}
        qkv = torch.cat([core[f"{part}_FacTs"] for part in "qkv"])
        hook(block.attn.qkv, gain_of(lambda x, m=qkv: linear(linear(x, u), m), v, 0.5))  # type: ignore[misc]
        hook(block.attn.proj, gain_of(lambda x, m=core["proj_FacTs"]: linear(linear(x, u), m), v, 0.5))  # type: ignore[misc]
        hook(block.mlp.fc1, gain_of(lambda x, m=core["fc1_FacTs"]: linear(linear(x, u), m), v, 0.5))  # type: ignore[misc]
        hook(
            block.mlp.fc2,
            gain_of(
                lambda x, m=core["fc2_FacTs"]: linear(linear(x.unflatten(-1, (4, WIDTH)), u).flatten(-2), m), v, 0.5
            ),
        )  # type: ignore[misc]


def put_fact_tk(model: nn.Module, w: dict[str, torch.Tensor]) -> None:
    """Jie & Deng 2023: u(x) times slices of C ×₃ P, as row vectors; the MLP's four slices side by side, last index fastest."""
    u, v = w["FacTu.weight"], w["FacTv.weight"]
    t = torch.einsum("abc,cn->abn", w["FacTc"], w["FacTp"])
    for i, block in enumerate(model.blocks):  # type: ignore[arg-type]
        q, k, value, proj = (t[:, :, 12 * i + n] for n in range(4))
        fc1 = t[:, :, 12 * i + 4 : 12 * i + 8].reshape(RANK, 4 * RANK)
        fc2 = t[:, :, 12 * i + 8 : 12 * i + 12].reshape(RANK, 4 * RANK)
        qkv = torch.cat([q, k, value], dim=1)
        hook(block.attn.qkv, gain_of(lambda x, m=qkv: linear(x, u) @ m, v, 0.5))  # type: ignore[misc]
        hook(block.attn.proj, gain_of(lambda x, m=proj: linear(x, u) @ m, v, 0.5))  # type: ignore[misc]
        hook(block.mlp.fc1, gain_of(lambda x, m=fc1: linear(x, u) @ m, v, 0.5))  # type: ignore[misc]
        hook(
            block.mlp.fc2, gain_of(lambda x, m=fc2: linear(x.unflatten(-1, (4, WIDTH)), u).flatten(-2) @ m.t(), v, 0.5)
        )  # type: ignore[misc]


def put_convpass(model: nn.Module, w: dict[str, torch.Tensor]) -> None:
    """Jie & Deng 2022: x + attn(norm1 x) + s·convpass(norm1 x), the same beside the MLP."""
    for i, block in enumerate(model.blocks):  # type: ignore[arg-type]
        for part in ("attn", "mlp"):
            own = {name.removeprefix(f"blocks.{i}.adapter_{part}.adapter_"): value for name, value in w.items()}
            if "down.weight" not in own:
                continue
            modules = {"down": nn.Linear(WIDTH, 3), "conv": nn.Conv2d(3, 3, 3, 1, 1), "up": nn.Linear(3, WIDTH)}
            for name, module in modules.items():
                module.load_state_dict({"weight": own[f"{name}.weight"], "bias": own[f"{name}.bias"]})

            def gain(x: torch.Tensor, out: torch.Tensor, m: dict[str, nn.Module] = modules) -> torch.Tensor:
                batch, count, _ = x.shape
                y = m["down"](x)
                y = y * torch.sigmoid(1.702 * y)
                side = int((count - 1) ** 0.5)
                grid = m["conv"](y[:, 1:].reshape(batch, side, side, 3).permute(0, 3, 1, 2))
                first = m["conv"](y[:, :1].reshape(batch, 1, 1, 3).permute(0, 3, 1, 2))
                y = torch.cat([part.permute(0, 2, 3, 1).reshape(batch, -1, 3) for part in (first, grid)], dim=1)
                result: torch.Tensor = out + 0.5 * m["up"](y * torch.sigmoid(1.702 * y))
                return result

            hook(getattr(block, part), gain)


def put_ssf(model: nn.Module, w: dict[str, torch.Tensor]) -> None:
    """Lian et al. 2022: after each layer x·scale + shift, channels last or second."""
    places = {"patch_embed.{}_1": "patch_embed.proj", "{}_1": "norm"}
    for i in range(DEPTH):
        places |= {f"blocks.{i}.{{}}_{n}": f"blocks.{i}.norm{n}" for n in (1, 2)}
        places |= {
            f"blocks.{i}.attn.{{}}_1": f"blocks.{i}.attn.qkv",
            f"blocks.{i}.attn.{{}}_2": f"blocks.{i}.attn.proj",
        }
        places |= {f"blocks.{i}.mlp.{{}}_{n}": f"blocks.{i}.mlp.fc{n}" for n in (1, 2)}
    for name, place in places.items():
        scale, shift = w[name.format("ssf_scale")], w[name.format("ssf_shift")]
        if place == "patch_embed.proj":
            scale, shift = scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
        hook(model.get_submodule(place), lambda _, out, a=scale, b=shift: out * a + b)  # type: ignore[misc]


def put_biases(model: nn.Module, w: dict[str, torch.Tensor]) -> None:
    for name, value in w.items():
        model.get_parameter(name).copy_(value)


KINDS: dict[str, tuple[Callable[[], State], Callable[..., None], dict[str, Any], str]] = {
    "fact-tt": (fact_tt, put_fact_tt, FACT, "fact"),
    "fact-tk": (fact_tk, put_fact_tk, FACT, "fact"),
    "convpass": (convpass, put_convpass, FACT, "convpass"),
    "convpass-attn": (lambda: convpass(("attn",)), put_convpass, FACT, "convpass"),
    "ssf": (ssf, put_ssf, {}, "affine"),
    "bitfit": (bitfit, put_biases, {}, "replace"),
}


def base() -> dict[str, NDArray[np.float32]]:
    return {name: value.detach().numpy() for name, value in vit().named_parameters()}


def read(kind: str, state: State | None = None, settings: dict[str, Any] | None = None) -> Imported:
    make, _, known, _ = KINDS[kind]
    given = known if settings is None else settings
    return adapter_from(make() if state is None else state, given, Hints(backbone=base()), "run")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fold", ["auto", "never"])
def test_the_published_forward_gives_the_same_logits(kind: str, fold: Any) -> None:
    make, change, _, method = KINDS[kind]
    expected = run(make(), change)
    adapter = read(kind).adapter
    assert adapter.method == kind.removesuffix("-attn") and {branch.method for branch in adapter.branches} == {method}
    model = vit()
    before = snapshot(model)
    with load_adapter(adapter, model, fold=fold, check_fingerprint=False), torch.no_grad():
        assert close(model(images()), expected)
    assert same(snapshot(model), before)
    with torch.no_grad():
        assert not close(run(make(), lambda *_: None), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model_drops_what_is_frozen(kind: str) -> None:
    whole = {**base(), **KINDS[kind][0]()}
    found = read(kind, whole)
    assert found.adapter.same_as(read(kind).adapter)
    assert any("dropped" in note for note in found.notes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_from_file_to_logits(kind: str, suffix: str, tmp_path: Path) -> None:
    """As a trainer saves it, through the package's own verbs."""
    from safetensors.torch import save_file

    make, change, settings, _ = KINDS[kind]
    path, model = tmp_path / f"run{suffix}", vit()
    if suffix == ".pt":
        torch.save(tensors(make()), path)
    else:
        save_file(tensors(make()), path)
    path.with_suffix(".yaml").write_text(
        "".join(f"{name}: {value}\n" for name, value in settings.items()) or "seed: 1\n"
    )
    assert recognise(path).name == ("checkpoint" if suffix == ".pt" else "safetensors")
    adapterpack.pack(path, tmp_path / "run.apk", settings={"depth": DEPTH, "width": WIDTH})
    with pytest.warns(UserWarning, match="which backbone"):
        loaded = adapterpack.load(tmp_path / "run.apk", model)
    with torch.no_grad():
        assert close(model(images()), run(make(), change))
    loaded.unload()


def test_shared_factors_cost_their_bytes_once(tmp_path: Path) -> None:
    """Six copies a block of U and V in the tensors; in the file, about what the state dict holds."""
    state = fact_tt()
    whole = sum(value.nbytes for value in state.values())
    sizes = adapterpack.pack(read("fact-tt").adapter, tmp_path / "x.apk").sizes
    assert sizes["file_bytes"] < 1.1 * whole
    assert sizes["tasks"][0]["dense_bytes"] > 3 * whole


def drop(name: str) -> Callable[[State], Any]:
    return lambda state: state.pop(name)


def put(name: str, *shape: int) -> Callable[[State], Any]:
    return lambda state: state.update({name: array(*shape)})


BAD: dict[str, tuple[str, Callable[[State], Any], str, str]] = {
    "no U": ("fact-tt", drop("FacTu.weight"), "missing-tensor", "FacTu.weight"),
    "no V in TK": ("fact-tk", drop("FacTv.weight"), "missing-tensor", "FacTv.weight"),
    "no core": ("fact-tk", drop("FacTc"), "missing-tensor", "FacTc"),
    "no slices": ("fact-tk", drop("FacTp"), "missing-tensor", "FacTp"),
    "one core less": ("fact-tt", drop("blocks.1.mlp.fc1_FacTs.weight"), "missing-tensor", "blocks.1.mlp.fc1_FacTs.weight"),
    "proj nowhere": ("fact-tt", lambda s: [s.pop(f"blocks.{i}.attn.proj_FacTs.weight") for i in range(DEPTH)], "missing-tensor", "blocks.0.attn.proj_FacTs.weight"),
    "a block too many": ("fact-tt", put("blocks.3.attn.q_FacTs.weight", RANK, RANK), "unmapped-tensor", "blocks.3.attn.q_FacTs.weight"),
    "an unknown layer": ("fact-tt", put("blocks.0.attn.qkv_FacTs.weight", RANK, RANK), "unmapped-tensor", "blocks.0.attn.qkv_FacTs.weight"),
    "TT and TK": ("fact-tt", put("FacTc", RANK, RANK, RANK), "unmapped-tensor", "FacTs"),
    "another rank": ("fact-tt", put("blocks.1.attn.k_FacTs.weight", RANK, RANK + 1), "bad-shape", "blocks.1.attn.k_FacTs.weight"),
    "ranks of U and V": ("fact-tt", put("FacTv.weight", WIDTH, RANK + 1), "bad-shape", "FacTv.weight"),
    "slices of another depth": ("fact-tk", put("FacTp", RANK, 144), "bad-shape", "FacTp"),
    "another core": ("fact-tk", put("FacTc", RANK, RANK, 2), "bad-shape", "FacTc"),
    "no conv": ("convpass", drop("blocks.2.adapter_mlp.adapter_conv.weight"), "missing-tensor", "blocks.2.adapter_mlp.adapter_conv.weight"),
    "no bias anywhere": ("convpass", lambda s: [s.pop(f"blocks.{i}.adapter_attn.adapter_up.bias") for i in range(DEPTH)], "missing-tensor", "adapter_attn.adapter_up.bias"),
    "beside the MLP alone": ("convpass", lambda s: [s.pop(k) for k in list(s) if "adapter_attn" in k], "missing-tensor", "blocks.0.adapter_attn.adapter_down.weight"),
    "conv of 5": ("convpass", put("blocks.0.adapter_attn.adapter_conv.weight", 3, 3, 5, 5), "bad-shape", "5, 5"),
    "rank of up": ("convpass", put("blocks.0.adapter_attn.adapter_up.weight", WIDTH, 4), "bad-shape", "blocks.0.attn"),
    "an extra layer": ("convpass", put("blocks.0.adapter_attn.adapter_norm.weight", 3), "unmapped-tensor", "adapter_norm"),
    "convpass and lora": ("convpass", put("blocks.0.attn.lora_q.adapter_up.weight", WIDTH, 3), "ambiguous-source", "convpass"),
    "no shift": ("ssf", drop("blocks.1.ssf_shift_2"), "missing-tensor", "blocks.1.ssf_shift_2"),
    "no final scale": ("ssf", lambda s: (s.pop("ssf_scale_1"), s.pop("ssf_shift_1")), "missing-tensor", "ssf_scale_1"),
    "no fc1 anywhere": ("ssf", lambda s: [s.pop(f"blocks.{i}.mlp.ssf_{k}_1") for i in range(DEPTH) for k in ("scale", "shift")], "missing-tensor", "blocks.0.mlp.ssf_scale_1"),
    "a third scale": ("ssf", put("blocks.0.attn.ssf_scale_3", WIDTH), "unmapped-tensor", "ssf_scale_3"),
    "lengths": ("ssf", put("ssf_shift_1", WIDTH + 1), "bad-shape", "norm"),
    "ssf and fact": ("ssf", put("FacTu.weight", RANK, WIDTH), "ambiguous-source", "ssf"),
    "a matrix beside biases": ("bitfit", put("blocks.0.attn.qkv.weight", 3 * WIDTH, WIDTH), "backbones-differ", "blocks.0.attn.qkv.weight"),
    "an unknown bias": ("bitfit", put("blocks.0.attn.q_norm.bias", WIDTH), "unmapped-tensor", "q_norm"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_explained_is_named(what: str) -> None:
    kind, change, reason, name = BAD[what]
    state = KINDS[kind][0]()
    change(state)
    with pytest.raises(AdapterPackError) as caught:
        read(kind, state)
    assert (caught.value.reason, name in str(caught.value)) == (reason, True), caught.value


@pytest.mark.parametrize("hints", [Hints(), Hints(backbone=base())])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_goes_missing_in_silence(kind: str, hints: Hints) -> None:
    make, _, known, _ = KINDS[kind]
    assert silent(make(), lambda state: adapter_from(state, known, hints, "run")) == []


def test_fact_tk_tells_its_blocks_itself() -> None:
    """Its slices are 12 a block, so that nobody has to say how many there are."""
    assert adapter_from(fact_tk(), FACT, Hints(), "run").adapter.same_as(read("fact-tk").adapter)
    with pytest.raises(AdapterPackError, match=r"FacTp has shape \[4, 37\], expected \[4, 36\]"):
        adapter_from({**fact_tk(), "FacTp": array(RANK, 12 * DEPTH + 1)}, FACT, Hints(), "run")


def without(*patterns: str) -> State:
    """BitFit without the tensors that match."""
    return {name: value for name, value in bitfit().items() if not any(fnmatch(name, each) for each in patterns)}


@pytest.mark.parametrize("hints", [Hints(), Hints(backbone=base())])
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_without_its_bias_is_refused_unless_it_has_none(kind: str, hints: Hints) -> None:
    make, _, known, _ = KINDS[kind]
    state, settings = make(), {**known, "depth": DEPTH, "width": WIDTH}
    with pytest.raises(AdapterPackError, match=r"head\.bias is in the file") as caught:
        adapter_from(state, {**settings, "head_bias": "none"}, hints, "run")
    assert caught.value.reason == "conflicting-settings"
    del state["head.bias"]
    with pytest.raises(AdapterPackError, match=r"head\.bias is missing .*--set head_bias=none") as caught:
        adapter_from(state, settings, hints, "run")
    assert caught.value.reason == "missing-tensor"
    found = adapter_from(state, {**settings, "head_bias": "none"}, hints, "run").adapter.head
    assert found is not None and found.bias is None and np.array_equal(found.weight.dense(), state["head.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_head_that_is_missing_is_told(kind: str) -> None:
    state = {name: value for name, value in KINDS[kind][0]().items() if not name.startswith("head")}
    found = read(kind, state)
    assert found.adapter.head is None and any("no head: the backbone's own stays" in note for note in found.notes)
    assert not any("no head" in note for note in read(kind).notes)


def test_two_heads_are_one_too_many() -> None:
    with pytest.raises(AdapterPackError, match=r"head\.weight and fc\.weight") as caught:
        read("ssf", ssf() | {"fc.weight": array(7, WIDTH)})
    assert caught.value.reason == "ambiguous-source"


KNOWN_DEPTH, UNKNOWN = {"depth": DEPTH, "width": WIDTH}, dict[str, Any]()
LESS: dict[str, tuple[str, dict[str, Any], str]] = {
    "one bias": ("blocks.1.norm1.bias", UNKNOWN, "blocks.1.norm1.bias"),
    "a kind": ("blocks.*.mlp.fc1.bias", UNKNOWN, "blocks.0.mlp.fc1.bias"),
    "a whole block": ("blocks.1.*", UNKNOWN, "blocks.1."),
    "the last block": (f"blocks.{DEPTH - 1}.*", KNOWN_DEPTH, f"blocks.{DEPTH - 1}."),
    "the last norm": ("norm.bias", UNKNOWN, "norm.bias or fc_norm.bias"),
    "the patches": ("patch_embed.*", UNKNOWN, "patch_embed.proj.bias or norm_pre.bias"),
}


@pytest.mark.parametrize("what", LESS)
@pytest.mark.parametrize("hints", [Hints(), Hints(backbone=base())])
def test_biases_are_all_there_or_one_is_named(what: str, hints: Hints) -> None:
    pattern, settings, named = LESS[what]
    wanted = named if hints.backbone is None else named.split(" or ")[0]
    with pytest.raises(AdapterPackError, match=re.escape(wanted)) as caught:
        adapter_from(without(pattern), settings, hints, "run")
    assert caught.value.reason == "missing-tensor" and "trained" in str(caught.value)


def test_a_last_block_that_nobody_can_miss_is_counted() -> None:
    """From the biases alone it cannot be seen how many blocks there are to be."""
    found = adapter_from(without(f"blocks.{DEPTH - 1}.*"), {}, Hints(), "run")
    assert any(note.startswith(f"{DEPTH - 1} blocks") and "--backbone" in note for note in found.notes)
    assert not any("blocks" in note for note in adapter_from(bitfit(), KNOWN_DEPTH, Hints(), "run").notes)
    assert not any("blocks" in note for note in read("bitfit").notes)


def test_fewer_biases_where_the_caller_lists_them() -> None:
    state = without("blocks.*.mlp.fc1.bias", "blocks.0.norm1.bias")
    for hints in (Hints(), Hints(backbone=base())):
        found = adapter_from(state, {"trained": ["*.bias"]}, hints, "run").adapter
        assert len(found.branches) == len(bitfit()) - len(head()) - DEPTH - 1


def test_a_whole_model_lacks_no_vector() -> None:
    whole = {**base(), **bitfit()}
    del whole["blocks.2.norm2.weight"]
    with pytest.raises(AdapterPackError, match=r"blocks\.2\.norm2\.weight") as caught:
        read("bitfit", whole)
    assert caught.value.reason == "missing-tensor"


def test_norms_alone_need_no_biases_elsewhere() -> None:
    """Another selection than BitFit's: in every block what is in one, and no more."""
    norms = {name: value for name, value in base().items() if ".norm" in name}
    tuned = {name: value + np.float32(1) for name, value in norms.items()}
    for hints in (Hints(), Hints(backbone=base())):
        assert len(adapter_from(tuned | head(), {}, hints, "run").adapter.branches) == 2 * DEPTH
        with pytest.raises(AdapterPackError, match=r"blocks\.1\.norm2\.weight"):
            adapter_from({**{n: v for n, v in tuned.items() if n != "blocks.1.norm2.weight"}}, {}, hints, "run")


@pytest.mark.parametrize("kind", ["fact-tt", "fact-tk", "convpass"])
def test_no_scale_is_assumed(kind: str) -> None:
    with pytest.raises(AdapterPackError, match="scale") as caught:
        read(kind, settings={})
    assert caught.value.reason == "missing-field"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_nan_and_code_are_refused(suffix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = tensors(ssf())
    state["blocks.1.ssf_scale_2"][3] = float("nan")
    path = tmp_path / f"run{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    with pytest.raises(AdapterPackError, match=r"blocks\.1\.ssf_scale_2") as caught:
        adapterpack.pack(path, tmp_path / "x.apk")
    assert caught.value.reason == "not-finite" and not (tmp_path / "x.apk").exists()
    torch.save({**tensors(ssf()), "run": Path}, tmp_path / "bad.pt")
    with pytest.raises(AdapterPackError) as caught:
        adapterpack.pack(tmp_path / "bad.pt", tmp_path / "x.apk")
    assert caught.value.reason == "unsafe-source"
