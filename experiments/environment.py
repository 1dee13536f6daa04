"""The environment of every process that is started here: what its user set for other work does not reach it.

What a notebook prints, and whether it runs at all, must not hang on a matplotlibrc, an IPython profile, a setting
of Snakemake or a locale. So a child process has a home of its own below `_build`, which answers for all files of
settings at once. Of the variables it keeps those that say what this machine is: the search path, proxies,
certificates, the compiler, which GPU, a batch system's own, where data and caches are.

    python -m experiments.environment COMMAND …     runs any command in it
"""

import contextlib
import fnmatch
import functools
import os
import pwd
import re
import socket
import sys
import tempfile
from pathlib import Path

CODE = Path(__file__).resolve().parents[1]  # where `experiments` and `optimizers` are imported from
HOME = CODE / "_build" / "home"
# Where Snakemake looks for a profile that its own options name.
CONFIG = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")

DROPPED = (
    # Python: other modules, other checks, another encoding.
    *("PYTHON*", "__PYVENV_LAUNCHER__"),
    # Jupyter, IPython, their debugger: other kernels, other settings, the kernel that this is called from.
    *("JUPYTER*", "JPY_*", "IPYTHON*", "IPY_*", "PYDEVD*", "DEBUGPY*", "PAPERMILL*", "NBCLIENT*"),
    # Figures and pages: other styles, backends, fonts, dates.
    *("MPL*", "MATPLOTLIB*", "FONTCONFIG_*", "FREETYPE_*", "SOURCE_DATE_EPOCH", "SPHINX*", "DOCUTILS*"),
    # Snakemake, the shell that runs its jobs, and make.
    *("SNAKEMAKE*", "BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "CDPATH", "POSIXLY_CORRECT"),
    *("MAKE*", "MFLAGS", "GNUMAKEFLAGS"),
    # Git: another repository.
    "GIT_*",
    # Numbers: threads and instruction sets decide the order of sums; other precisions, algorithms and checks.
    *("OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "GOTO_*", "BLIS_*", "VECLIB_*", "NUMEXPR_*", "ATEN_*"),
    *("ONEDNN_*", "DNNL_*", "NPY_*", "NUMPY_*", "SCIPY_*", "SKLEARN_*", "JOBLIB_*", "LOKY_*"),
    *("TORCH*", "PYTORCH_*", "TRITON_*", "CUBLAS*", "CUDNN_*", "NVIDIA_TF32_OVERRIDE"),
    # What is printed: language, time zone, width, colors.
    *("LANG", "LANGUAGE", "LC_*", "TZ", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR*", "PY_COLORS"),
    *("TQDM_*", "CI"),
    # Folders of settings and caches, which are in the home.
    "XDG_*",
    # Ours, of another run.
    "EXPERIMENT_*",
)
# Among those, what concerns only caches, memory and messages.
KEPT = (
    *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER"),
    *("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
)
SOCKET = "listener-of-a-kernel-ipc"  # as long as the names of sockets get


def child(**given: str) -> dict[str, str]:
    """The environment of a child process, with `given` on top. Its home is made."""
    with contextlib.suppress(OSError):  # a checkout that may only be read: who has to write will say so
        HOME.mkdir(parents=True, exist_ok=True)
    folders = _folders()
    own = {
        "HOME": str(HOME),
        "TMPDIR": temporary(),
        "LANG": "C.UTF-8",
        "PYTHONUTF8": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([str(CODE), folders.get("BOOK_ROOT", str(CODE))])),
    }
    kept = {name: value for name, value in os.environ.items() if name in KEPT or not _DROPPED.fullmatch(name)}
    return kept | _user() | folders | own | given


def adopt() -> None:
    """Go on in that environment: for a command that itself computes, before it imports torch and the like."""
    clean = child()
    os.environ.clear()
    os.environ.update(clean)
    tempfile.tempdir = clean["TMPDIR"]


@functools.cache
def temporary() -> str:
    """A folder for temporary files in which sockets can be bound: the user's TMPDIR, if its path is not too long.

    Kernels and torch's workers talk through sockets. Drives that Windows or Docker Desktop share have none.
    """
    try:
        usual = tempfile.gettempdir()
    except FileNotFoundError:  # there is none; who has to write will say so
        return "/tmp"
    return next(filter(sockets_in, (usual, "/tmp", "/var/tmp", "/dev/shm")), usual)


def sockets_in(folder: str) -> bool:
    """Whether a socket can be bound in a folder of a folder."""
    try:
        with tempfile.TemporaryDirectory(dir=folder) as inside, socket.socket(socket.AF_UNIX) as probe:
            probe.bind(os.path.join(inside, SOCKET))
    except OSError:
        return False
    return True


def _folders() -> dict[str, str]:
    """Data and compiled code stay where they are; a relative folder is one of here, not of the child's folder."""
    home = Path(os.path.expanduser("~"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    usual = {
        "DATA_DIR": home / ".cache" / "optimization-for-deep-learning",
        "OPTIMIZERS_CACHE": cache / "optimizers",
    }
    found = {
        name: str(path if home.is_dir() and _can_be(path) else HOME / ".cache" / path.name)
        for name, path in usual.items()
    }
    named = {name: os.path.expanduser(os.environ[name]) for name in (*usual, "BOOK_ROOT") if os.environ.get(name)}
    return {name: os.path.abspath(path) for name, path in (found | named).items()}


def _can_be(folder: Path) -> bool:
    """Whether a folder is there, or can be made."""
    above = next((parent for parent in folder.parents if parent.exists()), folder)
    return folder.exists() or os.access(above, os.W_OK | os.X_OK)


def _user() -> dict[str, str]:
    """A name for a user whom the system does not know, such as a container's; libraries ask for one."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return {"USER": "reader", "LOGNAME": "reader"}
    return {}


_DROPPED = re.compile("|".join(map(fnmatch.translate, DROPPED)))

if __name__ == "__main__":
    os.execvpe(sys.argv[1], sys.argv[1:], child())
