"""Where the time of an update goes: calls timed by name, each without the timed calls inside it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch


class Spans:
    """Seconds by label. On CUDA each call waits for the device before and after, so the sum is longer than an update."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inner: list[float] = []
        self._restore: list[Callable[[], None]] = []
        self._stopped = False

    def watch(self, owner: Any, name: str, label: str) -> None:
        """Time every call of owner.name, until `stop`."""
        original, had = getattr(owner, name), name in vars(owner)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._stopped:  # whoever looked the name up before keeps calling this
                return original(*args, **kwargs)
            begun = self.now()
            self._inner.append(0.0)
            try:
                return original(*args, **kwargs)
            finally:
                seconds = self.now() - begun
                self.seconds[label] += seconds - self._inner.pop()
                if self._inner:
                    self._inner[-1] += seconds

        setattr(owner, name, timed)
        self._restore.append(lambda: setattr(owner, name, original) if had else delattr(owner, name))

    def stop(self) -> None:
        self._stopped = True
        while self._restore:
            self._restore.pop()()

    @staticmethod
    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()
