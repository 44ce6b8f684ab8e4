"""AnnData files: dense and sparse matrices, layers, size factors, labels; and what is none."""

import sys

import numpy as np
import pytest

from kullback.core import DataError, MissingExtraError
from kullback.data import load, reload

COUNTS = np.random.default_rng(0).poisson(2.0, (40, 7))
TYPES = np.array(["B", "T", "NK"])
CODES = np.arange(40) % 3


def sparse(file, place, counts, kind):
    """Write a matrix as anndata does (encoding version 0.1.0)."""
    group = file.create_group(place)
    group.attrs.update({"encoding-type": kind, "shape": counts.shape})
    lines = counts if kind == "csr_matrix" else counts.T
    rows, columns = np.nonzero(lines)
    group["data"], group["indices"] = lines[rows, columns].astype(np.float32), columns
    group["indptr"] = np.concatenate([[0], np.cumsum((lines > 0).sum(1))])


def written(path, form, **made):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        if form == "layer":
            file["X"] = np.log1p(COUNTS)
            sparse(file, "layers/counts", COUNTS, "csr_matrix")
        elif form in ("dense", "log"):
            file["X"] = COUNTS.astype(np.float32) if form == "dense" else np.log1p(COUNTS)
        else:
            sparse(file, "X", COUNTS, form)
        obs = file.create_group("obs")
        obs.attrs["_index"] = "_index"
        obs["_index"] = np.arange(40)
        for name, parts in made.items():
            obs.create_group(name).attrs["encoding-type"] = "made"
            for part, array in parts.items():
                texts = h5py.string_dtype() if array.dtype.kind == "U" else None
                obs[name].create_dataset(
                    part, data=array.astype(object if texts else array.dtype), dtype=texts
                )
    return path


def categories(codes=CODES):
    return {"codes": codes.astype(np.int8), "categories": TYPES}


def nullable(values, missing=0):
    return {"values": values, "mask": np.arange(40) < missing}


@pytest.mark.integration
@pytest.mark.parametrize("form", ["dense", "csr_matrix", "csc_matrix", "layer"])
def test_counts_of_every_layout_are_the_same(form, tmp_path):
    path = written(tmp_path / "a.h5ad", form, who=categories())
    data = load(path, label="who", test_fraction=0.3)
    assert data.kind == "counts"
    for rows, names, labels in (
        (data.train, data.train_names, data.train_labels),
        (data.test, data.test_names, data.test_labels),
    ):
        places = [int(name.split("[")[1][:-1]) for name in names]
        assert np.array_equal(rows.numpy(), COUNTS[places])
        said = [data.protocol["labels"][k] for k in labels.tolist()]
        assert said == TYPES[CODES[places]].tolist()
    assert reload(data.protocol).protocol["sha256"] == data.protocol["sha256"]
    which = "layers/counts" if form == "layer" else "X"
    assert data.protocol["notes"] == [f"{which} of an AnnData file"]
    if form == "layer":
        assert load(path, levels="none").kind == "continuous"


@pytest.mark.integration
def test_size_factors_and_texts_of_obs(tmp_path):
    sizes = COUNTS.sum(1) + 0.5
    path = written(
        tmp_path / "a.h5ad", "dense", size_factors=nullable(sizes), batch=nullable(TYPES[CODES])
    )
    data = load(path, label="batch")
    assert data.protocol["sizes"] == "given" and data.protocol["labels"] == sorted(TYPES)
    assert np.allclose(data.train[:, -1], data.train[:, :-1].sum(1) + 0.5)
    assert load(path, size_factors="none").event_shape == (7,)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("form", "columns", "options", "says"),
    [
        ("dense", {}, {"label": "who"}, "expected a column 'who' of obs; got no columns"),
        ("log", {}, {"levels": "counts"}, "the raw counts: not normalised"),
        ("coo_matrix", {}, {}, "expected a dense, csr or csc matrix; got coo_matrix"),
        ("dense", {"who": categories(CODES - 1)}, {"label": "who"}, "14 rows without a value"),
        ("dense", {"who": nullable(CODES, 1)}, {"label": "who"}, "who: 1 row without a value"),
        ("dense", {"who": {"other": CODES}}, {"label": "who"}, "categories; got made"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(form, columns, options, says, tmp_path):
    path = written(tmp_path / "a.h5ad", form, **columns)
    with pytest.raises(DataError, match=says):
        load(path, **options)


@pytest.mark.integration
def test_damage_is_named(tmp_path):
    path = written(tmp_path / "a.h5ad", "csr_matrix")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cannot be read as HDF5: .*truncated"):
        load(path)
    path.write_bytes(b"hello")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        load(path, label="who")


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.h5ad").write_bytes(b"hello")
    with pytest.raises(MissingExtraError, match=r"kullback\[h5ad\]"):
        load(tmp_path / "a.h5ad")
