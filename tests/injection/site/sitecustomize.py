"""Run by Python at its start where a test has named this folder in PYTHONPATH: what is to go wrong there."""

import os
import sys
from pathlib import Path

if os.environ.get("MEGASLM_FAULTS"):
    sys.path.append(str(Path(__file__).parents[3]))
    from tests.injection.faults import arm

    arm(os.environ["MEGASLM_FAULTS"])
