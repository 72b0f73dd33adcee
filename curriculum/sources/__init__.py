"""Public datasets: what is known of them, how to fetch them, and how to read them as documents or conversations.

`hub` fetches them from the Hugging Face hub into a data folder; everything else reads that folder.
"""

from curricula.curriculum.sources.documents import Documents as Documents
from curricula.curriculum.sources.registry import local_root as local_root
