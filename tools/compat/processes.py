"""One process per model, forked from a server that has torch and the libraries loaded, ended by a limit of time."""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from compat import measure
from compat.measure import Limits

WALL = 4  # a process may take so many times its limit of CPU time before it is ended: another may use the machine


def load(libraries: Iterable[str]) -> None:
    """Choose what the server loads before it forks; to be called before the first `run`.

    Args:
        libraries: modules to import; one that is not installed, or fails, is left to the models that need it.
    """
    # The server is a new interpreter, which knows this folder from its environment only.
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in sys.path if path))
    os.environ["COMPAT_PRELOAD"] = " ".join(libraries)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    multiprocessing.get_context("forkserver").set_forkserver_preload(["compat.preload"])


def run(module: str, name: str, task: str, limits: Limits) -> dict[str, Any]:
    """The record of one model, whatever happens to its process.

    Args:
        module: with `build(name)`.
        name: of the model.
        task: "measure", "onnx" (with it) or "peer".
        limits: of CPU seconds and memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, errors = Path(folder) / "record.json", Path(folder) / "errors"
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=measure.work, args=(module, name, task, str(result), str(errors), limits))
        process.start()
        try:
            ended = _wait(process, limits.seconds * WALL)
        finally:
            _end(process)
        found: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {"failed": {}, "stage": "build"}
        if ended:
            text = errors.read_text(errors="replace").strip().splitlines() if errors.exists() else []
            out_of_memory = any("MemoryError" in part or "allocate memory" in part for part in text[-5:])
            found["ended"] = "memory" if out_of_memory and ended != "time" else ended
            if ended.startswith("exit"):
                found["last_words"] = text[-1][:300] if text else ""
    return found


def _wait(process: BaseProcess, seconds: float) -> str | None:
    """How the process ended: None where it came to its own end."""
    process.join(seconds)
    if process.exitcode is None or process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
        return "time"
    return None if process.exitcode == 0 else f"exit {process.exitcode}"


def _end(process: BaseProcess) -> None:
    """End it with all that it started: it leads a session of its own."""
    if process.is_alive() and process.pid is not None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
