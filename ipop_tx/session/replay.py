"""The replay window: every counter is accepted once, and none that lies too far behind the newest."""

from __future__ import annotations

WINDOW = 8192
"""How many counters, the newest included, are told apart; everything older counts as seen."""

_FULL = (1 << WINDOW) - 1


class ReplayWindow:
    """Which counters of one direction were already accepted (RFC 4303, section 3.4.3, with one integer as the bit mask).

    Datagrams mostly arrive in order, so the mask is left behind while they do: every counter after `_mask_top` up to
    `highest` was accepted, and bit i of the mask stands for `_mask_top - i`.

    Ask `fresh` before opening a datagram, call `accept` only when it proved authentic: a forgery must not move the window.
    """

    __slots__ = ("_mask", "_mask_top", "highest")

    def __init__(self) -> None:
        self.highest = -1
        self._mask_top = -1
        self._mask = 0

    def fresh(self, counter: int) -> bool:
        """Whether `counter` was not accepted yet and is not too old to tell."""
        if counter > self.highest:
            return True
        if counter > self._mask_top or counter <= self.highest - WINDOW:
            return False
        return not self._mask >> (self._mask_top - counter) & 1

    def accept(self, counter: int) -> None:
        """Remember a counter that `fresh` has admitted."""
        if counter == self.highest + 1:
            self.highest = counter
        elif counter > self.highest:
            self._settle()
            shift = counter - self.highest
            self._mask = (self._mask << shift | 1) & _FULL if shift < WINDOW else 1
            self.highest = self._mask_top = counter
        else:
            self._mask |= 1 << (self._mask_top - counter)

    def advance(self, count: int) -> None:
        """Remember the `count` counters after the greatest so far."""
        self.highest += count

    def _settle(self) -> None:
        """Write the run of counters that came in order into the mask."""
        run = self.highest - self._mask_top
        self._mask = (self._mask << run | (1 << run) - 1) & _FULL if run < WINDOW else _FULL
        self._mask_top = self.highest
