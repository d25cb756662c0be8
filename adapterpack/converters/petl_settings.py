"""The seven lines of YAML beside a PETL-ViT `.bin`: from a file, from an adapter, and back to the same bytes.

Knows what the lines mean and how PyYAML spells them; the tensors are `petl_vit`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from adapterpack.adapter import Adapter, Head
from adapterpack.converters import settings as sidecar
from adapterpack.converters._backbones import former_name
from adapterpack.converters._base import read_bytes
from adapterpack.errors import AdapterPackError, CorruptFileError, MissingFileError, Reason, UnsupportedAdapterError
from adapterpack.tensors import Quantized

YAML_BYTES = 1 << 15  # with every character escaped, still a string that an index may hold
METHODS = {"adaptformer": ("blocks.{}.mlp",), "lora": ("blocks.{}.attn.qkv[q]", "blocks.{}.attn.qkv[v]")}
LEVELS = {1: "normal-l1", 2: "normal-l1", 4: "normal-l1", 8: "normal-l1-500"}  # 8 bits: what the public code stores


@dataclass(frozen=True, slots=True)
class Settings:
    """The seven lines of the YAML, in their order."""

    backbone: str
    bit: int
    dataset: str
    dim: int
    method: str
    num_class: int
    scale: float

    @property
    def plain_method(self) -> str:
        return self.method.removesuffix("-bihead")

    @property
    def bihead(self) -> bool:
        return self.method.endswith("-bihead")

    def text(self) -> str:
        """The YAML as the published files spell it."""
        return "".join(f"{name}: {_spelled(value)}\n" for name, value in asdict(self).items())


NAMES = tuple(item.name for item in fields(Settings))


def read_sidecar(source: Path) -> tuple[str | None, dict[str, Any]]:
    """The YAML's text and values; see `yaml_places`."""
    for path in yaml_places(source):
        if path.is_file():
            data = read_bytes(path, YAML_BYTES)
            return data.decode("latin-1"), sidecar.parse_yaml(data, path.name)
    return None, {}


def yaml_places(source: Path) -> tuple[Path, Path]:
    """Where the YAML of a `.bin` may be: beside it, or under `configs/` as in the public repository."""
    beside = source.with_suffix(".yaml")
    return beside, source.absolute().parent.parent.parent / "configs" / source.absolute().parent.name / beside.name


def settings_from(given: Mapping[str, Any], said: Mapping[str, Any], name: str = "the .bin") -> Settings:
    """The seven settings, typed; exactly the seven may stand in the YAML."""
    unknown = sorted(set(given) - set(NAMES))
    if unknown:
        hint = f"PETL-ViT's are {', '.join(NAMES)}"
        raise CorruptFileError(f"the YAML has the unknown key {unknown[0]}", Reason.BAD_SOURCE, hint=hint)
    values = sidecar.combine([("the YAML", sidecar.select(given, "the YAML"))], said)
    missing = [name for name in NAMES if name not in values]
    if missing and not given:
        raise MissingFileError(
            f"no .yaml beside {name}", Reason.MISSING_FILE, hint="put it there: a .bin says nothing of itself"
        )
    if missing:
        raise CorruptFileError(
            f"the YAML does not give {', '.join(missing)}", Reason.MISSING_FIELD, hint="all seven are needed"
        )
    settings = Settings(**{name: values[name] for name in NAMES})
    if settings.plain_method not in METHODS or settings.bit not in LEVELS:
        message = f"method {settings.method!r} with {settings.bit} bit"
        hint = (
            "known: adaptformer, lora, each with or without -bihead, of 1, 2, 4 or 8 bit (32-bit files hold no adapter)"
        )
        raise UnsupportedAdapterError(message, Reason.BAD_SOURCE, hint=hint)
    return settings


def with_source(adapter: Adapter, settings: Settings, text: str | None) -> Adapter:
    """Keep what `settings_of` cannot derive from the adapter, and the YAML where it is spelled in its own way.

    The spelling is kept as JSON spells a string, because an index holds no line break; it is not kept where the caller
    changed what the YAML says.
    """
    derived = asdict(settings_of(adapter))
    source = {"format": "petl-vit"} | {
        name: value for name, value in asdict(settings).items() if value != derived[name]
    }
    if text is not None and text != settings.text() and _says(text, settings):
        source["yaml"] = json.dumps(text)[1:-1]
    return replace(adapter, metadata={**adapter.metadata, "source": source})


def settings_of(adapter: Adapter) -> Settings:
    """The YAML that describes an adapter.

    Raises:
        UnsupportedAdapterError: `not-expressible`.
    """
    head = need_head(adapter)
    branches = adapter.branches
    methods = {branch.method for branch in branches}
    scales = {branch.params["scale"] for branch in branches if "scale" in branch.params}
    if len(methods) != 1 or not methods <= METHODS.keys() or len(scales) != 1:
        found = f"branches of {', '.join(sorted(methods)) or 'no method'} with {len(scales)} scales"
        raise impossible(f"{found}: it holds branches of one of {' and '.join(METHODS)}, all with one scale")
    first = branches[0].tensors["down"]
    source = adapter.metadata.get("source")
    kept = source if isinstance(source, dict) and source.get("format") == "petl-vit" else {}
    settings = Settings(
        backbone=kept.get("backbone", former_name(adapter.backbone.name)),
        bit=first.bits if isinstance(first, Quantized) else 32,
        dataset=kept.get("dataset", adapter.name),
        dim=first.shape[0],
        method=methods.pop() + ("-bihead" if head.bias is None else ""),
        num_class=head.classes,
        scale=scales.pop(),
    )
    if settings.bit not in LEVELS:
        raise impossible(
            f"branches of {settings.bit} bits: it holds 1, 2, 4 or 8", "pack with --bits 1, 2, 4 or 8 first"
        )
    return settings


def yaml_of(adapter: Adapter, settings: Settings) -> str:
    """The kept spelling if it still says what the adapter is, else the usual one."""
    for name in ("backbone", "dataset"):
        word = getattr(settings, name)
        if not sidecar.is_plain_word(word):
            raise impossible(
                f"the {name} name {word[:80]!r}",
                "its YAML takes letters, digits, _ . / -; rename it with --task or --backbone",
            )
    source = adapter.metadata.get("source")
    kept = _unescaped(source.get("yaml")) if isinstance(source, dict) else None
    return kept if kept is not None and _says(kept, settings) else settings.text()


def _unescaped(kept: Any) -> str | None:
    try:
        text = json.loads(f'"{kept}"') if isinstance(kept, str) else None
    except ValueError:  # metadata can be edited
        return None
    return text if isinstance(text, str) and text.isascii() else None


def _says(text: str, settings: Settings) -> bool:
    try:
        return settings_from(sidecar.parse_yaml(text.encode(), "source"), {}) == settings
    except AdapterPackError:  # metadata can be edited; the usual spelling is always right
        return False


def _spelled(value: Any) -> str:
    """A value as PyYAML writes it."""
    text = str(value)
    return text.replace("e", ".0e", 1) if isinstance(value, float) and "." not in text else text


def need_head(adapter: Adapter) -> Head:
    if adapter.head is None:
        raise impossible("an adapter without a head: it holds one of 1 bit or float")
    return adapter.head


def impossible(what: str, hint: str = "unpack to checkpoint or safetensors instead") -> UnsupportedAdapterError:
    return UnsupportedAdapterError(f"PETL-ViT's .bin cannot hold {what}", Reason.NOT_EXPRESSIBLE, hint=hint)
