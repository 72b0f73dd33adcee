"""Public datasets: what is known of them, how to fetch them, and how to read them as documents or conversations.

`hub` fetches them from the Hugging Face hub into a data folder; everything else reads that folder.
"""

from curricula.curriculum.sources.conversations import Conversation as Conversation
from curricula.curriculum.sources.conversations import read_conversations as read_conversations
from curricula.curriculum.sources.declared import DeclaredTable as DeclaredTable
from curricula.curriculum.sources.declared import TextTable as TextTable
from curricula.curriculum.sources.documents import Document as Document
from curricula.curriculum.sources.documents import Documents as Documents
from curricula.curriculum.sources.registry import DATASETS as DATASETS
from curricula.curriculum.sources.registry import Dataset as Dataset
from curricula.curriculum.sources.registry import local_root as local_root
from curricula.curriculum.sources.tables import Table as Table
