"""What the tests share: the program's folder on the path, services that end with their test."""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import fake_metadata  # noqa: E402
from conversation import SIGNER  # noqa: E402
from service import Service  # noqa: E402


@pytest.fixture
def serve(tmp_path):
    """Start services, serve(config=, args=, env=), in folders of their own; stop all at the end."""
    services = []

    def start(config=None, **options):
        folder = tmp_path / str(len(services))
        folder.mkdir()
        services.append(Service(folder, config, **options))
        return services[-1]

    yield start
    for service in services:
        service.stop()


class ManualClock:
    """A clock that shows what a test sets; 2026-12-01T08:00:00Z to begin with."""

    def __init__(self):
        self.now = 1796112000

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    """The wall clock of what a test makes: clock.now."""
    return ManualClock()


@pytest.fixture
def load(tmp_path):
    """Load the text of a configuration: load("[server]...", EC2_LOCAL_IPV4="203.0.113.9")."""
    def load(text="", **environ):
        path = tmp_path / "fake-metadata.conf"
        path.write_text(text, encoding="utf-8")
        return fake_metadata.load_config([fake_metadata.ConfigFile(str(path))], environ=environ)
    return load


@pytest.fixture
def make_metadata(load, clock):
    """Make the MetadataService that the text of a configuration describes, by the test's clock."""
    def make(text="", box="a box", former=None):
        config = load(text)
        credentials = fake_metadata.make_credentials(
            config, lambda words: None, lambda callback: callback())
        return fake_metadata.MetadataService(
            config, credentials, SIGNER, box, former=former, clock=clock)
    return make


@pytest.fixture
def check(tmp_path, capfd):
    """Have --test-config check a configuration; return its exit code and what it says of FILE."""
    def check(text):
        path = tmp_path / "checked.conf"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        code = fake_metadata.main(["--test-config", "--config", str(path)])
        said = capfd.readouterr()
        return code, (said.out + said.err).replace(str(path), "FILE")
    return check


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One service with nothing configured, for the tests of a module that leave it as it is."""
    with Service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """Fail what skips where FAKE_METADATA_NO_SKIP is set: CI has installed all that tests need."""
    report = (yield).get_result()
    if (report.skipped and not hasattr(report, "wasxfail")
            and os.environ.get("FAKE_METADATA_NO_SKIP")):
        report.outcome = "failed"
        report.longrepr = "%s skipped: %s" % (item.nodeid, report.longrepr[2])
