"""One private cluster per session, and scenarios that all begin at once: most of each is waiting."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from study.run_directory import RunDirectory
from tests.slurm import scenarios
from tests.slurm.cluster import Cluster, missing
from tests.slurm.disturbed import left_by, undisturbed
from tests.slurm.search_scenario import WORKERS

REQUIRED = "STUDY_REQUIRE_SLURM"
NODES = 12
FEATURES = {4: "lossy", 5: "lossy", 8: "pair", 9: "pair"}
WIDE = {11: WORKERS}


def skip_if(reason: str) -> None:
    """Unless somebody insists."""
    if reason and os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, but {reason}")
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("one cluster serves all tests: pytest tests/slurm, without -n")
    skip_if(missing())
    with TemporaryDirectory(prefix="slurm-") as folder:  # not pytest's: munged wants a path open to all
        started = Cluster(Path(folder), NODES, cpus=6, more_cpus=WIDE, max_array=WORKERS, features=FEATURES)
        os.environ["SLURM_CONF"] = str(started.conf)
        started.start()
        try:
            yield started
        finally:
            started.stop()
            del os.environ["SLURM_CONF"]
            assert not started.job_processes()


@pytest.fixture(scope="session")
def begun(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Any]]:
    """What became of a scenario by its name; those of all tests that were chosen are under way from the start."""
    chosen = {name for item in request.session.items for mark in item.iter_markers("scenario") for name in mark.args}
    folder = tmp_path_factory.mktemp("scenarios")
    with ThreadPoolExecutor(len(chosen) or 1) as pool:
        futures: dict[str, Future[Any]] = {
            name: pool.submit(getattr(scenarios, name), folder / name, cluster)
            for name in scenarios.ORDER
            if name in chosen
        }

        def result(name: str) -> Any:
            if name in scenarios.LAST:
                wait(futures.values())
                return getattr(scenarios, name)(folder / name, cluster)
            return futures[name].result()

        yield result


@pytest.fixture(scope="session")
def alone_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The disturbed run when nobody disturbs it."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def alone(alone_run: RunDirectory) -> dict[str, object]:
    return left_by(alone_run)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "scenario(name): what the test looks at, begun with the session")
