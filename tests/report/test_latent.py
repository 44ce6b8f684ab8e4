"""The latent plane against an independent decomposition and a search by hand."""

import numpy as np
import torch

from kullback.report.limits import LATENT_REACH
from kullback.report.training_runs import run_charts as latent
from kullback.vae import Architecture, build


def cloud(n=300, latent_size=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([0.1, 3.0, 1.0, 0.5, 0.01])[:latent_size]
    return torch.randn(n, latent_size, generator=generator) * spread + 1.0


def test_plane_agrees_with_a_singular_value_decomposition():
    means = cloud()
    found = latent.plane(means)
    centred = means.double().numpy() - means.double().numpy().mean(0)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(found.deviation, singular[:2] / np.sqrt(299), rtol=1e-10)
    np.testing.assert_allclose(found.share, (singular**2 / (singular**2).sum())[:2], rtol=1e-10)
    for mine, theirs in zip(found.directions.numpy(), rows, strict=False):
        np.testing.assert_allclose(mine * np.sign(mine @ theirs), theirs, atol=1e-10)
        assert mine[np.abs(mine).argmax()] > 0
    np.testing.assert_allclose(found.places.std(0), [1.0, 1.0], rtol=1e-10)


def test_a_collapsed_posterior_has_no_plane():
    assert latent.plane(torch.ones(10, 4)) is None


def test_one_latent_dimension_has_one_direction():
    found = latent.plane(cloud(latent_size=1))
    assert found.directions.tolist() == [[1.0]]
    assert found.places.shape == (300, 1)


def test_nearest_picks_what_a_search_by_hand_picks():
    places = latent.plane(cloud()).places
    columns, rows = 7, 4
    picked = latent.nearest(places, columns=columns, rows=rows).tolist()
    wide, high = 2 * LATENT_REACH / columns, 2 * LATENT_REACH / rows
    for row in range(rows):
        for column in range(columns):
            x = -LATENT_REACH + (column + 0.5) * wide
            y = LATENT_REACH - (row + 0.5) * high
            inside = [
                (np.hypot(a - x, b - y), index)
                for index, (a, b) in enumerate(places.tolist())
                if abs(a - x) < wide / 2 and abs(b - y) < high / 2
            ]
            expected = min(inside)[1] if inside else -1
            assert picked[row * columns + column] == expected
    chosen = [index for index in picked if index >= 0]
    assert len(chosen) == len(set(chosen)) > 10


def test_traversal_decodes_the_centres_of_the_cells():
    model = build((4,), "continuous", Architecture(hidden=(6,), latent=5))
    found = latent.plane(cloud())
    made = latent.traversal(model, found, columns=3, rows=3)
    assert made.shape == (9, 4)
    middle = model.decode(found.origin.float()[None])[0]
    torch.testing.assert_close(made[4], middle, rtol=0, atol=1e-6)
    corner = found.origin + (2 * LATENT_REACH / 3) * (
        found.deviation[1] * found.directions[1] - found.deviation[0] * found.directions[0]
    )
    expected = model.decode(corner.float()[None])[0]
    torch.testing.assert_close(made[0], expected, rtol=0, atol=1e-5)


def test_codes_do_not_depend_on_the_pieces():
    model = build((4,), "binary", Architecture(hidden=(6,), latent=2)).eval()
    x = torch.bernoulli(torch.full((450, 4), 0.5), generator=torch.Generator().manual_seed(0))
    mean, log_sd = latent.codes(model, x)
    whole = model.encode(x)
    torch.testing.assert_close(mean, whole[0].detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(log_sd, whole[1].detach(), rtol=0, atol=1e-6)
