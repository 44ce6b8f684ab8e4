"""`kullback fit` of models of other programs: whose a model is, its data, errors in both."""

import json
import sys
from types import FunctionType, ModuleType

import pytest
import torch

from kullback.cli import fit
from kullback.cli.main import main
from kullback.cli.user_code import read_target
from kullback.core import DataError
from stan_programs import EFFECTS_STAN
from stan_programs import SCHOOLS as STAN

SCHOOLS = {"sigma": [15.0, 10, 16, 11, 9, 11, 10, 18], "y": [28.0, 8, -3, 7, -1, 1, 18, 12]}
HEAD = {
    "numpyro": "import numpyro\nimport numpyro.distributions as dist",
    "pyro": "import pyro as numpyro\nimport pyro.distributions as dist",
}
SAMPLED = """
def effects(mu, tau):
    return mu + tau * numpyro.sample("eta", dist.Normal(0, 1))

def model(sigma, y=None):
    mu, tau = numpyro.sample("mu", dist.Normal(0, 5)), numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        numpyro.sample("y", dist.Normal(effects(mu, tau), sigma), obs=y)
"""
PYMC = """
import pymc as pm

def build(sigma, y):
    with pm.Model() as model:
        mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
        pm.Normal("y", mu + tau * pm.Normal("eta", shape=8), sigma, observed=y)
    return model
"""


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def write(folder, name, text):
    (folder / name).write_text(text if isinstance(text, str) else json.dumps(text))
    return folder / name


@pytest.fixture
def packages(monkeypatch):
    """Modules under the names of the other programs, with a `sample` of their own."""
    for name in ("numpyro", "pyro", "pymc"):
        whole, part = ModuleType(name), ModuleType(f"{name}.distributions")
        code = compile("def sample(*_): return 0.0", name, "exec").co_consts[0]
        whole.sample = FunctionType(code, {"__name__": f"{name}.primitives"}, "sample")
        whole.distributions = part
        monkeypatch.setitem(sys.modules, name, whole)
        monkeypatch.setitem(sys.modules, part.__name__, part)


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (f"{HEAD['numpyro']}\n{SAMPLED}", "numpyro"),
        (f"{HEAD['pyro']}\n{SAMPLED}", "pyro"),
        ("from pyro import sample\ndef model(): sample('x', None)", "pyro"),
        ("def model():\n    import numpyro\n    numpyro.sample('x', None)", "numpyro"),
        ("import pyro\ndef part(): pyro.sample('x', None)\ndef model(): part()", "pyro"),
        ("import pyro\ndef model():\n    [pyro.sample('x', None) for _ in range(3)]", "pyro"),
        (PYMC.replace("build", "model"), "pymc"),
        ("import pyro.distributions as dist\nparameters = 1\ndef model(z): dist.Normal", ""),
        ("import numpyro\nparameters = 1\ndef model(z): return -z @ z", ""),
    ],
)
def test_whose_a_model_is(text, program, packages, tmp_path):
    assert read_target(str(write(tmp_path, "model.py", text))).program == program


def test_a_function_of_two_programs_is_asked_about(packages, tmp_path):
    text = "import pyro, numpyro\ndef model(): pyro.sample('x'), numpyro.sample('x')"
    with pytest.raises(DataError, match="model: samples with NumPyro and with Pyro"):
        read_target(str(write(tmp_path, "model.py", text)))


def test_a_log_density_takes_its_data_by_name(tmp_path):
    text = "parameters = {'mu': ()}\ndef log_density(mu, x): return -((x - mu) ** 2).sum() / 2"
    path, data = write(tmp_path, "normal.py", text), write(tmp_path, "x.json", {"x": [1.0, 2, 6]})
    target = fit._target(read_target(str(path), data=data))
    z = torch.tensor([[3.0], [0.0]], dtype=torch.float64)
    assert target.log_density(z).tolist() == [-7.0, -20.5]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", "[1, 2]", "expected an object with values by name"),
        ("x.json", "{", "x.json: not JSON"),
        ("x.csv", "x\n1", "expected a .json file with values by name; got '.csv'"),
        ("x.json", {"z": 1.0}, "(mu, x) that are no parameters; got ['z']"),
        ("x.json", {"x": [1.0], "mu": 2.0}, "(mu, x) that are no parameters; got ['mu']"),
        ("x.json", {}, "expected a function of (mu=); got log_density(mu, x)"),
        ("none.json", None, "none.json: cannot be read: No such file"),
    ],
)
def test_data_that_do_not_fit_are_named(name, content, words, tmp_path, capsys):
    text = "parameters = {'mu': ()}\ndef log_density(mu, x): return -((x - mu) ** 2).sum() / 2"
    path = write(tmp_path, "normal.py", text)
    data = tmp_path / name if content is None else write(tmp_path, name, content)
    assert run("fit", path, data) == 3
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("program", ["numpyro", "pyro", "pymc"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "model(sigma, y); got none. Try: --data FILE.json with a value for each name"),
        ({"y": [1.0]}, "got ['y']: missing a required argument: 'sigma'"),
        ({"y": [1.0], "sigma": [1.0], "w": 1}, "got an unexpected keyword argument 'w'"),
    ],
)
def test_data_that_a_model_does_not_take(program, content, words, packages, tmp_path, capsys):
    needed = SAMPLED.replace("y=None", "y")
    text = PYMC.replace("build", "model") if program == "pymc" else f"{HEAD[program]}\n{needed}"
    path = write(tmp_path, "model.py", text)
    data = [] if content is None else ["--data", write(tmp_path, "x.json", content)]
    assert run("fit", path, *data) == 3
    assert words in capsys.readouterr().err


