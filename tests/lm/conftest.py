import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folders of P, Q and R, and a folder of texts, all made once."""
    pytest.importorskip("transformers")
    from lm import tiny_models

    root = tmp_path_factory.mktemp("tiny")
    tiny_models.pair(root)
    texts = root / "texts"
    texts.mkdir()
    for number, line in enumerate(tiny_models.text(12, 40)):
        (texts / f"{number:02d}.txt").write_text(line)
    return root
