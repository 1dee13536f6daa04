"""From CUDA text to kernels on a card, by the NVRTC that torch's wheel brings; kept on disk for other processes.

Neither a toolkit nor a host compiler is needed: torch's `libcaffe2_nvrtc` is linked to NVRTC and to the driver, so
that one handle gives both. A binary is kept by its source, NVRTC's version, the architecture and the options.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .compiler import NoCompiler, folder

_OPTIONS = ("--std=c++17",)
_MAJOR, _MINOR = 75, 76  # the driver's names for a card's compute capability
_DIGEST = hashlib.sha256().digest_size
_LIBRARIES = ("libcaffe2_nvrtc.so", "caffe2_nvrtc.dll")


@functools.cache
def library() -> Any:
    """NVRTC, and the driver where torch is built for CUDA; else NVRTC of NVIDIA's wheel, which compiles alone.

    Raises:
        NoCompiler: there is none; the message says where one was looked for.
    """
    own = [Path(torch.__file__).parent / "lib" / name for name in _LIBRARIES] if torch.version.cuda else []
    spec = importlib.util.find_spec("nvidia")
    roots = map(Path, spec.submodule_search_locations or ()) if spec else ()
    wheels = [path for root in roots for path in root.glob("*/lib/libnvrtc.so.*")]
    failure = ""
    for path in filter(Path.exists, own + wheels):
        try:
            if path in wheels:  # which opens its builtins by their bare name
                for builtins in sorted(path.parent.glob("libnvrtc-builtins.so.*")):
                    ctypes.CDLL(str(builtins))
            return ctypes.CDLL(str(path))
        except OSError as error:
            failure = failure or f" ({error})"
    kind = "CUDA" if torch.version.cuda else "ROCm" if torch.version.hip else "the CPU"
    raise NoCompiler(f"there is no NVRTC beside this torch, which is built for {kind}{failure}")


@functools.cache
def version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check_nvrtc(library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def target(capability: int) -> str:
    """For what to compile: the card itself, or PTX for the nearest older one that NVRTC knows.

    Args:
        capability: of the card, 10 times the major and the minor number: 90 for an H100.
    """
    count = ctypes.c_int()
    _check_nvrtc(library().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    known = (ctypes.c_int * count.value)()
    _check_nvrtc(library().nvrtcGetSupportedArchs(known))
    if capability in known:
        return f"sm_{capability}"
    older = [each for each in known if each < capability]
    if not older:
        raise NoCompiler(f"NVRTC {version()} knows no card as old as one of compute capability {capability / 10}")
    return f"compute_{max(older)}"


@functools.cache
def compiled(source: str, architecture: str, options: Sequence[str] = _OPTIONS) -> bytes:
    """The binary (for ``sm_XY``) or PTX (for ``compute_XY``) of a CUDA text.

    Raises:
        NoCompiler: there is no NVRTC, or the text does not compile.
    """
    identity = "\0".join((version(), architecture, *options, source))
    name = hashlib.sha256(identity.encode()).hexdigest()[:32] + ".cubin"
    try:
        kept = folder() / name
        content = kept.read_bytes()
        if (
            hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]
        ):  # else damaged, for example by a full disk
            return content[_DIGEST:]
    except OSError:
        pass
    binary = _compile(source, architecture, options)
    with contextlib.suppress(OSError):  # no place for it: the next process compiles again
        folder().mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder(), prefix="optimizers-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(binary).digest() + binary)
            os.replace(temporary, folder() / name)
        except OSError:
            os.unlink(temporary)
    return binary


def _compile(source: str, architecture: str, options: Sequence[str]) -> bytes:
    nvrtc, program, size = library(), ctypes.c_void_p(), ctypes.c_size_t()
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"step.cu", 0, None, None)
    _check_nvrtc(created)
    try:
        given = [option.encode() for option in (f"--gpu-architecture={architecture}", *options)]
        failed = nvrtc.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
        if failed:
            _check_nvrtc(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
            log = ctypes.create_string_buffer(size.value)
            _check_nvrtc(nvrtc.nvrtcGetProgramLog(program, log))
            raise NoCompiler(f"NVRTC {version()} does not compile a step for {architecture}: {log.value.decode()}")
        kind = "CUBIN" if architecture.startswith("sm_") else "PTX"
        _check_nvrtc(getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)))
        binary = ctypes.create_string_buffer(size.value)
        _check_nvrtc(getattr(nvrtc, f"nvrtcGet{kind}")(program, binary))
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return binary.raw


def _check_nvrtc(code: int) -> None:
    if code:
        say = library().nvrtcGetErrorString
        say.restype = ctypes.c_char_p
        raise NoCompiler(f"NVRTC: {say(code).decode()}")


class Card:
    """A GPU, on which kernels are loaded and launched: in its primary context, which is torch's, on torch's stream.

    Raises:
        NoCompiler: there is no NVRTC, or no card of this number.
    """

    def __init__(self, index: int) -> None:
        self.device = torch.device("cuda", index)
        driver = self._driver = library()
        if not hasattr(driver, "cuLaunchKernel"):
            raise NoCompiler("there is no driver of a GPU")
        driver.cuLaunchKernel.argtypes = [ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3]
        number, context, capability = ctypes.c_int(), ctypes.c_void_p(), []
        try:
            self._check(driver.cuInit(0))
            self._check(driver.cuDeviceGet(ctypes.byref(number), index))
            for name in (_MAJOR, _MINOR):
                value = ctypes.c_int()
                self._check(driver.cuDeviceGetAttribute(ctypes.byref(value), name, number))
                capability.append(value.value)
            self._check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), number))
        except RuntimeError as error:
            raise NoCompiler(str(error)) from None
        self._context = context
        self._target = target(10 * capability[0] + capability[1])
        self._modules: dict[str, ctypes.c_void_p] = {}

    def load(self, source: str, names: Sequence[str]) -> list[Any]:
        """The kernels of these names of a CUDA text.

        Raises:
            NoCompiler: the text does not compile, or the driver does not take what it compiles to.
        """
        binary = compiled(source, self._target)
        functions = [ctypes.c_void_p() for _ in names]
        try:
            with self._current():
                if source not in self._modules:
                    module = ctypes.c_void_p()
                    self._check(self._driver.cuModuleLoadData(ctypes.byref(module), binary))
                    self._modules[source] = module
                for name, function in zip(names, functions, strict=True):
                    found = self._driver.cuModuleGetFunction(
                        ctypes.byref(function), self._modules[source], name.encode()
                    )
                    self._check(found)
        except RuntimeError as error:
            raise NoCompiler(f"{error} (NVRTC {version()}, {self._target})") from None
        return functions

    def launch(self, kernel: Any, blocks: int, threads: int, arguments: Any) -> None:
        """Launch a kernel on torch's current stream of this card.

        Args:
            kernel: one that `load` has returned.
            blocks, threads: the grid, and a block of it.
            arguments: where each argument is: an array of addresses.

        Raises:
            RuntimeError: the driver refuses it; the message is the driver's.
        """
        with self._current():
            sizes = blocks, 1, 1, threads, 1, 1, 0
            self._check(self._driver.cuLaunchKernel(kernel, *sizes, self.stream(), arguments, None))

    def stream(self) -> int:
        """The address of torch's current stream of this card."""
        return torch._C._cuda_getCurrentRawStream(self.device.index)

    def capturing(self) -> bool:
        """Whether a graph is being captured."""
        return torch.cuda.is_current_stream_capturing()

    @contextlib.contextmanager
    def _current(self) -> Any:
        """Make the card's context current in this thread, whatever device is, and was ever, current in it."""
        self._check(self._driver.cuCtxPushCurrent_v2(self._context))
        try:
            yield
        finally:
            self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _check(self, code: int) -> None:
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(text))
            said = text.value.decode() if text.value else f"error {code}"
            raise RuntimeError(f"the driver of {self.device} says: {said}")


@functools.cache
def card(index: int) -> Card:
    """The card of this number; NoCompiler as `Card`."""
    return Card(index)