def test_what_another_program_refuses_is_one_line_and_a_bug_here_is_a_traceback(
    packages, tmp_path, monkeypatch
):
    path = write(tmp_path, "model.py", f"{HEAD['pyro']}\n{SAMPLED}")
    file = read_target(str(path), data=write(tmp_path, "x.json", SCHOOLS))

    def theirs(model, **data):
        return json.loads("[1, 2")

    monkeypatch.setattr("kullback.variational.Target.from_pyro", theirs)
    with pytest.raises(DataError, match=r"model\.py: pyro refuses .* data: JSONDecode"):
        fit._target(file)
    tensors = fit._tensors
    monkeypatch.setattr("kullback.cli.fit._tensors", lambda given: tensors(None))
    with pytest.raises(AttributeError):
        fit._target(file)


def test_what_another_program_raises_in_a_fit_is_one_line(packages, tmp_path):
    path = write(tmp_path, "model.py", f"{HEAD['pyro']}\n{SAMPLED}")
    file = read_target(str(path), data=write(tmp_path, "x.json", SCHOOLS))
    words = r"pyro refuses .* data: ZeroDivisionError"
    with pytest.raises(DataError, match=words), fit._evaluated_by(file, "pyro"):
        exec("1 / 0", {"__name__": "pyro.infer"})
    with pytest.raises(ZeroDivisionError), fit._evaluated_by(file, "pyro"):
        exec("1 / 0", {"__name__": "elsewhere"})


def test_a_model_of_another_program_may_simulate(packages, tmp_path, capsys):
    simulates = "def simulate(generator): return {'mu': 1.0}, {'y': [2.0]}"
    path = write(tmp_path, "model.py", f"{HEAD['pyro']}\n{SAMPLED}\n{simulates}")
    assert read_target(str(path)).simulate(None) == ({"mu": 1.0}, {"y": [2.0]})
    path = write(tmp_path, "model.stan", STAN)
    assert run("fit", path, "--sbc", 200) == 3
    assert "Try: in Python, calibrate(simulate, lambda data: Target" in capsys.readouterr().err


def test_lists_of_numbers_become_arrays_and_other_lists_stay():
    mixed, ragged = ["a", 1.0], [[1.0], [2.0, 3.0]]
    given = {"x": [1, 2], "w": [[0.5]], "n": 3, "names": ["a"], "mixed": mixed, "ragged": ragged}
    found = fit._tensors(given)
    assert found["x"].tolist() == [1, 2] and found["x"].dtype == torch.int64
    assert found["w"].tolist() == [[0.5]] and found["w"].dtype == torch.float64
    assert {k: found[k] for k in ("n", "names", "mixed", "ragged")} == {
        "n": 3,
        "names": ["a"],
        "mixed": mixed,
        "ragged": ragged,
    }


def test_a_file_without_the_model_lists_what_it_has(packages, tmp_path, capsys):
    path = write(tmp_path, "model.py", f"{HEAD['pyro']}\n{SAMPLED}")
    assert run("fit", f"{path}:modell") == 3
    assert "no function or model 'modell' (it has effects, model)" in capsys.readouterr().err
    assert run("fit", tmp_path / "no.stan") == 3
    assert "no such file. Try: kullback fit model.stan data.json" in capsys.readouterr().err


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the programs' own imports
@pytest.mark.parametrize("program", ["numpyro", "pyro", "pymc", "stan"])
def test_a_model_with_its_data_is_fitted(program, tmp_path, capsys):
    pytest.importorskip({"stan": "httpstan"}.get(program, program))
    text = {"stan": STAN, "pymc": PYMC}.get(program) or f"{HEAD[program]}\n{SAMPLED}"
    path = write(tmp_path, "model.stan" if program == "stan" else "model.py", text)
    place = f"{path}:build" if program == "pymc" else path
    write(tmp_path, "effects.stan", EFFECTS_STAN)
    data = write(tmp_path, "data.json", SCHOOLS | ({"J": 8} if program == "stan" else {}))
    assert run("fit", place, "--data", data, "--json", "-q") == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["level"] == "trust"
    assert fields["compile_seconds"] > 0 or program == "pyro"
    mu = next(row for row in fields["parameters"] if row["name"] == "mu")
    assert abs(mu["mean"] - 4.4) < 0.4 * 3.3  # 10,000 draws of NUTS: 4.4, sd 3.3; bound of trust
