"""Run a harness program on the host, in QEMU or in Unicorn.

QEMU has all six cores and faults as boards do; Unicorn comes with pip, has no Cortex-M55, and its M0 refuses what an M0
lacks. Programs are those of `mnet.toolchain`: inputs come from a file, outputs and traces go to files (semihosting).

Two things no emulator proves: an M3 of either executes some DSP instructions (the compiler's -mcpu=cortex-m3 keeps them
out, and the disassembly shows it), and neither has wait states (`mnet.counting` counts, `mnet.cycles` models time).
"""

import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import unicorn
from elftools.elf.elffile import ELFFile
from unicorn import arm_const, unicorn_const

from codegen.targets import Target
from mnet.errors import MissingToolError, ToolError
from mnet.toolchain import how_to_get, symbols

_INPUTS, _OUTPUTS, _TRACE = "inputs.bin", "outputs.bin", "trace.bin"


@dataclass(frozen=True)
class Run:
    """What a harness program gave back."""

    outputs: bytes  # SUBJECT_OUTPUT_BYTES per input
    trace: bytes  # for `mnet.trace`; empty unless built with SUBJECT_TRACE
    stack_bytes: int | None  # the most that the model pushed; None where the harness does not measure it
    text: str  # all that the program printed


def board_of(elf: Path) -> str:
    """Return the board that an ELF file of `build_target` or firmware/Makefile was linked for."""
    with ELFFile.load_from_path(str(elf)) as file:
        for symbol in symbols(elf):
            if symbol.name == "board_name":
                section = file.get_section_by_name(symbol.section)
                start = symbol.address - section["sh_addr"]
                data: bytes = section.data()[start : start + symbol.size]
                return data.rstrip(b"\0").decode()
    raise ToolError(f"{elf} names no board: it was not built with firmware/boards/start.c")


def _place(elf: Path, pc: int) -> str:
    for symbol in symbols(elf):
        if symbol.is_function and symbol.address <= pc < symbol.address + symbol.size:
            return f"{pc:#x} in {symbol.name}"
    return f"{pc:#x}"


def _result(what: str, code: int | None, text: str, outputs: bytes, trace: bytes) -> Run:
    if code != 0:
        said = "; ".join(line.strip() for line in text.splitlines() if line.strip()) or "nothing"
        raise ToolError(f"{what}: the program ended with status {code}, having said: {said[:500]}")
    stack = re.search(r"^stack (\d+)$", text, re.MULTILINE)
    return Run(outputs, trace, int(stack[1]) if stack else None, text)


def run_program(
    what: str, command: list[str], inputs: bytes, folder: Path, timeout_s: float, elf: Path | None = None
) -> Run:
    """Run `command`, which knows the harness's file names, in `folder`, an empty one; `elf` names faults' functions."""
    (folder / _INPUTS).write_bytes(inputs)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"{what}: the program did not end within {timeout_s:g} s") from None
    except OSError as error:
        raise ToolError(f"{what}: {command[0]} does not start ({error.strerror})") from None

    def content(name: str) -> bytes:
        return (folder / name).read_bytes() if (folder / name).exists() else b""

    text = done.stdout + done.stderr
    if elf is not None and done.returncode != 0:
        text = re.sub(r"(?<=fault at pc )0x[0-9a-f]{8}", lambda pc: _place(elf, int(pc[0], 16)), text)
    return _result(what, done.returncode, text, content(_OUTPUTS), content(_TRACE))


