"""The notebooks, run from a clean kernel: refreshed, or checked against the outputs they are committed with.

    python -m analysis.notebooks [NAME...]             run and write the outputs back
    python -m analysis.notebooks --check [NAME...]     run and name every cell whose output is another

Tables and sentences are compared word by word, figures by the digest of what is drawn.
Exit codes: 0 all as committed or refreshed, 1 a cell failed or is stale, 2 no such notebook.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from study.atomic import write_text

if TYPE_CHECKING:  # at run time where needed: who has no Jupyter is told so
    from nbclient.exceptions import CellExecutionError
    from nbformat import NotebookNode

FOLDER = Path(__file__).parent
RESULTS = re.compile(r'^RESULTS = ".*?"', re.MULTILINE)
LIMIT = 300  # seconds for one cell, on a machine busy with other work
AT_ONCE = 2


def notebooks(names: Sequence[str] = ()) -> list[Path]:
    """All of them in order, or those that are named, as `03` or `03_hourglass`."""
    found = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
    unknown = [name for name in names if not any(path.name.startswith(name) for path in found)]
    if unknown:
        raise ValueError(f"no notebook {unknown[0]}: there are {', '.join(path.stem for path in found)}")
    return [path for path in found if not names or any(path.name.startswith(name) for name in names)]


def check_installed() -> None:
    for package in ("nbformat", "nbclient", "jupyter_client", "ipykernel"):
        if find_spec(package) is None:
            raise ValueError(
                f"notebooks are run with {package}, which is not installed: pip install "
                "'diffusion-backbone-study[notebooks]'; python -m study.report makes a page without"
            )


def read(path: Path) -> NotebookNode:
    import nbformat

    return nbformat.read(path, as_version=4)


def execute(path: Path, results: Path | None = None) -> NotebookNode:
    """A fresh copy run top to bottom beside the committed one; `results` replaces where its rows come from."""
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    notebook = read(path)
    if results is not None:
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        first.source, changed = RESULTS.subn(f'RESULTS = "{results.absolute()}"', first.source)
        if not changed:
            raise ValueError(f"{path.name}: its first cell must say RESULTS = ...")
    with TemporaryDirectory() as sockets:  # files, not ports: many kernels may start at once
        kernel = KernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        client = NotebookClient(notebook, km=kernel, timeout=LIMIT, resources={"metadata": {"path": FOLDER}})
        try:
            client.execute(env=_environment())
        finally:
            if kernel.has_kernel:
                kernel.shutdown_kernel(now=True)  # nbclient leaves a kernel that was given to it alone
    return _plain(notebook)


def _environment() -> dict[str, str]:
    """The kernel finds this very code, installed or not, and leaves the machine's other cores alone."""
    paths = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def _plain(notebook: NotebookNode) -> NotebookNode:
    """Without what differs between two equal runs: times, versions, empty metadata."""
    from nbformat import NotebookNode

    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
    return notebook


def stale(committed: NotebookNode, fresh: NotebookNode) -> Iterator[str]:
    """One sentence per cell whose outputs are not those committed."""
    for number, (old, new) in enumerate(zip(committed.cells, fresh.cells, strict=True), start=1):
        if old.cell_type == "code":
            before, after = [_words(output) for output in old.outputs], [_words(output) for output in new.outputs]
            change = next(((b, a) for b, a in zip_longest(before, after) if b != a), None)
            if change is not None:
                yield f"cell {number} ({_title(new)}): {_change(*change)}"


def _words(output: NotebookNode) -> str:
    if output.output_type == "stream":
        return str(output.text)
    if output.output_type == "error":
        return f"{output.ename}: {output.evalue}"
    kinds = ", ".join(sorted(kind for kind in output.data if not kind.startswith("text/")))
    return f"{output.data.get('text/plain', '')}{f' as {kinds}' if kinds else ''}"


def _title(cell: NotebookNode) -> str:
    return str(cell.source).strip().splitlines()[0] if str(cell.source).strip() else "empty"


def _change(before: str | None, after: str | None) -> str:
    if before is None or after is None:
        return "output missing" if before is None else "an output that is no longer made"
    lines = zip_longest(before.splitlines(), after.splitlines(), fillvalue="")
    old, new = next((pair for pair in lines if pair[0] != pair[1]), ("", ""))
    return f"committed {old.strip()!r}, now {new.strip()!r}"


def refresh(path: Path) -> list[str]:
    """Run a notebook and write it back; what went wrong, if anything did."""
    import nbformat
    from nbclient.exceptions import CellExecutionError

    try:
        fresh = execute(path)
    except CellExecutionError as error:
        return [f"{path.name}: {_last_line(error)}"]
    write_text(path, nbformat.writes(fresh) + "\n")
    return []


def check(path: Path) -> list[str]:
    """Run a notebook; every cell that fails or whose output is another than committed."""
    from nbclient.exceptions import CellExecutionError

    try:
        fresh = execute(path)
    except CellExecutionError as error:
        return [f"{path.name}: {_last_line(error)}"]
    return [f"{path.name}: {sentence}; run make notebooks" for sentence in stale(read(path), fresh)]


def _last_line(error: CellExecutionError) -> str:
    return f"{error.ename}: {error.evalue}"


def main(given: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.notebooks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(given)
    try:
        check_installed()
        paths = notebooks(options.names)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(AT_ONCE) as pool:
        faults = [fault for found in pool.map(check if options.check else refresh, paths) for fault in found]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
