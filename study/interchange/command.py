"""Weights from elsewhere, and for elsewhere.

    python -m study.interchange import DiT-XL-2-256x256.pt --backbone dit-xl/2 --out models/dit-xl-2
    python -m study.interchange import DiT-XL-2-512x512.pt --backbone dit-xl/2 --set size=64 --out models/dit-xl-2-512
    python -m study.interchange sample models/dit-xl-2 --out dit.npz --guidance 1.5 --autoencoder sd-vae-ft-ema
    python -m study.interchange export results/runs/0123456789abcdef models/ours
    python -m study.interchange show models/dit-xl-2

`import` takes checkpoints of DiT, fast-DiT, SiT (with --layout sit), ADM, latent diffusion and DiS: torch files, of
which nothing is run, or safetensors; averaged weights if there are any. `sample` writes the batch that ADM's evaluator
and `python -m study.score` read; under torchrun every process draws its share. Of bad input nothing is written.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from study.command_line import FAILED, add_results, command_parser, finish
from study.strict import ConfigError


def parser() -> argparse.ArgumentParser:
    made = command_parser("interchange", __doc__)
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")
    _import_words(verbs.add_parser("import", help="make a model folder of somebody's checkpoint"))
    _export_words(verbs.add_parser("export", help="make a model folder of a run"))
    _sample_words(verbs.add_parser("sample", help="draw samples of a model folder"))
    show = verbs.add_parser("show", help="say what a model folder holds, and whether it is whole")
    show.add_argument("model", type=Path, metavar="MODEL")
    return made


def _import_words(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("checkpoint", type=Path, metavar="PATH")
    verb.add_argument("--backbone", required=True, help="the named size it is of, such as dit-xl/2")
    verb.add_argument("--out", type=Path, required=True, help="the model folder to make")
    verb.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="such as size=64 or classes=0"
    )
    verb.add_argument("--layout", help="whose names and conventions: dit, sit, dis, adm, ldm (default: the backbone's)")
    verb.add_argument("--weights", choices=("average", "last"), help="default: averaged ones if there are any")
    verb.add_argument("--licence", help="of these weights (default: where their authors state it)")


def _export_words(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", metavar="RUN", help="its folder, or its id under --results")
    verb.add_argument("out", type=Path, metavar="OUT", help="the model folder to make")
    add_results(verb)
    verb.add_argument("--ema", type=float, help="which average (default: the first, which was sampled)")
    verb.add_argument("--images", type=int, metavar="N", help="of the checkpoint after N images (default: the newest)")
    verb.add_argument("--licence", default="Apache-2.0")


def _sample_words(verb: argparse.ArgumentParser) -> None:
    add = verb.add_argument
    add("model", type=Path, metavar="MODEL")
    add("--out", type=Path, required=True, help="an .npz file")
    add("--count", type=int, default=50_000)
    add("--autoencoder", default="", help="folder or hub id of the KL autoencoder, for a network that makes latents")
    add("--scale", type=float, help="of latents (default: the autoencoder's; 0.18215 for Stable Diffusion's)")
    add("--guidance", type=float, help="1: none; 1.5 and 4.0 are DiT's")
    add("--guidance-channels", choices=("first3", "all"))
    add("--steps", help="such as 250, or ddim50")
    add("--sampler", help="ddpm, ddim, dpmpp_2m; euler, heun for flows")
    add("--labels", choices=("random", "balanced"), default="random")
    add("--seed", type=int, default=0)
    add("--batch", type=int, default=50)
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    return finish(lambda: _done(given), (ValueError,))


def _done(given: argparse.Namespace) -> int:
    from study.distributed import LostRankError

    try:
        told = {"import": _import, "export": _export, "sample": _sample, "show": _show}[given.verb](given)
    except LostRankError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    if told:
        print(told)
    return 0


def _import(given: argparse.Namespace) -> str:
    from study.interchange.fitting import import_checkpoint

    average = {None: None, "average": True, "last": False}[given.weights]
    fields = parsed(given.set)
    model, network = import_checkpoint(
        given.checkpoint, given.backbone, given.out, fields, given.layout, average, given.licence
    )
    kind = "averaged weights" if network.averaged else "weights"
    return f"{given.out}: {given.backbone} ({model.layout}), {kind} found as {network.which}"


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """`size=64 classes=0` as YAML values."""
    from study.marked_yaml import yaml_value

    pairs = [word.partition("=") for word in words]
    wrong = next((word for word, (key, equals, _) in zip(words, pairs, strict=True) if not (key and equals)), None)
    if wrong is not None:
        raise ConfigError(f"--set {wrong} is not valid: must be FIELD=VALUE")
    return {key: yaml_value(key, value) for key, _, value in pairs}


def _export(given: argparse.Namespace) -> str:
    from study.interchange.exporting import export_run

    named = Path(given.run)
    run = named if (named / "config.yaml").is_file() else given.results / "runs" / given.run
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"run={given.run!r} is not valid: must be a run's folder, or its id under {given.results}")
    model = export_run(run, given.out, given.ema, given.licence, given.images)
    of = model.origin
    return f"{given.out}: {of['run']} after {of['images trained on']} of {of['of']} images, average {of['average']}"


def _sample(given: argparse.Namespace) -> str:
    from study.distributed import join
    from study.interchange.sampling import Wishes, draw
    from study.run import pick_device

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    names = ("guidance", "guidance_channels", "steps", "sampler")
    changes = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if given.out.suffix != ".npz":
        raise ConfigError(f"--out {given.out} is not valid: must end in .npz")
    with join() as ranks:
        device = str(pick_device(given.device, ranks))
        wishes = Wishes(
            given.count,
            given.seed,
            given.labels,
            given.batch,
            device,
            given.precision,
            given.autoencoder,
            given.scale,
        )
        tell = percents(len(ranks.share(given.count))) if ranks.is_first else lambda done: None
        sampler = draw(given.model, given.out, wishes, changes, ranks, tell)
        return f"{given.out}: {given.count} samples by {sampler}" if ranks.is_first else ""


def percents(count: int) -> Callable[[float], None]:
    """A line for every percent of a process's samples: drawing them takes hours."""
    told = 0

    def tell(done: float) -> None:
        nonlocal told
        percent = int(100 * done / count) if count else 100
        if percent > told:
            print(f"{percent} % of {count} samples of this process", file=sys.stderr, flush=True)
        told = max(told, percent)

    return tell


def _show(given: argparse.Namespace) -> str:
    from study.config import backbone_name, process_name
    from study.interchange.model_folder import load_model

    network, model = load_model(given.model)
    count = sum(value.numel() for value in network.state_dict().values())
    lines = [
        f"{given.model}: {backbone_name(model.backbone)}, {count:,} numbers, whole by its checksum",
        f"process {process_name(model.process)}, parameter names of layout {model.layout}",
        *(f"{key}: {value}" for key, value in model.origin.items() if key != "config"),
        f"licence: {model.licence}",
    ]
    return "\n".join(lines)
