"""Tables, corrected draws, export and files of fits to targets whose answers are known."""

import json
import math

import pytest
import safetensors.torch
import torch
from torch.distributions import constraints

from kullback.core import RunError
from kullback.variational import Target, fit
from kullback.variational.archive import load, save
from kullback.variational.diagnostics.summary import (
    assess,
    compare,
    resample,
    summarise,
    to_arviz,
)
from kullback.variational.families import NAMED, FullRank
from kullback.variational.families.family import Frame

Z = 4.5


def gamma(rate):
    """`rate` ~ Gamma(9, 3): mean 3, sd 1."""
    return 8 * torch.log(rate) - 3 * rate


@pytest.fixture(scope="module")
def found():
    return fit(gamma, {"rate": constraints.positive}, family="full_rank", progress=False)


@pytest.fixture(scope="module")
def judged(found):
    return assess(found)


def test_the_table_is_of_the_parameters_as_named(found, judged):
    table = summarise(found, judged)
    (row,) = table.rows
    assert row.name == "rate"
    assert abs(row.mean - 3.0) <= row.mean_error
    assert max(row.sd, 1 / row.sd) - 1 <= row.sd_error
    assert row.quantiles[0] < row.quantiles[1] < row.quantiles[2]
    assert judged.verdict in str(table)
    json.dumps(table.to_dict(), allow_nan=False)
    json.dumps(judged.to_dict(), allow_nan=False)


def test_corrected_draws_are_nearer_to_the_truth(found, judged):
    draws = resample(found, 4000, judged, generator=torch.Generator().manual_seed(0))["rate"]
    effective = judged.ess_fraction * 4000
    assert abs(float(draws.mean()) - 3.0) < Z / math.sqrt(effective)
    fourth = 3 + 6 / 9  # kurtosis of Gamma(9)
    assert abs(float(draws.var()) - 1.0) < Z * math.sqrt((fourth - 1) / effective)


@pytest.mark.slow
def test_unsound_draws_are_refused_with_the_reason():
    far = fit(gamma, {"rate": constraints.positive}, family="full_rank", progress=False)
    z = far.draws + 6.0
    log_p, by_p = far.target.score(z)
    moved = type("Moved", (), {})()
    moved.target, moved.draws, moved.log_p, moved.log_q = far.target, z, log_p, far.log_q
    moved.scores, moved.converged = (by_p, far.scores[1]), True
    judged = assess(moved)
    with pytest.raises(RunError, match=r"unsound: only .* effective draws"):
        resample(moved, 10, judged)
    with pytest.raises(ValueError, match="n: expected at least 1 draw; got 0"):
        resample(far, 0, assess(far))
    for wrong in (2.5, "3", None, True):
        with pytest.raises(TypeError, match="n: expected int; got"):
            far.resample(wrong)


def test_arviz_gets_one_chain_with_its_densities(found):
    pytest.importorskip("arviz_base")
    tree = to_arviz(found)
    assert tree["posterior"]["rate"].shape == (1, len(found.draws))
    assert float(tree["sample_stats"]["lp"][0, 5]) == float(found.log_p[5])


def test_a_fit_comes_back_from_disk(found, judged, tmp_path):
    folder = save(found, tmp_path / "gamma", judged)
    again = load(folder, found.target)
    for name in ("draws", "log_p", "log_q"):
        assert getattr(again, name).equal(getattr(found, name))
    by_draws = assess(found, search=False)
    assert assess(again, search=False).verdict == by_draws.verdict
    with pytest.raises(RunError, match="has a fit already"):
        save(found, folder, judged)
    save(found, folder, judged, force=True)


def correlated(z):
    return -0.5 * (z.square().sum() + (z[0] - z[1]) ** 2 + (z[2] - z[0]).abs().pow(1.5))


@pytest.mark.sweep(6)
@pytest.mark.parametrize("name", sorted(NAMED))
def test_q_itself_comes_back_from_disk(name, tmp_path):
    """Of every family, away from its start: the same draws from the same seed, the same density."""
    if name == "flow":
        pytest.importorskip("zuko")
    target = Target.of(correlated, 3)
    made = {"low_rank": {"rank": 2}, "student_t": {"degrees": 3}, "mixture": {"components": 2}}
    extra = {"flow": {"layers": 3, "hidden": 5}} | made
    factor = torch.tensor([[1.0, 0, 0], [0.4, 0.9, 0], [0.2, -0.3, 0.8]], dtype=torch.float64)
    frame = Frame.dense(torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64), factor)
    q = NAMED[name](frame, **extra.get(name, {}))
    generator = torch.Generator().manual_seed(0)
    for parameter in q.parameters():
        parameter.data += 0.1 * torch.randn(
            parameter.shape, generator=generator, dtype=torch.float64
        )
    if name == "flow":
        q.widen(0.2)
    one = of_family(target, q)
    again = load(save(one, tmp_path / "q", assess(one)), target)
    twice = load(save(again, tmp_path / "again", assess(again)), target)
    seed = torch.Generator().manual_seed
    for other in (again, twice):
        assert other.sample(50, seed(1)).equal(one.family.sample(50, seed(1)))
        # the same arithmetic; how a matrix product rounds may depend on where memory begins
        here, there = other.log_prob(one.draws), q.log_prob(one.draws).detach()
        torch.testing.assert_close(here, there, rtol=1e-14, atol=1e-14)
    assert again.family.options == q.options


