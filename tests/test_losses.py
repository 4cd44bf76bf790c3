"""Losses against their definitions in float64, what they do with unknown pixels, and how recipes name them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_geo.errors import InputError, ModelError
from l4s_geo.train.losses import (
    IMAGE_LOSSES,
    PIXEL_LOSSES,
    UNKNOWN,
    balanced_cross_entropy,
    compose,
    cross_entropy,
    focal,
    image_level,
    jaccard_loss,
    lovasz,
    ohem,
    soft_cross_entropy,
    weighted_cross_entropy,
)

ALL = {**PIXEL_LOSSES, **IMAGE_LOSSES}


def batch(seed, n=3, side=7, scale=2.0):
    """Logits (n, 1, side, side) float64 and truth (n, side, side); the last image has no landslide."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, scale, (n, 1, side, side))
    truth = rng.choice([0, 1, UNKNOWN], (n, side, side), p=[0.6, 0.2, 0.2])
    truth[-1][truth[-1] == 1] = 0
    return z, truth


def known_pixels(z, truth):
    known = truth != UNKNOWN
    return z[:, 0][known], (truth[known] == 1).astype(float)


def entropy(z, y):
    p = 1 / (1 + np.exp(-z))
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


def value(loss, z, truth, **options):
    return loss(torch.from_numpy(z).float(), torch.from_numpy(truth), **options).item()


def lovasz_hinge(z, y):
    """Sum of the sorted hinge errors, each times what its pixel adds to the Jaccard loss of those before it."""

    def jaccard(wrong):
        scars = {i for i in range(len(y)) if y[i] == 1}
        return len(wrong) / len(scars | wrong) if wrong else 0.0

    errors = np.maximum(1 - z * (2 * y - 1), 0)
    total, wrong = 0.0, set()
    for i in np.argsort(-errors):
        total += errors[i] * (jaccard(wrong | {i}) - jaccard(wrong))
        wrong.add(i)
    return total


@settings(max_examples=15)
@given(st.integers(0, 999))
def test_entropies_and_overlap_match_their_float64_definition(seed):
    z, truth = batch(seed)
    flat, y = known_pixels(z, truth)
    plain = entropy(flat, y)
    assert value(cross_entropy, z, truth) == pytest.approx(plain.mean(), rel=1e-5)
    assert value(soft_cross_entropy, z, truth, smoothing=0.2) == pytest.approx(
        entropy(flat, np.where(y == 1, 0.9, 0.1)).mean(), rel=1e-5
    )
    assert value(weighted_cross_entropy, z, truth, positive=7.0) == pytest.approx(
        np.average(plain, weights=np.where(y == 1, 7, 1)), rel=1e-5
    )
    p = 1 / (1 + np.exp(-flat))
    lin = np.where(y == 1, -0.3 * (1 - p) ** 3 * np.log(p), -0.7 * p**3 * np.log(1 - p))
    assert value(jaccard_loss, z, truth) == pytest.approx(1 - (p @ y + 1) / ((p + y - p * y).sum() + 1), rel=1e-5)
    assert value(focal, z, truth, gamma=3.0, alpha=0.3) == pytest.approx(lin.mean(), rel=1e-4)


@settings(max_examples=15)
@given(st.integers(0, 999))
def test_balanced_entropy_weighs_each_image_by_its_own_classes(seed):
    z, truth = batch(seed)
    total = weights = 0.0
    for image, labels in zip(z, truth, strict=True):
        flat, y = known_pixels(image[None], labels[None])
        ratio = (y == 0).sum() / y.sum() if 0 < y.sum() < y.size else 1.0
        weight = np.where(y == 1, ratio, 1.0)
        total += (weight * entropy(flat, y)).sum()
        weights += weight.sum()
    assert value(balanced_cross_entropy, z, truth) == pytest.approx(total / weights, rel=1e-5)


@settings(max_examples=15)
@given(st.integers(0, 999))
def test_lovasz_hinge_matches_its_float64_definition(seed):
    z, truth = batch(seed)
    assert value(lovasz, z, truth) == pytest.approx(lovasz_hinge(*known_pixels(z, truth)), rel=1e-5)
    each = [lovasz_hinge(*known_pixels(z[i : i + 1], truth[i : i + 1])) for i in range(3)]
    assert value(lovasz, z, truth, per_image=True) == pytest.approx(np.mean(each), rel=1e-5)
    truth[1] = UNKNOWN
    assert value(lovasz, z, truth, per_image=True) == pytest.approx((each[0] + each[2]) / 2, rel=1e-5)


