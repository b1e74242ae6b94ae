"""What the tests share: the folder of the program on the path, and services that end with their test."""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from service import Service  # noqa: E402


@pytest.fixture
def serve(tmp_path):
    """Start services: serve(config=..., args=..., env=...); each in a folder of its own, stopped at the end."""
    services = []

    def start(config=None, **options):
        folder = tmp_path / str(len(services))
        folder.mkdir()
        services.append(Service(folder, config, **options))
        return services[-1]

    yield start
    for service in services:
        service.stop()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One service with nothing configured, shared by the tests of a module that leave it as it is."""
    with Service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """Fail what skips where FAKE_METADATA_NO_SKIP is set: CI has installed all there is to test with."""
    report = (yield).get_result()
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("FAKE_METADATA_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = "%s skipped: %s" % (item.nodeid, report.longrepr[2])
