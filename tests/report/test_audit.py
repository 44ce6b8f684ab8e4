"""The audit as text and as a page: what is in them, and that a name cannot break out."""

import pytest
import torch

from kullback.report import audit_page
from kullback.report.audit_page import Strip, pushes, strips
from kullback.tokens import audit


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def k1(logp, ref_logp):
    return logp - ref_logp


def test_text_has_the_verdict_and_every_group():
    found = audit(k1)
    text = audit_page.audit_table(found)
    assert text.startswith("k1, a loss: On-policy it descends nothing")
    for group in audit_page.GROUPS:
        assert group.title in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.slow
def test_the_page_is_whole_and_the_same_every_time():
    found = audit(k1)
    page = audit_page.render(found)
    assert page == audit_page.render(audit(k1))
    assert page.endswith("</html>\n")
    for name in ("verdict", "pictures", "worlds", "guide"):
        assert f'<section id="{name}">' in page
    assert page.count("<tr>") == 17


@pytest.mark.slow
def test_names_are_escaped():
    def loss(logp, ref_logp):
        return (logp - ref_logp) ** 2

    loss.__name__ = "<script>x</script>"
    assert "<script" not in audit_page.render(audit(loss))


@pytest.mark.slow
def test_pictures_bear_what_is_not_finite():
    assert "nan" not in pushes([(-1.0, float("nan")), (0.0, 0.0), (1.0, float("inf"))])
    drawn = strips([Strip("a", [(0.0, "a"), (1e9, "b")])], low=0.1, high=10, label="l", unit="u")
    assert "nan" not in drawn
    assert "inf" not in drawn
    broken = audit(lambda logp, ref_logp: (logp - ref_logp).sqrt())
    assert "inf or NaN" in audit_page.render(broken)
