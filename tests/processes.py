"""Runs a function on several gloo processes, as torchrun would, but as forks of one that has done the imports.

That one has no threads. A fork of the tests' own process would inherit the locks that its threads hold.
"""

import gc
import multiprocessing
import os
import pickle
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

from .traces import folder, traced_once

SECONDS = 180.0  # only what hangs waits so long; a busy machine may need a minute
PROCESSES = multiprocessing.get_context("forkserver")
OURS = ["npn.cli", "npn.experiments.moons.recipe", "npn.experiments.resnet.recipe"]
TRACING = [
    "torch._dynamo",
    "torch._functorch.aot_autograd",
    "torch._inductor",
    "torch.export",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.distributed.checkpoint",
]  # imported when first used
TRAINERS = ["lightning.pytorch", "accelerate", "transformers.trainer", "transformers.models.bert.modeling_bert"]
PROCESSES.set_forkserver_preload(["torch.distributed", "sklearn.datasets", "pytest", *OURS, *TRACING, *TRAINERS])


class Died(Exception):
    """A process ended otherwise than by returning; holds exit codes, tracebacks, and what the others returned."""

    def __init__(self, codes, errors, answers):
        super().__init__("\n".join([f"exit codes {codes}", *errors.values()]))
        self.codes, self.errors, self.answers = codes, errors, answers


def launch(count, work, *args):
    """What `work(*args)` returns on each of `count` processes that have torchrun's environment, but no group yet."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    pipes, workers = [], []
    for rank in range(count):
        ours, theirs = PROCESSES.Pipe(duplex=False)
        workers.append(PROCESSES.Process(target=_child, args=(theirs, rank, count, store.port, folder(), work, args)))
        pipes.append(ours)
        workers[-1].start()
        theirs.close()
    answers = []
    for pipe in pipes:
        try:
            answers.append(pickle.loads(pipe.recv_bytes()) if pipe.poll(SECONDS) else (None, "no answer in time"))
        except EOFError:
            answers.append((None, ""))  # killed
    for worker in workers:
        worker.join(SECONDS)
        if worker.is_alive():
            worker.kill()
            worker.join()
    codes, errors = [worker.exitcode for worker in workers], {r: e for r, (_, e) in enumerate(answers) if e is not None}
    if errors:
        raise Died(codes, errors, [value for value, _ in answers])
    return [value for value, _ in answers]


def together(count, work, *args):
    """The same with a group: `torch.distributed` is ready inside."""
    return launch(count, _grouped, work, args)


def _grouped(work, args):
    dist.init_process_group("gloo", timeout=timedelta(seconds=SECONDS))
    try:
        return work(*args)
    finally:
        dist.destroy_process_group()


def _child(pipe, rank, count, port, traces, work, args):
    where = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    who = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0}
    who["TORCHELASTIC_RUN_ID"] = "test"
    os.environ |= {name: str(value) for name, value in (where | who).items()}
    torch.set_num_threads(1)
    gc.freeze()  # a search for garbage would copy every page of the imports
    try:
        with traced_once(traces):
            answer = pickle.dumps((work(*args), None))  # the pipe's own pickling would share tensors, not send them
    except BaseException:
        pipe.send_bytes(pickle.dumps((None, traceback.format_exc())))
        os._exit(1)
    pipe.send_bytes(answer)
