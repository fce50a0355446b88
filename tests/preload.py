"""What every rank of the tests imports, once: ranks are forked from a process that has (tests/ranks.py)."""

import gc
import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA starts, and by DeepSpeed when it is imported
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - as an engine does; it loads the compiler

import engine.checkpoint
import engine.update  # noqa: F401

# Every start of an engine collects garbage, and looked through half a million objects of these imports each time.
gc.collect()
gc.freeze()
