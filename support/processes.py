"""support/processes.py: independent jobs in several processes."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch

from support.devices import keep_memory


def _prepare(threads):
    keep_memory()
    torch.set_num_threads(threads)


def run_jobs(function, jobs, workers):
    """Yield function(*job) of each job in order of completion, from `workers` processes.

    raises  the ValueError or OSError of a job without its traceback; OSError if a process is killed"""
    if workers == 1:
        for job in jobs:
            yield function(*job)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _prepare, (threads,)) as pool:
        pending = [pool.submit(function, *job) for job in jobs]
        try:
            for future in as_completed(pending):
                yield future.result()
        except BrokenProcessPool:
            raise OSError("a process was killed: too little memory? Lower --batch or --workers") from None
        except (ValueError, OSError) as error:
            raise type(error)(str(error)) from None
        finally:
            for child in multiprocessing.active_children():  # an interrupted job is run anew next time
                child.kill()
