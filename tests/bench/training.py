"""Steps per second and peak memory of training, beside PEFT's LoRA: same ViT, same batch, same process."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from adapterpack.runtime.backbone import create_backbone
from adapterpack.train.recipe import recipe_for
from adapterpack.train.trainee import Trainee
from tests.bench.timing import Case, interleave, table

BACKBONE = "vit_small_patch16_224"
BATCH, CLASSES, RANK = 8, 10, 8
CASES: dict[str, dict[str, object]] = {
    "lora 32 bits": {"method": "lora", "bits": 32},
    "lora 1 bit": {"method": "lora", "bits": 1},
    "adaptformer 1 bit": {"method": "adaptformer", "bits": 1},
    "consolidator 1 bit": {"method": "consolidator", "bits": 1},
}


def report(rounds: int) -> str:
    """The training table: milliseconds a step, speed against PEFT's LoRA, peak memory of a process of its own."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cases = {name: _case(name) for name in ("peft lora", *CASES)}
    timed = interleave(cases, rounds)
    rows = []
    for name, found in timed.items():
        quick, slow = 1 / found.low, 1 / found.high
        speed = f"{1 / found.ratio:.2f} [{slow:.2f}, {quick:.2f}]"
        rows.append([name, f"{found.ms:.0f}", speed, f"{_peak(name):.0f}"])
    title = (
        f"Training {BACKBONE}, batch {BATCH}, rank {RANK}, float32: CPU time a step, steps a second as a multiple of "
        "PEFT's LoRA (median [quartiles]), peak memory of a process that does nothing else\n\n"
    )
    return title + table(["case", "ms a step", "speed", "peak, MB"], rows)


def _case(name: str) -> Case:
    module, parameters = _peft() if name == "peft lora" else _ours(name)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 3, 224, 224, generator=generator)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    module.train()

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(module(images), labels).backward()
        optimizer.step()

    return Case(step)


def _ours(name: str) -> tuple[nn.Module, list[nn.Parameter]]:
    settings = dict(CASES[name])
    method = str(settings.pop("method"))
    dim = {"dim": RANK} if method != "consolidator" else {"branch_drop": 0.0}
    recipe = recipe_for(method, {**settings, **dim, "dropout": 0.0, "drop_path": 0.0})
    found = Trainee(create_backbone(BACKBONE, pretrained=False).model, recipe, CLASSES)
    return found, list(found.trained().values())


def _peft() -> tuple[nn.Module, list[nn.Parameter]]:
    """LoRA on the fused projection, which is what PEFT can do with timm's q and v; the head is trained as a whole."""
    from peft import LoraConfig, get_peft_model

    model = create_backbone(BACKBONE, pretrained=False).model
    model.reset_classifier(CLASSES)  # type: ignore[operator]
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["qkv"], modules_to_save=["head"])
    found: nn.Module = get_peft_model(model, config)  # type: ignore[arg-type]
    return found, [parameter for parameter in found.parameters() if parameter.requires_grad]


def _peak(name: str) -> float:
    """Megabytes, of a new process that takes three steps."""
    code = f"from tests.bench import training; training.steps({name!r})"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=root, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else float("nan")


def steps(name: str) -> None:
    """Three steps, then the largest size that this process had; Linux alone tells it without the parent's."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    case = _case(name)
    for _ in range(3):
        case.run()
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
