"""Download the files of GLUE's tasks by name, in the folders that GLUE's own script makes.

    python examples/download_glue_data.py --data_dir='./glue_data' --tasks='MRPC'
    python examples/download_glue_data.py --data_dir glue_data --tasks SST,QNLI
    python examples/download_glue_data.py --data_dir glue_data --tasks MRPC --path_to_mrpc my-mrpc

The flags are those of download_glue_data.py of 2018. MRPC comes from SentEval's copy; `--path_to_mrpc` names a folder
with Microsoft's msr_paraphrase_train.txt and msr_paraphrase_test.txt instead. `--url` names a mirror. The data sets
have licences of their own, see gluebenchmark.com.
"""

from __future__ import annotations

import http.client
import io
import shutil
import sys
import urllib.request
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from qdq.base.artifacts import atomic_folder, write_text
from qdq.base.config import choice
from qdq.base.edge import Parser, run_script
from qdq.base.screen import Screen
from qdq.errors import DataError

URL = "https://dl.fbaipublicfiles.com"
SECONDS = 30.0  # without an answer
LARGEST = 1 << 30  # bytes of an archive, and of what it unpacks to; GLUE's largest is MNLI's with 313 MB
ARCHIVES = {
    "CoLA": "CoLA",
    "SST": "SST-2",
    "QQP": "QQP-clean",
    "STS": "STS-B",
    "MNLI": "MNLI",
    "QNLI": "QNLIv2",
    "RTE": "RTE",
    "WNLI": "WNLI",
}
TASKS = ("MRPC", *ARCHIVES, "diagnostic")
FOLDERS = {"SST": "SST-2", "STS": "STS-B"}  # where they are called otherwise
MRPC_FILES = ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt")
IDS = "dev_ids.tsv"


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Download as the flags say, but for folders that are there; returns those that were made."""
    parser = Parser(description=__doc__)
    parser.add_argument("--data_dir", default="glue_data", help="folder that gets one folder per task")
    parser.add_argument("--tasks", default="all", help=f"all, or some of {','.join(TASKS)} (default: all)")
    parser.add_argument("--path_to_mrpc", type=Path, help="folder with Microsoft's two files (default: SentEval's)")
    parser.add_argument("--url", default=URL, help="where the files are (default: %(default)s)")
    options = parser.parse_args(arguments)
    names = TASKS if options.tasks == "all" else options.tasks.split(",")
    tasks = [choice(spelled(name.strip()), TASKS, "--tasks") for name in names]
    # One task after another, each whole or not at all
    screen, made = Screen(), []
    for task in tasks:
        folder = Path(options.data_dir) / FOLDERS.get(task, task)
        if any(folder.glob("*.tsv")):
            screen.row(task, f"is there already: {folder}")
            continue
        with screen.stage(task) as stage:
            if task == "MRPC":
                folder = mrpc(Path(options.data_dir), options.url, options.path_to_mrpc)
            elif task == "diagnostic":
                folder = diagnostic(Path(options.data_dir), options.url)
            else:
                folder = archive(Path(options.data_dir), options.url, ARCHIVES[task])
            stage.say(str(folder))
        made.append(folder)
    return made


def spelled(name: str) -> str:
    """A task's name as `TASKS` has it, also of its folder (SST-2, STS-B) and in other case."""
    known = {**{task.lower(): task for task in TASKS}, "sst-2": "SST", "sts-b": "STS"}
    return known.get(name.lower(), name)


def archive(data_dir: Path, url: str, name: str) -> Path:
    """Unpack ``NAME.zip``, which holds one folder. Raises DataError for an archive that is none, or leaves it."""
    address = f"{url}/glue/data/{name}.zip"
    content = fetched(address)
    # Files of the one folder that it holds
    try:
        packed = zipfile.ZipFile(io.BytesIO(content))
        files = [entry for entry in packed.infolist() if not entry.is_dir()]
    except zipfile.BadZipFile as error:
        raise DataError(f"{address}: is no zip archive ({error}); try again, or another --url") from None
    tops = {Path(entry.filename).parts[0] for entry in files} - {"__MACOSX"}
    if len(tops) != 1 or any(".." in Path(e.filename).parts or e.filename.startswith("/") for e in files):
        raise DataError(f"{address}: is not the one folder of a GLUE task; give another --url")
    if sum(entry.file_size for entry in files) > LARGEST:
        raise DataError(f"{address}: unpacks to more than {LARGEST >> 30} GB; give another --url")
    folder = data_dir / tops.pop()
    with atomic_folder(folder) as partial:
        for entry in files:
            parts = Path(entry.filename).parts
            if parts[0] == folder.name:
                place = partial.joinpath(*parts[1:])
                place.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(entry) as source, place.open("wb") as target:
                    shutil.copyfileobj(source, target)
    return folder


