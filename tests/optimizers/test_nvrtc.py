"""CUDA text through NVRTC, which needs no GPU, and what of it is asked of a driver, played by a C library."""

import ctypes
import hashlib
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optimizers
from optimizers import Adam
from optimizers.engine import compiled
from optimizers.engine.compiled import nvrtc
from optimizers.engine.compiled.compiler import NoCompiler
from optimizers.engine.compiled.cuda_table import CudaTable, Processor

from .test_fused import FORMS, all_extensions
from .test_mixes import EXTENSIONS

CARDS = ("sm_80", "sm_90", "sm_100")
TRIVIAL = 'extern "C" __global__ void kernel(int *x) { *x = 3; }'

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NVIDIA's wheels are for Linux")


class Writing:
    """A device that does nothing: it has the texts of all kernels that it was to load."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def load(self, source: str, names: Sequence[str]) -> list[Any]:
        self.texts.setdefault(source, self.label)
        return [None] * len(names)

    def launch(self, *_: Any) -> None: ...

    def capturing(self) -> bool:
        return False


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """The distinct texts of all optimizers, all forms of rules and all extensions, each with whose it is."""
    writing = Writing()

    class Played(CudaTable):
        @classmethod
        def processor(cls, device: torch.device) -> Processor:
            return writing

    def step(label: str, make: Callable[..., Any], dtype: torch.dtype = torch.float32) -> None:
        writing.label = f"{label} {dtype}"
        param = nn.Parameter(torch.ones(4, 3, dtype=dtype))
        optimizer = make([param], fused=True)
        param.grad = torch.ones_like(param)
        optimizer.step(lambda: 0.0)
        assert "Execution: compiled\n" in repr(optimizer), label

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setitem(compiled.TABLES, "cpu", Played)
        for name in optimizers.list():
            step(name, lambda params, name=name, **options: optimizers.create(name, params, **options))
        for name, options in FORMS:
            step(
                f"{name} {options}",
                lambda params, n=name, o=options, **given: optimizers.create(n, params, **o, **given),
            )
        for name, make in EXTENSIONS.items():
            step(name, lambda params, make=make, **options: Adam(params, extensions=[make()], **options))
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            step("adam", Adam, dtype)
            step(
                "mix",
                lambda params, **o: optimizers.RAdamW(params, nesterov=True, extensions=all_extensions(), **o),
                dtype,
            )
    return writing.texts


def assembly(binary: bytes, folder: Path) -> dict[str, str]:
    """The instructions of each kernel, by its name, as NVIDIA's disassembler prints them."""
    spec = find_spec("nvidia")
    assert spec is not None
    (program,) = [
        path for root in spec.submodule_search_locations or () for path in Path(root).glob("*/bin/nvdisasm")
    ]
    (folder / "step.cubin").write_bytes(binary)
    text = subprocess.run([program, "-c", folder / "step.cubin"], capture_output=True, text=True, check=True).stdout
    _, *parts = re.split(r"\.section\s+\.text\.(\w+)", text)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def registers(binary: bytes) -> dict[str, int]:
    """How many registers each kernel's threads have, as the binary, an ELF file, says in its section `.nv.info`."""

    def field(at: int, length: int) -> int:
        return int.from_bytes(binary[at : at + length], "little")

    def text(at: int) -> str:
        return binary[at : binary.index(b"\0", at)].decode()

    table, size, count, names = field(40, 8), field(58, 2), field(60, 2), field(62, 2)
    heads = [table + i * size for i in range(count)]
    begins = {text(field(heads[names] + 24, 8) + field(head, 4)): field(head + 24, 8) for head in heads}
    length = next(field(head + 32, 8) for head in heads if field(head + 24, 8) == begins[".nv.info"])
    found, at, end = {}, begins[".nv.info"], begins[".nv.info"] + length
    while at < end:
        kind, name, extent = field(at, 1), field(at + 1, 1), field(at + 2, 2)
        if (kind, name) == (4, 0x2F):  # a symbol and its registers
            symbol = begins[".symtab"] + 24 * field(at + 4, 4)
            found[text(begins[".strtab"] + field(symbol, 4))] = field(at + 8, 4)
        at += 4 + (extent if kind == 4 else 0)
    return found


