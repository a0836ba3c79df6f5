"""`mnet demo` in short: every step, the table, the files, and a second run over the first."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from mnet.cli import main
from mnet.errors import ToolError
from mnet.proof import find_target_compiler
from tests.tools import hide_compilers


@pytest.mark.slow
def test_demo_walks_the_whole_road_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        find_target_compiler()
    except ToolError as error:
        pytest.skip(str(error))
    out = tmp_path / "demo"
    result = CliRunner().invoke(main, ["demo", "-o", str(out), "--epochs", "3"])
    assert result.exit_code == 0, result.output
    figures = json.loads((out / "demo.json").read_text())
    assert 0.3 < figures["int8_accuracy"] <= 1 and abs(figures["int8_accuracy"] - figures["float_accuracy"]) < 0.1
    zoo = figures["zoo"]
    assert zoo["profile"]["cycles"] > zoo["profile"]["instructions"] > 100_000 and zoo["int8_accuracy"] > 0.9
    assert {leg["status"] for each in (figures, zoo) for leg in each["proof"]["legs"]} == {"equal"}
    for text in ("accuracy, int8", "flash", "RAM", "cycles, Cortex-M4", "0 differ", "Next:"):
        assert text in result.stdout
    page = (out / "report.html").read_text()
    assert f"{zoo['profile']['cycles']:,}" in page and "Equal in every bit" in page
    assert "FASHION_LABELS" in (out / "fashion" / "fashion.h").read_text()
    if shutil.which("make") and shutil.which("cc"):
        done = subprocess.run(["make", "-C", str(out / "fashion"), "test"], capture_output=True, text=True)
        assert done.returncode == 0 and " 0 differ" in done.stdout, done.stdout + done.stderr

    # Without compilers it says plainly what was not run, and ends with 3.
    hide_compilers(monkeypatch)
    bare = CliRunner().invoke(main, ["demo", "-o", str(out), "--epochs", "1"])
    assert bare.exit_code == 3, bare.output
    assert "C on cortex-m4, not run: arm-none-eabi-gcc is missing" in bare.stdout
    assert json.loads((out / "demo.json").read_text())["zoo"]["profile"] is None
    assert "code size are missing: arm-none-eabi-gcc is missing" in (out / "report.html").read_text()
