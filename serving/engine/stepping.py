"""SGLang's scheduler with our worker in this process, driven step by step: for a clock of ours, and to look inside.

One rank of several is a process of its own; all must be given the same requests and steps, in the same order. It
changes this process for good (groups, environment), so it is for programs that do nothing else.
"""

import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Place:
    """Which of how many ranks a process is, and the port on which they meet."""

    rank: int
    ranks: int
    port: int


class SteppedEngine:
    """One rank, between whose steps its caller does what it likes."""

    def __init__(self, arguments: Mapping[str, Any], environment: Mapping[str, str], place: Place) -> None:
        """Start the rank.

        Args:
            arguments: fields of SGLang's `ServerArgs`, for a CPU.
            environment: what a replica's process gives its ranks.
            place: of this rank.
        """
        os.environ.update(environment)
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join([cores] * place.ranks)
        self.scheduler = _scheduler(arguments, place)

    @property
    def worker(self) -> Any:
        """Our worker."""
        return self.scheduler.draft_worker

    def add(
        self, request_id: str, tokens: Sequence[int], *, new_tokens: int, cache_key: str | None, **sampling: Any
    ) -> None:
        """Queue a request for exactly `new_tokens`; only those with the same `cache_key` share a prefix."""
        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
        from sglang.srt.sampling.sampling_params import SamplingParams

        params = SamplingParams(**{"temperature": 0.0, "max_new_tokens": new_tokens, "ignore_eos": True, **sampling})
        params.normalize(self.scheduler.tokenizer)
        request = TokenizedGenerateReqInput(
            rid=request_id,
            input_text=None,
            input_ids=array("q", tokens),
            input_embeds=None,
            mm_inputs=None,
            token_type_ids=None,
            sampling_params=params,
            return_logprob=False,
            logprob_start_len=-1,
            top_logprobs_num=0,
            token_ids_logprob=None,
            stream=False,
            extra_key=cache_key,
        )
        self.scheduler.handle_generate_request(request)

    @torch.inference_mode()
    def step(self, ran: Callable[[Any, Any], None] = lambda batch, result: None) -> bool:
        """Run one prefill or decode step and return whether there was any.

        `ran` is called with SGLang's batch and result once the model has run, before the scheduler processes them.
        """
        scheduler = self.scheduler
        plan = scheduler.get_next_batch_to_run(running_batch=scheduler.running_batch, last_batch=scheduler.last_batch)
        scheduler.running_batch = plan.running_batch
        batch = plan.batch_to_run
        if batch:
            result = scheduler.run_batch(batch)
            ran(batch, result)
            scheduler.process_batch_result(batch, result)
        scheduler.last_batch = batch
        return bool(batch)

    def abort(self) -> None:
        """End every request, after a step if it runs."""
        from sglang.srt.managers.io_struct import AbortReq

        self.scheduler.abort_request(AbortReq(rid="", abort_all=True))
        self.run()

    def run(self) -> None:
        """Step until every request has ended."""
        while self.step():
            pass


def _scheduler(arguments: Mapping[str, Any], place: Place) -> Any:
    """SGLang's scheduler as its Ray actor makes one (`sglang/srt/ray/scheduler_actor.py`)."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.managers.scheduler import Scheduler, configure_scheduler_process
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import PortArgs, ServerArgs

    groups = arguments.get("attn_dp_size") or 1
    # Groups meet at an address, and take the ports after it; nothing is sent to them here.
    meeting = {"dist_init_addr": f"127.0.0.1:{place.port}"} if groups > 1 else {"nccl_port": place.port}
    server_args = ServerArgs(**{**arguments, "use_ray": False, "enable_metrics": False, **meeting})
    group = place.rank * groups // place.ranks if groups > 1 else None
    ports = PortArgs.init_new(server_args, group, [place.port + 7 + each for each in range(groups)])
    publish(server_args, role="scheduler", ranks=SpawnRanks(world_rank=place.rank, dp_rank=group, gpu_id=place.rank))
    configure_scheduler_process(server_args, place.rank)
    return Scheduler(server_args=server_args, port_args=ports)
