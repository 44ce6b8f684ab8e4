"""Columns of logged log-probabilities: what is wrong with them is found, counted and named."""

import math

import pytest
import torch

from kullback.sampled.log_probs import check_log_probs, is_sentinel, looks_odd, why_shapes_differ


def columns(*, noise=0.3, spread=3.0, seed=0, shape=(100, 200), vocab=32, low=torch.float32):
    """Return log-probabilities of tokens drawn from p under p and q; low: type of the logits."""
    draw = torch.Generator().manual_seed(seed)
    sharp = 2 * spread * torch.rand(*shape, 1, generator=draw)
    p = sharp * torch.randn(*shape, vocab, generator=draw)
    q = (p + noise * torch.randn(*shape, vocab, generator=draw)).to(low).log_softmax(-1)
    p = p.to(low).log_softmax(-1)
    drawn = p.float().exp().reshape(-1, vocab).multinomial(1, generator=draw).view(*shape, 1)
    return {"log_p": p.gather(-1, drawn)[..., 0], "log_q": q.gather(-1, drawn)[..., 0]}


def kinds(found):
    return sorted({(f.column, f.kind) for f in found.findings})


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (math.nan, "NaN"),
        (-math.inf, "-inf"),
        (0.4, "positive"),
        (math.inf, "positive"),
        (-9999.0, "sentinel"),
        (-1e10, "sentinel"),
        (-1e30, "sentinel"),
        (-1e4, "sentinel"),
        (-100.0, "sentinel"),
    ],
)
def test_what_is_no_log_probability_is_named_counted_and_skipped(value, kind):
    logs = columns(shape=(20, 50))
    places = torch.zeros(20, 50, dtype=torch.bool)
    places[3, 7] = places[4, 0] = places[19, 49] = True
    spoilt = logs | {"log_q": logs["log_q"].masked_fill(places, value)}
    with pytest.raises(ValueError, match=r"log_q: .* 3 of 1000 values .* first at \[3, 7\]"):
        check_log_probs(spoilt)
    found = check_log_probs(spoilt, missing="skip")
    assert found.skipped == 3 and torch.equal(found.mask, ~places)
    kept = check_log_probs(spoilt, missing="keep")
    assert kinds(kept) == [("log_q", kind)] and kept.findings[0].first == (3, 7)
    assert kept.findings[0].count == 3 and kept.mask is None
    assert not check_log_probs(spoilt, mask=~places).findings  # masked, anything may stand there
    assert looks_odd(list(spoilt.values()), None)
    assert not looks_odd(list(spoilt.values()), ~places)


def test_half_precision_rounds_the_sentinels_too():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        values = torch.tensor([-9999.0, -1e4, -100.0, -99.0, -0.5]).to(dtype)
        assert is_sentinel(values).tolist() == [True, True, True, False, False]


def test_lists_with_null_and_unequal_lengths():
    rows = [[-1.0, None, -0.25], [-2.0], [-0.5, -0.125]]
    with pytest.raises(
        ValueError, match=r"log_p: .* 1 of 6 values that are null, the first at \[0, 1"
    ):
        check_log_probs({"log_p": rows})
    found = check_log_probs({"log_p": rows}, missing="skip")
    assert found.skipped == 1
    assert found.mask.tolist() == [[True, False, True], [True, False, False], [True, True, False]]
    with pytest.raises(TypeError, match="log_p: expected list or tuple"):
        check_log_probs({"log_p": "logs"})


SETTINGS = [
    {"noise": noise, "spread": spread, "low": low}
    for noise in (0.01, 0.3, 1.0, 3.0)
    for spread in (1.0, 5.0)
    for low in (torch.float32, torch.bfloat16)
]


@pytest.mark.sweep(8)
@pytest.mark.parametrize("how", SETTINGS, ids=str)
def test_clean_columns_are_clean_and_late_ones_are_late(how):
    """No false alarm and no miss in any setting: the lag test errs at 4.5 standard errors."""
    for seed in range(2):
        logs = {name: x.float() for name, x in columns(seed=seed, vocab=12, **how).items()}
        grids = {("log_p", "bfloat16"), ("log_q", "bfloat16")}
        assert set(kinds(check_log_probs(logs))) <= grids
        late = {"log_p": logs["log_p"][:, 1:], "log_q": logs["log_q"][:, :-1]}
        found = check_log_probs(late, missing="keep")
        assert ("log_q", "late") in kinds(found) and ("log_p", "late") not in kinds(found)
        with pytest.raises(
            ValueError, match=r"log_q: .* one position late: .* Try: log_q\[:, 1:\]"
        ):
            check_log_probs(late, missing="skip")


@pytest.mark.sweep(6)
@pytest.mark.parametrize("how", SETTINGS[:12], ids=str)
def test_zeros_that_mean_not_scored_are_told_from_lawful_ones(how):
    logs = columns(vocab=12, **how)
    zeros = torch.rand(100, 200, generator=torch.Generator().manual_seed(1)) < 0.02
    lawful = int((logs["log_q"] == 0).sum())
    spoilt = logs | {"log_q": logs["log_q"].masked_fill(zeros, 0.0)}
    found = check_log_probs(spoilt, missing="skip")
    if how["spread"] == 1.0 or how["noise"] < 1.0:  # else lawful zeros are too many to tell
        assert ("log_q", "zero") in kinds(found)
        assert found.skipped >= int(zeros.sum()) and found.skipped <= lawful + int(zeros.sum())
    assert ("log_p", "zero") not in kinds(found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_grid_of_half_precision_is_seen_through_float32(dtype):
    logs = columns(shape=(10, 50))
    coarse = logs | {"log_q": logs["log_q"].to(dtype).float()}
    found = check_log_probs(coarse)
    assert kinds(found) == [("log_q", str(dtype).removeprefix("torch."))]
    assert found.grid("log_q") == dtype and found.grid("log_p") is None


def test_round_numbers_are_no_grid():
    assert not check_log_probs({"log_p": torch.full((10, 100), -1.0)}).findings


def test_off_by_one_is_explained():
    assert "one position too long" in why_shapes_differ((2, 5), (2, 4))
    assert "one position too short" in why_shapes_differ((2, 3), (2, 4))
    assert why_shapes_differ((3, 4), (2, 4)) == why_shapes_differ((2, 6), (2, 4)) == ""
    logs = columns(shape=(4, 6))
    with pytest.raises(ValueError, match=r"mask: .* one position too long.* \[:, 1:\]"):
        check_log_probs(logs, mask=torch.ones(4, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"log_q: .* one position too short"):
        check_log_probs(logs | {"log_q": logs["log_q"][:, 1:]})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: check_log_probs({"log_p": x}, missing="drop"), "missing: expected 'refuse'"),
        (lambda x: check_log_probs({}), "columns: expected at least one"),
        (lambda x: check_log_probs({"log_p": x.long()}), "log_p: expected floats"),
    ],
)
def test_errors_name_the_argument(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.full((2, 3), -1.0))
