"""Who a node is and whom it believes: keys, certificates, the authority, invitations, and the files that keep them."""

from __future__ import annotations
