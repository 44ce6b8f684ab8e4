"""Our policy KL in TRL's GRPO trainer: one mixin, and a few steps of it.

TRL keeps its sampling, rewards, advantages and reference model; `beta` times the KL of
`kullback.lm.trl` takes the place of its own term: the right gradient, on-policy or off, also where
gradients are accumulated over unequal sequences. The log has `kl` with its error.
Run: python examples/trl_policy_kl.py   (needs: pip install trl)
"""

import tempfile

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from kullback.lm.trl import PolicyKLMixin


class PolicyKLTrainer(PolicyKLMixin, GRPOTrainer):
    """GRPO whose KL term, times `beta`, descends KL(policy‖reference)."""


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


def main(steps=2, **options):
    folder = tempfile.mkdtemp()
    tokenizer = tiny_model_and_tokenizer(folder)
    chosen = {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 8,
        "beta": 0.1,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "bf16": False,
    }
    reference = options.pop("reference", None)
    settings = GRPOConfig(**chosen | options)
    trainer = PolicyKLTrainer(
        model=folder,
        reward_funcs=lambda completions, **_: [float(text.count("a")) for text in completions],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["a b", "c d", "e f", "g h"]}),
        processing_class=tokenizer,
        reference=reference,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    done = main()
    print(done.policy_kl.divergence)
    for entry in done.state.log_history[:-1]:
        print({name: entry[name] for name in entry if name.startswith("kl")})
