"""Memory does not grow with the length of a run or of an evaluation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_stays_where_it_was():
    """A leak of one image (768 bytes) a step or one picture an epoch would show over ten times this length."""
    script = Path(__file__).with_name("memory.py")
    done = subprocess.run([sys.executable, script, "60", "6000"], capture_output=True, text=True, check=True)
    used = json.loads(done.stdout)
    for what in ("training", "evaluation"):
        assert len(used[what]) == 10
        early, late = max(used[what][3:5]), min(used[what][-2:])
        assert late - early < 6, (what, used)
