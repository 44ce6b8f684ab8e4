"""Our policy KL in TRL's GRPO trainer: a subclass of a few lines, and two steps of it.

TRL keeps its sampling, rewards and advantages; its own KL term is switched off and
`policy_kl_loss` takes its place: the right gradient, on-policy or off, of
the divergence that is named. Run: python examples/trl_policy_kl.py   (needs: pip install trl)
"""

import tempfile

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from kullback.tokens.losses import policy_kl_loss


class PolicyKLTrainer(GRPOTrainer):
    """GRPO whose KL term, times the same `beta`, descends KL(policy‖reference)."""

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self.latest = found[0]
        return found

    def _compute_loss(self, model, inputs):
        beta, self.beta = self.beta, 0.0
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        self.kl = policy_kl_loss(
            log_current=self.latest,
            log_reference=inputs["ref_per_token_logps"],
            log_behaviour=inputs.get("old_per_token_logps"),
            mask=inputs["completion_mask"].bool(),
            normalise="token",
        )
        return loss + beta * self.kl.loss / self.current_gradient_accumulation_steps


def tiny_model_and_tokenizer(folder):
    """Save a tiny model, which TRL loads again as its own reference; return its tokenizer."""
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefghij"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )
    config = GPT2Config(
        vocab_size=len(words), n_positions=32, n_embd=16, n_layer=1, n_head=2,
        bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return fast


def main(steps=2):
    folder = tempfile.mkdtemp()
    tokenizer = tiny_model_and_tokenizer(folder)
    settings = GRPOConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        beta=0.1,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        bf16=False,
    )
    trainer = PolicyKLTrainer(
        model=folder,
        reward_funcs=lambda completions, **_: [float(text.count("a")) for text in completions],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["a b", "c d", "e f", "g h"]}),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    done = main()
    print(done.kl.divergence, float(done.kl.loss.detach()))
