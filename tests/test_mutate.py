"""The importer under fire, some thousand shots; `python -m tests.mutate --count 200000` is the whole battle."""

import os
import time

import pytest

from mnet.errors import ModelError
from mnet.tflite import parse_model
from tests import mutate


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return mutate.corpus()


@pytest.mark.slow
def test_thousands_of_changed_models_are_read_or_refused_with_a_sentence(files: list[bytes]) -> None:
    findings = mutate.fire(4000, 77, files)
    assert not findings, "\n".join(f"{finding.number}: {finding.what}" for finding in findings)


def test_mutants_are_the_same_again_and_of_both_fates(files: list[bytes]) -> None:
    read = 0
    for number in range(60):
        data = mutate.mutant(files, 5, number)
        assert data == mutate.mutant(files, 5, number)
        try:
            parse_model(data, "net.tflite")
            read += 1
        except ModelError:
            pass
    assert 0 < read < 60


def test_what_is_not_an_answer_is_found(files: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors, deaths and endless loops of the importer, each with its number; the others are tried all the same."""
    monkeypatch.setattr(mutate, "SECONDS", 1)
    count = iter(range(100))

    def attempt(data: bytes) -> str:
        match next(count):
            case 2:
                return "no sentence"
            case 4:
                time.sleep(10)
            case 6:
                bytearray(8 << 30)
        return ""

    findings = mutate.fire(9, 1, files, attempt)
    assert [finding.number for finding in findings[:2]] == [2, 4]
    assert findings[1].what.startswith("takes more than 1 s") and len(findings) == 3
    assert findings[2].number == 6 and "died" in findings[2].what


def test_a_process_that_dies_is_replaced(files: list[bytes]) -> None:
    def attempt(data: bytes) -> str:
        if len(data) % 5 == 0:
            os._exit(7)
        return ""

    sizes = [len(mutate.mutant(files, 3, number)) for number in range(25)]
    findings = mutate.fire(25, 3, files, attempt)
    assert [finding.number for finding in findings] == [n for n, size in enumerate(sizes) if size % 5 == 0] != []
    assert all("exit code 7" in finding.what for finding in findings)
