"""Door to deepspeed and torch.distributed: ranks that meet without ports to guess, and the training engine."""

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import TCPStore

from core.adapters import Gather
from core.config import BatchPlan, EngineConfig, OptimizerConfig

_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The ranks of one trial."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and speaks for the trial."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks; every rank gets the same bits."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def agree(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite ``tensors`` with the first rank's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def mine(self, count: int) -> range:
        """Indices of this rank's items out of ``count``, dealt out in turn."""
        return range(self.rank, count, self.size)


class Rendezvous:
    """A key-value store on a free port of the first rank's machine, where the ranks of one trial meet."""

    def __init__(self, size: int, *, host: str = "127.0.0.1") -> None:
        """Open the store; the operating system picks the port, so that two trials never collide.

        Args:
            size: Number of ranks that will come.
            host: This machine's address, as the other ranks reach it.
        """
        self.host = host
        self._store = TCPStore(
            self.host, 0, size, is_master=True, wait_for_workers=False, timeout=_TIMEOUT
        )
        self.port: int = self._store.port


def join(
    rank: int,
    size: int,
    host: str,
    port: int,
    engine: EngineConfig,
    *,
    local_rank: int | None = None,
) -> Group:
    """Join the other ranks; call once in a process.

    Args:
        rank: This process's number.
        size: Number of ranks.
        host: Host of the :class:`Rendezvous`, which must outlive the group.
        port: Its port.
        engine: Device and threads.
        local_rank: Number on this machine; 0 where each process sees only its own GPU.
    """
    local = rank if local_rank is None else local_rank
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(local),
        LOCAL_SIZE=str(size),
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(engine.threads)
    use_cuda = engine.device != "cpu" and torch.cuda.is_available()
    if not use_cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if not dist.is_initialized():
        if use_cuda:
            torch.cuda.set_device(local % torch.cuda.device_count())
        dist.init_process_group(
            "nccl" if use_cuda else "gloo",
            store=TCPStore(host, port, size, is_master=False, timeout=_TIMEOUT),
            rank=rank,
            world_size=size,
            timeout=_TIMEOUT,
        )
        with redirect_stdout(sys.stderr):  # it prints what it compiles; stdout is for results
            _deepspeed().init_distributed(
                dist_backend="nccl" if use_cuda else "gloo", verbose=False
            )
        dist.barrier()
        _release_shared_memory(rank, host, port)
    return Group(rank=rank, size=size)


def _release_shared_memory(rank: int, host: str, port: int) -> None:
    """Take the name from DeepSpeed's CPU buffer, which every rank has mapped by now.

    It would stay in memory, 66 MiB a rank, after the process: DeepSpeed never removes it.
    """
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{host}_{port}_{rank}"
    (Path("/dev/shm") / name).unlink(missing_ok=True)  # noqa: S108 - where POSIX names live


@lru_cache
def _own_meeting() -> Rendezvous:
    """This process's meeting point with itself: torch talks to it as long as the process lives."""
    return Rendezvous(1)


def join_alone(engine: EngineConfig) -> tuple[Group, Rendezvous]:
    """A group of this process alone."""
    meeting = _own_meeting()
    return join(0, 1, meeting.host, meeting.port, engine, local_rank=0), meeting


class Engine(Gather):
    """DeepSpeed around a model whose trainable parameters are the adapter's increments."""

    def __init__(
        self,
        model: nn.Module,
        *,
        engine: EngineConfig,
        optimizer: OptimizerConfig,
        plan: BatchPlan,
        max_steps: int,
        dtype: torch.dtype,
    ) -> None:
        """Build the DeepSpeed engine; ``model`` must be complete, on its device and in ``dtype``."""
        self._optimizer_config, self._plan, self._max_steps = optimizer, plan, max_steps
        trained = [p for p in model.parameters() if p.requires_grad]
        client = torch.optim.AdamW(
            trained,
            lr=0.0,  # set at each step; some of DeepSpeed's wrappers make one while they are built
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
        )
        self._engine, *_ = _deepspeed().initialize(
            model=model,
            optimizer=client,
            model_parameters=trained,
            dist_init_required=False,
            config=_deepspeed_config(engine, optimizer, plan, dtype),
        )
        if engine.zero_stage == 0:
            client.state.clear()  # that step's moments, which would count as a first one
        self._stage = engine.zero_stage
        self._step = 0

    def forward(
        self, ids: Tensor, mask: Tensor, *, block: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits ``(B, T, V)``, and the output of ``block`` ``(B, T, D)`` if one is named."""
        output = self._engine(
            input_ids=ids,
            attention_mask=mask,
            use_cache=False,
            output_hidden_states=block is not None,
        )
        hidden = None if block is None else output.hidden_states[block + 1]
        return output.logits, hidden

    @property
    def module(self) -> nn.Module:
        """The model itself, for evaluation without the engine's bookkeeping."""
        model: nn.Module = self._engine.module
        return model

    def step(self, micro_losses: Iterable[Callable[[], Tensor]]) -> None:
        """One optimiser step.

        Args:
            micro_losses: One thunk for each micro-batch of this rank. Each gives this micro-batch's
                *share* of the global loss: the shares of all micro-batches and ranks add up to it.
                DeepSpeed averages over micro-batches and ranks; that is undone here, so that the
                gradient is the one of the sum.
        """
        self._set_learning_rate()
        averaged_over = self._plan.gradient_accumulation_steps * self._plan.ranks
        for compute in micro_losses:
            self._engine.backward(compute() * averaged_over)
            self._engine.step()
        self._step += 1

    def _set_learning_rate(self) -> None:
        config = self._optimizer_config
        rate = config.learning_rate
        if self._step < config.warmup_steps:
            rate *= (self._step + 1) / (config.warmup_steps + 1)
        elif config.schedule == "linear":
            left = self._max_steps - self._step
            rate *= left / max(1, self._max_steps - config.warmup_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate

    def __call__(self, parameter: Tensor) -> Tensor:
        """Full float32 value of a trained parameter: the master copy where there is one."""
        from deepspeed.utils import safe_get_full_fp32_param

        if self._stage == 0 and parameter.dtype == torch.float32:
            return super().__call__(parameter)
        value = safe_get_full_fp32_param(parameter)
        if value is None:
            return super().__call__(parameter)
        full: Tensor = value.detach().float().cpu()
        return full.reshape(_full_shape(parameter))

    def destroy(self) -> None:
        """Free everything, so that the next trial of this process starts clean."""
        self._engine.destroy()
        del self._engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _full_shape(parameter: Tensor) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _deepspeed_config(
    engine: EngineConfig, optimizer: OptimizerConfig, plan: BatchPlan, dtype: torch.dtype
) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": engine.zero_stage}
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if engine.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # ours is torch's AdamW: nothing to compile
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "gradient_clipping": optimizer.gradient_clipping,
        "steps_per_print": 10**9,
    }


def _deepspeed() -> Any:
    import deepspeed  # imported late: it looks at the environment that `join` prepares

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed
