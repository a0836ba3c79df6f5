"""Names of the classes inside a .tflite file, where other tools look for them, too.

A .tflite file may end with a zip archive; the flatbuffer in front of it does not know, and no runtime reads that far.
TensorFlow Lite's metadata calls what lies in it "associated files", and the names of classes `labels.txt`, a line each.
Source: tensorflow.org/lite/models/convert/metadata.
"""

import io
import zipfile

LABELS_FILE = "labels.txt"
_LONGEST = 1 << 20  # bytes of the text
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others take memory as the file bids them


def with_labels(content: bytes, names: tuple[str, ...]) -> bytes:
    """Return a .tflite file with the names of its classes at its end; the same bytes for the same names.

    A line is a name, so what cannot be printed becomes blanks.

    >>> labels_of(with_labels(b"model", ("cat", "the other one")))
    ('cat', 'the other one')
    """
    entry = zipfile.ZipInfo(LABELS_FILE, date_time=(1980, 1, 1, 0, 0, 0))  # the first date that zip knows
    entry.create_system, entry.external_attr = 3, 0o644 << 16  # a plain file of Unix, whatever system this is
    file = io.BytesIO()
    file.write(content)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        text = "".join(_printable(name) + "\n" for name in names)
        archive.writestr(entry, text.encode("utf-8", "replace"))
    return file.getvalue()


def labels_of(content: bytes) -> tuple[str, ...]:
    """Return the names of the classes that a .tflite file ends with, whatever its bytes are; () where there are none.

    Another tool may have called them otherwise: where there is no labels.txt, the only .txt file is taken.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            texts = [info for info in archive.infolist() if info.filename.endswith(".txt")]
            chosen = [info for info in texts if info.filename == LABELS_FILE] or texts
            if len(chosen) != 1 or chosen[0].compress_type not in _COMPRESSIONS or chosen[0].file_size > _LONGEST:
                return ()
            with archive.open(chosen[0]) as file:
                text = file.read(_LONGEST).decode("utf-8-sig")
    except Exception:  # no archive, or whatever a damaged one makes of zipfile and zlib
        return ()
    lines = text.split("\n")
    return tuple(_printable(line.removesuffix("\r")) for line in (lines if lines[-1] else lines[:-1]))


def _printable(name: str) -> str:
    """Return a name that no terminal or page takes for something else."""
    return "".join(c if c.isprintable() else " " for c in name)