def run_host(program: Path, inputs: bytes, timeout_s: float = 60) -> Run:
    """Run a program of `build_host`.

    Raises:
        ToolError: it failed a check (the message says which), crashed or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="mnet-") as name:
        command = [str(program.resolve()), _INPUTS, _OUTPUTS, _TRACE]
        return run_program(f"{program.name} on this computer", command, inputs, Path(name), timeout_s)


# --- QEMU ---------------------------------------------------------------------------------------------------------


def find_qemu() -> str:
    """Return the path of qemu-system-arm.

    Raises:
        ToolError: it is not installed.
    """
    path = shutil.which("qemu-system-arm")
    if path is None:
        raise MissingToolError(f"qemu-system-arm is missing: {how_to_get('qemu-system-arm')}")
    return path


def qemu_command(elf: Path, board: str) -> list[str]:
    """Return the command that runs `elf` in `run_program`; options may be appended."""
    semihosting = f"enable=on,target=native,arg=harness,arg={_INPUTS},arg={_OUTPUTS},arg={_TRACE}"
    return [
        *(find_qemu(), "-M", board, "-display", "none", "-serial", "null", "-monitor", "none"),
        *("-semihosting-config", semihosting, "-kernel", str(elf.resolve())),
    ]


def run_qemu(elf: Path, board: str | None, inputs: bytes, timeout_s: float = 120) -> Run:
    """Run an ELF file of `build_target` in QEMU.

    Args:
        elf: the program.
        board: QEMU's machine; None for the one that the ELF file names.
        inputs: SUBJECT_INPUT_BYTES for each inference.
        timeout_s: seconds of real time, after which the run has failed.

    Raises:
        ToolError: no QEMU, or the program failed a check, faulted or took too long.
    """
    board = board or board_of(elf)
    with tempfile.TemporaryDirectory(prefix="mnet-") as name:
        return run_program(f"{elf.name} on {board}", qemu_command(elf, board), inputs, Path(name), timeout_s, elf)


# --- Unicorn ------------------------------------------------------------------------------------------------------

_BKPT = 7  # QEMU's number of the exception, target/arm/cpu.h, EXCP_BKPT
_SYSTEM = 0xE000E000  # system control space: SysTick, NVIC, CPACR
_SYS_OPEN, _SYS_CLOSE, _SYS_WRITE0, _SYS_WRITE, _SYS_READ = 1, 2, 4, 5, 6
_SYS_GET_CMDLINE, _SYS_EXIT_EXTENDED = 0x15, 0x20


class Machine:
    """One run of one ELF file in Unicorn, with semihosting calls answered from memory."""

    def __init__(self, elf: Path, target: Target, inputs: bytes) -> None:
        if target.unicorn is None:
            raise MissingToolError(f"Unicorn has no {target.core or target.name}: run it in qemu-system-arm")
        self.what = f"{elf.name} on Unicorn's Cortex-{target.unicorn}"
        self.elf = elf
        # Not UC_MODE_MCLASS, which makes every core an M33: an M0 would execute SMLAD.
        self.uc = unicorn.Uc(unicorn_const.UC_ARCH_ARM, unicorn_const.UC_MODE_THUMB)
        model = getattr(arm_const, f"UC_CPU_ARM_CORTEX_{target.unicorn}")
        self.uc.ctl_set_cpu_model(model)
        if self.uc.ctl_get_cpu_model() != model:
            raise ToolError(f"Unicorn {unicorn.__version__} does not become a Cortex-{target.unicorn}")
        self.files: dict[str, bytearray] = {_INPUTS: bytearray(inputs)}
        self.open: dict[int, tuple[str, int]] = {}  # handle -> name, position
        self.text = ""
        self.code: int | None = None
        self.failure: BaseException | None = None

        at = {symbol.name: symbol.address for symbol in symbols(elf)}
        for low, high, rights in (
            (at["__flash_start"], at["__flash_end"], unicorn_const.UC_PROT_READ | unicorn_const.UC_PROT_EXEC),
            (at["__ram_start"], at["__ram_end"], unicorn_const.UC_PROT_ALL),
            (_SYSTEM, _SYSTEM + 0x1000, unicorn_const.UC_PROT_READ | unicorn_const.UC_PROT_WRITE),
        ):
            self.uc.mem_map(low, high - low, rights)
        with ELFFile.load_from_path(str(elf)) as file:
            for segment in file.iter_segments():
                if segment["p_type"] == "PT_LOAD" and segment["p_filesz"]:
                    self.uc.mem_write(segment["p_paddr"], segment.data())
        self.stack, self.reset = struct.unpack("<II", self.uc.mem_read(at["__flash_start"], 8))
        self.uc.hook_add(unicorn_const.UC_HOOK_INTR, self._on_exception)

    def _word(self, address: int) -> int:
        return int.from_bytes(self.uc.mem_read(address, 4), "little")

    def _text(self, address: int) -> str:
        text = bytearray()
        while (byte := self.uc.mem_read(address + len(text), 1)[0]) != 0:
            text.append(byte)
        return text.decode("latin1")

    def _on_exception(self, uc: Any, number: int, _: object) -> None:
        try:
            pc = uc.reg_read(arm_const.UC_ARM_REG_PC)
            if number != _BKPT or bytes(uc.mem_read(pc, 2)) != b"\xab\xbe":
                raise ToolError(f"{self.what}: exception {number} at {_place(self.elf, pc)}")
            result = self._semihosting(uc.reg_read(arm_const.UC_ARM_REG_R0), uc.reg_read(arm_const.UC_ARM_REG_R1))
            uc.reg_write(arm_const.UC_ARM_REG_R0, result & 0xFFFFFFFF)
            uc.reg_write(arm_const.UC_ARM_REG_PC, (pc + 2) | 1)
        except BaseException as failure:  # an exception cannot pass through Unicorn's C code
            self.failure = failure
            uc.emu_stop()

    def _semihosting(self, operation: int, at: int) -> int:
        if operation == _SYS_OPEN:
            name, mode = self._text(self._word(at)), self._word(at + 4)
            if mode >= 4:
                self.files[name] = bytearray()
            elif name not in self.files:
                return -1
            handle = 1 + max(self.open, default=0)
            self.open[handle] = (name, 0)
            return handle
        if operation == _SYS_CLOSE:
            return 0 if self.open.pop(self._word(at), None) else -1
        if operation in (_SYS_READ, _SYS_WRITE):
            handle, address, length = self._word(at), self._word(at + 4), self._word(at + 8)
            name, position = self.open[handle]
            if operation == _SYS_WRITE:
                data = bytes(self.uc.mem_read(address, length))
                self.files[name][position:] = data
            else:
                data = bytes(self.files[name][position : position + length])
                self.uc.mem_write(address, data)
            self.open[handle] = (name, position + len(data))
            return length - len(data)
        if operation == _SYS_WRITE0:
            self.text += self._text(at)
            return 0
        if operation == _SYS_GET_CMDLINE:
            line = f"harness {_INPUTS} {_OUTPUTS} {_TRACE}\0".encode()
            self.uc.mem_write(self._word(at), line)
            return 0
        if operation == _SYS_EXIT_EXTENDED:
            self.code = self._word(at + 4)
            self.uc.emu_stop()
            return 0
        raise ToolError(f"{self.what}: semihosting call {operation:#x} is not known here")

    def run(self, timeout_s: float) -> Run:
        self.uc.reg_write(arm_const.UC_ARM_REG_SP, self.stack)
        try:
            self.uc.emu_start(self.reset | 1, 0xFFFFFFFE, timeout=int(timeout_s * 1e6))
        except unicorn.UcError as error:
            if self.failure is None:
                where = _place(self.elf, self.uc.reg_read(arm_const.UC_ARM_REG_PC))
                raise ToolError(f"{self.what}: {error} at {where}") from None
        if self.failure is not None:
            raise self.failure
        if self.code is None:
            raise ToolError(f"{self.what}: the program did not end within {timeout_s:g} s")
        outputs, trace = (bytes(self.files.get(name, b"")) for name in (_OUTPUTS, _TRACE))
        return _result(self.what, self.code, self.text, outputs, trace)


def run_unicorn(elf: Path, target: Target, inputs: bytes, timeout_s: float = 120) -> Run:
    """Run an ELF file of `build_target` in Unicorn, as `target.unicorn`.

    Writes to flash, memory outside the board's and unaligned words on an M0 are errors here, as on the board.

    Raises:
        ToolError: Unicorn lacks the core, or the program failed a check, faulted or took too long.
    """
    return Machine(elf, target, inputs).run(timeout_s)
