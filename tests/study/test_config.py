"""Composition, strictness, and run ids: equal meaning, equal id; any other meaning, another id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from models import backbones, named_config
from study import config as config_module
from study.compose import DEFAULTS, options, resolve
from study.config import WITHOUT_MEANING, from_dict, meaning, run_id, to_dict
from study.run_directory import load_config
from study.strict import ConfigError

PLAIN = resolve([])


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def with_leaf(tree: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    first, _, rest = name.partition(".")
    return {**tree, first: with_leaf(tree[first], rest, value) if rest else value}


def respelled(value: Any, shuffle: Any) -> Any:
    """The same meaning in other words: keys in another order, 1 for 1.0 and back, tuples for lists."""
    if isinstance(value, Mapping):
        return {key: respelled(value[key], shuffle) for key in shuffle(list(value))}
    if isinstance(value, list):
        return tuple(respelled(item, shuffle) for item in value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return float(value) if type(value) is int else value


@given(st.randoms(use_true_random=False))
def test_spelling_does_not_change_the_id(chance: Any) -> None:
    other = from_dict(respelled(to_dict(PLAIN), lambda keys: chance.sample(keys, len(keys))))
    assert run_id(other) == run_id(PLAIN)


OTHER_VALUES = {
    "backbone.P": 1,
    "backbone.heads": 2,
    "data.name": "digits8",
    "data.seed": 5,
    "process.schedule": "linear",
    "process.predict": "v",
    "process.loss": "kl",
    "sample.labels": "random",
    "train.schedule": "cosine",
    "train.precision": "bf16",
    "train.betas": [0.9, 0.99],
    "train.ema": [0.99],
    "train.flip": True,
    "sample.sampler.sampler": "ddpm",
    "sample.sampler.clip": False,
    "sample.sampler.guidance_channels": "all",
    "sample.sampler.guidance_from": 100,
    "sample.sampler.guidance_to": 900,
    "sample.sampler.steps": "50",
}
DICTATED = (
    "name",
    "size",
    "channels",
    "classes",
    "latent_factor",
    "learn_sigma",
    "variance",
    "texture",
    "stripe_period",
    "path",
    "digest",
)
MEANINGFUL = [
    name
    for name in leaves({key: value for key, value in to_dict(PLAIN).items() if key not in WITHOUT_MEANING})
    if name.rsplit(".", 1)[-1] not in DICTATED
]


def another(name: str, value: Any) -> Any:
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    if name in ("data.count", "data.heldout", "data.reference"):
        return value - 1
    if name in ("train.images", "process.steps", "backbone.width"):
        return value * 2
    return value + 1 if isinstance(value, int) else value / 2 + 0.01


@pytest.mark.parametrize("name", MEANINGFUL)
def test_every_meaningful_field_changes_the_id(name: str) -> None:
    tree = to_dict(PLAIN)
    changed = with_leaf(tree, name, another(name, leaves(tree)[name]))
    if name == "sample.sampler.eta":
        changed = with_leaf(changed, "sample.sampler.sampler", "ddim")
    assert run_id(from_dict(changed)) != run_id(PLAIN)


def test_no_two_of_many_configs_share_an_id() -> None:
    trees = [with_leaf(to_dict(PLAIN), name, another(name, leaves(to_dict(PLAIN))[name])) for name in MEANINGFUL]
    ids = [run_id(from_dict(tree)) for tree in trees]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    "words",
    [
        ["machine.threads=2"],
        ["machine.micro_batch=8"],
        ["log.every=64"],
        ["log.tensorboard=true"],
        ["results=elsewhere"],
        ["train.images=19_200"],
        ["train.images=1.92e4"],
        ["seeds.data=0", "seeds.noise=0", "seeds.init=0"],
        ["backbone=dit-tiny", "data=digits8"],
        ["sample.sampler.steps='20'"],
    ],
    ids=" ".join,
)
def test_what_means_the_same_shares_an_id(words: list[str]) -> None:
    assert run_id(resolve(words)) == run_id(PLAIN)


@pytest.mark.parametrize("word", ["backbone.resample=linear", "backbone.heads=2"])
def test_a_backbone_field_enters_the_id_only_where_it_acts(word: str) -> None:
    plain = ["backbone=diffussm-tiny"]
    assert run_id(resolve([*plain, word])) == run_id(resolve(plain))
    acts = ["backbone=diffussm-tiny", "backbone.stream=full", "backbone.mixer=attention"]
    assert run_id(resolve([*acts, word])) != run_id(resolve(acts))


def test_a_boolean_is_not_its_name() -> None:
    """A peer's log path wrote the same for True and False, and handed out the other run's results."""
    assert run_id(resolve(["train.flip=true"])) != run_id(resolve(["train.flip=false"]))
    with pytest.raises(ConfigError, match=r"train\.flip='False' is not valid: must be true or false"):
        resolve(["train.flip='False'"])


def test_versions_enter_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = run_id(PLAIN)
    monkeypatch.setattr(backbones()["dit"].denoiser, "version", 99)
    raised = run_id(PLAIN)
    monkeypatch.setattr(config_module, "PROTOCOL", 99)
    assert len({before, raised, run_id(PLAIN)}) == 3


def test_what_the_id_covers() -> None:
    """A promise to every result stored under an id: a change here orphans them all."""
    assert set(meaning(PLAIN)) == {"backbone", "data", "process", "train", "sample", "seeds", "versions"}
    assert len(run_id(PLAIN)) == 16


@pytest.mark.parametrize("group", ["process", "train", "sample", "machine", "log", "data"])
def test_every_preset_composes(group: str) -> None:
    for name in options(group):
        extra = {"flow": ["sample=flow"]}.get(name, []) if group == "process" else []
        extra += ["process=flow"] if (group, name) == ("sample", "flow") else []
        config = resolve([f"{group}={name}", *extra])
        assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("name", ["dit-tiny", "diffussm-tiny", "patchssm-tiny", "dis-tiny", "unet-tiny", "dit-s/2"])
def test_backbone_options_are_the_named_sizes(name: str) -> None:
    config = resolve([f"backbone={name}", "process=dit"])
    shape = {"size": (8, 8), "channels": 1, "classes": 10, "latent_factor": 1, "learn_sigma": True}
    assert config.backbone == named_config(name, **shape)


def test_a_field_of_the_chosen_backbone_can_be_overridden() -> None:
    config = resolve(["backbone=diffussm-tiny", "backbone.M=2"])
    assert to_dict(config)["backbone"]["M"] == 2
    assert config.backbone == replace(config.backbone)


def test_seeds_follow_the_seed_unless_given() -> None:
    seeds = resolve(["seed=7", "seeds.init=1"]).seeds
    assert (seeds.data, seeds.noise, seeds.init) == (7, 7, 1)


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = resolve(["backbone=diffussm-tiny", "train.lr=1e-5", "train.ema=[0.9,0.99]"])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    assert load_config(file) == config


REFUSED = {
    "backbone.dept=3": "unknown key backbone.dept: did you mean backbone.depth?",
    "lr=3": "unknown key lr: did you mean train.lr?",
    "+foo.bar=3": "unknown key foo",
    "backbone=dit-tinny": "backbone=dit-tinny is not a preset: did you mean dit-tiny?",
    "backbone.P=3": "backbone.size=(8, 8) is not valid: must be divisible by P=3",
    "backbone.heads=5": "backbone.heads=5 is not valid: must be a divisor of width=64",
    "backbone.size=[16,16]": "backbone.size=[16, 16] does not fit data=digits8",
    "backbone.learn_sigma=true": "backbone.learn_sigma=True does not fit data=digits8 and its process",
    "train.images=0": "train.images=0 is not valid: must be a positive integer",
    "train.images=1.5": "train.images=1.5 is not valid: must be an integer",
    "train.lr=abc": "train.lr='abc' is not valid: must be a finite number",
    "train.lr=.inf": "train.lr",
    "train.lr=nan": "train.lr=nan is not valid: must be a finite number",
    "train.lr=-1": "train.lr=-1.0 is not valid: must be above 0",
    "train.lr=null": "train.lr=None is not valid",
    "train.precision=bf17": "train.precision='bf17' is not valid: must be one of fp32, bf16, fp16 (did you mean",
    "train.ema=[]": "train.ema=() is not valid",
    "train.ema=0.9": "train.ema=0.9 is not valid: must be a list",
    "train.betas=[0.9]": "train.betas=[0.9] is not valid: must have 2 entries",
    "train.warmup=100000": "train.warmup=100000 is not valid: must be below train.images=19200",
    "train=1,2": "'train=1,2' names several values",
    "train.lr=1e-3,1e-4": "names several values",
    "~train.lr": "'~train.lr' deletes a key",
    "train=none": "train=none is not a preset; known: quick, standard, paper",
    "train": "'train' is not an override such as train.lr=1e-4",
    "backbone=[1": "is not an override",
    "train.lr=${nowhere}": "Interpolation key 'nowhere' not found",
    "process.name=flw": "process.name='flw' is not valid: did you mean flow?",
    "process=flow": "sample.sampler.sampler='ddim' is not valid: must be one of euler, heun; "
    "process=flow goes with sample=flow",
    "sample=flow": "sample.sampler.sampler='heun' is not valid: must be one of ddpm, ddim, dpmpp_2m; "
    "heun samples process=flow only",
    "sample.sampler.steps=2000": "sample.sampler.steps='2000' is not valid",
    "machine.micro_batch=100": "machine.micro_batch=100 is not valid: must be at most train.batch=64",
    "data=digits9": "data=digits9 is not a preset: did you mean digits8?",
    "data.count=5000": "data.count=5000 is not valid",
    "seed=-1": "seeds.data=-1 is not valid",
    "seed=x": "seed='x' is not valid: must be an integer",
    "backbone=5": "backbone=5 is not a preset",
}


@pytest.mark.parametrize("word", REFUSED)
def test_refused_in_one_line(word: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        resolve([word])
    assert REFUSED[word] in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "must be a mapping"),
        ("a: [", "cannot be read"),
        ("a: 1", "unknown key a"),
        ("backbone: 3", "missing keys"),
        ("\x00\x01", "cannot be read"),
    ],
)
def test_a_bad_config_file_is_refused_by_name(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=reason) as refusal:
        load_config(file)
    assert str(file) in str(refusal.value)


def test_a_missing_key_is_refused() -> None:
    tree = to_dict(PLAIN)
    del tree["train"]["lr"]
    with pytest.raises(ConfigError, match=r"missing key train\.lr"):
        from_dict(tree)


def test_defaults_name_presets_that_exist() -> None:
    assert all(name in options(group) for group, name in DEFAULTS.items())