def mrpc(data_dir: Path, url: str, given: Path | None) -> Path:
    """MRPC's folder: Microsoft's files, and train.tsv, dev.tsv and test.tsv made of them as GLUE splits them."""
    # Both files, and the ids of the training file's rows that are GLUE's dev set
    texts = {}
    for name in MRPC_FILES:
        if given is not None and not (given / name).is_file():
            raise DataError(f"--path_to_mrpc {given}: has no {name}; give the folder with Microsoft's two files")
        raw = (given / name).read_bytes() if given is not None else fetched(f"{url}/senteval/senteval_data/{name}")
        texts[name] = decoded(raw, name)
    ids = decoded(fetched(f"{url}/glue/data/mrpc_dev_ids.tsv"), IDS)
    chosen = set(map(tuple, cells(ids)))
    (header, *rows), (_, *tested) = cells(texts[MRPC_FILES[0]]) or [[]], cells(texts[MRPC_FILES[1]]) or [[]]
    if any(len(row) != 5 for row in (header, *rows, *tested)):
        raise DataError(f"{MRPC_FILES[0]}: has not five columns (Quality, two ids, two strings); download it again")
    dev = [row for row in rows if (row[1], row[2]) in chosen]
    if not dev or len(dev) == len(rows):
        raise DataError(f"{IDS}: names {len(dev)} of the {len(rows)} training rows; download both again")
    # The folder that GLUE's script makes
    folder = data_dir / "MRPC"
    names = "\t".join(("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"))
    with atomic_folder(folder) as partial:
        for name, text in {**texts, IDS: ids}.items():
            write_text(partial / name, text)
        write_text(partial / "train.tsv", lines(names, (row for row in rows if (row[1], row[2]) not in chosen)))
        write_text(partial / "dev.tsv", lines(names, dev))
        unlabelled = ([str(number), *row[1:]] for number, row in enumerate(tested))
        write_text(partial / "test.tsv", lines(names.replace("Quality", "index"), unlabelled))
    return folder


def diagnostic(data_dir: Path, url: str) -> Path:
    """The diagnostic set: MNLI's sentences by phenomenon, without labels."""
    content = fetched(f"{url}/glue/data/AX.tsv")
    with atomic_folder(data_dir / "diagnostic") as partial:
        write_text(partial / "diagnostic.tsv", decoded(content, "AX.tsv"))
    return data_dir / "diagnostic"


def cells(text: str) -> list[list[str]]:
    """Cells of a table's lines; only line feeds end them, as the texts hold other separators."""
    return [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]


def lines(header: str, rows: Iterable[Sequence[str]]) -> str:
    """A table as GLUE writes it."""
    return "".join(f"{line}\n" for line in (header, *("\t".join(row) for row in rows)))


def decoded(raw: bytes, name: str) -> str:
    """UTF-8 text without a byte order mark. Raises DataError for anything else."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: is no UTF-8 text ({error.reason} at byte {error.start}); download it again") from None


def fetched(address: str) -> bytes:
    """Bytes at an address. Raises DataError, with the way out, where there are none."""
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            content: bytes = answer.read(LARGEST + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{address}: cannot be downloaded ({reason}); name a mirror with --url, or copy the task's folder from a "
            "machine with a network"
        ) from None
    if len(content) > LARGEST:
        raise DataError(f"{address}: is larger than {LARGEST >> 30} GB; give another --url")
    return content


if __name__ == "__main__":
    sys.exit(run_script(main))