def test_lovasz_hinge_is_twice_the_jaccard_loss_of_a_decided_map():
    """Logits of -1 and 1 are corners of the hinge, where the extension meets the set function."""
    z, truth = batch(4)
    z = np.sign(z)
    flat, y = known_pixels(z, truth)
    found = flat > 0
    iou = (found & (y == 1)).sum() / (found | (y == 1)).sum()
    assert value(lovasz, z, truth) == pytest.approx(2 * (1 - iou), rel=1e-5)


def test_lovasz_gradients_stay_exact_over_many_pixels():
    generator = torch.Generator().manual_seed(0)
    count = 2**20
    y = (torch.rand(count, generator=generator) < 0.03).double()
    # Multiples of 2^-20, odd for landslides: no two errors are equal, and all are exact in float32.
    z = ((2 * torch.randperm(count, generator=generator) + y) / count - 1.5).float()
    errors, order = (1 - z.double() * (2 * y - 1)).sort(descending=True)
    scars = y[order]
    loss = 1 - (y.sum() - scars.cumsum(0)) / (y.sum() + (1 - scars).cumsum(0))
    steps = loss.diff(prepend=torch.zeros(1, dtype=torch.double)) * (errors > 0)
    expected = torch.zeros_like(steps).scatter(0, order, steps) * (1 - 2 * y)
    logits = z.view(1, 1, 1024, 1024).requires_grad_()
    lovasz(logits, y.view(1, 1024, 1024)).backward()
    assert torch.allclose(logits.grad.flatten().double(), expected, rtol=1e-5, atol=0)


def test_hard_example_mining_keeps_the_hardest_known_pixels():
    z, truth = batch(1)
    flat, y = known_pixels(z, truth)
    hardest = np.sort(entropy(flat, y))[::-1]
    share = int(np.ceil(0.1 * len(flat)))
    assert value(ohem, z, truth, share=0.1, minimum=1) == pytest.approx(hardest[:share].mean(), rel=1e-5)
    assert value(ohem, z, truth, share=0.1, minimum=50) == pytest.approx(hardest[:50].mean(), rel=1e-5)
    assert value(ohem, z, truth, share=0.1, minimum=9999) == pytest.approx(hardest.mean(), rel=1e-5)
    assert value(ohem, z, truth, share=1.0, minimum=1) == pytest.approx(hardest.mean(), rel=1e-5)


def test_image_loss_asks_whether_a_patch_holds_a_landslide():
    truth = torch.zeros(4, 8, 8, dtype=torch.uint8)
    truth[0, 3, 3] = 1
    truth[2], truth[2, 0, 0] = UNKNOWN, 1  # holds one, though little is known
    truth[3, 1:] = UNKNOWN  # too little is known to say that it holds none
    z = np.array([1.5, -0.5, 0.3, 2.0])
    expected = entropy(z[:3], np.array([1.0, 0.0, 1.0])).mean()
    logits = torch.from_numpy(z).float()[:, None]
    assert image_level(logits, truth).item() == pytest.approx(expected, rel=1e-5)
    everywhere = entropy(z, np.array([1.0, 0.0, 1.0, 0.0])).mean()
    assert image_level(logits, truth, known=0.1).item() == pytest.approx(everywhere, rel=1e-5)
    features = logits[:, :, None, None] + torch.tensor([[-1.0, 1.0], [2.0, -2.0]])
    assert image_level(features, truth).item() == pytest.approx(expected, rel=1e-5)


