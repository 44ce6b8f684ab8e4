"""Floor 3, tokens: KL over a vocabulary, losses that descend what they claim, and the audit.

Which to use: `audit` to learn which divergence a policy loss descends.
"""

from .auditing.findings import Audit
from .auditing.run import audit

__all__ = ["Audit", "audit"]
