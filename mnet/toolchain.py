"""Compilers: which are there, and how a generated folder and the harness become a program for the host or a board.

A build is one compiler command per file and one link, with `firmware/Makefile`'s flags; nothing is kept between builds.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from codegen.targets import Target
from codegen.targets import target as find_target
from mnet.errors import MissingToolError, ToolError
from mnet.resources import folder as resource_folder

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")
STRICT_CPP = ("-std=c++11", *STRICT[1:])
OPTIMIZE = ("-O2", "-fomit-frame-pointer")
_BARE = ("-ffreestanding", "-ffunction-sections", "-fdata-sections")
_SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-DSUBJECT_SANITIZE")
_COMPILE_SECONDS = 300  # zig builds its run-time library at the first link for a core

# The harness's switches that need the model to call subject_trace.
TRACING = ("SUBJECT_TRACE", "SUBJECT_POISON", "SUBJECT_MARK")


@dataclass(frozen=True)
class Compiler:
    """A C compiler that was found. `command` starts every call of it, `command_cpp` the same for C++."""

    name: str  # "arm-none-eabi-gcc", "zig", "gcc", "clang", "cc"
    command: tuple[str, ...]
    command_cpp: tuple[str, ...]
    version: str


_HOW_TO_GET = {
    "arm-none-eabi-gcc": "install it (Debian: apt-get install gcc-arm-none-eabi; macOS: brew install "
    "arm-none-eabi-gcc), or pip install 'mnet-mcu[zig]' and compile with zig",
    "zig": "pip install 'mnet-mcu[zig]'",
    "gcc": "install it (Debian: apt-get install gcc)",
    "clang": "install it (Debian: apt-get install clang)",
    "cc": "install a C compiler (Debian: apt-get install gcc), or pip install 'mnet-mcu[zig]'",
    "qemu-system-arm": "install it (Debian: apt-get install qemu-system-arm; macOS: brew install qemu); "
    "without it programs run in Unicorn, which has no Cortex-M55",
}


def how_to_get(tool: str) -> str:
    """Say in a clause how to install `tool`."""
    return _HOW_TO_GET[tool]


def version_of(command: Sequence[str]) -> str | None:
    """Return the first line of what `command` prints, or None if it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.strip() or done.stderr.strip()).partition("\n")[0]


def find_compiler(name: str) -> Compiler:
    """Return the compiler `name`: "arm-none-eabi-gcc", "zig", "gcc", "clang", or "cc" for any that makes host programs.

    Raises:
        ToolError: it is not installed, or does not start; the message says how to get it.
    """
    if name == "cc":
        for candidate in ("cc", "gcc", "clang"):
            path = shutil.which(candidate)
            version = version_of((path, "--version")) if path else None
            if path and version is not None:
                return Compiler(candidate, (path,), (path, "-x", "c++"), version)
        try:
            return find_compiler("zig")
        except ToolError:
            raise MissingToolError(f"there is no C compiler for this computer: {how_to_get('cc')}") from None
    if name == "zig":
        if importlib.util.find_spec("ziglang") is not None:
            zig: tuple[str, ...] = (sys.executable, "-m", "ziglang")
        else:
            path = shutil.which("zig")
            zig = (path,) if path else ()
        version = version_of((*zig, "version")) if zig else None
        if version is not None:
            return Compiler(name, (*zig, "cc"), (*zig, "c++", "-x", "c++"), f"zig {version}")
    elif name in _HOW_TO_GET:
        path = shutil.which(name)
        version = version_of((path, "--version")) if path else None
        if path and version is not None:
            return Compiler(name, (path,), (path, "-x", "c++"), version)
    else:
        raise ToolError(f"unknown compiler {name!r}; known are arm-none-eabi-gcc, zig, gcc, clang and cc")
    raise MissingToolError(f"{name} is missing: {how_to_get(name)}")


