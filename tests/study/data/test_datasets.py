"""Every registered set answers the same questions; then what is particular to each."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_digits, load_sample_image
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from study.data import SPLITS, DataConfig, ImageSet, Split, datasets, load, register
from study.data.glyphs import FACES, stripes, templates
from study.data.photos import BAND, SPLIT_BANDS

NAMES = sorted(name for name, offer in datasets().items() if not offer.on_disk)
SETS = ["digits8", "glyphs16", "glyphs32", "glyphs64", "glyphtex32", "glyphtex64", "photos16", "photos32", "photos64"]


def some(name: str, count: int = 290, seed: int = 0, **dials: float) -> DataConfig:
    return DataConfig(name, count=count, heldout=count, reference=count, seed=seed, **dials)


def rows(images: ImageSet) -> list[bytes]:
    return [image.numpy().tobytes() for image in images.images]


def power_above(images: Tensor, cycles_per_pixel: float) -> float:
    """Share of the AC power at frequencies whose larger component exceeds the bound."""
    power = np.abs(np.fft.fft2(images.numpy().astype(np.float64))) ** 2
    power[..., 0, 0] = 0
    frequency = np.abs(np.fft.fftfreq(images.shape[-1]))
    high = np.maximum(frequency[:, None], frequency[None, :]) > cycles_per_pixel
    return float(power[..., high].sum() / power.sum())


def test_the_promised_sets_are_there() -> None:
    assert set(SETS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_a_set_is_what_it_offers(name: str, split: Split) -> None:
    offer, images = datasets()[name], load(some(name), split)
    assert images.images.shape == (290, offer.channels, *offer.size)
    assert (images.images.dtype, images.labels.dtype) == (torch.uint8, torch.int64)
    assert (images.name, images.size, images.channels) == (name, offer.size, offer.channels)
    assert (images.classes, images.latent_factor) == (offer.classes, 1)
    floats = images.to_float(images.images)
    assert -1 <= floats.min() < -0.5
    assert 0.5 < floats.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_same_config_same_images_another_seed_other_images(name: str) -> None:
    first = load(some(name), "train")
    load.cache_clear()
    again, other = load(some(name), "train"), load(some(name, seed=1), "train")
    assert again is not first
    assert again.sha256 == first.sha256 != other.sha256
    assert len(set(rows(first)) & set(rows(other))) < len(first) / 2


def test_a_split_is_drawn_once_per_process() -> None:
    assert load(some("glyphs16"), "heldout") is load(some("glyphs16"), "heldout")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_fewer_images_are_a_prefix_of_more(name: str, split: Split) -> None:
    more, fewer = load(some(name, 290), split), load(some(name, 123), split)
    assert torch.equal(fewer.images, more.images[:123])
    assert torch.equal(fewer.labels, more.labels[:123])


@pytest.mark.parametrize("name", NAMES)
def test_no_image_is_in_two_splits(name: str) -> None:
    splits = [set(rows(load(some(name), split))) for split in SPLITS]
    assert sum(map(len, splits)) == len(set.union(*splits))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_classes_are_balanced_in_every_prefix(name: str, split: Split) -> None:
    images = load(some(name), split)
    slack = 3 if name == "digits8" else 1  # the digits' own classes differ by 5 %
    for count in (100, 290):
        counts = images.labels[:count].bincount(minlength=images.classes)
        assert counts.max() - counts.min() <= slack


def test_digits_are_scikit_learns_and_used_once_each() -> None:
    digits = load_digits()
    expected = Counter((image.tobytes(), int(y)) for image, y in zip(digits.images, digits.target, strict=True))
    seen: Counter[tuple[bytes, int]] = Counter()
    for split in SPLITS:
        images = load(DataConfig("digits8", seed=3), split)
        sixteenths = (images.images[:, 0].double() / 255 * 16).round().numpy()
        seen.update((image.tobytes(), int(y)) for image, y in zip(sixteenths, images.labels, strict=True))
    assert seen == expected
    assert seen.total() == 1797


def test_every_digit_and_face_is_drawn_whole() -> None:
    ink = templates()
    assert ink.shape == (10 * len(FACES), 1, 48, 48)
    assert len(FACES) == 12
    assert len({image.numpy().tobytes() for image in ink}) == len(ink)
    border = torch.cat([ink[..., 0, :], ink[..., -1, :], ink[..., :, 0], ink[..., :, -1]])
    assert border.max() == 0
    assert ink.amax(dim=(1, 2, 3)).min() > 0.9


@pytest.mark.parametrize("name", ["glyphs16", "glyphs32", "glyphs64"])
def test_jittered_glyphs_stay_inside_the_frame(name: str) -> None:
    images = load(some(name), "train").images.float()
    edge = torch.cat([images[..., 0, :], images[..., -1, :], images[..., :, 0], images[..., :, -1]])
    assert edge.max() == 0


def test_a_glyph_keeps_its_shape_across_sizes() -> None:
    small, large = (load(some(name), "train").images.float() for name in ("glyphs16", "glyphs64"))
    reduced = torch.nn.functional.avg_pool2d(large, 4)
    correlation = torch.corrcoef(torch.stack([small.flatten(), reduced.flatten()]))[0, 1]
    assert correlation > 0.97


@pytest.mark.parametrize(
    ("name", "above_eighth", "above_quarter"),
    [
        ("digits8", 0.40, 0.16),
        ("glyphs16", 0.44, 0.19),
        ("glyphs32", 0.25, 0.05),
        ("glyphs64", 0.11, 0.03),
        ("glyphtex32", 0.40, 0.18),
        ("glyphtex64", 0.29, 0.17),
        ("photos16", 0.41, 0.20),
        ("photos32", 0.31, 0.16),
        ("photos64", 0.21, 0.11),
    ],
)
def test_high_frequency_power(name: str, above_eighth: float, above_quarter: float) -> None:
    """Shares found for an independent rendering of the same recipe."""
    images = load(some(name), "train").images
    assert power_above(images, 1 / 8) == pytest.approx(above_eighth, abs=0.05)
    assert power_above(images, 1 / 4) == pytest.approx(above_quarter, abs=0.04)


@pytest.mark.parametrize("name", ["glyphtex32", "glyphtex64"])
def test_texture_dials_high_frequency_power(name: str) -> None:
    shares = [power_above(load(some(name, texture=dial), "train").images, 1 / 4) for dial in (0, 0.25, 0.5, 0.75, 1)]
    assert all(low * 1.05 < high for low, high in pairwise(shares))
    assert shares[-1] > 4 * shares[0]


def test_longer_stripes_have_less_high_frequency_power() -> None:
    shares = [
        power_above(load(some("glyphtex64", stripe_period=dial), "train").images, 1 / 4) for dial in (2.0, 4.0, 8.0)
    ]
    assert shares[0] > 2 * shares[1] > 2 * shares[2]


@pytest.mark.parametrize("label", range(10))
def test_stripes_have_the_period_drawn_and_the_direction_of_their_class(label: int) -> None:
    side, period = 64, 2.0 * (1 + 0.5)  # a dial of 2 and a draw of one half
    wave = stripes(torch.tensor([label]), torch.full((1, 16), 0.5), 2 * side, DataConfig("glyphtex64", texture=1))
    assert wave.min() == pytest.approx(0, abs=0.01)
    assert wave.max() == pytest.approx(1, abs=0.01)
    spectrum = np.abs(np.fft.fft2(wave[0, 0].numpy() - 0.5))
    down, across = np.unravel_index(spectrum.argmax(), spectrum.shape)
    found = np.array([np.fft.fftfreq(2 * side)[across], np.fft.fftfreq(2 * side)[down]]) * 2  # cycles per pixel
    expected = np.array([math.cos(math.pi * label / 10), math.sin(math.pi * label / 10)]) / period
    error = min(np.abs(found - expected).max(), np.abs(found + expected).max())
    assert error <= 0.5 / side + 1e-9  # half a bin


@pytest.mark.parametrize(("name", "least"), [("digits8", 0.95), ("glyphs16", 0.9), ("glyphs32", 0.9)])
def test_nearest_neighbours_tell_the_classes_apart(name: str, least: float) -> None:
    config = DataConfig(name, count=1000, heldout=200)
    train, heldout = load(config, "train"), load(config, "heldout")
    judge = KNeighborsClassifier(3).fit(train.images.flatten(1).numpy(), train.labels.numpy())
    assert judge.score(heldout.images.flatten(1).numpy(), heldout.labels.numpy()) >= least


def test_stripes_alone_tell_the_class() -> None:
    """Texture is conditional on the class: spectra of the strokes, which ignore where a glyph lies, tell it."""

    def spectra(split: Split) -> tuple[np.ndarray, np.ndarray]:
        images = load(some("glyphtex64"), split)
        power = np.abs(np.fft.fft2(images.images.double().mean(1).numpy()))
        frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None, :])
        ring = np.log(power[:, (frequency > 0.2) & (frequency < 0.5)])
        return ring - ring.mean(1, keepdims=True), images.labels.numpy()

    (x, y), (x_heldout, y_heldout) = spectra("train"), spectra("heldout")
    centres = np.stack([x[y == label].mean(0) for label in range(10)])
    guess = np.argmax(x_heldout @ (centres - centres.mean(0)).T, axis=1)
    assert (guess == y_heldout).mean() > 0.8


@pytest.mark.parametrize("split", SPLITS)
def test_photo_crops_lie_in_their_own_bands(split: Split) -> None:
    images = load(some("photos16", 40), split)
    for crop, label in zip(images.images, images.labels, strict=True):
        photo = load_sample_image(("china.jpg", "flower.jpg")[int(label)])
        places = np.argwhere(_matches(photo, crop.permute(1, 2, 0).numpy()))
        bands = {(int(left) // BAND, (int(left) + 15) // BAND) for _, left in places}
        assert any(first == last and first in SPLIT_BANDS[split] for first, last in bands)


def _matches(photo: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """Where the crop occurs in the photograph: first by its corner pixels, then whole."""
    height, width = photo.shape[0] - 15, photo.shape[1] - 15
    found = np.ones((height, width), bool)
    for top, left in ((0, 0), (15, 0), (0, 15), (15, 15), (7, 7)):
        found &= (photo[top : top + height, left : left + width] == crop[top, left]).all(-1)
    for top, left in np.argwhere(found):
        found[top, left] = (photo[top : top + 16, left : left + 16] == crop).all()
    return found


def test_bands_of_the_splits_are_disjoint_and_cover_the_photographs() -> None:
    assert sorted(band for bands in SPLIT_BANDS.values() for band in bands) == list(range(640 // BAND))


def test_what_is_left_out_becomes_the_sets_own() -> None:
    offer = datasets()["glyphtex32"]
    config = DataConfig("glyphtex32")
    assert (config.count, config.heldout, config.reference) == offer.counts
    assert config == DataConfig("glyphtex32", texture=offer.texture, stripe_period=2)
    assert DataConfig("digits8").texture is None


def test_the_config_goes_through_omegaconf() -> None:
    mixed = OmegaConf.merge(OmegaConf.structured(DataConfig), {"name": "glyphtex32", "texture": 0.25})
    assert OmegaConf.to_object(mixed) == DataConfig("glyphtex32", texture=0.25)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "glyph16"}, "name='glyph16' is not valid.*did you mean 'glyphs16'"),
        ({"count": 0}, "count=0 is not valid: must be an integer"),
        ({"heldout": -1}, "heldout=-1 is not valid"),
        ({"reference": 2.5}, "reference=2.5 is not valid"),
        ({"count": True}, "count=True is not valid"),
        ({"count": 1101}, r"count=1101 is not valid: must be an integer in 1\.\.1100, all that digits8 has"),
        ({"seed": -1}, "seed=-1 is not valid: must be an integer of at least 0"),
        ({"texture": 0.5}, "texture=0.5 is not valid: must be left out: digits8 has no such dial"),
        ({"name": "glyphs32", "stripe_period": 2.0}, "stripe_period=2.0 is not valid: must be left out"),
        ({"name": "glyphtex32", "texture": float("nan")}, r"texture=nan is not valid: must be a number in \[0, 1\]"),
        ({"name": "glyphtex32", "texture": 1.5}, "texture=1.5 is not valid"),
        ({"name": "glyphtex32", "stripe_period": 1.0}, r"stripe_period=1.0 is not valid: .* \[2, 8\]"),
        ({"name": "glyphtex32", "stripe_period": "2"}, "stripe_period='2' is not valid"),
        ({"name": "photos64", "heldout": 50_000}, "heldout=50000 is not valid: .*1..47320, all that photos64 has"),
    ],
)
def test_bad_configs_are_refused_by_field(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        DataConfig(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"split='held_out'.*did you mean 'heldout'"):
        load(some("digits8"), "held_out")  # type: ignore[arg-type]


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"name='digits8'.*no other data set"):
        register(datasets()["digits8"])(lambda offer, config, split: (torch.empty(0), torch.empty(0)))
