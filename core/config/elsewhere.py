"""What fields are called in other tools, so that whoever writes their names is told ours."""

from collections.abc import Mapping

ELSEWHERE: Mapping[str, str] = {
    "model_name_or_path": "model.source",
    "base_model": "model.source",
    "adapter_name_or_path": "model.source, a whole model: merge the adapter into its model first",
    "dataset": "data.ROLE.source",
    "dataset_dir": "data.ROLE.source",
    "max_samples": "data.ROLE.n",
    "cutoff_len": "data.ROLE.max_tokens",
    "max_seq_length": "data.ROLE.max_tokens",
    "max_length": "data.ROLE.max_tokens",
    "sequence_len": "data.ROLE.max_tokens",
    "template": "data.prompt_format; auto takes the tokenizer's own chat template",
    "default_system": "data.system_prompt",
    "trainer": "method.forget_loss",
    "retain_loss_type": "method.retain_loss",
    "finetuning_type": "adapter.kind",
    "lora_rank": "adapter.rank",
    "lora_r": "adapter.rank",
    "r": "adapter.rank",
    "lora_alpha": "adapter.scaling, which is alpha / rank",
    "alpha": "adapter.scaling, which is alpha / rank",
    "lora_target": "adapter.targets",
    "lora_target_modules": "adapter.targets",
    "target_modules": "adapter.targets",
    "layers_to_transform": "adapter.layers",
    "learning_rate": "optimizer.learning_rate",
    "lr": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "adam_epsilon": "optimizer.epsilon",
    "max_grad_norm": "optimizer.gradient_clipping",
    "lr_scheduler_type": "optimizer.schedule",
    "warmup_steps": "optimizer.warmup_steps",
    "warmup_ratio": "optimizer.warmup_steps, in optimiser steps",
    "per_device_train_batch_size": "batch.micro_batch_size",
    "per_device_eval_batch_size": "batch.probe_batch_size",
    "gradient_accumulation_steps": "batch.gradient_accumulation_steps",
    "train_batch_size": "batch.global_batch_size",
    "num_train_epochs": "budget.max_steps, in optimiser steps",
    "num_epochs": "budget.max_steps, in optimiser steps",
    "max_steps": "budget.max_steps",
    "eval_steps": "budget.probe_every, in optimiser steps",
    "bf16": "engine.dtype",
    "fp16": "engine.dtype; bf16 or fp32",
    "torch_dtype": "engine.dtype",
    "gradient_checkpointing": "engine.activation_checkpointing",
    "deepspeed": "engine.zero_stage",
}
"""Name elsewhere to the field of a sweep file, and what else to know after a comma or semicolon.

References:
    Arguments of LLaMA-Factory; ``TrainingArguments`` of transformers; ``LoraConfig`` of PEFT; axolotl's and
    OpenUnlearning's configurations.
"""
