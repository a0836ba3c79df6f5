"""`mnet doctor`: what is installed, what is missing, how to get it, and what works without it."""

import importlib.metadata
import importlib.util
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mnet import __version__, published, resources
from mnet.commands.console import Column, print_json, print_table
from mnet.errors import ToolError
from mnet.toolchain import find_compiler, how_to_get, version_of


@dataclass(frozen=True)
class Finding:
    """One thing that mnet can use."""

    name: str
    kind: str  # package, compiler, emulator, data, tool
    version: str | None  # None: missing
    use: str
    how: str  # to get it


_PACKAGES = (
    ("tensorflow", ("tensorflow-cpu", "tensorflow"), "train, quantize", "pip install tensorflow"),
    ("ai-edge-litert", ("ai-edge-litert",), "the oracle litert: verify, eval", "pip install ai-edge-litert"),
    ("tflite-micro", ("tflite-micro",), "the oracle tflm: verify", "pip install 'mnet-mcu[tflm]' (Linux on x86-64)"),
    ("unicorn", ("unicorn",), "emulates M0 to M33, counts", "pip install unicorn"),
    ("capstone", ("capstone",), "disassembles: profile, show", "pip install capstone"),
    ("pyelftools", ("pyelftools",), "reads ELF files", "pip install pyelftools"),
)
_COMPILERS = (
    ("arm-none-eabi-gcc", "compiles for Cortex-M"),
    ("zig", "compiles for Cortex-M and this computer; a second opinion"),
    ("cc", "compiles for this computer"),
    ("clang", "only for tests"),
)


def findings() -> tuple[Finding, ...]:
    """Look for everything that mnet can use."""
    return (*_packages(), *_compilers(), *_tools(), *_data())


def _packages() -> Iterator[Finding]:
    yield Finding("python", "package", platform.python_version(), "3.11 or newer", "")
    for name, distributions, use, how in _PACKAGES:
        found = next((version for d in distributions if (version := _distribution(d)) is not None), None)
        yield Finding(name, "package", found, use, how)


def _distribution(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _compilers() -> Iterator[Finding]:
    for name, use in _COMPILERS:
        version: str | None
        try:
            compiler = find_compiler(name)
            version = compiler.version if compiler.name == name or name == "cc" else None
        except ToolError:
            version = None
        yield Finding(name, "compiler", version, use, how_to_get(name))


def _tools() -> Iterator[Finding]:
    qemu = shutil.which("qemu-system-arm")
    version = version_of((qemu, "--version")) if qemu else None
    yield Finding("qemu-system-arm", "emulator", version, "emulates M0 to M55", how_to_get("qemu-system-arm"))
    make = shutil.which("make")
    version = version_of((make, "--version")) if make else None
    yield Finding("make", "tool", version, "`make test` in a generated folder, firmware/", "apt-get install make")


def _data() -> Iterator[Finding]:
    yield Finding("sample", "data", "bundled", "4,000 + 1,000 images of Fashion-MNIST", "")
    fashion = next((str(f) for f in published.FASHION_FOLDERS if (f / "train-images-idx3-ubyte.gz").is_file()), None)
    how = "apt-get install dataset-fashion-mnist; Keras downloads it where there is internet"
    yield Finding("fashion-mnist", "data", fashion, "70,000 grey images of 28x28", how)
    shared = resources.shared_folder()
    archive = shared / "data" / "cifar10-jpeg.tar.gz" if shared else None
    cached = sorted(Path("~/.keras/datasets").expanduser().glob("cifar-10-batches-py*"))
    found = str(cached[0]) if cached else str(archive) if archive and archive.is_file() else None
    how = "Keras downloads it where there is internet; or point $MNET_SHARED to data/cifar10-jpeg.tar.gz"
    yield Finding("cifar10", "data", found, "60,000 colour images of 32x32", how)


@dataclass(frozen=True)
class Ability:
    """Something that a user wants to do, and by what it works here, or why it does not."""

    what: str
    works: bool
    by: str


def abilities(found: tuple[Finding, ...]) -> tuple[Ability, ...]:
    """Say what works with these findings."""
    here = {finding.name for finding in found if finding.version is not None}

    def any_of(what: str, *names: str) -> Ability:
        present = [name for name in names if name in here]
        return Ability(what, bool(present), ", ".join(present) if present else f"needs {' or '.join(names)}")

    return (
        any_of("train and quantize", "tensorflow"),
        any_of("compare with LiteRT", "ai-edge-litert"),
        any_of("compare with TFLM", "tflite-micro"),
        any_of("compile for this computer", "cc", "zig"),
        any_of("compile for Cortex-M", "arm-none-eabi-gcc", "zig"),
        any_of("run emulated Cortex-M0 to M33", "qemu-system-arm", "unicorn"),
        any_of("run an emulated Cortex-M55", "qemu-system-arm"),
    )


_ROAD = ("compile for Cortex-M", "run emulated Cortex-M0 to M33")


def run(json_file: str | None) -> int:
    """Print everything; return 0 if C can be compiled for a Cortex-M and run on an emulated one, else 3."""
    found = findings()
    able = abilities(found)
    code = 0 if all(ability.works for ability in able if ability.what in _ROAD) else 3
    if json_file:
        values = {
            "mnet": __version__,
            "findings": [asdict(finding) for finding in found],
            "abilities": [asdict(ability) for ability in able],
            "exit_code": code,
        }
        print_json(values, json_file)
        return code
    rows = [(finding.kind, finding.name, finding.version or "missing", finding.use) for finding in found]
    print_table((Column("kind"), Column("name"), Column("found"), Column("for")), rows, f"mnet {__version__}\n")
    print()
    print_table(
        (Column("can it"), Column(""), Column("by")),
        [(ability.what, "yes" if ability.works else "NO", ability.by) for ability in able],
    )
    missing = [finding for finding in found if finding.version is None]
    if missing:
        print("\nTo get what is missing:")
        for finding in missing:
            print(f"  {finding.name}: {finding.how}")
    return code
