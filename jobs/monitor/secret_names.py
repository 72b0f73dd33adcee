"""Names of variables that sound like a secret's. They go neither into a script nor to the command that notifies."""

from __future__ import annotations

import re

SECRET = re.compile(
    r"TOKEN(?!IZERS_PARALLELISM)|SECRET|PASS|(?<!^OLD)(?<!^)PWD|CREDENTIAL|AUTH|(^|_)(API)?KEY", re.IGNORECASE
)
"""PWD and OLDPWD are folders, TOKENIZERS_PARALLELISM is a switch and NCCL_IB_PKEY a number of the fabric's."""