# ---------------------------------------------------------------------- the text


def news(texts: dict[str, str]) -> dict[str, str]:
    """Those of the texts in which a function or a type is that none before has."""
    known: set[str] = set()
    found = {}
    for text, label in texts.items():
        words = set(re.findall(r"\b[a-z]\w*(?=[(<])|\b\w*(?:float|double|int)\w*", text))
        found |= {text: label} if words - known else {}
        known |= words
    return found


@pytest.mark.parametrize("card", CARDS)
def test_every_text_compiles(card: str, texts: dict[str, str]) -> None:
    """And two blocks of 256 threads have room for their registers on a multiprocessor.

    All of every optimizer and extension are compiled for one card, for the others those that say something new.
    """
    assert len(texts) > 60
    ours = news(texts)
    assert len(ours) > 10
    if card == "sm_90":
        ours |= {
            text: label for text, label in texts.items() if label.split()[0] in (*optimizers.list(), *EXTENSIONS)
        }
    for text, label in ours.items():
        found = registers(nvrtc._compile(text, card, ("--std=c++17",)))
        assert found.keys() >= {"prepare_all", "advance_all"}, label
        assert 8 <= min(found.values()) <= max(found.values()) <= 128, label


@pytest.mark.parametrize("card", CARDS)
def test_adam_moves_16_bytes_at_a_time_and_has_registers_for_all(
    card: str, texts: dict[str, str], tmp_path: Path
) -> None:
    adam = next(text for text, label in texts.items() if label == "adamw torch.float32")
    binary = nvrtc._compile(adam, card, ("--std=c++17",))
    code = assembly(binary, tmp_path)["advance_all"]
    count = {
        pattern: len(re.findall(pattern, code)) for pattern in (r"LDG\S*\.128", r"STG\S*\.128", r"\b(LDL|STL)")
    }
    assert count[r"LDG\S*\.128"] >= 4  # parameter, gradient and two averages
    assert count[r"STG\S*\.128"] >= 3
    assert count[r"\b(LDL|STL)"] == 0
    assert 16 <= registers(binary)["advance_all"] <= 64  # four blocks of 256 threads


def test_a_card_that_is_newer_than_nvrtc_takes_ptx() -> None:
    newest = max(int(each) for each in range(75, 200) if nvrtc.target(each) == f"sm_{each}")
    assert nvrtc.target(90) == "sm_90"
    assert nvrtc.target(newest + 1) == f"compute_{newest}"
    assert nvrtc._compile(TRIVIAL, f"compute_{newest}", ()).lstrip().startswith(b"//")
    with pytest.raises(NoCompiler, match=r"no card as old as one of compute capability 3\.5"):
        nvrtc.target(35)


def test_what_does_not_compile_is_said() -> None:
    with pytest.raises(NoCompiler, match=r'does not compile a step for sm_90: .*identifier "y" is undefined'):
        nvrtc._compile(TRIVIAL.replace("3", "y"), "sm_90", ())


# ---------------------------------------------------------------------- what is kept


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("OPTIMIZERS_CACHE", str(tmp_path / "cache"))
    nvrtc.compiled.cache_clear()
    yield tmp_path / "cache"
    nvrtc.compiled.cache_clear()


def again(*given: Any) -> bytes:
    nvrtc.compiled.cache_clear()
    return nvrtc.compiled(*given)


def test_a_binary_is_kept_by_all_that_it_depends_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = again(TRIVIAL, "sm_90")
    (kept,) = cache.iterdir()
    made = kept.stat().st_mtime_ns
    assert again(TRIVIAL, "sm_90") == binary
    assert kept.stat().st_mtime_ns == made
    again(TRIVIAL, "sm_80")
    again(TRIVIAL + "\n", "sm_90")
    again(TRIVIAL, "sm_90", ("--std=c++14",))
    monkeypatch.setattr(nvrtc, "version", lambda: "99.9")
    again(TRIVIAL, "sm_90")
    assert len(list(cache.iterdir())) == 5


