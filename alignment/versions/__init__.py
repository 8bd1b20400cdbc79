"""The registry of versions: bases and adapters with their lineage down to the votes, promoted on a reason, exported.

No torch at import: the web app reads and promotes through it.
"""

from alignment.versions.difference import Difference, differences
from alignment.versions.export import card, export_adapter, export_audio, export_merged
from alignment.versions.lineage import Ancestor, Node, lineage, tree
from alignment.versions.promotion import champion, promote, retire, rollback
from alignment.versions.register import BASE_NAME, register_adapter, register_base, require_base

__all__ = [
    "BASE_NAME",
    "Ancestor",
    "Difference",
    "Node",
    "card",
    "champion",
    "differences",
    "export_adapter",
    "export_audio",
    "export_merged",
    "lineage",
    "promote",
    "register_adapter",
    "register_base",
    "require_base",
    "retire",
    "rollback",
    "tree",
]
