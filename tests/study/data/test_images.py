"""Bytes and floats, and what an `ImageSet` refuses."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from study.data import ImageSet, to_float, to_uint8


def image_set(count: int = 3, classes: int = 2) -> ImageSet:
    images = torch.arange(count * 2 * 4 * 6, dtype=torch.uint8).reshape(count, 2, 4, 6)
    return ImageSet("made", images, torch.arange(count) % classes, classes)


def test_every_byte_survives_the_way_to_float_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    floats = to_float(levels)
    np.testing.assert_allclose(floats.numpy(), np.linspace(-1, 1, 256), atol=1e-6)
    assert floats.dtype == torch.float32
    assert torch.equal(to_uint8(floats), levels)


@given(st.floats(-3, 3, width=32))
def test_rounding_is_to_the_nearest_byte_and_clips(value: float) -> None:
    byte = int(to_uint8(torch.tensor(value)))
    assert abs(byte - np.clip((value + 1) * 127.5, 0, 255)) <= 0.5 + 1e-4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_images_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"images='NaN or infinity'.*finite"):
        to_uint8(torch.tensor([0.0, value]))


def test_conversions_leave_their_input_alone() -> None:
    images = torch.tensor([0, 128, 255], dtype=torch.uint8)
    floats = to_float(images)
    before = floats.clone()
    to_uint8(floats)
    assert torch.equal(images, torch.tensor([0, 128, 255], dtype=torch.uint8))
    assert torch.equal(floats, before)


def test_shape_facts() -> None:
    made = image_set()
    assert (len(made), made.channels, made.size, made.classes, made.latent_factor) == (3, 2, (4, 6), 2, 1)
    assert made.to_float(made.images[:2]).shape == (2, 2, 4, 6)


def test_moving_keeps_identity() -> None:
    made = image_set()
    moved = made.to("cpu")
    assert moved.sha256 == made.sha256
    assert torch.equal(moved.images, made.images)


def test_the_hash_covers_pixels_labels_and_shape() -> None:
    made = image_set(4)
    payload = made.images.numpy().tobytes() + made.labels.numpy().tobytes()
    assert made.sha256 == hashlib.sha256(b"((4, 2, 4, 6), (4,))" + payload).hexdigest()
    changed = made.images.clone()
    changed[0, 0, 0, 0] += 1
    variants = [
        ImageSet("made", changed, made.labels, 2),
        ImageSet("made", made.images, made.labels.flip(0), 2),
        ImageSet("made", made.images.reshape(4, 2, 6, 4), made.labels, 2),
    ]
    assert len({made.sha256, *(variant.sha256 for variant in variants)}) == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("images", torch.full((3, 1, 2, 2), float("nan"))),
        ("images", torch.zeros(3, 2, 2, dtype=torch.uint8)),
        ("images", torch.zeros(0, 1, 2, 2, dtype=torch.uint8)),
        ("labels", torch.zeros(3)),
        ("labels", torch.zeros(2, dtype=torch.int64)),
        ("labels", torch.tensor([0, 1, 2])),
        ("labels", torch.tensor([0, 1, -1])),
    ],
)
def test_malformed_arrays_are_refused_by_name(field: str, value: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=rf"^{field}.*is not valid: must be"):
        dataclasses.replace(image_set(), sha256="", **{field: value})
