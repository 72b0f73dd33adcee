"""What importing the packages costs."""

from __future__ import annotations

import subprocess
import sys


def test_the_packages_import_neither_scipy_nor_matplotlib():
    code = (
        "import curricula.eval.analysis, curricula.eval.report, sys;"
        "print(sorted({'scipy', 'statsmodels', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
