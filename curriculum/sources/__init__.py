"""Public datasets: what is known of them, how to fetch them, and how to read them as documents or conversations.

`hub` fetches them from the Hugging Face hub into a data folder; everything else reads that folder.
"""

from curricula.curriculum.sources.conversations import Conversation, read_conversations
from curricula.curriculum.sources.declared import DeclaredTable, TextTable
from curricula.curriculum.sources.documents import Document, Documents
from curricula.curriculum.sources.registry import DATASETS, Dataset, local_root
from curricula.curriculum.sources.tables import Table

__all__ = [
    "DATASETS",
    "Conversation",
    "Dataset",
    "DeclaredTable",
    "Document",
    "Documents",
    "Table",
    "TextTable",
    "local_root",
    "read_conversations",
]
