"""DALI's pipelines in a forked child: their threads stayed with the parent, and ending one aborts or hangs."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

_alive: weakref.WeakSet[Any] = weakref.WeakSet()


def leave_to_parent(pipe: Any) -> None:
    """Have children that this process forks let go of a pipeline without ending it."""
    _alive.add(pipe)


def _let_go() -> None:
    for pipe in list(_alive):
        # The pipeline's part in C++, whose destructor joins threads. It is to outlive the interpreter, too.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pipe._pipe))
        pipe._pipe = None  # DALI does not end what is not there, be it forgotten or at the exit


if hasattr(os, "register_at_fork"):  # POSIX
    os.register_at_fork(after_in_child=_let_go)
