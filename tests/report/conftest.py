from __future__ import annotations

import sys
from pathlib import Path

# Only so that the tests of this folder find their builder, whichever way pytest imports them.
sys.path.insert(0, str(Path(__file__).parent))
