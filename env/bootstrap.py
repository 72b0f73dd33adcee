"""Make a virtual environment with a current pip, even where Debian's python3 came without its venv and pip packages.

    python3 env/bootstrap.py .venv

Uses the standard library alone. Where `ensurepip` is missing, pip's own wheel is fetched from PyPI, checked against the
SHA-256 that PyPI states, and installs itself.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import urllib.request

PYPI = "https://pypi.org/pypi/pip/json"


def main(folder):
    python = os.path.join(folder, "bin", "python")
    has_pip = importlib.util.find_spec("ensurepip") is not None
    subprocess.run([sys.executable, "-m", "venv", folder] + ([] if has_pip else ["--without-pip"]), check=True)
    if has_pip:
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"], check=True)
        return
    with urllib.request.urlopen(PYPI) as answer:
        files = json.load(answer)["urls"]
    wheel = next(file for file in files if file["packagetype"] == "bdist_wheel")
    with urllib.request.urlopen(wheel["url"]) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != wheel["digests"]["sha256"]:
        sys.exit("bootstrap: the pip wheel that arrived is not the one PyPI describes; try again")
    with tempfile.TemporaryDirectory() as temporary:
        path = os.path.join(temporary, wheel["filename"])
        with open(path, "wb") as file:
            file.write(content)
        subprocess.run([python, os.path.join(path, "pip"), "install", "--quiet", path], check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
