"""The released TRL, audited: GKD's divergence, GRPO's KL term, and our loss in its trainer."""

import importlib.util
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kullback.tokens import audit

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
EXAMPLE = Path(__file__).parents[2] / "examples" / "trl_policy_kl.py"
REVERSE, FORWARD = "KL(policy‖ref)", "KL(ref‖policy)"


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """One thread, no network; skipped where TRL is not installed."""
    pytest.importorskip("trl")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)  # its thread would outlive the test
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("beta", "name"), [(0, FORWARD), (0.25, "JSD(0.25)"), (0.5, "JSD(½)"), (1, REVERSE)]
)
def test_gkd(beta, name):
    gkd = pytest.importorskip("trl.experimental.gkd")

    def loss(student_logits, teacher_logits, labels):
        return gkd.GKDTrainer.generalized_jsd_loss(
            student_logits, teacher_logits, labels=labels, beta=beta
        )

    report = audit(loss)
    for finding in report.findings:
        assert (finding.kind, finding.descends, finding.level) == ("exact", name, "token")
        assert finding.error < 1e-10


class Accelerator:
    num_processes = 1

    def gather(self, x):
        return x

    def reduce(self, x, reduction):
        return x


def stub(trainer, *, corrected=True, level="token"):
    """A GRPO trainer with no more than its loss looks at."""
    made = object.__new__(trainer)
    vars(made).update(
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=0.1,
        args=SimpleNamespace(use_bias_correction_kl=corrected, delta=None),
        epsilon_low=0.2,
        epsilon_high=0.2,
        loss_type="grpo",
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=Accelerator(),
    )
    return made


def audited(trainer, monkeypatch, **how):
    """Audit the trainer's own `_compute_loss`, the model's forward pass replaced by the world's."""
    from trl import GRPOTrainer

    now = {}
    monkeypatch.setattr(
        GRPOTrainer,
        "_get_per_token_logps_and_entropies",
        lambda *_, **__: (now["logp"], torch.zeros_like(now["logp"]), None),
    )

    def loss(logp, ref_logp, old_logp, tokens, mask, advantages):
        now["logp"] = logp
        inputs = {
            "prompt_ids": tokens[:, :0],
            "prompt_mask": mask[:, :0],
            "completion_ids": tokens,
            "completion_mask": mask.long(),
            "advantages": advantages[:, 0],
            "old_per_token_logps": old_logp,
            "ref_per_token_logps": ref_logp,
        }
        return stub(trainer, **how)._compute_loss(None, inputs)

    return audit(loss)


def test_grpo_without_its_correction_descends_the_other_direction(monkeypatch):
    from trl import GRPOTrainer

    report = audited(GRPOTrainer, monkeypatch, corrected=False)
    assert (report.on_policy.kind, report.on_policy.descends) == ("exact", FORWARD)
    assert report.on_policy.value == REVERSE
    assert report.off_policy.kind == "none"
    assert report.on_policy.scale[4] == pytest.approx(0.1 / 4)  # beta, a mean over 4 tokens
    assert report.lengths > 0.01  # which weighs short sequences more


def test_grpo_with_its_correction_is_right(monkeypatch):
    from trl import GRPOTrainer

    report = audited(GRPOTrainer, monkeypatch, corrected=True)
    for finding in report.findings:
        assert (finding.kind, finding.descends, finding.level) == ("exact", REVERSE, "token")


def test_grpo_with_sequence_weights_is_not(monkeypatch):
    from trl import GRPOTrainer

    report = audited(GRPOTrainer, monkeypatch, corrected=True, level="sequence")
    assert report.on_policy.kind == report.off_policy.kind == "none"


def example():
    spec = importlib.util.spec_from_file_location("trl_policy_kl", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_our_loss_in_its_trainer_is_right(monkeypatch):
    report = audited(example().PolicyKLTrainer, monkeypatch)
    for finding in report.findings:
        assert (finding.kind, finding.descends, finding.level) == ("exact", REVERSE, "token")
    assert not report.padding


def test_our_loss_trains_in_its_trainer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = example().main(steps=2)
    assert trainer.state.global_step == 2
    assert trainer.beta > 0
    kl = trainer.kl
    assert float(kl.loss.detach()) > 0  # after one step the policy has left its reference
    assert kl.divergence.startswith("KL(policy ‖ reference) of each token")