def test_entropies_take_probabilities_as_truth():
    z, _ = batch(2)
    truth = np.random.default_rng(0).random((3, 7, 7))
    truth[0, :3] = UNKNOWN
    known = truth != UNKNOWN
    expected = entropy(z[:, 0][known], truth[known]).mean()
    assert value(cross_entropy, z, truth) == pytest.approx(expected, rel=1e-5)
    assert value(soft_cross_entropy, z, truth, smoothing=0.0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_unknown_pixels_neither_count_nor_get_a_gradient(name):
    z, truth = batch(3)
    labels = torch.from_numpy(truth)
    unknown = labels == UNKNOWN
    logits = torch.from_numpy(z).float().requires_grad_()
    loss = PIXEL_LOSSES[name](logits, labels)
    loss.backward()
    assert not logits.grad[:, 0][unknown].any()
    assert logits.grad[:, 0][~unknown].any()
    changed = torch.where(unknown[:, None], 1e4, logits.detach())
    assert PIXEL_LOSSES[name](changed, labels.to(torch.uint8)).item() == loss.item()


@pytest.mark.parametrize("name", ALL)
def test_a_batch_without_a_known_pixel_costs_nothing(name):
    logits = torch.randn(2, 1, 4, 4).requires_grad_()
    loss = ALL[name](logits, torch.full((2, 4, 4), UNKNOWN))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("label", [0, 1])
def test_losses_stay_finite_for_sure_networks_and_patches_of_one_class(name, label):
    logits = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4]).expand(2, 1, 4, 5).contiguous().requires_grad_()
    loss = ALL[name](logits, torch.full((2, 4, 5), label))
    loss.backward()
    assert loss.isfinite()
    assert loss.item() > 0 or name in IMAGE_LOSSES
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_losses_are_float32_under_autocast(name):
    z, truth = batch(5)
    logits, labels = torch.from_numpy(z).to(torch.bfloat16), torch.from_numpy(truth)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ALL[name](logits, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == ALL[name](logits.float(), labels).item()


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_following_a_loss_leads_to_the_truth(name):
    _, truth = batch(6)
    labels = torch.from_numpy(truth)
    logits = torch.zeros(3, 1, 7, 7, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        PIXEL_LOSSES[name](logits, labels).backward()
        optimizer.step()
    known = labels != UNKNOWN
    assert torch.equal(logits[:, 0][known] > 0, labels[known] == 1)


def test_a_recipe_sums_weighted_losses_with_their_options():
    z, truth = batch(7)
    logits, labels = torch.from_numpy(z).float(), torch.from_numpy(truth)
    loss = compose({"cross-entropy": 2, "weighted-cross-entropy": {"weight": 0.5, "positive": 9}, "lovasz": {}})
    expected = (
        2 * cross_entropy(logits, labels)
        + 0.5 * weighted_cross_entropy(logits, labels, positive=9)
        + lovasz(logits, labels)
    )
    assert loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_image_level_loss_is_measured_on_the_image_head_and_asks_for_one():
    z, truth = batch(8)
    logits, labels, head = torch.from_numpy(z).float(), torch.from_numpy(truth), torch.tensor([[0.4], [2.0], [-1.0]])
    loss = compose({"cross-entropy": 1, "image-level": {"weight": 3.0, "known": 0.2}})
    expected = cross_entropy(logits, labels) + 3 * image_level(head, labels, known=0.2)
    assert loss(logits, labels, head).item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.image
    assert not compose({"cross-entropy": 1}).image
    with pytest.raises(ModelError, match="head"):
        loss(logits, labels)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "at least one"),
        ({"lovas": 1.0}, "did you mean 'lovasz'.*cross-entropy, weighted"),
        ({"hinge of fate": 1.0}, "There are: cross-entropy"),
        ({"focal": {"gama": 2.0}}, "did you mean 'gamma'.*weight, gamma, alpha"),
        ({"jaccard": {"gamma": 2.0}}, "There are: weight"),
        ({"focal": {"gamma": 0.5}}, "'gamma' of the loss 'focal' must be a number 1 or more, not 0.5"),
        ({"focal": "2"}, "'weight' of the loss 'focal'"),
        ({"focal": {"weight": None}}, "'weight'"),
        ({"jaccard": -1}, "above 0"),
        ({"jaccard": float("nan")}, "above 0"),
        ({"jaccard": True}, "must be a number"),
        ({"lovasz": {"per_image": 1}}, "true or false"),
        ({"ohem": {"share": 0.0}}, "'share'"),
        ({"ohem": {"minimum": 10.5}}, "whole number"),
        ({"soft-cross-entropy": {"smoothing": 1.0}}, "'smoothing'"),
        ({"weighted-cross-entropy": {"positive": float("inf")}}, "'positive'"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_message_that_lists_what_there_is(recipe, message):
    with pytest.raises(InputError, match=message):
        compose(recipe)


@pytest.mark.parametrize("name", ALL)
def test_every_option_takes_its_default_from_a_recipe(name):
    options = ALL[name].__kwdefaults__ or {}
    z, truth = batch(9)
    logits, labels = torch.from_numpy(z).float(), torch.from_numpy(truth)
    spelt, short = compose({name: {"weight": 1.0, **options}}), compose({name: 1.0})
    assert spelt(logits, labels, logits).item() == short(logits, labels, logits).item()
