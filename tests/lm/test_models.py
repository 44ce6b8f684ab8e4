"""Checkpoints, adapters and GGUF files as hidden states and a head; those that are refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from kullback.core import ArgumentValueError, DataError
from kullback.lm.documents import Document
from kullback.lm.model_drift import drift
from kullback.lm.models import load_models
from lm import tiny_models

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient:FutureWarning")  # peft's own
TEXT = [
    Document(str(n), torch.randint(19, (30,), generator=torch.Generator().manual_seed(n)))
    for n in range(12)
]


def logits_of(module, ids):
    with torch.inference_mode():
        return module(ids[None]).logits[0, :-1].double().log_softmax(-1)


def kl_of(p, q, documents=TEXT):
    pairs = [(logits_of(p, one.ids), logits_of(q, one.ids)) for one in documents]
    return torch.cat([(a.exp() * (a - b)).sum(-1) for a, b in pairs]).numpy()


def adapter(base, folder, name, targets, seed, **options):
    """Save a LoRA adapter with random weights; return the model with it, alone."""
    peft = pytest.importorskip("peft")
    module = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    made = peft.get_peft_model(
        module, peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", **options)
    )
    with torch.no_grad():
        for weight in (one for one in made.parameters() if one.requires_grad):
            weight += 0.3 * torch.randn_like(weight)
    made.save_pretrained(folder / name, save_embedding_layers=False)
    return made.eval()


def test_adapters_share_the_weights_of_their_base_and_leave_it_as_it_was(tiny, tmp_path):
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny / "p")
    body = adapter(tiny / "p", tmp_path, "body", ["q_proj", "down_proj"], 1)
    head = adapter(tiny / "p", tmp_path, "head", ["q_proj", "lm_head"], 2)
    whole = adapter(tiny / "p", tmp_path, "whole", ["q_proj"], 3, modules_to_save=["lm_head"])
    p, *qs = load_models(tiny / "p", [tmp_path / "body", tmp_path / "head"])
    with pytest.raises(DataError, match="Try: this adapter in a call of its own"):
        list(load_models(tiny / "p", [tmp_path / "head", tmp_path / "whole"]))
    qs += list(load_models(tiny / "p", [tmp_path / "whole"]))[1:]
    assert qs[0].head.data_ptr() == p.head.data_ptr()
    found = drift(p, qs, TEXT)
    for number, alone in enumerate((body, head, whole)):
        np.testing.assert_allclose(
            found.column("kl", number), kl_of(base, alone), rtol=1e-4, atol=1e-6
        )
        assert found.mean("kl", number).estimate.value > 1e-3
    again = torch.cat([logits_of(base, one.ids) for one in TEXT])
    ids = torch.cat([one.ids[1:] for one in TEXT])
    truth = again.gather(1, ids[:, None])[:, 0]
    np.testing.assert_allclose(found.column("p_log_prob"), truth.numpy(), atol=1e-5)


def test_an_adapter_may_come_first(tiny, tmp_path):
    alone = adapter(tiny / "p", tmp_path, "head", ["v_proj", "lm_head"], 2)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny / "p")
    p, q = load_models(tmp_path / "head", [tiny / "p"])
    np.testing.assert_allclose(
        drift(p, q, TEXT).column("kl"), kl_of(alone, base), rtol=1e-4, atol=1e-6
    )


def test_adapters_that_cannot_be_measured(tiny, tmp_path):
    peft = pytest.importorskip("peft")
    module = transformers.AutoModelForCausalLM.from_pretrained(tiny / "p")
    made = peft.get_peft_model(
        module, peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    )
    made.save_pretrained(tmp_path / "prompt")
    with pytest.raises(DataError, match="expected an adapter of weights"):
        list(load_models(tiny / "p", [tmp_path / "prompt"]))
    adapter(tiny / "p", tmp_path, "cut", ["q_proj"], 1)
    file = tmp_path / "cut" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="peft cannot put it on"):
        list(load_models(tiny / "p", [tmp_path / "cut"]))


FAMILIES = {
    "gpt2": ("GPT2Config", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}),
    "gemma2": (
        "Gemma2Config",
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8,
         "num_attention_heads": 2, "num_key_value_heads": 1, "final_logit_softcapping": 3.0},
    ),
    "cohere": (
        "CohereConfig",
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "logit_scale": 0.5,
         "num_attention_heads": 2},
    ),
    "granite": (
        "GraniteConfig",
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "logits_scaling": 4.0,
         "num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    "phi": (  # a head with a bias
        "PhiConfig",
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
         "num_attention_heads": 2},
    ),
}  # fmt: skip


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", FAMILIES)
def test_families_with_other_heads(tmp_path, name):
    kind, options = FAMILIES[name]
    config = getattr(transformers, kind)(
        vocab_size=19, bos_token_id=1, eos_token_id=2, pad_token_id=0, **options
    )
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.2 * torch.randn_like(weight)
    other = tiny_models.moved(made, 0.05)
    made.save_pretrained(tmp_path / "p")
    other.save_pretrained(tmp_path / "q")
    p, q = load_models(tmp_path / "p", [tmp_path / "q"])
    np.testing.assert_allclose(
        drift(p, q, TEXT).column("kl"), kl_of(made, other), rtol=1e-3, atol=1e-6
    )


def test_a_checkpoint_of_shards_and_one_that_is_damaged(tiny, tmp_path):
    module = transformers.AutoModelForCausalLM.from_pretrained(tiny / "q")
    module.save_pretrained(tmp_path / "q", max_shard_size="4KB")
    shards = sorted((tmp_path / "q").glob("*.safetensors"))
    assert len(shards) > 1
    p, q = load_models(tiny / "p", [tmp_path / "q"])
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny / "p")
    np.testing.assert_allclose(
        drift(p, q, TEXT).column("kl"), kl_of(base, module), rtol=1e-3, atol=1e-6
    )
    whole = shards[0].read_bytes()
    shards[0].write_bytes(whole[:-50])
    with pytest.raises(DataError, match="transformers cannot load it"):
        list(load_models(tmp_path / "q", []))
    shards[0].unlink()
    with pytest.raises(DataError, match="transformers cannot load it"):
        list(load_models(tmp_path / "q", []))


def test_weights_that_are_missing_are_not_made_up(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny / "p", tmp_path / "p")
    file = tmp_path / "p" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(DataError, match=r"1 are missing .*up_proj"):
        list(load_models(tmp_path / "p", []))


def gguf_file(path, module, words):
    """Write a Llama model as llama.cpp does: rows of q and k in pairs, not halves."""
    gguf = pytest.importorskip("gguf")
    config, out = module.config, gguf.GGUFWriter(path, "llama")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(10_000.0)
    out.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    out.add_vocab_size(config.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_token_list(words)
    out.add_token_merges(["t h"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
             "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
             "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
             "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
             "model.layers": "blk"}  # fmt: skip
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in module.state_dict().items():
        values = weight.numpy()
        for part, count in heads.items():
            if part in name:
                halves = values.reshape(count, 2, -1, values.shape[-1])
                values = halves.swapaxes(1, 2).reshape(values.shape)
        for long, short in names.items():
            name = name.replace(long, short)
        out.add_tensor(name, np.ascontiguousarray(values))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def test_a_gguf_file_is_the_model_that_was_written(tiny, tmp_path, capsys):
    module = transformers.AutoModelForCausalLM.from_pretrained(tiny / "q")
    words = ["th", *"abcdefghijklmnopqrstuvwxyz"][: module.config.vocab_size - 1]
    gguf_file(tmp_path / "q.gguf", module, [*words, "t"])
    p = next(iter(load_models(tiny / "p", [])))
    capsys.readouterr()
    q = next(iter(load_models(tmp_path / "q.gguf", [])))
    assert capsys.readouterr().err == ""
    found = drift(replace(p, tokenizer=None), q, TEXT)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny / "p")
    np.testing.assert_allclose(found.column("kl"), kl_of(base, module), rtol=1e-3, atol=1e-6)
    content = (tmp_path / "q.gguf").read_bytes()
    (tmp_path / "q.gguf").write_bytes(content[:-900])
    with pytest.raises(DataError, match=r"q.gguf: transformers cannot load it: .*Try: copy"):
        next(iter(load_models(tmp_path / "q.gguf", [])))


def test_what_is_no_checkpoint(tiny, tmp_path):
    with pytest.raises(DataError, match="expected a checkpoint's folder"):
        list(load_models(tmp_path, []))
    with pytest.raises(DataError, match="expected a GGUF file; got no file"):
        list(load_models(tmp_path / "none.gguf", []))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(DataError, match="transformers cannot load it"):
        list(load_models(tmp_path / "bad.gguf", []))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(DataError, match="transformers cannot load it"):
        list(load_models(tmp_path / "x", []))


def test_models_that_do_more_to_their_logits_are_refused(tiny, tmp_path, monkeypatch):
    forward = transformers.LlamaForCausalLM.forward

    def biased(self, *args, **options):
        found = forward(self, *args, **options)
        found.logits = found.logits + torch.linspace(0, 1, found.logits.shape[-1])
        return found

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", biased)
    with pytest.raises(DataError, match="LlamaForCausalLM does more to them"):
        list(load_models(tiny / "p", []))


def test_tokenizers_that_differ(tiny, tmp_path):
    shutil.copytree(tiny / "q", tmp_path / "q")
    words = tiny_models.WORDS.split()
    tiny_models.tokenizer(" ".join([*words[:3], words[4], words[3], *words[5:]])).save_pretrained(
        tmp_path / "q"
    )
    p, q = load_models(tiny / "p", [tmp_path / "q"])
    with pytest.raises(DataError, match=r"expected one tokenizer; got 'on' and 'a' for id 7"):
        drift(p, q, TEXT)
    lower = tiny_models.tokenizer()
    from tokenizers import normalizers

    lower.backend_tokenizer.normalizer = normalizers.Prepend("the ")
    lower.save_pretrained(tmp_path / "q")
    p, q = load_models(tiny / "p", [tmp_path / "q"])
    with pytest.raises(DataError, match="for token 0 of a text"):
        drift(p, q, TEXT)


def test_a_vocabulary_padded_on_one_side(tiny, tmp_path):
    module = transformers.AutoModelForCausalLM.from_pretrained(tiny / "q")
    module.resize_token_embeddings(32, mean_resizing=False)
    module.save_pretrained(tmp_path / "q")
    p, q = load_models(tiny / "p", [tmp_path / "q"])
    with pytest.raises(ArgumentValueError, match=r"19 \(p\) and 32 \(q\).*vocab=19"):
        drift(p, q, TEXT)
    base, other = (transformers.AutoModelForCausalLM.from_pretrained(tiny / n) for n in "pq")
    found = drift(p, q.cut(19), TEXT)
    np.testing.assert_allclose(found.column("kl"), kl_of(base, other), rtol=1e-3, atol=1e-6)


def test_ids_beyond_the_vocabulary(tiny):
    p, q = load_models(tiny / "p", [tiny / "q"])
    with pytest.raises(DataError, match="expected token ids below 19"):
        drift(p, q, [Document("a", torch.tensor([1, 2, 19]))])
