"""Memory does not grow with the length of a run or of an evaluation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_grow():
    """A leak of one image (768 bytes) per step or one figure per epoch would show."""
    script = Path(__file__).with_name("memory.py")
    process = subprocess.run([sys.executable, script, "60", "6000"], capture_output=True, text=True, check=True)
    used = json.loads(process.stdout)
    for phase in ("training", "evaluation"):
        assert len(used[phase]) == 10
        early, late = max(used[phase][3:5]), min(used[phase][-2:])
        assert late - early < 6, (phase, used)
