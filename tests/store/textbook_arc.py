"""Adaptive replacement with plain lists of pages, line by line as in figure 4 of Megiddo and Modha, FAST 2003: an oracle."""

from __future__ import annotations


class TextbookArc:
    """Lists run from least to most recently used; `request` returns the pages that left the cache."""

    def __init__(self, c: int) -> None:
        self.c = c
        self.p = 0.0
        self.t1: list[int] = []
        self.t2: list[int] = []
        self.b1: list[int] = []
        self.b2: list[int] = []
        self._gone: list[int] = []

    def request(self, x: int) -> list[int]:
        """Read page x."""
        self._gone = []
        if x in self.t1 or x in self.t2:  # case I
            (self.t1 if x in self.t1 else self.t2).remove(x)
            self.t2.append(x)
        elif x in self.b1:  # case II
            self.p = min(self.c, self.p + max(len(self.b2) / len(self.b1), 1))
            self._replace(x)
            self.b1.remove(x)
            self.t2.append(x)
        elif x in self.b2:  # case III
            self.p = max(0, self.p - max(len(self.b1) / len(self.b2), 1))
            self._replace(x)
            self.b2.remove(x)
            self.t2.append(x)
        else:  # case IV
            self._make_way(x)
            self.t1.append(x)
        return self._gone

    def _make_way(self, x: int) -> None:
        if len(self.t1) + len(self.b1) == self.c:
            if len(self.t1) < self.c:
                self.b1.pop(0)
                self._replace(x)
            else:
                self._gone.append(self.t1.pop(0))
        else:
            total = len(self.t1) + len(self.t2) + len(self.b1) + len(self.b2)
            if total >= self.c:
                if total == 2 * self.c:
                    self.b2.pop(0)
                self._replace(x)

    def _replace(self, x: int) -> None:
        if self.t1 and (len(self.t1) > self.p or (x in self.b2 and len(self.t1) == self.p)):
            page = self.t1.pop(0)
            self.b1.append(page)
        else:
            page = self.t2.pop(0)
            self.b2.append(page)
        self._gone.append(page)