def test_a_damaged_binary_is_made_anew(cache: Path) -> None:
    binary = again(TRIVIAL, "sm_90")
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    assert whole[:32] == hashlib.sha256(binary).digest()
    for damaged in (whole[:100], b"", whole[:-1] + b"\1"):
        kept.write_bytes(damaged)
        assert again(TRIVIAL, "sm_90") == binary
        assert kept.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_not_needed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file where a folder should be")
    assert again(TRIVIAL, "sm_90").startswith(b"\x7fELF")

    def nowhere() -> Path:
        raise OSError("a user without a home")

    monkeypatch.setattr(nvrtc, "folder", nowhere)
    assert again(TRIVIAL, "sm_90").startswith(b"\x7fELF")


# ---------------------------------------------------------------------- the driver


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("driver") / "driver.so"
    source = Path(__file__).with_name("driver.c")
    subprocess.run([shutil.which("cc") or "gcc", "-w", "-shared", "-fPIC", source, "-o", path], check=True)
    driver = ctypes.CDLL(str(path))
    driver.notes.restype, driver.argument.restype = ctypes.c_char_p, ctypes.c_int64
    real = nvrtc.library()
    for name in ("Version", "GetNumSupportedArchs", "GetSupportedArchs"):
        setattr(driver, f"nvrtc{name}", getattr(real, f"nvrtc{name}"))
    return driver


@pytest.fixture
def driver(library: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """NVRTC is real, the driver notes what it is asked."""
    real = nvrtc.library()
    sizes = "CUBINSize", "PTXSize", "ProgramLogSize"
    gets = [f"Get{each}" for each in ("CUBIN", "PTX", "ProgramLog", "ErrorString", *sizes)]
    for name in ("CreateProgram", "CompileProgram", "DestroyProgram", *gets):
        setattr(library, f"nvrtc{name}", getattr(real, f"nvrtc{name}"))
    monkeypatch.setattr(nvrtc, "library", lambda: library)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 0x5000000000 + index, raising=False)
    library.fail(b"", 0)
    library.forget()
    return library


def noted(driver: Any) -> list[str]:
    found = driver.notes().decode().split(";")[:-1]
    driver.forget()
    return found


def test_a_launch_is_on_torchs_stream_in_the_cards_context(driver: Any) -> None:
    card = nvrtc.Card(1)
    assert noted(driver) == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]
    (kernel,) = card.load(TRIVIAL, ["kernel"])
    assert noted(driver) == ["push 1000000029", "load ELF", "kernel", "pop"]
    assert card.load(TRIVIAL, ["kernel"])[0].value == kernel.value
    assert noted(driver) == ["push 1000000029", "kernel", "pop"]  # the module is loaded once
    box = (ctypes.c_int64 * 2)(7, 1 << 40)
    arguments = (ctypes.c_void_p * 2)(ctypes.addressof(box), ctypes.addressof(box) + 8)
    card.launch(kernel, 3, 256, arguments)
    launch = "3000000006 grid 3 1 1 block 256 1 1 shared 0 stream 5000000001 depth 1"
    assert noted(driver) == ["push 1000000029", launch, "pop"]
    assert (driver.argument(0), driver.argument(1)) == (7, 1 << 40)


def test_what_the_driver_refuses_is_said(driver: Any) -> None:
    card = nvrtc.Card(0)
    (kernel,) = card.load(TRIVIAL, ["kernel"])
    driver.fail(b"launch", 719)
    with pytest.raises(RuntimeError, match="the driver of cuda:0 says: unspecified launch failure"):
        card.launch(kernel, 1, 1, (ctypes.c_void_p * 2)(0, 0))
    assert noted(driver)[-1] == "pop"  # whoever is next finds the context that was current
    driver.fail(b"load ELF", 218)
    with pytest.raises(NoCompiler, match=r"a PTX JIT compilation failed \(NVRTC .*, sm_90\)"):
        card.load(TRIVIAL + "\n", ["kernel"])
    driver.fail(b"cuDeviceGet", 101)
    with pytest.raises(NoCompiler, match="the driver of cuda:7 says: error 101"):
        nvrtc.Card(7)


def test_a_torch_without_cuda_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.version.cuda:
        with pytest.raises(NoCompiler, match="there is no driver of a GPU"):
            nvrtc.Card(0)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda name: None)
    nvrtc.library.cache_clear()
    try:
        with pytest.raises(NoCompiler, match="there is no NVRTC beside this torch"):
            nvrtc.library()
    finally:
        nvrtc.library.cache_clear()
