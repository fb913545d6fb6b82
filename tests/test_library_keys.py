"""Keys of method.trainer, method.peft and method.quantization, against the libraries that are installed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, get_args

import pytest

from vlmft import library_keys
from vlmft.library_keys import source
from vlmft.library_keys.source import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)

# Run in a process of its own: the other tests here are about not importing these libraries.
REAL_NAMES = """
import dataclasses, inspect, json
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import DPOConfig, SFTConfig
classes = (SFTConfig, DPOConfig, LoraConfig)
names = {c.__name__: [f.name for f in dataclasses.fields(c) if f.init] for c in classes}
taken = inspect.signature(BitsAndBytesConfig.__init__).parameters.values()
names["BitsAndBytesConfig"] = [p.name for p in taken if p.name != "self" and p.kind is not p.VAR_KEYWORD]
print(json.dumps(names))
"""


def test_read_names_are_those_of_the_imported_classes() -> None:
    done = subprocess.run([sys.executable, "-c", REAL_NAMES], capture_output=True, text=True, check=True)
    real = json.loads(done.stdout.splitlines()[-1])
    for kind in KINDS:
        assert set(library_keys.fields(kind)) == set(real[kind]), kind


def test_defaults_are_read_and_a_subclass_wins() -> None:
    trainer = library_keys.fields("SFTConfig")
    assert trainer["weight_decay"].default == 0.0
    assert trainer["optim"].default is source.NOT_LITERAL
    assert trainer["learning_rate"].default != library_keys.fields("DPOConfig")["learning_rate"].default
    assert "nll" in trainer["loss_type"].choices


def test_checking_imports_none_of_the_libraries_and_is_quick() -> None:
    code = (
        "import sys, time; from vlmft.library_keys import check; start = time.perf_counter()\n"
        "for kind in ('SFTConfig', 'DPOConfig', 'LoraConfig', 'BitsAndBytesConfig'):\n"
        "    check(kind, {'nonsense': 1, 'lr_scheduler_type': 'cosin'}, 'here')\n"
        "print(time.perf_counter() - start)\n"
        "print([name for name in ('torch', 'transformers', 'trl', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, imported = done.stdout.splitlines()
    assert imported == "[]"
    assert float(seconds) < 0.5  # 0.05 on an idle machine


FITTING: list[tuple[Kind, dict[str, Any]]] = [
    ("SFTConfig", {"learning_rate": 1e-4, "num_train_epochs": 3, "max_steps": 10, "tf32": None}),
    ("SFTConfig", {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}, "optim": "sgd"}),
    ("SFTConfig", {"save_steps": 0.1, "eval_strategy": "steps", "per_device_eval_batch_size": 4}),
    ("SFTConfig", {"optim_target_modules": ["attn", "mlp"], "debug": ["underflow_overflow"]}),
    (
        "DPOConfig",
        {"beta": 0.2, "loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5], "label_smoothing": 0.1},
    ),
    ("LoraConfig", {"r": 8, "target_modules": "all-linear", "bias": "none", "rank_pattern": {"q_proj": 4}}),
    ("LoraConfig", {"target_modules": ["q_proj"], "init_lora_weights": False, "layer_replication": [[0, 4]]}),
    ("LoraConfig", {"init_lora_weights": "pissa_niter_16", "eva_config": {"rho": 2.0}}),
    ("BitsAndBytesConfig", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    ("BitsAndBytesConfig", {"bnb_4bit_compute_dtype": "bfloat16", "llm_int8_skip_modules": ["lm_head"]}),
]


@pytest.mark.parametrize(("kind", "values"), FITTING)
def test_what_the_libraries_take_is_accepted(kind: Kind, values: dict[str, Any]) -> None:
    assert library_keys.check(kind, values, "here") == []


WRONG: list[tuple[Kind, str, Any, str]] = [
    # names
    ("SFTConfig", "learning_ratee", 1e-4, "no such key; nearest: learning_rate"),
    ("SFTConfig", "warmup_ratio", 0.03, "warmup_steps takes a share"),
    ("SFTConfig", "micro_packing", True, "nearest: packing, which vlmft decides itself"),
    ("LoraConfig", "lora_alfa", 16, "nearest: lora_alpha"),
    ("BitsAndBytesConfig", "load_in_4bits", True, "nearest: load_in_4bit"),
    # types
    ("SFTConfig", "learning_rate", "1e-4", "got the text '1e-4': write 1e-4 without quotes"),
    ("SFTConfig", "learning_rate", None, "expected a number, got null"),
    ("SFTConfig", "learning_rate", True, "expected a number, got true"),
    ("SFTConfig", "max_steps", 10.0, "expected a whole number, got 10.0"),
    ("SFTConfig", "load_best_model_at_end", 1, "expected true or false, got 1"),
    ("SFTConfig", "load_best_model_at_end", "true", "write true without quotes"),
    ("DPOConfig", "loss_type", "sigmoid", "write [sigmoid]"),
    ("DPOConfig", "loss_weights", [1, "a"], "expected a list of float or null"),
    ("LoraConfig", "r", 8.5, "expected a whole number"),
    ("LoraConfig", "target_modules", [1], "expected a list of str or text or null"),
    ("BitsAndBytesConfig", "llm_int8_threshold", "6.0", "write 6.0 without quotes"),
    # named values: of an enumeration, of the metadata, of a Literal, of a key without annotation
    ("SFTConfig", "lr_scheduler_type", "cosin", "nearest: cosine"),
    ("SFTConfig", "eval_strategy", "step", "is not one of no, steps, epoch; nearest: steps"),
    ("SFTConfig", "loss_type", "nl", "is not one of nll, "),
    ("LoraConfig", "bias", "nonee", "nearest: none"),
    ("LoraConfig", "init_lora_weights", "pissa_niter_x", "is not one of"),
    ("BitsAndBytesConfig", "bnb_4bit_quant_type", "nf5", "nearest: nf4"),
    # of the other trainer, and what DPO does otherwise here
    ("SFTConfig", "beta", 0.1, "it is DPOConfig's, of method=dpo"),
    ("DPOConfig", "packing", True, "method.packing is ours"),
    ("DPOConfig", "ld_alpha", 0.5, "kept for whole answers"),
    ("DPOConfig", "sync_ref_model", True, "the reference is the model that training starts from"),
]


@pytest.mark.parametrize(("kind", "key", "value", "says"), WRONG)
def test_a_wrong_key_or_value_is_one_message_naming_it(kind: Kind, key: str, value: Any, says: str) -> None:
    messages = library_keys.check(kind, {key: value}, "method.x")
    assert len(messages) == 1
    assert messages[0].startswith(f"method.x.{key}")
    assert says in messages[0]


def test_keys_of_a_nested_class_are_checked_since_peft_drops_them_silently() -> None:
    messages = library_keys.check("LoraConfig", {"eva_config": {"rhoo": 2.0, "rho": "2.0"}}, "method.peft")
    assert [message.partition(":")[0] for message in messages] == [
        "method.peft.eva_config.rhoo",
        "method.peft.eva_config.rho",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_refused_keys_exist_and_are_refused_with_their_reason(kind: Kind) -> None:
    refused = library_keys.REFUSED[kind]
    both = library_keys.fields("SFTConfig") | library_keys.fields("DPOConfig")
    known = both if kind in ("SFTConfig", "DPOConfig") else library_keys.fields(kind)
    assert set(refused) <= set(known)
    assert not set(library_keys.GONE) & set(known)
    messages = library_keys.check(kind, dict.fromkeys(refused), "method.x")
    assert messages == [f"method.x.{key} is not set here: {reason}" for key, reason in refused.items()]


def test_every_field_is_placed_once_in_the_identity_list() -> None:
    listed = [name for names in library_keys.identity_groups().values() for name in names]
    installed = set(library_keys.fields("SFTConfig")) | set(library_keys.fields("DPOConfig"))
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) - installed == set(), "identity_trainer_fields.yaml names fields that do not exist"
    assert installed - set(listed) == set(), "say in identity_trainer_fields.yaml whether these decide the weights"


def test_weights_fields_follow_the_list_and_its_conditions() -> None:
    always = {"learning_rate", "seed", "eval_steps", "load_best_model_at_end"}
    assert always | {"save_steps", "logging_steps"} <= library_keys.weights_fields("SFTConfig")
    assert "beta" in library_keys.weights_fields("DPOConfig")
    assert not {"beta", "logging_first_step", "bf16"} & library_keys.weights_fields("SFTConfig")

    plain = library_keys.weights_fields("SFTConfig", {"eval_strategy": "epoch"})
    assert always <= plain
    assert not {"save_steps", "logging_steps"} & plain
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 10}
    assert {"save_steps", "logging_steps"} & library_keys.weights_fields("SFTConfig", best) == {"save_steps"}
    assert "logging_steps" in library_keys.weights_fields("SFTConfig", {"eval_strategy": "steps"})


def test_a_class_that_is_not_installed_is_told_by_name() -> None:
    with pytest.raises(LookupError, match="no_such_package"):
        source.fields_of("no_such_package.config", "Config")
