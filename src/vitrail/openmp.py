"""Idle OpenMP threads sleep instead of spinning, whether torch was imported before vitrail or not.

Spinning threads take the cores from other processes: a training step becomes several times slower if another process
uses the same cores, and sleeping costs nothing measurable (docs/log.md). OpenMP reads its variables once, when it is
loaded, which `import torch` does. So for a library that is loaded already its own means are used.
"""

import ctypes
import os
import sys
import threading
from pathlib import Path

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # the user's choice, if one of them is set


def let_idle_threads_sleep() -> None:
    """Makes idle threads of OpenMP sleep, unless an environment variable says how they wait."""
    if any(name in os.environ for name in VARIABLES):
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if "torch" in sys.modules and os.environ.get("OMP_NUM_THREADS") != "1":
        for path in loaded_libraries():
            quiet_loaded_library(path)


def loaded_libraries() -> list[str]:
    """Returns the OpenMP libraries that this process has loaded. Without /proc, those beside torch's own library."""
    maps = Path("/proc/self/maps")
    if maps.exists():
        paths = [line.split(maxsplit=5)[-1] for line in maps.read_text(errors="replace").splitlines()]
    else:
        paths = [str(path) for path in Path(str(sys.modules["torch"].__file__)).parent.glob("lib/lib*omp*")]
    names = ("libgomp", "libomp", "libiomp5")
    return sorted({path for path in paths if Path(path).name.startswith(names)})


def quiet_loaded_library(path: str) -> None:
    """Makes the threads of a loaded OpenMP library sleep soon after their work; does nothing for an unknown library."""
    try:
        library = ctypes.CDLL(path)
    except OSError:
        return
    if hasattr(library, "kmp_set_blocktime"):  # LLVM's and Intel's OpenMP
        library.kmp_set_blocktime(0)
    elif hasattr(library, "GOMP_parallel"):
        throttle_gnu_openmp(library)


def throttle_gnu_openmp(library: ctypes.CDLL) -> None:
    """Makes threads of GNU OpenMP spin for about 100 turns instead of 300,000.

    It has no function for that, but it spins briefly by itself once it has more threads than there are processors. So
    one thread starts a team of that size, which does nothing and sleeps until the process ends.
    """
    nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # free(NULL), which every thread of the team calls
    threads = library.omp_get_num_procs() + 1
    started = threading.Event()

    def hold_team() -> None:
        library.GOMP_parallel(nothing, None, ctypes.c_uint(threads), ctypes.c_uint(0))
        started.set()
        threading.Event().wait()  # the team ends with its thread

    threading.Thread(target=hold_team, name="vitrail-openmp", daemon=True).start()
    started.wait()