def of_family(target, q):
    """What `save` takes, of a q that nobody fitted."""
    z = q.sample(200, torch.Generator().manual_seed(5))
    log_p, by_p = target.score(z)
    leaf = z.clone().requires_grad_()
    log_q = q.log_prob(leaf)
    (by_q,) = torch.autograd.grad(log_q.sum(), leaf)
    found = type("Found", (), {})()
    found.target, found.family, found.draws, found.log_p = target, q, z, log_p
    found.log_q, found.scores, found.converged = log_q.detach(), (by_p, by_q), True
    return found


def test_a_family_of_ones_own_leaves_its_draws(found, judged, tmp_path):
    class Mine(FullRank):
        name = "mine"

    one = of_family(found.target, Mine(found.family.frame))
    again = load(save(one, tmp_path / "mine", assess(one)), found.target)
    assert again.draws.equal(one.draws)
    with pytest.raises(RunError, match="was not saved"):
        again.sample(3)


def hostile(folder, change):
    path = folder / "fit.safetensors"
    tensors = safetensors.torch.load_file(path)
    record = json.loads((folder / "fit.json").read_text())
    if change == "no record":
        (folder / "fit.json").unlink()
    elif change == "half a file":
        path.write_bytes(path.read_bytes()[:50])
    elif change == "not a record":
        (folder / "fit.json").write_text("[1, 2]")
    elif change == "another format":
        (folder / "fit.json").write_text(json.dumps(record | {"format": 99}))
    elif change == "names of no kind":
        (folder / "fit.json").write_text(json.dumps(record | {"names": [3]}))
    elif change == "one tensor less":
        del tensors["log_q"]
    elif change == "other rows":
        tensors["log_q"] = tensors["log_q"][:7].clone()
    elif change == "NaN":
        tensors["log_p"][0] = math.nan
    elif change == "integers":
        tensors["log_p"] = tensors["log_p"].long()
    elif change == "a tampered density":
        tensors["log_p"] += 1.0
    elif change == "a tampered q":
        tensors["q.mean"] += 1.0
    elif change == "half a q":
        del tensors["q.mean"]
    elif change == "another q":
        words = record | {"family": {"name": "mixture", "options": {"components": 3}}}
        (folder / "fit.json").write_text(json.dumps(words))
    elif change == "no q of this world":
        (folder / "fit.json").write_text(json.dumps(record | {"family": ["x"]}))
    if change in (
        "a tampered q",
        "half a q",
        "one tensor less",
        "other rows",
        "NaN",
        "integers",
        "a tampered density",
    ):
        path.write_bytes(safetensors.torch.save(tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no record", "cannot be read"),
        ("half a file", "not a readable safetensors file"),
        ("not a record", "not the record of a fit"),
        ("another format", "not the record of a fit"),
        ("names of no kind", "not the record of a fit"),
        ("one tensor less", "expected draws, log_p, log_q"),
        ("other rows", "log_q: expected"),
        ("NaN", "no NaN"),
        ("integers", "log_p: expected"),
        ("a tampered density", "log p of this target differs"),
        ("a tampered q", "log q of the stored q differs"),
        ("half a q", "its q cannot be made again"),
        ("another q", "its q cannot be made again"),
        ("no q of this world", "its q cannot be made again"),
    ],
)
def test_hostile_files_are_refused(change, message, found, judged, tmp_path):
    folder = save(found, tmp_path / "gamma", judged)
    hostile(folder, change)
    with pytest.raises(RunError, match=message):
        load(folder, found.target)


def test_another_target_is_refused(found, judged, tmp_path):
    folder = save(found, tmp_path / "gamma", judged)
    with pytest.raises(RunError, match="the target has"):
        load(folder, Target.of(lambda rate: -rate.sum(), {"rate": (2,)}))
    with pytest.raises(RunError, match="differs"):
        load(folder, Target.of(lambda rate: -rate, {"rate": constraints.positive}))


def test_the_errors_of_a_comparison_are_those_of_the_draws():
    """A chain whose every value stands k times has the error of n/k draws."""
    target = Target.of(lambda z: -0.5 * (z * z).sum(), 1)
    generator = torch.Generator().manual_seed(0)
    q, p = (torch.randn(20000, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    for repeats in (1, 10):
        reference = p[: 20000 // repeats].repeat_interleave(repeats, 0)
        row = compare(target, {"z": q}, {"z": reference}).rows[0]
        mean = math.sqrt((1 + repeats) / 20000)  # of a normal; its sd has half the variance
        # of 141 batches: 1/√280 = 6 % of the error, and less of it where q has a part: 4.5 of these
        assert row.mean_off_error == pytest.approx(mean, rel=0.27)
        assert row.sd_ratio_error == pytest.approx(mean / math.sqrt(2), rel=0.27)
