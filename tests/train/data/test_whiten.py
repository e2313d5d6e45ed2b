"""GCN, ZCA and per-image normalisation against their formulas in plain numpy, and the ZCA's cache."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mtkernels.train.config import SettingError
from mtkernels.train.data import whiten as module
from mtkernels.train.data.raw import ImageSet, RawData
from mtkernels.train.data.whiten import Zca, gcn, whiten


@pytest.fixture(scope="module")
def images(digits) -> torch.Tensor:
    """[200, 3, 8, 8] uint8 with some noise, so that all 192 pixels vary."""
    noise = torch.randint(0, 40, (200, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return (digits.train[:, :, ::4, ::4] // 2 + noise).to(torch.uint8)


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 64)


def rows(images):
    return images.flatten(1).double().numpy()


def plain_zca(fit, apply, regularizer):
    mean = fit.mean(0)
    covariance = (fit - mean).T @ (fit - mean) / len(fit)
    values, vectors = np.linalg.eigh(covariance + regularizer * np.eye(len(mean)))
    return (apply - mean) @ (vectors / np.sqrt(values)) @ vectors.T


@pytest.mark.parametrize("scale", [1.0, 55.0])
def test_gcn(images, scale):
    found = gcn(images, scale)
    centred = rows(images) - rows(images).mean(1, keepdims=True)
    expected = scale * centred / np.sqrt((centred**2).sum(1, keepdims=True))
    assert found.dtype == torch.float32 and found.shape == images.shape
    np.testing.assert_allclose(rows(found), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows(found), axis=1), scale, rtol=1e-6)
    np.testing.assert_allclose(rows(gcn(images.float() / 255, scale)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0, 77, 0.3])
def test_images_of_one_value_become_zero(value):
    flat = torch.full((2, 3, 5, 7), value)
    assert torch.equal(gcn(flat), torch.zeros(2, 3, 5, 7))


@pytest.mark.parametrize("regularizer", [0.1, 1e-5])
def test_zca_is_the_formula(images, regularizer):
    pixels = images.float() / 255
    found = Zca.fit(pixels[:150], regularizer=regularizer).apply(pixels)
    assert found.dtype == torch.float32 and found.shape == images.shape
    expected = plain_zca(rows(pixels[:150]), rows(pixels), regularizer)
    np.testing.assert_allclose(rows(found), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_zca_whitens(images):
    """The covariance C becomes C / (C + regularizer), which is the identity where C is large."""
    fitted = Zca.fit(images, regularizer=0.1)
    assert torch.equal(fitted.matrix, fitted.matrix.T) or torch.allclose(
        fitted.matrix, fitted.matrix.T, atol=1e-6
    )
    white = rows(fitted.apply(images))
    covariance = np.cov(rows(images), rowvar=False, bias=True)
    expected = covariance @ np.linalg.inv(covariance + 0.1 * np.eye(len(covariance)))
    np.testing.assert_allclose(np.cov(white, rowvar=False, bias=True), expected, atol=1e-4)
    assert np.abs(expected - np.eye(len(expected))).max() < 0.1  # the noise makes C large everywhere


def test_fewer_images_than_pixels(images):
    few = images[:20].float() / 255
    found = rows(Zca.fit(few, regularizer=1e-5).apply(few))
    expected = plain_zca(rows(few), rows(few), 1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_cache(images, tmp_path, monkeypatch):
    cache = tmp_path / "new" / "cache"
    first = Zca.fit(images, cache=cache)
    (file,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "eigh", None)  # a second fit would call it
        again = Zca.fit(images.clone(), cache=cache)
    assert torch.equal(again.mean, first.mean) and torch.equal(again.matrix, first.matrix)
    changed = images.clone()
    changed[0, 0, 0, 0] += 1
    Zca.fit(changed, cache=cache)
    Zca.fit(images, regularizer=0.2, cache=cache)
    assert len(list(cache.iterdir())) == 3
    file.write_bytes(b"words")
    with pytest.raises(SettingError, match=f"{file.name} is no saved ZCA; remove it"):
        Zca.fit(images, cache=cache)


def raw(images, **more):
    labels = torch.arange(len(images)) % 10
    train, test = ImageSet(images[:150], labels[:150]), ImageSet(images[150:], labels[150:])
    return RawData(train, test, tuple("0123456789"), (0.5,) * 3, (0.2,) * 3, **more)


def test_whiten_mean_teacher_cifar(images):
    data = whiten(raw(images), "gcn-zca")
    contrast = rows(gcn(images))
    expected = plain_zca(contrast[:150], contrast, 0.1)
    np.testing.assert_allclose(rows(data.train.images), expected[:150], atol=1e-3)
    np.testing.assert_allclose(rows(data.test.images), expected[150:], atol=1e-3)
    assert data.mean == (0, 0, 0) and data.std == (1, 1, 1) and data.levels == 1 and data.extra is None
    assert data.class_names == tuple("0123456789") and len(data.test.labels) == 50


def test_whiten_temporal_ensembling_cifar(images):
    data = whiten(raw(images), "zca")
    expected = plain_zca(rows(images[:150]) / 255, rows(images) / 255, 1e-5)
    np.testing.assert_allclose(rows(data.test.images), expected[150:], atol=2e-5 * np.abs(expected).max())


def test_the_extra_images_are_whitened_by_the_training_images(images):
    extra = ImageSet(images[:9], torch.zeros(9, dtype=torch.int64), tuple("abcdefghi"))
    data = whiten(raw(images, extra=extra), "zca")
    assert torch.equal(data.extra.images, data.train.images[:9]) and data.extra.names == extra.names


def test_what_cannot_be_whitened(images):
    with pytest.raises(SettingError, match="whitening must be one of gcn-zca, zca, got 'pca'"):
        whiten(raw(images), "pca")
    data = raw(images)
    on_disk = replace(data, train=replace(data.train, images=["not", "in", "memory"]))
    with pytest.raises(SettingError, match="whitening zca needs a dataset whose images are held in memory"):
        whiten(on_disk, "zca")
