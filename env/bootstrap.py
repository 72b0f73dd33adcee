"""Create a virtual environment with a current pip, even if Debian's python3 is installed without its venv and pip packages.

    python3 env/bootstrap.py .venv            # env/gpu/install and `make audit`
    python3 env/bootstrap.py .venv --torch    # `make`

This needs only the standard library. If `ensurepip` is missing, pip's own wheel is fetched from PyPI, checked against the
SHA-256 that PyPI states, and used to install itself.

With `--torch`, it then says what will be downloaded, and stops if the disk is too small. On a machine without an NVIDIA GPU, it
installs the CPU build of torch if that can be downloaded: for Linux, PyPI has only the CUDA build, which is ten times as large.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request

PYPI = "https://pypi.org/pypi/pip/json"
TORCH_CPU = "https://download.pytorch.org/whl/cpu"
DRIVER = "/dev/nvidiactl"
"""A device that exists if NVIDIA's driver is loaded."""
CONSTRAINTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "constraints.txt")
SMALL, LARGE = (0.7, 3.0), (3.3, 6.6)
"""GB to download and GB on disk, with the CPU build of torch and with its CUDA build."""


def choose_torch(folder, python):
    """Announce what will be installed. If the CPU build of torch is enough and pip would take the other, install torch here."""
    build = torch_from(python, [])
    if not build:  # torch is installed already
        return
    cuda_is_useless = build == "cuda" and not os.path.exists(DRIVER)
    cpu_index = ["--index-url", TORCH_CPU]
    if cuda_is_useless and answers(TORCH_CPU) and torch_from(python, cpu_index) == "cpu":
        announce(folder, *SMALL)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins(), *cpu_index, "torch>=2.6"], check=True)
        return
    announce(folder, *(LARGE if build == "cuda" else SMALL))
    if cuda_is_useless:
        print(
            "  Most of it is torch for CUDA, which this machine cannot use, but the CPU build cannot be downloaded from here.\n"
            f"  Ctrl-C stops this. To bring your own: {python} -m pip install torch (with an index or a wheel), then make",
            flush=True,
        )


def make(folder, python):
    """Create the environment and its pip."""
    # Checked before anything is created: a newer Python would not replace the folder that an older one has left.
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit(f"bootstrap: Python {sys.version.split()[0]} is too old; name 3.10 or newer, as in make PYTHON=python3.12")
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
        sys.exit("bootstrap: the downloaded pip wheel does not have the SHA-256 that PyPI states; try again")
    with tempfile.TemporaryDirectory() as temporary:
        path = os.path.join(temporary, wheel["filename"])
        with open(path, "wb") as file:
            file.write(content)
        subprocess.run([python, os.path.join(path, "pip"), "install", "--quiet", path], check=True)


def torch_from(python, source):
    """Which build of torch pip would install: "cuda", "cpu", "" if one is installed, or "none". Downloads nothing."""
    command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", *pins(), *source, "torch>=2.6"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return "none"
    names = [item["metadata"]["name"].lower() for item in json.loads(done.stdout)["install"]]
    if any(name.startswith(("nvidia-", "cuda-")) for name in names):
        return "cuda"
    return "cpu" if names else ""


def pins():
    return ["--constraint", CONSTRAINTS] if os.path.exists(CONSTRAINTS) else []


def answers(url):
    try:
        with urllib.request.urlopen(url + "/torch/", timeout=5):
            return True
    except OSError:
        return False


def announce(folder, download_gb, disk_gb):
    size = f"about {download_gb} GB to download, {disk_gb} GB on disk"
    print(f"Installing into {folder}, once: {size}. This takes some minutes and prints nothing.", flush=True)
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < disk_gb:
        sys.exit(
            f"bootstrap: the disk has {free_gb:.1f} GB free; free {disk_gb - free_gb:.1f} GB more and run the command again"
        )


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[2:] not in ([], ["--torch"]):
        sys.exit(__doc__)
    PYTHON = os.path.join(sys.argv[1], "bin", "python")
    make(sys.argv[1], PYTHON)
    if sys.argv[2:]:
        choose_torch(sys.argv[1], PYTHON)
