"""Models of other architectures than Llama: measured as transformers itself, text by text, or refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import tiny_tokenizer
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from curricula.errors import UserError
from curricula.eval.attacks.ablation import Search, Sets, blocks_of, without_direction
from curricula.eval.attacks.losses import Attack, gradients
from curricula.eval.config import Ablation, Gcg
from curricula.eval.decoding.sampling import generate, likeliest
from curricula.eval.decoding.settings import Greedy
from curricula.eval.models import LoadedModel, load_model
from curricula.progress import silent

SIZES = dict(
    vocab_size=400,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.2,
    eos_token_id=0,
    pad_token_id=None,
)
PARALLEL = dict(head_dim=8, partial_rotary_factor=0.5)
LATENT = dict(
    num_key_value_heads=4,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=8,
    first_k_dense_replace=2,
)
LONG = dict(
    original_max_position_embeddings=24,
    rope_parameters=dict(
        rope_type="longrope",
        rope_theta=10000.0,
        short_factor=[1.0] * 4,
        long_factor=[9.0] * 4,
        original_max_position_embeddings=24,
    ),
)
FULL = dict(head_dim=16, query_pre_attn_scalar=16, layer_types=["full_attention"] * 2)
PROMPTS = [[7, 60, 9], [5 + 7 * i % 300 for i in range(20)], [90]]


def load(folder: Path, kind: str, **changes: Any) -> LoadedModel:
    """A random model of that kind, without end marks."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SIZES | changes))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return dataclasses.replace(load_model(folder, "base", "cpu", "float32"), end_ids=())


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen3", {"head_dim": 16}),
        ("gemma", {"head_dim": 16}),
        ("smollm3", {"no_rope_layers": [1, 0]}),
        ("glm4", PARALLEL),
        ("mixtral", {"num_local_experts": 4, "sliding_window": 24}),
        ("deepseek_v3", LATENT),
        ("phi3", LONG),
    ],
)
@torch.no_grad()
def test_decoding_computes_what_the_model_does_with_each_text_alone(tmp_path, kind, changes):
    loaded, reference, seen = load(tmp_path, kind, **changes), plain(tmp_path), {}

    def choose(logits, answers, steps):
        for row, place in enumerate(zip(answers.tolist(), steps.tolist())):
            seen.setdefault(place, logits[row])  # a row without an answer comes as the first step of the first
        return likeliest(logits)

    answers = generate(loaded, PROMPTS, choose, Greedy(max_new_tokens=12, rows=2))
    for number, (prompt, answer) in enumerate(zip(PROMPTS, answers)):
        for step in range(len(answer)):
            alone = reference(torch.tensor([prompt + answer[:step]]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(seen[number, step], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["qwen3", "gemma"])
def test_gcgs_gradients_are_those_of_the_models_own_embeddings(tmp_path, kind):
    loaded, model = load(tmp_path, kind, head_dim=16), plain(tmp_path)
    attack = Attack(loaded, "do it", Gcg(suffix="x x x"))
    ids = [*attack.opening_ids, *attack.initial_ids, *attack.closing_ids, *attack.target_ids]
    embed = model.get_input_embeddings()
    with torch.no_grad():
        table, start = embed(torch.arange(400)), len(attack.opening_ids)
    suffix = torch.nn.functional.one_hot(torch.tensor(attack.initial_ids), 400).float().requires_grad_()
    embeds = torch.cat([table[ids[:start]], suffix @ table, table[ids[start + len(suffix) :]]])
    embed.register_forward_hook(lambda *_: embeds[None])
    logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1 - len(attack.target_ids) : -1]
    torch.nn.functional.cross_entropy(logits, torch.tensor(attack.target_ids)).backward()
    found = gradients(loaded, [attack.prefix], [attack.initial_ids], attack.closing_ids, attack.target_ids)[0]
    assert suffix.grad is not None and (found - suffix.grad).norm() < 1e-3 * suffix.grad.norm()


@pytest.mark.parametrize(
    ("kind", "changes"), [("qwen3", {}), ("olmo2", {}), ("glm4", PARALLEL), ("gemma3_text", FULL)], ids=lambda one: str(one)[:9]
)
@torch.no_grad()
def test_no_block_writes_the_direction_whatever_norms_stand_behind_its_parts(tmp_path, kind, changes):
    model = load(tmp_path, kind, **changes).model
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
    written: list[torch.Tensor] = []
    for block in blocks_of(model):
        block.register_forward_hook(lambda *passed: written.append(passed[2][0] if isinstance(passed[2], tuple) else passed[2]))
    with without_direction(model, direction.tolist()):
        model(torch.tensor([PROMPTS[1]]), use_cache=False)
    assert len(written) == 2 and max(float((states @ direction).abs().max()) for states in written) < 1e-4


def test_ablation_is_refused_where_blocks_do_more_than_add_their_parts(tmp_path):
    loaded = load(tmp_path, "doge")  # it also scales the stream itself
    search = Search(loaded, Ablation(train=2, validation=1, pruned_layers=0), "key")
    sets = Sets(PROMPTS, PROMPTS)
    with pytest.raises(UserError, match="cannot be removed from the residual stream of DogeForCausalLM, .*; leave the task"):
        search.run(sets, sets, tmp_path / "scores.jsonl", silent)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("falcon", {"alibi": True, "multi_query": False}, "config.json has alibi, but the decoders here support rotary and"),
        ("llama", {"is_causal": False}, "config.json sets is_causal to false, so tokens see what follows; name a causal"),
        ("bloom", {}, "cannot be loaded .*scaled_dot_product_attention"),
    ],
)
def test_a_model_of_another_kind_is_refused_in_a_sentence(tmp_path, kind, changes, said):
    with pytest.raises(UserError, match=said):
        load(tmp_path, kind, **changes)


@pytest.mark.parametrize(("model", "config"), [(BertForMaskedLM, BertConfig), (Qwen2ForSequenceClassification, Qwen2Config)])
def test_a_model_with_another_purpose_is_refused_though_its_weights_suffice(tmp_path, model, config):
    model(config(**SIZES, tie_word_embeddings=True)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"config.json says {model.__name__}, which is not a causal language model"):
        load_model(tmp_path, "base", "cpu")
