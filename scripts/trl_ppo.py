"""One PPO training by TRL 1.12 (`trl.experimental.ppo`), for scripts/benchmark_memory.py to measure.

Runs in an interpreter that has trl==1.12.0, on the directories that the benchmark made, and leaves its figures as JSON:

    python scripts/trl_ppo.py --policy DIR --reward DIR --shape '{"batch": 16, ...}' --out FILE [--peft]
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer


def main() -> None:
    arguments = parse()
    shape = json.loads(arguments.shape)
    trainer = build_trainer(arguments, shape)
    trainer.train()
    roles = {
        "policy": trainer.policy_model,
        "reference": trainer.ref_model,
        "reward_model": trainer.reward_model,
        "critic": trainer.value_model,
    }
    held: dict[int, torch.Tensor] = {}
    for model in filter(None, roles.values()):
        held |= {weight.untyped_storage().data_ptr(): weight for weight in model.parameters()}
    figures = {
        "weights_bytes": sum(weight.untyped_storage().nbytes() for weight in held.values()),
        "trainable_parameters": sum(one.numel() for one in trainer.model.parameters() if one.requires_grad),
        "optimizer_bytes": sum(
            value.nbytes
            for state in trainer.optimizer.state.values()
            for value in state.values()
            if torch.is_tensor(value)
        ),
    }
    if torch.cuda.is_available():
        figures["cuda_peak_bytes"] = torch.cuda.max_memory_reserved()
    Path(arguments.out).write_text(json.dumps(figures))


def parse() -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--policy", required=True, help="directory of a causal language model")
    flags.add_argument("--reward", required=True, help="directory of a sequence classifier with one label")
    flags.add_argument("--shape", required=True, help="JSON: batch, micro_batch, chunk, prompt, response, ...")
    flags.add_argument("--out", required=True, help="where the figures go")
    flags.add_argument("--peft", action="store_true", help="train a LoRA adapter of the policy")
    return flags.parse_args()


def build_trainer(arguments: argparse.Namespace, shape: dict[str, int]) -> PPOTrainer:
    """Policy, value model, reward model and (without PEFT) reference, as TRL's own PPO example opens them."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.policy, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(arguments.policy, dtype=torch.float32)
    value_model = AutoModelForSequenceClassification.from_pretrained(arguments.reward, dtype=torch.float32)
    reward_model = AutoModelForSequenceClassification.from_pretrained(arguments.reward, dtype=torch.float32)
    reference = None if arguments.peft else AutoModelForCausalLM.from_pretrained(arguments.policy, dtype=torch.float32)
    peft_config = None
    if arguments.peft:
        peft_config = LoraConfig(
            r=shape["rank"],
            lora_alpha=2 * shape["rank"],
            target_modules="all-linear",
            exclude_modules=["lm_head"],
            task_type="CAUSAL_LM",
        )
    draw = random.Random(0)
    prompts = [
        [draw.randrange(4, shape["vocabulary"]) for _ in range(shape["prompt"])] for _ in range(shape["prompts"])
    ]
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-ppo-"),
        per_device_train_batch_size=shape["micro_batch"],
        gradient_accumulation_steps=shape["batch"] // shape["micro_batch"],
        num_mini_batches=1,
        num_ppo_epochs=shape["epochs"],
        total_episodes=shape["batch"] * shape["iterations"],
        local_rollout_forward_batch_size=shape["chunk"],
        response_length=shape["response"],
        temperature=1.0,
        stop_token="eos",
        learning_rate=1e-5,
        num_sample_generations=0,
        # As in the other rows: float32, no activation checkpointing, nothing saved on the way.
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        seed=1,
    )
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        peft_config=peft_config,
    )


if __name__ == "__main__":
    main()