def model_name(folder: Path) -> str:
    """Return NAME of a generated folder, from its NAME.plan.json.

    Raises:
        ToolError: it is not one.
    """
    plans = sorted(folder.glob("*.plan.json"))
    if len(plans) != 1:
        raise ToolError(
            f"{folder} is not a folder that mnet codegen wrote: it holds {len(plans)} files *.plan.json, not one"
        )
    return plans[0].name.removesuffix(".plan.json")


def _run(what: str, command: Sequence[str], cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_COMPILE_SECONDS, cwd=cwd
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"{what}: the compiler did not end within {_COMPILE_SECONDS} s") from None
    except OSError as error:
        raise ToolError(f"{what}: {command[0]} does not start ({error.strerror})") from None
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise ToolError("\n  ".join([f"{what}:", *lines[:12]]))


def _definitions(name: str, defines: Sequence[str]) -> tuple[str, ...]:
    hook = (f"{name.upper()}_TRACE_FUNCTION=subject_trace",) if set(defines) & set(TRACING) else ()
    return tuple(f"-D{define}" for define in (*defines, *hook))


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolError(f"cannot make the folder {path} ({error.strerror})") from None


def _compile(
    compiler: Compiler, flags: Sequence[str], sources: Sequence[Path], out_dir: Path, suffix: str
) -> list[Path]:
    objects = []
    for source in sources:
        objects.append(out_dir / f"{source.stem}{suffix}")
        command = (*compiler.command, *flags, "-c", str(source), "-o", str(objects[-1]))
        _run(f"cannot compile {source.name} with {compiler.name}", command)
    return objects


def build_host(
    folder: Path, defines: Sequence[str], out_dir: Path, sanitizers: bool = False, compiler: str = "cc"
) -> Path:
    """Compile a generated folder and the harness for this computer; return the program.

    Args:
        folder: what `mnet codegen` wrote.
        defines: the harness's switches, for example ("SUBJECT_TRACE", "SUBJECT_POISON").
        out_dir: where objects and program go; made if missing.
        sanitizers: with AddressSanitizer and UndefinedBehaviorSanitizer, any finding ends the program.
        compiler: a name that `find_compiler` knows.

    Raises:
        ToolError: no compiler, or it failed; its first lines follow the sentence.
    """
    found = find_compiler(compiler)
    name = model_name(folder)
    harness = resource_folder("firmware") / "harness"
    _make_folder(out_dir)
    flags = [*STRICT, *OPTIMIZE, f"-I{folder}", f"-I{harness}", *_definitions(name, defines)]
    if sanitizers:
        flags += _SANITIZE
    objects = _compile(found, flags, sorted(folder.glob("*.c")), out_dir, ".model.o")
    objects += _compile(found, flags, [harness / "main.c", harness / "io_host.c"], out_dir, ".o")
    program = out_dir / name
    link = (*found.command, *(flag for flag in _SANITIZE if sanitizers), *map(str, objects), "-o", str(program))
    _run(f"cannot link {name} with {found.name}", link)
    return program


