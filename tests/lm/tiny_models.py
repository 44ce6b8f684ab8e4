"""A pair of small transformers models with one tokenizer, made in the test."""

import torch

WORDS = "the cat sat on a mat and saw it run far from home by night"


def tokenizer(words=WORDS, *, chat=True, extra=()):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "<user>", "<assistant>", *words.split(), *extra]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>")
    if chat:
        found.chat_template = (
            "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
            "{% if add_generation_prompt %}<assistant> {% endif %}"
        )
    return found


def llama(vocab, seed=0, **options):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocab,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | options)).eval()


def moved(module, amount=0.02, seed=1):
    """The same model with noise on its weights, as quantising leaves it."""
    import copy

    generator = torch.Generator().manual_seed(seed)
    found = copy.deepcopy(module)
    with torch.no_grad():
        for weight in found.parameters():
            weight += amount * torch.randn(weight.shape, generator=generator)
    return found


def pair(folder, *, amount=0.02):
    """Save P and Q with their tokenizer; return their folders."""
    made = tokenizer()
    p = llama(len(made))
    for name, module in (("p", p), ("q", moved(p, amount)), ("r", moved(p, 2 * amount, seed=2))):
        module.save_pretrained(folder / name)
        made.save_pretrained(folder / name)
    return folder / "p", folder / "q"


def text(count, length, seed=0):
    """Lines of random words, one a document."""
    generator = torch.Generator().manual_seed(seed)
    words = WORDS.split()
    picks = torch.randint(len(words), (count, length), generator=generator).tolist()
    return [" ".join(words[i] for i in row) for row in picks]
