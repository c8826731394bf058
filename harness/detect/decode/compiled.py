"""Takes loops written in Python; gives them compiled by numba on import, and the types that their signatures name.

Floating-point arithmetic is done as it is written: float32 stays float32, no sum is reordered, nothing is fused.
All loops run without Python's lock. Callers give C-contiguous arrays of the types that the signatures name.

numba keeps what it compiled until the loop's own file changes. So no loop calls one of another file.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numba
from numba import types

P = ParamSpec("P")
R = TypeVar("R")


def given(dtype: Any, dimensions: int) -> Any:
    """An array that is only read: it may be locked for writing, and lie at any address."""
    return types.Array(dtype, dimensions, "C", readonly=True, aligned=False)


def results(*found: Any) -> Any:
    """Several results of a loop."""
    return types.Tuple(found)  # type: ignore[no-untyped-call]


def compiled(*signatures: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile for these signatures at once; without one, for whatever the compiled callers hand in.

    The code is kept beside the loop's file or, where that folder may not be written, in the user's cache folder
    (`NUMBA_CACHE_DIR` names another); where that may not be written either, each process compiles for itself.
    """

    def compile_it(function: Callable[P, R]) -> Callable[P, R]:
        njit: Any = functools.partial(numba.njit, list(signatures) or None, nogil=True, error_model="numpy")
        try:
            done: Callable[P, R] = njit(cache=True)(function)
        except RuntimeError:
            done = njit()(function)
        return done

    return compile_it