def build_target(
    folder: Path,
    target: Target,
    defines: Sequence[str],
    compiler: str,
    out_dir: Path,
    board: str | None = None,
    program: str = "main",
    keep: Sequence[str] = (),
) -> Path:
    """Compile a generated folder and the harness for an emulated board; return the ELF file, which names its board.

    Args:
        folder: what `mnet codegen` wrote.
        target: the core whose instructions are compiled.
        defines: the harness's switches, for example ("SUBJECT_TRACE", "SUBJECT_POISON").
        compiler: "gcc" (arm-none-eabi-gcc) or "zig".
        out_dir: where objects and ELF file go; made if missing.
        board: one of firmware/boards; by default the first of `target.boards` that the program fits.
        program: "main", the harness that watches, or "application", which takes no more memory than it must.
        keep: functions that stay in the program though nothing calls them.

    Raises:
        ToolError: no compiler, it failed, or the program is too large for the board.
    """
    boards = (board,) if board else target.boards
    if not boards:
        raise ToolError(f"{target.name} has no emulated board: use build_host")
    found = find_compiler("arm-none-eabi-gcc" if compiler == "gcc" else compiler)
    name = model_name(folder)
    firmware = resource_folder("firmware").resolve()
    folder, out_dir = folder.resolve(), out_dir.resolve()
    core = target.zig if found.name == "zig" else target.gcc
    _make_folder(out_dir)
    flags = (
        *STRICT,
        *OPTIMIZE,
        *_BARE,
        *core,
        f"-I{folder}",
        f"-I{firmware / 'harness'}",
        *_definitions(name, defines),
    )
    objects = _compile(found, flags, sorted(folder.glob("*.c")), out_dir, ".model.o")
    harness = [firmware / "harness" / f"{stem}.c" for stem in (program, "io_semihosting", "freestanding")]
    objects += _compile(found, flags, harness, out_dir, ".o")
    for position, chosen in enumerate(boards):
        start = _compile(found, (*flags, f'-DBOARD_NAME="{chosen}"'), [firmware / "boards" / "start.c"], out_dir, ".o")
        elf = out_dir / f"{name}-{target.name}-{found.name}.elf"
        scripts = ["-T", f"{chosen}.ld", "-Wl,--gc-sections", *(f"-Wl,-u,{function}" for function in keep)]
        library = () if found.name == "zig" else ("-nostdlib", "-lgcc")
        link = (*found.command, *core, *OPTIMIZE, *scripts, *map(str, (*objects, *start)), *library, "-o", str(elf))
        try:
            # From the scripts' own folder, because zig hands no -L on, where lld would look for an INCLUDEd script.
            _run(f"cannot link {name} for {chosen} with {found.name}", link, cwd=firmware / "boards")
        except ToolError as error:
            too_much = _too_much(str(error))
            if not too_much:
                raise
            if position + 1 < len(boards):
                continue
            raise ToolError(f"{name} does not fit the board {chosen}: {too_much}") from None
        return elf
    raise AssertionError("the loop returns or raises at the last board")


def _too_much(said: str) -> str:
    """Return "N B too much for its REGION" for each region that a linker found too small, or ""."""
    found: dict[str, int] = {}
    for overflow in re.finditer(r"region [`'](\w+)'[^\n]*?overflowed by (\d+) bytes", said):
        found[overflow[1]] = max(found.get(overflow[1], 0), int(overflow[2]))  # lld: one line for each section
    return " and ".join(f"{size:,} B too much for its {region}" for region, size in found.items())


def check_warnings(folder: Path, compiler: str, language: str = "c", core: Target | None = None) -> None:
    """Compile each generated .c file under the strict flags and throw the result away.

    Args:
        folder: what `mnet codegen` wrote.
        compiler: "gcc", "clang", "arm-none-eabi-gcc" or "zig".
        language: "c" (C99) or "c++" (C++11).
        core: which core, for compilers that make board code; by default the Cortex-M4. Zig makes host code without it.

    Raises:
        ToolError: the compiler is missing, or it said anything at all.
    """
    found = find_compiler(compiler)
    core_flags: tuple[str, ...] = ()
    if found.name == "arm-none-eabi-gcc":
        core_flags = (*(core or find_target("cortex-m4")).gcc, *_BARE)
    elif found.name == "zig" and core is not None:
        core_flags = (*core.zig, *_BARE)
    command, strict = (found.command, STRICT) if language == "c" else (found.command_cpp, STRICT_CPP)
    with tempfile.TemporaryDirectory(prefix="mnet-") as out:
        for source in sorted(folder.glob("*.c")):
            # Compiling for real, not -fsyntax-only, brings the warnings that need data flow.
            full = (*command, *strict, *OPTIMIZE, *core_flags, f"-I{folder}", "-c", str(source), f"-o{out}/a.o")
            _run(f"{source.name} is not clean as {language} in {found.name}", full)


@dataclass(frozen=True)
class Symbol:
    """A function or object of an ELF file."""

    name: str
    address: int
    size: int  # bytes
    section: str  # "" for a number that the linker script made
    is_function: bool


