"""A few seconds of the soak that tests/soak.py does for ten minutes."""
import os
import subprocess
import sys

import pytest

SOAK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "soak.py")


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="looks into /proc")
def test_soak():
    """Among hostile clients, rotations and reloads honest ones get right answers; nothing grows."""
    done = subprocess.run([sys.executable, SOAK, "--seconds", "2"], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=60)
    assert done.returncode == 0, done.stdout.decode()
