"""Threads take turns where PyTorch itself is changed for a while: its functions, its modules, the garbage collector."""

from __future__ import annotations

from threading import RLock

one_at_a_time = RLock()