@dataclass(frozen=True)
class Sizes:
    """Bytes of the generated model in a linked ELF file, without the harness and without what nothing uses."""

    code: int
    constants: int  # weights, tables
    data: int  # initialised RAM, which also takes flash; 0 for a generated model
    bss: int  # cleared RAM; 0 for a generated model: its arena is the caller's
    support: int  # the compiler's run-time routines (64-bit division and the like), for harness and model together

    @property
    def flash(self) -> int:
        """What the model adds to flash, without `support`."""
        return self.code + self.constants + self.data


def _open_elf(elf: Path) -> ELFFile:
    try:
        return ELFFile.load_from_path(str(elf))
    except (OSError, ELFError) as error:
        raise ToolError(f"cannot read the ELF file {elf}: {error}") from None


def symbols(elf: Path) -> tuple[Symbol, ...]:
    """Return functions and objects of `elf`, by address; a function's address has its Thumb bit removed."""
    with _open_elf(elf) as file:
        names = [section.name for section in file.iter_sections()]
        table = file.get_section_by_name(".symtab")
        found = []
        for symbol in table.iter_symbols() if table is not None else ():
            kind, index = symbol["st_info"]["type"], symbol["st_shndx"]
            if index != "SHN_UNDEF" and kind != "STT_FILE" and symbol.name and not symbol.name.startswith("$"):
                is_function = kind == "STT_FUNC"
                section = names[index] if isinstance(index, int) else ""
                address = symbol["st_value"] & ~1 if is_function else symbol["st_value"]
                found.append(Symbol(symbol.name, address, symbol["st_size"], section, is_function))
    return tuple(sorted(found, key=lambda symbol: (symbol.address, symbol.name)))


def code_of(elf: Path) -> Callable[[int, int], bytes]:
    """Return a function that gives the bytes of `elf` at an address, of a length.

    Raises:
        ToolError: (that function) the file has no code or constants there.
    """
    with _open_elf(elf) as file:
        segments = [
            (int(segment["p_vaddr"]), bytes(segment.data()))
            for segment in file.iter_segments()
            if segment["p_type"] == "PT_LOAD" and segment["p_filesz"]
        ]

    def code(address: int, size: int) -> bytes:
        for start, data in segments:
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        raise ToolError(f"{elf.name} has nothing at {address:#x}")

    return code


def instruction_bytes(code: bytes, at: int) -> int:
    """Return the length of the Thumb instruction at `at`, which its first half word tells."""
    return 4 if code[at + 1] >> 3 in (0b11101, 0b11110, 0b11111) else 2


def section(elf: Path, name: str) -> tuple[int, bytes]:
    """Return address and bytes of a section of `elf`."""
    with _open_elf(elf) as file:
        found = file.get_section_by_name(name)
        if found is None:
            raise ToolError(f"{elf} has no section {name}")
        return int(found["sh_addr"]), bytes(found.data())


def section_bytes(elf: Path, name: str) -> int:
    """Return the size of a section of `elf`, 0 where there is none."""
    with _open_elf(elf) as file:
        return sum(int(section["sh_size"]) for section in file.iter_sections() if section.name == name)


def sizes(elf: Path) -> Sizes:
    """Return what the generated model takes in an ELF file of `build_target` or firmware/Makefile."""
    with _open_elf(elf) as file:
        of = {section.name: int(section["sh_size"]) for section in file.iter_sections()}
    if ".model_code" not in of:
        raise ToolError(f"{elf} was not linked with firmware/boards/sections.ld: its model's sections are missing")
    at = {symbol.name: symbol.address for symbol in symbols(elf)}
    return Sizes(
        code=of[".model_code"],
        constants=of.get(".model_constants", 0),
        data=at["__model_data_end"] - at["__model_data_start"],
        bss=at["__model_bss_end"] - at["__model_bss_start"],
        support=of.get(".support", 0),
    )
