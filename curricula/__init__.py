"""When should safety enter pretraining? A Slurm-native suite that carries out the study from data to report.

The command line is `curricula` (`curricula --help`). The packages, in the order of the data: `curricula.curriculum` (what
the model reads, and when), `curricula.model` (training), `curricula.eval` (what the model does), `curricula.jobs` (where and
when all this runs). Each package says in its docstring what to import from it.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("safety-curricula")
except PackageNotFoundError:  # a copy of the code that is not installed
    __version__ = "0+unknown"
