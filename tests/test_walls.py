"""The walls between the rooms, the time until the help appears, a README in each room, and the wheel."""

import ast
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("mnet", "codegen", "templates", "firmware", "tests")
_VALUES = "elementwise errors fixed_point graph movement oracle pairs reductions resources windows"
VALUES = {f"mnet.{name}" for name in _VALUES.split()}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield from (f"mnet.{alias.name}" for alias in node.names) if module == "mnet" else (module,)


def test_values_know_only_each_other() -> None:
    for name in VALUES:
        path = ROOT / (name.replace(".", "/") + ".py")
        ours = {module for module in imports(path) if module.split(".")[0] in ("mnet", "codegen")}
        assert ours <= VALUES, f"{path.name} imports {ours - VALUES}"


def test_codegen_knows_only_the_values() -> None:
    for path in sorted((ROOT / "codegen").rglob("*.py")):
        ours = {module for module in imports(path) if module.split(".")[0] == "mnet"}
        assert ours <= VALUES, f"codegen/{path.name} imports {ours - VALUES}"


def test_the_data_side_knows_nothing_of_codegen() -> None:
    names = (
        "architecture augmentation budget calibration comparison conversion cost datasets evaluation "
        "fake_quantization fidelity flatbuffer folders folding golden images improvement labels layer_names "
        "network operands optimizer progress pruning published qat quantization recipes runs sources tflite trained "
        "training training_task transfer"
    )
    for name in names.split():
        ours = {module for module in imports(ROOT / "mnet" / f"{name}.py") if module.split(".")[0] == "codegen"}
        assert not ours, f"mnet/{name}.py imports {ours}"


def test_nothing_imports_the_command_line() -> None:
    for path in sorted((*(ROOT / "mnet").rglob("*.py"), *(ROOT / "codegen").rglob("*.py"))):
        assert "mnet.cli" not in imports(path), path


def test_import_linter_agrees() -> None:
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_command_line_loads_nothing_heavy() -> None:
    loaded = json.loads(python("import json, sys, mnet.cli; print(json.dumps(sorted(sys.modules)))"))
    heavy = {"tensorflow", "keras", "numpy", "unicorn", "capstone", "jinja2", "rich", "ai_edge_litert", "PIL"}
    assert not heavy & set(loaded)


def test_reading_and_planning_loads_no_tensorflow() -> None:
    code = "import json, sys, mnet.pipeline, mnet.show, mnet.proof; print(json.dumps(sorted(sys.modules)))"
    assert not {"tensorflow", "keras"} & set(json.loads(python(code)))


def test_help_answers_within_half_a_second() -> None:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        python("from mnet.cli import main; main(['--help'])")
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5, seconds


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_readme_of_one_screen(room: str) -> None:
    lines = (ROOT / room / "README.md").read_text().splitlines()
    assert 5 < len(lines) <= 60
    assert lines[0].startswith("# ")


@pytest.mark.parametrize("room", ("mnet", "codegen"))
def test_a_rooms_readme_names_every_file(room: str) -> None:
    text = (ROOT / room / "README.md").read_text()
    for path in sorted((ROOT / room).glob("*.py")):
        assert path.name == "__init__.py" or f"`{path.name}`" in text, f"{room}/README.md does not name {path.name}"


def test_continuous_integration_runs_the_readmes_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text() and "make test" in (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="the wheel is built without the network, so hatchling has to be here")
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(out),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_the_data_folders(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for source, place in (
        ("templates", "mnet/templates"),
        ("firmware", "mnet/firmware"),
        ("mnet/data", "mnet/data"),
        ("mnet", "mnet"),
        ("codegen", "codegen"),
    ):
        for path in (ROOT / source).rglob("*"):
            hidden = any(part.startswith(("__pycache__", ".")) for part in path.relative_to(ROOT).parts)
            if path.is_file() and not hidden and "build" not in path.parts:
                assert f"{place}/{path.relative_to(ROOT / source)}" in names, path
    assert not any(name.startswith("tests") for name in names)


@pytest.mark.slow
def test_an_installed_wheel_generates_code(wheel: Path, tmp_path: Path) -> None:
    from tests.models import tiny_mobilenet
    from tests.writer import serialise

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    paths = json.loads(
        subprocess.run(
            [python, "-c", "import json, sysconfig; print(json.dumps(sysconfig.get_paths()))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    zipfile.ZipFile(wheel).extractall(paths["purelib"])
    # The dependencies come from this environment; the checkout, which an editable install would add, does not.
    here = [path for path in sys.path if path.endswith("site-packages")]
    model = tmp_path / "tiny.tflite"
    model.write_bytes(serialise(tiny_mobilenet()))
    code = (
        f"import sys; sys.path += {here!r}\n"
        f"import mnet; assert mnet.__file__.startswith({str(tmp_path)!r}), mnet.__file__\n"
        "from mnet.cli import main; main()"
    )
    for arguments in (("codegen", "tiny.tflite", "-o", "out"), ("verify", "tiny.tflite", "--target", "host")):
        done = subprocess.run([python, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "tiny.c").is_file()
