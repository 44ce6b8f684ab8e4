"""The released TRL, audited: GKD's divergence, GRPO's KL term, and our loss in its trainer."""

import contextlib
import importlib.util
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kullback.core import ArgumentValueError
from kullback.lm.trl import _Logged
from kullback.tokens import audit, policy_kl_loss

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
    is_main_process = True

    def gather(self, x):
        return x

    def reduce(self, x, reduction):
        return x

    def autocast(self):
        return contextlib.nullcontext()


def stub(trainer, *, corrected=True, level="token"):
    """A GRPO trainer with no more than its loss looks at."""
    made = object.__new__(trainer)
    vars(made).update(
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=0.1,
        args=SimpleNamespace(use_bias_correction_kl=corrected, delta=None, steps_per_generation=1),
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


class Policy(torch.nn.Module):
    """A policy whose forward pass gives these log-probabilities of the completion."""

    def __init__(self, logp):
        super().__init__()
        self.logp = logp

    def forward(self, **_):
        return SimpleNamespace(log_probs=self.logp, entropy=torch.zeros_like(self.logp))


def ours(batch, *, logp=None, steps=1, items=None, beta=0.1):
    """The loss of our mixin, through the trainer's public `compute_loss`, and the trainer."""
    made = stub(example().PolicyKLTrainer)
    made.logged = {mode: _Logged() for mode in ("train", "eval")}
    made.reference, made.beta, made.loss_type = None, beta, "dapo"
    made.current_gradient_accumulation_steps = made.args.steps_per_generation = steps
    items = batch["completion_mask"].sum() if items is None else items
    policy = Policy(batch["logp"] if logp is None else logp)
    return made.compute_loss(policy, batch | {"num_items_in_batch": items}), made


def batch_of(tokens, mask, logp, ref_logp, advantages, old_logp=None):
    return {
        "logp": logp,
        "prompt_ids": torch.arange(len(tokens))[:, None],
        "prompt_mask": torch.ones(len(tokens), 1, dtype=torch.long),
        "completion_ids": tokens,
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old_logp,
        "ref_per_token_logps": ref_logp,
    }


def test_our_loss_in_its_trainer_is_right():
    def loss(logp, ref_logp, old_logp, tokens, mask, advantages):
        return ours(batch_of(tokens, mask, logp, ref_logp, advantages[:, 0], old_logp))[0]

    report = audit(loss)
    for finding in report.findings:
        assert (finding.kind, finding.descends, finding.level) == ("exact", REVERSE, "token")
    assert not report.padding


def unequal(sequences=6, length=12):
    seed = torch.Generator().manual_seed(0)
    logs = -torch.rand(2, sequences, length, generator=seed, dtype=torch.float64) - 0.3
    sizes = torch.tensor([1, 2, 12, 11, 3, 12])
    mask = torch.arange(length) < sizes[:, None]
    return batch_of(mask.long(), mask, logs[0], logs[1], torch.zeros(sequences))


def gradient(batch, micro, loss_of):
    """The gradient by the log-probabilities, accumulated over micro-batches."""
    logp = batch["logp"].clone().requires_grad_()
    for start in range(0, len(logp), micro):
        rows = slice(start, start + micro)
        part = {name: None if x is None else x[rows] for name, x in batch.items()}
        loss_of(part, logp[rows], len(batch["logp"]) // micro).backward()
    return logp.grad


def test_accumulation_over_unequal_sequences_is_one_large_batch():
    batch = unequal()
    items = batch["completion_mask"].sum()

    def mixed(part, logp, steps):
        return ours(part, logp=logp, steps=steps, items=items)[0]

    whole = gradient(batch, 6, mixed)
    assert whole.abs().max() > 0
    for micro in (1, 2, 3):
        torch.testing.assert_close(gradient(batch, micro, mixed), whole, rtol=1e-12, atol=0)

    def by_token(part, logp, steps):  # what a micro-batch's own mean would do
        found = policy_kl_loss(
            log_current=logp,
            log_reference=part["ref_per_token_logps"],
            mask=part["completion_mask"].bool(),
            normalise="token",
        )
        return found.loss / steps

    off = (gradient(batch, 2, by_token) - gradient(batch, 6, by_token)).norm()
    assert off > 0.1 * whole.norm() / 0.1  # beta


def test_the_log_has_the_kl_of_all_micro_batches_with_its_interval(monkeypatch):
    from transformers import Trainer

    batch = unequal()
    seen = []
    monkeypatch.setattr(Trainer, "log", lambda _self, logs, _start=None: seen.append(logs))
    _, made = ours(batch)
    made.log_completions = False
    made.log({"loss": 1.0})
    x = (batch["ref_per_token_logps"] - batch["logp"])[batch["completion_mask"].bool()]
    assert seen[0]["kl"] == pytest.approx(float((x.exp() - 1 - x).mean()), rel=1e-12)
    assert seen[0]["kl/low"] < seen[0]["kl"] < seen[0]["kl/high"]
    assert "kl/standard_error" not in seen[0]  # of six prompts
    made.log({"loss": 1.0})
    assert "kl" not in seen[1]


def test_a_token_that_the_sampler_could_not_score_has_the_trainers_own():
    """vLLM gives NaN there; TRL's weights take the log-probability from before the update."""
    batch = unequal()
    old = batch["logp"] - 0.1
    sampled = torch.where(torch.arange(12) == 2, torch.nan, batch["logp"] - 0.2)
    known = torch.where(torch.arange(12) == 2, old, sampled)
    found, expected = (
        ours(batch | {"old_per_token_logps": old, "sampling_per_token_logps": x})[0]
        for x in (sampled, known)
    )
    assert found == expected
    alone = ours(batch | {"sampling_per_token_logps": sampled})[0]
    known = torch.where(torch.arange(12) == 2, batch["logp"], sampled)
    assert alone == ours(batch | {"sampling_per_token_logps": known})[0]


def test_accumulation_without_the_window_s_tokens_is_refused():
    made = stub(example().PolicyKLTrainer)
    made.logged = {"train": _Logged()}
    made.reference, made.current_gradient_accumulation_steps = None, 2
    batch = unequal()
    with pytest.raises(ArgumentValueError, match="num_items_in_batch"):
        made.compute_loss(Policy(batch["logp"]), batch)


@pytest.mark.parametrize("beta", [0.1, 0.0])
def test_our_loss_trains_in_its_trainer(tmp_path, monkeypatch, beta):
    monkeypatch.chdir(tmp_path)
    module, options = example(), {}
    if beta == 0.0:  # no reference of the trainer's: ours is measured beside it
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(vocab_size=13, n_positions=32, n_embd=16, n_layer=1, n_head=2)
        options["reference"] = GPT2LMHeadModel(config)
    trainer = module.main(steps=2, beta=beta, **options)
    assert trainer.state.global_step == 2
    assert trainer.beta == beta
    kl = trainer.policy_kl
    assert float(kl.loss.detach()) > 0  # after one step the policy has left its reference
    assert kl.divergence.startswith("KL(policy ‖ reference) of each token")
    entries = [entry for entry in trainer.state.log_history if "kl" in entry]
    assert len(entries) == 2
    assert all(entry["kl/low"] < entry["kl"] < entry["kl/high"] for entry in entries)


def test_without_a_reference_the_trainer_is_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = example().main(steps=1, beta=0.0)
    assert trainer.policy_kl is None
    assert not any("kl" in entry for entry in trainer.state.log_history)
