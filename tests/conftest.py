"""Every test runs without a network, without a model hub and on one thread of torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_ANALYTICS_ENABLED="False",
    TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1", ACCELERATE_USE_CPU="1",
    OMP_WAIT_POLICY="PASSIVE",
)  # fmt: skip
for name in ("ATTUNE_HOME", "ATTUNE_DATABASE", "ATTUNE_STORE", "ATTUNE_SECRET"):
    os.environ.pop(name, None)
sys.path.insert(0, str(Path(__file__).parent))  # the *_support modules
